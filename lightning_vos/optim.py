"""Parameter groups and learning rate schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_vos.errors import ConfigError


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
        if peak <= 0:
            raise ConfigError(
                f"The learning rate is {peak}, expected one above 0: the schedule scales it.\n"
                "Set --model.optimizer.lr, for example to 1e-4."
            )

        def at(step: int) -> float:
            rate = self.rate(step, steps, peak)
            return (self.floor + self.backbone_factor * (rate - self.floor) if backbone else rate) / peak

        return at


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
