"""What multi-scale deformable attention costs, beside a restatement that keeps all it sampled, and what bounds it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lightning_vos.benchmarks.frame import allocated_at_peak
from lightning_vos.benchmarks.workload import Setting, seconds
from lightning_vos.models.taformer.deformable_attention import Shapes, sample
from lightning_vos.models.taformer.encoder import token_references

OPERATIONS, BYTES = 10, 32
"""Of a sampled number: four corners and a weight are each multiplied and added; four corners are read, and then the
number and its weighted self are each written and read again."""

_HEADS, _CHANNELS, _POINTS, _QUERIES = 8, 32, 4, 300  # of the paper; channels are those of a head
_REACH = 2.0  # standard deviation of the offsets, in positions of a map
_WEIGHTING = ("aten::mul", "aten::sum", "aten::add", "aten::add_")
_COPIED, _MULTIPLIED = 2**25, 1536  # numbers, and rows of square matrices, that the device's own rates are taken on

Sampling = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """An attention of the networks."""

    what: str
    queries: int
    shapes: Shapes  # of the levels of a frame
    frames: int  # that are looked at


class AttentionCost(NamedTuple):
    """What an attention costs, ours and the restatement."""

    what: str
    is_training: bool  # with the gradients of values, locations and weights
    seconds: tuple[float, float]  # median; CPU time, on a GPU wall time
    peak_bytes: tuple[int, int]  # of tensors, above the inputs
    kept_bytes: tuple[int, int]  # of those that wait for the backward pass, which all layers and frames add up
    difference: float  # the largest between outputs, in training between gradients, as a share of the largest number
    sampled: int  # numbers in the forward pass
    shares: dict[str, float]  # part -> share of our time


class Rates(NamedTuple):
    """What a device does in a second where nothing else holds it up."""

    operations: float  # of a product of matrices
    bytes: float  # read and written in copying


def cases(size: tuple[int, int]) -> list[Case]:
    """The attentions of SeqFormer and TAFormer for frames of (H, W) pixels.

    Example:
        >>> [(case.queries, case.frames) for case in cases((360, 640))]
        [(4820, 1), (4820, 4), (300, 1)]
    """
    shapes = [(math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in (8, 16, 32, 64)]
    tokens = sum(height * width for height, width in shapes)
    return [
        Case("encoder, space", tokens, shapes, 1),
        Case("encoder, time", tokens, shapes, 4),
        Case("decoder", _QUERIES, shapes, 1),
    ]


def plain_sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """As `sample`: first all points of all maps, side by side, then their weighted sum; all is kept for gradients."""
    N, R, M = locations.shape[:3]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    found = [
        F.grid_sample(
            tokens.flatten(2).transpose(1, 2).reshape(N * M, -1, *shape), grids[:, :, level], align_corners=False
        )
        for level, (tokens, shape) in enumerate(
            zip(value.split([height * width for height, width in shapes], dim=1), shapes, strict=True)
        )
    ]
    points = torch.stack(found, dim=3).flatten(3)  # (N * M, D, R, S * K)
    factors = weights.transpose(1, 2).reshape(N * M, 1, R, -1)
    return (points * factors).sum(dim=3).reshape(N, -1, R).transpose(1, 2)


def measure_attention(setting: Setting, repeats: int) -> Iterator[AttentionCost | Rates]:
    """Measure one frame's attentions, without and with gradients; the rates of the device come first."""
    setting.prepare()
    device = torch.device(setting.device)
    yield _rates(repeats, device)
    for case in cases(setting.size):
        inputs = _draw(case, device)
        shapes = [*case.shapes] * case.frames
        sampled = inputs[2].numel() * _CHANNELS
        for is_training in (False, True):
            ours, plain = (partial(_pass, function, shapes, inputs, is_training) for function in (sample, plain_sample))
            difference = _difference(ours(), plain())
            spent = _medians(ours, plain, repeats, device)
            peak = allocated_at_peak(ours, device), allocated_at_peak(plain, device)
            kept = (_kept(sample, shapes, inputs), _kept(plain_sample, shapes, inputs)) if is_training else (0, 0)
            shares = _shares(ours, repeats, device)
            yield AttentionCost(case.what, is_training, spent, peak, kept, difference, sampled, shares)


