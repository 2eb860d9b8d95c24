"""Images/s of one core through the training transform of ImageNet: flashjax against timm, on the same JPEG files.

    python -m benchmarks.input_pipeline [--json FILE]        (extras: parity, demo)

Both decode with Pillow, crop to 224, flip, apply `rand-m9-mstd0.5-inc1`, normalise and erase, and end in one float32
batch. They take turns, round by round, pinned to one core; a ratio is the median over rounds. Two comparisons:

- whole: timm's `create_transform` against our host half and device half together (the device being this core);
- host: up to uint8, what worker processes do: timm's `create_transform(use_prefetcher=True)` against our host half.

The files are 500x375 at quality 90, cut from the two photographs that scikit-learn ships.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import PIL
import timm
import timm.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from flashjax.data import AugmentConfig, DataConfig
from flashjax.data.augment.device import prepare_train
from flashjax.data.examples import generator, read_image
from flashjax.data.sources import FolderSource
from flashjax.data.transforms import TrainTransform

FILES, ROUNDS, SIZE = 32, 24, 224
WIDTH, HEIGHT, QUALITY = 500, 375, 90
# Mixing is left out: timm does it batch by batch, after its transform.
CONFIG = DataConfig(image_size=SIZE, batch_size=FILES, augment=AugmentConfig(mixup=0, cutmix=0))


def write_files(root: Path) -> list[str]:
    """Cuts of different size and place from two photographs, as JPEG files."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng, names = np.random.default_rng(0), []
    for index in range(FILES):
        photograph = photographs[index % len(photographs)]
        width = int(rng.integers(WIDTH, photograph.width + 1))
        height = min(round(width * HEIGHT / WIDTH), photograph.height)
        left, top = rng.integers(0, [photograph.width - width + 1, photograph.height - height + 1])
        cut = photograph.crop((left, top, left + width, top + height)).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        cut.save(root / f"{index}.jpg", quality=QUALITY)
        names.append(f"{index}.jpg")
    return names


class Ours:
    """The way of a batch through flashjax.data."""

    def __init__(self, root: Path, names: list[str]):
        self.source = FolderSource(root, names, np.zeros(FILES, np.int32), ["all"], "benchmark")
        self.transform, self.slot = TrainTransform.create(CONFIG), 0
        self.images = np.empty((FILES, SIZE, SIZE, 3), np.uint8)
        self.boxes = np.empty((FILES, CONFIG.augment.erase_count, 4), np.int32)
        self.labels, self.weights = np.zeros(FILES, np.int32), np.ones(FILES, np.float32)
        self.device = jax.jit(prepare_train, static_argnums=(2, 3))

    def host(self) -> np.ndarray:
        for row in range(FILES):
            image, _ = read_image(self.source, row, CONFIG)
            self.images[row], self.boxes[row] = self.transform(image, generator(0, 1, self.slot))
            self.slot += 1
        return self.images

    def whole(self) -> jax.Array:
        batch = {
            "image": self.host(),
            "erase_box": self.boxes,
            "label": self.labels,
            "mix_lambda": self.weights,
        }
        made = self.device(batch, jax.random.key(self.slot), CONFIG, 10)
        return made["image"].block_until_ready()


class Theirs:
    """The same with timm's transform, file by file."""

    def __init__(self, root: Path, names: list[str]):
        self.paths = [root / name for name in names]
        # A magnitude of 10 keeps no bit, at which Pillow 13 stops timm with an error; older ones returned black.
        posterize = timm.data.auto_augment.posterize
        timm.data.auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **_: (
            posterize(image, bits) if bits else Image.new("RGB", image.size)
        )
        fields = {
            "input_size": SIZE, "is_training": True, "auto_augment": CONFIG.augment.auto_augment,
            "interpolation": "bicubic", "re_prob": CONFIG.augment.erase_prob, "re_mode": "pixel", "re_count": 1,
        }  # fmt: skip
        self.to_float = timm.data.create_transform(**fields)
        self.to_uint8 = timm.data.create_transform(**fields, use_prefetcher=True)

    def _batch(self, transform) -> torch.Tensor:
        return torch.stack([transform(Image.open(path).convert("RGB")) for path in self.paths])

    def host(self) -> torch.Tensor:
        return self._batch(self.to_uint8)

    def whole(self) -> torch.Tensor:
        return self._batch(self.to_float)


def seconds(step) -> float:
    """CPU seconds of the process, all threads: on one core that is the time, whatever else the machine does."""
    start = time.process_time()
    step()
    return time.process_time() - start


def measure(ours: Ours, theirs: Theirs, part: str) -> dict[str, float]:
    """Images/s of both, and the median of the rounds' ratios; who goes first changes from round to round."""
    steps = {"flashjax": getattr(ours, part), "timm": getattr(theirs, part)}
    for step in steps.values():
        step()
    rounds = []
    for index in range(ROUNDS):
        order = list(steps) if index % 2 else list(steps)[::-1]
        rounds.append({name: FILES / seconds(steps[name]) for name in order})
    rates = {name: statistics.median(each[name] for each in rounds) for name in steps}
    ratios = [each["flashjax"] / each["timm"] for each in rounds]
    return rates | {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    # Before the first computation, at which the libraries count the cores and start their threads.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        names = write_files(Path(folder))
        kilobytes = sum((Path(folder) / name).stat().st_size for name in names) / FILES / 1000
        ours, theirs = Ours(Path(folder), names), Theirs(Path(folder), names)
        figures = {part: measure(ours, theirs, part) for part in ("whole", "host")}
    conditions = {
        "files": f"{FILES} JPEGs, {WIDTH}x{HEIGHT}, quality {QUALITY}, {kilobytes:.0f} kB on average, of 2 photographs",
        "cores": 1,
        "rounds": ROUNDS,
        "machine": platform.processor() or platform.machine(),
        "versions": {module.__name__: module.__version__ for module in (PIL, timm, torch, jax)},
    }
    print(f"{conditions['files']}; one core; {ROUNDS} rounds in turn")
    print(f"{'':8}{'flashjax':>12}{'timm':>12}   ratio (min .. max over rounds)")
    for part, row in figures.items():
        print(
            f"{part:8}{row['flashjax']:8.1f} im/s{row['timm']:7.1f} im/s   "
            f"{row['ratio']:.2f} ({row['ratio_min']:.2f} .. {row['ratio_max']:.2f})"
        )
    if args.json:
        args.json.write_text(json.dumps({"conditions": conditions, "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
