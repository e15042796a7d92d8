"""What datasets of video instances share: endless clips with classes to train on, whole videos to find instances in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from datamodules.base import Split
from datamodules.loading import ItemReader, RankedDataModule
from lightning_vos.errors import MaskError
from lightning_vos.io.masks import resized
from lightning_vos.structures import InstanceClip, Instances, ScoredInstanceVideo

_ITEM_TRIES = 50
_OF_ITEM, _OF_EPOCH = 1, 2  # last words of seeds: NumPy fills with zeros, [3, 4] and [3, 4, 0] draw the same
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB: what is padded with it is zero for the network


class RawClip(NamedTuple):
    """A clip as it lies on disk."""

    frames: NDArray[np.uint8]  # (T, H, W, 3) RGB
    masks: NDArray[np.uint8]  # (N, T, H, W) in {0, 1}; instances may overlap
    labels: NDArray[np.int64]  # (N,) classes from 0 on


class ClipSource(Protocol):
    """Where clips come from."""

    def __len__(self) -> int:
        """How many clips there are, and how many items an epoch of the source has."""

    def clip(self, number: int, rng: np.random.Generator) -> RawClip:
        """Draw the clip with a number in the epoch."""


@dataclass(frozen=True)
class InstanceTransform:
    """Flip, distort the colours of, crop and resize a clip; the recipe of SeqFormer.

    A clip is flipped with probability `flip`, and every frame is distorted by itself. Then, with probability `crop`,
    the clip is resized to one of `crop_short_sides`, and cut to a window whose sides are uniform in `crop_range` (at
    most the frame). Last it is resized to one of `short_sides`. Frames are resized as Pillow does, bilinear with a
    filter that grows with the reduction, masks to the nearest pixel.

    Attributes:
        short_sides: The short side of a frame, in pixels; one is drawn for a clip.
        longest: A frame whose long side would be longer than this, in pixels, is made smaller.
        flip: Probability of a horizontal flip.
        distort: Probability that colours are distorted at all. Then each of brightness (up to 32 of 255), contrast
            and saturation (0.5 to 1.5 times), hue (up to 18 degrees) and the order of the channels changes with a
            probability of a half, contrast before or after saturation and hue.
        crop: Probability of a crop.
        crop_short_sides: As `short_sides`, before the crop.
        crop_range: The shortest and the longest side of a window, in pixels.
    """

    short_sides: tuple[int, ...] = (288, 320, 352, 392, 416, 448, 480, 512)
    longest: int = 768
    flip: float = 0.5
    distort: float = 1.0
    crop: float = 0.5
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)

    def __post_init__(self) -> None:
        """Refuse sizes that no frame can have."""
        sizes = (*self.short_sides, *self.crop_short_sides, self.longest, self.crop_range[0])
        if not self.short_sides or not self.crop_short_sides or min(sizes) < 1 or self.crop_range[1] < sizes[-1]:
            raise ValueError(
                f"InstanceTransform: short_sides={self.short_sides}, longest={self.longest}, crop_short_sides="
                f"{self.crop_short_sides}, crop_range={self.crop_range}; expected positive sizes and a rising range"
            )

    def __call__(self, clip: RawClip, rng: np.random.Generator) -> RawClip:
        """The augmented clip; instances may have lost all their pixels."""
        frames, masks, labels = clip
        if rng.random() < self.flip:
            frames, masks = frames[:, :, ::-1], masks[..., ::-1]
        if rng.random() < self.distort:
            frames = np.stack([distorted(frame, rng) for frame in frames])
        if rng.random() < self.crop:
            frames, masks = _resized(frames, masks, int(rng.choice(self.crop_short_sides)), None)
            height, width = frames.shape[1:3]
            rows, columns = (
                int(rng.integers(min(self.crop_range[0], side), min(self.crop_range[1], side), endpoint=True))
                for side in (height, width)
            )
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            frames = frames[:, top : top + rows, left : left + columns]
            masks = masks[..., top : top + rows, left : left + columns]
        return RawClip(*_resized(frames, masks, int(rng.choice(self.short_sides)), self.longest), labels)


def training_size(height: int, width: int, short_side: int, longest: int | None) -> tuple[int, int]:
    """Give the (H, W) that a frame is resized to, in pixels, with the rounding of SeqFormer.

    Args:
        height: Of the frame.
        width: Of the frame.
        short_side: What its short side becomes.
        longest: What its long side is at most.

    Example:
        >>> training_size(480, 854, 480, 768), training_size(480, 854, 288, 768)
        ((432, 768), (288, 512))
    """
    short, long = sorted((height, width))
    if longest is not None and long / short * short_side > longest:
        short_side = round(longest * short / long)
    long_side = int(short_side * long / short)
    return (short_side, long_side) if height <= width else (long_side, short_side)


def distorted(frame: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Distort the colours of an (H, W, 3) RGB frame as SSD does; see `InstanceTransform.distort`."""
    pixels = frame.astype(np.float32)
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    contrast_first = rng.random() < 0.5
    if rng.random() < 0.5:
        pixels += rng.uniform(-32, 32)
    if contrast_first:
        pixels *= contrast
    planes = cv2.cvtColor(pixels.clip(0, 255) / 255, cv2.COLOR_RGB2HSV)  # hue in degrees, the others in [0, 1]
    if rng.random() < 0.5:
        planes[..., 1] = np.clip(planes[..., 1] * rng.uniform(0.5, 1.5), 0, 1)
    if rng.random() < 0.5:
        planes[..., 0] = (planes[..., 0] + rng.uniform(-18, 18)) % 360
    pixels = np.asarray(cv2.cvtColor(planes, cv2.COLOR_HSV2RGB) * 255, np.float32)
    if not contrast_first:
        pixels *= contrast
    if rng.random() < 0.5:
        pixels = pixels[..., rng.permutation(3)]
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)


