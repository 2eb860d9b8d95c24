"""A trained softmax model under other attention: the same weights, the loss at once, and the loss as they are tuned."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flashjax import training
from flashjax.recipes import language
from flashjax.training import Experiment, ScheduleConfig
from flashjax.training.program import Program
from flashjax.training.watchdog import Watchdog
from flashjax.training.writers import read_json_lines

SOFTMAX = "softmax"


def converted(
    config: Any, base: language.Language, options: str, workdir: str, build: Callable[[Any], Experiment]
) -> Experiment:
    """The same weights under performer with `options` (softmax: as it is), to be tuned; its projection is drawn.

    `config` has `tune_steps` and `tune_rate`; `build` makes the experiment of a run.

    Raises ValueError if model and text differ in their number of tokens.
    """
    run = base.config
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
        workdir=f"{workdir}/tuned/{_directory(options)}",
        optimizer=dataclasses.replace(run.optimizer, learning_rate=config.tune_rate, schedule=schedule),
        train=dataclasses.replace(run.train, eval_every=every),
    )
    made = build(tuned)
    if made.config.model.vocab_size != model.vocab_size:  # type: ignore[attr-defined]
        raise ValueError(f"the model has {model.vocab_size} tokens, the text another number: see --run.data.tokenizer")
    return dataclasses.replace(made, initial=lambda drawn: {**drawn, **(base.variables or {})})


def tune(experiment: Experiment, watchdog: Watchdog) -> dict[str, Any]:
    """{curve: [[step, held-out loss], ...]}, the first with the weights as they came."""
    program = Program(experiment)
    before = program.evaluate(program.init(), experiment.eval_data)["loss"]
    result = training.fit(experiment, watchdog)
    lines = read_json_lines(result.workdir / "metrics.jsonl")
    after = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    return {"curve": [[0, before], *map(list, sorted(after.items()))]}


def _directory(options: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in options.replace(" ", ""))
