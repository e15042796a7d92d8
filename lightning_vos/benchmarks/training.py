"""What a training step costs: forward, backward and the step of the optimizer."""

from __future__ import annotations

import logging
import warnings
from itertools import repeat
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch as L
import torch

from lightning_vos.benchmarks.workload import Setting, SyntheticVideo, peak_bytes, reset_peak, seconds
from lightning_vos.structures import Clip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_vos.vos.module import VOSModule

_ENDLESS = 10**6  # steps of the training, so that every measured one belongs to its beginning


class StepCost(NamedTuple):
    """What a training step costs once all tensors of the optimizer are there."""

    seconds: float  # median; CPU time, on a GPU wall time
    memory_bytes: int  # peak above what is in use before the first step: gradients, optimizer and activations


def draw_clips(setting: Setting, length: int, batch: int) -> Clip:
    """Clips of `length` frames of a synthetic video, one after the other, every frame of them labelled."""
    video = SyntheticVideo(setting.size, setting.objects)
    numbers = range(batch * length)
    return Clip(
        torch.stack([video.frame(number) for number in numbers]).unflatten(0, (batch, length)),
        torch.stack([video.mask(number) for number in numbers]).unflatten(0, (batch, length)),
        torch.full((batch,), setting.objects),
    )


def measure_training(module: VOSModule, setting: Setting, length: int, batch: int, repeats: int) -> Iterator[StepCost]:
    """Train a module for a step that is not counted and `repeats` that are, from the weights that it has; one cost.

    Raises:
        UserError: if the module does not take such clips.
    """
    setting.prepare()
    device = torch.device(setting.device)
    # costs do not depend on weights, which might have to be downloaded
    module.network.load_start_weights = lambda: None  # type: ignore[method-assign]
    gauge = _Gauge(device, repeats)
    logging.disable(logging.INFO)  # Lightning tells of devices
    warnings.filterwarnings("ignore", ".*have no `val_dataloader`")
    try:
        trainer = L.Trainer(
            accelerator=device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision="bf16-mixed" if setting.precision == "bf16" else "32-true",
            max_steps=_ENDLESS,
            callbacks=[gauge],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, repeat(draw_clips(setting, length, batch)))
    finally:
        logging.disable(logging.NOTSET)
    yield StepCost(median(gauge.spent), gauge.peak - gauge.loaded)


class _Gauge(L.Callback):
    """Measures steps, and ends the training after the last."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.spent: list[float] = []
        self.loaded = self.peak = 0
        self._started = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self.loaded = reset_peak(self.device)
        elif batch_idx == 1:
            reset_peak(self.device)
        self._started = seconds(self.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx > 0:
            self.spent.append(seconds(self.device) - self._started)
        if batch_idx == self.repeats:
            self.peak = peak_bytes(self.device)
            trainer.should_stop = True
