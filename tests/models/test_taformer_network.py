"""TAFormer's network: dynamic masks, what it says of padded clips and long ones, and how many numbers it has."""

from functools import cache

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lightning_vos.backbones import Backbone
from lightning_vos.errors import CheckpointError, ConfigError
from lightning_vos.models.taformer import network as network_file
from lightning_vos.models.taformer.decoder import DecoderSettings
from lightning_vos.models.taformer.encoder import EncoderSettings
from lightning_vos.models.taformer.mask_head import FILTER_SIZE, MaskFeatures, aligned_upsampling, dynamic_masks
from lightning_vos.models.taformer.network import TAFormerNetwork
from lightning_vos.published import METHODS, load_weights, seqformer

PLAIN = {
    "encoder": EncoderSettings(st_encoder=False),
    "decoder": DecoderSettings(temporal_decoder=False),
    "contrastive": "none",
}
"""SeqFormer."""


def taformer(seed=0, **settings):
    """Random weights, the same for one seed; eval mode."""
    torch.manual_seed(seed)
    small = {"classes": 5, "queries": 6, "channels": 64, "layers": 3, "feed": 16, "dropout": 0.0}
    return TAFormerNetwork(tiny.backbone(strides=(8, 16, 32), frozen_norms=True), **small | settings).eval()


def clips(*lengths_and_sizes, seed=0):
    return torch.rand(*lengths_and_sizes, generator=torch.Generator().manual_seed(seed))


