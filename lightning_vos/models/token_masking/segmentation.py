"""The second stage: a network of its own, trained on the label maps of the first, or on true ones.

Shapes: B images, C bands, K classes (background is one where the dataset has it), H W pixels of an image on disk, h w
pixels that the network sees.
"""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lightning_vos.callbacks.label_maps import LabelMapScoreWriter, LabelMapWriter, is_there, tell_label_map
from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.scores import Scores
from lightning_vos.evaluation.semantic import ClassSet, measures
from lightning_vos.metrics.label_maps import LabelMapConfusion
from lightning_vos.models.token_masking.segmentation_networks import SegmentationNetwork
from lightning_vos.optim import PolynomialSchedule, parameter_groups, training_steps
from lightning_vos.structures import MaskedImages, ScoredImage
from lightning_vos.vos.module import VideoModule

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

_NOT_LEARNT = 255
_QUICK = (TrainerFn.FITTING, TrainerFn.VALIDATING)  # one look at every image
_UNDECAYED = ("pos_embed", "cls_token", "reg_token")
_CLASSES = "classes"  # key of a checkpoint: names
_SHOWN = 4  # names in a message


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


class SegmentationFromMasks(VideoModule):
    """Trains a network on label maps, pixel by pixel; that of weakly supervised segmentation on pseudo masks.

    Differs from the paper, which says neither: optimizer and learning rates are those of ToCo and DuPL, with which it
    compares itself; a head learns ten times as fast as the backbone.

    Args:
        network: The network; its classes are those of the data's masks, in their order.
        optimizer: Called with groups of parameters.
        schedule: Of the learning rate.
        views: How `test` and `predict` look at an image. Validation looks once, at its own size.
        weights: As `VideoModule`.
        weights_may_lack: As `VideoModule`, such as `decoder` or `head` for weights that know other classes.

    Logs `train/loss`; `val/mIoU` and `val/pixel_accuracy` in percent, at the size of the images on disk; the same under
    `test/`, with what a test costs.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=6e-4, weight_decay=0.01),
        schedule: PolynomialSchedule = _SCHEDULE,
        views: Views = _ONE_LOOK,
        weights: str | None = None,
        weights_may_lack: Sequence[str] = (),
    ) -> None:
        super().__init__(cast("Any", network), weights, weights_may_lack)
        self.network: SegmentationNetwork = network  # type: ignore[assignment]
        self.optimizer, self.schedule, self.views = optimizer, schedule, views
        self.scores: Scores | None = None  # of the last evaluation, if there was any truth
        self._confusion = LabelMapConfusion()
        self._trained_on: Sequence[str] | None = None

    def configure_callbacks(self) -> Sequence[Callback]:
        """Label maps and scores of `test` and `predict` are always written."""
        listed: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        own = [] if any(isinstance(callback, LabelMapWriter) for callback in listed) else [LabelMapWriter()]
        return [*own, LabelMapScoreWriter()]

    def setup(self, stage: str) -> None:
        """Refuse what cannot run.

        Raises:
            ConfigError: The data has another number of classes than the network, or nothing says which masks to train
                on; or as `VideoModule`.
        """
        super().setup(stage)
        names = self._class_set.names
        if len(names) != self.network.classes:
            raise ConfigError(
                f"The masks of the data have {len(names)} classes: {_some(names)}\n"
                f"  the network has {self.network.classes}.\n"
                f"Set --model.network.classes={len(names)}."
            )
        if stage == "fit" and getattr(self.trainer.datamodule, "train_masks", None) is None:  # type: ignore[attr-defined]
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the classes: the same output is another class in another dataset."""
        checkpoint[_CLASSES] = list(self._class_set.names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember which classes the weights know."""
        self._trained_on = checkpoint.get(_CLASSES)

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self._begin()

    def on_test_epoch_start(self) -> None:
        """Forget the last evaluation and its costs."""
        self._begin()

    def on_predict_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self._begin()

    def _begin(self) -> None:
        names = self._class_set.names
        if self._trained_on is not None and list(self._trained_on) != list(names):
            raise ConfigError(
                f"The checkpoint knows other classes than the data: {_some(self._trained_on)}, not {_some(names)}.\n"
                "Use it on data with the classes of its training; to train it on these: --model.weights FILE."
            )
        self._confusion.reset()
        self.scores = None
        self.forget_costs()

    def validation_step(self, batch: ScoredImage, batch_idx: int) -> None:
        """Score one image."""
        self._evaluate(batch)

    def test_step(self, batch: ScoredImage, batch_idx: int) -> None:
        """Score one image and hand its label map to the callbacks."""
        tell_label_map(self.trainer, batch, self._evaluate(batch))

    def predict_step(self, batch: ScoredImage, batch_idx: int) -> None:
        """Hand the label map of an image to the callbacks, unless they have it already."""
        if not is_there(self.trainer, batch.image.name):
            tell_label_map(self.trainer, batch, self._evaluate(batch))

    def _evaluate(self, sample: ScoredImage) -> NDArray[np.uint8]:
        image, truth = sample.image, sample.truth
        began = time.perf_counter()
        classes = segment(self.network, image.pixels, image.size, self._views)
        labels = (classes + self._class_set.first).to(torch.uint8).cpu().numpy()
        self.seconds += time.perf_counter() - began  # the label map is on the host: nothing is still being computed
        self.frames += 1
        if truth is not None and truth.mask is not None:
            self._confusion.update(sample.number, truth.mask.cpu().numpy(), labels)
        return labels

    @property
    def _views(self) -> Views:
        """How images are looked at: once in a validation."""
        return _ONE_LOOK if self.trainer.state.fn in _QUICK else self.views

    @property
    def _class_set(self) -> ClassSet:
        class_set: ClassSet = self.trainer.datamodule.class_set  # type: ignore[attr-defined]
        return class_set

    def on_validation_epoch_end(self) -> None:
        """Log the scores of all images of all ranks."""
        self._end("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores of all images of all ranks, speed, memory and size."""
        self._end("test")
        self.log_costs()

    def _end(self, stage: str) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*was called before the ``update`` method")  # nothing has truth
            counts = self._confusion.compute()  # a collective call: every rank makes it
        summary, categories = measures(counts, self._class_set, "counted")
        if counts.any():
            self.scores = Scores("semantic", self.protocol(), summary, categories=categories)
        for name in ("mIoU", "pixel_accuracy"):
            if stage == "val" or self.scores is not None:  # a best checkpoint is chosen by a validation
                self.log(f"{stage}/{name}", summary[name], prog_bar=name == "mIoU")

    def protocol(self) -> str:
        """One sentence: what label maps and their scores are of."""
        data, fn = self.trainer.datamodule, self.trainer.state.fn  # type: ignore[attr-defined]
        split = "val" if fn in _QUICK else data.predict_split if fn == TrainerFn.PREDICTING else "test"
        return f"{data.describe(split)[0]}: {type(self.network).__name__}, {self._views.describe()}"

    def made_with(self) -> dict[str, Any]:
        """What label maps depend on: weights, by a checksum, and settings."""
        checksum = 0
        for value in self.network.state_dict().values():
            checksum = zlib.crc32(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), checksum)
        return {
            "protocol": self.protocol(),
            "weights": f"{checksum:08x}",
            "views": asdict(self.views),
            "classes": list(self._class_set.names),
        }


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


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
