"""What the published layouts have in common: how their entries are called, and what of Swin a network makes itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from timm.models.swin_transformer import get_relative_position_index

if TYPE_CHECKING:
    from torch import Tensor

SWIN_INDEX = "attn.relative_position_index"
"""How the entries of Swin end that are tables of numbers, the same for every network."""


def renamed(name: str, table: Mapping[str, str], encoder: str, other_encoder: str) -> str:
    """A name by the table, of an entry or of its module; modules of the encoder that are not in it keep theirs.

    Args:
        name: Of an entry.
        table: Name of an entry or a module -> what it is called on the other side.
        encoder: What names of the encoder begin with.
        other_encoder: What they begin with on the other side.
    """
    if name in table:
        return table[name]
    module, _, kind = name.rpartition(".")
    plain = other_encoder + module.removeprefix(encoder) if module.startswith(encoder) else module
    return f"{table.get(module, plain)}.{kind}"


def index_tables(published: Mapping[str, Tensor], encoder: str) -> dict[str, Tensor]:
    """The index tables of a Swin whose other entries are in a published state dict and begin with `encoder`."""
    tables = {}
    for name, value in published.items():
        if name.startswith(encoder) and name.endswith("position_bias_table"):
            window = (int(value.shape[0] ** 0.5) + 1) // 2
            tables[name.replace("relative_position_bias_table", "relative_position_index")] = (
                get_relative_position_index(window, window)
            )
    return tables
