"""Whether a dataset on disk is what its readers expect: recognised by its folders, checked against its own lists.

Nothing here imports torch, for the command line answers at once.
"""

from __future__ import annotations

import dataclasses
import os
import re
import reprlib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from datamodules.annotations import (
    AnnotationFault,
    field,
    frame_size_of,
    inside,
    mask_text,
    number,
    read_categories,
    rows,
)
from datamodules.inspecting import Finding, FindingKind, Pictures, Seen, inspect, natural_order, pictures_in
from datamodules.label_files import read_labels
from datamodules.processes import results
from lightning_vos.errors import DatasetNotFoundError, FrameError, UserError
from lightning_vos.evaluation.lists import read_names
from lightning_vos.evaluation.meta import is_plain_name, read_json, read_lvos_meta, read_youtube_vos_meta
from lightning_vos.evaluation.youtube_vis import read_ground_truth
from lightning_vos.io.frames import FRAME_SUFFIXES, frame_size

_IMAGES_A_SHARE = 200  # of a set of images, what a process takes at once
_NAMED = 3  # in a message
_GET_AGAIN = "get the file of the dataset again"
_COMPLETE = "the copy is not complete: add it, or take it off the list"
_LONG_TIME_VIDEO = re.compile(r"long.?(time|term)?.?video", re.IGNORECASE)
_VOC_CLASSES = dict.fromkeys(range(1, 21))
_ADE20K_CLASSES = dict.fromkeys(range(1, 151))
_FIRST_MASKS_ONLY = ("test-dev", "test-challenge")


class Official(NamedTuple):
    """The counts that a dataset's makers state; None where they state none."""

    videos: int
    frames: int | None = None
    objects: int | None = None
    version: str = ""


_DAVIS = {
    ("2016", "train"): Official(30, 2079, 30),
    ("2016", "val"): Official(20, 1376, 20),
    ("2017", "train"): Official(60, 4209),
    ("2017", "val"): Official(30, 1999, 61),
    ("2017", "test-dev"): Official(30, 2086),
    ("2017", "test-challenge"): Official(30),
}
_YOUTUBE_VOS = {
    "train": (Official(3471, None, 5945, "2018"), Official(3471, None, 6459, "2019")),
    "valid": (Official(474, None, 894, "2018"), Official(507, None, 1063, "2019")),
    "test": (Official(508, None, 915, "2018"), Official(541, None, 1092, "2019")),
}
_YOUTUBE_VIS = {
    "train": (Official(2238, None, 4883, "2019"), Official(2985, None, 8171, "2021")),
    "valid": (Official(302, version="2019"), Official(421, version="2021")),
    "test": (Official(343, version="2019"), Official(453, version="2021")),
}
_LVOS = {
    "train": (Official(120, version="v1"), Official(420, version="v2")),
    "valid": (Official(50, version="v1"), Official(140, version="v2")),
    "test": (Official(50, version="v1"), Official(160, version="v2")),
}
_VOC = {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456, "train_aug": 10582, "trainaug": 10582}


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
class _Split:
    """A split before its files are looked at."""

    name: str
    keys: list[str]
    official: Sequence[Official] = ()
    objects: int | None = None
    counts_objects: bool = False  # those of the masks
    is_merged: bool = False  # all that a mask shows is one object
    images: tuple[int, int] | None = None  # how many with how many masks; a split of videos counts those of `keys`


@dataclass
class _Draft:
    """A dataset before its files are looked at: `shares` has every video and set of images once, whoever lists it."""

    dataset: str
    folder: Path
    shares: dict[str, Pictures] = dataclasses.field(default_factory=dict)
    splits: list[_Split] = dataclasses.field(default_factory=list)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def find(self, kind: FindingKind, file: Path, found: str, fix: str) -> None:
        # Half of a character, which a JSON may hold, cannot be printed.
        self.findings.append(Finding(kind, file, found.encode(errors="backslashreplace").decode(), fix))


def check(
    root: Path,
    dataset: str | None = None,
    *,
    frames: Path | None = None,
    full: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Report]:
    """Recognise the datasets at a folder and look for what is wrong with them.

    By default the headers and ends of all files are read, and of the masks those in which objects first appear (the
    first one of a video where no list says it) are decoded.

    Args:
        root: A dataset, or a folder that holds datasets, in itself or in the folders of it.
        dataset: One of `DATASETS`, where the folder is to be taken for that one; recognised by default.
        frames: The folder to which the file names of a YouTube-VIS JSON are relative; looked for by default.
        full: Decode every file.
        workers: Processes that share the work.
        progress: Told how many of how many shares of the work are done.

    Returns:
        A report for each dataset.

    Raises:
        DatasetNotFoundError: There is no such folder, or no dataset in it.
    """
    drafts = _recognised(root, dataset, frames, full=full)
    shares = [replace(share, decode_all=full) for draft in drafts for share in draft.shares.values()]
    seen = results(inspect, shares, workers, progress)
    return [_reported(draft, dict(zip(draft.shares, islice(seen, len(draft.shares)), strict=True))) for draft in drafts]


