"""The weights that come with the package."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_vos.errors import CheckpointError
from lightning_vos.published import load_network

if TYPE_CHECKING:
    from lightning_vos.vos.network import VOSNetwork

WEIGHTS = Path(__file__).parent / "small.ckpt"
SHA256 = "b9bc30d832cc0708a5006ef6eda72de9497a9871f33108d9e0e01b8f5a96a609"


def load_pretrained() -> VOSNetwork[Any]:
    """The small model, an XMem that learnt on rendered scenes alone; see docs/small_model.md.

    Returns:
        The network in eval mode, for `track` and `Tracker`.

    Raises:
        CheckpointError: if the file is not the one that the package came with.
    """
    found = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() if WEIGHTS.is_file() else "no file"
    if found != SHA256:
        raise CheckpointError(
            f"{WEIGHTS} is not the file that lightning_vos came with.\n"
            f"  found {found}, expected SHA-256 {SHA256}\nInstall the package anew."
        )
    return load_network(WEIGHTS).to(memory_format=torch.channels_last)  # 1.3 times as fast on two CPU cores
