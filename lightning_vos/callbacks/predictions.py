"""The hook by which callbacks see every predicted frame as it comes, so that no video is ever held whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback

if TYPE_CHECKING:
    import lightning.pytorch as L
    from torch import Tensor

    from lightning_vos.structures import Prediction, ScoredVideo


class PredictionCallback(Callback):
    """A callback of `test` and `predict` that is called once a frame and once a video."""

    def on_prediction(
        self, trainer: L.Trainer, sample: ScoredVideo, number: int, frame: Tensor, prediction: Prediction
    ) -> None:
        """Called with frame `number` of a video, (3, H, W) in [0, 1], and what was predicted for it."""

    def on_video_end(self, trainer: L.Trainer, sample: ScoredVideo) -> None:
        """Called after the last frame of a video."""
