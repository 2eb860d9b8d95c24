"""Decimal numbers in text, read as columns, to the last bit as `float` reads them.

Their digits make an integer of up to 64 bits, and the quotient by the power of ten is rounded once, with the remainder
in hand. The few that are too close to call, too long or have an exponent are given to `float` itself.
"""

import numpy as np

Array = np.ndarray


class IrregularError(Exception):
    """The text is not as regular as it must be to be read as columns."""


NO_INTEGER = np.iinfo(np.int64).min
_TENS = 10.0 ** np.arange(23)  # exact
_WHOLE_TENS = np.array([10**n for n in range(20)], np.uint64)
_KEPT = np.array([sum(0x0F << 8 * (7 - i) for i in range(n)) for n in range(9)], np.uint64)  # of the last n characters
_PAD = 24


def read_numbers(part: bytes) -> tuple[Array, Array, list[tuple[int, int]]]:
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
    # A run of decimals follows the point that ends a number's head.
    stray = (decimals | power)[:-1] | (first[1:] - last[:-1] != 1)
    if (decimals[1:] & stray).any() or decimals[:1].any():
        raise IrregularError
    negative = data[begin - 1] == 45
    if np.count_nonzero(data == 45) - np.count_nonzero(data[first[power] - 1] == 45) != negative.sum():
        raise IrregularError
    if np.count_nonzero(data == 46) != len(fraction):
        raise IrregularError
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
        if length.max() + (end - begin).max() > 19:
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
        while data[stop] not in b",]} \t\r\n":
            stop += 1
        try:
            value[i] = float(data[start:stop].tobytes())
        except ValueError:
            raise IrregularError from None
    integer = np.where(negative, -whole.astype(np.int64), whole.astype(np.int64))
    integer[(places > 0) | exponent | (end - begin > 18)] = NO_INTEGER
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
    word &= _KEPT.take(length)
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
    if len(digits) and digits.max() >> np.uint64(53):
        wide = np.flatnonzero(digits >> np.uint64(53) > 0)
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
