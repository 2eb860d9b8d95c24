"""Random Erasing and its family equal torchvision's and timm's under the same draws, pixel by pixel.

What the other side draws is put in its hands: erasing by one table of uniform numbers (ours draws all attempts at once,
theirs one after another), the policies by one stream of numbers that both sides read in the same order.
"""

import math
import random

import numpy as np
import pytest
from PIL import Image

from flashjax.data import augment
from flashjax.data.augment import operations, policies
from flashjax.data.augment.erasing import Erasing
from flashjax.data.augment.mixing import Mixing
from tests.parity.test_augment import Scripted, Stream, hwc, textured, timm_draws  # noqa: F401

torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
timm_data = pytest.importorskip("timm.data", reason="the extra `parity` is not installed")
v2 = pytest.importorskip("torchvision.transforms.v2", reason="the extra `parity` is not installed")
vision = v2.functional


class Table:
    """The uniform numbers of `RandomErasing.draw` for one image, in the order in which it asks for them: a coin, the
    count, (area, aspect) of each attempt at each box, (top, left) of each box."""

    def __init__(self, seed: int, boxes: int, attempts: int):
        rng = np.random.default_rng(seed)
        self.coin, self.count = rng.random(2)
        self.sizes, self.places = rng.random((boxes, attempts, 2)), rng.random((boxes, 1, 2))
        self._left = [self.coin, self.count, self.sizes, self.places]

    def random(self, shape):
        made = np.asarray(self._left.pop(0))
        assert made.shape == tuple(shape)
        return made

    def integers(self, low, high, size, dtype):
        return np.zeros(size, dtype)

    def one_by_one(self):
        """(size, place) for a reader that asks attempt by attempt: `size` gives the next area or aspect, `place` the
        next coordinate, after which the next box begins."""
        state = {"box": 0, "size": 0, "place": 0}

        def size() -> float:
            if state["size"] == 2 * self.sizes.shape[1]:  # nothing fitted: on to the next box
                state.update(box=state["box"] + 1, size=0, place=0)
            value = self.sizes[state["box"]].ravel()[state["size"]]
            state["size"] += 1
            return float(value)

        def place() -> float:
            value = self.places[state["box"], 0, state["place"]]
            state["place"] += 1
            if state["place"] == 2:
                state.update(box=state["box"] + 1, size=0, place=0)
            return float(value)

        return size, place


SHAPES = [(20, 16), (17, 40), (9, 9)]


@pytest.mark.parametrize("value", [0.0, (0.3, -0.2, 0.7), "random"])
@pytest.mark.parametrize("scale, ratio", [((0.02, 0.33), (0.3, 3.3)), ((0.5, 0.95), (0.3, 3.3)), ((0.1, 0.1), (1, 1))])
def test_random_erasing_is_torchvisions(monkeypatch, value, scale, ratio):
    fields = {"fill": "value", "value": value} if value != "random" else {"fill": "pixel"}
    ours = augment.create("random_erasing", "torchvision", prob=0.8, area=scale, aspect=ratio, **fields)
    theirs = v2.RandomErasing(0.8, scale, ratio, value)
    # The limits of the aspect as doubles, as ours are.
    theirs._log_ratio = torch.log(torch.tensor(ratio, dtype=torch.float64))
    outcomes = set()
    for seed in range(60):
        height, width = SHAPES[seed % 3]
        image = np.random.default_rng(seed).standard_normal((height, width, 3)).astype(np.float32)
        table = Table(seed, 1, 10)
        draws = ours.draw(table, image.shape)
        size, place = table.one_by_one()
        monkeypatch.setattr(torch, "rand", lambda *shape, table=table: torch.tensor([table.coin], dtype=torch.float64))
        monkeypatch.setattr(
            torch.Tensor,
            "uniform_",
            lambda self, low, high, size=size: torch.tensor(
                [float(low) + (float(high) - float(low)) * size()], dtype=torch.float64
            ),
        )
        monkeypatch.setattr(torch, "randint", lambda low, high, size, place=place: torch.tensor([int(place() * high)]))
        top, left, h, w = draws.boxes[0]
        noise = ours.apply(image, draws)[top : top + h, left : left + w]
        monkeypatch.setattr(
            torch.Tensor, "normal_", lambda self, noise=noise: torch.from_numpy(noise.copy()).permute(2, 0, 1)
        )
        expected = hwc(theirs(torch.from_numpy(image).permute(2, 0, 1).contiguous()))
        np.testing.assert_array_equal(ours.apply(image, draws), expected, err_msg=f"{seed}")
        outcomes.add(bool(h > 0))
    assert outcomes == {True, False}


