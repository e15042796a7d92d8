"""What every dataset of masked videos shares: endless clips to train on, whole videos to score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from datamodules.clips import MAX_OBJECTS, ClipDataset, collate_clips
from datamodules.loading import RankedDataModule
from datamodules.readers import SequenceFiles
from datamodules.samplers import ClipSampler, FrameSampler
from datamodules.transforms import ClipAugmentation, ClipTransform
from lightning_vos.errors import ConfigError, UserError
from lightning_vos.structures import Clip, ScoredVideo

Split = Literal["train", "val", "test"]

_SAMPLER = ClipSampler()
_TRANSFORM = ClipTransform()


class ServerSplit(NamedTuple):
    """Where a split is scored whose truth is not public; what `lightning_vos.evaluation.submission.pack` takes."""

    benchmark: str
    dataset: Path
    split: str | None


class VideoDataset(Dataset[ScoredVideo]):
    """The videos of a split, each with its prompts and, apart from it, its truth."""

    def __init__(self, sequences: Sequence[SequenceFiles]) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> ScoredVideo:
        return self.sequences[index].load(index)


class VOSDataModule(RankedDataModule, ABC):
    """Clips and videos of one dataset; a subclass says which sequences a split has.

    Args:
        root: The folder that holds the dataset.
        batch_size: Clips a step on each device.
        workers: Processes that prepare clips; 0 prepares them in the training process.
        sampler: Which frames make a clip.
        transform: Augmentation of a clip.
        merge: Probability that the objects of a second clip are pasted over a clip; 0 where the sampler withholds masks
            or clips differ in size.
        max_objects: The most objects of a clip; further ones, drawn at random, become background.
        skip_broken: Whether training leaves out sequences that lack files, and draws anew where a file cannot be read,
            instead of stopping; what is skipped is counted and named. Nothing is ever skipped that is scored.
        cache_gb: Gigabytes (1e9 bytes) of decoded training frames and masks that are kept, by all workers of a rank
            together; each keeps its own. DAVIS 2017 takes 7.

    Raises:
        ValueError: `batch_size`, `workers`, `max_objects` or `cache_gb` is no count, or clips cannot be merged.
    """

    def __init__(
        self,
        root: Path,
        batch_size: int = 4,
        workers: int = 4,
        sampler: FrameSampler = _SAMPLER,
        transform: ClipAugmentation = _TRANSFORM,
        merge: float = 0.3,
        max_objects: int = MAX_OBJECTS,
        skip_broken: bool = False,
        cache_gb: float = 0.0,
    ) -> None:
        super().__init__(root, batch_size, workers)
        if not 0 < max_objects < 255 or cache_gb < 0:
            raise ValueError(f"max_objects is {max_objects}, cache_gb is {cache_gb}; expected 1 to 254, and at least 0")
        if merge > 0 and (sampler.withholds or not transform.one_size):
            raise ValueError(
                f"merge is {merge}, but clips of {type(sampler).__name__} and {type(transform).__name__} cannot be "
                "merged, for masks are withheld or sizes differ; expected 0 (data.merge)"
            )
        self.sampler = sampler
        self.transform = transform
        self.merge = merge
        self.max_objects = max_objects
        self.skip_broken = skip_broken
        self.cache_gb = cache_gb
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

    @property
    def protocol(self) -> str | None:
        """The protocol of `lightning_vos.evaluation.score` that gives what `test` logs; None: J&F alone."""
        return None

    def server(self) -> ServerSplit | None:
        """Where the test split is scored if its truth is not public."""
        return None

    def chances(self) -> NDArray[np.float64] | None:
        """How probable each training sequence is, as (S,) weights; None: all alike."""
        return None

    def setup(self, stage: str) -> None:
        """Find the sequences that a stage needs and say which they are."""
        needed: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in needed.get(stage, ("test",)):
            if split != "val" or not self.trainer or self.trainer.limit_val_batches:
                self.find(split)

    def find(self, split: Split) -> Sequence[SequenceFiles]:
        """The sequences of a split; the first call looks for them and says which they are."""
        if split not in self._sequences:
            found = self._sequences[split] = self.sequences(split)
            frames = sum(len(sequence.frames) for sequence in found)
            title, folder = self.describe(split)
            plural = "s" if len(found) > 1 else ""
            rank_zero_info(f"{title}: {len(found)} sequence{plural}, {frames} frames in {folder.absolute()}")
        return self._sequences[split]

    def read_each(
        self, split: Split, names: Iterable[str], read: Callable[[str], SequenceFiles]
    ) -> Sequence[SequenceFiles]:
        """Read the sequences of a split by their names; training leaves out broken ones if `skip_broken` says so.

        Raises:
            UserError: A sequence is broken, or, of those to train on, all are.
        """
        if split != "train" or not self.skip_broken:
            return [read(name) for name in names]
        found, errors = [], []
        for name in names:
            try:
                found.append(read(name))
            except UserError as error:
                errors.append(error)
        if errors and not found:
            raise errors[0]
        if errors:
            total, first = len(found) + len(errors), str(errors[0]).splitlines()[0]
            rank_zero_warn(f"{len(errors)} of {total} training sequences are broken and left out; the first: {first}")
        return found

    def train_dataloader(self) -> DataLoader[Clip]:
        """Endless batches of clips.

        Raises:
            ConfigError: All sequences are too short for the sampler.
        """
        sequences, chances = self._long_enough(self.find("train"), self.chances())
        return self.endless(
            ClipDataset(
                sequences,
                self.sampler,
                self.transform,
                self.merge,
                self.seed,
                chances=chances,
                items_a_step=self.items_a_step,
                max_objects=self.max_objects,
                skip_broken=self.skip_broken,
                cache=int(1e9 * self.cache_gb) // max(self.workers, 1),
            ),
            collate_clips,
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

    def _long_enough(
        self, sequences: Sequence[SequenceFiles], chances: NDArray[np.float64] | None
    ) -> tuple[Sequence[SequenceFiles], NDArray[np.float64] | None]:
        if self.sampler.shortest == 1:
            return sequences, chances
        kept = [k for k, sequence in enumerate(sequences) if len(sequence.masks) >= self.sampler.shortest]
        if not kept:
            raise ConfigError(
                f"None of the {len(sequences)} training sequences has {self.sampler.shortest} annotated frames, "
                "which a clip needs.\nLower data.sampler.length, or train on longer videos."
            )
        if len(kept) < len(sequences):
            rank_zero_info(
                f"{len(sequences) - len(kept)} of {len(sequences)} training sequences are left out: "
                f"they have fewer than {self.sampler.shortest} annotated frames"
            )
        return [sequences[k] for k in kept], None if chances is None else chances[kept]

    def _videos(self, split: Split) -> DataLoader[ScoredVideo]:
        videos = VideoDataset(self.find(split))
        return self.share(videos, len(videos))
