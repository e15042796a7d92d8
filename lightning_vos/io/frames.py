"""Frames of a video as picture files in a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_vos.errors import FrameError

if TYPE_CHECKING:
    from torch import Tensor

FRAME_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


def list_frames(folder: Path) -> list[Path]:
    """List the frames of a video in the order of their names.

    Args:
        folder: Holds one JPEG or PNG a frame; hidden files and other kinds are passed over.

    Raises:
        FrameError: The folder is missing or holds no frame.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise FrameError(f"No folder of frames: {folder}\n  found {found}, expected a folder with one picture a frame.")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    frames = [entry for entry in entries if entry.suffix.lower() in FRAME_SUFFIXES]
    if not frames:
        names = ", ".join(entry.name + "/" * entry.is_dir() for entry in entries[:3])
        found = f"{len(entries)} entries: {names}{', ...' * (len(entries) > 3)}" if entries else "an empty folder"
        raise FrameError(
            f"No frames in {folder}\n"
            f"  found {found}\n"
            "  expected one .jpg, .jpeg or .png a frame, such as 00000.jpg.\n"
            "Name the folder that holds the pictures themselves."
        )
    return frames


def ordered_frames(folder: Path) -> list[Path]:
    """As `list_frames`, of frames whose names sort as the numbers in them do.

    Raises:
        FrameError: As `list_frames`; or they do not, and the order of the video would be lost; or two have one name.
    """
    frames = list_frames(folder)
    for path, other in pairwise(frames):
        if path.stem == other.stem:
            raise FrameError(
                f"Two frames of one name in {folder}: {path.name} and {other.name}.\n"
                "Expected one picture a frame, and nothing else: move masks to a folder of their own."
            )
    counted = sorted(frames, key=_text_and_numbers)
    for path, other in zip(frames, counted, strict=True):
        if path != other:
            raise FrameError(
                f"The names of the frames in {folder} do not sort as their numbers do: {path.name} comes before "
                f"{other.name}.\nExpected numbers of as many digits each, such as 00000.jpg: rename them."
            )
    return frames


def _text_and_numbers(path: Path) -> list[str | int]:
    parts = re.split(r"(\d+)", path.stem)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)]


def read_frame(path: Path) -> NDArray[np.uint8]:
    """Read a frame as its pixels are stored: like the readers of the benchmarks, without turning it by its EXIF tag.

    Decoded with PIL, for OpenCV silently fills up a file that was cut off.

    Args:
        path: A JPEG or PNG.

    Returns:
        (H, W, 3) RGB.

    Raises:
        FrameError: The file is missing, cut off or no picture.
    """
    try:
        with Image.open(path) as image:
            # np.array(image) would have Pillow pack the pixels twice; convert() copies what is RGB already.
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB")).copy()
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error


def frame_size(path: Path) -> tuple[int, int]:
    """Read the size that `read_frame` would give, from the header alone.

    Args:
        path: A JPEG or PNG.

    Returns:
        (H, W) in pixels.

    Raises:
        FrameError: The file is missing or no picture.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error


def to_tensor(frame: NDArray[np.uint8]) -> Tensor:
    """Turn a picture into what networks take.

    Args:
        frame: (H, W, 3) RGB.

    Returns:
        (3, H, W) float32 in [0, 1], with memory of its own.

    Example:
        >>> to_tensor(np.full((2, 4, 3), 255, dtype=np.uint8)).shape
        torch.Size([3, 2, 4])
    """
    import torch  # loading it takes seconds, which listing and checking frames should not pay

    planes = torch.from_numpy(frame).permute(2, 0, 1)
    return planes.to(torch.float32, memory_format=torch.contiguous_format) / 255


class FrameFolder(Sequence["Tensor"]):
    """The frames of a video, (3, H, W) float32 in [0, 1], each read from disk when it is indexed.

    Args:
        paths: One picture a frame, in order; a slice of the sequence is as lazy as the whole.

    Attributes:
        paths: The same.
        size: (H, W) of the first frame, in pixels, which every frame must have.

    Raises:
        FrameError: There is no path; or, when it is indexed, a frame cannot be read or has another size than the first.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise FrameError("A video without frames: expected at least one picture.")
        self.paths = paths
        self.size = frame_size(paths[0])

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> FrameFolder: ...
    def __getitem__(self, index: int | slice) -> Tensor | FrameFolder:
        if isinstance(index, slice):
            part = copy(self)
            part.paths = self.paths[index]
            return part
        path = self.paths[index]
        frame = read_frame(path)
        if frame.shape[:2] != self.size:
            raise FrameError(
                f"Frame of another size than the video: {path}\n"
                f"  found {frame.shape[1]}x{frame.shape[0]}, expected {self.size[1]}x{self.size[0]} (width x height),"
                " the size of the first frame.\n"
                "Scale the frames to one size, or move the odd ones out of the folder."
            )
        return to_tensor(frame)


def _unreadable(path: Path, error: Exception) -> FrameError:
    if isinstance(error, FileNotFoundError):
        return FrameError(f"Frame not found: {path}")
    return FrameError(
        f"Frame that cannot be read: {path}\n"
        f"  found {error}\n"
        "  expected a whole JPEG or PNG; an interrupted copy or download leaves such files.\n"
        "Copy it again."
    )
