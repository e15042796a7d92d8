"""Gated propagation, the attention of DeAOT and MAVOS: attend, gate, mix locally, project.

Shapes: B batch, h w feature grid, n = h * w tokens of a frame (row-major), m tokens of memory, C channels, L window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_QUERIES = 512  # that read the long-term memory at a time


class GatedOutput(nn.Module):
    """What follows attention in every gated propagation: gate, 5x5 depth-wise convolution, projection.

    Args:
        inner: Channels of the attended values and of the gate.
        outer: Channels of the result.
        dropout: Probability of dropping a whole channel in training.
    """

    def __init__(self, inner: int, outer: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inner, inner, 5, padding=2, groups=inner, bias=False)
        self.dropout = nn.Dropout2d(dropout)
        self.projection = nn.Linear(inner, outer)

    def forward(self, values: Tensor, gate: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, n, inner) attended values and activated gate -> (B, n, outer)."""
        gated = (values * gate).transpose(1, 2).unflatten(2, size)
        mixed = self.dropout(self.depthwise(gated)).flatten(2).transpose(1, 2)
        return self.projection(mixed)


class GatedPropagation(nn.Module):
    """Global gated propagation from memory to the current frame (paper Sec. 3.1; DeAOT's GPM).

    Args:
        values: Channels of the values, visual and identity together.
        outer: Channels of the result.
    """

    def __init__(self, values: int, outer: int) -> None:
        super().__init__()
        self.output = GatedOutput(values, outer)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, size: tuple[int, int]) -> Tensor:
        """Attend from (B, n, C) to (B, m, C) keys with (B, m, values); (B, n, outer)."""
        # No fused kernel of a CPU takes values that are wider than keys: all weights of a part are held at once.
        parts = [F.scaled_dot_product_attention(part, key, value) for part in query.split(_QUERIES, dim=1)]
        return self.output(torch.cat(parts, dim=1), gate, size)


class LocalGatedPropagation(nn.Module):
    """Gated propagation from the window around each position of the previous frame, with relative positions.

    Args:
        keys: Channels of query and key.
        values: Channels of the values.
        outer: Channels of the result.
        window: Side L of the window, odd.
    """

    def __init__(self, keys: int, values: int, outer: int, window: int = 15) -> None:
        super().__init__()
        self.window = window
        self.relative = nn.Conv2d(keys, window**2, 1)
        self.output = GatedOutput(values, outer)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, size: tuple[int, int]) -> Tensor:
        """Attend from (B, n, C) to the (B, n, C) keys of another frame with (B, n, values); (B, n, outer)."""
        grid = query.transpose(1, 2).unflatten(2, size)
        relative = self.relative(grid).permute(0, 2, 3, 1)
        weights = local_weights(query.unflatten(1, size), key.unflatten(1, size), relative, self.window)
        attended = attend_window(weights, value.unflatten(1, size))
        return self.output(attended.flatten(1, 2), gate, size)


def local_weights(query: Tensor, key: Tensor, relative: Tensor, window: int) -> Tensor:
    """Attention weights of every position over the window around it; outside the map they are 0.

    Args:
        query: (B, h, w, C).
        key: (B, h, w, C).
        relative: (B, h, w, L * L) logits added for each offset, row-major from the upper left.
        window: L, odd.

    Returns:
        (B, h, w, L, L).
    """
    height, width = query.shape[1:3]
    padded = width + window - 1
    scores = _products(query * query.shape[-1] ** -0.5, _rows(key, window).transpose(2, 3))
    columns = _band(width, window, query.device).expand(*scores.shape[:3], window, window)
    logits = scores.unflatten(3, (window, padded)).gather(4, columns) + relative.unflatten(3, (window, window))
    reach = torch.arange(window, device=query.device) - window // 2
    rows = _inside(height, reach).view(height, 1, window, 1)
    inside = rows & _inside(width, reach).view(1, width, 1, window)
    logits = logits.masked_fill(~inside, torch.finfo(logits.dtype).min)
    return logits.flatten(3).softmax(dim=3).view_as(logits)


def attend_window(weights: Tensor, value: Tensor) -> Tensor:
    """Sum the values in the window around each position.

    The row of positions at y meets the rows y - L // 2 .. y + L // 2 of the padded map in one matrix product, from
    which the band of L columns around each position is used: memory grows with n * L * w, never with n * n.

    Args:
        weights: (B, h, w, L, L) of `local_weights`.
        value: (B, h, w, V).

    Returns:
        (B, h, w, V).
    """
    width, window = weights.shape[2], weights.shape[4]
    columns = _band(width, window, weights.device).expand(*weights.shape[:3], window, window)
    band = weights.new_zeros((*weights.shape[:4], width + window - 1)).scatter(4, columns, weights)
    return _products(band.flatten(3), _rows(value, window))


def _products(left: Tensor, rows: Tensor) -> Tensor:
    """Matrix products of (B, h, ...) pairs, clip by clip: over a batch at once, overlapping rows would be copied."""
    return torch.stack([a @ b for a, b in zip(left, rows, strict=True)])


def _rows(grid: Tensor, window: int) -> Tensor:
    """(B, h, w, C) -> (B, h, L * (w + L - 1), C), the L zero-padded rows around each row; a view without copies."""
    reach = window // 2
    padded = F.pad(grid, (0, 0, reach, reach, reach, reach))
    return padded.unfold(1, window, 1).permute(0, 1, 4, 2, 3).flatten(2, 3)


def _band(width: int, window: int, device: torch.device) -> Tensor:
    """(1, 1, w, 1, L): the padded column of each offset of each query."""
    columns = torch.arange(width, device=device)[:, None] + torch.arange(window, device=device)
    return columns.view(1, 1, width, 1, window)


def _inside(length: int, reach: Tensor) -> Tensor:
    position = torch.arange(length, device=reach.device)[:, None] + reach
    return (position >= 0) & (position < length)


class SelfGatedPropagation(nn.Module):
    """Gated propagation of a frame to itself, over both streams at once.

    Args:
        channels: Of each of the two streams.
        keys: Channels of query and key, which are one projection.
        values: Channels of the values of each stream.
    """

    def __init__(self, channels: int, keys: int, values: int) -> None:
        super().__init__()
        self.channels = channels
        self.query_key = nn.Linear(2 * channels, keys)
        self.values = nn.ModuleList(nn.Linear(channels, values) for _ in range(2))
        self.gates = nn.ModuleList(nn.Linear(channels, values) for _ in range(2))
        self.output = GatedOutput(2 * values, 2 * channels)

    def forward(self, streams: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, n, 2 * channels), visual then identity, in and out."""
        query = self.query_key(streams)
        halves = streams.split(self.channels, dim=2)
        value = F.silu(torch.cat([linear(half) for linear, half in zip(self.values, halves, strict=True)], dim=2))
        gate = F.silu(torch.cat([linear(half) for linear, half in zip(self.gates, halves, strict=True)], dim=2))
        return self.output(F.scaled_dot_product_attention(query, query, value), gate, size)
