"""How well the box queries of a video tell its instances apart: what the contrastive loss is meant to bring.

Shapes: n instances that were found, T frames, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lightning_vos.evaluation.youtube_vis import Track, Tracks, result_track, track_iou

if TYPE_CHECKING:
    from lightning_vos.models.taformer.inference import Found


@dataclass(frozen=True)
class Separation:
    """How alike box queries of a video are.

    Attributes:
        within: Mean cosine of all pairs of box queries of one instance in different frames, in [-1, 1].
        between: Mean cosine of all pairs of box queries of different instances, in the same frame or not, in [-1, 1].
    """

    within: float
    between: float


def query_separation(box_queries: Tensor, found: Sequence[Track], truths: Sequence[Track]) -> Separation | None:
    """Compare the box queries of those instances of a video that were found.

    True instances and found ones are matched one to one, so that the sum of the IoU of their masks is the largest; a
    pair without a common pixel is no match. Classes are not asked for, and crowds are no instances. Of a match the
    frames count in which the true instance is seen. Each pair counts alike, so an instance that is seen for long weighs
    more.

    Args:
        box_queries: (n, T, C), not normalised.
        found: n tracks of T frames.
        truths: All true tracks of the video, of T frames.

    Returns:
        None where fewer than two true instances are matched, or none of them is seen in two frames.
    """
    truths = [truth for truth in truths if not truth.crowd]
    iou = track_iou(found, truths)
    matches = [pair for pair in zip(*linear_sum_assignment(iou, maximize=True), strict=True) if iou[pair] > 0]
    if len(matches) < 2:
        return None
    seen = [box_queries[row, torch.from_numpy(truths[column].pixels > 0)] for row, column in matches]
    lengths = torch.tensor([len(of_instance) for of_instance in seen])
    directions = F.normalize(torch.cat(seen).double(), dim=1)
    cosines = directions @ directions.T
    instance = torch.arange(len(seen)).repeat_interleave(lengths)
    is_same = instance[:, None] == instance
    within = cosines[is_same & ~torch.eye(len(cosines), dtype=torch.bool)]
    if not len(within):
        return None
    return Separation(float(within.mean()), float(cosines[~is_same].mean()))


def found_separation(found: Found, truth: Tracks) -> Separation | None:
    """As `query_separation`, of what was found in a video; None where it was seen in windows."""
    masks = {result.instance: result.masks for result in reversed(found.results)}  # of the best of its categories
    instances = [instance for instance in found.box_queries if instance in masks]
    if not instances:
        return None
    return query_separation(
        torch.stack([found.box_queries[instance] for instance in instances]),
        [result_track(masks[instance]) for instance in instances],
        [track for tracks in truth.values() for track in tracks],
    )
