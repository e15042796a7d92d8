"""Token masking through the commands: a run that goes on, masks that are scored, two processes, one's own images."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import assert_refused, checkpoint, end, files, start, table

from datamodules.synthetic_images import ImageSettings, write_images
from lightning_vos.evaluation import score
from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette

pytestmark = pytest.mark.xdist_group("ddp")  # in one process, so that one training serves all tests

RECIPE = """
include: [token_masking_demo.yaml]
trainer:
  max_steps: 4
  val_check_interval: 2
  log_every_n_steps: 1
  enable_model_summary: false
  enable_progress_bar: false
model:
  init_args:
    network: {init_args: {vit: {width: 32, depth: 2, heads: 2, patch: 16, grid: 4}}}
    pseudo_masks: {top1: true}
data:
  init_args:
    settings: {train: 6, val: 5, height: 64, width: 80}
    batch_size: 2
    workers: 0
    transform: {crop: 64}
"""
SETTINGS = ImageSettings("labelled_images", train=6, val=5, height=64, width=80)
MEASURES = ("mIoU", "mAP", "F1")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_images(root / "labelled_images", SETTINGS)
    return root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, images) -> tuple[str, ...]:
    """The words that every run of a small token masking begins with."""
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE)
    return ("--config", str(path), "--data.root", str(images))


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_inside, recipe) -> Path:
    """A run that nothing ended."""
    folder = tmp_path_factory.mktemp("token_masking")
    run_inside(folder, "fit", *recipe)
    return folder / "runs/small/version_0"


def last(run: Path) -> str:
    return str(run / "checkpoints/last.ckpt")


def test_a_training_validates_and_knows_its_classes(run):
    found = table(run)
    for name in MEASURES:
        assert [step for metric, step in found if metric == f"val/{name}"] == [1, 3]
    for name in ("loss", "classification", "gates", "open_heads", "open_heads_01", "open_heads_02"):
        assert [step for metric, step in found if metric == f"train/{name}"] == [0, 1, 2, 3]
    assert checkpoint(run)["classes"] == ["class-01", "class-02", "class-03", "class-04"]
    assert len(list((run / "checkpoints").glob("best-*.ckpt"))) == 1


def test_a_stopped_run_goes_on(command, workplace, recipe, run):
    """With the masks of an uninterrupted one: they are drawn by the step."""
    stopped = command("fit", *recipe, "--trainer.callbacks+=test_resume.StopAt", "--trainer.callbacks.step=2")
    assert stopped.status == 0, stopped.err
    resumed = command("fit", *recipe, "--ckpt_path", "last")
    assert resumed.status == 0, resumed.err
    ours, theirs = checkpoint(workplace / "runs/small/version_0"), checkpoint(run)
    assert ours["global_step"] == theirs["global_step"] == 4
    assert all(torch.equal(ours["state_dict"][name], value) for name, value in theirs["state_dict"].items())


def test_what_is_logged_is_what_score_says(command, workplace, recipe, images, run):
    finished = command("test", *recipe, "--ckpt_path", last(run))
    assert finished.status == 0, finished.err
    assert "threshold mean" in finished.out  # the protocol beside the number
    folder = workplace / "runs/small/version_0"
    names = workplace / "classes.txt"
    names.write_text("background\nclass-01\nclass-02\nclass-03\nclass-04\n")
    listed = workplace / "val.txt"
    listed.write_text("".join(f"val-{number:06}\n" for number in range(5)))
    truth = images / "labelled_images/masks"
    scores = score(truth, folder, "semantic", classes=str(names), split=str(listed))
    logged = table(folder)
    assert logged["test/mIoU", 0] == pytest.approx(scores.summary["mIoU"], rel=2**-20)
    assert {"test/mAP", "test/F1", "test/FPS", "test/parameters"} <= {name for name, _ in logged}
    assert {path.name for path in (folder / "overlays").iterdir()} == {f"val-{n:06}.jpg" for n in range(5)}


@pytest.mark.slow  # the default suite keeps MAVOS
def test_two_processes_score_and_predict_as_one(command, workplace, recipe, run):
    words = ("test", *recipe, "--ckpt_path", last(run))
    one, two = (workplace / "runs" / name / "version_0" for name in ("one", "two"))
    alone = command(*words, "--trainer.logger.name=one")
    assert alone.status == 0, alone.err
    status, out = end(start(*words, "--trainer.logger.name=two", "--trainer.strategy=ddp", "--trainer.devices=2"))
    assert status == 0, out
    assert "MEMBER: 2/2" in out
    assert len(files(two, "*.png")) == 5
    for pattern in ("masks/*.png", "classes.csv", "summary.csv"):
        assert files(two, pattern) == files(one, pattern)
    for name in MEASURES:
        assert table(two)[f"test/{name}", 0] == table(one)[f"test/{name}", 0]


@pytest.mark.slow  # the default suite keeps MAVOS
def test_two_processes_train(workplace, recipe):
    words = ("fit", *recipe, "--trainer.max_steps=2", "--trainer.limit_val_batches=0")
    status, out = end(start(*words, "--trainer.strategy=ddp", "--trainer.devices=2"))
    assert status == 0, out
    assert checkpoint(workplace / "runs/small/version_0")["global_step"] == 2


def test_own_images_from_a_table_to_label_maps(command, workplace, run_inside):
    """Two classes, no masks, images of different sizes; the prediction is stopped and goes on."""
    rng = np.random.default_rng(0)
    (workplace / "mine/images").mkdir(parents=True)
    rows = [("image", "label")]
    for number in range(6):
        size = (50 + 7 * number, 40, 3)
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(workplace / f"mine/images/photo {number}.jpg")
        rows.append((f"photo {number}.jpg", ("cat", "dog")[number % 2]))
    with (workplace / "mine/labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (workplace / "mine.yaml").write_text(RECIPE.split("data:")[0])
    words = ("--config", "mine.yaml", "--config", "configs/data/labelled_images.yaml", "--data.root", "mine")
    words += ("--config", "configs/validation/map.yaml", "--trainer.enable_progress_bar=false", "--data.workers=0")
    words += ("--data.transform.crop=64", "--data.batch_size=2")
    assert_refused(command("fit", *words), "The data has 2 classes: cat, dog", "--model.network.classes=2")
    words += ("--model.network.classes=2",)
    trained = command("fit", *words)
    assert trained.status == 0, trained.err
    assert len(list(workplace.glob("runs/mine/version_*/checkpoints/best-*.ckpt"))) == 1
    out = ("--trainer.callbacks+=lightning_vos.callbacks.label_maps.LabelMapWriter", "--trainer.callbacks.folder=out")
    predicting = ("predict", *words, "--ckpt_path", "last", "--data.predict_split=train", *out)
    first = command(*predicting, "--trainer.limit_predict_batches=2")
    assert first.status == 0, first.err
    assert len(files(workplace / "out/masks", "*.png")) == 2
    kept = files(workplace / "out/masks", "*.png")
    finished = command(*predicting)
    assert finished.status == 0, finished.err
    assert "Label maps are in out/masks" in finished.out
    written = files(workplace / "out/masks", "*.png")
    assert set(written) == {f"photo {number}.png" for number in (0, 1, 2, 3, 5)}
    assert {name: written[name] for name in kept} == kept
    for name in written:
        mask = read_mask(workplace / "out/masks" / name)
        assert mask.shape == (50 + 7 * int(name[6]), 40)
        assert set(np.unique(mask)) <= {0, 1, 2}
        assert read_palette(workplace / "out/masks" / name) == VOC_PALETTE
    assert_refused(command(*predicting, "--model.pseudo_masks.threshold=0.5"), "out holds label maps", "made otherwise")


def test_pictures(command, workplace, recipe, run, tiny):
    weights = [word for name in ("masked", "again") for word in ("--weights", f"{name}={last(run)}")]
    drawn = command("report", "class-attention", *recipe, *weights, "--count", "2", "--output", "maps.png")
    assert drawn.status == 0, drawn.err
    width, height = Image.open("maps.png").size
    assert height > 4 * 150  # two images by two networks
    assert width > 2 * 300
    drawn = command("report", "gates", *weights, "--output", "gates.svg")
    assert drawn.status == 0, drawn.err
    assert Path("gates.svg").read_text().startswith("<?xml")
    place = ("--output", "a.png")
    assert_refused(command("report", "gates", *place), "needs weights")
    assert_refused(command("report", "gates", *weights[:2], *weights[:2], *place), "Two networks are called masked")
    words = ("report", "class-attention", *weights[:2], *place)
    assert_refused(command(*words, *recipe, "--image", "nothing"), "--image nothing is none of the 5")
    assert_refused(command(*words, *recipe, "--count", "0"), "--count 0")
    assert_refused(command(*words, *tiny), "no images with labels")
    assert not Path("a.png").exists()
