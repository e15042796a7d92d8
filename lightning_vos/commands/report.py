"""`lightning_vos report`: the figures of the papers from runs and videos of one's own."""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_vos.commands.inputs import add_input_options, check_settings, choose_device, read_inputs
from lightning_vos.errors import ConfigError, MaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_vos.io.plots import MemoryColumn
    from lightning_vos.vos.network import VOSNetwork

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

    from lightning_vos.io.plots import Bubble, check_figure_path, write_figure
    from lightning_vos.io.plots import trade_off as draw

    check_figure_path(output)
    named = [*zip(_names(runs), runs, strict=True), *labelled]
    if not named:
        raise ConfigError("Name at least one run, such as runs/mavos_r50/version_0, or --label NAME=RUN.")
    names = [name for name, _ in named]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            f"Two runs are called {min(twice)}, so they could not be told apart in the figure.\n"
            "  name each run once, and one of two that are called alike by --label NAME=RUN"
        )
    bubbles = [Bubble(name, *_results(run)) for name, run in named]
    write_figure(output, draw(bubbles))
    table = Table("run", "J&F %", "frames a second", "peak memory GB")
    for bubble in bubbles:
        numbers = (f"{bubble.score:.1f}", f"{bubble.frames_per_second:.1f}", f"{bubble.gigabytes:.2f}")
        table.add_row(bubble.label, *numbers)
    console = Console()
    console.print(table)
    console.print(f"The figure is {output}", highlight=False, soft_wrap=True)


def _names(runs: Sequence[Path]) -> list[str]:
    """What runs are called: by their recipe, the parent of `version_N`, and the version where recipes are the same."""
    absolute = [run.absolute() for run in runs]
    recipes = [path.parent.name if path.name.startswith("version_") else path.name for path in absolute]
    return [
        f"{recipe} {path.name}" if recipes.count(recipe) > 1 else recipe
        for recipe, path in zip(recipes, absolute, strict=True)
    ]


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

    weights = check_settings("report dynamic-frame", weights, size)
    check_figure_path(output)
    if columns < 1:
        raise ConfigError(f"--columns {columns} draws nothing: expected a number of at least 1.")
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from lightning_vos.callbacks.results import painted
    from lightning_vos.published import load_network
    from lightning_vos.vos.track import Tracker

    frames, names, prompts, palette = read_inputs(video, mask, resize_masks=resize_masks)
    network = load_network(weights).to(choose_device(device))
    tracker, kept = Tracker(network, size), _Thinned(columns)
    reader = _BankReader(network, size or frames.size, layer)
    number = -1
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
        task = progress.add_task("segment", total=len(names) or None)
        for number, frame in enumerate(frames):
            prediction = tracker.step(frame, prompts.get(number))
            if tracker.memories and reader.is_updated(tracker.memories[0]) and kept.takes_next():
                maps = reader.maps(prediction.labels > 0)
                kept.add(MemoryColumn(number, painted(frame, prediction, palette), *maps))
            progress.advance(task)
    if outside := [index for index in prompts if not 0 <= index <= number]:
        raise MaskError(f"Masks are given for frames {outside}, but the video ends with frame {number}.")
    if not kept.items:
        raise MaskError(f"There is nothing to track: {mask} states no object. Give a mask with an id above 0.")
    title = f"Identity values in the memory of layer {reader.layer}"
    if (held := tracker.memories[0].bank_frames) != 2:
        title += f", which holds {held} frames: the newest is shown as dynamic, the oldest as reference"
    if len(tracker.memories) > 1:
        title += f"; the first {network.capacity} objects"
    write_figure(output, memory_maps(title, kept.spread()))
    Console().print(f"The figure is {output}", highlight=False, soft_wrap=True)


