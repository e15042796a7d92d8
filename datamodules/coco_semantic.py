from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.annotations import (
    AnnotationFault,
    MaskTexts,
    faults_of,
    field,
    frame_size_of,
    mask_text,
    number,
    read_categories,
    read_json,
    rows,
)
from datamodules.base import Split
from datamodules.image_transforms import OfficialTransform
from datamodules.label_files import labels_of, read_labels
from datamodules.labelled_images import ImageDataModule, ImageSet, found_in, image_files, listed_files, plain_names
from lightning_vos.errors import ConfigError, DatasetNotFoundError, FrameError
from lightning_vos.evaluation.semantic import CLASS_SETS, ClassSet
from lightning_vos.io.frames import frame_size

_FORM = "COCO"
_PARTS: dict[Split, Literal["train", "val"]] = {"train": "train", "val": "val", "test": "val"}


class COCOSemantic(ImageDataModule):
    """COCO for weakly supervised segmentation: 80 classes, numbered in the order of their ids, and background.

    Labels are the categories of an image's annotations, crowds too. Images without any are not trained on. Masks are
    the PNGs of `SegmentationClass/<split><year>`, values 0 to 80, as others publish them. Where these are not there,
    masks are made of the instances: crowds first, then the others from the largest to the smallest, so that none is
    hidden by what is larger than it. Scores on masks made this way compare with themselves alone.

    Weakly supervised segmentation takes the split of 2014; the official code that of 2017, brings images to 448 x 448,
    takes them as values from 0 to 1 and augments nothing (`preprocessing`).

    Args:
        root: The folder of COCO, or the folder that holds it as `coco` or `COCO`.
        year: 2014 or 2017, which split the same images differently.
        labels: "json", the instance annotations, or a CSV of the training images, which saves reading them; see
            `datamodules.label_files.read_labels`. The CSV then is the list of the images to train on.
        validation_images: How many images, spread evenly over the validation split, are scored during training.
        **parts: What every dataset of images takes, see `ImageDataModule`.

    Raises:
        ValueError: No image is to be scored.
    """

    OFFICIAL: ClassVar = OfficialTransform((448, 448), "unit")

    def __init__(
        self,
        root: Path,
        year: Literal[2014, 2017] = 2014,
        labels: Literal["json"] | Path = "json",
        validation_images: int = 5000,
        **parts: Any,
    ) -> None:
        super().__init__(root, **parts)
        if validation_images < 1:
            raise ValueError(f"COCOSemantic: validation_images={validation_images}; expected at least 1")
        self.year = year
        self.label_source = labels
        self.validation_images = validation_images

    @property
    def class_names(self) -> tuple[str, ...]:
        """The 80 classes."""
        return self.class_set.names[1:]

    @property
    def class_set(self) -> ClassSet:
        """0 is background, 1 to 80 are the classes, 255 is not scored."""
        return CLASS_SETS["coco"]

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "COCO train2014" and the folder of its images."""
        return f"COCO {_PARTS[split]}{self.year}", self._places(split).images

    def images(self, split: Split) -> ImageSet:
        """The images of a split.

        Raises:
            ConfigError: The annotations are of other categories than COCO's, or labels in a file that is not loaded.
            DatasetNotFoundError: The split is not there, or an image; or its annotations are not as expected.
        """
        places = self._places(split)
        if isinstance(self.label_source, Path) and not self.reads_masks(split):
            return self._labelled(self.label_source, places)
        content = read_json(places.annotations)
        with faults_of(places.annotations, "the file", _FORM):
            categories = self._categories(places.annotations, read_categories(content))
            entries = _images(places.annotations, rows(content, "images"))
            annotated = rows(content, "annotations") if content.get("annotations") is not None else None
        if annotated is None and split == "train":
            raise DatasetNotFoundError(
                f"{places.annotations} has no annotations: its labels are not public.\n"
                f"Get instances_train{self.year}.json from https://cocodataset.org."
            )
        drawn = self.reads_masks(split) and not places.masks.is_dir()
        shown = None
        if annotated is not None:
            shown = _instances(places.annotations, annotated, entries, categories, drawn=drawn)
        kept = list(entries)
        if split == "train" and shown is not None:
            kept = [image for image in kept if image in shown]
            if not kept:
                raise DatasetNotFoundError(f"{places.annotations} has no image with a label.\nGet the file again.")
        elif split == "val":
            count = min(self.validation_images, len(kept))
            kept = [kept[round(place)] for place in np.linspace(0, len(kept) - 1, count)]
        names = [entries[image].name for image in kept]
        there = image_files(places.images)
        paths = listed_files(names, there, places.images, places.annotations, "images")
        if shown is None:
            return ImageSet(names, paths, self.class_set, 1)
        table = np.zeros((len(names), len(self.class_names)), np.uint8)
        for row, image in zip(table, kept, strict=True):
            row[[instance.label for instance in shown.get(image, ())]] = 1
        if not self.reads_masks(split):
            return ImageSet(names, paths, self.class_set, 1, table)
        if not drawn:
            masks = listed_files(names, image_files(places.masks), places.masks, places.annotations, "masks")
            return ImageSet(names, paths, self.class_set, 1, table, masks)
        instances = [sorted(shown.get(image, ()), key=lambda one: (not one.crowd, -one.area)) for image in kept]
        return _DrawnMasks(
            names,
            paths,
            self.class_set,
            1,
            table,
            sizes=np.array([entries[image].size for image in kept], np.int64),
            starts=np.cumsum([0, *map(len, instances)], dtype=np.int64),
            values=np.array([one.label + 1 for of_image in instances for one in of_image], np.uint8),
            texts=MaskTexts.of([one.text for of_image in instances for one in of_image]),
        )

    def _labelled(self, source: Path, places: _Places) -> ImageSet:
        """The images of a CSV."""
        names = plain_names(source, read_labels(source).rows)
        paths = listed_files(names, image_files(places.images), places.images, source, "images")
        table = labels_of(source, names, self.class_names)
        return ImageSet(names, paths, self.class_set, 1, table)

    def _categories(self, file: Path, categories: Mapping[int, str]) -> dict[int, int]:
        """Category id -> class, counted from 0."""
        if tuple(categories.values()) != self.class_names:
            other = [name for name in categories.values() if name not in self.class_names]
            raise ConfigError(
                f"{file} has other categories than COCO\n"
                f"  found {len(categories)}, of other names {', '.join(other[:4]) or 'none'}\n"
                f"  expected the {len(self.class_names)} of COCO in order: {', '.join(self.class_names[:3])}, ...\n"
                "Get the file of the dataset again, or read your own images with datamodules.LabelledImageFolder."
            )
        return {category: label for label, category in enumerate(categories)}

    def _places(self, split: Split) -> _Places:
        name = f"{_PARTS[split]}{self.year}"
        for base in (self.root, self.root / "coco", self.root / "COCO"):
            file = base / "annotations" / f"instances_{name}.json"
            for folder in (base / name, base / "images" / name):
                if file.is_file() and folder.is_dir():
                    return _Places(file, folder, base / "SegmentationClass" / name)
        raise DatasetNotFoundError(
            f"COCO {name} is not at data.root={self.root}: looked there and in its coco\n"
            f"  found there: {found_in(self.root)}\n"
            f"  expected: coco/{name}/*.jpg, coco/annotations/instances_{name}.json\n"
            f"            and, to be scored as others are, coco/SegmentationClass/{name}/*.png\n"
            "Get images and annotations from https://cocodataset.org and name their folder with --data.root FOLDER,\n"
            "or write a small synthetic set in this layout, then run the same command again:\n"
            f"  lightning_vos data demo {self.root} --layout coco_semantic"
        )


class _Places(NamedTuple):
    annotations: Path
    images: Path
    masks: Path  # it need not exist


class _Entry(NamedTuple):
    name: str
    size: tuple[int, int]


class _Instance(NamedTuple):
    label: int  # class, counted from 0
    crowd: bool
    area: float
    text: bytes


@dataclass(frozen=True, kw_only=True)
class _DrawnMasks(ImageSet):
    """Images whose masks are drawn from instances, in their order; the last one is in front.

    Attributes:
        sizes: (N, 2) height and width of the images as the annotations say it.
        starts: (N + 1,) where the instances of an image begin, and those of the last one end.
        values: (M,) uint8, the mask value of each instance.
        texts: The M instances.
    """

    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    values: NDArray[np.uint8]
    texts: MaskTexts

    @property
    def has_masks(self) -> bool:
        """There are: they are drawn."""
        return True

    def mask(self, number: int) -> NDArray[np.uint8]:
        """The (H, W) label map of an image.

        Raises:
            FrameError: The image has another size than its annotations say.
        """
        height, width = self.sizes[number].tolist()
        size = frame_size(Path(self.paths[number]))
        if size != (height, width):
            raise FrameError(
                f"{self.paths[number]} has {size[1]}x{size[0]} pixels, but its annotations say {width}x{height} "
                "(width x height).\nGet the image of the dataset again."
            )
        mask = np.zeros(size, np.uint8)
        for instance in range(self.starts[number], self.starts[number + 1]):
            mask[self.texts.decode(instance, size) > 0] = self.values[instance]
        return mask


def _images(file: Path, listed: Sequence[Any]) -> dict[int, _Entry]:
    """Image id -> its entry, in the order of the file."""
    entries: dict[int, _Entry] = {}
    for position, row in enumerate(listed):
        with faults_of(file, f"images[{position}]", _FORM):
            image, name = field(row, "id", int), field(row, "file_name", str)
            if image in entries:
                raise AnnotationFault(f"id {image} for the second time")
            plain_names(file, [name])
            entries[image] = _Entry(Path(name).stem, frame_size_of(row))
    if len({entry.name for entry in entries.values()}) < len(entries) or not entries:
        raise DatasetNotFoundError(f"{file} lists {len(entries)} images, none or some twice.\nGet the file again.")
    return entries


def _instances(
    file: Path, listed: Sequence[Any], entries: Mapping[int, _Entry], categories: Mapping[int, int], *, drawn: bool
) -> dict[int, list[_Instance]]:
    """Image id -> its instances, in the order of the file; with their masks, if these are to be drawn."""
    found: defaultdict[int, list[_Instance]] = defaultdict(list)
    for position, row in enumerate(listed):
        with faults_of(file, f"annotations[{position}]", _FORM):
            image, category = field(row, "image_id", int), field(row, "category_id", int)
            if image not in entries or category not in categories:
                raise AnnotationFault(f"image_id {image}, category_id {category}: the file does not list both")
            text = mask_text(row.get("segmentation"), entries[image].size) if drawn else b""
            crowd = row.get("iscrowd", 0) == 1
            found[image].append(_Instance(categories[category], crowd, number(row, "area"), text))
    return dict(found)
