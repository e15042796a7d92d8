"""The words that every part of the project shares.

Shapes: B batch, T frames, N objects, H W pixels of a frame. Outside a network a mask is an integer label map with
0 = background; inside it is a stack of planes, one an object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_vos.metrics.sequence import Plan


class Clip(NamedTuple):
    """A batch of short clips to train on."""

    frames: Tensor  # (B, T, 3, H, W) float32 RGB in [0, 1]
    masks: Tensor  # (B, T, H, W) int64; objects are 1..N in each clip, 0 background, 255 not annotated
    objects: Tensor  # (B,) int64, the number of objects N of each clip


@dataclass(frozen=True)
class Video:
    """A video to segment: frames that are read one by one, and the masks that a network may see.

    Attributes:
        name: The name of the sequence, which also names its folder of results.
        frames: (3, H, W) float32 RGB in [0, 1], read when indexed.
        frame_names: One name a frame, without suffix; results are saved under them.
        prompts: Frame index -> (H, W) uint8 label map that holds just the objects which first appear in that frame.
        size: (H, W) of every frame, in pixels.
        palette: The 768 bytes of the dataset's mask palette.
    """

    name: str
    frames: Sequence[Tensor]
    frame_names: Sequence[str]
    prompts: Mapping[int, NDArray[np.uint8]]
    size: tuple[int, int]
    palette: bytes


class Truth(Protocol):
    """The annotation of a video, for scoring alone: it is never part of a `Video`."""

    @property
    def plan(self) -> Plan:
        """Which objects are scored in which frames, by their indices."""

    def read(self, frame: int) -> NDArray[np.uint8]:
        """The (H, W) label map of a scored frame."""


class ScoredVideo(NamedTuple):
    """What a test loader gives: one video, the truth if there is one, and its number in the split."""

    number: int
    video: Video
    truth: Truth | None


class Prediction(NamedTuple):
    """What a tracker says of one frame."""

    labels: Tensor  # (H, W) int64, object ids as given in the prompts, 0 = background
    probabilities: Tensor  # (1 + N, H, W) float32: background, then `object_ids` in order
    object_ids: tuple[int, ...]
    seconds: float  # time of network, decoding and memory for this frame; nothing of reading or writing
