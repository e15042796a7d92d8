"""Chosen frames of a video, truth and methods below each other, as papers show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lightning_vos.figures.scenes import FOUND, Scene, object_ious, painted_labels

_PICTURE = 2.4  # width of a picture, in inches
_LETTER = 0.095  # the same of a letter, about
_GAP = 0.05  # between pictures, in inches
_TITLE = 0.3  # height of the line of titles, in inches
_MARGIN = 0.04  # between a failed object and its frame, as a share of the picture's height


class FigureRow(NamedTuple):
    """A method of the figure."""

    label: str
    frames_per_second: float | None


def qualitative_figure(scenes: Mapping[int, Scene], methods: Sequence[FigureRow]) -> Figure:
    """A row of truth and one for each method; what has an IoU below 0.5 is framed in red, as a failure.

    Args:
        scenes: Number of a frame -> the frame; at least one, all of one size.
        methods: In the order of the scenes' masks.
    """
    height, width = next(iter(scenes.values())).truth.shape
    labels = ["truth", *map(_label, methods)]
    row = _PICTURE * height / width
    left = _LETTER * max(len(line) for label in labels for line in label.splitlines()) + 2 * _GAP
    whole = (left + len(scenes) * (_PICTURE + _GAP), _TITLE + len(labels) * (row + _GAP))
    figure = Figure(figsize=whole)
    for column, (number, scene) in enumerate(scenes.items()):
        for line, (label, shown) in enumerate(zip(labels, (scene.truth, *scene.ours), strict=True)):
            place = (left + column * (_PICTURE + _GAP), whole[1] - _TITLE - line * (row + _GAP) - row)
            axis = figure.add_axes(
                (place[0] / whole[0], place[1] / whole[1], _PICTURE / whole[0], row / whole[1]), frameon=False
            )
            _draw(axis, scene, shown)
            if line == 0:
                axis.set_title(f"frame {number}", fontsize="medium", pad=4)
            if column == 0:
                axis.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=6)
    return figure


def _draw(axis: Axes, scene: Scene, labels: NDArray[np.uint8] | None) -> None:
    height, width = scene.truth.shape
    axis.set(xticks=[], yticks=[])
    if labels is None:
        axis.imshow(np.full_like(scene.pixels, 235))
        axis.text(width / 2, height / 2, "no mask", ha="center", va="center", color="grey")
        return
    axis.imshow(painted_labels(scene, labels))
    for object_id, share in object_ious(scene, labels).items():
        if share < FOUND:
            _frame(axis, scene.truth == object_id)


def _label(method: FigureRow) -> str:
    name = method.label.replace(" ", "\n")
    return name if method.frames_per_second is None else f"{name}\n{method.frames_per_second:.1f} FPS"


def _frame(axis: Axes, inside: NDArray[np.bool_]) -> None:
    """Draw a rectangle around where an object truly is, within the picture."""
    height, width = inside.shape
    margin = _MARGIN * height
    top, bottom = (np.flatnonzero(inside.any(axis=1))[[0, -1]] + (-margin, margin)).clip(1, height - 2)
    left, right = (np.flatnonzero(inside.any(axis=0))[[0, -1]] + (-margin, margin)).clip(1, width - 2)
    for colour, thickness in (("white", 3.0), ("red", 1.6)):
        axis.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, linewidth=thickness)
        )
