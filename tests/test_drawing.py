"""Drawings: where things are, and what is said of them."""

import re

import pytest

from flashjax import drawing


def test_a_doubling_of_x_is_one_step_and_what_is_outside_lies_on_the_rim():
    svg = drawing.line_chart(
        "Loss <by> length",
        {"a": [(128, 1.0), (256, 9.0), (512, 2.0)], "b": [(512, 1.5)], "c": []},
        "length",
        doublings=(128, 256, 512),
        y_range=(1, 3),
    )
    (path,) = re.findall(r'points="([^"]*)"', svg)
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, point.split(","))) for point in path.split()]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and (x0, x2) == (drawing.LEFT, drawing.WIDTH - drawing.RIGHT)
    assert y1 == drawing.TOP and y0 == drawing.HEIGHT - drawing.BOTTOM and y1 < y2 < y0
    assert "a, length 256: 9" in svg and "b, length 512: 1.5" in svg and "Loss &lt;by&gt; length" in svg
    assert re.findall(r'<span class="(c\d)">(\w)', svg) == [("c1", "a"), ("c2", "b")]
    assert ">length</text>" in svg, "the axis is named"
    assert "drawn on the rim" in svg and "rim" not in drawing.line_chart("t", {"a": [(1, 1.0), (2, 9.0)]}, "x")


def test_a_heat_map_shades_between_the_ends_of_its_range():
    svg = drawing.heat_map("Keys", ["0 %", "50 %"], ["1x", "2x"], [[0.0, 1.0], [None, 3.0]], value_range=(0, 2))
    assert re.findall(r'fill-opacity="([\d.]+)"', svg) == ["0.000", "0.500", "0.000", "1.000"]
    assert "50 %, 1x: none" in svg and "0 %, 2x: 1.00" in svg
    assert re.findall(r'class="(on|between|over)"', svg) == ["on", "on", "on", "over"]


def test_a_heat_map_has_room_for_its_names_and_writes_no_minus_before_zero():
    svg = drawing.heat_map("Loss", ["a name of some length"], ["x", "y"], [[-0.001, 0.7]])
    left = 8 + 7 * len("a name of some length")
    assert f'viewBox="0 0 {left + 2 * drawing.CELL_WIDTH} ' in svg and f'x="{left}" y="{drawing.COLUMN_NAMES}"' in svg
    assert "x: 0.00" in svg and re.findall(r'class="(on|between|over)"', svg) == ["on", "between"]


def test_a_table_escapes():
    html = drawing.table(["method", "1x"], [["a<b", "2"]])
    assert "<th>a&lt;b</th><td>2</td>" in html


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.13, 2.31, ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]),
        (0, 3000, ["0", "1k", "2k", "3k"]),
        (0, 0.001, ["0", "2e-4", "4e-4", "6e-4", "8e-4", "1e-3"]),
        (0.9, 0.97, ["0.90", "0.92", "0.94", "0.96", "0.98"]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, labels):
    ticks = drawing.ticks(low, high, 5)
    assert ticks[0] <= low and ticks[-1] >= high
    assert [drawing.label(tick, ticks) for tick in ticks] == labels


def test_names_of_points_hide_neither_each_other_nor_points():
    points = {"few": [(1.0, 1.0, "alone"), (5.0, 2.0, "a"), (5.1, 2.0, "b")], "more": [(5.05, 2.01, "a long name")]}
    svg = drawing.scatter("Loss <by> speed", points, "tokens/s", "loss", note="n")
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)">([^<]+)</text>', svg[svg.index('class="names"') :])
    boxes = [(float(x), float(y) - 11, float(x) + len(w) * drawing.NAME, float(y) + 2) for x, y, w in found]
    assert {w for *_, w in found} == {"alone", "a", "b", "a long name"}
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
    assert svg.count('circle class="c1"') == 3 and svg.count('circle class="c2"') == 1
    assert ">tokens/s</text>" in svg and ">loss</text>" in svg, "both axes are named"
    assert "alone: tokens/s 1, loss 1" in svg and "Loss &lt;by&gt; speed" in svg


def test_a_text_table_is_markdown_and_reads_as_it_is():
    assert drawing.text_table(["m", "loss"], [["a", "1.5"], ["long", "2"]]).splitlines() == [
        "| m    | loss |",
        "| ---- | ---: |",
        "| a    |  1.5 |",
        "| long |    2 |",
    ]


def test_a_band_goes_along_its_lower_edge_and_back_along_the_upper():
    curves = {"a": [(0.0, 1.0), (10.0, 3.0)], "b": [(0.0, 2.0), (10.0, 2.0)]}
    svg = drawing.line_chart("Loss", curves, "step", bands={"b": [(0.0, 1.5, 2.5), (10.0, 1.0, 3.0)]})
    ((color, points),) = re.findall(r'<polygon class="(c\d+)" points="([^"]+)"', svg)
    corners = [tuple(map(float, point.split(","))) for point in points.split()]
    lefts, heights = [x for x, _ in corners], [y for _, y in corners]
    assert color == "c2" and lefts[0] == lefts[3] < lefts[1] == lefts[2]
    assert heights[0] - heights[3] == pytest.approx((heights[1] - heights[2]) / 2, abs=0.11)  # 1 wide, then 2
    assert svg.index("<polygon") < svg.index('<polyline class="c2"')  # the curve is drawn over its band


def test_marked_places_of_a_heat_map_have_a_rim_and_a_scale_may_fall():
    svg = drawing.heat_map("Error", ["r"], ["x", "y"], [[1.0, 3.0]], value_range=(3.0, 1.0), marked=[(0, 1)])
    found = re.findall(r'<rect class="(cell[^"]*)".*?fill-opacity="([\d.]+)"', svg)
    assert found == [("cell", "1.000"), ("cell marked", "0.000")]
