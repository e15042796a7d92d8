"""What TAFormer adds to SeqFormer's transformer, and that nothing is added where its settings say so."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from lightning_vos.models.taformer import deformable_attention
from lightning_vos.models.taformer.decoder import Decoder, DecoderSettings
from lightning_vos.models.taformer.deformable_attention import DeformableAttention, DeformableSampling, sample
from lightning_vos.models.taformer.encoder import EncoderLayer, EncoderSettings, Scene, neighbours, token_references
from lightning_vos.models.taformer.positions import spatial_position, temporal_position
from lightning_vos.models.taformer.transformer import Transformer, valid_ratio

TINY = {"channels": 16, "heads": 2, "encoder_layers": 2, "decoder_layers": 3, "feed": 24, "queries": 5}
SHAPES = [(6, 8), (3, 4), (2, 2), (1, 1)]
TOKENS = sum(height * width for height, width in SHAPES)
SEQFORMER = {"encoder": EncoderSettings(st_encoder=False), "decoder": DecoderSettings(temporal_decoder=False)}
BOUNDARIES = ["mask", "reflect", "clamp"]


def drawn(module, seed=0):
    """The module in eval mode with weights that are drawn, so that it does not do what it does at the start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def tiny(seed=0, **settings):
    return drawn(Transformer(**TINY, **settings), seed)


def clip(frames=4, batch=1, channels=16, shapes=SHAPES, seed=1):
    """Maps (B, T, C, h, w) and empty padding of each level."""
    torch.manual_seed(seed)
    maps = [torch.randn(batch, frames, channels, *shape) for shape in shapes]
    return maps, [torch.zeros(batch, *shape, dtype=torch.bool) for shape in shapes]


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# --- deformable attention


def read_one_by_one(layer, queries, references, values, shapes, frames):
    """`DeformableSampling.read`, a point at a time."""
    N, R, C = queries.shape
    M, K = layer.heads, layer.points
    offsets = layer.sampling_offsets(queries).view(N, R, M, layer.frames, layer.levels, K, 2)
    logits = layer.attention_weights(queries).view(N, R, M, layer.frames, layer.levels, K)
    starts = list(itertools.accumulate((height * width for height, width in shapes), initial=0))
    output = torch.zeros(N, R, M, C // M, dtype=queries.dtype)
    for n, r, m in itertools.product(range(N), range(R), range(M)):
        weights = logits[n, r, m, frames].flatten().softmax(dim=0).view(len(frames), layer.levels, K)
        for (slot, frame), (level, (height, width)), k in itertools.product(
            enumerate(frames), enumerate(shapes), range(K)
        ):
            x, y = references[n, r, level] * torch.tensor([width, height]) + offsets[n, r, m, frame, level, k] - 0.5
            left, top = int(x.floor()), int(y.floor())
            for row, column in itertools.product((top, top + 1), (left, left + 1)):
                if 0 <= row < height and 0 <= column < width:
                    token = slot * starts[-1] + starts[level] + row * width + column
                    share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                    output[n, r, m] += weights[slot, level, k] * share * values[n, token, m]
    return output.flatten(2)


@pytest.mark.parametrize("frames", [[0, 1, 2], [0, 2], [1]])
def test_sampling_of_several_frames_is_a_sum_over_points(frames):
    shapes = [(3, 4), (2, 1)]
    layer = drawn(DeformableSampling(8, 2, 2, 2, frames=3)).double()
    queries, references = torch.randn(2, 3, 8).double(), torch.rand(2, 3, 2, 2).double()
    values = torch.randn(2, 14 * len(frames), 2, 4).double()
    expected = read_one_by_one(layer, queries, references, values, shapes, frames)
    assert_close(layer.read(queries, references, values, shapes, frames), expected)


def test_offsets_around_a_box_are_shares_of_its_sides():
    layer = drawn(DeformableSampling(8, 2, 2, 4)).double()
    shapes = [(4, 6), (2, 3)]
    queries, values = torch.randn(1, 3, 8).double(), torch.randn(1, 30, 2, 4).double()
    boxes = torch.rand(1, 3, 2, 4).double()
    # A box of 2 K / W by 2 K / H makes an offset as long as a position of a map.
    sides = torch.tensor([[2 * 4 / width, 2 * 4 / height] for height, width in shapes]).double()
    boxes[..., 2:] = sides
    assert_close(layer.read(queries, boxes, values, shapes), layer.read(queries, boxes[..., :2], values, shapes))


def test_gradients_of_sampling():
    torch.manual_seed(0)
    value, locations = torch.randn(1, 8, 2, 2).double(), torch.rand(1, 2, 2, 2, 2, 2).double() * 1.4 - 0.2
    weights = torch.randn(1, 2, 2, 2, 2).double()
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, at, w: sample(v, [(2, 3), (1, 2)], at, w), inputs)


