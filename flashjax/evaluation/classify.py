"""Naming images: the classes of files, and the examples of an evaluation set for a run's report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flashjax.data import DataConfig
from flashjax.data.imagenet import class_names, wnids
from flashjax.data.transforms import center_resize, decode, pixels
from flashjax.objectives.classification import Classification
from flashjax.training import Pipeline, Program

Ranked = list[tuple[str, float]]


def default_names(num_classes: int) -> tuple[str, ...]:
    """ImageNet's class names for 1000 classes, numbers for any other count."""
    return class_names() if num_classes == 1000 else tuple(f"class {i}" for i in range(num_classes))


def readable_names(names: Sequence[str]) -> tuple[str, ...]:
    """ImageNet's English names where the classes are its 1000 WordNet numbers; otherwise the names themselves."""
    return class_names() if tuple(names) == tuple(wnids()) else tuple(names)


def predict_files(
    objective: Classification, variables: Any, paths: Sequence[str], config: DataConfig, names: Sequence[str]
) -> dict[str, Ranked]:
    """The five likeliest classes of each image file, with their probabilities.

    Raises:
        ValueError: naming the file that is missing or is no image.
    """
    if not paths:
        raise ValueError("no images to name: give files with --images")
    images = []
    for path in paths:
        try:
            image = decode(Path(path).read_bytes(), config.exif_rotate, channels=config.channels)
            images.append(pixels(center_resize(image, config.image_size, config.augment)))
        except Exception as error:
            raise ValueError(f"cannot read image {path}: {error}") from error
    rows = {
        "image": np.stack(images),
        "label": np.zeros(len(images), np.int32),
        "mask": np.ones(len(images), np.float32),
    }
    probabilities = np.asarray(jax.jit(objective.predict)(variables, rows))
    return {path: _top(row, names, 5) for path, row in zip(paths, probabilities, strict=True)}


def print_predictions(predictions: Mapping[str, Ranked]) -> None:
    """A block for each file: its name, then a line a class."""
    for path, ranked in predictions.items():
        print(path)
        for name, probability in ranked:
            print(f"  {probability:7.2%}  {name}")


def examples(
    program: Program, objective: Classification, variables: Any, data: Pipeline, names: Sequence[str], count: int
) -> list[tuple[np.ndarray, str, Ranked]]:
    """(image, true name, ranked names) of about ``count`` evaluation images, spread over up to ten batches.

    All processes of a job call it; each gets examples among its own rows.
    """
    options = program.compiler_options(backward=False)
    predict = jax.jit(objective.predict, out_shardings=program.replicated, compiler_options=options)
    chosen = _spread(data.num_batches or 1, 10)
    shown = []
    for k in chosen:
        batch = data.batch(k)
        probabilities = np.asarray(predict(variables, program.put(batch, data.spec)))
        first = jax.process_index() * len(batch["mask"])
        real = np.flatnonzero(batch["mask"]).tolist()
        for i in (real[j] for j in _spread(len(real), max(1, count // len(chosen)))):
            shown.append((batch["image"][i], names[batch["label"][i]], _top(probabilities[first + i], names, 3)))
    return shown


def _spread(length: int, count: int) -> list[int]:
    """Up to ``count`` indices below ``length``, evenly apart."""
    return np.linspace(0, length - 1, min(count, length)).astype(int).tolist()


def _top(probabilities: np.ndarray, names: Sequence[str], count: int) -> Ranked:
    order: list[int] = np.argsort(-probabilities, kind="stable")[:count].tolist()
    return [(names[i], float(probabilities[i])) for i in order]
