"""How a frame of any size gets into a network and a result back out of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from torch import Tensor


class View(NamedTuple):
    """The sizes of a video in a network, in pixels."""

    frame: tuple[int, int]  # (H, W) of the video, and of every result
    content: tuple[int, int]  # (h, w) that a frame is resized to
    network: tuple[int, int]  # (h, w) of what the network sees: the content, and padding right of it and below it


@dataclass(frozen=True)
class Canvas(ABC):
    """The sizes a network can see, and how frames are brought to one.

    Attributes:
        multiple: What the sides of what it sees are multiples of, see the subclasses.
    """

    multiple: int

    @abstractmethod
    def view(self, frame: tuple[int, int], size: tuple[int, int] | None = None, scale: float | None = None) -> View:
        """The view of a video.

        Args:
            frame: (H, W) of the video in pixels.
            size: (h, w) to work at, rounded to what the network can see; None for the canvas's own rule.
            scale: Of this view where several are tested; None where one is.
        """

    @abstractmethod
    def enter(self, frames: Tensor, view: View) -> Tensor:
        """Bring (B, 3, H, W) frames to the network's size."""


@dataclass(frozen=True)
class ResizingCanvas(Canvas):
    """Resizes frames to sides that fit; how AOT, DeAOT and MAVOS see them.

    Attributes:
        multiple: Network sides are k * multiple + 1 with `align_corners`, else k * multiple.
        align_corners: Of every resize inside the network.
        long_side: Frames with a longer side are shrunk to it first; None for no limit.
        short_side: The same of the shorter side, where several scales are tested.
    """

    multiple: int = 16
    align_corners: bool = True
    long_side: int | None = 1040
    short_side: int | None = 624

    def view(self, frame: tuple[int, int], size: tuple[int, int] | None = None, scale: float | None = None) -> View:
        """As `Canvas.view`: shrink to the limits, scale, then round half to even."""
        height, width = size or frame
        shrink = 1.0
        if scale is not None and self.short_side:
            shrink = min(shrink, self.short_side / min(height, width))
        if self.long_side:
            shrink = min(shrink, self.long_side / max(height, width))
        factor = shrink * (scale or 1.0)
        extra = int(self.align_corners)

        def side(length: int) -> int:
            steps = round((int(length * factor) - extra) / self.multiple)
            return max(steps, 1) * self.multiple + extra

        network = (side(height), side(width))
        return View(frame, network, network)

    def enter(self, frames: Tensor, view: View) -> Tensor:
        """Resize (B, 3, H, W) frames to the network's size; bicubic, not clipped, as the published evaluation does."""
        if view.frame == view.network:
            return frames
        return F.interpolate(frames, view.network, mode="bicubic", align_corners=False)


@dataclass(frozen=True)
class PaddingCanvas(Canvas):
    """Resizes frames to a short side, up or down, keeps their shape and pads them; how HODOR and XMem see them.

    Attributes:
        multiple: Network sides are multiples of it.
        short_side: Of a resized frame; None keeps the size of the video.
        long_side: The most that its long side gets; None for no limit.
        is_centred: Whether the padding lies on all sides, the odd pixel right and below, or right and below alone.
    """

    multiple: int = 32
    short_side: int | None = 512
    long_side: int | None = 987
    is_centred: bool = False

    def __post_init__(self) -> None:
        short = 1 if self.short_side is None else self.short_side
        if min(self.multiple, short) < 1 or (self.long_side is not None and self.long_side < short):
            raise ValueError(
                f"PaddingCanvas: multiple={self.multiple}, short_side={self.short_side}, long_side={self.long_side}; "
                "expected at least 1 of each, and a long side that is no shorter than the short one"
            )

    def view(self, frame: tuple[int, int], size: tuple[int, int] | None = None, scale: float | None = None) -> View:
        """As `Canvas.view`; a frame without a `size` is resized to the limits, each side rounded half to even."""
        factor = scale or 1.0
        if size is None:
            fitting = self.short_side / min(frame) if self.short_side else 1.0
            if self.long_side is not None:
                fitting = min(fitting, self.long_side / max(frame))
            factor *= fitting
        height, width = (max(round(side * factor), 1) for side in size or frame)
        return View(frame, (height, width), (height + -height % self.multiple, width + -width % self.multiple))

    def enter(self, frames: Tensor, view: View) -> Tensor:
        """Resize (B, 3, H, W) frames bilinearly and pad them with the mean colour of ImageNet."""
        if view.frame != view.content:
            frames = F.interpolate(frames, view.content, mode="bilinear", align_corners=False)
        if view.content == view.network:
            return frames
        mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=frames.device, dtype=frames.dtype).view(1, 3, 1, 1)
        return self.pad(frames - mean, view) + mean

    def pad(self, maps: Tensor, view: View) -> Tensor:
        """Pad (..., h, w) maps of the content's size with 0 to the network's."""
        top, left = self._offset(view)
        height, width = (side - own for side, own in zip(view.network, view.content, strict=True))
        return F.pad(maps, (left, width - left, top, height - top))

    def leave(self, maps: Tensor, view: View) -> Tensor:
        """Cut the padding off (B, C, h, w) maps of the network's size and resize them bilinearly to the frame's."""
        top, left = self._offset(view)
        maps = maps[:, :, top : top + view.content[0], left : left + view.content[1]]
        if view.frame == view.content:
            return maps
        return F.interpolate(maps, view.frame, mode="bilinear", align_corners=False)

    def _offset(self, view: View) -> tuple[int, int]:
        if not self.is_centred:
            return 0, 0
        return (view.network[0] - view.content[0]) // 2, (view.network[1] - view.content[1]) // 2