def _recognised(root: Path, dataset: str | None, frames: Path | None, *, full: bool) -> list[_Draft]:
    if not root.is_dir():
        raise DatasetNotFoundError(
            f"No folder to check: {root.absolute()}\n"
            f"  found {'a file' if root.exists() else 'nothing'}, expected a dataset or a folder that holds datasets"
        )
    if frames is not None and not frames.is_dir():
        raise DatasetNotFoundError(f"No folder of frames (--frames): {frames.absolute()}")
    below = [folder for child in _folders(root) for folder in (child, *_folders(child))]
    folders = [root, *sorted(below, key=lambda folder: len(folder.parts))]
    drafts: list[_Draft] = []
    for folder in folders:
        if any(draft.folder in (folder, *folder.parents) for draft in drafts):
            continue
        for name, recognise in _TREES.items():
            if dataset is None and name == "long_time_video" and not _LONG_TIME_VIDEO.match(folder.name):
                continue  # its layout is that of any videos
            if dataset in (None, name) and (found := recognise(folder)):
                drafts.append(found)
                break
    videos = {next(iter(share.frames.values())).parents[1] for draft in drafts for share in draft.shares.values()}
    places = [frames] if frames else sorted(videos)
    seen: set[Path] = set()
    for folder in folders:
        for file in _jsons(folder):
            if file not in seen:
                seen.add(file)
                for draft in _annotated(folder, file, dataset, places, full=full):
                    _join(drafts, draft)
    if drafts:
        return sorted(drafts, key=lambda draft: draft.folder)
    names = [child.name for child in sorted(root.iterdir()) if child.name[0] != "."]
    wanted = "a dataset that can be recognised" if dataset is None else f"the layout of {dataset}"
    raise DatasetNotFoundError(
        f"No dataset in {root.absolute()}\n"
        f"  found {', '.join(names[:6]) or 'an empty folder'}{', ...' if len(names) > 6 else ''}\n"
        f"  expected {wanted}, there or in a folder below it:\n"
        + (
            "  JPEGImages with Annotations, VOC2012, a JSON of COCO or YouTube-VIS, or another of --dataset\n"
            if dataset is None
            else f"  {DATASETS[dataset]}\n"
        )
        + "Name the folder of the dataset itself; docs/data_tools.md draws each layout."
    )


def _join(drafts: list[_Draft], draft: _Draft) -> None:
    """Add the splits of one JSON to those of others that lie in the same folder."""
    for other in drafts:
        if (other.dataset, other.folder) == (draft.dataset, draft.folder):
            other.shares |= draft.shares
            other.splits += draft.splits
            other.findings += draft.findings
            other.notes += draft.notes
            return
    drafts.append(draft)


def _reported(draft: _Draft, seen: Mapping[str, Seen]) -> Report:
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
            notes.append(f"255 in the masks of {_count(len(void), 'video')} is taken for not annotated, as background")
    decoded = sum(one.decoded for one in seen.values())
    blank = sum(one.blank for one in seen.values())
    if blank:
        notes.append(f"{blank} of {decoded} masks that were decoded show nothing; none of them becomes a reference")
    gaps = sum(one.gaps for key, one in seen.items() if draft.shares[key].meaning in ("objects", "instances"))
    is_listed = any(share.ids is not None and share.meaning == "objects" for share in draft.shares.values())
    if gaps and not is_listed:
        notes.append(f"ids have gaps, in {_count(gaps, 'video or image', 'videos or images')}: the largest is no count")
    return Report(draft.dataset, draft.folder, parts, findings, notes)


# Trees of videos


def _davis(folder: Path) -> _Draft | None:
    resolutions = [
        child.name
        for child in _folders(folder / "JPEGImages")
        if re.fullmatch(r"\d{3,4}p|Full-Resolution", child.name) and _folders(child)
    ]
    if not resolutions:
        return None
    draft = _Draft("DAVIS", folder)
    for resolution in resolutions:
        title = "" if resolutions == ["480p"] else f", {resolution}"
        for year in ("2017", "2016"):  # where both read the same masks, those of 2017 say more
            for source in sorted((folder / "ImageSets" / year).glob("*.txt")):
                names = _listed(draft, source)
                official = _DAVIS.get((year, source.stem))
                _davis_split(draft, year, resolution, source, names, f"{year} {source.stem}{title}", official)
        for source in sorted((folder / "ImageSets" / resolution).glob("*.txt")):
            names = _paired(draft, source)
            title_of_list = f"2016 {source.stem}, list of {resolution}"
            _davis_split(draft, "2016", resolution, source, names, title_of_list, _DAVIS.get(("2016", source.stem)))
        if resolution != "480p":
            draft.notes.append(
                f"frames of {resolution}: DAVIS is scored at 480p. To read these: --config configs/data/folder.yaml "
                f"--data.frames=JPEGImages/{resolution} --data.masks=Annotations/{resolution}"
            )
    listed = {Path(key).name for key in draft.shares}
    there = {child.name for name in resolutions for child in _folders(folder / "JPEGImages" / name)}
    if not draft.splits:
        fix = "get ImageSets from https://davischallenge.org, or read the videos by configs/data/folder.yaml"
        draft.find(FindingKind.MISSING_LIST, folder / "ImageSets", "no <year>/<split>.txt that could be read", fix)
        for name in resolutions:
            source = folder / "JPEGImages" / name
            _davis_split(draft, "2017", name, source, [child.name for child in _folders(source)], f"all, {name}", None)
    elif there - listed:
        draft.notes.append(f"on no list: {_names(sorted(there - listed))}")
    if (folder / "Annotations_2017").is_dir():
        draft.notes.append("masks of both years side by side: those of 2017 are read from Annotations_2017")
    if (folder / "Annotations_unsupervised").is_dir():
        draft.notes.append("Annotations_unsupervised has other ids than the semi-supervised task, and is not read")
    return draft


def _davis_split(
    draft: _Draft,
    year: str,
    resolution: str,
    source: Path,
    names: Sequence[str],
    title: str,
    official: Official | None,
) -> None:
    of_year = draft.folder / f"Annotations_{year}" / resolution
    masks = of_year if of_year.is_dir() else draft.folder / "Annotations" / resolution
    keys = []
    for name in names:
        images = draft.folder / "JPEGImages" / resolution / name
        key = f"{masks}/{name}"
        if _add_video(draft, key, images, masks / name, source, meaning="objects" if year == "2017" else "foreground"):
            keys.append(key)
            share = draft.shares[key]
            if year == "2017":
                draft.shares[key] = replace(share, prompted_once=True)
            _require_masks(draft, share, images, masks / name, first_alone=source.stem in _FIRST_MASKS_ONLY)
    draft.splits.append(_Split(title, keys, (official,) if official else (), None, True, year == "2016"))


