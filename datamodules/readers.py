"""The reader of frames with indexed masks: what lies on disk becomes a lazy `Video` and, apart from it, its `Truth`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import DatasetNotFoundError, FrameError, MaskError
from lightning_vos.evaluation.protocols import VOID, appearing_plan, davis_plan
from lightning_vos.io.frames import FrameFolder, frame_size, list_frames, ordered_frames, read_frame
from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette
from lightning_vos.metrics.sequence import Plan
from lightning_vos.structures import ScoredVideo, Video


@dataclass(frozen=True)
class FolderTruth:
    """The masks of a sequence as truth.

    Attributes:
        files: The sequence.
        plan: Which objects are scored in which frames.
    """

    files: SequenceFiles
    plan: Plan

    def read(self, frame: int) -> NDArray[np.uint8]:
        """The (H, W) label map of a frame of `frames`."""
        return self.files.labels(frame)


@dataclass(frozen=True)
class SequenceFiles:
    """A sequence on disk: frames in order and the indexed masks of some of them; 255 in a mask is background.

    Attributes:
        name: The name of the sequence.
        frames: The images, in order.
        masks: Frame index -> mask, in frame order.
        binary: Every foreground pixel, 255 too, is object 1 (DAVIS 2016).
        first_frame_only: The prompts come from the first mask alone, else from every object's first appearance.
        resize_masks: A mask of another size than the frame is resized (nearest), else it is a `MaskError`.
        spacing: Every how many-th frame of the video as it was filmed is annotated: 5 of YouTube-VOS.
    """

    name: str
    frames: Sequence[Path]
    masks: Mapping[int, Path]
    binary: bool = False
    first_frame_only: bool = True
    resize_masks: bool = False
    spacing: int = 1

    @cached_property
    def size(self) -> tuple[int, int]:
        """(H, W) of the first frame, and so of every frame, in pixels."""
        return frame_size(self.frames[0])

    def frame(self, index: int) -> NDArray[np.uint8]:
        """The (H, W, 3) RGB image of a frame.

        Raises:
            FrameError: It cannot be read, or has another size than the first frame.
        """
        image = read_frame(self.frames[index])
        if image.shape[:2] != self.size:
            (height, width), (rows, columns) = self.size, image.shape[:2]
            raise FrameError(
                f"{self.frames[index]} has {columns}x{rows} pixels, but the first frame of its video has "
                f"{width}x{height}.\nAll frames of a video must have one size: resize or leave out this one."
            )
        return image

    def labels(self, index: int) -> NDArray[np.uint8]:
        """The (H, W) label map of an annotated frame: object ids, 0 = background.

        Raises:
            MaskError: It is not an indexed PNG, or has another size than the frames.
        """
        mask = read_mask(self.masks[index], self.size, resize=self.resize_masks)
        if self.binary:
            return (mask > 0).astype(np.uint8)
        return np.where(mask == VOID, np.uint8(0), mask)

    @cached_property
    def is_dense(self) -> bool:
        """Whether the masks follow their objects: masks that only ever introduce new objects are prompts, not truth."""
        return any(not new or old for new, old in self._appearances())

    def load(self, index: int) -> ScoredVideo:
        """The video with its prompts and, where its masks are dense and at least three, its truth.

        Args:
            index: The number of the video in its split.

        Raises:
            MaskError: The first mask shows no object, or a mask cannot be used.
        """
        prompts = self._prompts()
        video = Video(
            name=self.name,
            frames=FrameFolder(self.frames),
            frame_names=[path.stem for path in self.frames],
            prompts=prompts,
            size=self.size,
            palette=read_palette(self.masks[min(prompts)]) or VOC_PALETTE,
        )
        plan = self._plan(prompts)
        return ScoredVideo(index, video, None if plan is None else FolderTruth(self, plan))

    def _plan(self, prompts: Mapping[int, NDArray[np.uint8]]) -> Plan | None:
        """What is scored; None where there is no truth."""
        # The protocol leaves out the first and the last annotated frame.
        if len(self.masks) < 3 or not self.is_dense:
            return None
        annotated = tuple(self.masks)
        return davis_plan(annotated, prompts[annotated[0]]) if self.first_frame_only else appearing_plan(annotated)

    def _prompts(self) -> dict[int, NDArray[np.uint8]]:
        prompts: dict[int, NDArray[np.uint8]] = {}
        seen: set[int] = set()
        for frame in list(self.masks)[: 1 if self.first_frame_only else None]:
            labels = self.labels(frame)
            new = _object_ids(labels) - seen
            if not seen and not new:
                raise MaskError(
                    f"{self.masks[frame]}, the first mask of {self.name}, shows no object: every pixel is 0 or 255.\n"
                    "Expected an indexed PNG whose pixel values are object ids, 1 to 254 (0 and 255 are background).\n"
                    "Number its objects, or remove the masks of frames before the first object."
                )
            if new:
                prompts[frame] = np.where(np.isin(labels, list(new)), labels, np.uint8(0))
                seen |= new
        return prompts

    def _appearances(self) -> Iterator[tuple[set[int], set[int]]]:
        """For each mask after the first: the objects seen for the first time, and those seen before."""
        seen: set[int] = set()
        for position, frame in enumerate(self.masks):
            ids = _object_ids(self.labels(frame))
            if position > 0:
                yield ids - seen, ids & seen
            seen |= ids


@dataclass(frozen=True, kw_only=True)
class ListedSequence(SequenceFiles):
    """A sequence whose objects are listed: each is given in the frame it is listed for, whatever masks there are.

    Of a mask nothing but the objects that are listed to begin there can become a prompt. 255 is an object like others.

    Attributes:
        firsts: Object id -> the frame in which it first appears.
        plan: What is scored; None where the truth is not public.
    """

    firsts: Mapping[int, int]
    plan: Plan | None

    def labels(self, index: int) -> NDArray[np.uint8]:
        """As `SequenceFiles.labels`, 255 included."""
        return read_mask(self.masks[index], self.size, resize=self.resize_masks)

    def _plan(self, prompts: Mapping[int, NDArray[np.uint8]]) -> Plan | None:
        return self.plan

    def _prompts(self) -> dict[int, NDArray[np.uint8]]:
        prompts: dict[int, NDArray[np.uint8]] = {}
        for frame in sorted(set(self.firsts.values())):
            begin = {object_id for object_id, first in self.firsts.items() if first == frame}
            labels = self.labels(frame)
            prompt = np.where(np.isin(labels, list(begin)), labels, np.uint8(0))
            hidden = sorted(begin - _object_ids(prompt))
            if hidden:
                warnings.warn(
                    f"{self.masks[frame]} does not show objects {hidden}, which are listed to begin there: "
                    "they are never given.",
                    stacklevel=2,
                )
            if prompt.any():
                prompts[frame] = prompt
        if not prompts:
            raise MaskError(
                f"No object of {self.name} is shown in the mask where it is listed to begin, for example in\n"
                f"  {self.masks[min(self.firsts.values())]}, objects {sorted(self.firsts)}.\n"
                "Get the masks of that video again, or take it off the list."
            )
        return prompts


def require_masks(sequence: SequenceFiles, frames: Iterable[int], folder: Path, source: Path) -> None:
    """Check that the frames of a sequence have masks.

    Args:
        sequence: The sequence.
        frames: Those that should have one.
        folder: Where the masks lie.
        source: The list that says so, for the message.

    Raises:
        MaskError: Some have none.
    """
    missing = [sequence.frames[frame].stem for frame in frames if frame not in sequence.masks]
    if missing:
        raise MaskError(
            f"{folder} lacks masks of frames that {source} lists\n"
            f"  missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''} ({len(missing)})\n"
            f"  found: {len(sequence.masks)} masks for {len(sequence.frames)} frames.\n"
            "The copy is not complete: copy it again."
        )


def positions_of(frames: Sequence[Path], names: Iterable[str], source: Path) -> list[int]:
    """The positions of named frames.

    Args:
        frames: All frames.
        names: Names without suffix.
        source: The list that names them, for the message.

    Raises:
        FrameError: There is no frame of a name.
    """
    index = {path.stem: number for number, path in enumerate(frames)}
    for name in names:
        if name not in index:
            raise FrameError(
                f"{source} lists frame {name} of {frames[0].parent.name}, but {frames[0].parent} holds none of that "
                f"name.\n  found: {len(frames)} frames, {frames[0].name} to {frames[-1].name}\n"
                "The copy is not complete: copy it again."
            )
    return [index[name] for name in names]


def _object_ids(labels: NDArray[np.uint8]) -> set[int]:
    return set(np.flatnonzero(np.bincount(labels.ravel())).tolist()) - {0}


def masks_of(frames: Sequence[Path], folder: Path) -> dict[int, Path]:
    """The masks in `folder`, by the index of the frame of the same stem and in that order; none if it is missing.

    Raises:
        FrameError: Two frames have the same stem.
        MaskError: A mask belongs to no frame.
    """
    index = {path.stem: number for number, path in enumerate(frames)}
    if len(index) < len(frames):
        double = next(path for number, path in enumerate(frames) if index[path.stem] != number)
        raise FrameError(f"{double.parent} holds more than one image named {double.stem}: keep one of them.")
    if not folder.is_dir():
        return {}
    masks = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png" and path.name[0] != ".")
    for path in masks:
        if path.stem not in index:
            raise MaskError(
                f"{path} belongs to no frame: {frames[0].parent} holds {frames[0].name} to {frames[-1].name}, "
                f"but no {path.stem}.\nA mask has the name of its frame: rename or remove it."
            )
    return {index[path.stem]: path for path in masks}


def not_found(root: Path, what: str, tree: str, source: str, layout: str) -> DatasetNotFoundError:
    """The error for a dataset that is not where it was looked for: what to have there, and the ways to get it.

    Args:
        root: Where it was looked for.
        what: What is missing, in a line.
        tree: The files that are expected, in a line.
        source: Where the dataset is had.
        layout: What `lightning_vos data demo --layout` calls it.
    """
    entries = sorted(path.name for path in root.iterdir()) if root.is_dir() else None
    found = "no such folder" if entries is None else ", ".join(entries[:6]) or "an empty folder"
    return DatasetNotFoundError(
        "\n".join(
            [
                what,
                f"  found there: {found}{', ...' if entries and len(entries) > 6 else ''}",
                f"  expected: {tree}; from {source}",
                "Get it and name its folder with --data.root FOLDER,",
                "or write a small synthetic set in this layout, then run the same command again:",
                f"  lightning_vos data demo {root} --layout {layout}",
            ]
        )
    )


def read_names(path: Path) -> list[str]:
    """The sequence names of a list file, one a line, each once.

    Raises:
        DatasetNotFoundError: A name would lead outside the dataset's folders, or there is none.
    """
    return plain_names(path, read_lines(path))


def read_lines(path: Path) -> list[str]:
    """The lines of a list file that are not blank; bytes that are not UTF-8 become U+FFFD, so no name of a file."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    return [line for line in lines if line]


