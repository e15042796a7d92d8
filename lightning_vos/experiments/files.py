"""The form of experiment files: a paper, its trainings, its tables and their rows, read and checked as a whole.

A folder is a paper: `paper.yaml` holds what its tables share, every other `.yaml` beside it is a table.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from lightning_vos.errors import ConfigError

PAPER = "paper.yaml"
DEFAULT_TEST = "test"
"""The one test of a table that names none; it has nothing of its own."""

# YAML's own types: a text such as "0123" stays one
Value = str | bool | int | float | list[Any] | dict[str, Any] | None
Kind = TypeVar("Kind", "Table", "Paper")

_SAFE = re.compile(r"[a-z0-9_]+")


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _empty_keys_count_as_none(cls, content: Any) -> Any:
        if isinstance(content, dict):
            return {key: value for key, value in content.items() if value is not None}
        return {} if content is None else content


class Test(_Part):
    """What is read after the words of a training, in `test` alone.

    Attributes:
        configs: Config files.
        overrides: Options: dotted key -> value.
    """

    __test__ = False  # pytest takes classes of this name for its own

    configs: list[str] = []
    overrides: dict[str, Value] = {}


class Synthetic(_Part):
    """How rows are made small: read after everything else, where they run on rendered data.

    Attributes:
        configs: Config files.
        overrides: Options: dotted key -> value.
        test: Read after these, in `test` alone.
    """

    configs: list[str] = []
    overrides: dict[str, Value] = {}
    test: Test = Test()


class Training(_Part):
    """A training, which the tables of a paper may share.

    Attributes:
        configs: Config files, the recipe first.
        overrides: Options: dotted key -> value.
        start: The training whose last weights, of the same seed, it starts from.
        masks: The training whose last weights, of the same seed, predict the label maps that it is trained on.
        synthetic: Instead of the one of the paper.
    """

    configs: list[str] = []
    overrides: dict[str, Value] = {}
    start: str | None = None
    masks: str | None = None
    synthetic: Synthetic | None = None


class PublishedFile(_Part):
    """A file that the authors of a method host.

    Attributes:
        name: What `load_published` calls it.
        host: Where it is.
        file: What it is called there.
        command: What tests it.
        number: What it is published to score.
    """

    name: str
    host: str
    file: str
    command: str
    number: str


class Paper(_Part):
    """What the tables of a paper share.

    Attributes:
        title: Of the paper.
        notes: Sentences on its protocol.
        trainings: Name -> training.
        files: What its authors host.
        synthetic: How any row is made small.
    """

    title: str = ""
    notes: list[str] = []
    trainings: dict[str, Training] = {}
    files: list[PublishedFile] = []
    synthetic: Synthetic = Synthetic()


class Row(_Part):
    """A row: of a training of the paper, of a method that is not built here, or trained by itself.

    Attributes:
        label: What the row is called in the table, instead of its name.
        train: The training of the paper that it takes.
        cited: The method, where it is not built here: the row is never run.
        configs: Read after those of the table; of a row that is trained by itself.
        overrides: Options: dotted key -> value; they win over those of the table.
        start: The row whose last weights, of the same seed, its training starts from.
        test_overrides: Options of all its tests alone.
        seeds: Instead of those of the table.
        published: Title of a column -> what the paper prints.
    """

    label: str | None = None
    train: str | None = None
    cited: str | None = None
    configs: list[str] = []
    overrides: dict[str, Value] = {}
    start: str | None = None
    test_overrides: dict[str, Value] = {}
    seeds: list[int] | None = None
    published: dict[str, int | float] = {}


class Table(_Part):
    """A table of a paper, or a comparison of our own, as its file states it.

    Attributes:
        columns: Title -> TEST/MEASURE: the name of a test, then what the module logs behind `test/`.
        rows: Name -> row.
        title: Of the table.
        notes: Sentences on its protocol, and odd values of the print.
        tests: Name -> what a test has of its own; one, which has nothing, where there are none.
        ratios: Title -> row: the column is compared as ratios to that row.
        tolerance: Title -> how far ours may be off: in the unit of the column; of ratios, their relative share.
        seeds: Each row that has none of its own is trained once for each.
        configs: What every row that is trained by itself builds on.
        overrides: Options that every such row has: dotted key -> value.
        synthetic: How such rows are made small, instead of the one of the paper.
    """

    columns: dict[str, str]
    rows: dict[str, Row]
    title: str = ""
    notes: list[str] = []
    tests: dict[str, Test] = Field(default={DEFAULT_TEST: Test()}, min_length=1)
    ratios: dict[str, str] = {}
    tolerance: dict[str, float] = {}
    seeds: list[int] = Field(default=[0], min_length=1)
    configs: list[str] = []
    overrides: dict[str, Value] = {}
    synthetic: Synthetic | None = None
    _file: Path = PrivateAttr(Path())
    _paper: Paper = PrivateAttr(Paper())

    @property
    def file(self) -> Path:
        """Where it was read."""
        return self._file

    @property
    def paper(self) -> Paper:
        """What it shares with the other tables of the paper."""
        return self._paper

    @property
    def paper_name(self) -> str:
        """The name of the folder that the file lies in."""
        return self._file.resolve().parent.name

    @property
    def name(self) -> str:
        """The title, or the name of the file."""
        return self.title or self._file.stem

    @property
    def runnable(self) -> list[str]:
        """The names of the rows that can be run."""
        return [name for name, row in self.rows.items() if row.cited is None]

    def seeds_of(self, name: str) -> list[int]:
        """The seeds of a row."""
        own = self.rows[name].seeds
        return self.seeds if own is None else own

    def lineage(self, name: str) -> list[str]:
        """A row, and before it those that its weights come from, the first of them first.

        Raises:
            ConfigError: if a row starts from one that is not there or never run, from itself by way of others, or from
                one that is not trained for all its seeds.
        """
        names = _chain("Row", name, {known: row.start for known, row in self.rows.items()})
        for start, row in pairwise(names):
            if self.rows[start].cited is not None:
                raise ConfigError(f"Row {row} starts from {start}, which is cited: it is never trained.")
            if missing := set(self.seeds_of(row)) - set(self.seeds_of(start)):
                raise ConfigError(
                    f"Row {row} has seeds {sorted(missing)}, but {start}, which it starts from, has not.\n"
                    f"Add them to the `seeds` of {start}, or leave them out of those of {row}."
                )
        return names


def read_table(file: Path) -> Table:
    """Read a table, and `paper.yaml` beside it where there is one.

    Raises:
        ConfigError: if either cannot be read, has wrong keys or types, or names what is not there.
    """
    if file.name == PAPER:
        others = ", ".join(path.name for path in table_files(file.parent)) or "none yet"
        raise ConfigError(
            f"{file} holds what the tables of a paper share and is no table itself.\n"
            f"Name one of the tables beside it: {others}."
        )
    table = _parse(Table, file)
    table._file = file
    if file.with_name(PAPER).is_file():
        table._paper = read_paper(file.with_name(PAPER))
    try:
        _check_table(table)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    return table


def read_paper(file: Path) -> Paper:
    """Read what the tables of a paper share.

    Raises:
        ConfigError: if the file cannot be read, has wrong keys or types, or a training needs one that is not there.
    """
    paper = _parse(Paper, file)
    needed = {name: training.start or training.masks for name, training in paper.trainings.items()}
    try:
        for name, training in paper.trainings.items():
            _check_name("training", name)
            if training.start is not None and training.masks is not None:
                raise ConfigError(
                    f"training {name} has `start` and `masks`.\n"
                    "Expected one of them: weights to start from, or whose label maps it is trained on."
                )
            _chain("Training", name, needed)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    return paper


def table_files(folder: Path) -> list[Path]:
    """The files of the tables in the folder of a paper, `table10.yaml` after `table9.yaml`."""

    def natural(path: Path) -> list[str | int]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.stem)]

    return sorted((path for path in folder.glob("*.yaml") if path.name != PAPER), key=natural)


def one_line(error: Exception) -> str:
    """The text of an error for a line of a message."""
    return " ".join(str(error).split())[:300].rstrip(".")


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence: what is meant by a word that is not known, or what there is."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)[:400] or 'none'}."


def _parse(kind: type[Kind], file: Path) -> Kind:
    noun = kind.__name__.lower()
    if not file.is_file():
        there = [path.name for path in table_files(file.parent)]
        raise ConfigError(
            f"{file} is {'a folder' if file.is_dir() else 'not there'}, expected a {noun}.\n"
            + (nearest(file.name, there) if there else "`lightning_vos experiment list` shows all tables.")
        )
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} is no {noun}: {one_line(error)}.\nExpected a YAML file in UTF-8.") from error
    try:
        if not isinstance(content, dict):
            raise ConfigError(f"it is {content!r:.300}.\nThe keys of a {noun} are {', '.join(kind.model_fields)}.")
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{file} is no {noun}: {_explain(kind, error)}") from error
    except ConfigError as error:
        raise ConfigError(f"{file} is no {noun}: {error}") from None


def _explain(kind: type[_Part], error: ValidationError) -> str:
    """The first thing that is wrong: where, what was found, what is expected."""
    found = error.errors(include_url=False)
    first = next(
        (one for one in found if one["type"] == "extra_forbidden"), found[0]
    )  # it may be the one that is missing
    place = list(first["loc"])
    owner, way = _owner(kind, place)
    noun = owner.__name__.lower()
    where = f" in {'.'.join(map(str, way))}" if way else ""
    keys = f"The keys of a {noun} are {', '.join(owner.model_fields)}."
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), owner.model_fields, n=1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        return f"unknown key {place[-1]!r}{where}{hint}\n{keys}"
    if first["type"] == "missing":
        return f"key {place[-1]!r} is missing{where}.\n{keys}"
    key = ".".join(str(part) for part in place if part not in ("int", "[key]"))
    expected = "a number" if place[-1] == "int" else first["msg"].removeprefix("Input should be ")
    return f"{key} is {first['input']!r:.200}.\nExpected {expected}. {keys}"


def _owner(kind: type[_Part], place: Sequence[int | str]) -> tuple[type[_Part], list[int | str]]:
    """The innermost part of the file that a place lies in, and the way to it."""
    owner, depth = kind, 0
    while depth < len(place) and (key := owner.model_fields.get(str(place[depth]))) is not None:
        parts = [one for one in (key.annotation, *get_args(key.annotation)) if _is_part(one)]
        depth_inside = depth + 1 + (get_origin(key.annotation) in (dict, list))  # their parts have a name or a number
        if not parts or depth_inside >= len(place):
            break
        owner, depth = parts[0], depth_inside
    return owner, list(place[:depth])


def _is_part(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, _Part)


def _check_table(table: Table) -> None:
    """Refuse what is of the right type and cannot be."""
    for name in table.tests:
        _check_name("test", name)
    for title, measure in table.columns.items():
        test, slash, rest = measure.partition("/")
        if not slash or not rest:
            raise ConfigError(f"column {title} is {measure!r}.\nExpected TEST/MEASURE, such as {DEFAULT_TEST}/J&F.")
        if test not in table.tests:
            raise ConfigError(f"column {title} is of test {test!r}, which is not there.\n{nearest(test, table.tests)}")
    for key, titles in (("ratios", table.ratios), ("tolerance", table.tolerance)):
        _check_titles(f"`{key}`", titles, table)
    for title, baseline in table.ratios.items():
        if baseline not in table.rows:
            raise ConfigError(
                f"column {title} is compared with row {baseline!r}, which is not there.\n"
                f"{nearest(baseline, table.rows)}"
            )
    for name, row in table.rows.items():
        _check_name("row", name)
        _check_titles(f"row {name}", row.published, table)
        _check_row(table, name, row)
    for name in table.runnable:
        table.lineage(name)


def _check_row(table: Table, name: str, row: Row) -> None:
    own = [key for key in ("configs", "overrides", "start") if getattr(row, key)]
    kinds = [key for key in ("train", "cited") if getattr(row, key) is not None]
    if len(kinds) + bool(own) > 1:
        raise ConfigError(
            f"row {name} has {' and '.join(f'`{key}`' for key in [*kinds, *own])}.\n"
            "Expected one of: `train`, a training of the paper; `cited`, a method that is not built here; or\n"
            "`configs`, `overrides` and `start` of a training of its own."
        )
    if not kinds and not own and not table.configs:
        raise ConfigError(
            f"row {name} has nothing to run.\n"
            f"Give it `train`, a training of {PAPER}; `cited`, if its method is not built here; or `configs`, of its\n"
            "own or of the table."
        )
    if row.cited is not None and (extra := [key for key in ("seeds", "test_overrides") if getattr(row, key)]):
        raise ConfigError(f"row {name} is cited and never run, but has `{extra[0]}`.\nRemove one of the two.")
    if row.train is not None and row.train not in table.paper.trainings:
        has_paper = table.file.with_name(PAPER).is_file()
        raise ConfigError(
            f"row {name} takes training {row.train!r}, which is not in {PAPER}.\n"
            + (
                nearest(row.train, table.paper.trainings)
                if has_paper
                else f"There is no {PAPER} beside {table.file.name}."
            )
        )


def _check_titles(where: str, titles: Iterable[str], table: Table) -> None:
    for title in titles:
        if title not in table.columns:
            raise ConfigError(f"{where} names column {title!r}, which is not there.\n{nearest(title, table.columns)}")


def _check_name(noun: str, name: str) -> None:
    if not _SAFE.fullmatch(name):
        raise ConfigError(f"{noun} {name!r} names files.\nExpected lower-case letters, digits and underscores alone.")


def _chain(noun: str, name: str, starts: Mapping[str, str | None]) -> list[str]:
    """A name, and before it those that it starts from, the first of them first."""
    names = [name]
    while (start := starts[names[0]]) is not None:
        if start not in starts:
            raise ConfigError(f"{noun} {names[0]} starts from {start}, which is not there.\n{nearest(start, starts)}")
        if start in names:
            circle = " from ".join([*reversed(names[: names.index(start) + 1]), start])
            raise ConfigError(f"{noun}s start from each other: {circle}.\nOne of them must stand alone.")
        names.insert(0, start)
    return names