def _youtube_vos(folder: Path) -> _Draft | None:
    splits = [child for child in _folders(folder) if _is_youtube_vos(child)]
    if (folder / "JPEGImages").is_dir() and (folder / "meta.json").is_file():
        splits.append(folder)
    if not splits:
        return None
    draft = _Draft("YouTube-VOS", folder)
    for split in splits:
        partner = split.with_name(split.name.removesuffix("_all_frames"))
        source = next((file for file in (split / "meta.json", partner / "meta.json") if file.is_file()), None)
        if source is None:
            fix = "get it with the dataset, or read the videos by configs/data/folder.yaml"
            draft.find(FindingKind.MISSING_LIST, split / "meta.json", "no list of objects and their frames", fix)
            _add_unlisted(draft, split)
            continue
        try:
            meta = read_youtube_vos_meta(source)
        except DatasetNotFoundError as error:
            draft.find(FindingKind.MALFORMED, source, _told(error), _GET_AGAIN)
            _add_unlisted(draft, split)
            continue
        has_masks = not split.name.endswith("_all_frames")
        objects = 0
        for name, entries in meta.items():
            images, masks = split / "JPEGImages" / name, split / "Annotations" / name
            ids = {number: entry.frames[0] if entry.frames else None for number, entry in entries.items()}
            needed = sorted({frame for entry in entries.values() for frame in entry.frames})
            objects += len(entries)
            key = f"{split.name}/{name}"
            if not _add_video(draft, key, images, masks if has_masks else None, source, ids=ids if has_masks else None):
                continue
            share = draft.shares[key]
            _require_frames(draft, share, images, needed, source)
            if split.name.startswith("train") and has_masks:
                _require(draft, FindingKind.MISSING_MASK, masks, needed, share.masks, f"frames that {source} lists")
            few = [number for number, entry in entries.items() if len(entry.frames) < 2]
            if few and has_masks:
                draft.notes.append(
                    f"{split.name}/{name}: objects {_names(list(map(str, few)))} are listed in one frame"
                )
        _note_unlisted(draft, split, meta)
        official = _version(_YOUTUBE_VOS.get(split.name.removesuffix("_all_frames"), ()), len(meta), objects)
        keys = [f"{split.name}/{name}" for name in meta if f"{split.name}/{name}" in draft.shares]
        draft.splits.append(_Split(split.name, keys, official, objects if has_masks else None))
        if has_masks and any(entry.category is None for entries in meta.values() for entry in entries.values()):
            draft.notes.append(f"{split.name}/meta.json names no categories: no scores for seen and unseen ones")
    return draft


def _is_youtube_vos(split: Path) -> bool:
    if not (split / "JPEGImages").is_dir() or _lvos_meta(split):
        return False
    partner = split.with_name(split.name.removesuffix("_all_frames"))
    if (split / "meta.json").is_file() or (partner / "meta.json").is_file():
        return True
    named = re.fullmatch(r"(train|valid|test)(_all_frames|_\d+p)?", split.name)
    return bool(named) and _has_videos(split / "JPEGImages") and not _jsons(split.parent)  # else it is YouTube-VIS


def _lvos(folder: Path) -> _Draft | None:
    below = _folders(folder)
    splits = {
        split: meta for split in (*below, folder) if (split / "JPEGImages").is_dir() and (meta := _lvos_meta(split))
    }
    if not splits:
        return None
    draft = _Draft("LVOS", folder)
    for split, source in splits.items():
        try:
            listed = read_lvos_meta(source)
        except DatasetNotFoundError as error:
            draft.find(FindingKind.MALFORMED, source, _told(error), _GET_AGAIN)
            _add_unlisted(draft, split)
            continue
        objects = 0
        for name, entries in listed.items():
            images, masks = split / "JPEGImages" / name, split / "Annotations" / name
            objects += len(entries)
            key = f"{split.name}/{name}"
            ids = {number: f"{entry.start:08}" for number, entry in entries.items()}
            if not _add_video(draft, key, images, masks, source, ids=ids):
                continue
            share = draft.shares[key]
            needed = sorted({f"{frame:08}" for entry in entries.values() for frame in entry.frames})
            _require_frames(draft, share, images, needed, source)
            if not split.name.startswith("test"):
                _require_masks(draft, share, images, masks)
            for object_id, entry in entries.items():
                if entry.frame_nums > len(entry.frames) + 1:
                    found = (
                        f"{name}, object {object_id}: frame_nums is {entry.frame_nums}, but {entry.start} to "
                        f"{entry.end} has {len(entry.frames) + 1} frames; the official score counts the others as 0"
                    )
                    draft.find(FindingKind.MALFORMED, source, found, _GET_AGAIN)
        _note_unlisted(draft, split, listed)
        keys = [f"{split.name}/{name}" for name in listed if f"{split.name}/{name}" in draft.shares]
        official = _version(_LVOS.get("valid" if split.name == "val" else split.name, ()), len(listed), objects)
        draft.splits.append(_Split(split.name, keys, official, objects))
    return draft


def _lvos_meta(split: Path) -> Path | None:
    files = [file for file in sorted(split.glob("*_meta.json")) if not file.stem.endswith("expression_meta")]
    return files[0] if files else None


def _long_time_video(folder: Path) -> _Draft | None:
    images = folder / "JPEGImages"
    if not _has_videos(images) or not (folder / "Annotations").is_dir():
        return None
    draft = _Draft("Long-Time Video", folder)
    source = folder / "ImageSets" / "val.txt"
    names = _listed(draft, source) if source.is_file() else [child.name for child in _folders(images)]
    for name in names:
        masks = folder / "Annotations" / name
        if _add_video(draft, name, images / name, masks, source, meaning="foreground"):
            _require_masks(draft, draft.shares[name], images / name, masks, first_alone=True)
    draft.splits.append(_Split("val", list(draft.shares), (Official(3),), counts_objects=True))
    return draft


