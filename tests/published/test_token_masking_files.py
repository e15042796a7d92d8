"""Published files of token masking, checkpoints of ours, and what `convert --prune` leaves of them."""

import copy
import re

import pytest
import torch
from torch.testing import assert_close

from lightning_vos.commands.convert import convert, inspect, prune
from lightning_vos.errors import CheckpointError, ConfigError
from lightning_vos.io.checkpoints import read_checkpoint, read_state_dict
from lightning_vos.models.token_masking.gates import GateSettings
from lightning_vos.models.token_masking.network import TokenMaskingNetwork
from lightning_vos.models.token_masking.vit import ViTSettings
from lightning_vos.published import (
    load_instance_network,
    load_network,
    load_published,
    load_token_masking_network,
    load_weights,
    recognize,
    token_masking,
)

PUBLISHED = {"qkv_bias": False, "norm_eps": 1e-5, "final_norm": False, "interpolation": "published"}
ENTRIES = {
    "mct.cls_token": (1, 5, 24),
    "mct.register_token": (1, 1, 24),
    "mct.pos_embed": (1, 22, 24),
    "mct.patch_embed.proj.weight": (24, 13, 8, 8),
    "mct.blocks.2.norm1.bias": (24,),
    "mct.blocks.0.attn.qkv.weight": (72, 24),
    "mct.blocks.1.attn.proj.bias": (24,),
    "mct.blocks.2.attn.gate.log_a": (1, 4, 1, 1),
    "mct.blocks.0.mlp.fc1.weight": (96, 24),
    "mct.blocks.0.mlp.fc2.bias": (24,),
    "mct.norm.weight": (24,),
    "mct.head.weight": (5, 24, 3, 3),
    "mct.classifier_head_test.weight": (5, 120),
    "classifier_head_test.weight": (5, 120),
    "classifier_head_test.bias": (5,),
}


def network(seed=0, vit=None, **settings):
    """A small one as published, with random weights and closed heads; eval mode."""
    torch.manual_seed(seed)
    small = {"width": 24, "depth": 3, "heads": 4, "patch": 8, "bands": 13, "grid": 4} | PUBLISHED | (vit or {})
    official = {"gates": GateSettings(hard=True, start=None), "patch_head": True} | settings
    net = TokenMaskingNetwork(5, ViTSettings(**small), **official)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return net.eval()


def published(net, prefix="", seed=0):
    """Its state dict as published, with numbers of the seed where nothing is used."""
    state = token_masking.to_published(net.state_dict())
    torch.manual_seed(seed)
    unused = {name: torch.randn_like(value) for name, value in state.items() if name.startswith(token_masking._UNUSED)}
    return {f"{prefix}{name}": value for name, value in (state | unused).items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def image(seed=0):
    return torch.randn(2, 13, 40, 24, generator=torch.Generator().manual_seed(seed))


def saved(net, path, **more):
    """As a checkpoint of a run, to the extent that the network is concerned."""
    init = {"network": {"class_path": "lightning_vos.models.token_masking.network.TokenMaskingNetwork"}}
    vit = {name: getattr(net.vit.settings, name) for name in ViTSettings.__dataclass_fields__}
    gates = None if net.gates is None else {"hard": net.gates.settings.hard, "start": None}
    init["network"]["init_args"] = {"classes": 5, "vit": vit, "gates": gates, "patch_head": net.patch_head is not None}
    content = {
        "state_dict": {f"network.{name}": value for name, value in net.state_dict().items()},
        "model": {"class_path": "lightning_vos.TokenMasking", "init_args": init | more},
        "pytorch-lightning_version": "2.6.0",
        "epoch": 3,
        "global_step": 50,
        "classes": ["bird", "boat", "cat", "dog", "sheep"],
    }
    torch.save(content, path)
    return path


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("has_gates", [True, False])
def test_names_go_both_ways(prefix, has_gates):
    net = network(**({} if has_gates else {"gates": None}))
    state = published(net, prefix)
    known = {name: shape for name, shape in ENTRIES.items() if has_gates or "gate" not in name}
    assert {name: tuple(state[f"{prefix}{name}"].shape) for name in known} == known
    assert len(token_masking.essential(state)) == len(state) - 4
    assert recognize(state) == "token_masking"
    assert recognize(net.state_dict()) is None
    assert equal(token_masking.to_ours(state), net.state_dict())
    loaded = load_published("token_masking", {k: v.numpy() for k, v in state.items()}, heads=4)
    assert not loaded.training
    assert equal(loaded.state_dict(), net.state_dict())
    assert loaded.vit.settings == net.vit.settings
    with torch.no_grad():
        assert torch.equal(loaded(image()).logits, net(image()).logits)


def test_what_is_never_used_changes_nothing():
    net, states = network(), [published(network(), seed=seed) for seed in (1, 2)]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])
    for state in states:
        with torch.no_grad():
            assert torch.equal(load_published("token_masking", state)(image()).logits, net(image()).logits)


