"""What every dataset of images with image-level labels shares: endless batches to train on, whole images to score."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from datamodules.base import Split
from datamodules.image_transforms import ImageTransform, OfficialTransform, Pixels, Preparation
from datamodules.label_files import LabelTable
from datamodules.loading import ItemReader, RankedDataModule
from lightning_vos.errors import ConfigError, DatasetNotFoundError, MaskError
from lightning_vos.evaluation.semantic import ClassSet
from lightning_vos.io.frames import FRAME_SUFFIXES, frame_size, read_frame
from lightning_vos.io.masks import read_mask
from lightning_vos.structures import ImageTruth, LabelledImages, ScoredImage, WholeImage

_TRANSFORM = ImageTransform()
_PLAIN_NAME = re.compile(r"(?!\.{1,2}\Z)[^/\\:\0]+")
_SHOWN = 4


@dataclass(frozen=True)
class ImageSet:
    """The images of a split on disk, as little but text: workers copy what they touch, and sets have 100,000 images.

    Attributes:
        names: Names of the N images, without suffix; results are saved under them.
        paths: The files.
        class_set: What the values of masks stand for.
        first: The mask value of the first of the K labels; those that follow belong to the others.
        table: (N, K) uint8 in {0, 1}, the labels; where it is None they are read off the masks.
        masks: The label maps; None if the split has none.
        least: The share of a mask that a class covers at least, to be one of the labels read off it.
    """

    names: Sequence[str]
    paths: Sequence[str]
    class_set: ClassSet
    first: int
    table: NDArray[np.uint8] | None = None
    masks: Sequence[str] | None = None
    least: float = 0.0

    def read(self, number: int) -> Pixels:
        """The (H, W, C) image.

        Raises:
            FrameError: It cannot be read.
        """
        return read_frame(Path(self.paths[number]))

    def mask(self, number: int) -> NDArray[np.uint8] | None:
        """The (H, W) label map of an image, None if it has none.

        Raises:
            MaskError: It cannot be read, has another size than the image, or a value of no class.
        """
        if self.masks is None:
            return None
        path = Path(self.masks[number])
        mask = read_mask(path)
        size = frame_size(Path(self.paths[number]))
        if mask.shape != size:
            raise MaskError(
                f"Label map of another size than its image: {path}\n"
                f"  found {mask.shape[1]}x{mask.shape[0]}, expected {size[1]}x{size[0]} (width x height).\n"
                "Write it again at the size of the image; scale label maps to the nearest pixel only."
            )
        return self.checked(mask, path)

    def checked(self, mask: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
        """The label map, after a check that each value is one of a class.

        Raises:
            MaskError: One is not.
        """
        unknown = np.bincount(mask.ravel(), minlength=256) > 0
        unknown[self.class_set.values] = unknown[self.class_set.ignored] = False
        if unknown.any():
            raise MaskError(
                f"Label map with values of no class: {path}\n"
                f"  found {', '.join(map(str, np.flatnonzero(unknown)[:_SHOWN]))}\n"
                f"  expected {self.class_set}\n"
                "Number the label maps as the dataset does, or name the dataset that these belong to."
            )
        return mask

    def labels(self, number: int) -> NDArray[np.uint8]:
        """The (K,) labels of an image in {0, 1}.

        Raises:
            MaskError: They are read off a mask that cannot be used.
        """
        if self.table is not None:
            return self.table[number]
        mask = self.mask(number)
        assert mask is not None, "an image set without labels is asked for some"
        return self.shown(mask)

    def shown(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The (K,) labels in {0, 1} of what covers one pixel and the share `least` of a label map."""
        values = slice(self.first, self.class_set.values.stop)
        counts = np.bincount(mask.ravel(), minlength=256)[values]
        return ((counts > 0) & (counts >= self.least * mask.size)).astype(np.uint8)

    def draw(self, number: int, rng: np.random.Generator) -> tuple[Pixels, NDArray[np.uint8]]:
        """An image to train on, before its augmentation, and its labels.

        Raises:
            UserError: One of them cannot be read.
        """
        return self.read(number), self.labels(number)

    def truth(self, number: int) -> ImageTruth | None:
        """The annotation of an image, if there is any.

        Raises:
            MaskError: Its mask cannot be used.
        """
        if self.table is None and self.masks is None:
            return None
        mask = self.mask(number)
        labels = self.labels(number) if self.table is not None or mask is None else self.shown(mask)
        return ImageTruth(torch.from_numpy(labels).float(), None if mask is None else torch.from_numpy(mask))


