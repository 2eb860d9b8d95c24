"""The outcome as text: what the launcher prints."""

from collections.abc import Sequence

from flashjax.evaluation.detection.errors import TYPES, WORDS, Errors
from flashjax.evaluation.detection.result import Result


def percent(value: float, digits: int = 2) -> str:
    """A fraction in per cent; "-" for -1, which stands for no ground truth."""
    return "-" if value < 0 else f"{100 * value:.{digits}f}"


def table(result: Result) -> str:
    """The protocol's numbers with what each is read at, then a line for each class with ground truth."""
    parts = [f"{result.protocol.name}, {result.iou_type}: {result.protocol.about}", ""]
    parts += [f"  {name:10}{value:>9.4f}   {words}" for name, value, words in stat_rows(result)]
    counts = result.matches.counts()
    parts.append(
        f"\n  at IoU {result.matches.iou:g}: true positives {counts['tp']}, false positives {counts['fp']}, "
        f"missed {counts['fn']}, ignored {counts['ignored']}"
    )
    rows = class_rows(result)
    if rows:
        parts += ["", _columns([class_head(result), *rows])]
    silent = len(result.per_class) - len(rows)
    if silent:
        parts.append(f"  {silent} {'class has' if silent == 1 else 'classes have'} no ground truth and no average")
    return "\n".join(parts)


def stat_rows(result: Result) -> list[tuple[str, float, str]]:
    """(name, value, what it is) of each of the protocol's numbers."""
    return [
        (name, value, _meaning(name, result))
        for name, value in zip(result.stat_names, result.stats.tolist(), strict=True)
    ]


_SIZES = {"s": "small", "m": "medium", "l": "large"}
_GROUPS = {"r": "rare classes", "c": "common classes", "f": "frequent classes"}


def _meaning(name: str, result: Result) -> str:
    thresholds = result.protocol.iou_thresholds
    span = f"IoU {thresholds[0]:g}" + (f" to {thresholds[-1]:g}" if len(thresholds) > 1 else "")
    if name.startswith("mAP"):
        return f"mean average precision, IoU {name[4:] or span.removeprefix('IoU ')}"
    kind, rest = name[:2], name[2:]
    what = "average precision" if kind == "AP" else "average recall"
    if rest in _SIZES and rest in "sml":
        return f"{what}, {span}, {_SIZES[rest]} objects"
    if kind == "AP" and rest in _GROUPS:
        return f"{what}, {span}, {_GROUPS[rest]}"
    if kind == "AR" and rest and rest.isdigit() and result.iou_type != "keypoints":
        where = "an image" if result.protocol.federated else "an image and class"
        return f"{what}, {span}, {rest} {'detection' if rest == '1' else 'detections'} {where}"
    if rest.isdigit():
        return f"{what}, IoU {int(rest) / 100:g}"
    if rest.startswith("_"):
        return f"{what}, {span}, {rest[1:]} objects"
    return f"{what}, {span}"


def class_head(result: Result) -> list[str]:
    """Heads of `class_rows`."""
    areas = [label for label in result.curves.areas[1:]]
    ious = [f"AP{100 * t:.0f}" for t in _shown(result)]
    return ["class", "AP", *ious, *(f"AP {a}" for a in areas), "AR", "objects", "tp", "fp", "fn"]


def class_rows(result: Result, digits: int = 2) -> list[list[str]]:
    """A row for each class with ground truth, the best first."""
    rows = []
    for one in sorted(result.per_class, key=lambda one: (-one.ap, one.id)):
        if not one.ground_truths:
            continue
        ious = [percent(one.ap_by_iou[t], digits) for t in _shown(result)]
        areas = [percent(one.ap_by_area[a], digits) for a in result.curves.areas[1:]]
        numbers = [str(n) for n in (one.ground_truths, one.tp, one.fp, one.fn)]
        rows.append([one.name, percent(one.ap, digits), *ious, *areas, percent(one.ar, digits), *numbers])
    return rows


def _shown(result: Result) -> list[float]:
    """Thresholds that have a column of their own."""
    thresholds = result.curves.iou_thresholds.tolist()
    return [t for t in (0.5, 0.75) if t in thresholds] if len(thresholds) > 1 else []


def error_rows(errors: Errors) -> list[tuple[str, str, int, float]]:
    """(type, what it is, how many, what repairing them would gain)."""
    return [(name, WORDS[name], errors.counts[name], errors.gains[name]) for name in TYPES]


def error_table(errors: Errors) -> str:
    """The types of error as text."""
    rows = [["error", "number", "AP gained", ""]]
    rows += [[name, str(count), f"{100 * gain:.2f}", words] for name, words, count, gain in error_rows(errors)]
    iou = errors.matches.iou
    return f"errors at IoU {iou:g} (AP {percent(errors.ap)}), and what repairing each type would gain\n" + _columns(
        rows
    )


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Text in columns, the first and words to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i == 0 or (i == len(row) - 1 and not _numeric(rows, i)) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def _numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    return all(row[column].replace(".", "").replace("-", "").isdigit() or row[column] == "-" for row in rows[1:])
