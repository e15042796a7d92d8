from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.base import Split
from datamodules.image_transforms import OfficialTransform
from datamodules.label_files import labels_of
from datamodules.labelled_images import ImageDataModule, ImageSet, found_in, image_files, listed_files
from lightning_vos.errors import DatasetNotFoundError
from lightning_vos.evaluation.semantic import CLASS_SETS, ClassSet

_IMAGES, _MASKS = "images", "annotations"
_FOLDERS: dict[Split, str] = {"train": "training", "val": "validation", "test": "validation"}


class ADE20K(ImageDataModule):
    """ADE20K scene parsing: the 150 classes, labelled with those that an image's mask shows.

    The official code has 151 classes, as it takes 0 ("other") for one; it brings images to 208 x 320, divides each by
    its largest value and augments nothing (`preprocessing`). It does not shuffle; here images are shuffled always.

    Args:
        root: The ADEChallengeData2016 folder or the folder that holds it.
        classes: 150, or 151 with 0 as a class, which is then scored too.
        labels: "masks", or a CSV of the training images, which saves reading their masks; see
            `datamodules.label_files.read_labels`.
        **parts: What every dataset of images takes, see `ImageDataModule`.
    """

    OFFICIAL: ClassVar = OfficialTransform((208, 320), "maximum")

    def __init__(
        self, root: Path, classes: Literal[150, 151] = 150, labels: Literal["masks"] | Path = "masks", **parts: Any
    ) -> None:
        super().__init__(root, **parts)
        self.classes = classes
        self.label_source = labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The 150 classes, or before them "other"."""
        return self.class_set.names

    @property
    def class_set(self) -> ClassSet:
        """1 to 150 are the classes; 0 is not scored, or is a class of its own."""
        plain = CLASS_SETS["ade20k"]
        return plain if self.classes == 150 else ClassSet(f"{plain.title}, with 0 as a class", ("other", *plain.names))

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "ADE20K training" and the ADEChallengeData2016 folder."""
        return f"ADE20K {_FOLDERS[split]}", self.folder

    @cached_property
    def folder(self) -> Path:
        """The ADEChallengeData2016 folder itself."""
        for folder in (self.root, self.root / "ADEChallengeData2016"):
            if (folder / _IMAGES).is_dir() and (folder / _MASKS).is_dir():
                return folder
        raise DatasetNotFoundError(
            f"ADE20K is not at data.root={self.root}: no {_IMAGES} and {_MASKS} there or in its ADEChallengeData2016\n"
            f"  found there: {found_in(self.root)}\n"
            f"  expected: ADEChallengeData2016/{_IMAGES}/training/*.jpg, ADEChallengeData2016/{_MASKS}/training/*.png\n"
            "            and the same in validation\n"
            "Get it from http://sceneparsing.csail.mit.edu and name its folder with --data.root FOLDER,\n"
            "or write a small synthetic set in this layout, then run the same command again:\n"
            f"  lightning_vos data demo {self.root} --layout ade20k"
        )

    def images(self, split: Split) -> ImageSet:
        """All images of a split.

        Raises:
            ConfigError: Labels are of other classes, or in a file that is not loaded.
            DatasetNotFoundError: The split has no images, or masks or labels are missing.
        """
        folder, masks = self.folder / _IMAGES / _FOLDERS[split], self.folder / _MASKS / _FOLDERS[split]
        found = image_files(folder)
        if not found:
            raise DatasetNotFoundError(f"No images in {folder}\n  found {found_in(folder)}\nCopy the dataset again.")
        names = sorted(found)
        paths = [found[name] for name in names]
        first = self.class_set.first
        if isinstance(self.label_source, Path) and not self.reads_masks(split):
            table = labels_of(self.label_source, names, self.class_names)
            return ImageSet(names, paths, self.class_set, first, table)
        there = listed_files(names, image_files(masks), masks, folder, "masks")
        return ImageSet(names, paths, self.class_set, first, masks=there)
