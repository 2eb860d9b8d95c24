"""Token mixers by name: `get("softmax")`, `get("performer", features=128)`.

Adding one: its file, its row in `_CLASSES`, its row in the tests' table.
"""

import dataclasses
import json
import typing
from typing import Any

from flashjax.layers.attention.base import Mixer
from flashjax.layers.attention.bigbird import BigBird
from flashjax.layers.attention.cosformer import Cosformer
from flashjax.layers.attention.delta_net import DeltaNet
from flashjax.layers.attention.dilated import Dilated
from flashjax.layers.attention.efficient import Efficient
from flashjax.layers.attention.fixed import Fixed
from flashjax.layers.attention.gated_delta_net import GatedDeltaNet
from flashjax.layers.attention.gla import GLA
from flashjax.layers.attention.katharopoulos import Katharopoulos
from flashjax.layers.attention.linformer import Linformer
from flashjax.layers.attention.longformer import Longformer
from flashjax.layers.attention.mamba2 import Mamba2
from flashjax.layers.attention.nystromformer import Nystromformer
from flashjax.layers.attention.performer import Performer
from flashjax.layers.attention.retnet import RetNet
from flashjax.layers.attention.sliding_window import SlidingWindow
from flashjax.layers.attention.softmax import Softmax
from flashjax.layers.attention.strided import Strided
from flashjax.layers.attention.taylor import Taylor
from flashjax.words import nearest

__all__ = ["Mixer", "get", "names", "parse"]

_CLASSES: tuple[type[Mixer], ...] = (
    Softmax,  # all pairs
    Katharopoulos,  # features of queries and keys
    Efficient,
    Taylor,
    Cosformer,
    Performer,
    RetNet,  # a state that decays
    GLA,
    Mamba2,
    DeltaNet,  # a state that is corrected
    GatedDeltaNet,
    Linformer,  # keys and values projected along the sequence
    Nystromformer,  # landmarks
    SlidingWindow,
    Dilated,  # a window with gaps, by head
    Strided,  # the Sparse Transformer's two
    Fixed,
    Longformer,  # window and global tokens
    BigBird,  # window, random and global blocks
)
_MIXERS = {mixer.name: mixer for mixer in _CLASSES}


def names() -> list[str]:
    """The known mixers, in the order of the table."""
    return list(_MIXERS)


def get(name: str, **options: Any) -> Mixer:
    """The mixer `name` with some of its options changed.

    Raises ValueError for an unknown name or option and says which are nearest.
    """
    if name not in _MIXERS:
        raise ValueError(f"unknown mixer {name!r}; nearest: {nearest(name, _MIXERS)}")
    fields = [field.name for field in dataclasses.fields(_MIXERS[name])]
    for key in options:
        if key not in fields:
            near = f"nearest: {nearest(key, fields)}" if fields else "it has none"
            raise ValueError(f"mixer {name!r} has no option {key!r}; {near}")
    return _MIXERS[name](**options)


def parse(name: str, text: str) -> Mixer:
    """`get` from a line of text, as configurations hold it: 'features=128, kernel=relu'.

    Raises ValueError as `get` does, for a word that is not NAME=VALUE, and for a value of another type.
    """
    options: dict[str, Any] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not (key and equals and value):
            raise ValueError(f"mixer option {word!r} is not NAME=VALUE")
        options[key] = _value(value)
    fields = typing.get_type_hints(type(get(name)))
    for key, value in options.items():
        kinds = typing.get_args(fields.get(key)) or (fields.get(key, type(value)),)
        if float in kinds and type(value) is int:
            options[key] = float(value)
        elif type(value) not in kinds:
            words = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
            raise ValueError(f"mixer {name!r}: {key}={value!r} must be of type {words}")
    return get(name, **options)


def _value(text: str) -> Any:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        return text
