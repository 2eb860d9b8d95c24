"""The page of a run: whole in one file, well formed, and true to the numbers."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from flashjax.drawing import HEIGHT, LEFT, WIDTH
from flashjax.training.report import write_report


class Page(HTMLParser):
    """Checks nesting and keeps what is asked about."""

    VOID = {"meta", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def digit(value, channels=1):
    return np.full((28, 28, channels), value, np.uint8)


METRICS = [
    {"step": 1, "loss": 2.0, "accuracy": 0.1, "learning_rate": 1e-6},
    {"step": 50, "loss": 1.5, "accuracy": 0.4, "learning_rate": 1e-3},
    {"step": 100, "loss": "nan", "learning_rate": 5e-4},
    {"step": 100, "eval_loss": 1.0, "eval_top1": 0.75},
]
PREDICTIONS = [
    (digit(10), "seven <7>", [("seven <7>", 0.9), ("one", 0.1)]),
    (digit(20, 3), "two", [("three", 0.6), ("two", 0.4)]),
]


def test_the_page_is_whole_and_needs_nothing(tmp_path):
    path = write_report(tmp_path / "report.html", "A run & more", METRICS, PREDICTIONS, {"accuracy": "0.97"})
    text = path.read_text()
    page = Page(text)
    assert "A run & more" in page.text and "0.97" in page.text and "seven <7>" in page.text
    assert "1 of these 2 are right" in page.text and "wrong: three" in page.text
    assert [a["class"] for a in page.all("article")] == ["right", "missed"]
    assert not re.search(r"https?://|<script|@import|url\(", text)
    assert all(a["src"].startswith("data:image/png;base64,") for a in page.all("img"))
    assert "prefers-color-scheme: dark" in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_images_come_back_as_they_were(tmp_path):
    page = Page(write_report(tmp_path / "r.html", "x", [], PREDICTIONS, {}).read_text())
    images = [Image.open(io.BytesIO(base64.b64decode(a["src"].split(",")[1]))) for a in page.all("img")]
    np.testing.assert_array_equal(np.asarray(images[0]), PREDICTIONS[0][0][..., 0])
    np.testing.assert_array_equal(np.asarray(images[1]), PREDICTIONS[1][0])


def test_curves_hold_the_finite_numbers(tmp_path):
    page = Page(write_report(tmp_path / "r.html", "x", METRICS, [], {}).read_text())
    assert [a["aria-label"] for a in page.all("svg")] == ["Loss by step", "Accuracy by step", "Learning rate by step"]
    assert [len(a["points"].split()) for a in page.all("polyline")] == [2, 2, 3]
    titles = re.findall(r"step \d+: [\d.e-]+", page.text)
    assert titles[:3] == ["step 1: 2", "step 50: 1.5", "step 100: 1"]
    for circle in page.all("circle"):
        assert LEFT <= float(circle["cx"]) <= WIDTH and 0 <= float(circle["cy"]) <= HEIGHT


def test_the_last_of_several_values_at_a_step_counts(tmp_path):
    lines = [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 1, "loss": 8.0}]
    text = Page(write_report(tmp_path / "r.html", "x", lines, [], {}).read_text()).text
    assert "step 1: 8" in text and "step 2: 4" in text and "step 2: 5" not in text


def test_long_runs_are_thinned(tmp_path):
    lines = [{"step": step, "loss": math.exp(-step / 5000) + 0.01 * math.sin(step)} for step in range(1, 20001)]
    path = write_report(tmp_path / "r.html", "x", lines, [], {})
    (line,) = Page(path.read_text()).all("polyline")
    assert 300 < len(line["points"].split()) <= 402
    assert path.stat().st_size < 40_000


def test_a_run_without_anything_still_has_a_page(tmp_path):
    text = write_report(tmp_path / "r.html", "empty", [{"step": 1, "loss": math.inf}], [], {"steps": "0"}).read_text()
    assert "<svg" not in text and "<article" not in text and "steps" in Page(text).text


def test_one_point_and_constants_draw(tmp_path):
    for lines in ([{"step": 0, "loss": 0.0}], [{"step": 5, "loss": 1.0}, {"step": 9, "loss": 1.0}]):
        assert "<svg" in write_report(tmp_path / "r.html", "x", lines, [], {}).read_text()


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), digit(0, 4)])
def test_another_kind_of_image_is_an_error(tmp_path, image):
    with pytest.raises(ValueError, match="must be uint8"):
        write_report(tmp_path / "r.html", "x", [], [(image, "a", [("a", 1.0)])], {})
