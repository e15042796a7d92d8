import itertools
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules import DAVIS
from datamodules.clips import MAX_OBJECTS, ClipDataset, PictureCache, StepSampler, collate_clips, to_clip
from datamodules.hodor_transforms import PseudoVideoTransform, WholeFrameTransform
from datamodules.readers import SequenceFiles, masks_of
from datamodules.samplers import ClipSampler, CycleSampler, DenseSampler, OneFrameSampler
from datamodules.transforms import MEAN_COLOUR, ClipAugmentation, ClipTransform
from lightning_vos.errors import MaskError
from lightning_vos.io.frames import list_frames

SMALL = ClipTransform(crop=48, short_side=40, min_pixels=20)
WHOLE = WholeFrameTransform(short_side=48, long_side=96, min_pixels=20, min_side=2)
STILL = PseudoVideoTransform(area=48 * 72, min_pixels=20, min_side=2)


@pytest.fixture
def sequences(tmp_path, write_video):
    def make(*videos):
        found = []
        for number, labels in enumerate(videos):
            frames, masks = tmp_path / f"v{number}", tmp_path / f"m{number}"
            write_video(frames, masks, labels, max(labels) + 1)
            paths = list_frames(frames)
            found.append(SequenceFiles(f"v{number}", paths, masks_of(paths, masks)))
        return found

    return make


def labels_of(stack):
    return lambda position: stack[position]


@pytest.mark.parametrize("count", [2, 3, 7, 500])
def test_frames_follow_at_bounded_gaps_and_turn_at_the_ends(count):
    masks = np.ones((count, 20, 20), np.uint8)
    sampler = ClipSampler(length=6, max_gap=4)
    steps = set()
    for seed in range(60):
        clip = sampler.draw(count, labels_of(masks), np.random.default_rng(seed))
        assert len(clip) == 6
        assert set(clip) <= set(range(count))
        steps |= {abs(after - before) for before, after in itertools.pairwise(clip)}
    assert max(steps) == min(4, count - 1)
    assert {1, 2, 3, 4} & set(range(count)) <= steps


def test_a_clip_turns_at_the_end():
    masks = np.zeros((6, 20, 20), np.uint8)
    masks[4] = 1
    sampler = ClipSampler(length=5, max_gap=1, reverse=0.0)
    assert sampler.draw(6, labels_of(masks), np.random.default_rng(0)) == [4, 5, 4, 3, 2]
    masks[1] = 1
    masks[4] = 0
    sampler = ClipSampler(length=5, max_gap=1, reverse=1.0)
    assert sampler.draw(6, labels_of(masks), np.random.default_rng(0)) == [1, 0, 1, 2, 3]


def test_direction_follows_reverse():
    masks = np.ones((1000, 15, 15), np.uint8)

    def rising(reverse):
        draws = [
            ClipSampler(length=2, reverse=reverse).draw(1000, labels_of(masks), np.random.default_rng(seed))
            for seed in range(60)
        ]
        return sum(clip[1] > clip[0] for clip in draws)

    assert rising(0.0) >= 58
    assert rising(1.0) <= 2
    assert 15 < rising(0.5) < 45


def test_the_reference_shows_enough():
    masks = np.zeros((10, 20, 20), np.uint8)
    masks[:, :2, :5] = 1
    masks[4] = 1
    references = [ClipSampler(length=3).draw(10, labels_of(masks), np.random.default_rng(s))[0] for s in range(50)]
    # Twenty tries find the one frame in ten nearly nine times in ten.
    assert references.count(4) > 35
    small = ClipSampler(length=3, min_pixels=5)
    assert len({small.draw(10, labels_of(masks), np.random.default_rng(s))[0] for s in range(20)}) > 4


def test_clips_with_an_object_that_the_reference_lacks_are_drawn_again(monkeypatch):
    masks = np.ones((40, 20, 20), np.uint8)
    masks[20:, :, 10:] = 2
    sampler = ClipSampler(length=4, max_gap=3, reverse=0.0)

    def mixed():
        clips = [sampler.draw(40, labels_of(masks), np.random.default_rng(seed)) for seed in range(100)]
        return sum(clip[0] < 20 <= max(clip) for clip in clips)

    assert mixed() == 0
    monkeypatch.setattr("datamodules.samplers._CLIP_TRIES", 1)
    assert mixed() > 5


