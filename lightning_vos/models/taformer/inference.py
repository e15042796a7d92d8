"""From a video to instances: what the network sees of it, which of its queries count, and their masks as RLE.

Shapes: T frames, Q queries, K outputs of the class head, N instances, C channels, H W pixels of the video, h w of what
the network sees.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, pil_to_tensor, resize, to_pil_image

from lightning_vos.errors import DeviceMemoryError, is_out_of_memory
from lightning_vos.evaluation.youtube_vis import result_track, track_iou
from lightning_vos.structures import InstanceResult

if TYPE_CHECKING:
    from pycocotools import _EncodedRLE as RLE

    from lightning_vos.models.taformer.network import TAFormerNetwork

_LOWEST_SCORE = 0.001  # results below it have no masks
_SAME = 0.5  # IoU from which on an instance of a window may be one that an earlier window has found
_FRAMES_AT_A_TIME = 8  # of which masks are decoded together
_MASK_STRIDE = 4  # of the masks that the network gives, in pixels


@dataclass(frozen=True)
class InferenceSettings:
    """How a video is shown to the network, and what of its answer counts.

    Attributes:
        short_side: Of the frames that the network sees, in pixels; the long side follows, without a limit.
        results: The most results of a video; of the published code.
        window: Frames that the network sees at a time; null: the whole video as one clip, as in the paper. Memory then
            grows with the length of the video; with windows it does not, and instances are found near-online.
        overlap: Frames that a window shares with the one before, by which instances are linked.
        exact_geometry: Whether masks cover just the frame. The published code stretches a grid that covers up to 7
            pixels more than the frame to the size of the video.
    """

    short_side: int = 360
    results: int = 10
    window: int | None = None
    overlap: int = 2
    exact_geometry: bool = False

    def __post_init__(self) -> None:
        """Refuse what shows nothing."""
        if min(self.short_side, self.results) < 1:
            raise ValueError(f"short_side={self.short_side}, results={self.results}; expected at least 1 of each")
        if self.window is not None and not 1 <= self.overlap < self.window:
            raise ValueError(
                f"window={self.window}, overlap={self.overlap}; expected an overlap of at least one frame that is "
                "shorter than the window"
            )


class Found(NamedTuple):
    """What was found in a video.

    Box queries are there where the network saw the video as one clip. With windows there are none: an instance is found
    by other queries in each of them.
    """

    results: list[InstanceResult]
    box_queries: dict[int, Tensor]  # number of an instance -> (T, C) of the last decoder layer, on the CPU
    frames: int  # T
    seconds: float  # of the network, resizing of masks and encoding them; nothing of reading frames


@dataclass
class _Instance:
    """An instance so far.

    Attributes:
        scores: (K,) the sum over windows.
        masks: Frame -> mask.
        box_queries: (T, C) in the frames of the window that found it first.
        windows: How many found it.
    """

    scores: Tensor
    masks: dict[int, RLE]
    box_queries: Tensor
    windows: int = 1

    @property
    def mean_scores(self) -> Tensor:
        return self.scores / self.windows

    def go_on_as(self, other: _Instance) -> None:
        """Take over what a later window says; masks that are there stay."""
        self.scores = self.scores + other.scores
        self.windows += other.windows
        self.masks = other.masks | self.masks


@torch.no_grad()
def find_instances(
    network: TAFormerNetwork,
    frames: Iterable[Tensor],
    size: tuple[int, int],
    categories: Mapping[int, int],
    settings: InferenceSettings,
) -> Found:
    """Find the instances of a video, as SeqFormer's published code does.

    The score of an instance as a category is the sigmoid of one logit of the last decoder layer for the whole clip. The
    `results` best pairs of query and output count; a query may be there as several categories. Those of a query without
    any pixel in the whole video are dropped, and not replaced. A pair below 0.001 has a score, but no masks.

    With windows, each shares its first frames with the one before. Going from the best pair down, an instance of the
    new window is linked with an earlier one if the IoU of their masks in these frames is 0.5 or more; best is the
    product of this IoU and the cosine of their class scores, for several queries may have the same mask. The earlier
    masks of shared frames stay, scores are averaged over the windows of an instance; unlinked ones are new. The last
    window may share more frames, for all have one length.

    Args:
        network: A network in eval mode.
        frames: (3, H, W) RGB in [0, 1], read one by one.
        size: (H, W) of the frames, and of the masks.
        categories: Output of the class head -> category id. Pairs with other outputs are dropped: published heads have
            outputs 0 and 41, which no category has and which evaluations and servers do not know.
        settings: How the video is shown.

    Returns:
        The results, all of an instance together, best instance first.

    Raises:
        DeviceMemoryError: if the device does not hold what the network needs for so many frames.
    """
    device = next(network.parameters()).device
    instances: list[_Instance] = []
    length, seconds = 0, 0.0
    for start, clip in _windows(frames, settings):
        began = _now(device)
        found = _in_clip(network, clip, size, settings, start)
        _link(instances, found, range(start, length))
        length = start + len(clip)
        seconds += _now(device) - began
    box_queries = {n: one.box_queries for n, one in enumerate(instances) if len(one.box_queries) == length}
    return Found(_best(instances, settings.results, length, categories), box_queries, length, seconds)


def shown(frame: Tensor, short_side: int) -> Tensor:
    """A (3, H, W) frame in [0, 1] as the network sees it: (3, h, w) uint8, resized as Pillow does (bilinear)."""
    picture = to_pil_image((frame * 255).round().to(torch.uint8).cpu())
    return pil_to_tensor(resize(picture, [short_side], InterpolationMode.BILINEAR))


def encoded(logits: Tensor, seen: tuple[int, int], size: tuple[int, int], *, exact_geometry: bool) -> list[list[RLE]]:
    """Masks as compressed RLE of COCO, one frame after the other: no more than one is there at full size.

    Args:
        logits: (N, T, ., .) at stride 4; the grid may cover more than the frame.
        seen: (h, w) of the frames that the network saw.
        size: (H, W) of the masks.
        exact_geometry: See `InferenceSettings`.

    Returns:
        For each of the N instances T masks; those without a pixel are RLE, too.
    """
    masks: list[list[RLE]] = [[] for _ in logits]
    for time_step in range(logits.shape[1]):
        at_full_size = _resized(logits[:, time_step, None].float(), seen, size, exact_geometry)
        inside = (at_full_size[:, 0].sigmoid() > 0.5).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        rles: Any = coco.encode(np.asfortranarray(inside))
        for of_instance, rle in zip(masks, rles, strict=True):
            of_instance.append({"size": list(size), "counts": rle["counts"].decode("ascii")})
    return masks


def _resized(logits: Tensor, seen: tuple[int, int], size: tuple[int, int], exact_geometry: bool) -> Tensor:
    """(N, 1, ., .) logits at (H, W)."""
    if not exact_geometry:
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)
    covered = [_MASK_STRIDE * cells for cells in logits.shape[2:]]
    rows, columns = (frame / grid for frame, grid in zip(seen, covered, strict=True))
    share = logits.new_tensor([[columns, 0, columns - 1], [0, rows, rows - 1]])  # of the grid, its left upper part
    places = F.affine_grid(share.expand(len(logits), -1, -1), [len(logits), 1, *size], align_corners=False)
    return F.grid_sample(logits, places, mode="bilinear", padding_mode="border", align_corners=False)


def _windows(frames: Iterable[Tensor], settings: InferenceSettings) -> Iterator[tuple[int, Tensor]]:
    """The number of the first frame of each window and its (T, 3, h, w) uint8 frames; nothing else is kept."""
    kept: deque[Tensor] = deque(maxlen=settings.window)
    number, end = 0, 0
    for number, frame in enumerate(frames, start=1):
        kept.append(shown(frame, settings.short_side))
        new = number - (end - settings.overlap if end else 0)
        if new == settings.window:
            end = number
            yield end - len(kept), torch.stack(tuple(kept))
    if number > end:
        yield number - len(kept), torch.stack(tuple(kept))


def _in_clip(
    network: TAFormerNetwork, clip: Tensor, size: tuple[int, int], settings: InferenceSettings, start: int
) -> list[_Instance]:
    """The instances of the best queries of a (T, 3, h, w) clip that begins with frame `start`, best first."""
    device = next(network.parameters()).device
    seen = (clip.shape[2], clip.shape[3])
    try:
        predictions = network(clip.to(device)[None] / 255, torch.tensor([seen], device=device))
        scores = predictions.logits[-1, 0].float().sigmoid()
        # Whatever query has one of the best pairs is among as many best queries.
        queries = scores.amax(dim=1).topk(min(settings.results, len(scores))).indices
        masks: list[list[RLE]] = [[] for _ in queries]
        for first in range(0, len(clip), _FRAMES_AT_A_TIME):
            part = slice(first, first + _FRAMES_AT_A_TIME)
            logits = network.masks(predictions, len(predictions.logits) - 1, 0, queries, part)
            further = encoded(logits, seen, size, exact_geometry=settings.exact_geometry)
            masks = [of_query + more for of_query, more in zip(masks, further, strict=True)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"Out of memory ({device}): the network sees {len(clip)} frames of {seen[0]} x {seen[1]} pixels at once.\n"
            "Let it see fewer at a time: --model.inference.window 36 (--window 36 of segment);\n"
            "or smaller ones: --model.inference.short_side 288."
        ) from error
    box_queries = predictions.box_queries[0][:, queries].transpose(0, 1).cpu()
    of_queries = zip(scores[queries].cpu(), masks, box_queries, strict=True)
    return [_Instance(row, dict(enumerate(track, start)), of_boxes) for row, track, of_boxes in of_queries]


def _link(instances: list[_Instance], found: Sequence[_Instance], shared: range) -> None:
    """Continue the instances so far with those of a window, and add its new ones."""
    linked: set[int] = set()
    earlier = [one for one in instances if any(frame in one.masks for frame in shared)]
    if earlier and found:
        ours, theirs = (
            [result_track([one.masks.get(frame) for frame in shared]) for one in side] for side in (found, earlier)
        )
        iou = torch.from_numpy(track_iou(ours, theirs))
        rows, columns = (
            F.normalize(torch.stack([one.mean_scores for one in side]), dim=1) for side in (found, earlier)
        )
        likeness = torch.where(iou >= _SAME, iou * (rows @ columns.T), 0)
        while likeness.max() > 0:
            row, column = divmod(int(likeness.argmax()), likeness.shape[1])
            earlier[column].go_on_as(found[row])
            linked.add(row)
            likeness[row] = likeness[:, column] = 0
    instances += [one for number, one in enumerate(found) if number not in linked]


def _best(
    instances: Sequence[_Instance], count: int, length: int, categories: Mapping[int, int]
) -> list[InstanceResult]:
    """The best pairs of instance and output, all of an instance together."""
    if not instances:
        return []
    scores = torch.stack([one.mean_scores for one in instances])
    best = scores.flatten().topk(min(count, scores.numel()))
    pairs: dict[int, list[tuple[int, float]]] = {}
    for place, score in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        number, output = divmod(place, scores.shape[1])
        pairs.setdefault(number, []).append((output, score))
    results = []
    for number, of_instance in pairs.items():
        masks = [instances[number].masks.get(frame) for frame in range(length)]
        if not any(coco.area(mask) for mask in masks if mask is not None):
            continue
        for output, score in of_instance:
            if output in categories:
                told = masks if score >= _LOWEST_SCORE else [None] * length
                results.append(InstanceResult(number, categories[output], score, tuple(told)))
    return results


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