def _folder(folder: Path) -> _Draft | None:
    images = folder / "JPEGImages"
    if not _has_videos(images) or not (folder / "Annotations").is_dir():
        return None
    draft = _Draft("videos in folders", folder)
    names = [child.name for child in _folders(images)]
    for name in names:
        _add_video(draft, name, images / name, folder / "Annotations" / name, images)
    bare = [name for name in names if name in draft.shares and not draft.shares[name].masks]
    if bare:
        draft.notes.append(f"without masks, and so without anything to segment: {_names(bare)}")
    draft.splits.append(_Split("all", list(draft.shares), counts_objects=True))
    return draft


# Sets of images


def _voc(folder: Path) -> _Draft | None:
    if not (folder / "JPEGImages").is_dir() or not (folder / "SegmentationClass").is_dir():
        return None
    draft = _Draft("PASCAL VOC", folder)
    images = pictures_in(folder / "JPEGImages")
    labels = {name: pictures_in(folder / name, {".png"}) for name in ("SegmentationClass", "SegmentationClassAug")}
    instances = pictures_in(folder / "SegmentationObject", {".png"})
    sources = sorted((folder / "ImageSets" / "Segmentation").glob("*.txt"))
    if not sources:
        fix = "get ImageSets/Segmentation with the dataset"
        draft.find(FindingKind.MISSING_LIST, folder / "ImageSets" / "Segmentation", "no <split>.txt", fix)
    listed: dict[str, dict[str, None]] = {kind: {} for kind in labels}
    for source in sources:
        kind = "SegmentationClassAug" if source.stem in ("train_aug", "trainaug") else "SegmentationClass"
        # Some lists have two paths a line, of image and mask, in place of a name.
        names = [Path(line.split()[0]).stem for line in _lines(draft, source)]
        where = f"images that {source} lists"
        _require(draft, FindingKind.MISSING_FRAME, folder / "JPEGImages", names, images, where)
        if source.stem != "test":
            _require(draft, FindingKind.MISSING_MASK, folder / kind, names, labels[kind], where)
        counts = sum(name in images for name in names), sum(name in labels[kind] for name in names)
        official = (Official(_VOC[source.stem]),) if source.stem in _VOC else ()
        draft.splits.append(_Split(source.stem, [], official, images=counts))
        listed[kind] |= dict.fromkeys(names)
    for kind, listed_names in listed.items():
        there = {name: images[name] for name in listed_names if name in images}
        _add_images(draft, kind, there, labels[kind], meaning="classes", ids=_VOC_CLASSES)
    numbered = {name: images[name] for name in instances if name in images}
    _add_images(draft, "SegmentationObject", numbered, instances, meaning="instances")
    if not (folder / "Annotations").is_dir():
        draft.notes.append("no Annotations with XML: labels of images come from masks, which test images lack")
    return draft


def _static(folder: Path) -> _Draft | None:
    sets = [
        child
        for child in _folders(folder)
        if pictures_in(child / "JPEGImages") and pictures_in(child / "Annotations", {".png"})
    ]
    if not sets:
        return None
    draft = _Draft("still images", folder)
    for one in sets:
        images, masks = pictures_in(one / "JPEGImages"), pictures_in(one / "Annotations", {".png"})
        where = f"images of {one / 'JPEGImages'}"
        _require(draft, FindingKind.MISSING_MASK, one / "Annotations", list(images), masks, where)
        _add_images(draft, one.name, images, masks)
        for name in masks.keys() - images.keys():
            fix = "give the mask the name of its image, or remove it"
            draft.find(FindingKind.EXTRA_MASK, masks[name], f"no image is called {name}", fix)
        draft.splits.append(_Split(one.name, [], images=(len(images), len(masks))))
    return draft


def _ade20k(folder: Path) -> _Draft | None:
    splits = [
        name
        for name in ("training", "validation")
        if (folder / "images" / name).is_dir() and (folder / "annotations" / name).is_dir()
    ]
    if not splits:
        return None
    draft = _Draft("ADE20K", folder)
    for name in splits:
        images, masks = pictures_in(folder / "images" / name), pictures_in(folder / "annotations" / name, {".png"})
        where = f"images of {folder / 'images' / name}"
        _require(draft, FindingKind.MISSING_MASK, folder / "annotations" / name, list(images), masks, where)
        _add_images(draft, name, images, masks, meaning="classes", ids=_ADE20K_CLASSES)
        draft.splits.append(_Split(name, [], images=(len(images), len(masks))))
    return draft


def _endotect(folder: Path) -> _Draft | None:
    tract = folder / "labeled-images" / "lower-gi-tract"
    if not tract.is_dir():
        return None
    draft = _Draft("EndoTect", folder)
    classes = [child for group in _folders(tract) for child in _folders(group)]
    if len({child.name for child in classes}) < max(len(classes), 2):
        found = f"{len(classes)} folders of classes, <group>/<class>; expected two or more, each of a name of its own"
        draft.find(FindingKind.MISSING_FRAME, tract, found, _GET_AGAIN)
    places: dict[str, Path] = {}
    outlines = pictures_in(folder / "segmented-images" / "masks")
    _add_images(draft, "masks", outlines, {})
    for child in classes:
        images = pictures_in(child)
        _add_images(draft, child.name, images, {})
        masks = {stem: outlines[stem] for stem in images if stem in outlines} if child.name == "polyps" else {}
        for stem, mask in masks.items():
            sizes = [_size_of(path) for path in (mask, images[stem])]
            if None not in sizes and sizes[0] != sizes[1]:
                found = "(H, W) {}, its image has {}".format(*sizes)
                draft.find(FindingKind.WRONG_SIZE, mask, found, "copy both again")
        for stem in images.keys() & places.keys():
            found = f"{stem} is in {places[stem].parent.name} too"
            draft.find(FindingKind.DOUBLE_FRAME, images[stem], found, "keep each image in one class")
        places |= images
        draft.splits.append(_Split(child.name, [], images=(len(images), len(masks))))
    if not outlines:
        draft.notes.append("no segmented-images/masks: nothing is there to score polyps with")
    return draft


