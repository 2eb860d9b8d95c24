"""Masks, mixing, Mosaic and the policies: their rules and statistics, the host and the device, what they refuse."""

import subprocess
import sys

import grain
import jax
import numpy as np
import pytest
from PIL import Image

from flashjax.data import AugmentConfig, DataConfig, augment
from flashjax.data.augment import pictures, policies
from flashjax.data.augment.masking import Grid, Hiding, rotation
from flashjax.data.augment.mixing import Mixing
from flashjax.data.augment.mosaics import Tiling
from flashjax.data.transforms import TrainTransform
from tests.data.helpers import picture

RNG = np.random.default_rng
BYTES = RNG(0).integers(1, 256, (6, 24, 18, 3), dtype=np.uint8)
FLOATS = (BYTES / 255).astype(np.float32)
ONE_HOT = np.eye(5, dtype=np.float32)[[0, 1, 2, 3, 4, 0]]

MASKS = [
    ("cutout", {"length": 9, "holes": 2, "prob": 0.7}),
    ("hide_and_seek", {"grids": (0, 4, 7)}),
    ("grid_mask", {"period": (6, 15)}),
    ("grid_mask", {"period": (6, 15), "invert": False, "rotate": 1}),
]


draw = jax.jit(lambda made, key, shape: made.draw(key, shape), static_argnums=(0, 2))
apply = jax.jit(lambda made, images, draws: made.apply(images, draws), static_argnums=0)
call = jax.jit(lambda made, *arguments: made(*arguments), static_argnums=0)


def host(draws):
    return jax.tree.map(np.asarray, draws)


@pytest.mark.parametrize("name, fields", MASKS)
def test_masks_agree_on_host_and_device(name, fields):
    made = augment.create(name, **fields, value=(7, 8, 9))
    draws = made.draw(RNG(1), BYTES.shape)
    expected = made.apply(BYTES, host(draws))
    assert (np.asarray(apply(made, BYTES, draws)) == expected).all()
    hidden = (expected != BYTES).any(-1)
    assert 0.02 < hidden.mean() < 0.98 and (expected[hidden] == (7, 8, 9)).all()
    one = made.apply(BYTES[1], jax.tree.map(lambda array: array[1], host(draws)))
    assert (one == expected[1]).all(), "one image, as in the pipeline"


@pytest.mark.parametrize("name, fields", MASKS)
def test_masks_of_one_channel_and_at_no_probability(name, fields):
    grey = FLOATS[..., :1]
    made = augment.create(name, **fields)(RNG(0), grey)
    assert (
        made.shape == grey.shape
        and made.dtype == np.float32
        and (made == 0).any()
        and (made[made != 0] == grey[made != 0]).all()
    )
    assert (augment.create(name, **(fields | {"prob": 0.0}))(RNG(0), grey) == grey).all()


def test_cutout_is_a_square_cut_at_the_edges():
    boxes = augment.create("cutout", length=16).draw(RNG(0), (4000, 32, 32, 3))[:, 0]
    top, left, h, w = boxes.T
    assert h.min() == 8 and w.min() == 8 and h.max() == w.max() == 16
    assert (top + h <= 32).all() and (left + w <= 32).all()
    # A side is 16 but within 8 pixels of an edge: 8..15 at the one end, 9..15 at the other.
    assert abs(h.mean() - (17 * 16 + sum(range(8, 16)) + sum(range(9, 16))) / 32) < 0.15
    image = augment.cutout(RNG(0), np.full((32, 32, 3), 9, np.uint8))
    assert set(np.unique(image)) == {0, 9}


def test_hide_and_seek_hides_whole_cells():
    hidden = np.zeros((6, 5), bool)
    hidden[0, 0] = hidden[2, 4] = hidden[5, 1] = True
    made = augment.create("hide_and_seek", grids=(0, 4)).apply(BYTES[0], Hiding(np.int32(4), hidden))
    expected = BYTES[0].copy()
    expected[0:4, 0:4] = expected[8:12, 16:18] = expected[20:24, 4:8] = 0
    assert (made == expected).all()
    same = augment.create("hide_and_seek", grids=(0, 4)).apply(BYTES[0], Hiding(np.int32(0), np.ones((6, 5), bool)))
    assert (same == BYTES[0]).all()
    draws = augment.create("hide_and_seek").draw(RNG(0), (4000, 224, 224, 3))
    assert abs(np.bincount(draws.size)[[0, 16, 32, 44, 56]] / 4000 - 0.2).max() < 0.03
    assert draws.hidden.shape == (4000, 14, 14) and abs(draws.hidden.mean() - 0.5) < 0.01


