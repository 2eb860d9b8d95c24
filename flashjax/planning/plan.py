"""The plan of a train step: what it takes on a machine that is not there, before anything is queued.

Every figure is one of these kinds, and says which:
- *exact*: arithmetic on shapes and shardings: bytes of state, FLOPs of the jaxpr (*at least* where it does not say how
  often a loop runs);
- *compiler*: the compiler's own analysis of the program that would run: memory, collectives;
- *estimate*: a model of something: the compiler's cycles, activations read from the jaxpr;
- *floor*: what no program of these FLOPs or bytes can beat on this chip.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jax.extend import core

import flashjax
from flashjax.analysis import activations, collectives, cycles, hlo, kernels, modules
from flashjax.analysis.chips import Chip
from flashjax.analysis.flops import flops_by, is_exact, turns_of_loops
from flashjax.analysis.topology import Topology
from flashjax.data import described
from flashjax.planning.compiled import Compiled, OutOfMemoryError, compile_for
from flashjax.planning.frontier import Plan, frontier
from flashjax.planning.tracing import Build, build, policies, useful_flops
from flashjax.training.executables import compilers
from flashjax.training.experiment import Experiment
from flashjax.training.mesh import batch_shards
from flashjax.training.parameters import parameter_rows
from flashjax.training.program import Program

ROOT = str(Path(flashjax.__path__[0]).parent)
ELSEWHERE = "loss and the rest"
"""What stands under no module."""


def make(launcher_build: Build, config: Any, topology: Topology, cache: bool = True, search: bool = False) -> Plan:
    """The plan of the experiment that a launcher builds of `config`, on `topology`.

    With `search` the largest batches are found by compiling, minutes for each; without, they are estimates.

    Raises:
        ValueError: as the launcher, the mesh and the batch sizes do.
    """
    return plan_and_program(launcher_build, config, topology, cache, search)[0]


def plan_and_program(
    launcher_build: Build, config: Any, topology: Topology, cache: bool = True, search: bool = False
) -> tuple[Plan, Compiled | None, Program]:
    """`make`, with the compiled step (None where it does not fit) and what it is compiled from."""
    experiment = build(launcher_build, config)
    program = Program(experiment, topology.devices)
    traced = program.traced_step.jaxpr
    compiled, wanted = None, None
    with ThreadPoolExecutor(1) as beside:
        compiling = beside.submit(compile_for, program.lower_step(), topology, cache)
        # What is traced alone is traced meanwhile.
        found = policies(launcher_build, config, topology, traced)
        flops = dict(found[0].flops)
        flops["useful"] = useful_flops(launcher_build, config, program, flops)
        try:
            compiled = compiling.result()
        except OutOfMemoryError as error:
            wanted = error.wanted
    if compiled:
        _tell_turns(compiled.module, traced)
    shards = batch_shards(program.mesh)
    plan: Plan = {
        "name": experiment.name,
        "preset": experiment.config.preset,
        "topology": topology.name,
        "device_kind": topology.kind,
        "devices": len(topology.devices),
        "mesh": {axis: size for axis, size in program.mesh.shape.items() if size > 1},
        "batch_size": experiment.train_data.batch_size,
        "device_batch": experiment.train_data.batch_size // shards,
        "example_tokens": experiment.example_tokens,
        "accumulate": experiment.config.train.accumulate,
        "choices": program.choices,
        "chip": dataclasses.asdict(topology.chip) if topology.chip else None,
        "versions": compilers(),
        "compile_seconds": compiled.seconds if compiled else None,
        "notes": _notes(experiment, compiled, wanted, topology),
    }
    costs = []
    if compiled and topology.platform != "cpu":
        chip = topology.chip
        costs = cycles.costs(
            compiled.module,
            ROOT,
            cache=topology.cache,
            bundles=compiled.bundles,
            cores=topology.cores,
            bytes_a_cycle=chip.hbm_bandwidth / chip.clock if chip and chip.clock else math.inf,
        )
    plan["flops"] = flops
    plan["flops_exact"] = is_exact(traced)
    if not plan["flops_exact"]:
        plan["notes"].append(
            "Products stand in loops of unknown length, which are counted once: FLOPs are at least these."
        )
    plan["modules"] = _modules(program, traced, costs, shards)
    plan["collectives"] = _collectives(compiled, program, topology.chip, costs) if compiled else None
    plan["memory"] = _memory(program, compiled, wanted, topology)
    plan["time"] = _time(plan, costs, topology)
    plan["frontier"] = frontier(launcher_build, topology, plan, found, cache, search)
    return plan, compiled, program


def _notes(experiment: Experiment, compiled: Compiled | None, wanted: int | None, topology: Topology) -> list[str]:
    notes = []
    if isinstance(experiment.train_data, described.Described):
        notes.append("The data were not opened: shapes are those of the configuration.")
    if compiled is None:
        notes.append(
            "The compiler finds no room for the step on a device, so that there are no cycles and no collectives"
            + ("." if wanted else ", and it does not say how much is missing.")
        )
    elif unknown := _unknown_loops(compiled):
        notes.append(f"{unknown} loops of unknown length are counted once.")
    if topology.platform == "gpu":
        notes.append(
            "The memory of a GPU is the share that JAX takes of it (XLA_PYTHON_CLIENT_MEM_FRACTION). On a GPU kernels "
            "are tried out and chosen when a program is compiled, here by rule: memory may differ somewhat. Floors "
            "leave out what can lie in the L2 cache, and take NVLink for the way between hosts too."
        )
    return notes


def _tell_turns(module: hlo.Module, traced: core.ClosedJaxpr) -> None:
    """Gives the program's loops of unknown length the turns that the jaxpr's of the same place and pass have, in order;
    where a place has another number of them, each has the mean."""
    unknown: dict[modules.Place, list[str]] = defaultdict(list)
    for name in module.executions():
        for i in module.computations.get(name, ()):
            if i.opcode == "while" and module.trips(name, i) is None:
                unknown[modules.place_in_hlo(i.op_name)].append(i.name)
    known: dict[modules.Place, list[float | None]] = defaultdict(list)
    for stack, turns in turns_of_loops(traced) if unknown else []:
        known[modules.place(stack)].append(turns)
    for where, names in unknown.items():
        turns = [x for x in known[where] if x is not None]
        if turns and len(turns) == len(known[where]):
            mean = sum(turns) / len(turns)
            module.turns.update(zip(names, turns if len(turns) == len(names) else [mean] * len(names), strict=True))


def _unknown_loops(compiled: Compiled) -> int:
    module = compiled.module
    return sum(
        module.trips(name, i) is None
        for name in module.executions()
        for i in module.computations.get(name, ())
        if i.opcode == "while"
    )


def _modules(program: Program, traced: core.ClosedJaxpr, costs: list[cycles.Cost], shards: int) -> list[dict[str, Any]]:
    """A row for each innermost module, in the order of the model."""
    rows: dict[str, dict[str, Any]] = defaultdict(
        lambda: {
            **dict.fromkeys(("parameters", "state_bytes", "state_bytes_per_device", "wasted_bytes"), 0),
            **dict.fromkeys(("activation_bytes_per_device", "cycles"), 0),
            "specs": [],
            "flops": dict.fromkeys(modules.PASSES, 0),
        }
    )
    for (module, part), count in flops_by(traced, lambda _, stack: modules.place(stack)).items():
        rows[module]["flops"][part] += int(count)
    state, where = program.abstract_state, program.shardings
    paths = {row.path for row in parameter_rows(state.params, where.params)}
    for name in ("params", "opt_state", "ema", "collections"):
        for row in parameter_rows(getattr(state, name), getattr(where, name)):
            words = row.path.split("/")
            path = next((p for i in range(len(words)) if (p := "/".join(words[i:])) in paths), None)
            if path is None:
                path = row.path if name == "collections" else "optimizer/x"
            found = rows[path.rpartition("/")[0]]
            if name == "params":
                found["parameters"] += math.prod(row.shape)
                if row.spec not in found["specs"]:
                    found["specs"].append(row.spec)
            found["state_bytes"] += row.bytes
            found["state_bytes_per_device"] += row.bytes_per_device
            found["wasted_bytes"] += row.bytes_per_device - row.bytes // program.mesh.size
    for module, size in activations.kept(traced).items():
        rows[module]["activation_bytes_per_device"] += size // shards
    for module, count in cycles.by(costs, lambda c: c.place.module).items():
        rows[module]["cycles"] += count
    made = [{"path": path or ELSEWHERE, **row} for path, row in rows.items()]
    order = {path: i for i, path in enumerate(dict.fromkeys(_order(traced)))}
    made.sort(key=lambda row: order.get(row["path"], len(order)))
    return [
        row
        for row in made
        if any(row[n] for n in ("parameters", "state_bytes", "activation_bytes_per_device", "cycles"))
        or sum(row["flops"].values())
    ]


def _order(traced: core.ClosedJaxpr) -> list[str]:
    """Modules in the order in which the step first names them."""
    return list(flops_by(traced, lambda _, stack: modules.place(stack).module, elementwise=True))


def grouped(plan: Plan, depth: int = 2) -> list[dict[str, Any]]:
    """The rows of `modules`, together by the first `depth` names, in order."""
    groups: dict[str, dict[str, Any]] = {}
    for row in plan["modules"]:
        path = modules.above(row["path"], depth)
        into = groups.setdefault(path, {"path": path, "specs": [], "flops": Counter()})
        for name, value in row.items():
            if name == "flops":
                into["flops"].update(value)
            elif name == "specs":
                into["specs"] += [spec for spec in value if spec not in into["specs"]]
            elif name != "path":
                into[name] = into.get(name, 0) + value
    return list(groups.values())


def _collectives(
    compiled: Compiled, program: Program, chip: Chip | None, costs: list[cycles.Cost]
) -> list[dict[str, Any]]:
    """Together by kind, axes and what they are for; `floor_seconds` of all of them one after the other, `added_seconds`
    of those alone that are not among the cycles."""
    mesh, parts = dict(program.mesh.shape), _combined(compiled.module)
    counted = {name for c in costs if c.cycles is not None and not c.overlapped for name in c.collectives}
    together: dict[tuple[Any, ...], list[collectives.Collective]] = defaultdict(list)
    for found in collectives.collectives(compiled.module):
        axes = collectives.axes_of(found.group, mesh) if found.group else ()
        part = parts.get(found.name) or modules.place_in_hlo(found.op_name).part
        together[found.kind, axes, part].append(found)
    link = chip.link_bandwidth if chip else None
    rows = []
    for (kind, axes, part), members in together.items():
        wire = sum(c.executions * c.wire_bytes for c in members)
        added = sum(c.executions * c.wire_bytes for c in members if c.name not in counted)
        rows.append(
            {
                "kind": kind,
                "axes": list(axes),
                "pass": part,
                "count": sum(c.executions for c in members),
                "bytes": sum(c.executions * c.bytes for c in members),
                "wire_bytes": wire,
                "floor_seconds": wire / link if link else None,
                "added_seconds": added / link if link else None,
                "largest": max(c.bytes for c in members),
                "from": max(members, key=lambda c: c.bytes).op_name[-160:],
            }
        )
    return sorted(rows, key=lambda row: -row["wire_bytes"])


def _combined(module: hlo.Module) -> dict[str, str]:
    """The pass of the collectives that combine several arrays: that from which most of their bytes come, 'several'
    where it is not half of them. The compiler names a combined one after the first."""
    found = {}
    for instructions in module.computations.values():
        by_name = {i.name: i for i in instructions}
        for instruction in instructions:
            given = [by_name[name] for name in instruction.operands if name in by_name]
            if len(given) < 2 or instruction.base not in collectives.KINDS:
                continue
            sizes: Counter[str] = Counter()
            for operand in given:
                maker = operand
                while not maker.op_name and maker.operands and maker.operands[0] in by_name:
                    maker = by_name[maker.operands[0]]
                sizes[modules.place_in_hlo(maker.op_name).part] += operand.bytes
            ((part, most),) = sizes.most_common(1)
            found[instruction.name] = part if 2 * most > sizes.total() else "several"
    return found


def _held(program: Program) -> dict[str, int]:
    """Bytes of one device, exact."""
    state, where = program.abstract_state, program.shardings
    names = {"parameters": "params", "optimizer state": "opt_state", "average": "ema", "collections": "collections"}
    held = {
        name: sum(r.bytes_per_device for r in parameter_rows(getattr(state, part), getattr(where, part)))
        for name, part in names.items()
    }
    spec = program.experiment.train_data.spec
    rows = sum(math.prod(s.shape) * s.dtype.itemsize for s in spec.values()) // batch_shards(program.mesh)
    return {name: size for name, size in held.items() if size} | {"batch": rows, "gradients": held["parameters"]}


def _memory(program: Program, compiled: Compiled | None, wanted: int | None, topology: Topology) -> dict[str, Any]:
    """Bytes of one device."""
    hbm = topology.hbm_bytes
    found = compiled.memory if compiled else None
    peak = found.peak if found else wanted
    return {
        "held": _held(program),
        "compiler": dataclasses.asdict(found) if found else None,
        "peak": peak,
        "hbm": hbm,
        "fits": (False if compiled is None else None if hbm is None or peak is None else peak <= hbm),
        "margin": None if hbm is None or peak is None else hbm - peak,
    }


def _time(plan: Plan, costs: list[cycles.Cost], topology: Topology) -> dict[str, Any]:
    """Seconds and cycles of one step on one device; of one that does not fit the floor by FLOPs alone."""
    chip, devices, moved = topology.chip, plan["devices"], plan["collectives"]
    flops = plan["flops"]["all"] / devices
    floors = {
        "flops": flops / chip.bf16_flops if chip else None,
        "bytes": sum(c.traffic * c.executions for c in costs) / chip.hbm_bandwidth if chip and costs else None,
        "collectives": (
            sum(row["floor_seconds"] for row in moved) if chip and chip.link_bandwidth and moved is not None else None
        ),
    }
    found: dict[str, Any] = {"floors": floors}
    if not costs or chip is None or not chip.clock:
        return found | {"cycles": None, "step_seconds": None, "mfu": None}
    by_kind = cycles.by(costs, lambda c: c.kind)
    added = sum(row["added_seconds"] or 0.0 for row in moved or [])
    seconds = by_kind.total() / chip.clock + added
    useful = plan["flops"]["useful"] / devices
    return found | {
        "cycles": sum(c.total for c in costs if not c.overlapped),
        "taken": by_kind.total(),  # those, and what takes its time without an estimate
        "collectives": added,
        "by_kind": dict(by_kind.most_common()),
        "by_pass": dict(cycles.by(costs, lambda c: c.place.part).most_common()),
        "by_module_and_kind": _by_module_and_kind(costs),
        "worst": [_worst(cost) for cost in cycles.worst(costs)],
        "without_estimate": _without(costs),
        "custom_calls": _custom_calls(costs, chip),
        "step_seconds": seconds,
        "mfu": useful / seconds / chip.bf16_flops,
        "examples_per_second": plan["batch_size"] / seconds,
    }


def _by_module_and_kind(costs: list[cycles.Cost], depth: int = 2) -> dict[str, dict[str, int]]:
    """Cycles by the first names of a module, the dearest first, and in it by kind."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for cost in costs:
        if not cost.overlapped:
            found[modules.above(cost.place.module, depth) or ELSEWHERE][cost.kind] += cost.taken
    return dict(sorted(found.items(), key=lambda item: -sum(item[1].values())))


