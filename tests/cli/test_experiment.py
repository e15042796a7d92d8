"""Tables that are files: their commands, their results, and what is wrong with a file."""

import json
import os
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from lightning_vos.experiments import runs

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "configs": [str(TINY)],
        "overrides": {"trainer.max_steps": 2, "trainer.val_check_interval": 2, "data.settings": "{train: 1, val: 1}"},
        "seeds": [3, 4],
        "columns": {"J&F": "test/J&F", "switches": "test/identity_switches"},
        "rows": {"append": {"configs": ["memory/append.yaml"]}, "wide": {"overrides": {"model.network.window": 7}}},
    }
    path = tmp_path / "mavos/memories.yaml"
    path.parent.mkdir()
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
    assert not Path("runs").exists()


def change(comparison, **keys):
    content = yaml.safe_load(comparison.read_text()) | keys
    comparison.write_text(yaml.safe_dump(content, sort_keys=False))


def store(comparison, name, **content):
    comparison.with_suffix("").mkdir(exist_ok=True)
    path = comparison.with_suffix("") / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def test_a_row_is_trained_and_tested_once(command, comparison, monkeypatch):
    """The test in a process of its own, as all are; the training here, which is sooner done."""
    finish = runs.finish

    def finish_fit_here(words):
        return command(*words).status if words[0] == "fit" else finish(words)

    monkeypatch.setattr(runs, "finish", finish_fit_here)
    change(comparison, seeds=[3], columns={"J&F": "test/J&F", "IoU": "test/IoU"})
    finished = command("experiment", "run", str(comparison), "append")
    assert finished.status == 0, finished.err
    (path,) = comparison.with_suffix("").iterdir()
    result = json.loads(path.read_text())
    assert (path.name, result["row"], result["seed"]) == ("append-seed3.json", "append", 3)
    assert 0 <= result["measures"]["test/J&F"] <= 100
    assert {"torch", "revision", "dirty", "device", "threads"} <= result.keys()
    assert result["seconds"].keys() == {"fit", "test"}
    assert 0.1 < result["peak_memory_gb"]["fit"] < 10
    assert result["data"]["test"]["count"] == 1
    assert result["trained"]["revision"] == result["revision"]
    assert "append-seed3.json lacks test/IoU: the tests gave test/F, " in finished.err  # the result is kept
    assert "Mend `columns`" in finished.err
    path.write_text(json.dumps(result | {"measures": {"test/J&F": 12.25}}))
    again = command("experiment", "run", str(comparison), "append")  # there is nothing left to do
    assert "12.2 " in again.out
    assert "to 12.2" not in again.out  # one seed has no range
    assert "ran" in again.out
    change(comparison, overrides={"trainer.max_steps": 3})
    for verb in ("run", "list"):
        refused = command("experiment", verb, str(comparison))
        assert refused.status == 2
        assert "append-seed3.json belongs to other settings" in refused.err
        assert "today: --trainer.max_steps=3\n" in refused.err
        assert len(refused.err.splitlines()) <= 8


def test_a_row_that_was_killed_goes_on(command, comparison, monkeypatch):
    change(comparison, seeds=[3])
    folder = Path("runs/experiments/mavos/memories/append-seed3/tiny/version_0")
    commands = []

    def killed(words):
        commands.append(words[:-1])  # the last one has what the run cost written
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints/last.ckpt").touch()
        return -9

    def finished(words):
        commands.append(words[:-1])
        (folder / "metrics.csv").write_text("epoch,step,test/J&F,train/loss\n0,0,31.5,\n")
        return 0

    def run():
        return command("experiment", "run", str(comparison), "append")

    monkeypatch.setattr("lightning_vos.experiments.runs.finish", killed)
    assert "fit ended with status -9" in run().err
    change(comparison, columns={"J&F": "test/J&F"}, rows={"append": {"overrides": {"trainer.max_steps": 4}}})
    assert "started.json belongs to other settings" in run().err  # another row's checkpoint
    change(comparison, rows={"append": {"configs": ["memory/append.yaml"]}})
    monkeypatch.setattr("lightning_vos.experiments.runs.finish", finished)
    assert "31.5" in run().out
    (first, fit, test), commands[:] = commands, []
    assert fit == [*first, "--ckpt_path=last"]
    assert test == ["test", *fit[1:]]
    (path,) = comparison.with_suffix("").iterdir()
    assert json.loads(path.read_text())["measures"] == {"test/J&F": 31.5}
    path.unlink()
    run()
    assert commands == [test]  # what is trained stays trained
    commands.clear()
    path.unlink()
    Path("runs/experiments/mavos/memories/append-seed3/trained.json").unlink()
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
    assert not Path("runs").exists()


