"""The settings of an optimizer: algorithm, rates, decay, groups of parameters, schedule."""

import re
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import jax

from flashjax.training.optimizers.algorithms import ALGORITHMS, NONE
from flashjax.words import nearest


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate as a function of the update's index; lengths are in updates, not micro-batches."""

    kind: Literal["cosine", "linear", "constant", "step", "multistep"] = "cosine"
    """How the rate falls after the warm-up: to `min_lr` along a cosine or a line, not at all, or by
    `decay_rate` every `decay_every` updates (step) or at each of the `milestones` (multistep)."""
    warmup_steps: int = 0
    """Updates of linear warm-up from `warmup_init_lr` to the learning rate, out of the run's updates."""
    warmup_init_lr: float = 0.0
    """Rate of the first update, where there is a warm-up."""
    min_lr: float = 0.0
    """Rate at the end of the cosine or linear fall, and after it."""
    decay_every: int = 0
    """Updates between two falls (step), counted from the run's start."""
    milestones: tuple[int, ...] = ()
    """Updates at which the rate falls (multistep), counted from the run's start, none inside the warm-up."""
    decay_rate: float = 0.1
    """Factor of each fall (step and multistep)."""
    late_by_one: bool = False
    """Give update s the rate of update s - 1, so that the first two share the first rate: what trainers
    do that set the rate after the step, as Swin's official one."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be 0 (no warm-up) or more")
        if self.kind == "step" and self.decay_every < 1:
            raise ValueError(f"decay_every is {self.decay_every}; kind 'step' needs the updates between two falls")
        if self.kind == "multistep":
            if not self.milestones:
                raise ValueError("kind 'multistep' needs milestones, the updates at which the rate falls")
            if list(self.milestones) != sorted(set(self.milestones)):
                raise ValueError(f"milestones {self.milestones} must rise, each one once")
            if self.milestones[0] < self.warmup_steps:
                raise ValueError(f"milestone {self.milestones[0]} lies inside the {self.warmup_steps} of warm-up")


@dataclass(frozen=True)
class Group:
    """Parameters whose path matches, and what multiplies their learning rate and decay."""

    pattern: str
    """Regular expression, searched anywhere in paths as 'stage_0/norm1/scale'."""
    learning_rate: float = 1.0
    """Factor of the learning rate; 0 leaves the parameters as they are."""
    decay: float = 1.0
    """Factor of the weight decay, on top of what does not decay at all."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"group {self.pattern!r}: {name} is {getattr(self, name)}; it must not be negative")

    @classmethod
    def parse(cls, text: str) -> "Group":
        """From a command line: PATTERN=RATE or PATTERN=RATE,DECAY.

        Raises ValueError for what is neither.
        """
        pattern, _, factors = text.rpartition("=")
        numbers = re.fullmatch(r"([^,]+)(?:,([^,]+))?", factors)
        if not pattern or numbers is None:
            raise ValueError(f"group {text!r} is not PATTERN=RATE or PATTERN=RATE,DECAY")
        return cls(pattern, float(numbers[1]), float(numbers[2] or 1))

    def __str__(self) -> str:
        return f"{self.pattern}={self.learning_rate:g},{self.decay:g}"


