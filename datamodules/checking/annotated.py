"""Datasets whose annotations are one JSON, in the format of COCO or YouTube-VIS, read as the readers of training do."""

from __future__ import annotations

import reprlib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

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
from datamodules.checking.drafts import GET_AGAIN, Draft, Official, Split, counted, some_of, told, versions_of
from datamodules.inspecting import FindingKind, Pictures, natural_order
from lightning_vos.errors import DatasetNotFoundError
from lightning_vos.evaluation.meta import read_json
from lightning_vos.evaluation.youtube_vis import read_ground_truth

_YOUTUBE_VIS = {
    "train": (Official(2238, None, 4883, "2019"), Official(2985, None, 8171, "2021")),
    "valid": (Official(302, version="2019"), Official(421, version="2021")),
    "test": (Official(343, version="2019"), Official(453, version="2021")),
}


def annotated(folder: Path, file: Path, dataset: str | None, places: Sequence[Path], *, full: bool) -> list[Draft]:
    """The images or videos of a JSON in the format of COCO or YouTube-VIS; none where it is another JSON."""
    if dataset not in (None, "coco", "youtube_vis"):
        return []
    is_named = file.stem.startswith("instances") or dataset in ("coco", "youtube_vis")
    try:
        content = read_json(file, "annotations in the format of COCO or YouTube-VIS")
    except DatasetNotFoundError as error:
        if not is_named:
            return []
        draft = Draft("YouTube-VIS" if dataset == "youtube_vis" else "COCO", folder)
        draft.find(FindingKind.MALFORMED, file, told(error), GET_AGAIN)
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


def _youtube_vis(folder: Path, file: Path, content: Mapping[str, Any], places: Sequence[Path], *, full: bool) -> Draft:
    draft = Draft("YouTube-VIS", folder)
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
            draft.require(FindingKind.MISSING_FRAME, home, video.names, frames, f"frames that {file} lists")
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
            draft.find(FindingKind.UNKNOWN_ID, file, found, GET_AGAIN)
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
            draft.find(FindingKind.MALFORMED, file, told(error), GET_AGAIN)
    if not content.get("annotations"):
        draft.notes.append(f"{file.name} has no annotations: the truth of this split is not public, it is not scored")
    _note_categories(draft, file, categories)
    official = versions_of(_YOUTUBE_VIS.get("valid" if split == "val" else split, ()), len(entries), len(annotations))
    draft.splits.append(Split(file.stem, list(draft.shares), official, len(annotations) or None))
    return draft


def _coco(folder: Path, file: Path, content: Mapping[str, Any], *, full: bool) -> Draft:
    draft = Draft("COCO", folder)
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
        draft.require(FindingKind.MISSING_FRAME, home, names, there, f"images that {file} lists")
    draft.add_images(str(file), there, {}, {image.names[0]: image.size for image in images.values()})
    annotations = _rows(draft, file, content, "annotations")
    categories = _categories(draft, file, content)
    listed = _ids(entries)
    shown: set[int] = set()

    def require_instance(row: Any) -> None:
        image, category = field(row, "image_id", int), field(row, "category_id", int)
        shown.add(image)
        if image not in listed or (categories and category not in categories):
            found = f"annotation {row.get('id')}: image {image}, category {category}"
            draft.find(FindingKind.UNKNOWN_ID, file, found, GET_AGAIN)
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
        draft.notes.append(f"{file.name}: {counted(len(empty), 'image')} without an instance")
    _note_categories(draft, file, categories)
    draft.splits.append(Split(file.stem, [], _coco_counts(split), len(annotations), images=(len(there), 0)))
    return draft


def _coco_counts(split: str) -> Sequence[Official]:
    return {"train2017": (Official(118287),), "val2017": (Official(5000, None, 36781),)}.get(split, ())


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
    draft: Draft, file: Path, name: str, entries: Sequence[Any], read: Callable[[Any], _Stated]
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


def _read_each(draft: Draft, file: Path, name: str, entries: Sequence[Any], read: Callable[[Any], None]) -> None:
    """Read the entries of a list; those that cannot be taken become one finding."""
    faults = []
    for place, entry in enumerate(entries):
        try:
            read(entry)
        except AnnotationFault as fault:
            faults.append(f"{name}[{place}]: {fault}")
    if faults:
        found = f"{len(faults)} of {len(entries)} entries that cannot be taken: {some_of(faults)}"
        draft.find(FindingKind.MALFORMED, file, found, GET_AGAIN)


def _rows(draft: Draft, file: Path, content: Mapping[str, Any], name: str) -> list[Any]:
    """A list of a JSON; none, and a finding, where it is no list."""
    try:
        return rows(content, name)
    except AnnotationFault as fault:
        draft.find(FindingKind.MALFORMED, file, str(fault), GET_AGAIN)
        return []


def _categories(draft: Draft, file: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """Id -> name; none, and a finding, where they cannot be taken."""
    try:
        return read_categories(content)
    except AnnotationFault as fault:
        draft.find(FindingKind.MALFORMED, file, str(fault), GET_AGAIN)
        return {}


def _ids(entries: Sequence[Any]) -> set[int]:
    """The ids of a list, also those of entries that cannot be taken."""
    return {row["id"] for row in entries if isinstance(row, dict) and type(row.get("id")) is int}


def _note_categories(draft: Draft, file: Path, categories: Iterable[int]) -> None:
    numbers = sorted(categories)
    if numbers and len(numbers) < numbers[-1]:
        draft.notes.append(
            f"{file.name}: category ids {numbers[0]} to {numbers[-1]} have gaps; number the categories anew"
        )
    if 0 in numbers:
        draft.notes.append(f"{file.name}: a category has the id 0, which is background elsewhere")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
