"""Modulated cross-attention (MCA): how MAVOS folds a new frame into a memory of constant size (paper Sec. 3.2).

Shapes: B batch, h w feature grid, n = h * w tokens, C channels, L focal levels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

ValueLayout = Literal["official", "spatial"]


class Modulation(NamedTuple):
    """The gated context of a frame."""

    values: Tensor  # (B, C, h, w), after the 1x1 convolution
    gates: Tensor  # (B, L + 1, h, w), raw linear outputs


class ModulatedCrossAttention(nn.Module):
    """Attention from a new memory to the old one whose values are focally modulated context (paper Eq. 3 to 6).

    Args:
        channels: C.
        heads: Number of attention heads.
        levels: Focal levels L; level l sees a depth-wise kernel of 3 + 2 l.
        value_layout: `official` reinterprets the (C, h, w) memory of the values as (n, C) without transposing, as the
            published code and checkpoints do; `spatial` gives each position its own feature, as Eq. 6 reads.
            Differs from the paper: the default is `official`.

    The global term passes through GELU and the gates are unbounded, as in the published code; the paper has neither.
    """

    def __init__(self, channels: int, heads: int = 4, levels: int = 2, value_layout: ValueLayout = "official") -> None:
        super().__init__()
        layouts = get_args(ValueLayout)
        if heads < 1 or channels % heads or levels < 1 or value_layout not in layouts:
            raise ValueError(
                f"ModulatedCrossAttention: heads is {heads}, levels is {levels}, value_layout is {value_layout!r};\n"
                f"  expected a divisor of {channels} channels, at least 1 focal level, and one of {', '.join(layouts)}"
            )
        self.channels, self.heads, self.levels, self.value_layout = channels, heads, levels, value_layout
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.context = nn.Linear(channels, channels + levels + 1)
        self.focal = nn.ModuleList(
            nn.Conv2d(channels, channels, 3 + 2 * level, padding=1 + level, groups=channels, bias=False)
            for level in range(levels)
        )
        self.value = nn.Conv2d(channels, channels, 1)
        self.projection = nn.Linear(channels, channels)

    def modulate(self, context: Tensor, size: tuple[int, int]) -> Modulation:
        """Focal context of (B, n, C) tokens on a grid of `size`."""
        context, gates = self.context(context).split([self.channels, self.levels + 1], dim=2)
        gates = gates.transpose(1, 2).unflatten(2, size)
        level = context.transpose(1, 2).unflatten(2, size)
        modulated = 0
        for number, convolution in enumerate(self.focal):
            level = F.gelu(convolution(level))
            modulated = modulated + level * gates[:, number : number + 1]
        modulated = modulated + F.gelu(level.mean(dim=(2, 3), keepdim=True)) * gates[:, self.levels :]
        return Modulation(self.value(modulated), gates)

    def forward(self, new: Tensor, context: Tensor, size: tuple[int, int]) -> Tensor:
        """Attend from the (B, n, C) new memory to the (B, n, C) old one; (B, n, C)."""
        query, key = (
            linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for linear, x in ((self.query, new), (self.key, context))
        )
        values = self.modulate(context, size).values
        tokens = values.reshape(new.shape) if self.value_layout == "official" else values.flatten(2).transpose(1, 2)
        tokens = tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, tokens)
        return self.projection(attended.transpose(1, 2).flatten(2))


class MCABlock(nn.Module):
    """The transformer block around modulated cross-attention that makes the next dynamic memory of one slot.

    Differs from the paper: Eq. 6 shows the attention alone; the published block is pre-norm with residual and MLP.

    Args:
        channels: C of the slot (keys, values or identity values).
        heads: As `ModulatedCrossAttention`.
        levels: As `ModulatedCrossAttention`.
        value_layout: As `ModulatedCrossAttention`.
        drop_path: Probability of skipping a branch for a sample in training.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 4,
        levels: int = 2,
        value_layout: ValueLayout = "official",
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        self.norm_new = nn.LayerNorm(channels)
        self.norm_context = nn.LayerNorm(channels)
        self.attention = ModulatedCrossAttention(channels, heads, levels, value_layout)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = DropPath(drop_path)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, new: Tensor, context: Tensor, size: tuple[int, int]) -> Tensor:
        """Fold the (B, n, C) `context`, the old dynamic memory, into the (B, n, C) `new` one."""
        attended = self.attention(self.norm_new(new), self.norm_context(context), size)
        new = new + self.drop_path(attended)
        return new + self.drop_path(self.mlp(self.norm_mlp(new)))
