"""Random scenes: what a clip is a function of, and that its masks and its tags are true."""

import colorsys
import math

import numpy as np
import pytest

from datamodules.difficulties import TAGS, measured_tags
from datamodules.scenes import SceneSettings, render_scene
from datamodules.scenes.palettes import draw_palette
from datamodules.scenes.textures import dead_leaves, draw_texture
from lightning_vos.errors import ConfigError

CLIPS = 40
FRAMES, HEIGHT, WIDTH = 6, 96, 112
NONE = {"look_alike": 0.0, "companion": 0.0, "occluder": 0.0, "leaving": 0.0, "fast": 0.0}


@pytest.fixture(scope="module")
def clips():
    return [render_scene(3, index, FRAMES, HEIGHT, WIDTH) for index in range(CLIPS)]


def test_a_clip_is_a_function_of_seed_and_index():
    first = render_scene(5, 1, 4, 80, 96)
    render_scene(5, 2, 4, 80, 96)
    again = render_scene(5, 1, 4, 80, 96)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.masks, again.masks)
    assert first.tags == again.tags
    for seed, index in ((5, 2), (6, 1)):
        assert not np.array_equal(first.frames, render_scene(seed, index, 4, 80, 96).frames)


@pytest.mark.parametrize(("frames", "height", "width"), [(2, 64, 64), (5, 70, 131), (9, 130, 66)])
def test_clips_have_the_length_and_the_size_that_were_asked_for(frames, height, width):
    for index in range(4):
        clip = render_scene(0, index, frames, height, width)
        assert clip.frames.shape == (frames, height, width, 3)
        assert clip.masks.shape == (frames, height, width)
        assert clip.frames.dtype == clip.masks.dtype == np.uint8


def test_every_object_is_seen_in_frame_0_and_there_are_no_other_labels(clips):
    counts = set()
    for clip in clips:
        pixels = np.bincount(clip.masks[0].ravel())
        assert len(pixels) >= 2
        assert (pixels[1:] >= HEIGHT * WIDTH / 400).all()
        assert clip.masks.max() == len(pixels) - 1
        counts.add(len(pixels) - 1)
    assert counts == {1, 2, 3}


@pytest.mark.parametrize("most", [1, 2, 6])
def test_there_are_no_more_objects_than_allowed(most):
    settings = SceneSettings(max_objects=most, look_alike=1.0)
    counts = [render_scene(1, index, 2, 64, 96, settings).masks.max() for index in range(25)]
    assert max(counts) <= most
    assert max(counts) >= min(most, 3)


def test_objects_move_and_so_does_the_ground(clips):
    changed = [np.mean(clip.masks[0] != clip.masks[-1]) / np.mean(clip.masks[0] > 0) for clip in clips]
    assert np.mean(np.array(changed) > 0.2) > 0.5
    ground = [
        np.abs(np.subtract(clip.frames[0], clip.frames[-1], dtype=np.int16))[(clip.masks[[0, -1]] == 0).all(0)].mean()
        for clip in clips
    ]
    assert np.mean(np.array(ground) > 4) > 0.5


def test_colour_alone_does_not_tell_objects_from_the_ground(clips):
    """Of many clips the mean hue of the object is among the hues of the ground, and of others it is not."""
    near = []
    for clip in clips:
        inside, outside = clip.frames[0][clip.masks[0] > 0], clip.frames[0][clip.masks[0] == 0]
        bins = [np.bincount(_hues(pixels), minlength=12) / len(_hues(pixels)) for pixels in (inside, outside)]
        near.append(np.minimum(*bins).sum())
    assert 0.2 < np.mean(np.array(near) > 0.5) < 0.95


def _hues(pixels: np.ndarray) -> np.ndarray:
    return np.array([int(12 * colorsys.rgb_to_hsv(*(pixel / 255))[0]) % 12 for pixel in pixels[::7]])


def test_scenes_are_unlike_one_another(clips):
    means = np.array([clip.frames[0].mean() for clip in clips])
    contrasts = np.array([clip.frames[0].std() for clip in clips])
    assert means.std() > 15
    assert contrasts.max() > 2 * contrasts.min()
    assert 40 < means.mean() < 180


