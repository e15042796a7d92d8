"""What MAVOS keeps of the past: the memory of a video, its rules, and the policy that bounds it.

A layer's memory is a named tuple of (B, m, C) tensors, its parts; a bank holds m = frames * n tokens of each.
Shapes: B batch, N object slots, h w feature grid, n = h * w tokens of a frame, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lightning_vos.models.mavos.fusion import CrossAttention, FocalModulation, FusionBlock, GlobalContextAttention
from lightning_vos.models.mavos.modulated_cross_attention import ModulatedCrossAttention, ValueLayout

Bank = tuple[Any, ...]
"""For each layer what it remembers, newest frame first."""


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
    long: Bank = ()
    short: Bank = ()
    current: tuple[Any, ...] = ()
    updated: int = 0

    @property
    def bank_bytes(self) -> int:
        """Size of the long-term bank in bytes."""
        return sum(part.nbytes for layer in self.long for part in layer)

    @property
    def bank_frames(self) -> int:
        """How many frames the long-term bank holds."""
        return self.long[0][0].shape[1] // self.short[0][0].shape[1] if self.long else 0


class MemoryPolicy(nn.Module, ABC):
    """Decides what becomes of the long-term bank when a further frame enters it.

    Args:
        layers: Number of layers of the transformer.
        parts: Channels of what a layer remembers, such as keys and values.
    """

    def __init__(self, layers: int, parts: tuple[int, ...]) -> None:
        super().__init__()
        self.layers, self.parts = layers, parts

    @property
    def is_learned(self) -> bool:
        """Whether training has to reach this policy, which takes clips of two updates and a frame that reads them."""
        return any(True for _ in self.parameters())

    @abstractmethod
    def update(self, bank: Bank, new: Bank, size: tuple[int, int], *, is_reference: bool) -> Bank:
        """The bank, newest frame first, after a frame has entered.

        Args:
            bank: At least the reference frame, which is at the end.
            new: The memory of one frame.
            size: (h, w).
            is_reference: Whether objects were given in that frame.
        """


class Append(MemoryPolicy):
    """Keeps every frame: the memory of AOT-L and DeAOT-L, which grows with the video."""

    def update(self, bank: Bank, new: Bank, size: tuple[int, int], *, is_reference: bool) -> Bank:
        """The new frame before all others."""
        return _joined(new, bank)


class Capped(MemoryPolicy):
    """Keeps up to a number of frames, the reference always among them (paper Table 5).

    Args:
        layers: As `MemoryPolicy`.
        parts: As `MemoryPolicy`.
        frames: Frames held at most, 2 or more. The published rows called 6F look at their limit of 6 before the new
            frame enters, and so hold 7.
        evict: `second_newest` of those before the new frame, as the published rows do, so that the first frames of the
            video stay; or `oldest`, the one after the reference, so that the latest stay.

    Raises:
        ValueError: if an option is out of its range.
    """

    def __init__(
        self,
        layers: int,
        parts: tuple[int, ...],
        frames: int = 7,
        evict: Literal["second_newest", "oldest"] = "second_newest",
    ) -> None:
        super().__init__(layers, parts)
        if frames < 2 or evict not in ("second_newest", "oldest"):
            raise ValueError(
                f"Capped: frames is {frames}, evict is {evict!r}; expected 2 or more, and second_newest or oldest"
            )
        self.frames, self.evict = frames, evict

    def update(self, bank: Bank, new: Bank, size: tuple[int, int], *, is_reference: bool) -> Bank:
        """The new frame before those that stay."""
        tokens = size[0] * size[1]
        held = bank[0][0].shape[1] // tokens
        if held == self.frames:
            # Of two frames the second newest would be the reference.
            leaves = 0 if held == 2 else 1 if self.evict == "second_newest" else held - 2
            bank = _mapped(
                lambda part: torch.cat([part[:, : leaves * tokens], part[:, (leaves + 1) * tokens :]], 1), bank
            )
        return _joined(new, bank)


class ReferenceOnly(MemoryPolicy):
    """Keeps the frames in which objects were given, and no other (paper Table 7)."""

    def update(self, bank: Bank, new: Bank, size: tuple[int, int], *, is_reference: bool) -> Bank:
        """The new frame enters only as a reference."""
        return _joined(new, bank) if is_reference else bank


class PreviousOnly(MemoryPolicy):
    """Keeps the latest frame alone (paper Table 7)."""

    def update(self, bank: Bank, new: Bank, size: tuple[int, int], *, is_reference: bool) -> Bank:
        """The new frame instead of the old one."""
        return new


class ReferencePrevious(MemoryPolicy):
    """Keeps the reference and the latest frame (paper Table 7; AOT-L-2F and DeAOT-L-2F of Table 5)."""

    def update(self, bank: Bank, new: Bank, size: tuple[int, int], *, is_reference: bool) -> Bank:
        """The new frame before the reference."""
        return _joined(new, _reference(bank, size))


class FusedMemory(MemoryPolicy):
    """Two frames for ever: the reference, and a dynamic one into which a learned block folds every update.

    The first update is put beside the reference as it is; from the second on the block folds (published code; paper
    Eq. 1 reads as if it always did). Every part of every layer has a block of its own; what a layer remembers beyond
    `parts` stays that of the newest frame.

    Args:
        layers: As `MemoryPolicy`.
        parts: As `MemoryPolicy`.
        operator: Makes what a `FusionBlock` is built around from its number of channels.
    """

    def __init__(self, layers: int, parts: tuple[int, ...], operator: Callable[[int], nn.Module]) -> None:
        super().__init__(layers, parts)
        self.blocks = nn.ModuleList(
            nn.ModuleList(FusionBlock(channels, operator(channels)) for channels in parts) for _ in range(layers)
        )

    def update(self, bank: Bank, new: Bank, size: tuple[int, int], *, is_reference: bool) -> Bank:
        """Fold `new` into the dynamic frame; the reference, at the end of the bank, stays."""
        tokens = size[0] * size[1]
        if bank[0][0].shape[1] > tokens:
            new = tuple(
                _folded(cast("nn.ModuleList", blocks), frame, layer, size)
                for blocks, frame, layer in zip(self.blocks, new, bank, strict=True)
            )
        return _joined(new, _reference(bank, size))


class ModulatedCrossAttentionMemory(FusedMemory):
    """Folds by modulated cross-attention: the memory of MAVOS (paper Sec. 3.2).

    Args:
        layers: As `MemoryPolicy`.
        parts: As `MemoryPolicy`.
        heads: Heads of the attention.
        levels: Focal levels, 1 to 3 in the paper's Table 8.
        value_layout: See `ModulatedCrossAttention`.
    """

    def __init__(
        self,
        layers: int,
        parts: tuple[int, ...],
        heads: int = 4,
        levels: int = 2,
        value_layout: ValueLayout = "official",
    ) -> None:
        super().__init__(layers, parts, lambda channels: ModulatedCrossAttention(channels, heads, levels, value_layout))


class CrossAttentionMemory(FusedMemory):
    """Folds by plain cross-attention (paper Table 6).

    Args:
        layers: As `MemoryPolicy`.
        parts: As `MemoryPolicy`.
        heads: Heads of the attention.
    """

    def __init__(self, layers: int, parts: tuple[int, ...], heads: int = 4) -> None:
        super().__init__(layers, parts, lambda channels: CrossAttention(channels, heads))


class FocalMemory(FusedMemory):
    """Folds by focal modulation (paper Table 6).

    Args:
        layers: As `MemoryPolicy`.
        parts: As `MemoryPolicy`.
        levels: Focal levels.
    """

    def __init__(self, layers: int, parts: tuple[int, ...], levels: int = 2) -> None:
        super().__init__(layers, parts, lambda channels: FocalModulation(channels, levels))


class GlobalContextMemory(FusedMemory):
    """Folds by windowed attention with global queries, the GC-ViT row (paper Table 6).

    Args:
        layers: As `MemoryPolicy`.
        parts: As `MemoryPolicy`.
        heads: Heads of the attention, even.
        window: Side of the windows on the feature grid.
    """

    def __init__(self, layers: int, parts: tuple[int, ...], heads: int = 4, window: int = 7) -> None:
        super().__init__(layers, parts, lambda channels: GlobalContextAttention(channels, heads, window))


def _folded(blocks: nn.ModuleList, frame: Any, layer: Any, size: tuple[int, int]) -> Any:
    """A layer's memory of the new frame, into which that of the old dynamic one is folded."""
    tokens, learned = size[0] * size[1], len(blocks)
    folded = (
        block(fresh, old[:, :tokens], size)
        for block, fresh, old in zip(blocks, frame[:learned], layer[:learned], strict=True)
    )
    return frame._make((*folded, *frame[learned:]))


def _mapped(change: Callable[[Tensor], Tensor], bank: Bank) -> Bank:
    return tuple(layer._make(map(change, layer)) for layer in bank)


def _joined(first: Bank, second: Bank) -> Bank:
    return tuple(
        a._make(torch.cat(parts, dim=1) for parts in zip(a, b, strict=True)) for a, b in zip(first, second, strict=True)
    )


def _reference(bank: Bank, size: tuple[int, int]) -> Bank:
    return _mapped(lambda part: part[:, -size[0] * size[1] :], bank)
