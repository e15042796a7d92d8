"""AP and AR of video instances, as the official evaluator of YouTube-VIS gives them.

COCO's own evaluation (`pycocotools.cocoeval`) matches and averages; tracks, their IoU and their areas are ours. The
rules are those of `ytvoseval.py` of youtubevos/cocoapi, commit f3f9948.
"""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import math
import reprlib
import struct
import sys
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.cocoeval import COCOeval

from lightning_vos.errors import DatasetNotFoundError
from lightning_vos.evaluation.holdout import is_held_out
from lightning_vos.evaluation.problems import Problem, ProblemKind, ScoringError
from lightning_vos.evaluation.scores import LeftOut, Scores

if TYPE_CHECKING:
    from pycocotools import _EncodedRLE as RLE

_Of = TypeVar("_Of")

# In the order in which COCO gives them.
_MEASURES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
_AREAS = [[0.0, 1e10], [0.0, 128.0**2], [128.0**2, 256.0**2], [256.0**2, 1e10]]  # all, small, medium, large
_VARIANT = (
    "YouTube-VIS track AP and AR: IoU over all frames of a video, thresholds 0.50:0.05:0.95; small, medium and large by"
    " the mean area of a track, limits 128^2 and 256^2 pixels; at most 1, 10 or 100 results per video and category;"
    " crowds are ignored, without an IoU of their own."
)
_EMPTY, _SKIPPED = "an empty mask stands in", "the result is left out"
_RESULTS = "results.json"
_LARGEST_JSON = 2**31  # bytes that a member of a zip may claim
_LARGEST_FRAME = 2**29  # pixels; pycocotools counts them in 32 bits
_SHOWN = 6  # names in a message
# What damaged zips raise.
_DAMAGED = (OSError, EOFError, RuntimeError, ValueError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


class Video(NamedTuple):
    """A video of the ground truth."""

    name: str  # the folder of its frames; "video <id>" where the file names have none
    height: int
    width: int
    frames: tuple[str, ...]


@dataclass(frozen=True)
class Track:
    """One instance through a video.

    Attributes:
        masks: One for each frame, None where it is absent.
        pixels: (T,) area of each mask.
        area: What the area ranges compare: the mean over the frames in which it is larger than 0.
        score: Of a result; any finite number.
        crowd: Whether the truth calls it a crowd.
        annotation: Its id in the truth.
    """

    masks: Sequence[RLE | None]
    pixels: NDArray[np.int64]
    area: float
    score: float = 0.0
    crowd: bool = False
    annotation: int = 0


Tracks = Mapping[tuple[int, int], Sequence[Track]]
"""(video id, category id) -> its tracks, in the order of the file."""


@dataclass(frozen=True)
class GroundTruth:
    """The truth of a YouTube-VIS JSON.

    Attributes:
        videos: Id -> video, all of the file.
        scored: The ids of those that are to be scored.
        categories: Id -> name.
        tracks: The tracks of the scored videos.
    """

    videos: Mapping[int, Video]
    scored: frozenset[int]
    categories: Mapping[int, str]
    tracks: Tracks


@dataclass(frozen=True)
class Results:
    """Results that can be scored, what was wrong with others, and what is left out for it."""

    tracks: Tracks
    problems: Sequence[Problem] = ()
    left_out: Sequence[LeftOut] = ()


class _Fault(Exception):  # noqa: N818 - a reason to report, never seen outside
    """Why something cannot be taken."""

    def __init__(self, reason: str, kind: ProblemKind = ProblemKind.MALFORMED) -> None:
        super().__init__(reason)
        self.kind = kind


def score_youtube_vis(ground_truth: Path, results: Path, *, strict: bool = True, split: str | None = None) -> Scores:
    """Score video instances by the twelve numbers of YouTube-VIS and by AP per category.

    Strict, anything wrong with the results is an error. Otherwise results of videos and categories that the truth does
    not know and malformed ones are left out (the official evaluator stops at such videos), a mask that is malformed or
    of a wrong size is taken for an empty one, and a result with another number of frames than its video is compared in
    the frames that both have, as the official evaluator does.

    Args:
        ground_truth: A JSON with `annotations`, or a folder that holds one JSON, in itself or in `annotations`.
        results: The list of results as JSON, or a zip or a folder that holds it as `results.json`.
        strict: Whether anything wrong with the results is an error.
        split: Which videos: `holdout_val` or `holdout_train` by the rule of `holdout`, or a file with the name of a
            video (the folder of its frames) or its id on each line; all by default.

    Returns:
        `summary` and `categories` in percent; NaN where the truth has no track.

    Raises:
        ScoringError: The file of results is none, or empty; or something is wrong with results, and `strict`.
        DatasetNotFoundError: The truth is not there, not public, or malformed.
    """
    truth = read_ground_truth(ground_truth, split)
    found = read_results(results, truth)
    if strict and found.problems:
        raise ScoringError(
            f"{results} cannot be scored as it is by youtube_vis:",
            found.problems,
            "Mend it, or have it forgiven and told in the report: strict=False, on the command line --lenient.",
        )
    return score_tracks(truth, found)


def score_tracks(truth: GroundTruth, found: Results) -> Scores:
    """Score what was read, or what never was in a file: what `score_youtube_vis` does with its files in the end.

    Args:
        truth: Videos, categories and their true tracks.
        found: The results.
    """
    evaluation = TrackEvaluation(truth, found.tracks)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]  # (threshold, recall, category, area, most results); -1 without truth
    categories = {}
    for number, category in enumerate(evaluation.params.catIds):
        known = precision[:, :, number, 0, -1]
        categories[truth.categories[category]] = {"AP": _percent(known.mean())}
    return Scores(
        protocol="youtube_vis",
        variant=_VARIANT,
        summary={name: _percent(value) for name, value in zip(_MEASURES, evaluation.stats, strict=True)},
        categories=categories,
        left_out=[*_left_out(truth, found.tracks, evaluation.params.maxDets[-1]), *found.left_out],
        problems=found.problems,
    )


