"""Losses between logits over background and object slots, and label maps.

Shapes: B batch, N object slots, H W pixels. A slot without an object has a logit so low that it takes no part.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = 255
"""Label of pixels that nobody annotated."""


def bootstrapped_cross_entropy(logits: Tensor, labels: Tensor, kept: float) -> Tensor:
    """Cross entropy of the hardest pixels.

    Args:
        logits: (B, 1 + N, H, W).
        labels: (B, H, W) int64, `IGNORED` counts as a pixel without loss.
        kept: Fraction of all pixels, hardest first, at least one pixel; 1 takes the mean over all.

    Returns:
        (B,).

    >>> bootstrapped_cross_entropy(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), 0.5)
    tensor([0.6931])
    """
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none").flatten(1)
    return losses.topk(max(int(kept * losses.shape[1]), 1), dim=1, sorted=False).values.mean(dim=1)


def soft_jaccard(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the soft intersection over union, averaged over the classes that the labels hold.

    Args:
        logits: (B, 1 + N, H, W).
        labels: (B, H, W) int64; `IGNORED` pixels are left out. Background is a class like the others.

    Returns:
        (B,) in [0, 1].
    """
    probabilities = logits.softmax(dim=1).flatten(2)
    truth = labels.flatten(1)[:, None] == torch.arange(logits.shape[1], device=labels.device)[:, None]
    truth = truth.to(probabilities.dtype)
    probabilities = probabilities * (labels.flatten(1) != IGNORED)[:, None]
    intersection = (probabilities * truth).sum(dim=2)
    union = probabilities.sum(dim=2) + truth.sum(dim=2) - intersection
    present = truth.any(dim=2).to(probabilities.dtype)
    losses = 1 - intersection / (union + 1e-6)
    return (losses * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)


class BootstrappedJaccard(nn.Module):
    """Half bootstrapped cross entropy, half soft Jaccard: the loss of AOT, DeAOT and MAVOS.

    Differs from the paper: MAVOS writes "BCE", the published code trains with bootstrapped softmax cross entropy.

    Args:
        hardest: Fraction of pixels that the cross entropy keeps in the end.
        warmup: Fraction of training in which the kept fraction falls from 1 to `hardest`, linearly.
    """

    def __init__(self, hardest: float = 0.15, warmup: float = 0.5) -> None:
        super().__init__()
        if not 0 < hardest <= 1 or not 0 <= warmup <= 1:
            raise ValueError(f"BootstrappedJaccard.hardest is {hardest} and warmup {warmup}, expected fractions of 1")
        self.hardest, self.warmup = hardest, warmup

    def kept(self, progress: float) -> float:
        """Fraction of pixels in the cross entropy after `progress` of training."""
        done = min(progress / self.warmup, 1.0) if self.warmup else 1.0
        return 1 - done * (1 - self.hardest)

    def forward(self, logits: Tensor, labels: Tensor, progress: float) -> Tensor:
        """(B,) losses of (B, 1 + N, H, W) logits and (B, H, W) labels after `progress` in [0, 1] of training."""
        entropy = bootstrapped_cross_entropy(logits, labels, self.kept(progress))
        return 0.5 * entropy + 0.5 * soft_jaccard(logits, labels)


class DiceAndCrossEntropy(NamedTuple):
    """A loss and its parts."""

    total: Tensor  # ()
    dice: Tensor  # ()
    cross_entropy: Tensor  # ()


def dice_and_cross_entropy(logits: Tensor, labels: Tensor) -> DiceAndCrossEntropy:
    """The loss of HODOR: soft dice over all objects at once, plus plain cross entropy.

    Objects, predictions and pixels of a sample count together in the dice, so large objects count more; it is 0 where
    they do not meet the truth at all (published code).

    Args:
        logits: (B, 1 + N, P, H, W) of P predictions.
        labels: (B, P, H, W) int64; `IGNORED` pixels are left out, one of the others there must be.
    """
    known = labels != IGNORED
    cross_entropy = F.cross_entropy(logits, labels, ignore_index=IGNORED)
    probabilities = (logits.softmax(dim=1)[:, 1:] * known[:, None]).flatten(1)
    slots = torch.arange(1, logits.shape[1], device=labels.device).view(1, -1, 1, 1, 1)
    truth = (labels[:, None] == slots).to(probabilities.dtype).flatten(1)
    overlap = 2 * (probabilities * truth).mean(dim=1)
    extent = (probabilities + truth).mean(dim=1)
    dice = torch.where(overlap > 1e-6, 1 - (overlap + 1e-6) / (extent + 1e-6), 0.0).mean()
    return DiceAndCrossEntropy(dice + cross_entropy, dice, cross_entropy)


class BootstrappedDice(nn.Module):
    """Bootstrapped cross entropy and soft dice of each object, added: the loss of XMem and QMVOS.

    Args:
        hardest: Fraction of pixels that the cross entropy keeps in the end.
        start: Fraction of training up to which it keeps all.
        end: Fraction of training from which it keeps the hardest alone; between them the fraction falls linearly.
    """

    def __init__(self, hardest: float = 0.15, start: float = 10 / 65, end: float = 40 / 65) -> None:
        super().__init__()
        if not 0 < hardest <= 1 or not 0 <= start < end <= 1:
            raise ValueError(
                f"BootstrappedDice: hardest is {hardest}, start {start}, end {end}; expected fractions of 1, rising"
            )
        self.hardest, self.start, self.end = hardest, start, end

    def kept(self, progress: float) -> float:
        """Fraction of pixels in the cross entropy after `progress` of training."""
        if progress < self.start:
            return 1.0
        left = max(self.end - progress, 0.0) / (self.end - self.start)
        return self.hardest + (1 - self.hardest) * left

    def forward(
        self, logits: Tensor, probabilities: Tensor, labels: Tensor, valid: Tensor, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy and dice, () each.

        Args:
            logits: (B, 1 + N, H, W).
            probabilities: (B, 1 + N, H, W).
            labels: (B, H, W) int64.
            valid: (B, N) bool; slots without an object take no part in the cross entropy, but in the mean of the dice.
            progress: In [0, 1], of training.
        """
        empty = F.pad(~valid, (1, 0))[:, :, None, None]
        entropy = bootstrapped_cross_entropy(logits.masked_fill(empty, -1e10), labels, self.kept(progress)).mean()
        slots = torch.arange(1, logits.shape[1], device=labels.device).view(1, -1, 1, 1)
        truth = (labels[:, None] == slots).to(probabilities.dtype).flatten(2)
        soft = probabilities[:, 1:].flatten(2)
        overlap, extent = (soft * truth).sum(dim=2), soft.sum(dim=2) + truth.sum(dim=2)
        return entropy, (1 - (2 * overlap + 1) / (extent + 1)).mean()
