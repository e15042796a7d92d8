"""The stages before XMem's and QMVOS's main one: what they read from disk, and steps of the recipes on it."""

import csv
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datamodules import StaticImages, VideoFolder
from datamodules.samplers import ClipSampler, JumpSampler
from datamodules.static_images import StillSet
from datamodules.xmem_transforms import DeformedStillTransform, ResizedCropTransform
from lightning_vos.errors import DatasetNotFoundError

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = (
    *("--model.network.backbone.name=test_resnet", "--model.network.backbone.start_weights=null"),
    *("--model.network.value_start_weights=null", "--model.network.value_channels=16"),
    *("--model.network.decoder_channels=[32, 32]", "--model.network.hidden_channels=8"),
    *("--data.transform.crop=32", "--data.workers=0", "--data.batch_size=2"),
    *("--trainer.accelerator=cpu", "--trainer.max_steps=2", "--trainer.limit_val_batches=0"),
    "--trainer.log_every_n_steps=1",
)
SETS = ("fss/abacus", "fss/apple", "DUTS-TR", "DUTS-TE", "ECSSD", "BIG_small", "HRSOD_small")


@pytest.fixture
def stills(tmp_path):
    """The published sets, three images each: a bright disc with a soft edge, and its mask, 0 to 255."""
    for number, name in enumerate(SETS):
        folder = tmp_path / "static" / name
        folder.mkdir(parents=True)
        for image in range(3):
            pixels = np.zeros((40 + number, 50, 3), np.uint8)
            cv2.circle(pixels, (20 + image, 20), 14, (255, 255, 255), -1)
            pixels = cv2.blur(pixels, (3, 3))
            cv2.imwrite(str(folder / f"{image}.jpg"), pixels)
            cv2.imwrite(str(folder / f"{image}.png"), pixels[..., 0])
    return tmp_path


@pytest.fixture
def rendered(tmp_path, write_video, moving):
    """Videos as BL30K has them."""
    for number in range(3):
        place = f"0000{number}"
        labels = moving(12, objects=4 - number, size=(48, 96))
        write_video(tmp_path / "JPEGImages" / place, tmp_path / "Annotations" / place, labels, 12, size=(48, 96))
    return tmp_path


def test_a_clip_of_stills_has_one_object_and_some_sets_count_more(stills):
    data = StaticImages(
        stills,
        [*("fss", "DUTS-TR", "DUTS-TE", "ECSSD"), StillSet("BIG_small", repeat=5), StillSet("HRSOD_small", repeat=5)],
        validation_images=1,
        transform=DeformedStillTransform(crop=48),
        merge=0.0,
        max_objects=1,
        sampler=ClipSampler(length=3),
        workers=0,
    )
    data.setup("fit")
    clip = next(iter(data.train_dataloader()))
    assert (clip.frames.shape, clip.masks.shape) == ((4, 3, 3, 48, 48), (4, 3, 48, 48))
    assert (clip.objects == 1).all()
    assert clip.masks.unique().tolist() == [0, 1]
    assert ((clip.frames.mean(2) > 0.7) == (clip.masks == 1)).float().mean() > 0.95
    assert not torch.equal(clip.masks[:, 0], clip.masks[:, 1])
    chances, images = np.unique(data.chances(), return_counts=True)
    assert (chances.tolist(), images.tolist()) == ([1, 5], [14, 6])  # one of the 15 others is kept for validation


def test_rendered_videos_are_a_folder_of_videos(rendered):
    sampler = JumpSampler(length=8, steps=250_000, since=(0.0, 0.1, 0.3, 0.8))
    transform = ResizedCropTransform(crop=48, area=(0.25, 1.0), rotation=0.0, shear=0.0)
    settings = {"sampler": sampler, "transform": transform, "merge": 0.0, "max_objects": 3, "workers": 0}
    data = VideoFolder(rendered, holdout=1500, **settings)
    data.setup("fit")
    assert [one.name for one in data.find("train")] == ["00000", "00001"]
    assert [one.name for one in data.find("val")] == ["00002"]
    clip = next(iter(data.train_dataloader()))
    assert (clip.frames.shape, clip.masks.shape) == ((4, 8, 3, 48, 48), (4, 8, 48, 48))
    assert clip.objects.max() == 3  # of four


@pytest.mark.parametrize("recipe", ["xmem_r50_static", "qmvos_r50_static"])
def test_a_recipe_learns_from_stills(command, stills, monkeypatch, recipe):
    learns(command, stills, monkeypatch, recipe, "--data.validation_images=1")


def test_a_recipe_learns_from_rendered_videos(command, rendered, monkeypatch):
    learns(command, rendered, monkeypatch, "xmem_r50_bl30k", "--data.sampler.length=3")


def learns(command, root, monkeypatch, recipe, *words):
    monkeypatch.chdir(root)
    finished = command("fit", f"--config={CONFIGS / recipe}.yaml", f"--data.root={root}", *SMALL, *words)
    assert finished.status == 0, finished.err
    with (root / f"runs/{recipe}/version_0/metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_a_recipe_says_how_to_try_it_without_its_sets(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"with --data\.sets=null:\n  lightning_vos data demo") as error:
        StaticImages(tmp_path, ["fss"]).setup("fit")
    assert len(str(error.value).splitlines()) <= 8
    with pytest.raises(DatasetNotFoundError, match="the same command again:\n"):
        StaticImages(tmp_path).setup("fit")
