"""The plans of one launcher on several machines, side by side.

    python -m flashjax.planning experiments.swin_imagenet v5e:4x4 v5p:4x4x4 --preset tiny_1k

LAUNCHER TOPOLOGY [TOPOLOGY ...] [the launcher's flags]. `--plan` of a launcher does the same for one.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from flashjax import cli
from flashjax.planning import topology as topologies
from flashjax.planning.topology import TopologyError


def show(program: str, config: Any) -> int:
    """Makes, prints and writes the plans that `config.plan` asks for; the exit status.

    Raises:
        ValueError: if the launcher has no step to plan, the name is no topology, or its compiler is not there.
    """
    names = [name.strip() for name in config.plan.split(",") if name.strip()]
    if config.save and len(names) != 1:
        raise ValueError(f"--save is of one topology, --plan names {len(names)}: {config.plan}")
    topologies.prepare(names)
    from flashjax.planning import plan as plans
    from flashjax.planning import plan_page

    launcher = importlib.import_module(program)
    if not hasattr(launcher, "build"):
        raise ValueError(f"{program} has no single train step to plan: it needs build(config)")
    made: list[plans.Plan] = []
    for name in names:
        try:
            opened = topologies.open_topology(name)
        except TopologyError as error:
            if len(names) == 1:
                raise
            print(f"{name}: {error}\n")
            continue
        print(f"planning {config.preset} for {name}: compiling takes minutes the first time", file=sys.stderr)
        plan, compiled, step = plans.plan_and_program(
            launcher.build, config, opened, cache=config.save is None, search=config.search
        )
        made.append(plan)
        where = Path(step.experiment.workdir)
        where.mkdir(parents=True, exist_ok=True)
        stem = f"plan-{name.replace(':', '-')}"
        (where / f"{stem}.json").write_text(json.dumps(plan, indent=1) + "\n")
        page = plan_page.write(where / f"{stem}.html", plan)
        print(plan_page.text(plan))
        print(f"  numbers  {where / f'{stem}.json'}\n  page     {page}")
        if config.save:
            from flashjax.training import executables

            if compiled is None:
                raise ValueError(f"the step does not fit {name}: there is nothing to save")
            described = executables.describe(step.lower_step(), step.mesh)
            print(f"  step     {executables.save(config.save, compiled.executable, described)}")
        print(flush=True)
    if len(made) > 1:
        print(plan_page.side_by_side(made))
    return 0 if made else 2


def main() -> None:
    words = sys.argv[1:]
    flags = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    if flags < 2:
        print(__doc__)
        raise SystemExit(0 if words[:1] == ["--help"] else 2)
    program, names = words[0], words[1:flags]
    with cli.friendly_errors():
        launcher = importlib.import_module(program)
        if not hasattr(launcher, "PRESETS") or not hasattr(launcher, "build"):
            raise ValueError(f"{program} is no launcher: it needs PRESETS and build(config)")
    first = next(iter(launcher.PRESETS))
    arguments = [*words[flags:], "--plan", ",".join(names)]
    cli.parse(launcher.PRESETS, program, launcher.__doc__, with_data=first, args=arguments)


if __name__ == "__main__":
    main()
