"""A small MAVOS, HODOR, XMem and QMVOS, and small moving squares, for tests of everything around the mathematics."""

from functools import partial

import numpy as np
import torch

from lightning_vos.backbones import Backbone
from lightning_vos.metrics.sequence import Plan
from lightning_vos.models.hodor.network import HODORNetwork
from lightning_vos.models.mavos.network import MAVOSNetwork
from lightning_vos.models.qmvos.network import QMVOSNetwork
from lightning_vos.models.qmvos.queries import Queries
from lightning_vos.structures import Clip, ScoredVideo, Video
from lightning_vos.vos.canvas import PaddingCanvas


def backbone(**settings):
    return Backbone("test_resnet", **{"strides": (2, 4, 8), "frozen_norms": False, "frozen_stages": 0} | settings)


def network(*parts, seed=0, **settings):
    """Random weights, the same for one seed; eval mode."""
    torch.manual_seed(seed)
    return MAVOSNetwork(backbone(), *parts, **{"channels": 32, "layers": 2, "window": 5} | settings).eval()


def hodor(seed=0, **settings):
    """Random weights, the same for one seed; eval mode. Its coarse map has stride 4, its canvas pads to eights."""
    torch.manual_seed(seed)
    small = {"channels": 64, "layers": 2, "strengths": (16.0, 4.0), "canvas": PaddingCanvas(8, 36, 72)}
    return HODORNetwork(backbone(final=True), **small | settings).eval()


def queries(**settings):
    """What makes them: the network knows the channels."""
    return partial(Queries, **settings)


def qmvos(seed=0, **settings):
    """Random weights, the same for one seed; XMem with `queries=None`. Videos keep their size, padded to sixteens."""
    torch.manual_seed(seed)
    parts = {"queries": queries(), "canvas": PaddingCanvas(16, None, None, is_centred=True)}
    parts["backbone"] = backbone(strides=(4, 8, 16))
    small = {"value_backbone": "test_resnet", "value_channels": 32, "hidden_channels": 16, "decoder_channels": (64, 32)}
    return QMVOSNetwork(**parts | small | settings).eval()


def frames(count, height=33, width=33, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def squares(*ids, height=33, width=33, shift=0):
    """A (H, W) label map with a square of 6 pixels for each id, side by side; `shift` moves them to the right."""
    labels = np.zeros((height, width), dtype=np.uint8)
    across = width // 8
    for number, i in enumerate(ids):
        top, left = 8 * (number // across) + 1, 8 * (number % across) + 1 + shift
        labels[top : top + 6, left : left + 6] = i
    return labels


def clip(length, objects=2, batch=2, seed=0):
    masks = torch.stack([torch.from_numpy(squares(*range(1, 1 + objects), shift=t % 3)).long() for t in range(length)])
    moving = frames(batch * length, seed=seed).unflatten(0, (batch, length))
    return Clip(moving, masks.expand(batch, -1, -1, -1).clone(), torch.full((batch,), objects))


class SquaresTruth:
    """Squares that move by a pixel a frame; every frame but the first is scored."""

    def __init__(self, length, object_ids):
        scored = range(1, length)
        self.plan = Plan(tuple(scored), {object_id: set(scored) for object_id in object_ids})

    def read(self, frame):
        return squares(*self.plan.objects, shift=frame % 3)


def video(number=0, length=4, object_ids=(1, 2), palette=None, scored=True):
    """A scored video of squares."""
    colours = bytes(range(256)) * 3 if palette is None else palette
    names = [f"{t:05d}" for t in range(length)]
    sample = Video(f"clip{number}", frames(length, seed=number), names, {0: squares(*object_ids)}, (33, 33), colours)
    return ScoredVideo(number, sample, SquaresTruth(length, object_ids) if scored else None)
