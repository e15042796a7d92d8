"""`lightning_vos report figure`: chosen frames of a sequence, truth and runs below each other, as papers show them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_SHOWN = 6  # names in a message


def figure(runs: Sequence[Path], output: Path, sequence: str, frames: str) -> None:
    """Draw frames of a sequence: a row of truth and one for each run, failures framed.

    Args:
        runs: Folders that `lightning_vos test` left, of videos whose objects are followed or instances found.
        output: The picture to write.
        sequence: Its name.
        frames: Their numbers from 0 on, such as `0,20,40`.

    Raises:
        UserError: A folder holds no results, the data is not there any more, or it has no such sequence or frame.
    """
    from lightning_vos.io.plots import check_figure_path, write_figure

    check_figure_path(output)
    numbers = _numbers(frames)
    from rich.console import Console

    from lightning_vos.commands.report_data import open_data
    from lightning_vos.figures.qualitative import FigureRow, qualitative_figure
    from lightning_vos.figures.run_results import read_runs

    read = read_runs(runs)
    folders = [run.folder for run in read]
    scenes = _scenes(open_data(read[0]), sequence, numbers, folders)
    for number, folder in enumerate(folders):
        if all(scene.ours[number] is None for scene in scenes):
            raise ConfigError(
                f"{folder} holds no masks of {sequence} in these frames.\n"
                f"  expected {folder / 'masks' / sequence}/<frame>.png or results.json, as `lightning_vos test` leaves"
            )
    rows = [FigureRow(run.name, run.measures.get("test/FPS")) for run in read]
    write_figure(output, qualitative_figure(dict(zip(numbers, scenes, strict=True)), rows))
    Console().print(f"The figure is {output}", highlight=False, soft_wrap=True)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--frames {text} is no list of frames.\n  expected numbers from 0 on, such as 0,20,40")
    return list(dict.fromkeys(int(part) for part in parts))


def _scenes(data: Any, sequence: str, numbers: Sequence[int], folders: Sequence[Path]) -> list[Any]:
    """The frames with truth and what runs made of them."""
    from lightning_vos.figures.scenes import read_results_by_video, read_video_tracks, video_scene

    if hasattr(data, "sequences"):
        videos = {files.name: files for files in data.sequences("test")}
        files = _named(videos, sequence)
        _require_frames(numbers, len(files.frames), sequence)
        return [video_scene(files, number, folders) for number in numbers]
    if not hasattr(data, "videos"):
        raise ConfigError(
            f"{type(data).__name__} has no videos.\n  report figure shows frames of videos; `lightning_vos report RUN` "
            "shows images on its page"
        )
    samples = [files.load(number) for number, files in enumerate(data.videos("test"))]
    sample = _named({sample.video.name: sample for sample in samples}, sequence)
    _require_frames(numbers, len(sample.video.frames), sequence)
    if sample.truth is None:
        raise ConfigError(
            f"{sequence} has no public truth to show.\n  name a run that was tested on a split with truth"
        )
    files = [folder / "results.json" for folder in folders]
    tracks = read_video_tracks(sample, [read_results_by_video(path) if path.is_file() else None for path in files])
    pictures = [(sample.video.frames[number].permute(1, 2, 0) * 255).round().byte().numpy() for number in numbers]
    return [tracks.scene(pixels, number) for pixels, number in zip(pictures, numbers, strict=True)]


def _named(videos: dict[str, Any], sequence: str) -> Any:
    if sequence not in videos:
        names = ", ".join(list(videos)[:_SHOWN]) + (", ..." if len(videos) > _SHOWN else "")
        raise ConfigError(f"--sequence {sequence} is none of the {len(videos)} that were tested: {names}")
    return videos[sequence]


def _require_frames(numbers: Sequence[int], count: int, sequence: str) -> None:
    if outside := [number for number in numbers if number >= count]:
        raise ConfigError(f"--frames {outside[0]} is none of {sequence}: expected 0 to {count - 1}.")


def add_parser(kinds: Any) -> argparse.ArgumentParser:
    """Add the verb to those of `report`."""
    parser: argparse.ArgumentParser = kinds.add_parser(
        "figure", help="frames of a sequence: truth and runs, failures framed", allow_abbrev=False
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a folder such as runs/mavos_r50/version_1")
    parser.add_argument("--sequence", required=True, metavar="NAME", help="of the data that the runs were tested on")
    parser.add_argument("--frames", required=True, metavar="K,K,...", help="which, from 0 on, such as 0,20,40")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("figure.png"), metavar="FILE", help=".png or .pdf (figure.png)"
    )
    return parser
