"""Figures of numbers: drawn without a display, written at once and whole."""

from __future__ import annotations

import math
import tempfile
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_vos.errors import ConfigError
from lightning_vos.io.writing import written_beside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_LARGEST = 2500  # area of the largest bubble, in square points
_PICTURE = 2.4  # width of a picture, in inches
_HEADS_IN_ROW = 4
_OPACITY = 0.7  # of logits over a frame
_DARKENED = 0.6  # brightness of a frame under maps


class Bubble(NamedTuple):
    """One run in a plot of accuracy against speed."""

    label: str
    score: float  # J&F in percent
    frames_per_second: float
    gigabytes: float


class MemoryColumn(NamedTuple):
    """What a long-term bank holds of one frame: a column of `memory_maps`."""

    frame: int
    picture: NDArray[np.uint8]  # (H, W, 3) RGB
    reference: NDArray[np.float32]  # (h, w)
    dynamic: NDArray[np.float32]  # (h, w)


class HeadMaps(NamedTuple):
    """Where one head of an attention looks."""

    label: str
    logits: NDArray[np.float32]  # (h, w), what the softmax is taken of; minus infinity where it cannot look
    weights: NDArray[np.float32]  # (h, w), what the softmax gives: shares of 1


class AttentionMaps(NamedTuple):
    """Where an attention looks for one object: the pictures of `attention_maps`."""

    mask: NDArray[np.float32]  # (h, w) in [0, 1], of the object
    heads: list[HeadMaps]
    covered: tuple[float, float]  # height and width that the maps cover, in pixels of the frame


class FeatureMaps(NamedTuple):
    """Features of one network: a row of `feature_maps`."""

    label: str
    maps: NDArray[np.float32]  # (T, h, w) in [0, 1], one for each frame
    covered: tuple[float, float]  # height and width that the maps cover, as shares of the frame


class EmbeddedQueries(NamedTuple):
    """Queries of one network in the plane: a panel of `query_points`."""

    label: str
    points: NDArray[np.float32]  # (n, T, 2) of each instance in each frame
    scores: list[float]  # n


def check_figure_path(path: Path) -> None:
    """Refuse a file name that no picture can be written to, before any work; leaves nothing behind.

    Raises:
        ConfigError: if its suffix is none of a picture's, it is a folder, or its place cannot be written.
    """
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise ConfigError(f"--output {path} is no name of a picture.\n  expected a suffix such as .png, .pdf or .svg")
    folder = path.absolute()
    try:
        is_folder = path.is_dir()
        folder = next(parent for parent in folder.parents if parent.exists())
        # Asking for permissions would not do: a place may be full, or of a kind that holds no files.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"--output {path} cannot be written.\n  found {folder}: {error.strerror}\n"
            "  expected a place where files can be made, in folders that are there or can be made"
        ) from error
    if is_folder:
        raise ConfigError(f"--output {path} is a folder.\n  expected the name of a picture in it")


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure in the format of the path's suffix."""
    with written_beside(path) as temporary:
        figure.savefig(temporary, dpi=150)


