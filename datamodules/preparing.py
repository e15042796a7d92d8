"""What papers leave to private scripts: smaller frames, first masks, masks whose values are ids, labels of images.

Nothing here imports torch. Each file appears at once and whole, and whole files that are there are kept: an interrupted
call goes on when it is made again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.annotations import AnnotationFault, faults_of, field, inside, read_categories, read_json, rows
from datamodules.inspecting import pictures_in
from datamodules.label_files import LabelTable, read_labels, write_labels
from datamodules.processes import results
from lightning_vos.errors import ConfigError, DatasetNotFoundError, MaskError
from lightning_vos.evaluation.lists import read_names
from lightning_vos.evaluation.protocols import VOID
from lightning_vos.evaluation.semantic import CLASS_SETS, ClassSet
from lightning_vos.evaluation.trees import MaskSequence, find_sequences
from lightning_vos.io.frames import FRAME_SUFFIXES, frame_size, read_frame
from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette, resized, write_mask
from lightning_vos.io.png import object_ids, read_colours, read_indices
from lightning_vos.io.writing import written_beside

Progress = Callable[[int, int], None]

_FRAMES = "JPEGImages"
_LISTS = frozenset({".json", ".txt", ".csv", ".xml"})  # what belongs to a dataset beside its pictures
_MASK_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
_JPEG_QUALITY = 95
_SHOWN = 6  # in a message


class Prepared(NamedTuple):
    """What was done.

    Attributes:
        written: How many files were written.
        kept: How many were there already.
        lines: What else is to be said.
    """

    written: int
    kept: int
    lines: Sequence[str] = ()


# Smaller copies


class _Copy(NamedTuple):
    source: Path
    target: Path
    short_side: int
    kind: str  # frame, mask or list
    frame: Path | None = None  # whose size a mask takes


def resize(
    source: Path,
    target: Path,
    *,
    short_side: int = 480,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> Prepared:
    """Write a copy of a tree of videos whose frames have a shortest side of at most some pixels.

    What lies below a folder `JPEGImages`, and any JPEG, is a frame: bicubic with anti-aliasing, as the training frames
    of XMem were made, JPEG of quality 95 or PNG as it was. Any other PNG is a mask: nearest pixel, to the size of the
    frame of its name, where there is one. The longer side is rounded down. Frames that are small enough are copied
    as they are, and so are .json, .txt, .csv and .xml.

    A file that is there is compared with what would be written: its bytes, or the ids of a mask. So a copy made of
    other frames, or of frames that were corrected since, is never taken for this one.

    Args:
        source: The tree.
        target: The copy, outside of it.
        short_side: The shortest side of the frames of the copy, in pixels.
        workers: Processes that share the work.
        progress: Told how many of how many files are done.

    Raises:
        ConfigError: `target` lies in `source`, or a file there has other content.
        FrameError: A frame cannot be read.
        MaskError: A mask cannot be read, or holds no ids.
    """
    if short_side < 1:
        raise ConfigError(f"--short-side is {short_side}; expected pixels, such as 480")
    _require_apart(source, target)
    jobs, left = [], 0
    for file in _files(source):
        place = file.relative_to(source)
        kind = _kind(place)
        if kind is None:
            left += 1
            continue
        jobs.append(_Copy(file, target / place, short_side, kind, _frame_of(source, place) if kind == "mask" else None))
    if not any(job.kind == "frame" for job in jobs):
        raise DatasetNotFoundError(
            f"No frames in {source.absolute()}\n  expected a tree such as {_FRAMES}/480p/<video>/00000.jpg"
        )
    counts = Counter(results(_write_copy, jobs, workers, progress))
    lines = [f"{left} files of other kinds were left out"] if left else []
    return Prepared(counts[True], counts[False], lines)


def _kind(place: Path) -> str | None:
    suffix = place.suffix.lower()
    if suffix in FRAME_SUFFIXES:
        return "frame" if suffix != ".png" or _FRAMES in place.parts else "mask"
    return "list" if suffix in _LISTS else None


def _frame_of(source: Path, place: Path) -> Path | None:
    """The frame of a mask: the picture of its name below `JPEGImages` in place of the folder `Annotations...`."""
    for number, part in enumerate(place.parts):
        if part.startswith("Annotations"):
            frame = source.joinpath(*place.parts[:number], _FRAMES, *place.parts[number + 1 :])
            return next((file for s in (".jpg", ".jpeg", ".png") if (file := frame.with_suffix(s)).is_file()), None)
    return None


def _write_copy(job: _Copy) -> bool:
    """Whether a file was written, rather than there already."""
    if job.kind == "list":
        return _write_bytes(job.target, job.source.read_bytes())
    size = frame_size(job.source)
    height, width = frame_size(job.frame) if job.frame else size
    if min(height, width) > job.short_side:
        height, width = (int(side * job.short_side / min(height, width)) for side in (height, width))
    if job.kind == "mask":
        labels, palette = read_mask(job.source), read_palette(job.source)
        return _write_ids(job.target, resized(labels, (height, width)), palette or VOC_PALETTE)
    image = read_frame(job.source)  # what is cut off is not handed on
    if (height, width) == size:
        return _write_bytes(job.target, job.source.read_bytes())
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    encoded = BytesIO()
    if job.target.suffix.lower() == ".png":
        small.save(encoded, format="PNG")
    else:
        small.save(encoded, format="JPEG", quality=_JPEG_QUALITY)
    return _write_bytes(job.target, encoded.getvalue())


def _write_bytes(target: Path, content: bytes) -> bool:
    """Whether a file was written, rather than there already."""
    if target.exists():
        if target.read_bytes() != content:
            raise _occupied(target, "another content")
        return False
    with written_beside(target) as temporary:
        temporary.write_bytes(content)
    return True


# Masks


class _FirstMasks(NamedTuple):
    masks: MaskSequence
    target: Path


def write_first_masks(
    source: Path, target: Path, *, workers: int = 1, progress: Progress = lambda done, total: None
) -> Prepared:
    """Write of dense masks what a network may see: each object in the first mask that shows it, and nothing later.

    As the converter of LVOS: a frame in which no object is new has no mask, and a mask holds new objects alone. 255 is
    background. Ids and colours stay.

    Args:
        source: A folder or a zip of `<video>/<frame>.png`, or of what holds it as `Annotations`.
        target: The folder of the new `<video>/<frame>.png`, outside of it.
        workers: Processes that share the videos.
        progress: Told how many of how many videos are done.

    Raises:
        ConfigError: `target` lies in `source`, or a file there has other content.
        DatasetNotFoundError: There are no masks.
        MaskError: A mask cannot be read, or holds no ids.
    """
    _require_apart(source, target)
    found = find_sequences(source)
    jobs = [_FirstMasks(masks, target / name) for name, masks in found.items()]
    outcomes = list(results(_write_first, jobs, workers, progress))
    bare = [name for name, outcome in zip(found, outcomes, strict=True) if not outcome]
    lines = [f"no mask of {_some(bare)} shows an object"] if bare else []
    written = [is_new for outcome in outcomes for is_new in outcome]
    return Prepared(sum(written), len(written) - sum(written), lines)


def _write_first(job: _FirstMasks) -> list[bool]:
    seen: set[int] = {VOID}
    written = []
    for frame in job.masks.frames:
        data, where = job.masks.read(frame), job.masks.where(frame)
        labels = read_indices(data, where)
        new = [value for value in object_ids(labels) if value not in seen]
        if not new:
            continue
        seen.update(new)
        colours = read_colours(data, where)
        palette = colours + VOC_PALETTE[len(colours) :]
        first = np.where(np.isin(labels, new), labels, np.uint8(0))
        written.append(_write_ids(job.target / f"{frame}.png", first, palette))
    return written


class _Colours(NamedTuple):
    files: tuple[Path, ...]
    target: Path
    threshold: int | None


def write_index_masks(
    source: Path,
    target: Path,
    *,
    threshold: int | None = None,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> Prepared:
    """Write masks of colours, or of 0 and 255, as indexed PNGs whose values are ids.

    Within a folder, which is a video, one colour has one id. Colours that all belong to the palette of PASCAL VOC or
    DAVIS get their places in it back. Otherwise black is 0, and the others are numbered as they come, in the order of
    the files. In grey masks of 0 and 255 alone 255 becomes 1; masks that hold ids already keep them.

    Args:
        source: The masks, in folders of any depth; or a single one.
        target: The new masks, in the same folders and outside of it.
        threshold: Grey values from this one on are object 1, others background, as soft edges need it; 1 to 255.
        workers: Processes that share the folders.
        progress: Told how many of how many folders are done.

    Returns:
        The files, and the table of colours of each folder in `lines`.

    Raises:
        ConfigError: `target` lies in `source`, or a file there has other content.
        MaskError: Masks have soft edges, or more than 255 objects, or cannot be read.
    """
    if threshold is not None and not 1 <= threshold <= 255:
        raise ConfigError(f"--threshold is {threshold}; expected 1 to 255, such as 128")
    _require_apart(source, target)
    folders: dict[Path, list[Path]] = {}
    root = source.parent if source.is_file() else source
    for file in [source] if source.is_file() else _files(source):
        if file.suffix.lower() in _MASK_SUFFIXES:
            folders.setdefault(file.parent.relative_to(root), []).append(file)
    if not folders:
        raise DatasetNotFoundError(f"No masks in {source.absolute()}\n  expected .png, .jpg or .bmp there or below it")
    jobs = [_Colours(tuple(files), target / place, threshold) for place, files in folders.items()]
    tables: dict[str, list[str]] = {}
    written: list[bool] = []
    for place, (table, new) in zip(folders, results(_write_indexed, jobs, workers, progress), strict=True):
        tables.setdefault(table, []).append(str(place))
        written += new
    lines = [f"{_some(places)}: {table}" for table, places in tables.items()]
    return Prepared(sum(written), len(written) - sum(written), lines)


def _write_indexed(job: _Colours) -> tuple[str, list[bool]]:
    """The table of colours in words, and of each mask whether it was written."""
    stems = [file.stem for file in job.files]
    if double := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise MaskError(f"Two masks of one name: {job.files[0].parent / double}\n  expected one: remove the other.")
    colours: dict[int, None] = {}  # in the order in which they come
    for file in job.files:
        colours |= dict.fromkeys(_different(_colours(file)))
    ids = _numbered(list(colours), job)
    written = []
    for file in job.files:
        pixels = _colours(file)
        labels = np.zeros(pixels.shape, np.uint8)
        for colour in _different(pixels):
            if ids[colour]:
                labels[pixels == colour] = ids[colour]
        written.append(_write_ids(job.target / f"{file.stem}.png", labels, VOC_PALETTE))
    if job.threshold is not None:
        return f"grey from {job.threshold} on is 1", written
    table = sorted((number, colour) for colour, number in ids.items() if number)
    return ", ".join(f"{number} is {_rgb(colour)}" for number, colour in table) or "no object", written


def _different(colours: NDArray[np.int32]) -> list[int]:
    """The colours that there are, in order."""
    others = colours[colours != 0]  # most of a mask is black: sorting the rest takes a tenth of the time
    return [0] * (others.size < colours.size) + np.unique(others).tolist()


def _colours(file: Path) -> NDArray[np.int32]:
    """(H, W) colours, red * 65536 + green * 256 + blue; a grey value or an index counts as three equal ones."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):
                values = np.asarray(image).astype(np.int32)
            elif image.mode in ("P", "L", "1"):
                values = np.asarray(image.convert("L") if image.mode == "1" else image).astype(np.int32)
            else:
                pixels = np.asarray(image.convert("RGB")).astype(np.int32)
                return (pixels << (16, 8, 0)).sum(axis=-1)
    except (OSError, SyntaxError, ValueError) as error:
        raise MaskError(f"Mask that cannot be read: {file}\n  found {error}\nCopy or download it again.") from error
    if values.max(initial=0) > 255:
        raise MaskError(
            f"Mask of 16 bits: {file}\n  found values up to {values.max()}, expected at most 255\n"
            "Number the objects of a video from 1 on."
        )
    return values * 0x10101


