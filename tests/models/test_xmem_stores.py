"""Stores of XMem and QMVOS that are not XMem's own three: policies of MAVOS, budgets; and running out of memory."""

from functools import partial

import pytest
import tiny
import torch
from torch.testing import assert_close

from lightning_vos.errors import CheckpointError, ConfigError, DeviceMemoryError
from lightning_vos.models.mavos import memory as policies
from lightning_vos.models.qmvos.memory import LongTermRules, StoreRules
from lightning_vos.models.qmvos.module import QMVOS
from lightning_vos.published import load_weights, qmvos
from lightning_vos.vos.track import Tracker

POLICIES = {
    "append": policies.Append,
    "capped": partial(policies.Capped, frames=3),
    "cross_attention": policies.CrossAttentionMemory,
    "focal": policies.FocalMemory,
    "gcvit": partial(policies.GlobalContextMemory, window=3),
    "mca": policies.ModulatedCrossAttentionMemory,
    "previous_only": policies.PreviousOnly,
    "reference_only": policies.ReferenceOnly,
    "reference_previous": policies.ReferencePrevious,
}
FRAMES_KEPT = {"append": 6, "capped": 3, "previous_only": 1, "reference_only": 1}  # of 6; the others keep 2
RULES = StoreRules(interval=1, long_term=None)


def follow(network, video, prompts, rules=RULES, remove=None):
    network.test_rules = rules
    tracker, predictions, memories = Tracker(network), [], []
    for time, frame in enumerate(video):
        if remove and time in remove:
            tracker.remove(remove[time])
        predictions.append(tracker.step(frame, prompts.get(time)))
        memories.append(tracker.memories[0])
    return predictions, memories


def labels(*ids):
    return torch.from_numpy(tiny.squares(*ids, height=27, width=27)).long()


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("queries", [None, tiny.queries()], ids=["xmem", "qmvos"])
def test_every_policy_is_a_store(name, queries):
    network = tiny.qmvos(queries=queries, memory=POLICIES[name])
    predictions, memories = follow(network, tiny.frames(6, 27, 27), {0: labels(1, 2)})
    assert memories[-1].bank_frames == FRAMES_KEPT.get(name, 2)
    assert memories[-1].work is None
    assert memories[-1].bank_bytes == sum(part.nbytes for part in memories[-1].banks[0][0])
    for prediction in predictions:
        assert prediction.probabilities.isfinite().all()
        assert_close(prediction.probabilities.sum(dim=0), torch.ones(27, 27))


def test_appending_is_the_working_memory_without_condensing():
    own, appended = tiny.qmvos(), tiny.qmvos(memory=policies.Append)
    appended.load_state_dict(own.state_dict())
    prompts = {0: labels(1), 3: labels(0, 2)}
    video = tiny.frames(8, 27, 27)
    for one, other in zip(follow(own, video, prompts)[0], follow(appended, video, prompts)[0], strict=True):
        assert_close(one.probabilities, other.probabilities, rtol=1e-4, atol=1e-5)


def test_groups_have_banks_of_their_own_that_stay_bounded():
    network = tiny.qmvos(memory=policies.ModulatedCrossAttentionMemory)
    prompts = {0: labels(1, 2), 3: labels(0, 0, 3), 12: labels(0, 2)}
    predictions, memories = follow(network, tiny.frames(20, 27, 27), prompts, remove={8: (2,)})
    assert [prediction.object_ids for prediction in predictions[::6]] == [(1, 2), (1, 2, 3), (1, 3, 2), (1, 3, 2)]
    sizes = [tuple(bank[0].value.shape[0] for bank in memory.banks) for memory in memories]
    assert (sizes[0], sizes[7], sizes[8], sizes[12]) == ((2,), (2, 1), (1, 1), (1, 1, 1))
    assert {memory.bank_frames for memory in memories[5:]} == {2}
    assert all(prediction.probabilities.isfinite().all() for prediction in predictions)


def test_the_reference_of_a_late_group_is_the_frame_it_came_in():
    network = tiny.qmvos(memory=policies.ReferenceOnly)
    video = tiny.frames(5, 27, 27)
    _, memories = follow(network, video, {0: labels(1), 2: labels(0, 2)})
    first, late = (bank[0].key for bank in memories[-1].banks)
    assert first.shape == late.shape
    key = network.encode(network.canvas.enter(video[2:3], network.canvas.view((27, 27)))).keys.key
    assert_close(late, key.flatten(2).transpose(1, 2))
    assert not torch.allclose(first, late)


def test_shrinkage_is_that_of_the_frame_folded_in():
    network = tiny.qmvos(memory=policies.ModulatedCrossAttentionMemory)
    video = tiny.frames(4, 27, 27)
    _, memories = follow(network, video, {0: labels(1)})
    newest = network.encode(network.canvas.enter(video[3:], network.canvas.view((27, 27)))).keys
    kept, positions = memories[-1].banks[0][0], memories[-1].positions
    assert_close(kept.shrinkage[:, :positions], newest.shrinkage.flatten(2).transpose(1, 2))
    assert not torch.allclose(kept.key[:, :positions], newest.key.flatten(2).transpose(1, 2), atol=1e-3)


@pytest.mark.parametrize("name", POLICIES)
def test_training_reaches_every_parameter(name):
    network = tiny.qmvos(memory=POLICIES[name])
    whole, clip = QMVOS(network, max_objects=2), tiny.clip(4, batch=2)
    torch.manual_seed(0)
    whole.unroll(clip, 0.3, whole.draw(2, 4)).loss.backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_clips_that_never_fold_are_refused():
    whole = QMVOS(tiny.qmvos(memory=policies.ModulatedCrossAttentionMemory), max_objects=2)
    with pytest.raises(ConfigError, match=r"Clips of 3 frames .*\n.*sampler.length to 4"):
        whole.unroll(tiny.clip(3), 0.3, whole.draw(2, 3))


