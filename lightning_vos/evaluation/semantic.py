"""mIoU of label maps: one confusion matrix over a whole set of images, never a mean over images."""

from __future__ import annotations

import json
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import ConfigError, DatasetNotFoundError, MaskError
from lightning_vos.evaluation.problems import Problem, ProblemKind, ScoringError
from lightning_vos.evaluation.scores import LeftOut, Scores
from lightning_vos.evaluation.threshold_sweep import check_sweep, confusions, count_levels
from lightning_vos.evaluation.trees import MaskSequence
from lightning_vos.evaluation.workers import in_workers
from lightning_vos.io.masks import resized
from lightning_vos.io.png import NotIndexedError, read_indices

_LARGEST_FILE = 2**28  # bytes that a member of an archive may claim
_SHOWN = 6  # names in a message
_SHARES = 8  # of the images for each process: after an error, those that are left are not begun
# What damaged archives raise.
_DAMAGED = (OSError, EOFError, RuntimeError, ValueError, KeyError, zlib.error, zipfile.BadZipFile, tarfile.TarError)


@dataclass(frozen=True)
class ClassSet:
    """What the pixel values of label maps stand for.

    Attributes:
        title: The name of the set in a sentence.
        names: The classes, in the order of their values.
        first: The value of the first class.
        ignored: The value whose pixels are not scored, where the truth has it.
    """

    title: str
    names: tuple[str, ...]
    first: int = 0
    ignored: int = 255

    @property
    def values(self) -> slice:
        """The values of the classes."""
        return slice(self.first, self.first + len(self.names))

    def __str__(self) -> str:
        """The values in words, for messages."""
        last = self.first + len(self.names) - 1
        return f"{self.first} to {last}, or {self.ignored} for pixels that are not scored ({self.title})"


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


CLASS_SETS: Mapping[str, ClassSet] = {
    "voc": ClassSet(
        "PASCAL VOC 2012",
        _names("""background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog,
            horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"""),
    ),
    "coco": ClassSet(
        "COCO, numbered in the order of their ids, which have gaps",
        _names("""background, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
            fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra,
            giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
            baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife,
            spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,
            potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
            toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"""),
    ),
    # 0 is "other" there. 255 is not ignored, for it shows labels moved down by one: they would be scored as others.
    "ade20k": ClassSet(
        "ADE20K, as its PNGs number them",
        _names("""wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person,
            earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror,
            rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column,
            signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path,
            stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind,
            coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer,
            swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning,
            streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator,
            ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
            swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank,
            trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce,
            vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator,
            glass, clock, flag"""),
        first=1,
        ignored=0,
    ),
}
"""The class sets that `score_semantic` knows by name."""


