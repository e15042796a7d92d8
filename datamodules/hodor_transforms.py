"""How HODOR augments clips: whole frames of a video, or the motions of a single one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.pseudo_videos import (
    Matrix,
    Motion,
    affine,
    draw_colours,
    first_crop,
    keeps_objects,
    perspective,
    pseudo_video,
    warped,
)
from datamodules.transforms import MEAN_COLOUR, ClipAugmentation
from lightning_vos.io.masks import resized

_MULTIPLE = 32
_WARP_TRIES = 3


@dataclass(frozen=True)
class WholeFrameTransform(ClipAugmentation):
    """Move, resize, colour, flip and pad the whole frames of a clip; HODOR's recipe for videos.

    All frames move alike, as the objects of the first allow: half of the clips are cropped as the first frame of
    `datamodules.pseudo_videos.pseudo_video` with `hodor_fancy`; the others are, with equal chances, turned by up to 20
    degrees and sheared by up to 10, or seen in a perspective of deviation 0.08 to 0.10. Such a motion is drawn up to
    three times until every object of the first frame keeps half of its pixels and more than `min_pixels`, else there is
    none. What has no source, and the padding below and to the right to multiples of 32, is of the mean colour, and
    background.

    Differs from the published code: frames are moved and resized in one step, crops bicubic, else bilinear.

    Attributes:
        short_side: The shorter side of a frame is resized to this, in pixels, ...
        long_side: ... or the longer one to this, where it would be longer.
        flip: Probability of a horizontal flip of the clip.
        colour: Whether shifts of colour (hue and saturation by up to 12 of 256, contrast 0.95 to 1.05, brightness by up
            to 20) are drawn for the clip (dense stage) or for each frame (sparse stage).
        min_pixels: An object shows at least this many pixels of the first frame as it is on disk.
        min_side: Its box there is at least this wide and high.
    """

    short_side: int = 576
    long_side: int = 1200
    flip: float = 0.5
    colour: Literal["clip", "frame"] = "frame"
    min_pixels: int = 2000
    min_side: int = 20
    one_size: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.short_side <= self.long_side:
            raise ValueError(
                f"WholeFrameTransform: short_side={self.short_side}, long_side={self.long_side}; "
                "expected positive sizes, the long side not below the short one"
            )

    def __call__(
        self, frames: NDArray[np.uint8], masks: NDArray[np.uint8], rng: np.random.Generator, *, step: int = 0
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The augmented clip.

        Args:
            frames: (T, H, W, 3) RGB.
            masks: (T, H, W) label maps.
            rng: The source of every draw.
            step: All steps are alike.

        Returns:
            Frames and masks of the padded size.
        """
        first = large_objects(masks[0], self.min_pixels, self.min_side)
        size = self._size(*first.shape)
        if rng.random() < 0.5:
            steps, method, fill = first_crop(first, rng, self.min_pixels), cv2.INTER_CUBIC, None
        else:
            steps, method, fill = self._warp(first, rng), cv2.INTER_LINEAR, MEAN_COLOUR
        matrix = _scaling(first.shape, size)
        if rng.random() < self.flip:
            matrix = np.array([[-1, 0, size[1] - 1], [0, 1, 0], [0, 0, 1]]) @ matrix
        if steps:
            matrix = matrix @ steps[0]
        else:
            method, fill = cv2.INTER_LINEAR, None
        colours = [draw_colours(rng, 20) for _ in range(len(frames) if self.colour == "frame" else 1)]
        if self.colour == "clip":
            colours *= len(frames)
        moved = [
            warped(one.shift(frame), matrix, method, fill, size) for one, frame in zip(colours, frames, strict=True)
        ]
        edge = None if fill is None else (0,)
        labels = [warped(mask, matrix, cv2.INTER_NEAREST, edge, size) for mask in (first, *masks[1:])]
        return padded(moved, labels)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        scale = min(self.short_side / min(height, width), self.long_side / max(height, width))
        return max(round(scale * height), 1), max(round(scale * width), 1)

    def _warp(self, labels: NDArray[np.uint8], rng: np.random.Generator) -> list[Matrix]:
        height, width = labels.shape
        for _ in range(_WARP_TRIES):
            if rng.random() < 0.5:
                matrix = affine(rng, height, width, turn=20, shear=10)
            else:
                matrix = perspective(rng, height, width, rng.uniform(0.08, 0.10))
            if keeps_objects(labels, warped(labels, matrix, cv2.INTER_NEAREST, (0,)), self.min_pixels):
                return [matrix]
        return []


