"""What a dataset says is expected of results: sequences with their frames and objects, or videos and categories."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lightning_vos.errors import ConfigError, DatasetNotFoundError
from lightning_vos.evaluation.lists import read_names
from lightning_vos.evaluation.meta import (
    LVOS_STEP,
    not_as_expected,
    read_json,
    read_lvos_meta,
    read_youtube_vos_meta,
    require_plain_names,
)
from lightning_vos.evaluation.protocols import VOID
from lightning_vos.evaluation.submission.faults import listing
from lightning_vos.evaluation.submission.servers import SERVERS, Benchmark
from lightning_vos.io.masks import read_mask
from lightning_vos.io.png import object_ids

_VOC_CLASSES = range(1, 21)


class ExpectedSequence(NamedTuple):
    """What is expected of one sequence; of VOC all images are one.

    Attributes:
        name: The name of the sequence.
        folder: Where its masks lie in the archive, without a slash at the end.
        frames: Frame -> the image whose size its mask has.
        objects: Object id -> the frame where it first appears.
        annotations: The folder of the masks that were given, if there are any.
    """

    name: str
    folder: str
    frames: Mapping[str, Path]
    objects: Mapping[int, str]
    annotations: Path | None

    def member(self, frame: str) -> str:
        """The name that the mask of a frame has in the archive."""
        return f"{self.folder}/{frame}.png"


class ExpectedVideo(NamedTuple):
    """A video of YouTube-VIS.

    Attributes:
        name: The folder of its frames, or its id.
        length: Number of frames.
        size: H, W in pixels.
    """

    name: str
    length: int
    size: list[int]


class ExpectedResults(NamedTuple):
    """What results for YouTube-VIS may be of: the videos by their id, and the ids of the categories."""

    videos: Mapping[int, ExpectedVideo]
    categories: Collection[int]


def expected_sequences(dataset: Path, benchmark: Benchmark, split: str | None) -> list[ExpectedSequence]:
    """Read of which frames the server of a benchmark wants masks, and what they may show.

    Args:
        dataset: As `pack` takes it.
        benchmark: Any but `youtube_vis`.
        split: As `pack` takes it.

    Raises:
        DatasetNotFoundError: The dataset lacks what says it.
        UserError: An image or a mask of the dataset cannot be read, or the benchmark has no splits.
    """
    if benchmark == "davis2017_test_dev":
        sequences = _davis(dataset, split or "test-dev")
    elif benchmark == "lvos":
        sequences = _lvos(dataset, split or dataset.resolve().name)
    elif benchmark == "voc":
        sequences = [_voc(dataset, split or "test")]
    else:
        _refuse_split(split, benchmark)
        sequences = _youtube_vos(dataset)
    asked = [sequence for sequence in sequences if sequence.frames]
    if not asked:
        raise DatasetNotFoundError(f"{dataset} lists no frame of which a mask could be written: get the dataset anew.")
    return asked


def expected_results(dataset: Path, split: str | None) -> ExpectedResults:
    """Read the videos and categories of a YouTube-VIS JSON, with or without its annotations.

    Raises:
        DatasetNotFoundError: It is not there, or not as expected.
        ConfigError: A split is named: it is the JSON itself.
    """
    _refuse_split(split, "youtube_vis")
    _require_file(dataset)
    content = read_json(dataset, "the videos and categories of a split")
    try:
        categories = {int(category["id"]) for category in content["categories"]}
        videos = {int(row["id"]): _video(row) for row in content["videos"]}
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        wanted = '"videos": [{"id", "width", "height", "length"}, ...], "categories": [{"id"}, ...]'
        raise not_as_expected(dataset, f"something else than {{{wanted}}}: {type(error).__name__} {error}") from error
    return ExpectedResults(videos, categories)


def _video(row: Mapping[str, Any]) -> ExpectedVideo:
    names = row.get("file_names") or [f"video {row['id']}/"]
    return ExpectedVideo(PurePosixPath(names[0]).parts[0], int(row["length"]), [int(row["height"]), int(row["width"])])


def _davis(dataset: Path, split: str) -> list[ExpectedSequence]:
    """Every frame of the sequences on a list; the first mask holds the objects."""
    of_year = dataset / "Annotations_2017/480p"  # some copies keep the masks of both years side by side
    masks = of_year if of_year.is_dir() else dataset / "Annotations/480p"
    sequences = []
    for name in _listed(dataset / "ImageSets/2017" / f"{split}.txt"):
        frames = _images(dataset / "JPEGImages/480p" / name)
        first = min(frames)
        ids = object_ids(read_mask(masks / name / f"{first}.png"))
        objects = {object_id: first for object_id in ids if object_id != VOID}
        sequences.append(ExpectedSequence(name, name, frames, objects, masks / name))
    return sequences


def _youtube_vos(dataset: Path) -> list[ExpectedSequence]:
    """The frames that meta.json lists for the objects of a video, from the first appearance of each on."""
    meta = dataset / "meta.json"
    _require_file(meta)
    sequences = []
    for name, listed in read_youtube_vos_meta(meta).items():
        asked = sorted({frame for entry in listed.values() for frame in entry.frames})
        if asked:
            images = _images(dataset / "JPEGImages" / name)
            _refuse_missing([frame for frame in asked if frame not in images], dataset / "JPEGImages" / name, meta)
            frames = {frame: images[frame] for frame in asked}
            objects = {object_id: entry.frames[0] for object_id, entry in listed.items() if entry.frames}
            sequences.append(
                ExpectedSequence(name, f"Annotations/{name}", frames, objects, dataset / "Annotations" / name)
            )
    return sequences


def _lvos(dataset: Path, split: str) -> list[ExpectedSequence]:
    """The frames of each object's range, of which the evaluator scores all but the first and the last."""
    meta = dataset / f"{split}_meta.json"
    _require_file(meta)
    sequences = []
    for name, ranges in read_lvos_meta(meta).items():
        if not ranges:
            continue
        folder = dataset / "JPEGImages" / name
        images = {int(stem): path for stem, path in _images(folder).items() if stem.isdecimal()}
        counted = {number for entry in ranges.values() for number in entry.frames}
        _refuse_missing([f"{number:08}" for number in counted - images.keys()], folder, meta)
        # The last name of a range may lie beside the grid of names.
        asked = {number for entry in ranges.values() for number in range(entry.start, entry.end + 1, LVOS_STEP)}
        frames = {images[number].stem: images[number] for number in sorted(asked & images.keys())}
        objects = {i: images[entry.start].stem for i, entry in ranges.items() if entry.start in images}
        sequences.append(ExpectedSequence(name, f"Annotations/{name}", frames, objects, dataset / "Annotations" / name))
    return sequences


