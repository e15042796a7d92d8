"""XMem's decoder: what the memory says of each object, and the features of the frame, to a logit a pixel.

Shapes: B batch, N object slots, C channels, h w grid of stride 16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vos.models.qmvos.fusion import FeatureFusion, ResidualBlock
from lightning_vos.models.qmvos.sensory import DecoderUpdate


class Decoded(NamedTuple):
    """What the decoder gives of a frame."""

    logits: Tensor  # (B, N, 4 h, 4 w)
    hidden: Tensor | None  # (B, N, C, h, w), the sensory memory if this frame updates it
    filters: Tensor | None  # (B, N, C) of QMVOS


class Upsample(nn.Module):
    """Adds features of the frame at twice the size to those of its objects.

    Args:
        skip_channels: Of the frame's features.
        in_channels: Of the objects' features.
        out_channels: Of the result.
    """

    def __init__(self, skip_channels: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(skip_channels, in_channels, 3, padding=1)
        self.leave = ResidualBlock(in_channels, out_channels)

    def forward(self, skip: Tensor, objects: Tensor) -> Tensor:
        """Map (B, skip, 2 h, 2 w) and (B, N, in, h, w) to (B, N, out, 2 h, 2 w)."""
        enlarged = F.interpolate(objects.flatten(0, 1), scale_factor=2, mode="bilinear", align_corners=False)
        enlarged = enlarged.unflatten(0, objects.shape[:2]) + self.skip(skip)[:, None]
        return self.leave(enlarged.flatten(0, 1)).unflatten(0, objects.shape[:2])


class Decoder(nn.Module):
    """Decodes the masks of objects from what the memory says of them, from coarse to fine (XMem, Sec. 3.1).

    Args:
        frame_channels: Of the frame's features at strides 16, 8 and 4.
        value_channels: Of what is read from the memory.
        hidden: Of the sensory memory; 0 for none.
        channels: Of its own features at stride 16, and at strides 8 and 4.
        is_filtered: Whether the last layer is a filter an object, as in QMVOS, instead of one convolution for all.
    """

    def __init__(
        self,
        frame_channels: tuple[int, int, int] = (1024, 512, 256),
        value_channels: int = 512,
        hidden: int = 64,
        channels: tuple[int, int] = (512, 256),
        *,
        is_filtered: bool = False,
    ) -> None:
        super().__init__()
        coarse, fine = channels
        self.fusion = FeatureFusion(frame_channels[0], value_channels + hidden, coarse)
        self.middle = Upsample(frame_channels[1], coarse, fine)
        self.fine = Upsample(frame_channels[2], fine, fine)
        self.hidden_update = DecoderUpdate((coarse, fine, fine), fine, hidden) if hidden else None
        self.prediction = None if is_filtered else nn.Conv2d(fine, 1, 3, padding=1)

    def forward(
        self,
        maps: tuple[Tensor, Tensor, Tensor],
        readout: Tensor,
        hidden: Tensor | None,
        make_filters: Callable[[Tensor], Tensor] | None = None,
    ) -> Decoded:
        """Decode a frame.

        Args:
            maps: (B, C, ..) features of the frame at strides 16, 8 and 4.
            readout: (B, N, C, h, w).
            hidden: (B, N, C, h, w) sensory memory.
            make_filters: Makes the filters (B, N, C) of QMVOS of the decoder's coarse features (B, N, C', h, w).
        """
        coarse = self.fusion(maps[0], readout if hidden is None else torch.cat([readout, hidden], dim=2))
        middle = self.middle(maps[1], coarse)
        fine = self.fine(maps[2], middle)
        filters = None
        if self.prediction is not None:
            logits = self.prediction(fine.flatten(0, 1).relu()).unflatten(0, fine.shape[:2])
        else:
            assert make_filters is not None
            filters = make_filters(coarse)
            logits = torch.einsum("bnc,bnchw->bnhw", filters, fine)[:, :, None]
        updated = None
        if self.hidden_update is not None:
            updated = self.hidden_update((coarse, middle, torch.cat([fine, logits], dim=2)), hidden)
        return Decoded(logits[:, :, 0], updated, filters)
