"""A program compiled for devices that need not be there, and kept: the same program is never compiled twice.

What is kept is what a plan reads, the text of the program and the compiler's analysis of its memory, in
`$FLASHJAX_PLAN_CACHE` (default: ~/.cache/flashjax/plan), under a digest of the program and of the versions of the
compilers. Source lines are those of when it was compiled.
"""

import functools
import gzip
import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax

from flashjax.analysis import hlo, kernels
from flashjax.analysis.topology import Topology, out_of_memory, quiet
from flashjax.training.executables import compilers, jit_options

RULES = 2
"""By which what is kept was made: another number where a change would read it otherwise."""
EFFORTS = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort", "jax_optimization_level")
"""JAX's own settings of how much a compiler does."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, by the compiler's analysis."""

    arguments: int
    outputs: int
    aliased: int
    """Of the outputs, those that take the place of donated arguments."""
    temporaries: int
    program: int
    """Code."""

    @property
    def peak(self) -> int:
        """All of it at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.program


@dataclass(frozen=True)
class Compiled:
    """What a plan reads of a compiled program."""

    text: str = field(repr=False)
    memory: Memory | None
    """None where the backend does not say."""
    seconds: float
    """That compiling took, when it was done."""
    kept: bool
    """From the cache."""
    bundles: dict[str, int] = field(default_factory=dict)
    """Of the kernels in it, by instruction (`flashjax.analysis.kernels`)."""
    executable: Any = field(default=None, repr=False)
    """`jax.stages.Compiled`, unless from the cache."""

    @functools.cached_property
    def module(self) -> hlo.Module:
        return hlo.parse(self.text)


class OutOfMemoryError(ValueError):
    """The compiler finds no room on the device."""

    def __init__(self, wanted: int | None, there: int | None):
        super().__init__(f"the program wants {wanted} bytes of a device that has {there}")
        self.wanted, self.there = wanted, there
        """Bytes, None where the compiler does not say."""


def cache_directory() -> Path:
    """Where compiled programs are kept."""
    return Path(os.environ.get("FLASHJAX_PLAN_CACHE") or Path.home() / ".cache" / "flashjax" / "plan")


def compile_for(lowered: jax.stages.Lowered, topology: Topology, cache: bool = True) -> Compiled:
    """Compiles a program that was lowered for devices of `topology`.

    Raises:
        OutOfMemoryError: if it does not fit a device.
        ValueError: in other cases in which the compiler ends with an error.
    """
    in_it = kernels.in_program(lowered) if topology.platform == "tpu" else {}
    where = cache_directory() / _digest(lowered, topology, in_it)
    if cache and (where / "facts.json").is_file():
        facts = json.loads((where / "facts.json").read_text())
        if "wanted" in facts:
            raise OutOfMemoryError(facts["wanted"], facts["there"])
        text = gzip.decompress((where / "program.hlo.gz").read_bytes()).decode()
        memory = Memory(**facts["memory"]) if facts["memory"] else None
        return Compiled(text, memory, facts["seconds"], True, facts["bundles"])
    begun = time.perf_counter()
    try:
        with ThreadPoolExecutor(1) as beside, quiet():
            schedules = beside.submit(kernels.bundles, in_it, topology.name) if in_it else None
            executable = lowered.compile(compiler_options=dict(topology.options) or None)
    except jax.errors.JaxRuntimeError as error:
        # A kernel that finds no room in the chip's own memory (VMEM) says so with the same code.
        if "RESOURCE_EXHAUSTED" not in str(error) or "vmem" in str(error).lower():
            words = str(error).splitlines()[0][:300]
            raise ValueError(f"the compiler for {topology.name} ends with an error: {words}") from error
        wanted, there = out_of_memory(str(error))
        if cache:
            _keep(where, {"wanted": wanted, "there": there})
        raise OutOfMemoryError(wanted, there) from None
    seconds, text = time.perf_counter() - begun, executable.as_text() or ""
    memory, bundles = _memory(executable), {}
    try:
        if schedules:
            bundles = kernels.by_instruction(text, schedules.result())
    except ValueError as error:  # what was compiled for minutes is not lost for it, and not kept
        warnings.warn(str(error), stacklevel=2)
        cache = False
    if cache:
        facts = {"memory": asdict(memory) if memory else None, "seconds": seconds, "bundles": bundles}
        _keep(where, facts | {"topology": topology.name}, gzip.compress(text.encode(), 3))
    return Compiled(text, memory, seconds, False, bundles, executable)


def _memory(executable: jax.stages.Compiled) -> Memory | None:
    found = executable.memory_analysis()
    if found is None:
        return None
    return Memory(
        arguments=int(found.argument_size_in_bytes),
        outputs=int(found.output_size_in_bytes),
        aliased=int(found.alias_size_in_bytes),
        temporaries=int(found.temp_size_in_bytes),
        program=int(found.generated_code_size_in_bytes),
    )


def _keep(where: Path, facts: dict[str, Any], program: bytes | None = None) -> None:
    where.mkdir(parents=True, exist_ok=True)
    if program is not None:
        (where / "program.hlo.gz").write_bytes(program)
    new = where / ".facts.json.new"
    new.write_text(json.dumps(facts))
    new.replace(where / "facts.json")  # the last: what is half written is not found


_NAME = re.compile(r'loc\("(jit\([^"]*)"\(')  # functions of the call stack stand there too


def _digest(lowered: jax.stages.Lowered, topology: Topology, in_it: Mapping[kernels.Kernel, str]) -> str:
    """Of the program and the names of what is in it; not of source lines, which the way to the compiler changes too."""
    text = kernels.text(lowered, in_it)
    names = sorted(set(_NAME.findall(lowered.as_text(debug_info=True))))
    places = [
        RULES,
        topology.name,
        topology.kind,
        topology.target,
        sorted(topology.options.items()),
        jit_options(lowered),
        len(topology.devices),
        compilers(),
        os.environ.get("LIBTPU_INIT_ARGS") or None,  # empty is as good as absent
        os.environ.get("XLA_FLAGS") or None,
        [getattr(jax.config, setting) for setting in EFFORTS],
    ]
    return hashlib.sha256(f"{places}\n{names}\n{text}".encode()).hexdigest()[:32]
