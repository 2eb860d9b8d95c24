"""A plan in words for the terminal, and as one page."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from flashjax.drawing import STYLE, scatter, table, text_table
from flashjax.ops.platform import in_words
from flashjax.pages import write_page
from flashjax.planning.chips import Chip
from flashjax.planning.plan import Plan, grouped
from flashjax.training.experiment import told_speed
from flashjax.training.parameters import human_bytes

LABELS = {
    "exact": "arithmetic on shapes and shardings",
    "at least": "the same, of FLOPs where loops of unknown length are counted once",
    "compiler": "the compiler's own analysis of the program that would run",
    "estimate": "a model: the compiler's cycles, or activations read from the jaxpr",
    "chip": "what the vendor publishes of the device, or follows from it (docs/plan.md)",
    "floor": "no program of these FLOPs or bytes can be faster on this chip",
}
NOT_AVAILABLE = "n/a"


def _size(value: float | None) -> str:
    if value is None:
        return NOT_AVAILABLE
    return f"-{human_bytes(round(-value))}" if value < 0 else human_bytes(round(value))


def _time(value: float | None) -> str:
    if value is None:
        return NOT_AVAILABLE
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.2f} ms" if value >= 1e-3 else f"{1e6 * value:.1f} µs"


def _count(value: float | None, digits: int = 3) -> str:
    """1,234 as 1.23 k, and so on."""
    if value is None:
        return NOT_AVAILABLE
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.{digits}g} {unit}"
    return f"{value:.0f}"


def _share(value: float, whole: float) -> str:
    return f"{value / whole:.1%}" if whole else NOT_AVAILABLE


def title(plan: Plan) -> str:
    """Name, preset and machine."""
    return f"{plan['name']} {plan['preset']} on {plan['topology']}"


def lead(plan: Plan) -> str:
    """Devices, mesh, batch, and what the model has chosen for them."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items()) or "one device"
    chosen = "".join(f"; chosen here: {words}" for words in [in_words(plan["choices"])] if words)
    tokens = plan["example_tokens"]
    examples = f"rows of {tokens:,} tokens" if tokens else "examples"
    return (
        f"{plan['devices']} x {plan['device_kind']}; mesh: {mesh}; {plan['batch_size']} {examples} a step, "
        f"{plan['device_batch']} a device{chosen}"
    )


def _speed(plan: Plan) -> str:
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
        return f"peak {_size(memory['peak'])} of a device; its size is not known" if memory["peak"] else "peak n/a"
    free = _size(abs(memory["margin"])) if memory["margin"] is not None else "an unknown amount"
    if memory["fits"]:
        return f"fits: {_size(memory['peak'])} of {_size(memory['hbm'])}, {free} free"
    return f"does not fit: {_size(memory['peak'])} wanted of {_size(memory['hbm'])}, {free} missing"


def memory_rows(plan: Plan) -> list[list[str]]:
    """Name, bytes, label."""
    memory = plan["memory"]
    rows = [[name, _size(size), "exact"] for name, size in memory["held"].items()]
    if found := memory["compiler"]:
        rows += [
            ["temporaries, gradients among them", _size(found["temporaries"]), "compiler"],
            ["program", _size(found["program"] or None), "compiler"],  # some compilers do not say
        ]
    rows.append(["peak", _size(memory["peak"]), "compiler"])
    rows.append(
        ["memory of a device", _size(memory["hbm"]), "compiler" if plan["device_kind"][:3] == "TPU" else "chip"]
    )
    return rows


CHIP_HEADS = ["device", "bf16 FLOP/s", "int8 op/s", "memory", "bandwidth", "clock", "links, sent"]


def chip_row(kind: str, chip: Mapping[str, float | None] | None) -> list[str]:
    """The cells of `CHIP_HEADS`: the fields of `flashjax.planning.chips.Chip`, in units of ten."""
    units = {
        **{"bf16_flops": "", "int8_ops": "", "hbm_bytes": "B", "hbm_bandwidth": "B/s"},
        **{"clock": "Hz", "link_bandwidth": "B/s"},
    }
    found = [((chip or {}).get(name), unit) for name, unit in units.items()]
    return [kind, *(NOT_AVAILABLE if value is None else f"{_count(value, 5)}{unit}" for value, unit in found)]


def chips_table(chips: Mapping[str, Chip]) -> str:
    """A row for each device, those of the same figures together; as docs/plan.md has it."""
    together: dict[Chip, list[str]] = defaultdict(list)
    for kind, chip in chips.items():
        together[chip].append(kind)
    return text_table(
        CHIP_HEADS, [chip_row(", ".join(kinds), dataclasses.asdict(chip)) for chip, kinds in together.items()]
    )


