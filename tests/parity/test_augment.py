"""Augmentation equals timm's and torchvision's when both are fed the same draws.

One stream of uniform numbers feeds either side: `random`, `np.random` and the torch generator on theirs, a scripted
generator on ours. Each primitive (uniform, integer, normal, beta, choice) turns one number of the stream into its draw
in the same way, so the results can only be equal if both sides draw the same things in the same order and do the same
with them.
"""

import dataclasses
import random
from statistics import NormalDist

import numpy as np
import pytest
from PIL import Image

from flashjax.data import AugmentConfig, DataConfig
from flashjax.data.augment import device, randaugment
from flashjax.data.augment.erasing import sample_boxes
from flashjax.data.augment.mixing import sample_mixing
from flashjax.data.augment.operations import run
from flashjax.data.transforms import TrainTransform, center_resize
from tests.data.helpers import picture

torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
timm_data = pytest.importorskip("timm.data", reason="the extra `parity` is not installed")
transforms = pytest.importorskip("torchvision.transforms", reason="the extra `parity` is not installed")


class Stream:
    """Uniform numbers, and what each primitive makes of one of them."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.used = 0

    def unit(self) -> float:
        self.used += 1
        return float(self.rng.random())

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def below(self, low: int, high: int) -> int:
        return low + int(self.unit() * (high - low))

    def normal(self, mean: float, std: float) -> float:
        return NormalDist(mean, std).inv_cdf(min(max(self.unit(), 1e-9), 1 - 1e-9))

    def beta(self, alpha: float) -> float:
        # Not a beta distribution; any function of (alpha, number) shows which alpha was asked for, and when.
        return self.unit() ** (1 / alpha)


class Scripted:
    """Stands in for np.random.Generator on our side."""

    def __init__(self, stream: Stream):
        self.stream = stream

    def random(self, size=None):
        return self.stream.unit() if size is None else np.array([self.stream.unit() for _ in range(size)])

    def uniform(self, low, high):
        return self.stream.uniform(low, high)

    def normal(self, mean, std):
        return self.stream.normal(mean, std)

    def integers(self, low, high, size=None):
        draw = lambda: self.stream.below(low, high)  # noqa: E731
        return draw() if size is None else np.array([draw() for _ in range(size)])

    def beta(self, a, b, size=None):
        assert a == b
        return self.stream.beta(a) if size is None else np.array([self.stream.beta(a) for _ in range(size)])


@pytest.fixture
def timm_draws(monkeypatch):
    """Makes timm and torchvision draw from a stream: `timm_draws(stream)`."""

    def feed(stream: Stream) -> None:
        many = lambda draw, size: draw() if size is None else np.array([draw() for _ in range(size)])  # noqa: E731
        monkeypatch.setattr(random, "random", stream.unit)
        monkeypatch.setattr(random, "uniform", stream.uniform)
        monkeypatch.setattr(random, "randint", lambda low, high: stream.below(low, high + 1))
        monkeypatch.setattr(random, "gauss", stream.normal)
        monkeypatch.setattr(random, "choice", lambda values: values[stream.below(0, len(values))])
        monkeypatch.setattr(np.random, "rand", lambda size=None: many(stream.unit, size))
        monkeypatch.setattr(np.random, "beta", lambda a, b, size=None: many(lambda: stream.beta(a), size))
        monkeypatch.setattr(
            np.random, "randint", lambda low, high, size=None: many(lambda: stream.below(low, high), size)
        )

        def choice(values, size, replace, p):
            assert replace and p is None
            return [values[stream.below(0, len(values))] for _ in range(size)]

        monkeypatch.setattr(np.random, "choice", choice)
        # torchvision's flip: torch.rand(1) < p
        monkeypatch.setattr(torch, "rand", lambda size: torch.tensor([stream.unit()], dtype=torch.float64))

    return feed


def textured(seed: int, width: int, height: int) -> Image.Image:
    """Waves under noise: every operation leaves a trace."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray((0.6 * np.asarray(picture(seed, width, height)) + 0.4 * noise).astype(np.uint8))


