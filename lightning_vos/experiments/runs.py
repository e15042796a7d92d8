"""The rows of a table as commands: what is trained once, what is tested, where it lies, and what came out.

A training lies in `runs/experiments/<paper>/trainings/<name>-seed<S>`, or, of a row that is trained by itself, in the
row's folder `runs/experiments/<paper>/<table>/<row>-seed<S>`; tests lie in the latter. Label maps that another training
is trained on lie in the run that predicts them. A result is a JSON beside the table, `<table>/<row>-seed<S>.json`. Rows
on rendered data have all of it under `runs/experiments/synthetic`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from lightning_vos.config_files import expand_config_options
from lightning_vos.errors import ConfigError, UserError
from lightning_vos.experiments.files import DEFAULT_TEST, Synthetic, Table, Training, Value, nearest, one_line
from lightning_vos.io.writing import written_beside

RUNS = Path("runs/experiments")
COST = "cost.json"

MASKS_TO_COME = "--data.train_masks=label_maps"
"""Stands in a checked command for label maps that another training will predict."""

_COST = "lightning_vos.callbacks.cost.CostWriter"
_PREDICTED = [
    "--data.predict_split=train",
    "--trainer.callbacks+=lightning_vos.callbacks.label_maps.LabelMapWriter",
]
_SURROUNDINGS = (
    *("device", "threads"),
    *("python", "torch", "lightning", "lightning_vos", "revision", "dirty", "machine"),
)


class Result(NamedTuple):
    """What a row gave with one seed."""

    measures: dict[str, float]  # TEST/MEASURE -> value
    submissions: dict[str, str]  # test -> the file that a server is to score
    device: str | None  # on which it was tested, where that is known


@dataclass(frozen=True)
class TrainingRun:
    """A training with one seed.

    Attributes:
        name: Of the training, or of the row that it belongs to.
        seed: Of everything random.
        words: Its options.
        folder: What it writes lies here.
        start: Whose last weights it starts from.
        masks: Whose last weights predict the label maps that it is trained on.
    """

    name: str
    seed: int
    words: list[str]
    folder: Path
    start: TrainingRun | None = None
    masks: TrainingRun | None = None

    @property
    def label(self) -> str:
        """What it is called where people read."""
        return f"{self.name}, seed {self.seed}"

    @property
    def recorded(self) -> list[str]:
        """What its weights belong to: its own words, and all that its first weights or its label maps come from."""
        before = [] if self.start is None else [f"{self.start.name}: {word}" for word in self.start.recorded]
        if self.masks is not None:
            before += [f"masks of {self.masks.name}: {word}" for word in self.masks.recorded]
        return [*self.words, *before]

    def command(self) -> list[str]:
        """What a person would type after `lightning_vos`, once what it needs is there."""
        needed = [] if self.start is None else [f"--model.weights={self.start.checkpoint()}"]
        if self.masks is not None:
            needed.append(f"--data.train_masks={self.masks.label_maps()}")
        return ["fit", *self.words, _save_dir(self.folder), *needed]

    def predict_command(self) -> list[str]:
        """What a person would type after `lightning_vos` to have the label maps of the training images."""
        folder = self.label_maps()
        own = [*_PREDICTED, f"--trainer.callbacks.folder={folder}"]
        return ["predict", *self.words, *own, _save_dir(folder), f"--ckpt_path={self.checkpoint()}"]

    def commands(self) -> list[list[str]]:
        """All that a person would type after `lightning_vos` to have its weights, in order."""
        before = [] if self.start is None else self.start.commands()
        if self.masks is not None:
            before += [*self.masks.commands(), self.masks.predict_command()]
        return [*before, self.command()]

    def checked(self) -> list[list[str]]:
        """These commands without what differs between seeds and moments, and is never wrong."""
        before = [] if self.start is None else self.start.checked()
        own = ["fit", *self.words[:-1]]
        if self.masks is not None:
            before += [*self.masks.checked(), ["predict", *self.masks.words[:-1], *_PREDICTED]]
            own.append(MASKS_TO_COME)
        return [*before, own]

    def is_done(self) -> bool:
        """Whether it came to its end, and its weights are still there.

        Raises:
            ConfigError: if it was trained with other words.
        """
        return _read(self.folder / "trained.json", self.recorded) is not None and bool(self._checkpoints())

    def is_begun(self) -> bool:
        """Whether it was stopped on its way, so that it goes on from its last checkpoint.

        Raises:
            ConfigError: if it was begun with other words.
        """
        began = self.folder / "started.json"
        if _read(began, self.recorded) is None:
            return False
        # an older one is of a training that came to its end
        return any(path.stat().st_mtime >= began.stat().st_mtime for path in self._checkpoints())

    def checkpoint(self) -> Path:
        """Its last weights; of a training to come, where they will be."""
        from lightning_vos.callbacks.run_files import CHECKPOINTS, LAST

        checkpoints = self._checkpoints()
        if checkpoints and (self.is_done() or self.is_begun()):
            return checkpoints[-1]
        runs = self.folder / expand_config_options(self.words).recipe
        versions = [path.name.removeprefix("version_") for path in runs.glob("version_*")]
        number = max((int(version) + 1 for version in versions if version.isdecimal()), default=0)
        return runs / f"version_{number}" / CHECKPOINTS / LAST

    def carry_out(self) -> None:
        """Train, or go on with what was stopped; first what it needs, if that is not done.

        Raises:
            ConfigError: if something was begun with other words.
            UserError: if a command fails.
        """
        if self.start is not None and not self.start.is_done():
            self.start.carry_out()
        if self.masks is not None:
            self.masks.predict()
        began = self.folder / "started.json"
        is_resumed = self.is_begun()
        if not began.exists():
            _write(began, {"words": self.recorded})
        seconds = _carry_out(self.label, [*self.command(), "--ckpt_path=last"] if is_resumed else self.command())
        facts = {"words": self.recorded, "seconds": None if is_resumed else seconds, **_cost(self.folder)}
        _write(self.folder / "trained.json", facts | _surroundings())
        began.unlink()

    def label_maps(self) -> Path:
        """The folder of its label maps, in the run of its last weights: other weights have another one."""
        return self.checkpoint().parents[1] / "label_maps"

    def predict(self) -> None:
        """Have the missing label maps of the training images predicted; first train, if that is not done.

        Raises:
            ConfigError: if something was begun with other words.
            UserError: if a command fails.
        """
        if not self.is_done():
            self.carry_out()
        record = self.label_maps() / "predicted.json"
        if _read(record, self.recorded) is None:
            _carry_out(self.label, self.predict_command())
            _write(record, {"words": self.recorded, **_surroundings()})

    def facts(self) -> dict[str, Any]:
        """What is known of how it was trained."""
        facts = _read(self.folder / "trained.json", self.recorded) or {}
        return {key: value for key, value in facts.items() if key != "words"}

    def _checkpoints(self) -> list[Path]:
        """The last ones of all runs so far, the newest last."""
        from lightning_vos.callbacks.run_files import CHECKPOINTS, LAST

        return sorted(self.folder.glob(f"*/*/{CHECKPOINTS}/{LAST}"), key=lambda path: path.stat().st_mtime)


@dataclass(frozen=True)
class RowRun:
    """A row with one seed.

    Attributes:
        name: Of the row.
        training: Whose last weights are tested.
        tests: Name -> what is read after the words of the training.
        folder: What its tests write lies here.
        file: The result.
    """

    name: str
    training: TrainingRun
    tests: dict[str, list[str]]
    folder: Path
    file: Path

    @property
    def label(self) -> str:
        """What it is called where people read."""
        return f"{self.name}, seed {self.training.seed}"

    @property
    def recorded(self) -> list[str]:
        """What its result belongs to."""
        return [*self.training.recorded, *(f"{test}: {word}" for test in self.tests for word in self.tests[test])]

    def test_command(self, test: str) -> list[str]:
        """What a person would type after `lightning_vos`, once the training is there."""
        folder = self._folder_of(test)
        own = folder == self.training.folder  # where `last` is looked for
        checkpoint = "last" if own else self.training.checkpoint()
        return ["test", *self.training.words, *self.tests[test], _save_dir(folder), f"--ckpt_path={checkpoint}"]

    def commands(self) -> list[list[str]]:
        """All that a person would type after `lightning_vos`, in order."""
        return [*self.training.commands(), *(self.test_command(test) for test in self.tests)]

    def checked(self) -> list[list[str]]:
        """Its commands without what differs between seeds and moments, and is never wrong."""
        tests = [["test", *self.training.words[:-1], *words] for words in self.tests.values()]
        return [*self.training.checked(), *tests]

    def result(self) -> Result | None:
        """What it gave; None if it was not run.

        Raises:
            ConfigError: if the file of the result cannot be read, or belongs to other words.
        """
        content = _read(self.file, self.recorded)
        if content is None:
            return None
        try:
            measures = {measure: float(value) for measure, value in content["measures"].items()}
            return Result(measures, dict(content.get("submissions", {})), content.get("device"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _no_result(self.file, error) from error

    def carry_out(self) -> Result:
        """Train what is not trained yet, test, and write the result.

        Raises:
            ConfigError: if something was begun with other words.
            UserError: if a command fails.
        """
        if not self.training.is_done():
            self.training.carry_out()
        done = {test: self._tested(test) for test in self.tests}
        fit = self.training.facts()
        content = {
            "row": self.name,
            "seed": self.training.seed,
            "measures": {measure: value for facts in done.values() for measure, value in facts["measures"].items()},
            "words": self.recorded,
            "seconds": {"fit": fit.pop("seconds", None), **{test: facts["seconds"] for test, facts in done.items()}},
            "data": {test: facts["data"] for test, facts in done.items()},
            "submissions": {test: facts["submission"] for test, facts in done.items() if facts["submission"]},
            "peak_memory_gb": {
                "fit": fit.pop("peak_memory_gb", None),
                **{test: facts.get("peak_memory_gb") for test, facts in done.items()},
            },
        }
        surroundings = {key: value for facts in done.values() for key, value in facts.items() if key in _SURROUNDINGS}
        _write(self.file, content | surroundings | {"trained": fit})
        for test in self.tests:
            self._record_of(test).unlink()
        result = self.result()
        assert result is not None  # written above
        return result

    def _tested(self, test: str) -> dict[str, Any]:
        """What a test gave: now, or before the row was stopped."""
        record, words = self._record_of(test), [*self.training.recorded, *self.tests[test]]
        before, checkpoint = _read(record), self.training.checkpoint()
        if before and before.get("words") == words and record.stat().st_mtime >= checkpoint.stat().st_mtime:
            return before
        folder = self._folder_of(test)
        seconds = _carry_out(self.label, self.test_command(test))
        run = _newest(folder, "metrics.csv")
        packed = None if run is None else run / "submission.zip"
        facts = {
            "words": words,
            "measures": {} if run is None else _measured(run / "metrics.csv", test),
            "seconds": seconds,
            "data": None if run is None else _scored(run),
            "submission": str(packed) if packed is not None and packed.is_file() else None,
            **_cost(folder),
            **_surroundings(),
        }
        _write(record, facts)
        return facts

    def _folder_of(self, test: str) -> Path:
        return self.folder if test == DEFAULT_TEST else self.folder / test

    def _record_of(self, test: str) -> Path:
        """The file that says that a test is done, until all are."""
        return self.folder / f"{test}.json"


def row_runs(table: Table, names: Sequence[str] = (), *, is_synthetic: bool = False) -> list[RowRun]:
    """The rows of a table for every seed, in the order in which they are run: after those that they start from.

    Args:
        table: Of which they are.
        names: Its rows to run, with those that they start from; all that can be run if there are none.
        is_synthetic: On rendered data, with the first seed alone.

    Raises:
        ConfigError: if there is no such row, or it is cited.
    """
    for name in names:
        if name not in table.rows:
            raise ConfigError(f"{table.file} has no row {name!r}.\n{nearest(name, table.runnable)}")
        if (method := table.rows[name].cited) is not None:
            raise ConfigError(f"Row {name} of {table.file} is cited ({method}): it is not built here and never run.")
    seeds = {name: table.seeds_of(name)[: 1 if is_synthetic else None] for name in table.runnable}
    order = dict.fromkeys([*table.seeds, *(seed for own in seeds.values() for seed in own)])
    pairs = dict.fromkeys(
        (member, seed)
        for seed in order
        for name in names or table.runnable
        if seed in seeds[name]
        for member in table.lineage(name)
    )
    return [row_run(table, name, seed, is_synthetic=is_synthetic) for name, seed in pairs]


def row_run(table: Table, name: str, seed: int, *, is_synthetic: bool = False) -> RowRun:
    """A row of a table with one seed."""
    row = table.rows[name]
    training = _training_of_row(table, name, seed, is_synthetic)
    synthetic = _synthetic(table, row.train) if is_synthetic else Synthetic()
    tests = {}
    for test, own in table.tests.items():
        words = _options(own.configs, own.overrides | row.test_overrides)
        small = _options(synthetic.configs, synthetic.overrides) if words else []  # those of the training stand last
        tests[test] = [*words, *small, *_options(synthetic.test.configs, synthetic.test.overrides)]
    folder = _root(table, is_synthetic) / table.file.stem / f"{name}-seed{seed}"
    results = folder.parent if is_synthetic else table.file.with_suffix("")
    return RowRun(name, training, tests, folder, results / f"{folder.name}.json")


def _training_of_row(table: Table, name: str, seed: int, is_synthetic: bool) -> TrainingRun:
    row = table.rows[name]
    if row.train is not None:
        return _shared_training(table, row.train, seed, is_synthetic)
    own = Training(configs=[*table.configs, *row.configs], overrides=table.overrides | row.overrides)
    folder = _root(table, is_synthetic) / table.file.stem / f"{name}-seed{seed}"
    start = None if row.start is None else _training_of_row(table, row.start, seed, is_synthetic)
    return TrainingRun(name, seed, _words(own, _synthetic(table, None) if is_synthetic else None, seed), folder, start)


def _shared_training(table: Table, name: str, seed: int, is_synthetic: bool) -> TrainingRun:
    training = table.paper.trainings[name]
    folder = _root(table, is_synthetic) / "trainings" / f"{name}-seed{seed}"
    start, masks = (
        None if other is None else _shared_training(table, other, seed, is_synthetic)
        for other in (training.start, training.masks)
    )
    words = _words(training, _synthetic(table, name) if is_synthetic else None, seed)
    return TrainingRun(name, seed, words, folder, start, masks)


def _root(table: Table, is_synthetic: bool) -> Path:
    return (RUNS / "synthetic" if is_synthetic else RUNS) / table.paper_name


def _synthetic(table: Table, training: str | None) -> Synthetic:
    """How a training of the paper is made small, or, without one, a row that is trained by itself."""
    own = table.synthetic if training is None else table.paper.trainings[training].synthetic
    return table.paper.synthetic if own is None else own


def _words(training: Training, synthetic: Synthetic | None, seed: int) -> list[str]:
    small = [] if synthetic is None else _options(synthetic.configs, synthetic.overrides)
    return [*_options(training.configs, training.overrides), *small, f"--seed_everything={seed}"]


def _options(configs: Iterable[str], overrides: Mapping[str, Value]) -> list[str]:
    words = [word for config in configs for word in ("--config", config)]
    for key, value in overrides.items():
        words.append(f"--{key}={value if isinstance(value, str) else json.dumps(value, default=str)}")
    return words


def _save_dir(folder: Path) -> str:
    return f"--trainer.logger.init_args.save_dir={folder}"


def _carry_out(label: str, words: list[str]) -> int:
    """Run a command; gives its seconds."""
    is_resumed = words[0] == "fit" and words[-1] == "--ckpt_path=last"
    note = ", from its last checkpoint" if is_resumed else ""
    Console().print(f"{label}: {words[0]}{note}", highlight=False, soft_wrap=True)
    started = time.time()
    status = finish([*words, f"--trainer.callbacks+={_COST}"])
    if status != 0:
        raise UserError(f"{label}: {words[0]} ended with status {status}, see above.")
    return round(time.time() - started)


def finish(words: list[str]) -> int:
    """Run `lightning_vos` in a process of its own and give the status that it ends with.

    Raises:
        KeyboardInterrupt: on Ctrl-C, once the process had the time to write its last checkpoint.
    """
    process = subprocess.Popen([sys.executable, "-m", "lightning_vos", *words])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise KeyboardInterrupt("stopped; the same `experiment run` goes on from here") from None


def _read(path: Path, words: list[str] | None = None) -> dict[str, Any] | None:
    """What a file holds that was written for words; None if there is no file."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        then = content.get("words", words)  # the oldest results have none
    except (ValueError, AttributeError) as error:
        raise _no_result(path, error) from error
    if words is not None and then != words:
        before, today = (
            shlex.join(word for word in one if word not in other)[:300] or "the same in another order"
            for one, other in ((then, words), (words, then))
        )
        raise ConfigError(
            f"{path} belongs to other settings than the experiment has today.\n  then: {before}\n  today: {today}\n"
            "Remove it to run again, or restore the settings."
        )
    return content


