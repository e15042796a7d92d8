"""Gates of attention heads: Hard Concrete variables whose expected number of open ones is paid for (L0 relaxation).

Shapes: L layers, M heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TEMPERATURE, LOWER, UPPER = 0.33, -0.1, 1.1
"""Of the Hard Concrete distribution: how peaked it is, and what it is stretched to before it is clipped to 0 and 1."""
MARGIN = 1e-6
"""Noise and probabilities stay this far from 0 and 1."""


@dataclass(frozen=True)
class GateSettings:
    """How gates of heads work.

    Attributes:
        hard: Make gates 0 or 1, above a half or not, with the gradient of what they were made of, as published. The
            penalty then overstates how probable an open head is. False is the paper's: any value from 0 to 1.
        start: The parameter of every gate before training; 2 opens a head with a probability of 0.94. None draws it as
            published, which closes about half of the heads of an untrained network.
    """

    hard: bool = False
    start: float | None = 2.0


_SETTINGS = GateSettings()


class HeadGates(nn.Module):
    """A gate for every head of every layer, which the output of the head is multiplied with (paper, L0 relaxation).

    Args:
        layers: L.
        heads: M, of each layer.
        settings: How gates work.
    """

    def __init__(self, layers: int, heads: int, settings: GateSettings = _SETTINGS) -> None:
        super().__init__()
        self.settings = settings
        self.log_a = nn.Parameter(torch.empty(layers, heads))
        if settings.start is None:
            bound = math.sqrt(6 / (heads + 1))  # Xavier's, of the published parameter (1, M, 1, 1) of a layer
            nn.init.uniform_(self.log_a, -bound, bound)
        else:
            nn.init.constant_(self.log_a, settings.start)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Gates for one forward pass, the same for all images of the batch.

        Args:
            noise: (L, M) uniform numbers between 0 and 1, both excluded; drawn where None. An evaluation uses none.

        Returns:
            (L, M) in [0, 1]: drawn in training, as `values` in an evaluation.
        """
        if not self.training:
            return self.values()
        if noise is None:
            noise = torch.empty_like(self.log_a).uniform_(MARGIN, 1 - MARGIN)
        return self._clipped(torch.sigmoid((noise.log() - (-noise).log1p() + self.log_a) / TEMPERATURE))

    def values(self) -> Tensor:
        """(L, M) gates without chance; there is no division by the temperature here, as published."""
        return self._clipped(torch.sigmoid(self.log_a))

    def _clipped(self, concrete: Tensor) -> Tensor:
        soft = (concrete * (UPPER - LOWER) + LOWER).clamp(0, 1)
        if not self.settings.hard:
            return soft
        return soft + ((soft > 0.5).to(soft.dtype) - soft).detach()

    def penalty(self) -> Tensor:
        """The expected number of open heads: the sum over all of the probability that a gate is not 0."""
        probability = torch.sigmoid(self.log_a - TEMPERATURE * math.log(-LOWER / UPPER))
        return probability.clamp(MARGIN, 1 - MARGIN).sum()

    @torch.no_grad()
    def open(self) -> Tensor:
        """(L, M) bool: the heads that an evaluation uses."""
        return self.values() > 0
