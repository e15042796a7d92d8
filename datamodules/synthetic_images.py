"""Synthetic images that show several classes, on disk in the folders of datasets for weakly supervised segmentation.

Nothing here imports torch, so that the command line can write a set at once.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from rich.console import Console
from rich.progress import track

from datamodules.difficulties import PERCEPTIBLE
from datamodules.rendering import (
    Look,
    draw_colours,
    draw_ground,
    draw_layer,
    front_layer,
    place_layer,
    spread_apart,
)
from datamodules.synthetic_files import FIRST_VAL_INDEX, write_whole
from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.semantic import CLASS_SETS
from lightning_vos.io.masks import write_mask

Layout = Literal["voc", "coco_semantic", "ade20k", "dfc2020", "endotect", "labelled_images"]
Part = Literal["train", "val", "test"]

FOLDERS: dict[Layout, str] = {
    "voc": "VOC2012",
    "coco_semantic": "coco",
    "ade20k": "ADEChallengeData2016",
    "dfc2020": "DFC2020",
    "endotect": "endotect",
    "labelled_images": ".",
}
"""The folder of each layout inside the one that `root` of its DataModule names."""

SIZES: dict[Layout, dict[str, int]] = {"dfc2020": {"train": 24, "val": 8, "height": 256, "width": 256}}
"""What a set to begin with has in place of the defaults of `ImageSettings`: tiles larger than DFC2020's windows."""

_FIRST = {"train": 0, "val": FIRST_VAL_INDEX, "test": 2 * FIRST_VAL_INDEX}
_SHAPES = ("blob", "polygon", "ellipse")
_TEXTURES = ("noise", "stripes", "dots", "gradient")
_MOST_CLASSES = 12  # pairs of shape and texture
_MOST_OBJECTS = 4
_BORDER = 255
_TRIES = 50
_ENDOSCOPIC = {  # class -> group, of HyperKvasir's lower tract
    "polyps": "pathological-findings",
    "cecum": "anatomical-landmarks",
    "impacted-stool": "quality-of-mucosal-views",
    "dyed-lifted-polyps": "therapeutic-interventions",
    "hemorrhoids": "pathological-findings",
    "ileum": "anatomical-landmarks",
    "retroflex-rectum": "anatomical-landmarks",
    "bbps-0-1": "quality-of-mucosal-views",
    "bbps-2-3": "quality-of-mucosal-views",
    "dyed-resection-margins": "therapeutic-interventions",
    "ulcerative-colitis-grade-1": "pathological-findings",
    "ulcerative-colitis-grade-2": "pathological-findings",
}
_LAND_COVER = (1, 2, 4, 5, 6, 7, 9, 10)
_README = """This is a synthetic data set of images, rendered by lightning_vos in the folder layout "{layout}".
It holds no image and no mask of any other data set, and the names of classes are borrowed: what is called by one name
has one shape, one family of textures and one range of colours. Scores on it compare with nothing published.

synthetic.json  the settings it was rendered with
"""


def _pairs() -> list[list[float]]:
    return [[1.0, 0.6, 0.1, 0.1], [0.6, 1.0, 0.1, 0.1], [0.1, 0.1, 1.0, 0.6], [0.1, 0.1, 0.6, 1.0]]


@dataclass(frozen=True)
class ImageSettings:
    """What a synthetic set of labelled images holds; the same settings always give the same files.

    Attributes:
        layout: The dataset whose folders and files it takes.
        train: Number of training images.
        val: Number of validation images; "voc" has a quarter as many more without truth.
        height: Pixels.
        width: Pixels.
        seed: Another seed gives other images.
        co_occurrence: (K, K): an image is drawn for one of K classes, each as likely, and row k has for each other
            class the probability that it is shown beside k. "endotect" shows one class an image, and "dfc2020" covers
            its tiles with those that are drawn.
    """

    layout: Layout = "voc"
    train: int = 120
    val: int = 40
    height: int = 96
    width: int = 128
    seed: int = 0
    co_occurrence: list[list[float]] = field(default_factory=_pairs)

    def __post_init__(self) -> None:
        """Refuse what cannot be rendered."""
        if self.layout not in get_args(Layout):
            raise ConfigError(
                f"No synthetic images have the layout {self.layout!r}.\nExpected one of {', '.join(get_args(Layout))}."
            )
        if not 1 <= self.train <= FIRST_VAL_INDEX or self.val < 1 or self.seed < 0 or min(self.height, self.width) < 64:
            raise ConfigError(
                f"No synthetic images of train={self.train}, val={self.val}, height={self.height}, width={self.width}, "
                f"seed={self.seed} can be rendered.\nExpected train and val >= 1, 64 x 64 pixels or more, seed >= 0."
            )
        most = len(_LAND_COVER) if self.layout == "dfc2020" else _MOST_CLASSES
        rows = self.co_occurrence
        square = 2 <= len(rows) <= most and all(len(row) == len(rows) for row in rows)
        if not square or not all(0 <= share <= 1 for row in rows for share in row):
            raise ConfigError(
                f"No co-occurrence of classes: {rows}\n"
                f"Expected a square matrix of 2 to {most} rows (layout {self.layout}) with probabilities from 0 to 1."
            )


