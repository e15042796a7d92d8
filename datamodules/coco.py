"""The reader of COCO: images and the instances of a `instances_*.json`, kept small enough for worker processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.annotations import (
    AnnotationFault,
    MaskTexts,
    faults_of,
    field,
    frame_size_of,
    inside,
    mask_text,
    missing_files,
    number,
    read_categories,
    read_json,
    rows,
)
from lightning_vos.errors import DatasetNotFoundError, FrameError
from lightning_vos.io.frames import read_frame

_FORM = "COCO"


@dataclass(frozen=True)
class InstanceRules:
    """Which instances of COCO are used; those without any area, in mask or box, never are.

    Attributes:
        min_area: Instances have more than this area, as the file states it, in pixels.
        min_side: Both sides of their boxes, as the file states them, are longer than this, in pixels.
        crowds: Whether a crowd counts as an instance. The published code of HODOR does not leave crowds out, that of
            SeqFormer does.
    """

    min_area: float = 0.0
    min_side: float = 0.0
    crowds: bool = False

    def __post_init__(self) -> None:
        """Refuse what would take in instances without area."""
        if self.min_area < 0 or self.min_side < 0:
            raise ValueError(f"InstanceRules: min_area={self.min_area}, min_side={self.min_side}; expected 0 or more")


@dataclass(frozen=True)
class CocoImages:
    """The images of a split that have instances to use.

    Attributes:
        file: The JSON.
        folder: The images.
        categories: Id -> name of all categories of the file, ids rising.
        names: The file names of the I images, in the order of the file.
        sizes: (I, 2) height and width, in pixels.
        starts: (I + 1,) where the instances of each image begin and, last, where all end.
        ids: (K,) the annotation ids of the instances, image by image, each image's in the order of the file.
        category_ids: (K,) their categories.
        masks: Their K masks.
    """

    file: Path
    folder: Path
    categories: Mapping[int, str]
    names: Sequence[str]
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    masks: MaskTexts

    def __len__(self) -> int:
        return len(self.names)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(I,) how many instances each image has."""
        return np.diff(self.starts)

    def image(self, index: int) -> NDArray[np.uint8]:
        """The (H, W, 3) RGB image; a grey one is given three equal channels.

        Raises:
            FrameError: It cannot be read, or has another size than the file states.
        """
        path, size = self.folder / self.names[index], tuple(self.sizes[index].tolist())
        image = read_frame(path)
        if image.shape[:2] != size:
            raise FrameError(
                f"{path} has {image.shape[1]}x{image.shape[0]} pixels, but {self.file.name} says {size[1]}x{size[0]}"
                " (width x height).\nGet the image of the dataset again, or correct the file."
            )
        return image

    def labels(self, index: int, chosen: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """The (H, W) label map: 1, 2, ... for instances in the order chosen; where two overlap, the later wins.

        Args:
            index: Which image.
            chosen: Numbers of its instances, from 0 on, at most 255; all, the first 255, by default.
        """
        height, width = self.sizes[index].tolist()
        labels = np.zeros((height, width), np.uint8)
        numbers = range(min(int(self.counts[index]), 255)) if chosen is None else chosen
        for label, instance in enumerate(numbers, start=1):
            labels[self.masks.decode(int(self.starts[index] + instance), (height, width)) > 0] = label
        return labels


def read_coco(
    file: Path, folder: Path, rules: InstanceRules, categories: Sequence[int] | None = None, at_most: int | None = None
) -> CocoImages:
    """Read the instances of a split of COCO, and check all of them.

    Args:
        file: Its `instances_*.json`.
        folder: Its images.
        rules: Which instances are used.
        categories: The ids of the categories whose instances are used; all by default.
        at_most: How many images are read, those of the lowest ids; all by default.

    Raises:
        DatasetNotFoundError: The file is malformed, an image is not there, or no instance is left.
    """
    content = read_json(file)
    with faults_of(file, "the file", _FORM):
        known = read_categories(content)
        image_rows, instance_rows = rows(content, "images"), rows(content, "annotations")
    names: dict[int, str] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for position, row in enumerate(image_rows):
        with faults_of(file, f"images[{position}]", _FORM):
            image = field(row, "id", int)
            if image in names:
                raise AnnotationFault(f"id {image}, which an earlier one has")
            names[image], sizes[image] = inside(row.get("file_name")), frame_size_of(row)
    found: defaultdict[int, list[tuple[int, int, bytes]]] = defaultdict(list)
    for position, row in enumerate(instance_rows):
        with faults_of(file, f"annotations[{position}]", _FORM):
            image, category = field(row, "image_id", int), field(row, "category_id", int)
            if image not in names or category not in known:
                raise AnnotationFault(f"image_id {image} and category_id {category}, which the file does not list both")
            crowd, area, box = row.get("iscrowd", 0), number(row, "area"), rows(row, "bbox")
            if crowd not in (0, 1) or len(box) != 4 or not all(type(side) in (int, float) for side in box):
                raise AnnotationFault(f"iscrowd {crowd!r}, bbox {box}; expected 0 or 1, and four numbers")
            if (crowd and not rules.crowds) or area <= rules.min_area or min(box[2:]) <= rules.min_side:
                continue
            if categories is None or category in categories:
                text = mask_text(row.get("segmentation"), sizes[image])
                if text:
                    found[image].append((field(row, "id", int), category, text))
    del content
    return _packed(file, folder, known, names, sizes, {image: found[image] for image in sorted(found)[:at_most]})


def _packed(
    file: Path,
    folder: Path,
    categories: Mapping[int, str],
    names: Mapping[int, str],
    sizes: Mapping[int, tuple[int, int]],
    found: Mapping[int, Sequence[tuple[int, int, bytes]]],
) -> CocoImages:
    if not found:
        raise DatasetNotFoundError(
            f"{file} has {len(names)} images, none of which has an instance to use.\n"
            "Crowds, small instances and categories that are not asked for are not used.\n"
            "Lower the limits of data.rules, or get the file of the dataset again."
        )
    missing = missing_files(folder, [names[image] for image in found])
    if missing:
        raise DatasetNotFoundError(
            f"{len(missing)} of {len(found)} images that {file} lists are not there\n"
            f"  missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}\n"
            f"  expected in {folder.absolute()}\n"
            "The copy is not complete: add the images, or name the folder that holds them."
        )
    instances = [instance for of_image in found.values() for instance in of_image]
    return CocoImages(
        file=file,
        folder=folder,
        categories=categories,
        names=[names[image] for image in found],
        sizes=np.array([sizes[image] for image in found], np.int64),
        starts=np.cumsum([0, *(len(of_image) for of_image in found.values())], dtype=np.int64),
        ids=np.array([instance[0] for instance in instances], np.int64),
        category_ids=np.array([instance[1] for instance in instances], np.int64),
        masks=MaskTexts.of([instance[2] for instance in instances]),
    )


def find_coco(root: Path, split: str) -> tuple[Path, Path]:
    """Find the annotations and the images of a split of COCO.

    Args:
        root: The folder of COCO, or the folder that holds it as `coco` or `COCO`.
        split: Such as train2017.

    Returns:
        `annotations/instances_<split>.json`, and `<split>` or `images/<split>`.

    Raises:
        DatasetNotFoundError: They are not there.
    """
    for base in (root, root / "coco", root / "COCO"):
        file = base / "annotations" / f"instances_{split}.json"
        for folder in (base / split, base / "images" / split):
            if file.is_file() and folder.is_dir():
                return file, folder
    entries = sorted(path.name for path in root.iterdir()) if root.is_dir() else None
    found = "no such folder" if entries is None else ", ".join(entries[:6]) or "an empty folder"
    raise DatasetNotFoundError(
        f"COCO {split} is not at root={root}: looked in {root.absolute()} and its coco.\n"
        f"  found there: {found}{', ...' if entries and len(entries) > 6 else ''}\n"
        f"  expected: coco/annotations/instances_{split}.json, coco/{split}/*.jpg\n"
        "Get images and instance annotations from https://cocodataset.org and name their folder as root (data.root),\n"
        "or write a small synthetic set in this layout, then run the same command again:\n"
        f"  lightning_vos data demo {root} --layout coco"
    )
