"""XMem's augmentation of videos and stills: what frames share, what each has of its own, that masks follow."""

import numpy as np
import pytest

from datamodules.transforms import MEAN_COLOUR
from datamodules.xmem_transforms import DeformedStillTransform, ResizedCropTransform

STILL = {"rotation": 0.0, "shear": 0.0}
AT_REST = {"zoom": (1.0, 1.0), "flip": 0.0, "scale": (1.0, 1.0), "spline": 0.0} | STILL


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
        {"fine_tune_from": -1},
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match="ResizedCropTransform"):
        ResizedCropTransform(**options)


@pytest.mark.parametrize("seed", range(4))
def test_frames_neither_turn_nor_lean_when_the_fine_tuning_has_begun(seed):
    transform = ResizedCropTransform(crop=48, fine_tune_from=100)

    def made(step):
        return transform(*clip(), np.random.default_rng(seed), step=step)

    always = ResizedCropTransform(crop=48)(*clip(), np.random.default_rng(seed), step=10**6)
    assert all(np.array_equal(one, two) for one, two in zip(made(99), always, strict=True))
    assert len({mask.tobytes() for mask in made(99)[1]}) > 1
    frames, masks = made(100)
    assert (masks == masks[:1]).all()
    assert 0 < np.abs(frames.astype(int) - frames[:1]).max() < 10  # each still has its faint jitter
    assert np.array_equal(made(10**6)[0], frames)


@pytest.mark.parametrize("size", [(60, 80), (90, 50), (30, 30), (200, 120)])
def test_a_still_becomes_a_square_clip(size):
    frames, masks = np.zeros((3, *size, 3), np.uint8), np.full((3, *size), 7, np.uint8)
    images, labels = DeformedStillTransform(crop=48)(frames, masks, np.random.default_rng(1))
    assert (images.shape, images.dtype) == ((3, 48, 48, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((3, 48, 48), np.uint8)
    assert set(np.unique(labels)) <= {0, 7}
    assert (labels == 7).mean() > 0.3


@pytest.mark.parametrize("seed", range(8))
def test_masks_follow_a_still_that_is_moved_and_bent(seed):
    frames, masks = clip()
    frames[masks == 2] = 250  # in grey clips, too, brighter than all else
    images, labels = DeformedStillTransform(crop=96, spline=1.0)(frames, masks, np.random.default_rng(seed))
    # Bicubic against nearest differ along the outline alone.
    assert ((images.mean(3) > 180) != (labels == 2)).mean() < 0.04
    assert (labels == 2).mean() > 0.1
    assert len({label.tobytes() for label in labels}) == len(labels)


def test_a_still_at_rest_is_cropped_and_coloured_alone():
    frames, masks = clip(3, (96, 96))
    images, labels = DeformedStillTransform(crop=96, **AT_REST)(frames, masks, np.random.default_rng(1))
    assert np.array_equal(labels, masks)
    assert 0 < np.abs(images.astype(int) - images[:1]).max() < 10
    wide, mask = np.zeros((40, 20, 100, 3), np.uint8), np.zeros((40, 20, 100), np.uint8)
    mask[:, :, 49] = 1
    _, labels = DeformedStillTransform(crop=20, **AT_REST)(wide, mask, np.random.default_rng(0))
    places = {int(np.flatnonzero(label[0])[0]) if label.any() else None for label in labels}
    assert len(places) > 5  # each frame is cropped at a place of its own
    assert None in places


def test_a_clip_of_a_still_has_one_zoom_and_one_flip():
    frames, masks = np.zeros((2, 200, 200, 3), np.uint8), np.zeros((2, 200, 200), np.uint8)
    masks[:, 80:120, 90:120] = 1
    transform = DeformedStillTransform(crop=200, **(AT_REST | {"zoom": (0.8, 1.5), "flip": 0.5}))
    zooms, flips = [], 0
    for seed in range(60):
        _, labels = transform(frames, masks, np.random.default_rng(seed))
        assert np.array_equal(*labels)
        zooms.append(np.sqrt(labels[0].sum() / 1200))
        flips += np.nonzero(labels[0])[1].mean() < 99
    assert 0.78 < min(zooms) < 0.88
    assert 1.4 < max(zooms) < 1.53
    assert 18 < flips < 42


@pytest.mark.parametrize(("motion", "least", "most"), [({"rotation": 20.0}, 17, 20.8), ({"shear": 10.0}, 8, 10.8)])
def test_how_far_a_frame_of_a_still_turns_or_leans(motion, least, most):
    mask = np.zeros((1, 200, 200), np.uint8)
    mask[:, 50:150, 50:150] = 1
    transform = DeformedStillTransform(crop=200, **(AT_REST | motion))
    _, labels = transform(np.zeros((60, 200, 200, 3), np.uint8), mask.repeat(60, 0), np.random.default_rng(0))
    upright = [slant(label) for label in labels]
    assert least < max(upright) < most
    assert -most < min(upright) < -least


def test_how_much_a_frame_of_a_still_grows():
    mask = np.zeros((1, 200, 200), np.uint8)
    mask[:, 50:150, 50:150] = 1
    transform = DeformedStillTransform(crop=200, **(AT_REST | {"scale": (0.9, 1.1)}))
    _, labels = transform(np.zeros((60, 200, 200, 3), np.uint8), mask.repeat(60, 0), np.random.default_rng(0))
    sides = np.sqrt(labels.sum((1, 2)))
    assert 88 < sides.min() < 93
    assert 107 < sides.max() < 112


def test_how_often_and_how_far_a_frame_of_a_still_is_bent():
    """Red is the column and green the row that a pixel is from, twice the place in the frame."""
    rows, columns = np.indices((100, 100)) * 2
    frame = np.stack([columns, rows, np.full((100, 100), 90)], axis=2).astype(np.uint8)
    squares = np.zeros((300, 100, 100), np.uint8)
    squares[:, 30:70, 30:70] = 1
    transform = DeformedStillTransform(crop=100, **(AT_REST | {"spline": 0.33}))
    images, labels = transform(np.stack([frame] * 300), squares, np.random.default_rng(0))
    bent = (labels != squares).any((1, 2))
    assert 0.25 < bent.mean() < 0.41
    images = images.astype(float) / images[~bent].mean((0, 1, 2)) * frame.mean((0, 1))
    inner = np.s_[20:80, 20:80]
    far = np.array([np.abs(image[inner][..., :2] - frame[inner][..., :2]).mean() / 2 for image in images])
    assert far[~bent].max() < 1  # the jitter of colours
    assert 1 < far[bent].mean() < 4  # percent of a side, in each direction
    across = np.diff(images[bent][:, 20:80:10, 20:80:5, 0], axis=2)
    assert across.min() > 0  # nothing is folded


def test_the_same_draws_give_the_same_clip_of_a_still():
    transform = DeformedStillTransform(crop=48)
    first = transform(*clip(), np.random.default_rng([0, 7]))
    other = transform(*clip(), np.random.default_rng([0, 8]))
    again = transform(*clip(), np.random.default_rng([0, 7]), step=99)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(
    "options",
    [
        {"crop": 0},
        {"zoom": (0.0, 1.0)},
        {"scale": (1.1, 0.9)},
        {"flip": 1.5},
        {"rotation": 181.0},
        {"shear": 90.0},
        {"spline": -0.1},
        {"bend": 0.2},
    ],
)
def test_impossible_motions_of_stills_are_refused(options):
    with pytest.raises(ValueError, match=f"DeformedStillTransform: .*{next(iter(options))}="):
        DeformedStillTransform(**options)
