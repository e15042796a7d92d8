"""What makes HODOR what it is: masks that attention learns through, descriptors of a window, cycles of few labels."""

import dataclasses
import math

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lightning_vos.errors import ConfigError
from lightning_vos.losses.segmentation import IGNORED
from lightning_vos.models.hodor.cycles import Step, paths
from lightning_vos.models.hodor.decoder import DescriptorHistory, ObjectDecoder, never
from lightning_vos.models.hodor.encoder import ObjectEncoder, background_cells, initial_descriptors
from lightning_vos.models.hodor.memory import WindowRules
from lightning_vos.models.hodor.module import HODOR
from lightning_vos.models.hodor.network import HODORNetwork
from lightning_vos.models.hodor.soft_masked_attention import SoftMaskedAttention
from lightning_vos.models.mavos.memory import MemoryRules
from lightning_vos.models.mavos.module import MAVOS
from lightning_vos.structures import Clip
from lightning_vos.vos.canvas import PaddingCanvas
from lightning_vos.vos.network import Given, advance, with_valid
from lightning_vos.vos.track import Tracker, track

CYCLES = ["none", "forward_backward", "published_mix"]


# --- soft-masked attention


def attention(masking="soft", strengths=(8.0, 2.0), seed=0, **settings):
    torch.manual_seed(seed)
    return SoftMaskedAttention(16, masking, strengths, **settings).eval()


def attended(pixels=11, seed=1):
    """Query (2, 3, 16), key and value (2, P, 16), masks (2, 3, P) in [0, 1]."""
    torch.manual_seed(seed)
    return torch.randn(2, 3, 16), torch.randn(2, pixels, 16), torch.randn(2, pixels, 16), torch.rand(2, 3, pixels)


def plain_attention(layer, query, key, value, bias=None):
    heads = [
        part(tokens).unflatten(2, (layer.heads, -1)).transpose(1, 2)
        for part, tokens in ((layer.query, query), (layer.key, key), (layer.value, value))
    ]
    return layer.output(F.scaled_dot_product_attention(*heads, attn_mask=bias).transpose(1, 2).flatten(2))


def test_it_is_plain_attention_where_masks_say_nothing():
    query, key, value, masks = attended()
    weights = attention().state_dict()
    for layer, given in (
        (attention(), torch.ones_like(masks)),
        (attention(strengths=(0.0, 0.0)), masks),
        (attention("none"), masks),
        (attention("hard"), torch.ones_like(masks)),
    ):
        layer.load_state_dict({name: value for name, value in weights.items() if name != "strengths"}, strict=False)
        assert_close(layer(query, key, value, given), plain_attention(layer, query, key, value))
    layer = attention()
    assert (layer(query, key, value, masks) - plain_attention(layer, query, key, value)).abs().max() > 0.01


def test_masks_are_added_to_logits_with_the_strength_of_each_head():
    query, key, value, masks = attended()
    layer = attention(strengths=(8.0, 0.5))
    bias = torch.stack([8.0 * masks, 0.5 * masks], dim=1)
    assert_close(layer(query, key, value, masks), plain_attention(layer, query, key, value, bias))
    shifted = layer(query, key, value, masks + torch.tensor([0.3, -2.0, 0.0]).view(1, 3, 1))
    assert_close(shifted, layer(query, key, value, masks), rtol=1e-4, atol=1e-5)


def test_divided_strengths_are_official_ones_by_the_root_of_the_width():
    inputs = attended()
    divided, official = attention(divided=True), attention(strengths=(8.0 / math.sqrt(8), 2.0 / math.sqrt(8)))
    assert_close(divided(*inputs), official(*inputs))
    assert (divided(*inputs) - attention()(*inputs)).abs().max() > 0.001


def test_masks_and_strengths_have_exact_gradients():
    layer = attention().double()
    query, key, value, masks = (tensor.double() for tensor in attended(pixels=5))

    def read(masks, strengths):
        return torch.func.functional_call(layer, {"strengths": strengths}, (query, key, value, masks))

    strengths = layer.strengths.detach().clone()
    assert torch.autograd.gradcheck(read, (masks.requires_grad_(), strengths.requires_grad_()))
    for gradient in torch.autograd.grad(read(masks, strengths).square().sum(), (masks, strengths)):
        assert gradient.abs().max() > 0


def test_very_strong_masks_are_hard_ones():
    query, key, value, masks = attended()
    binary = (masks > 0.5).float()
    assert binary.any(dim=2).all()
    strong, hard = attention(strengths=(1e4, 1e4)), attention("hard")
    hard.load_state_dict({name: value for name, value in strong.state_dict().items() if name != "strengths"})
    assert_close(hard(query, key, value, binary), strong(query, key, value, binary))
    assert_close(hard(query, key, value, masks), hard(query, key, value, binary))
    other = value.clone()
    outside = binary.sum(dim=1) == 0  # pixels of no mask
    other[outside] = 100.0
    assert outside.any()
    assert_close(hard(query, key, other, masks), hard(query, key, value, masks))


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_an_empty_hard_mask_is_none(value):
    query, key, values, masks = attended()
    masks[0, 1], masks[1] = value, value
    layer = attention("hard")
    read = layer(query.requires_grad_(), key, values, masks)
    plain = plain_attention(layer, query, key, values)
    assert_close(read[0, 1], plain[0, 1])
    assert_close(read[1], plain[1])
    assert (read[0, 0] - plain[0, 0]).abs().max() > 1e-4
    read.sum().backward()
    for tensor in (query, *layer.parameters()):
        assert torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((16, "other"), "masking is 'other'"),
        ((16, "soft", ()), r"strengths are \(\)"),
        ((16, "soft", (1.0, 2.0, 3.0)), "channels 16"),
        ((16, "none", ()), r"strengths are \(\)"),
    ],
)
def test_an_attention_that_cannot_be_is_refused(arguments, found):
    with pytest.raises(ValueError, match=f"{found}.*expected soft, hard or none, and a strength for each head"):
        SoftMaskedAttention(*arguments)


