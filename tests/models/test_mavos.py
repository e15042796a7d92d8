"""What makes MAVOS what it is: the window, the modulated memory, constant size, sequential training."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vos.backbones import Backbone
from lightning_vos.errors import ConfigError
from lightning_vos.losses.segmentation import BootstrappedJaccard
from lightning_vos.models.mavos.attention import attend_window, local_weights
from lightning_vos.models.mavos.fusion import FusionBlock
from lightning_vos.models.mavos.memory import Append, MemoryRules, ModulatedCrossAttentionMemory
from lightning_vos.models.mavos.modulated_cross_attention import ModulatedCrossAttention
from lightning_vos.models.mavos.module import MAVOS
from lightning_vos.models.mavos.network import IdentityAssignment, MAVOSNetwork
from lightning_vos.optim import PolynomialSchedule
from lightning_vos.structures import Clip
from lightning_vos.vos.track import Tracker, track


def window_inputs(height, width, window, keys=3, values=4):
    torch.manual_seed(height * width)
    shape = (2, height, width)
    sizes = (keys, keys, values, window**2)
    return [torch.randn(*shape, size, dtype=torch.float64, requires_grad=True) for size in sizes]


def local_attention(query, key, value, relative, window):
    return attend_window(local_weights(query, key, relative, window), value)


def attention_by_loops(query, key, value, relative, window):
    """For each position: a softmax over the positions of its window that lie on the map."""
    batch, height, width, channels = query.shape
    reach, rows = window // 2, []
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                logits, values = [], []
                for offset in range(window**2):
                    dy, dx = y + offset // window - reach, x + offset % window - reach
                    if 0 <= dy < height and 0 <= dx < width:
                        logits.append(query[b, y, x] @ key[b, dy, dx] / channels**0.5 + relative[b, y, x, offset])
                        values.append(value[b, dy, dx])
                rows.append(torch.stack(logits).softmax(0) @ torch.stack(values))
    return torch.stack(rows).view(batch, height, width, -1)


@pytest.mark.parametrize(("height", "width", "window"), [(2, 3, 7), (6, 4, 3), (1, 5, 5), (5, 6, 1)])
def test_local_attention_is_attention_to_a_window(height, width, window):
    inputs = window_inputs(height, width, window)
    found, expected = local_attention(*inputs, window), attention_by_loops(*inputs, window)
    assert_close(found, expected)
    weight = torch.randn_like(found)
    gradients = [torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs)


class Largest(TorchDispatchMode):
    """Notes the numbers in the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_local_attention_never_holds_every_pair():
    largest = []
    for side in (15, 60):
        inputs = [tensor.detach() for tensor in window_inputs(side, side, 5)]
        with Largest() as mode:
            local_attention(*inputs, 5)
        largest.append(mode.numbers)
    pairs = 2 * 60**4
    assert largest[1] < pairs / 8
    assert largest[1] / largest[0] < 4**3.2  # rows of a window meet rows of the map: side ** 3, not side ** 4


@pytest.mark.parametrize("batch", [1, 3])
def test_local_attention_keeps_no_copies_of_rows_for_the_gradient(batch):
    inputs = [tensor[:1].detach().expand(batch, -1, -1, -1).clone() for tensor in window_inputs(20, 20, 9, values=512)]
    for tensor in inputs:
        tensor.requires_grad_()
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.setdefault(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()) and x, lambda x: x
    ):
        local_attention(*inputs, 9)
    rows, weights = 28 * 28 * 512, 20 * 20 * 9 * 28  # numbers of 8 bytes; nine copies of the rows would be too many
    assert sum(kept.values()) < 8 * batch * (2 * rows + 8 * weights)


