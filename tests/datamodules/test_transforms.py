import numpy as np
import pytest

from datamodules.transforms import ClipTransform

STILL = {"jitter": 0.0, "grey": 0.0, "blur": 0.0}


def clip(length=4, size=(60, 80)):
    """A still clip: a red square, object 2, on green noise."""
    frame = np.random.default_rng(0).integers(0, 60, (*size, 3), dtype=np.uint8)
    frame[..., 1] += 120
    mask = np.zeros(size, np.uint8)
    mask[20:44, 30:54] = 2
    frame[mask > 0] = (250, 0, 0)
    return np.stack([frame] * length), np.stack([mask] * length)


def test_the_result_is_a_square_of_the_same_clip():
    frames, masks = ClipTransform(crop=65, short_side=60)(*clip(3), np.random.default_rng(1))
    assert (frames.shape, frames.dtype) == ((3, 65, 65, 3), np.uint8)
    assert (masks.shape, masks.dtype) == ((3, 65, 65), np.uint8)
    assert set(np.unique(masks)) == {0, 2}


@pytest.mark.parametrize("seed", range(8))
def test_geometry_is_drawn_once_a_clip_and_masks_follow_their_frames(seed):
    frames, masks = ClipTransform(crop=65, short_side=60, **STILL)(*clip(), np.random.default_rng(seed))
    assert (frames == frames[:1]).all()
    assert (masks == masks[:1]).all()
    red = (frames[..., 0].astype(int) > 200) & (frames[..., 1] < 60)
    # Bicubic against nearest differ along the outline alone.
    assert (red != (masks > 0)).mean() < 0.02


def test_colour_is_drawn_for_every_frame():
    frames, masks = ClipTransform(crop=65, short_side=60, jitter=1.0)(*clip(), np.random.default_rng(0))
    assert (masks == masks[:1]).all()
    means = frames.mean((1, 2, 3))
    assert len(set(means.tolist())) == len(means)


def test_the_same_draws_give_the_same_clip():
    transform = ClipTransform(crop=65, short_side=60)
    first = transform(*clip(), np.random.default_rng([0, 7]))
    transform(*clip(), np.random.default_rng([0, 8]))
    again = transform(*clip(), np.random.default_rng([0, 7]))
    other = transform(*clip(), np.random.default_rng([0, 8]))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_a_frame_may_be_grey_without_jitter():
    """The parts of a pipeline do not share one draw."""
    transform = ClipTransform(crop=40, short_side=60, scale=(1.0, 1.0), jitter=0.8, grey=0.2, blur=0.0)
    kinds = set()
    for seed in range(100):
        frames, _ = transform(
            np.full((1, 60, 60, 3), (200, 128, 40), np.uint8),
            np.ones((1, 60, 60), np.uint8),
            np.random.default_rng(seed),
        )
        red, green, blue = frames[0, 20, 20].astype(int)
        plain = round(0.299 * 200 + 0.587 * 128 + 0.114 * 40)
        is_grey = red == green == blue
        kinds.add((is_grey, abs(red - plain) > 1 if is_grey else (red, green, blue) != (200, 128, 40)))
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}


def test_a_small_frame_is_padded_with_the_mean_colour_anywhere():
    transform = ClipTransform(crop=100, short_side=60, scale=(1.0, 1.0), flip=0.0, **STILL)
    corners = set()
    for seed in range(10):
        frames, masks = transform(*clip(2), np.random.default_rng(seed))
        padding = (frames[0] == (124, 116, 104)).all(-1)
        assert padding.sum() == 100 * 100 - 60 * 80
        assert not masks[:, padding].any()
        rows, columns = np.nonzero(~padding)
        assert (frames[1] == frames[0]).all()
        corners.add((rows.min(), columns.min()))
    assert len(corners) > 5


def test_scale_is_relative_to_the_short_side():
    transform = ClipTransform(crop=200, short_side=100, scale=(0.7, 1.3), flip=0.0, **STILL)
    sides = []
    for seed in range(40):
        frames, _ = transform(*clip(1), np.random.default_rng(seed))
        rows, _ = np.nonzero((frames[0] != (124, 116, 104)).any(-1))
        sides.append(np.ptp(rows) + 1)
    assert 70 <= min(sides) < 80
    assert 120 < max(sides) <= 130


def test_a_crop_is_drawn_again_until_it_shows_an_object():
    frames, masks = clip(1, (60, 300))
    masks[:] = 0
    masks[:, 10:50, 250:290] = 1
    shown = {}
    for least in (100, -1):
        transform = ClipTransform(crop=60, short_side=60, scale=(1.0, 1.0), min_pixels=least, **STILL)
        draws = [transform(frames, masks, np.random.default_rng(seed))[1].sum() > 100 for seed in range(60)]
        shown[least] = np.mean(draws)
    # Five tries instead of one: 1 - (1 - p)^5.
    assert shown[-1] < 0.5
    assert shown[100] > 1.5 * shown[-1]


@pytest.mark.parametrize("options", [{"crop": 0}, {"short_side": 0}, {"scale": (1.3, 0.7)}, {"scale": (0.0, 1.0)}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match="ClipTransform"):
        ClipTransform(**options)
