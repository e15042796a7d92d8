"""Checking an archive of masks: every mask that is asked for and nothing else, each as the server can use it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from lightning_vos.errors import MaskError
from lightning_vos.evaluation.meta import is_plain_name
from lightning_vos.evaluation.problems import Problem, ProblemKind
from lightning_vos.evaluation.submission.archives import read_members, stranger
from lightning_vos.evaluation.submission.expected import ExpectedSequence
from lightning_vos.evaluation.submission.faults import ARCHIVE, Fault, listing, problem
from lightning_vos.evaluation.submission.servers import SERVERS, Benchmark, Server, Submission
from lightning_vos.io.png import object_ids, read_colours, read_header, read_indices, require_whole

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many masks are done, and of how many."""

MASK_KIND = "8 bits, indexed"
"""The kind of PNG that every server expects."""


def inspect_masks(
    file: Path, benchmark: Benchmark, sequences: Sequence[ExpectedSequence], progress: Progress | None
) -> tuple[Submission, list[Problem]]:
    """Sum up an archive of masks, and find all that is wrong with it."""
    server = SERVERS[benchmark]
    wanted = {sequence.member(frame): (sequence, frame) for sequence in sequences for frame in sequence.frames}
    problems: list[Problem] = []
    strange: list[str] = []
    found: set[str] = set()
    objects: set[tuple[str, int]] = set()
    early: list[str] = []  # masks with an object before its first appearance
    further = 0
    try:
        for name, read in read_members(file, tarball=server.tarball, problems=problems):
            if name not in wanted:
                strange.append(name)
                continue
            found.add(name)
            if progress:
                progress("checking", len(found), len(wanted))
            sequence, frame = wanted[name]
            try:
                ids = _shown(sequence, frame, read)
            except Fault as fault:
                problems.append(fault.at(sequence.name, frame))
                continue
            objects.update((sequence.name, object_id) for object_id in ids)
            if any(frame < sequence.objects[object_id] for object_id in ids):
                early.append(f"{sequence.name} {frame}")
    except Fault as fault:
        problems.append(fault.at(ARCHIVE))
    else:
        if found:
            more, further = unexpected(strange, server, sequences)
            problems += [*more, *_missing(sequences, found)]
        else:
            reason = f"{listing(strange)} in place of {min(wanted)}"
            problems.append(problem(ProblemKind.WRONG_LAYOUT, ARCHIVE, None, reason))
        if found and benchmark == "davis2017_test_dev" and len(sequences) < 2:
            reason = "one folder at the top level, which the server takes for a wrapping one; it expects two or more"
            problems.append(problem(ProblemKind.WRONG_LAYOUT, ARCHIVE, None, reason))
    submission = Submission(
        file=file,
        benchmark=benchmark,
        sequences=len({wanted[name][0].name for name in found}),
        frames=len(found),
        objects=len(objects),
        size=file.stat().st_size,
        notes=tuple(_notes(sequences, objects, early, further)),
    )
    return submission, problems


def unexpected(
    names: Iterable[str], server: Server, sequences: Iterable[ExpectedSequence]
) -> tuple[list[Problem], int]:
    """Judge the members that nobody asked for.

    Args:
        names: Their names in the archive.
        server: Whose archive it is.
        sequences: What is expected.

    Returns:
        What is wrong with them, and the number of those that are mere masks of further frames.
    """
    folders = {sequence.folder: sequence.name for sequence in sequences}
    problems: dict[str, Problem] = {}
    further = 0
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        frame = file.removesuffix(".png")
        sequence = folder.removeprefix(server.folder)
        if frame == file:
            problems[name] = stranger(name)
        elif folder in folders and server.passes_over_frames:
            further += 1
        elif folder in folders:
            reason = "not among the frames of the dataset"
            problems[name] = problem(ProblemKind.EXTRA_FRAME, folders[folder], frame, reason)
        elif folder.startswith(server.folder) and is_plain_name(sequence):
            problems[folder] = problem(ProblemKind.EXTRA_SEQUENCE, sequence, None, "not on the dataset's list")
        else:
            problems[name] = stranger(name)
    return list(problems.values()), further


def _shown(sequence: ExpectedSequence, frame: str, read: Callable[[int], bytes]) -> list[int]:
    """The objects that a mask shows.

    Raises:
        Fault: What is wrong with it.
    """
    # Its import loads Pillow, which scoring does without.
    from lightning_vos.io.frames import frame_size

    size = frame_size(sequence.frames[frame])
    # Generous: indices need no more than their pixels and a palette.
    ids = _ids(read(2 * size[0] * size[1] + 2**16), size)
    strange = [object_id for object_id in ids if object_id not in sequence.objects]
    if strange:
        allowed = [0, *sorted(sequence.objects)]
        expected = (
            f"0 to {allowed[-1]}" if len(allowed) > 6 and allowed[-1] < len(allowed) else ", ".join(map(str, allowed))
        )
        raise Fault(ProblemKind.EXTRA_OBJECT, f"found {', '.join(map(str, strange))}, expected {expected}")
    return ids


def _ids(data: bytes, size: tuple[int, int]) -> list[int]:
    """The ids that a mask shows, without 0.

    Raises:
        Fault: It is no indexed PNG of 8 bits, or damaged, or of another size, or black.
    """
    try:
        header = read_header(data, "")
        if header.kind != MASK_KIND:
            raise Fault(ProblemKind.NOT_INDEXED, f"found a PNG of {header.kind}; expected {MASK_KIND}")
        if (header.height, header.width) != size:
            reason = f"found {header.width}x{header.height}, expected {size[1]}x{size[0]} (width x height)"
            raise Fault(ProblemKind.WRONG_SIZE, reason)
        require_whole(data, "")
        labels, colours = read_indices(data, ""), read_colours(data, "")
    except MaskError as error:
        raise Fault(ProblemKind.UNREADABLE, str(error).splitlines()[1].strip()) from error
    ids = object_ids(labels)
    if ids and 3 * ids[-1] + 3 > len(colours):
        reason = f"found {len(colours) // 3} colours, but a pixel with index {ids[-1]}"
        raise Fault(ProblemKind.WRONG_PALETTE, reason)
    if ids and not any(any(colours[3 * i : 3 * i + 3]) for i in ids):
        raise Fault(ProblemKind.WRONG_PALETTE, "every object is black")
    return ids


def _missing(sequences: Iterable[ExpectedSequence], found: Collection[str]) -> Iterator[Problem]:
    for sequence in sequences:
        missing = [frame for frame in sequence.frames if sequence.member(frame) not in found]
        if len(missing) == len(sequence.frames):
            reason = f"none of its {len(missing)} masks is there"
            yield problem(ProblemKind.MISSING_SEQUENCE, sequence.name, None, reason)
        else:
            for frame in missing:
                yield problem(ProblemKind.MISSING_FRAME, sequence.name, frame, "no mask of it is there")


def _notes(
    sequences: Iterable[ExpectedSequence], objects: Collection[tuple[str, int]], early: Sequence[str], further: int
) -> Iterator[str]:
    if further:
        yield f"masks of frames that are not asked for, which `submission pack` leaves out: {further}"
    if early:
        yield f"masks that show an object before it first appears: {len(early)}, such as {early[0]}"
    absent = [f"{s.name} {i}" for s in sequences if s.annotations for i in s.objects if (s.name, i) not in objects]
    if absent:
        yield f"objects that no mask shows: {listing(absent)}"