def test_sampling_stays_in_single_precision_under_autocast():
    torch.manual_seed(0)
    value, locations, weights = torch.randn(1, 400, 1, 2), torch.rand(1, 9, 1, 1, 3, 2), torch.rand(1, 9, 1, 1, 3)
    expected = sample(value, [(1, 400)], locations, weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sample(value, [(1, 400)], locations, weights), expected)


def test_heads_start_in_their_own_directions():
    layer = DeformableAttention(16, heads=4, levels=2, points=3)
    offsets = layer.sampling_offsets(torch.randn(16)).view(4, 2, 3, 2)
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    assert_close(offsets, (directions[:, None, None] * torch.arange(1, 4)[:, None]).expand(-1, 2, -1, -1))


# --- positions


def test_positions_end_where_padding_begins():
    padding = torch.ones(1, 5, 7, dtype=torch.bool)
    padding[:, :3, :4] = False
    alone = spatial_position(torch.zeros(1, 3, 4, dtype=torch.bool), 16)
    assert_close(spatial_position(padding, 16)[:, :3, :4], alone)
    rows, columns = alone[0, :, 0, :8], alone[0, 0, :, 8:]
    assert_close(alone[0], torch.cat([rows[:, None].expand(-1, 4, -1), columns.expand(3, -1, -1)], dim=2))


def test_clips_of_any_length_span_the_same_times():
    assert_close(temporal_position(5, 8, "normalized")[2], temporal_position(35, 8, "normalized")[17])
    assert_close(temporal_position(5, 8, "index"), temporal_position(35, 8, "index")[:5])


# --- SeqFormer, and what is added to it


@pytest.mark.parametrize(
    ("encoder", "decoder", "added"),
    [
        # What the printed sizes of the models leave for these parts, less a contrastive head of 131,584.
        ({}, {}, 2_914_496 - 131_584),
        ({"k_inter": 3}, {}, 2_914_496 - 131_584 - 592_128),
        ({"k_inter": 2}, {}, 2_914_496 - 131_584 - 2 * 592_128),
        ({"k_inter": 1}, {}, 2_914_496 - 131_584 - 3 * 592_128),
        ({"share_value_proj": False}, {"temporal_weights": "tied"}, 2_913_984),
        ({}, {"temporal_decoder": False}, 2_368_512 + 150_720),
        ({"fusion": "add"}, {"temporal_decoder": False}, 2_368_512),
        ({"fusion": "concat"}, {"temporal_decoder": False}, 2_368_512 + 6 * (512 + 1) * 256),
        ({"st_encoder": False}, {}, 263_680),
        ({"st_encoder": False}, {"temporal_weights": "per_layer"}, 5 * 263_680),
        ({"st_encoder": False}, {"temporal_weights": "tied"}, 0),
    ],
)
def test_number_of_parameters_that_are_added(encoder, decoder, added):
    with torch.device("meta"):
        seqformer = Transformer(**SEQFORMER)
        taformer = Transformer(encoder=EncoderSettings(**encoder), decoder=DecoderSettings(**decoder))
    assert parameters(taformer) - parameters(seqformer) == added
    assert sum(entry.numel() for entry in taformer.state_dict().values()) == parameters(taformer)  # each but once


