"""What scoring gives: numbers by sequence, object, frame, class and tag, and what was left out."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_vos.evaluation.problems import Problem
from lightning_vos.io.writing import written_beside

if TYPE_CHECKING:
    from rich.table import Table


class LeftOut(NamedTuple):
    """Something of the truth or of the results that no number tells of, and why."""

    sequence: str
    frames: tuple[str, ...]  # none: all
    objects: tuple[int, ...]  # none: all
    reason: str


class ObjectFrames(NamedTuple):
    """The scored frames of one object; the values are fractions, to the last bit as they were measured."""

    names: tuple[str, ...]
    region: NDArray[np.float64]  # (T,) J
    boundary: NDArray[np.float64]  # (T,) F


@dataclass(frozen=True)
class Scores:
    """The scores of one set of results. All but counts and `frames` is in percent; NaN where there is nothing to score.

    Attributes:
        protocol: Its name, as `score` takes it.
        variant: One sentence: what exactly was measured.
        summary: The numbers that a paper prints.
        sequences: Sequence -> its numbers.
        objects: (sequence, object id) -> its numbers.
        frames: (sequence, object id) -> J and F of each scored frame, as fractions.
        categories: Class -> its numbers (`youtube_vis`, `semantic`).
        tags: Difficulty -> the numbers of the objects that show it.
        thresholds: Threshold of the background -> the numbers of a summary (`semantic`, of class maps that were kept).
        left_out: What was not scored and why.
        problems: What was wrong with the results and forgiven.
    """

    protocol: str
    variant: str
    summary: Mapping[str, float]
    sequences: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    objects: Mapping[tuple[str, int], Mapping[str, float]] = field(default_factory=dict)
    frames: Mapping[tuple[str, int], ObjectFrames] = field(default_factory=dict)
    categories: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tags: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    thresholds: Mapping[float, Mapping[str, float]] = field(default_factory=dict)
    left_out: Sequence[LeftOut] = ()
    problems: Sequence[Problem] = ()

    def write_json(self, path: Path) -> None:
        """Write everything as one JSON file in percent, null where there is no number; it appears at once and whole."""
        content = {
            "protocol": self.protocol,
            "variant": self.variant,
            "summary": _plain(self.summary),
            "sequences": {name: _plain(row) for name, row in self.sequences.items()},
            "objects": [{"sequence": s, "object": k, **_plain(row)} for (s, k), row in self.objects.items()],
            "categories": {name: _plain(row) for name, row in self.categories.items()},
            "tags": {name: _plain(row) for name, row in self.tags.items()},
            "thresholds": [{"threshold": value, **_plain(row)} for value, row in self.thresholds.items()],
            "frames": [
                {
                    "sequence": s,
                    "object": k,
                    "frames": row.names,
                    "J": (100 * row.region).tolist(),
                    "F": (100 * row.boundary).tolist(),
                }
                for (s, k), row in self.frames.items()
            ],
            "left_out": [item._asdict() for item in self.left_out],
            "problems": [vars(problem) for problem in self.problems],
        }
        with written_beside(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def write_csv(self, folder: Path) -> None:
        """Write a file a table: summary, sequences, objects, frames, categories, tags, thresholds, left_out, problems.

        Tables without rows are not written.
        """
        _write_table(folder / "summary.csv", ("measure", "value"), self.summary.items())
        write_rows(folder / "sequences.csv", ("sequence",), {(name,): row for name, row in self.sequences.items()})
        write_rows(folder / "objects.csv", ("sequence", "object"), self.objects)
        write_rows(folder / "categories.csv", ("category",), {(name,): row for name, row in self.categories.items()})
        write_rows(folder / "tags.csv", ("tag",), {(name,): row for name, row in self.tags.items()})
        write_rows(folder / "thresholds.csv", ("threshold",), {(value,): row for value, row in self.thresholds.items()})
        frames = [
            (s, k, name, 100 * region, 100 * boundary)
            for (s, k), row in self.frames.items()
            for name, region, boundary in zip(row.names, row.region, row.boundary, strict=True)
        ]
        _write_table(folder / "frames.csv", ("sequence", "object", "frame", "J", "F"), frames)
        left_out = [(s, " ".join(names), " ".join(map(str, ids)), reason) for s, names, ids, reason in self.left_out]
        _write_table(folder / "left_out.csv", ("sequence", "frames", "objects", "reason"), left_out)
        problems = [(p.kind, p.sequence, p.frame or "", p.reason, p.remedy) for p in self.problems]
        _write_table(folder / "problems.csv", ("kind", "sequence", "frame", "reason", "remedy"), problems)


def write_rows(path: Path, titles: Sequence[str], rows: Mapping[tuple[Any, ...], Mapping[str, float]]) -> None:
    """Write a CSV of rows by their names; the file appears at once and whole, and not at all for no rows.

    Args:
        path: The file.
        titles: Of the parts of a row's name.
        rows: Name -> measure -> value.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = [(*key, *(row.get(column, math.nan) for column in columns)) for key, row in rows.items()]
    _write_table(path, (*titles, *columns), table)


def _write_table(path: Path, titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = list(rows)
    if not table:
        path.unlink(missing_ok=True)  # of an earlier scoring into the same folder
        return
    with written_beside(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(titles)
        writer.writerows([float(cell) if isinstance(cell, np.floating) else cell for cell in row] for row in table)


def score_table(title: str, rows: Mapping[str, Mapping[str, float]], total: tuple[str, Mapping[str, float]]) -> Table:
    """A table for the terminal of J&F, J, F and identity switches.

    Args:
        title: What the rows are.
        rows: Name -> measures, in percent.
        total: Name and measures of all together.
    """
    from rich.markup import escape
    from rich.table import Table

    def cells(row: Mapping[str, float]) -> list[str]:
        numbers = (row[column] for column in ("J&F", "J", "F"))
        return [*("-" if math.isnan(number) else f"{number:.1f}" for number in numbers), str(row["switches"])]

    table = Table(title, "J&F %", "J %", "F %", "switches")
    for name, row in rows.items():
        table.add_row(escape(name), *cells(row))
    table.add_section()
    table.add_row(total[0], *cells(total[1]), style="bold")
    return table


def _plain(row: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON knows them: it has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in row.items()}
