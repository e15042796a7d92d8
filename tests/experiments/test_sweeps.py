"""Sweep files: what they try, what an agent would execute, and that they run here as far as they were left."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lightning_vos.errors import ConfigError
from lightning_vos.experiments.sweeps import Trial, read_sweep

POINT = {"a.lr": 1e-5, "b": True, "c": False, "d": None, "e": [1, 2.5], "f": {"k": "v"}, "g": "x y"}
ARGS = ["--a.lr=1e-05", "--b=True", "--c=False", "--d=None", "--e=[1, 2.5]", "--f={'k': 'v'}", "--g=x y"]
# what `wandb agent` of wandb 0.31 executes for each form
GOLDEN = {
    "${env}": ["/usr/bin/env"],
    "${interpreter}": ["python"],
    "${program}": ["train.py"],
    "${args}": ARGS,
    "${args_no_hyphens}": [word.removeprefix("--") for word in ARGS],
    "${args_no_boolean_flags}": ["--a.lr=1e-05", "--b", *ARGS[3:]],
    "${args_no_equals}": [part for word in ARGS for part in word.split("=", 1)],
    "${args_append_hydra}": [word.replace("--", "+") for word in ARGS],
    "${args_override_hydra}": [word.replace("--", "++") for word in ARGS],
    "${args_json}": [json.dumps(POINT)],
    "${args_json_file}": ["FILE"],
    "${args_unheard_of}": [],
    "${envvar:SWEEP_GPU}": ["cuda 1"],
    "--device=${envvar:SWEEP_GPU}/${envvar:SWEEP_NOT_SET}": ["--device=cuda 1/SWEEP_NOT_SET"],
    "a ${args} b": ["a ${args} b"],
    7: ["7"],
}


def write(path, **keys):
    stated = {"program": "train.py", "method": "grid", "metric": {"name": "val/J&F", "goal": "maximize"}}
    stated["parameters"] = {"a": {"values": [1, 2]}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(stated | keys, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def agent():
    """wandb's own agent, which hands on what it would execute: (command of the sweep, point) -> words."""
    wandb_agent = pytest.importorskip("wandb.wandb_agent")
    executed = []

    class Process:
        def __init__(self, command, **_):
            executed.append(command)

    def execute(command, point):
        one = wandb_agent.Agent(api=None, queue=None)
        one._sweep_command = list(command)
        args = {name: {"value": value} for name, value in point.items()}
        one._command_run({"run_id": "run1", "program": "train.py", "args": args})
        return executed[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wandb_agent, "AgentProcess", Process)
        yield execute


@pytest.fixture
def variables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWEEP_GPU", "cuda 1")
    monkeypatch.delenv("SWEEP_NOT_SET", raising=False)
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets the last two
        monkeypatch.setenv(name, str(tmp_path))


@pytest.mark.parametrize("form", GOLDEN, ids=str)
def test_an_agent_executes_the_same_words(tmp_path, variables, agent, form):
    sweep = read_sweep(write(tmp_path / "lr.yaml", command=["run", form]))
    ours = sweep.command(POINT, Path("FILE"))
    assert ours == ["run", *GOLDEN[form]]
    theirs = agent(["run", form], POINT)
    if form == "${args_json_file}":
        assert json.loads(Path(theirs.pop()).read_text()) == POINT
        theirs.append("FILE")
    assert theirs == ours


def test_without_a_command_it_is_that_of_the_agent(tmp_path, variables, agent):
    sweep = read_sweep(write(tmp_path / "lr.yaml"))
    ours = sweep.command({"a": 1}, Path("FILE"))
    assert ours == ["/usr/bin/env", "python", "train.py", "--a=1"] == agent([], {"a": 1})


def points(tmp_path, count, **keys):
    sweep = read_sweep(write(tmp_path / "some.yaml", **keys))
    return [sweep.point(number, []) for number in range(1, count + 1)]


def test_a_grid_is_walked_as_by_wandb(tmp_path):
    parameters = {
        "b": {"values": ["x", None]},
        "a": {"min": 1, "max": 2},
        "c": {"value": True},
        "q": {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.5},
    }
    found = points(tmp_path, 9, parameters=parameters)
    assert found[0] == {"a": 1, "b": "x", "c": True, "q": 0.0}
    assert found[1:3] == [{"a": 1, "b": "x", "c": True, "q": 0.5}, {"a": 1, "b": None, "c": True, "q": 0.0}]
    assert found[8] is None
    search = pytest.importorskip("sweeps")
    config, runs = {"method": "grid", "parameters": parameters}, []
    for point in found[:8]:
        runs.append(search.next_run(config, runs))
        assert {name: one["value"] for name, one in runs[-1].config.items()} == point
    assert search.next_run(config, runs) is None