class _BankReader:
    """Follows the long-term bank of a memory and makes maps of what one of its layers stores of objects.

    A map is the first principal component of the identity values of the first reference frame: one axis for all maps,
    on which objects lie above the background. AOT has no identity values of their own; there it is the values, which
    contain them.

    Args:
        network: The network whose memory it is.
        size: (H, W) that frames have before the network's canvas.
        layer: From 1; the last where None.
    """

    def __init__(self, network: VOSNetwork[Any], size: tuple[int, int], layer: int | None) -> None:
        height, width = network.canvas.view(*size).network
        self._grid = -(-height // network.canvas.multiple), -(-width // network.canvas.multiple)
        self.layer = layer
        self._bank: tuple[Any, ...] = ()
        self._axis: tuple[Tensor, Tensor] | None = None

    def is_updated(self, memory: Any) -> bool:
        """Whether the bank is another than that of the last call.

        Raises:
            ConfigError: if the memory has no bank of whole frames, or not that layer.
        """
        bank = getattr(memory, "long", None)
        if bank is None or (bank and _identity(bank[-1]).shape[1] % math.prod(self._grid)):
            raise ConfigError(
                f"A {type(memory).__name__} has no bank of whole frames, so there is no dynamic frame to draw.\n"
                "  expected weights of the MAVOS family"
            )
        if not bank or bank is self._bank:
            return False
        self.layer = len(bank) if self.layer is None else self.layer
        if not 1 <= self.layer <= len(bank):
            raise ConfigError(f"--layer {self.layer} is none of the network's: expected 1 to {len(bank)}.")
        self._bank = bank
        return True

    def maps(self, foreground: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Maps (h, w) of the last and of the newest frame of the bank; `foreground`, (H, W) bool, tells bright."""
        assert self.layer is not None
        values = _identity(self._bank[self.layer - 1])[0].float()
        tokens = math.prod(self._grid)
        if self._axis is None:
            self._axis = _first_component(values[-tokens:], foreground, self._grid)
        mean, axis = self._axis
        reference, dynamic = ((part - mean) @ axis for part in (values[-tokens:], values[:tokens]))
        return reference.unflatten(0, self._grid).cpu().numpy(), dynamic.unflatten(0, self._grid).cpu().numpy()


def _identity(stored: Any) -> Tensor:
    """What a layer of a bank holds of objects, (B, m, C)."""
    return stored.identity if hasattr(stored, "identity") else stored.value


def _first_component(values: Tensor, foreground: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean and first principal axis (C,) of (n, C) values, with the foreground on the upper side."""
    import torch
    import torch.nn.functional as F

    mean = values.mean(dim=0)
    axis = torch.linalg.svd(values - mean, full_matrices=False).Vh[0]
    inside = F.interpolate(foreground[None, None].float(), grid, mode="area").flatten()
    return mean, axis if (values - mean) @ axis @ (inside - inside.mean()) >= 0 else -axis


class _Thinned:
    """Keeps fewer than `2 * count` columns of a video of any length, evenly spread."""

    def __init__(self, count: int) -> None:
        self.items: list[MemoryColumn] = []
        self._count, self._step, self._seen = count, 1, 0

    def takes_next(self) -> bool:
        """Whether the next column is one to keep; each call counts one."""
        self._seen += 1
        return (self._seen - 1) % self._step == 0

    def add(self, column: MemoryColumn) -> None:
        """Keep a column; of too many every other goes."""
        self.items.append(column)
        if len(self.items) == 2 * self._count:
            del self.items[1::2]
            self._step *= 2

    def spread(self) -> list[MemoryColumn]:
        """At most `count` columns."""
        import numpy as np

        chosen = np.linspace(0, len(self.items) - 1, min(self._count, len(self.items))).round().astype(int)
        return [self.items[i] for i in chosen]


def _labelled(word: str) -> tuple[str, Path]:
    name, separator, run = word.partition("=")
    if not (name and separator and run):
        raise ConfigError(f"--label {word} is no NAME=RUN: expected such as --label R50=runs/mavos_r50/version_1.")
    return name, Path(run)


def main(args: list[str]) -> None:
    """Run `lightning_vos report` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    parser = argparse.ArgumentParser("lightning_vos report", description="Draw figures.", allow_abbrev=False)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="trade-off | dynamic-frame")
    plot = kinds.add_parser("trade-off", help="accuracy, speed and memory of tested runs", allow_abbrev=False)
    plot.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="a folder such as runs/mavos_r50/version_1")
    plot.add_argument("--label", action="append", default=[], metavar="NAME=RUN", help="a run under another name")
    maps = kinds.add_parser("dynamic-frame", help="what the memory holds while a video goes on", allow_abbrev=False)
    add_input_options(maps)
    maps.add_argument("--layer", type=int, help="of the network, from 1; the last by default")
    maps.add_argument("--columns", type=int, default=6, help="frames to draw (6)")
    for kind in (plot, maps):
        kind.add_argument("--output", type=Path, required=True, metavar="FILE", help="the picture, such as plot.png")
    words = vars(parser.parse_args(args))
    if words.pop("kind") == "trade-off":
        trade_off(words["runs"], [_labelled(word) for word in words["label"]], words["output"])
    else:
        dynamic_frame(**words)
