"""The second stage: a network of its own, trained on the label maps of the first, or on true ones.

Shapes: B images, C bands, K classes (background is one where the dataset has it), H W pixels of an image on disk, h w
pixels that the network sees.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lightning_vos.errors import ConfigError
from lightning_vos.models.token_masking.label_map_module import LabelMapModule
from lightning_vos.models.token_masking.segmentation_networks import SegmentationNetwork
from lightning_vos.optim import PolynomialSchedule, parameter_groups, training_steps
from lightning_vos.structures import MaskedImages, ScoredImage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch.utilities.types import OptimizerLRScheduler

_NOT_LEARNT = 255
_UNDECAYED = ("pos_embed", "cls_token", "reg_token")


@dataclass(frozen=True)
class Views:
    """How a whole image is shown to the network.

    Attributes:
        scales: The image grows by each of these factors; bilinear.
        flip: Whether each is shown flipped, too; the logits of both are added.
        merge: What becomes of the logits of the scales: "max" takes the largest (ToCo, DuPL), "mean" their mean.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    merge: Literal["max", "mean"] = "max"

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if not self.scales or min(self.scales) <= 0 or self.merge not in ("max", "mean"):
            raise ValueError(
                f"Views: scales={self.scales}, merge={self.merge!r}; expected factors above 0, and max or mean"
            )

    def describe(self) -> str:
        """One clause, to be printed beside a score.

        >>> Views((1.0, 1.25), flip=True).describe()
        'scales 1, 1.25 (max of logits) with flips'
        """
        scales = f"scale{'s' if len(self.scales) > 1 else ''} {', '.join(f'{scale:g}' for scale in self.scales)}"
        merged = f" ({self.merge} of logits)" if len(self.scales) > 1 else ""
        return f"{scales}{merged} {'with' if self.flip else 'without'} flips"


_ONE_LOOK = Views()
_SCHEDULE = PolynomialSchedule(floor=1e-6, warmup=0.075, power=0.9, backbone_factor=0.1)


class SegmentationFromMasks(LabelMapModule):
    """Trains a network on label maps, pixel by pixel; that of weakly supervised segmentation on pseudo masks.

    Differs from the paper, which says neither: optimizer and learning rates are those of ToCo and DuPL, with which it
    compares itself; a head learns ten times as fast as the backbone.

    Args:
        network: The network; its classes are those of the data's masks, in their order.
        optimizer: Called with groups of parameters.
        schedule: Of the learning rate.
        views: How `test` and `predict` look at an image. Validation looks once, at its own size.
        weights: As `LabelMapModule`.
        weights_may_lack: As `LabelMapModule`, such as `decoder` or `head` for weights that know other classes.

    Logs `train/loss`; `val/mIoU` and `val/pixel_accuracy` in percent, at the size of the images on disk; the same under
    `test/`, with what a test costs.
    """

    class_entries = ("decoder", "head")

    def __init__(
        self,
        network: SegmentationNetwork,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=6e-4, weight_decay=0.01),
        schedule: PolynomialSchedule = _SCHEDULE,
        views: Views = _ONE_LOOK,
        weights: str | None = None,
        weights_may_lack: Sequence[str] = (),
    ) -> None:
        super().__init__(network, weights, weights_may_lack)
        self.network: SegmentationNetwork
        self.optimizer, self.schedule, self.views = optimizer, schedule, views

    def setup(self, stage: str) -> None:
        """Refuse what cannot run.

        Raises:
            ConfigError: Nothing says which masks to train on; or as `LabelMapModule`.
        """
        super().setup(stage)
        if stage == "fit" and getattr(self._data, "train_masks", None) is None:
            raise ConfigError(
                "Nothing says which masks to train on (data.train_masks).\n"
                "Name those that a first stage wrote for the training images: --data.train_masks FOLDER\n"
                "  lightning_vos predict --config configs/token_masking_voc.yaml --ckpt_path best "
                "--data.predict_split train\n"
                "or train on the dataset's own, which is full supervision: --data.train_masks own."
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Groups with and without weight decay, of the backbone and of the rest.

        Raises:
            ConfigError: The training has no end, or the learning rate is not above 0.
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

    def training_step(self, batch: MaskedImages, batch_idx: int) -> Tensor:
        """Loss of a batch of images."""
        loss = cross_entropy(self.network(batch.images), batch.masks)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def evaluate(self, sample: ScoredImage) -> NDArray[np.uint8]:
        """Give each pixel of an image its class."""
        image = sample.image
        began = time.perf_counter()
        classes = segment(self.network, image.pixels, image.size, self._views)
        labels = (classes + self._class_set.first).to(torch.uint8).cpu().numpy()
        self.score(sample, labels, time.perf_counter() - began)
        return labels

    @property
    def _views(self) -> Views:
        """How images are looked at: once in a validation."""
        return _ONE_LOOK if self._is_quick else self.views

    @property
    def class_names(self) -> Sequence[str]:
        """The classes of the masks."""
        return self._class_set.names

    def measured(self, summary: Mapping[str, float]) -> dict[str, float]:
        """How well label maps are known."""
        return {name: summary[name] for name in ("mIoU", "pixel_accuracy")}

    def describe(self) -> str:
        """The network, and how it looks at an image."""
        return f"{type(self.network).__name__}, {self._views.describe()}"

    def made_with(self) -> dict[str, Any]:
        """What label maps depend on."""
        return super().made_with() | {"views": asdict(self.views)}


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean over the pixels that are learnt from; 0 if there is none.

    Args:
        logits: (B, K, h, w).
        masks: (B, h, w) classes, 255 where nothing is learnt.
    """
    total = F.cross_entropy(logits.float(), masks, ignore_index=_NOT_LEARNT, reduction="sum")
    return total / (masks != _NOT_LEARNT).sum().clamp(min=1)


@torch.no_grad()
def segment(network: SegmentationNetwork, pixels: Tensor, size: tuple[int, int], views: Views = _ONE_LOOK) -> Tensor:
    """The class of each pixel of an image.

    Args:
        network: In eval mode.
        pixels: (C, h, w), normalised as in training.
        size: (H, W) of the image on disk, to which logits are brought, bilinear, before they are compared.
        views: How the image is shown.

    Returns:
        (H, W) int64, classes from 0 on.
    """
    merged: Tensor | None = None
    for scale in views.scales:
        shape = [max(round(scale * side), 1) for side in pixels.shape[1:]]
        image = F.interpolate(pixels[None], shape, mode="bilinear", align_corners=False)
        logits = network(image)
        if views.flip:
            logits = logits + network(image.flip(-1)).flip(-1)
        logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
        if merged is None:
            merged = logits
        else:
            merged = torch.maximum(merged, logits) if views.merge == "max" else merged + logits
    assert merged is not None, "there is a scale"
    return merged[0].argmax(dim=0)