class TrackEvaluation(COCOeval):
    """COCO's evaluation with the tracks of videos in the place of the instances of images.

    Args:
        truth: Videos, categories and their true tracks.
        results: The tracks that are evaluated.
    """

    def __init__(self, truth: GroundTruth, results: Tracks) -> None:
        super().__init__()
        self.params.imgIds = sorted(truth.scored)
        self.params.catIds = sorted(truth.categories)
        self.params.areaRng = _AREAS
        self._gts = _as_coco(truth.tracks)
        self._dts = _as_coco(results)

    def _prepare(self) -> None:
        """Nothing is left to prepare."""

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802 - COCO's name
        """The IoU of one video and category.

        Returns:
            (D, G) results by falling score, equal ones in the order of the file, at most 100; truth in the order of the
            file.
        """
        results = sorted(self._dts[imgId, catId], key=lambda result: -result["score"])[: self.params.maxDets[-1]]
        return track_iou([result["track"] for result in results], [true["track"] for true in self._gts[imgId, catId]])


def _as_coco(tracks: Tracks) -> defaultdict[tuple[int, int], list[dict[str, Any]]]:
    entries: defaultdict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    number = 0
    for key, members in tracks.items():
        for track in members:
            number += 1  # from 1 on: COCO takes an id of 0 for "not matched"
            entries[key].append(
                {
                    "id": number,
                    "area": track.area,
                    "score": track.score,
                    "iscrowd": int(track.crowd),
                    "ignore": int(track.crowd),
                    "track": track,
                }
            )
    return entries


def track_iou(results: Sequence[Track], truths: Sequence[Track]) -> NDArray[np.float64]:
    """The IoU of tracks: intersections of all frames by unions of all frames, of frames that both tracks list.

    Args:
        results: D tracks.
        truths: G tracks of the same video, all of one length.

    Returns:
        (D, G) in [0, 1]; 0 where both are empty.
    """
    if not results or not truths:
        return np.zeros((len(results), len(truths)))
    true_pixels = np.stack([true.pixels for true in truths])
    frames = true_pixels.shape[1]
    pixels = np.zeros((len(results), frames), np.int64)
    listed = np.zeros((len(results), frames), np.int64)
    for number, result in enumerate(results):
        length = min(frames, len(result.masks))
        pixels[number, :length] = result.pixels[:length]
        listed[number, :length] = 1
    intersection = np.zeros((len(results), len(truths)), np.int64)
    for frame in range(frames):
        rows, columns = pixels[:, frame].nonzero()[0].tolist(), true_pixels[:, frame].nonzero()[0].tolist()
        if rows and columns:
            ours = [mask for row in rows if (mask := results[row].masks[frame]) is not None]
            theirs = [mask for column in columns if (mask := truths[column].masks[frame]) is not None]
            # Of a crowd, COCO divides the intersection by the area of the result, which rounding undoes exactly.
            shares = np.asarray(coco.iou(ours, theirs, [1] * len(theirs)))
            intersection[np.ix_(rows, columns)] += np.rint(shares * pixels[rows, frame, None]).astype(np.int64)
    union = pixels.sum(axis=1)[:, None] + listed @ true_pixels.T - intersection
    return intersection / np.maximum(union, 1)


