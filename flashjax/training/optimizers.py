"""AdamW with a decay mask by path, clipping and per-update schedules, composed from Optax.

Written here is only what Optax lacks: PyTorch's clip coefficient, the choice of what decays by the path of a
parameter, and the one-update lag of trainers that set the rate after the step.
"""

import difflib
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

PyTree = Any

_SCANNED = re.compile(r"(^|/)layers/")


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
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, Algorithm 2) in PyTorch's and Optax's form: decay times the rate."""

    learning_rate: float = 1e-3
    """Peak learning rate, already scaled to the batch."""
    b1: float = 0.9
    """Decay of the mean of the gradients."""
    b2: float = 0.999
    """Decay of the mean of the squared gradients."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.05
    """Decoupled weight decay: a parameter shrinks by learning rate times this, each update."""
    no_decay: tuple[str, ...] = ()
    """Regular expressions of what does not decay, searched anywhere in paths as 'stage_0/norm1/scale'."""
    decay_vectors: bool = False
    """Also decay tensors of fewer than two dims (biases, norms), which are left alone otherwise."""
    clip_norm: float | None = 5.0
    """Global norm to which the gradient is clipped; None leaves it as it is."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate over the run."""

    def __post_init__(self) -> None:
        for name in ("b1", "b2"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")
        for name in ("learning_rate", "eps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be positive, or None for no clipping")
        if self.schedule.kind in ("cosine", "linear") and self.schedule.min_lr > self.learning_rate:
            raise ValueError(f"schedule.min_lr is {self.schedule.min_lr}, above the learning_rate {self.learning_rate}")


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The learning rate of each update, counted from 0, of a run of `total_steps` updates.

    Cosine equals timm's `CosineLRScheduler` stepped per iteration with `warmup_prefix`: for W = warmup_steps,
    t < W gives warmup_init_lr + t (lr - warmup_init_lr) / W, and later t gives
    min_lr + (lr - min_lr) (1 + cos(pi (t - W) / (total_steps - W))) / 2, then min_lr from `total_steps` on.
    A run no longer than its warm-up only warms up.

    Returns a function of an int32 array (any shape), traceable, to float32 of the same shape.
    """
    plan, peak = config.schedule, config.learning_rate
    rate = _after_warmup(plan, peak, max(total_steps - plan.warmup_steps, 1))
    if plan.warmup_steps:
        rise = optax.linear_schedule(plan.warmup_init_lr, peak, plan.warmup_steps)
        rate = optax.join_schedules([rise, rate], [plan.warmup_steps])

    def schedule(count):
        count = jnp.asarray(count)
        if plan.late_by_one:
            count = jnp.maximum(count - 1, 0)
        return jnp.broadcast_to(jnp.asarray(rate(count), jnp.float32), count.shape)

    return schedule


def _after_warmup(plan: ScheduleConfig, peak: float, length: int) -> optax.Schedule:
    """The rate as a function of the updates since the end of the warm-up, `length` of which remain then."""
    match plan.kind:
        case "cosine":
            return optax.cosine_decay_schedule(peak, length, alpha=plan.min_lr / peak if peak else 0.0)
        case "linear":
            return optax.linear_schedule(peak, plan.min_lr, length)
        case "constant":
            return optax.constant_schedule(peak)
        case "step":
            staircase = optax.exponential_decay(peak, plan.decay_every, plan.decay_rate, staircase=True)
            return lambda count: staircase(jnp.asarray(count) + plan.warmup_steps)
        case "multistep":
            falls = {milestone - plan.warmup_steps: plan.decay_rate for milestone in plan.milestones}
            return optax.piecewise_constant_schedule(peak, falls)
        case unknown:
            raise ValueError(f"unknown schedule {unknown!r}; known: cosine, linear, constant, step, multistep")


def learning_rate_at(config: OptimizerConfig, total_steps: int, step: int) -> float:
    """The rate that update `step` (from 0) of a run of `total_steps` uses, as a number on the host.

    Computed on the host's own CPU where JAX has it: on an accelerator the number would wait for the step before it.
    """
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names accelerators only
        device = None
    with jax.default_device(device), jax.transfer_guard("allow"):
        return jnp.asarray(make_schedule(config, total_steps)(step)).item()


def decay_mask(params: PyTree, no_decay: tuple[str, ...] = (), decay_vectors: bool = False) -> PyTree:
    """The tree of `params` with True where weight decay applies.

    Left out are the leaves in whose '/'-joined path an expression of `no_decay` is found and, unless
    `decay_vectors`, those of fewer than two dims. Of scanned layers (below `layers/`) the dim of the layers is not
    counted. Only shapes are read: an abstract tree will do.

    Raises ValueError for an expression found in no path, with the nearest paths.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    for pattern in no_decay:
        if not any(re.search(pattern, path) for path in paths):
            nearest = ", ".join(_nearest(pattern, paths))
            raise ValueError(f"no_decay {pattern!r} matches no parameter; nearest paths: {nearest}")
    decays = [
        (decay_vectors or leaf.ndim - bool(_SCANNED.search(path)) >= 2)
        and not any(re.search(pattern, path) for pattern in no_decay)
        for path, (_, leaf) in zip(paths, leaves, strict=True)
    ]
    return jax.tree_util.tree_unflatten(structure, decays)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient by min(1, max_norm / (norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_` does.

    The norm is over all leaves, in float32 whatever their dtype. Optax's own has no 1e-6.
    """

    def update(updates, state, params=None):
        del params
        norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), updates))
        scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def make_optimizer(config: OptimizerConfig, total_steps: int, params: PyTree) -> optax.GradientTransformation:
    """Clipping, then AdamW under the schedule; `params` (abstract will do) tells what decays.

    Raises ValueError where an expression of `config.no_decay` matches no parameter.
    """
    adamw = optax.adamw(
        make_schedule(config, total_steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask(params, config.no_decay, config.decay_vectors),
    )
    return adamw if config.clip_norm is None else optax.chain(clip_by_global_norm(config.clip_norm), adamw)


def _nearest(pattern: str, paths: list[str], count: int = 3) -> list[str]:
    """The paths of which the whole or one component resembles `pattern` most."""

    def likeness(path: str) -> float:
        return max(difflib.SequenceMatcher(None, pattern, part).ratio() for part in (path, *path.split("/")))

    return sorted(paths, key=likeness, reverse=True)[:count]