def write_images(root: Path, settings: ImageSettings) -> None:
    """Write a synthetic set of labelled images, or leave it alone where it is complete.

    The set is written beside `root` and moved there at the end: an interrupted call leaves nothing behind that could be
    taken for a set.

    Args:
        root: The folder that will be that of the dataset, see `FOLDERS`.
        settings: What is rendered.

    Raises:
        ConfigError: `root` holds something else, or a synthetic set of other settings, or cannot be made.
    """
    writers: dict[Layout, Callable[[Path, ImageSettings], None]] = {
        "voc": _write_voc,
        "coco_semantic": _write_coco,
        "ade20k": _write_ade20k,
        "dfc2020": _write_dfc2020,
        "endotect": _write_endotect,
        "labelled_images": _write_labelled_images,
    }

    def write(draft: Path) -> None:
        writers[settings.layout](draft, settings)
        (draft / "README.txt").write_text(_README.format(layout=settings.layout))
        (draft / "synthetic.json").write_text(json.dumps(asdict(settings), indent=1))

    write_whole(root, settings, write)  # type: ignore[arg-type] # any settings that are a dataclass will do


class Scene(NamedTuple):
    """An image with its truth."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    objects: NDArray[np.uint8]  # (H, W), 1..N in the order of `classes`; 0 is background
    classes: tuple[int, ...]  # of each object, counted from 0
    hidden: tuple[bool, ...]  # whether more than half of an object is covered

    @property
    def mask(self) -> NDArray[np.uint8]:
        """(H, W): 0 is background, 1 to K are the classes."""
        return np.array([0, *(kind + 1 for kind in self.classes)], np.uint8)[self.objects]


def render_scene(settings: ImageSettings, part: Part, number: int) -> Scene:
    """Render an image of one to four objects of different classes before a ground.

    A class is a shape, a family of textures and a range of hues.

    Args:
        settings: The set.
        part: The part of the set that the image belongs to.
        number: The image in its part; the same three always give the same image.

    Raises:
        ConfigError: No arrangement of that size shows every object.
    """
    rng = np.random.default_rng([settings.seed, _FIRST[part] + number])
    height, width = settings.height, settings.width
    for _ in range(_TRIES):
        classes = _drawn(settings, rng)
        radii = np.sqrt(np.exp(rng.uniform(math.log(0.04), math.log(0.1), len(classes))) * height * width / math.pi)
        centres = spread_apart(rng, radii, height, width)
        layers = [
            draw_layer(
                rng, 0, _look(rng, kind, len(settings.co_occurrence)), radius, centre[None], zoom=1, is_twin=False
            )
            for kind, radius, centre in zip(classes, radii, centres, strict=True)
        ]
        ground = place_layer(draw_ground(rng, rng.random(), 1, height, width), 0, height, width)[..., :3].astype(
            np.float32
        )
        drawn = [place_layer(layer, 0, height, width) for layer in layers]
        silhouettes = np.stack([one[..., 3] >= 128 for one in drawn])
        objects = front_layer(silhouettes)
        seen = np.bincount(objects.ravel(), minlength=len(classes) + 1)[1:]
        if (seen >= PERCEPTIBLE * height * width).all():
            break
    else:
        raise ConfigError(f"No image of {height} x {width} pixels shows all its objects: render larger ones.")
    for one in drawn:
        ground += (one[..., :3] - ground) * (one[..., 3:] * np.float32(1 / 255))
    ground += rng.standard_normal(ground.shape, np.float32) * 4
    hidden = seen < silhouettes.sum(axis=(1, 2)) / 2
    return Scene(ground.clip(0, 255).astype(np.uint8), objects, classes, tuple(hidden.tolist()))


def _drawn(settings: ImageSettings, rng: np.random.Generator) -> tuple[int, ...]:
    """The classes of an image, counted from 0, that which it is drawn for first."""
    rows = settings.co_occurrence
    main = int(rng.integers(len(rows)))
    beside = [kind for kind, share in enumerate(rows[main]) if kind != main and rng.random() < share]
    if settings.layout == "endotect":
        return (main,)
    return main, *rng.permutation(beside)[: _MOST_OBJECTS - 1].tolist()


def _look(rng: np.random.Generator, kind: int, classes: int) -> Look:
    low = rng.uniform(0.3, 0.5)
    hue = (kind + rng.uniform(-0.2, 0.2)) / classes
    colours = draw_colours(hue, rng.uniform(0.65, 0.95), low, low + rng.uniform(0.4, 0.5))
    return Look(_SHAPES[kind % 3], _TEXTURES[kind % 4], colours, rng.uniform(7, 14))


def _scenes(settings: ImageSettings, part: Part) -> Iterator[tuple[int, Scene]]:
    count = {"train": settings.train, "val": settings.val, "test": -(-settings.val // 4)}[part]
    console = Console(stderr=True)
    for number in track(range(count), f"Rendering {part}", console=console, disable=not console.is_terminal):
        yield number, render_scene(settings, part, number)


def _write_voc(root: Path, settings: ImageSettings) -> None:
    names: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    parts: tuple[tuple[Part, str], ...] = (("train", "2007"), ("val", "2008"), ("test", "2009"))
    for part, year in parts:
        for number, scene in _scenes(settings, part):
            name = f"{year}_{number:06}"
            names[part].append(name)
            _save(root / "JPEGImages" / f"{name}.jpg", scene.image)
            if part == "test":
                continue
            _write_xml(root / "Annotations" / f"{name}.xml", name, scene)
            _save(root / "SegmentationClassAug" / f"{name}.png", scene.mask)
            # Half of the training images are those of SBD: they have no mask of VOC's own.
            if part == "val" or number % 2 == 0:
                write_mask(root / "SegmentationClass" / f"{name}.png", _bordered(scene))
    lists = {
        "train": names["train"][::2],
        "train_aug": names["train"],
        "val": names["val"],
        "trainval": names["train"][::2] + names["val"],
        "test": names["test"],
    }
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    for title, listed in lists.items():
        (folder / f"{title}.txt").write_text("".join(f"{name}\n" for name in listed))


def _write_xml(path: Path, name: str, scene: Scene) -> None:
    annotation = ElementTree.Element("annotation")
    ElementTree.SubElement(annotation, "filename").text = f"{name}.jpg"
    for number, (kind, hidden) in enumerate(zip(scene.classes, scene.hidden, strict=True), start=1):
        item = ElementTree.SubElement(annotation, "object")
        ElementTree.SubElement(item, "name").text = CLASS_SETS["voc"].names[1 + kind]
        ElementTree.SubElement(item, "difficult").text = str(int(hidden))
        box = ElementTree.SubElement(item, "bndbox")
        left, top, width, height = cv2.boundingRect((scene.objects == number).astype(np.uint8))
        for side, value in (("xmin", left + 1), ("ymin", top + 1), ("xmax", left + width), ("ymax", top + height)):
            ElementTree.SubElement(box, side).text = str(value)
    path.parent.mkdir(exist_ok=True)
    ElementTree.indent(annotation)
    ElementTree.ElementTree(annotation).write(path, encoding="utf-8")


def _write_coco(root: Path, settings: ImageSettings) -> None:
    """The layout of 2014: one training image is grey, one shows nothing that is annotated, one has a crowd."""
    names = CLASS_SETS["coco"].names[1:]
    ids = [1 + kind + kind // 9 for kind in range(len(names))]  # with gaps, as COCO's
    categories = [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]
    parts: tuple[Part, ...] = ("train", "val")
    for part in parts:
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for number, scene in _scenes(settings, part):
            file = f"COCO_{part}2014_{number + 1:012}.jpg"
            is_grey, is_bare = (part == "train" and number == place for place in (0, 1))
            pixels = cv2.cvtColor(scene.image, cv2.COLOR_RGB2GRAY) if is_grey else scene.image
            _save(root / f"{part}2014" / file, np.asarray(pixels, np.uint8))
            height, width = scene.objects.shape
            images.append({"id": number + 1, "file_name": file, "height": height, "width": width})
            for place, kind in enumerate(() if is_bare else scene.classes, start=1):
                shown = np.asfortranarray(scene.objects == place, np.uint8)
                crowd = number == 2 and place == 1
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": ids[kind],
                        "iscrowd": int(crowd),
                        "area": int(shown.sum()),
                        "bbox": coco.toBbox(coco.encode(shown)).tolist(),
                        "segmentation": _runs(shown) if crowd else _polygons(shown),
                    }
                )
        file = f"instances_{part}2014.json"
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / file).write_text(json.dumps(content))


def _runs(shown: NDArray[np.uint8]) -> dict[str, list[int]]:
    """Uncompressed RLE: columns first, runs of 0 and 1 in turn."""
    flat = shown.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=np.uint8(0)))
    return {"size": list(shown.shape), "counts": np.diff(changes, prepend=0, append=flat.size).tolist()}


def _polygons(shown: NDArray[np.uint8]) -> list[list[float]]:
    """Outlines around the pixels: OpenCV's, through the middles of the outermost ones, of four times the picture."""
    large = np.ascontiguousarray(shown).repeat(4, 0).repeat(4, 1)
    outlines, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((outline.reshape(-1) + 0.5) / 4).tolist() for outline in outlines if len(outline) > 2]