# --- encoder and decoder


def encoder(layers=2, background=4, **settings):
    torch.manual_seed(0)
    return ObjectEncoder(16, layers, background, strengths=(8.0, 2.0), **settings).eval()


def described(objects=3, background=4, seed=1):
    """Features (2, 16, 6, 7) and masks (2, 4 + N, 6, 7)."""
    torch.manual_seed(seed)
    return torch.randn(2, 16, 6, 7), torch.rand(2, background + objects, 6, 7)


@pytest.mark.parametrize("count", [1, 2, 4, 9, 12, 16])
@pytest.mark.parametrize("size", [(13, 17), (4, 4), (2, 3)])
def test_every_position_is_in_one_cell_of_the_background(count, size):
    cells = background_cells(count, *size)
    assert cells.shape == (count, *size)
    assert torch.equal(cells.sum(dim=0), torch.ones(size))
    if min(size) >= 4:
        assert cells.flatten(1).any(dim=1).all()


def test_the_last_cells_take_the_rest():
    cells = background_cells(9, 8, 11).view(3, 3, 8, 11)
    assert cells.sum(dim=(2, 3)).tolist() == [[6, 6, 10], [6, 6, 10], [12, 12, 20]]
    with pytest.raises(ValueError, match="no grid of 5 background cells: expected one of 1, 2, 4, 9, 12, 16"):
        background_cells(5, 8, 8)


def test_descriptors_begin_as_the_mean_of_what_is_inside():
    features, masks = described()
    masks[0, 5] = 0.5 * masks[0, 5]  # no pixel above a half: the highest stands for it
    masks[0, 5, 2, 3] = 0.5
    masks[1, 6], masks[1, 2] = 0.0, 0.4  # an object without a trace: the first pixel; an empty cell: nothing
    features.requires_grad_()
    found = initial_descriptors(features, masks, 4)
    for sample in range(2):
        for number in range(7):
            expected = features[sample][:, masks[sample, number] > 0.5].mean(dim=1)
            if (sample, number) == (0, 5):
                expected = features[0, :, 2, 3]
            elif (sample, number) == (1, 6):
                expected = features[1, :, 0, 0]
            elif (sample, number) == (1, 2):
                expected = torch.zeros(16)
            assert_close(found[sample, number], expected)
    assert not found.requires_grad
    assert initial_descriptors(features, masks[:, :4], 4).shape == (2, 4, 16), "no object at all"


def test_the_order_of_slots_does_not_matter():
    features, masks = described()
    valid, order = torch.tensor([[True, True, True], [True, False, True]]), [2, 0, 1]
    net = encoder()
    plain = net(features, masks, valid)
    turned = net(features, torch.cat([masks[:, :4], masks[:, 4:][:, order]], dim=1), valid[:, order])
    assert_close(turned.background, plain.background)
    assert_close(turned.objects, plain.objects[:, order])
    assert (plain.objects[:, 0] - plain.objects[:, 1]).abs().max() > 0.01


def test_an_empty_slot_influences_nobody():
    features, masks = described()
    valid = torch.tensor([[True, False, True], [True, False, True]])
    net = encoder()
    some = net(features, masks, valid)
    other = masks.clone()
    other[:, 5] = torch.rand(2, 6, 7)
    without = torch.cat([masks[:, :5], masks[:, 6:]], dim=1)
    for changed, kept in ((net(features, other, valid), [0, 2]), (net(features, without, valid[:, [0, 2]]), [0, 1])):
        assert_close(changed.background, some.background)
        assert_close(changed.objects[:, kept], some.objects[:, [0, 2]])
    assert (net(features, other, torch.ones_like(valid)).objects[:, 0] - some.objects[:, 0]).abs().max() > 1e-3
    assert all(torch.isfinite(part).all() for part in net(features, masks, torch.zeros_like(valid)))


def test_all_encoder_layers_start_equal_and_are_not_one():
    layers = encoder(layers=3).layers
    first = dict(layers[0].named_parameters())
    for layer in layers[1:]:
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, first[name])
            assert parameter is not first[name]


def decoded(objects=2, frames=3, seed=2):
    """A decoder with 4 cells of the background, and what it takes, of two clips."""
    torch.manual_seed(seed)
    net = ObjectDecoder(64, 2, 4).eval()
    history = DescriptorHistory(
        torch.randn(2, 4, frames, 64),
        torch.randn(2, objects, frames, 64),
        torch.ones(2, frames, dtype=torch.bool),
        torch.ones(2, objects, frames, dtype=torch.bool),
    )
    return net, (torch.randn(2, 64, 5, 6), torch.randn(2, 64, 10, 12)), history, (torch.randn(4, 64), torch.randn(64))


def of_frames(history, times):
    return DescriptorHistory(*(part[:, :, times] for part in history[:2]), *(part[..., times] for part in history[2:]))


