"""Reading a memory by similarity of keys (XMem, Sec. 3.3).

Shapes: B batch, C channels of a key, M positions of the memory, P positions of the frame that reads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def anisotropic_similarity(key: Tensor, shrinkage: Tensor | None, query: Tensor, selection: Tensor | None) -> Tensor:
    """Negative squared distances, weighted by what the query asks for and by how sure a position is (Eq. 2).

    Args:
        key: (B, C, M).
        shrinkage: (B, 1, M), 1 and above; None for 1.
        query: (B, C, P).
        selection: (B, C, P) in [0, 1]; None for 1, and without the norm of the query, which no softmax over M sees.

    Returns:
        (B, M, P).
    """
    keys = key.transpose(1, 2)
    if selection is None:
        similarity = 2 * keys @ query - keys.square().sum(dim=2, keepdim=True)
    else:
        norm = (selection * query.square()).sum(dim=1, keepdim=True)
        similarity = 2 * keys @ (query * selection) - keys.square() @ selection - norm
    similarity = similarity / math.sqrt(key.shape[1])
    return similarity if shrinkage is None else similarity * shrinkage.transpose(1, 2)


def affinity(similarity: Tensor, top_k: int | None = None) -> Tensor:
    """Softmax over the memory of a (B, M, P) similarity; with `top_k` over the best of each column, the rest being 0.

    A `top_k` above M takes all. The maximum is subtracted, so that no column underflows.
    """
    if top_k is None or top_k >= similarity.shape[1]:
        return similarity.softmax(dim=1)
    best, positions = similarity.topk(top_k, dim=1)
    return torch.zeros_like(similarity).scatter_(1, positions, best.softmax(dim=1))
