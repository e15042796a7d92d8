"""`lightning_vos experiment sweep`: a sweep file of Weights & Biases, run here, without an account."""

from __future__ import annotations

import argparse
import csv
import difflib
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from lightning_vos.errors import ConfigError, UserError
from lightning_vos.experiments.sweeps import Record, Sweep, Trial, Value, read_sweep

_FAILURES = 3  # of the first trials, after which no more are tried
_STOPPED = (130, -2, 143, -15)  # how a command ends by Ctrl-C or by SIGTERM


def sweep(file: Path, trials: int | None, words: Sequence[str] = (), *, is_printed: bool = False) -> None:
    """Run a sweep file's trials one after another, and print them and the best one.

    What a trial executes is what `wandb agent` would, with `words` behind it; W&B itself is offline. Trials are kept in
    `runs/sweeps/<paper>-<file>/trial-<number>/`. One that was stopped goes on from its last checkpoint, or is run
    again; one that failed stays so.

    Args:
        file: The sweep.
        trials: How many there are to be, those of earlier calls counted; None for the file's `run_cap` or a whole grid.
        words: Options for every trial.
        is_printed: Print the commands and run nothing; with bayes, the next one alone.

    Raises:
        ConfigError: The file is no sweep, has changed since trials were run, or does not say how many there are.
        UserError: The first trials all failed, or none has finished.
        KeyboardInterrupt: A trial was stopped.
    """
    stated = read_sweep(file)
    record = Record(stated, words)
    count = trials if trials is not None else stated.stated.get("run_cap")
    if count is None and stated.method != "grid":
        raise ConfigError(f"{file} chooses points without end by {stated.method}: say how many, --trials 20")
    if is_printed:
        _print_commands(stated, record, words, count)
        return
    if "early_terminate" in stated.stated:
        sys.stderr.write("early_terminate is W&B's: here every trial runs to its end\n")
    if not record.trials:
        _check(stated, words)
    for number in itertools.count(1) if count is None else range(1, count + 1):
        if not _follow(stated, record, number, words):
            break
    _show(stated, record)


def _check(stated: Sweep, words: Sequence[str]) -> None:
    """Refuse what `lightning_vos` would, before every trial fails by it."""
    point = stated.point(1, [])
    if point is None:
        return
    with TemporaryDirectory() as folder:
        file = Path(folder, "args.json")
        file.write_text(json.dumps(point), encoding="utf-8")
        _, program, *command = [*stated.command(point, file), *words]
        if program == "lightning_vos" and command[0] == "fit":
            from lightning_vos.commands.rehearsal import Rehearsal

            Rehearsal().build(command)


def _follow(stated: Sweep, record: Record, number: int, words: Sequence[str]) -> bool:
    """Run a trial unless it has ended before; whether there is any reason to try another one after it."""
    trial = record.trials.get(number) or _next(stated, record, number, words)
    if trial is None:
        return False
    if trial.state == "running":
        trial = _run(stated, record, trial)
    if number == _FAILURES and all(one.state == "failed" for one in record.trials.values()):
        raise UserError(
            f"the first {number} trials failed, the last one: {trial.reason}\n"
            f"  it was: {shlex.join(trial.words)[:500]}\n"
            f"  mend what is wrong, and move {record.folder} away to begin again"
        )
    return not (trial.state == "finished" and stated.is_reached_by(trial.history[-1]))


def _next(stated: Sweep, record: Record, number: int, words: Sequence[str]) -> Trial | None:
    point = stated.point(number, list(record.trials.values()))
    if point is None:
        return None
    return Trial(number, point, [*stated.command(point, record.place(number) / "args.json"), *words])


def _print_commands(stated: Sweep, record: Record, words: Sequence[str], count: int | None) -> None:
    for number in itertools.count(1) if count is None else range(1, count + 1):
        is_new = number not in record.trials
        trial = record.trials.get(number) or _next(stated, record, number, words)
        if trial is None:
            return
        variables = [f"{name}={shlex.quote(value)}" for name, value in _variables(record.place(number)).items()]
        sys.stdout.write(f"{' '.join(variables)} {shlex.join(trial.words)}\n")
        if is_new and stated.method == "bayes":
            sys.stderr.write("what bayes tries after this depends on what comes of it\n")
            return


def _variables(place: Path) -> dict[str, str]:
    return {"WANDB_MODE": os.environ.get("WANDB_MODE", "offline"), "LIGHTNING_VOS_RUNS": str(place)}


