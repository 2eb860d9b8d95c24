"""Rows that repeat their beginning: which, how, and that nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flashjax.objectives.repeats import Repeats

TOKENS = jnp.arange(40 * 33).reshape(40, 33)


def prepared(rate: float) -> dict:
    batch = {"tokens": TOKENS, "segment_ids": jnp.full((40, 33), 2)}
    return jax.device_get(Repeats(nn.Dense(2), 2, rate=rate).prepare(batch, jax.random.key(0)))


def test_some_rows_repeat_their_first_tokens():
    batch = prepared(0.5)
    periods = []
    for row, ids, before in zip(batch["tokens"], batch["segment_ids"], np.asarray(TOKENS), strict=True):
        if (row == before).all():
            assert (ids == 2).all()
            continue
        period = int(np.argmax(row[1:] == row[0])) + 1
        np.testing.assert_array_equal(row, before[np.arange(33) % period])
        assert (ids == 1).all()
        periods.append(period)
    assert 10 < len(periods) < 30 and min(periods) >= 8 and max(periods) <= 16 and len(set(periods)) > 4


def test_no_rate_no_repeats():
    np.testing.assert_array_equal(prepared(0.0)["tokens"], TOKENS)
    with pytest.raises(ValueError, match=r"rate of repeats is 1\.5"):
        Repeats(nn.Dense(2), 2, rate=1.5)
