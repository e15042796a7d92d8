"""The loaders of all datasets: endless batches to train on, whole items to evaluate, a share for each rank."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.clips import StepSampler
from lightning_vos.errors import FrameError, MaskError, UserError

_READ_TRIES = 50
_Item = TypeVar("_Item")


class RankedDataModule(LightningDataModule):
    """Loaders of one dataset, for any number of processes.

    The train loader has no end: it begins at the trainer's step, so that a resumed run draws what an uninterrupted one
    would. The others give one item at a time. Under more than one process each takes every n-th item; one that would
    have none repeats an item, so results are merged by the items' numbers. The trainer's own sampler must be off
    (`use_distributed_sampler=False`).

    Args:
        root: The folder that holds the dataset.
        batch_size: Items a step on each device.
        workers: Processes that prepare items; 0 prepares them in the training process.

    Raises:
        ValueError: `batch_size` or `workers` is no count.
    """

    def __init__(self, root: Path, batch_size: int, workers: int) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise ValueError(f"batch_size is {batch_size}, workers is {workers}; expected at least 1 and at least 0")
        self.root = Path(root).expanduser()
        self.batch_size = batch_size
        self.workers = workers

    @property
    def seed(self) -> int:
        """The seed of all draws, that of the run."""
        return int(os.environ.get("PL_GLOBAL_SEED", "0"))

    @property
    def items_a_step(self) -> int:
        """Items of an optimizer step, over all ranks."""
        return self.batch_size * self._rank_and_world()[1] * self._accumulated()

    def endless(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any] | None = None) -> DataLoader[Any]:
        """Batches without end of a dataset whose item is a function of its number.

        Args:
            dataset: Gives an item for every number.
            collate: Makes a batch of items.
        """
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=StepSampler(self.batch_size, *self._rank_and_world(), self._batches_done),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            worker_init_fn=_one_thread,
        )

    def share(
        self, dataset: Dataset[Any], count: int, *, workers: int = 0, collate: Callable[[Any], Any] | None = None
    ) -> DataLoader[Any]:
        """This rank's share of a dataset, one item at a time.

        Args:
            dataset: The items.
            count: How many there are.
            workers: Processes that read them; videos need none, for their frames are read later.
            collate: What becomes of an item on its way.
        """
        rank, world = self._rank_and_world()
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=range(rank, count, world) or [rank % count],
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=_one_thread,
        )

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _accumulated(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    def _batches_done(self) -> int:
        return self.trainer.global_step * self._accumulated() if self.trainer else 0


class ItemReader:
    """Reads the items of a training set; draws another one for one that is broken, if that is asked for.

    What is known to be broken is tried again all the same: an item of the loader is what (seed, number) say, not what
    the process has met before.

    Args:
        count: The items of the set.
        what: What they are, in the plural, for messages.
        skip_broken: Whether to draw anew where a file cannot be used, count it and warn, instead of an error.

    Attributes:
        broken: (count,) whether an item was found broken, shared with the workers; empty if nothing is skipped.
    """

    def __init__(self, count: int, what: str, *, skip_broken: bool) -> None:
        self.count = count
        self.what = what
        self.skip_broken = skip_broken
        self.broken = torch.zeros(count if skip_broken else 0, dtype=torch.bool).share_memory_()
        self._said: set[str] = set()  # a broken frame breaks many clips

    def read(self, number: int, read: Callable[[int], _Item], rng: np.random.Generator) -> tuple[int, _Item]:
        """The number of the item that was read, and the item.

        Args:
            number: The item to try first.
            read: Reads an item.
            rng: Draws the others.

        Raises:
            FrameError: Its picture cannot be used, unless what is broken is skipped; or none of many can.
            MaskError: As `FrameError`, of its mask.
        """
        for _ in range(_READ_TRIES):
            try:
                return number, read(number)
            except (FrameError, MaskError) as error:
                if not self.skip_broken:
                    raise
                self._skip(number, error)
                number = int(rng.integers(self.count))
        raise FrameError(
            f"None of {_READ_TRIES} {self.what} drawn one after the other could be read: "
            f"{int(self.broken.sum())} of {self.count} are known to be broken.\n"
            "Copy the dataset again; with data.skip_broken=false the first error says which file is broken."
        )

    def _skip(self, number: int, error: UserError) -> None:
        self.broken[number] = True
        what = " ".join(str(error).splitlines()[:2])
        if what not in self._said:
            self._said.add(what)
            count = f"{int(self.broken.sum())} of {self.count} {self.what}"
            warnings.warn(f"Broken file skipped, {count} so far: {what}", stacklevel=2)


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
