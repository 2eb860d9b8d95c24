"""Performer (Choromanski et al. 2020): softmax attention by random features, and a trained model that changes over.

python -m experiments.performer_lm                                    trains a small model, changes it over, tunes it
python -m experiments.performer_lm --checkpoint DIR                   the same for any language model
python -m experiments.performer_lm --conversions "features=64, kernel=relu"
"""

import dataclasses
import json
from pathlib import Path

from configs.performer_lm import PRESETS, PerformerLm, TrainedRun
from flashjax import cli, training
from flashjax.evaluation import approximation
from flashjax.models.transformer import Transformer
from flashjax.recipes import conversion_page, language
from flashjax.recipes.conversion import SOFTMAX, converted, tune
from flashjax.training import Experiment, rundir
from flashjax.training.watchdog import Watchdog

PROGRAM = "experiments.performer_lm"


def build(config: TrainedRun) -> Experiment:
    """The experiment of a run: the softmax model's, also for --run.dry_run and --run.plan, or a conversion's."""
    return language.experiment(config, Transformer, PROGRAM)


def softmax_model(config: PerformerLm, watchdog: Watchdog) -> language.Language:
    """The trained model: made (or gone on with) where it is not there yet, or the checkpoint.

    Raises:
        ValueError: if the checkpoint's mixer is another one.
    """
    run = dataclasses.replace(config.run, workdir=f"{rundir.workdir(config, PROGRAM)}/{SOFTMAX}")
    if config.checkpoint is None:
        print(f"\ntraining the softmax model, {run.data.length} tokens a row")
        training.fit(build(run), watchdog)
    made = language.initial(dataclasses.replace(run, init=config.checkpoint or run.workdir), Transformer)
    if made.config.model.mixer != SOFTMAX:
        raise ValueError(
            f"{config.checkpoint} is a model with mixer {made.config.model.mixer!r}: name one with softmax"
        )
    return made


def study(config: PerformerLm, watchdog: Watchdog) -> None:
    """Errors -> softmax model -> conversions -> table, file, page."""
    where = Path(rundir.workdir(config, PROGRAM))
    print("the error of random features, by their number", flush=True)
    errors = approximation.errors(config.errors, config.run.seed)
    base = softmax_model(config, watchdog)
    found = {}
    for options in (SOFTMAX, *config.conversions):
        print(f"\ntuning {options}")
        found[options] = tune(converted(config, base, options, str(where), build), watchdog)
    results = {"errors": errors, "conversions": found, "config": dataclasses.asdict(config)}
    (where / "results.json").write_text(json.dumps(results, indent=1, default=str))
    sizes = config.errors
    notes = [
        "The same weights, their attention replaced; then all are tuned on the same batches.",
        f"Errors: {sizes.length} random tokens, heads of {sizes.dim}, means of {sizes.draws} projections.",
    ]
    heads, rows = conversion_page.conversions(found)
    print("\n".join(f"{line[0]:36} {line[1]:>10} {line[2]:>16}" for line in (heads, *rows)))
    print(f"\n  {where / 'results.json'}\n  {conversion_page.write(where, errors, found, notes)}")


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__)
    with cli.friendly_errors(config), training.session(config.run) as watchdog:
        if config.run.dry_run:
            return training.dry_run(build(config.run))
        study(config, watchdog)


if __name__ == "__main__":
    main()