def test_the_order_of_frames_and_of_objects_does_not_matter():
    net, maps, history, embeddings = decoded()
    logits = net(*maps, history, embeddings)
    assert logits.shape == (2, 1 + 4 + 2, 10, 12)
    assert_close(net(*maps, of_frames(history, [2, 0, 1]), embeddings), logits, rtol=1e-4, atol=1e-4)
    objects = history._replace(objects=history.objects[:, [1, 0]])
    assert_close(net(*maps, objects, embeddings), logits[:, [0, 1, 2, 3, 4, 6, 5]], rtol=1e-4, atol=1e-4)


def test_what_is_not_there_is_not_read():
    net, maps, history, embeddings = decoded()
    history.objects_valid[0, 1, 0] = history.objects_valid[1, 0] = history.background_valid[1, 2] = False
    logits = net(*maps, history, embeddings)
    objects, background = history.objects.clone(), history.background.clone()
    objects[0, 1, 0] = objects[1, 0] = background[1, :, 2] = 50.0
    assert_close(net(*maps, history._replace(objects=objects, background=background), embeddings), logits)
    assert (logits[1, 5] == never(logits)).all()
    assert (logits[1, 6] > -1e3).all()
    assert torch.isfinite(logits).all()


def test_a_descriptor_of_several_frames_counts_where_it_fits_best():
    net, maps, history, embeddings = decoded()
    net.layers = torch.nn.ModuleList()  # the layers read all frames at once, the comparison one by one
    logits = net(*maps, history, embeddings)
    alone = [net(*maps, of_frames(history, [time]), embeddings) for time in range(3)]
    assert_close(logits, torch.stack(alone).amax(dim=0))
    assert (alone[0] - logits).abs().max() > 0.01


# --- the network in a tracker


def labels_of(*ids, height=64, width=80, shift=0):
    return tiny.squares(*ids, height=height, width=width, shift=shift)


def speck(number, y=0, x=0):
    """A mask of one pixel, which the middle of no position of the coarse map sees."""
    labels = np.zeros((64, 80), np.uint8)
    labels[y, x] = number
    return labels


@pytest.fixture(scope="module")
def native():
    """Sees 64 x 80 pixels as they are."""
    return tiny.hodor(canvas=PaddingCanvas(8, 64, 80))


def said(network, prompts, count=4, size=(64, 80), seed=0, **settings):
    return list(track(network, tiny.frames(count, *size, seed=seed), prompts, **settings))


@pytest.mark.parametrize("size", [(64, 80), (61, 47), (150, 200), (20, 150), (9, 9)])
def test_a_stated_object_is_exactly_its_mask_and_probabilities_sum_to_one(native, size):
    height, width = size
    prompts = {0: labels_of(5, height=height, width=width)}
    if height > 16:
        prompts[2] = labels_of(0, 0, 9, 4, height=height, width=width)
    for t, prediction in enumerate(said(native, prompts, size=size)):
        assert prediction.labels.shape == size
        assert_close(prediction.probabilities.sum(dim=0), torch.ones(size))
        assert (prediction.probabilities >= 0).all()
        if t in prompts:
            stated = torch.from_numpy(prompts[t]).long()
            for number in stated.unique().tolist()[1:]:
                assert torch.equal(prediction.labels == number, stated == number), (t, number)


def test_one_object_and_thirty(native):
    for ids in ((7,), tuple(range(101, 131))):
        predictions = said(native, {0: labels_of(*ids)})
        for prediction in predictions:
            assert prediction.object_ids == ids
            assert len(prediction.probabilities) == 1 + len(ids)
            assert torch.isfinite(prediction.probabilities).all()
        assert predictions[-1].probabilities[1:].amax(dim=(1, 2)).min() > 0


def test_an_object_that_begins_later_changes_nothing_before_it(native):
    alone = said(native, {0: labels_of(1, 2)}, count=5)
    joined = said(native, {0: labels_of(1, 2), 3: labels_of(0, 0, 0, 3)}, count=5)
    for a, b in zip(alone[:3], joined[:3], strict=True):
        assert torch.equal(a.probabilities, b.probabilities)
    assert torch.equal(joined[3].labels == 3, torch.from_numpy(labels_of(0, 0, 0, 3)) == 3)
    assert joined[4].probabilities[3].max() > 0


def test_an_object_without_a_trace_disturbs_nobody(native):
    """One pixel is nothing in the coarse map: it is there in its own frame, and never again."""
    for begin in (0, 2):
        prompts = {0: labels_of(0, 1, 2)}
        without = said(native, prompts, count=5)
        tiny_one = {**prompts, begin: np.maximum(prompts.get(begin, np.zeros((64, 80), np.uint8)), speck(9))}
        with_it = said(native, tiny_one, count=5)
        for t, (a, b) in enumerate(zip(without, with_it, strict=True)):
            others = [n for n, i in enumerate(b.object_ids, 1) if i != 9]
            if t != begin:
                assert_close(a.probabilities, b.probabilities[[0, *others]])
                assert not (b.labels == 9).any()
        assert (with_it[begin].labels == 9).nonzero().tolist() == [[0, 0]]


def test_a_video_of_nothing_but_a_speck_is_blank(native):
    predictions = said(native, {0: speck(4)})
    assert predictions[0].labels.sum() == 4
    for prediction in predictions[1:]:
        assert not prediction.labels.any()
        assert prediction.object_ids == (4,)
        assert_close(prediction.probabilities, torch.stack([torch.ones(64, 80), torch.zeros(64, 80)]))


