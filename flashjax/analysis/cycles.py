"""What the TPU compiler thinks that each instruction costs: its own estimates of cycles, along the schedule.

The compiler writes `estimated_cycles` into the text of a program. They are an estimate of an instruction alone on a
core, made to choose among fusions and tilings: not a measurement. It makes none for Pallas kernels, whose schedule or
bytes stand for them, for padding and reversals, whose bytes do, and for most collectives; some it does give cycles,
such as those of a large step on v5e. Instructions of a computation follow each other; a loop's are counted as often as
it runs, of a conditional the dearest branch counts.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from flashjax.analysis import kernels
from flashjax.analysis.collectives import KINDS as COLLECTIVES
from flashjax.analysis.hlo import Instruction, Module
from flashjax.analysis.modules import Place, place_in_hlo
from flashjax.analysis.traffic import traffic

KINDS = ("matmul", "copy", "reduction", "gather and scatter", "elementwise", "collective", "custom call", "other")
"""What an instruction mainly does; a `copy` changes place or order: copies, transpositions, slices, padding."""

_MATMUL = frozenset({"convolution", "dot", "ragged-dot"})
_REDUCTION = frozenset({"reduce", "reduce-window", "select-and-scatter", "sort", "topk"})
_INDEXED = frozenset({"gather", "scatter"})
_COPY = frozenset(
    {"copy", "transpose", "reshape", "slice", "concatenate", "pad", "reverse", "dynamic-slice", "dynamic-update-slice"}
)
_NOTHING = frozenset(
    {"bitcast", "parameter", "constant", "tuple", "get-tuple-element", "broadcast", "iota", "convert", "fusion"}
)
_FREE = _NOTHING - {"fusion", "broadcast", "iota", "convert"} | {
    *("after-all", "partition-id", "replica-id", "opt-barrier", "while", "conditional", "call"),
}
_ALLOCATE = 'custom_call_target="AllocateBuffer"'


@dataclass(frozen=True)
class Cost:
    """One instruction of the schedule, all its executions."""

    name: str
    opcode: str
    kind: str
    """One of `KINDS`."""
    cycles: int | None
    """Estimated, of one execution; None where the compiler makes no estimate."""
    executions: int
    place: Place
    source: str
    """'swin.py:183' of the innermost line of this project, or of the innermost; '' where the text has none."""
    bytes: int
    """Of its result."""
    shape: str
    traffic: int
    """Bytes that one execution reads from and writes to the device's main memory."""
    overlapped: bool
    """Runs beside others: the compiler starts it and waits for it later."""
    target: str = ""
    """Of a custom call."""
    scheduled: int | None = None
    """Cycles of one execution of a Pallas kernel by the compiler's schedule; None where it is not known."""
    chip_memory: int | None = None
    """Bytes of the chip's own memory that a custom call takes; None where the compiler does not say."""
    floor: int = 0
    """Cycles in which `traffic` can pass; 0 where the bandwidth is not known."""
    collectives: tuple[str, ...] = ()
    """Names of the collectives that it is or holds."""

    @property
    def total(self) -> int:
        """Cycles of all executions, 0 without an estimate."""
        return (self.cycles or 0) * self.executions

    @property
    def taken(self) -> int:
        """`total`; without an estimate its schedule or its floor, whichever is longer, but of collectives, which the
        links bound, and not the memory."""
        apart = self.cycles is None and self.kind != "collective"
        return max(self.scheduled or 0, self.floor) * self.executions if apart else self.total