def _numbered(colours: Sequence[int], job: _Colours) -> dict[int, int]:
    """The id of each colour that the masks of a folder have."""
    folder = job.files[0].parent
    greys = [colour % 256 for colour in colours]
    is_grey = all(colour == grey * 0x10101 for colour, grey in zip(colours, greys, strict=True))
    if job.threshold is not None:
        if not is_grey:
            raise MaskError(
                f"Masks of colours in {folder}, with --threshold\n"
                f"  found {_rgb(next(c for c in colours if c != c % 256 * 0x10101))}, expected grey values\n"
                "Leave --threshold out: each colour becomes an object."
            )
        return {colour: int(grey >= job.threshold) for colour, grey in zip(colours, greys, strict=True)}
    if is_grey:
        if set(greys) <= {0, 255}:
            return {colour: int(grey > 0) for colour, grey in zip(colours, greys, strict=True)}
        if 255 in greys:
            raise MaskError(
                f"Masks that are neither 0 and 255 nor ids: {folder}\n"
                f"  found {len(greys)} values, such as {_some([str(grey) for grey in sorted(greys)])}\n"
                "Are the edges of a single object soft, say from which value on it is one: --threshold 128.\n"
                "Is 255 what is not annotated, the others are ids already, and the masks can be used as they are."
            )
        return dict(zip(colours, greys, strict=True))
    palette = _palette()
    # The toolkit of DAVIS has 191 where VOC has 192.
    of_voc = {colour: palette.get(int.from_bytes(colour.to_bytes(3).replace(b"\xbf", b"\xc0"))) for colour in colours}
    if None not in of_voc.values():
        return {colour: number for colour, number in of_voc.items() if number is not None}
    objects = [colour for colour in colours if colour]
    if len(objects) > 255:
        raise MaskError(
            f"Masks of more colours than there are ids: {folder}\n"
            f"  found {len(objects)} colours, expected at most 255, one an object\n"
            "Edges that are soft, or JPEG, make colours of their own: save the masks as PNG without anti-aliasing."
        )
    return {0: 0} | {colour: number for number, colour in enumerate(objects, start=1)}


