"""What a launcher hands to the trainer: typed settings of a run, and the parts of an experiment."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

import jax
import numpy as np

from flashjax.training.distributed import DistributedConfig
from flashjax.training.mesh import MeshConfig
from flashjax.training.optimizers import OptimizerConfig
from flashjax.training.parametrization.config import ParametrizationConfig
from flashjax.training.sharding import FSDP_RULES, Rules

Batch = dict[str, Any]
Variables = dict[str, Any]
Metrics = dict[str, jax.Array]
Rngs = dict[str, jax.Array]


class Objective(Protocol):
    """What is minimised and what is measured; pure functions of their arguments, called inside ``jit``."""

    def init(self, rngs: Rngs, batch: Batch) -> Variables:
        """All variable collections; ``params`` is the one that is trained."""
        ...

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """The part of the input pipeline that runs on the device, on the whole batch, once a step."""
        ...

    def loss(self, variables: Variables, batch: Batch, rngs: Rngs) -> tuple[jax.Array, Metrics, Variables]:
        """(scalar loss, metrics that are means over the batch, updated mutable collections)."""
        ...

    def evaluate(self, variables: Variables, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        """(sum, weight) of each metric over the real examples of the batch."""
        ...


class Pipeline(Protocol):
    """Batches by number. Leaves are process-local rows; ``spec`` gives the global shapes."""

    @property
    def batch_size(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def num_batches(self) -> int | None: ...
    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]: ...
    @property
    def skipped(self) -> int: ...
    def batch(self, k: int) -> dict[str, np.ndarray]: ...
    def batches(self, start: int = 0) -> Generator[dict[str, np.ndarray], None, None]: ...


@dataclass(frozen=True)
class CheckpointConfig:
    """Asynchronous Orbax checkpoints; the best by ``metric`` and the newest are kept."""

    every: int = 0
    """Steps between checkpoints; 0: at each evaluation."""
    keep: int = 1
    """How many of the newest are kept, besides the best."""
    metric: str = "top1"
    """Evaluation metric by which the best is chosen."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less of the metric is better."""


