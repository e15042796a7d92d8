"""Checkpoints of the published code of token masking: their layout, and ours.

A file of any number of classes, bands and layers has this layout, so that the network is built by what the file holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lightning_vos.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_vos.models.token_masking.network import TokenMaskingNetwork

NAMES = ("token_masking",)

_WRAPPER = "model."  # of the published LightningModule
_TABLE = {
    "mct.cls_token": "vit.class_tokens",  # parameters, not modules
    "mct.register_token": "vit.register",
    "mct.pos_embed": "vit.positions",
    "mct.patch_embed.proj": "vit.patch_embedding",
    "mct.head": "patch_head",
    "classifier_head_test": "classifier",
}
_BLOCKS, _OUR_BLOCKS = "mct.blocks.", "vit.blocks."
_BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
_GATE, _OUR_GATES = ".attn.gate.log_a", "gates.log_a"
_NORM, _COPY = "mct.norm.", "mct.classifier_head_test."
_UNUSED = (_NORM, _COPY)
_QKV = "mct.blocks.{}.attn.qkv.weight"
_WIDTH, _HEADS, _DEPTH = 768, 16, 12


def build(name: str, state: Mapping[str, Tensor] | None = None, heads: int | None = None) -> TokenMaskingNetwork:
    """The network of a published file, with random weights.

    Args:
        name: One of `NAMES`.
        state: The published state dict that the sizes are those of; that of 20 classes of VOC by default.
        heads: Of a layer before any was removed, as `settings`.

    Raises:
        CheckpointError: as `settings`.
    """
    from lightning_vos.models.token_masking.gates import GateSettings
    from lightning_vos.models.token_masking.network import TokenMaskingNetwork
    from lightning_vos.models.token_masking.vit import ViTSettings

    found = settings(state or {}, heads)
    gates = None if found["gates"] is None else GateSettings(**found["gates"])
    return TokenMaskingNetwork(**found | {"vit": ViTSettings(**found["vit"]), "gates": gates})


def settings(state: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
    """What a `TokenMaskingNetwork` is built with for a published state dict, as plain values.

    Args:
        state: The published state dict; what it lacks is as published for VOC.
        heads: Of a layer before any was removed. Needed where the file has no gates, which tell it, and another width
            than the published 768 with its 16 heads.

    Raises:
        CheckpointError: if nothing says how many heads there are, or their number does not divide the width.
    """
    shapes = {name: tuple(value.shape) for name, value in essential(state).items()}
    _, classes, width = shapes.get("mct.cls_token", (1, 20, _WIDTH))
    _, bands, patch, _ = shapes.get("mct.patch_embed.proj.weight", (width, 3, 16, 16))
    _, tokens, _ = shapes.get("mct.pos_embed", (1, classes + (224 // patch) ** 2 + 1, width))
    depth = 1 + max((int(name.split(".")[2]) for name in shapes if name.startswith(_BLOCKS)), default=_DEPTH - 1)
    gates = [shape[1] for name, shape in shapes.items() if name.endswith(_GATE)]
    heads = heads or (gates[0] if gates else _HEADS if width == _WIDTH else None)
    if heads is None or width % heads:
        raise CheckpointError(
            f"The published file of token masking has {width} channels and {len(gates)} gates, so that it does not say "
            f"how many heads a layer has{'' if heads is None else f'; {heads} do not divide the channels'}.\n"
            'Say it: load_published("token_masking", FILE, heads=...).'
        )
    left = [shapes.get(_QKV.format(layer), (3 * width,))[0] // 3 // (width // heads) for layer in range(depth)]
    removed = {} if set(left) == {heads} else {"heads": tuple(left), "head_width": width // heads}
    return {
        "classes": classes,
        "vit": {
            "width": width,
            "depth": depth,
            "heads": heads,
            "patch": patch,
            "bands": bands,
            "mlp_ratio": shapes.get("mct.blocks.0.mlp.fc1.weight", (4 * width,))[0] / width,
            "qkv_bias": False,
            "norm_eps": 1e-5,
            "final_norm": False,
            "grid": math.isqrt(max(tokens - classes - 1, 1)),
            "interpolation": "published",
        }
        | removed,
        "register": True,
        "gates": {"hard": True, "start": None} if gates or not shapes else None,
        "classifier": "concat",
        "patch_head": True,
    }


def recognize(state: Mapping[str, Tensor]) -> str | None:
    """The model whose layout this is, or None."""
    return NAMES[0] if {"mct.cls_token", f"{_WRAPPER}mct.cls_token"} & state.keys() else None


def essential(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict without the wrapper's prefix, less what the network never uses.

    That is a second classifier and the norm behind the last layer.
    """
    plain = {name.removeprefix(_WRAPPER): value for name, value in state.items()}
    return {name: value for name, value in plain.items() if not name.startswith(_UNUSED)}


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of a published state dict under our names; one that has no place here keeps its own."""
    ours, gates = {}, {}
    for name, value in essential(state).items():
        if name.startswith(_BLOCKS) and name.endswith(_GATE):
            gates[int(name.split(".")[2])] = value.flatten()
        else:
            ours[_renamed(name, _TABLE, _BLOCKS, _OUR_BLOCKS, _BLOCK)] = value
    if gates:
        ours[_OUR_GATES] = torch.stack([gates[layer] for layer in sorted(gates)])
    return ours


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of our state dict under the published names, without prefix; one that has no place there keeps its own.

    What `essential` leaves out is made anew, as zeros.
    """
    table, block = ({ours: theirs for theirs, ours in names.items()} for names in (_TABLE, _BLOCK))
    published: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == _OUR_GATES:
            published |= {f"{_BLOCKS}{layer}{_GATE}": gates.view(1, -1, 1, 1) for layer, gates in enumerate(value)}
        else:
            published[_renamed(name, table, _OUR_BLOCKS, _BLOCKS, block)] = value
    for kind in ("weight", "bias"):
        if "mct.cls_token" in published:
            published[f"{_NORM}{kind}"] = torch.zeros(published["mct.cls_token"].shape[2])
        if f"classifier_head_test.{kind}" in published:
            published[f"{_COPY}{kind}"] = torch.zeros_like(published[f"classifier_head_test.{kind}"])
    return published


