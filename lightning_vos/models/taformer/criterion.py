"""The losses of SeqFormer and TAFormer.

Shapes: L decoder layers, B clips, T frames, N instances, Q queries, K outputs of the class head, H W pixels, h w cells
of the grid of masks, a quarter of the frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from lightning_vos.errors import ConfigError
from lightning_vos.models.taformer.contrastive import contrastive_loss
from lightning_vos.models.taformer.matching import match
from lightning_vos.structures import Instances

if TYPE_CHECKING:
    from lightning_vos.models.taformer.network import VISPredictions

_ABSENT = 1e-6  # every coordinate of the box of an instance in a frame that does not show it


class CriterionResult(NamedTuple):
    """A loss and its parts."""

    total: Tensor  # (), weighted, all decoder layers together
    parts: dict[
        str, Tensor
    ]  # unweighted, (L,) each: class, box, giou, mask, dice; contrastive of the layers that have it


class Criterion(nn.Module):
    """Compares the predictions of every decoder layer with the instances of the clips (TAFormer, equation 9).

    In every layer each instance is matched to a query of its own, and all losses but the contrastive one are sums over
    instances, divided by the number of instances in the batch: the mean number of a process, at least 1. An instance
    counts in the frames that do not show it, too: with a box of next to no size in the corner and an empty mask.
    What lies outside of the frame, on its padding, is empty.

    Args:
        class_weight: Of the focal loss of all queries and classes.
        box_weight: Of the L1 distance of boxes, averaged over frames.
        giou_weight: Of 1 - GIoU, averaged over frames.
        mask_weight: Of the focal loss of masks, averaged over the cells of all frames.
        dice_weight: Of the dice of masks, all frames at once.
        contrastive_weight: Of the contrastive loss of each layer that has embeddings.
        temperature: As `contrastive_loss`.
        reduction: As `contrastive_loss`.

    Raises:
        ValueError: if a weight is below 0, the temperature not above 0, or there is no such reduction.
    """

    def __init__(
        self,
        class_weight: float = 2.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        mask_weight: float = 2.0,
        dice_weight: float = 5.0,
        contrastive_weight: float = 1.0,
        temperature: float = 0.07,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        self.weights = {
            "class": class_weight,
            "box": box_weight,
            "giou": giou_weight,
            "mask": mask_weight,
            "dice": dice_weight,
            "contrastive": contrastive_weight,
        }
        if min(self.weights.values()) < 0 or temperature <= 0 or reduction not in ("mean", "sum"):
            raise ValueError(
                f"Criterion: weights {self.weights}, temperature={temperature}, reduction={reduction!r}; "
                "expected weights of at least 0, a temperature above 0, and mean or sum"
            )
        self.temperature = temperature
        self.reduction: Literal["mean", "sum"] = reduction

    def forward(
        self,
        predictions: VISPredictions,
        masks: Callable[[int, int, Tensor], Tensor],
        instances: tuple[Instances, ...],
        first_class: int,
    ) -> CriterionResult:
        """Loss of a batch of clips; every process of a distributed training calls it, in each step.

        Every prediction gets a gradient, of zero where no instance uses it, so that distributed training need not look
        for unused parameters.

        Args:
            predictions: Of the network.
            masks: Gives the (n, T, h, w) logits of masks of a layer, a clip and (n,) of its queries.
            instances: One entry a clip. Masks count at every fourth pixel, from the third on, in both directions; where
                the grid reaches beyond the padded frame, it is empty.
            first_class: The output of the class head that means class 0.

        Raises:
            ConfigError: a class has no output, or as `match`.
        """
        layers, _, _, outputs = predictions.logits.shape
        highest = max((int(clip.labels.max()) for clip in instances if len(clip.labels)), default=0)
        if first_class + highest >= outputs:
            raise ConfigError(
                f"The data has a class with the number {highest}, counted from 0; the network has none for it:\n"
                f"it has {outputs} outputs, and class 0 is output {first_class}.\n"
                f"Set --model.network.classes to at least {first_class + highest + 1}."
            )
        targets = [
            _Target(
                clip.labels + first_class,
                clip.boxes.where(clip.valid[..., None], _ABSENT),
                clip.masks[..., 2::4, 2::4],
            )
            for clip in instances
        ]
        rows = []
        for layer in range(layers):
            clips = [_clip_losses(predictions, masks, target, layer, clip) for clip, target in enumerate(targets)]
            rows.append(torch.stack(clips).sum(dim=0))
        count = _mean_over_processes(sum(len(target.labels) for target in targets), predictions.logits.device)
        names = ("class", "box", "giou", "mask", "dice")
        parts = dict(zip(names, (torch.stack(rows) / count).unbind(dim=1), strict=True))
        if len(predictions.embeddings):
            parts["contrastive"] = torch.stack(
                [contrastive_loss(layer, self.temperature, self.reduction) for layer in predictions.embeddings]
            )
        total = torch.stack([self.weights[name] * part.sum() for name, part in parts.items()]).sum()
        return CriterionResult(total, {name: part.detach() for name, part in parts.items()})


class _Target(NamedTuple):
    """What a clip is compared with."""

    labels: Tensor  # (N,) outputs of the class head
    boxes: Tensor  # (N, T, 4)
    masks: Tensor  # (N, T, h or less, w or less) bool


def _clip_losses(
    predictions: VISPredictions, masks: Callable[[int, int, Tensor], Tensor], target: _Target, layer: int, clip: int
) -> Tensor:
    """(5,) losses of a layer and a clip, summed over its instances: class, box, giou, mask, dice."""
    logits, boxes = predictions.logits[layer, clip].float(), predictions.boxes[layer, clip].float()
    queries, matched = match(logits, boxes, target.labels, target.boxes)
    classes = torch.zeros_like(logits)
    classes[queries, target.labels[matched]] = 1
    found, truth = boxes[:, queries].transpose(0, 1), target.boxes[matched]  # (n, T, 4)
    overlap = generalized_box_iou(
        box_convert(found, "cxcywh", "xyxy")[:, :, None], box_convert(truth, "cxcywh", "xyxy")[:, :, None]
    )
    if len(queries):
        mask, dice = _mask_losses(masks(layer, clip, queries).float(), target.masks[matched])
    else:  # the mask head is called for instances only
        mask = dice = 0 * (predictions.filters[layer, clip].float().sum() + predictions.mask_features.float().sum())
    return torch.stack(
        [
            sigmoid_focal_loss(logits, classes, reduction="sum"),
            F.l1_loss(found, truth, reduction="sum") / found.shape[1],
            (1 - overlap).sum() / found.shape[1],
            mask,
            dice,
        ]
    )


def _mask_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Focal loss and dice of (n, T, h, w) logits, summed over instances."""
    bottom, right = (logits.shape[axis] - masks.shape[axis] for axis in (2, 3))
    truth = F.pad(masks, (0, right, 0, bottom)).to(logits.dtype).flatten(1)
    logits = logits.flatten(1)
    probabilities = logits.sigmoid()
    overlap, extent = (probabilities * truth).sum(dim=1), probabilities.sum(dim=1) + truth.sum(dim=1)
    return sigmoid_focal_loss(logits, truth).mean(dim=1).sum(), (1 - (2 * overlap + 1) / (extent + 1)).sum()


def _mean_over_processes(count: int, device: torch.device) -> Tensor:
    """(), the mean number of instances in a process, at least 1."""
    mean = torch.tensor(float(count), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean /= torch.distributed.get_world_size()
    return mean.clamp(min=1)
