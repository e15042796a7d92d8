"""What runs left in their folders, as tables: scores, curves, settings, and what they ran on."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from lightning_vos.errors import ConfigError

Row = Mapping[str, float]
_TABLES = ("sequences.csv", "objects.csv", "frames.csv", "categories.csv", "classes.csv", "images.csv", "confusion.csv")
_SHOWN = 5  # entries of a folder in a message


class Curve(NamedTuple):
    """A number that was logged while training, or measured in each frame."""

    places: Sequence[str]  # steps, or names of frames
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """What a `fit` or a `test` left. All scores are in percent; NaN where there is none.

    Attributes:
        name: What the run is called beside others.
        folder: Where it is.
        config: What `config.yaml` holds; empty where there is none.
        environment: Versions and the device of a test.
        measures: The last value of everything that was logged, such as `test/J&F`.
        curves: What was logged at several steps, by its name.
        sequences: Sequence -> its scores.
        objects: (sequence, object) -> its scores.
        frames: (sequence, object) -> measure (J, F) -> its values by frame.
        categories: Class -> its scores, of instances or of label maps.
        images: Image -> its scores.
        confusion: True class -> predicted class -> pixels.
        trained_in: The run whose checkpoint was tested, if it is there.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, str]
    measures: Row
    curves: Mapping[str, Curve]
    sequences: Mapping[str, Row] = field(default_factory=dict)
    objects: Mapping[tuple[str, str], Row] = field(default_factory=dict)
    frames: Mapping[tuple[str, str], Mapping[str, Curve]] = field(default_factory=dict)
    categories: Mapping[str, Row] = field(default_factory=dict)
    images: Mapping[str, Row] = field(default_factory=dict)
    confusion: Mapping[str, Row] = field(default_factory=dict)
    trained_in: Run | None = None

    @property
    def settings(self) -> dict[str, str]:
        """The settings as the command line names them, `model.network.channels` -> `64`."""
        return dict(_flat(self.config, ""))

    @property
    def has_results(self) -> bool:
        """Whether it was tested, so that there is something to show of it."""
        return bool(self.sequences or self.images or self.categories)

    def by_frame(self, sequence: str) -> Curve | None:
        """J&F of a sequence in each frame, the mean over its objects; None where frames are not told."""
        together: defaultdict[str, list[float]] = defaultdict(list)
        for (name, _), curves in self.frames.items():
            if name == sequence:
                for frame, j, f in zip(curves["J"].places, curves["J"].values, curves["F"].values, strict=True):
                    together[frame].append((j + f) / 2)
        names = sorted(together, key=in_order)
        return Curve(names, np.array([np.mean(together[name]) for name in names])) if names else None


def run_names(folders: Sequence[Path]) -> list[str]:
    """What runs are called: by their recipe, the parent of `version_N`, and the version where recipes are the same."""
    absolute = [folder.absolute() for folder in folders]
    recipes = [path.parent.name if path.name.startswith("version_") else path.name for path in absolute]
    return [
        f"{recipe} {path.name}" if recipes.count(recipe) > 1 else recipe
        for recipe, path in zip(recipes, absolute, strict=True)
    ]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read what runs left; those that would be called alike are called by their paths.

    Raises:
        ConfigError: A folder holds no results, a file in it is broken, or a run is named twice.
    """
    resolved = [folder.resolve() for folder in folders]
    if twice := [folder for folder, path in zip(folders, resolved, strict=True) if resolved.count(path) > 1]:
        raise ConfigError(f"The run {twice[0]} is named more than once.\n  Name each run once.")
    names = run_names(folders)
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Read what a run left.

    Args:
        folder: Of the run, such as `runs/mavos_r50/version_1`.
        name: What it is to be called.

    Raises:
        ConfigError: It holds no results, or a file in it is broken.
    """
    logged = folder / "metrics.csv"
    if not logged.is_file() and not any((folder / table).is_file() for table in _TABLES):
        raise ConfigError(_without_results(folder))
    config = _config(folder / "config.yaml")
    curves = _logged(logged)
    return Run(
        name=name,
        folder=folder,
        config=config,
        environment=_environment(folder / "environment.json"),
        measures={measure: float(curve.values[-1]) for measure, curve in curves.items()},
        curves={measure: curve for measure, curve in curves.items() if not measure.startswith("test/")},
        sequences={sequence: row for (sequence,), row in _table(folder / "sequences.csv", 1).items()},
        objects={(sequence, one): row for (sequence, one), row in _table(folder / "objects.csv", 2).items()},
        frames=_frames(_table(folder / "frames.csv", 3)),
        categories={
            category: row
            for table in ("categories.csv", "classes.csv")
            for (category,), row in _table(folder / table, 1).items()
        },
        images={image: row for (image,), row in _table(folder / "images.csv", 1).items()},
        confusion={true: row for (true,), row in _table(folder / "confusion.csv", 1).items()},
        trained_in=_trained_in(folder, config),
    )


