"""The page of an evaluation: its numbers, curves, kinds of error, confusions and the images that went worst."""

from html import escape
from pathlib import Path

import numpy as np

from flashjax.evaluation.detection import charts
from flashjax.evaluation.detection.charts import Line
from flashjax.evaluation.detection.errors import Errors
from flashjax.evaluation.detection.report_images import worst_section
from flashjax.evaluation.detection.result import Result
from flashjax.evaluation.detection.words import class_head, class_rows, error_rows, percent, stat_rows
from flashjax.pages import write_page

Array = np.ndarray

MOST_CURVES, MOST_CONFUSED = 24, 16


def write_report(
    directory: str | Path, result: Result, *, images: str | Path | None = None, worst: int = 12, command: str = ""
) -> Path:
    """Writes ``directory``/index.html, which needs nothing beside it, and returns where it is.

    Args:
        images: Folder of the image files that the ground truth names; None: boxes are drawn on empty canvases.
        worst: How many images to show.
        command: Shown on the page: how it was made.

    Raises:
        ValueError: if ``images`` is no folder, or lacks a file that is to be shown.
    """
    title = f"Detection: {result.protocol.name}, {result.iou_type}"
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="note">{escape(_about(result))}</p>', _stats(result)]
    parts += [_overview(result)]
    iou = float(result.curves.iou_thresholds[0])
    errors = result.errors(iou, min(0.1, iou / 2))
    scores, _, _, f1 = score_curves(result)
    threshold = float(scores[np.argmax(f1)]) if len(scores) else 0.0
    parts += [_errors(errors), _classes(result), _class_curves(result)]
    if len(result.curves.categories) > 1:
        parts.append(_confusion(result, errors, threshold))
    folder = None if images is None else Path(images)
    parts.append(worst_section(result, errors, threshold, folder, worst))
    if command:
        parts.append(f"<h2>Made by</h2><pre>{escape(command)}</pre>")
    return write_page(Path(directory) / "index.html", title, charts.STYLE, [part for part in parts if part])


def _about(result: Result) -> str:
    c, catalogue = result.comparison, result.comparison.truth.catalogue
    return (
        f"{result.protocol.about}. {len(catalogue.images):,} images, {len(c.truth):,} ground truths of "
        f"{len(catalogue.categories):,} classes ({catalogue.source}); {len(c.found):,} detections ({c.found.source})."
    )


def _stats(result: Result) -> str:
    rows = [
        f"<tr><th>{escape(name)}</th><td>{escape(words)}</td><td class=number>{percent(value)}</td></tr>"
        for name, value, words in stat_rows(result)
    ]
    half = sum(not name.startswith("AR") for name in result.stat_names)
    tables = (f"<table>{''.join(part)}</table>" for part in (rows[:half], rows[half:]) if part)
    return f'<section class="stats">{"".join(tables)}</section>'


def _overview(result: Result) -> str:
    """Mean curves by threshold, and precision, recall and F1 by score."""
    curves = result.curves
    figures = []
    recalls = np.linspace(0, 1, 101)
    shown = [t for t in (0.5, 0.6, 0.7, 0.8, 0.9) if np.isclose(curves.iou_thresholds, t).any()]
    shown = shown or curves.iou_thresholds[:5].tolist()
    lines = []
    for number, threshold in enumerate(shown):
        mean = _mean_curve(result, threshold, recalls)
        if mean is not None:
            lines.append(Line(f"IoU {threshold:g}", f"c{number + 1}", recalls, mean))
    if lines:
        figures.append(
            f"<figure><figcaption><h3>Precision by recall, mean over classes</h3>{charts.legend(lines)}</figcaption>"
            f"{charts.unit_chart(lines, 'recall', 'precision', 'precision by recall')}</figure>"
        )
    scores, precision, recall, f1 = score_curves(result)
    if len(scores) and scores[0] <= 1 and scores[-1] >= 0:
        best = int(np.argmax(f1))
        lines = [
            Line("precision", "c1", scores, precision),
            Line("recall", "c2", scores, recall),
            Line(f"F1, {f1[best]:.3f} at {scores[best]:.3f}", "c3", scores, f1),
        ]
        figures.append(
            f"<figure><figcaption><h3>If detections below a score are dropped</h3>{charts.legend(lines)}</figcaption>"
            f"{charts.unit_chart(lines, f'score (all classes, IoU {curves.iou_thresholds[0]:g})', '', 'by score')}"
            "</figure>"
        )
    return f'<h2>Curves</h2><section class="charts">{"".join(figures)}</section>' if figures else ""


def _mean_curve(result: Result, threshold: float, recalls: Array) -> Array | None:
    curves = result.curves
    t = int(np.argmin(np.abs(curves.iou_thresholds - threshold)))
    known = result.comparison.ranking.positives[0] > 0
    if not known.any():
        return None
    last = curves.at(len(curves.max_detections) - 1)
    if last.precision is not None and curves.recall_thresholds is not None and len(curves.recall_thresholds) == 101:
        return last.precision[t][:, known, 0].mean(1)
    total = np.zeros(len(recalls))
    for k in np.flatnonzero(known).tolist():
        curve = curves.of(k, float(curves.iou_thresholds[t]))
        total += np.append(curve.envelope, 0.0)[np.searchsorted(curve.recall, recalls)]
    return total / known.sum()


