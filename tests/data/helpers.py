"""Small sets of real layout on disk: a folder of images, a TFDS set of images or text."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from flashjax.data.token_store import Documents


def picture(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    """A smooth colour picture: waves whose direction and colour depend on the seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-3, 3, (3, 3))]
    return Image.fromarray(np.uint8(127.5 + 127.5 * np.stack(waves, -1)))


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    """The bytes of the image's file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_folder(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """`root/class/i.jpg`, `counts[class]` pictures of each class."""
    for offset, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index}.jpg").write_bytes(encoded(picture(seed + 1000 * offset + index)))
    return root


def write_tfds(
    root: Path,
    splits: dict[str, list[bytes]],
    name: str = "tiny",
    version: str = "1.0.0",
    file_format: str = "array_record",
    features=None,
) -> Path:
    """Two classes in turn; see `write_records`."""
    import tensorflow_datasets as tfds

    features = features or tfds.features.FeaturesDict(
        {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
    )
    records = {
        split: [
            {"file_name": f"{split}_{index}", "image": io.BytesIO(image), "label": index % 2}
            for index, image in enumerate(images)
        ]
        for split, images in splits.items()
    }
    return write_records(root / name / version, records, features, name, version, file_format)


def write_cifar(root: Path, classes: int, train: int = 20, test: int = 10) -> Path:
    """CIFAR-10 or -100 with the features that TFDS gives it, of other pictures; the class is the index modulo all."""
    import tensorflow_datasets as tfds

    features = {"id": tfds.features.Text(), "image": tfds.features.Image(shape=(32, 32, 3))}
    if classes == 100:
        features["coarse_label"] = tfds.features.ClassLabel(num_classes=20)
    features["label"] = tfds.features.ClassLabel(num_classes=classes)
    records = {
        split: [
            {
                "id": f"{split}_{index:05d}",
                "image": io.BytesIO(encoded(picture(index, 32, 32), "PNG")),
                "coarse_label": 0,
                "label": index % classes,
            }
            for index in range(count)
        ]
        for split, count in (("train", train), ("test", test))
    }
    name = f"cifar{classes}"
    return write_records(root / name / "3.0.2", records, tfds.features.FeaturesDict(features), name, "3.0.2")


def write_tfds_text(root: Path, splits: dict[str, list[str]], name: str = "c4/en", keys: tuple[str, ...] = ("text",)):
    """A set of text: every feature in `keys` is of type Text, and the first one holds the documents."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({key: tfds.features.Text() for key in keys})
    records = {
        split: [{key: text if key == keys[0] else f"{key} {i}" for key in keys} for i, text in enumerate(texts)]
        for split, texts in splits.items()
    }
    return write_records(root / name / "1.0.0", records, features, *name.split("/")[:1])


def write_records(
    directory: Path,
    splits: dict[str, list[dict]],
    features,
    name: str,
    version: str = "1.0.0",
    file_format: str = "array_record",
) -> Path:
    """A set as TFDS prepares it (its own writer), at most five records in a file; of each, what `features` name."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info, sequential_writer

    directory.mkdir(parents=True)
    identity = dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=str(directory), module_name=""
    )
    info = dataset_info.DatasetInfo(builder=identity, features=features)
    writer = sequential_writer.SequentialWriter(info, max_examples_per_shard=5, file_format=file_format)
    writer.initialize_splits(list(splits))
    for split, records in splits.items():
        for record in records:
            writer.add_examples({split: [{key: record[key] for key in features}]})
    writer.close_all()
    return directory


def texts(count: int = 30, seed: int = 0) -> list[str]:
    """Document d holds one letter alone, so that a token tells its document."""
    rng = np.random.default_rng(seed)
    return [chr(ord("A") + d) * int(rng.integers(1, 60)) for d in range(count)]


def equal(one, other) -> bool:
    """Whether two batches hold the same."""
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def forbid(*_):
    raise AssertionError("read although there is a cache")


def documents(lengths) -> Documents:
    """Every token is another number, from 1000 on."""
    ends = np.cumsum(lengths)
    return Documents("numbers", 1000 + np.arange(ends[-1], dtype=np.uint32), ends - lengths, ends)
