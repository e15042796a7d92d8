"""The files of a run: its folder, its config, its last checkpoint, and how `last` and `best` are found again.

A run lives in `<save_dir>/<name>/version_<N>/` with `config.yaml`, `metrics.csv` and `checkpoints/`.
"""

from __future__ import annotations

import csv
import signal
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_vos.errors import CheckpointError
from lightning_vos.io.checkpoints import read_checkpoint
from lightning_vos.io.writing import written_beside

if TYPE_CHECKING:
    from types import FrameType

    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import CSVLogger

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
_CONFIG = "config.yaml"
MODEL = "model"  # key of a checkpoint: class path and arguments of its model


def run_folder(trainer: Trainer) -> Path:
    """The folder of the trainer's run, the parent of the one that Lightning puts checkpoints into."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


class SaveRunConfig(SaveConfigCallback):
    """Saves the parsed config as `config.yaml` in the run's folder, and what the model is in every checkpoint."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes and hands on the config, once a run, on the first rank."""
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CONFIG).write_text(self._text, encoding="utf-8")
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(self._text))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds class path and arguments of the model, so that a checkpoint says itself what it is."""
        checkpoint[MODEL] = yaml.safe_load(self._text)["model"]

    @cached_property
    def _text(self) -> str:
        # with its nulls: they may stand against defaults
        return self.parser.dump(self.config, skip_none=False)


def discard_unused(folder: Path) -> None:
    """Removes the folder of a run that ended before it began: settings are all that is in it, or nothing."""
    found = list(folder.iterdir()) if folder.is_dir() else None
    if found is None or {path.name for path in found} - {_CONFIG, ExperimentWriter.NAME_HPARAMS_FILE}:
        return
    for path in found:
        path.unlink()
    folder.rmdir()


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, from which a run goes on: every few steps, after each validation, at the end and on Ctrl-C.

    The file is replaced in one move, so that a kill at any moment leaves a whole one. Ctrl-C lets the batch at hand
    end, for half a step cannot be repeated; a second one does not wait. With several processes Ctrl-C writes nothing,
    since they would have to agree on a step. List it after the `ModelCheckpoint` of the best: then it also holds which
    that is.

    Args:
        every_n_train_steps: Optimizer steps between two writes.

    Raises:
        ValueError: `every_n_train_steps` is below 1.
    """

    def __init__(self, every_n_train_steps: int = 1000) -> None:
        super().__init__()
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps must be at least 1, found {every_n_train_steps}")
        self.every_n_train_steps = every_n_train_steps
        self._folder = Path()
        self._saved_step = 0
        self._stopping = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the first rank's folder on every rank."""
        self._folder = trainer.strategy.broadcast(run_folder(trainer) / CHECKPOINTS)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens for Ctrl-C."""

        def stop(signal_number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if not trainer.training:
                raise KeyboardInterrupt
            self._stopping = True

        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, stop)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves every `every_n_train_steps` steps, and the last of all before averaged weights become the model's.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed during the batch.
        """
        step = trainer.global_step
        ends = step == trainer.max_steps or trainer.should_stop or self._stopping
        if ends or step % self.every_n_train_steps == 0:
            self._save(trainer)
        if self._stopping:
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves again after a validation within `fit`: the best checkpoint may be another now."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._saved_step = 0
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what a training ended with that was not limited by steps."""
        self._save(trainer)
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves where a run is stopped from outside; any other exception may come from a state not worth keeping.

        Raises:
            KeyboardInterrupt: Ctrl-C stopped the workers of a loader before the run itself.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        interrupted = self._stopping or (isinstance(exception, KeyboardInterrupt) and trainer.world_size == 1)
        if interrupted or isinstance(exception, SIGTERMException):
            self._save(trainer)
        if self._stopping and not isinstance(exception, KeyboardInterrupt):
            raise KeyboardInterrupt from exception

    def _save(self, trainer: Trainer) -> None:
        # batches that are accumulated into one step share its number
        if (
            getattr(trainer, "fast_dev_run", False)
            or trainer.sanity_checking
            or trainer.global_step == self._saved_step
        ):
            return
        part = self._folder / f"{LAST}.part"
        trainer.save_checkpoint(part, weights_only=False)
        if trainer.is_global_zero:
            part.replace(self._folder / LAST)
        self._saved_step = trainer.global_step


def newest_run(folder: Path) -> Path:
    """The newest run in `folder` that holds checkpoints.

    Raises:
        CheckpointError: There is none.
    """
    runs = {path.parents[1] for path in folder.glob(f"*/{CHECKPOINTS}/*.ckpt")}
    if not runs:
        raise CheckpointError(
            f"no run with checkpoints was found\n  looked for: {folder.resolve()}/*/{CHECKPOINTS}/*.ckpt\n"
            "  train first, without --ckpt_path, or name a checkpoint file"
        )

    def age(run: Path) -> tuple[int, float]:
        number = run.name.removeprefix("version_")
        return int(number) if number.isdecimal() else -1, run.stat().st_mtime

    return max(runs, key=age)


def last_checkpoint(run: Path) -> Path:
    """The checkpoint from which a run goes on.

    Raises:
        CheckpointError: The run has none.
    """
    path = run / CHECKPOINTS / LAST
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist\n  name one of {', '.join(_checkpoint_names(run))} by its path")
    return path


def best_checkpoint(run: Path) -> Path:
    """The checkpoint with the best score, as the run's `ModelCheckpoint` recorded it.

    The record names a file by its full path; its name alone counts here, so that runs may be moved.

    Raises:
        CheckpointError: No checkpoint of the run records a best one that is still there.
    """
    folder = run / CHECKPOINTS
    newest_first = sorted(
        folder.glob("*.ckpt"), key=lambda path: (path.name == LAST, path.stat().st_mtime), reverse=True
    )
    for path in newest_first:
        for state in read_checkpoint(path).get("callbacks", {}).values():
            if state.get("monitor") and state.get("best_model_path"):
                best = folder / Path(state["best_model_path"]).name
                if best.is_file():
                    return best
    raise CheckpointError(
        f"no checkpoint in {folder} records a best one: the run has not been validated yet\n"
        f"  found: {', '.join(_checkpoint_names(run))}\n  use --ckpt_path last, or name a file"
    )


def go_on_writing(logger: CSVLogger, step: int) -> None:
    """Keeps the rows of a resumed run's `metrics.csv`, less those of `step` and later, which come again.

    Left alone the logger deletes the file of the run that it goes on with.
    """
    path = Path(logger.log_dir) / ExperimentWriter.NAME_METRICS_FILE
    if not path.is_file():
        return
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        kept = [row for row in rows if int(row["step"]) < step]
        columns = list(rows.fieldnames or [])
    writer = logger.experiment
    with written_beside(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(kept)
    writer.metrics_keys = columns


def _checkpoint_names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / CHECKPOINTS).glob("*.ckpt"))
