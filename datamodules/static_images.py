"""Images with the masks of their objects: clips to pre-train on, and pseudo-videos to score."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from datamodules.base import Split, VOSDataModule
from datamodules.readers import SequenceFiles, masks_of
from datamodules.transforms import MEAN_COLOUR, StillTransform
from lightning_vos.errors import DatasetNotFoundError, MaskError
from lightning_vos.evaluation.protocols import appearing_plan
from lightning_vos.io.frames import FRAME_SUFFIXES, frame_size, list_frames, read_frame, to_tensor
from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette
from lightning_vos.structures import ScoredVideo, Video

if TYPE_CHECKING:
    from torch import Tensor

_IMAGES, _MASKS = "JPEGImages", "Annotations"
_VIDEO_LENGTH = 8  # frames of a pseudo-video
_PROBED = 5  # masks of a set that are looked at before anything is trained on it
_TRANSFORM = StillTransform()


class _Motion(NamedTuple):
    """Where an image has moved to by the end of its pseudo-video."""

    degrees: float
    scale: float
    right: float  # share of the width
    down: float  # share of the height

    @classmethod
    def of(cls, number: int) -> _Motion:
        """The motion of the `number`-th video, the same in every run."""
        rng = np.random.default_rng(number)
        return cls(rng.uniform(-20, 20), rng.uniform(0.9, 1.1), rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1))

    def apply(self, pixels: NDArray[np.uint8], time: int, *, is_mask: bool) -> NDArray[np.uint8]:
        """The (H, W, ...) pixels at a time: images bilinear over the mean colour, masks nearest over background."""
        import cv2

        height, width = pixels.shape[:2]
        share = time / (_VIDEO_LENGTH - 1)
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), self.degrees * share, self.scale**share)
        matrix[:, 2] += share * self.right * width, share * self.down * height
        method, fill = (cv2.INTER_NEAREST, (0,)) if is_mask else (cv2.INTER_LINEAR, MEAN_COLOUR)
        return np.asarray(cv2.warpAffine(pixels, matrix, (width, height), flags=method, borderValue=fill), np.uint8)


class _MovedImage(Sequence["Tensor"]):
    """The frames of a pseudo-video, (3, H, W) float32 RGB in [0, 1]; the image is read with the first."""

    def __init__(self, path: Path, motion: _Motion) -> None:
        self.path = path
        self.motion = motion

    @cached_property
    def _image(self) -> NDArray[np.uint8]:
        return read_frame(self.path)

    def __len__(self) -> int:
        return _VIDEO_LENGTH

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        times = range(_VIDEO_LENGTH)[index]
        if isinstance(times, range):
            return [self[time] for time in times]
        return to_tensor(self.motion.apply(self._image, times, is_mask=False))


class _MovedTruth:
    """The mask of an image, moved with it; all its objects are scored in all frames but the first and the last."""

    def __init__(self, labels: NDArray[np.uint8], motion: _Motion) -> None:
        self.labels = labels
        self.motion = motion
        self.plan = appearing_plan(range(_VIDEO_LENGTH))

    def read(self, frame: int) -> NDArray[np.uint8]:
        """The (H, W) label map of a frame."""
        return self.motion.apply(self.labels, frame, is_mask=True)


@dataclass(frozen=True)
class StillImage(SequenceFiles):
    """An image and its mask: a sequence of one frame to draw clips from, a pseudo-video to score."""

    def load(self, index: int) -> ScoredVideo:
        """The image, turned, scaled and shifted steadily by a motion that is a function of `index` alone.

        Args:
            index: The number of the video in its split.

        Raises:
            MaskError: The mask shows no object, or cannot be used.
        """
        motion, prompts = _Motion.of(index), self._prompts()
        video = Video(
            name=self.name,
            frames=_MovedImage(self.frames[0], motion),
            frame_names=[f"{time:05}" for time in range(_VIDEO_LENGTH)],
            prompts=prompts,
            size=self.size,
            palette=read_palette(self.masks[0]) or VOC_PALETTE,
        )
        return ScoredVideo(index, video, _MovedTruth(prompts[0], motion))


class _StillImages(Sequence[SequenceFiles]):
    """Many images as little but text: workers copy what they touch, and sets have 100,000 images and more."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = pairs  # the paths of an image and its mask

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> SequenceFiles: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SequenceFiles]: ...
    def __getitem__(self, index: int | slice) -> SequenceFiles | Sequence[SequenceFiles]:
        if isinstance(index, slice):
            return _StillImages(self.pairs[index])
        image, mask = map(Path, self.pairs[index])
        return StillImage(f"{image.parents[1].name}-{image.stem}", [image], {0: mask})