def score_semantic(
    ground_truth: Path,
    prediction: Path,
    *,
    classes: str | Sequence[str] = "voc",
    absent: Literal["counted", "skipped"] = "counted",
    strict: bool = True,
    split: str | None = None,
    sweep: Sequence[float] | None = None,
    workers: int = 1,
) -> Scores:
    """Score label maps with mIoU, as on PASCAL VOC.

    Pixels that the truth ignores are not counted. A pixel predicted as ignored, or as a value of no class, is missed by
    its true class and held against no other.

    Args:
        ground_truth: A folder of `<image>.png`, or VOC2012 with `ImageSets/Segmentation`, or a folder above that; then
            `SegmentationClass` is taken, or `SegmentationClassAug` where that is missing.
        prediction: A folder, a zip or a tar.gz with `<image>.png`, at the top or in one folder below it, such as
            `results/VOC2012/Segmentation/comp6_test_cls`: indexed or 8-bit grey, of the truth's size; or the folder of
            a run, which has them in `masks`, and may say in `protocol.txt` how they were made.
        classes: "voc" (21 with background), "coco" (81 with background) or "ade20k" (150; 0 is ignored); a text file
            with a class a line or the classes themselves, whose values are 0, 1, ... and 255 for ignored pixels.
        absent: Whether the mean counts a class that is predicted but nowhere in the truth, with an IoU of 0, or skips
            it. Published evaluations differ. Classes in neither are skipped always.
        strict: Refuse results with anything wrong, after all of it was found. Otherwise a missing or unreadable image
            is taken as 0 everywhere, another size is resized to the nearest pixel, and `Scores.problems` says so.
        split: The images to score: a list in VOC2012's `ImageSets/Segmentation` by its name, or a file with an image a
            line, by name or by paths of image and mask. Without it: `val` of VOC2012, else all of the truth.
        sweep: Rising thresholds from 0 to below 1, to be tried with the class maps that a run has kept in `maps` beside
            `masks`: a pixel is of the class whose map is highest there, or background where none is above.
        workers: Processes that read and count.

    Returns:
        `mIoU`, `pixel_accuracy` and `mean_accuracy` (over the classes of the truth) in percent; for each class its
        `IoU`, `accuracy`, `precision` and `pixels`, its share of the scored pixels of the truth, in percent. For each
        threshold the same three measures: which is best is found with the truth of the pixels, and no fair choice.

    Raises:
        DatasetNotFoundError: There are no label maps, no list, or no truth for an image of the list; or no class maps.
        MaskError: A label map of the truth is damaged or of another kind.
        ConfigError: The classes are unknown, do not fit the truth, or have no background whose threshold could be
            tried.
        ScoringError: The predictions cannot be scored.
    """
    class_set = _class_set(classes)
    truth, wanted, which = _truth(ground_truth, split)
    run = _run(prediction)
    _check_classes(run, class_set)
    predicted = _images(prediction if run is None else run / "masks")
    maps = (prediction if run is None else run) / "maps"
    if sweep is not None:
        check_sweep(maps, class_set, sweep)
    _require_one(predicted.frames, wanted, ground_truth, prediction)
    counts, problems = _count_all(truth, predicted, wanted, class_set, workers)
    thresholds: dict[float, dict[str, float]] = {}
    if sweep is not None:
        levels, more = _in_shares(partial(count_levels, truth, maps, class_set, sweep), wanted, workers)
        problems += more
        thresholds = {
            threshold: measures(_of_all_values(matrix), class_set, absent)[0]
            for threshold, matrix in zip(sweep, confusions(levels), strict=True)
        }
    if strict and problems:
        raise ScoringError(
            f"Predictions that cannot be scored as they are: {prediction}",
            problems,
            "Mend them, or have it forgiven and told in the report: strict=False, on the command line --lenient.",
        )
    extra = sorted(set(predicted.frames) - set(wanted))
    summary, categories = measures(counts, class_set, absent)
    return Scores(
        protocol="semantic",
        variant=f"{_rule(f'{len(wanted)} images{which}', class_set, absent)}{_protocol(run, sweep)}",
        summary=summary,
        categories=categories,
        thresholds=thresholds,
        left_out=[LeftOut(name, (), (), "a prediction for no image that is scored") for name in extra],
        problems=problems,
    )


def _run(prediction: Path) -> Path | None:
    """The folder of the run that the label maps belong to, if they are in its `masks`."""
    if prediction.name == "masks":
        return prediction.parent
    has_top = next(prediction.glob("[!.]*.[pP][nN][gG]"), None) is not None
    return prediction if (prediction / "masks").is_dir() and not has_top else None


def _check_classes(run: Path | None, class_set: ClassSet) -> None:
    """Refuse a run whose label maps are of other classes, where it has noted them."""
    path = None if run is None else run / "made_with.json"
    if path is None or not path.is_file():
        return
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["classes"]
        foreign = [name for name in names if name not in class_set.names]
    except (ValueError, KeyError, TypeError):
        return  # not of a run of ours
    if foreign:
        raise ConfigError(
            f"The label maps of {run} are of other classes than those of {class_set.title}.\n"
            f"  found {_some(names)}\n"
            f"  of which {_some(foreign)} are not among {_some(class_set.names)}\n"
            "Say what the values stand for: --classes voc, coco, ade20k or a text file with a class a line, in the\n"
            "order of the values, background first where there is one."
        )


def _require_one(predicted: Collection[str], wanted: Sequence[str], ground_truth: Path, prediction: Path) -> None:
    """Refuse predictions for other images altogether."""
    if not any(name in predicted for name in wanted):
        raise ScoringError(
            f"No prediction for any of the {len(wanted)} images of {ground_truth}: {prediction}\n"
            f"  found {_some(predicted)}\n"
            f"  expected {_some(wanted)}",
            (),
            "Name predictions like the images, with .png, or name the right images with a list.",
        )


