"""Images/s of the device batch transforms: flashjax under `jit` against torchvision's v2 and timm.

    python -m benchmarks.augment [--json FILE] [--rounds 15] [--sizes 32x128 224x64] [--cores 1]      (extra: parity)

Batches of normalised float32 images (side x images) in memory, in each library's layout: [B H W C] here, [B C H W]
there. Erasing draws for each image by itself: torchvision's transform is called image by image, timm's takes the batch.
Mixing draws once for a batch in all of them. Draws are part of the time on both sides.

Like is compared with like: "in place", all overwrite their batch (torchvision's `inplace=True`; ours is donated, and
writes tiles); "to a copy", the batch stays as it is (torchvision's default; timm's, which knows no other way than in
place, gets a clone; ours is not donated). Mixing and masking are donated here too. Cutout is torchvision's erasing
pinned to a square of the same size; GridMask and Hide-and-Seek have no peer there. The rows "bytes to erased" are what
a train step does: from uint8 to normalised and erased, one pass here, several there. Contenders take turns; a ratio is
the median over rounds of the peer's time by ours: above 1, flashjax is ahead. Both libraries are pinned to `--cores`.
"""

import argparse
import functools
import json
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import timm
import torch
import torchvision
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import v2

from benchmarks.turns import median_ratio, take_turns
from flashjax import drawing
from flashjax.data import AugmentConfig, augment
from flashjax.data.augment.device import normalise
from flashjax.data.config import IMAGENET_MEAN, IMAGENET_STD

CLASSES = 1000
Step = Callable[[], Any]


class Ours:
    """One augmentation over a batch that stays on the device, each call with a key of its own; in place if `donate`."""

    def __init__(self, made: Any, images: np.ndarray, labels: np.ndarray | None, donate: bool = True):
        self.images, self.labels, self.count = jax.device_put(images), jax.device_put(labels), 0
        self.donate, self.step = donate, jax.jit(functools.partial(_step, made), donate_argnums=1 if donate else ())

    def __call__(self) -> None:
        self.count += 1
        images, *_ = self.step(self.count, self.images, self.labels)
        images.block_until_ready()
        if self.donate:
            self.images = images


def _step(made: Any, count: Any, images: jax.Array, labels: Any) -> tuple[jax.Array, ...]:
    key = jax.random.fold_in(jax.random.key(0), count)
    return (made(key, images),) if labels is None else made(key, images, jax.nn.one_hot(labels, CLASSES))


class FromBytes:
    """uint8 [B H W C] on the device to normalised and erased float32."""

    def __init__(self, made: Any, images: np.ndarray):
        self.images, self.count = jax.device_put(images), 0
        self.step = jax.jit(lambda count, images: _step(made, count, normalise(images, AugmentConfig()), None)[0])

    def __call__(self) -> None:
        self.count += 1
        self.step(self.count, self.images).block_until_ready()


