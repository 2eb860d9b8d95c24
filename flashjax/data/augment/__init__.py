"""Augmentation by name: each as one call, and as an object that a configuration can choose.

    images = augment.random_erasing(rng, images, preset="timm", prob=0.25)      # or cutout, grid_mask, ...
    erasing = augment.create("random_erasing", preset="timm", prob=0.25)        # draw(rng, shape), apply(images, draws)

`rng` decides where it runs: a JAX key on the device, jittable; a NumPy generator on the host. docs/augment.md has the
table of all. Importing this package imports nothing else: each augmentation comes on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashjax.data.augment.erasing import erase_objects
    from flashjax.data.augment.grain_maps import as_random_map

# name -> (module, class, table of presets). The modules are named so that none hides a function of this package.
_TABLE = {
    "random_erasing": ("erasing", "RandomErasing", "PRESETS"),
    "cutout": ("masking", "Cutout", "CUTOUT"),
    "hide_and_seek": ("masking", "HideAndSeek", "HIDE_AND_SEEK"),
    "grid_mask": ("masking", "GridMask", "GRID_MASK"),
    "mixup": ("mixing", "Mixup", "MIXUP"),
    "cutmix": ("mixing", "CutMix", "CUTMIX"),
    "mosaic": ("mosaics", "Mosaic", "PRESETS"),
    "rand_augment": ("policies", "BinnedRandAugment", "RAND_PRESETS"),
    "auto_augment": ("policies", "AutoAugment", "AUTO_PRESETS"),
    "trivial_augment": ("policies", "TrivialAugment", "TRIVIAL_PRESETS"),
    "aug_mix": ("policies", "AugMix", "MIX_PRESETS"),
}
_OTHERS = {"erase_objects": "erasing", "as_random_map": "grain_maps"}

__all__ = [
    "as_random_map",
    "aug_mix",
    "auto_augment",
    "create",
    "cutmix",
    "cutout",
    "erase_objects",
    "grid_mask",
    "hide_and_seek",
    "mixup",
    "mosaic",
    "names",
    "presets",
    "rand_augment",
    "random_erasing",
    "trivial_augment",
]


def names() -> tuple[str, ...]:
    """Names that `create` takes; each is a function of this package too."""
    return tuple(_TABLE)


def presets(name: str) -> tuple[str, ...]:
    """Presets of an augmentation; the first is the default. Raises ValueError for an unknown name."""
    return tuple(_find(name)[1])


def create(name: str, preset: str | None = None, **fields: Any) -> Any:
    """The augmentation of this name as a frozen, hashable object.

    Args:
        preset: where implementations disagree, whose values; None: the first of `presets(name)`.
        fields: of its dataclass; they override the preset.
    Raises:
        ValueError: an unknown name, preset or field, or a value that the augmentation does not take.
    """
    made, table = _find(name)
    if preset is None:
        preset = next(iter(table))
    if preset not in table:
        raise ValueError(f"unknown preset {preset!r} of {name}; known: {', '.join(table)}")
    values = dict(table[preset])
    made = values.pop("class", made)
    known = made.__dataclass_fields__
    for field in fields:
        if field not in known:
            raise ValueError(f"{name} has no field {field!r}; known: {', '.join(known)}")
    return made(**(values | fields))


def _find(name: str) -> tuple[type, dict[str, dict[str, Any]]]:
    if name not in _TABLE:
        raise ValueError(f"unknown augmentation {name!r}; known: {', '.join(_TABLE)}")
    file, made, table = _TABLE[name]
    module = importlib.import_module(f"flashjax.data.augment.{file}")
    return getattr(module, made), getattr(module, table)


def random_erasing(rng: Any, images: Any, preset: str = "paper", **fields: Any) -> Any:
    """Random Erasing of each image; presets `paper`, `pseudocode`, `official`, `torchvision`, `timm`, `detection`.

    Args:
        rng: a `jax.random` key (device) or a `numpy.random.Generator` (host).
        images: [H W C] or [B H W C], uint8 or floating point; shape and dtype stay.
        fields: of `erasing.RandomErasing`, such as prob, area, aspect, fill, value.
    """
    return create("random_erasing", preset, **fields)(rng, images)


def cutout(rng: Any, images: Any, preset: str = "cifar10", **fields: Any) -> Any:
    """Cutout: squares of zeros; presets `cifar10` (side 16), `cifar100` (8), `svhn` (20).

    Args:
        rng, images: as in `random_erasing`.
        fields: of `masking.Cutout`: length, holes, prob, value.
    """
    return create("cutout", preset, **fields)(rng, images)


def hide_and_seek(rng: Any, images: Any, preset: str = "official", **fields: Any) -> Any:
    """Hide-and-Seek: cells of a grid are hidden at random.

    Args:
        rng, images: as in `random_erasing`.
        fields: of `masking.HideAndSeek`: grids, prob, value.
    """
    return create("hide_and_seek", preset, **fields)(rng, images)


def grid_mask(rng: Any, images: Any, preset: str = "official", **fields: Any) -> Any:
    """GridMask: squares on a turned grid are hidden; presets `official` and `mode_0` (the stripes are hidden instead).

    Args:
        rng, images: as in `random_erasing`.
        fields: of `masking.GridMask`: period, ratio, rotate, invert, prob, value.
    """
    return create("grid_mask", preset, **fields)(rng, images)


def mixup(rng: Any, images: Any, targets: Any, preset: str = "imagenet", **fields: Any) -> tuple[Any, Any]:
    """Mixup of the rows of a batch; presets `imagenet` (alpha 0.2), `cifar10` (1), `torchvision`, `swin` (0.8).

    Args:
        rng: as in `random_erasing`.
        images: floating point [B H W C].
        targets: floating point [B K]; rows that sum to 1 still do.
        fields: of `mixing.Mixup`: alpha, prob, mode, partner.
    """
    return create("mixup", preset, **fields)(rng, images, targets)


def cutmix(rng: Any, images: Any, targets: Any, preset: str = "imagenet", **fields: Any) -> tuple[Any, Any]:
    """CutMix of the rows of a batch; presets `imagenet`, `cifar10` (probability 0.5), `torchvision`, `timm`.

    Args:
        rng, targets: as in `mixup`.
        images: [B H W C], uint8 too.
        fields: of `mixing.CutMix`: alpha, prob, mode, partner, sides.
    """
    return create("cutmix", preset, **fields)(rng, images, targets)


def mosaic(rng: Any, images: Any, boxes: Any, valid: Any = None, **fields: Any) -> tuple[Any, Any, Any]:
    """Mosaic of YOLOv5: four images and their boxes in one.

    Args:
        rng: as in `random_erasing`.
        images: [4 H W C] or [B 4 H W C]: top left, top right, bottom left, bottom right.
        boxes: [*B 4 M 4] (x0, y0, x1, y1) in pixels of their own image.
        valid: bool [*B 4 M], False where a row is padding; None: all are objects.
        fields: of `mosaics.Mosaic`: center, scale, translate, value, min_side, min_area, max_aspect.
    Returns:
        images [*B H W C], boxes [*B 4M 4], valid [*B 4M].
    """
    return create("mosaic", **fields)(rng, images, boxes, valid)


def rand_augment(rng: Any, image: Any, preset: str = "timm", **fields: Any) -> Any:
    """RandAugment of one image on the host; presets `timm` (rand-m9-mstd0.5-inc1) and `torchvision`.

    Args:
        rng: a `numpy.random.Generator`.
        image: a Pillow image or uint8 [H W C]; the result is of the same kind.
        fields: of `randaugment.RandAugment` or `policies.BinnedRandAugment`.
    """
    return create("rand_augment", preset, **fields)(rng, image)


def auto_augment(rng: Any, image: Any, preset: str = "torchvision", **fields: Any) -> Any:
    """AutoAugment of one image on the host: `policy` imagenet, cifar10, svhn; preset `timm`: original(r), v0(r).

    Args:
        rng, image: as in `rand_augment`.
        fields: of `policies.AutoAugment` or `policies.TimmAutoAugment`.
    """
    return create("auto_augment", preset, **fields)(rng, image)


def trivial_augment(rng: Any, image: Any, preset: str = "wide", **fields: Any) -> Any:
    """TrivialAugment of one image on the host.

    Args:
        rng, image: as in `rand_augment`.
        fields: of `policies.TrivialAugment`.
    """
    return create("trivial_augment", preset, **fields)(rng, image)


def aug_mix(rng: Any, image: Any, preset: str = "torchvision", **fields: Any) -> Any:
    """AugMix of one image on the host; presets `torchvision`, `paper` (without the enhancements), `timm`.

    Args:
        rng, image: as in `rand_augment`.
        fields: of `policies.AugMix` or `policies.TimmAugMix`.
    """
    return create("aug_mix", preset, **fields)(rng, image)


def __getattr__(name: str) -> Any:
    if name in _OTHERS:
        return getattr(importlib.import_module(f"flashjax.data.augment.{_OTHERS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
