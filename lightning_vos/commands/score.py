"""`lightning_vos score`: results against the truth, as the benchmark's own tool scores them."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.problems import summarize_problems
from lightning_vos.evaluation.protocols import Frames
from lightning_vos.evaluation.scores import Scores, score_table
from lightning_vos.evaluation.scoring import Protocol, score

_SHOWN = 20  # problems on the terminal; the JSON and the CSV have all
_PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False}  # names may hold brackets
_MOST_STEPS = 1000  # of a sweep
_ROUNDING = 1e-6  # steps by which decimal fractions miss the last one
_OWN_COLUMNS = ("J&F", "J", "F", "switches")  # shown in the table already


def show(scores: Scores, console: Console) -> None:
    """Print the scores as tables, what they measure, what was left out and what was forgiven."""
    if scores.sequences:
        console.print(score_table("sequence", scores.sequences, ("all", scores.summary)))
    if scores.tags:
        console.print(score_table("tag", scores.tags, ("all", scores.summary)))
    if scores.categories:
        console.print(_category_table(scores.categories))
    if scores.thresholds:
        console.print(_threshold_table(scores.thresholds))
    shown = _OWN_COLUMNS if scores.sequences else ()
    numbers = [f"{name} {_number(value)}" for name, value in scores.summary.items() if name not in shown]
    console.print(", ".join(numbers), style="bold", **_PLAIN)
    best = _best(scores.thresholds)
    if best is not None:
        console.print(
            f"best of the sweep: mIoU {_number(scores.thresholds[best]['mIoU'])} at {best:g}, chosen with the truth of "
            f"the pixels; the label maps as they are: mIoU {_number(scores.summary['mIoU'])}",
            style="bold",
            **_PLAIN,
        )
    console.print(f"{scores.protocol}, in percent: {scores.variant}", **_PLAIN)
    reasons = Counter[str]()
    for item in scores.left_out:
        reasons[item.reason] += max(len(item.frames), 1) if item.sequence else 0
    for reason, count in reasons.items():
        console.print(f"Left out: {reason}{f' ({count})' if count else ''}", **_PLAIN)
    if scores.problems:
        console.print(f"Forgiven: {len(scores.problems)} times", style="yellow")
        lines = summarize_problems(scores.problems, remedies=True)
        for line in lines[:_SHOWN]:
            console.print(line, **_PLAIN)
        if len(lines) > _SHOWN:
            console.print(f"  ... and {len(lines) - _SHOWN} lines more: --json, --csv")


def _category_table(categories: Mapping[str, Mapping[str, float]]) -> Table:
    columns = list(dict.fromkeys(name for row in categories.values() for name in row))
    table = Table("class", *(f"{name} %" for name in columns))
    for category, row in categories.items():
        table.add_row(escape(category), *(_number(row.get(name, math.nan)) for name in columns))
    return table


def _threshold_table(thresholds: Mapping[float, Mapping[str, float]]) -> Table:
    best = _best(thresholds)
    table = Table("threshold", *(f"{name} %" for name in next(iter(thresholds.values()))), "")
    for threshold, row in thresholds.items():
        table.add_row(f"{threshold:g}", *map(_number, row.values()), "best" if threshold == best else "")
    return table


def _best(thresholds: Mapping[float, Mapping[str, float]]) -> float | None:
    """The first of those with the highest mIoU, if there is any."""
    scored = [threshold for threshold, row in thresholds.items() if not math.isnan(row["mIoU"])]
    return max(scored, key=lambda threshold: thresholds[threshold]["mIoU"], default=None)


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.1f}"


def main(args: list[str]) -> None:
    """Run `lightning_vos score` with the words that follow it.

    Raises:
        UserError: The truth or the results cannot be scored.
    """
    words = _parser().parse_args(args)
    if words.json is not None and words.json.is_dir():
        raise ConfigError(f"--json {words.json} is a folder; expected the name of a file to write")
    if words.csv is not None and words.csv.exists() and not words.csv.is_dir():
        raise ConfigError(f"--csv {words.csv} is a file; expected the name of a folder to write to")
    progress_console = Console(stderr=True)
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeRemainingColumn())
    with Progress(*columns, console=progress_console, disable=not progress_console.is_terminal, transient=True) as bar:
        task = bar.add_task("scoring", total=None)
        scores = score(
            words.ground_truth,
            words.prediction,
            words.protocol,
            strict=not words.lenient,
            workers=words.workers,
            split=words.split,
            frames=words.frames,
            unseen=words.unseen,
            tags=words.tags,
            classes=words.classes,
            absent=words.absent,
            sweep=None if words.sweep is None else _steps(words.sweep),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    # Names of sequences are long; a table that is cut off to 80 columns in a file would lose them.
    console = Console() if Console().is_terminal else Console(width=120)
    show(scores, console)
    if words.json is not None:
        scores.write_json(words.json)
        console.print(f"Wrote {words.json}", **_PLAIN)
    if words.csv is not None:
        scores.write_csv(words.csv)
        console.print(f"Wrote the tables in {words.csv}", **_PLAIN)


def _steps(text: str) -> tuple[float, ...]:
    """The numbers that `first:last:step` stands for, the last one included.

    Raises:
        ConfigError: It stands for none, or for too many.
    """
    try:
        first, last, step = map(float, text.split(":"))
        count = 1 + int((last - first) / step + _ROUNDING) if 0 <= first <= last < 1 and step > 0 else 0
    except (ValueError, OverflowError):
        count = 0
    if not 0 < count <= _MOST_STEPS:
        raise ConfigError(
            f"--sweep {text} is no series of thresholds\n"
            "  expected FIRST:LAST:STEP, from 0 to below 1, such as 0:0.6:0.01"
        )
    return tuple(round(first + number * step, 9) for number in range(count))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning_vos score",
        description="Score results against the truth, as the benchmark's own tool does.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "ground_truth",
        type=Path,
        metavar="GROUND_TRUTH",
        help="a folder or zip of <sequence>/<frame>.png, or a dataset's folder; youtube_vis: its JSON",
    )
    parser.add_argument(
        "prediction",
        type=Path,
        metavar="PREDICTION",
        help="the results in the same form, the folder of a run, or a packed submission",
    )
    parser.add_argument("--protocol", required=True, choices=get_args(Protocol), help="whose rules apply")
    parser.add_argument(
        "--lenient",
        action="store_true",
        help="forgive what is wrong with the results, and say so: missing frames are empty masks, and so on",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that share the sequences; by default all cores, where that is faster",
    )
    parser.add_argument(
        "--split",
        metavar="NAME|FILE",
        help="a list of the dataset (DAVIS: val), a file with a name a line, holdout_val or holdout_train",
    )
    parser.add_argument(
        "--frames", choices=get_args(Frames), help="vos_benchmark: inner or all; youtube_vos: listed, inner or all"
    )
    parser.add_argument(
        "--unseen", type=Path, metavar="FILE", help="youtube_vos, lvos: unseen categories or videos, or train/meta.json"
    )
    parser.add_argument("--tags", type=Path, metavar="FILE", help="scores by tag: tags.json, or a CSV sequence,tag")
    parser.add_argument(
        "--classes", metavar="NAME|FILE", help="semantic: voc (the default), coco, ade20k or a file of class names"
    )
    parser.add_argument(
        "--absent",
        choices=("counted", "skipped"),
        help="semantic: whether classes that only the prediction has count as 0 in the mean (counted)",
    )
    parser.add_argument(
        "--sweep",
        metavar="FIRST:LAST:STEP",
        help="semantic: thresholds of the background to try with the class maps that a run has kept (0:0.6:0.01)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, down to each frame")
    parser.add_argument("--csv", type=Path, metavar="DIR", help="write a CSV a table")
    return parser
