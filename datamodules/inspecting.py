"""What is wrong with the pictures of a video or of a set of images: files, sizes, kinds, object ids.

Nothing here imports torch, for processes that share the work start quickly without it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import FrameError, MaskError, UserError
from lightning_vos.evaluation.protocols import VOID
from lightning_vos.io.frames import FRAME_SUFFIXES, frame_size, read_frame
from lightning_vos.io.png import NotIndexedError, object_ids, read_colours, read_header, read_indices, require_whole

_PROBED = 5  # masks of a set of images that are decoded where not all are
_SHOWN = 9  # ids in a message
_TAIL = 32  # bytes at the end of a file in which a whole JPEG or PNG has its end marker
_END = {".png": b"IEND\xaeB`\x82"}
_JPEG_END = b"\xff\xd9"
_AGAIN = "copy or download it again"


class FindingKind(StrEnum):
    """What can be wrong with a dataset."""

    MISSING_LIST = "missing list"
    MALFORMED = "malformed list or JSON"
    MISSING_VIDEO = "listed, but absent"
    MISSING_FRAME = "missing frame"
    MISSING_MASK = "missing mask"
    EXTRA_MASK = "mask without a frame"
    DOUBLE_FRAME = "two frames of one name"
    WRONG_ORDER = "names that do not sort in order"
    UNREADABLE = "unreadable file"
    WRONG_SIZE = "wrong size"
    NOT_IDS = "pixels that are no ids"
    BLANK = "blank first mask"
    MISSING_OBJECT = "object without a first mask"
    LATE_OBJECT = "object that the first mask lacks"
    UNKNOWN_ID = "id that is not listed"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a dataset.

    Attributes:
        kind: What is wrong.
        file: The file or folder it is wrong with.
        found: What was found, and what was expected.
        fix: The command or the step that mends it.
    """

    kind: FindingKind
    file: Path
    found: str
    fix: str


@dataclass(frozen=True)
class Pictures:
    """The frames of a video, or images of a set, with their masks.

    Attributes:
        root: The dataset's folder, for the commands that mend it.
        frames: Stem -> file, in order.
        masks: Stem -> file.
        meaning: What the values of a mask are: `objects` are ids, `foreground` is all that is not 0, `classes` are
            those of `ids`; `instances` are ids that mean nothing beyond their image.
        is_video: Whether the frames must have one size, and the first mask an object.
        sizes: Stem -> (H, W) in pixels that a list says, where one does.
        ids: The ids that masks may hold -> the stem of the mask that must show it, None where any may; None where no
            list says it.
        prompted_once: Whether all objects must be in the first mask.
        decode_all: Whether every file is decoded; otherwise frames and masks are looked at from outside, and of the
            masks those that `ids` names, or else the first, are decoded (of images the first few).
    """

    root: Path
    frames: Mapping[str, Path]
    masks: Mapping[str, Path] = field(default_factory=dict)
    meaning: Literal["objects", "foreground", "classes", "instances"] = "objects"
    is_video: bool = True
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    ids: Mapping[int, str | None] | None = None
    prompted_once: bool = False
    decode_all: bool = False


@dataclass(frozen=True)
class Seen:
    """What the pictures hold.

    Attributes:
        findings: What is wrong.
        objects: The ids in the masks that were decoded.
        decoded: How many masks were decoded.
        blank: How many of these show nothing.
        gaps: In how many images, or whether in the video, an id below the highest is left out.
        has_void: Whether one of them has the value 255.
    """

    findings: Sequence[Finding]
    objects: frozenset[int]
    decoded: int
    blank: int
    gaps: int
    has_void: bool


def pictures_in(folder: Path, suffixes: Iterable[str] = FRAME_SUFFIXES) -> dict[str, Path]:
    """Find the pictures of a folder, by stem and in order; none where it is missing."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    wanted = frozenset(suffixes)
    return {Path(name).stem: folder / name for name in names if Path(name).suffix.lower() in wanted}


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts frame9 before frame10."""
    parts = re.split(r"(\d+)", name, flags=re.ASCII)
    parts[1::2] = [digits.lstrip("0") for digits in parts[1::2]]
    return [(len(part) if place % 2 else 0, part) for place, part in enumerate(parts)]


