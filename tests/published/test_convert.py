"""Published files and ours: both ways, whole or not at all, and nothing in a file is ever run."""

import copy
import pickle
from functools import cache
from pathlib import Path

import pytest
import tiny
import torch

from lightning_vos.commands.convert import convert, inspect
from lightning_vos.errors import CheckpointError
from lightning_vos.io.checkpoints import read_checkpoint, read_state_dict
from lightning_vos.published import (
    METHODS,
    hodor,
    load_instance_network,
    load_network,
    load_published,
    load_weights,
    mavos,
    recognize,
    seqformer,
)

# Entries of the published layouts that papers/readers of the files know
ENCODERS = {
    "r50": {
        "encoder.conv1.weight": (64, 3, 7, 7),
        "encoder.layer3.5.bn3.running_var": (1024,),
        "encoder_projector.weight": (256, 1024, 1, 1),
    },
    "mobilenetv2": {
        "encoder.features.0.0.weight": (32, 3, 3, 3),
        "encoder.features.17.conv.3.running_mean": (320,),
        "encoder.features.18.0.weight": (1280, 320, 1, 1),
        "encoder_projector.weight": (256, 1280, 1, 1),
    },
    "swinb": {
        "encoder.patch_embed.proj.weight": (128, 3, 4, 4),
        "encoder.layers.0.downsample.reduction.weight": (256, 512),
        "encoder.layers.2.blocks.17.attn.relative_position_index": (49, 49),
        "encoder.norm2.bias": (512,),
    },
}
GATED = {
    "id_norm.weight": (256,),
    "LSTT.layers.0.linear_ID_V.weight": (512, 256),
    "LSTT.layers.2.linear_ID_V.weight": (512, 512),
    "LSTT.layers.1.short_term_attn.relative_emb_k.weight": (225, 128, 1, 1),
}
METHOD = {
    "mavos": GATED
    | {
        "long_term_memory_attention.2.3.joint_modulation.attn.q.weight": (512, 512),
        "long_term_memory_attention.0.0.joint_modulation.attn.focal_layers.1.0.weight": (128, 1, 5, 5),
    },
    "deaotl": GATED,
    "aotl": {
        "LSTT.mask_token": (1, 1, 256),
        "LSTT.decoder_norms.2.weight": (256,),
        "LSTT.layers.1.short_term_attn.relative_emb_v": (8, 32, 225),
        "LSTT.layers.1.short_term_attn.relative_emb_k.weight": (1800, 32, 1, 1),
        "LSTT.layers.2.activation.conv.weight": (1024, 1, 5, 5),
    },
}
ALL = {"decoder.conv_out.weight": (11, 128, 1, 1)}
HODOR = {
    "encoder.fg_query_embed": (256,),
    "encoder.bg_query_embed": (9, 256),
    "encoder.attn_layers.4.cross_attn.scaling_factors": (8,),
    "encoder.attn_layers.0.self_attn.in_proj_weight": (768, 256),
    "encoder.attn_layers.3.ffn.3.weight": (256, 1024),
    "decoder.attn_layers.4.self_attn_conv_substitute.0.conv_offsets.weight": (18, 256, 3, 3),
    "decoder.attn_layers.2.fc2.weight": (256, 256),
    "decoder.conv_4x_reduce.0.weight": (64, 256, 1, 1),
    "decoder.catch_all_conv.3.weight": (1, 128, 1, 1),
    "feature_extractor.bb_fpn.0.layers.2.blocks.5.attn.relative_position_index": (49, 49),
    "feature_extractor.bb_fpn.0.layers.0.downsample.reduction.weight": (192, 384),
    "feature_extractor.bb_fpn.0.norm3.weight": (768,),
    "feature_extractor.bb_fpn.1.lateral_convs.3.conv.weight": (256, 768, 1, 1),
    # What it never uses
    "feature_extractor.bb_fpn.1.fpn_convs.3.conv.weight": (256, 256, 3, 3),
    "feature_extractor.norm_layers.4.bias": (256,),
    "decoder.fmap_proj_4x.0.weight": (256, 256, 1, 1),
}
SEQFORMER = {
    "detr.query_embed.weight": (300, 512),
    "detr.transformer.level_embed": (4, 256),
    "detr.transformer.encoder.layers.5.self_attn.sampling_offsets.weight": (256, 256),
    "detr.transformer.encoder.layers.0.linear1.weight": (1024, 256),
    "detr.transformer.decoder.layers.3.self_attn_box.in_proj_weight": (768, 256),
    "detr.transformer.decoder.layers.5.cross_attn.output_proj_box.bias": (256,),
    "detr.transformer.decoder.layers.1.time_attention_weights.weight": (1, 256),
    "detr.transformer.reference_points.weight": (2, 256),
    "detr.class_embed.5.weight": (42, 256),
    "detr.bbox_embed.4.layers.2.weight": (4, 256),
    "detr.input_proj.3.0.weight": (256, 2048, 3, 3),
    "detr.backbone.0.body.layer4.2.bn3.running_var": (2048,),
    "controller.layers.2.bias": (169,),
    "mask_head.dcn.weight": (256, 256, 3, 3),
    "mask_head.lay2.weight": (8, 64, 3, 3),
    # What it never uses, and what is there twice
    "detr.transformer.encoder.layers.2.self_attn.output_proj_box.weight": (256, 256),
    "detr.transformer.decoder.bbox_embed.4.layers.2.weight": (4, 256),
}
SWINL = {
    "detr.input_proj.3.0.weight": (256, 1536, 3, 3),
    "detr.backbone.0.body.patch_embed.proj.weight": (192, 3, 4, 4),
    "detr.backbone.0.body.layers.2.downsample.reduction.weight": (1536, 3072),
    "detr.backbone.0.body.layers.2.blocks.17.attn.relative_position_index": (144, 144),
    "detr.backbone.0.body.norm3.bias": (1536,),
    "detr.backbone.0.body.norm0.bias": (192,),  # never used
}
LARGE = ("seqformer_r101", "seqformer_swinl")  # seconds to draw; their layouts are compared by shapes alone


