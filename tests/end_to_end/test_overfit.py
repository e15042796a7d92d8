"""A small MAVOS learns one real sequence by heart."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import REPOSITORY, table

SEQUENCE = REPOSITORY.parent / "shared/data/real/DAVIS_240p"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not SEQUENCE.is_dir(), reason=f"no real sequence at {SEQUENCE}")
def test_one_sequence_is_learnt(command, workplace: Path) -> None:
    """300 steps, about 12 CPU minutes: J&F 93.1 with one thread."""
    data = ("--data.root", str(SEQUENCE), "--data.frames=JPEGImages/240p", "--data.masks=Annotations/240p")
    plain = [f"--data.transform.{name}=0" for name in ("jitter", "grey", "blur", "flip")]
    size = ("--data.transform.crop=161", "--data.transform.short_side=240", "--data.transform.scale=[0.9,1.1]")
    words = ("--data.sampler.max_gap=2", "--trainer.max_steps=300", "--trainer.val_check_interval=300")
    configs = ("--config=configs/demo.yaml", "--config=configs/data/folder.yaml")
    finished = command("fit", *configs, *data, *plain, *size, *words)
    assert finished.status == 0, finished.err
    assert table(workplace / "runs/demo/version_0")["val/J&F", 299] >= 85
