"""How long a Pallas kernel takes by the TPU compiler's own schedule, where it writes no estimate of cycles.

The compiler turns a kernel into bundles, instructions that a core issues together, one bundle a cycle. It says how many
there are when it is asked to before it is loaded. Bundles of a turn times the turns of the kernel's grid is what the
kernel takes where nothing waits for memory; what a kernel says of its turns is `metadata={"turns": "512"}` of
`pallas_call`.
"""

import atexit
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from flashjax.planning.hlo import Instruction

_REPORTS = re.compile(r"\d+-(.+)-\d+-schedule-analysis_final_bundles\.txt")
_TOTAL = re.compile(r"total scheduled bundles:\s+(\d+)")
_KERNEL = re.compile(
    r'%([\w.\-]+) = [^%]*?custom-call\([^)]*\), custom_call_target="tpu_custom_call".*?"body":"([^"]*)"', re.DOTALL
)
_CHIP_MEMORY = re.compile(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"')
_TURNS = re.compile(r'kernel_metadata=\{[^}]*"turns":"(\d+)"')


class Reports:
    """A directory into which the compiler of this process writes, removed when the process ends."""

    def __init__(self):
        self.directory: Path | None = None

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Around what loads libtpu; does nothing the second time, and in a process that dumps already."""
        own = os.environ.get("LIBTPU_INIT_ARGS")
        if self.directory is not None or "xla_jf_dump" in (own or ""):
            yield
            return
        self.directory = Path(tempfile.mkdtemp(prefix="flashjax-bundles-"))
        atexit.register(shutil.rmtree, self.directory, ignore_errors=True)
        flags = {
            "xla_jf_dump_to": str(self.directory),
            "xla_jf_dump_llo_text": "true",
            "xla_jf_dump_llo_pass_label_regex": ".*final_bundles.*",
        }
        asked = (f"--{name}={value}" for name, value in flags.items())
        os.environ["LIBTPU_INIT_ARGS"] = " ".join([own or "", *asked]).strip()
        try:
            yield
        finally:  # not for the processes that this one begins
            if own is None:
                del os.environ["LIBTPU_INIT_ARGS"]
            else:
                os.environ["LIBTPU_INIT_ARGS"] = own

    def take(self) -> dict[str, int]:
        """Bundles by instruction of what was compiled since the last call."""
        found = {}
        for path in self.directory.iterdir() if self.directory else ():
            total = _TOTAL.search(path.read_text(errors="replace"))
            if total and (name := _REPORTS.fullmatch(path.name)):
                found[name[1]] = int(total[1])
            path.unlink()
        return found


def of(text: str, bundles: Mapping[str, int]) -> dict[str, int]:
    """Those of the kernels of a program; of kernels with the same code the compiler reports one."""
    by_code = {code: bundles[name] for name, code in _KERNEL.findall(text) if name in bundles}
    return {name: by_code[code] for name, code in _KERNEL.findall(text) if code in by_code}


def cycles(instruction: Instruction, bundles: Mapping[str, int]) -> int | None:
    """Of one execution of a kernel; None where its bundles or turns are not known."""
    found = bundles.get(instruction.name)
    turns = None if found is None else _TURNS.search(instruction.line)
    return found * int(turns[1]) if found is not None and turns else None


def chip_memory(instruction: Instruction) -> int | None:
    """Bytes of the chip's own memory (VMEM) that a kernel takes; None of others, and where it is not said."""
    found = _CHIP_MEMORY.search(instruction.line) if instruction.opcode == "custom-call" else None
    return int(found[1]) if found else None


reports = Reports()
