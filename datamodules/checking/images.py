"""Datasets of images with masks or labels in folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.checking.drafts import COMPLETE, GET_AGAIN, Draft, Official, Split, folders_in, some_of, told
from datamodules.inspecting import FindingKind, pictures_in
from datamodules.label_files import read_labels
from lightning_vos.errors import DatasetNotFoundError, FrameError
from lightning_vos.evaluation.meta import is_plain_name
from lightning_vos.io.frames import FRAME_SUFFIXES, frame_size

_VOC = {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456, "train_aug": 10582, "trainaug": 10582}
_VOC_CLASSES = dict.fromkeys(range(1, 21))
_ADE20K_CLASSES = dict.fromkeys(range(1, 151))


def voc(folder: Path) -> Draft | None:
    """PASCAL VOC, and its longer lists of others; None where the folder is none."""
    if not (folder / "JPEGImages").is_dir() or not (folder / "SegmentationClass").is_dir():
        return None
    draft = Draft("PASCAL VOC", folder)
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
        names = [Path(line.split()[0]).stem for line in draft.lines(source)]
        where = f"images that {source} lists"
        draft.require(FindingKind.MISSING_FRAME, folder / "JPEGImages", names, images, where)
        if source.stem != "test":
            draft.require(FindingKind.MISSING_MASK, folder / kind, names, labels[kind], where)
        counts = sum(name in images for name in names), sum(name in labels[kind] for name in names)
        official = (Official(_VOC[source.stem]),) if source.stem in _VOC else ()
        draft.splits.append(Split(source.stem, [], official, images=counts))
        listed[kind] |= dict.fromkeys(names)
    for kind, listed_names in listed.items():
        there = {name: images[name] for name in listed_names if name in images}
        draft.add_images(kind, there, labels[kind], meaning="classes", ids=_VOC_CLASSES)
    numbered = {name: images[name] for name in instances if name in images}
    draft.add_images("SegmentationObject", numbered, instances, meaning="instances")
    if not (folder / "Annotations").is_dir():
        draft.notes.append("no Annotations with XML: labels of images come from masks, which test images lack")
    return draft


def static(folder: Path) -> Draft | None:
    """Sets of still images with masks of objects; None where the folder is none."""
    sets = [
        child
        for child in folders_in(folder)
        if pictures_in(child / "JPEGImages") and pictures_in(child / "Annotations", {".png"})
    ]
    if not sets:
        return None
    draft = Draft("still images", folder)
    for one in sets:
        images, masks = pictures_in(one / "JPEGImages"), pictures_in(one / "Annotations", {".png"})
        where = f"images of {one / 'JPEGImages'}"
        draft.require(FindingKind.MISSING_MASK, one / "Annotations", list(images), masks, where)
        draft.add_images(one.name, images, masks)
        for name in masks.keys() - images.keys():
            fix = "give the mask the name of its image, or remove it"
            draft.find(FindingKind.EXTRA_MASK, masks[name], f"no image is called {name}", fix)
        draft.splits.append(Split(one.name, [], images=(len(images), len(masks))))
    return draft


def ade20k(folder: Path) -> Draft | None:
    """ADE20K; None where the folder is none."""
    splits = [
        name
        for name in ("training", "validation")
        if (folder / "images" / name).is_dir() and (folder / "annotations" / name).is_dir()
    ]
    if not splits:
        return None
    draft = Draft("ADE20K", folder)
    for name in splits:
        images, masks = pictures_in(folder / "images" / name), pictures_in(folder / "annotations" / name, {".png"})
        where = f"images of {folder / 'images' / name}"
        draft.require(FindingKind.MISSING_MASK, folder / "annotations" / name, list(images), masks, where)
        draft.add_images(name, images, masks, meaning="classes", ids=_ADE20K_CLASSES)
        draft.splits.append(Split(name, [], images=(len(images), len(masks))))
    return draft


def endotect(folder: Path) -> Draft | None:
    """EndoTect; None where the folder is none."""
    tract = folder / "labeled-images" / "lower-gi-tract"
    if not tract.is_dir():
        return None
    draft = Draft("EndoTect", folder)
    classes = [child for group in folders_in(tract) for child in folders_in(group)]
    if len({child.name for child in classes}) < max(len(classes), 2):
        found = f"{len(classes)} folders of classes, <group>/<class>; expected two or more, each of a name of its own"
        draft.find(FindingKind.MISSING_FRAME, tract, found, GET_AGAIN)
    places: dict[str, Path] = {}
    outlines = pictures_in(folder / "segmented-images" / "masks")
    draft.add_images("masks", outlines, {})
    for child in classes:
        images = pictures_in(child)
        draft.add_images(child.name, images, {})
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
        draft.splits.append(Split(child.name, [], images=(len(images), len(masks))))
    if not outlines:
        draft.notes.append("no segmented-images/masks: nothing is there to score polyps with")
    return draft


def _size_of(path: Path) -> tuple[int, int] | None:
    try:
        return frame_size(path)
    except FrameError:  # which is found where files are looked at
        return None


def labelled_images(folder: Path) -> Draft | None:
    """A person's own images with a CSV of labels; None where the folder is none."""
    source, images = folder / "labels.csv", pictures_in(folder / "images")
    if not source.is_file() or not images:
        return None
    draft = Draft("labelled images", folder)
    try:
        table = read_labels(source)
    except DatasetNotFoundError as error:
        draft.find(FindingKind.MALFORMED, source, told(error), "write it as lightning_vos data prepare labels does")
        return draft
    suffixes = {name: Path(name).suffix for name in table.rows}
    names = [
        name.removesuffix(suffix) if suffix.lower() in FRAME_SUFFIXES else name for name, suffix in suffixes.items()
    ]
    if bad := [name for name in names if not is_plain_name(name)]:
        draft.find(FindingKind.MALFORMED, source, f"no names of files: {some_of(bad)}", "plain names, without folders")
        names = [name for name in names if name not in bad]
    if len(set(names)) < max(len(names), 2):
        fix = "name two images or more, each in one way"
        draft.find(FindingKind.MALFORMED, source, f"{len(set(names))} names in {len(names)}", fix)
    draft.require(FindingKind.MISSING_FRAME, folder / "images", names, images, f"images that {source} lists")
    masks = pictures_in(folder / "masks", {".png"})
    known = dict.fromkeys(range(1, 1 + len(table.classes)))
    draft.add_images(
        "all", {name: images[name] for name in names if name in images}, masks, meaning="classes", ids=known
    )
    if more := sorted(images.keys() - set(names)):
        draft.notes.append(f"on no list: {some_of(more)}")
    counts = sum(name in images for name in names), sum(name in masks for name in names)
    draft.splits.append(Split("all", [], images=counts))
    return draft


