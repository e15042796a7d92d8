"""`lightning_vos benchmark video`: speed and memory of any recipe against length, resolution and number of objects."""

from __future__ import annotations

import argparse
import csv
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_vos.commands.benchmark.recipes import (
    add_recipes,
    add_setting_options,
    build_module,
    check,
    clock_name,
    device_and_threads,
    labels_of,
)
from lightning_vos.errors import ConfigError, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from rich.console import Console

    from lightning_vos.benchmarks.video import Call, Constancy, VideoCost
    from lightning_vos.benchmarks.workload import Setting
    from lightning_vos.module import MethodModule

Size = tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """What recipes are run on: every length at every size with every number of objects.

    Attributes:
        frames: Lengths of videos, or numbers of images.
        sizes: (H, W) of frames, in pixels.
        objects: Of the first mask, where a method has one.
        setting: All else; its size and objects do not count.
        is_compiled: Whether `torch.compile` is used.
        window: Frames that TAFormer and SeqFormer see at a time; None for what the recipe says.
    """

    frames: Sequence[int]
    sizes: Sequence[Size]
    objects: Sequence[int]
    setting: Setting
    is_compiled: bool
    window: int | None


class Run(NamedTuple):
    """A recipe on one video."""

    recipe: str
    label: str
    size: Size
    objects: int | None  # None where they make no difference
    lengths: tuple[int, ...]  # rising: the video has the last, the others are its beginnings


class Point(NamedTuple):
    """A row of the table."""

    label: str
    frames: int
    size: Size
    objects: int | None


def benchmark_video(recipes: Sequence[str], grid: Grid, output: Path) -> None:
    """Measure recipes over a grid; leaves a table of all calls of each, a table of costs, a summary and figures.

    Args:
        recipes: As `build_module`, one or more; others are relative to the first.
        grid: What they run on.
        output: The folder to write.

    Raises:
        UserError: if a recipe cannot be built, nothing can be measured, or the folder holds files.
    """
    from rich.console import Console

    from lightning_vos.benchmarks.video import cost_of
    from lightning_vos.io.plots import write_figure

    if min(grid.frames) < 2:
        raise ConfigError(f"--frames {min(grid.frames)} is no video: expected numbers of at least 2, such as 50 200.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} holds files already. Name another --output, or remove them.")
    labels, console = labels_of(recipes), Console()
    modules = check(recipes, console, partial(_module, window=grid.window))
    runs = [
        run
        for recipe, label, module in zip(recipes, labels, modules, strict=True)
        for run in _runs(recipe, label, module, grid)
    ]
    methods = {
        label: {"method": type(module).__name__, "parameters": sum(p.numel() for p in module.network.parameters())}
        for label, module in zip(labels, modules, strict=True)
    }
    del modules  # each measuring process has its own
    output.mkdir(parents=True, exist_ok=True)
    calls, ends = _measure(runs, grid, output, console)
    costs: dict[Point, VideoCost | str] = {}
    for run in runs:
        for length in run.lengths:
            seen = [call for call in calls[run] if call.frame < length]
            is_whole = len(seen) > 1 and seen[-1].frame == length - 1
            costs[Point(run.label, length, run.size, run.objects)] = cost_of(seen) if is_whole else ends[run]
    measured = {point: cost for point, cost in costs.items() if not isinstance(cost, str)}
    if not measured:
        raise ConfigError(f"Nothing was measured: {next(iter(ends.values()))}")
    verdicts = _verdicts(runs, calls)
    _write_costs(output / "costs.csv", measured, methods)
    _write_summary(output / "summary.json", grid, methods, runs, verdicts, ends)
    write_figure(output / "frames.png", _over_frames(runs, calls, grid))
    if any(len(values) > 1 for values in (grid.frames, grid.sizes, grid.objects)):
        write_figure(output / "costs.png", _over_axes(measured, labels, grid))
    _print_costs(console, costs, grid)
    _print_verdicts(console, runs, verdicts, grid)
    console.print(f"costs.csv, the calls of each recipe, summary and figures are in {output}", soft_wrap=True)


def _module(recipe: str, window: int | None) -> MethodModule:
    from lightning_vos.benchmarks.video import set_window

    module = build_module(recipe)
    set_window(module, window)
    return module


def _runs(recipe: str, label: str, module: MethodModule, grid: Grid) -> Iterator[Run]:
    """The videos that a recipe is run on."""
    from lightning_vos.benchmarks.video import has_objects, sees_whole_videos

    lengths = sorted(set(grid.frames))
    videos = [(length,) for length in lengths] if sees_whole_videos(module) else [tuple(lengths)]
    objects: Sequence[int | None] = grid.objects if has_objects(module) else (None,)
    for size, count, video in product(grid.sizes, objects, videos):
        _setting(grid, size, count)  # refuses what does not go together
        yield Run(recipe, label, size, count, video)


