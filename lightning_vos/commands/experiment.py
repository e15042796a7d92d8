"""`lightning_vos experiment`: the rows of a comparison, each trained and tested as a person would by hand."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import platform
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from lightning_vos.errors import CheckpointError, ConfigError, UserError
from lightning_vos.io.writing import written_beside

_RUNS = Path("runs/experiments")
# YAML's own types: `Any` would let jsonargparse read a text such as "0123" as a number
Value = str | bool | int | float | list[Any] | dict[str, Any] | None
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Row:
    """What a row has of its own.

    Attributes:
        configs: Read after those of the comparison.
        overrides: Options: key -> value; they win over those of the comparison.
        start: The row whose last weights, of the same seed, its training starts from.
        seeds: Instead of those of the comparison.
    """

    configs: list[str] = field(default_factory=list)
    overrides: dict[str, Value] = field(default_factory=dict)
    start: str | None = None
    seeds: list[int] | None = None


@dataclass(frozen=True)
class Comparison:
    """What is compared, as a YAML file states it.

    Attributes:
        configs: What every row builds on.
        seeds: Each row that has none of its own is trained once for each.
        measures: Columns of `metrics.csv` that count.
        rows: Name -> what it has of its own.
        overrides: Options that every row has: key -> value.
    """

    configs: list[str]
    seeds: list[int]
    measures: list[str]
    rows: dict[str, Row]
    overrides: dict[str, Value] = field(default_factory=dict)

    def seeds_of(self, name: str) -> list[int]:
        """The seeds of a row."""
        own = self.rows[name].seeds
        return self.seeds if own is None else own

    def lineage(self, name: str) -> list[str]:
        """A row, and before it those that its weights come from, the first of them first.

        Raises:
            ConfigError: if a row starts from one that is not there, from itself by way of others, or from one that is
                not trained for all its seeds.
        """
        names = [name]
        while (start := self.rows[names[0]].start) is not None:
            if start not in self.rows:
                raise ConfigError(f"Row {names[0]} starts from {start}, but the rows are {', '.join(self.rows)}.")
            if start in names:
                circle = " from ".join([*reversed(names[: names.index(start) + 1]), start])
                raise ConfigError(f"Rows start from each other: {circle}.\nOne of them must have no `start`.")
            if missing := set(self.seeds_of(names[0])) - set(self.seeds_of(start)):
                raise ConfigError(
                    f"Row {names[0]} has seeds {sorted(missing)}, but {start}, which it starts from, has not.\n"
                    f"Add them to the `seeds` of {start}, or leave them out of those of {names[0]}."
                )
            names.insert(0, start)
        return names


@dataclass(frozen=True)
class _Run:
    """One row with one seed: the options of its training and its test, the folder of both, and its result."""

    row: str
    seed: int
    words: list[str]
    folder: Path
    result: Path
    start: _Run | None

    @property
    def label(self) -> str:
        return f"{self.row}, seed {self.seed}"

    @property
    def recorded(self) -> list[str]:
        """What a result belongs to: its own words, and all that its first weights come from."""
        if self.start is None:
            return self.words
        return [*self.words, *(f"{self.start.row}: {word}" for word in self.start.recorded)]

    def commands(self) -> tuple[list[str], list[str]]:
        words = [*self.words, f"--trainer.logger.init_args.save_dir={self.folder}"]
        weights = [] if self.start is None else [f"--model.weights={self.start.checkpoint()}"]
        return ["fit", *words, *weights], ["test", *words, "--ckpt_path=last"]

    def checkpoints(self) -> list[Path]:
        """The last ones of all trainings so far, the newest last."""
        from lightning_vos.callbacks.run_files import CHECKPOINTS, LAST

        return sorted(self.folder.glob(f"*/*/{CHECKPOINTS}/{LAST}"), key=lambda path: path.stat().st_mtime)

    def checkpoint(self) -> Path:
        """The last one of the training that its result is of; without one, of the training to come."""
        from lightning_vos.callbacks.run_files import CHECKPOINTS, LAST
        from lightning_vos.config_files import expand_config_options

        checkpoints = self.checkpoints()
        if checkpoints and self.measures(self.result) is not None:
            return checkpoints[-1]
        runs = self.folder / expand_config_options(self.words).recipe
        versions = [path.name.removeprefix("version_") for path in runs.glob("version_*")]
        number = max((int(version) + 1 for version in versions if version.isdecimal()), default=0)
        return runs / f"version_{number}" / CHECKPOINTS / LAST

    def measures(self, path: Path) -> dict[str, float] | None:
        """What a file holds that was written for the run; None if there is no file.

        Raises:
            ConfigError: if the file cannot be read, or was written for other words.
        """
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            words = content.get("words", self.recorded)  # the oldest results have none
            measures = {measure: float(value) for measure, value in content["measures"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is no result: {_one_line(error)}.\nRemove it and run the row again.") from error
        if words != self.recorded:
            before, now = (
                shlex.join(word for word in one if word not in other)[:300] or "the same in another order"
                for one, other in ((words, self.recorded), (self.recorded, words))
            )
            raise ConfigError(
                f"{path} belongs to other settings than the comparison has today.\n  then: {before}\n  today: {now}\n"
                "Remove it to run the row again, or restore the comparison."
            )
        return measures


def run(file: Path, rows: list[str], *, is_printed: bool = False) -> None:
    """Train and test rows for every seed; what has a result already is left alone.

    Results are written to FILE's folder, under its name, one JSON for each row and seed, as they arrive. Every row is
    built once before the first is trained. A row that was stopped goes on from its last checkpoint. Seed by seed, a row
    is run after the one that it starts from.

    Args:
        file: The comparison.
        rows: Its rows to run, with those that they start from; all of them if there are none.
        is_printed: Print the commands and run nothing.

    Raises:
        ConfigError: if the file is no comparison, has no such row, or has changed since a row was run.
        CheckpointError: if a row starts from one whose checkpoint is gone.
        UserError: if a row cannot be built, or a command fails.
    """
    comparison = _read(file)
    if unknown := set(rows) - comparison.rows.keys():
        raise ConfigError(f"{file} has no rows {sorted(unknown)}.\nIts rows are {', '.join(comparison.rows)}.")
    seeds = dict.fromkeys(
        [*comparison.seeds, *(seed for name in comparison.rows for seed in comparison.seeds_of(name))]
    )
    pairs = dict.fromkeys(
        (member, seed)
        for seed in seeds
        for name in rows or comparison.rows
        if seed in comparison.seeds_of(name)
        for member in comparison.lineage(name)
    )
    chosen = [_prepare(file, comparison, name, seed) for name, seed in pairs]
    if is_printed:
        lines = [shlex.join(["lightning_vos", *command]) for each in chosen for command in each.commands()]
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        return
    left = [each for each in chosen if each.measures(each.result) is None]
    for each in left:
        if each.start is not None and each.start not in left and not each.start.checkpoints():
            start = each.start
            raise CheckpointError(
                f"{each.label} starts from {start.row}, which has a result but no checkpoint in {start.folder}.\n"
                f"Put that folder back, or remove {start.result} and run again: {start.row} is trained anew first."
            )
    _check(left)
    for each in left:
        measures = _run(each)
        if missing := [measure for measure in comparison.measures if measure not in measures]:
            sys.stderr.write(
                f"{each.result} lacks {', '.join(missing)}: the test gave {', '.join(measures) or 'nothing'}.\n"
                f"Mend `measures` in {file}; no row need be run again.\n"
            )
    show(file)


def show(file: Path) -> None:
    """Print the rows with their results: the mean over seeds, and the lowest and highest of several.

    Args:
        file: The comparison.

    Raises:
        ConfigError: if the file is no comparison or has changed since a row was run, or a result cannot be read.
    """
    comparison = _read(file)
    titles = ["row", "seeds", *(measure.removeprefix("test/") for measure in comparison.measures)]
    table = Table(*(Column(title, overflow="fold") for title in titles), title=file.stem, box=SIMPLE, pad_edge=False)
    for name in comparison.rows:
        runs = [_prepare(file, comparison, name, seed) for seed in comparison.seeds_of(name)]
        found = [measures for each in runs if (measures := each.measures(each.result)) is not None]
        cells = [_spread([each[measure] for each in found if measure in each]) for measure in comparison.measures]
        table.add_row(name, str(len(found)), *cells)
    Console().print(table)


def _read(file: Path) -> Comparison:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} is no comparison: {_one_line(error)}.\nExpected a YAML file in UTF-8.") from error
    if isinstance(content, dict) and isinstance(content.get("rows"), dict):
        rows = {str(name): _parse(Row, row or {}, f"row {name} of {file}") for name, row in content["rows"].items()}
        content = content | {"rows": rows}
    comparison = _parse(Comparison, content, str(file))
    for name in comparison.rows:
        try:
            comparison.lineage(name)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
    return comparison


def _parse(kind: type[Kind], content: Any, where: str) -> Kind:
    """A part of the file with its types checked; an empty key counts as none."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    keys = ", ".join(key.name for key in fields(kind))  # type: ignore[arg-type]
    try:
        if not isinstance(content, dict):
            raise argparse.ArgumentError(None, f"it is {content!r}")
        parsed = parser.parse_object({key: value for key, value in content.items() if value is not None})
    except argparse.ArgumentError as error:
        noun = kind.__name__.lower()
        raise ConfigError(f"{where} is no {noun}: {_one_line(error)}.\nThe keys of a {noun} are {keys}.") from error
    return kind(**vars(parsed))


