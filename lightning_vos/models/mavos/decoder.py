"""The feature pyramid decoder of AOT, DeAOT and MAVOS."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """Convolution of `kernel`, group normalisation by 8 groups and ReLU."""

    def __init__(self, inner: int, outer: int, kernel: int) -> None:
        super().__init__(nn.Conv2d(inner, outer, kernel, padding=kernel // 2), nn.GroupNorm(8, outer), nn.ReLU())


class PyramidDecoder(nn.Module):
    """From the transformer's output and three shortcuts to logits at the finest shortcut's size.

    Args:
        inner: Channels of the transformer's output.
        shortcuts: Channels of the encoder's maps, finest first.
        outer: Channels of the logits, background and object slots.
        channels: Width of the two coarser levels; the finer ones have half.
        align_corners: Of every resize.
    """

    def __init__(
        self, inner: int, shortcuts: tuple[int, ...], outer: int, channels: int = 256, *, align_corners: bool = True
    ) -> None:
        super().__init__()
        half = channels // 2
        self.align_corners = align_corners
        self.entry = ConvNorm(inner, channels, 1)
        self.levels = nn.ModuleList(
            [ConvNorm(channels, channels, 3), ConvNorm(channels, half, 3), ConvNorm(half, half, 3)]
        )
        widths = (half, channels, channels)
        self.shortcuts = nn.ModuleList(nn.Conv2d(c, width, 1) for c, width in zip(shortcuts[:3], widths, strict=True))
        self.exit = nn.Conv2d(half, outer, 1)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, tokens: Tensor, maps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """(B, n, inner) tokens of the coarsest grid and three (B, C, h, w) maps, finest first -> (B, outer, h, w)."""
        x = self.entry(tokens.transpose(1, 2).unflatten(2, maps[2].shape[2:]))
        for level, shortcut, features in zip(self.levels, self.shortcuts[::-1], maps[::-1], strict=True):
            if x.shape[2:] != features.shape[2:]:
                x = F.interpolate(x, features.shape[2:], mode="bilinear", align_corners=self.align_corners)
            x = level(x + shortcut(features))
        return self.exit(x)