DISTRIBUTIONS = {  # distribution -> settings, lowest and highest value, median
    "int_uniform": ({"min": 1, "max": 9}, 1, 9, 5),
    "uniform": ({"min": -1.0, "max": 3.0}, -1, 3, 1),
    "q_uniform": ({"min": 0.0, "max": 1.0, "q": 0.25}, 0, 1, 0.5),
    "log_uniform": ({"min": -4.0, "max": 0.0}, math.exp(-4), 1, math.exp(-2)),
    "inv_log_uniform": ({"min": 0.0, "max": 4.0}, math.exp(-4), 1, math.exp(-2)),
    "log_uniform_values": ({"min": 1.0e-5, "max": 1.0e-3}, 1e-5, 1e-3, 1e-4),
    "inv_log_uniform_values": ({"min": 1.0e-5, "max": 1.0e-3}, 1e-5, 1e-3, 1e-4),
    "q_log_uniform_values": ({"min": 1.0, "max": 100.0, "q": 2}, 0, 100, 10),
    "normal": ({"mu": 3.0, "sigma": 2.0}, -math.inf, math.inf, 3),
    "log_normal": ({"mu": 1.0, "sigma": 0.5}, 0, math.inf, math.e),
    "beta": ({"a": 2, "b": 2}, 0, 1, 0.5),
    "categorical": ({"values": [1, 2, 3]}, 1, 3, 2),
    "categorical_w_probabilities": ({"values": [1, 2], "probabilities": [0.1, 0.9]}, 1, 2, 2),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_values_by_chance_are_of_their_distribution(tmp_path, distribution):
    settings, low, high, median = DISTRIBUTIONS[distribution]
    parameters = {"a": {"distribution": distribution, **settings}}
    found = [point["a"] for point in points(tmp_path, 500, method="random", parameters=parameters)]
    assert low <= min(found) <= max(found) <= high
    middle = sorted(found)[250]
    assert middle == pytest.approx(median, rel=0.3, abs=0.3 if median > 0.1 else 0)
    assert found == [point["a"] for point in points(tmp_path, 500, method="random", parameters=parameters)]
    search = pytest.importorskip("sweeps.params")  # W&B's own median
    theirs = search.HyperParameter("a", parameters["a"]).ppf(0.5)
    assert middle == pytest.approx(theirs, rel=0.3, abs=0.3 if median > 0.1 else 0)


def test_bayes_looks_where_it_was_good(tmp_path):
    pytest.importorskip("sweeps")
    parameters = {"a": {"min": 0.0, "max": 1.0}, "b": {"value": None}}
    sweep = read_sweep(write(tmp_path / "lr.yaml", method="bayes", parameters=parameters))
    trials = [
        Trial(number, {"a": a, "b": None}, [], "finished", [0.0, 100 * (1 - abs(a - 0.8))])
        for number, a in enumerate([0.0, 0.2, 0.4, 0.6, 0.75, 0.85, 0.95], start=1)
    ]
    trials.append(Trial(8, {"a": 0.1, "b": None}, [], "failed"))
    points = [sweep.point(number, trials) for number in (9, 10)]
    assert points[0] == sweep.point(9, trials)
    for point in points:
        assert type(point["a"]) is float
        assert point["b"] is None
        assert point["a"] > 0.5


def test_bayes_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sweeps", None)
    sweep = read_sweep(write(tmp_path / "lr.yaml", method="bayes"))
    with pytest.raises(ConfigError, match=r"lightning-vos\[sweeps\]"):
        sweep.point(1, [])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"methud": "grid"}, "did you mean method"),
        ({"method": "annealing"}, "expected grid, random or bayes"),
        ({"metric": "val/J&F"}, "goal: maximize"),
        ({"metric": {"name": "val/J&F", "goal": "max"}}, "goal: maximize"),
        ({"command": "lightning_vos fit"}, "expected a list of words"),
        ({"parameters": {}}, "at least one option"),
        ({"parameters": {"a": 3}}, "parameter a: 3"),
        ({"parameters": {"model": {"parameters": {"lr": {"value": 1}}}}}, "model.lr:"),
        ({"parameters": {"a": {"min": 0.0, "max": 1.0}}}, "parameter a: a grid needs"),
        ({"method": "random", "parameters": {"a": {"distribution": "gauss", "mu": 1}}}, "'gauss'"),
        ({"method": "random", "parameters": {"a": {"min": 1}}}, "lacks `max`"),
        ({"method": "random", "parameters": {"a": {"min": "1e-5", "max": 1.0}}}, "1.0e-5 for a number"),
        ({"method": "random", "parameters": {"a": {"min": 3, "max": 1}}}, "must be below"),
        (
            {"method": "random", "parameters": {"a": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
            "above 0",
        ),
    ],
)
def test_what_is_no_sweep(tmp_path, keys, said):
    with pytest.raises(ConfigError) as raised:
        read_sweep(write(tmp_path / "lr.yaml", **keys))
    assert said in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path / 'lr.yaml'} is no sweep: ")
    assert len(str(raised.value).splitlines()) <= 8


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_sweep(tmp_path / "none.yaml")


