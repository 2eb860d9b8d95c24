"""Plans on record: what steps take on their pods, kept as JSON, so that a change that slows a pod is seen on a laptop.

    python -m flashjax.planning.recorded configs.pods tests/planning/pods.json [NAME ...]

plans the pods of a table (``configs.pods.PODS``) again, all or those named, and writes what `pytest -m plan` holds
later plans against. What should have changed is to be looked at in git.
"""

import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashjax.processes import in_process

Record = Mapping[str, Any]
"""JSON values: what `plan_pod` returns."""
TOLERANCE = 0.1
"""Of cycles and of the peak of memory, relative: versions of the compiler differ by less."""


@dataclass(frozen=True)
class Pod:
    """A launcher's step on a machine."""

    launcher: str
    """Module with PRESETS and build(config)."""
    arguments: tuple[str, ...]
    """Its command line."""
    topology: str
    """As of ``--plan``."""
    collectives: frozenset[str]
    """Kinds that are meant; another one is an accident."""


def plan_pod(pod: Pod) -> dict[str, Any]:
    """The figures of a pod's plan that are kept: cycles, seconds, utilisation, memory, collectives by kind, large
    tensors that are whole on each device, versions of the compilers. Nothing is written but the cache of programs.
    """
    from flashjax import cli
    from flashjax.analysis import topology as topologies
    from flashjax.planning import plan as plans
    from flashjax.training.parameters import parameter_rows
    from flashjax.training.sharding import LARGE_BYTES

    topologies.prepare([pod.topology])
    launcher, config = cli.launcher(pod.launcher, pod.arguments)
    plan, _, program = plans.plan_and_program(launcher.build, config, topologies.open_topology(pod.topology))
    rows = parameter_rows(program.abstract_state, program.shardings)
    time, collectives = plan["time"], plan["collectives"] or []
    return {
        "fits": plan["memory"]["fits"],
        "peak": plan["memory"]["peak"],
        "cycles": time.get("cycles"),
        "by_kind": time.get("by_kind"),
        "step_seconds": time.get("step_seconds"),
        "mfu": time.get("mfu"),
        "collectives": {
            kind: sum(row["count"] for row in collectives if row["kind"] == kind)
            for kind in sorted({row["kind"] for row in collectives})
        },
        "whole": [row.path for row in rows if row.bytes == row.bytes_per_device > LARGE_BYTES],
        "compile_seconds": plan["compile_seconds"],
        "versions": plan["versions"],
    }


def complaints(pod: Pod, found: Record, held: Record | None) -> list[str]:
    """What is wrong with a plan, or other than on record; a line each, none where all is as it was."""
    if "error" in found:
        return [f"no plan: {found['error']}"]
    lines = [] if found["fits"] else [f"it does not fit: {found['peak']} bytes are wanted of a device"]
    lines += [f"{path} is large and whole on each device" for path in found["whole"]]
    lines += [f"an unexpected {kind}" for kind in found["collectives"] if kind not in pod.collectives]
    if held is None:
        return [*lines, "nothing is on record for it"]
    for figure in ("cycles", "peak", "step_seconds"):  # the last has what has no estimate too
        now, then = found[figure], held[figure]
        if then and now is None:
            lines.append(f"{figure}: none now, {then:,} on record")
        elif then and abs(now / then - 1) > TOLERANCE:
            by = {kind: count - held["by_kind"].get(kind, 0) for kind, count in (found["by_kind"] or {}).items()}
            by.pop("custom call", None)  # which is not among the cycles
            most = f"; most of it in {max(by, key=lambda kind: abs(by[kind]))}" if figure == "cycles" else ""
            lines.append(f"{figure}: {now:,} now, {then:,} on record ({now / then - 1:+.1%}){most}")
    return lines


def in_own_process(pods: str, name: str) -> dict[str, Any]:
    """`plan_pod` of the table in the module ``pods``, under no flags of XLA, which would make another program."""
    return in_process("flashjax.planning.recorded", json.dumps({"pods": pods, "name": name}), {"XLA_FLAGS": ""})


def main() -> None:
    words = sys.argv[1:]
    if len(words) == 1 and words[0].startswith("{"):  # one pod, in the process that `in_own_process` began
        asked = json.loads(words[0])
        print(json.dumps(plan_pod(importlib.import_module(asked["pods"]).PODS[asked["name"]])))
        return
    if len(words) < 2 or words[0].startswith("-"):
        print(__doc__)
        raise SystemExit(0 if words[:1] == ["--help"] else 2)
    pods, file = importlib.import_module(words[0]).PODS, Path(words[1])
    if unknown := [name for name in words[2:] if name not in pods]:
        raise SystemExit(f"error: no pod {unknown[0]!r} in {words[0]}; there are {', '.join(pods)}")
    held = json.loads(file.read_text()) if file.is_file() else {}
    for name in words[2:] or pods:
        found = in_own_process(words[0], name)
        for line in complaints(pods[name], found, held.get(name)):
            print(f"{name}: {line}")
        if found.get("cycles"):  # one that does not fit has none, as the complaints say, and is not what to hold to
            held[name] = found
            file.write_text(json.dumps({name: held[name] for name in pods if name in held}, indent=1) + "\n")
            print(
                f"{name}: {found['cycles'] / 1e6:.1f} M cycles, compiled in {found['compile_seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
