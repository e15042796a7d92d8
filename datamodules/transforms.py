"""Augmentation of a clip: geometry is drawn once a clip, colour once a frame."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import albumentations

_CROP_TRIES = 5
_PADDING = (124, 116, 104)  # the ImageNet mean, so that padding is about zero for the network
_SEEDS = 2**32


def _albumentations() -> Any:
    # Otherwise it looks up its newest version over the network when it is imported.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


@dataclass(frozen=True)
class ClipTransform:
    """Scale, crop, colour, flip and pad a clip to a square, in this order; the recipe of DeAOT and MAVOS.

    Attributes:
        crop: Height and width of the result, in pixels.
        short_side: The shorter side of a frame before `scale`, in pixels.
        scale: The factor on `short_side` is uniform in this range; images bicubic, masks nearest.
        flip: Probability of a horizontal flip of the clip.
        jitter: Probability of colour jitter of a frame.
        grey: Probability that a frame loses its colour.
        blur: Probability of a Gaussian blur of a frame, sigma uniform in 0.1 to 2 pixels.
        min_pixels: A crop is drawn up to five times until its first frame shows an object of more pixels than this.
    """

    crop: int = 465
    short_side: int = 480
    scale: tuple[float, float] = (0.7, 1.3)
    flip: float = 0.5
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.3
    min_pixels: int = 100

    def __post_init__(self) -> None:
        if self.crop < 1 or self.short_side < 1 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(
                f"ClipTransform: crop={self.crop}, short_side={self.short_side}, scale={self.scale}; "
                "expected positive sizes and a rising pair of positive factors"
            )

    def __call__(
        self, frames: NDArray[np.uint8], masks: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The augmented clip.

        Args:
            frames: (T, H, W, 3) RGB.
            masks: (T, H, W) label maps.
            rng: The source of every draw; albumentations heeds no global seed.

        Returns:
            (T, crop, crop, 3) and (T, crop, crop).
        """
        scaled = _seeded(self._scale, rng)(images=frames, masks=masks)
        height, width = scaled["masks"].shape[1:]
        library = _albumentations()
        window = library.RandomCrop(min(self.crop, height), min(self.crop, width))
        crop = _seeded(library.Compose([window]), rng)
        for _ in range(_CROP_TRIES):
            clip = crop(images=scaled["images"], masks=scaled["masks"])
            if np.bincount(clip["masks"][0].ravel(), minlength=256)[1:].max() > self.min_pixels:
                break
        colour = _seeded(self._colour, rng)
        coloured = np.stack([colour(image=frame)["image"] for frame in clip["images"]])
        done = _seeded(self._place, rng)(images=coloured, masks=clip["masks"])
        return done["images"], done["masks"]

    @cached_property
    def _scale(self) -> albumentations.Compose:
        import cv2

        library = _albumentations()
        low, high = (round(factor * self.short_side) for factor in self.scale)
        return library.Compose(
            [
                library.SmallestMaxSize(
                    list(range(low, high + 1)), interpolation=cv2.INTER_CUBIC, mask_interpolation=cv2.INTER_NEAREST
                )
            ]
        )

    @cached_property
    def _colour(self) -> albumentations.Compose:
        library = _albumentations()
        return library.Compose(
            [
                library.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=self.jitter),
                library.ToGray(p=self.grey),
                library.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=self.blur),
            ]
        )

    @cached_property
    def _place(self) -> albumentations.Compose:
        library = _albumentations()
        return library.Compose(
            [
                library.HorizontalFlip(p=self.flip),
                library.PadIfNeeded(self.crop, self.crop, position="random", fill=_PADDING, fill_mask=0),
            ]
        )


def _seeded(pipeline: albumentations.Compose, rng: np.random.Generator) -> albumentations.Compose:
    # set_random_seed would give every part of the pipeline the same draws: a grey frame would always be jittered too.
    pipeline.set_random_state(rng, random.Random(int(rng.integers(_SEEDS))))
    return pipeline
