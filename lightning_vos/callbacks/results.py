"""What a test leaves to use and to look at: masks, scores, overlays. Every frame is written as it comes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch.distributed
from PIL import Image
from rich.console import Console
from torchmetrics.utilities import dim_zero_cat

from lightning_vos.callbacks.environment import write_environment
from lightning_vos.callbacks.instances import MIN_SCORE, painted_instances
from lightning_vos.callbacks.predictions import PredictionCallback
from lightning_vos.callbacks.run_files import run_folder
from lightning_vos.errors import ConfigError, UserError
from lightning_vos.evaluation.scores import score_table, write_rows
from lightning_vos.evaluation.submission import pack
from lightning_vos.io.masks import write_mask
from lightning_vos.io.overlay import contact_sheet, overlay, write_image
from lightning_vos.io.video import VideoWriter
from lightning_vos.metrics.region_boundary import RegionBoundary
from lightning_vos.metrics.sequence import Column, values
from lightning_vos.structures import ScoredVideo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import lightning.pytorch as L
    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_vos.structures import (
        InstanceResult,
        InstanceVideo,
        Prediction,
        ScoredInstanceVideo,
        Video,
    )
    from lightning_vos.vos.module import VOSModule

_Of = TypeVar("_Of")


class MaskWriter(PredictionCallback):
    """Writes `masks/<sequence>/<frame>.png` in the run's folder: ids at the video's size, the dataset's palette."""

    def on_prediction(
        self, trainer: L.Trainer, sample: ScoredVideo, number: int, frame: Tensor, prediction: Prediction
    ) -> None:
        """Write the mask of one frame."""
        video = sample.video
        path = run_folder(trainer) / "masks" / video.name / f"{video.frame_names[number]}.png"
        write_mask(path, prediction.labels.cpu().numpy(), video.palette)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where the masks are."""
        if trainer.is_global_zero:
            Console().print(f"Masks are in {run_folder(trainer) / 'masks'}", highlight=False, soft_wrap=True)


class ScoreWriter(PredictionCallback):
    """Writes `sequences.csv`, `objects.csv` and `frames.csv` in the run's folder, and prints the sequences.

    All is in percent but `switches`, the number of identity switches. What it ran on is in `environment.json`.
    """

    def __init__(self) -> None:
        self._scored: dict[int, tuple[str, Sequence[str]]] = {}

    def on_video_end(self, trainer: L.Trainer, sample: ScoredVideo | ScoredInstanceVideo) -> None:
        """Remember the names of a scored video and of its frames."""
        if sample.truth is not None and isinstance(sample, ScoredVideo):
            self._scored[sample.number] = sample.video.name, sample.video.frame_names

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: VOSModule) -> None:  # type: ignore[override]
        """Gather the scores of all ranks; the first one writes them."""
        scores = pl_module.scores.compute()  # a collective call: every rank makes it
        names = gathered({number: name for number, (name, _) in self._scored.items()})
        frames = gathered(_frame_rows(pl_module.scores, self._scored))
        self._scored = {}
        if not trainer.is_global_zero:
            return
        folder, console = run_folder(trainer), Console()
        write_environment(folder, pl_module.device)
        if not names:
            console.print(
                f"No scores: this split has no public truth. Masks are in {folder / 'masks'}",
                highlight=False,
                soft_wrap=True,
            )
            return
        sequences = {names[number]: row for number, row in scores.sequences.items()}
        write_rows(folder / "sequences.csv", ("sequence",), {(name,): row for name, row in sequences.items()})
        objects = {(names[number], object_id): row for (number, object_id), row in scores.objects.items()}
        write_rows(folder / "objects.csv", ("sequence", "object"), objects)
        by_frame = {key: row for number in sorted(frames) for key, row in frames[number].items()}
        write_rows(folder / "frames.csv", ("sequence", "object", "frame"), by_frame)
        console.print(score_table("sequence", sequences, ("all objects", scores.summary)))
        console.print(f"Masks and scores are in {folder}", highlight=False, soft_wrap=True)


class SubmissionWriter(PredictionCallback):
    """Packs the results of a split without public truth for its server, as `submission.zip` in the run's folder.

    What is packed is checked; where a server would refuse it, why is said instead, and the results stay. Data that has
    a server says so itself: its `server()` gives benchmark, dataset and split as `pack` takes them.
    """

    def __init__(self) -> None:
        self._scored_here = False

    def on_video_end(self, trainer: L.Trainer, sample: ScoredVideo | ScoredInstanceVideo) -> None:
        """Notice public truth."""
        self._scored_here |= sample.truth is not None

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pack what was tested."""
        self._pack(trainer)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pack what was predicted."""
        self._pack(trainer)

    def _pack(self, trainer: L.Trainer) -> None:
        trainer.strategy.barrier("all results are written")
        server = getattr(trainer.datamodule, "server", lambda: None)()  # type: ignore[attr-defined]
        scored_here, self._scored_here = self._scored_here, False
        if server is None or scored_here or not trainer.is_global_zero:
            return
        folder = run_folder(trainer)
        try:
            done = pack(
                folder, server.dataset, folder / "submission.zip", benchmark=server.benchmark, split=server.split
            )
            lines = [
                f"{done.file} is packed and checked: {done.held}.",
                f"The server expects {done.expects}.",
                f"Not checked: {done.unverified}.",
                *(f"Note: {note}." for note in done.notes),
            ]
        except UserError as error:
            lines = [f"No submission was packed; the results stay in {folder}.", str(error)]
        Console().print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)


class OverlayWriter(PredictionCallback):
    """Writes `overlays/<sequence>.mp4`, and `contact_sheet.png` with a row of frames of each sequence.

    Args:
        frames_per_second: Of the videos.
        columns: Pictures in a row of the sheet, evenly spread over the sequence.
        min_score: Of the instances that are painted, where instances are found.
    """

    def __init__(self, frames_per_second: float = 12, columns: int = 6, min_score: float = MIN_SCORE) -> None:
        if columns < 1 or frames_per_second <= 0:
            raise ConfigError(
                f"OverlayWriter: columns={columns}, frames_per_second={frames_per_second}; expected both above 0"
            )
        self.frames_per_second, self.columns, self.min_score = frames_per_second, columns, min_score
        self._open = ExitStack()
        self._writer: VideoWriter | None = None
        self._row: list[NDArray[np.uint8]] = []
        self._rows: dict[int, str] = {}

    def on_prediction(
        self, trainer: L.Trainer, sample: ScoredVideo, number: int, frame: Tensor, prediction: Prediction
    ) -> None:
        """Append one frame."""
        self._append(trainer, sample.video, number, painted(frame, prediction, sample.video.palette))

    def on_instances(self, trainer: L.Trainer, sample: ScoredInstanceVideo, results: Sequence[InstanceResult]) -> None:
        """Append all frames of a video."""
        video = sample.video
        for number, frame in enumerate(video.frames):
            picture = painted_instances(frame, number, results, video.categories, self.min_score)
            self._append(trainer, video, number, picture)

    def _append(
        self, trainer: L.Trainer, video: Video | InstanceVideo, number: int, picture: NDArray[np.uint8]
    ) -> None:
        if self._writer is None:
            path = run_folder(trainer) / "overlays" / f"{video.name}.mp4"
            self._writer = self._open.enter_context(VideoWriter(path, video.size, self.frames_per_second))
            self._row = []
        self._writer.write(picture)
        if number in np.linspace(0, len(video.frames) - 1, self.columns).round():
            self._row.append(picture)

    def on_video_end(self, trainer: L.Trainer, sample: ScoredVideo | ScoredInstanceVideo) -> None:
        """Finish a video and its row."""
        self._open.close()
        self._writer = None
        self._rows[sample.number] = sample.video.name
        folder = run_folder(trainer) / "overlays"
        write_image(folder / f"{sample.video.name}.png", contact_sheet([(sample.video.name, self._row)]))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave no half-written video."""
        self._open.__exit__(type(exception), exception, exception.__traceback__)
        self._writer = None

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the rows of all ranks on one sheet."""
        self._write_sheet(trainer)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the rows of all ranks on one sheet."""
        self._write_sheet(trainer)

    def _write_sheet(self, trainer: L.Trainer) -> None:
        names = gathered(self._rows)  # waits for every rank's rows to be written, too
        self._rows = {}
        if trainer.is_global_zero and names:
            folder = run_folder(trainer)
            rows = [
                np.asarray(Image.open(folder / "overlays" / f"{names[i]}.png").convert("RGB")) for i in sorted(names)
            ]
            width = max(row.shape[1] for row in rows)
            padded = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
            write_image(folder / "contact_sheet.png", np.concatenate(padded))
            Console().print(
                f"Overlays are in {folder / 'overlays'}, one sheet of them is {folder / 'contact_sheet.png'}",
                highlight=False,
                soft_wrap=True,
            )


