"""Means and trends against numbers worked by hand and against SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from flashjax.evaluation.statistics import Mean, mean, student, trend


def test_the_interval_of_three_values_by_hand():
    # 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7; Student's t of 2 degrees at 97.5 % is 4.302653
    found = mean([1, 2, 6])
    assert found.value == 3 and found.n == 3
    assert found.half == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6)
    assert found.words(".2f") == "3.00 ± 6.57"


def test_one_value_has_no_interval_and_none_no_mean():
    assert mean([2.0]) == Mean(2.0, None, 1) and mean([2.0]).words() == "2"
    assert mean([1.0, math.inf]).half is None
    with pytest.raises(ValueError, match="a mean needs values"):
        mean([])


def test_ninety_five_of_a_hundred_intervals_hold_the_mean():
    draws = np.random.default_rng(0).normal(5, 2, (2000, 4))
    held = [abs(m.value - 5) <= (m.half or 0) for m in map(mean, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)  # three standard errors
    assert student(0.95, 1) == pytest.approx(12.7062, rel=1e-5)


def test_a_trend_is_scipys():
    rng = np.random.default_rng(1)
    x = np.repeat(np.arange(7.0), 3)
    y = 0.4 * x + rng.normal(size=21)
    found, line = trend(x, y), stats.linregress(x, y)
    assert found.correlation is not None and found.n == 21
    r = stats.pearsonr(x, y)
    interval = r.confidence_interval(0.95)
    assert found.correlation == pytest.approx((r.statistic, interval.low, interval.high))
    reach = stats.t.ppf(0.975, 19) * line.stderr
    assert found.slope == pytest.approx((line.slope, line.slope - reach, line.slope + reach))
    assert "n = 21" in found.words()


def test_a_level_or_exact_trend():
    level = trend([0, 1, 2, 3], [5, 5, 5, 5])
    assert level.correlation is None and level.slope == (0, 0, 0) and "always the same" in level.words()
    assert trend([0, 1, 2, 3], [0, -2, -4, -6]).correlation == (-1, -1, -1)
    with pytest.raises(ValueError, match="at least four points"):
        trend([1, 1, 1, 1], [1, 2, 3, 4])
