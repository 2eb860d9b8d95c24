"""Random Erasing: its presets, its statistics, the host and the device, objects, and what it refuses."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.data import augment
from flashjax.data.augment import tiles
from flashjax.data.augment.erasing import Erasing, RandomErasing

RNG = np.random.default_rng
draw = jax.jit(lambda made, key, shape: made.draw(key, shape), static_argnums=(0, 2))
apply = jax.jit(lambda made, images, draws: made.apply(images, draws), static_argnums=0)
BYTES = RNG(0).integers(0, 256, (6, 24, 18, 3), dtype=np.uint8)
FLOATS = (BYTES / 255).astype(np.float32)


def drawn(count=10_000, height=100, width=100, **fields):
    """top, left, height, width of `count` boxes of the paper's preset."""
    boxes = augment.create("random_erasing", **fields).draw(RNG(0), (count, height, width, 3)).boxes
    return np.moveaxis(boxes[:, 0], -1, 0)


def test_the_papers_statistics():
    top, left, h, w = drawn()
    erased = h > 0
    assert abs(erased.mean() - 0.5) < 0.015
    top, left, h, w = (side[erased] for side in (top, left, h, w))
    assert (h < 100).all() and (w < 100).all() and (top + h <= 100).all() and (left + w <= 100).all()
    area, aspect = h * w / 100**2, h / w
    assert area.min() > 0.018 and area.max() < 0.41
    # Uniform in 0.02..0.4 but for what does not fit: tall boxes of more than 0.3 of the image.
    share, ratio = np.meshgrid(np.linspace(0.02, 0.4, 400), np.linspace(0.3, 10 / 3, 400))
    fits = (share * ratio < 0.995**2) & (share / ratio < 0.995**2)
    assert abs(area.mean() - share[fits].mean()) < 4 * 0.11 / len(area) ** 0.5 and abs(area.mean() - 0.21) < 0.015
    counts, _ = np.histogram(aspect, np.linspace(0.3, 10 / 3, 7))
    assert abs(counts[:4] / len(h) - 1 / 6).max() < 0.02, "linear in the aspect, but for the rejected"
    # Places are uniform over those that fit, both ends included.
    where = (top + 0.5) / (100 - h + 1)
    assert abs(where.mean() - 0.5) < 0.02 and abs(where.std() - 12**-0.5) < 0.02
    assert (top == 0).any() and (top + h == 100).any()


def test_the_logarithmic_law_is_symmetric_and_the_linear_is_not():
    share = {}
    for law in ("linear", "log"):
        _, _, h, w = drawn(prob=1.0, area=(0.02, 0.1), aspect_law=law)
        share[law] = (h > w).mean()
    assert abs(share["log"] - 0.5) < 0.03, "as many tall boxes as broad ones"
    assert share["linear"] > 0.72, "7 of 9 of the papers' boxes are tall"


def test_the_papers_pseudocode_makes_small_boxes_likelier():
    area = {}
    for placement in ("inside", "reject"):
        top, left, h, w = drawn(prob=1.0, placement=placement)
        assert (top + h <= 100).all() and (left + w <= 100).all()
        area[placement] = (h * w / 100**2).mean()
    assert area["inside"] > 0.19 and area["reject"] < 0.15


def test_a_device_draw_has_the_same_statistics():
    boxes = jax.jit(RandomErasing().draw, static_argnums=1)(jax.random.key(0), (10_000, 100, 100, 3)).boxes
    ours, host = np.asarray(boxes)[:, 0], np.stack(drawn(), -1)
    assert ours.dtype == np.int32 and (ours[:, 2] < 100).all() and (ours[:, :2] + ours[:, 2:] <= 100).all()
    for column in range(4):
        for moment in (np.mean, np.std):
            a, b = moment(ours[ours[:, 2] > 0, column]), moment(host[host[:, 2] > 0, column])
            assert abs(a - b) < 1.5, (column, a, b)


def test_certain_and_impossible():
    for prob, share in ((0.0, 0.0), (1.0, 1.0)):
        _, _, h, _ = drawn(2000, prob=prob)
        assert (h > 0).mean() == share
    _, _, h, w = drawn(200, prob=1.0, area=(0.25, 0.25), aspect=(1.0, 1.0))
    assert (h == 50).all() and (w == 50).all(), "s_l = s_h"
    _, _, h, _ = drawn(200, prob=1.0, area=(0.99, 0.99), aspect=(3.0, 3.0))
    assert (h == 0).all(), "what never fits is not erased"
    image = augment.random_erasing(RNG(0), BYTES, prob=1.0, area=(0.99, 0.99), aspect=(3.0, 3.0))
    assert (image == BYTES).all()


