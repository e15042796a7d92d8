"""Modulated cross-attention (MCA): how MAVOS folds a new frame into a memory of constant size (paper Sec. 3.2).

Shapes: B batch, h w feature grid, n = h * w tokens, C channels, L focal levels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch.nn.functional as F
from torch import Tensor, nn

ValueLayout = Literal["official", "spatial"]


class Modulation(NamedTuple):
    """The gated context of a frame."""

    values: Tensor  # (B, C, h, w), after the 1x1 convolution
    gates: Tensor  # (B, L + 1, h, w), raw linear outputs


class FocalContext(nn.Module):
    """Context of each position at several reaches, gated and summed (paper Eq. 3 to 5).

    The global term passes through GELU and the gates are unbounded, as in the published code; the paper has neither.

    Args:
        channels: C.
        levels: Focal levels L; level l sees a depth-wise kernel of 3 + 2 l.

    Raises:
        ValueError: if there is no level.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"FocalContext.levels is {levels}, expected at least 1 focal level")
        self.channels, self.levels = channels, levels
        self.linear = nn.Linear(channels, channels + levels + 1)
        self.focal = nn.ModuleList(
            nn.Conv2d(channels, channels, 3 + 2 * level, padding=1 + level, groups=channels, bias=False)
            for level in range(levels)
        )
        self.value = nn.Conv2d(channels, channels, 1)

    def forward(self, context: Tensor, size: tuple[int, int]) -> Modulation:
        """Focal context of (B, n, C) tokens on a grid of `size`."""
        context, gates = self.linear(context).split([self.channels, self.levels + 1], dim=2)
        gates = gates.transpose(1, 2).unflatten(2, size)
        level = context.transpose(1, 2).unflatten(2, size)
        modulated = 0
        for number, convolution in enumerate(self.focal):
            level = F.gelu(convolution(level))
            modulated = modulated + level * gates[:, number : number + 1]
        modulated = modulated + F.gelu(level.mean(dim=(2, 3), keepdim=True)) * gates[:, self.levels :]
        return Modulation(self.value(modulated), gates)


class ModulatedCrossAttention(nn.Module):
    """Attention from a new memory to the old one whose values are focally modulated context (paper Eq. 6).

    Args:
        channels: C.
        heads: Number of attention heads.
        levels: As `FocalContext`.
        value_layout: `official` reinterprets the (C, h, w) memory of the values as (n, C) without transposing, as the
            published code and checkpoints do; `spatial` gives each position its own feature, as Eq. 6 reads.
            Differs from the paper: the default is `official`.

    Raises:
        ValueError: if an option is out of its range.
    """

    def __init__(self, channels: int, heads: int = 4, levels: int = 2, value_layout: ValueLayout = "official") -> None:
        super().__init__()
        layouts = get_args(ValueLayout)
        if heads < 1 or channels % heads or value_layout not in layouts:
            raise ValueError(
                f"ModulatedCrossAttention: heads is {heads}, value_layout is {value_layout!r};\n"
                f"  expected a divisor of {channels} channels and one of {', '.join(layouts)}"
            )
        self.heads, self.value_layout = heads, value_layout
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.context = FocalContext(channels, levels)
        self.projection = nn.Linear(channels, channels)

    def forward(self, new: Tensor, context: Tensor, size: tuple[int, int]) -> Tensor:
        """Attend from the (B, n, C) new memory to the (B, n, C) old one; (B, n, C)."""
        values = self.context(context, size).values
        tokens = values.reshape(new.shape) if self.value_layout == "official" else values.flatten(2).transpose(1, 2)
        query, key, tokens = (
            x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (self.query(new), self.key(context), tokens)
        )
        attended = F.scaled_dot_product_attention(query, key, tokens)
        return self.projection(attended.transpose(1, 2).flatten(2))
