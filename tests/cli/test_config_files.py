from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_vos.config_files import expand_config_options, find_config, shipped_configs, without_includes


def printed(command, *words: str) -> dict:
    finished = command("fit", *words, "--print_config")
    assert finished.status == 0, finished.err
    return yaml.safe_load(finished.out)


def test_a_config_is_found_here_first_then_among_the_shipped(folder):
    assert find_config("configs/base.yaml", Path()) == shipped_configs() / "base.yaml"
    (folder / "configs").mkdir()
    (folder / "configs" / "base.yaml").write_text("seed_everything: 3")
    assert find_config("configs/base.yaml", Path()) == Path("configs/base.yaml")


def test_included_files_come_first_and_once(folder):
    (folder / "parts").mkdir()
    (folder / "parts" / "a.yaml").write_text("seed_everything: 1")
    (folder / "parts" / "b.yaml").write_text("include: [a.yaml]\n")
    (folder / "top.yaml").write_text("include:\n  - parts/a.yaml\n  - parts/b.yaml\nseed_everything: 2\n")
    words, files, recipe = expand_config_options(["fit", "-c", "top.yaml", "--x=1", "--config=tiny.yaml"])
    assert [path.name for path in files] == ["a.yaml", "b.yaml", "top.yaml", "base.yaml", "tiny.yaml"]
    assert words[0] == "fit"
    assert words[4] == "--x=1"
    assert recipe == "top"


@pytest.mark.parametrize("include", ["include: [a.yaml]\n", "include:\n- a.yaml\n- b.yaml\n", "include: []\n"])
def test_only_the_include_list_is_taken_out(include):
    rest = yaml.safe_load(without_includes(f"# head\n{include}seed: 1e-5\nmodel: {{lr: 1}}\n", Path("x.yaml")))
    assert rest == {"seed": "1e-5", "model": {"lr": 1}}


def test_later_words_win(command, folder):
    (folder / "other.yaml").write_text("data: {class_path: parts.OtherData, init_args: {year: 2017}}")
    config = printed(command, "-c", "tiny.yaml", "-c", "other.yaml", "--data.root=there", "--model.network.width=9")
    assert config["data"] == {"class_path": "parts.OtherData", "init_args": {"root": "there", "year": 2017}}
    assert config["model"]["init_args"]["network"]["init_args"] == {"width": 9, "dropout": 0.3}
    assert config["seed_everything"] == 0
    assert config["trainer"]["val_check_interval"] == 4
    assert config["trainer"]["use_distributed_sampler"] is False


def test_a_recipe_beats_what_it_includes(command, folder):
    (folder / "model.yaml").write_text(
        "model: {class_path: parts.TinyModel, init_args: {network: parts.Network, scale: 2}}"
    )
    (folder / "top.yaml").write_text("include: [tiny.yaml, model.yaml]\nmodel: {init_args: {scale: 7}}\n")
    model = printed(command, "-c", "top.yaml")["model"]["init_args"]
    assert model["scale"] == 7
    assert model["network"]["init_args"]["width"] == 5


def test_wandb_stands_beside_the_csv_files(command, folder):
    loggers = printed(command, "-c", "tiny.yaml", "-c", "configs/logger/wandb.yaml")["trainer"]["logger"]
    assert [logger["class_path"].rsplit(".")[-1] for logger in loggers] == ["CSVLogger", "WandbLogger"]