STUB = """
import os, sys
from pathlib import Path

words = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
with Path("calls.txt").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
lr, folder = float(words["model.lr"]), Path(os.environ["LIGHTNING_VOS_RUNS"]) / "stub/version_0"
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
assert os.environ["WANDB_MODE"] == "offline"
if words.get("stop") == words["model.lr"] and "ckpt_path" not in words:
    if "last" in words:
        (folder / "checkpoints/last.ckpt").touch()
    Path("stopped").touch()
    import time
    time.sleep(60)
if words.get("fail") in (words["model.lr"], "all"):
    sys.exit(3)
rows = ["epoch,step,val/J&F,train/loss", "0,1,99.0,", "0,2,,1.5", f"0,3,{100 * lr},"]
(folder / "metrics.csv").write_text("\\n".join(rows[: 1 if words.get("silent") == words["model.lr"] else 4]) + "\\n")
"""
SIX = {"model.lr": {"values": [0.1, 0.6, 0.3, 0.5, 0.2, 0.4]}, "model.none": {"value": None}}


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A sweep of six points of a program that takes no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "train.py").write_text(STUB)
    return write(tmp_path / "experiments/mavos/sweeps/lr.yaml", parameters=SIX)


def calls():
    return Path("calls.txt").read_text().splitlines() if Path("calls.txt").exists() else []


def record(number):
    return json.loads(Path(f"runs/sweeps/mavos-lr/trial-{number:03}/trial.json").read_text())


def interrupted(file, *words):
    """What a sweep writes that is stopped by Ctrl-C, in a process group of its own, as soon as a trial waits for it."""
    script = "import sys; from lightning_vos.cli import main; main()"
    arguments = [sys.executable, "-c", script, "experiment", "sweep", str(file), *words]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        for _ in range(600):
            if Path("stopped").exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        os.killpg(process.pid, 2)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    Path("stopped").unlink()
    return process.returncode, err


@pytest.mark.parametrize("last", [False, True], ids=["without a checkpoint", "with one"])
def test_six_trials_interrupted_after_three_go_on(command, stub, last):
    words = ["--trials", "6", "--stop=0.5", *(["--last=1"] if last else [])]
    status, err = interrupted(stub, *words)
    assert (status, err.splitlines()[-1]) == (130, "stopped; the same `experiment sweep` goes on from here"), err
    assert len(calls()) == 4
    assert [record(number)["state"] for number in (1, 2, 3, 4)] == ["finished"] * 3 + ["running"]
    before = [record(number) for number in (1, 2, 3)]
    if not last:
        Path("train.py").write_text(STUB.replace('words.get("stop")', "None"))  # it is not stopped again
    finished = command("experiment", "sweep", str(stub), *words)
    assert finished.status == 0, finished.err
    assert [record(number) for number in (1, 2, 3)] == before
    again = calls()[4:]
    assert len(again) == 3
    assert [word for word in again[0].split() if "ckpt" in word] == (["--ckpt_path=last"] if last else [])
    assert all("ckpt" not in one for one in again[1:])
    assert record(2)["history"] == [99.0, 60.0]
    rows = [line.split() for line in finished.out.splitlines() if re.match(r"\s+\d\s", line)]
    assert rows == [
        [str(n), f"{lr}", f"{100 * lr:.4g}", "finished"] for n, lr in enumerate(SIX["model.lr"]["values"], 1)
    ]
    assert "The best is trial 2, in runs/sweeps/mavos-lr/trial-002:" in finished.out
    best = shlex.split(finished.out.splitlines()[-1])
    assert best[:4] == ["/usr/bin/env", "python", "train.py", "--model.lr=0.6"]
    assert best[4:] == ["--model.none=None", *words[2:]]
    assert command("experiment", "sweep", str(stub), *words).status == 0
    assert len(calls()) == 7  # there is nothing left to do


