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

# name -> (module, class, table of presets). The modules are named so that none hides a function of this package.
_TABLE = {
    "random_erasing": ("erasing", "RandomErasing", "PRESETS"),
}
_OTHERS = {"erase_objects": "erasing"}

__all__ = [
    "create",
    "erase_objects",
    "names",
    "presets",
    "random_erasing",
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


def __getattr__(name: str) -> Any:
    if name in _OTHERS:
        return getattr(importlib.import_module(f"flashjax.data.augment.{_OTHERS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
