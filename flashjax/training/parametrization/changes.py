"""Changes of single values of a table, as the command line writes them."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from flashjax.layers.initializers import DISTRIBUTIONS
from flashjax.training.optimizers.groups import check_found
from flashjax.training.parametrization.table import Leaf, ParametrizationError, Table

_FIELDS = tuple(field.name for field in dataclasses.fields(Leaf))


def change(table: Table, sentences: Sequence[str]) -> dict[str, Leaf]:
    """`table` after each "PATTERN FIELD=VALUE FIELD=VALUE ...", in order, on all paths in which PATTERN is found.

    For example "head/kernel$ distribution=zeros learning_rate=0.1". With a distribution that has no deviation, that of
    the table goes.

    Raises ValueError for another sentence than that, and for a pattern that is found in no path, with the nearest.
    """
    table = dict(table)
    for sentence in sentences:
        pattern, *words = sentence.split()
        values = dict(_value(word, sentence) for word in words)
        if not values:
            raise ParametrizationError(f"parametrization.rules {sentence!r} changes nothing: add FIELD=VALUE")
        if values.get("distribution", "normal") not in DISTRIBUTIONS:
            values.setdefault("std", None)
        check_found("parametrization.rules", [pattern], table)
        for path in table:
            if re.search(pattern, path):
                table[path] = dataclasses.replace(table[path], **values)
    return table


def _value(word: str, sentence: str) -> tuple[str, Any]:
    name, _, value = word.partition("=")
    if name not in _FIELDS:
        raise ParametrizationError(f"parametrization.rules {sentence!r}: {word!r} is no {'=, '.join(_FIELDS)}=")
    if name == "distribution":
        return name, value
    try:
        return name, float(value)
    except ValueError:
        raise ParametrizationError(f"parametrization.rules {sentence!r}: {word!r} wants a number") from None