@pytest.mark.parametrize("invert", [True, False])
@pytest.mark.parametrize("shape", [(40, 40), (33, 48)])
def test_grid_mask_is_the_official_grid_turned_by_pillow(invert, shape):
    """Stripes on a canvas of 1.5 times the image, turned and cropped. Where the official canvas is too small, as for
    images that are not square, it leaves the corners empty; ours goes on."""
    made, (height, width) = augment.create("grid_mask", period=(8, 20), invert=invert), shape
    image = np.ones((height, width, 1), np.uint8)
    for degrees in (0, 1, 17, 45, 90, 133, 180, 271, 359):
        rng = RNG(degrees)
        period = int(rng.integers(8, 20))
        stripe, offset = int(period * 0.6 + 0.5), rng.integers(0, period, 2)
        tall, broad = int(1.5 * height), int(1.5 * width)
        canvas = np.ones((tall, broad), np.uint8)
        for first in range(offset[0] - period, tall, period):
            canvas[max(first, 0) : max(first + stripe, 0)] = 0
        for first in range(offset[1] - period, broad, period):
            canvas[:, max(first, 0) : max(first + stripe, 0)] = 0
        top, left = (tall - height) // 2, (broad - width) // 2
        turned = np.asarray(Image.fromarray(canvas).rotate(degrees))[top : top + height, left : left + width]
        reached = (
            np.asarray(Image.new("L", (broad, tall), 1).rotate(degrees))[top : top + height, left : left + width] > 0
        )
        expected = 1 - turned if invert else turned
        matrix = rotation(np.int32(degrees), tall, broad)
        draws = Grid(np.bool_(True), np.int32(period), np.int32(stripe), np.asarray(offset, np.int32), matrix)
        assert reached.all() or height != width
        np.testing.assert_array_equal(made.apply(image, draws)[reached, 0], expected[reached], err_msg=f"{degrees}")


def test_grid_mask_takes_a_probability_that_rises():
    made = augment.create("grid_mask", period=(6, 15))
    active = jax.jit(lambda prob: made.draw(jax.random.key(0), (2000, 8, 8, 3), prob=prob).active)
    for prob in (0.0, 0.3, 1.0):
        assert abs(float(active(prob).mean()) - prob) < 0.04


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("mode", ["batch", "elem"])
@pytest.mark.parametrize("partner", ["flip", "roll"])
def test_mixing_agrees_and_targets_sum_to_one(name, mode, partner):
    made = augment.create(name, mode=mode, partner=partner)
    draws = made.draw(RNG(5), FLOATS.shape)
    np.testing.assert_allclose(apply(made, FLOATS, draws), made.apply(FLOATS, host(draws)), atol=1e-6)
    assert len(np.unique(draws.weight)) == 1 if mode == "batch" else len(np.unique(draws.weight)) > 3
    images, targets = made(RNG(3), FLOATS, ONE_HOT)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(
        jax.jit(made.apply_targets)(ONE_HOT, draws), made.apply_targets(ONE_HOT, draws), atol=1e-6
    )
    assert images.shape == FLOATS.shape and (images != FLOATS).any()


def test_mixing_from_one_key():
    images, targets = call(augment.create("cutmix", "timm"), jax.random.key(1), FLOATS, ONE_HOT)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    assert images.dtype == np.float32 and (images != FLOATS).any()


def test_mixup_blends_with_the_partner():
    draws = Mixing(np.array([0.25] * 6), np.zeros((6, 4), np.int32))
    for partner, other in (("flip", FLOATS[::-1]), ("roll", np.roll(FLOATS, 1, 0))):
        made = augment.create("mixup", partner=partner)
        np.testing.assert_allclose(made.apply(FLOATS, draws), 0.25 * FLOATS + 0.75 * other, atol=1e-6)
        flipped = made.partners(ONE_HOT)
        np.testing.assert_allclose(made.apply_targets(ONE_HOT, draws), 0.25 * ONE_HOT + 0.75 * flipped, atol=1e-7)