def inspect(pictures: Pictures) -> Seen:
    """Look at every file of a video or of a set of images."""
    frames, masks = pictures.frames, pictures.masks
    findings = list(_naming(pictures))
    sizes: dict[str, tuple[int, int]] = {}
    for stem, path in frames.items():
        try:
            sizes[stem] = _size_of(path, decode=pictures.decode_all)
        except FrameError as error:
            findings.append(Finding(FindingKind.UNREADABLE, path, _found(error), _AGAIN))
    expected = dict(pictures.sizes)
    if pictures.is_video and sizes and not expected:
        expected = dict.fromkeys(frames, next(iter(sizes.values())))
    for stem, size in sizes.items():
        wanted = expected.get(stem, size)
        if size != wanted:
            told = "its list says" if pictures.sizes else "the first frame of its video has"
            found = f"{_pixels(size)}, but {told} {_pixels(wanted)}"
            fix = "get the list and the images of one version" if pictures.sizes else "scale the frames to one size"
            findings.append(Finding(FindingKind.WRONG_SIZE, frames[stem], found, fix))
    looked_at = _looked_at(pictures)
    labels: dict[str, list[int]] = {}  # of the masks that are decoded
    for stem, path in masks.items():
        try:
            data = path.read_bytes()
            read_colours(data, str(path))  # judges the header
            require_whole(data, str(path))
            header = read_header(data, str(path))
            if stem in sizes and (header.height, header.width) != sizes[stem]:
                found = f"{_pixels((header.height, header.width))}, its frame has {_pixels(sizes[stem])}"
                findings.append(Finding(FindingKind.WRONG_SIZE, path, found, _resize(pictures.root)))
            if stem in looked_at:
                labels[stem] = object_ids(read_indices(data, str(path)))
        except OSError as error:
            findings.append(Finding(FindingKind.UNREADABLE, path, str(error.strerror), _AGAIN))
        except MaskError as error:
            findings.append(
                Finding(FindingKind.NOT_IDS, path, _found(error), _index(path))
                if isinstance(error, NotIndexedError)
                else Finding(FindingKind.UNREADABLE, path, _found(error), _AGAIN)
            )
    findings += _ids(pictures, labels)
    values = {value for mask in labels.values() for value in mask}
    images = [set(mask) - {VOID} for mask in labels.values()]
    return Seen(
        findings=findings,
        objects=frozenset({1} if pictures.meaning == "foreground" and values else values - {VOID}),
        decoded=len(labels),
        blank=sum(not mask for mask in labels.values()),
        gaps=sum(len(ids) < max(ids, default=0) for ids in ([values - {VOID}] if pictures.is_video else images)),
        has_void=VOID in values,
    )


def _naming(pictures: Pictures) -> Iterable[Finding]:
    frames = pictures.frames
    for stem, path in pictures.masks.items():
        if stem not in frames:
            found = f"no frame is called {stem}"
            yield Finding(FindingKind.EXTRA_MASK, path, found, "give the mask the name of its frame, or remove it")
    if not pictures.is_video or not frames:
        return
    folder = next(iter(frames.values())).parent
    files = sum(
        Path(entry.name).suffix.lower() in FRAME_SUFFIXES for entry in os.scandir(folder) if entry.name[0] != "."
    )
    if files > len(pictures_in(folder)):
        found = f"{files} pictures of {len(pictures_in(folder))} names"
        yield Finding(FindingKind.DOUBLE_FRAME, folder, found, "keep one picture of each name")
    # As `ordered_frames` of lightning_vos.io.frames, which refuses them.
    counted = sorted(frames, key=natural_order)
    if list(frames) != counted:
        found = f"{', '.join(list(frames)[:3])} by name, {', '.join(counted[:3])} by number"
        yield Finding(FindingKind.WRONG_ORDER, folder, found, "pad the numbers with zeros, such as 00001.jpg")


