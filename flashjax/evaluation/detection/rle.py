"""COCO's run-length codec over many masks at a time: strings to numbers, numbers to areas and to runs, and back.

A mask of H x W pixels is read down its columns (position = x * H + y). Its run lengths are background, foreground,
background, ... A string holds them as numbers, of which from the fourth on each is the difference to the one two
before. A character is 48 + 5 bits of its number, from the lowest up; 32 more say that another character follows, and
the highest bit of the last one is the sign.

Source: the format of COCO's annotations (Lin, Dollar, 2015).
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from flashjax.evaluation.detection.ragged import offsets, sums

Array = np.ndarray

MOST_PIXELS = 1 << 31
_LEAST, _MORE, _PAST = 48, 80, 112  # characters: the least, the least that is followed, the first beyond
_FOLLOWED = bytes(range(_MORE, _PAST))
_ENDS = bytes((c - _LEAST & 31) - ((c - _LEAST & 16) << 1) & 255 for c in range(256))  # int8 of a last character


def numbers(text: Array, starts: Array, source: str, rows: Array) -> tuple[Array, Array]:
    """(the numbers that strings hold, int32; where each string's begin among them).

    Args:
        text: uint8 [C], the strings one behind the other.
        starts: int64 [N + 1], where each begins.
        source, rows: What errors call the strings.

    Raises:
        ValueError: a character that is none, a number that breaks off or has more than 30 bits.
    """
    if len(text) and (text - np.uint8(_LEAST)).max() >= _PAST - _LEAST:  # what is below wraps to above
        place = int(np.argmax((text < _LEAST) | (text >= _PAST)))
        raise ValueError(
            f"{_where(place, starts, source, rows)}: {chr(text[place])!r} is no character of compressed run lengths"
        )
    more = text >= _MORE
    ends = starts[1:][np.diff(starts) > 0] - 1
    if more[ends].any():
        place = int(ends[np.argmax(more[ends])])
        raise ValueError(f"{_where(place, starts, source, rows)}: its run lengths break off in the middle of a number")
    # One character ends each number; most numbers have no other.
    value = np.frombuffer(text.tobytes().translate(_ENDS, _FOLLOWED), np.int8).astype(np.int32)
    place = np.flatnonzero(more)
    slot = place - np.arange(len(place))  # the number that each of the others belongs to
    low = (text.take(place) & 31 ^ 16).astype(np.int32)  # _LEAST is 16 modulo 32
    same = np.append(slot[1:] == slot[:-1], False)[: len(slot)]  # another one of its number follows
    on = np.flatnonzero(~same)
    for count in range(1, 7):
        if not len(on):
            break
        if count == 6:
            raise ValueError(f"{_where(int(place[on[0]]), starts, source, rows)}: a run length of more than 30 bits")
        of = slot.take(on)
        value[of] = value.take(of) << 5 | low.take(on)
        on = on[on > 0] - 1
        on = on[same.take(on)]
    return value, starts - np.searchsorted(place, starts)


def _where(place: int, starts: Array, source: str, rows: Array) -> str:
    return f"{source} {rows[int(np.searchsorted(starts, place, side='right')) - 1]}"


def extents(value: Array, starts: Array, sizes: Array, source: str, rows: Array) -> tuple[Array, Array]:
    """(areas int64 [N]; first and last column that may hold foreground, int64 [N, 2]), without the runs.

    Run lengths of one colour are running sums of its differences, so areas are sums of running sums. All are modulo
    2^32 and so right for images of less than 2^31 pixels.

    Raises:
        ValueError: runs that do not fill height x width; it names the row.
    """
    count, colour = np.diff(starts), np.array([[0], [1]])  # background, foreground
    # Numbers of even places, then those of odd ones: within a mask each half is of one colour.
    halves = np.empty(len(value) + 1, np.int32)
    odd = (len(value) + 1) // 2
    halves[0], halves[1 : odd + 1], halves[odd + 1 :] = 0, value[::2], value[1::2]
    np.cumsum(halves, out=halves, dtype=np.int32)
    twice = np.cumsum(halves, dtype=np.int32)
    parity = starts[:-1] & 1 ^ colour
    first, last = (((place + 1 - parity) >> 1) + parity * odd for place in (starts[:-1], starts[1:]))
    base = halves.take(first)
    final = halves.take(last) - base
    whole = twice.take(last) - twice.take(first) - base * (last - first).astype(np.int32)
    # The first number stands alone: nothing builds on it.
    head = np.append(value, np.int32(0)).take(starts[:-1]) * (count > 0).astype(np.int32)
    final[0] -= head
    whole[0] -= head * ((count - 1) >> 1).astype(np.int32)
    area, filled = whole[1].astype(np.int64), whole.sum(0, dtype=np.int32).astype(np.int64)
    check_filled(filled, sizes, source, rows)
    height = np.maximum(sizes[:, 0], 1)
    tail = np.where(count & 1 == 1, np.where(count > 1, final[0], head), 0)
    return area, np.stack([head // height, (filled - tail - 1) // height], 1)


def check_filled(filled: Array, sizes: Array, source: str, rows: Array) -> None:
    """That runs fill height x width."""
    wrong = np.flatnonzero(filled != sizes[:, 0] * sizes[:, 1])
    if len(wrong):
        row = int(wrong[0])
        height, width = map(int, sizes[row])
        raise ValueError(
            f"{source} {rows[row]}: its runs hold {int(filled[row])} pixels, but its size is {height} x {width} = "
            f"{height * width}"
        )


@dataclass(frozen=True)
class _Colours:
    """The numbers of lists by colour. ``runs`` [N] foreground runs a list, ``some`` the lists that have any, ``first``
    and ``each`` where theirs begin and how many they are; ``fore``, ``back``: a run and the background before it."""

    runs: Array
    some: Array
    first: Array
    each: Array
    fore: Array
    back: Array


def bounds(
    value: Array, starts: Array, sizes: Array, source: str, rows: Array, differences: bool
) -> tuple[Array, Array]:
    """(begin and end of each run of foreground, int32; how many of these numbers each mask has).

    Args:
        value: Run lengths, int; where ``differences``, what strings hold.
        starts: int64 [N + 1], where each mask's begin.

    Raises:
        ValueError: a negative run, or runs that do not fill height x width; it names the row.
    """
    lengths = np.diff(starts)
    c = _colours(value, starts)
    if differences:
        head = c.back[c.first]  # the first number stands alone; the third is whole as well
        c.back[c.first] = 0
        _run_on(c.fore, c.first, c.each)
        _run_on(c.back, c.first, c.each)
        c.back[c.first] = head
    ends = c.fore + c.back
    _run_on(ends, c.first, c.each)
    filled = np.zeros(len(sizes), np.int64)
    last = c.first + c.each - 1
    filled[c.some] = ends[last]
    open_end = np.flatnonzero(lengths & 1 == 1)  # background to the last pixel
    tail = value[starts[open_end + 1] - 1]
    if differences:
        far = lengths[open_end] > 4
        tail[far] += c.back[last[np.searchsorted(c.some, open_end[far])]]
    filled[open_end] += tail
    if min(c.fore.min(initial=0), c.back.min(initial=0), tail.min(initial=0)) < 0:
        run = int(np.argmin(np.minimum(c.fore, c.back))) if len(c.fore) else 0
        row = c.some[np.searchsorted(c.first, run, side="right") - 1] if len(c.fore) else open_end[0]
        raise ValueError(f"{source} {rows[int(row)]}: a run of a negative number of pixels")
    check_filled(filled, sizes, source, rows)
    made = np.empty(2 * len(ends), np.int32)
    np.subtract(ends, c.fore, out=made[::2], casting="unsafe")
    made[1::2] = ends
    runs = c.runs
    if c.fore.min(initial=1) == 0:  # runs of no pixel
        real = c.fore > 0
        made, runs = made[np.repeat(real, 2)], sums(real, offsets(runs))
    return made, 2 * runs


def _colours(value: Array, starts: Array) -> _Colours:
    lengths = np.diff(starts)
    runs = lengths // 2
    is_foreground = np.repeat((starts[:-1] & 1).astype(bool), lengths)
    is_foreground[1::2] ^= True
    place = np.flatnonzero(is_foreground)
    some = np.flatnonzero(runs > 0)
    return _Colours(runs, some, offsets(runs)[some], runs[some], value.take(place), value.take(place - 1))


def _run_on(values: Array, first: Array, each: Array) -> None:
    """Running sums of many lists, in place: they begin at ``first`` and are ``each`` long."""
    np.cumsum(values, out=values, dtype=values.dtype)
    base = np.zeros(len(first), values.dtype)
    base[1:] = values[first[1:] - 1]
    values -= np.repeat(base, each)


def strings(ends: Array, starts: Array, pixels: Array) -> list[str]:
    """Compressed run lengths of masks, of the shortest form: no empty runs but the first.

    Args:
        ends: Begin and end of each run of foreground.
        starts: int64 [N + 1], where each mask's begin.
        pixels: int64 [N], height x width.
    """
    owner = np.repeat(np.arange(len(pixels)), np.diff(starts))
    touch = np.flatnonzero((ends[2::2] == ends[1:-1:2]) & (owner[2::2] == owner[1:-1:2]))
    drop = np.concatenate([2 * touch + 1, 2 * touch + 2])  # runs that touch are one
    ends, owner = np.delete(ends, drop), np.delete(owner, drop)
    count = np.bincount(owner, minlength=len(pixels))
    # Of each mask 0, its ends, its pixels: lengths are their differences.
    edge_starts = offsets(count + 2)
    edges = np.zeros(edge_starts[-1], np.int64)
    edges[np.arange(len(ends)) + 2 * owner + 1] = ends
    edges[edge_starts[1:] - 1] = pixels
    real = np.ones(len(edges), bool)
    real[edge_starts[:-1]] = False
    real[edge_starts[1:] - 1] = (count == 0) | (edges[edge_starts[1:] - 2] < pixels)
    runs = np.diff(edges, prepend=0)[real]
    lengths = sums(real, edge_starts)
    place = np.arange(len(runs)) - np.repeat(offsets(lengths)[:-1], lengths)
    built = np.flatnonzero(place >= 3)
    value = runs.copy()
    value[built] -= runs[built - 2]
    letters = np.ones(len(value), np.int64)
    for bits in range(4, 34, 5):
        letters += (value >= 1 << bits) | (value < -(1 << bits))
    at = offsets(letters)
    text = np.empty(at[-1], np.uint8)
    for n in range(int(letters.max(initial=0))):
        some = np.flatnonzero(letters > n)
        text[at[some] + n] = _LEAST + (value[some] >> 5 * n & 31) + 32 * (letters[some] > n + 1)
    cuts = at[offsets(lengths)].tolist()
    whole = text.tobytes().decode()
    return [whole[i:j] for i, j in pairwise(cuts)]