def _size_of(path: Path) -> tuple[int, int] | None:
    try:
        return frame_size(path)
    except FrameError:  # which is found where files are looked at
        return None


def _labelled_images(folder: Path) -> _Draft | None:
    source, images = folder / "labels.csv", pictures_in(folder / "images")
    if not source.is_file() or not images:
        return None
    draft = _Draft("labelled images", folder)
    try:
        table = read_labels(source)
    except DatasetNotFoundError as error:
        draft.find(FindingKind.MALFORMED, source, _told(error), "write it as lightning_vos data prepare labels does")
        return draft
    suffixes = {name: Path(name).suffix for name in table.rows}
    names = [
        name.removesuffix(suffix) if suffix.lower() in FRAME_SUFFIXES else name for name, suffix in suffixes.items()
    ]
    if bad := [name for name in names if not is_plain_name(name)]:
        draft.find(FindingKind.MALFORMED, source, f"no names of files: {_names(bad)}", "plain names, without folders")
        names = [name for name in names if name not in bad]
    if len(set(names)) < max(len(names), 2):
        fix = "name two images or more, each in one way"
        draft.find(FindingKind.MALFORMED, source, f"{len(set(names))} names in {len(names)}", fix)
    _require(draft, FindingKind.MISSING_FRAME, folder / "images", names, images, f"images that {source} lists")
    masks = pictures_in(folder / "masks", {".png"})
    known = dict.fromkeys(range(1, 1 + len(table.classes)))
    _add_images(
        draft, "all", {name: images[name] for name in names if name in images}, masks, meaning="classes", ids=known
    )
    if more := sorted(images.keys() - set(names)):
        draft.notes.append(f"on no list: {_names(more)}")
    counts = sum(name in images for name in names), sum(name in masks for name in names)
    draft.splits.append(_Split("all", [], images=counts))
    return draft


def _dfc2020(folder: Path) -> _Draft | None:
    parts = [part for name in ("test", "validation") if (part := folder / f"ROIs0000_{name}").is_dir()]
    if not parts:
        return None
    draft = _Draft("DFC2020", folder)
    for part in parts:
        tiles = {kind: _tiles(part, kind) for kind in ("s2", "dfc", "s1")}
        names = list(tiles["s2"])
        if not names:
            draft.find(FindingKind.MISSING_FRAME, part, "no tile of Sentinel-2, s2_0/*_s2_*.npy", _COMPLETE)
        for kind, what in (("dfc", "classes"), ("s1", "Sentinel-1")):
            if kind == "dfc" or tiles[kind]:
                where = f"tiles of {part} that need {what}"
                _require(draft, FindingKind.MISSING_MASK, part / f"{kind}_0", names, tiles[kind], where)
        for name, path in tiles["s2"].items():
            size = _tile_size(draft, path, 13)
            others = [(tiles[kind][name], bands) for kind, bands in (("dfc", 1), ("s1", 2)) if name in tiles[kind]]
            for other, bands in others:
                found = _tile_size(draft, other, bands)
                if size and found and size != found:
                    told = f"(H, W) {found}, its tile of Sentinel-2 has {size}"
                    draft.find(FindingKind.WRONG_SIZE, other, told, "copy both again")
        if not tiles["s1"]:
            draft.notes.append(f"{part.name} has no Sentinel-1: data.multimodal needs it")
        counts = len(names), sum(name in tiles["dfc"] for name in names)
        draft.splits.append(_Split(part.name, [], images=counts))
    draft.notes.append("of tiles shape and kind are read, whether all files are decoded or not")
    return draft


def _tiles(part: Path, kind: str) -> dict[str, Path]:
    """Tile, as that of Sentinel-2 is called -> its raster; `.npy` rather than `.tif`."""
    paths = [path for suffix in ("tif", "npy") for path in sorted(part.glob(f"{kind}_*/[!.]*_{kind}_*.{suffix}"))]
    return {path.stem.replace(f"_{kind}_", "_s2_"): path for path in paths}


def _tile_size(draft: _Draft, path: Path, bands: int) -> tuple[int, int] | None:
    """(H, W) of a raster; None, and a finding, where it cannot be read."""
    if path.suffix == ".tif" and bands > 1:
        fix = "convert it to .npy; training prints the lines that do it, which need tifffile"
        draft.find(FindingKind.UNREADABLE, path, f"a GeoTIFF of {bands} bands, which is not read", fix)
        return None
    try:
        if path.suffix == ".tif":
            with Image.open(path) as image:
                image.load()
                return image.height, image.width
        raster = np.lib.format.open_memmap(path, mode="r")
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        draft.find(FindingKind.UNREADABLE, path, str(error), "copy or convert it again")
        return None
    shape = raster.shape if bands > 1 else (1, *raster.squeeze().shape)
    if len(shape) == 3 and bands in (shape[0], shape[2]) and raster.dtype.kind in "iuf":
        height, width = shape[1:] if shape[0] == bands else shape[:2]
        return height, width
    found = f"{raster.dtype} of shape {raster.shape}, expected numbers of shape ({bands}, H, W)"
    draft.find(FindingKind.MALFORMED, path, found, "convert it again")
    return None


