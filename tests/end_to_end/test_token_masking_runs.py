"""Token masking through the commands: a run that goes on, masks that are scored and trained on, two processes, one's
own images, two real ones."""

from __future__ import annotations

import csv
import json
import re
import shlex
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import REPOSITORY, assert_refused, checkpoint, end, files, start, table

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
SECOND = """
include: [segmentation_demo.yaml]
trainer: {max_steps: 2, val_check_interval: 2, enable_model_summary: false, enable_progress_bar: false}
model:
  init_args:
    network: {init_args: {channels: [4, 8]}}
    views: {scales: [1.0, 1.5], flip: true}
data:
  init_args:
    settings: {train: 6, val: 5, height: 64, width: 80}
    batch_size: 2
    workers: 0
    transform: {crop: 64}
"""
SMALL_VOC = """
include: [%s.yaml]
effective_batch_size: 2
trainer:
  accelerator: cpu
  max_steps: 2
  val_check_interval: 2
  enable_model_summary: false
  enable_progress_bar: false
model: {init_args: {network: {init_args: %s}}}
data:
  init_args:
    train_split: train
    labels: masks
    batch_size: 2
    workers: 0
    transform: {crop: 64}
"""
VIT = "{start_weights: null, vit: {width: 32, depth: 2, heads: 2, grid: 4}}"
SEGMENTER = "{start_weights: null, name: vit_tiny_patch16_224, channels: 32}"
KEEP_MAPS = "--trainer.callbacks+=lightning_vos.callbacks.label_maps.ClassMapWriter"
REAL = REPOSITORY.parent / "shared/data/real/VOCdevkit"
real_voc = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real sample at {REAL}")
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


def where(predicted: Any) -> Path:
    """The folder that a prediction names at its end."""
    assert predicted.status == 0, predicted.err
    found = re.search("^Label maps are in (.+)$", predicted.out, re.MULTILINE)
    assert found, predicted.out
    return Path(found[1])


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


def test_label_maps_train_a_second_network(command, workplace, recipe, images, run):
    """The commands of the guides one after the other: each takes what the one before it has said."""
    folder = where(command("predict", *recipe, "--ckpt_path", last(run), "--data.predict_split=train", KEEP_MAPS))
    Path("classes.txt").write_text("background\nclass-01\nclass-02\nclass-03\nclass-04\n")
    Path("train.txt").write_text("".join(f"train-{number:06}\n" for number in range(6)))
    words = ("--protocol=semantic", "--classes=classes.txt", "--split=train.txt", "--sweep=0:0.6:0.1", "--json=s.json")
    scored = command("score", str(images / "labelled_images/masks"), str(folder.parent), *words)
    assert scored.status == 0, scored.err
    assert re.search(r"best of the sweep: mIoU [\d.]+ at [\d.]+, chosen with the truth", scored.out)
    assert "The label maps were made with: Rendered images train: layers last 1" in scored.out
    assert len(json.loads(Path("s.json").read_text())["thresholds"]) == 7
    Path("second.yaml").write_text(SECOND)
    second = ("--config", "second.yaml", "--data.root", str(images))
    trained = command("fit", *second, "--data.train_masks", str(folder))
    assert trained.status == 0, trained.err
    assert f"Trained on the masks in {folder.resolve()}\n" in trained.err
    tested = command("test", *second, "--ckpt_path=best")
    assert tested.status == 0, tested.err
    assert "UNet, scales 1, 1.5 (max of logits) with flips" in tested.out
    assert 0 <= table(Path("runs/second/version_1"))["test/mIoU", 0] <= 100


