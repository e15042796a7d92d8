"""Every recipe with every benchmark of its task, and W&B: read by the real command line, and built."""

import json
import logging

import pytest
import yaml

import datamodules
from datamodules.base import VOSDataModule
from datamodules.instance_clips import InstanceDataModule
from datamodules.labelled_images import ImageDataModule
from lightning_vos.commands.rehearsal import Rehearsal
from lightning_vos.config_files import shipped_configs, with_included

CONFIGS = shipped_configs()
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name != "base.yaml")
TASKS = {
    VOSDataModule: ("aotl", "deaotl", "demo", "hodor", "mavos", "qmvos", "small", "xmem"),
    InstanceDataModule: ("seqformer", "taformer"),
    ImageDataModule: ("segmentation", "token_masking"),
}
# no benchmarks
TRAINED_ON = ("bl30k.yaml", "hodor_cycle.yaml", "hodor_dense.yaml", "static.yaml", "youtube_vos_davis.yaml")


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


def of_data(settings, key="data"):
    """The keys and classes of a part of a config."""
    if not isinstance(settings, dict):
        return {key}
    return {key, settings.get("class_path")}.union(*(of_data(part, f"{key}.{name}") for name, part in settings.items()))


def by_data():
    """The recipes; slow are those whose data have the keys and classes of others: benchmarks differ from both alike."""
    seen = []
    for recipe in RECIPES:
        files = with_included(CONFIGS / recipe)
        keys = set().union(*(of_data(yaml.safe_load(file.read_text()).get("data")) for file in files))
        yield pytest.param(recipe, marks=pytest.mark.slow if keys in seen else [])
        seen.append(keys)


@pytest.mark.parametrize("recipe", by_data())
def test_a_recipe_goes_with_every_benchmark_of_its_task(rehearsal, recipe):
    (task,) = (task for task, prefixes in TASKS.items() if recipe.startswith(prefixes))
    benchmarks = [
        data.name
        for data in CONFIGS.glob("data/*.yaml")
        if issubclass(kind_of(data), task) and data.name not in TRAINED_ON
    ]
    assert len(benchmarks) >= 3
    for data in benchmarks:
        files = (recipe, f"data/{data}", "logger/wandb.yaml")
        settings = rehearsal.build(["test", *(word for file in files for word in ("--config", file))])
        assert_stated(settings.data.as_dict(), yaml.safe_load((CONFIGS / "data" / data).read_text())["data"])
        loggers = [logger.class_path.rpartition(".")[2] for logger in settings.trainer.logger]
        assert loggers == ["CSVLogger", "WandbLogger"]


def assert_stated(found, stated):
    """What a file states is what is found; defaults may stand beside it, and classes by their full paths."""
    if not isinstance(stated, dict):
        assert json.loads(json.dumps(found, default=str)) == stated  # paths as text, tuples as lists
        return
    for key, value in stated.items():
        if key == "class_path":
            assert found[key].rsplit(".", 1)[1] == value.rsplit(".", 1)[1]
        else:
            assert_stated(found[key], value)
