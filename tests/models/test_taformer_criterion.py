"""Matching, losses and the contrastive loss of TAFormer against loops over queries, frames and pixels."""

import math
from itertools import permutations

import pytest
import torch
from torch.testing import assert_close

from lightning_vos.errors import ConfigError
from lightning_vos.models.taformer.contrastive import ContrastiveHead, contrastive_loss
from lightning_vos.models.taformer.criterion import Criterion
from lightning_vos.models.taformer.matching import match
from lightning_vos.models.taformer.network import VISPredictions
from lightning_vos.structures import Instances

L, B, T, Q, K, C = 2, 2, 3, 6, 5, 8
SIZE, GRID = (30, 44), (8, 12)  # pixels of a padded frame, no multiple of 8; cells of masks


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def boxes(*shape, seed=0):
    """Centres in the middle half of the frame, sides from a tenth to a half of it."""
    drawn = torch.rand(*shape, 4, generator=generator(seed))
    return torch.cat([0.25 + 0.5 * drawn[..., :2], 0.1 + 0.4 * drawn[..., 2:]], dim=-1)


def predictions(seed=0, contrastive=L, clips=B, frames=T):
    """Random predictions that want gradients, and the logits of all masks (L, B, Q, T, h, w)."""
    found = boxes(L, clips, frames, Q, seed=seed)
    tensors = VISPredictions(
        logits=torch.randn(L, clips, Q, K, generator=generator(seed)),
        boxes=found,
        references=found[..., :2].clone(),
        filters=torch.randn(L, clips, Q, 4, generator=generator(seed)),
        mask_features=torch.randn(clips, frames, 2, 4, 6, generator=generator(seed)),
        embeddings=torch.randn(contrastive, clips, frames, Q, C, generator=generator(seed)),
        box_queries=torch.zeros(clips, frames, Q, C),
        sizes=torch.tensor([[25, 40]] * clips),
    )
    masks = torch.randn(L, clips, Q, frames, *GRID, generator=generator(seed + 1))
    return VISPredictions(*(one.requires_grad_(one.is_floating_point()) for one in tensors)), masks.requires_grad_()


def instances(count, seed=0, frames=T, classes=3):
    """Instances of a clip, present in all frames; their masks are unrelated to their boxes."""
    return Instances(
        labels=torch.randint(0, classes, (count,), generator=generator(seed)),
        boxes=boxes(count, frames, seed=seed + 1),
        masks=torch.rand(count, frames, *SIZE, generator=generator(seed)) > 0.6,
        valid=torch.ones(count, frames, dtype=torch.bool),
    )


def loss(found, masks, truth, **settings):
    criterion = Criterion(**settings)
    return criterion(found, lambda layer, clip, queries: masks[layer, clip, queries], truth, 1)


def corners(box):
    x, y, width, height = (float(number) for number in box)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def giou(one, other):
    a, b = corners(one), corners(other)
    inner = [max(min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis]), 0) for axis in (0, 1)]
    outer = [max(a[axis + 2], b[axis + 2]) - min(a[axis], b[axis]) for axis in (0, 1)]
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - math.prod(inner)
    return math.prod(inner) / union - (math.prod(outer) - union) / math.prod(outer)


def focal(logit, truth):
    probability = 1 / (1 + math.exp(-logit))
    right, share = (probability, 0.25) if truth else (1 - probability, 0.75)
    return -share * (1 - right) ** 2 * math.log(right)


def cost(logits, found, label, target):
    """What it costs to pair a query (K,), (T, 4) with an instance (T, 4)."""
    is_class = focal(float(logits[label]), True) - focal(float(logits[label]), False)
    distance = math.dist(found.flatten().tolist(), target.flatten().tolist())
    overlap = sum(giou(a, b) for a, b in zip(found, target, strict=True)) / len(found)
    return 2 * is_class + 5 * distance - 2 * overlap


@pytest.mark.parametrize("seed", range(4))
def test_pairs_cost_the_least_of_all(seed):
    logits, found = torch.randn(Q, K, generator=generator(seed)), boxes(T, Q, seed=seed)
    labels, targets = torch.tensor([1, 3]), boxes(2, T, seed=seed + 10)
    costs = [
        [cost(logits[query], found[:, query], labels[one], targets[one]) for one in range(2)] for query in range(Q)
    ]
    best = min(permutations(range(Q), 2), key=lambda pair: costs[pair[0]][0] + costs[pair[1]][1])
    queries, matched = match(logits, found, labels, targets)
    assert queries.tolist() == sorted(best)
    assert [best[one] for one in matched] == queries.tolist()


def test_absent_frames_count_in_the_pairing():
    found = boxes(T, 2).clone()
    found[1, 0] = 1e-6  # query 0 says that the instance is not in frame 1
    targets = found.transpose(0, 1)[:1]
    queries, _ = match(torch.zeros(2, K), found, torch.tensor([1]), targets)
    assert queries.tolist() == [0]
    queries, _ = match(torch.zeros(2, K), found.flip(1), torch.tensor([1]), targets)
    assert queries.tolist() == [1]


