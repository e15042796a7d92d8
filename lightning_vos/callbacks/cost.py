"""What a run cost: its device and the most memory that it held."""

from __future__ import annotations

import json
import platform
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback

from lightning_vos.callbacks.run_files import run_folder
from lightning_vos.io.writing import written_beside

if TYPE_CHECKING:
    import lightning.pytorch as L


class CostWriter(Callback):
    """Writes `cost.json` in the run's folder at the end of a training or a test.

    It names the device (GPU or CPU model), the threads of the CPU, and the peak of memory in gigabytes (1e9 bytes):
    allocated on the GPU, or resident since the process began; of the first process where there are several.
    """

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the cost of a training."""
        self._write(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the cost of a test."""
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        device = trainer.strategy.root_device
        if device.type == "cuda":
            name, peak = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            name, peak = _cpu(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        content = {"device": name, "threads": torch.get_num_threads(), "peak_memory_gb": round(peak / 1e9, 3)}
        with written_beside(run_folder(trainer) / "cost.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
