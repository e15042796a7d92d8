"""Submissions: results packed as the server of a benchmark takes them, and packed files checked before an upload."""

from lightning_vos.evaluation.submission.checking import check
from lightning_vos.evaluation.submission.packing import pack
from lightning_vos.evaluation.submission.servers import Benchmark, Submission, SubmissionError

__all__ = ["Benchmark", "Submission", "SubmissionError", "check", "pack"]
