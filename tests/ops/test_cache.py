"""Writing tokens into caches: the right place, what does not fit, and no copy of a donated buffer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.ops.cache import write


@pytest.mark.parametrize("axis", [1, 2])
def test_write(axis):
    rng = np.random.default_rng(0)
    shape = (3, 5, 2) if axis == 1 else (3, 2, 5, 4)
    cache = rng.normal(size=shape).astype(np.float32)
    new = rng.normal(size=shape[:axis] + shape[axis + 1 :])
    for at in ([4, 0, 2], [1, 5, 3], [5, 6, 7]):  # from 5 on there is no room
        expected = cache.copy()
        for row, token in enumerate(at):
            if token < 5:
                np.moveaxis(expected[row], axis - 1, 0)[token] = new[row]
        np.testing.assert_array_equal(write(jnp.asarray(cache), jnp.asarray(at), jnp.asarray(new), axis), expected)


@pytest.mark.parametrize("rows", [1, 2])
def test_donated_cache_is_not_copied(rows):
    """A step reads what it has just written; its memory beyond the arguments stays far below one cache."""
    cache = jnp.zeros((rows, 4096, 32))

    def step(cache, x, at):
        cache = write(cache, at, x)
        logits = jnp.einsum("bs,bjs->bj", x, cache)
        return jnp.einsum("bj,bjs->bs", jnp.where(jnp.arange(4096) <= at[:, None], logits, 0), cache), cache

    arguments = cache, jnp.ones((rows, 32)), jnp.zeros(rows, jnp.int32)
    optimised = {"xla_backend_optimization_level": 2}  # the tests compile without, where nothing is fused
    memory = jax.jit(step, donate_argnums=0).lower(*arguments).compile(optimised).memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < cache.nbytes / 4
