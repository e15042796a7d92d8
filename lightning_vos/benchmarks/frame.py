"""What one frame costs: with memories of several sizes, with an update of the memory, and part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from lightning_vos.benchmarks.workload import Setting, SyntheticVideo, median_seconds, peak_bytes, reset_peak
from lightning_vos.errors import ConfigError
from lightning_vos.vos.network import Given, advance

if TYPE_CHECKING:
    from torch import nn

    from lightning_vos.vos.network import VOSNetwork

BANK_FRAMES = (1, 2, 4, 6, 8, 10)
"""Frames in the long-term bank whose reading is measured; of one that stops between two of them, its limit."""
WHOLE = "frame, {} in the bank"
_LISTED = 12  # operators of a profile
_NEVER, _LATER = 10**9, 10**6  # an interval without an update; the time of frames, at which one of 1 is due


class Cost(NamedTuple):
    """What one piece of work costs."""

    what: str
    seconds: float  # median; CPU time, on a GPU wall time
    bank_bytes: int | None = None
    memory_bytes: int | None = None  # peak above the loaded network; of a part alone, what it allocates at its peak


def measure_frame(
    network: VOSNetwork[Any], setting: Setting, repeats: int, *, is_profiled: bool = False
) -> Iterator[Cost | str]:
    """Measure a frame of a network; the first cost is that of a frame that reads a single one, which makes a unit.

    Yields:
        Whole frames, then the parts of one; at the end the table of its operators if `is_profiled`.

    Raises:
        ConfigError: if there are more objects than one memory holds, or the memory has no bank that grows by intervals.
    """
    if not hasattr(network.test_rules, "interval"):
        raise ConfigError(
            f"`benchmark frame` measures banks that take in a frame at intervals, {type(network).__name__} has none.\n"
            "  expected a recipe of the MAVOS family; `benchmark video` takes any"
        )
    if network.capacity is not None and setting.objects > network.capacity:
        raise ConfigError(
            f"{setting.objects} objects take several memories, but `benchmark frame` measures one.\n"
            f"  expected --objects {network.capacity} at most"
        )
    setting.prepare()
    device = torch.device(setting.device)
    video, loaded = _Video(network.to(device).eval(), setting), reset_peak(device)
    with torch.no_grad(), setting.autocast():
        memory = filled = video.begin()
        held = 0
        for wanted in BANK_FRAMES:
            filled = video.fill(filled, wanted)
            if filled.bank_frames == held:
                break
            held = filled.bank_frames
            reset_peak(device)
            spent = median_seconds(partial(video.step, _with_interval(filled, _NEVER)), repeats, device)
            yield Cost(WHOLE.format(held), spent, filled.bank_bytes, peak_bytes(device) - loaded)
            if held <= 2:
                memory = filled
        reset_peak(device)
        spent = median_seconds(partial(video.step, filled), repeats, device)
        yield Cost("frame that updates the bank", spent, filled.bank_bytes, peak_bytes(device) - loaded)
        yield from _parts(video, memory, filled, repeats, device)
        del filled
        rest = partial(video.step, _with_interval(memory, _NEVER))
        yield from _local_attention(network, rest, repeats, device)
        if is_profiled:
            yield _operators(rest, device)


class _Video:
    """A network on a synthetic video, with the memory in the hand of the caller."""

    def __init__(self, network: VOSNetwork[Any], setting: Setting) -> None:
        video = SyntheticVideo(setting.size, setting.objects)
        self.network, self.view = network, network.canvas.view(setting.size)
        device = torch.device(setting.device)
        self.first, self.frame = (video.frame(number).to(device)[None] for number in (0, 1))
        slots = torch.arange(network.capacity or setting.objects, device=device)
        planes = (video.first_mask.to(device) == 1 + slots.view(1, -1, 1, 1)).float()
        self._given = Given(planes, slots[None] < setting.objects)

    def begin(self) -> Any:
        """The memory after the first frame, which takes in every further one."""
        rules = replace(self.network.test_rules, interval=1)
        if hasattr(rules, "long_term"):
            rules = replace(rules, long_term=None)  # XMem's: it would condense what is to grow
        memory = self.network.start(self._given.stated, rules)
        features = self.network.encode(self.network.canvas.enter(self.first, self.view))
        return advance(self.network, features, (memory,), self.view, time=0, given=self._given)[1][0]

    def step(self, memory: Any, time: int = _LATER) -> Any:
        """The memory after one more frame."""
        features = self.network.encode(self.network.canvas.enter(self.frame, self.view))
        return advance(self.network, features, (memory,), self.view, time=time)[1][0]

    def fill(self, memory: Any, wanted: int) -> Any:
        """The memory once its bank has grown to `wanted` frames, or grows no more."""
        held = 0
        while held < memory.bank_frames < wanted:
            held = memory.bank_frames
            memory = self.step(memory, time=held)
        return memory


def _with_interval(memory: Any, interval: int) -> Any:
    return replace(memory, rules=replace(memory.rules, interval=interval))


def _parts(video: _Video, memory: Any, filled: Any, repeats: int, device: torch.device) -> Iterator[Cost]:
    """The verbs of a network on a frame; the decoder, which `segment` ends with, is counted with `resolve`.

    All read `memory`, but the update is that of `filled`, from which a bounded bank has to drop a frame.
    """
    network, view = video.network, video.view
    entered = network.canvas.enter(video.frame, view)
    features = network.encode(entered)
    segment = partial(network.segment, features, memory, view, time=_LATER)
    logits, seen = segment()
    resolve = partial(network.resolve, (logits,), (seen,), view)
    decoder = network.get_submodule("decoder")
    decode = median_seconds(partial(decoder, *_inputs(decoder, segment)), repeats, device)
    yield Cost("  encode", median_seconds(partial(network.encode, entered), repeats, device))
    yield Cost("  propagate", median_seconds(segment, repeats, device) - decode)
    yield Cost("  decode", decode + median_seconds(resolve, repeats, device))
    for what, held, interval in (("  memorize", memory, _NEVER), ("  memorize and update", filled, 1)):
        logits, seen = network.segment(features, held, view, time=_LATER)
        planes = network.resolve((logits,), (seen,), view).planes
        memorize = partial(network.memorize, features, planes, _with_interval(seen, interval), time=_LATER)
        yield Cost(what, median_seconds(memorize, repeats, device))


def _local_attention(
    network: VOSNetwork[Any], step: Callable[[], Any], repeats: int, device: torch.device
) -> Iterator[Cost]:
    """The short-term attention of the first layer that has one, alone."""
    module = next((module for name, module in network.named_modules() if name.endswith("short_term")), None)
    if module is not None:
        attend = partial(module, *_inputs(module, step))
        spent = median_seconds(attend, repeats, device)
        yield Cost("  local attention, one layer", spent, None, allocated_at_peak(attend, device))


def _inputs(module: nn.Module, work: Callable[[], Any]) -> tuple[Any, ...]:
    """What a module is called with first when `work` runs."""
    calls: list[tuple[Any, ...]] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    work()
    handle.remove()
    return calls[0]


def allocated_at_peak(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors that `work` holds at once at most, its result included, what stood before excluded."""
    if device.type == "cuda":
        before = reset_peak(device)
        work()
        return peak_bytes(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    events = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    return max(accumulate((size for _, size in sorted(events)), initial=0))


def _operators(work: Callable[[], Any], device: torch.device) -> str:
    """The table of the operators that take most time of their own."""
    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]) as profiler:
        work()
    return profiler.key_averages().table("self_device_time_total" if is_cuda else "self_cpu_time_total", _LISTED)
