"""`fit`, then `test` and `predict` of what it left: masks, scores, pictures, and where weights come from."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import TINY, assert_refused, checkpoint, files, last, table

from lightning_vos.evaluation import score
from lightning_vos.io.masks import VOC_PALETTE

OVERLAYS = "--trainer.callbacks+=lightning_vos.callbacks.results.OverlayWriter"
SCORES = ("test/J&F", "test/J", "test/F")
ONE_VIDEO = ("--trainer.limit_test_batches=1", "--trainer.limit_val_batches=1")


def newest(workplace: Path) -> Path:
    return max(workplace.glob("runs/tiny/version_*"), key=lambda run: int(run.name.removeprefix("version_")))


def assert_masks_of(run: Path, data: Path, videos: int = 3, frames: int = 8) -> None:
    """A mask for each frame, of its size, with the ids and the palette of the given one, which the first repeats."""
    masks = sorted(run.glob("masks/*/*.png"))
    assert len(masks) == videos * frames
    for path in masks:
        given = data / "DAVIS/Annotations/480p" / path.parent.name / "00000.png"
        with Image.open(path) as mask, Image.open(given) as first:
            assert (mask.mode, mask.size) == ("P", (80, 64))
            assert bytes(mask.getpalette("RGB")) == VOC_PALETTE
            assert set(np.unique(mask)) <= set(np.unique(first))
            if path.name == given.name:
                assert np.array_equal(mask, first)


def test_the_best_checkpoint(command, workplace, data, trained, tiny):
    shutil.copytree(trained.parents[1], workplace / "runs")
    (best,) = (trained / "checkpoints").glob("best*")
    finished = command("test", *tiny, "--ckpt_path=best", OVERLAYS)
    assert finished.status == 0, finished.err
    assert best.name in finished.err
    assert "synthetic-val-002" in finished.out
    run = workplace / "runs/tiny/version_1"
    assert_masks_of(run, data)
    logged = table(run)
    more = {"test/identity_switches", "test/FPS", "test/peak_memory_gb", "test/parameters"}
    assert {name for name, _ in logged} == {*SCORES, *more}
    assert logged["test/FPS", 0] > 0
    assert 0.1 < logged["test/peak_memory_gb", 0] < 20
    parameters = [v for k, v in checkpoint(trained)["state_dict"].items() if not k.endswith(("running_mean", "_var"))]
    assert logged["test/parameters", 0] == sum(v.numel() for v in parameters if v.is_floating_point())
    # fit validated on the same videos with the averaged weights, which are what a checkpoint gives
    validated = table(trained)
    step = max((step for name, step in validated if name == "val/J&F"), key=lambda s: validated["val/J&F", s])
    assert best.name == f"best-step{1 + step:06}.ckpt"
    assert [logged[name, 0] for name in SCORES] == [validated[name.replace("test", "val"), step] for name in SCORES]
    with (run / "objects.csv").open(newline="") as file:
        objects = list(csv.DictReader(file))
    assert np.mean([float(row["J&F"]) for row in objects]) == pytest.approx(logged["test/J&F", 0])
    assert {row["sequence"] for row in objects} == {f"synthetic-val-{number:03}" for number in range(3)}
    # scoring what the test wrote, apart from it, gives its numbers
    scores = score(data / "DAVIS", run, "davis2017")
    assert scores.summary["J&F"] > 0
    assert [logged[name, 0] for name in SCORES] == pytest.approx(
        [scores.summary[name.removeprefix("test/")] for name in SCORES], rel=2**-23
    )  # what is logged is a float32
    assert logged["test/identity_switches", 0] == scores.summary["switches"]
    keys = [(row.pop("sequence"), int(row.pop("object"))) for row in objects]
    assert dict(zip(keys, objects, strict=True)) == {
        key: {name: str(value) for name, value in row.items()} for key, row in scores.objects.items()
    }
    assert sorted(files(run, "*.mp4")) == [f"overlays/synthetic-val-{number:03}.mp4" for number in range(3)]
    with Image.open(run / "contact_sheet.png") as sheet:
        assert sheet.height > 3 * 64


def test_flip_and_scales_change_the_test_but_not_the_validation(command, workplace, data, trained, tiny):
    found = {}
    for verb, stage in (("test", "test/J&F"), ("validate", "val/J&F")):
        for words in ((), ("--model.flip=true", "--model.scales=[1.0,1.3]")):
            finished = command(verb, *tiny, *ONE_VIDEO, "--ckpt_path", last(trained), *words)
            assert finished.status == 0, finished.err
            (found[verb, words],) = (value for (name, _), value in table(newest(workplace)).items() if name == stage)
    one, several = (found[key] for key in found if key[0] == "test")
    assert one != several
    one, several = (found[key] for key in found if key[0] == "validate")
    assert one == several
    refused = command("test", *tiny, "--ckpt_path", last(trained), "--model.scales=[0]")
    assert refused.status == 2
    assert "scales is [0.0]" in refused.err


def test_predict_writes_masks_and_pictures(command, workplace, data, trained, tiny):
    finished = command("predict", *tiny, "--ckpt_path", last(trained), OVERLAYS)
    assert finished.status == 0, finished.err
    run = newest(workplace)
    assert_masks_of(run, data)
    assert len(files(run, "overlays/*.mp4")) == 3
    assert not (run / "sequences.csv").exists()


def test_a_split_without_public_truth_is_not_scored(command, workplace, data, trained):
    root = workplace / "data/DAVIS"
    shutil.copytree(data / "DAVIS", root)
    shutil.move(root / "ImageSets/2017/val.txt", root / "ImageSets/2017/test-dev.txt")
    for path in root.glob("Annotations/480p/synthetic-val-*/*.png"):
        if path.stem != "00000":
            path.unlink()
    words = ("--config", str(TINY), "--config", "configs/data/davis2017_testdev.yaml", "--ckpt_path", last(trained))
    finished = command("test", *words)
    assert finished.status == 0, finished.err
    run = newest(workplace)
    assert f"No scores: this split has no public truth. Masks are in {run.relative_to(workplace)}" in finished.out
    assert_masks_of(run, data)
    assert not (run / "sequences.csv").exists()
    logged = table(run)
    assert {name for name, _ in logged} == {"test/FPS", "test/peak_memory_gb", "test/parameters"}


def test_explicit_words_beat_the_checkpoint(command, workplace, trained, tiny):
    def masks(*words: str) -> dict[str, bytes]:
        finished = command("test", *tiny, *ONE_VIDEO, "--ckpt_path", last(trained), *words)
        assert finished.status == 0, finished.err
        return files(newest(workplace), "masks/*/*.png")

    as_trained = masks()
    assert masks("--model.network.test_rules.interval=2") == as_trained
    assert masks("--model.network.test_rules.interval=1") != as_trained


def test_weights_of_a_run_for_a_test(command, workplace, trained, tiny):
    finished = command("test", *tiny, *ONE_VIDEO, "--model.weights", last(trained))
    assert finished.status == 0, finished.err
    assert f"from {last(trained)}" in finished.err
    by_weights = newest(workplace)
    assert command("test", *tiny, *ONE_VIDEO, "--ckpt_path", last(trained)).status == 0
    assert files(by_weights, "masks/*/*.png") == files(newest(workplace), "masks/*/*.png")
    assert [table(by_weights)[name, 0] for name in SCORES] == [table(newest(workplace))[name, 0] for name in SCORES]


def test_weights_of_a_run_to_start_a_fit_from(command, workplace, trained, tiny):
    rate = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1e-30", "--model.schedule.floor=1e-30")
    words = ("--trainer.max_steps=1", "--model.optimizer.weight_decay=0", *rate)
    finished = command("fit", *tiny, "--model.weights", last(trained), *words)
    assert finished.status == 0, finished.err
    ours, theirs = checkpoint(newest(workplace))["state_dict"], checkpoint(trained)["state_dict"]
    learned = [name for name in theirs if "running_" not in name and "num_batches" not in name]
    assert all(torch.equal(ours[name], theirs[name]) for name in learned)


def test_nothing_to_test_with(command, workplace, tiny):
    assert_refused(command("test", *tiny), "no weights", "--ckpt_path best", "--model.weights FILE")
    assert_refused(command("predict", *tiny), "no weights", "--ckpt_path best", "--model.weights FILE")
