"""Windows: the published fixtures, round trips, and masks against a brute-force reading of the paper."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.ops import windows as win


def test_position_index_of_window_7():
    index = win.relative_position_index(7)
    assert index.shape == (49, 49) and index.dtype == np.int32
    assert (index[0, 0], index[0, 48], index[48, 0], index.max()) == (84, 0, 168, 168)


def test_position_index_of_window_12():
    index = win.relative_position_index(12)
    assert index[5, 5] == 264 and index.max() == 528


def test_a_smaller_window_reads_the_same_offsets_of_a_larger_table():
    large, small = win.relative_position_index(7), win.relative_position_index(4, 7)
    rows = (np.arange(4)[:, None] * 7 + np.arange(4)).ravel()  # the upper left 4x4 tokens of a 7x7 window
    np.testing.assert_array_equal(small, large[np.ix_(rows, rows)])


def test_a_window_larger_than_its_table_is_refused():
    with pytest.raises(ValueError, match="reaches past"):
        win.relative_position_index(8, 7)


def test_shift_mask_of_the_first_stage():
    mask = np.asarray(win.shift_mask((56, 56), 7, 3))
    assert mask.shape == (64, 49, 49) and set(np.unique(mask)) == {-100.0, 0.0}
    masked = (mask < 0).sum((1, 2))
    edge = {i for i in range(64) if i % 8 == 7 or i // 8 == 7}
    assert {i for i in range(64) if masked[i]} == edge and len(edge) == 15
    assert [masked[i] for i in sorted(edge)] == [1176] * 14 + [1776]
    assert masked.sum() == 18240
    regions = win.shift_regions((56, 56), 7, 3)[63]
    assert Counter(regions.tolist()) == {4: 16, 5: 12, 7: 12, 8: 9}


@pytest.mark.parametrize(("H", "W", "window", "shift"), [(8, 12, 4, 2), (10, 15, 5, 2), (6, 9, 3, 1)])
def test_tokens_attend_only_to_neighbours_of_before_the_shift(H, W, window, shift):
    rows, columns = np.meshgrid(np.arange(H), np.arange(W), indexing="ij")
    position = np.stack([rows, columns], -1)[None].astype(np.float32)
    shifted = win.window_partition(win.cyclic_shift(jnp.asarray(position), shift), window)[0]
    # Tokens of one window that lie closer than a window were neighbours: the roll did not tear them apart.
    apart = np.abs(np.asarray(shifted)[:, :, None] - np.asarray(shifted)[:, None]).max(-1) >= window
    np.testing.assert_array_equal(np.asarray(win.shift_mask((H, W), window, shift)) < 0, apart)


def test_partition_and_reverse_are_inverse():
    x = jax.random.normal(jax.random.key(0), (2, 6, 9, 4))
    windows = win.window_partition(x, 3)
    assert windows.shape == (2, 6, 9, 4)
    np.testing.assert_array_equal(windows[1, 4].reshape(3, 3, 4), x[1, 3:6, 3:6])  # windows go row by row
    np.testing.assert_array_equal(win.window_reverse(windows, 3, (6, 9)), x)


def test_cyclic_shift_moves_up_and_left():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    shifted = win.cyclic_shift(x, 1)
    assert shifted[0, 0, 0, 0] == x[0, 1, 1, 0]
    np.testing.assert_array_equal(win.cyclic_shift(shifted, -1), x)


@pytest.mark.parametrize("shift", [0, 1, 2, -1])
def test_a_roll_by_sums_is_a_roll(shift):
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 2))
    np.testing.assert_array_equal(win.rolled_by_sums(x, shift), jnp.roll(x, -shift, 1))
    weight = jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape)
    of_x = jax.grad(lambda x: (win.rolled_by_sums(x, shift) * weight).sum())(x)
    np.testing.assert_array_equal(of_x, jnp.roll(weight, shift, 1))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_neighbours_stand_in_the_official_order(monkeypatch, platform):
    monkeypatch.setattr(win, "traced_for", lambda: platform)
    rows, columns = np.meshgrid(np.arange(4), np.arange(6), indexing="ij")
    merged = win.merge_neighbours(jnp.asarray(np.stack([rows, columns], -1)[None], jnp.float32))
    assert merged.shape == (1, 2, 3, 8)
    np.testing.assert_array_equal(merged[0, 1, 2].reshape(4, 2), [(2, 4), (3, 4), (2, 5), (3, 5)])


def test_padding_goes_to_the_bottom_and_the_right():
    x = jnp.ones((1, 5, 8, 2))
    padded = win.pad_to_multiple(x, 4)
    assert padded.shape == (1, 8, 8, 2)
    assert padded[:, :5].min() == 1 and padded[:, 5:].max() == 0
    assert win.pad_to_multiple(padded, 4) is padded


def test_log_spaced_coordinates():
    table = win.log_relative_coords(8)
    assert table.shape == (225, 2) and table.dtype == np.float32
    np.testing.assert_allclose(table[0], -np.log2(9) / 3, rtol=1e-6)  # the farthest offset is 8 of 8
    np.testing.assert_array_equal(table[112], 0)
    # Fine-tuned from window 8 at window 16: offset -15 is 15/7 of what training reached.
    np.testing.assert_allclose(win.log_relative_coords(16, 8)[0], -np.log2(1 + 8 * 15 / 7) / 3, rtol=1e-6)
    assert np.isfinite(win.log_relative_coords(1)).all()
