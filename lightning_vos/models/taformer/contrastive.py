"""The contrastive loss of TAFormer: the queries of one instance agree in all frames, those of different ones do not.

Shapes: B clips, T frames, Q queries, C channels.
"""

from __future__ import annotations

from itertools import permutations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ContrastiveHead(nn.Sequential):
    """Two linear layers from box queries to what is compared (TAFormer, Figure 3).

    One head serves all frames and all decoder layers. The paper is silent about the ReLU between the two.

    Args:
        channels: C, of the queries, of the layer between and of the result.
    """

    def __init__(self, channels: int = 256) -> None:
        super().__init__(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))


def contrastive_loss(
    embeddings: Tensor, temperature: float = 0.07, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """How badly queries are told apart from one frame to another: InfoNCE (TAFormer, equations 7 and 8).

    For each ordered pair of frames, each query has to find itself, by the cosine, among all queries of the other frame,
    whether they were matched to an instance or not. Computed in float32 under autocast, too.

    Differs from the paper: it prints the sum over queries and pairs of frames, thousands of terms beside a detection
    loss of about ten; here that is `sum`, and the mean is the default. It gives no temperature: 0.07 is that of MoCo.

    Args:
        embeddings: (B, T, Q, C), not normalised.
        temperature: Divides the cosines; above 0.
        reduction: Over the queries and the pairs of frames of a clip. Clips are averaged.

    Returns:
        (), 0 for clips of one frame.
    """
    clips, frames, queries, _ = embeddings.shape
    if frames == 1:
        return 0 * embeddings.float().sum()  # a gradient of zero for the head: distributed training waits for one
    pairs = torch.tensor(list(permutations(range(frames), 2)), device=embeddings.device)
    with torch.autocast(embeddings.device.type, enabled=False):
        directions = F.normalize(embeddings.float(), dim=-1)
        cosines = directions[:, pairs[:, 0]] @ directions[:, pairs[:, 1]].mT  # (B, pairs, Q, Q)
    itself = torch.arange(queries, device=embeddings.device).repeat(clips * len(pairs))
    loss = F.cross_entropy(cosines.flatten(0, 2) / temperature, itself, reduction=reduction)
    return loss / clips if reduction == "sum" else loss