def _write_ade20k(root: Path, settings: ImageSettings) -> None:
    parts: tuple[tuple[Part, str], ...] = (("train", "training"), ("val", "validation"))
    for part, folder in parts:
        for number, scene in _scenes(settings, part):
            name = f"ADE_{part}_{number + 1:08}"
            _save(root / "images" / folder / f"{name}.jpg", scene.image)
            _save(root / "annotations" / folder / f"{name}.png", scene.mask)


def _write_endotect(root: Path, settings: ImageSettings) -> None:
    """Classes are folders; polyps have masks, which are JPEGs."""
    names = list(_ENDOSCOPIC)
    parts: tuple[Part, ...] = ("train", "val")
    for part in parts:
        for number, scene in _scenes(settings, part):
            kind = names[scene.classes[0]]
            name = f"{part}-{number:06}"
            _save(root / "labeled-images" / "lower-gi-tract" / _ENDOSCOPIC[kind] / kind / f"{name}.jpg", scene.image)
            if kind == "polyps":
                _save(root / "segmented-images" / "images" / f"{name}.jpg", scene.image)
                _save(root / "segmented-images" / "masks" / f"{name}.jpg", np.where(scene.objects > 0, 255, 0))


def _write_labelled_images(root: Path, settings: ImageSettings) -> None:
    rows = []
    names = [f"class-{kind + 1:02}" for kind in range(len(settings.co_occurrence))]
    parts: tuple[Part, ...] = ("train", "val")
    for part in parts:
        for number, scene in _scenes(settings, part):
            name = f"{part}-{number:06}"
            _save(root / "images" / f"{name}.jpg", scene.image)
            write_mask(root / "masks" / f"{name}.png", _bordered(scene))
            rows += [(name, names[kind]) for kind in scene.classes]
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("image", "label"), *rows])


