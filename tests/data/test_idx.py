"""Fashion-MNIST from idx files, and a part of a training set."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from flashjax import data
from flashjax.data import DataConfig, idx_source, sources
from flashjax.data.idx_source import fashion_mnist, read_idx
from tests.data.helpers import write_folder


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    """Twenty training images, gzip'd, and ten test images, plain."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("t10k", 10)):
        images = idx(rng.integers(0, 256, (count, 28, 28)))
        labels = idx(np.arange(count) % 10)
        for name, content in (("images-idx3", images), ("labels-idx1", labels)):
            path = tmp_path / f"{split}-{name}-ubyte"
            if split == "train":
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    return tmp_path


def test_reads_what_is_there(clothes):
    train, test = fashion_mnist(clothes)
    assert (len(train), len(test)) == (20, 10) and train.class_names[9] == "Ankle boot"
    image, label = train[13]
    assert image.shape == (28, 28) and image.dtype == np.uint8 and label == 3
    assert train.describe(13) == "example 13 of fashion_mnist train, class 'Dress'"
    expected = np.random.default_rng(0).integers(0, 256, (20, 28, 28))[13]
    np.testing.assert_array_equal(image, expected)


def test_the_pipeline_takes_it_and_a_part_of_it(clothes):
    config = DataConfig("fashion_mnist", 28, batch_size=4, eval_batch_size=4, train_examples=8)
    train, held_out, info = data.classification(config, str(clothes), seed=0)
    assert (info.train_examples, info.eval_examples, info.num_classes) == (8, 10, 10)
    assert info.name == "8 of fashion_mnist train / fashion_mnist t10k"
    assert train.steps_per_epoch == 2 and train.batch(0)["image"].shape == (4, 28, 28, 3)
    seen = sorted(label for k in range(2) for label in train.batch(k)["label"].tolist())
    rows = np.sort(np.random.default_rng(0).permutation(20)[:8])
    assert seen == sorted((rows % 10).tolist())
    with pytest.raises(ValueError, match="train_examples is 21, but fashion_mnist train has 20"):
        sources.sample(fashion_mnist(clothes)[0], 21)
    with pytest.raises(ValueError, match="train_examples must be at least 1"):
        DataConfig(train_examples=0)
    assert held_out.num_batches == 3


def test_a_part_of_a_folder(tmp_path):
    write_folder(tmp_path, {"ant": 4, "cat": 4})
    whole, _ = sources.folder(tmp_path, 0.25)
    part = sources.sample(whole, 3)
    rows = np.sort(np.random.default_rng(0).permutation(len(whole))[:3])
    assert [part[i] for i in range(3)] == [whole[row] for row in rows]
    assert isinstance(part, sources.Source) and part.describe(1) == whole.describe(rows[1])


def test_what_is_missing_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(idx_source, "FASHION_MNIST", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte.gz in .*apt-get install dataset-fashion"):
        data.classification(DataConfig("fashion_mnist", 28), None, seed=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no idx file: it begins with nothing"),
        (b"\x89PNG", "no idx file: it begins with 89504e47"),
        (b"\0\0\x0d\x01" + b"\0\0\0\x01" + b"\0\0\0\0", "elements of type 0x0d"),
        (b"\0\0\x08\x02" + b"\0\0\0\x02", "need 2 bytes, found 0"),
        (b"\0\0\x08\x01" + b"\0\0\0\x03" + b"ab", r"dims \(3,\) need 3 bytes, found 2"),
        (gzip.compress(b"\0\0\x08\x01" + b"\0\0\0\x01" + b"a", mtime=0)[:-3], "damaged gzip file"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "x")


def test_labels_of_other_images(clothes):
    (clothes / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(9)))
    with pytest.raises(ValueError, match=r"t10k images \(10, 28, 28\) and labels \(9,\)"):
        fashion_mnist(clothes)
    (clothes / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(10) + 1))
    with pytest.raises(ValueError, match="a label of t10k is 10, of 10 classes"):
        fashion_mnist(clothes)


def test_debians_package():
    if not idx_source.holds_idx(idx_source.FASHION_MNIST):
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    train, test = fashion_mnist()
    assert (len(train), len(test)) == (60_000, 10_000)
    assert np.bincount(train.labels).tolist() == [6000] * 10 and np.bincount(test.labels).tolist() == [1000] * 10
