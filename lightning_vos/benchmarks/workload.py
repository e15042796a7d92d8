"""What costs are measured on, and by which clocks and gauges."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

MIB = 2**20
Precision = Literal["32", "bf16"]
_REACH = 64  # pixels that the picture wanders over


@dataclass(frozen=True)
class Setting:
    """What a network is measured on.

    Attributes:
        size: (H, W) of the frames, in pixels.
        objects: Objects of the first mask.
        device: Where the network runs.
        threads: Threads of a CPU; None for torch's own choice.
        precision: bf16 computes under autocast.

    Raises:
        ConfigError: a number is too small, or the objects too many for the frame.
    """

    size: tuple[int, int]
    objects: int
    device: str
    threads: int | None
    precision: Precision

    def __post_init__(self) -> None:
        if min(*self.size, self.objects, self.threads or 1) < 1:
            raise ConfigError(
                f"A benchmark of {self.objects} objects on frames of {self.size[0]} x {self.size[1]} pixels"
                f" with {self.threads} threads cannot be run.\n  expected numbers of at least 1"
            )
        if self.objects > min(255, self.size[0] * self.size[1] // 64):
            raise ConfigError(
                f"{self.objects} objects do not fit on {self.size[0]} x {self.size[1]} pixels.\n"
                "  expected 255 objects at most, and 64 pixels for each"
            )

    @property
    def device_type(self) -> str:
        """The device without its number."""
        return torch.device(self.device).type

    def prepare(self) -> None:
        """Limit the threads of this process."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def autocast(self) -> torch.autocast:
        """The precision, as a context."""
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.precision == "bf16")


class SyntheticVideo:
    """An endless video, the same each time: a random picture wanders, and the first mask states blocks of it.

    Args:
        size: (H, W) in pixels.
        objects: Number of objects.

    Example:
        >>> video = SyntheticVideo((16, 24), objects=2)
        >>> video.frame(7).shape, video.first_mask.unique().tolist()
        (torch.Size([3, 16, 24]), [0, 1, 2])
    """

    def __init__(self, size: tuple[int, int], objects: int) -> None:
        self.size = height, width = size
        coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=torch.Generator().manual_seed(0))
        self._picture = F.interpolate(coarse, (height + _REACH, width + _REACH), mode="bilinear")[0]
        columns = math.ceil(math.sqrt(objects * width / height))
        rows = math.ceil(objects / columns)
        down = torch.arange(height) * rows / height
        across = torch.arange(width) * columns / width
        ids = 1 + down.long()[:, None] * columns + across.long()
        # the upper left three quarters of each cell
        inside = ((down % 1 < 0.75)[:, None] & (across % 1 < 0.75)) & (ids <= objects)
        self.first_mask: Tensor = torch.where(inside, ids, 0)

    def frame(self, number: int) -> Tensor:
        """Frame `number`, (3, H, W) in [0, 1]."""
        top, left = _corner(number)
        return self._picture[:, top : top + self.size[0], left : left + self.size[1]].contiguous()

    def mask(self, number: int) -> Tensor:
        """The labels of a frame, (H, W) int64: blocks wander with the picture, and come back at the opposite edge."""
        (first_top, first_left), (top, left) = _corner(0), _corner(number)
        return self.first_mask.roll((first_top - top, first_left - left), dims=(0, 1))


def _corner(number: int) -> tuple[int, int]:
    """Where in the picture a frame begins."""
    half = _REACH / 2
    return round(half * (1 + math.sin(number / 10))), round(half * (1 + math.cos(number / 10)))


def seconds(device: torch.device) -> float:
    """A clock of work: the CPU time of this process, or on a GPU the wall time after all queued work."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def median_seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The median of so many runs, after one that is not counted."""
    work()  # the first run makes what later ones find
    spent = []
    for _ in range(repeats):
        started = seconds(device)
        work()
        spent.append(seconds(device) - started)
    return median(spent)


def resident_bytes() -> int:
    """Resident memory of this process now; where there is no /proc, its peak so far."""
    with suppress(FileNotFoundError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return _highest_resident()


def reset_peak(device: torch.device) -> int:
    """Begin a new peak of memory; gives the bytes that are in use now: of the GPU, or resident."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):  # where this cannot be, the peak is that since the process began
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident_bytes()


def peak_bytes(device: torch.device) -> int:
    """The most bytes in use since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(FileNotFoundError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return _highest_resident()


def _highest_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
