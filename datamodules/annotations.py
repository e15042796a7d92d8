"""Checked reading of annotation files, in the formats of COCO and YouTube-VIS."""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from lightning_vos.errors import DatasetNotFoundError
from lightning_vos.evaluation.youtube_vis import run_lengths

_Of = TypeVar("_Of", int, str)
_WORDS: dict[type, str] = {int: "a whole number", str: "a text"}


class AnnotationFault(Exception):  # noqa: N818 - a reason to report, never seen outside
    """Why an entry of an annotation file cannot be taken."""


@contextmanager
def faults_of(file: Path, place: str, form: str) -> Iterator[None]:
    """Turn an `AnnotationFault` within into an error that says where it is.

    Args:
        file: The annotation file.
        place: The entry, such as "videos[3]".
        form: The format that was expected, such as "COCO".

    Raises:
        DatasetNotFoundError: There was such a fault.
    """
    try:
        yield
    except AnnotationFault as fault:
        raise DatasetNotFoundError(
            f"{file} is no annotation file in the format of {form}\n"
            f"  found in {place}: {fault}\n"
            "Get the file of the dataset again, or mend what wrote it."
        ) from fault


def read_json(file: Path) -> Any:
    """Read a JSON.

    Raises:
        DatasetNotFoundError: It is missing, empty, cut off, or no JSON.
    """
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetNotFoundError(
            f"{file} cannot be read as JSON: {error}\nGet the file of the dataset again."
        ) from error


def rows(content: Any, name: str) -> list[Any]:
    """Give a list of a JSON object.

    Raises:
        AnnotationFault: It is no object, or has no such list.
    """
    value = _value(content, name)
    if not isinstance(value, list):
        raise AnnotationFault(f"{name} {reprlib.repr(value)}, expected a list")
    return value


def field(row: Any, name: str, kind: type[_Of]) -> _Of:
    """Give a field of a JSON object.

    Raises:
        AnnotationFault: It is no object, or has nothing of that type there.
    """
    value = _value(row, name)
    if type(value) is not kind:
        raise AnnotationFault(f"{name} {reprlib.repr(value)}, expected {_WORDS[kind]}")
    return value


def number(row: Any, name: str) -> float:
    """Give a finite number of a JSON object.

    Raises:
        AnnotationFault: It is no object, or has no finite number there.
    """
    value = _value(row, name)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise AnnotationFault(f"{name} {reprlib.repr(value)}, expected a finite number")
    return float(value)


def frame_size_of(row: Any) -> tuple[int, int]:
    """Give height and width of an image or a video.

    Raises:
        AnnotationFault: There are none, or none that a picture can have.
    """
    height, width = field(row, "height", int), field(row, "width", int)
    if height < 1 or width < 1 or height * width >= 2**29:  # pycocotools counts pixels in 32 bits
        raise AnnotationFault(f"width {width}, height {height}")
    return height, width


