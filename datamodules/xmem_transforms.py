"""How XMem and QMVOS augment clips, of videos and of still images: all frames alike, then each by itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from datamodules.transforms import MEAN_COLOUR, ClipAugmentation, import_albumentations, seeded
from lightning_vos.losses.segmentation import IGNORED

if TYPE_CHECKING:
    import albumentations

_TRIES = 5
_SEEDS = 2**32
_FILLS = {"fill": MEAN_COLOUR, "fill_mask": 0}


@dataclass(frozen=True)
class ResizedCropTransform(ClipAugmentation):
    """Crop and resize a clip to a square, flip and colour it, then turn and lean each frame by itself.

    All frames have the same crop, flip, colour jitter (brightness 0.1, contrast and saturation 0.03) and, one clip of
    twenty, no colour. Then each has its own rotation, shear and fainter jitter (0.01 of each); what has no source is of
    the mean colour, and background. Images bilinear, masks nearest.

    Differs from the published code: frames are not smoothed before they shrink, as Pillow does.

    Attributes:
        crop: Height and width of the result, in pixels.
        area: The share of a frame that the crop shows is uniform in this range; its sides are as 3:4 to 4:3.
        rotation: A frame turns by up to this many degrees either way.
        shear: It leans sideways by up to this many degrees either way.
        fine_tune_from: From this optimizer step on frames neither turn nor lean; None: they always do.
        min_pixels: All is drawn up to five times until the first frame shows an object of more pixels than this.
    """

    crop: int = 384
    area: tuple[float, float] = (0.36, 1.0)
    rotation: float = 15.0
    shear: float = 10.0
    fine_tune_from: int | None = None
    min_pixels: int = 0
    # Said again, with ClassVar imported: else the command line could not read the types above, and would check none.
    one_size: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.crop < 1 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(
                f"ResizedCropTransform: crop={self.crop}, area={self.area}; "
                "expected at least 1 pixel, and a rising pair of shares of 1"
            )
        if not 0 <= self.rotation <= 180 or not 0 <= self.shear < 90:
            raise ValueError(
                f"ResizedCropTransform: rotation={self.rotation}, shear={self.shear}; "
                "expected 0 to 180 degrees, and 0 to less than 90"
            )
        if self.fine_tune_from is not None and self.fine_tune_from < 0:
            raise ValueError(f"ResizedCropTransform: fine_tune_from={self.fine_tune_from}; expected a step, from 0 on")

    def __call__(
        self, frames: NDArray[np.uint8], masks: NDArray[np.uint8], rng: np.random.Generator, *, step: int = 0
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The augmented clip.

        Args:
            frames: (T, H, W, 3) RGB.
            masks: (T, H, W) label maps; 255, not annotated, is no object and stays.
            rng: The source of every draw; albumentations heeds no global seed.
            step: The optimizer step that the clip is for.

        Returns:
            (T, crop, crop, 3) and (T, crop, crop).
        """
        (first, *others) = zip(frames, masks, strict=True)
        moves = self.fine_tune_from is None or step < self.fine_tune_from
        for _ in range(_TRIES):
            seed, each = int(rng.integers(_SEEDS)), seeded(self._moved if moves else self._unmoved, rng)
            done = [each(**self._alike(*first, seed))]
            if np.bincount(done[0]["mask"].ravel(), minlength=256)[1:IGNORED].max() > self.min_pixels:
                break
        done += [each(**self._alike(*one, seed)) for one in others]
        return np.stack([one["image"] for one in done]), np.stack([one["mask"] for one in done])

    def _alike(self, frame: NDArray[np.uint8], mask: NDArray[np.uint8], seed: int) -> dict[str, NDArray[np.uint8]]:
        """Image and mask after what is the same for all frames that are given the same seed."""
        moved = seeded(self._clip, np.random.default_rng(seed))(image=frame, mask=mask)
        return {"image": moved["image"], "mask": moved["mask"]}

    @cached_property
    def _clip(self) -> albumentations.Compose:
        import cv2

        library = import_albumentations()
        crop = library.RandomResizedCrop(
            (self.crop, self.crop),
            scale=self.area,
            ratio=(3 / 4, 4 / 3),
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_NEAREST,
        )
        return library.Compose([crop, library.HorizontalFlip(p=0.5), *_colours_of_clip()])

    @cached_property
    def _moved(self) -> albumentations.Compose:
        import cv2

        library = import_albumentations()
        motion = library.Affine(
            rotate=(-self.rotation, self.rotation),
            shear={"x": (-self.shear, self.shear), "y": (0, 0)},
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_NEAREST,
            **_FILLS,
            p=1.0,
        )
        return library.Compose([motion, _jitter_of_frame()])

    @cached_property
    def _unmoved(self) -> albumentations.Compose:
        return import_albumentations().Compose([_jitter_of_frame()])


