"""Small curves as SVG, to stand inside a page of HTML; the class `run-K` of a line takes the colour of run K."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

_POINTS = 240  # of a line; longer ones are averaged piece by piece


class Line(NamedTuple):
    """Values along an axis."""

    run: int  # which colour it has
    x: NDArray[np.float64]
    y: NDArray[np.float64]  # NaN: nothing there
    label: str


def sparkline(lines: Sequence[Line], width: int = 180, height: int = 40) -> Markup:
    """Lines of percentages from 0 to 100, without axes but a mark at the half; a tooltip says the extremes."""
    right = max((float(line.x[-1]) for line in lines if line.x.size), default=0.0)
    paths = Markup("").join(_path(line, (0.0, right), (0.0, 100.0), (2, 2, width - 4, height - 4)) for line in lines)
    told = "; ".join(f"{line.label}: {_least_and_most(line.y)}" for line in lines)
    return Markup(
        '<svg class="spark" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img"><title>{told}</title>'
        '<line class="mark" x1="0" x2="{w}" y1="{half}" y2="{half}"/>{paths}</svg>'
    ).format(w=width, h=height, half=height / 2, told=told, paths=paths)


def chart(title: str, lines: Sequence[Line], width: int = 320, height: int = 170) -> Markup:
    """Lines over steps with the range of both axes."""
    finite = [line.y[np.isfinite(line.y)] for line in lines]
    known = np.concatenate([*finite, np.empty(0)])
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if low == high:
        low, high = low - abs(low or 1) * 0.05, high + abs(high or 1) * 0.05
    right = max((float(line.x[-1]) for line in lines if line.x.size), default=0.0)
    box = (46, 24, width - 56, height - 44)
    paths = Markup("").join(_path(line, (0.0, right), (low, high), box) for line in lines)
    grid = Markup("").join(
        Markup('<line class="mark" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(box[0], box[0] + box[2], y, y)
        for y in (box[1], box[1] + box[3] / 2, box[1] + box[3])
    )
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img"><title>{told}</title>'
        '<text class="title" x="{left}" y="15">{title}</text>{grid}'
        '<text x="{before}" y="{top}" text-anchor="end">{high}</text>'
        '<text x="{before}" y="{bottom}" text-anchor="end">{low}</text>'
        '<text x="{left}" y="{below}">0</text><text x="{right}" y="{below}" text-anchor="end">step {last}</text>'
        "{paths}</svg>"
    ).format(
        w=width,
        h=height,
        told="; ".join(f"{line.label}: {_least_and_most(line.y)}" for line in lines),
        title=title,
        grid=grid,
        left=box[0],
        right=box[0] + box[2],
        before=box[0] - 5,
        top=box[1] + 4,
        bottom=box[1] + box[3] + 4,
        below=height - 5,
        high=f"{high:.3g}",
        low=f"{low:.3g}",
        last=f"{right:g}",
        paths=paths,
    )


def strip(shares: NDArray[np.float64], width: int = 180, height: int = 14) -> Markup:
    """A track through a video: a box a frame, from red at 0 to green at 1; nothing where the value is NaN."""
    step = width / max(len(shares), 1)
    boxes = Markup("").join(
        Markup('<rect x="{:.1f}" y="0" width="{:.1f}" height="{}" fill="hsl({:.0f} 70% 50%)"/>').format(
            number * step, max(step - 0.5, 0.5), height, 120 * share
        )
        for number, share in enumerate(shares)
        if not math.isnan(share)
    )
    return Markup(
        '<svg class="strip" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img"><title>IoU {told}</title>'
        "{boxes}</svg>"
    ).format(w=width, h=height, told=_least_and_most(shares), boxes=boxes)


def _path(
    line: Line, across: tuple[float, float], up: tuple[float, float], box: tuple[float, float, float, float]
) -> Markup:
    """A polyline for each piece without gaps; a piece of one point is a dot."""
    left, top, width, height = box
    x, y = _thinned(line.x), _thinned(line.y)
    span = (across[1] - across[0]) or 1.0
    px = left + width * (x - across[0]) / span
    py = top + height * (1 - (y - up[0]) / (up[1] - up[0]))
    pieces = np.split(np.arange(len(y)), np.flatnonzero(~np.isfinite(y)))
    drawn = []
    for piece in pieces:
        kept = piece[np.isfinite(y[piece])]
        if len(kept) == 1:
            text = '<circle class="run-{}" r="2.5" cx="{:.1f}" cy="{:.1f}"/>'
            drawn.append(Markup(text).format(line.run, px[kept[0]], py[kept[0]]))
        elif len(kept):
            points = " ".join(f"{px[i]:.1f},{py[i]:.1f}" for i in kept)
            drawn.append(Markup('<polyline class="run-{}" points="{}"/>').format(line.run, points))
    return Markup("").join(drawn)


def _thinned(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(values) <= _POINTS:
        return values
    return np.array([piece.mean() for piece in np.array_split(values, _POINTS)])


def _least_and_most(values: NDArray[np.float64]) -> str:
    known = values[np.isfinite(values)]
    return f"{known.min():.4g} to {known.max():.4g}" if known.size else "no values"
