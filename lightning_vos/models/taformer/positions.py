"""Sine encodings of where a token lies in its frame, and of when its frame is (TAFormer, Eq. 6)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

_TEMPERATURE = 10_000


def spatial_position(padding: Tensor, channels: int) -> Tensor:
    """Encode rows in the first half of the channels, columns in the second; what is not padded spans 2 pi.

    Unlike `layers.sine_position`, it counts from pixel centres and stops where padding begins, as Deformable DETR does.

    Args:
        padding: (B, h, w) bool, True where a map is padded.
        channels: C, a multiple of 4.

    Returns:
        (B, h, w, C) float32.

    Example:
        >>> spatial_position(torch.zeros(1, 1, 2, dtype=torch.bool), 4)[0, 0, :, 2]  # sines of pi / 2 and 3 pi / 2
        tensor([ 1., -1.])
    """
    valid = (~padding).float()
    halves = []
    for axis in (1, 2):
        counted = valid.cumsum(dim=axis)
        last = counted.narrow(axis, -1, 1)
        halves.append(_sines((counted - 0.5) / (last + 1e-6) * (2 * math.pi), channels // 2))
    return torch.cat(halves, dim=3)


def temporal_position(
    frames: int, channels: int, kind: Literal["normalized", "index"], device: torch.device | None = None
) -> Tensor:
    """Encode the times of a clip's frames in all channels.

    Differs from the paper: it gives no formula; this is that of space.

    Args:
        frames: T.
        channels: C, an even number.
        kind: Whether the clip spans 2 pi, however long it is (`normalized`), or frames count as 0, 1, 2, ... (`index`).
        device: Where the encoding shall lie.

    Returns:
        (T, C) float32.

    Example:
        >>> temporal_position(2, 2, "normalized")[:, 0]  # sines of pi / 2 and 3 pi / 2
        tensor([ 1., -1.])
    """
    times = torch.arange(frames, device=device, dtype=torch.float32)
    return _sines(times if kind == "index" else (times + 0.5) / frames * (2 * math.pi), channels)


def _sines(positions: Tensor, channels: int) -> Tensor:
    """(...) angles of the first wave -> (..., channels), sine and cosine in turn, of ever longer waves."""
    waves = torch.arange(0, channels, 2, device=positions.device) / channels
    angles = positions[..., None] / _TEMPERATURE**waves
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
