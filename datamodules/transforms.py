"""Augmentation of clips: of a video geometry is drawn once a clip, of an image once a frame; colour once a frame."""

from __future__ import annotations

import os
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import albumentations

_CROP_TRIES = 5
MEAN_COLOUR = (124, 116, 104)  # of ImageNet, RGB: what is filled with it is about zero for the network
_SEEDS = 2**32


def import_albumentations() -> Any:
    """The library, imported when it is first needed, and quietly."""
    # Otherwise it looks up its newest version over the network when it is imported.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


class ClipAugmentation(ABC):
    """What is done to the frames and masks of a clip before a network sees them.

    Attributes:
        min_pixels: What counts as an object, in pixels; see the class.
        one_size: Whether all clips come out in one size, so that the objects of one can be pasted over another.
    """

    min_pixels: int
    one_size: ClassVar[bool] = True

    @abstractmethod
    def __call__(
        self, frames: NDArray[np.uint8], masks: NDArray[np.uint8], rng: np.random.Generator, *, step: int = 0
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The augmented clip.

        Args:
            frames: (T, H, W, 3) RGB.
            masks: (T, H, W) label maps.
            rng: The source of every draw.
            step: The optimizer step that the clip is for.

        Returns:
            The same of another height and width.
        """


@dataclass(frozen=True)
class ClipTransform(ClipAugmentation):
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
                f"{type(self).__name__}: crop={self.crop}, short_side={self.short_side}, scale={self.scale}; "
                "expected positive sizes and a rising pair of positive factors"
            )

    def __call__(
        self, frames: NDArray[np.uint8], masks: NDArray[np.uint8], rng: np.random.Generator, *, step: int = 0
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The augmented clip.

        Args:
            frames: (T, H, W, 3) RGB.
            masks: (T, H, W) label maps.
            rng: The source of every draw; albumentations heeds no global seed.
            step: All steps are alike.

        Returns:
            (T, crop, crop, 3) and (T, crop, crop).
        """
        import cv2

        library = import_albumentations()
        # What only moves pixels is drawn on one picture and done frame by frame: of a stack, it makes several copies.
        height, width = seeded(self._scale, rng)(image=masks[0])["image"].shape
        masks = np.stack([cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST) for mask in masks])
        size = min(self.crop, height), min(self.crop, width)
        crop = seeded(library.Compose([library.RandomCrop(*size)], save_applied_params=True), rng)
        for _ in range(_CROP_TRIES):
            drawn = crop(image=masks[0])
            if np.bincount(drawn["image"].ravel(), minlength=256)[1:].max() > self.min_pixels:
                break
        left, top, right, bottom = _applied(drawn)["RandomCrop"]["crop_coords"]
        masks = masks[:, top:bottom, left:right]
        colour = seeded(self._colour, rng)
        inside = np.s_[top:bottom, left:right]
        coloured = [colour(image=image)["image"] for image in _scaled(frames, (height, width), inside)]
        places = _applied(seeded(self._place, rng)(image=coloured[0]))
        step = -1 if "HorizontalFlip" in places else 1
        if size == (self.crop, self.crop):
            return np.stack([image[:, ::step] for image in coloured]), np.ascontiguousarray(masks[:, :, ::step])
        top, left = places["PadIfNeeded"]["pad_top"], places["PadIfNeeded"]["pad_left"]
        window = np.s_[:, top : top + masks.shape[1], left : left + masks.shape[2]]
        images = np.full((len(frames), self.crop, self.crop, 3), MEAN_COLOUR, np.uint8)
        images[window] = [image[:, ::step] for image in coloured]
        labels = np.zeros(images.shape[:3], np.uint8)
        labels[window] = masks[:, :, ::step]
        return images, labels

    @cached_property
    def _scale(self) -> albumentations.Compose:
        import cv2

        library = import_albumentations()
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
        return import_albumentations().Compose([colour_jitter(self.jitter), *_grey_and_blur(self.grey, self.blur)])

    @cached_property
    def _place(self) -> albumentations.Compose:
        library = import_albumentations()
        return library.Compose(
            [
                library.HorizontalFlip(p=self.flip),
                library.PadIfNeeded(self.crop, self.crop, position="random", fill=MEAN_COLOUR, fill_mask=0),
            ],
            save_applied_params=True,
        )


