"""Our Swin against published maps, a plain restatement of its attention, timm and torchvision."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from parity import reference
from timm.models.swin_transformer import SwinTransformer
from torch.testing import assert_close
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from lightning_vos.backbones import Backbone
from lightning_vos.layers.swin import SWIN_FROM_PUBLISHED, Swin, SwinBlock, shift_mask


def small(drop_path=0.0, depths=(2, 2, 2, 2)):
    """A Swin with weights that make every part of it count."""
    torch.manual_seed(0)
    swin = Swin(32, depths, 7, drop_path)
    with torch.no_grad():
        for parameter in swin.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return swin.eval()


def published(method, case, prefix):
    """The entries of a published Swin under our names."""
    state = {}
    for name, value in reference.weights(method, case).items():
        module, _, kind = name.removeprefix(prefix).rpartition(".")
        if name.startswith(prefix):
            state[f"{SWIN_FROM_PUBLISHED.get(module, module)}.{kind}"] = torch.from_numpy(value)
    return state


@pytest.mark.parametrize("case", reference.cases("hodor", "backbone"))
@torch.no_grad()
def test_maps_of_hodor(case):
    """Swin-T, also where the last maps are smaller than a window; stored in half precision."""
    arrays = np.load(reference.ROOT / "hodor" / f"{case}.npz")
    image = torch.from_numpy(arrays["image"]).permute(2, 0, 1)[None] / 255
    backbone = Backbone("swin_tiny_patch4_window7_224", final=True).eval()
    backbone.body.load_state_dict(published("hodor", case, "feature_extractor.bb_fpn.0."))
    frames = (image - backbone.mean) / backbone.std
    frames = F.pad(frames, (0, -frames.shape[3] % 32, 0, -frames.shape[2] % 32))
    assert_close(frames[0, :, ::16, ::16], torch.from_numpy(arrays["input_slice"]), rtol=1e-5, atol=1e-5)
    maps = backbone(frames * backbone.std + backbone.mean)
    stored = {name: torch.from_numpy(arrays[name]).float() for name in arrays if name.startswith("swin_")}
    for name, expected in stored.items():
        assert_close(
            maps[int(name[5])][0, : len(expected)], expected, rtol=1e-3, atol=2e-3, msg=lambda m, n=name: n + m
        )


def _swin_sequences():
    found = reference.cases("mavos", "sequence")
    return [c for c in found if not isinstance(c, str) or reference.network_name("mavos", c) == "mavos_swinb"]


@pytest.mark.parametrize("case", _swin_sequences())
@torch.no_grad()
def test_maps_of_mavos(case):
    """Swin-B; the case keeps sixteen channels of every second position."""
    arrays = np.load(reference.ROOT / "mavos" / f"{case}.npz")
    backbone = Backbone("swin_base_patch4_window7_224").eval()
    backbone.body.load_state_dict(published("mavos", case, "encoder."))
    maps = backbone(torch.from_numpy(arrays["frames"][:1]).permute(0, 3, 1, 2) / 255)
    for features, stride in zip(maps, backbone.strides, strict=False):
        channels = features.shape[1] // 16
        expected = torch.from_numpy(arrays[f"enc{stride}"])
        assert_close(features[:, ::channels, ::2, ::2], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("size", [(3, 5), (7, 7), (8, 15), (14, 21)])
@torch.no_grad()
def test_a_block_is_attention_within_groups(size, shift):
    """Restated without windows and rolls: tokens attend to all of their own group of a zero-padded map."""
    block = small().layers[1].blocks[0]
    block.shift = shift
    features = torch.randn(2, *size, 64)
    height, width = (side + -side % 7 for side in size)
    padded = F.pad(block.norm1(features), (0, 0, 0, width - size[1], 0, height - size[0]))
    query, key, value = block.attn.qkv(padded).flatten(1, 2).unflatten(2, (3, 2, 32)).permute(2, 0, 3, 1, 4)
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    offset = (place[:, None] - place).clamp(-6, 6) + 6  # tokens further apart are of two groups
    bias = block.attn.relative_position_bias_table[offset[..., 0] * 13 + offset[..., 1]].permute(2, 0, 1)
    group = (place - shift).div(7, rounding_mode="floor")
    apart = (group[:, None] != group).any(2)
    attended = F.scaled_dot_product_attention(query, key, value, bias.masked_fill(apart, -torch.inf)[None])
    attended = block.attn.proj(attended.transpose(1, 2).flatten(2)).unflatten(1, (height, width))
    expected = features + attended[:, : size[0], : size[1]]
    expected = expected + block.mlp(block.norm2(expected))
    assert_close(block(features, shift_mask(height, width, 7)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_equal_to_timm_where_nothing_is_padded():
    """Three stages, for timm built for 224 pixels has no shift in the fourth."""
    ours = small()
    theirs = SwinTransformer(
        embed_dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), strict_img_size=False, num_classes=0
    ).eval()
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if not k.startswith("norms.")}, strict=False)
    frames = torch.randn(1, 3, 224, 336)
    expected = theirs.forward_intermediates(frames, indices=[0, 1, 2], intermediates_only=True)
    ours.norms = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    for found, timms in zip(ours.forward_intermediates(frames, [0, 1, 2])[1], expected, strict=True):
        assert_close(found, timms, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_equal_to_torchvision_where_maps_exceed_the_window():
    """All stages, with padding; 250 x 270 frames give an 8 x 9 map at the end."""
    ours = small()
    theirs = TorchvisionSwin([4, 4], 32, [2, 2, 2, 2], [1, 2, 4, 8], [7, 7]).eval()
    frames = F.pad(torch.randn(1, 3, 250, 270), (0, 2, 0, 2))  # torchvision drops what is no whole patch
    state = {"norm.weight": ours.norms[3].weight, "norm.bias": ours.norms[3].bias}
    for name, value in ours.state_dict().items():
        parts = name.split(".")
        if parts[0] == "patch_embed":
            state[".".join(["features.0", "0" if parts[1] == "proj" else "2", parts[2]])] = value
        elif parts[0] == "layers":
            stage = 2 * int(parts[1])
            rest = ".".join(parts[3:]).replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
            state[f"features.{stage + (parts[2] == 'blocks')}.{rest}"] = value
    missing, left_over = theirs.load_state_dict(state, strict=False)
    assert not left_over
    assert all(name.startswith("head.") or name.endswith("relative_position_index") for name in missing)
    expected = theirs.permute(theirs.norm(theirs.features(frames)))
    assert expected.shape[2:] == (8, 9)
    assert_close(ours.forward_intermediates(frames[:, :, :250, :270], [])[0].shape, expected.shape)
    assert_close(ours.forward_intermediates(frames, [])[0], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_frames_of_no_whole_patch_are_padded_with_zeros():
    swin, frames = small(depths=(1, 1)), torch.randn(1, 3, 29, 43)
    padded = swin.forward_intermediates(F.pad(frames, (0, 1, 0, 3)), [0, 1])[1]
    for found, expected in zip(swin.forward_intermediates(frames, [0, 1])[1], padded, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", timm.list_models("swin_[tsbl][ami][nsr]*_patch4_window*"))
def test_named_sizes_are_timms(name):
    """The same entries of the same shapes as timm's, but for its classifier and our norms."""
    with torch.device("meta"):
        ours, theirs = Swin.named(f"{name}.of_any_weights"), timm.create_model(name, num_classes=0)
    shapes = {key: value.shape for key, value in ours.state_dict().items() if not key.startswith("norms.")}
    assert shapes == {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("norm.")}
    assert [dict(stage) for stage in theirs.feature_info] == ours.feature_info