def _setting(grid: Grid, size: Size, objects: int | None) -> Setting:
    return replace(grid.setting, size=size, objects=objects or 1)


def _measure(
    runs: Sequence[Run], grid: Grid, output: Path, console: Console
) -> tuple[dict[Run, list[Call]], dict[Run, str]]:
    """The calls of each run, and why runs ended before their time; calls are written as they come."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from lightning_vos.benchmarks.process import StoppedError, in_fresh_process
    from lightning_vos.benchmarks.video import Call

    calls: dict[Run, list[Call]] = {}
    ends: dict[Run, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for run in runs:
            task = progress.add_task(f"{run.label}, {_described(run.size, run.objects)}", total=run.lengths[-1])
            path = output / f"{run.label}.csv"
            is_new = not path.exists()
            setting = _setting(grid, run.size, run.objects)
            arguments = (run.recipe, setting, run.lengths[-1], grid.window, grid.is_compiled)
            calls[run] = []
            with (
                path.open("a", newline="", encoding="utf-8", buffering=1) as file,
                closing(in_fresh_process(_video_calls, *arguments)) as process,
            ):
                table = csv.writer(file)
                if is_new:
                    table.writerow(["height", "width", "objects", "length", *Call._fields])
                try:
                    for call in process:
                        table.writerow([*run.size, run.objects, run.lengths[-1], *call])
                        calls[run].append(call)
                        progress.update(task, completed=call.frame + 1)
                except KeyboardInterrupt:
                    raise KeyboardInterrupt(f"stopped; what was measured so far is in {output}") from None
                except (StoppedError, UserError) as stop:
                    at = f" at frame {calls[run][-1].frame + 1}" if calls[run] else ""
                    ends[run] = " ".join(str(stop).split()) + at
                    console.print(f"{run.label}, {_described(run.size, run.objects)}: {ends[run]}", highlight=False)
    return calls, ends


def _video_calls(recipe: str, setting: Setting, frames: int, window: int | None, is_compiled: bool) -> Iterator[Call]:
    from lightning_vos.benchmarks.video import measure_video

    return measure_video(_module(recipe, window), setting, frames, is_compiled=is_compiled)


def _described(size: Size, objects: int | None) -> str:
    counted = "" if objects is None else f", {objects} object{'s' * (objects > 1)}"
    return f"{size[0]} x {size[1]}{counted}"


def _unit(point: Point, costs: Mapping[Point, VideoCost]) -> VideoCost | None:
    """The cost of the first recipe that another one's is relative to; methods without objects go with any number."""
    first = next(iter(costs)).label
    for other, cost in costs.items():
        if other[:3] == (first, *point[1:3]) and (point.objects is None or other.objects in (point.objects, None)):
            return cost
    return None


def _write_costs(path: Path, costs: Mapping[Point, VideoCost], methods: Mapping[str, Mapping[str, Any]]) -> None:
    from lightning_vos.benchmarks.video import VideoCost
    from lightning_vos.io.writing import written_beside

    named = ("recipe", "method", "parameters", "frames", "height", "width", "objects")
    with written_beside(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*named, *VideoCost._fields, "fps_ratio", "memory_ratio"])
        for point, cost in costs.items():
            unit = _unit(point, costs)
            ratios = (None, None) if unit is None else (cost.fps / unit.fps, cost.peak_bytes / unit.peak_bytes)
            place = (point.frames, *point.size, point.objects)
            table.writerow([point.label, *methods[point.label].values(), *place, *cost, *ratios])


