"""Linear and sparse attention: all mixers, one budget, one table (Katharopoulos 2020 to Gated DeltaNet 2024).

python -m experiments.linear_attention_lm                                  all mixers on the Bible, bytes, and a page
python -m experiments.linear_attention_lm --mixers softmax gla --encoders --seeds 0 1 2           some, with deviations
python -m experiments.linear_attention_lm --mode train --model.mixer gla           one model, by the ordinary trainer
"""

import dataclasses
import sys
from pathlib import Path

from configs.flash_lm import FLASH_VECTORS
from configs.linear_attention_lm import FAMILIES, FLASH, PRESETS, LinearAttentionLm
from flashjax import cli, training
from flashjax.layers import attention
from flashjax.layers.positions import RopeParameters
from flashjax.models.flash import Flash, FlashConfig
from flashjax.models.transformer import Transformer, TransformerConfig
from flashjax.recipes import language
from flashjax.studies import comparison, comparison_page, study
from flashjax.studies.comparison import Contestant
from flashjax.training import Experiment, rundir

PROGRAM = "experiments.linear_attention_lm"
OWN = ("preset", "mode", "workdir", "mixers", "encoders", "seeds", "seed", "options", "step", "dry_run", "distributed")
OWN += ("checkpoint", "watch", "prompt", "max_new_tokens", "sampling")
"""What models of one comparison may differ in, or what does not change them."""


def architecture(config: LinearAttentionLm, name: str, causal: bool) -> TransformerConfig | FlashConfig:
    """The model of a table.

    Raises:
        ValueError: saying why there is none, or for options of a model that is not there.
    """
    options = dict(map(split, config.options))
    if name in FLASH:
        return dataclasses.replace(config.flash, kind=FLASH[name], causal=causal)
    sinusoids = {"position": "sinusoidal", "embed_scale": True, "rope": RopeParameters()}
    positions = {} if attention.get(name).rotary else sinusoids
    changes = {"mixer": name, "mixer_options": options.get(name, ""), "causal": causal, **positions}
    return dataclasses.replace(config.model, **changes)


def split(words: str) -> tuple[str, str]:
    """'gla: rank=8' as ('gla', 'rank=8').

    Raises:
        ValueError: if there is no such model in the tables.
    """
    name, colon, options = (part.strip() for part in words.partition(":"))
    if not colon or not any(name in names for names in FAMILIES.values()):
        raise ValueError(f"'{words}' is not MIXER: OPTION=VALUE; mixers: {', '.join(sum(FAMILIES.values(), ()))}")
    return name, options


def contestant(config: LinearAttentionLm, name: str, causal: bool, seed: int) -> Experiment:
    """The experiment of one cell; of FLASH decay leaves the same vectors alone as in flash_lm."""
    optimizer = config.optimizer
    if name in FLASH:
        optimizer = dataclasses.replace(optimizer, no_decay=(*optimizer.no_decay, *FLASH_VECTORS))
    config = dataclasses.replace(config, seed=seed, model=architecture(config, name, causal), optimizer=optimizer)
    return language.experiment(config, Flash if name in FLASH else Transformer, PROGRAM)


def contestants(config: LinearAttentionLm) -> list[Contestant]:
    """All cells: a model, a table, a seed."""
    budget = study.digest(dataclasses.asdict(config) | {"flash_no_decay": FLASH_VECTORS}, OWN)
    options, found = dict(map(split, config.options)), []
    for table, names in (("causal", config.mixers), ("masked", config.encoders)):
        for name in names:
            family = next((family for family, members in FAMILIES.items() if name in members), "others")
            reason = ""
            try:
                architecture(config, name, table == "causal")
            except ValueError as error:
                reason = str(error)
            found += [
                Contestant(table, name, family, options.get(name, ""), seed, budget, reason)
                for seed in (config.seeds if not reason else config.seeds[:1])
            ]
    return found


def build(config: LinearAttentionLm) -> Experiment:
    """The experiment of `--mode train`: one Transformer with `--model.mixer`."""
    return language.experiment(config, Transformer, PROGRAM)


def draw(workdir: Path) -> None:
    """Table and page from the log alone."""
    lines = comparison.read(workdir / "cells.jsonl")
    if not lines:
        raise ValueError(f"{workdir / 'cells.jsonl'} holds no cell: compare first, or name another --workdir")
    text = comparison_page.markdown(lines)
    (workdir / "table.md").write_text(text)
    page = comparison_page.write(workdir / "figure.html", "Language models by mixer", lines)
    print(f"\n{text}\n  log     {workdir / 'cells.jsonl'}\n  table   {workdir / 'table.md'}\n  figure  {page}")


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__)
    where = rundir.workdir(config, PROGRAM)
    with cli.friendly_errors():
        if config.dry_run or config.mode not in ("compare", "redraw"):
            config = dataclasses.replace(config, workdir=config.workdir or f"{where}-{config.model.mixer}")
            with training.session(config) as watchdog:
                language.run(config, Transformer, PROGRAM, watchdog)
            return
        if config.mode == "compare":
            arguments = ("--preset", config.preset, *sys.argv[1:])
            cells = contestants(config)
            comparison.sweep(cells, Path(where) / "cells.jsonl", PROGRAM, arguments, config.decode_lengths)
        draw(Path(where))


if __name__ == "__main__":
    main()
