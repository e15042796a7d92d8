"""What the LightningModules of semi-supervised methods share: evaluation of whole videos and their scores."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_vos.callbacks.predictions import PredictionCallback
from lightning_vos.callbacks.results import MaskWriter, ScoreWriter, SubmissionWriter
from lightning_vos.metrics.region_boundary import RegionBoundary
from lightning_vos.metrics.sequence import SequenceScorer
from lightning_vos.module import MethodModule
from lightning_vos.structures import ScoredVideo
from lightning_vos.vos.track import Remembering, track

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning.pytorch.callbacks import Callback

    from lightning_vos.vos.canvas import View
    from lightning_vos.vos.network import VOSNetwork

P = ParamSpec("P")
Result = TypeVar("Result")

_QUICK = (TrainerFn.FITTING, TrainerFn.VALIDATING)  # one pass over every video
_GROUPED = tuple(f"{name}_{group}" for name in ("J", "F") for group in ("seen", "unseen"))
_VARIATION = ("V", "V_seen", "V_unseen")


class VOSModule(MethodModule):
    """Validates, tests and predicts whole videos with a network; a subclass adds how it is trained.

    Args:
        network: The network.
        weights: As `MethodModule`.
        weights_may_lack: As `MethodModule`.
        activation_checkpointing: Whether training keeps what passes between the steps of a clip alone, and computes the
            inside of each step again in the backward pass: less memory, more time, and the same gradients where batch
            norms are frozen. Others see a frame at a time, and twice.
        flip: Whether `test` and `predict` see every frame flipped, too, as `Tracker` does.
        scales: The scales at which `test` and `predict` see every frame, as `Tracker` does.

    Logs `val/J&F`, `val/J`, `val/F` and `val/identity_switches` (of all videos together) in `fit` and `validate`, the
    same under `test/` with `test/FPS`, `test/peak_memory_gb` and `test/parameters`. What the protocol of the data has
    besides is logged beside them: `J_seen`, `J_unseen`, `F_seen`, `F_unseen` where it tells them apart, `G` of
    YouTube-VOS then, `V` of LVOS, and `V_seen` and `V_unseen` where it tells them apart.
    """

    def __init__(
        self,
        network: VOSNetwork[Any],
        weights: str | None = None,
        weights_may_lack: Sequence[str] = (),
        *,
        activation_checkpointing: bool = False,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(network, weights, weights_may_lack)
        self.network: VOSNetwork[Any]
        self.activation_checkpointing = activation_checkpointing
        self.flip, self.scales = flip, tuple(scales)
        self.scores = RegionBoundary()

    def configure_callbacks(self) -> Sequence[Callback]:
        """Masks, scores and submissions of `test` and `predict` are always written."""
        return [MaskWriter(), ScoreWriter(), SubmissionWriter()]

    def call(self, part: Callable[P, Result], *arguments: P.args, **keywords: P.kwargs) -> Result:
        """Call a part of the training's forward pass as `activation_checkpointing` says."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(partial(part, *arguments, **keywords), use_reentrant=False)
        return part(*arguments, **keywords)

    def encode_clip(self, frames: Tensor, view: View) -> list[Any]:
        """Features of (B, T, 3, H, W) clips, one entry a frame; in one batch unless activations are not kept."""
        network, (clips, length) = self.network, frames.shape[:2]
        if self.activation_checkpointing:
            each = (network.canvas.enter(frames[:, time], view) for time in range(length))
            return [self.call(network.encode, entered) for entered in each]
        features = network.encode(network.canvas.enter(frames.flatten(0, 1), view))

        def of_frame(maps: Tensor, time: int) -> Tensor:
            return maps.unflatten(0, (clips, length))[:, time]

        return [apply_to_collection(features, Tensor, of_frame, time) for time in range(length)]

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self._begin()

    def on_test_epoch_start(self) -> None:
        """Forget the last evaluation and its memory peak."""
        self._begin()

    def _begin(self) -> None:
        self.scores.reset()
        self.forget_costs()

    def validation_step(self, batch: ScoredVideo, batch_idx: int) -> None:
        """Score one hold-out video."""
        self._evaluate(batch, ())

    def test_step(self, batch: ScoredVideo, batch_idx: int) -> None:
        """Score one video and hand its frames to the callbacks."""
        self._evaluate(batch, self._listeners())

    def predict_step(self, batch: ScoredVideo, batch_idx: int) -> None:
        """Hand the frames of one video to the callbacks."""
        self._evaluate(batch, self._listeners())

    def _listeners(self) -> list[PredictionCallback]:
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [callback for callback in callbacks if isinstance(callback, PredictionCallback)]

    def _evaluate(self, sample: ScoredVideo, listeners: Sequence[PredictionCallback]) -> None:
        video, truth = sample.video, sample.truth
        flip, scales = (False, (1.0,)) if self.trainer.state.fn in _QUICK else (self.flip, self.scales)
        scorer = None if truth is None else SequenceScorer(truth.plan)
        scored = set() if truth is None else set(truth.plan.frames)
        frames = Remembering(video.frames)
        for number, prediction in enumerate(track(self.network, frames, video.prompts, flip=flip, scales=scales)):
            if number > 0:
                self.frames += 1
                self.seconds += prediction.seconds
            if scorer is not None and truth is not None and number in scored:
                scorer.add(number, prediction.labels.to(torch.uint8).cpu().numpy(), truth.read(number))
            for listener in listeners:
                listener.on_prediction(self.trainer, sample, number, frames.latest, prediction)
        if scorer is not None:
            self.scores.update(sample.number, scorer.rows())
        for listener in listeners:
            listener.on_video_end(self.trainer, sample)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of all videos of all ranks."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores of all videos of all ranks, speed, memory and size."""
        self._log_scores("test")
        self.log_costs()

    def _log_scores(self, stage: str) -> None:
        scores = self.scores.compute()
        summary = scores.summary
        if stage == "test" and not scores.objects:
            return  # no public truth; a validation logs even that, for the best checkpoint is chosen by it
        for name in ("J&F", "J", "F"):
            self.log(f"{stage}/{name}", summary[name], prog_bar=name == "J&F")
        grouped = [name for name in _GROUPED if name in summary]
        protocol = getattr(self.trainer.datamodule, "protocol", None)  # type: ignore[attr-defined]
        if protocol == "youtube_vos" and grouped:
            self.log(f"{stage}/G", summary["J&F"])
        for name in (*grouped, *(name for name in _VARIATION if protocol == "lvos" and name in summary)):
            self.log(f"{stage}/{name}", summary[name])
        if scores.objects:
            self.log(f"{stage}/identity_switches", float(summary["switches"]))