def test_several_boxes_share_the_area():
    boxes = augment.create("random_erasing", "timm", prob=1.0, count=(2, 4)).draw(RNG(0), (3000, 64, 64, 3)).boxes
    number = (boxes[..., 2] > 0).sum(1)
    assert abs(np.bincount(number, minlength=5)[2:] / 3000 - 1 / 3).max() < 0.03 and number.min() >= 2
    area = (boxes[..., 2] * boxes[..., 3]).sum(1) / 64**2
    assert abs(area.mean() - (0.02 + 1 / 3) / 2) < 0.01


KINDS = [(fill, "uniform", 3) for fill in ("pixel", "channel", "mean", "value")]
KINDS += [("pixel", "normal", 3), ("channel", "normal", 3), ("pixel", "uniform", 1)]


@pytest.mark.parametrize("fill, noise, channels", KINDS)
def test_host_and_device_agree_under_the_same_draws(fill, noise, channels):
    for images, std in ((BYTES, None), (FLOATS, (0.2,))):
        if noise == "normal" and images.dtype == np.uint8:
            continue
        images = images[..., :channels]
        erasing = RandomErasing(prob=0.8, count=(1, 2), fill=fill, noise=noise, value=7, mean=(0.4,), std=std)
        draws = erasing.draw(RNG(1), images.shape)
        device, host = np.asarray(apply(erasing, images, draws)), erasing.apply(images, draws)
        assert device.dtype == host.dtype == images.dtype
        np.testing.assert_allclose(device, host, rtol=0, atol=0 if images.dtype == np.uint8 else 2e-6)
        changed = (host != images).any(-1).any((1, 2))
        assert (changed == (draws.boxes[..., 2] > 0).any(-1)).all() and changed.any() and not changed.all()
        one = erasing.apply(images[2], Erasing(*(array[2] for array in draws)))
        assert (one == host[2]).all(), "an image alone, as in the pipeline"


@pytest.mark.parametrize("fill, noise", [("pixel", "normal"), ("channel", "uniform"), ("value", "uniform")])
def test_tiles_make_the_same_pixels(monkeypatch, fill, noise):
    """Tiles that are smaller than the boxes, or larger than the images; boxes at the borders, and one over another."""
    erasing = RandomErasing(count=(1, 3), prob=0.8, fill=fill, noise=noise, std=(0.2,))
    tiled = dataclasses.replace(erasing, write="tiles")
    draws = erasing.draw(RNG(1), FLOATS.shape)
    draws.boxes[0] = [[0, 0, 24, 18], [19, 11, 5, 7], [3, 2, 1, 1]]
    expected = erasing.apply(FLOATS, draws)
    for tile, some in (((5, 7), slice(None)), ((32, 64), 0)):
        monkeypatch.setattr(tiles, "TILE", tile)
        made = jax.jit(lambda images, draws: tiled.apply(images, draws))(
            jnp.asarray(FLOATS[some]), Erasing(*(array[some] for array in draws))
        )
        np.testing.assert_allclose(made, expected[some], rtol=0, atol=2e-6)
    assert (expected[0] != FLOATS[0]).mean() > 0.99


def test_what_fills_a_box():
    boxes = np.array([[2, 3, 10, 12]], np.int32)
    key = np.array([[5, 6]], np.uint32)

    def filled(images, **fields):
        made = RandomErasing(**fields).apply(images, Erasing(boxes, key))
        outside = np.ones(images.shape[:2], bool)
        outside[2:12, 3:15] = False
        assert (made[outside] == images[outside]).all()
        return made[2:12, 3:15]

    noise = filled(BYTES[0])
    assert len(np.unique(noise)) > 150 and abs(noise.mean() - 127.5) < 12, "a byte for each pixel and channel"
    assert len(np.unique(filled(BYTES[0], fill="channel").reshape(-1, 3), axis=0)) == 1
    assert (filled(BYTES[0], fill="mean", mean=(0.4914, 0.4822, 0.4465)) == (125, 123, 114)).all()
    assert (filled(BYTES[0], fill="value", value=255) == 255).all()
    normalised = filled(FLOATS[0], mean=(0.5,), std=(0.25,))
    np.testing.assert_allclose(normalised, (noise / 255 - 0.5) / 0.25, atol=1e-6)
    assert (filled(FLOATS[0], fill="mean", mean=(0.5,), std=(0.25,)) == 0).all(), "the mean, normalised"
    np.testing.assert_allclose(filled(FLOATS[0], fill="mean", mean=(0.5,)), 0.5)
    official = augment.create("random_erasing", "official").apply(FLOATS[0], Erasing(boxes, key))[2:12, 3:15]
    np.testing.assert_allclose(official, np.broadcast_to((0.4914, 0.4822, 0.4465), official.shape))