def test_spatial_values_stay_at_their_positions_and_official_ones_do_not():
    torch.manual_seed(0)
    size, channels, heads = (3, 4), 8, 2
    official, spatial = (ModulatedCrossAttention(channels, heads, 2, layout) for layout in ("official", "spatial"))
    spatial.load_state_dict(official.state_dict())
    new, context = torch.randn(2, 2, 12, channels)
    expected = torch.empty(2, 12, channels)  # Eq. 6: softmax(q k) times the modulated value of each position
    values = spatial.context(context, size).values
    query, key = spatial.query(new), spatial.key(context)
    for b in range(2):
        for head in range(heads):
            part = slice(head * channels // heads, (head + 1) * channels // heads)
            for i in range(12):
                weights = (key[b, :, part] @ query[b, i, part] / (channels // heads) ** 0.5).softmax(0)
                expected[b, i, part] = sum(w * values[b, part, j // 4, j % 4] for j, w in enumerate(weights))
    expected = spatial.projection(expected)
    assert_close(spatial(new, context, size), expected)
    assert (official(new, context, size) - expected).abs().max() > 0.01


def run(network, frames, *, labels=None, steps=None):
    """A tracker after all frames, and what it said; `labels` are forced."""
    tracker, said = Tracker(network), []
    for t, frame in enumerate(frames):
        forced = None if labels is None else labels[t]
        said.append(tracker.step(frame, tiny.squares(1, 2) if t == 0 else None, forced=forced))
        if steps is not None:
            steps.append(tracker.memories[0])
    return tracker, said


def test_the_bank_is_two_frames_for_ever_and_the_reference_stays():
    network, steps = tiny.network(test_rules=MemoryRules(interval=3)), []
    run(network, tiny.frames(60), steps=steps)
    tokens = steps[0].short[0].key.shape[1]
    assert [memory.bank_frames for memory in steps] == [1] * 3 + [2] * 57
    assert {memory.bank_bytes for memory in steps[3:]} == {2 * steps[0].bank_bytes}
    reference = steps[0].long
    for memory in steps[3:]:
        for layer, first in zip(memory.long, reference, strict=True):
            for part, original in zip(layer, first, strict=True):
                assert torch.equal(part[:, tokens:], original)
    assert [memory.updated for memory in steps] == [t - t % 3 for t in range(60)]
    assert not torch.equal(steps[3].long[0].key, steps[6].long[0].key)


def test_the_first_update_is_kept_as_it_is_and_the_second_is_folded():
    network, steps = tiny.network(test_rules=MemoryRules(interval=1)), []
    run(network, tiny.frames(3), steps=steps)
    tokens = steps[0].short[0].key.shape[1]
    first, second = steps[1:]
    assert torch.equal(first.long[1].identity[:, :tokens], first.short[1].identity)
    block = network.policy.blocks[1][2]
    size = tuple(int(tokens**0.5) for _ in range(2))
    expected = block(second.short[1].identity, first.long[1].identity[:, :tokens], size)
    assert_close(second.long[1].identity[:, :tokens], expected)


def module(*, interval=2, **settings):
    return MAVOS(tiny.network(train_rules=MemoryRules(interval=interval)), **settings)


def test_a_clip_must_reach_the_learned_policy():
    mavos = module()
    with pytest.raises(ConfigError, match=r"6 frames on.*\n.*--data\.sampler\.length"):
        mavos.unroll(tiny.clip(5), 0.0, None)
    mavos.unroll(tiny.clip(6), 0.0, None).total.backward()
    without = [name for name, p in mavos.network.policy.named_parameters() if p.grad is None]
    assert without == []


def test_a_policy_without_parameters_takes_clips_of_any_length():
    network = tiny.network(Append)
    assert not network.policy.is_learned
    assert torch.isfinite(MAVOS(network).unroll(tiny.clip(2), 0.0, None).total)


def test_every_learning_parameter_gets_a_gradient():
    mavos = module(interval=1).train()
    mavos.unroll(tiny.clip(5), 0.2, mavos._permutation(2)).total.backward()
    assert [name for name, p in mavos.network.named_parameters() if p.requires_grad and p.grad is None] == []


def test_too_many_objects_in_a_clip_are_refused():
    clip = tiny.clip(6)
    with pytest.raises(ConfigError, match="11 objects, training takes 10"):
        module().unroll(Clip(clip.frames, clip.masks, torch.tensor([11, 2])), 0.0, None)


def test_the_permutation_of_identities_is_undone():
    """Exchanging the columns of the bank instead gives the same logits at the same slots."""
    network, clip = tiny.network(), tiny.clip(6)
    permutation = MAVOS(network)._permutation(1).expand(2, -1, -1)
    assert_close(permutation.sum(1), torch.ones(2, 11))
    assert_close(permutation.sum(2), torch.ones(2, 11))
    assert permutation[0, 0, 0] == 1
    planes = F.one_hot(clip.masks[:, 0], 11).movedim(3, 1).float()
    embedded = network.assignment(planes, permutation)
    logits = torch.randn(2, 11, 4, 4)
    mixed = torch.einsum("bohw,bot->bthw", logits, permutation)
    assert_close(IdentityAssignment.restore(mixed, permutation), logits)
    order = permutation[0].argmax(1)
    assert_close(embedded, network.assignment(torch.zeros_like(planes).index_copy(1, order, planes)))
    permuted = MAVOS(network).unroll(clip, 0.0, permutation)
    with torch.no_grad():
        network.assignment.bank.weight.copy_(network.assignment.bank.weight[:, order])
        network.decoder.exit.weight.copy_(network.decoder.exit.weight[order])
        network.decoder.exit.bias.copy_(network.decoder.exit.bias[order])
    assert_close(MAVOS(network).unroll(clip, 0.0, None).frames, permuted.frames)


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_a_clip_is_unrolled_as_a_video_is_tracked(progress):
    """Truth is remembered before `sequential_from`, own labels after it; step by step that is the tracker."""
    network, clip = tiny.network(test_rules=MemoryRules(interval=2)), tiny.clip(7, batch=1)
    with torch.no_grad():
        losses = MAVOS(network, BootstrappedJaccard()).unroll(clip, progress, None)
    forced = list(clip.masks[0]) if progress == 0 else None
    _, said = run(network, clip.frames[0], labels=forced)
    assert_close(losses.labels[:, 0], torch.stack([p.labels for p in said[1:]]))
    loss = BootstrappedJaccard()
    for t in range(1, 7):
        logits = torch.full((1, 11, 33, 33), -1e10)
        logits[0, :3] = said[t].probabilities.log()
        assert_close(loss(logits, clip.masks[:, t], progress), losses.frames[t], rtol=1e-4, atol=1e-5)
    weight = 1 - progress
    assert_close(losses.total, losses.frames[1:].mean() + weight * losses.frames[0].mean())


class StubTrainer:
    """The numbers of a trainer that the module reads."""

    def __init__(self, step, steps):
        self.global_step, self.estimated_stepping_batches = step, steps


def attached(mavos, step, steps=100):
    mavos._trainer = StubTrainer(step, steps)
    mavos.log = lambda *_, **__: None
    return mavos


def test_sequential_training_leaves_the_identity_assignment_alone():
    mavos = attached(module(interval=1), 0)
    (optimizer,) = [mavos.configure_optimizers()["optimizer"]]
    for step, moves in ((49, True), (50, False), (99, False)):
        attached(mavos, step)
        before = {name: p.detach().clone() for name, p in mavos.network.named_parameters()}
        optimizer.zero_grad()
        loss = mavos.training_step(tiny.clip(4, seed=step), 0)
        loss.backward()
        mavos.on_before_optimizer_step(optimizer)
        optimizer.step()
        moved = {n for n, p in mavos.network.named_parameters() if not torch.equal(p, before[n])}
        assert {n for n in moved if n.startswith("assignment")} == (
            {n for n in before if n.startswith("assignment")} if moves else set()
        )
        assert any(n.startswith("policy") for n in moved)


def test_parameter_groups_and_rates():
    mavos = attached(MAVOS(tiny.network(), schedule=PolynomialSchedule(floor=1e-5, backbone_factor=0.1)), 0, steps=1000)
    configured = mavos.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    names = {id(p): name for name, p in mavos.network.named_parameters()}
    groups = [({names[id(p)] for p in g["params"]}, g["weight_decay"]) for g in optimizer.param_groups]
    assert sorted(name for group, _ in groups for name in group) == sorted(names.values())
    for group, decay in groups:
        for name in group:
            parameter = mavos.network.get_parameter(name)
            plain = parameter.dim() > 1 and not name.endswith("bias") and not name.startswith("decoder.exit")
            assert decay == (0.07 if plain else 0.0), name
        assert len({name.startswith("backbone") for name in group}) == 1
    for step in range(1, 1001):
        optimizer.step()
        scheduler.step()
        if step in (50, 500, 1000):
            rates = {
                next(iter(g)).startswith("backbone"): o["lr"]
                for (g, _), o in zip(groups, optimizer.param_groups, strict=True)
            }
            expected = {50: 1e-4, 500: 1e-5 + 9e-5 * (1 - 450 / 951) ** 0.9, 1000: 1e-5 + 9e-5 * (1 / 951) ** 0.9}
            assert rates[False] == pytest.approx(expected[step])
            assert rates[True] - 1e-5 == pytest.approx(0.1 * (rates[False] - 1e-5))


def test_training_without_an_end_is_refused():
    for steps in (-1, float("inf")):
        with pytest.raises(ConfigError, match=r"--trainer\.max_steps"):
            attached(module(), 0, steps=steps).configure_optimizers()


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: tiny.network(window=4), "window is 4"),
        (lambda: tiny.network(layers=0), "layers is 0"),
        (lambda: tiny.network(channels=24), "channels 24"),
        (lambda: MemoryRules(interval=0), "interval is 0"),
        (lambda: ModulatedCrossAttentionMemory(1, (8, 16), levels=0), "levels is 0"),
        (lambda: ModulatedCrossAttentionMemory(1, (8, 16), heads=3), "heads is 3"),
        (lambda: ModulatedCrossAttentionMemory(1, (8, 16), value_layout="other"), "value_layout is 'other'"),
        (lambda: MAVOS(tiny.network(), sequential_from=1.5), "sequential_from is 1.5"),
        (lambda: MAVOS(tiny.network(), auxiliary_until=-1), "auxiliary_until -1"),
        (lambda: BootstrappedJaccard(hardest=0), "hardest is 0"),
        (lambda: PolynomialSchedule(warmup=2), "warmup is 2"),
    ],
)
def test_options_out_of_range_say_so(build, word):
    with pytest.raises(ValueError, match=word):
        build()


def test_sources_are_refused():
    network = tiny.network()
    frames = tiny.frames(1)
    features, view = network.encode(frames), network.canvas.view(tuple(frames.shape[2:]))
    memory = network.start(torch.ones(1, 10, dtype=torch.bool), network.test_rules)
    with pytest.raises(ConfigError, match="no times"):
        network.segment(features, memory, view, time=1, sources=torch.zeros(1, 1))


def test_bfloat16_is_close_to_float32():
    """Random weights amplify rounding, so this is loose: 0.05 in probability on average over ten frames."""
    network = tiny.network(test_rules=MemoryRules(interval=2))
    labels = [torch.from_numpy(tiny.squares(1, 2, shift=t % 3)) for t in range(10)]
    _, exact = run(network, tiny.frames(10), labels=labels)
    with torch.autocast("cpu", torch.bfloat16):
        _, rounded = run(network, tiny.frames(10), labels=labels)
    differences = [(a.probabilities - b.probabilities).abs().mean() for a, b in zip(exact, rounded, strict=True)]
    assert max(differences) < 0.05
    assert max(differences) > 0  # autocast was on


def test_blocks_start_near_the_new_frame():
    block = FusionBlock(16, ModulatedCrossAttention(16)).eval()
    new, context = torch.randn(2, 1, 12, 16)
    assert (block(new, context, (3, 4)) - new).abs().max() < 0.2 * new.abs().max()


def test_the_identity_bank_starts_orthogonal():
    bank = IdentityAssignment(11, 32, 8).bank.weight.flatten(1)
    assert_close(bank @ bank.T, torch.eye(32) * 9.0**-4, rtol=1e-3, atol=1e-8)


def test_the_network_is_the_same_after_tracking():
    network = tiny.network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    list(track(network, tiny.frames(12), {0: tiny.squares(1)}))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_atto", "regnety_002", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_other_encoders_train_a_step(name, align_corners):
    side = 65 if align_corners else 64
    backbone = Backbone(name, frozen_stages=1)
    network = MAVOSNetwork(backbone, channels=32, layers=1, window=5, align_corners=align_corners)
    clip = tiny.clip(6, batch=1)
    clip = clip._replace(
        frames=F.interpolate(clip.frames[0], (side, side))[None],
        masks=F.interpolate(clip.masks.float(), (side, side)).long(),
    )
    before = {key: p.detach().clone() for key, p in network.named_parameters()}
    MAVOS(network).unroll(clip, 0.0, None).total.backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    moved = {key for key, p in network.named_parameters() if not torch.equal(p, before[key])}
    for part in ("backbone.body", "transformer", "policy", "decoder.exit"):
        assert any(key.startswith(part) for key in moved), part
    with torch.no_grad():
        maps = backbone(clip.frames[0])
    assert [features.shape[2] for features in maps[:3]] == [-(-side // stride) for stride in (4, 8, 16)]


def test_a_last_map_of_another_stride_is_refused():
    with pytest.raises(ConfigError, match="stride 32, MAVOS needs 16"):
        MAVOSNetwork(Backbone("swin_tiny_patch4_window7_224", final=True))
