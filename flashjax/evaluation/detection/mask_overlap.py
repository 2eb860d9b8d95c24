"""What masks share: unions, and the pixels of pairs, from the ends of their runs alone."""

import numpy as np

from flashjax.evaluation.detection.masks import Masks
from flashjax.evaluation.detection.ragged import offsets, pieces, sums

Array = np.ndarray


def union(masks: Masks, groups: Array) -> Masks:
    """For each group of rows groups[i] .. groups[i + 1] - 1, the pixels that any of them covers."""
    sizes = masks.sizes[groups[:-1]]
    lengths = np.diff(offsets(masks.last - masks.first)[groups])
    done = []
    for piece in pieces(lengths):
        bounds, _ = masks.of_rows(slice(groups[piece.start], groups[piece.stop]))
        owner = np.repeat(np.arange(len(lengths[piece])), lengths[piece])
        # Begin before end where they meet, so that runs that touch become one.
        is_end = np.arange(len(bounds)) & 1
        key = np.sort(owner << 40 | bounds.astype(np.int64) << 1 | is_end, kind="stable")
        depth = np.cumsum(1 - 2 * (key & 1))
        begins = np.concatenate([[0], depth[:-1]]) == 0
        kept = key[begins | (depth == 0)]
        count = np.bincount(kept >> 40, minlength=len(lengths[piece]))
        done.append(Masks.of(sizes[piece], count, (kept & ((1 << 40) - 1)) >> 1))
    return Masks.join(done)


def intersections(a: Masks, b: Masks, rows_a: Array, rows_b: Array) -> Array:
    """Pixels that masks ``rows_a[i]`` of ``a`` and ``rows_b[i]`` of ``b`` share, int64 [P].

    The bounds of both are sorted together; after each, one knows of both masks whether it is inside.
    """
    common = np.zeros(len(rows_a), np.int64)
    lengths_a = a.last[rows_a] - a.first[rows_a]
    lengths_b = b.last[rows_b] - b.first[rows_b]
    for piece in pieces(lengths_a + lengths_b):
        na, nb = lengths_a[piece], lengths_b[piece]
        pair = np.arange(len(na)) << 33
        mine, starts_a = a.of_rows(rows_a[piece])
        other, starts_b = b.of_rows(rows_b[piece])
        key = np.empty(len(mine) + len(other), np.int64)
        np.left_shift(mine, 1, out=key[: len(mine)], dtype=np.int64)
        np.left_shift(other, 1, out=key[len(mine) :], dtype=np.int64)
        key[: len(mine)] += np.repeat(pair, na)
        key[len(mine) :] += np.repeat(pair + 1, nb)
        key.sort(kind="stable")  # two rising lists: a single merge
        # Inside both masks after an odd number of bounds of each: that is at odd places, where of b's bounds an odd
        # number came before. A pair begins at an even place.
        of_b = (key & 1).astype(np.uint8)
        inside = np.bitwise_xor.accumulate(of_b[::2] ^ of_b[1::2])
        key >>= 1
        covered = inside.astype(np.int64)
        covered[:-1] *= key[2::2] - key[1:-1:2]
        common[piece] = sums(covered, (starts_a + starts_b) // 2)
    return common
