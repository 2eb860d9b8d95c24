"""Random Erasing: the boxes, drawn on the host for each image. `device.erase` fills them.

Source: "Random Erasing Data Augmentation" (1708.04896) in the variant of timm's `RandomErasing`, which the official
Swin code uses: the aspect ratio is log-uniform, at most a third of the image goes, ten attempts for each box.

Legend: N most boxes in one image.
"""

import math

import numpy as np
from jaxtyping import Int32

from flashjax.data.config import AugmentConfig

ATTEMPTS = 10


def sample_boxes(rng: np.random.Generator, height: int, width: int, config: AugmentConfig) -> Int32[np.ndarray, "N 4"]:
    """Boxes (top, left, height, width) to erase in one image; height 0 where there is none.

    Args:
        rng: the image's own generator.
        config: `erase_prob`, `erase_count` (N), `erase_area`, `erase_aspect`.
    """
    boxes = np.zeros((config.erase_count, 4), np.int32)
    if config.erase_prob == 0 or rng.random() > config.erase_prob:
        return boxes
    count = 1 if config.erase_count == 1 else int(rng.integers(1, config.erase_count + 1))
    log_aspect = math.log(config.erase_aspect[0]), math.log(config.erase_aspect[1])
    for slot in range(count):
        for _ in range(ATTEMPTS):
            area = rng.uniform(*config.erase_area) * (height * width) / count
            aspect = math.exp(rng.uniform(*log_aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
                boxes[slot] = top, left, h, w
                break
    return boxes
