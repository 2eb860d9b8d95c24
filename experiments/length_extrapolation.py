"""Length extrapolation without training (Su, kexue.fm 9948): a model trained at length L, read at L to 16 L.

python -m experiments.length_extrapolation                          trains a small model, then tries every method
python -m experiments.length_extrapolation --checkpoint DIR         the same for any language model with RoPE
python -m experiments.length_extrapolation --preset trained         models that are trained for it: ALiBi, HWFA ...
"""

import dataclasses
from pathlib import Path

import numpy as np

from configs.length_extrapolation import PRESETS, LengthExtrapolation, TrainedRun
from flashjax import cli, data, training
from flashjax.data.text import read_documents
from flashjax.evaluation import length, length_methods, length_report
from flashjax.models.transformer import Transformer
from flashjax.recipes import extrapolation, language
from flashjax.training import Experiment, rundir
from flashjax.training.watchdog import Watchdog

PROGRAM = "experiments.length_extrapolation"


def build(config: TrainedRun) -> Experiment:
    """The experiment of a run: a model's training, also for --run.dry_run and --run.plan."""
    return language.experiment(config, Transformer, PROGRAM)


def study(config: LengthExtrapolation, watchdog: Watchdog) -> None:
    """Models -> probes -> lines -> table, files, page."""
    names = dict.fromkeys(length_methods.parse(name)[0] for name in config.methods)
    where = Path(rundir.workdir(config, PROGRAM))
    models = {name: extrapolation.load(config, name, str(where), build, watchdog) for name in names}
    some = next(iter(models.values()))
    first = some.config
    L = extrapolation.trained_length(config, first.model)
    tasks = extrapolation.questions(config, L)
    tokenizer = data.open_tokenizer(first.data.tokenizer, first.data.mask_token)
    _, held_out = read_documents(first.data, config.data_dir, tokenizer)
    texts = [held_out.tokens[a:b] for a, b in zip(held_out.starts, held_out.ends, strict=True)]
    texts = [np.concatenate(texts)] if first.data.documents == "joined" else texts
    rows = length.probes(config.probes, texts, tokenizer.encode, L, first.seed)

    trained = f"{'trained' if config.trained_length is None else 'taken as trained'} at {L} tokens"
    print(f"\n{len(config.methods)} methods at {', '.join(str(k * L) for k in rows)} tokens; {trained}")
    asked_for = config.methods != PRESETS[config.preset].methods
    tested = list(extrapolation.subjects(config, models, strict=asked_for))
    progress = "{name:24} {multiple:3}x, made for {made_for:3}x  loss {loss:7.4f}  repeated {repeated_accuracy:6.1%}"
    lines = length.study(tested, rows, config.probes.batch, lambda line: print(progress.format(**line), flush=True))
    facts = {"trained_length": L, "checkpoint": config.checkpoint, "config": dataclasses.asdict(config)}
    if tasks:
        eos = language.ends(some, tokenizer)
        facts["longbench"] = extrapolation.answers(config, tested, tasks, tokenizer, L, eos)
    files = length_report.write_files(where, lines, facts)
    chance = 1 / len(set(config.probes.alphabet))
    cautions = length_report.cautions(lines, chance)
    notes = [f"The model is {trained}. {len(texts)} held-out texts of {held_out.name}.", *cautions]
    page = length_report.write_figure(where / "figure.html", "Length extrapolation", lines, L, notes, chance)
    print("\n".join(["", length_report.text_table(lines), "", *cautions, ""]))
    print("\n".join(f"  {path}" for path in (*files, page)))


def main() -> None:
    config = cli.parse(PRESETS, PROGRAM, __doc__)
    with cli.friendly_errors(config), training.session(config.run) as watchdog:
        if config.run.dry_run:
            return training.dry_run(build(config.run))
        study(config, watchdog)


if __name__ == "__main__":
    main()
