"""The learning rate of each update, composed from Optax's schedules.

Written here is only what Optax lacks: the one-update lag of trainers that set the rate after the step.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flashjax.training.optimizers.config import OptimizerConfig, ScheduleConfig


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The learning rate of each update, counted from 0, of a run of `total_steps` updates.

    Cosine equals timm's `CosineLRScheduler` stepped per iteration with `warmup_prefix`: for W = warmup_steps,
    t < W gives warmup_init_lr + t (lr - warmup_init_lr) / W, and later t gives
    min_lr + (lr - min_lr) (1 + cos(pi (t - W) / (total_steps - W))) / 2, then min_lr from `total_steps` on.
    A run no longer than its warm-up only warms up.

    Returns a function of an int32 array (any shape), traceable, to floats of the same shape (float32, or float64
    where JAX has it enabled).
    """
    plan, peak = config.schedule, config.learning_rate
    rate = _after_warmup(plan, peak, max(total_steps - plan.warmup_steps, 1))
    if plan.warmup_steps:
        rise = optax.linear_schedule(plan.warmup_init_lr, peak, plan.warmup_steps)
        rate = optax.join_schedules([rise, rate], [plan.warmup_steps])

    def schedule(count):
        count = jnp.asarray(count, int)  # int64 where float64 is enabled: the quotients of int32 are float32
        if plan.late_by_one:
            count = jnp.maximum(count - 1, 0)
        return jnp.broadcast_to(jnp.asarray(rate(count), float), count.shape)

    return schedule


def schedule_multiplier(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """`make_schedule` divided by the peak rate: eta_t of Loshchilov and Hutter's Algorithm 2, 1 at the peak.

    A peak of 0 has it too, as long as the schedule names no other rate.

    Raises ValueError where `warmup_init_lr` or `min_lr` stand beside a peak of 0.
    """
    plan, peak = config.schedule, config.learning_rate
    named = {name: getattr(plan, name) for name in ("warmup_init_lr", "min_lr")}
    if isinstance(peak, (int, float)) and peak == 0 and any(named.values()):
        raise ValueError(f"learning_rate is 0 and {named}: a schedule's multiplier needs a peak to divide them by")
    relative: dict[str, Any] = {name: value / peak if value else 0.0 for name, value in named.items()}
    return make_schedule(
        OptimizerConfig(learning_rate=1.0, schedule=dataclasses.replace(plan, **relative)), total_steps
    )


def _after_warmup(plan: ScheduleConfig, peak: Any, length: int) -> optax.Schedule:
    """The rate as a function of the updates since the end of the warm-up, `length` of which remain then."""
    match plan.kind:
        case "cosine":
            if isinstance(peak, (int, float)):
                least = plan.min_lr / peak if peak else 0.0
            else:
                least = jnp.where(peak > 0, plan.min_lr / peak, 0.0)
            return optax.cosine_decay_schedule(peak, length, alpha=least)
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
