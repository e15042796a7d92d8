"""Checking a packed file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.problems import Problem
from lightning_vos.evaluation.submission.expected import expected_results, expected_sequences
from lightning_vos.evaluation.submission.masks import Progress, inspect_masks
from lightning_vos.evaluation.submission.results import inspect_results
from lightning_vos.evaluation.submission.servers import Benchmark, Submission, SubmissionError, server_of


def check(
    file: Path,
    dataset: Path,
    *,
    benchmark: Benchmark,
    split: str | None = None,
    progress: Progress | None = None,
) -> Submission:
    """Check a packed file as far as that is possible without the server; nothing of it is unpacked to disk.

    Args:
        file: The zip or, for `voc`, the tarball.
        dataset: As `pack` takes it.
        benchmark: Whose server it is for.
        split: As `pack` takes it.
        progress: Told how far checking is.

    Raises:
        SubmissionError: The server would refuse the file; all that is wrong is named.
        DatasetNotFoundError: The dataset lacks what says what is expected.
        ConfigError: A word of the call is wrong.
    """
    server_of(benchmark)
    if not file.is_file():
        raise ConfigError(
            f"No file to check: {file}\n"
            f"  found {'a folder' if file.is_dir() else 'nothing'}, expected a packed file.\n"
            "Pack results with `lightning_vos submission pack`."
        )
    if benchmark == "youtube_vis":
        submission, problems = inspect_results(file, expected_results(dataset, split))
    else:
        submission, problems = inspect_masks(file, benchmark, expected_sequences(dataset, benchmark, split), progress)
    refuse_problems(f"{file} is not what the server takes", problems)
    return submission


def refuse_problems(what: str, problems: Sequence[Problem]) -> None:
    """Raise a SubmissionError that tells all problems, if there are any."""
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise SubmissionError(f"{what}: {count}", problems, "Mend the results and pack them again.")
