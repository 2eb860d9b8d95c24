"""Bicubic resizing against numbers that torch gave (the parity tests compare with torch itself)."""

import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.ops.resize import bicubic_weights, resize_bicubic


def test_weights_of_one_output_are_torchs():
    # interpolate(eye(4), size=8)[3]: centre 1.25, a quarter past pixel 1.
    np.testing.assert_allclose(bicubic_weights(4, 8)[3], [-0.10546875, 0.87890625, 0.26171875, -0.03515625], atol=1e-7)


def test_border_taps_are_clamped():
    # Centre -0.25: the taps at -2 and -1 fall on pixel 0.
    np.testing.assert_allclose(bicubic_weights(4, 8)[0], [1.10546875, -0.10546875, 0, 0], atol=1e-7)


@pytest.mark.parametrize(("source", "target"), [(13, 23), (23, 13), (5, 5), (1, 4), (7, 3)])
def test_weights_sum_to_one(source, target):
    np.testing.assert_allclose(bicubic_weights(source, target).sum(1), 1, atol=1e-6)


def test_same_size_is_the_identity():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7, 3)), jnp.float32)
    np.testing.assert_allclose(resize_bicubic(image, (5, 7)), image, atol=1e-6)


def test_rows_and_columns_are_not_mixed_up():
    image = jnp.broadcast_to(jnp.arange(6.0)[:, None, None], (6, 4, 1))
    out = resize_bicubic(image, (3, 8))
    assert out.shape == (3, 8, 1)
    np.testing.assert_allclose(out[:, 0], out[:, 7], atol=1e-6)
    np.testing.assert_allclose(out[1, 0, 0], 2.5, atol=1e-6)


def test_a_size_of_zero_is_refused():
    with pytest.raises(ValueError, match="positive"):
        resize_bicubic(jnp.ones((2, 2, 1)), (0, 2))
