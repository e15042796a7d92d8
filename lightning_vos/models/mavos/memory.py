"""What MAVOS keeps of the past: the memory of a video, its rules, and the policy that bounds it.

Shapes: B batch, N object slots, h w feature grid, n = h * w tokens of a frame, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lightning_vos.models.mavos.lstt import LayerCurrent, LayerMemory
from lightning_vos.models.mavos.modulated_cross_attention import MCABlock, ValueLayout


@dataclass(frozen=True)
class MemoryRules:
    """When the long-term memory takes in a frame.

    Attributes:
        interval: Frames from one update to the next, the paper's delta.
    """

    interval: int

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"MemoryRules.interval is {self.interval}, expected a number of frames of at least 1")


@dataclass(frozen=True)
class MAVOSMemory:
    """The state of up to `capacity` objects of a video between two frames.

    Attributes:
        valid: (B, N) bool, slots that hold an object.
        rules: When to update.
        permutation: (B, 1 + N, 1 + N) of training, None otherwise.
        long: For each layer the long-term bank, newest frame first; empty before the first reference.
        short: For each layer the previous frame.
        current: For each layer the frame at hand, left by `segment` for `memorize`.
        updated: Time of the last update of the bank.
    """

    valid: Tensor
    rules: MemoryRules
    permutation: Tensor | None = None
    long: tuple[LayerMemory, ...] = ()
    short: tuple[LayerMemory, ...] = ()
    current: tuple[LayerCurrent, ...] = ()
    updated: int = 0

    @property
    def bank_bytes(self) -> int:
        """Size of the long-term bank in bytes."""
        return sum(part.nbytes for layer in self.long for part in layer)

    @property
    def bank_frames(self) -> int:
        """How many frames the long-term bank holds."""
        return self.long[0].key.shape[1] // self.short[0].key.shape[1] if self.long else 0


class MemoryPolicy(nn.Module, ABC):
    """Decides what becomes of the long-term bank when a further frame enters it."""

    @property
    def is_learned(self) -> bool:
        """Whether training has to reach this policy, which takes clips of two updates and a frame that reads them."""
        return any(True for _ in self.parameters())

    @abstractmethod
    def update(
        self, bank: tuple[LayerMemory, ...], new: tuple[LayerMemory, ...], size: tuple[int, int]
    ) -> tuple[LayerMemory, ...]:
        """The bank, newest frame first, after the memory `new` of one (h, w) frame has entered."""


class ModulatedCrossAttentionMemory(MemoryPolicy):
    """Two frames for ever: the reference, and a dynamic one into which the MCA folds every update (paper Sec. 3.2).

    The first update is put beside the reference as it is; from the second on the MCA folds (published code; paper Eq. 1
    reads as if it always did). Keys, values and identity values of every layer have an `MCABlock` of their own.

    Args:
        layers: Number of layers of the transformer.
        keys: Channels of the keys.
        values: Channels of the values.
        heads: Heads of the attention.
        levels: Focal levels, 1 to 3 in the paper's Table 8.
        value_layout: See `ModulatedCrossAttention`.
    """

    def __init__(
        self,
        layers: int,
        keys: int,
        values: int,
        heads: int = 4,
        levels: int = 2,
        value_layout: ValueLayout = "official",
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(MCABlock(channels, heads, levels, value_layout) for channels in (keys, values, values))
            for _ in range(layers)
        )

    def update(
        self, bank: tuple[LayerMemory, ...], new: tuple[LayerMemory, ...], size: tuple[int, int]
    ) -> tuple[LayerMemory, ...]:
        """Fold `new` into the dynamic frame; the reference, at the end of the bank, stays."""
        tokens = size[0] * size[1]
        if bank[0].key.shape[1] == tokens:
            return tuple(_join(first, second) for first, second in zip(new, bank, strict=True))
        return tuple(
            LayerMemory(
                *(
                    torch.cat([block(fresh, old[:, :tokens], size), old[:, tokens:]], dim=1)
                    for block, fresh, old in zip(cast("nn.ModuleList", blocks), frame, layer, strict=True)
                )
            )
            for blocks, frame, layer in zip(self.blocks, new, bank, strict=True)
        )


def _join(first: LayerMemory, second: LayerMemory) -> LayerMemory:
    return LayerMemory(*(torch.cat(parts, dim=1) for parts in zip(first, second, strict=True)))
