"""Drop path, layer norm, the MLP and the initializers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers.drop_path import DropPath
from flashjax.layers.initializers import NORMAL, torch_uniform
from flashjax.layers.mlp import Mlp
from flashjax.layers.norm import LayerNorm


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    out = np.asarray(DropPath(0.3).apply({}, x, train=True, rngs={"drop_path": jax.random.key(0)}))
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.7], rtol=1e-6)
    assert (out == out[:, :1, :1]).all()
    assert abs(out.mean() - 1) < 0.04  # four standard errors


@pytest.mark.parametrize(("rate", "train"), [(0.3, False), (0.0, True)])
def test_drop_path_needs_no_randomness_where_it_does_nothing(rate, train):
    x = jnp.ones((2, 3))
    assert DropPath(rate).apply({}, x, train=train) is x


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
