"""The training losses against loops over pixels."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_vos.losses.segmentation import (
    IGNORED,
    BootstrappedDice,
    BootstrappedJaccard,
    bootstrapped_cross_entropy,
    dice_and_cross_entropy,
    soft_jaccard,
)


@pytest.fixture
def pair():
    """(2, 4, 5, 6) logits and (2, 5, 6) labels; class 3 is absent from the second clip."""
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (2, 5, 6))
    labels[1][labels[1] == 3] = 0
    return torch.randn(2, 4, 5, 6, dtype=torch.float64), labels


def entropy_by_loops(logits, labels, kept):
    result = []
    for sample, truth in zip(logits, labels, strict=True):
        losses = [
            0.0 if truth[y, x] == IGNORED else -math.log(sample[:, y, x].softmax(0)[truth[y, x]])
            for y in range(truth.shape[0])
            for x in range(truth.shape[1])
        ]
        hardest = sorted(losses, reverse=True)[: int(kept * len(losses))]
        result.append(sum(hardest) / len(hardest))
    return torch.tensor(result, dtype=logits.dtype)


def jaccard_by_loops(logits, labels):
    result = []
    for sample, truth in zip(logits, labels, strict=True):
        losses = []
        for k in truth[truth != IGNORED].unique().tolist():
            both = either = 0.0
            for y in range(truth.shape[0]):
                for x in range(truth.shape[1]):
                    if truth[y, x] != IGNORED:
                        p, g = float(sample[:, y, x].softmax(0)[k]), float(truth[y, x] == k)
                        both, either = both + p * g, either + p + g - p * g
            losses.append(1 - both / either)
        result.append(sum(losses) / len(losses) if losses else 0.0)
    return torch.tensor(result, dtype=logits.dtype)


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("kept", [1.0, 0.5, 0.15])
def test_cross_entropy_of_the_hardest_pixels(pair, kept, ignored):
    logits, labels = pair
    if ignored:
        labels[:, :2] = IGNORED
    assert_close(bootstrapped_cross_entropy(logits, labels, kept), entropy_by_loops(logits, labels, kept))


@pytest.mark.parametrize("ignored", [False, True])
def test_jaccard_of_the_classes_that_are_there(pair, ignored):
    logits, labels = pair
    if ignored:
        labels[:, :2] = IGNORED
    assert_close(soft_jaccard(logits, labels), jaccard_by_loops(logits, labels), rtol=1e-6, atol=1e-6)


def test_a_frame_that_nobody_annotated_costs_nothing(pair):
    logits, labels = pair
    logits.requires_grad_()
    loss = BootstrappedJaccard()(logits, torch.full_like(labels, IGNORED), 0.5)
    assert_close(loss, torch.zeros(2, dtype=torch.float64))
    loss.sum().backward()
    assert_close(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_what_lies_under_ignored_pixels_does_not_matter(pair, progress):
    logits, labels = pair
    labels[:, 1:3] = IGNORED
    other = logits.clone()
    other[:, :, 1:3] = 40
    loss = BootstrappedJaccard()
    assert_close(loss(logits, labels, progress), loss(other, labels, progress))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_slots_change_nothing(pair, dtype):
    logits, labels = pair[0].to(dtype).requires_grad_(), pair[1]
    more = torch.cat([logits.detach(), torch.full((2, 7, 5, 6), -1e10, dtype=dtype)], dim=1).requires_grad_()
    loss = BootstrappedJaccard()
    for progress in (0.0, 1.0):
        first, second = loss(logits, labels, progress), loss(more, labels, progress)
        assert_close(first, second)
        (gradient,) = torch.autograd.grad(first.sum(), logits)
        (more_gradient,) = torch.autograd.grad(second.sum(), more)
        assert_close(more_gradient[:, :4], gradient)
        assert not more_gradient[:, 4:].any()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_gradients_stay_finite(pair, size):
    logits = (pair[0].float() * size).requires_grad_()
    BootstrappedJaccard()(logits, pair[1], 0.7).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.any()


def test_a_perfect_answer_costs_nothing_and_the_worst_one(pair):
    labels = pair[1]
    perfect = torch.nn.functional.one_hot(labels, 4).movedim(3, 1) * 100.0
    assert_close(BootstrappedJaccard()(perfect, labels, 1.0), torch.zeros(2), atol=1e-6, rtol=0)
    assert (soft_jaccard(-perfect, labels) > 0.99).all()


def test_fewer_pixels_count_as_training_goes_on(pair):
    loss = BootstrappedJaccard(hardest=0.2, warmup=0.5)
    assert [loss.kept(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert BootstrappedJaccard(warmup=0.0).kept(0.0) == pytest.approx(0.15)
    values = [loss(*pair, progress).sum() for progress in (0.0, 0.25, 0.5)]
    assert values == sorted(values)
    half = 0.5 * (bootstrapped_cross_entropy(*pair, 0.6) + soft_jaccard(*pair))
    assert_close(loss(*pair, 0.25), half)


@pytest.mark.parametrize("settings", [{"hardest": 0.0}, {"hardest": 1.1}, {"warmup": -0.1}, {"warmup": 2.0}])
def test_fractions_are_fractions(settings):
    with pytest.raises(ValueError, match="expected fractions of 1"):
        BootstrappedJaccard(**settings)


def test_small_frames_keep_a_pixel():
    """15 % of five pixels is less than one; a mean of none would not be a number."""
    logits, labels = torch.randn(1, 2, 1, 5), torch.ones(1, 1, 5, dtype=torch.long)
    assert torch.isfinite(BootstrappedJaccard()(logits, labels, 1.0)).all()


def predictions(seed=0):
    """(2, 3, 4, 5, 6) logits and (2, 4, 5, 6) labels of four predictions."""
    torch.manual_seed(seed)
    return torch.randn(2, 3, 4, 5, 6, dtype=torch.float64), torch.randint(0, 3, (2, 4, 5, 6))


def dice_and_entropy_by_numpy(logits, labels):
    """The dice of each sample, of all its objects, predictions and pixels at once, and the entropy of all samples."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    known, dice = labels != IGNORED, []
    for p, truth, counts in zip(probabilities, labels, known, strict=True):
        found = np.concatenate([plane[counts] for plane in p[1:]])
        wanted = np.concatenate([truth[counts] == number for number in range(1, len(p))])
        overlap, extent = 2 * (found * wanted).mean(), (found + wanted).mean()
        dice.append(1 - (overlap + 1e-6) / (extent + 1e-6) if overlap > 1e-6 else 0.0)
    chosen = np.take_along_axis(probabilities, np.where(known, labels, 0)[:, None], axis=1)[:, 0]
    return np.mean(dice), -np.log(chosen[known]).mean()


