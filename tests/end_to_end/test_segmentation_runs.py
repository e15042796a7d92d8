"""The second stage through the commands: masks of a folder, a run that goes on, a test that is scored, a submission."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import assert_refused, checkpoint, end, files, start, table

from datamodules.synthetic_images import ImageSettings, write_images
from lightning_vos.evaluation import score
from lightning_vos.io.masks import read_mask

pytestmark = pytest.mark.xdist_group("ddp")  # in one process, so that one training serves all tests

SMALL = """
trainer:
  accelerator: cpu
  max_steps: 4
  val_check_interval: 2
  log_every_n_steps: 1
  enable_model_summary: false
  enable_progress_bar: false
model:
  init_args:
    network:
      class_path: lightning_vos.models.token_masking.segmentation_networks.UNet
      init_args: {channels: [4, 8]}
data:
  init_args:
    batch_size: 2
    workers: 0
"""
VOC = "include: [segmentation_voc.yaml]" + SMALL + "    transform: {crop: 32}\n"


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    """VOC2012, and beside it `pseudo`: label maps of its training images, as a first stage writes them."""
    root = tmp_path_factory.mktemp("voc")
    write_images(root / "VOC2012", ImageSettings(layout="voc", train=6, val=3, height=64, width=80))
    shutil.copytree(root / "VOC2012/SegmentationClassAug", root / "pseudo")
    return root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, voc) -> tuple[str, ...]:
    """The words that every run of a small U-Net begins with."""
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(VOC)
    return ("--config", str(path), "--data.root", str(voc))


@pytest.fixture(scope="module")
def fit(recipe, voc) -> tuple[str, ...]:
    return ("fit", *recipe, "--data.train_masks", str(voc / "pseudo"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_inside, fit) -> Path:
    """A run that nothing ended."""
    folder = tmp_path_factory.mktemp("segmentation")
    run_inside(folder, *fit)
    return folder / "runs/small/version_0"


def last(run: Path) -> str:
    return str(run / "checkpoints/last.ckpt")


def test_a_training_validates_and_knows_its_classes(run):
    found = table(run)
    assert [step for name, step in found if name == "val/mIoU"] == [1, 3]
    assert [step for name, step in found if name == "train/loss"] == [0, 1, 2, 3]
    assert checkpoint(run)["classes"][:2] == ["background", "aeroplane"]
    assert len(list((run / "checkpoints").glob("best-*.ckpt"))) == 1


def test_a_stopped_run_goes_on(command, workplace, fit, run):
    stopped = command(*fit, "--trainer.callbacks+=test_resume.StopAt", "--trainer.callbacks.step=2")
    assert stopped.status == 0, stopped.err
    assert "Trained on the masks in" in stopped.err
    resumed = command(*fit, "--ckpt_path", "last")
    assert resumed.status == 0, resumed.err
    ours, theirs = checkpoint(workplace / "runs/small/version_0"), checkpoint(run)
    assert ours["global_step"] == theirs["global_step"] == 4
    assert all(torch.equal(ours["state_dict"][name], value) for name, value in theirs["state_dict"].items())


def test_what_is_logged_is_what_score_says(command, workplace, recipe, voc, run):
    finished = command("test", *recipe, "--ckpt_path", last(run))
    assert finished.status == 0, finished.err
    assert "scales 1, 1.25, 1.5 (max of logits) with flips" in finished.out
    folder = workplace / "runs/small/version_0"
    scores = score(voc / "VOC2012", folder / "masks", "semantic", classes="voc")
    logged = table(folder)
    for name in ("mIoU", "pixel_accuracy"):
        assert logged[f"test/{name}", 0] == pytest.approx(scores.summary[name], rel=2**-20)
    assert logged["test/FPS", 0] > 0
    words = ("--model.weights", last(run), "--model.views.flip=false", "--trainer.logger.name=plain")
    again = command("test", *recipe, *words)
    assert again.status == 0, again.err
    assert "without flips" in again.out


def test_masks_of_images_without_truth_are_a_submission(command, workplace, recipe, voc, run):
    finished = command("predict", *recipe, "--data.test_split=test", "--ckpt_path", last(run))
    assert finished.status == 0, finished.err
    folder = workplace / "runs/small/version_0"
    names = (voc / "VOC2012/ImageSets/Segmentation/test.txt").read_text().split()
    assert sorted(path.stem for path in (folder / "masks").glob("*.png")) == sorted(names)
    for name in names:
        labels = read_mask(folder / f"masks/{name}.png", (64, 80))
        assert labels.max() <= 20
    packed = command(*("submission", "pack", str(folder), str(voc / "VOC2012"), "voc.tar.gz", "--benchmark", "voc"))
    assert packed.status == 0, packed.err
    assert "Segmentation" in packed.out
    assert Path("voc.tar.gz").stat().st_size > 0


@pytest.mark.slow  # the default suite keeps MAVOS
def test_two_processes_test_as_one(command, workplace, recipe, run):
    words = ["test", *recipe, "--ckpt_path", last(run)]
    alone = command(*words, "--trainer.logger.name=one")
    assert alone.status == 0, alone.err
    status, out = end(start(*words, "--trainer.logger.name=two", "--trainer.strategy=ddp", "--trainer.devices=2"))
    assert status == 0, out
    assert "Warning" not in out
    one, two = (workplace / "runs" / name / "version_0" for name in ("one", "two"))
    assert files(two, "masks/*.png") == files(one, "masks/*.png")
    assert len(files(one, "masks/*.png")) == 3
    assert files(two, "*.csv").keys() >= {"summary.csv", "classes.csv"}
    assert files(two, "classes.csv") == files(one, "classes.csv")
    assert table(two)["test/mIoU", 0] == table(one)["test/mIoU", 0]


@pytest.mark.slow  # the default suite keeps MAVOS
def test_two_processes_train(workplace, fit):
    status, out = end(start(*fit, "--trainer.strategy=ddp", "--trainer.devices=2"))
    assert status == 0, out
    assert checkpoint(workplace / "runs/small/version_0")["global_step"] == 4


def test_tiles_of_thirteen_bands_train_a_u_net(command, workplace):
    write_images(Path("DFC2020"), ImageSettings(layout="dfc2020", train=3, val=2, height=64, width=64))
    Path("tiles.yaml").write_text("include: [segmentation_dfc2020.yaml]" + SMALL + "    window: 40\n")
    words = ("--config", "tiles.yaml", "--data.root", ".")
    trained = command("fit", *words, "--data.train_masks=own")
    assert trained.status == 0, trained.err
    run = Path("runs/tiles/version_0")
    tested = command("test", *words, "--ckpt_path", last(run))
    assert tested.status == 0, tested.err
    written = [read_mask(path) for path in Path("runs/tiles/version_1/masks").glob("*.png")]
    assert [mask.shape for mask in written] == [(64, 64)] * 2
    assert max(int(np.max(mask)) for mask in written) < 8
    radar = command("test", *words, "--data.multimodal=true", "--ckpt_path", last(run))
    assert_refused(radar, "15 bands", "--model.network.bands=15")


def test_a_training_without_masks_is_refused(command, workplace, recipe):
    assert_refused(command("fit", *recipe), "--data.train_masks FOLDER", "--data.train_masks own")
    lacking = command("fit", *recipe, "--data.train_masks", "nowhere")
    assert_refused(lacking, "data.train_masks=nowhere", "no such folder", "--data.predict_split train")


def test_data_of_other_classes_is_refused(command, workplace, recipe, run):
    other = ("--config", "configs/data/coco_semantic.yaml")
    write_images(Path("coco"), ImageSettings(layout="coco_semantic", train=2, val=2, height=64, width=80))
    words = (*recipe, *other, "--data.root", ".", "--ckpt_path", last(run))
    assert_refused(command("test", *words), "81 classes", "--model.network.classes=81")
