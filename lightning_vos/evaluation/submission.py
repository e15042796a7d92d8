"""Submissions: results packed as the server of a benchmark takes them, and packed files checked before an upload.

What the servers expect is stated in `_SERVERS`; nothing here asks a server.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import ConfigError, DatasetNotFoundError, MaskError
from lightning_vos.evaluation.problems import Problem, ProblemKind, ScoringError
from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette
from lightning_vos.io.png import read_colours, read_indices
from lightning_vos.io.writing import written_beside

_Of = TypeVar("_Of")

Benchmark = Literal["davis2017_test_dev", "youtube_vos", "lvos", "youtube_vis", "voc"]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many masks are done, and of how many."""

_ARCHIVE = "the archive"
_RESULTS = "results.json"
_VOC_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls/"
_VOC_CLASSES = range(1, 21)
_LVOS_STEP = 5  # the names of neighbouring frames differ by 5
_LARGEST_JSON = 2**30  # bytes; what claims to be larger is not unpacked
_LARGEST_READ = 2**28  # bytes that are taken from a tarball at once
_LARGEST_TAIL = 2**20  # bytes that may follow the end of a tarball, which is padded to a multiple of 10 KiB
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can name: packing twice gives the same bytes
_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "indexed", 4: "grey with alpha", 6: "RGBA"}
# What damaged archives make the libraries raise.
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)
_REMEDY = "mend it and pack anew"


class SubmissionError(ScoringError):
    """Results, or a packed file, that the server would refuse; `problems` holds everything that was found."""


@dataclass(frozen=True)
class Submission:
    """A packed file that was checked.

    Attributes:
        file: The file.
        benchmark: Whose server it is for.
        sequences: Number of sequences; of videos with results (`youtube_vis`); 1 for `voc`.
        frames: Number of masks; those of all results together (`youtube_vis`).
        objects: Number of objects that the masks show; of results (`youtube_vis`); of classes (`voc`).
        size: Bytes.
        expects: What the server expects, which the file was checked for.
        unverified: What could not be checked without the server.
        notes: What is legal, yet worth knowing before the upload.
    """

    file: Path
    benchmark: Benchmark
    sequences: int
    frames: int
    objects: int
    size: int
    expects: str
    unverified: str
    notes: tuple[str, ...] = ()


class _Server(NamedTuple):
    expects: str
    unverified: str
    suffixes: tuple[str, ...] = (".zip",)
    folder: str = ""  # where the folders of the sequences lie in the archive
    passes_over_frames: bool = False  # masks of frames that are not asked for are left out when packing


_SERVERS: Mapping[str, _Server] = {
    "davis2017_test_dev": _Server(
        "a zip with a folder for each sequence at its top level, at least two; a mask of every frame at 480p",
        "limits on the size of the file and the number of uploads",
    ),
    "youtube_vos": _Server(
        "a zip with Annotations/<video>/<frame>.png for the frames that meta.json lists, at their original size",
        "limits on uploads; whether the server takes masks of further frames",
        folder="Annotations/",
        passes_over_frames=True,
    ),
    "lvos": _Server(
        "a zip with Annotations/<video>/<frame>.png for the frames of the meta file's ranges, at their original size",
        "limits on uploads; whether the server takes masks of further frames",
        folder="Annotations/",
        passes_over_frames=True,
    ),
    "youtube_vis": _Server(
        f"a zip with {_RESULTS} at its top level; one compressed RLE, or null, for each frame of a result's video",
        "limits on uploads and on results per video; the evaluation counts 100 per video and category",
    ),
    "voc": _Server(
        f"a gzipped tarball with {_VOC_FOLDER}<image>.png in VOC's palette, 0 to 20, at the image's size",
        "limits on the size of the file and the number of uploads",
        suffixes=(".tar.gz", ".tgz"),
        folder=_VOC_FOLDER,
    ),
}


class _Sequence(NamedTuple):
    """What is expected of one sequence."""

    name: str
    folder: str  # of its masks in the archive
    frames: Mapping[str, Path]  # frame -> the image whose size its mask has
    objects: Mapping[int, str]  # id -> the frame where it first appears
    annotations: Path | None  # the folder of the given masks

    def member(self, frame: str) -> str:
        return f"{self.folder}/{frame}.png"


class _Video(NamedTuple):
    """A video of YouTube-VIS."""

    name: str
    length: int
    size: list[int]  # H, W