def drawn(net, seed=1):
    """The same network with all weights drawn, so that no head says the same of all queries."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if not name.startswith("backbone"):
                scale = 0.1 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1)
    return net


def test_masks_are_three_convolutions_of_each_instance_and_frame():
    features, filters = clips(2, 8, 3, 5, seed=1) - 0.5, clips(4, FILTER_SIZE, seed=2) - 0.5
    references = 40 * clips(4, 2, 2, seed=3)
    expected = []
    for instance, numbers in enumerate(filters):
        frames = []
        for time, plane in enumerate(features):
            seen = torch.empty(1, 10, 3, 5)
            for row in range(3):
                for column in range(5):
                    seen[0, 0, row, column] = references[instance, time, 0] - (8 * column + 4)
                    seen[0, 1, row, column] = references[instance, time, 1] - (8 * row + 4)
            seen[0, 2:] = plane
            weights = [
                numbers[:80].view(8, 10, 1, 1),
                numbers[80:144].view(8, 8, 1, 1),
                numbers[144:152].view(1, 8, 1, 1),
            ]
            biases = [numbers[152:160], numbers[160:168], numbers[168:]]
            for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                seen = F.conv2d(seen.relu() if number else seen, weight, bias)
            frames.append(seen[0])
        expected.append(torch.cat(frames))
    found = dynamic_masks(features, filters, references)
    assert found.shape == (4, 2, 6, 10)
    assert_close(found, aligned_upsampling(torch.stack(expected)), rtol=1e-4, atol=1e-4)


def test_upsampling_keeps_every_second_value():
    logits = clips(2, 3, 4, 5)
    doubled = aligned_upsampling(logits)
    assert doubled.shape == (2, 3, 8, 10)
    assert_close(doubled[..., 1::2, 1::2], logits)
    assert_close(doubled[..., 2:-1:2, 1::2], (logits[..., :-1, :] + logits[..., 1:, :]) / 2)
    assert torch.equal(doubled[..., 0, :], doubled[..., 1, :])
    assert torch.equal(doubled[..., 0], doubled[..., 1])


def test_distances_in_pixels_do_not_lose_bits_under_autocast():
    filters = torch.zeros(1, FILTER_SIZE)
    filters[0, [0, 80, 144]] = 1.0  # the distance to the right, handed through
    references = torch.tensor([[[701.25, 0.0]]])
    with torch.autocast("cpu", torch.bfloat16):
        found = dynamic_masks(torch.zeros(1, 8, 1, 40).bfloat16(), filters.bfloat16(), references)
    assert_close(found[0, 0, 1, 1::2], 701.25 - (8.0 * torch.arange(40) + 4))


def test_mask_features_add_maps_from_the_coarsest_on():
    torch.manual_seed(0)
    head = MaskFeatures(8)
    maps = [clips(2, 3, 8, *size, seed=i) for i, size in enumerate([(5, 7), (3, 4), (2, 2)])]
    found = head(maps)
    assert found.shape == (2, 3, 8, 5, 7)
    fine, middle, coarse = (level[1, 2:3] for level in maps)
    merged = head.merge[0](coarse).relu()
    # rows 0 1 2 of the middle map are 0 0 1 of the coarse one, columns 0 1 2 3 are 0 0 1 1
    merged = head.merge[1](middle + merged[:, :, [0, 0, 1]][..., [0, 0, 1, 1]]).relu()
    merged = head.merge[2](fine + merged[:, :, [0, 0, 1, 1, 2]][..., [0, 0, 1, 1, 2, 2, 3]]).relu()
    expected = head.reduce[1](head.reduce[0](merged).relu()).relu()
    assert_close(found[1, 2], expected[0])


@cache
def said(seed=0):
    net = drawn(taformer())
    frames, sizes = clips(2, 3, 3, 64, 96, seed=seed), torch.tensor([[64, 96], [50, 70]])
    with torch.no_grad():
        return net, frames, sizes, net(frames, sizes)


def test_predictions_have_the_shapes_they_promise():
    net, *_, found = said()
    shapes = {name: tuple(value.shape) for name, value in found._asdict().items()}
    assert shapes == {
        "logits": (3, 2, 6, 5),
        "boxes": (3, 2, 3, 6, 4),
        "references": (3, 2, 3, 6, 2),
        "filters": (3, 2, 6, 169),
        "mask_features": (2, 3, 8, 8, 12),
        "embeddings": (0, 2, 3, 6, 64),  # nobody learns
        "box_queries": (2, 3, 6, 64),
        "sizes": (2, 2),
    }
    masks = net.masks(found, -1, 1, torch.tensor([4, 0]))
    assert masks.shape == (2, 3, 16, 24)
    assert masks[0].unique().numel() > 100
    # references are those of the layer before, in pixels of the frame without its padding
    assert_close(found.references[1:], found.boxes[:-1, ..., :2])
    centre = found.boxes[1, 1, :, 4, :2] * torch.tensor([70, 50])
    assert_close(masks[0], dynamic_masks(found.mask_features[1], found.filters[2, 1, 4:5], centre[None])[0])
    assert_close(net.masks(found, 2, 1, torch.tensor([0]), slice(1, 2))[0], masks[1, 1:2])


def test_a_clip_does_not_see_the_others():
    net, frames, sizes, found = said()
    with torch.no_grad():
        swapped = net(frames.flip(0), sizes.flip(0))
        alone = net(frames[1:], sizes[1:])
    for name in ("logits", "boxes", "references", "filters"):
        assert_close(getattr(swapped, name).flip(1), getattr(found, name), rtol=1e-4, atol=1e-5)
        assert_close(getattr(alone, name)[:, 0], getattr(found, name)[:, 1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.logits[:, 0], found.logits[:, 1], atol=1e-2)


@torch.no_grad()
def test_the_size_tells_what_is_padding():
    net, frames, _, found = said()
    whole = net(frames, torch.tensor([[64, 96], [64, 96]]))
    assert_close(whole.logits[:, 0], found.logits[:, 0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole.logits[:, 1], found.logits[:, 1], atol=1e-3)


@torch.no_grad()
def test_parts_of_a_long_video_are_joined(monkeypatch):
    net, *_ = said()
    frames, sizes = clips(1, 5, 3, 40, 48), torch.tensor([[40, 48]])
    whole = net(frames, sizes)
    sizes_of_parts = []
    net.backbone.register_forward_pre_hook(lambda _, inputs: sizes_of_parts.append(len(inputs[0])))
    monkeypatch.setattr(network_file, "_FRAMES_AT_ONCE", 2)
    parts = net(frames, sizes)
    assert sizes_of_parts == [2, 2, 1]
    for found, expected in zip(parts, whole, strict=True):
        assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("contrastive", "layers"), [("none", 0), ("last_layer", 1), ("all_layers", 3)])
def test_all_that_is_there_to_learn_gets_a_gradient(contrastive, layers):
    net = drawn(taformer(contrastive=contrastive)).train()
    found = net(clips(1, 3, 3, 40, 48), torch.tensor([[40, 48]]))
    assert len(found.embeddings) == layers
    masks = [net.masks(found, layer, 0, torch.arange(6)).square().mean() for layer in range(3)]
    parts = (found.logits, found.boxes, found.embeddings)
    (sum(masks) + sum(part.square().sum() for part in parts)).backward()
    assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    assert (net.contrastive_head is None) == (contrastive == "none")


def test_the_last_layer_is_embedded():
    net = drawn(taformer())
    arguments = (clips(1, 2, 3, 40, 48), torch.tensor([[40, 48]]))
    every = net(*arguments).embeddings
    net.contrastive = "last_layer"
    assert_close(net(*arguments).embeddings, every[-1:])


def test_every_class_is_rare_at_the_start():
    found = [head.bias for head in taformer().class_heads]
    assert_close(torch.stack(found).sigmoid(), torch.full((3, 5), 0.01))


def test_projections_and_filters_start_as_published():
    net = taformer()
    for part in (*net.projections, net.filter_head, net.mask_features):
        assert all(not bias.any() for name, bias in part.named_parameters() if name.endswith("bias"))
    for weight in (net.projections[3][0].weight, net.filter_head[6].weight):
        fan_out, fan_in = weight.shape[0] * weight[0, 0].numel(), weight[0].numel()
        assert weight.std().item() == pytest.approx((2 / (fan_in + fan_out)) ** 0.5, rel=0.02)
    assert net.mask_features.merge[0].weight.std().item() == pytest.approx((9 * 64) ** -0.5, rel=0.02)


def test_only_what_is_new_is_missing_in_weights_of_seqformer(tmp_path):
    """And what is there is what says the same with TAFormer's additions switched off."""
    plain, full = drawn(taformer(**PLAIN)), drawn(taformer(), seed=5)
    new = full.state_dict().keys() - plain.state_dict().keys()
    assert not plain.state_dict().keys() - full.state_dict().keys()
    layers = [f"transformer.encoder.layers.{layer}." for layer in range(3)]
    parts = [f"{layer}{part}" for layer in layers for part in ("temporal_attention.", "fusion.")]
    parts += ["transformer.decoder.temporal_attentions.0.", "contrastive_head."]
    assert {next(part for part in parts if name.startswith(part)) for name in new} == set(parts)
    path = tmp_path / "seqformer.ckpt"
    torch.save({"state_dict": {f"network.{name}": value for name, value in plain.state_dict().items()}}, path)
    with pytest.raises(CheckpointError, match=f"{len(new)} entries missing"):
        load_weights(full, path)
    line = load_weights(full, path, ["transformer", "contrastive_head"])
    assert f"{len(new)} that it lacks start as they were" in line
    for name, value in plain.state_dict().items():
        assert torch.equal(full.state_dict()[name], value), name


