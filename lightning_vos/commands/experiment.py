"""`lightning_vos experiment`: the rows of a comparison, each trained and tested as a person would by hand."""

from __future__ import annotations

import argparse
import csv
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from lightning_vos.errors import ConfigError, UserError
from lightning_vos.io.writing import written_beside

_RUNS = Path("runs/experiments")


@dataclass(frozen=True)
class Comparison:
    """What is compared, as a YAML file states it.

    Attributes:
        configs: What every row builds on.
        overrides: Options that every row has: key -> value.
        seeds: Each row is trained once for each.
        measures: Columns of `metrics.csv` that count.
        rows: Name -> `configs` and `overrides` of its own.
    """

    configs: list[str]
    overrides: dict[str, Any]
    seeds: list[int]
    measures: list[str]
    rows: dict[str, dict[str, Any]]


def run(file: Path, rows: list[str], *, is_printed: bool = False) -> None:
    """Train and test rows for every seed; what has a result already is left alone.

    Results are written to FILE's folder, under its name, one JSON for each row and seed, as they arrive.

    Args:
        file: The comparison.
        rows: Its rows to run; all of them if there are none.
        is_printed: Print the commands and run nothing.

    Raises:
        ConfigError: if the file is no comparison, or has no such row.
        UserError: if a command fails.
    """
    comparison = _read(file)
    if unknown := set(rows) - comparison.rows.keys():
        raise ConfigError(f"{file} has no rows {sorted(unknown)}.\nIts rows are {', '.join(comparison.rows)}.")
    for seed in comparison.seeds:
        for name in rows or comparison.rows:
            result = _results(file) / f"{name}-seed{seed}.json"
            folder = _RUNS / file.stem / f"{name}-seed{seed}"
            if is_printed:
                for command in _commands(comparison, name, seed, folder):
                    sys.stdout.write(shlex.join(["lightning_vos", *command]) + "\n")
            elif not result.exists():
                _run(comparison, name, seed, folder, result)
    if not is_printed:
        show(file)


def show(file: Path) -> None:
    """Print the rows with their results: the mean over seeds, and the lowest and highest.

    Args:
        file: The comparison.

    Raises:
        ConfigError: if the file is no comparison.
    """
    comparison = _read(file)
    table = Table("row", "seeds", *comparison.measures, title=file.stem)
    for name in comparison.rows:
        found = [json.loads(path.read_text()) for path in sorted(_results(file).glob(f"{name}-seed*.json"))]
        cells = [_spread([result["measures"][measure] for result in found]) for measure in comparison.measures]
        table.add_row(name, str(len(found)), *cells)
    Console().print(table)


def _read(file: Path) -> Comparison:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        return Comparison(**content)
    except (OSError, TypeError, yaml.YAMLError) as error:
        keys = ", ".join(Comparison.__dataclass_fields__)
        raise ConfigError(f"{file} is no comparison: {error}.\nExpected a YAML file with the keys {keys}.") from error


def _results(file: Path) -> Path:
    return file.with_suffix("")


def _commands(comparison: Comparison, name: str, seed: int, folder: Path) -> tuple[list[str], list[str]]:
    """The words that train a row, and those that test it."""
    row = comparison.rows[name] or {}
    words = [word for config in [*comparison.configs, *row.get("configs", [])] for word in ("--config", config)]
    settings = comparison.overrides | row.get("overrides", {}) | {"trainer.logger.init_args.save_dir": folder}
    words += [f"--{key}={json.dumps(value) if isinstance(value, bool) else value}" for key, value in settings.items()]
    words.append(f"--seed_everything={seed}")
    return ["fit", *words], ["test", *words, "--ckpt_path=last"]


def _run(comparison: Comparison, name: str, seed: int, folder: Path, result: Path) -> None:
    started = time.time()
    for command in _commands(comparison, name, seed, folder):
        Console().print(f"{name}, seed {seed}: {command[0]}", highlight=False)
        front_door = "from lightning_vos.cli import main; main()"
        finished = subprocess.run([sys.executable, "-c", front_door, *command], check=False)
        if finished.returncode != 0:
            raise UserError(f"{name}, seed {seed}: {command[0]} ended with status {finished.returncode}, see above.")
    measures = _measured(folder, comparison.measures)
    with written_beside(result) as temporary:
        temporary.write_text(
            json.dumps(
                {"row": name, "seed": seed, "measures": measures, "seconds": round(time.time() - started)}
                | _versions(),
                indent=2,
            )
            + "\n"
        )


def _measured(folder: Path, measures: list[str]) -> dict[str, float]:
    """The measures of the newest test under a folder of runs."""
    versions = sorted(folder.glob("*/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    with versions[-1].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {measure: row[measure] for row in rows for measure in measures if row.get(measure)}
    if missing := set(measures) - found.keys():
        raise ConfigError(
            f"{versions[-1]} holds no {sorted(missing)}.\nIt holds {', '.join(rows[0]) if rows else 'nothing'}."
        )
    return {measure: float(found[measure]) for measure in measures}


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
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


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
