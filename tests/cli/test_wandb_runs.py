"""Runs that are logged to Weights & Biases: what the page is given, offline runs, and that they are continued."""

import os

import pytest
import wandb
import yaml

WANDB = ("-c", "configs/logger/wandb.yaml")


class Config(dict):
    def update(self, content, allow_val_change=False):
        super().update(content)


class Run:
    """Stands in for a run that is online."""

    def __init__(self, **settings):
        self.settings, self.id = settings, settings.get("id") or "run7"
        self.config, self.rows, self.artifacts = Config(), [], []

    def log(self, row):
        self.rows.append(row)

    def log_artifact(self, artifact, aliases):
        self.artifacts.append((artifact, aliases))


@pytest.fixture(autouse=True)
def no_run_is_open():
    wandb.finish()  # of other tests in this process
    yield
    wandb.finish()


@pytest.fixture
def runs(monkeypatch):
    """The runs of commands that know a key, one after another."""
    found = []
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(wandb, "init", lambda **settings: found.append(Run(**settings)) or found[-1])
    return found


def fit(command, *words):
    finished = command("fit", "-c", "tiny.yaml", *WANDB, *words)
    assert finished.status == 0, finished.err
    return finished


def loggers(run):
    return [one["init_args"] for one in yaml.safe_load((run / "config.yaml").read_text())["trainer"]["logger"]]


def test_the_page_has_config_code_curves_and_the_best_checkpoint(command, folder, runs):
    assert "offline" not in fit(command, "--model.scale=2.5").err
    (run,) = runs
    assert (run.settings["project"], run.settings["name"]) == ("lightning_vos", "tiny")
    saved = yaml.safe_load((folder / "runs/tiny/version_0/config.yaml").read_text())
    assert run.config["model"] == saved["model"]
    assert run.config["model"]["init_args"]["scale"] == 2.5
    assert run.config.keys() >= {"data", "trainer", "seed_everything", "code"}
    assert run.config["code"]["lightning_vos"]
    validations = [row["trainer/global_step"] for row in run.rows if "val/J&F" in row]
    assert validations == [3, 7]
    ((artifact, aliases),) = run.artifacts
    assert "best" in aliases
    assert artifact.type == "model"
    assert artifact.metadata["original_filename"] == "best-step000008.ckpt"


def test_a_resumed_run_continues_its_page(command, folder, runs):
    fit(command, "--trainer.max_steps=4")
    assert (folder / "runs/tiny/version_0/wandb_id.txt").read_text() == "run7\n"
    fit(command, "--ckpt_path=last")
    fit(command)
    assert [run.settings["id"] for run in runs] == [None, "run7", None]
    assert runs[1].settings["resume"] == "allow"
    assert min(row["trainer/global_step"] for row in runs[1].rows) >= 4
    assert command("test", "-c", "tiny.yaml", *WANDB, "--ckpt_path=last").status == 0
    assert runs[3].settings["id"] is None  # a test has a page of its own
    assert runs[3].artifacts == []


def test_a_run_whose_only_logger_is_wandb_is_continued(command, folder, runs):
    (folder / "only.yaml").write_text(
        "trainer:\n"
        "  logger: {class_path: lightning.pytorch.loggers.WandbLogger, init_args: {project: p, save_dir: w}}\n"
        "  callbacks+: [lightning_vos.callbacks.wandb_page.RunPage]\n"
    )
    for words in (["--trainer.max_steps=4"], ["--ckpt_path=last"]):
        finished = command("fit", "-c", "tiny.yaml", "-c", "only.yaml", *words)
        assert finished.status == 0, finished.err
    assert [run.settings["id"] for run in runs] == [None, "run7"]
    assert [path.name for path in (folder / "w/p").iterdir()] == ["run7"]


def test_without_a_key_one_line_says_that_it_is_offline(command, folder, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(folder / "none"))
    finished = fit(command, "--trainer.max_steps=2")
    assert os.environ["WANDB_MODE"] == "offline"
    (line,) = [line for line in finished.err.splitlines() if "no API key" in line]
    assert "the run is kept offline in runs/wandb; `wandb sync` uploads it" in line
    (offline,) = (folder / "runs/wandb").glob("offline-run-*")
    assert loggers(folder / "runs/tiny/version_0")[1]["log_model"] is False
    kept = (folder / "runs/tiny/version_0/wandb_id.txt").read_text().strip()
    assert offline.name.endswith(f"-{kept}")


def test_a_run_that_is_meant_to_be_offline_holds_no_checkpoint(command, folder):
    (folder / "offline.yaml").write_text(
        "trainer: {logger: {class_path: lightning.pytorch.loggers.WandbLogger, "
        "init_args: {project: p, save_dir: w, offline: true, log_model: true}}}"
    )
    finished = command("fit", "-c", "tiny.yaml", "-c", "offline.yaml", "--trainer.max_steps=2")
    assert finished.status == 0, finished.err
    assert not list((folder / "w/wandb").rglob("*.ckpt"))


def test_the_trials_of_a_sweep_have_folders_and_names_of_their_own(command, folder, runs, monkeypatch):
    monkeypatch.setenv("LIGHTNING_VOS_RUNS", "runs/sweeps/lr/trial-001")
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    fit(command, "--model.scale=1e-05", "--model.widths=None", "--data.root", "None")
    run = folder / "runs/sweeps/lr/trial-001/tiny/version_0"
    assert (run / "metrics.csv").is_file()
    assert [one["save_dir"] for one in loggers(run)] == ["runs/sweeps/lr/trial-001"] * 2
    assert runs[0].settings["name"] is None  # W&B names it
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["widths"] is None
    assert config["model"]["init_args"]["scale"] == 1e-5
    fit(command, "--trainer.max_steps=8", "--ckpt_path=last")
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
