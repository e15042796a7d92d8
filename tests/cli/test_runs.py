"""What a run leaves behind, and that it goes on, is scored and fails as the command line says."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml


def rows(run: Path) -> dict[tuple[str, int], float]:
    """(name, step) -> value of a run's table."""
    with (run / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    return {
        (name, int(row["step"])): float(value)
        for row in table
        for name, value in row.items()
        if value and name not in ("step", "epoch")
    }


def fit(command, *words: str):
    return command("fit", "--config", "tiny.yaml", *words)


def stopping(step: int, how: str) -> list[str]:
    return ["--trainer.callbacks+=parts.Stop", f"--trainer.callbacks.step={step}", f"--trainer.callbacks.how={how}"]


@pytest.fixture
def whole(command, folder) -> dict[tuple[str, int], float]:
    """The table of a run that nothing interrupts."""
    assert fit(command, "--trainer.logger.name=whole").status == 0
    return rows(folder / "runs/whole/version_0")


def test_a_run_leaves_its_config_beside_its_checkpoints(command, folder):
    finished = fit(command, "--model.scale=2.5")
    assert finished.status == 0
    assert "Tip" not in finished.err
    run = folder / "runs/tiny/version_0"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best-step000008.ckpt", "last.ckpt"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["scale"] == 2.5
    assert yaml.safe_load((run / "hparams.yaml").read_text())["data"]["init_args"]["root"] == "recipe"
    again = command("test", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/last.ckpt"))
    assert again.status == 0
    assert rows(folder / "runs/tiny/version_1")["test/scale", 0] == 2.5


def test_switches_of_the_trainer_go_with_the_callbacks_of_the_recipes(command, folder):
    assert "it/s" in fit(command).out
    assert "it/s" not in fit(command, "--trainer.enable_progress_bar=false").out
    finished = fit(command, "--trainer.fast_dev_run=true")
    assert finished.status == 0, finished.err
    assert not (folder / "runs/tiny/version_2").exists()


def test_explicit_words_beat_the_checkpoint(command, folder):
    assert fit(command, "--model.scale=2.5").status == 0
    last = ("--config", "tiny.yaml", "--ckpt_path", "last")
    assert command("test", *last, "--model.scale=4").status == 0
    assert rows(folder / "runs/tiny/version_1")["test/scale", 0] == 4
    assert command("test", *last).status == 0
    assert rows(folder / "runs/tiny/version_2")["test/scale", 0] == 1


@pytest.mark.parametrize(
    ("step", "how", "lost_rows"),
    [(6, "crash", 0), (6, "interrupt", 1), (2, "interrupt", 1), (4, "interrupt validation", 0)],
)
def test_a_resumed_run_repeats_a_whole_one(command, folder, whole, step, how, lost_rows):
    if how == "crash":
        with pytest.raises(ZeroDivisionError):
            fit(command, *stopping(step, how))
    else:
        stopped = fit(command, *stopping(step, how))
        assert stopped.status == 130
        assert stopped.err.endswith("\nstopped; the same command with --ckpt_path last goes on from here\n")
    resumed = fit(command, "--ckpt_path", "last")
    assert resumed.status == 0, resumed.err
    assert "Restored all states" in resumed.err
    run = folder / "runs/tiny/version_0"
    assert not (run.parent / "version_1").exists()
    table = rows(run)
    assert table == {key: whole[key] for key in table}
    losses = [key for key in whole if key[0] == "loss"]
    assert len([key for key in losses if key not in table]) <= lost_rows
    assert table["val/J&F", 7] == whole["val/J&F", 7]


def test_the_best_stays_the_best_after_a_resume(command, folder, whole):
    assert whole["val/J&F", 3] < whole["val/J&F", 7]
    # a rate of nothing: the second validation is no better than the first, so the first stays the best
    assert fit(command, "--model.optimizer.lr=0", "--trainer.max_steps=4").status == 0
    assert fit(command, "--model.optimizer.lr=0", "--ckpt_path=last").status == 0
    run = folder / "runs/tiny/version_0"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best-step000004.ckpt", "last.ckpt"]
    shutil.move(folder / "runs", folder / "moved")
    finished = command("test", "-c", "tiny.yaml", "--trainer.logger.save_dir=moved", "--ckpt_path=best")
    assert finished.status == 0, finished.err
    assert "moved/tiny/version_0/checkpoints/best-step000004.ckpt" in finished.err


@pytest.mark.slow  # the default suite kills a run of MAVOS
def test_a_kill_loses_no_row_and_no_run(command, folder, whole):
    words = ["fit", "-c", "tiny.yaml", *stopping(6, "kill")]
    killed = subprocess.run(
        [sys.executable, "-c", "from lightning_vos.cli import main; main()", *words],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        timeout=120,
    )
    assert killed.returncode == -9
    run = folder / "runs/tiny/version_0"
    assert [step for name, step in rows(run) if name == "loss"] == [0, 1, 2, 3, 4, 5]
    assert fit(command, "--ckpt_path", "last").status == 0
    assert rows(run) == whole


def test_without_a_key_wandb_writes_offline(command, folder, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(folder / "none"))
    (folder / "first.yaml").write_text(
        "trainer: {logger: [{class_path: lightning.pytorch.loggers.WandbLogger, "
        "init_args: {project: vos, save_dir: w}}]}"
    )
    finished = fit(command, "-c", "first.yaml", "--trainer.max_steps=4")
    assert finished.status == 0, finished.err
    assert os.environ.pop("WANDB_MODE") == "offline"
    (config,) = folder.rglob("config.yaml")
    assert config.parent.parent == folder / "w/vos"
    assert (config.parent / "checkpoints/last.ckpt").is_file()
    assert list(folder.glob("w/wandb/offline-run-*"))
    assert fit(command, "-c", "first.yaml", "--ckpt_path=last", "--trainer.max_steps=4").status == 0


def fails(finished, *parts: str) -> None:
    assert finished.status == 2
    message = finished.err[finished.err.index("error: ") :]
    assert len(message.splitlines()) <= 8
    assert "Traceback" not in finished.err
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize("word", ["last", "best"])
def test_no_run_yet(command, folder, word):
    fails(fit(command, "--ckpt_path", word), "no run with checkpoints", str(folder / "runs/tiny"), "train first")


def test_no_best_yet(command, folder):
    assert fit(command, "--trainer.max_steps=2").status == 0
    fails(command("test", "-c", "tiny.yaml", "--ckpt_path=best"), "has not been validated yet", "last.ckpt")


def test_files_that_are_no_checkpoints(command, folder):
    torch.save({"weight": torch.ones(2)}, folder / "plain.pth")
    fails(fit(command, "--ckpt_path=none.ckpt"), "none.ckpt does not exist")
    fails(fit(command, "--ckpt_path=plain.pth"), "--model.weights FILE", "lightning_vos convert")
    (folder / "cut.ckpt").write_bytes((folder / "plain.pth").read_bytes()[:500])
    fails(fit(command, "--ckpt_path=cut.ckpt"), "cut.ckpt", "damaged")


def test_a_checkpoint_of_another_model(command, folder):
    assert fit(command).status == 0
    words = ("--ckpt_path=last", "--model.network.width=7")
    fails(command("test", "-c", "tiny.yaml", *words), "does not fit the model TinyModel", "--model.weights FILE")


def test_a_checkpoint_of_another_method_or_of_other_classes(command, folder):
    kept = {"pytorch-lightning_version": "2.6", "global_step": 3, "classes": ["cat", "dog"], "state_dict": {}}
    torch.save(kept | {"model": {"class_path": "lightning_vos.TokenMasking"}}, folder / "cats.ckpt")
    words = ("--data=parts.TinyData", "--trainer.logger.save_dir=runs", "--ckpt_path=cats.ckpt")
    other = command("test", "-c", "configs/segmentation_voc.yaml", *words)
    fails(other, "cats.ckpt", "found: TokenMasking of 2 classes (cat, dog)", "expected: SegmentationFromMasks")
    more = command("test", "-c", "configs/token_masking_voc.yaml", *words)
    fails(more, "cats.ckpt", "2 classes (cat, dog)", "expected: 20 classes", "--model.weights FILE")
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("before", [None, "config.yaml", "notes.txt"])
def test_a_refused_command_leaves_nothing_new(command, folder, before):
    run = folder / "runs/tiny/version_0"
    if before is not None:
        run.mkdir(parents=True)
        (run / before).write_text("kept")
    words = ("--trainer.logger.version=0", "--data.broken=true")
    fails(fit(command, *words), "frame 00003.jpg is missing")
    assert run.exists() == (before is not None)
    assert before is None or (run / before).is_file()
