"""Video files, one frame at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import av
import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import FrameError
from lightning_vos.io.frames import to_tensor
from lightning_vos.io.writing import written_beside

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from torch import Tensor


class VideoFile:
    """The frames of a video file, (3, H, W) float32 RGB in [0, 1], decoded while they are iterated over.

    Frames stand upright as players show them, also where a telephone only noted how it was held. Each iteration
    begins at the first frame; one frame is in memory at a time.

    Args:
        path: A file of any format that FFmpeg reads.

    Attributes:
        path: The same.
        size: (H, W) of every frame, in pixels.
        frames_per_second: As the file states it; 24 where it does not.
        stated_frames: How many there are, as the file states it, which may be wrong; None where it does not.

    Raises:
        FrameError: The file is missing, damaged, or holds no video; or, while iterating, a frame has another size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as (container, stream):
            self.frames_per_second = float(stream.guessed_rate or 24)
            self.stated_frames = stream.frames or None
            first = next(container.decode(stream), None)
            if first is None:
                raise self._unreadable("no frame")
            height, width, _ = _upright(first).shape
        self.size = (height, width)

    def __iter__(self) -> Iterator[Tensor]:
        with self._opened() as (container, stream):
            for index, decoded in enumerate(container.decode(stream)):
                frame = _upright(decoded)
                if frame.shape[:2] != self.size:
                    raise FrameError(
                        f"Frame of another size than the video: frame {index} of {self.path}\n"
                        f"  found {frame.shape[1]}x{frame.shape[0]}, expected {self.size[1]}x{self.size[0]}"
                        " (width x height), the size of the first frame.\n"
                        "Cut the video where the size changes."
                    )
                yield to_tensor(frame)

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        try:
            with av.open(self.path) as container:
                if not container.streams.video:
                    raise self._unreadable("no video stream")
                yield container, container.streams.video[0]
        except (av.error.FFmpegError, OSError) as error:
            raise self._unreadable(str(error)) from error

    def _unreadable(self, found: str) -> FrameError:
        return FrameError(
            f"Video that cannot be read: {self.path}\n"
            f"  found {found}\n"
            "  expected a video file that FFmpeg can decode, or name a folder with one picture a frame."
        )


class VideoWriter:
    """Writes an H.264 file that browsers play; it appears whole when the block ends, and not at all if that raises.

    H.264 with halved colour needs even sizes: an odd one is filled up by repeating the last row or column.

    Args:
        path: The .mp4 to write; its parents are created.
        size: (H, W) of the frames, in pixels.
        frames_per_second: Frames a second.
    """

    def __init__(self, path: Path, size: tuple[int, int], frames_per_second: float = 24) -> None:
        self.path = path
        self.size = size
        self.frames_per_second = frames_per_second
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(written_beside(self.path))
            # The index of the file goes to its front, so that a browser can play before it has all.
            self._container = stack.enter_context(
                av.open(temporary, "w", format="mp4", options={"movflags": "+faststart"})
            )
            rate = Fraction(self.frames_per_second).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": "18"})
            self._stream.height, self._stream.width = (length + length % 2 for length in self.size)
            self._stream.pix_fmt = "yuv420p"
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame.

        Args:
            frame: (H, W, 3) RGB.

        Raises:
            ValueError: The frame has another size than the video.
        """
        if frame.shape != (*self.size, 3):
            raise ValueError(f"expected a frame of shape {(*self.size, 3)}, got {frame.shape}")
        height, width = self.size
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def _finish(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._container.mux(self._stream.encode())


def _upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
