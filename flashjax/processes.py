"""Work that wants a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def in_process(
    module: str, request: str, environment: Mapping[str, str] | None = None, timeout: float = 1800.0
) -> dict[str, Any]:
    """What ``python -m module request`` prints last, one line of JSON, with ``environment`` added to this process's.

    Where it fails the result is ``{"error": its last words}``.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, request],
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {timeout:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"error": next((line for line in reversed(words) if line.startswith("error:")), words[-1])}
    return json.loads(lines[-1])
