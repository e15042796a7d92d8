"""Comparisons that are files: their commands, their results, and what is wrong with a file."""

import json
import os
import shlex
from pathlib import Path

import pytest
import yaml

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
SHIPPED = sorted((Path(__file__).parents[2] / "experiments").rglob("*.yaml"))


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "configs": [str(TINY)],
        "overrides": {"trainer.max_steps": 2, "trainer.val_check_interval": 2, "data.settings": "{train: 1, val: 1}"},
        "seeds": [3, 4],
        "measures": ["test/J&F", "test/identity_switches"],
        "rows": {"append": {"configs": ["memory/append.yaml"]}, "wide": {"overrides": {"model.network.window": 7}}},
    }
    path = tmp_path / "memories.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_commands_are_what_a_person_would_type(command, comparison):
    printed = command("experiment", "run", str(comparison), "wide", "--print")
    assert printed.status == 0, printed.err
    fit, test, *others = printed.out.splitlines()
    assert fit.startswith(f"lightning_vos fit --config {TINY} --trainer.max_steps=2 "), fit
    assert "--model.network.window=7" in fit
    assert "--seed_everything=3" in fit
    assert test == fit.replace("vos fit", "vos test") + " --ckpt_path=last"
    assert len(others) == 2
    assert not (comparison.parent / "runs").exists()


def change(comparison, **keys):
    content = yaml.safe_load(comparison.read_text()) | keys
    comparison.write_text(yaml.safe_dump(content, sort_keys=False))


def store(comparison, name, **content):
    comparison.with_suffix("").mkdir(exist_ok=True)
    path = comparison.with_suffix("") / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def test_a_row_is_trained_and_tested_once(command, comparison):
    change(comparison, seeds=[3], measures=["test/J&F", "test/IoU"])
    finished = command("experiment", "run", str(comparison), "append")
    assert finished.status == 0, finished.err
    (path,) = comparison.with_suffix("").iterdir()
    result = json.loads(path.read_text())
    assert (path.name, result["row"], result["seed"]) == ("append-seed3.json", "append", 3)
    assert 0 <= result["measures"]["test/J&F"] <= 100
    assert {"torch", "revision", "seconds"} <= result.keys()
    assert "append-seed3.json lacks test/IoU: the test gave test/F, " in finished.err  # the result is kept
    assert "Mend `measures`" in finished.err
    path.write_text(json.dumps(result | {"measures": {"test/J&F": 12.25}}))
    again = command("experiment", "run", str(comparison), "append")  # there is nothing left to do
    assert "12.2 " in again.out
    assert "to 12.2" not in again.out  # one seed has no range
    assert "not run" in again.out
    change(comparison, overrides={"trainer.max_steps": 3})
    for verb in ("run", "list"):
        refused = command("experiment", verb, str(comparison))
        assert refused.status == 2
        assert "append-seed3.json belongs to other settings" in refused.err
        assert "today: --trainer.max_steps=3\n" in refused.err
        assert len(refused.err.splitlines()) <= 8


def test_a_row_that_was_killed_goes_on(command, comparison, monkeypatch):
    change(comparison, seeds=[3])
    folder = comparison.parent / "runs/experiments/memories/append-seed3/tiny/version_0"
    commands = []

    def killed(words):
        commands.append(words)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints/last.ckpt").touch()
        return -9

    def finished(words):
        commands.append(words)
        (folder / "metrics.csv").write_text("epoch,step,test/J&F,train/loss\n0,0,31.5,\n")
        return 0

    def run():
        return command("experiment", "run", str(comparison), "append")

    monkeypatch.setattr("lightning_vos.commands.experiment._finish", killed)
    assert "fit ended with status -9" in run().err
    change(comparison, measures=["test/J&F"], rows={"append": {"overrides": {"trainer.max_steps": 4}}})
    assert "started.json belongs to other settings" in run().err  # another row's checkpoint
    change(comparison, rows={"append": {"configs": ["memory/append.yaml"]}})
    monkeypatch.setattr("lightning_vos.commands.experiment._finish", finished)
    assert "31.5" in run().out
    (first, fit, test), commands[:] = commands, []
    assert fit == [*first, "--ckpt_path=last"]
    assert test == ["test", *fit[1:]]
    (path,) = comparison.with_suffix("").iterdir()
    assert json.loads(path.read_text())["measures"] == {"test/J&F": 31.5}
    path.unlink()
    os.utime(folder / "checkpoints/last.ckpt", (1, 1))
    run()
    assert commands == [first, test]  # what came to its end is not gone on with


@pytest.mark.parametrize(
    ("override", "said"),
    [({"model.network.windw": 7}, "windw"), ({"model.network.window": 4}, "window")],
    ids=["key", "value"],
)
def test_every_row_is_built_before_the_first_is_trained(command, comparison, override, said):
    change(comparison, rows={"append": None, "wide": {"overrides": override}})
    refused = command("experiment", "run", str(comparison))
    assert refused.status == 2
    assert refused.err.startswith("error: wide: ")
    assert said in refused.err
    assert len(refused.err.splitlines()) <= 8
    assert not (comparison.parent / "runs").exists()


