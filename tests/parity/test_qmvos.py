"""XMem and QMVOS against what the published implementations compute; sizes and counts come from the cases.

Tolerances are those of the reference's README: 1e-3 absolute on logits, 3e-4 on probabilities, 1e-4 on queries, 1e-4
relative on losses, 1e-3 relative on gradient norms; memory sizes and sets of prototypes exact.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lightning_vos.losses.segmentation import BootstrappedDice
from lightning_vos.models.qmvos.memory import LongTermRules, StoreRules
from lightning_vos.models.qmvos.module import QMVOS, Draws
from lightning_vos.models.qmvos.network import aggregate
from lightning_vos.models.qmvos.queries import ScaleAwareInteraction
from lightning_vos.models.qmvos.similarity import affinity, anisotropic_similarity
from lightning_vos.published import load_published, qmvos
from lightning_vos.structures import Clip
from lightning_vos.vos.track import Tracker
from parity import reference

LOGITS = {"rtol": 0.0, "atol": 1e-3}
PROBABILITIES = {"rtol": 0.0, "atol": 3e-4}
QUERIES = {"rtol": 0.0, "atol": 1e-4}
NEAR = {"rtol": 1e-4, "atol": 1e-4}
METHODS = ("xmem", "qmvos")


def cases(*kinds):
    """(method, case) of both folders."""
    found = [(method, case) for method in METHODS for kind in kinds for case in reference.cases(method, kind)]
    if named := [one for one in found if isinstance(one[1], str)]:  # others are marked as skipped
        return [pytest.param(*one, id="-".join(one)) for one in named]
    return [pytest.param(None, None, marks=pytest.mark.skip(reason=f"no {kinds} case at {reference.ROOT}"))]


def raw(method, case):
    return dict(np.load(reference.ROOT / method / f"{case}.npz"))


def arrays(method, case):
    return {k: torch.from_numpy(v) for k, v in raw(method, case).items() if v.dtype.kind != "U"}


def network(method, case):
    state = {k: torch.from_numpy(v) for k, v in reference.weights(method, case).items()}
    return load_published(reference.network_name(method, case), state)


def images(array):
    return array.movedim(-1, -3).float() / 255


@pytest.mark.parametrize(("method", "case"), cases("memory_ops"))
def test_memory_ops(method, case):
    a = arrays(method, case)
    key, shrinkage = a["mk"].flatten(2), a["ms"].flatten(2)
    query, selection = a["qk"].flatten(2), a["qe"].flatten(2)
    similarity = anisotropic_similarity(key, shrinkage, query, selection)
    assert_close(similarity, a["sim_full"], **NEAR)
    assert_close(anisotropic_similarity(key, shrinkage, query, None), a["sim_noselection"], **NEAR)
    assert_close(anisotropic_similarity(key, None, query, selection), a["sim_noshrinkage"], **NEAR)
    assert_close(anisotropic_similarity(key, None, query, None), a["sim_plain"], **NEAR)
    for name in (name for name in a if name.startswith("affinity_")):
        top_k = None if name.endswith("softmax") else int(name.removeprefix("affinity_top"))
        found = affinity(a["sim_full"], top_k)
        size = a["sim_full"].shape[1]
        every = torch.eye(size).expand(len(key), -1, -1)  # what is read of values that are all told apart
        assert_close(found.average(every), a[name], **NEAR)
        if (usage := name.replace("affinity", "usage")) in a:
            assert_close(found.usage(size), a[usage], **NEAR)
        if (readout := name.replace("affinity", "readout")) in a:
            assert_close(found.average(a["mv"].flatten(2)), a[readout].flatten(2), **NEAR)


@pytest.mark.parametrize(("method", "case"), cases("aggregate"))
def test_aggregate(method, case):
    a = arrays(method, case)
    logits = aggregate(a["prob"])
    assert_close(logits, a["logits"], **NEAR)
    assert_close(logits.softmax(dim=1), a["prob_out"], **NEAR)
    assert_close(aggregate(a["hard"][None]).softmax(dim=1)[0], a["hard_out"], **NEAR)


@pytest.mark.parametrize(("method", "case"), cases("loss"))
def test_loss(method, case):
    a = arrays(method, case)
    times = sorted(int(name.removeprefix("raw_")) for name in a if name.startswith("raw_"))
    valid = torch.arange(1, 1 + a["raw_1"].shape[1]) <= a["num_objects"][:, None]
    for start, end, iterations, rows in (
        (20_000, 70_000, a["iterations"], a["losses_f64"]),
        (10_000, 40_000, a["iterations_qmvos"], a["losses_qmvos_f64"]),
    ):
        steps = 2 * max(end, int(iterations.max()))
        loss = BootstrappedDice(start=start / steps, end=end / steps)
        for iteration, row in zip(iterations.tolist(), rows.tolist(), strict=True):
            progress = iteration / steps
            parts = []
            for time in times:
                logits = aggregate(a[f"raw_{time}"].sigmoid() * valid[:, :, None, None])
                assert_close(logits, a[f"logits_{time}"], **NEAR)
                labels = a["cls_gt"][:, time, 0].long()
                parts.append(loss(logits, logits.softmax(dim=1), labels, valid, progress))
            entropies, dices = ([float(part[kind]) for part in parts] for kind in (0, 1))
            found = [sum(entropies) + sum(dices), loss.kept(progress), *entropies, *dices]
            assert found[: len(row)] == pytest.approx(row, rel=1e-4)


@pytest.mark.parametrize(("method", "case"), cases("modules"))
@torch.no_grad()
def test_modules(method, case):
    a = arrays(method, case)
    net = network(method, case)
    features = net.encode(images(a["image"])[None])
    for name, found in zip(("key", "shrinkage", "selection"), features.keys, strict=True):
        assert_close(found, a[name], **NEAR)
    for name, found in zip(("f16", "f8", "f4"), features.maps, strict=True):
        assert_close(found[:, :: found.shape[1] // a[name].shape[1]], a[name], **NEAR)
    value = net.value(features.image, features.maps[0], a["mask"])
    assert_close(value, a["value"], **NEAR)
    assert_close(net.value.deep_update(value, a["hidden_in"]), a["hidden_deep"], **NEAR)
    alone = net.value(features.image, features.maps[0], a["mask"][:, :1])
    assert_close(alone[:, :, :: alone.shape[2] // a["value_single"].shape[2]], a["value_single"], **NEAR)
    decoded = net.decoder(features.maps, a["readout_in"], a["hidden_in"])
    enlarged = F.interpolate(decoded.logits, scale_factor=4, mode="bilinear")
    assert_close(enlarged, a["decoder_logits"], **LOGITS)
    assert_close(decoded.hidden, a["hidden_out"], **NEAR)
    logits = aggregate(enlarged.sigmoid())
    assert_close(logits, a["agg_logits"], **LOGITS)
    assert_close(logits.softmax(dim=1), a["agg_prob"], **PROBABILITIES)
    selected = aggregate(enlarged.sigmoid() * a["selector"]).softmax(dim=1)[:, 1:]
    assert_close(selected, a["prob_selector"], **PROBABILITIES)


@pytest.mark.parametrize(("method", "case"), cases("sim"))
@torch.no_grad()
def test_sim(method, case):
    a = arrays(method, case)
    sim = network(method, case).queries.sim
    coarse, planes = a["f16"].float(), a["mask"].float()
    maps = coarse, a["f8"].float(), torch.empty(0)  # the finest map is not looked at
    valid = torch.arange(planes.shape[1]) < a["num_objects"][:, None]
    assert_close(sim.project(coarse), a["f16_query"].float(), **NEAR)
    fused = sim.fused(maps)
    assert_close(fused[:, :: fused.shape[1] // a["fused"].shape[1]], a["fused"], **NEAR)
    assert_close(F.interpolate(planes, fused.shape[2:], mode="nearest"), a["mask_at_f8"].float())
    assert_close(ScaleAwareInteraction.pool(fused, planes), a["pooled"], **NEAR)
    for masks, name in ((planes, "query"), (torch.zeros_like(planes), "query_empty_mask")):
        assert_close(sim(maps, masks, valid)[valid], a[name][valid], **QUERIES)


@pytest.mark.parametrize(("method", "case"), cases("qcim"))
@torch.no_grad()
def test_qcim(method, case):
    a = arrays(method, case)
    valid = torch.arange(a["query_in"].shape[1]) < a["num_objects"][:, None]
    frame = torch.empty(0)  # the backbone's features are not looked at
    found = network(method, case).queries.qcim(a["query_in"], frame, a["g16"].float(), valid)
    assert_close(found[valid], a["query_out"][valid], **QUERIES)


@pytest.mark.parametrize(("method", "case"), cases("decoder"))
@torch.no_grad()
def test_decoder(method, case):
    a = {k: v.float() if v.is_floating_point() else v for k, v in arrays(method, case).items()}
    net = network(method, case)
    valid = torch.arange(a["query_in"].shape[1]) < a["num_objects"][:, None]
    fine = {}
    net.decoder.fine.register_forward_hook(lambda _, inputs, output: fine.update(g4=output))
    maps = (a["f16"], a["f8"], a["f4"])
    found = net.decoder(
        maps, a["readout"], a["hidden_in"], lambda coarse: net.queries.qcim(a["query_in"], maps[0], coarse, valid)
    )
    assert_close(fine["g4"][:, :, :: fine["g4"].shape[2] // a["g4"].shape[2]][valid], a["g4"][valid], **NEAR)
    assert_close(found.filters[valid], a["query_out"][valid], **QUERIES)
    assert_close(found.logits[valid], a["logits_stride4"][valid], **LOGITS)
    assert_close(F.interpolate(found.logits, scale_factor=4, mode="bilinear")[valid], a["logits"][valid], **LOGITS)
    assert_close(found.hidden[valid], a["hidden_out"][valid], **NEAR)


def rules_of(a):
    """The rules of a video case, and whether it has a long-term memory."""
    if "config" not in a:
        return StoreRules(interval=int(a["mem_every"]), top_k=int(a["top_k"]), long_term=None)
    config = json.loads(str(a["config"]))
    long_term = LongTermRules(config["max_mid"], config["min_mid"], config["protos"], config["max_long"])
    return StoreRules(interval=config["mem_every"], top_k=config["top_k"], long_term=long_term)


@pytest.mark.parametrize(("method", "case"), cases("video", "insert", "longterm", "groups"))
@torch.no_grad()
def test_video(method, case, monkeypatch):
    a, net = arrays(method, case), network(method, case)
    net.test_rules = rules_of(raw(method, case))
    chosen, topk = [], torch.Tensor.topk

    def watched(self, *args, **words):
        chosen.append((self.dim(), topk(self, *args, **words)))
        return chosen[-1][1]

    monkeypatch.setattr(torch.Tensor, "topk", watched)
    frames = images(a["frames"])
    tracker = Tracker(net, tuple(frames.shape[2:]))
    decoded, filters, readouts = {}, {}, {}
    net.decoder.register_forward_hook(lambda _, inputs, output: decoded.update({time: output}))
    net.decoder.register_forward_pre_hook(lambda _, inputs: readouts.update({time: inputs[1][0]}))
    for time, frame in enumerate(frames):
        mask = a["new_masks"][time].long() if "new_masks" in a else a["first_mask"].long() if time == 0 else None
        prediction = tracker.step(frame, mask, last=time == len(frames) - 1)
        (memory,) = tracker.memories
        known = len(prediction.object_ids)
        assert_close(prediction.probabilities, a["prob"][time, : 1 + known], **PROBABILITIES)
        sizes = [memory.work.size, 0 if memory.long is None else memory.long.size]
        assert sizes == a["memory_sizes"][time].tolist()
        if time in decoded:
            seen = a["segmented"][time][:known]
            enlarged = F.interpolate(decoded[time].logits, scale_factor=4, mode="bilinear")[0]
            assert_close(enlarged[seen], a["decoder_logits"][time, :known][seen], **LOGITS)
            filters[time] = decoded[time].filters
        else:
            assert not a["segmented"][time].any()
        if "query_sim" in a:
            assert_close(memory.queries[0], a["query_sim"][time, :known], **QUERIES)
        if "hidden_frame0" in a and time == 0:
            assert_close(memory.hidden[0, :, ::4], a["hidden_frame0"], **NEAR)
    if "query_qcim" in a:
        assert_close(torch.cat([filters[time] for time in sorted(filters)]), a["query_qcim"], **QUERIES)
    if "hidden_last" in a:
        assert_close(memory.hidden[0, :, ::4], a["hidden_last"], **NEAR)
        for name, time in (("readout_first", min(readouts)), ("readout_last", max(readouts))):
            assert_close(readouts[time][:, ::16], a[name], **NEAR)
    if "prototype_indices" in a:
        # The prototypes are the only choice among (B, M) usages that takes the most used.
        sets = [set(found.indices[0].tolist()) for dimensions, found in chosen if dimensions == 2]
        assert [set(row) for row in a["prototype_indices"].tolist()] == sets
        check_stores(memory, a)


def check_stores(memory, a):
    """The stores at the end of a video."""
    work, long = memory.work, memory.long
    assert_close(long.key, a["long_key"], **NEAR)
    if "long_usage" in a:
        for name, store in (("long", long), ("work", work)):
            assert_close(store.shrinkage, a[f"{name}_shrinkage"], **NEAR)
            assert_close((store.usage / store.life)[:, None], a[f"{name}_usage"], rtol=1e-3, atol=1e-4)
        assert_close(long.values[0][0][:, ::16], a["long_value"], **NEAR)
    if "long_value_sizes" in a:
        assert [value.shape[3] for value in work.values] == a["work_value_sizes"].tolist()
        assert [value.shape[3] for value in long.values] == a["long_value_sizes"].tolist()
        assert_close(long.values[-1][0][:, ::16], a["long_value_last_group"], **NEAR)


@pytest.mark.parametrize(("method", "case"), cases("training"))
def test_training(method, case):
    a, net = arrays(method, case), network(method, case)
    frames, masks = images(a["frames"]), a["cls_gt"].long()
    length = frames.shape[1]
    slots = a["logits_1"].shape[1] - 1
    deep = torch.cat([torch.tensor([True]), a["deep_updates"].bool(), torch.tensor([False])])
    sources = tuple(torch.arange(time).expand(len(frames), -1) for time in range(1, length))
    assert length - 1 <= int(a["num_ref_frames"])  # else the case would draw sources
    for iteration in (int(name.split("_")[1][2:]) for name in a if name.startswith("loss_it")):
        module = QMVOS(net, BootstrappedDice(start=0.1, end=0.35), max_objects=slots)
        net.zero_grad()
        result = module.unroll(Clip(frames, masks, a["num_objects"]), iteration / 200_000, Draws(deep, sources))
        for time in range(1, length):
            assert_close(result.logits[time - 1][:, :, ::2, ::2], a[f"logits_{time}"], **LOGITS)
        found = [result.loss.item(), module.loss.kept(iteration / 200_000), *result.cross_entropy.tolist()]
        expected = a[f"loss_it{iteration}_f64"].tolist()
        assert [*found, *result.dice.tolist()] == pytest.approx(expected, rel=1e-4)
        result.loss.backward()
        parameters = dict(net.named_parameters())
        names = [
            next(iter(qmvos.to_ours({name: torch.empty(0)}))) for name in raw(method, case)["param_names"].tolist()
        ]
        norms = torch.tensor([float(parameters[name].grad.norm()) for name in names], dtype=torch.float64)
        expected = a[f"grad_norm_it{iteration}_f64"]
        assert_close(norms, expected, rtol=1e-3, atol=1e-5 * float(expected.max()))
        assert {name for name, parameter in parameters.items() if parameter.grad is None} == set()


@pytest.mark.parametrize(("method", "case"), cases("video"))
def test_every_entry_is_accounted_for(method, case):
    folder = reference.ROOT / method
    entry = json.loads((folder / "index.json").read_text())[case]
    manifest = json.loads((folder / entry["manifest"]).read_text())
    published = qmvos.to_published(network(method, case).state_dict())
    assert {one["name"]: tuple(one["shape"]) for one in manifest} == {k: tuple(v.shape) for k, v in published.items()}
    given = reference.weights(method, case)
    assert all(np.array_equal(published[name].numpy(), value) for name, value in given.items())
