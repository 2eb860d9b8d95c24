"""Length extrapolation without training (Su, kexue.fm 9948): a model trained at length L, read at L to 16 L.

python -m experiments.length_extrapolation                          trains a small model, then tries every method
python -m experiments.length_extrapolation --checkpoint DIR         the same for any language model with RoPE
python -m experiments.length_extrapolation --preset trained         models that are trained for it: ALiBi, HWFA ...
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from configs.length_extrapolation import PRESETS, LengthExtrapolation, TrainedRun
from flashjax import cli, data, training
from flashjax.data.text import read_documents
from flashjax.evaluation import length, length_methods, length_report, longbench
from flashjax.evaluation.length import Subject
from flashjax.models.decode import GREEDY, generate
from flashjax.models.transformer import Transformer, TransformerConfig
from flashjax.objectives.repeats import Repeats
from flashjax.recipes import language
from flashjax.training.watchdog import Watchdog

PROGRAM = "experiments.length_extrapolation"


def model_run(config: LengthExtrapolation, name: str) -> TrainedRun:
    """The run that makes, or has made, a model of `length_methods.TRAINED`; or the one that reads the checkpoint."""
    run = dataclasses.replace(config.run, data_dir=config.data_dir, workdir=f"{workdir(config)}/models/{name}")
    if config.checkpoint is None:
        model = length_methods.trained(run.model, name, run.data.length)
        return dataclasses.replace(run, model=model)
    if name != "rope":
        raise ValueError(f"a checkpoint is tested as it is: {name!r} is a model to be trained; leave out --checkpoint")
    path = Path(config.checkpoint)
    return dataclasses.replace(run, init=str(path.parent if path.suffix == ".safetensors" else path))


def load(config: LengthExtrapolation, name: str, watchdog: Watchdog) -> language.Language:
    """A model with its variables: trained (or gone on with) where it is not there yet, or the checkpoint."""
    run = model_run(config, name)
    if config.checkpoint is None:
        print(f"\ntraining {name!r} at {run.data.length} tokens")
        built = language.experiment(run, Transformer, PROGRAM)
        goal = Repeats(**vars(built.objective), rate=run.repeats)
        training.fit(dataclasses.replace(built, objective=goal), watchdog)
        run = dataclasses.replace(run, init=run.workdir)
    return language.initial(run, Transformer)


def trained_length(config: LengthExtrapolation, model: TransformerConfig) -> int:
    """L."""
    return config.trained_length or (config.run.data.length if config.checkpoint is None else model.max_length)


def subjects(config: LengthExtrapolation, models: Mapping[str, language.Language]) -> Iterator[Subject]:
    """Every method that applies; one that was asked for by name and does not is an error."""
    for name in config.methods:
        model, method = length_methods.parse(name)
        base, variables = models[model].config.model, models[model].variables
        L = trained_length(config, base)

        def made(k: int, base: TransformerConfig = base, method: str = method, L: int = L) -> Transformer:
            return Transformer(length_methods.changed(base, method, L, k))

        try:
            made(max(config.probes.multiples))
        except ValueError as error:
            if config.methods != PRESETS[config.preset].methods:
                raise
            print(f"{name} is left out: {error}")
            continue
        yield Subject(name, length_methods.family(name), made, variables or {})


def workdir(config: LengthExtrapolation) -> str:
    return config.workdir or f"runs/length_extrapolation-{config.preset}"


def answers(config: LengthExtrapolation, tested: list[Subject], tokenizer: data.Tokenizer, L: int) -> dict[str, Any]:
    """LongBench's scores of each method."""
    assert config.longbench is not None
    tasks = longbench.read(config.longbench, config.longbench_tasks)
    prompts = longbench.prompts(config.longbench_prompts) if config.longbench_prompts else None
    longest, scores = max(config.probes.multiples), {}
    for subject in tested:
        model = subject.model(longest)

        def answer(tokens: np.ndarray, most: int, model: Any = model, variables: Any = subject.variables) -> str:
            (new,) = generate(model, variables, [tokens.tolist()], most, GREEDY, eos=tokenizer.eos)
            return tokenizer.decode(new)

        scores[subject.name] = longbench.run(
            tasks, tokenizer.encode, answer, longest * L, prompts, config.longbench_questions
        )
        print(subject.name, {task: round(found["score"], 2) for task, found in scores[subject.name].items()})
    return scores


def study(config: LengthExtrapolation, watchdog: Watchdog) -> None:
    """Models -> probes -> lines -> table, files, page."""
    names = dict.fromkeys(length_methods.parse(name)[0] for name in config.methods)
    models = {name: load(config, name, watchdog) for name in names}
    first = next(iter(models.values())).config
    L = trained_length(config, first.model)
    tokenizer = data.open_tokenizer(first.data.tokenizer, first.data.mask_token)
    _, held_out = read_documents(first.data, config.data_dir, tokenizer)
    texts = [held_out.tokens[a:b] for a, b in zip(held_out.starts, held_out.ends, strict=True)]
    texts = [np.concatenate(texts)] if first.data.documents == "joined" else texts
    rows = length.probes(config.probes, texts, tokenizer.encode, L, first.seed)

    print(f"\n{len(config.methods)} methods at {', '.join(str(k * L) for k in rows)} tokens; trained at {L}")
    tested = list(subjects(config, models))
    progress = "{name:24} {multiple:3}x, made for {made_for:3}x  loss {loss:7.4f}  repeated {repeated_accuracy:6.1%}"
    lines = length.study(tested, rows, config.probes.batch, lambda line: print(progress.format(**line), flush=True))
    facts = {"trained_length": L, "checkpoint": config.checkpoint, "config": dataclasses.asdict(config)}
    if config.longbench:
        facts["longbench"] = answers(config, tested, tokenizer, L)
    where = Path(workdir(config))
    files = length_report.write_files(where, lines, facts)
    chance = 1 / len(set(config.probes.alphabet))
    cautions = length_report.cautions(lines, chance)
    notes = [f"Trained at {L} tokens. {len(texts)} held-out texts of {held_out.name}.", *cautions]
    page = length_report.write_figure(where / "figure.html", "Length extrapolation", lines, L, notes, chance)
    print("\n".join(["", length_report.text_table(lines), "", *cautions, ""]))
    print("\n".join(f"  {path}" for path in (*files, page)))


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__, with_data="demo")
    with cli.friendly_errors(), training.session(config.run) as watchdog:
        study(config, watchdog)


if __name__ == "__main__":
    main()
