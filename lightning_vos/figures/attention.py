"""Where the heads of HODOR's soft-masked attention look while an object is described (HODOR, Figure 3).

Shapes: Q queries, h w feature grid, C channels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch

from lightning_vos.errors import ConfigError, MaskError
from lightning_vos.io.plots import AttentionMaps, HeadMaps
from lightning_vos.models.hodor.network import HODORNetwork

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lightning_vos.models.hodor.encoder import EncoderLayer
    from lightning_vos.models.hodor.memory import DescriptorMemory
    from lightning_vos.vos.canvas import View
    from lightning_vos.vos.network import VOSNetwork

_TITLES = {"soft": "Soft-masked attention", "hard": "Hard-masked attention", "none": "Attention without a mask"}


class AttentionReader:
    """Keeps what a layer of the encoder was last called with: the masks that the latest frame is remembered by.

    Args:
        network: The network that is watched, for as long as it lives.
        layer: Of the encoder, from 1; the last where None.

    Raises:
        ConfigError: if the network has no soft-masked attention, or not that layer.
    """

    def __init__(self, network: VOSNetwork[Any], layer: int | None) -> None:
        if not isinstance(network, HODORNetwork):
            raise ConfigError(
                f"A {type(network).__name__} has no soft-masked attention to draw.\n  expected weights of HODOR"
            )
        layers = network.encoder.layers
        self.layer = len(layers) if layer is None else layer
        if not 1 <= self.layer <= len(layers):
            raise ConfigError(f"--layer {layer} is none of the encoder's: expected 1 to {len(layers)}.")
        self._network = network
        self._attention = cast("EncoderLayer", layers[self.layer - 1]).masked_attention
        self._inputs: tuple[Tensor, ...] = ()
        self._attention.register_forward_hook(self._keep)

    @property
    def title(self) -> str:
        """What kind of attention it is, and of which layer."""
        attention = self._attention
        title = f"{_TITLES[attention.masking]} of encoder layer {self.layer}"
        if attention.masking == "soft":
            title += " (strengths: initial → learnt"
            title += f", divided by the root of {attention.query.out_features // attention.heads}" * attention.divided
            title += ")"
        return title

    @torch.no_grad()
    def maps(self, memory: DescriptorMemory, slot: int, view: View) -> AttentionMaps:
        """Maps of an object in the latest frame, without the padding.

        Args:
            memory: That has described the frame.
            slot: Of the object.
            view: The sizes of the video.

        Raises:
            MaskError: if the object was too small to be described.
        """
        if not bool(memory.frames[-1].described[0, slot]):
            raise MaskError(
                "The object leaves no trace in the feature map, so it is not described and nothing looks at it.\n"
                "  give a larger --size, or draw another --object"
            )
        stride = self._network.strides[1]
        query = self._network.background + slot
        queries, keys, _, masks = self._inputs
        logits = self._attention.logits(queries, keys, masks)[0, :, query]
        grid = tuple(side // stride for side in view.network)
        seen = tuple(math.ceil(side / stride) for side in view.content)

        def cropped(maps: Tensor) -> Tensor:
            return maps.float().unflatten(-1, grid)[..., : seen[0], : seen[1]].cpu()

        pairs = zip(cropped(logits), cropped(logits.softmax(dim=1)), strict=True)
        heads = [HeadMaps(self._label(n), before.numpy(), after.numpy()) for n, (before, after) in enumerate(pairs)]
        height, width = (
            cells * stride * pixels / content
            for cells, pixels, content in zip(seen, view.frame, view.content, strict=True)
        )
        return AttentionMaps(cropped(masks[0, query]).numpy(), heads, (height, width))

    def _label(self, head: int) -> str:
        attention = self._attention
        if attention.masking != "soft":
            return f"head {1 + head}: {'hard mask' if attention.masking == 'hard' else 'no mask'}"
        learnt = float(attention.strengths[head])
        return f"head {1 + head}: strength {attention.initial_strengths[head]:g} → {learnt:.2f}"

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        self._inputs = inputs
