"""What samplers draw, by counting: gaps, directions, references, objects, and the curriculum over a training."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from datamodules.clips import ClipDataset
from datamodules.readers import SequenceFiles, masks_of
from datamodules.samplers import (
    ClipSampler,
    ConsecutiveSampler,
    CycleSampler,
    DenseSampler,
    JumpSampler,
    OneFrameSampler,
)
from datamodules.transforms import ClipTransform
from lightning_vos.io.frames import list_frames

SEEN = np.ones((20, 20), np.uint8)
BLANK = np.zeros((20, 20), np.uint8)


def draws(sampler, frames, count, labels=lambda position: SEEN, **options):
    rng = np.random.default_rng(0)
    return [sampler.draw(frames, labels, rng, **options) for _ in range(count)]


def within(found, share, count):
    """Whether a number of `count` draws fits a share, to four standard deviations."""
    return abs(found - count * share) < 4 * (count * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(("spacing", "gaps"), [(1, 12), (5, 3), (20, 1)])
def test_gaps_are_uniform_in_frames_of_the_video(spacing, gaps):
    clips = draws(ClipSampler(length=2, reverse=0.0, max_gap=12), 10_000, 3000, spacing=spacing)
    counted = Counter(later - reference for reference, later in clips if reference < 9_900)
    assert counted.keys() == set(range(1, 1 + gaps))
    total = counted.total()
    assert gaps == 1 or all(within(number, 1 / gaps, total) for number in counted.values())


@pytest.mark.parametrize(
    "sampler",
    [ClipSampler(length=4, max_gap=2), ConsecutiveSampler(length=4), JumpSampler(length=4, jumps=(2,), since=(0.0,))],
)
def test_half_of_the_clips_run_backwards_from_any_frame(sampler):
    clips = draws(sampler, 40, 2000)
    assert within(sum(clip[1] < clip[0] for clip in clips), 0.5, 2000)
    assert {position for clip in clips for position in clip} == set(range(40))
    forwards = draws(type(sampler)(length=4, reverse=0.0), 400, 100)
    assert sum(clip[1] < clip[0] for clip in forwards) < 10  # of the first kind some turn at the end


def test_consecutive_frames_are_neighbours():
    clips = draws(ConsecutiveSampler(length=5), 9, 300)
    assert {tuple(sorted(clip)) for clip in clips} == {tuple(range(start, start + 5)) for start in range(5)}
    assert all(abs(later - before) == 1 for clip in clips for before, later in itertools.pairwise(clip))
    assert ConsecutiveSampler(length=5).shortest == 5


def test_jumps_are_bounded_from_some_frame_that_is_chosen():
    clips = draws(JumpSampler(length=5, jumps=(7,), since=(0.0,), reverse=0.0), 200, 1500)
    assert all(len(set(clip)) == 5 for clip in clips)
    gaps = Counter(later - before for clip in clips for before, later in itertools.pairwise(clip))
    assert gaps.keys() == set(range(1, 8))  # sorted, two neighbours are never farther apart than a jump
    assert all(min(clip) >= 0 and max(clip) < 200 for clip in clips)
    assert draws(JumpSampler(length=5), 5, 20, spacing=5)  # all frames of a short sequence


@pytest.mark.parametrize(
    ("step", "jump"),
    [(0, 5), (5_999, 5), (6_000, 10), (17_999, 10), (18_000, 15), (53_999, 15), (54_000, 5), (64_000, 5)],
)
def test_the_curriculum_follows_the_step(step, jump):
    sampler = JumpSampler(length=3, steps=60_000, reverse=0.0)
    assert sampler.jump(step) == jump
    for spacing in (1, 5):
        clips = draws(sampler, 500, 400, spacing=spacing, step=step)
        assert max(later - before for clip in clips for before, later in itertools.pairwise(clip)) == jump // spacing


@pytest.mark.parametrize(
    "sampler", [ClipSampler(length=2, max_gap=3), ConsecutiveSampler(length=2), JumpSampler(length=2)]
)
def test_blank_frames_are_no_references(sampler):
    """One frame in three shows nothing: of five tries hardly all hit those."""
    clips = draws(sampler, 60, 600, labels=lambda position: BLANK if position % 3 == 0 else SEEN)
    assert sum(clip[0] % 3 == 0 for clip in clips) < 15  # 600 / 3 ** 5 is 2.5


def test_of_a_sequence_that_shows_little_the_frames_that_show_something_are_references():
    small = BLANK.copy()
    small[:2] = 1
    clips = draws(
        ClipSampler(length=3, max_gap=4), 300, 60, labels=lambda position: small if position in (7, 90) else BLANK
    )
    assert {clip[0] for clip in clips} == {7, 90}
    blank = draws(ClipSampler(length=3), 10, 5, labels=lambda position: BLANK)
    assert all(len(clip) == 3 for clip in blank)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (ConsecutiveSampler, {"length": 1}),
        (JumpSampler, {"length": 1}),
        (JumpSampler, {"steps": 0}),
        (JumpSampler, {"jumps": (5, 10)}),
        (JumpSampler, {"jumps": (0,), "since": (0.0,)}),
        (JumpSampler, {"jumps": (5, 6), "since": (0.2, 0.1)}),
        (JumpSampler, {"jumps": (5,), "since": (0.1,)}),
        (JumpSampler, {"jumps": (), "since": ()}),
    ],
)
def test_impossible_samplers_are_refused(kind, settings):
    with pytest.raises(ValueError, match=kind.__name__):
        kind(**settings)


@pytest.fixture
def sequence(tmp_path, write_video, moving):
    write_video(tmp_path / "v", tmp_path / "m", moving(30, 3, side=10), 30)
    frames = list_frames(tmp_path / "v")
    return SequenceFiles("v", frames, masks_of(frames, tmp_path / "m"))


def test_an_item_knows_its_step(sequence):
    steps = []

    class Watching(ConsecutiveSampler):
        def draw(self, *given, step=0, **options):
            steps.append(step)
            return super().draw(*given, step=step, **options)

    kind = ClipTransform(crop=40, short_side=40, min_pixels=5)
    dataset = ClipDataset([sequence], Watching(length=2), kind, 0.0, 0, items_a_step=6)
    for item in (0, 5, 6, 17, 18):
        dataset[item]
    assert steps == [0, 0, 1, 2, 3]


def test_objects_are_chosen_at_random_up_to_so_many(sequence):
    kind = ClipTransform(
        crop=40, short_side=40, scale=(1.0, 1.0), flip=0.0, jitter=0.0, grey=0.0, blur=0.0, min_pixels=0
    )
    dataset = ClipDataset([sequence], ConsecutiveSampler(length=2), kind, 0.0, 0, max_objects=2)
    counts = Counter()
    for item in range(60):
        clip = dataset[item]
        counts[int(clip.objects)] += 1
        assert clip.masks.max() <= clip.objects <= 2
        assert torch.unique(clip.masks[0]).numel() == 1 + clip.objects
    assert counts[2] > 30


def choices(sampler, frames, count, annotated=None, labels=lambda number: SEEN, **options):
    rng = np.random.default_rng(0)
    annotated = range(frames) if annotated is None else annotated
    return [sampler.choose(frames, annotated, labels, rng, **options) for _ in range(count)]


def showing(**objects):
    """Label maps by the number of a frame, `f7=(30, 20)`: object 1 has 30 pixels there, object 2 has 20."""

    def labels(number):
        sizes = objects.get(f"f{number}", ())
        return np.repeat(np.arange(1 + len(sizes)), [400 - sum(sizes), *sizes]).astype(np.uint8).reshape(20, 20)

    return labels


@pytest.mark.parametrize(("spacing", "most"), [(1, 12), (5, 6)])
def test_the_others_of_a_cycle_lie_to_one_side_in_any_order(spacing, most):
    clips = choices(CycleSampler(min_pixels=1), 101, 3000, spacing=spacing)
    assert {first for first, *_ in clips} == {50}
    gaps = [(one - 50, two - 50) for _, one, two in clips]
    assert all(one * two > 0 and one != two for one, two in gaps)
    assert within(sum(one > 0 for one, _ in gaps), 0.5, 3000)
    assert within(sum(abs(one) < abs(two) for one, two in gaps), 0.5, 3000)
    for which in (0, 1):
        counted = Counter(abs(pair[which]) for pair in gaps)
        assert counted.keys() == set(range(1, most + 1))
        assert all(within(number, 1 / most, 3000) for number in counted.values())


@pytest.mark.parametrize(
    ("annotated", "frames", "middle", "nearest_end"),
    [(range(11), 11, 5, 10), ((3,), 11, 3, 3), ((0, 1, 2, 9), 20, 9, 9), ((2, 30, 31, 33), 40, 30, 33)],
)
def test_a_cycle_begins_at_the_annotated_frame_of_a_place(annotated, frames, middle, nearest_end):
    for place, number in (("middle", middle), ("nearest_end", nearest_end)):
        for sampler in (CycleSampler(annotated_frame=place), OneFrameSampler(annotated_frame=place)):
            assert {clip[0] for clip in choices(sampler, frames, 20, annotated)} == {number}
    others = {number for _, *others in choices(CycleSampler(max_gap=50), frames, 400, annotated) for number in others}
    assert len(others - set(annotated)) == frames - len(annotated)  # they need not be annotated


def test_a_cycle_begins_where_an_object_is_large_enough():
    labels = showing(f4=(30, 20), f5=(49, 49), f6=(20, 50), f9=(80,))
    for sampler in (CycleSampler(min_pixels=50), OneFrameSampler(min_pixels=50)):
        assert choices(sampler, 11, 1, labels=labels)[0][0] == 6
    assert choices(CycleSampler(min_pixels=51), 11, 1, labels=labels)[0][0] == 9
    assert choices(CycleSampler(min_pixels=81), 11, 1, labels=labels)[0][0] == 9  # none is: the largest
    assert choices(CycleSampler(min_pixels=81), 11, 1, labels=showing())[0][0] == 5


@pytest.mark.parametrize(
    ("frames", "annotated", "length", "expected"),
    [
        (1, (0,), 3, {(0, 0, 0)}),
        (2, (0, 1), 3, {(0, 1, 1)}),
        (2, (1,), 4, {(1, 0, 0, 0)}),
        (3, (1,), 3, {(1, 0, 0), (1, 2, 2)}),
        (4, (1,), 3, {(1, 2, 3), (1, 3, 2)}),  # just one side has enough
        (3, (2,), 5, {(2, 0, 1, 0, 1), (2, 1, 0, 1, 0)}),
    ],
)
def test_a_video_is_never_too_short_for_a_cycle(frames, annotated, length, expected):
    sampler = CycleSampler(length=length)
    assert {tuple(clip) for clip in choices(sampler, frames, 60, annotated)} == expected
    assert sampler.shortest == 1


@pytest.mark.parametrize(("spacing", "most"), [(1, 15), (5, 7)])
def test_dense_clips_run_forwards_within_a_gap(spacing, most):
    clips = choices(DenseSampler(min_pixels=1), 40, 3000, spacing=spacing)
    assert all(first < one < two <= first + most for first, one, two in clips)
    assert {first for first, *_ in clips} == set(range(38))
    inside = [clip for clip in clips if clip[0] + most < 40]
    counted = Counter(number - first for first, *others in inside for number in others)
    assert counted.keys() == set(range(1, most + 1))
    assert all(within(number, 2 / most, len(inside)) for number in counted.values())
    assert choices(DenseSampler(), 3, 1, annotated=(4, 8, 9)) == [[4, 8, 9]]
    assert DenseSampler().shortest == 3


def test_dense_clips_begin_where_an_object_is_large_enough():
    clips = choices(DenseSampler(min_pixels=50), 20, 40, labels=showing(f3=(50,), f7=(10, 70), f8=(49, 49)))
    assert {clip[0] for clip in clips} == {3, 7}
    assert choices(DenseSampler(min_pixels=50), 20, 1, labels=showing(f8=(20,)))[0][0] == 8


def test_one_frame_makes_a_clip():
    assert choices(OneFrameSampler(length=4), 9, 1, annotated=(2, 5)) == [[5, 5, 5, 5]]
    assert OneFrameSampler(length=4).shortest == 1
    assert not OneFrameSampler.withholds


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (CycleSampler, {"length": 1}),
        (CycleSampler, {"max_gap": 0}),
        (DenseSampler, {"length": 1}),
        (DenseSampler, {"length": 9}),  # more than 7 frames may lie apart
        (OneFrameSampler, {"length": 1}),
    ],
)
def test_impossible_clips_of_hodor_are_refused(sampler, options):
    with pytest.raises(ValueError, match=sampler.__name__):
        sampler(**options)
