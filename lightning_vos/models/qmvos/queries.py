"""QMVOS's object queries: made of one frame, they become the filters of the next (QMVOS, Sec. 2.2 and 2.3).

Shapes: B batch, N object slots, C channels of a query, h w grid of stride 16, H W network size.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS, _HEADS, _WIDENING = 32, 8, 4
_EPSILON = 0.0005


class ScaleAwareInteraction(nn.Module):
    """SIM: masked means of features of two scales, which then look at one another; one query an object.

    Differs from the paper: masks are sampled at every eighth pixel, not pooled; convolutions have group norms, and one
    projects the coarse features first (published code).

    Args:
        frame_channels: Of the frame's features at strides 16 and 8.
        channels: C.
    """

    def __init__(self, frame_channels: tuple[int, int] = (1024, 512), channels: int = 256) -> None:
        super().__init__()
        self.project = nn.Conv2d(frame_channels[0], channels, 1)
        self.enlarge = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.GroupNorm(_GROUPS, channels))
        self.fuse = nn.Sequential(
            nn.Conv2d(channels + frame_channels[1], channels, 1, bias=False), nn.GroupNorm(_GROUPS, channels)
        )
        self.attention = nn.MultiheadAttention(channels, _HEADS, batch_first=True)
        self.norm_attention = nn.LayerNorm(channels)
        self.feed = _feed(channels)
        self.norm_feed = nn.LayerNorm(channels)

    def forward(self, coarse: Tensor, middle: Tensor, planes: Tensor, valid: Tensor) -> Tensor:
        """Queries (B, N, C).

        Args:
            coarse: (B, frame_channels[0], h, w).
            middle: (B, frame_channels[1], 2 h, 2 w).
            planes: (B, N, H, W) in {0, 1}.
            valid: (B, N) bool, slots that hold an object; the others are not looked at.
        """
        pooled = self.pool(self.fused(coarse, middle), planes)
        attended, _ = self.attention(pooled, pooled, pooled, key_padding_mask=_hidden(valid), need_weights=False)
        queries = self.norm_attention(pooled + attended)
        return self.norm_feed(queries + self.feed(queries))

    def fused(self, coarse: Tensor, middle: Tensor) -> Tensor:
        """Features of both scales, (B, C, 2 h, 2 w)."""
        enlarged = F.interpolate(self.project(coarse), scale_factor=2, mode="bilinear", align_corners=True)
        return self.fuse(torch.cat([self.enlarge(enlarged), middle], dim=1))

    @staticmethod
    def pool(fused: Tensor, planes: Tensor) -> Tensor:
        """Mean features (B, N, C) of each mask; 0 where it is empty."""
        masks = F.interpolate(planes, fused.shape[2:], mode="nearest").flatten(2)
        return masks @ fused.flatten(2).transpose(1, 2) / (masks.sum(dim=2, keepdim=True) + _EPSILON)


class QueryContentInteraction(nn.Module):
    """QCIM: queries look at one another, then at what the decoder makes of the frame and of all objects.

    Differs from the paper: it reads the decoder's fusion of frame, memory and hidden state, not the memory's values
    alone (published code).

    Args:
        in_channels: Of the decoder's features.
        channels: C.
    """

    def __init__(self, in_channels: int = 512, channels: int = 256) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, channels, 1)
        self.self_attention = nn.MultiheadAttention(channels, _HEADS, batch_first=True)
        self.norm_self = nn.LayerNorm(channels)
        self.cross_attention = nn.MultiheadAttention(channels, _HEADS, batch_first=True)
        self.norm_cross = nn.LayerNorm(channels)
        self.feed = _feed(channels)
        self.norm_feed = nn.LayerNorm(channels)

    def forward(self, queries: Tensor, coarse: Tensor, valid: Tensor) -> Tensor:
        """Filters (B, N, C) of (B, N, C) queries and (B, N, in, h, w) features of the decoder."""
        content = self.project(coarse.flatten(0, 1)).unflatten(0, coarse.shape[:2])  # (B, N, C, h, w)
        tokens = content.flatten(3).transpose(2, 3).flatten(1, 2)  # object by object
        hidden = _hidden(valid)
        attended, _ = self.self_attention(queries, queries, queries, key_padding_mask=hidden, need_weights=False)
        queries = self.norm_self(queries + attended)
        positions = content.shape[3] * content.shape[4]
        attended, _ = self.cross_attention(
            queries, tokens, tokens, key_padding_mask=hidden.repeat_interleave(positions, dim=1), need_weights=False
        )
        queries = self.norm_cross(queries + attended)
        return self.norm_feed(queries + self.feed(queries))


class Queries(nn.Module):
    """The two parts that QMVOS adds to XMem.

    Args:
        source: Which frame's queries a frame is segmented with: the one before, or the first for ever (Table 3e).
        on_entry: What becomes of the queries of others when an object enters later: `official` makes them of empty
            masks, `repaired` of their predicted ones.
        frame_channels: Of the backbone's maps at strides 16 and 8.
    """

    def __init__(
        self,
        source: Literal["previous", "first"] = "previous",
        on_entry: Literal["official", "repaired"] = "official",
        frame_channels: tuple[int, int] = (1024, 512),
    ) -> None:
        super().__init__()
        self.source, self.on_entry, self.frame_channels = source, on_entry, tuple(frame_channels)
        self.sim = ScaleAwareInteraction(frame_channels)
        self.qcim = QueryContentInteraction()


def _feed(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, _WIDENING * channels), nn.ReLU(), nn.Linear(_WIDENING * channels, channels)
    )


def _hidden(valid: Tensor) -> Tensor:
    """(B, N) slots that nobody looks at; of a clip without objects none, for a softmax needs one."""
    return ~valid & valid.any(dim=1, keepdim=True)
