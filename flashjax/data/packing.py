"""Documents packed into rows of one length.

The documents of an epoch stand in an order drawn from (seed, epoch), one behind the other, each as `bos text eos` (as
far as there are such tokens); this stream is cut into rows. Training takes the rows of an epoch in a shuffled order
too: a long document would otherwise fill batch after batch. A row is found from its number alone, with no pass over
the documents: they are permuted in groups, and groups among each other, so that what has to be in memory for one row is
one group's order and the sizes of all groups.

Legend: D documents, G groups, T tokens of the stream, L tokens of a row, S stride from row to row.
"""

import functools
import math

import numpy as np

from flashjax.data.batches import DOCUMENTS, Arrays, generator, shuffled
from flashjax.data.token_store import Documents

GROUP = 1024  # documents; as many or fewer are in one group, and then in any order


class Packing:
    """The stream of each epoch, and its rows.

    Args:
        documents: of the set.
        length: L.
        stride: S; L, or L - 1 where a row's last token is the next row's first (so that each is a target once).
        bos, eos: what stands before and behind each document; None for nothing.
        pad: what fills a row behind the end of the stream.
        seed: of the order of the documents; None: they stay in theirs, in all epochs.

    Attributes:
        tokens: T.
    """

    def __init__(
        self,
        documents: Documents,
        length: int,
        stride: int,
        bos: int | None = None,
        eos: int | None = None,
        pad: int = 0,
        seed: int | None = None,
    ):
        self.documents, self.length, self.stride = documents, length, stride
        self._bos, self._eos, self._pad, self._seed = bos, eos, pad, seed
        self._before = int(bos is not None)
        self._more = self._before + int(eos is not None)
        self._sizes = _group_sizes(documents, self._more)
        self.tokens = int(self._sizes.sum())
        self._groups = functools.lru_cache(2)(self._order_groups)
        self._units = functools.lru_cache(64)(self._order_documents)

    @property
    def whole_rows(self) -> int:
        """Rows that the stream fills."""
        return max(0, (self.tokens - self.length) // self.stride + 1)

    @property
    def all_rows(self) -> int:
        """Rows that hold all of the stream, the last one padded."""
        return math.ceil((self.tokens - (self.length - self.stride)) / self.stride)

    def fill(self, epoch: int, row: int, tokens: np.ndarray, segments: np.ndarray) -> None:
        """Writes a row.

        Args:
            tokens: int32 [L].
            segments: int32 [L], 1, 2, ... for the documents of the row; 0 for padding.
        """
        position, at, segment = row * self.stride, 0, 0
        stop = min(position + self.length, self.tokens)
        order, ends = self._groups(epoch)
        place = int(np.searchsorted(ends, position, "right"))
        while position < stop:
            group = int(order[place])
            offset = int(ends[place] - self._sizes[group])
            indices, unit_ends = self._units(epoch, group)
            unit = int(np.searchsorted(unit_ends, position - offset, "right"))
            while position < stop and unit < len(indices):
                begin = offset + (int(unit_ends[unit - 1]) if unit else 0)
                end = offset + int(unit_ends[unit])
                count = min(end, stop) - position
                if count:
                    segment += 1
                    segments[at : at + count] = segment
                    self._copy(int(indices[unit]), position - begin, end - begin, tokens[at : at + count])
                at, position, unit = at + count, position + count, unit + 1
            place += 1
        tokens[at:], segments[at:] = self._pad, 0

    def _copy(self, document: int, first: int, size: int, out: np.ndarray) -> None:
        """Fills `out` from token `first` on of the unit (bos, text, eos) of `document`, which has `size` tokens."""
        last = first + len(out)
        if self._bos is not None and first == 0:
            out[0] = self._bos
        if self._eos is not None and last == size:
            out[-1] = self._eos
        text = size - self._more
        low, high = max(first - self._before, 0), min(last - self._before, text)
        if low < high:
            start = int(self.documents.starts[document])
            out[low + self._before - first : high + self._before - first] = self.documents.tokens[
                start + low : start + high
            ]

    def _order_groups(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The groups in the order of an epoch [G], and where each ends in the stream [G]."""
        order = self._permutation(epoch, len(self._sizes), len(self._sizes))
        return order, np.cumsum(self._sizes[order])

    def _order_documents(self, epoch: int, group: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents of a group in the order of an epoch, and where each ends, from the group's start."""
        first = group * GROUP
        indices = first + self._permutation(epoch, group, min(GROUP, len(self.documents) - first))
        return indices, np.cumsum(self.documents.ends[indices] - self.documents.starts[indices] + self._more)

    def _permutation(self, epoch: int, draw: int, count: int) -> np.ndarray:
        if self._seed is None:
            return np.arange(count)
        return generator(self._seed, DOCUMENTS, epoch * (len(self._sizes) + 1) + draw).permutation(count)


def _group_sizes(documents: Documents, more: int) -> np.ndarray:
    """Tokens of each group, int64 [G], read a block at a time: there may be more documents than memory."""
    block = GROUP * GROUP
    sizes = []
    for start in range(0, len(documents), block):
        lengths = documents.ends[start : start + block] - documents.starts[start : start + block] + more
        sizes.append(np.add.reduceat(lengths, np.arange(0, len(lengths), GROUP)))
    return np.concatenate(sizes)


class TrainRows:
    """The endless training stream: slot i -> one row of epoch i // rows.

    Args:
        packing: of the training documents.
        seed: of the order of the rows.
        separate: whether rows carry `segment_ids`.
    """

    def __init__(self, packing: Packing, seed: int, separate: bool):
        self.packing, self.rows = packing, packing.whole_rows
        self._order, self._separate = shuffled(self.rows, seed), separate

    def __call__(self, slot: int, arrays: Arrays, row: int) -> list[str]:
        segments = arrays["segment_ids"][row] if self._separate else np.empty(self.packing.length, np.int32)
        self.packing.fill(slot // self.rows, int(self._order[slot]), arrays["tokens"][row], segments)
        return []


class EvalRows:
    """The evaluation text in its own order: slot i -> row i; slots past the end are padding.

    Args:
        packing: of the evaluation documents.
        limit: at most this many rows, spread evenly over the text; None: all.
        separate: whether `segment_ids` tell documents apart; otherwise they are 1, and 0 for padding.
    """

    def __init__(self, packing: Packing, limit: int | None, separate: bool):
        self.packing, self._separate = packing, separate
        self.rows = packing.all_rows if limit is None else min(packing.all_rows, limit)

    def __call__(self, slot: int, arrays: Arrays, row: int) -> list[str]:
        tokens, segments = arrays["tokens"][row], arrays["segment_ids"][row]
        if slot >= self.rows:
            tokens[:], segments[:], arrays["mask"][row] = 0, 0, 0
            return []
        self.packing.fill(0, slot * self.packing.all_rows // self.rows, tokens, segments)
        if not self._separate:
            np.minimum(segments, 1, out=segments)
        arrays["mask"][row] = 1
        return []