def test_data_are_looked_for_before_the_first_row_is_trained(command, comparison):
    change(comparison, overrides=None, rows={"elsewhere": {"configs": ["data/lvos.yaml"]}})
    refused = command("experiment", "run", str(comparison))
    assert refused.status == 2
    assert refused.err.startswith("error: elsewhere: LVOS")
    assert refused.err.splitlines()[-1].startswith("A row takes no options: put or link its data sets")
    assert not Path("runs").exists()


CHAIN = {
    "cycle": {"start": "folded", "overrides": {"model.network.window": 7}},
    "folded": {"start": "base", "configs": ["memory/append.yaml"]},
    "base": {"seeds": [3, 4, 5]},
}


def last_checkpoint(name, version):
    return f"runs/experiments/mavos/memories/{name}/tiny/version_{version}/checkpoints/last.ckpt"


SETTINGS = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.settings={train: 1, val: 1}"]


def mark(name, *words):
    """Say that a row was trained."""
    Path(f"runs/experiments/mavos/memories/{name}/trained.json").write_text(json.dumps({"words": words}))


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
    mark("base-seed3", "--config", str(TINY), *SETTINGS, "--seed_everything=3")
    assert last_checkpoint("base-seed3", 0) in command("experiment", "run", str(comparison), "cycle", "--print").out


def test_a_row_goes_on_from_the_last_weights_of_another(command, comparison, monkeypatch):
    far = {"model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}}
    rows = {"cycle": {"start": "base", "overrides": {"trainer.max_steps": 1}, "seeds": [3]}, "base": {"overrides": far}}
    change(comparison, rows=rows, columns={"J&F": "test/J&F"})
    ran = []

    def finish(words):
        ran.append((words[0], words[-2]))
        return 0 if words[0] == "test" else command(*words, "--trainer.limit_val_batches=0").status

    monkeypatch.setattr("lightning_vos.experiments.runs.finish", finish)
    finished = command("experiment", "run", str(comparison), "cycle")
    assert finished.status == 0, finished.err
    test = ("test", "--ckpt_path=last")
    own_folder = "--trainer.logger.init_args.save_dir=runs/experiments/mavos/memories/base-seed3"
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
    monkeypatch.setattr("lightning_vos.experiments.runs.finish", lambda words: commands.append(words) or 0)
    os.utime(trained("base-seed3", 0), (1, 1))
    trained("base-seed3", 2)
    mark("base-seed3", "--config", str(TINY), *SETTINGS, "--seed_everything=3")
    store(comparison, "base-seed3", measures={"test/J&F": 50.0})
    run = command("experiment", "run", str(comparison), "folded")
    assert run.status == 0, run.err
    assert [words[0] for words in commands] == ["fit", "test"]
    assert commands[0][-2] == f"--model.weights={last_checkpoint('base-seed3', 2)}"
    change(comparison, rows=CHAIN | {"base": {"overrides": {"trainer.max_steps": 4}}})
    (comparison.with_suffix("") / "base-seed3.json").unlink()
    refused = command("experiment", "list", str(comparison))  # other weights to start from
    assert "folded-seed3.json belongs to other settings" in refused.err
    assert "today: 'base: --trainer.max_steps=4'\n" in refused.err


def test_weights_that_are_gone_are_trained_anew(command, comparison, monkeypatch):
    change(comparison, rows=CHAIN, seeds=[3])
    commands = []
    monkeypatch.setattr("lightning_vos.experiments.runs.finish", lambda words: commands.append(words) or 0)
    store(comparison, "base-seed3", measures={"test/J&F": 50.0})
    run = command("experiment", "run", str(comparison), "folded")
    assert run.status == 0, run.err
    assert [words[0] for words in commands] == ["fit", "fit", "test"]
    assert "base, seed 3: fit" in run.out


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"a": {"start": "b"}, "b": {"start": "a"}}, "Rows start from each other: a from b from a."),
        ({"a": {"start": "a"}}, "Rows start from each other: a from a."),
        ({"a": {"start": "c"}, "b": None}, "Row a starts from c, which is not there."),
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
    assert row.split() == ["wide", "55.0", "(50.0", "to", "60.0)", "-", "ran"]


def test_results_of_several_seeds_are_shown_with_their_spread(command, comparison):
    store(comparison, "wide-seed3", measures={"test/J&F": 50.0, "test/identity_switches": 3})
    store(comparison, "wide-seed4", measures={"test/J&F": 60.0})
    store(comparison, "wide-seed5", measures={"test/J&F": 99.0})  # no seed of the file
    shown = command("experiment", "list", str(comparison)).out
    (row,) = [line for line in shown.splitlines() if "wide" in line]
    assert row.split() == ["wide", "55.0", "(50.0", "to", "60.0)", "3.0", "ran"]


def test_a_table_is_whole_at_80_columns(command, comparison, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"test/a_measure_with_a_long_name_{number}" for number in range(5)]
    change(comparison, columns={name.removeprefix("test/"): name for name in names})
    for seed in (3, 4):
        store(comparison, f"wide-seed{seed}", measures={name: 10.0 * seed for name in names})
    shown = command("experiment", "list", str(comparison)).out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert shown.count("(30.0") == 5


