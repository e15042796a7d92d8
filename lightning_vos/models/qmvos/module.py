"""QMVOS and XMem as a LightningModule: training on clips whose frames read earlier ones.

Shapes: B clips, T frames, N object slots, R frames that are read, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from lightning_vos.errors import ConfigError
from lightning_vos.losses.segmentation import BootstrappedDice
from lightning_vos.models.qmvos.memory import XMemMemory
from lightning_vos.models.qmvos.network import QMVOSNetwork
from lightning_vos.optim import StepSchedule, training_steps
from lightning_vos.structures import Clip
from lightning_vos.vos.module import VOSModule
from lightning_vos.vos.network import Given, advance

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

_FOLDED = 4  # frames of a clip whose last one reads what a policy has folded
_SCHEDULE = StepSchedule(start=0.0, warmup=0.0, drops=(50 / 65,))


class Draws(NamedTuple):
    """What chance decides of a batch of clips."""

    deep_updates: Tensor  # (T,) bool, whether each frame's values update the sensory memory
    sources: tuple[Tensor, ...]  # for each frame after the first the (B, R) frames that it reads


class ClipPredictions(NamedTuple):
    """What a batch of clips gave, of every frame after the first."""

    loss: Tensor  # ()
    cross_entropy: Tensor  # (T - 1,)
    dice: Tensor  # (T - 1,)
    logits: Tensor  # (T - 1, B, 1 + N, H, W)


class QMVOS(VOSModule):
    """Trains a `QMVOSNetwork`: every frame is segmented from some earlier ones, as the network remembers them.

    With a network without queries it trains XMem.

    Differs from the paper: the learning rate of QMVOS is 1e-5 there, 2e-5 in the published configuration, which is
    the default.

    Args:
        network: The network.
        loss: Of one frame.
        optimizer: Called with all parameters.
        schedule: Of the learning rate.
        max_objects: Slots of a clip; empty ones count in the dice, as published.
        references: Frames that one reads at most: the first, and others drawn at random; with a memory policy it reads
            what that keeps.
        deep_update: Probability that a frame's values update the sensory memory.
        weights: As `VOSModule`.
        weights_may_lack: As `VOSModule`.
        activation_checkpointing: As `VOSModule`.
        flip: As `VOSModule`.
        scales: As `VOSModule`.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        network: QMVOSNetwork,
        loss: BootstrappedDice | None = None,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=2e-5, weight_decay=0.05),
        schedule: StepSchedule = _SCHEDULE,
        max_objects: int = 3,
        references: int = 3,
        deep_update: float = 0.2,
        weights: str | None = None,
        weights_may_lack: Sequence[str] = (),
        *,
        activation_checkpointing: bool = False,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(
            network,
            weights,
            weights_may_lack,
            activation_checkpointing=activation_checkpointing,
            flip=flip,
            scales=scales,
        )
        self.network: QMVOSNetwork
        if min(max_objects, references) < 1 or not 0 <= deep_update <= 1:
            raise ValueError(
                f"QMVOS: max_objects={max_objects}, references={references}, deep_update={deep_update}; "
                "expected at least 1 of each, and a probability"
            )
        self.loss = loss or BootstrappedDice()
        self.optimizer, self.schedule = optimizer, schedule
        self.max_objects, self.references, self.deep_update = max_objects, references, deep_update

    def on_fit_start(self) -> None:
        """As `VOSModule`; where the published first stage has no plane of other objects, it begins here."""
        super().on_fit_start()
        self.network.value.start_others()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """All parameters in one group, with weight decay, as published.

        Raises:
            ConfigError: if the training has no end.
        """
        optimizer = self.optimizer([parameter for parameter in self.network.parameters() if parameter.requires_grad])
        return self.schedule.configure(optimizer, training_steps(self.trainer))

    def training_step(self, batch: Clip, batch_idx: int) -> Tensor:
        """Loss of a batch of clips."""
        progress = self.global_step / max(training_steps(self.trainer), 1)
        result = self.unroll(batch, progress, self.draw(*batch.frames.shape[:2]))
        self.log("train/loss", result.loss, prog_bar=True)
        self.log("train/cross_entropy", result.cross_entropy.mean())
        self.log("train/dice", result.dice.mean())
        return result.loss

    def draw(self, clips: int, length: int) -> Draws:
        """What chance decides: the first frame always updates deeply, the last never does."""
        deep = torch.rand(length) < self.deep_update
        deep[0], deep[-1] = True, False
        sources = []
        for time in range(1, length):
            if time <= self.references:
                sources.append(torch.arange(time).expand(clips, -1))
                continue
            later = torch.stack([1 + torch.randperm(time - 1)[: self.references - 1] for _ in range(clips)])
            sources.append(torch.cat([torch.zeros(clips, 1, dtype=torch.long), later.sort(dim=1).values], dim=1))
        return Draws(deep, tuple(one.to(self.device) for one in sources))

    def unroll(self, clip: Clip, progress: float, draws: Draws) -> ClipPredictions:
        """Track each clip from its first frame and compare every other frame with its labels.

        Args:
            clip: The clips, all of whose frames are annotated.
            progress: Fraction of training that is done.
            draws: What chance decides.

        Raises:
            ConfigError: if a clip holds too many objects, or too few frames for the memory policy.
        """
        network, (frames, masks, objects) = self.network, clip
        if int(objects.max()) > self.max_objects:
            raise ConfigError(
                f"A clip holds {int(objects.max())} objects, training takes {self.max_objects}.\n"
                "Set --data.max_objects to as many as --model.max_objects."
            )
        policy = network.policy
        if policy is not None and policy.is_learned and frames.shape[1] < _FOLDED:
            raise ConfigError(
                f"Clips of {frames.shape[1]} frames do not reach the memory policy: it first folds the third frame.\n"
                f"Set --data.sampler.length to {_FOLDED} or more."
            )
        size = (frames.shape[3], frames.shape[4])
        view = network.canvas.view(size, size)
        slots = torch.arange(1, 1 + self.max_objects, device=frames.device)
        valid = slots <= objects[:, None].clamp(min=1)  # a clip without objects has one that is never seen
        planes = (masks[:, :1] == slots.view(1, -1, 1, 1)).float()
        features = self.encode_clip(frames, view)
        memories: tuple[XMemMemory, ...] = (network.start(valid, network.train_rules, draws.deep_updates),)
        raw = network.planes(masks[:, 0], self.max_objects, view)  # the truth is encoded as it is, not aggregated
        given = Given(planes, valid)
        _, memories = self.call(advance, network, features[0], memories, view, time=0, given=given, forced=raw)
        logits, entropies, dices = [], [], []
        last = frames.shape[1] - 1
        for time in range(1, 1 + last):
            result, memories = self.call(
                advance,
                network,
                features[time],
                memories,
                view,
                time=time,
                sources=draws.sources[time - 1] if policy is None else None,
                last=time == last,
            )
            entropy, dice = self.loss(result.logits, result.probabilities, masks[:, time], valid, progress)
            logits.append(result.logits)
            entropies.append(entropy)
            dices.append(dice)
        total = torch.stack(entropies).sum() + torch.stack(dices).sum()
        return ClipPredictions(total, torch.stack(entropies), torch.stack(dices), torch.stack(logits))
