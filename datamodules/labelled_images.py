"""What every dataset of images with labels shares: endless batches to train on, whole images to score."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from datamodules.base import Split
from datamodules.image_transforms import NOT_LEARNT, ImageTransform, OfficialTransform, Pixels, Preparation
from datamodules.label_files import LabelTable
from datamodules.loading import ItemReader, RankedDataModule
from lightning_vos.errors import ConfigError, DatasetNotFoundError, MaskError
from lightning_vos.evaluation.semantic import ClassSet
from lightning_vos.io.frames import FRAME_SUFFIXES, frame_size, read_frame
from lightning_vos.io.masks import read_mask
from lightning_vos.io.png import read_header
from lightning_vos.structures import ImageTruth, LabelledImages, MaskedImages, ScoredImage, WholeImage

_Batch = TypeVar("_Batch")
_Read = TypeVar("_Read")
_TRANSFORM = ImageTransform()
_PLAIN_NAME = re.compile(r"(?!\.{1,2}\Z)[^/\\:\0]+")
_SHOWN = 4
_HEADER_BYTES = 33  # of a PNG


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

    @property
    def has_masks(self) -> bool:
        """Whether `mask` gives any."""
        return bool(self.masks)

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
        _require_size(mask.shape, frame_size(Path(self.paths[number])), path)
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


class EndlessImages(Dataset[_Batch]):
    """Images without end: item `i` is drawn from (seed, i) alone, whichever process asks for it.

    Each image comes once in every `len(images)` items, in an order of its own each time.

    Args:
        images: The images of a split.
        seed: The seed of all draws.
        skip_broken: Whether another image is drawn, and it is said, where one cannot be used, instead of an error.
    """

    def __init__(self, images: ImageSet, seed: int, *, skip_broken: bool = False) -> None:
        self.images = images
        self.seed = seed
        self.reader = ItemReader(len(images.names), "images", skip_broken=skip_broken)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def drawn(self, index: int, read: Callable[[int, np.random.Generator], _Read]) -> tuple[int, _Read]:
        """The number of the image that is item `index`, and what `read` makes of it and of the source of its draws.

        Raises:
            UserError: The image, or what comes with it, cannot be used, unless what is broken is skipped.
        """
        rng = np.random.default_rng([self.seed, index])
        epoch, position = divmod(index, len(self.images.names))
        if self._order[0] != epoch:
            shuffled = np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.images.names))
            self._order = epoch, shuffled
        return self.reader.read(int(self._order[1][position]), lambda number: read(number, rng), rng)


class LabelledImageDataset(EndlessImages[LabelledImages]):
    """Endless augmented images, each with its labels.

    Args:
        images: The images of a split.
        preparation: How they are augmented and normalised.
        seed: As `EndlessImages`.
        skip_broken: As `EndlessImages`.
    """

    def __init__(self, images: ImageSet, preparation: Preparation, seed: int, *, skip_broken: bool = False) -> None:
        super().__init__(images, seed, skip_broken=skip_broken)
        self.preparation = preparation

    def __getitem__(self, index: int) -> LabelledImages:
        """The unbatched item: images (C, H, W), labels (K,), its name.

        Raises:
            UserError: The image or what its labels are read off cannot be used, unless what is broken is skipped.
        """
        number, (planes, labels) = self.drawn(index, self._read)
        return LabelledImages(torch.from_numpy(planes), torch.from_numpy(labels).float(), self.images.names[number])

    def _read(self, number: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        pixels, labels = self.images.draw(number, rng)
        return self.preparation.train(pixels, rng), labels


class MaskedImageDataset(EndlessImages[MaskedImages]):
    """Endless augmented images, each with a class for every pixel.

    Args:
        images: The images of a split.
        masks: The label maps to train on, N files; None takes those of `images`.
        transform: How images and label maps are augmented, and images are normalised.
        seed: As `EndlessImages`.
        skip_broken: As `EndlessImages`.
    """

    def __init__(
        self,
        images: ImageSet,
        masks: Sequence[str] | None,
        transform: ImageTransform,
        seed: int,
        *,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(images, seed, skip_broken=skip_broken)
        self.masks = masks
        self.transform = transform
        classes = images.class_set.values
        self._classes = np.full(256, NOT_LEARNT, np.uint8)  # of each value
        self._classes[classes] = np.arange(classes.stop - classes.start)

    def __getitem__(self, index: int) -> MaskedImages:
        """The unbatched item: images (C, H, W), masks (H, W), its name.

        Raises:
            UserError: The image or its label map cannot be used, unless what is broken is skipped.
        """
        number, (planes, classes) = self.drawn(index, self._read)
        return MaskedImages(torch.from_numpy(planes), torch.from_numpy(classes).long(), self.images.names[number])

    def _read(self, number: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        pixels, mask = self.images.read(number), self._mask(number)
        source = Path((self.masks or self.images.masks or self.images.paths)[number])
        _require_size(mask.shape, pixels.shape[:2], source)
        return self.transform.train_masked(pixels, self._classes[mask], rng)

    def _mask(self, number: int) -> NDArray[np.uint8]:
        if self.masks is None:
            mask = self.images.mask(number)
            assert mask is not None, "an image set without masks is asked for one"
            return mask
        path = Path(self.masks[number])
        mask = read_mask(path)
        # Whoever makes masks leaves pixels out by 255, whatever the dataset itself does.
        return self.images.checked(np.where(mask == NOT_LEARNT, np.uint8(self.images.class_set.ignored), mask), path)


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
    """Images of one dataset with labels; a subclass says which images a split has, and what they show.

    Training gets `LabelledImages`, which say what an image shows, or `MaskedImages`, which say where (`train_masks`).
    Evaluation gets one `ScoredImage` at a time: an image, whole and without augmentation, and apart from it the truth.

    Args:
        root: The folder that holds the dataset.
        batch_size: Images a step on each device.
        workers: Processes that read and prepare images; 0 does so in the training process.
        preprocessing: "paper" prepares images as `transform` says; "official" does with them what the official code
            does, whose numbers are documented on each dataset's class, and leaves `transform` alone.
        transform: Augmentation and normalisation.
        predict_split: Which images `predict` runs over; "train" to make the masks that a second stage is trained on.
        skip_broken: Whether training draws another image where one, or its mask, cannot be used, instead of stopping;
            what is skipped is counted and named. Nothing is ever skipped that is scored or predicted.
        train_masks: What tells the class of every pixel of the training images: "own", the dataset's label maps, or a
            folder of indexed `<image>.png`, such as the run that predicted them, with the values of the dataset; pixels
            of 255 are not learnt from. None: training images come with their labels.

    Raises:
        ConfigError: `preprocessing` is "official", but no official code reads this dataset, or trains on its masks.
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
        train_masks: Literal["own"] | Path | None = None,
    ) -> None:
        super().__init__(root, batch_size, workers)
        self.skip_broken = skip_broken
        self.predict_split = predict_split
        self.train_masks = train_masks.expanduser() if isinstance(train_masks, Path) else train_masks
        self._mask_files: Sequence[str] | None = None
        self.preparation: Preparation = transform
        if preprocessing == "official":
            if train_masks is not None:
                raise ConfigError(
                    "data.preprocessing is official, but the official code trains on labels alone.\n"
                    "Leave out data.train_masks, or prepare images as data.transform says: --data.preprocessing paper."
                )
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

    def reads_masks(self, split: Split) -> bool:
        """Whether the dataset's label maps of a split are read: to score with, or to train on."""
        return split != "train" or self.train_masks == "own"

    def setup(self, stage: str) -> None:
        """Find the images that a stage needs and say which they are.

        Raises:
            ConfigError: The training images have no label maps, which are to be trained on.
            MaskError: One in the folder `train_masks` is no label map, or of another size than its image.
            UserError: The dataset, a split or one of its files is not there, or is not as expected.
        """
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
            title = f"Predicted (data.predict_split={split}): {title}" if stage == "predict" else title
            count = len(found.names)
            rank_zero_info(
                f"{title}: {count:,} image{'s' if count > 1 else ''} of {len(self.class_names)} classes in "
                f"{folder.absolute()}"
            )
        if stage == "fit" and self.train_masks is not None:
            self._find_masks(self._images["train"], self.train_masks)

    def _find_masks(self, images: ImageSet, source: Path | Literal["own"]) -> None:
        """Look for the label maps to train on, as far as their headers tell, and say where they are."""
        title, folder = self.describe("train")
        if source == "own":
            if not images.has_masks:
                raise ConfigError(
                    f"data.train_masks is own, but {title} in {folder} has no label maps.\n"
                    "Train on masks that a first stage wrote: --data.train_masks FOLDER."
                )
            rank_zero_info("Trained on its own label maps")
            return
        masks = source / "masks" if (source / "masks").is_dir() else source
        there = {path.stem: os.fspath(path) for path in sorted(masks.glob("*.png"))}
        missing = [name for name in images.names if name not in there]
        if missing:
            raise DatasetNotFoundError(
                f"No masks for {len(missing)} of the {len(images.names)} images of {title}: data.train_masks={masks}\n"
                f"  missing: {', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}\n"
                f"  found there: {', '.join(list(there)[:_SHOWN]) or found_in(masks)}\n"
                "  expected <image>.png, indexed, for each image, or the run's folder that holds it as `masks`\n"
                "Write them: lightning_vos predict with the first stage's recipe and --data.predict_split train."
            )
        self._mask_files = [there[name] for name in images.names]
        if not self.skip_broken:
            for mask, image in zip(self._mask_files, images.paths, strict=True):
                _check_header(Path(mask), Path(image))
        rank_zero_info(f"Trained on the masks in {masks.absolute()}")

    def train_dataloader(self) -> DataLoader[LabelledImages] | DataLoader[MaskedImages]:
        """Endless batches of augmented images."""
        images, preparation, skip_broken = self._images["train"], self.preparation, self.skip_broken
        if self.train_masks is None:
            return self.endless(LabelledImageDataset(images, preparation, self.seed, skip_broken=skip_broken))
        assert isinstance(preparation, ImageTransform), "checked by the constructor"
        return self.endless(
            MaskedImageDataset(images, self._mask_files, preparation, self.seed, skip_broken=skip_broken)
        )

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


def _check_header(mask: Path, image: Path) -> None:
    """Refuse a label map that its header says to be another kind of picture, or of another size than its image."""
    with mask.open("rb") as file:
        header = read_header(file.read(_HEADER_BYTES), str(mask))
    if not header.kind.endswith("indexed") and header.kind != "8 bits, grey":
        raise MaskError(
            f"Label map of another kind: {mask}\n"
            f"  found {header.kind}; expected an indexed PNG, or a grey one of 8 bits\n"
            "Write the number of the class into each pixel, not its colour."
        )
    if image.suffix.lower() in FRAME_SUFFIXES:  # rasters say their size as they are read
        _require_size((header.height, header.width), frame_size(image), mask)


def _require_size(found: tuple[int, ...], size: tuple[int, ...], path: Path) -> None:
    if found != size:
        raise MaskError(
            f"Label map of another size than its image: {path}\n"
            f"  found {found[1]}x{found[0]}, expected {size[1]}x{size[0]} (width x height).\n"
            "Write it again at the size of the image; scale label maps to the nearest pixel only."
        )


def _as_it_is(item: Any) -> Any:
    return item
