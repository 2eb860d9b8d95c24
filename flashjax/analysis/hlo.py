"""The text of a compiled program: computations, instructions, how often each computation runs, which line made what.

Texts are of `jax.jit(f).lower(...).compile().as_text()`. Backends write differently: the CPU's says how often a loop
runs, the TPU's leaves that to be read from the loop's condition.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

_HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s+\(.*\)\s*->.*\{\s*$")
_NAME = re.compile(r"^\s*(ROOT\s+)?%?([\w.\-]+)\s*=\s*")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_CALL = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLS = re.compile(r"\b(branch_computations|called_computations|calls)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]")
_REFERENCE = re.compile(r"%([\w.\-]+)")
_METADATA = re.compile(r"kernel_metadata=\{\s[^{}]*\}")  # the one thing that is written over several lines


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shape: str
    """As written, layouts among it."""
    operands: tuple[str, ...]
    """Names of instructions of the same computation."""
    line: str
    """The whole line."""
    root: bool

    @property
    def base(self) -> str:
        """The opcode, of the start of an asynchronous pair that of the whole."""
        return self.opcode.removesuffix("-start")

    @functools.cached_property
    def bytes(self) -> int:
        """Of the result, without the padding of its layout."""
        return shape_bytes(self.shape)

    @property
    def op_name(self) -> str:
        """Where JAX says that it comes from, 'jit(step)/jvp(Model)/layer/dot_general'; '' where it does not say."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found[1] if found else ""

    @property
    def cycles(self) -> int | None:
        """The TPU compiler's own estimate, None where it makes none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.line)
        return int(found[1]) if found else None

    @property
    def calls(self) -> list[tuple[str, str]]:
        """(how, name) of the computations that it runs."""
        found = _CALL.findall(self.line)
        for how, names in _CALLS.findall(self.line):
            found += [(how, name.strip().lstrip("%")) for name in names.split(",") if name.strip()]
        return found

    def attribute(self, name: str) -> str:
        """The text after 'name=' up to the next comma; '' where there is none."""
        found = re.search(rf"\b{name}=([^,\s]+)", self.line)
        return found[1].strip('"') if found else ""


@dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str
    text: str = field(repr=False)
    turns: dict[str, float] = field(default_factory=dict, repr=False)
    """Of loops whose length is not to be read here, by name: the mean, from elsewhere."""

    @functools.cached_property
    def devices(self) -> int:
        """Partitions times replicas."""
        first = self.text.split("\n", 1)[0]
        counts = [re.search(rf"\b{name}=(\d+)", first) for name in ("num_partitions", "replica_count")]
        return math.prod(int(found[1]) for found in counts if found)

    def executions(self, while_iterations: int = 1) -> Counter[str]:
        """How often each computation that the entry reaches is run.

        A loop whose length is not to be read runs `while_iterations` times; of a conditional every branch counts.
        """
        counts: Counter[str] = Counter()

        def visit(name: str, times: int) -> None:
            counts[name] += times
            for instruction in self.computations.get(name, ()):
                if instruction.opcode in ("async-update", "async-done"):  # the start has called already
                    continue
                repeats = 1
                if instruction.opcode == "while":
                    trips = self.trips(name, instruction)
                    repeats = while_iterations if trips is None else trips
                for how, callee in instruction.calls:
                    visit(callee, round(times * (repeats if how in ("body", "condition") else 1)))

        visit(self.entry, 1)
        return counts

    def trips(self, computation: str, loop: Instruction) -> float | None:
        """How often the body of `loop`, an instruction of `computation`, runs; None where it is not to be seen.

        What the compiler notes counts; else a condition 'i < n' with constant n, a first i and a constant step; else
        `turns`.
        """
        found = self._read_trips(computation, loop)
        return self.turns.get(loop.name) if found is None else found

    def _read_trips(self, computation: str, loop: Instruction) -> int | None:
        if found := _TRIPS.search(loop.line):
            return int(found[1])
        callees = dict(loop.calls)
        condition, body = callees.get("condition"), callees.get("body")
        if condition is None or body is None or not loop.operands:
            return None
        by_name = self._by_name(condition)
        root = next((i for i in self.computations.get(condition, ()) if i.root), None)
        if root is None or root.opcode != "compare" or len(root.operands) != 2:
            return None
        direction = root.attribute("direction")
        left, right = (by_name.get(name) for name in root.operands)
        if left is None or right is None or direction not in ("LT", "LE"):
            return None
        start = self._carried(computation, loop, left)
        end = self._constant(condition, right)
        end = self._carried(computation, loop, right) if end is None else end
        step = self._step(body, left)
        if start is None or end is None or step is None or step <= 0:
            return None
        return max(0, -(-(end - start + (direction == "LE")) // step))

    def _by_name(self, computation: str) -> dict[str, Instruction]:
        return {i.name: i for i in self.computations.get(computation, ())}

    def _constant(self, computation: str, instruction: Instruction | None) -> int | None:
        """The integer that an instruction is, through copies."""
        by_name = self._by_name(computation)
        while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert", "reshape"):
            instruction = by_name.get(instruction.operands[0]) if instruction.operands else None
        if instruction is None or instruction.opcode != "constant":
            return None
        found = re.search(r"constant\((-?\d+)\)", instruction.line)
        return int(found[1]) if found else None

    def _carried(self, computation: str, loop: Instruction, element: Instruction) -> int | None:
        """What an element of the loop's tuple, read in its condition, is at first."""
        if element.opcode != "get-tuple-element":
            return None
        by_name = self._by_name(computation)
        made = by_name.get(loop.operands[0])
        index = int(element.attribute("index"))
        if made is None or made.opcode != "tuple" or index >= len(made.operands):
            return None
        return self._constant(computation, by_name.get(made.operands[index]))

    def _step(self, body: str, element: Instruction) -> int | None:
        """What the body adds to the element in each turn."""
        if element.opcode != "get-tuple-element":
            return None
        by_name = self._by_name(body)
        root = next((i for i in self.computations.get(body, ()) if i.root), None)
        index = int(element.attribute("index"))
        if root is None or root.opcode != "tuple" or index >= len(root.operands):
            return None
        new = by_name.get(root.operands[index])
        while new is not None and new.opcode == "copy":
            new = by_name.get(new.operands[0])
        if new is None or new.opcode != "add":
            return None
        steps = [self._constant(body, by_name.get(name)) for name in new.operands]
        return next((step for step in steps if step is not None), None)

    @functools.cached_property
    def _frames(self) -> dict[int, tuple[int, int]]:
        return {
            int(i): (int(where), int(parent or 0))
            for i, where, parent in re.findall(
                r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?\}", self._table("StackFrames"), re.M
            )
        }

    @functools.cached_property
    def _locations(self) -> dict[int, tuple[str, int]]:
        files = dict(re.findall(r'^(\d+) "(.*)"$', self._table("FileNames"), re.M))
        return {
            int(i): (files.get(file, "?"), int(line))
            for i, file, line in re.findall(
                r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+)", self._table("FileLocations"), re.M
            )
        }

    def _table(self, name: str) -> str:
        found = re.search(rf"^{name}\n(.*?)\n\n", self.text, re.M | re.S)
        return found[1] if found else ""

    def source(self, instruction: Instruction) -> list[tuple[str, int]]:
        """(file, line) of the innermost call, then of those around it; empty where the text does not say."""
        if found := re.search(r'source_file="([^"]*)" source_line=(\d+)', instruction.line):
            return [(found[1], int(found[2]))]
        found = re.search(r"stack_frame_id=(\d+)", instruction.line)
        frame, lines, seen = int(found[1]) if found else 0, [], set()
        while frame in self._frames and frame not in seen:
            seen.add(frame)
            where, frame = self._frames[frame]
            if where in self._locations:
                lines.append(self._locations[where])
        return lines