def in_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them: frame9 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name, flags=re.ASCII)]


def _without_results(folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no folder {folder}.\n  expected a run that fit or test left, such as runs/mavos_r50/version_1"
    versions = sorted((path.name for path in folder.glob("version_*")), key=in_order)
    entries = sorted(path.name for path in folder.iterdir())
    found = ", ".join(entries[:_SHOWN]) + (", ..." if len(entries) > _SHOWN else "")
    below = sorted({path.parent.relative_to(folder).as_posix() for path in folder.glob("*/version_*/metrics.csv")})
    if versions:
        advice = f"name one of its runs, such as {folder / versions[-1]}"
    elif below:
        advice = f"name some of its runs: {', '.join(below[:_SHOWN])}{', ...' if len(below) > _SHOWN else ''}"
    else:
        advice = "run fit or test first"
    return (
        f"{folder} holds no results of a run.\n  found {found or 'an empty folder'}\n"
        f"  expected metrics.csv, as `lightning_vos fit` and `test` leave it\n  {advice}"
    )


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}\n  expected YAML") from error
    return content if isinstance(content, dict) else {}


def _environment(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{path} cannot be read: {error}\n  expected JSON, as `lightning_vos test` writes it"
        ) from error
    return {str(name): str(value) for name, value in content.items()}


def _logged(path: Path) -> dict[str, Curve]:
    """What the logger wrote, by name; of a step that comes twice both values."""
    found: defaultdict[str, tuple[list[str], list[float]]] = defaultdict(lambda: ([], []))
    for row in _rows(path):
        for name, value in row.items():
            if name not in ("step", "epoch") and value:
                steps, values = found[name]
                steps.append(row.get("step") or "")
                values.append(_number(value, path))
    return {name: Curve(steps, np.array(values)) for name, (steps, values) in found.items()}


def _table(path: Path, keys: int) -> dict[tuple[str, ...], dict[str, float]]:
    """The rows of a CSV by their first columns."""
    table = {}
    for row in _rows(path):
        cells = list(row.items())
        table[tuple(value for _, value in cells[:keys])] = {name: _number(value, path) for name, value in cells[keys:]}
    return table


def _frames(table: Mapping[tuple[str, ...], Row]) -> dict[tuple[str, str], dict[str, Curve]]:
    places: defaultdict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for (sequence, one, frame), row in table.items():
        places[sequence, one][frame] = row
    return {
        key: {name: Curve(list(rows), np.array([row[name] for row in rows.values()])) for name in ("J", "F")}
        for key, rows in places.items()
    }


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(None in row or None in row.values() for row in rows):  # what DictReader makes of lines too long or short
        raise ConfigError(f"{path} is broken: a line has other columns than the first.\n  Run the test again.")
    return rows


def _number(text: str, path: Path) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError as error:
        raise ConfigError(f"{path} is broken: found {text!r}, expected a number.\n  Run the test again.") from error


def _trained_in(folder: Path, config: Mapping[str, Any]) -> Run | None:
    """The run whose checkpoint a test names, seen from here or from where the test was started."""
    checkpoint = config.get("ckpt_path")
    if not isinstance(checkpoint, str):
        return None
    for start in (Path(), *folder.absolute().parents[2:3]):
        trained = (start / checkpoint).parent.parent
        if (trained / "metrics.csv").is_file() and trained.resolve() != folder.resolve():
            return read_run(trained, run_names([trained])[0])
    return None


def _flat(value: Any, key: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [
            item
            for name, part in value.items()
            for item in _flat(part, key if name == "init_args" else f"{key}.{name}" if key else str(name))
        ]
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        return [item for number, part in enumerate(value) for item in _flat(part, f"{key}[{number}]")]
    return [(key, "null" if value is None else str(value))]
