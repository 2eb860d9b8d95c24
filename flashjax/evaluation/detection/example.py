"""Average precision step by step, on seven small images: overlap, precision, recall, envelope, both definitions.

The boxes are those of the second sample of Padilla's Object-Detection-Metrics (MIT): 15 objects of one class and 24
detections, compared at an overlap of 30 per cent.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from flashjax.evaluation.detection import charts
from flashjax.evaluation.detection.charts import Box, Line
from flashjax.evaluation.detection.evaluator import evaluate
from flashjax.evaluation.detection.overlaps import CornerMeasure
from flashjax.evaluation.detection.result import Result
from flashjax.pages import write_page

IOU = 0.3
SIDE = 200
OBJECTS = {
    1: ((25, 16, 38, 56), (129, 123, 41, 62)),
    2: ((123, 11, 43, 55), (38, 132, 59, 45)),
    3: ((16, 14, 35, 48), (123, 30, 49, 44), (99, 139, 47, 47)),
    4: ((53, 42, 40, 52), (154, 43, 31, 34)),
    5: ((59, 31, 44, 51), (48, 128, 34, 52)),
    6: ((36, 89, 52, 76), (62, 58, 44, 67)),
    7: ((28, 31, 55, 63), (58, 67, 50, 58)),
}
"""Of each image its objects: x, y, width, height."""
FOUND = {
    1: ((0.88, (5, 67, 31, 48)), (0.70, (119, 111, 40, 67)), (0.80, (124, 9, 49, 67))),
    2: ((0.71, (64, 111, 64, 58)), (0.54, (26, 140, 60, 47)), (0.74, (19, 18, 43, 35))),
    3: (
        (0.18, (109, 15, 77, 39)),
        (0.67, (86, 63, 46, 45)),
        (0.38, (160, 62, 36, 53)),
        (0.91, (105, 131, 47, 47)),
        (0.44, (18, 148, 40, 44)),
    ),
    4: ((0.35, (83, 28, 28, 26)), (0.78, (28, 68, 42, 67)), (0.45, (87, 89, 25, 39)), (0.14, (10, 155, 60, 26))),
    5: ((0.62, (50, 38, 28, 46)), (0.44, (95, 11, 53, 28)), (0.95, (29, 131, 72, 29)), (0.23, (29, 163, 72, 29))),
    6: ((0.45, (43, 48, 74, 38)), (0.84, (17, 155, 29, 35)), (0.43, (95, 110, 25, 42))),
    7: ((0.48, (16, 20, 101, 88)), (0.95, (33, 116, 37, 49))),
}
"""Of each image its detections: score; x, y, width, height."""


def columns() -> tuple[dict, dict]:
    """(ground truth, detections) as `evaluate` takes them."""
    truth = [(image, box) for image, boxes in OBJECTS.items() for box in boxes]
    found = [(image, score, box) for image, rows in FOUND.items() for score, box in rows]
    return (
        {
            "image_id": [image for image, _ in truth],
            "category_id": [1] * len(truth),
            "bbox": [box for _, box in truth],
            "categories": {1: "object"},
            "images": list(OBJECTS),
            "sizes": [(SIDE, SIDE)] * len(OBJECTS),
        },
        {
            "image_id": [image for image, _, _ in found],
            "category_id": [1] * len(found),
            "bbox": [box for _, _, box in found],
            "score": [score for _, score, _ in found],
        },
    )


@dataclass(frozen=True)
class Row:
    """A detection on its way down the ranking.

    Attributes:
        letter, image, score: What it is.
        overlap: With the object it overlaps most.
        right: Whether that overlap is enough and the object was free.
        taken: Whether it is enough, but a higher score found the object before.
        hits, errors: Right and wrong ones down to here.
        precision, recall: Of those down to here.
        envelope: The best precision from here on.
    """

    letter: str
    image: int
    score: float
    overlap: float
    right: bool
    taken: bool
    hits: int
    errors: int
    precision: float
    recall: float
    envelope: float


@dataclass(frozen=True)
class Walk:
    """The example, evaluated.

    Attributes:
        rows: By falling score.
        positives: Objects.
        every: Result where the area below the envelope counts.
        eleven: Result where eleven recalls count.
        coco: The mean over COCO's 101 recalls of the same ranking.
    """

    rows: tuple[Row, ...]
    positives: int
    every: Result
    eleven: Result
    coco: float


def walk() -> Walk:
    """Evaluates the example."""
    truth, found = columns()
    every = evaluate(truth, found, "rafaelpadilla_every", iou_thresholds=[IOU])
    eleven = evaluate(truth, found, "rafaelpadilla_11", iou_thresholds=[IOU])
    recalls = np.linspace(0, 1, 101).tolist()
    fine = evaluate(truth, found, "rafaelpadilla_every", iou_thresholds=[IOU], recall_thresholds=recalls)
    curve = every.curves.of(0)
    c = every.comparison
    measure = CornerMeasure(_corners(found["bbox"]), _corners(truth["bbox"]), 1.0)
    images = np.array(truth["image_id"])
    rows, hits = [], 0
    for n, row in enumerate(curve.detections.tolist()):
        same = np.flatnonzero(images == found["image_id"][row])
        overlap = float(measure.overlaps(np.full(len(same), row), same).max())
        right = bool(curve.true[n])
        hits += right
        rows.append(
            Row(
                chr(ord("A") + row),
                found["image_id"][row],
                found["score"][row],
                overlap,
                right,
                overlap >= IOU and not right,
                hits,
                n + 1 - hits,
                float(curve.precision[n]),
                float(curve.recall[n]),
                float(curve.envelope[n]),
            )
        )
    return Walk(tuple(rows), len(c.truth), every, eleven, float(fine.stats[0]))


def _corners(boxes: list) -> np.ndarray:
    values = np.array(boxes, float)
    return np.concatenate([values[:, :2], values[:, :2] + values[:, 2:]], 1)


def eleven_points(rows: tuple[Row, ...]) -> list[tuple[float, float]]:
    """(recall, best precision at this recall or more) of 0, .1, ... 1."""
    return [(t / 10, max((r.precision for r in rows if r.recall >= t / 10), default=0.0)) for t in range(11)]


def steps(rows: tuple[Row, ...]) -> list[tuple[float, float, float]]:
    """(recall before, recall after, envelope) of each right detection."""
    found, before = [], 0.0
    for row in rows:
        if row.right:
            found.append((before, row.recall, row.envelope))
            before = row.recall
    return found


def words(shown: Walk) -> str:
    """The walk as text."""
    n = shown.positives
    lines = [
        f"Average precision, step by step: {n} objects and {len(shown.rows)} detections on {len(OBJECTS)} images.",
        "",
        f"1. Overlap. A detection is right if it overlaps an object by {IOU:.0%} (intersection over union), and no",
        "   higher score found that object before. The highest score goes first.",
        "2. Precision is the share of right ones among all down to here; recall the share of objects found so far.",
        "3. The envelope is the best precision from here on: what could be had at this recall or more.",
        "",
        "      image  score  overlap         tp  fp   precision       recall         envelope",
    ]
    for r in shown.rows:
        verdict = "right" if r.right else "taken" if r.taken else "wrong"
        lines.append(
            f"   {r.letter}{r.image:6d}  {r.score:5.2f}  {r.overlap:6.0%}  {verdict:6}{r.hits:3d} {r.errors:3d}"
            f"   {r.hits:2d}/{r.hits + r.errors:<2d} {r.precision:6.4f}   {r.hits:2d}/{n:2d} {r.recall:6.4f}"
            f"   {r.envelope:7.4f}"
        )
    points = eleven_points(shown.rows)
    lines += [
        "",
        "4. Eleven points (VOC 2007): the envelope at recalls 0, .1, ... 1, averaged.",
        "   " + "  ".join(f"{precision:.4f}" for _, precision in points),
        f"   sum {sum(p for _, p in points):.4f} / 11 = {shown.eleven.stats[0]:.6f}",
        "5. Every point (VOC from 2010): the area below the envelope, recall gained times envelope.",
    ]
    lines += [
        f"   ({after:.4f} - {before:.4f}) x {height:.4f} = {(after - before) * height:.6f}"
        for before, after, height in steps(shown.rows)
    ]
    lines += [
        f"   sum = {shown.every.stats[0]:.6f}",
        "",
        f"   average precision, eleven points {shown.eleven.stats[0]:.2%}",
        f"   average precision, every point   {shown.every.stats[0]:.2%}",
        f"   COCO's 101 recalls would give    {shown.coco:.2%}",
    ]
    return "\n".join(lines)


def write_walk(directory: str | Path, shown: Walk) -> Path:
    """The walk as a page with its pictures; returns where it is."""
    rows = shown.rows
    parts = [
        "<h1>Average precision, step by step</h1>",
        f"<p class=note>{shown.positives} objects and {len(rows)} detections of one class on {len(OBJECTS)} images, "
        "compared at an overlap of 30 per cent. Boxes: Object-Detection-Metrics, sample 2.</p>",
        "<h2>1. Who finds whom</h2><p class=note>By falling score, a detection is right if it overlaps an object by 30 "
        "per cent, and no higher score found that object before.</p>"
        '<p class="legend key"><span class=truth>found</span><span class=missed>missed</span>'
        "<span class=right>right</span><span class=wrong>wrong</span></p>",
        f'<section class="small">{_pictures(shown)}</section>',
        "<h2>2. Precision and recall</h2><p class=note>Down the ranking: of the detections so far, how many are right; "
        "of the objects, how many are found. The envelope is the best precision from here on.</p>",
        _table(shown),
        "<h2>3. Two averages</h2>",
        _charts(shown),
        f"<p class=note>The same ranking at COCO's 101 recalls: {shown.coco:.2%}.</p>",
    ]
    return write_page(Path(directory) / "index.html", "Average precision, step by step", charts.STYLE, parts)


def _pictures(shown: Walk) -> str:
    right = {row.letter for row in shown.rows if row.right}
    matches = shown.every.matches
    missed = set(matches.truth_ids[matches.missed].tolist())
    pictures, truth_id, place = [], 0, 0
    for image, boxes in OBJECTS.items():
        drawn = []
        for box in boxes:
            truth_id += 1
            drawn.append(Box(box, "", "missed" if truth_id in missed else "truth"))
        for score, box in FOUND[image]:
            letter = chr(ord("A") + place)
            place += 1
            words = f"{letter} {score:.2f}"
            drawn.append(Box(box, words, "right" if letter in right else "wrong", words))
        picture = charts.picture((SIDE, SIDE), drawn, None, f"image {image}")
        pictures.append(f'<figure class="picture">{picture}<figcaption><h3>image {image}</h3></figcaption></figure>')
    return "".join(pictures)


def _table(shown: Walk) -> str:
    body = []
    for r in shown.rows:
        verdict = "right" if r.right else "object already found" if r.taken else "wrong"
        body.append(
            f"<tr><td>{r.letter}</td><td class=number>{r.image}</td><td class=number>{r.score:.2f}</td>"
            f"<td class=number>{r.overlap:.0%}</td><td class={'good' if r.right else 'bad'}>{escape(verdict)}</td>"
            f"<td class=number>{r.hits}</td><td class=number>{r.errors}</td>"
            f"<td class=number>{r.hits}/{r.hits + r.errors} = {r.precision:.4f}</td>"
            f"<td class=number>{r.hits}/{shown.positives} = {r.recall:.4f}</td>"
            f"<td class=number>{r.envelope:.4f}</td></tr>"
        )
    head = "".join(
        f"<th{' class=number' if number else ''}>{name}</th>"
        for name, number in (
            ("detection", False),
            *((n, True) for n in ("image", "score", "overlap")),
            ("", False),
            *((n, True) for n in ("right so far", "wrong so far", "precision", "recall", "envelope")),
        )
    )
    return (
        f'<div class="wide"><table class="classes"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
        "</table></div>"
    )


def _charts(shown: Walk) -> str:
    rows = shown.rows
    recall, precision = np.array([r.recall for r in rows]), np.array([r.precision for r in rows])
    points = eleven_points(rows)
    curve = Line("precision", "c1", recall, precision, dots=True)
    dots = Line("envelope at 11 recalls", "c2", *np.array(points).T, dots=True, joined=False)
    parts = steps(rows)
    edges = np.array([0.0, *(after for _, after, _ in parts)])
    heights = np.array([height for *_, height in parts])
    stairs_x, stairs_y = np.repeat(edges, 2)[1:-1], np.repeat(heights, 2)
    envelope = Line("envelope", "c3", stairs_x, stairs_y)
    figures = []
    for title, lines, fill, value in (
        ("Eleven points (VOC 2007)", [curve, dots], "", shown.eleven.stats[0]),
        (
            "Every point (VOC from 2010)",
            [curve, envelope],
            charts.area_below(edges, heights, "fill"),
            shown.every.stats[0],
        ),
    ):
        chart = charts.unit_chart(lines, "recall", "precision", title, fill)
        figures.append(
            f"<figure><figcaption><h3>{title}</h3>{charts.legend(lines)}</figcaption>{chart}"
            f"<figcaption><span></span><b>AP {value:.2%}</b></figcaption></figure>"
        )
    eleven = " + ".join(f"{p:.4f}" for _, p in points)
    area = "\n+ ".join(f"({b:.4f} - {a:.4f}) x {h:.4f}" for a, b, h in parts)
    sums = [f"({eleven}) / 11\n= {shown.eleven.stats[0]:.6f}", f"  {area}\n= {shown.every.stats[0]:.6f}"]
    return f'<section class="charts">{"".join(figures)}</section>' + "".join(f"<pre>{s}</pre>" for s in sums)
