"""What the transformers of AOT, DeAOT and MAVOS have in common: how a network asks for propagation and for memories.

Shapes: B batch, h w feature grid, n = h * w tokens of a frame (row-major), m tokens of memory, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Transformer(nn.Module, ABC):
    """Propagates what is remembered of former frames into a frame, layer by layer.

    What a layer remembers of one or several frames is a named tuple of (B, m, C) tensors, the *parts*; what it leaves
    of a frame before its labels are known is its *current*, from which `remember` makes a memory.

    Attributes:
        parts: Channels of the parts, such as keys and values.
        out_channels: Channels of the output.
        normed_assignment: Whether identity assignments come with a layer norm.
    """

    parts: tuple[int, ...]
    out_channels: int
    normed_assignment: bool

    @abstractmethod
    def forward(
        self,
        frame: Tensor,
        size: tuple[int, int],
        memories: list[tuple[Any, Any]] | None = None,
        assignment: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Propagate into a frame from its memories, or from itself where it is a reference.

        Args:
            frame: (B, n, C) projected features.
            size: (h, w).
            memories: Long-term and short-term memory for each layer; None for a reference frame.
            assignment: (B, n, C) identity assignment of a reference frame; None otherwise.

        Returns:
            (B, n, out_channels) for the decoder, and the current of each layer.
        """

    @abstractmethod
    def remember(self, currents: tuple[Any, ...], assignment: Tensor) -> tuple[Any, ...]:
        """Join a frame with its (B, n, C) identity assignment to the memory of every layer."""
