"""The long short-term transformer (LSTT) of AOT-L: self attention, long- and short-term attention, feed-forward.

Shapes: B batch, h w feature grid, n = h * w tokens of a frame (row-major), m tokens of memory, C channels, L window.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from lightning_vos.models.mavos.attention import attend_window, local_weights
from lightning_vos.models.mavos.transformer import Transformer

_TEMPERATURE = 10_000


class AttentionMemory(NamedTuple):
    """What one layer remembers of one or several frames."""

    key: Tensor  # (B, m, C)
    value: Tensor  # (B, m, C), with the identity assignment


class AttentionCurrent(NamedTuple):
    """What one layer leaves of the frame that it has just seen, before its labels are known."""

    key: Tensor  # (B, n, C)
    value: Tensor  # (B, n, C), input of the values


class HeadedAttention(nn.Module):
    """Multi-head attention without input projections.

    Args:
        channels: C.
        heads: Number of heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(channels, channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from (B, n, C) to (B, m, C) keys with (B, m, C) values; (B, n, C)."""
        query, key, value = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        return self.projection(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class SelfAttention(HeadedAttention):
    """Multi-head attention of a frame to itself, with input projections.

    Args:
        channels: As `HeadedAttention`.
        heads: As `HeadedAttention`.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `HeadedAttention`."""
        return super().forward(self.query(query), self.key(key), self.value(value))


class LocalAttention(nn.Module):
    """Multi-head attention to the window around each position of the previous frame, with relative keys and values.

    Args:
        channels: C.
        heads: Number of heads.
        window: Side L of the window, odd.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative = nn.Conv2d(channels, heads * window**2, 1, groups=heads)
        self.relative_value = nn.Parameter(torch.zeros(heads, channels // heads, window**2))
        self.projection = nn.Linear(channels, channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, size: tuple[int, int]) -> Tensor:
        """Attend from (B, n, C) to the (B, n, C) keys and values of another frame; (B, n, C)."""
        relative = self.relative(query.transpose(1, 2).unflatten(2, size))
        relative = relative.unflatten(1, (self.heads, -1)).flatten(0, 1).permute(0, 2, 3, 1)
        query, key, value = (
            x.unflatten(2, (self.heads, -1)).transpose(1, 2).flatten(0, 1).unflatten(1, size)
            for x in (query, key, value)
        )  # (B * heads, h, w, C / heads)
        weights = local_weights(query, key, relative, self.window)
        offsets = weights.unflatten(0, (-1, self.heads)).flatten(4)
        biased = torch.einsum("bnhwl,ncl->bnhwc", offsets, self.relative_value)
        attended = attend_window(weights, value).unflatten(0, (-1, self.heads)) + biased
        return self.projection(attended.flatten(2, 3).transpose(1, 2).flatten(2))


class LSTTLayer(nn.Module):
    """One layer of AOT.

    Args:
        channels: C.
        heads: Heads of every attention.
        window: Side of the short-term window.
        drop_path: Probability of skipping self attention or feed-forward for a sample in training.
    """

    def __init__(self, channels: int, heads: int, window: int, drop_path: float) -> None:
        super().__init__()
        inner = 4 * channels
        self.self_norm = nn.LayerNorm(channels)
        self.self_attention = SelfAttention(channels, heads)
        self.norm = nn.LayerNorm(channels)
        self.query_key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.long_term = HeadedAttention(channels, heads)
        self.short_term = LocalAttention(channels, heads, window)
        self.feed_norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, inner)
        self.group_norm = nn.GroupNorm(32, inner)
        self.depthwise = nn.Conv2d(inner, inner, 5, padding=2, groups=inner, bias=False)
        self.contract = nn.Linear(inner, channels)
        self.drop_path = DropPath(drop_path)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def remember(self, current: AttentionCurrent, assignment: Tensor) -> AttentionMemory:
        """Join a frame with its (B, n, C) identity assignment."""
        return AttentionMemory(current.key, self.value(current.value + assignment))

    def forward(
        self,
        frame: Tensor,
        positions: Tensor,
        size: tuple[int, int],
        memories: tuple[AttentionMemory, AttentionMemory] | None,
        assignment: Tensor | None,
    ) -> tuple[Tensor, AttentionCurrent]:
        """Propagate into a (B, n, C) frame from its memories, or from itself where it is a reference.

        Args:
            frame: (B, n, C).
            positions: (n, C) position embedding.
            size: (h, w).
            memories: Long-term and short-term memory; None for a reference frame.
            assignment: (B, n, C) identity assignment of a reference frame; None otherwise.

        Returns:
            The (B, n, C) frame, and what `remember` needs of it.
        """
        normed = self.self_norm(frame)
        placed = normed + positions
        frame = frame + self.drop_path(self.self_attention(placed, placed, normed))
        normed = self.norm(frame)
        current = AttentionCurrent(self.query_key(normed), normed)
        if memories is None:
            assert assignment is not None
            memories = (self.remember(current, assignment),) * 2
        long, short = memories
        frame = frame + self.long_term(current.key, *long) + self.short_term(current.key, *short, size)
        hidden = self.expand(self.feed_norm(frame)).transpose(1, 2).unflatten(2, size)
        mixed = self.depthwise(F.gelu(self.group_norm(hidden))).flatten(2).transpose(1, 2)
        return frame + self.drop_path(self.contract(mixed)), current


class LSTT(Transformer):
    """A stack of `LSTTLayer`; the decoder sees the frame and every layer's normalised output.

    A layer remembers keys and values of C channels.

    Args:
        layers: Number of layers.
        channels: C.
        window: Side of the short-term window.
        heads: Heads of every attention.
        drop_path: As `LSTTLayer`.

    Raises:
        ValueError: if C is not a multiple of the heads and of 8.
    """

    normed_assignment = False

    def __init__(self, layers: int, channels: int, window: int = 15, heads: int = 8, drop_path: float = 0.1) -> None:
        super().__init__()
        if heads < 1 or channels % heads or channels % 8:
            raise ValueError(f"LSTT: channels is {channels}, heads is {heads}; expected a multiple of heads and of 8")
        self.parts, self.out_channels = (channels, channels), (1 + layers) * channels
        self.layers = nn.ModuleList(LSTTLayer(channels, heads, window, drop_path) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(layers))

    def forward(
        self,
        frame: Tensor,
        size: tuple[int, int],
        memories: list[tuple[AttentionMemory, AttentionMemory]] | None = None,
        assignment: Tensor | None = None,
    ) -> tuple[Tensor, tuple[AttentionCurrent, ...]]:
        """As `Transformer`."""
        positions = sine_positions(*size, frame.shape[2], frame.device)
        outputs, currents = [frame], []
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            memory = None if memories is None else memories[number]
            frame, current = layer(frame, positions, size, memory, assignment)
            outputs.append(norm(frame))
            currents.append(current)
        return torch.cat(outputs, dim=2), tuple(currents)

    def remember(self, currents: tuple[AttentionCurrent, ...], assignment: Tensor) -> tuple[AttentionMemory, ...]:
        """As `Transformer`."""
        layers = (cast("LSTTLayer", layer) for layer in self.layers)
        return tuple(layer.remember(current, assignment) for layer, current in zip(layers, currents, strict=True))


def sine_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """(h * w, C) sine embedding of DETR: half of the channels for y, half for x, each from 0 to 2 pi over the map."""
    half = channels // 2
    frequencies = _TEMPERATURE ** (-2 * torch.div(torch.arange(half, device=device), 2, rounding_mode="floor") / half)
    axes = []
    for length in (height, width):
        angles = torch.linspace(0, 2 * math.pi, length, device=device)[:, None] * frequencies
        axes.append(torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1))
    y, x = axes
    return torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], dim=2).flatten(0, 1)