@pytest.mark.parametrize("ignored", [False, True])
def test_dice_and_cross_entropy(ignored):
    logits, labels = predictions()
    if ignored:
        labels[0, 1], labels[1, :, 3:] = IGNORED, IGNORED
    loss = dice_and_cross_entropy(logits, labels)
    dice, entropy = dice_and_entropy_by_numpy(logits.numpy(), labels.numpy())
    assert [part.item() for part in loss] == pytest.approx([dice + entropy, dice, entropy], rel=1e-5)
    assert all(part.dim() == 0 for part in loss)


def test_predictions_of_ignored_pixels_do_not_count_in_the_dice():
    logits, labels = predictions()
    labels[:, 1, :3] = IGNORED
    other = logits.clone()
    other[:, :, 1, :3] = 30 * torch.randn_like(other[:, :, 1, :3])
    assert_close(dice_and_cross_entropy(logits, labels), dice_and_cross_entropy(other, labels))


def test_a_prediction_that_is_ignored_throughout_is_as_good_as_none():
    logits, labels = predictions()
    labels[:, 2:] = IGNORED
    assert_close(
        dice_and_cross_entropy(logits, labels),
        dice_and_cross_entropy(logits[:, :, :2], labels[:, :2]),
        rtol=1e-4,  # the constant in the dice is added to means over fewer pixels
        atol=0.0,
    )


