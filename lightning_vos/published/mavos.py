"""Published checkpoints of MAVOS, DeAOT-L and AOT-L: their layouts, and ours.

One table of module names serves both directions; what stands behind a module's name is the same on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from lightning_vos.backbones import MOBILENETV2_FROM_TORCHVISION, Backbone
from lightning_vos.layers.swin import SWIN_FROM_PUBLISHED
from lightning_vos.published.names import SWIN_INDEX, index_tables, renamed

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_vos.models.mavos.network import MAVOSNetwork

NAMES = (
    "mavos_mobilenetv2",
    "mavos_r50",
    "mavos_swinb",
    "deaotl_mobilenetv2",
    "deaotl_r50",
    "deaotl_swinb",
    "aotl_mobilenetv2",
    "aotl_r50",
)

_GATED_LAYER = {
    "norm1": "norm",
    "linear_QV": "key_value",
    "linear_U": "gate",
    "linear_ID_V": "identity_value",
    "id_norm1": "identity_norm",
    "linear_ID_U": "identity_gate",
    "norm2": "self_norm",
    "id_norm2": "self_identity_norm",
    "long_term_attn.dw_conv.conv": "long_term.output.depthwise",
    "long_term_attn.projection": "long_term.output.projection",
    "short_term_attn.relative_emb_k": "short_term.relative",
    "short_term_attn.dw_conv.conv": "short_term.output.depthwise",
    "short_term_attn.projection": "short_term.output.projection",
    "self_attn.linear_QK": "self_propagation.query_key",
    "self_attn.linear_V1": "self_propagation.values.0",
    "self_attn.linear_V2": "self_propagation.values.1",
    "self_attn.linear_U1": "self_propagation.gates.0",
    "self_attn.linear_U2": "self_propagation.gates.1",
    "self_attn.dw_conv.conv": "self_propagation.output.depthwise",
    "self_attn.projection": "self_propagation.output.projection",
}
_AOT_LAYER = {
    "norm1": "self_norm",
    "self_attn.linear_Q": "self_attention.query",
    "self_attn.linear_K": "self_attention.key",
    "self_attn.linear_V": "self_attention.value",
    "self_attn.projection": "self_attention.projection",
    "norm2": "norm",
    "linear_Q": "query_key",
    "linear_V": "value",
    "long_term_attn.projection": "long_term.projection",
    "short_term_attn.relative_emb_k": "short_term.relative",
    "short_term_attn.relative_emb_v": "short_term.relative_value",  # a parameter, not a module
    "short_term_attn.projection": "short_term.projection",
    "norm3": "feed_norm",
    "linear1": "expand",
    "activation.gn": "group_norm",
    "activation.conv": "depthwise",
    "linear2": "contract",
}
_MCA = {
    "norm_l": "norm_new",
    "norm_c": "norm_context",
    "attn.q": "attention.query",
    "attn.k": "attention.key",
    "attn.proj": "attention.projection",
    "attn.f_context": "attention.context.linear",
    "attn.h": "attention.context.value",
    "norm2": "norm_mlp",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_REST = {
    "encoder_projector": "projector",
    "patch_wise_id_bank": "assignment.bank",
    "id_norm": "assignment.norm",
    "decoder.conv_in.conv": "decoder.entry.0",
    "decoder.conv_in.gn": "decoder.entry.1",
    "decoder.conv_16x.conv": "decoder.levels.0.0",
    "decoder.conv_16x.gn": "decoder.levels.0.1",
    "decoder.conv_8x.conv": "decoder.levels.1.0",
    "decoder.conv_8x.gn": "decoder.levels.1.1",
    "decoder.conv_4x.conv": "decoder.levels.2.0",
    "decoder.conv_4x.gn": "decoder.levels.2.1",
    "decoder.adapter_4x": "decoder.shortcuts.0",
    "decoder.adapter_8x": "decoder.shortcuts.1",
    "decoder.adapter_16x": "decoder.shortcuts.2",
    "decoder.conv_out": "decoder.exit",
}
_SLOTS = {0: 0, 1: 1, 3: 2}  # keys, values and identity values; the published slot 2 is empty
_LAYERS, _LEVELS = 3, 3  # the most that any published file has


def _modules(layer_names: Mapping[str, str]) -> dict[str, str]:
    """Published module name -> ours."""
    table = dict(_REST)
    mca = _MCA | {f"attn.focal_layers.{level}.0": f"attention.context.focal.{level}" for level in range(_LEVELS)}
    for layer in range(_LAYERS):
        table |= {
            f"LSTT.layers.{layer}.{theirs}": f"transformer.layers.{layer}.{ours}"
            for theirs, ours in layer_names.items()
        }
        for slot, block in _SLOTS.items():
            outer = f"long_term_memory_attention.{layer}.{slot}.joint_modulation"
            table |= {f"{outer}.{theirs}": f"policy.blocks.{layer}.{block}.{ours}" for theirs, ours in mca.items()}
    return table


_GATED = _modules(_GATED_LAYER) | {"LSTT.decoder_norms.0.gn": "transformer.norm"}
_AOT = _modules(_AOT_LAYER) | {f"LSTT.decoder_norms.{n}": f"transformer.norms.{n}" for n in range(_LAYERS)}
_MOBILENETV2 = {f"encoder.{theirs}": f"backbone.body.{ours}" for theirs, ours in MOBILENETV2_FROM_TORCHVISION.items()}
_SWIN = {f"encoder.{theirs}": f"backbone.body.{ours}" for theirs, ours in SWIN_FROM_PUBLISHED.items()}
_UNUSED = "LSTT.mask_token"


def build(name: str) -> MAVOSNetwork:
    """The network of a published model, with the published evaluation's settings and random weights."""
    from lightning_vos.models.mavos.elstt import ELSTT
    from lightning_vos.models.mavos.lstt import LSTT
    from lightning_vos.models.mavos.memory import Append, MemoryRules, ModulatedCrossAttentionMemory
    from lightning_vos.models.mavos.network import MAVOSNetwork

    method, _, encoder = name.partition("_")
    backbones = {
        "mobilenetv2": lambda: Backbone("mobilenetv2_100", final=True),
        "r50": lambda: Backbone("resnet50"),
        "swinb": lambda: Backbone("swin_base_patch4_window7_224", drop_path=0.3),
    }
    return MAVOSNetwork(
        backbones[encoder](),
        ModulatedCrossAttentionMemory if method == "mavos" else Append,
        LSTT if method == "aotl" else ELSTT,
        align_corners=encoder != "swinb",
        test_rules=MemoryRules(interval=10 if method == "mavos" else 5),
    )


