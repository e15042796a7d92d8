"""`lightning_vos segment VIDEO MASK --output DIR` with a person's own files."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import assert_refused, end, kill, last, start

from lightning_vos import pretrained
from lightning_vos.io.frames import list_frames, read_frame
from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette, write_mask
from lightning_vos.io.video import VideoFile, VideoWriter
from lightning_vos.pretrained import WEIGHTS

IDS = {0, 7, 200}


@pytest.fixture
def video(data) -> Path:
    return data / "DAVIS/JPEGImages/480p/synthetic-val-000"


@pytest.fixture
def mask(workplace) -> Path:
    """Two objects with ids of their own, at the size of the frames."""
    labels = np.zeros((64, 80), np.uint8)
    labels[8:30, 8:30], labels[30:56, 40:70] = 7, 200
    write_mask(workplace / "first.png", labels, VOC_PALETTE[::-1])
    return workplace / "first.png"


@pytest.fixture
def weights(trained) -> tuple[str, str]:
    return "--weights", last(trained)


def write_film(video: Path, path: Path, times: int = 1) -> None:
    with VideoWriter(path, (64, 80), 10) as writer:
        for frame in list_frames(video) * times:
            writer.write(read_frame(frame))


def test_a_folder_of_frames(command, video, mask, weights, workplace):
    finished = command("segment", str(video), str(mask), "--output", "out", *weights)
    assert finished.status == 0, finished.err
    assert "8 masks are in out/masks; to look at: out/overlay.mp4" in finished.out
    written = sorted(Path("out/masks").iterdir())
    assert [path.name for path in written] == [f"{number:05}.png" for number in range(8)]
    assert np.array_equal(read_mask(written[0]), read_mask(mask))
    assert all(set(np.unique(read_mask(path, (64, 80)))) <= IDS for path in written)
    assert read_palette(written[-1]) == VOC_PALETTE[::-1]
    film = VideoFile(Path("out/overlay.mp4"))
    assert (film.size, film.frames_per_second, len(list(film))) == ((64, 80), 12, 8)


def test_a_video_file(command, video, mask, weights, workplace):
    write_film(video, Path("film.mp4"))
    finished = command("segment", "film.mp4", str(mask), "--output", "out", *weights)
    assert finished.status == 0, finished.err
    assert [path.name for path in sorted(Path("out/masks").iterdir())] == [f"{number:05}.png" for number in range(8)]
    assert VideoFile(Path("out/overlay.mp4")).frames_per_second == 10


def test_a_folder_of_masks_adds_objects(command, video, mask, weights, workplace):
    masks = workplace / "masks"
    masks.mkdir()
    mask.rename(masks / "00000.png")
    late = np.zeros((64, 80), np.uint8)
    late[40:60, 4:20] = 3
    write_mask(masks / "00004.png", late)
    finished = command("segment", str(video), "masks", "--output", "out", *weights)
    assert finished.status == 0, finished.err
    written = [read_mask(path) for path in sorted(Path("out/masks").iterdir())]
    assert not any((labels == 3).any() for labels in written[:4])
    assert (written[4][40:60, 4:20] == 3).all()


def test_the_weights_of_the_package_are_taken_where_none_are_named(command, video, mask, workplace):
    finished = command("segment", str(video), str(mask), "--output", "out")
    assert finished.status == 0, finished.err
    assert "Following 7, 200 of frame 0, by the small model of the package" in finished.out
    again = command("segment", str(video), str(mask), "--output", "again", "--weights", str(WEIGHTS))
    assert again.status == 0, again.err
    written = sorted(Path("out/masks").iterdir())
    assert len(written) == 8
    for path in written:
        differs = read_mask(path) != read_mask(Path("again/masks") / path.name)
        assert differs.mean() < 0.01  # channels lie otherwise in memory: rounding


def test_damaged_weights_of_the_package(command, video, mask, monkeypatch, workplace):
    (workplace / "small.ckpt").write_bytes(WEIGHTS.read_bytes()[:-1])
    monkeypatch.setattr(pretrained, "WEIGHTS", workplace / "small.ckpt")
    assert_refused(command("segment", str(video), str(mask), "--output", "out"), "small.ckpt", "Install")
    assert not (workplace / "out").exists()


@pytest.mark.parametrize("size", [(61, 47), (16, 16), (20, 400)])
def test_odd_videos(command, workplace, size):
    height, width = size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    (workplace / "odd").mkdir()
    for number in range(2):
        Image.fromarray(picture).save(workplace / f"odd/{number:05}.jpg")
    labels = np.zeros(size, np.uint8)
    labels[4:12, 4:12] = 1
    write_mask(workplace / "first.png", labels)
    finished = command("segment", "odd", "first.png", "--output", "out")
    assert finished.status == 0, finished.err
    assert [read_mask(path).shape for path in sorted(Path("out/masks").iterdir())] == [size, size]


def test_masks_that_are_not_meant_so(command, video, mask, weights, workplace):
    to = ("--output", "out", *weights)
    soft = np.zeros((64, 80), np.uint8)
    soft[8:30, 8:30] = np.arange(22) * 11
    Image.fromarray(soft).save("soft.png")
    assert_refused(command("segment", str(video), "soft.png", *to), "soft.png", "22 values", "--threshold 128")
    shutil.copytree(video, "frames")
    mask.rename("frames/mask.png")
    assert_refused(command("segment", "frames", "frames/mask.png", *to), "lies among the frames", "another folder")
    Path("frames/mask.png").rename("frames/00000.png")
    assert_refused(command("segment", "frames", "frames/00000.png", *to), "Two frames of one name", "00000.jpg")
    assert not Path("out").exists()


def test_two_masks_for_one_frame(command, video, mask, weights, workplace):
    write_film(video, Path("film.mp4"))
    (workplace / "masks").mkdir()
    for name in ("1", "00001"):
        write_mask(workplace / f"masks/{name}.png", read_mask(mask))
    finished = command("segment", "film.mp4", "masks", "--output", "out", *weights)
    assert_refused(finished, "two masks for one frame", "2 for 1")


def test_a_mask_names_the_frame_it_belongs_to(command, video, mask, weights, workplace):
    mask.rename("00002.png")
    finished = command("segment", str(video), "00002.png", "--output", "out", *weights)
    assert finished.status == 0, finished.err
    written = [read_mask(path) for path in sorted(Path("out/masks").iterdir())]
    assert not written[0].any()
    assert not written[1].any()
    assert np.array_equal(written[2], read_mask(Path("00002.png")))


def test_the_size_of_the_network_is_a_choice(command, video, mask, weights, workplace):
    outputs = {}
    for name, size in (("own", ()), ("small", ("--size", "33", "41"))):
        finished = command("segment", str(video), str(mask), "--output", name, *size, *weights)
        assert finished.status == 0, finished.err
        outputs[name] = [read_mask(path, (64, 80)) for path in sorted((Path(name) / "masks").iterdir())]
    assert any(not np.array_equal(own, small) for own, small in zip(*outputs.values(), strict=True))


def test_what_is_missing(command, video, mask, weights, workplace):
    to = ("--output", "out")
    assert_refused(command("segment", "none.mp4", str(mask), *to, *weights), "There is no video", "none.mp4")
    assert_refused(command("segment", str(video), "none.png", *to, *weights), "Mask not found: none.png")
    assert_refused(command("segment", str(video), *to), "no MASK", "VIDEO MASK", "TAFormer", "--weights FILE")
    assert_refused(command("segment", str(video), str(mask), *to, "--weights", "."), "is a folder")
    assert_refused(command("segment", str(video), str(mask), *to, "--weights", "no.ckpt"), "no.ckpt does not exist")
    (workplace / "empty").mkdir()
    assert_refused(command("segment", "empty", str(mask), *to, *weights), "No frames in empty", "an empty folder")
    assert_refused(command("segment", str(video), "empty", *to, *weights), "empty holds 0 masks", "indexed PNGs")
    assert not (workplace / "out").exists()
    (workplace / "file").touch()
    assert_refused(command("segment", str(video), str(mask), "--output", "file", *weights), "file")
    (workplace / "old/masks").mkdir(parents=True)
    (workplace / "old/masks/00000.png").touch()
    assert_refused(command("segment", str(video), str(mask), "--output", "old", *weights), "holds masks already")


def test_what_does_not_fit(command, video, mask, weights, workplace):
    to = ("--output", "out", *weights)
    write_mask(workplace / "small.png", np.ones((32, 40), np.uint8))
    assert_refused(command("segment", str(video), "small.png", *to), "small.png", "found 40x32", "--resize-masks")
    Image.open(mask).convert("RGB").save("colours.png")
    assert_refused(command("segment", str(video), "colours.png", *to), "colours.png", "mode RGB", "write_mask")
    write_mask(workplace / "nothing.png", np.zeros((64, 80), np.uint8))
    assert_refused(command("segment", str(video), "nothing.png", *to), "nothing to track", "id above 0")
    assert not list(workplace.glob("out/*.mp4"))
    finished = command("segment", str(video), "small.png", *to, "--resize-masks")
    assert finished.status == 0, finished.err
    assert (read_mask(Path("out/masks/00000.png")) == 1).all()


@pytest.mark.parametrize("size", [("0", "80"), ("64", "-5")])
def test_a_size_of_nothing(command, video, mask, weights, workplace, size):
    finished = command("segment", str(video), str(mask), "--output", "out", *weights, "--size", *size)
    assert_refused(finished, f"--size {' '.join(size)} is no size", "height and width in pixels")


def test_ctrl_c_leaves_whole_files_only(video, mask, weights, workplace):
    write_film(video, Path("film.mp4"), times=40)
    process = start("segment", "film.mp4", str(mask), "--output", "out", *weights)
    try:
        until = time.monotonic() + 100
        while not Path("out/masks/00003.png").is_file():
            assert process.poll() is None, Path("out.txt").read_text()
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        status, out = end(process, 60)
    finally:
        kill(process)
    assert status == 130, out
    assert "Traceback" not in out
    assert [path.name for path in Path("out").iterdir()] == ["masks"]
    written = sorted(Path("out/masks").iterdir())
    assert 3 < len(written) < 320
    assert [path.name for path in written] == [f"{number:05}.png" for number in range(len(written))]
    assert all(set(np.unique(read_mask(path, (64, 80)))) <= IDS for path in written)
