"""Products over rows of tokens: what `lax.dot_general` says, forward and backward, and one dim of tokens for XLA."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flashjax.ops.dense import dot_general, scaled


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