def test_heads_must_be_said_where_the_file_does_not():
    state = published(network(gates=None))
    with pytest.raises(CheckpointError, match="does not say how many heads a layer has") as error:
        load_published("token_masking", state)
    assert "heads=..." in str(error.value)
    with pytest.raises(CheckpointError, match="5 do not divide"):
        load_published("token_masking", state, heads=5)
    with pytest.raises(CheckpointError, match="heads=4"):
        load_published("hodor", state, heads=4)


@pytest.mark.parametrize("how", ["missing", "left over", "of another shape"])
def test_one_fault_is_enough_and_is_named(tmp_path, how):
    net, state = network(), published(network())
    name = {"missing": "mct.blocks.1.mlp.fc2.bias", "left over": "mct.surplus", "of another shape": "mct.head.bias"}[
        how
    ]
    if how == "missing":
        del state[name]
    else:
        state[name] = torch.zeros(7)
    torch.save({"state_dict": state}, tmp_path / "spoilt.pth")
    before = copy.deepcopy(net.state_dict())
    for attempt in (
        lambda: load_published("token_masking", state),
        lambda: load_weights(net, tmp_path / "spoilt.pth"),
        lambda: convert(tmp_path / "spoilt.pth", tmp_path / "ours.ckpt"),
    ):
        with pytest.raises(CheckpointError, match=f"1 entries {how}: {name}"):
            attempt()
    assert equal(net.state_dict(), before)
    assert not (tmp_path / "ours.ckpt").exists()


def test_a_published_file_fills_a_network(tmp_path):
    net, path = network(seed=1), tmp_path / "theirs.ckpt"
    state = published(network(), "model.")
    torch.save({"state_dict": state, "epoch": 4}, path)
    line = load_weights(net, path)
    assert (
        line == f"Loaded {len(state)} entries from {path} (published token_masking), 4 of which the network never uses."
    )
    assert equal(net.state_dict(), network().state_dict())
    other = network(seed=2, gates=None)
    with pytest.raises(CheckpointError, match=r"3 entries left over: mct\.blocks\.0\.attn\.gate\.log_a"):
        load_weights(other, path)
    assert "lacks start as they were: gates" in load_weights(
        network(seed=1), saved_without_gates(tmp_path / "other.pth"), ["gates"]
    )


def saved_without_gates(path):
    torch.save({name: value for name, value in published(network()).items() if "gate" not in name}, path)
    return path


def test_there_and_back_again(tmp_path):
    net, state = network(), published(network(), "model.")
    theirs, ours, again = tmp_path / "theirs.pth", tmp_path / "ours.ckpt", tmp_path / "again.pth"
    torch.save({"state_dict": state}, theirs)
    assert f"is a checkpoint of ours of token_masking, {len(net.state_dict())} entries" in convert(theirs, ours)
    assert "is a published file of token_masking" in convert(ours, again)
    assert equal(token_masking.essential(read_state_dict(again)), token_masking.essential(state))
    for path in (theirs, ours, again):
        loaded = load_token_masking_network(path)
        assert equal(loaded.state_dict(), net.state_dict())
        assert loaded.vit.settings == net.vit.settings
    assert "a checkpoint of lightning_vos.TokenMasking after 0 steps" in inspect(ours)
    for load in (load_network, load_instance_network):
        with pytest.raises(CheckpointError, match="holds a TokenMaskingNetwork"):
            load(ours)


@pytest.mark.parametrize(
    "settings", [{"vit": {"final_norm": True}}, {"vit": {"qkv_bias": True}}, {"register": False}, {"patch_head": False}]
)
def test_a_network_that_the_published_code_has_not_is_not_converted(tmp_path, settings):
    torch.save({f"network.{k}": v for k, v in network(**settings).state_dict().items()}, tmp_path / "ours.ckpt")
    with pytest.raises(CheckpointError, match=r"does not fit the published token_masking"):
        convert(tmp_path / "ours.ckpt", tmp_path / "theirs.pth")
    assert not (tmp_path / "theirs.pth").exists()


def no_head_in_the_middle(net):
    with torch.no_grad():
        net.gates.log_a.copy_(torch.tensor([[3.0, -3, -3, 2], [-3, -3, -3, -3], [1, 1, -3, 1]]))
    return net