@pytest.mark.parametrize("preset", augment.presets("cutmix"))
def test_the_weight_of_cutmix_is_the_share_of_pixels(preset):
    images = np.broadcast_to(np.arange(1, 201, dtype=np.uint8)[:, None, None, None], (200, 12, 17, 1))
    made = augment.create("cutmix", preset, mode="elem")
    for rng in (RNG(0), jax.random.key(0)) if preset == "imagenet" else (RNG(0),):
        draws = host((draw if isinstance(rng, jax.Array) else type(made).draw)(made, rng, images.shape))
        pasted = made.apply(images, draws) != images
        np.testing.assert_allclose(1 - pasted.mean((1, 2, 3)), draws.weight, atol=1e-6)
        assert (pasted.any((1, 2, 3)).mean() > 0.35 * made.prob) and draws.weight.std() > 0.1


def test_mixing_shares_follow_the_beta_law():
    made = augment.create("mixup", alpha=0.4, prob=0.7, mode="elem")
    for weight in (made.draw(RNG(0), (8000, 2, 2, 1)).weight, draw(made, jax.random.key(0), (8000, 2, 2, 1)).weight):
        weight = np.asarray(weight)
        assert abs((weight == 1).mean() - 0.3) < 0.03
        weight = weight[weight < 1]
        # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
        assert abs(weight.mean() - 0.5) < 0.025 and abs(weight.var() - 1 / (4 * 1.8)) < 0.01


TILES = np.stack([np.full((16, 12, 1), value, np.uint8) for value in (10, 20, 30, 40)])


def tiling(center, scale=1.0, shift=(8.0, 6.0)):
    return Tiling(np.asarray(center, np.int32), np.float32(scale), np.asarray(shift, np.float32))


def test_mosaic_puts_four_images_around_its_center():
    made = augment.create("mosaic")
    # Scale 1 and no shift: the middle half of a canvas of 32 x 24, whose junction is at (14, 15).
    window = made.apply(TILES, tiling((14, 15)))[..., 0]
    expected = np.zeros((16, 12), np.uint8)
    expected[:6, :9], expected[:6, 9:], expected[6:, :9], expected[6:, 9:] = 10, 20, 30, 40
    assert (window == expected).all()
    # Far off the middle, the canvas shows: images reach 16 rows up and down from row 8, that is to row 24 - 8 = 16.
    window = made.apply(TILES, tiling((4, 15), shift=(4.0, 6.0)))[..., 0]
    assert (window[:8] != 114).all() and (window[9:] == 114).all()


def test_mosaic_conserves_boxes():
    made = augment.create("mosaic", scale=0.0, translate=0.0, min_area=0.0, min_side=0.0)
    boxes = np.tile(np.array([[2.0, 3.0, 9.0, 12.0]], np.float32), (4, 1, 1))
    valid = np.ones((4, 1), bool)
    out, kept = made.apply_boxes(boxes, valid, tiling((16, 12), 0.5), 16, 12)
    # The whole canvas at half size: every box is there, with a quarter of its area, in its own corner.
    assert kept.all()
    tile = np.array([[0, 0, 0, 0], [6, 0, 6, 0], [0, 8, 0, 8], [6, 8, 6, 8]])
    np.testing.assert_allclose(out, boxes[:, 0] / 2 + tile)
    masks = np.zeros((4, 1, 16, 12), bool)
    masks[:, 0, 4:12, 2:10] = True
    moved = made.apply_masks(masks, tiling((16, 12), 0.5))
    assert (moved.sum((1, 2)) == 16).all() and moved[3, 0 + 10 : 14, 7:11].all()
    # Unscaled and around the middle: no pixel of a box is lost or won, and masks stay inside their boxes.
    for seed in range(20):
        draws = made.draw(RNG(seed), (4, 16, 12, 3))
        out, kept = made.apply_boxes(boxes, valid, draws, 16, 12)
        masks = np.zeros((4, 1, 16, 12), bool)
        masks[:, 0, 3:12, 2:9] = True
        moved = made.apply_masks(masks, draws)
        for box, mask, alive in zip(out, moved, kept, strict=True):
            x0, y0, x1, y1 = box
            assert mask.sum() == (x1 - x0) * (y1 - y0) and alive == (mask.sum() > 0)
            assert not mask.any() or mask[int(y0) : int(y1), int(x0) : int(x1)].all()


