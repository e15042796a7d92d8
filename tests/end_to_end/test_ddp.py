"""Two processes train; their test gives, to the last digit, what one process gives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from runs import TINY, TWO_PROCESSES, checkpoint, end, files, kill, start, table


def keep_videos(data: Path, *frames: int) -> None:
    """Leaves as many validation videos as `frames` names, the first frames of each."""
    kept = {f"synthetic-val-{number:03}": count for number, count in enumerate(frames)}
    (data / "DAVIS/ImageSets/2017/val.txt").write_text("".join(f"{name}\n" for name in kept))
    for kind in ("JPEGImages", "Annotations"):
        for name, count in kept.items():
            for path in sorted((data / "DAVIS" / kind / "480p" / name).iterdir())[count:]:
                path.unlink()


@pytest.mark.parametrize("frames", [(8, 6, 4), pytest.param((6,), marks=pytest.mark.slow)], ids=["more", "fewer"])
def test_two_processes_train_and_score_as_one(command, workplace, data, frames):
    """More videos than processes, not the same number for each; fewer."""
    shutil.copytree(data, workplace / "data")
    keep_videos(workplace / "data", *frames)
    words = ["--config", str(TINY), "--data=datamodules.DAVIS", "--data.root=data"]
    words += ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    words += ["--data.batch_size=1", "--effective_batch_size=2"]
    status, out = end(start("fit", *words, *TWO_PROCESSES, program=Path(__file__).with_name("fit_and_test.py")), 240)
    assert status == 0, out
    assert "MEMBER: 2/2" in out
    assert "Warning" not in out
    assert "sync_dist" not in out
    runs = workplace / "runs/tiny"
    assert sorted(path.name for path in runs.iterdir()) == ["version_0", "version_1"]
    fit, two, one = (runs / f"version_{number}" for number in range(3))
    assert "A step: 2 items, 1 at once on each of 2 devices, 1 times." in out
    assert checkpoint(fit)["global_step"] == 2
    alone = command("test", *words, "--ckpt_path=best")
    assert alone.status == 0, alone.err
    assert len(files(one, "masks/*/*.png")) == sum(frames)
    assert files(two, "*.png") == files(one, "*.png")
    assert files(two, "sequences.csv") == files(one, "sequences.csv")
    assert files(two, "objects.csv") == files(one, "objects.csv")
    assert len((two / "sequences.csv").read_text().splitlines()) == 1 + len(frames)
    scores = [(name, 0) for name in ("test/J&F", "test/J", "test/F", "test/parameters")]
    ours, theirs = table(two), table(one)
    assert [ours[name] for name in scores] == [theirs[name] for name in scores]
    assert ours.keys() == theirs.keys()
    assert ours["test/J&F", 0] == table(fit)["val/J&F", 1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["hodor_demo.yaml", "qmvos_demo.yaml"])
def test_other_methods_do_as_well(command, workplace, recipe):
    """TAFormer and token masking have theirs with their other runs."""
    words = ["--config", recipe, "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.batch_size=1"]
    words += ["--trainer.enable_progress_bar=false", "--data.workers=0"]
    words += ["--data.settings={train: 4, val: 3, frames: 6, height: 64, width: 80}"]
    status, out = end(start("fit", *words, *TWO_PROCESSES, program=Path(__file__).with_name("fit_and_test.py")), 400)
    assert status == 0, out
    assert "MEMBER: 2/2" in out
    alone = command("test", *words, "--ckpt_path=best")
    assert alone.status == 0, alone.err
    _, two, one = sorted(workplace.glob("runs/*/version_*"))
    assert files(two, "objects.csv") == files(one, "objects.csv")
    assert table(two)["test/J&F", 0] == table(one)["test/J&F", 0]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_others(workplace, tiny, rank):
    run = start("fit", *tiny, "--trainer.max_steps=100000", "--trainer.val_check_interval=100000", *TWO_PROCESSES)
    metrics = workplace / "runs/tiny/version_0/metrics.csv"
    try:
        while not metrics.is_file():
            assert run.poll() is None, Path("out.txt").read_text()
            time.sleep(0.2)
        (child,) = subprocess.check_output(["pgrep", "-P", str(run.pid)], text=True).split()
        os.kill((run.pid, int(child))[rank], signal.SIGKILL)
        assert run.wait(60) != 0
        while alive(int(child)):
            time.sleep(0.2)
    finally:
        kill(run)
    told = ("another process of this run ended", "terminated with code -9")
    assert any(words in Path("out.txt").read_text() for words in told)


def alive(process: int) -> bool:
    """Whether a process runs, and is not just one that nobody has asked for its status."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return state.stdout.strip() not in ("", "Z")
