"""HODOR as a LightningModule: training on clips of which the first frame, or every frame, is annotated.

Shapes: B clips, T frames, N object slots, H W pixels, P predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from lightning_vos.errors import ConfigError
from lightning_vos.losses.segmentation import IGNORED, DiceAndCrossEntropy, dice_and_cross_entropy
from lightning_vos.models.hodor.cycles import Cycle, Path, paths
from lightning_vos.models.hodor.encoder import leaves_trace
from lightning_vos.models.hodor.memory import DescriptorMemory
from lightning_vos.models.hodor.network import HODORNetwork
from lightning_vos.optim import StepSchedule, training_steps
from lightning_vos.structures import Clip
from lightning_vos.vos.module import VOSModule
from lightning_vos.vos.network import Given, advance

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

_SCHEDULE = StepSchedule()


class CyclePredictions(NamedTuple):
    """What a batch of clips gave, of the frames that are annotated."""

    loss: DiceAndCrossEntropy
    frames: tuple[int, ...]  # P, the frame of each prediction
    logits: Tensor  # (B, 1 + N, P, H, W)
    labels: Tensor  # (B, P, H, W), what they were compared with


class HODOR(VOSModule):
    """Trains a `HODORNetwork` by decoding the frames of a clip from one another, in cycles that end where they began.

    A frame whose mask is 255 throughout is not annotated: it is a station of the cycle that nothing is compared with.

    Args:
        network: The network.
        cycle: Which frames are decoded from which: `published_mix`, `forward_backward` (paper), or `none`, see
            `lightning_vos.models.hodor.cycles.paths`.
        optimizer: Called with all parameters.
        schedule: Of the learning rate.
        weights: As `VOSModule`.
        weights_may_lack: As `VOSModule`.
        activation_checkpointing: As `VOSModule`.
        flip: As `VOSModule`.
        scales: As `VOSModule`.

    Raises:
        ValueError: if there is no such cycle.
    """

    def __init__(
        self,
        network: HODORNetwork,
        cycle: Cycle = "published_mix",
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=1e-4, weight_decay=0.01),
        schedule: StepSchedule = _SCHEDULE,
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
        self.network: HODORNetwork
        if cycle not in ("none", "forward_backward", "published_mix"):
            raise ValueError(f"HODOR.cycle is {cycle!r}, expected none, forward_backward or published_mix")
        self.cycle: Cycle = cycle
        self.optimizer, self.schedule = optimizer, schedule

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """All parameters in one group, with weight decay, as published.

        Raises:
            ConfigError: if the training has no end.
        """
        optimizer = self.optimizer([parameter for parameter in self.network.parameters() if parameter.requires_grad])
        return self.schedule.configure(optimizer, training_steps(self.trainer))

    def training_step(self, batch: Clip, batch_idx: int) -> Tensor:
        """Loss of a batch of clips."""
        loss = self.unroll(batch, self.global_step + batch_idx % self.trainer.accumulate_grad_batches).loss
        self.log("train/loss", loss.total, prog_bar=True)
        self.log("train/dice", loss.dice)
        self.log("train/cross_entropy", loss.cross_entropy)
        return loss.total

    def unroll(self, clip: Clip, iteration: int) -> CyclePredictions:
        """Walk through each clip and compare annotated frames with their labels.

        An object counts in a walk as long as it is present in a source of each step; once it is lost, it is background
        there. Where nobody annotated a frame, it is taken to be present.

        Args:
            clip: The clips, whose first frame is annotated.
            iteration: Number of the batch, see `paths`.

        Raises:
            ConfigError: if no frame that is decoded is annotated, or as `paths`.
        """
        network, (frames, masks) = self.network, (clip.frames, clip.masks)
        size = (frames.shape[3], frames.shape[4])
        view = network.canvas.view(size, size)
        slots = torch.arange(1, 1 + int(clip.objects.max()), device=frames.device)
        planes = (masks[:, :1] == slots.view(1, -1, 1, 1)).float()
        described = leaves_trace(network.planes(masks[:, 0], len(slots), view)[:, -len(slots) :])
        valid = (slots <= clip.objects[:, None]) & described
        is_annotated = (masks != IGNORED).flatten(2).any(dim=2)  # (B, T)
        shown = (masks[:, :, None] == slots.view(1, 1, -1, 1, 1)).flatten(3).any(dim=3)
        present = shown | ~is_annotated[:, :, None]  # (B, T, N)
        supervised = is_annotated.any(dim=0).tolist()

        features = self.encode_clip(frames, view)
        memories: tuple[DescriptorMemory, ...] = (network.start(valid, network.train_rules),)
        _, memories = self.call(advance, network, features[0], memories, view, time=0, given=Given(planes, valid))
        reached: dict[Path, tuple[tuple[DescriptorMemory, ...], Tensor]] = {(): (memories, valid)}
        times, logits, labels = [], [], []
        for walk in paths(self.cycle, frames.shape[1], iteration):
            for end in range(1, len(walk) + 1):
                path = walk[:end]
                if path in reached:
                    continue
                (sources, time), (memories, known) = path[-1], reached[path[:-1]]
                known = known & present[:, list(sources)].any(dim=1)
                read = torch.tensor(sources, device=frames.device).expand(len(frames), -1)
                masks_of_step, memories = self.call(
                    advance, network, features[time], memories, view, time=time, sources=read, last=time == 0
                )
                reached[path] = (memories, known)
                if supervised[time]:
                    times.append(time)
                    logits.append(masks_of_step.logits)
                    labels.append(_without_lost(masks[:, time], known))
        if not times:
            raise ConfigError(
                f"Nothing can be learnt: of the frames that model.cycle={self.cycle} decodes none is annotated.\n"
                "Set --model.cycle=forward_backward or published_mix, which come back to the first frame."
            )
        stacked, truth = torch.stack(logits, dim=2), torch.stack(labels, dim=1)
        return CyclePredictions(dice_and_cross_entropy(stacked, truth), tuple(times), stacked, truth)


def _without_lost(labels: Tensor, known: Tensor) -> Tensor:
    """(B, H, W) labels in which objects that (B, N) does not know are background."""
    lost = ~torch.nn.functional.pad(known, (1, 0), value=True)
    numbers = labels.where(labels != IGNORED, 0)
    is_lost = lost.gather(1, numbers.flatten(1)).view_as(labels)
    return labels.where(~is_lost, 0)
