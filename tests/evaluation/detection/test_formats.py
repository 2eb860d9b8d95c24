"""Every form of input gives the same numbers, and what is wrong with one is said with its file, row and value."""

import copy
import json

import numpy as np
import pytest

from flashjax.evaluation.detection import evaluate, load, masks
from flashjax.evaluation.detection.polygons import from_boxes
from tests.evaluation.detection.scenarios import SIZE, lvis_scenario, scenario

TRUTH = {
    "images": [{"id": 7, "height": 100, "width": 120, "file_name": "a.jpg"}, {"id": 3, "height": 50, "width": 60}],
    "categories": [{"id": 2, "name": "cat"}, {"id": 9, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 2, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 9, "bbox": [5, 5, 20, 10], "area": 150, "iscrowd": 0},
    ],
}
FOUND = [
    {"image_id": 7, "category_id": 2, "bbox": [1, 0, 10, 10], "score": 0.9},
    {"image_id": 3, "category_id": 9, "bbox": [5, 5, 20, 12], "score": 0.8},
    {"image_id": 3, "category_id": 2, "bbox": [5, 5, 2, 2], "score": 0.7},
]
SQUARE = [[1, 1, 1, 6, 6, 6, 6, 1]]


def changed(data, place, **more):
    data = copy.deepcopy(data)
    target = data
    for key in place:
        target = target[key]
    for key, value in more.items():
        if value is None:
            del target[key]
        else:
            target[key] = value
    return data


def test_all_forms_agree(tmp_path):
    for seed in range(6):
        for kind in ("bbox", "segm", "keypoints"):
            made = scenario(seed, kind)
            truth, found = made["truth"], [{k: v for k, v in one.items() if k != "id"} for one in made["found"]]
            if not found or not truth["annotations"]:
                continue
            expected = evaluate(truth, found, "coco", kind).stats
            (tmp_path / "truth.json").write_text(json.dumps(truth))
            (tmp_path / "found.json").write_text(json.dumps(found))
            files = tmp_path / "truth.json", str(tmp_path / "found.json")
            np.testing.assert_array_equal(evaluate(*files, "coco", kind).stats, expected)
            np.testing.assert_array_equal(evaluate(*load(*files, iou_type=kind), "coco", kind).stats, expected)
            fields = ("image_id", "category_id", "bbox", "area", "iscrowd", "id", "segmentation", "keypoints")
            rows = truth["annotations"]
            columns = {k: [r[k] for r in rows] for k in (*fields, "num_keypoints") if k in rows[0]}
            columns |= {"categories": {c["id"]: c["name"] for c in truth["categories"]}}
            columns |= {"images": [i["id"] for i in truth["images"]], "sizes": [SIZE] * len(truth["images"])}
            rows = {k: [one[k] for one in found] for k in (*fields, "score") if k in found[0]}
            rows = {k: v for k, v in rows.items() if k not in ("area", "iscrowd")}
            np.testing.assert_array_equal(evaluate(columns, rows, "coco", kind).stats, expected)


def test_arrays_of_seven_and_dense_masks():
    seven = np.array([[f["image_id"], *f["bbox"], f["score"], f["category_id"]] for f in FOUND])
    np.testing.assert_array_equal(evaluate(TRUTH, seven).stats, evaluate(TRUTH, FOUND).stats)
    rng = np.random.default_rng(0)
    stack = rng.random((3, 20, 30)) < 0.5
    other = stack ^ (rng.random(stack.shape) < 0.1)
    coded = [masks.rle(masks.encode(other), i) for i in range(3)]
    truth = {"image_id": [1, 1, 2], "category_id": [1, 1, 1], "segmentation": stack}
    found = {"image_id": [1, 1, 2], "category_id": [1, 1, 1], "score": [0.5, 0.6, 0.7]}
    dense = evaluate(truth, found | {"segmentation": other}, "coco", "segm")
    runs = evaluate(truth, found | {"segmentation": coded}, "coco", "segm")
    np.testing.assert_array_equal(dense.stats, runs.stats)
    found_at = dense.matches
    expected = [(a & b).sum() / (a | b).sum() for a, b in zip(stack, other, strict=True)]
    np.testing.assert_allclose(sorted(found_at.overlaps), sorted(expected))


