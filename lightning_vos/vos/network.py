"""The contract between a semi-supervised network and the one loop that runs it.

Shapes: B clips (1 at test), N object slots, H W output size, h w network size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lightning_vos.vos.canvas import Canvas, View

Memory = TypeVar("Memory", bound=Any)


class Given(NamedTuple):
    """An annotation of the frame at hand, which makes it a reference."""

    planes: Tensor  # (B, N, H, W) in {0, 1}
    stated: Tensor  # (B, N) bool, slots annotated in this frame


class Masks(NamedTuple):
    """What a network says of one frame, background first."""

    logits: Tensor  # (B, 1 + N, H, W), for losses
    probabilities: Tensor  # (B, 1 + N, H, W)
    labels: Tensor  # (B, H, W) int64, slot number + 1, 0 = background
    planes: Tensor  # (B, 1 + N, h, w), what is remembered; without chunks the network's choice, slots last


class VOSNetwork(nn.Module, ABC, Generic[Memory]):
    """A network that segments a video frame by frame from explicit memories.

    Attributes:
        canvas: The sizes it can see.
        capacity: Slots of one memory; more objects go to further memories, called chunks. None: a memory takes any
            number, and there is one.
        train_rules: Rules of the memory in training.
        test_rules: Rules of the memory everywhere else.
    """

    canvas: Canvas
    capacity: int | None
    train_rules: Any
    test_rules: Any

    @property
    @abstractmethod
    def memory_knobs(self) -> str:
        """The settings that make the memory of a video smaller, for messages."""

    @abstractmethod
    def load_start_weights(self) -> None:
        """Fill the network with what training from scratch starts from, such as pretrained backbones."""

    @abstractmethod
    def encode(self, frames: Tensor) -> Any:
        """Features of (B, 3, h, w) RGB in [0, 1]; once a frame, shared by all memories."""

    @abstractmethod
    def start(self, valid: Tensor, rules: Any, draws: Any = None) -> Memory:
        """An empty memory for the (B, N) bool slots; `draws` are the random draws of training, or None."""

    @abstractmethod
    def segment(
        self,
        features: Any,
        memory: Memory,
        view: View,
        *,
        time: int,
        given: Given | None = None,
        sources: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        """Raw decoder logits of a frame, of the N slots last, (B, .. + N, h', w'), and the memory that has seen it."""

    @abstractmethod
    def resolve(
        self, logits: tuple[Tensor | None, ...], memories: tuple[Memory, ...], view: View, given: Given | None = None
    ) -> Masks:
        """Masks from the logits of all chunks, None for a chunk all of whose slots are given; pastes what is given."""

    @abstractmethod
    def planes(self, labels: Tensor, slots: int, view: View) -> Tensor:
        """What is remembered of (B, H, W) labels over `slots` slots: (B, .. + slots, h, w), as in `Masks`."""

    @abstractmethod
    def memorize(
        self,
        features: Any,
        planes: Tensor,
        memory: Memory,
        *,
        time: int,
        given: Given | None = None,
        last: bool = False,
    ) -> Memory:
        """The memory after a frame with such planes; a reference if something is given."""

    def keep(self, memory: Memory, slots: Tensor) -> Memory:
        """The memory with only the (K,) slots; asked for where `capacity` is None, lest removed objects add up."""
        raise NotImplementedError(f"{type(self).__name__} has a capacity, so its slots stay")


def advance(
    network: VOSNetwork[Memory],
    features: Any,
    memories: tuple[Memory, ...],
    view: View,
    *,
    time: int,
    given: Given | None = None,
    forced: Tensor | None = None,
    sources: Tensor | None = None,
    last: bool = False,
) -> tuple[Masks, tuple[Memory, ...]]:
    """Segment a frame and remember it: the one step that training, test and every tool share.

    Args:
        network: The network.
        features: `network.encode` of the frame.
        memories: One memory a chunk of slots.
        view: The sizes of the video.
        time: Number of the frame.
        given: An annotation of this frame, over the slots of all chunks.
        forced: Planes to remember instead of the network's own, over the slots of all chunks.
        sources: (B, R) times to read, None for all.
        last: Whether no frame follows.

    Returns:
        The masks, and the memories for the next frame.
    """
    chunks = _chunks(memories)
    logits: list[Tensor | None] = []
    seen = []
    for memory, slots in zip(memories, chunks, strict=True):
        part = None if given is None else Given(given.planes[:, slots], given.stated[:, slots])
        if part is not None and bool((part.stated | ~memory.valid).all()):
            logits.append(None)
        else:
            logit, memory = network.segment(features, memory, view, time=time, given=part, sources=sources)
            logits.append(logit)
        seen.append(memory)
    masks = network.resolve(tuple(logits), tuple(seen), view, given)
    remembered = masks.planes if forced is None else forced
    return masks, tuple(
        network.memorize(
            features,
            remembered if len(chunks) == 1 else _part_of(remembered, slots),
            memory,
            time=time,
            given=None if given is None else Given(given.planes[:, slots], given.stated[:, slots]),
            last=last,
        )
        for memory, slots in zip(seen, chunks, strict=True)
    )


def _chunks(memories: tuple[Any, ...]) -> list[slice]:
    starts = [0]
    for memory in memories:
        starts.append(starts[-1] + memory.valid.shape[1])
    return [slice(start, end) for start, end in pairwise(starts)]


def _part_of(planes: Tensor, slots: slice) -> Tensor:
    """The planes of one chunk; what other chunks hold is its background."""
    objects = planes[:, 1:]
    others = objects[:, : slots.start].sum(1, keepdim=True) + objects[:, slots.stop :].sum(1, keepdim=True)
    return torch.cat([planes[:, :1] + others, objects[:, slots]], dim=1)


def with_valid(memory: Memory, valid: Tensor) -> Memory:
    """The memory with other valid slots."""
    return replace(memory, valid=valid)
