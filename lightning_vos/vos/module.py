"""What LightningModules share: start weights and costs; of semi-supervised ones, whole-video evaluation and scores."""

from __future__ import annotations

import resource
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import lightning.pytorch as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_vos.callbacks.predictions import PredictionCallback
from lightning_vos.callbacks.results import MaskWriter, ScoreWriter, SubmissionWriter
from lightning_vos.errors import ConfigError
from lightning_vos.metrics.region_boundary import RegionBoundary
from lightning_vos.metrics.sequence import SequenceScorer
from lightning_vos.structures import ScoredVideo
from lightning_vos.vos.track import Remembering, track

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning.pytorch.callbacks import Callback

    from lightning_vos.models.taformer.network import TAFormerNetwork
    from lightning_vos.vos.canvas import View
    from lightning_vos.vos.network import VOSNetwork

P = ParamSpec("P")
Result = TypeVar("Result")

_QUICK = (TrainerFn.FITTING, TrainerFn.VALIDATING)  # one pass over every video
_GROUPED = tuple(f"{name}_{group}" for name in ("J", "F") for group in ("seen", "unseen"))
_VARIATION = ("V", "V_seen", "V_unseen")


class VideoModule(L.LightningModule):
    """What all methods that see whole videos at test share: start weights, what cannot run, what a test costs.

    Args:
        network: The network.
        weights: A checkpoint of ours or a published file to start from, for training and for testing.
        weights_may_lack: Beginnings of entry names that `weights` need not have, such as `policy`, or the network.

    Logs `test/FPS`, `test/peak_memory_gb` and `test/parameters`.
    """

    def __init__(
        self,
        network: VOSNetwork[Any] | TAFormerNetwork,
        weights: str | None = None,
        weights_may_lack: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.weights = weights
        self.weights_may_lack = tuple(weights_may_lack)
        self.frames, self.seconds = 0, 0.0  # that a test has seen, and what the network needed for them

    def on_fit_start(self) -> None:
        """Start from `weights`, else from what the network's recipe starts from.

        Raises:
            CheckpointError: if the weights cannot be had or do not fit.
        """
        if not self._has_weights():
            self.network.load_start_weights()

    def on_validation_start(self) -> None:
        """Load `weights` where a checkpoint is not what is validated; errors as `on_test_start`."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._need_weights()

    def on_test_start(self) -> None:
        """Load `weights` where a checkpoint is not what is tested.

        Raises:
            CheckpointError: if the weights cannot be had or do not fit.
            ConfigError: if there is nothing to test with.
        """
        self._need_weights()

    def on_predict_start(self) -> None:
        """Load `weights` where a checkpoint is not what predicts; errors as `on_test_start`."""
        self._need_weights()

    def _has_weights(self) -> bool:
        """Whether a checkpoint was restored, or `weights` are there, which are loaded then."""
        if self.trainer.ckpt_path is not None:
            return True
        if self.weights is None:
            return False
        # Published layouts know the networks they belong to, so they can only be asked for here.
        from lightning_vos.published import load_weights

        rank_zero_info(load_weights(self.network, Path(self.weights), self.weights_may_lack))
        return True

    def _need_weights(self) -> None:
        if not self._has_weights():
            raise ConfigError(
                "There are no weights to run with: random ones give random masks.\n"
                "Name a run of this recipe: --ckpt_path best (or last, or a file), or weights: --model.weights FILE."
            )

    def setup(self, stage: str) -> None:
        """Refuse what cannot run.

        Raises:
            ConfigError: if all of the network were to be in half precision.
        """
        if str(self.trainer.precision) in {"16-true", "bf16-true"}:
            raise ConfigError(
                f"trainer.precision is {self.trainer.precision}, but masks need 32 bit.\n"
                "Use 16-mixed or bf16-mixed, which compute in half precision where that is safe."
            )

    def forget_costs(self) -> None:
        """Begin to measure anew."""
        self.frames, self.seconds = 0, 0.0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def log_costs(self) -> None:
        """Log the speed of all ranks together, the peak of memory and the size of the network."""
        # A collective call: a rank whose videos have one frame each makes it as well.
        counted = self.all_gather(torch.tensor([self.frames, self.seconds], device=self.device))
        frames, seconds = cast("torch.Tensor", counted).reshape(-1, 2).sum(dim=0)
        self.log("test/FPS", frames / seconds)
        self.log("test/peak_memory_gb", self._peak_memory(), reduce_fx="max", sync_dist=True)
        self.log("test/parameters", float(sum(p.numel() for p in self.network.parameters())))

    def _peak_memory(self) -> float:
        """Gigabytes (1e9 bytes): allocated on the GPU since the test began, or resident since the process began."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class VOSModule(VideoModule):
    """Validates, tests and predicts whole videos with a network; a subclass adds how it is trained.

    Args:
        network: The network.
        weights: As `VideoModule`.
        weights_may_lack: As `VideoModule`.
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
