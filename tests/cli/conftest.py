from __future__ import annotations

import sys
from pathlib import Path

import pytest

RECIPE = """
include: [base.yaml]
trainer:
  accelerator: cpu
  max_steps: 8
  val_check_interval: 4
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_model_summary: false
model:
  class_path: parts.TinyModel
  init_args:
    network: {class_path: parts.Network, init_args: {width: 5, dropout: 0.3}}
data:
  class_path: parts.TinyData
  init_args: {root: recipe}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with one recipe, `tiny.yaml`, whose classes are those of parts.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path
