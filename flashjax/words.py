"""Words for messages."""

import difflib
from collections.abc import Iterable


def nearest(word: str, choices: Iterable[str], count: int = 3, cutoff: float = 0.0) -> str:
    """Up to ``count`` of the choices with commas between: those that begin with the word, then the most like it.

    Of the latter those alone whose likeness (`difflib`) is at least ``cutoff``, from 0 to 1; '' where there are none.
    """
    choices = list(choices)
    longer = sorted(choice for choice in choices if choice.startswith(word))
    close = difflib.get_close_matches(word, choices, n=count, cutoff=cutoff)
    return ", ".join(list(dict.fromkeys([*longer, *close]))[:count])
