"""Access to reference cases: outputs of published implementations for drawn weights."""

import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path

import pytest

_NEAR = Path(__file__).parents[3] / "shared" / "reference"
_SHIPPED = Path(__file__).parents[1] / "golden"  # the small module cases
ROOT = Path(os.environ.get("LIGHTNING_VOS_REFERENCE", _NEAR if _NEAR.is_dir() else _SHIPPED))


def cases(method: str, kind: str) -> list:
    """The folder and name of each case of a kind; one skipped entry where the reference is not there."""
    index = ROOT / method / "index.json"
    if not index.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no reference cases of {method} at {ROOT}"))]
    found = [name for name, case in json.loads(index.read_text()).items() if case["kind"] == kind]
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=f"no {kind} case of {method} at {ROOT}"))]


def weights(method: str, case: str) -> dict:
    """The published state dict of a case, as arrays; not to be changed."""
    index = json.loads((ROOT / method / "index.json").read_text())
    drawn_from = [(entry["manifest"], entry["seed"]) for entry in index.values()]
    return _drawn(method, list(index)[drawn_from.index((index[case]["manifest"], index[case]["seed"]))])


@lru_cache(maxsize=2)  # millions of values; most cases of a method have the same
def _drawn(method: str, case: str) -> dict:
    spec = importlib.util.spec_from_file_location("fill", ROOT / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    return fill.weights(ROOT / method, case)


def network_name(method: str, case: str) -> str:
    return json.loads((ROOT / method / "index.json").read_text())[case]["network"]