def pruned_words(heads: Sequence[int], head_width: int) -> str:
    """The words of a command that give a network the heads which `convert --prune` has left.

    Args:
        heads: Of each layer.
        head_width: Channels of a head.
    """
    return (
        f"--model.network.gates=null --model.network.vit.head_width={head_width} "
        f"--model.network.vit.heads='{list(heads)}'"
    )


def removed_heads(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """What to say where weights have no gates, and perhaps fewer heads, and the network they are for has all of them.

    Args:
        state: The weights, under names of ours or published.
        own: Of the network, likewise.
    """
    theirs, wanted = to_ours(state), to_ours(own)
    if _OUR_GATES in theirs or _OUR_GATES not in wanted:
        return None
    depth, heads = wanted[_OUR_GATES].shape
    head_width = wanted["vit.class_tokens"].shape[2] // heads
    rows = [theirs.get(f"{_OUR_BLOCKS}{layer}.attention.qkv.weight") for layer in range(depth)]
    left = [len(row) // (3 * head_width) for row in rows if row is not None]
    if len(left) != depth:
        return None
    if set(left) == {heads}:
        return "The weights have no gates. Give the network none:\n  --model.network.gates=null"
    return (
        "The weights have their closed heads removed. Give the network the same ones:\n"
        f"  {pruned_words(left, head_width)}"
    )


def _renamed(name: str, table: Mapping[str, str], blocks: str, other_blocks: str, block: Mapping[str, str]) -> str:
    """A name by the tables: of an entry, of its module, or of a module in a block."""
    if name in table:
        return table[name]
    module, _, kind = name.rpartition(".")
    if module in table:
        return f"{table[module]}.{kind}"
    layer, _, part = module.removeprefix(blocks).partition(".")
    if module.startswith(blocks) and part in block:
        return f"{other_blocks}{layer}.{block[part]}.{kind}"
    return name
