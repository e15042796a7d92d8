"""Encoders of timm: their maps, their start weights, and what of them learns."""

import socket
import time

import pytest
import timm
import tiny
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers import DropPath
from torch.testing import assert_close

from lightning_vos.backbones import MOBILENETV2_FROM_TORCHVISION, Backbone
from lightning_vos.errors import CheckpointError, ConfigError
from lightning_vos.layers.swin import Swin


@pytest.mark.parametrize(
    ("name", "settings", "channels"),
    [
        ("resnet18", {}, (64, 128, 256, 256)),
        ("resnet18", {"strides": (2, 4, 8)}, (64, 64, 128, 128)),
        ("mobilenetv2_100", {"final": True}, (24, 32, 96, 1280)),
        ("mobilenetv2_100", {}, (24, 32, 96, 96)),
        ("test_resnet", {"strides": (2, 4, 8), "frozen_norms": False}, (32, 32, 48, 48)),
        ("swin_tiny_patch4_window7_224", {}, (96, 192, 384, 384)),
    ],
)
@torch.no_grad()
def test_maps_have_the_strides_and_channels_they_promise(name, settings, channels):
    backbone = Backbone(name, **settings)
    maps = backbone(tiny.frames(1, 65, 97))
    assert backbone.channels == channels == tuple(features.shape[1] for features in maps)
    strides = (*backbone.strides, backbone.strides[-1])
    sizes = [tuple(features.shape[2:]) for features in maps]
    assert sizes == [(64 // stride + 1, 96 // stride + 1) for stride in strides]


@pytest.mark.parametrize(
    ("name", "multiple"),
    [
        ("efficientnet_b0", 1),
        ("regnety_004", 1),
        ("resnext50_32x4d", 1),
        ("mobilenetv3_large_100", 1),
        ("swin_small_patch4_window7_224", 1),
        ("convnext_tiny", 16),  # rounds sizes down
        ("edgenext_small", 16),
        ("hrnet_w18_small", 32),  # takes nothing else
    ],
)
@torch.no_grad()
def test_every_model_gives_maps_of_the_sizes_expected(name, multiple):
    backbone = Backbone(name, frozen_stages=1).eval()
    assert backbone.multiple == multiple
    for height, width in ((144, 208), (145, 193)):
        frames = tiny.frames(1, height, width)
        maps = backbone(frames)
        extra = height % 2
        assert [tuple(features.shape[1:]) for features in maps[:3]] == [
            (channels, height // stride + extra, width // stride + extra)
            for channels, stride in zip(backbone.channels, (4, 8, 16), strict=False)
        ]
        if multiple == 32:
            continue
        # Without rounding, maps are what the model itself gives.
        own = backbone.body.forward_intermediates((frames - backbone.mean) / backbone.std, indices=backbone.stages)[1]
        if not extra or multiple == 1:
            assert all(torch.equal(found, expected) for found, expected in zip(maps[:3], own, strict=True))


def test_padding_is_the_mean_colour_and_right_and_bottom():
    backbone = Backbone("hrnet_w18_small", frozen_stages=1).eval()
    frames = tiny.frames(1, 40, 49)
    padded = backbone.mean.expand(1, 3, 64, 64).clone()
    padded[:, :, :40, :49] = frames
    with torch.no_grad():
        for found, whole in zip(backbone(frames), backbone(padded), strict=True):
            assert_close(found, whole[:, :, : found.shape[2], : found.shape[3]], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_last_map_of_a_model_that_cannot_be_dilated_has_its_own_stride():
    backbone = Backbone("swin_tiny_patch4_window7_224", final=True)
    assert (backbone.channels, backbone.last_stride) == ((96, 192, 384, 768), 32)
    assert backbone(tiny.frames(1, 65, 97))[3].shape[1:] == (768, 3, 4)
    assert Backbone("resnet18", final=True).last_stride == 16
    rounds_down = Backbone("edgenext_small", final=True)
    assert (rounds_down.multiple, rounds_down(tiny.frames(1, 65, 97))[3].shape[2:]) == (32, (3, 4))


def test_frames_are_normalised_inside():
    backbone = tiny.backbone().eval()
    seen = []
    backbone.body.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone(torch.ones(1, 3, 17, 17) * torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
    assert_close(seen[0], torch.zeros(1, 3, 17, 17))


def test_mobilenetv2_of_torchvision_is_the_same_network():
    """Its file loads by the table, and both then say the same; the table leaves out nothing of either."""
    theirs = torchvision.models.mobilenet_v2(weights=None).eval()
    with torch.no_grad():
        for buffer in theirs.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    modules = {name.rpartition(".")[0] for name in theirs.features.state_dict(prefix="features.")}
    assert modules == set(MOBILENETV2_FROM_TORCHVISION)
    ours = Backbone("mobilenetv2_100", final=True, strides=(4, 8, 32), frozen_norms=False)
    values = MOBILENETV2_FROM_TORCHVISION.values()
    assert {name.rpartition(".")[0] for name in ours.body.state_dict()} == set(values)
    assert len(set(values)) == len(values)


def test_a_file_of_torchvision_is_loaded(tmp_path):
    theirs = torchvision.models.mobilenet_v2(weights=None).eval()
    path = tmp_path / "mobilenet_v2.pth"
    torch.save(theirs.state_dict(), path)
    ours = Backbone("mobilenetv2_100", str(path), final=True, strides=(4, 8, 32)).eval()
    ours.load_start_weights()
    frames = tiny.frames(1, 64, 64)
    with torch.no_grad():
        assert_close(ours(frames)[3], theirs.features((frames - ours.mean) / ours.std), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_timms_layout_is_loaded(tmp_path, suffix):
    other = Backbone("resnet18", strides=(4, 8, 32), frozen_norms=False)
    state = {name: value.clone() for name, value in other.body.state_dict().items()}
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}  # what a file of timm holds beside
    path = tmp_path / f"resnet18{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    backbone = Backbone("resnet18", str(path))
    assert not torch.equal(backbone.body.conv1.weight, state["conv1.weight"])
    backbone.load_start_weights()
    for name, value in backbone.body.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("layout", ["timm", "microsoft", "mmdetection"])
def test_files_of_swin_are_loaded(tmp_path, layout):
    """The published layouts merge patches at the end of a stage, and hold tables that we compute."""
    name = "swin_tiny_patch4_window7_224"
    state = {key: torch.randn_like(value) for key, value in timm.create_model(name, num_classes=5).state_dict().items()}
    expected = dict(state)
    norms = {f"norm{stage}.{kind}": torch.randn(96 * 2**stage) for stage in range(4) for kind in ("weight", "bias")}
    if layout != "timm":
        for stage in range(1, 4):
            for entry in ("norm.weight", "norm.bias", "reduction.weight"):
                state[f"layers.{stage - 1}.downsample.{entry}"] = state.pop(f"layers.{stage}.downsample.{entry}")
        state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
        state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    if layout == "mmdetection":
        state |= norms
        expected |= {f"norms.{key.removeprefix('norm')}": value for key, value in norms.items()}
    path = tmp_path / "swin.pth"
    torch.save({"model": state}, path)
    backbone = Backbone(name, str(path))
    backbone.load_start_weights()
    for key, value in backbone.body.state_dict().items():
        if layout == "mmdetection" or not key.startswith("norms."):
            assert torch.equal(value, expected[key]), key
        else:
            assert torch.equal(value, torch.full_like(value, float(key.endswith("weight")))), key


def test_swin_of_another_window_does_not_fit(tmp_path):
    path = tmp_path / "swin.pth"
    torch.save(Swin(96, (2, 2, 6), window=12).state_dict(), path)
    message = refusal("swin_tiny_patch4_window7_224", str(path))
    assert "10 of another shape ['layers.0.blocks.0.attn.relative_position_bias_table'" in message


def refusal(name, start_weights):
    """The message of weights that cannot be had, which comes within two seconds and in eight lines."""
    backbone = Backbone(name, start_weights, frozen_norms=False)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    started = time.perf_counter()
    with pytest.raises(CheckpointError) as error:
        backbone.load_start_weights()
    assert time.perf_counter() - started < 2
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    message = str(error.value)
    assert len(message.splitlines()) <= 8
    return message


def test_start_weights_that_cannot_be_had(tmp_path):
    assert f"{tmp_path / 'none.pth'} does not exist" in refusal("resnet18", str(tmp_path / "none.pth"))
    assert "no pretrained weights called 'resnet18.of_nobody'" in refusal("resnet18", "resnet18.of_nobody")
    assert "no pretrained weights called 'resnet_of_nobody'" in refusal("resnet18", "resnet_of_nobody")


def test_start_weights_of_another_architecture(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(Backbone("resnet10t").body.state_dict(), path)
    message = refusal("resnet18", str(path))
    assert "do not fit the backbone 'resnet18'" in message
    assert "entries missing" in message
    torch.save(
        {k: v[:1] if k == "conv1.weight" else v for k, v in Backbone("resnet18").body.state_dict().items()}, path
    )
    assert "1 of another shape ['conv1.weight']" in refusal("resnet18", str(path))


def test_without_a_network_the_refusal_is_quick_and_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal("resnet18", "resnet18.a1_in1k")
    assert "'resnet18.a1_in1k' cannot be had" in message
    assert "HF_HUB_OFFLINE is set" in message
    assert "--model.network.backbone.start_weights" in message


def test_a_host_that_does_not_answer_is_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("lightning_vos.backbones.hf_hub_url", lambda repository, file: f"{address}/{file}")
        assert f"{address}/config.json is out of reach (timed out)" in refusal("resnet18", "resnet18.a1_in1k")


def test_weights_in_the_cache_need_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    state = timm.create_model("test_resnet").state_dict()
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    save_file(state, repository / "snapshots" / "abc" / "model.safetensors")
    backbone = Backbone("test_resnet", "test_resnet.r160_in1k")
    backbone.load_start_weights()
    for name, value in backbone.body.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_null_start_weights_change_nothing():
    backbone = tiny.backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.load_start_weights()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("name", "stages", "frozen"),
    [
        ("resnet18", 0, ()),
        ("resnet18", 1, ("conv1",)),
        ("resnet18", 2, ("conv1", "layer1")),
        ("test_resnet", 2, ("conv1", "layer1")),
        ("mobilenetv2_100", 2, ("conv_stem", "blocks.0", "blocks.1")),
        ("swin_tiny_patch4_window7_224", 1, ("patch_embed",)),
        ("swin_tiny_patch4_window7_224", 2, ("patch_embed", "layers.0")),
    ],
)
def test_frozen_stages_get_no_gradient(name, stages, frozen):
    backbone = Backbone(name, frozen_stages=stages)
    sum(features.mean() for features in backbone(tiny.frames(1, 33, 33))).backward()
    for key, parameter in backbone.body.named_parameters():
        assert (parameter.grad is None) == key.startswith(tuple(f"{part}." for part in frozen)), key


@pytest.mark.parametrize(
    ("name", "frozen"),
    [("resnet18", ("conv1", "layer1")), ("swin_tiny_patch4_window7_224", ("patch_embed", "layers.0"))],
)
def test_no_more_is_frozen_than_up_to_stride_4(name, frozen):
    backbone = Backbone(name, strides=(8, 16, 32))
    fixed = {key for key, parameter in backbone.body.named_parameters() if not parameter.requires_grad}
    assert fixed == {key for key, _ in backbone.body.named_parameters() if key.startswith(frozen)}
    assert fixed


@pytest.mark.parametrize(
    ("name", "pruned"),
    [
        ("convnext_atto", "head"),  # the norm of the classifier
        ("mobilenetv3_large_100", "conv_head"),  # after the pooling
        ("mobilenetv2_100", None),  # whose conv_head is the last map
        ("resnet18", None),
        ("swin_tiny_patch4_window7_224", None),
    ],
)
def test_all_that_is_there_to_learn_gets_a_gradient(name, pruned):
    backbone = Backbone(name, final=True, frozen_norms=False, frozen_stages=0)
    sum(features.square().mean() for features in backbone(tiny.frames(2, 65, 65))).backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []
    whole = set(timm.create_model(name, num_classes=0).state_dict())
    gone = {key.partition(".")[0] for key in whole - set(backbone.body.state_dict())}
    # the norm after timm's Swin is that of the last map in ours
    assert gone == ({"norm"} if "swin" in name else {pruned} - {None})


def test_frozen_norms_do_not_move():
    frozen, free = Backbone("resnet18"), Backbone("resnet18", frozen_norms=False, frozen_stages=0)
    for backbone, moves in ((frozen, False), (free, True)):
        before = {name: value.clone() for name, value in backbone.body.state_dict().items() if "running" in name}
        backbone.train()(tiny.frames(2, 33, 33))
        assert all(torch.equal(backbone.body.state_dict()[name], value) != moves for name, value in before.items())
    assert not any("bn" in name for name, _ in frozen.body.named_parameters())


def test_a_first_map_without_weights_of_its_own():
    """At stride 2 a ResNet's first map is an activation; all before it is frozen with it."""
    backbone = Backbone("resnet18", strides=(2, 4, 8))
    assert {n.partition(".")[0] for n, p in backbone.body.named_parameters() if not p.requires_grad} == {"conv1"}
    assert {n.partition(".")[0] for n, p in backbone.body.named_parameters() if p.requires_grad} == {"layer1", "layer2"}


@pytest.mark.parametrize("stages", [0, 2])
def test_frozen_stages_are_not_skipped_in_training(stages):
    backbone = Backbone("swin_tiny_patch4_window7_224", drop_path=0.2, frozen_stages=stages)
    rates = [block.drop_path.drop_prob for layer in backbone.body.layers for block in layer.blocks]
    assert rates[:2] == ([0, 0] if stages else pytest.approx([0, 0.2 / 11]))
    assert rates[2:] == pytest.approx([0.2 * i / 11 for i in range(2, 10)])  # the last stage counts, though dropped


def test_stochastic_depth_of_a_timm_model():
    rates = [m.drop_prob for m in Backbone("convnext_tiny", drop_path=0.4).modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.4 * 14 / 17)  # the fourth stage, which rises to the full rate, is dropped


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("vit_small_patch16_224", {}, r"no features at stride 4, only at \[16\]"),
        ("swinv2_tiny_window8_256", {}, r"Input height \(\d+\) doesn't match model \(256\).\nChoose a model that"),
        ("swin_s3_tiny_224", {}, r"Input height \(\d+\) doesn't match model \(224\)"),
        ("inception_v3", {}, r"expected maps .*\(192, 24, 24\).*\n  found .*\(192, 20, 20\)"),
        ("hrnet_w18_small", {}, "nothing can be frozen up to it.*Set frozen_stages to 0"),
        ("dla34", {"drop_path": 0.1}, "'dla34' cannot be built .drop_path is 0.1.: .*drop_path_rate"),
    ],
)
def test_models_that_do_not_do_say_why(name, settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        Backbone(name, **settings)
    assert len(str(error.value).splitlines()) <= 8


def test_models_that_do_not_do_are_refused():
    with pytest.raises(ValueError, match="frozen_stages is 3"):
        Backbone("resnet18", frozen_stages=3)
    with pytest.raises(ConfigError, match=r"no model 'resnet5O'.*Close names: "):
        Backbone("resnet5O")
    with pytest.raises(ConfigError, match=r"no features at stride 6, only at \[2, 4, 8, 16, 32\]"):
        Backbone("resnet18", strides=(4, 6, 16))


def test_frozen_norms_leave_no_residual_branch_at_zero():
    built = Backbone("resnet18", frozen_stages=0)
    built(torch.rand(1, 3, 65, 65))[2].square().sum().backward()
    assert all(parameter.grad.any() for _, parameter in built.named_parameters())
