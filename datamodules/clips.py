"""Short clips to train on, every one a pure function of the seed and its number, so that a run can be repeated."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler, default_collate

from datamodules.readers import SequenceFiles
from datamodules.samplers import FrameSampler
from datamodules.transforms import MEAN_COLOUR, ClipAugmentation
from lightning_vos.errors import FrameError, MaskError, UserError
from lightning_vos.structures import Clip

MAX_OBJECTS = 10  # of one clip, as published for AOT, DeAOT and MAVOS
_WITHHELD = 255
_ITEM_TRIES = 50


class PictureCache:
    """Decoded pictures by their key, those asked for last, as far as a budget holds; the others are read again.

    Args:
        budget: Bytes of pixels; 0 keeps nothing.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._pictures: OrderedDict[Hashable, NDArray[np.uint8]] = OrderedDict()
        self._size = 0

    def get(self, key: Hashable, read: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """The picture of that key, read if it is not kept; what is given must not be changed."""
        if key in self._pictures:
            self._pictures.move_to_end(key)
            return self._pictures[key]
        picture = read()
        if picture.nbytes <= self.budget:
            self._pictures[key] = picture
            self._size += picture.nbytes
            while self._size > self.budget:
                self._size -= self._pictures.popitem(last=False)[1].nbytes
        return picture


class ClipDataset(Dataset[Clip]):
    """Endless clips: item `i` is drawn from (seed, i) alone, whichever process asks for it, and whatever it met before.

    Args:
        sequences: Where clips come from: videos of several annotated frames, or images.
        sampler: Which frames make a clip.
        transform: Augmentation of a clip; of images it makes the motion.
        merge: Probability that the objects of a second clip are pasted over the first, frame by frame; they also are
            where the first shows none. Never where masks are withheld or clips differ in size.
        seed: The seed of all draws.
        chances: (S,) weights of the sequences; all alike if not given.
        items_a_step: Items of an optimizer step, over all ranks, by which an item knows its step.
        max_objects: The most objects of a clip; further ones, drawn at random, become background.
        skip_broken: Whether a clip that meets a file which cannot be used is drawn anew, and said, instead of an error.
        cache: Bytes of decoded frames and masks that each process keeps.

    Attributes:
        broken: (S,) whether a sequence was found broken, shared with the workers.
    """

    def __init__(
        self,
        sequences: Sequence[SequenceFiles],
        sampler: FrameSampler,
        transform: ClipAugmentation,
        merge: float,
        seed: int,
        *,
        chances: NDArray[np.float64] | None = None,
        items_a_step: int = 1,
        max_objects: int = MAX_OBJECTS,
        skip_broken: bool = False,
        cache: int = 0,
    ) -> None:
        self.sequences = sequences
        self.sampler = sampler
        self.transform = transform
        self.merge = merge
        self.seed = seed
        self.items_a_step = items_a_step
        self.max_objects = max_objects
        self.skip_broken = skip_broken
        self.pictures = PictureCache(cache)
        self.broken = torch.zeros(len(sequences) if skip_broken else 0, dtype=torch.bool).share_memory_()
        self._bounds = None if chances is None else np.cumsum(chances / chances.sum())

    def __getitem__(self, index: int) -> Clip:
        """The unbatched clip: frames (T, 3, H, W), masks (T, H, W), objects ().

        Raises:
            FrameError: A frame cannot be used, unless broken sequences are skipped.
            MaskError: No draw shows an object; or as `FrameError`, of a mask.
        """
        rng = np.random.default_rng([self.seed, index])
        step = index // self.items_a_step
        for _ in range(_ITEM_TRIES):
            frames, masks, objects = self._draw(rng, step)
            if self._can_merge and (rng.random() < self.merge or not objects):
                above, labels, _ = self._draw(rng, step)
                frames = np.where(labels[..., None] > 0, above, frames)
                masks = np.where(labels > 0, labels + np.uint8(objects), masks)
                masks, objects = self._renumbered(masks, self.transform.min_pixels, rng)
            if objects:
                return to_clip(frames, masks, objects)
        names = ", ".join(sequence.name for sequence in self.sequences[:3])
        raise MaskError(
            f"None of {_ITEM_TRIES} clips drawn from {len(self.sequences)} sequences ({names}, ...) shows an object "
            f"that is large enough in its first frame: data.transform.min_pixels is {self.transform.min_pixels}.\n"
            "Lower it, or leave out sequences without objects."
        )

    def _draw(self, rng: np.random.Generator, step: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
        for _ in range(_ITEM_TRIES):
            if self._bounds is None:
                number = int(rng.integers(len(self.sequences)))
            else:
                number = min(int(np.searchsorted(self._bounds, rng.random(), side="right")), len(self.sequences) - 1)
            try:
                return self._clip(self.sequences[number], rng, step)
            except (FrameError, MaskError) as error:
                if not self.skip_broken:
                    raise
                self._skip(number, error)
        raise MaskError(
            f"None of {_ITEM_TRIES} clips drawn one after the other could be read: "
            f"{int(self.broken.sum())} of {len(self.sequences)} sequences are broken.\n"
            "Copy the dataset again; with data.skip_broken=false the first error says which file is broken."
        )

    def _clip(
        self, sequence: SequenceFiles, rng: np.random.Generator, step: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
        def frame(number: int) -> NDArray[np.uint8]:
            return self.pictures.get(("frame", sequence.frames[number]), lambda: sequence.frame(number))

        def read_labels(number: int) -> NDArray[np.uint8]:
            key = "mask", sequence.frames[number], sequence.masks[number]
            return self.pictures.get(key, lambda: sequence.labels(number))

        labels = cache(read_labels)  # a sampler asks for them again and again
        numbers = self.sampler.choose(
            len(sequence.frames), tuple(sequence.masks), labels, rng, spacing=sequence.spacing, step=step
        )
        read = {number: frame(number) for number in dict.fromkeys(numbers)}
        first = labels(numbers[0])
        others = [
            np.full_like(first, _WITHHELD) if self.sampler.withholds else labels(number) for number in numbers[1:]
        ]
        frames, masks = self.transform(
            np.stack([read[number] for number in numbers]), np.stack([first, *others]), rng, step=step
        )
        masks, objects = self._renumbered(masks, 0, rng)
        if self.sampler.withholds:
            masks[1:] = _WITHHELD
        return frames, masks, objects

    @property
    def _can_merge(self) -> bool:
        """Whether there are pixels to paste: what is withheld cannot be, and clips of two sizes do not fit."""
        return self.transform.one_size and not self.sampler.withholds

    def _skip(self, number: int, error: UserError) -> None:
        if not self.broken[number]:
            self.broken[number] = True
            what = " ".join(str(error).splitlines()[:2])
            count = f"{int(self.broken.sum())} of {len(self.sequences)}"
            warnings.warn(f"Broken sequence skipped, {count} so far: {what}", stacklevel=2)

    def _renumbered(
        self, masks: NDArray[np.uint8], min_pixels: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], int]:
        """Keeps objects with more than `min_pixels` in the first frame, at most so many, and numbers them from 1."""
        pixels = np.bincount(masks[0].ravel(), minlength=256)
        kept = 1 + np.flatnonzero(pixels[1:] > min_pixels)
        if len(kept) > self.max_objects:
            kept = np.sort(rng.choice(kept, self.max_objects, replace=False))
        numbers = np.zeros(256, np.uint8)
        numbers[kept] = 1 + np.arange(len(kept))
        return numbers[masks], len(kept)


def to_clip(frames: NDArray[np.uint8], masks: NDArray[np.uint8], objects: int) -> Clip:
    """The unbatched clip of (T, H, W, 3) RGB frames and (T, H, W) masks of `objects` objects."""
    return Clip(
        frames=torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous().float() / 255,
        masks=torch.from_numpy(masks).long(),
        objects=torch.tensor(objects),
    )


def collate_clips(clips: Sequence[Clip]) -> Clip:
    """The batch of some clips, padded below and to the right to the height and the width of the largest.

    What is added is of the mean colour, and background; where a frame is not annotated, so is what is added to it.
    """
    height, width = (max(clip.masks.shape[axis] for clip in clips) for axis in (1, 2))
    return Clip(*default_collate([_enlarged(clip, height, width) for clip in clips]))


def _enlarged(clip: Clip, height: int, width: int) -> Clip:
    length, rows, columns = clip.masks.shape
    if (rows, columns) == (height, width):
        return clip
    frames = (torch.tensor(MEAN_COLOUR) / 255).view(3, 1, 1).repeat(length, 1, height, width)
    frames[..., :rows, :columns] = clip.frames
    unknown = clip.masks.amin((1, 2)) == _WITHHELD
    masks = torch.where(unknown, _WITHHELD, 0).view(length, 1, 1).repeat(1, height, width)
    masks[:, :rows, :columns] = clip.masks
    return Clip(frames, masks, clip.objects)


class StepSampler(Sampler[int]):
    """Endless item numbers, a function of the step alone: a resumed run draws what an uninterrupted one would.

    Args:
        batch_size: Items a step on one rank.
        rank: The rank of this process.
        world: The number of ranks.
        start: The step to begin at, asked for whenever iteration begins.
    """

    def __init__(self, batch_size: int, rank: int, world: int, start: Callable[[], int]) -> None:
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.start = start

    def __iter__(self) -> Iterator[int]:
        for step in count(self.start()):
            first = (step * self.world + self.rank) * self.batch_size
            yield from range(first, first + self.batch_size)
