"""JSON files in: what `json` and `float` read, to the last bit, or left to them."""

import json
import math
import random
import re
from itertools import pairwise

import numpy as np
import pytest

from flashjax.evaluation.detection import load, reading
from flashjax.evaluation.detection.reading import read_json, read_results


def record(rng, **more):
    box = [float(np.float32(rng.uniform(0, 700))) for _ in range(4)]
    score = rng.choice([rng.random(), float(np.float32(rng.random())), rng.random() * 10.0 ** -rng.randrange(12), 1, 0])
    one = {"image_id": rng.randrange(10 ** rng.randrange(1, 18)), "category_id": rng.randrange(91)}
    return one | {"bbox": box, "score": score} | more


def write(path, records, **how):
    path.write_text(json.dumps(records, **how))
    return path


def same(read, records):
    for key in ("image_id", "category_id", "score", "bbox"):
        np.testing.assert_array_equal(read[key], [one[key] for one in records])


@pytest.mark.parametrize("how", [{}, {"separators": (",", ":")}, {"indent": 2}], ids=["plain", "tight", "lines"])
def test_columns_are_what_json_reads(tmp_path, monkeypatch, how):
    monkeypatch.setattr(reading, "PART", 3000)  # many parts
    rng = random.Random(0)
    records = [record(rng) for _ in range(500)]
    read = read_results(write(tmp_path / "found.json", records, **how), masks=False)
    assert read is not None
    assert [read[key].dtype for key in ("image_id", "category_id", "score", "bbox")] == ["i8", "i8", "f8", "f8"]
    same(read, records)


@pytest.mark.parametrize("part", [7, 100, 1 << 17])
def test_records_of_many_forms(tmp_path, monkeypatch, part):
    """Keys in any order, others beside them, parts of any length."""
    monkeypatch.setattr(reading, "PART", part)
    rng = random.Random(part)

    def mixed(*extras):
        records = [list(record(rng, **(rng.choice(extras) if rng.random() < 0.5 else {})).items()) for _ in range(60)]
        return [dict(rng.sample(items, len(items))) for items in records]

    records = mixed({"id": 3}, {"more": {"a": {"b": [{}, 1]}}}, {"name": "a}, ["}, {"keypoints": [1, 2, 3]})
    same(read_results(write(tmp_path / "found.json", records), masks=False), records)
    # What looks like the beginning of a record and is none: a part that ends there does not read.
    for extra in ({"name": "a, {"}, {"more": [{"a": [{}]}, {"b": 1}, {"bbox": [0]}]}):
        records = mixed(extra)
        read = read_results(write(tmp_path / "found.json", records), masks=False)
        if read is not None:
            same(read, records)


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
    assert np.signbit(read["score"][texts.index("-0.0")])
    (tmp_path / "all.json").write_text(f"[{','.join(texts)}]")
    assert list(map(float, read_json(tmp_path / "all.json"))) == [float(text) for text in texts]


