"""`lightning_vos submission`: results packed for a benchmark's server, and packed files checked before an upload."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import Progress

from lightning_vos.evaluation.submission import Benchmark, Submission, check, pack

_SMALL = 100_000  # bytes that are not said in MB


def describe(submission: Submission) -> str:
    """Say in three to six lines what a checked file holds, what it was checked for and what nobody could check here."""
    size = f"{submission.size / 1e6:.2f} MB" if submission.size >= _SMALL else f"{submission.size / 1e3:.1f} kB"
    lines = [
        f"{submission.file} holds {submission.held} in {size}.",
        f"The server expects {submission.expects}: checked.",
        f"Not checked: {submission.unverified}.",
        *(f"Note: {note}." for note in submission.notes),
    ]
    return "\n".join(lines)


def main(args: list[str]) -> None:
    """Run `lightning_vos submission` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done, or the server would refuse the file.
    """
    words = _parser().parse_args(args)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        tasks = {name: bars.add_task(name, visible=False) for name in ("packing", "checking")}

        def progress(name: str, done: int, total: int) -> None:
            bars.update(tasks[name], completed=done, total=total, visible=True)

        if words.action == "pack":
            submission = pack(
                words.results,
                words.dataset,
                words.output,
                benchmark=words.benchmark,
                split=words.split,
                progress=progress,
            )
        else:
            submission = check(
                words.file, words.dataset, benchmark=words.benchmark, split=words.split, progress=progress
            )
    sys.stdout.write(describe(submission) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning_vos submission",
        description="Pack results for a benchmark's server, or check a packed file, before anyone uploads it.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="pack | check")
    packing = actions.add_parser("pack", help="pack and check results, or write nothing", allow_abbrev=False)
    packing.add_argument(
        "results",
        type=Path,
        metavar="RESULTS",
        help="the folder of the masks, or that of the run; for youtube_vis the JSON of the results",
    )
    checking = actions.add_parser("check", help="check a packed file", allow_abbrev=False)
    checking.add_argument("file", type=Path, metavar="FILE", help="the packed file")
    for action in (packing, checking):
        action.add_argument(
            "dataset",
            type=Path,
            metavar="DATASET",
            help="the folder of DAVIS or VOC2012, that of the split of YouTube-VOS or LVOS, the JSON of YouTube-VIS",
        )
    packing.add_argument("output", type=Path, metavar="OUTPUT", help="the file to write: .zip, .tar.gz for voc")
    for action in (packing, checking):
        action.add_argument("--benchmark", choices=get_args(Benchmark), required=True, help="whose server it is for")
        action.add_argument(
            "--split",
            metavar="NAME",
            help="the list of DAVIS (test-dev) or VOC (test); of LVOS what stands before _meta.json (the folder)",
        )
    return parser