def _prepare(file: Path, comparison: Comparison, name: str, seed: int) -> _Run:
    row = comparison.rows[name]
    words = [word for config in [*comparison.configs, *row.configs] for word in ("--config", config)]
    for key, value in (comparison.overrides | row.overrides).items():
        words.append(f"--{key}={value if isinstance(value, str) else json.dumps(value, default=str)}")
    words.append(f"--seed_everything={seed}")
    stem = f"{name}-seed{seed}"
    start = None if row.start is None else _prepare(file, comparison, row.start, seed)
    return _Run(name, seed, words, _RUNS / file.stem / stem, file.with_suffix("") / f"{stem}.json", start)


def _check(runs: list[_Run]) -> None:
    """Refuse what cannot be built, before the first is trained."""
    if not runs:
        return
    from lightning_vos.commands.trainer import CLI
    from lightning_vos.config_files import expand_config_options

    class Built(CLI):
        """Parses and builds all that `fit` does, and runs nothing."""

        def _run_subcommand(self, subcommand: str) -> None:
            return

    logging.disable(logging.INFO)  # Lightning tells of seeds and devices
    try:
        with Console().status("building the rows"):
            for each in {each.row: each for each in runs}.values():  # seeds differ in nothing that can be wrong
                try:
                    Built("fit", expand_config_options(each.commands()[0]))
                except UserError as error:
                    raise ConfigError(f"{each.row}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)


def _run(each: _Run) -> dict[str, float]:
    """Train and test, and write the result; gives the measures."""
    began = each.folder / "started.json"  # a result without measures, until there is one
    is_resumed = False
    if each.measures(began) is None:
        _write(began, {"words": each.recorded, "measures": {}})
    else:
        # an older one is of a training that came to its end
        is_resumed = any(path.stat().st_mtime >= began.stat().st_mtime for path in each.checkpoints())
    started = time.time()
    fit, test = each.commands()
    for command in ([*fit, "--ckpt_path=last"] if is_resumed else fit, test):
        note = ", from its last checkpoint" if command[0] == "fit" and is_resumed else ""
        Console().print(f"{each.label}: {command[0]}{note}", highlight=False)
        status = _finish(command)
        if status != 0:
            raise UserError(f"{each.label}: {command[0]} ended with status {status}, see above.")
    measures = _measured(each.folder)
    seconds = None if is_resumed else round(time.time() - started)
    content = {"row": each.row, "seed": each.seed, "measures": measures, "words": each.recorded, "seconds": seconds}
    _write(each.result, content | _versions())
    began.unlink()
    return measures


def _write(path: Path, content: dict[str, Any]) -> None:
    with written_beside(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _finish(command: list[str]) -> int:
    """The status that a command ends with; on Ctrl-C it is given the time to write its last checkpoint."""
    process = subprocess.Popen([sys.executable, "-c", "from lightning_vos.cli import main; main()", *command])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise KeyboardInterrupt("stopped; the same `experiment run` goes on from here") from None


def _measured(folder: Path) -> dict[str, float]:
    """What the newest test under a folder of runs gave."""
    tables = sorted(folder.glob("*/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    if not tables:
        return {}
    with tables[-1].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {key: float(value) for row in rows for key, value in row.items() if value and key not in ("epoch", "step")}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "lightning": version("lightning"),
        "lightning_vos": version("lightning-vos"),
        "revision": revision,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _spread(values: list[float]) -> str:
    if not values:
        return "not run"
    digits = 1 if max(map(abs, values)) > 1 else 3  # percent and counts, or cosines and other shares
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")


def main(args: list[str]) -> None:
    """Run `lightning_vos experiment` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    parser = argparse.ArgumentParser(
        "lightning_vos experiment",
        description="Train and test the rows of a comparison, or show what they gave.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(required=True, metavar="run | list", dest="verb")
    running = verbs.add_parser("run", help="train and test what has no result yet", allow_abbrev=False)
    running.add_argument(
        "file", type=Path, metavar="FILE", help="a comparison, such as experiments/mavos/look_alikes.yaml"
    )
    running.add_argument("rows", nargs="*", metavar="ROW", help="rows to run; all by default")
    running.add_argument("--print", action="store_true", dest="is_printed", help="print the commands, run nothing")
    listing = verbs.add_parser("list", help="show the rows with their results", allow_abbrev=False)
    listing.add_argument("file", type=Path, metavar="FILE", help="a comparison")
    words = parser.parse_args(args)
    if words.verb == "list":
        show(words.file)
    else:
        run(words.file, words.rows, is_printed=words.is_printed)
