"""Masks as runs: the codec both ways, areas, boxes, overlaps against pixels, polygons against the rule walked out."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flashjax.evaluation.detection import masks
from flashjax.evaluation.detection.mask_overlap import intersections, union
from flashjax.evaluation.detection.polygons import from_boxes, from_polygons

QUIET = settings(max_examples=60, deadline=None, database=None)
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12))
STACKS = SHAPES.flatmap(lambda shape: arrays.arrays(bool, shape))


@QUIET
@given(STACKS)
def test_codec_areas_and_boxes(stack):
    coded = masks.encode(stack)
    for row, pixels in enumerate(stack):
        np.testing.assert_array_equal(coded.dense(row), pixels)
    sizes = np.tile(stack.shape[1:], (len(stack), 1))
    kept = masks.from_strings(coded.strings(), sizes)
    read = kept.take(np.arange(len(stack)))
    np.testing.assert_array_equal(read.bounds, coded.bounds)
    np.testing.assert_array_equal(kept.areas(), stack.sum((1, 2)))
    np.testing.assert_array_equal(coded.areas(), stack.sum((1, 2)))
    for pixels, box, other in zip(stack, coded.boxes(), kept.boxes(), strict=True):
        rows, columns = np.nonzero(pixels)
        expected = [0, 0, 0, 0]
        if len(rows):
            # A run over the end of a column covers the whole height, by the rule.
            flat = np.flatnonzero(np.diff(np.pad(pixels.T.reshape(-1), 1).astype(int)))
            tall = any(b // len(pixels) < (e - 1) // len(pixels) for b, e in zip(flat[::2], flat[1::2], strict=True))
            top, bottom = (0, len(pixels) - 1) if tall else (rows.min(), rows.max())
            expected = [columns.min(), top, columns.max() - columns.min() + 1, bottom - top + 1]
        np.testing.assert_array_equal(box, expected)
        np.testing.assert_array_equal(other, expected)


@QUIET
@given(STACKS, st.data())
def test_intersections_and_unions(stack, data):
    coded = masks.encode(stack)
    rows = st.lists(st.integers(0, len(stack) - 1), min_size=3, max_size=3)
    a, b = np.array(data.draw(rows)), np.array(data.draw(rows))
    np.testing.assert_array_equal(intersections(coded, coded, a, b), (stack[a] & stack[b]).sum((1, 2)))
    cut = data.draw(st.integers(1, len(stack)))
    groups = np.unique([0, cut, len(stack)])
    joined = union(coded, groups)
    for row, (first, last) in enumerate(pairwise(groups)):
        np.testing.assert_array_equal(joined.dense(row), stack[first:last].any(0))


def test_plain_counts_with_empty_runs():
    coded = masks.from_counts([[0, 3, 0, 2, 1], [6], [0, 6], [2, 0, 4]], [(2, 3)] * 4)
    np.testing.assert_array_equal(coded.areas(), [5, 0, 6, 0])
    assert masks.rle(coded, 2) == {"size": [2, 3], "counts": "06"}


def test_parts_taken_in_any_order():
    rng = np.random.default_rng(0)
    stack = rng.random((6, 7, 9)) < 0.4
    coded = masks.encode(stack)
    kept = masks.from_strings(coded.strings(), [(7, 9)] * 6)
    rows = np.array([5, 0, 0, 3])
    for part in (coded.take(rows), kept.take(rows), kept.rows(rows).take(np.arange(4)), coded.rows(rows)):
        for place, row in enumerate(rows):
            np.testing.assert_array_equal(part.dense(place), stack[row])
    np.testing.assert_array_equal(
        masks.Masks.join([coded.take(rows), coded]).areas(), stack[[*rows, *range(6)]].sum((1, 2))
    )
    assert len(masks.Masks.join([])) == 0


def walked(points, height, width):
    """COCO's rule as it is told: the polygon five times enlarged, each edge stepped along its longer side."""
    grid = [(int(5 * x + 0.5), int(5 * y + 0.5)) for x, y in points]
    path = []
    for (xs, ys), (xe, ye) in zip(grid, grid[1:] + grid[:1], strict=True):
        dx, dy = abs(xe - xs), abs(ye - ys)
        turned = xs > xe if dx >= dy else ys > ye
        if turned:
            xs, ys, xe, ye = xe, ye, xs, ys
        steps = []
        for t in range(max(dx, dy) + 1):
            if dx >= dy:
                steps.append((t + xs, int(ys + (ye - ys) / dx * t + 0.5) if dx else ys))
            else:
                steps.append((int(xs + (xe - xs) / dy * t + 0.5), t + ys))
        path += steps[::-1] if turned else steps
    inside = np.zeros(height * width + 1, int)
    for (u0, v0), (u1, v1) in pairwise(path):
        if u0 == u1:
            continue
        x = ((u1 if u1 < u0 else u1 - 1) + 0.5) / 5 - 0.5
        if x != int(x) or not 0 <= x <= width - 1:
            continue
        y = np.ceil(min(max((min(v0, v1) + 0.5) / 5 - 0.5, 0), height))
        inside[int(x) * height + int(y)] += 1
    return (np.cumsum(inside[:-1]) % 2).astype(bool).reshape(width, height).T


