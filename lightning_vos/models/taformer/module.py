"""TAFormer and SeqFormer as a LightningModule: training on clips with classes, finding instances in whole videos."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW

from lightning_vos.callbacks.instances import InstanceWriter
from lightning_vos.callbacks.predictions import PredictionCallback
from lightning_vos.callbacks.results import SubmissionWriter, gathered
from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.scores import Scores
from lightning_vos.evaluation.youtube_vis import GroundTruth, Results, Track, Tracks, Video, result_track, score_tracks
from lightning_vos.models.taformer.criterion import Criterion
from lightning_vos.models.taformer.inference import InferenceSettings, find_instances
from lightning_vos.models.taformer.network import TAFormerNetwork
from lightning_vos.models.taformer.separation import Separation, found_separation
from lightning_vos.module import MethodModule
from lightning_vos.optim import StepSchedule, training_steps
from lightning_vos.structures import InstanceClip, InstanceResult, ScoredInstanceVideo

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

_SCHEDULE = StepSchedule(start=0.0, warmup=0.0, drops=(3 / 6, 5 / 6))
_INFERENCE = InferenceSettings()
_SLOW = ("reference_points", "sampling_offsets")
_LOGGED = ("AP", "AP50", "AP75", "AR1", "AR10")
_CATEGORIES = "categories"  # key of a checkpoint: id -> name


@dataclass(frozen=True)
class EvaluatedVideo:
    """What was found in a video, and what there is.

    Attributes:
        video_id: As `InstanceVideo`, and so are `name`, `size` and `categories`.
        name: See `video_id`.
        size: See `video_id`.
        categories: See `video_id`.
        truth: Its tracks if they are public.
        results: What was found.
        separation: How well its box queries tell instances apart, if there is truth and something to compare.
    """

    video_id: int
    name: str
    size: tuple[int, int]
    categories: Mapping[int, str]
    truth: Tracks | None
    results: Sequence[InstanceResult]
    separation: Separation | None


class TAFormer(MethodModule):
    """Trains a `TAFormerNetwork` on clips of annotated frames; with a network without additions it trains SeqFormer.

    Logs `val/AP`, `val/AP50`, `val/AP75`, `val/AR1` and `val/AR10` in percent, as the evaluation of YouTube-VIS gives
    them for all videos together; in a test the same under `test/`, with what `MethodModule` logs, and
    `test/box_cosine_within` and `test/box_cosine_between`, from -1 to 1: how alike the box queries of one instance are,
    and those of different ones, as `query_separation` compares them, the mean over the videos in which it can. The
    speed counts the network, resizing masks to the size of the video and encoding them.

    Differs from the paper, which does not say them: the lower learning rates of the backbone and of what places
    sampling points are those of SeqFormer's published code.

    Args:
        network: The network.
        criterion: The losses.
        optimizer: Called with groups of parameters.
        schedule: Of the learning rate.
        backbone_factor: What the learning rate is multiplied with for the backbone.
        offsets_factor: The same for sampling offsets and reference points.
        inference: How whole videos are shown to the network.
        weights: As `MethodModule`.
        weights_may_lack: As `MethodModule`, such as `class_heads` for weights that know other classes.

    Raises:
        ValueError: if a factor is below 0.
    """

    class_entries = ("class_heads",)

    def __init__(
        self,
        network: TAFormerNetwork,
        criterion: Criterion | None = None,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=1e-4, weight_decay=1e-4),
        schedule: StepSchedule = _SCHEDULE,
        backbone_factor: float = 0.1,
        offsets_factor: float = 0.1,
        inference: InferenceSettings = _INFERENCE,
        weights: str | None = None,
        weights_may_lack: Sequence[str] = (),
    ) -> None:
        super().__init__(network, weights, weights_may_lack)
        if min(backbone_factor, offsets_factor) < 0:
            raise ValueError(
                f"TAFormer: backbone_factor={backbone_factor}, offsets_factor={offsets_factor}; expected 0 or more"
            )
        self.network: TAFormerNetwork
        self.criterion = criterion or Criterion()
        self.optimizer, self.schedule = optimizer, schedule
        self.backbone_factor, self.offsets_factor = backbone_factor, offsets_factor
        self.inference = inference
        self.videos: list[EvaluatedVideo] = []  # of the last evaluation, of all ranks, each once
        self.scores: Scores | None = None  # of the last evaluation, if there was any truth
        self._seen: dict[int, EvaluatedVideo] = {}  # by this rank, by number in the split
        self._trained_on: Mapping[int, str] | None = None

    def configure_callbacks(self) -> Sequence[Callback]:
        """Results and submissions of `test` and `predict` are always written."""
        return [InstanceWriter(), SubmissionWriter()]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Three groups, all with weight decay, as published: the backbone, what places sampling points, all else.

        Raises:
            ConfigError: if the training has no end.
        """
        groups: dict[str, list[nn.Parameter]] = {"rest": [], "offsets": [], "backbone": []}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                group = "offsets" if any(word in name for word in _SLOW) else "rest"
                groups["backbone" if name.startswith("backbone.") else group].append(parameter)
        optimizer = self.optimizer([{"params": found, "name": name} for name, found in groups.items() if found])
        factors = {"rest": 1.0, "offsets": self.offsets_factor, "backbone": self.backbone_factor}
        for settings in optimizer.param_groups:
            settings["lr"] *= factors[settings["name"]]
        return self.schedule.configure(optimizer, training_steps(self.trainer))

    def training_step(self, batch: InstanceClip, batch_idx: int) -> Tensor:
        """Loss of a batch of clips."""
        predictions = self.network(batch.frames, batch.sizes)
        masks = partial(self.network.masks, predictions)
        result = self.criterion(predictions, masks, batch.instances, self.network.first_class)
        self.log("train/loss", result.total, prog_bar=True)
        for name, part in result.parts.items():
            self.log(f"train/{name}", part[-1])  # of the last decoder layer
        return result.total

    def on_fit_start(self) -> None:
        """Start from weights, which must know the categories of the data unless their class heads start anew.

        Raises:
            CheckpointError: if the weights cannot be had or do not fit.
            ConfigError: if they know other categories.
        """
        super().on_fit_start()
        categories = getattr(self.trainer.datamodule, _CATEGORIES, None)  # type: ignore[attr-defined]
        if categories is not None:
            self._categories(categories)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the categories: the same class is another one in another dataset."""
        categories = getattr(self.trainer.datamodule, _CATEGORIES, None)  # type: ignore[attr-defined]
        if categories is not None:
            checkpoint[_CATEGORIES] = dict(categories)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember which categories the weights know."""
        self._trained_on = checkpoint.get(_CATEGORIES)

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
        self.videos, self.scores, self._seen = [], None, {}
        self.forget_costs()

    def validation_step(self, batch: ScoredInstanceVideo, batch_idx: int) -> None:
        """Find the instances of one hold-out video."""
        self._evaluate(batch)

    def test_step(self, batch: ScoredInstanceVideo, batch_idx: int) -> None:
        """Find the instances of one video and hand them to the callbacks."""
        self._evaluate(batch)
        self._tell(batch)

    def predict_step(self, batch: ScoredInstanceVideo, batch_idx: int) -> None:
        """Find the instances of one video and hand them to the callbacks."""
        self._evaluate(batch)
        self._tell(batch)

    def _evaluate(self, sample: ScoredInstanceVideo) -> None:
        video = sample.video
        found = find_instances(
            self.network, video.frames, video.size, self._categories(video.categories), self.inference
        )
        self.frames += found.frames
        self.seconds += found.seconds
        separation = None if sample.truth is None else found_separation(found, sample.truth)
        self._seen[sample.number] = EvaluatedVideo(
            video.video_id, video.name, video.size, video.categories, sample.truth, found.results, separation
        )

    def _tell(self, sample: ScoredInstanceVideo) -> None:
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, PredictionCallback):
                callback.on_instances(self.trainer, sample, self._seen[sample.number].results)
                callback.on_video_end(self.trainer, sample)

    def _categories(self, categories: Mapping[int, str]) -> dict[int, int]:
        """Output of the class head -> category id.

        Raises:
            ConfigError: if these are not the categories that the network knows.
        """
        network = self.network
        if self._trained_on is not None and dict(self._trained_on) != dict(categories):
            ours, theirs = (", ".join(list(names.values())[:5]) for names in (self._trained_on, categories))
            raise ConfigError(
                f"The checkpoint knows other classes than the data has: {len(self._trained_on)} ({ours}, ...), not "
                f"{len(categories)} ({theirs}, ...).\n"
                "Test on data with the classes of its training; to train it on these: --model.weights FILE "
                "--model.weights_may_lack '[class_heads]'."
            )
        if network.first_class + len(categories) > network.classes:
            raise ConfigError(
                f"The data has {len(categories)} categories, the network has {network.classes} outputs, the first "
                f"category is output {network.first_class}.\n"
                f"Set --model.network.classes to at least {network.first_class + len(categories)} and train with it."
            )
        return dict(enumerate(categories, start=network.first_class))

    def on_validation_epoch_end(self) -> None:
        """Log the scores of all videos of all ranks."""
        self._end("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores of all videos of all ranks, speed, memory and size."""
        self._end("test")
        self.log_costs()

    def on_predict_epoch_end(self) -> None:
        """Put the results of all ranks together."""
        self._end(None)

    def _end(self, stage: str | None) -> None:
        together = gathered(self._seen)  # a collective call: every rank makes it
        self.videos = [together[number] for number in sorted(together)]
        self.scores = _scores(self.videos)
        if stage == "val" or (stage == "test" and self.scores is not None):
            for name in _LOGGED:
                value = math.nan if self.scores is None else self.scores.summary[name]
                self.log(f"{stage}/{name}", value, prog_bar=name == "AP")
        separations = [video.separation for video in self.videos if video.separation is not None]
        if stage == "test" and separations:
            self.log("test/box_cosine_within", fmean(one.within for one in separations))
            self.log("test/box_cosine_between", fmean(one.between for one in separations))


def _scores(videos: Sequence[EvaluatedVideo]) -> Scores | None:
    """The scores of the videos whose truth is public, None where there is none."""
    scored = [video for video in videos if video.truth is not None]
    if not scored:
        return None
    true_tracks: dict[tuple[int, int], Sequence[Track]] = {}
    found: defaultdict[tuple[int, int], list[Track]] = defaultdict(list)
    for video in scored:
        true_tracks |= video.truth or {}
        for result in video.results:
            found[video.video_id, result.category].append(result_track(result.masks, result.score))
    truth = GroundTruth(
        videos={video.video_id: Video(video.name, *video.size, frames=()) for video in scored},
        scored=frozenset(video.video_id for video in scored),
        categories=scored[0].categories,
        tracks=true_tracks,
    )
    return score_tracks(truth, Results(found))
