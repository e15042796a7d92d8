"""One page of HTML about runs, side by side: tables, curves and pictures, with nothing outside of the file."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lightning_vos.callbacks.instances import MIN_SCORE
from lightning_vos.figures.run_results import Curve, Row, Run, in_order
from lightning_vos.figures.scenes import FOUND, TrackedScene
from lightning_vos.figures.svg import Line, chart, sparkline, strip

_Key = TypeVar("_Key", bound=tuple[str, ...])
_LESS_IS_BETTER = ("loss", "memory", "switches", "false tracks")
_NEUTRAL = ("parameters", "lr-")
_SCORES = ("J&F", "J", "F", "switches")
_OF_CLASSES = ("AP", "IoU", "accuracy", "precision")
_OF_IMAGES = ("mIoU", "pixel_accuracy")
_OVERVIEW = "Scores are in percent; those of validations are the last."
_MOST_IMAGES = 500  # rows of their table
_SHARE_SHOWN = 0.005  # of the pixels of a class, below which a cell of its confusion says nothing


class Cell(NamedTuple):
    """One cell of a table."""

    text: str
    key: float | str  # what its column is sorted by
    tone: str = ""  # "good", "bad", or nothing
    drawing: Markup = Markup("")
    style: Markup = Markup("")


class Column(NamedTuple):
    """The head of a column."""

    title: str
    group: str = ""  # a title above those of neighbours with the same group
    run: int | None = None  # whose values these are


@dataclass(frozen=True)
class Table:
    """A table that is sorted by a click on a column."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    folded: bool = False

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Titles above the columns, and over how many each goes; nothing if no column has one."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and column.group and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans if any(group for group, _ in spans) else []


class Picture(NamedTuple):
    """A picture of a gallery."""

    caption: str
    uri: str  # the picture itself
    run: int | None = None


