"""The worst images of an evaluation as pictures: each error numbered, and what the numbers are below."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from flashjax.evaluation.detection import charts
from flashjax.evaluation.detection.charts import Box
from flashjax.evaluation.detection.errors import TYPES, Errors
from flashjax.evaluation.detection.overlaps import found_boxes
from flashjax.evaluation.detection.result import Result

Array = np.ndarray

MOST_BOXES, MOST_WORDS = 60, 20


@dataclass(frozen=True)
class BadImage:
    """An image and its errors from a score on: rows of detections and of ground truths in the matches."""

    image: int
    wrong: Array
    missed: Array


def worst_images(result: Result, threshold: float, count: int) -> list[BadImage]:
    """The images with most errors: false positives of at least ``threshold`` and ground truths that no detection of
    such a score found."""
    matches, c = result.matches, result.comparison
    high = matches.scores >= threshold
    wrong = np.flatnonzero(matches.false_positive & high)
    missed = ~matches.truth_ignored
    missed[matches.found[matches.true_positive & high]] = False
    missed = np.flatnonzero(missed)
    of_wrong = c.found.image[matches.detection_rows[wrong]]
    of_missed = c.truth.image[missed]
    images = len(c.truth.catalogue.images)
    number = np.bincount(of_wrong, minlength=images) + np.bincount(of_missed, minlength=images)
    order = np.argsort(-number, kind="stable")[:count]
    return [BadImage(i, wrong[of_wrong == i], missed[of_missed == i]) for i in order.tolist() if number[i]]


def worst_section(result: Result, errors: Errors, threshold: float, folder: Path | None, count: int) -> str:
    if folder is not None and not folder.is_dir():
        raise ValueError(f"images: {folder} is no folder")
    bad = worst_images(result, threshold, count)
    if not bad:
        return ""
    c = result.comparison
    boxes = found_boxes(c.found, c.truth)
    true_boxes = c.truth.boxes if c.truth.boxes is not None else c.truth.masks.boxes() if c.truth.masks else None
    cards = []
    for one in bad:
        cards.append(_card(result, errors, one, boxes, true_boxes, threshold, folder))
    return (
        f"<h2>The worst images</h2><p class=note>Most errors at IoU {errors.matches.iou:g} among detections of score "
        f"{threshold:.3f} or more, where F1 is best. The numbers are explained below each image.</p>"
        '<p class="legend key"><span class=truth>found</span><span class=right>right detection</span>'
        "<span class=missed>missed</span><span class=wrong>wrong detection</span></p>"
        f'<section class="cards">{"".join(cards)}</section>'
    )


def _card(
    result: Result,
    errors: Errors,
    bad: BadImage,
    boxes: Array,
    true_boxes: Array | None,
    threshold: float,
    folder: Path | None,
) -> str:
    """A picture with a number at each error, and below it what the numbers are."""
    matches, c = result.matches, result.comparison
    catalogue, names = c.truth.catalogue, result.curves.categories
    label = np.repeat(np.arange(len(names)), np.diff(c.ranking.starts))
    true_label = c.truth.category if result.protocol.use_categories else np.zeros(len(c.truth), np.int64)
    here = c.found.image[matches.detection_rows] == bad.image
    right = np.flatnonzero(here & matches.true_positive & (matches.scores >= threshold))
    found = np.setdiff1d(np.flatnonzero((c.truth.image == bad.image) & ~matches.truth_ignored), bad.missed)
    drawn: list[Box] = []
    listed: list[tuple[str, str]] = []

    def number(words: str, style: str) -> str:
        listed.append((words, style))
        return str(len(listed))

    if true_boxes is not None:
        drawn += [Box(_tuple(true_boxes[g]), names[true_label[g]], "truth") for g in found.tolist()]
    drawn += [
        Box(_tuple(boxes[matches.detection_rows[d]]), f"{names[label[d]]} {matches.scores[d]:.2f}", "right")
        for d in right[:MOST_BOXES].tolist()
    ]
    if true_boxes is not None:
        for g in bad.missed[:MOST_BOXES].tolist():
            words = f"{names[true_label[g]]} missed"
            drawn.append(Box(_tuple(true_boxes[g]), words, "missed", number(words, "missed")))
    for d in bad.wrong[:MOST_BOXES].tolist():
        words = f"{names[label[d]]} {matches.scores[d]:.2f} {TYPES[errors.kind[d]]}"
        if TYPES[errors.kind[d]] == "classification":
            words += f", is {names[true_label[errors.meant[d]]]}"
        drawn.append(Box(_tuple(boxes[matches.detection_rows[d]]), words, "wrong", number(words, "wrong")))
    size = tuple(catalogue.sizes[bad.image].tolist())
    if not all(size):
        ends = [(b.box[1] + b.box[3], b.box[0] + b.box[2]) for b in drawn]
        size = tuple(max(end) * 1.05 for end in zip(*ends, strict=True)) if ends else (100, 100)
    image_id = catalogue.images[bad.image].item()
    file = catalogue.files[bad.image] if catalogue.files else ""
    source = None
    if folder is not None:
        if not file or not (folder / file).is_file():
            raise ValueError(f"images: {folder} has no file {file!r} of image {image_id!r}")
        source = charts.embedded(folder / file)
    picture = charts.picture((int(size[0]) or 1, int(size[1]) or 1), drawn, source, f"image {image_id}")
    counts = f"{len(bad.missed)} missed, {len(bad.wrong)} wrong, {len(right)} right"
    items = "".join(f"<li class={style}>{escape(words)}</li>" for words, style in listed[:MOST_WORDS])
    more = f"<p class=legend>and {len(listed) - MOST_WORDS} more</p>" if len(listed) > MOST_WORDS else ""
    return (
        f'<figure class="picture">{picture}<figcaption><h3>{escape(str(file or image_id))}</h3>'
        f"<span class=legend>id {escape(str(image_id))}: {counts}</span></figcaption>"
        f"<ol class=found>{items}</ol>{more}</figure>"
    )


def _tuple(box: Array) -> tuple[float, float, float, float]:
    x, y, width, height = (float(v) for v in box)
    return x, y, width, height
