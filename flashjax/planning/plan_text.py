"""A plan in words and tables: for the terminal, and for the page."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from flashjax.analysis.chips import Chip
from flashjax.drawing import text_table
from flashjax.ops import platform
from flashjax.planning.plan import Plan, grouped
from flashjax.training.experiment import told_speed
from flashjax.training.parameters import human_bytes

NOT_AVAILABLE = "n/a"


def told_bytes(value: float | None) -> str:
    """Rounded, in KiB and so on, with a minus where it is negative; None: n/a."""
    if value is None:
        return NOT_AVAILABLE
    return f"-{human_bytes(round(-value))}" if value < 0 else human_bytes(round(value))


def told_time(value: float | None) -> str:
    """Seconds, as s, ms or µs; None: n/a."""
    if value is None:
        return NOT_AVAILABLE
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.2f} ms" if value >= 1e-3 else f"{1e6 * value:.1f} µs"


def told_count(value: float | None, digits: int = 3) -> str:
    """1,234 as 1.23 k, and so on; None: n/a."""
    if value is None:
        return NOT_AVAILABLE
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.{digits}g} {unit}"
    return f"{value:.0f}"


def told_share(value: float, whole: float) -> str:
    """Per cent of a whole; n/a where that is 0."""
    return f"{value / whole:.1%}" if whole else NOT_AVAILABLE


def title(plan: Plan) -> str:
    """Name, preset and machine."""
    return f"{plan['name']} {plan['preset']} on {plan['topology']}"


def lead(plan: Plan) -> str:
    """Devices, mesh, batch, and what the model has chosen for them."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items()) or "one device"
    chosen = "".join(f"; chosen here: {words}" for words in [platform.in_words(plan["choices"])] if words)
    tokens = plan["example_tokens"]
    examples = f"rows of {tokens:,} tokens" if tokens else "examples"
    return (
        f"{plan['devices']} x {plan['device_kind']}; mesh: {mesh}; {plan['batch_size']} {examples} a step, "
        f"{plan['device_batch']} a device{chosen}"
    )


def speed(plan: Plan) -> str:
    """Of all devices: tokens a second of text, examples of others."""
    rate = plan["time"].get("examples_per_second")
    if rate is None:
        return NOT_AVAILABLE
    unit, value = told_speed(rate, plan["example_tokens"])
    return f"{value:,.0f} {unit}"


def verdict(plan: Plan) -> str:
    """Whether it fits, and by how much."""
    memory = plan["memory"]
    if memory["fits"] is None:
        return f"peak {told_bytes(memory['peak'])} of a device; its size is not known" if memory["peak"] else "peak n/a"
    free = told_bytes(abs(memory["margin"])) if memory["margin"] is not None else "an unknown amount"
    if memory["fits"]:
        return f"fits: {told_bytes(memory['peak'])} of {told_bytes(memory['hbm'])}, {free} free"
    return f"does not fit: {told_bytes(memory['peak'])} wanted of {told_bytes(memory['hbm'])}, {free} missing"


def memory_rows(plan: Plan) -> list[list[str]]:
    """Name, bytes, label."""
    memory = plan["memory"]
    rows = [[name, told_bytes(size), "exact"] for name, size in memory["held"].items()]
    if found := memory["compiler"]:
        rows += [
            ["temporaries, gradients among them", told_bytes(found["temporaries"]), "compiler"],
            ["program", told_bytes(found["program"] or None), "compiler"],  # some compilers do not say
        ]
    rows.append(["peak", told_bytes(memory["peak"]), "compiler"])
    rows.append(
        ["memory of a device", told_bytes(memory["hbm"]), "compiler" if plan["device_kind"][:3] == "TPU" else "chip"]
    )
    return rows


CHIP_HEADS = ["device", "bf16 FLOP/s", "int8 op/s", "memory", "bandwidth", "clock", "links, sent"]


def chip_row(kind: str, chip: Mapping[str, float | None] | None) -> list[str]:
    """The cells of `CHIP_HEADS`: the fields of `flashjax.analysis.chips.Chip`, in units of ten."""
    units = {
        **{"bf16_flops": "", "int8_ops": "", "hbm_bytes": "B", "hbm_bandwidth": "B/s"},
        **{"clock": "Hz", "link_bandwidth": "B/s"},
    }
    found = [((chip or {}).get(name), unit) for name, unit in units.items()]
    return [kind, *(NOT_AVAILABLE if value is None else f"{told_count(value, 5)}{unit}" for value, unit in found)]


def chips_table(chips: Mapping[str, Chip]) -> str:
    """A row for each device, those of the same figures together; as docs/plan.md has it."""
    together: dict[Chip, list[str]] = defaultdict(list)
    for kind, chip in chips.items():
        together[chip].append(kind)
    return text_table(
        CHIP_HEADS, [chip_row(", ".join(kinds), dataclasses.asdict(chip)) for chip, kinds in together.items()]
    )


