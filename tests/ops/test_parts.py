import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.ops.parts import joined, parts
from flashjax.training.mesh import MeshConfig, make_mesh
from flashjax.training.sharding import on_mesh


@pytest.mark.parametrize(("together", "sizes"), [(2, [2, 2, 2]), (4, [4, 2]), (6, [6]), (8, [6])])
def test_parts_in_order_and_joined_again(together, sizes):
    x = jnp.arange(18).reshape(6, 3)
    cut = parts(x, together)
    assert [len(part) for part in cut] == sizes
    np.testing.assert_array_equal(jnp.concatenate(cut), x)
    np.testing.assert_array_equal(joined(cut, 6), x)
    for part, other in zip(cut, parts(x.T, together, axis=-1), strict=True):
        np.testing.assert_array_equal(part.T, other)


def test_parts_of_a_mesh_are_of_each_devices_own_examples():
    mesh = make_mesh(MeshConfig(data=8))
    of_batch = jax.NamedSharding(mesh, jax.P("data"))
    x = jax.device_put(jnp.arange(24.0).reshape(24, 1), of_batch)

    def halves(x):
        cut = parts(x, 2)
        return cut, joined([part + 1 for part in cut], len(x))

    compiled = jax.jit(on_mesh(halves, mesh), in_shardings=of_batch, out_shardings=of_batch).lower(x).compile()
    (first, second), whole = compiled(x)
    rows = np.arange(24).reshape(8, 3)
    np.testing.assert_array_equal(first[:, 0], rows[:, :2].ravel())
    np.testing.assert_array_equal(second[:, 0], rows[:, 2])
    np.testing.assert_array_equal(whole, x + 1)
    text = compiled.as_text()
    assert not any(kind in text for kind in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))
