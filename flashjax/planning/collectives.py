"""The collectives of a compiled program, read from its HLO text: which, how often, over how many devices, how large.

They exist only after the partitioner has run: `jax.jit(step).lower(...).compile().as_text()`.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

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


def collectives(hlo: str, while_iterations: int = 1) -> list[Collective]:
    """The collectives of the text of a compiled HLO module, in the order of the text.

    An asynchronous pair counts once, by its start. A loop's body counts as often as the compiler knows it to run,
    and `while_iterations` times where it does not; every branch of a conditional counts.

    Raises ValueError for a text without an entry computation.
    """
    computations, entry = _computations(hlo)
    executions = _executions(computations, entry, while_iterations)
    devices = _devices(hlo)
    return [
        found
        for name, lines in computations.items()
        if name in executions
        for line in lines
        if (found := _collective(line, executions[name], devices))
    ]


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


_HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s+\(.*\)\s*->.*\{\s*$")
_OPCODE = re.compile(rf"\s({'|'.join(KINDS)})(-start)?\(")
_CALL = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLS = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Instruction lines by computation, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, lines = None, []
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            entry = name if header[1] else entry
            lines = computations.setdefault(name, [])
        elif "=" in line:
            lines.append(line)
    if entry is None:
        raise ValueError(
            "no ENTRY computation: pass the text of a compiled module, jitted.lower(...).compile().as_text()"
        )
    return computations, entry


def _executions(computations: dict[str, list[str]], entry: str, while_iterations: int) -> Counter[str]:
    """How often each computation that the entry reaches is run."""
    executions: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        executions[name] += times
        for line in computations.get(name, ()):
            if " async-update(" in line or " async-done(" in line:  # the start has called already
                continue
            trips = _TRIPS.search(line)
            repeats = int(trips[1]) if trips else while_iterations
            for how, callee in _CALL.findall(line):
                visit(callee, times * (repeats if how in ("body", "condition") else 1))
            for callees in _CALLS.findall(line):
                for callee in callees.split(","):
                    visit(callee.strip().lstrip("%"), times)

    visit(entry, 1)
    return executions


def _collective(line: str, executions: int, devices: int) -> Collective | None:
    """What an instruction's line says, or None where it is no collective."""
    opcode = _OPCODE.search(line)
    if opcode is None:
        return None
    kind, start = opcode[1], opcode[2]
    name, result = line[: opcode.start()].split("=", 1)
    result = re.sub(r"/\*.*?\*/", "", result).strip()
    if start and kind != "all-reduce":  # (operands, results, contexts...); an all-reduce's start has results alone
        elements = _elements(result)
        result = elements[1] if len(elements) > 1 else result
    size, group = sum(map(_bytes, _SHAPE.findall(result))), _group_size(line, devices)
    return Collective(
        kind=kind,
        name=name.replace("ROOT", "").strip().lstrip("%"),
        bytes=size * group if kind == "reduce-scatter" else size,
        group_size=group,
        executions=executions,
    )


_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]")


def _bytes(shape: tuple[str, str]) -> int:
    dtype, dims = shape
    bits = 8 if dtype == "pred" else int(found[1]) if (found := re.match(r"[a-z]+(\d+)", dtype)) else 0
    count = math.prod(int(dim.removeprefix("<=")) for dim in dims.split(",") if dim)
    return math.ceil(bits * count / 8)


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


def _group_size(line: str, devices: int) -> int:
    """From any of the ways to write groups: pairs, lists of ids, an iota, axes of a mesh; none means all devices."""
    if found := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", line):
        return found[1].count("{")
    if found := re.search(r"replica_groups=\{\{([\d,\s]*)\}", line):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\(.*?\)\))?\s*\{([^}]*)\}", line):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        # A part of an axis is written 'axis':(what lies before it)its own size.
        named = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part) if part else axes[name] for name, part in named)
    return devices


def _devices(hlo: str) -> int:
    counts = [re.search(rf"\b{name}=(\d+)", hlo.split("\n", 1)[0]) for name in ("num_partitions", "replica_count")]
    return math.prod(int(found[1]) for found in counts if found)
