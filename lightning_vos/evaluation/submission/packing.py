"""Packing results for a server, and checking what was packed before anybody sees the file."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import ConfigError, MaskError
from lightning_vos.evaluation.submission.archives import write_tarball, write_zip
from lightning_vos.evaluation.submission.checking import refuse_problems
from lightning_vos.evaluation.submission.expected import ExpectedSequence, expected_results, expected_sequences
from lightning_vos.evaluation.submission.masks import MASK_KIND, Progress, inspect_masks, unexpected
from lightning_vos.evaluation.submission.results import LARGEST_JSON, inspect_results
from lightning_vos.evaluation.submission.servers import RESULTS, Benchmark, Submission, server_of
from lightning_vos.io.masks import VOC_PALETTE, read_palette
from lightning_vos.io.png import read_colours, read_header, read_indices
from lightning_vos.io.writing import written_beside


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
    server = server_of(benchmark)
    if output.is_dir() or not output.name.lower().endswith(server.suffixes):
        raise ConfigError(
            f"The submission cannot be written to {output}\n"
            f"  found {'a folder' if output.is_dir() else 'another kind of file'}, expected a file named"
            f" *{' or *'.join(server.suffixes)}"
        )
    refusal = f"{results} cannot be submitted; nothing was written"
    if benchmark == "youtube_vis":
        expected = expected_results(dataset, split)
        content = _result_file(results)
        with written_beside(output) as temporary:
            write_zip(temporary, [(RESULTS, content)], deflated=True)
            submission, problems = inspect_results(temporary, expected)
            refuse_problems(refusal, problems)
        return replace(submission, file=output)
    sequences = expected_sequences(dataset, benchmark, split)
    wanted = {sequence.member(frame) for sequence in sequences for frame in sequence.frames}
    there = _masks_in(results, server.folder, "*.png" if benchmark == "voc" else "*/*.png", wanted)
    problems, left_out = unexpected(there.keys() - wanted, server, sequences)
    members = _repacked(sorted((name, there[name]) for name in there.keys() & wanted), _palette(sequences), progress)
    with written_beside(output) as temporary:
        if server.tarball:
            write_tarball(temporary, members)
        else:
            write_zip(temporary, members, deflated=False)
        submission, found = inspect_masks(temporary, benchmark, sequences, progress)
        refuse_problems(refusal, [*problems, *found])
    notes = [f"masks left out, of frames that are not asked for: {left_out}"] if left_out else []
    return replace(submission, file=output, notes=(*notes, *submission.notes))


def _masks_in(results: Path, folder: str, pattern: str, wanted: Collection[str]) -> dict[str, Path]:
    """The masks of a folder of results, by the names that they have in the archive."""
    root = results / "masks" if (results / "masks").is_dir() else results
    paths = [path for path in root.glob(pattern) if not path.name.startswith(".")]
    there = {folder + path.relative_to(root).as_posix(): path for path in paths}
    if not there.keys() & wanted:
        found = f"{len(there)} masks such as {min(paths).relative_to(root)}" if paths else "no masks"
        raise ConfigError(
            f"No mask that the server asks for is in {root}\n"
            f"  found {found if root.is_dir() else 'no such folder'}\n"
            f"  expected {len(wanted)} masks such as {min(wanted).removeprefix(folder)}\n"
            "Name the folder of the masks, or that of the run that holds `masks`; or name another dataset or split.\n"
            "A recipe may test on another list: `predict` with --data.test_split NAME writes the masks of this one."
        )
    return there


def _result_file(results: Path) -> bytes:
    file = results / RESULTS if results.is_dir() else results
    if not file.is_file():
        raise ConfigError(f"No results: {file}\n  expected the JSON of the results, as the evaluation takes it.")
    if file.stat().st_size > LARGEST_JSON:
        raise ConfigError(f"{file} is larger than results can be\n  found {file.stat().st_size} bytes")
    return file.read_bytes()


def _palette(sequences: Iterable[ExpectedSequence]) -> bytes:
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
            if read_header(data, "").kind != MASK_KIND or read_colours(data, "") != palette:
                data = _encoded(read_indices(data, ""), palette)
        except MaskError:
            pass
        yield name, data


def _encoded(labels: NDArray[np.uint8], palette: bytes) -> bytes:
    from PIL import Image  # for writing alone

    image = Image.fromarray(labels)
    image.putpalette(palette)
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()