@dataclass(frozen=True)
class PseudoVideoTransform(ClipAugmentation):
    """Makes a clip of its first frame by moving it; with `OneFrameSampler`, training on videos without their motion.

    Frames are padded below and to the right, to multiples of 32, with the mean colour and background.

    Attributes:
        motion: How the frame becomes a clip, see `datamodules.pseudo_videos.pseudo_video`.
        area: Height times width of a clip before the padding, in pixels; the shape of the frame is kept.
        min_pixels: An object shows at least this many pixels of the frame as it is on disk.
        min_side: Its box there is at least this wide and high.
    """

    motion: Motion = "hodor"
    area: int = 300_000
    min_pixels: int = 2000
    min_side: int = 20
    one_size: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.area < 1:
            raise ValueError(f"PseudoVideoTransform: area={self.area}; expected at least 1")

    def __call__(
        self, frames: NDArray[np.uint8], masks: NDArray[np.uint8], rng: np.random.Generator, *, step: int = 0
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The clip.

        Args:
            frames: (T, H, W, 3) RGB, of which the first is used.
            masks: (T, H, W) label maps, of which the first is used.
            rng: The source of every draw.
            step: All steps are alike.

        Returns:
            Frames and masks of the padded size.
        """
        labels = large_objects(masks[0], self.min_pixels, self.min_side)
        clip = pseudo_video(self.motion, frames[0], labels, len(frames), rng, self.min_pixels)
        return padded(*resized_to_area(*clip, self.area))


def large_objects(labels: NDArray[np.uint8], min_pixels: int, min_side: int) -> NDArray[np.uint8]:
    """The (H, W) label map without objects of fewer pixels, or of a box that is narrower or lower."""
    kept = np.bincount(labels.ravel(), minlength=256) >= max(min_pixels, 1)
    for number in np.flatnonzero(kept[1:]) + 1:
        _, _, width, height = cv2.boundingRect((labels == number).view(np.uint8))
        kept[number] = min(width, height) >= min_side
    return np.where(kept[labels], labels, np.uint8(0))


def resized_to_area(
    frames: Iterable[NDArray[np.uint8]], masks: Iterable[NDArray[np.uint8]], area: int
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Bring T (H, W, 3) frames and (H, W) masks of one size to an area, in pixels, of the same shape."""
    masks = list(masks)
    rows = max(math.floor(math.sqrt(masks[0].shape[0] / masks[0].shape[1] * area)), 1)
    size = rows, max(area // rows, 1)
    larger = [cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR) for frame in frames]
    return [np.asarray(frame, np.uint8) for frame in larger], [resized(mask, size) for mask in masks]


def padded(
    frames: Iterable[NDArray[np.uint8]], masks: Iterable[NDArray[np.uint8]]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """T (H, W, 3) frames and (H, W) masks with mean colour and background below and to the right, to multiples of 32.

    Returns:
        (T, H, W, 3) and (T, H, W).
    """

    def larger(pixels: NDArray[np.uint8], fill: tuple[int, ...]) -> NDArray[np.uint8]:
        down, right = (-side % _MULTIPLE for side in pixels.shape[:2])
        return np.asarray(cv2.copyMakeBorder(pixels, 0, down, 0, right, cv2.BORDER_CONSTANT, value=fill), np.uint8)

    return np.stack([larger(frame, MEAN_COLOUR) for frame in frames]), np.stack([larger(mask, (0,)) for mask in masks])


def _scaling(before: tuple[int, ...], after: tuple[int, int]) -> Matrix:
    """Where a pixel comes to lie when the frame is resized; pixel centres lie at half a pixel from the edge."""
    down, right = after[0] / before[0], after[1] / before[1]
    return np.array([[right, 0, (right - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]])
