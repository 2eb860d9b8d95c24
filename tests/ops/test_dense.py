"""Products over rows of tokens: what `lax.dot_general` says, forward and backward, and one dim of tokens for XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flashjax.ops.dense import copies, dot_general, product, scaled, softmax
from flashjax.ops.platform import as_elsewhere


def test_dot_general():
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(5, 7)), jnp.float32)
    for shape in ((5,), (4, 5), (2, 3, 5), (2, 2, 3, 5)):
        x = jnp.asarray(rng.normal(size=shape), jnp.float32)
        numbers = (((x.ndim - 1,), (0,)), ((), ()))

        def both(product, x=x, numbers=numbers):
            y, pull = jax.vjp(lambda x, kernel: product(x, kernel, numbers), x, kernel)
            return y, *pull(jnp.cos(y))

        for found, expected in zip(both(dot_general), both(lax.dot_general), strict=True):
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_gradient_sums_over_one_dim():
    """The kernel's gradient contracts a single dim of tokens: over two, XLA for CPUs transposes them first."""

    def loss(kernel):
        return dot_general(jnp.ones((2, 3, 5)), kernel, (((2,), (0,)), ((), ()))).sum()

    products = [e for e in jax.make_jaxpr(jax.grad(loss))(jnp.ones((5, 7))).eqns if e.primitive.name == "dot_general"]
    assert products and all(len(e.params["dimension_numbers"][0][0]) == 1 for e in products)


def test_scale_of_one_row_is_summed_over_one_dim():
    """Over the second of three dims YNNPACK takes sixty times as long."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32)
    scale = jnp.arange(5.0)
    for rows in (1, 2):

        def loss(scale, x=x[:rows]):
            return jnp.sum(jnp.cos(scaled(x, scale)))

        np.testing.assert_array_equal(scaled(x[:rows], scale), x[:rows] * scale)
        expected = -(jnp.sin(x[:rows] * scale) * x[:rows]).sum((0, 1))
        np.testing.assert_allclose(jax.grad(loss)(scale), expected, rtol=1e-5, atol=1e-6)
        equations = jax.make_jaxpr(jax.grad(loss))(scale).eqns
        sums = [e.invars[0].aval.ndim for e in equations if e.primitive.name == "reduce_sum"]
        assert (2 in sums) == (rows == 1)


def _both(function, *given):
    """(result, gradients of a function of it), as written for one CPU and as elsewhere."""

    def run(*given):
        y, pull = jax.vjp(function, *given)
        return y, *pull(jnp.cos(y))

    here = jax.jit(run)(*given)
    with as_elsewhere():
        return here, run(*given)


def _random(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("dims", "left", "right"),
    [
        ("bgis,bgjs->bgij", (2, 3, 4, 5), (2, 3, 6, 5)),
        ("bgij,bgje->bgie", (2, 3, 4, 6), (2, 3, 6, 7)),
        ("bgjs,bgje->bgse", (2, 3, 4, 5), (2, 3, 4, 7)),
        ("bgis,bse->bgie", (2, 3, 4, 5), (2, 5, 7)),
        ("rgh,rhse->rgse", (2, 3, 3), (2, 3, 4, 5)),
    ],
)
def test_product(dims, left, right):
    for found, expected in zip(*_both(lambda a, b: product(dims, a, b), _random(*left), _random(*right)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_a_product_are_not_turned_round():
    """JAX's own are, of the second operand: with the gradient first what is made has its dims the other way."""
    a, b = _random(3, 4, 6), _random(3, 6, 7)

    def turns(product) -> int:
        text = jax.make_jaxpr(jax.grad(lambda a, b: jnp.sin(product("gij,gje->gie", a, b)).sum(), (0, 1)))(a, b)
        return str(text).count(" transpose[")

    assert turns(product) == 0 < turns(jnp.einsum)


def test_product_in_less_than_float32():
    a, b = (x.astype(jnp.bfloat16) for x in (_random(2, 4, 5), _random(2, 6, 5)))
    here, there = _both(lambda a, b: product("bis,bjs->bij", a, b, dtype=jnp.float32), a, b)
    assert [x.dtype for x in here] == [jnp.float32, jnp.bfloat16, jnp.bfloat16] == [x.dtype for x in there]
    for found, expected in zip(here, there, strict=True):
        np.testing.assert_allclose(np.float32(found), np.float32(expected), rtol=2e-2, atol=2e-2)


def test_copies():
    x = _random(3, 4)
    (found, gradient), (expected, own) = _both(lambda x: copies(x, 2, 5) * _random(2, 5, 3, 4), x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(gradient, own, rtol=1e-5, atol=1e-5)


def test_softmax():
    for found, expected in zip(*_both(softmax, _random(3, 4, 7)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
