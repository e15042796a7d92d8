"""Soft-masked attention: attention within masks that may have any value from 0 to 1, and that learn (HODOR, Eq. 1).

Shapes: B batch, Q queries, P pixels, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Masking = Literal["soft", "hard", "none"]
STRENGTHS = (32.0, 32.0, 16.0, 16.0, 8.0, 8.0, 4.0, 4.0)
"""Initial masking strengths of the heads; the paper lists the same ones from the smallest on."""


class SoftMaskedAttention(nn.Module):
    """Attention whose logits are lowered where a query's mask is low, by a learnt strength a head.

    With the strength alpha of a head and the mask M of a query its weights are softmax(q k / sqrt(d) - alpha (1 - M)):
    as a softmax does not see what is added to all pixels alike, alpha M added. They have gradients for M and alpha.

    Differs from the paper: Eq. 1 divides alpha M by the root of the width, too; the published code does not
    (`divided`). The paper calls alpha positive; the published code does not hold it there, and neither does this.

    Args:
        channels: C.
        masking: `soft`; `hard`, which attends to pixels of M > 0.5 alone, or to all where a mask has none; or `none`,
            which does not look at masks. The last two are ablations without published code.
        strengths: Initial alpha of each head, whose number is that of heads.
        divided: Whether alpha M is divided by the root of a head's width.
        dropout: Of weights.
    """

    def __init__(
        self,
        channels: int,
        masking: Masking = "soft",
        strengths: Sequence[float] = STRENGTHS,
        *,
        divided: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if masking not in ("soft", "hard", "none") or not strengths or channels % len(strengths):
            raise ValueError(
                f"SoftMaskedAttention: masking is {masking!r}, strengths are {tuple(strengths)}, channels {channels}; "
                "expected soft, hard or none, and a strength for each head, whose number divides the channels"
            )
        self.masking, self.divided = masking, divided
        self.heads, self.initial_strengths = len(strengths), tuple(strengths)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        if masking == "soft":
            self.strengths = nn.Parameter(torch.tensor(strengths, dtype=torch.float32))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, masks: Tensor) -> Tensor:
        """Read (B, Q, C) from `value`.

        Args:
            query: (B, Q, C).
            key: (B, P, C).
            value: (B, P, C).
            masks: (B, Q, P) in [0, 1].
        """
        weights = self.dropout(self.logits(query, key, masks).softmax(dim=3))
        read = weights @ self._split(self.value(value))
        return self.output(read.transpose(1, 2).flatten(2))

    def logits(self, query: Tensor, key: Tensor, masks: Tensor) -> Tensor:
        """What the softmax over pixels is taken of, masking included: (B, heads, Q, P); arguments as in `forward`."""
        queries, keys = self._split(self.query(query)), self._split(self.key(key))
        width = queries.shape[3]
        logits = queries @ keys.transpose(2, 3) / math.sqrt(width)
        if self.masking == "soft":
            strengths = self.strengths / math.sqrt(width) if self.divided else self.strengths
            return logits - strengths.view(-1, 1, 1) * (1 - masks[:, None])
        if self.masking == "hard":
            inside = masks > 0.5
            inside = inside | ~inside.any(dim=2, keepdim=True)
            return logits.masked_fill(~inside[:, None], -torch.inf)
        return logits

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, n, C) -> (B, heads, n, C / heads)."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)
