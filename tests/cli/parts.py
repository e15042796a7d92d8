"""The smallest model and data that train, for the tests of the command line."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_vos.errors import ConfigError, DatasetNotFoundError


class Network(nn.Module):
    def __init__(self, width: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, found {width}")
        if width == 13:
            raise ConfigError("width 13 brings bad luck")
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Dropout(dropout), nn.Linear(width, 1))


class TinyModel(LightningModule):
    def __init__(
        self,
        network: Network,
        optimizer: OptimizerCallable = torch.optim.SGD,
        scale: float = 1.0,
        widths: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network, self.optimizer, self.scale = network, optimizer, scale

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.network.layers(batch + 0.1 * torch.randn_like(batch)).square().mean() * self.scale
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/J&F", -self.network.layers(batch).square().mean())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/scale", self.scale)

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.network.parameters())


class Points(Dataset[Tensor]):
    def __init__(self, length: int, broken: bool) -> None:
        self.length, self.broken = length, broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        if self.broken:
            raise DatasetNotFoundError("frame 00003.jpg is missing")
        return torch.tensor([float(index), 1.0])


@dataclass(frozen=True)
class Look:
    """How points look: an argument that is a dataclass, whose own arguments the parser lists."""

    threshold: Literal["mean", "otsu"] | float = "mean"
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("Look: scales is empty")


_LOOK = Look()


class TinyData(LightningDataModule):
    def __init__(
        self, root: str = "here", length: int = 1000, broken: bool = False, workers: int = 0, look: Look = _LOOK
    ) -> None:
        super().__init__()
        self.root, self.length, self.broken, self.workers = root, length, broken, workers

    def train_dataloader(self) -> DataLoader[Tensor]:
        # begins where a resumed run left off, as the loaders of the recipes do
        steps = range(self.trainer.global_step, self.length) if self.trainer else range(self.length)
        return DataLoader(Points(self.length, self.broken), sampler=steps, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Points(2, False))

    def test_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Points(2, self.broken))


class OtherData(TinyData):
    def __init__(self, root: str = "there", year: int = 2016) -> None:
        super().__init__(root)
        self.year = year


class Stop(Callback):
    """Ends a run in the midst of a step, or of the validation after it."""

    def __init__(self, step: int, how: Literal["crash", "kill", "interrupt", "interrupt validation"]) -> None:
        self.step, self.how = step, how

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if trainer.global_step == self.step:
            if self.how == "crash":
                raise ZeroDivisionError
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "interrupt":
                signal.raise_signal(signal.SIGINT)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and self.how == "interrupt validation":
            signal.raise_signal(signal.SIGINT)
