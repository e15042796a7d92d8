"""Scores of result folders, as the official tools give them; NumPy and OpenCV only, torch is never imported.

Names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_vos.evaluation.problems import Problem, ProblemKind, ScoringError
    from lightning_vos.evaluation.scores import Scores
    from lightning_vos.evaluation.scoring import score

__all__ = ["Problem", "ProblemKind", "Scores", "ScoringError", "score"]

_HOME = {
    "Problem": "lightning_vos.evaluation.problems",
    "ProblemKind": "lightning_vos.evaluation.problems",
    "Scores": "lightning_vos.evaluation.scores",
    "ScoringError": "lightning_vos.evaluation.problems",
    "score": "lightning_vos.evaluation.scoring",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
