"""What HODOR keeps of the past: the descriptors of the latest frames, and nothing of their size.

Shapes: B batch, N object slots, K background cells, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class WindowRules:
    """Which frames are remembered, and how.

    Attributes:
        window: How many frames before the one at hand are read; None for all that there were.
        detach_intermediate_masks: Whether masks that a frame is remembered with are constants, so that no gradient
            crosses frames through them. Paper: false, gradients flow; every published configuration: true.
    """

    window: int | None = None
    detach_intermediate_masks: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"WindowRules.window is {self.window}, expected at least 1 frame, or null for all")


@dataclass(frozen=True)
class RememberedFrame:
    """The descriptors of a frame.

    Attributes:
        time: Number of the frame.
        background: (B, K, C).
        objects: (B, N', C); slots that came later are missing.
        described: (B, N') bool, slots that have a descriptor.
        has_background: Whether the background counts.
    """

    time: int
    background: Tensor
    objects: Tensor
    described: Tensor
    has_background: bool = True


@dataclass(frozen=True)
class DescriptorMemory:
    """The state of a video between two frames.

    Attributes:
        valid: (B, N) bool, slots that hold an object.
        rules: What is kept.
        frames: Remembered ones, each time once, oldest first.
        current: Objects that begin in the frame at hand, left by `segment` until `memorize`.
    """

    valid: Tensor
    rules: WindowRules
    frames: tuple[RememberedFrame, ...] = ()
    current: RememberedFrame | None = None

    @property
    def bank_bytes(self) -> int:
        """Size of what is remembered in bytes."""
        return sum(frame.background.nbytes + frame.objects.nbytes for frame in self.frames)

    @property
    def bank_frames(self) -> int:
        """How many frames are remembered."""
        return len(self.frames)