def test_the_commands_are_printed_and_nothing_is_run(command, stub):
    printed = command("experiment", "sweep", str(stub), "--print", "--trials", "2", "--trainer.max_steps=10")
    assert printed.status == 0, printed.err
    variables = "WANDB_MODE=offline LIGHTNING_VOS_RUNS=runs/sweeps/mavos-lr/trial-00"
    assert printed.out.splitlines() == [
        f"{variables}{n} /usr/bin/env python train.py --model.lr={lr} --model.none=None --trainer.max_steps=10"
        for n, lr in ((1, 0.1), (2, 0.6))
    ]
    assert len(command("experiment", "sweep", str(stub), "--print").out.splitlines()) == 6
    assert not Path("runs").exists()


def test_failed_trials_are_passed_over(command, stub):
    finished = command("experiment", "sweep", str(stub), "--fail=0.6", "--silent=0.3")
    assert finished.status == 0, finished.err
    assert record(2)["reason"] == "it ended with status 3"
    assert record(3)["reason"].startswith("no val/J&F in a metrics.csv of ")
    assert "trial 2 failed: it ended with status 3" in finished.err
    assert "The best is trial 4" in finished.out
    assert command("experiment", "sweep", str(stub), "--fail=0.6", "--silent=0.3").status == 0
    assert len(calls()) == 6


def test_a_sweep_ends_where_all_fails(command, stub):
    refused = command("experiment", "sweep", str(stub), "--fail=all")
    assert refused.status == 2
    assert "the first 3 trials failed" in refused.err
    assert len(calls()) == 3


def test_another_sweep_is_not_mixed_in(command, stub):
    assert command("experiment", "sweep", str(stub), "--trials", "1").status == 0
    assert command("experiment", "sweep", str(stub), "--trials", "2").status == 0  # more of the same
    write(stub, parameters=SIX, name="renamed")
    assert command("experiment", "sweep", str(stub), "--trials", "2").status == 0
    others = command("experiment", "sweep", str(stub), "--trials", "3", "--trainer.max_steps=10")
    write(stub, parameters={"model.lr": {"values": [0.7]}})
    changed = command("experiment", "sweep", str(stub), "--trials", "3")
    for refused, key in ((others, "words"), (changed, "parameters")):
        assert refused.status == 2
        assert f"it differs in {key}." in refused.err
        assert len(refused.err.splitlines()) <= 8
    assert len(calls()) == 2


def test_a_target_ends_a_sweep(command, stub):
    write(stub, parameters=SIX, metric={"name": "val/J&F", "goal": "maximize", "target": 55})
    assert command("experiment", "sweep", str(stub)).status == 0
    assert len(calls()) == 2


def test_how_many_trials(command, stub):
    write(stub, method="random", parameters=SIX)
    refused = command("experiment", "sweep", str(stub))
    assert "say how many, --trials 20" in refused.err
    write(stub, method="random", parameters=SIX, run_cap=2)
    assert command("experiment", "sweep", str(stub)).status == 0
    assert len(calls()) == 2
    assert "did you mean --trials?" in command("experiment", "sweep", str(stub), "--trial=2").err
    assert "expected at least 1" in command("experiment", "sweep", str(stub), "--trials=0").err


def test_options_are_checked_before_the_first_trial(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path(__file__).parents[2] / "experiments/mavos/sweeps/learning_rate.yaml"
    refused = command("experiment", "sweep", str(file), "--trials", "2", "--trainer.max_step=3")
    assert refused.status == 2
    assert "did you mean 'trainer.max_steps'?" in refused.err
    assert not Path("runs").exists()


def test_a_program_that_is_not_there(command, stub):
    write(stub, command=["no_such_program", "${args}"])
    refused = command("experiment", "sweep", str(stub))
    assert "no_such_program cannot be executed: No such file" in refused.err
