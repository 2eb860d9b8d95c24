"""Length extrapolation: a model that was trained at length L under every method, at lengths beyond it.

Everywhere `config` is a study's (configs/length_extrapolation.py).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flashjax import training
from flashjax.data import Tokenizer
from flashjax.evaluation import length_methods, longbench
from flashjax.evaluation.length import Subject
from flashjax.models.decode import GREEDY, generate
from flashjax.models.transformer import Transformer, TransformerConfig
from flashjax.objectives.repeats import Repeats
from flashjax.recipes import language
from flashjax.training import Experiment
from flashjax.training.watchdog import Watchdog


def load(
    config: Any, name: str, workdir: str, build: Callable[[Any], Experiment], watchdog: Watchdog
) -> language.Language:
    """A model of `length_methods.TRAINED`, trained (or gone on with) where it is not there yet; or the checkpoint.

    `build` makes the experiment of a run. Raises ValueError for any but the usual one where a checkpoint is named.
    """
    run = _run(config, name, workdir)
    if config.checkpoint is None:
        print(f"\ntraining {name!r} at {run.data.length} tokens")
        built = build(run)
        goal = Repeats(**vars(built.objective), rate=run.repeats)
        training.fit(dataclasses.replace(built, objective=goal), watchdog)
        run = dataclasses.replace(run, init=run.workdir)
    return language.initial(run, Transformer)


def _run(config: Any, name: str, workdir: str) -> Any:
    run = dataclasses.replace(config.run, workdir=f"{workdir}/models/{name}")
    if config.checkpoint is None:
        model = length_methods.trained(run.model, name, run.data.length)
        return dataclasses.replace(run, model=model)
    if name != "rope":
        raise ValueError(f"a checkpoint is tested as it is: {name!r} is a model to be trained; leave out --checkpoint")
    path = Path(config.checkpoint)
    return dataclasses.replace(run, init=str(path.parent if path.suffix == ".safetensors" else path))


def trained_length(config: Any, model: TransformerConfig) -> int:
    """L: as it is named, or as the model was trained."""
    return config.trained_length or (config.run.data.length if config.checkpoint is None else model.max_length)


def subjects(config: Any, models: Mapping[str, language.Language], strict: bool) -> Iterator[Subject]:
    """Every method that applies to its model; one that does not is left out with words, `strict`: is an error."""
    for name in config.methods:
        model, method = length_methods.parse(name)
        base, variables = models[model].config.model, models[model].variables
        L = trained_length(config, base)

        def made(k: int, base: TransformerConfig = base, method: str = method, L: int = L) -> Transformer:
            return Transformer(length_methods.changed(base, method, L, k))

        try:
            made(max(config.probes.multiples))
        except ValueError as error:
            if strict:
                raise
            print(f"{name} is left out: {error}")
            continue
        yield Subject(name, length_methods.family(name), made, variables or {})


def questions(config: Any, L: int) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """LongBench's questions by task; none where the study asks none.

    Raises ValueError where the longest length has no room for a task's answers.
    """
    if not config.longbench:
        return {}
    tasks = longbench.read(config.longbench, config.longbench_tasks)
    longbench.check_room(tasks, max(config.probes.multiples) * L)
    return tasks


def answers(
    config: Any,
    tested: Sequence[Subject],
    tasks: Mapping[str, Sequence[Mapping[str, Any]]],
    tokenizer: Tokenizer,
    L: int,
    eos: Sequence[int],
) -> dict[str, Any]:
    """LongBench's scores of each method, {method: {task: score and of what}}; an answer ends with one of `eos`."""
    prompts = longbench.prompts(config.longbench_prompts) if config.longbench_prompts else None
    longest, scores = max(config.probes.multiples), {}

    def encode(text: str) -> np.ndarray:
        return language.beginning(tokenizer.encode(text), tokenizer)

    for subject in tested:
        model = subject.model(longest)

        def answer(tokens: np.ndarray, most: int, model: Any = model, variables: Any = subject.variables) -> str:
            (new,) = generate(model, variables, [tokens.tolist()], most, GREEDY, eos=eos)
            return tokenizer.decode(new)

        scores[subject.name] = longbench.run(tasks, encode, answer, longest * L, prompts, config.longbench_questions)
        print(subject.name, {task: round(found["score"], 2) for task, found in scores[subject.name].items()})
    return scores
