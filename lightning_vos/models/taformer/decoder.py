"""The decoder: one query an instance and its box queries in every frame (SeqFormer, Sec. 3.2; TAFormer, Sec. 3.3).

Shapes: B clips, T frames, Q queries, L layers, S levels, P tokens of all levels of a frame, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torchvision.ops import MLP

from lightning_vos.models.taformer.deformable_attention import DeformableAttention, Shapes, linear
from lightning_vos.models.taformer.encoder import FeedForward

TemporalWeights = Literal["shared", "per_layer", "tied"]
_POINTS = 4
_EDGE = 1e-5  # coordinates are held that far from 0 and 1 before their logit is taken


@dataclass(frozen=True)
class DecoderSettings:
    """How box queries of different frames talk to each other.

    Attributes:
        temporal_decoder: Whether the box queries of an instance attend to each other over the frames; if not, it is
            SeqFormer's decoder.
        temporal_weights: Whose weights that attention has: its own, one set for all layers (`shared`, which the
            paper's numbers of parameters agree with) or a set each (`per_layer`); or those of the layer's attention
            within a frame (`tied`).
    """

    temporal_decoder: bool = True
    temporal_weights: TemporalWeights = "shared"

    def __post_init__(self) -> None:
        if self.temporal_weights not in get_args(TemporalWeights):
            raise ValueError(
                f"DecoderSettings.temporal_weights is {self.temporal_weights!r}, expected one of "
                f"{', '.join(get_args(TemporalWeights))}"
            )


class DecoderOutput(NamedTuple):
    """What each layer of the decoder says."""

    instances: Tensor  # (L, B, Q, C) instance queries
    box_queries: Tensor  # (L, B, T, Q, C)
    references: Tensor  # (L, B, T, Q, 2) of (x, y) that the layer looked around, in [0, 1] of what is not padded
    boxes: Tensor  # (L, B, T, Q, 4) of (centre x, centre y, width, height), likewise


class SelfAttention(nn.Module):
    """Queries look at each other, with a residual and a norm behind.

    Args:
        channels: C.
        heads: Of the attention.
        dropout: Of its weights and behind it.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        nn.init.xavier_uniform_(self.attention.out_proj.weight)
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, positions: Tensor) -> Tensor:
        """Update (N, n, C) queries, each of which sees the n of its row; positions are no part of values."""
        keys = queries + positions
        seen, _ = self.attention(keys, keys, queries, need_weights=False)
        return self.norm(queries + self.dropout(seen))


