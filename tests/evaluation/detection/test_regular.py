"""Results files read as columns: what `json` and `float` read, or nothing at all."""

import json
import random
import re
from itertools import pairwise

import numpy as np
import pytest

from flashjax.evaluation.detection import fields, load, outlines, regular
from flashjax.evaluation.detection.regular import read_results


def record(rng, **more):
    box = [float(np.float32(rng.uniform(0, 700))) for _ in range(4)]
    score = rng.choice([rng.random(), float(np.float32(rng.random())), rng.random() * 10.0 ** -rng.randrange(12), 1, 0])
    one = {"image_id": rng.randrange(10 ** rng.randrange(1, 18)), "category_id": rng.randrange(91)}
    return one | {"bbox": box, "score": score} | more


def write(path, records, **how):
    path.write_text(json.dumps(records, **how))
    return path


@pytest.mark.parametrize("how", [{}, {"separators": (",", ":")}, {"indent": 2}], ids=["plain", "tight", "lines"])
def test_columns_are_what_json_reads(tmp_path, monkeypatch, how):
    monkeypatch.setattr(regular, "PART", 3000)  # many parts
    rng = random.Random(0)
    records = [record(rng) for _ in range(800)]
    read = read_results(write(tmp_path / "found.json", records, **how), masks=False)
    assert read is not None
    for key in ("image_id", "category_id", "score", "bbox"):
        np.testing.assert_array_equal(read[key], [one[key] for one in records])


def test_numbers_are_what_float_reads(tmp_path):
    """Ties, long mantissas, powers of two, exponents, huge and tiny numbers."""
    rng = random.Random(1)
    texts = ["0.1", "0.30000000000000004", "9007199254740993", "9007199254740992.5", "0.50000000000000005551"]
    texts += ["1.7976931348623157e308", "4.9e-324", "1E+2", "-0.0", "123456789012345678", "12345678901234567890123"]
    texts += ["0.000000000000000000000000123", "8.5", "2.00000000000000022204", "1.00000000000000011102230246251565"]
    texts += [repr(rng.random() * 10.0 ** rng.randrange(-8, 9)) for _ in range(2000)]
    texts += [f"{rng.randrange(10**18)}.{rng.randrange(10**3)}" for _ in range(300)]
    texts += [f"0.{rng.randrange(10**19):019d}" for _ in range(500)]
    body = ",".join(f'{{"image_id":1,"category_id":2,"bbox":[1,2,3,4],"score":{text}}}' for text in texts)
    path = tmp_path / "found.json"
    path.write_text(f"[{body}]")
    read = read_results(path, masks=False)
    assert read is not None
    np.testing.assert_array_equal(read["score"], [float(text) for text in texts])


def test_run_lengths_are_taken_out(tmp_path, monkeypatch):
    monkeypatch.setattr(regular, "PART", 2000)
    rng = random.Random(2)
    letters = [chr(c) for c in range(48, 112)]
    records = []
    for _ in range(300):
        counts = "".join(rng.choice([*letters, "\\"]) for _ in range(rng.randrange(1, 30)))
        one = {"segmentation": {"size": [rng.randrange(1, 900), 7], "counts": counts}, "score": 1e-5}
        records.append({"image_id": 3} | one | {"category_id": 4})
    read = read_results(write(tmp_path / "found.json", records), masks=True)
    assert read is not None
    np.testing.assert_array_equal(read["size"], [one["segmentation"]["size"] for one in records])
    ends, text = read["starts"], read["counts"].tobytes().decode()
    assert [text[a:b] for a, b in pairwise(ends)] == [one["segmentation"]["counts"] for one in records]
    boxed = [{"bbox": [1.5, 2, 3, 4]} | one for one in records]
    np.testing.assert_array_equal(read_results(write(tmp_path / "b.json", boxed), masks=True)["bbox"][:, 0], 1.5)


