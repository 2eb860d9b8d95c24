"""Augmentations in a Grain pipeline: `dataset.seed(0).random_map(as_random_map(augmentation))`."""

from dataclasses import dataclass
from typing import Any

import grain
import numpy as np


@dataclass(frozen=True)
class AugmentationMap(grain.transforms.RandomMap):
    """Augments what `key` names in each element, with the generator that Grain keeps for its place in the data."""

    augmentation: Any
    """What `augment.create` makes, for one image: erasing, masking or a policy."""
    key: str = "image"
    """Where the image is in an element, uint8 or floating point [H W C]."""

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return element | {self.key: self.augmentation(rng, element[self.key])}


def as_random_map(augmentation: Any, key: str = "image") -> AugmentationMap:
    """A Grain transform of dictionaries. Raises ValueError for augmentations of several images, which take a batch."""
    from flashjax.data.augment.mixing import Mixup
    from flashjax.data.augment.mosaics import Mosaic

    if isinstance(augmentation, Mixup | Mosaic):
        raise ValueError(f"{type(augmentation).__name__} takes several images: apply it to batches, after `batch`")
    return AugmentationMap(augmentation, key)