class _Fault(Exception):  # noqa: N818 - a reason to report, never seen outside
    """Why something cannot be taken."""

    def __init__(self, kind: ProblemKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


def pack(
    results: Path,
    dataset: Path,
    output: Path,
    *,
    benchmark: Benchmark,
    split: str | None = None,
    progress: Progress | None = None,
) -> Submission:
    """Pack results for a benchmark's server; what was packed is checked, and nothing is written if anything is wrong.

    Grey masks and those of other colours get the palette of the dataset's first annotation, VOC's where it has none.
    Masks of frames that YouTube-VOS or LVOS do not ask for are left out. The same results give the same bytes.

    Args:
        results: A folder with `<sequence>/<frame>.png`, or the run's folder that holds it as `masks`; `<image>.png` for
            `voc`; for `youtube_vis` the JSON of the results, or a folder that holds it as `results.json`.
        dataset: The dataset in its official layout: the folder of DAVIS, that of the split of YouTube-VOS or LVOS, that
            of VOC2012; for `youtube_vis` the JSON of the split.
        output: The file to write, `.zip`, or `.tar.gz` for `voc`.
        benchmark: Whose server it is for.
        split: The list of DAVIS (`test-dev`) or VOC (`test`); of LVOS what stands before `_meta.json` (the folder).
        progress: Told how far packing and checking are.

    Raises:
        SubmissionError: The server would refuse the results; all that is wrong is named.
        DatasetNotFoundError: The dataset lacks what says what is expected.
        ConfigError: A word of the call is wrong.
    """
    server = _server(benchmark)
    if output.is_dir() or not output.name.lower().endswith(server.suffixes):
        raise ConfigError(
            f"The submission cannot be written to {output}\n"
            f"  found {'a folder' if output.is_dir() else 'another kind of file'}, expected a file named"
            f" *{' or *'.join(server.suffixes)}"
        )
    if benchmark == "youtube_vis":
        _refuse_split(split, benchmark)
        videos, categories = _read_videos(dataset)
        content = _result_file(results)
        with written_beside(output) as temporary:
            _write_zip(temporary, [(_RESULTS, content)], zipfile.ZIP_DEFLATED)
            submission, problems = _inspect_results(temporary, videos, categories)
            _refuse_problems(f"{results} cannot be submitted; nothing was written", problems)
        return replace(submission, file=output)
    sequences = _sequences(dataset, benchmark, split)
    wanted = {sequence.member(frame) for sequence in sequences for frame in sequence.frames}
    there = _masks_in(results, server.folder, wanted)
    problems, left_out = _unexpected(there.keys() - wanted, server, sequences)
    members = _repacked(sorted((name, there[name]) for name in there.keys() & wanted), _palette(sequences), progress)
    with written_beside(output) as temporary:
        if benchmark == "voc":
            _write_tarball(temporary, members)
        else:
            _write_zip(temporary, members, zipfile.ZIP_STORED)
        submission, found = _inspect_masks(temporary, benchmark, sequences, progress)
        _refuse_problems(f"{results} cannot be submitted; nothing was written", [*problems, *found])
    notes = [f"masks left out, of frames that are not asked for: {left_out}"] if left_out else []
    return replace(submission, file=output, notes=(*notes, *submission.notes))


def check(
    file: Path,
    dataset: Path,
    *,
    benchmark: Benchmark,
    split: str | None = None,
    progress: Progress | None = None,
) -> Submission:
    """Check a packed file as far as that is possible without the server; nothing of it is unpacked to disk.

    Args:
        file: The zip or, for `voc`, the tarball.
        dataset: As `pack` takes it.
        benchmark: Whose server it is for.
        split: As `pack` takes it.
        progress: Told how far checking is.

    Raises:
        SubmissionError: The server would refuse the file; all that is wrong is named.
        DatasetNotFoundError: The dataset lacks what says what is expected.
        ConfigError: A word of the call is wrong.
    """
    _server(benchmark)
    if not file.is_file():
        raise ConfigError(
            f"No file to check: {file}\n"
            f"  found {'a folder' if file.is_dir() else 'nothing'}, expected a packed file.\n"
            "Pack results with `lightning_vos submission pack`."
        )
    if benchmark == "youtube_vis":
        _refuse_split(split, benchmark)
        submission, problems = _inspect_results(file, *_read_videos(dataset))
    else:
        submission, problems = _inspect_masks(file, benchmark, _sequences(dataset, benchmark, split), progress)
    _refuse_problems(f"{file} is not what the server takes", problems)
    return submission


def _server(benchmark: str) -> _Server:
    if benchmark not in _SERVERS:
        raise ConfigError(f"No server of {benchmark!r} is known: expected one of {', '.join(get_args(Benchmark))}.")
    return _SERVERS[benchmark]


def _refuse_split(split: str | None, benchmark: Benchmark) -> None:
    if split is not None:
        raise ConfigError(
            f"{benchmark} has no list for split {split!r}.\nName the split itself as DATASET, without --split."
        )


def _refuse_problems(what: str, problems: list[Problem]) -> None:
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise SubmissionError(f"{what}: {count}", problems, "Mend the results and pack them again.")


def _problem(kind: ProblemKind, sequence: str, frame: str | None, reason: str) -> Problem:
    return Problem(kind, sequence, frame, reason, _REMEDY)


# What a dataset says is expected


def _sequences(dataset: Path, benchmark: Benchmark, split: str | None) -> list[_Sequence]:
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


def _davis(dataset: Path, split: str) -> list[_Sequence]:
    """Every frame of the sequences on a list; the first mask holds the objects."""
    of_year = dataset / "Annotations_2017/480p"  # some copies keep the masks of both years side by side
    masks = of_year if of_year.is_dir() else dataset / "Annotations/480p"
    sequences = []
    for name in _listed(dataset / "ImageSets/2017" / f"{split}.txt"):
        frames = _images(dataset / "JPEGImages/480p" / name)
        first = min(frames)
        labels = read_mask(masks / name / f"{first}.png")
        objects = dict.fromkeys((i for i in np.unique(labels).tolist() if i not in (0, 255)), first)
        sequences.append(_Sequence(name, name, frames, objects, masks / name))
    return sequences


def _youtube_vos(dataset: Path) -> list[_Sequence]:
    """The frames that meta.json lists for the objects of a video, from the first appearance of each on."""
    meta = dataset / "meta.json"
    sequences = []
    for name, listed in _meta(meta, lambda entry: [str(frame) for frame in entry["frames"]]).items():
        images = _images(dataset / "JPEGImages" / name)
        asked = sorted(set().union(*listed.values()))
        _require_images(asked, images, dataset / "JPEGImages" / name, meta)
        objects = {i: min(frames) for i, frames in listed.items() if frames}
        frames = {frame: images[frame] for frame in asked}
        sequences.append(_Sequence(name, f"Annotations/{name}", frames, objects, dataset / "Annotations" / name))
    return sequences


def _lvos(dataset: Path, split: str) -> list[_Sequence]:
    """The frames of each object's range, of which the evaluator scores all but the first and the last."""
    meta = dataset / f"{split}_meta.json"
    sequences = []
    for name, spans in _meta(meta, lambda entry: _span(entry["frame_range"])).items():
        folder = dataset / "JPEGImages" / name
        images = _images(folder)
        numbers = {int(stem): stem for stem in images if stem.isdecimal()}
        # The last name of a range may lie beside the grid of names.
        asked = {number for start, end in spans.values() for number in range(start, end + 1, _LVOS_STEP)}
        scored = {number for start, end in spans.values() for number in range(start, end, _LVOS_STEP)}
        _require_images([f"{number:08}" for number in sorted(scored - numbers.keys())], images, folder, meta)
        frames = {numbers[number]: images[numbers[number]] for number in sorted(asked & numbers.keys())}
        objects = {i: numbers[start] for i, (start, _) in spans.items() if start in numbers}
        sequences.append(_Sequence(name, f"Annotations/{name}", frames, objects, dataset / "Annotations" / name))
    return sequences


def _voc(dataset: Path, split: str) -> _Sequence:
    """All images of a list as one sequence."""
    names = _listed(dataset / "ImageSets/Segmentation" / f"{split}.txt")
    folder = dataset / "JPEGImages"
    images = {name: folder / f"{name}.jpg" for name in names}
    missing = [name for name, image in images.items() if not image.is_file()]
    _require_images(missing, {}, folder, dataset / "ImageSets/Segmentation" / f"{split}.txt")
    return _Sequence(split, _VOC_FOLDER.rstrip("/"), images, dict.fromkeys(_VOC_CLASSES, ""), None)


def _read_videos(file: Path) -> tuple[dict[int, _Video], set[int]]:
    """The videos of a YouTube-VIS JSON by their id, and the ids of its categories."""
    content = _read_json(file)
    try:
        categories = {int(category["id"]) for category in content["categories"]}
        videos = {int(row["id"]): _video(row) for row in content["videos"]}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise _malformed(
            file, error, '{"videos": [{"id", "width", "height", "length"}], "categories": [{"id"}]}'
        ) from error
    return videos, categories


def _video(row: Mapping[str, Any]) -> _Video:
    names = row.get("file_names") or [f"video {row['id']}/"]
    return _Video(PurePosixPath(names[0]).parts[0], int(row["length"]), [int(row["height"]), int(row["width"])])


def _meta(file: Path, read: Callable[[Mapping[str, Any]], _Of]) -> dict[str, dict[int, _Of]]:
    """What `read` gives of each object of each video that has any."""
    try:
        found = {
            name: {int(i): read(entry) for i, entry in video["objects"].items()}
            for name, video in _read_json(file)["videos"].items()
            if video["objects"]
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _malformed(file, error, '{"videos": {"<video>": {"objects": {"<id>": {...}}}}}') from error
    _require_plain(file, found)
    return found


def _span(frame_range: Mapping[str, Any]) -> tuple[int, int]:
    """The numbers of the first and the last frame; the values are text or numbers."""
    return int(frame_range["start"]), int(frame_range["end"])


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise _not_found(file, error) from error
    except (ValueError, RecursionError) as error:
        raise _malformed(file, error, "JSON") from error


def _listed(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    except OSError as error:
        raise _not_found(file, error) from error
    names = list(dict.fromkeys(filter(None, lines)))
    _require_plain(file, names)
    return names


def _require_plain(file: Path, names: Collection[str]) -> None:
    """Refuse names that would lead out of the dataset's folders, and a file that names nothing."""
    strange = [name for name in names if not _is_plain(name)]
    if strange or not names:
        found = f"the name {strange[0]!r}, which" if strange else "no name, which"
        raise DatasetNotFoundError(
            f"{file} holds {found} is not expected.\nExpected plain names of sequences or images."
        )


def _is_plain(name: str) -> bool:
    return bool(name) and name != ".." and PurePosixPath(name).name == name and "\\" not in name


def _images(folder: Path) -> dict[str, Path]:
    # Its import loads Pillow, which scoring does without.
    from lightning_vos.io.frames import list_frames

    return {path.stem: path for path in list_frames(folder)}


def _image_size(path: Path) -> tuple[int, int]:
    from lightning_vos.io.frames import frame_size

    return frame_size(path)


def _require_images(asked: Collection[str], images: Collection[str], folder: Path, source: Path) -> None:
    missing = [name for name in asked if name not in images]
    if missing:
        raise DatasetNotFoundError(
            f"{source} lists frames that are not in {folder}\n"
            f"  missing: {', '.join(missing[:3])}{f', ... ({len(missing)} images)' if len(missing) > 3 else ''}\n"
            "The size of a mask is that of its image: get the whole dataset."
        )


def _not_found(file: Path, error: OSError) -> DatasetNotFoundError:
    return DatasetNotFoundError(
        f"Not in the dataset: {file}\n"
        f"  found: {error.strerror}; expected the file that says which masks the server wants.\n"
        "Name as DATASET the folder of DAVIS or VOC2012, that of the split of YouTube-VOS or LVOS, or the JSON of\n"
        "YouTube-VIS; give --split NAME where the list has another name."
    )


def _malformed(file: Path, error: Exception, expected: str) -> DatasetNotFoundError:
    return DatasetNotFoundError(
        f"{file} is not as the dataset ships it\n  found {type(error).__name__}: {error}\n  expected {expected}"
    )


# Packing


def _masks_in(results: Path, folder: str, wanted: Collection[str]) -> dict[str, Path]:
    """The masks of a folder of results, by the names that they have in the archive."""
    root = results / "masks" if (results / "masks").is_dir() else results
    depth = "*.png" if folder == _VOC_FOLDER else "*/*.png"
    paths = [path for path in root.glob(depth) if not path.name.startswith(".")]
    there = {folder + path.relative_to(root).as_posix(): path for path in paths}
    if not there.keys() & wanted:
        found = f"{len(there)} masks such as {min(paths).relative_to(root)}" if paths else "no masks"
        raise ConfigError(
            f"No mask that the server asks for is in {root}\n"
            f"  found {found if root.is_dir() else 'no such folder'}\n"
            f"  expected {len(wanted)} masks such as {min(wanted).removeprefix(folder)}\n"
            "Name the folder of the masks, or that of the run that holds `masks`; or name another dataset or split."
        )
    return there


def _result_file(results: Path) -> bytes:
    file = results / _RESULTS if results.is_dir() else results
    if not file.is_file():
        raise ConfigError(f"No results: {file}\n  expected the JSON of the results, as the evaluation takes it.")
    if file.stat().st_size > _LARGEST_JSON:
        raise ConfigError(f"{file} is larger than results can be\n  found {file.stat().st_size} bytes")
    return file.read_bytes()


def _palette(sequences: Iterable[_Sequence]) -> bytes:
    """The colours of the dataset's first annotation."""
    folders = (sequence.annotations for sequence in sequences if sequence.annotations is not None)
    first = next((path for folder in folders for path in sorted(folder.glob("[!.]*.png"))), None)
    return (read_palette(first) if first else None) or VOC_PALETTE


def _repacked(
    masks: Collection[tuple[str, Path]], palette: bytes, progress: Progress | None
) -> Iterator[tuple[str, bytes]]:
    """Each mask as an indexed PNG of 8 bits with these colours; what is no mask stays, for the check to name it."""
    for done, (name, path) in enumerate(masks):
        if progress:
            progress("packing", done, len(masks))
        data = path.read_bytes()
        try:
            if _header(data)[1:] != (8, "indexed") or read_colours(data, str(path)) != palette:
                data = _encoded(read_indices(data, str(path)), palette)
        except (MaskError, _Fault):
            pass
        yield name, data


def _encoded(labels: NDArray[np.uint8], palette: bytes) -> bytes:
    from PIL import Image  # for writing alone

    image = Image.fromarray(labels)
    image.putpalette(palette)
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def _write_zip(file: Path, members: Iterable[tuple[str, bytes]], compression: int) -> None:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type, info.create_system, info.external_attr = compression, 3, 0o100644 << 16
            archive.writestr(info, data)


def _write_tarball(file: Path, members: Iterable[tuple[str, bytes]]) -> None:
    with (
        file.open("wb") as raw,
        # What is in a PNG cannot be made much smaller.
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


# Reading archives; no member is written to disk, and none is read beyond the size that it can have


class _Member(NamedTuple):
    name: str
    read: Callable[[int], bytes]  # the content, which may have so many bytes; raises _Fault


def _members(file: Path, server: _Server, problems: list[Problem]) -> Iterator[_Member]:
    """The files of an archive, each name once.

    Raises:
        _Fault: The archive itself is damaged.
    """
    seen: set[str] = set()
    members = _zip_members(file) if ".zip" in server.suffixes else _tarball_members(file)
    try:
        for member in members:
            if member.name in seen:
                problems.append(_problem(ProblemKind.WRONG_LAYOUT, _ARCHIVE, member.name, "there more than once"))
                continue
            seen.add(member.name)
            yield member
    except _DAMAGE as error:
        kind = "zip" if ".zip" in server.suffixes else "gzipped tarball"
        raise _Fault(ProblemKind.UNREADABLE, f"no {kind}, or damaged: {str(error) or type(error).__name__}") from error


def _zip_members(file: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield _Member(info.filename, partial(_read_zipped, archive, info))


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    if info.flag_bits & 1:
        raise _Fault(ProblemKind.UNREADABLE, "encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _Fault(ProblemKind.UNREADABLE, "compressed by another method than deflate")
    _require_size(info.file_size, most)
    try:
        with archive.open(info) as member:
            return member.read(most + 1)
    except _DAMAGE as error:
        raise _Fault(ProblemKind.UNREADABLE, f"damaged in the archive: {str(error) or type(error).__name__}") from error


class _BoundedGzip(gzip.GzipFile):
    """Refuses to unpack much at once, which the headers of a tarball could ask for."""

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes."""
        if size is None or not 0 <= size <= _LARGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _tarball_members(file: Path) -> Iterator[_Member]:
    with _BoundedGzip(file, "rb") as stream:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for info in archive:
                if info.size > _LARGEST_READ:  # passing over it would take long
                    raise tarfile.ReadError(f"{info.name} of {info.size} bytes")
                if not info.isdir():
                    yield _Member(info.name.removeprefix("./"), partial(_read_tarred, archive, info))
        if len(stream.read(_LARGEST_TAIL)) == _LARGEST_TAIL:  # reading to the end checks the sum as well
            raise tarfile.ReadError("more data after the end")


def _read_tarred(archive: tarfile.TarFile, info: tarfile.TarInfo, most: int) -> bytes:
    member = archive.extractfile(info) if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else None
    if member is None:
        raise _Fault(ProblemKind.UNREADABLE, "a link or the like in place of a file")
    _require_size(info.size, most)
    try:
        return member.read()
    except _DAMAGE as error:
        raise _Fault(ProblemKind.UNREADABLE, f"damaged in the archive: {str(error) or type(error).__name__}") from error


def _require_size(size: int, most: int) -> None:
    if size > most:
        raise _Fault(ProblemKind.UNREADABLE, f"of {size} bytes, where at most {most} are possible")


def _unexpected(names: Iterable[str], server: _Server, sequences: Iterable[_Sequence]) -> tuple[list[Problem], int]:
    """What is wrong with members that nobody asked for, and the number of those that are mere further frames."""
    folders = {sequence.folder: sequence.name for sequence in sequences}
    problems: dict[str, Problem] = {}
    further = 0
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        frame = file.removesuffix(".png")
        if folder in folders and frame != file:
            if server.passes_over_frames:
                further += 1
            else:
                reason = "not among the frames of the dataset"
                problems[name] = _problem(ProblemKind.EXTRA_FRAME, folders[folder], frame, reason)
        elif frame != file and folder.startswith(server.folder) and _is_plain(folder.removeprefix(server.folder)):
            sequence = folder.removeprefix(server.folder)
            problems[folder] = _problem(ProblemKind.EXTRA_SEQUENCE, sequence, None, "not on the dataset's list")
        else:
            outside = name.startswith("/") or "\\" in name or ".." in name.split("/")
            reason = "a name that leads out of the folder" if outside else "does not belong into the archive"
            problems[name] = _problem(ProblemKind.WRONG_LAYOUT, _ARCHIVE, name, reason)
    return list(problems.values()), further


# Checking masks


class _Shown(NamedTuple):
    """What the readable masks of an archive show."""

    objects: set[tuple[str, int]]  # sequence and id
    early: list[tuple[str, str]]  # sequences and frames with an object before its first appearance


def _inspect_masks(
    file: Path, benchmark: Benchmark, sequences: list[_Sequence], progress: Progress | None
) -> tuple[Submission, list[Problem]]:
    """Sum up an archive of masks, and find all that is wrong with it."""
    server = _SERVERS[benchmark]
    wanted = {sequence.member(frame): (sequence, frame) for sequence in sequences for frame in sequence.frames}
    problems: list[Problem] = []
    strange: list[str] = []
    found: set[str] = set()
    shown = _Shown(set(), [])
    whole = True
    try:
        for name, read in _members(file, server, problems):
            if name not in wanted:
                strange.append(name)
                continue
            found.add(name)
            if progress:
                progress("checking", len(found), len(wanted))
            sequence, frame = wanted[name]
            try:
                _look_at(sequence, frame, read, shown)
            except _Fault as fault:
                problems.append(_problem(fault.kind, sequence.name, frame, fault.reason))
    except _Fault as fault:
        whole = False
        problems.append(_problem(fault.kind, _ARCHIVE, None, fault.reason))
    further = 0
    if whole and not found:
        reason = f"{_listing(strange)} in place of {min(wanted)}"
        problems.append(_problem(ProblemKind.WRONG_LAYOUT, _ARCHIVE, None, reason))
    elif whole:
        more, further = _unexpected(strange, server, sequences)
        problems += [*more, *_missing(sequences, found)]
        if benchmark == "davis2017_test_dev" and len(sequences) < 2:
            reason = "one folder at the top level, which the server takes for a wrapping one; it expects two or more"
            problems.append(_problem(ProblemKind.WRONG_LAYOUT, _ARCHIVE, None, reason))
    submission = Submission(
        file=file,
        benchmark=benchmark,
        sequences=len({wanted[name][0].name for name in found}),
        frames=len(found),
        objects=len(shown.objects),
        size=file.stat().st_size,
        expects=server.expects,
        unverified=server.unverified,
        notes=_notes(sequences, shown, further),
    )
    return submission, problems


def _look_at(sequence: _Sequence, frame: str, read: Callable[[int], bytes], shown: _Shown) -> None:
    """Check one mask and note what it shows.

    Raises:
        _Fault: What is wrong with it.
    """
    size = _image_size(sequence.frames[frame])
    data = read(_most_bytes(size))
    ids = _ids(data, size)
    strange = [i for i in ids if i not in sequence.objects]
    if strange:
        allowed = [0, *sorted(sequence.objects)]
        expected = (
            f"0 to {allowed[-1]}" if len(allowed) > 6 and allowed[-1] < len(allowed) else ", ".join(map(str, allowed))
        )
        raise _Fault(ProblemKind.EXTRA_OBJECT, f"found {', '.join(map(str, strange))}, expected {expected}")
    shown.objects.update((sequence.name, i) for i in ids)
    if any(frame < sequence.objects[i] for i in ids):
        shown.early.append((sequence.name, frame))


def _most_bytes(size: tuple[int, int]) -> int:
    """A generous limit for the PNG of (H, W) indices, which needs no more than its pixels and a palette."""
    return 2 * size[0] * size[1] + 2**16


def _ids(data: bytes, size: tuple[int, int]) -> list[int]:
    """The ids that an indexed PNG of 8 bits shows, without 0.

    Raises:
        _Fault: It is no such PNG, or damaged, or of another size, or black.
    """
    found, depth, colour = _header(data)
    if (depth, colour) != (8, "indexed"):
        reason = f"found a PNG of {depth} bits, {colour}; expected 8 bits, indexed"
        raise _Fault(ProblemKind.NOT_INDEXED, reason)
    if found != size:
        reason = f"found {found[1]}x{found[0]}, expected {size[1]}x{size[0]} (width x height)"
        raise _Fault(ProblemKind.WRONG_SIZE, reason)
    _require_whole(data)
    try:
        labels, colours = read_indices(data, ""), read_colours(data, "")
    except MaskError as error:
        raise _Fault(ProblemKind.UNREADABLE, str(error).splitlines()[1].strip()) from error
    ids = [i for i in np.flatnonzero(np.bincount(labels.ravel())).tolist() if i > 0]
    if ids and 3 * ids[-1] + 3 > len(colours):
        reason = f"found {len(colours) // 3} colours, but a pixel with index {ids[-1]}"
        raise _Fault(ProblemKind.WRONG_PALETTE, reason)
    if ids and not any(any(colours[3 * i : 3 * i + 3]) for i in ids):
        raise _Fault(ProblemKind.WRONG_PALETTE, "every object is black")
    return ids


def _header(data: bytes) -> tuple[tuple[int, int], int, str]:
    """(H, W), bits and colour type of a PNG."""
    if len(data) < 33 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise _Fault(ProblemKind.UNREADABLE, "no PNG")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    return (height, width), depth, _COLOUR_TYPES.get(colour, f"colour type {colour}")


def _require_whole(data: bytes) -> None:
    """Refuse a PNG whose sums are wrong or whose end is missing, which some readers forgive and some do not."""
    begin, name = 8, b""
    while name != b"IEND":
        if begin + 12 > len(data):
            raise _Fault(ProblemKind.UNREADABLE, "cut off")
        (size,) = struct.unpack_from(">I", data, begin)
        end = begin + 12 + size
        name = data[begin + 4 : begin + 8]
        if end <= len(data) and zlib.crc32(data[begin + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise _Fault(ProblemKind.UNREADABLE, "damaged: a check sum is wrong")
        begin = end


def _missing(sequences: Iterable[_Sequence], found: Collection[str]) -> Iterator[Problem]:
    for sequence in sequences:
        missing = [frame for frame in sequence.frames if sequence.member(frame) not in found]
        if len(missing) == len(sequence.frames):
            reason = f"none of its {len(missing)} masks is there"
            yield _problem(ProblemKind.MISSING_SEQUENCE, sequence.name, None, reason)
        else:
            for frame in missing:
                yield _problem(ProblemKind.MISSING_FRAME, sequence.name, frame, "no mask of it is there")


def _notes(sequences: Iterable[_Sequence], shown: _Shown, further: int) -> tuple[str, ...]:
    absent = [
        f"{s.name} {i}" for s in sequences if s.annotations for i in s.objects if (s.name, i) not in shown.objects
    ]
    notes = []
    if further:
        notes.append(f"masks of frames that are not asked for, which `submission pack` leaves out: {further}")
    if shown.early:
        where = " ".join(shown.early[0])
        notes.append(f"masks that show an object before it first appears: {len(shown.early)}, such as {where}")
    if absent:
        notes.append(f"objects that no mask shows: {_listing(absent)}")
    return tuple(notes)


def _listing(names: Collection[str]) -> str:
    """The first few of some names."""
    if not names:
        return "no file"
    return ", ".join(sorted(names)[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")


# Checking the results of YouTube-VIS


def _inspect_results(
    file: Path, videos: Mapping[int, _Video], categories: Collection[int]
) -> tuple[Submission, list[Problem]]:
    """Sum up a zip of results, and find all that is wrong with it."""
    server = _SERVERS["youtube_vis"]
    problems: list[Problem] = []
    results: list[Any] = []
    try:
        results = _parsed(_only_member(file, server, problems))
    except _Fault as fault:
        problems.append(_problem(fault.kind, _ARCHIVE, None, fault.reason))
    for number, result in enumerate(results, start=1):
        try:
            problems += _result_problems(f"result {number}", result, videos, categories)
        except _Fault as fault:
            problems.append(_problem(fault.kind, f"result {number}", None, fault.reason))
    if problems:
        results = []  # not worth summing up
    per_video = Counter(result["video_id"] for result in results)
    silent = [video.name for i, video in videos.items() if i not in per_video]
    notes = [f"most results of a video: {max(per_video.values(), default=0)}; the server's limit is not known"]
    if silent:
        notes.append(f"videos without a result, of {len(videos)}: {_listing(silent)}")
    submission = Submission(
        file=file,
        benchmark="youtube_vis",
        sequences=len(per_video),
        frames=sum(segmentation is not None for result in results for segmentation in result["segmentations"]),
        objects=len(results),
        size=file.stat().st_size,
        expects=server.expects,
        unverified=server.unverified,
        notes=tuple(notes),
    )
    return submission, problems


def _only_member(file: Path, server: _Server, problems: list[Problem]) -> bytes:
    content = None
    strange = []
    for name, read in _members(file, server, problems):
        if name == _RESULTS:
            content = read(_LARGEST_JSON)
        else:
            strange.append(name)
    if content is None:
        raise _Fault(ProblemKind.WRONG_LAYOUT, f"{_listing(strange)} in place of {_RESULTS}")
    problems += _unexpected(strange, server, ())[0]
    return content


def _parsed(content: bytes) -> list[Any]:
    try:
        results = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _Fault(ProblemKind.UNREADABLE, f"{_RESULTS} is no JSON: {error}") from error
    if not isinstance(results, list) or not results:
        found = "an empty list" if results == [] else f"a {type(results).__name__}"
        raise _Fault(ProblemKind.MALFORMED, f"{_RESULTS} holds {found}, expected a list of results")
    return results


def _result_problems(
    name: str, result: Any, videos: Mapping[int, _Video], categories: Collection[int]
) -> Iterator[Problem]:
    """All that is wrong with one result.

    Raises:
        _Fault: What makes looking further useless.
    """
    keys = ("video_id", "category_id", "score", "segmentations")
    missing = [key for key in keys if not isinstance(result, dict) or key not in result]
    if missing:
        raise _Fault(ProblemKind.MALFORMED, f"without {', '.join(missing)}")
    video_id, category, score, segmentations = (result[key] for key in keys)
    video = videos.get(video_id) if type(video_id) is int else None
    if video is None:
        raise _Fault(ProblemKind.EXTRA_SEQUENCE, f"video_id {video_id!r} is not among the dataset's videos")
    where = f"{video.name}, {name}"
    if type(category) is not int or category not in categories:
        reason = f"category_id {category!r} is not among the dataset's categories"
        yield _problem(ProblemKind.UNKNOWN_CATEGORY, where, None, reason)
    if type(score) not in (int, float) or not math.isfinite(score):
        yield _problem(ProblemKind.MALFORMED, where, None, f"score {score!r} is no finite number")
    if not isinstance(segmentations, list):
        yield _problem(ProblemKind.MALFORMED, where, None, "segmentations is no list")
        return
    if len(segmentations) != video.length:
        reason = f"found {len(segmentations)} segmentations, expected {video.length}"
        yield _problem(ProblemKind.WRONG_LENGTH, where, None, reason)
    for frame, segmentation in enumerate(segmentations):
        if segmentation is not None:
            try:
                _require_mask(segmentation, video.size)
            except _Fault as fault:
                yield _problem(fault.kind, where, f"frame {frame}", fault.reason)


def _require_mask(segmentation: Any, size: list[int]) -> None:
    """Refuse what is not a compressed RLE of (H, W) pixels."""
    found, counts = (segmentation.get(key) if isinstance(segmentation, dict) else None for key in ("size", "counts"))
    if not isinstance(counts, str):
        reason = "expected null or a compressed RLE, whose counts are text (pycocotools.mask.encode)"
        raise _Fault(ProblemKind.MALFORMED, reason)
    if found != size:
        raise _Fault(ProblemKind.WRONG_SIZE, f"found size {found}, expected {size} (height, width)")
    pixels = _run_length_total(counts)
    if pixels != size[0] * size[1]:
        reason = f"counts that tell of {pixels} pixels" if pixels is not None else "counts that are no RLE"
        raise _Fault(ProblemKind.MALFORMED, f"{reason}, expected {size[0] * size[1]}")


def _run_length_total(counts: str) -> int | None:
    """The number of pixels of a compressed RLE; None if it is none.

    pycocotools does not check it: it reads beyond its memory where runs are missing. Each run is written with 5 bits a
    character, the lowest first, bit 5 set where more follow, and from the fourth run on as the difference to the run
    before the last.
    """
    codes = np.frombuffer(counts.encode(errors="replace"), np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > 6:  # more than 30 bits
        return None
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)  # the highest bit is the sign
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return None if runs.min() < 0 else int(runs.sum())
