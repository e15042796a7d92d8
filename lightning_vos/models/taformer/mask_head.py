"""Masks of a clip: features that all instances share, and three small convolutions that each instance brings along.

Shapes: B clips, T frames, n instances, C channels, h w feature grid of stride 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASK_CHANNELS = 8
STRIDE = 8  # of the features, in pixels; masks have half of it
_LAYERS = ((MASK_CHANNELS, 2 + MASK_CHANNELS), (MASK_CHANNELS, MASK_CHANNELS), (1, MASK_CHANNELS))
_SIZES = [rows * columns for rows, columns in _LAYERS] + [rows for rows, _ in _LAYERS]
FILTER_SIZE = sum(_SIZES)
"""Numbers that an instance's convolutions have: the weights of all, then their biases."""


class MaskFeatures(nn.Module):
    """Merges the encoder's maps of strides 8, 16 and 32 from the coarsest on, frame by frame, as SeqFormer does.

    Args:
        channels: C of the maps, a multiple of 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.merge = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        narrow = channels // 4
        self.reduce = nn.ModuleList(
            (nn.Conv2d(channels, narrow, 3, padding=1), nn.Conv2d(narrow, MASK_CHANNELS, 3, padding=1))
        )
        for convolution in (*self.merge, *self.reduce):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(convolution.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Features (B, T, 8, h, w) of three (B, T, C, ..) maps, finest first."""
        fine, middle, coarse = (features.flatten(0, 1) for features in maps)
        merged = self.merge[0](coarse).relu()
        for convolution, finer in ((self.merge[1], middle), (self.merge[2], fine)):
            merged = convolution(finer + F.interpolate(merged, finer.shape[2:])).relu()
        for convolution in self.reduce:
            merged = convolution(merged).relu()
        return merged.unflatten(0, maps[0].shape[:2])


def dynamic_masks(features: Tensor, filters: Tensor, references: Tensor) -> Tensor:
    """Masks of instances: each sees the features and how far a position is from its reference point, in every frame.

    In 32 bit even under autocast: distances are in pixels, which half precision cannot tell apart.

    Differs from CondInst: distances are not divided by anything (SeqFormer's published code).

    Args:
        features: (T, 8, h, w) of one clip.
        filters: (n, 169), one for all frames of an instance.
        references: (n, T, 2) x and y in pixels of the frames.

    Returns:
        (n, T, 2 h, 2 w) logits at stride 4.

    Example:
        >>> filters = torch.zeros(1, FILTER_SIZE)
        >>> filters[0, -1] = 3  # the last bias is added to all
        >>> dynamic_masks(torch.rand(2, 8, 5, 6), filters, torch.zeros(1, 2, 2)).shape
        torch.Size([1, 2, 10, 12])
    """
    with torch.autocast(features.device.type, enabled=False):
        features, filters, references = features.float(), filters.float(), references.float()
        height, width = features.shape[2:]
        rows, columns = (STRIDE * torch.arange(s, device=features.device) + STRIDE // 2 for s in (height, width))
        places = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)])
        distances = references[..., None, None] - places  # (n, T, 2, h, w)
        seen = torch.cat([distances, features.expand(len(filters), -1, -1, -1, -1)], dim=2).flatten(3)
        parts = [filters[:, start:end] for start, end in pairwise((0, *accumulate(_SIZES)))]
        weights, biases = parts[: len(_LAYERS)], parts[len(_LAYERS) :]
        for number, (shape, weight, bias) in enumerate(zip(_LAYERS, weights, biases, strict=True)):
            seen = weight.unflatten(1, shape)[:, None] @ (seen.relu() if number else seen) + bias[:, None, :, None]
        return aligned_upsampling(seen.squeeze(2).unflatten(2, (height, width)))


def aligned_upsampling(logits: Tensor) -> Tensor:
    """Double (n, T, h, w) logits bilinearly, with what lies at i now at 2 i + 1, as in CondInst.

    Example:
        >>> aligned_upsampling(torch.tensor([[[[0.0, 4.0]]]]))
        tensor([[[[0., 0., 2., 4.],
                  [0., 0., 2., 4.]]]])
    """
    height, width = logits.shape[2:]
    logits = F.pad(logits, (0, 1, 0, 1), mode="replicate")
    logits = F.interpolate(logits, (2 * height + 1, 2 * width + 1), mode="bilinear", align_corners=True)
    return F.pad(logits, (1, 0, 1, 0), mode="replicate")[..., : 2 * height, : 2 * width]
