"""The rows of all tables as commands, read and built as `experiment run` does before it trains."""

import functools
import logging
from pathlib import Path

import pytest

from lightning_vos import config_files
from lightning_vos.backbones import Backbone
from lightning_vos.commands.rehearsal import Rehearsal
from lightning_vos.experiments.files import PAPER, read_table, table_files
from lightning_vos.experiments.runs import row_runs

PAPERS = sorted(path.parent for path in (Path(__file__).parents[1] / "experiments").glob(f"*/{PAPER}"))
TABLES = [file for paper in PAPERS for file in table_files(paper)]
RESULTS = sorted({path.parent for path in (Path(__file__).parents[1] / "experiments").glob("*/*/*-seed*.json")})


class Rows:
    """Reads and builds the rows of tables, what they have in common once."""

    def __init__(self):
        self._rehearsal = Rehearsal()
        self._settings = {}  # command -> what was read
        self._tests = set()

    def build(self, file, *, is_synthetic):
        """Every training and prediction; of tests that read the same words over the same settings, one."""
        for run in row_runs(read_table(file), is_synthetic=is_synthetic):
            trainings, tests = run.training.checked(), run.checked()[len(run.training.checked()) :]
            for command in trainings:
                if tuple(command) not in self._settings:
                    self._settings[tuple(command)] = self._rehearsal.build(command)
            trained = self._settings[tuple(trainings[-1])]
            for command in tests:
                key = self._key(command, run.training.words[:-1], trained)
                if key not in self._tests:
                    self._tests.add(key)
                    self._rehearsal.build(command)

    @staticmethod
    def _key(command, trained_with, trained):
        """What the outcome of a test depends on that the training does not show: its words, and what they change."""
        words = command[1 + len(trained_with) :]
        of_data = ("--config", "data/", "--data.")  # configs in data/ have nothing else
        again = {word for word in trained_with if not word.startswith(of_data)}
        own = tuple(word for word in words if word not in again)
        others = [word for word in own if not word.startswith(of_data)]
        return (own, str(trained.data), *([str(trained.model), str(trained.trainer)] if others else []))


def built_quietly():
    """What a fixture yields: Lightning tells nothing; what was read or built of a file or a backbone is not again."""
    build, built = Backbone.__init__, {}

    @functools.wraps(build)
    def build_once(self, *args, **kwargs):
        key = (type(self), args, tuple(sorted(kwargs.items())))
        if key not in built:
            build(self, *args, **kwargs)
            built[key] = vars(self)
        vars(self).update(built[key])

    logging.disable(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "__init__", build_once)
        patch.setattr(config_files, "_split_includes", functools.cache(config_files._split_includes))
        yield Rows()
    logging.disable(logging.NOTSET)