GOOD = '{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        f"[{GOOD}",
        f"[{GOOD},]",
        f"[{GOOD}] 7",
        f"[{GOOD}, {GOOD.replace('score', 'scores')}]",
        f"[{GOOD}, {GOOD.replace('0.5', 'NaN')}]",
        f"[{GOOD}, {GOOD.replace('0.5', 'null')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '0.5.5')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '5 5')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '.5')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '5.')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '5-5')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '1e')}]",
        f"[{GOOD}, {GOOD.replace('1,', '1.5,', 1)}]",
        f"[{GOOD}, {GOOD.replace('3, 4', '3, 4, 5')}]",
        f"[{GOOD}, {GOOD.replace('3, 4', '3')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '0.5, ' + chr(34) + 'extra' + chr(34) + ': 1')}]",
        f"[{GOOD.replace('image_id', 'image')}]",
        f"[{GOOD}, {GOOD.replace('5', 'é')}]",
    ],
)
def test_what_is_not_regular_is_left_to_json(tmp_path, text):
    path = tmp_path / "found.json"
    path.write_text(text)
    assert read_results(path, masks=False) is None
    assert read_results(path, masks=True) is None


def dataset(rng, count=200):
    """A ground truth with polygons of one part and of several, run lengths, and none at all."""
    annotations = []
    for number in range(count):
        parts = [
            [round(rng.uniform(-5, 90), rng.randrange(4)) for _ in range(2 * rng.randrange(3, 9))]
            for _ in range(rng.choice([1, 1, 2, 3]))
        ]
        one = {"id": number, "segmentation": parts, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 9}
        if number % 10 == 3:
            one["segmentation"] = {"counts": [4, 5, 91], "size": [10, 10]}
        annotations.append(one)
    return {"images": [{"id": 1, "height": 10, "width": 10}], "annotations": annotations, "categories": [{"id": 1}]}


@pytest.mark.parametrize("how", [{}, {"separators": (",", ":")}], ids=["plain", "tight"])
def test_polygons_are_what_json_reads(tmp_path, monkeypatch, how):
    monkeypatch.setattr(outlines, "_BATCH", 3000)  # many parts
    made = dataset(random.Random(4))
    read = fields.read_dataset(write(tmp_path / "truth.json", made, **how))
    for ours, theirs in zip(read["annotations"], made["annotations"], strict=True):
        if isinstance(theirs["segmentation"], dict):
            assert ours == theirs
            continue
        place = ours["segmentation"]
        assert type(place) is outlines.OutlineAt
        one = place.outlines.take(np.array([place.row]))
        assert one.lengths.tolist() == list(map(len, theirs["segmentation"]))
        np.testing.assert_array_equal(one.values, np.concatenate(theirs["segmentation"]))
    mixed = load(read, [], iou_type="segm")[0].masks
    plain = load(made, [], iou_type="segm")[0].masks
    np.testing.assert_array_equal(mixed.of_rows(slice(None))[0], plain.of_rows(slice(None))[0])


@pytest.mark.parametrize(
    "polygons",
    [
        "[[1, 2, 3 4]]",
        "[[1, 2,, 3]]",
        "[[1, 2, ]]",
        "[[], [1, 2]]",
        "[[1, 2]3]]",
        "[[1, 2][3, 4]]",
        "[[1, 2, [3, 4]]",
        "[[[1, 2]]]",
        '[[1, "2"]]',
        "[[1e2, 2]]",
        "[[1.2.3, 2]]",
        "[[1-2, 2]]",
        "[[1, 2] ]",
        "[[true, 2]]",
        "[1, 2]",
        "7",
    ],
)
def test_other_polygons_are_left_to_json(tmp_path, polygons):
    """And what is no JSON is said to be none, at its place in the whole file."""
    made = dataset(random.Random(4), 5)
    made["annotations"][2]["segmentation"] = "HERE"
    text = json.dumps(made).replace('"HERE"', polygons)
    path = tmp_path / "truth.json"
    path.write_text(text)
    try:
        expected = json.loads(text)
    except json.JSONDecodeError as error:
        with pytest.raises(ValueError, match=re.escape(f"truth.json is no JSON: {error}")):
            fields.read_dataset(path)
    else:
        assert fields.read_dataset(path) == expected


def test_the_word_segmentation_elsewhere(tmp_path):
    made = dataset(random.Random(5), 5)
    for change in ({"info": "segmentation"}, {"info": {"segmentation": [[1, 2]]}}, {"info": {"segmentation": 3}}):
        assert fields.read_dataset(write(tmp_path / "truth.json", change | made)) == change | made
