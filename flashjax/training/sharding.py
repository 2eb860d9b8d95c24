"""Where parameters live: an ordered list of (path regex -> policy), first match wins, resolved to a table.

The same rules place gradients, optimizer moments and averages, because their paths end in the parameter's path.
Activations are placed by the names of their dims (`ACTIVATIONS`).
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flashjax.training.mesh import BATCH_AXES

Policy = Callable[[tuple[int, ...], Mesh], PartitionSpec]
Function = TypeVar("Function", bound=Callable[..., Any])

ACTIVATIONS: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", BATCH_AXES),  # examples: each device computes its own
    ("heads", "tensor"),  # attention heads: what columns of qkv make and rows of proj take
    ("mlp", "tensor"),  # hidden units: what columns of fc1 make and rows of fc2 take
    ("embed", None),  # channels of the residual stream: whole, so that norms need no talk
    ("height", None),  # of a map
    ("width", None),  # of a map
    ("window", None),  # windows of a map
    ("token", None),  # tokens of a window
    ("length", "sequence"),  # tokens of a sequence: the axis must divide them
    ("vocab", None),  # classes or words: logits are whole
)
"""The ten names that a model may give to a dim, ``flax.linen.with_logical_constraint(x, ("batch", None, "embed"))``,
and the mesh axes that split it; ``None``: whole on each device of its batch shard."""

SMALL = 2**14
"""Tensors of fewer elements stay whole under ``fsdp``: a gather of them costs more than it saves."""
LARGE_BYTES = 16 * 2**20
"""A tensor above this left replicated on a mesh that could split it is taken for an accident."""


class ShardingError(ValueError):
    """A rule that matches nothing, a dim that does not divide, a large tensor replicated by accident."""


def replicate(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Every device holds the whole tensor."""
    del shape, mesh
    return PartitionSpec()