def test_corners_and_names():
    truth = {"image_id": ["a", "b"], "category_id": ["dog", "cat"], "bbox": [[0, 0, 10, 10], [5, 5, 20, 20]]}
    found = truth | {"score": [0.3, 0.9]}
    result = evaluate(truth, found, box_format="xyxy")
    assert result["AP50"] == pytest.approx(1) and result.curves.categories == ("cat", "dog")
    assert result.comparison.truth.boxes.tolist() == [[0, 0, 10, 10], [5, 5, 15, 15]]
    one = evaluate(truth | {"categories": ["dog", "cat"]}, found, box_format="xyxy")
    assert one.curves.categories == ("dog", "cat")
    by_name = evaluate(TRUTH, {"image_id": [7], "category_id": ["cat"], "bbox": [[0, 0, 10, 10]], "score": [1.0]})
    assert by_name.matches.counts()["tp"] == 1


def test_area_may_be_computed():
    truth = changed(TRUTH, ["annotations", 1], area=None)
    with pytest.raises(ValueError, match="annotation 1 has no 'area'; give area='box'"):
        evaluate(truth, FOUND)
    assert load(truth, FOUND, area="box")[0].area.tolist() == [100, 200]
    truth = changed(truth, ["annotations", 0], segmentation=SQUARE)
    truth = changed(truth, ["annotations", 1], segmentation=SQUARE)
    assert load(truth, FOUND, area="mask")[0].area.tolist() == [25, 25]


def test_detections_without_a_box_or_a_mask():
    """Boxes from masks, and masks from boxes, as COCO's program makes them."""
    coded = {"size": [100, 120], "counts": from_boxes([(1, 1, 10, 10)], [(100, 120)]).strings()[0]}
    only_mask = [{"image_id": 7, "category_id": 2, "score": 0.9, "segmentation": coded}]
    truth = changed(TRUTH, ["annotations", 0], bbox=[1, 1, 10, 10])
    assert evaluate(truth, only_mask).matches.overlaps[0] == 1
    for one in truth["annotations"]:
        x, y, w, h = one["bbox"]
        one["segmentation"] = [[x, y, x, y + h, x + w, y + h, x + w, y]]
    result = evaluate(truth, FOUND[1:2], "coco", "segm")
    assert result.matches.overlaps[0] == pytest.approx(10 / 12)


def test_lvis_needs_its_lists():
    made = lvis_scenario(1)
    assert evaluate(made["truth"], made["found"], "lvis").stat_names[6:10] == ("APr", "APc", "APf", "AR300")
    with pytest.raises(ValueError, match="image 0 has no 'neg_category_ids'; protocol lvis needs it"):
        evaluate(TRUTH, FOUND, "lvis")
    truth = copy.deepcopy(made["truth"])
    for one, count in zip(truth["categories"], (10, 11, 101, 7), strict=False):
        one |= {"image_count": count}
        del one["frequency"]
    by_id = {c["id"]: c["image_count"] for c in truth["categories"]}
    frequency = load(truth, made["found"], "lvis")[0].catalogue.frequency
    assert list(frequency) == ["rcf"[(by_id[k] > 10) + (by_id[k] > 100)] for k in sorted(by_id)]
    del truth["categories"][0]["image_count"]
    with pytest.raises(ValueError, match="category 0: frequency None"):
        evaluate(truth, made["found"], "lvis")