@cache
def built(name):
    """A published network with random weights, and those under the published names."""
    torch.manual_seed(0)
    network = METHODS[name].build(name)
    for buffer in network.buffers():
        buffer.add_(torch.rand_like(buffer) if buffer.is_floating_point() else 0)
    return network, METHODS[name].to_published(network.state_dict())


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_names_of_hodor_go_both_ways():
    network, published = built("hodor")
    own = network.state_dict()
    assert {key: tuple(published[key].shape) for key in HODOR} == HODOR
    assert len(published) == 469
    assert len([key for key in published if key.endswith("relative_position_index")]) == 12
    assert len(hodor.essential(published)) == len(own)
    assert not published.keys() & own.keys()
    assert recognize(published) == "hodor"
    assert recognize(own) is None
    assert equal(hodor.to_ours(published), own)


def test_entries_of_another_network_have_no_names_in_hodor():
    own = built("mavos_mobilenetv2")[0].state_dict()
    published = hodor.to_published(own)
    assert hodor.recognize(published) is None
    assert len(hodor.essential(published)) == len(own)
    assert hodor.essential(hodor.to_published({})) == {}


@pytest.mark.parametrize("name", mavos.NAMES)
def test_names_go_both_ways(name):
    network, published = built(name)
    own = network.state_dict()
    method, _, encoder = name.partition("_")
    known = METHOD[method] | ENCODERS[encoder] | ALL
    assert {key: tuple(published[key].shape) for key in known if key in published} == known
    assert len(mavos.essential(published)) == len(own)
    assert not published.keys() & own.keys()
    assert ("id_norm.weight" in published) == (method != "aotl")
    assert any(key.startswith("long_term_memory_attention") for key in published) == (method == "mavos")
    assert recognize(published) == name
    assert recognize(own) is None
    assert equal(mavos.to_ours(published), own)


@pytest.mark.parametrize("name", seqformer.NAMES)
def test_names_of_seqformer_go_both_ways(name):
    with torch.device("meta"):
        network = METHODS[name].build(name)
    own = network.state_dict()
    published = seqformer.to_published(own)
    known = SEQFORMER | SWINL if name == "seqformer_swinl" else SEQFORMER
    known = {key: shape for key, shape in known.items() if "layer4" not in key or name != "seqformer_swinl"}
    assert {key: tuple(published[key].shape) for key in known} == known
    assert len(seqformer.essential(published)) == len(own)
    assert not published.keys() & own.keys()
    assert recognize(published) == name
    assert recognize(own) is None
    assert {key: value.shape for key, value in seqformer.to_ours(published).items()} == {
        key: value.shape for key, value in own.items()
    }


def test_boxes_of_seqformer_have_two_names():
    _, published = built("seqformer_r50")
    twice = [key for key in published if key.startswith("detr.bbox_embed.")]
    assert len(twice) == 36
    assert all(published[f"detr.transformer.decoder.{key.removeprefix('detr.')}"] is published[key] for key in twice)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in LARGE])
