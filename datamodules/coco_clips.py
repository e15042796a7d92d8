"""Clips and pseudo-videos of the images of COCO."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch.utils.data import Dataset

from datamodules.clips import to_clip
from datamodules.coco import CocoImages
from datamodules.hodor_transforms import padded, resized_to_area
from datamodules.instance_clips import RawClip
from datamodules.pseudo_videos import Motion, pseudo_video
from datamodules.readers import SequenceFiles
from lightning_vos.errors import MaskError
from lightning_vos.evaluation.protocols import appearing_plan
from lightning_vos.evaluation.youtube_vis import Track
from lightning_vos.io.frames import to_tensor
from lightning_vos.io.masks import VOC_PALETTE
from lightning_vos.metrics.sequence import Plan
from lightning_vos.structures import Clip, InstanceVideo, ScoredInstanceVideo, ScoredVideo, Video

VIDEO_LENGTH = 8  # frames of a pseudo-video that is validated or tested
_SPREAD = 0.1  # of the height by the width of the images of a batch, largest minus smallest
_ITEM_TRIES = 50
_OF_BATCH, _OF_ITEM = 1, 2  # last words of seeds: NumPy fills with zeros, [3, 4] and [3, 4, 0] draw the same


class CocoClips:
    """Clips with classes, each of one image of COCO.

    Args:
        images: The images.
        classes: Category id -> class, for the categories of all their instances.
        motion: How an image becomes a clip.
        length: Frames in a clip.
        max_instances: Of a clip; of more, some are drawn.

    Raises:
        ValueError: `length` or `max_instances` is no count.
    """

    def __init__(
        self, images: CocoImages, classes: Mapping[int, int], motion: Motion, length: int, max_instances: int
    ) -> None:
        if length < 1 or not 1 <= max_instances <= 255:
            raise ValueError(f"COCO clips: length={length}, max_instances={max_instances}; expected 1 or more, to 255")
        self.images = images
        self.classes = classes
        self.motion: Motion = motion
        self.length = length
        self.max_instances = max_instances

    def __len__(self) -> int:
        return len(self.images)

    def clip(self, number: int, rng: np.random.Generator) -> RawClip:
        """The clip of an image."""
        chosen = _some(int(self.images.counts[number]), self.max_instances, rng)
        labels = self.images.labels(number, chosen)
        frames, masks = pseudo_video(self.motion, self.images.image(number), labels, self.length, rng)
        planes = masks[None] == np.arange(1, 1 + len(chosen))[:, None, None, None]
        categories = self.images.category_ids[self.images.starts[number] + chosen]
        return RawClip(
            frames, planes.astype(np.uint8), np.array([self.classes[category] for category in categories.tolist()])
        )


class PseudoClips(Dataset[Clip]):
    """Endless clips with masks: item `i` is drawn from (seed, i) alone; what a batch has in common from its number.

    Args:
        images: The images; those with few instances are drawn for few objects.
        motion: How an image becomes a clip.
        length: Frames in a clip.
        max_objects: Of a clip.
        area: Height times width of a clip, in pixels.
        min_area: What `hodor_fancy` keeps of every object in its first frame, in pixels of the image.
        batch_size: How many items in a row make a batch.
        seed: The seed of all draws.
    """

    def __init__(
        self,
        images: CocoImages,
        motion: Motion,
        length: int,
        max_objects: int,
        area: int,
        min_area: float,
        batch_size: int,
        seed: int,
    ) -> None:
        self.images = images
        self.motion: Motion = motion
        self.length = length
        self.area = area
        self.min_area = min_area
        self.batch_size = batch_size
        self.seed = seed
        self.shapes = images.sizes[:, 0] / images.sizes[:, 1]
        by_shape = np.argsort(self.shapes, kind="stable")
        most = min(max_objects, int(images.counts.max()))
        self.with_objects = [by_shape[images.counts[by_shape] >= count] for count in range(1, most + 1)]

    def __getitem__(self, index: int) -> Clip:
        """The unbatched clip, padded to multiples of 32: frames (T, 3, H, W), masks (T, H, W), objects ().

        Raises:
            MaskError: No draw shows as many objects in its first frame as its batch has.
        """
        batch, member = divmod(index, self.batch_size)
        common = np.random.default_rng([self.seed, batch, _OF_BATCH])
        objects = int(common.integers(1, len(self.with_objects), endpoint=True))
        candidates = self.with_objects[objects - 1]
        shape = self.shapes[common.choice(candidates)]
        low, high = np.searchsorted(self.shapes[candidates], [shape - _SPREAD / 2, shape + _SPREAD / 2])
        rng = np.random.default_rng([self.seed, batch, member, _OF_ITEM])
        for _ in range(_ITEM_TRIES):
            image = int(candidates[rng.integers(low, high)])
            labels = self.images.labels(image, _some(int(self.images.counts[image]), objects, rng))
            if not np.bincount(labels.ravel(), minlength=256)[1 : 1 + objects].all():
                continue  # one hides another
            frames, masks = pseudo_video(self.motion, self.images.image(image), labels, self.length, rng, self.min_area)
            frames, masks = padded(*resized_to_area(frames, masks, self.area))
            if np.bincount(masks[0].ravel(), minlength=256)[1 : 1 + objects].all():
                return to_clip(frames, masks, objects)
        raise MaskError(
            f"None of {_ITEM_TRIES} images drawn from {self.images.folder} shows {objects} objects in frame 0.\n"
            "The instances hide each other: lower data.max_objects or raise data.rules.min_area."
        )


@dataclass(frozen=True)
class _DrawnTruth:
    """The masks of a pseudo-video as truth."""

    masks: NDArray[np.uint8]  # (T, H, W)
    plan: Plan

    def read(self, frame: int) -> NDArray[np.uint8]:
        """The (H, W) label map of a frame."""
        return self.masks[frame]


@dataclass(frozen=True, kw_only=True)
class _CocoStill(SequenceFiles):
    """An image of COCO as a sequence of one frame, a pseudo-video to score."""

    images: CocoImages
    number: int
    max_objects: int
    motion: Motion
    min_area: float

    def labels(self, index: int) -> NDArray[np.uint8]:
        """The (H, W) label map of the image."""
        return self.images.labels(self.number, range(min(int(self.images.counts[self.number]), self.max_objects)))

    def load(self, index: int) -> ScoredVideo:
        """The pseudo-video, a function of `index` alone; its prompts are the objects that its first frame shows.

        Args:
            index: The number of the video in its split.

        Raises:
            MaskError: No draw shows an object in the first frame.
        """
        rng = np.random.default_rng(index)
        image, labels = self.images.image(self.number), self.labels(0)
        for _ in range(_ITEM_TRIES):
            frames, masks = pseudo_video(self.motion, image, labels, VIDEO_LENGTH, rng, self.min_area)
            if masks[0].any():
                break
        else:
            raise MaskError(
                f"{self.frames[0]} shows no object of {self.images.file} in the first frame of a pseudo-video.\n"
                "Leave the image out, or raise data.rules.min_area."
            )
        masks = np.where(np.isin(masks, np.unique(masks[0])), masks, np.uint8(0))
        video = Video(
            name=self.name,
            frames=[to_tensor(frame) for frame in frames],
            frame_names=[f"{time:05}" for time in range(VIDEO_LENGTH)],
            prompts={0: masks[0]},
            size=labels.shape,
            palette=VOC_PALETTE,
        )
        return ScoredVideo(index, video, _DrawnTruth(masks, appearing_plan(range(VIDEO_LENGTH))))


class CocoStills(Sequence[SequenceFiles]):
    """Many images as little but text: workers copy what they touch."""

    def __init__(self, images: CocoImages, max_objects: int, motion: Motion, min_area: float) -> None:
        self.images = images
        self.max_objects = max_objects
        self.motion: Motion = motion
        self.min_area = min_area

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> SequenceFiles: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SequenceFiles]: ...
    def __getitem__(self, index: int | slice) -> SequenceFiles | Sequence[SequenceFiles]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        path = self.images.folder / self.images.names[index]
        return _CocoStill(
            path.stem,
            [path],
            {},
            images=self.images,
            number=range(len(self))[index],
            max_objects=self.max_objects,
            motion=self.motion,
            min_area=self.min_area,
        )


@dataclass(frozen=True)
class InstanceStill:
    """An image of COCO as a pseudo-video with classes."""

    clips: CocoClips
    number: int

    def load(self, number: int) -> ScoredInstanceVideo:
        """The pseudo-video, a function of `number` alone."""
        frames, masks, labels = self.clips.clip(self.number, np.random.default_rng(number))
        images = self.clips.images
        category_ids = list(images.categories)
        truth: defaultdict[tuple[int, int], list[Track]] = defaultdict(list)
        for planes, label in zip(masks, labels.tolist(), strict=True):
            pixels = planes.sum(axis=(1, 2), dtype=np.int64)
            if pixels.any():
                encoded = [coco.encode(np.asfortranarray(plane)) if plane.any() else None for plane in planes]
                truth[number, category_ids[label]].append(Track(encoded, pixels, float(pixels[pixels > 0].mean())))
        video = InstanceVideo(
            name=Path(images.names[self.number]).stem,
            video_id=number,
            frames=[to_tensor(frame) for frame in frames],
            size=masks.shape[2:],
            categories=images.categories,
        )
        return ScoredInstanceVideo(number, video, dict(truth))


def _some(count: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The numbers of `count` instances, of `most` of them where they are more, rising."""
    return np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))
