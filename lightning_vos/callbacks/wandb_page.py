"""What the page of a run on Weights & Biases shows beside its config and its curves."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from lightning_vos import __version__
from lightning_vos.callbacks.instances import painted_instances
from lightning_vos.callbacks.label_maps import LabelMapCallback, painted_labels
from lightning_vos.callbacks.predictions import PredictionCallback
from lightning_vos.callbacks.results import gathered, painted
from lightning_vos.callbacks.run_files import run_folder
from lightning_vos.evaluation.scores import Scores
from lightning_vos.io.overlay import contact_sheet
from lightning_vos.io.writing import written_beside
from lightning_vos.metrics.region_boundary import RegionBoundary
from lightning_vos.structures import ScoredVideo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import lightning.pytorch as L
    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_vos.structures import InstanceResult, Prediction, ScoredImage, ScoredInstanceVideo

_RUN_ID = "wandb_id.txt"
_TABLES = ("sequences", "objects", "categories", "classes", "images")  # files of scores that a test leaves


class RunPage(PredictionCallback, LabelMapCallback):
    """Adds to the page of a run, once each: the revision of the code, tables of scores, pictures of what was predicted.

    A training shows the scores of each hold-out sequence, or of each class where there are no sequences, of its last
    validation; a test shows the tables that it leaves in the run's folder, and overlays of the first videos or images.
    The id of a training's run is kept as `wandb_id.txt` in the run's folder, by which `--ckpt_path last` continues it.
    All is done by the first process; without a `WandbLogger` nothing is.

    Args:
        pictures: Videos or images that are shown.
        columns: Frames of each video, evenly spread.

    Raises:
        ValueError: There is less than one column, or less than no picture.
    """

    def __init__(self, pictures: int = 8, columns: int = 6) -> None:
        if pictures < 0 or columns < 1:
            raise ValueError(f"pictures={pictures}, columns={columns}; expected at least 0 and 1")
        self.pictures, self.columns = pictures, columns
        self._shown: set[str] = set()
        self._frames: list[NDArray[np.uint8]] = []
        self._sheets: dict[str, NDArray[np.uint8]] = {}
        self._names: dict[int, str] = {}
        self._sequences: Mapping[str, Mapping[str, float]] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Show which code it is, and keep the id of a training's run."""
        if not trainer.is_global_zero:
            return
        for logger in _pages(trainer):
            logger.experiment.config.update({"code": code_revision()}, allow_val_change=True)
            if stage == TrainerFn.FITTING:
                with written_beside(run_folder(trainer) / _RUN_ID) as temporary:
                    temporary.write_text(f"{logger.version}\n", encoding="utf-8")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Remember the name of a hold-out sequence."""
        if isinstance(batch, ScoredVideo):
            self._names[batch.number] = batch.video.name

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the scores of the sequences of all ranks."""
        scores = getattr(pl_module, "scores", None)
        if not isinstance(scores, RegionBoundary) or not _pages(trainer):
            return
        names, sequences = gathered(self._names), scores.compute().sequences  # collective calls: every rank makes them
        self._sequences = {names[number]: row for number, row in sequences.items()}

    def on_prediction(
        self, trainer: L.Trainer, sample: ScoredVideo, number: int, frame: Tensor, prediction: Prediction
    ) -> None:
        """Paint a frame."""
        if self._is_wanted(trainer) and number in self._chosen(len(sample.video.frames)):
            self._frames.append(painted(frame, prediction, sample.video.palette))

    def on_instances(self, trainer: L.Trainer, sample: ScoredInstanceVideo, results: Sequence[InstanceResult]) -> None:
        """Paint frames of a video."""
        video = sample.video
        if self._is_wanted(trainer):
            for number in self._chosen(len(video.frames)):
                self._frames.append(painted_instances(video.frames[number], number, results, video.categories))

    def on_video_end(self, trainer: L.Trainer, sample: ScoredVideo | ScoredInstanceVideo) -> None:
        """Put the frames of a video on one sheet."""
        if self._frames:
            self._sheets[sample.video.name] = contact_sheet([(sample.video.name, self._frames)])
        self._frames = []

    def on_label_map(self, trainer: L.Trainer, sample: ScoredImage, labels: NDArray[np.uint8]) -> None:
        """Paint an image."""
        if self._is_wanted(trainer):
            picture = painted_labels(sample.image.pixels, labels, trainer.datamodule.class_set)  # type: ignore[attr-defined]
            self._sheets[sample.image.name] = contact_sheet([(sample.image.name, [picture])])

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Show tables and pictures: the files of a test are written by now, the run is open still."""
        sheets, self._sheets, self._names = self._sheets, {}, {}
        if not trainer.is_global_zero:
            return
        tables: dict[str, list[list[Any]]] = {}
        if stage == TrainerFn.FITTING:
            scores = getattr(pl_module, "scores", None)
            tables["val/sequences"] = _table("sequence", self._sequences)
            tables["val/classes"] = _table("class", scores.categories if isinstance(scores, Scores) else {})
        elif stage == TrainerFn.TESTING:
            tables = {f"test/{name}": _read(run_folder(trainer) / f"{name}.csv") for name in _TABLES}
        shown = {key: table for key, table in tables.items() if len(table) > 1 and key not in self._shown}
        overlays = f"{TrainerFn(stage).value}/overlays"
        for logger in _pages(trainer):
            for key, (columns, *rows) in shown.items():
                logger.log_table(key, columns, rows)
            if sheets and overlays not in self._shown:
                logger.log_image(overlays, list(sheets.values()), caption=list(sheets))
        self._shown |= {*shown, *([overlays] if sheets else [])}

    def _is_wanted(self, trainer: L.Trainer) -> bool:
        return trainer.is_global_zero and len(self._sheets) < self.pictures and bool(_pages(trainer))

    def _chosen(self, length: int) -> list[int]:
        return sorted(set(np.linspace(0, length - 1, self.columns).round().astype(int).tolist()))


def kept_run_id(run: Path) -> str | None:
    """The id of the W&B run that belongs to a run's folder; None where there is none."""
    path = run / _RUN_ID
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def code_revision() -> dict[str, str | bool]:
    """Version of the package; of a checkout the git revision, too, and whether files differ from it."""
    found: dict[str, str | bool] = {"lightning_vos": __version__}
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / ".git").exists():
        revision, changes = (
            subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, check=False).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
        found |= {"revision": revision, "is_changed": bool(changes)}
    return found


def _pages(trainer: L.Trainer) -> list[WandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def _table(title: str, rows: Mapping[str, Mapping[str, float]]) -> list[list[Any]]:
    """The header, then the rows; the header alone where there are none."""
    columns = list(next(iter(rows.values()), {}))
    return [[title, *columns], *([name, *(row[column] for column in columns)] for name, row in rows.items())]


def _read(path: Path) -> list[list[Any]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return [header, *([_value(cell) for cell in row] for row in rows)]


def _value(cell: str) -> str | float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell
