"""Which frames of a clip HODOR decodes from which in training, so that few of them need an annotation."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

from lightning_vos.errors import ConfigError

Cycle = Literal["none", "forward_backward", "published_mix"]


class Step(NamedTuple):
    """Descriptors of the source frames are decoded in the target frame, and its masks described there."""

    sources: tuple[int, ...]
    target: int


Path = tuple[Step, ...]


def paths(cycle: Cycle, length: int, iteration: int) -> list[Path]:
    """The walks through a clip whose first frame is annotated; walks that begin alike share these steps.

    `none`: from each frame to the next, with all that came before, as at test.

    `forward_backward`: to the last frame and back to the first, each frame from the one before in the walk (paper).

    `published_mix`: the published code's walks, of clips of up to three frames: 0 from itself; 0 to 1 and back; and 0,
    1, 2, 1, 0, in every second iteration with two sources where there are two.

    Args:
        cycle: Which walks.
        length: Frames of a clip.
        iteration: Number of the batch; the published mix alternates.

    Raises:
        ConfigError: if the published mix has no walk for clips of that length.
    """
    if length == 1:
        return [(Step((0,), 0),)]
    if cycle == "none":
        return [tuple(Step(tuple(range(time)), time) for time in range(1, length))]
    if cycle == "forward_backward":
        walk = [*range(length), *reversed(range(length - 1))]
        return [tuple(Step((source,), target) for source, target in pairwise(walk))]
    if length > 3:
        raise ConfigError(
            f"The published mix of cycles is one of clips of up to 3 frames, these have {length}.\n"
            "Set --data.sampler.length=3, or --model.cycle=forward_backward, which takes any length."
        )
    itself, there, back = Step((0,), 0), Step((0,), 1), Step((1,), 0)
    short = (there, back)
    if length == 2:
        return [(itself,), short, (there, Step((0, 1), 0))]
    if iteration % 2 == 0:
        return [(itself,), short, (there, Step((1,), 2), Step((2,), 1), back)]
    return [(itself,), short, (there, Step((0, 1), 2), Step((2,), 1), Step((1, 2), 0))]