def test_mosaic_agrees_on_host_and_device_and_drops_what_is_gone():
    made = augment.create("mosaic")
    images = RNG(1).integers(0, 256, (3, 4, 16, 12, 3), dtype=np.uint8)
    boxes = np.sort(RNG(2).uniform(0, 12, (3, 4, 2, 2, 2)), -2).reshape(3, 4, 2, 4).astype(np.float32)
    valid = np.ones((3, 4, 2), bool)
    valid[:, 2, 1] = False
    draws = draw(made, jax.random.key(0), images.shape)
    device = np.asarray(apply(made, images, draws)).astype(int)
    assert device.shape == (3, 16, 12, 3) and abs(device - made.apply(images, host(draws))).max() <= 1
    ours, kept = made.apply_boxes(boxes, valid, host(draws), 16, 12)
    theirs, also = jax.jit(made.apply_boxes, static_argnums=(3, 4))(boxes, valid, draws, 16, 12)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert (kept == also).all() and kept.any() and not kept.all() and not kept.reshape(3, 4, 2)[:, 2, 1].any()
    width, height = ours[..., 2] - ours[..., 0], ours[..., 3] - ours[..., 1]
    assert (width[kept] > 2).all() and (height[kept] > 2).all() and (ours >= 0).all()
    assert (ours[..., ::2] <= 12).all() and (ours[..., 1::2] <= 16).all()
    for out in (augment.mosaic(RNG(0), images, boxes, valid), call(made, jax.random.key(0), images, boxes, valid)):
        assert [tuple(array.shape) for array in out] == [(3, 16, 12, 3), (3, 8, 4), (3, 8)]


POLICIES = [
    (name, preset)
    for name in ("rand_augment", "auto_augment", "trivial_augment", "aug_mix")
    for preset in augment.presets(name)
]


@pytest.mark.parametrize("name, preset", POLICIES)
def test_policies_keep_kind_and_shape_and_are_deterministic(name, preset):
    made, image = augment.create(name, preset), picture(3, 30, 22)
    pixels = np.asarray(image)
    changed = 0
    for seed in range(12):
        array = made(RNG(seed), pixels)
        assert array.dtype == np.uint8 and array.shape == pixels.shape
        assert (np.asarray(made(RNG(seed), image)) == array).all(), "a Pillow image is treated alike"
        assert (made.apply(pixels, made.draw(RNG(seed), pixels.shape)) == array).all()
        changed += bool((array != pixels).any())
    assert changed > 5
    assert made(RNG(0), pixels[..., :1]).shape == (22, 30, 1)
    for wrong in (pixels / 255, pixels[None]):
        with pytest.raises(ValueError, match=r"one Pillow image, or uint8 \[H W C\]"):
            made(RNG(0), wrong)
    with pytest.raises(ValueError, match="runs on the host"):
        made(jax.random.key(0), pixels)


@pytest.mark.parametrize("text", ["trivial", "aa-cifar10", "augmix-m3-w2-d-1", "v0-mstd0.5", "rand-m9-inc1"])
def test_the_house_pipeline_takes_every_policy(text):
    config = DataConfig(image_size=24, batch_size=2, augment=AugmentConfig(auto_augment=text))
    transform = TrainTransform.create(config)
    pixels, _ = transform(picture(1, 40, 36), RNG(0))
    assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8
    assert hash(policies.parse(text)) == hash(policies.parse(text))


@pytest.mark.parametrize(
    "text, message",
    [
        ("augmax", "unknown policy 'augmax'; known: rand-"),
        ("aa-mnist", "unknown policy 'mnist'; known: imagenet, cifar10, svhn"),
        ("augmix-x3", "cannot read 'x3' in 'augmix-x3'"),
        ("augmix-9", "cannot read '9'"),
        ("augmix-m12", r"must lie in 1..10, got 12"),
        ("v0-w3", "cannot read 'w3'"),
    ],
)
def test_policies_say_what_they_cannot_read(text, message):
    with pytest.raises(ValueError, match=message):
        policies.parse(text)
    with pytest.raises(ValueError, match="unknown interpolation 'random'"):
        policies.parse("trivial", "random")