def _flops_label(plan: Plan) -> str:
    return "exact" if plan["flops_exact"] else "at least"


def time_rows(plan: Plan) -> list[list[str]]:
    """Name, value, label."""
    time, flops, counted = plan["time"], plan["flops"], _flops_label(plan)
    rows = [
        ["FLOPs of a step", _count(flops["all"]), counted],
        ["of these computed again (remat)", _count(flops["recomputed"]), counted],
        ["useful: the model's own, each once", _count(flops["useful"]), counted],
    ]
    floors = time["floors"]
    rows += [
        ["floor by FLOPs at the chip's peak", _time(floors["flops"]), "floor"],
        ["floor by bytes of the schedule", _time(floors["bytes"]), "floor"],
        ["floor of the collectives", _time(floors["collectives"]), "floor"],
    ]
    if time["cycles"] is None:
        return [*rows, ["step time", NOT_AVAILABLE, "estimate"]]
    return [
        *rows,
        ["cycles of the schedule", _count(time["cycles"]), "estimate"],
        ["they, at the chip's clock", _time(time["cycles"] / plan["chip"]["clock"]), "estimate"],
        [
            "custom calls, by schedule or bytes",
            _time((time["taken"] - time["cycles"]) / plan["chip"]["clock"]),
            "estimate",
        ],
        ["collectives without cycles", _time(time["collectives"]), "floor"],
        ["step time", _time(time["step_seconds"]), "estimate"],
        ["speed, all devices", _speed(plan), "estimate"],
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
            _size(row["state_bytes_per_device"]) if row["state_bytes_per_device"] else "",
            _size(row["wasted_bytes"]) if row["wasted_bytes"] else "",
            _size(row["activation_bytes_per_device"]) if row["activation_bytes_per_device"] else "",
            *(
                _count(row["flops"][part]) if row["flops"][part] else ""
                for part in ("forward", "recomputed", "backward")
            ),
            _count(row["cycles"]) if total else NOT_AVAILABLE,
            _share(row["cycles"], total) if total else NOT_AVAILABLE,
        ]
        for row in rows
    ]


COLLECTIVE_HEADS = ["collective", "axes", "pass", "count", "bytes", "sent/device", "floor"]


def collective_rows(plan: Plan) -> list[list[str]]:
    return [
        [
            row["kind"],
            "+".join(row["axes"]) or "?",
            row["pass"],
            str(row["count"]),
            _size(row["bytes"]),
            _size(row["wire_bytes"]),
            _time(row["floor_seconds"]),
        ]
        for row in plan["collectives"] or []
    ]


FRONTIER_HEADS = ["remat", "kept/device", "peak", "largest batch of a device", "FLOPs computed again", "label"]


def frontier_rows(plan: Plan) -> list[list[str]]:
    return [
        [
            "no choice" if row["remat"] is None else str(row["remat"]),
            _size(row["kept_bytes_per_device"]),
            _size(row["peak"]),
            _largest_batch(row),
            f"{_count(row['recomputed_flops'])} ({row['overhead']:+.1%})",
            "compiler; batch: estimate"
            if row["label"] == "compiler" and row["largest_batch"] is not None and _batch_label(row) == "estimate"
            else row["label"],
        ]
        for row in plan["frontier"]
    ]


def _frontier_figure(plan: Plan) -> list[str]:
    """Peaks of memory by what is computed again, where there are several to choose from."""
    points: dict[str, list[tuple[float, float, str]]] = {}
    unit, size = ("GiB", 2**30) if max(row["peak"] or 0 for row in plan["frontier"]) >= 2**30 else ("MiB", 2**20)
    for row in plan["frontier"]:
        if row["peak"] is not None:
            point = 100 * row["overhead"], row["peak"] / size, f"remat {row['remat']}"
            points.setdefault(row["label"], []).append(point)
    if sum(map(len, points.values())) < 2:
        return []
    drawn = scatter("Peak of a device by remat", points, "FLOPs computed again, %", f"peak, {unit}")
    return [f'<section class="charts">{drawn}</section>']


def _largest_batch(row: Mapping[str, Any]) -> str:
    """The number, or between which a search has left it."""
    if row["largest_batch"] is not None:
        return f"{row['largest_batch']:,}"
    low, high = row.get("bracket") or (None, None)
    return ", ".join(f"{sign} {value:,}" for sign, value in ((">=", low), ("<", high)) if value) or NOT_AVAILABLE


def _batch_label(row: Mapping[str, Any]) -> str:
    return "compiler" if "compiled_batches" in row else "estimate"


