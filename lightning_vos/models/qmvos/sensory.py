"""XMem's sensory memory: a hidden state of each object on the feature grid (Sec. 3.2 of XMem).

Shapes: B batch, N object slots, C channels of the hidden state, h w feature grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RecurrentCell(nn.Module):
    """A gated update of the hidden state, whose candidate is not gated by what is forgotten, unlike a GRU's.

    Args:
        in_channels: Of what the state is updated with.
        channels: C.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.transform = nn.Conv2d(in_channels + channels, 3 * channels, 3, padding=1)
        nn.init.xavier_normal_(self.transform.weight)

    def forward(self, news: Tensor, hidden: Tensor) -> Tensor:
        """Update a (B, N, C, h, w) hidden state with (B, N, in, h, w) news."""
        values = self.transform(torch.cat([news, hidden], dim=2).flatten(0, 1)).unflatten(0, hidden.shape[:2])
        forget, update, candidate = values.chunk(3, dim=2)
        update = update.sigmoid()
        return forget.sigmoid() * hidden * (1 - update) + update * candidate.tanh()


class DecoderUpdate(nn.Module):
    """Updates the hidden state with what the decoder made of a frame, at three strides.

    Args:
        channels: Of the decoder's maps at strides 16, 8 and 4; the logit is added to the last.
        middle: Channels that they are brought to.
        hidden: C.
    """

    def __init__(self, channels: tuple[int, int, int], middle: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(count, middle, 1) for count in (*channels[:2], channels[2] + 1))
        self.cell = RecurrentCell(middle, hidden)

    def forward(self, maps: tuple[Tensor, Tensor, Tensor], hidden: Tensor) -> Tensor:
        """Update (B, N, C, h, w) with (B, N, ..) maps at strides 16, 8 and 4, of which finer ones are averaged."""
        coarse, middle, fine = (
            reduce(F.avg_pool2d(features.flatten(0, 1), factor))
            for factor, features, reduce in zip((1, 2, 4), maps, self.reduce, strict=True)
        )
        return self.cell((coarse + middle + fine).unflatten(0, hidden.shape[:2]), hidden)
