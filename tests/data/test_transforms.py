"""Decoding and geometry on the host."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from flashjax.data import AugmentConfig, DataConfig
from flashjax.data.examples import generator
from flashjax.data.transforms import TrainTransform, center_resize, decode, sample_crop
from tests.data.helpers import encoded, picture

PLAIN = AugmentConfig(hflip=0, auto_augment=None, erase_prob=0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_every_kind_of_pixel_becomes_rgb(mode, kind):
    if kind == "PNG" and mode in ("CMYK", "I"):
        return  # PNG holds no such pixels
    original = picture(0).convert(mode)
    image = decode(encoded(original, kind))
    assert image.mode == "RGB" and image.size == original.size
    if mode != "I":
        assert (np.asarray(image) == np.asarray(original.convert("RGB"))).all()


def test_sixteen_bit_gray_is_scaled_not_saturated():
    gray = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image = np.asarray(decode(encoded(Image.fromarray(gray), "PNG")))
    assert (image == (gray >> 8).astype(np.uint8)[..., None]).all()


def test_cmyk_jpeg_and_webp_and_gif():
    assert decode(encoded(picture(0).convert("CMYK"))).mode == "RGB"
    assert decode(encoded(picture(0), "WEBP")).size == (40, 32)
    assert decode(encoded(picture(0).convert("P"), "GIF")).mode == "RGB"


def test_exif_rotation_only_if_asked():
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    picture(0, 40, 32).save(buffer, "JPEG", exif=exif)
    assert decode(buffer.getvalue()).size == (40, 32)
    assert decode(buffer.getvalue(), exif_rotate=True).size == (32, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_file_cut_short_is_an_error(kind, share):
    payload = encoded(picture(0, 200, 150), kind)
    with pytest.raises((OSError, SyntaxError)):
        decode(payload[: int(share * len(payload))])


def test_draft_shrinks_a_large_jpeg_only_as_far_as_allowed():
    payload = encoded(picture(0, 400, 300))
    assert decode(payload, draft_size=100).size == (200, 150)
    assert decode(payload, draft_size=200).size == (400, 300)
    assert decode(payload).size == (400, 300)


def test_pixels_come_through_as_gray_or_colour():
    gray = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert (np.asarray(decode(gray)) == gray[..., None]).all()
    colour = np.stack([gray, gray + 1, gray + 2], -1)
    assert (np.asarray(decode(colour)) == colour).all()


def test_random_crops_follow_their_distribution():
    height, width, count = 300, 400, 4000
    rng = np.random.default_rng(0)
    crops = np.array([sample_crop(rng, height, width, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(count)])
    top, left, h, w = crops.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    area, ratio = h * w / (height * width), w / h
    assert area.min() > 0.075 and 0.7 < ratio.min() < ratio.max() < 1.4
    small = area < 0.5  # below that every aspect fits, so nothing is drawn again
    assert abs((area[small] < 0.29).mean() - 0.5) < 0.03, "uniform"
    assert abs(np.log(ratio[small]).mean()) < 0.01, "log-uniform and symmetric"
    assert abs((left[small] / (width - w[small])).mean() - 0.5) < 0.02


@pytest.mark.parametrize("size, expected", [((20, 400), (20, 27)), ((400, 20), (27, 20)), ((30, 30), (30, 30))])
def test_a_crop_that_never_fits_falls_back_to_the_center(size, expected):
    width, height = size
    crop = sample_crop(np.random.default_rng(0), height, width, (3.0, 4.0), (3 / 4, 4 / 3))
    top, left, h, w = crop
    assert (w, h) == expected and (top, left) == ((height - h) // 2, (width - w) // 2)


@pytest.mark.parametrize("size", [(40, 32), (32, 40), (31, 33), (500, 20)])
def test_evaluation_resizes_and_crops_to_the_square(size):
    image = picture(1, *size)
    for config in (AugmentConfig(), AugmentConfig(eval_crop=False)):
        assert center_resize(image, 24, config).size == (24, 24)


def test_the_pad_crop_shifts_by_up_to_pad_and_fills_with_black():
    config = DataConfig(
        dataset="digits", image_size=8, batch_size=2, augment=dataclasses.replace(PLAIN, crop="pad", pad=2)
    )
    transform = TrainTransform.create(config)
    image = Image.fromarray(np.full((8, 8, 3), 255, np.uint8))
    shifts = set()
    for index in range(400):
        pixels, boxes = transform(image, generator(0, 1, index))
        rows, columns = np.flatnonzero(pixels[:, :, 0].any(1)), np.flatnonzero(pixels[:, :, 0].any(0))
        shifts.add((rows[0] - (7 - rows[-1]), columns[0] - (7 - columns[-1])))
        assert pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].min() == 255 and not boxes.any()
    assert shifts == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_the_training_transform_depends_on_its_generator_alone():
    transform = TrainTransform.create(DataConfig(image_size=24))
    image = picture(2, 60, 50)
    (one, boxes), (again, boxes_again) = (transform(image, generator(0, 1, 5)) for _ in range(2))
    assert one.shape == (24, 24, 3) and one.dtype == np.uint8
    assert (one == again).all() and (boxes == boxes_again).all()
    assert (transform(image, generator(0, 1, 6))[0] != one).any()


def test_flips_happen_half_of_the_time():
    config = DataConfig(image_size=8, augment=dataclasses.replace(PLAIN, crop="center", eval_crop=False, hflip=0.5))
    transform = TrainTransform.create(config)
    image = picture(3, 8, 8)
    pixels = np.asarray(image)
    flipped = [bool((transform(image, generator(0, 1, i))[0] == pixels[:, ::-1]).all()) for i in range(1000)]
    assert abs(np.mean(flipped) - 0.5) < 0.05


def test_neighbouring_generators_are_independent():
    draws = np.array([generator(0, 1, index).random(4) for index in range(2000)])
    assert abs(draws.mean() - 0.5) < 0.02 and len(np.unique(draws)) == draws.size
    assert np.abs(np.corrcoef(draws[:-1].T, draws[1:].T) - np.eye(8)).max() < 0.08
    assert generator(1, 1, 0).random() != generator(0, 1, 0).random() != generator(0, 2, 0).random()