def test_a_published_state_dict_is_loaded(name):
    network, published = built(name)
    loaded = load_published(name, {key: value.numpy() for key, value in published.items()})
    assert not loaded.training
    assert equal(loaded.state_dict(), network.state_dict())


@pytest.mark.parametrize(
    "name",
    [
        "mavos_mobilenetv2",
        "deaotl_r50",
        pytest.param("deaotl_swinb", marks=pytest.mark.slow),  # large; its names go both ways above
        "aotl_mobilenetv2",
        "hodor",
        "seqformer_r50",
    ],
)
def test_there_and_back_again(name, tmp_path, command):
    network, published = built(name)
    theirs, ours, again = tmp_path / "theirs.pth", tmp_path / "ours.ckpt", tmp_path / "again.pth"
    # as DistributedDataParallel leaves names
    torch.save({"state_dict": {f"module.{key}": value for key, value in published.items()}, "step": 3}, theirs)
    finished = command("convert", str(theirs), str(ours))
    assert finished.status == 0, finished.err
    assert f"{ours} is a checkpoint of ours of {name}, {len(network.state_dict())} entries." in finished.out
    assert command("convert", str(ours), str(again)).status == 0
    assert equal(read_state_dict(again), published)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.pth", "ours.ckpt", "theirs.pth"]
    assert read_checkpoint(ours)["global_step"] == 0
    load = load_instance_network if name == "seqformer_r50" else load_network
    for path in (theirs, ours):
        loaded = load(path)
        assert not loaded.training
        assert equal(loaded.state_dict(), network.state_dict())
    assert (
        f"is a published file of {name}: {len(published)} entries" in command("convert", str(theirs), "--inspect").out
    )
    method = {"hodor": "HODOR", "seqformer_r50": "TAFormer"}.get(name, "MAVOS")
    assert f"a checkpoint of lightning_vos.{method} after 0 steps" in inspect(ours)
    assert f"{sum(value.numel() for value in published.values()) / 1e6:.2f} M numbers" in inspect(again)


def test_a_converted_checkpoint_is_tested(tmp_path, command, monkeypatch):
    """The real command line builds, loads and scores it."""
    monkeypatch.chdir(tmp_path)
    torch.save(built("mavos_mobilenetv2")[1], tmp_path / "theirs.pth")
    convert(tmp_path / "theirs.pth", tmp_path / "ours.ckpt")
    settings = {"trainer.accelerator": "cpu", "data.workers": 0, "data.settings": "{train: 1, val: 1, frames: 4}"}
    words = ["-c", "configs/mavos_mobilenetv2.yaml", "-c", "configs/data/synthetic.yaml", "--ckpt_path", "ours.ckpt"]
    words += [f"--{key}={value}" for key, value in settings.items()]
    finished = command("test", *words)
    assert finished.status == 0, finished.err
    assert len(list((tmp_path / "runs").glob("mavos_mobilenetv2/version_0/masks/*/*.png"))) == 4
    resumed = command("fit", *words, "--trainer.max_steps=1")
    assert resumed.status == 2
    assert "no state of the optimizer" in resumed.err


def test_weights_alone_are_what_loads(tmp_path, command):
    network, published = built("mavos_mobilenetv2")
    theirs, ours, run, slim = (tmp_path / name for name in ("theirs.pth", "ours.ckpt", "run.ckpt", "slim.ckpt"))
    torch.save(published, theirs)
    convert(theirs, ours)
    content = read_checkpoint(ours)
    content["model"]["init_args"]["weights"] = str(theirs)
    torch.save(content | {"global_step": 7, "optimizer_states": [{"state": content["state_dict"]}]}, run)
    finished = command("convert", "--weights-only", str(run), str(slim))
    assert finished.status == 0, finished.err
    assert f"{slim} has the weights of {run} after 7 steps" in finished.out
    left = read_checkpoint(slim)
    assert left.keys() == content.keys()
    assert left["global_step"] == 7
    assert str(tmp_path) not in str(left["model"])
    assert equal(load_network(slim).state_dict(), network.state_dict())
    refused = command("convert", "--weights-only", str(theirs), str(tmp_path / "none.ckpt"))
    assert refused.status == 2
    assert "is no checkpoint of a run" in refused.err
    assert not (tmp_path / "none.ckpt").exists()


TAKEN_AWAY = {
    "mavos_mobilenetv2": "LSTT.layers.1.linear_U.bias",
    "hodor": "encoder.attn_layers.3.cross_attn.scaling_factors",
    "seqformer_r50": "mask_head.lay3.weight",
}