def test_other_names_are_not_ours():
    assert Swin.named("swin_s3_tiny_224") is None
    assert Swin.named("swinv2_tiny_window8_256") is None


def test_stochastic_depth_rises_over_all_blocks():
    swin = Swin.named("swin_tiny_patch4_window7_224", 0.2)
    rates = [block.drop_path.drop_prob for block in swin.modules() if isinstance(block, SwinBlock)]
    assert rates == pytest.approx(np.linspace(0, 0.2, 12))


def test_every_weight_gets_a_gradient_on_a_map_smaller_than_a_window():
    swin = small().train()
    _, maps = swin.forward_intermediates(torch.randn(1, 3, 65, 49), [0, 1, 2, 3])
    sum(features.square().mean() for features in maps).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in swin.parameters())


@torch.no_grad()
def test_in_half_precision():
    swin, frames = small(), torch.randn(1, 3, 65, 49)
    expected = swin.forward_intermediates(frames, [])[0]
    found = swin.bfloat16().forward_intermediates(frames.bfloat16(), [])[0]
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_pruned_to_what_maps_need():
    swin, frames = small(), torch.randn(1, 3, 64, 64)
    expected = swin.forward_intermediates(frames, [1, 2])[1]
    swin.prune_intermediate_layers([1, 2])
    last, maps = swin.forward_intermediates(frames, [1, 2])
    assert torch.equal(last, expected[1])
    assert all(torch.equal(*pair) for pair in zip(maps, expected, strict=True))
    assert {name.split(".")[1] for name in swin.state_dict() if name.startswith("layers.")} == {"0", "1", "2"}
    assert {name.split(".")[1] for name in swin.state_dict() if name.startswith("norms.")} == {"1", "2"}
