"""What the long-term bank of a memory holds while a video goes on (MAVOS, Figure 3)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_vos.io.plots import MemoryColumn
    from lightning_vos.vos.network import VOSNetwork


class BankReader:
    """Follows the long-term bank of a memory and makes maps of what one of its layers stores of objects.

    A map is the first principal component of the identity values of the first reference frame: one axis for all maps,
    on which objects lie above the background. AOT has no identity values of their own; there it is the values, which
    contain them.

    Args:
        network: The network whose memory it is.
        size: (H, W) that frames have before the network's canvas.
        layer: From 1; the last where None.
    """

    def __init__(self, network: VOSNetwork[Any], size: tuple[int, int], layer: int | None) -> None:
        height, width = network.canvas.view(size).network
        self._grid = -(-height // network.canvas.multiple), -(-width // network.canvas.multiple)
        self.layer = layer
        self._bank: tuple[Any, ...] = ()
        self._axis: tuple[Tensor, Tensor] | None = None

    def is_updated(self, memory: Any) -> bool:
        """Whether the bank is another than that of the last call.

        Raises:
            ConfigError: if the memory has no bank of whole frames, or not that layer.
        """
        bank = getattr(memory, "long", None)
        if bank is None or (bank and _identity(bank[-1]).shape[1] % math.prod(self._grid)):
            raise ConfigError(
                f"A {type(memory).__name__} has no bank of whole frames, so there is no dynamic frame to draw.\n"
                "  expected weights of the MAVOS family"
            )
        if not bank or bank is self._bank:
            return False
        self.layer = len(bank) if self.layer is None else self.layer
        if not 1 <= self.layer <= len(bank):
            raise ConfigError(f"--layer {self.layer} is none of the network's: expected 1 to {len(bank)}.")
        self._bank = bank
        return True

    def maps(self, foreground: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Maps (h, w) of the last and of the newest frame of the bank; `foreground`, (H, W) bool, tells bright."""
        assert self.layer is not None
        values = _identity(self._bank[self.layer - 1])[0].float()
        tokens = math.prod(self._grid)
        if self._axis is None:
            self._axis = _first_component(values[-tokens:], foreground, self._grid)
        mean, axis = self._axis
        reference, dynamic = ((part - mean) @ axis for part in (values[-tokens:], values[:tokens]))
        return reference.unflatten(0, self._grid).cpu().numpy(), dynamic.unflatten(0, self._grid).cpu().numpy()


def _identity(stored: Any) -> Tensor:
    """What a layer of a bank holds of objects, (B, m, C)."""
    return stored.identity if hasattr(stored, "identity") else stored.value


def _first_component(values: Tensor, foreground: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean and first principal axis (C,) of (n, C) values, with the foreground on the upper side."""
    mean = values.mean(dim=0)
    axis = torch.linalg.svd(values - mean, full_matrices=False).Vh[0]
    inside = F.interpolate(foreground[None, None].float(), grid, mode="area").flatten()
    return mean, axis if (values - mean) @ axis @ (inside - inside.mean()) >= 0 else -axis


class Thinned:
    """Keeps fewer than `2 * count` columns of a video of any length, evenly spread."""

    def __init__(self, count: int) -> None:
        self.items: list[MemoryColumn] = []
        self._count, self._step, self._seen = count, 1, 0

    def takes_next(self) -> bool:
        """Whether the next column is one to keep; each call counts one."""
        self._seen += 1
        return (self._seen - 1) % self._step == 0

    def add(self, column: MemoryColumn) -> None:
        """Keep a column; of too many every other goes."""
        self.items.append(column)
        if len(self.items) == 2 * self._count:
            del self.items[1::2]
            self._step *= 2

    def spread(self) -> list[MemoryColumn]:
        """At most `count` columns."""
        chosen = np.linspace(0, len(self.items) - 1, min(self._count, len(self.items))).round().astype(int)
        return [self.items[i] for i in chosen]
