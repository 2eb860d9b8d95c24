"""The collectives of a compiled program, read from its HLO text: which, how often, over how many devices, how large.

They exist only after the partitioner has run: `jax.jit(step).lower(...).compile().as_text()`.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from flashjax.analysis import hlo as texts
from flashjax.analysis.hlo import Instruction, Module

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One collective instruction."""

    kind: str
    """One of `KINDS`."""
    name: str
    """Of the instruction, as in the HLO text."""
    bytes: int
    """What one device has when its group's pieces are together: the result, for reduce-scatter the operand."""
    group_size: int
    """Devices that exchange with each other; of a permutation, the pairs."""
    executions: int
    """Times that one run of the program executes it, loops counted."""
    group: tuple[int, ...] = ()
    """The first group, by number in the program's order of devices; of a permutation, its first pair."""
    op_name: str = ""
    """What JAX says that it comes from."""

    @property
    def wire_bytes(self) -> float:
        """Bytes that one device sends in one execution by a ring algorithm, which moves the least."""
        share = (self.group_size - 1) / self.group_size if self.group_size else 0.0
        match self.kind:
            case "all-reduce":
                return 2 * share * self.bytes
            case "collective-permute":
                return float(self.bytes)
            case _:
                return share * self.bytes


@dataclass(frozen=True)
class Total:
    """All executions of one kind."""

    count: int
    bytes: int
    wire_bytes: float


def collectives(hlo: str | Module, while_iterations: int = 1) -> list[Collective]:
    """The collectives of a compiled HLO module or of its text, in the order of the text.

    An asynchronous pair counts once, by its start. A loop's body counts as often as the compiler knows it to run,
    and `while_iterations` times where it does not; every branch of a conditional counts.

    Raises ValueError for a text without an entry computation.
    """
    module = texts.parse(hlo) if isinstance(hlo, str) else hlo
    executions = module.executions(while_iterations)
    return [
        found
        for name, instructions in module.computations.items()
        if name in executions
        for instruction in instructions
        if (found := collective(instruction, executions[name], module.devices))
    ]


def axes_of(group: Iterable[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ; `mesh` has their sizes, outermost first."""
    places = np.stack(np.unravel_index(list(group), tuple(mesh.values())), axis=1)
    return tuple(axis for axis, column in zip(mesh, places.T, strict=True) if len(set(column)) > 1)


def totals(found: Iterable[Collective]) -> dict[str, Total]:
    """Count and bytes by kind, in the order of `KINDS`; kinds that do not occur are left out."""
    by_kind: dict[str, list[Collective]] = defaultdict(list)
    for item in found:
        by_kind[item.kind].append(item)
    return {
        kind: Total(
            count=sum(c.executions for c in by_kind[kind]),
            bytes=sum(c.executions * c.bytes for c in by_kind[kind]),
            wire_bytes=sum(c.executions * c.wire_bytes for c in by_kind[kind]),
        )
        for kind in KINDS
        if kind in by_kind
    }


def collective(instruction: Instruction, executions: int, devices: int) -> Collective | None:
    """What an instruction exchanges, or None where it is no collective, or the end of an asynchronous one."""
    kind = instruction.base
    if kind not in KINDS:
        return None
    result, start = instruction.shape, instruction.opcode != kind
    if start and kind != "all-reduce":  # (operands, results, contexts...); an all-reduce's start has results alone
        elements = _elements(result)
        result = elements[1] if len(elements) > 1 else result
    group, members = _groups(instruction.line, devices)
    size = texts.shape_bytes(result)
    return Collective(
        kind=kind,
        name=instruction.name,
        bytes=size * group if kind == "reduce-scatter" else size,
        group_size=group,
        executions=executions,
        group=members,
        op_name=instruction.op_name,
    )


def _elements(tuple_shape: str) -> list[str]:
    """The elements of an outermost tuple; of anything else the thing itself."""
    if not tuple_shape.startswith("("):
        return [tuple_shape]
    parts, depth, begin = [], 0, 1
    for i, character in enumerate(tuple_shape):
        depth += (character in "([{") - (character in ")]}")
        if (character == "," and depth == 1) or depth == 0:
            parts.append(tuple_shape[begin:i])
            begin = i + 1
        if depth == 0:
            break
    return parts


def _groups(line: str, devices: int) -> tuple[int, tuple[int, ...]]:
    """(size, members of the first) of the groups, in any of the ways to write them; none means all devices.

    Ways: pairs, lists of ids, an iota, axes of a mesh. Of pairs the size is their number.
    """
    if found := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", line):
        pairs = re.findall(r"\{(\d+),(\d+)\}", found[1])
        moved = [(int(a), int(b)) for a, b in pairs if a != b]
        return len(pairs), moved[0] if moved else ()
    if found := re.search(r"replica_groups=\{\{([\d,\s]*)\}", line):
        members = tuple(int(i) for i in found[1].split(",") if i.strip())
        return len(members), members
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        dims = [int(n) for n in found[3].split(",")]
        ids = np.arange(math.prod(dims)).reshape(dims)
        if found[4]:
            ids = ids.transpose([int(n) for n in found[4].split(",")])
        return int(found[2]), tuple(ids.reshape(int(found[1]), int(found[2]))[0].tolist())
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\((.*?)\)\))?\s*\{([^}]*)\}", line):
        return _mesh_group(found[1], found[2], found[3])
    return devices, tuple(range(devices))


def _mesh_group(sizes: str, order: str | None, named: str) -> tuple[int, tuple[int, ...]]:
    """Of groups along axes of a mesh. A part of an axis is written 'axis':(what lies before it)its own size."""
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    shape = list(axes.values())
    taken = [(name, int(before or 1), int(part or axes[name])) for name, before, part in _PARTS.findall(named)]
    size = math.prod(part for _, _, part in taken)
    members = np.arange(math.prod(shape)).reshape(shape)
    if order is not None:
        iota = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+))?\)?", order.strip())
        if iota is None:
            return size, ()
        members = members.reshape([int(n) for n in iota[1].split(",")])
        if iota[2]:
            members = members.transpose([int(n) for n in iota[2].split(",")])
        members = members.reshape(shape)
    for name, before, part in taken:
        dim = list(axes).index(name)
        apart = members.shape[dim] // (before * part)  # what lies behind the part
        members = np.take(members, np.arange(part) * apart, axis=dim)
    others = [dim for dim, name in enumerate(axes) if name not in {name for name, _, _ in taken}]
    first = members[tuple(0 if dim in others else slice(None) for dim in range(len(shape)))]
    return size, tuple(first.reshape(-1).tolist())


_PARTS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