def spoilt(model, state, how):
    """A state dict with one fault, and the entry that a message must name."""
    state = dict(state)
    if how == "missing":
        name = TAKEN_AWAY[model]
        del state[name]
    elif how == "left over":
        name = "decoder.surplus.weight"
        state[name] = torch.zeros(2)
    else:
        name = "encoder_projector.bias"
        state[name] = torch.zeros(7)
    return state, name


@pytest.mark.parametrize(
    ("model", "how"),
    [
        *(("mavos_mobilenetv2", how) for how in ("missing", "left over", "of another shape")),
        ("hodor", "missing"),
        ("seqformer_r50", "missing"),
    ],
)
def test_one_fault_is_enough_and_is_named(tmp_path, model, how):
    network, published = built(model)
    state, name = spoilt(model, published, how)
    path = tmp_path / "spoilt.pth"
    torch.save(state, path)
    other = copy.deepcopy(network)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    for attempt in (lambda: load_published(model, state), lambda: load_weights(other, path)):
        with pytest.raises(CheckpointError) as error:
            attempt()
        assert f"1 entries {how}: {name}" in str(error.value)
        assert len(str(error.value).splitlines()) <= 8
    assert equal(other.state_dict(), before)


def test_a_file_with_a_fault_is_taken_nowhere(tmp_path):
    state, name = spoilt("mavos_mobilenetv2", built("mavos_mobilenetv2")[1], "missing")
    path, target = tmp_path / "spoilt.pth", tmp_path / "ours.ckpt"
    torch.save(state, path)
    for attempt in (
        lambda: load_published("mavos_mobilenetv2", path),
        lambda: load_network(path),
        lambda: convert(path, target),
    ):
        with pytest.raises(CheckpointError, match=f"1 entries missing: {name}"):
            attempt()
    assert not target.exists()


def test_a_file_of_another_model_is_refused(tmp_path):
    path = tmp_path / "r50.pth"
    torch.save(built("mavos_r50")[1], path)
    with pytest.raises(CheckpointError, match="does not fit mavos_mobilenetv2"):
        load_published("mavos_mobilenetv2", path)
    with pytest.raises(CheckpointError, match="does not fit MAVOSNetwork with these settings"):
        load_weights(tiny.network(), path)
    with pytest.raises(CheckpointError, match="does not fit HODORNetwork with these settings"):
        load_weights(tiny.hodor(), path)
    torch.save(built("hodor")[1], path)
    for network in (tiny.hodor(), tiny.network()):
        with pytest.raises(CheckpointError, match=r"does not fit .*Network with these settings"):
            load_weights(network, path)
    with pytest.raises(CheckpointError, match="'mavos_r51'; known are hodor, mavos_mobilenetv2, mavos_r50"):
        load_published("mavos_r51", path)


def test_a_network_that_finds_instances_is_told_from_one_that_follows_masks(tmp_path):
    path = tmp_path / "seqformer.pth"
    torch.save(built("seqformer_r50")[1], path)
    with pytest.raises(CheckpointError, match="holds a TAFormerNetwork, which follows no given masks"):
        load_network(path)
    with pytest.raises(CheckpointError, match=r"\(published seqformer_r50\) does not fit MAVOSNetwork with these"):
        load_weights(tiny.network(), path)
    torch.save(built("mavos_mobilenetv2")[1], path)
    with pytest.raises(CheckpointError, match="holds a MAVOSNetwork, which finds no instances by itself"):
        load_instance_network(path)


def test_weights_of_the_pre_training_on_images_say_so(tmp_path):
    """91 classes: often taken for the model of videos; class heads start anew where that is asked for."""
    network, published = built("seqformer_r50")
    coco = {
        key: torch.zeros(91, *value.shape[1:]) if key.startswith("detr.class_embed") else value
        for key, value in published.items()
    }
    path = tmp_path / "pretrained.pth"
    torch.save({"model": coco}, path)
    other = copy.deepcopy(network)
    for attempt in (lambda: load_published("seqformer_r50", coco), lambda: load_weights(other, path)):
        with pytest.raises(CheckpointError, match="pre-training on images of COCO, for 91 classes") as error:
            attempt()
        assert len(str(error.value).splitlines()) <= 8
        assert "--model.weights_may_lack '[class_heads]'" in str(error.value)
    with torch.no_grad():
        other.transformer.level_embedding.zero_()
    line = load_weights(other, path, ["class_heads"])
    assert "12 that it lacks or has in another shape start as they were: class_heads." in line
    assert equal(other.state_dict(), network.state_dict())


