"""Reading a memory by similarity of keys (XMem, Sec. 3.3).

Shapes: B batch, C channels of a key, M positions of the memory, P positions of the frame that reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def anisotropic_similarity(key: Tensor, shrinkage: Tensor | None, query: Tensor, selection: Tensor | None) -> Tensor:
    """Negative squared distances, weighted by what the query asks for and by how sure a position is (Eq. 2).

    One product gives all of it, for what is done to each of M times P numbers afterwards takes longer than the product.

    Args:
        key: (B, C, M).
        shrinkage: (B, 1, M), 1 and above; None for 1.
        query: (B, C, P).
        selection: (B, C, P) in [0, 1]; None for 1, and without the norm of the query, which no softmax over M sees.

    Returns:
        (B, M, P), the positions of the memory side by side.
    """
    squares = key.square()
    if selection is None:
        kept = torch.cat([key, squares.sum(dim=1, keepdim=True)], dim=1)
        asked = torch.cat([2 * query, -torch.ones_like(query[:, :1])], dim=1)
    else:
        kept = torch.cat([key, squares, torch.ones_like(key[:, :1])], dim=1)
        norm = (selection * query.square()).sum(dim=1, keepdim=True)
        asked = torch.cat([2 * query * selection, -selection, -norm], dim=1)
    if shrinkage is not None:
        kept = kept * shrinkage
    return ((asked / math.sqrt(key.shape[1])).transpose(1, 2) @ kept).transpose(1, 2)


@dataclass(frozen=True)
class Affinity:
    """How the positions of a frame read a memory.

    Attributes:
        weights: (B, k, P), of what each one reads; they sum to 1.
        positions: (B, k, P), what that is; None where each one reads all positions of the memory.
    """

    weights: Tensor
    positions: Tensor | None

    def average(self, values: Tensor) -> Tensor:
        """What is read of (B, C, M) values: (B, C, P)."""
        if self.positions is None:
            return values @ self.weights
        begins = values.shape[2] * torch.arange(len(values), device=values.device)[:, None, None]
        read = F.embedding_bag(
            (self.positions + begins).transpose(1, 2).flatten(0, 1),
            values.transpose(1, 2).flatten(0, 1),
            per_sample_weights=self.weights.transpose(1, 2).flatten(0, 1).to(values.dtype),
            mode="sum",
        )
        return read.unflatten(0, (len(values), -1)).transpose(1, 2)

    def usage(self, size: int) -> Tensor:
        """How much each of M positions, `size` many, is read by all of the frame together: (B, M) float32."""
        if self.positions is None:
            return self.weights.sum(dim=2, dtype=torch.float32)
        usage = self.weights.new_zeros(len(self.weights), size, dtype=torch.float32)
        return usage.scatter_add_(1, self.positions.flatten(1), self.weights.float().flatten(1))


def affinity(similarity: Tensor, top_k: int | None = None) -> Affinity:
    """Softmax over the memory of a (B, M, P) similarity; with `top_k` over the best of each column alone.

    A `top_k` above M takes all. The maximum is subtracted, so that no column underflows.
    """
    if top_k is None or top_k >= similarity.shape[1]:
        return Affinity(similarity.softmax(dim=1), None)
    best, positions = similarity.topk(top_k, dim=1)
    return Affinity(best.softmax(dim=1), positions)
