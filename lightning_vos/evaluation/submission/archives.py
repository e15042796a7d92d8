"""Zips and gzipped tarballs: written so that the same content gives the same bytes, read without trusting them.

No member is written to disk, and none is read beyond the size that it can have.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lightning_vos.evaluation.problems import Problem, ProblemKind
from lightning_vos.evaluation.submission.faults import ARCHIVE, Fault, problem

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can name
_LARGEST_READ = 2**28  # bytes that are taken from a tarball at once
_LARGEST_TAIL = 2**20  # bytes that may follow the end of a tarball, which is padded to a multiple of 10 KiB
# What damaged archives make the libraries raise.
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: Its path in the archive, as it is written there.
        read: Gives the content, which may have so many bytes; raises `Fault`.
    """

    name: str
    read: Callable[[int], bytes]


def write_zip(file: Path, members: Iterable[tuple[str, bytes]], *, deflated: bool) -> None:
    """Write names and their content; deflated, or stored as they are."""
    compression = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type, info.create_system, info.external_attr = compression, 3, 0o100644 << 16
            archive.writestr(info, data)


def write_tarball(file: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write names and their content, gzipped."""
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


def read_members(file: Path, *, tarball: bool, problems: list[Problem]) -> Iterator[Member]:
    """Go through the files of an archive, each name once; a name that is there again is added to `problems`.

    Args:
        file: The archive.
        tarball: Whether it should be a gzipped tarball, not a zip.
        problems: Where to add to.

    Raises:
        Fault: The archive itself is damaged.
    """
    seen: set[str] = set()
    try:
        for member in _tarball_members(file) if tarball else _zip_members(file):
            if member.name in seen:
                problems.append(problem(ProblemKind.WRONG_LAYOUT, ARCHIVE, member.name, "there more than once"))
                continue
            seen.add(member.name)
            yield member
    except _DAMAGE as error:
        raise _damaged(f"no {'gzipped tarball' if tarball else 'zip'}, or damaged", error) from error


def stranger(name: str) -> Problem:
    """What is wrong with a member whose place in the archive is no place for it."""
    outside = name.startswith("/") or "\\" in name or ".." in name.split("/")
    reason = "a name that leads out of the folder" if outside else "does not belong into the archive"
    return problem(ProblemKind.WRONG_LAYOUT, ARCHIVE, name, reason)


def _zip_members(file: Path) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield Member(info.filename, partial(_read_zipped, archive, info))


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    if info.flag_bits & 1:
        raise Fault(ProblemKind.UNREADABLE, "encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Fault(ProblemKind.UNREADABLE, "compressed by another method than deflate")
    _require_size(info.file_size, most)
    try:
        with archive.open(info) as member:
            return member.read(most + 1)
    except _DAMAGE as error:
        raise _damaged("damaged in the archive", error) from error


class _BoundedGzip(gzip.GzipFile):
    """Refuses to unpack much at once, which the headers of a tarball could ask for."""

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes."""
        if size is None or not 0 <= size <= _LARGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _tarball_members(file: Path) -> Iterator[Member]:
    with _BoundedGzip(file, "rb") as stream:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for info in archive:
                if info.size > _LARGEST_READ:  # passing over it would take long
                    raise tarfile.ReadError(f"{info.name} of {info.size} bytes")
                if not info.isdir():
                    yield Member(info.name.removeprefix("./"), partial(_read_tarred, archive, info))
        if len(stream.read(_LARGEST_TAIL)) == _LARGEST_TAIL:  # reading to the end checks the sum as well
            raise tarfile.ReadError("more data after the end")


def _read_tarred(archive: tarfile.TarFile, info: tarfile.TarInfo, most: int) -> bytes:
    member = archive.extractfile(info) if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else None
    if member is None:
        raise Fault(ProblemKind.UNREADABLE, "a link or the like in place of a file")
    _require_size(info.size, most)
    try:
        return member.read()
    except _DAMAGE as error:
        raise _damaged("damaged in the archive", error) from error


def _require_size(size: int, most: int) -> None:
    if size > most:
        raise Fault(ProblemKind.UNREADABLE, f"of {size} bytes, where at most {most} are possible")


def _damaged(what: str, error: Exception) -> Fault:
    return Fault(ProblemKind.UNREADABLE, f"{what}: {str(error) or type(error).__name__}")
