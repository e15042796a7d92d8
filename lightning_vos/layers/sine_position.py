"""Sine encoding of positions in a map (Carion et al., DETR, ECCV 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TEMPERATURE = 10_000


def sine_position(channels: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Encode rows in the first half of the channels, columns in the second; sides count as 2 pi, from 1 on.

    Args:
        channels: C, a multiple of 4.
        height: Of the map.
        width: Likewise.
        device: Where the encoding shall lie.

    Returns:
        (C, height, width) float32.

    Example:
        >>> sine_position(4, 1, 2)[0, 0]  # the sine of the only row, at 2 pi
        tensor([-6.0240e-06, -6.0240e-06])
    """
    half = channels // 2
    frequency = _TEMPERATURE ** -(2 * (torch.arange(half, device=device) // 2) / half)

    def encode(side: int) -> Tensor:
        positions = torch.arange(1, side + 1, device=device) / (side + 1e-6) * (2 * math.pi)
        angles = positions[:, None] * frequency
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1).T

    rows, columns = encode(height), encode(width)
    return torch.cat([rows[:, :, None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)])