def _annotated(folder: Path, file: Path, dataset: str | None, places: Sequence[Path], *, full: bool) -> list[_Draft]:
    """The images or videos of a JSON in the format of COCO or YouTube-VIS; none where it is another JSON."""
    if dataset not in (None, "coco", "youtube_vis"):
        return []
    is_named = file.stem.startswith("instances") or dataset in ("coco", "youtube_vis")
    try:
        content = read_json(file, "annotations in the format of COCO or YouTube-VIS")
    except DatasetNotFoundError as error:
        if not is_named:
            return []
        draft = _Draft("YouTube-VIS" if dataset == "youtube_vis" else "COCO", folder)
        draft.find(FindingKind.MALFORMED, file, _told(error), _GET_AGAIN)
        return [draft]
    if not isinstance(content, dict):
        return []
    videos, annotations = content.get("videos"), content.get("annotations")
    if dataset != "coco" and (
        isinstance(videos, list) or ("videos" in content and (is_named or "categories" in content))
    ):
        return [_youtube_vis(folder, file, content, places, full=full)]
    if dataset == "youtube_vis" or "images" not in content or "annotations" not in content:
        return []
    # Captions and key points have images and annotations too.
    is_broken = "categories" in content and not (isinstance(content["images"], list) and isinstance(annotations, list))
    if is_named or is_broken or _has_masks(annotations):
        return [_coco(folder, file, content, full=full)]
    return []


def _has_masks(annotations: Any) -> bool:
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    return isinstance(first, dict) and "segmentation" in first


def _youtube_vis(folder: Path, file: Path, content: Mapping[str, Any], places: Sequence[Path], *, full: bool) -> _Draft:
    draft = _Draft("YouTube-VIS", folder)
    split = next((word for word in ("train", "valid", "val", "test") if word in f"{file.parent.name}/{file.stem}"), "")
    entries = _rows(draft, file, content, "videos")
    videos = _numbered(draft, file, "videos", entries, _video)
    # A split whose truth is not public has none, or null.
    annotations = _rows(draft, file, content, "annotations") if content.get("annotations") else []
    near = [folder / split / "JPEGImages", folder / "JPEGImages", file.parent / "JPEGImages", folder / split, folder]
    firsts = [video.names[0] for video in videos.values()]
    home = max([*near, *places], key=lambda place: sum(_is_file(place / name) for name in firsts))
    is_there = any(_is_file(home / name) for name in firsts)
    if firsts and not is_there:
        fix = f"name their folder: lightning_vos data check {shlex.quote(str(folder))} --frames DIR"
        found = f"no frame of its videos, such as {firsts[0]}, in {folder} or {folder / split / 'JPEGImages'}"
        draft.find(FindingKind.MISSING_FRAME, file, found, fix)
    elif home not in near:
        draft.notes.append(f"{file.name}: its frames are in {home}")
    for video_id, video in videos.items():
        frames = {name: home / name for name in video.names if is_there and _is_file(home / name)}
        if is_there:
            _require(draft, FindingKind.MISSING_FRAME, home, video.names, frames, f"frames that {file} lists")
        draft.shares[f"{file}/{video_id}"] = Pictures(
            folder, frames, is_video=False, sizes=dict.fromkeys(frames, video.size)
        )
        order = [natural_order(name) for name in video.names]
        if any(later <= earlier for earlier, later in pairwise(order)):
            fix = "order file_names, each once, and the entries of its annotations with them"
            draft.find(FindingKind.WRONG_ORDER, file, f"file_names of video {video_id}", fix)
    categories = _categories(draft, file, content)
    listed = _ids(entries)

    def require_track(row: Any) -> None:
        video_id, category, masks = (
            field(row, "video_id", int),
            field(row, "category_id", int),
            rows(row, "segmentations"),
        )
        if video_id not in listed or (categories and category not in categories):
            found = f"annotation {row.get('id')}: video {video_id}, category {category}"
            draft.find(FindingKind.UNKNOWN_ID, file, found, _GET_AGAIN)
        if row.get("iscrowd", 0) not in (0, 1):
            raise AnnotationFault(f"iscrowd {row['iscrowd']!r}, expected 0 or 1")
        if video_id not in videos:
            return
        if len(masks) != len(videos[video_id].names):
            raise AnnotationFault(f"{len(masks)} masks for {len(videos[video_id].names)} frames")
        for mask in masks if full else ():
            mask_text(mask or None, videos[video_id].size)

    _read_each(draft, file, "annotations", annotations, require_track)
    if full and annotations and not draft.findings:
        try:
            read_ground_truth(file)
        except DatasetNotFoundError as error:
            draft.find(FindingKind.MALFORMED, file, _told(error), _GET_AGAIN)
    if not content.get("annotations"):
        draft.notes.append(f"{file.name} has no annotations: the truth of this split is not public, it is not scored")
    _note_categories(draft, file, categories)
    official = _version(_YOUTUBE_VIS.get("valid" if split == "val" else split, ()), len(entries), len(annotations))
    draft.splits.append(_Split(file.stem, list(draft.shares), official, len(annotations) or None))
    return draft


