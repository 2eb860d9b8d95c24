"""RandAugment, Mixup and CutMix, Random Erasing: what is drawn, how often; what the device makes of it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flashjax.data import AugmentConfig, DataConfig
from flashjax.data.augment import device, randaugment
from flashjax.data.augment.erasing import sample_boxes
from flashjax.data.augment.mixing import sample_box, sample_mixing
from flashjax.data.augment.operations import run
from tests.data.helpers import picture


def test_randaugment_reads_timms_notation():
    policy = randaugment.parse("rand-m9-mstd0.5-inc1", "bicubic", (124, 116, 104))
    assert policy == randaugment.RandAugment(9, 2, 0.5, 0.5, 10, True, "bicubic", (124, 116, 104))
    policy = randaugment.parse("rand-n3-p0.7-mstd101-mmax12")
    assert (policy.magnitude, policy.num_ops, policy.probability) == (10, 3, 0.7)
    assert policy.magnitude_std == math.inf and policy.magnitude_max == 12 and not policy.increasing


@pytest.mark.parametrize(
    "text, message",
    [
        ("augmix-m3", "unknown policy 'augmix'"),
        ("rand-m9-q3", "cannot read 'q3'"),
        ("rand-mstd", "cannot read 'mstd'"),
        ("rand-m9.5", "m in 'rand-m9.5' must be a whole number"),
        ("rand-tweights", "cannot read 'tweights'"),
    ],
)
def test_randaugment_says_what_it_cannot_read(text, message):
    with pytest.raises(ValueError, match=message):
        randaugment.parse(text)


def test_randaugment_leaves_a_quarter_of_images_alone_and_nothing_unshaped():
    policy = randaugment.parse("rand-m9-mstd0.5-inc1")
    image = picture(0, 24, 20)
    pixels, same = np.asarray(image), 0
    for seed in range(600):
        result = policy(np.random.default_rng(seed), image)
        assert result.size == image.size and result.mode == "RGB"
        same += bool((np.asarray(result) == pixels).all())
    assert 0.2 < same / 600 < 0.35, "both operations skipped: 1/4; a few more change nothing on this image"


def test_each_operation_gets_stronger_with_the_magnitude():
    waves, noise = np.asarray(picture(1, 48, 48)), np.random.default_rng(0).integers(0, 256, (48, 48, 3))
    pixels = (waves * 0.7 + noise * 0.3).astype(np.uint8)
    image, pixels = Image.fromarray(pixels), pixels.astype(int)
    graded = randaugment.INCREASING[3:]  # the first three have no level
    policy = randaugment.parse("rand-inc1")
    for operation in graded:
        change = [
            np.abs(np.asarray(run(image, [step], policy.fill)) - pixels).mean()
            for level in (0.1, 0.5, 1.0)
            for step in [operation.draw(level, np.random.default_rng(0), policy.interpolation)]
        ]
        assert change[0] < change[1] < change[2], randaugment.INCREASING.index(operation)


def test_cutmix_box_covers_one_minus_the_weight():
    rng = np.random.default_rng(0)
    weights = []
    for _ in range(2000):
        (y0, y1, x0, x1), weight = sample_box(rng, 32, 48, 0.75)
        assert 0 <= y0 <= y1 <= 32 and 0 <= x0 <= x1 <= 48 and y1 - y0 <= 16 and x1 - x0 <= 24
        assert weight == 1 - (y1 - y0) * (x1 - x0) / (32 * 48)
        weights.append(weight)
    # A side of half the image is cut to 7/8 of itself on average: a center in the outer quarters loses up to half.
    assert abs(np.mean(weights) - (1 - 0.25 * (7 / 8) ** 2)) < 0.01


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixing_draws_have_the_recipes_statistics(mode):
    config = AugmentConfig(mixup_mode=mode, mixup_prob=0.8, switch_prob=0.5)
    rows, batches = 16, 600
    rng = np.random.default_rng(0)
    draws = [sample_mixing(rng, rows, 32, 32, config) for _ in range(batches)]
    weight, box = (np.stack([getattr(draw, name) for draw in draws]) for name in ("weight", "box"))
    assert weight.dtype == np.float32 and box.dtype == np.int32
    assert ((weight >= 0) & (weight <= 1)).all()
    area = (box[..., 1] - box[..., 0]) * (box[..., 3] - box[..., 2])
    cut, mixed = area > 0, weight < 1
    np.testing.assert_allclose(weight[cut], 1 - area[cut] / 1024, rtol=1e-6)
    tolerance = 0.06 if mode == "batch" else 0.03
    # CutMix draws whose box is empty (or weight 1) look like no mixing at all: some per cent.
    assert abs(mixed.mean() - 0.8) < tolerance and abs(cut.sum() / mixed.sum() - 0.5) < tolerance
    distinct = [len(np.unique(row)) for row in weight[:50]]
    limit = {"batch": 1, "pair": 8, "elem": 16}[mode]
    assert max(distinct) <= limit and (mode == "batch" or max(distinct) > limit // 2)
    if mode == "pair":
        assert (weight == weight[:, ::-1]).all() and (box == box[:, ::-1]).all()


def test_no_mixing_when_it_is_off():
    for fields in ({"mixup": 0.0, "cutmix": 0.0}, {"mixup_prob": 0.0}):
        draw = sample_mixing(np.random.default_rng(0), 3, 8, 8, AugmentConfig(**fields))
        assert (draw.weight == 1).all() and not draw.box.any()


@pytest.mark.parametrize("fields, cut", [({"mixup": 0.0}, True), ({"cutmix": 0.0}, False)])
def test_one_kind_of_mixing_alone(fields, cut):
    rng = np.random.default_rng(0)
    for mode in ("batch", "elem"):
        draws = [sample_mixing(rng, 4, 64, 64, AugmentConfig(mixup_mode=mode, **fields)) for _ in range(50)]
        assert all(bool(draw.box.any()) == cut for draw in draws)


def test_erasing_boxes_have_the_recipes_statistics():
    config, count = AugmentConfig(erase_prob=0.25), 20000
    rng = np.random.default_rng(0)
    boxes = np.stack([sample_boxes(rng, 224, 224, config) for _ in range(count)])[:, 0]
    top, left, h, w = boxes[boxes[:, 2] > 0].T
    assert abs(len(h) / count - 0.25) < 0.01
    assert (top + h <= 224).all() and (left + w <= 224).all() and (h < 224).all() and (w < 224).all()
    area = h * w / 224**2
    assert area.min() > 0.018 and area.max() < 0.34 and abs(area.mean() - (0.02 + 1 / 3) / 2) < 0.01
    assert abs(np.log(h / w).mean()) < 0.05 and (h / w).min() > 0.28 and (h / w).max() < 3.5


def test_erasing_counts_and_limits():
    rng = np.random.default_rng(0)
    many = [sample_boxes(rng, 64, 64, AugmentConfig(erase_prob=1.0, erase_count=3)) for _ in range(900)]
    counts = np.bincount([(boxes[:, 2] > 0).sum() for boxes in many], minlength=4)
    assert counts[0] == 0 and (counts[1:] > 250).all()
    assert not sample_boxes(rng, 64, 64, AugmentConfig(erase_prob=0)).any()
    impossible = AugmentConfig(erase_prob=1.0, erase_area=(0.99, 0.99), erase_aspect=(3.0, 3.0))
    assert not sample_boxes(rng, 64, 64, impossible).any(), "a box that never fits is not drawn"


def batch_of(rows=6, size=12, classes=5):
    rng = np.random.default_rng(1)
    return {
        "image": rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8),
        "label": rng.integers(0, classes, rows).astype(np.int32),
        "mix_lambda": np.ones(rows, np.float32),
        "mix_box": np.zeros((rows, 4), np.int32),
        "erase_box": np.zeros((rows, 2, 4), np.int32),
    }


CONFIG = DataConfig(image_size=12, batch_size=6, augment=AugmentConfig(erase_count=2))


def test_device_half_without_draws_only_normalises_and_smooths():
    batch = batch_of()
    made = jax.jit(device.prepare_train, static_argnums=(2, 3))(batch, jax.random.key(0), CONFIG, 5)
    mean, std = np.float32(CONFIG.augment.mean), np.float32(CONFIG.augment.std)
    expected = (batch["image"].astype(np.float32) / 255 - mean) / std
    np.testing.assert_allclose(made["image"], expected, atol=1e-6)
    np.testing.assert_allclose(made["target"], np.eye(5)[batch["label"]] * 0.9 + 0.02, atol=1e-7)
    made = device.prepare_eval(batch | {"mask": np.ones(6, np.float32)}, CONFIG)
    np.testing.assert_allclose(made["image"], expected, atol=1e-6)
    assert made.keys() == {"image", "label", "mask"}


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_erased_boxes_are_filled_and_nothing_else(mode):
    batch = batch_of()
    batch["erase_box"][0] = [[2, 3, 4, 5], [0, 0, 0, 0]]
    batch["erase_box"][3] = [[0, 0, 11, 11], [11, 11, 1, 1]]
    augment = dataclasses.replace(CONFIG.augment, erase_mode=mode, mixup=0.0, cutmix=0.0)
    config = dataclasses.replace(CONFIG, augment=augment)
    clean = np.asarray(device.normalise(jnp.asarray(batch["image"]), augment))
    made = [np.asarray(device.prepare_train(batch, jax.random.key(key), config, 5)["image"]) for key in (0, 0, 1)]
    changed = made[0] != clean
    expected = np.zeros((6, 12, 12, 1), bool)
    expected[0, 2:6, 3:8] = expected[3, :11, :11] = expected[3, 11, 11] = True
    assert (changed == expected).all()
    assert (made[0] == made[1]).all() and (mode == "const") == bool((made[0] == made[2]).all())
    box = made[0][0, 2:6, 3:8]
    distinct = {"pixel": 60, "rand": 3, "const": 1}[mode]
    assert len(np.unique(box)) == distinct
    if mode == "pixel":
        big = made[0][3, :11, :11]
        assert abs(big.mean()) < 0.2 and abs(big.std() - 1) < 0.15


def test_pixel_noise_is_normal_and_independent():
    made = jax.jit(lambda key: device.pixel_noise(key, (4, 96, 96, 3)))
    noise = np.asarray(made(jax.random.key(0))).astype(np.float64)
    error = noise.size**-0.5
    assert abs(noise.mean()) < 4 * error and abs((noise**2).mean() - 1) < 6 * error
    assert abs((noise**4).mean() - 3) < 40 * error and 4 < np.abs(noise).max() < 6
    for axis in range(4):
        one, other = (
            noise.take(range(noise.shape[axis] - 1), axis),
            noise.take(range(1, noise.shape[axis]), axis),
        )
        error = one.size**-0.5
        assert abs((one * other).mean()) < 4 * error
        assert abs(((one**2 - 1) * (other**2 - 1)).mean()) < 8 * error
    assert abs((noise * np.asarray(made(jax.random.key(1)))).mean()) < 4 * noise.size**-0.5


def test_mixup_and_cutmix_on_the_device():
    batch = batch_of()
    batch["mix_lambda"][:] = [0.3, 1, 0.75, 0.5, 0, 0.9]
    batch["mix_box"][2] = [3, 9, 0, 6]
    config = dataclasses.replace(CONFIG, augment=dataclasses.replace(CONFIG.augment, erase_prob=0))
    made = device.prepare_train(batch, jax.random.key(0), config, 5)
    clean = np.asarray(device.normalise(jnp.asarray(batch["image"]), config.augment))
    mirror, image = clean[::-1], np.asarray(made["image"])
    np.testing.assert_allclose(image[0], 0.3 * clean[0] + 0.7 * mirror[0], atol=1e-6)
    assert (image[1] == clean[1]).all() and (image[4] == mirror[4]).all()
    expected = clean[2].copy()
    expected[3:9, 0:6] = mirror[2, 3:9, 0:6]
    assert (image[2] == expected).all(), "CutMix copies pixels exactly"
    onehot = np.eye(5)[batch["label"]] * 0.9 + 0.02
    weight = batch["mix_lambda"][:, None]
    np.testing.assert_allclose(made["target"], weight * onehot + (1 - weight) * onehot[::-1], atol=1e-6)
    np.testing.assert_allclose(made["target"].sum(1), 1, atol=1e-6)


def test_device_half_is_the_same_on_any_mesh():
    batch = batch_of(rows=8)
    rng = np.random.default_rng(0)
    batch["mix_lambda"][:] = rng.random(8)
    batch["mix_box"][::3] = [2, 9, 1, 7]
    batch["erase_box"][1::2, 0] = [1, 2, 6, 5]
    step = jax.jit(device.prepare_train, static_argnums=(2, 3))
    single = step(batch, jax.random.key(0), CONFIG, 5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
    many = step(spread, jax.random.key(0), CONFIG, 5)
    for name in single:
        np.testing.assert_allclose(single[name], many[name], atol=1e-6, err_msg=name)


def test_an_unknown_fill_is_named():
    config = dataclasses.replace(CONFIG, augment=dataclasses.replace(CONFIG.augment, erase_mode="noise"))
    with pytest.raises(ValueError, match="unknown erase_mode 'noise'"):
        device.prepare_train(batch_of(), jax.random.key(0), config, 5)