class LabelledImageDataset(Dataset[LabelledImages]):
    """Endless augmented images: item `i` is drawn from (seed, i) alone, whichever process asks for it.

    Each image comes once in every `len(images)` items, in an order of its own each time.

    Args:
        images: The images of a split.
        preparation: How they are augmented and normalised.
        seed: The seed of all draws.
        skip_broken: Whether another image is drawn, and it is said, where one cannot be used, instead of an error.
    """

    def __init__(self, images: ImageSet, preparation: Preparation, seed: int, *, skip_broken: bool = False) -> None:
        self.images = images
        self.preparation = preparation
        self.seed = seed
        self.reader = ItemReader(len(images.names), "images", skip_broken=skip_broken)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def __getitem__(self, index: int) -> LabelledImages:
        """The unbatched item: images (C, H, W), labels (K,), its name.

        Raises:
            UserError: The image or what its labels are read off cannot be used, unless what is broken is skipped.
        """
        rng = np.random.default_rng([self.seed, index])
        epoch, position = divmod(index, len(self.images.names))
        if self._order[0] != epoch:
            shuffled = np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.images.names))
            self._order = epoch, shuffled
        number, (pixels, labels) = self.reader.read(
            int(self._order[1][position]), partial(self.images.draw, rng=rng), rng
        )
        planes = self.preparation.train(pixels, rng)
        return LabelledImages(torch.from_numpy(planes), torch.from_numpy(labels).float(), self.images.names[number])


class WholeImageDataset(Dataset[ScoredImage]):
    """The images of a split, each with, apart from it, its truth.

    Args:
        images: The images of a split.
        preparation: How they are normalised.
        scored: Whether truth is read at all.
    """

    def __init__(self, images: ImageSet, preparation: Preparation, *, scored: bool) -> None:
        self.images = images
        self.preparation = preparation
        self.scored = scored

    def __len__(self) -> int:
        return len(self.images.names)

    def __getitem__(self, index: int) -> ScoredImage:
        pixels = self.images.read(index)
        planes = torch.from_numpy(self.preparation.whole(pixels))
        image = WholeImage(self.images.names[index], planes, (pixels.shape[0], pixels.shape[1]))
        return ScoredImage(index, image, self.images.truth(index) if self.scored else None)


class ImageDataModule(RankedDataModule, ABC):
    """Images of one dataset with image-level labels; a subclass says which images a split has, and what they show.

    Evaluation gets one `ScoredImage` at a time: an image, whole and without augmentation, and apart from it the truth.

    Args:
        root: The folder that holds the dataset.
        batch_size: Images a step on each device.
        workers: Processes that read and prepare images; 0 does so in the training process.
        preprocessing: "paper" prepares images as `transform` says; "official" does with them what the official code
            does, whose numbers are documented on each dataset's class, and leaves `transform` alone.
        transform: Augmentation and normalisation.
        predict_split: Which images `predict` runs over; "train" to make the masks that a second stage is trained on.
        skip_broken: Whether training draws another image where one, or the mask its labels are read off, cannot be
            used, instead of stopping; what is skipped is counted and named. Nothing is ever skipped that is scored.

    Raises:
        ConfigError: `preprocessing` is "official", but no official code reads this dataset.
        ValueError: `batch_size` or `workers` is no count.
    """

    OFFICIAL: ClassVar[OfficialTransform | None] = None

    def __init__(
        self,
        root: Path,
        batch_size: int = 16,
        workers: int = 4,
        preprocessing: Literal["paper", "official"] = "paper",
        transform: ImageTransform = _TRANSFORM,
        predict_split: Split = "test",
        skip_broken: bool = False,
    ) -> None:
        super().__init__(root, batch_size, workers)
        self.skip_broken = skip_broken
        self.predict_split = predict_split
        self.preparation: Preparation = transform
        if preprocessing == "official":
            if self.OFFICIAL is None:
                raise ConfigError(
                    f"data.preprocessing is official, but the official code does not read what {type(self).__name__} "
                    "reads.\nLeave it out, and set data.transform."
                )
            self.preparation = self.OFFICIAL
        self._images: dict[Split, ImageSet] = {}

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The K classes that labels stand for, in their order; background is none of them."""

    @property
    @abstractmethod
    def class_set(self) -> ClassSet:
        """What the values of the masks stand for, for scoring."""

    @abstractmethod
    def images(self, split: Split) -> ImageSet:
        """Find the images of a split, at least one; those of "train" have labels.

        Raises:
            UserError: The dataset, the split or one of its files is not there, or is not as expected.
        """

    @abstractmethod
    def describe(self, split: Split) -> tuple[str, Path]:
        """Name the dataset with the split in a few words, and the folder where it was found."""

    def label_table(self, split: Split) -> LabelTable:
        """The labels of all images of a split, for `datamodules.label_files.write_labels`.

        Raises:
            ConfigError: Its labels are not public.
            UserError: One of its files cannot be used.
        """
        images = self.images(split)
        if images.table is None and images.masks is None:
            title, folder = self.describe(split)
            raise ConfigError(f"{title} in {folder} has no labels to write: they are not public.\nName another split.")
        return LabelTable(self.class_names, {name: images.labels(number) for number, name in enumerate(images.names)})

    def setup(self, stage: str) -> None:
        """Find the images that a stage needs and say which they are."""
        needed: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "predict": (self.predict_split,),
        }
        for split in needed.get(stage, ("test",)):
            if split in self._images:
                continue
            found = self._images[split] = self.images(split)
            title, folder = self.describe(split)
            count = len(found.names)
            rank_zero_info(
                f"{title}: {count} image{'s' if count > 1 else ''} of {len(self.class_names)} classes in "
                f"{folder.absolute()}"
            )

    def train_dataloader(self) -> DataLoader[LabelledImages]:
        """Endless batches of augmented images."""
        images = LabelledImageDataset(self._images["train"], self.preparation, self.seed, skip_broken=self.skip_broken)
        return self.endless(images)

    def val_dataloader(self) -> DataLoader[ScoredImage]:
        """Whole images to validate with during training."""
        return self._whole("val")

    def test_dataloader(self) -> DataLoader[ScoredImage]:
        """Whole images of the test split."""
        return self._whole("test")

    def predict_dataloader(self) -> DataLoader[ScoredImage]:
        """Whole images of `predict_split`; no truth is read."""
        return self._whole(self.predict_split, scored=False)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move what the network sees; truth stays where it is scored."""
        if isinstance(batch, ScoredImage):
            pixels = batch.image.pixels.to(device, non_blocking=True)
            return batch._replace(image=batch.image._replace(pixels=pixels))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _whole(self, split: Split, *, scored: bool = True) -> DataLoader[ScoredImage]:
        images = WholeImageDataset(self._images[split], self.preparation, scored=scored)
        return self.share(images, len(images), workers=self.workers, collate=_as_it_is)