def _run(stated: Sweep, record: Record, trial: Trial) -> Trial:
    """Run a trial to its end and keep what came of it."""
    place = record.place(trial.number)
    is_resumed = any(place.glob("*/*/checkpoints/last.ckpt"))
    record.write(trial)
    (place / "args.json").write_text(json.dumps(trial.point), encoding="utf-8")
    note = ", from its last checkpoint" if is_resumed else ""
    varied = _varied(stated)
    point = ", ".join(f"{short} {_cell(trial.point[name])}" for short, name in zip(_short(varied), varied, strict=True))
    Console().print(f"trial {trial.number}{note}: {point}", highlight=False, soft_wrap=True)
    started = time.monotonic()
    status = _finish([*trial.words, *(["--ckpt_path=last"] if is_resumed else [])], place)
    history = _history(place, stated.metric)
    if status != 0:
        trial = replace(trial, state="failed", history=history, reason=f"it ended with status {status}")
    elif not history:
        trial = replace(trial, state="failed", reason=f"no {stated.metric} in a metrics.csv of {place}")
    elif not math.isfinite(history[-1]):
        trial = replace(trial, state="failed", reason=f"{stated.metric} is {history[-1]}")
    else:
        seconds = None if is_resumed else round(time.monotonic() - started, 1)
        trial = replace(trial, state="finished", history=history, seconds=seconds)
    record.write(trial)
    if trial.state == "failed":
        sys.stderr.write(f"trial {trial.number} failed: {trial.reason}\n")
    return trial


def _finish(words: Sequence[str], place: Path) -> int:
    """The status that a command ends with; on Ctrl-C it is given the time to write its last checkpoint."""
    stop = KeyboardInterrupt("stopped; the same `experiment sweep` goes on from here")
    # the commands of this installation, whether or not it is activated
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    try:
        process = subprocess.Popen(words, env=os.environ | _variables(place) | {"PATH": path})
    except OSError as error:
        raise ConfigError(
            f"{words[0]} cannot be executed: {error.strerror}\n  it begins {shlex.join(words)[:300]}"
        ) from error
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise stop from None
    if status in _STOPPED:
        raise stop
    return status


def _history(place: Path, metric: str) -> list[float]:
    """The values of a metric in the newest table of a trial, in the order in which they were logged."""
    tables = sorted(place.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
    if not tables:
        return []
    with tables[-1].open(newline="", encoding="utf-8") as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


def _show(stated: Sweep, record: Record) -> None:
    varied = _varied(stated)
    titles = ["trial", *_short(varied), f"{stated.metric}, last", "state"]
    table = Table(*(Column(title, overflow="fold") for title in titles), title=stated.file.stem, box=SIMPLE)
    best: Trial | None = None
    for _, trial in sorted(record.trials.items()):
        is_finished = trial.state == "finished"
        if is_finished and (best is None or stated.is_better(trial.history[-1], best.history[-1])):
            best = trial
        value = f"{trial.history[-1]:.4g}" if is_finished else "-"
        table.add_row(str(trial.number), *(_cell(trial.point[name]) for name in varied), value, trial.state)
    console = Console()
    console.print(table)
    if best is None:
        raise UserError("no trial has finished: see above for why")
    console.print(f"The best is trial {best.number}, in {record.place(best.number)}:", highlight=False, soft_wrap=True)
    sys.stdout.write(f"{shlex.join(best.words)}\n")


def _short(names: Sequence[str]) -> list[str]:
    """The last words of dotted names, as many as tell them apart, without `init_args`."""
    parts = [[part for part in name.split(".") if part != "init_args"] for name in names]
    for count in range(1, max(map(len, parts), default=0) + 1):
        short = [".".join(one[-count:]) for one in parts]
        if len(set(short)) == len(names):
            return short
    return list(names)


def _varied(stated: Sweep) -> list[str]:
    return [parameter.name for parameter in stated.parameters if parameter.distribution != "constant"]


def _cell(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(args: list[str]) -> None:
    """Run `lightning_vos experiment sweep` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    parser = argparse.ArgumentParser(
        "lightning_vos experiment sweep",
        description="Run a sweep file of Weights & Biases here: its trials one after another, offline.",
        epilog="Options behind FILE that are not listed here go to every trial, such as --trainer.max_steps=10.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="such as experiments/mavos/sweeps/learning_rate.yaml")
    parser.add_argument("--trials", type=int, metavar="N", help="how many there are to be; all of a grid by default")
    parser.add_argument("--print", action="store_true", dest="is_printed", help="print the commands, run nothing")
    known, words = parser.parse_known_args(args)
    for word in words:
        if "." not in word and (near := difflib.get_close_matches(word, ["--trials", "--print"], n=1, cutoff=0.7)):
            parser.error(f"{word!r} is no option; did you mean {near[0]}?")
    if known.trials is not None and known.trials < 1:
        parser.error(f"--trials {known.trials}, expected at least 1")
    sweep(known.file, known.trials, words, is_printed=known.is_printed)
