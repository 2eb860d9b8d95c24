"""Conversion of parameters between Flax and torch by a declared table.

A `Table` is all that a model family writes down: for each leaf of its Flax tree, where each torch layout keeps it
and how it is turned (`Rule`), and how a layout is told from the others (`Layout`). The functions here do the rest:
recognise the layout of a state, read it, write it, and report everything that does not fit at once.

Paths are the "/"-joined keys of the tree below `params` (`stage_0/block_1/attn/qkv/kernel`); leaves of other
collections keep the collection's name in front. `{i}` in a path is a number; in a torch name `{i}` and `{i+1}`
stand for that number and the next.

Rules are written as if no layer were scanned. A table that says where scanned layers lie (`Table.stacks`) is read and
written for both kinds of parameters, those of one layer after the other and those stacked along a first dim.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

State = Mapping[str, Any]


class ConversionError(ValueError):
    """Weights that do not fit the model; the message lists every key that differs and the fixes that are known."""


class Transform(Protocol):
    """An invertible rearrangement between one Flax leaf and the torch tensors that hold the same numbers."""

    def to_flax(self, tensors: Sequence[np.ndarray]) -> np.ndarray: ...

    def to_torch(self, leaf: np.ndarray) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class Permute:
    """One tensor with its dims in another order: dim k of the torch tensor is dim `axes[k]` of the leaf."""

    axes: tuple[int, ...]

    def to_flax(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        (tensor,) = tensors
        return np.transpose(tensor, np.argsort(self.axes))

    def to_torch(self, leaf: np.ndarray) -> list[np.ndarray]:
        return [np.transpose(leaf, self.axes)]


@dataclass(frozen=True)
class Keep:
    """One tensor, the same in both."""

    def to_flax(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        (tensor,) = tensors
        return tensor

    def to_torch(self, leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf]


@dataclass(frozen=True)
class Fuse:
    """Several tensors of equal shape, each turned by `part`, side by side along the last dim of the leaf."""

    count: int
    part: Transform

    def to_flax(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([self.part.to_flax([tensor]) for tensor in tensors], axis=-1)

    def to_torch(self, leaf: np.ndarray) -> list[np.ndarray]:
        return [self.part.to_torch(piece)[0] for piece in np.split(leaf, self.count, axis=-1)]


@dataclass(frozen=True)
class Grid:
    """Position embeddings: [1, height * width, C] in Flax, a map [1, C, height, width] in torch."""

    height: int
    width: int

    def to_flax(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        (tensor,) = tensors
        return np.transpose(tensor, (0, 2, 3, 1)).reshape(1, self.height * self.width, -1)

    def to_torch(self, leaf: np.ndarray) -> list[np.ndarray]:
        return [np.transpose(leaf.reshape(1, self.height, self.width, -1), (0, 3, 1, 2))]


KEEP = Keep()
LINEAR = Permute((1, 0))  # [in, out] -> [out, in]
CONV = Permute((3, 2, 0, 1))  # HWIO -> OIHW


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
        pieces = [piece.shape for piece in self.transform.to_torch(_stand_in(shape))]
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
        return replace(place, names=tuple(_fill(name, numbers) for name in place.names))


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


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path, as the rules write paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    return {"/".join(str(key.key) for key in path).removeprefix("params/"): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any], collections: Collection[str]) -> dict[str, Any]:
    """The inverse of `flatten`, for variables that have these collections."""
    variables: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        if not parents or parents[0] not in collections:
            parents = ["params", *parents]
        node = variables
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return variables


def unstack(leaves: Mapping[str, Any], stacks: Mapping[str, str]) -> dict[str, Any]:
    """Leaves, or their shapes, with every scanned module taken apart into its layers (see `Table.stacks`)."""
    result: dict[str, Any] = {}
    for path, leaf in leaves.items():
        member = _member(path, stacks)
        if member is None or not leaf.shape:
            result[path] = leaf
        elif isinstance(leaf, jax.ShapeDtypeStruct):
            layer = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
            result.update((member(i), layer) for i in range(leaf.shape[0]))
        else:
            result.update((member(i), leaf[i]) for i in range(leaf.shape[0]))
    return result


def stack(leaves: Mapping[str, Any], paths: Collection[str], stacks: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The inverse of `unstack`: the leaves at `paths`, those of scanned modules put together from their layers.

    Raises ValueError for a path of which there is no layer, or whose layers differ in shape.
    """
    rest = dict(leaves)
    result: dict[str, np.ndarray] = {}
    for path in paths:
        member = _member(path, stacks)
        if member is None:
            result[path] = rest.pop(path)
            continue
        layers = []
        while member(len(layers)) in rest:
            # Taken out one by one, so that what is already stacked need not be held twice.
            layers.append(rest.pop(member(len(layers))))
        if not layers:
            raise ValueError(f"no layer {member(0)!r} to stack into {path!r}")
        result[path] = np.stack(layers)
        del layers
    return result


