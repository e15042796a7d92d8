"""Files that say which classes an image shows: tables that anybody can read and write, never pickles."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import ConfigError, DatasetNotFoundError
from lightning_vos.io.writing import written_beside

_FORM = 'rows of "image,label", or a row an image with a column of 0 or 1 for each class ("image,cat,dog")'
_SHOWN = 6


class LabelTable(NamedTuple):
    """The image-level labels of a set.

    Attributes:
        classes: The names of the K classes.
        rows: Image, as the file names it -> (K,) uint8 in {0, 1}, in the order of the file.
    """

    classes: tuple[str, ...]
    rows: Mapping[str, NDArray[np.uint8]]


def read_labels(path: Path) -> LabelTable:
    """Read a CSV of image-level labels.

    Two forms are known by their first line. After `image,label` each row names an image and one class it shows, or none
    where the label is empty; an image has as many rows as classes, which are sorted by name. After `image,cat,dog,...`
    each row has 0 or 1 for every class, and classes keep the order of the columns.

    Args:
        path: The CSV, in UTF-8.

    Raises:
        ConfigError: It is a `.npy` or `.pkl`, as others publish labels: such a file can run code, and is not loaded.
        DatasetNotFoundError: It is missing, empty, or not of either form.
    """
    if path.suffix.lower() in (".npy", ".npz", ".pkl", ".pickle"):
        raise ConfigError(
            f"Labels in a file that is not loaded: {path}\n"
            "  found a pickle, which runs whatever code it holds; expected a CSV.\n"
            "The same labels are made from the dataset itself, from XML, masks or JSON: leave out data.labels, or see\n"
            "`lightning_vos data prepare --help` to write them as a CSV."
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), 1)]
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"Labels not found: {path}\n  expected a CSV: {_FORM}.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetNotFoundError(
            f"Labels that cannot be read: {path}\n  found {error}\n  expected a CSV in UTF-8: {_FORM}."
        ) from error
    lines = [(number, row) for number, row in lines if any(row)]
    if len(lines) < 2:
        raise _unfit(path, 1, f"{len(lines)} lines", "a first line with names, then one line or more")
    (_, header), *body = lines
    if len(header) < 2 or header[0].lower() != "image" or not all(header) or len(set(header)) < len(header):
        raise _unfit(path, 1, repr(",".join(header)), '"image,label", or "image" and the names of the classes')
    for number, row in body:
        if len(row) != len(header) or not row[0]:
            raise _unfit(path, number, repr(",".join(row)), f"an image and {len(header) - 1} more, as the first line")
    if [name.lower() for name in header] == ["image", "label"]:
        return _from_pairs(path, body)
    rows: dict[str, NDArray[np.uint8]] = {}
    for number, (image, *cells) in body:
        if not set(cells) <= {"0", "1"}:
            raise _unfit(path, number, repr(",".join(cells)), "0 or 1 for each class")
        if image in rows:
            raise _unfit(path, number, f"{image!r} for the second time", "a row for each image")
        rows[image] = np.array(cells, np.uint8)
    return LabelTable(tuple(header[1:]), rows)


def write_labels(path: Path, table: LabelTable) -> None:
    """Write image-level labels as a CSV with a row an image and a column a class; it appears at once and whole.

    Args:
        path: The file to write.
        table: The labels; of a split: `datamodule.label_table("train")`.
    """
    with written_beside(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *table.classes])
        writer.writerows([name, *labels.tolist()] for name, labels in table.rows.items())


def labels_of(
    path: Path, names: Sequence[str], classes: Sequence[str], *, required: bool = True
) -> NDArray[np.uint8] | None:
    """Read the labels of a dataset's images from a CSV.

    Args:
        path: The CSV; its classes may be fewer than `classes` and in any order.
        names: The N images to find in it.
        classes: The K classes of the dataset.
        required: Whether it must have the images; otherwise it has all of them or none.

    Returns:
        (N, K) in {0, 1}; None if it has none of the images and need not.

    Raises:
        ConfigError: It has a class that the dataset does not have, or is a file that is not loaded.
        DatasetNotFoundError: It is no such CSV, or images are missing in it.
    """
    table = read_labels(path)
    unknown = [name for name in table.classes if name not in classes]
    if unknown:
        raise ConfigError(
            f"Labels of other classes than the dataset's: {path}\n"
            f"  found {_some(unknown)}\n"
            f"  expected some of {_some(classes)} ({len(classes)})\n"
            "Rename the labels, or read the images with datamodules.LabelledImageFolder, which takes any classes."
        )
    missing = [name for name in names if name not in table.rows]
    if len(missing) == len(names) and not required:
        return None
    if missing:
        raise DatasetNotFoundError(
            f"No labels for {len(missing)} of {len(names)} images in {path}\n"
            f"  missing: {_some(missing)}\n"
            f"  found there: {_some(list(table.rows))}\n"
            "Add a row for each, under its name without suffix, or take them off the list of images."
        )
    columns = [classes.index(name) for name in table.classes]
    found = np.zeros((len(names), len(classes)), np.uint8)
    found[:, columns] = [table.rows[name] for name in names]
    return found


def _from_pairs(path: Path, body: Sequence[tuple[int, list[str]]]) -> LabelTable:
    classes = tuple(sorted({label for _, (_, label) in body if label}))
    if not classes:
        raise _unfit(path, body[0][0], "no label in any row", "a class in some row")
    place = {name: number for number, name in enumerate(classes)}
    rows: dict[str, NDArray[np.uint8]] = {}
    for _, (image, label) in body:
        labels = rows.setdefault(image, np.zeros(len(classes), np.uint8))
        if label:
            labels[place[label]] = 1
    return LabelTable(classes, rows)


def _unfit(path: Path, line: int, found: str, expected: str) -> DatasetNotFoundError:
    return DatasetNotFoundError(
        f"Labels that cannot be used: {path}, line {line}\n"
        f"  found {found}\n"
        f"  expected {expected}\n"
        f"Labels are a CSV: {_FORM}."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