def _looked_at(pictures: Pictures) -> set[str]:
    """The stems of the masks that are decoded."""
    if pictures.decode_all:
        return set(pictures.masks)
    named = {stem for stem in (pictures.ids or {}).values() if stem is not None}
    return named or set(list(pictures.masks)[: 1 if pictures.is_video else _PROBED])


def _ids(pictures: Pictures, labels: Mapping[str, list[int]]) -> Iterable[Finding]:
    if pictures.meaning == "objects":
        for stem, values in labels.items():
            if values == [VOID]:
                mask = pictures.masks[stem]
                found = "every pixel is 0 or 255; here an object has an id from 1 on, and 255 is not annotated"
                yield Finding(FindingKind.NOT_IDS, mask, found, _index(mask))
    if pictures.ids is not None:
        yield from _listed_ids(pictures, pictures.ids, labels)
    elif pictures.is_video and labels:
        yield from _first_mask(pictures, labels)


def _listed_ids(
    pictures: Pictures, ids: Mapping[int, str | None], labels: Mapping[str, list[int]]
) -> Iterable[Finding]:
    known = f"{min(ids)} to {max(ids)}" if len(ids) > _SHOWN else ", ".join(map(str, sorted(ids))) or "none"
    for stem, values in labels.items():
        if unknown := [value for value in values if value not in ids and value != VOID]:
            found = f"{', '.join(map(str, unknown[:_SHOWN]))}; listed: {known}"
            fix = "get masks and list of one version, or mend the one that is wrong"
            yield Finding(FindingKind.UNKNOWN_ID, pictures.masks[stem], found, fix)
    fix = "get masks and list of one version, or take the object off the list"
    for number, first in ids.items():
        found = f"object {number} is listed from frame {first}, whose mask"
        if first is None:
            continue
        if first not in pictures.masks:
            folder = next(iter({**pictures.masks, **pictures.frames}.values())).parent
            yield Finding(FindingKind.MISSING_OBJECT, folder, f"{found} is not there", fix)
        elif first in labels and number not in labels[first]:
            yield Finding(FindingKind.MISSING_OBJECT, pictures.masks[first], f"{found} does not show it", fix)


def _first_mask(pictures: Pictures, labels: Mapping[str, list[int]]) -> Iterable[Finding]:
    first = next(iter(pictures.masks))
    if labels.get(first) == []:
        fix = "remove the masks before the first object, or draw it"
        yield Finding(FindingKind.BLANK, pictures.masks[first], "no pixel shows an object", fix)
    if not pictures.prompted_once or first not in labels:
        return
    known = {*labels[first], VOID}
    for stem, values in labels.items():
        for value in values:
            if value not in known:
                known.add(value)
                found = f"object {value}, which {first} does not show; only objects of the first mask are scored"
                fix = "read the videos by configs/data/folder.yaml, which lets objects enter later"
                yield Finding(FindingKind.LATE_OBJECT, pictures.masks[stem], found, fix)


def _size_of(path: Path, *, decode: bool) -> tuple[int, int]:
    """(H, W) of a frame that can be read, as far as its two ends tell, or its decoded pixels."""
    size = frame_size(path)
    if not decode:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _TAIL, 0))
            decode = _END.get(path.suffix.lower(), _JPEG_END) not in file.read()
    if decode:
        image: NDArray[np.uint8] = read_frame(path)
        return image.shape[0], image.shape[1]
    return size


def _resize(root: Path) -> str:
    return (
        "where the dataset has it --data.resize_masks=true, or mend a copy: "
        f"lightning_vos data prepare resize {shlex.quote(str(root))} TARGET"
    )


def _index(mask: Path) -> str:
    return f"lightning_vos data prepare index-masks {shlex.quote(str(mask.parents[1]))} TARGET"


def _found(error: UserError) -> str:
    """What a message says was found."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line.removeprefix("found ") for line in lines if line.startswith("found ")), lines[0])


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
