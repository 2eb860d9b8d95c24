"""Command lines from typed presets: every field is a flag, a typo is an answer, an error is a sentence."""

import contextlib
import difflib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import tyro

Config = TypeVar("Config")


def parse(presets: Mapping[str, Config], program: str, description: str, args: Sequence[str] | None = None) -> Config:
    """The preset named by ``--preset`` (default: the first) with the values that further flags give.

    Every field of the preset's dataclass tree is a flag, ``--data.batch_size 64``; ``--help`` shows the preset's own
    values as defaults. An unknown flag, preset or value prints the nearest names and exits with status 2.
    """
    args = list(sys.argv[1:] if args is None else args)
    name = _preset_name(args, next(iter(presets)))
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=3, cutoff=0.3) or list(presets)
        _fail(f"unknown preset '{name}'; nearest: {', '.join(near)}. All: {', '.join(presets)}")
    default = presets[name]
    with friendly_errors():
        return tyro.cli(
            type(default),
            prog=f"python -m {program}",
            description=f"{description}\n\nPresets: {', '.join(presets)}. Defaults shown are those of '{name}'.",
            args=args,
            default=default,
            use_underscores=True,
            config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
        )


def _preset_name(args: Sequence[str], default: str) -> str:
    for i, arg in enumerate(args):
        if arg == "--preset":
            if i + 1 == len(args):
                _fail("--preset needs a name")
            return args[i + 1]
        if arg.startswith("--preset="):
            return arg.removeprefix("--preset=")
    return default


@contextlib.contextmanager
def friendly_errors() -> Iterator[None]:
    """Errors that a user can act on become one message and exit status 2; FLASHJAX_DEBUG=1 shows where they arose."""
    from flashjax.training.checkpoints import CheckpointError
    from flashjax.training.nonfinite import NonFiniteError
    from flashjax.training.rundir import RunDirectoryError

    try:
        yield
    except (ValueError, OSError, ImportError, CheckpointError, NonFiniteError, RunDirectoryError) as error:
        if os.environ.get("FLASHJAX_DEBUG"):
            raise
        _fail(f"{error}\n(FLASHJAX_DEBUG=1 shows where this arose)")


def _fail(message: str) -> Any:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def command(program: str, args: Sequence[str] | None = None, **changes: str | None) -> str:
    """The command line that runs ``program`` with ``args`` (default: this process's), some flags set or removed."""
    words = list(sys.argv[1:] if args is None else args)
    for flag, value in changes.items():
        for i, word in enumerate(words):
            if word == f"--{flag}":
                del words[i : i + 2]
                break
            if word.startswith(f"--{flag}="):
                del words[i]
                break
        if value is not None:
            words += [f"--{flag}", value]
    return shlex.join(["python", "-m", program, *words])