def _rule(images: str, class_set: ClassSet, absent: Literal["counted", "skipped"]) -> str:
    """What is measured, in a sentence."""
    return (
        f"mIoU from one confusion matrix over {images} and {len(class_set.names)} classes ({class_set.title}), without "
        f"the pixels whose truth is {class_set.ignored}; classes in neither truth nor predictions are skipped, those "
        f"that are predicted only are {'counted as 0' if absent == 'counted' else 'skipped too'}."
    )


def _protocol(run: Path | None, sweep: Sequence[float] | None) -> str:
    """How a run made its label maps, and what thresholds are tried on, in sentences."""
    path = None if run is None else run / "protocol.txt"
    told = ""
    if path is not None and path.is_file():
        told = f" The label maps were made with: {' '.join(path.read_text(encoding='utf-8').split())}."
    elif sweep is not None:
        told = " How the label maps were made is not told: there is no protocol.txt beside them."
    if sweep is not None:
        told += (
            " Thresholds are tried on the class maps of the same run, brought to 0 to 1, with the highest class of a "
            "pixel: the best one is found with the truth of the pixels."
        )
    return told


class _TarImages(MaskSequence):
    """The same in a tar.gz, in the order in which they lie there, which is the fastest to read them in."""

    def read(self, frame: str) -> bytes:
        """The content of the PNG of an image."""
        try:
            archive = _opened(self.source, self.source.stat().st_mtime_ns)
            if archive.getmember(self.frames[frame]).size > _LARGEST_FILE:
                raise OSError(f"a member of {archive.getmember(self.frames[frame]).size} bytes")
            file = archive.extractfile(self.frames[frame])
            return file.read() if file is not None else b""
        except _DAMAGED as error:
            raise MaskError(f"Mask that cannot be read: {self.where(frame)}\n  found {error}") from error


@lru_cache(maxsize=1)
def _opened(path: Path, _written: int) -> tarfile.TarFile:
    """The archive, kept open until a file of another time is there."""
    return tarfile.open(path, "r:gz")


def _images(path: Path) -> MaskSequence:
    """Find the PNGs at the top, or else in the one folder below it that holds any: `frames` are the images."""
    try:
        files = _files(path)
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"Label maps not found: {path}\n  expected a folder of <image>.png.") from error
    except _DAMAGED as error:
        raise DatasetNotFoundError(
            f"Archive that cannot be read: {path}\n"
            f"  found {error}\n"
            "  expected a folder, a zip or a tar.gz of <image>.png; an interrupted copy leaves such files."
        ) from error
    folders: dict[str, dict[str, str]] = {}
    for file in files:
        place = PurePosixPath(file.replace("\\", "/"))  # as some programs for Windows write it
        hidden = any(part.startswith((".", "__MACOSX")) for part in place.parts)
        if place.suffix.lower() == ".png" and not hidden:
            folders.setdefault(str(place.parent), {})[place.stem] = file
    if "." in folders or len(folders) == 1:
        kind = MaskSequence if path.is_dir() or zipfile.is_zipfile(path) else _TarImages
        return kind(path, folders.get(".") or next(iter(folders.values())))
    raise DatasetNotFoundError(
        f"No images, or more than one set of them: {path}\n"
        f"  found folders with PNGs: {_some(folders)}\n"
        "  expected <image>.png, all in one folder.\n"
        "Give the folder that holds the PNGs."
    )


def _files(path: Path) -> list[str]:
    """Paths below a folder or in an archive, with slashes; of a folder that has PNGs at its top, those alone."""
    if path.is_dir():
        top = sorted(file.name for file in path.glob("[!.]*.[pP][nN][gG]"))
        return top or sorted(file.relative_to(path).as_posix() for file in path.rglob("*.[pP][nN][gG]"))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    with tarfile.open(path, "r:gz") as archive:
        return [member.name for member in archive if member.isfile()]


