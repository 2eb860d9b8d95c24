"""A picture of every augmentation: one sheet as PNG, one page as HTML."""

import importlib.util
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flashjax.data import augment, sources
from flashjax.data.augment.policies import Mixture
from flashjax.drawing import STYLE
from flashjax.pages import png_source, write_page

SIDE, COLUMNS, LABEL = 224, 6, 40
CHANGE = 12  # mean difference of a byte that is seen at a glance
INK, PAPER, BOX = (29, 33, 38), (250, 250, 248), (255, 220, 60)


class Tile(NamedTuple):
    """One picture: what it is called, how it is made, uint8 [H W 3]."""

    name: str
    how: str
    image: np.ndarray


def photographs() -> list[np.ndarray]:
    """Four squares of 224 from the two photographs that scikit-learn carries: a temple, its roof, a flower, its heart.

    Raises FileNotFoundError where scikit-learn is not installed, or has them no more.
    """
    spec = importlib.util.find_spec("sklearn")
    folder = Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else Path()
    paths = [folder / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")]
    if not all(path.exists() for path in paths):
        raise FileNotFoundError(
            "the photographs come with scikit-learn: pip install 'flashjax[demo]', or name files with --images"
        )
    china, flower = (Image.open(path).convert("RGB") for path in paths)
    cuts = [(china, (110, 0, 537, 427)), (china, (60, 40, 300, 280)), (flower, (150, 0, 577, 427))]
    cuts.append((flower, (250, 60, 500, 310)))
    return [np.asarray(image.crop(cut).resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for image, cut in cuts]


def digits() -> list[np.ndarray]:
    """Four of the embedded digits, as large as the photographs."""
    _, held_out = sources.digits()
    rows = [held_out[index][0] for index in (300, 820, 210, 555)]
    return [np.asarray(Image.fromarray(row).resize((SIDE, SIDE)).convert("RGB")) for row in rows]


def tiles(images: Sequence[np.ndarray], seed: int = 0) -> dict[str, list[Tile]]:
    """Pictures by group, each from a generator of its own.

    Args:
        images: four, uint8 [224 224 3]; the first is shown under everything, the others are mixed with it.
    """
    image, floats = images[0], np.stack(images).astype(np.float32) / 255
    number = iter(range(10**6))
    rng = lambda: np.random.default_rng([seed, next(number)])  # noqa: E731
    one_hot = np.eye(4, dtype=np.float32)

    def single(name: str, call: str, **fields: Any) -> Tile:
        options = "".join(f", {key}={value!r}" for key, value in fields.items())
        return Tile(name, f"{call}(rng, image{options})", getattr(augment, call)(rng(), image, **fields))

    def mixed(name: str, call: str, **fields: Any) -> Tile:
        made, targets = getattr(augment, call)(rng(), floats, one_hot, **fields)
        shares = " + ".join(f"{share:.2f} of {label + 1}" for label, share in enumerate(targets[0]) if share)
        return Tile(f"{name}: {shares}", f"{call}(rng, images, targets)", np.rint(made[0] * 255).astype(np.uint8))

    objects = np.array([[[30, 40, 110, 190], [120, 20, 205, 120], [125, 130, 210, 210]]], np.float32)

    def erased(name: str, where: str) -> Tile:
        made, _, visible = augment.erase_objects(rng(), image[None], objects, where=where, prob=1.0)  # pyright: ignore
        words = ", ".join(f"{100 * share:.0f} %" for share in visible[0])
        return Tile(f"{name}: visible {words}", f'erase_objects(rng, images, boxes, where="{where}")',
                    _boxed(made[0], objects[0]))  # fmt: skip

    boxes = np.tile(np.array([[20.0, 20.0, 204.0, 204.0]], np.float32), (4, 1, 1))
    mosaic, kept, valid = augment.mosaic(rng(), np.stack(images), boxes)

    def policy(name: str, call: str, preset: str | None = None, **fields: Any) -> Tile:
        """The first draw that can be seen: many change nothing."""
        made = augment.create(call, preset, **fields)
        while True:
            draws = made.draw(rng(), image.shape)
            changed = made.apply(image, draws)
            if np.abs(changed.astype(int) - image).mean() > CHANGE:
                return Tile(name, _steps(draws), changed)

    always: dict[str, Any] = {"prob": 1.0}
    return {
        "The image": [Tile("as it is", "", image)],
        "Random Erasing": [
            single("random bytes (paper)", "random_erasing", **always),
            single("the mean", "random_erasing", fill="mean", **always),
            single("zero", "random_erasing", fill="value", value=0, **always),
            single("one random colour", "random_erasing", fill="channel", **always),
            single("four boxes", "random_erasing", preset="timm", count=(4, 4), fill="pixel",
                   noise="uniform", **always),
        ],
        "Random Erasing for detection": [
            erased("image-aware", "image"), erased("object-aware", "objects"), erased("both", "both"),
        ],
        "Hiding": [
            single("Cutout", "cutout", length=96),
            single("Hide-and-Seek", "hide_and_seek", grids=(32,)),
            single("GridMask", "grid_mask", period=(60, 96), **always),
            single("GridMask, mode 0", "grid_mask", preset="mode_0", period=(60, 96), **always),
        ],
        "Mixing": [
            mixed("Mixup", "mixup", alpha=1.0),
            mixed("CutMix", "cutmix"),
            Tile("Mosaic", "mosaic(rng, images, boxes)", _boxed(mosaic, kept[valid])),
        ],
        "Policies": [
            policy("RandAugment", "rand_augment"),
            policy("RandAugment (torchvision)", "rand_augment", preset="torchvision"),
            policy("AutoAugment, ImageNet", "auto_augment"),
            policy("AutoAugment, CIFAR-10", "auto_augment", policy="cifar10"),
            policy("AutoAugment, SVHN", "auto_augment", policy="svhn"),
            policy("TrivialAugment", "trivial_augment"),
            policy("AugMix", "aug_mix", severity=8),
        ],
    }  # fmt: skip


def _steps(draws: Any) -> str:
    """The operations of a policy and their amounts, in words."""
    if isinstance(draws, Mixture):
        chains = zip(draws.shares, draws.chains, strict=True)
        return f"{draws.own:.2f} of the image, " + ", ".join(
            f"{share:.2f} of ({_steps(chain)})" for share, chain in chains
        )
    return ", ".join(step.name if step.amount is None else f"{step.name} {step.amount:.2f}" for step in draws)


def _boxed(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    drawn = Image.fromarray(image)
    for box in np.asarray(boxes).tolist():
        ImageDraw.Draw(drawn).rectangle([round(side) for side in box], outline=BOX, width=2)
    return np.asarray(drawn)


def sheet(groups: dict[str, list[Tile]]) -> Image.Image:
    """All pictures in rows of six, with their names below."""
    shown = [tile for group in groups.values() for tile in group]
    rows, pitch = -(-len(shown) // COLUMNS), SIDE + 12
    made = Image.new("RGB", (COLUMNS * pitch + 12, rows * (pitch + LABEL) + 12), PAPER)
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(15)
    for index, tile in enumerate(shown):
        left, top = 12 + index % COLUMNS * pitch, 12 + index // COLUMNS * (pitch + LABEL)
        made.paste(Image.fromarray(tile.image), (left, top))
        pen.multiline_text((left, top + SIDE + 4), tile.name.replace(": ", ":\n"), INK, font)
    return made


_STYLE = f"""{STYLE}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(224px, 1fr)); gap: 16px; }}
.tiles img {{ width: 100%; border-radius: 6px; }}
.tiles code {{ color: var(--muted); font-size: 12px; overflow-wrap: anywhere; }}
"""


def write(directory: Path, images: Sequence[np.ndarray], seed: int = 0) -> tuple[Path, Path]:
    """Writes `augment.png` and `augment.html` and returns where they are; see `tiles` for the images."""
    groups, parts = tiles(images, seed), ["<h1>Augmentations</h1>"]
    for title, group in groups.items():
        cards = "".join(
            f'<figure><img alt="{escape(tile.name)}" src="{png_source(tile.image)}"><p><b>{escape(tile.name)}</b><br>'
            f"<code>{escape(tile.how)}</code></p></figure>"
            for tile in group
        )
        parts.append(f'<h2>{title}</h2><p></p><div class="tiles">{cards}</div>')
    page = write_page(directory / "augment.html", "Augmentations", _STYLE, parts)
    picture = directory / "augment.png"
    sheet(groups).save(picture, optimize=True)
    return picture, page
