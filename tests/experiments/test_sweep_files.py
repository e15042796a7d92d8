"""Every sweep that ships is one that W&B takes, and its points go through the real command line."""

import json
import logging
import shlex
from pathlib import Path

import pytest
import yaml

from lightning_vos.commands.rehearsal import Rehearsal
from lightning_vos.experiments.sweeps import read_sweep

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FILES = sorted(EXPERIMENTS.glob("*/sweeps/*.yaml"))
METRICS = {"taformer": "val/AP", "token_masking": "val/mIoU"}
DEMO = """
program: lightning_vos
method: grid
metric: {name: val/J&F, goal: maximize}
command: ["${env}", lightning_vos, fit, --config, configs/demo.yaml, --config, configs/logger/wandb.yaml, "${args}"]
parameters:
  model.init_args.optimizer.init_args.lr: {values: [1.0e-3, 1.0e-4]}
  model.init_args.weights: {value: null}
"""


def name(file):
    return f"{file.parts[-3]}-{file.stem}"


def test_every_method_has_a_sweep():
    assert {file.parts[-3] for file in FILES} == {"hodor", "mavos", "qmvos", "taformer", "token_masking"}
    assert not list(EXPERIMENTS.glob("*/sweeps/*.yml"))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_wandb_takes_the_file(file):
    sweep = read_sweep(file)
    assert sweep.metric == METRICS.get(file.parts[-3], "val/J&F")
    assert sweep.is_maximized
    assert sweep.stated["program"] == "lightning_vos"
    violations = pytest.importorskip("sweeps").schema_violations_from_proposed_config(dict(sweep.stated))
    assert violations == []


def values(parameter, method):
    """All values that a grid takes, or, by chance, those of a list or the ends of a range."""
    settings = parameter.settings
    if method == "grid" or parameter.distribution == "constant":
        return parameter.grid()
    return settings["values"] if "values" in settings else [settings["min"], settings["max"]]


def points(sweep):
    """As few points as hold every value of every parameter."""
    found = {one.name: values(one, sweep.method) for one in sweep.parameters}
    for number in range(max(map(len, found.values()))):
        yield {name: of_one[min(number, len(of_one) - 1)] for name, of_one in found.items()}


@pytest.fixture(scope="module")
def rehearsal():
    logging.disable(logging.INFO)  # Lightning tells of seeds and devices
    yield Rehearsal()
    logging.disable(logging.NOTSET)


def at(config, key):
    for part in key.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("file", FILES, ids=name)
def test_points_go_through_the_command_line(tmp_path, monkeypatch, rehearsal, file):
    monkeypatch.chdir(tmp_path)
    sweep = read_sweep(file)
    for point in points(sweep):
        env, program, *words = sweep.command(point, Path("args.json"))
        assert (env, program, words[0]) == ("/usr/bin/env", "lightning_vos", "fit")
        config = rehearsal.build(words)
        for key, value in point.items():
            found = at(config, key)
            assert found == value or found["class_path"] == value, key
        assert [one.class_path.rsplit(".", 1)[1] for one in config.trainer.logger] == ["CSVLogger", "WandbLogger"]
        checkpoints = [one for one in config.trainer.callbacks if one.class_path.endswith("ModelCheckpoint")]
        assert [one.init_args.monitor for one in checkpoints] == [sweep.metric]  # it is logged
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", FILES, ids=name)
def test_runs_are_trimmed_where_there_are_validations(file):
    """Hyperband compares runs after `min_iter` validations and eta times as many: that many there must be."""
    sweep = read_sweep(file)
    trimming = sweep.stated.get("early_terminate")
    if trimming is None:
        return
    (recipe,) = [word for word in sweep.stated["command"] if Path(str(word)).parent == Path("configs")]
    trainer = yaml.safe_load((EXPERIMENTS.parent / recipe).read_text())["trainer"]
    assert trimming["min_iter"] * trimming.get("eta", 3) <= trainer["max_steps"] // trainer["val_check_interval"]


@pytest.mark.slow
def test_a_sweep_of_the_demo(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lr.yaml").write_text(DEMO)
    words = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"]
    words += ["--data.settings={train: 2, val: 1, frames: 8}"]
    finished = command("experiment", "sweep", "lr.yaml", *words)
    assert finished.status == 0, finished.err
    folder = Path("runs/sweeps/lr")
    trials = [json.loads((folder / f"trial-{n:03}/trial.json").read_text()) for n in (1, 2)]
    assert [trial["state"] for trial in trials] == ["finished"] * 2
    assert all(len(trial["history"]) == 2 and 0 <= trial["history"][-1] <= 100 for trial in trials)
    for number, rate in ((1, 1e-3), (2, 1e-4)):
        run = folder / f"trial-{number:03}/demo/version_0"
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == rate
        assert config["trainer"]["max_steps"] == 4
        assert (run / "checkpoints/last.ckpt").is_file()
        assert list((folder / f"trial-{number:03}/wandb").glob("offline-run-*"))
    best = shlex.split(finished.out.splitlines()[-1])
    assert best[:3] == ["/usr/bin/env", "lightning_vos", "fit"]
    assert best[-len(words) :] == words