def test_a_speck_that_is_stated_again_and_larger_is_tracked(native):
    predictions = said(native, {0: speck(4), 2: labels_of(4)})
    assert not predictions[1].labels.any()
    assert torch.equal(predictions[2].labels, torch.from_numpy(labels_of(4)).long())
    assert predictions[3].probabilities[1].max() > 0.01


@pytest.mark.parametrize("settings", [{}, {"flip": True, "scales": (0.75, 1.0)}])
def test_before_the_first_object_masks_are_blank_and_of_the_videos_size(native, settings):
    predictions = said(native, {2: labels_of(3, height=61, width=47)}, count=4, size=(61, 47), **settings)
    for prediction in predictions[:2]:
        assert torch.equal(prediction.labels, torch.zeros(61, 47, dtype=torch.long))
        assert prediction.object_ids == ()
    assert_close(predictions[3].probabilities.sum(dim=0), torch.ones(61, 47))
    late = list(track(native, tiny.frames(4, 61, 47)[2:], {0: labels_of(3, height=61, width=47)}, **settings))
    assert_close(predictions[3].probabilities, late[1].probabilities)


def windowed(window):
    return tiny.hodor(canvas=PaddingCanvas(8, 64, 80), test_rules=WindowRules(window))


def test_a_window_of_one_frame_knows_no_more_than_that():
    """What follows a frame that is remembered by given labels is the same as if the video began with it."""
    network, frames = windowed(1), tiny.frames(6, 64, 80)
    tracker = Tracker(network)
    for t, frame in enumerate(frames[:4]):
        tracker.step(frame, labels_of(1, 2) if t == 0 else None, forced=labels_of(1, 2, shift=1) if t == 3 else None)
        assert [remembered.time for remembered in tracker.memories[0].frames] == [t]
    fresh = Tracker(network)
    fresh.step(frames[3], labels_of(1, 2, shift=1))
    for frame in frames[4:]:
        assert_close(tracker.step(frame).probabilities, fresh.step(frame).probabilities)


def test_a_window_slides_and_one_longer_than_the_video_is_none():
    every, seven, two = (said(windowed(window), {0: labels_of(1, 2)}, count=6) for window in (None, 7, 2))
    for t in range(6):
        assert torch.equal(every[t].probabilities, seven[t].probabilities)
        assert torch.allclose(every[t].probabilities, two[t].probabilities, atol=1e-6) == (t <= 2), t
    tracker = Tracker(windowed(2))
    for t, frame in enumerate(tiny.frames(6, 64, 80)):
        tracker.step(frame, labels_of(1, 2) if t == 0 else None)
    assert [remembered.time for remembered in tracker.memories[0].frames] == [4, 5], "the first frame is not kept"


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


def test_memory_is_bounded_and_small():
    network, sizes = tiny.hodor(), []
    tracker = Tracker(network)
    for t, frame in enumerate(tiny.frames(60)):
        tracker.step(frame, tiny.squares(1, 2) if t == 0 else None)
        (memory,) = tracker.memories
        assert [remembered.time for remembered in memory.frames] == list(range(max(t - 6, 0), t + 1))
        assert memory.current is None
        sizes.append(sum(tensor.nbytes for tensor in tensors(memory)))
        assert not any(tensor.requires_grad for tensor in tensors(memory))
    assert set(sizes[6:]) == {sizes[59]}
    assert sizes[59] < 1.01 * 7 * (network.background + 2) * 64 * 4, "descriptors, and hardly a byte besides"


def test_removing_an_object_leaves_descriptors_of_the_others(native):
    frames = tiny.frames(4, 64, 80)
    tracker = Tracker(native)
    for t, frame in enumerate(frames[:3]):
        tracker.step(frame, labels_of(1, 2, 3) if t == 0 else (labels_of(0, 0, 0, 4) if t == 2 else None))
    (before,) = tracker.memories
    tracker.remove([2])
    (after,) = tracker.memories
    for old, new in zip(before.frames, after.frames, strict=True):
        left = [slot for slot in (0, 2, 3) if slot < old.objects.shape[1]]
        assert torch.equal(new.objects, old.objects[:, left])
        assert torch.equal(new.described, old.described[:, left])
        assert torch.equal(new.background, old.background)
    # A slot that is gone is as good as one that is marked to hold nothing.
    marked = with_valid(before, torch.tensor([[True, False, True, True]]))
    view = native.canvas.view((64, 80))
    features = native.encode(frames[3:])
    with torch.no_grad():
        gone, empty = (native.segment(features, memory, view, time=3)[0] for memory in (after, marked))
    cells = 1 + native.background
    assert_close(gone, empty[:, [*range(cells), cells, cells + 2, cells + 3]])
    assert (empty[:, cells + 1] == never(empty)).all()
    assert tracker.step(frames[3]).object_ids == (1, 3, 4)


def test_what_comes_and_goes_leaves_no_slots(native):
    tracker = Tracker(native)
    tracker.step(tiny.frames(1, 64, 80)[0], labels_of(1))
    for number in range(2, 32):
        prediction = tracker.step(tiny.frames(1, 64, 80)[0], labels_of(0, number))
        assert prediction.object_ids == (1, number)
        assert (prediction.labels == number).any()
        tracker.remove([number])
        (memory,) = tracker.memories
        assert memory.valid.shape == (1, 1)
        assert max(frame.objects.shape[1] for frame in memory.frames) == 1
    tracker.remove([1])
    assert tracker.memories == ()
    fresh = Tracker(native)
    frames = tiny.frames(2, 64, 80, seed=3)
    for t, frame in enumerate(frames):
        mask = labels_of(0, 0, 8) if t == 0 else None
        assert_close(tracker.step(frame, mask).probabilities, fresh.step(frame, mask).probabilities)