def _frame_rows(
    scores: RegionBoundary, scored: Mapping[int, tuple[str, Sequence[str]]]
) -> dict[int, dict[tuple[str, int, str], dict[str, float]]]:
    """Number of a sequence of this rank -> (sequence, object, frame) -> J and F in percent."""
    table = np.unique(dim_zero_cat(scores.rows).cpu().numpy(), axis=0)  # by sequence, object and frame
    found = {}
    for number, (name, frame_names) in scored.items():
        rows = table[table[:, 0] == number, 1:]
        region, boundary = 100 * values(rows, Column.REGION), 100 * values(rows, Column.BOUNDARY)
        found[number] = {
            (name, object_id, frame_names[frame]): {"J": j, "F": f}
            for object_id, frame, j, f in zip(
                rows[:, Column.OBJECT].tolist(),
                rows[:, Column.FRAME].tolist(),
                region.tolist(),
                boundary.tolist(),
                strict=True,
            )
        }
    return found


def painted(frame: Tensor, prediction: Prediction, palette: bytes) -> NDArray[np.uint8]:
    """A (3, H, W) frame in [0, 1] with its prediction over it, (H, W, 3) RGB."""
    pixels = (frame.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
    return overlay(pixels, prediction.labels.cpu().numpy(), palette)


def gathered(values: Mapping[int, _Of]) -> dict[int, _Of]:
    """The values of all ranks in one, by key; a collective call."""
    if not torch.distributed.is_initialized():
        return dict(values)
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, dict(values))
    return {key: value for part in parts for key, value in part.items()}
