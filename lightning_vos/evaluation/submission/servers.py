"""What the server of each benchmark expects, and what is known of a file for it; nothing here asks a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.problems import ScoringError

Benchmark = Literal["davis2017_test_dev", "youtube_vos", "lvos", "youtube_vis", "voc"]

RESULTS = "results.json"
"""The one member of a submission to YouTube-VIS."""

_VOC_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls/"


class SubmissionError(ScoringError):
    """Results, or a packed file, that the server would refuse; `problems` holds everything that was found."""


class Server(NamedTuple):
    """What a server expects.

    Attributes:
        expects: In a sentence.
        unverified: What could not be checked without the server.
        folder: Where the folders of the sequences (`voc`: the masks) lie in the archive; "" is its top, else it ends
            with a slash.
        tarball: Whether it takes a gzipped tarball, not a zip.
        passes_over_frames: Whether masks of frames that are not asked for are left out when packing.
    """

    expects: str
    unverified: str
    folder: str = ""
    tarball: bool = False
    passes_over_frames: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """How the name of a file for it may end."""
        return (".tar.gz", ".tgz") if self.tarball else (".zip",)


SERVERS: Mapping[str, Server] = {
    "davis2017_test_dev": Server(
        "a zip with a folder for each sequence at its top level, at least two; a mask of every frame at 480p",
        "limits on the size of the file and the number of uploads",
    ),
    "youtube_vos": Server(
        "a zip with Annotations/<video>/<frame>.png for the frames that meta.json lists, at their original size",
        "limits on uploads; whether the server takes masks of further frames",
        folder="Annotations/",
        passes_over_frames=True,
    ),
    "lvos": Server(
        "a zip with Annotations/<video>/<frame>.png for the frames of the meta file's ranges, at their original size",
        "limits on uploads; whether the server takes masks of further frames",
        folder="Annotations/",
        passes_over_frames=True,
    ),
    "youtube_vis": Server(
        f"a zip with {RESULTS} at its top level; one compressed RLE, or null, for each frame of a result's video",
        "limits on uploads and on results per video; the evaluation counts 100 per video and category",
    ),
    "voc": Server(
        f"a gzipped tarball with {_VOC_FOLDER}<image>.png in VOC's palette, 0 to 20, at the image's size",
        "limits on the size of the file and the number of uploads",
        folder=_VOC_FOLDER,
        tarball=True,
    ),
}


def server_of(benchmark: str) -> Server:
    """The server of a benchmark.

    Raises:
        ConfigError: There is no such benchmark.
    """
    if benchmark not in SERVERS:
        raise ConfigError(f"No server of {benchmark!r} is known: expected one of {', '.join(SERVERS)}.")
    return SERVERS[benchmark]


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
        notes: What is legal, yet worth knowing before the upload.
    """

    file: Path
    benchmark: Benchmark
    sequences: int
    frames: int
    objects: int
    size: int
    notes: tuple[str, ...] = ()

    @property
    def held(self) -> str:
        """For example "2 sequences, 35 frames, 3 objects"."""
        units = {"voc": ("lists", "images", "classes"), "youtube_vis": ("videos", "masks", "results")}
        names = units.get(self.benchmark, ("sequences", "frames", "objects"))
        counts = zip((self.sequences, self.frames, self.objects), names, strict=True)
        return ", ".join(f"{count} {name[:-1] if count == 1 and name != 'classes' else name}" for count, name in counts)

    @property
    def expects(self) -> str:
        """What the server expects, which the file was checked for."""
        return SERVERS[self.benchmark].expects

    @property
    def unverified(self) -> str:
        """What could not be checked without the server."""
        return SERVERS[self.benchmark].unverified