def _palette() -> dict[int, int]:
    """Colour -> its place among the colours of VOC."""
    return {int.from_bytes(VOC_PALETTE[3 * number : 3 * number + 3]): number for number in range(255)}


def _rgb(colour: int) -> str:
    return "rgb({}, {}, {})".format(*colour.to_bytes(3))


def _write_ids(target: Path, labels: NDArray[np.uint8], palette: bytes) -> bool:
    """Whether a mask was written, rather than there already."""
    if target.exists():
        try:
            there = read_mask(target)
        except MaskError as error:
            raise _occupied(target, "a mask that cannot be read") from error
        if not np.array_equal(there, labels):
            raise _occupied(target, "another mask")
        return False
    write_mask(target, labels, palette)
    return True


# Labels of images


def write_image_labels(source: Path, target: Path, *, classes: str = "voc") -> Prepared:
    """Write which classes each image shows as a CSV, see `datamodules.label_files`.

    Args:
        source: A JSON in the format of COCO, a folder of XML annotations of PASCAL VOC, or a folder of masks whose
            values are classes. Crowds count; objects that VOC calls difficult do too.
        target: The CSV.
        classes: Of masks: voc, coco, ade20k, or a file with the names of the values from 0 on; the first is background.

    Raises:
        ConfigError: The CSV is there with another content.
        DatasetNotFoundError: There is nothing to read, or it is not of its form.
        MaskError: A mask cannot be read, or has a value of no class.
    """
    if source.is_file():
        table = _labels_of_json(source)
    elif source.is_dir() and (files := sorted(source.glob("[!.]*.xml"))):
        table = _labels_of_xml(files)
    elif masks := pictures_in(source, {".png"}):
        table = _labels_of_masks(masks, classes)
    else:
        raise DatasetNotFoundError(
            f"Nothing to read labels from: {source.absolute()}\n"
            "  expected a JSON such as instances_train2017.json, a folder of .xml (Annotations of PASCAL VOC), or a\n"
            "  folder of .png (SegmentationClass)"
        )
    with_labels = sum(bool(row.any()) for row in table.rows.values())
    lines = [f"{len(table.rows)} images, {with_labels} with one of {len(table.classes)} classes"]
    if target.exists():
        there = read_labels(target)
        is_same = there.classes == table.classes and there.rows.keys() == table.rows.keys()
        if not is_same or any((there.rows[name] != row).any() for name, row in table.rows.items()):
            raise _occupied(target, "other labels")
        return Prepared(0, 1, lines)
    write_labels(target, table)
    return Prepared(1, 0, lines)