def _write_dfc2020(root: Path, settings: ImageSettings) -> None:
    """Tiles as `.npy`: patches of land cover, each class with its reflectance in 13 bands and its echo in two."""
    classes = len(settings.co_occurrence)
    signatures = np.random.default_rng(settings.seed).uniform(0.03, 0.4, (classes, 13))
    echoes = np.random.default_rng(settings.seed + 1).uniform(-22, -5, (classes, 2))
    parts: tuple[tuple[Part, str, int], ...] = (("train", "test", settings.train), ("val", "validation", settings.val))
    for part, title, count in parts:
        for number in range(count):
            rng = np.random.default_rng([settings.seed, _FIRST[part] + number])
            shown = _drawn(settings, rng)
            heights = np.stack([_patches(rng, settings) + 0.1 * (place == 0) for place in range(len(shown))])
            kinds = np.array(shown)[heights.argmax(axis=0)]
            texture = _patches(rng, settings, 8)[..., None] + rng.normal(0, 0.1, (settings.height, settings.width, 1))
            optical = signatures[kinds] * (0.8 + 0.4 * texture) + rng.normal(0, 0.004, (*kinds.shape, 13))
            radar = echoes[kinds] + rng.normal(0, 1.5, (*kinds.shape, 2))
            source = np.array(_LAND_COVER, np.uint8)[kinds]
            source[:2] = 3  # savanna, which is not scored
            rasters = {
                "s2": (optical.clip(0, 1.5) * 10_000).astype(np.uint16).transpose(2, 0, 1),
                "s1": radar.astype(np.float32).transpose(2, 0, 1),
            }
            folder, stem = root / f"ROIs0000_{title}", f"ROIs0000_{title}_{{}}_0_p{number}"
            for kind, raster in rasters.items():
                (folder / f"{kind}_0").mkdir(parents=True, exist_ok=True)
                np.save(folder / f"{kind}_0" / f"{stem.format(kind)}.npy", raster)
            _save(folder / "dfc_0" / f"{stem.format('dfc')}.tif", source)


def _patches(rng: np.random.Generator, settings: ImageSettings, cells: int = 4) -> NDArray[np.float32]:
    """(H, W) smooth values around 0.5."""
    coarse = rng.random((cells, cells), np.float32)
    size = (settings.width, settings.height)
    return np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC), np.float32)


def _bordered(scene: Scene) -> NDArray[np.uint8]:
    """The classes, with 255 along the outlines of objects."""
    outline = cv2.morphologyEx(scene.objects, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return np.where(outline, np.uint8(_BORDER), scene.mask)


def _save(path: Path, pixels: NDArray[np.integer]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=92)  # which is for JPEGs alone
