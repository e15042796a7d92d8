"""Short clips to train on, every one a pure function of the seed and its number, so that a run can be repeated."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from datamodules.readers import SequenceFiles
from datamodules.transforms import ClipTransform
from lightning_vos.errors import FrameError, MaskError, UserError
from lightning_vos.structures import Clip

MAX_OBJECTS = 10  # of one clip, as published for AOT, DeAOT and MAVOS
_REFERENCE_TRIES = 20
_CLIP_TRIES = 5
_ITEM_TRIES = 50


class FrameSampler(ABC):
    """Which frames of a sequence make a clip.

    Attributes:
        length: Frames in a clip; the first is the reference, whose objects are followed.
    """

    length: int

    @property
    def shortest(self) -> int:
        """The least number of annotated frames that a clip can be drawn from."""
        return self.length

    @abstractmethod
    def draw(
        self,
        frames: int,
        labels: Callable[[int], NDArray[np.uint8]],
        rng: np.random.Generator,
        *,
        spacing: int = 1,
        step: int = 0,
    ) -> list[int]:
        """The `length` positions of a clip among `frames` annotated frames.

        Args:
            frames: The number of annotated frames, `shortest` or more.
            labels: The (H, W) label map at a position.
            rng: The source of every draw.
            spacing: Every how many-th frame of the video is annotated: 5 of YouTube-VOS.
            step: The optimizer step that the clip is for.
        """


@dataclass(frozen=True)
class ClipSampler(FrameSampler):
    """A reference with something to see, then frames at random gaps (AOT, DeAOT, MAVOS).

    Of a sequence of one frame, an image, a clip holds that frame `length` times.

    Attributes:
        length: Frames in a clip, at least 2; the first is the reference.
        max_gap: Gaps between frames are uniform in 1 to this many frames of the video, counted in annotated ones and
            rounded up: 12 are 12 of DAVIS and 3 of YouTube-VOS, as published. They are reflected at the ends.
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

    @property
    def shortest(self) -> int:
        """One: clips turn at the ends."""
        return 1

    def draw(
        self,
        frames: int,
        labels: Callable[[int], NDArray[np.uint8]],
        rng: np.random.Generator,
        *,
        spacing: int = 1,
        step: int = 0,
    ) -> list[int]:
        """As `FrameSampler.draw`; a frame without any object is a reference only where there is no other."""
        backwards = rng.random() < self.reverse
        max_gap = -(-self.max_gap // spacing)
        for _ in range(_CLIP_TRIES):
            for _ in range(_REFERENCE_TRIES):
                reference = int(rng.integers(frames))
                if np.count_nonzero(labels(reference)) > self.min_pixels:
                    break
            else:
                reference = _with_object(reference, frames, labels, rng)
            steps = np.cumsum([0, *rng.integers(1, max_gap, size=self.length - 1, endpoint=True)])
            positions = [_reflect(int(reference + (-step if backwards else step)), frames) for step in steps]
            known = np.bincount(labels(reference).ravel(), minlength=256) > 0
            known[0] = True
            if all(known[labels(position)].all() for position in positions[1:]):
                break
        return positions


@dataclass(frozen=True)
class ConsecutiveSampler(FrameSampler):
    """Neighbouring annotated frames from a random start (the text of QMVOS).

    Attributes:
        length: Frames in a clip, at least 2; the first is the reference.
        reverse: Probability that a clip runs backwards.
    """

    length: int = 8
    reverse: float = 0.5

    def __post_init__(self) -> None:
        _require_length(self)

    def draw(
        self,
        frames: int,
        labels: Callable[[int], NDArray[np.uint8]],
        rng: np.random.Generator,
        *,
        spacing: int = 1,
        step: int = 0,
    ) -> list[int]:
        """As `FrameSampler.draw`; it is drawn up to five times until the reference shows an object."""
        for _ in range(_CLIP_TRIES):
            start = int(rng.integers(frames - self.length + 1))
            positions = list(range(start, start + self.length))
            if rng.random() < self.reverse:
                positions.reverse()
            if labels(positions[0]).any():
                break
        return positions


@dataclass(frozen=True)
class JumpSampler(FrameSampler):
    """Frames near one another, the nearer the earlier in training: the curriculum of XMem and QMVOS.

    From a random frame on, frames are added that are at most a jump away from any frame that is chosen already. The
    jump is a function of the step alone, so that a resumed run goes on with it. Clips run forwards or backwards.

    Attributes:
        length: Frames in a clip, at least 2; the first is the reference.
        steps: Optimizer steps of the main training, of which `since` are fractions; later the last jump stays.
        jumps: The largest jumps in frames of the video, counted in annotated ones and rounded down, at least 1.
        since: The fraction of `steps` from which each of `jumps` holds; rising from 0.
        reverse: Probability that a clip runs backwards.
    """

    length: int = 8
    steps: int = 150_000
    jumps: tuple[int, ...] = (5, 10, 15, 5)
    since: tuple[float, ...] = (0.0, 0.1, 0.3, 0.9)
    reverse: float = 0.5

    def __post_init__(self) -> None:
        _require_length(self)
        rising = list(self.since) == sorted(self.since) and self.since[:1] == (0,)
        if self.steps < 1 or min(self.jumps, default=0) < 1 or len(self.jumps) != len(self.since) or not rising:
            raise ValueError(
                f"JumpSampler: steps={self.steps}, jumps={self.jumps}, since={self.since}; "
                "expected positive numbers, and as many rising fractions from 0 on as jumps"
            )

    def jump(self, step: int) -> int:
        """The largest jump at an optimizer step, in frames of the video."""
        begun = [jump for jump, since in zip(self.jumps, self.since, strict=True) if step >= since * self.steps]
        return begun[-1]

    def draw(
        self,
        frames: int,
        labels: Callable[[int], NDArray[np.uint8]],
        rng: np.random.Generator,
        *,
        spacing: int = 1,
        step: int = 0,
    ) -> list[int]:
        """As `FrameSampler.draw`; it is drawn up to five times until the reference shows an object."""
        jump = max(self.jump(step) // spacing, 1)
        for _ in range(_CLIP_TRIES):
            chosen = [int(rng.integers(frames))]
            near = np.zeros(frames, np.bool)
            for _ in range(self.length - 1):
                near[max(chosen[-1] - jump, 0) : chosen[-1] + jump + 1] = True
                near[chosen] = False
                chosen.append(int(rng.choice(np.flatnonzero(near))))
            positions = sorted(chosen, reverse=bool(rng.random() < self.reverse))
            if labels(positions[0]).any():
                break
        return positions


def _require_length(sampler: FrameSampler) -> None:
    if sampler.length < 2:
        raise ValueError(f"{type(sampler).__name__}: length={sampler.length}; expected length >= 2")


def _with_object(
    position: int, frames: int, labels: Callable[[int], NDArray[np.uint8]], rng: np.random.Generator
) -> int:
    """The position, or where nothing is to be seen there, another one at random where something is, if there is."""
    if labels(position).any():
        return position
    return next((int(other) for other in rng.permutation(frames) if labels(int(other)).any()), position)


def _reflect(position: int, frames: int) -> int:
    period = max(2 * (frames - 1), 1)
    position %= period
    return min(position, period - position)


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
        merge: Probability that the objects of a second clip are pasted over the first, frame by frame.
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
        transform: ClipTransform,
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
            if rng.random() < self.merge or not objects:
                above, labels, _ = self._draw(rng, step)
                frames = np.where(labels[..., None] > 0, above, frames)
                masks = np.where(labels > 0, labels + np.uint8(objects), masks)
                masks, objects = self._renumbered(masks, self.transform.min_pixels, rng)
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
        annotated = tuple(sequence.masks)

        def frame(position: int) -> NDArray[np.uint8]:
            index = annotated[position]
            return self.pictures.get(("frame", sequence.frames[index]), lambda: sequence.frame(index))

        def read_labels(position: int) -> NDArray[np.uint8]:
            index = annotated[position]
            return self.pictures.get(
                ("mask", sequence.frames[index], sequence.masks[index]), lambda: sequence.labels(index)
            )

        labels = cache(read_labels)  # a sampler asks for them again and again
        positions = self.sampler.draw(len(annotated), labels, rng, spacing=sequence.spacing, step=step)
        read = {position: frame(position) for position in dict.fromkeys(positions)}
        frames = np.stack([read[position] for position in positions])
        frames, masks = self.transform(frames, np.stack([labels(position) for position in positions]), rng)
        return frames, *self._renumbered(masks, 0, rng)

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
