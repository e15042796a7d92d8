"""Every row of every table, made small, goes through the real command line, and its model is built."""

import pytest
from experiment_rows import TABLES, built_quietly

rows = pytest.fixture(scope="module")(built_quietly)


# their own words are seen by the test of the rows themselves, what makes them small by one table of each paper
FIRST = {file.parent: file for file in reversed(TABLES)}
FILES = [pytest.param(file, marks=[] if file in FIRST.values() else pytest.mark.slow) for file in TABLES]


@pytest.mark.parametrize("file", FILES, ids=[f"{file.parent.name}-{file.stem}" for file in TABLES])
def test_small_rows_are_read_and_built(rows, file):
    rows.build(file, is_synthetic=True)
