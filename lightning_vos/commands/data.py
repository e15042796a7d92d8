"""`lightning_vos data`: datasets checked, shown, prepared and rendered. All but `show` never import torch."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from datamodules.synthetic_files import StillSettings, SyntheticSettings
from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    from datamodules.checking.drafts import Report
    from datamodules.preparing import Prepared

_SHOWN = 20  # findings on the terminal; the JSON has all
_FILES = 3  # files of a finding
_PLAIN: Any = {"soft_wrap": True, "markup": False, "highlight": False}  # text with paths


class _Videos(NamedTuple):
    """Which videos a layout has, and how a recipe reads them."""

    folder: str
    writer: str  # module and function
    command: str
    train: int = 40
    val: int = 12
    frames: int = 16


_MAVOS = "fit --config configs/mavos_r50.yaml"
_VIDEOS = {
    "davis": _Videos("DAVIS", "synthetic_files.write_davis", _MAVOS),
    "youtube_vos": _Videos(
        "YouTubeVOS",
        "synthetic_layouts.write_synthetic_youtube_vos",
        f"{_MAVOS} --config configs/data/youtube_vos_2019.yaml",
        train=20,
        val=6,
        frames=41,  # every fifth has a mask
    ),
    "lvos": _Videos(
        "LVOS",
        "synthetic_layouts.write_synthetic_lvos",
        f"{_MAVOS} --config configs/data/lvos.yaml",
        train=20,
        val=6,
        frames=40,
    ),
    "long_time_video": _Videos(
        "long_video",
        "synthetic_layouts.write_synthetic_long_time_video",
        "test --config configs/mavos_r50.yaml --config configs/data/long_time_video.yaml",
        train=1,  # it has none
        val=3,
        frames=100,
    ),
    "youtube_vis": _Videos(
        "youtube_vis_2019",
        "synthetic_instances.write_synthetic_youtube_vis",
        "fit --config configs/taformer_demo.yaml --config configs/data/youtube_vis_2019.yaml"
        " --data.train_split holdout_train --data.test_split holdout_val",
    ),
}
_STILLS = {
    "static": ("static", "synthetic_files.write_stills", "fit --config configs/mavos_r50_static.yaml"),
    "coco": ("coco", "synthetic_instances.write_synthetic_coco", f"{_MAVOS} --config configs/data/coco.yaml"),
}
_LABELLED = {
    "voc": "fit --config configs/token_masking_voc.yaml",
    "coco_semantic": "fit --config configs/token_masking_coco.yaml",
    "ade20k": "fit --config configs/token_masking_ade20k.yaml",
    "dfc2020": "fit --config configs/token_masking_dfc2020.yaml",
    "endotect": "fit --config configs/token_masking_endotect.yaml --model.network.classes 4",  # of its 16 folders
    "labelled_images": "fit --config configs/token_masking_voc.yaml --config configs/data/labelled_images.yaml"
    " --model.network.classes 4",
}
_LAYOUTS = (*_VIDEOS, *_STILLS, *_LABELLED)


def demo(directory: Path, layout: str, seed: int) -> None:
    """Write a synthetic dataset in the layout of a real one, to try a recipe without any download.

    Args:
        directory: The folder that will hold the dataset, as a real one would be kept there.
        layout: The dataset whose layout it takes.
        seed: Another seed gives other content.

    Raises:
        ConfigError: There is no such layout, or the folder holds something else.
    """
    settings: Any
    if layout in _VIDEOS:
        kind = _VIDEOS[layout]
        root, writer, command = directory / kind.folder, _function(kind.writer), kind.command
        settings = SyntheticSettings(train=kind.train, val=kind.val, frames=kind.frames, seed=seed)
        content = f"{settings.train} training and {settings.val} validation videos of {settings.frames} frames"
        if layout == "long_time_video":
            content = f"{settings.val} videos of {settings.frames} frames"
    elif layout in _STILLS:
        folder, name, command = _STILLS[layout]
        root, writer = directory / folder, _function(name)
        settings = StillSettings(seed=seed)
        content = f"{settings.images} images with masks"
    elif layout in _LABELLED:
        images = import_module("datamodules.synthetic_images")
        root, writer = directory / images.FOLDERS[layout], images.write_images
        settings, command = images.ImageSettings(layout, seed=seed, **images.SIZES.get(layout, {})), _LABELLED[layout]
        content = f"{settings.train} training and {settings.val} validation images"
    else:
        raise ConfigError(f"No synthetic data set has the layout {layout!r}.\nExpected --layout {', '.join(_LAYOUTS)}.")
    writer(root, settings)
    rendered = f"{root} holds {content}, {settings.height} x {settings.width} pixels. They are synthetic."
    is_default = directory == Path("data") and layout != "labelled_images"  # which are the folder itself
    place = "" if is_default else f" --data.root {shlex.quote(str(directory))}"
    to_do = "To train on them" if command.startswith("fit") else "To test on them"
    _say(f"{rendered}\n{to_do}:\n  lightning_vos {command}{place}")


def _function(name: str) -> Any:
    module, _, function = name.rpartition(".")
    return getattr(import_module(f"datamodules.{module}"), function)


def show(words: Sequence[str], output: Path, count: int) -> None:
    """Draw clips as the network of a recipe would see them, with their masks, on one sheet.

    Args:
        words: The recipe, as `fit` takes it.
        output: The picture to write.
        count: How many clips: the first that training would draw.

    Raises:
        UserError: The recipe or its data cannot be read, or does not give clips.
    """
    import numpy as np

    from lightning_vos.commands.recipe_data import DataCLI
    from lightning_vos.io.overlay import contact_sheet, overlay, write_image
    from lightning_vos.losses.segmentation import IGNORED
    from lightning_vos.structures import Clip, InstanceClip

    if count < 1:
        raise ConfigError(f"--count is {count}; expected at least 1")
    data: Any = DataCLI(words).data
    data.workers, data.batch_size = 0, 1
    rows = []
    for number, clip in enumerate(islice(data.train_dataloader(), count)):
        if isinstance(clip, Clip):
            masks = clip.masks[0].where(clip.masks[0] != IGNORED, 0).numpy()  # what nobody annotated is not painted
        elif isinstance(clip, InstanceClip):
            planes = clip.instances[0].masks.numpy()  # (N, T, H, W)
            masks = np.max(planes * np.arange(1, 1 + len(planes))[:, None, None, None], axis=0, initial=0)
        else:
            raise ConfigError(
                f"{type(data).__name__} gives {type(clip).__name__}, expected clips with masks.\n"
                "Name a recipe that trains on masked videos, such as configs/mavos_r50.yaml."
            )
        frames = np.round(clip.frames[0].numpy().transpose(0, 2, 3, 1) * 255).astype(np.uint8)
        pictures = [overlay(frame, labels) for frame, labels in zip(frames, masks, strict=True)]
        rows.append((f"clip {number}, {masks.max()} objects", pictures))
    write_image(output, contact_sheet(rows))
    height, width = frames.shape[1:3]
    _say(f"{output} shows {count} clips of {len(frames)} frames, {height} x {width} pixels, as training draws them.")


def check(
    root: Path, dataset: str | None, frames: Path | None, json_file: Path | None, workers: int, *, full: bool
) -> int:
    """Say what is wrong with the datasets at a folder.

    Args:
        root: A dataset, or a folder that holds datasets.
        dataset: What it is to be taken for.
        frames: The folder to which the file names of a YouTube-VIS JSON are relative.
        json_file: Where to write everything.
        workers: Processes that share the work.
        full: Decode every file.

    Returns:
        0 where nothing is wrong, 1 otherwise.

    Raises:
        UserError: There is no dataset to check.
    """
    from datamodules import checking

    with _progress("checking") as progress:
        reports = checking.check(root, dataset, frames=frames, full=full, workers=workers, progress=progress)
    # Paths are long; a table that is cut off to 80 columns in a file would lose them.
    console = Console() if Console().is_terminal else Console(width=120)
    for report in reports:
        _print_report(report, console)
    number = sum(len(report.findings) for report in reports)
    looked = "every file was decoded" if full else "headers of all files and first masks were read; --full decodes all"
    _say(f"{number} finding{'' if number == 1 else 's'} ({looked})" if number else f"Nothing is wrong ({looked}).")
    if json_file is not None:
        from lightning_vos.io.writing import written_beside

        content = {"root": root, "full": full, "datasets": [asdict(report) for report in reports]}
        with written_beside(json_file) as temporary:
            temporary.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
        _say(f"Wrote {json_file}")
    return 1 if number else 0


def _print_report(report: Report, console: Console) -> None:
    from rich.table import Column, Table

    headings = ("videos or images", "frames", "masks", "objects")
    columns = [Column(name, justify="right") for name in headings]
    table = Table(
        Column("split", overflow="fold"), *columns, title=f"{report.dataset}: {report.folder}", title_justify="left"
    )
    for part in report.parts:
        table.add_row(
            part.name,
            _of(part.videos, {one.version: one.videos for one in part.official}),
            _of(part.frames, {one.version: one.frames for one in part.official}),
            str(part.masks or "-"),
            _of(part.objects, {one.version: one.objects for one in part.official}),
        )
    console.print(table)
    groups: dict[tuple[str, str, str], list[str]] = {}
    for finding in report.findings:
        groups.setdefault((finding.kind, finding.found, finding.fix), []).append(str(finding.file))
    for (kind, found, fix), files in list(groups.items())[:_SHOWN]:
        more = f", ... ({len(files)} files)" if len(files) > _FILES else ""
        console.print(f"{kind}: {', '.join(files[:_FILES])}{more}", style="yellow", **_PLAIN)
        console.print(f"  found {found}\n  to mend: {fix}", **_PLAIN)
    if len(groups) > _SHOWN:
        console.print(f"... and {len(groups) - _SHOWN} more: --json FILE", **_PLAIN)
    for note in report.notes[:_SHOWN]:
        console.print(f"note: {note}", **_PLAIN)
    if len(report.notes) > _SHOWN:
        console.print(f"note: ... and {len(report.notes) - _SHOWN} more: --json FILE", **_PLAIN)


def _of(count: int | None, official: Mapping[str, int | None]) -> str:
    """A count, and what it is in each version: "3 of 20", "1 of 474 (2018), 507 (2019)"."""
    if count is None:
        return "-"
    stated = ", ".join(f"{number} ({name})" if name else str(number) for name, number in official.items() if number)
    return f"{count} of {stated}" if stated else str(count)


def _say(text: str) -> None:
    Console().print(text, **_PLAIN)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def prepare(words: argparse.Namespace) -> Prepared:
    """Prepare a dataset.

    Args:
        words: The kind, source, target and settings.

    Raises:
        UserError: The source cannot be read, or the target holds other files.
    """
    from datamodules import preparing

    if words.kind == "labels":
        return preparing.write_image_labels(words.source, words.target, classes=words.classes)
    with _progress(words.kind) as progress:
        shared: dict[str, Any] = {"workers": words.workers, "progress": progress}
        if words.kind == "resize":
            return preparing.resize(words.source, words.target, short_side=words.short_side, **shared)
        if words.kind == "first-masks":
            return preparing.write_first_masks(words.source, words.target, **shared)
        return preparing.write_index_masks(words.source, words.target, threshold=words.threshold, **shared)


def main(args: list[str]) -> None:
    """Run `lightning_vos data` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    parser = _parser()
    words, recipe = parser.parse_known_args(args)
    if recipe and words.verb != "show":
        parser.error(f"unrecognized arguments: {' '.join(recipe)}")
    if getattr(words, "workers", None) is not None and words.workers < 1:
        raise ConfigError(f"--workers is {words.workers}; expected 1 or more processes")
    if words.verb == "demo":
        demo(words.directory, words.layout, words.seed)
    elif words.verb == "show":
        show([word for name in words.config for word in ("--config", name)] + recipe, words.output, words.count)
    elif words.verb == "check":
        workers = words.workers or (os.cpu_count() or 1 if words.full else 1)
        sys.exit(check(words.root, words.dataset, words.frames, words.json, workers, full=words.full))
    else:
        done = prepare(words)
        for line in done.lines:
            _say(line)
        kept = f", {done.kept} were there already" if done.kept else ""
        _say(f"{words.target}: {done.written} file{'' if done.written == 1 else 's'} written{kept}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning_vos data", description="Datasets: checked, shown, prepared, rendered.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="check | demo | show | prepare")
    _add_check(verbs.add_parser("check", help="say what is wrong with a dataset", allow_abbrev=False))
    demo_parser = verbs.add_parser("demo", help="write a synthetic dataset to begin with", allow_abbrev=False)
    demo_parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="what will hold the dataset")
    demo_parser.add_argument("--layout", default="davis", help=f"of a real dataset: {', '.join(_LAYOUTS)} (davis)")
    demo_parser.add_argument("--seed", type=int, default=0, help="another seed gives other content (0)")
    show_parser = verbs.add_parser(
        "show",
        help="draw clips as a network sees them",
        description="Draw the first clips that a recipe trains on. Other options are those of fit: --data.root DIR.",
        allow_abbrev=False,
    )
    show_parser.add_argument(
        "-c", "--config", action="append", required=True, metavar="NAME", help="a recipe, then what changes it"
    )
    show_parser.add_argument("--output", type=Path, default=Path("clips.png"), help="the picture (clips.png)")
    show_parser.add_argument("--count", type=int, default=4, help="how many clips (4)")
    _add_prepare(verbs.add_parser("prepare", help="write what recipes expect", allow_abbrev=False))
    return parser


