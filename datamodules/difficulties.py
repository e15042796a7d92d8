"""What is difficult in a rendered clip, measured on its masks."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

TAGS = ("occlusion", "disappearance", "re-appearance", "scale", "look-alike", "speed", "crossing")
PERCEPTIBLE = 1 / 230  # share of the frame, 40 pixels of 97 x 97


def measured_tags(
    silhouettes: NDArray[np.bool],
    top: NDArray[np.uint8],
    objects: Sequence[int],
    twins: Sequence[int],
    doubles: Iterable[tuple[int, int]],
) -> tuple[str, ...]:
    """The `TAGS` that are true, whatever was meant.

    Args:
        silhouettes: (M, T, H, W) where each body is, whether it is hidden or not.
        top: (T, H, W) the number of the body that is seen, from 1 on; 0 is scenery.
        objects: The numbers of the bodies that are labelled.
        twins: The numbers of those that look alike.
        doubles: The pairs that look all but the same, whose meeting is a crossing.
    """
    _, frames, height, width = silhouettes.shape
    diagonal = math.hypot(height, width)
    found = set()
    for number in objects:
        whole, visible = silhouettes[number - 1], top == number
        full, area = whole.sum(axis=(1, 2)), visible.sum(axis=(1, 2))
        if ((area < full / 2) & (area < np.maximum.accumulate(area) / 2)).any():
            found.add("occlusion")

        gone = area == 0
        twice_gone = np.flatnonzero(gone[1:] & gone[:-1])
        if len(twice_gone):
            found.add("disappearance")
            if not gone[twice_gone[0] :].all():
                found.add("re-appearance")

        inside = ~(whole[:, [0, -1]].any(axis=(1, 2)) | whole[:, :, [0, -1]].any(axis=(1, 2)))
        intact = area[inside & (area >= 0.9 * full) & (area > 0)]
        if len(intact) and intact.max() >= 2 * intact.min():
            found.add("scale")

        centroid = np.array([np.argwhere(seen).mean(axis=0) if seen.any() else [np.nan] * 2 for seen in visible])
        step = np.linalg.norm(np.diff(centroid, axis=0), axis=1)
        if (step > 0.05 * diagonal).sum() >= 3:  # an occluder alone shifts a centroid once or twice
            found.add("speed")
    perceptible = {body: (top == body).sum(axis=(1, 2)) >= PERCEPTIBLE * height * width for body in twins}
    if twins and (np.sum(list(perceptible.values()), axis=0) >= 2).sum() >= frames / 2:
        found.add("look-alike")
    for pair in doubles:
        first, second = (silhouettes[body - 1] for body in pair)
        covered = (first & second).sum(axis=(1, 2))
        hidden = (covered > 0) & (covered >= np.minimum(first.sum(axis=(1, 2)), second.sum(axis=(1, 2))) / 2)
        if hidden.any() and not covered[0] and not covered[-1] and all(perceptible[body][-1] for body in pair):
            found.add("crossing")
    return tuple(tag for tag in TAGS if tag in found)
