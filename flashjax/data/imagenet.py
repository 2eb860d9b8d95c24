"""Facts about ImageNet: the 1000 classes in order, and where they sit in the 21841-class list.

The order of the 1000 classes is the one of ILSVRC2012 as every published classifier uses it: WordNet ids,
sorted. The names are the first WordNet lemma of each id, except for the two pairs that would share one (the
two cranes, the two maillots).
"""

from functools import cache
from importlib import resources

import numpy as np
from jaxtyping import Int


@cache
def _table() -> tuple[tuple[str, str], ...]:
    text = resources.files("flashjax.data").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    return tuple((wnid, name) for wnid, name in rows)


def wnids() -> tuple[str, ...]:
    """The 1000 WordNet ids in class order: `wnids()[0] == "n01440764"`."""
    return tuple(wnid for wnid, _ in _table())


def class_names() -> tuple[str, ...]:
    """The 1000 English names in class order, all different: `class_names()[0] == "tench"`."""
    return tuple(name for _, name in _table())


def head_22k_to_1k() -> Int[np.ndarray, "classes"]:
    """For each of the 1000 classes, its row in a 21841-class head of the official Swin models, int64.

    `head["kernel"][:, head_22k_to_1k()]` turns a pre-trained 22k head into a 1k head (official
    `data/map22kto1k.txt`). The official list is kept to the row, its oddity included: the 21841 classes have
    no teddy bear (class 850), and its entry points at row 5564, a garment that WordNet also calls a teddy.
    """
    text = resources.files("flashjax.data").joinpath("imagenet22k_to_1k.txt").read_text(encoding="utf-8")
    return np.array([int(line) for line in text.split()], dtype=np.int64)