# Ground truth


def read_ground_truth(path: Path, split: str | None = None) -> GroundTruth:
    """Read the truth of a JSON in the format of YouTube-VIS: uncompressed and compressed RLE, and polygons.

    Args:
        path: As `score_youtube_vis` takes it.
        split: As `score_youtube_vis` takes it.

    Raises:
        DatasetNotFoundError: It is not there, not public, or malformed.
    """
    file = _json_in(path)
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetNotFoundError(
            f"{file} cannot be read as JSON: {error}\nGet the file of the dataset again."
        ) from error
    if isinstance(content, list):
        raise DatasetNotFoundError(
            f"{file} is a list, as results are, and no ground truth of YouTube-VIS\n"
            "  expected an object with videos, categories and annotations\n"
            "Name the ground truth first, then the results."
        )
    place = "the file"
    try:
        rows = _field(content, "videos", list)
        videos: dict[int, Video] = {}
        for number, row in enumerate(rows):
            place = f"videos[{number}]"
            _add(videos, _field(row, "id", int), _video(row))
        categories: dict[int, str] = {}
        place = "the file"
        for number, row in enumerate(_field(content, "categories", list)):
            place = f"categories[{number}]"
            _add(categories, _field(row, "id", int), _field(row, "name", str))
        if len(set(categories.values())) < len(categories):
            raise _Fault("a name that an earlier category has")
        scored = _scored(videos, split)
        if not content.get("annotations"):
            raise DatasetNotFoundError(
                f"{file} has no annotations: the truth of this split is not public, its server alone can score it.\n"
                "Score on training videos that were held out: their JSON and split=holdout_val, on the command line"
                " --split holdout_val.\n"
                "To have results checked and packed for the server: lightning_vos submission pack"
            )
        tracks: defaultdict[tuple[int, int], list[Track]] = defaultdict(list)
        place = "the file"
        for number, row in enumerate(_field(content, "annotations", list)):
            place = f"annotations[{number}]"
            key = _field(row, "video_id", int), _field(row, "category_id", int)
            if key[0] not in videos or key[1] not in categories:
                raise _Fault(f"of video {key[0]} and category {key[1]}, which the file does not list both")
            if key[0] in scored:
                tracks[key].append(_true_track(row, videos[key[0]]))
    except _Fault as fault:
        raise DatasetNotFoundError(
            f"{file} is no ground truth in the format of YouTube-VIS\n"
            f"  found in {place}: {fault}\n"
            "Get the file of the dataset again, or mend what wrote it."
        ) from fault
    return GroundTruth(videos, scored, categories, tracks)


