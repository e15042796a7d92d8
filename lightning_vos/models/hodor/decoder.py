"""HODOR's decoder: features of a frame and descriptors of any frames in, mask logits out.

Shapes: B batch, N object slots, K background cells, T frames that descriptors come from, h w feature grid, C channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_vos.layers.sine_position import sine_position

_DROPOUT = 0.1
_GROUPS_PIXELS, _GROUPS_HEAD = 16, 8  # of group norms


class DescriptorHistory(NamedTuple):
    """Descriptors of several frames, which a frame is decoded with."""

    background: Tensor  # (B, K, T, C)
    objects: Tensor  # (B, N, T, C)
    background_valid: Tensor  # (B, T) bool
    objects_valid: Tensor  # (B, N, T) bool


def never(like: Tensor) -> float:
    """The logit of what is not there, in the type of a tensor; finite, so that it can be resized."""
    return -1e10 if like.dtype != torch.float16 else -1e4


class DeformableConvolution(nn.Module):
    """A 3 x 3 convolution whose taps move by learnt offsets (Dai et al., ICCV 2017).

    It equals torchvision's, whose backward pass takes several times as long on a CPU, and which knows no bfloat16. The
    sampled features, nine times as large as the map, are not kept for the backward pass but sampled again.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(channels, 18, 3, padding=1)
        self.deform = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, h, w) features to as many."""
        # Positions are in pixels, for which half precision is too coarse.
        arguments = features, self.offsets(features).float()
        if torch.is_grad_enabled():
            return checkpoint(self._convolve, *arguments, use_reentrant=False, preserve_rng_state=False)
        return self._convolve(*arguments)

    def _convolve(self, features: Tensor, offsets: Tensor) -> Tensor:
        height, width = features.shape[2:]
        rows, columns, taps = (torch.arange(n, device=features.device) for n in (height, width, 9))
        offsets = offsets.unflatten(1, (9, 2))
        y = rows[:, None] + (taps // 3 - 1).view(-1, 1, 1) + offsets[:, :, 0]
        x = columns + (taps % 3 - 1).view(-1, 1, 1) + offsets[:, :, 1]
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=4).flatten(1, 2)
        sampled = F.grid_sample(features.float(), grid, align_corners=False)
        columns_of_taps = sampled.unflatten(2, (9, height)).flatten(1, 2)
        return F.conv2d(columns_of_taps, self.deform.weight.flatten(1)[:, :, None, None], self.deform.bias)


class DecoderLayer(nn.Module):
    """Pixels look around themselves, then at descriptors; descriptors stay as they are.

    Args:
        channels: C.
        heads: Of the attention.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.neighbourhood = DeformableConvolution(channels)
        self.norm_neighbourhood = nn.GroupNorm(_GROUPS_PIXELS, channels)
        self.query = nn.Linear(channels, channels)
        self.key_objects = nn.Linear(channels, channels)
        self.key_background = nn.Linear(channels, channels)
        self.value_objects = nn.Linear(channels, channels)
        self.value_background = nn.Linear(channels, channels)
        self.norm_attention = nn.LayerNorm(channels)
        self.feed = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(channels, channels),
            nn.Dropout(_DROPOUT),
        )
        self.norm_feed = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(
        self, features: Tensor, position: Tensor, history: DescriptorHistory, embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Update (B, C, h, w) features.

        Args:
            features: (B, C, h, w).
            position: (C, h, w), added to queries.
            history: Whose descriptors are read.
            embeddings: (K, C) of the background and (C,) of objects, added to keys.
        """
        size = features.shape[2:]
        features = features + self.norm_neighbourhood(F.relu(self.neighbourhood(features)))
        pixels, queries = (maps.flatten(2).transpose(1, 2) for maps in (features, features + position))
        pixels = self.norm_attention(pixels + self.dropout(self._read(queries, history, embeddings)))
        pixels = self.norm_feed(pixels + self.feed(pixels))
        return pixels.transpose(1, 2).unflatten(2, size)

    def _read(self, queries: Tensor, history: DescriptorHistory, embeddings: tuple[Tensor, Tensor]) -> Tensor:
        of_background, of_objects = embeddings
        keys = _joined(
            self.key_objects(history.objects + of_objects),
            self.key_background(history.background + of_background[:, None]),
        )
        values = _joined(self.value_objects(history.objects), self.value_background(history.background))
        valid = _joined(
            history.objects_valid, history.background_valid[:, None].expand(-1, history.background.shape[1], -1)
        )
        query, key, value = (
            tokens.unflatten(2, (self.heads, -1)).transpose(1, 2) for tokens in (self.query(queries), keys, values)
        )
        # Dropout comes before the softmax, as published.
        logits = self.dropout(query @ key.transpose(2, 3) / math.sqrt(query.shape[3]))
        weights = logits.masked_fill(~valid[:, None, None], -torch.inf).softmax(dim=3)
        return (weights @ value).transpose(1, 2).flatten(2)


class ObjectDecoder(nn.Module):
    """Turns features and descriptors into logits: pixels refined by layers, then compared with each descriptor.

    Args:
        channels: C.
        layers: Number of layers.
        heads: Of their attention.
    """

    def __init__(self, channels: int, layers: int = 5, heads: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(channels, heads) for _ in range(layers))
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels, channels // 4, 1, bias=False), nn.ReLU(), nn.GroupNorm(_GROUPS_HEAD, channels // 4)
        )
        self.refine = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.ReLU(), nn.GroupNorm(_GROUPS_HEAD, channels)
        )
        self.object_query = nn.Linear(channels, channels)
        self.background_query = nn.Linear(channels, channels)
        self.catch_all = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False),
            nn.GroupNorm(_GROUPS_HEAD, channels // 2),
            nn.ReLU(),
            nn.Conv2d(channels // 2, 1, 1, bias=False),
        )

    def forward(
        self, coarse: Tensor, fine: Tensor, history: DescriptorHistory, embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Decode a frame.

        Args:
            coarse: (B, C, h, w) features.
            fine: (B, C, 2 h, 2 w) features.
            history: The descriptors to decode with.
            embeddings: (K, C) of the background and (C,) of objects, those of the encoder.

        Returns:
            (B, 1 + K + N, 2 h, 2 w) logits: of what is in no cell, of the cells of the background, of the objects. A
            descriptor of several frames has the highest of them; without any it has `never`.
        """
        position = sine_position(coarse.shape[1], coarse.shape[2], coarse.shape[3], coarse.device)
        for layer in self.layers:
            coarse = layer(coarse, position, history, embeddings)
        pixels = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        skip = self.shortcut(fine)
        # The skip is narrower: it is added to the first channels alone.
        pixels = torch.cat([pixels[:, : skip.shape[1]] + skip, pixels[:, skip.shape[1] :]], dim=1)
        pixels = self.refine(pixels)
        valid = history.background_valid[:, None].expand(-1, history.background.shape[1], -1)
        return torch.cat(
            [
                self.catch_all(pixels),
                _best(self.background_query(history.background), pixels, valid),
                _best(self.object_query(history.objects), pixels, history.objects_valid),
            ],
            dim=1,
        )


def _joined(objects: Tensor, background: Tensor) -> Tensor:
    """(B, N, T, ...) and (B, K, T, ...) -> (B, (N + K) * T, ...)."""
    return torch.cat([objects, background], dim=1).flatten(1, 2)


def _best(descriptors: Tensor, pixels: Tensor, valid: Tensor) -> Tensor:
    """Scaled products of (B, N, T, C) descriptors and (B, C, h, w) pixels, the highest of T: (B, N, h, w)."""
    logits = torch.einsum("bntc,bchw->bnthw", descriptors, pixels) / math.sqrt(pixels.shape[1])
    return logits.masked_fill(~valid[:, :, :, None, None], never(logits)).amax(dim=2)