def test_the_dice_is_one_of_all_objects_not_their_mean():
    """A large object that is found outweighs a small one that is not."""
    labels = torch.zeros(1, 1, 10, 10, dtype=torch.long)
    labels[0, 0, :9], labels[0, 0, 9, :1] = 1, 2
    logits = 100.0 * torch.nn.functional.one_hot(labels.where(labels != 2, 0), 3).movedim(4, 1)
    assert dice_and_cross_entropy(logits, labels).dice.item() == pytest.approx(1 - 180 / 181, rel=1e-3)


def test_without_overlap_the_dice_is_nothing_and_has_no_gradient():
    labels = torch.zeros(2, 1, 4, 4, dtype=torch.long)
    labels[0, 0, :2] = 1
    scores = torch.zeros(2, 2, 1, 4, 4)
    scores[:, 0] = 50.0
    scores.requires_grad_()
    loss = dice_and_cross_entropy(scores, labels)
    assert loss.dice == 0
    assert loss.cross_entropy.item() == pytest.approx(50 * 8 / 32)
    (gradient,) = torch.autograd.grad(loss.dice, scores, retain_graph=True)
    assert not gradient.any()
    loss.total.backward()
    assert torch.isfinite(scores.grad).all()
    assert scores.grad.any()


def test_a_perfect_dice_is_nothing_and_slots_without_an_object_change_nothing():
    logits, labels = predictions()
    perfect = 60.0 * torch.nn.functional.one_hot(labels, 3).movedim(4, 1)
    assert_close(dice_and_cross_entropy(perfect, labels).total, torch.tensor(0.0), atol=1e-6, rtol=0)
    more = torch.cat([logits, torch.full((2, 2, 4, 5, 6), -1e10, dtype=torch.float64)], dim=1)
    assert_close(dice_and_cross_entropy(logits, labels), dice_and_cross_entropy(more, labels), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("settings", [{}, {"hardest": 0.5, "start": 0.0, "end": 1.0}])
def test_the_fraction_kept_of_xmem(settings):
    loss = BootstrappedDice(**settings)
    middle = (loss.start + loss.end) / 2
    assert loss.kept(0.0) == 1
    assert loss.kept(loss.start) == pytest.approx(1)
    assert loss.kept(middle) == pytest.approx((1 + loss.hardest) / 2)
    assert loss.kept(loss.end) == pytest.approx(loss.hardest)
    assert loss.kept(1.0) == pytest.approx(loss.hardest)


@pytest.mark.parametrize(
    "settings",
    [{"hardest": 0.0}, {"hardest": 1.1}, {"start": 0.5, "end": 0.5}, {"start": -0.1}, {"start": 0.2, "end": 1.1}],
)
def test_fractions_of_xmem_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match=r"BootstrappedDice: .*expected fractions of 1, rising"):
        BootstrappedDice(**settings)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_loss_of_xmem_by_loops(pair, progress):
    logits, labels = pair
    valid = torch.tensor([[True, True, True], [True, True, False]])
    soft = logits.sigmoid()
    loss = BootstrappedDice()
    entropy, dice = loss(logits, soft, labels, valid, progress)
    entropies, dices = [], []
    for sample, planes, truth, slots in zip(logits, soft, labels, valid, strict=True):
        count = 1 + int(slots.sum())
        entropies += entropy_by_loops(sample[None, :count], truth[None], loss.kept(progress))
        for number in range(1, 4):
            plane, own = planes[number], (truth == number).double()
            dices.append(1 - (2 * (plane * own).sum() + 1) / (plane.sum() + own.sum() + 1))
    assert entropy.item() == pytest.approx(np.mean(entropies))
    assert dice.item() == pytest.approx(np.mean(dices))


def test_empty_slots_count_in_the_dice_of_xmem_alone(pair):
    logits, labels = pair
    valid = torch.tensor([[True, True, True, False]]).expand(2, -1)
    more = torch.cat([logits, torch.randn(2, 1, 5, 6, dtype=torch.float64)], dim=1)
    soft = torch.cat([logits.softmax(dim=1), torch.zeros(2, 1, 5, 6, dtype=torch.float64)], dim=1)
    entropy, dice = BootstrappedDice()(more, soft, labels, valid, 0.5)
    expected, own = BootstrappedDice()(logits, soft[:, :4], labels, valid[:, :3], 0.5)
    assert_close(entropy, expected)
    assert_close(dice, own * 3 / 4)
