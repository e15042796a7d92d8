"""The wheel holds all that the commands need: both packages and the configs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml
from runs import REPOSITORY

MAIN = "from lightning_vos.cli import main; main()"


@pytest.mark.slow
def test_the_commands_work_from_a_wheel_alone(workplace):
    def python(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(workplace / "installed")}
        done = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=280, cwd=workplace
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python("-m", "build", "--wheel", "--outdir", "built", str(REPOSITORY))
    (wheel,) = (workplace / "built").glob("*.whl")
    python("-m", "zipfile", "-e", str(wheel), "installed")
    for module in ("lightning_vos", "datamodules"):
        assert python("-c", f"import {module}; print({module}.__file__)").startswith(str(workplace / "installed"))
    assert "segment" in python("-c", MAIN, "--help")
    config = yaml.safe_load(python("-c", MAIN, "fit", "--config", "configs/mavos_r50.yaml", "--print_config"))
    assert config["model"]["init_args"]["network"]["init_args"]["backbone"]["init_args"]["name"] == "resnet50"
    assert (workplace / "installed/lightning_vos/figures/templates/report.html").is_file()
    python("-c", "import lightning_vos; lightning_vos.load_pretrained()")
    assert (workplace / "installed/lightning_vos/_configs/base.yaml").read_bytes() == (
        REPOSITORY / "configs/base.yaml"
    ).read_bytes()
