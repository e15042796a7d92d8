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
    """

    multiple: int = 16
    align_corners: bool = True
    long_side: int | None = 1040

    def view(self, height: int, width: int) -> View:
        """The view of a video of (height, width) pixels: shrink to `long_side`, then round half to even."""
        shrink = min(1.0, self.long_side / max(height, width)) if self.long_side else 1.0
        extra = int(self.align_corners)

        def side(length: int) -> int:
            steps = round((int(length * shrink) - extra) / self.multiple)
            return max(steps, 1) * self.multiple + extra

        return View((height, width), (side(height), side(width)))

    def enter(self, frames: Tensor, view: View) -> Tensor:
        """Resize (B, 3, H, W) frames to the network's size; bicubic, not clipped, as the published evaluation does."""
        if view.frame == view.network:
            return frames
        return F.interpolate(frames, view.network, mode="bicubic", align_corners=False)