def plain_names(source: Path, names: Iterable[str]) -> list[str]:
    """The `names` which the list `source` gave, each once and in order, after a check that none leads elsewhere.

    Raises:
        DatasetNotFoundError: One is not the plain name of a file, or there is none.
    """
    found = list(dict.fromkeys(names))
    if not found:
        raise DatasetNotFoundError(f"{source} names no image.\nExpected one name a line.")
    for name in found:
        if not _PLAIN_NAME.fullmatch(name):
            raise DatasetNotFoundError(
                f"{source} names the image {name!r}, which is not the name of a file.\n"
                "Expected plain names, without folders or '..'."
            )
    return found


def image_files(folder: Path) -> dict[str, str]:
    """The images in a folder: stem -> path; of images with one stem, the first in the order of names.

    Raises:
        DatasetNotFoundError: There is no such folder.
    """
    if not folder.is_dir():
        raise DatasetNotFoundError(f"No folder of images: {folder}\n  expected one .jpg, .jpeg or .png an image in it.")
    with os.scandir(folder) as entries:
        names = sorted((entry.name for entry in entries if entry.name[0] != "."), reverse=True)
    return {Path(name).stem: os.fspath(folder / name) for name in names if Path(name).suffix.lower() in FRAME_SUFFIXES}


def listed_files(names: Sequence[str], there: Mapping[str, str], folder: Path, source: Path, what: str) -> list[str]:
    """The path of each of the `names` that the list `source` gives.

    Args:
        names: What to find.
        there: Stem -> path, what the folder holds.
        folder: The folder, for messages.
        source: The list, for messages.
        what: What they are, in the plural.

    Raises:
        DatasetNotFoundError: Some are not there.
    """
    missing = [name for name in names if name not in there]
    if missing:
        raise DatasetNotFoundError(
            f"{folder} lacks {len(missing)} of the {len(names)} {what} that {source} names\n"
            f"  missing: {', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}\n"
            f"  found there: {', '.join(list(there)[:_SHOWN]) or 'none'}{', ...' if len(there) > _SHOWN else ''}\n"
            "The copy is not complete: add them, or take the names off the list."
        )
    return [there[name] for name in names]


def found_in(folder: Path) -> str:
    """What a folder holds, for messages."""
    entries = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
    if entries is None:
        return "no such folder"
    return (", ".join(entries[:6]) or "an empty folder") + (", ..." if len(entries) > 6 else "")


def _as_it_is(item: Any) -> Any:
    return item
