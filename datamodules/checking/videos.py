"""Datasets of videos with masks in folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from datamodules.checking.drafts import (
    COMPLETE,
    GET_AGAIN,
    Draft,
    Official,
    Split,
    folders_in,
    json_files,
    some_of,
    told,
    versions_of,
)
from datamodules.inspecting import FindingKind, Pictures, pictures_in
from lightning_vos.errors import DatasetNotFoundError
from lightning_vos.evaluation.meta import is_plain_name, read_lvos_meta, read_youtube_vos_meta

_FIRST_MASKS_ONLY = ("test-dev", "test-challenge")
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
_LVOS = {
    "train": (Official(120, version="v1"), Official(420, version="v2")),
    "valid": (Official(50, version="v1"), Official(140, version="v2")),
    "test": (Official(50, version="v1"), Official(160, version="v2")),
}


def davis(folder: Path) -> Draft | None:
    """DAVIS of any year and resolution; None where the folder is none."""
    resolutions = [
        child.name
        for child in folders_in(folder / "JPEGImages")
        if re.fullmatch(r"\d{3,4}p|Full-Resolution", child.name) and folders_in(child)
    ]
    if not resolutions:
        return None
    draft = Draft("DAVIS", folder)
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
    there = {child.name for name in resolutions for child in folders_in(folder / "JPEGImages" / name)}
    if not draft.splits:
        fix = "get ImageSets from https://davischallenge.org, or read the videos by configs/data/folder.yaml"
        draft.find(FindingKind.MISSING_LIST, folder / "ImageSets", "no <year>/<split>.txt that could be read", fix)
        for name in resolutions:
            source = folder / "JPEGImages" / name
            _davis_split(
                draft, "2017", name, source, [child.name for child in folders_in(source)], f"all, {name}", None
            )
    elif there - listed:
        draft.notes.append(f"on no list: {some_of(sorted(there - listed))}")
    if (folder / "Annotations_2017").is_dir():
        draft.notes.append("masks of both years side by side: those of 2017 are read from Annotations_2017")
    if (folder / "Annotations_unsupervised").is_dir():
        draft.notes.append("Annotations_unsupervised has other ids than the semi-supervised task, and is not read")
    return draft


def _davis_split(
    draft: Draft,
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
    draft.splits.append(Split(title, keys, (official,) if official else (), None, True, year == "2016"))


def youtube_vos(folder: Path) -> Draft | None:
    """YouTube-VOS; None where the folder is none."""
    splits = [child for child in folders_in(folder) if _is_youtube_vos(child)]
    if (folder / "JPEGImages").is_dir() and (folder / "meta.json").is_file():
        splits.append(folder)
    if not splits:
        return None
    draft = Draft("YouTube-VOS", folder)
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
            draft.find(FindingKind.MALFORMED, source, told(error), GET_AGAIN)
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
                draft.require(FindingKind.MISSING_MASK, masks, needed, share.masks, f"frames that {source} lists")
            few = [number for number, entry in entries.items() if len(entry.frames) < 2]
            if few and has_masks:
                draft.notes.append(
                    f"{split.name}/{name}: objects {some_of(list(map(str, few)))} are listed in one frame"
                )
        _note_unlisted(draft, split, meta)
        official = versions_of(_YOUTUBE_VOS.get(split.name.removesuffix("_all_frames"), ()), len(meta), objects)
        keys = [f"{split.name}/{name}" for name in meta if f"{split.name}/{name}" in draft.shares]
        draft.splits.append(Split(split.name, keys, official, objects if has_masks else None))
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
    return bool(named) and _has_videos(split / "JPEGImages") and not json_files(split.parent)  # else it is YouTube-VIS


def lvos(folder: Path) -> Draft | None:
    """LVOS; None where the folder is none."""
    below = folders_in(folder)
    splits = {
        split: meta for split in (*below, folder) if (split / "JPEGImages").is_dir() and (meta := _lvos_meta(split))
    }
    if not splits:
        return None
    draft = Draft("LVOS", folder)
    for split, source in splits.items():
        try:
            listed = read_lvos_meta(source)
        except DatasetNotFoundError as error:
            draft.find(FindingKind.MALFORMED, source, told(error), GET_AGAIN)
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
                    draft.find(FindingKind.MALFORMED, source, found, GET_AGAIN)
        _note_unlisted(draft, split, listed)
        keys = [f"{split.name}/{name}" for name in listed if f"{split.name}/{name}" in draft.shares]
        official = versions_of(_LVOS.get("valid" if split.name == "val" else split.name, ()), len(listed), objects)
        draft.splits.append(Split(split.name, keys, official, objects))
    return draft


def _lvos_meta(split: Path) -> Path | None:
    files = [file for file in sorted(split.glob("*_meta.json")) if not file.stem.endswith("expression_meta")]
    return files[0] if files else None


def long_time_video(folder: Path) -> Draft | None:
    """Long-Time Video, whose layout is that of any videos; None where the folder is none."""
    images = folder / "JPEGImages"
    if not _has_videos(images) or not (folder / "Annotations").is_dir():
        return None
    draft = Draft("Long-Time Video", folder)
    source = folder / "ImageSets" / "val.txt"
    names = _listed(draft, source) if source.is_file() else [child.name for child in folders_in(images)]
    for name in names:
        masks = folder / "Annotations" / name
        if _add_video(draft, name, images / name, masks, source, meaning="foreground"):
            _require_masks(draft, draft.shares[name], images / name, masks, first_alone=True)
    draft.splits.append(Split("val", list(draft.shares), (Official(3),), counts_objects=True))
    return draft


def folder_of_videos(folder: Path) -> Draft | None:
    """Any videos with masks; None where the folder is none."""
    images = folder / "JPEGImages"
    if not _has_videos(images) or not (folder / "Annotations").is_dir():
        return None
    draft = Draft("videos in folders", folder)
    names = [child.name for child in folders_in(images)]
    for name in names:
        _add_video(draft, name, images / name, folder / "Annotations" / name, images)
    bare = [name for name in names if name in draft.shares and not draft.shares[name].masks]
    if bare:
        draft.notes.append(f"without masks, and so without anything to segment: {some_of(bare)}")
    draft.splits.append(Split("all", list(draft.shares), counts_objects=True))
    return draft


def _add_video(draft: Draft, key: str, images: Path, masks: Path | None, source: Path, **described: Any) -> bool:
    """Have the files of a video looked at, once; False where it is not there."""
    if key in draft.shares:
        return True
    frames = pictures_in(images)
    if not frames:
        found = f"{images.name}: no {'picture in' if images.is_dir() else 'folder'} {images}"
        draft.find(FindingKind.MISSING_VIDEO, source, found, COMPLETE)
        return False
    there = pictures_in(masks, {".png"}) if masks else {}
    draft.shares[key] = Pictures(draft.folder, frames, there, **described)
    return True


def _add_unlisted(draft: Draft, split: Path) -> None:
    keys = []
    for child in folders_in(split / "JPEGImages"):
        key = f"{split.name}/{child.name}"
        if _add_video(draft, key, child, split / "Annotations" / child.name, child.parent):
            keys.append(key)
    draft.splits.append(Split(split.name, keys))


def _require_frames(draft: Draft, share: Pictures, images: Path, names: Sequence[str], source: Path) -> None:
    draft.require(FindingKind.MISSING_FRAME, images, names, share.frames, f"frames that {source} lists")


def _require_masks(draft: Draft, share: Pictures, images: Path, masks: Path, *, first_alone: bool = False) -> None:
    """Require a mask of every frame, or of the first alone."""
    wanted = list(share.frames)[: 1 if first_alone else None]
    draft.require(FindingKind.MISSING_MASK, masks, wanted, share.masks, f"frames of {images} that need one")


def _note_unlisted(draft: Draft, split: Path, listed: Mapping[str, Any]) -> None:
    if more := [child.name for child in folders_in(split / "JPEGImages") if child.name not in listed]:
        draft.notes.append(f"{split.name}: on no list: {some_of(more)}")


def _listed(draft: Draft, source: Path) -> list[str]:
    """The names of videos on a list, without those that would lead elsewhere."""
    lines = draft.lines(source)
    if bad := [line for line in lines if not is_plain_name(line)]:
        draft.find(FindingKind.MALFORMED, source, f"no names of folders: {some_of(bad)}", "one plain name a line")
    if not lines:
        draft.find(FindingKind.MALFORMED, source, "no name", "one plain name a line")
    return [line for line in lines if is_plain_name(line)]


def _paired(draft: Draft, source: Path) -> list[str]:
    """The names of videos on a list of "/JPEGImages/480p/<video>/00000.jpg /Annotations/480p/<video>/00000.png"."""
    names: dict[str, None] = {}
    absent, bad = [], []
    for line in draft.lines(source):
        paths = [word.lstrip("/") for word in line.split()]
        if not all(_is_inside(path) and len(Path(path).parts) > 1 for path in paths):
            bad.append(line)
            continue
        names[Path(paths[0]).parent.name] = None
        absent += [path for path in paths if not (draft.folder / path).is_file()]
    if bad:
        found = f"no paths of a frame and a mask: {some_of(bad)}"
        draft.find(FindingKind.MALFORMED, source, found, GET_AGAIN)
    if absent:
        draft.find(FindingKind.MISSING_FRAME, source, f"{len(absent)} files: {some_of(absent)}", COMPLETE)
    return list(names)


def _has_videos(images: Path) -> bool:
    return any(pictures_in(child) for child in islice(folders_in(images), 5))


def _is_inside(name: Any) -> bool:
    """Whether a path that a file names stays below the folder it is relative to."""
    return isinstance(name, str) and bool(name) and all(is_plain_name(part) for part in name.split("/"))
