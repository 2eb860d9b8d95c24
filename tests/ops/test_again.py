"""What is made again is made in the backward pass: its gradient is right, and a step's memory is less for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers.norm import LayerNorm
from flashjax.ops.again import again
from flashjax.ops.dense import product, softmax
from flashjax.ops.platform import as_elsewhere


def test_gradients_are_those_of_the_function():
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(3, 4)), jnp.float32) for _ in "xy")
    seen = jnp.asarray(rng.integers(0, 2, (3, 4)), bool)

    def function(x: jax.Array, y: dict[str, jax.Array], seen: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.where(seen, jnp.tanh(x) * y["y"], 0), jnp.sin(x).sum(0)

    def loss(function, x, y):
        left, right = function(x, {"y": y}, seen)
        return jnp.cos(left).sum() + (right * right).sum()

    expected = jax.value_and_grad(lambda *given: loss(function, *given), (0, 1))(x, y)
    found = jax.jit(jax.value_and_grad(lambda *given: loss(again(function), *given), (0, 1)))(x, y)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-6, atol=1e-6), found, expected)


def test_no_gradient_makes_another_of_the_argument():
    """Whatever bits a gradient has, what is added is a zero."""
    x = jnp.asarray([[-1.5, 0.0, 2.5]])
    for first in (jnp.nan, jnp.inf, -jnp.inf, -0.0, -1e-45, 3.0):
        gradient = jnp.asarray([[first, 1.0, 1.0]])
        found = jax.vjp(again(jnp.sin), x)[1](gradient)[0]
        np.testing.assert_array_equal(found, gradient * jnp.cos(x))


def _bytes_of_a_chain(make) -> int:
    """Of the temporaries of a gradient through eight products, between which something of four times the width is."""

    def loss(weights, x):
        for weight in weights:
            x = make(lambda x, w: jnp.tanh(jnp.concatenate([x, x * x, x - 1, x + 2], -1)) @ w)(x, weight)
        return x.sum()

    weights, x = jnp.ones((8, 256, 64)), jnp.ones((4096, 64))
    return jax.jit(jax.grad(loss)).lower(weights, x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere it is the function itself")
def test_memory_of_a_step():
    """`jax.checkpoint` alone does not do on CPUs; should it one day, `again` has nothing left to say."""
    ours, plain = _bytes_of_a_chain(again), _bytes_of_a_chain(lambda function: function)
    assert ours < 0.6 * plain


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere it is the function itself")
def test_forward_mode_as_elsewhere():
    x = jnp.arange(3.0)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(again(jnp.sin), (x,), (x,))
    with as_elsewhere():
        found = jax.jvp(again(jnp.sin), (x,), (x,))[1]
    np.testing.assert_allclose(found, x * jnp.cos(x))
    hessian = jax.jvp(jax.grad(lambda x: again(jnp.sin)(x).sum()), (x,), (jnp.ones(3),))[1]  # of a gradient it has one
    np.testing.assert_allclose(hessian, -jnp.sin(x), rtol=1e-6, atol=1e-7)


def test_products_with_a_hessian():
    """Forward mode over a gradient, through a norm, a product and a softmax; of a whole model as elsewhere."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    norm = LayerNorm()
    variables = norm.init(jax.random.key(0), x)

    def slope(x):
        return jax.grad(lambda x: softmax(product("bis,bjs->bij", norm.apply(variables, x), x)).std())(x)

    found = jax.jvp(slope, (x,), (jnp.cos(x),))[1]
    with as_elsewhere():
        expected = jax.jvp(slope, (x,), (jnp.cos(x),))[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
