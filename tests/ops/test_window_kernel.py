"""The window kernel, interpreted on the CPU: the map, the attention and the gradients of windows one by one, on a mesh
too."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flashjax.ops import paired_windows as paired
from flashjax.ops import window_kernel
from flashjax.ops import windows as win
from flashjax.training.mesh import MeshConfig, make_mesh
from flashjax.training.sharding import on_mesh


def one_by_one(q, k, v, table, size, window, shift):
    """Attention in windows of maps [B, H, W, C], by `windows` alone."""
    heads = table.shape[1]

    def tokens(x):
        cut = win.window_partition(win.cyclic_shift(x, shift), window)
        return cut.reshape(*cut.shape[:3], heads, -1)

    q, k, v = map(tokens, (q, k, v))
    logits = jnp.einsum("BLnhd,BLmhd->BLhnm", q, k) + table[win.relative_position_index(window)].transpose(2, 0, 1)
    if shift:
        logits = logits + win.shift_mask(size, window, shift)[:, None]
    mixed = jnp.einsum("BLhnm,BLmhd->BLnhd", jax.nn.softmax(logits), v)
    mixed = mixed.reshape(*mixed.shape[:3], -1)
    return win.cyclic_shift(win.window_reverse(mixed, window, size), -shift)


def by_the_kernel(q, k, v, table, size, window, shift):
    count = paired.together(size, window)
    bias = paired.position_bias(table, window, window, count)
    mask = win.shift_mask(size, window, shift, count) if shift else None
    heads, channels = table.shape[1], q.shape[-1]
    qkv = window_kernel.joined(*(win.cyclic_shift(x, shift) for x in (q / 2, k, v)), heads)
    offset = qkv[0, 0, 0]  # taken away here and added there: what comes back to it must be 0 in all
    rectangle, width = (window, count * window), channels // heads
    mixed = window_kernel.attend(qkv - offset, offset, bias, rectangle, width, scale=2.0, mask=mask)
    # Out of the tiles again: the product with ones that `tiled` puts there.
    out = mixed @ window_kernel.tiled(jnp.eye(channels, dtype=q.dtype), heads).T
    return win.cyclic_shift(out, -shift)


def pulled_back(attention, *settings):
    def both(q, k, v, table, ct):
        out, pull = jax.vjp(lambda *args: attention(*args, *settings), q, k, v, table)
        return out, *pull(ct)

    return both


def arguments(B, size, channels, heads, window, dtype=jnp.float32):
    """q, k, v, a table of biases and a cotangent of the result."""
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v, ct = (jax.random.normal(key, (B, *size, channels)).astype(dtype) for key in keys[:4])
    return q, k, v, jax.random.normal(keys[4], ((2 * window - 1) ** 2, heads)), ct


def assert_same(found, wanted, atol):
    for name, a, b in zip(("out", *"qkvt"), found, wanted, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("batch", "size", "channels", "heads", "window", "shift"),
    [
        (2, (3, 6), 4, 2, 3, 0),  # no mask
        (9, (6, 6), 4, 1, 3, 1),  # a mask for each rectangle, two windows in each; two groups of images
        (2, (2, 2), 192, 3, 2, 0),  # heads in two tiles of lanes, the second half full
        (2, (2, 2), 192, 6, 2, 0),  # three heads in each of two tiles
    ],
)
def test_attention_and_its_gradients_are_those_of_windows_one_by_one(batch, size, channels, heads, window, shift):
    args = arguments(batch, size, channels, heads, window)
    settings = (size, window, shift)
    wanted, found = (jax.jit(pulled_back(f, *settings))(*args) for f in (one_by_one, by_the_kernel))
    assert_same(found, wanted, 1e-4)


def test_bfloat16_rounds_as_the_products_do():
    args = arguments(1, (3, 6), 4, 1, 3, jnp.bfloat16)
    wanted = jax.jit(pulled_back(one_by_one, (3, 6), 3, 0))(*(a.astype(jnp.float32) for a in args))
    found = jax.jit(pulled_back(by_the_kernel, (3, 6), 3, 0))(*args)
    assert_same([f.astype(jnp.float32) for f in found], wanted, 0.1)


def test_large_logits_do_not_overflow():
    q = jnp.full((1, 2, 4, 1), 300.0)
    values = jnp.broadcast_to(jnp.arange(4.0)[:, None], q.shape)
    bias = paired.position_bias(jnp.zeros((9, 1)), 2, 2, 2)
    qkv = window_kernel.joined(q, q, values, 1)
    found = jax.jit(lambda qkv: window_kernel.attend(qkv, jnp.zeros(384), bias, (2, 4), 1))(qkv)
    np.testing.assert_allclose(found[0, :, :, 0], [[0.5, 0.5, 2.5, 2.5]] * 2, rtol=1e-6)


@pytest.mark.parametrize(("axes", "heads"), [({"fsdp": 2, "tensor": 2}, 2), ({"tensor": 2}, 3)])
@pytest.mark.parametrize(("size", "shift"), [((2, 2), 0), ((4, 4), 1)])
def test_each_device_of_a_mesh_computes_its_own(axes, heads, size, shift):
    args, settings = arguments(8, size, 4 * heads, heads, 2), (size, 2, shift)
    wanted = jax.jit(pulled_back(one_by_one, *settings))(*args)
    mesh = make_mesh(MeshConfig(**axes))
    whole = jax.device_put(args, NamedSharding(mesh, PartitionSpec()))
    found = jax.jit(on_mesh(pulled_back(by_the_kernel, *settings), mesh))(*whole)
    assert_same(found, wanted, 1e-5)


@pytest.mark.parametrize("shift", [0, 1, 2, -1])
@pytest.mark.parametrize("batch", [3, 8])
def test_a_shift_is_a_roll_and_its_gradient_the_roll_back(shift, batch):
    x = jax.random.normal(jax.random.key(0), (batch, 3, 5, 2))
    weight = jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape)

    def shifted(x):
        return window_kernel.cyclic_shift(x, shift)

    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    whole = jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
    for function, given in ((shifted, x), (on_mesh(shifted, mesh), whole)):
        np.testing.assert_array_equal(jax.jit(function)(given), win.cyclic_shift(x, shift))
    of_x = jax.jit(jax.grad(lambda x: (shifted(x) * weight).sum()))(x)
    np.testing.assert_array_equal(of_x, win.cyclic_shift(weight, -shift))


@pytest.mark.parametrize(("channels", "heads", "shift"), [(4, 1, 1), (192, 6, 0), (96, 3, 1)])
def test_images_of_a_stage_are_computed_as_each_alone(channels, heads, shift, monkeypatch):
    """As compiled, two images a stage and four such stages in all, but with the interpreter's loads and stores."""

    def by_twos(compute, inputs, outputs):
        def two(at):
            found = yield from compute(
                [tuple(window_kernel._load(ref, at + i, 1)[0] for ref in inputs) for i in (0, 1)]
            )
            for i, results in enumerate(found):
                for ref, result in zip(outputs, results, strict=True):
                    window_kernel._store(ref, at + i, 1, (result,))

        window_kernel._staggered([two(at) for at in range(0, inputs[0].shape[2], 2)])

    monkeypatch.setattr(window_kernel, "_for_each_image", by_twos)
    args, settings = arguments(9, (4, 4), channels, heads, 2), ((4, 4), 2, shift)
    jax.clear_caches()
    wanted, found = (jax.jit(pulled_back(f, *settings))(*args) for f in (one_by_one, by_the_kernel))
    jax.clear_caches()
    assert_same(found, wanted, 1e-4)


