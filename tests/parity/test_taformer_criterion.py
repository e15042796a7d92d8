"""Matches, losses and gradients of SeqFormer against what the published implementation computes.

Tolerances are those of the reference's README: matches are exact, losses within 1e-4, gradient norms within 1e-3.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_vos.models.taformer.criterion import Criterion
from lightning_vos.models.taformer.matching import match
from lightning_vos.models.taformer.network import VISPredictions
from lightning_vos.published import load_published, seqformer
from lightning_vos.structures import Instances
from parity import reference

PUBLISHED = {"class": "loss_ce", "box": "loss_bbox", "giou": "loss_giou", "mask": "loss_mask", "dice": "loss_dice"}
LAYERS_AND_CLIPS = (("layer", "_logits"), ("target", "_labels"))
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)


def arrays(case):
    return {k: torch.from_numpy(np.array(v)) for k, v in np.load(reference.ROOT / "taformer" / f"{case}.npz").items()}


def expected(case):
    return json.loads((reference.ROOT / "taformer" / f"{case}.losses.json").read_text())


def instances(a, clip, frames, size):
    """The instances of a clip in frames padded to `size`; their labels are outputs, of which 1 is class 0."""
    labels, masks = a[f"target{clip}_labels"] - 1, a[f"target{clip}_masks"].bool()
    boxes = a[f"target{clip}_boxes"].view(-1, frames, 4)
    valid = (boxes > 2e-6).any(dim=2)
    masks = F.pad(masks, (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))
    return Instances(labels, boxes * valid[..., None], masks.view(-1, frames, *size), valid)


def same_losses(result, losses):
    for name, part in result.parts.items():
        suffixes = [f"_{layer}" for layer in range(len(part) - 1)] + [""]
        assert part.tolist() == pytest.approx([losses[PUBLISHED[name] + suffix] for suffix in suffixes], rel=1e-4)


@pytest.mark.parametrize("case", reference.cases("taformer", "criterion"))
def test_criterion(case):
    a = arrays(case)
    layers, clips = (len({k for k in a if k.startswith(start) and k.endswith(end)}) for start, end in LAYERS_AND_CLIPS)
    size = tuple(a["padded_size"].tolist())
    boxes = torch.stack([a[f"layer{layer}_boxes"] for layer in range(layers)])
    frames = boxes.shape[2]
    predictions = VISPredictions(
        logits=torch.stack([a[f"layer{layer}_logits"] for layer in range(layers)]),
        boxes=boxes,
        references=boxes[..., :2],
        filters=torch.zeros(layers, clips, 1, 1),
        mask_features=torch.zeros(clips, frames, 1, 1, 1),
        embeddings=boxes[:0],
        box_queries=boxes[-1],
        sizes=torch.stack([a[f"target{clip}_size"] for clip in range(clips)]),
    )
    truth = tuple(instances(a, clip, frames, size) for clip in range(clips))
    asked = []

    def masks(layer, clip, queries):
        asked.append((layer, clip))
        labels, targets = a[f"target{clip}_labels"], a[f"target{clip}_boxes"].view(-1, frames, 4)
        pairs = match(predictions.logits[layer, clip], boxes[layer, clip], labels, targets)
        assert torch.equal(torch.stack(pairs), a[f"layer{layer}_match{clip}"])
        assert torch.equal(queries, pairs[0])
        return a[f"layer{layer}_masks{clip}"].float()

    result = Criterion()(predictions, masks, truth, 1)
    assert sorted(asked) == [(layer, clip) for layer in range(layers) for clip in range(clips)]
    same_losses(result, expected(case)["losses"])


@pytest.mark.parametrize("case", reference.cases("taformer", "forward"))
def test_losses_and_gradients(case):
    a, truth = arrays(case), expected(case)
    network = load_published(reference.network_name("taformer", case), reference.weights("taformer", case))
    raw = [a[f"clip{clip}"].float() / 255 for clip in range(sum(k.startswith("clip") for k in a))]
    size = [-(-max(one.shape[axis] for one in raw) // 32) * 32 for axis in (2, 3)]
    clips = torch.stack(
        [F.pad(one - MEAN, (0, size[1] - one.shape[3], 0, size[0] - one.shape[2])) + MEAN for one in raw]
    )
    sizes = torch.tensor([one.shape[2:] for one in raw])
    targets = tuple(instances(a, clip, clips.shape[1], size) for clip in range(len(raw)))
    predictions = network(clips, sizes)

    def masks(layer, clip, queries):
        assert torch.equal(queries, a[f"match{clip}_layer{layer}"][0])
        return network.masks(predictions, layer, clip, queries)

    result = Criterion()(predictions, masks, targets, network.first_class)
    same_losses(result, truth["losses"])
    assert result.total.item() == pytest.approx(truth["total"], rel=1e-4)
    result.total.backward()
    ours = dict(network.named_parameters())
    norms = {name: norm for name, norm in truth["gradient_norms"].items() if norm is not None}
    names = {theirs: next(iter(seqformer.to_ours({theirs: torch.empty(0)}))) for theirs in norms}
    found = {theirs: float(ours[name].grad.norm()) for theirs, name in names.items()}
    # The bias before the softmax over frames has a gradient of 0 but for rounding: hence a bar that is absolute, too.
    assert found == pytest.approx(norms, rel=1e-3, abs=1e-4)
    assert {name for name, parameter in ours.items() if parameter.requires_grad} == set(names.values())