def fsdp(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The largest dim that the ``fsdp`` axis divides; small tensors stay whole."""
    return _fill_fsdp([None] * len(shape), shape, mesh)


def tensor_parallel(dim: int) -> Policy:
    """``dim`` over ``tensor``, then ``fsdp`` over the largest free dim that divides.

    A ``dim`` below 0 counts from the last, so that one rule holds for a kernel and for a stack of them.

    Raises (when resolved):
        ShardingError: if the ``tensor`` axis does not divide that dim.
    """

    def policy(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        spec: list[str | None] = [None] * len(shape)
        size = mesh.shape["tensor"]
        if size > 1:
            if shape[dim] % size:
                raise ShardingError(
                    f"dim {dim % len(shape)} of size {shape[dim]} does not divide over the tensor axis of size {size}: "
                    f"choose mesh.tensor among the divisors of {shape[dim]}, or give this path a rule of its own"
                )
            spec[dim] = "tensor"
        return _fill_fsdp(spec, shape, mesh)

    policy.__name__ = f"tensor_parallel({dim})"
    return policy


def _fill_fsdp(spec: list[str | None], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    size = mesh.shape["fsdp"]
    if size > 1 and int(np.prod(shape)) >= SMALL:
        free = [d for d in range(len(shape)) if spec[d] is None and shape[d] % size == 0]
        if free:
            spec[max(free, key=lambda d: shape[d])] = "fsdp"
    while spec and spec[-1] is None:
        spec = spec[:-1]
    return PartitionSpec(*spec)


@dataclass(frozen=True)
class Rule:
    """``pattern`` is searched (``re.search``) in the '/'-joined path."""

    pattern: str
    policy: Policy
    accept_unmatched: bool = False
    """A rule shared by several models may match nothing in one of them."""
    accept_replicated: bool = False
    """A large tensor left whole by this rule is meant so."""


Rules = Sequence[Rule]
FSDP_RULES: Rules = (Rule(r".*", fsdp),)


def path_string(path: tuple[Any, ...]) -> str:
    """'/'-joined names of a key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _match(rules: Rules, path: str) -> Rule:
    for rule in rules:
        if re.search(rule.pattern, path):
            return rule
    raise ShardingError(f"no sharding rule matches '{path}': end the rules with Rule(r'.*', fsdp) or replicate")


def shardings_for(tree: Any, rules: Rules, mesh: Mesh, params: Any = None) -> Any:
    """``NamedSharding`` for each leaf of a tree of arrays or ``ShapeDtypeStruct``.

    Where ``params`` are given, leaves whose path ends in a parameter's but that have another shape (an optimizer's
    factored or summed moments) are placed by ``fsdp``: the parameter's rule speaks of other dims.

    Raises:
        ShardingError: if no rule matches a path or a policy cannot split its tensor.
    """

    shapes = {path_string(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_string(path)
        if not leaf.shape:
            return NamedSharding(mesh, PartitionSpec())
        of = next((at for at in range(len(path)) if path_string(path[at:]) in shapes), None)
        if of is not None and shapes[path_string(path[of:])] != tuple(leaf.shape):
            return NamedSharding(mesh, fsdp(tuple(leaf.shape), mesh))
        try:
            return NamedSharding(mesh, _match(rules, name).policy(tuple(leaf.shape), mesh))
        except ShardingError as error:
            raise ShardingError(f"{name} {tuple(leaf.shape)}: {error}") from None

    return jax.tree_util.tree_map_with_path(one, tree)


def reasons(tree: Any, rules: Rules, mesh: Mesh) -> dict[str, str]:
    """Why each leaf lies where `shardings_for` puts it, by its path: the policy, its pattern, what it did.

    For example "tensor_parallel(1) 'mlp/fc1/kernel$': dim 1 over tensor, dim 0 over fsdp" or
    "fsdp: small, left whole".
    """
    return {
        path_string(path): _reason(_match(rules, path_string(path)), tuple(leaf.shape), mesh)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _reason(rule: Rule, shape: tuple[int, ...], mesh: Mesh) -> str:
    if not shape:
        return "scalar: whole"
    name = getattr(rule.policy, "__name__", "policy").replace("<lambda>", "policy")
    axes = tuple(rule.policy(shape, mesh))
    did = [f"dim {d} over {a if isinstance(a, str) else '+'.join(a)}" for d, a in enumerate(axes) if a is not None]
    size = mesh.shape["fsdp"]
    if size > 1 and "fsdp" not in axes and (rule.policy is fsdp or name.startswith(tensor_parallel.__name__)):
        left = "left whole" if not did else "not over fsdp"
        did.append(f"{'small' if int(np.prod(shape)) < SMALL else f'no free dim divides by fsdp {size}'}, {left}")
    pattern = "" if rule.pattern == ".*" else f" '{rule.pattern}'"
    return f"{name}{pattern}: {', '.join(did) or 'whole'}"


def on_mesh(function: Function, mesh: Mesh) -> Function:
    """`function` whose logical constraints hold on `mesh` when it is traced; itself where the mesh is one device of the
    process's own platform. A plan's is of another, which functions may ask for (`flashjax.ops.platform`)."""
    if mesh.size == 1 and mesh.devices.flat[0].platform == jax.default_backend():
        return function

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        # Flax looks for an abstract mesh; `with mesh` alone would leave every constraint out, without a word.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(ACTIVATIONS):
            return function(*args, **kwargs)

    return traced  # type: ignore[return-value]


def lint(params: Any, rules: Rules, mesh: Mesh) -> None:
    """Refuses what is likely an accident; each message names the fix.

    Raises:
        ShardingError: listing every rule that is never the first to match, and every tensor over 16 MiB that stays
            whole although the mesh has an ``fsdp`` or ``tensor`` axis.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    used: set[int] = set()
    whole: list[str] = []
    splits = mesh.shape["fsdp"] * mesh.shape["tensor"] > 1
    for path, leaf in leaves:
        name = path_string(path)
        rule = _match(rules, name)
        used.add(id(rule))
        size = int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        spec = rule.policy(tuple(leaf.shape), mesh) if leaf.shape else PartitionSpec()
        if splits and size > LARGE_BYTES and not any(spec) and not rule.accept_replicated:
            whole.append(f"{name} {tuple(leaf.shape)} ({size / 2**20:.1f} MiB) by rule '{rule.pattern}'")
    problems = [
        f"rule '{rule.pattern}' is the first match of no parameter: remove it, move it up, or set accept_unmatched=True"
        for rule in rules
        if id(rule) not in used and not rule.accept_unmatched
    ]
    if whole:
        problems.append(
            "large tensors left replicated (split them with fsdp or tensor_parallel, or set accept_replicated=True): "
            + "; ".join(whole)
        )
    if problems:
        raise ShardingError("\n".join(problems))