def boxes_of(masks: NDArray[np.bool]) -> NDArray[np.float32]:
    """Give the tight boxes of masks: centre x, centre y, width, height, as shares of the sides; 0 for empty ones.

    A box reaches from the first to behind the last pixel; the published code of SeqFormer leaves the last row and
    column out where it takes boxes from masks, that is, in images of COCO.

    Args:
        masks: (..., H, W).

    Returns:
        (..., 4).
    """
    height, width = masks.shape[-2:]
    columns, rows = np.asarray(masks.any(axis=-2)), np.asarray(masks.any(axis=-1))
    ends = []
    for seen, side in ((columns, width), (rows, height)):
        first, behind = seen.argmax(axis=-1), side - seen[..., ::-1].argmax(axis=-1)
        ends.append(((first + behind) / (2 * side), (behind - first) / side))
    (x, box_width), (y, box_height) = ends
    boxes = np.stack([x, y, box_width, box_height], axis=-1)
    return np.where(rows.any(axis=-1, keepdims=True), boxes, 0).astype(np.float32)


class InstanceClipDataset(Dataset[tuple[NDArray[np.uint8], Instances]]):
    """Endless clips: item `i` is drawn from (seed, i) alone, whichever process asks for it.

    An epoch of a source is as many items as it has clips, in an order that is drawn anew each time. Of a single source
    every clip comes once an epoch. Of several, chance says which source an item is of, and the others pass over their
    clip at that place: of each come its share of the clips, drawn anew every epoch, and none twice in one. A clip
    without instances is replaced by one of another number of its source.

    Args:
        sources: Where clips come from, each with its augmentation.
        shares: The probability of each source.
        seed: The seed of all draws.
        skip_broken: Whether a clip that meets a file which cannot be used is drawn anew, and said, instead of an error.
    """

    def __init__(
        self,
        sources: Sequence[tuple[ClipSource, InstanceTransform]],
        shares: Sequence[float],
        seed: int,
        *,
        skip_broken: bool = False,
    ) -> None:
        self.sources = sources
        self.shares = shares
        self.seed = seed
        self.readers = [ItemReader(len(source), "clips", skip_broken=skip_broken) for source, _ in sources]

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], Instances]:
        """The frames (T, H, W, 3) and the instances of a clip.

        Raises:
            FrameError: A frame cannot be used, unless what is broken is skipped.
            MaskError: No draw shows an instance.
        """
        rng = np.random.default_rng([self.seed, index, _OF_ITEM])
        chosen = int(rng.choice(len(self.sources), p=self.shares))
        source, transform = self.sources[chosen]
        epoch, position = divmod(index, len(source))
        number = int(_epoch_order(self.seed, chosen, epoch, len(source))[position])
        for _ in range(_ITEM_TRIES):
            _, clip = self.readers[chosen].read(number, partial(source.clip, rng=rng), rng)
            frames, masks, labels = transform(clip, rng)
            seen = np.asarray(masks.any(axis=(2, 3)))
            kept = np.asarray(seen.any(axis=1))
            if kept.any():
                planes = masks[kept].astype(bool)
                return frames, Instances(
                    labels=torch.from_numpy(labels[kept]),
                    boxes=torch.from_numpy(boxes_of(planes)),
                    masks=torch.from_numpy(planes),
                    valid=torch.from_numpy(seen[kept]),
                )
            number = int(rng.integers(len(source)))
        raise MaskError(
            f"None of {_ITEM_TRIES} clips that were drawn shows an instance.\n"
            "Leave out videos without instances, or switch crops off (--data.augmentation.crop 0)."
        )


@lru_cache(maxsize=4)
def _epoch_order(seed: int, source: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, source, epoch, _OF_EPOCH]).permutation(length)