def flops_label(plan: Plan) -> str:
    """How far counted FLOPs can be trusted: `exact` or `at least`."""
    return "exact" if plan["flops_exact"] else "at least"


def time_rows(plan: Plan) -> list[list[str]]:
    """Name, value, label."""
    time, flops, counted = plan["time"], plan["flops"], flops_label(plan)
    rows = [
        ["FLOPs of a step", told_count(flops["all"]), counted],
        ["of these computed again (remat)", told_count(flops["recomputed"]), counted],
        ["useful: the model's own, each once", told_count(flops["useful"]), counted],
    ]
    floors = time["floors"]
    rows += [
        ["floor by FLOPs at the chip's peak", told_time(floors["flops"]), "floor"],
        ["floor by bytes of the schedule", told_time(floors["bytes"]), "floor"],
        ["floor of the collectives", told_time(floors["collectives"]), "floor"],
    ]
    if time["cycles"] is None:
        return [*rows, ["step time", NOT_AVAILABLE, "estimate"]]
    return [
        *rows,
        ["cycles of the schedule", told_count(time["cycles"]), "estimate"],
        ["they, at the chip's clock", told_time(time["cycles"] / plan["chip"]["clock"]), "estimate"],
        [
            "others, by schedule or bytes",
            told_time((time["taken"] - time["cycles"]) / plan["chip"]["clock"]),
            "estimate",
        ],
        ["collectives without cycles", told_time(time["collectives"]), "floor"],
        ["step time", told_time(time["step_seconds"]), "estimate"],
        ["speed, all devices", speed(plan), "estimate"],
        ["MFU, of the useful FLOPs", f"{time['mfu']:.1%}", "estimate"],
    ]


MODULE_HEADS = [
    *("module", "parameters", "sharding", "state/device", "wasted", "kept/device"),
    *("FLOPs fwd", "again", "bwd", "cycles", "of all"),
]


