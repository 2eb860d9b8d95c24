"""Command lines from typed presets: every field is a flag, a typo is an answer, an error is a sentence."""

import contextlib
import dataclasses
import importlib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from flashjax.words import nearest

Config = TypeVar("Config")


def parse(
    presets: Mapping[str, Config],
    program: str,
    description: str | None,
    args: Sequence[str] | None = None,
) -> Config:
    """The preset named by ``--preset`` with the values that further flags give.

    Without ``--preset`` it is the first one, which needs no data; or, where ``--data_dir`` or the environment's
    TFDS_DATA_DIR names some, the first one that reads a directory: naming data means the paper's run. The environment's
    is for data that lie in a directory alone. In the modes that look at a finished run, the flags that made it
    (config.json in the workdir) come first.

    Every field of the preset's dataclass tree is a flag, ``--data.batch_size 64``; ``--help`` shows the preset's own
    values as defaults. An unknown flag, preset or value prints the nearest names and exits with status 2. With
    ``--plan`` (of a study ``--run.plan``) the plan of the launcher ``program`` is shown, and the process ends.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's notes on its own options
    args = list(sys.argv[1:] if args is None else args)
    args = _recorded(args) + args
    named = _value(args, "data_dir") or os.environ.get("TFDS_DATA_DIR")
    first = next(iter(presets))
    with_data = next((name for name, preset in presets.items() if _reads_directory(preset)), first)
    name = _value(args, "preset") or (with_data if named else first)
    if name not in presets:
        _fail(f"unknown preset '{name}'; nearest: {nearest(name, presets)}. All: {', '.join(presets)}")
    default = presets[name]
    if _value(args, "plan") is not None and not hasattr(_run(default), "plan"):
        _fail(
            f"{program} has no single train step to plan: plan one that it is about by its own launcher, as in "
            f"python -m experiments.swin_imagenet --plan {_value(args, 'plan')}"
        )
    with friendly_errors():
        config = tyro.cli(
            type(default),
            prog=f"python -m {program}",
            description=f"{_paragraphs(description)}\n\nPresets: {', '.join(presets)}. "
            f"Defaults shown are those of '{name}'.",
            args=args,
            default=default,
            use_underscores=True,
            config=(tyro.conf.AvoidSubcommands,),
            registry=_constructors(),
        )
        config = _one_place(_with_environment(config))
        run = _run(config)
        if _plans(run, "--" if run is config else "--run."):
            from flashjax.planning.__main__ import show  # which stands on the trainer, as the launcher does

            raise SystemExit(show(program, run))
        return config


def launcher(name: str, arguments: Sequence[str], needs: str = "build") -> tuple[Any, Any]:
    """(the launcher's module, the configuration of its run) under a command line, as `parse` reads it.

    Flags of the run are understood with and without the study around it: ``--mesh.data`` for ``--run.mesh.data``.

    Raises:
        ValueError: if the module lacks PRESETS or the function ``needs``.
    """
    module = importlib.import_module(name)
    if not hasattr(module, "PRESETS") or not hasattr(module, needs):
        raise ValueError(f"{name} is no launcher: it needs PRESETS and {needs}(config)")
    args = _of_the_run(arguments, next(iter(module.PRESETS.values())))
    return module, _run(parse(module.PRESETS, name, module.__doc__, args))


def _of_the_run(args: Sequence[str], config: Any) -> list[str]:
    """The arguments, with the flags that a study lacks and its run has as those of its run."""
    run = _run(config)
    if run is config:
        return list(args)
    own = {field.name for field in dataclasses.fields(config)}
    groups = {name for name in own if dataclasses.is_dataclass(getattr(config, name))}

    def is_of_run(flag: re.Match) -> bool:
        name = flag[1] if hasattr(run, flag[1]) else flag[1].removeprefix("no_")
        return hasattr(run, name) and name not in (groups if flag[2] == "." else own)

    flags = ((arg, re.match(r"--(\w+)([.=]|$)", arg)) for arg in args)
    return [f"--run.{arg[2:]}" if flag and is_of_run(flag) else arg for arg, flag in flags]


def _as_a_study_has_them(config: Any, message: str) -> str:
    """The message with the flags that a study lacks and its run has as those of its run."""
    run = _run(config)

    def has(settings: Any, path: str) -> bool:
        for name in path.split("."):
            name = name if hasattr(settings, name) else name.removeprefix("no_")
            if not hasattr(settings, name):
                return False
            settings = getattr(settings, name)
        return True

    def spelled(flag: re.Match) -> str:
        return f"--run.{flag[1]}" if has(run, flag[1]) and not has(config, flag[1]) else flag[0]

    return message if run is config else re.sub(r"--(\w+(?:\.\w+)*)", spelled, message)


def _run(config: Any) -> Any:
    """Of a study, the training of its model; else the configuration itself."""
    return getattr(config, "run", config)


def _reads_directory(config: Any) -> bool:
    """Whether the data of a configuration lie in a directory: it names a set, and none that is embedded."""
    from flashjax.data.config import EMBEDDED

    dataset = getattr(config, "dataset", None) or getattr(getattr(_run(config), "data", None), "dataset", None)
    return dataset is not None and dataset not in EMBEDDED


def _with_environment(config: Config) -> Config:
    """The configuration with the environment's directory of data, if it reads one and none is named."""
    if not _reads_directory(config) or getattr(config, "data_dir", None) is not None:
        return config
    return dataclasses.replace(config, data_dir=os.environ.get("TFDS_DATA_DIR") or None)  # type: ignore[type-var]


def _plans(run: Any, flags: str) -> bool:
    """Whether a plan is asked for; ``flags`` is how the flags of the run begin.

    Raises:
        ValueError: if only what belongs to a plan is, or a plan of a step that is compiled already.
    """
    if getattr(run, "plan", None) is not None:
        if run.compiled is not None:
            raise ValueError(f"a plan compiles anew and reads no file: leave out {flags}compiled {run.compiled}")
        return True
    for name in ("search", "save"):
        if getattr(run, name, None):
            raise ValueError(f"{flags}{name} belongs to a plan: say of which machine, as in {flags}plan v5e:4x4")
    return False


def _one_place(config: Config) -> Config:
    """A study whose `run`, the training of its models, has the study's data and directory.

    A flag of the run for either is an error: which of two to obey nobody can tell.
    """
    run: Any = getattr(config, "run", None)
    shared = [name for name in ("data_dir", "workdir") if hasattr(run, name) and hasattr(config, name)]
    for name in shared:
        if (value := getattr(run, name)) is not None:
            _fail(
                f"--run.{name} {value}: a study has one {name}, for its models and what is measured: --{name} {value}"
            )
    if not shared:
        return config
    same = {name: getattr(config, name) for name in shared}
    return dataclasses.replace(config, run=dataclasses.replace(run, **same))  # type: ignore[type-var]


def _constructors() -> tyro.constructors.ConstructorRegistry:
    """How settings that are no plain values are written in one word."""
    from flashjax.training.optimizers import Group

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def group(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        if info.type is not Group:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATTERN=RATE[,DECAY]",
            instance_from_str=lambda words: Group.parse(words[0]),
            is_instance=lambda value: isinstance(value, Group),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _paragraphs(text: str | None) -> str:
    """``text`` with its indented lines apart: the help page would run them together."""
    return re.sub(r"\n {4}", "\n\n", (text or "").strip())


def _value(args: Sequence[str], flag: str) -> str | None:
    """The last value given to ``--flag``, in either spelling."""
    found = None
    for i, arg in enumerate(args):
        if arg == f"--{flag}":
            if i + 1 == len(args):
                _fail(f"--{flag} needs a value")
            found = args[i + 1]
        elif arg.startswith(f"--{flag}="):
            found = arg.removeprefix(f"--{flag}=")
    return found


def _recorded(args: Sequence[str]) -> list[str]:
    """The arguments that made the run in ``--workdir``, where ``args`` ask to look at it."""
    workdir = _value(args, "workdir")
    if workdir is None or _value(args, "mode") in (None, "train"):
        return []
    path = Path(workdir) / "config.json"
    return json.loads(path.read_text())["arguments"] if path.is_file() else []


@contextlib.contextmanager
def friendly_errors(config: Any = None) -> Iterator[None]:
    """Errors that a user can act on become one message and exit status 2; FLASHJAX_DEBUG=1 shows where they arose.

    Of a study's ``config`` they name flags of its `run` as the study has them.
    """
    from flashjax.training.checkpoints import CheckpointError
    from flashjax.training.nonfinite import NonFiniteError
    from flashjax.training.rundir import RunDirectoryError

    try:
        yield
    except (ValueError, OSError, ImportError, CheckpointError, NonFiniteError, RunDirectoryError) as error:
        if os.environ.get("FLASHJAX_DEBUG"):
            raise
        _fail(f"{_as_a_study_has_them(config, str(error))}\n(FLASHJAX_DEBUG=1 shows where this arose)")


def _fail(message: str) -> Any:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def command(program: str) -> str:
    """The command line of this process, to be typed again."""
    return shlex.join(["python", "-m", program, *sys.argv[1:]])