class DecoderLayer(nn.Module):
    """Instance queries and box queries look at each other, then box queries at the frames, and report to instances.

    Args:
        channels: C.
        heads: Of all attentions.
        levels: S.
        feed: Channels between the layers of the feed-forward parts.
        dropout: Of all parts.
    """

    def __init__(self, channels: int, heads: int, levels: int, feed: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = SelfAttention(channels, heads, dropout)
        self.box_self_attention = SelfAttention(channels, heads, dropout)
        self.cross_attention = DeformableAttention(channels, heads, levels, _POINTS)
        self.cross_attention_norm = nn.LayerNorm(channels)
        self.feed = FeedForward(channels, feed, dropout)
        self.box_output_proj = linear(channels, channels)
        self.box_cross_attention_norm = nn.LayerNorm(channels)
        self.box_feed = FeedForward(channels, feed, dropout)
        self.frame_weights = linear(channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        instances: Tensor,
        boxes: Tensor,
        positions: Tensor,
        references: Tensor,
        memory: Sequence[Tensor],
        padding: Tensor,
        shapes: Shapes,
    ) -> tuple[Tensor, Tensor]:
        """Update instance queries and box queries.

        Args:
            instances: (B, Q, C).
            boxes: (B, T, Q, C), or (B, 1, Q, C) where they are the same in all frames.
            positions: (Q, C) of the queries.
            references: (B, T, Q, S, 2 or 4), as `DeformableSampling.read` takes them.
            memory: (B, P, C) tokens of each of the T frames.
            padding: (B, P) bool.
            shapes: (height, width) of each level.

        Returns:
            (B, Q, C) and (B, T, Q, C).
        """
        instances = self.self_attention(instances, positions)
        boxes = self.box_self_attention(boxes.flatten(0, 1), positions).unflatten(0, boxes.shape[:2])
        queries = (boxes + positions).expand(-1, len(memory), -1, -1)
        seen = torch.stack(
            [
                self.cross_attention.read(
                    queries[:, time], references[:, time], self.cross_attention.values_of(tokens, padding), shapes
                )
                for time, tokens in enumerate(memory)
            ],
            dim=1,
        )
        boxes = self.box_feed(self.box_cross_attention_norm(boxes + self.dropout(self.box_output_proj(seen))))
        weights = self.frame_weights(boxes).softmax(dim=1)
        report = (weights * self.cross_attention.output_proj(seen)).sum(dim=1)
        return self.feed(self.cross_attention_norm(instances + self.dropout(report))), boxes


class Decoder(nn.Module):
    """Refines queries, and after each layer the boxes of every frame.

    In the first layer the box queries are those of the instances, the same in all frames, so that attention over
    frames begins with the second.

    Args:
        channels: C.
        heads: Of all attentions.
        levels: S.
        layers: Number of layers.
        feed: Channels between the layers of the feed-forward parts.
        dropout: Of all layers.
        settings: How box queries of different frames talk to each other.
    """

    def __init__(
        self,
        channels: int = 256,
        heads: int = 8,
        levels: int = 4,
        layers: int = 6,
        feed: int = 1024,
        dropout: float = 0.1,
        settings: DecoderSettings = DecoderSettings(),
    ) -> None:
        super().__init__()
        self.settings = settings
        self.layers = nn.ModuleList(DecoderLayer(channels, heads, levels, feed, dropout) for _ in range(layers))
        self.box_heads = nn.ModuleList(_box_head(channels, is_first=layer == 0) for layer in range(layers))
        own = {"shared": min(1, layers - 1), "per_layer": layers - 1, "tied": 0}[settings.temporal_weights]
        self.temporal_attentions = nn.ModuleList(
            SelfAttention(channels, heads, dropout) for _ in range(own if settings.temporal_decoder else 0)
        )

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        memory: Sequence[Tensor],
        padding: Tensor,
        shapes: Shapes,
        valid_ratios: Tensor,
    ) -> DecoderOutput:
        """Decode B clips.

        Args:
            queries: (Q, C), of instances and boxes alike.
            positions: (Q, C) of the queries.
            references: (Q, 2) of (x, y) in [0, 1], where they look first.
            memory: (B, P, C) tokens of each of the T frames.
            padding: (B, P) bool, True where a token is padding.
            shapes: (height, width) of each level.
            valid_ratios: (B, S, 2), the share of columns and rows of each level that are no padding.
        """
        B, T = padding.shape[0], len(memory)
        instances = queries.expand(B, -1, -1)
        box_queries = instances[:, None]
        boxes = references.expand(B, T, -1, -1)
        ratios = valid_ratios[:, None, None]
        outputs = []
        for number, (layer, box_head) in enumerate(zip(self.layers, self.box_heads, strict=True)):
            looked_at = boxes
            if number > 0 and self.settings.temporal_decoder:
                box_queries = self._across_frames(number, box_queries, positions)
            scaled = looked_at[:, :, :, None] * ratios.repeat(1, 1, 1, 1, looked_at.shape[3] // 2)
            instances, box_queries = layer(instances, box_queries, positions, scaled, memory, padding, shapes)
            refined = _refine(looked_at, box_head(box_queries))
            outputs.append((instances, box_queries, looked_at[..., :2], refined))
            boxes = refined.detach()
        return DecoderOutput(*(torch.stack(parts) for parts in zip(*outputs, strict=True)))

    def _across_frames(self, number: int, box_queries: Tensor, positions: Tensor) -> Tensor:
        """Let the (B, T, Q, C) box queries of an instance look at each other, over all frames."""
        own = self.temporal_attentions
        attention: Any = own[min(number, len(own)) - 1] if len(own) else self.layers[number].box_self_attention
        rows = box_queries.transpose(1, 2)
        seen = attention(rows.flatten(0, 1), positions.repeat(len(rows), 1)[:, None])
        return seen.unflatten(0, rows.shape[:2]).transpose(1, 2)


def _box_head(channels: int, *, is_first: bool) -> MLP:
    """Three layers that change nothing at the start; the first box then is an eighth as high and wide as the frame."""
    head = MLP(channels, [channels, channels, 4])
    *_, last = (layer for layer in head if isinstance(layer, nn.Linear))
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    if is_first:
        nn.init.constant_(last.bias[2:], -2.0)
    return head


def _refine(boxes: Tensor, change: Tensor) -> Tensor:
    """Move (..., 2) points or (..., 4) boxes in [0, 1] by (..., 4) logits: boxes."""
    known = torch.logit(boxes, _EDGE)
    return torch.cat([change[..., : known.shape[-1]] + known, change[..., known.shape[-1] :]], dim=-1).sigmoid()