@pytest.mark.parametrize("options", [{"length": 1}, {"max_gap": 0}])
def test_impossible_clips_are_refused(options):
    with pytest.raises(ValueError, match="ClipSampler"):
        ClipSampler(**options)


def test_a_clip_is_a_function_of_seed_and_number(sequences, moving):
    found = sequences(moving(12), moving(9, 2))

    def item(seed, index):
        return ClipDataset(found, ClipSampler(length=3, max_gap=2), SMALL, 0.3, seed)[index]

    first, again = item(0, 5), item(0, 5)
    assert first.frames.shape == (3, 3, 48, 48)
    assert first.frames.dtype == torch.float32
    assert 0 <= first.frames.min() < first.frames.max() <= 1
    assert first.masks.shape == (3, 48, 48)
    assert first.masks.dtype == first.objects.dtype == torch.int64
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first.frames, item(0, 6).frames)
    assert not torch.equal(first.frames, item(1, 5).frames)


def test_objects_are_those_of_the_reference_numbered_from_one(sequences, moving):
    labels = {frame: np.where(mask > 0, mask * 7 + 3, 0).astype(np.uint8) for frame, mask in moving(10, 2).items()}
    labels[5][30:, :] = 200
    dataset = ClipDataset(sequences(labels), ClipSampler(length=4, max_gap=3), SMALL, 0.0, 0)
    later = 0
    for index in range(20):
        clip = dataset[index]
        assert clip.masks[0].unique().tolist() == [
            *([0] if (clip.masks[0] == 0).any() else []),
            *range(1, clip.objects + 1),
        ]
        assert clip.masks.max() <= clip.objects
        later += int(clip.objects)
    assert later > 20


def test_merging_pastes_a_second_clip(sequences, moving):
    found = sequences(moving(10, 3, side=12))
    kind = (ClipSampler(length=3, max_gap=2), ClipTransform(crop=48, short_side=40, min_pixels=20, flip=0.0))
    alone, merged = ClipDataset(found, *kind, 0.0, 0), ClipDataset(found, *kind, 1.0, 0)
    assert max(int(alone[i].objects) for i in range(20)) == 3
    counts = [int(merged[i].objects) for i in range(20)]
    assert max(counts) > 3
    for index in range(20):
        clip = merged[index]
        pixels = torch.bincount(clip.masks[0].flatten(), minlength=11)
        assert clip.masks.max() <= clip.objects
        assert (pixels[1 : clip.objects + 1] > 20).all()