def _truth(path: Path, split: str | None) -> tuple[MaskSequence, list[str], str]:
    """The label maps of the truth, the images to score, each once, and which those are, in words."""
    if not path.is_dir():
        raise DatasetNotFoundError(
            f"Ground truth not found: {path}\n"
            "  expected a folder of <image>.png, or VOCdevkit/VOC2012 with SegmentationClass and\n"
            "  ImageSets/Segmentation."
        )
    roots = (path, path / "VOC2012", path / "VOCdevkit" / "VOC2012")
    root = next((root for root in roots if (root / "ImageSets" / "Segmentation").is_dir()), None)
    names = None if split is None else Path(split)
    if root is not None:
        listed = root / "ImageSets" / "Segmentation" / f"{split or 'val'}.txt"
        names = listed if names is None or listed.is_file() else names
        plain, augmented = root / "SegmentationClass", root / "SegmentationClassAug"
        path = plain if plain.is_dir() or not augmented.is_dir() else augmented
    truth = _images(path)
    if names is None:
        return truth, list(truth.frames), ""
    wanted = list(dict.fromkeys(_listed(line) for line in _lines(names) if line))
    missing = [name for name in wanted if name not in truth.frames]
    if missing:
        raise DatasetNotFoundError(
            f"No ground truth for {len(missing)} of the {len(wanted)} images of a list: {names}\n"
            f"  missing in {truth.source}: {_some(missing)}\n"
            f"  found there: {_some(truth.frames)}\n"
            "Give a list of these images, or as ground truth the folder with the label maps of the list\n"
            "(SegmentationClassAug for train_aug)."
        )
    return truth, wanted, f" of the list {names.stem}"


def _listed(line: str) -> str:
    """The image of a line: `2007_000032`, or `/JPEGImages/2007_000032.jpg /SegmentationClass/2007_000032.png`."""
    return PurePosixPath(line.split()[0]).stem if "/" in line else line


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetNotFoundError(
            f"List that cannot be read: {path}\n  found {error}\n  expected a text file with one name a line."
        ) from error
    if not text:
        raise DatasetNotFoundError(f"List without names: {path}\n  expected a text file with one name a line.")
    return [line.strip() for line in text.splitlines()]


def _class_set(classes: str | Sequence[str]) -> ClassSet:
    """The set of that name, or one's own with values from 0 on."""
    if isinstance(classes, str) and classes in CLASS_SETS:
        return CLASS_SETS[classes]
    if isinstance(classes, str) and not Path(classes).is_file():
        raise ConfigError(
            f"Unknown classes: {classes}\n"
            f"  expected one of {', '.join(CLASS_SETS)}, or a text file with a class a line, that of value 0 first."
        )
    names = tuple(_lines(Path(classes)) if isinstance(classes, str) else classes)
    doubtful = [name for name, times in Counter(names).items() if times > 1 or not name]
    if doubtful or not 0 < len(names) < 256:
        raise ConfigError(
            f"Classes that are no list of 1 to 255 different names: {_some(names)}\n"
            f"  found {len(names)}, empty or more than once: {_some(map(repr, doubtful))}\n"
            "Give each class one line, that of value 0 first."
        )
    return ClassSet("your own", names)


def _count_all(
    truth: MaskSequence, predicted: MaskSequence, wanted: Sequence[str], class_set: ClassSet, workers: int
) -> tuple[NDArray[np.int64], list[Problem]]:
    """(256, 256) pixels by true and predicted value; what is wrong, by image."""
    # A compressed archive is read from its start again for each step backwards.
    places = {name: place for place, name in enumerate(predicted.frames)}
    ordered = sorted(wanted, key=lambda name: places.get(name, -1))
    return _in_shares(partial(_count, truth, predicted, class_set), ordered, workers)