def _worst(cost: cycles.Cost) -> dict[str, Any]:
    return {
        "cycles": cost.taken,
        "kind": cost.kind,
        "executions": cost.executions,
        "module": cost.place.module or ELSEWHERE,
        "pass": cost.place.part,
        "source": cost.source,
        "shape": cost.shape,
        "instruction": cost.name,
    }


def _without(costs: list[cycles.Cost]) -> dict[str, int]:
    """Executions of what has no estimate and is larger than a scalar, by opcode."""
    found = Counter()
    for cost in costs:
        counted_apart = cost.overlapped or cost.kind in ("custom call", "collective")
        if cost.cycles is None and not counted_apart and cost.bytes > 1024:
            found[cost.opcode] += cost.executions
    return dict(found.most_common())


def _custom_calls(costs: list[cycles.Cost], chip: Chip) -> list[dict[str, Any]]:
    """What the compiler has no estimate for, by target, the longest first: kernels of Pallas and its own."""
    together: dict[tuple[str, str, str], list[cycles.Cost]] = defaultdict(list)
    for cost in costs:
        # One whose arrays are all in the chip's own memory has no traffic, and takes its time all the same.
        apart = cost.kind == "custom call" and cost.cycles is None
        if apart and (cost.target == kernels.TARGET or cost.traffic > 1024):
            together[cost.target, cost.place.module, cost.shape].append(cost)
    found = []
    for (target, module, shape), members in together.items():
        floor = sum(c.traffic * c.executions for c in members) / chip.hbm_bandwidth
        known = [c.scheduled * c.executions for c in members if c.scheduled is not None]
        scheduled = sum(known) if len(known) == len(members) else None
        found.append(
            {
                "target": target,
                "module": module or ELSEWHERE,
                "count": sum(c.executions for c in members),
                "bytes": sum(c.traffic * c.executions for c in members),
                "floor_seconds": floor,
                "scheduled_cycles": scheduled,
                "chip_memory": max((c.chip_memory for c in members if c.chip_memory is not None), default=None),
                "seconds": sum(c.taken for c in members) / (chip.clock or math.inf),
                "shape": shape,
            }
        )
    return sorted(found, key=lambda call: -call["seconds"])
