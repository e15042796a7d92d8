"""Region similarity J and boundary measure F as DAVIS 2017 defines them, to the last bit; NumPy and OpenCV only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

BOUNDARY_TOLERANCE = 0.008  # of the frame's diagonal


class ObjectScores(NamedTuple):
    """J and F of N objects in one frame, and the numbers of pixels beside them."""

    region: NDArray[np.float64]  # (N,) J in [0, 1]
    boundary: NDArray[np.float64]  # (N,) F in [0, 1]
    predicted: NDArray[np.int64]  # (N,) pixels of the predicted masks
    true: NDArray[np.int64]  # (N,) pixels of the true masks
    shared: NDArray[np.int64]  # (N,) pixels of both


class Statistics(NamedTuple):
    """What DAVIS reports of the values of one object over its scored frames, as fractions."""

    mean: float
    recall: float  # share of the frames with a value above 0.5
    decay: float  # mean of the first quarter of the frames less that of the last


def region_similarity(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Measure the Jaccard index J of two masks.

    Args:
        prediction: (H, W) mask.
        truth: (H, W) mask.

    Returns:
        Intersection over union in [0, 1]; 1 if both masks are empty.

    Raises:
        ValueError: The masks differ in size.

    Example:
        >>> region_similarity(np.array([[True, True]]), np.array([[True, False]]))
        0.5
    """
    prediction, truth = _masks(prediction, truth)
    union = np.count_nonzero(prediction | truth)
    return float(np.count_nonzero(prediction & truth) / union) if union else 1.0


