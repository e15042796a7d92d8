"""Lists beside a benchmark: names of sequences, what is unseen, how difficult a sequence is."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Literal

from lightning_vos.errors import DatasetNotFoundError
from lightning_vos.evaluation.meta import not_as_expected, read_json, read_youtube_vos_meta

Tagged = Mapping[str, Set[tuple[str, int | None]]]
"""Tag -> the sequences, or the objects of sequences, that show it."""


def read_names(file: Path, expected: str = "one name a line") -> list[str]:
    """Read the names that a text file gives line by line, each once and in order; whether any is there is not checked.

    Args:
        file: The file.
        expected: What it should hold, for messages.

    Raises:
        DatasetNotFoundError: It cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetNotFoundError(f"{file} cannot be read as text\n  expected {expected}") from error
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def read_unseen(file: Path, what: Literal["category", "video"]) -> Callable[[str], bool]:
    """Read which categories or videos the training set does not have.

    Args:
        file: Their names as a JSON list, as `unseen_categories` of a JSON object, or one a line in any other file; or
            the meta file of the training set, which names those that are seen.
        what: What the names are.

    Returns:
        Tells of a name whether it is unseen.

    Raises:
        DatasetNotFoundError: The file is not there, or not of that form.
    """
    if file.suffix != ".json":
        return set(read_names(file, f"one unseen {what} a line")).__contains__
    content = read_json(file, f"a list of unseen names, each a {what}, or the meta.json of the training set")
    if isinstance(content, dict) and isinstance(content.get("videos"), dict):
        seen = set(content["videos"])
        if what == "category":
            objects = [entry for video in read_youtube_vos_meta(file).values() for entry in video.values()]
            seen = {entry.category for entry in objects}
        return lambda name: name not in seen
    names = content.get("unseen_categories") if isinstance(content, dict) else content
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise not_as_expected(file, f"no list of unseen names, each a {what}")
    return set(names).__contains__


def read_tags(file: Path) -> Tagged:
    """Read the difficulties of sequences.

    Args:
        file: A JSON `{"<sequence>": ["<tag>", ...]}`, or a CSV with the columns sequence, tag and, if it likes, object.

    Raises:
        DatasetNotFoundError: The file is not there, or not of that form.
    """
    tagged: dict[str, set[tuple[str, int | None]]] = {}
    if file.suffix == ".json":
        content = read_json(file, "the tags of each sequence")
        if not isinstance(content, dict) or not all(isinstance(tags, list) for tags in content.values()):
            raise not_as_expected(file, "something else", 'Write {"<sequence>": ["<tag>", ...], ...}.')
        for name, tags in content.items():
            for tag in tags:
                tagged.setdefault(str(tag), set()).add((name, None))
        return tagged
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetNotFoundError(f"{file} cannot be read\n  expected a CSV with columns sequence, tag") from error
    for number, row in enumerate(rows, start=2):
        object_id = row.get("object") or None
        if not row.get("sequence") or not row.get("tag") or (object_id is not None and not object_id.isdecimal()):
            raise not_as_expected(
                file,
                f"line {number} without a sequence and a tag, or with an object that is no number",
                "Write a CSV with the columns sequence, tag and, for tags of single objects, object.",
            )
        tagged.setdefault(row["tag"], set()).add((row["sequence"], None if object_id is None else int(object_id)))
    return tagged
