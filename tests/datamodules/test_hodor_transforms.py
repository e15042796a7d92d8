"""HODOR's augmentation: sizes, which motions there are, that objects stay in the first frame, what is filled in."""

import math

import cv2
import numpy as np
import pytest

from datamodules import hodor_transforms
from datamodules.hodor_transforms import PseudoVideoTransform, WholeFrameTransform, large_objects
from datamodules.transforms import MEAN_COLOUR

SMALL = {"short_side": 96, "long_side": 160, "min_pixels": 100, "min_side": 5}


def clip(length=3, size=(60, 90)):
    """A still clip: a red square, object 1, and a blue one, object 2, on dark noise."""
    frame = np.random.default_rng(0).integers(30, 60, (*size, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[20:40, 20:40], mask[10:30, 60:80] = 1, 2
    frame[mask == 1], frame[mask == 2] = (240, 20, 20), (20, 20, 240)
    return np.stack([frame] * length), np.stack([mask] * length)


@pytest.fixture
def motions(monkeypatch):
    """How the first frames of the next clips are moved before they are resized, and whether they are flipped."""
    drawn, plain = [], hodor_transforms.warped

    def noted(pixels, matrix, method, fill, size=None):
        if pixels.ndim == 3:
            height, width = pixels.shape[:2]
            down, right = size[0] / height, size[1] / width
            scaling = np.array([[right, 0, (right - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]])
            flip = np.array([[-1, 0, size[1] - 1], [0, 1, 0], [0, 0, 1]])
            is_flipped = np.linalg.det(matrix) < 0
            drawn.append((np.linalg.inv(flip @ scaling if is_flipped else scaling) @ matrix, is_flipped))
        return plain(pixels, matrix, method, fill, size)

    monkeypatch.setattr(hodor_transforms, "warped", noted)
    return drawn


@pytest.mark.parametrize(
    ("before", "sides", "after"),
    [
        ((480, 854), (576, 1200), (576, 1056)),
        ((854, 480), (576, 1200), (1056, 576)),
        ((480, 1280), (576, 1200), (480, 1216)),  # 450 x 1200
        ((97, 128), (96, 160), (96, 128)),
        ((60, 200), (96, 160), (64, 160)),  # 48 x 160
    ],
)
def test_the_short_side_is_so_long_unless_the_long_one_would_be_longer(before, sides, after):
    transform = WholeFrameTransform(short_side=sides[0], long_side=sides[1], min_pixels=1, min_side=1)
    frames, masks = transform(*clip(2, before), np.random.default_rng(0))
    assert frames.shape == (2, *after, 3)
    assert masks.shape == (2, *after)
    assert frames.dtype == masks.dtype == np.uint8


@pytest.mark.parametrize("seed", range(12))
def test_masks_follow_their_frames_and_all_move_alike(seed):
    frames, masks = WholeFrameTransform(**SMALL)(*clip(), np.random.default_rng(seed))
    assert (masks == masks[:1]).all()
    for frame in frames.astype(int):
        red, green, blue = np.moveaxis(frame, -1, 0)
        seen = np.where(red - np.maximum(green, blue) > 60, 1, np.where(blue - np.maximum(green, red) > 60, 2, 0))
        assert (seen != masks[0]).mean() < 0.02


def test_motions_have_the_published_shares_and_ranges(motions):
    transform = WholeFrameTransform(**SMALL | {"min_pixels": 10})
    crops, angles, leans, inwards = [], [], [], []
    middle = np.zeros((60, 90), np.uint8)
    middle[28:32, 43:47] = 1  # stays in sight wherever frames go
    frames, _ = clip(1)
    for seed in range(400):
        transform(frames, np.stack([middle]), np.random.default_rng(seed))
    for matrix, _ in motions:
        if abs(matrix[2, :2]).max() > 1e-12:
            corner = np.linalg.inv(matrix) @ [0, 0, 1]
            inwards.append(corner[:2] / corner[2] / (89, 59))
        elif abs(matrix[1, 0]) < 1e-9:
            crops.append(round(1 / matrix[0, 0], 4))
        else:
            angles.append(math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])))
            leans.append(math.degrees(math.atan(matrix[0, 0] * matrix[0, 1] + matrix[1, 0] * matrix[1, 1])))
    assert 160 < len(crops) < 240
    assert set(crops) == {0.6}  # the first that is tried has it
    assert len(angles) == pytest.approx(100, abs=35)
    assert 18 < np.abs(angles).max() <= 20
    assert 9 < np.abs(leans).max() <= 10
    assert np.sqrt(np.square(inwards).mean()) == pytest.approx(0.09, abs=0.015)
    assert 160 < sum(is_flipped for _, is_flipped in motions) < 240