def _json_in(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(file for file in (*path.glob("*.json"), *path.glob("annotations/*.json")) if file.name != _RESULTS)
    if len(files) == 1:
        return files[0]
    names = ", ".join(str(file.relative_to(path)) for file in files[:_SHOWN]) + (", ..." if len(files) > _SHOWN else "")
    raise DatasetNotFoundError(
        f"No single ground truth: {path.absolute()}\n"
        f"  found {names or ('no JSON' if path.is_dir() else 'no such file or folder')}\n"
        "  expected one JSON in the format of YouTube-VIS, such as instances.json or"
        " annotations/instances_train_sub.json.\n"
        "Name the file."
    )


def _video(row: Any) -> Video:
    height, width = _field(row, "height", int), _field(row, "width", int)
    if height < 1 or width < 1 or height * width >= _LARGEST_FRAME:
        raise _Fault(f"width {width}, height {height}")
    names = _field(row, "file_names", list)
    if not names or not all(isinstance(name, str) for name in names):
        raise _Fault(f"file_names {reprlib.repr(names)}, expected the names of the frames")
    folder = str(PurePosixPath(names[0]).parent)
    frames = tuple(PurePosixPath(name).stem for name in names)
    return Video(f"video {row['id']}" if folder == "." else folder, height, width, frames)


def _add(entries: dict[int, _Of], entry_id: int, entry: _Of) -> None:
    if entry_id in entries:
        raise _Fault(f"id {entry_id}, which an earlier one has")
    entries[entry_id] = entry


def _scored(videos: Mapping[int, Video], split: str | None) -> frozenset[int]:
    if split is None:
        return frozenset(videos)
    if split in ("holdout_val", "holdout_train"):
        scored = frozenset(i for i, video in videos.items() if is_held_out(video.name) == (split == "holdout_val"))
        if not scored:
            raise DatasetNotFoundError(f"None of the {len(videos)} videos of the truth is in {split}.")
        return scored
    try:
        names = {line.strip() for line in Path(split).read_text(encoding="utf-8-sig").splitlines()} - {""}
    except (OSError, ValueError) as error:
        raise DatasetNotFoundError(
            f"There is no split {split!r}: no file of text that can be read\n"
            "Name a file with the name or the id of a video on each line, holdout_val or holdout_train."
        ) from error
    scored = frozenset(i for i, video in videos.items() if video.name in names or str(i) in names)
    lacking = sorted(names - {videos[i].name for i in scored} - {str(i) for i in scored})
    if lacking or not scored:
        raise DatasetNotFoundError(
            f"{split} names {len(names)} videos, {len(lacking)} of which the truth does not have\n"
            f"  missing: {', '.join(lacking[:_SHOWN])}{', ...' if len(lacking) > _SHOWN else ''}\n"
            "Name the truth that belongs to the list, or another list: split, --split."
        )
    return scored


def _true_track(row: Any, video: Video) -> Track:
    segmentations, areas = _field(row, "segmentations", list), _field(row, "areas", list)
    if not len(segmentations) == len(areas) == len(video.frames):
        raise _Fault(
            f"{len(segmentations)} segmentations and {len(areas)} areas, expected one of each for each of the"
            f" {len(video.frames)} frames of {video.name}"
        )
    if not all(area is None or _is_finite(area) for area in areas):
        raise _Fault(f"areas {reprlib.repr(areas)}, expected numbers and nulls")
    masks = []
    for frame, segmentation in enumerate(segmentations):
        try:
            masks.append(_true_mask(segmentation, video) if segmentation else None)
        except _Fault as fault:
            raise _Fault(f"frame {frame} of {video.name}: {fault}") from fault
    crowd = row.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise _Fault(f"iscrowd {reprlib.repr(crowd)}, expected 0 or 1")
    # The areas are those that the file states, as the official evaluator has it; they need not be those of the masks.
    return Track(masks, _pixels(masks), _mean_area(areas), crowd=bool(crowd), annotation=_field(row, "id", int))


def _true_mask(segmentation: Any, video: Video) -> RLE:
    if isinstance(segmentation, list):
        limit = 2 * max(video.height, video.width)  # pycocotools takes memory for each pixel of an outline
        for polygon in segmentation:
            if (
                not isinstance(polygon, list)
                or len(polygon) < 6
                or len(polygon) % 2
                or not all(_is_finite(value) and abs(value) <= limit for value in polygon)
            ):
                raise _Fault(f"polygon {reprlib.repr(polygon)}, expected x, y of three points or more in the frame")
        return coco.merge(coco.frPyObjects(segmentation, video.height, video.width))
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        runs = segmentation["counts"]
        _require_size(segmentation, video)
        if not all(type(run) is int and 0 <= run < _LARGEST_FRAME for run in runs):
            raise _Fault("counts with something else than run lengths")
        _require_total(np.array(runs, np.int64), video)
        size = [video.height, video.width]
        return _canonical(coco.frPyObjects({"size": size, "counts": runs}, *size), runs)
    return _compressed(segmentation, video)


# Results


def read_results(path: Path, truth: GroundTruth) -> Results:
    """Read results, and collect all that is wrong with them; what can be scored of them is given nevertheless.

    Args:
        path: As `score_youtube_vis` takes it.
        truth: What the results are of. Those of videos that are not scored are passed over.

    Raises:
        DatasetNotFoundError: There is no such file.
        ScoringError: It is no list of results, or an empty one.
    """
    tracks: defaultdict[tuple[int, int], list[Track]] = defaultdict(list)
    # What is wrong in the same way with many results of a video is one problem.
    faults: defaultdict[tuple[ProblemKind, str, str | None, str, str], list[int]] = defaultdict(list)
    for number, entry in enumerate(_read_list(path)):
        name = ""
        try:
            video_id = _field(entry, "video_id", int)
            name = truth.videos[video_id].name if video_id in truth.videos else f"video {video_id}"
            if video_id not in truth.videos:
                raise _Fault(f"the ground truth has no video_id {video_id}", ProblemKind.EXTRA_SEQUENCE)
            if video_id not in truth.scored:
                continue
            category = _field(entry, "category_id", int)
            if category not in truth.categories:
                raise _Fault(f"the ground truth has no category_id {category}", ProblemKind.UNKNOWN_CATEGORY)
            score = entry.get("score")
            if not _is_finite(score):
                raise _Fault(f"score {reprlib.repr(score)}, expected a finite number")
            segmentations = _field(entry, "segmentations", list)
        except _Fault as fault:
            faults[fault.kind, name, None, str(fault), _SKIPPED].append(number)
            continue
        video = truth.videos[video_id]
        if len(segmentations) != len(video.frames):
            reason = f"found {len(segmentations)} segmentations, expected one for each of {len(video.frames)} frames"
            remedy = "the frames that both have are compared"
            faults[ProblemKind.WRONG_LENGTH, name, None, reason, remedy].append(number)
        masks: list[RLE | None] = []
        for frame, segmentation in enumerate(segmentations):
            mask = None
            try:
                mask = None if segmentation is None else _compressed(segmentation, video)
            except _Fault as fault:
                frame_name = video.frames[frame] if frame < len(video.frames) else f"frame {frame}"
                faults[fault.kind, name, frame_name, str(fault), _EMPTY].append(number)
            masks.append(mask)
        tracks[video_id, category].append(result_track(masks, float(score)))
    problems, left_out = [], []
    for (kind, name, frame_of, reason, remedy), numbers in faults.items():
        told = f"{reason} ({', '.join(f'results[{i}]' for i in numbers[:3])}"
        told += f", ... {len(numbers)} results)" if len(numbers) > 3 else ")"
        problems.append(Problem(kind, name, frame_of, told, remedy))
        if remedy == _SKIPPED:
            left_out.append(LeftOut(name, (), (), told))
    return Results(tracks, problems, left_out)


def result_track(masks: Sequence[RLE | None], score: float = 0.0) -> Track:
    """A track of results, whose area is that of its masks."""
    pixels = _pixels(masks)
    return Track(masks, pixels, _mean_area(pixels.tolist()), score)


def _read_list(path: Path) -> list[Any]:
    if path.is_dir():
        path = path / _RESULTS
    if not path.is_file():
        raise DatasetNotFoundError(
            f"No results: {path.absolute()}\n  expected a JSON of results, or a zip or a folder that holds {_RESULTS}"
        )
    kind = ProblemKind.UNREADABLE
    try:
        content = json.loads(_unzipped(path) if zipfile.is_zipfile(path) else path.read_bytes())
        if isinstance(content, list) and content:
            return content
        kind, found = ProblemKind.MALFORMED, f"a JSON of type {type(content).__name__}"
        if isinstance(content, list):
            found = "an empty list"
        elif isinstance(content, dict):
            found = f"a JSON object with {reprlib.repr(list(content))}"
    except (*_DAMAGED, RecursionError) as error:
        found = str(error)
    raise ScoringError(
        f"{path} cannot be scored by youtube_vis:",
        [Problem(kind, "", None, f"found {found}, expected a list of results", "none: there is nothing to score")],
        'A result is {"video_id": ..., "category_id": ..., "score": ..., "segmentations": [RLE or null, ...]}.',
    )


def _unzipped(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".json") and not name.startswith("__MACOSX/")]
        if _RESULTS not in names and len(names) != 1:
            raise ValueError(f"a zip with {', '.join(names[:_SHOWN]) or 'no JSON'} in place of {_RESULTS}")
        info = archive.getinfo(_RESULTS if _RESULTS in names else names[0])
        if info.file_size > _LARGEST_JSON:
            raise ValueError(f"a member of {info.file_size} bytes")
        return archive.read(info)


