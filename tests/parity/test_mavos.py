"""MAVOS against what the published implementation computes; sizes and counts come from the cases.

Sequences are (tokens, B, C) in the cases and (B, tokens, C) here. Tolerances are those of the reference's README: 1e-5
relative for modules, 1e-4 absolute for logits and memories.
"""

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_vos.losses.segmentation import BootstrappedJaccard, bootstrapped_cross_entropy, soft_jaccard
from lightning_vos.models.mavos import attention
from lightning_vos.models.mavos.elstt import ELSTTLayer, GatedMemory
from lightning_vos.models.mavos.fusion import FusionBlock
from lightning_vos.models.mavos.memory import MemoryRules
from lightning_vos.models.mavos.modulated_cross_attention import ModulatedCrossAttention
from lightning_vos.models.mavos.module import MAVOS
from lightning_vos.models.mavos.network import IdentityAssignment
from lightning_vos.optim import PolynomialSchedule
from lightning_vos.published import load_published, mavos
from lightning_vos.structures import Clip
from lightning_vos.vos.canvas import ResizingCanvas
from lightning_vos.vos.track import Tracker, track
from parity import reference

RELATIVE = {"rtol": 1e-5, "atol": 1e-5}
ABSOLUTE = {"rtol": 0.0, "atol": 1e-4}


def arrays(case):
    return {k: torch.from_numpy(np.array(v)) for k, v in np.load(reference.ROOT / "mavos" / f"{case}.npz").items()}


def batch_first(sequence):
    return sequence.transpose(0, 1)


def flat(grid):
    return grid.flatten(2).transpose(1, 2)


def fill(module, case, outer, ours):
    """Load the weights of a module case; `outer` and `ours` are its names in a published network and in ours."""
    state = {f"{outer}{k}": torch.from_numpy(v) for k, v in reference.weights("mavos", case).items()}
    state = {k.removeprefix(ours): v for k, v in mavos.to_ours(state).items()}
    module.load_state_dict(state)
    return module.eval()


def size_of(a):
    return tuple(a["size"].tolist())


@pytest.mark.parametrize("case", reference.cases("mavos", "gated_long"))
@torch.no_grad()
def test_gated_long(case):
    a = arrays(case)
    q, k, v, u = (batch_first(a[n]) for n in "qkvu")
    module = attention.GatedPropagation(v.shape[2], a["out"].shape[2])
    fill(module, case, "LSTT.layers.0.long_term_attn.", "transformer.layers.0.long_term.")
    assert_close(batch_first(module(q, k, v, u, size_of(a))), a["out"], **RELATIVE)
    row = (q[:, :1] @ k.transpose(1, 2) * q.shape[2] ** -0.5).softmax(2)
    assert_close(row[:, 0], a["attn_row0"], **RELATIVE)


@pytest.mark.parametrize("case", reference.cases("mavos", "gated_local"))
@torch.no_grad()
def test_gated_local(case):
    a = arrays(case)
    q, k, v, u = flat(a["q"]), flat(a["k"]), flat(a["v"]), batch_first(a["u"])
    window = int(a["attn"].shape[2] ** 0.5)
    module = attention.LocalGatedPropagation(q.shape[2], v.shape[2], a["out"].shape[2], window)
    fill(module, case, "LSTT.layers.0.short_term_attn.", "transformer.layers.0.short_term.")
    size = size_of(a)
    assert_close(batch_first(module(q, k, v, u, size)), a["out"], **RELATIVE)
    relative = module.relative(a["q"]).permute(0, 2, 3, 1)
    weights = attention.local_weights(q.unflatten(1, size), k.unflatten(1, size), relative, window)
    assert_close(weights.flatten(3).flatten(1, 2).transpose(1, 2)[:, None], a["attn"], **RELATIVE)