def plain_names(path: Path, names: Sequence[str]) -> list[str]:
    """The `names` which the list `path` gave, each once, after a check that every one is the name of a folder.

    Raises:
        DatasetNotFoundError: A name would lead outside the dataset's folders, or there is none.
    """
    if not names:
        raise DatasetNotFoundError(f"{path} names no sequence.\nExpected one sequence name a line.")
    for name in names:
        if name == ".." or Path(name).name != name:
            raise DatasetNotFoundError(
                f"{path} names the sequence {name!r}, which is not the name of a folder.\n"
                "Expected one plain sequence name a line, without slashes or '..'."
            )
    return list(dict.fromkeys(names))


def sequence_frames(folder: Path, source: Path) -> list[Path]:
    """The frames in the folder of a sequence that the list `source` names.

    Raises:
        DatasetNotFoundError: There is no such folder.
        FrameError: It holds no image, or one whose name is no number, or numbers that names do not sort by.
    """
    if not folder.is_dir():
        raise DatasetNotFoundError(
            f"{source} names the sequence {folder.name!r}, but there is no folder {folder}.\n"
            "The copy is not complete: add the folder, or take the name off the list."
        )
    frames = list_frames(folder)
    for path in frames:
        if not path.stem.isdecimal():
            raise FrameError(
                f"{path} is no frame of the dataset: its name is no number.\n"
                f"Expected names such as {'00000' if path is frames[0] else frames[0].stem}{path.suffix}: "
                "remove it, or name the frames by numbers."
            )
    return ordered_frames(folder)
