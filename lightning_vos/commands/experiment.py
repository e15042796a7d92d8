"""`lightning_vos experiment`: the rows of a table, each trained and tested as a person would by hand."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lightning_vos.errors import ConfigError, DatasetNotFoundError, UserError
from lightning_vos.experiments.files import Table, read_table
from lightning_vos.experiments.runs import MASKS_TO_COME, Result, RowRun, row_runs
from lightning_vos.experiments.tables import grid, overview, write_readmes

_EXPERIMENTS = Path("experiments")
_DATA = "A row takes no options: put or link its data sets where its configs say, `data` in this folder."


def run(file: Path, rows: Sequence[str], *, is_printed: bool = False, is_synthetic: bool = False) -> None:
    """Train and test rows for every seed; what has a result already is left alone.

    Results are written to FILE's folder, under its name, one JSON for each row and seed, as they arrive. Every row is
    built once before the first is trained. A training that was stopped goes on from its last checkpoint; one that
    several rows share is trained once. Seed by seed, a row is run after the one that it starts from.

    Args:
        file: The table.
        rows: Its rows to run, with those that they start from; all that can be run if there are none.
        is_printed: Print the commands and run nothing.
        is_synthetic: On rendered data at small scale, with one seed.

    Raises:
        ConfigError: if the file is no table, has no such row, or has changed since a row was run.
        UserError: if a row cannot be built, or a command fails.
    """
    table = read_table(file)
    chosen = row_runs(table, rows, is_synthetic=is_synthetic)
    if is_printed:
        commands = dict.fromkeys(shlex.join(["lightning_vos", *words]) for one in chosen for words in one.commands())
        sys.stdout.write("".join(f"{command}\n" for command in commands))
        return
    left = [one for one in chosen if one.result() is None]
    check(left)
    for one in left:
        _warn_of_missing(table, one, one.carry_out())
    show(file, is_synthetic=is_synthetic)


def show(file: Path, *, is_synthetic: bool = False) -> None:
    """Print the rows: published, ours (the mean over seeds, the lowest and highest of several), difference, status.

    Args:
        file: The table.
        is_synthetic: What rendered data gave instead.

    Raises:
        ConfigError: if the file is no table or has changed since a row was run, or a result cannot be read.
    """
    Console(markup=False, highlight=False).print(grid(read_table(file), is_synthetic=is_synthetic))


def check(runs: Sequence[RowRun]) -> None:
    """Refuse what cannot be built, or lacks its data, before the first is trained.

    Every training and every test is parsed by the real command line, and all parts that its words name are built but
    for the trainer, without memory for weights. Rendered data are written.

    Raises:
        ConfigError: if one of them is refused; the message begins with the row.
    """
    commands: dict[tuple[str, ...], str] = {}
    for one in runs:
        for words in one.checked():
            commands.setdefault(tuple(words), one.name)
    if not commands:
        return
    from lightning_vos.commands.rehearsal import Rehearsal

    rehearsal = Rehearsal()
    logging.disable(logging.INFO)  # Lightning tells of seeds and devices
    try:
        with Console().status("building the rows and looking for their data"):
            for command, name in commands.items():
                try:
                    rehearsal.build(command)
                    if MASKS_TO_COME not in command:
                        rehearsal.find_data(command[0])
                except DatasetNotFoundError as error:
                    raise ConfigError(f"{name}: {error}\n{_DATA}") from error
                except UserError as error:
                    raise ConfigError(f"{name}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)


def _warn_of_missing(table: Table, run: RowRun, result: Result) -> None:
    missing = [
        measure
        for measure in table.columns.values()
        if measure not in result.measures and measure.partition("/")[0] not in result.submissions
    ]
    if missing:
        sys.stderr.write(
            f"{run.file} lacks {', '.join(missing)}: the tests gave {', '.join(result.measures) or 'nothing'}.\n"
            f"Mend `columns` in {table.file}; no row need be run again.\n"
        )


def main(args: list[str]) -> None:
    """Run `lightning_vos experiment` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    if args[:1] == ["sweep"]:
        from lightning_vos.commands.sweep import main as sweep

        sweep(args[1:])
        return
    parser = argparse.ArgumentParser(
        "lightning_vos experiment",
        description="Train and test the rows of a table of a paper, or show what they gave beside what is published.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(required=True, metavar="list | run | tables | sweep", dest="verb")
    listing = verbs.add_parser("list", help="show all tables, or one with its results", allow_abbrev=False)
    listing.add_argument("file", type=Path, nargs="?", metavar="FILE", help="such as experiments/mavos/table4.yaml")
    running = verbs.add_parser("run", help="train and test what has no result yet", allow_abbrev=False)
    running.add_argument("file", type=Path, metavar="FILE", help="such as experiments/mavos/table4.yaml")
    running.add_argument("rows", nargs="*", metavar="ROW", help="rows to run; all by default")
    running.add_argument("--print", action="store_true", dest="is_printed", help="print the commands, run nothing")
    for verb in (listing, running):
        verb.add_argument(
            "--synthetic", action="store_true", help="on rendered data at small scale: what a row needs, not its result"
        )
    rendering = verbs.add_parser("tables", help="render the tables of each README", allow_abbrev=False)
    rendering.add_argument("folder", type=Path, nargs="?", default=_EXPERIMENTS, metavar="FOLDER", help="of the papers")
    verbs.add_parser("sweep", help="search the settings of a W&B sweep file here")
    words = parser.parse_args(args)
    if words.verb == "run":
        run(words.file, words.rows, is_printed=words.is_printed, is_synthetic=words.synthetic)
    elif words.verb == "tables":
        for path in write_readmes(words.folder):
            sys.stdout.write(f"{path} is rendered anew.\n")
    elif words.file is not None:
        show(words.file, is_synthetic=words.synthetic)
    elif words.synthetic:
        parser.error("--synthetic shows one table: name its FILE")
    else:
        Console(markup=False, highlight=False).print(overview(_EXPERIMENTS))