@dataclass(frozen=True)
class OptimizerConfig:
    """An algorithm by name, its constants, and which parameters it treats otherwise than the rest."""

    name: str = "adamw"
    """Algorithm: adamw, adamw_paper, adam, adam_l2, sgd, nadam, nadamw, radam, adamax, adagrad, rmsprop, adabelief,
    adan, lion, muon, adafactor, lamb, lars, novograd, schedule_free_adamw or prodigy; docs/optimizers.md has the
    table."""
    learning_rate: float = 1e-3
    """Peak learning rate, already scaled to the batch."""
    b1: float | None = None
    """Decay of the mean of the gradients; default: the algorithm's own (adamw: 0.9)."""
    b2: float | None = None
    """Decay of the mean of the squared gradients; default: the algorithm's own (adamw: 0.999)."""
    eps: float | None = None
    """Added to the root of the second moment; default: the algorithm's own (adamw: 1e-8)."""
    weight_decay: float | None = None
    """Weight decay, in the algorithm's meaning (adamw: a parameter shrinks by learning rate times this, each update);
    default: the algorithm's own (adamw: 0.05, others none)."""
    no_decay: tuple[str, ...] = ()
    """Regular expressions of what does not decay, searched anywhere in paths as 'stage_0/norm1/scale'."""
    decay_vectors: bool = False
    """Also decay tensors of fewer than two dims (biases, norms), which are left alone otherwise."""
    clip_norm: float | None = 5.0
    """Global norm to which the gradient is clipped; None leaves it as it is."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate over the run."""
    momentum: float | None = None
    """Momentum of sgd and its like; default: the algorithm's own."""
    nesterov: bool | None = None
    """Nesterov's momentum; default: the algorithm's own."""
    mu_dtype: Literal["bfloat16", "float32"] | None = None
    """Dtype of the first moment; default: that of the parameters. bfloat16 saves two bytes a parameter."""
    groups: tuple[Group, ...] = ()
    """Factors of learning rate and decay by path; the first group that matches a path holds. On a command line:
    PATTERN=RATE or PATTERN=RATE,DECAY, as in 'head=10' '^embed=0.5,0'."""
    layer_decay: float | None = None
    """Factor of the learning rate from a block to the one below: 1 at the head, this at the last block, least at the
    embeddings."""

    def __post_init__(self) -> None:
        if self.name not in ALGORITHMS:
            near = nearest(self.name, ALGORITHMS)
            raise ValueError(f"unknown optimizer {self.name!r}; nearest: {near}. All: {', '.join(ALGORITHMS)}")
        self._check_numbers()
        self._check_taken()

    def _check_numbers(self) -> None:
        """Arrays, which a compiled function may trace, are not looked at."""
        for name in ("b1", "b2", "momentum"):
            value = getattr(self, name)
            if _known(value) and not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")
        for name in ("learning_rate", "eps", "weight_decay"):
            if _known(getattr(self, name)) and getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be positive, or None for no clipping")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it must be above 0 and at most 1, or None")
        falls = self.schedule.kind in ("cosine", "linear")
        known = _known(self.learning_rate) and _known(self.schedule.min_lr)
        if falls and known and self.schedule.min_lr > self.learning_rate:
            raise ValueError(f"schedule.min_lr is {self.schedule.min_lr}, above the learning_rate {self.learning_rate}")

    def _check_taken(self) -> None:
        algorithm = ALGORITHMS[self.name]
        given = {name: value for name in _ARGUMENTS if (value := getattr(self, name)) is not None}
        if algorithm.decay == NONE and self.weight_decay is not None and not _is_zero(self.weight_decay):
            raise ValueError(
                f"{self.name} has no weight decay, found {self.weight_decay}: choose adamw (decay apart from the "
                "gradient) or adam_l2 (decay in the gradient), or set weight_decay to 0"
            )
        if algorithm.averages and self.schedule.kind != "constant":
            raise ValueError(f"{self.name} averages instead of a falling rate: set schedule.kind to constant")
        if unknown := given.keys() - algorithm.arguments.keys():
            values = ", ".join(f"{name} ({given[name]})" for name in sorted(unknown))
            takes = ", ".join(name for name in _ARGUMENTS if name in algorithm.arguments) or "none of them"
            raise ValueError(f"{self.name} does not take {values}: leave out, or set to None; it takes {takes}")

    @property
    def arguments(self) -> dict[str, Any]:
        """What the algorithm is built with: its own defaults where a field is None."""
        own = ALGORITHMS[self.name].arguments
        return {name: value if (given := getattr(self, name, None)) is None else given for name, value in own.items()}

    @property
    def decay(self) -> Any:
        """The weight decay, the algorithm's default where the field is None."""
        return ALGORITHMS[self.name].weight_decay if self.weight_decay is None else self.weight_decay


_ARGUMENTS = ("b1", "b2", "eps", "momentum", "nesterov", "mu_dtype")
"""Fields of `OptimizerConfig` that not every algorithm takes."""
assert set(_ARGUMENTS) <= {f.name for f in fields(OptimizerConfig)}


def with_arrays(config: OptimizerConfig, **values: jax.Array) -> OptimizerConfig:
    """`config` with float scalars that may be traced, for a compiled function that takes them as arguments.

    `learning_rate`, `weight_decay`, `b1`, `b2`, `eps` and `momentum` may be arrays. Inside ``jit`` (or ``vmap``), build
    the optimizer from them: ``make_optimizer(with_arrays(config, learning_rate=lr), steps, params).update(...)``. Its
    state has the same structure whatever their values, and another value compiles nothing anew. What is checked of
    numbers (signs, ranges) is not checked of arrays.

    Raises ValueError for a field that cannot be an array.
    """
    if unknown := values.keys() - set(TRACEABLE):
        raise ValueError(f"{', '.join(sorted(unknown))} cannot be traced; these can: {', '.join(TRACEABLE)}")
    return replace(config, **values)


TRACEABLE = ("learning_rate", "weight_decay", "b1", "b2", "eps", "momentum")


def _known(value: Any) -> bool:
    return isinstance(value, (int, float))


def _is_zero(value: Any) -> bool:
    return _known(value) and value == 0
