"""What people get wrong about data, weights and options: said in a few lines that name the place and the remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import REPOSITORY, TINY, assert_refused, last

from lightning_vos.io.masks import read_mask, write_mask

REAL = REPOSITORY.parent / "shared/data/real/YouTubeVOS"
FIRST = "Annotations/480p/synthetic-{}-000/00000.png"


@pytest.fixture
def copied(workplace, data) -> Path:
    """A DAVIS folder to spoil."""
    shutil.copytree(data, workplace / "data")
    return workplace / "data/DAVIS"


@pytest.fixture
def run(command, copied, trained):
    """Runs a verb of the tiny recipe on the copy, read as DAVIS; `test` with trained weights."""

    def run(verb: str, *words: str):
        weights = () if verb == "fit" else ("--ckpt_path", last(trained))
        recipe = ("--config", str(TINY), "--data=datamodules.DAVIS", "--data.root=data")
        return command(verb, *recipe, *weights, *words)

    return run


def test_a_missing_root(run):
    assert_refused(run("test", "--data.root=none"), "data.root=none", "no such folder", "lightning_vos data demo none")


def test_an_empty_root(run, workplace):
    (workplace / "empty").mkdir()
    assert_refused(run("fit", "--data.root=empty"), "data.root=empty", "an empty folder", "--data.root FOLDER")


def test_a_split_that_is_not_there(run):
    assert_refused(
        run("test", "--data.test_split=vla"), "no split 'vla'", "splits there: train, val", "data.test_split"
    )


def test_a_sequence_without_its_folder(run, copied):
    shutil.rmtree(copied / "JPEGImages/480p/synthetic-val-001")
    assert_refused(run("test"), "val.txt", "'synthetic-val-001'", "take the name off the list")


def test_an_empty_video(run, copied):
    folder = copied / "JPEGImages/480p/synthetic-val-001"
    shutil.rmtree(folder)
    folder.mkdir()
    assert_refused(run("test"), "No frames in", "synthetic-val-001", "an empty folder")


@pytest.mark.parametrize("verb", ["fit", "test"])
def test_a_mask_of_colours(run, copied, verb):
    for path in copied.glob("Annotations/480p/*/*.png"):
        Image.open(path).convert("RGB").save(path)
    assert_refused(run(verb), ".png", "mode RGB", "expected an indexed 8-bit PNG", "write_mask")


def test_a_mask_of_another_size(run, copied):
    write_mask(copied / FIRST.format("val"), np.ones((32, 40), np.uint8))
    assert_refused(run("test"), FIRST.format("val"), "found 40x32, expected 80x64")


def test_a_first_mask_without_objects(run, copied):
    write_mask(copied / FIRST.format("val"), np.zeros((64, 80), np.uint8))
    assert_refused(run("test"), FIRST.format("val"), "shows no object", "object ids")


@pytest.mark.parametrize(("verb", "workers"), [("fit", 0), ("fit", 1), ("test", 0)])
def test_a_frame_that_was_cut_off(run, copied, verb, workers):
    for path in copied.glob("JPEGImages/480p/*/0000[1-7].jpg"):
        path.write_bytes(path.read_bytes()[:700])
    assert_refused(run(verb, f"--data.workers={workers}"), "Frame that cannot be read", ".jpg", "Copy it again")


def test_a_checkpoint_of_another_model(run):
    assert_refused(run("test", "--model.network.channels=64"), "does not fit the model MAVOS", "--model.weights FILE")


def test_weights_of_another_model(command, tiny, trained, workplace):
    words = ("--model.weights", last(trained), "--model.network.layers=2")
    assert_refused(command("test", *tiny, *words), "last.ckpt does not fit", "entries missing", "lightning_vos convert")


def test_files_that_are_no_checkpoint(command, tiny, trained, workplace):
    whole = trained / "checkpoints/last.ckpt"
    (workplace / "cut.ckpt").write_bytes(whole.read_bytes()[:20_000])
    torch.save({"weight": torch.ones(2)}, workplace / "plain.pth")
    assert_refused(command("test", *tiny, "--ckpt_path=cut.ckpt"), "cut.ckpt", "cut off or damaged", "again")
    assert_refused(command("test", *tiny, "--ckpt_path=plain.pth"), "plain.pth", "--model.weights FILE")
    assert_refused(command("fit", *tiny, "--ckpt_path=none.ckpt"), "none.ckpt does not exist")
    assert_refused(command("test", *tiny, "--model.weights=cut.ckpt"), "cut.ckpt", "cut off or damaged")
    assert_refused(command("test", *tiny, "--model.weights=none.pth"), "none.pth does not exist")


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("--model.network.window=4", ["window is 4", "odd number"]),
        ("--model.network.train_rules.interval=0", ["interval is 0", "at least 1"]),
        ("--model.network.memory.levels=0", ["levels is 0", "at least 1"]),
        ("--model.network.layers=0", ["layers is 0"]),
        ("--model.network.channels=33", ["channels 33", "multiple of 16"]),
        ("--model.network.backbone.name=resnet5", ["timm knows no model 'resnet5'"]),
        ("--model.sequential_from=2", ["sequential_from is 2", "fractions"]),
        ("--model.optimizer.lr=0", ["learning rate is 0"]),
        ("--model.networ.window=5", ["unknown key", "the command line, --model.networ.window=5"]),
        ("--model.network.windo=5", ["unknown key 'model.network.windo'", "did you mean 'window'?"]),
        ("--data.batch=3", ["unknown key 'data.batch'", "did you mean 'batch_size'?"]),
        ("--data.batch_size=0", ["batch_size is 0", "at least 1"]),
        ("--data.workers=-1", ["workers is -1", "at least 0"]),
        ("--data.transform.crop=0", ["crop=0", "positive"]),
        ("--data.sampler.length=1", ["length=1", "length >= 2"]),
        ("--data=datamodules.DAVI", ["no class 'datamodules.DAVI'", "did you mean 'datamodules.DAVIS'?"]),
        ("--model=lightning_vos.MAVSO", ["no class", "did you mean 'lightning_vos.MAVOS'?"]),
    ],
)
def test_options(command, tiny, workplace, option, parts):
    words = () if "memory" not in option else ("--model.network.memory=ModulatedCrossAttentionMemory",)
    assert_refused(command("fit", *tiny, *words, option), *parts)


def test_clips_too_short_for_the_memory_to_learn(command, tiny, workplace):
    words = ("--data.sampler.length=5", "--model.network.train_rules.interval=2")
    assert_refused(command("fit", *tiny, *words), "5 frames are too short", "--data.sampler.length to 6")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real videos in {REAL}")
def test_masks_of_another_size_than_the_frames(command, workplace, trained):
    def predict(root: Path, *words: str):
        folders = ("--data.frames=valid_all_frames/JPEGImages", "--data.masks=valid/Annotations")
        recipe = ("--config", str(TINY), "--data=datamodules.VideoFolder", f"--data.root={root}", *folders)
        return command("predict", *recipe, "--ckpt_path", last(trained), *words)

    judo = "valid/Annotations/judo/00005.png"
    assert_refused(predict(REAL), judo, "found 853x480, expected 854x480", "--data.resize_masks true")

    # frames of a quarter of the size, or the network would take a minute
    shutil.copytree(REAL / "valid/Annotations", workplace / "valid/Annotations")
    for path in REAL.glob("valid_all_frames/JPEGImages/judo/*.jpg"):
        small = workplace / path.relative_to(REAL)
        small.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as frame:
            frame.resize((214, 120)).save(small)
    finished = predict(workplace, "--data.resize_masks=true")
    assert finished.status == 0, finished.err
    masks = [read_mask(path, (120, 214)) for path in sorted(workplace.glob("runs/*/*/masks/judo/*.png"))]
    assert len(masks) == 16
    first_seen = {i: number for number in reversed(range(16)) for i in np.unique(masks[number]).tolist() if i}
    assert first_seen == {1: 0, 2: 5, 3: 8, 4: 13}
