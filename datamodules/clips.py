"""Short clips to train on, every one a pure function of the seed and its number, so that a run can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from datamodules.readers import SequenceFiles
from datamodules.transforms import ClipTransform
from lightning_vos.errors import MaskError
from lightning_vos.structures import Clip

MAX_OBJECTS = 10  # of one clip; further ones, drawn at random, become background
_REFERENCE_TRIES = 20
_CLIP_TRIES = 5
_ITEM_TRIES = 50


@dataclass(frozen=True)
class ClipSampler:
    """Which frames of a sequence make a clip: a reference with something to see, then frames at random gaps.

    Of a sequence of one frame, an image, a clip holds that frame `length` times.

    Attributes:
        length: Frames in a clip, at least 2; the first is the reference.
        max_gap: Gaps between frames are uniform in 1 to this many annotated frames, reflected at the ends.
        reverse: Probability that a clip runs backwards.
        min_pixels: A reference shows more foreground than this, in pixels of the frame on disk.
    """

    length: int = 8
    max_gap: int = 12
    reverse: float = 0.5
    min_pixels: int = 200

    def __post_init__(self) -> None:
        if self.length < 2 or self.max_gap < 1:
            raise ValueError(
                f"ClipSampler: length={self.length}, max_gap={self.max_gap}; expected length >= 2 and max_gap >= 1"
            )

    def draw(self, frames: int, labels: Callable[[int], NDArray[np.uint8]], rng: np.random.Generator) -> list[int]:
        """The `length` positions of a clip among `frames` annotated frames.

        Args:
            frames: The number of annotated frames.
            labels: The (H, W) label map at a position.
            rng: The source of every draw.
        """
        backwards = rng.random() < self.reverse
        for _ in range(_CLIP_TRIES):
            for _ in range(_REFERENCE_TRIES):
                reference = int(rng.integers(frames))
                if np.count_nonzero(labels(reference)) > self.min_pixels:
                    break
            steps = np.cumsum([0, *rng.integers(1, self.max_gap, size=self.length - 1, endpoint=True)])
            positions = [_reflect(int(reference + (-step if backwards else step)), frames) for step in steps]
            known = np.bincount(labels(reference).ravel(), minlength=256) > 0
            known[0] = True
            if all(known[labels(position)].all() for position in positions[1:]):
                break
        return positions


def _reflect(position: int, frames: int) -> int:
    period = max(2 * (frames - 1), 1)
    position %= period
    return min(position, period - position)


class ClipDataset(Dataset[Clip]):
    """Endless clips: item `i` is drawn from (seed, i) alone, whichever process asks for it.

    Args:
        sequences: Where clips come from: videos of several annotated frames, or images.
        sampler: Which frames make a clip.
        transform: Augmentation of a clip; of images it makes the motion.
        merge: Probability that the objects of a second clip are pasted over the first, frame by frame.
        seed: The seed of all draws.
    """

    def __init__(
        self,
        sequences: Sequence[SequenceFiles],
        sampler: ClipSampler,
        transform: ClipTransform,
        merge: float,
        seed: int,
    ) -> None:
        self.sequences = sequences
        self.sampler = sampler
        self.transform = transform
        self.merge = merge
        self.seed = seed

    def __getitem__(self, index: int) -> Clip:
        """The unbatched clip: frames (T, 3, H, W), masks (T, H, W), objects ().

        Raises:
            MaskError: No draw shows an object.
        """
        rng = np.random.default_rng([self.seed, index])
        for _ in range(_ITEM_TRIES):
            frames, masks, objects = self._draw(rng)
            if rng.random() < self.merge or not objects:
                above, labels, _ = self._draw(rng)
                frames = np.where(labels[..., None] > 0, above, frames)
                masks = np.where(labels > 0, labels + np.uint8(objects), masks)
                masks, objects = _renumber(masks, self.transform.min_pixels, rng)
            if objects:
                return Clip(
                    frames=torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous().float() / 255,
                    masks=torch.from_numpy(masks).long(),
                    objects=torch.tensor(objects),
                )
        names = ", ".join(sequence.name for sequence in self.sequences[:3])
        raise MaskError(
            f"None of {_ITEM_TRIES} clips drawn from {len(self.sequences)} sequences ({names}, ...) shows an object of "
            f"more than {self.transform.min_pixels} pixels in its first frame.\n"
            "Lower data.transform.min_pixels, or leave out sequences without objects."
        )

    def _draw(self, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
        sequence = self.sequences[int(rng.integers(len(self.sequences)))]
        annotated = tuple(sequence.masks)
        frame = cache(lambda position: sequence.frame(annotated[position]))
        labels = cache(lambda position: sequence.labels(annotated[position]))
        positions = self.sampler.draw(len(annotated), labels, rng)
        frames = np.stack([frame(position) for position in positions])
        frames, masks = self.transform(frames, np.stack([labels(position) for position in positions]), rng)
        return frames, *_renumber(masks, 0, rng)


def _renumber(masks: NDArray[np.uint8], min_pixels: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], int]:
    """Keeps objects with more than `min_pixels` in the first frame, at most `MAX_OBJECTS`, and numbers them from 1."""
    pixels = np.bincount(masks[0].ravel(), minlength=256)
    kept = 1 + np.flatnonzero(pixels[1:] > min_pixels)
    if len(kept) > MAX_OBJECTS:
        kept = np.sort(rng.choice(kept, MAX_OBJECTS, replace=False))
    numbers = np.zeros(256, np.uint8)
    numbers[kept] = 1 + np.arange(len(kept))
    return numbers[masks], len(kept)


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
