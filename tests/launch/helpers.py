"""A launch as its users start it, and words that must come through."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

AWKWARD = [
    "two words",
    "it's",
    '"quoted"',
    "$HOME ${HOME} $(date) `date` $$ $(HOSTNAME) $",
    "two\nlines\n",
    "tab\tand \x1b bell \x07",
    "",
    "*",
    "~",
    "#",
    "!",
    "-",
    "--flag=a b",
    "back\\slash \\n",
    "naïve 日本 \U0001f600 \u2028",
    "{braces}",
    "a: b",
    "END",
    "END\nEND_\n",
    "%x",
    ";rm",
    "&",
]
"""Each of them has been the end of some launcher."""


def dump_arguments(path: Path) -> list[str]:
    """A command that appends its arguments to a file, as one line of JSON."""
    code = f"import json, sys; open({str(path)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')"
    return [sys.executable, "-c", code]


def launch(arguments: Sequence[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flashjax.launch", *arguments],
        cwd=cwd,
        env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
