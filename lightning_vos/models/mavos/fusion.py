"""How a new frame and the old dynamic memory become the next one: the block of the MCA, and what Table 6 puts into it.

Every operator takes the (B, n, C) new memory, the (B, n, C) old one as context, and the (h, w) of both.
Shapes: B batch, h w feature grid, n = h * w tokens, C channels, L window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

from lightning_vos.models.mavos.modulated_cross_attention import FocalContext


class FusionBlock(nn.Module):
    """The transformer block around an operator that makes the next dynamic memory of one slot.

    Differs from the paper: Eq. 6 shows the attention alone; the published block is pre-norm with residual and MLP.

    Args:
        channels: C of the slot (keys, values or identity values).
        attention: The operator.
        drop_path: Probability of skipping a branch for a sample in training.
    """

    def __init__(self, channels: int, attention: nn.Module, drop_path: float = 0.1) -> None:
        super().__init__()
        self.norm_new = nn.LayerNorm(channels)
        self.norm_context = nn.LayerNorm(channels)
        self.attention = attention
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


class CrossAttention(nn.Module):
    """Attention from the new memory to the old one: the MCA without its modulator (paper Table 6).

    No published code: the MCA with values that are one linear map of the context.

    Args:
        channels: C.
        heads: Number of attention heads.

    Raises:
        ValueError: if the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        _check_heads(channels, heads)
        self.heads = heads
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.projection = nn.Linear(channels, channels)

    def forward(self, new: Tensor, context: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, n, C)."""
        query, key, value = (
            x.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(new), self.key(context), self.value(context))
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.projection(attended.transpose(1, 2).flatten(2))


class FocalModulation(nn.Module):
    """The new memory times the focal context of the old one, without attention (paper Table 6).

    No published code: the query of focal modulation networks comes from the new memory, its context from the old one.

    Args:
        channels: C.
        levels: As `FocalContext`.
    """

    def __init__(self, channels: int, levels: int = 2) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.context = FocalContext(channels, levels)
        self.projection = nn.Linear(channels, channels)

    def forward(self, new: Tensor, context: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, n, C)."""
        modulator = self.context(context, size).values.flatten(2).transpose(1, 2)
        return self.projection(self.query(new) * modulator)


class GlobalContextAttention(nn.Module):
    """Attention to windows of the old memory, by the positions and by global queries, as in GC-ViT (paper Table 6).

    No published code and no description in the paper; here half of the heads ask with each position of the new memory
    in the window of that position, the other half with one set of L x L queries pooled from the whole new memory.

    Args:
        channels: C.
        heads: Number of attention heads, even.
        window: Side L of the windows.

    Raises:
        ValueError: if the heads are odd or do not divide the channels, or the window has no side.
    """

    def __init__(self, channels: int, heads: int = 4, window: int = 7) -> None:
        super().__init__()
        _check_heads(channels, heads)
        if heads % 2 or window < 1:
            raise ValueError(
                f"GlobalContextAttention: heads is {heads}, window {window}; expected an even number and one above 0"
            )
        self.heads, self.window = heads, window
        self.query = nn.Linear(channels, channels // 2)
        self.global_query = nn.Linear(channels, channels // 2)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.projection = nn.Linear(channels, channels)

    def forward(self, new: Tensor, context: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, n, C)."""
        window, (height, width) = self.window, size
        padded = (-(-height // window) * window, -(-width // window) * window)
        pooled = F.adaptive_avg_pool2d(new.transpose(1, 2).unflatten(2, size), window).flatten(2).transpose(1, 2)
        local = self._windows(self.query(new), size, padded)  # (B, windows, L * L, C / 2)
        shared = self.global_query(pooled)[:, None].expand_as(local)
        query, key, value = (
            x.unflatten(3, (self.heads, -1)).transpose(2, 3)
            for x in (
                torch.cat([local, shared], dim=3),
                self._windows(self.key(context), size, padded),
                self._windows(self.value(context), size, padded),
            )
        )
        inside = self._windows(new.new_ones(1, height * width, 1), size, padded)[..., 0] > 0  # padding is not seen
        attended = F.scaled_dot_product_attention(query, key, value, inside[:, :, None, None])
        grid = attended.transpose(2, 3).flatten(3).unflatten(2, (window, window))
        grid = grid.unflatten(1, (padded[0] // window, padded[1] // window)).transpose(2, 3)
        grid = grid.flatten(3, 4).flatten(1, 2)  # (B, H, W, C) of the padded map
        return self.projection(grid[:, :height, :width].flatten(1, 2))

    def _windows(self, tokens: Tensor, size: tuple[int, int], padded: tuple[int, int]) -> Tensor:
        """(B, n, C) -> (B, windows, L * L, C), zero-padded at the right and the bottom."""
        grid = F.pad(tokens.unflatten(1, size), (0, 0, 0, padded[1] - size[1], 0, padded[0] - size[0]))
        grid = grid.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window)).transpose(2, 3)
        return grid.flatten(3, 4).flatten(1, 2)


def _check_heads(channels: int, heads: int) -> None:
    if heads < 1 or channels % heads:
        raise ValueError(f"heads is {heads}, expected a divisor of {channels} channels")
