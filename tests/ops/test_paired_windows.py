"""Windows two by two: the same map, the same attention, the same gradients as windows one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.ops import paired_windows as paired
from flashjax.ops import windows as win


def tokens_by_window(rectangles, window, count):
    """[B, L, C, N] of rectangles to [B, L count, M*M, C] of windows, by hand."""
    B, L, C, _ = rectangles.shape
    grid = rectangles.swapaxes(-1, -2).reshape(B, L, window, count, window, C).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(B, L * count, window**2, C)


@pytest.mark.parametrize(
    ("size", "window", "count"), [((56, 56), 7, 2), ((7, 7), 7, 1), ((24, 24), 12, 1), ((8, 24), 8, 1), ((8, 16), 8, 2)]
)
def test_how_many_windows_go_together(size, window, count):
    assert paired.together(size, window) == count


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("count", [1, 2])
def test_partition_is_a_roll_and_a_cut_and_is_undone(count, shift, dtype):
    x = jax.random.normal(jax.random.key(0), (2, 6, 12, 5)).astype(dtype)
    rectangles = paired.partition(x, 3, count, shift)
    wanted = win.window_partition(win.cyclic_shift(x, shift), 3)
    np.testing.assert_array_equal(tokens_by_window(rectangles, 3, count), wanted)
    np.testing.assert_array_equal(paired.reverse(rectangles, 3, count, shift, (6, 12)), x)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("count", [1, 2])
def test_attention_and_its_gradients_are_those_of_windows(count, shift):
    heads, d, window, size = 2, 4, 3, (6, 12)
    keys = jax.random.split(jax.random.key(1), 5)
    maps = [jax.random.normal(key, (2, *size, heads * d)) for key in keys[:3]]
    table = jax.random.normal(keys[3], (25, heads))
    ct = jax.random.normal(keys[4], maps[0].shape)

    def reference(q, k, v, table):
        q, k, v = (
            win.window_partition(win.cyclic_shift(m, shift), window).reshape(2, -1, window**2, heads, d)
            for m in (q, k, v)
        )
        logits = jnp.einsum("BLnhd,BLmhd->BLhnm", q, k) + table[win.relative_position_index(window)].transpose(2, 0, 1)
        if shift:
            logits = logits + win.shift_mask(size, window, shift)[:, None]
        mixed = jnp.einsum("BLhnm,BLmhd->BLnhd", jax.nn.softmax(logits), v).reshape(2, -1, window**2, heads * d)
        return win.cyclic_shift(win.window_reverse(mixed, window, size), -shift)

    def rectangles(q, k, v, table):
        q, k, v = (
            paired.partition(m, window, count, shift).reshape(2, -1, heads, d, count * window**2) for m in (q, k, v)
        )
        bias = paired.position_bias(table, window, window, count)
        if shift:
            bias = bias + win.shift_mask(size, window, shift, count)[:, None]
        mixed = paired.attend(q, k, v, bias)
        return paired.reverse(mixed.reshape(*mixed.shape[:2], -1, mixed.shape[-1]), window, count, shift, size)

    wanted, back = jax.vjp(reference, *maps, table)
    found, back_found = jax.vjp(rectangles, *maps, table)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    for name, a, b in zip("qkvt", back_found(ct), back(ct), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)


def test_large_logits_do_not_overflow():
    q = jnp.full((1, 1, 1, 1, 4), 300.0)
    found = paired.attend(q, q, jnp.arange(4.0).reshape(1, 1, 1, 1, 4), jnp.zeros((1, 1, 4, 4)))
    np.testing.assert_allclose(found, jnp.full((1, 1, 1, 1, 4), 1.5), rtol=1e-6)
