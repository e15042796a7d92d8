"""The hooks by which callbacks see what is predicted as it comes, so that no video is ever held whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback

if TYPE_CHECKING:
    from collections.abc import Sequence

    import lightning.pytorch as L
    from torch import Tensor

    from lightning_vos.structures import InstanceResult, Prediction, ScoredInstanceVideo, ScoredVideo


class PredictionCallback(Callback):
    """A callback of `test` and `predict`, called once a frame where masks are followed, and once a video."""

    def on_prediction(
        self, trainer: L.Trainer, sample: ScoredVideo, number: int, frame: Tensor, prediction: Prediction
    ) -> None:
        """Called with frame `number` of a video, (3, H, W) in [0, 1], and what was predicted for it."""

    def on_instances(self, trainer: L.Trainer, sample: ScoredInstanceVideo, results: Sequence[InstanceResult]) -> None:
        """Called with the instances that were found in a video, all results of an instance together, best first."""

    def on_video_end(self, trainer: L.Trainer, sample: ScoredVideo | ScoredInstanceVideo) -> None:
        """Called when all of a video was handed over."""