def test_polygons_are_drawn_by_the_rule():
    rng = np.random.default_rng(1)
    for number in range(120):
        height, width = (int(v) for v in rng.integers(1, 24, 2))
        points = rng.uniform(-0.3, 1.3, (int(rng.integers(3, 8)), 2)) * (width, height)
        points = points.round(number % 3) if number % 2 else np.round(5 * points) / 5
        drawn = from_polygons([[points.reshape(-1).tolist()]], [(height, width)])
        np.testing.assert_array_equal(drawn.dense(0), walked(points.tolist(), height, width), err_msg=str(number))


def test_polygons_of_several_parts_and_boxes():
    square, other = [1, 1, 1, 4, 4, 4, 4, 1], [3, 3, 3, 6, 6, 6, 6, 3]
    one, two, both = from_polygons([[square], [other], [square, other]], [(8, 8)] * 3), None, None
    one, two, both = one.dense(0), one.dense(1), one.dense(2)
    np.testing.assert_array_equal(both, one | two)
    boxed = from_polygons([[[1, 1, 3, 3]]], [(8, 8)])  # four numbers are a box
    np.testing.assert_array_equal(boxed.dense(0), one)
    np.testing.assert_array_equal(from_boxes([(1, 1, 3, 3)], [(8, 8)]).dense(0), one)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: masks.from_counts([[4, 2], [3, 2]], [(2, 3)] * 2, "mask"),
            "mask 1: its runs hold 5 pixels.*2 x 3 = 6",
        ),
        (lambda: masks.from_counts([[4, -2, 4]], [(2, 3)], "mask"), "mask 0: a run of a negative"),
        (lambda: masks.from_strings(["6", "7"], [(2, 3)] * 2, "mask").areas(), "mask 1: its runs hold 7"),
        (lambda: masks.from_strings(["6", "7"], [(2, 3)] * 2, "mask").take([1]), "mask 1: its runs hold 7"),
        (lambda: masks.from_strings(["6 "], [(2, 3)], "mask").areas(), "mask 0: ' ' is no character"),
        (lambda: masks.from_strings(["6", "P"], [(2, 3)] * 2, "mask").areas(), "mask 1: .*break off"),
        (lambda: masks.from_strings(["oooooooo0"], [(2, 3)], "mask").areas(), "mask 0: .*more than 30 bits"),
        (lambda: from_polygons([[[0, 0, 1, 1, 2]]], [(2, 3)], "mask"), "mask 0: a polygon of 5 numbers"),
        (lambda: from_polygons([[[0, 0]]], [(2, 3)], "mask"), "mask 0: a polygon of 2 numbers"),
        (lambda: from_polygons([[]], [(2, 3)], "mask"), "mask 0: a polygon without parts"),
        (lambda: from_polygons([[[0, 0, 1, float("nan"), 2, 2]]], [(2, 3)], "mask"), "mask 0: nan"),
        (
            lambda: from_polygons([[[0, 0, 1, "x", 2, 2]]], [(2, 3)], "mask"),
            "mask 0: .x. in a polygon is not a number",
        ),
        (lambda: from_polygons([[[0, 0, 1, 1], [0, 0, 1, 1, 2, 2]]], [(2, 3)], "mask"), "mask 0: .*is a box"),
        (lambda: masks.encode(np.zeros((2, 3), bool)), "has shape"),
    ],
)
def test_what_is_no_mask(make, words):
    with pytest.raises(ValueError, match=words):
        make()
