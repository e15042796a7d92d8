"""A vision transformer with a token for every class, and with a register.

Shapes: B images, C bands, H W pixels, K classes, h w patches of an image (N of them), T tokens, D channels, L layers,
M heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vos.errors import ConfigError

Interpolation = Literal["size", "published"]

_STD = 0.02  # of weights and tokens at the start
_PUBLISHED_OFFSET = 0.1  # that the published code adds to the size it asks for


@dataclass(frozen=True)
class ViTSettings:
    """The transformer; the defaults are ViT-B/16 as ImageNet's weights have it.

    Attributes:
        width: D.
        depth: L.
        heads: M of every layer; or of each layer, where closed heads have been removed.
        head_width: Channels of a head; `width / heads` by default, must be given with heads of each layer.
        patch: Side of a patch in pixels; what an image has beyond a multiple, right and below, is not looked at.
        bands: C, 3 for RGB, else the bands of a sensor.
        mlp_ratio: Hidden width of the feed-forward parts, in D.
        qkv_bias: Whether queries, keys and values have a bias.
        norm_eps: Of the layer norms.
        final_norm: Whether the last norm is applied. The published network has one that it never applies.
        grid: Patches a side of the positional table, which is square; published: 224 pixels / patch, rounded down.
        interpolation: How the positional table gets another size (bicubic): "size" samples it at the ratio of sizes;
            "published" at scale factors that are too large by 0.1 patches.

    Raises:
        ValueError: if the numbers do not go together.
    """

    width: int = 768
    depth: int = 12
    heads: int | tuple[int, ...] = 12
    head_width: int | None = None
    patch: int = 16
    bands: int = 3
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    final_norm: bool = True
    grid: int = 14
    interpolation: Interpolation = "size"

    def __post_init__(self) -> None:
        numbers = (self.width, self.depth, self.patch, self.bands, self.grid)
        if min(numbers) < 1 or self.mlp_ratio <= 0 or self.norm_eps <= 0:
            raise ValueError(
                f"ViTSettings: width, depth, patch, bands, grid are {numbers}, mlp_ratio={self.mlp_ratio}, "
                f"norm_eps={self.norm_eps}; expected all above 0"
            )
        if self.interpolation not in ("size", "published"):
            raise ValueError(f"ViTSettings.interpolation is {self.interpolation!r}, expected size or published")
        if isinstance(self.heads, int):
            if self.heads < 1 or (self.head_width is None and self.width % self.heads):
                raise ValueError(f"ViTSettings.heads is {self.heads}, expected a divisor of the width {self.width}")
        elif self.head_width is None or len(self.heads) != self.depth or min(self.heads) < 0:
            raise ValueError(
                f"ViTSettings.heads is {list(self.heads)} with head_width={self.head_width}; expected a number for "
                f"each of the {self.depth} layers, and head_width"
            )

    @property
    def layer_heads(self) -> tuple[int, ...]:
        """M of each layer."""
        return (self.heads,) * self.depth if isinstance(self.heads, int) else tuple(self.heads)

    @property
    def channels(self) -> int:
        """Channels of a head."""
        return self.width // self.layer_heads[0] if self.head_width is None else self.head_width


class ViTOutput(NamedTuple):
    """What the transformer makes of images."""

    class_tokens: Tensor  # (B, K, D)
    patches: Tensor  # (B, D, h, w)
    maps: Tensor | None  # (B, K, h, w) attention of class tokens to patches
    affinity: Tensor | None  # (B, N, N) attention of patches to patches


class Attention(nn.Module):
    """Multi-head attention of tokens to each other, with a factor for every head.

    Args:
        width: D.
        heads: M; without any, the bias of the projection is all that is left.
        head_width: Channels of a head.
        qkv_bias: Whether queries, keys and values have a bias.
    """

    def __init__(self, width: int, heads: int, head_width: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        with warnings.catch_warnings():
            # of a layer that has lost all its heads
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.qkv = nn.Linear(width, 3 * heads * head_width, bias=qkv_bias)
            self.proj = nn.Linear(heads * head_width, width)

    def forward(
        self, tokens: Tensor, gate: Tensor | None = None, rows: slice | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Let tokens look at each other.

        Args:
            tokens: (B, T, D).
            gate: (M,) what the output of each head is multiplied with, which is the same as multiplying its map.
            rows: The tokens whose attention is wanted; maps are computed for them alone, beside the fused attention.

        Returns:
            (B, T, D) and the attention (B, M, rows, T) before the gate, None where it is not wanted.
        """
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, self.head_width))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        output = F.scaled_dot_product_attention(query, key, value)
        if gate is not None:
            output = output * gate.to(output.dtype)[:, None, None]
        maps = None
        if rows is not None:
            maps = (query[:, :, rows] @ key.mT * self.head_width**-0.5).softmax(dim=3)
        return self.proj(output.transpose(1, 2).flatten(2)), maps