def inside(name: Any) -> str:
    """Give a file name that a row states, relative to the folder of the images.

    Raises:
        AnnotationFault: It is no text, or would lead outside that folder.
    """
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise AnnotationFault(f"the file name {reprlib.repr(name)}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or ":" in name:
        raise AnnotationFault(f"the file name {name!r}, which leads outside the folder of the images")
    return name


def read_categories(content: Any) -> dict[int, str]:
    """Give id -> name of the categories, ids rising.

    Raises:
        AnnotationFault: There are none, or two have one id or one name.
    """
    categories: dict[int, str] = {}
    for row in rows(content, "categories"):
        category = field(row, "id", int)
        if category in categories:
            raise AnnotationFault(f"two categories with the id {category}")
        categories[category] = field(row, "name", str)
    if not categories or len(set(categories.values())) < len(categories):
        raise AnnotationFault(f"categories {reprlib.repr(list(categories.values()))}, expected different names")
    return dict(sorted(categories.items()))


def labels_of(categories: Mapping[int, str]) -> dict[int, int]:
    """Give category id -> class, counted from 0 in the order of the ids."""
    return {category: label for label, category in enumerate(sorted(categories))}


def _value(row: Any, name: str) -> Any:
    if not isinstance(row, dict):
        raise AnnotationFault(f"{reprlib.repr(row)}, expected an object with {name}")
    if name not in row:
        raise AnnotationFault(f"no {name}")
    return row[name]


def missing_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Give those of the names that are no files in the folder, in order; each folder is listed just once."""
    there: dict[Path, set[str]] = {}
    missing = []
    for name in names:
        path = folder / name
        if path.parent not in there:
            entries = os.scandir(path.parent) if path.parent.is_dir() else ()
            there[path.parent] = {entry.name for entry in entries}
        if path.name not in there[path.parent]:
            missing.append(name)
    return missing


@dataclass(frozen=True)
class MaskTexts:
    """Many masks as one text each: worker processes copy the objects that they touch, and sets have 100,000 and more.

    Attributes:
        text: All of them, one behind the other.
        ends: (M,) where each ends; of an absent one, where the one before it ends.
    """

    text: bytes
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> MaskTexts:
        """Join what `mask_text` gave; an empty text is an absent mask."""
        return cls(b"".join(texts), np.cumsum([len(text) for text in texts], dtype=np.int64))

    def decode(self, number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The (H, W) mask in {0, 1} with the number; of an absent one, zeros.

        Args:
            number: Which one.
            size: (H, W) of its image.
        """
        text = self.text[self.ends[number - 1] if number else 0 : self.ends[number]]
        height, width = size
        if not text:
            return np.zeros(size, np.uint8)
        segmentation = json.loads(text)
        if isinstance(segmentation, list):
            return np.asarray(coco.decode(coco.merge(coco.frPyObjects(segmentation, height, width))), np.uint8)
        # COCO counts down the columns.
        runs = _runs(segmentation)
        return np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(width, height).T


def mask_text(segmentation: Any, size: tuple[int, int]) -> bytes:
    """Check the polygons, or the uncompressed or compressed RLE, of one instance in one image, and pack them.

    Args:
        segmentation: As the file has it; None is an absent mask.
        size: (H, W) of its image.

    Raises:
        AnnotationFault: It is none of these, or does not belong to an image of that size.
    """
    if segmentation is None:
        return b""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != list(size):
            found = reprlib.repr(segmentation.get("size"))
            raise AnnotationFault(f"an RLE of size {found}, expected {list(size)} (height, width)")
        pixels = int(_runs(segmentation).sum())
        if pixels != size[0] * size[1]:
            raise AnnotationFault(f"an RLE of {pixels} pixels, expected {size[0] * size[1]}")
    elif not isinstance(segmentation, list) or not segmentation:
        raise AnnotationFault(f"segmentation {reprlib.repr(segmentation)}, expected polygons or an RLE")
    else:
        for polygon in segmentation:
            _require_polygon(polygon, size)
    return json.dumps(segmentation, separators=(",", ":")).encode()


def _runs(segmentation: dict[str, Any]) -> NDArray[np.int64]:
    counts = segmentation.get("counts")
    runs: NDArray[np.int64] | None = None
    if isinstance(counts, str):
        runs = run_lengths(counts)
    elif isinstance(counts, list) and counts and all(type(run) is int and 0 <= run < 2**31 for run in counts):
        runs = np.array(counts, np.int64)
    if runs is None:
        raise AnnotationFault(f"an RLE with counts {reprlib.repr(counts)}, expected run lengths or their text")
    return runs


def _require_polygon(polygon: Any, size: tuple[int, int]) -> None:
    limit = 2 * max(size)  # pycocotools takes memory for each pixel of an outline
    if (
        not isinstance(polygon, list)
        or len(polygon) < 6
        or len(polygon) % 2
        or not {int, float}.issuperset(map(type, polygon))
        or not (math.isfinite(sum(polygon)) and -limit <= min(polygon) and max(polygon) <= limit)
    ):
        raise AnnotationFault(f"polygon {reprlib.repr(polygon)}, expected x, y of three points or more in the image")
