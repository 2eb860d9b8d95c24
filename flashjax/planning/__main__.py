"""The plans of one launcher on several machines, side by side.

    python -m flashjax.planning experiments.swin_imagenet v5e:4x4 v5p:4x4x4 --preset tiny_1k

LAUNCHER TOPOLOGY [TOPOLOGY ...] [the launcher's flags]. `--plan` of a launcher does the same for one.
"""

import contextlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from flashjax import cli
from flashjax.analysis import topology as topologies


def show(program: str, config: Any) -> int:
    """Makes, prints and writes the plans that `config.plan` asks for; the exit status.

    Of several topologies one that cannot be planned is reported in its place, and the others are planned.

    Raises:
        ValueError: if the launcher has no step to plan, a name is no topology, what else is asked for is not to be had
            of these topologies, or the only one cannot be planned.
    """
    names = [name.strip() for name in config.plan.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--plan {config.plan!r} names no topology: want {topologies.FORM}")
    if config.save and len(names) != 1:
        raise ValueError(f"--save is of one topology, --plan names {len(names)}: {config.plan}")
    if config.search and (endless := [name for name in names if topologies.parse(name)[0] == "cpu"]):
        raise ValueError(
            f"--search fills a device's memory, and {endless[0]} has no limit: plan TPUs or GPUs, or leave out --search"
        )
    topologies.prepare(names)
    from flashjax.planning import plan_text

    launcher = importlib.import_module(program)
    if not hasattr(launcher, "build"):
        raise ValueError(f"{program} has no single train step to plan: it needs build(config)")
    made: list[Any] = []
    for name in names:
        try:
            made.append(_show_one(launcher.build, config, name))
        except ValueError as error:
            if len(names) == 1:
                raise
            print(f"error: {name}: {error}", file=sys.stderr)
    if len(made) > 1:
        print(plan_text.side_by_side(made))
    return 0 if len(made) == len(names) else 2


def _show_one(build: Any, config: Any, name: str) -> Any:
    """The plan for one topology, printed and written."""
    from flashjax.planning import plan as plans
    from flashjax.planning import plan_page, plan_text
    from flashjax.training import executables

    opened = topologies.open_topology(name)
    print(f"planning {config.preset} for {name}: compiling takes minutes the first time", file=sys.stderr)
    with executables.compiling_anew() if config.save else contextlib.nullcontext():
        plan, compiled, step = plans.plan_and_program(
            lambda changed: build(changed).without_evaluation(),
            config,
            opened,
            cache=config.save is None,
            search=config.search,
        )
    where = Path(step.experiment.workdir)
    where.mkdir(parents=True, exist_ok=True)
    stem = f"plan-{name.replace(':', '-')}"
    (where / f"{stem}.json").write_text(json.dumps(plan, indent=1) + "\n")
    page = plan_page.write(where / f"{stem}.html", plan)
    print(plan_text.in_words(plan))
    print(f"  numbers  {where / f'{stem}.json'}\n  page     {page}")
    if config.save:
        if compiled is None:
            raise ValueError(f"the step does not fit {name}: there is nothing to save")
        described = executables.describe(step.lower_step(), step.mesh)
        print(f"  step     {executables.save(config.save, compiled.executable, described)}")
    print(flush=True)
    return plan


def main() -> None:
    words = sys.argv[1:]
    flags = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    if flags < 2:
        print(__doc__)
        raise SystemExit(0 if words[:1] == ["--help"] else 2)
    program, names = words[0], words[1:flags]
    with cli.friendly_errors():
        cli.launcher(program, [*words[flags:], "--plan", ",".join(names)])


if __name__ == "__main__":
    main()
