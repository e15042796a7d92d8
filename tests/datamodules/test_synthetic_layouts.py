import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.synthetic_files import SyntheticSettings, write_davis
from datamodules.synthetic_layouts import (
    write_synthetic_long_time_video,
    write_synthetic_lvos,
    write_synthetic_youtube_vos,
)
from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.holdout import is_held_out
from lightning_vos.io.masks import read_mask

WRITERS = [write_synthetic_youtube_vos, write_synthetic_lvos, write_synthetic_long_time_video]
SETTINGS = SyntheticSettings(train=2, val=2, frames=16, height=64, width=80)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.*"))}


def ids_by_frame(folder: Path) -> dict[str, set[int]]:
    return {path.stem: set(np.unique(read_mask(path)).tolist()) - {0} for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("write", WRITERS)
def test_a_set_is_a_function_of_its_settings_and_written_once(tmp_path, write):
    write(tmp_path / "a", SETTINGS)
    write(tmp_path / "b", SETTINGS)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    write(tmp_path / "a", SETTINGS)
    with pytest.raises(ConfigError, match="other settings"):
        write(tmp_path / "a", SyntheticSettings(train=2, val=2, frames=16, height=64, width=80, seed=1))
    with pytest.raises(ConfigError, match="layout="):
        WRITERS[WRITERS.index(write) - 1](tmp_path / "a", SETTINGS)
    write_davis(tmp_path / "davis", SyntheticSettings(train=1, val=1, frames=11, height=64, width=64))
    with pytest.raises(ConfigError, match="layout=None"):
        write(tmp_path / "davis", SyntheticSettings(train=1, val=1, frames=11, height=64, width=64))


def test_youtube_vos(tmp_path):
    write_synthetic_youtube_vos(tmp_path, SETTINGS)
    for split, count in (("train", 4), ("valid", 2)):
        videos = json.loads((tmp_path / split / "meta.json").read_text())["videos"]
        assert len(videos) == count
        late, leaving = 0, 0
        for name, video in videos.items():
            names = [path.stem for path in sorted((tmp_path / split / "JPEGImages" / name).iterdir())]
            assert names == ["00000", "00005", "00010", "00015"]
            assert len(list((tmp_path / f"{split}_all_frames/JPEGImages" / name).iterdir())) == 16
            masks = ids_by_frame(tmp_path / split / "Annotations" / name)
            firsts = {int(i): entry["frames"][0] for i, entry in video["objects"].items()}
            assert all(
                entry["frames"] == names[names.index(entry["frames"][0]) :] for entry in video["objects"].values()
            )
            if split == "train":
                assert all(i in masks[first] for i, first in firsts.items())
                assert all(i not in masks[frame] for i, first in firsts.items() for frame in names if frame < first)
                leaving += bool(masks["00000"] - masks["00015"])
            else:
                assert masks == {first: {i for i in firsts if firsts[i] == first} for first in set(firsts.values())}
            late += len(set(firsts.values())) > 1
        assert late
        assert leaving or split == "valid"
    videos = json.loads((tmp_path / "train/meta.json").read_text())["videos"]
    assert sum(map(is_held_out, videos)) == 2
    unseen = json.loads((tmp_path / "train/unseen.json").read_text())
    with_unseen = [n for n, v in videos.items() if any(e["category"] in unseen for e in v["objects"].values())]
    assert with_unseen
    assert all(map(is_held_out, with_unseen))


def test_lvos(tmp_path):
    write_synthetic_lvos(tmp_path, SETTINGS)
    for split in ("train", "valid", "test"):
        videos = json.loads((tmp_path / split / f"{split}_meta.json").read_text())["videos"]
        assert len(videos) == 2
        for name, video in videos.items():
            assert len(name) == 8
            masks = ids_by_frame(tmp_path / split / "Annotations" / name)
            firsts = {int(i): entry["frame_range"]["start"] for i, entry in video["objects"].items()}
            if split == "test":
                assert masks.keys() == set(firsts.values())
            else:
                assert list(masks)[:2] == ["00000001", "00000006"]
                assert len(masks) == 16
            assert all(i in masks[first] for i, first in firsts.items())
    assert len((tmp_path / "valid/unseen_videos.txt").read_text().split()) == 1


def test_long_time_video(tmp_path):
    write_synthetic_long_time_video(tmp_path, SyntheticSettings(val=1, frames=60, height=64, width=64))
    assert len(list((tmp_path / "JPEGImages/synthetic-000").iterdir())) == 60
    masks = ids_by_frame(tmp_path / "Annotations/synthetic-000")
    assert len(masks) == 20
    assert {"00000", "00059"} <= masks.keys()
    assert masks["00000"]


def test_sets_too_short_to_be_annotated_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected 11 or more"):
        write_synthetic_youtube_vos(tmp_path / "x", SyntheticSettings(frames=10))
