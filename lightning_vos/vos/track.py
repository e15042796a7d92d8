"""The one loop that runs a network over a video: object ids, chunks and sizes are handled here and nowhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_vos.errors import ConfigError, DeviceMemoryError, FrameError, MaskError, is_out_of_memory
from lightning_vos.structures import Prediction
from lightning_vos.vos.canvas import View
from lightning_vos.vos.network import Given, VOSNetwork, advance, with_valid

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    LabelMap = Tensor | NDArray[np.integer[Any]]


_BRIGHTEST = 2  # interpolated frames may be a little above 1


@dataclass
class _Pass:
    """One way of looking at a video, with memories of its own."""

    scale: float | None  # None where there is one scale
    is_flipped: bool
    view: View | None = None
    memories: tuple[Any, ...] = ()  # one for each chunk of `network.capacity` objects, or one for all

    def turned(self, picture: Tensor) -> Tensor:
        """A (..., H, W) picture as this pass sees it, or back."""
        return picture.flip(-1) if self.is_flipped else picture


class Tracker:
    """Segments a video frame by frame; keeps the network's memories and nothing else of the past.

    With `flip` or several `scales` every frame is seen in several ways. Each has memories of its own and remembers its
    own masks; their probabilities are averaged at the size of the video.

    Args:
        network: A network in eval mode.
        size: (h, w) in pixels that the network works at, rounded to what it can see; None for its own rule.
        flip: Whether every scale is also seen flipped from left to right.
        scales: Factors on the size that the network works at.

    Raises:
        ConfigError: if there is no scale, or one is not above 0, or the size is nothing.
    """

    def __init__(
        self,
        network: VOSNetwork[Any],
        size: tuple[int, int] | None = None,
        *,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
            raise ConfigError(f"scales is {list(scales)}: expected one factor above 0 or more, such as 1.0 1.2.")
        if size is not None and min(size) < 1:
            raise ConfigError(
                f"The size {size[0]} x {size[1]} is none: expected height and width in pixels, such as 480 864."
            )
        self.network = network
        self._passes = [
            _Pass(None if tuple(scales) == (1.0,) else scale, is_flipped)
            for scale in scales
            for is_flipped in ((False, True) if flip else (False,))
        ]
        self._size = size
        self._slots: list[int | None] = []  # object id of each slot; None once removed, never used again
        self._time = 0

    @property
    def memories(self) -> tuple[Any, ...]:
        """The network's memories: of each pass one for each chunk of `network.capacity` objects, or one for all."""
        return tuple(memory for one in self._passes for memory in one.memories)

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the objects that are tracked, in the order they were added."""
        return tuple(i for i in self._slots if i is not None)

    @torch.no_grad()
    def step(
        self, frame: Tensor, mask: LabelMap | None = None, *, forced: LabelMap | None = None, last: bool = False
    ) -> Prediction:
        """Segment the next frame.

        Args:
            frame: (3, H, W) RGB in [0, 1].
            mask: (H, W) object ids, 0 = not stated; adds its objects, or states them anew.
            forced: (H, W) object ids to remember of this frame instead of the prediction.
            last: Whether no frame follows.

        Raises:
            FrameError: if the frame is no (3, H, W) picture or has another size than the first.
            MaskError: if the mask has another size than the frame, or ids below 0.
        """
        size = self._check(frame)
        started = _now(device := self._device)
        mask = None if mask is None else self._labels(mask, "mask", size).to(device)
        forced = None if forced is None else self._labels(forced, "label map to remember", size).to(device)
        if mask is not None:
            self._add([i for i in mask.unique().tolist() if i != 0])
        time_of_frame, self._time = self._time, self._time + 1
        if not self.object_ids:
            labels = torch.zeros(size, dtype=torch.int64, device=device)
            return Prediction(labels, torch.ones(1, *size, device=device), (), _now(device) - started)
        frame = frame.to(device)[None]
        mask, forced = (None if x is None else self._to_slots(x)[None] for x in (mask, forced))
        labels, probabilities = self._look(self._passes[0], frame, mask, forced, time_of_frame, last=last)
        if len(self._passes) > 1:
            for one in self._passes[1:]:
                probabilities = probabilities + self._look(one, frame, mask, forced, time_of_frame, last=last)[1]
            probabilities = probabilities / len(self._passes)
            labels = probabilities.max(dim=0).indices
        slots = torch.tensor([n for n, i in enumerate(self._slots) if i is not None], device=device)
        ids = torch.zeros(1 + self._capacity, dtype=torch.int64, device=device)
        ids[1 + slots] = torch.tensor(self.object_ids, device=device)
        probabilities = probabilities[torch.cat([slots.new_zeros(1), 1 + slots])]
        return Prediction(ids[labels], probabilities, self.object_ids, _now(device) - started)

    def _look(
        self, one: _Pass, frame: Tensor, mask: Tensor | None, forced: Tensor | None, time: int, *, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Slot numbers (H, W) and probabilities (1 + slots, H, W) of a (1, 3, H, W) frame, as one pass has them."""
        assert one.view is not None
        network = self.network
        try:
            features = network.encode(network.canvas.enter(one.turned(frame), one.view))
            kept = None if forced is None else network.planes(one.turned(forced), self._capacity, one.view)
            given = None if mask is None else self._given(one.turned(mask))
            masks, one.memories = advance(
                network, features, one.memories, one.view, time=time, given=given, forced=kept, last=last
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            held = sum(memory.bank_bytes for memory in self.memories) / 2**20
            raise DeviceMemoryError(
                f"Out of memory ({self._device}) at frame {time}: the network sees {one.view.network[0]} x "
                f"{one.view.network[1]} pixels, {len(self.object_ids)} objects, {len(self._passes)} ways of looking; "
                f"its memory of the video holds {held:.0f} MiB.\n"
                f"Let it see less: fewer scales, no flip, --size H W of segment, fewer objects at a time;\n"
                f"or, in the recipe, remember less: {network.memory_knobs}."
            ) from error
        return one.turned(masks.labels[0]), one.turned(masks.probabilities[0])

    def remove(self, object_ids: Iterable[int]) -> None:
        """Stop tracking objects; their slots are not given to others, which are not disturbed.

        Raises:
            MaskError: if an id is not tracked.
        """
        removed = set(object_ids)
        if unknown := removed - set(self.object_ids):
            raise MaskError(f"Objects {unknown} cannot be removed: the tracked objects are {list(self.object_ids)}.")
        slots = [None if i in removed else i for i in self._slots]
        # What comes and goes must not add up: where one memory holds all objects its slots go, else empty chunks.
        capacity = self.network.capacity
        if capacity is None:
            kept = torch.tensor(
                [n for n, i in enumerate(slots) if i is not None], device=self._device, dtype=torch.long
            )
            self._slots = [i for i in slots if i is not None]
            for one in self._passes:
                one.memories = tuple(self.network.keep(memory, kept) for memory in one.memories if self._slots)
            return
        chunks = [slots[start : start + capacity] for start in range(0, len(slots), capacity)]
        used = [number for number, chunk in enumerate(chunks) if any(i is not None for i in chunk)]
        self._slots = [i for number in used for i in chunks[number]]
        for one in self._passes:
            one.memories = tuple(one.memories[number] for number in used)
        self._mark_valid()

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def _capacity(self) -> int:
        """Slots of all chunks."""
        return sum(memory.valid.shape[1] for memory in self._passes[0].memories)

    def _check(self, frame: Tensor) -> tuple[int, int]:
        if frame.dim() != 3 or frame.shape[0] != 3 or not frame.is_floating_point():
            raise FrameError(
                f"Frame {self._time} is {frame.dtype} of shape {tuple(frame.shape)}, "
                "expected float of shape (3, H, W): RGB in [0, 1]."
            )
        size = (frame.shape[1], frame.shape[2])
        if self._time == 0 and (brightest := float(frame.max())) > _BRIGHTEST:
            raise FrameError(f"Frame 0 has values up to {brightest:.0f}, expected RGB in [0, 1]: divide pixels by 255.")
        for one in self._passes:
            if one.view is None:
                one.view = self.network.canvas.view(size, self._size, one.scale)
            elif one.view.frame != size:
                raise FrameError(
                    f"Frame {self._time} is {size}, but the video began with {one.view.frame} (height, width)."
                )
        return size

    def _labels(self, labels: LabelMap, name: str, size: tuple[int, int]) -> Tensor:
        labels = torch.as_tensor(labels).to(torch.int64)
        if tuple(labels.shape) != size:
            raise MaskError(f"The {name} of frame {self._time} is {tuple(labels.shape)}, the frame is {size}.")
        if int(labels.min()) < 0:
            raise MaskError(f"The {name} of frame {self._time} holds the id {int(labels.min())}; ids are 0 and above.")
        return labels

    def _add(self, object_ids: list[int]) -> None:
        self._slots += [i for i in object_ids if i not in self._slots]
        if not self._slots:
            return
        capacity = self.network.capacity or len(self._slots)
        for one in self._passes:
            while len(one.memories) * capacity < len(self._slots):
                valid = torch.zeros(1, capacity, dtype=torch.bool, device=self._device)
                one.memories += (self.network.start(valid, self.network.test_rules),)
        self._mark_valid()

    def _mark_valid(self) -> None:
        chunks = len(self._passes[0].memories)
        capacity = self.network.capacity or len(self._slots)
        used = torch.zeros(1, chunks * capacity, dtype=torch.bool, device=self._device)
        used[0, [n for n, i in enumerate(self._slots) if i is not None]] = True
        for one in self._passes:
            parts = used.split(capacity, dim=1) if chunks else ()
            one.memories = tuple(with_valid(memory, part) for memory, part in zip(one.memories, parts, strict=True))

    def _to_slots(self, labels: Tensor) -> Tensor:
        """Label map of object ids -> of slot numbers + 1; ids that are not tracked become background."""
        slots = torch.zeros_like(labels)
        for number, i in enumerate(self._slots):
            if i is not None:
                slots[labels == i] = number + 1
        return slots

    def _given(self, slots: Tensor) -> Given | None:
        """What a (1, H, W) map of slot numbers + 1 gives; None where it holds nothing."""
        if not bool(slots.any()):
            return None
        numbers = torch.arange(1, 1 + self._capacity, device=slots.device)
        planes = (slots[:, None] == numbers.view(1, -1, 1, 1)).float()
        return Given(planes, planes.flatten(2).any(dim=2))


@torch.no_grad()
def track(
    network: VOSNetwork[Any],
    frames: Iterable[Tensor],
    prompts: Mapping[int, LabelMap],
    remove: Mapping[int, Iterable[int]] | None = None,
    size: tuple[int, int] | None = None,
    *,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Iterator[Prediction]:
    """Segment a video of any length, one frame at a time.

    Args:
        network: A network in eval mode, such as `load_published` gives.
        frames: (3, H, W) float RGB in [0, 1].
        prompts: Frame index -> (H, W) label map; an entry at any frame adds, or states anew, its objects.
        remove: Frame index -> ids whose tracking ends before that frame.
        size: As for `Tracker`.
        flip: As for `Tracker`.
        scales: As for `Tracker`.

    Yields:
        One `Prediction` a frame, with the ids of the prompts.

    Raises:
        ConfigError: as for `Tracker`.
        MaskError: if there is no prompt with an object, or one does not fit its frame.
        FrameError: if there is no frame, or a frame does not fit the video.
    """
    if not any((torch.as_tensor(mask) != 0).any() for mask in prompts.values()):
        raise MaskError("There is nothing to track: no prompt states an object. Give a mask with an id above 0.")
    tracker = Tracker(network, size, flip=flip, scales=scales)
    number = -1
    for number, frame in enumerate(frames):
        if remove and number in remove:
            tracker.remove(remove[number])
        yield tracker.step(frame, prompts.get(number))
    if number < 0:
        raise FrameError("The video has no frames.")
    for what, indices in (("Prompts are given", prompts), ("Objects are to be removed", remove or ())):
        if outside := [index for index in indices if not 0 <= index <= number]:
            raise MaskError(f"{what} for frames {outside}, but the video ends with frame {number}.")


class Remembering:
    """Iterates over frames and keeps the latest, so that a frame is read once for the network and for overlays."""

    def __init__(self, frames: Iterable[Tensor]) -> None:
        self.frames = frames
        self.latest = torch.empty(0)

    def __iter__(self) -> Iterator[Tensor]:
        for frame in self.frames:
            self.latest = frame
            yield frame


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