def _draw(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations and weights as `sample` takes them; those of the encoder lie around their tokens."""
    draw = torch.Generator().manual_seed(0)
    levels, tokens = len(case.shapes), sum(height * width for height, width in case.shapes)
    slots = (case.queries, _HEADS, case.frames, levels, _POINTS)
    if case.queries == tokens:
        references = token_references(case.shapes, torch.ones(1, levels, 2))[:, :, 0]
    else:
        references = torch.rand(1, case.queries, 2, generator=draw)
    sides = torch.tensor([[width, height] for height, width in case.shapes])[:, None]
    offsets = _REACH * torch.randn(1, *slots, 2, generator=draw) / sides
    locations = references[:, :, None, None, None, None] + offsets
    weights = torch.randn(1, *slots, generator=draw).flatten(3).softmax(dim=3).view(1, *slots)
    value = torch.randn(1, case.frames * tokens, _HEADS, _CHANNELS, generator=draw)
    inputs = (value, locations.flatten(3, 4), weights.flatten(3, 4))
    return tuple(one.to(device).requires_grad_() for one in inputs)  # type: ignore[return-value]


def _pass(
    function: Sampling, shapes: Shapes, inputs: tuple[Tensor, Tensor, Tensor], is_training: bool
) -> tuple[Tensor, ...]:
    """The output, or the gradients of the inputs."""
    value, locations, weights = inputs
    with torch.set_grad_enabled(is_training):
        output = function(value, shapes, locations, weights)
    return torch.autograd.grad(output.square().sum(), inputs) if is_training else (output,)


def _kept(function: Sampling, shapes: Shapes, inputs: tuple[Tensor, Tensor, Tensor]) -> int:
    """Bytes that the graph of a forward pass holds, less the inputs."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    value, locations, weights = inputs
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(value, shapes, locations, weights)
    for one in (*inputs, output):
        held.pop(one.untyped_storage().data_ptr(), None)
    return sum(held.values())


def _difference(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def _medians(
    one: Callable[[], object], other: Callable[[], object], repeats: int, device: torch.device
) -> tuple[float, float]:
    """Of two that take turns, for a machine is not equally fast all the time."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for work, times in zip((one, other), spent, strict=True):
            started = seconds(device)
            work()
            times.append(seconds(device) - started)
    return median(spent[0]), median(spent[1])


def _shares(work: Callable[[], object], repeats: int, device: torch.device) -> dict[str, float]:
    """Part -> share of the time of all operators."""
    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]) as profiler:
        for _ in range(repeats):
            work()
    spent: defaultdict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.device_type.name == "CPU":  # a kernel is counted with the operator that started it
            part = "grid_sample" if "grid_sampler" in event.key else "weighting" if event.key in _WEIGHTING else "rest"
            spent[part] += event.self_device_time_total if is_cuda else event.self_cpu_time_total
    return {part: spent[part] / sum(spent.values()) for part in ("grid_sample", "weighting", "rest")}


def _rates(repeats: int, device: torch.device) -> Rates:
    numbers = torch.rand(_COPIED, device=device)
    into = torch.empty_like(numbers)
    matrix = torch.rand(_MULTIPLIED, _MULTIPLIED, device=device)
    into.copy_(numbers), matrix @ matrix  # the first run makes what later ones find
    copying, multiplying = _medians(lambda: into.copy_(numbers), lambda: matrix @ matrix, repeats, device)
    return Rates(2 * _MULTIPLIED**3 / multiplying, 2 * numbers.nbytes / copying)