def collate_instances(items: Sequence[tuple[NDArray[np.uint8], Instances]]) -> InstanceClip:
    """Pad clips to the height and the width of the largest, rounded up to multiples of 32, as SeqFormer does."""
    sizes = torch.tensor([frames.shape[1:3] for frames, _ in items])
    height, width = ((sizes.amax(0) + 31) // 32 * 32).tolist()
    clips = [padded(frames, height, width) for frames, _ in items]
    instances = []
    for _, found in items:
        bottom, right = height - found.masks.shape[2], width - found.masks.shape[3]
        instances.append(found._replace(masks=torch.nn.functional.pad(found.masks, (0, right, 0, bottom))))
    return InstanceClip(torch.stack(clips), sizes, tuple(instances))


def padded(frames: NDArray[np.uint8], height: int, width: int) -> torch.Tensor:
    """(T, h, w, 3) frames as (T, 3, height, width) float32 in [0, 1], the mean colour right of and below them."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    clip = torch.tensor(IMAGENET_MEAN).view(3, 1, 1).repeat(len(frames), 1, height, width)
    clip[..., : pixels.shape[2], : pixels.shape[3]] = pixels.float() / 255
    return clip


class VideoFiles(Protocol):
    """A video of a split; `load` gives it with its number, and with its truth apart from it."""

    def load(self, number: int) -> ScoredInstanceVideo:
        """The video, whose frames stay on disk until they are indexed."""


class InstanceVideos(Dataset[ScoredInstanceVideo]):
    """The videos of a split."""

    def __init__(self, videos: Sequence[VideoFiles]) -> None:
        self.videos = videos

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> ScoredInstanceVideo:
        return self.videos[index].load(index)


class InstanceDataModule(RankedDataModule, ABC):
    """Clips and videos with classes of one dataset.

    Args:
        root: The folder that holds the dataset.
        batch_size: Clips a step on each device.
        workers: Processes that prepare clips; 0 prepares them in the training process.
        skip_broken: Whether training draws anew where a frame cannot be read, or has another size than the JSON says,
            instead of stopping; what is skipped is counted and named. Nothing is ever skipped that is scored.

    Raises:
        ValueError: `batch_size` or `workers` is no count.
    """

    def __init__(self, root: Path, batch_size: int = 2, workers: int = 4, skip_broken: bool = False) -> None:
        super().__init__(root, batch_size, workers)
        self.skip_broken = skip_broken
        self._clips: tuple[Sequence[tuple[ClipSource, InstanceTransform]], Sequence[float]] | None = None
        self._videos: dict[Literal["val", "test"], Sequence[VideoFiles]] = {}

    @abstractmethod
    def sources(self) -> tuple[Sequence[tuple[ClipSource, InstanceTransform]], Sequence[float]]:
        """Find what is trained on: sources with their augmentation, and the probability of each.

        Raises:
            DatasetNotFoundError: The dataset, or a part of it, is not there.
        """

    @abstractmethod
    def videos(self, split: Literal["val", "test"]) -> Sequence[VideoFiles]:
        """Find the videos of a split, at least one.

        Raises:
            DatasetNotFoundError: The dataset, or a part of it, is not there.
        """

    @abstractmethod
    def describe(self, split: Split) -> str:
        """Name the dataset with the split, what it holds and where it was found; called after they were found."""

    def setup(self, stage: str) -> None:
        """Find what a stage needs and say what it is."""
        if stage == "fit" and self._clips is None:
            self._clips = self.sources()
            rank_zero_info(self.describe("train"))
        split: Literal["val", "test"] = "val" if stage in ("fit", "validate") else "test"
        if split not in self._videos:
            self._videos[split] = self.videos(split)
            rank_zero_info(self.describe(split))

    def train_dataloader(self) -> DataLoader[InstanceClip]:
        """Endless batches of clips."""
        if self._clips is None:
            raise RuntimeError("setup('fit') comes first")
        clips = InstanceClipDataset(*self._clips, self.seed, skip_broken=self.skip_broken)
        return self.endless(clips, collate_instances)

    def val_dataloader(self) -> DataLoader[ScoredInstanceVideo]:
        """Whole videos of the validation split."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[ScoredInstanceVideo]:
        """Whole videos of the test split."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[ScoredInstanceVideo]:
        """Whole videos of the test split."""
        return self._loader("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave videos where they are: their frames are read, and moved, one by one."""
        if isinstance(batch, ScoredInstanceVideo):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _loader(self, split: Literal["val", "test"]) -> DataLoader[ScoredInstanceVideo]:
        videos = InstanceVideos(self._videos[split])
        return self.share(videos, len(videos))


def _resized(
    frames: NDArray[np.uint8], masks: NDArray[np.uint8], short_side: int, longest: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    size = training_size(frames.shape[1], frames.shape[2], short_side, longest)
    bilinear = Image.Resampling.BILINEAR
    larger = np.stack([np.asarray(Image.fromarray(frame).resize(size[::-1], bilinear)) for frame in frames])
    planes = np.empty((*masks.shape[:2], *size), np.uint8)
    for instance, through_time in enumerate(masks):
        for time, mask in enumerate(through_time):
            planes[instance, time] = resized(np.ascontiguousarray(mask), size) if mask.any() else 0
    return larger, planes