def _coco(folder: Path, file: Path, content: Mapping[str, Any], *, full: bool) -> _Draft:
    draft = _Draft("COCO", folder)
    entries = _rows(draft, file, content, "images")
    images = _numbered(draft, file, "images", entries, _image)
    names = [image.names[0] for image in images.values()]
    split = file.stem.removeprefix("instances_")
    near = [folder / split, folder / "images" / split, folder / "images", folder / "JPEGImages", folder]
    home = next((place for place in near if any(_is_file(place / name) for name in names)), None)
    if names and home is None:
        found = f"none of its {len(names)} images, such as {names[0]}, in {near[0]}"
        draft.find(FindingKind.MISSING_FRAME, file, found, f"put the images into {near[0]}")
    there: dict[str, Path] = {}
    if home is not None:
        there = {name: home / name for name in names if _is_file(home / name)}
        _require(draft, FindingKind.MISSING_FRAME, home, names, there, f"images that {file} lists")
    _add_images(draft, str(file), there, {}, {image.names[0]: image.size for image in images.values()})
    annotations = _rows(draft, file, content, "annotations")
    categories = _categories(draft, file, content)
    listed = _ids(entries)
    shown: set[int] = set()

    def require_instance(row: Any) -> None:
        image, category = field(row, "image_id", int), field(row, "category_id", int)
        shown.add(image)
        if image not in listed or (categories and category not in categories):
            found = f"annotation {row.get('id')}: image {image}, category {category}"
            draft.find(FindingKind.UNKNOWN_ID, file, found, _GET_AGAIN)
        crowd, area, box = row.get("iscrowd", 0), number(row, "area"), rows(row, "bbox")
        if crowd not in (0, 1) or len(box) != 4 or not all(type(side) in (int, float) for side in box):
            raise AnnotationFault(f"iscrowd {crowd!r}, bbox {reprlib.repr(box)}; expected 0 or 1, and four numbers")
        if full and image in images and not (area <= 0 or min(box[2:]) <= 0):  # others are never used
            field(row, "id", int)
            mask_text(row.get("segmentation"), images[image].size)

    _read_each(draft, file, "annotations", annotations, require_instance)
    empty = images.keys() - shown
    instances = [row for row in annotations if isinstance(row, dict)]
    crowds = sum(bool(row.get("iscrowd")) for row in instances)
    bare = sum(not row.get("area", 1) or not row.get("segmentation") for row in instances)
    for count, what in ((crowds, "crowds"), (bare, "instances without an area")):
        if count:
            draft.notes.append(f"{file.name}: {count} of {len(instances)} instances are {what}, and are left out")
    if empty:
        draft.notes.append(f"{file.name}: {_count(len(empty), 'image')} without an instance")
    _note_categories(draft, file, categories)
    draft.splits.append(_Split(file.stem, [], _coco_counts(split), len(annotations), images=(len(there), 0)))
    return draft


def _coco_counts(split: str) -> Sequence[Official]:
    return {"train2017": (Official(118287),), "val2017": (Official(5000, None, 36781),)}.get(split, ())


# What JSON files state, as the readers of training take it


class _Stated(NamedTuple):
    """An image or a video of a JSON."""

    id: int
    names: list[str]
    size: tuple[int, int]  # (H, W) in pixels


def _video(row: Any) -> _Stated:
    names = [inside(name) for name in rows(row, "file_names")]
    if not names:
        raise AnnotationFault("no name in file_names")
    return _Stated(field(row, "id", int), names, frame_size_of(row))


def _image(row: Any) -> _Stated:
    return _Stated(field(row, "id", int), [inside(row.get("file_name"))], frame_size_of(row))


def _numbered(
    draft: _Draft, file: Path, name: str, entries: Sequence[Any], read: Callable[[Any], _Stated]
) -> dict[int, _Stated]:
    """The images or videos of a list that can be taken, by their ids."""
    stated: dict[int, _Stated] = {}

    def add(row: Any) -> None:
        one = read(row)
        if one.id in stated:
            raise AnnotationFault(f"id {one.id}, which an earlier one has")
        stated[one.id] = one

    _read_each(draft, file, name, entries, add)
    return stated


def _read_each(draft: _Draft, file: Path, name: str, entries: Sequence[Any], read: Callable[[Any], None]) -> None:
    """Read the entries of a list; those that cannot be taken become one finding."""
    faults = []
    for place, entry in enumerate(entries):
        try:
            read(entry)
        except AnnotationFault as fault:
            faults.append(f"{name}[{place}]: {fault}")
    if faults:
        found = f"{len(faults)} of {len(entries)} entries that cannot be taken: {_names(faults)}"
        draft.find(FindingKind.MALFORMED, file, found, _GET_AGAIN)


def _rows(draft: _Draft, file: Path, content: Mapping[str, Any], name: str) -> list[Any]:
    """A list of a JSON; none, and a finding, where it is no list."""
    try:
        return rows(content, name)
    except AnnotationFault as fault:
        draft.find(FindingKind.MALFORMED, file, str(fault), _GET_AGAIN)
        return []


