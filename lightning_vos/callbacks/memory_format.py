"""How tensors lie in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class ChannelsLast(Callback):
    """Keeps the weights of convolutions with channels last, which often makes them and what is around them faster.

    How much depends on the hardware and the network. Results differ by rounding alone. What copies the module, such as
    `WarmEMA`, comes after it in the list of callbacks.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Change the module in place."""
        pl_module.to(memory_format=torch.channels_last)