def _labels_of_json(file: Path) -> LabelTable:
    content = read_json(file)
    names: dict[int, str] = {}
    with faults_of(file, "the file", "COCO"):
        categories = read_categories(content)
        images, instances = rows(content, "images"), rows(content, "annotations")
    paths: dict[str, str] = {}  # by their names without folder and suffix
    for number, row in enumerate(images):
        with faults_of(file, f"images[{number}]", "COCO"):
            image, path = field(row, "id", int), inside(row.get("file_name"))
            if image in names:
                raise AnnotationFault(f"id {image}, which an earlier one has")
        names[image] = PurePosixPath(path).stem
        if names[image] in paths:
            raise DatasetNotFoundError(
                f"Two images of one name in {file}: {paths[names[image]]} and {path}\n"
                "  expected names that differ without folder and suffix, for so the CSV names images.\n"
                "Rename one of them, there and on disk, or make a JSON of each folder."
            )
        paths[names[image]] = path
    with faults_of(file, "the file", "COCO"):
        for name in (*categories.values(), *names.values()):
            if name.encode(errors="replace").decode() != name:
                raise AnnotationFault(f"the name {name!r}, which is no text that a file can hold")
    shown: list[tuple[str, str]] = []
    for number, row in enumerate(instances):
        with faults_of(file, f"annotations[{number}]", "COCO"):
            image, category = field(row, "image_id", int), field(row, "category_id", int)
            if image not in names or category not in categories:
                raise AnnotationFault(f"image {image}, category {category}, not both of which it lists")
        shown.append((names[image], categories[category]))
    return _table(names.values(), list(categories.values()), shown)


