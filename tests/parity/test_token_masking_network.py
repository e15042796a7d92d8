"""The network of token masking against what the published code computes, and against the paper's reading of it.

Tolerances are those of the reference's README: 1e-4 for logits, 1e-5 for probabilities, 1e-4 relative for attention,
1e-3 relative for norms of gradients.
"""

import copy
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lightning_vos.models.token_masking.gates import GateSettings, HeadGates
from lightning_vos.models.token_masking.pruning import pruned_state
from lightning_vos.models.token_masking.vit import Attention
from lightning_vos.published import load_published, token_masking
from parity import reference

LOGITS = {"rtol": 0.0, "atol": 1e-4}
PROBABILITIES = {"rtol": 0.0, "atol": 1e-5}
ATTENTION = {"rtol": 1e-4, "atol": 1e-6}
NORMS = {"rtol": 1e-3, "atol": 1e-6}
DIVERSITY = 0.1  # the published weight


@cache
def arrays(case):
    found = np.load(reference.ROOT / "token_masking_wsss" / f"{case}.npz")
    return {k: torch.from_numpy(v) if v.dtype.kind != "U" else v for k, v in found.items()}


@cache
def state(case):
    return {k: torch.from_numpy(v) for k, v in reference.weights("token_masking_wsss", case).items()}


@cache
def loaded(case):
    """A file without gates does not say how many heads a layer has: 6 in all cases of small networks."""
    return load_published("token_masking", state(case), heads=None if "log_a" in arrays(case) else 6)


def network(case):
    return copy.deepcopy(loaded(case))


def soft(net):
    net.gates.settings = replace(net.gates.settings, hard=False)
    return net


@pytest.mark.parametrize("case", reference.cases("token_masking_wsss", "eval"))
@torch.no_grad()
def test_official_eval(case):
    a, net = arrays(case), network(case)
    depth = net.vit.settings.depth
    entered, after, attended = {}, {}, {}

    def note(number, block):
        def block_is_left(_, inputs, output):
            entered[number], after[number] = inputs[0], output[0]

        def attention_is_entered(_, inputs):
            attended[number] = inputs[0]

        block.register_forward_hook(block_is_left)
        block.attention.register_forward_pre_hook(attention_is_entered)

    for number, block in enumerate(net.vit.blocks):
        note(number, block)
    predictions = net(a["image"])
    assert_close(predictions.logits, a["logits"], **LOGITS)
    assert_close(predictions.logits.sigmoid(), a["prob"], **PROBABILITIES)
    assert_close(predictions.tokens, a["cls_tokens_out"], **LOGITS)
    assert_close(entered[0][:1], a["tokens_in"], **LOGITS)
    assert_close(after[0][:1], a["block0_out"], **LOGITS)
    grid = tuple(a["grid"].tolist())
    is_square = a["image"].shape[2] == a["image"].shape[3]
    assert torch.equal(net.vit._positions(grid, is_square=is_square), a["pos_embed_used"])
    attended_once = dict(attended)
    for name in (name for name in a if name.startswith("attn_layer")):
        layer = int(name.removeprefix("attn_layer").removesuffix("_heads"))
        _, found = net.vit.blocks[layer].attention(attended_once[layer][:1], rows=slice(None))
        assert_close(found, a[name], **ATTENTION)
    _, found = net.vit.blocks[-1].attention(attended_once[depth - 1], rows=slice(None))
    assert_close(found.mean(dim=1), a["attn_head_mean_last"], **ATTENTION)
    everywhere = net.maps(a["image"], depth, "all", affinity=True)
    assert_close(everywhere.logits, a["logits"], **LOGITS)
    assert_close(everywhere.maps, a["cls_attention_sum_all_layers"], **ATTENTION)
    assert tuple(everywhere.maps.shape[2:]) == grid
    assert_close(net.maps(a["image"], 3, "all").maps, a["cls_attention_sum_last3"], **ATTENTION)
    fused = net.maps(a["image"], depth, "all", fused=True).maps
    assert_close(fused, a["cams_fused_official"], **ATTENTION)
    assert_close(fused, a["cls_attention_sum_all_layers"] * a["patchcam_relu"], **ATTENTION)
    assert_close(net(a["image"], with_maps=True).maps, a["cams_fused_official"], **ATTENTION)


@pytest.mark.parametrize("case", reference.cases("token_masking_wsss", "eval"))
@torch.no_grad()
def test_paper_eval(case):
    a, net = arrays(case), network(case)
    assert_close(net.maps(a["image"]).maps, a["paper_cls_attention_last_layer_open_heads"], **ATTENTION)
    if net.gates is None:
        assert "log_a" not in a
        return
    assert_close(net.gates.values(), a["gates_eval_hard"], rtol=0.0, atol=0.0)
    assert torch.equal(net.gates.log_a.detach(), a["log_a"])
    gated = net.maps(a["image"], net.vit.settings.depth, "gated").maps
    assert_close(gated, a["cls_attention_gated_sum_all_layers"], **ATTENTION)
    assert_close(soft(net).gates.values(), a["gates_eval_soft"], **PROBABILITIES)
    assert_close(net(a["image"]).logits, a["logits_soft_gates"], **LOGITS)


