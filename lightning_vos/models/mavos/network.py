"""MAVOS: video object segmentation with a memory of constant size (Shaker et al., WACV 2025).

Shapes: B batch, N object slots, H W output size, h w network size, C channels, n tokens of the feature grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vos.backbones import Backbone
from lightning_vos.errors import ConfigError
from lightning_vos.models.mavos.decoder import PyramidDecoder
from lightning_vos.models.mavos.elstt import ELSTT
from lightning_vos.models.mavos.memory import MAVOSMemory, MemoryPolicy, MemoryRules, ModulatedCrossAttentionMemory
from lightning_vos.models.mavos.transformer import Transformer
from lightning_vos.vos.canvas import ResizingCanvas, View
from lightning_vos.vos.network import Given, Masks, VOSNetwork

_NEVER = -1e10  # logit of a slot without an object
_TRAIN_RULES, _TEST_RULES = MemoryRules(interval=2), MemoryRules(interval=10)


class MAVOSFeatures(NamedTuple):
    """What MAVOS sees of a frame."""

    maps: tuple[Tensor, Tensor, Tensor]  # (B, C, h, w) shortcuts of the decoder, finest first
    projected: Tensor  # (B, C, h, w) input of the transformer


class IdentityAssignment(nn.Module):
    """Turns planes of objects into an embedding of the feature grid (AOT's identification, with DeAOT's norm).

    Args:
        slots: Planes, background included.
        channels: Of the embedding.
        stride: Of the feature grid.
        align_corners: Whether the grid's corners lie on the frame's, which takes an odd kernel.
        normed: Whether a layer norm follows (DeAOT and MAVOS; AOT has none).
    """

    def __init__(
        self, slots: int, channels: int, stride: int = 16, *, align_corners: bool = True, normed: bool = True
    ) -> None:
        super().__init__()
        kernel, padding = (stride + 1, stride // 2) if align_corners else (stride, 0)
        self.bank = nn.Conv2d(slots, channels, kernel, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(channels) if normed else nn.Identity()
        nn.init.orthogonal_(self.bank.weight.view(channels, -1).transpose(0, 1), gain=kernel**-2)

    def forward(self, planes: Tensor, permutation: Tensor | None = None) -> Tensor:
        """Embed (B, slots, h, w) planes, permuted by a (B, slots, slots) matrix in training; (B, n, channels)."""
        if permutation is not None:
            planes = torch.einsum("bohw,bot->bthw", planes, permutation)
        return self.norm(self.bank(planes).flatten(2).transpose(1, 2))

    @staticmethod
    def restore(logits: Tensor, permutation: Tensor | None) -> Tensor:
        """Undo the permutation on (B, slots, h, w) logits."""
        return logits if permutation is None else torch.einsum("bohw,bto->bthw", logits, permutation)


class MAVOSNetwork(VOSNetwork[MAVOSMemory]):
    """The network of MAVOS; with `Append` as memory that of DeAOT-L, with `LSTT` as transformer, too, that of AOT-L.

    Args:
        backbone: The image encoder.
        memory: What becomes of the long-term memory; called with the layers and parts of the transformer.
        transformer: `ELSTT` or `LSTT`; called with `layers`, `channels` and `window`.
        layers: Layers of the transformer.
        channels: Its width C.
        window: Side of its short-term window on the feature grid.
        align_corners: Of every resize; true for the MobileNetV2 and ResNet recipes, false for Swin.
        long_side: Frames with a longer side are shrunk to it first; None for no limit.
        train_rules: Rules of the memory in training.
        test_rules: Rules of the memory at test.

    Differs from the paper: see `ModulatedCrossAttention`, `FusionBlock` and `FusedMemory`.
    """

    capacity = 10
    memory_knobs = (
        "model.network.test_rules.interval (more), or another model.network.memory, such as configs/memory/capped.yaml"
    )

    def __init__(
        self,
        backbone: Backbone,
        memory: Callable[[int, tuple[int, ...]], MemoryPolicy] = ModulatedCrossAttentionMemory,
        transformer: Callable[[int, int, int], Transformer] = ELSTT,
        *,
        layers: int = 3,
        channels: int = 256,
        window: int = 15,
        align_corners: bool = True,
        long_side: int | None = 1040,
        train_rules: MemoryRules = _TRAIN_RULES,
        test_rules: MemoryRules = _TEST_RULES,
    ) -> None:
        super().__init__()
        if window < 1 or window % 2 == 0:
            raise ValueError(f"MAVOSNetwork.window is {window}, expected an odd number of positions such as 15")
        if layers < 1 or channels < 16 or channels % 16:
            raise ValueError(
                f"MAVOSNetwork: layers is {layers}, channels {channels}; expected at least 1 layer and a multiple of 16"
            )
        stride = backbone.strides[-1]
        if backbone.last_stride != stride:
            raise ConfigError(
                f"The last map of backbone {backbone.name!r} has stride {backbone.last_stride}, MAVOS needs {stride}.\n"
                "Set --model.network.backbone.final=false: the map at that stride is then the last."
            )
        self.canvas: ResizingCanvas = ResizingCanvas(stride, align_corners, long_side)
        self.train_rules, self.test_rules = train_rules, test_rules
        self.backbone = backbone
        self.projector = nn.Conv2d(backbone.channels[3], channels, 1)
        nn.init.xavier_uniform_(self.projector.weight)
        self.transformer = transformer(layers, channels, window)
        self.assignment = IdentityAssignment(
            1 + self.capacity,
            channels,
            stride,
            align_corners=align_corners,
            normed=self.transformer.normed_assignment,
        )
        self.policy = memory(layers, self.transformer.parts)
        self.decoder = PyramidDecoder(
            self.transformer.out_channels, backbone.channels, 1 + self.capacity, channels, align_corners=align_corners
        )

    def encode(self, frames: Tensor) -> MAVOSFeatures:
        """Features of (B, 3, h, w) RGB in [0, 1]."""
        *maps, last = self.backbone(frames)
        return MAVOSFeatures((maps[0], maps[1], maps[2]), self.projector(last))

    def load_start_weights(self) -> None:
        """Fill the backbone with what its recipe starts from; errors as `Backbone.load_start_weights`."""
        self.backbone.load_start_weights()

    def start(self, valid: Tensor, rules: MemoryRules, draws: Tensor | None = None) -> MAVOSMemory:
        """An empty memory; `draws` is the (B, 1 + N, 1 + N) permutation of identities of training."""
        return MAVOSMemory(valid, rules, draws)

    def segment(
        self,
        features: MAVOSFeatures,
        memory: MAVOSMemory,
        view: View,
        *,
        time: int,
        given: Given | None = None,
        sources: Tensor | None = None,
    ) -> tuple[Tensor, MAVOSMemory]:
        """Propagate the memory into a frame and decode; slots that are empty or given anew get -1e10.

        Raises:
            ConfigError: if `sources` are asked for: a bank of constant size keeps no times.
        """
        if sources is not None:
            raise ConfigError("MAVOS cannot read chosen source frames: its long-term memory keeps no times.")
        tokens, size = _tokens(features.projected)
        output, current = self.transformer(tokens, size, list(zip(memory.long, memory.short, strict=True)))
        logits = self.assignment.restore(self.decoder(output, features.maps), memory.permutation)
        empty = ~memory.valid if given is None else ~memory.valid | given.stated
        empty = F.pad(empty, (1, 0), value=False)
        never = _NEVER if logits.dtype != torch.float16 else -1e4
        return logits.masked_fill(empty[:, :, None, None], never), replace(memory, current=current)

    def resolve(
        self,
        logits: tuple[Tensor | None, ...],
        memories: tuple[MAVOSMemory, ...],
        view: View,
        given: Given | None = None,
    ) -> Masks:
        """Upsample, merge chunks, take the arg-max at output size and paste what is given over it."""
        upsampled = [self._upsample(logit, memory, view) for logit, memory in zip(logits, memories, strict=True)]
        merged = upsampled[0] if len(upsampled) == 1 else _merge(upsampled)
        probabilities = merged.float().softmax(dim=1)
        labels = probabilities.max(dim=1).indices  # argmax, which is four times slower on a CPU
        if given is not None:
            pasted = given.planes.any(dim=1)
            labels = torch.where(pasted, 1 + given.planes.to(torch.uint8).argmax(dim=1), labels)
            stated = F.one_hot(labels, probabilities.shape[1]).movedim(3, 1).to(probabilities.dtype)
            probabilities = torch.where(pasted[:, None], stated, probabilities)
        return Masks(merged, probabilities, labels, self.planes(labels, merged.shape[1] - 1, view))

    def _upsample(self, logits: Tensor | None, memory: MAVOSMemory, view: View) -> Tensor:
        if logits is None:  # every slot of the chunk is given: nothing else is there
            batch, slots = memory.valid.shape
            nothing = torch.full((batch, 1 + slots, 1, 1), _NEVER, device=memory.valid.device)
            nothing[:, 0] = 0
            return nothing.expand(-1, -1, *view.frame)
        return F.interpolate(logits, view.frame, mode="bilinear", align_corners=self.canvas.align_corners)

    def planes(self, labels: Tensor, slots: int, view: View) -> Tensor:
        """One-hot planes of the labels, nearest at the network's size; an unknown label (255) is in no plane."""
        small = F.interpolate(labels[:, None].float(), view.network, mode="nearest")
        return (small == torch.arange(1 + slots, device=labels.device).view(1, -1, 1, 1)).float()

    def memorize(
        self,
        features: MAVOSFeatures,
        planes: Tensor,
        memory: MAVOSMemory,
        *,
        time: int,
        given: Given | None = None,
        last: bool = False,
    ) -> MAVOSMemory:
        """Make the frame the short-term memory, and the long-term one too if it is a reference or an update is due.

        A reference frame is matched with itself first; a later one goes through the same policy as any update.
        """
        if last:
            return memory
        assignment = self.assignment(planes, memory.permutation)
        tokens, size = _tokens(features.projected)
        current = memory.current
        if given is not None:
            _, current = self.transformer(tokens, size, assignment=assignment)
        short = self.transformer.remember(current, assignment)
        long, updated = memory.long, memory.updated
        if given is not None or time - updated >= memory.rules.interval:
            long = self.policy.update(long, short, size, is_reference=given is not None) if long else short
            updated = time
        return replace(memory, long=long, short=short, current=current, updated=updated)


def _tokens(grid: Tensor) -> tuple[Tensor, tuple[int, int]]:
    return grid.flatten(2).transpose(1, 2), (grid.shape[2], grid.shape[3])


def _merge(logits: list[Tensor]) -> Tensor:
    """Logits of all chunks as one: the background is what is background in every chunk."""
    probabilities = [logit.float().softmax(dim=1) for logit in logits]
    background = torch.stack([p[:, :1] for p in probabilities]).prod(dim=0)
    objects = [p[:, 1:] for p in probabilities]
    return torch.cat([background, *objects], dim=1).clamp(1e-5, 1 - 1e-5).logit()
