"""Averaged weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    import lightning.pytorch as L
    from torch import Tensor


class WarmEMA(WeightAveraging):
    """Exponential moving average of the weights, which validation and checkpoints use.

    After n steps of N the decay is min(1 - 1 / (window * N), (1 + n) / (10 + n)), so that the average follows closely
    at first and spans a `window` of the whole training in the end (recipe of AOT, DeAOT and MAVOS).

    Args:
        window: Fraction of the training that the average spans.
    """

    def __init__(self, window: float = 0.1) -> None:
        if not 0 < window <= 1:
            raise ValueError(f"WarmEMA.window is {window}, expected a fraction of the training above 0")
        super().__init__(multi_avg_fn=self._average)
        self.window = window
        self._last_decay = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the averaged model when `fit` begins."""
        if stage == "fit":
            # The module moves to its device after this hook; an average elsewhere would be fetched at every step.
            self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Learn how long the training is, which is known only now."""
        super().on_train_start(trainer, pl_module)
        self._last_decay = 1 - 1 / max(self.window * trainer.estimated_stepping_batches, 1.0)

    def _average(self, averaged: list[Tensor], current: list[Tensor], averages: Tensor | int) -> None:
        steps = int(averages)
        get_ema_multi_avg_fn(min(self._last_decay, (1 + steps) / (10 + steps)))(averaged, current, averages)
