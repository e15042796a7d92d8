"""The one loop over a video: ids, objects that come and go, sizes, and that nothing grows."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from torch.testing import assert_close

from lightning_vos.errors import ConfigError, FrameError, MaskError
from lightning_vos.models.mavos.memory import MemoryRules
from lightning_vos.vos.track import Remembering, Tracker, track


@pytest.fixture(scope="module")
def mavos():
    """Its memories hold ten objects."""
    return tiny.network(test_rules=MemoryRules(interval=2))


@pytest.fixture(scope="module", params=["mavos", "hodor"])
def network(request, mavos):
    return mavos if request.param == "mavos" else tiny.hodor()  # the memory of HODOR takes any number of objects


def test_ids_come_out_as_they_went_in(network):
    mask = tiny.squares(200, 3, 17)
    predictions = list(track(network, tiny.frames(5), {0: mask}))
    assert len(predictions) == 5
    assert_close(predictions[0].labels, torch.from_numpy(mask).long())
    for prediction in predictions:
        assert prediction.object_ids == (3, 17, 200)
        assert prediction.labels.shape == (33, 33)
        assert prediction.labels.dtype == torch.int64
        assert set(prediction.labels.unique().tolist()) <= {0, 3, 17, 200}
        assert prediction.probabilities.shape == (4, 33, 33)
        assert_close(prediction.probabilities.sum(0), torch.ones(33, 33))
        best = torch.tensor([0, *prediction.object_ids])[prediction.probabilities.argmax(0)]
        assert torch.equal(prediction.labels[best > 0], best[best > 0])
        assert prediction.seconds > 0


def test_labels_are_the_most_probable_objects(mavos):
    for prediction in track(mavos, tiny.frames(5), {0: tiny.squares(200, 3)}):
        best = torch.tensor([0, *prediction.object_ids])[prediction.probabilities.argmax(0)]
        assert torch.equal(prediction.labels, best)


@pytest.mark.parametrize("kind", ["uint8 array", "uint16 array", "int64 tensor"])
def test_masks_of_any_integers(network, kind):
    mask = tiny.squares(1, 2)
    given = {
        "uint8 array": mask,
        "uint16 array": mask.astype(np.uint16) * 300,
        "int64 tensor": torch.from_numpy(mask).long(),
    }
    first = next(track(network, tiny.frames(1), {0: given[kind]}))
    assert first.object_ids == ((300, 600) if kind == "uint16 array" else (1, 2))


def test_steps_are_the_track(network):
    frames, prompts = tiny.frames(6), {0: tiny.squares(1), 3: tiny.squares(0, 5)}
    tracker = Tracker(network)
    stepped = [tracker.step(frame, prompts.get(t)) for t, frame in enumerate(frames)]
    for ours, theirs in zip(stepped, track(network, frames, prompts), strict=True):
        assert torch.equal(ours.probabilities, theirs.probabilities)
        assert ours.object_ids == theirs.object_ids
    assert tracker.object_ids == (1, 5)


def test_an_object_that_comes_later_leaves_ids_and_places_of_the_others(network):
    frames, later = tiny.frames(8), tiny.squares(0, 0, 4)
    alone = list(track(network, frames, {0: tiny.squares(7, 9)}))
    joined = list(track(network, frames, {0: tiny.squares(7, 9), 4: later}))
    for a, b in zip(alone[:4], joined[:4], strict=True):
        assert torch.equal(a.probabilities, b.probabilities)
    assert [p.object_ids for p in joined] == [(7, 9)] * 4 + [(7, 9, 4)] * 4
    assert (joined[4].labels[later == 4] == 4).all()
    assert len(joined[4].probabilities) == 4
    if network.capacity:  # HODOR decodes the frame with the new object's descriptor
        assert torch.equal(joined[4].labels[later == 0], alone[4].labels[later == 0])


def test_an_object_that_is_stated_again_loses_its_old_place(network):
    again = tiny.squares(0, 0, 1)
    said = list(track(network, tiny.frames(4), {0: tiny.squares(1, 2), 3: again}))[3]
    assert said.object_ids == (1, 2)
    assert torch.equal(said.labels == 1, torch.from_numpy(again == 1))


def test_a_removed_object_is_gone_and_no_other_takes_its_place(network):
    tracker, frames = Tracker(network), tiny.frames(8)
    tracker.step(frames[0], tiny.squares(1, 2, 3))
    tracker.step(frames[1])
    tracker.remove([2])
    said = tracker.step(frames[2])
    assert said.object_ids == (1, 3)
    assert not (said.labels == 2).any()
    assert len(said.probabilities) == 3
    assert_close(said.probabilities.sum(0), torch.ones(33, 33))
    assert tracker.memories[0].valid[0].nonzero().flatten().tolist() == ([0, 2] if network.capacity else [0, 1])
    back = tracker.step(frames[3], tiny.squares(0, 0, 0, 2))
    assert back.object_ids == (1, 3, 2)
    assert tracker.memories[0].valid[0].nonzero().flatten().tolist() == ([0, 2, 3] if network.capacity else [0, 1, 2])
    assert (back.labels[tiny.squares(0, 0, 0, 2) == 2] == 2).all()
    with pytest.raises(MaskError, match=r"Objects \{5\} cannot be removed: the tracked objects are \[1, 3, 2\]"):
        tracker.remove([1, 5])
    assert tracker.object_ids == (1, 3, 2), "a refused removal changes nothing"


def test_track_removes_before_the_frame(network):
    said = list(track(network, tiny.frames(5), {0: tiny.squares(1, 2)}, remove={3: (1,)}))
    assert [p.object_ids for p in said] == [(1, 2)] * 3 + [(2,)] * 2


def test_all_objects_may_go_and_others_come(network):
    said = list(track(network, tiny.frames(6), {0: tiny.squares(1), 4: tiny.squares(0, 2)}, remove={2: (1,)}))
    assert [p.object_ids for p in said] == [(1,)] * 2 + [()] * 2 + [(2,)] * 2
    assert not said[2].labels.any()
    assert (said[4].labels == 2).any()


@pytest.mark.parametrize(("count", "chunks"), [(12, [10, 2]), (23, [10, 10, 3])])
def test_more_objects_than_a_memory_holds(mavos, count, chunks):
    ids = tuple(range(2, 2 + 2 * count, 2))
    mask = tiny.squares(*ids, height=49, width=65)
    tracker, frames = Tracker(mavos), tiny.frames(4, 49, 65)
    assert torch.equal(tracker.step(frames[0], mask).labels, torch.from_numpy(mask).long())
    for frame in frames[1:]:
        said = tracker.step(frame)
    assert [int(memory.valid.sum()) for memory in tracker.memories] == chunks
    assert said.object_ids == ids
    assert said.probabilities.shape == (1 + count, 49, 65)
    tracker.remove(ids[:10])
    said = tracker.step(frames[0], tiny.squares(101, height=49, width=65))
    left = [*chunks[1:-1], chunks[-1] + 1]  # a chunk without objects is gone, the new one takes a free slot
    assert [int(memory.valid.sum()) for memory in tracker.memories] == left
    assert said.object_ids == (*ids[10:], 101)
    assert set(said.labels.unique().tolist()) <= {0, *said.object_ids}


def test_a_memory_without_a_limit_holds_them_all():
    ids = tuple(range(2, 64, 2))
    mask = tiny.squares(*ids, height=49, width=65)
    tracker, frames = Tracker(tiny.hodor()), tiny.frames(4, 49, 65)
    assert torch.equal(tracker.step(frames[0], mask).labels, torch.from_numpy(mask).long())
    for frame in frames[1:]:
        said = tracker.step(frame)
    assert [memory.valid.shape for memory in tracker.memories] == [(1, 31)]
    assert said.object_ids == ids
    tracker.remove(ids[:10])
    said = tracker.step(frames[0], tiny.squares(101, height=49, width=65))
    assert [memory.valid.shape for memory in tracker.memories] == [(1, 22)]
    assert said.object_ids == (*ids[10:], 101)
    assert said.probabilities.shape == (23, 49, 65)
    assert set(said.labels.unique().tolist()) <= {0, *said.object_ids}


def test_a_second_memory_does_not_disturb_the_first(mavos):
    """What is remembered of ten objects is the same whether two more are tracked beside them or not."""
    frames = tiny.frames(4, 49, 65)
    ten, twelve = (tiny.squares(*range(1, 1 + count), height=49, width=65) for count in (10, 12))
    few, many = Tracker(mavos), Tracker(mavos)
    for t, frame in enumerate(frames):
        few.step(frame, ten if t == 0 else None, forced=ten)
        many.step(frame, twelve if t == 0 else None, forced=twelve)
    assert len(many.memories) == 2
    for ours, theirs in zip(tensors(many.memories[0]), tensors(few.memories[0]), strict=True):
        assert_close(ours, theirs)
    assert not torch.equal(many.memories[1].short[0].identity, few.memories[0].short[0].identity)


@pytest.mark.parametrize(("height", "width"), [(50, 37), (9, 100), (33, 33), (8, 8)])
def test_results_have_the_size_of_the_video(network, height, width):
    mask = tiny.squares(1, height=height, width=width)
    first, second = track(network, tiny.frames(2, height, width), {0: mask})
    assert torch.equal(first.labels, torch.from_numpy(mask).long())
    assert second.labels.shape == (height, width)
    assert second.probabilities.shape == (2, height, width)


def test_a_size_of_ones_own(network):
    seen, encode = [], network.encode
    network.encode = lambda frames: seen.append(tuple(frames.shape[2:])) or encode(frames)
    try:
        said = list(track(network, tiny.frames(2, 50, 37), {0: tiny.squares(1, height=50, width=37)}, size=(64, 40)))
    finally:
        del network.encode
    assert set(seen) == {(65, 41) if network.capacity else (64, 40)}
    assert said[1].labels.shape == (50, 37)


def test_the_same_view_twice_is_one_view(network):
    frames, prompts = tiny.frames(4, 48, 48), {0: tiny.squares(1, 2, height=48, width=48)}
    once, twice = (list(track(network, frames, prompts, scales=(1.0,) * views)) for views in (1, 2))
    for first, second in zip(once, twice, strict=True):
        assert torch.equal(first.labels, second.labels)
        assert torch.allclose(first.probabilities, second.probabilities, atol=1e-6)
        assert torch.equal(first.labels > 0, first.probabilities.max(dim=0).indices > 0)


def test_several_scales_and_flips_are_averaged_and_remember_their_own(network):
    """The mean over passes that know nothing of one another; flipping a video flips what is said of it."""
    frames, prompts = tiny.frames(7, 49, 41), {0: tiny.squares(1, 2, height=49, width=41)}
    late = {**prompts, 4: tiny.squares(0, 0, 0, 5, height=49, width=41)}
    flipped = {t: np.ascontiguousarray(mask[:, ::-1]) for t, mask in late.items()}
    several = list(track(network, frames, late, remove={6: (2,)}, flip=True, scales=(1.0, 1.5)))
    alone = [
        list(track(network, views, masks, remove={6: (2,)}, scales=(scale,)))
        for scale in (1.0, 1.5)
        for views, masks in ((frames, late), (frames.flip(-1), flipped))
    ]
    for t, prediction in enumerate(several):
        parts = [said[t].probabilities for said in alone]
        mean = (parts[0] + parts[1].flip(-1) + parts[2] + parts[3].flip(-1)) / 4
        assert_close(prediction.probabilities, mean)
        assert_close(prediction.labels, torch.tensor([0, *prediction.object_ids])[mean.argmax(0)])
    assert max((a.probabilities - b.probabilities).abs().max() for a, b in zip(several, alone[0], strict=True)) > 0.01


def test_passes_see_their_own_sizes(network):
    seen, encode = [], network.encode
    network.encode = lambda frames: seen.append(tuple(frames.shape[2:])) or encode(frames)
    try:
        tracker = Tracker(network, flip=True, scales=(0.5, 2))
        tracker.step(tiny.frames(1, 49, 65)[0], tiny.squares(1, height=49, width=65))
    finally:
        del network.encode
    half, double = ((25, 33), (97, 129)) if network.capacity else ((24, 24), (72, 96))
    assert seen == [half, half, double, double]
    assert len(tracker.memories) == 4
    for wrong in ((), (1.0, 0.0), (-1.0,), (float("nan"),), (1.0, float("inf"))):
        with pytest.raises(ConfigError, match="factor above 0"):
            Tracker(network, scales=wrong)
    with pytest.raises(ConfigError, match="0 x 64 is none"):
        Tracker(network, (0, 64))


def test_what_does_not_fit_is_refused(network):
    frames, mask = tiny.frames(3), tiny.squares(1)
    tracker = Tracker(network)
    tracker.step(frames[0], mask)
    with pytest.raises(FrameError, match=r"Frame 1 is \(33, 34\), but the video began with \(33, 33\)"):
        tracker.step(tiny.frames(1, 33, 34)[0])
    for bad in (frames[:1], frames[0, :2], frames[0, 0]):
        with pytest.raises(FrameError, match=r"expected float of shape \(3, H, W\): RGB in \[0, 1\]"):
            Tracker(network).step(bad, mask)
    with pytest.raises(FrameError, match=r"torch\.uint8.*float"):
        Tracker(network).step((frames[0] * 255).byte(), mask)
    with pytest.raises(FrameError, match=r"up to 255, expected RGB in \[0, 1\]"):
        Tracker(network).step(torch.full((3, 33, 33), 255.0), mask)
    with pytest.raises(MaskError, match=r"mask of frame 0 is \(33, 34\), the frame is \(33, 33\)"):
        Tracker(network).step(frames[0], np.ones((33, 34), np.uint8))
    with pytest.raises(MaskError, match="holds the id -3"):
        Tracker(network).step(frames[0], torch.full((33, 33), -3))
    before = tracker.memories
    with pytest.raises(MaskError, match="label map to remember of frame 1"):
        tracker.step(frames[1], tiny.squares(0, 2), forced=np.ones((3, 3), np.uint8))
    assert tracker.memories == before
    assert tracker.object_ids == (1,)
    assert_close(tracker.step(frames[1]).labels, list(track(network, frames[:2], {0: mask}))[1].labels)


def test_videos_that_cannot_be_tracked_are_refused(network):
    frames, mask = tiny.frames(3), tiny.squares(1)
    for nothing in ({}, {0: np.zeros((33, 33), np.uint8)}):
        with pytest.raises(MaskError, match="nothing to track"):
            list(track(network, frames, nothing))
    with pytest.raises(FrameError, match="no frames"):
        list(track(network, [], {0: mask}))
    for wrong in (3, -1):
        with pytest.raises(MaskError, match=rf"frames \[{wrong}\], but the video ends with frame 2"):
            list(track(network, frames, {0: mask, wrong: mask}))
        with pytest.raises(MaskError, match=rf"removed for frames \[{wrong}\], but the video ends with frame 2"):
            list(track(network, frames, {0: mask}, remove={wrong: (1,)}))


def test_frames_before_the_first_object_are_background(network):
    said = list(track(network, tiny.frames(5), {2: tiny.squares(4), 0: np.zeros((33, 33), np.uint8)}))
    for prediction in said[:2]:
        assert not prediction.labels.any()
        assert prediction.object_ids == ()
        assert torch.equal(prediction.probabilities, torch.ones(1, 33, 33))
    assert [p.object_ids for p in said[2:]] == [(4,)] * 3
    later = list(track(network, tiny.frames(5)[2:], {0: tiny.squares(4)}))
    assert_close(said[4].probabilities, later[2].probabilities)


def tensors(value):
    """Every tensor inside memories."""
    if isinstance(value, torch.Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)


def test_nothing_grows_and_no_graph_is_kept(network):
    tracker, sizes = Tracker(network), []
    for t, frame in enumerate(tiny.frames(40)):
        said = tracker.step(frame, tiny.squares(1, 2) if t == 0 else None)
        sizes.append(sum(tensor.nbytes for tensor in tensors(tracker.memories)))
        assert not any(tensor.requires_grad for tensor in (said.probabilities, *tensors(tracker.memories)))
    assert sizes[0] > 0
    assert sizes[9] == sizes[39]
    held = {name: value for name, value in vars(tracker).items() if name not in {"network", "_passes"}}
    assert not list(tensors(tuple(held.values())))


def test_a_video_is_read_frame_by_frame(network):
    """No frame is asked for before the one before it is said, and a frame is read once."""
    read = []

    def reading():
        for t, frame in enumerate(tiny.frames(4)):
            read.append(t)
            yield frame

    remembering = Remembering(reading())
    for t, _ in enumerate(track(network, remembering, {0: tiny.squares(1)})):
        assert read == list(range(t + 1))
        assert torch.equal(remembering.latest, tiny.frames(4)[t])


def test_the_network_sees_prompts_alone(network):
    """Frames after the prompt change nothing that was said before them, and truth is never asked for."""
    frames = tiny.frames(6)
    said = list(track(network, frames, {0: tiny.squares(1)}))
    other = frames.clone()
    other[4:] = 0
    for a, b in zip(said[:4], track(network, other, {0: tiny.squares(1)}), strict=False):
        assert torch.equal(a.probabilities, b.probabilities)
    assert not {"truth", "masks", "annotations"} & {f.name for f in dataclasses.fields(tiny.video().video)}


def test_what_comes_and_goes_does_not_add_up(network):
    tracker = Tracker(network)
    tracker.step(tiny.frames(1)[0], tiny.squares(1))
    for number in range(2, 25):
        tracker.step(tiny.frames(1)[0], tiny.squares(number))
        tracker.remove([number])
    assert tracker.object_ids == (1,)
    assert len(tracker.memories) <= 2
    assert sum(memory.valid.shape[1] for memory in tracker.memories) <= (20 if network.capacity else 1)
    tracker.remove([1])
    assert tracker.memories == ()
    assert tracker.step(tiny.frames(1)[0], tiny.squares(7)).object_ids == (7,)
