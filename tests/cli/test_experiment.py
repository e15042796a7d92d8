"""Comparisons that are files: their commands, their results, and what is wrong with a file."""

import json
import os
import shlex
from pathlib import Path

import pytest
import torch
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


CHAIN = {
    "cycle": {"start": "folded", "overrides": {"model.network.window": 7}},
    "folded": {"start": "base", "configs": ["memory/append.yaml"]},
    "base": {"seeds": [3, 4, 5]},
}


def last_checkpoint(name, version):
    return f"runs/experiments/memories/{name}/tiny/version_{version}/checkpoints/last.ckpt"


def trained(name, version):
    path = Path(last_checkpoint(name, version))
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_a_row_that_starts_from_another_is_printed_after_it(command, comparison):
    change(comparison, rows=CHAIN)
    printed = command("experiment", "run", str(comparison), "cycle", "--print")
    assert printed.status == 0, printed.err
    lines = [shlex.split(line) for line in printed.out.splitlines()]
    starts = [word for line in lines for word in line if word.startswith("--model.weights=")]
    names = ["base-seed3", "folded-seed3", "cycle-seed3", "base-seed4", "folded-seed4", "cycle-seed4"]
    assert [line[1] for line in lines] == ["fit", "test"] * 6
    assert [words[-1].rpartition("/")[2] for words in (line[:-1] for line in lines[1::2])] == names
    assert starts == [f"--model.weights={last_checkpoint(names[i], 0)}" for i in (0, 1, 3, 4)]
    assert [line[-1] for line in lines[2:5:2]] == starts[:2]  # of fit alone
    trained("base-seed3", 0)  # is no result yet: the next training has a folder of its own
    assert last_checkpoint("base-seed3", 1) in command("experiment", "run", str(comparison), "cycle", "--print").out
    store(comparison, "base-seed3", measures={})
    assert last_checkpoint("base-seed3", 0) in command("experiment", "run", str(comparison), "cycle", "--print").out


def test_a_row_goes_on_from_the_last_weights_of_another(command, comparison, monkeypatch):
    far = {"model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}}
    rows = {"cycle": {"start": "base", "overrides": {"trainer.max_steps": 1}, "seeds": [3]}, "base": {"overrides": far}}
    change(comparison, rows=rows, measures=[])
    ran = []

    def finish(words):
        ran.append((words[0], words[-1]))
        return 0 if words[0] == "test" else command(*words, "--trainer.limit_val_batches=0").status

    monkeypatch.setattr("lightning_vos.commands.experiment._finish", finish)
    finished = command("experiment", "run", str(comparison), "cycle")
    assert finished.status == 0, finished.err
    test = ("test", "--ckpt_path=last")
    own_folder = "--trainer.logger.init_args.save_dir=runs/experiments/memories/base-seed3"
    start = f"--model.weights={last_checkpoint('base-seed3', 0)}"
    assert ran == [("fit", own_folder), test, ("fit", start), test]
    states = [
        torch.load(last_checkpoint(f"{name}-seed3", 0), weights_only=True)["state_dict"] for name in ("base", "cycle")
    ]
    before, after = (state["network.assignment.norm.bias"] for state in states)
    assert 0 < (after - before).abs().max() < 0.01 < 0.05 < before.abs().min()  # a fresh one is 0
    result = json.loads((comparison.with_suffix("") / "cycle-seed3.json").read_text())
    assert "base: --seed_everything=3" in result["words"]
    assert "version_" not in str(result["words"])


def test_the_newest_training_of_a_row_is_started_from(command, comparison, monkeypatch):
    change(comparison, rows=CHAIN, seeds=[3])
    commands = []
    monkeypatch.setattr("lightning_vos.commands.experiment._finish", lambda words: commands.append(words) or 0)
    os.utime(trained("base-seed3", 0), (1, 1))
    trained("base-seed3", 2)
    store(comparison, "base-seed3", measures={"test/J&F": 50.0})
    run = command("experiment", "run", str(comparison), "folded")
    assert run.status == 0, run.err
    assert [words[0] for words in commands] == ["fit", "test"]
    assert commands[0][-1] == f"--model.weights={last_checkpoint('base-seed3', 2)}"
    change(comparison, rows=CHAIN | {"base": {"overrides": {"trainer.max_steps": 4}}})
    (comparison.with_suffix("") / "base-seed3.json").unlink()
    refused = command("experiment", "list", str(comparison))  # other weights to start from
    assert "folded-seed3.json belongs to other settings" in refused.err
    assert "today: 'base: --trainer.max_steps=4'\n" in refused.err


def test_a_row_cannot_start_from_a_checkpoint_that_is_gone(command, comparison):
    change(comparison, rows=CHAIN, seeds=[3])
    path = store(comparison, "base-seed3", measures={"test/J&F": 50.0})
    refused = command("experiment", "run", str(comparison), "cycle")
    assert refused.status == 2
    assert "folded, seed 3 starts from base, which has a result but no checkpoint in runs/" in refused.err
    assert f"remove {path.parent.name}" in refused.err.replace(f"{comparison.parent}/", "")
    assert not (comparison.parent / "runs").exists()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"a": {"start": "b"}, "b": {"start": "a"}}, "Rows start from each other: a from b from a."),
        ({"a": {"start": "a"}}, "Rows start from each other: a from a."),
        ({"a": {"start": "c"}, "b": None}, "Row a starts from c, but the rows are a, b."),
        ({"a": {"start": "b"}, "b": {"seeds": [4]}}, "Row a has seeds [3], but b, which it starts from, has not."),
    ],
)
def test_rows_that_start_from_nothing_are_refused(command, comparison, rows, said):
    change(comparison, rows=rows)
    for verb in ("run", "list"):
        refused = command("experiment", verb, str(comparison))
        assert refused.status == 2
        assert f"error: {comparison}: {said}" in refused.err
        assert len(refused.err.splitlines()) <= 8


def test_a_row_has_seeds_of_its_own(command, comparison):
    change(comparison, rows={"wide": {"seeds": [9, 4]}, "append": None})
    printed = command("experiment", "run", str(comparison), "--print")
    folders = [shlex.split(line)[-1].rpartition("/")[2] for line in printed.out.splitlines()[::2]]
    assert folders == ["append-seed3", "wide-seed4", "append-seed4", "wide-seed9"]
    for seed, value in ((4, 50.0), (9, 60.0), (3, 99.0)):
        store(comparison, f"wide-seed{seed}", measures={"test/J&F": value})
    shown = command("experiment", "list", str(comparison)).out
    (row,) = [line for line in shown.splitlines() if "wide" in line]
    assert row.split()[:6] == ["wide", "2", "55.0", "(50.0", "to", "60.0)"]


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
        _, *words = shlex.split(line)
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
