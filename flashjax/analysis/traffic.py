"""Bytes that an instruction of a compiled program must move to and from a device's main memory."""

import re
from collections.abc import Mapping, Sequence

from flashjax.analysis.hlo import Instruction, Module, shape_bytes

_ARRAY = re.compile(r"[a-z]+\d*\w*\[[^\]]*\](?:\{[^}]*\})?")
_ELSEWHERE = re.compile(r"S\([1-9]\d*\)")  # a memory space other than 0, which is the main memory
_PARTS = frozenset({"slice", "dynamic-slice", "gather"})


def traffic(module: Module, instruction: Instruction, by_name: Mapping[str, Instruction], cache: int = 0) -> int:
    """Bytes that one execution reads and writes, without padding; of what it cuts out of an array the part alone.

    Args:
        by_name: the instructions of the same computation.
        cache: bytes of a cache before the memory: of each array so many may lie there.
    """

    def main(shape: str, most: int | None = None) -> int:
        sizes = [shape_bytes(array) for array in _ARRAY.findall(shape) if not _ELSEWHERE.search(array)]
        return sum(max(0, (size if most is None else min(size, most)) - cache) for size in sizes)

    base = instruction.base
    if base == "copy" and base != instruction.opcode:  # (to, from, context)
        return main(instruction.shape)
    operands = [by_name[name].shape for name in instruction.operands if name in by_name]
    if base in _PARTS:
        arrays = _ARRAY.findall(instruction.shape)
        part = min((shape_bytes(a) for a in arrays if shape_bytes(a) > 8), default=0)
        return sum(main(shape, part) for shape in (*arrays[-1:], *operands[:1]))
    inside = _inside(module, instruction)
    if base != "fusion" or not inside:  # a kernel may be given an array once for each part that it reads
        distinct = [by_name[name].shape for name in dict.fromkeys(instruction.operands) if name in by_name]
        return main(instruction.shape) + sum(map(main, distinct))
    root = next(i for i in inside if i.root)
    updated = _updated(root, inside)
    written = main(instruction.shape) if updated is None else main(instruction.shape, updated[1])
    return written + sum(main(shape, _read(module, inside, i, updated)) for i, shape in enumerate(operands))


def _inside(module: Module, fusion: Instruction) -> Sequence[Instruction]:
    return next((module.computations.get(callee, ()) for how, callee in fusion.calls if how == "calls"), ())


def _updated(root: Instruction, inside: Sequence[Instruction]) -> tuple[str, int] | None:
    """(array, bytes) where a fusion writes into a part of an array that it is given, and leaves the rest in place."""
    if root.opcode != "dynamic-update-slice":
        return None
    part = next((i for i in inside if i.name == root.operands[1]), None)
    return None if part is None else (root.operands[0], part.bytes)


def _read(
    module: Module, inside: Sequence[Instruction], index: int, updated: tuple[str, int] | None = None
) -> int | None:
    """Bytes of its operand number `index` that a fusion reads, itself or in fusions inside it; None for all of it."""
    given = next((i for i in inside if i.opcode == "parameter" and f"parameter({index})" in i.line), None)
    if given is None:
        return None
    total = 0
    for user in (i for i in inside if given.name in i.operands):
        if user.opcode in _PARTS and user.operands[0] == given.name:
            total += user.bytes
        elif user.opcode == "fusion":
            places = [i for i, name in enumerate(user.operands) if name == given.name]
            parts = [_read(module, _inside(module, user), place) for place in places]
            if None in parts:
                return None
            total += sum(part for part in parts if part is not None)
        elif not (user.root and updated and updated[0] == given.name and user.operands[1:].count(given.name) == 0):
            return None
    return total
