"""How XMem and QMVOS augment clips of videos: all frames alike, then each by itself a little."""

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
        rotation: A frame turns by up to this many degrees either way; 0 in the published fine-tuning.
        shear: It leans sideways by up to this many degrees either way; 0 in the published fine-tuning.
        min_pixels: All is drawn up to five times until the first frame shows an object of more pixels than this.
    """

    crop: int = 384
    area: tuple[float, float] = (0.36, 1.0)
    rotation: float = 15.0
    shear: float = 10.0
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

    def __call__(
        self, frames: NDArray[np.uint8], masks: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The augmented clip.

        Args:
            frames: (T, H, W, 3) RGB.
            masks: (T, H, W) label maps; 255, not annotated, is no object and stays.
            rng: The source of every draw; albumentations heeds no global seed.

        Returns:
            (T, crop, crop, 3) and (T, crop, crop).
        """
        (first, *others) = zip(frames, masks, strict=True)
        for _ in range(_TRIES):
            seed, each = int(rng.integers(_SEEDS)), seeded(self._each, rng)
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
        jitter = library.ColorJitter(brightness=0.1, contrast=0.03, saturation=0.03, hue=0.0, p=1.0)
        return library.Compose([crop, library.HorizontalFlip(p=0.5), jitter, library.ToGray(p=0.05)])

    @cached_property
    def _each(self) -> albumentations.Compose:
        import cv2

        library = import_albumentations()
        motion = library.Affine(
            rotate=(-self.rotation, self.rotation),
            shear={"x": (-self.shear, self.shear), "y": (0, 0)},
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_NEAREST,
            fill=MEAN_COLOUR,
            fill_mask=0,
            p=1.0,
        )
        jitter = library.ColorJitter(brightness=0.01, contrast=0.01, saturation=0.01, hue=0.0, p=1.0)
        return library.Compose([motion, jitter])
