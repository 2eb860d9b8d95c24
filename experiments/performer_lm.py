"""Performer (Choromanski et al. 2020): softmax attention by random features, and a trained model that changes over.

python -m experiments.performer_lm                                    trains a small model, changes it over, tunes it
python -m experiments.performer_lm --checkpoint DIR                   the same for any language model
python -m experiments.performer_lm --conversions "features=64, kernel=relu"
"""

import dataclasses
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from configs.performer_lm import PRESETS, PerformerLm, TrainedRun
from flashjax import cli, training
from flashjax.drawing import STYLE, line_chart, table
from flashjax.evaluation import approximation
from flashjax.models.transformer import Transformer
from flashjax.pages import write_page
from flashjax.recipes import language
from flashjax.training import Experiment, ScheduleConfig
from flashjax.training.program import Program
from flashjax.training.watchdog import Watchdog

PROGRAM = "experiments.performer_lm"
SOFTMAX = "softmax"


def softmax_model(config: PerformerLm, watchdog: Watchdog) -> language.Language:
    """The trained model: made (or gone on with) where it is not there yet, or the checkpoint.

    Raises:
        ValueError: if the checkpoint's mixer is another one.
    """
    run = dataclasses.replace(config.run, data_dir=config.data_dir, workdir=f"{workdir(config)}/{SOFTMAX}")
    if config.checkpoint is None:
        print(f"\ntraining the softmax model, {run.data.length} tokens a row")
        training.fit(language.experiment(run, Transformer, PROGRAM), watchdog)
    made = language.initial(dataclasses.replace(run, init=config.checkpoint or run.workdir), Transformer)
    if made.config.model.mixer != SOFTMAX:
        raise ValueError(
            f"{config.checkpoint} is a model with mixer {made.config.model.mixer!r}: name one with softmax"
        )
    return made


def converted(config: PerformerLm, base: language.Language, options: str) -> Experiment:
    """The same weights under performer with `options` (softmax: as it is), to be tuned; its projection is drawn."""
    run: TrainedRun = base.config
    model = run.model
    if options != SOFTMAX:
        fixed = options if "redraw_every" in options else f"{options}, redraw_every=0"
        model = dataclasses.replace(model, mixer="performer", mixer_options=fixed)
    every = max(1, config.tune_steps // 5)
    warmup = min(10, config.tune_steps)
    schedule = ScheduleConfig(kind="constant", warmup_steps=warmup)
    tuned = dataclasses.replace(
        run,
        init=None,
        seed=run.seed + 1,  # other batches than the first
        steps=config.tune_steps,
        model=model,
        workdir=f"{workdir(config)}/tuned/{name(options)}",
        optimizer=dataclasses.replace(run.optimizer, learning_rate=config.tune_rate, schedule=schedule),
        train=dataclasses.replace(run.train, eval_every=every),
    )
    made = language.experiment(tuned, Transformer, PROGRAM)
    if made.config.model.vocab_size != model.vocab_size:  # type: ignore[attr-defined]
        raise ValueError(f"the model has {model.vocab_size} tokens, the text another number: see --run.data.tokenizer")
    return dataclasses.replace(made, initial=lambda drawn: {**drawn, **(base.variables or {})})


def name(options: str) -> str:
    """A directory's."""
    return "".join(c if c.isalnum() else "_" for c in options.replace(" ", ""))


def tune(experiment: Experiment, watchdog: Watchdog) -> dict[str, Any]:
    """{curve: [[step, held-out loss], ...]}, the first with the weights as they came."""
    program = Program(experiment)
    before = program.evaluate(program.init(), experiment.eval_data)["loss"]
    result = training.fit(experiment, watchdog)
    lines = map(json.loads, (result.workdir / "metrics.jsonl").read_text().splitlines())
    after = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    return {"curve": [[0, before], *map(list, sorted(after.items()))]}


def page(where: Path, errors: list[dict[str, Any]], found: Mapping[str, dict[str, Any]], notes: list[str]) -> Path:
    """Table and curve of the conversion, table and curves of the errors."""
    features = sorted({line["features"] for line in errors})
    kinds = {f"{line['kernel']}, {line['rows']}": {} for line in errors}
    for line in errors:
        kinds[f"{line['kernel']}, {line['rows']}"][line["features"]] = line["error"]
    curves = {words: [tuple(point) for point in model["curve"]] for words, model in found.items()}
    worst = max(model["curve"][0][1] for model in found.values())
    least = min(y for points in curves.values() for _, y in points)
    plain = [(words, each) for words, each in kinds.items() if not words.startswith("trig")]
    parts = [
        "<h1>Performer: random features for softmax attention</h1>",
        *(f'<p class="note">{escape(note)}</p>' for note in notes),
        "<h2>A softmax model changes over</h2>",
        table(*conversion_table(found)),
        '<section class="charts">',
        line_chart("Held-out loss by steps of tuning", curves, "step", y_range=(least, worst)),
        "</section><h2>Error of attention by the number of rows</h2>",
        table(
            ["|o - exact| / |exact|", *map(str, features)],
            [[words, *(f"{each[m]:.3f}" for m in features)] for words, each in kinds.items()],
        ),
        '<section class="charts">',
        line_chart("Positive features", {w: sorted(e.items()) for w, e in plain}, "rows", doublings=features),
        line_chart(
            "And trigonometric ones",
            {w: sorted(e.items()) for w, e in kinds.items() if not w.startswith("hyperbolic")},
            "rows",
            doublings=features,
            y_range=(0, 1.5),
            note="values above 1.5 on the rim",
        ),
        "</section>",
    ]
    return write_page(where / "figure.html", "Performer", STYLE, parts)


def conversion_table(found: Mapping[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): loss as the weights came, and after tuning."""
    steps = found[SOFTMAX]["curve"][-1][0]
    rows = [[words, *(f"{model['curve'][i][1]:.4f}" for i in (0, -1))] for words, model in found.items()]
    return ["held-out loss, nats a token", "at once", f"after {steps} steps"], rows


def study(config: PerformerLm, watchdog: Watchdog) -> None:
    """Errors -> softmax model -> conversions -> table, file, page."""
    where = Path(workdir(config))
    errors = approximation.errors(config.errors, config.run.seed)
    base = softmax_model(config, watchdog)
    found = {}
    for options in (SOFTMAX, *config.conversions):
        print(f"\ntuning {options}")
        found[options] = tune(converted(config, base, options), watchdog)
    results = {"errors": errors, "conversions": found, "config": dataclasses.asdict(config)}
    (where / "results.json").write_text(json.dumps(results, indent=1, default=str))
    sizes = config.errors
    notes = [
        "The same weights, their attention replaced; then all are tuned on the same batches.",
        f"Errors: {sizes.length} random tokens, heads of {sizes.dim}, means of {sizes.draws} projections.",
    ]
    heads, rows = conversion_table(found)
    print("\n".join(f"{line[0]:36} {line[1]:>10} {line[2]:>16}" for line in (heads, *rows)))
    print(f"\n  {where / 'results.json'}\n  {page(where, errors, found, notes)}")


def workdir(config: PerformerLm) -> str:
    return config.workdir or f"runs/performer_lm-{config.preset}"


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__, with_data="pg19")
    with cli.friendly_errors(), training.session(config.run) as watchdog:
        study(config, watchdog)


if __name__ == "__main__":
    main()
