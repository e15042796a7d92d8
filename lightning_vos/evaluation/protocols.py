"""What each benchmark of semi-supervised segmentation scores of a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_vos.metrics.sequence import Group, Plan

VOID = 255  # pixels of DAVIS 2017 truth that belong to no object

Frames = Literal["listed", "inner", "all"]
"""Which annotated frames count: those listed for an object but its first, all but the first and the last, or all."""


def davis_plan(frames: Sequence[int], first_mask: NDArray[np.integer]) -> Plan:
    """Score objects 1 to the highest id of the first mask in all annotated frames but the first and the last (DAVIS).

    A gap between the ids is an object, too. Of fewer than three frames none is scored.

    Args:
        frames: The annotated frames, in order.
        first_mask: (H, W) label map of the first of them; 255 is background.
    """
    highest = int(first_mask.max(initial=0, where=first_mask != VOID))
    inner = tuple(frames[1:-1])
    return Plan(inner, dict.fromkeys(range(1, highest + 1), frozenset(inner)))


def appearing_plan(
    frames: Sequence[int], which: Literal["inner", "all"] = "inner", groups: Mapping[int, Group] | None = None
) -> Plan:
    """Score every object of the truth from the frame on in which the truth or the prediction shows it (vos-benchmark).

    Args:
        frames: The annotated frames, in order.
        which: Whether the first and the last of them count. If not, an object of the first frame alone is not scored.
        groups: Object id -> its group, if there are groups.
    """
    return Plan(tuple(frames if which == "all" else frames[1:-1]), None, groups or {})


def listed_plan(objects: Mapping[int, Sequence[int]], groups: Mapping[int, Group] | None = None) -> Plan:
    """Score each object in the frames that are listed for it.

    Args:
        objects: Object id -> its frames.
        groups: Object id -> its group, if there are groups.
    """
    scored = {object_id: frozenset(frames) for object_id, frames in objects.items()}
    return Plan(tuple(sorted(frozenset().union(*scored.values()))), scored, groups or {})