def test_noise_is_uniform_and_fresh():
    shape = (64, 32, 32, 3)
    erasing = RandomErasing(prob=1.0, area=(0.6, 0.6), aspect=(1.0, 1.0))
    draws = erasing.draw(RNG(0), shape)
    images = np.zeros(shape, np.uint8)
    made = zip(erasing.apply(images, draws), draws.boxes[:, 0], strict=True)
    inside = np.stack([image[top : top + h, left : left + w] for image, (top, left, h, w) in made])
    counts = np.bincount(inside.ravel(), minlength=256)
    expected = inside.size / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * 510**0.5, "chi square of 256 values"
    centered = inside - 127.5
    for a, b in (
        (centered[:, 1:], centered[:, :-1]),
        (centered[:-1], centered[1:]),
        (centered[..., 1:], centered[..., :-1]),
    ):
        assert abs((a * b).mean()) < 4 * 74**2 / a.size**0.5
    again = erasing.apply(images, erasing.draw(RNG(1), shape))
    assert (erasing.apply(images, draws) == erasing.apply(images, draws)).all() and (
        again != erasing.apply(images, draws)
    ).any()


def test_normal_noise_is_normal():
    images = np.zeros((4, 200, 200, 3), np.float32)
    boxes = np.tile(np.array([[[0, 0, 200, 200]]], np.int32), (4, 1, 1))
    key = RNG(0).integers(0, 2**32, (4, 1, 2), dtype=np.uint32)
    noise = RandomErasing(noise="normal").apply(images, Erasing(boxes, key)).astype(np.float64)
    error = noise.size**-0.5
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((noise**power).mean() - moment) < 4 * spread**0.5 * error, power
    assert 4.3 < abs(noise).max() < 5
    for axis in range(4):
        one, other = (noise.take(range(start, noise.shape[axis] - 1 + start), axis) for start in (0, 1))
        assert abs((one * other).mean()) < 4 * one.size**-0.5
        assert abs(((one**2 - 1) * (other**2 - 1)).mean()) < 8 * one.size**-0.5


def test_objects_are_erased_inside_their_boxes():
    boxes = np.array([[[2, 3, 12, 20], [5.2, 5.7, 17.5, 23], [0, 0, 18, 24]]] * 6, np.float32)
    valid = np.array([[True, True, False]] * 6)
    masks = np.zeros((6, 3, 24, 18), bool)
    masks[:, 0, 3:20, 2:12] = masks[:, 1, 6:23, 6:17] = True
    for rng in (RNG(0), jax.random.key(0)):
        erase = partial(augment.erase_objects, where="objects", prob=1.0, fill="value")
        if isinstance(rng, jax.Array):
            erase = jax.jit(erase)
        made, cut, visible = erase(rng, BYTES, boxes, valid, masks=masks)
        made, cut, visible = np.asarray(made), np.asarray(cut), np.asarray(visible)
        erased = (made != BYTES).any(-1)
        reach = np.zeros((24, 18), bool)
        reach[3:20, 2:12] = reach[5:23, 5:18] = True
        assert erased.any((1, 2)).all() and not (erased & ~reach).any()
        assert (visible[:, 2] == 0).all() and (visible[:, :2] < 1).all() and (visible[:, :2] > 0.3).all()
        black = (made == 0).all(-1)[:, None]
        assert not (cut & black & (BYTES != 0).any(-1)[:, None]).any() and not (cut & ~masks).any()
        assert (cut == (masks & ~erased[:, None])).mean() > 0.999
    *_, visible = augment.erase_objects(RNG(0), BYTES, boxes, valid, "objects", prob=0.0)
    assert (visible == valid).all()