def _categories(draft: _Draft, file: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """Id -> name; none, and a finding, where they cannot be taken."""
    try:
        return read_categories(content)
    except AnnotationFault as fault:
        draft.find(FindingKind.MALFORMED, file, str(fault), _GET_AGAIN)
        return {}


def _ids(entries: Sequence[Any]) -> set[int]:
    """The ids of a list, also those of entries that cannot be taken."""
    return {row["id"] for row in entries if isinstance(row, dict) and type(row.get("id")) is int}


def _note_categories(draft: _Draft, file: Path, categories: Iterable[int]) -> None:
    numbers = sorted(categories)
    if numbers and len(numbers) < numbers[-1]:
        draft.notes.append(
            f"{file.name}: category ids {numbers[0]} to {numbers[-1]} have gaps; number the categories anew"
        )
    if 0 in numbers:
        draft.notes.append(f"{file.name}: a category has the id 0, which is background elsewhere")


# What they share


def _add_video(draft: _Draft, key: str, images: Path, masks: Path | None, source: Path, **described: Any) -> bool:
    """Have the files of a video looked at, once; False where it is not there."""
    if key in draft.shares:
        return True
    frames = pictures_in(images)
    if not frames:
        found = f"{images.name}: no {'picture in' if images.is_dir() else 'folder'} {images}"
        draft.find(FindingKind.MISSING_VIDEO, source, found, _COMPLETE)
        return False
    there = pictures_in(masks, {".png"}) if masks else {}
    draft.shares[key] = Pictures(draft.folder, frames, there, **described)
    return True


def _add_unlisted(draft: _Draft, split: Path) -> None:
    keys = []
    for child in _folders(split / "JPEGImages"):
        key = f"{split.name}/{child.name}"
        if _add_video(draft, key, child, split / "Annotations" / child.name, child.parent):
            keys.append(key)
    draft.splits.append(_Split(split.name, keys))


def _add_images(
    draft: _Draft,
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
        draft.shares[f"{name} {number}"] = Pictures(
            draft.folder, frames, own, is_video=False, sizes=stated, **described
        )
        number += 1


def _require(
    draft: _Draft, kind: FindingKind, folder: Path, names: Sequence[str], there: Mapping[str, Path], what: str
) -> None:
    if absent := [name for name in names if name not in there]:
        found = f"{len(absent)} of {len(names)} {what}: {_names(absent)}"
        draft.find(kind, folder, found, _COMPLETE)


def _require_frames(draft: _Draft, share: Pictures, images: Path, names: Sequence[str], source: Path) -> None:
    _require(draft, FindingKind.MISSING_FRAME, images, names, share.frames, f"frames that {source} lists")


def _require_masks(draft: _Draft, share: Pictures, images: Path, masks: Path, *, first_alone: bool = False) -> None:
    """Require a mask of every frame, or of the first alone."""
    wanted = list(share.frames)[: 1 if first_alone else None]
    _require(draft, FindingKind.MISSING_MASK, masks, wanted, share.masks, f"frames of {images} that need one")


def _note_unlisted(draft: _Draft, split: Path, listed: Mapping[str, Any]) -> None:
    if more := [child.name for child in _folders(split / "JPEGImages") if child.name not in listed]:
        draft.notes.append(f"{split.name}: on no list: {_names(more)}")


def _lines(draft: _Draft, source: Path) -> list[str]:
    try:
        return read_names(source)
    except DatasetNotFoundError as error:
        draft.find(FindingKind.MALFORMED, source, _told(error), _GET_AGAIN)
        return []


def _listed(draft: _Draft, source: Path) -> list[str]:
    """The names of videos on a list, without those that would lead elsewhere."""
    lines = _lines(draft, source)
    if bad := [line for line in lines if not is_plain_name(line)]:
        draft.find(FindingKind.MALFORMED, source, f"no names of folders: {_names(bad)}", "one plain name a line")
    if not lines:
        draft.find(FindingKind.MALFORMED, source, "no name", "one plain name a line")
    return [line for line in lines if is_plain_name(line)]


def _paired(draft: _Draft, source: Path) -> list[str]:
    """The names of videos on a list of "/JPEGImages/480p/<video>/00000.jpg /Annotations/480p/<video>/00000.png"."""
    names: dict[str, None] = {}
    absent, bad = [], []
    for line in _lines(draft, source):
        paths = [word.lstrip("/") for word in line.split()]
        if not all(_is_inside(path) and len(Path(path).parts) > 1 for path in paths):
            bad.append(line)
            continue
        names[Path(paths[0]).parent.name] = None
        absent += [path for path in paths if not (draft.folder / path).is_file()]
    if bad:
        found = f"no paths of a frame and a mask: {_names(bad)}"
        draft.find(FindingKind.MALFORMED, source, found, _GET_AGAIN)
    if absent:
        draft.find(FindingKind.MISSING_FRAME, source, f"{len(absent)} files: {_names(absent)}", _COMPLETE)
    return list(names)


def _version(versions: Sequence[Official], videos: int, objects: int) -> Sequence[Official]:
    """The version whose counts these are, or else all that it may be."""
    exact = [one for one in versions if one.videos == videos and one.objects in (None, objects)]
    return exact or versions


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(folder / entry.name for entry in os.scandir(folder) if entry.name[0] != "." and entry.is_dir())


def _has_videos(images: Path) -> bool:
    return any(pictures_in(child) for child in islice(_folders(images), 5))


def _jsons(folder: Path) -> list[Path]:
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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _is_inside(name: Any) -> bool:
    """Whether a path that a file names stays below the folder it is relative to."""
    return isinstance(name, str) and bool(name) and all(is_plain_name(part) for part in name.split("/"))


def _told(error: UserError) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:2])


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f", ... ({len(names)})" if len(names) > _NAMED else "")


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"1 {one}" if number == 1 else f"{number} {several or one + 's'}"


_TREES: dict[str, Callable[[Path], _Draft | None]] = {
    "davis": _davis,
    "youtube_vos": _youtube_vos,
    "lvos": _lvos,
    "voc": _voc,
    "static": _static,
    "ade20k": _ade20k,
    "endotect": _endotect,
    "dfc2020": _dfc2020,
    "labelled_images": _labelled_images,
    "long_time_video": _long_time_video,
    "folder": _folder,
}
DATASETS: dict[str, str] = {
    "davis": "JPEGImages/480p/<video>/*.jpg, Annotations/480p/<video>/*.png, ImageSets/<year>/<split>.txt",
    "youtube_vos": "<split>/JPEGImages/<video>/*.jpg, <split>/Annotations/<video>/*.png, <split>/meta.json",
    "lvos": "<split>/JPEGImages/<video>/*.jpg, <split>/Annotations/<video>/*.png, <split>/<split>_meta.json",
    "voc": "JPEGImages/*.jpg, SegmentationClass/*.png, ImageSets/Segmentation/<split>.txt",
    "static": "<set>/JPEGImages/*.jpg, <set>/Annotations/*.png",
    "long_time_video": "JPEGImages/<video>/*.jpg, Annotations/<video>/*.png",
    "folder": "JPEGImages/<video>/*.jpg, Annotations/<video>/*.png",
    "youtube_vis": "<split>/JPEGImages/<video>/*.jpg, <split>/instances.json or annotations/*.json",
    "coco": "<split>/*.jpg, annotations/instances_<split>.json",
    "ade20k": "images/training/*.jpg, annotations/training/*.png, and the same in validation",
    "endotect": "labeled-images/lower-gi-tract/<group>/<class>/*.jpg, segmented-images/masks/*.jpg",
    "dfc2020": "ROIs0000_<part>/s2_0/*_s2_*.npy, ROIs0000_<part>/dfc_0/*_dfc_*.tif",
    "labelled_images": "images/*.jpg, labels.csv",
}
"""What can be checked -> where its files are expected."""