def test_heads_of_other_classes_start_anew_where_that_is_asked_for(tmp_path):
    coco, videos = drawn(taformer(classes=9)), drawn(taformer(), seed=5)
    before = {name: value.clone() for name, value in videos.state_dict().items()}
    path = tmp_path / "coco.ckpt"
    torch.save({"state_dict": coco.state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"6 entries of another shape: class_heads\.0\.weight \(9, 64\), expec"):
        load_weights(videos, path, ["contrastive_head"])
    assert all(torch.equal(value, before[name]) for name, value in videos.state_dict().items())
    line = load_weights(videos, path, ["class_heads"])
    assert "6 that it lacks or has in another shape start as they were: class_heads." in line
    for name, value in videos.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith("class_heads") else coco.state_dict()[name]), name


@cache
def seqformer_entries(name):
    """The published layout of a SeqFormer, shapes alone."""
    with torch.device("meta"):
        net = METHODS[name].build(name)
    return net, seqformer.to_published(net.state_dict())


def numbers(tensors):
    return sum(tensor.numel() for tensor in tensors)


SUMS = {  # of parameters, and of all entries of a published file; of TAFormer's, as the paper prints them, in millions
    "seqformer_r50": (48_404_173, 49_306_085, "52.2"),
    "seqformer_r101": (67_344_077, 68_350_437, "71.3"),
    "seqformer_swinl": (218_741_441, 220_034_777, "222.9"),
}
ADDED = {4: 2_914_496, 3: 2_322_368, 2: 1_730_240, 1: 1_138_112}  # by points in a neighbouring frame


@pytest.mark.parametrize("name", SUMS)
def test_numbers_of_seqformer(name):
    net, published = seqformer_entries(name)
    parameters, entries, _ = SUMS[name]
    assert numbers(published.values()) == entries
    # A published file has projections that nothing uses, and Swin a norm.
    unused = 6 * (256 * 256 + 256) + (2 * 192 if name == "seqformer_swinl" else 0)
    assert numbers(net.parameters()) + unused == parameters


@pytest.mark.parametrize(
    ("settings", "decoder", "added"),
    [
        *(({"k_inter": points}, {}, added) for points, added in ADDED.items()),
        # The other reading of the paper's numbers: a value projection of its own, weights of the attention beside it.
        ({"share_value_proj": False}, {"temporal_weights": "tied"}, 2_913_984 + 131_584),
    ],
)
def test_numbers_that_taformer_adds(settings, decoder, added):
    base, _ = seqformer_entries("seqformer_r50")
    with torch.device("meta"):
        net = TAFormerNetwork(
            Backbone("resnet50", strides=(8, 16, 32)),
            encoder=EncoderSettings(**settings),
            decoder=DecoderSettings(**decoder),
        )
    assert numbers(net.state_dict().values()) - numbers(base.state_dict().values()) == added
    assert numbers(net.parameters()) - numbers(base.parameters()) == added
    if not decoder:
        published = seqformer.to_published(net.state_dict())
        total = numbers(published.values())
        assert total == SUMS["seqformer_r50"][1] + added
        assert f"{total / 1e6:.1f}" == {4: "52.2", 3: "51.6", 2: "51.0", 1: "50.4"}[settings["k_inter"]]


@pytest.mark.parametrize("name", SUMS)
def test_numbers_of_taformer_are_the_papers(name):
    assert f"{(SUMS[name][1] + ADDED[4]) / 1e6:.1f}" == SUMS[name][2]


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match=r"the backbone has \[4, 8, 16\].\nSet --model.network.backbone.strides"):
        TAFormerNetwork(tiny.backbone(strides=(4, 8, 16)))
    for wrong in ({"first_class": 5}, {"queries": 0}, {"channels": 40}, {"layers": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
            taformer(**wrong)
    with pytest.raises(ValueError, match="'both', expected none, last_layer or all_layers"):
        taformer(contrastive="both")
