"""Published checkpoints of SeqFormer, which is TAFormer without its additions: their layout, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from lightning_vos.backbones import Backbone
from lightning_vos.layers.swin import SWIN_FROM_PUBLISHED
from lightning_vos.published.names import SWIN_INDEX, index_tables, renamed

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_vos.models.taformer.network import TAFormerNetwork

NAMES = ("seqformer_r50", "seqformer_r101", "seqformer_swinl")

PRETRAINING = (
    "These are weights of the pre-training on images of COCO, for 91 classes; of videos they know nothing.\n"
    "To find instances, take the file of the whole model. To train on from this one, let the class heads start anew:\n"
    "  --model.weights_may_lack '[class_heads]'"
)
"""What to say of a file that `is_pretraining` and does not fit."""

_BODY, _OURS = "detr.backbone.0.body.", "backbone.body."
_BOXES, _ALIAS = "detr.bbox_embed.", "detr.transformer.decoder.bbox_embed."
_CLASSES, _COCO_CLASSES = "detr.class_embed.0.weight", 91
_REFERENCE = "transformer.reference_points.weight"
_LAYERS, _LEVELS = 6, 4
_ENCODER_LAYER = {
    "self_attn.sampling_offsets": "attention.sampling_offsets",
    "self_attn.attention_weights": "attention.attention_weights",
    "self_attn.value_proj": "attention.value_proj",
    "self_attn.output_proj": "attention.output_proj",
    "norm1": "attention_norm",
    "linear1": "feed.expand",
    "linear2": "feed.contract",
    "norm2": "feed.norm",
}
_DECODER_LAYER = {
    "self_attn": "self_attention.attention",  # the entries in_proj_* stand here themselves
    "self_attn.out_proj": "self_attention.attention.out_proj",
    "norm2": "self_attention.norm",
    "self_attn_box": "box_self_attention.attention",
    "self_attn_box.out_proj": "box_self_attention.attention.out_proj",
    "norm2_box": "box_self_attention.norm",
    "cross_attn.sampling_offsets": "cross_attention.sampling_offsets",
    "cross_attn.attention_weights": "cross_attention.attention_weights",
    "cross_attn.value_proj": "cross_attention.value_proj",
    "cross_attn.output_proj": "cross_attention.output_proj",
    "cross_attn.output_proj_box": "box_output_proj",
    "norm1": "cross_attention_norm",
    "norm1_box": "box_cross_attention_norm",
    "linear1": "feed.expand",
    "linear2": "feed.contract",
    "norm3": "feed.norm",
    "linear1_box": "box_feed.expand",
    "linear2_box": "box_feed.contract",
    "norm3_box": "box_feed.norm",
    "time_attention_weights": "frame_weights",
}
_TABLE = {
    "detr.query_embed": "transformer.query_embedding",
    "detr.transformer.level_embed": "transformer.level_embedding",  # a parameter, not a module
    "detr.transformer.reference_points": "transformer.reference_points",
    "controller.layers.0": "filter_head.0",
    "controller.layers.1": "filter_head.3",
    "controller.layers.2": "filter_head.6",
    "mask_head.lay3": "mask_features.merge.0",
    "mask_head.lay4": "mask_features.merge.1",
    "mask_head.dcn": "mask_features.merge.2",
    "mask_head.lay1": "mask_features.reduce.0",
    "mask_head.lay2": "mask_features.reduce.1",
}
for _level in range(_LEVELS):
    _TABLE |= {f"detr.input_proj.{_level}.{part}": f"projections.{_level}.{part}" for part in (0, 1)}
for _layer in range(_LAYERS):
    _TABLE[f"detr.class_embed.{_layer}"] = f"class_heads.{_layer}"
    _TABLE |= {f"{_BOXES}{_layer}.layers.{n}": f"transformer.decoder.box_heads.{_layer}.{3 * n}" for n in range(3)}
    for _part, _names in (("encoder", _ENCODER_LAYER), ("decoder", _DECODER_LAYER)):
        _TABLE |= {
            f"detr.transformer.{_part}.layers.{_layer}.{theirs}": f"transformer.{_part}.layers.{_layer}.{ours}"
            for theirs, ours in _names.items()
        }
_TABLE |= {f"{_BODY}{theirs}": f"{_OURS}{ours}" for theirs, ours in SWIN_FROM_PUBLISHED.items()}
_UNUSED_PROJECTIONS = tuple(
    f"detr.transformer.encoder.layers.{layer}.self_attn.output_proj_box." for layer in range(_LAYERS)
)
_UNUSED_NORM = f"{_BODY}norm0."  # of Swin's first map


def build(name: str) -> TAFormerNetwork:
    """The network of a published model, with random weights."""
    from lightning_vos.models.taformer.decoder import DecoderSettings
    from lightning_vos.models.taformer.encoder import EncoderSettings
    from lightning_vos.models.taformer.network import TAFormerNetwork

    strides = (8, 16, 32)
    backbones = {
        "r50": lambda: Backbone("resnet50", strides=strides),
        "r101": lambda: Backbone("resnet101", strides=strides),
        "swinl": lambda: Backbone("swin_large_patch4_window12_384", strides=strides, drop_path=0.3, frozen_stages=0),
    }
    return TAFormerNetwork(
        backbones[name.rpartition("_")[2]](),
        encoder=EncoderSettings(st_encoder=False),
        decoder=DecoderSettings(temporal_decoder=False),
        contrastive="none",
    )


def recognize(state: Mapping[str, Tensor]) -> str | None:
    """The model whose layout this is, or None."""
    if "detr.query_embed.weight" not in state or "controller.layers.0.weight" not in state:
        return None
    if f"{_BODY}patch_embed.proj.weight" in state:
        return "seqformer_swinl"
    return "seqformer_r101" if f"{_BODY}layer3.22.conv1.weight" in state else "seqformer_r50"


def is_pretraining(state: Mapping[str, Tensor]) -> bool:
    """Whether a published state dict is that of the pre-training on images, not of a model of videos."""
    return _CLASSES in state and state[_CLASSES].shape[0] == _COCO_CLASSES


def essential(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict less what is there twice, what a network makes itself (Swin's index tables) or never uses.

    The heads of boxes are there under two names.
    """
    dropped = (_ALIAS, _UNUSED_NORM, *_UNUSED_PROJECTIONS)
    return {
        name: value for name, value in state.items() if not name.endswith(SWIN_INDEX) and not name.startswith(dropped)
    }


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of a published state dict under our names; one that has no place here keeps its own."""
    return {renamed(name, _TABLE, _BODY, _OURS): value for name, value in essential(state).items()}


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of our state dict under the published names; one that has no place there keeps its own.

    What `essential` leaves out is made anew: second names, index tables as they must be, what is never used as zeros.
    """
    names = {ours: theirs for theirs, ours in _TABLE.items()}
    published = {renamed(name, names, _OURS, _BODY): value for name, value in state.items()}
    published |= {
        _ALIAS + name.removeprefix(_BOXES): value for name, value in published.items() if name.startswith(_BOXES)
    }
    if _REFERENCE in state:
        channels = state[_REFERENCE].shape[1]
        for projection in _UNUSED_PROJECTIONS:
            published[f"{projection}weight"] = torch.zeros(channels, channels)
            published[f"{projection}bias"] = torch.zeros(channels)
    if f"{_OURS}patch_embed.norm.weight" in state:
        norm = state[f"{_OURS}patch_embed.norm.weight"]  # of as many channels
        published |= {f"{_UNUSED_NORM}{part}": torch.zeros(norm.shape) for part in ("weight", "bias")}
    return published | index_tables(published, _BODY)
