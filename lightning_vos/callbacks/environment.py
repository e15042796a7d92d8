"""What a test ran on, for those who compare its speed or cannot repeat its numbers."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING

import lightning.pytorch as L
import torch

from lightning_vos import __version__
from lightning_vos.io.writing import written_beside

if TYPE_CHECKING:
    from pathlib import Path


def write_environment(folder: Path, device: torch.device) -> None:
    """Write `environment.json` into the folder of a run: versions and the device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {platform.machine()}"
    content = {
        "lightning_vos": __version__,
        "lightning": L.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": name,
    }
    with written_beside(folder / "environment.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
