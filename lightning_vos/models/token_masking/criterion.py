"""What token masking learns from: which classes images show, and how many attention heads are open.

Shapes: B images, K classes, D channels, h w patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vos.models.token_masking.network import TokenPredictions

_NEGLIGIBLE = 1e-10  # keeps maps that are 0 everywhere at 0, as published


class Loss(NamedTuple):
    """The loss of a batch."""

    total: Tensor  # ()
    parts: dict[str, Tensor]  # what it is the sum of, weighted


@dataclass(frozen=True)
class Criterion:
    """Binary cross-entropy of the labels plus what is paid for open heads (paper: their sum).

    Attributes:
        gate_weight: Of the expected number of open heads, lambda of the paper. The published code has 0.01 too: its
            command line takes another number, which it never uses.
        diversity: Weight of what makes the maps of classes unlike each other; published code only: 0.1, see
            `diversity_loss`.
        patch_weight: Weight of the binary cross-entropy of the patch head. The published code never trains that head,
            whose maps it uses; above 0 they are learnt.
    """

    gate_weight: float = 0.01
    diversity: float = 0.0
    patch_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse negative weights."""
        if min(self.gate_weight, self.diversity, self.patch_weight) < 0:
            raise ValueError(f"{self}: expected weights of 0 or more")

    def __call__(self, predictions: TokenPredictions, labels: Tensor, penalty: Tensor | None) -> Loss:
        """The loss of a batch.

        Args:
            predictions: Of the network; with maps where `diversity` is above 0.
            labels: (B, K) in {0, 1}.
            penalty: The expected number of open heads, (); None without gates.

        Raises:
            ValueError: if a weight is above 0 for something that the network does not give.
        """
        parts = {"classification": F.binary_cross_entropy_with_logits(predictions.logits, labels)}
        if penalty is not None:
            parts["gates"] = self.gate_weight * penalty
        if self.diversity > 0:
            if predictions.maps is None:
                raise ValueError("Criterion: diversity is above 0, but there are no maps to compare")
            parts["diversity"] = self.diversity * diversity_loss(predictions.maps)
        if self.patch_weight > 0:
            if predictions.patch_logits is None:
                raise ValueError("Criterion: patch_weight is above 0, but the network has no patch head")
            parts["patches"] = self.patch_weight * F.binary_cross_entropy_with_logits(predictions.patch_logits, labels)
        return Loss(torch.stack([part.float() for part in parts.values()]).sum(), parts)


def diversity_loss(maps: Tensor) -> Tensor:
    """How alike the maps of classes are (published code; the paper has no such loss).

    Args:
        maps: (B, K, h, w), 0 or more.

    Returns:
        (): mean over images of the Frobenius norm of what distinguishes the cosines of all pairs of maps from identity.

    >>> import torch
    >>> float(diversity_loss(torch.eye(4).view(1, 4, 2, 2)))
    0.0
    """
    flat = maps.flatten(2)
    unit = flat / (flat.square().sum(dim=2, keepdim=True) + _NEGLIGIBLE).sqrt()
    cosines = unit @ unit.transpose(1, 2)
    return torch.linalg.matrix_norm(cosines - torch.eye(cosines.shape[1], device=maps.device)).mean()
