"""Published numbers beside ours: a table for the terminal, and one for the README of a paper."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Column
from rich.table import Table as Grid

from lightning_vos.errors import ConfigError
from lightning_vos.experiments.files import PAPER, Paper, Table, read_paper, read_table, table_files
from lightning_vos.experiments.runs import Result, row_run
from lightning_vos.io.writing import written_beside

NOT_RUN = "not run"
LEGEND = "In each column: published | ours | difference."
BEGIN, END = "<!-- tables -->", "<!-- /tables -->"

_OF_PAPER = ("table", "figure")  # how the names of their files begin
_WIDE = 6  # columns; of a table with more each test is shown by itself
_UNITS = {"parameters": 1e6}  # papers print millions


class Cell(NamedTuple):
    """What stands in a column of a row; empty where there is nothing to say."""

    published: str
    ours: str
    difference: str


class Line(NamedTuple):
    """A row as it is shown."""

    name: str
    label: str
    cells: list[Cell]  # of each column
    status: str


class Block(NamedTuple):
    """A table as it is shown, or the part of a wide one that is of one test."""

    titles: list[str]
    rows: list[list[str]]


def compare(table: Table, *, is_synthetic: bool = False) -> list[Line]:
    """Every row of a table with what is published, what we found, and whether that agrees.

    Args:
        table: What is compared.
        is_synthetic: Show what rendered data gave, beside which nothing published may stand.

    Raises:
        ConfigError: if a result cannot be read, or belongs to other settings.
    """
    found = {name: _results(table, name, is_synthetic) for name in table.runnable}
    return [_line(table, name, found, is_synthetic) for name in table.rows]


def grid(table: Table, *, is_synthetic: bool = False) -> Group:
    """A table for the terminal: in each column `published | ours | difference`, or ours alone."""
    title: str | None = f"{table.name}, on rendered data at small scale" if is_synthetic else table.name
    lines = compare(table, is_synthetic=is_synthetic)
    shown = []
    heads = [_head(line, is_named=table.rows[line.name].cited is None) for line in lines]
    for block in _blocks(table, lines, heads):
        columns = (Column(name, overflow="fold") for name in block.titles)
        shown.append(Grid(*columns, title=title, box=SIMPLE, pad_edge=False))
        for row in block.rows:
            shown[-1].add_row(*row)
        title = None
    is_compared = any(cell.published for line in lines for cell in line.cells)
    return Group(*shown, *([LEGEND] if is_compared else []), *table.notes)


def overview(folder: Path) -> Group:
    """All tables under a folder of papers: how many rows can be run, and how many have all their results.

    Below stands what is wrong with results that cannot be read or belong to other settings.

    Raises:
        ConfigError: if there are none, or one of the tables cannot be read.
    """
    files = [file for paper in sorted(folder.glob("*/")) for file in table_files(paper)]
    if not files:
        raise ConfigError(f"{folder} holds no tables.\nExpected {folder}/PAPER/TABLE.yaml, as in a checkout.")
    numbers = (Column(name, justify="right") for name in ("rows to run", "cited", "with results"))
    shown = Grid(Column("table", overflow="fold"), *numbers, box=SIMPLE, pad_edge=False)
    refused = []
    for file in files:
        table = read_table(file)
        try:
            done = str(sum(len(_results(table, name, False)) == len(table.seeds_of(name)) for name in table.runnable))
        except ConfigError as error:
            refused.append(str(error))
            done = "?"
        rows = len(table.runnable)
        shown.add_row(f"{file}\n  {table.name}", str(rows), str(len(table.rows) - rows), done)
    return Group(shown, *refused)


def write_readmes(folder: Path) -> list[Path]:
    """Render the README of every paper under a folder; gives those that changed.

    Raises:
        ConfigError: if there is no paper, a README has no place for tables, or a table cannot be read.
    """
    papers = sorted(path.parent for path in folder.glob(f"*/{PAPER}"))
    if not papers:
        raise ConfigError(f"{folder} holds no papers.\nExpected {folder}/PAPER/{PAPER}, as in a checkout.")
    texts = {paper / "README.md": rendered(paper) for paper in papers}
    changed = [path for path, text in texts.items() if text != path.read_text(encoding="utf-8")]
    for path in changed:
        with written_beside(path) as temporary:
            temporary.write_text(texts[path], encoding="utf-8")
    return changed


def rendered(folder: Path) -> str:
    """The README of a paper with its tables as they stand today between the markers, the rest as it is.

    Comparisons of our own, whose files are called neither table nor figure, are left to the words around.

    Raises:
        ConfigError: if the README is not there or has no place for tables, or a table cannot be read.
    """
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{path} has no place for tables.\nAdd the lines {BEGIN} and {END} where they are to be.")
    paper = read_paper(folder / PAPER)
    tables = [read_table(file) for file in table_files(folder) if file.stem.startswith(_OF_PAPER)]
    parts = [_list([*paper.notes, LEGEND]), *(markdown(table) for table in tables), _published_files(paper)]
    return "\n\n".join([f"{before}{BEGIN}", *filter(None, parts), f"{END}{after}"])


def markdown(table: Table) -> str:
    """A table for a README: title, rows, notes."""
    lines = compare(table)
    blocks = [_markdown(block.titles, block.rows) for block in _blocks(table, lines, [line.label for line in lines])]
    return "\n\n".join(filter(None, [f"### [{table.name}]({table.file.name})", *blocks, _list(table.notes)]))


def _head(line: Line, *, is_named: bool) -> str:
    """What begins a row in the terminal: the name that `run` takes, if it can be run, above what it is called."""
    return f"{line.name}\n{line.label}" if is_named and line.label != line.name else line.label


def _blocks(table: Table, lines: list[Line], heads: list[str]) -> list[Block]:
    """What is shown one below another, rows under their heads; a part has those of which there is something to say."""
    tests = [measure.partition("/")[0] for measure in table.columns.values()]
    parts = [{test} for test in dict.fromkeys(tests)] if len(tests) > _WIDE else [set(tests)]
    titles = [f"{title}{' (ratio)' if title in table.ratios else ''}" for title in table.columns]
    blocks = []
    for part in parts:
        shown = [number for number, test in enumerate(tests) if test in part]
        rows = [
            [head, *(" | ".join(filter(None, line.cells[number])) for number in shown), line.status]
            for head, line in zip(heads, lines, strict=True)
            if len(parts) == 1 or any(any(line.cells[number]) for number in shown)
        ]
        blocks.append(Block(["row", *(titles[number] for number in shown), "status"], rows))
    return blocks


def _results(table: Table, name: str, is_synthetic: bool) -> list[Result]:
    runs = [row_run(table, name, seed, is_synthetic=is_synthetic) for seed in table.seeds_of(name)]
    return [result for run in runs if (result := run.result()) is not None]


def _line(table: Table, name: str, found: dict[str, list[Result]], is_synthetic: bool) -> Line:
    row = table.rows[name]
    label = row.label or row.cited or name
    comparisons = [_compared(table, title, name, found, is_synthetic) for title in table.columns]
    cells = [cell for cell, _ in comparisons]
    if row.cited is not None:
        return Line(name, label, cells, "cited")
    verdicts = {
        title: verdict for title, (_, verdict) in zip(table.columns, comparisons, strict=True) if verdict is not None
    }
    seeds = 1 if is_synthetic else len(table.seeds_of(name))
    return Line(name, label, cells, _status(verdicts, found[name], seeds))


def _status(verdicts: dict[str, bool], results: list[Result], seeds: int) -> str:
    if not results:
        return NOT_RUN
    parts = []
    if off := [title for title, agrees in verdicts.items() if not agrees]:
        parts.append(f"off: {', '.join(off)}")
    elif verdicts:
        parts.append("reproduced")
    if packed := {path for result in results for path in result.submissions.values()}:
        parts.append(f"submission: {', '.join(sorted(packed))}")
    if len(results) < seeds:
        parts.append(f"{len(results)} of {seeds} seeds")
    return "; ".join(parts or ["ran"])


def _compared(
    table: Table, title: str, name: str, found: dict[str, list[Result]], is_synthetic: bool
) -> tuple[Cell, bool | None]:
    """A cell, and whether it agrees; None where nothing says how far it may be off, or there is nothing to compare."""
    row = table.rows[name]
    published = None if is_synthetic else row.published.get(title)
    values = _values(table, title, found.get(name, []))
    digits = _digits(table, title, values)
    shown = "" if published is None else str(published)
    if row.cited is not None:
        ours = ""
    elif not values:
        ours = NOT_RUN if not found[name] else "-"
    else:
        ours = _spread(values, digits)
    tolerance = table.tolerance.get(title)
    baseline = table.ratios.get(title)
    if baseline is None or is_synthetic:
        if published is None or not values:
            return Cell(shown, ours, ""), None
        difference = statistics.mean(values) - published
        agrees = None if tolerance is None else abs(difference) <= tolerance + 1e-9
        return Cell(shown, ours, f"{difference:+.{digits}f}"), agrees
    theirs = _ratio(published, table.rows[baseline].published.get(title))
    devices = {result.device for result in [*found.get(name, []), *found.get(baseline, [])]}
    base = _values(table, title, found.get(baseline, [])) if len(devices) == 1 else []  # others say nothing of speed
    own = _ratio(statistics.mean(values) if values else None, statistics.mean(base) if base else None)
    shown = shown if theirs is None else f"{theirs:.2f} ({shown})"
    ours = ours if own is None else f"{own:.2f} ({ours})"
    if theirs is None or own is None or name == baseline:
        return Cell(shown, ours, ""), None
    share = own / theirs - 1
    return Cell(shown, ours, f"{100 * share:+.0f} %"), None if tolerance is None else abs(share) <= tolerance


def _values(table: Table, title: str, results: list[Result]) -> list[float]:
    measure = table.columns[title]
    unit = _UNITS.get(measure.rpartition("/")[2], 1.0)
    return [result.measures[measure] / unit for result in results if measure in result.measures]


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _digits(table: Table, title: str, values: list[float]) -> int:
    """As many as are published in the column."""
    published = [row.published[title] for row in table.rows.values() if title in row.published]
    if published:
        return max(len(str(value).partition(".")[2]) for value in published)
    return 1 if max(map(abs, values), default=0.0) > 1 else 3  # percent and counts, or cosines and other shares


def _spread(values: list[float], digits: int) -> str:
    """The mean over seeds, and the lowest and highest of several."""
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _published_files(paper: Paper) -> str:
    if not paper.files:
        return ""
    rows = [[f"`{one.name}`", one.host, one.file, f"`{one.command}`", one.number] for one in paper.files]
    return "### Published files\n\n" + _markdown(["name", "where", "file", "command", "published"], rows)


def _markdown(titles: list[str], rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", r"\|") for cell in line] for line in (titles, ["---"] * len(titles), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _list(notes: list[str]) -> str:
    return "\n".join(f"- {note}" for note in notes)
