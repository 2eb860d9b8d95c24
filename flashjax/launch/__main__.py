"""python -m flashjax.launch <target> [options] -- <command ...>"""

import sys
from collections.abc import Sequence

import tyro

from flashjax.launch.common import EXIT_USAGE, Target, launch
from flashjax.launch.kubernetes import Kubernetes
from flashjax.launch.local import Local
from flashjax.launch.slurm import Slurm
from flashjax.launch.tpu_vm import TpuVm
from flashjax.launch.xpk import Xpk
from flashjax.words import nearest

TARGETS: dict[str, type[Target]] = {kind.target: kind for kind in (Local, Slurm, TpuVm, Xpk, Kubernetes)}

USAGE = "usage: python -m flashjax.launch <target> [options] -- <command ...>"


def overview() -> str:
    """The page that --help prints."""
    lines = [USAGE, "", "Targets (python -m flashjax.launch <target> --help shows the options of one):"]
    lines += [f"  {name:<11} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in TARGETS.items()]
    lines += [
        "",
        "Each writes the script it would run, names its path, and runs it if its client program is here.",
        "With --print it shows the script and runs nothing. Everything after -- reaches the command unchanged.",
        "",
        "Exit status: 0; 2 wrong usage; 3 the client program is missing (the script is written); else the client's,",
        "or, for local, that of the first process that failed.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Exit status of the launch that ``argv`` describes."""
    split = list(argv).index("--") if "--" in argv else len(argv)
    options, command = list(argv[:split]), list(argv[split + 1 :])
    if options and options[0] in ("-h", "--help"):
        print(overview())
        return 0
    if not options or options[0].startswith("-"):
        return _usage_error(f"name a target: {', '.join(TARGETS)}")
    name = options.pop(0)
    if name not in TARGETS:
        near = nearest(name.replace("_", "-"), TARGETS, count=1)
        return _usage_error(f"unknown target {name!r}; nearest: {near}. All: {', '.join(TARGETS)}")
    target = tyro.cli(
        TARGETS[name],
        prog=f"python -m flashjax.launch {name}",
        args=options,
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        if target.needs_command and not command:
            raise ValueError("no command: put it after --, as in -- python -m experiments.swin_imagenet")
        return launch(target, command)
    except (ValueError, OSError) as error:
        return _usage_error(str(error))


def _usage_error(message: str) -> int:
    print(f"error: {message}\n{USAGE}", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
