"""Augmentation and normalisation of single images, with or without a label map that moves along."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from datamodules.transforms import colour_jitter, import_albumentations, seeded

if TYPE_CHECKING:
    import albumentations

Pixels = NDArray[np.uint8] | NDArray[np.float32]
"""(H, W, C): RGB in 0 to 255, or the bands of a sensor as float32 in [0, 1]."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]
NOT_LEARNT = 255  # the value of a training mask where nothing is learnt
_NEGLIGIBLE = 1e-6  # keeps bands that are zero everywhere at zero


class Preparation(Protocol):
    """How an image becomes what a network takes: normalised planes (C, h, w)."""

    def train(self, image: Pixels, rng: np.random.Generator) -> NDArray[np.float32]:
        """Augment an image of a training set."""

    def whole(self, image: Pixels) -> NDArray[np.float32]:
        """Prepare an image that is to be segmented; nothing is drawn at random."""


@dataclass(frozen=True)
class ImageTransform:
    """Scale, flip, crop and colour, then normalise; images that are segmented are normalised alone.

    The paper names no augmentation. Scale, crop and flip are those which weakly supervised trainings on VOC and COCO
    share (ToCo, DuPL); a crop keeps the labels of its image. Of a label map the nearest pixels are taken.

    Attributes:
        crop: Height and width of a training image in pixels; a smaller one is placed at random among pixels of the
            mean colour.
        scale: An image grows by a factor in this range before the crop; bilinear.
        flip: Probability of a horizontal flip.
        vertical_flip: Probability of a vertical flip.
        jitter: Probability of colour jitter; images of three bands only.
        mean: Of each band in [0, 1], or one for all; it is subtracted.
        std: Of each band, or one for all; the result is divided by it.
    """

    crop: int = 448
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    vertical_flip: float = 0.0
    jitter: float = 0.5
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if self.crop < 1 or not 0 < self.scale[0] <= self.scale[1] or not min(self.std, default=0) > 0:
            raise ValueError(
                f"ImageTransform: crop={self.crop}, scale={self.scale}, std={self.std}; expected a positive size, a "
                "rising pair of positive factors and positive deviations"
            )

    def train(self, image: Pixels, rng: np.random.Generator) -> NDArray[np.float32]:
        """Augment an image: (H, W, C) to (C, crop, crop).

        Args:
            image: RGB, or the bands of a sensor.
            rng: The source of every draw; albumentations heeds no global seed.
        """
        return self.train_masked(image, np.zeros(image.shape[:2], np.uint8), rng)[0]

    def train_masked(
        self, image: Pixels, mask: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Augment an image and its label map alike.

        Args:
            image: (H, W, C), RGB or the bands of a sensor.
            mask: (H, W) label map.
            rng: The source of every draw; they are those of `train`.

        Returns:
            (C, crop, crop) planes and a (crop, crop) label map, which is 255 where the image was padded.
        """
        crop = (self.crop, self.crop)
        moved = seeded(self._move, rng)(image=image, mask=mask)
        window = random_window(moved["mask"].shape, crop, rng)
        cut = seeded(self._colour, rng)(image=np.ascontiguousarray(moved["image"][window]))["image"]
        planes, labels = self.whole(cut), np.ascontiguousarray(moved["mask"][window])
        if labels.shape == crop:
            return planes, labels
        padded = np.zeros((len(planes), *crop), np.float32)  # the mean is zero by now
        padded_labels = np.full(crop, NOT_LEARNT, np.uint8)
        rows, columns = random_window(crop, labels.shape, rng)
        padded[:, rows, columns] = planes
        padded_labels[rows, columns] = labels
        return padded, padded_labels

    def whole(self, image: Pixels) -> NDArray[np.float32]:
        """Normalise an image at its own size: (H, W, C) to (C, H, W)."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return _planes((_shares(image) - mean) / std)

    @cached_property
    def _move(self) -> albumentations.Compose:
        library = import_albumentations()
        low, high = self.scale
        scaling = library.RandomScale((low - 1, high - 1), p=1.0)
        flips = [library.HorizontalFlip(p=self.flip), library.VerticalFlip(p=self.vertical_flip)]
        return library.Compose([*([] if low == high == 1 else [scaling]), *flips])

    @cached_property
    def _colour(self) -> albumentations.Compose:
        return import_albumentations().Compose([colour_jitter(self.jitter)] if self.jitter else [])


@dataclass(frozen=True)
class OfficialTransform:
    """What the official code does with the images of one dataset: squash, augment, normalise.

    Attributes:
        size: (H, W) in pixels that images are brought to without regard to their shape, taking the nearest pixel; None
            keeps their own.
        normalisation: "bgr": mean and deviation of ImageNet, which are those of RGB, on BGR; "unit": to [0, 1];
            "maximum": the image by its largest value; "band maximum": each band by its own; "range": the smallest
            value of the image to 0, the largest to 1.
        affine: Probability of a shift by up to 5 pixels and a turn by up to 20 degrees, either way.
        zoom: The factor by which an image grows with it.
        flip: Probability of a horizontal flip, and of a vertical one.
        colour: Probability of CLAHE, and of a change of brightness and contrast.
        sensors: Bands at which another sensor begins; the sensors of an image move independently.
    """

    size: tuple[int, int] | None
    normalisation: Literal["bgr", "unit", "maximum", "band maximum", "range"]
    affine: float = 0.0
    zoom: float = 1.0
    flip: float = 0.0
    colour: float = 0.0
    sensors: tuple[int, ...] = ()

    def train(self, image: Pixels, rng: np.random.Generator) -> NDArray[np.float32]:
        """Augment an image: (H, W, C) to (C, *size).

        Args:
            image: RGB, or the bands of a sensor.
            rng: The source of every draw.
        """
        parts = np.split(self._squashed(image), [band for band in self.sensors if band < image.shape[-1]], axis=-1)
        moved = [seeded(self._augmentation, rng)(image=np.ascontiguousarray(part))["image"] for part in parts]
        return self._normalised(np.concatenate(moved, axis=-1))

    def whole(self, image: Pixels) -> NDArray[np.float32]:
        """Squash and normalise an image: (H, W, C) to (C, *size)."""
        return self._normalised(self._squashed(image))

    def _squashed(self, image: Pixels) -> Pixels:
        import cv2

        if self.size is None:
            return image
        # The element type stays, which OpenCV's stubs do not say.
        squashed: Pixels = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_NEAREST)  # type: ignore[assignment]
        return squashed

    def _normalised(self, image: Pixels) -> NDArray[np.float32]:
        shares = _shares(image)
        match self.normalisation:
            case "bgr":
                mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
                shares = (shares[..., ::-1] - mean) / std
            case "maximum":
                shares = shares / max(float(shares.max()), _NEGLIGIBLE)
            case "band maximum":
                shares = shares / np.maximum(shares.max(axis=(0, 1)), np.float32(_NEGLIGIBLE))
            case "range":
                shares = (shares - float(shares.min())) / max(float(np.ptp(shares)), _NEGLIGIBLE)
        return _planes(shares)

    @cached_property
    def _augmentation(self) -> albumentations.Compose:
        library = import_albumentations()
        return library.Compose(
            [
                *(
                    [library.CLAHE(p=self.colour), library.RandomBrightnessContrast(p=self.colour)]
                    if self.colour
                    else []
                ),
                library.Affine(scale=(self.zoom, self.zoom), translate_px=(-5, 5), rotate=(-20.0, 20.0), p=self.affine),
                library.HorizontalFlip(p=self.flip),
                library.VerticalFlip(p=self.flip),
            ]
        )


def random_window(size: tuple[int, int], window: tuple[int, int], rng: np.random.Generator) -> tuple[slice, slice]:
    """Choose where a window lies in an image.

    Args:
        size: (H, W) of the image.
        window: (H, W) of the window, cut down to the size of the image.
        rng: The source of the draws.

    Returns:
        Rows and columns.
    """
    spans = []
    for side, length in zip(size, window, strict=True):
        start = int(rng.integers(max(side - length, 0), endpoint=True))
        spans.append(slice(start, start + min(side, length)))
    return spans[0], spans[1]


def _shares(image: Pixels) -> NDArray[np.float32]:
    return np.asarray(image / np.float32(255) if image.dtype == np.uint8 else image, np.float32)


def _planes(image: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
