"""Videos and tracks of a JSON in the format of YouTube-VIS, kept small enough for worker processes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.annotations import (
    AnnotationFault,
    MaskTexts,
    faults_of,
    field,
    frame_size_of,
    inside,
    labels_of,
    mask_text,
    missing_files,
    read_categories,
    rows,
)
from datamodules.instance_clips import RawClip
from lightning_vos.errors import DatasetNotFoundError, FrameError
from lightning_vos.evaluation.youtube_vis import Track
from lightning_vos.io.frames import FrameFolder, read_frame
from lightning_vos.structures import InstanceVideo, ScoredInstanceVideo

_FORM = "YouTube-VIS"


class VideoRow(NamedTuple):
    """A video of a JSON."""

    video_id: int
    name: str  # the folder of its frames; "video <id>" where the file names have none
    size: tuple[int, int]  # (H, W) in pixels
    frames: tuple[str, ...]  # file names in order, relative to the folder of the frames


@dataclass(frozen=True)
class VideoList:
    """The videos of a split.

    Attributes:
        file: The JSON.
        folder: The folder of the frames.
        categories: Id -> name, ids rising.
        videos: In the order of the file.
    """

    file: Path
    folder: Path
    categories: Mapping[int, str]
    videos: Sequence[VideoRow]


def read_videos(file: Path, folder: Path, content: Any) -> VideoList:
    """Check what a JSON says of videos and categories.

    Args:
        file: The JSON.
        folder: The folder of the frames.
        content: What the JSON holds.

    Raises:
        DatasetNotFoundError: It is malformed, names files outside of the folder, or lists frames out of order.
    """
    with faults_of(file, "the file", _FORM):
        categories = read_categories(content)
        entries = rows(content, "videos")
        if not entries:
            raise AnnotationFault("no video")
    videos: dict[int, VideoRow] = {}
    for number, row in enumerate(entries):
        with faults_of(file, f"videos[{number}]", _FORM):
            video = _video_row(row)
            if video.video_id in videos:
                raise AnnotationFault(f"id {video.video_id}, which an earlier one has")
            videos[video.video_id] = video
    return VideoList(file, folder, categories, list(videos.values()))


def _video_row(row: Any) -> VideoRow:
    video_id, size = field(row, "id", int), frame_size_of(row)
    frames = tuple(inside(name) for name in rows(row, "file_names"))
    if not frames:
        raise AnnotationFault(f"no file_names of video {video_id}")
    order = [_natural(name) for name in frames]
    unordered = next((k for k in range(1, len(order)) if order[k] <= order[k - 1]), None)
    if unordered is not None:
        raise AnnotationFault(
            f"file_names out of order: {frames[unordered]!r} after {frames[unordered - 1]!r}, expected the frames in"
            " the order of time, each once, with names that rise"
        )
    folder = str(PurePosixPath(frames[0]).parent)
    return VideoRow(video_id, f"video {video_id}" if folder == "." else folder, size, frames)


def _natural(name: str) -> list[str | int]:
    """Orders frame9 before frame10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name, flags=re.ASCII)]


def require_frames(found: VideoList) -> None:
    """Check that every frame is there.

    Raises:
        DatasetNotFoundError: One is not.
    """
    listed = [name for row in found.videos for name in row.frames]
    missing = missing_files(found.folder, listed)
    if missing:
        names = {PurePosixPath(name).parent.name for name in missing}
        raise DatasetNotFoundError(
            f"{len(missing)} of {len(listed)} frames that {found.file} lists are not there, of {len(names)} videos\n"
            f"  missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}\n"
            f"  expected in {found.folder.absolute()}\n"
            "The copy is not complete: add the frames, or name the folder that holds them with --data.frames FOLDER."
        )


class TrackClips:
    """Clips of videos with the instances that they show.

    Args:
        found: The videos; each has an instance.
        tracks: (K, 3) the instances: the number of the video, rising, its class, and the number of its first mask.
        masks: The masks of all instances, one for every frame of their video.
        length: Frames in a clip.
        reach: The largest gap between the key frame and its neighbours.
    """

    def __init__(self, found: VideoList, tracks: NDArray[np.int64], masks: MaskTexts, length: int, reach: int) -> None:
        self.found = found
        self.tracks = tracks
        self.masks = masks
        self.length = length
        self.reach = reach
        self.ends = np.cumsum([len(row.frames) for row in found.videos])
        self.first_track = np.searchsorted(tracks[:, 0], np.arange(len(found.videos) + 1))

    def __len__(self) -> int:
        """Every frame is the key of one clip of an epoch."""
        return int(self.ends[-1])

    def clip(self, number: int, rng: np.random.Generator) -> RawClip:
        """The clip whose key frame has that number among all frames; it may show no instance.

        Raises:
            FrameError: A frame cannot be read, or has another size than the JSON says.
        """
        video = int(np.searchsorted(self.ends, number, side="right"))
        row = self.found.videos[video]
        key = number - int(self.ends[video]) + len(row.frames)
        positions = clip_positions(key, len(row.frames), self.length, self.reach, rng)
        tracks = self.tracks[self.first_track[video] : self.first_track[video + 1]]
        masks = [[self.masks.decode(int(first + time), row.size) for time in positions] for first in tracks[:, 2]]
        frames = [_frame(self.found, row, time) for time in positions]
        return RawClip(np.stack(frames), np.array(masks), tracks[:, 1])


