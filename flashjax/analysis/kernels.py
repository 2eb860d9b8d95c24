"""How long a Pallas kernel takes by the TPU compiler's own schedule, where it writes no estimate of cycles.

The compiler turns a kernel into bundles, instructions that a core issues together, one bundle a cycle. Bundles of a
turn times the turns of the kernel's grid is what the kernel takes where nothing waits for memory; what a kernel says of
its turns is `metadata={"turns": "512", "parallel": "2", "loops": "6"}` of `pallas_call`: how many there are, into how
many parts the cores of a device may divide them, and how often loops in a turn run (one unless it is said).

How many bundles there are the compiler says when it is asked to before it is loaded, and then it writes out the code of
every fusion too, which takes it half as long again. So the kernels of a program are compiled a second time, alone, in a
process that asks, beside the program:

    python -m flashjax.analysis.kernels FILE
"""

import hashlib
import json
import os
import re
import sys
import tempfile
from base64 import b64decode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax

from flashjax.analysis.hlo import Instruction
from flashjax.processes import in_process

TARGET = "tpu_custom_call"
"""Of the custom call that a Pallas kernel is."""
_REPORTS = re.compile(r"\d+-(.+)-\d+-(schedule-analysis_)?final_bundles\.txt")
_TOTAL = re.compile(r"total scheduled bundles:\s+(\d+)")
_KERNEL = re.compile(
    rf'%([\w.\-]+) = [^%]*?custom-call\([^)]*\), custom_call_target="{TARGET}".*?"body":"([^"]*)"', re.DOTALL
)
_CHIP_MEMORY = re.compile(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"')
_FACTS = re.compile(r"kernel_metadata=\{([^}]*)\}")
_FACT = re.compile(r'"(turns|parallel|loops)":"(\d+)"')
_IN_LOOPS = re.compile(r"^\s*0x[0-9a-f]+ +(?:\w\w)?: ?((?:> ?)*)\{", re.MULTILINE)
"""A bundle, with a sign for each loop that it is in; the outermost is that over the turns, where there are some."""
_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "i1": "bool"}
Array = tuple[tuple[int, ...], str]
"""Shape and dtype."""


@dataclass(frozen=True)
class Kernel:
    """A custom call, as the program has it that the compiler is given."""

    config: str
    """JSON: what the compiler is told of it, its code too."""
    operands: tuple[Array, ...]
    results: tuple[Array, ...]
    turns: int
    loops: int
    """How often loops in a turn run."""

    @property
    def code(self) -> str:
        """MLIR bytecode in base64, by which a kernel is found again in what the compiler makes of the program."""
        return json.loads(self.config)["custom_call_config"]["body"]


def in_program(lowered: jax.stages.Lowered) -> dict[Kernel, str]:
    """The kernels of a program for TPUs, each once, and a digest of what each does: the code names the lines that a
    kernel is called from, the digest does not know them."""
    module: Any = lowered.compiler_ir("stablehlo")
    context, kernels = module.context, {}
    strict, context.allow_unregistered_dialects = context.allow_unregistered_dialects, True
    try:
        for call in _calls(module.operation):
            facts = _facts(call)
            kernel = Kernel(
                call.attributes["backend_config"].value,
                operands=tuple(_array(value.type) for value in call.operands),
                results=tuple(_array(value.type) for value in call.results),
                turns=int(facts.get("turns", 1)),
                loops=int(facts.get("loops", 1)),
            )
            if kernel not in kernels:
                code = b64decode(kernel.code)
                text = type(module).parse(code, context).operation.get_asm(enable_debug_info=False)
                kernels[kernel] = hashlib.sha256(text.encode()).hexdigest()
    finally:
        context.allow_unregistered_dialects = strict
    return kernels


def text(lowered: jax.stages.Lowered, found: Mapping[Kernel, str] | None = None) -> str:
    """The text of a program with a digest in place of each kernel's code: equal wherever source lines are.

    `found` is what `in_program` says, where that is known already.
    """
    words = lowered.as_text()
    if found is None:
        found = in_program(lowered) if TARGET in words else {}
    for kernel, digest in found.items():
        words = words.replace(kernel.code, digest)
    return words


def _calls(operation: Any) -> list[Any]:
    inner = [op for region in operation.regions for block in region.blocks for op in block.operations]
    own = operation.name == "stablehlo.custom_call" and operation.attributes["call_target_name"].value == TARGET
    return [operation] * own + [call for op in inner for call in _calls(op.operation)]


def _facts(call: Any) -> dict[str, str]:
    said = {name: call.attributes[name] for name in call.attributes}.get("mhlo.frontend_attributes", {})
    return dict(_FACT.findall(said["kernel_metadata"].value)) if "kernel_metadata" in said else {}


