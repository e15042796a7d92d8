"""SeqFormer's network against what the published implementation computes; sizes and counts come from the cases.

Tolerances are those of the reference's README: 1e-4 for logits and features, 1e-5 for boxes, 2e-3 for mask logits.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lightning_vos.published import METHODS, load_published, seqformer
from parity import reference

LOGITS = {"rtol": 0.0, "atol": 1e-4}
BOXES = {"rtol": 0.0, "atol": 1e-5}
MASKS = {"rtol": 0.0, "atol": 2e-3}
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)


def arrays(case):
    return {k: torch.from_numpy(v) for k, v in np.load(reference.ROOT / "taformer" / f"{case}.npz").items()}


def network(case):
    return load_published(reference.network_name("taformer", case), reference.weights("taformer", case))


def batch(clips):
    """Clips of one length, padded to sides that are multiples of 32; and their sizes."""
    sizes = torch.tensor([clip.shape[2:] for clip in clips])
    height, width = (-(-sizes.amax(dim=0) // 32) * 32).tolist()
    frames = [
        F.pad(clip.float() / 255 - MEAN, (0, width - clip.shape[3], 0, height - clip.shape[2])) + MEAN for clip in clips
    ]
    return torch.stack(frames), sizes


@pytest.mark.parametrize("case", reference.cases("taformer", "forward"))
@torch.no_grad()
def test_forward(case):
    a = arrays(case)
    net = network(case)
    clips = [a[name] for name in sorted(a) if name.startswith("clip")]
    projected = {}
    for level, projection in enumerate(net.projections):
        projection.register_forward_hook(lambda _, inputs, output, level=level: projected.update({level: output[0]}))
    predictions = net(*batch(clips))
    for level, found in projected.items():
        assert_close(found, a[f"proj{level}"], **LOGITS)
    assert_close(predictions.mask_features[:, -1], a["mask_features"], **LOGITS)
    assert_close(predictions.logits[-1], a["pred_logits"], **LOGITS)
    assert_close(predictions.boxes[-1], a["pred_boxes"], **BOXES)
    queries = a["query_index"]
    assert_close(predictions.logits[:-1, :, queries], a["aux_logits"], **LOGITS)
    assert_close(predictions.boxes[:-1, :, :, queries], a["aux_boxes"], **BOXES)
    for clip in range(len(clips)):
        for layer, name in ((0, f"pred_masks{clip}_layer0"), (5, f"pred_masks{clip}")):
            found = net.masks(predictions, layer, clip, a[f"match{clip}_layer{layer}"][0])
            assert_close(found, a[name], **MASKS)


@pytest.mark.parametrize("case", reference.cases("taformer", "inference"))
@torch.no_grad()
def test_inference(case):
    a = arrays(case)
    net = network(case)
    predictions = net(*whole(a["clip"]))
    assert_close(predictions.logits[-1, 0], a["pred_logits"], **LOGITS)
    assert_close(predictions.boxes[-1, 0], a["pred_boxes"], **BOXES)
    queries = a["query_index"]
    assert_close(net.masks(predictions, -1, 0, queries), a["pred_masks"], **MASKS)
    assert_close(net.masks(predictions, -1, 0, queries, slice(1, None)), a["pred_masks"][:, 1:], **MASKS)


def whole(clip):
    """A video by itself: nothing is padded."""
    return clip[None].float() / 255, torch.tensor([clip.shape[2:]])


@pytest.mark.parametrize("case", reference.cases("taformer", "inference"))
def test_every_entry_is_accounted_for(case):
    folder = reference.ROOT / "taformer"
    manifest = json.loads((folder / json.loads((folder / "index.json").read_text())[case]["manifest"]).read_text())
    name = reference.network_name("taformer", case)
    with torch.device("meta"):
        net = METHODS[name].build(name)
    published = seqformer.to_published(net.state_dict())
    assert {one["name"]: tuple(one["shape"]) for one in manifest} == {k: tuple(v.shape) for k, v in published.items()}
    assert seqformer.recognize(published) == name
    aliases = {one["name"]: one["alias_of"] for one in manifest if "alias_of" in one}
    assert aliases
    assert all(published[name] is published[alias_of] for name, alias_of in aliases.items())


@pytest.mark.parametrize("case", reference.cases("taformer", "forward"))
def test_the_same_parameters_learn(case):
    name = reference.network_name("taformer", case)
    with torch.device("meta"):
        net = METHODS[name].build(name)
    frozen = seqformer.to_published({k: v for k, v in net.named_parameters() if not v.requires_grad})
    stated = json.loads((reference.ROOT / "taformer" / f"{case}.losses.json").read_text())
    assert set(frozen) == set(stated["frozen"])
    ours = seqformer.to_published(dict(net.named_parameters()))
    theirs = {key for key, norm in stated["gradient_norms"].items() if norm is not None}
    assert theirs <= ours.keys()
    assert len(seqformer.essential(ours)) == len(theirs | frozen.keys())
