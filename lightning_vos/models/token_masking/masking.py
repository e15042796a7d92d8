"""Random masking of class tokens: classes that an image does not show may not be read from other classes' tokens.

Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def draw_masked(labels: Tensor, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """Choose the class tokens to mask: each class that an image does not show, independently.

    Args:
        labels: (B, K) 1 where an image shows a class, 0 where it does not; anything else is never masked.
        rate: Probability of masking, 0 to 1.
        generator: Of the device of the labels; torch's own by default.

    Returns:
        (B, K) bool, True where the output of a class token is set to 0.

    >>> import torch
    >>> draw_masked(torch.tensor([[1.0, 0.0, 0.0]]), rate=1.0)
    tensor([[False,  True,  True]])
    """
    return (labels == 0) & (torch.rand(labels.shape, generator=generator, device=labels.device) < rate)


@dataclass(frozen=True)
class MaskingSchedule:
    """How probable masking is, by the epoch.

    Attributes:
        rate: From the last step on, or always (paper: 0.5).
        steps: (epoch, rate) in rising order of epochs: `rate` holds before that epoch, from the end of the step before
            it on. The published code offers ((20, 0.0), (50, 0.2)).

    Raises:
        ValueError: if a rate is no probability, or epochs do not rise.
    """

    rate: float = 0.5
    steps: Sequence[tuple[int, float]] = ()

    def __post_init__(self) -> None:
        epochs, rates = [epoch for epoch, _ in self.steps], [rate for _, rate in self.steps]
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate is {self.rate}, expected a probability from 0 to 1")
        if not all(0 <= rate <= 1 for rate in rates):
            raise ValueError(f"steps has the rates {rates}, expected probabilities from 0 to 1")
        if epochs != sorted(set(epochs)) or any(epoch < 1 for epoch in epochs):
            raise ValueError(f"steps has the epochs {epochs}, expected rising numbers from 1 on")

    def at(self, epoch: int) -> float:
        """The rate of an epoch, counted from 0.

        >>> [MaskingSchedule(0.5, ((20, 0.0), (50, 0.2))).at(epoch) for epoch in (0, 19, 20, 49, 50)]
        [0.0, 0.0, 0.2, 0.2, 0.5]
        """
        return next((rate for end, rate in self.steps if epoch < end), self.rate)
