"""The pages: what must be on them, that nothing in a name breaks them, and the worked example's figures."""

import re

import numpy as np
import pytest
from PIL import Image

from flashjax.evaluation.detection import evaluate, example
from flashjax.evaluation.detection.charts import thinned
from flashjax.evaluation.detection.report import score_curves, write_report
from flashjax.evaluation.detection.report_images import worst_images
from tests.evaluation.detection.scenarios import scenario


def named(seed, kind="bbox"):
    made = scenario(seed, kind)
    made["truth"]["categories"][0]["name"] = "<b>cat & dog</b>"
    for one in made["found"]:
        one.pop("id", None)
    return made["truth"], made["found"]


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_page_of_each_kind(tmp_path, kind):
    result = evaluate(*named(5, kind), "coco", kind)
    page = write_report(tmp_path, result, command="python -m here").read_text()
    for words in ("Curves", "Errors", "Classes", "Precision by recall of each class", "The worst images", "AP50"):
        assert words in page
    assert "<b>cat" not in page and "&lt;b&gt;cat &amp; dog&lt;/b&gt;" in page
    assert "python -m here" in page and "http" not in page.replace("http://www.w3.org", "")
    assert not re.search(r"\bnan\b|\binf\b", page.replace("Infinity", ""))


def test_page_of_nothing(tmp_path):
    truth, _ = named(5)
    for found, annotations in (([], truth["annotations"]), ([], [])):
        page = write_report(tmp_path, evaluate(truth | {"annotations": annotations}, found, "voc2010")).read_text()
        assert "mAP" in page


def test_images_are_embedded(tmp_path):
    truth, found = named(5)
    for image in truth["images"]:
        Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / image["file_name"])
    result = evaluate(truth, found)
    page = write_report(tmp_path / "page", result, images=tmp_path, worst=2).read_text()
    assert page.count("data:image/jpeg") == 2
    for image in truth["images"]:
        (tmp_path / image["file_name"]).unlink()
    with pytest.raises(ValueError, match="has no file"):
        write_report(tmp_path / "page", result, images=tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        write_report(tmp_path / "page", result, images=tmp_path / "nowhere")


def test_worst_images_have_most_errors():
    truth, found = named(9)
    result = evaluate(truth, found, "coco_fixed", max_detections=[100])
    worst = worst_images(result, -10.0, 100)
    numbers = [len(one.wrong) + len(one.missed) for one in worst]
    assert numbers == sorted(numbers, reverse=True) and min(numbers) > 0
    counts = result.matches.counts()
    assert sum(numbers) == counts["fp"] + counts["fn"]
    alone = worst_images(result, 10.0, 100)  # no detection has such a score: everything is missed
    assert sum(len(one.missed) for one in alone) == counts["tp"] + counts["fn"]


def test_score_curves_end_where_all_counts():
    result = evaluate(*named(9))
    scores, precision, recall, f1 = score_curves(result)
    counts = result.matches.counts()
    assert (np.diff(scores) < 0).all() and (np.diff(recall) >= 0).all()
    assert precision[-1] == pytest.approx(counts["tp"] / (counts["tp"] + counts["fp"]))
    assert recall[-1] == pytest.approx(counts["tp"] / (counts["tp"] + counts["fn"]))
    assert f1[-1] == pytest.approx(2 * counts["tp"] / (2 * counts["tp"] + counts["fp"] + counts["fn"]))


def test_thinned_curves_keep_their_extremes():
    y = np.sin(np.arange(5000) / 100)
    y[1234] = 3
    x, kept = thinned(np.arange(5000.0), y)
    assert len(x) <= 602 and kept.max() == 3 and x[0] == 0 and x[-1] == 4999


def test_worked_example(tmp_path):
    shown = example.walk()
    assert shown.eleven.stats[0] == pytest.approx(0.268398, abs=5e-7)
    assert shown.every.stats[0] == pytest.approx(0.245687, abs=5e-7)
    assert shown.coco == pytest.approx(0.248160, abs=5e-7)
    right = (1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0)
    assert tuple(int(row.right) for row in shown.rows) == right
    assert sum(p for _, p in example.eleven_points(shown.rows)) / 11 == pytest.approx(shown.eleven.stats[0])
    area = sum((b - a) * height for a, b, height in example.steps(shown.rows))
    assert area == pytest.approx(shown.every.stats[0])
    text = example.words(shown)
    assert "26.84%" in text and "24.57%" in text and text.count("right ") >= 7
    page = example.write_walk(tmp_path, shown).read_text()
    assert page.count('<svg class="picture"') == 7 and "AP 26.84%" in page and "AP 24.57%" in page