def test_only_what_is_named_may_be_missing(tmp_path):
    """A DeAOT file has no modulated attention: `policy` keeps its values, and that is said."""
    network = tiny.network(seed=1)
    state = {f"network.{key}": value for key, value in tiny.network(seed=2).state_dict().items()}
    path = tmp_path / "deaot.ckpt"
    torch.save({"state_dict": {key: v for key, v in state.items() if ".policy." not in key}}, path)
    with pytest.raises(CheckpointError, match=r"entries missing: policy\.blocks\.0"):
        load_weights(network, path)
    with pytest.raises(CheckpointError, match=r"entries missing: policy\.blocks\.0"):
        load_weights(network, path, ["decoder"])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    line = load_weights(network, path, ["policy"])
    lacked = [key for key in before if key.startswith("policy")]
    assert f"{len(lacked)} that it lacks start as they were: policy." in line
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] if key in lacked else state[f"network.{key}"]), key
    torch.save({"state_dict": {k: v for k, v in state.items() if ".policy." not in k and "exit.bias" not in k}}, path)
    with pytest.raises(CheckpointError, match=r"1 entries missing: decoder\.exit\.bias"):
        load_weights(network, path, ["policy"])


def test_a_published_file_of_hodor_is_loaded_and_may_lack_what_is_named(tmp_path):
    network, published = built("hodor")
    path = tmp_path / "part.pth"
    for part, may_lack in (("nothing", []), ("decoder.catch_all_conv.1.", ["decoder.catch_all"])):
        torch.save({"model": {k: v for k, v in published.items() if not k.startswith(part)}, "iterations": 3}, path)
        other = copy.deepcopy(network)
        with torch.no_grad():
            other.encoder.object_embedding.zero_()
        assert "published hodor" in load_weights(other, path, may_lack)
        assert equal(other.state_dict(), network.state_dict())


def test_a_published_file_may_lack_what_is_named(tmp_path):
    network, published = built("mavos_r50")
    kept = "long_term_memory_attention.0.0.joint_modulation.attn.q.weight"
    path = tmp_path / "part.pth"
    torch.save({k: v for k, v in published.items() if k == kept or "joint_modulation.mlp" not in k}, path)
    other = copy.deepcopy(network)
    assert "published mavos_r50" in load_weights(other, path, ["policy"])
    assert equal(other.state_dict(), network.state_dict())


class Creator:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_file_is_run(tmp_path, legacy, command):
    made, path = tmp_path / "made", tmp_path / "evil.pth"
    torch.save(
        {"state_dict": {"a": torch.zeros(1)}, "x": Creator(made)}, path, _use_new_zipfile_serialization=not legacy
    )
    with path.with_suffix(".pkl").open("wb") as file:
        pickle.dump(Creator(made), file)
    torch.load(path, weights_only=False)
    assert made.exists()  # the trap works
    made.unlink()
    for file in (path, path.with_suffix(".pkl")):
        for attempt in (read_checkpoint, inspect, load_network, lambda p: load_published("mavos_r50", p)):
            with pytest.raises(CheckpointError, match="never unpickled"):
                attempt(file)
        finished = command("convert", str(file), str(tmp_path / "out.ckpt"))
        assert finished.status == 2
        assert "Traceback" not in finished.err
    assert not made.exists()
    assert not (tmp_path / "out.ckpt").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_files_that_are_cut_off_are_refused(tmp_path, suffix, kept):
    from safetensors.torch import save_file

    path, state = tmp_path / f"cut{suffix}", {"a": torch.rand(500), "b": torch.rand(5, 5)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"cut off or damaged|it is damaged") as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) <= 8


def test_files_that_are_no_weights_are_refused(tmp_path, command):
    path = tmp_path / "file.pth"
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(CheckpointError, match="holds a list, expected a dictionary"):
        read_checkpoint(path)
    torch.save({"epoch": 3, "state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_state_dict(path)
    path.write_text("an error page")
    with pytest.raises(CheckpointError, match=r"file\.pth"):
        read_checkpoint(path)
    torch.save({"a": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="does not say which network its 1 entries belong to"):
        load_network(path)
    with pytest.raises(CheckpointError, match="has no published layout"):
        convert(path, tmp_path / "out.pth")
    assert "a plain state dict of no published model" in inspect(path)
    assert not (tmp_path / "out.pth").exists()
    assert command("convert", str(path)).status == 2
