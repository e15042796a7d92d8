"""What can be wrong with a folder, a zip or a file of results: named, collected, told all at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from lightning_vos.errors import UserError

_SHOWN = 40  # lines of an error; the exception holds all problems
_NAMES = 6  # frames named in a line


class ProblemKind(StrEnum):
    """What is wrong; the comment says what leniency makes of it, which is counted and said in the report."""

    MISSING_SEQUENCE = "missing sequence"  # the sequence is left out
    MISSING_FRAME = "missing frame"  # an empty mask stands in
    MISSING_IMAGE = "missing image"  # an empty mask stands in
    WRONG_SIZE = "wrong size"  # the mask is resized, taking the nearest pixel; an empty one stands in for an RLE
    NOT_INDEXED = "not an indexed PNG"  # an empty mask stands in
    UNREADABLE = "unreadable file"  # an empty mask stands in
    EXTRA_OBJECT = "extra object"  # its pixels are background
    UNKNOWN_CLASS = "value of no class"  # its pixels are missed by their true class and count for no other
    LATE_OBJECT = "object that appears late"  # it is not scored
    TOO_FEW_FRAMES = "too few frames"  # the sequence is left out
    # Of submissions, in which nothing is forgiven; what `youtube_vis` forgives of results says how:
    EXTRA_SEQUENCE = "extra sequence"  # its results are left out
    EXTRA_FRAME = "extra frame"
    WRONG_LAYOUT = "wrong layout"
    WRONG_PALETTE = "wrong palette"
    WRONG_LENGTH = "wrong number of frames"  # the frames that result and video both have are compared
    UNKNOWN_CATEGORY = "unknown category"  # the result is left out
    MALFORMED = "malformed result"  # an empty mask stands in for one frame's; otherwise the result is left out


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what was handed in.

    Attributes:
        kind: What is wrong.
        sequence: The sequence, video or image it is wrong with.
        frame: The name of the frame, where it is one frame's.
        reason: What was found and what was expected, without the names of sequence and frame.
        remedy: What leniency did or would do about it.
    """

    kind: ProblemKind
    sequence: str
    frame: str | None
    reason: str
    remedy: str


class ScoringError(UserError):
    """Results that cannot be scored as they are; `problems` holds everything that was found, the text sums it up."""

    def __init__(self, what: str, problems: Sequence[Problem], advice: str) -> None:
        self.problems = tuple(problems)
        lines = summarize_problems(problems)
        more = [f"  ... and {len(lines) - _SHOWN} lines more"] if len(lines) > _SHOWN else []
        super().__init__("\n".join([what, *lines[:_SHOWN], *more, advice]))


def summarize_problems(problems: Iterable[Problem], *, remedies: bool = False) -> list[str]:
    """One line for all frames of a sequence that have the same thing wrong with them.

    Args:
        problems: The problems.
        remedies: Whether lines say what leniency does about them.
    """
    groups: dict[tuple[str, ProblemKind, str], list[str]] = {}
    for problem in problems:
        reason = f"{problem.reason}; {problem.remedy}" if remedies else problem.reason
        frames = groups.setdefault((problem.sequence, problem.kind, reason), [])
        if problem.frame is not None:
            frames.append(problem.frame)
    lines = []
    for (sequence, kind, reason), frames in groups.items():
        named = ", ".join(frames[:_NAMES]) + (f", ... ({len(frames)} frames)" if len(frames) > _NAMES else "")
        place = " ".join(part for part in (sequence, named) if part)
        lines.append("  " + ": ".join(part for part in (place, kind, reason) if part))
    return lines
