"""The recipes of the second stage fit their data, and say what their page says."""

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import instantiate_module

from datamodules import DFC2020, VOC, COCOSemantic, SyntheticImages
from lightning_vos.models.token_masking.segmentation import SegmentationFromMasks, Views
from lightning_vos.models.token_masking.segmentation_networks import UNet, ViTSegmenter


@pytest.mark.parametrize(
    ("recipe", "data", "network", "steps", "batch"),
    [
        ("voc", VOC, ViTSegmenter, 20_000, 8),
        ("coco", COCOSemantic, ViTSegmenter, 80_000, 8),
        ("dfc2020", DFC2020, UNet, 20_000, 16),
        ("demo", SyntheticImages, UNet, 400, 16),
    ],
)
def test_a_recipe_fits_its_data(command, recipe, data, network, steps, batch):
    finished = command("fit", "--config", f"configs/segmentation_{recipe}.yaml", "--print_config")
    assert finished.status == 0, finished.err
    config = yaml.safe_load(finished.out)
    model, arguments = config["model"], config["data"]["init_args"]
    with torch.device("meta"):
        module = instantiate_module(LightningModule, {"_class_path": model["class_path"], **model["init_args"]})
    assert type(module) is SegmentationFromMasks
    assert type(module.network) is network
    assert config["data"]["class_path"].endswith(f".{data.__name__}")
    if recipe == "demo":
        assert len(arguments["settings"]["co_occurrence"]) + 1 == module.network.classes
    else:
        assert module.network.classes == len(data(arguments["root"]).class_set.names)
        # what it is trained on must be said: no recipe falls back to the truth
        assert arguments["train_masks"] is None
    assert module.network.bands == (13 if recipe == "dfc2020" else 3)
    assert (config["trainer"]["max_steps"], arguments["batch_size"]) == (steps, batch)
    checkpoints = [one for one in config["trainer"]["callbacks"] if "ModelCheckpoint" in one["class_path"]]
    assert [one["init_args"]["monitor"] for one in checkpoints] == ["val/mIoU"]
    if network is ViTSegmenter:
        assert module.network.start_weights == "deit_base_patch16_224.fb_in1k"
        assert module.views == Views((1.0, 1.25, 1.5), flip=True, merge="max")
        assert (arguments["transform"]["crop"], arguments["transform"]["scale"]) == (448, [0.5, 2.0])
