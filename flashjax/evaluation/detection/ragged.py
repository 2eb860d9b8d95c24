"""Many lists of different lengths, one behind the other in one array."""

from collections.abc import Iterator

import numpy as np

Array = np.ndarray

CHUNK = 1 << 17
"""Elements that are worked on at a time, so that they stay in the processor's cache."""


def offsets(lengths: Array) -> Array:
    """Where each of the lists begins, and where the last ends, int64 [N + 1]."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def ragged(first: Array, last: Array) -> tuple[Array, Array]:
    """(indices of all ranges first[i] .. last[i] - 1 one behind the other, where each begins among them)."""
    starts = offsets(last - first)
    index = np.arange(starts[-1])
    index += np.repeat(first - starts[:-1], last - first)
    return index, starts


def gather(values: Array, first: Array, last: Array) -> tuple[Array, Array]:
    """(values[first[i]:last[i]] of all i one behind the other, where each begins); a view where they lie so already."""
    if len(first) and (first[1:] == last[:-1]).all():
        return values[first[0] : last[-1]], np.append(first, last[-1]) - first[0]
    index, starts = ragged(first, last)
    return values.take(index), starts


def pieces(lengths: Array, most: int = CHUNK) -> Iterator[slice]:
    """Slices of rows whose lengths add up to about ``most``; a longer row is a slice of its own."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        reached = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, reached + most, side="right")))
        yield slice(first, last)
        first = last


def sums(values: Array, starts: Array) -> Array:
    """Sum of each list, int64; of int32 modulo 2^32."""
    total = np.zeros(len(values) + 1, np.int32 if values.dtype == np.int32 else np.int64)
    np.cumsum(values, out=total[1:], dtype=total.dtype)
    return (total[starts[1:]] - total[starts[:-1]]).astype(np.int64)
