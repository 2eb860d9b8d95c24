"""Result files read as columns: of a list of records that all look like the first, only the numbers change.

A results file is a hundred megabytes in which the same keys return half a million times, and making objects of them
takes longer than the evaluation. So the file goes through in parts: what is left of a part without its digits must be
the first record's outline over and over, and then its numbers are the columns. Anything else - other keys, another
order, a string where a number belongs, any error - is left to the `json` module, which says what is wrong.

Numbers are read as `float` reads them, to the last bit: their digits make an integer of up to 64 bits, and the
quotient by the power of ten is rounded once, with the remainder in hand. The few that are too close to call, too long
or have an exponent are given to `float` itself.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
PART = 1 << 20
"""Bytes of the file that are worked on at a time."""
_SCALARS = ("image_id", "category_id", "score", "id", "area", "iscrowd")
_BLANK = b" \t\r\n"


class _IrregularError(Exception):
    """The file is not as its first record promises."""


@dataclass(frozen=True)
class _Outline:
    """What every record looks like.

    Attributes:
        text: The record without whitespace, digits, points and signs, its run lengths empty.
        slots: What its numbers are, in their order.
        quotes: Quotation marks in it.
        counts: Which of them opens the run lengths; -1 if there are none.
    """

    text: bytes
    slots: tuple[str, ...]
    quotes: int
    counts: int


def read_results(path: Path, masks: bool) -> Mapping[str, Any] | None:
    """The columns of a results file, or None if it is not regular.

    ``image_id`` and ``category_id`` are int64, ``bbox`` [N, 4] and ``score`` float64; where ``masks``, ``size`` is
    int64 [N, 2], ``counts`` uint8 and ``starts`` int64 [N + 1].
    """
    try:
        with open(path, "rb") as file:
            return _read(file, masks)
    except (_IrregularError, UnicodeDecodeError):
        return None


def _read(file: Any, masks: bool) -> Mapping[str, Any]:
    outline, numbers, integers, texts, lengths = None, [], [], [], []
    for part, last in _parts(file):
        if outline is None:
            outline, part = _first(part, masks)
        if outline.counts >= 0:
            part, text, length = _without_strings(part, outline)
            texts.append(text)
            lengths.append(length)
        values, whole, powers = _numbers(part)
        count = _check(_without(part, powers), outline, last)
        if len(values) != count * len(outline.slots):
            raise _IrregularError
        numbers.append(values.reshape(count, -1))
        integers.append(whole.reshape(count, -1))
    if outline is None:
        raise _IrregularError
    places = {name: [n for n, slot in enumerate(outline.slots) if slot == name] for name in outline.slots}
    columns: dict[str, Any] = {}
    for name in ("image_id", "category_id", "size") if masks else ("image_id", "category_id"):
        value = np.concatenate([part[:, places[name]] for part in integers])
        if (value == _NO_INTEGER).any():
            raise _IrregularError
        columns[name] = value if name == "size" else value[:, 0]
    for name in ("bbox", "score"):
        if name in places:
            value = np.concatenate([part[:, places[name]] for part in numbers])
            columns[name] = np.ascontiguousarray(value) if name == "bbox" else value[:, 0]
    if masks:
        columns["counts"] = np.concatenate(texts)
        starts = np.zeros(len(columns["score"]) + 1, np.int64)
        np.cumsum(np.concatenate(lengths), out=starts[1:])
        columns["starts"] = starts
    return columns


def _parts(file: Any) -> Iterator[tuple[bytes, bool]]:
    """Whole records, about PART bytes of them at a time, and whether they are the last."""
    rest = b""
    while True:
        block = file.read(PART)
        text = rest + block
        if not block:
            if not text:
                raise _IrregularError
            yield text, True
            return
        cut = len(text)
        while True:  # the last brace that opens a record, not one within it
            cut = text.rfind(b"{", 0, cut)
            if cut <= 0:
                break
            before = text[:cut].rstrip(_BLANK) if cut < 64 else text[cut - 64 : cut].rstrip(_BLANK)
            if before.endswith(b","):
                break
        if cut <= 0:
            rest = text
            if len(rest) > 64 * PART:
                raise _IrregularError
            continue
        yield text[:cut], False
        rest = text[cut:]


def _first(part: bytes, masks: bool) -> tuple[_Outline, bytes]:
    """(outline of the first record, the part from that record on)."""
    part = part.lstrip(_BLANK)
    if not part.startswith(b"["):
        raise _IrregularError
    part = part[1:].lstrip(_BLANK)
    try:
        record, end = json.JSONDecoder().raw_decode(part.decode("ascii"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise _IrregularError from None
    if not isinstance(record, dict) or not {"image_id", "category_id", "score"} <= set(record):
        raise _IrregularError
    slots: list[str] = []
    for key, value in record.items():
        if key == "bbox" and isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)):
            slots += ["bbox"] * 4
        elif key in _SCALARS and _is_number(value):
            slots.append(key)
        elif masks and key == "segmentation" and isinstance(value, dict) and sorted(value) == ["counts", "size"]:
            size, counts = value["size"], value["counts"]
            if not isinstance(counts, str) or not isinstance(size, list) or len(size) != 2:
                raise _IrregularError
            slots += ["size"] * 2
        else:
            raise _IrregularError
    if ("bbox" not in slots and not masks) or (masks and "size" not in slots):
        raise _IrregularError
    raw = part[:end]
    counts = -1
    if masks:
        key = raw.index(b'"counts"')
        counts = raw[:key].count(b'"') + 2
        opening = raw.index(b'"', key + 8)
        closing = raw.index(b'"', opening + 1)
        raw = raw[: opening + 1] + raw[closing:]
    raw = _without(raw, _numbers(raw)[2])
    return _Outline(raw.translate(None, _CHANGING), tuple(slots), raw.count(b'"'), counts), part


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_CHANGING = b"0123456789.-" + _BLANK


def _check(part: bytes, outline: _Outline, last: bool) -> int:
    """How many records the part is made of."""
    left = part.translate(None, _CHANGING)
    count, odd = divmod(len(left), len(outline.text) + 1)
    if odd or left != b",".join([outline.text] * count) + (b"]" if last else b","):
        raise _IrregularError
    return count


def _without(part: bytes, spans: list[tuple[int, int]]) -> bytes:
    """The part with these spans blanked: exponents, whose letters are not of the outline."""
    if not spans:
        return part
    text = bytearray(part)
    for start, stop in spans:
        text[start:stop] = b" " * (stop - start)
    return bytes(text)


def _without_strings(part: bytes, outline: _Outline) -> tuple[bytes, Array, Array]:
    """(the part with empty run lengths, their characters, how many each has)."""
    data = np.frombuffer(part, np.uint8)
    quotes = np.flatnonzero(data == 34)
    if len(quotes) % outline.quotes:
        raise _IrregularError
    quotes = quotes.reshape(-1, outline.quotes)
    begin, end = quotes[:, outline.counts] + 1, quotes[:, outline.counts + 1]
    length = end - begin
    spans = list(zip(begin.tolist(), end.tolist(), strict=True))
    text = b"".join([part[i:j] for i, j in spans])
    places = [0, *end.tolist()]
    rest = b"".join([part[i:j] for i, j in zip(places, [*begin.tolist(), len(part)], strict=True)])
    slashes = np.flatnonzero(data == 92)
    if len(slashes):  # in JSON a backslash is written twice; no other escape is a run length
        if len(slashes) % 2 or b"\\" in rest:
            raise _IrregularError
        first, second = slashes.reshape(-1, 2).T
        if (second != first + 1).any():
            raise _IrregularError
        text = text.replace(b"\\\\", b"\\")
        length = length - np.diff(np.searchsorted(first, np.append(begin, len(data))))
    return rest, np.frombuffer(text, np.uint8), length


# Numbers.

_NO_INTEGER = np.iinfo(np.int64).min
_TENS = 10.0 ** np.arange(23)  # exact
_WHOLE_TENS = np.array([10**n for n in range(20)], np.uint64)
_PAD = 24


def _numbers(part: bytes) -> tuple[Array, Array, list[tuple[int, int]]]:
    """(all numbers of a part as float64, and as int64 where they are written as integers; where exponents are)."""
    data = np.frombuffer(b" " * _PAD + part + b" " * 8, np.uint8)
    digit = data - np.uint8(48) < 10
    edge = np.flatnonzero(digit[1:] != digit[:-1]) + 1
    first, last = edge[::2], edge[1::2]
    before = data[first - 1]
    decimals = before == 46
    power = _in_exponent(data, first, before)
    head = np.flatnonzero(~(decimals | power))
    begin, end = first[head], last[head]
    following = np.append(decimals, False)[head + 1]
    fraction = head[following] + 1
    if following.sum() != decimals.sum() or (first[fraction] != last[head[following]] + 1).any():
        raise _IrregularError
    negative = data[begin - 1] == 45
    if np.count_nonzero(data == 45) - np.count_nonzero(data[first[power] - 1] == 45) != negative.sum():
        raise _IrregularError
    if np.count_nonzero(data == 46) != len(fraction):
        raise _IrregularError
    words = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))  # the eight characters from each place on
    whole = _integers(words, begin, end)
    long = end - begin > 19
    places = np.zeros(len(head), np.int64)
    if len(fraction):
        slot = np.flatnonzero(following)
        length = last[fraction] - first[fraction]
        tail = _integers(words, first[fraction], last[fraction])
        places[slot] = length
        short = np.minimum(length, 19)
        long[slot] |= (length > 19) | ((end - begin)[slot] + length > 19) & (whole[slot] > 0)
        tail += whole[slot] * _WHOLE_TENS[short]
        digits = whole.copy()
        digits[slot] = tail
    else:
        digits = whole
    value, doubtful = _quotient(digits, np.minimum(places, 22))
    doubtful |= long
    exponent = np.zeros(len(head), bool)
    if power.any():
        exponent[np.searchsorted(begin, first[power]) - 1] = True
    value[negative] *= -1
    for i in np.flatnonzero(doubtful | exponent).tolist():
        start, stop = int(begin[i]) - int(negative[i]), int(begin[i])
        while data[stop] not in b",]}" + _BLANK:
            stop += 1
        try:
            value[i] = float(data[start:stop].tobytes())
        except ValueError:
            raise _IrregularError from None
    integer = np.where(negative, -whole.astype(np.int64), whole.astype(np.int64))
    integer[(places > 0) | exponent | (end - begin > 18)] = _NO_INTEGER
    spans = []
    for start, stop, letter in zip(first[power].tolist(), last[power].tolist(), before[power].tolist(), strict=True):
        spans.append((start - (2 if letter in b"+-" else 1) - _PAD, stop - _PAD))
    return value, integer, spans


def _in_exponent(data: Array, first: Array, before: Array) -> Array:
    """Which runs of digits are exponents."""
    letter = (before == 101) | (before == 69)
    signed = np.flatnonzero((before == 43) | (before == 45))
    sign_after = data[first[signed] - 2]
    letter[signed] |= (sign_after == 101) | (sign_after == 69)
    return letter


def _integers(words: Array, first: Array, last: Array) -> Array:
    """The integers that digits first .. last - 1 spell, uint64, modulo 2^64; of up to 24 digits the last 24."""
    length = last - first
    value = _eight(words, last, np.minimum(length, 8))
    for more in (8, 16):
        longer = np.flatnonzero(length > more)
        if len(longer):
            upper = _eight(words, last[longer] - more, np.minimum(length[longer] - more, 8))
            value[longer] += upper * _WHOLE_TENS[more]
    return value


def _eight(words: Array, last: Array, length: Array) -> Array:
    """Up to eight digits that end before ``last``: eight characters at once, of which the earlier ones are cleared;
    then neighbours join to pairs, pairs to fours, fours to eight."""
    word = words[last - 8].astype(np.uint64, copy=False)
    kept = np.uint64(0x0F0F0F0F0F0F0F0F) << (8 * (8 - length)).astype(np.uint64)
    word &= kept
    word *= np.uint64(2561)
    word >>= np.uint64(8)
    word &= np.uint64(0x00FF00FF00FF00FF)
    word *= np.uint64(6553601)
    word >>= np.uint64(16)
    word &= np.uint64(0x0000FFFF0000FFFF)
    word *= np.uint64(42949672960001)
    word >>= np.uint64(32)
    return word


def _quotient(digits: Array, places: Array) -> tuple[Array, Array]:
    """(digits / 10^places rounded to nearest, which of them are too close to a tie to be sure)."""
    tens = _TENS[places]
    high = digits.astype(np.float64)
    value = high / tens
    doubtful = np.zeros(len(digits), bool)
    wide = np.flatnonzero(digits >> np.uint64(53) > 0)
    if len(wide):
        high, tens, quotient = high[wide], tens[wide], value[wide]
        low = (digits[wide] - high.astype(np.uint64)).astype(np.int64).astype(np.float64)
        product, error = _product(quotient, tens)
        correction = ((high - product) - error + low) / tens
        total = quotient + correction
        left = correction - (total - quotient)
        half = np.spacing(total) / 2
        doubtful[wide] = (np.abs(np.abs(left) - half) < half * 1e-9) | (np.frexp(total)[0] == 0.5)
        value[wide] = total
    return value, doubtful


def _product(a: Array, b: Array) -> tuple[Array, Array]:
    """a * b and its rounding error, exactly (Dekker)."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _split(a: Array) -> tuple[Array, Array]:
    big = a * 134217729.0  # 2^27 + 1
    high = big - (big - a)
    return high, a - high
