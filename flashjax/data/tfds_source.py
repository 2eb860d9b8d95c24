"""TFDS sets of images prepared as array_record, read without TensorFlow; text: `flashjax/data/text_sources.py`.

TFDS opens the directory and parses the records; images stay the bytes of their files, so that worker processes decode
them. `python -m flashjax.data.prepare` makes such a directory from the tar files of ImageNet.
"""

from pathlib import Path
from typing import Any

import numpy as np

from flashjax.data.sources import VALIDATION_NAMES

INFO_FILE = "dataset_info.json"
IMAGES = "prepare it with python -m flashjax.data.prepare"


class TFDSSource:
    """The records of one split (or some of them): encoded image and label.

    Args:
        records: a TFDS data source whose images are left encoded.
        image_key, label_key: names of the two features.
        class_names: K names.
        name: what the set is called.
        rows: which records; None for all.
    """

    def __init__(
        self,
        records: Any,
        image_key: str,
        label_key: str,
        class_names: list[str],
        name: str,
        rows: np.ndarray | None = None,
    ):
        self.class_names, self.name = class_names, name
        self._records, self._image_key, self._label_key, self._rows = records, image_key, label_key, rows

    def __len__(self) -> int:
        return len(self._records) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        record = self._records[self._record(index)]
        return record[self._image_key], int(record[self._label_key])

    def subset(self, rows: np.ndarray, name: str) -> "TFDSSource":
        """The same records, but only `rows` of them."""
        return TFDSSource(self._records, self._image_key, self._label_key, self.class_names, name, rows)

    def describe(self, index: int) -> str:
        text = f"record {self._record(index)} of {self.name}"
        try:
            record = self._records[self._record(index)]
        except Exception:  # an unreadable record: its place is all that is known
            return text
        file = record.get("file_name")
        file_text = f" ({file.decode(errors='replace')})" if isinstance(file, bytes) else ""
        return f"{text}{file_text}, class {self.class_names[int(record[self._label_key])]!r}"

    def _record(self, index: int) -> int:
        return int(index) if self._rows is None else int(self._rows[index])


def tfds(dataset: str, data_dir: str | Path, holdout: float = 0.1) -> tuple[TFDSSource, TFDSSource]:
    """The training and evaluation records of an image classification set that TFDS prepared.

    Training is the split `train`; evaluation the first of `validation`, `val`, `valid`, `test` that the set has, else
    `holdout` of `train`, drawn with a fixed seed.

    Args:
        dataset: `name`, `name:version`, `name/config` or `name/config:version`; without a version, the newest one;
            without a configuration, the only one.
        data_dir: the root of TFDS directories, or the directory of the version itself (with dataset_info.json).
    Raises:
        FileNotFoundError: no such set there.
        ValueError: another set, another file format, no training split, an empty split, not one image and one label.
    """
    import tensorflow_datasets

    builder, directory = open_builder(dataset, data_dir)
    info = builder.info
    full_name = info.full_name.replace("/", ":")
    image_key = _feature(info.features, tensorflow_datasets.features.Image, "image", directory)
    label_key = _feature(info.features, tensorflow_datasets.features.ClassLabel, "label", directory)
    features: Any = info.features
    class_names = list(features[label_key].names)

    def split(name: str) -> TFDSSource:
        if not info.splits[name].num_examples:
            raise ValueError(f"{full_name} {name} holds no example ({directory})")
        records = builder.as_data_source(name, decoders={image_key: tensorflow_datasets.decode.SkipDecoding()})
        return TFDSSource(records, image_key, label_key, class_names, f"{full_name} {name}")

    evaluation = evaluation_split(builder, directory)
    train = split("train")
    if evaluation is not None:
        return train, split(evaluation)
    order = np.random.default_rng(0).permutation(len(train))
    count = min(max(round(holdout * len(train)), 1), len(train) - 1)
    text = f"{train.name} ({holdout:.0%} held out)"
    return train.subset(np.sort(order[count:]), text), train.subset(np.sort(order[:count]), text)


def open_builder(dataset: str, data_dir: str | Path, hint: str = IMAGES) -> tuple[Any, Path]:
    """(TFDS builder, its directory) of `dataset` in `data_dir`; see `tfds`, also for what it raises."""
    import tensorflow_datasets  # here: it costs half a second that the other sources need not pay

    directory = find_version(dataset, Path(data_dir).expanduser(), hint)
    builder: Any = tensorflow_datasets.builder_from_directory(str(directory))
    info, wanted = builder.info, dataset.split(":")[0].split("/")[0]
    if info.name != wanted:
        raise ValueError(f"{directory} holds {info.name!r}, not {wanted!r}: want --data.dataset {info.name}")
    if info.file_format is None or info.file_format.value != "array_record":
        held = "an unknown format" if info.file_format is None else info.file_format.value
        raise ValueError(
            f"{directory} is stored as {held}; it is read as array_record: convert it with "
            f"tfds convert_format --dataset_version_dir={directory} --out_file_format=array_record --out_dir=..."
        )
    return builder, directory


def evaluation_split(builder: Any, directory: Path) -> str | None:
    """The first of `validation`, `val`, `valid`, `test` that the set has; ValueError if it has no `train`."""
    splits = builder.info.splits
    if "train" not in splits:
        raise ValueError(f"{directory} has no split 'train'; it has {', '.join(splits)}")
    return next((name for name in VALIDATION_NAMES if name in splits), None)


def find_version(dataset: str, root: Path, hint: str = IMAGES) -> Path:
    """The directory with the dataset_info.json of `dataset`, in or at `root`; see `tfds`. `hint`: where to get it."""
    name, _, version = dataset.partition(":")
    if not root.is_dir():
        raise FileNotFoundError(f"no directory {root}")
    if (root / INFO_FILE).exists():
        return root
    for base in (root / name, root):
        versions = {path.parent.name: path.parent for path in base.glob(f"*/{INFO_FILE}")}
        if base == root and root.name != name.rpartition("/")[2]:
            continue
        if version in versions:
            return versions[version]
        if versions and not version:
            return versions[max(versions, key=_version_key)]
        if versions:
            raise FileNotFoundError(f"no version {version!r} of {name} in {base}; there: {', '.join(sorted(versions))}")
    configs = {path.parent.parent.name for path in (root / name).glob(f"*/*/{INFO_FILE}")}
    if len(configs) == 1:  # `c4` means `c4/en` where that is the only one there
        return find_version(f"{name}/{configs.pop()}:{version}".rstrip(":"), root, hint)
    # No deeper than name/config/version: below a folder of a million images a full search would take minutes.
    paths = [path for pattern in ("*/*", "*/*/*") for path in root.glob(f"{pattern}/{INFO_FILE}")]
    found = sorted({str(path.parent.parent.relative_to(root)) for path in paths})
    if found:
        raise FileNotFoundError(f"no TFDS set {name!r} in {root}; there: {', '.join(found)}")
    if hint == IMAGES and any(path.is_dir() for path in root.iterdir()):
        hint += "; if it is a folder of images (class/image.jpg), add --data.dataset folder"
    raise FileNotFoundError(f"no TFDS set {name!r} in {root} (no {INFO_FILE} below it): {hint}")


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in version.split("."))


def _feature(features: Any, kind: type, preferred: str, directory: Path) -> str:
    keys = [key for key, feature in features.items() if isinstance(feature, kind)]
    if preferred in keys:
        return preferred
    if len(keys) != 1:
        what = f"no {kind.__name__}" if not keys else f"{len(keys)} features {kind.__name__} ({', '.join(keys)})"
        raise ValueError(f"{directory} is no image classification set: {what}, where one is needed")
    return keys[0]
