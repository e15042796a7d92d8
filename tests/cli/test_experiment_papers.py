"""A paper as files: trainings that tables share, published numbers beside ours, READMEs."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

TINY = str(Path(__file__).parents[1] / "end_to_end" / "tiny.yaml")
PAPER = {
    "title": "A paper",
    "notes": ["Measured by others."],
    "trainings": {
        "static": {"configs": [TINY], "synthetic": {"overrides": {"trainer.max_steps": 1}}},
        "main": {"configs": [TINY], "overrides": {"model.network.window": 7}, "start": "static"},
    },
    "files": [{"name": "net", "host": "a drive", "file": "net.pth", "command": "lightning_vos test", "number": "85.6"}],
    "synthetic": {"overrides": {"trainer.max_steps": 2}, "test": {"overrides": {"data.workers": 0}}},
}
TABLE = {
    "title": "Table 1: all of it",
    "notes": ["Odd values (sic)."],
    "tests": {"short": {"overrides": {"data.year": 2016}}, "long": {"configs": ["memory/append.yaml"]}},
    "columns": {"J&F": "short/J&F", "FPS": "long/FPS", "M": "short/parameters"},
    "ratios": {"FPS": "base"},
    "tolerance": {"J&F": 0.5, "FPS": 0.2},
    "rows": {
        "other": {"cited": "CFBI (2020)", "published": {"J&F": 81.9}},
        "base": {"train": "main", "published": {"J&F": 84.5, "FPS": 20.0}},
        "flipped": {
            "train": "main",
            "label": "with flips",
            "test_overrides": {"model.flip": True},
            "published": {"J&F": 85.6, "FPS": 10.0},
        },
    },
}
ROOT = "runs/experiments/mavos"


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("experiments/mavos")
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# Words\n\n<!-- tables -->\nold\n<!-- /tables -->\n\nMore words.\n")
    write(folder / "paper.yaml", PAPER)
    write(folder / "table1.yaml", TABLE)
    return folder / "table1.yaml"


def write(path, content):
    path.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def commands(monkeypatch):
    """The commands that were run, less the folder; each writes what its verb does."""
    ran = []

    def finish(words):
        folder = Path(next(word for word in words if "save_dir=" in word).partition("=")[2]) / "tiny"
        run = folder / f"version_{len(list(folder.glob('*')))}"
        ran.append((words[0], str(folder.parent.relative_to("runs/experiments"))))
        if words[0] == "fit":
            (run / "checkpoints").mkdir(parents=True)
            (run / "checkpoints/last.ckpt").touch()
        else:
            (run / "masks/dogs").mkdir(parents=True)
            (run / "masks/dogs/00000.png").touch()
            (run / "metrics.csv").write_text("epoch,step,test/J&F,test/FPS,test/parameters\n0,2,84.2,8.0,37200000\n")
            (run / "cost.json").write_text('{"device": "a GPU", "threads": 1, "peak_memory_gb": 3.5}')
        return ran[-1] in finish.failing

    finish.failing = set()
    monkeypatch.setattr("lightning_vos.experiments.runs.finish", finish)
    monkeypatch.setattr("lightning_vos.commands.experiment.check", lambda runs: None)
    return ran, finish.failing


def result(table, row):
    return json.loads((table.with_suffix("") / f"{row}-seed0.json").read_text())


def store(table, row, **content):
    folder = table.with_suffix("")
    folder.mkdir(exist_ok=True)
    (folder / f"{row}-seed0.json").write_text(json.dumps(content))


def test_a_training_is_printed_once_and_tests_name_its_weights(command, table):
    printed = command("experiment", "run", str(table), "--print")
    assert printed.status == 0, printed.err
    static, main, *tests = (shlex.split(line)[1:] for line in printed.out.splitlines())
    weights = {
        name: f"{ROOT}/trainings/{name}-seed0/tiny/version_0/checkpoints/last.ckpt" for name in ("static", "main")
    }
    save_dir = "--trainer.logger.init_args.save_dir="
    assert static == ["fit", "--config", TINY, "--seed_everything=0", f"{save_dir}{ROOT}/trainings/static-seed0"]
    assert main[-2:] == [f"{save_dir}{ROOT}/trainings/main-seed0", f"--model.weights={weights['static']}"]
    shared = ["test", *main[1:-2]]
    assert tests == [
        [*shared, *words, f"{save_dir}{ROOT}/table1/{place}", f"--ckpt_path={weights['main']}"]
        for words, place in (
            (["--data.year=2016"], "base-seed0/short"),
            (["--config", "memory/append.yaml"], "base-seed0/long"),
            (["--data.year=2016", "--model.flip=true"], "flipped-seed0/short"),
            (["--config", "memory/append.yaml", "--model.flip=true"], "flipped-seed0/long"),
        )
    ]


def test_a_training_is_shared_by_rows_and_tables(command, table, commands):
    ran, _ = commands
    write(
        table.with_name("table2.yaml"),
        TABLE | {"ratios": {}, "rows": {"a": {"train": "main"}, "b": {"train": "static"}}},
    )
    for name in ("table1.yaml", "table2.yaml"):
        finished = command("experiment", "run", str(table.with_name(name)))
        assert finished.status == 0, finished.err
    assert ran[:4] == [
        ("fit", "mavos/trainings/static-seed0"),
        ("fit", "mavos/trainings/main-seed0"),
        ("test", "mavos/table1/base-seed0/short"),
        ("test", "mavos/table1/base-seed0/long"),
    ]
    assert [verb for verb, _ in ran[4:]] == ["test"] * 6
    found = result(table, "flipped")
    assert found["measures"]["short/J&F"] == found["measures"]["long/J&F"] == 84.2
    assert found["words"][-4:] == ["short: --model.flip=true", "long: --config", *found["words"][-2:]]
    assert found["seconds"] == {"fit": 0, "short": 0, "long": 0}
    assert found["peak_memory_gb"] == {"fit": None, "short": 3.5, "long": 3.5}
    assert (found["device"], found["threads"]) == ("a GPU", 1)
    assert found["data"]["short"]["count"] == 1


def test_tests_that_are_done_are_not_done_again(command, table, commands):
    ran, failing = commands
    failing.add(("test", "mavos/table1/base-seed0/long"))
    assert "base, seed 0: test ended with status" in command("experiment", "run", str(table), "base").err
    failing.clear()
    ran.clear()
    assert command("experiment", "run", str(table), "base").status == 0
    assert ran == [("test", "mavos/table1/base-seed0/long")]
    assert set(result(table, "base")["measures"]) >= {"short/J&F", "long/J&F"}


def test_a_changed_training_is_refused(command, table, commands):
    assert command("experiment", "run", str(table), "base").status == 0
    trainings = PAPER["trainings"] | {"static": {"configs": [TINY], "overrides": {"model.network.window": 9}}}
    write(table.with_name("paper.yaml"), PAPER | {"trainings": trainings})
    (table.with_suffix("") / "base-seed0.json").unlink()
    refused = command("experiment", "run", str(table), "base")
    assert refused.status == 2
    assert f"{ROOT}/trainings/main-seed0/trained.json belongs to other settings" in refused.err
    assert len(refused.err.splitlines()) <= 8


def test_ours_stands_beside_what_is_published(command, table, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    store(table, "base", measures={"short/J&F": 84.1, "long/FPS": 8.0, "short/parameters": 37.2e6})
    store(table, "flipped", measures={"short/J&F": 84.1, "long/FPS": 3.5})
    shown = command("experiment", "list", str(table)).out
    rows = {line.split("  ")[0].strip(): " ".join(line.split()) for line in shown.splitlines()}
    assert rows["CFBI (2020)"] == "CFBI (2020) 81.9 cited"
    assert rows["base"] == "base 84.5 | 84.1 | -0.4 1.00 (20.0) | 1.00 (8.0) 37.2 reproduced"
    assert "with flips" in rows  # below the name, which `run` takes
    assert rows["flipped"] == "flipped 85.6 | 84.1 | -1.5 0.50 (10.0) | 0.44 (3.5) | -12 % - off: J&F"
    assert "Odd values (sic)." in shown
    store(table, "flipped", measures={"long/FPS": 3.5}, device="a GPU")  # the baseline ran elsewhere
    assert "0.50 (10.0) | 3.5 " in command("experiment", "list", str(table)).out


def test_a_submission_is_no_score(command, table, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    store(table, "base", measures={"long/FPS": 8.0}, submissions={"short": "runs/x/submission.zip"})
    shown = command("experiment", "list", str(table)).out
    (row,) = [line for line in shown.splitlines() if "submission" in line]
    assert row.split()[-2:] == ["submission:", "runs/x/submission.zip"]


def test_readmes_hold_the_tables_between_their_markers(command, table):
    write(table.with_name("own.yaml"), {"configs": [TINY], "columns": {"J": "test/J"}, "rows": {"a": None}})
    store(table, "base", measures={"short/J&F": 84.1, "long/FPS": 8.0})
    readme = table.with_name("README.md")
    finished = command("experiment", "tables")
    assert finished.out == f"{readme} is rendered anew.\n"
    assert readme.read_text().splitlines() == [
        "# Words",
        "",
        "<!-- tables -->",
        "",
        "- Measured by others.",
        "- In each column: published | ours | difference.",
        "",
        "### [Table 1: all of it](table1.yaml)",
        "",
        "| row | J&F | FPS (ratio) | M | status |",
        "| --- | --- | --- | --- | --- |",
        "| CFBI (2020) | 81.9 |  |  | cited |",
        r"| base | 84.5 \| 84.1 \| -0.4 | 1.00 (20.0) \| 1.00 (8.0) | - | reproduced |",
        r"| with flips | 85.6 \| not run | 0.50 (10.0) \| not run | not run | not run |",
        "",
        "- Odd values (sic).",
        "",
        "### Published files",
        "",
        "| name | where | file | command | published |",
        "| --- | --- | --- | --- | --- |",
        "| `net` | a drive | net.pth | `lightning_vos test` | 85.6 |",
        "",
        "<!-- /tables -->",
        "",
        "More words.",
    ]
    assert command("experiment", "tables").out == ""  # rendering what is rendered changes nothing


def test_a_wide_table_is_shown_test_by_test(command, table, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    columns = {f"{test[0]}{number}": f"{test}/{number}" for test in ("short", "long") for number in range(4)}
    rows = {"other": {"cited": "CFBI", "published": {"l0": 81.9}}, "base": {"train": "main", "published": {"s0": 1.5}}}
    write(table, {"tests": {"short": {}, "long": {}}, "columns": columns, "rows": rows})
    assert command("experiment", "tables").status == 0
    readme = table.with_name("README.md").read_text().partition("### Published files")[0]
    assert [line for line in readme.splitlines() if line.startswith("|") and "---" not in line] == [
        "| row | s0 | s1 | s2 | s3 | status |",
        r"| base | 1.5 \| not run | not run | not run | not run | not run |",
        "| row | l0 | l1 | l2 | l3 | status |",
        "| CFBI | 81.9 |  |  |  | cited |",
        "| base | not run | not run | not run | not run | not run |",
    ]
    shown = [line.split() for line in command("experiment", "list", str(table)).out.splitlines()]
    assert ["row", "s0", "s1", "s2", "s3", "status"] in shown
    assert ["row", "l0", "l1", "l2", "l3", "status"] in shown


def test_a_table_of_the_paper_without_numbers_is_rendered(command, table):
    write(table.with_name("table4.yaml"), {"configs": [TINY], "columns": {"J": "test/J"}, "rows": {"a": None}})
    assert command("experiment", "tables").status == 0
    readme = table.with_name("README.md").read_text()
    assert "### [table4](table4.yaml)\n\n| row | J | status |\n| --- | --- | --- |\n| a | not run | not run |" in readme


def test_rendered_data_stands_apart(command, table, commands):
    ran, _ = commands
    finished = command("experiment", "run", str(table), "base", "--synthetic")
    assert finished.status == 0, finished.err
    assert ran[-1] == ("test", "synthetic/mavos/table1/base-seed0/long")
    assert not table.with_suffix("").exists()
    content = json.loads(Path("runs/experiments/synthetic/mavos/table1/base-seed0.json").read_text())
    assert "static: --trainer.max_steps=1" in content["words"]
    assert "--trainer.max_steps=2" in content["words"]
    assert content["words"][-2:] == ["long: --trainer.max_steps=2", "long: --data.workers=0"]
    assert "84.2" not in command("experiment", "list", str(table)).out
    shown = command("experiment", "list", str(table), "--synthetic").out
    assert "on rendered data" in shown
    assert "84.2" in shown
    assert "84.5" not in shown


def test_all_tables_are_listed(command, table, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    store(table, "base", measures={"short/J&F": 84.1})
    shown = command("experiment", "list")
    (row,) = [line for line in shown.out.splitlines() if "table1" in line]
    assert row.split()[-3:] == ["2", "1", "1"]  # to run, cited, with results
    monkeypatch.setenv("COLUMNS", "80")
    assert f"{table} " in command("experiment", "list").out
    store(table, "base", measures=3)
    shown = command("experiment", "list")
    assert shown.status == 0, shown.err
    assert next(line.split()[-1] for line in shown.out.splitlines() if "table1" in line) == "?"
    assert "base-seed0.json is no result" in shown.out.replace("\n", "")
    table.unlink()
    assert "experiments holds no tables" in command("experiment", "list").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "experiments/mavos/table1.yaml", "other"), "Row other of experiments/mavos/table1.yaml is cited"),
        (("list", "experiments/mavos/paper.yaml"), "Name one of the tables beside it: table1.yaml."),
        (("tables", "experiments/mavos"), "experiments/mavos holds no papers."),
    ],
)
def test_what_is_wrong_is_said(command, table, words, said):
    refused = command("experiment", *words)
    assert refused.status == 2
    assert said in refused.err


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"trainings": {"a": {"config": ["x"]}}},
            " is no paper: unknown key 'config' in trainings.a, did you mean 'configs'?",
        ),
        ({"trainings": {"a": {"start": "b"}}}, ": Training a starts from b, which is not there.\nThere are: a."),
        ({"trainings": {"a": {"start": "a"}}}, ": Trainings start from each other: a from a."),
        ({"trainings": {"R-50": None}}, ": training 'R-50' names files."),
        ({"synthetic": {"tests": {}}}, " is no paper: unknown key 'tests' in synthetic, did you mean 'test'?"),
        ({"files": [{"name": "x"}]}, " is no paper: key 'host' is missing in files.0."),
    ],
)
def test_a_paper_that_cannot_be_is_refused(command, table, keys, said):
    write(table.with_name("paper.yaml"), PAPER | keys)
    refused = command("experiment", "list", str(table))
    assert refused.status == 2
    assert refused.err.startswith(f"error: {table.with_name('paper.yaml')}{said}"), refused.err


def test_a_readme_without_a_place_is_refused(command, table):
    table.with_name("README.md").write_text("Words.")
    assert "has no place for tables.\nAdd the lines <!-- tables -->" in command("experiment", "tables").err