def _in_shares(
    count: Callable[[Sequence[str]], tuple[NDArray[np.int64], list[Problem]]], names: Sequence[str], workers: int
) -> tuple[NDArray[np.int64], list[Problem]]:
    """What is counted of all images together, by several processes."""
    if workers > 1:
        size = -(-len(names) // (_SHARES * workers))
        shares = [names[first : first + size] for first in range(0, len(names), size)]
        results = list(in_workers(count, shares, workers))
    else:
        results = [count(names)]
    problems = [problem for _, found in results for problem in found]
    counts = np.stack([counts for counts, _ in results])
    return counts.sum(axis=0), sorted(problems, key=lambda problem: (problem.sequence, problem.kind))


def _of_all_values(matrix: NDArray[np.int64]) -> NDArray[np.int64]:
    """(256, 256) pixels by true and predicted value, of classes whose values are 0, 1, ..."""
    return np.pad(matrix, (0, 256 - len(matrix)))


def _count(
    truth: MaskSequence, predicted: MaskSequence, class_set: ClassSet, names: Sequence[str]
) -> tuple[NDArray[np.int64], list[Problem]]:
    """The same of some images."""
    total = np.zeros((256, 256), dtype=np.int64)
    problems: list[Problem] = []
    unknown = np.ones(256, dtype=bool)
    unknown[class_set.values] = unknown[class_set.ignored] = False
    for name in names:
        labels = read_indices(truth.read(name), truth.where(name))
        predicted_labels, problem = _prediction(predicted, name, labels.shape)
        if problem is not None:
            problems.append(problem)
        pairs = labels.astype(np.uint16) << 8 | predicted_labels
        counts = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
        total += counts
        if (values := np.flatnonzero(counts.any(axis=1) & unknown)).size:
            raise ConfigError(
                f"Ground truth with values of no class: {truth.where(name)}\n"
                f"  found {_some(values)}\n"
                f"  expected {class_set}\n"
                "Name the classes that it was labelled with, or number the label maps as these are."
            )
        if (values := np.flatnonzero(counts[class_set.values].any(axis=0) & unknown)).size:
            reason = f"found {_some(values)}, expected {class_set}"
            remedy = "its pixels are missed by their true class"
            problems.append(Problem(ProblemKind.UNKNOWN_CLASS, name, None, reason, remedy))
    return total, problems


def _prediction(predicted: MaskSequence, name: str, size: tuple[int, ...]) -> tuple[NDArray[np.uint8], Problem | None]:
    """A label map of the truth's size, and what was wrong with it."""
    empty = np.zeros(size, dtype=np.uint8)
    remedy = "an empty mask stands in"
    if name not in predicted.frames:
        return empty, Problem(ProblemKind.MISSING_IMAGE, name, None, f"no {name}.png in {predicted.source}", remedy)
    try:
        labels = read_indices(predicted.read(name), predicted.where(name))
    except MaskError as error:
        kind = ProblemKind.NOT_INDEXED if isinstance(error, NotIndexedError) else ProblemKind.UNREADABLE
        return empty, Problem(kind, name, None, str(error).splitlines()[1].strip(), remedy)
    if labels.shape == size:
        return labels, None
    reason = f"found {labels.shape[1]}x{labels.shape[0]}, expected {size[1]}x{size[0]} (width x height)"
    problem = Problem(ProblemKind.WRONG_SIZE, name, None, reason, "resized, taking the nearest pixel")
    return resized(labels, (size[0], size[1])), problem


def measures(
    counts: NDArray[np.int64], class_set: ClassSet, absent: Literal["counted", "skipped"] = "counted"
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Say in numbers what a confusion matrix says.

    Args:
        counts: (256, 256) pixels by true and predicted value, of all images.
        class_set: What the values stand for.
        absent: Whether the mean counts a class that is predicted but nowhere in the truth.

    Returns:
        The summary and the numbers of each class, as `score_semantic` gives them.
    """
    rows = counts[class_set.values]  # what the truth ignores is in none of them
    true, predicted = rows.sum(axis=1), rows[:, class_set.values].sum(axis=0)
    hits = rows[:, class_set.values].diagonal()
    union = true + predicted - hits
    overlap = _percent(hits, union if absent == "counted" else np.where(true > 0, union, 0))
    accuracy, precision = _percent(hits, true), _percent(hits, predicted)
    pixels = _percent(true, true.sum())
    summary = {
        "mIoU": _mean(overlap),
        "pixel_accuracy": float(_percent(hits.sum(), true.sum())),
        "mean_accuracy": _mean(accuracy),
    }
    columns = {"IoU": overlap, "accuracy": accuracy, "precision": precision, "pixels": pixels}
    categories = {
        name: {title: float(column[index]) for title, column in columns.items()}
        for index, name in enumerate(class_set.names)
    }
    return summary, categories


def _percent(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """NaN where the whole is nothing."""
    return 100 * np.divide(part, np.where(whole > 0, whole, np.nan))


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _some(names: Iterable[object]) -> str:
    """The first few of them."""
    known = [str(name) for name in names]
    more = f", ... ({len(known)})" if len(known) > _SHOWN else ""
    return (", ".join(known[:_SHOWN]) + more) or "none"
