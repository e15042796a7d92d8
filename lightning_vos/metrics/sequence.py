"""Scoring a video frame after frame, and averaging videos: one implementation for training, testing and result folders.

NumPy and OpenCV only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from lightning_vos.metrics.functional import object_scores, statistics
from lightning_vos.metrics.identity import identity, objects_under


class Group(IntEnum):
    """Whether training showed objects of this kind; benchmarks that tell them apart average the two evenly."""

    NONE = 0
    SEEN = 1
    UNSEEN = 2


@dataclass(frozen=True)
class Plan:
    """What of a sequence is scored, known before its masks are.

    Attributes:
        frames: The scored frames, in order.
        objects: Object id -> the frames of `frames` in which it is scored; None: every object that the truth shows in
            one of `frames` is scored from the first of them on in which the truth or the prediction shows it.
        groups: Object id -> its group, if there are groups.
    """

    frames: tuple[int, ...]
    objects: Mapping[int, Set[int]] | None
    groups: Mapping[int, Group] = field(default_factory=dict)


class Column(IntEnum):
    """The columns of `SequenceScorer.rows`; J and F are the bits of a float64."""

    OBJECT = 0
    FRAME = 1
    REGION = 2
    BOUNDARY = 3
    UNDER = 4
    GROUP = 5


class SequenceScorer:
    """Scores one sequence as its frames come; holds a few numbers a frame and no mask.

    Args:
        plan: What is scored.

    Attributes:
        unplanned: Object id -> the frames in which the truth shows it although the plan does not know it.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.unplanned: dict[int, list[int]] = {}
        self._extra: dict[int, list[int]] = {}
        self._known: set[int] = set(plan.objects or ())
        self._true: set[int] = set()
        self._rows: list[NDArray[np.int64]] = []

    def add(self, frame: int, prediction: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Score one frame of the plan; they come in order.

        Args:
            frame: The frame's number.
            prediction: (H, W) uint8 label map.
            truth: (H, W) uint8 label map.

        Raises:
            ValueError: The label maps differ in size.
        """
        if self.plan.objects is None:
            self._known |= _ids_beyond(prediction, self._known) | _ids_beyond(truth, self._known)
            object_ids = sorted(self._known)
        else:
            for labels, strangers in ((prediction, self._extra), (truth, self.unplanned)):
                for object_id in _ids_beyond(labels, self._known):
                    strangers.setdefault(object_id, []).append(frame)
            object_ids = [object_id for object_id, frames in self.plan.objects.items() if frame in frames]
        scores = object_scores(prediction, truth, object_ids)
        self._true.update(object_id for object_id, pixels in zip(object_ids, scores.true, strict=True) if pixels)
        rows = np.empty((len(object_ids), len(Column)), np.int64)
        rows[:, Column.OBJECT], rows[:, Column.FRAME] = object_ids, frame
        # Bits of a float64 in an int64: MPS, where a rank may gather them, has no float64, and a float32 would round.
        rows[:, Column.REGION], rows[:, Column.BOUNDARY] = scores.region.view(np.int64), scores.boundary.view(np.int64)
        rows[:, Column.UNDER] = objects_under(prediction, truth, object_ids, scores)
        rows[:, Column.GROUP] = [self.plan.groups.get(object_id, Group.NONE) for object_id in object_ids]
        self._rows.append(rows)

    def rows(self) -> NDArray[np.int64]:
        """The (R, 6) scores so far: a row for each object in each frame that counts, in the columns of `Column`."""
        rows = self._all_rows()
        return rows if self.plan.objects is not None else rows[np.isin(rows[:, Column.OBJECT], list(self._true))]

    def extra(self) -> dict[int, list[int]]:
        """Object id -> the frames in which the prediction shows it, of objects that are not known or never there."""
        if self.plan.objects is not None:
            return self._extra
        # Nothing is true of such an object: J is 1 where it is not predicted either, else 0.
        rows = self._all_rows()
        rows = rows[rows[:, Column.REGION] == 0]
        return {
            object_id: rows[rows[:, Column.OBJECT] == object_id, Column.FRAME].tolist()
            for object_id in sorted(self._known - self._true)
        }

    def _all_rows(self) -> NDArray[np.int64]:
        return np.concatenate([np.empty((0, len(Column)), np.int64), *self._rows])


class SequenceScores(NamedTuple):
    """Percent, but `switches`, which is a count."""

    summary: dict[str, float]  # of all sequences together; NaN if nothing was scored
    objects: dict[tuple[Any, int], dict[str, float]]  # by (sequence, object id)
    sequences: dict[Any, dict[str, float]]  # plain means over the objects of each


def summarize(tables: Mapping[Any, NDArray[np.int64]]) -> SequenceScores:
    """Average the rows of sequences over frames, then over objects, and count identity switches.

    Every object counts alike, whichever sequence it is of. Where objects have groups, the summary is the mean of that
    of the seen and that of the unseen ones (LVOS, YouTube-VOS); NaN if a group is empty.

    Args:
        tables: Sequence -> the (R, 6) rows of its scorer.
    """
    objects: dict[tuple[Any, int], dict[str, float]] = {}
    groups: dict[tuple[Any, int], Group] = {}
    for sequence, table in tables.items():
        for object_id in np.unique(table[:, Column.OBJECT]).tolist():
            rows = table[table[:, Column.OBJECT] == object_id]
            objects[sequence, object_id] = _object(object_id, rows)
            groups[sequence, object_id] = Group(int(rows[0, Column.GROUP]))
    sequences = {
        sequence: mean_of_objects([row for (name, _), row in objects.items() if name == sequence])
        for sequence in dict.fromkeys(name for name, _ in objects)
    }
    summary = mean_of_objects(list(objects.values()))
    if any(groups.values()):
        seen, unseen = (
            mean_of_objects([row for key, row in objects.items() if groups[key] == group])
            for group in (Group.SEEN, Group.UNSEEN)
        )
        summary |= {name: (seen[name] + unseen[name]) / 2 for name in summary if name != "switches"}
        for name in ("J", "F", "V"):
            summary |= {f"{name}_seen": seen[name], f"{name}_unseen": unseen[name]}
    return SequenceScores(summary, objects, sequences)


def values(rows: NDArray[np.int64], column: Column) -> NDArray[np.float64]:
    """J or F of (R, 6) rows, as fractions."""
    return np.ascontiguousarray(rows[:, column]).view(np.float64)


def mean_of_objects(objects: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Plain means over objects; switches are added up. NaN of none."""
    rows = list(objects)
    names = ("J", "F", "J_recall", "J_decay", "F_recall", "F_decay", "V", "swapped")
    means = {name: float(np.mean([row[name] for row in rows])) if rows else math.nan for name in names}
    return {"J&F": (means["J"] + means["F"]) / 2, **means, "switches": sum(row["switches"] for row in rows)}


def _object(object_id: int, rows: NDArray[np.int64]) -> dict[str, float]:
    region, boundary = values(rows, Column.REGION), values(rows, Column.BOUNDARY)
    region_statistics, boundary_statistics = statistics(region), statistics(boundary)
    both = (region + boundary) / 2
    # The rounding stands in LVOS's own tool, before the root.
    variation = math.sqrt(round(float(np.mean((both.mean() - both) ** 2)), 4))
    kept = identity(object_id, rows[:, Column.UNDER])
    fractions = {
        "J&F": (region_statistics.mean + boundary_statistics.mean) / 2,
        "J": region_statistics.mean,
        "F": boundary_statistics.mean,
        "J_recall": region_statistics.recall,
        "J_decay": region_statistics.decay,
        "F_recall": boundary_statistics.recall,
        "F_decay": boundary_statistics.decay,
        "V": variation,
        "swapped": kept.swapped,
    }
    return {**{name: 100 * value for name, value in fractions.items()}, "switches": kept.switches}


def _ids_beyond(labels: NDArray[np.uint8], known: Set[int]) -> set[int]:
    """The ids of a label map that are not known."""
    if int(labels.max(initial=0)) in known and known >= set(range(1, max(known))):
        return set()  # the common case, at little cost
    strangers = np.ones(256, np.uint8)
    strangers[[0, *known]] = 0
    places = np.flatnonzero(cv2.LUT(labels, strangers))
    return set(np.unique(labels[np.unravel_index(places, labels.shape)]).tolist())