def score_curves(result: Result) -> tuple[Array, Array, Array, Array]:
    """(scores, falling; precision, recall and F1 of the detections of at least that score), all classes together, at
    the first threshold."""
    matches = result.matches
    counts = matches.true_positive | matches.false_positive
    order = np.flatnonzero(counts)
    order = order[np.argsort(-matches.scores[order], kind="stable")]
    hits = np.cumsum(matches.true_positive[order])
    positives = max(int(result.comparison.ranking.positives[0].sum()), 1)
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / positives
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    ends = np.flatnonzero(np.append(np.diff(matches.scores[order]) != 0, True)) if len(order) else order
    return matches.scores[order][ends], precision[ends], recall[ends], f1[ends]


def _errors(errors: Errors) -> str:
    rows = error_rows(errors)
    number = charts.bars([(n, w, c, f"{c:,}") for n, w, c, _ in rows], max(max(c for _, _, c, _ in rows), 1))
    gain = charts.bars([(n, "", g, f"{100 * g:.2f}") for n, _, _, g in rows], max(max(g for _, _, _, g in rows), 1e-9))
    fp, fn = errors.gains["false_positives"], errors.gains["false_negatives"]
    return (
        f"<h2>Errors</h2><p class=note>At IoU {errors.matches.iou:g}, where average precision is "
        f"{percent(errors.ap)}. Types as in TIDE (Bolya et al., 2020). Without any false positive it would gain "
        f"{100 * fp:.2f}, without any miss {100 * fn:.2f}.</p>"
        f'<section class="charts"><figure><h3>Number</h3>{number}</figure>'
        f"<figure><h3>What repairing the type alone would gain, in points of AP</h3>{gain}</figure></section>"
    )


def _classes(result: Result) -> str:
    rows = class_rows(result)
    if not rows:
        return ""
    head = "".join(
        f"<th{'' if i == 0 else ' class=number'}>{escape(name)}</th>" for i, name in enumerate(class_head(result))
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{'' if i == 0 else ' class=number'}>{escape(cell)}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    iou = result.matches.iou
    return (
        f"<h2>Classes</h2><p class=note>tp, fp, fn at IoU {iou:g}; AP and AR in per cent.</p>"
        f'<div class="wide"><table class="classes"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _class_curves(result: Result) -> str:
    """Each class: its curve, the envelope and the area below; those with most objects first."""
    positives = result.comparison.ranking.positives[0]
    order = [k for k in np.argsort(-positives, kind="stable").tolist() if positives[k] > 0]
    if not order:
        return ""
    figures = []
    for k in order[:MOST_CURVES]:
        curve = result.curves.of(k)
        recall = np.append(0.0, curve.recall)
        fill = charts.area_below(*_stairs(recall, curve.envelope), "fill")
        lines = [Line("precision", "c1", curve.recall, curve.precision)]
        name = result.curves.categories[k]
        figures.append(
            f"<figure><figcaption><h3>{escape(name)}</h3><b>{percent(curve.average_precision, 1)}</b></figcaption>"
            f"{charts.unit_chart(lines, '', '', f'precision by recall of {name}', fill, small=True)}</figure>"
        )
    more = f" Of {len(order)} classes the {MOST_CURVES} with most objects." if len(order) > MOST_CURVES else ""
    iou = result.curves.iou_thresholds[0]
    return (
        f"<h2>Precision by recall of each class</h2><p class=note>At IoU {iou:g}; the shaded area lies below the best "
        f"precision at each recall or more.{more}</p><section class=small>{''.join(figures)}</section>"
    )


def _stairs(recall: Array, envelope: Array) -> tuple[Array, Array]:
    """(edges, heights) of the steps where recall grows."""
    grows = np.flatnonzero(np.diff(recall) > 0)
    return np.append(0.0, recall[grows + 1]), envelope[grows]


def _confusion(result: Result, errors: Errors, threshold: float) -> str:
    confusion = result.confusion(errors.matches.iou, threshold)
    table = confusion.table
    off = table.copy()
    np.fill_diagonal(off, 0)
    classes = len(table) - 1
    weight = off[:classes, :classes].sum(0) + off[:classes, :classes].sum(1)
    chosen = np.sort(np.argsort(-weight, kind="stable")[:MOST_CONFUSED])
    shown = np.append(chosen, classes)
    part = table[np.ix_(shown, shown)]
    names = [confusion.names[i] for i in shown]
    rows = []
    for name, line in zip(names, part, strict=True):
        total = max(int(line.sum()), 1)
        cells = []
        for column, value in enumerate(line.tolist()):
            same = names[column] == name
            share = 100 * value / total
            colour = "var(--c1)" if same else "var(--bad)"
            style = (
                f' style="background: color-mix(in srgb, {colour} {min(75, share):.0f}%, transparent)"' if value else ""
            )
            title = f"{name} taken for {names[column]}: {value}"
            cells.append(f'<td{style} title="{escape(title)}">{value if value else ""}</td>')
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    more = f" The {MOST_CONFUSED} classes with most confusions." if classes > MOST_CONFUSED else ""
    return (
        f"<h2>What is taken for what</h2><p class=note>Rows are true classes, columns detected ones, at IoU "
        f"{confusion.iou:g} and scores from {threshold:.3f} on, where F1 is best. The last row: detections of nothing; "
        f"the last column: objects not detected.{more}</p>"
        f'<div class="wide"><table class="confusion"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