@pytest.mark.parametrize("is_hard", [True, False], ids=["official", "paper"])
@pytest.mark.parametrize("case", reference.cases("token_masking_wsss", "eval"))
@torch.no_grad()
def test_removed_heads_change_nothing(case, is_hard):
    a, net = arrays(case), network(case)
    if net.gates is None:
        pytest.skip(f"{case} has no gates")
    net = net if is_hard else soft(net)
    smaller = net.pruned()
    assert smaller.open_heads() == (a["gates_eval_hard" if is_hard else "gates_eval_soft"] > 0).sum(dim=1).tolist()
    assert_close(smaller(a["image"]).logits, a["logits" if is_hard else "logits_soft_gates"], **LOGITS)
    difference = (smaller(a["image"]).logits - net(a["image"]).logits).abs().max()
    assert difference < 1e-5
    for layers in (1, net.vit.settings.depth):
        assert_close(smaller.maps(a["image"], layers).maps, net.maps(a["image"], layers).maps, **ATTENTION)
    if is_hard:
        again = load_published(
            "token_masking", token_masking.to_published(smaller.state_dict()), heads=a["log_a"].shape[1]
        )
        assert again.vit.settings == smaller.vit.settings
        assert torch.equal(again(a["image"]).logits, smaller(a["image"]).logits)


@pytest.mark.parametrize("case", reference.cases("token_masking_wsss", "gates"))
def test_gates(case):
    a = arrays(case)
    for is_hard, kind in ((True, "hard"), (False, "soft")):
        gates = HeadGates(*a["log_a"].shape, GateSettings(hard=is_hard, start=None))
        assert gates.log_a.abs().max() <= a["init_bound"]
        assert gates.log_a.abs().max() > 0.8 * a["init_bound"]
        gates.load_state_dict({"log_a": a["log_a"]})
        sample = gates.sample(a["u"])
        assert_close(sample, a[f"train_{kind}"], **PROBABILITIES)
        (sample * a["upstream_grad"]).sum().backward()
        assert_close(gates.log_a.grad, a[f"grad_log_a_{kind}"], rtol=1e-3, atol=1e-4)
        assert_close(gates.penalty() * a["lambda_"], a["penalty_official_total"], **NORMS)
        assert_close(gates.penalty(), a["reg_paper_sum"], **NORMS)
        assert_close(gates.eval().sample(a["u"]), a[f"eval_{kind}"], **PROBABILITIES)
        if is_hard:
            assert set(sample.unique().tolist()) <= {0.0, 1.0}
            assert_close(sample.mean(dim=1), a["open_frac_train"])
            assert_close(gates.open().float().mean(dim=1), a["open_frac_eval"])


@pytest.mark.parametrize("case", reference.cases("token_masking_wsss", "gates"))
@torch.no_grad()
def test_frequencies_of_gates(case):
    a, draws = arrays(case), 10_000
    gates = HeadGates(draws, a["log_a"].numel(), GateSettings(start=None))  # every layer is a draw
    gates.load_state_dict({"log_a": a["log_a"].flatten().repeat(draws, 1)})
    torch.manual_seed(0)
    sample = gates.sample().unflatten(1, a["log_a"].shape)
    closed, opened, half = (chosen.sum(dim=0) for chosen in (sample == 0, sample == 1, sample <= 0.5))
    for found, name in (
        (closed, "p_zero_hard_concrete"),
        (opened, "p_one_hard_concrete"),
        (half, "p_zero_official_binarised"),
    ):
        spread = (a[name] * (1 - a[name]) / draws).sqrt()
        assert ((found / draws - a[name]).abs() < 4.5 * spread).all(), name