def module_rows(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells of `MODULE_HEADS`."""
    total = plan["time"].get("taken")
    return [
        [
            row["path"],
            f"{row['parameters']:,}" if row["parameters"] else "",
            "; ".join(row["specs"][:3]) + (" ..." if len(row["specs"]) > 3 else ""),
            told_bytes(row["state_bytes_per_device"]) if row["state_bytes_per_device"] else "",
            told_bytes(row["wasted_bytes"]) if row["wasted_bytes"] else "",
            told_bytes(row["activation_bytes_per_device"]) if row["activation_bytes_per_device"] else "",
            *(
                told_count(row["flops"][part]) if row["flops"][part] else ""
                for part in ("forward", "recomputed", "backward")
            ),
            told_count(row["cycles"]) if total else NOT_AVAILABLE,
            told_share(row["cycles"], total) if total else NOT_AVAILABLE,
        ]
        for row in rows
    ]


COLLECTIVE_HEADS = ["collective", "axes", "pass", "count", "bytes", "sent/device", "floor"]


def collective_rows(plan: Plan) -> list[list[str]]:
    """The cells of `COLLECTIVE_HEADS`."""
    return [
        [
            row["kind"],
            "+".join(row["axes"]) or "?",
            row["pass"],
            str(row["count"]),
            told_bytes(row["bytes"]),
            told_bytes(row["wire_bytes"]),
            told_time(row["floor_seconds"]),
        ]
        for row in plan["collectives"] or []
    ]


FRONTIER_HEADS = ["remat", "kept/device", "peak", "largest batch of a device", "FLOPs computed again", "label"]


def frontier_rows(plan: Plan) -> list[list[str]]:
    """The cells of `FRONTIER_HEADS`."""
    return [
        [
            "no choice" if row["remat"] is None else str(row["remat"]),
            told_bytes(row["kept_bytes_per_device"]),
            told_bytes(row["peak"]),
            largest_batch(row),
            f"{told_count(row['recomputed_flops'])} ({row['overhead']:+.1%})",
            "compiler; batch: estimate"
            if row["label"] == "compiler" and row["largest_batch"] is not None and batch_label(row) == "estimate"
            else row["label"],
        ]
        for row in plan["frontier"]
    ]


def largest_batch(row: Mapping[str, Any]) -> str:
    """The number, or between which a search has left it."""
    if row["largest_batch"] is not None:
        return f"{row['largest_batch']:,}"
    low, high = row.get("bracket") or (None, None)
    return ", ".join(f"{sign} {value:,}" for sign, value in ((">=", low), ("<", high)) if value) or NOT_AVAILABLE


def batch_label(row: Mapping[str, Any]) -> str:
    """Whether the largest batch was compiled or estimated."""
    return "compiler" if "compiled_batches" in row else "estimate"


WORST_HEADS = ["cycles", "of all", "kind", "times", "pass", "module", "source", "shape"]


def worst_rows(plan: Plan) -> list[list[str]]:
    """The cells of `WORST_HEADS`."""
    time = plan["time"]
    return [
        [
            told_count(row["cycles"]),
            told_share(row["cycles"], time["taken"]),
            row["kind"],
            str(row["executions"]),
            row["pass"],
            row["module"],
            row["source"],
            row["shape"][:60],
        ]
        for row in time.get("worst", [])
    ]


CUSTOM_HEADS = ["custom call", "module", "times", "bytes", "floor", "scheduled cycles", "taken as", "VMEM"]
MOST_CUSTOM = 10
"""Rows of them."""


def custom_rows(plan: Plan) -> list[list[str]]:
    """The longest, and how many others there are."""
    calls = plan["time"].get("custom_calls", [])
    rows = [
        [
            row["target"],
            row["module"],
            str(row["count"]),
            told_bytes(row["bytes"]),
            told_time(row["floor_seconds"]),
            told_count(row["scheduled_cycles"]) if row["scheduled_cycles"] else "n/a",
            told_time(row["seconds"]),
            told_bytes(row["chip_memory"]) if row["chip_memory"] else "n/a",
        ]
        for row in calls[:MOST_CUSTOM]
    ]
    if rest := calls[MOST_CUSTOM:]:
        count, taken = (sum(row[name] for row in rest) for name in ("count", "seconds"))
        rows.append(
            [
                f"and {len(rest)} more",
                "",
                str(count),
                told_bytes(sum(row["bytes"] for row in rest)),
                "",
                "",
                told_time(taken),
                "",
            ]
        )
    return rows


def in_words(plan: Plan) -> str:
    """All of it for a terminal."""
    parts = [f"{title(plan)}: {verdict(plan)}\n{lead(plan)}"]
    parts.append(text_table(["memory of a device", "bytes", "what it is"], memory_rows(plan)))
    parts.append(text_table(["time of a step", "value", "what it is"], time_rows(plan)))
    parts.append(text_table(["device (chip)", *CHIP_HEADS[1:]], [chip_row(plan["device_kind"], plan["chip"])]))
    time = plan["time"]
    if total := time.get("taken"):
        clock = plan["chip"]["clock"]
        kinds = [
            [kind, told_count(n), told_time(n / clock), told_share(n, total)]
            for kind, n in time["by_kind"].items()
            if n
        ]
        parts.append(text_table(["cycles by kind (estimate)", "cycles", "time", "of all"], kinds))
    parts.append(text_table(MODULE_HEADS, module_rows(plan, grouped(plan))))
    for heads, rows in (
        (COLLECTIVE_HEADS, collective_rows(plan)),
        (FRONTIER_HEADS, frontier_rows(plan)),
        (WORST_HEADS, worst_rows(plan)),
        (CUSTOM_HEADS, custom_rows(plan)),
    ):
        if rows:
            parts.append(text_table(heads, rows))
    if plan["collectives"] == []:
        parts.append("no collectives")
    notes = [*plan["notes"], *warnings(plan)]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def warnings(plan: Plan) -> list[str]:
    """What a reader should not overlook."""
    found = []
    wasted = sum(row["wasted_bytes"] for row in plan["modules"])
    for row in plan["frontier"]:
        if row.get("search_error"):
            found.append(f"The search with remat {row['remat']} ended with an error at {row['search_error']}")
    hbm = plan["memory"]["hbm"]
    if hbm and wasted > 0.1 * hbm:
        found.append(f"Replication takes {told_bytes(wasted)} of each device: --mesh.fsdp splits the state.")
    if without := plan["time"].get("without_estimate"):
        words = ", ".join(f"{count} {name}" for name, count in list(without.items())[:4])
        found.append(
            f"The compiler makes no estimate of cycles for {words}: their bytes by the bandwidth stand for them."
        )
    if calls := plan["time"].get("custom_calls"):
        found.append(
            "Custom calls are not among the cycles of the schedule. Each takes its bytes by the "
            "bandwidth or the compiler's schedule of its kernel, whichever is longer."
        )
        if unknown := sum(row["count"] for row in calls if row["scheduled_cycles"] is None):
            found.append(f"Of {unknown} custom calls the schedule is not known: the floor stands for them.")
    return found


SIDE_HEADS = ["", "fits", "peak", "free", "step", "MFU", "speed", "floor FLOPs", "floor bytes", "collectives"]


def side_by_side(plans: Sequence[Plan]) -> str:
    """The main figures of several plans."""
    rows = []
    for plan in plans:
        memory, time = plan["memory"], plan["time"]
        fits = {True: "yes", False: "no", None: NOT_AVAILABLE}[memory["fits"]]
        rows.append(
            [
                f"{plan['preset']} on {plan['topology']}",
                fits,
                told_bytes(memory["peak"]),
                told_bytes(memory["margin"]),
                told_time(time.get("step_seconds")),
                f"{time['mfu']:.1%}" if time.get("mfu") else NOT_AVAILABLE,
                speed(plan),
                *(told_time(time["floors"][name]) for name in ("flops", "bytes", "collectives")),
            ]
        )
    return text_table(SIDE_HEADS, rows)
