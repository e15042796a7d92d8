"""The published checkpoint of HODOR: its layout, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from lightning_vos.backbones import Backbone
from lightning_vos.layers.swin import SWIN_FROM_PUBLISHED
from lightning_vos.models.hodor.pyramid import FPN_FROM_PUBLISHED
from lightning_vos.published.names import SWIN_INDEX, index_tables, renamed

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_vos.models.hodor.network import HODORNetwork

NAMES = ("hodor",)

_SWIN, _FPN = "feature_extractor.bb_fpn.0.", "feature_extractor.bb_fpn.1."
_OURS = "backbone.body."
_LAYERS, _LEVELS = 5, 4
_ENCODER_LAYER = {
    "self_attn": "self_attention",  # the entries in_proj_* stand here themselves
    "self_attn.out_proj": "self_attention.out_proj",
    "cross_attn.q_proj": "masked_attention.query",
    "cross_attn.k_proj": "masked_attention.key",
    "cross_attn.v_proj": "masked_attention.value",
    "cross_attn.out_proj": "masked_attention.output",
    "cross_attn.scaling_factors": "masked_attention.strengths",  # a parameter, not a module
    "ffn.0": "feed.0",
    "ffn.3": "feed.3",
    "norm1": "norms.0",
    "norm2": "norms.1",
    "norm3": "norms.2",
}
_DECODER_LAYER = {
    "self_attn_conv_substitute.0.conv_offsets": "neighbourhood.offsets",
    "self_attn_conv_substitute.0.conv_deform": "neighbourhood.deform",
    "self_attn_conv_substitute.2": "norm_neighbourhood",
    "cross_attn.q_proj": "query",
    "k_proj_fg": "key_objects",
    "k_proj_bg": "key_background",
    "v_proj_fg": "value_objects",
    "v_proj_bg": "value_background",
    "norm1": "norm_attention",
    "fc1": "feed.0",
    "fc2": "feed.3",
    "norm2": "norm_feed",
}
_TABLE = {
    "encoder.fg_query_embed": "encoder.object_embedding",  # parameters, not modules
    "encoder.bg_query_embed": "encoder.background_embedding",
    "decoder.conv_4x_reduce.0": "decoder.shortcut.0",
    "decoder.conv_4x_reduce.2": "decoder.shortcut.2",
    "decoder.conv_4x.0": "decoder.refine.0",
    "decoder.conv_4x.2": "decoder.refine.2",
    "decoder.instance_query_proj": "decoder.object_query",
    "decoder.bg_query_proj": "decoder.background_query",
    "decoder.catch_all_conv.0": "decoder.catch_all.0",
    "decoder.catch_all_conv.1": "decoder.catch_all.1",
    "decoder.catch_all_conv.3": "decoder.catch_all.3",
}
for _layer in range(_LAYERS):
    for _theirs, _table in (("encoder", _ENCODER_LAYER), ("decoder", _DECODER_LAYER)):
        _TABLE |= {
            f"{_theirs}.attn_layers.{_layer}.{module}": f"{_theirs}.layers.{_layer}.{own}"
            for module, own in _table.items()
        }
_TABLE |= {f"{_SWIN}{theirs}": f"{_OURS}{ours}" for theirs, ours in SWIN_FROM_PUBLISHED.items()}
_TABLE |= {f"{_FPN}{theirs}": f"pyramid.{ours}" for theirs, ours in FPN_FROM_PUBLISHED.items()}
_TABLE |= {f"feature_extractor.norm_layers.{level}": f"pyramid.norms.{level}" for level in range(_LEVELS)}
_UNUSED = (
    *(f"{_FPN}fpn_convs.{level}." for level in (2, 3)),
    *(f"feature_extractor.norm_layers.{level}." for level in (2, 3, 4)),
    "decoder.fmap_proj_4x.",
)
"""Beginnings of entries that the published network never uses."""


def build(name: str) -> HODORNetwork:
    """The network, with the published evaluation's settings and random weights."""
    from lightning_vos.models.hodor.network import HODORNetwork

    return HODORNetwork(Backbone("swin_tiny_patch4_window7_224", final=True, drop_path=0.2, frozen_stages=0))


def recognize(state: Mapping[str, Tensor]) -> str | None:
    """The model whose layout this is, or None."""
    return "hodor" if "encoder.attn_layers.0.cross_attn.scaling_factors" in state else None


def essential(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict less what a network makes itself, Swin's index tables, or never uses."""
    return {
        name: value for name, value in state.items() if not name.endswith(SWIN_INDEX) and not name.startswith(_UNUSED)
    }


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of a published state dict under our names; one that has no place here keeps its own."""
    return {renamed(name, _TABLE, _SWIN, _OURS): value for name, value in essential(state).items()}


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of our state dict under the published names; one that has no place there keeps its own.

    What `essential` leaves out is made anew: index tables as they must be, what is never used as zeros.
    """
    names = {ours: theirs for theirs, ours in _TABLE.items()}
    published = {renamed(name, names, _OURS, _SWIN): value for name, value in state.items()}
    channels = state["decoder.object_query.bias"].shape[0] if "decoder.object_query.bias" in state else 0
    for level in (2, 3):
        published[f"{_FPN}fpn_convs.{level}.conv.weight"] = torch.zeros(channels, channels, 3, 3)
        published[f"{_FPN}fpn_convs.{level}.conv.bias"] = torch.zeros(channels)
    published["decoder.fmap_proj_4x.0.weight"] = torch.zeros(channels, channels, 1, 1)
    for norm in (*(f"feature_extractor.norm_layers.{level}" for level in (2, 3, 4)), "decoder.fmap_proj_4x.2"):
        published |= {f"{norm}.{part}": torch.zeros(channels) for part in ("weight", "bias")}
    return published | index_tables(published, _SWIN)
