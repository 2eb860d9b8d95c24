"""Naming images: the classes of files, and the examples of an evaluation set for a run's report."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flashjax.data import DataConfig, Pipeline
from flashjax.data.imagenet import class_names as imagenet_names
from flashjax.data.transforms import eval_transform
from flashjax.objectives.classification import Classification

Ranked = list[tuple[str, float]]


def class_names(num_classes: int, workdir: Path | None = None) -> tuple[str, ...]:
    """Names of a run's classes from its config.json; ImageNet's for 1000 classes; otherwise numbers."""
    path = workdir / "config.json" if workdir is not None else None
    if path is not None and path.is_file():
        names = json.loads(path.read_text()).get("class_names")
        if names and len(names) == num_classes:
            return readable_names(names)
    return imagenet_names() if num_classes == 1000 else tuple(f"class {i}" for i in range(num_classes))


def readable_names(names: Sequence[str]) -> tuple[str, ...]:
    """ImageNet's English names where the classes are its 1000 WordNet numbers; otherwise the names themselves."""
    from flashjax.data.imagenet import wnids

    return imagenet_names() if tuple(names) == wnids() else tuple(names)


def predict_files(
    objective: Classification, variables: Any, paths: Sequence[str], config: DataConfig, names: Sequence[str]
) -> dict[str, Ranked]:
    """The five likeliest classes of each image file, with their probabilities.

    Raises:
        ValueError: naming the file that is missing or is no image.
    """
    images = []
    for path in paths:
        try:
            images.append(eval_transform(Path(path).read_bytes(), config))
        except Exception as error:
            raise ValueError(f"cannot read image {path}: {error}") from error
    probabilities = _probabilities(objective, variables, np.stack(images))
    return {path: _top(row, names, 5) for path, row in zip(paths, probabilities, strict=True)}


def examples(
    objective: Classification, variables: Any, data: Pipeline, names: Sequence[str], count: int
) -> list[tuple[np.ndarray, str, Ranked]]:
    """(image, true name, ranked names) of ``count`` evaluation images, spread evenly over the first batch."""
    batch = data.batch(0)
    real = np.flatnonzero(batch["mask"])
    rows = real[np.linspace(0, len(real) - 1, min(count, len(real))).astype(int)]
    probabilities = _probabilities(objective, variables, batch["image"][rows])
    return [
        (batch["image"][i], names[batch["label"][i]], _top(p, names, 3))
        for i, p in zip(rows, probabilities, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=0)
def _predict(objective: Classification, variables: Any, batch: Any) -> jax.Array:
    return objective.predict(variables, batch)


def _probabilities(objective: Classification, variables: Any, images: np.ndarray) -> np.ndarray:
    rows = len(images)
    batch = {"image": images, "label": np.zeros(rows, np.int32), "mask": np.ones(rows, np.float32)}
    return np.asarray(_predict(objective, variables, batch))


def _top(probabilities: np.ndarray, names: Sequence[str], count: int) -> Ranked:
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [(names[i], float(probabilities[i])) for i in order]
