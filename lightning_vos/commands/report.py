"""`lightning_vos report`: a page about runs, and the figures of the papers from runs and videos of one's own."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_vos.commands import report_classes, report_figure, report_page
from lightning_vos.commands.inputs import (
    add_device_option,
    add_input_options,
    check_size,
    check_weights,
    choose_device,
    read_inputs,
    read_video,
)
from lightning_vos.errors import ConfigError, MaskError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

_KINDS = ("figure", "trade-off", "dynamic-frame", "attention", "features", "box-queries", "class-attention", "gates")
_COLUMNS = ("test/J&F", "test/FPS", "test/peak_memory_gb")


def trade_off(runs: Sequence[Path], labelled: Sequence[tuple[str, Path]], output: Path) -> None:
    """Draw accuracy against speed, with peak memory as area, of tested runs (MAVOS, Figure 1); prints the table, too.

    Args:
        runs: Folders that `lightning_vos test` left, each called by its recipe.
        labelled: The same with names of their own.
        output: The picture to write.

    Raises:
        ConfigError: if there is no run, two are called alike, or one holds no results of a test.
    """
    from rich.console import Console
    from rich.table import Table

    from lightning_vos.figures.run_results import run_names
    from lightning_vos.io.plots import Bubble, check_figure_path, write_figure
    from lightning_vos.io.plots import trade_off as draw

    check_figure_path(output)
    named = [*zip(run_names(runs), runs, strict=True), *labelled]
    if not named:
        raise ConfigError("Name at least one run, such as runs/mavos_r50/version_0, or --label NAME=RUN.")
    advice = "name each run once, and one of two that are called alike by --label NAME=RUN"
    _refuse_same_names([name for name, _ in named], "runs", advice)
    bubbles = [Bubble(name, *_results(run)) for name, run in named]
    write_figure(output, draw(bubbles))
    table = Table("run", "J&F %", "frames a second", "peak memory GB")
    for bubble in bubbles:
        numbers = (f"{bubble.score:.1f}", f"{bubble.frames_per_second:.1f}", f"{bubble.gigabytes:.2f}")
        table.add_row(bubble.label, *numbers)
    console = Console()
    console.print(table)
    console.print(f"The figure is {output}", highlight=False, soft_wrap=True)


def _results(run: Path) -> tuple[float, float, float]:
    """J&F, frames a second and gigabytes of the last test of a run."""
    path = run / "metrics.csv"
    rows: list[dict[str, str]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if all(row.get(column) for column in _COLUMNS)]
    if not rows:
        found = f"{path} without {_COLUMNS[0]}" if path.is_file() else "no metrics.csv"
        raise ConfigError(
            f"{run} holds no results of a test.\n"
            f"  found {found}; expected a folder that `lightning_vos test` left, such as runs/mavos_r50/version_1\n"
            "  a benchmark without public truth gives no J&F"
        )
    score, speed, memory = (float(rows[-1][column]) for column in _COLUMNS)
    return score, speed, memory


def dynamic_frame(
    video: Path,
    mask: Path,
    output: Path,
    weights: Path | None = None,
    *,
    resize_masks: bool = False,
    size: tuple[int, int] | None = None,
    device: str | None = None,
    layer: int | None = None,
    columns: int = 6,
) -> None:
    """Draw what the reference and the dynamic frame of the memory hold while a video goes on (MAVOS, Figure 3).

    Args:
        video: As `read_inputs`.
        mask: As `read_inputs`.
        output: The picture to write.
        weights: A checkpoint of a run, or a published file.
        resize_masks: As `read_inputs`.
        size: (h, w) that the network works at, instead of the method's own choice.
        device: Where to run, such as cpu, cuda or mps; the best there is where None.
        layer: Whose memory is drawn, from 1; the last where None.
        columns: Frames that are drawn, spread evenly over those at which the memory was updated.

    Raises:
        UserError: if an input is missing, unreadable or does not fit the others, or the memory has no such bank.
    """
    from lightning_vos.io.plots import MemoryColumn, check_figure_path, memory_maps, write_figure

    weights = check_weights("report dynamic-frame", weights, "MAVOS, DeAOT-L or AOT-L")
    check_size(size)
    check_figure_path(output)
    if columns < 1:
        raise ConfigError(f"--columns {columns} draws nothing: expected a number of at least 1.")
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from lightning_vos.callbacks.results import painted
    from lightning_vos.figures.dynamic_frame import BankReader, Thinned
    from lightning_vos.published import load_network
    from lightning_vos.vos.track import Tracker

    frames, names, prompts, palette = read_inputs(video, mask, resize_masks=resize_masks)
    network = load_network(weights).to(choose_device(device))
    tracker, kept = Tracker(network, size), Thinned(columns)
    reader = BankReader(network, size or frames.size, layer)
    number = -1
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
        task = progress.add_task("segment", total=len(names) or None)
        for number, frame in enumerate(frames):
            prediction = tracker.step(frame, prompts.get(number))
            if tracker.memories and reader.is_updated(tracker.memories[0]) and kept.takes_next():
                maps = reader.maps(prediction.labels > 0)
                kept.add(MemoryColumn(number, painted(frame, prediction, palette), *maps))
            progress.advance(task)
    _refuse_masks_outside(prompts, number)
    if not kept.items:
        raise MaskError(f"There is nothing to track: {mask} states no object. Give a mask with an id above 0.")
    title = f"Identity values in the memory of layer {reader.layer}"
    if (held := tracker.memories[0].bank_frames) != 2:
        title += f", which holds {held} frames: the newest is shown as dynamic, the oldest as reference"
    if len(tracker.memories) > 1:
        title += f"; the first {network.capacity} objects"
    write_figure(output, memory_maps(title, kept.spread()))
    Console().print(f"The figure is {output}", highlight=False, soft_wrap=True)


def attention(
    video: Path,
    mask: Path,
    output: Path,
    weights: Path | None = None,
    *,
    resize_masks: bool = False,
    size: tuple[int, int] | None = None,
    device: str | None = None,
    frame: int | None = None,
    object_id: int | None = None,
    layer: int | None = None,
) -> None:
    """Draw where each head of the soft-masked attention looks while an object is described (HODOR, Figure 3).

    Args:
        video: As `read_inputs`.
        mask: As `read_inputs`.
        output: The picture to write.
        weights: A checkpoint of a run, or a published file.
        resize_masks: As `read_inputs`.
        size: (h, w) that the network works at, instead of the method's own choice.
        device: Where to run, such as cpu, cuda or mps; the best there is where None.
        frame: The number of the frame, up to which the video is tracked, from 0; the last where None.
        object_id: Which object; the first that is given where None.
        layer: Of the encoder, from 1; the last where None.

    Raises:
        UserError: if an input is missing, unreadable or does not fit the others, or the network has no such attention.
    """
    from lightning_vos.io.plots import attention_maps, check_figure_path, write_figure

    weights = check_weights("report attention", weights, "HODOR")
    check_size(size)
    check_figure_path(output)
    if frame is not None and frame < 0:
        raise ConfigError(f"--frame {frame} is none: frames are counted from 0.")
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from lightning_vos.callbacks.results import painted
    from lightning_vos.figures.attention import AttentionReader
    from lightning_vos.published import load_network
    from lightning_vos.vos.track import Tracker

    frames, names, prompts, palette = read_inputs(video, mask, resize_masks=resize_masks)
    if names and frame is not None:
        _require_frame(frame, len(names) - 1)
    object_id = _object(object_id, prompts, mask, frame)
    network = load_network(weights).to(choose_device(device))
    reader, tracker = AttentionReader(network, layer), Tracker(network, size)
    number = -1
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
        task = progress.add_task("segment", total=len(names) or None if frame is None else frame + 1)
        for number, picture in enumerate(frames):
            prediction = tracker.step(picture, prompts.get(number))
            progress.advance(task)
            if number == frame:
                break
    if frame is None:
        _refuse_masks_outside(prompts, number)
    else:
        _require_frame(frame, number)
    (memory,) = tracker.memories
    maps = reader.maps(memory, tracker.object_ids.index(object_id), network.canvas.view(frames.size, size))
    title = f"{reader.title}, object {object_id} in frame {number}\nweights: {weights}"
    pixels = (255 * picture.permute(1, 2, 0)).round().byte().numpy()
    write_figure(output, attention_maps(title, pixels, painted(picture, prediction, palette), maps))
    Console().print(f"The figure is {output}", highlight=False, soft_wrap=True)


def _object(wanted: int | None, prompts: Mapping[int, NDArray[np.uint8]], mask: Path, frame: int | None) -> int:
    """The object that is drawn: the one that is wanted, or the first of those that masks give up to a frame."""
    import numpy as np

    given = [np.unique(prompts[number]).tolist() for number in sorted(prompts) if frame is None or number <= frame]
    ids = list(dict.fromkeys(object_id for labels in given for object_id in labels if object_id != 0))
    until = "" if frame is None else f" up to frame {frame}"
    if not ids:
        raise MaskError(f"There is nothing to draw: {mask} states no object{until}. Give a mask with an id above 0.")
    if wanted is None:
        return ids[0]
    if wanted not in ids:
        raise MaskError(f"--object {wanted} is none of those that {mask} states{until}: {', '.join(map(str, ids))}.")
    return wanted


def _require_frame(frame: int, last: int) -> None:
    if frame > last:
        raise ConfigError(f"--frame {frame} is none of the video's: expected 0 to {last}.")


def _refuse_masks_outside(numbers: Iterable[int], last: int) -> None:
    if outside := [number for number in numbers if not 0 <= number <= last]:
        raise MaskError(f"Masks are given for frames {outside}, but the video ends with frame {last}.")


def features(
    video: Path,
    output: Path,
    weights: Sequence[tuple[str, Path]],
    *,
    device: str | None = None,
    frames: int | None = None,
    columns: int = 6,
) -> None:
    """Draw what the encoders of several networks make of a video, one below the other (TAFormer, Figure 5).

    Args:
        video: A folder of frames or a video file, which is seen as one clip.
        output: The picture to write.
        weights: What a network is called, and a checkpoint of a run, or a published file, of TAFormer or SeqFormer.
        device: Where to run, such as cpu, cuda or mps; the best there is where None.
        frames: How many frames of the video are seen, from the first on; all where None.
        columns: Frames that are drawn, spread evenly over those that are seen.

    Raises:
        UserError: if an input is missing or unreadable, weights are of another method, or two are called alike.
    """
    _check_models("report features", weights, output, frames)
    if columns < 1:
        raise ConfigError(f"--columns {columns} draws nothing: expected a number of at least 1.")
    import numpy as np
    from rich.console import Console

    from lightning_vos.figures.taformer import encoder_features, load_models, read_clip
    from lightning_vos.io.plots import feature_maps, write_figure

    source = read_video(video)
    models = load_models(weights, choose_device(device))
    console = Console()
    with console.status("encoding"):
        clips = [read_clip(model, source, frames) for model in models]
        rows = [encoder_features(model, clip) for model, clip in zip(models, clips, strict=True)]
    pictures = clips[0].permute(0, 2, 3, 1).numpy()
    drawn = np.linspace(0, len(pictures) - 1, min(columns, len(pictures))).round().astype(int).tolist()
    write_figure(output, feature_maps({number: pictures[number] for number in drawn}, rows))
    console.print(f"The figure is {output}", highlight=False, soft_wrap=True)


def box_queries(
    video: Path,
    output: Path,
    weights: Sequence[tuple[str, Path]],
    *,
    device: str | None = None,
    frames: int | None = None,
) -> None:
    """Draw how the box queries of a video's instances lie to each other, side by side (TAFormer, Figure 6).

    Args:
        video: As `features`.
        output: The picture to write.
        weights: As `features`.
        device: As `features`.
        frames: As `features`.

    Raises:
        UserError: as `features`; or scikit-learn is not installed, or a network finds no two instances.
    """
    _check_models("report box-queries", weights, output, frames)
    from rich.console import Console

    from lightning_vos.figures.taformer import embedded_queries, load_models, require_tsne
    from lightning_vos.io.plots import query_points, write_figure

    require_tsne()
    source = read_video(video)
    models = load_models(weights, choose_device(device))
    console = Console()
    with console.status("finding instances"):
        panels = [embedded_queries(model, source, frames) for model in models]
    write_figure(output, query_points(panels))
    console.print(f"The figure is {output}", highlight=False, soft_wrap=True)


def _check_models(verb: str, weights: Sequence[tuple[str, Path]], output: Path, frames: int | None) -> None:
    """What both figures of TAFormer are asked for, before anything slow is done.

    Raises:
        ConfigError: if there are no weights, two are called alike, no frame is to be seen, or the output is no picture.
    """
    from lightning_vos.io.plots import check_figure_path

    _require_weights(verb, weights)
    _refuse_same_names([name for name, _ in weights], "networks", "give each another NAME: --weights NAME=FILE")
    check_figure_path(output)
    if frames is not None and frames < 1:
        raise ConfigError(f"--frames {frames} shows nothing: expected a number of at least 1.")


def _require_weights(verb: str, weights: Sequence[tuple[str, Path]]) -> None:
    if not weights:
        raise ConfigError(
            f"{verb} needs weights of one network or more: --weights NAME=FILE, several times to compare.\n"
            "  FILE is a checkpoint of a run (`lightning_vos fit` leaves them in runs/*/version_*/checkpoints) or a "
            "published file"
        )


def _refuse_same_names(names: Sequence[str], what: str, advice: str) -> None:
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            f"Two {what} are called {min(twice)}, so they could not be told apart in the figure.\n  {advice}"
        )


def _labelled(words: Sequence[str], option: str, expected: str, example: str) -> list[tuple[str, Path]]:
    labelled = [word.partition("=") for word in words]
    for word, (name, _, path) in zip(words, labelled, strict=True):
        if not (name and path):
            raise ConfigError(f"{option} {word} is no {expected}: expected such as {option} {example}.")
    return [(name, Path(path)) for name, _, path in labelled]


def main(args: list[str]) -> None:
    """Run `lightning_vos report` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    if not args:
        raise ConfigError(
            "Name what to report.\n"
            "  a page of runs: lightning_vos report RUN [RUN ...], such as runs/mavos_r50/version_1\n"
            f"  a figure: lightning_vos report {' | '.join(_KINDS)}; --help says more"
        )
    if args[0] not in (*_KINDS, "-h", "--help"):
        report_page.main(args)
        return
    parser = argparse.ArgumentParser(
        "lightning_vos report",
        description="Write one page about runs, side by side: lightning_vos report RUN [RUN ...] [-o report.html]. "
        "Or draw a figure:",
        allow_abbrev=False,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar=" | ".join(_KINDS))
    plot = kinds.add_parser("trade-off", help="accuracy, speed and memory of tested runs", allow_abbrev=False)
    plot.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="a folder such as runs/mavos_r50/version_1")
    plot.add_argument("--label", action="append", default=[], metavar="NAME=RUN", help="a run under another name")
    maps = kinds.add_parser("dynamic-frame", help="what the memory holds while a video goes on", allow_abbrev=False)
    add_input_options(maps)
    maps.add_argument("--layer", type=int, help="of the network, from 1; the last by default")
    maps.add_argument("--columns", type=int, default=6, help="frames to draw (6)")
    heads = kinds.add_parser("attention", help="where each head of HODOR's attention looks", allow_abbrev=False)
    add_input_options(heads)
    heads.add_argument("--frame", type=int, metavar="K", help="which frame, from 0; the last by default")
    heads.add_argument("--object", type=int, dest="object_id", metavar="ID", help="which object; the first by default")
    heads.add_argument("--layer", type=int, help="of the encoder, from 1; the last by default")
    encoders = kinds.add_parser("features", help="what encoders of TAFormer make of a video", allow_abbrev=False)
    queries = kinds.add_parser("box-queries", help="how box queries of TAFormer lie to each other", allow_abbrev=False)
    for kind in (encoders, queries):
        kind.add_argument("video", type=Path, metavar="VIDEO", help="a folder of frames or a video file")
        kind.add_argument(
            "--weights",
            action="append",
            default=[],
            metavar="NAME=FILE",
            help="a checkpoint of a run, or a published file, and what the figure calls it; several times to compare",
        )
        kind.add_argument("--frames", type=int, metavar="N", help="only the first N frames are seen; all by default")
        add_device_option(kind)
    encoders.add_argument("--columns", type=int, default=6, help="frames to draw (6)")
    report_figure.add_parser(kinds)
    for kind in (plot, maps, heads, encoders, queries, *report_classes.add_parsers(kinds)):
        kind.add_argument("--output", type=Path, required=True, metavar="FILE", help="the picture, such as plot.png")
    parsed, recipe = parser.parse_known_args(args)
    words = vars(parsed)
    if recipe and words["kind"] != "class-attention":
        parser.error(f"unrecognized arguments: {' '.join(recipe)}")
    match words.pop("kind"):
        case "trade-off":
            labelled = _labelled(words["label"], "--label", "NAME=RUN", "R50=runs/mavos_r50/version_1")
            trade_off(words["runs"], labelled, words["output"])
        case "figure":
            report_figure.figure(**words)
        case "dynamic-frame":
            dynamic_frame(**words)
        case "attention":
            attention(**words)
        case kind:
            run = "r50=runs/taformer_r50" if kind in ("features", "box-queries") else "masked=runs/token_masking_voc"
            example = f"{run}/version_0/checkpoints/last.ckpt"
            words["weights"] = _labelled(words["weights"], "--weights", "NAME=FILE", example)
            if kind in ("features", "box-queries"):
                (features if kind == "features" else box_queries)(**words)
                return
            advice = "give each another NAME: --weights NAME=FILE"
            _require_weights(f"report {kind}", words["weights"])
            _refuse_same_names([name for name, _ in words["weights"]], "networks", advice)
            if kind == "gates":
                report_classes.gates(**words)
            else:
                named = [word for name in words.pop("config") for word in ("--config", name)]
                report_classes.class_attention([*named, *recipe], **words)
