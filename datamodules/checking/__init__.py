"""Whether a dataset on disk is what its readers expect: recognised by its folders, checked against its own lists.

Nothing here imports torch, for the command line answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from datamodules.checking.annotated import annotated
from datamodules.checking.drafts import Draft, Report, folders_in, json_files, reported
from datamodules.checking.images import ade20k, dfc2020, endotect, labelled_images, static, voc
from datamodules.checking.videos import davis, folder_of_videos, long_time_video, lvos, youtube_vos
from datamodules.inspecting import inspect
from datamodules.processes import results
from lightning_vos.errors import DatasetNotFoundError

_LONG_TIME_VIDEO = re.compile(r"long.?(time|term)?.?video", re.IGNORECASE)
_TREES: dict[str, Callable[[Path], Draft | None]] = {
    "davis": davis,
    "youtube_vos": youtube_vos,
    "lvos": lvos,
    "voc": voc,
    "static": static,
    "ade20k": ade20k,
    "endotect": endotect,
    "dfc2020": dfc2020,
    "labelled_images": labelled_images,
    "long_time_video": long_time_video,
    "folder": folder_of_videos,
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
    return [reported(draft, dict(zip(draft.shares, islice(seen, len(draft.shares)), strict=True))) for draft in drafts]


def _recognised(root: Path, dataset: str | None, frames: Path | None, *, full: bool) -> list[Draft]:
    if not root.is_dir():
        raise DatasetNotFoundError(
            f"No folder to check: {root.absolute()}\n"
            f"  found {'a file' if root.exists() else 'nothing'}, expected a dataset or a folder that holds datasets"
        )
    if frames is not None and not frames.is_dir():
        raise DatasetNotFoundError(f"No folder of frames (--frames): {frames.absolute()}")
    below = [folder for child in folders_in(root) for folder in (child, *folders_in(child))]
    folders = [root, *sorted(below, key=lambda folder: len(folder.parts))]
    drafts: list[Draft] = []
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
        for file in json_files(folder):
            if file not in seen:
                seen.add(file)
                for draft in annotated(folder, file, dataset, places, full=full):
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


def _join(drafts: list[Draft], draft: Draft) -> None:
    """Add the splits of one JSON to those of others that lie in the same folder."""
    for other in drafts:
        if (other.dataset, other.folder) == (draft.dataset, draft.folder):
            other.shares |= draft.shares
            other.splits += draft.splits
            other.findings += draft.findings
            other.notes += draft.notes
            return
    drafts.append(draft)
