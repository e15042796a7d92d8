import struct

import av
import numpy as np
import pytest
import torch

from lightning_vos.errors import FrameError
from lightning_vos.io.video import VideoFile, VideoWriter


def gradient(height, width, offset=0):
    y, x = np.mgrid[:height, :width]
    return np.stack([60 + y, 60 + x, np.full_like(x, 40 + offset)], axis=-1).astype(np.uint8)


def write(path, size, count=3, frames_per_second=24.0):
    with VideoWriter(path, size, frames_per_second) as writer:
        for index in range(count):
            writer.write(gradient(*size, 60 * index))
    return path


def test_what_was_written_is_read_back(tmp_path):
    path = write(tmp_path / "new" / "video.mp4", (64, 96), 5, 29.97)
    video = VideoFile(path)
    assert video.size == (64, 96)
    assert video.frames_per_second == pytest.approx(29.97, abs=1e-3)
    for _ in range(2):  # each iteration begins anew
        frames = list(video)
        assert len(frames) == 5
        for index, frame in enumerate(frames):
            wanted = torch.from_numpy(gradient(64, 96, 60 * index).transpose(2, 0, 1).astype(np.float32) / 255)
            assert (frame.shape, frame.dtype) == ((3, 64, 96), torch.float32)
            assert (frame - wanted).abs().mean() < 0.02
    assert list(path.parent.iterdir()) == [path]


def test_browsers_can_play_it(tmp_path):
    path = write(tmp_path / "video.mp4", (64, 96))
    with av.open(path) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("size", [(33, 48), (32, 47), (33, 47)])
def test_odd_sizes_are_filled_up_with_the_edge(tmp_path, size):
    frame = next(iter(VideoFile(write(tmp_path / "video.mp4", size))))
    height, width = size
    assert frame.shape == (3, height + height % 2, width + width % 2)
    assert (frame[:, height - 1] - frame[:, -1]).abs().max() < 0.03
    assert (frame[:, :, width - 1] - frame[:, :, -1]).abs().max() < 0.03


def test_one_frame_at_a_time(tmp_path):
    """Frames come before the end of the file is looked at: the second half may be missing."""
    path = tmp_path / "video.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuvj420p"
        for index in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gradient(64, 96, index), format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = iter(VideoFile(path))
    assert next(frames).shape == (3, 64, 96)


@pytest.mark.parametrize(("degrees", "turn"), [(90, -1), (180, 2), (270, 1)])
def test_turned_telephone_videos_stand_upright(tmp_path, degrees, turn):
    """Players turn a video by the matrix of its track header, clockwise."""
    path = write(tmp_path / "video.mp4", (64, 96))
    stored = next(iter(VideoFile(path)))
    data = bytearray(path.read_bytes())
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30)
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = matrix
    path.write_bytes(data)
    video = VideoFile(path)
    upright = next(iter(video))
    assert video.size == tuple(upright.shape[1:])
    assert torch.equal(upright, torch.rot90(stored, turn, (1, 2)))


def test_unreadable_files(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    whole = write(tmp_path / "whole.mp4", (64, 96)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:300])
    (tmp_path / "empty.mp4").touch()
    with av.open(tmp_path / "sound.wav", "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    for name in ("missing.mp4", "text.mp4", "cut.mp4", "empty.mp4", "sound.wav"):
        with pytest.raises(FrameError, match=rf"cannot be read: .*{name}") as error:
            VideoFile(tmp_path / name)
        assert len(str(error.value).splitlines()) <= 8
    with pytest.raises(FrameError):
        VideoFile(tmp_path)


def test_an_error_leaves_no_file(tmp_path):
    path = write(tmp_path / "video.mp4", (64, 96))
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="stop"), VideoWriter(path, (64, 96)) as writer:
        writer.write(gradient(64, 96))
        raise RuntimeError("stop")
    with pytest.raises(ValueError, match=r"\(64, 96, 3\), got \(64, 95, 3\)"), VideoWriter(path, (64, 96)) as writer:
        writer.write(gradient(64, 95))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before
