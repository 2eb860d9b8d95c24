"""Algorithms by name: by hand in float64, decay alone, a rate of 0, arguments, scanned layers, traced numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flashjax.training.optimizers import (
    ALGORITHMS,
    OptimizerConfig,
    ScheduleConfig,
    make_average,
    make_optimizer,
    with_arrays,
)
from flashjax.training.optimizers.config import TRACEABLE

CONSTANT = ScheduleConfig("constant")


def config_of(name, **fields):
    """Every algorithm under a constant rate, with momentum where it could have none."""
    momentum = {"momentum": 0.9} if name in ("sgd", "rmsprop") else {}
    return OptimizerConfig(**{"name": name, "clip_norm": None, "schedule": CONSTANT, **momentum, **fields})


def run(config, params, gradients, total=100):
    """(parameters, state) after an update with each of the gradients."""
    optimizer = make_optimizer(config, total, params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        changes, state = update(gradient, state, params)
        params = optax.apply_updates(params, changes)
    return params, state


def test_the_help_text_names_every_algorithm():
    from pathlib import Path

    from flashjax.training.optimizers import config

    text = Path(config.__file__).read_text()
    _, _, listed = text.partition('"""Algorithm: ')
    listed, _, _ = listed.partition(";")
    assert listed.replace(" or ", ", ").replace("\n    ", " ").split(", ") == list(ALGORITHMS)


def test_adamw_is_optax_bit_for_bit():
    draw = np.random.default_rng(0)
    start = {"kernel": jnp.asarray(draw.normal(size=(8, 6)), jnp.float32), "bias": jnp.ones(6)}
    gradients = [jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), x.dtype), start) for _ in range(5)]
    found, _ = run(config_of("adamw", weight_decay=0.1), start, gradients)
    optimizer = optax.adamw(1e-3, weight_decay=0.1, mask={"kernel": True, "bias": False})
    params, state, update = start, optimizer.init(start), jax.jit(optimizer.update)
    for gradient in gradients:
        changes, state = update(gradient, state, params)
        params = optax.apply_updates(params, changes)
    jax.tree.map(np.testing.assert_array_equal, found, params)


# By hand: m = .9 m + .1 g, v = .999 v + .001 g g, corrected; x = 1, g = 2, -1, .5; rate .1 eta with eta = 1, .5, .25.


@pytest.mark.parametrize("name", ["adam", "adam_l2", "adamw", "adamw_paper"])
def test_adam_and_its_decays_equal_three_steps_by_hand(name):
    decay = 0.0 if name == "adam" else 0.2
    schedule = ScheduleConfig("multistep", milestones=(1, 2), decay_rate=0.5)
    x, m, v = 1.0, 0.0, 0.0
    for t, (g, eta) in enumerate(zip((2.0, -1.0, 0.5), (1.0, 0.5, 0.25), strict=True), start=1):
        g += decay * x if name == "adam_l2" else 0.0
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        shrink = {"adamw": 0.1 * eta * decay * x, "adamw_paper": eta * decay * x}.get(name, 0.0)
        x -= 0.1 * eta * step + shrink
    with jax.enable_x64(True):
        config = config_of(name, learning_rate=0.1, weight_decay=decay, schedule=schedule)
        gradients = [{"w": jnp.full((1, 1), g)} for g in (2.0, -1.0, 0.5)]
        params, _ = run(config, {"w": jnp.ones((1, 1))}, gradients)
        np.testing.assert_allclose(params["w"], x, rtol=1e-14)


def test_schedule_free_equals_three_steps_by_hand():
    with jax.enable_x64(True):
        config = config_of("schedule_free_adamw", learning_rate=0.1, weight_decay=0.2)
        start, gradients = {"w": jnp.ones((1, 1))}, [{"w": jnp.full((1, 1), g)} for g in (2.0, -1.0, 0.5)]
        y = x = z = 1.0
        v = 0.0
        for t, g in enumerate((2.0, -1.0, 0.5), start=1):
            v = 0.999 * v + 0.001 * g * g
            z -= 0.1 * (g / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.2 * y)
            x = (1 - 1 / t) * x + z / t
            y = 0.9 * x + 0.1 * z
        params, state = run(config, start, gradients)
        average = make_average(config, None)
        np.testing.assert_allclose(params["w"], y, rtol=1e-13)
        np.testing.assert_allclose(average(None, params, state, jnp.asarray(2))["w"], x, rtol=1e-13)


def test_prodigy_finds_a_rate_of_its_own():
    target = jnp.array([[3.0, -2.0]])
    config = config_of("prodigy", learning_rate=1.0)
    params = {"w": jnp.zeros((1, 2))}
    optimizer = make_optimizer(config, 100, params)

    @jax.jit
    def step(params, state):
        changes, state = optimizer.update({"w": params["w"] - target}, state, params)
        return optax.apply_updates(params, changes), state

    state = optimizer.init(params)
    for _ in range(400):
        params, state = step(params, state)
    assert float(state.estim_lr) > 1e-2  # it began at 1e-6
    np.testing.assert_allclose(params["w"], target, atol=0.05)


