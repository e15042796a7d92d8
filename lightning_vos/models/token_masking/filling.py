"""Labels for the pixels of a label map that no class claims: those of the labels around them.

Shapes: H W pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BORDER = 1  # pixels around the image that nothing spreads into, so that every pixel has all neighbours


def fill_nearest(labels: NDArray[np.integer], holes: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Give each pixel of a hole the label that is the fewest steps up, down, left or right away (published code).

    Labels spread through holes alone, breadth first. Of labels that are equally near, that wins which reaches the pixel
    first, where those of the image's first rows go ahead and each goes up, down, left, right: distance transforms of
    libraries settle such ties in other ways.

    Args:
        labels: (H, W) labels from 0 on; -1 where there is none.
        holes: (H, W) which of the pixels without a label get one.

    Returns:
        (H, W) labels; -1 is left outside of holes, and in holes that no label reaches.
    """
    width = labels.shape[1] + 2 * _BORDER
    grid, free = _flat(labels, holes)
    steps = np.array((-width, width, -1, 1))
    turns = np.empty(grid.size, dtype=np.int64)
    front = np.flatnonzero(grid >= 0)
    while front.size:
        reached, sources = (front[:, None] + steps).ravel(), np.repeat(front, len(steps))
        reached, sources = reached[free[reached]], sources[free[reached]]
        turn = np.arange(reached.size)
        turns[reached[::-1]] = turn[::-1]  # the first to reach a pixel is the last to be written
        first = turns[reached] == turn
        front = reached[first]
        grid[front] = grid[sources[first]]
        free[front] = False
    return _unflat(grid, labels)


def fill_majority(labels: NDArray[np.integer], holes: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Give each pixel of a hole the most common label of its 8 neighbours, pass by pass from the rim of the hole.

    All pixels of a pass see the labels as they were before it. Of labels that are equally common the smallest wins.

    Args:
        labels: (H, W) labels from 0 on; -1 where there is none.
        holes: (H, W) which of the pixels without a label get one.

    Returns:
        (H, W) labels; -1 is left outside of holes, and in holes that no label reaches.
    """
    width = labels.shape[1] + 2 * _BORDER
    grid, free = _flat(labels, holes)
    steps = np.array((-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1))
    front = np.flatnonzero(grid >= 0)
    while front.size:
        around = (front[:, None] + steps).ravel()
        front = np.unique(around[free[around]])
        seen = np.sort(grid[front[:, None] + steps], axis=1)  # the smallest label comes first
        votes = (seen[:, :, None] == seen[:, None, :]).sum(axis=2)
        votes[seen < 0] = 0
        grid[front] = np.take_along_axis(seen, votes.argmax(axis=1)[:, None], axis=1)[:, 0]
        free[front] = False
    return _unflat(grid, labels)


def _flat(labels: NDArray[np.integer], holes: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Labels, and which pixels are still to be filled, in a row, with a border of neither."""
    grid = np.pad(labels.astype(np.int64), _BORDER, constant_values=-1).ravel()
    return grid, np.pad(holes, _BORDER).ravel() & (grid < 0)


def _unflat(grid: NDArray[np.int64], labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """The image without its border."""
    height, width = labels.shape
    return grid.reshape(height + 2 * _BORDER, width + 2 * _BORDER)[_BORDER:-_BORDER, _BORDER:-_BORDER].copy()
