"""Checking a zip of results for YouTube-VIS: every result is whole, and of a video of the dataset."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_vos.evaluation.problems import Problem, ProblemKind
from lightning_vos.evaluation.submission.archives import read_members, stranger
from lightning_vos.evaluation.submission.expected import ExpectedResults
from lightning_vos.evaluation.submission.faults import ARCHIVE, Fault, listing, problem
from lightning_vos.evaluation.submission.servers import RESULTS, Submission
from lightning_vos.evaluation.youtube_vis import run_lengths

LARGEST_JSON = 2**30
"""Bytes; what claims to be larger is not unpacked."""


def inspect_results(file: Path, expected: ExpectedResults) -> tuple[Submission, list[Problem]]:
    """Sum up a zip of results, and find all that is wrong with it."""
    problems: list[Problem] = []
    results: list[Any] = []
    try:
        results = _parsed(_only_member(file, problems))
    except Fault as fault:
        problems.append(fault.at(ARCHIVE))
    for number, result in enumerate(results, start=1):
        try:
            problems += _result_problems(f"result {number}", result, expected)
        except Fault as fault:
            problems.append(fault.at(f"result {number}"))
    if problems:
        results = []  # not worth summing up
    per_video = Counter(result["video_id"] for result in results)
    silent = [video.name for i, video in expected.videos.items() if i not in per_video]
    notes = [f"most results of a video: {max(per_video.values(), default=0)}; the server's limit is not known"]
    if silent:
        notes.append(f"videos without a result, of {len(expected.videos)}: {listing(silent)}")
    submission = Submission(
        file=file,
        benchmark="youtube_vis",
        sequences=len(per_video),
        frames=sum(segmentation is not None for result in results for segmentation in result["segmentations"]),
        objects=len(results),
        size=file.stat().st_size,
        notes=tuple(notes),
    )
    return submission, problems


def _only_member(file: Path, problems: list[Problem]) -> bytes:
    content = None
    strange = []
    for name, read in read_members(file, tarball=False, problems=problems):
        if name == RESULTS:
            content = read(LARGEST_JSON)
        else:
            strange.append(name)
    if content is None:
        raise Fault(ProblemKind.WRONG_LAYOUT, f"{listing(strange)} in place of {RESULTS}")
    problems += [stranger(name) for name in sorted(strange)]
    return content


def _parsed(content: bytes) -> list[Any]:
    try:
        results = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Fault(ProblemKind.UNREADABLE, f"{RESULTS} is no JSON: {error}") from error
    if not isinstance(results, list) or not results:
        found = "an empty list" if results == [] else f"a {type(results).__name__}"
        raise Fault(ProblemKind.MALFORMED, f"{RESULTS} holds {found}, expected a list of results")
    return results


def _result_problems(name: str, result: Any, expected: ExpectedResults) -> Iterator[Problem]:
    """All that is wrong with one result.

    Raises:
        Fault: What makes looking further useless.
    """
    keys = ("video_id", "category_id", "score", "segmentations")
    missing = [key for key in keys if not isinstance(result, dict) or key not in result]
    if missing:
        raise Fault(ProblemKind.MALFORMED, f"without {', '.join(missing)}")
    video_id, category, score, segmentations = (result[key] for key in keys)
    video = expected.videos.get(video_id) if type(video_id) is int else None
    if video is None:
        raise Fault(ProblemKind.EXTRA_SEQUENCE, f"video_id {video_id!r} is not among the dataset's videos")
    where = f"{video.name}, {name}"
    if type(category) is not int or category not in expected.categories:
        reason = f"category_id {category!r} is not among the dataset's categories"
        yield problem(ProblemKind.UNKNOWN_CATEGORY, where, None, reason)
    if type(score) not in (int, float) or not abs(score) <= sys.float_info.max:
        yield problem(ProblemKind.MALFORMED, where, None, f"score {score!r} is no finite number")
    if not isinstance(segmentations, list):
        yield problem(ProblemKind.MALFORMED, where, None, "segmentations is no list")
        return
    if len(segmentations) != video.length:
        reason = f"found {len(segmentations)} segmentations, expected {video.length}"
        yield problem(ProblemKind.WRONG_LENGTH, where, None, reason)
    for frame, segmentation in enumerate(segmentations):
        if segmentation is not None:
            try:
                _require_mask(segmentation, video.size)
            except Fault as fault:
                yield fault.at(where, f"frame {frame}")


def _require_mask(segmentation: Any, size: list[int]) -> None:
    """Refuse what is not a compressed RLE of (H, W) pixels."""
    found, counts = (segmentation.get(key) if isinstance(segmentation, dict) else None for key in ("size", "counts"))
    if not isinstance(counts, str):
        reason = "expected null or a compressed RLE, whose counts are text (pycocotools.mask.encode)"
        raise Fault(ProblemKind.MALFORMED, reason)
    if found != size:
        raise Fault(ProblemKind.WRONG_SIZE, f"found size {found}, expected {size} (height, width)")
    runs, pixels = run_lengths(counts), size[0] * size[1]
    if runs is None or runs.sum() != pixels:
        told = "are no RLE" if runs is None else f"tell of {runs.sum()} pixels"
        raise Fault(ProblemKind.MALFORMED, f"counts that {told}, expected {pixels}")
