"""Every row of every table goes through the real command line, and its model is built; READMEs are up to date."""

import pytest
from experiment_rows import PAPERS, RESULTS, TABLES, built_quietly

from lightning_vos.experiments.files import read_table
from lightning_vos.experiments.runs import row_runs
from lightning_vos.experiments.tables import rendered

rows = pytest.fixture(scope="module")(built_quietly)


def test_all_papers_are_there():
    assert [paper.name for paper in PAPERS] == ["hodor", "mavos", "qmvos", "taformer", "token_masking"]
    assert all((paper / "table2.yaml").is_file() for paper in PAPERS)


@pytest.mark.parametrize("file", TABLES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_rows_are_read_and_built(rows, file):
    rows.build(file, is_synthetic=False)


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_results_belong_to_the_rows_of_today(folder):
    found = [run.result() for run in row_runs(read_table(folder.with_suffix(".yaml")))]
    assert len([one for one in found if one is not None]) == len(list(folder.glob("*.json")))


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_readmes_are_up_to_date(paper):
    assert (paper / "README.md").read_text(encoding="utf-8") == rendered(paper), "run `make tables`"
