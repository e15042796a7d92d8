"""What training starts from: a plain vision transformer of timm, for one with many class tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv

from lightning_vos.backbones import start_state
from lightning_vos.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_vos.models.token_masking.vit import ClassTokenViT

_OPTION = "--model.network.start_weights"
_NOISE = 0.02  # of the repeated class token
_MODULES = {
    "patch_embed.proj": "patch_embedding",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.proj",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
"""timm's names -> ours, where they differ."""


def started(vit: ClassTokenViT, weights: str) -> dict[str, Tensor]:
    """All entries of a transformer, filled from a plain one; the register and its position stay as they are.

    The class token is repeated for every class with a little noise, and so is its position, without; positions of
    patches are resized to the grid, and the patch embedding is adapted to the bands, both as timm does.

    Args:
        vit: The transformer.
        weights: A pretrained timm model, or a local file in its layout.

    Raises:
        CheckpointError: if the weights cannot be had or do not fit.
    """
    own = vit.state_dict()
    given = {_ours(name): value for name, value in start_state(weights, _OPTION).items()}
    tables = [given.pop(name, torch.empty(0)) for name in ("cls_token", "pos_embed")]
    missing = sorted(own.keys() - given.keys() - {"class_tokens", "register", "positions"})
    # What a layer has beside ours, such as the factors of DINOv2, must not be left out without a word.
    left_over = sorted(name for name in given.keys() - own.keys() if name.startswith("blocks."))
    embedding = "patch_embedding.weight"
    if embedding in given and given[embedding].dim() == 4:
        given[embedding] = adapt_input_conv(vit.settings.bands, given[embedding].float())
    fitting = {name: value for name, value in given.items() if name in own}
    wrong = sorted(name for name, value in fitting.items() if value.shape != own[name].shape)
    patches = tables[1].shape[1] - 1 if tables[1].dim() == 3 else 0
    has_tables = tables[0].shape == (1, 1, vit.settings.width) and patches > 0 and math.isqrt(patches) ** 2 == patches
    if missing or wrong or left_over or not has_tables:
        raise CheckpointError(
            f"Start weights {weights!r} do not fit the transformer of --model.network.vit:\n"
            f"  {len(missing)} entries missing {missing[:2]}, {len(wrong)} of another shape {wrong[:2]}, "
            f"{len(left_over)} left over {left_over[:2]};\n"
            f"  class token {tuple(tables[0].shape)}, positions {tuple(tables[1].shape)}.\n"
            "Expected a plain ViT or DeiT in timm's layout with one class token, of the same width, depth and patch, "
            "such as deit_base_patch16_224.fb_in1k."
        )
    side = vit.settings.grid
    positions, classes = tables[1].float(), vit.classes
    # Of a generator of its own, for all ranks must start alike.
    noise = _NOISE * torch.randn(1, classes, vit.settings.width, generator=torch.Generator().manual_seed(0))
    fitting["class_tokens"] = tables[0].float().expand(-1, classes, -1) + noise
    fitting["positions"] = torch.cat(
        [
            positions[:, :1].expand(-1, classes, -1),
            resample_abs_pos_embed(positions[:, 1:], [side, side], num_prefix_tokens=0),
            own["positions"][:, classes + side**2 :].cpu(),
        ],
        dim=1,
    )
    return own | fitting


def _ours(name: str) -> str:
    for theirs, ours in _MODULES.items():
        name = name.replace(f"{theirs}.", f"{ours}.")
    return name