def clip_positions(key: int, frames: int, length: int, reach: int, rng: np.random.Generator) -> list[int]:
    """The positions of a clip, rising, as SeqFormer draws them; a position may occur twice.

    Args:
        key: The key frame.
        frames: How many frames the video has.
        length: How many are drawn.
        reach: The largest gap between the key frame and its two neighbours, which stay inside the video.
        rng: The source of every draw.
    """
    before, behind = rng.integers(1, reach, size=2, endpoint=True).tolist()
    first, last = max(0, key - before), min(frames - 1, key + behind)
    positions = [key, first, last][:length]
    others = length - len(positions)
    outside = [*range(first), *range(last, frames)]  # the last neighbour itself may be drawn once more
    pool = outside if len(outside) >= others else range(frames)
    return sorted(positions + rng.choice(pool, others, replace=len(pool) < others).tolist())


def read_tracks(found: VideoList, content: Any, length: int, reach: int) -> TrackClips:
    """Check the instances of videos; videos that have none but crowds are left out.

    Args:
        found: The videos.
        content: What their JSON holds.
        length: Frames in a clip.
        reach: As `clip_positions` takes it.

    Raises:
        DatasetNotFoundError: The instances are malformed, or there are none.
    """
    if not content.get("annotations"):
        raise DatasetNotFoundError(
            f"{found.file} has no annotations, so nothing can be learned from it: its truth is not public.\n"
            "Train on the training videos: --data.train_split train or holdout_train."
        )
    with faults_of(found.file, "the file", _FORM):
        entries = rows(content, "annotations")
        listed = {field(row, "id", int) for row in content["videos"]}
    labels = labels_of(found.categories)
    videos = {row.video_id: row for row in found.videos}
    of_video: defaultdict[int, list[tuple[int, list[bytes]]]] = defaultdict(list)
    for number, row in enumerate(entries):
        with faults_of(found.file, f"annotations[{number}]", _FORM):
            video_id, category = field(row, "video_id", int), field(row, "category_id", int)
            if video_id not in listed or category not in labels:
                raise AnnotationFault(f"of video {video_id} and category {category}, which the file does not list both")
            if row.get("iscrowd", 0) not in (0, 1):
                raise AnnotationFault(f"iscrowd {row['iscrowd']!r}, expected 0 or 1")
            if video_id not in videos or row.get("iscrowd"):
                continue
            video, segmentations = videos[video_id], rows(row, "segmentations")
            if len(segmentations) != len(video.frames):
                raise AnnotationFault(
                    f"{len(segmentations)} segmentations, expected one or null for each of the {len(video.frames)}"
                    f" frames of {video.name}"
                )
            of_video[video_id].append(
                (labels[category], [mask_text(part or None, video.size) for part in segmentations])
            )
    shown = [row for row in found.videos if row.video_id in of_video]
    if not shown:
        raise DatasetNotFoundError(
            f"None of the {len(found.videos)} videos of {found.file} has an instance that is no crowd.\n"
            "Name another file, or get this one again."
        )
    tracks: list[tuple[int, int, int]] = []
    texts: list[bytes] = []
    for position, video in enumerate(shown):
        for label, masks in of_video[video.video_id]:
            tracks.append((position, label, len(texts)))
            texts += masks
    return TrackClips(replace(found, videos=shown), np.array(tracks, np.int64), MaskTexts.of(texts), length, reach)


@dataclass(frozen=True)
class TrackedVideo:
    """A video of a split, and apart from it its tracks."""

    found: VideoList
    row: VideoRow
    tracks: Mapping[tuple[int, int], Sequence[Track]] | None

    def load(self, number: int) -> ScoredInstanceVideo:
        """The video, whose frames are read one by one when they are indexed.

        Args:
            number: The number of the video in its split.

        Raises:
            FrameError: The first frame cannot be read, or has another size than the JSON says.
        """
        frames = FrameFolder([self.found.folder / name for name in self.row.frames])
        if frames.size != self.row.size:
            raise _wrong_size(frames.paths[0], frames.size, self.found, self.row)
        video = InstanceVideo(
            name=self.row.name,
            video_id=self.row.video_id,
            frames=frames,
            size=self.row.size,
            categories=self.found.categories,
        )
        return ScoredInstanceVideo(number, video, self.tracks)


def _frame(found: VideoList, row: VideoRow, time: int) -> NDArray[np.uint8]:
    path = found.folder / row.frames[time]
    frame = read_frame(path)
    if frame.shape[:2] != row.size:
        raise _wrong_size(path, frame.shape[:2], found, row)
    return frame


def _wrong_size(path: Path, size: tuple[int, ...], found: VideoList, row: VideoRow) -> FrameError:
    return FrameError(
        f"{path} has {size[1]}x{size[0]} pixels, but {found.file} says {row.size[1]}x{row.size[0]} (width x height) for"
        f" video {row.video_id}.\nIts masks have that size: get the frames of the dataset again, or mend the file."
    )
