"""Which frames of a video make a clip: one class for each published way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Labels = Callable[[int], NDArray[np.uint8]]
Place = Literal["middle", "nearest_end"]

_REFERENCE_TRIES = 20
_CLIP_TRIES = 5


class FrameSampler(ABC):
    """Which frames of a sequence make a clip.

    Attributes:
        length: Frames in a clip; the first is the reference, whose objects are followed.
        withholds: Whether a clip holds the mask of its first frame alone; the others count as not annotated (255),
            whatever there is on disk.
        needs_truth: Whether videos must have masks that follow their objects; else one mask is enough.
    """

    length: int
    withholds: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = True

    @property
    def shortest(self) -> int:
        """The least number of annotated frames that a clip can be drawn from."""
        return self.length

    @abstractmethod
    def choose(
        self,
        frames: int,
        annotated: Sequence[int],
        labels: Labels,
        rng: np.random.Generator,
        *,
        spacing: int = 1,
        step: int = 0,
    ) -> list[int]:
        """The numbers of the `length` frames of a clip.

        Args:
            frames: The number of frames of the sequence.
            annotated: The numbers of those that are annotated, rising; `shortest` or more.
            labels: The (H, W) label map of an annotated frame, by its number.
            rng: The source of every draw.
            spacing: Every how many-th frame of the video is annotated: 5 of YouTube-VOS.
            step: The optimizer step that the clip is for.
        """


class AnnotatedFrameSampler(FrameSampler):
    """A sampler that draws among the annotated frames of a sequence, as if there were no others."""

    def choose(
        self,
        frames: int,
        annotated: Sequence[int],
        labels: Labels,
        rng: np.random.Generator,
        *,
        spacing: int = 1,
        step: int = 0,
    ) -> list[int]:
        """As `FrameSampler.choose`, by what `draw` draws."""
        positions = self.draw(
            len(annotated), lambda position: labels(annotated[position]), rng, spacing=spacing, step=step
        )
        return [annotated[position] for position in positions]

    @abstractmethod
    def draw(
        self, frames: int, labels: Labels, rng: np.random.Generator, *, spacing: int = 1, step: int = 0
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
class ClipSampler(AnnotatedFrameSampler):
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
        self, frames: int, labels: Labels, rng: np.random.Generator, *, spacing: int = 1, step: int = 0
    ) -> list[int]:
        """As `AnnotatedFrameSampler.draw`; a frame without any object is a reference only where there is no other."""
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
class ConsecutiveSampler(AnnotatedFrameSampler):
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
        self, frames: int, labels: Labels, rng: np.random.Generator, *, spacing: int = 1, step: int = 0
    ) -> list[int]:
        """As `AnnotatedFrameSampler.draw`; it is drawn up to five times until the reference shows an object."""
        for _ in range(_CLIP_TRIES):
            start = int(rng.integers(frames - self.length + 1))
            positions = list(range(start, start + self.length))
            if rng.random() < self.reverse:
                positions.reverse()
            if labels(positions[0]).any():
                break
        return positions


@dataclass(frozen=True)
class JumpSampler(AnnotatedFrameSampler):
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
        self, frames: int, labels: Labels, rng: np.random.Generator, *, spacing: int = 1, step: int = 0
    ) -> list[int]:
        """As `AnnotatedFrameSampler.draw`; it is drawn up to five times until the reference shows an object."""
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


@dataclass(frozen=True)
class CycleSampler(FrameSampler):
    """One annotated frame of a video and others near it, whose masks are withheld: HODOR's cycles (sparse stage).

    A video with a single mask is as good as any. The other frames lie on one side of the annotated one, a random one
    of those that have enough, come in random order, and each once; where both sides have too few, they are repeated.

    Differs from the paper: its middle-most frame is taken where it shows an object of `min_pixels`, else the nearest
    one that does, or, where none does, the one with the largest object.

    Attributes:
        length: Frames in a clip, at least 2.
        annotated_frame: Which annotated frame: the one nearest to the middle of the video, as in the paper, or, as in
            the published code by a slip, the one nearest to its end.
        max_gap: The others are no more than this many frames from it in videos with a mask for every frame, or with
            just some (DAVIS).
        max_gap_spaced: As `max_gap`, for videos that are annotated at regular distances (YouTube-VOS), counted in the
            frames that are on disk.
        min_pixels: An object of the annotated frame shows at least this many pixels of the frame on disk.
    """

    length: int = 3
    annotated_frame: Place = "middle"
    max_gap: int = 12
    max_gap_spaced: int = 6
    min_pixels: int = 2000
    withholds: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_length(self)
        _require_gaps(self, 1)

    @property
    def shortest(self) -> int:
        """One."""
        return 1

    def choose(
        self,
        frames: int,
        annotated: Sequence[int],
        labels: Labels,
        rng: np.random.Generator,
        *,
        spacing: int = 1,
        step: int = 0,
    ) -> list[int]:
        """As `FrameSampler.choose`; a video of one frame repeats it."""
        first = _with_large_object(_by_distance(annotated, frames, self.annotated_frame), labels, self.min_pixels)
        gap = self.max_gap_spaced if spacing > 1 else self.max_gap
        sides = np.arange(max(first - gap, 0), first), np.arange(first + 1, min(first + gap + 1, frames))
        enough = min(self.length - 1, max(map(len, sides)))
        if not enough:
            return [first] * self.length
        fitting = [side for side in sides if len(side) >= enough]
        others = rng.permutation(fitting[rng.integers(len(fitting))])
        return [first, *np.resize(others, self.length - 1).tolist()]


@dataclass(frozen=True)
class DenseSampler(AnnotatedFrameSampler):
    """An annotated frame and later ones near it, in their order, each once (HODOR's dense stage).

    Differs from the published code: it draws as many clips of each number of objects, here videos are drawn alike.

    Attributes:
        length: Frames in a clip, at least 2; the first is any that shows a large object and has enough behind it.
        max_gap: The others are at most this many annotated frames later (DAVIS).
        max_gap_spaced: As `max_gap`, for videos of which not every frame is annotated (YouTube-VOS).
        min_pixels: An object of the first frame shows at least this many pixels of the frame on disk, if there is such
            a frame; else it is the one with the largest object.
    """

    length: int = 3
    max_gap: int = 15
    max_gap_spaced: int = 7
    min_pixels: int = 2000

    def __post_init__(self) -> None:
        _require_length(self)
        _require_gaps(self, self.length - 1)

    def draw(
        self, frames: int, labels: Labels, rng: np.random.Generator, *, spacing: int = 1, step: int = 0
    ) -> list[int]:
        """As `AnnotatedFrameSampler.draw`."""
        gap = self.max_gap_spaced if spacing > 1 else self.max_gap
        starts = rng.permutation(frames - self.length + 1).tolist()
        first = _with_large_object(starts, labels, self.min_pixels)
        later = rng.choice(np.arange(first + 1, min(first + gap + 1, frames)), self.length - 1, replace=False)
        return [first, *sorted(later.tolist())]


@dataclass(frozen=True)
class OneFrameSampler(FrameSampler):
    """One annotated frame of a video, again and again, for a transform that moves it: training without motion.

    Attributes:
        length: Frames in a clip, at least 2.
        annotated_frame: As `CycleSampler`, and so is `min_pixels`.
        min_pixels: As `CycleSampler`.
    """

    length: int = 3
    annotated_frame: Place = "middle"
    min_pixels: int = 2000
    needs_truth: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_length(self)

    @property
    def shortest(self) -> int:
        """One."""
        return 1

    def choose(
        self,
        frames: int,
        annotated: Sequence[int],
        labels: Labels,
        rng: np.random.Generator,
        *,
        spacing: int = 1,
        step: int = 0,
    ) -> list[int]:
        """As `FrameSampler.choose`."""
        nearest = _by_distance(annotated, frames, self.annotated_frame)
        return [_with_large_object(nearest, labels, self.min_pixels)] * self.length


def _by_distance(annotated: Sequence[int], frames: int, place: Place) -> list[int]:
    """The annotated frames, those nearest to a place of the video first."""
    target = (frames - 1) / 2 if place == "middle" else frames
    return sorted(annotated, key=lambda number: abs(number - target))


def _with_large_object(numbers: Sequence[int], labels: Labels, min_pixels: int) -> int:
    """The first frame that shows an object of `min_pixels`; where none does, the one with the largest object."""

    def largest(number: int) -> int:
        return int(np.bincount(labels(number).ravel(), minlength=2)[1:].max())

    found = next((number for number in numbers if largest(number) >= min_pixels), None)
    return max(numbers, key=largest) if found is None else found


def _require_length(sampler: FrameSampler) -> None:
    if sampler.length < 2:
        raise ValueError(f"{type(sampler).__name__}: length={sampler.length}; expected length >= 2")


def _require_gaps(sampler: CycleSampler | DenseSampler, least: int) -> None:
    if min(sampler.max_gap, sampler.max_gap_spaced) < least:
        raise ValueError(
            f"{type(sampler).__name__}: max_gap={sampler.max_gap}, max_gap_spaced={sampler.max_gap_spaced}; "
            f"expected at least {least} for clips of {sampler.length} frames"
        )


def _with_object(position: int, frames: int, labels: Labels, rng: np.random.Generator) -> int:
    """The position, or where nothing is to be seen there, another one at random where something is, if there is."""
    if labels(position).any():
        return position
    return next((int(other) for other in rng.permutation(frames) if labels(int(other)).any()), position)


def _reflect(position: int, frames: int) -> int:
    period = max(2 * (frames - 1), 1)
    position %= period
    return min(position, period - position)