@dataclass(frozen=True)
class DeformedStillTransform(ClipAugmentation):
    """Makes a clip of one image by moving and bending it; how XMem is trained before it sees videos.

    The image is brought to the size of the crop by its shorter side, zoomed about its middle, flipped and coloured
    once a clip; colours are those of `ResizedCropTransform`. Then each frame is by itself turned, scaled and leaned,
    sometimes bent by a thin-plate spline, cropped at a random place and faintly jittered. What has no source is of the
    mean colour, and background. Images bicubic, masks nearest.

    Differs from the published code: its masks are bicubic, too, and then thresholded, which takes a single object. Its
    splines have twelve control points, those of albumentations a grid of three by three; they bend as far.

    Attributes:
        crop: Height and width of the result, in pixels.
        zoom: The clip grows by a factor that is uniform in this range.
        flip: Probability of a horizontal flip of the clip.
        scale: A frame grows by a factor that is uniform in this range.
        rotation: It turns by up to this many degrees either way.
        shear: It leans sideways by up to this many degrees either way.
        spline: Probability that it is bent.
        bend: Standard deviation of where control points come to lie, as a share of each side, at most 0.1.
        min_pixels: Objects that show no more pixels in the first frame of a merged clip are left out.
    """

    crop: int = 384
    zoom: tuple[float, float] = (0.8, 1.5)
    flip: float = 0.5
    scale: tuple[float, float] = (0.9, 1.1)
    rotation: float = 20.0
    shear: float = 10.0
    spline: float = 0.33
    bend: float = 0.02
    min_pixels: int = 0

    def __post_init__(self) -> None:
        if self.crop < 1 or not all(0 < low <= high for low, high in (self.zoom, self.scale)):
            raise ValueError(
                f"DeformedStillTransform: crop={self.crop}, zoom={self.zoom}, scale={self.scale}; "
                "expected at least 1 pixel, and rising pairs of positive factors"
            )
        if not 0 <= self.rotation <= 180 or not 0 <= self.shear < 90:
            raise ValueError(
                f"DeformedStillTransform: rotation={self.rotation}, shear={self.shear}; "
                "expected 0 to 180 degrees, and 0 to less than 90"
            )
        if not 0 <= self.flip <= 1 or not 0 <= self.spline <= 1 or not 0 <= self.bend <= 0.1:
            raise ValueError(
                f"DeformedStillTransform: flip={self.flip}, spline={self.spline}, bend={self.bend}; "
                "expected two probabilities, and a share of 0 to 0.1"
            )

    def __call__(
        self, frames: NDArray[np.uint8], masks: NDArray[np.uint8], rng: np.random.Generator, *, step: int = 0
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The clip.

        Args:
            frames: (T, H, W, 3) RGB, T times the image.
            masks: (T, H, W) label maps, T times that of the image.
            rng: The source of every draw; albumentations heeds no global seed.
            step: All steps are alike.

        Returns:
            (T, crop, crop, 3) and (T, crop, crop).
        """
        image = seeded(self._clip, rng)(image=frames[0], mask=masks[0])
        each = seeded(self._each, rng)
        done = [each(image=image["image"], mask=image["mask"]) for _ in frames]
        return np.stack([one["image"] for one in done]), np.stack([one["mask"] for one in done])

    @cached_property
    def _clip(self) -> albumentations.Compose:
        library, ways = import_albumentations(), _bicubic()
        return library.Compose(
            [
                library.SmallestMaxSize(self.crop, **ways),
                library.Affine(scale=self.zoom, keep_ratio=True, **ways, **_FILLS, p=1.0),
                library.HorizontalFlip(p=self.flip),
                *_colours_of_clip(),
            ]
        )

    @cached_property
    def _each(self) -> albumentations.Compose:
        library, ways = import_albumentations(), _bicubic()
        motion = library.Affine(
            scale=self.scale,
            rotate=(-self.rotation, self.rotation),
            shear={"x": (-self.shear, self.shear), "y": (0, 0)},
            keep_ratio=True,
            **ways,
            **_FILLS,
            p=1.0,
        )
        # Its range is in tenths of the sides. With four points a side, its splines bend three times as far, and fold.
        bending = library.ThinPlateSpline(
            scale_range=(10 * self.bend, 10 * self.bend), num_control_points=3, **ways, **_FILLS, p=self.spline
        )
        return library.Compose([motion, bending, library.RandomCrop(self.crop, self.crop), _jitter_of_frame()])


def _colours_of_clip() -> list[albumentations.BasicTransform]:
    library = import_albumentations()
    jitter = library.ColorJitter(brightness=0.1, contrast=0.03, saturation=0.03, hue=0.0, p=1.0)
    return [jitter, library.ToGray(p=0.05)]


def _jitter_of_frame() -> albumentations.ColorJitter:
    return import_albumentations().ColorJitter(brightness=0.01, contrast=0.01, saturation=0.01, hue=0.0, p=1.0)


def _bicubic() -> dict[str, int]:
    """How images and masks are interpolated."""
    import cv2

    return {"interpolation": cv2.INTER_CUBIC, "mask_interpolation": cv2.INTER_NEAREST}