class Block(nn.Module):
    """A layer: attention and a feed-forward part, each behind a norm and beside a shortcut.

    Args:
        settings: Of the transformer.
        heads: M of this layer.
    """

    def __init__(self, settings: ViTSettings, heads: int) -> None:
        super().__init__()
        width, hidden = settings.width, round(settings.width * settings.mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=settings.norm_eps)
        self.attention = Attention(width, heads, settings.channels, qkv_bias=settings.qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=settings.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(
        self, tokens: Tensor, gate: Tensor | None = None, rows: slice | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `Attention`, of the whole layer."""
        attended, maps = self.attention(self.norm1(tokens), gate, rows)
        tokens = tokens + attended
        return tokens + self.mlp(self.norm2(tokens)), maps


class ClassTokenViT(nn.Module):
    """A pre-norm transformer over class tokens, patches row by row, and a register, in this order.

    Args:
        classes: K.
        settings: The transformer.
        register: Whether there is a register token.
    """

    def __init__(self, classes: int, settings: ViTSettings, *, register: bool) -> None:
        super().__init__()
        self.classes, self.settings = classes, settings
        width = settings.width
        self.patch_embedding = nn.Conv2d(settings.bands, width, settings.patch, settings.patch)
        self.class_tokens = nn.Parameter(torch.empty(1, classes, width))
        self.register = nn.Parameter(torch.zeros(1, 1, width)) if register else None
        self.positions = nn.Parameter(torch.empty(1, classes + settings.grid**2 + int(register), width))
        self.blocks = nn.ModuleList(Block(settings, heads) for heads in settings.layer_heads)
        self.norm = nn.LayerNorm(width, eps=settings.norm_eps) if settings.final_norm else nn.Identity()
        for parameter in (self.class_tokens, self.positions):
            nn.init.trunc_normal_(parameter, std=_STD)
        self.apply(_start)

    def forward(
        self,
        images: Tensor,
        gates: Tensor | None = None,
        looks: Mapping[int, Tensor] | None = None,
        *,
        affinity: bool = False,
    ) -> ViTOutput:
        """Run the transformer.

        Args:
            images: (B, C, H, W).
            gates: (L, M).
            looks: Layer -> (M,) how much the map of each of its heads counts. Maps are computed in these layers alone,
                and summed over them.
            affinity: Whether the attention of patches to patches is wanted, too.

        Raises:
            ConfigError: if images have other bands, or are smaller than a patch.
        """
        tokens, (height, width) = self._enter(images)
        patches = slice(self.classes, self.classes + height * width)
        rows = slice(0, patches.stop if affinity else patches.start)
        seen: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            weights = (looks or {}).get(number)
            gate = None if gates is None else gates[number]
            tokens, maps = block(tokens, gate, None if weights is None else rows)
            if weights is not None:
                seen.append(torch.einsum("bmrt,m->brt", maps[..., patches], weights.to(maps.dtype)))
        tokens = self.norm(tokens)
        total = torch.stack(seen).sum(dim=0) if seen else None
        return ViTOutput(
            tokens[:, : self.classes],
            tokens[:, patches].transpose(1, 2).unflatten(2, (height, width)),
            None if total is None else total[:, : self.classes].unflatten(2, (height, width)),
            total[:, patches] if affinity and total is not None else None,
        )

    def _enter(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, T, D) with their positions, and the patches (rows, columns)."""
        settings, (bands, height, width) = self.settings, images.shape[1:]
        if bands != settings.bands:
            raise ConfigError(
                f"The images have {bands} bands, the network takes {settings.bands}.\n"
                f"Set --model.network.vit.bands={bands}, or choose other bands of the data."
            )
        if min(height, width) < settings.patch:
            raise ConfigError(
                f"An image of {height} x {width} pixels (height x width) is smaller than a patch of {settings.patch}.\n"
                "Enlarge the images (--data.transform), or set a smaller --model.network.vit.patch."
            )
        embedded = self.patch_embedding(images)
        grid = (embedded.shape[2], embedded.shape[3])
        ends = [self.class_tokens, embedded.flatten(2).transpose(1, 2)]
        if self.register is not None:
            ends.append(self.register)
        tokens = torch.cat([part.expand(len(images), -1, -1) for part in ends], dim=1)
        return tokens + self._positions(grid, is_square=height == width), grid

    def _positions(self, grid: tuple[int, int], *, is_square: bool) -> Tensor:
        """(1, T, D) for (rows, columns) of patches."""
        side, patches = self.settings.grid, slice(self.classes, self.classes + self.settings.grid**2)
        table = self.positions[:, patches].transpose(1, 2).unflatten(2, (side, side))
        if self.settings.interpolation == "size":
            if grid != (side, side):
                table = F.interpolate(table, size=grid, mode="bicubic")
        elif grid[0] * grid[1] != side**2 or not is_square:
            factors = [(length + _PUBLISHED_OFFSET) / side for length in grid]
            table = F.interpolate(table, scale_factor=factors, mode="bicubic")
        parts = (
            self.positions[:, : patches.start],
            table.flatten(2).transpose(1, 2),
            self.positions[:, patches.stop :],
        )
        return torch.cat(parts, dim=1)


def _start(module: nn.Module) -> None:
    """Weights as published; convolutions and norms start as torch has them."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
