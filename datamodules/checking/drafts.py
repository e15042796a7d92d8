"""A dataset while it is checked, and what is reported of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.inspecting import Finding, FindingKind, Pictures, Seen
from lightning_vos.errors import DatasetNotFoundError, UserError
from lightning_vos.evaluation.lists import read_names

GET_AGAIN = "get the file of the dataset again"
COMPLETE = "the copy is not complete: add it, or take it off the list"
_IMAGES_A_SHARE = 200  # of a set of images, what a process takes at once
_NAMED = 3  # in a message


class Official(NamedTuple):
    """The counts that a dataset's makers state; None where they state none."""

    videos: int
    frames: int | None = None
    objects: int | None = None
    version: str = ""


@dataclass(frozen=True)
class Part:
    """A split of a dataset, as it was found.

    Attributes:
        name: What it is called, such as "2017 val".
        videos: Of a set of images, how many images.
        frames: How many pictures there are; None of a set of images.
        masks: How many files with masks there are.
        objects: How many objects or instances there are; None where the masks that were decoded do not tell.
        official: The counts of each version that it may be; none where nobody states them.
    """

    name: str
    videos: int
    frames: int | None
    masks: int
    objects: int | None
    official: Sequence[Official] = ()


@dataclass(frozen=True)
class Report:
    """A dataset that was recognised.

    Attributes:
        dataset: Its name.
        folder: Where it lies.
        parts: Its splits.
        findings: What is wrong.
        notes: What is worth knowing and not wrong.
    """

    dataset: str
    folder: Path
    parts: Sequence[Part]
    findings: Sequence[Finding]
    notes: Sequence[str]


@dataclass
class Split:
    """A split before its files are looked at."""

    name: str
    keys: list[str]
    official: Sequence[Official] = ()
    objects: int | None = None
    counts_objects: bool = False  # those of the masks
    is_merged: bool = False  # all that a mask shows is one object
    images: tuple[int, int] | None = None  # how many with how many masks; a split of videos counts those of `keys`


@dataclass
class Draft:
    """A dataset before its files are looked at: `shares` has every video and set of images once, whoever lists it."""

    dataset: str
    folder: Path
    shares: dict[str, Pictures] = dataclasses.field(default_factory=dict)
    splits: list[Split] = dataclasses.field(default_factory=list)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def find(self, kind: FindingKind, file: Path, found: str, fix: str) -> None:
        """Note what is wrong with a file, and what to do."""
        # Half of a character, which a JSON may hold, cannot be printed.
        self.findings.append(Finding(kind, file, found.encode(errors="backslashreplace").decode(), fix))

    def require(
        self, kind: FindingKind, folder: Path, names: Sequence[str], there: Mapping[str, Path], what: str
    ) -> None:
        """Note which of the names are not there, if any."""
        if absent := [name for name in names if name not in there]:
            found = f"{len(absent)} of {len(names)} {what}: {some_of(absent)}"
            self.find(kind, folder, found, COMPLETE)

    def add_images(
        self,
        name: str,
        images: Mapping[str, Path],
        masks: Mapping[str, Path],
        sizes: Mapping[str, tuple[int, int]] | None = None,
        **described: Any,
    ) -> None:
        """Have images and those of the masks and sizes that are theirs looked at, in shares of a number."""
        stems = iter(images)
        number = 0
        while some := list(islice(stems, _IMAGES_A_SHARE)):
            frames = {stem: images[stem] for stem in some}
            own = {stem: masks[stem] for stem in some if stem in masks}
            stated = {stem: sizes[stem] for stem in some if stem in sizes} if sizes else {}
            self.shares[f"{name} {number}"] = Pictures(
                self.folder, frames, own, is_video=False, sizes=stated, **described
            )
            number += 1

    def lines(self, source: Path) -> list[str]:
        """The lines of a list; none, and a finding, where it cannot be read."""
        try:
            return read_names(source)
        except DatasetNotFoundError as error:
            self.find(FindingKind.MALFORMED, source, told(error), GET_AGAIN)
            return []


def reported(draft: Draft, seen: Mapping[str, Seen]) -> Report:
    """What was found of a dataset, its files looked at."""
    is_synthetic = (draft.folder / "synthetic.json").is_file()
    notes = ["a synthetic set, in the layout of the real one"] if is_synthetic else []
    notes += draft.notes
    parts = []
    for split in draft.splits:
        shares = [draft.shares[key] for key in split.keys]
        objects = split.objects
        if split.counts_objects:
            counts = [len(seen[key].objects) for key in split.keys]
            objects = sum(min(count, 1) for count in counts) if split.is_merged else sum(counts)
        official = () if is_synthetic else split.official
        if split.images:
            parts.append(Part(split.name, split.images[0], None, split.images[1], objects, official))
            continue
        frames, masks = sum(len(share.frames) for share in shares), sum(len(share.masks) for share in shares)
        parts.append(Part(split.name, len(shares), frames, masks, objects, official))
    findings = list(dict.fromkeys([*draft.findings, *(finding for one in seen.values() for finding in one.findings)]))
    for meaning in ("objects", "foreground"):
        void = [one for key, one in seen.items() if one.has_void and draft.shares[key].meaning == meaning]
        if void and meaning == "foreground":
            notes.append("255 is foreground in these masks; read as masks of object ids it would be not annotated")
        elif void:
            notes.append(f"255 in the masks of {counted(len(void), 'video')} is taken for not annotated, as background")
    decoded = sum(one.decoded for one in seen.values())
    blank = sum(one.blank for one in seen.values())
    if blank:
        notes.append(f"{blank} of {decoded} masks that were decoded show nothing; none of them becomes a reference")
    gaps = sum(one.gaps for key, one in seen.items() if draft.shares[key].meaning in ("objects", "instances"))
    is_listed = any(share.ids is not None and share.meaning == "objects" for share in draft.shares.values())
    if gaps and not is_listed:
        notes.append(
            f"ids have gaps, in {counted(gaps, 'video or image', 'videos or images')}: the largest is no count"
        )
    return Report(draft.dataset, draft.folder, parts, findings, notes)


def versions_of(versions: Sequence[Official], videos: int, objects: int) -> Sequence[Official]:
    """The version whose counts these are, or else all that it may be."""
    exact = [one for one in versions if one.videos == videos and one.objects in (None, objects)]
    return exact or versions


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, but for hidden ones; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(folder / entry.name for entry in os.scandir(folder) if entry.name[0] != "." and entry.is_dir())


def json_files(folder: Path) -> list[Path]:
    """The files that may hold annotations in the format of COCO or YouTube-VIS."""
    places = [folder, folder / "annotations", *(folder / split for split in ("train", "valid", "val", "test"))]
    other = (
        "captions",
        "person_keypoints",
        "panoptic",
        "stuff",
        "image_info",
        "meta",
        "synthetic",
        "tags",
        "results",
        "unseen",
    )
    return [
        file
        for place in places
        for file in sorted(place.glob("[!.]*.json"))
        if not file.stem.startswith(other) and "_meta" not in file.stem
    ]


def told(error: UserError) -> str:
    """What an error says, in one line."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])


def some_of(names: Sequence[str]) -> str:
    """The first names, and how many there are."""
    return ", ".join(names[:_NAMED]) + (f", ... ({len(names)})" if len(names) > _NAMED else "")


def counted(number: int, one: str, several: str | None = None) -> str:
    """A number of things, such as "3 videos"."""
    return f"1 {one}" if number == 1 else f"{number} {several or one + 's'}"