@pytest.mark.parametrize("is_hard", [True, False])
def test_closed_heads_are_removed(tmp_path, command, is_hard):
    net = no_head_in_the_middle(network(vit={"qkv_bias": not is_hard}, gates=GateSettings(hard=is_hard, start=None)))
    source, target = saved(net, tmp_path / "ours.ckpt"), tmp_path / "pruned.ckpt"
    finished = command("convert", str(source), str(target), "--prune")
    assert finished.status == 0, finished.err
    said = re.search(r"(\S+) \(the largest is \S+\) of logits, (\S+) \(the largest is \S+\) of maps", finished.out)
    assert max(float(said[1]), float(said[2])) < 1e-5
    assert re.search(r"attention heads +12 +5\n", finished.out)
    for what in (r"parameters +[\d.]+ M +[\d.]+ M", r"forward, 32 x 32 +[\d.]+ ms +[\d.]+ ms", r"memory .* MB +.* MB"):
        assert re.search(what, finished.out), what
    memory = re.search(r"memory of it +([\d.]+) MB +([\d.]+) MB", finished.out)
    assert float(memory[2]) <= float(memory[1])
    loaded = load_token_masking_network(target)
    assert loaded.open_heads() == [2, 0, 3]
    with torch.no_grad():
        assert_close(loaded(image()).logits, net(image()).logits, rtol=1e-5, atol=1e-5)
        assert_close(loaded.maps(image(), 3).maps, net.maps(image(), 3).maps, rtol=1e-5, atol=1e-6)
    assert read_checkpoint(target)["classes"] == ["bird", "boat", "cat", "dog", "sheep"]
    # the words that it says fit, and so do those of whom forgets them
    other = network(seed=3, vit={"qkv_bias": not is_hard})
    with pytest.raises(CheckpointError, match="closed heads removed") as error:
        load_weights(other, target)
    words = "--model.network.gates=null --model.network.vit.head_width=6 --model.network.vit.heads='[2, 0, 3]'"
    assert words in str(error.value)
    assert words in finished.out
    assert len(str(error.value).splitlines()) <= 8
    assert inspect(target).endswith(f"Its closed heads are removed. To run it: {words}")
    assert "To run it" not in inspect(source)
    fitting = network(seed=3, vit={"qkv_bias": not is_hard, "heads": (2, 0, 3), "head_width": 6}, gates=None)
    load_weights(fitting, target)
    assert equal(fitting.state_dict(), loaded.state_dict())


def test_weights_whose_heads_are_all_open_lack_gates_alone(tmp_path, command):
    net = network()
    with torch.no_grad():
        net.gates.log_a.fill_(3.0)
    target = tmp_path / "pruned.ckpt"
    assert "has nothing removed but the gates: no head was closed" in prune(saved(net, tmp_path / "ours.ckpt"), target)
    with pytest.raises(CheckpointError, match="The weights have no gates") as error:
        load_weights(network(seed=3), target)
    assert str(error.value).endswith("\n  --model.network.gates=null")
    fitting = network(seed=3, gates=None)
    load_weights(fitting, target)
    assert equal(fitting.state_dict(), load_token_masking_network(target).state_dict())


def test_a_pruned_published_file_is_loaded(tmp_path):
    net = no_head_in_the_middle(network())
    torch.save({"state_dict": published(net)}, tmp_path / "theirs.pth")
    prune(tmp_path / "theirs.pth", tmp_path / "pruned.ckpt")
    theirs = token_masking.to_published(load_token_masking_network(tmp_path / "pruned.ckpt").state_dict())
    loaded = load_published("token_masking", theirs, heads=4)
    assert loaded.vit.settings.heads == (2, 0, 3)
    with torch.no_grad():
        assert_close(loaded(image()).logits, net(image()).logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="no gates"):
        prune(tmp_path / "pruned.ckpt", tmp_path / "again.ckpt")
    assert not (tmp_path / "again.ckpt").exists()


def test_nothing_else_is_pruned(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not say which network"):
        prune(tmp_path / "other.pth", tmp_path / "pruned.ckpt")
    assert not (tmp_path / "pruned.ckpt").exists()


def test_sizes_of_an_empty_file_are_those_of_voc():
    with torch.device("meta"):
        net = token_masking.build("token_masking")
    shapes = {name: tuple(value.shape) for name, value in token_masking.to_published(net.state_dict()).items()}
    assert shapes["mct.pos_embed"] == (1, 217, 768)
    assert shapes["mct.blocks.11.attn.gate.log_a"] == (1, 16, 1, 1)
    assert shapes["classifier_head_test.weight"] == (20, 15360)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) / 1e6 == pytest.approx(86.55, abs=0.01)