class PictureRow(NamedTuple):
    """Truth, and of each run what it made and what is wrong with it."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Section:
    """A part of the page; what is empty is not shown."""

    name: str  # in the address of the page
    title: str
    tables: Sequence[Table] = ()
    charts: Sequence[Markup] = ()
    more_charts: Sequence[Markup] = ()
    gallery: Sequence[PictureRow] = ()
    notes: Sequence[str] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.tables or self.charts or self.more_charts or self.gallery or self.notes)


@dataclass(frozen=True)
class Gallery:
    """What needs the data of the runs, which may not be there any more.

    Attributes:
        rows: The worst frames or images.
        tracks: Video -> what each run found of its true tracks.
        notes: Why something is not shown.
    """

    rows: Sequence[PictureRow] = ()
    tracks: Mapping[str, Sequence[TrackedScene | None]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def render_page(runs: Sequence[Run], gallery: Gallery) -> str:
    """The whole page as HTML.

    Args:
        runs: At least one; differences are to the first.
        gallery: The pictures and tracks to show.
    """
    loader = PackageLoader("lightning_vos.figures")
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("report.html")
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    named = [(letter(number), run.name, str(run.folder)) for number, run in enumerate(runs)]
    sections = [section for section in page_sections(runs, gallery) if not section.is_empty]
    return template.render(title=title, runs=named, sections=sections)


def letter(number: int) -> str:
    """What stands for a run in the head of a column: A, B, ..., Z, A1, ..."""
    letters = string.ascii_uppercase
    return letters[number % 26] + (str(number // 26) if number >= 26 else "")


def page_sections(runs: Sequence[Run], gallery: Gallery) -> list[Section]:
    """What the page shows, in its order."""
    return [
        Section("overview", "At a glance", tables=[_overview(runs)]),
        Section("sequences", "Sequences and objects", tables=[*_sequences(runs), *_objects(runs)]),
        Section("classes", "Classes", tables=[*_classes(runs), *_confusion(runs)]),
        Section("tracks", "Tracks", tables=_tracks(gallery.tracks)),
        Section(
            "worst",
            "Worst images" if all(run.images for run in runs) else "Worst frames",
            gallery=gallery.rows,
            notes=gallery.notes,
        ),
        Section("images", "Images", tables=_images(runs)),
        _training(runs),
        Section("facts", "What was run", tables=_facts(runs)),
    ]


def _overview(runs: Sequence[Run]) -> Table:
    known = [{**(run.trained_in.measures if run.trained_in else {}), **run.measures} for run in runs]
    names = sorted({name for measures in known for name in measures}, key=_rank)
    names = [name for name in names if name.startswith(("test/", "val/")) or name == "train/loss"]
    rows = []
    for name in names:
        values = [measures.get(name, math.nan) for measures in known]
        rows.append([Cell(_said(name), name), *_values(name, values)])
    all_runs = list(range(len(runs)))
    columns = [Column("measure"), *_value_columns("value" if len(runs) == 1 else "", all_runs)]
    return Table("", columns, rows, note=f"{_differences(all_runs)} {_OVERVIEW}".strip())


def _sequences(runs: Sequence[Run]) -> list[Table]:
    keyed = [{(name,): row for name, row in run.sequences.items()} for run in runs]
    curves = {
        (name,): sparkline([_line(k, run.name, curve) for k, run in enumerate(runs) if (curve := run.by_frame(name))])
        for name in dict.fromkeys(name for run in runs for name in run.sequences)
        if any(run.by_frame(name) for run in runs)
    }
    return _compared("Sequences", ("sequence",), keyed, _SCORES, {"J&F over time": curves})


def _objects(runs: Sequence[Run]) -> list[Table]:
    keys = list(dict.fromkeys(key for run in runs for key in run.objects))
    drawings = {
        f"{measure} over time": {
            key: sparkline(
                [_line(k, run.name, run.frames[key][measure]) for k, run in enumerate(runs) if key in run.frames]
            )
            for key in keys
            if any(key in run.frames for run in runs)
        }
        for measure in ("J", "F")
    }
    return _compared("Objects", ("sequence", "object"), [run.objects for run in runs], _SCORES, drawings)


def _classes(runs: Sequence[Run]) -> list[Table]:
    """Scores by class, in the order of the dataset; classes without any are left out."""
    names = dict.fromkeys(name for run in runs for name in run.categories)
    scored = [
        name
        for name in names
        if any(not math.isnan(run.categories.get(name, {}).get(of, math.nan)) for run in runs for of in _OF_CLASSES)
    ]
    keyed = [{(name,): run.categories[name] for name in scored if name in run.categories} for run in runs]
    missing = len(names) - len(scored)
    note = f"{missing} classes that the truth does not show are left out." if missing else ""
    return _compared("", ("class",), keyed, _OF_CLASSES, note=note, order=[(name,) for name in scored])


def _images(runs: Sequence[Run]) -> list[Table]:
    keyed = [{(name,): row for name, row in run.images.items()} for run in runs]
    tables = _compared("Images", ("image",), keyed, _OF_IMAGES)
    for table in tables:
        worst = sorted(table.rows, key=lambda row: row[1].key if row[1].text != "-" else math.inf)
        note = "" if len(worst) <= _MOST_IMAGES else f"The {_MOST_IMAGES} worst of {len(worst)}. "
        return [Table(table.title, table.columns, worst[:_MOST_IMAGES], note + table.note, folded=True)]
    return []


def _confusion(runs: Sequence[Run]) -> list[Table]:
    """Of each run a table: the share of a true class that is predicted as each class."""
    tables = []
    for number, run in enumerate(runs):
        if not run.confusion:
            continue
        names = list(run.confusion)
        rows = []
        for true, counts in run.confusion.items():
            total = sum(counts.values())
            cells = [_share_cell(100 * counts[name] / total if total else math.nan, name == true) for name in names]
            rows.append([Cell(true, true), *cells])
        columns = [
            Column("true class"),
            *(Column(name, "predicted as, % of the pixels of the true class") for name in names),
        ]
        who = f" of {letter(number)}, {run.name}" if len(runs) > 1 else ""
        tables.append(Table(f"Confusion{who}", columns, rows))
    return tables


def _share_cell(percent: float, is_right: bool) -> Cell:
    if math.isnan(percent):
        return Cell("-", -1.0)
    colour = "var(--good)" if is_right else "var(--bad)"
    style = Markup("background:color-mix(in srgb, {} {:.0f}%, transparent)").format(Markup(colour), 0.7 * percent)
    return Cell(f"{percent:.1f}" if percent >= 100 * _SHARE_SHOWN else "", percent, style=style)


def _tracks(tracks: Mapping[str, Sequence[TrackedScene | None]]) -> list[Table]:
    if not tracks:
        return []
    those = [k for k, scene in enumerate(next(iter(tracks.values()))) if scene is not None]
    rows, by_video = [], []
    for video, scenes in tracks.items():
        known = [scene for scene in scenes if scene is not None]
        for ours in zip(*(scene.truth for scene in known), strict=True):
            row = [Cell(video, video), Cell(ours[0].category, ours[0].category)]
            for one in ours:
                found = f"{one.found} {one.score:.2f}" if one.found else "nothing"
                row.append(Cell(found, found, tone="" if one.found == one.category else "bad"))
                row.append(Cell("", 100 * one.iou, drawing=strip(one.by_frame)))
            rows.append([*row, *_values("IoU", [100 * one.iou for one in ours])])
        found_of = [100 * sum(one.iou >= FOUND for one in scene.truth) / len(scene.truth) for scene in known]
        false_of = [float(scene.false) for scene in known]
        by_video.append([Cell(video, video), *_values("found", found_of), *_values("false tracks", false_of)])
    columns = [Column("video"), Column("category")]
    for k in those:
        group = letter(k) if len(those) > 1 else ""
        columns += [Column("found as", group, k), Column("IoU by frame", group, k)]
    columns += _value_columns("IoU of the track, %", those)
    measured = ("true tracks found, %", "false tracks")
    of_videos = [Column("video"), *(column for group in measured for column in _value_columns(group, those))]
    note = (
        "A true track and the result that overlaps it most, whatever its class and score. A track is found by an IoU "
        f"of {FOUND:g}; a result of a score of at least {MIN_SCORE:g} that finds none is a false track."
    )
    return [
        Table("True tracks", columns, rows, f"{note} {_differences(those)}".strip()),
        Table("Videos", of_videos, by_video),
    ]


def _training(runs: Sequence[Run]) -> Section:
    """What was logged while training, of the runs or of those whose checkpoints they tested."""
    trained = [run.trained_in or run for run in runs]
    names = sorted({name for run in trained for name in run.curves}, key=_rank)
    charts: list[Markup] = []
    more: list[Markup] = []
    for name in names:
        lines = [_of_steps(k, run.name, run.curves[name]) for k, run in enumerate(trained) if name in run.curves]
        place = charts if name.startswith("val/") or name == "train/loss" else more
        place.append(chart(name, lines))
    return Section("training", "Training", charts=charts, more_charts=more)


def _facts(runs: Sequence[Run]) -> list[Table]:
    of_runs = [Column(letter(k) if len(runs) > 1 else "value", run=k) for k in range(len(runs))]
    heads = [Column("setting"), *of_runs]
    facts = [
        {
            "folder": str(run.folder),
            **({"trained in": str(run.trained_in.folder)} if run.trained_in else {}),
            **run.environment,
        }
        for run in runs
    ]
    tables = [_texts("Runs", [Column("fact"), *of_runs], facts)]
    trained = [(run.trained_in or run).settings for run in runs]
    tested = [run.settings if run.trained_in else {} for run in runs]
    if len(runs) > 1:
        for title, settings in (
            ("Settings of the training that differ", trained),
            ("Settings of the test that differ", tested),
        ):
            if any(settings):
                tables.append(_texts(title, heads, _differing(settings)))
    tables.append(_texts("All settings of the training", heads, trained, folded=True))
    if any(tested):
        tables.append(_texts("All settings of the test", heads, tested, folded=True))
    return [table for table in tables if table.rows]


def _differing(settings: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    names = dict.fromkeys(name for of_run in settings for name in of_run)
    differing = [name for name in names if len({of_run.get(name) for of_run in settings}) > 1]
    return [{name: of_run[name] for name in differing if name in of_run} for of_run in settings]


def _texts(title: str, heads: Sequence[Column], texts: Sequence[Mapping[str, str]], *, folded: bool = False) -> Table:
    names = dict.fromkeys(name for of_run in texts for name in of_run)
    rows = [[Cell(name, name), *(Cell(text := of_run.get(name, "-"), text) for of_run in texts)] for name in names]
    return Table(title, heads, rows, folded=folded)


def _compared(
    title: str,
    heads: tuple[str, ...],
    runs: Sequence[Mapping[_Key, Row]],
    measures: Iterable[str],
    drawings: Mapping[str, Mapping[_Key, Markup]] | None = None,
    note: str = "",
    order: Sequence[_Key] | None = None,
) -> list[Table]:
    """A table of the rows of all runs, with their differences to the first run; none where there is no row.

    Args:
        title: Of the table.
        heads: Of the parts of a row's name.
        runs: Of each run, name -> measure -> value.
        measures: Those that are shown if any run has them, the most important first.
        drawings: Title -> name of a row -> what is drawn there.
        note: What is said above it.
        order: The names of the rows; by their numbers and letters where None.
    """
    those = [k for k, rows in enumerate(runs) if rows]
    keys = order
    if keys is None:
        keys = sorted({key for rows in runs for key in rows}, key=lambda key: [in_order(part) for part in key])
    if not keys:
        return []
    shown = [measure for measure in measures if any(measure in row for rows in runs for row in rows.values())]
    drawn = {head: of_rows for head, of_rows in (drawings or {}).items() if of_rows}
    columns = [Column(head) for head in heads]
    columns += [column for measure in shown for column in _value_columns(_said(measure), those)]
    columns += [Column(head) for head in drawn]
    body = []
    for key in keys:
        row = [Cell(part, float(part) if part.isdecimal() else part) for part in key]
        for measure in shown:
            row += _values(measure, [runs[k].get(key, {}).get(measure, math.nan) for k in those])
        row += [Cell("", "", drawing=of_rows.get(key, Markup(""))) for of_rows in drawn.values()]
        body.append(row)
    return [Table(title, columns, body, f"{_differences(those)} {note}".strip())]


def _value_columns(group: str, runs: Sequence[int]) -> list[Column]:
    """Columns of a measure: one for each of some runs, and from the second on its difference to the first of them."""
    if len(runs) == 1:
        return [Column(group, run=runs[0])]
    columns = []
    for k in runs:
        columns.append(Column(letter(k), group, k))
        if k != runs[0]:
            columns.append(Column(f"{letter(k)}\N{MINUS SIGN}{letter(runs[0])}", group))
    return columns


def _values(measure: str, values: Sequence[float]) -> list[Cell]:
    """The cells of `_value_columns`."""
    text = _format_of(measure)
    cells = []
    for k, value in enumerate(values):
        cells.append(Cell("-", -math.inf) if math.isnan(value) else Cell(text(value), value))
        if k:
            change = value - values[0]
            cells.append(Cell("-", -math.inf) if math.isnan(change) else _change(measure, change, text))
    return cells


def _change(measure: str, change: float, text: Callable[[float], str]) -> Cell:
    said = text(abs(change))
    if not any(digit in said for digit in "123456789"):
        return Cell("0", 0.0)
    worse = any(word in measure for word in _LESS_IS_BETTER) == (change > 0)
    tone = "" if any(word in measure for word in _NEUTRAL) else "bad" if worse else "good"
    return Cell(f"{'+' if change > 0 else chr(0x2212)}{said}", change, tone)


def _format_of(measure: str) -> Callable[[float], str]:
    if measure.endswith("parameters"):
        return lambda value: f"{value / 1e6:.2f} M"
    if measure.endswith(("switches", "false tracks")):
        return lambda value: f"{value:.0f}"
    if measure.endswith("memory_gb"):
        return lambda value: f"{value:.2f}"
    if measure.startswith("train/") or "cosine" in measure or measure.startswith("lr-"):
        return lambda value: f"{value:.4g}"
    return lambda value: f"{value:.1f}"


def _said(measure: str) -> str:
    return measure.replace("_", " ").replace("peak memory gb", "peak memory, GB").replace("FPS", "frames a second")


def _rank(name: str) -> tuple[int, int, str]:
    """The order of measures: tests, validations, trainings; in each the ones that papers print first."""
    stage = next((n for n, start in enumerate(("test/", "val/", "train/loss", "train/")) if name.startswith(start)), 4)
    first = ("J&F", "G", "AP", "mIoU", "J", "F", "AP50", "AP75", "AR1", "AR10")
    last = ("FPS", "peak_memory_gb", "parameters")
    measure = name.partition("/")[2]
    place = first.index(measure) if measure in first else 50 + last.index(measure) if measure in last else 20
    return stage, place, name


def _differences(runs: Sequence[int]) -> str:
    return "" if len(runs) < 2 else f"Differences are to {letter(runs[0])}; green is better."


def _line(run: int, name: str, curve: Curve) -> Line:
    return Line(run, np.arange(len(curve.values), dtype=np.float64), curve.values, name)


def _of_steps(run: int, name: str, curve: Curve) -> Line:
    steps = np.array([float(step) if step else math.nan for step in curve.places])
    return Line(run, steps, curve.values, name)
