from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from benchmarking import cells_of, measure_here, refused, rows_of

import lightning_vos
from lightning_vos.benchmarks import process
from lightning_vos.benchmarks.class_tokens import Case, TokenCost, class_cases, map_cases, measure_class_tokens
from lightning_vos.benchmarks.workload import MIB, Setting
from lightning_vos.models.token_masking.inference import MapSettings
from lightning_vos.models.token_masking.network import TokenMaskingNetwork
from lightning_vos.models.token_masking.vit import ClassTokenViT, ViTSettings

SMALL = ViTSettings(width=32, depth=3, heads=4, patch=8, bands=4, grid=4)


def module(**settings: Any) -> Any:
    return lightning_vos.TokenMasking(TokenMaskingNetwork(5, SMALL), **settings)


def setting(**changes: Any) -> Setting:
    return Setting(**{"size": (64, 64), "objects": 1, "device": "cpu", "threads": 1, "precision": "32"} | changes)


def test_which_layers_have_maps():
    assert [case.layers for case in map_cases(module())] == [(), (2,), (0, 1, 2), ()]
    assert [case.layers for case in map_cases(module(maps=MapSettings(layers=[1])))] == [(), (1,), (0, 1, 2), ()]
    assert [case.layers for case in map_cases(module(maps=MapSettings(layers=3)))] == [(), (0, 1, 2), ()]
    assert [case.is_fused for case in map_cases(module())] == [True, True, True, False]


def test_maps_and_whole_attention_take_memory(monkeypatch):
    """Attention of class tokens is kept of each layer that is asked for, without fused attention all of it."""
    looked = []
    forward = ClassTokenViT.forward

    def recorded(vit: ClassTokenViT, images: Any, gates: Any, looks: Any, **options: Any) -> Any:
        looked.append(tuple(looks))
        return forward(vit, images, gates, looks, **options)

    monkeypatch.setattr(ClassTokenViT, "forward", recorded)
    costs = []
    for case in map_cases(module()):
        (cost,) = measure_class_tokens(module(), case, setting(), batch=2, repeats=1)
        assert set(looked) == {case.layers}
        looked.clear()
        assert min(cost.forward_seconds, cost.step_seconds) > 0
        costs.append(cost)
    none, last, every, whole = (cost.step_bytes for cost in costs)
    assert none < last < every < whole
    tokens = 5 + 8 * 8 + 1
    assert whole - none > 2 * 3 * 4 * tokens * tokens * 4  # images, layers, heads
    assert every - none > 2 * 3 * 4 * 5 * tokens * 4


def test_what_classes_cost():
    costs = {}
    for case in class_cases((5, 40)):
        (costs[case.classifier, case.classes],) = measure_class_tokens(module(), case, setting(), 1, 1)
    assert len(costs) == 4
    shared, concat = ([costs[kind, count].parameters for count in (5, 40)] for kind in ("shared", "concat"))
    assert shared[1] - shared[0] == 35 * 2 * 32  # a token and its position each
    assert concat[1] - concat[0] == 35 * 2 * 32 + (40 * 40 - 5 * 5) * 32 + 35
    assert costs["concat", 40].step_bytes > costs["shared", 40].step_bytes > costs["shared", 5].step_bytes


@pytest.fixture
def here(tmp_path, monkeypatch):
    measure_here(tmp_path, monkeypatch)
    return tmp_path


def test_the_command(command, here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def measured(function: Callable[..., Iterator[Any]], recipe: str, case: Case, *_: Any) -> Iterator[Any]:
        if case.layers == (0, 1, 2, 3) or case.what == "150, shared":
            raise process.StoppedError("out of memory")
        more = max(case.classes // 10, 1) + len(case.layers)
        yield TokenCost(10**7 * more, 1.5 * more, 100 * MIB * more, 12.5 * more, 1000 * MIB * more)

    monkeypatch.setattr(process, "in_fresh_process", measured)
    finished = command("benchmark", "class-tokens", "token_masking_demo", "--output", "costs.csv", "--device", "cpu")
    assert finished.status == 0, finished.err
    assert max(map(len, finished.out.splitlines())) <= 80
    rows = cells_of(finished.out)
    assert ["20, concat", "20.0 1.00", "3000 1.00", "200 1.00", "25000 1.00", "2000 1.00"] in rows
    assert ["150, concat", "150.0 7.50", "22500 7.50", "1500 7.50", "187500 7.50", "15000 7.50"] in rows
    assert ["80, shared", "80.0 4.00", "12000 4.00", "800 4.00", "100000 4.00", "8000 4.00"] in rows
    text = " ".join(row[0] for row in rows)
    assert "maps of 4 of 4 layers: out of memory" in " ".join(text.split())
    table = rows_of(here / "costs.csv")
    assert [row["what"] for row in table[-3:]] == ["150, concat", "20, shared", "80, shared"]
    assert table[1]["layers"] == "3"


def test_the_command_measures(command, here):
    words = ("--size", "32", "32", "--classes", "4", "--repeats", "1", "--device", "cpu")
    finished = command("benchmark", "class-tokens", "token_masking_demo", *words)
    assert finished.status == 0, finished.err
    rows = cells_of(finished.out)
    assert [row[0] for row in rows if row[1].endswith("1.00")] == [
        *("no maps", "maps of 1 of 4 layers", "maps of 4 of 4 layers", "no fused attention"),
        *("4, concat", "4, shared"),
    ]
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--repeats", "0"), ("--repeats 0 measures nothing",)),
        (("--classes", "20", "0"), ("--classes 20 0 --batch 1",)),
        (("--size", "0", "5"), ("0 x 5 pixels", "at least 1")),
        (("growing",), ("growing has no class tokens: it is of MAVOS", "token_masking_voc")),
    ],
)
def test_mistakes_are_told(command, here, words, parts):
    refused(command("benchmark", "class-tokens", *words, "--device", "cpu"), *parts)