def test_results_of_several_seeds_are_shown_with_their_spread(command, comparison):
    store(comparison, "wide-seed3", measures={"test/J&F": 50.0, "test/identity_switches": 3})
    store(comparison, "wide-seed4", measures={"test/J&F": 60.0})
    store(comparison, "wide-seed5", measures={"test/J&F": 99.0})  # no seed of the file
    shown = command("experiment", "list", str(comparison)).out
    (row,) = [line for line in shown.splitlines() if "wide" in line]
    assert row.split() == ["wide", "2", "55.0", "(50.0", "to", "60.0)", "3.0"]


def test_a_table_is_whole_at_80_columns(command, comparison, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"test/a_measure_with_a_long_name_{number}" for number in range(5)]
    change(comparison, measures=names)
    for seed in (3, 4):
        store(comparison, f"wide-seed{seed}", measures={name: 10.0 * seed for name in names})
    shown = command("experiment", "list", str(comparison)).out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert "test" not in shown
    assert shown.count("(30.0") == 5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_rows_are_parsed_by_the_real_command_line(command, path):
    printed = command("experiment", "run", str(path), "--print")
    assert printed.status == 0, printed.err
    first_seed = printed.out.splitlines()[: 2 * len(yaml.safe_load(path.read_text())["rows"])]
    for line in first_seed[::2]:
        _, *words = line.split()
        parsed = command(*words, "--print_config")
        assert parsed.status == 0, parsed.err


def test_what_is_wrong_is_said(command, comparison):
    for words, parts in (
        (("run", "nowhere.yaml"), ["nowhere.yaml is no comparison", "No such file"]),
        (("run", str(comparison), "other"), ["no rows ['other']", "append, wide"]),
    ):
        refused = command("experiment", *words)
        assert refused.status == 2
        assert all(part in refused.err for part in parts), refused.err
        assert len(refused.err.splitlines()) <= 8


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"rows": {"wide": {"config": ["demo.yaml"]}}},
            "row wide of {file} is no row: Option 'config' is not accepted",
        ),
        (
            {"rows": {"wide": {"configs": "demo.yaml"}}},
            "key \"configs\": Expected a <class 'list'>. Got value: demo.yaml",
        ),
        ({"rows": {"wide": [1]}}, "row wide of {file} is no row: it is [1]"),
        ({"rows": ["a", "b"]}, "Expected a <class 'dict'>. Got value: ['a', 'b']"),
        ({"seeds": 3}, "key \"seeds\": Expected a <class 'list'>. Got value: 3"),
        ({"seed": [3]}, "Option 'seed' is not accepted"),
        ({"measures": None}, "required: measures"),
    ],
)
def test_a_file_with_wrong_keys_or_types_is_refused(command, comparison, keys, said):
    change(comparison, **keys)
    refused = command("experiment", "run", str(comparison), "--print")
    assert refused.status == 2
    assert said.format(file=comparison) in refused.err
    assert ". The keys of a" in " ".join(refused.err.split())
    assert len(refused.err.splitlines()) <= 8


@pytest.mark.parametrize("content", [b"rows: [", b"rows: \xff", b"", b"text", b"3: 4"])
def test_a_file_that_is_no_comparison_is_refused(command, comparison, content):
    comparison.write_bytes(content)
    refused = command("experiment", "list", str(comparison))
    assert refused.status == 2
    assert refused.err.startswith(f"error: {comparison} is no comparison: ")
    assert len(refused.err.splitlines()) <= 8


def test_empty_keys_count_as_none_and_texts_stay_texts(command, comparison):
    row = {"configs": None, "overrides": {"a": "0123", "b": None, "c": [1, True], "d": 1e-5, "e": False}}
    change(comparison, overrides=None, rows={"plain": None, "set": row}, seeds=[0])
    printed = command("experiment", "run", str(comparison), "--print")
    assert printed.status == 0, printed.err
    plain, _, own, _ = (shlex.split(line) for line in printed.out.splitlines())
    save_dir = "--trainer.logger.init_args.save_dir=runs/experiments/memories"
    assert plain[2:] == ["--config", str(TINY), "--seed_everything=0", f"{save_dir}/plain-seed0"]
    assert own[4:-2] == ["--a=0123", "--b=null", "--c=[1, true]", "--d=1e-05", "--e=false"]


@pytest.mark.parametrize("text", ['{"measures": {"test/J', "[]", '{"measures": 3}', '{"row": "wide"}'])
def test_a_result_that_cannot_be_read_is_named(command, comparison, text):
    path = store(comparison, "wide-seed3")
    path.write_text(text)
    refused = command("experiment", "list", str(comparison))
    assert refused.status == 2
    assert f"{path} is no result" in refused.err
    assert "Remove it" in refused.err
    assert len(refused.err.splitlines()) <= 8