@dataclass(frozen=True)
class StillTransform(ClipTransform):
    """Makes a clip of one image by moving it; how DeAOT and MAVOS are trained before they see videos.

    The image is flipped once a clip, and its objects change places. Each frame has its own colour jitter, crop of
    random size and shape, grey and blur; frames after the first are flipped, turned, shifted, scaled and sheared before
    the crop, over the mean colour and background. Images bicubic, masks nearest.

    Attributes:
        crop: As `ClipTransform`, and so are `flip`, `jitter`, `grey` and `blur`.
        short_side: Not used: the image keeps its size until it is cropped.
        scale: Frames after the first grow by a factor in this range.
        area: The share of the image that a crop shows is uniform in this range; its sides are as 3:4 to 4:3.
        frame_flip: Probability of a horizontal flip of a frame after the first.
        rotation: Frames after the first turn by up to this many degrees either way.
        translation: They shift by up to this share of width and of height either way.
        shear: They lean by up to this many degrees either way.
        min_pixels: Objects that show no more pixels in the first frame of a merged clip are left out.
    """

    scale: tuple[float, float] = (0.9, 1.1)
    area: tuple[float, float] = (0.8, 1.0)
    frame_flip: float = 0.3
    rotation: float = 20.0
    translation: float = 0.1
    shear: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"StillTransform: area={self.area}; expected a rising pair of shares of 1")

    def __call__(
        self, frames: NDArray[np.uint8], masks: NDArray[np.uint8], rng: np.random.Generator, *, step: int = 0
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The clip.

        Args:
            frames: (T, H, W, 3) RGB, T times the image.
            masks: (T, H, W) label maps.
            rng: The source of every draw; albumentations heeds no global seed.
            step: All steps are alike.

        Returns:
            (T, crop, crop, 3) and (T, crop, crop), the labels exchanged.
        """
        exchanged = np.concatenate([np.zeros(1, np.uint8), 1 + rng.permutation(255).astype(np.uint8)])
        clip = seeded(self._turn, rng)(images=frames, masks=exchanged[masks])
        first, later = seeded(self._first, rng), seeded(self._later, rng)
        done = [
            (later if time else first)(image=frame, mask=mask)
            for time, (frame, mask) in enumerate(zip(clip["images"], clip["masks"], strict=True))
        ]
        return np.stack([one["image"] for one in done]), np.stack([one["mask"] for one in done])

    @cached_property
    def _turn(self) -> albumentations.Compose:
        library = import_albumentations()
        return library.Compose([library.HorizontalFlip(p=self.flip)])

    @cached_property
    def _first(self) -> albumentations.Compose:
        return import_albumentations().Compose(
            [colour_jitter(self.jitter), self._crop, *_grey_and_blur(self.grey, self.blur)]
        )

    @cached_property
    def _later(self) -> albumentations.Compose:
        import cv2

        library = import_albumentations()
        around = (-self.translation, self.translation)
        motion = [
            library.HorizontalFlip(p=self.frame_flip),
            library.Affine(
                scale=self.scale,
                translate_percent={"x": around, "y": around},
                rotate=(-self.rotation, self.rotation),
                shear={"x": (-self.shear, self.shear), "y": (0, 0)},
                interpolation=cv2.INTER_CUBIC,
                mask_interpolation=cv2.INTER_NEAREST,
                keep_ratio=True,
                fill=MEAN_COLOUR,
                fill_mask=0,
                p=1.0,
            ),
        ]
        return library.Compose([colour_jitter(self.jitter), *motion, self._crop, *_grey_and_blur(self.grey, self.blur)])

    @property
    def _crop(self) -> albumentations.RandomResizedCrop:
        import cv2

        return import_albumentations().RandomResizedCrop(
            (self.crop, self.crop),
            scale=self.area,
            ratio=(3 / 4, 4 / 3),
            interpolation=cv2.INTER_CUBIC,
            mask_interpolation=cv2.INTER_NEAREST,
        )


def colour_jitter(probability: float) -> albumentations.ColorJitter:
    """The colour jitter of the AOT family's recipes."""
    return import_albumentations().ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=probability)


def _grey_and_blur(grey: float, blur: float) -> list[albumentations.BasicTransform]:
    library = import_albumentations()
    return [library.ToGray(p=grey), library.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=blur)]


def _scaled(
    frames: NDArray[np.uint8], size: tuple[int, int], inside: tuple[slice, slice]
) -> Iterator[NDArray[np.uint8]]:
    """The part `inside` of each (H, W, 3) frame after it was brought to `size`, bicubic.

    To the last bit what albumentations makes of the stack: it hands the channels of all frames to OpenCV in fours, and
    OpenCV rounds otherwise where there are fewer. What is left over are three, or one by one.
    """
    import cv2

    def resized(pixels: NDArray[Any]) -> NDArray[Any]:
        return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_CUBIC)[inside]

    *before, last = frames
    for frame in before:
        yield np.ascontiguousarray(resized(cv2.cvtColor(frame, cv2.COLOR_RGB2RGBA))[..., :3])
    over = 3 * len(frames) % 4
    image = resized(last if over == 3 else cv2.cvtColor(last, cv2.COLOR_RGB2RGBA))[..., :3]
    for channel in range(3 - over, 3) if over < 3 else ():
        image[..., channel] = resized(last[..., channel])
    yield np.ascontiguousarray(image)


def _applied(drawn: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The names of the transforms that were applied, and what was drawn for them."""
    return dict(drawn["applied_transforms"])


def seeded(pipeline: albumentations.Compose, rng: np.random.Generator) -> albumentations.Compose:
    """The pipeline, which draws from `rng` from here on."""
    # set_random_seed would give every part of the pipeline the same draws: a grey frame would always be jittered too.
    pipeline.set_random_state(rng, random.Random(int(rng.integers(_SEEDS))))
    return pipeline
