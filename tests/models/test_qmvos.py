"""What makes XMem and QMVOS what they are: three stores, groups of objects that came together, queries as filters."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from lightning_vos.errors import ConfigError
from lightning_vos.models.qmvos.memory import LongTermRules, StoreRules, condense, evicted, joined, new_store, read
from lightning_vos.models.qmvos.module import QMVOS, Draws
from lightning_vos.models.qmvos.network import QMVOSNetwork, aggregate
from lightning_vos.models.qmvos.similarity import affinity, anisotropic_similarity
from lightning_vos.vos.canvas import PaddingCanvas, View
from lightning_vos.vos.track import Tracker, track

FOREVER = StoreRules(interval=2, long_term=None)


@pytest.fixture(scope="module")
def qmvos():
    return tiny.qmvos()


@pytest.fixture(scope="module")
def xmem():
    return tiny.qmvos(queries=None)


@pytest.fixture(params=["xmem", "qmvos"])
def network(request):
    return request.getfixturevalue(request.param)


def follow(network, frames, prompts, rules=FOREVER, remove=None):
    """Every prediction of a video and the memory after each frame, None where there is none."""
    network.test_rules = rules
    tracker, predictions, memories = Tracker(network), [], []
    for time, frame in enumerate(frames):
        if remove and time in remove:
            tracker.remove(remove[time])
        predictions.append(tracker.step(frame, prompts.get(time)))
        memories.append(tracker.memories[0] if tracker.memories else None)
    return predictions, memories


# Their padding lies so that every eighth pixel, at which queries see masks, meets each square.
def frames(count, height=27, width=27, seed=0):
    return tiny.frames(count, height, width, seed)


def squares(*ids, height=27, width=27, shift=0):
    return torch.from_numpy(tiny.squares(*ids, height=height, width=width, shift=shift)).long()


def at(labels, *ids):
    """A label map with these of its objects alone."""
    return labels * torch.isin(labels, torch.tensor(ids))


# --- similarity


def keys(memory=7, query=5, channels=6, seed=0):
    """Key (2, C, M), shrinkage (2, 1, M), query (2, C, P) and selection (2, C, P)."""
    torch.manual_seed(seed)
    key, asked = torch.randn(2, channels, memory), torch.randn(2, channels, query)
    return key, 1 + torch.rand(2, 1, memory), asked, torch.rand(2, channels, query)


def test_similarity_is_a_weighted_distance():
    key, shrinkage, query, selection = keys()
    squares = (key[:, :, :, None] - query[:, :, None]).square() / math.sqrt(6)  # (B, C, M, P)
    weighted = -(selection[:, :, None] * squares).sum(dim=1)
    assert_close(anisotropic_similarity(key, None, query, selection), weighted)
    assert_close(anisotropic_similarity(key, shrinkage, query, selection), shrinkage.transpose(1, 2) * weighted)
    plain = anisotropic_similarity(key, None, query, None)
    assert_close(affinity(plain).weights, (-squares.sum(dim=1)).softmax(dim=1))


@pytest.mark.parametrize("top_k", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("offset", [0.0, -200.0, -1e4])
def test_affinities_are_shares_of_the_best(top_k, offset):
    torch.manual_seed(0)
    similarity = torch.randn(2, 7, 5) + offset
    found = affinity(similarity, top_k)
    assert_close(found.weights.sum(dim=1), torch.ones(2, 5))
    weights = found.average(torch.eye(7).expand(2, -1, -1))  # what is read of values that are all told apart
    assert_close(found.usage(7), weights.sum(dim=2))
    count = min(top_k or 7, 7)
    assert ((weights > 0).sum(dim=1) == count).all()
    best = similarity >= similarity.sort(dim=1, descending=True).values[:, count - 1 : count]
    expected = similarity.masked_fill(~best, -torch.inf).softmax(dim=1)
    assert_close(weights, expected)


def test_odds_of_certain_objects_are_finite_in_half_precision():
    planes = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    for objects in (planes, planes.half()):
        logits = aggregate(objects)
        assert logits.dtype == torch.float32
        assert logits.max() == pytest.approx(15.94, abs=0.01)
        assert logits.min() == pytest.approx(-16.12, abs=0.01)
        assert logits.argmax(dim=1).flatten().tolist() == [1, 0]


# --- stores

P = 3  # positions of a frame
RULES = LongTermRules(max_frames=6, min_frames=3, prototypes=4, capacity=20)


def store(histories=(6,), frames=6, seed=0, first=0):
    """A working memory of `frames`, its groups of two objects with values of the last `histories` of them.

    Positions are numbered from `first` on, and so far apart that a softmax over them chooses one; the first channel of
    keys and values is the number.
    """
    torch.manual_seed(seed)
    number = torch.arange(first, first + frames * P, dtype=torch.float32)
    key = torch.stack([number, torch.zeros_like(number)])[None]
    shrinkage, selection = torch.full((1, 1, frames * P), 100.0), torch.ones(1, 2, frames * P)
    values = tuple(number[(frames - length) * P :].expand(1, 2, 3, -1).clone() for length in histories)
    made = new_store(key, shrinkage, selection, values)
    return replace(made, usage=torch.rand(1, frames * P), life=torch.ones(1, frames * P))


def numbers(part):
    return part.flatten(0, -2)[0].tolist()


def test_what_two_stores_say_is_read_together():
    work, long = store((4, 2), frames=4, first=100), store((2, 1), frames=2)
    torch.manual_seed(0)
    work, long = (replace(one, key=torch.randn_like(one.key), shrinkage=1 + one.usage[:, None]) for one in (work, long))
    query, selection = torch.randn(1, 2, 5), torch.rand(1, 2, 5)
    found, read_long, read_work = read(long, work, query, selection, 4)
    key, shrinkage = torch.cat([long.key, work.key], dim=2), torch.cat([long.shrinkage, work.shrinkage], dim=2)
    similarity = anisotropic_similarity(key, shrinkage, query, selection)
    whole = affinity(similarity, 4)
    everything = torch.cat([long.values[0], work.values[0]], dim=3)
    assert_close(found[0].flatten(1, 2), whole.average(everything.flatten(1, 2)))
    tail = torch.cat([similarity[:, P : 2 * P], similarity[:, -2 * P :]], dim=1)  # what the later group holds
    later = torch.cat([long.values[1], work.values[1]], dim=3)
    assert_close(found[1].flatten(1, 2), affinity(tail, 4).average(later.flatten(1, 2)))
    reads = whole.usage(similarity.shape[1])
    assert_close(read_long.usage, long.usage + reads[:, : 2 * P])
    assert_close(read_work.usage, work.usage + reads[:, 2 * P :])
    assert torch.equal(read_work.life, work.life + 1)


def test_a_group_that_the_long_term_memory_lacks_reads_the_working_memory_alone():
    work, long = store((4, 2), frames=4, first=100), store((2,), frames=2)
    found, _, _ = read(long, work, torch.tensor([[[3.0], [0.0]]]), torch.ones(1, 2, 1), 30)
    assert found[0][0, 0, 0, 0] == 3
    assert found[1][0, 0, 0, 0] == 106  # the nearest of those that it has


def test_reads_of_a_later_group_alone_are_counted_where_they_belong():
    work = store((2,), frames=4)
    _, none, counted = read(None, work, torch.randn(1, 2, 5), torch.ones(1, 2, 5), None)
    assert none is None
    assert torch.equal(counted.usage[:, : 2 * P], work.usage[:, : 2 * P])
    assert_close((counted.usage - work.usage).sum(), torch.tensor(5.0))


def test_joined_stores():
    first, second = store((2,), frames=2), store((1, 1), frames=1, first=2 * P)
    assert joined(None, first) is first
    both = joined(first, second)
    assert numbers(both.key) == list(range(3 * P))
    assert numbers(both.values[0]) == list(range(3 * P))
    assert numbers(both.values[1]) == list(range(2 * P, 3 * P))
    assert both.size == 3 * P
    assert both.usage.shape == both.life.shape == (1, 3 * P)
    assert both.selection is not None
    assert joined(replace(first, selection=None), second).selection is None
    assert both.nbytes > first.nbytes + second.nbytes - 1


def test_nothing_is_condensed_while_there_is_room():
    work, long = store((5,), frames=5), store((2,), frames=2)
    assert condense(work, None, RULES, P) == (work, None)
    kept, same = condense(work, long, RULES, P)
    assert kept is work
    assert same is long


def test_the_middle_becomes_prototypes_of_what_is_read_most():
    work = store()
    usage = torch.tensor([9.0] * P + [1, 8, 2, 7, 3, 6, 0, 5, 4] + [9.0] * 2 * P)[None]
    life = torch.ones_like(usage)
    life[0, P + 1] = 4  # 8 reads in so long a life are few
    kept, long = condense(replace(work, usage=usage, life=life), None, RULES, P)
    ends = [*range(P), *range(4 * P, 6 * P)]
    assert numbers(kept.key) == numbers(kept.values[0]) == ends
    assert torch.equal(kept.usage, usage[:, ends])
    assert kept.selection.shape[2] == kept.size == 3 * P
    best = [P + 3, P + 5, P + 7, P + 8]  # 7, 6, 5 and 4
    assert sorted(numbers(long.key)) == best
    assert_close(long.values[0][0, 0, 0], long.key[0, 0])
    assert long.selection is None
    assert not long.usage.any()
    assert (long.life > 0).all()


def test_prototypes_are_means_by_similarity():
    work = store()
    torch.manual_seed(1)
    soft = replace(
        work,
        key=torch.randn_like(work.key),
        shrinkage=1 + torch.rand_like(work.shrinkage),
        selection=torch.rand_like(work.selection),
        values=(torch.randn_like(work.values[0]),),
    )
    _, long = condense(soft, None, RULES, P)
    middle = slice(P, 4 * P)
    order = soft.usage[0, middle].topk(4).indices + P
    assert torch.equal(long.key, soft.key[..., order])
    weights = anisotropic_similarity(
        soft.key[..., middle], soft.shrinkage[..., middle], soft.key[..., order], soft.selection[..., order]
    ).softmax(dim=1)
    assert_close(long.shrinkage, soft.shrinkage[..., middle] @ weights)
    assert_close(long.values[0], torch.einsum("bncm,bmp->bncp", soft.values[0][..., middle], weights))


def test_there_may_be_fewer_candidates_than_prototypes():
    _, long = condense(store(), None, replace(RULES, prototypes=128, capacity=1000), P)
    assert sorted(numbers(long.key)) == list(range(P, 4 * P))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6])
def test_values_of_a_later_group_as_published(length):
    """It keeps its own first frame; four frames lose theirs in the middle without a prototype."""
    kept, long = condense(store((6, length)), None, RULES, P)
    own = list(range((6 - length) * P, 6 * P))
    expected = own if length < 4 else own[:P] + own[-2 * P :]
    assert numbers(kept.values[1]) == expected
    condensed = own[P : -2 * P] if length > 4 else []
    assert numbers(long.values[1]) == [n for n in numbers(long.key) if n in condensed]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6])
def test_values_of_a_later_group_that_stay_beside_their_keys(length):
    rules = replace(RULES, late_groups="aligned", capacity=1000)
    for seed in range(5):
        kept, long = condense(store((6, length), seed=seed), None, rules, P)
        for time in range(6, 20):
            for one in (kept, long):
                for value in one.values:
                    assert value.shape[3] <= one.size
                    assert numbers(value) == numbers(one.key)[one.size - value.shape[3] :]
            # All is condensed that it says of prototypes.
            own = [n for n in numbers(long.key) if n >= (6 - length) * P]
            assert numbers(long.values[1]) == own
            new = store((1, 1), frames=1, seed=time, first=time * P)
            kept, long = condense(joined(kept, new), long, rules, P)


def test_eviction_takes_the_least_used():
    long = store((4, 2), frames=4)
    usage = torch.tensor([5.0, 1, 9, 4, 3, 8, 2, 7, 6, 11, 0, 12])[None]
    long = replace(long, usage=usage, life=torch.ones(1, 12))
    left = evicted(long, 8)
    assert numbers(left.key) == numbers(left.values[0]) == [0, 2, 3, 5, 7, 8, 9, 11]
    assert numbers(left.values[1]) == [7, 8, 9, 11]
    assert torch.equal(left.usage, usage[:, [0, 2, 3, 5, 7, 8, 9, 11]])
    assert left.size == 8


@pytest.mark.parametrize("target", [12, 13, 100])
def test_eviction_without_a_surplus(target):
    long = store((4,), frames=4)
    assert evicted(long, target) is long


@pytest.mark.parametrize(("max_frames", "min_frames"), [(3, 2), (6, 5), (6, 3)])
@pytest.mark.parametrize("late_groups", ["official", "aligned"])
def test_objects_of_the_first_frame_have_a_value_for_every_prototype(max_frames, min_frames, late_groups):
    work = store((max_frames,), max_frames)
    positions = work.size // max_frames
    _, long = condense(work, None, LongTermRules(max_frames, min_frames, 3, 20, late_groups), positions)
    assert long.values[0].shape[3] == long.size == 3


def test_counts_stay_exact_in_half_precision():
    key = torch.zeros(1, 4, 3, dtype=torch.bfloat16)
    made = new_store(key, key[:, :1] + 1, None, (key[:, None],))
    for _ in range(300):
        made = made.counted(torch.full((1, 3), 0.5, dtype=torch.bfloat16))
    assert_close(made.life, torch.full((1, 3), 300.0))
    assert_close(made.usage, torch.full((1, 3), 150.0))


def test_ties_are_evicted_together():
    long = replace(store((4,), frames=4), usage=torch.tensor([[1.0] * 6 + [2.0] * 6]), life=torch.ones(1, 12))
    assert numbers(evicted(long, 11).key) == list(range(6, 12))
    none = evicted(replace(long, usage=torch.zeros(1, 12)), 11)
    assert none.size == 0
    found, _, _ = read(none, store((2,), frames=2), torch.zeros(1, 2, 1), torch.ones(1, 2, 1), 30)
    assert found[0].isfinite().all()


@pytest.mark.parametrize("late_groups", ["official", "aligned"])
def test_the_long_term_memory_never_exceeds_its_capacity(late_groups):
    rules = LongTermRules(6, 3, prototypes=4, capacity=10, late_groups=late_groups)
    work, long = store((6, 3)), None
    sizes = []
    for time in range(6, 40):
        work, long = condense(work, long, rules, P)
        _, long, work = read(long, work, torch.rand(1, 2, P) * P * time, torch.ones(1, 2, P), 5)
        sizes.append(0 if long is None else long.size)
        work = joined(work, store((1, 1), frames=1, first=time * P))
        assert all(value.shape[3] <= one.size for one in (long, work) for value in one.values)
    assert max(sizes) <= 10
    assert min(sizes) >= 4


@pytest.mark.parametrize(
    "numbers",
    [
        {"max_frames": 5},
        {"min_frames": 1},
        {"min_frames": 10},
        {"prototypes": 0},
        {"capacity": 127},
        {"prototypes": -1, "capacity": 0},
    ],
)
def test_long_term_rules_that_cannot_be_are_refused(numbers):
    with pytest.raises(ValueError, match=r"LongTermRules: .*expected 1 < min_frames < max_frames"):
        LongTermRules(**numbers)


@pytest.mark.parametrize("numbers", [{"interval": 0}, {"top_k": 0}, {"interval": -3, "top_k": None}])
def test_store_rules_that_cannot_be_are_refused(numbers):
    with pytest.raises(ValueError, match=r"StoreRules: .*expected at least 1 of each"):
        StoreRules(**numbers)


# --- videos


def test_a_frame_in_several_is_remembered(network):
    rules = StoreRules(interval=3, long_term=None)
    prompts = {0: squares(1), 4: at(squares(1, 2), 2)}
    _, memories = follow(network, frames(10), prompts, rules)
    assert memories[-1].times == (0, 3, 4, 7)
    assert memories[-1].work.size == 4 * 4
    assert [value.shape[3] for value in memories[-1].work.values] == [4 * 4, 2 * 4]


def test_the_last_frame_is_not_remembered(network):
    network.test_rules = StoreRules(interval=1, long_term=None)
    tracker = Tracker(network)
    tracker.step(frames(1)[0], squares(1))
    tracker.step(frames(1)[0], last=True)
    assert tracker.memories[0].times == (0,)


def test_a_video_may_begin_without_objects(network):
    video = frames(8)
    late, _ = follow(network, video, {3: squares(4, 9)})
    begun, _ = follow(network, video[3:], {0: squares(4, 9)})
    for prediction in late[:3]:
        assert prediction.object_ids == ()
        assert not prediction.labels.any()
    for found, expected in zip(late[3:], begun, strict=True):
        assert found.object_ids == (4, 9)
        assert_close(found.probabilities, expected.probabilities)


@pytest.mark.parametrize("rules", [FOREVER, StoreRules(1, 5, LongTermRules(3, 2, 4, 12))])
def test_objects_that_come_late(network, rules):
    shown = squares(10, 20, 30, 40, 50)
    prompts = {0: at(shown, 10, 20), 2: at(shown, 30), 5: at(shown, 40, 50)}
    predictions, memories = follow(network, frames(9), prompts, rules)
    assert memories[-1].groups == ((0, 1), (2,), (3, 4))
    known = (10, 20)
    for time, prediction in enumerate(predictions):
        known += {2: (30,), 5: (40, 50)}.get(time, ())
        assert prediction.object_ids == known
        assert prediction.probabilities.shape == (1 + len(known), 27, 27)
        assert_close(prediction.probabilities.sum(dim=0), torch.ones(27, 27))
        assert set(prediction.labels.unique().tolist()) <= {0, *known}
        if time in prompts:
            stated = prompts[time] > 0
            assert torch.equal(prediction.labels[stated], prompts[time][stated])
    assert memories[-1].hidden.shape[1] == 5


def test_what_others_see_of_an_object_that_comes_is_nothing_before(network):
    alone, _ = follow(network, frames(6), {0: squares(1)})
    shown = squares(1, 2)
    both, _ = follow(network, frames(6), {0: at(shown, 1), 4: at(shown, 2)})
    for time in range(4):
        assert torch.equal(alone[time].probabilities, both[time].probabilities)
    assert not torch.equal(alone[5].probabilities[1], both[5].probabilities[1])


def test_an_object_that_is_stated_again(network):
    prompts = {0: squares(1, 2), 3: at(squares(1, 2, shift=2), 1)}
    predictions, memories = follow(network, frames(5), prompts, StoreRules(5, 30, None))
    stated = prompts[3] == 1
    assert (predictions[3].labels[stated] == 1).all()
    assert not (predictions[3].labels[~stated] == 1).any()
    assert predictions[3].object_ids == (1, 2)
    assert memories[-1].groups == ((0, 1),)
    assert memories[-1].times == (0, 3)


@pytest.mark.parametrize("removed", [(1, 2), (3,), (1,), (2, 3)])
def test_removal_leaves_what_is_said_of_others_alone(xmem, removed):
    """In XMem no object reads of another; what they share is the aggregation."""
    shown = squares(1, 2, 3)
    xmem.test_rules = StoreRules(1, 5, LongTermRules(3, 2, 4, 12))
    trackers = [Tracker(xmem) for _ in range(2)]
    video = frames(8)
    for time, frame in enumerate(video[:7]):
        for tracker in trackers:
            tracker.step(frame, {0: at(shown, 1, 2), 2: at(shown, 3)}.get(time))
    trackers[1].remove(removed)
    left = [n for n in range(3) if n + 1 not in removed]
    assert trackers[1].object_ids == tuple(n + 1 for n in left)
    whole, part = (tracker.memories[0] for tracker in trackers)
    assert sorted(slot for group in part.groups for slot in group) == list(range(len(left)))
    features = xmem.encode(xmem.canvas.enter(video[7:], view := xmem.canvas.view((27, 27))))
    with torch.no_grad():
        logits, seen = xmem.segment(features, whole, view, time=7)
        fewer, seen_part = xmem.segment(features, part, view, time=7)
    assert_close(fewer, logits[:, left], rtol=1e-4, atol=1e-4)
    assert_close(seen_part.candidate, seen.candidate[:, left], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gone", [(1, 2), (3,), (2,)])
def test_objects_that_are_removed_and_come_again(network, gone):
    shown = squares(1, 2, 3)
    prompts = {0: at(shown, 1, 2), 2: at(shown, 3), 6: at(shown, *gone)}
    predictions, memories = follow(network, frames(9), prompts, remove={4: gone})
    left = tuple(i for i in (1, 2, 3) if i not in gone)
    assert predictions[4].object_ids == left
    assert predictions[6].object_ids == left + gone
    for prediction in predictions:
        assert prediction.probabilities.isfinite().all()
    assert not torch.isin(predictions[5].labels, torch.tensor(gone)).any()
    assert sum(len(group) for group in memories[-1].groups) == 3
    assert memories[-1].hidden.shape[1] == 3


def test_slots_do_not_add_up(network):
    shown = squares(1, 2)
    prompts = {0: shown} | {time: at(shown, 2) for time in range(1, 21)}
    _, memories = follow(
        network,
        frames(21),
        prompts,
        StoreRules(5, 30, LongTermRules(3, 2, 4, 12)),
        {time: (2,) for time in range(1, 21)},
    )
    for memory in memories:
        assert memory.groups in (((0, 1),), ((0,), (1,)))
        assert len(memory.work.values) == len(memory.groups)
        assert memory.valid.shape == (1, 2)
        assert memory.hidden.shape[1] == 2
    assert memories[-1].work.size <= 3 * 4


def test_all_may_go_and_others_come(network):
    predictions, memories = follow(network, frames(6), {0: squares(1), 4: squares(0, 7)}, remove={2: (1,)})
    assert [prediction.object_ids for prediction in predictions] == [(1,), (1,), (), (), (7,), (7,)]
    assert memories[2] is None
    assert memories[-1].groups == ((0,),)
    begun, _ = follow(network, frames(6)[4:], {0: squares(0, 7)})
    assert_close(predictions[-1].probabilities, begun[-1].probabilities)


@pytest.mark.parametrize("late_groups", ["official", "aligned"])
def test_a_long_video_keeps_a_bounded_memory(xmem, late_groups):
    rules = StoreRules(1, 5, LongTermRules(3, 2, 4, 12, late_groups))
    shown = squares(1, 2, 3)
    prompts = {0: at(shown, 1), 10: at(shown, 2), 20: at(shown, 3), 45: at(shown, 1)}
    predictions, memories = follow(xmem, frames(60), prompts, rules, {30: (1,), 50: (2,)})
    assert predictions[-1].object_ids == (3, 1)
    assert all(prediction.probabilities.isfinite().all() for prediction in predictions)
    assert max(memory.work.size for memory in memories) < 3 * 4
    sizes = [memory.long.size for memory in memories if memory.long is not None]
    assert max(sizes) <= 12
    assert min(sizes[10:]) >= 4
    for memory in memories:
        for one in (memory.work, memory.long):
            assert one is None or all(value.shape[3] <= one.size for value in one.values)
    assert max(memory.bank_bytes for memory in memories) < 3 * memories[5].bank_bytes


@pytest.mark.parametrize("rules", [StoreRules(2), StoreRules(1, 7, LongTermRules(3, 2, 4, 12))])
def test_frames_of_odd_sizes(network, rules):
    predictions, memories = follow(network, frames(5, 61, 47), {0: squares(1, 2, height=61, width=47)}, rules)
    assert memories[0].work.size == 4 * 3
    for prediction in predictions:
        assert prediction.labels.shape == (61, 47)
        assert_close(prediction.probabilities.sum(dim=0), torch.ones(61, 47))
    assert torch.equal(predictions[0].labels, squares(1, 2, height=61, width=47))


def test_planes_are_resized_to_the_nearest_pixel(xmem):
    planes = torch.tensor([[[[1.0, 0.0, 1.0, 1.0]]]])
    assert xmem._enter(planes, View((1, 4), (1, 2), (1, 2))).flatten().tolist() == [1, 1]
    assert xmem._enter(planes, View((1, 4), (1, 4), (3, 4)))[0, 0].tolist() == [[0] * 4, [1, 0, 1, 1], [0] * 4]


def test_videos_do_not_disturb_one_another(network):
    videos = [
        (frames(5, seed=1), {0: squares(1, 2)}),
        (frames(5, 40, 27, seed=2), {1: squares(3, height=40)}),
    ]
    network.test_rules = StoreRules(1, 5, LongTermRules(3, 2, 4, 12))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    there = [list(track(network, *video)) for video in videos]
    back = [list(track(network, *video)) for video in reversed(videos)][::-1]
    for first, second in zip(there, back, strict=True):
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one.probabilities, other.probabilities)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_without_sensory_memory_tracks():
    network = tiny.qmvos(queries=None, hidden_channels=0)
    shown = squares(1, 2)
    predictions, memories = follow(network, frames(5), {0: at(shown, 1), 2: at(shown, 2)}, remove={4: (1,)})
    assert memories[-1].hidden is None
    assert predictions[-1].object_ids == (2,)
    assert all(prediction.probabilities.isfinite().all() for prediction in predictions)


# --- queries


def test_queries_of_the_first_frame_for_ever(qmvos, monkeypatch):
    video, prompts = frames(5), {0: squares(1, 2)}
    previous, of_previous = follow(qmvos, video, prompts)
    monkeypatch.setattr(qmvos.queries, "source", "first")
    first, of_first = follow(qmvos, video, prompts)
    for time in (0, 1):
        assert torch.equal(previous[time].probabilities, first[time].probabilities)
    assert not torch.equal(previous[2].probabilities, first[2].probabilities)
    for time in range(1, 5):
        assert torch.equal(of_first[time].queries, of_first[0].queries)
        assert not torch.equal(of_previous[time].queries, of_previous[0].queries)


@pytest.mark.parametrize("on_entry", ["official", "repaired"])
def test_first_queries_stay_when_an_object_comes(on_entry):
    network = tiny.qmvos(queries=tiny.queries(source="first", on_entry=on_entry))
    shown = squares(1, 2, 3)
    _, memories = follow(network, frames(7), {0: at(shown, 1, 2), 3: at(shown, 3), 5: at(shown, 1)})
    begun, entered, restated = (memories[time].queries for time in (2, 3, 6))
    assert_close(entered[:, :2], begun)
    assert entered.shape[1] == 3
    assert entered[:, 2].any()
    assert_close(restated, entered)


def test_queries_of_others_when_an_object_comes(qmvos, monkeypatch):
    shown = squares(1, 2, 3)
    video, prompts = frames(5), {0: at(shown, 1, 2), 2: at(shown, 3)}
    found = {}
    for rule in ("official", "repaired"):
        monkeypatch.setattr(qmvos.queries, "on_entry", rule)
        found[rule] = follow(qmvos, video, prompts)
    official, repaired = (found[rule][0] for rule in found)
    for time in range(3):
        assert torch.equal(official[time].probabilities, repaired[time].probabilities)
    assert not torch.equal(official[3].probabilities, repaired[3].probabilities)
    first, second, third = found["official"][1][2].queries[0]
    assert_close(first, second)  # of empty masks
    assert not torch.equal(first, third)
    first, second, _ = found["repaired"][1][2].queries[0]
    assert (first - second).abs().max() > 1e-3


def test_backbones_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"strides 4, 8 and 16, or 2, 4 and 8; the backbone has \[2, 4, 16\]"):
        QMVOSNetwork(tiny.backbone(strides=(2, 4, 16)))


def test_a_grid_of_half_the_stride():
    network = tiny.qmvos(
        backbone=tiny.backbone(), queries=tiny.queries(), canvas=PaddingCanvas(8, None, None, is_centred=True)
    )
    features = network.encode(torch.rand(1, 3, 40, 56))
    assert [tuple(part.shape[2:]) for part in (features.keys.key, *features.maps)] == [
        (5, 7),
        (5, 7),
        (10, 14),
        (20, 28),
    ]
    labels = [prediction.labels for prediction in track(network, frames(3), {0: squares(1, 2)})]
    assert all(one.shape == (27, 27) for one in labels)
    losses, _ = unrolled(module(network), tiny.clip(3, batch=1), seed=0, progress=0.0)
    assert losses.logits.shape[-2:] == (33, 33)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_rules": StoreRules(2, None, None)}, "train_rules has interval=2"),
        ({"train_rules": StoreRules(1, None, LongTermRules())}, "expected 1 and null"),
        ({"test_rules": StoreRules(is_synchronised=False)}, "training alone"),
        ({"canvas": PaddingCanvas(8, None, None)}, "canvas.multiple is 8"),
    ],
)
def test_rules_and_canvases_that_do_not_fit_are_refused(settings, words):
    with pytest.raises((ConfigError, ValueError), match=words):
        tiny.qmvos(**settings)


def test_widths_and_value_encoders_that_do_not_fit_are_refused():
    backbone = tiny.backbone(strides=(4, 8, 16))
    with pytest.raises(ValueError, match=r"value_channels=0, .* expected 1 or more"):
        QMVOSNetwork(backbone, value_channels=0)
    with pytest.raises(ConfigError, match=r"map 4 is at stride 16; 'vgg11' has 8"):
        QMVOSNetwork(backbone, value_backbone="vgg11")


# --- training


def module(network, **settings):
    return QMVOS(network, **{"max_objects": 2} | settings)


def unrolled(whole, clip, seed=0, progress=0.3):
    """Predictions of a clip, and the gradients of its loss."""
    torch.manual_seed(seed)
    draws = whole.draw(*clip.frames.shape[:2])
    whole.network.zero_grad()
    predictions = whole.unroll(clip, progress, draws)
    predictions.loss.backward()
    return predictions, {name: p.grad.clone() for name, p in whole.network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("length", "references"), [(2, 3), (4, 3), (8, 3), (8, 1), (6, 10)])
def test_what_chance_decides(xmem, length, references):
    whole = module(xmem, references=references)
    draws = [whole.draw(5, length) for _ in range(20)]
    for draw in draws:
        assert draw.deep_updates.shape == (length,)
        assert draw.deep_updates[0]
        assert not draw.deep_updates[-1]
        assert [one.shape for one in draw.sources] == [(5, min(time, references)) for time in range(1, length)]
        for time, one in enumerate(draw.sources, start=1):
            assert (one[:, 0] == 0).all()
            assert one.max() < time
            assert all(len(set(row)) == len(row) for row in one.tolist())
    if length == 8 and references == 3:
        assert {n for draw in draws for n in draw.sources[-1].flatten().tolist()} == set(range(7))
        assert any((draw.sources[-1] != draw.sources[-1][0]).any() for draw in draws)  # each clip its own
        middle = torch.stack([draw.deep_updates[1:-1] for draw in draws])
        assert middle.any()
        assert not middle.all()


@pytest.mark.parametrize("settings", [{"max_objects": 0}, {"references": 0}, {"deep_update": 1.5}, {"deep_update": -1}])
def test_modules_that_cannot_be_are_refused(xmem, settings):
    with pytest.raises(ValueError, match=r"QMVOS: .*expected at least 1 of each, and a probability"):
        QMVOS(xmem, **settings)


def test_too_many_objects_are_refused(xmem):
    whole = module(xmem)
    with pytest.raises(ConfigError, match="A clip holds 3 objects, training takes 2"):
        whole.unroll(tiny.clip(3, objects=3), 0.0, whole.draw(2, 3))


def test_batches_and_empty_slots_change_nothing(network):
    clip = tiny.clip(3)
    masks, objects = clip.masks.clone(), torch.tensor([2, 1])
    masks[1][masks[1] == 2] = 0
    clip = clip._replace(masks=masks, objects=objects)
    draws = Draws(torch.tensor([True, True, False]), tuple(torch.arange(t).expand(2, -1) for t in (1, 2)))
    with torch.no_grad():
        together = module(network).unroll(clip, 0.3, draws)
        for number, slots in ((0, 2), (1, 1), (0, 3)):
            one = type(clip)(*(part[number : number + 1] for part in clip))
            own = Draws(draws.deep_updates, tuple(part[:1] for part in draws.sources))
            alone = module(network, max_objects=slots).unroll(one, 0.3, own)
            count = 1 + int(objects[number])
            found, expected = alone.logits[:, 0, :count], together.logits[:, number, :count]
            assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert (together.logits[:, 1, 2] < -16).all()


def test_a_frame_reads_its_sources_alone():
    whole = module(tiny.qmvos(queries=None, hidden_channels=0))
    clip = tiny.clip(4, batch=1)
    frames = clip.frames.clone()
    frames[:, 1] = tiny.frames(1, seed=5)
    draws = Draws(torch.tensor([True, False, False, False]), tuple(torch.tensor([row]) for row in ([0], [0], [0, 2])))
    with torch.no_grad():
        one, other = (whole.unroll(c, 0.3, draws).logits for c in (clip, clip._replace(frames=frames)))
        assert not torch.equal(one[0], other[0])
        assert_close(one[1:], other[1:])
        everything = draws._replace(sources=tuple(torch.tensor([row]) for row in ([0], [0, 1], [0, 1, 2])))
        assert (whole.unroll(clip, 0.3, everything).logits[1] - one[1]).abs().max() > 1e-4


def test_checkpointing_of_activations_changes_nothing(network):
    clip = tiny.clip(4, batch=1)
    plain, expected = unrolled(module(network), clip)
    again, found = unrolled(module(network, activation_checkpointing=True), clip)
    assert_close(again.loss, plain.loss)
    assert found.keys() == expected.keys() == {name for name, _ in network.named_parameters()}
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=lambda text, name=name: f"{name}: {text}")


def test_a_clip_without_objects_has_a_loss(network):
    clip = tiny.clip(3, batch=1, objects=1)
    predictions, found = unrolled(module(network), clip._replace(masks=torch.zeros_like(clip.masks)))
    assert predictions.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in found.values())
    predictions, found = unrolled(module(network), clip._replace(masks=0 * clip.masks, objects=0 * clip.objects))
    assert predictions.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_a_training_step_in_bfloat16_has_finite_gradients(network):
    with torch.autocast("cpu", torch.bfloat16):
        whole = module(network)
        network.zero_grad()
        loss = whole.unroll(tiny.clip(3, batch=1), 0.3, whole.draw(1, 3)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_a_few_steps_learn_a_clip_with_frozen_statistics():
    network = tiny.qmvos(queries=tiny.queries(start_scale=0.0625))
    assert not any(part.training for part in network.modules())  # Lightning leaves that as it is
    whole = module(network).train()
    assert not any(part.training for part in network.modules())
    statistics = {name: value.clone() for name, value in network.named_buffers()}
    assert any("running_var" in name for name in statistics)
    clip = tiny.clip(3, batch=1)
    shown = clip.frames.clone()
    for number, colour in ((1, (1.0, 0.0, 0.0)), (2, (0.0, 0.0, 1.0))):
        shown = torch.where(clip.masks[:, :, None] == number, torch.tensor(colour).view(1, 1, 3, 1, 1), 0.3 * shown)
    clip = clip._replace(frames=shown)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for step in range(6):
        predictions, _ = unrolled(whole, clip, seed=step, progress=0.0)
        optimizer.step()
        losses.append(predictions.loss.item())
    assert losses[-1] < 0.7 * losses[0], losses
    assert all(torch.equal(value, statistics[name]) for name, value in network.named_buffers())