WORST_HEADS = ["cycles", "of all", "kind", "times", "pass", "module", "source", "shape"]


def worst_rows(plan: Plan) -> list[list[str]]:
    time = plan["time"]
    return [
        [
            _count(row["cycles"]),
            _share(row["cycles"], time["taken"]),
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
            _size(row["bytes"]),
            _time(row["floor_seconds"]),
            _count(row["scheduled_cycles"]) if row["scheduled_cycles"] else "n/a",
            _time(row["seconds"]),
            _size(row["chip_memory"]) if row["chip_memory"] else "n/a",
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
                _size(sum(row["bytes"] for row in rest)),
                "",
                "",
                _time(taken),
                "",
            ]
        )
    return rows


def text(plan: Plan) -> str:
    """All of it for a terminal."""
    parts = [f"{title(plan)}: {verdict(plan)}\n{lead(plan)}"]
    parts.append(text_table(["memory of a device", "bytes", "what it is"], memory_rows(plan)))
    parts.append(text_table(["time of a step", "value", "what it is"], time_rows(plan)))
    parts.append(text_table(["device (chip)", *CHIP_HEADS[1:]], [chip_row(plan["device_kind"], plan["chip"])]))
    time = plan["time"]
    if total := time.get("taken"):
        clock = plan["chip"]["clock"]
        kinds = [[kind, _count(n), _time(n / clock), _share(n, total)] for kind, n in time["by_kind"].items() if n]
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
    notes = [*plan["notes"], *_warnings(plan)]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def _warnings(plan: Plan) -> list[str]:
    """What a reader should not overlook."""
    found = []
    wasted = sum(row["wasted_bytes"] for row in plan["modules"])
    for row in plan["frontier"]:
        if row.get("search_error"):
            found.append(f"The search with remat {row['remat']} ended with an error at {row['search_error']}")
    hbm = plan["memory"]["hbm"]
    if hbm and wasted > 0.1 * hbm:
        found.append(f"Replication takes {_size(wasted)} of each device: --mesh.fsdp splits the state.")
    if without := plan["time"].get("without_estimate"):
        words = ", ".join(f"{count} {name}" for name, count in list(without.items())[:4])
        found.append(f"Not in the cycles, since the compiler makes no estimate for them: {words}.")
    if calls := plan["time"].get("custom_calls"):
        found.append(
            "Custom calls are not among the cycles of the schedule. Elsewhere each has as cycles its bytes by the "
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
                _size(memory["peak"]),
                _size(memory["margin"]),
                _time(time.get("step_seconds")),
                f"{time['mfu']:.1%}" if time.get("mfu") else NOT_AVAILABLE,
                _speed(plan),
                *(_time(time["floors"][name]) for name in ("flops", "bytes", "collectives")),
            ]
        )
    return text_table(SIDE_HEADS, rows)


def write(path: str | Path, plan: Plan) -> Path:
    """Writes the page, replacing an older one whole, and returns where it is."""
    time = plan["time"]
    parts = [
        f"<h1>{escape(title(plan))}</h1>",
        f'<p class="lead">{escape(lead(plan))}</p>',
        _cards(plan),
        '<section class="pair">',
        f"<figure><h2>Memory of a device</h2>{_memory_bar(plan)}{_labelled(memory_rows(plan))}</figure>",
        f"<figure><h2>Time of a step</h2>{_time_bar(plan)}{_labelled(time_rows(plan))}</figure>",
        "</section>",
    ]
    parts += [
        f"<h2>The device {_tag('chip')}</h2>",
        table(CHIP_HEADS, [chip_row(plan["device_kind"], plan["chip"])], (0,), "plan"),
    ]
    if time.get("taken"):
        parts += [
            "<h2>Where the cycles go</h2>",
            '<p class="note">By module, forward and backward together; each bar is cut by what its instructions do, '
            f"custom calls by their schedule or bytes. {_tag('estimate')}</p>",
            _cycle_bars(plan),
            f"<h2>The ten dearest instructions {_tag('estimate')}</h2>",
            table(WORST_HEADS, worst_rows(plan), (2, 4, 5, 6, 7), "plan"),
        ]
    if rows := custom_rows(plan):
        parts += [
            f"<h2>Custom calls {_tag('floor')} {_tag('estimate')}</h2>",
            table(CUSTOM_HEADS, rows, (0, 1), "plan"),
        ]
    parts += [
        "<h2>Modules</h2>",
        f'<p class="note">Parameters, sharding and state are {_tag("exact")}, FLOPs {_tag(_flops_label(plan))}; wasted '
        "is what a device holds beyond an even share; what the backward pass keeps of the forward pass, and cycles, "
        f"are {_tag('estimate')}. "
        "FLOPs are of all devices together.</p>",
        table(MODULE_HEADS, module_rows(plan, grouped(plan)), (0, 2), "plan"),
        "<details><summary>every module</summary>",
        table(MODULE_HEADS, module_rows(plan, plan["modules"]), (0, 2), "plan"),
        "</details>",
        f"<h2>Collectives {_tag('compiler')}</h2>",
        table(COLLECTIVE_HEADS, collective_rows(plan), (0, 1, 2), "plan")
        if plan["collectives"]
        else f'<p class="note">{"not known" if plan["collectives"] is None else "none"}</p>',
        "<h2>Memory against recomputation</h2>",
        *_frontier_figure(plan),
        table(FRONTIER_HEADS, frontier_rows(plan), (0, 5), "plan"),
        "<h2>How far to trust it</h2>",
        "<dl>" + "".join(f"<dt>{_tag(name)}</dt><dd>{escape(words)}</dd>" for name, words in LABELS.items()) + "</dl>",
        *(f'<p class="note">{escape(note)}</p>' for note in [*plan["notes"], *_warnings(plan)]),
        f'<p class="note">{escape(", ".join(f"{name} {v}" for name, v in plan["versions"].items()))}</p>',
    ]
    return write_page(path, title(plan), STYLE + _STYLE, parts)