def test_weights_of_seqformer_lack_nothing_but_what_is_added():
    net = tiny()
    result = net.load_state_dict(tiny(**SEQFORMER).state_dict(), strict=False)
    parts = {name.rpartition(".")[0] for name in result.missing_keys}
    new = [
        *("temporal_attention.sampling_offsets", "temporal_attention.attention_weights"),
        *(f"fusion.{part}" for part in ("reduce", "intra_gate", "inter_gate")),
    ]
    expected = {f"encoder.layers.{layer}.{part}" for layer in range(2) for part in new}
    attention = [f"decoder.temporal_attentions.0.{part}" for part in ("attention", "attention.out_proj", "norm")]
    assert parts == expected | set(attention)
    assert not result.unexpected_keys


def with_gates(intra, inter, **settings):
    """A transformer with SeqFormer's weights whose gates do not depend on what they see."""
    net = tiny(encoder=EncoderSettings(temporal_position="none", **settings), decoder=SEQFORMER["decoder"])
    net.load_state_dict(tiny(**SEQFORMER).state_dict(), strict=False)
    for layer in net.encoder.layers:
        for gate, bias in ((layer.fusion.intra_gate, intra), (layer.fusion.inter_gate, inter)):
            torch.nn.init.zeros_(gate.weight)
            torch.nn.init.constant_(gate.bias, bias)
    return net


@torch.no_grad()
def test_gates_can_shut_time_out():
    maps, padding = clip()
    assert_close(with_gates(40.0, -40.0)(maps, padding), tiny(**SEQFORMER)(maps, padding))
    found, expected = (net(maps, padding).memory[0] for net in (with_gates(-40.0, 40.0), tiny(**SEQFORMER)))
    assert (found - expected).abs().max() > 0.1


@torch.no_grad()
def test_open_gates_take_the_mean():
    maps, padding = clip()
    half = with_gates(0.0, 0.0)
    added = tiny(encoder=EncoderSettings(temporal_position="none", fusion="add"), decoder=SEQFORMER["decoder"])
    added.load_state_dict(half.state_dict(), strict=False)
    for layer in added.encoder.layers:  # the sum of halves
        for part in layer.attention.output_proj.parameters():
            part *= 0.5
    assert_close(half(maps, padding).memory, added(maps, padding).memory)


# --- the encoder over time


def layer_and_scene(**settings):
    layer = drawn(EncoderLayer(16, 2, 4, 24, 0.0, EncoderSettings(**settings)))
    nothing = torch.zeros(1, TOKENS, dtype=torch.bool)
    references = token_references(SHAPES, torch.ones(1, 4, 2))
    return layer, Scene(SHAPES, nothing, torch.zeros(1, TOKENS, 16), None, references)


def frames_of(number, seed=1):
    torch.manual_seed(seed)
    return list(torch.randn(number, 1, TOKENS, 16))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@torch.no_grad()
def test_equal_frames_look_like_the_frame_itself(boundary):
    """With the same offsets in each neighbour, and equal weights."""
    layer, scene = layer_and_scene(boundary=boundary, fusion="add")
    for attention in (layer.attention, layer.temporal_attention):
        for part in attention.attention_weights.parameters():
            torch.nn.init.zeros_(part)
    for name in ("weight", "bias"):
        own = getattr(layer.attention.sampling_offsets, name).unflatten(0, (2, 1, -1))
        getattr(layer.temporal_attention.sampling_offsets, name).copy_(own.expand(-1, 4, *own.shape[2:]).flatten(0, 2))
    (tokens,) = frames_of(1)
    found = layer([tokens] * 5, scene)
    for part in layer.attention.output_proj.parameters():
        part *= 2
    alone = EncoderLayer(16, 2, 4, 24, 0.0, EncoderSettings(st_encoder=False)).eval()
    alone.load_state_dict(layer.state_dict(), strict=False)
    for frame in found:
        assert_close(frame, *alone([tokens], scene))


