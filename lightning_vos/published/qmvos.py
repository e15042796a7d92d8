"""Published checkpoints of XMem and QMVOS: their layouts, and ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from lightning_vos.backbones import Backbone

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_vos.models.qmvos.network import QMVOSNetwork

NAMES = ("xmem", "qmvos")

_BLOCK = {"downsample": "shortcut", "conv1": "conv1", "conv2": "conv2"}
_TABLE = {
    "key_proj.key_proj": "key.key",
    "key_proj.d_proj": "key.shrinkage",
    "key_proj.e_proj": "key.selection",
    "value_encoder.hidden_reinforce.transform": "value.deep_update.transform",
    "decoder.hidden_update.transform": "decoder.hidden_update.cell.transform",
    "decoder.hidden_update.g16_conv": "decoder.hidden_update.reduce.0",
    "decoder.hidden_update.g8_conv": "decoder.hidden_update.reduce.1",
    "decoder.hidden_update.g4_conv": "decoder.hidden_update.reduce.2",
    "decoder.up_16_8.skip_conv": "decoder.middle.skip",
    "decoder.up_8_4.skip_conv": "decoder.fine.skip",
    "decoder.pred": "decoder.prediction",
    "input_proj": "queries.sim.project",
    "simple_upsample_block.up.1": "queries.sim.enlarge.0",
    "simple_upsample_block.up.2": "queries.sim.enlarge.1",
    "simple_upsample_block.output_conv.0": "queries.sim.fuse.0",
    "simple_upsample_block.output_conv.1": "queries.sim.fuse.1",
    "query_SelfAtt_FFN.self_attn": "queries.sim.attention",  # the entries in_proj_* stand here themselves
    "query_SelfAtt_FFN.self_attn.out_proj": "queries.sim.attention.out_proj",
    "query_SelfAtt_FFN.norm1": "queries.sim.norm_attention",
    "query_SelfAtt_FFN.linear1": "queries.sim.feed.0",
    "query_SelfAtt_FFN.linear2": "queries.sim.feed.2",
    "query_SelfAtt_FFN.norm2": "queries.sim.norm_feed",
    "decoder.g16_proj": "queries.qcim.project",
    "decoder.QCIM.self_attn": "queries.qcim.self_attention",
    "decoder.QCIM.self_attn.out_proj": "queries.qcim.self_attention.out_proj",
    "decoder.QCIM.norm2": "queries.qcim.norm_self",
    "decoder.QCIM.cross_attn": "queries.qcim.cross_attention",
    "decoder.QCIM.cross_attn.out_proj": "queries.qcim.cross_attention.out_proj",
    "decoder.QCIM.norm1": "queries.qcim.norm_cross",
    "decoder.QCIM.linear1": "queries.qcim.feed.0",
    "decoder.QCIM.linear2": "queries.qcim.feed.2",
    "decoder.QCIM.norm3": "queries.qcim.norm_feed",
}
for _theirs, _ours in (("value_encoder", "value"), ("decoder", "decoder")):
    for _block, _own in (("block1", "enter"), ("block2", "leave")):
        _TABLE |= {f"{_theirs}.fuser.{_block}.{a}": f"{_ours}.fusion.{_own}.{b}" for a, b in _BLOCK.items()}
    _gates = f"{_theirs}.fuser.attention"
    _TABLE |= {f"{_gates}.ChannelGate.mlp.{n}": f"{_ours}.fusion.attention.channel_gate.{n - 1}" for n in (1, 3)}
    _TABLE[f"{_gates}.SpatialGate.spatial.conv"] = f"{_ours}.fusion.attention.position_gate"
for _theirs, _ours in (("up_16_8", "middle"), ("up_8_4", "fine")):
    _TABLE |= {f"decoder.{_theirs}.out_conv.{a}": f"decoder.{_ours}.leave.{b}" for a, b in _BLOCK.items()}
_BODIES = (  # beginnings of names, the longer ones first
    ("key_encoder.res2.", "backbone.body.layer1."),
    ("key_encoder.", "backbone.body."),
    ("value_encoder.", "value.body."),
)
_STEM, _SINGLE_OBJECT_PLANES = "value_encoder.conv1.weight", 4
_COUNTER = ".num_batches_tracked"


def build(name: str) -> QMVOSNetwork:
    """The network of a published model, with the published evaluation's settings and random weights."""
    from lightning_vos.models.qmvos.network import QMVOSNetwork
    from lightning_vos.models.qmvos.queries import Queries

    backbone = Backbone("resnet50", frozen_norms=False, frozen_stages=0)
    return QMVOSNetwork(backbone, Queries if name == "qmvos" else None)


def recognize(state: Mapping[str, Tensor]) -> str | None:
    """The model whose layout this is, or None."""
    if "key_proj.e_proj.weight" not in state:
        return None
    return "qmvos" if "query_SelfAtt_FFN.norm1.weight" in state else "xmem"


def essential(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict less the counters of batch norms, which never count and may be missing.

    Files of the first stage, on single objects, lack a plane of the value encoder's input; they get zeros.
    """
    kept = {name: value for name, value in state.items() if not name.endswith(_COUNTER)}
    stem = kept.get(_STEM)
    if stem is not None and stem.dim() == 4 and stem.shape[1] == _SINGLE_OBJECT_PLANES:
        kept[_STEM] = torch.cat([stem, torch.zeros_like(stem[:, :1])], dim=1)
    return kept


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of a published state dict under our names; one that has no place here keeps its own."""
    return {_renamed(name, _TABLE, _BODIES): value for name, value in essential(state).items()}


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of our state dict under the published names; one that has no place there keeps its own."""
    names = {ours: theirs for theirs, ours in _TABLE.items()}
    bodies = tuple((ours, theirs) for theirs, ours in _BODIES)
    return {_renamed(name, names, bodies): value for name, value in state.items()}


def _renamed(name: str, table: Mapping[str, str], bodies: Iterable[tuple[str, str]]) -> str:
    module, _, kind = name.rpartition(".")
    if module in table:
        return f"{table[module]}.{kind}"
    begin, other = next(((begin, other) for begin, other in bodies if name.startswith(begin)), ("", ""))
    return other + name.removeprefix(begin)
