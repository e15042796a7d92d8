"""What learns nothing, scored beside a method in `test`: what it must beat."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import cv2
import numpy as np
from rich.console import Console

from lightning_vos.callbacks.predictions import PredictionCallback
from lightning_vos.metrics.region_boundary import RegionBoundary
from lightning_vos.metrics.sequence import SequenceScorer

if TYPE_CHECKING:
    import lightning.pytorch as L
    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_vos.structures import Prediction, ScoredInstanceVideo, ScoredVideo
    from lightning_vos.vos.module import VOSModule


class Baseline(PredictionCallback):
    """Scores masks that nothing was learnt for.

    Logs `test/J&F_<key>`.

    Attributes:
        key: Of what is logged.
        title: In the line that is printed.
    """

    key: str
    title: str

    def __init__(self) -> None:
        self._scores = RegionBoundary()
        self._scorer: SequenceScorer | None = None

    @abstractmethod
    def follow(self, frame: Tensor, given: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        """Label map of the next frame.

        Args:
            frame: (3, H, W) RGB in [0, 1].
            given: (H, W) label map of objects that are told in this frame, 0 elsewhere.

        Returns:
            (H, W), None before anything was given.
        """

    @abstractmethod
    def forget(self) -> None:
        """The next frame is of another video."""

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the last test."""
        self._scores.to(pl_module.device).reset()

    def on_prediction(
        self, trainer: L.Trainer, sample: ScoredVideo, number: int, frame: Tensor, prediction: Prediction
    ) -> None:
        """Score the masks of one frame."""
        labels = self.follow(frame, sample.video.prompts.get(number))
        if labels is not None and sample.truth is not None and number in sample.truth.plan.frames:
            if self._scorer is None:
                self._scorer = SequenceScorer(sample.truth.plan)
            self._scorer.add(number, labels, sample.truth.read(number))

    def on_video_end(self, trainer: L.Trainer, sample: ScoredVideo | ScoredInstanceVideo) -> None:
        """Begin anew with the next video."""
        if self._scorer is not None:
            self._scores.update(sample.number, self._scorer.rows())
        self._scorer = None
        self.forget()

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: VOSModule) -> None:  # type: ignore[override]
        """Log the score and print it beside the method's; nothing without public truth."""
        score = self._scores.compute().summary["J&F"]
        if math.isnan(score):
            return
        method = pl_module.scores.compute().summary["J&F"]
        pl_module.log(f"test/J&F_{self.key}", score)
        if trainer.is_global_zero:
            Console().print(
                f"J&F {method:.1f} %, {self.title} {score:.1f} %: {method - score:+.1f} points", style="bold"
            )


class RepeatFirstMask(Baseline):
    """The given masks repeated for ever: what a method must beat to have followed anything."""

    key = "first_mask_repeated"
    title = "first mask repeated"

    def __init__(self) -> None:
        super().__init__()
        self._labels: NDArray[np.uint8] | None = None

    def follow(self, frame: Tensor, given: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        """As `Baseline`."""
        if given is not None:
            self._labels = given if self._labels is None else np.where(given > 0, given, self._labels)
        return self._labels

    def forget(self) -> None:
        """As `Baseline`."""
        self._labels = None


class OpticalFlow(Baseline):
    """Soft masks moved from frame to frame along dense optical flow (DIS, Kroeger et al., ECCV 2016, medium preset)."""

    key = "optical_flow"
    title = "moved by optical flow"

    def __init__(self) -> None:
        super().__init__()
        self._flow: cv2.DISOpticalFlow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._grey: cv2.typing.MatLike | None = None  # of the frame before
        self._planes: dict[int, cv2.typing.MatLike] = {}  # label -> soft mask

    def follow(self, frame: Tensor, given: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        """As `Baseline`."""
        picture = (frame * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        if self._grey is not None and self._planes:
            flow = self._flow.calc(grey, self._grey, np.zeros((*grey.shape, 2), np.float32))  # where pixels were
            height, width = grey.shape
            x, y = flow[..., 0] + np.arange(width), flow[..., 1] + np.arange(height)[:, None]
            self._planes = {
                label: cv2.remap(plane, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)
                for label, plane in self._planes.items()
            }
        self._grey = grey
        if given is not None:
            free = given == 0
            self._planes = {label: plane * free for label, plane in self._planes.items()}
            for label in np.unique(given[~free]).tolist():
                self._planes[label] = (given == label).astype(np.float32)
        if not self._planes:
            return None
        planes = np.stack(list(self._planes.values()))
        labels = np.array([0, *self._planes], np.uint8)
        return labels[np.concatenate([1 - planes.sum(axis=0, keepdims=True), planes]).argmax(axis=0)]

    def forget(self) -> None:
        """As `Baseline`."""
        self._grey, self._planes = None, {}
