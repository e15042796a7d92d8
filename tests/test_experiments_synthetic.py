"""Every row of every table, made small, goes through the real command line, and its model is built."""

import pytest
from experiment_rows import TABLES, built_quietly

rows = pytest.fixture(scope="module")(built_quietly)


@pytest.mark.parametrize("file", TABLES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_small_rows_are_read_and_built(rows, file):
    rows.build(file, is_synthetic=True)
