"""Schedules against the Swin recipe's figures, the decay mask, clipping, AdamW by hand in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flashjax.training.optimizers import (
    OptimizerConfig,
    ScheduleConfig,
    clip_by_global_norm,
    decay_mask,
    learning_rate_at,
    make_optimizer,
    make_schedule,
)

EPOCH = 1251  # updates of an ImageNet epoch at batch 1024
SWIN = OptimizerConfig(
    learning_rate=1e-3,
    schedule=ScheduleConfig(kind="cosine", warmup_steps=20 * EPOCH, warmup_init_lr=1e-6, min_lr=1e-5),
)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 1e-6), (10, 5.005e-4), (20, 1e-3), (100, 8.136e-4), (160, 5.05e-4), (299, 1.0031e-5), (300, 1e-5)],
)
def test_cosine_reproduces_the_swin_recipe(epoch, rate):
    assert learning_rate_at(SWIN, 300 * EPOCH, epoch * EPOCH) == pytest.approx(rate, rel=1e-4)


def test_cosine_equals_its_formula_and_stays_at_the_minimum():
    config = OptimizerConfig(
        learning_rate=0.5, schedule=ScheduleConfig(warmup_steps=4, warmup_init_lr=0.1, min_lr=0.05)
    )
    t = np.arange(25)
    rise = 0.1 + t * (0.5 - 0.1) / 4
    fall = 0.05 + 0.5 * (0.5 - 0.05) * (1 + np.cos(np.pi * np.minimum(t - 4, 16) / 16))
    actual = jax.jit(make_schedule(config, 20))(jnp.arange(25))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, np.where(t < 4, rise, fall), rtol=1e-6)


def test_late_by_one_repeats_the_first_rate():
    plain = ScheduleConfig(warmup_steps=3, warmup_init_lr=0.1, min_lr=0.01)
    late = ScheduleConfig(warmup_steps=3, warmup_init_lr=0.1, min_lr=0.01, late_by_one=True)
    steps = jnp.arange(10)
    on_time = make_schedule(OptimizerConfig(learning_rate=1.0, schedule=plain), 10)(steps)
    delayed = make_schedule(OptimizerConfig(learning_rate=1.0, schedule=late), 10)(steps)
    assert delayed[0] == delayed[1] == pytest.approx(0.1)
    np.testing.assert_array_equal(delayed[1:], on_time[:-1])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ScheduleConfig("linear", warmup_steps=2, min_lr=0.2), [0, 0.5, 1, 0.8, 0.6, 0.4, 0.2, 0.2]),
        (ScheduleConfig("constant", warmup_steps=2), [0, 0.5, 1, 1, 1, 1, 1, 1]),
        (ScheduleConfig("constant"), [1] * 8),
        (ScheduleConfig("step", warmup_steps=2, decay_every=3), [0, 0.5, 1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        (
            ScheduleConfig("multistep", warmup_steps=2, milestones=(2, 5), decay_rate=0.5),
            [0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25],
        ),
    ],
)
def test_other_schedules(schedule, expected):
    config = OptimizerConfig(learning_rate=1.0, schedule=schedule)
    np.testing.assert_allclose(make_schedule(config, 6)(jnp.arange(8)), expected, rtol=1e-6)


def test_a_run_shorter_than_its_warmup_only_warms_up():
    config = OptimizerConfig(learning_rate=1.0, schedule=ScheduleConfig(warmup_steps=100))
    np.testing.assert_allclose(make_schedule(config, 5)(jnp.arange(5)), np.arange(5) / 100, rtol=1e-6)


def test_a_zero_rate_leaves_parameters_bit_equal():
    params = {"kernel": jnp.full((2, 2), 3.0)}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.0), 10, params)
    updates, _ = optimizer.update({"kernel": jnp.ones((2, 2))}, optimizer.init(params), params)
    np.testing.assert_array_equal(optax.apply_updates(params, updates)["kernel"], params["kernel"])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ScheduleConfig(warmup_steps=-1), "warmup_steps is -1"),
        (lambda: ScheduleConfig("step"), "decay_every is 0"),
        (lambda: ScheduleConfig("multistep"), "needs milestones"),
        (lambda: ScheduleConfig("multistep", milestones=(5, 2)), "must rise"),
        (lambda: ScheduleConfig("multistep", warmup_steps=9, milestones=(5,)), "inside the 9"),
        (lambda: OptimizerConfig(b2=1.0), "b2 is 1.0"),
        (lambda: OptimizerConfig(clip_norm=0.0), "clip_norm is 0.0"),
        (lambda: OptimizerConfig(weight_decay=-0.1), "weight_decay is -0.1"),
        (lambda: OptimizerConfig(learning_rate=1e-4, schedule=ScheduleConfig(min_lr=1e-3)), "above the learning_rate"),
        (
            lambda: make_schedule(OptimizerConfig(schedule=ScheduleConfig("cosin")), 9),  # type: ignore[arg-type]
            "unknown schedule 'cosin'",
        ),
    ],
)
def test_values_that_make_no_sense_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()


PARAMS = {
    "stage_0": {"attn": {"qkv": {"kernel": (4, 12), "bias": (12,)}, "relative_position_bias_table": (9, 2)}},
    "norm": {"scale": (4,), "bias": (4,)},
    "logit_scale": (2, 1, 1),
}
ABSTRACT = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), PARAMS, is_leaf=lambda x: isinstance(x, tuple)
)


def test_decay_mask_leaves_out_vectors_and_the_named():
    mask = decay_mask(ABSTRACT, ("relative_position_bias_table", "^logit_scale$"))
    assert mask == {
        "stage_0": {"attn": {"qkv": {"kernel": True, "bias": False}, "relative_position_bias_table": False}},
        "norm": {"scale": False, "bias": False},
        "logit_scale": False,
    }
    everything = decay_mask(ABSTRACT, decay_vectors=True)
    assert all(jax.tree.leaves(everything))


def test_an_expression_that_matches_nothing_names_the_nearest_paths():
    with pytest.raises(ValueError, match=r"'relative_bias_table'.*stage_0/attn/relative_position_bias_table"):
        decay_mask(ABSTRACT, ("relative_bias_table",))


def test_clipping_scales_by_the_norm_of_all_leaves():
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]], jnp.bfloat16)}
    clip = clip_by_global_norm(1.0)
    clipped, _ = clip.update(gradients, clip.init(gradients))
    np.testing.assert_allclose(clipped["a"], [3.0 / (5.0 + 1e-6), 0.0], rtol=1e-7)
    assert clipped["b"].dtype == jnp.bfloat16
    kept, _ = clip_by_global_norm(5.1).update(gradients, clip.init(gradients))
    np.testing.assert_array_equal(kept["a"], gradients["a"])


def test_adamw_equals_three_steps_by_hand():
    config = OptimizerConfig(
        learning_rate=0.1,
        weight_decay=0.2,
        clip_norm=1.0,
        schedule=ScheduleConfig("linear", warmup_steps=1, warmup_init_lr=0.05),
    )
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5])}
    gradients = [{"kernel": jnp.array([[0.3 * k, -2.0]]), "bias": jnp.array([0.1 * k])} for k in (1.0, -1.0, 2.0)]
    x = {name: np.asarray(value, np.float64) for name, value in params.items()}
    m = {name: 0 * value for name, value in x.items()}
    v = {name: 0 * value for name, value in x.items()}

    optimizer = make_optimizer(config, 3, params)
    state = optimizer.init(params)
    for t, (gradient, rate) in enumerate(zip(gradients, (0.05, 0.1, 0.05), strict=True), start=1):
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)

        g = {name: np.asarray(value, np.float64) for name, value in gradient.items()}
        norm = np.sqrt(sum((value**2).sum() for value in g.values()))
        for name in x:
            clipped = g[name] * min(1.0, 1.0 / (norm + 1e-6))
            m[name] = 0.9 * m[name] + 0.1 * clipped
            v[name] = 0.999 * v[name] + 0.001 * clipped**2
            step = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-8)
            decay = 0.2 * x[name] if name == "kernel" else 0.0
            x[name] = x[name] - rate * (step + decay)
    for name in x:
        np.testing.assert_allclose(params[name], x[name], rtol=2e-6)


def test_the_rate_is_not_a_reason_to_compile_again():
    params = {"kernel": jnp.ones((2, 2))}
    optimizer = make_optimizer(SWIN, 300 * EPOCH, params)
    compiled = jax.jit(optimizer.update)
    state = optimizer.init(params)
    for _ in range(3):
        _, state = compiled(params, state, params)
    assert compiled._cache_size() == 1
