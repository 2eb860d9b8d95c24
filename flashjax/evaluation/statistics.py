"""What a few seeds say: means and trends with the intervals that belong to them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special  # which JAX stands on


@dataclass(frozen=True)
class Mean:
    """A mean over n values, and its interval: value - half to value + half."""

    value: float
    half: float | None
    """None for a single value: there is no interval."""
    n: int

    def words(self, form: str = ".4g") -> str:
        """'0.123 ± 0.004', or the value alone."""
        return format(self.value, form) + ("" if self.half is None else f" ± {self.half:{form}}")


def mean(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """Mean and Student's t interval, which supposes that values are drawn independently and about normal.

    A value that is not finite makes the mean so, without an interval.

    Raises:
        ValueError: if there are no values.
    """
    found = np.asarray(values, float)
    if not found.size:
        raise ValueError("a mean needs values")
    n = found.size
    if n == 1 or not np.isfinite(found).all():
        return Mean(float(found.mean()), None, n)
    half = student(confidence, n - 1) * found.std(ddof=1) / math.sqrt(n)
    return Mean(float(found.mean()), float(half), n)


def student(confidence: float, freedom: int) -> float:
    """How many standard errors a two-sided interval of Student's t reaches to each side."""
    return float(special.stdtrit(freedom, 0.5 + confidence / 2))


@dataclass(frozen=True)
class Trend:
    """How y goes with x, over n points, each figure with the ends of its 95 % interval."""

    correlation: tuple[float, float, float] | None
    """Pearson's r, from, to (Fisher's z); None where all y are equal."""
    slope: tuple[float, float, float]
    """Of the line of least squares, from, to (Student's t)."""
    n: int

    def words(self) -> str:
        slope = "slope {:+.2f} ({:+.2f} to {:+.2f})".format(*self.slope)
        if self.correlation is None:
            return f"{slope}, no correlation to speak of: y is always the same; n = {self.n}"
        return "correlation {:+.2f} ({:+.2f} to {:+.2f}), ".format(*self.correlation) + f"{slope}, n = {self.n}"


def trend(x: Sequence[float], y: Sequence[float], confidence: float = 0.95) -> Trend:
    """Correlation and slope of y over x.

    Raises:
        ValueError: for fewer than four points, or x that are all equal.
    """
    a, b = np.asarray(x, float), np.asarray(y, float)
    if a.shape != b.shape or a.size < 4 or np.ptp(a) == 0:
        raise ValueError(f"a trend needs at least four points at different x; found {len(a)} at {sorted(set(x))[:5]}")
    n, a0, b0 = a.size, a - a.mean(), b - b.mean()
    slope = float(a0 @ b0 / (a0 @ a0))
    error = math.sqrt(float(((b0 - slope * a0) ** 2).sum()) / (n - 2) / float(a0 @ a0))
    reach = student(confidence, n - 2) * error
    correlation = None
    if np.ptp(b) > 0:
        r = min(max(float(a0 @ b0 / math.sqrt(float(a0 @ a0) * float(b0 @ b0))), -1.0), 1.0)
        if abs(r) > 1 - 1e-12:
            correlation = (r, r, r)
        else:
            z, width = math.atanh(r), float(special.ndtri(0.5 + confidence / 2)) / math.sqrt(n - 3)
            correlation = (r, math.tanh(z - width), math.tanh(z + width))
    return Trend(correlation, (slope, slope - reach, slope + reach), n)
