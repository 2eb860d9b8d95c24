"""Small sets of real layout on disk: a folder of images, a TFDS set."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


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
    """A set as TFDS prepares it (its own writer), two classes in turn, at most five records in a file."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info, sequential_writer

    directory = root / name / version
    directory.mkdir(parents=True)
    features = features or tfds.features.FeaturesDict(
        {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
    )
    identity = dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=str(directory), module_name=""
    )
    info = dataset_info.DatasetInfo(builder=identity, features=features)
    writer = sequential_writer.SequentialWriter(info, max_examples_per_shard=5, file_format=file_format)
    writer.initialize_splits(list(splits))
    for split, images in splits.items():
        for index, image in enumerate(images):
            example = {"file_name": f"{split}_{index}", "image": io.BytesIO(image), "label": index % 2}
            writer.add_examples({split: [{key: example[key] for key in features}]})
    writer.close_all()
    return directory