def parse(text: str) -> Module:
    """The text of a compiled HLO module, read.

    Raises:
        ValueError: for a text without an entry computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name, lines = None, None, []
    text = _METADATA.sub(lambda found: re.sub(r"\s+", "", found[0]), text)
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif name is not None and line.startswith("}"):
            computations[name], name = tuple(lines), None
        elif name is not None and (instruction := _instruction(line)):
            lines.append(instruction)
    if name is not None:
        computations[name] = tuple(lines)
    if entry is None:
        raise ValueError(
            "no ENTRY computation: pass the text of a compiled module, jitted.lower(...).compile().as_text()"
        )
    return Module(computations, entry, text)


def _instruction(line: str) -> Instruction | None:
    head = _NAME.match(line)
    if head is None:
        return None
    rest = re.sub(r"/\*.*?\*/", "", line[head.end() :]) if "/*" in line else line[head.end() :]
    shape_end = _balanced(rest) if rest.startswith("(") else _shape_end(rest)
    opcode = _OPCODE.match(rest, shape_end)
    if opcode is None:
        return None
    inside = rest[opcode.end() : _balanced(rest, opcode.end() - 1) - 1]
    operands = tuple(_REFERENCE.findall(inside)) if opcode[1] not in ("constant", "parameter") else ()
    if not operands and opcode[1] not in ("constant", "parameter"):  # texts without percent signs
        operands = tuple(w for w in re.split(r",\s*", inside) if re.fullmatch(r"[A-Za-z_][\w.\-]*", w))
    return Instruction(head[2], opcode[1], rest[:shape_end].strip(), operands, line, bool(head[1]))


def _balanced(text: str, begin: int = 0) -> int:
    """The place behind the bracket that closes the one at `begin`."""
    depth = 0
    for i in range(begin, len(text)):
        character = text[i]
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i + 1
    return len(text)


def _shape_end(text: str) -> int:
    """Where 'f32[2,3]{1,0:T(8,128)S(1)} opcode(' changes from shape to opcode."""
    found = re.match(r"[\w]+\[[^\]]*\](\{[^}]*\})?", text)
    return found.end() if found else 0


def shapes(text: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(dtype, dims) of each array in a shape as HLO writes it."""
    for dtype, dims in _SHAPE.findall(text):
        yield dtype, tuple(int(dim.removeprefix("<=")) for dim in dims.split(",") if dim)


def shape_bytes(text: str) -> int:
    """Bytes of all arrays in a shape, without padding."""
    total = 0
    for dtype, dims in shapes(text):
        bits = 8 if dtype == "pred" else int(found[1]) if (found := re.match(r"[a-z]+(\d+)", dtype)) else 0
        total += math.ceil(bits * math.prod(dims) / 8)
    return total