def _voc(dataset: Path, split: str) -> ExpectedSequence:
    """All images of a list as one sequence."""
    names, folder = dataset / "ImageSets/Segmentation" / f"{split}.txt", dataset / "JPEGImages"
    images = {name: folder / f"{name}.jpg" for name in _listed(names)}
    _refuse_missing([name for name, image in images.items() if not image.is_file()], folder, names)
    return ExpectedSequence(split, SERVERS["voc"].folder.rstrip("/"), images, dict.fromkeys(_VOC_CLASSES, ""), None)


def _listed(file: Path) -> list[str]:
    _require_file(file)
    names = read_names(file)
    if not names:
        raise not_as_expected(file, "no name, expected the names of sequences or images")
    require_plain_names(file, names)
    return names


def _images(folder: Path) -> dict[str, Path]:
    # Its import loads Pillow, which scoring does without.
    from lightning_vos.io.frames import list_frames

    return {path.stem: path for path in list_frames(folder)}


def _refuse_split(split: str | None, benchmark: Benchmark) -> None:
    if split is not None:
        raise ConfigError(
            f"{benchmark} has no list for split {split!r}.\nName the split itself as DATASET, without --split."
        )


def _require_file(file: Path) -> None:
    if not file.is_file():
        raise DatasetNotFoundError(
            f"Not in the dataset: {file}\n"
            f"  found {'a folder' if file.is_dir() else 'nothing'}, expected the file that says which masks the server"
            " wants.\n"
            "Name as DATASET the folder of DAVIS or VOC2012, that of the split of YouTube-VOS or LVOS, or the JSON of\n"
            "YouTube-VIS; give --split NAME where the list has another name."
        )


def _refuse_missing(missing: Collection[str], folder: Path, source: Path) -> None:
    if missing:
        raise DatasetNotFoundError(
            f"{source} lists frames that are not in {folder}\n"
            f"  missing: {listing(missing)}\n"
            "The size of a mask is that of its image: get the whole dataset."
        )