# Masks


def _compressed(rle: Any, video: Video) -> RLE:
    """Check a compressed RLE, for pycocotools reads and writes beyond its memory where one is malformed."""
    counts = rle.get("counts") if isinstance(rle, dict) else None
    if not isinstance(counts, str):
        expected = "null or a compressed RLE, whose counts are text (pycocotools.mask.encode)"
        raise _Fault(f"{reprlib.repr(rle)}, expected {expected}")
    _require_size(rle, video)
    runs = run_lengths(counts)
    if runs is None:
        raise _Fault(f"counts {reprlib.repr(counts)}, which are no compressed RLE")
    _require_total(runs, video)
    return _canonical({"size": [video.height, video.width], "counts": counts}, runs)


def run_lengths(counts: str) -> NDArray[np.int64] | None:
    """Decode a compressed RLE of COCO to its runs.

    A run is written with 5 bits a character, the lowest first, bit 5 set where more follow, and from the fourth run on
    as the difference to the run before the last.

    Args:
        counts: The text of the RLE.

    Returns:
        (R,) pixels of background, object, background, ...; None if the text is none that pycocotools writes.
    """
    codes = np.frombuffer(counts.encode(errors="surrogatepass"), np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > 6:  # more than 30 bits
        return None
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)  # the highest bit is the sign
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return None if runs.min() < 0 else runs


