from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Trainer

from datamodules import VideoFolder
from datamodules.samplers import CycleSampler
from lightning_vos.errors import DatasetNotFoundError, FrameError, MaskError
from lightning_vos.io.masks import write_mask
from lightning_vos.metrics.sequence import Plan

REAL = Path(__file__).parents[2] / "../shared/data/real"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no real samples at ../shared/data/real")


@pytest.fixture
def folder(tmp_path, write_video, moving):
    """Writes `videos` (name -> number of masks) of five frames."""

    def make(**videos):
        for name, count in videos.items():
            labels = dict(list(moving(5, 2).items())[:count])
            write_video(tmp_path / "JPEGImages" / name, tmp_path / "Annotations" / name, labels, 5)
        return tmp_path

    return make


def names(data, split):
    return [sequence.name for sequence in data.sequences(split)]


def refused(error_type, call):
    with pytest.raises(error_type) as error:
        call()
    text = str(error.value)
    assert len(text.splitlines()) <= 8
    return text


def test_every_fifth_video_is_held_out(folder):
    root = folder(**{f"v{i:02d}": 5 for i in range(11)}, w_first_mask_alone=1)
    data = VideoFolder(root)
    assert names(data, "val") == ["v04", "v09"]
    assert names(data, "train") == [f"v{i:02d}" for i in (0, 1, 2, 3, 5, 6, 7, 8, 10)]
    assert names(data, "test") == [*(f"v{i:02d}" for i in range(11)), "w_first_mask_alone"]
    assert names(VideoFolder(root, holdout=2), "val") == ["v01", "v03", "v05", "v07", "v09"]
    with pytest.raises(ValueError, match="holdout=1"):
        VideoFolder(root, holdout=1)


def test_the_last_of_a_few_is_held_out(folder):
    data = VideoFolder(folder(a=5, b=2, c=5))
    assert (names(data, "train"), names(data, "val")) == (["a", "b"], ["c"])


def test_a_single_video_serves_both_with_a_warning(folder):
    data = VideoFolder(folder(a=5, b=1))
    with pytest.warns(UserWarning, match="a single video with dense masks, a"):
        assert names(data, "train") == ["a"]
    assert names(data, "val") == ["a"]


def test_the_images_may_lie_in_the_folder_itself(tmp_path, write_video, moving):
    root = tmp_path / "my_cat"
    write_video(root / "images", root / "labels", moving(5), 5)
    sequence = VideoFolder(root, frames="images", masks="labels").sequences("test")[0]
    item = sequence.load(0)
    assert item.video.name == "my_cat"
    assert len(item.video.frames) == 5
    assert item.truth.plan == Plan((1, 2, 3), None)


def test_videos_without_masks_are_left_out_and_said(folder):
    root = folder(a=5, b=1, c=0)
    with pytest.warns(UserWarning, match=r"1 videos .* left out: c$"):
        assert names(VideoFolder(root), "test") == ["a", "b"]


def test_an_object_may_come_late(folder):
    root = folder(a=5)
    late = np.zeros((40, 60), np.uint8)
    late[30:, 50:] = 7
    write_mask(root / "Annotations/a/00003.png", late)
    item = VideoFolder(root).sequences("test")[0].load(0)
    assert {frame: np.unique(prompt).tolist() for frame, prompt in item.video.prompts.items()} == {
        0: [0, 1, 2],
        3: [0, 7],
    }
    assert item.truth.plan == Plan((1, 2, 3), None)  # an object counts from where it comes
    assert np.unique(item.truth.read(3)).tolist() == [0, 7]


def test_frames_that_would_be_taken_out_of_order_are_named(folder):
    root = folder(a=5)
    (root / "JPEGImages/a/00004.jpg").rename(root / "JPEGImages/a/10.jpg")
    (root / "Annotations/a/00004.png").rename(root / "Annotations/a/10.png")
    assert names(VideoFolder(root), "test") == ["a"]
    (root / "JPEGImages/a/00003.jpg").rename(root / "JPEGImages/a/9.jpg")
    (root / "Annotations/a/00003.png").rename(root / "Annotations/a/9.png")
    text = refused(FrameError, lambda: names(VideoFolder(root), "test"))
    assert "10.jpg comes before 9.jpg" in text
    assert str(root / "JPEGImages/a") in text