def over_frames(panels: Mapping[str, Mapping[str, NDArray[np.number]]]) -> Figure:
    """One panel below the other over the frames of a video.

    Args:
        panels: Title of the vertical axis -> label of a line -> its (T,) values, from frame 0 on.
    """
    figure = Figure(figsize=(7, 2.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for label, values in lines.items():
            axis.plot(values, label=label, linewidth=1.2)
        axis.set_ylabel(title)
        axis.set_ylim(0, 1.1 * max(float(values.max()) for values in lines.values()))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    axes[-1].set_xlabel("frame")
    return figure


def trade_off(bubbles: Sequence[Bubble]) -> Figure:
    """Accuracy against speed, the area of each bubble in proportion to the peak memory (MAVOS, Figure 1)."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    largest = max(bubble.gigabytes for bubble in bubbles)
    for number, bubble in enumerate(bubbles):
        point = (bubble.frames_per_second, bubble.score)
        area = _LARGEST * bubble.gigabytes / largest
        axis.scatter(*point, s=area, color=f"C{number % 10}", alpha=0.6, edgecolors="black", linewidths=0.5)
        above = (0, (area / math.pi) ** 0.5 + 3)
        axis.annotate(
            f"{bubble.label}, {bubble.gigabytes:.2f} GB",
            point,
            above,
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
    axis.margins(0.25)
    axis.grid(alpha=0.3)
    axis.set_xlabel("frames a second")
    axis.set_ylabel("J&F in %")
    axis.set_title("Area: peak memory", fontsize="medium")
    return figure


def memory_maps(title: str, columns: Sequence[MemoryColumn]) -> Figure:
    """Over time: frames with their masks, and what the bank holds as reference and as dynamic frame (MAVOS, Figure 3).

    Each row of maps has one scale of colours.
    """
    height, width = columns[0].picture.shape[:2]
    size = (_PICTURE * len(columns) + 1.2, 3 * _PICTURE * height / width + 1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(3, len(columns), squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.imshow(column.picture)
        axis.set_title(f"frame {column.frame}", fontsize="medium")
    rows = {"reference": [c.reference for c in columns], "dynamic": [c.dynamic for c in columns]}
    for row, (name, maps) in zip(axes[1:], rows.items(), strict=True):
        low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
        for axis, values in zip(row, maps, strict=True):
            extent = (0, width, height, 0)
            drawn = axis.imshow(values, cmap="viridis", vmin=low, vmax=high, extent=extent)
        row[0].set_ylabel(name)
        figure.colorbar(drawn, ax=list(row), shrink=0.8, pad=0.01)
    axes[0, 0].set_ylabel("frame")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(title, fontsize="medium")
    return figure


def attention_maps(title: str, frame: NDArray[np.uint8], picture: NDArray[np.uint8], maps: AttentionMaps) -> Figure:
    """Of each head the logits of an attention and its weights over a darkened frame (HODOR, Figure 3).

    Each map has a scale of its own, from the 1st to the 99th percentile inside and outside of the mask; weights are in
    percent and begin at 0.

    Args:
        title: Above all.
        frame: (H, W, 3) RGB.
        picture: The same with its masks over it.
        maps: What is drawn.
    """
    height, width = frame.shape[:2]
    columns = min(_HEADS_IN_ROW, len(maps.heads))
    blocks = math.ceil(len(maps.heads) / columns)
    column, row = 1.3 * _PICTURE, _PICTURE * height / width + 0.35  # of a map with its bar and label, in inches
    top_row = 1.25 * row
    figure = Figure(figsize=(column * columns, top_row + 2 * blocks * row + 0.6), layout="constrained")
    top, below = figure.subfigures(2, 1, height_ratios=(top_row, 2 * blocks * row), squeeze=False)[:, 0]
    extent = (0.0, maps.covered[1], maps.covered[0], 0.0)

    of_frame, of_mask = top.subplots(1, 2)
    of_frame.imshow(picture)
    of_frame.set_title("frame and its masks", fontsize="medium")
    of_mask.imshow(maps.mask, cmap="gray", vmin=0, vmax=1, extent=extent)
    of_mask.set_title("mask of the object, as the attention has it", fontsize="medium")

    def draw(
        axis: Axes,
        values: NDArray[np.floating],
        limits: tuple[float, float],
        opacity: NDArray[np.floating],
        colours: str,
        beyond: Literal["both", "max"],
    ) -> None:
        axis.imshow(frame.mean(axis=2), cmap="gray", vmin=0, vmax=255 / _DARKENED)
        low, high = limits
        shown = axis.imshow(values, cmap=colours, vmin=low, vmax=high, alpha=opacity, extent=extent)
        below.colorbar(shown, ax=axis, extend=beyond, ticks=MaxNLocator(4), aspect=15, pad=0.02)

    axes = below.subplots(2 * blocks, columns, squeeze=False)
    inside = maps.mask > 0.5
    for number, head in enumerate(maps.heads):
        before, after = axes[2 * (number // columns) :, number % columns][:2]
        before.set_title(head.label, fontsize="medium")
        limits, percent = _robust_range(head.logits, inside), 100 * head.weights
        top = _robust_range(percent, inside)[1] or 1.0
        # Where it cannot look, or does not, the frame stays as it is.
        draw(before, head.logits, limits, np.where(np.isfinite(head.logits), _OPACITY, 0), "viridis", "both")
        draw(after, percent, (0.0, top), np.clip(percent / top, 0, 1), "inferno", "max")
    for axis in axes[0::2, 0]:
        axis.set_ylabel("before the softmax")
    for axis in axes[1::2, 0]:
        axis.set_ylabel("after it, in %")
    for axis in axes.flat:
        axis.set_visible(bool(axis.images))
    for axis in (of_frame, of_mask, *axes.flat):
        axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    figure.suptitle(title, fontsize="medium")
    return figure


def feature_maps(frames: Mapping[int, NDArray[np.uint8]], rows: Sequence[FeatureMaps]) -> Figure:
    """Frames, and below them what the encoder of each network makes of them (TAFormer, Figure 5).

    Args:
        frames: Number -> (H, W, 3) RGB, of those that are drawn.
        rows: One for each network, with maps of all frames of the clip.
    """
    height, width = next(iter(frames.values())).shape[:2]
    row = _PICTURE * height / width
    figure = Figure(figsize=(_PICTURE * len(frames) + 0.4, row * (1 + len(rows)) + 0.7), layout="constrained")
    axes = figure.subplots(1 + len(rows), len(frames), squeeze=False)
    for axis, (number, frame) in zip(axes[0], frames.items(), strict=True):
        axis.imshow(frame, extent=(0, width, height, 0))
        axis.set_title(f"frame {number}", fontsize="medium")
    axes[0, 0].set_ylabel("frame")
    for of_row, (label, maps, covered) in zip(axes[1:], rows, strict=True):
        of_row[0].set_ylabel(label)
        for axis, number in zip(of_row, frames, strict=True):
            axis.imshow(maps[number], vmin=0, vmax=1, extent=(0, covered[1] * width, covered[0] * height, 0))
    for axis in axes.flat:
        axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    figure.suptitle("Features of the encoder at stride 8: mean over channels, one scale a row", fontsize="medium")
    return figure


def query_points(panels: Sequence[EmbeddedQueries]) -> Figure:
    """Box queries by t-SNE: of each instance points of one colour, one for each frame (TAFormer, Figure 6)."""
    figure = Figure(figsize=(4.2 * len(panels), 4.2), layout="constrained")
    for axis, (label, points, scores) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, (of_instance, score) in enumerate(zip(points, scores, strict=True)):
            axis.scatter(*of_instance.T, s=18, color=f"C{number}", alpha=0.8, label=f"{score:.2f}")
        axis.set(title=label, xticks=[], yticks=[])
        axis.legend(title="score", fontsize="small")
    return figure


def _robust_range(values: NDArray[np.float32], inside: NDArray[np.bool_]) -> tuple[float, float]:
    """From the 1st to the 99th percentile, taken inside and outside of a mask apart, so that a small one counts."""
    parts = [part[np.isfinite(part)] for part in (values[inside], values[~inside])]
    ends = [np.percentile(part, (1, 99)) for part in parts if part.size]
    if not ends:
        return 0.0, 1.0
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))