def recognize(state: Mapping[str, Tensor]) -> str | None:
    """The model whose layout this is, or None."""
    encoders = {
        "encoder.features.0.0.weight": "mobilenetv2",
        "encoder.layer1.0.conv1.weight": "r50",
        "encoder.patch_embed.proj.weight": "swinb",
    }
    encoder = next((encoder for entry, encoder in encoders.items() if entry in state), None)
    if "long_term_memory_attention.0.0.joint_modulation.attn.q.weight" in state:
        method = "mavos"
    elif "LSTT.layers.0.linear_QV.weight" in state:
        method = "deaotl"
    elif "LSTT.layers.0.short_term_attn.relative_emb_v" in state:
        method = "aotl"
    else:
        return None
    return name if (name := f"{method}_{encoder}") in NAMES else None


def essential(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict less what a network makes itself, Swin's index tables, or never uses, AOT's mask token."""
    return {name: value for name, value in state.items() if not name.endswith(SWIN_INDEX) and name != _UNUSED}


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of a published state dict under our names; one that has no place here keeps its own."""
    is_aot = "LSTT.layers.0.linear1.weight" in state
    return {
        renamed(name, (_AOT if is_aot else _GATED) | _SWIN | _MOBILENETV2, "encoder.", "backbone.body."): value
        for name, value in essential(state).items()
    }


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of our state dict under the published names; one that has no place there keeps its own.

    What `essential` leaves out is made anew.
    """
    is_aot = "transformer.layers.0.expand.weight" in state
    table = (_AOT if is_aot else _GATED) | _SWIN
    if "backbone.body.conv_stem.weight" in state:  # a ResNet has modules of the same names
        table = table | _MOBILENETV2
    names = {ours: theirs for theirs, ours in table.items()}
    published = {renamed(name, names, "backbone.body.", "encoder."): value for name, value in state.items()}
    if is_aot:
        published[_UNUSED] = torch.zeros(1, 1, state["projector.weight"].shape[0])
    published |= index_tables(published, "encoder.")
    return published
