"""The recipes of token masking fit their data, and say what their pages say."""

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import instantiate_module

import datamodules
from datamodules.image_transforms import OfficialTransform
from lightning_vos.models.token_masking.module import TokenMasking
from lightning_vos.optim import CosineSchedule


def parsed(command, recipe):
    finished = command("fit", "--config", f"configs/token_masking_{recipe}.yaml", "--print_config")
    assert finished.status == 0, finished.err
    return yaml.safe_load(finished.out)


def built(config):
    model = config["model"]
    with torch.device("meta"):
        return instantiate_module(LightningModule, {"_class_path": model["class_path"], **model["init_args"]})


def data_of(config):
    """The data module, which need not be there."""
    arguments = config["data"]["init_args"]
    kind = getattr(datamodules, config["data"]["class_path"].rpartition(".")[2])
    return kind(**{key: value for key, value in arguments.items() if key in ("root", "classes", "year", "multimodal")})


@pytest.mark.parametrize(
    ("recipe", "images", "epochs", "grid"),
    [
        ("voc", 10_582, 60, 28),
        ("coco", 82_081, 30, 28),
        ("ade20k", 20_210, 60, 28),
        ("dfc2020", 5_128, 200, 14),
        ("endotect", None, None, 28),
    ],
)
def test_a_recipe_fits_its_data(command, recipe, images, epochs, grid):
    config = parsed(command, recipe)
    module, arguments = built(config), config["data"]["init_args"]
    assert type(module) is TokenMasking
    assert arguments["batch_size"] == 64
    if images is not None:
        assert module.network.classes == len(data_of(config).class_names)
        assert config["trainer"]["max_steps"] == pytest.approx(epochs * images / 64, rel=0.01)
    assert config["trainer"]["max_steps"] % config["trainer"]["val_check_interval"] == 0
    settings = module.network.vit.settings
    assert (settings.width, settings.depth, settings.heads, settings.grid) == (768, 12, 12, grid)
    crop = arguments["window"] if recipe == "dfc2020" else arguments["transform"]["crop"]
    assert crop == settings.grid * settings.patch
    assert settings.bands == (13 if recipe == "dfc2020" else 3)
    assert module.network.start_weights == "deit_base_patch16_224.fb_in1k"
    full = recipe in ("ade20k", "dfc2020")  # every pixel belongs to a class
    assert module.pseudo_masks.background == ("none" if full else "unassigned")
    assert (module.masking.rate, module.criterion.gate_weight, module.criterion.diversity) == (0.5, 0.01, 0.0)
    checkpoints = [one for one in config["trainer"]["callbacks"] if "ModelCheckpoint" in one["class_path"]]
    assert [one["init_args"]["monitor"] for one in checkpoints] == ["val/mIoU"]


def test_the_published_code_is_a_recipe(command):
    config = parsed(command, "official")
    module = built(config)
    settings, network = module.network.vit.settings, module.network
    assert (settings.heads, settings.channels, settings.qkv_bias, settings.norm_eps) == (16, 48, False, 1e-5)
    assert (settings.final_norm, settings.interpolation, settings.bands) == (False, "published", 13)
    assert (network.start_weights, network.gates.settings.hard, network.gates.settings.start) == (None, True, None)
    assert not any(parameter.requires_grad for parameter in network.patch_head.parameters())
    assert module.criterion.diversity == 0.1
    assert (module.maps.layers, module.maps.heads, module.maps.fused, module.maps.remainder) == (
        12,
        "all",
        True,
        "dropped",
    )
    masks = module.pseudo_masks
    assert (masks.background, masks.fill, masks.zero_maps, masks.threshold) == ("none", "nearest", "everywhere", "mean")
    steps = config["trainer"]["max_steps"]
    assert steps == 500 * 5128 // 4
    assert [module.schedule.rate(steps * epoch // 500, steps, 1.0) for epoch in (0, 150, 300, 500)] == pytest.approx(
        [1.0, 0.5, 0.0, 0.75], abs=1e-3
    )
    assert config["model"]["init_args"]["optimizer"] == {
        "class_path": "torch.optim.Adam",
        "init_args": config["model"]["init_args"]["optimizer"]["init_args"] | {"lr": 1e-6, "weight_decay": 0},
    }
    data = datamodules.DFC2020(root="data", preprocessing=config["data"]["init_args"]["preprocessing"])
    assert isinstance(data.preparation, OfficialTransform)


def test_the_demo_is_small(command):
    config = parsed(command, "demo")
    module = built(config)
    assert sum(parameter.numel() for parameter in module.parameters()) < 1e6
    assert config["data"]["init_args"]["settings"]["layout"] == "labelled_images"
    assert module.network.classes == len(config["data"]["init_args"]["settings"]["co_occurrence"])
    crop = config["data"]["init_args"]["transform"]["crop"]
    assert crop == module.network.vit.settings.grid * module.network.vit.settings.patch


def test_the_learning_rate_comes_down_and_up_again():
    schedule = CosineSchedule(warmup=0.1, period=0.5)
    assert [schedule.rate(step, 1000, 2.0) for step in (0, 50, 100, 325, 550, 1000)] == pytest.approx(
        [0.0, 1.0, 2.0, 1.0, 0.0, 2.0]
    )
    for settings in ({"warmup": 1.0}, {"warmup": -0.1}, {"period": 0.0}):
        with pytest.raises(ValueError, match="CosineSchedule"):
            CosineSchedule(**settings)
