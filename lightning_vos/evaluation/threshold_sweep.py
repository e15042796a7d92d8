"""Label maps at many thresholds of the background at once, from the class maps that a run has kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import ConfigError, DatasetNotFoundError, MaskError
from lightning_vos.evaluation.problems import Problem, ProblemKind
from lightning_vos.io.class_maps import StoredClassMaps, read_class_maps
from lightning_vos.io.png import read_indices

if TYPE_CHECKING:
    from lightning_vos.evaluation.semantic import ClassSet
    from lightning_vos.evaluation.trees import MaskSequence

_REMEDY = "background everywhere stands in"


def check_sweep(folder: Path, class_set: ClassSet, thresholds: Sequence[float]) -> None:
    """Refuse a sweep that cannot be made.

    Raises:
        ConfigError: The classes have no background, or thresholds are no rising numbers from 0 to below 1.
        DatasetNotFoundError: The run has kept no class maps.
    """
    if class_set.first != 0:
        raise ConfigError(
            f"There is no threshold of the background to try: {class_set.title} has none\n"
            "  expected classes that start with the background, of value 0, such as voc or coco."
        )
    if not thresholds or list(thresholds) != sorted(set(thresholds)) or not 0 <= thresholds[0] <= thresholds[-1] < 1:
        raise ConfigError(f"sweep is {list(thresholds)[:6]}; expected rising numbers from 0 to below 1")
    if next(folder.glob("*.npz"), None) is None:
        raise DatasetNotFoundError(
            f"No class maps to try thresholds with: {folder}\n"
            "  expected <image>.npz there, which a run keeps when it is told to, in `maps` beside `masks`.\n"
            "Predict again and keep them, or score without --sweep."
        )


def count_levels(
    truth: MaskSequence, folder: Path, class_set: ClassSet, thresholds: Sequence[float], names: Sequence[str]
) -> tuple[NDArray[np.int64], list[Problem]]:
    """Count pixels of some images by how many of T thresholds their best class is above.

    Args:
        truth: The true label maps.
        folder: `<image>.npz` of class maps.
        class_set: C classes, the first is the background.
        thresholds: Rising.
        names: The images.

    Returns:
        (T + 1, C, C) pixels by that number, true class and best class; what is wrong, by image.

    Raises:
        ConfigError: Class maps have values of no class.
        MaskError: A label map of the truth is damaged.
    """
    count = len(class_set.names)
    shape = (len(thresholds) + 1, count, count)
    total = np.zeros(shape, dtype=np.int64)
    steps = np.asarray(thresholds, dtype=np.float32)
    problems: list[Problem] = []
    for name in names:
        labels = read_indices(truth.read(name), truth.where(name))
        path = folder / f"{name}.npz"
        try:
            stored = read_class_maps(path)
        except MaskError as error:
            kind = ProblemKind.UNREADABLE if path.exists() else ProblemKind.MISSING_IMAGE
            problems.append(Problem(kind, name, None, str(error).splitlines()[0], _REMEDY))
            stored = StoredClassMaps(np.empty(0, np.uint8), np.empty((0, 1, 1), np.float32))
        if ((stored.values < 1) | (stored.values >= count)).any():
            raise ConfigError(
                f"Class maps with values of no class: {path}\n"
                f"  found {', '.join(map(str, stored.values))}\n"
                f"  expected 1 to {count - 1} ({class_set.title})\n"
                "Name the classes that they were made of."
            )
        best, classes = _best(stored, labels.shape)
        levels = np.searchsorted(steps, best, side="left")  # how many it is above
        known = labels < count
        places = np.ravel_multi_index((levels[known], labels[known], classes[known]), shape)
        total += np.bincount(places, minlength=total.size).reshape(shape)
    return total, problems


def confusions(levels: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The (C, C) pixels by true and predicted class of each threshold in turn, from `count_levels`."""
    above = levels[::-1].cumsum(axis=0)[::-1]
    for number in range(len(levels) - 1):
        counts = above[number + 1].copy()
        counts[:, 0] += (above[0] - above[number + 1]).sum(axis=1)
        yield counts


def _best(stored: StoredClassMaps, size: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """(H, W) highest value of a pixel in any class map, and the value of that class."""
    best = np.zeros(size, dtype=np.float32)
    classes = np.zeros(size, dtype=np.uint8)
    for value, plane in zip(stored.values, stored.maps, strict=True):
        stretched = cv2.resize(plane, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        classes[stretched > best] = value
        best = np.maximum(best, stretched)
    return best, classes