def hwc(tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy() if tensor.ndim == 3 else tensor.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    "text",
    [
        "rand-m9-mstd0.5-inc1",
        "rand-m9-mstd0.5",
        "rand-m7-n3-p0.8-inc1",
        "rand-mstd101-inc1",
        "rand-m14-mmax16-p1.0",
    ],
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_randaugment(timm_draws, text, interpolation):
    params = {"translate_const": 10, "img_mean": (124, 116, 104)}
    if interpolation != "random":
        params["interpolation"] = timm_data.transforms.str_to_pil_interp(interpolation)
    theirs = timm_data.auto_augment.rand_augment_transform(text, params)
    ours = randaugment.parse(text, interpolation, (124, 116, 104))
    for seed in range(60):
        image, stream, mine = textured(seed, 30, 26), Stream(seed), Stream(seed)
        timm_draws(stream)
        expected = np.asarray(theirs(image))
        np.testing.assert_array_equal(np.asarray(ours(Scripted(mine), image)), expected, err_msg=f"{seed}")
        assert mine.used == stream.used


@pytest.mark.parametrize("increasing", [0, 1])
@pytest.mark.parametrize("index", range(15))
def test_each_operation_of_randaugment_over_its_whole_range(timm_draws, index, increasing):
    """On a photograph-like image, on one of a single colour, and at every level including the ends."""
    names = (
        timm_data.auto_augment._RAND_INCREASING_TRANSFORMS if increasing else timm_data.auto_augment._RAND_TRANSFORMS
    )
    operations = randaugment.INCREASING if increasing else randaugment.PLAIN
    policy = randaugment.parse("rand-m9", "bicubic", (124, 116, 104))
    params = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    flat = Image.new("RGB", (21, 17), (3, 200, 90))
    for level in np.linspace(0, 10, 21):
        theirs = timm_data.auto_augment.AugmentOp(names[index], prob=1.0, magnitude=level, hparams=params)
        for seed, image in ((0, textured(3, 21, 17)), (1, flat), (2, picture(5, 21, 17))):
            stream, mine = Stream(seed), Stream(seed)
            timm_draws(stream)
            got = run(image, [operations[index].draw(level / 10, Scripted(mine), policy.interpolation)], policy.fill)
            if "Posterize" in names[index] and theirs.level_fn(level, params) == (0,):
                assert not np.asarray(got).any()  # no bit is kept: black, where Pillow 13 stops timm with an error
                continue
            expected = np.asarray(theirs(image))
            np.testing.assert_array_equal(np.asarray(got), expected, err_msg=f"{names[index]} at {level}")
            assert mine.used == stream.used


@pytest.mark.parametrize("auto_augment", [None, "rand-m9-mstd0.5-inc1"])
@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_the_whole_training_transform(timm_draws, auto_augment, interpolation):
    """Crop, flip, RandAugment, normalisation and the erased box, as timm's create_transform makes them."""
    augment = AugmentConfig(auto_augment=auto_augment, interpolation=interpolation, erase_mode="const", erase_prob=0.6)
    config = DataConfig(image_size=32, batch_size=2, augment=augment)
    theirs = timm_data.create_transform(
        32, is_training=True, auto_augment=auto_augment, interpolation=interpolation, color_jitter=None,
        re_prob=0.6, re_mode="const", mean=augment.mean, std=augment.std,
    )  # fmt: skip
    ours = TrainTransform.create(config)
    for seed, size in enumerate([(50, 40), (40, 50), (33, 32), (20, 200), (200, 20), (17, 16)] * 12):
        image, stream, mine = textured(seed, *size), Stream(seed), Stream(seed)
        timm_draws(stream)
        expected = hwc(theirs(image))
        pixels, boxes = ours(image, Scripted(mine))
        assert mine.used == stream.used
        clean = device.normalise(pixels[None], augment)
        got = device.erase(clean, boxes[None], np.zeros((1, 1, 1, 1, 1), np.float32))[0]
        np.testing.assert_allclose(got, expected, atol=1e-6, err_msg=f"{seed}")


def test_random_resized_crop_is_torchvisions_too():
    """torchvision draws from torch; with its crop given to ours, the pixels are equal."""
    from flashjax.data.transforms import resized_crop

    theirs = transforms.RandomResizedCrop(24, interpolation=transforms.InterpolationMode.BICUBIC)
    for seed in range(20):
        image = textured(seed, 60, 45)
        torch.manual_seed(seed)
        crop = theirs.get_params(image, theirs.scale, theirs.ratio)
        torch.manual_seed(seed)
        expected = np.asarray(theirs(image))
        np.testing.assert_array_equal(np.asarray(resized_crop(image, crop, 24, Image.Resampling.BICUBIC)), expected)


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (37, 91), (24, 24), (28, 28), (300, 21), (15, 33)])
@pytest.mark.parametrize("target", [24, 32, 27])
def test_evaluation_transform_is_the_official_one(size, target):
    """The official code: Resize(int(256 / 224 * size)), CenterCrop(size), both by torchvision; or Resize((s, s))."""
    bicubic, image = transforms.InterpolationMode.BICUBIC, textured(0, *size)
    cropped = transforms.Compose(
        [transforms.Resize(int((256 / 224) * target), interpolation=bicubic), transforms.CenterCrop(target)]
    )
    direct = transforms.Resize((target, target), interpolation=bicubic)
    for eval_crop, theirs in ((True, cropped), (False, direct)):
        ours = center_resize(image, target, AugmentConfig(eval_crop=eval_crop))
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs(image)))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("alphas", [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("prob", [1.0, 0.6])
def test_mixup_and_cutmix(timm_draws, mode, alphas, prob):
    """The draws, the mixed pixels and the soft labels."""
    mixup, cutmix = alphas
    config = AugmentConfig(mixup=mixup, cutmix=cutmix, mixup_prob=prob, mixup_mode=mode, label_smoothing=0.1)
    theirs = timm_data.Mixup(
        mixup,
        cutmix,
        prob=prob,
        switch_prob=config.switch_prob,
        mode=mode,
        label_smoothing=0.1,
        num_classes=7,
    )
    rng = np.random.default_rng(0)
    for seed in range(25):
        images = rng.standard_normal((6, 10, 14, 3)).astype(np.float32)
        labels = rng.integers(0, 7, 6)
        stream, mine = Stream(seed), Stream(seed)
        timm_draws(stream)
        expected, expected_target = theirs(
            torch.from_numpy(images.copy()).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
        )
        weight, box = sample_mixing(Scripted(mine), 6, 10, 14, config)
        assert mine.used == stream.used
        np.testing.assert_allclose(device.mix(images, weight, box), hwc(expected), atol=1e-6)
        target = device.soft_labels(labels, weight, 0.1, 7)
        np.testing.assert_allclose(target, expected_target.numpy(), atol=1e-6)


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
@pytest.mark.parametrize("count", [1, 3])
def test_random_erasing(timm_draws, monkeypatch, mode, count):
    """The boxes, and what fills them: timm's noise is cut out of the canvas that the device half would use."""
    config = AugmentConfig(erase_prob=0.7, erase_mode=mode, erase_count=count)
    theirs = timm_data.random_erasing.RandomErasing(0.7, mode=mode, max_count=count, device="cpu")
    rng = np.random.default_rng(0)
    for seed in range(40):
        images = rng.standard_normal((4, 20, 16, 3)).astype(np.float32)
        shape = {"pixel": (4, count, 20, 16, 3), "rand": (4, count, 1, 1, 3), "const": (1, 1, 1, 1, 1)}[mode]
        fill = rng.standard_normal(shape).astype(np.float32) if mode != "const" else np.zeros(shape, np.float32)
        fill = np.broadcast_to(fill, (4, count, 20, 16, 3))
        mine = Stream(seed)
        boxes = np.stack([sample_boxes(Scripted(mine), 20, 16, config) for _ in range(4)])
        filled = iter(
            [(row, slot, *boxes[row, slot]) for row in range(4) for slot in range(count) if boxes[row, slot, 2]]
        )

        def noise(per_pixel, rand_color, patch_size, dtype, device, filled=filled, fill=fill):
            row, slot, top, left, h, w = next(filled)
            patch = fill[row, slot, top : top + h, left : left + w]
            assert patch_size == (3, h, w) and (per_pixel, rand_color) == (mode == "pixel", mode == "rand")
            return torch.from_numpy(patch.copy()).permute(2, 0, 1)

        monkeypatch.setattr("timm.data.random_erasing._get_pixels", noise)
        stream = Stream(seed)
        timm_draws(stream)
        expected = theirs(torch.from_numpy(images.copy()).permute(0, 3, 1, 2).contiguous())
        assert mine.used == stream.used and next(filled, None) is None
        np.testing.assert_array_equal(device.erase(images, boxes, fill), hwc(expected))


def test_smoothed_targets_without_mixing_give_the_label_smoothing_loss():
    """Where nothing is mixed the official code uses LabelSmoothingCrossEntropy: our soft target is the same loss."""
    from timm.loss import LabelSmoothingCrossEntropy

    logits = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
    labels = np.arange(5)
    target = device.soft_labels(labels, np.ones(5, np.float32), 0.1, 9)
    log_probabilities = torch.log_softmax(torch.from_numpy(logits), -1)
    ours = -(np.asarray(target) * log_probabilities.numpy()).sum(-1).mean()
    theirs = LabelSmoothingCrossEntropy(0.1)(torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-6)


def test_normalisation_is_torchvisions():
    image = textured(0, 16, 16)
    config = AugmentConfig()
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(config.mean, config.std)])
    got = device.normalise(np.asarray(image)[None], config)[0]
    np.testing.assert_allclose(got, hwc(theirs(image)), atol=1e-6)


