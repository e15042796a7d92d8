"""Synthetic sets with classes on disk, in the layouts of YouTube-VIS and of COCO.

The class of an object is the quarter of the colour circle that it has. Nothing here imports torch.
"""

import colorsys
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from rich.console import Console
from rich.progress import track

from datamodules.rendering import RenderedClip, render_clip
from datamodules.synthetic_files import FIRST_VAL_INDEX, StillSettings, SyntheticSettings, write_whole
from datamodules.youtube_vis_classes import CATEGORIES
from lightning_vos.evaluation.holdout import is_held_out

# By quarter of the colour circle, from red on. COCO's umbrella is no category of YouTube-VIS.
_VIS_CATEGORIES = {18: "horse", 15: "cow", 34: "boat", 1: "person"}
_COCO_CATEGORIES = {19: "horse", 21: "cow", 28: "umbrella", 1: "person"}
_INFO = {"description": "Synthetic, rendered by lightning_vos; see README.txt"}
_README = """This is a synthetic data set, rendered by lightning_vos in the file layout of {dataset}.
It holds no frame and no annotation of that data set. Scores on it compare with nothing published.
An object's category is its colour: {categories}.

synthetic.json  the settings it was rendered with
"""


def write_synthetic_youtube_vis(root: Path, settings: SyntheticSettings) -> None:
    """Write a synthetic set in the layout of YouTube-VIS 2019, or leave it alone where it is complete.

    `train.json` lists `settings.train` videos that are trained on and `settings.val` that are held out by their names;
    its first video has a crowd. `valid.json` lists `settings.val` others and has no annotations.

    Args:
        root: The folder that will hold `train.json`, `valid.json`, `train/JPEGImages` and `valid/JPEGImages`.
        settings: What is rendered.

    Raises:
        ConfigError: `root` holds something else, or a synthetic set of other settings, or cannot be made.
    """
    write_whole(root, settings, lambda draft: _write_videos(draft, settings))


def write_synthetic_coco(root: Path, settings: StillSettings) -> None:
    """Write a synthetic set in the layout of COCO 2017, or leave it alone where it is complete.

    Four of five images are for training, every third is upright. Instances are polygons; the first image has two
    crowds, an uncompressed and a compressed RLE, the second is grey, the third of `train2017` has no instances.

    Args:
        root: The folder that will hold `annotations`, `train2017` and `val2017`.
        settings: What is rendered.

    Raises:
        ConfigError: `root` holds something else, or a synthetic set of other settings, or cannot be made.
    """
    write_whole(root, settings, lambda draft: _write_images(draft, settings))


def uncompressed(mask: NDArray[Any]) -> dict[str, Any]:
    """Give an (H, W) mask as the uncompressed RLE of COCO: runs down the columns, background first.

    Example:
        >>> uncompressed(np.array([[1, 0], [1, 0]]))
        {'size': [2, 2], 'counts': [0, 2, 2]}
    """
    flat = np.concatenate([[0], mask.ravel(order="F") > 0])
    changes = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": runs.tolist()}


def _write_videos(root: Path, settings: SyntheticSettings) -> None:
    trained, kept = _names(held_out=False), _names(held_out=True)
    train = [(name, k) for k, name in enumerate(islice(trained, settings.train))]
    train += [(name, FIRST_VAL_INDEX + k) for k, name in enumerate(islice(kept, settings.val))]
    valid = [(name, FIRST_VAL_INDEX + settings.val + k) for k, name in enumerate(islice(trained, settings.val))]
    categories = [
        {"id": number, "name": name, "supercategory": "object"} for number, name in enumerate(CATEGORIES[2019], 1)
    ]
    console = Console(stderr=True)
    for split, listed in (("train", train), ("valid", valid)):
        content: dict[str, Any] = {"info": _INFO, "licenses": [], "categories": categories, "videos": []}
        annotations: list[dict[str, Any]] = []
        title = f"Rendering {len(listed)} videos"
        for name, index in track(listed, title, console=console, disable=not console.is_terminal):
            clip = render_clip(
                settings.seed,
                index,
                frames=settings.frames,
                height=settings.height,
                width=settings.width,
                difficulty=settings.difficulty,
            )
            video = len(content["videos"]) + 1
            content["videos"].append(_write_frames(root / split / "JPEGImages", name, clip) | {"id": video})
            for number in range(1, int(clip.masks.max()) + 1):
                category = list(_VIS_CATEGORIES)[_quarter(clip, number)]
                annotations.append(_track(clip.masks == number, video, category) | {"id": len(annotations) + 1})
            if video == 1:
                annotations.append(_track(clip.masks > 0, video, 1) | {"id": len(annotations) + 1, "iscrowd": 1})
        if split == "train":
            content["annotations"] = annotations
        (root / f"{split}.json").write_text(json.dumps(content))
    _describe(root, "YouTube-VIS 2019", list(_VIS_CATEGORIES.values()))
    (root / "synthetic.json").write_text(json.dumps(asdict(settings), indent=1))


