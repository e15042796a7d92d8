"""What is wrong with a submission, in words; nothing is forgiven here."""

from __future__ import annotations

from collections.abc import Collection

from lightning_vos.evaluation.problems import Problem, ProblemKind

ARCHIVE = "the archive"
"""What stands for the sequence in a problem of the packed file as a whole."""


class Fault(Exception):  # noqa: N818 - a reason to report, never seen outside
    """Why something cannot be taken."""

    def __init__(self, kind: ProblemKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason

    def at(self, sequence: str, frame: str | None = None) -> Problem:
        """The problem that it is in this place."""
        return problem(self.kind, sequence, frame, self.reason)


def problem(kind: ProblemKind, sequence: str, frame: str | None, reason: str) -> Problem:
    """A problem of a submission."""
    return Problem(kind, sequence, frame, reason, "mend it and pack anew")


def listing(names: Collection[str]) -> str:
    """The first few of some names, for messages."""
    if not names:
        return "no file"
    return ", ".join(sorted(names)[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