# Decay alone, and a rate of 0.


def test_without_a_gradient_adamw_shrinks_and_adam_with_l2_moves_by_the_rate():
    zero = {"w": jnp.zeros((2, 2))}
    start = {"w": jnp.array([[1.0, -4.0], [0.25, 100.0]])}
    fields = {"learning_rate": 0.01, "weight_decay": 0.5}
    shrunk, _ = run(config_of("adamw", **fields), start, [zero] * 3)
    np.testing.assert_allclose(shrunk["w"], start["w"] * (1 - 0.01 * 0.5) ** 3, rtol=1e-6)
    paper, _ = run(config_of("adamw_paper", **fields), start, [zero] * 3)
    np.testing.assert_allclose(paper["w"], start["w"] * (1 - 0.5) ** 3, rtol=1e-6)
    moved, _ = run(config_of("adam_l2", **fields), start, [zero] * 3)
    np.testing.assert_allclose(moved["w"] - start["w"], -0.03 * np.sign(start["w"]), rtol=0.03)
    np.testing.assert_array_equal(run(config_of("adam"), start, [zero] * 3)[0]["w"], start["w"])


RATED = [name for name in ALGORITHMS if name not in ("adamw_paper", "prodigy")]


@pytest.mark.parametrize("name", RATED)
def test_a_rate_of_zero_leaves_parameters_bit_equal(name):
    start = {"layer_0": {"kernel": jnp.array([[1.0, -4.0], [0.25, 100.0]]), "bias": jnp.array([1.0, 2.0])}}
    decay = {} if ALGORITHMS[name].decay.startswith("none") else {"weight_decay": 0.5}
    config = config_of(name, learning_rate=0.0, **decay)
    if name == "schedule_free_adamw":  # y is computed again from x and z
        close, _ = run(config, start, [start] * 2)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), close, start)
    else:
        jax.tree.map(np.testing.assert_array_equal, run(config, start, [start] * 2)[0], start)


def test_in_the_papers_convention_a_rate_of_zero_still_decays():
    start = {"w": jnp.full((2, 2), 8.0)}
    params, _ = run(config_of("adamw_paper", learning_rate=0.0, weight_decay=0.5), start, [start] * 2)
    np.testing.assert_array_equal(params["w"], 2.0)
    schedule = ScheduleConfig("constant", warmup_steps=2, warmup_init_lr=1e-6)
    with pytest.raises(ValueError, match="a schedule's multiplier needs a peak"):
        run(config_of("adamw_paper", learning_rate=0.0, schedule=schedule), start, [start])


# Arguments.


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "adamv"}, r"unknown optimizer 'adamv'; nearest: adam, radam, nadam"),
        ({"name": "adam", "weight_decay": 0.1}, r"adam has no weight decay, found 0.1: choose adamw"),
        ({"name": "sgd", "b1": 0.9, "eps": 1e-3}, r"sgd does not take b1 \(0.9\), eps \(0.001\)"),
        ({"name": "lion", "momentum": 0.9}, r"lion does not take momentum \(0.9\).*takes b1, b2, mu_dtype"),
        ({"name": "adafactor", "b2": 0.9}, r"adafactor does not take b2 .*none of them"),
        ({"name": "radam", "mu_dtype": "bfloat16"}, "radam does not take mu_dtype"),
        ({"name": "schedule_free_adamw"}, "set schedule.kind to constant"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"momentum": 1.0, "name": "sgd"}, "momentum is 1.0"),
    ],
)
def test_what_an_algorithm_does_not_take_is_named(fields, words):
    with pytest.raises(ValueError, match=words):
        OptimizerConfig(**fields)


@pytest.mark.parametrize("name", [name for name, a in ALGORITHMS.items() if "mu_dtype" in a.arguments])
def test_the_first_moment_in_bfloat16_changes_little(name):
    draw = np.random.default_rng(0)
    start = {"layer_0": {"kernel": jnp.asarray(draw.normal(size=(8, 6)), jnp.float32)}}
    gradients = [jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), x.dtype), start) for _ in range(5)]
    full, state = run(config_of(name), start, gradients)
    half, less = run(config_of(name, mu_dtype="bfloat16"), start, gradients)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (state, less)]
    assert sizes[0] - sizes[1] == 2 * 48  # two bytes an element
    assert half["layer_0"]["kernel"].dtype == jnp.float32
    way = np.abs(full["layer_0"]["kernel"] - start["layer_0"]["kernel"]).max()
    difference = np.abs(full["layer_0"]["kernel"] - half["layer_0"]["kernel"]).max()
    assert difference < (1.0 if name == "lion" else 0.05) * way  # a sign may turn


