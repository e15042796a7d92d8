from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import Split
from datamodules.label_files import LabelTable, read_labels
from datamodules.labelled_images import ImageDataModule, ImageSet, found_in, image_files, listed_files, plain_names
from lightning_vos.errors import ConfigError, DatasetNotFoundError
from lightning_vos.evaluation.semantic import ClassSet
from lightning_vos.io.frames import FRAME_SUFFIXES

_MOST_CLASSES = 254  # with background and 255 they fill the values of a mask


class LabelledImageFolder(ImageDataModule):
    """A person's own images: `root/<images>/*.jpg`, and a CSV of what each shows.

    The CSV has the lines `image,label`, one for each class that an image shows, or a line an image with a column of 0
    or 1 for each class; see `datamodules.label_files.read_labels`. An image is named with or without its suffix. In the
    order of the CSV, each `holdout`-th image is kept for validation and tested on, the last one if they are fewer.

    Label maps `root/<masks>/<image>.png` are for scoring, and for training where `train_masks` is "own": 0 is
    background, 1 the first class, 255 is not scored. Without that folder, images are validated by their labels only.

    Args:
        root: The folder that holds the images and the CSV.
        images: The folder of the images, relative to `root`.
        labels: The CSV, relative to `root`.
        masks: The folder of the label maps of the images that are kept, relative to `root`; it may be missing.
        holdout: Every how many-th image is kept for validation, at least 2.
        **parts: What every dataset of images takes, see `ImageDataModule`.

    Raises:
        ValueError: `holdout` leaves nothing to train on.
    """

    def __init__(
        self,
        root: Path,
        images: str = "images",
        labels: str = "labels.csv",
        masks: str = "masks",
        holdout: int = 5,
        **parts: Any,
    ) -> None:
        if holdout < 2:
            raise ValueError(
                f"LabelledImageFolder: holdout={holdout}; expected at least 2, or nothing is left to train on"
            )
        super().__init__(root, **parts)
        self.folder = self.root / images
        self.labels = self.root / labels
        self.masks = self.root / masks
        self.holdout = holdout

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the CSV."""
        return self._table.classes

    @property
    def class_set(self) -> ClassSet:
        """0 is background, then come the classes of the CSV; 255 is not scored."""
        return ClassSet(f"the classes of {self.labels.name}", ("background", *self.class_names))

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "Labelled images train" and the folder of the images."""
        return f"Labelled images {split}", self.folder

    def images(self, split: Split) -> ImageSet:
        """The images of a split.

        Raises:
            ConfigError: The CSV is a file that is not loaded, or has more classes than a mask has values.
            DatasetNotFoundError: The CSV, an image or a mask is not there, or the CSV is not as expected.
        """
        names = plain_names(self.labels, self._table.rows)
        there = image_files(self.folder)
        paths = listed_files(names, there, self.folder, self.labels, "images")
        kept = list(range(len(names)))[self.holdout - 1 :: self.holdout] or [len(names) - 1]
        if len(names) < 2:
            raise DatasetNotFoundError(f"{self.labels} names one image.\nExpected two or more: one is kept apart.")
        chosen = sorted(set(range(len(names))) - set(kept)) if split == "train" else kept
        chosen_names = [names[number] for number in chosen]
        table = np.stack([self._table.rows[name] for name in chosen_names])
        masks = None
        if self.reads_masks(split) and self.masks.is_dir():
            masks = listed_files(chosen_names, image_files(self.masks), self.masks, self.labels, f"masks to {split}")
        return ImageSet(chosen_names, [paths[number] for number in chosen], self.class_set, 1, table, masks)

    @cached_property
    def _table(self) -> LabelTable:
        """The CSV, its images by their names without suffix."""
        if not self.labels.is_file() or not self.folder.is_dir():
            raise DatasetNotFoundError(
                f"No labelled images at data.root={self.root}: "
                f"no {self.labels if not self.labels.is_file() else self.folder}\n"
                f"  found there: {found_in(self.root)}\n"
                f"  expected: {self.folder}/*.jpg and {self.labels} with the lines image,label\n"
                "Name them with --data.root DIR, --data.images NAME and --data.labels NAME (inside root),\n"
                "or write a small synthetic set in this layout, then run the same command again:\n"
                f"  lightning_vos data demo {self.root} --layout labelled_images"
            )
        table = read_labels(self.labels)
        if len(table.classes) > _MOST_CLASSES:
            raise ConfigError(
                f"{self.labels} has {len(table.classes)} classes; masks, of 8 bits, hold {_MOST_CLASSES} at most.\n"
                "Merge classes, or leave some out."
            )
        rows = {}
        for image, labels in table.rows.items():
            suffix = Path(image).suffix
            name = image.removesuffix(suffix) if suffix.lower() in FRAME_SUFFIXES else image
            if name in rows:
                raise DatasetNotFoundError(
                    f"{self.labels} names the image {name} with two suffixes.\n"
                    "Name each image in one way, and rename one of two images that differ in their suffix alone."
                )
            rows[name] = labels
        return LabelTable(table.classes, rows)