def _tag(label: str) -> str:
    return f'<span class="tag {escape(label.split()[0].strip(";"))}">{escape(label)}</span>'


def _cards(plan: Plan) -> str:
    memory, time = plan["memory"], plan["time"]
    own = plan["frontier"][0]
    fits = {True: "fits", False: "does not fit", None: "size not known"}[memory["fits"]]
    mood = {True: "good", False: "bad", None: ""}[memory["fits"]]
    mfu = f"{time['mfu']:.1%}" if time.get("mfu") else NOT_AVAILABLE
    cards = [
        (fits, f"{_size(memory['peak'])} of {_size(memory['hbm'])}", "compiler", mood),
        (_time(time.get("step_seconds")), "predicted step time", "estimate", ""),
        (mfu, "of the chip's peak (MFU)", "estimate", ""),
        (_time(time["floors"]["flops"]), "floor by FLOPs", "floor", ""),
        (_largest_batch(own), "largest batch of a device", _batch_label(own), ""),
    ]
    return (
        '<section class="cards">'
        + "".join(
            f'<div class="card {mood}"><b>{escape(big)}</b><span>{escape(words)}</span>{_tag(label)}</div>'
            for big, words, label, mood in cards
        )
        + "</section>"
    )


def _labelled(rows: Sequence[Sequence[str]]) -> str:
    lines = "".join(
        f'<tr><th>{escape(name)}</th><td class="n">{escape(value)}</td><td>{_tag(label)}</td></tr>'
        for name, value, label in rows
    )
    return f'<table class="labelled">{lines}</table>'


def _bar(parts: Sequence[tuple[str, float, str]], whole: float, words: Any, name: str, mark: float | None) -> str:
    """Parts (name, size, class) along a line of length `whole`, the stroke `name` at `mark`, and a legend."""
    shown = "".join(
        f'<span class="{kind}" style="width:{100 * size / whole:.2f}%" title="{escape(name)}: {escape(words(size))}">'
        "</span>"
        for name, size, kind in parts
        if size > 0
    )
    legend = "".join(
        f'<span class="{kind}">{escape(name)} <b>{escape(words(size))}</b></span>'
        for name, size, kind in parts
        if size > 0
    )
    line = ""
    if mark is not None:
        line = f'<i style="left:{100 * mark / whole:.2f}%"></i>'
        legend += f'<span class="mark">{escape(name)} <b>{escape(words(mark))}</b></span>'
    return f'<div class="bar">{shown}{line}</div><p class="legend">{legend}</p>'


def _memory_bar(plan: Plan) -> str:
    memory = plan["memory"]
    held, found, hbm = memory["held"], memory["compiler"], memory["hbm"]
    parts = [
        (name, float(held[name]), kind)
        for name, kind in (("parameters", "c1"), ("optimizer state", "c4"), ("average", "c7"), ("batch", "c8"))
        if name in held
    ]
    if found:
        gradients = min(held["gradients"], found["temporaries"])
        parts += [
            ("gradients", float(gradients), "c3"),
            ("activations and other temporaries", float(found["temporaries"] - gradients), "c2"),
            ("program", float(found["program"]), "c5"),
        ]
    whole = max(hbm or 0, memory["peak"] or 0, sum(size for _, size, _ in parts)) or 1
    return _bar(parts, whole, _size, "memory of a device", hbm if hbm and hbm < whole else None)


