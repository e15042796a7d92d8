"""What becomes of the long-term memory: which frames each policy keeps, and what the learned ones make of two."""

from typing import NamedTuple

import pytest
import tiny
import torch
from torch.testing import assert_close

from lightning_vos.models.mavos import memory as policies
from lightning_vos.models.mavos.elstt import ELSTT
from lightning_vos.models.mavos.fusion import CrossAttention, FocalModulation, FusionBlock, GlobalContextAttention
from lightning_vos.models.mavos.lstt import LSTT
from lightning_vos.models.mavos.memory import MemoryRules
from lightning_vos.models.mavos.module import MAVOS
from lightning_vos.vos.track import Tracker

SIZE, TOKENS = (2, 3), 6
LEARNED = {
    "cross_attention": policies.CrossAttentionMemory,
    "focal": policies.FocalMemory,
    "gcvit": policies.GlobalContextMemory,
    "mca": policies.ModulatedCrossAttentionMemory,
}
PLAIN = {
    "append": policies.Append,
    "capped": policies.Capped,
    "reference_only": policies.ReferenceOnly,
    "previous_only": policies.PreviousOnly,
    "reference_previous": policies.ReferencePrevious,
}


class Parts(NamedTuple):
    key: torch.Tensor
    value: torch.Tensor


def frame(number, layers=2, parts=(2, 3)):
    """A memory of one frame, filled with the frame's number."""
    return tuple(Parts(*(torch.full((1, TOKENS, width), float(number)) for width in parts)) for _ in range(layers))


def numbers(bank):
    """The numbers of the frames in a bank, after a look at every part of every layer."""
    held = {tuple(part.unflatten(1, (-1, TOKENS)).flatten(2).mean(2)[0].tolist()) for layer in bank for part in layer}
    assert len(held) == 1
    return list(map(int, held.pop()))


def kept(policy, count, references=()):
    bank, history = frame(0), []
    for number in range(1, count):
        bank = policy.update(bank, frame(number), SIZE, is_reference=number in references)
        assert type(bank[0]) is Parts
        history.append(numbers(bank))
    return history


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (policies.Append(2, (2, 3)), [[1, 0], [2, 1, 0], [3, 2, 1, 0], [4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0]]),
        (policies.ReferenceOnly(2, (2, 3)), [[0], [0], [3, 0], [3, 0], [3, 0]]),
        (policies.PreviousOnly(2, (2, 3)), [[1], [2], [3], [4], [5]]),
        (policies.ReferencePrevious(2, (2, 3)), [[1, 0], [2, 0], [3, 0], [4, 0], [5, 0]]),
        (policies.Capped(2, (2, 3), 2), [[1, 0], [2, 0], [3, 0], [4, 0], [5, 0]]),
        (policies.Capped(2, (2, 3), 3, "oldest"), [[1, 0], [2, 1, 0], [3, 2, 0], [4, 3, 0], [5, 4, 0]]),
        # What is dropped is the second newest of those before the new frame: the first frames stay.
        (policies.Capped(2, (2, 3), 3), [[1, 0], [2, 1, 0], [3, 2, 0], [4, 3, 0], [5, 4, 0]]),
        (policies.Capped(2, (2, 3), 4), [[1, 0], [2, 1, 0], [3, 2, 1, 0], [4, 3, 1, 0], [5, 4, 1, 0]]),
        (policies.Capped(2, (2, 3), 4, "oldest"), [[1, 0], [2, 1, 0], [3, 2, 1, 0], [4, 3, 2, 0], [5, 4, 3, 0]]),
    ],
)
def test_frames_that_stay(policy, expected):
    assert kept(policy, 6, references=(3,)) == expected
    assert not policy.is_learned