def test_objects_stay_in_the_first_frame(motions):
    """Those near the corners are lost by many motions that are drawn."""
    mask = np.zeros((60, 90), np.uint8)
    mask[:20, :20], mask[44:, 70:] = 1, 2
    frames, _ = clip(2)
    moving = np.stack([mask, np.zeros_like(mask)])
    still = 0
    for seed in range(150):
        motions.clear()
        WholeFrameTransform(**SMALL)(frames, moving, np.random.default_rng(seed))
        matrix = motions[0][0]
        still += np.allclose(matrix, np.eye(3))
        seen = cv2.warpPerspective(mask, matrix, (90, 60), flags=cv2.INTER_NEAREST)
        enlarged = matrix[0, 0] ** 2 if abs(matrix[1, 0]) < 1e-9 else 1  # crops are judged before they are
        for number in (1, 2):
            kept = np.count_nonzero(seen == number) / enlarged
            assert kept > 0.48 * np.count_nonzero(mask == number)
            assert kept > 96
    assert 60 < still < 145  # no crop holds both


def test_what_has_no_source_is_the_mean_colour_and_background():
    frames, masks = np.full((2, 70, 90, 3), (250, 250, 0), np.uint8), np.ones((2, 70, 90), np.uint8)
    moved, filled = 0, 0
    for seed in range(40):
        images, labels = WholeFrameTransform(**SMALL)(frames, masks, np.random.default_rng(seed))
        assert images.shape == (2, 96, 128, 3)  # of 96 x 123
        assert (images[:, :, 123:] == MEAN_COLOUR).all()
        assert not labels[:, :, 123:].any()
        empty = labels[:, :, :123] == 0
        inner = cv2.erode(empty[0].astype(np.uint8), np.ones((5, 5), np.uint8)) > 0  # all but the seam
        assert (images[:, :, :123][:, inner] == MEAN_COLOUR).all()
        moved += empty.any()
        filled += inner.sum()
    assert 3 < moved < 19  # the affine quarter: perspectives enlarge
    assert filled > 3000


@pytest.mark.parametrize(("colour", "alike"), [("clip", True), ("frame", False)])
def test_colours_are_drawn_for_the_clip_or_for_each_frame(colour, alike):
    frames, masks = np.full((3, 96, 128, 3), 128, np.uint8), np.ones((3, 96, 128), np.uint8)
    found = []
    for seed in range(80):
        images, _ = WholeFrameTransform(**SMALL, colour=colour)(frames, masks, np.random.default_rng(seed))
        means = images[:, 40:60, 50:70].max(axis=(1, 2, 3)).astype(int) - 128
        found.append(means)
    spread = np.ptp(found, axis=1)
    assert spread.max() == 0 if alike else np.median(spread) > 10
    assert -21 <= np.min(found) < -15
    assert 15 < np.max(found) <= 28  # more saturation makes grey a little brighter


def test_small_objects_are_background():
    labels = np.zeros((60, 90), np.uint8)
    labels[5:15, 5:15], labels[20:29, 20:30], labels[40:45, 10:60] = 3, 4, 255
    labels[50:, 50:] = 200
    assert set(np.unique(large_objects(labels, 100, 1))) == {0, 3, 200, 255}
    assert set(np.unique(large_objects(labels, 100, 6))) == {0, 3, 200}
    assert set(np.unique(large_objects(labels, 101, 6))) == {0, 200}
    assert np.array_equal(large_objects(labels, 0, 0), labels)
    for transform in (WholeFrameTransform(**SMALL), PseudoVideoTransform(area=6000, min_pixels=100, min_side=5)):
        frames, masks = clip(2)
        masks[0, 50:58, 2:10] = 7
        assert set(np.unique(transform(frames, masks, np.random.default_rng(1))[1][0])) == {0, 1, 2}


@pytest.mark.parametrize("motion", ["hodor", "rotation"])
def test_a_frame_becomes_a_clip_of_an_area(motion):
    transform = PseudoVideoTransform(motion=motion, area=9600, min_pixels=100, min_side=5)
    frames, masks = clip(4)
    masks[1:] = 255  # the masks of the others follow from the first
    moved = 0
    for seed in range(10):
        images, labels = transform(frames, masks, np.random.default_rng(seed))
        assert images.shape == (4, 96, 128, 3)  # of 80 x 120
        assert (images[:, 80:] == MEAN_COLOUR).all()
        assert (images[:, :, 120:] == MEAN_COLOUR).all()
        assert not labels[:, 80:].any()
        assert set(np.unique(labels[0])) == {0, 1, 2}
        assert set(np.unique(labels)) == {0, 1, 2}
        moved += (labels[1] != labels[0]).any()
        again = transform(frames, masks, np.random.default_rng(seed))
        assert all(np.array_equal(one, other) for one, other in zip((images, labels), again, strict=True))
    assert moved > 7


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (WholeFrameTransform, {"short_side": 0}),
        (WholeFrameTransform, {"short_side": 100, "long_side": 99}),
        (PseudoVideoTransform, {"area": 0}),
    ],
)
def test_impossible_settings_are_refused(make, options):
    with pytest.raises(ValueError, match=make.__name__):
        make(**options)
