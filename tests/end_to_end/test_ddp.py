"""A test on two processes gives, to the last digit, what one gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runs import TINY, end, files, start, table

pytestmark = pytest.mark.xdist_group("ddp")


def keep_videos(data: Path, *frames: int) -> None:
    """Leaves as many validation videos as `frames` names, the first frames of each."""
    kept = {f"synthetic-val-{number:03}": count for number, count in enumerate(frames)}
    (data / "DAVIS/ImageSets/2017/val.txt").write_text("".join(f"{name}\n" for name in kept))
    for kind in ("JPEGImages", "Annotations"):
        for name, count in kept.items():
            for path in sorted((data / "DAVIS" / kind / "480p" / name).iterdir())[count:]:
                path.unlink()


@pytest.mark.parametrize("frames", [(8, 6, 4), (6,)], ids=["more videos than processes", "fewer"])
def test_two_processes_score_as_one(command, workplace, data, trained, frames):
    shutil.copytree(data, workplace / "data")
    keep_videos(workplace / "data", *frames)
    words = ["test", "--config", str(TINY), "--data=datamodules.DAVIS", "--data.root=data"]
    words += ["--ckpt_path", str(trained / "checkpoints/last.ckpt")]
    one, two = (workplace / "runs" / name / "version_0" for name in ("one", "two"))
    alone = command(*words, "--trainer.logger.name=one")
    assert alone.status == 0, alone.err
    status, out = end(start(*words, "--trainer.logger.name=two", "--trainer.strategy=ddp", "--trainer.devices=2"))
    assert status == 0, out
    assert "MEMBER: 2/2" in out
    assert "Warning" not in out
    assert "sync_dist" not in out
    assert [path.name for path in two.parent.iterdir()] == ["version_0"]
    assert len(files(one, "masks/*/*.png")) == sum(frames)
    assert files(two, "*.png") == files(one, "*.png")
    assert files(two, "sequences.csv") == files(one, "sequences.csv")
    assert files(two, "objects.csv") == files(one, "objects.csv")
    assert len((two / "sequences.csv").read_text().splitlines()) == 1 + len(frames)
    scores = [(name, 0) for name in ("test/J&F", "test/J", "test/F", "test/parameters")]
    ours, theirs = table(two), table(one)
    assert [ours[name] for name in scores] == [theirs[name] for name in scores]
    assert ours.keys() == theirs.keys()
    assert ours["test/J&F", 0] > 0