def dfc2020(folder: Path) -> Draft | None:
    """DFC2020, tiles of many bands; None where the folder is none."""
    parts = [part for name in ("test", "validation") if (part := folder / f"ROIs0000_{name}").is_dir()]
    if not parts:
        return None
    draft = Draft("DFC2020", folder)
    for part in parts:
        tiles = {kind: _tiles(part, kind) for kind in ("s2", "dfc", "s1")}
        names = list(tiles["s2"])
        if not names:
            draft.find(FindingKind.MISSING_FRAME, part, "no tile of Sentinel-2, s2_0/*_s2_*.npy", COMPLETE)
        for kind, what in (("dfc", "classes"), ("s1", "Sentinel-1")):
            if kind == "dfc" or tiles[kind]:
                where = f"tiles of {part} that need {what}"
                draft.require(FindingKind.MISSING_MASK, part / f"{kind}_0", names, tiles[kind], where)
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
        draft.splits.append(Split(part.name, [], images=counts))
    draft.notes.append("of tiles shape and kind are read, whether all files are decoded or not")
    return draft


def _tiles(part: Path, kind: str) -> dict[str, Path]:
    """Tile, as that of Sentinel-2 is called -> its raster; `.npy` rather than `.tif`."""
    paths = [path for suffix in ("tif", "npy") for path in sorted(part.glob(f"{kind}_*/[!.]*_{kind}_*.{suffix}"))]
    return {path.stem.replace(f"_{kind}_", "_s2_"): path for path in paths}


def _tile_size(draft: Draft, path: Path, bands: int) -> tuple[int, int] | None:
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