# --- budgets


def test_no_budget_changes_no_rule():
    rules = LongTermRules()
    assert rules.within_budget(1620, 10**6) is rules
    assert LongTermRules(budget_frames=1000.0).within_budget(1620, 4).capacity == 10_000


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"budget_frames": 12}, (6, 5, 128, 600)),  # half for the working memory
        ({"budget_frames": 7}, (3, 2, 128, 400)),
        ({"budget_megabytes": 1.0}, (5, 4, 128, 548)),  # 1,048 positions of 1,000 bytes
        ({"budget_frames": 12, "budget_megabytes": 1.0}, (5, 4, 128, 548)),
    ],
)
def test_a_budget_leaves_room_for_fewer(budget, expected):
    fitted = LongTermRules(**budget).within_budget(100, 1000)
    assert (fitted.max_frames, fitted.min_frames, fitted.prototypes, fitted.capacity) == expected


@pytest.mark.parametrize("budget", [{"budget_frames": 3.5}, {"budget_megabytes": 0.3}])
def test_a_budget_that_holds_too_little_names_what_helps(budget):
    with pytest.raises(
        ConfigError, match=r"frame of this video has 100;\nat least 400 .*4.0 frames, or 0.4 MiB.*\n.*budget_meg"
    ):
        LongTermRules(**budget).within_budget(100, 1000)


@pytest.mark.parametrize("budget", [{"budget_frames": 0}, {"budget_megabytes": -1.0}])
def test_budgets_are_above_zero(budget):
    with pytest.raises(ValueError, match="numbers above 0"):
        LongTermRules(**budget)


@pytest.mark.parametrize("late_groups", ["official", "aligned"])
def test_a_budget_in_megabytes_holds_while_objects_come_and_go(late_groups):
    network = tiny.qmvos(queries=None)
    budget = 0.025
    rules = LongTermRules(6, 3, 4, 60, late_groups, budget_megabytes=budget)
    prompts = {0: labels(1), 15: labels(0, 2), 25: labels(0, 0, 3)}
    predictions, memories = follow(
        network, tiny.frames(50, 27, 27), prompts, StoreRules(1, 5, rules), remove={40: (1,)}
    )
    held = [memory.bank_bytes / 2**20 for memory in memories]
    assert max(held) <= budget
    assert max(held) > 0.6 * budget
    assert all(prediction.probabilities.isfinite().all() for prediction in predictions)


# --- out of memory


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_running_out_of_memory_names_the_knobs(error, monkeypatch):
    network = tiny.qmvos()
    tracker = Tracker(network)
    video = tiny.frames(2, 27, 27)
    tracker.step(video[0], labels(1, 2))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(network, "segment", fail)
    with pytest.raises(DeviceMemoryError, match=r"frame 1: .* 32 x 32 pixels, 2 objects.*\n.*\n.*budget_megabytes"):
        tracker.step(video[1])


def test_other_errors_of_a_network_stay_what_they_are(monkeypatch):
    network = tiny.qmvos()

    def fail(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(network, "encode", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        Tracker(network).step(tiny.frames(1, 27, 27)[0], labels(1))


def test_knobs_are_those_of_the_store():
    assert "long_term.budget_megabytes" in tiny.qmvos().memory_knobs
    assert "memory/mca.yaml" in tiny.qmvos(memory=policies.Append).memory_knobs
    assert "null keeps every frame" in tiny.qmvos(test_rules=StoreRules(long_term=None)).memory_knobs


# --- weights of another stage or method


def test_qmvos_starts_from_xmem(tmp_path):
    xmem, whole = tiny.qmvos(queries=None), tiny.qmvos(seed=1)
    torch.save({"state_dict": xmem.state_dict()}, tmp_path / "xmem.pt")
    with pytest.raises(CheckpointError, match=r"2 entries left over: decoder.prediction"):
        load_weights(whole, tmp_path / "xmem.pt", ["queries"])
    queries = {name: value.clone() for name, value in whole.queries.state_dict().items()}
    line = load_weights(whole, tmp_path / "xmem.pt", ["queries", "decoder.prediction"])
    assert "start as they were" in line
    assert_close(whole.key.key.weight, xmem.key.key.weight)
    assert all(torch.equal(value, queries[name]) for name, value in whole.queries.state_dict().items())


@pytest.fixture
def single_object_file(tmp_path):
    """A network, and a published file of it that lacks the plane of other objects."""
    network = qmvos.build("xmem")
    state = qmvos.to_published(network.state_dict())
    state["value_encoder.conv1.weight"] = state["value_encoder.conv1.weight"][:, :4].clone()
    torch.save(state, tmp_path / "stage0.pth")
    return network, tmp_path / "stage0.pth"


def test_a_file_of_single_objects_gets_a_plane_of_the_others(single_object_file):
    network, path = single_object_file
    before = network.value.body.conv1.weight.detach().clone()
    load_weights(network, path)
    stem = network.value.body.conv1.weight
    assert_close(stem[:, :4], before[:, :4])
    assert not stem[:, 4].any()
    network.value.start_others()
    plane = stem[:, 4].detach().flatten(1)
    assert_close(plane.T @ plane, torch.eye(49), rtol=0.0, atol=1e-5)
    again = stem.detach().clone()
    network.value.start_others()
    assert_close(stem.detach(), again)
