import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vos.commands.inputs import read_inputs
from lightning_vos.errors import FrameError
from lightning_vos.io.frames import FrameFolder, frame_size, list_frames, ordered_frames, read_frame, to_tensor

RANDOM = np.random.default_rng(0)


def textured(height, width):
    noise = RANDOM.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def video(tmp_path):
    for index in range(3):
        Image.new("RGB", (20, 12), (index, 100, 255)).save(tmp_path / f"{index:05d}.png")
    return tmp_path


def test_frames_are_listed_by_name(tmp_path):
    for name in ("b.JPG", "a.png", "10.jpeg", "9.jpg", ".hidden.jpg", "notes.txt", "._9.jpg"):
        (tmp_path / name).touch()
    assert [path.name for path in list_frames(tmp_path)] == ["10.jpeg", "9.jpg", "a.png", "b.JPG"]


@pytest.mark.parametrize(
    "names",
    [
        ["00000.jpg", "00001.jpg", "00010.png"],
        ["8.jpg", "9.jpg"],
        ["frame01.jpg", "frame02.jpg", "frame12.jpg"],
        ["left_2.jpg", "right_1.jpg"],
        ["a.jpg", "b.jpg"],
        ["cam1_09.jpg", "cam1_10.jpg", "cam2_01.jpg"],
    ],
)
def test_names_that_sort_as_their_numbers_are_frames_in_order(tmp_path, names):
    for name in reversed(names):
        (tmp_path / name).touch()
    assert [path.name for path in ordered_frames(tmp_path)] == names


@pytest.mark.parametrize("stem", ["", "frame", "cam2_"])
def test_names_that_do_not_sort_as_their_numbers_are_refused(tmp_path, stem):
    for number in range(1, 13):
        (tmp_path / f"{stem}{number}.jpg").touch()
    with pytest.raises(FrameError, match=rf"{stem}10\.jpg comes before {stem}2\.jpg"):
        ordered_frames(tmp_path)
    with pytest.raises(FrameError, match="do not sort as their numbers do"):  # `segment` asks for this
        read_inputs(tmp_path, tmp_path / "mask.png")


def test_folders_without_frames(tmp_path):
    with pytest.raises(FrameError, match="found nothing"):
        list_frames(tmp_path / "missing")
    with pytest.raises(FrameError, match="found an empty folder"):
        list_frames(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "movie.mp4").touch()
    with pytest.raises(FrameError, match=r"found 2 entries: inner/, movie\.mp4\n"):
        list_frames(tmp_path)
    with pytest.raises(FrameError, match="found a file"):
        list_frames(tmp_path / "movie.mp4")


@pytest.mark.parametrize(("mode", "colour", "wanted"), [
    ("RGB", (10, 20, 30), (10, 20, 30)),
    ("L", 40, (40, 40, 40)),
    ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
    ("P", 0, (0, 0, 0)),
])  # fmt: skip
def test_any_picture_is_read_as_rgb(tmp_path, mode, colour, wanted):
    Image.new(mode, (5, 3), colour).save(tmp_path / "frame.png")
    frame = read_frame(tmp_path / "frame.png")
    assert (frame.shape, frame.dtype) == ((3, 5, 3), np.uint8)
    assert (frame == wanted).all()
    assert frame_size(tmp_path / "frame.png") == (3, 5)


def test_exif_rotation_is_ignored_by_both(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 12)).save(tmp_path / "frame.jpg", exif=exif)
    assert frame_size(tmp_path / "frame.jpg") == read_frame(tmp_path / "frame.jpg").shape[:2] == (12, 20)


@pytest.mark.parametrize("options", [{"quality": 75}, {"quality": 75, "progressive": True}, {"quality": 98}])
def test_cut_off_jpegs_are_refused(tmp_path, options):
    """At every tenth of a file that is longer than one read of the decoder, and at each of its last bytes."""
    textured(400, 600).save(tmp_path / "whole.jpg", **options)
    data = (tmp_path / "whole.jpg").read_bytes()
    cut = tmp_path / "cut.jpg"
    for length in [*range(0, len(data), len(data) // 10), *range(len(data) - 20, len(data))]:
        cut.write_bytes(data[:length])
        with pytest.raises(FrameError, match=r"cannot be read: .*cut\.jpg"):
            read_frame(cut)


def test_missing_and_foreign_files(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    for read in (read_frame, frame_size):
        with pytest.raises(FrameError, match=r"not found: .*none\.jpg"):
            read(tmp_path / "none.jpg")
        with pytest.raises(FrameError, match=r"cannot be read: .*text\.jpg"):
            read(tmp_path / "text.jpg")


def test_tensor_has_its_own_memory():
    frame = RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    tensor = to_tensor(frame)
    wanted = torch.from_numpy(frame.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    assert tensor.is_contiguous()
    assert torch.equal(tensor, wanted)
    frame[:] = 0
    assert torch.equal(tensor, wanted)


def test_folder_is_read_when_indexed(video):
    paths = list_frames(video)
    frames = FrameFolder(paths)
    paths[1].unlink()
    assert (len(frames), frames.size) == (3, (12, 20))
    assert frames[0].shape == (3, 12, 20)
    assert frames[-1][0, 0, 0] == torch.tensor(2.0) / 255
    with pytest.raises(FrameError, match="00001"):
        frames[1]
    with pytest.raises(IndexError):
        frames[3]
    assert [float(frame[0, 0, 0] * 255) for frame in pickle.loads(pickle.dumps(frames))[::2]] == [0.0, 2.0]


def test_slices_are_lazy_and_keep_the_size(video):
    frames = FrameFolder(list_frames(video))
    Image.new("RGB", (21, 12)).save(video / "00001.png")
    part = frames[1:]
    assert (len(part), len(frames), len(frames[:0])) == (2, 3, 0)
    assert part[1].shape == (3, 12, 20)
    with pytest.raises(FrameError, match=r"00001\.png\n  found 21x12, expected 20x12") as error:
        part[0]
    assert len(str(error.value).splitlines()) <= 8


def test_folder_of_no_frames():
    with pytest.raises(FrameError, match="without frames"):
        FrameFolder([])


def test_listing_frames_never_imports_torch():
    code = "import sys, lightning_vos.io.frames, lightning_vos.io.overlay; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
