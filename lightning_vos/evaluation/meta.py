"""Which objects a video has, and in which frames, as the meta files of YouTube-VOS and LVOS say it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lightning_vos.errors import DatasetNotFoundError

_Object = TypeVar("_Object")

LVOS_STEP = 5  # the numbers of neighbouring frames differ by 5

_PLAIN_NAME = re.compile(r"(?!\.{1,2}\Z)[^/\\\0]+")


class YouTubeVOSObject(NamedTuple):
    """An object of a video in a `meta.json` of YouTube-VOS.

    Attributes:
        category: Its category; None where the file does not say it, as that of a split with hidden truth need not.
        frames: The names of all annotated frames from its first appearance on, in order and each once; it may be hidden
            in some.
    """

    category: str | None
    frames: tuple[str, ...]


class LVOSObject(NamedTuple):
    """An object of a video in a `<split>_meta.json` of LVOS.

    Attributes:
        start: Number of the frame in which it first appears; the name of a frame is its number in eight digits.
        end: Number of its last frame.
        frame_nums: How many frames the file counts, the first and the last included; more or fewer than there are, if
            the file is inconsistent.
    """

    start: int
    end: int
    frame_nums: int

    @property
    def frames(self) -> range:
        """The numbers of its frames as the official evaluator counts them: every fifth, without `end`."""
        return range(self.start, self.end, LVOS_STEP)

    @property
    def scored(self) -> range:
        """The numbers of the frames that the official evaluator scores.

        Neither the first, which is given, nor the last of those that are counted.
        """
        return self.frames[1 : max(self.frame_nums - 1, 1)]


def read_youtube_vos_meta(file: Path) -> dict[str, dict[int, YouTubeVOSObject]]:
    """Read a `meta.json` of YouTube-VOS.

    Args:
        file: `{"videos": {"<video>": {"objects": {"<id>": {"category": "person", "frames": ["00000", ...]}}}}}`.

    Returns:
        Video -> object id, 1 to 255 -> what is said of it. Names of videos and frames are safe to make paths of.

    Raises:
        DatasetNotFoundError: The file is not there, or not of that form.
    """
    return _read(file, _listed)


def read_lvos_meta(file: Path) -> dict[str, dict[int, LVOSObject]]:
    """Read a `<split>_meta.json` of LVOS.

    Args:
        file: `{"videos": {"<video>": {"objects": {"<id>": {"frame_range": {"start": "00000001", "end": "00000496",
            "frame_nums": "100"}}}}}}`; the three may be text or numbers.

    Returns:
        Video -> object id, 1 to 255 -> what is said of it. Names of videos are safe to make paths of.

    Raises:
        DatasetNotFoundError: The file is not there, or not of that form.
    """
    return _read(file, _ranged)


def _read(file: Path, parse: Callable[[Path, str, Any], _Object]) -> dict[str, dict[int, _Object]]:
    content = read_json(file, "the objects of each video and their frames")
    videos = content.get("videos") if isinstance(content, Mapping) else None
    if not isinstance(videos, Mapping):
        raise not_as_expected(file, "no objects of videos, by the videos' names")
    require_plain_names(file, videos)
    meta = {}
    for name, video in videos.items():
        try:
            entries = {int(object_id): entry for object_id, entry in video["objects"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise not_as_expected(file, f"no objects, by their ids, of video {name}") from error
        if any(not 0 < object_id < 256 for object_id in entries):
            raise not_as_expected(file, f"object ids {sorted(entries)} of video {name}, which masks cannot hold")
        meta[name] = {i: parse(file, f"object {i} in video {name}", entry) for i, entry in entries.items()}
    return meta


def _listed(file: Path, what: str, entry: Any) -> YouTubeVOSObject:
    frames = entry.get("frames") if isinstance(entry, Mapping) else None
    if not isinstance(frames, list) or not all(isinstance(frame, str) for frame in frames):
        raise not_as_expected(file, f"no list of frame names of {what}")
    require_plain_names(file, frames)
    category = entry.get("category")
    return YouTubeVOSObject(category if isinstance(category, str) else None, tuple(sorted(set(frames))))


def _ranged(file: Path, what: str, entry: Any) -> LVOSObject:
    try:
        return LVOSObject(*(int(entry["frame_range"][key]) for key in LVOSObject._fields))
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise not_as_expected(file, f"no frame_range with start, end and frame_nums of {what}") from error


def read_json(file: Path, expected: str) -> Any:
    """Read a JSON file that belongs to a dataset.

    Args:
        file: The file.
        expected: What it should hold, for messages.

    Raises:
        DatasetNotFoundError: It cannot be read, or is no JSON.
    """
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise DatasetNotFoundError(f"{file} cannot be read: {error.strerror}\n  expected {expected} there") from error
    except (ValueError, RecursionError) as error:
        raise DatasetNotFoundError(f"{file} is no JSON: {error}\n  expected {expected}") from error


def is_plain_name(name: str) -> bool:
    """Whether a name is that of one file or folder, so that a path made of it stays where it was begun."""
    return _PLAIN_NAME.fullmatch(name) is not None


def require_plain_names(file: Path, names: Iterable[str]) -> None:
    """Refuse names of a dataset's file that could lead out of the dataset's folders.

    Raises:
        DatasetNotFoundError: One of them is no plain name.
    """
    for name in names:
        if not is_plain_name(name):
            raise not_as_expected(file, f"the name {name!r}, expected plain names without slashes")


def not_as_expected(file: Path, found: str, advice: str = "Get the file of the dataset again.") -> DatasetNotFoundError:
    """The error for a file that is there, but not as the dataset ships it, or not as a person was told to write it."""
    return DatasetNotFoundError(f"{file} is not as expected\n  found {found}\n{advice}")