def test_of_an_object_that_is_stated_again_nothing_old_counts(native):
    frames = tiny.frames(6, 64, 80)
    again = labels_of(0, 0, 0, 0, 1)
    tracker, read = Tracker(native), []
    hook = native.decoder.register_forward_hook(lambda _, inputs, output: read.append(inputs[2]))
    for t, frame in enumerate(frames[:4]):
        prediction = tracker.step(frame, {0: labels_of(1, 2), 3: again}.get(t))
    hook.remove()
    assert read[-1].objects_valid[0].tolist() == [[False] * 3 + [True], [True] * 3 + [False]], "in its own frame"
    assert read[-1].background_valid[0].tolist() == [True] * 3 + [False]
    assert prediction.object_ids == (1, 2)
    assert torch.equal(prediction.labels == 1, torch.from_numpy(again == 1))
    (memory,) = tracker.memories
    assert [frame.described[0].tolist() for frame in memory.frames] == [[False, True]] * 3 + [[True, True]]
    for frame in frames[4:]:
        prediction = tracker.step(frame)
    assert [frame.described[0].tolist() for frame in tracker.memories[0].frames[3:]] == [[True, True]] * 3
    assert prediction.probabilities[1].max() > 0


def test_all_objects_may_be_stated_again_at_once(native):
    predictions = said(native, {0: labels_of(1, 2), 2: labels_of(0, 0, 2, 1)}, count=4)
    assert torch.equal(predictions[2].labels, torch.from_numpy(labels_of(0, 0, 2, 1)).long())
    assert torch.isfinite(predictions[3].probabilities).all()


def test_times_that_are_not_remembered_cannot_be_read(native):
    frames = tiny.frames(2, 64, 80)
    view, valid = native.canvas.view((64, 80)), torch.ones(1, 1, dtype=torch.bool)
    given = Given(torch.from_numpy(labels_of(1) == 1)[None, None].float(), valid)
    with torch.no_grad():
        first, second = (native.encode(frame[None]) for frame in frames)
        _, memories = advance(native, first, (native.start(valid, WindowRules()),), view, time=0, given=given)
        with pytest.raises(ConfigError, match=r"read frames \[0, 3\], but remembers \[0\]"):
            native.segment(second, memories[0], view, time=1, sources=torch.tensor([[0, 3]]))


def test_a_frame_that_is_remembered_twice_replaces_its_entry(native):
    frames = tiny.frames(2, 64, 80)
    view, valid = native.canvas.view((64, 80)), torch.ones(1, 1, dtype=torch.bool)
    given = Given(torch.from_numpy(labels_of(1) == 1)[None, None].float(), valid)
    with torch.no_grad():
        features = [native.encode(frame[None]) for frame in frames]
        memories = (native.start(valid, WindowRules()),)
        _, memories = advance(native, features[0], memories, view, time=0, given=given)
        _, memories = advance(native, features[1], memories, view, time=1)
        _, again = advance(native, features[0], memories, view, time=0, sources=torch.tensor([[1]]))
        _, last = advance(native, features[0], memories, view, time=0, last=True)
    assert [frame.time for frame in again[0].frames] == [0, 1]
    assert not torch.equal(again[0].frames[0].objects, memories[0].frames[0].objects)
    assert again[0].frames[1] is memories[0].frames[1]
    assert last[0].frames == memories[0].frames


@pytest.mark.parametrize(
    ("build", "error", "word"),
    [
        (lambda: HODORNetwork(tiny.backbone()), ConfigError, r"final=False.*\n.*strides=\[4,8,16\]"),
        (lambda: HODORNetwork(tiny.backbone(final=True, strides=(2, 8, 16))), ConfigError, r"strides \[2, 8, 16\]"),
        (lambda: tiny.hodor(channels=96), ValueError, "channels is 96"),
        (lambda: tiny.hodor(layers=0), ValueError, "layers 0"),
        (lambda: tiny.hodor(canvas=PaddingCanvas(6)), ValueError, r"canvas\.multiple 6; .*a multiple of 4"),
        (lambda: tiny.hodor(background=3), ValueError, "no grid of 3"),
        (lambda: tiny.hodor(masking="other"), ValueError, "masking is 'other'"),
        (lambda: tiny.hodor(strengths=(1.0, 2.0, 3.0)), ValueError, "whose number divides the channels"),
        (lambda: WindowRules(window=0), ValueError, "window is 0"),
        (lambda: HODOR(tiny.hodor(), cycle="other"), ValueError, "cycle is 'other'"),
    ],
)
def test_settings_that_cannot_be_are_refused(build, error, word):
    with pytest.raises(error, match=word):
        build()


@pytest.mark.parametrize("background", [1, 2, 4, 9, 12, 16])
def test_any_grid_of_the_background_runs(background):
    network = tiny.hodor(background=background, layers=1)
    for prediction in said(network, {0: tiny.squares(1)}, count=3, size=(33, 33)):
        assert_close(prediction.probabilities.sum(dim=0), torch.ones(33, 33))


# --- cycles


def walks(*text):
    """`0>1 01>2` -> ((0,), 1), ((0, 1), 2)."""
    found = []
    for walk in text:
        steps = [step.split(">") for step in walk.split()]
        found.append(tuple(Step(tuple(int(source) for source in sources), int(target)) for sources, target in steps))
    return found


