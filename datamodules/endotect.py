from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.base import Split
from datamodules.image_transforms import OfficialTransform
from datamodules.labelled_images import ImageDataModule, ImageSet, found_in, image_files
from lightning_vos.errors import DatasetNotFoundError, MaskError
from lightning_vos.evaluation.semantic import ClassSet
from lightning_vos.io.frames import frame_size

_TRACT = "lower-gi-tract"
_POLYPS = "polyps"  # the folder, and so the class


class EndoTect(ImageDataModule):
    """EndoTect, in the folders of HyperKvasir: images of the lower tract, one class each; polyps have masks.

    The classes are the folders `labeled-images/lower-gi-tract/<group>/<class>`, sorted by name: 16 in the whole
    dataset. Scores are of polyps against the rest, on images of polyps that have a mask in `segmented-images/masks`;
    the truth of all others is their label alone. There is no list of splits: a share of the images, drawn once, is
    trained on, the others are validated with and tested on; with `train_masks` "own" only polyps that have a mask are.

    The official code draws 70 % likewise (another draw, as its generator differs); it brings images to 512 x 640,
    changes contrast and brightness, enlarges and turns half of them, flips them both ways and maps each image to 0 to 1
    (`preprocessing`).

    Args:
        root: The folder that holds `labeled-images`, or holds that folder as `endotect` or `hyper-kvasir`.
        train_share: The share of the images that is trained on.
        split_seed: Another one draws other images.
        **parts: What every dataset of images takes, see `ImageDataModule`.

    Raises:
        ValueError: `train_share` leaves nothing to train on, or nothing else.
    """

    OFFICIAL: ClassVar = OfficialTransform((512, 640), "range", affine=0.5, zoom=1.5, flip=0.5, colour=0.5)

    def __init__(self, root: Path, train_share: float = 0.7, split_seed: int = 42, **parts: Any) -> None:
        super().__init__(root, **parts)
        if not 0 < train_share < 1:
            raise ValueError(f"EndoTect: train_share={train_share}; expected more than 0 and less than 1")
        self.train_share = train_share
        self.split_seed = split_seed

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the class folders."""
        return tuple(self._classes)

    @property
    def class_set(self) -> ClassSet:
        """1 is polyps, 0 the rest; called as the folder is, so that label maps find the class by its name."""
        return ClassSet("polyps or not", ("background", _POLYPS))

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "EndoTect train (70 %)" and the folder of the dataset."""
        share = self.train_share if split == "train" else 1 - self.train_share
        return f"EndoTect {split} ({share:.0%})", self.folder

    @cached_property
    def folder(self) -> Path:
        """The folder that holds `labeled-images`."""
        for folder in (self.root, self.root / "endotect", self.root / "hyper-kvasir"):
            if (folder / "labeled-images" / _TRACT).is_dir():
                return folder
        raise DatasetNotFoundError(
            f"EndoTect is not at data.root={self.root}: no labeled-images/{_TRACT} there or in its endotect\n"
            f"  found there: {found_in(self.root)}\n"
            f"  expected: endotect/labeled-images/{_TRACT}/<group>/<class>/*.jpg\n"
            "            endotect/segmented-images/masks/*.jpg, named as the images of polyps\n"
            "Get it from https://datasets.simula.no/hyper-kvasir and name its folder with --data.root FOLDER,\n"
            "or write a small synthetic set in this layout, then run the same command again:\n"
            f"  lightning_vos data demo {self.root} --layout endotect"
        )

    def images(self, split: Split) -> ImageSet:
        """The images of a split.

        Raises:
            DatasetNotFoundError: There are too few classes or images.
        """
        classes = enumerate(self._classes.values())
        found = sorted((name, path, label) for label, of_class in classes for name, path in of_class.items())
        doubled = {one[0] for one, two in pairwise(found) if one[0] == two[0]}
        if doubled or len(found) < 2:
            raise DatasetNotFoundError(
                f"{self.folder / 'labeled-images' / _TRACT} has {len(found)} images, some twice: "
                f"{', '.join(sorted(doubled)[:3]) or 'none'}\nExpected two or more, each in one class: copy it again."
            )
        order = np.random.default_rng(self.split_seed).permutation(len(found))
        trained = min(max(round(self.train_share * len(found)), 1), len(found) - 1)
        chosen = [found[number] for number in sorted(order[:trained] if split == "train" else order[trained:])]
        folder = self.folder / "segmented-images" / "masks"
        masks = image_files(folder) if folder.is_dir() else {}
        polyps = list(self._classes).index(_POLYPS) if _POLYPS in self._classes else -1
        if split == "train" and self.reads_masks(split):
            chosen = [one for one in chosen if one[2] == polyps and one[0] in masks]
        table = np.eye(len(self._classes), dtype=np.uint8)[[label for _, _, label in chosen]]
        outlines = [masks.get(name, "") if label == polyps else "" for name, _, label in chosen]
        return _Endoscopies(
            [name for name, _, _ in chosen], [path for _, path, _ in chosen], self.class_set, 0, table, outlines
        )

    @cached_property
    def _classes(self) -> Mapping[str, Mapping[str, str]]:
        """Class -> its images, stem -> path."""
        tract = self.folder / "labeled-images" / _TRACT
        folders = sorted((path for path in tract.glob("[!.]*/[!.]*") if path.is_dir()), key=lambda path: path.name)
        classes = {folder.name: image_files(folder) for folder in folders}
        if len(classes) < 2 or len(classes) < len(folders):
            raise DatasetNotFoundError(
                f"{tract} holds {len(folders)} folders of classes, {len(classes)} of them with different names\n"
                f"  found {', '.join(list(classes)[:4]) or 'none'}\n"
                "  expected two or more, <group>/<class>, such as pathological-findings/polyps\n"
                "Copy the dataset again."
            )
        return classes


@dataclass(frozen=True)
class _Endoscopies(ImageSet):
    """Images of one class each; an empty name among `masks` is that of no mask."""

    def mask(self, number: int) -> NDArray[np.uint8] | None:
        """The (H, W) polyp, 1 in 0, of an image that has such a mask: a JPEG, so half of white is the limit.

        Raises:
            MaskError: It cannot be read, or has another size than the image.
        """
        if not self.masks or not self.masks[number]:
            return None
        path = Path(self.masks[number])
        try:
            with Image.open(path) as image:
                grey = np.array(image.convert("L"))
        except (OSError, SyntaxError, ValueError) as error:
            raise MaskError(f"Mask that cannot be read: {path}\n  found {error}\nCopy it again.") from error
        size = frame_size(Path(self.paths[number]))
        if grey.shape != size:
            raise MaskError(
                f"Mask of another size than its image: {path}\n"
                f"  found {grey.shape[1]}x{grey.shape[0]}, expected {size[1]}x{size[0]} (width x height).\n"
                "Copy both again."
            )
        return (grey > 127).astype(np.uint8)
