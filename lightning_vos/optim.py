"""Parameter groups and learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
    from torch.optim import Optimizer


@dataclass(frozen=True)
class PolynomialSchedule:
    """Linear warm-up from a floor, then polynomial decay back to it; steps as the unit.

    Attributes:
        floor: Learning rate at both ends.
        warmup: Fraction of all steps.
        power: Of the decay.
        backbone_factor: What the part above the floor is multiplied with for the backbone.
    """

    floor: float = 1e-5
    warmup: float = 0.05
    power: float = 0.9
    backbone_factor: float = 0.1

    def __post_init__(self) -> None:
        if self.floor < 0 or not 0 <= self.warmup <= 1 or self.power <= 0 or self.backbone_factor < 0:
            raise ValueError(
                f"PolynomialSchedule: floor is {self.floor}, warmup is {self.warmup}, power is {self.power}, "
                f"backbone_factor is {self.backbone_factor}; expected rates of 0 and above, a fraction, a power above 0"
            )

    def rate(self, step: int, steps: int, peak: float) -> float:
        """Learning rate at `step` of `steps`.

        >>> PolynomialSchedule(floor=1e-5).rate(5_000, 100_000, 1e-4)
        0.0001
        """
        warmup = int(self.warmup * steps)
        if step <= warmup and warmup > 0:
            return self.floor + (peak - self.floor) * step / warmup
        left = max(1 - (step - warmup) / (steps - warmup + 1), 0.0)
        return self.floor + (peak - self.floor) * left**self.power

    def factor(self, steps: int, peak: float, *, backbone: bool) -> Callable[[int], float]:
        """What a `LambdaLR` multiplies `peak` with.

        Raises:
            ConfigError: `peak` is not above 0.
        """
        _require_positive(peak)

        def at(step: int) -> float:
            rate = self.rate(step, steps, peak)
            return (self.floor + self.backbone_factor * (rate - self.floor) if backbone else rate) / peak

        return at


@dataclass(frozen=True)
class StepSchedule:
    """Linear warm-up, then a constant rate that drops at some points; steps as the unit.

    Attributes:
        start: Learning rate at the first step.
        warmup: Fraction of all steps.
        drops: Fractions of all steps at which the rate is multiplied by `factor_of_drop`; rising.
        factor_of_drop: See `drops`.
    """

    start: float = 1e-7
    warmup: float = 0.04
    drops: tuple[float, ...] = (0.4,)
    factor_of_drop: float = 0.1

    def __post_init__(self) -> None:
        fractions = (self.warmup, *self.drops)
        if self.start < 0 or not all(0 <= fraction <= 1 for fraction in fractions) or self.factor_of_drop < 0:
            raise ValueError(
                f"StepSchedule: start is {self.start}, warmup is {self.warmup}, drops are {self.drops}, "
                f"factor_of_drop is {self.factor_of_drop}; expected rates and factors of 0 and above, and fractions"
            )

    def rate(self, step: int, steps: int, peak: float) -> float:
        """Learning rate at `step` of `steps`.

        >>> StepSchedule(drops=(0.4, 0.8)).rate(100_000, 250_000, 1.0)
        0.1
        """
        warmup = int(self.warmup * steps)
        if step < warmup:
            return self.start + (peak - self.start) * step / warmup
        return peak * self.factor_of_drop ** sum(step >= drop * steps for drop in self.drops)

    def configure(self, optimizer: Optimizer, steps: int) -> OptimizerLRSchedulerConfig:
        """What `configure_optimizers` returns for a training of `steps` with an optimizer of one group.

        Raises:
            ConfigError: The learning rate of the optimizer is not above 0.
        """
        peak = optimizer.param_groups[0]["lr"]
        _require_positive(peak)
        scheduler = LambdaLR(optimizer, lambda step: self.rate(step, steps, peak) / peak)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up from 0, then along a cosine to 0, and up again where the training is longer; steps as the unit.

    Attributes:
        warmup: Fraction of all steps.
        period: Fraction of the steps after the warm-up at which the rate is 0.
    """

    warmup: float = 0.0
    period: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1 or self.period <= 0:
            raise ValueError(
                f"CosineSchedule: warmup is {self.warmup}, period is {self.period}; expected a fraction below 1, and "
                "one above 0"
            )

    def rate(self, step: int, steps: int, peak: float) -> float:
        """Learning rate at `step` of `steps`.

        >>> round(CosineSchedule(period=0.6).rate(500, 500, 1.0), 2)
        0.75
        """
        warmup = int(self.warmup * steps)
        if step < warmup:
            return peak * step / warmup
        return peak * (1 + math.cos(math.pi * (step - warmup) / (self.period * (steps - warmup)))) / 2


def training_steps(trainer: Trainer) -> int:
    """How many optimizer steps a training has.

    Raises:
        ConfigError: if it has no end.
    """
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < math.inf:
        raise ConfigError(
            f"Training has no end: {steps} steps. Schedules follow the fraction that is done.\n"
            "Set --trainer.max_steps, for example 100000 as the recipes do."
        )
    return int(steps)


def _require_positive(peak: float) -> None:
    if peak <= 0:
        raise ConfigError(
            f"The learning rate is {peak}, expected one above 0: the schedule scales it.\n"
            "Set --model.optimizer.lr, for example to 1e-4."
        )


def parameter_groups(module: nn.Module, backbone: nn.Module, undecayed: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Learning parameters as four groups: backbone or not, weight decay or not.

    Biases, one-dimensional weights and names that contain a word of `undecayed` have no weight decay. Each group
    carries `backbone: bool`; an empty group is left out.
    """
    inner = {id(p) for p in backbone.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    words = tuple(undecayed)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.dim() > 1 and not name.endswith(".bias") and not any(word in name for word in words)
            groups.setdefault((id(parameter) in inner, decayed), []).append(parameter)
    return [
        {"params": parameters, "backbone": in_backbone} | ({} if decayed else {"weight_decay": 0.0})
        for (in_backbone, decayed), parameters in groups.items()
    ]