def test_more_instances_than_queries_leave_some_without():
    queries, matched = match(torch.zeros(2, K), boxes(T, 2), torch.tensor([1, 2, 3]), boxes(3, T, seed=1))
    assert queries.tolist() == [0, 1]
    assert len(set(matched.tolist())) == 2


def test_classes_that_are_certain_can_be_paired():
    certain = torch.full((Q, K), -1000.0)
    certain[4, 2] = 1000.0
    queries, _ = match(certain, boxes(T, 1).expand(T, Q, 4), torch.tensor([2]), boxes(1, T, seed=1))
    assert queries.tolist() == [4]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_no_numbers_are_an_error(value):
    found = boxes(T, Q).clone()
    found[0, 2, 1] = value
    with pytest.raises(ConfigError, match="diverged"):
        match(torch.zeros(Q, K), found, torch.tensor([1]), boxes(1, T))


def test_losses_against_loops():
    found, masks = predictions()
    truth = (instances(2), instances(1, seed=5))
    result = loss(found, masks, truth)
    logits, masks = found.logits.detach(), masks.detach()
    sums = {name: [0.0] * L for name in ("class", "box", "giou", "mask", "dice")}
    for layer in range(L):
        for clip, one in enumerate(truth):
            queries, matched = match(found.logits[layer, clip], found.boxes[layer, clip], one.labels + 1, one.boxes)
            pairs = dict(zip(queries.tolist(), matched.tolist(), strict=True))
            for query in range(Q):
                for output in range(K):
                    is_class = query in pairs and int(one.labels[pairs[query]]) + 1 == output
                    sums["class"][layer] += focal(float(logits[layer, clip, query, output]), is_class)
            for query, instance in pairs.items():
                for time in range(T):
                    ours, theirs = found.boxes[layer, clip, time, query].detach(), one.boxes[instance, time]
                    sums["box"][layer] += float((ours - theirs).abs().sum()) / T
                    sums["giou"][layer] += (1 - giou(ours, theirs)) / T
                overlap = extent = entropy = 0.0
                for time in range(T):
                    for y in range(GRID[0]):
                        for x in range(GRID[1]):
                            row, column = 4 * y + 2, 4 * x + 2
                            inside = row < SIZE[0] and column < SIZE[1]
                            shown = inside and bool(one.masks[instance, time, row, column])
                            logit = float(masks[layer, clip, query, time, y, x])
                            probability = 1 / (1 + math.exp(-logit))
                            entropy += focal(logit, shown)
                            overlap, extent = overlap + probability * shown, extent + probability + shown
                sums["mask"][layer] += entropy / (T * math.prod(GRID))
                sums["dice"][layer] += 1 - (2 * overlap + 1) / (extent + 1)
    for name, values in sums.items():
        assert result.parts[name].tolist() == pytest.approx([value / 3 for value in values], rel=1e-5)
    weights = {"class": 2, "box": 5, "giou": 2, "mask": 2, "dice": 5, "contrastive": 1}
    total = sum(weights[name] * float(part.sum()) for name, part in result.parts.items())
    assert result.total.item() == pytest.approx(total, rel=1e-5)


def test_absent_frames_are_learned_as_no_size_and_no_mask():
    (found, masks), truth = predictions(), instances(1)
    valid = truth.valid.clone()
    valid[0, 1] = False
    shown = valid[:, :, None, None]
    told = truth._replace(valid=valid, boxes=truth.boxes * valid[..., None], masks=truth.masks & shown)
    by_hand = truth._replace(boxes=truth.boxes.where(valid[..., None], 1e-6), masks=truth.masks & shown)
    ours, theirs, wrong = (loss(found, masks, (one, instances(1))).parts for one in (told, by_hand, truth))
    for name, part in ours.items():
        assert torch.equal(part, theirs[name])
    assert not torch.equal(ours["box"], wrong["box"])
    assert not torch.equal(ours["dice"], wrong["dice"])


def test_the_order_of_queries_and_instances_does_not_matter():
    (found, masks), truth = predictions(), (instances(3), instances(2, seed=3))
    order, turned = torch.randperm(Q, generator=generator()), torch.tensor([2, 0, 1])
    mixed = found._replace(
        logits=found.logits[:, :, order], boxes=found.boxes[:, :, :, order], embeddings=found.embeddings[:, :, :, order]
    )
    first = Instances(*(part[turned] for part in truth[0]))
    ours = loss(mixed, masks[:, :, order], (first, truth[1]))
    assert_close(ours.total, loss(found, masks, truth).total)


def test_losses_are_per_instance_of_a_process(monkeypatch):
    (found, masks), truth = predictions(), (instances(2), instances(1, seed=5))
    alone = loss(found, masks, truth).parts
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(9))  # another process has 9
    shared = loss(found, masks, truth).parts
    for name in ("class", "box", "giou", "mask", "dice"):
        assert_close(shared[name], alone[name] * 3 / 6)
    assert torch.equal(shared["contrastive"], alone["contrastive"])


