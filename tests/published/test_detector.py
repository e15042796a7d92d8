"""HODOR starts from a detector: its backbone and its pyramid, all of them or none."""

import pytest
import torch

from lightning_vos.backbones import Backbone
from lightning_vos.errors import CheckpointError
from lightning_vos.layers import swin
from lightning_vos.models.hodor.network import HODORNetwork

CHANNELS, WIDTH, DEPTHS = 64, 32, (2, 2, 2, 2)


@pytest.fixture
def network(monkeypatch, tmp_path):
    """A Swin of four small stages; it starts from a file that is not there yet."""
    monkeypatch.setitem(swin._SIZES, "tiny", (WIDTH, DEPTHS[2]))
    torch.manual_seed(0)
    backbone = Backbone("swin_tiny_patch4_window7_224", final=True, frozen_stages=0)
    detector = str(tmp_path / "detector.pth")
    return HODORNetwork(backbone, detector, strengths=(8.0, 2.0), channels=CHANNELS, layers=1)


def shapes():
    """Entries of a detector as mmdetection calls them -> their shapes."""
    found = {"backbone.patch_embed.proj": (WIDTH, 3, 4, 4), "backbone.patch_embed.norm": (WIDTH,)}
    tables = {}
    for stage, depth in enumerate(DEPTHS):
        width = WIDTH * 2**stage
        for block in range(depth):
            outer = f"backbone.layers.{stage}.blocks.{block}"
            found |= {f"{outer}.norm1": (width,), f"{outer}.norm2": (width,)}
            found |= {f"{outer}.attn.qkv": (3 * width, width), f"{outer}.attn.proj": (width, width)}
            found |= {f"{outer}.mlp.fc1": (4 * width, width), f"{outer}.mlp.fc2": (width, 4 * width)}
            tables[f"{outer}.attn.relative_position_bias_table"] = (169, width // 32)
            tables[f"{outer}.attn.relative_position_index"] = (49, 49)
        if stage < 3:
            tables[f"backbone.layers.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
            found[f"backbone.layers.{stage}.downsample.norm"] = (4 * width,)
        found[f"backbone.norm{stage}"] = (width,)
        found[f"neck.lateral_convs.{stage}.conv"] = (CHANNELS, width, 1, 1)
        found[f"neck.fpn_convs.{stage}.conv"] = (CHANNELS, CHANNELS, 3, 3)
    found |= {"rpn_head.rpn_conv": (CHANNELS, CHANNELS, 3, 3), "roi_head.bbox_head.0.fc_cls": (81, 16)}
    parts = {f"{name}.weight": shape for name, shape in found.items()}
    return parts | {f"{name}.bias": shape[:1] for name, shape in found.items()} | tables


def drawn():
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes().items()}
    return {name: value.long() if name.endswith("_index") else value for name, value in state.items()}


def save(network, state):
    torch.save({"meta": {"epoch": 36}, "state_dict": state}, network.detector)


def changed(network, before):
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def test_a_detector_fills_backbone_and_pyramid(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = drawn()
    save(network, state)
    network.load_start_weights()
    ours = network.state_dict()
    filled = {name for name in before if name.startswith(("backbone.", "pyramid.fpn."))}
    assert changed(network, before) == filled
    body = "backbone.body"
    for name, theirs in (
        (f"{body}.patch_embed.proj.weight", "backbone.patch_embed.proj.weight"),
        (f"{body}.layers.0.blocks.1.attn.qkv.bias", "backbone.layers.0.blocks.1.attn.qkv.bias"),
        (f"{body}.layers.1.downsample.reduction.weight", "backbone.layers.0.downsample.reduction.weight"),
        (f"{body}.layers.3.downsample.norm.bias", "backbone.layers.2.downsample.norm.bias"),
        (f"{body}.norms.3.weight", "backbone.norm3.weight"),
        ("pyramid.fpn.inner_blocks.3.0.weight", "neck.lateral_convs.3.conv.weight"),
        ("pyramid.fpn.layer_blocks.1.0.bias", "neck.fpn_convs.1.conv.bias"),
    ):
        assert torch.equal(ours[name], state[theirs]), name
    used = [value for name, value in state.items() if name.startswith(("backbone.", "neck.")) and "index" not in name]
    unused = [state[f"neck.fpn_convs.{level}.conv.{kind}"] for level in (2, 3) for kind in ("weight", "bias")]
    total = sum(value.double().sum() for value in used) - sum(value.double().sum() for value in unused)
    assert sum(ours[name].double().sum() for name in filled) == pytest.approx(float(total)), "each entry once"


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        ("missing", r"1 entries missing \['pyramid\.fpn\.inner_blocks\.2\.0\.weight'\], 0 of another shape"),
        ("shape", r"0 entries missing \[\], 1 of another shape \['backbone\.body\.norms\.1\.bias'\]"),
        ("foreign", r"entries missing \['backbone\.body\."),
    ],
)
def test_one_that_does_not_fit_is_refused_and_changes_nothing(network, spoil, found):
    state = drawn()
    if spoil == "missing":
        del state["neck.lateral_convs.2.conv.weight"]
    elif spoil == "shape":
        state["backbone.norm1.bias"] = torch.zeros(7)
    else:
        state = {f"model.{name}": value for name, value in state.items()}
    save(network, state)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=found) as error:
        network.load_start_weights()
    assert network.detector in str(error.value)
    assert "--model.network.detector" in str(error.value)
    assert len(str(error.value).splitlines()) <= 8
    assert changed(network, before) == set()


def test_a_detector_that_is_not_there_is_said(network):
    with pytest.raises(CheckpointError, match="does not exist"):
        network.load_start_weights()


def test_without_a_detector_the_backbone_has_its_own_start(network, tmp_path):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.detector = None
    network.load_start_weights()
    assert changed(network, before) == set(), "of random weights"
    start = {
        name.removeprefix("backbone.body."): torch.rand_like(value) for name, value in before.items() if "body" in name
    }
    torch.save(start, tmp_path / "start.pth")
    network.backbone.start_weights = str(tmp_path / "start.pth")
    network.load_start_weights()
    assert changed(network, before) == {name for name in before if name.startswith("backbone.")}