class StaticImages(VOSDataModule):
    """Images to pre-train on: `root/<set>/JPEGImages/*.jpg` and their masks `root/<set>/Annotations/*.png`.

    Masks are indexed PNGs named as their images; 255 is background. A clip is one image, moved by `transform`, with the
    objects of a second one pasted over it. Images that are kept from training become pseudo-videos of 8 frames, the
    same in every run, which are validated, tested and predicted; the published trainings do not validate this stage.

    Args:
        root: The folder that holds the sets, or holds them in `static`.
        sets: The names of the sets to use; all that are there if not given.
        validation_images: How many images are kept from training, evenly spread over all; at most every fifth.
        transform: How an image becomes a clip.
        merge: Probability that the objects of a second clip are pasted over a clip.
        **parts: What every dataset takes, see `VOSDataModule`; of the sampler, only `length` matters.

    Raises:
        ValueError: No image is to be kept.
    """

    def __init__(
        self,
        root: Path,
        sets: Sequence[str] | None = None,
        validation_images: int = 50,
        transform: StillTransform = _TRANSFORM,
        merge: float = 1.0,
        **parts: Any,
    ) -> None:
        if validation_images < 1:
            raise ValueError(f"StaticImages: validation_images={validation_images}; expected at least 1")
        super().__init__(root, transform=transform, merge=merge, **parts)
        self.sets = sets
        self.validation_images = validation_images

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "Still images (ECSSD, VOC) train" and the folder of the sets."""
        return f"Still images ({', '.join(self._names)}) {split}", self.folder

    def sequences(self, split: Split) -> Sequence[SequenceFiles]:
        """The images of a split; of those kept for validation, the ones that show an object.

        Raises:
            DatasetNotFoundError: A set is not there, or there is nothing to keep for validation.
            FrameError: An image cannot be used.
            MaskError: A mask is missing, too many, or cannot be used; or no image kept for validation has an object.
        """
        if split == "train":
            kept = set(self._kept)
            return _StillImages([pair for number, pair in enumerate(self._pairs) if number not in kept])
        images = _StillImages([self._pairs[number] for number in self._kept])
        shown = [image for image in images if image.labels(0).any()]
        if not shown:
            raise MaskError(
                f"None of the {len(images)} images of {self.folder} that are kept for validation shows an object,\n"
                f"  for example {images.pairs[0][1]}: every pixel is 0 or 255.\n"
                "Leave out images without objects, or keep more with --data.validation_images."
            )
        return shown

    @cached_property
    def folder(self) -> Path:
        """The folder of the sets."""
        for folder in (self.root / "static", self.root):
            if _sets_in(folder):
                return folder
        entries = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else None
        found = "no such folder" if entries is None else ", ".join(entries[:6]) or "an empty folder"
        raise DatasetNotFoundError(
            f"Still images are not at data.root={self.root}: no set in {self.root.absolute()} or its static.\n"
            f"  found there: {found}{', ...' if entries and len(entries) > 6 else ''}\n"
            f"  expected: static/<set>/{_IMAGES}/*.jpg, static/<set>/{_MASKS}/*.png (indexed, named as the images)\n"
            "Published trainings take COCO (https://cocodataset.org), PASCAL VOC 2012, ECSSD, MSRA10K and PASCAL-S.\n"
            "Name the folder of those you have with --data.root FOLDER,\n"
            "or write a small synthetic set in this layout, then run the same command again:\n"
            f"  lightning_vos data demo {self.root} --layout static"
        )

    @cached_property
    def _names(self) -> list[str]:
        there = _sets_in(self.folder)
        missing = [name for name in self.sets or () if name not in there]
        if missing:
            raise DatasetNotFoundError(
                f"{self.folder} holds no set {missing[0]!r} (data.sets)\n"
                f"  sets there: {', '.join(there)}\n"
                f"  expected: {self.folder / missing[0] / _IMAGES}/*.jpg\n"
                "Name sets that are there with --data.sets, or add this one."
            )
        return there if self.sets is None else list(dict.fromkeys(self.sets))

    @cached_property
    def _pairs(self) -> list[tuple[str, str]]:
        """The paths of every image and its mask."""
        pairs = [pair for name in self._names for pair in _pairs_in(self.folder / name)]
        if len(pairs) < 2:
            raise DatasetNotFoundError(
                f"{self.folder} holds {len(pairs)} image with a mask; expected two or more: one is kept for validation."
            )
        return pairs

    @cached_property
    def _kept(self) -> list[int]:
        """The numbers of the images that are kept for validation."""
        total = len(self._pairs)
        count = min(self.validation_images, max(total // 5, 1))
        return [round(number) for number in np.linspace(0, total - 1, count)]


def _sets_in(folder: Path) -> list[str]:
    """The names of the folders whose `JPEGImages` holds images, rather than the folders of videos."""
    return sorted(images.parent.name for images in folder.glob(f"[!.]*/{_IMAGES}") if _has_images(images))


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix.lower() in FRAME_SUFFIXES for path in folder.iterdir())


def _pairs_in(folder: Path) -> list[tuple[str, str]]:
    """The paths of every image of a set and its mask, after a look at the first few."""
    images = list_frames(folder / _IMAGES)
    masks = masks_of(images, folder / _MASKS)
    missing = [image.stem for number, image in enumerate(images) if number not in masks]
    if missing:
        raise MaskError(
            f"{folder / _MASKS} has {len(masks)} masks for the {len(images)} images of {folder / _IMAGES}\n"
            f"  missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}\n"
            "  expected: an indexed PNG for every image, under its name.\n"
            "The copy is not complete: add the masks, or leave out these images."
        )
    probed = [read_mask(masks[number], frame_size(images[number])) for number in range(min(_PROBED, len(images)))]
    values = {value for mask in probed for value in np.unique(mask).tolist()}
    if values == {0, 255} or values == {255}:
        raise MaskError(
            f"The masks of {folder.name} hold no object: every pixel is 0 or 255 (not annotated), as in {masks[0]}.\n"
            "Saliency sets come like this, their object being 255. Expected object ids from 1 on: write masks anew,\n"
            'lightning_vos.io.masks.write_mask(path, (read_mask(path) > 127).astype("uint8"))'
        )
    return [(os.fspath(image), os.fspath(masks[number])) for number, image in enumerate(images)]