def test_a_pruned_file_is_run_by_the_words_that_are_said(command, workplace, recipe, run):
    closed = checkpoint(run)
    closed["state_dict"]["network.gates.log_a"][:] = torch.tensor([[-9.0, 9], [9, 9]])
    torch.save(closed, "closed.ckpt")
    pruned = command("convert", "--prune", "closed.ckpt", "pruned.ckpt")
    assert pruned.status == 0, pruned.err
    assert "has its 1 closed heads removed" in pruned.out
    bare = ("test", *recipe, "--model.weights=pruned.ckpt")
    refused = command(*bare)
    assert_refused(refused, "closed heads removed")
    said = shlex.split(refused.err.splitlines()[-1])
    assert said == [
        "--model.network.gates=null",
        "--model.network.vit.head_width=16",
        "--model.network.vit.heads=[1, 2]",
    ]
    assert shlex.split(pruned.out.partition("To run it: ")[2]) == ["--model.weights", "pruned.ckpt", *said]
    assert_refused(command(*bare, said[0]), "convert FILE --inspect")
    assert shlex.split(command("convert", "pruned.ckpt", "--inspect").out.partition("To run it: ")[2]) == said
    for name, words in {
        "whole": ("--ckpt_path=closed.ckpt",),
        "weights": ("--model.weights=pruned.ckpt", *said),
        "checkpoint": ("--ckpt_path=pruned.ckpt", *said),
    }.items():
        tested = command("test", *recipe, *words, f"--trainer.logger.name={name}")
        assert tested.status == 0, tested.err
    found = {name: files(workplace / "runs" / name / "version_0/masks", "*.png") for name in ("weights", "checkpoint")}
    whole = workplace / "runs/whole/version_0"
    assert len(found["weights"]) == 5
    assert found["weights"] == found["checkpoint"] == files(whole / "masks", "*.png")
    parameters = [table(workplace / "runs" / name / "version_0")["test/parameters", 0] for name in ("whole", "weights")]
    assert parameters[1] < parameters[0]


@real_voc
def test_two_real_images_go_the_whole_way(command, workplace):
    """From labels to an archive for VOC's server, as a user with the dataset would; nothing can be learnt from two."""
    dataset = ("--data.root", str(REAL))
    Path("first.yaml").write_text(SMALL_VOC % ("token_masking_voc", VIT))
    Path("second.yaml").write_text(SMALL_VOC % ("segmentation_voc", SEGMENTER))
    first, second = ("--config", "first.yaml", *dataset), ("--config", "second.yaml", *dataset)
    trained = command("fit", *first)
    assert trained.status == 0, trained.err
    folder = where(command("predict", *first, "--ckpt_path=best", "--data.predict_split=train", KEEP_MAPS))
    names = {"2011_000003": (338, 500), "2011_000006": (375, 500)}
    assert {path.stem: read_mask(path).shape for path in folder.iterdir()} == names
    voc = str(REAL / "VOC2012")
    scored = command("score", voc, str(folder.parent), *("--protocol=semantic", "--split=train", "--sweep=0:0.6:0.2"))
    assert scored.status == 0, scored.err
    assert "VOC 2012 train: layers last 1" in scored.out
    trained = command("fit", *second, "--data.train_masks", str(folder.parent))
    assert trained.status == 0, trained.err
    tested = command("test", *second, "--ckpt_path=best")
    assert tested.status == 0, tested.err
    run = Path("runs/second/version_1")
    packed = command("submission", "pack", str(run), voc, "comp6.tar.gz", "--benchmark=voc", "--split=val")
    assert packed.status == 0, packed.err
    with tarfile.open("comp6.tar.gz") as archive:
        assert {Path(name).stem for name in archive.getnames() if name.endswith(".png")} == set(names)
    of_archive = score(Path(voc), Path("comp6.tar.gz"), "semantic")
    assert table(run)["test/mIoU", 0] == pytest.approx(of_archive.summary["mIoU"], rel=2**-20)


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
    assert_refused(command("report", "gates", "--weights", "a.ckpt", *place), "masked=runs/token_masking_voc/version_0")
    assert_refused(command("report", "gates", *weights[:2], *weights[:2], *place), "Two networks are called masked")
    words = ("report", "class-attention", *weights[:2], *place)
    assert_refused(command(*words, *recipe, "--image", "nothing"), "--image nothing is none of the 5")
    assert_refused(command(*words, *recipe, "--count", "0"), "--count 0")
    assert_refused(command(*words, *tiny), "no images with labels")
    assert not Path("a.png").exists()