def _require_size(rle: Any, video: Video) -> None:
    size, expected = _field(rle, "size", list), [video.height, video.width]
    if size != expected:
        reason = f"size {reprlib.repr(size)}, expected {expected} (height, width)"
        raise _Fault(reason, ProblemKind.WRONG_SIZE)


def _require_total(runs: NDArray[np.int64], video: Video) -> None:
    if runs.sum() != video.height * video.width:
        raise _Fault(f"counts of {runs.sum()} pixels, expected {video.height * video.width}")


def _canonical(rle: RLE, runs: Sequence[int] | NDArray[np.int64]) -> RLE:
    """Write an RLE anew that has runs of no pixel within, where pycocotools may end too early."""
    return rle if np.all(runs[1:-1]) else coco.encode(np.asfortranarray(coco.decode(rle)))


def _pixels(masks: Sequence[RLE | None]) -> NDArray[np.int64]:
    pixels = np.zeros(len(masks), np.int64)
    present = [frame for frame, mask in enumerate(masks) if mask is not None]
    if present:
        pixels[present] = coco.area([mask for mask in masks if mask is not None])
    return pixels


def _mean_area(areas: Sequence[float | None]) -> float:
    present = [area for area in areas if area]
    return float(np.mean(present)) if present else 0.0


# Words


def _left_out(truth: GroundTruth, results: Tracks, most: int) -> Iterator[LeftOut]:
    passed_over = len(truth.videos) - len(truth.scored)
    if passed_over:
        yield LeftOut("", (), (), f"{passed_over} of {len(truth.videos)} videos are not in the split")
    crowds: defaultdict[int, list[int]] = defaultdict(list)
    for (video_id, _), tracks in truth.tracks.items():
        crowds[video_id] += [track.annotation for track in tracks if track.crowd]
    for video_id, ids in crowds.items():
        if ids:
            reason = "crowds, and the results that match them, count neither as found nor as missed"
            yield LeftOut(truth.videos[video_id].name, (), tuple(ids), reason)
    counted = {category for (_, category), tracks in truth.tracks.items() if not all(track.crowd for track in tracks)}
    without = [name for category, name in truth.categories.items() if category not in counted]
    if without:
        yield LeftOut("", (), (), f"no truth of {', '.join(without)}: not part of any mean")
    for (video_id, category), tracks in results.items():
        if len(tracks) > most:
            reason = f"{len(tracks) - most} results of {truth.categories[category]} beyond the {most} of highest score"
            yield LeftOut(truth.videos[video_id].name, (), (), reason)


def _percent(fraction: float) -> float:
    return math.nan if fraction == -1 else 100 * float(fraction)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _field(entry: Any, name: str, kind: type[_Of]) -> _Of:
    """Give a field of a JSON object.

    Raises:
        _Fault: It is no object, lacks the field, or has something of another type there.
    """
    if not isinstance(entry, dict):
        raise _Fault(f"{reprlib.repr(entry)}, expected an object with {name}")
    if name not in entry:
        raise _Fault(f"no {name}")
    value = entry[name]
    if type(value) is not kind:
        words: dict[type, str] = {int: "a whole number", list: "a list", str: "a text"}
        raise _Fault(f"{name} {reprlib.repr(value)}, expected {words[kind]}")
    return value
