"""The rows of all tables as commands, read and built as `experiment run` does before it trains."""

import logging
from pathlib import Path

from lightning_vos.commands.rehearsal import Rehearsal
from lightning_vos.experiments.files import PAPER, read_table, table_files
from lightning_vos.experiments.runs import row_runs

PAPERS = sorted(path.parent for path in (Path(__file__).parents[1] / "experiments").glob(f"*/{PAPER}"))
TABLES = [file for paper in PAPERS for file in table_files(paper)]


class Rows:
    """Reads and builds the rows of tables, what they have in common once."""

    def __init__(self):
        self._rehearsal = Rehearsal()
        self._seen = set()

    def build(self, file, *, is_synthetic):
        """Every training; of tests of trainings that differ in model and trainer alone, one: data is what they add."""
        for run in row_runs(read_table(file), is_synthetic=is_synthetic):
            for command in run.checked():
                if command[0] == "fit":
                    key = tuple(command)
                else:
                    key = tuple(word for word in command if not word.startswith(("--model.", "--trainer.")))
                    key += tuple(word for words in run.tests.values() for word in words if word.startswith("--model."))
                if key not in self._seen:
                    self._seen.add(key)
                    self._rehearsal.build(command)


def built_quietly():
    """What a fixture yields: Lightning tells of seeds and devices."""
    logging.disable(logging.INFO)
    yield Rows()
    logging.disable(logging.NOTSET)