def test_missing_folders_are_named(folder, tmp_path):
    assert "no folder" in refused(DatasetNotFoundError, lambda: names(VideoFolder(tmp_path / "x"), "test")).lower()
    root = folder(a=5)
    text = refused(DatasetNotFoundError, lambda: names(VideoFolder(root, masks="Masks"), "test"))
    assert f"No folder {root / 'Masks'}" in text
    assert "Annotations, JPEGImages" in text


def test_an_empty_video_and_an_empty_mask_folder_are_named(folder):
    root = folder(a=0)
    (root / "Annotations").mkdir()
    text = refused(DatasetNotFoundError, lambda: names(VideoFolder(root), "test"))
    assert str(root / "Annotations/a/00000.png") in text
    (root / "JPEGImages/b").mkdir()
    assert str(root / "JPEGImages/b") in refused(FrameError, lambda: names(VideoFolder(root), "test"))


def test_first_masks_alone_cannot_be_trained_on(folder):
    text = refused(DatasetNotFoundError, lambda: VideoFolder(folder(a=1, b=1)).sequences("train"))
    assert "a with 1 of 5 masks (00000.png)" in text
    assert "predict" in text


def test_a_mask_of_another_size_stops_or_is_resized(folder):
    root = folder(a=1)
    write_mask(root / "Annotations/a/00000.png", np.ones((20, 30), np.uint8))
    text = refused(MaskError, lambda: VideoFolder(root).sequences("test")[0].load(0))
    assert "00000.png" in text
    assert "30x20" in text
    assert "60x40" in text
    assert "--data.resize_masks true" in text
    assert "YouTubeVOS" in text
    assert "--data.parts.NAME.init_args.resize_masks true" in text
    prompt = VideoFolder(root, resize_masks=True).sequences("test")[0].load(0).video.prompts[0]
    assert prompt.shape == (40, 60)
    assert prompt.all()


@needs_real
def test_the_real_first_appearances_are_prompts_and_no_truth():
    places = {"frames": "valid_all_frames/JPEGImages", "masks": "valid/Annotations"}
    root = REAL.resolve() / "YouTubeVOS"
    text = refused(MaskError, lambda: VideoFolder(root, **places).sequences("test")[0].load(0))
    assert "00005.png" in text
    assert "853x480" in text
    assert "854x480" in text
    item = VideoFolder(root, resize_masks=True, **places).sequences("test")[0].load(0)
    shown = {frame: np.unique(prompt).tolist() for frame, prompt in item.video.prompts.items()}
    assert shown == {0: [0, 1], 5: [0, 2], 8: [0, 3], 13: [0, 4]}
    assert item.truth is None


@needs_real
def test_the_real_dense_masks_are_truth():
    root = REAL.resolve() / "DAVIS_240p"
    item = VideoFolder(root, "JPEGImages/240p", "Annotations/240p").sequences("val")[0].load(0)
    assert item.video.size == (240, 432)
    assert len(item.truth.plan.frames) == 68


def test_a_cycle_is_trained_on_videos_with_one_mask_too(tmp_path, write_video, moving):
    for number, count in enumerate((1, 6, 1, 6)):
        folders = (tmp_path / kind / f"v{number}" for kind in ("JPEGImages", "Annotations"))
        write_video(*folders, moving(count), 6)
    assert [one.name for one in VideoFolder(tmp_path).sequences("train")] == ["v1"]
    cycle = VideoFolder(tmp_path, sampler=CycleSampler(), merge=0.0)
    assert [one.name for one in cycle.sequences("train")] == ["v0", "v1", "v2"]
    assert [one.name for one in cycle.sequences("val")] == ["v3"]


def test_videos_of_one_mask_each_can_be_trained_on_but_not_validated_with(tmp_path, write_video, moving):
    for number in range(2):
        write_video(*(tmp_path / kind / f"v{number}" for kind in ("JPEGImages", "Annotations")), moving(1), 6)
    with pytest.raises(DatasetNotFoundError, match="Add masks, or use `lightning_vos predict`"):
        VideoFolder(tmp_path).sequences("train")
    cycle = VideoFolder(tmp_path, sampler=CycleSampler(), merge=0.0)
    assert [one.name for one in cycle.sequences("train")] == ["v0", "v1"]
    with pytest.raises(DatasetNotFoundError, match=r"without validation: --trainer\.limit_val_batches=0"):
        cycle.setup("fit")
    cycle.trainer = Trainer(limit_val_batches=0, logger=False, accelerator="cpu")
    cycle.setup("fit")