@dataclass(frozen=True)
class TrainConfig:
    """The loop: how often things happen, and what surrounds a step."""

    accumulate: int = 1
    """Micro-batches an update is averaged over."""
    ema_decay: float | None = None
    """Exponential moving average of the parameters, ema = d ema + (1 - d) w; evaluation then uses it."""
    ema_warmup: bool = False
    """Let the average forget its beginning: d_t = min(d, (1 + t) / (10 + t)) at the update t from 0."""
    log_every: int = 50
    """Steps between lines of metrics."""
    eval_every: int = 0
    """Steps between evaluations; 0: once an epoch of the training set."""
    max_nonfinite: int = 10
    """NaN or Inf updates are skipped; this many in a row end the run."""
    writers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Metric writers besides the JSON lines."""
    accept_changes: bool = False
    """Resume a run although settings that change what it computes are not those it was begun with."""
    progress: bool = True
    """A progress bar on the terminal."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Fields that every launcher has."""

    preset: str = "demo"
    """Named recipe of the launcher; other flags change single values of it."""
    mode: Literal["train", "eval", "predict", "replay"] = "train"
    """What to do: train (resumes what is in the workdir), measure the best checkpoint, name what is in images, or
    repeat the step whose update was NaN or Inf."""
    workdir: str | None = None
    """Directory of the run: config.json, metrics.jsonl, checkpoints/, report.html; default runs/<launcher>-<preset>."""
    data_dir: str | None = None
    """Directory of the data set (default: the environment's TFDS_DATA_DIR). Named means: no demo data."""
    seed: int = 0
    """Seed of parameters, data order, augmentation and dropout."""
    steps: int | None = None
    """Updates to train for; default: what the epochs make."""
    epochs: float = 100.0
    """Passes over the training set, if --steps does not say."""
    warmup_epochs: float = 0.0
    """Passes in which the learning rate rises linearly; part of the epochs."""
    learning_rate_batch: int | None = None
    """Batch for which the optimizer's three learning rates are meant; they scale linearly with the batch size."""
    step: int | None = None
    """The step to repeat in --mode replay; default: the first that was kept."""
    dry_run: bool = False
    """Print the parameter table (path, shape, dtype, sharding, bytes a device) and exit."""
    plan: str | None = None
    """Show what a train step takes on machines that are not there (memory, time, collectives), and exit: v5e:4x4,
    gpu:h100x8, cpu:256; several with commas. Needs pip install 'flashjax[plan]' for TPUs, 'flashjax[cuda]' for GPUs.
    See docs/plan.md."""
    search: bool = False
    """With --plan: find the largest batch of each remat policy by compiling, not by an estimate; takes minutes."""
    save: str | None = None
    """With --plan of one topology: write the compiled step to this file."""
    compiled: str | None = None
    """Use the compiled step in this file, which --save has made, and refuse it if it is of another program."""
    watch: int = 0
    """Steps between looks at every layer (moments of what flows, gradients, parameters, updates): watch.jsonl and the
    report; 0: none. A look costs about a step. See docs/initialization.md."""
    parametrization: ParametrizationConfig = field(default_factory=ParametrizationConfig)
    """How parameters begin, and constants by which they act and learn."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer (--optimizer.name), its groups and its schedule; see docs/optimizers.md."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Sizes of the mesh axes."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """The processes of a job, and how long they wait for each other."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training loop."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When to save and what to keep."""


ConfigT = TypeVar("ConfigT", bound=RunConfig)


def told_speed(examples_per_second: float, example_tokens: int | None) -> tuple[str, float]:
    """(unit, value) by which a speed is told: of text tokens, whatever the length of its rows."""
    if example_tokens is None:
        return "examples/s", examples_per_second
    return "tokens/s", examples_per_second * example_tokens


@dataclass(frozen=True)
class Experiment:
    """A model, an objective and data, ready for ``fit``."""

    name: str
    config: RunConfig
    """The resolved configuration; written to config.json."""
    objective: Objective
    train_data: Pipeline
    eval_data: Pipeline
    steps: int
    """Updates in all."""
    workdir: str
    rules: Rules = FSDP_RULES
    """Where parameters live on the mesh."""
    initial: Callable[[Variables], Variables] | None = None
    """Replaces freshly drawn variables (given as shapes) by pretrained host arrays; leaves that it keeps as shapes are
    drawn."""
    resume_command: str = ""
    """Printed when the run is interrupted."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further facts for config.json, such as class names."""
    example_tokens: int | None = None
    """Tokens of an example of text; None: its examples are no text."""

    @property
    def eval_every(self) -> int:
        """Steps between evaluations."""
        return self.config.train.eval_every or self.train_data.steps_per_epoch

    def speed(self, examples_per_second: float) -> tuple[str, float]:
        """`told_speed` of its examples."""
        return told_speed(examples_per_second, self.example_tokens)

    def without_evaluation(self) -> "Experiment":
        """The same train step for what evaluates nothing, so that the evaluation batch need fit no mesh."""
        return replace(self, eval_data=self.train_data)


def scale_recipe(config: ConfigT, batch_size: int, steps_per_epoch: int) -> tuple[ConfigT, int]:
    """(config with the learning rates and the warm-up that the batch and the data make of its recipe, steps in all).

    ``learning_rate_batch`` scales the peak, first and last learning rate; the epochs become updates, unless ``steps``
    is given. A warm-up never takes more than the run.
    """
    steps = config.steps if config.steps is not None else max(1, round(config.epochs * steps_per_epoch))
    if steps < 1:
        raise ValueError(f"steps must be at least 1, found {steps}")
    scale = batch_size / config.learning_rate_batch if config.learning_rate_batch else 1.0
    schedule = config.optimizer.schedule
    warmup = schedule.warmup_steps or round(config.warmup_epochs * steps_per_epoch)
    optimizer = replace(
        config.optimizer,
        learning_rate=config.optimizer.learning_rate * scale,
        schedule=replace(
            schedule,
            warmup_steps=min(warmup, steps),
            warmup_init_lr=schedule.warmup_init_lr * scale,
            min_lr=schedule.min_lr * scale,
        ),
    )
    return replace(config, optimizer=optimizer), steps
