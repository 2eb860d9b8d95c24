"""The launcher: the worked example, a comparison with all it writes, and errors that say what to do."""

import json
import sys

import pytest

from experiments import detection_map
from tests.evaluation.detection.scenarios import scenario


def run(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["detection_map", *map(str, args)])
    detection_map.main()
    return capsys.readouterr().out


@pytest.fixture
def files(tmp_path):
    made = scenario(9, "bbox")
    (tmp_path / "truth.json").write_text(json.dumps(made["truth"]))
    found = [{k: v for k, v in one.items() if k != "id"} for one in made["found"]]
    (tmp_path / "found.json").write_text(json.dumps(found))
    return "--ground_truth", tmp_path / "truth.json", "--detections", tmp_path / "found.json"


def test_with_nothing_named_it_works_an_example(monkeypatch, capsys, tmp_path):
    out = run(monkeypatch, capsys, "--report", tmp_path / "page")
    assert "eleven points 26.84%" in out and "every point   24.57%" in out
    assert (tmp_path / "page" / "index.html").is_file()


def test_files_are_compared(monkeypatch, capsys, tmp_path, files):
    written = [tmp_path / "numbers.json", tmp_path / "errors.jsonl", tmp_path / "page"]
    out = run(monkeypatch, capsys, *files, "--json", written[0], "--list_errors", written[1], "--report", written[2])
    assert "AP50" in out and "duplicate" in out and "numbers  " in out
    numbers = json.loads(written[0].read_text())
    assert len(numbers["stats"]) == 12 and set(numbers["errors"]["counts"]) >= {"background", "missed"}
    lines = [json.loads(line) for line in written[1].read_text().splitlines()]
    assert len(lines) == numbers["counts"]["fp"] + numbers["counts"]["fn"] > 0
    assert (written[2] / "index.html").is_file()
    other = run(monkeypatch, capsys, *files, "--protocol", "voc2010", "--iou_thresholds", "0.3", "0.5")
    assert "mAP@0.3" in other
    assert "all  " in run(monkeypatch, capsys, *files, "--class_agnostic")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--protocol", "cocoo"], "unknown protocol 'cocoo'; nearest: coco"),
        (["--detections", "nowhere.json"], "nowhere.json"),
        (["--iou_type", "segm"], "truth.json: annotation 0 has no 'segmentation'"),
        (["--max_detections", "10"], "three limits"),
        (["--report", "page", "--images", "nowhere"], "nowhere is no folder"),
    ],
)
def test_errors_are_sentences(monkeypatch, capsys, files, change, words, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, capsys, *files, *change)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_one_of_two_files_is_not_enough(monkeypatch, capsys, files):
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, *files[:2])
    assert "--detections is missing" in capsys.readouterr().err
