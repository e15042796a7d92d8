"""A run that was ended at any moment and goes on by `--ckpt_path last` is the run that nothing ended, bit for bit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from runs import checkpoint, kill, last, start, table

STEPS = ("--trainer.max_steps=12", "--trainer.limit_val_batches=1")


class StopAt(Callback):
    """Ends a run in order, as `--trainer.max_time` does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        trainer.should_stop = trainer.global_step == self.step


@pytest.fixture(scope="module")
def whole(tmp_path_factory, run_inside, tiny) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_inside(folder, "fit", *tiny, *STEPS)
    return folder / "runs/tiny/version_0"


def assert_same_end(run: Path, whole: Path) -> None:
    """The same weights, averages and state of the optimizer."""
    ours, theirs = checkpoint(run), checkpoint(whole)
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in ours[part]), part
    moments = [c["optimizer_states"][0]["state"] for c in (ours, theirs)]
    assert all(torch.equal(moments[0][i]["exp_avg_sq"], moments[1][i]["exp_avg_sq"]) for i in moments[1])


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(command, workplace, whole, tiny, workers):
    words = ("fit", *tiny, *STEPS, f"--data.workers={workers}")
    run = workplace / "runs/tiny/version_0"
    process = start(*words)
    try:
        until = time.monotonic() + 120
        while not (run / "metrics.csv").is_file() or ("train/loss", 5) not in table(run):
            assert process.poll() is None, Path("out.txt").read_text()
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        status = kill(process)
    assert status == -9, "it ended before it could be killed"
    assert ("train/loss", 11) not in table(run)
    resumed = command(*words, "--ckpt_path", "last")
    assert resumed.status == 0, resumed.err
    assert "Restored all states" in resumed.err
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    expected = table(whole)
    assert [step for name, step in expected if name == "train/loss"] == list(range(12))
    assert [step for name, step in expected if name == "val/J&F"] == [3, 7, 11]
    assert table(run) == expected
    assert_same_end(run, whole)


def test_a_run_that_ended_early_in_order_goes_on_with_its_own_weights(command, workplace, whole, tiny):
    words = ("fit", *tiny, *STEPS)
    stopped = command(*words, "--trainer.callbacks+=test_resume.StopAt", "--trainer.callbacks.step=6")
    assert stopped.status == 0, stopped.err
    run = workplace / "runs/tiny/version_0"
    assert checkpoint(run)["global_step"] == 6
    assert command(*words, "--ckpt_path", "last").status == 0
    assert_same_end(run, whole)


def test_going_on_from_a_finished_run_changes_nothing(command, workplace, tiny, trained):
    finished = command("fit", *tiny, "--ckpt_path", last(trained))
    assert finished.status == 0, finished.err
    assert not list(workplace.glob("runs/*/*/checkpoints/best*"))
