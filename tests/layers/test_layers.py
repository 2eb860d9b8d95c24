"""Drop path, norms, the perceptrons, the short convolution and the initializers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flashjax.layers.drop_path import drop_path
from flashjax.layers.initializers import NORMAL, torch_uniform
from flashjax.layers.mlp import ACTIVATIONS, FeedForward, Mlp
from flashjax.layers.norm import NORMS, GroupNorm, LayerNorm, RMSNorm, unit
from flashjax.layers.residual import Residual
from flashjax.layers.short_conv import ShortConv
from flashjax.ops.platform import as_elsewhere


def test_drop_path_drops_samples_of_each_branch_by_itself_and_keeps_the_mean():
    rates = (0.0, 0.3, 0.3, 0.6)
    out = np.asarray(drop_path(jax.random.key(0), rates, 4000, jnp.float32))
    for rate, of_branch in zip(rates, out, strict=True):
        np.testing.assert_allclose(np.unique(of_branch), [0, 1 / (1 - rate)] if rate else [1], rtol=1e-6)
        assert abs(of_branch.mean() - 1) < 4 * (rate / (1 - rate) / 4000) ** 0.5 + 1e-6  # four standard errors
    both = ((out[1] > 0) & (out[2] > 0)).mean()
    assert abs(both - 0.7**2) < 4 * (0.49 * 0.51 / 4000) ** 0.5


def test_layer_norm_keeps_digits_where_the_mean_is_large():
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32) + 1000
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    out, variables = LayerNorm().init_with_output(jax.random.key(0), jnp.asarray(x))
    np.testing.assert_allclose(out, exact, atol=2e-4)
    assert set(variables["params"]) == {"scale", "bias"}


def test_layer_norm_in_bfloat16_has_float32_statistics():
    x = (np.random.default_rng(0).normal(size=(3, 96)) + 4).astype(np.float32)
    x = jnp.asarray(x, jnp.bfloat16)
    out, variables = LayerNorm(dtype=jnp.bfloat16).init_with_output(jax.random.key(0), x)
    reference = LayerNorm().apply(variables, x.astype(jnp.float32))
    assert out.dtype == jnp.bfloat16 and variables["params"]["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(out, reference.astype(jnp.bfloat16))


def test_layer_norm_gradients_are_those_of_its_definition():
    def reference(x, scale, bias):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale + bias

    keys = jax.random.split(jax.random.key(0), 4)
    x, weight = jax.random.normal(keys[0], (2, 5, 24)), jax.random.normal(keys[3], (2, 5, 24))
    scale, bias = jax.random.normal(keys[1], (24,)), jax.random.normal(keys[2], (24,))

    def layer(x, scale, bias):
        return LayerNorm().apply({"params": {"scale": scale, "bias": bias}}, x)

    got = jax.grad(lambda *args: (layer(*args) * weight).sum(), (0, 1, 2))(x, scale, bias)
    want = jax.grad(lambda *args: (reference(*args) * weight).sum(), (0, 1, 2))(x, scale, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.parametrize("shape", [(2, 5, 64), (1, 5, 64)])
@pytest.mark.parametrize("name", ["layernorm", "rmsnorm", "scalenorm", "groupnorm"])
def test_gradients_of_norms_are_those_of_other_devices(name, shape):
    x, weight = jnp.asarray(np.random.default_rng(0).normal(1, 2, (2, *shape)), jnp.float32)
    norm = NORMS[name](epsilon=1e-3)
    variables = jax.tree.map(lambda p: p + 0.3, norm.init(jax.random.key(0), x))

    def slopes(variables, x):
        return jax.value_and_grad(lambda v, x: (norm.apply(v, x) * weight).sum(), (0, 1))(variables, x)

    found = jax.jit(slopes)(variables, x)
    with as_elsewhere():
        expected = slopes(variables, x)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-4), found, expected)


def test_unit_vectors():
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    x[1] = 0
    for axis in (-1, -2):
        length = np.maximum(np.linalg.norm(x, axis=axis, keepdims=True), 1e-12)
        np.testing.assert_allclose(unit(jnp.asarray(x), axis), x / length, rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros(4))).all()
    np.testing.assert_allclose(unit(jnp.asarray([1e-7, 0]), least=1e-12), [0.1, 0], rtol=1e-6)  # a length of 1e-6
    assert unit(jnp.ones(4, jnp.bfloat16)).dtype == jnp.bfloat16


def test_rms_and_scale_norm_are_their_equations():
    x = np.random.default_rng(0).normal(2, 3, (5, 16))
    gain = np.random.default_rng(1).normal(size=16)
    mean = np.mean(x * x, -1, keepdims=True)
    for name, scale, expected in (
        ("rmsnorm", gain, x / np.sqrt(mean + 1e-3) * gain),
        ("scalenorm", np.float64(1.7), 1.7 * x / (np.linalg.norm(x, axis=-1, keepdims=True) / 4)),
    ):
        norm = NORMS[name](epsilon=1e-3, dtype=jnp.float32)  # type: ignore[call-arg]
        out = norm.apply({"params": {"scale": jnp.float32(scale)}}, jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(out, expected, rtol=1e-5, err_msg=name)
    out, variables = RMSNorm(use_scale=False).init_with_output(jax.random.key(0), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(np.mean(np.square(out), -1), 1, rtol=1e-5)
    assert variables == {}


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_a_zero_vector_are_zero_with_a_finite_gradient(name):
    norm = NORMS[name](dtype=jnp.bfloat16)  # type: ignore[call-arg]
    variables = norm.init(jax.random.key(0), jnp.zeros((1, 32)))
    out, gradient = jax.value_and_grad(lambda x: norm.apply(variables, x).astype(jnp.float32).sum())(jnp.zeros((1, 32)))
    assert out == 0 and np.isfinite(gradient).all()
    assert norm.apply(variables, jnp.ones((1, 32))).dtype == jnp.bfloat16  # type: ignore[union-attr]


@pytest.mark.parametrize("over_map", [False, True])
def test_group_norm(over_map):
    x = jnp.asarray(np.random.default_rng(0).normal(1, 2, size=(2, 3, 5, 12)), jnp.float32)
    scale, bias = np.arange(12, dtype=np.float32), np.ones(12, np.float32)
    ours, theirs = GroupNorm(4, 1e-3, over_map=over_map), nn.GroupNorm(4, epsilon=1e-3)
    variables = {"params": {"scale": scale, "bias": bias}}
    given = x if over_map else x.reshape(30, 12)  # each position an example of its own
    np.testing.assert_allclose(
        ours.apply(variables, x), theirs.apply(variables, given).reshape(x.shape), rtol=1e-4, atol=1e-5
    )

    def plain(x):
        grouped = x.reshape(*x.shape[:-1], 4, 3)
        axes = (1, 2, 4) if over_map else (4,)
        grouped = grouped - grouped.mean(axes, keepdims=True)
        return (grouped / jnp.sqrt(jnp.square(grouped).mean(axes, keepdims=True) + 1e-3)).reshape(
            x.shape
        ) * scale + bias

    found, wanted = (jax.vjp(f, x)[1](jnp.cos(x))[0] for f in (lambda x: ours.apply(variables, x), plain))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="12 channels do not divide into 32 groups"):
        GroupNorm().apply(variables, x)


def test_residuals():
    x, branch = (jax.random.normal(jax.random.key(i), (2, 3, 4)) for i in (0, 1))

    def join(kind, layers=6, scale=None):
        out, variables = Residual(kind, layers).init_with_output(jax.random.key(0), x, branch)
        if scale is not None:
            out = Residual(kind, layers).apply({"params": {"scale": scale}}, x, branch)
        return out, variables.get("params", {})

    np.testing.assert_array_equal(join("plain")[0], x + branch)
    np.testing.assert_allclose(join("deepnorm")[0], 12**0.25 * x + branch, rtol=1e-6)
    out, params = join("rezero")
    assert params["scale"].shape == () and (out == x).all()
    np.testing.assert_allclose(join("rezero", scale=jnp.float32(0.5))[0], x + 0.5 * branch, rtol=1e-6)
    for layers, expected in ((18, 0.1), (24, 1e-5), (96, 1e-6)):
        params = join("layerscale", layers)[1]
        np.testing.assert_allclose(params["scale"], np.full(4, expected), rtol=1e-6)
    channels = jnp.arange(4, dtype=jnp.float32)
    np.testing.assert_allclose(join("layerscale", scale=channels)[0], x + channels * branch, rtol=1e-6)


def test_gated_and_plain_feed_forward():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4)), jnp.float32)
    made = {"swiglu": jax.nn.silu, "relu2": lambda h: np.square(np.maximum(h, 0))}
    for name, function in made.items():
        out, variables = FeedForward(6, name, use_bias=False).init_with_output(jax.random.key(0), x)
        kernels = {key: tree["kernel"] for key, tree in variables["params"].items()}
        hidden = x @ kernels["up"]
        hidden = function(x @ kernels["gate"]) * hidden if ACTIVATIONS[name][1] else function(hidden)
        np.testing.assert_allclose(out, hidden @ kernels["down"], atol=1e-6)
        assert set(kernels) == {"up", "down"} | ({"gate"} if ACTIVATIONS[name][1] else set())


def test_short_convolution_looks_back_within_its_document():
    x = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    ids = np.array([[1, 1, 1, 2, 2, 2, 0], [1] * 7], np.int32)
    conv = ShortConv(3)
    out, variables = conv.init_with_output(jax.random.key(0), jnp.asarray(x), jnp.asarray(ids))
    kernel = np.asarray(variables["params"]["kernel"])
    for b, t in np.ndindex(2, 7):
        taps = [kernel[2 - s] * x[b, t - s] for s in range(3) if t >= s and ids[b, t - s] == ids[b, t]]
        np.testing.assert_allclose(out[0][b, t], sum(taps), atol=1e-6)
    assert out[1] is None

    whole, _ = conv.apply(variables, jnp.asarray(x))
    valid = jnp.asarray([[True] * 4 + [False], [True] * 2 + [False] * 3])
    _, state = conv.apply(variables, jnp.asarray(x[:, :5]), None, jnp.zeros((2, 2, 3)), valid)
    for step in range(3):
        at = np.array([4, 2]) + step
        y, state = conv.apply(variables, jnp.asarray(x[[0, 1], at])[:, None], None, state)
        np.testing.assert_allclose(y[:, 0], whole[np.arange(2), at], atol=1e-6)


def test_mlp_uses_the_exact_gelu():
    x = jnp.linspace(-4, 4, 32).reshape(1, 32)
    mlp = Mlp(hidden=32, kernel_init=lambda key, shape, dtype: jnp.eye(*shape, dtype=dtype))
    out, variables = mlp.init_with_output(jax.random.key(0), x)
    exact = np.array([0.5 * v * (1 + float(jax.lax.erf(v / np.sqrt(2)))) for v in x[0]])
    np.testing.assert_allclose(out[0], exact, atol=1e-6)
    assert jax.tree.map(jnp.shape, variables["params"]) == {
        "fc1": {"kernel": (32, 32), "bias": (32,)},
        "fc2": {"kernel": (32, 32), "bias": (32,)},
    }


def test_the_normal_is_not_cut_off_at_two_deviations():
    draws = np.asarray(NORMAL(jax.random.key(0), (100_000,), jnp.float32))
    assert abs(draws.std() - 0.02) < 2e-4
    assert np.abs(draws).max() > 0.06


def test_torchs_default_for_convolutions():
    draws = np.asarray(torch_uniform(48)(jax.random.key(0), (20_000,)))
    bound = 48**-0.5
    assert np.abs(draws).max() <= bound and np.abs(draws).max() > 0.99 * bound
