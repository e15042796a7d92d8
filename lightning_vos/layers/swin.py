"""Swin transformer for frames of any size (Liu et al., ICCV 2021), as published detectors and video models run it.

Shapes: B batch, h w feature grid, C channels, n tokens of a window. Features lie as (B, h, w, C) inside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, PatchEmbed
from timm.models.swin_transformer import PatchMerging, WindowAttention, window_partition, window_reverse
from torch import Tensor, nn

_NAME = re.compile(r"swin_(tiny|small|base|large)_patch4_window(\d+)_\d+")
_SIZES = {"tiny": (96, 6), "small": (96, 18), "base": (128, 18), "large": (192, 18)}  # width, blocks of stage 3
_HEAD = 32  # channels of an attention head, in every Swin
_APART = -100.0  # what the logits get between two regions: of weight 0 in float32


def shift_mask(height: int, width: int, window: int, device: torch.device | None = None) -> Tensor:
    """What shifted windows add to their logits, so that regions the roll brought together stay apart (paper Sec. 3.2).

    Args:
        height: Of the map, a multiple of the window.
        width: Likewise.
        window: Side of a window; the map was rolled by half of it.
        device: Where the mask shall lie.

    Returns:
        (windows, n, n): 0 within a region, -100 between two.

    Example:
        >>> shift_mask(2, 2, 2)[0, 0]  # the four pixels come from the four corners of the map
        tensor([   0., -100., -100., -100.])
    """
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    rows = (rows >= height - window).long() + (rows >= height - window // 2)
    columns = (columns >= width - window).long() + (columns >= width - window // 2)
    regions = window_partition((3 * rows[:, None] + columns)[None, :, :, None], (window, window)).flatten(1)
    return torch.where(regions[:, None] == regions[:, :, None], 0.0, _APART)


class SwinBlock(nn.Module):
    """Attention within windows, then an MLP, each behind a norm and beside a residual (paper Eq. 3).

    Maps are padded right and bottom to whole windows after the norm, and rolled after that; padded tokens are attended
    to, and window and shift are the same on maps smaller than a window. timm rolls before it pads, and timm and
    torchvision shrink the shift on small maps: published checkpoints of detectors and video models were trained
    without either.

    Args:
        channels: C.
        window: Side of a window.
        shift: By how much the windows are moved down and right; 0 for none.
        drop_path: Probability of skipping a branch for a sample in training.
    """

    def __init__(self, channels: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, channels // _HEAD, window_size=window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Update (B, h, w, C) features; `mask` is the `shift_mask` of the padded map, which shifted blocks read."""
        features = features + self.drop_path(self._attend(self.norm1(features), mask))
        return features + self.drop_path(self.mlp(self.norm2(features)))

    def _attend(self, features: Tensor, mask: Tensor) -> Tensor:
        height, width = features.shape[1:3]
        window = (self.window, self.window)
        features = F.pad(features, (0, 0, 0, -width % self.window, 0, -height % self.window))
        padded = features.shape[1:3]
        if self.shift:
            features = features.roll((-self.shift, -self.shift), (1, 2))
        tokens = self.attn(window_partition(features, window).flatten(1, 2), mask if self.shift else None)
        features = window_reverse(tokens.unflatten(1, window), window, *padded)
        if self.shift:
            features = features.roll((self.shift, self.shift), (1, 2))
        return features[:, :height, :width]