def _labels_of_xml(files: Sequence[Path]) -> LabelTable:
    shown: list[tuple[str, str]] = []
    for file in files:
        try:
            annotation = ElementTree.parse(file).getroot()
        except (OSError, ElementTree.ParseError) as error:
            raise DatasetNotFoundError(f"{file} cannot be read as XML: {error}\nGet the file again.") from error
        shown += [(file.stem, item.findtext("name", "").strip()) for item in annotation.iterfind("object")]
    names = CLASS_SETS["voc"].names[1:]
    there = sorted({name for _, name in shown})
    return _table([file.stem for file in files], names if set(there) <= set(names) else there, shown)


def _labels_of_masks(masks: Mapping[str, Path], classes: str) -> LabelTable:
    if classes in CLASS_SETS:
        known = CLASS_SETS[classes]
    else:
        names = tuple(read_names(Path(classes), "the name of a class a line, background first"))
        known = ClassSet(f"those of {classes}", names)
    shown = []
    for stem, path in masks.items():
        for value in object_ids(read_mask(path)):
            if value == known.ignored:
                continue
            if not known.first <= value < known.first + len(known.names):
                raise MaskError(
                    f"Mask with a value of no class: {path}\n  found {value}, expected {known}\n"
                    "Name the classes of your masks: --classes voc, coco, ade20k, or a file with a name a line."
                )
            shown.append((stem, known.names[value - known.first]))
    return _table(masks, [name for number, name in enumerate(known.names, known.first) if number], shown)


def _table(images: Iterable[str], classes: Sequence[str], shown: Iterable[tuple[str, str]]) -> LabelTable:
    place = {name: number for number, name in enumerate(classes)}
    labels = {image: np.zeros(len(classes), np.uint8) for image in images}
    for image, name in shown:
        labels[image][place[name]] = 1
    return LabelTable(tuple(classes), labels)


# What they share


def _files(source: Path) -> Iterator[Path]:
    """The files of a tree in order, without hidden ones; folders that are links are followed, each once."""
    seen = set()
    for folder, below, names in os.walk(source, followlinks=True):
        below[:] = sorted(name for name in below if name[0] != ".")
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in sorted(names) if name[0] != ".")


def _require_apart(source: Path, target: Path) -> None:
    if not source.exists():
        raise DatasetNotFoundError(f"There is nothing to prepare: {source.absolute()}")
    if target.resolve().is_relative_to(source.resolve()):
        raise ConfigError(
            f"{target} lies in {source}: what is prepared would be prepared again.\nName a TARGET outside of it."
        )
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file, expected a folder, or nothing, to write to.")


def _occupied(target: Path, found: str) -> ConfigError:
    return ConfigError(
        f"{target} is there already, with {found}.\n"
        "It was made of another SOURCE, or of this one before it or the settings changed, and is left as it is.\n"
        "Name another TARGET, or remove what is there: then it is written anew."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)})" if len(names) > _SHOWN else "")