def _write_summary(
    path: Path,
    grid: Grid,
    methods: Mapping[str, Mapping[str, Any]],
    runs: Sequence[Run],
    verdicts: Mapping[Run, Constancy],
    ends: Mapping[Run, str],
) -> None:
    from lightning_vos.io.writing import written_beside

    content = {
        **_circumstances(grid.setting),
        "compiled": grid.is_compiled,
        "window": grid.window,
        "recipes": methods,
        "runs": [
            {
                **run._asdict(),
                "stopped": ends.get(run),
                **(verdicts[run]._asdict() if run in verdicts else {}),
            }
            for run in runs
        ],
    }
    with written_beside(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _circumstances(setting: Setting) -> dict[str, Any]:
    """What costs depend on beside the recipe."""
    import torch

    from lightning_vos import __version__

    is_cuda = setting.device_type == "cuda"
    return {
        "time": "CPU seconds of the process" if setting.device_type == "cpu" else "wall seconds",
        "memory": _memory_name(setting),
        "device": torch.cuda.get_device_name(setting.device) if is_cuda else platform.processor() or platform.machine(),
        "threads": setting.threads,
        "precision": setting.precision,
        "versions": {"lightning_vos": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _memory_name(setting: Setting) -> str:
    return "allocated peak" if setting.device_type == "cuda" else "resident peak"


def _verdicts(runs: Sequence[Run], calls: Mapping[Run, Sequence[Call]]) -> dict[Run, Constancy]:
    """How methods that go frame by frame, or image by image, go on; of runs with two calls or more."""
    from lightning_vos.benchmarks.video import constancy, curves

    return {run: constancy(curves(calls[run])) for run in runs if len({call.frame for call in calls[run]}) > 1}


def _over_frames(runs: Sequence[Run], calls: Mapping[Run, Sequence[Call]], grid: Grid) -> Figure:
    """The longest video of each recipe, at the first size and with the first number of objects."""
    from lightning_vos.benchmarks.video import curves
    from lightning_vos.benchmarks.workload import MIB
    from lightning_vos.io.plots import over_frames

    drawn = {run.label: curves(calls[run]) for run in runs if len(calls[run]) > 1 and _is_first(run, grid)}
    if not drawn:
        drawn = {run.label: curves(calls[run]) for run in runs if len(calls[run]) > 1}
    panels = {
        "ms a frame (running median)": {label: 1e3 * _running_median(curve.seconds) for label, curve in drawn.items()},
        f"{_memory_name(grid.setting)}, MiB": {label: curve.peak / MIB for label, curve in drawn.items()},
    }
    if any(curve.bank is not None for curve in drawn.values()):
        banks = {label: (0 * curve.peak if curve.bank is None else curve.bank) / MIB for label, curve in drawn.items()}
        panels = {"long-term bank, MiB": banks, **panels}
    return over_frames(panels)


def _is_first(run: Run, grid: Grid) -> bool:
    """Whether a run is the one of its recipe by which the course of a video is shown."""
    objects = run.objects is None or run.objects == grid.objects[0]
    return run.size == grid.sizes[0] and objects and run.lengths[-1] == max(grid.frames)


def _running_median(values: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    width = min(max(len(values) // 20, 1) * 2 + 1, 25)
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)


def _over_axes(costs: Mapping[Point, VideoCost], labels: Sequence[str], grid: Grid) -> Figure:
    """Speed and memory over each axis that has several values; the others have their first."""
    from matplotlib.figure import Figure

    from lightning_vos.benchmarks.workload import MIB

    lengths = sorted(set(grid.frames))
    start = Point("", grid.frames[0], grid.sizes[0], grid.objects[0])
    axes: dict[str, tuple[Sequence[float], Sequence[str], Sequence[Point]]] = {
        "frames": (lengths, [str(length) for length in lengths], [start._replace(frames=n) for n in lengths]),
        "size": (
            [height * width for height, width in grid.sizes],
            [_described(size, None) for size in grid.sizes],
            [start._replace(size=size) for size in grid.sizes],
        ),
        "objects": (
            grid.objects,
            [str(count) for count in grid.objects],
            [start._replace(objects=count) for count in grid.objects],
        ),
    }
    axes = {name: axis for name, axis in axes.items() if len(axis[0]) > 1}
    figure = Figure(figsize=(4.2 * len(axes), 6), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False)
    for (above, below), (name, (places, ticks, points)) in zip(panels.T, axes.items(), strict=True):
        for label in labels:
            found = [
                costs.get(point._replace(label=label)) or costs.get(point._replace(label=label, objects=None))
                for point in points
            ]
            above.plot(places, [float("nan") if c is None else c.fps for c in found], marker="o", label=label)
            below.plot(places, [float("nan") if c is None else c.peak_bytes / MIB for c in found], marker="o")
        for axis in (above, below):
            axis.set_xticks(places, ticks)
            axis.set_ylim(0, 1.1 * max(axis.dataLim.y1, 0))
            axis.grid(alpha=0.3)
        below.set_xlabel(name)
    panels[0, 0].set_ylabel("frames a second")
    panels[1, 0].set_ylabel(f"{_memory_name(grid.setting)}, MiB")
    panels[0, 0].legend(fontsize="small")
    return figure


def _print_costs(console: Console, costs: Mapping[Point, VideoCost | str], grid: Grid) -> None:
    from rich.table import Column, Table

    from lightning_vos.benchmarks.workload import MIB

    titles = ("FPS", "ratio", "ms", "95 %", "MiB", "ratio")
    table = Table(Column("", overflow="fold"), *(Column(name, justify="right", no_wrap=True) for name in titles))
    measured = {point: cost for point, cost in costs.items() if not isinstance(cost, str)}
    label = None
    for point, cost in costs.items():
        if point.label != label:
            table.add_section()
            table.add_row(point.label, style="bold")
            label = point.label
        parts = [f"{point.frames} frames"]
        if len(grid.sizes) > 1:
            parts.append(_described(point.size, None))
        if len(grid.objects) > 1 and point.objects is not None:
            parts.append(f"{point.objects} objects")
        what = ", ".join(parts)
        if isinstance(cost, str):
            table.add_row(f"{what}: {cost}")
            continue
        unit = _unit(point, measured)
        ratios = ("", "") if unit is None else (cost.fps / unit.fps, cost.peak_bytes / unit.peak_bytes)
        fps_ratio, memory_ratio = (ratio if isinstance(ratio, str) else f"{ratio:.2f}" for ratio in ratios)
        times = (f"{1e3 * cost.median_seconds:.1f}", f"{1e3 * cost.late_seconds:.1f}")
        table.add_row(what, f"{cost.fps:.2f}", fps_ratio, *times, f"{cost.peak_bytes / MIB:.0f}", memory_ratio)
    console.print(table)
    alone = [f"{count} objects" for count in grid.objects if len(grid.objects) == 1]
    alone += [_described(size, None) for size in grid.sizes if len(grid.sizes) == 1]
    console.print(
        f"{', '.join(alone)}{'. ' if alone else ''}FPS: frames, or images, a {clock_name(grid.setting)} second. ms: "
        "median of a call, 95 %: what so many stay below; a call is of a frame, an image, or the frames that TAFormer "
        "sees together. The first call is not counted. ratio: to the first recipe. MiB: "
        f"{'allocated on the GPU' if grid.setting.device_type == 'cuda' else 'resident, less Python and libraries'}, "
        "with weights, at the peak; results are dropped as they come.",
        highlight=False,
    )


def _print_verdicts(console: Console, runs: Sequence[Run], verdicts: Mapping[Run, Constancy], grid: Grid) -> None:
    from lightning_vos.benchmarks.workload import MIB

    for run in runs:
        if run not in verdicts or not _is_first(run, grid):
            continue
        found = verdicts[run]
        bank = ""
        if found.steady_from is not None:
            course = "constant from frame" if found.is_constant else "growing, to frame"
            bank = f"the bank is {course} {found.steady_from}; "
        early, late = (f"{first} to {last - 1}" for first, last in (found.early, found.late))
        console.print(
            f"{run.label}: {bank}frames {late} take {found.late_over_early:.3f} times what frames {early} take (median)"
            f", and {found.late_minus_early_bytes / MIB:+.1f} MiB of {_memory_name(grid.setting)}.",
            highlight=False,
            soft_wrap=True,
        )


def _size(text: str) -> Size:
    """480p is 480 x 854; else HEIGHTxWIDTH."""
    found = re.fullmatch(r"(\d+)p|(\d+)x(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: expected 480p, or HEIGHTxWIDTH such as 480x854")
    if found[1]:
        return int(found[1]), 2 * round(int(found[1]) * 8 / 9)  # 16 : 9, even as videos are
    return int(found[2]), int(found[3])


def add_parser(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    parser = kinds.add_parser(
        "video", help="speed and memory against length, resolution and number of objects", allow_abbrev=False
    )
    add_recipes(parser)
    parser.add_argument("--frames", type=int, nargs="+", default=(50,), metavar="T", help="of videos, or images (50)")
    parser.add_argument(
        "--size", type=_size, nargs="+", default=((480, 854),), metavar="SIZE", help="480p or HEIGHTxWIDTH (480p)"
    )
    parser.add_argument("--objects", type=int, nargs="+", default=(2,), metavar="N", help="in the first mask (2)")
    parser.add_argument("--window", type=int, metavar="T", help="frames that TAFormer and SeqFormer see at a time")
    parser.add_argument("--compile", action="store_true", help="compile encoders, decoders and transformers")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark_video"), metavar="DIR", help="to write")
    add_setting_options(parser)
    parser.set_defaults(run=_run)


def _run(words: argparse.Namespace) -> None:
    from lightning_vos.benchmarks.workload import Setting

    device, threads = device_and_threads(words)
    setting = Setting(words.size[0], words.objects[0], device, threads, words.precision)
    grid = Grid(words.frames, words.size, words.objects, setting, words.compile, words.window)
    benchmark_video(words.recipes, grid, words.output)
