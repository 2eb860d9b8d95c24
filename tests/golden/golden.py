"""Golden files: what a test computed when its result was last looked at, kept as JSON beside the tests."""

import json
import os
from pathlib import Path
from typing import Any

UPDATE = "FLASHJAX_UPDATE_GOLDEN"


def expected(file: str, name: str, found: Any, round_to: int | None = None) -> Any:
    """What ``file`` holds under ``name``; with the environment's FLASHJAX_UPDATE_GOLDEN, ``found`` is written first."""
    path = Path(__file__).parent / file
    held = json.loads(path.read_text()) if path.is_file() else {}
    if os.environ.get(UPDATE):
        held[name] = found if round_to is None else {k: [round(x, round_to) for x in v] for k, v in found.items()}
        path.write_text(json.dumps(dict(sorted(held.items())), indent=1) + "\n")
    if name not in held:
        raise AssertionError(f"{path.name} holds nothing for '{name}': {how(file)}")
    return held[name]


def how(file: str) -> str:
    """What to do when a difference is meant."""
    test = file.replace(".json", "")
    return f"if that is meant, look at the difference that {UPDATE}=1 pytest tests/golden/test_{test}.py leaves in git"
