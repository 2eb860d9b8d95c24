"""A plan as one page."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from flashjax.drawing import STYLE, scatter, table
from flashjax.pages import write_page
from flashjax.planning import plan_text as text
from flashjax.planning.plan import Plan, grouped

LABELS = {
    "exact": "arithmetic on shapes and shardings",
    "at least": "the same, of FLOPs where loops of unknown length are counted once",
    "compiler": "the compiler's own analysis of the program that would run",
    "estimate": "a model: the compiler's cycles, or activations read from the jaxpr",
    "chip": "what the vendor publishes of the device, or follows from it (docs/plan.md)",
    "floor": "no program of these FLOPs or bytes can be faster on this chip",
}


def write(path: str | Path, plan: Plan) -> Path:
    """Writes the page, replacing an older one whole, and returns where it is."""
    time = plan["time"]
    parts = [
        f"<h1>{escape(text.title(plan))}</h1>",
        f'<p class="lead">{escape(text.lead(plan))}</p>',
        _cards(plan),
        '<section class="pair">',
        f"<figure><h2>Memory of a device</h2>{_memory_bar(plan)}{_labelled(text.memory_rows(plan))}</figure>",
        f"<figure><h2>Time of a step</h2>{_time_bar(plan)}{_labelled(text.time_rows(plan))}</figure>",
        "</section>",
    ]
    parts += [
        f"<h2>The device {_tag('chip')}</h2>",
        table(text.CHIP_HEADS, [text.chip_row(plan["device_kind"], plan["chip"])], (0,), "plan"),
    ]
    if time.get("taken"):
        parts += [
            "<h2>Where the cycles go</h2>",
            '<p class="note">By module, forward and backward together; each bar is cut by what its instructions do, '
            f"what has no cycles by its schedule or bytes. {_tag('estimate')}</p>",
            _cycle_bars(plan),
            f"<h2>The ten dearest instructions {_tag('estimate')}</h2>",
            table(text.WORST_HEADS, text.worst_rows(plan), (2, 4, 5, 6, 7), "plan"),
        ]
    if rows := text.custom_rows(plan):
        parts += [
            f"<h2>Custom calls {_tag('floor')} {_tag('estimate')}</h2>",
            table(text.CUSTOM_HEADS, rows, (0, 1), "plan"),
        ]
    parts += [
        "<h2>Modules</h2>",
        f'<p class="note">Parameters, sharding and state are {_tag("exact")}, FLOPs {_tag(text.flops_label(plan))}; '
        "wasted is what a device holds beyond an even share; what the backward pass keeps of the forward pass, and "
        f"cycles, are {_tag('estimate')}. FLOPs are of all devices together.</p>",
        table(text.MODULE_HEADS, text.module_rows(plan, grouped(plan)), (0, 2), "plan"),
        "<details><summary>every module</summary>",
        table(text.MODULE_HEADS, text.module_rows(plan, plan["modules"]), (0, 2), "plan"),
        "</details>",
        f"<h2>Collectives {_tag('compiler')}</h2>",
        table(text.COLLECTIVE_HEADS, text.collective_rows(plan), (0, 1, 2), "plan")
        if plan["collectives"]
        else f'<p class="note">{"not known" if plan["collectives"] is None else "none"}</p>',
        "<h2>Memory against recomputation</h2>",
        *_frontier_figure(plan),
        table(text.FRONTIER_HEADS, text.frontier_rows(plan), (0, 5), "plan"),
        "<h2>How far to trust it</h2>",
        "<dl>" + "".join(f"<dt>{_tag(name)}</dt><dd>{escape(words)}</dd>" for name, words in LABELS.items()) + "</dl>",
        *(f'<p class="note">{escape(note)}</p>' for note in [*plan["notes"], *text.warnings(plan)]),
        f'<p class="note">{escape(", ".join(f"{name} {v}" for name, v in plan["versions"].items()))}</p>',
    ]
    return write_page(path, text.title(plan), STYLE + _STYLE, parts)


def _tag(label: str) -> str:
    return f'<span class="tag {escape(label.split()[0].strip(";"))}">{escape(label)}</span>'


def _cards(plan: Plan) -> str:
    memory, time = plan["memory"], plan["time"]
    own = plan["frontier"][0]
    fits = {True: "fits", False: "does not fit", None: "size not known"}[memory["fits"]]
    mood = {True: "good", False: "bad", None: ""}[memory["fits"]]
    mfu = f"{time['mfu']:.1%}" if time.get("mfu") else text.NOT_AVAILABLE
    cards = [
        (fits, f"{text.told_bytes(memory['peak'])} of {text.told_bytes(memory['hbm'])}", "compiler", mood),
        (text.told_time(time.get("step_seconds")), "predicted step time", "estimate", ""),
        (mfu, "of the chip's peak (MFU)", "estimate", ""),
        (text.told_time(time["floors"]["flops"]), "floor by FLOPs", "floor", ""),
        (text.largest_batch(own), "largest batch of a device", text.batch_label(own), ""),
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
    return _bar(parts, whole, text.told_bytes, "memory of a device", hbm if hbm and hbm < whole else None)


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
    return _bar(parts, time["step_seconds"], text.told_time, "floor by FLOPs", time["floors"]["flops"])


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
            f'title="{escape(kind)}: {text.told_count(n)} cycles"></span>'
            for kind, n in sorted(found.items(), key=lambda item: list(KIND_COLORS).index(item[0]))
            if n
        )
        + f'</div></td><td class="n">{text.told_share(sum(found.values()), total)}</td></tr>'
        for path, found in kinds.items()
        if sum(found.values()) > 0.002 * total
    )
    legend = "".join(
        f'<span class="{KIND_COLORS[kind]}">{kind} <b>{text.told_share(n, total)}</b></span>'
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