def test_run_lengths_are_taken_out(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PART", 2000)
    rng = random.Random(2)
    letters = [chr(c) for c in range(48, 112)]
    records = []
    for _ in range(300):
        counts = "".join(rng.choice([*letters, "\\"]) for _ in range(rng.randrange(1, 30)))
        one = {"segmentation": {"size": [rng.randrange(1, 900), 7], "counts": counts}, "score": 1e-5}
        records.append({"image_id": 3} | one | {"category_id": 4})
    read = read_results(write(tmp_path / "found.json", records), masks=True)
    assert read is not None and "bbox" not in read
    np.testing.assert_array_equal(read["size"], [one["segmentation"]["size"] for one in records])
    ends, text = read["starts"], read["counts"].tobytes().decode()
    assert [text[a:b] for a, b in pairwise(ends)] == [one["segmentation"]["counts"] for one in records]
    boxed = [{"bbox": [1.5, 2, 3, 4]} | one for one in records]
    np.testing.assert_array_equal(read_results(write(tmp_path / "b.json", boxed), masks=True)["bbox"][:, 0], 1.5)
    for some in (boxed[:299] + records[299:], records[:1] + boxed[1:]):  # in one part, and in another
        assert read_results(write(tmp_path / "c.json", some), masks=True) is None
    boxed[7]["segmentation"] = {"size": [4, 7], "counts": "é"}
    assert read_results(write(tmp_path / "d.json", boxed), masks=True) is None


GOOD = '{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "[]",
        "[ ]",
        "{}",
        "7",
        f"[{GOOD}",
        f"[{GOOD},]",
        f"[{GOOD}] 7",
        f"[{GOOD} {GOOD}]",
        f"[[{GOOD}]]",
        f"[{GOOD}, 7]",
        f"[{GOOD}, {GOOD.replace('score', 'scores')}]",
        f"[{GOOD}, {GOOD.replace('0.5', 'NaN')}]",
        f"[{GOOD}, {GOOD.replace('0.5', 'null')}]",
        f"[{GOOD}, {GOOD.replace('0.5', 'true')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '1e999')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '0.5.5')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '5 5')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '.5')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '5.')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '05')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '5-5')}]",
        f"[{GOOD}, {GOOD.replace('0.5', '1e')}]",
        f"[{GOOD}, {GOOD.replace('1,', '1.5,', 1)}]",
        f"[{GOOD}, {GOOD.replace('1,', '1.0,', 1)}]",
        f"[{GOOD}, {GOOD.replace('1,', '9223372036854775808,', 1)}]",
        f"[{GOOD}, {GOOD.replace('1,', '{q}1{q},', 1).replace('{q}', chr(34))}]",
        f"[{GOOD}, {GOOD.replace('3, 4', '3, 4, 5')}]",
        f"[{GOOD}, {GOOD.replace('3, 4', '3')}]",
        f"[{GOOD.replace('image_id', 'image')}]",
        f"[{GOOD}, {GOOD.replace('5', 'é')}]",
    ],
)
@pytest.mark.parametrize("part", [1 << 17, 80])
def test_what_is_not_so_is_left_to_json(tmp_path, monkeypatch, text, part):
    monkeypatch.setattr(reading, "PART", part)
    path = tmp_path / "found.json"
    path.write_text(text)
    assert read_results(path, masks=False) is None
    assert read_results(path, masks=True) is None


@pytest.mark.parametrize("text", ['{"a": [1, 2,, 3]}', '{"a": 1', '{"a": 1}\n}', "[1, 2]\n[3]", '{"a": tru}', "\xff"])
def test_what_is_no_json_is_said_to_be_none_at_its_place(tmp_path, text):
    path = tmp_path / "truth.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)) as theirs:
        json.loads(path.read_bytes())
    with pytest.raises(ValueError, match=re.escape(f"truth.json is no JSON: {theirs.value}")):
        read_json(path)


def test_what_only_json_reads(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text('{"a": [NaN, -Infinity, 1e999]}')
    one, two, three = read_json(path)["a"]
    assert math.isnan(one) and (two, three) == (-math.inf, math.inf)
    path.write_bytes("[1]".encode("utf-16"))
    assert read_json(path) == json.loads(path.read_bytes())
    path.write_text(" \n")
    with pytest.raises(ValueError, match=r"truth\.json is empty"):
        read_json(path)


def test_the_collector_is_left_as_it_was(tmp_path):
    import gc

    path = write(tmp_path / "found.json", [7])
    for collecting in (True, False):
        (gc.enable if collecting else gc.disable)()
        read_json(path), read_results(path, masks=False)
        assert gc.isenabled() == collecting
    gc.enable()


def test_a_ground_truth_with_masks_of_all_kinds(tmp_path):
    """From its file as from what `json` reads of it."""
    rng, annotations = random.Random(4), []
    for number in range(100):
        parts = [
            [round(rng.uniform(-5, 90), rng.randrange(4)) for _ in range(2 * rng.randrange(3, 9))]
            for _ in range(rng.choice([1, 1, 2, 3]))
        ]
        one = {"id": number, "segmentation": parts, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 9}
        if number % 10 == 3:
            one["segmentation"] = {"counts": [4, 5, 91], "size": [10, 10]}
        annotations.append(one)
    made = {"images": [{"id": 1, "height": 10, "width": 10}], "annotations": annotations, "categories": [{"id": 1}]}
    path = write(tmp_path / "truth.json", made)
    assert read_json(path) == made
    read, plain = (load(given, [], iou_type="segm")[0].masks for given in (path, made))
    np.testing.assert_array_equal(read.of_rows(slice(None))[0], plain.of_rows(slice(None))[0])
