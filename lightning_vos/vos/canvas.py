"""How a frame of any size gets into a network and a result back out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class View(NamedTuple):
    """The two sizes of a video in a network, in pixels."""

    frame: tuple[int, int]  # (H, W) of the video, and of every result
    network: tuple[int, int]  # (h, w) of what the network sees


@dataclass(frozen=True)
class Canvas:
    """The sizes a network can see, and how frames are brought to one.

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

    def view(self, height: int, width: int, scale: float | None = None) -> View:
        """The view of a video of (height, width) pixels: shrink to the limits, scale, then round half to even.

        Args:
            height: Of the video.
            width: Of the video.
            scale: Of this view where several are tested; None where one is, to which `short_side` does not apply.
        """
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

        return View((height, width), (side(height), side(width)))

    def enter(self, frames: Tensor, view: View) -> Tensor:
        """Resize (B, 3, H, W) frames to the network's size; bicubic, not clipped, as the published evaluation does."""
        if view.frame == view.network:
            return frames
        return F.interpolate(frames, view.network, mode="bicubic", align_corners=False)