# Scanned layers are layers.


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "prodigy"])
def test_a_stack_of_layers_moves_as_its_layers_do(name):
    draw = np.random.default_rng(1)

    def tree(shape):
        return {f"layer_{i}": {"up": {"kernel": jnp.asarray(draw.normal(size=shape), jnp.float32)}} for i in range(3)}

    def stacked(tree):
        return {"layers": jax.tree.map(lambda *x: jnp.stack(x), *(tree[f"layer_{i}"] for i in range(3)))}

    shape = (130, 128) if name == "adafactor" else (4, 6)
    start, gradients = tree(shape), [tree(shape) for _ in range(3)]
    decay = {} if ALGORITHMS[name].decay.startswith("none") else {"weight_decay": 0.1}
    config = config_of(name, learning_rate=0.1, layer_decay=0.5, **decay)
    apart, _ = run(config, start, gradients)
    together, _ = run(config, stacked(start), [stacked(g) for g in gradients])
    np.testing.assert_allclose(
        together["layers"]["up"]["kernel"], stacked(apart)["layers"]["up"]["kernel"], rtol=2e-4, atol=2e-5
    )


def test_muon_takes_kernels_of_blocks_and_adam_the_rest():
    params = {
        "embed": {"embedding": jnp.ones((8, 4))},
        "layers": {"up": {"kernel": jnp.ones((2, 4, 6)), "bias": jnp.ones((2, 6))}},
        "layer_0": {"key_conv": {"kernel": jnp.ones((3, 4))}},
        "stage_0": {"block_0": {"shortcut_conv": {"kernel": jnp.ones((3, 3, 2, 4))}}},
        "head": {"kernel": jnp.ones((4, 8))},
    }
    _, state = run(config_of("muon"), params, [params])
    second = {path for path, _ in _paths(state) if "/nu/" in path}
    names = {path.split("/nu/")[1] for path in second}
    assert names == {"embed/embedding", "layers/up/bias", "layer_0/key_conv/kernel", "head/kernel"}


def test_muon_makes_updates_orthogonal_and_wide_ones_larger():
    draw = np.random.default_rng(0)
    params = {"layer_0": {"kernel": jnp.zeros((4, 16))}, "layer_1": {"kernel": jnp.zeros((16, 4))}}
    gradient = jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), jnp.float32), params)
    moved, _ = run(config_of("muon", learning_rate=1.0), params, [gradient])
    for name, scale in (("layer_0", 2.0), ("layer_1", 1.0)):
        values = np.linalg.svd(moved[name]["kernel"], compute_uv=False)
        assert ((0.6 * scale < values) & (values < 1.3 * scale)).all(), values


def _paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


# Numbers that a compiled function takes as arguments.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("adamw", kind) for kind in ("constant", "cosine", "linear")),
        *((name, "cosine") for name in ("adam_l2", "adamw_paper", "sgd")),
    ],
)
def test_rate_and_decay_may_be_traced_and_compile_once(name, kind):
    schedule = ScheduleConfig(kind, warmup_steps=2, min_lr=1e-4 if kind == "cosine" else 0.0)
    start, total = {"w": jnp.full((2, 2), 3.0)}, 10
    gradients = jnp.stack([jnp.full((2, 2), g) for g in (1.0, -2.0, 0.5, 3.0)])
    compilations = []

    @jax.jit
    def train(learning_rate, weight_decay):
        compilations.append(name)
        config = with_arrays(
            OptimizerConfig(name=name, schedule=schedule), learning_rate=learning_rate, weight_decay=weight_decay
        )
        optimizer = make_optimizer(config, total, start)

        def step(carry, gradient):
            params, state = carry
            changes, state = optimizer.update({"w": gradient}, state, params)
            return (optax.apply_updates(params, changes), state), None

        return jax.lax.scan(step, (start, optimizer.init(start)), gradients)[0][0]

    for learning_rate, weight_decay in ((0.1, 0.0), (0.01, 0.3), (0.5, 0.1)):
        fixed = OptimizerConfig(name=name, schedule=schedule, learning_rate=learning_rate, weight_decay=weight_decay)
        expected, _ = run(fixed, start, [{"w": g} for g in gradients], total)
        found = train(jnp.float32(learning_rate), jnp.float32(weight_decay))
        np.testing.assert_allclose(found["w"], expected["w"], rtol=2e-6)
    assert compilations == [name]
    grid = jax.vmap(train)(jnp.array([0.1, 0.5]), jnp.array([0.0, 0.1]))
    np.testing.assert_allclose(grid["w"][1], found["w"], rtol=2e-6)


def test_what_cannot_be_traced_is_named():
    with pytest.raises(ValueError, match=f"clip_norm cannot be traced; these can: {', '.join(TRACEABLE)}"):
        with_arrays(OptimizerConfig(), clip_norm=jnp.float32(1))
