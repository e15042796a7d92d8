"""Published MAVOS checkpoints: their layout, and ours.

One table of module names serves both directions; what stands behind a module's name is the same on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning_vos.backbones import MOBILENETV2_FROM_TORCHVISION, Backbone

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_vos.models.mavos.network import MAVOSNetwork

NAMES = ("mavos_mobilenetv2", "mavos_r50")

_LAYER = {
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
_MCA = {
    "norm_l": "norm_new",
    "norm_c": "norm_context",
    "attn.q": "attention.query",
    "attn.k": "attention.key",
    "attn.proj": "attention.projection",
    "attn.f_context": "attention.context",
    "attn.h": "attention.value",
    "norm2": "norm_mlp",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_REST = {
    "encoder_projector": "projector",
    "LSTT.decoder_norms.0.gn": "lstt.norm",
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


def _modules() -> dict[str, str]:
    """Published module name -> ours."""
    table = dict(_REST)
    mca = _MCA | {f"attn.focal_layers.{level}.0": f"attention.focal.{level}" for level in range(_LEVELS)}
    for layer in range(_LAYERS):
        table |= {f"LSTT.layers.{layer}.{theirs}": f"lstt.layers.{layer}.{ours}" for theirs, ours in _LAYER.items()}
        for slot, block in _SLOTS.items():
            outer = f"long_term_memory_attention.{layer}.{slot}.joint_modulation"
            table |= {f"{outer}.{theirs}": f"policy.blocks.{layer}.{block}.{ours}" for theirs, ours in mca.items()}
    return table


_TO_OURS = _modules()
_TO_PUBLISHED = {ours: theirs for theirs, ours in _TO_OURS.items()}
_MOBILENETV2 = {f"encoder.{theirs}": f"backbone.body.{ours}" for theirs, ours in MOBILENETV2_FROM_TORCHVISION.items()}


def build(name: str) -> MAVOSNetwork:
    """The network of a published model, with the published evaluation's settings and random weights."""
    from lightning_vos.models.mavos.network import MAVOSNetwork

    if name == "mavos_r50":
        return MAVOSNetwork(Backbone("resnet50"))
    return MAVOSNetwork(Backbone("mobilenetv2_100", final=True))


def recognize(state: Mapping[str, Tensor]) -> str | None:
    """The model whose layout this is, or None."""
    if "long_term_memory_attention.0.0.joint_modulation.attn.q.weight" not in state:
        return None
    if "encoder.features.0.0.weight" in state:
        return "mavos_mobilenetv2"
    return "mavos_r50" if "encoder.layer1.0.conv1.weight" in state else None


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of a published state dict under our names; one that has no place here keeps its own."""
    return _renamed(state, _TO_OURS | _MOBILENETV2, "encoder.", "backbone.body.")


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of our state dict under the published names; one that has no place there keeps its own."""
    is_mobilenet = "backbone.body.conv_stem.weight" in state
    encoder = {ours: theirs for theirs, ours in _MOBILENETV2.items()} if is_mobilenet else {}
    return _renamed(state, _TO_PUBLISHED | encoder, "backbone.body.", "encoder.")


def _renamed(
    state: Mapping[str, Tensor], table: Mapping[str, str], encoder: str, other_encoder: str
) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        # A ResNet's modules have the same names on both sides.
        plain = other_encoder + module.removeprefix(encoder) if module.startswith(encoder) else module
        renamed[f"{table.get(module, plain)}.{kind}"] = value
    return renamed
