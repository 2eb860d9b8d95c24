"""FLASH (Hua et al. 2022), a masked language model in linear time, beside FLASH-Quad and two Transformers.

python -m experiments.flash_c4                                             a small FLASH learns to guess hidden bytes
python -m experiments.flash_c4 --preset base_512 --data_dir DIR --data.tokenizer TOKENIZER          the paper's run
python -m experiments.flash_c4 --mode predict --prompt "In the beginning God <mask>reated the heaven"
"""

from configs.flash_c4 import PRESETS
from configs.flash_lm import FlashRun
from experiments.flash_lm import module
from flashjax import cli, training
from flashjax.recipes import language
from flashjax.training import Experiment

PROGRAM = "experiments.flash_c4"
PAPER = f"python -m {PROGRAM} --preset base_512 --data_dir DIR_OF_TFDS --data.tokenizer TOKENIZER"


def build(config: FlashRun) -> Experiment:
    """Text -> model -> objective -> experiment."""
    return language.experiment(config, module(config), PROGRAM)


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__)
    with cli.friendly_errors(), training.session(config) as watchdog:
        language.run(config, module(config), PROGRAM, watchdog, further={"the paper's run": PAPER})


if __name__ == "__main__":
    main()
