"""The examples in docstrings are run, and say what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("lightning_vos", "datamodules")
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    failed, attempted = doctest.testmod(import_module(name.removesuffix(".__init__")))
    assert attempted > 0
    assert failed == 0