def _names(*, held_out: bool) -> Iterator[str]:
    """Names of videos like those of YouTube-VIS, on one side of the rule of the hold-out."""
    return (name for name in (f"{number:010x}" for number in count()) if is_held_out(name) == held_out)


def _write_frames(folder: Path, name: str, clip: RenderedClip) -> dict[str, Any]:
    (folder / name).mkdir(parents=True)
    files = [f"{name}/{5 * time:05}.jpg" for time in range(len(clip.frames))]
    for file, frame in zip(files, clip.frames, strict=True):
        Image.fromarray(frame).save(folder / file, quality=92)
    height, width = clip.frames.shape[1:3]
    return {"file_names": files, "length": len(files), "height": height, "width": width}


def _track(masks: NDArray[np.bool], video: int, category: int) -> dict[str, Any]:
    length, height, width = masks.shape
    shown = [mask if mask.any() else None for mask in masks]
    return {
        "video_id": video,
        "category_id": category,
        "iscrowd": 0,
        "height": height,
        "width": width,
        "length": length,
        "segmentations": [None if mask is None else uncompressed(mask) for mask in shown],
        "bboxes": [None if mask is None else _box(mask) for mask in shown],
        "areas": [None if mask is None else int(mask.sum()) for mask in shown],
    }


def _write_images(root: Path, settings: StillSettings) -> None:
    (root / "annotations").mkdir(parents=True)
    kept = max(settings.images // 5, 1)
    console = Console(stderr=True)
    for split, indices in (
        ("train2017", range(settings.images - kept)),
        ("val2017", range(settings.images - kept, settings.images)),
    ):
        (root / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        title = f"Rendering {len(indices)} images"
        for index in track(indices, title, console=console, disable=not console.is_terminal):
            sides = (settings.height, settings.width)
            height, width = sides[::-1] if index % 3 == 2 else sides
            clip = render_clip(settings.seed, index, frames=3, height=height, width=width)
            picture = Image.fromarray(clip.frames[0])
            name = f"{7 * index + 9:012}.jpg"  # ids have gaps
            (picture.convert("L") if len(images) == 1 else picture).save(root / split / name, quality=92)
            images.append({"id": 7 * index + 9, "file_name": name, "height": height, "width": width})
            if len(images) != 3 or split != "train2017":
                of_image = [*_instances(clip), *(_crowds(clip) if len(images) == 1 else [])]
                first = len(annotations) + 1
                annotations += [row | {"id": first + k, "image_id": 7 * index + 9} for k, row in enumerate(of_image)]
        categories = [{"id": number, "name": name} for number, name in sorted(_COCO_CATEGORIES.items())]
        content = {"info": _INFO, "licenses": [], "images": images, "annotations": annotations}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content | {"categories": categories}))
    _describe(root, "COCO 2017", list(_COCO_CATEGORIES.values()))
    (root / "synthetic.json").write_text(json.dumps(asdict(settings), indent=1))


def _instances(clip: RenderedClip) -> Iterator[dict[str, Any]]:
    for number in range(1, int(clip.masks[0].max()) + 1):
        mask = clip.masks[0] == number
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        polygons = [(outline.reshape(-1) + 0.5).tolist() for outline in outlines if len(outline) >= 3]
        category = list(_COCO_CATEGORIES)[_quarter(clip, number)]
        yield _instance(mask, category) | {"segmentation": polygons, "iscrowd": 0}


def _crowds(clip: RenderedClip) -> Iterator[dict[str, Any]]:
    for rows in (slice(0, 16), slice(-16, None)):
        mask = np.zeros(clip.masks.shape[1:], bool)
        mask[rows] = True
        rle: Any = uncompressed(mask)
        if rows.start:
            packed: Any = coco.encode(np.asfortranarray(mask, np.uint8))
            rle = {"size": list(mask.shape), "counts": packed["counts"].decode()}
        yield _instance(mask, 1) | {"segmentation": rle, "iscrowd": 1}


def _instance(mask: NDArray[np.bool], category: int) -> dict[str, Any]:
    return {"category_id": category, "area": int(mask.sum()), "bbox": _box(mask)}


def _box(mask: NDArray[np.bool]) -> list[int]:
    """The first column, the first row, width and height."""
    rows, columns = np.flatnonzero(mask.any(axis=1)).tolist(), np.flatnonzero(mask.any(axis=0)).tolist()
    return [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]


def _quarter(clip: RenderedClip, number: int) -> int:
    """Which quarter of the colour circle an object has, measured where the first frame shows it."""
    red, green, blue = clip.frames[0][clip.masks[0] == number].mean(axis=0).tolist()
    return int(4 * colorsys.rgb_to_hsv(red, green, blue)[0]) % 4


def _describe(root: Path, dataset: str, categories: list[str]) -> None:
    quarters = ["red to lime", "green to cyan", "azure to violet", "magenta to red"]
    named = ", ".join(f"{name} is {quarter}" for name, quarter in zip(categories, quarters, strict=True))
    (root / "README.txt").write_text(_README.format(dataset=dataset, categories=named))
