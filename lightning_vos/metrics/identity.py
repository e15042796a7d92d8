"""Whether objects keep their identity: which object each predicted mask is on, and how often that changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_vos.metrics.functional import ObjectScores

# J from which a mask is on an object. Half of an object, or an object and as much again, has 0.5, and a rough outline
# may cost some of it; a mask that only touches another object or spills over it stays well below.
ON_OBJECT = 0.3


class Identity(NamedTuple):
    """How well one object, or several, kept to itself."""

    switches: int  # how often the mask went over to another object than it was last on
    swapped: float  # share of the scored frames in which it is on another object; NaN of none


def objects_under(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], object_ids: Sequence[int], scores: ObjectScores
) -> NDArray[np.int64]:
    """Name the object whose truth each predicted mask is on: the one of the highest J, if that is 0.3 or more.

    Of two truths that share a mask evenly the object's own counts.

    Args:
        prediction: (H, W) label map; ids that are not asked for count as background.
        truth: (H, W) label map.
        object_ids: The N objects that are tracked, all above 0.
        scores: What `object_scores` says of them.

    Returns:
        (N,) ids in the order of `object_ids`; 0 where the object is lost.

    Example:
        >>> from lightning_vos.metrics.functional import object_scores
        >>> prediction, truth = np.array([[2, 2, 0, 1]]), np.array([[1, 1, 2, 2]])
        >>> objects_under(prediction, truth, (1, 2), object_scores(prediction, truth, (1, 2)))
        array([2, 1])
    """
    ids = np.array(object_ids, np.int64)
    shared = np.diag(scores.shared)
    if len(ids) > 1:
        # Few pixels lie on another object; of those on their own all is known.
        crossed = np.flatnonzero((prediction != truth) & (prediction > 0) & (truth > 0))
        if len(crossed):
            places = np.unravel_index(crossed, truth.shape)
            shared = shared + _pairs(prediction[places], truth[places], ids)
    union = scores.predicted[:, None] + scores.true - shared
    similarity = shared / np.maximum(union, 1)
    best = similarity.max(axis=1, initial=0)
    under = np.where(similarity.diagonal() == best, ids, ids[similarity.argmax(axis=1)] if len(ids) else ids)
    return np.where(best >= ON_OBJECT, under, 0)


def _pairs(predicted: NDArray[np.integer], true: NDArray[np.integer], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of some pixels each mask (row) shares with each truth (column)."""
    count = len(ids)
    highest = max(int(labels.max(initial=0)) for labels in (ids, predicted, true))  # int: 255 + 1 is 0 in uint8
    slots = np.full(highest + 1, count, np.int64)
    slots[ids] = np.arange(count)
    pixels = np.bincount(slots[predicted] * (count + 1) + slots[true], minlength=(count + 1) ** 2)
    return pixels.reshape(count + 1, count + 1)[:count, :count]


def identity(object_id: int, under: NDArray[np.int64]) -> Identity:
    """Count how often an object went over to another one; it begins on itself, for its first mask is given.

    Frames in which it is lost change nothing: an object that is lost and then found on another one has switched.

    Args:
        object_id: The object.
        under: (T,) what `objects_under` says of it in one scored frame after the other.

    Example:
        >>> identity(1, np.array([1, 0, 2, 2]))
        Identity(switches=1, swapped=0.5)
    """
    path = np.concatenate([[object_id], under[under != 0]])
    elsewhere = (under != 0) & (under != object_id)
    return Identity(int(np.count_nonzero(np.diff(path))), float(elsewhere.mean()) if len(under) else math.nan)
