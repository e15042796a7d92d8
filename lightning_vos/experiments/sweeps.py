"""Sweep files of Weights & Biases, read as W&B reads them: which points they try, and what an agent would execute.

A file is one that `wandb sweep` takes. What happens here follows wandb's agent and W&B's own search, so that a sweep
that runs locally is the one that an agent would run: parameters in the order of their names, values in Python's words.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import os
import platform
import random
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from lightning_vos.errors import ConfigError
from lightning_vos.io.writing import written_beside

Value = str | bool | int | float | list[Any] | dict[str, Any] | None
Method = Literal["grid", "random", "bayes"]
State = Literal["running", "finished", "failed"]

_KEYS = (
    *("name", "description", "project", "entity", "program", "command", "method", "metric", "parameters"),
    *("early_terminate", "run_cap", "controller", "kind", "apiVersion"),
)
_DEFINING = ("program", "command", "method", "metric", "parameters")  # what the trials of a sweep have in common
_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
_ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


def _natural(draw: random.Random, low: float, high: float) -> float:
    return math.exp(draw.uniform(low, high))


_Draw = Callable[[random.Random, Mapping[str, Any]], Value]
_DRAWS: Mapping[str, tuple[tuple[str, ...], _Draw]] = {  # distribution -> keys that it needs, how it is drawn from
    "constant": (("value",), lambda draw, p: p["value"]),
    "categorical": (("values",), lambda draw, p: draw.choices(p["values"], p.get("probabilities"))[0]),
    "int_uniform": (("min", "max"), lambda draw, p: draw.randint(p["min"], p["max"])),
    "uniform": (("min", "max"), lambda draw, p: draw.uniform(p["min"], p["max"])),
    "log_uniform": (("min", "max"), lambda draw, p: _natural(draw, p["min"], p["max"])),  # exponents of e
    "inv_log_uniform": (("min", "max"), lambda draw, p: 1 / _natural(draw, p["min"], p["max"])),
    "log_uniform_values": (("min", "max"), lambda draw, p: _natural(draw, math.log(p["min"]), math.log(p["max"]))),
    "normal": ((), lambda draw, p: draw.normalvariate(p.get("mu", 0), p.get("sigma", 1))),
    "log_normal": ((), lambda draw, p: draw.lognormvariate(p.get("mu", 0), p.get("sigma", 1))),
    "beta": (("a", "b"), lambda draw, p: draw.betavariate(p["a"], p["b"])),
}
_ALIASES = {"categorical_w_probabilities": "categorical", "inv_log_uniform_values": "log_uniform_values"}


@dataclass(frozen=True)
class Parameter:
    """One option that a sweep varies.

    Attributes:
        name: The option without its hyphens, such as `model.init_args.optimizer.init_args.lr`.
        distribution: As W&B names it, without the `q_` of steps.
        settings: What the file says of it.
        step: Values are multiples of it (`q`), if given.
    """

    name: str
    distribution: str
    settings: Mapping[str, Any]
    step: float | None = None

    def draw(self, draws: random.Random) -> Value:
        """A value by chance."""
        value = _DRAWS[self.distribution][1](draws, self.settings)
        return value if self.step is None else round(value / self.step) * self.step  # type: ignore[operator]

    def grid(self) -> list[Value]:
        """All values.

        Raises:
            ConfigError: There is no end to them.
        """
        low, high = self.settings.get("min"), self.settings.get("max")
        if self.distribution == "constant":
            return [self.settings["value"]]
        if self.distribution == "categorical" and "probabilities" not in self.settings:
            return list(self.settings["values"])
        if self.distribution == "int_uniform" and low is not None and high is not None:
            return list(range(low, high + 1))
        if self.distribution == "uniform" and self.step is not None and low is not None and high is not None:
            return [low + n * self.step for n in range(math.ceil((high - low) / self.step))]
        raise ConfigError(
            f"parameter {self.name}: a grid needs `value`, `values`, whole numbers from `min` to `max`,\n"
            "  or `distribution: q_uniform`; found {}".format(dict(self.settings))
        )


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        file: Where it stands.
        stated: What it says.
        parameters: In the order of their names, as W&B has them.
    """

    file: Path
    stated: Mapping[str, Any]
    parameters: tuple[Parameter, ...]

    @property
    def method(self) -> Method:
        """How points are chosen."""
        return self.stated["method"]

    @property
    def metric(self) -> str:
        """The logged name that trials are compared by."""
        return str(self.stated["metric"]["name"])

    @property
    def is_maximized(self) -> bool:
        """Whether more of the metric is better; W&B takes less for better where the file does not say."""
        return bool(self.stated["metric"].get("goal") == "maximize")

    @property
    def defining(self) -> dict[str, Any]:
        """What its trials have in common."""
        return {key: self.stated[key] for key in _DEFINING if key in self.stated}

    @property
    def folder(self) -> Path:
        """Where its trials are kept: `runs/sweeps/<paper>-<file>`, without the paper if it is of none."""
        paper = f"{self.file.resolve().parents[1].name}-" if self.file.resolve().parent.name == "sweeps" else ""
        return Path("runs/sweeps") / f"{paper}{self.file.stem}"

    def is_reached_by(self, value: float) -> bool:
        """Whether a value of the metric is what the file has as `target`, at which a sweep ends."""
        target = self.stated["metric"].get("target")
        return target is not None and (value >= target if self.is_maximized else value <= target)

    def is_better(self, one: float, other: float) -> bool:
        """Whether one value of the metric is better than another."""
        return one > other if self.is_maximized else one < other

    def command(self, point: Mapping[str, Value], json_file: Path) -> list[str]:
        """What `wandb agent` executes for a point.

        Args:
            point: Parameter -> value.
            json_file: What `${args_json_file}` stands for; it is not written here.
        """
        flags = {name: f"{name}={value}" for name, value in point.items()}
        words = {
            "env": [] if platform.system() == "Windows" else ["/usr/bin/env"],
            "interpreter": ["python"],
            "program": [self.stated["program"]],
            "args": [f"--{flag}" for flag in flags.values()],
            "args_no_hyphens": list(flags.values()),
            "args_no_equals": [word for name, value in point.items() for word in (f"--{name}", str(value))],
            "args_no_boolean_flags": [
                f"--{name}" if value is True else f"--{flags[name]}"
                for name, value in point.items()
                if value is not False
            ],
            "args_append_hydra": [f"+{flag}" for flag in flags.values()],
            "args_override_hydra": [f"++{flag}" for flag in flags.values()],
            "args_json": [json.dumps(dict(point))],
            "args_json_file": [str(json_file)],
        }
        found: list[str] = []
        for part in self.stated.get("command") or _COMMAND:
            word = _ENVIRONMENT.sub(lambda match: os.environ.get(match[1], match[1]), str(part))
            # what an agent does not know, it leaves out
            found += words.get(word[2:-1], []) if word.startswith("${") and word.endswith("}") else [word]
        return found

    def point(self, number: int, others: Sequence[Trial]) -> dict[str, Value] | None:
        """What a trial tries; None behind the end of a grid.

        Args:
            number: Of the trial, from 1 on: on it alone depend grid and random.
            others: What was tried before: on it depends bayes, which is done by W&B's own package.

        Raises:
            ConfigError: The package is missing.
        """
        if self.method == "bayes":
            return self._likely(number, others)
        if self.method == "random":
            draws = random.Random(number)
            return {parameter.name: parameter.draw(draws) for parameter in self.parameters}
        points = itertools.product(*(parameter.grid() for parameter in self.parameters))
        values = next(itertools.islice(points, number - 1, None), None)
        names = (parameter.name for parameter in self.parameters)
        return None if values is None else dict(zip(names, values, strict=True))

    def _likely(self, number: int, others: Sequence[Trial]) -> dict[str, Value]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pydantic, about how the package states its classes
                import numpy as np
                import sweeps
        except ImportError as error:
            raise ConfigError(
                f"{self.file}: `method: bayes` needs the package sweeps\n"
                "  pip install 'lightning-vos[sweeps]', or `method: random`, which needs nothing"
            ) from error
        runs = [
            sweeps.SweepRun(
                config={name: {"value": value} for name, value in trial.point.items()},
                state=sweeps.RunState(trial.state),
                summaryMetrics={self.metric: trial.history[-1]} if trial.history else {},
                sampledHistory=[{self.metric: value} for value in trial.history],
            )
            for trial in others
        ]
        random.seed(number)
        np.random.seed(number)
        run = sweeps.next_run({key: self.stated[key] for key in ("method", "metric", "parameters")}, runs)
        return {name: getattr(one["value"], "item", lambda v=one["value"]: v)() for name, one in run.config.items()}


