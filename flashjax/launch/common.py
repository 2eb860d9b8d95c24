"""What all launch targets share: options, quoting, and what is done with the finished script."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

EXIT_USAGE = 2
EXIT_NO_CLIENT = 3
"""The script is written, but the program that would run it is not installed here."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Options that every target has."""

    name: str = "flashjax"
    """Name of the job; small letters, digits and dashes."""
    env: tuple[str, ...] = ()
    """NAME=value ... set for the command."""
    out: str | None = None
    """Where the script is written. Default: launches/<name>-<target>.sh (or .yaml)."""
    show: Annotated[bool, tyro.conf.arg(name="print")] = False
    """Print the script; write and run nothing."""

    target: ClassVar[str]
    suffix: ClassVar[str] = "sh"
    client: ClassVar[str | None] = None
    """Program that must be installed here."""
    needs_command: ClassVar[bool] = True

    def check(self) -> None:
        """Raise ValueError for a value that would only fail far away."""
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", self.name):
            raise ValueError(
                f"name {self.name!r}: up to 40 small letters, digits and dashes, the first a letter, the last no dash"
            )
        for pair in self.env:
            if not re.match(r"[A-Za-z_][A-Za-z0-9_]*=", pair):
                raise ValueError(f"env {pair!r} is not NAME=value")

    def script(self, command: Sequence[str]) -> str:
        """Text of the script or manifest that launches the command."""
        raise NotImplementedError

    def run(self, path: Path, command: Sequence[str]) -> int:
        """Run the written script; the exit status is the client's."""
        return subprocess.call(["bash", str(path)])


def launch(target: Target, command: Sequence[str]) -> int:
    """Print the script, or write it and run it where its client program exists."""
    target.check()
    text = target.script(command)
    if target.show:
        sys.stdout.write(text)
        return 0
    path = Path(target.out or f"launches/{target.name}-{target.target}.{target.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    say(f"wrote {path}")
    if target.client and shutil.which(target.client) is None:
        say(
            f"not run: the program {target.client!r} is not installed here. Install it, or take {path} to a machine "
            "that has it"
        )
        return EXIT_NO_CLIENT
    return target.run(path, command)


def say(text: str) -> None:
    print(f"flashjax.launch: {text}", file=sys.stderr, flush=True)


def shell_array(name: str, words: Sequence[str]) -> str:
    """A bash array that holds exactly these words, whatever is in them."""
    literal = any(character in word for word in words for character in "$`\\'")
    # Else it would ask whether something in single quotes was meant to be expanded.
    note = "# shellcheck disable=SC2016,SC1003\n" if literal else ""
    return f"{note}{name}=(\n" + "".join(f"    {shlex.quote(word)}\n" for word in words) + ")\n"


def shell_exports(env: Sequence[str]) -> str:
    """``export`` lines for NAME=value pairs."""
    pairs = [pair.partition("=") for pair in env]
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, _, value in pairs)


def here_document(text: str) -> tuple[str, str]:
    """(delimiter, text ending in a newline) for a quoted here-document: no line of the text is the delimiter."""
    text = text if text.endswith("\n") else text + "\n"
    delimiter, lines = "END", {line.strip() for line in text.split("\n")}
    while delimiter in lines:
        delimiter += "_"
    return delimiter, text


def one_word(name: str, value: str) -> str:
    """``value``, if it can stand in a directive or on one line.

    Raises:
        ValueError: if it is empty, or holds a space or a control character.
    """
    if not value or re.search(r"[\s\x00-\x1f\x7f]", value):
        raise ValueError(f"{name} {value!r} must be one word, without spaces or newlines")
    return value


def at_least(least: int, **values: int) -> None:
    """Raise ValueError, naming the option, for a value below ``least``."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} {value}: must be at least {least}")