def _no_result(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path} is no result: {one_line(error)}.\nRemove it and run the row again.")


def _write(path: Path, content: dict[str, Any]) -> None:
    with written_beside(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _newest(folder: Path, name: str) -> Path | None:
    """The newest run under a folder that holds a file of that name."""
    files = sorted(folder.glob(f"*/version_*/{name}"), key=lambda path: path.stat().st_mtime)
    return files[-1].parent if files else None


def _measured(path: Path, test: str) -> dict[str, float]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        f"{test}/{key.removeprefix('test/')}": float(value)
        for row in rows
        for key, value in row.items()
        if value and key not in ("epoch", "step")
    }


def _scored(run: Path) -> dict[str, Any] | None:
    """The edition of the data that a test saw, by what it wrote: how much, and a checksum of names and frames."""
    results = run / "results.json"
    if results.is_file():
        entries = json.loads(results.read_text(encoding="utf-8"))
        names = sorted({f"{entry['video_name']} {len(entry['segmentations'])}" for entry in entries})
        count = len(names)
    else:
        masks = run / "masks"
        names = sorted(path.relative_to(masks).as_posix() for path in masks.rglob("*.png"))
        count = len({name.partition("/")[0] for name in names})
    checksum = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    return {"count": count, "checksum": checksum} if names else None


def _cost(folder: Path) -> dict[str, Any]:
    """What the newest run under a folder wrote of its device and memory."""
    run = _newest(folder, COST)
    return {} if run is None else json.loads((run / COST).read_text(encoding="utf-8"))


def _surroundings() -> dict[str, Any]:
    from importlib.metadata import version

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "lightning": version("lightning"),
        "lightning_vos": version("lightning-vos"),
        "revision": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain")),
        "machine": f"{platform.system()} {platform.machine()}",
    }
