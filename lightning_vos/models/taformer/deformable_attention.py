"""Multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021), over the maps of one frame or several.

Shapes: N batch, P tokens of all maps, R queries, M heads, D channels of a head, S maps (levels, times frames where
several are sampled), K points of a map, C = M * D channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Shapes = Sequence[tuple[int, int]]
"""(height, width) of maps whose positions stand in one row, map after map."""


def linear(inputs: int, outputs: int, *, zero_bias: bool = False) -> nn.Linear:
    """A linear layer with Xavier uniform weights, as the published transformer starts with throughout."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    if zero_bias:
        nn.init.zeros_(layer.bias)
    return layer


def sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Read weighted points of several maps, bilinearly; outside of a map there are zeros.

    At least float32 is used also under autocast, for a location in half precision is several pixels off. What was
    sampled, M * S * K * D numbers a query, is not kept for the backward pass but sampled again.

    Args:
        value: (N, P, M, D): the positions of all maps, row by row, map after map.
        shapes: (height, width) of the S maps.
        locations: (N, R, M, S, K, 2) of (x, y); 0 and 1 are the outer edges of a map.
        weights: (N, R, M, S, K).

    Returns:
        (N, R, M * D), the heads side by side.

    Example:
        >>> value = torch.arange(6.0).view(1, 6, 1, 1)  # one map of 2 x 3
        >>> sample(value, [(2, 3)], torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1))
        tensor([[[2.5000]]])
    """
    if torch.is_grad_enabled():
        return checkpoint(_sample, value, shapes, locations, weights, use_reentrant=False, preserve_rng_state=False)
    return _sample(value, shapes, locations, weights)


def _sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    N, R, M = locations.shape[:3]
    dtype = torch.promote_types(value.dtype, torch.float32)
    with torch.autocast(value.device.type, enabled=False):
        # Queries stand in the last axis: sampling and weighting then run through long rows, which takes half the time.
        grids = 2 * locations.to(dtype).permute(3, 0, 2, 4, 1, 5).flatten(1, 2).contiguous() - 1  # (S, N * M, K, R, 2)
        factors = weights.to(dtype).permute(3, 0, 2, 4, 1).flatten(1, 2).contiguous()  # (S, N * M, K, R)
        read = value.new_zeros((N * M, value.shape[3], R), dtype=dtype)
        levels = value.split([height * width for height, width in shapes], dim=1)
        for tokens, shape, grid, factor in zip(levels, shapes, grids, factors, strict=True):
            maps = tokens.to(dtype).permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, shape)
            found = F.grid_sample(maps, grid, align_corners=False)  # (N * M, D, K, R)
            read = read + (found * factor[:, None]).sum(dim=2)
    return read.unflatten(0, (N, M)).flatten(1, 2).transpose(1, 2)


class DeformableSampling(nn.Module):
    """Queries look at a few points of each map, which they choose themselves; without projections of what they read.

    All points of a head share one softmax, over frames and levels alike.

    Args:
        channels: C.
        heads: M.
        levels: Maps of a frame.
        points: K.
        frames: How many frames are looked at; each has its own offsets and weights.
    """

    def __init__(self, channels: int, heads: int, levels: int, points: int, frames: int = 1) -> None:
        super().__init__()
        if channels % heads or min(levels, points, frames) < 1:
            raise ValueError(
                f"DeformableSampling: channels={channels}, heads={heads}, levels={levels}, points={points}, "
                f"frames={frames}; expected heads that divide the channels, and positive numbers"
            )
        self.heads, self.frames, self.levels, self.points = heads, frames, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * frames * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * frames * levels * points)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Heads look in as many directions, the points of one at growing distances, with equal weights."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=1)
        directions = directions / directions.abs().amax(dim=1, keepdim=True)
        offsets = directions[:, None, None] * torch.arange(1, 1 + self.points)[:, None]
        self.sampling_offsets.bias.copy_(offsets.expand(-1, self.frames * self.levels, -1, -1).flatten())
        for zeros in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            nn.init.zeros_(zeros)

    def read(
        self, queries: Tensor, references: Tensor, values: Tensor, shapes: Shapes, frames: Sequence[int] | None = None
    ) -> Tensor:
        """Read (N, R, C).

        Args:
            queries: (N, R, C), position included.
            references: (N, R, levels, 2) of (x, y), which offsets in positions of a map are added to; or
                (N, R, levels, 4) of (centre x, centre y, width, height), half of whose sides K offsets make.
            values: (N, P, M, D) of the frames one after the other.
            shapes: (height, width) of the levels of a frame.
            frames: Which of the frames there are, in ascending order; None for all. The others get no weight.
        """
        there = list(range(self.frames) if frames is None else frames)
        slots = (self.heads, self.frames, self.levels, self.points)
        offsets = self.sampling_offsets(queries).unflatten(2, (*slots, 2))
        logits = self.attention_weights(queries).unflatten(2, slots)
        if len(there) < self.frames:
            offsets, logits = offsets[:, :, :, there], logits[:, :, :, there]
        weights = logits.flatten(3).softmax(dim=3).view(logits.shape)
        centres = references[:, :, None, None, :, None, :2]
        if references.shape[3] == 2:
            sides = torch.tensor([[width, height] for height, width in shapes]).to(references)
            locations = centres + offsets / sides[:, None]
        else:
            locations = centres + offsets / self.points * references[:, :, None, None, :, None, 2:] * 0.5
        return sample(values, [*shapes] * len(there), locations.flatten(3, 4), weights.flatten(3, 4))


class DeformableAttention(DeformableSampling):
    """Deformable attention to one frame, with projections of values and of what is read.

    Args:
        channels: C.
        heads: M.
        levels: S.
        points: K.
    """

    def __init__(self, channels: int = 256, heads: int = 8, levels: int = 4, points: int = 4) -> None:
        super().__init__(channels, heads, levels, points)
        self.value_proj = linear(channels, channels, zero_bias=True)
        self.output_proj = linear(channels, channels, zero_bias=True)

    def forward(self, queries: Tensor, references: Tensor, values: Tensor, shapes: Shapes) -> Tensor:
        """Attend, and project: (N, R, C); arguments as in `read`, with values of `values_of`."""
        return self.output_proj(self.read(queries, references, values, shapes))

    def values_of(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Project (N, P, C) tokens to (N, P, M, D) values, which are zero where (N, P) `padding` is True."""
        return split_values(self.value_proj(tokens), padding, self.heads)


def split_values(projected: Tensor, padding: Tensor, heads: int) -> Tensor:
    """(N, P, C) projected tokens as (N, P, M, D) values, which are zero where (N, P) `padding` is True."""
    return projected.masked_fill(padding[:, :, None], 0.0).unflatten(2, (heads, -1))
