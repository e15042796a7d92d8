"""Averaged weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import WeightAveraging

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
        super().__init__(avg_fn=self._average)
        self.window = window
        self._last_decay = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the averaged model when `fit` begins."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            # Only max_steps is known this early: the data of the recipes are endless.
            self._last_decay = 1 - 1 / max(self.window * trainer.max_steps, 1.0)

    def _average(self, averaged: Tensor, current: Tensor, averages: Tensor | int) -> Tensor:
        decay = min(self._last_decay, (1 + int(averages)) / (10 + int(averages)))
        return averaged + (current - averaged) * (1 - decay)
