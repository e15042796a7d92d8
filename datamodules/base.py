"""What every dataset of masked videos shares: endless clips to train on, whole videos to score."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from datamodules.clips import ClipDataset, ClipSampler, StepSampler
from datamodules.readers import SequenceFiles
from datamodules.transforms import ClipTransform
from lightning_vos.structures import Clip, ScoredVideo

Split = Literal["train", "val", "test"]

_SAMPLER = ClipSampler()
_TRANSFORM = ClipTransform()


class VideoDataset(Dataset[ScoredVideo]):
    """The videos of a split, each with its prompts and, apart from it, its truth."""

    def __init__(self, sequences: Sequence[SequenceFiles]) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> ScoredVideo:
        return self.sequences[index].load(index)


class VOSDataModule(LightningDataModule, ABC):
    """Clips and videos of one dataset; a subclass says which sequences a split has.

    The train loader has no end: it begins at the trainer's step, so that a resumed run draws what an uninterrupted one
    would. The others give one `ScoredVideo` at a time. Under more than one process each takes every n-th video; one
    that would have none repeats a video, so results are merged by `ScoredVideo.number`. The trainer's own sampler must
    be off (`use_distributed_sampler=False`).

    Args:
        root: The folder that holds the dataset.
        batch_size: Clips a step on each device.
        workers: Processes that prepare clips; 0 prepares them in the training process.
        sampler: Which frames make a clip.
        transform: Augmentation of a clip.
        merge: Probability that the objects of a second clip are pasted over a clip.

    Raises:
        ValueError: `batch_size` or `workers` is no count.
    """

    def __init__(
        self,
        root: Path,
        batch_size: int = 4,
        workers: int = 4,
        sampler: ClipSampler = _SAMPLER,
        transform: ClipTransform = _TRANSFORM,
        merge: float = 0.3,
    ) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise ValueError(f"batch_size is {batch_size}, workers is {workers}; expected at least 1 and at least 0")
        self.root = Path(root).expanduser()
        self.batch_size = batch_size
        self.workers = workers
        self.sampler = sampler
        self.transform = transform
        self.merge = merge
        self._sequences: dict[Split, Sequence[SequenceFiles]] = {}

    @abstractmethod
    def sequences(self, split: Split) -> Sequence[SequenceFiles]:
        """Find the sequences of a split, at least one; those of "train" have annotated frames.

        Raises:
            DatasetNotFoundError: The dataset, the split or one of its files is not there.
        """

    @abstractmethod
    def describe(self, split: Split) -> tuple[str, Path]:
        """Name the dataset with the split in a few words, and the folder where it was found."""

    def setup(self, stage: str) -> None:
        """Find the sequences that a stage needs and say which they are."""
        needed: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in needed.get(stage, ("test",)):
            if split in self._sequences:
                continue
            found = self._sequences[split] = self.sequences(split)
            frames = sum(len(sequence.frames) for sequence in found)
            title, folder = self.describe(split)
            plural = "s" if len(found) > 1 else ""
            rank_zero_info(f"{title}: {len(found)} sequence{plural}, {frames} frames in {folder.absolute()}")

    def train_dataloader(self) -> DataLoader[Clip]:
        """Endless batches of clips."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        rank, world = self._rank_and_world()
        return DataLoader(
            ClipDataset(self._sequences["train"], self.sampler, self.transform, self.merge, seed),
            batch_size=self.batch_size,
            sampler=StepSampler(self.batch_size, rank, world, self._batches_done),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
        )

    def val_dataloader(self) -> DataLoader[ScoredVideo]:
        """Whole videos of the hold-out split."""
        return self._videos("val")

    def test_dataloader(self) -> DataLoader[ScoredVideo]:
        """Whole videos of the test split."""
        return self._videos("test")

    def predict_dataloader(self) -> DataLoader[ScoredVideo]:
        """Whole videos of the test split."""
        return self._videos("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave videos where they are: their frames are read, and moved, one by one."""
        if isinstance(batch, ScoredVideo):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _videos(self, split: Split) -> DataLoader[ScoredVideo]:
        videos = VideoDataset(self._sequences[split])
        rank, world = self._rank_and_world()
        return DataLoader(videos, batch_size=None, sampler=range(rank, len(videos), world) or [rank % len(videos)])

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _batches_done(self) -> int:
        return self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0


def _one_thread(worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # the workers are the parallelism
