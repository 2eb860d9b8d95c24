"""Stand-ins for cluster programs: small executables on PATH that record their arguments and do the local part."""

import json
import os
import stat
import sys
from pathlib import Path

_HEAD = """#!{python}
import json, os, shutil, subprocess, sys
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps([{name!r}, *arguments]) + "\\n")
"""

SBATCH = 'sys.exit(subprocess.call(["bash", arguments[-1]], env=os.environ | {"SLURM_JOB_ID": "17"}))'

RECORD = ""

TOOLS = "bash sh git tar gzip sed tail cat rm mv mkdir mktemp hostname setsid nohup env sleep kill"

GCLOUD = """
verb, *rest = arguments[3:]
home = os.environ["WORKER_HOME"]
if verb == "describe":
    print(os.environ.get("TPU_STATE", ""))
if verb == "scp":
    for source in rest[:2]:
        shutil.copy(source, home)
if verb == "ssh":
    command = [word for word in rest if word.startswith("--command=")][0].removeprefix("--command=")
    if "tail" in command and "CONNECTION_LOST" in os.environ:
        sys.exit(1)
    sys.exit(subprocess.call(["bash", "-c", command], env=os.environ | {"HOME": home}))
"""


def srun(status: int = 0) -> str:
    """srun that ends with ``status``."""
    return f"sys.exit({status})"


class Shims:
    """A directory of stand-ins and their log."""

    def __init__(self, directory: Path, **programs: str):
        self.log = directory / "calls.jsonl"
        self.bin = directory / "bin"
        self.bin.mkdir()
        for name, body in programs.items():
            path = self.bin / name
            path.write_text(_HEAD.format(python=sys.executable, log=str(self.log), name=name) + body + "\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment with the stand-ins first on PATH and the real cluster programs off it."""
        # This machine may have the real ones: only bare system tools stay reachable.
        tools = self.bin.parent / "tools"
        if not tools.exists():
            tools.mkdir()
            for tool in TOOLS.split():
                for place in ("/bin", "/usr/bin"):
                    if os.path.exists(f"{place}/{tool}"):
                        (tools / tool).symlink_to(f"{place}/{tool}")
                        break
        return {k: v for k, v in os.environ.items() if not k.startswith(("FLASHJAX_", "SLURM_"))} | {
            "PATH": f"{self.bin}:{tools}",
            **more,
        }

    def calls(self) -> list[list[str]]:
        """[program, argument, ...] of each call, in order."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