def test_what_is_wrong_is_said(command, comparison):
    for words, parts in (
        (("run", "nowhere.yaml"), ["nowhere.yaml is not there", "shows all tables"]),
        (("run", str(comparison), "other"), ["no row 'other'", "append, wide"]),
        (("run", str(comparison), "wid"), ["no row 'wid'", "Did you mean wide?"]),
    ):
        refused = command("experiment", *words)
        assert refused.status == 2
        assert all(part in refused.err for part in parts), refused.err
        assert len(refused.err.splitlines()) <= 8


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rows": {"wide": {"config": ["demo.yaml"]}}}, "unknown key 'config' in rows.wide, did you mean 'configs'?"),
        ({"rows": {"wide": {"configs": "demo.yaml"}}}, "rows.wide.configs is 'demo.yaml'.\nExpected a valid list."),
        ({"rows": {"wide": [1]}}, "rows.wide is [1]."),
        ({"rows": ["a", "b"]}, "rows is ['a', 'b'].\nExpected a valid dictionary."),
        ({"rows": {"a": {"published": {"J&F": "85"}}}}, "rows.a.published.J&F is '85'.\nExpected a number."),
        ({"seeds": 3}, "seeds is 3.\nExpected a valid list."),
        ({"seed": [3]}, "unknown key 'seed', did you mean 'seeds'?"),
        ({"columns": None}, "key 'columns' is missing."),
        ({"columns": None, "colums": {"J&F": "test/J&F"}}, "unknown key 'colums', did you mean 'columns'?"),
        ({"tests": {"long": {"override": {}}}}, "unknown key 'override' in tests.long, did you mean 'overrides'?"),
    ],
)
def test_a_file_with_wrong_keys_or_types_is_refused(command, comparison, keys, said):
    change(comparison, **keys)
    refused = command("experiment", "run", str(comparison), "--print")
    assert refused.status == 2
    assert f"error: {comparison} is no table: {said}" in refused.err
    assert "The keys of a" in refused.err
    assert len(refused.err.splitlines()) <= 8


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rows": {"a": {"train": "r50"}}}, "row a takes training 'r50', which is not in paper.yaml."),
        ({"rows": {"a": {"train": "r50", "cited": "CFBI"}}}, "row a has `train` and `cited`."),
        ({"rows": {"a": {"cited": "CFBI", "start": "b"}, "b": None}}, "row a has `cited` and `start`."),
        ({"rows": {"a": {"cited": "CFBI", "seeds": [1]}}}, "row a is cited and never run, but has `seeds`."),
        ({"rows": {"a": {"cited": "CFBI"}, "b": {"start": "a"}}}, "Row b starts from a, which is cited"),
        ({"rows": {"a": None}, "configs": []}, "row a has nothing to run."),
        ({"rows": {"A/b": None}}, "row 'A/b' names files."),
        (
            {"rows": {"a": {"published": {"J": 3}}}},
            "row a names column 'J', which is not there.\nThere are: J&F, switches.",
        ),
        ({"tolerance": {"IoU": 3}}, "`tolerance` names column 'IoU', which is not there."),
        (
            {"ratios": {"J&F": "apend"}},
            "column J&F is compared with row 'apend', which is not there.\nDid you mean append?",
        ),
        ({"columns": {"J": "val/J"}}, "column J is of test 'val', which is not there.\nThere are: test."),
        ({"columns": {"J": "J"}}, "column J is 'J'.\nExpected TEST/MEASURE"),
    ],
)
def test_what_contradicts_itself_is_refused(command, comparison, keys, said):
    change(comparison, **keys)
    refused = command("experiment", "list", str(comparison))
    assert refused.status == 2
    assert refused.err.startswith(f"error: {comparison}: {said}"), refused.err
    assert len(refused.err.splitlines()) <= 8


@pytest.mark.parametrize("content", [b"rows: [", b"rows: \xff", b"", b"text", b"3: 4"])
def test_a_file_that_is_no_table_is_refused(command, comparison, content):
    comparison.write_bytes(content)
    refused = command("experiment", "list", str(comparison))
    assert refused.status == 2
    assert refused.err.startswith(f"error: {comparison} is no table: ")
    assert len(refused.err.splitlines()) <= 8


def test_empty_keys_count_as_none_and_texts_stay_texts(command, comparison):
    row = {"configs": None, "overrides": {"a": "0123", "b": None, "c": [1, True], "d": 1e-5, "e": False}}
    change(comparison, overrides=None, rows={"plain": None, "set": row}, seeds=[0])
    printed = command("experiment", "run", str(comparison), "--print")
    assert printed.status == 0, printed.err
    plain, _, own, _ = (shlex.split(line) for line in printed.out.splitlines())
    save_dir = "--trainer.logger.init_args.save_dir=runs/experiments/mavos/memories"
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