def test_a_clip_has_ten_objects_at_most(sequences):
    mask = np.zeros((40, 60), np.uint8)
    for number in range(14):
        mask[(number // 7) * 20 : (number // 7) * 20 + 18, (number % 7) * 8 : (number % 7) * 8 + 7] = number + 1
    whole = ClipTransform(crop=60, short_side=40, scale=(1.0, 1.0), min_pixels=20)
    dataset = ClipDataset(sequences({0: mask, 1: mask}), ClipSampler(length=2), whole, 0.0, 0)
    kept = set()
    for index in range(8):
        clip = dataset[index]
        assert clip.objects == MAX_OBJECTS == len(clip.masks.unique()) - 1
        kept.add(tuple(clip.masks[0, ::6, ::6].flatten().bool().tolist()))
    assert len(kept) > 1


def test_a_dataset_without_objects_says_so(sequences):
    empty = {frame: np.zeros((40, 60), np.uint8) for frame in range(3)}
    dataset = ClipDataset(sequences(empty), ClipSampler(length=2), SMALL, 0.3, 0)
    with pytest.raises(MaskError, match=r"None of 50 clips .* \(v0, \.\.\.\)") as error:
        dataset[0]
    assert len(str(error.value).splitlines()) <= 8


def test_workers_draw_what_one_process_draws_and_nothing_twice(sequences, moving):
    dataset = ClipDataset(sequences(moving(12), moving(9, 2)), ClipSampler(length=3, max_gap=2), SMALL, 0.3, 3)

    def epochs(workers, start=0):
        drawn = []
        steps = iter((start, start + 3))
        loader = DataLoader(
            dataset,
            batch_size=2,
            sampler=StepSampler(2, 0, 1, lambda: next(steps)),
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for _ in range(2):
            drawn += [frames for batch in itertools.islice(loader, 3) for frames in batch.frames]
        return drawn

    two, none = epochs(2), epochs(0)
    assert len(two) == 12
    assert all(torch.equal(one, other) for one, other in zip(two, none, strict=True))
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(two, 2))


def test_the_ranks_share_out_every_number_once():
    def draw(rank, start, steps):
        return list(itertools.islice(StepSampler(3, rank, 2, lambda: start), steps * 3))

    assert sorted(draw(0, 0, 4) + draw(1, 0, 4)) == list(range(24))
    assert draw(1, 0, 5)[6:] == draw(1, 2, 3)
    assert draw(1, 2, 1) == [15, 16, 17]


@pytest.mark.parametrize(("world", "batch"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2)])
def test_a_step_has_the_same_numbers_however_devices_share_it(world, batch):
    batches = 8 // (world * batch)  # that a rank accumulates
    ranks = [StepSampler(batch, rank, world, lambda: 3 * batches) for rank in range(world)]
    drawn = [number for rank in ranks for number in itertools.islice(rank, batches * batch)]
    assert sorted(drawn) == list(range(24, 32))  # of the fourth step


def test_a_cache_keeps_what_was_asked_for_last_within_its_budget():
    cache, reads = PictureCache(250), []

    def ask(key, size=100):
        picture = cache.get(key, lambda: reads.append(key) or np.full(size, key, np.uint8))
        assert picture.tolist() == [key] * size

    for key in (1, 2, 1, 3, 1, 2):  # 3 pushes 2 out, for 1 was asked for since
        ask(key)
    assert reads == [1, 2, 3, 2]
    ask(9, 251)  # larger than the budget: given, not kept, and nothing is pushed out for it
    ask(9, 251)
    ask(2)
    assert reads == [1, 2, 3, 2, 9, 9]
    for _ in range(2):
        PictureCache(0).get(1, lambda: reads.append(1) or np.zeros(1, np.uint8))
    assert reads[6:] == [1, 1]


def test_clips_from_a_cache_are_the_same_and_read_less(sequences, moving, monkeypatch):
    found, reads = sequences(moving(4), moving(4, 2)), []
    original = SequenceFiles.frame
    monkeypatch.setattr(SequenceFiles, "frame", lambda self, index: reads.append(index) or original(self, index))
    clips, counts = [], []
    for budget in (0, 10**8):
        reads.clear()
        dataset = ClipDataset(found, ClipSampler(length=3, max_gap=2, min_pixels=0), SMALL, 0.3, 5, cache=budget)
        clips.append([dataset[index] for index in range(12)])
        counts.append(len(reads))
    for plain, cached in zip(*clips, strict=True):
        assert all(torch.equal(first, second) for first, second in zip(plain, cached, strict=True))
    assert counts[1] <= 8 < counts[0]


@pytest.fixture
def broken_one(sequences, moving):
    """Three sequences, the frames of the second cut off."""
    found = sequences(moving(6), moving(6), moving(6))
    for path in found[1].frames:
        path.write_bytes(path.read_bytes()[:200])
    return found


def test_what_is_skipped_does_not_depend_on_what_was_met_before(broken_one):
    """A resumed run, or another worker, draws the same clips."""
    dataset = ClipDataset(broken_one, ClipSampler(length=3), SMALL, 0.3, seed=1, skip_broken=True)
    with pytest.warns(UserWarning, match="1 of 3 so far") as said:
        clips = [dataset[index] for index in range(20)]
    assert len(said) == 1
    assert dataset.broken.tolist() == [False, True, False]
    for index in (3, 11, 19):
        fresh = ClipDataset(broken_one, ClipSampler(length=3), SMALL, 0.3, seed=1, skip_broken=True)
        with warnings.catch_warnings(action="ignore"):
            assert all(torch.equal(one, other) for one, other in zip(clips[index], fresh[index], strict=True))


def test_where_all_are_broken_it_stops(broken_one):
    dataset = ClipDataset(broken_one[1:2], ClipSampler(length=3), SMALL, 0.3, seed=1, skip_broken=True)
    for _ in range(2):
        with pytest.raises(MaskError, match="1 of 1 sequences are broken"), warnings.catch_warnings(action="ignore"):
            dataset[0]


# HODOR's clips


@pytest.fixture
def one_mask(tmp_path, write_video, moving):
    """A video of 10 frames, the fifth of which has the only mask."""
    write_video(tmp_path / "f", tmp_path / "a", {4: moving(5, 2)[4]}, 10)
    frames = list_frames(tmp_path / "f")
    return SequenceFiles("f", frames, masks_of(frames, tmp_path / "a"))


@pytest.mark.parametrize("transform", [WHOLE, SMALL])
def test_masks_are_withheld_although_they_are_on_disk(sequences, moving, monkeypatch, transform):
    read, original = [], SequenceFiles.labels
    monkeypatch.setattr(SequenceFiles, "labels", lambda self, index: read.append(index) or original(self, index))
    dataset = ClipDataset(sequences(moving(9, 2)), CycleSampler(min_pixels=50), transform, 0.0, 0)
    for index in range(20):
        frames, masks, objects = dataset[index]
        assert frames.shape == (3, 3, *masks.shape[1:])
        assert (masks[1:] == 255).all()  # the padding too
        assert objects == masks[0].max()
        assert set(masks[0].unique().tolist()) >= set(range(1, int(objects) + 1))
        assert not torch.equal(frames[0], frames[1])
    assert set(read) == {4}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_video_with_one_mask_is_trained_on(one_mask, tmp_path, monkeypatch, workers):
    def batches(sampler, transform, count=3, **options):
        data = DAVIS(
            tmp_path, sampler=sampler, transform=transform, merge=0.0, workers=workers, batch_size=2, **options
        )
        monkeypatch.setattr(data, "find", lambda split: [one_mask])
        return list(itertools.islice(data.train_dataloader(), count))

    for batch in batches(CycleSampler(min_pixels=50), WHOLE):
        assert batch.frames.shape == (2, 3, 3, 64, 96)
        assert (batch.masks[:, 1:] == 255).all()
        assert 1 <= batch.objects.min() <= batch.objects.max() <= 2
        assert batch.masks[:, 0].amax((1, 2)).tolist() == batch.objects.tolist()
    for batch in batches(OneFrameSampler(min_pixels=50), STILL):
        assert batch.frames.shape == (2, 3, 3, 64, 96)
        assert batch.masks.amax((1, 2, 3)).tolist() == batch.objects.tolist()
        assert batch.masks[:, 1:].any()


@pytest.mark.parametrize("count", [1, 2])
def test_a_short_video_is_trained_on(sequences, moving, count):
    dataset = ClipDataset(sequences(moving(count)), CycleSampler(), WHOLE, 0.0, 0)
    _, masks, objects = dataset[0]
    assert objects == masks[0].max() == 1
    assert (masks[1:] == 255).all()


@pytest.mark.parametrize(
    ("sampler", "transform"),
    [(CycleSampler(), WHOLE), (DenseSampler(), WHOLE), (OneFrameSampler(), STILL), (CycleSampler(), SMALL)],
)
def test_clips_of_hodor_are_functions_of_seed_and_number(sequences, moving, sampler, transform):
    found = sequences(moving(9), moving(7, 2))

    def item(seed, index):
        return ClipDataset(found, sampler, transform, 0.0, seed)[index]

    first = item(0, 3)
    item(0, 1)
    assert all(torch.equal(one, other) for one, other in zip(first, item(0, 3), strict=True))
    assert not torch.equal(first.frames, item(0, 4).frames)
    assert not torch.equal(first.frames, item(1, 3).frames)


def test_dense_clips_hold_all_masks_of_the_objects_in_the_first_frame(sequences, moving):
    labels = moving(9, 2)
    for frame in range(3):
        labels[frame][labels[frame] == 1] = 0  # object 1 comes later
    clips = ClipDataset(sequences(labels), DenseSampler(min_pixels=50), WHOLE, 0.0, 0)
    counts = set()
    for index in range(20):
        _, masks, objects = clips[index]
        assert masks.max() == objects == masks[0].max()
        counts.add(int(objects))
    assert counts == {1, 2}


def test_objects_that_are_too_small_are_none(sequences, moving):
    """A video without any that is large enough gives no clip, nor the objects of another one."""
    large, small = moving(5, 1, side=20), moving(5, 3, side=9)
    dataset = ClipDataset(
        sequences(large, small),
        CycleSampler(min_pixels=300),
        WholeFrameTransform(short_side=64, long_side=96, min_pixels=300, min_side=2),
        0.0,
        0,
    )
    assert {int(dataset[index].objects) for index in range(20)} == {1}
    dataset = ClipDataset(dataset.sequences[1:], dataset.sampler, dataset.transform, 0.0, 0)
    with pytest.raises(MaskError, match=r"data\.transform\.min_pixels is 300"):
        dataset[0]


@pytest.mark.parametrize(
    ("sampler", "transform"), [(CycleSampler(), SMALL), (DenseSampler(), WHOLE), (OneFrameSampler(), STILL)]
)
def test_what_cannot_be_merged_is_refused(tmp_path, sampler, transform):
    with pytest.raises(ValueError, match=r"merge is 0\.3, .* expected 0"):
        DAVIS(tmp_path, sampler=sampler, transform=transform)


def test_batches_are_padded_to_the_largest():
    white = [np.full((2, *size, 3), 255, np.uint8) for size in ((32, 64), (64, 32))]
    masks = [clip[..., 0] // 255 for clip in white]
    masks[0][1] = 255
    batch = collate_clips([to_clip(*pair, 1) for pair in zip(white, masks, strict=True)])
    assert batch.frames.shape == (2, 2, 3, 64, 64)
    assert batch.objects.tolist() == [1, 1]
    for clip, (rows, columns) in zip(batch.frames, ((32, 64), (64, 32)), strict=True):
        assert (clip[..., :rows, :columns] == 1).all()
        added = torch.cat([clip[..., rows:, :].flatten(2), clip[..., columns:].flatten(2)], -1)
        assert (added == (torch.tensor(MEAN_COLOUR) / 255).view(3, 1)).all()
    assert (batch.masks[0, 1] == 255).all()
    assert batch.masks.dtype == torch.int64
    for known in (batch.masks[0, 0], *batch.masks[1]):
        assert known.unique(return_counts=True)[1].tolist() == [2048, 2048]


def test_clips_of_one_size_are_just_stacked():
    clips = [to_clip(np.full((2, 33, 35, 3), value, np.uint8), np.ones((2, 33, 35), np.uint8), 1) for value in (1, 2)]
    batch = collate_clips(clips)
    assert all(torch.equal(one, torch.stack(parts)) for one, parts in zip(batch, zip(*clips, strict=True), strict=True))


class StepTransform(ClipAugmentation):
    """Writes the step into the frames."""

    min_pixels = 0

    def __call__(self, frames, masks, rng, *, step=0):
        return np.full_like(frames, step), masks


def test_a_transform_knows_the_step_that_a_clip_is_for(sequences, moving):
    dataset = ClipDataset(sequences(moving(4)), ClipSampler(length=3), StepTransform(), 0.0, 0, items_a_step=4)
    steps = [round(float(dataset[item].frames.max()) * 255) for item in (0, 3, 4, 11, 400)]
    assert steps == [0, 0, 1, 2, 100]
