"""What happens to single images: augmentation, squashing, normalisation."""

import numpy as np
import pytest

from datamodules.image_transforms import MEAN, STD, ImageTransform, OfficialTransform, random_window

STILL = {"flip": 0.0, "jitter": 0.0, "scale": (1.0, 1.0)}


def ramp(height=40, width=60):
    """Rows in the first channel, columns in the second, 7 in the third."""
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns, np.full_like(rows, 7)], -1).astype(np.uint8)


def pixels(planes):
    """(H, W, C) in 0 to 255 of what `ImageTransform` normalised."""
    return (planes.transpose(1, 2, 0) * STD + MEAN) * 255


def test_a_whole_image_is_normalised_alone():
    planes = ImageTransform().whole(ramp())
    assert (planes.shape, planes.dtype) == ((3, 40, 60), np.float32)
    assert np.allclose(pixels(planes), ramp(), atol=1e-3)


def test_a_crop_is_a_part_of_the_image_at_any_place():
    transform = ImageTransform(crop=16, **STILL)
    corners = set()
    for seed in range(60):
        cut = pixels(transform.train(ramp(), np.random.default_rng(seed))).round().astype(int)
        top, left = cut[0, 0, :2]
        assert np.array_equal(cut, ramp()[top : top + 16, left : left + 16])
        corners.add((top, left))
    tops, lefts = zip(*corners, strict=True)
    assert (min(tops) < 4, max(tops) > 20, min(lefts) < 6, max(lefts) > 38) == (True,) * 4


def test_what_a_crop_lacks_is_the_mean_at_any_side():
    transform = ImageTransform(crop=64, **STILL)
    places = set()
    for seed in range(20):
        planes = transform.train(ramp(), np.random.default_rng(seed))
        filled = (planes == 0).all(0)
        assert planes.shape == (3, 64, 64)
        assert filled.sum() == 64 * 64 - 40 * 60
        places.add(tuple(np.argwhere(~filled)[0]))
    assert len(places) > 10


def test_images_grow_as_far_as_the_recipe_says_and_half_are_flipped():
    transform = ImageTransform(crop=200, jitter=0.0)
    heights, flipped = [], []
    for seed in range(150):
        planes = transform.train(ramp(80, 80), np.random.default_rng(seed))
        filled = (planes == 0).all(0)
        heights.append((~filled.all(1)).sum())
        columns = pixels(planes)[..., 1][~filled]
        flipped.append(columns[0] > columns[-1])
    assert 40 <= min(heights) < 44
    assert 156 < max(heights) <= 160
    assert 0.38 < np.mean(flipped) < 0.62


def test_bands_of_a_sensor_keep_their_values():
    bands = np.random.default_rng(0).random((20, 24, 13), np.float32)
    planes = ImageTransform(crop=20, mean=(0.0,), std=(1.0,), vertical_flip=1.0, **STILL).whole(bands)
    assert np.array_equal(planes, bands.transpose(2, 0, 1))
    upside_down = ImageTransform(crop=24, mean=(0.0,), std=(1.0,), vertical_flip=1.0, **STILL)
    planes = upside_down.train(bands[:, :20], np.random.default_rng(0))
    shown = planes[:, ~(planes == 0).all((0, 2))][:, :, ~(planes == 0).all((0, 1))]
    assert np.array_equal(shown, bands[::-1, :20].transpose(2, 0, 1))


def test_the_same_draws_give_the_same_image():
    transform = ImageTransform(crop=24)
    one, again, other = (transform.train(ramp(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("options", [{"crop": 0}, {"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}, {"std": (0.0,)}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match="ImageTransform"):
        ImageTransform(**options)


def test_official_images_are_squashed_to_the_nearest_pixel():
    planes = OfficialTransform((20, 120), "unit").whole(ramp())
    assert np.allclose(planes * 255, ramp()[::2].repeat(2, 1).transpose(2, 0, 1), atol=1e-3)


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        ("bgr", lambda image: (image[..., ::-1] / 255 - MEAN) / STD),
        ("unit", lambda image: image / 255),
        ("maximum", lambda image: image / 59),
        ("band maximum", lambda image: image / (39, 59, 7)),
        ("range", lambda image: image / 59),  # the smallest value is 0
    ],
)
def test_official_normalisations(normalisation, expected):
    planes = OfficialTransform(None, normalisation).whole(ramp())
    assert np.allclose(planes, expected(ramp()).transpose(2, 0, 1), atol=1e-5)
    assert np.isfinite(OfficialTransform(None, normalisation).whole(np.zeros((4, 4, 3), np.uint8))).all()


def test_official_shifts_and_turns_stay_within_their_limits():
    image = np.zeros((101, 101, 3), np.uint8)
    image[50, 46:55] = image[40:61, 50] = 255
    middles, angles = [], []
    for seed in range(100):
        planes = OfficialTransform(None, "unit", affine=1.0).train(image, np.random.default_rng(seed))
        rows, columns = np.nonzero(planes[0] > 0.3)
        middles.append((rows.mean() - 50, columns.mean() - 50))
        angles.append(np.degrees(np.arctan(np.polyfit(rows, columns, 1)[0])))
    assert 4 < np.abs(middles).max() < 6.5
    assert 15 < np.abs(angles).max() < 24
    assert -4 < np.mean(angles) < 4


def test_official_sensors_move_independently():
    tile = np.zeros((64, 64, 15), np.float32)
    tile[30:34, 30:34] = 1.0
    transform = OfficialTransform(None, "unit", affine=1.0, sensors=(13,))
    planes = transform.train(tile, np.random.default_rng(0))
    assert np.array_equal(planes[0], planes[12])
    assert np.array_equal(planes[13], planes[14])
    assert not np.array_equal(planes[0], planes[13])
    assert transform.train(tile[..., :13], np.random.default_rng(0)).shape == (13, 64, 64)


def test_random_windows_fit():
    rng = np.random.default_rng(0)
    rows, columns = random_window((10, 20), (4, 30), rng)
    assert rows.stop - rows.start == 4
    assert columns == slice(0, 20)
    assert {random_window((10, 10), (9, 9), rng)[0].start for _ in range(30)} == {0, 1}