@pytest.mark.parametrize("where, erased", [("image", 1), ("objects", 2), ("both", 3)])
def test_image_aware_object_aware_and_both(where, erased):
    """With areas and shapes pinned, the number of black pixels tells how many boxes there are."""
    images = np.full((2, 40, 40, 3), 200, np.uint8)
    boxes = np.array([[[0, 0, 20, 20], [20, 20, 40, 40]]] * 2, np.float32)
    fields = {"prob": 1.0, "fill": "value", "area": (0.01, 0.01), "aspect": (1.0, 1.0)}
    made, masks, _ = augment.erase_objects(RNG(0), images, boxes, where=where, **fields)
    black = (made == 0).all(-1).sum((1, 2))
    most = {"image": 16, "objects": 8, "both": 24}[where]
    assert masks is None and (black <= most).all() and (black >= most - 8).all() and (black == most).any()
    assert erased == {"image": 1, "objects": 2, "both": 3}[where]


def test_under_jit_and_over_a_mesh():
    step = jax.jit(lambda key, images: augment.random_erasing(key, images, "timm", fill="pixel"))
    images = jnp.asarray(np.concatenate([FLOATS, FLOATS[:2]]))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(images, jax.NamedSharding(mesh, jax.P("data")))
    one, many = step(jax.random.key(3), images), step(jax.random.key(3), spread)
    np.testing.assert_allclose(one, many, atol=1e-6)
    assert (np.asarray(one) != images).any() and (step(jax.random.key(4), images) != one).any()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"prob": 1.2}, "prob must lie in 0..1, got 1.2"),
        ({"area": (0.4, 0.2)}, r"area must be a range .* got \(0.4, 0.2\)"),
        ({"area": (0.0, 0.2)}, "area must be a range"),
        ({"aspect": (0.3,)}, "aspect must be a range"),
        ({"count": (0, 2)}, "count must be a range"),
        ({"attempts": 0}, "attempts must be at least 1, got 0"),
        ({"write": "inplace"}, "unknown write 'inplace'; known: mask, tiles"),
        ({"fill": "black"}, "unknown fill 'black'; known: pixel, channel, mean, value"),
        ({"probability": 0.5}, "random_erasing has no field 'probability'; known: prob, area"),
        ({"preset": "kornia"}, "unknown preset 'kornia' of random_erasing; known: paper"),
        ({"noise": "normal"}, "normal noise is for normalised floating-point images"),
        ({"fill": "value", "value": (1, 2)}, "2 numbers but the images 3 channels"),
        ({"fill": "value", "value": 0.5}, "0.5 is no byte"),
        ({"fill": "mean", "mean": (0.1, 0.2)}, "mean has 2 numbers but the images have 3"),
    ],
)
def test_bad_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        augment.random_erasing(RNG(0), BYTES, **({"prob": 1.0} | fields))


def test_bad_images_and_generators_are_named():
    with pytest.raises(ValueError, match=r"\[H W C\] or \[B H W C\]"):
        augment.random_erasing(RNG(0), BYTES[0, 0])
    with pytest.raises(ValueError, match="uint8 or floating point, got int32"):
        augment.random_erasing(RNG(0), BYTES.astype(np.int32))
    with pytest.raises(ValueError, match=r"numpy.random.Generator .* got int"):
        augment.random_erasing(0, BYTES)
    with pytest.raises(ValueError, match="unknown augmentation 'cutoff'"):
        augment.create("cutoff")
    boxes = np.zeros((6, 1, 4), np.float32)
    with pytest.raises(ValueError, match="unknown where 'inside'"):
        augment.erase_objects(RNG(0), BYTES, boxes, where="inside")
    with pytest.raises(ValueError, match=r"boxes are \[\*B M 4\]"):
        augment.erase_objects(RNG(0), BYTES, boxes[0])
    with pytest.raises(ValueError, match=r"masks are \[\*B M H W\]"):
        augment.erase_objects(RNG(0), BYTES, boxes, masks=np.zeros((6, 1, 8, 8), bool))


def test_an_augmentation_is_a_static_argument():
    erasing = augment.create("random_erasing", "timm")
    assert hash(erasing) == hash(dataclasses.replace(erasing)) and "random_erasing" in augment.names()
    shape = jax.eval_shape(lambda key, images: erasing(key, images), jax.random.key(0), FLOATS[0])
    assert (shape.shape, shape.dtype) == (FLOATS[0].shape, np.float32)
