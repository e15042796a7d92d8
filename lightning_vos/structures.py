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
    from pycocotools import _EncodedRLE as RLE
    from torch import Tensor

    from lightning_vos.evaluation.youtube_vis import Tracks
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


class Instances(NamedTuple):
    """The instances of one clip of T frames; each shows a pixel in one frame at least."""

    labels: Tensor  # (N,) int64 classes from 0 on, in the order of the dataset's category ids
    boxes: Tensor  # (N, T, 4) float32 centre x, centre y, width, height, as shares of the unpadded frame; 0 if absent
    masks: Tensor  # (N, T, H, W) bool on the padded frame
    valid: Tensor  # (N, T) bool, whether the instance is present in the frame


class InstanceClip(NamedTuple):
    """A batch of short clips with classes, to train on; each has one instance at least."""

    frames: Tensor  # (B, T, 3, H, W) float32 RGB in [0, 1], padded right and below with the mean colour of ImageNet
    sizes: Tensor  # (B, 2) int64, height and width before the padding, in pixels
    instances: tuple[Instances, ...]  # one entry a clip


@dataclass(frozen=True)
class InstanceVideo:
    """A video whose instances are to be found: frames that are read one by one, and nothing of its truth.

    Attributes:
        name: The name of the video.
        video_id: Its id in the dataset's JSON, which results repeat.
        frames: (3, H, W) float32 RGB in [0, 1], read when indexed.
        size: (H, W) of every frame and of the masks of results, in pixels.
        categories: Category id -> name, ids rising: class k is the k-th of them, results name its id.
    """

    name: str
    video_id: int
    frames: Sequence[Tensor]
    size: tuple[int, int]
    categories: Mapping[int, str]


class ScoredInstanceVideo(NamedTuple):
    """What a test loader gives: one video, its number in the split, and its tracks if they are public."""

    number: int
    video: InstanceVideo
    truth: Tracks | None  # for scoring alone


class InstanceResult(NamedTuple):
    """An instance that was found in a video, as one category; one that may be several is as many results."""

    instance: int  # its number in the video, which all results of the instance share
    category: int  # id
    score: float  # in (0, 1)
    masks: Sequence[RLE | None]  # one for each frame, at the video's size; None where nothing is said


class LabelledImages(NamedTuple):
    """A batch of images to learn from what they show, not where."""

    images: Tensor  # (B, C, H, W) float32, normalised as the dataset says; C is 3 for RGB, else the bands of the sensor
    labels: Tensor  # (B, K) float32 in {0, 1}: the classes that an image shows; background is none of them
    names: Sequence[str]  # B names


class MaskedImages(NamedTuple):
    """A batch of images to learn from what each of their pixels shows."""

    images: Tensor  # (B, C, H, W) float32, as those of `LabelledImages`
    masks: Tensor  # (B, H, W) int64, places in the dataset's class set, counted from 0; 255 is not learnt from
    names: Sequence[str]  # B names


class WholeImage(NamedTuple):
    """An image to segment: all that a network may see of it."""

    name: str  # of the image, without suffix; the result is saved under it
    pixels: Tensor  # (C, h, w) float32, normalised as in training
    size: tuple[int, int]  # (H, W) in pixels of the image on disk, which the result must have


class ImageTruth(NamedTuple):
    """The annotation of an image, for scoring alone: it is never part of a `WholeImage`."""

    labels: Tensor  # (K,) float32 in {0, 1}
    mask: Tensor | None  # (H, W) uint8, values as in the dataset's class set; None where the image has no mask


class ScoredImage(NamedTuple):
    """What a test loader gives: one image, the truth if there is one, and its number in the split."""

    number: int
    image: WholeImage
    truth: ImageTruth | None


class Prediction(NamedTuple):
    """What a tracker says of one frame."""

    labels: Tensor  # (H, W) int64, object ids as given in the prompts, 0 = background
    probabilities: Tensor  # (1 + N, H, W) float32: background, then `object_ids` in order
    object_ids: tuple[int, ...]
    seconds: float  # time of network, decoding and memory for this frame; nothing of reading or writing
