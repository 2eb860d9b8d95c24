"""Which module of a model, and which pass of a step, an equation or an instruction belongs to, by its stack of names.

JAX writes the stack as 'jvp(Model)/stage_0/block_1/block_1.attend/attn/qkv', in HLO with 'jit(step)/' before it and the
primitive behind it; the backward pass stands under 'transpose(jvp(Model))'.
"""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

Pass = Literal["forward", "recomputed", "backward", "other"]
PASSES: tuple[Pass, ...] = ("forward", "recomputed", "backward", "other")
"""Of the model; `other` is what surrounds it, such as the optimizer."""

_CONTROL = frozenset({"while", "body", "cond", "scan", "closed_call", "checkpoint", "remat", "shard_map", "core_call"})
_WORD = re.compile(r"[A-Za-z_]\w*")


class Place(NamedTuple):
    """Where something is computed."""

    module: str
    """'/'-joined names below the model, 'stage_0/block_1/attn/qkv'; '' where nothing is named."""
    part: Pass


def place(stack: str) -> Place:
    """The place that a stack of names says, without its primitive."""
    differentiated = "jvp(" in stack
    if "rematted_computation" in stack or ("remat" in stack and "transpose(" not in stack and not differentiated):
        part: Pass = "recomputed"
    elif "transpose(" in stack:
        part = "backward"
    else:
        part = "forward" if differentiated else "other"
    names: list[str] = []
    for word in stack.split("/"):
        # 'Model.method' and 'block.method' repeat who is named already; 'BLnhd,BLmhd->BLhnm' is an einsum.
        if _WORD.fullmatch(word) and word not in _CONTROL and not re.fullmatch(r"branch_\d+_fun|rematted_\w+", word):
            names.append(word)
    return Place("/".join(names), part)


def place_in_hlo(op_name: str) -> Place:
    """The place of an instruction by its op_name; of a fusion of several the first."""
    first = op_name.split(";")[0]
    return place(first.rsplit("/", 1)[0]) if "/" in first else Place("", "other")


def above(module: str, depth: int) -> str:
    """The first `depth` names of a path."""
    return "/".join(module.split("/")[:depth])


def known(module: str, names: Iterable[str]) -> str:
    """The longest beginning of `module` among `names`, '' where there is none."""
    have, parts = set(names), module.split("/")
    for end in range(len(parts), 0, -1):
        if (path := "/".join(parts[:end])) in have:
            return path
    return ""