@pytest.mark.parametrize("case", reference.cases("mavos", "gated_self"))
@torch.no_grad()
def test_gated_self(case):
    a = arrays(case)
    x = batch_first(a["x"])
    given = reference.weights("mavos", case)
    keys, values = given["linear_QK.weight"].shape[0], given["linear_V1.weight"].shape[0]
    module = attention.SelfGatedPropagation(x.shape[2] // 2, keys, values)
    fill(module, case, "LSTT.layers.0.self_attn.", "transformer.layers.0.self_propagation.")
    assert_close(batch_first(module(x, size_of(a))), a["out"], **RELATIVE)
    query = module.query_key(x)
    row = (query[:, :1] @ query.transpose(1, 2) * query.shape[2] ** -0.5).softmax(2)
    assert_close(row[:, 0], a["attn_row0"], **RELATIVE)


@pytest.mark.parametrize("case", reference.cases("mavos", "gpm_block"))
@torch.no_grad()
def test_gpm_block(case):
    a = arrays(case)
    first = "tgt_id" not in a
    channels, keys, values = a["tgt"].shape[2], a["curr_k"].shape[2], a["curr_v"].shape[2]
    window = int(reference.weights("mavos", case)["short_term_attn.relative_emb_k.weight"].shape[0] ** 0.5)
    module = ELSTTLayer(channels, keys, values, window, 0.1, first=first)
    fill(module, case, "LSTT.layers.0.", "transformer.layers.0.")
    size, visual = size_of(a), batch_first(a["tgt"])
    identity = None if first else batch_first(a["tgt_id"])
    long = GatedMemory(*(batch_first(a[n]) for n in ("lt_k", "lt_v", "lt_idv")))
    short = GatedMemory(*(flat(a[n]) for n in ("st_k", "st_v", "st_idv")))
    out_visual, out_identity, current = module(visual, identity, size, (long, short), None)
    assert_close(batch_first(out_visual), a["out_vis"], **RELATIVE)
    assert_close(batch_first(out_identity), a["out_id"], **RELATIVE)
    assert_close(batch_first(current.key), a["curr_k"], **RELATIVE)
    assert_close(batch_first(current.value), a["curr_v"], **RELATIVE)
    assignment = batch_first(a["id_emb"])
    assert_close(batch_first(module.remember(current, assignment).identity), a["fused_idv"], **RELATIVE)
    out_visual, out_identity, current = module(visual, identity, size, None, assignment)
    assert_close(batch_first(out_visual), a["ref_out_vis"], **RELATIVE)
    assert_close(batch_first(out_identity), a["ref_out_id"], **RELATIVE)
    assert_close(batch_first(module.remember(current, assignment).identity), a["ref_lt_idv"], **RELATIVE)


@pytest.mark.parametrize("case", reference.cases("mavos", "mca"))
@torch.no_grad()
def test_mca(case):
    a = arrays(case)
    new, context, size = batch_first(a["latents"]), batch_first(a["context"]), size_of(a)
    channels = new.shape[2]
    block = FusionBlock(channels, ModulatedCrossAttention(channels, levels=a["gates"].shape[1] - 1))
    fill(block, case, "long_term_memory_attention.0.0.", "policy.blocks.0.0.")
    assert_close(batch_first(block(new, context, size)), a["out"], **RELATIVE)
    mca, normed = block.attention, (block.norm_new(new), block.norm_context(context))
    assert_close(mca(*normed, size), a["attn_branch"], **RELATIVE)
    modulation = mca.context(normed[1], size)
    assert_close(modulation.gates, a["gates"], **RELATIVE)
    assert_close(modulation.values, a["modulator"], **RELATIVE)
    head = channels // mca.heads
    query, key = mca.query(normed[0])[:, :, :head], mca.key(normed[1])[:, :, :head]
    assert_close((query @ key.transpose(1, 2) * head**-0.5).softmax(2), a["attn_head0"], **RELATIVE)


@pytest.mark.parametrize("case", reference.cases("mavos", "id_assign"))
@torch.no_grad()
def test_id_assign(case):
    a = arrays(case)
    given = reference.weights("mavos", case)
    channels, slots, kernel, _ = given["patch_wise_id_bank.weight"].shape
    align_corners = kernel % 2 == 1
    module = IdentityAssignment(slots, channels, kernel - align_corners, align_corners=align_corners)
    fill(module, case, "", "assignment.")
    planes = (a["labels"][:, None] == torch.arange(slots).view(1, -1, 1, 1)).float()
    size = a["id_emb"].shape[2:]
    assert_close(module(planes), flat(a["id_emb"]), **RELATIVE)
    assert_close(module(planes, a["perm"]), flat(a["id_emb_perm"]), **RELATIVE)
    assert_close(IdentityAssignment.restore(a["logits"], a["perm"]), a["logits_unpermuted"], **RELATIVE)
    assert size[0] * size[1] == module(planes).shape[1]


@pytest.mark.parametrize("case", reference.cases("mavos", "losses"))
def test_losses(case):
    a = arrays(case)
    samples = range(sum(k.startswith("logits") for k in a))
    for ignore in ("", "_ignore"):
        pairs = [(a[f"logits{i}"], a[f"label{ignore}{i}"].long()) for i in samples]
        jaccard = torch.cat([soft_jaccard(*pair) for pair in pairs])
        assert_close(jaccard, a[f"jaccard{ignore}"], **RELATIVE)
        for key in (k for k in a if k.startswith("ce_step") and k.endswith("_ignore") == bool(ignore)):
            progress = int(key.removeprefix("ce_step").removesuffix("_ignore")) / 100_000
            loss = BootstrappedJaccard()
            entropy = torch.cat([bootstrapped_cross_entropy(*pair, loss.kept(progress)) for pair in pairs])
            assert_close(entropy, a[key], **RELATIVE)
    pairs = [(a[f"logits{i}"], a[f"label{i}"].long()) for i in samples]
    plain = torch.cat([bootstrapped_cross_entropy(*pair, 1.0) for pair in pairs])
    assert_close(plain, a["ce_plain"], **RELATIVE)
    for key in (k for k in a if k.startswith("total_step")):
        progress = int(key.removeprefix("total_step")) / 100_000
        assert_close(torch.cat([BootstrappedJaccard()(*pair, progress) for pair in pairs]), a[key], **RELATIVE)


def network_of(case, interval):
    network = load_published(reference.network_name("mavos", case), reference.weights("mavos", case))
    network.test_rules = MemoryRules(interval=interval)
    return network


def record(network, monkeypatch):
    """Keep the logits of every `segment`."""
    logits, segment = [], network.segment

    def recording(*args, **kwargs):
        result = segment(*args, **kwargs)
        logits.append(result[0])
        return result

    monkeypatch.setattr(network, "segment", recording)
    return logits


def assert_same_but_for_ties(prediction, labels):
    """The labels are the stored ones, but for pixels whose two best probabilities differ by less than the tolerance."""
    best = prediction.probabilities.topk(2, dim=0).values
    margins = (best[0] - best[1])[prediction.labels != labels.long()]
    assert not len(margins) or margins.max() < ABSOLUTE["atol"]


def frames_of(a):
    return a["frames"].movedim(-1, -3).float() / 255


def every(tensor, count):
    """`count` channels of dim 1 as the cases store them, every second pixel."""
    return tensor[:, :: tensor.shape[1] // count, ::2, ::2][:, :count]


@pytest.mark.parametrize("case", reference.cases("mavos", "sequence"))
@torch.no_grad()
def test_sequence(case, monkeypatch):
    a = arrays(case)
    network = network_of(case, int(a["gap"]))
    logits = record(network, monkeypatch)
    frames, labels = frames_of(a), a["labels"].long()
    size = a["net_size"].tolist() if "net_size" in a else list(frames.shape[2:])
    view = network.canvas.view(tuple(frames.shape[2:]))
    assert list(view.network) == size
    entered = network.canvas.enter(frames[:1], view)
    backbone = network.backbone
    if "net_input_t0" in a:
        step = size[0] // (a["net_input_t0"].shape[2] - 1)
        normalised = (entered - backbone.mean) / backbone.std
        assert_close(normalised[:, :, ::step, ::step], a["net_input_t0"], **ABSOLUTE)
    *maps, _ = backbone(entered)
    for name, features in zip(("enc4", "enc8", "enc16"), maps, strict=True):
        assert_close(every(features, a[name].shape[1]), a[name], **ABSOLUTE)
    features = network.encode(entered)
    assert_close(every(features.projected, a["proj16"].shape[1]), a["proj16"], **ABSOLUTE)
    if "ref_lstt_last" in a:
        planes = network.planes(labels[:1] * (labels[:1] <= int(a["nobj"])), 10, view)
        assignment = network.assignment(planes)
        assert_close(batch_first(assignment)[:, :, : a["id_emb_ref"].shape[2]], a["id_emb_ref"], **ABSOLUTE)
        tokens = flat(features.projected)
        grid = tuple(features.projected.shape[2:])
        last, _ = network.transformer(tokens, grid, assignment=assignment)
        last = last[:, :, -8 * a["ref_lstt_last"].shape[2] :]  # AOT's output holds the earlier layers, too
        assert_close(batch_first(last)[:, :, ::8], a["ref_lstt_last"], **ABSOLUTE)

    new_at = int(a["new_at"]) if "new_at" in a else None
    tracker = Tracker(network)
    updates = a["mem_updates"].tolist() if "mem_updates" in a else []
    for t, frame in enumerate(frames):
        mask = labels[0] if t == 0 else None
        if t == new_at:
            mask = torch.where(labels[t] > int(a["nobj"]), labels[t], 0)
        prediction = tracker.step(frame, mask, forced=labels[t])
        memory = tracker.memories[0]
        assert memory.bank_frames == int(a["lt_frames"][t])
        if t in updates:
            for layer, part, name in (
                (0, memory.long[0].key, "k"),
                (1, memory.long[1].value, "v"),
                (2, memory.long[2][-1], "idv"),
            ):
                stored = a[f"mem_t{t}_layer{layer}_{name}"]
                stride = part.shape[2] // stored.shape[2]
                assert_close(batch_first(part)[:, :, ::stride], stored, **ABSOLUTE)
        if t == 0:
            continue
        expected = a["logits_4x"][t - 1]
        assert_close(logits[t - 1][0, : expected.shape[0]], expected, **ABSOLUTE)
        if t == new_at:
            continue
        assert_same_but_for_ties(prediction, a["pred_labels"][t - 1])
        if t >= len(frames) - 2:
            upsampled = network.resolve((logits[t - 1],), tracker.memories, view).logits[0, :, ::4, ::4]
            stored = a["full_logits_strided"][t - len(frames)]
            assert_close(upsampled[: stored.shape[0]], stored, **ABSOLUTE)


@pytest.mark.parametrize("case", reference.cases("mavos", "sequence"))
@torch.no_grad()
def test_free_running(case, monkeypatch):
    a = arrays(case)
    if "free_pred_labels" not in a:
        pytest.skip("this case forces its labels throughout")
    network = network_of(case, int(a["gap"]))
    logits = record(network, monkeypatch)
    labels = a["labels"].long()
    prompts = {0: labels[0]}
    if "new_at" in a:
        t = int(a["new_at"])
        prompts[t] = torch.where(labels[t] > int(a["nobj"]), labels[t], 0)
    predictions = list(track(network, frames_of(a), prompts))
    flipped = False  # an arg-max between two equal logits may fall either way, and spreads from there
    for t, prediction in enumerate(predictions[1:]):
        expected = a["free_logits_4x"][t]
        same = prediction.labels == a["free_pred_labels"][t].long()
        if not flipped:
            assert_close(logits[t][0, : expected.shape[0]], expected, **ABSOLUTE)
            assert_same_but_for_ties(prediction, a["free_pred_labels"][t])
        assert same.float().mean() > 0.995, f"frame {t + 1}: {same.float().mean()}"
        flipped |= not bool(same.all())
    assert len(logits) == len(predictions) - 1


@pytest.mark.parametrize("case", reference.cases("mavos", "multi_engine"))
@torch.no_grad()
def test_multi_engine(case, monkeypatch):
    a = arrays(case)
    network = network_of(case, int(a["gap"]))
    logits = record(network, monkeypatch)
    merged, resolve = [], network.resolve
    monkeypatch.setattr(network, "resolve", lambda *args: merged.append(resolve(*args)) or merged[-1])
    labels = a["labels"].long()
    tracker = Tracker(network)
    predictions = [
        tracker.step(frame, labels[0] if t == 0 else None, forced=labels[t]) for t, frame in enumerate(frames_of(a))
    ]
    engines = len(tracker.memories)
    assert engines == -(-int(a["nobj"]) // network.capacity)
    for t in range(1, len(predictions)):
        for engine in range(engines):
            expected = a[f"engine{engine}_logits_4x"][t - 1]
            assert_close(logits[engines * (t - 1) + engine][0, : expected.shape[0]], expected, **ABSOLUTE)
        stored = a["merged_logits_strided"][t - 1]
        stride = -(-labels.shape[2] // stored.shape[2])
        assert_close(merged[t].logits[0, :, ::stride, ::stride], stored, **ABSOLUTE)
        assert_same_but_for_ties(predictions[t], a["pred_labels"][t - 1])


@pytest.mark.parametrize("case", reference.cases("mavos", "train_forward"))
def test_train_forward(case, monkeypatch):
    a = arrays(case)
    network = network_of(case, 10)
    network.train_rules = MemoryRules(interval=int(a["gap"]))
    module = MAVOS(network).eval()
    logits = record(network, monkeypatch)
    clip = Clip(frames_of(a), a["labels"].long(), a["obj_nums"])
    progress = int(a["step"]) / int(a["total_steps"])
    module.sequential_from = 0.0 if bool(a["use_prev_pred"]) else 1.0
    losses = module.unroll(clip, progress, a["perm"])
    assert_close(losses.total, a["loss"], **ABSOLUTE)
    assert_close(losses.frames, a["frame_losses"], **ABSOLUTE)
    stored = a["logits_4x"]
    for frame, expected in zip(logits, stored, strict=True):
        for sample, count in enumerate(a["obj_nums"].tolist()):
            assert_close(frame[sample, : 1 + count], expected[sample, : 1 + count], **ABSOLUTE)
    agree = (losses.labels == a["pred_masks"][1:].long()).float().mean()
    assert agree > 0.9999
    losses.total.backward()
    norms = {k.removeprefix("grad_norm/"): v for k, v in a.items() if k.startswith("grad_norm/")}
    own = dict(network.named_parameters())
    for name, norm in mavos.to_ours(norms).items():
        found = own[name].grad
        assert found is not None, name
        assert_close(found.norm(), norm, rtol=2e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def _rows(name):
    path = reference.ROOT / "mavos" / name
    if not path.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no reference at {path}"))]
    return json.loads(path.read_text())


@pytest.mark.parametrize("row", _rows("input_sizes.json"))
def test_input_size(row):
    long_side, short_side = (int(row[limit]) if row[limit] else None for limit in ("max_long", "max_short"))
    canvas = ResizingCanvas(16, row["align_corners"], long_side, short_side)
    assert list(canvas.view((row["height"], row["width"]), scale=row["scale"]).network) == row["out"]


@pytest.mark.parametrize("row", _rows("lr_schedule.json"))
def test_learning_rate(row):
    schedule = PolynomialSchedule(floor=row["floor"])
    for backbone, key in ((False, "lr"), (True, "lr_encoder")):
        factor = schedule.factor(row["steps"], row["base"], backbone=backbone)
        assert factor(row["step"]) * row["base"] == pytest.approx(row[key], rel=1e-9)