KIND_COLORS = {
    **{"matmul": "c3", "copy": "c2", "reduction": "c1", "elementwise": "c7", "gather and scatter": "c4"},
    **{"collective": "c6", "custom call": "c5", "other": "c8"},
}


def _time_bar(plan: Plan) -> str:
    time = plan["time"]
    if not time.get("taken"):
        return '<p class="note">There are no cycles: no estimate of time.</p>'
    clock = plan["chip"]["clock"]
    parts = [(kind, n / clock, KIND_COLORS[kind]) for kind, n in time["by_kind"].items()]
    parts.append(("collectives without cycles (floor)", time["collectives"], "c6"))
    return _bar(parts, time["step_seconds"], _time, "floor by FLOPs", time["floors"]["flops"])


def _cycle_bars(plan: Plan) -> str:
    kinds: dict[str, dict[str, int]] = plan["time"]["by_module_and_kind"]
    longest = max((sum(found.values()) for found in kinds.values()), default=1) or 1
    by_kind: Counter[str] = sum(map(Counter, kinds.values()), Counter())
    total = by_kind.total()
    lines = "".join(
        f"<tr><th>{escape(path)}</th><td>"
        + '<div class="bar thin">'
        + "".join(
            f'<span class="{KIND_COLORS[kind]}" style="width:{100 * n / longest:.2f}%" '
            f'title="{escape(kind)}: {_count(n)} cycles"></span>'
            for kind, n in sorted(found.items(), key=lambda item: list(KIND_COLORS).index(item[0]))
            if n
        )
        + f'</div></td><td class="n">{_share(sum(found.values()), total)}</td></tr>'
        for path, found in kinds.items()
        if sum(found.values()) > 0.002 * total
    )
    legend = "".join(
        f'<span class="{KIND_COLORS[kind]}">{kind} <b>{_share(n, total)}</b></span>'
        for kind, n in by_kind.most_common()
    )
    return f'<figure><p class="legend">{legend}</p><table class="cycles">{lines}</table></figure>'


_STYLE = """
.lead { font-size: 17px; margin: -10px 0 18px; color: var(--muted); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 0 0 16px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.card b { display: block; font-size: 23px; font-weight: 650; letter-spacing: -.01em; }
.card > span:not(.tag) { display: block; color: var(--muted); margin-bottom: 6px; }
.card.good b { color: var(--c3); } .card.bad b { color: var(--c6); }
.tag { font-size: 11px; font-weight: 500; border: 1px solid currentColor; border-radius: 8px; padding: 0 7px;
  color: var(--muted); white-space: nowrap; vertical-align: 2px; }
.tag.exact, .tag.at { color: var(--c3); } .tag.compiler { color: var(--c1); } .tag.estimate { color: var(--c2); }
.tag.floor { color: var(--c4); } .tag.chip { color: var(--c5); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; }
.bar { position: relative; display: flex; height: 24px; background: var(--line); border-radius: 5px; overflow: hidden;
  margin: 10px 0 6px; }
.bar.thin { height: 13px; margin: 3px 0; border-radius: 3px; background: none; }
.bar > i { position: absolute; top: 0; bottom: 0; width: 2px; background: var(--ink); }
.legend .mark::before { width: 2px; border-radius: 0; background: var(--ink); }
figure > .legend { margin-bottom: 8px; }
"""
_STYLE += "".join(
    f".bar .c{i} {{ background: var(--c{i}); }} .legend .c{i}::before {{ background: var(--c{i}); }}\n"
    for i in range(1, 11)
)
_STYLE += """
table.labelled { width: 100%; margin: 8px 0; } table.labelled th { white-space: normal; padding-right: 8px; }
table.labelled td, table.cycles td { padding-right: 0; } table.labelled td.n { padding-right: 12px; }
table.cycles { width: 100%; margin: 0; } table.cycles th { width: 1%; border: 0; padding: 0 14px 0 0; }
table.cycles td { border: 0; padding: 0; } table.cycles td.n { width: 60px; color: var(--muted); }
table.plan { width: 100%; font-size: 13.5px; margin: 6px 0 10px; }
table.plan th, table.plan td { padding: 3px 12px 3px 0; }
table.plan td.w { overflow-wrap: normal; white-space: normal; } table.plan tbody th { color: var(--ink); }
details summary { cursor: pointer; color: var(--muted); margin: 4px 0 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 14px; } dd { margin: 0; color: var(--muted); }
"""