def read(table: Table, state: State, expected: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """The leaves of a model from a torch state whose layout is recognised by its names.

    Args:
        state: torch names to arrays; torch tensors on any device will do.
        expected: the shape and dtype of every leaf of the model, by path. A floating tensor of another precision
            is cast to that dtype.

    Raises:
        ConversionError: the layout is not recognised, or names or shapes differ from what the model needs.
    """
    layers = unstack(expected, table.stacks)
    layout, prefix, found, strangers = _recognise(table, state, layers)
    leaves, used = {}, set()
    # Dicts, since several leaves may share a tensor that is worth one line.
    missing, misshapen = {}, {}
    for path, want in layers.items():
        place = _place(table, path, layout)
        tensors = []
        for name, shape in place.shapes(want.shape).items():
            used.add(name)
            if name not in found:
                missing[name] = f"{name}: expected {shape}"
                continue
            array = to_numpy(found[name])
            if array.shape != shape:
                misshapen[name] = f"{name}: expected {shape}, found {array.shape}"
            elif not jnp.issubdtype(array.dtype, jnp.floating):
                misshapen[name] = f"{name}: expected floating-point {shape}, found {array.dtype}"
            else:
                tensors.append(array)
        if len(tensors) == len(place.names):
            # A copy in any case: the state may be a view of a file.
            leaves[path] = np.array(place.to_flax(tensors), dtype=want.dtype, order="C")
    differing = []
    for copy, of in table.layouts[layout].copies.items():
        if copy in found and copy not in used and of in found:
            if np.array_equal(to_numpy(found[copy]), to_numpy(found[of])):
                del found[copy]
            else:
                differing.append(f"{copy}: differs from {of}, of which the model makes it a copy")
                used.add(copy)
    unexpected = [name for name in found if name not in used]
    problems = {
        "missing": list(missing.values()),
        "unexpected": [f"{name}: found {tuple(found[name].shape)}" for name in unexpected] + strangers,
        "misshapen": list(misshapen.values()),
        "not tied": differing,
    }
    if any(problems.values()):
        hints = table.explain(lambda path: _found_shape(table, path, layout, found), list(state))
        under = f", names after {prefix!r}" if prefix else ""
        raise ConversionError(_report(f"the state ({layout} layout{under}) does not fit the model", problems, hints))
    return stack(leaves, expected, table.stacks)


def write(
    table: Table, layout: str, leaves: Mapping[str, Any], expected: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, np.ndarray]:
    """The torch state of a model in a named layout: the inverse of `read`, bit for bit.

    Raises:
        ConversionError: unknown layout, leaves that are not the model's, or a leaf the layout has no name for.
    """
    if layout not in table.layouts:
        raise ConversionError(f"unknown layout {layout!r}; known: {', '.join(table.layouts)}")
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    problems = {
        "missing": [f"{path}: expected {want.shape}" for path, want in expected.items() if path not in shapes],
        "unexpected": [f"{path}: found {shape}" for path, shape in shapes.items() if path not in expected],
        "misshapen": [
            f"{path}: expected {want.shape}, found {shapes[path]}"
            for path, want in expected.items()
            if shapes.get(path, want.shape) != want.shape
        ],
    }
    if any(problems.values()):
        hints = table.explain(_shapes_of_layers(leaves, table.stacks).get, list(shapes))
        raise ConversionError(_report("the variables do not fit the model", problems, hints))
    state: dict[str, np.ndarray] = {}
    shares: dict[str, dict[int, np.ndarray]] = {}
    how = table.layouts[layout]
    for path, leaf in unstack({path: np.asarray(leaf) for path, leaf in leaves.items()}, table.stacks).items():
        place = _place(table, path, layout)
        pieces = place.transform.to_torch(leaf)
        if (share := place.share) is None:
            state.update(
                (how.written(name), np.ascontiguousarray(array))
                for name, array in zip(place.names, pieces, strict=True)
            )
            continue
        (name,), (piece,) = place.names, pieces
        parts = shares.setdefault(name, {})
        parts[share.part] = piece
        if len(parts) == share.parts:
            whole = np.concatenate([parts[part] for part in range(share.parts)], axis=share.axis)
            state[how.written(name)] = np.ascontiguousarray(whole)
            del shares[name]
    if shares:
        raise ConversionError(f"the {layout} layout joins leaves that the model lacks into {', '.join(shares)}")
    state.update((how.written(copy), state[how.written(of)]) for copy, of in how.copies.items())
    return state


def to_numpy(value: Any) -> np.ndarray:
    """A numpy array from an array or a torch tensor; bfloat16, which torch does not hand to numpy, as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.asarray(value)


def _fill(name: str, numbers: Mapping[str, int]) -> str:
    """`layers.{i+1}.norm` and {"i": 2} -> `layers.3.norm`."""
    return re.sub(r"\{(\w+)(?:\+(\d+))?\}", lambda m: str(numbers[m[1]] + int(m[2] or 0)), name)


def _place(table: Table, path: str, layout: str) -> Place:
    place = table.place(path, layout)
    if place is None:
        raise ConversionError(f"the {layout} layout has no name for {path!r}")
    return place


def _stand_in(shape: Sequence[int]) -> np.ndarray:
    """An array of this shape that takes no memory, to learn what a transform does to shapes."""
    return np.broadcast_to(np.zeros((), np.bool_), shape)


def _member(path: str, stacks: Mapping[str, str]) -> Callable[[int], str] | None:
    """From the number of a layer to its path, for the path of a leaf of a scanned module; None for any other."""
    for stacked, layer in stacks.items():
        if path.startswith(f"{stacked}/"):
            rest = path.removeprefix(stacked)
            return lambda i: _fill(layer, {"i": i}) + rest
    return None


def _shapes_of_layers(leaves: Mapping[str, Any], stacks: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, np.float32) for path, leaf in leaves.items()}
    return {path: tuple(leaf.shape) for path, leaf in unstack(shapes, stacks).items()}


def _found_shape(table: Table, path: str, layout: str, found: State) -> tuple[int, ...] | None:
    place = table.place(path, layout)
    if place is None or not all(name in found for name in place.names):
        return None
    try:
        return place.to_flax([_stand_in(found[name].shape) for name in place.names]).shape
    except ValueError:  # so misshapen that the transform does not apply
        return None


def _recognise(table: Table, state: State, expected: Mapping[str, Any]) -> tuple[str, str, dict[str, Any], list[str]]:
    """The layout of a state, its prefix, its parameters by the names of the rules, and what belongs to nothing.

    Among the layouts whose anchor is there, the one that names the most of the model's leaves is meant.
    """
    best: tuple[int, str, str, dict[str, Any], list[str]] | None = None
    for name, layout in table.layouts.items():
        prefixes = {key[: -len(layout.anchor)] for key in state if f".{key}".endswith(f".{layout.anchor}")}
        if len(prefixes) > 1:
            raise ConversionError(
                f"the state holds several models, under {', '.join(map(repr, sorted(prefixes)))}; pass one of them"
            )
        if not prefixes:
            continue
        (prefix,) = prefixes
        found, strangers = layout.select(state, prefix)
        places = (table.place(path, name) for path in expected)
        covered = sum(key in found for place in places if place for key in place.names)
        if best is None or covered > best[0]:
            best = covered, name, prefix, found, strangers
    if best is None:
        anchors = ", ".join(f"{layout.anchor!r} ({name})" for name, layout in table.layouts.items())
        some = ", ".join(repr(key) for key in list(state)[:5]) or "nothing"
        raise ConversionError(f"no known layout: the state has none of {anchors}; it begins with {some}")
    return best[1:]


def _report(title: str, problems: Mapping[str, list[str]], hints: list[str]) -> str:
    lines = [title]
    for kind, entries in problems.items():
        if entries:
            lines.append(f"{kind} ({len(entries)}):")
            lines.extend(f"  {entry}" for entry in sorted(entries, key=_natural))
    return "\n".join(lines + hints)


def _natural(text: str) -> list[tuple[int, str]]:
    """A sort key by which block 9 comes before block 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]
