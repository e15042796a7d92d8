"""Masks as people hand them in: `<sequence>/<frame>.png` in a folder or a zip, perhaps in a folder of a known name."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from lightning_vos.errors import DatasetNotFoundError, MaskError

# Where the sequences lie: in a run of ours, in DAVIS, in YouTube-VOS, LVOS and their submissions, or right there.
LAYOUTS = ("masks", "Annotations/480p", "Annotations", "")

_LARGEST_FILE = 2**28  # bytes that a member of a zip may claim; a 4K mask has a thousandth of it


@dataclass(frozen=True)
class MaskSequence:
    """The masks of one sequence.

    Attributes:
        source: The folder of the sequence, or the zip that holds it.
        frames: Frame name -> name of the file in the folder, or of the member in the zip; in order of the frames.
    """

    source: Path
    frames: Mapping[str, str]

    def read(self, frame: str) -> bytes:
        """The content of the PNG of a frame.

        Raises:
            MaskError: It cannot be read.
        """
        name = self.frames[frame]
        try:
            if self.source.is_dir():
                return (self.source / name).read_bytes()
            archive = open_zip(self.source)
            if archive.getinfo(name).file_size > _LARGEST_FILE:
                raise ValueError(f"a member of {archive.getinfo(name).file_size} bytes")
            return archive.read(name)
        # The last three: a member that is encrypted, damaged, or packed in a way that Python does not know.
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise MaskError(f"Mask that cannot be read: {self.where(frame)}\n  found {error}") from error

    def where(self, frame: str) -> str:
        """The place of a frame's PNG, for messages."""
        return f"{self.source}/{self.frames[frame]}"


def find_sequences(path: Path, layouts: Sequence[str] = LAYOUTS) -> dict[str, MaskSequence]:
    """Find the sequences of masks in a folder or a zip.

    Args:
        path: A folder or a zip, of the sequences themselves or of what holds them, as `layouts` name it, or in one
            folder of any name.
        layouts: Folders in which to look, the first that holds a sequence is taken; "" is `path` itself.

    Returns:
        Sequence name -> its masks, in order of the names.

    Raises:
        DatasetNotFoundError: There is no such path, or no sequence in it.
    """
    if not path.exists():
        raise DatasetNotFoundError(
            f"No such folder or zip: {path.absolute()}\n  expected a folder or a zip of <sequence>/<frame>.png"
        )
    folders = _folders_of_zip(path) if path.is_file() else None
    for layout in layouts:
        found = _sequences_below(path, layout, folders)
        if found:
            return found
    below = _children(path, folders)
    if len(below) == 1:  # what some programs wrap around everything they pack
        for layout in layouts:
            found = _sequences_below(path, str(PurePosixPath(below[0], layout)), folders)
            if found:
                return found
    raise DatasetNotFoundError(
        f"No masks in {path}\n"
        f"  found {_contents(path, below)}\n"
        f"  expected <sequence>/<frame>.png there, or in one of {', '.join(name for name in layouts if name)}\n"
        "Name the folder (or zip) that holds the folders of the sequences."
    )


def _contents(path: Path, below: Sequence[str]) -> str:
    """What lies where masks were looked for, and what it may be."""
    if path.is_dir() and any(_is_mask(child.name) for child in path.iterdir()):
        return "the masks themselves: this is the folder of one sequence, its parent is wanted"
    runs = [name for name in below if (path / name / "masks").is_dir()]
    if runs:
        return f"the folders of several runs: name one of {', '.join(runs[:6])}"
    found = ", ".join(below[:6]) + (", ..." if len(below) > 6 else "")
    if path.is_dir() and any(any((path / name).glob("*.jp*g")) for name in below[:1]):
        return f"{found}, which hold JPEGs: masks are PNGs"
    return found or "no folder"


def _sequences_below(path: Path, layout: str, folders: dict[str, list[str]] | None) -> dict[str, MaskSequence]:
    found: dict[str, MaskSequence] = {}
    if folders is not None:
        for folder, members in folders.items():
            if folder != "." and str(PurePosixPath(folder).parent) == (layout or "."):
                found[PurePosixPath(folder).name] = _sequence(path, members)
    elif (path / layout).is_dir():
        for folder_ in sorted((path / layout).iterdir()):
            if folder_.is_dir() and folder_.name[0] != ".":
                names = [file.name for file in folder_.iterdir() if _is_mask(file.name)]
                if names:
                    found[folder_.name] = _sequence(folder_, names)
    return dict(sorted(found.items()))


def _sequence(source: Path, names: Sequence[str]) -> MaskSequence:
    stems = {PurePosixPath(name.replace("\\", "/")).stem: name for name in names}
    return MaskSequence(source, dict(sorted(stems.items())))


def _is_mask(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(".png")


def _children(path: Path, folders: dict[str, list[str]] | None) -> list[str]:
    if folders is not None:
        return sorted({PurePosixPath(folder).parts[0] for folder in folders if folder != "."})
    return sorted(child.name for child in path.iterdir() if child.is_dir() and child.name[0] != ".")


def _folders_of_zip(path: Path) -> dict[str, list[str]]:
    """Folder -> the names of the PNGs in it."""
    folders: dict[str, list[str]] = {}
    for name in open_zip(path).namelist():
        member = PurePosixPath(name.replace("\\", "/"))  # as some programs for Windows write it
        # macOS adds its own shadow of every file.
        hidden = any(part.startswith((".", "__MACOSX")) for part in member.parts[:-1])
        if not name.endswith("/") and _is_mask(member.name) and not hidden:
            folders.setdefault(str(member.parent), []).append(name)
    return folders


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip, which stays open: to list its members anew for each of them would cost more than to read them.

    Raises:
        DatasetNotFoundError: It cannot be read.
    """
    return _opened(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: Path, written: int) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetNotFoundError(
            f"{path} is no zip that can be read: {error}\n"
            "  expected a folder or a zip of <sequence>/<frame>.png; an interrupted download leaves such files."
        ) from error