@dataclass(frozen=True)
class Trial:
    """One point of a sweep, and what came of it.

    Attributes:
        number: From 1 on.
        point: Parameter -> value.
        words: What is executed, less what lets it go on.
        state: A trial that is running while no sweep is was stopped.
        history: The metric as it was logged, in order. The last value counts, which is what W&B's summary holds.
        reason: Why it failed.
        seconds: That it took; None where it was stopped on the way.
    """

    number: int
    point: dict[str, Value]
    words: list[str]
    state: State = "running"
    history: list[float] = field(default_factory=list)
    reason: str = ""
    seconds: float | None = None


def read_sweep(file: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        ConfigError: It cannot be read, or W&B or the command line could not do what it says.
    """

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{file} is no sweep: {message}")

    try:
        stated = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        refuse(" ".join(str(error).split())[:300])
    if not isinstance(stated, dict):
        refuse("expected keys such as `method:` and `parameters:`")
    for key in stated:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(_KEYS)}"
            refuse(f"it says `{key}`\n  {hint}")
    if missing := [key for key in ("program", "method", "metric", "parameters") if key not in stated]:
        refuse(f"it lacks `{'`, `'.join(missing)}`")
    if stated["method"] not in ("grid", "random", "bayes"):
        refuse(f"method {stated['method']!r}, expected grid, random or bayes")
    metric = stated["metric"]
    if not isinstance(metric, dict) or "name" not in metric or metric.get("goal") not in (None, "minimize", "maximize"):
        refuse(f"metric {metric!r}, expected {{name: val/J&F, goal: maximize}} or minimize")
    if not isinstance(stated.get("command") or [], list):
        refuse(f"command {stated['command']!r}, expected a list of words")
    if not isinstance(stated["parameters"], dict) or not stated["parameters"]:
        refuse("`parameters` must name at least one option")
    try:
        parameters = [_parameter(str(name), one) for name, one in sorted(stated["parameters"].items())]
        if stated["method"] == "grid":
            for parameter in parameters:
                parameter.grid()
    except ConfigError as error:
        refuse(str(error))
    return Sweep(file, stated, tuple(parameters))


def _parameter(name: str, settings: Any) -> Parameter:
    if not isinstance(settings, dict):
        raise ConfigError(f"parameter {name}: {settings!r}, expected `value`, `values`, or `min` and `max`")
    if "parameters" in settings:
        raise ConfigError(
            f"parameter {name} holds others, which an agent hands on as one dictionary\n"
            f"  write them with dots: `{name}.{next(iter(settings['parameters'] or ['key']))}:`"
        )
    stated = settings.get("distribution") or _implied(settings)
    distribution = stated.removeprefix("q_")
    distribution = _ALIASES.get(distribution, distribution)
    if distribution not in _DRAWS:
        known = ", ".join([*_DRAWS, *_ALIASES])
        raise ConfigError(f"parameter {name}: distribution {stated!r}\n  expected one of {known},\n  or q_ before one")
    if missing := [key for key in _DRAWS[distribution][0] if key not in settings]:
        raise ConfigError(f"parameter {name} of distribution {stated} lacks `{'`, `'.join(missing)}`: {settings}")
    if texts := [key for key in ("min", "max", "q", "mu", "sigma") if isinstance(settings.get(key), str)]:
        raise ConfigError(
            f"parameter {name}: {texts[0]} is the text {settings[texts[0]]!r}, expected a number\n"
            "  YAML takes 1e-5 for a text and 1.0e-5 for a number"
        )
    if "min" in settings and not settings["min"] < settings["max"]:
        raise ConfigError(f"parameter {name}: min {settings['min']} must be below max {settings['max']}")
    if stated.endswith("_values") and settings["min"] <= 0:
        raise ConfigError(f"parameter {name}: {stated} needs a min above 0, found {settings['min']}")
    return Parameter(name, distribution, settings, settings.get("q", 1) if stated.startswith("q_") else None)


def _implied(settings: Mapping[str, Any]) -> str:
    if "value" in settings:
        return "constant"
    if "values" in settings:
        return "categorical"
    is_whole = all(isinstance(settings.get(key), int) for key in ("min", "max"))
    return "int_uniform" if is_whole else "uniform"


class Record:
    """The trials of a sweep on disk: `trial-<number>/trial.json`, each replaced in one move.

    Args:
        sweep: The sweep.
        words: Options that every trial has beside its point.

    Raises:
        ConfigError: The folder holds trials of another sweep, or what cannot be read.
    """

    def __init__(self, sweep: Sweep, words: Sequence[str]) -> None:
        self.folder = sweep.folder
        self._content = json.loads(json.dumps({**sweep.defining, "words": list(words)}, default=str))
        self.trials: dict[int, Trial] = {}
        if not self._path.is_file():
            return
        before = self._load(self._path)
        if changed := [key for key in {**before, **self._content} if before.get(key) != self._content.get(key)]:
            then, today = (json.dumps(one.get(changed[0])) for one in (before, self._content))
            raise ConfigError(
                f"{self.folder} holds trials of another sweep than {sweep.file} is today: it differs in "
                f"{', '.join(changed)}.\n"
                f"  {changed[0]}, then: {then[:200]}\n  today: {today[:200]}\n"
                "Restore the file or the words, rename the file, or move that folder away to begin again."
            )
        for path in sorted(self.folder.glob("trial-*/trial.json")):
            try:
                trial = Trial(**self._load(path))
            except TypeError as error:
                raise ConfigError(f"{path} is no trial: {error}.\nMove {path.parent} away to run it again.") from error
            self.trials[trial.number] = trial

    @property
    def _path(self) -> Path:
        return self.folder / "sweep.json"

    def place(self, number: int) -> Path:
        """The folder of a trial."""
        return self.folder / f"trial-{number:03}"

    def write(self, trial: Trial) -> None:
        """Keep a trial."""
        if not self._path.is_file():
            self._write(self._path, self._content)
        self._write(self.place(trial.number) / "trial.json", vars(trial))
        self.trials[trial.number] = trial

    @staticmethod
    def _write(path: Path, content: Mapping[str, Any]) -> None:
        with written_beside(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")

    @staticmethod
    def _load(path: Path) -> dict[str, Any]:
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}.\nMove {path.parent} away to begin again.") from error
