"""Every recipe with every benchmark of its task: read by the real command line, and built."""

import logging

import pytest
import yaml

import datamodules
from datamodules.base import VOSDataModule
from datamodules.instance_clips import InstanceDataModule
from datamodules.labelled_images import ImageDataModule
from lightning_vos.commands.rehearsal import Rehearsal
from lightning_vos.config_files import shipped_configs

CONFIGS = shipped_configs()
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name != "base.yaml")
TASKS = {
    VOSDataModule: ("aotl", "deaotl", "demo", "hodor", "mavos", "qmvos", "xmem"),
    InstanceDataModule: ("seqformer", "taformer"),
    ImageDataModule: ("segmentation", "token_masking"),
}
TRAINED_ON = ("bl30k.yaml", "static.yaml")  # no benchmarks


@pytest.fixture(scope="module")
def rehearsal():
    logging.disable(logging.INFO)  # Lightning tells of seeds and devices
    yield Rehearsal()
    logging.disable(logging.NOTSET)


def kind_of(data):
    return getattr(datamodules, yaml.safe_load(data.read_text())["data"]["class_path"].rpartition(".")[2])


def test_every_recipe_and_benchmark_has_a_task():
    assert all(sum(recipe.startswith(prefixes) for prefixes in TASKS.values()) == 1 for recipe in RECIPES)
    assert all(any(issubclass(kind_of(data), task) for task in TASKS) for data in CONFIGS.glob("data/*.yaml"))


@pytest.mark.slow  # tests/test_configs.py has every recipe with one, and one recipe with every benchmark
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_goes_with_every_benchmark_of_its_task(rehearsal, recipe):
    (task,) = (task for task, prefixes in TASKS.items() if recipe.startswith(prefixes))
    benchmarks = [
        data.name
        for data in CONFIGS.glob("data/*.yaml")
        if issubclass(kind_of(data), task) and data.name not in TRAINED_ON
    ]
    assert len(benchmarks) >= 3
    for data in benchmarks:
        rehearsal.build(["test", "--config", recipe, "--config", f"data/{data}"])
