"""FLASH (Hua et al. 2022), a causal language model in linear time, beside FLASH-Quad and two Transformers.

python -m experiments.flash_lm                                                 a small FLASH learns the Bible, by bytes
python -m experiments.flash_lm --preset wiki40b --data_dir DIR --data.tokenizer SENTENCEPIECE.model     the paper's run
python -m experiments.flash_lm --mode predict --prompt "In the beginning"
"""

from configs.flash_lm import PRESETS, FlashRun
from flashjax import cli, training
from flashjax.models.flash import Flash, FlashConfig
from flashjax.models.transformer import Transformer
from flashjax.recipes import language
from flashjax.training import Experiment

PROGRAM = "experiments.flash_lm"
PAPER = f"python -m {PROGRAM} --preset wiki40b --data_dir DIR_OF_TFDS --data.tokenizer SENTENCEPIECE.model"


def module(config: FlashRun) -> type[Flash] | type[Transformer]:
    """What the preset's model is a configuration of."""
    return Flash if isinstance(config.model, FlashConfig) else Transformer


def build(config: FlashRun) -> Experiment:
    """Text -> model -> objective -> experiment."""
    return language.experiment(config, module(config), PROGRAM)


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__)
    with cli.friendly_errors(), training.session(config) as watchdog:
        language.run(config, module(config), PROGRAM, watchdog, further={"the paper's run": PAPER})


if __name__ == "__main__":
    main()
