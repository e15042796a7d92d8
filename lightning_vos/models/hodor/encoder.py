"""HODOR's encoder: features of a frame and a mask of each object in, one descriptor of each object out.

Shapes: B batch, N object slots, K background cells, Q = K + N queries, h w feature grid, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_vos.models.hodor.soft_masked_attention import STRENGTHS, Masking, SoftMaskedAttention

_GRIDS = {1: (1, 1), 2: (1, 2), 4: (2, 2), 9: (3, 3), 12: (3, 4), 16: (4, 4)}
_DROPOUT = 0.1
_WIDENING = 4  # of the feed-forward network


class Descriptors(NamedTuple):
    """What is kept of a frame: the background first by itself, then the objects."""

    background: Tensor  # (B, K, C)
    objects: Tensor  # (B, N, C)


def background_cells(count: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """The cells of a grid, each of which is described by itself as background; the last row and column take the rest.

    Args:
        count: K: 1, 2, 4, 9, 12 or 16.
        height: Of the map.
        width: Likewise.
        device: Where the cells shall lie.

    Returns:
        (K, height, width) float in {0, 1}, row by row.

    Raises:
        ValueError: if there is no grid of so many cells.

    Example:
        >>> background_cells(4, 3, 3)[3]
        tensor([[0., 0., 0.],
                [0., 1., 1.],
                [0., 1., 1.]])
    """
    if count not in _GRIDS:
        raise ValueError(f"There is no grid of {count} background cells: expected one of {', '.join(map(str, _GRIDS))}")
    rows, columns = _GRIDS[count]
    row = (torch.arange(height, device=device) // max(height // rows, 1)).clamp(max=rows - 1)
    column = (torch.arange(width, device=device) // max(width // columns, 1)).clamp(max=columns - 1)
    cell = columns * row[:, None] + column
    return (cell == torch.arange(count, device=device).view(-1, 1, 1)).float()


class EncoderLayer(nn.Module):
    """Descriptors look at one another, then at the pixels of their masks; a norm follows each part.

    Args:
        channels: C.
        masking: As `SoftMaskedAttention`.
        strengths: As `SoftMaskedAttention`.
        divided: As `SoftMaskedAttention`.
    """

    def __init__(
        self, channels: int, masking: Masking, strengths: Sequence[float] = STRENGTHS, *, divided: bool = False
    ) -> None:
        super().__init__()
        # First, for it refuses strengths that cannot be.
        self.masked_attention = SoftMaskedAttention(channels, masking, strengths, divided=divided, dropout=_DROPOUT)
        self.self_attention = nn.MultiheadAttention(channels, len(strengths), _DROPOUT, batch_first=True)
        self.feed = nn.Sequential(
            nn.Linear(channels, _WIDENING * channels),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(_WIDENING * channels, channels),
            nn.Dropout(_DROPOUT),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, queries: Tensor, embeddings: Tensor, pixels: Tensor, masks: Tensor, empty: Tensor) -> Tensor:
        """Update (B, Q, C) queries.

        Args:
            queries: (B, Q, C).
            embeddings: (Q, C), of the kind of each query.
            pixels: (B, h * w, C).
            masks: (B, Q, h * w) in [0, 1].
            empty: (B, Q) bool, slots that no query may look at.
        """
        norm_self, norm_masked, norm_feed = self.norms
        keys = queries + embeddings
        attended, _ = self.self_attention(keys, keys, queries, key_padding_mask=empty, need_weights=False)
        queries = norm_self(queries + self.dropout(attended))
        queries = norm_masked(queries + self.dropout(self.masked_attention(queries, pixels, pixels, masks)))
        return norm_feed(queries + self.feed(queries))


class ObjectEncoder(nn.Module):
    """Turns the features of a frame and masks into descriptors: means of features that soft-masked layers refine.

    Args:
        channels: C.
        layers: Number of layers, which start as copies of one.
        background: K, of a grid of `background_cells`.
        masking: As `SoftMaskedAttention`.
        strengths: As `SoftMaskedAttention`.
        divided: As `SoftMaskedAttention`.
    """

    def __init__(
        self,
        channels: int,
        layers: int = 5,
        background: int = 9,
        masking: Masking = "soft",
        strengths: Sequence[float] = STRENGTHS,
        *,
        divided: bool = False,
    ) -> None:
        super().__init__()
        background_cells(background, 1, 1)  # refuses a number without a grid
        self.object_embedding = nn.Parameter(torch.randn(channels))
        self.background_embedding = nn.Parameter(torch.randn(background, channels))
        layer = EncoderLayer(channels, masking, strengths, divided=divided)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(layers))

    def forward(self, features: Tensor, masks: Tensor, valid: Tensor) -> Descriptors:
        """Describe what masks show.

        Args:
            features: (B, C, h, w).
            masks: (B, K + N, h, w) in [0, 1]: of the background's cells, then of the objects.
            valid: (B, N) bool, slots that hold an object; what the others give means nothing.
        """
        cells = len(self.background_embedding)
        queries = initial_descriptors(features, masks, cells)
        objects = self.object_embedding.expand(masks.shape[1] - cells, -1)
        embeddings = torch.cat([self.background_embedding, objects])
        empty = torch.cat([valid.new_zeros(len(valid), cells), ~valid], dim=1)
        pixels, flat = features.flatten(2).transpose(1, 2), masks.flatten(2)
        for layer in self.layers:
            queries = layer(queries, embeddings, pixels, flat, empty)
        return Descriptors(queries[:, :cells], queries[:, cells:])


@torch.no_grad()
def initial_descriptors(features: Tensor, masks: Tensor, background: int) -> Tensor:
    """Mean features of the pixels of each mask above 0.5; no gradient passes.

    Where an object has no such pixel, the pixel of its highest value stands for it; a cell of the background is 0 then.

    Args:
        features: (B, C, h, w).
        masks: (B, Q, h, w) in [0, 1].
        background: How many masks, from the first on, are of the background.

    Returns:
        (B, Q, C) float32.
    """
    flat = masks.flatten(2)
    inside = flat > 0.5
    if flat.shape[1] > background:
        best = torch.zeros_like(inside[:, background:]).scatter_(2, flat[:, background:].argmax(2, keepdim=True), True)
        objects = inside[:, background:]
        inside = torch.cat([inside[:, :background], torch.where(objects.any(2, keepdim=True), objects, best)], dim=1)
    counts = inside.sum(dim=2, keepdim=True).clamp(min=1)
    with torch.autocast(features.device.type, enabled=False):  # sums over thousands of pixels
        return inside.float() @ features.float().flatten(2).transpose(1, 2) / counts


def leaves_trace(masks: Tensor) -> Tensor:
    """Whether (B, N, h, w) masks have a pixel above 0: (B, N) bool."""
    return masks.flatten(2).any(dim=2)
