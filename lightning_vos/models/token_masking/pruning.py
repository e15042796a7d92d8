"""Removing closed attention heads from weights for good.

Shapes: L layers, M heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def pruned_state(state: Mapping[str, Tensor], gates: Tensor, head_width: int) -> dict[str, Tensor]:
    """Weights without the heads whose gate is 0, and without gates: those between 0 and 1 go into the projection.

    Args:
        state: Of a `TokenMaskingNetwork` with gates.
        gates: (L, M) in [0, 1], as its evaluation uses them.
        head_width: Channels of a head.

    Returns:
        The entries of the network whose layer l has as many heads as `gates[l]` has numbers above 0.
    """
    kept = {name: value for name, value in state.items() if not name.startswith("gates.")}
    for layer, gate in enumerate(gates):
        attention = f"vit.blocks.{layer}.attention."
        is_open = gate > 0
        channels = is_open.repeat_interleave(head_width)
        for name in (f"{attention}qkv.weight", f"{attention}qkv.bias"):
            if name in kept:
                kept[name] = kept[name][channels.repeat(3)]
        factors = gate[is_open].repeat_interleave(head_width)
        name = f"{attention}proj.weight"
        kept[name] = kept[name][:, channels] * factors.to(kept[name].dtype)
    return {name: torch.clone(value) for name, value in kept.items()}
