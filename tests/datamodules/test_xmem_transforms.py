"""XMem's augmentation: what the frames of a clip share, what each has of its own, and that an object stays."""

import numpy as np
import pytest

from datamodules.transforms import MEAN_COLOUR
from datamodules.xmem_transforms import ResizedCropTransform

STILL = {"rotation": 0.0, "shear": 0.0}


def clip(length=4, size=(60, 80)):
    """A still clip: a red square, object 2, on dark noise."""
    frame = np.random.default_rng(0).integers(0, 60, (*size, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[20:44, 30:54] = 2
    frame[mask > 0] = (250, 0, 0)
    return np.stack([frame] * length), np.stack([mask] * length)


def corners(length, top_left, size=(120, 160)):
    """A clip whose pixels say where they are from: red the column, green the row; object 1 in one corner."""
    rows, columns = np.indices(size)
    frame = np.stack([columns, rows, np.full(size, 40)], axis=2).astype(np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[: top_left[0], : top_left[1]] = 1
    return np.stack([frame] * length), np.stack([mask] * length)


@pytest.mark.parametrize("size", [(60, 80), (90, 50), (40, 40)])
def test_the_result_is_a_square_of_the_same_clip(size):
    frames, masks = ResizedCropTransform(crop=48)(*clip(3, size), np.random.default_rng(1))
    assert (frames.shape, frames.dtype) == ((3, 48, 48, 3), np.uint8)
    assert (masks.shape, masks.dtype) == ((3, 48, 48), np.uint8)
    assert set(np.unique(masks)) == {0, 2}


@pytest.mark.parametrize("seed", range(8))
def test_masks_follow_their_frames(seed):
    frames, masks = ResizedCropTransform(crop=96)(*clip(), np.random.default_rng(seed))
    red, green = frames[..., 0].astype(int), frames[..., 1].astype(int)
    is_grey = (red == green).all()  # then the square is the brightest but for what is filled in
    found = (red > 65) & (red < 100) if is_grey else (red > 160) & (green < 80)
    # Bilinear against nearest differ along the outline alone.
    assert (found != (masks == 2)).mean() < 0.03


@pytest.mark.parametrize("seed", range(4))
def test_without_rotation_and_shear_frames_differ_by_a_faint_jitter_alone(seed):
    frames, masks = ResizedCropTransform(crop=48, **STILL)(*clip(6), np.random.default_rng(seed))
    assert (masks == masks[:1]).all()
    difference = np.abs(frames.astype(int) - frames[:1])
    assert 0 < difference.max() < 10  # twice 1 % of brightness, contrast and saturation each


def test_each_frame_turns_and_leans_by_itself():
    frames, masks = ResizedCropTransform(crop=96, area=(1.0, 1.0))(*clip(8), np.random.default_rng(0))
    assert len({mask.tobytes() for mask in masks}) == 8
    assert len({frame.tobytes() for frame in frames}) == 8


@pytest.mark.parametrize(
    ("motion", "least", "most"),
    [({"rotation": 15.0, "shear": 0.0}, 13, 15.8), ({"rotation": 0.0, "shear": 10.0}, 8, 10.8)],
)
def test_how_far_a_frame_turns_or_leans(motion, least, most):
    """By the slant of an upright edge; a level one slants when the frame turns, and stays when it leans."""
    mask = np.zeros((200, 200), np.uint8)
    mask[50:150, 50:150] = 1
    transform = ResizedCropTransform(crop=200, area=(1.0, 1.0), **motion)
    upright, level = [], []
    for seed in range(12):
        _, masks = transform(np.zeros((6, 200, 200, 3), np.uint8), np.stack([mask] * 6), np.random.default_rng(seed))
        for one in masks:
            upright.append(slant(one))
            level.append(slant(one.T))
    assert least < max(upright) < most
    assert -most < min(upright) < -least
    assert (max(np.abs(level)) > least) == (motion["rotation"] > 0)


def slant(mask):
    """Degrees by which the left edge of a square leans, from its middle rows."""
    rows = np.arange(80, 121)
    edge = [np.flatnonzero(mask[row])[0] for row in rows]
    return np.degrees(np.arctan(np.polyfit(rows, edge, 1)[0]))


def test_the_share_and_the_shape_of_crops():
    transform = ResizedCropTransform(crop=100, **STILL)
    shares, shapes, flips = [], [], 0
    for seed in range(150):
        frames, _ = transform(*corners(1, (120, 160)), np.random.default_rng(seed))
        image = frames[0].astype(float)
        if np.ptp(image[..., :2] - image[..., 1:]) < 1:
            continue  # grey
        # Jitter changes values by up to a tenth, so both sides are compared with what they should be.
        wide, high = (image[50, -1, 0] - image[50, 0, 0]), image[-1, 50, 1] - image[0, 50, 1]
        flips += wide < 0
        shares.append(abs(wide) * high / (120 * 160))
        shapes.append(abs(wide) / high)
    assert 0.25 < min(shares) < 0.45
    assert 0.75 < max(shares) < 1.25
    assert 0.70 < min(shapes) < 0.85
    assert 1.2 < max(shapes) < 1.42
    assert 0.35 * len(shares) < flips < 0.65 * len(shares)


def test_colours_of_the_clip_are_shared_and_sometimes_grey():
    frames, masks = np.full((3, 40, 40, 3), (160, 120, 80), np.uint8), np.ones((3, 40, 40), np.uint8)
    brightness, greys = [], 0
    for seed in range(200):
        images, _ = ResizedCropTransform(crop=20, **STILL)(frames, masks, np.random.default_rng(seed))
        is_grey = (images == images[..., :1]).all(axis=(1, 2, 3))
        assert is_grey.all() == is_grey.any()  # all frames or none
        greys += is_grey.all()
        means = images.mean(axis=(1, 2, 3))
        assert np.ptp(means) < 5
        brightness.append(means.mean() / 120)
    assert 2 <= greys <= 22  # 5 %
    assert 0.86 < min(brightness) < 0.93
    assert 1.07 < max(brightness) < 1.14


def test_what_has_no_source_is_of_the_mean_colour_and_background():
    frames, masks = np.full((6, 60, 60, 3), (250, 250, 0), np.uint8), np.ones((6, 60, 60), np.uint8)
    images, labels = ResizedCropTransform(crop=60)(frames, masks, np.random.default_rng(2))
    filled = np.abs(images.astype(int) - MEAN_COLOUR).max(axis=3) <= 6  # the jitter of a frame is drawn after it
    assert filled.sum() > 100
    assert not labels[filled].any()
    assert (labels == 0).sum() < 1.5 * filled.sum()  # between them is the seam


def test_what_is_not_annotated_stays_so_and_is_no_object():
    frames, masks = clip(3)
    masks[1:] = 255
    images, labels = ResizedCropTransform(crop=48, **STILL)(frames, masks, np.random.default_rng(0))
    assert images.shape == (3, 48, 48, 3)
    assert set(np.unique(labels[0])) == {0, 2}
    assert (labels[1:] == 255).all()
    _, labels = ResizedCropTransform(crop=48)(frames, masks, np.random.default_rng(0))
    assert set(np.unique(labels[1:])) <= {0, 255}


def test_what_is_not_annotated_does_not_count_when_all_is_drawn_again():
    frames, masks = corners(1, (12, 12))
    partly = masks.copy()
    partly[:, 60:] = 255
    transform = ResizedCropTransform(crop=48)
    for seed in range(20):
        found = [transform(frames, labels, np.random.default_rng(seed))[1] == 1 for labels in (masks, partly)]
        assert np.array_equal(*found)


def test_all_is_drawn_again_until_an_object_shows():
    frames, masks = corners(2, (12, 12))
    shown = {}
    for least in (0, -1):
        transform = ResizedCropTransform(crop=48, min_pixels=least)
        shown[least] = np.mean([transform(frames, masks, np.random.default_rng(n))[1][0].any() for n in range(80)])
    # Five tries instead of one: 1 - (1 - p)^5.
    assert shown[-1] < 0.6
    assert shown[0] > shown[-1] + 0.3
    frames, masks = clip(2)
    assert not ResizedCropTransform(crop=48)(frames, np.zeros_like(masks), np.random.default_rng(0))[1].any()


def test_the_same_draws_give_the_same_clip():
    transform = ResizedCropTransform(crop=48)
    first = transform(*clip(), np.random.default_rng([0, 7]))
    other = transform(*clip(), np.random.default_rng([0, 8]))
    again = transform(*clip(), np.random.default_rng([0, 7]))
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(
    "options",
    [
        {"crop": 0},
        {"area": (0.0, 1.0)},
        {"area": (0.6, 0.4)},
        {"area": (0.5, 1.1)},
        {"rotation": -1.0},
        {"shear": 90.0},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match="ResizedCropTransform"):
        ResizedCropTransform(**options)
