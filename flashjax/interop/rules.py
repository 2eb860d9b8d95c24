"""What a model family declares about its weights elsewhere: a `Table` of rules, a line for each module.

Paths are the "/"-joined keys of the tree below `params` (`stage_0/block_1/attn/qkv/kernel`); leaves of other
collections keep the collection's name in front. `{i}` in a path is a number; in a torch name `{i}` and `{i+1}`
stand for that number and the next.

Rules are written as if no layer were scanned. A table that says where scanned layers lie (`Table.stacks`) is read and
written for both kinds of parameters, those of one layer after the other and those stacked along a first dim.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flashjax.interop.paths import fill
from flashjax.interop.transforms import CONV, KEEP, LINEAR, Fuse, Transform

State = Mapping[str, Any]
"""Torch names to arrays or tensors."""


@dataclass(frozen=True)
class Share:
    """One of several equal parts of a torch tensor: the rest of it are other leaves.

    Where `Fuse` makes one leaf of several tensors, this makes several leaves of one tensor. Every part must be a leaf
    of the model.
    """

    name: str
    part: int
    parts: int
    axis: int = 0
    """The dim of the torch tensor along which the parts lie."""

    def cut(self, tensor: np.ndarray) -> np.ndarray:
        """The part; ValueError where the tensor has no such dim or it does not divide."""
        if not -tensor.ndim <= self.axis < tensor.ndim:
            raise ValueError(f"{self.name}: no dim {self.axis} in {tensor.shape}")
        return np.split(tensor, self.parts, axis=self.axis)[self.part]

    def whole(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the tensor by that of the part."""
        sizes = list(shape)
        sizes[self.axis] *= self.parts
        return tuple(sizes)


@dataclass(frozen=True)
class Place:
    """The torch tensors that hold one leaf, in order, and the way there and back."""

    names: tuple[str, ...]
    transform: Transform
    share: Share | None = None
    """Which part of its one tensor; None: all of it."""

    def to_flax(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        """The leaf. Raises ValueError for tensors so misshapen that there is none."""
        return self.transform.to_flax([self.share.cut(tensor) for tensor in tensors] if self.share else tensors)

    def shapes(self, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """The tensors by name, as shapes, for a leaf of this shape."""
        pieces = [piece.shape for piece in self.transform.to_torch(stand_in(shape))]
        if self.share:
            pieces = [self.share.whole(piece) for piece in pieces]
        return dict(zip(self.names, pieces, strict=True))


@dataclass(frozen=True)
class Rule:
    """Where each layout keeps the leaves whose path matches `path`. A layout that is left out has no such leaf."""

    path: str
    places: Mapping[str, Place]

    def at(self, path: str, layout: str) -> Place | None:
        """The place of the leaf `path` in `layout`, its numbers filled in; None where this rule does not apply."""
        match = re.fullmatch(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(self.path)), path)
        if match is None or layout not in self.places:
            return None
        numbers = {key: int(value) for key, value in match.groupdict().items()}
        place = self.places[layout]
        return replace(place, names=tuple(fill(name, numbers) for name in place.names))


@dataclass(frozen=True)
class Layout:
    """What tells one way of naming torch tensors from another."""

    anchor: str
    """A name that every state of this layout has; what stands before it in a state is the prefix of all names."""
    prefix: str = ""
    """The prefix to write."""
    outside: tuple[str, ...] = ()
    """Beginnings of the names that stand beside that prefix, not under it."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of names that may be there and are no parameters of the model."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Names that may be there and then equal another tensor, whose name is given: tied weights. They are written."""

    def written(self, name: str) -> str:
        """The name of a rule as it is written to a state."""
        return name if name.startswith(self.outside) else self.prefix + name

    def select(self, state: State, prefix: str) -> tuple[dict[str, Any], list[str]]:
        """The tensors of a state by the names of the rules, and a line for each tensor that belongs to nothing."""
        outer = prefix.removesuffix(self.prefix)
        found, strangers = {}, []
        for full, value in state.items():
            name = full.removeprefix(outer)
            inside = not name.startswith(self.outside)
            if inside:
                name = full.removeprefix(prefix)
            if any(re.fullmatch(pattern, name) for pattern in self.ignored):
                continue
            if full.startswith(prefix if inside else outer):
                found[name] = value
            else:
                strangers.append(f"{full}: found {tuple(value.shape)}")
        return found, strangers


Lookup = Callable[[str], tuple[int, ...] | None]
"""From the path of a leaf to the shape it would have by what the state holds; None where the state has no such leaf."""


@dataclass(frozen=True)
class Table:
    """All that one model family declares about its weights elsewhere."""

    layouts: Mapping[str, Layout]
    rules: Sequence[Rule]
    explain: Callable[[Lookup, Collection[str]], list[str]]
    """Sentences that name the fix, for a state (what it holds, its names) that does not fit the model."""
    stacks: Mapping[str, str] = field(default_factory=dict)
    """Scanned modules: from where they lie (`layers`) to where each layer would without the scan (`layer_{i}`)."""

    def place(self, path: str, layout: str) -> Place | None:
        """Where `layout` keeps the leaf `path`; None where it has no such leaf."""
        return next((place for rule in self.rules if (place := rule.at(path, layout))), None)


Names = str | tuple[str, ...] | Share


def tensor(path: str, transform: Transform = KEEP, /, **names: Names) -> list[Rule]:
    """One leaf, by layout its torch name; several names are fused along the last dim, a `Share` is cut."""

    def place(given: Names) -> Place:
        if isinstance(given, Share):
            return Place((given.name,), transform, given)
        if isinstance(given, str):
            return Place((given,), transform)
        return Place(given, Fuse(len(given), transform))

    return [Rule(path, {layout: place(given) for layout, given in names.items()})]


def _module(leaves: Mapping[str, tuple[str, Transform]]) -> Callable[..., list[Rule]]:
    def rules(path: str, **names: Names) -> list[Rule]:
        """One rule for each leaf of the module at `path`; a leaf that the model lacks is never asked for."""

        def with_suffix(given: Names, suffix: str) -> Names:
            if isinstance(given, Share):
                return replace(given, name=f"{given.name}.{suffix}")
            if isinstance(given, str):
                return f"{given}.{suffix}"
            return tuple(f"{name}.{suffix}" for name in given)

        return [
            rule
            for leaf, (suffix, transform) in leaves.items()
            for rule in tensor(
                f"{path}/{leaf}",
                transform,
                **{layout: with_suffix(given, suffix) for layout, given in names.items()},
            )
        ]

    return rules


linear = _module({"kernel": ("weight", LINEAR), "bias": ("bias", KEEP)})
linear_untransposed = _module({"kernel": ("weight", KEEP), "bias": ("bias", KEEP)})  # `Conv1D` of transformers
conv = _module({"kernel": ("weight", CONV), "bias": ("bias", KEEP)})
norm = _module({"scale": ("weight", KEEP), "bias": ("bias", KEEP)})
_running = _module({"mean": ("running_mean", KEEP), "var": ("running_var", KEEP)})


def batch_norm(path: str, **names: Names) -> list[Rule]:
    """The rules of a batch norm: scale and bias, and its running statistics in the collection "batch_stats"."""
    return norm(path, **names) + _running(f"batch_stats/{path}", **names)


def stand_in(shape: Sequence[int]) -> np.ndarray:
    """An array of this shape that takes no memory, to learn what a transform does to shapes."""
    return np.broadcast_to(np.zeros((), np.bool_), shape)