@pytest.mark.parametrize(
    ("cycle", "length", "iteration", "expected"),
    [
        ("published_mix", 3, 0, walks("0>0", "0>1 1>0", "0>1 1>2 2>1 1>0")),
        ("published_mix", 3, 1, walks("0>0", "0>1 1>0", "0>1 01>2 2>1 12>0")),
        ("published_mix", 3, 6, walks("0>0", "0>1 1>0", "0>1 1>2 2>1 1>0")),
        ("published_mix", 2, 0, walks("0>0", "0>1 1>0", "0>1 01>0")),
        ("published_mix", 2, 1, walks("0>0", "0>1 1>0", "0>1 01>0")),
        ("forward_backward", 2, 0, walks("0>1 1>0")),
        ("forward_backward", 3, 1, walks("0>1 1>2 2>1 1>0")),
        ("forward_backward", 8, 0, walks("0>1 1>2 2>3 3>4 4>5 5>6 6>7 7>6 6>5 5>4 4>3 3>2 2>1 1>0")),
        ("none", 2, 0, walks("0>1")),
        ("none", 4, 0, walks("0>1 01>2 012>3")),
        *((cycle, 1, iteration, walks("0>0")) for cycle in CYCLES for iteration in (0, 1)),
    ],
)
def test_walks(cycle, length, iteration, expected):
    assert paths(cycle, length, iteration) == expected


def test_the_published_mix_knows_no_longer_clips():
    with pytest.raises(ConfigError, match=r"up to 3 frames, these have 4\.\n.*sampler\.length=3.*forward_backward"):
        paths("published_mix", 4, 0)


# --- training


def module(cycle="published_mix", detached=False, frozen_norms=False, **settings):
    """In eval mode: no dropout, no statistics of batches."""
    network = tiny.hodor(layers=1, train_rules=WindowRules(detach_intermediate_masks=detached))
    return HODOR(network, cycle, **settings).eval()


def gradients(network):
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def unrolled(hodor, clip, iteration=0):
    """Predictions and the gradients of their loss."""
    hodor.zero_grad()
    predictions = hodor.unroll(clip, iteration)
    predictions.loss.total.backward()
    return predictions, gradients(hodor.network)


FRAMES = {
    ("none", 0): (1, 2),
    ("forward_backward", 0): (1, 2, 1, 0),
    ("published_mix", 0): (0, 1, 0, 2, 1, 0),
    ("published_mix", 1): (0, 1, 0, 2, 1, 0),
}


@pytest.mark.parametrize(("cycle", "iteration"), FRAMES)
def test_gradients_through_masks_are_others_and_losses_are_not(cycle, iteration):
    clip = tiny.clip(3)
    (through, flowing), (detached, cut) = (
        unrolled(module(cycle, detached=detached), clip, iteration) for detached in (False, True)
    )
    assert through.frames == detached.frames == FRAMES[cycle, iteration]
    assert through.logits.shape == (2, 3, len(through.frames), 33, 33)
    assert torch.equal(through.labels, torch.stack([clip.masks[:, t] for t in through.frames], dim=1))
    assert torch.isfinite(through.loss.total)
    for ours, theirs in zip(through.loss, detached.loss, strict=True):
        assert torch.equal(ours, theirs)
    apart = [name for name, gradient in flowing.items() if not torch.allclose(gradient, cut[name], rtol=1e-2, atol=0)]
    assert any(name.startswith("backbone") for name in apart)
    assert any(name.startswith("encoder") for name in apart)
    assert all(torch.isfinite(gradient).all() for gradient in flowing.values())


def test_iterations_take_turns():
    clip, hodor = tiny.clip(3), module()
    with torch.no_grad():
        zero, one, two = (hodor.unroll(clip, iteration).logits for iteration in range(3))
    assert torch.equal(zero, two)
    assert torch.equal(zero[:, :, :3], one[:, :, :3]), "walks that begin alike share their steps"
    assert not torch.equal(zero[:, :, 3], one[:, :, 3])


class StubTrainer:
    """The numbers of a trainer that the module reads."""

    def __init__(self, step=0, steps=100, accumulate=1):
        self.global_step, self.estimated_stepping_batches, self.accumulate_grad_batches = step, steps, accumulate


def test_a_step_counts_optimizer_steps_and_those_within():
    hodor, seen = module(), []
    hodor.log = lambda *_, **__: None
    unroll = hodor.unroll
    hodor.unroll = lambda clip, iteration: seen.append(iteration) or unroll(clip, 0)
    clip = tiny.clip(1)
    for step, batch in ((0, 0), (0, 1), (1, 2), (1, 3), (2, 4)):
        hodor._trainer = StubTrainer(step, accumulate=2)
        assert torch.isfinite(hodor.training_step(clip, batch))
    assert seen == [0, 1, 1, 2, 2]


def test_all_parameters_are_in_one_group_with_weight_decay():
    hodor = module()
    hodor._trainer = StubTrainer(steps=250_000)
    configured = hodor.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]
    (group,) = optimizer.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in hodor.network.parameters()}
    assert (group["weight_decay"], group["initial_lr"], group["lr"]) == (0.01, 1e-4, pytest.approx(1e-7))
    assert scheduler["interval"] == "step"
    hodor._trainer = StubTrainer(steps=-1)
    with pytest.raises(ConfigError, match="no end"):
        hodor.configure_optimizers()