@pytest.mark.parametrize("window", [1, 2])
@torch.no_grad()
def test_a_layer_sees_the_window_and_no_further(window):
    layer, scene = layer_and_scene(window=window)
    frames = frames_of(7)
    before = layer(frames, scene)
    frames[3] = frames[3] + 1
    changed = [not torch.equal(*pair) for pair in zip(before, layer(frames, scene), strict=True)]
    assert changed == [abs(time - 3) <= window for time in range(7)]


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("number", [1, 2, 3, 5])
@torch.no_grad()
def test_weights_of_frames_that_are_there_sum_to_one(monkeypatch, boundary, number):
    layer, scene = layer_and_scene(boundary=boundary)
    seen = []

    def watched(value, shapes, locations, weights):
        seen.append((len(shapes) // 4, value.shape[1] // TOKENS, weights.sum(dim=(3, 4))))
        return sample(value, shapes, locations, weights)

    monkeypatch.setattr(deformable_attention, "sample", watched)
    output = layer(frames_of(number), scene)
    assert all(tokens.isfinite().all() for tokens in output)
    for _, _, total in seen:
        assert_close(total, torch.ones_like(total))
    own, others = (seen, []) if number == 1 else (seen[::2], seen[1::2])
    assert [frames for frames, *_ in own] == [1] * number
    there = [4 if boundary != "mask" else min(t, 2) + min(number - 1 - t, 2) for t in range(number)]
    assert [frames for frames, *_ in others] == (there if number > 1 else [])
    assert all(frames == given for frames, given, _ in seen)


def test_neighbours_where_a_clip_ends():
    assert neighbours(2, 5, 2, "mask") == {0: 0, 1: 1, 2: 3, 3: 4}
    assert neighbours(0, 5, 2, "mask") == {2: 1, 3: 2}
    assert neighbours(4, 5, 2, "reflect") == {0: 2, 1: 3, 2: 3, 3: 2}
    assert neighbours(4, 5, 2, "clamp") == {0: 2, 1: 3, 2: 4, 3: 4}
    assert neighbours(1, 3, 2, "reflect") == {0: 0, 1: 0, 2: 2, 3: 2}  # nothing is there to reflect
    assert [neighbours(0, 1, 2, boundary) for boundary in BOUNDARIES] == [{}, {}, {}]


@torch.no_grad()
def test_a_clip_of_one_frame_adds_nothing_of_time():
    layer, scene = layer_and_scene(fusion="add")
    alone = EncoderLayer(16, 2, 4, 24, 0.0, EncoderSettings(st_encoder=False)).eval()
    alone.load_state_dict(layer.state_dict(), strict=False)
    frames = frames_of(1)
    assert_close(layer(frames, scene), alone(frames, scene))


@torch.no_grad()
def test_a_single_level_is_stride_32():
    layer, scene = layer_and_scene(spatial_levels=1, temporal_levels=1)
    frames = frames_of(2)
    before = layer(frames, scene)
    first, last = 6 * 8 + 3 * 4, 6 * 8 + 3 * 4 + 2 * 2
    other = [tokens.clone() for tokens in frames]
    for tokens in other:
        tokens[:, :first] += 1
        tokens[:, last:] += 1
    after = layer(other, scene)
    assert all(torch.equal(a[:, first:last], b[:, first:last]) for a, b in zip(before, after, strict=True))
    for tokens in other:
        tokens[:, first] += 1
    assert not torch.equal(layer(other, scene)[0][:, 0], after[0][:, 0])


@torch.no_grad()
def test_times_are_told_by_the_temporal_encoding_alone():
    """In a clip that stands still, frames in the middle have the same neighbours."""
    maps, padding = clip(1)
    maps = [level.expand(-1, 7, -1, -1, -1) for level in maps]
    for kind, same in (("none", True), ("normalized", False), ("index", False)):
        net = Transformer(**TINY | {"encoder_layers": 1}, encoder=EncoderSettings(temporal_position=kind))
        finest = drawn(net)(maps, padding).memory[0]
        assert torch.allclose(finest[:, 2], finest[:, 4], atol=1e-5) == same


@torch.no_grad()
def test_frames_are_sampled_one_by_one(monkeypatch):
    """Locations of all frames at once would fill the memory."""
    rows = []

    def watched(value, shapes, locations, weights):
        rows.append(len(value))
        return sample(value, shapes, locations, weights)

    monkeypatch.setattr(deformable_attention, "sample", watched)
    tiny()(*clip(frames=4, batch=2))
    assert rows == [2] * (2 * 2 * 4 + 3 * 4)


# --- the decoder over time


def decoder(**settings):
    return drawn(Decoder(16, 2, 4, 3, 24, 0.0, DecoderSettings(**settings)))


def decoded(net, frames):
    torch.manual_seed(2)
    queries, positions, references = torch.randn(5, 16), torch.randn(5, 16), torch.rand(5, 2)
    padding = torch.zeros(1, TOKENS, dtype=torch.bool)
    return net(queries, positions, references, frames, padding, SHAPES, torch.ones(1, 4, 2))


@pytest.mark.parametrize("weights", ["shared", "per_layer", "tied"])
@torch.no_grad()
def test_permuted_frames_permute_boxes(weights):
    net, frames, order = decoder(temporal_weights=weights), frames_of(4), [2, 0, 3, 1]
    straight, permuted = decoded(net, frames), decoded(net, [frames[time] for time in order])
    assert_close(permuted.instances, straight.instances)
    for found, expected in zip(permuted[1:], straight[1:], strict=True):
        assert_close(found, expected[:, :, order])


@torch.no_grad()
def test_attention_over_frames_keeps_instances_apart():
    net = decoder()
    torch.manual_seed(3)
    boxes, positions = torch.randn(2, 4, 5, 16), torch.randn(5, 16)
    before = net._across_frames(1, boxes, positions)
    boxes[1, 2, 3] += 1
    changed = (net._across_frames(1, boxes, positions) != before).any(dim=3)
    assert changed[1, :, 3].all()
    assert int(changed.sum()) == 4
    (attention,) = net.temporal_attentions
    alone = [attention(boxes[:, :, query], positions[query]) for query in range(5)]
    assert_close(net._across_frames(1, boxes, positions), torch.stack(alone, dim=2))


@pytest.mark.parametrize("weights", ["shared", "per_layer"])
@torch.no_grad()
def test_the_first_layer_has_no_attention_over_frames(weights):
    net = decoder(temporal_weights=weights)
    calls = []
    for attention in net.temporal_attentions:
        attention.register_forward_hook(lambda _, inputs, output: calls.append(tuple(inputs[0].shape)))
    output = decoded(net, frames_of(4))
    assert calls == [(5, 4, 16)] * 2
    plain = decoder(temporal_decoder=False)
    plain.load_state_dict(net.state_dict(), strict=False)
    without = decoded(plain, frames_of(4))
    for found, expected in zip(output, without, strict=True):
        assert_close(found[0], expected[0])
    assert not torch.allclose(output.boxes[1], without.boxes[1])


@torch.no_grad()
def test_tied_weights_are_those_of_attention_within_frames():
    net, other = decoder(temporal_weights="tied"), decoder(temporal_weights="per_layer")
    state = net.state_dict()
    own = "layers.{}.box_self_attention."
    for number in (1, 2):
        old = own.format(number)
        state |= {
            f"temporal_attentions.{number - 1}.{name.removeprefix(old)}": value
            for name, value in net.state_dict().items()
            if name.startswith(old)
        }
    other.load_state_dict(state)
    assert_close(decoded(net, frames_of(3)), decoded(other, frames_of(3)))


@torch.no_grad()
def test_a_clip_that_stands_still_tells_instances_no_more_than_its_frame():
    net, (tokens,) = decoder(), frames_of(1)
    still, alone = decoded(net, [tokens] * 4), decoded(net, [tokens])
    assert_close(still.instances, alone.instances)
    assert_close(still.boxes, alone.boxes.expand(-1, -1, 4, -1, -1))


def test_references_are_the_boxes_before_and_detached():
    net = decoder()
    output = decoded(net, frames_of(3))
    assert_close(output.references[1:], output.boxes[:-1, ..., :2])
    assert output.references.shape == (3, 1, 3, 5, 2)
    assert output.boxes.shape == (3, 1, 3, 5, 4)
    first, _, last = (head[0].weight for head in net.box_heads)
    gradients = torch.autograd.grad(output.boxes[-1].sum(), (first, last))
    assert [bool(gradient.any()) for gradient in gradients] == [False, True]


def test_boxes_start_at_their_references():
    torch.manual_seed(0)
    with torch.no_grad():
        output = Transformer(**TINY).eval()(*clip())
    assert_close(output.boxes[..., :2], output.references[:1].expand(3, -1, -1, -1, -1))
    assert_close(output.boxes[..., 2:], torch.full((3, 1, 4, 5, 2), -2.0).sigmoid())


# --- the whole


@torch.no_grad()
def test_padding_changes_nothing():
    larger = [(8, 10), (4, 5), (2, 3), (1, 2)]
    smaller = [(6, 8), (3, 4), (2, 2), (1, 1)]
    maps, nothing = clip(shapes=smaller)
    padded, padding = clip(shapes=larger, seed=5)  # with anything in what is padded
    for level, (height, width) in enumerate(smaller):
        padded[level][..., :height, :width] = maps[level]
        padding[level][:] = True
        padding[level][:, :height, :width] = False
        assert_close(
            valid_ratio(padding[level])[0], torch.tensor([width / larger[level][1], height / larger[level][0]])
        )
    net = tiny()
    alone, beside = net(maps, nothing), net(padded, padding)
    for level, (height, width) in enumerate(smaller):
        assert_close(beside.memory[level][..., :height, :width], alone.memory[level], rtol=0, atol=1e-4)
    for found, expected in zip(beside[1:], alone[1:], strict=True):
        assert_close(found, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_clips_of_a_batch_do_not_mix():
    maps, padding = clip(batch=2)
    net = tiny()
    together, alone = net(maps, padding), net([level[1:] for level in maps], [mask[1:] for mask in padding])
    assert_close([level[1:] for level in together.memory], alone.memory, rtol=0, atol=1e-5)
    for found, expected in zip(together[1:], alone[1:], strict=True):
        assert_close(found[:, 1:], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        SEQFORMER,
        {"encoder": EncoderSettings(fusion="concat", share_value_proj=False, spatial_levels=1)},
        {"decoder": DecoderSettings(temporal_weights="per_layer")},
    ],
)
def test_every_parameter_learns(settings):
    """One that does not stops distributed training."""
    net = tiny(**settings)
    output = net(*clip())
    tensors = [*output.memory, *output[1:]]
    sum((tensor * torch.randn_like(tensor)).sum() for tensor in tensors).backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@torch.no_grad()
def test_half_precision_is_near():
    torch.manual_seed(0)
    net = Transformer(**TINY).eval()
    maps, padding = clip()
    expected = net(maps, padding)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(maps, padding)
    assert found.boxes.dtype == torch.float32
    assert_close(found.boxes, expected.boxes, rtol=0, atol=5e-3)
    assert (found.instances - expected.instances).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EncoderSettings(fusion="sum"), "fusion is 'sum', expected one of add, concat, dynamic"),
        (lambda: EncoderSettings(k_inter=0), "k_inter is 0, expected 1 or more"),
        (lambda: DecoderSettings(temporal_weights="own"), "temporal_weights is 'own', expected one of shared"),
        (
            lambda: tiny(encoder=EncoderSettings(spatial_levels=3)),
            "spatial_levels is 3, expected 1 .* or all levels, 4",
        ),
        (lambda: DeformableAttention(16, heads=3), "heads=3"),
    ],
)
def test_settings_that_cannot_be(build, message):
    with pytest.raises(ValueError, match=message):
        build()