def _add_check(parser: argparse.ArgumentParser) -> None:
    from datamodules.checking import DATASETS

    parser.description = "Say what is wrong with datasets: status 0 nothing, 1 something, 2 no dataset to check."
    parser.add_argument("root", type=Path, metavar="ROOT", help="a dataset, or a folder that holds datasets")
    parser.add_argument("--dataset", choices=DATASETS, help="what it is; recognised by default")
    parser.add_argument("--full", action="store_true", help="decode every file")
    parser.add_argument("--frames", type=Path, metavar="DIR", help="what file_names of YouTube-VIS are relative to")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (1; with --full all cores)")


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="resize | first-masks | index-masks | labels")
    texts = {
        "resize": "a tree of videos with smaller frames, its masks with them",
        "first-masks": "of dense masks the first of each object",
        "index-masks": "of masks of colours, or of 0 and 255, indexed PNGs",
        "labels": "the classes of images as a CSV, from XML, masks or JSON",
    }
    for kind, text in texts.items():
        one = kinds.add_parser(kind, help=text, description=f"Write {text}.", allow_abbrev=False)
        one.add_argument("source", type=Path, metavar="SOURCE", help="what is read")
        one.add_argument("target", type=Path, metavar="TARGET", help="what is written, outside of SOURCE")
        if kind == "resize":
            one.add_argument("--short-side", type=int, default=480, metavar="PIXELS", help="shortest side (480)")
        if kind == "index-masks":
            one.add_argument("--threshold", type=int, metavar="VALUE", help="grey from VALUE on is the object")
        if kind == "labels":
            one.add_argument("--classes", default="voc", help="of masks: voc, coco, ade20k or a file of names (voc)")
        else:
            one.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (cores)")
