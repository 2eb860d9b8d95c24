"""The optimizer against PyTorch's AdamW and clipping, and the schedule against timm's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flashjax.training.optimizers import OptimizerConfig, ScheduleConfig, make_optimizer, make_schedule

torch = pytest.importorskip("torch", reason="parity needs the extra: pip install 'flashjax[parity]'")
timm_scheduler = pytest.importorskip("timm.scheduler", reason="parity needs the extra: pip install 'flashjax[parity]'")

TOTAL, WARMUP = 60, 12


def official(**changes):
    schedule = ScheduleConfig(warmup_steps=WARMUP, warmup_init_lr=1e-6, min_lr=1e-5, late_by_one=True)
    return OptimizerConfig(learning_rate=1e-2, weight_decay=0.05, clip_norm=1.0, schedule=schedule, **changes)


def timm_cosine(optimizer):
    return timm_scheduler.CosineLRScheduler(
        optimizer,
        t_initial=TOTAL - WARMUP,
        lr_min=1e-5,
        warmup_lr_init=1e-6,
        warmup_t=WARMUP,
        cycle_limit=1,
        t_in_epochs=False,
        warmup_prefix=True,
    )


def test_rates_equal_timm_called_after_each_step():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler = timm_cosine(optimizer)
    rates = []
    for update in range(TOTAL + 5):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(update)
    actual = make_schedule(official(), TOTAL)(jnp.arange(TOTAL + 5))
    # Optax forms the rise in float32 from the peak down: the first rates carry the rounding of the peak.
    np.testing.assert_allclose(actual, rates, rtol=1e-5, atol=1e-7 * 1e-2)


def test_one_hundred_updates_equal_torch():
    draw = np.random.default_rng(0)
    shapes = {"kernel": (5, 3), "bias": (3,)}
    start = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    gradients = [
        {name: (3 * draw.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()} for _ in range(100)
    ]

    weights = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    decays = {"kernel": 0.05, "bias": 0.0}
    groups = [{"params": [weight], "weight_decay": decays[name]} for name, weight in weights.items()]
    reference = torch.optim.AdamW(groups, lr=1e-2)
    scheduler = timm_cosine(reference)

    params = jax.tree.map(jnp.asarray, start)
    optimizer = make_optimizer(official(), TOTAL, params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for index, gradient in enumerate(gradients):
        for name, weight in weights.items():
            weight.grad = torch.tensor(gradient[name])
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        reference.step()
        scheduler.step_update(index)

        changes, state = update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, changes)

    for name, weight in weights.items():
        np.testing.assert_allclose(params[name], weight.detach().numpy(), rtol=1e-5, atol=1e-6)
