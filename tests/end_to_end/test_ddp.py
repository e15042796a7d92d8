"""Two processes train; their test gives, to the last digit, what one process gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runs import TINY, TWO_PROCESSES, checkpoint, end, files, start, table


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