def _array(tensor: Any) -> Array:
    """Of an MLIR type: tensor<8x128xbf16>."""
    name = str(tensor.element_type)
    return tuple(tensor.shape), _DTYPES.get(name) or re.sub(r"^(u?)s?i(\d+)$", r"\1int\2", name)


def bundles(kernels: Collection[Kernel], topology: str) -> dict[str, int]:
    """Of a turn, by the code of each kernel, as far as the compiler reports it, from a process of their own.

    Raises:
        ValueError: if that ends with an error.
    """
    with tempfile.TemporaryDirectory(prefix="flashjax-kernels-") as directory:
        request = Path(directory, "request.json")
        request.write_text(json.dumps({"topology": topology, "kernels": [asdict(kernel) for kernel in kernels]}))
        # Flags of a user who dumps too are for the program.
        own = [flag for flag in os.environ.get("LIBTPU_INIT_ARGS", "").split() if "xla_jf_dump" not in flag]
        asked = [
            f"--xla_jf_dump_to={directory}",
            "--xla_jf_dump_llo_text=true",
            "--xla_jf_dump_llo_pass_label_regex=.*final_bundles.*",
        ]
        found = in_process(__name__, str(request), {"LIBTPU_INIT_ARGS": " ".join(own + asked)})
        if "error" in found:
            raise ValueError(f"the compiler for {topology} does not say how it schedules kernels: {found['error']}")
        once, listings = _reported(Path(directory))
        once, listings = by_code(found["text"], once), by_code(found["text"], listings)
        for kernel in kernels:
            if kernel.loops > 1 and kernel.code in once:
                listing = listings[kernel.code].read_text(errors="replace") if kernel.code in listings else ""
                depths = [signs.count(">") for signs in _IN_LOOPS.findall(listing)]
                in_a_loop = sum(depth > (kernel.turns > 1) for depth in depths)
                once[kernel.code] += (kernel.loops - 1) * in_a_loop
                if not in_a_loop:  # it is not known, which is better than too few
                    del once[kernel.code]
        return once


def _reported(directory: Path) -> tuple[dict[str, int], dict[str, Path]]:
    """By instruction: how many bundles it has, and the file that lists them."""
    once, listings = {}, {}
    for path in directory.iterdir():
        name = _REPORTS.fullmatch(path.name)
        if name and not name[2]:
            listings[name[1]] = path
        elif name and (total := _TOTAL.search(path.read_text(errors="replace"))):
            once[name[1]] = int(total[1])
    return once, listings


ReportedT = TypeVar("ReportedT")


def by_code(text: str, reported: Mapping[str, ReportedT]) -> dict[str, ReportedT]:
    """What is reported of the kernels of a program's text by their code, of which the compiler reports each once."""
    return {code: reported[name] for name, code in _KERNEL.findall(text) if name in reported}


def by_instruction(text: str, found: Mapping[str, int]) -> dict[str, int]:
    """Bundles of the kernels of a program's text by their names, from those by their code."""
    return {name: found[code] for name, code in _KERNEL.findall(text) if code in found}


def cycles(instruction: Instruction, bundles: Mapping[str, int], cores: int = 1) -> int | None:
    """Of one execution of a kernel on a device of so many cores; None where its bundles or turns are not known."""
    found = bundles.get(instruction.name)
    said = _FACTS.search(instruction.line) if found is not None else None
    facts = dict(_FACT.findall(said[1])) if said else {}
    if found is None or "turns" not in facts:
        return None
    return found * -(-int(facts["turns"]) // min(cores, int(facts.get("parallel", 1))))


def chip_memory(instruction: Instruction) -> int | None:
    """Bytes of the chip's own memory (VMEM) that a kernel takes; None of others, and where it is not said."""
    found = _CHIP_MEMORY.search(instruction.line) if instruction.opcode == "custom-call" else None
    return int(found[1]) if found else None


def _compiled(kernels: Sequence[Kernel], topology: str) -> str:
    """The text of a program of these kernels alone."""
    from flashjax.analysis.topology import open_topology, quiet

    place = jax.sharding.SingleDeviceSharding(open_topology(topology).devices[0])

    def call(kernel: Kernel, operands: tuple[jax.Array, ...]) -> Any:
        results = [jax.ShapeDtypeStruct(*array) for array in kernel.results]
        one = jax.ffi.ffi_call(TARGET, results, custom_call_api_version=1, legacy_backend_config=kernel.config)
        return one(*operands)

    def program(operands: list[tuple[jax.Array, ...]]) -> list[Any]:
        return [call(kernel, given) for kernel, given in zip(kernels, operands, strict=True)]

    operands = [tuple(jax.ShapeDtypeStruct(*a, sharding=place) for a in kernel.operands) for kernel in kernels]
    with quiet():
        return jax.jit(program).lower(operands).compile().as_text() or ""


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps({"text": _compiled([Kernel(**kernel) for kernel in asked["kernels"]], asked["topology"])}))


if __name__ == "__main__":
    main()
