"""Region similarity J and boundary measure F as DAVIS 2017 defines them, to the last bit; NumPy and OpenCV only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import UserError

BOUNDARY_TOLERANCE = 0.008  # of the frame's diagonal
VOID = 255  # pixels of DAVIS 2017 truth that belong to no object


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
    height, width = truth.shape
    radius = math.ceil(BOUNDARY_TOLERANCE * math.sqrt(height * height + width * width))
    # One pixel around both masks holds every boundary pixel, and no pixel beyond can be matched with one.
    x, y, box_width, box_height = cv2.boundingRect((prediction | truth).view(np.uint8))
    crop = slice(max(y - 1, 0), y + box_height + 1), slice(max(x - 1, 0), x + box_width + 1)
    found, wanted = _boundary(prediction[crop]), _boundary(truth[crop])
    found_pixels, wanted_pixels = np.count_nonzero(found), np.count_nonzero(wanted)
    if not found_pixels or not wanted_pixels:
        return float(found_pixels == wanted_pixels)
    precision = _matched(found, wanted, radius) / found_pixels
    recall = _matched(wanted, found, radius) / wanted_pixels
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def object_scores(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], object_ids: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure J and F of several objects of one frame.

    Args:
        prediction: (H, W) label map; ids that are not asked for count as background.
        truth: (H, W) label map.
        object_ids: The N objects to score, whether or not they are in the frame.

    Returns:
        J (N,) and F (N,) in the order of `object_ids`.

    Raises:
        ValueError: The label maps differ in size.
    """
    masks = [(prediction == object_id, truth == object_id) for object_id in object_ids]
    similarity = np.array([region_similarity(*pair) for pair in masks], dtype=np.float64)
    boundary = np.array([boundary_f_measure(*pair) for pair in masks], dtype=np.float64)
    return similarity, boundary


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


def davis2017_objects(first_mask: NDArray[np.integer]) -> tuple[int, ...]:
    """Name the objects that the davis2017 protocol scores: 1 to the highest id of the first mask.

    Args:
        first_mask: (H, W) label map of the first frame; 255 is background. A gap between the ids is an object too.
    """
    return tuple(range(1, int(first_mask.max(initial=0, where=first_mask != VOID)) + 1))


def davis2017_frames(frames: Sequence[int]) -> Sequence[int]:
    """Pick the frames that the davis2017 protocol scores: all but the first and the last.

    Args:
        frames: Indices of the annotated frames in order.

    Raises:
        UserError: Fewer than three frames are annotated.
    """
    if len(frames) < 3:
        raise UserError(
            "davis2017 scores every annotated frame but the first and the last, so none is left:\n"
            f"  found {len(frames)} annotated frame(s), expected at least 3.\n"
            "Add the missing annotations, or leave this sequence out of the split."
        )
    return frames[1:-1]


def _masks(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Take 0/1 arrays as masks too, and refuse what NumPy would broadcast."""
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"expected two (H, W) masks of one size, got {prediction.shape} and {truth.shape}")
    return prediction.astype(bool, copy=False), truth.astype(bool, copy=False)


def _boundary(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Mark each pixel that differs from its neighbour to the right, below, or right below."""
    boundary = np.zeros_like(mask)
    boundary[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    boundary[:-1] |= mask[:-1] != mask[1:]
    boundary[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return boundary.view(np.uint8)


def _matched(boundary: NDArray[np.uint8], other: NDArray[np.uint8], radius: int) -> int:
    """Count the pixels of a boundary that have one of the other within the radius."""
    return cv2.countNonZero(cv2.bitwise_and(boundary, cv2.dilate(other, _disk(radius))))


@lru_cache
def _disk(radius: int) -> NDArray[np.uint8]:
    squares = np.arange(-radius, radius + 1) ** 2
    return (squares[:, None] + squares <= radius * radius).astype(np.uint8)
