"""What both stages share: weights of other classes are refused however they come, the data fits the stage."""

import re

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_vos.errors import CheckpointError, ConfigError
from lightning_vos.evaluation.semantic import ClassSet
from lightning_vos.models.token_masking.module import TokenMasking
from lightning_vos.models.token_masking.network import TokenMaskingNetwork
from lightning_vos.models.token_masking.segmentation import SegmentationFromMasks
from lightning_vos.models.token_masking.segmentation_networks import UNet
from lightning_vos.models.token_masking.vit import ViTSettings
from lightning_vos.structures import LabelledImages, MaskedImages, ScoredImage, WholeImage

STAGES = (TokenMasking, SegmentationFromMasks)
VERBS = ("fit", "validate", "test", "predict")
NAMES, OTHERS = ("cat", "cow", "dog"), ("cat", "dog", "cow")


class Images(L.LightningDataModule):
    """One image without truth, and a batch to train a stage on."""

    predict_split = "test"

    def __init__(self, stage, names=NAMES, *, train_masks=...):
        super().__init__()
        self.stage, self.class_names, self.class_set = stage, names, ClassSet("pets", ("background", *names))
        self.train_masks = ("own" if stage is SegmentationFromMasks else None) if train_masks is ... else train_masks

    def describe(self, split):
        return f"Pets {split}", None

    def train_dataloader(self):
        images = torch.zeros(2, 3, 16, 16)
        labels, masks = torch.ones(2, len(self.class_names)), torch.zeros(2, 16, 16, dtype=torch.long)
        batch = (
            LabelledImages(images, labels, "ab") if self.stage is TokenMasking else MaskedImages(images, masks, "ab")
        )
        return torch.utils.data.DataLoader([batch], batch_size=None)

    def val_dataloader(self):
        image = WholeImage("image", torch.zeros(3, 16, 16), (16, 16))
        return torch.utils.data.DataLoader([ScoredImage(0, image, None)], batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader


def module(stage, classes=3, **settings):
    torch.manual_seed(0)
    if stage is TokenMasking:
        vit = ViTSettings(width=16, depth=2, heads=2, patch=4, grid=4)
        return TokenMasking(TokenMaskingNetwork(classes, vit), **settings)
    return SegmentationFromMasks(UNet(classes + 1, channels=(4, 8)), **settings)


def run(folder, verb, model, data, **words):
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=CSVLogger(folder, "runs"),
        max_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    getattr(trainer, verb)(model, data, **words)
    return trainer


@pytest.fixture(scope="module", params=STAGES)
def trained(request, tmp_path_factory):
    """A stage and its checkpoint of a training on cats, cows and dogs."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = run(folder, "fit", module(request.param), Images(request.param))
    trainer.save_checkpoint(folder / "run.ckpt")
    return request.param, str(folder / "run.ckpt")


@pytest.mark.parametrize("way", ["model.weights", "ckpt_path"])
@pytest.mark.parametrize("verb", VERBS)
def test_weights_of_other_classes_are_refused(trained, tmp_path, verb, way):
    stage, path = trained
    settings, words = ({"weights": path}, {}) if way == "model.weights" else ({}, {"ckpt_path": path})
    with pytest.raises(ConfigError) as error:
        run(tmp_path, verb, module(stage, **settings), Images(stage, OTHERS), **words)
    assert "other classes than the data has: cow, dog, not dog, cow (from class " in str(error.value)
    assert f"--model.weights_may_lack '[{', '.join(stage.class_entries)}]'" in str(error.value)
    assert not list(tmp_path.rglob("made_with.json"))


@pytest.mark.parametrize("verb", VERBS)
def test_weights_of_the_classes_of_the_data_are_taken(trained, tmp_path, verb):
    stage, path = trained
    model = module(stage, weights=path)
    run(tmp_path, verb, model, Images(stage))
    assert model._trained_on == (["background"] * (stage is SegmentationFromMasks) + list(NAMES))


@pytest.mark.parametrize("verb", VERBS)
def test_weights_that_do_not_say_their_classes_are_taken(trained, tmp_path, verb):
    stage, path = trained
    torch.save(torch.load(path, weights_only=True)["state_dict"], tmp_path / "plain.pth")
    model = module(stage, weights=str(tmp_path / "plain.pth"))
    run(tmp_path, verb, model, Images(stage, OTHERS))
    assert model._trained_on is None


def test_a_training_on_other_classes_starts_from_the_rest_of_weights(trained, tmp_path):
    stage, path = trained
    more = (*NAMES, "eel")
    entries = [*stage.class_entries, *(["vit.positions"] if stage is TokenMasking else [])]
    with pytest.raises(CheckpointError, match=re.escape(entries[-1])):
        run(tmp_path, "fit", module(stage, 4, weights=path), Images(stage, more))
    model = module(stage, 4, weights=path, weights_may_lack=entries)
    trainer = run(tmp_path, "fit", model, Images(stage, more))
    assert trainer.global_step == 1
    trainer.save_checkpoint(tmp_path / "next.ckpt")
    assert torch.load(tmp_path / "next.ckpt", weights_only=True)["classes"][-1] == "eel"


@pytest.mark.parametrize("stage", STAGES)
def test_a_network_of_other_classes_is_refused(stage, tmp_path):
    names = "cat, cow, dog" if stage is TokenMasking else "background, cat, cow, dog"
    told = rf"The data has {len(names.split())} classes: {names}\n  the network has \d.\nSet --model.network.classes="
    with pytest.raises(ConfigError, match=told) as error:
        run(tmp_path, "fit", module(stage, 4), Images(stage))
    assert "a misspelt one is a class of its own" in str(error.value)


@pytest.mark.parametrize("train_masks", ["own", "runs/first/version_0"])
def test_masks_are_not_for_the_first_stage(tmp_path, train_masks):
    data = Images(TokenMasking, train_masks=train_masks)
    with pytest.raises(ConfigError, match=f"data.train_masks is {train_masks}, .*labels of images alone") as error:
        run(tmp_path, "fit", module(TokenMasking), data)
    assert "SegmentationFromMasks" in str(error.value)
    assert "configs/segmentation_voc.yaml" in str(error.value)
    with pytest.raises(ConfigError, match="no weights to run with"):  # a test trains on nothing
        run(tmp_path, "test", module(TokenMasking), data)