BAD = [
    ("cutout", {"length": 0}, "length must be at least 1, got 0"),
    ("hide_and_seek", {"grids": (0,)}, r"at least one of them above 0, got \(0,\)"),
    ("grid_mask", {"period": (1, 5)}, "period must be a range"),
    ("grid_mask", {"ratio": 1.5}, r"ratio must lie in 0..1, got 1.5"),
    ("grid_mask", {"rotate": 0}, "rotate must be at least 1"),
    ("mixup", {"alpha": 0.0}, "alpha must be above 0, got 0.0; prob=0 turns mixing off"),
    ("mixup", {"mode": "pair"}, "unknown mode 'pair'; known: batch, elem"),
    ("cutmix", {"sides": "odd"}, "unknown sides 'odd'"),
    ("mosaic", {"scale": 1.0}, "scale must lie in"),
    ("trivial_augment", {"bins": 1}, "bins must be at least 2"),
    ("rand_augment", {"preset": "torchvision", "magnitude": 31}, "0 <= magnitude < bins"),
    ("auto_augment", {"policy": "v0"}, "unknown policy 'v0'"),
]


@pytest.mark.parametrize("name, fields, message", BAD)
def test_bad_values_are_named(name, fields, message):
    with pytest.raises(ValueError, match=message):
        augment.create(name, **fields)


def test_bad_batches_are_named():
    with pytest.raises(ValueError, match="5 rows must be even, or partner='roll'"):
        augment.mixup(RNG(0), FLOATS[:5], ONE_HOT[:5])
    with pytest.raises(ValueError, match="uint8 images cannot hold a blend"):
        augment.mixup(RNG(0), BYTES, ONE_HOT)
    with pytest.raises(ValueError, match="one-hot the labels first"):
        augment.cutmix(RNG(0), BYTES, np.arange(6))
    with pytest.raises(ValueError, match=r"for a batch \[B H W C\]"):
        augment.create("cutmix").draw(RNG(0), FLOATS[0].shape)
    with pytest.raises(ValueError, match=r"a mosaic takes images \[4 H W C\]"):
        augment.create("mosaic").draw(RNG(0), (3, 8, 8, 3))
    with pytest.raises(ValueError, match=r"boxes are \[\*B 4 M 4\]"):
        augment.mosaic(RNG(0), TILES, np.zeros((3, 1, 4), np.float32))
    with pytest.raises(ValueError, match="Mixup takes several images"):
        augment.as_random_map(augment.create("mixup"))


def test_in_a_grain_pipeline():
    elements = [{"image": image, "label": row} for row, image in enumerate(BYTES)]
    chain = grain.MapDataset.source(elements).seed(3)
    for name in ("random_erasing", "cutout", "trivial_augment"):
        chain = chain.random_map(augment.as_random_map(augment.create(name)))
    first, again = list(chain), [chain[row] for row in range(6)]
    assert all((a["image"] == b["image"]).all() and a["label"] == b["label"] for a, b in zip(first, again, strict=True))
    assert all((made["image"] == 0).any() for made in first)


def test_the_table_of_names_and_a_cheap_import():
    assert set(augment.names()) < set(augment.__all__) and len(augment.names()) == 11
    for name in augment.names():
        assert callable(getattr(augment, name)) and augment.create(name) == augment.create(
            name, augment.presets(name)[0]
        )
    check = (
        "import sys, importlib.util as u\ns = u.spec_from_file_location('a', sys.argv[1]); m = u.module_from_spec(s)\n"
        "s.loader.exec_module(m)\nassert not {'jax', 'numpy', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check, augment.__file__], check=True)


@pytest.mark.slow
def test_the_page_of_pictures(tmp_path):
    images = [np.asarray(picture(seed, 224, 224)) for seed in range(4)]
    sheet, page = pictures.write(tmp_path, images)
    text = page.read_text()
    shown = [tile for group in pictures.tiles(images).values() for tile in group]
    assert text.count("<img") == len(shown) > 20 and "http" not in text
    assert all((tile.image != images[0]).any() for tile in shown[1:]) and Image.open(sheet).width > 1300