class SwinStage(nn.Module):
    """Patch merging, in all stages but the first, then blocks of which every second one is shifted.

    Args:
        channels: C of the output.
        window: Side of a window.
        drop_path: Of each block.
        first: Whether this is the first stage, which merges nothing.
    """

    def __init__(self, channels: int, window: int, drop_path: Sequence[float], *, first: bool) -> None:
        super().__init__()
        self.window = window
        self.downsample = nn.Identity() if first else PatchMerging(channels // 2, channels)
        self.blocks = nn.ModuleList(
            SwinBlock(channels, window, number % 2 * (window // 2), rate) for number, rate in enumerate(drop_path)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, h, w, C / 2) features, padded to even sides, to (B, h / 2, w / 2, C); the first keeps the size."""
        features = self.downsample(features)
        height, width = (side + -side % self.window for side in features.shape[1:3])
        mask = shift_mask(height, width, self.window, features.device).to(features.dtype)
        for block in self.blocks:
            features = block(features, mask)
        return features


class Swin(nn.Module):
    """Swin with a norm on each map, for frames of any size; weights are named as timm names them, `norms` are ours.

    It has what `Backbone` uses of a timm model: `feature_info`, `num_features`, `forward_intermediates` and
    `prune_intermediate_layers`.

    Args:
        width: Channels of the first stage; each further one has twice as many, in heads of 32.
        depths: Blocks of each stage.
        window: Side of a window, in tokens.
        drop_path: Probability of skipping a branch of the last block for a sample in training; rises linearly from 0
            over the blocks of all stages.

    Example:
        >>> swin = Swin(32, (2, 2), window=7)
        >>> _, maps = swin.forward_intermediates(torch.rand(1, 3, 65, 98), [0, 1])
        >>> [tuple(features.shape) for features in maps]
        [(1, 32, 17, 25), (1, 64, 9, 13)]
    """

    def __init__(self, width: int, depths: Sequence[int], window: int, drop_path: float = 0.0) -> None:
        super().__init__()
        channels = [width * 2**stage for stage in range(len(depths))]
        rates = [part.tolist() for part in torch.linspace(0, drop_path, sum(depths), device="cpu").split(list(depths))]
        self.num_features = channels[-1]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": count, "reduction": 4 * 2**stage, "module": f"layers.{stage}"}
            for stage, count in enumerate(channels)
        ]
        self.patch_embed = PatchEmbed(
            None, 4, embed_dim=width, norm_layer=nn.LayerNorm, output_fmt="NHWC", dynamic_img_pad=True
        )
        self.layers = nn.ModuleList(
            SwinStage(count, window, rates[stage], first=stage == 0) for stage, count in enumerate(channels)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(count) for count in channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def named(cls, name: str, drop_path: float = 0.0) -> Self | None:
        """The Swin that timm calls `name`, such as `swin_base_patch4_window7_224`; None if that is no such name."""
        match = _NAME.fullmatch(name.partition(".")[0])
        if match is None:
            return None
        width, depth = _SIZES[match[1]]
        return cls(width, (2, 2, depth, 2), int(match[2]), drop_path)

    def forward_intermediates(self, frames: Tensor, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Normed maps of (B, 3, H, W) frames: (B, C, h, w) after the last stage, and after those of `indices`."""
        features = self.patch_embed(frames)
        maps = []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            features = layer(features)
            maps.append(norm(features).permute(0, 3, 1, 2).contiguous())
        return maps[-1], [maps[index] for index in indices]

    def prune_intermediate_layers(self, indices: Sequence[int], **_: bool) -> None:
        """Drop what the maps of `indices` do not need; timm's flags for its last norm and its head find none here."""
        end = max(indices) + 1
        self.layers = self.layers[:end]
        self.norms = nn.ModuleList(norm if i in indices else nn.Identity() for i, norm in enumerate(self.norms[:end]))
        self.num_features = self.feature_info[end - 1]["num_chs"]


def _from_published(stages: int = 4) -> dict[str, str]:
    """Module names of Microsoft's and mmdetection's Swin -> ours, where they differ."""
    names = {f"norm{stage}": f"norms.{stage}" for stage in range(stages)}
    for stage in range(stages - 1):
        for part in ("norm", "reduction"):
            names[f"layers.{stage}.downsample.{part}"] = f"layers.{stage + 1}.downsample.{part}"
    return names


SWIN_FROM_PUBLISHED = _from_published()
"""Published module name -> ours: patch merging closes a stage there and opens the next one here, as in timm.

Published files also hold index tables and masks (`*.attn.relative_position_index`, `*.attn_mask`) that we compute.
"""