def test_stages_of_one_stand_beside_those_of_the_next():
    order = []

    def stages(name):
        for stage in range(3):
            order.append(f"{name}{stage}")
            if stage < 2:
                yield

    window_kernel._staggered([stages(name) for name in "abc"])
    assert " ".join(order) == "a0 b0 a1 c0 b1 a2 c1 b2 c2"


def test_a_gpu_is_refused():
    gpu = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=1, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=gpu)
    args = arguments(1, (2, 2), 4, 1, 2)[:4]
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(NotImplementedError, match="attention='windows'"):
        by_the_kernel(*args, (2, 2), 2, 0)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="heads of 40 channels"):
        by_the_kernel(*arguments(1, (2, 2), 80, 2, 2)[:4], (2, 2), 2, 0)
    with pytest.raises(ValueError, match="not float16"):
        by_the_kernel(*arguments(1, (2, 2), 4, 1, 2, jnp.float16)[:4], (2, 2), 2, 0)
    q, k, v, table, _ = arguments(1, (2, 4), 4, 1, 2)
    qkv, offset, bias = window_kernel.joined(q, k, v, 1), jnp.zeros(384), paired.position_bias(table, 2, 2, 2)
    with pytest.raises(ValueError, match=r"rectangles of \(2, 3\)"):
        window_kernel.attend(qkv, offset, bias, (2, 3), 4)
    with pytest.raises(ValueError, match="1 heads of 4 channels want 384 lanes, not 4"):
        window_kernel.attend(q, offset[:4], bias, (2, 4), 4)
    with pytest.raises(ValueError, match=r"wants a mask of \(1, 8, 8\), not \(2, 8, 8\)"):
        window_kernel.attend(qkv, offset, bias, (2, 4), 4, mask=jnp.zeros((2, 8, 8)))
    unchecked = inspect.unwrap(window_kernel.attend)  # where shapes of arguments are not checked
    with pytest.raises(ValueError, match="one bias is for all rectangles, not 2"):
        unchecked(qkv, offset, bias.repeat(2, 0), (2, 4), 4)