def test_decoding_is_the_official_loaders(tmp_path):
    from torchvision.datasets.folder import pil_loader

    from flashjax.data.transforms import decode

    for mode in ("RGB", "L", "CMYK"):
        path = tmp_path / f"{mode}.jpg"
        textured(0, 70, 50).convert(mode).save(path, quality=90)
        np.testing.assert_array_equal(np.asarray(decode(path.read_bytes())), np.asarray(pil_loader(path)))
    path = tmp_path / "alpha.png"
    textured(0, 70, 50).convert("RGBA").save(path)
    np.testing.assert_array_equal(np.asarray(decode(path.read_bytes())), np.asarray(pil_loader(path)))


def test_fields_default_to_the_official_recipe():
    config = AugmentConfig()
    assert dataclasses.asdict(config) | {
        "crop": "random_resized", "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "hflip": 0.5,
        "auto_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "mixup_prob": 1.0, "switch_prob": 0.5,
        "mixup_mode": "batch", "label_smoothing": 0.1, "erase_prob": 0.25, "erase_mode": "pixel", "erase_count": 1,
        "interpolation": "bicubic", "mean": timm_data.IMAGENET_DEFAULT_MEAN, "std": timm_data.IMAGENET_DEFAULT_STD,
    } == dataclasses.asdict(config)  # fmt: skip