VOC_XML = """<annotation><filename>{name}.jpg</filename><size><width>100</width><height>80</height></size>{objects}
</annotation>"""
VOC_OBJECT = """<object><name>{name}</name>{difficult}<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>
<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def write_voc(root):
    objects = {
        "000001": [("dog", (10, 10, 50, 50), 0), ("cat", (1, 1, 20, 20), 1)],
        "000002": [("dog", (5, 5, 60, 60), 0)],
        "000003": [],
    }
    folder = root / "Annotations"
    folder.mkdir(parents=True)
    for name, rows in objects.items():
        text = "".join(
            VOC_OBJECT.format(name=k, box=b, difficult=f"<difficult>{d}</difficult>" if d else "") for k, b, d in rows
        )
        (folder / f"{name}.xml").write_text(VOC_XML.format(name=name, objects=text))
    (root / "results").mkdir()
    (root / "results" / "comp4_det_test_dog.txt").write_text(
        "000001 0.9 10 10 50 50\n000002 0.8 200 5 260 60\n\n000003 0.1 5 5 9 9\n"
    )
    (root / "results" / "comp4_det_test_cat.txt").write_text("000001 0.9 1 1 20 20\n")
    return folder, root / "results"


def test_voc_folders(tmp_path):
    folder, results = write_voc(tmp_path)
    result = evaluate(folder, results, "voc2010")
    by_name = {one.name: one for one in result.per_class}
    assert by_name["dog"].ap == pytest.approx(0.5) and by_name["cat"].ap == -1  # its only one is difficult
    assert result["mAP"] == pytest.approx(0.5)
    assert result.matches.counts() == {"tp": 1, "fp": 2, "fn": 1, "ignored": 1}
    np.testing.assert_array_equal(evaluate(tmp_path, results, "voc2010").stats, result.stats)
    c = result.comparison.truth.catalogue
    assert c.images.tolist() == ["000001", "000002", "000003"] and c.files[0] == "000001.jpg"
    assert c.sizes.tolist() == [[80, 100]] * 3
    assert evaluate(folder, results, "coco_fixed", category_ids=[1])["AP50"] == pytest.approx(0.504950495)


# What is wrong.

NO = "is not among the"


@pytest.mark.parametrize(
    ("truth", "found", "words"),
    [
        (TRUTH, changed(FOUND, [1], image_id=4), f"found.json: detection 1: image_id 4 {NO} 2 of .*truth.json"),
        (TRUTH, changed(FOUND, [2], category_id=3), f"found.json: detection 2: category_id 3 {NO} 2 of .*truth.json"),
        (TRUTH, changed(FOUND, [0], image_id="7"), "found.json: detection 1: id 3 is no integer, as the others"),
        (TRUTH, changed(FOUND, [1], score=float("nan")), "found.json: detection 1: score nan is not finite"),
        (TRUTH, changed(FOUND, [1], score="high"), "found.json: detection 1: score 'high' is no number"),
        (TRUTH, changed(FOUND, [1], score=None), "found.json: detection 1 has no 'score'"),
        (TRUTH, changed(FOUND, [1], bbox=[1, 2, 3]), r"found.json: detection 1: bbox \[1, 2, 3\] is not four numbers"),
        (TRUTH, changed(FOUND, [1], bbox=[1, 2, 3, "x"]), r"detection 1: bbox \[1, 2, 3, 'x'\] is not four"),
        (TRUTH, changed(FOUND, [1], bbox=[1, 2, -3, 4]), "detection 1: bbox .*-3.0, 4.0.* has a negative width"),
        (TRUTH, changed(FOUND, [1], bbox=[1, 2, 3, float("inf")]), "detection 1: bbox .* is not finite"),
        (TRUTH, changed(FOUND, [1], image_id=10**20), "found.json: detection 1: id 1000.* has more than 64 bits"),
        (TRUTH, changed(FOUND, [1], score=10**400), "found.json: detection 1: score 1000.* is no number"),
        (TRUTH, changed(FOUND, [1], bbox=[0, 0, 10**400, 1]), "found.json: detection 1: bbox .* is not four numbers"),
        (TRUTH, [*FOUND, 7], "found.json: detection 3 is 7, no object of named values"),
        (TRUTH, {"results": FOUND}, "unknown column 'results'"),
        (TRUTH, 7, "found.json: a list of results is wanted; this is int"),
        (
            changed(TRUTH, ["annotations", 1], id=1),
            FOUND,
            "truth.json: annotation 0 and annotation 1 have the same id 1",
        ),
        (changed(TRUTH, ["images", 1], id=7), FOUND, "truth.json: image 0 and image 1 have the same id 7"),
        (changed(TRUTH, ["categories", 1], id=2), FOUND, "truth.json: category 0 and category 1 have the same id 2"),
        (changed(TRUTH, ["annotations", 1], image_id=8), FOUND, f"truth.json: annotation 1: image_id 8 {NO} 2"),
        (changed(TRUTH, ["annotations", 1], category_id=8), FOUND, f"truth.json: annotation 1: category_id 8 {NO} 2"),
        (changed(TRUTH, ["annotations", 1], area=-1), FOUND, "truth.json: annotation 1: area -1.0 is no area"),
        (changed(TRUTH, ["annotations", 1], iscrowd=2), FOUND, "truth.json: annotation 1: iscrowd 2 is not 0 or 1"),
        (changed(TRUTH, ["annotations", 1], bbox=[0, 0, -1, 1]), FOUND, "truth.json: annotation 1: bbox .*negative"),
        (changed(TRUTH, ["annotations", 1], bbox=None), FOUND, "truth.json: annotation 1 has no 'bbox'"),
        (changed(TRUTH, [], images=[]), FOUND, "truth.json holds no images"),
        (changed(TRUTH, [], categories=None), FOUND, "truth.json is no COCO ground truth: it has no list 'categories'"),
        ([], FOUND, "truth.json is no COCO ground truth"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, truth, found, words):
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=words):
        evaluate(tmp_path / "truth.json", tmp_path / "found.json")


def test_empty_and_broken_files(tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    for text, words in (("", "found.json is empty"), ("  \n", "found.json is empty"), ("[{", "found.json is no JSON")):
        (tmp_path / "found.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            evaluate(tmp_path / "truth.json", tmp_path / "found.json")
    (tmp_path / "found.json").write_text("[]")
    assert evaluate(tmp_path / "truth.json", tmp_path / "found.json").stats[0] == 0
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        evaluate(tmp_path / "nowhere.json", tmp_path / "found.json")
    with pytest.raises(ValueError, match="holds no XML files"):
        evaluate(tmp_path, tmp_path, "voc2007")


CODED = {"size": [100, 120], "counts": from_boxes([(1, 1, 10, 10)], [(100, 120)]).strings()[0]}


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (CODED | {"size": [50, 60]}, r"detection 1: its mask is of size \[50, 60\], its image of \[100, 120\]"),
        (
            CODED | {"counts": CODED["counts"] + "1"},
            r"detection 1: its runs hold \d+ pixels, but its size is 100 x 120",
        ),
        (CODED | {"counts": "!"}, "detection 1: '!' is no character"),
        ({"size": [100, 120], "counts": [5, 5]}, "detection 1: its runs hold 10 pixels"),
        ([[0, 0, 1]], "detection 1: a polygon of 3 numbers"),
        ({"size": [100, 120]}, "detection 1: segmentation .* is neither polygons nor"),
        ({"size": [100], "counts": "1"}, r"detection 1: size \[100\] of its mask is not height and width"),
        ({"size": ["a", 1], "counts": "1"}, "detection 1: size .* of its mask is not height and width"),
        ({"size": [100, 120], "counts": None}, "detection 1: counts None are neither a string nor integers"),
        ({"size": [100, 120], "counts": ["a"]}, r"detection 1: counts \['a'\] are neither"),
        ({"size": [100, 10**20], "counts": "1"}, "detection 1: size .* of its mask is not height and width"),
        ({"size": [100, 120], "counts": [10**20]}, "detection 1: counts .*10000.* are neither"),
        ([[0, 0, 10**400, 1, 1, 1]], "detection 1: 1000.* in a polygon is not a number"),
        ([5], "detection 1: polygon 5 is no list of numbers"),
        ([], r"detection 1: segmentation \[\] is neither"),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_wrong_masks_are_named(tmp_path, one, words, as_file):
    truth = copy.deepcopy(TRUTH)
    for annotation in truth["annotations"]:
        annotation["segmentation"] = SQUARE
    found = [{"image_id": 7, "category_id": 2, "score": 0.5, "segmentation": s} for s in (CODED, one)]
    if as_file:
        (tmp_path / "found.json").write_text(json.dumps(found))
        found = tmp_path / "found.json"
    with pytest.raises(ValueError, match=words):
        evaluate(truth, found, "coco", "segm")


POINTS = [1.0, 1.0, 2] * 17


@pytest.mark.parametrize(
    ("truth", "found", "words"),
    [
        ({}, {"keypoints": ["x", 1, 2] * 17}, "detections: detection 0: 'x' among its keypoints is no number"),
        ({}, {"keypoints": 5}, "detections: detection 0: keypoints 5 are no list"),
        ({}, {"keypoints": [1.0] * 50}, "detections: detection 0: keypoints are 50 numbers"),
        ({}, {"keypoints": [float("nan")] * 51}, "detections: detection 0: keypoints .* are not finite"),
        ({}, {"category_id": "cow"}, "detections: detection 0: category 'cow' is not among the 2 of ground truth"),
        ({"num_keypoints": "x"}, {}, "ground truth: annotation 0: num_keypoints 'x' is no integer"),
        ({"keypoints": None}, {}, "ground truth: annotation 0 has no 'keypoints'"),
    ],
)
def test_wrong_keypoints_are_named(truth, found, words):
    data = changed(changed(TRUTH, ["annotations", 0], keypoints=POINTS), ["annotations", 0], **truth)
    data["annotations"] = data["annotations"][:1]
    one = {"image_id": 7, "category_id": 2, "score": 0.5, "keypoints": POINTS} | found
    with pytest.raises(ValueError, match=words):
        evaluate(data, [one], "coco", "keypoints")


def test_sizes_of_images_are_named():
    truth = changed(TRUTH, ["annotations", 0], segmentation=SQUARE)
    truth = changed(truth, ["annotations", 1], segmentation=SQUARE)
    with pytest.raises(ValueError, match="ground truth: image 1: height 'x' is no integer"):
        evaluate(changed(truth, ["images", 1], height="x"), [], "coco", "segm")
    with pytest.raises(ValueError, match="annotation 1: 60000 x 60000 pixels are too many for a mask"):
        evaluate(changed(truth, ["images", 1], height=60000, width=60000), [], "coco", "segm")
    with pytest.raises(ValueError, match="annotation 1: masks need the height and width"):
        evaluate(changed(truth, ["images", 1], height=None), [], "coco", "segm")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("results/comp4_det_test_dog.txt", "000001 x 1 1 2 2", "dog.txt: line 1: .* holds what is no number"),
        ("results/comp4_det_test_dog.txt", "000001 0.5 1 1 2", "dog.txt: line 1: .* has 5 fields"),
        ("results/comp4_det_test_dog.txt", "\n000009 0.5 1 1 2 2", "dog.txt: line 2: image '000009' is not among"),
        ("results/comp4_det_test_dog.txt", "000001 nan 1 1 2 2", "dog.txt: line 1: .* is not finite"),
        ("results/comp4_det_test_dog.txt", "000001 0.5 9 1 2 2", "dog.txt: line 1: box .* negative"),
        ("results/comp4_det_test_cow.txt", "", "cow.txt: its name ends in no category .*: cat, dog"),
        ("Annotations/000001.xml", "<annotation>", "000001.xml is no XML"),
        ("Annotations/000001.xml", "<annotation><object/></annotation>", "000001.xml: object 0 has no name"),
        (
            "Annotations/000001.xml",
            f"<annotation>{VOC_OBJECT.format(name='dog', difficult='', box=(5, 5, 1, 9))}</annotation>",
            "000001.xml: object 0: bndbox .* negative",
        ),
        (
            "Annotations/000001.xml",
            f"<annotation>{VOC_OBJECT.format(name='dog', difficult='', box=(5, 5, 'q', 9))}</annotation>",
            "000001.xml: object 0: xmax 'q' is no number",
        ),
    ],
)
def test_wrong_voc_files_are_named(tmp_path, file, text, words):
    folder, results = write_voc(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=words):
        evaluate(folder, results, "voc2007")


@pytest.mark.parametrize(
    ("truth", "found", "words"),
    [
        ({"image_id": [1, 1], "bbox": [[0, 0, 1, 1]] * 2}, {}, "ground truth has no column 'category_id'"),
        ({"image_id": [1, 1], "category_id": [1, 1], "bbox": [[0, 0, 1, 1]]}, {}, "'bbox' has 1 rows, image_id has 2"),
        ({"image_id": [1], "category_id": [1], "bbox": [[0, 0, 1]]}, {}, r"bbox must be \[N, 4\]; it is \[1, 3\]"),
        ({"image_id": [1], "category_id": [1], "boxes": [[0, 0, 1, 1]]}, {}, "unknown column 'boxes'"),
        ({"image_id": [1.5], "category_id": [1], "bbox": [[0, 0, 1, 1]]}, {}, "id 1.5 is no integer"),
        ({"image_id": [], "category_id": [], "bbox": []}, {}, "names no images"),
    ],
)
def test_wrong_columns_are_named(truth, found, words):
    with pytest.raises(ValueError, match=words):
        evaluate(truth, found or FOUND)


def test_unknown_subsets_are_named():
    with pytest.raises(ValueError, match="image_ids: entry 0: image id 5 is not among the 2"):
        evaluate(TRUTH, FOUND, image_ids=[5])
    with pytest.raises(ValueError, match="category_ids: entry 1: category id 5 is not among"):
        evaluate(TRUTH, FOUND, category_ids=[2, 5])
    with pytest.raises(ValueError, match="area must be"):
        evaluate(TRUTH, FOUND, area="guess")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="box_format must be"):
        evaluate({"image_id": [1], "category_id": [1], "bbox": [[0, 0, 1, 1]]}, [], box_format="cxcywh")  # type: ignore
