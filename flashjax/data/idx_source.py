"""Images in idx files, the format of MNIST and its like: Fashion-MNIST as Debian's package keeps it.

A file is two zero bytes, the type of an element (8: uint8), the number of dims, each dim as a big-endian uint32, and
the elements; gzip'd or not.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np

from flashjax.data.sources import ArraySource

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts it."""
CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
GET_FASHION_MNIST = (
    "apt-get install dataset-fashion-mnist, or name the directory of its four files (train-images-idx3-ubyte.gz, ...) "
    "or of TFDS with --data_dir"
)


def read_idx(path: str | Path) -> np.ndarray:
    """The uint8 array of an idx file, gzip'd where its first bytes say so.

    Raises:
        ValueError: another format, another type than uint8, or another length than its dims make.
    """
    content = Path(path).read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"{path} is no idx file: it begins with {content[:4].hex() or 'nothing'}")
    if content[2] != 8:
        raise ValueError(f"{path}: elements of type {content[2]:#04x}; images and labels are uint8 (0x08)")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    elements = np.frombuffer(content[start:], np.uint8)
    if len(shape) != content[3] or elements.size != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path}: dims {shape} need {np.prod(shape, dtype=np.int64)} bytes, found {elements.size}")
    return elements.reshape(shape)


def holds_idx(directory: str | Path) -> bool:
    """Whether there is a training set of idx files."""
    return any(Path(directory).expanduser().glob("train-images*idx3-ubyte*"))


def fashion_mnist(directory: str | Path | None = None) -> tuple[ArraySource, ArraySource]:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 training and 10,000 test images of clothes, uint8 [28, 28].

    Args:
        directory: with its four files; None: where Debian's package puts it.
    Raises:
        FileNotFoundError: not there; the message says how to get it.
        ValueError: a damaged file, or images and labels that do not belong together.
    """
    root = Path(FASHION_MNIST if directory is None else directory).expanduser()
    return _split(root, "train"), _split(root, "t10k")


def _split(root: Path, split: str) -> ArraySource:
    images, labels = (read_idx(_find(root, f"{split}-{kind}")) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    if images.shape != (len(labels), 28, 28) or labels.ndim != 1:
        raise ValueError(f"{root}: {split} images {images.shape} and labels {labels.shape}: want [N, 28, 28] and [N]")
    if labels.size and labels.max() >= len(CLOTHES):
        raise ValueError(f"{root}: a label of {split} is {labels.max()}, of {len(CLOTHES)} classes")
    return ArraySource(images, labels.astype(np.int32), CLOTHES, f"fashion_mnist {split}")


def _find(root: Path, name: str) -> Path:
    for path in (root / f"{name}.gz", root / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"no {name}.gz in {root}: {GET_FASHION_MNIST}")
