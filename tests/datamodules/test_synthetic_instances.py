"""The synthetic sets with classes: what is on disk is what was rendered, in the formats of YouTube-VIS and COCO."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from datamodules import synthetic_instances
from datamodules.rendering import Difficulty, render_clip
from datamodules.synthetic_files import FIRST_VAL_INDEX, StillSettings, SyntheticSettings
from datamodules.synthetic_instances import uncompressed, write_synthetic_coco, write_synthetic_youtube_vis
from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.holdout import is_held_out
from lightning_vos.evaluation.youtube_vis import read_ground_truth

LEAVING = Difficulty(disappearance=1.0)
VIDEOS = SyntheticSettings(train=3, val=2, frames=10, height=64, width=80, difficulty=LEAVING)
IMAGES = StillSettings(images=10, height=64, width=80)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("vis") / "youtube_vis"
    write_synthetic_youtube_vis(root, VIDEOS)
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images") / "coco"
    write_synthetic_coco(root, IMAGES)
    return root


def decoded(segmentation, height, width):
    return coco.decode(coco.frPyObjects(segmentation, height, width)).astype(bool)


def test_videos_hold_what_was_rendered(videos):
    content = json.loads((videos / "train.json").read_text())
    order = [0, 1, 2, FIRST_VAL_INDEX, FIRST_VAL_INDEX + 1]
    absent = 0
    for video, index in zip(content["videos"], order, strict=True):
        clip = render_clip(0, index, frames=10, height=64, width=80, difficulty=LEAVING)
        assert (video["height"], video["width"], video["length"]) == (64, 80, 10)
        for name, frame in zip(video["file_names"], clip.frames, strict=True):
            picture = np.asarray(Image.open(videos / "train/JPEGImages" / name), np.int16)
            assert np.abs(picture - frame).mean() < 6
        tracks = [row for row in content["annotations"] if row["video_id"] == video["id"] and not row["iscrowd"]]
        assert len(tracks) == clip.masks.max()
        for number, track in enumerate(tracks, start=1):
            for time, mask in enumerate(clip.masks == number):
                if not mask.any():
                    absent += 1
                    assert track["segmentations"][time] is track["bboxes"][time] is track["areas"][time] is None
                    continue
                assert isinstance(track["segmentations"][time]["counts"], list)
                assert np.array_equal(decoded(track["segmentations"][time], 64, 80), mask)
                assert track["bboxes"][time] == coco.toBbox(coco.encode(np.asfortranarray(mask, np.uint8))).tolist()
                assert track["areas"][time] == mask.sum()
    assert absent > 3


def test_one_crowd_two_held_out_videos_and_no_truth_of_valid(videos):
    content = json.loads((videos / "train.json").read_text())
    valid = json.loads((videos / "valid.json").read_text())
    assert sum(row["iscrowd"] for row in content["annotations"]) == 1
    names = [video["file_names"][0].split("/")[0] for video in content["videos"]]
    assert [is_held_out(name) for name in names] == [False] * 3 + [True] * 2
    assert "annotations" not in valid
    assert len(valid["videos"]) == 2
    assert not set(names) & {video["file_names"][0].split("/")[0] for video in valid["videos"]}
    assert all((videos / "valid/JPEGImages" / name).is_file() for name in valid["videos"][1]["file_names"])
    assert len(content["categories"]) == 40
    truth = read_ground_truth(videos / "train.json", "holdout_val")
    assert len(truth.scored) == 2
    assert all(video in truth.scored for video, _ in truth.tracks)


def test_images_are_of_every_kind_that_coco_has(images):
    content = json.loads((images / "annotations/instances_train2017.json").read_text())
    val = json.loads((images / "annotations/instances_val2017.json").read_text())
    assert (len(content["images"]), len(val["images"])) == (8, 2)
    ids = [category["id"] for category in content["categories"]]
    assert ids == [1, 19, 21, 28]
    of_image = {
        row["id"]: [a for a in content["annotations"] if a["image_id"] == row["id"]] for row in content["images"]
    }
    without = [number for number, row in enumerate(content["images"]) if not of_image[row["id"]]]
    assert without == [2]
    grey = [Image.open(images / "train2017" / row["file_name"]).mode for row in content["images"]]
    assert grey == ["RGB", "L", *["RGB"] * 6]
    assert len({(row["height"], row["width"]) for row in content["images"]}) == 2
    for number, row in enumerate(content["images"]):
        size = (row["height"], row["width"])
        assert Image.open(images / "train2017" / row["file_name"]).size == size[::-1]
        masks = render_clip(0, number, frames=3, height=size[0], width=size[1]).masks[0]
        for label, instance in enumerate([a for a in of_image[row["id"]] if not a["iscrowd"]], start=1):
            rle = coco.merge(coco.frPyObjects(instance["segmentation"], *size))
            true = np.asfortranarray(masks == label, np.uint8)
            assert coco.iou([rle], [coco.encode(true)], [0])[0, 0] > 0.85
            assert instance["area"] == true.sum()
    crowds = [row["segmentation"] for row in content["annotations"] if row["iscrowd"]]
    assert [type(crowd["counts"]) for crowd in crowds] == [list, str]
    assert coco.area(crowds[1]) == 16 * 80


def test_an_objects_category_is_its_colour(videos):
    content = json.loads((videos / "train.json").read_text())
    assert {row["category_id"] for row in content["annotations"]} <= {1, 15, 18, 34}
    leading = {18: 0, 15: 1, 34: 2}  # red, green, blue
    for row in content["annotations"]:
        video = content["videos"][row["video_id"] - 1]
        picture = np.asarray(Image.open(videos / "train/JPEGImages" / video["file_names"][0]), float)
        colour = picture[decoded(row["segmentations"][0], 64, 80)].mean(axis=0)
        if row["category_id"] == 15:
            assert colour.argmin() != 1
        elif row["category_id"] in leading and not row["iscrowd"]:
            assert colour.argmin() != leading[row["category_id"]]


@pytest.mark.parametrize(
    ("write", "settings", "other"),
    [
        (write_synthetic_youtube_vis, VIDEOS, SyntheticSettings(train=3, val=1, frames=10, height=64, width=80)),
        (write_synthetic_coco, IMAGES, StillSettings(images=9, height=64, width=80)),
    ],
)
def test_a_set_is_written_once_and_whole(tmp_path, monkeypatch, write, settings, other):
    written = []

    def interrupted(*_):
        written.append(0)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthetic_instances, "_describe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "set", settings)
    assert written
    assert list(tmp_path.iterdir()) == []

    write(tmp_path / "set", settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    content = {path: path.read_bytes() for path in before if path.is_file()}
    write(tmp_path / "set", settings)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    write(tmp_path / "again", settings)
    assert all(
        (tmp_path / "again" / path.relative_to(tmp_path / "set")).read_bytes() == content[path] for path in content
    )
    with pytest.raises(ConfigError, match="other settings"):
        write(tmp_path / "set", other)
    assert "synthetic" in (tmp_path / "set/README.txt").read_text()


@pytest.mark.parametrize("pixels", [[[0, 0], [0, 0]], [[1, 1], [1, 1]], [[1, 0], [0, 1]], [[0, 1, 1], [1, 0, 0]]])
def test_run_lengths_are_those_of_coco(pixels):
    mask = np.array(pixels, np.uint8)
    rle = uncompressed(mask)
    assert sum(rle["counts"]) == mask.size
    assert np.array_equal(decoded(rle, *mask.shape), mask.astype(bool))


def test_writing_needs_no_torch():
    code = "import sys, datamodules.synthetic_instances; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
