"""MAVOS as a LightningModule: sequential training on clips (paper Sec. 4; the published recipe).

Shapes: B clips, T frames, N object slots, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_vos.callbacks.averaging import WarmEMA
from lightning_vos.errors import ConfigError
from lightning_vos.losses.segmentation import BootstrappedJaccard
from lightning_vos.models.mavos.memory import MAVOSMemory
from lightning_vos.models.mavos.network import MAVOSNetwork
from lightning_vos.optim import PolynomialSchedule, parameter_groups, training_steps
from lightning_vos.structures import Clip
from lightning_vos.vos.module import VOSModule
from lightning_vos.vos.network import Given, advance

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

_UNDECAYED = ("decoder.exit", "relative_value", "relative_position_bias_table")
_SCHEDULE = PolynomialSchedule()


class ClipLosses(NamedTuple):
    """Losses of a batch of clips."""

    total: Tensor  # ()
    frames: Tensor  # (T, B), of the reference frame first
    labels: Tensor  # (T - 1, B, H, W), the network's own


class MAVOS(VOSModule):
    """Trains a `MAVOSNetwork`: every frame after the reference is propagated and supervised.

    Differs from the paper: the loss is bootstrapped cross entropy with soft Jaccard, not "BCE"; an auxiliary loss on
    the reference frame is added (published code). The learning rate is the paper's 1e-4; the published default is 5e-5.

    Args:
        network: The network.
        loss: Of one frame.
        optimizer: Called with the parameter groups.
        schedule: Of the learning rate.
        sequential_from: Fraction of training after which the network remembers its own labels instead of the truth, and
            the identity assignment no longer learns.
        auxiliary_until: Fraction of training in which the weight of the reference frame's loss falls from 1 to 0.
        weights: As `VOSModule`.
        weights_may_lack: As `VOSModule`.
        activation_checkpointing: As `VOSModule`.
        flip: As `VOSModule`.
        scales: As `VOSModule`.
    """

    def __init__(
        self,
        network: MAVOSNetwork,
        loss: BootstrappedJaccard | None = None,
        optimizer: OptimizerCallable = lambda groups: AdamW(groups, lr=1e-4, weight_decay=0.07),
        schedule: PolynomialSchedule = _SCHEDULE,
        sequential_from: float = 0.5,
        auxiliary_until: float = 1.0,
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
        self.network: MAVOSNetwork
        self.loss = loss or BootstrappedJaccard()
        self.optimizer, self.schedule = optimizer, schedule
        if not 0 <= sequential_from <= 1 or not 0 <= auxiliary_until <= 1:
            raise ValueError(
                f"sequential_from is {sequential_from} and auxiliary_until {auxiliary_until}, expected fractions of 1"
            )
        self.sequential_from, self.auxiliary_until = sequential_from, auxiliary_until

    def configure_callbacks(self) -> Sequence[Callback]:
        """The averaged weights are validated and saved beside the plain ones."""
        return [*super().configure_callbacks(), WarmEMA()]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Four parameter groups, one schedule by steps.

        Raises:
            ConfigError: if the training has no end.
        """
        steps = training_steps(self.trainer)
        groups = parameter_groups(self.network, self.network.backbone, _UNDECAYED)
        in_backbone = [group.pop("backbone") for group in groups]
        optimizer = self.optimizer(groups)
        factors = [
            self.schedule.factor(steps, group["lr"], backbone=inner)
            for group, inner in zip(optimizer.param_groups, in_backbone, strict=True)
        ]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factors), "interval": "step"}}

    @property
    def progress(self) -> float:
        """Fraction of training that is done."""
        return self.global_step / max(int(self.trainer.estimated_stepping_batches), 1)

    def training_step(self, batch: Clip, batch_idx: int) -> Tensor:
        """Loss of a batch of clips."""
        losses = self.unroll(batch, self.progress, self._permutation(len(batch.frames)))
        self.log("train/loss", losses.total, prog_bar=True)
        self.log("train/loss_propagated", losses.frames[1:].mean())
        self.log("train/loss_reference", losses.frames[0].mean())
        return losses.total

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """In sequential training the identity assignment is fixed: no step, no decay, no part in the clipped norm."""
        if self.progress >= self.sequential_from:
            for parameter in self.network.assignment.parameters():
                parameter.grad = None

    def _permutation(self, clips: int) -> Tensor:
        """(B, 1 + N, 1 + N) random exchange of object slots, the background staying."""
        slots = self.network.capacity
        permutation = torch.zeros(clips, 1 + slots, 1 + slots, device=self.device)
        permutation[:, 0, 0] = 1
        for matrix in permutation:
            matrix[torch.arange(1, 1 + slots), 1 + torch.randperm(slots)] = 1
        return permutation

    def unroll(self, clip: Clip, progress: float, permutation: Tensor | None) -> ClipLosses:
        """Track each clip from its first frame and compare every frame with its labels.

        Args:
            clip: The clips.
            progress: Fraction of training that is done.
            permutation: (B, 1 + N, 1 + N) exchange of identities, or None.

        Raises:
            ConfigError: if the clips are too short for the memory policy to get a gradient, or hold too many objects.
        """
        network = self.network
        self._check(clip)
        frames, masks = clip.frames, clip.masks
        size = (frames.shape[3], frames.shape[4])
        view = network.canvas.view(size, size)
        features = self.encode_clip(frames, view)
        slots = torch.arange(network.capacity, device=frames.device)
        valid = slots < clip.objects[:, None]
        planes = (masks[:, 0, None] == 1 + slots.view(1, -1, 1, 1)).float()
        memories: tuple[MAVOSMemory, ...] = (network.start(valid, network.train_rules, permutation),)
        _, memories = self.call(advance, network, features[0], memories, view, time=0, given=Given(planes, valid))

        own_labels = progress >= self.sequential_from
        auxiliary_weight = max(1 - progress / self.auxiliary_until, 0.0) if self.auxiliary_until else 0.0
        with torch.set_grad_enabled(auxiliary_weight > 0 and torch.is_grad_enabled()):
            logits, memory = network.segment(features[0], memories[0], view, time=0)
            again = network.resolve((logits,), (memory,), view)
            reference = self.loss(again.logits, masks[:, 0], progress)
        losses, labels = [], []
        last = frames.shape[1] - 1
        for time in range(1, 1 + last):
            forced = None if own_labels else network.planes(masks[:, time], network.capacity, view)
            result, memories = self.call(
                advance, network, features[time], memories, view, time=time, forced=forced, last=time == last
            )
            losses.append(self.loss(result.logits, masks[:, time], progress))
            labels.append(result.labels)
        propagated = torch.stack(losses)
        total = propagated.mean() + auxiliary_weight * reference.mean()
        return ClipLosses(total, torch.cat([reference[None], propagated]), torch.stack(labels))

    def _check(self, clip: Clip) -> None:
        interval = self.network.train_rules.interval
        length, needed = clip.frames.shape[1], 2 * interval + 2
        if self.network.policy.is_learned and length < needed:
            raise ConfigError(
                f"Clips of {length} frames are too short for {type(self.network.policy).__name__} to learn:\n"
                f"  with an update every {interval} frames it gets a gradient from {needed} frames on.\n"
                f"Set --data.sampler.length to {needed} or more, or a smaller --model.network.train_rules.interval."
            )
        if int(clip.objects.max()) > self.network.capacity:
            raise ConfigError(
                f"A clip holds {int(clip.objects.max())} objects, training takes {self.network.capacity} at most."
            )