def costs(
    module: Module,
    root: str | Path = "",
    while_iterations: int = 1,
    cache: int = 0,
    bundles: Mapping[str, int] = MappingProxyType({}),
    cores: int = 1,
    bytes_a_cycle: float = math.inf,
) -> list[Cost]:
    """What the instructions of a program's schedule cost, in the order of the schedule; inner ones of fusions are part
    of theirs. `root` is the directory whose lines are preferred as sources, `cache` that of `traffic`, `bundles` those
    of `kernels`, `cores` of a device, `bytes_a_cycle` its bandwidth."""
    found: list[Cost] = []

    def visit(name: str, times: int) -> list[Cost]:
        made, by_name = [], {i.name: i for i in module.computations.get(name, ())}
        for instruction in by_name.values():
            callees = instruction.calls
            if instruction.opcode == "while":
                trips = module.trips(name, instruction)
                turns = round(times * (while_iterations if trips is None else trips))
                for how, callee in callees:
                    if how in ("body", "condition"):
                        made += visit(callee, turns)
            elif instruction.opcode == "conditional":
                branches = [visit(callee, times) for _, callee in callees]
                made += max(branches, key=lambda costs: by(costs, lambda _: None).total(), default=[])
            elif instruction.opcode == "call":
                for _, callee in callees:
                    made += visit(callee, times)
            elif cost := _cost(module, instruction, by_name, times, str(root), cache, bundles, cores, bytes_a_cycle):
                made.append(cost)
        return made

    found += visit(module.entry, 1)
    return found


def _cost(
    module: Module,
    instruction: Instruction,
    by_name: Mapping[str, Instruction],
    times: int,
    root: str,
    cache: int,
    bundles: Mapping[str, int],
    cores: int,
    bytes_a_cycle: float,
) -> Cost | None:
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done") or _ALLOCATE in instruction.line:
        return None
    moved = traffic(module, instruction, by_name, cache)
    return Cost(
        name=instruction.name,
        opcode=instruction.opcode,
        kind=kind_of(module, instruction),
        cycles=instruction.cycles,
        executions=times,
        place=place_in_hlo(instruction.op_name),
        source=_source(module.source(instruction), root),
        bytes=instruction.bytes,
        shape=re.sub(r"\{[^}]*\}", "", instruction.shape),
        traffic=moved,
        overlapped=instruction.opcode.endswith("-start"),
        target=instruction.attribute("custom_call_target") if instruction.opcode == "custom-call" else "",
        scheduled=kernels.cycles(instruction, bundles, cores),
        chip_memory=kernels.chip_memory(instruction),
        floor=round(moved / bytes_a_cycle),
        collectives=tuple(i.name for i in _inside(module, instruction) if i.base in COLLECTIVES),
    )


def kind_of(module: Module, instruction: Instruction) -> str:
    """One of `KINDS`: of a fusion, by what is in it."""
    inside = {i.opcode for i in _inside(module, instruction)}
    base = instruction.base
    if base in COLLECTIVES or inside & set(COLLECTIVES):
        return "collective"
    if base == "custom-call":
        return "custom call"
    if inside & _MATMUL:
        return "matmul"
    if inside & _INDEXED:
        return "gather and scatter"
    if inside & _REDUCTION:
        return "reduction"
    rest = inside - _NOTHING
    if rest and rest <= _COPY | {"copy-start", "slice-start", "dynamic-slice-start", "async-start"}:
        return "copy"
    return "elementwise" if rest or "convert" in inside or "broadcast" in inside else "other"


def _inside(module: Module, instruction: Instruction) -> Iterable[Instruction]:
    """An instruction and what it calls, functions of reductions left out."""
    yield instruction
    for how, callee in instruction.calls:
        if how in ("calls", "called_computations"):
            for inner in module.computations.get(callee, ()):
                yield from _inside(module, inner)


def _source(lines: list[tuple[str, int]], root: str) -> str:
    own = next(((file, line) for file, line in lines if root and file.startswith(root)), None)
    file, line = own or next(iter(lines), ("", 0))
    short = file.removeprefix(root).lstrip("/") if own else Path(file).name
    return f"{short}:{line}" if file else ""


KeyT = TypeVar("KeyT", bound=Hashable)


def by(costs: Iterable[Cost], key: Callable[[Cost], KeyT]) -> Counter[KeyT]:
    """Cycles that are taken in all, overlapped ones left out, by what `key` says."""
    total: Counter[KeyT] = Counter()
    for cost in costs:
        if not cost.overlapped:
            total[key(cost)] += cost.taken
    return total


def worst(costs: Iterable[Cost], count: int = 10) -> list[Cost]:
    """The instructions that take most, the dearest first."""
    return sorted((c for c in costs if not c.overlapped), key=lambda c: -c.taken)[:count]
