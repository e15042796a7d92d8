"""Reading weight files safely: tensors only, nothing is ever unpickled."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_vos.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint or weight file, on the CPU.

    Raises:
        CheckpointError: if the file is missing, cut off, or holds anything but tensors and plain values.
    """
    if path.is_dir():
        raise CheckpointError(f"Weight file {path} is a folder. Name the file in it, such as last.ckpt.")
    if not path.is_file():
        raise CheckpointError(f"Weight file {path} does not exist (looked in {path.absolute().parent}).")
    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"Weight file {path} cannot be read as tensors: it is damaged, or holds other objects.\n"
            "Those are never unpickled, for that can run any program. "
            "Expected a file of torch.save with tensors and plain values only, or .safetensors."
        ) from error
    except Exception as error:  # what torch's restricted unpickler raises for a file of anything else has no end
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(
            f"Weight file {path} ({path.stat().st_size:,} bytes) is cut off or damaged: {reason}\n"
            "Copy or download it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"Weight file {path} holds a {type(content).__name__}, expected a dictionary of named tensors."
        )
    return content


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The named tensors of a weight file, as `state_dict_of` finds them; errors as there and as `read_checkpoint`."""
    return state_dict_of(read_checkpoint(path), path)


def state_dict_of(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The named tensors in the content of `path`: a plain state dict, or the one under `state_dict` or `model`.

    The prefixes that wrappers leave (`module.`, `network.`) are taken off.

    Raises:
        CheckpointError: if there are no tensors inside.
    """
    content = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"Weight file {path} holds no tensors; its keys are {sorted(content)[:5]}.")
    for prefix in ("module.", "network."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
