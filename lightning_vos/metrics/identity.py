"""Whether objects keep their identity: which object each predicted mask is on, and how often that changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# J from which a mask is on an object. Half of an object, or an object and as much again, has 0.5, and a rough outline
# may cost some of it; a mask that only touches another object or spills over it stays well below.
ON_OBJECT = 0.3


class Identity(NamedTuple):
    """How well one object, or several, kept to itself."""

    switches: int  # how often the mask went over to another object than it was last on
    swapped: float  # share of the scored frames in which it is on another object; NaN of none


class IdentityScores(NamedTuple):
    """Switches are added up over objects, `swapped` is their plain mean."""

    summary: Identity
    objects: dict[tuple[int, int], Identity]  # by (sequence, object id)
    sequences: dict[int, Identity]


def objects_under(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], object_ids: Sequence[int]
) -> NDArray[np.int64]:
    """Name the object whose truth each predicted mask is on: the one of the highest J, if that is 0.3 or more.

    Of two truths that share a mask evenly the object's own counts.

    Args:
        prediction: (H, W) label map; ids that are not asked for count as background.
        truth: (H, W) label map.
        object_ids: The N objects that are tracked, all above 0.

    Returns:
        (N,) ids in the order of `object_ids`; 0 where the object is lost.

    Raises:
        ValueError: The label maps differ in size.

    Example:
        >>> objects_under(np.array([[2, 2, 0, 1]]), np.array([[1, 1, 2, 2]]), (1, 2))
        array([2, 1])
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"expected two (H, W) label maps of one size, got {prediction.shape} and {truth.shape}")
    if not object_ids:
        return np.empty(0, np.int64)
    ids, count = np.array(object_ids, np.int64), len(object_ids)
    highest = max(int(labels.max(initial=0)) for labels in (ids, prediction, truth))  # int: 255 + 1 is 0 in uint8
    slots = np.zeros(highest + 1, np.int64)
    slots[ids] = np.arange(1, count + 1)
    pairs = slots[prediction] * (count + 1) + slots[truth]
    pixels = np.bincount(pairs.ravel(), minlength=(count + 1) ** 2).reshape(count + 1, count + 1)
    shared = pixels[1:, 1:]
    union = pixels.sum(axis=1)[1:, None] + pixels.sum(axis=0)[1:] - shared
    similarity = shared / np.maximum(union, 1)
    best = similarity.max(axis=1)
    under = np.where(similarity.diagonal() == best, ids, ids[similarity.argmax(axis=1)])
    return np.where(best >= ON_OBJECT, under, 0)


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


def pooled(identities: Iterable[Identity]) -> Identity:
    """Add up the switches of several objects and average their `swapped`."""
    rows = list(identities)
    swapped = float(np.mean([row.swapped for row in rows])) if rows else math.nan
    return Identity(sum(row.switches for row in rows), swapped)