def each(transform: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> Step:
    """Image by image, as torchvision draws once for whatever it is given; the whole batch is there in the end."""
    return lambda: [transform(image) for image in images]


def contenders(side: int, rows: int) -> dict[str, dict[str, Step]]:
    """What is measured: name -> contender -> one batch. The first contender of each is ours."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((rows, side, side, 3), np.float32)
    labels = rng.integers(0, CLASSES, rows)
    theirs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    targets = torch.from_numpy(labels)

    def ours(name: str, preset: str | None = None, mixes: bool = False, **fields: Any) -> dict[str, Step]:
        return {"flashjax": Ours(augment.create(name, preset, **fields), images, labels if mixes else None)}

    def vision(inplace: bool = True, **fields: Any) -> Step:
        return each(v2.RandomErasing(inplace=inplace, **fields), theirs.clone())

    def pytorch_timm(mode: str, inplace: bool = True) -> Step:
        batch = theirs.clone()
        erasing = RandomErasing(0.5, mode=mode, device="cpu")
        return lambda: erasing(batch if inplace else batch.clone())

    def erasing(inplace: bool, mode: str, value: Any, **fields: Any) -> dict[str, Step]:
        made = augment.create("random_erasing", "torchvision", write="tiles", **fields)
        return {
            "flashjax": Ours(made, images, None, donate=inplace),
            "torchvision": vision(inplace, value=value),
            "timm": pytorch_timm(mode, inplace),
        }

    def timm_mix(**alphas: Any) -> Step:
        batch, mixing = theirs.clone(), Mixup(**alphas, num_classes=CLASSES, label_smoothing=0.0)
        return lambda: mixing(batch, targets)

    pixels = rng.integers(0, 256, (rows, side, side, 3), np.uint8)
    their_pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    def vision_from_bytes(**fields: Any) -> Step:
        erasing = v2.RandomErasing(inplace=True, **fields)

        def step() -> None:
            floats = v2.functional.to_dtype(their_pixels, torch.float32, scale=True)
            floats = v2.functional.normalize(floats, list(IMAGENET_MEAN), list(IMAGENET_STD), True)
            for image in floats:
                erasing(image)

        return step

    def timm_from_bytes(mode: str) -> Step:
        mean, std = (torch.tensor([*value]).mul(255).view(1, 3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
        erasing = RandomErasing(0.5, mode=mode, device="cpu")
        return lambda: erasing(their_pixels.float().sub_(mean).div_(std))

    length = side // 2
    share = length**2 / side**2
    return {
        "erasing in place, constant": erasing(True, "const", 0),
        "erasing in place, N(0, 1) pixels": erasing(True, "pixel", "random", fill="pixel"),
        "erasing to a copy, constant": erasing(False, "const", 0),
        "erasing to a copy, N(0, 1) pixels": erasing(False, "pixel", "random", fill="pixel"),
        "bytes to erased, constant": {
            "flashjax": FromBytes(augment.create("random_erasing", "torchvision"), pixels),
            "torchvision": vision_from_bytes(),
            "timm": timm_from_bytes("const"),
        },
        "bytes to erased, N(0, 1) pixels": {
            "flashjax": FromBytes(augment.create("random_erasing", "torchvision", fill="pixel"), pixels),
            "torchvision": vision_from_bytes(value="random"),
            "timm": timm_from_bytes("pixel"),
        },
        "erasing in place, random bytes": ours("random_erasing", "paper", std=(0.25,), write="tiles"),
        "cutout": ours("cutout", length=length)
        | {"torchvision": vision(p=1.0, scale=(share, share), ratio=(1.0, 1.0))},
        "mixup": ours("mixup", "torchvision", mixes=True)
        | {
            "torchvision": functools.partial(v2.MixUp(num_classes=CLASSES), theirs, targets),
            "timm": timm_mix(mixup_alpha=1.0),
        },
        "cutmix": ours("cutmix", "torchvision", mixes=True)
        | {
            "torchvision": functools.partial(v2.CutMix(num_classes=CLASSES), theirs, targets),
            "timm": timm_mix(mixup_alpha=0.0, cutmix_alpha=1.0),
        },
        "grid mask": ours("grid_mask", period=(side * 3 // 7, side)),
        "hide and seek": ours("hide_and_seek", grids=(0, side // 14, side // 7, side // 5, side // 4)),
    }


def measure(side: int, rows: int, rounds: int) -> list[dict[str, Any]]:
    """One record for each augmentation: images/s of each contender, and the peers' ratios."""
    records = []
    for name, steps in contenders(side, rows).items():
        times = take_turns(steps, rounds)
        rates = {who: rows / statistics.median(spent) for who, spent in times.items()}
        ratios = {who: median_ratio(spent, times["flashjax"]) for who, spent in times.items() if who != "flashjax"}
        records.append({"augmentation": name, "side": side, "images": rows, "images_per_s": rates, "ratio": ratios})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender")
    parser.add_argument("--sizes", nargs="+", default=["32x128", "224x64"], help="side x images of the batches")
    parser.add_argument("--cores", type=int, default=1, help="cores of this process")
    args = parser.parse_args()
    # Before the first computation, at which the libraries count the cores and start their threads.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    torch.set_num_threads(args.cores)
    records = []
    for size in args.sizes:
        side, rows = (int(part) for part in size.split("x"))
        made = measure(side, rows, args.rounds)
        records += made
        heads = ("augmentation", "flashjax, images/s", "against torchvision", "against timm")
        show = lambda ratio: f"{ratio:.2f}x" if ratio else "-"  # noqa: E731
        table = [
            (
                record["augmentation"],
                f"{record['images_per_s']['flashjax']:,.0f}",
                show(record["ratio"].get("torchvision")),
                show(record["ratio"].get("timm")),
            )
            for record in made
        ]
        print(f"\n{rows} images of {side} x {side}\n{drawing.text_table(heads, table)}", flush=True)
    about = {
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "torchvision": torchvision.__version__,
                     "timm": timm.__version__},
    }  # fmt: skip
    print(f"\n{about}")
    if args.json:
        args.json.write_text(json.dumps({**about, "rounds": args.rounds, "records": records}, indent=1))


if __name__ == "__main__":
    main()
