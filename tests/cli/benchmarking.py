"""What the tests of `lightning_vos benchmark` share."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_vos.benchmarks import process

RECIPE = Path(__file__).parents[1] / "end_to_end/tiny.yaml"
GROWING = f"""
include: [{RECIPE}]
model: {{init_args: {{network: {{init_args: {{memory: lightning_vos.models.mavos.memory.Append}}}}}}}}
"""


def measure_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder, with a recipe whose memory grows; what a fresh process would be sent runs in this one."""
    monkeypatch.chdir(folder)
    (folder / "growing.yaml").write_text(GROWING)

    def at_once(function: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
        function, arguments = pickle.loads(pickle.dumps((function, arguments)))
        yield from function(*arguments)

    monkeypatch.setattr(process, "in_fresh_process", at_once)


def refused(finished: Any, *parts: str) -> None:
    assert finished.status == 2, finished.err
    message = finished.err[finished.err.index("error: ") :]
    assert len(message.splitlines()) <= 8
    assert "Traceback" not in finished.err
    assert all(part in message for part in parts), message


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def cells_of(text: str) -> list[list[str]]:
    """The cells of tables that were printed."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