def test_matched_queries_learn_their_boxes_and_masks_and_all_learn_their_classes():
    (found, masks), truth = predictions(), (instances(2), instances(1))
    loss(found, masks, truth).total.backward()
    assert bool(found.logits.grad.ne(0).all())
    assert bool(found.embeddings.grad.ne(0).any(dim=-1).all())
    for layer in range(L):
        for clip, one in enumerate(truth):
            queries, _ = match(found.logits[layer, clip], found.boxes[layer, clip], one.labels + 1, one.boxes)
            matched = torch.isin(torch.arange(Q), queries)
            assert torch.equal(found.boxes.grad[layer, clip].ne(0).all(dim=2), matched.expand(T, Q))
            assert torch.equal(masks.grad[layer, clip].ne(0).flatten(1).all(dim=1), matched)


def test_clips_without_instances_have_losses_and_gradients_of_zero():
    found, masks = predictions()
    result = loss(found, masks, (instances(0), instances(0)))
    assert {name: part.tolist() for name, part in result.parts.items() if name in ("box", "giou", "mask", "dice")} == {
        name: [0.0] * L for name in ("box", "giou", "mask", "dice")
    }
    assert bool(result.parts["class"].gt(0).all())
    result.total.backward()
    for unused in (found.boxes, found.filters, found.mask_features):
        assert torch.count_nonzero(unused.grad) == 0
    for used in (found.logits, found.embeddings):
        assert bool(used.grad.isfinite().all())
        assert torch.count_nonzero(used.grad) > 0


def test_without_embeddings_there_is_no_contrastive_loss():
    (found, masks), truth = predictions(contrastive=0), (instances(2), instances(1))
    result = loss(found, masks, truth)
    assert list(result.parts) == ["class", "box", "giou", "mask", "dice"]
    with_one, _ = predictions(contrastive=1)
    more = loss(with_one, masks, truth)
    assert_close(more.total, result.total + more.parts["contrastive"].sum())


def test_half_precision_is_compared_in_single():
    (found, masks), truth = predictions(), (instances(2), instances(1))
    rough = VISPredictions(*(one.detach().bfloat16() if one.is_floating_point() else one for one in found))
    exact = VISPredictions(*(one.float() if one.is_floating_point() else one for one in rough))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss(rough, masks.bfloat16(), truth)
    assert result.total.dtype == torch.float32
    assert_close(result.total, loss(exact, masks.bfloat16().float(), truth).total)


def test_a_class_without_output_is_an_error():
    (found, masks), truth = predictions(), instances(1)
    beyond = truth._replace(labels=torch.tensor([K - 1]))
    with pytest.raises(
        ConfigError, match=r"number 4, .*\n.* 5 outputs, and class 0 is output 1\.\n.*classes to at least 6"
    ):
        loss(found, masks, (truth, beyond))


@pytest.mark.parametrize("settings", [{"box_weight": -1.0}, {"temperature": 0.0}, {"reduction": "max"}])
def test_settings_out_of_range_are_errors(settings):
    with pytest.raises(ValueError, match=next(iter(settings)).removesuffix("_weight")):
        Criterion(**settings)


def test_contrastive_loss_against_loops():
    embeddings = torch.randn(B, T, Q, C, generator=generator(), dtype=torch.float64)
    total = 0.0
    for clip in embeddings:
        for first, second in permutations(range(T), 2):
            for query in range(Q):
                scores = [
                    math.exp(torch.cosine_similarity(clip[first, query], other, dim=0).item() / 0.2)
                    for other in clip[second]
                ]
                total -= math.log(scores[query] / sum(scores))
    assert contrastive_loss(embeddings, 0.2, "sum").item() == pytest.approx(total / B, rel=1e-5)
    assert contrastive_loss(embeddings, 0.2).item() == pytest.approx(total / (B * T * (T - 1) * Q), rel=1e-5)


def test_contrastive_loss_of_what_is_equal_and_of_what_is_told_apart():
    alike = torch.ones(B, T, Q, C)
    assert contrastive_loss(alike).item() == pytest.approx(math.log(Q), rel=1e-5)
    apart = 3 * torch.eye(Q).expand(B, T, Q, Q)
    expected = math.log1p((Q - 1) * math.exp(-1 / 0.5))
    assert contrastive_loss(apart, 0.5).item() == pytest.approx(expected, rel=1e-5)
    swapped = apart.clone()
    swapped[:, 1] = swapped[:, 1].roll(1, dims=1)
    assert contrastive_loss(swapped, 0.5) > expected + 0.5


def test_contrastive_loss_does_not_depend_on_the_order_of_frames():
    embeddings = torch.randn(B, 4, Q, C, generator=generator())
    assert_close(contrastive_loss(embeddings[:, [2, 0, 3, 1]]), contrastive_loss(embeddings))


def test_one_frame_has_no_contrastive_loss_and_a_gradient():
    head = ContrastiveHead(C)
    alone = contrastive_loss(head(torch.randn(B, 1, Q, C, generator=generator())))
    alone.backward()
    assert alone.item() == 0
    assert all(torch.count_nonzero(parameter.grad) == 0 for parameter in head.parameters())


def test_contrastive_head_has_the_size_that_the_paper_implies():
    assert sum(parameter.numel() for parameter in ContrastiveHead().parameters()) == 131_584