@pytest.mark.parametrize("count", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_random_erasing_is_timms(monkeypatch, count, mode):
    fill = {"const": {}, "rand": {"fill": "channel"}, "pixel": {"fill": "pixel"}}[mode]
    ours = augment.create("random_erasing", "timm", prob=0.8, area=(0.02, 0.9), count=count, **fill)
    theirs = timm_data.random_erasing.RandomErasing(
        0.8, max_area=0.9, mode=mode, min_count=count[0], max_count=count[1], device="cpu"
    )
    erased = 0
    for seed in range(40):
        height, width = SHAPES[seed % 3]
        image = np.random.default_rng(seed).standard_normal((height, width, 3)).astype(np.float32)
        table = Table(seed, count[1], 10)
        draws = ours.draw(table, image.shape)
        size, place = table.one_by_one()
        asked = iter([table.count] if count[0] != count[1] else [])

        def randint(low, high, asked=asked, place=place):
            unit = next(asked, None)
            return low + int((place() if unit is None else unit) * (high - low + 1))

        monkeypatch.setattr(random, "random", lambda table=table: table.coin)
        monkeypatch.setattr(random, "uniform", lambda low, high, size=size: low + (high - low) * size())
        monkeypatch.setattr(random, "randint", randint)
        used = iter([slot for slot in range(count[1]) if draws.boxes[slot, 2]])

        def noise(per_pixel, rand_color, patch_size, dtype, device, used=used, draws=draws, image=image):
            slot = next(used)
            top, left, h, w = draws.boxes[slot]
            alone = ours.apply(image, Erasing(draws.boxes[slot : slot + 1], draws.key[slot : slot + 1]))
            assert patch_size == (3, h, w)
            return torch.from_numpy(alone[top : top + h, left : left + w].copy()).permute(2, 0, 1)

        monkeypatch.setattr("timm.data.random_erasing._get_pixels", noise)
        expected = hwc(theirs(torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous()))
        np.testing.assert_array_equal(ours.apply(image, draws), expected, err_msg=f"{seed}")
        assert next(used, None) is None
        erased += bool(draws.boxes[:, 2].any())
    assert 20 < erased < 40


def test_the_papers_code_is_its_loop():
    """The official loop for one image, written from its description, over the same numbers: the paper's preset."""
    ours = augment.create("random_erasing", "official")
    for seed in range(200):
        height, width = SHAPES[seed % 3]
        table = Table(seed, 1, 100)
        (box,) = ours.draw(table, (height, width, 3)).boxes
        expected = (0, 0, 0, 0)
        if table.coin <= 0.5:
            for area, aspect in table.sizes[0]:
                area, aspect = (0.02 + 0.38 * area) * height * width, 0.3 + (1 / 0.3 - 0.3) * aspect
                h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if w < width and h < height:
                    top, left = table.places[0, 0] * (height - h + 1, width - w + 1)
                    expected = int(top), int(left), h, w
                    break
        assert tuple(box) == expected


@pytest.mark.parametrize("seed", range(6))
def test_mixup_and_cutmix_are_torchvisions(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    images, labels = rng.standard_normal((5, 11, 14, 3)).astype(np.float32), rng.integers(0, 4, 5)
    lam, place = rng.random(), rng.random(2)
    targets = np.eye(4, dtype=np.float32)[labels]
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    for name, theirs in (("mixup", v2.MixUp(num_classes=4)), ("cutmix", v2.CutMix(num_classes=4))):
        monkeypatch.setattr(
            theirs,
            "_dist",
            type("Known", (), {"sample": staticmethod(lambda shape: torch.tensor(lam, dtype=torch.float64))}),
        )
        units = iter(place[::-1])  # theirs asks for x first
        monkeypatch.setattr(torch, "randint", lambda high, size, units=units: torch.tensor([int(next(units) * high)]))
        expected, expected_targets = theirs(*tensors)

        class Known:
            def __init__(self):
                self.left = [np.zeros(1), place[None]]

            def random(self, shape):
                return self.left.pop(0).reshape(shape)

            def beta(self, a, b, size):
                return np.full(size, lam)

        got, got_targets = augment.create(name, "torchvision")(Known(), images, targets)
        np.testing.assert_array_equal(got, hwc(expected), err_msg=name)
        np.testing.assert_array_equal(got_targets, expected_targets.numpy(), err_msg=name)


@pytest.mark.parametrize("seed", range(6))
def test_mixup_and_cutmix_are_timms(seed):
    """The mixed pixels and the box, by timm's own functions under one weight."""
    from timm.data.mixup import Mixup, cutmix_bbox_and_lam

    rng = np.random.default_rng(seed)
    images, lam = rng.standard_normal((4, 11, 14, 3)).astype(np.float32), rng.random()
    ours, tensor = augment.create("mixup", "swin"), torch.from_numpy(images.copy()).permute(0, 3, 1, 2).contiguous()
    theirs = Mixup(0.8, num_classes=4)
    theirs._params_per_batch = lambda: (lam, False)
    theirs._mix_batch(tensor)
    np.testing.assert_array_equal(ours.apply(images, Mixing(np.full(4, lam), np.zeros((4, 4), np.int32))), hwc(tensor))

    class Known:
        def __init__(self):
            self.left = [np.zeros(1), np.array([[0.3, 0.8]])]

        def random(self, shape):
            return self.left.pop(0).reshape(shape)

        def beta(self, a, b, size):
            return np.full(size, lam)

    draws = augment.create("cutmix", "timm").draw(Known(), images.shape)
    state = iter([int(0.3 * 11), int(0.8 * 14)])
    original, np.random.randint = np.random.randint, lambda low, high, size=None: next(state)
    try:
        box, weight = cutmix_bbox_and_lam((4, 3, 11, 14), lam)
    finally:
        np.random.randint = original
    assert tuple(draws.box[0]) == tuple(box) and draws.weight[0] == weight


class Torch:
    """Makes torchvision draw from a stream; `size=()` draws are scalars."""

    def __init__(self, monkeypatch):
        self.patch = monkeypatch

    def feed(self, stream: Stream) -> None:
        def randint(*bounds, size=(), **_):
            *bounds, size = (*bounds, size) if not isinstance(bounds[-1], tuple) else bounds
            low, high = bounds if len(bounds) == 2 else (0, bounds[0])
            return torch.tensor(stream.below(low, high)).reshape(size)

        self.patch.setattr(
            torch, "randint", lambda *a, low=None, high=None, size=(): randint(*(a or (low, high)), size=size)
        )
        self.patch.setattr(torch, "rand", lambda size: torch.tensor(stream.unit(), dtype=torch.float64))


@pytest.fixture
def torch_draws(monkeypatch):
    return Torch(monkeypatch).feed


def equal_over_seeds(ours, theirs, feed, seeds=80):
    for seed in range(seeds):
        image = textured(seed, *((30, 26), (24, 33))[seed % 2])
        if seed % 5 == 4:
            image = image.convert("L")
        stream, mine = Stream(seed), Stream(seed)
        feed(stream)
        expected = np.asarray(theirs(image))
        np.testing.assert_array_equal(np.asarray(ours(Scripted(mine), image)), expected, err_msg=f"{seed}")
        assert mine.used == stream.used


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
def test_autoaugment_is_torchvisions(torch_draws, policy):
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy(policy))
    assert [[tuple(rule) for rule in pair] for pair in theirs._policies] == [
        [(name, p, m if policies.AUTO[name] else None) for name, p, m in pair] for pair in policies.POLICIES[policy]
    ]
    equal_over_seeds(augment.create("auto_augment", policy=policy), theirs, torch_draws)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_randaugment_is_torchvisions(torch_draws, interpolation):
    theirs = v2.RandAugment(num_ops=3, magnitude=13, interpolation=v2.InterpolationMode(interpolation))
    ours = augment.create("rand_augment", "torchvision", num_ops=3, magnitude=13, interpolation=interpolation)
    equal_over_seeds(ours, theirs, torch_draws)


def test_trivialaugment_is_torchvisions(torch_draws):
    equal_over_seeds(augment.create("trivial_augment"), v2.TrivialAugmentWide(), torch_draws, 250)


SPACES = [
    ("AUTO", v2.AutoAugment._AUGMENTATION_SPACE, 10),
    ("RAND", v2.RandAugment._AUGMENTATION_SPACE, 31),
    ("WIDE", v2.TrivialAugmentWide._AUGMENTATION_SPACE, 31),
    ("MIX_ALL", v2.AugMix._AUGMENTATION_SPACE, 10),
    ("MIX_PART", v2.AugMix._PARTIAL_AUGMENTATION_SPACE, 10),
]


@pytest.mark.parametrize("name, theirs, bins", SPACES, ids=[name for name, *_ in SPACES])
def test_magnitudes_are_torchvisions_bit_for_bit(name, theirs, bins):
    ours = getattr(policies, name)
    assert list(ours) == list(theirs) or name == "AUTO"
    for operation, (magnitudes, signed) in theirs.items():
        expected = magnitudes(bins, 37, 53)
        if expected is None:
            assert ours[operation] is None
            continue
        np.testing.assert_array_equal(ours[operation](bins, 37, 53), expected.numpy(), err_msg=operation)
        assert signed == (operation in policies._SIGNED)


@pytest.mark.parametrize("operation", sorted(v2.AutoAugment._AUGMENTATION_SPACE))
def test_each_operation_is_torchvisions(operation):
    """On Pillow images, over all magnitudes of the widest space, both ways."""
    wide = policies.WIDE.get(operation)
    magnitudes = wide(31, 26, 30)[::3] if wide else [0.0]
    step, amount = policies._STEPS[operation]
    transform = v2.RandAugment(fill=(9, 200, 30))
    for image in (textured(1, 30, 26), Image.new("RGB", (12, 9), (3, 200, 90))):
        for magnitude in magnitudes:
            for sign in (1, -1) if operation in policies._SIGNED else (1,):
                m = sign * float(magnitude)
                expected = transform._apply_image_or_video_transform(
                    image, operation, m, v2.InterpolationMode.NEAREST, transform._fill
                )
                drawn = operations.Step(step, amount(m) if amount and wide else None)
                got = operations.run(image, (drawn,), (9, 200, 30))
                np.testing.assert_array_equal(np.asarray(got), np.asarray(expected), err_msg=f"{operation} {m}")


def shares(stream, count):
    """What both sides get for a draw from Dirichlet's distribution."""
    made = np.array([stream.unit() for _ in range(count)])
    return made / made.sum()


class Chained(Scripted):
    def dirichlet(self, alphas):
        return shares(self.stream, len(alphas))


@pytest.mark.parametrize("all_ops", [True, False])
def test_augmix_is_torchvisions(torch_draws, monkeypatch, all_ops):
    """Its chains and its mixture. torchvision turns a Pillow image into a tensor first; its operations, which are
    compared above, are led back to Pillow here."""
    theirs = v2.AugMix(all_ops=all_ops, severity=5)
    ours = augment.create("aug_mix", all_ops=all_ops, severity=5)
    apply = v2.AugMix._apply_image_or_video_transform

    def by_pillow(self, image, *rest, **options):
        (pixels,) = image
        made = apply(self, Image.fromarray(pixels.permute(1, 2, 0).numpy()), *rest, **options)
        return torch.from_numpy(np.array(made)).permute(2, 0, 1)[None]

    monkeypatch.setattr(v2.AugMix, "_apply_image_or_video_transform", by_pillow)

    for seed in range(30):
        image, stream, mine = textured(seed, 30, 26), Stream(seed), Stream(seed)
        torch_draws(stream)
        monkeypatch.setattr(
            theirs,
            "_sample_dirichlet",
            lambda params, stream=stream: torch.tensor(shares(stream, params.shape[-1])[None], dtype=torch.float32),
        )
        expected = np.asarray(theirs(image))
        np.testing.assert_array_equal(np.asarray(ours(Chained(mine), image)), expected, err_msg=f"{seed}")
        assert mine.used == stream.used


@pytest.mark.parametrize("text", ["augmix", "augmix-m5-w4-d2", "augmix-mstd0.5"])
def test_augmix_is_timms(timm_draws, monkeypatch, text):  # noqa: F811
    params = {"translate_const": 10, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    theirs = timm_data.auto_augment.augment_and_mix_transform(text, dict(params))
    ours = policies.parse(text, "bicubic", (124, 116, 104))

    for seed in range(30):
        image, stream, mine = textured(seed, 30, 26), Stream(seed), Stream(seed)
        timm_draws(stream)
        monkeypatch.setattr(np.random, "dirichlet", lambda alphas, stream=stream: shares(stream, len(alphas)))
        monkeypatch.setattr(
            np.random,
            "choice",
            lambda values, size, replace, stream=stream: [values[stream.below(0, len(values))] for _ in range(size)],
        )
        expected = np.asarray(theirs(image))
        np.testing.assert_array_equal(np.asarray(ours(Chained(mine), image)), expected, err_msg=f"{seed}")
        assert mine.used == stream.used


@pytest.mark.parametrize("policy", ["original", "originalr", "v0", "v0r"])
@pytest.mark.parametrize("std", ["", "-mstd0.5"])
def test_autoaugment_is_timms(timm_draws, policy, std):  # noqa: F811
    params = {"translate_const": 10, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    theirs = timm_data.auto_augment.auto_augment_transform(policy + std, dict(params))
    ours = policies.parse(policy + std, "bicubic", (124, 116, 104))
    for seed in range(50):
        image, stream, mine = textured(seed, 30, 26), Stream(seed), Stream(seed)
        timm_draws(stream)
        try:
            expected = np.asarray(theirs(image))
        except ValueError:  # no bit is kept: black in the official code, where Pillow 13 stops timm
            continue
        np.testing.assert_array_equal(np.asarray(ours(Scripted(mine), image)), expected, err_msg=f"{seed}")
        assert mine.used == stream.used
