"""Scoring the masks of videos: a frame at a time, a process a sequence, the largest sequence first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import MaskError
from lightning_vos.evaluation.problems import Problem, ProblemKind
from lightning_vos.evaluation.protocols import VOID, appearing_plan, davis_plan, listed_plan
from lightning_vos.evaluation.scores import LeftOut
from lightning_vos.evaluation.trees import MaskSequence
from lightning_vos.evaluation.workers import in_workers
from lightning_vos.io.masks import resized
from lightning_vos.io.png import NotIndexedError, read_indices
from lightning_vos.metrics.sequence import Column, Group, Plan, SequenceScorer

_STANDS_IN = "an empty mask stands in"


@dataclass(frozen=True)
class SequenceJob:
    """One sequence to score.

    Attributes:
        name: The name of the sequence.
        truth: Its true masks.
        prediction: Its predicted masks.
        rule: Which objects are scored in which frames, see `protocols`.
        listed: Object id -> names of its frames, where the rule is `listed`; the truth has them all.
        groups: Object id -> its group, if there are groups.
        binary: Every pixel above 0 is object 1.
        void: Pixels of the truth that are 255 are background.
    """

    name: str
    truth: MaskSequence
    prediction: MaskSequence
    rule: Literal["davis", "inner", "all", "listed"]
    listed: Mapping[int, Sequence[str]]
    groups: Mapping[int, Group]
    binary: bool = False
    void: bool = False


class SequenceOutcome(NamedTuple):
    """What came of a sequence."""

    name: str
    frames: tuple[str, ...]  # names of all frames of the truth; those in `rows` are positions in it
    rows: NDArray[np.int64]  # (R, 6), see `SequenceScorer.rows`
    problems: list[Problem]
    left_out: list[LeftOut]


def score_sequences(
    jobs: Sequence[SequenceJob], workers: int, progress: Callable[[int], None]
) -> Iterator[SequenceOutcome]:
    """Score sequences, in this process or in several others, in any order.

    Args:
        jobs: The sequences.
        workers: Number of processes; 1 is this one.
        progress: Called with the number of frames that were scored since the last call.

    Raises:
        MaskError: A mask of the truth cannot be read, or has another size than the first.
    """
    cv2.setNumThreads(1)
    if workers == 1 or len(jobs) <= 1:
        for job in jobs:
            yield score_sequence(job, progress)
        return
    largest_first = sorted(jobs, key=lambda job: -len(job.truth.frames))
    for outcome in in_workers(score_sequence, largest_first, min(workers, len(jobs))):
        progress(len(outcome.frames))
        yield outcome


def score_sequence(job: SequenceJob, progress: Callable[[int], None] | None = None) -> SequenceOutcome:
    """Score one sequence, holding one frame of truth and prediction at a time."""
    names = tuple(job.truth.frames)
    first = _truth(job, names[0], None)
    plan = _plan(job, names, first)
    problems: list[Problem] = []
    if not plan.frames and job.rule != "listed":
        reason = f"{len(names)} annotated frame(s), expected at least 3: the first and the last are not scored"
        remedy = "the sequence is left out"
        problems.append(Problem(ProblemKind.TOO_FEW_FRAMES, job.name, None, reason, remedy))
        left_out = [LeftOut(job.name, (), (), reason)]
        if progress is not None:
            progress(len(names))
        return SequenceOutcome(job.name, names, SequenceScorer(plan).rows(), problems, left_out)
    scorer = SequenceScorer(plan)
    for position in plan.frames:
        truth = _truth(job, names[position], first.shape)
        prediction, problem = _prediction(job, names[position], first.shape)
        if problem is not None:
            problems.append(problem)
        scorer.add(position, prediction, truth)
        if progress is not None:
            progress(1)
    if progress is not None:
        progress(len(names) - len(plan.frames))
    problems += _strangers(job, names, scorer)
    return SequenceOutcome(job.name, names, scorer.rows(), problems, _left_out(job, names, scorer))


def _plan(job: SequenceJob, names: tuple[str, ...], first: NDArray[np.uint8]) -> Plan:
    if job.rule == "davis":
        return davis_plan(range(len(names)), first)
    if job.rule != "listed":
        return appearing_plan(range(len(names)), job.rule, job.groups)
    positions = {name: position for position, name in enumerate(names)}
    return listed_plan({k: [positions[name] for name in frames] for k, frames in job.listed.items()}, job.groups)


def _truth(job: SequenceJob, name: str, size: tuple[int, ...] | None) -> NDArray[np.uint8]:
    where = job.truth.where(name)
    labels = read_indices(job.truth.read(name), where)
    if size is not None and labels.shape != size:
        raise MaskError(
            f"Mask of another size than the first of its sequence, in the ground truth: {where}\n"
            f"  found {labels.shape[1]}x{labels.shape[0]}, expected {size[1]}x{size[0]} (width x height).\n"
            "The copy of the dataset is damaged: get it again, or leave the sequence out with a --split file."
        )
    if job.binary:
        return (labels > 0).view(np.uint8)
    if job.void and labels.max(initial=0) == VOID:
        return np.where(labels == VOID, np.uint8(0), labels)
    return labels


def _prediction(job: SequenceJob, name: str, size: tuple[int, ...]) -> tuple[NDArray[np.uint8], Problem | None]:
    """The predicted label map, or what stands in for it and why."""

    def problem(kind: ProblemKind, reason: str, remedy: str = _STANDS_IN) -> Problem:
        return Problem(kind, job.name, name, reason, remedy)

    if name not in job.prediction.frames:
        return np.zeros(size, np.uint8), problem(ProblemKind.MISSING_FRAME, f"no mask of it in {job.prediction.source}")
    try:
        labels = read_indices(job.prediction.read(name), job.prediction.where(name))
    except MaskError as error:
        kind = ProblemKind.NOT_INDEXED if isinstance(error, NotIndexedError) else ProblemKind.UNREADABLE
        return np.zeros(size, np.uint8), problem(kind, str(error).splitlines()[1].strip())
    if job.binary:
        labels = (labels > 0).view(np.uint8)
    if labels.shape == size:
        return labels, None
    found = f"found {labels.shape[1]}x{labels.shape[0]}, expected {size[1]}x{size[0]} (width x height)"
    return resized(labels, (size[0], size[1])), problem(ProblemKind.WRONG_SIZE, found, "it is resized (nearest pixel)")


def _strangers(job: SequenceJob, names: Sequence[str], scorer: SequenceScorer) -> Iterator[Problem]:
    """Objects that the prediction shows, but that the protocol knows nothing of."""
    extra = scorer.extra()
    # Objects of the first or the last frame alone are known, though they are not scored.
    ends: set[int] = set()
    if extra and job.rule in ("davis", "inner"):
        ends = {int(k) for name in (names[0], names[-1]) for k in np.unique(_truth(job, name, None))}
    for object_id, frames in extra.items():
        if job.rule == "davis" and (object_id in scorer.unplanned or object_id in ends):
            kind, remedy = ProblemKind.LATE_OBJECT, "it is not scored"
            reason = f"object {object_id} is not in the first mask of the truth, which names the objects to score"
        elif object_id in scorer.unplanned or object_id in ends:
            continue
        else:
            kind, remedy = ProblemKind.EXTRA_OBJECT, "its pixels are background"
            reason = f"the prediction shows object {object_id}, of which the truth knows nothing"
        yield from (Problem(kind, job.name, names[frame], reason, remedy) for frame in frames)


def _left_out(job: SequenceJob, names: Sequence[str], scorer: SequenceScorer) -> list[LeftOut]:
    plan, rows = scorer.plan, scorer.rows()
    left_out = []

    def add(frames: Sequence[int], objects: Sequence[int], reason: str) -> None:
        if frames:
            left_out.append(LeftOut(job.name, tuple(names[frame] for frame in frames), tuple(objects), reason))

    every = range(len(names))
    if job.rule == "listed" and plan.objects is not None:
        for object_id, listed in plan.objects.items():
            add([frame for frame in every if frame not in listed], (object_id,), "given, or not listed for the object")
    else:
        add([frame for frame in every if frame not in plan.frames], (), "the first and the last frame do not count")
    for object_id, frames in scorer.unplanned.items():
        add(frames, (object_id,), "not in the first mask" if job.rule == "davis" else "not listed")
    for object_id, frames in scorer.extra().items():
        add(frames, (object_id,), "predicted, but not among the objects that are scored")
    if plan.objects is None:
        for object_id in np.unique(rows[:, Column.OBJECT]).tolist():
            since = rows[rows[:, Column.OBJECT] == object_id, Column.FRAME].min()
            before = [frame for frame in plan.frames if frame < since]
            add(before, (object_id,), "neither true nor predicted so far")
    extra = [name for name in job.prediction.frames if name not in job.truth.frames]
    if extra:
        left_out.append(LeftOut(job.name, tuple(extra), (), "predicted, but without truth"))
    return left_out