def test_a_limit_of_six_is_seven_frames_with_the_five_first_among_them():
    """LVOS's author drops the second newest before the new frame enters a bank of more than six."""
    bank = [0]
    for number in range(1, 20):
        if len(bank) > 6:
            del bank[1]
        bank = [number, *bank]
    assert kept(policies.Capped(2, (2, 3)), 20)[-1] == bank == [19, 18, 4, 3, 2, 1, 0]


def random_frame(layers, parts, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(Parts(*(torch.randn(2, TOKENS, width, generator=generator) for width in parts)) for _ in range(layers))


@pytest.mark.parametrize("name", LEARNED)
@torch.no_grad()
def test_a_learned_memory_folds_from_the_second_update_on(name):
    torch.manual_seed(0)
    policy = LEARNED[name](2, (8, 16)).eval()
    assert policy.is_learned
    reference, first, second = (random_frame(2, (8, 16), seed) for seed in range(3))
    bank = policy.update(reference, first, SIZE, is_reference=False)
    for layer in range(2):
        for part in range(2):
            assert torch.equal(bank[layer][part], torch.cat([first[layer][part], reference[layer][part]], 1))
    bank = policy.update(bank, second, SIZE, is_reference=False)
    for layer in range(2):
        for part in range(2):
            dynamic, rest = bank[layer][part].split(TOKENS, dim=1)
            assert torch.equal(rest, reference[layer][part])
            block = policy.blocks[layer][part]
            assert_close(dynamic, block(second[layer][part], first[layer][part], SIZE))
            assert (dynamic - second[layer][part]).abs().max() > 1e-4  # it is not just replaced
    other = policy.update(
        policy.update(reference, reference, SIZE, is_reference=False), second, SIZE, is_reference=False
    )
    assert (other[0][0] - bank[0][0])[:, :TOKENS].abs().max() > 1e-5  # the old dynamic frame matters


@torch.no_grad()
def test_cross_attention_is_multi_head_attention():
    torch.manual_seed(0)
    module, new, context = CrossAttention(8, 2), torch.randn(2, TOKENS, 8), torch.randn(2, TOKENS, 8)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.in_proj_weight.copy_(torch.cat([module.query.weight, module.key.weight, module.value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([torch.zeros(16), module.value.bias]))
    theirs.out_proj.load_state_dict(module.projection.state_dict())
    assert_close(module(new, context, SIZE), theirs(new, context, context)[0])


@torch.no_grad()
def test_focal_modulation_is_a_product_at_each_position():
    torch.manual_seed(0)
    module, new, context = FocalModulation(8), torch.randn(2, TOKENS, 8), torch.randn(2, TOKENS, 8)
    modulator = module.context(context, SIZE).values
    expected = torch.stack(
        [module.projection(module.query(new)[:, i] * modulator[:, :, i // 3, i % 3]) for i in range(TOKENS)], 1
    )
    assert_close(module(new, context, SIZE), expected)


@torch.no_grad()
def test_windows_keep_to_themselves_and_the_global_query_does_not():
    torch.manual_seed(0)
    size = (5, 7)
    module, new, context = GlobalContextAttention(8, 4, window=4), torch.randn(1, 35, 8), torch.randn(1, 35, 8)
    said = module(new, context, size)
    changed = context.clone()
    changed[:, 6] += 1  # row 0, column 6: the upper right window
    moved = (module(new, changed, size) - said).abs().amax(2)[0].view(size) > 1e-6
    expected = torch.zeros(size, dtype=torch.bool)
    expected[:4, 4:] = True
    assert torch.equal(moved, expected)
    changed = new.clone()
    changed[:, 6] += 1
    moved = (module(changed, context, size) - said).abs().amax(2)[0].view(size) > 1e-6
    # Itself, and in every window the place whose query is pooled from there: row 0, column 3.
    assert moved.nonzero().tolist() == [[0, 3], [0, 6], [4, 3]]


@torch.no_grad()
def test_windowed_attention_is_attention_within_one_window():
    """On a map that is one window half of the heads ask with the positions, half with the pooled ones, the same."""
    torch.manual_seed(0)
    module, new, context = GlobalContextAttention(8, 2, window=3), torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    query = torch.cat([module.query(new), module.global_query(new)], 2)
    heads = (x.unflatten(2, (2, 4)).transpose(1, 2) for x in (query, module.key(context), module.value(context)))
    query, key, value = heads
    attended = ((query @ key.transpose(2, 3)) / 2).softmax(3) @ value
    assert_close(module(new, context, (3, 3)), module.projection(attended.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("transformer", [ELSTT, LSTT])
@pytest.mark.parametrize("name", [*PLAIN, *LEARNED])
def test_every_row_trains_a_step_and_tracks(name, transformer):
    policy = (PLAIN | LEARNED)[name]
    rules = MemoryRules(interval=1)
    network = tiny.network(policy, transformer, train_rules=rules, test_rules=rules)
    mavos = MAVOS(network.train())
    before = {key: p.detach().clone() for key, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    mavos.unroll(tiny.clip(5), 0.2, mavos._permutation(2)).total.backward()
    without = {key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    # Residual branches of the encoder start at zero; a bias of keys alone shifts every logit of a query alike.
    assert {key for key in without if not key.startswith("backbone") and not key.endswith("key.bias")} == set()
    optimizer.step()
    moved = {key for key, p in network.named_parameters() if not torch.equal(p, before[key])}
    assert any(key.startswith("policy") for key in moved) == (name in LEARNED)
    tracker, frames = Tracker(network.eval()), tiny.frames(9)
    held = []
    for t, picture in enumerate(frames):
        said = tracker.step(picture, tiny.squares(1, 2) if t == 0 else None)
        held.append(tracker.memories[0].bank_frames)
    assert torch.isfinite(said.probabilities).all()
    once = tracker.memories[0].bank_bytes / held[-1]
    assert once == sum(TOKENS_OF_TINY * width * 4 for _ in range(2) for width in network.transformer.parts)
    expected = {"append": list(range(1, 10)), "capped": [1, 2, 3, 4, 5, 6, 7, 7, 7]}
    constant = {"reference_only": [1] * 9, "previous_only": [1] * 9}
    assert held == (expected | constant).get(name, [1] + [2] * 8)


TOKENS_OF_TINY = 25  # 33 pixels at stride 8


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_focal_levels(levels):
    policy = policies.ModulatedCrossAttentionMemory(1, (8,), levels=levels)
    kernels = [conv.kernel_size[0] for conv in policy.blocks[0][0].attention.context.focal]
    assert kernels == [3, 5, 7][:levels]
    policy.blocks[0][0](torch.randn(1, 6, 8), torch.randn(1, 6, 8), SIZE).sum().backward()
    assert all(p.grad is not None for p in policy.parameters())


def test_blocks_start_near_the_new_frame():
    new, context = torch.randn(2, 1, 6, 16)
    for operator in (CrossAttention(16), FocalModulation(16), GlobalContextAttention(16)):
        block = FusionBlock(16, operator).eval()
        assert (block(new, context, SIZE) - new).abs().max() < 0.2 * new.abs().max()


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: policies.Capped(1, (8,), frames=1), "frames is 1"),
        (lambda: policies.Capped(1, (8,), evict="newest"), "evict is 'newest'"),
        (lambda: policies.FocalMemory(1, (8,), levels=0), "levels is 0"),
        (lambda: policies.CrossAttentionMemory(1, (8,), heads=3), "heads is 3"),
        (lambda: policies.GlobalContextMemory(1, (9,), heads=3), "heads is 3"),
        (lambda: policies.GlobalContextMemory(1, (8,), window=0), "window 0"),
        (lambda: LSTT(1, 36, heads=5), "heads is 5"),
    ],
)
def test_options_out_of_range_say_so(build, word):
    with pytest.raises(ValueError, match=word):
        build()