def boundary_f_measure(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Measure the F score of the boundary pixels of two masks, matched within 0.8 % of the frame's diagonal.

    The frame's border is no boundary, and the rules for nothing look at the boundaries, not at the masks: a mask of
    the whole frame against an empty one scores 1.

    Args:
        prediction: (H, W) mask.
        truth: (H, W) mask.

    Returns:
        Harmonic mean of precision and recall in [0, 1]; 1 if neither mask has a boundary, 0 if just one has.

    Raises:
        ValueError: The masks differ in size.

    Example:
        >>> boundary_f_measure(np.eye(4, dtype=bool), np.zeros((4, 4), dtype=bool))
        0.0
    """
    prediction, truth = _masks(prediction, truth)
    return _boundary_f_measure(prediction, truth, _radius(truth.shape))


def object_scores(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], object_ids: Sequence[int]
) -> ObjectScores:
    """Measure J and F of several objects of one frame.

    Args:
        prediction: (H, W) label map; ids that are not asked for count as background.
        truth: (H, W) label map.
        object_ids: The N objects to score, whether or not they are in the frame.

    Returns:
        The scores in the order of `object_ids`.

    Raises:
        ValueError: The label maps differ in size.
    """
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"expected two (H, W) label maps of one size, got {prediction.shape} and {truth.shape}")
    radius = _radius(truth.shape)
    region, boundary = np.empty(len(object_ids)), np.empty(len(object_ids))
    pixels = np.empty((3, len(object_ids)), np.int64)
    prediction, truth = _cropped(prediction, truth)
    for index, object_id in enumerate(object_ids):
        found, wanted = _cropped(prediction == object_id, truth == object_id)
        counts = [int(np.count_nonzero(mask)) for mask in (found, wanted, found & wanted)]
        union = counts[0] + counts[1] - counts[2]
        pixels[:, index] = counts
        region[index] = counts[2] / union if union else 1.0
        boundary[index] = _boundary_f_measure(found, wanted, radius)
    return ObjectScores(region, boundary, *pixels)


def statistics(values: Sequence[float] | NDArray[np.float64]) -> Statistics:
    """Summarise the J or the F of one object over its scored frames.

    Decay compares the first and the last of four bins of frames that share their limits. The limits are integers of
    full width: the official tool keeps them in 8 bits, which breaks its decay above 256 frames.

    Args:
        values: (T,) values in the order of the frames; of none, all three statistics are NaN.

    Example:
        >>> statistics([1.0, 0.75, 0.5, 0.25])
        Statistics(mean=0.625, recall=0.5, decay=0.5)
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return Statistics(math.nan, math.nan, math.nan)
    limits = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(np.int64) - 1
    first, last = values[: limits[1] + 1], values[limits[3] :]
    return Statistics(float(values.mean()), float((values > 0.5).mean()), float(first.mean() - last.mean()))


def _masks(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Take 0/1 arrays as masks too, and refuse what NumPy would broadcast."""
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"expected two (H, W) masks of one size, got {prediction.shape} and {truth.shape}")
    return prediction.astype(bool, copy=False), truth.astype(bool, copy=False)


def _cropped(*label_maps: NDArray[Any]) -> list[NDArray[Any]]:
    """Cut away what is background in all, up to a pixel: those hold all boundaries, and none beyond can be matched."""
    boxes = []
    for labels in label_maps:
        bytewise = labels if labels.dtype.itemsize == 1 else labels != 0
        x, y, width, height = cv2.boundingRect(bytewise.view(np.uint8))
        if width:
            boxes.append((x, y, x + width, y + height))
    if not boxes:
        return [labels[:1, :1] for labels in label_maps]
    left, top = (min(starts) for starts in list(zip(*boxes, strict=True))[:2])
    right, bottom = (max(ends) for ends in list(zip(*boxes, strict=True))[2:])
    crop = slice(max(top - 1, 0), bottom + 1), slice(max(left - 1, 0), right + 1)
    return [labels[crop] for labels in label_maps]


def _radius(size: tuple[int, ...]) -> int:
    return math.ceil(BOUNDARY_TOLERANCE * math.hypot(*size))


def _boundary_f_measure(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], radius: int) -> float:
    boundaries = _boundaries(prediction, truth, radius)
    found, wanted = _counted(boundaries)
    if not found or not wanted:
        return float(found == wanted)
    matched = _counted(boundaries & _dilated(boundaries, radius)[::-1])
    precision, recall = matched[0] / found, matched[1] / wanted
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# Boundaries are packed, 64 pixels of a row in a word, so that one operation works on all of them. Behind each row and
# below each mask stand `radius` empty pixels or more: what a dilation pushes out of one row or mask ends there.


def _boundaries(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], radius: int) -> NDArray[np.uint64]:
    """Mark each pixel that differs from its neighbour to the right, below, or right below; (2, rows, words)."""
    height, width = truth.shape
    words = (width + radius + 63) // 64
    packed = np.zeros((2, height + radius, 8 * words), np.uint8)
    for rows, mask in zip(packed, (prediction, truth), strict=True):
        rows[:height, : (width + 7) // 8] = np.packbits(mask, axis=1, bitorder="little")
    masks = packed.view("<u8")
    right = masks >> _WORD[1]
    right[:, :, :-1] |= masks[:, :, 1:] << _WORD[63]
    # The last column has no neighbour to the right, the last row none below.
    boundary = masks ^ right
    boundary[:, : height - 1] |= masks[:, : height - 1] ^ right[:, 1:height]
    boundary &= _columns(width - 1, words)
    boundary[:, : height - 1] |= masks[:, : height - 1] ^ masks[:, 1:height]
    boundary[:, height:] = 0
    return boundary


def _dilated(boundaries: NDArray[np.uint64], radius: int) -> NDArray[np.uint64]:
    """Spread each pixel over the disk around it: rows of growing width, each put as far up and down as it belongs."""
    words = boundaries.shape[-1]
    row = boundaries.reshape(-1)
    disk = np.zeros_like(row)
    for shift, distances in _disk(radius):
        if shift:
            wider = row << _WORD[shift]
            wider[1:] |= row[:-1] >> _WORD[64 - shift]
            wider |= row >> _WORD[shift]
            wider[:-1] |= row[1:] << _WORD[64 - shift]
            row = row | wider
        for distance in distances:
            offset = distance * words
            disk[offset:] |= row[: len(row) - offset]
            disk[: len(disk) - offset] |= row[offset:]
    return disk.reshape(boundaries.shape)


_WORD = np.arange(65, dtype=np.uint64)  # shifts must be of the type of what they shift


@lru_cache
def _disk(radius: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The disk by rows, the shortest first: by how much to widen the row before, and its distances from the centre."""
    widths: dict[int, list[int]] = {}
    for distance in range(radius + 1):
        widths.setdefault(math.isqrt(radius * radius - distance * distance), []).append(distance)
    steps: list[tuple[int, tuple[int, ...]]] = []
    reached = 0
    for width, distances in sorted(widths.items()):
        while reached < width:
            # A row that is moved by more than its half width and one would leave a gap in its middle.
            shift = min(reached + 1, width - reached, 63)
            reached += shift
            steps.append((shift, tuple(distances) if reached == width else ()))
        if width == 0:
            steps.append((0, tuple(distances)))
    return tuple(steps)


@lru_cache
def _columns(width: int, words: int) -> NDArray[np.uint64]:
    """Words whose first `width` pixels are set."""
    row = np.zeros(words * 64, np.uint8)
    row[:width] = 1
    return np.packbits(row, bitorder="little").view("<u8")


def _counted(pixels: NDArray[np.uint64]) -> tuple[int, int]:
    first, second = np.bitwise_count(pixels.reshape(2, -1)).sum(axis=1).tolist()
    return first, second
