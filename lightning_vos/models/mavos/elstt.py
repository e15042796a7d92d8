"""The efficient long short-term transformer (E-LSTT): gated propagation of a visual and an identity stream.

Shapes: B batch, h w feature grid, n = h * w tokens of a frame (row-major), m tokens of memory, C channels.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from lightning_vos.models.mavos.attention import GatedPropagation, LocalGatedPropagation, SelfGatedPropagation
from lightning_vos.models.mavos.transformer import Transformer


class GatedMemory(NamedTuple):
    """What one layer remembers of one or several frames."""

    key: Tensor  # (B, m, keys)
    value: Tensor  # (B, m, values)
    identity: Tensor  # (B, m, values)


class GatedCurrent(NamedTuple):
    """What one layer leaves of the frame that it has just seen, before its labels are known."""

    key: Tensor  # (B, n, keys)
    value: Tensor  # (B, n, values)
    identity: Tensor | None  # (B, n, C), input of the identity values; None in the first layer


class ELSTTLayer(nn.Module):
    """One layer: long-term, short-term and self propagation (paper Fig. 3).

    Args:
        channels: C of each stream.
        keys: Channels of query and key.
        values: Channels of the values of each stream.
        window: Side of the short-term window.
        drop_path: Probability of skipping self propagation for a sample in training.
        first: Whether no identity stream enters this layer.
    """

    def __init__(self, channels: int, keys: int, values: int, window: int, drop_path: float, *, first: bool) -> None:
        super().__init__()
        self.channels, self.keys, self.values, self.first = channels, keys, values, first
        self.norm = nn.LayerNorm(channels)
        self.key_value = nn.Linear(channels, keys + values)
        self.gate = nn.Linear(channels, values)
        self.identity_value = nn.Linear(channels if first else 2 * channels, values)
        if not first:
            self.identity_norm = nn.LayerNorm(channels)
            self.identity_gate = nn.Linear(channels, values)
        self.long_term = GatedPropagation(2 * values, 2 * channels)
        self.short_term = LocalGatedPropagation(keys, 2 * values, 2 * channels, window)
        self.self_norm = nn.LayerNorm(channels)
        self.self_identity_norm = nn.LayerNorm(channels)
        self.self_propagation = SelfGatedPropagation(channels, keys, values)
        self.drop_path = DropPath(drop_path)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def remember(self, current: GatedCurrent, assignment: Tensor) -> GatedMemory:
        """Join a frame with its (B, n, C) identity assignment."""
        joined = assignment if current.identity is None else torch.cat([current.identity, assignment], dim=2)
        return GatedMemory(current.key, current.value, F.silu(self.identity_value(joined)))

    def forward(
        self,
        visual: Tensor,
        identity: Tensor | None,
        size: tuple[int, int],
        memories: tuple[GatedMemory, GatedMemory] | None,
        assignment: Tensor | None,
    ) -> tuple[Tensor, Tensor, GatedCurrent]:
        """Propagate into a frame from its long- and short-term memory, or from itself where it is a reference.

        Args:
            visual: (B, n, C).
            identity: (B, n, C), None in the first layer.
            size: (h, w).
            memories: Long-term and short-term memory; None for a reference frame.
            assignment: (B, n, C) identity assignment of a reference frame; None otherwise.

        Returns:
            Both streams, (B, n, C) each, and what `remember` needs of this frame.
        """
        normed = self.norm(visual)
        key, value = self.key_value(normed).split([self.keys, self.values], dim=2)
        gate = self.gate(normed)
        if identity is None:
            current = GatedCurrent(key, F.silu(value), None)
            gate = torch.cat([F.silu(gate), torch.ones_like(gate)], dim=2)
        else:
            current = GatedCurrent(key, F.silu(value), self.identity_norm(identity))
            gate = F.silu(torch.cat([gate, self.identity_gate(current.identity)], dim=2))
        if memories is None:
            assert assignment is not None
            memories = (self.remember(current, assignment),) * 2
        long, short = memories
        update = self.long_term(key, long.key, torch.cat([long.value, long.identity], dim=2), gate, size)
        update = update + self.short_term(key, short.key, torch.cat([short.value, short.identity], dim=2), gate, size)
        visual_update, identity_update = update.split(self.channels, dim=2)
        visual = visual + visual_update
        identity = identity_update if identity is None else identity + identity_update
        streams = torch.cat([self.self_norm(visual), self.self_identity_norm(identity)], dim=2)
        visual_update, identity_update = self.self_propagation(streams, size).split(self.channels, dim=2)
        return visual + self.drop_path(visual_update), identity + self.drop_path(identity_update), current


class ELSTT(Transformer):
    """A stack of `ELSTTLayer`, normalised at its end by one group for each stream.

    A layer remembers keys of C / 2, values and identity values of 2 C channels.

    Args:
        layers: Number of layers.
        channels: C of each stream.
        window: Side of the short-term window.
        drop_path: As `ELSTTLayer`.
    """

    normed_assignment = True

    def __init__(self, layers: int, channels: int, window: int = 15, drop_path: float = 0.1) -> None:
        super().__init__()
        keys, values = channels // 2, 2 * channels
        self.parts, self.out_channels = (keys, values, values), 2 * channels
        self.layers = nn.ModuleList(
            ELSTTLayer(channels, keys, values, window, drop_path, first=number == 0) for number in range(layers)
        )
        self.norm = nn.GroupNorm(2, 2 * channels)

    def forward(
        self,
        frame: Tensor,
        size: tuple[int, int],
        memories: list[tuple[GatedMemory, GatedMemory]] | None = None,
        assignment: Tensor | None = None,
    ) -> tuple[Tensor, tuple[GatedCurrent, ...]]:
        """As `Transformer`; the output is both streams."""
        visual: Tensor = frame
        identity: Tensor | None = None
        currents = []
        for number, layer in enumerate(self.layers):
            memory = None if memories is None else memories[number]
            visual, identity, current = layer(visual, identity, size, memory, assignment)
            currents.append(current)
        assert identity is not None
        streams = torch.cat([visual, identity], dim=2)
        return self.norm(streams.transpose(1, 2)).transpose(1, 2), tuple(currents)

    def remember(self, currents: tuple[GatedCurrent, ...], assignment: Tensor) -> tuple[GatedMemory, ...]:
        """As `Transformer`."""
        layers = (cast("ELSTTLayer", layer) for layer in self.layers)
        return tuple(layer.remember(current, assignment) for layer, current in zip(layers, currents, strict=True))
