"""How memory and time of a network go on over a long video."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from lightning_vos.benchmarks.workload import Setting, SyntheticVideo, resident_bytes
from lightning_vos.vos.track import Tracker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from lightning_vos.vos.network import VOSNetwork

MIB = 2**20
_MARKS = (0.1, 0.5, 1.0)  # of the length, where a summary looks


class FrameRow(NamedTuple):
    """What one frame took and left, in bytes and seconds."""

    frame: int
    bank_bytes: int  # the long-term memories of all objects
    bank_frames: int  # that the fullest of them holds
    cpu_seconds: float  # of all threads of the process
    wall_seconds: float  # network, decoding and memory
    resident_bytes: int
    allocated_bytes: int | None  # on a GPU, after the frame
    peak_bytes: int | None  # on a GPU, during the frame


def measure_memory(network: VOSNetwork[Any], setting: Setting, frames: int) -> Iterator[FrameRow]:
    """Run a network over `frames` frames of a synthetic video, one row a frame; making the frames is not timed."""
    setting.prepare()
    device = torch.device(setting.device)
    is_cuda = device.type == "cuda"
    video, tracker = SyntheticVideo(setting.size, setting.objects), Tracker(network.to(device).eval())
    for number in range(frames):
        frame, mask = video.frame(number), video.first_mask if number == 0 else None
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        started = time.process_time()
        with setting.autocast():
            wall = tracker.step(frame, mask).seconds
        cpu = time.process_time() - started
        yield FrameRow(
            number,
            sum(memory.bank_bytes for memory in tracker.memories),
            max(memory.bank_frames for memory in tracker.memories),
            cpu,
            wall,
            resident_bytes(),
            torch.cuda.memory_allocated(device) if is_cuda else None,
            torch.cuda.max_memory_allocated(device) if is_cuda else None,
        )


class Curves(NamedTuple):
    """The rows of a network as curves over frame numbers, (T,) each."""

    bank: NDArray[np.int64]  # bytes
    bank_frames: NDArray[np.int64]
    seconds: NDArray[np.float64]  # CPU time; wall time where another device works
    memory: NDArray[np.int64]  # bytes resident; on a GPU the peak of each frame


class Summary(NamedTuple):
    """What the curves of a network come to; three values are those at 10 %, 50 % and 100 % of the length."""

    frames: int
    marks: list[int]  # the frames at 10 %, 50 % and 100 %
    bank_bytes: list[int]
    bank_frames: list[int]
    seconds: list[float]  # medians over a tenth of the length
    memory_bytes: list[int]
    steady_from: int  # the frame from which on the bank has exactly one size
    is_constant: bool  # whether that is in the first half
    early: tuple[int, int]  # frames first <= t < last
    late: tuple[int, int]
    late_over_early: float  # median seconds
    late_minus_early_bytes: int  # median memory


def curves(rows: Sequence[FrameRow], setting: Setting) -> Curves:
    """The rows as curves."""
    on_cpu = setting.device_type == "cpu"
    return Curves(
        np.array([row.bank_bytes for row in rows]),
        np.array([row.bank_frames for row in rows]),
        np.array([row.cpu_seconds if on_cpu else row.wall_seconds for row in rows]),
        np.array([row.resident_bytes if row.peak_bytes is None else row.peak_bytes for row in rows]),
    )


def summarize(curve: Curves) -> Summary:
    """Say whether the bank stays constant, and how late frames compare with early ones.

    The late frames are the last 200, the early ones 100 to 300; of fewer than 500 frames the last tenth and 5 to 15 %.
    """
    frames = len(curve.bank)
    changes = np.flatnonzero(np.diff(curve.bank))
    steady_from = int(changes[-1]) + 1 if len(changes) else 0
    if frames >= 500:
        early, late = slice(100, 300), slice(frames - 200, frames)
    else:
        first = frames // 20
        early = slice(first, max(round(0.15 * frames), first + 1))
        late = slice(min(round(0.9 * frames), frames - 1), frames)
    ends = [round(mark * (frames - 1)) for mark in _MARKS]
    return Summary(
        frames,
        ends,
        [int(curve.bank[end]) for end in ends],
        [int(curve.bank_frames[end]) for end in ends],
        [float(np.median(_around(curve.seconds, end))) for end in ends],
        [int(curve.memory[end]) for end in ends],
        steady_from,
        steady_from <= frames / 2,
        (early.start, early.stop),
        (late.start, late.stop),
        float(np.median(curve.seconds[late]) / np.median(curve.seconds[early])),
        int(np.median(curve.memory[late]) - np.median(curve.memory[early])),
    )


def _around(values: NDArray[np.float64], end: int) -> NDArray[np.float64]:
    """A tenth of the values, around one."""
    half = max(len(values) // 20, 1)
    return values[max(end - half, 0) : end + half + 1]