def moving_clip(network):
    if isinstance(network, HODORNetwork):
        return tiny.clip(3)
    return tiny.clip(6, batch=1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("method", ["hodor", "hodor detached", "mavos"])
def test_checkpointing_of_activations_changes_nothing(method, training):
    """In training mode there is dropout, which must fall alike when a step is computed again."""
    found = []
    for checkpointing in (False, True):
        if method == "mavos":
            network = tiny.network(train_rules=MemoryRules(interval=2))
            whole = MAVOS(network, activation_checkpointing=checkpointing)
        else:
            network = tiny.hodor(train_rules=WindowRules(detach_intermediate_masks=method == "hodor detached"))
            whole = HODOR(network, activation_checkpointing=checkpointing)
        whole.train(training)
        network.backbone.eval()  # statistics of batches would be those of a frame
        torch.manual_seed(3)
        clip = moving_clip(network)
        total = whole.unroll(clip, 0.3, None).total if method == "mavos" else whole.unroll(clip, 1).loss.total
        total.backward()
        found.append((total.detach(), gradients(network)))
    (plain, expected), (again, ours) = found
    assert_close(again, plain)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5 * scale, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("method", ["hodor", "mavos"])
def test_checkpointing_of_activations_keeps_less(method):
    kept = []
    for checkpointing in (False, True):
        network = tiny.hodor() if method == "hodor" else tiny.network(train_rules=MemoryRules(interval=2))
        whole = (HODOR if method == "hodor" else MAVOS)(network, activation_checkpointing=checkpointing)
        found = {}

        def note(tensor, found=found):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        clip = moving_clip(network)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            whole.unroll(clip, 0.3, None) if method == "mavos" else whole.unroll(clip, 1)
        kept.append(sum(found.values()))
    assert kept[1] < 0.5 * kept[0]


def unannotated(clip, *frames):
    masks = clip.masks.clone()
    masks[:, list(frames)] = IGNORED
    return clip._replace(masks=masks)


def test_frames_that_nobody_annotated_get_no_loss():
    hodor, clip = module(), tiny.clip(3)
    first = hodor.unroll(unannotated(clip, 1, 2), 0)
    assert first.frames == (0, 0, 0)
    every = hodor.unroll(clip, 0)
    ends = [n for n, time in enumerate(every.frames) if time == 0]
    assert_close(first.logits, every.logits[:, :, ends])
    assert hodor.unroll(unannotated(clip, 1), 0).frames == (0, 0, 2, 0)
    assert hodor.unroll(unannotated(clip, 2), 1).frames == (0, 1, 0, 1, 0)
    # Annotated in one clip of the batch alone: the other's pixels are left out.
    masks = clip.masks.clone()
    masks[1, 1:] = IGNORED
    mixed = hodor.unroll(clip._replace(masks=masks), 0)
    assert mixed.frames == every.frames
    others = [n for n, time in enumerate(every.frames) if time != 0]
    assert (mixed.labels[1, others] == IGNORED).all()
    assert torch.equal(mixed.labels[0], every.labels[0])
    known = mixed.labels != IGNORED
    assert_close(
        mixed.loss.cross_entropy,
        F.cross_entropy(mixed.logits, mixed.labels, ignore_index=IGNORED, reduction="none")[known].mean(),
    )


def test_a_walk_that_ends_nowhere_annotated_is_refused():
    clip = unannotated(tiny.clip(3), 1, 2)
    with pytest.raises(ConfigError, match=r"model\.cycle=none decodes none is annotated\.\n.*forward_backward"):
        module("none").unroll(clip, 0)
    assert module("forward_backward").unroll(clip, 0).frames == (0,)
    assert module("none").unroll(unannotated(tiny.clip(3), 1), 0).frames == (2,)


def test_the_loss_of_one_label_reaches_the_frames_between():
    clip = unannotated(tiny.clip(3), 1, 2)
    clip = clip._replace(frames=clip.frames.clone().requires_grad_())
    predictions = module("forward_backward").unroll(clip, 0)
    (gradient,) = torch.autograd.grad(predictions.loss.total, clip.frames)
    assert (gradient.flatten(2).abs().amax(dim=2) > 0).all()


def without(clip, number, *frames):
    masks = clip.masks.clone()
    for time in frames:
        masks[:, time][masks[:, time] == number] = 0
    return clip._replace(masks=masks)


def test_an_object_that_is_lost_on_the_way_becomes_background():
    hodor, clip = module(), tiny.clip(3)
    lost = without(clip, 2, 1)
    predictions = hodor.unroll(lost, 0)  # 0>0, 0>1 1>0, 0>1 1>2 2>1 1>0
    holds = [[bool((sample[n] == 2).any()) for n in range(6)] for sample in predictions.labels]
    assert holds == [[True, False, False, False, False, False]] * 2
    for n, time in enumerate(predictions.frames):
        assert torch.equal(predictions.labels[:, n] == 1, clip.masks[:, time] == 1), "object 1 stays"
    predictions = hodor.unroll(lost, 1)  # 0>0, 0>1 1>0, 0>1 01>2 2>1 12>0
    holds = [bool((predictions.labels[:, n] == 2).any()) for n in range(6)]
    assert holds == [True, False, False, True, False, True], "present in one of two sources is enough"
    once = hodor.unroll(unannotated(clip, 1), 0)
    assert all((once.labels[:, n] == 2).any() for n in range(4)), "where nobody looked it is taken to be there"


def test_clips_of_a_batch_count_by_themselves():
    """Clips with one and with three objects: each has the loss that it has alone."""
    hodor, clip = module(), tiny.clip(3, objects=3)
    masks = clip.masks.clone()
    masks[1][masks[1] > 1] = 0
    clip = Clip(clip.frames, masks, torch.tensor([3, 1]))
    with torch.no_grad():
        both = hodor.unroll(clip, 0)
        alone = [hodor.unroll(Clip(*(part[n : n + 1] for part in clip)), 0) for n in range(2)]
    assert alone[1].logits.shape[1] == 2
    assert_close(both.logits[1:, :2], alone[1].logits, rtol=1e-4, atol=1e-4)
    assert (both.logits[1, 2:] < 0.99 * never(both.logits)).all()
    for part in ("total", "dice", "cross_entropy"):
        mean = sum(getattr(one.loss, part) for one in alone) / 2
        assert_close(getattr(both.loss, part), mean, rtol=1e-4, atol=1e-5)


def test_an_object_without_a_trace_in_the_first_frame_is_background():
    hodor, clip = module(), tiny.clip(3)
    masks = clip.masks.clone()
    masks[1, 0][masks[1, 0] == 2] = 0
    masks[1, 0, 0, 0] = 2
    clip = clip._replace(masks=masks)
    predictions, found = unrolled(hodor, clip)
    assert torch.isfinite(predictions.loss.total)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    assert not (predictions.labels[1] == 2).any()
    assert (predictions.labels[0] == 2).any()
    assert (predictions.logits[1, 2] < 0.99 * never(predictions.logits)).all()


def test_a_clip_without_any_trace_is_background():
    clip = tiny.clip(2, objects=1)
    masks = torch.zeros_like(clip.masks)
    masks[:, :, 0, 0] = 1
    predictions, found = unrolled(module(), clip._replace(masks=masks))
    assert torch.isfinite(predictions.loss.total)
    assert predictions.loss.dice == 0
    assert not predictions.labels.any()
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


@pytest.mark.parametrize("cycle", CYCLES)
def test_a_clip_of_one_frame_is_decoded_from_itself(cycle):
    predictions, found = unrolled(module(cycle), tiny.clip(1))
    assert predictions.frames == (0,)
    assert torch.isfinite(predictions.loss.total)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


@pytest.mark.parametrize("masking", ["soft", "hard", "none"])
def test_every_parameter_of_every_masking_learns(masking):
    network = tiny.hodor(masking=masking).train()
    strengths = [name for name, _ in network.named_parameters() if "strengths" in name]
    assert len(strengths) == (2 if masking == "soft" else 0)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    HODOR(network).unroll(unannotated(tiny.clip(3), 1, 2), 0).loss.total.backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    torch.optim.AdamW(network.parameters(), lr=1e-3).step()
    still = [name for name, parameter in network.named_parameters() if torch.equal(parameter, before[name])]
    # timm's residual branches begin with a last norm of 0, so what is inside of them has no gradient yet.
    assert [name for name in still if not name.startswith("backbone.body.layer")] == []
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


def test_a_few_steps_learn_a_clip():
    hodor = module()
    clip = tiny.clip(3, batch=1)
    shown = clip.frames.clone()
    for number, colour in ((1, (1.0, 0.0, 0.0)), (2, (0.0, 0.0, 1.0))):
        shown = torch.where(clip.masks[:, :, None] == number, torch.tensor(colour).view(1, 1, 3, 1, 1), 0.3 * shown)
    clip = clip._replace(frames=shown)
    optimizer = torch.optim.AdamW(hodor.network.parameters(), lr=1e-3)
    losses = []
    for step in range(20):
        optimizer.zero_grad()
        loss = hodor.unroll(clip, step).loss.total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


def test_bfloat16_is_close_to_float32(native):
    """Random weights amplify rounding, so this is loose: 0.05 in probability on average."""
    exact = Tracker(native), []
    rounded = Tracker(native), []
    for t, frame in enumerate(tiny.frames(6, 64, 80)):
        mask = {0: labels_of(1, 2), 3: labels_of(0, 0, 3)}.get(t)
        forced = labels_of(1, 2, 3 if t >= 3 else 0, shift=t % 3)
        exact[1].append(exact[0].step(frame, mask, forced=forced))
        with torch.autocast("cpu", torch.bfloat16):
            rounded[1].append(rounded[0].step(frame, mask, forced=forced))
    differences = [(a.probabilities - b.probabilities).abs().mean() for a, b in zip(exact[1], rounded[1], strict=True)]
    assert max(differences) < 0.05
    assert max(differences) > 0  # autocast was on


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("masking", ["soft", "hard"])
def test_a_training_step_in_bfloat16_has_finite_gradients(masking, checkpointing):
    network = tiny.hodor(masking=masking).train()
    hodor = HODOR(network, activation_checkpointing=checkpointing)
    with torch.autocast("cpu", torch.bfloat16):
        loss = hodor.unroll(tiny.clip(3), 1).loss.total
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(gradient).all() for gradient in gradients(network).values())


def test_the_network_is_the_same_after_tracking():
    network = tiny.hodor()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    list(track(network, tiny.frames(9), {0: tiny.squares(1)}))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_window_in_training_is_refused():
    with pytest.raises(ValueError, match="cycles choose what is read"):
        tiny.hodor(train_rules=WindowRules(2))


def test_what_is_too_small_to_be_seen_is_told():
    mask = np.zeros((61, 47), np.int64)
    mask[0, 0] = 1
    with pytest.warns(UserWarning, match="given in frame 0, 1 are too small"):
        list(track(tiny.hodor().eval(), tiny.frames(2, 61, 47), {0: mask}))