@pytest.mark.parametrize("case", reference.cases("token_masking_wsss", "train"))
def test_train(case):
    a, net = arrays(case), network(case).train()
    masked = (a["labels"] == 0) & (a["u"] < a["rate"])
    assert torch.equal(masked, a["mask"])
    predictions = net(a["image"], masked, a.get("gate_noise"), with_maps=True)
    assert_close(predictions.tokens, a["masked_tokens"], **LOGITS)
    assert_close(predictions.logits, a["logits"], **LOGITS)
    assert_close(predictions.logits.sigmoid(), a["prob"], **PROBABILITIES)
    loss = F.binary_cross_entropy_with_logits(predictions.logits, a["labels"])
    assert_close(loss, a["loss_cls"], **NORMS)
    if net.gates is not None:
        penalty = 0.01 * net.gates.penalty()
        assert_close(penalty, a["loss_reg"], **NORMS)
        loss = loss + penalty
    if "cams_for_diversity" in a:
        assert_close(predictions.maps, a["cams_for_diversity"], **ATTENTION)
        maps = predictions.maps.flatten(2)
        maps = maps / ((maps**2).sum(dim=2, keepdim=True) + 1e-10).sqrt()
        diversity = DIVERSITY * (maps @ maps.mT - torch.eye(maps.shape[1])).norm(dim=(1, 2)).mean()
        assert_close(diversity, a["loss_div"], **NORMS)
        loss = loss + diversity
    assert_close(loss, a["loss"], **NORMS)
    loss.backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    theirs = token_masking.to_published(grads)
    assert_close(theirs["mct.cls_token"], a["grad_cls_token"], **NORMS)
    assert_close(theirs["mct.register_token"], a["grad_register_token"], **NORMS)
    assert_close(theirs["classifier_head_test.bias"], a["grad_classifier_bias"], **NORMS)
    if "grad_log_a" in a:
        assert_close(grads["gates.log_a"], a["grad_log_a"], **NORMS)
    norms = dict(zip(a["grad_norm_names"].tolist(), a["grad_norm_values"].tolist(), strict=True))
    assert theirs.keys() - {name for name in theirs if name.startswith(token_masking._UNUSED)} == norms.keys()
    for name, norm in norms.items():
        assert float(theirs[name].norm()) == pytest.approx(norm, rel=1e-3), name
    untaught = {f"patch_head.{kind}" for kind in ("weight", "bias")}
    assert {name for name, p in net.named_parameters() if p.grad is None} == untaught
    assert {name for name in a["no_grad_names"] if not name.startswith(token_masking._UNUSED)} == {
        "mct.head.weight",
        "mct.head.bias",
    }
    with torch.no_grad():
        assert_close(net.eval()(a["image"]).logits.sigmoid(), a["prob_eval"], **PROBABILITIES)
        if "prob_soft_gates" in a:
            logits = soft(net).train()(a["image"], masked, a["gate_noise"]).logits
            assert_close(logits.sigmoid(), a["prob_soft_gates"], **PROBABILITIES)
            loss = F.binary_cross_entropy_with_logits(logits, a["labels"])
            assert_close(loss, a["loss_cls_soft_gates"], **NORMS)


def attention(case, heads, head_width, weights):
    layer = Attention(weights["proj.weight"].shape[0], heads, head_width, qkv_bias="qkv.bias" in weights).eval()
    layer.load_state_dict(weights)
    return layer


@pytest.mark.parametrize("case", reference.cases("token_masking_wsss", "msa"))
@torch.no_grad()
def test_msa(case):
    a, heads = arrays(case), int(arrays(case)["num_heads"])
    inner = {name.removeprefix("mct.blocks.0.attn.").removeprefix("attn."): v for name, v in state(case).items()}
    weights = {name: value for name, value in inner.items() if "log_a" not in name}
    head_width = weights["qkv.weight"].shape[1] // heads
    whole = attention(case, heads, head_width, weights)
    for number, gate in enumerate(a["gates"]):
        out, maps = whole(a["x"], gate, rows=slice(None))
        assert_close(out, a["out"][number], **PROBABILITIES)
        assert_close(maps, a["attn"], **ATTENTION)
        full = {f"vit.blocks.0.attention.{name}": value for name, value in weights.items()}
        left = pruned_state(full, gate[None], head_width)
        left = {name.removeprefix("vit.blocks.0.attention."): value for name, value in left.items()}
        fewer = attention(case, int((gate > 0).sum()), head_width, left)
        assert_close(fewer(a["x"])[0], a["out"][number], **PROBABILITIES)
        if number < len(a["physically_pruned_out"]):
            assert_close(fewer(a["x"])[0], a["physically_pruned_out"][number], **PROBABILITIES)
    gates = HeadGates(1, heads, GateSettings(hard=True)).eval()
    gates.load_state_dict({"log_a": a["log_a"][None]})
    assert_close(gates.sample()[0], a["gates_from_log_a"], **PROBABILITIES)
    assert_close(whole(a["x"], gates.sample()[0])[0], a["out_from_log_a"], **PROBABILITIES)


@pytest.mark.parametrize("kind", ["eval", "train"])
def test_every_entry_is_accounted_for(kind):
    for case in reference.cases("token_masking_wsss", kind):
        if not isinstance(case, str):
            pytest.skip(f"no {kind} case")
        folder = reference.ROOT / "token_masking_wsss"
        manifest = json.loads((folder / json.loads((folder / "index.json").read_text())[case]["manifest"]).read_text())
        published = token_masking.to_published(network(case).state_dict())
        assert {one["name"]: tuple(one["shape"]) for one in manifest} == {
            k: tuple(v.shape) for k, v in published.items()
        }
        wrapped = {f"model.{name}": value for name, value in state(case).items()}
        assert token_masking.recognize(wrapped) == token_masking.recognize(published) == "token_masking"
        ours = network(case).state_dict()
        for name, value in token_masking.to_ours(wrapped).items():
            assert torch.equal(value, ours[name]), name