def test_tags_are_true_of_the_masks(clips):
    found = set()
    diagonal = math.hypot(HEIGHT, WIDTH)
    for clip in clips:
        assert list(clip.tags) == [tag for tag in TAGS if tag in clip.tags]
        found |= set(clip.tags)
        area = np.array([(clip.masks == k).sum(axis=(1, 2)) for k in range(1, clip.masks.max() + 1)])
        away = (area[:, 1:] == 0) & (area[:, :-1] == 0)
        assert ("disappearance" in clip.tags) == away.any()
        if "re-appearance" in clip.tags:
            assert any((row[np.flatnonzero(row == 0)[0] :] > 0).any() for row in area if (row == 0).any())
        if "occlusion" in clip.tags:
            assert (area < np.maximum.accumulate(area, axis=1) / 2).any()
        if "scale" in clip.tags:
            assert any(row.max() >= 2 * row[row > 0].min() for row in area)
        if "speed" in clip.tags:
            assert any((_steps(clip.masks == k) > 0.05 * diagonal).sum() >= 3 for k in range(1, len(area) + 1))
    assert {"scale", "speed", "look-alike"} <= found


def _steps(shown: np.ndarray) -> np.ndarray:
    places = [np.argwhere(frame).mean(axis=0) if frame.any() else np.array([np.nan] * 2) for frame in shown]
    return np.linalg.norm(np.diff(places, axis=0), axis=1)


@pytest.mark.parametrize(
    ("name", "tag"), [("look_alike", "look-alike"), ("leaving", "disappearance"), ("fast", "speed")]
)
def test_a_difficulty_comes_when_it_is_asked_for(name, tag):
    def share(settings: SceneSettings) -> float:
        return float(np.mean([tag in render_scene(2, index, 8, 64, 96, settings).tags for index in range(16)]))

    without, with_it = SceneSettings(**NONE, max_gap=2), SceneSettings(**{**NONE, name: 1.0}, max_gap=2)
    assert share(with_it) >= share(without) + 0.3


def test_two_that_meet_and_part_are_tagged():
    silhouettes = np.zeros((2, 5, 40, 60), np.bool)
    for time, (left, right) in enumerate([(5, 40), (15, 30), (22, 24), (30, 15), (40, 5)]):
        silhouettes[0, time, 10:25, left : left + 12] = True
        silhouettes[1, time, 10:25, right : right + 12] = True
    top = np.where(silhouettes[1], 2, silhouettes[0].astype(np.uint8)).astype(np.uint8)
    assert measured_tags(silhouettes, top, [1, 2], (1, 2), [(1, 2)]) == ("occlusion", "look-alike", "speed", "crossing")
    assert measured_tags(silhouettes, top, [1, 2], (), []) == ("occlusion", "speed")
    assert measured_tags(silhouettes, top, [2], (), []) == ("speed",)


def test_textures_are_of_many_kinds_and_keep_their_size():
    rng = np.random.default_rng(0)
    rough = []
    for _ in range(60):
        texture = draw_texture(rng, 40, 56, draw_palette(rng, 0.2))
        assert texture.shape == (40, 56, 3)
        assert texture.dtype == np.uint8
        grey = texture.mean(axis=-1)
        rough.append(np.abs(np.diff(grey, axis=1)).mean() / (grey.std() + 1))
    assert np.quantile(rough, 0.9) > 3 * np.quantile(rough, 0.1)


def test_dead_leaves_have_the_spectrum_of_natural_images():
    """The power of a photograph falls with about the square of the frequency."""
    rng = np.random.default_rng(1)
    powers = []
    for _ in range(12):
        leaves = dead_leaves(rng, 128, 128, draw_palette(rng, 0.2)).mean(axis=-1)
        window = np.outer(np.hanning(128), np.hanning(128))
        power = np.abs(np.fft.fftshift(np.fft.fft2((leaves - leaves.mean()) * window))) ** 2
        powers.append(power / power.sum())
    radius = np.hypot(*np.mgrid[-64:64, -64:64]).astype(int)
    spectrum = np.bincount(radius.ravel(), np.mean(powers, axis=0).ravel()) / np.bincount(radius.ravel())
    frequency = np.arange(3, 50)
    slope = np.polyfit(np.log(frequency), np.log(spectrum[frequency]), 1)[0]
    assert -3 < slope < -1.3


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 96, 96), (4, 63, 96), (4, 96, 40)])
def test_what_cannot_be_rendered_is_refused(frames, height, width):
    with pytest.raises(ConfigError, match="expected 2 frames or more, of 64 x 64 pixels or more"):
        render_scene(0, 0, frames, height, width)


@pytest.mark.parametrize("wrong", [{"max_objects": 0}, {"max_gap": 0}, {"fast": 1.5}, {"camera": -0.1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="expected max_objects of 1 to 10"):
        SceneSettings(**wrong)
