"""TAFormer and SeqFormer through the commands: a run that goes on, a test that is scored, two processes, own videos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import REPOSITORY, TWO_PROCESSES, assert_refused, checkpoint, end, files, last, start, table

from datamodules.synthetic_files import SyntheticSettings
from datamodules.synthetic_instances import write_synthetic_youtube_vis
from lightning_vos.evaluation import score
from lightning_vos.evaluation.submission import check
from lightning_vos.io.frames import list_frames, read_frame
from lightning_vos.io.masks import write_mask
from lightning_vos.io.video import VideoFile, VideoWriter

RECIPE = """
include: [taformer_demo.yaml]
trainer:
  max_steps: 4
  val_check_interval: 2
  log_every_n_steps: 1
  enable_model_summary: false
  enable_progress_bar: false
model:
  init_args:
    network:
      init_args: {queries: 6, channels: 64, layers: 1, feed: 32}
    inference: {short_side: 32}
data:
  init_args:
    settings: {train: 3, val: 3, frames: 5, height: 64, width: 80}
    batch_size: 2
    workers: 0
    augmentation: {short_sides: [32], longest: 64}
"""
REAL = REPOSITORY.parent / "shared/data/real"
real_youtube_vis = pytest.mark.skipif(
    not (REAL / "ytvis_2019").is_dir(), reason=f"no real sample at {REAL / 'ytvis_2019'}"
)
MEASURES = ("AP", "AP50", "AP75", "AR1", "AR10")


@pytest.fixture(scope="module")
def vis(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("vis")
    write_synthetic_youtube_vis(
        root / "youtube_vis_2019", SyntheticSettings(train=3, val=3, frames=5, height=64, width=80)
    )
    return root


@pytest.fixture(scope="module")
def recipe(small_recipe, vis) -> tuple[str, ...]:
    return small_recipe(RECIPE, vis)


@pytest.fixture(scope="module")
def run(fitted, recipe) -> Path:
    return fitted(*recipe)


def test_a_training_validates_and_knows_its_classes(run):
    found = table(run)
    assert [step for name, step in found if name == "val/AP"] == [1, 3]
    for name in ("loss", "class", "box", "giou", "mask", "dice", "contrastive"):
        assert [step for metric, step in found if metric == f"train/{name}"] == [0, 1, 2, 3]
    assert checkpoint(run)["categories"][34] == "boat"
    assert len(list((run / "checkpoints").glob("best-*.ckpt"))) == 1


def test_a_stopped_run_goes_on(command, workplace, recipe, run):
    stopped = command("fit", *recipe, "--trainer.callbacks+=test_resume.StopAt", "--trainer.callbacks.step=2")
    assert stopped.status == 0, stopped.err
    resumed = command("fit", *recipe, "--ckpt_path", "last")
    assert resumed.status == 0, resumed.err
    ours, theirs = checkpoint(workplace / "runs/small/version_0"), checkpoint(run)
    assert ours["global_step"] == theirs["global_step"] == 4
    assert all(torch.equal(ours["state_dict"][name], value) for name, value in theirs["state_dict"].items())


def test_what_is_logged_is_what_score_says(command, workplace, recipe, vis, run):
    finished = command("test", *recipe, "--ckpt_path", last(run))
    assert finished.status == 0, finished.err
    folder = workplace / "runs/small/version_0"
    scores = score(vis / "youtube_vis_2019/train.json", folder, "youtube_vis", split="holdout_val")
    logged = table(folder)
    for name in MEASURES:
        assert logged[f"test/{name}", 0] == pytest.approx(scores.summary[name], rel=2**-20)
    assert {path.name for path in folder.iterdir()} >= {
        *("results.json", "summary.csv", "categories.csv", "overlays", "contact_sheet.png")
    }


def test_a_split_without_truth_leaves_a_submission(command, workplace, recipe, vis, run):
    finished = command("test", *recipe, "--data.test_split=valid", "--ckpt_path", last(run))
    assert finished.status == 0, finished.err
    assert "submission.zip is packed and checked: 3 videos" in finished.out
    folder = workplace / "runs/small/version_0"
    assert not any(name.startswith("test/A") for name, _ in table(folder))
    assert check(folder / "submission.zip", vis / "youtube_vis_2019/valid.json", benchmark="youtube_vis").sequences == 3


@real_youtube_vis
def test_real_videos_leave_a_submission_and_scores(command, workplace, recipe, run):
    dataset = REAL / "ytvis_2019"
    words = ("test", *recipe, f"--data.root={dataset}", f"--data.frames={REAL / 'DAVIS/JPEGImages/480p'}")
    words += ("--ckpt_path", last(run), "--trainer.callbacks=[]")
    for split in ("valid", "train"):  # without and with truth
        finished = command(*words, f"--data.test_split={split}", f"--trainer.logger.name={split}")
        assert finished.status == 0, finished.err
    valid, train = (workplace / "runs" / split / "version_0" for split in ("valid", "train"))
    checked = command(
        "submission", "check", str(valid / "submission.zip"), str(dataset / "valid.json"), "--benchmark", "youtube_vis"
    )
    assert checked.status == 0, checked.err
    assert {one["video_id"] for one in json.loads((valid / "results.json").read_text())} == {1, 2, 3}
    scores = score(dataset / "train.json", train, "youtube_vis")
    for name in MEASURES:
        assert table(train)[f"test/{name}", 0] == pytest.approx(scores.summary[name], rel=2**-20)


@pytest.mark.slow  # the default suite keeps MAVOS
def test_two_processes_score_as_one(by_one_and_by_two, recipe, run):
    one, two, _ = by_one_and_by_two(*recipe, "--ckpt_path", last(run))
    for pattern in ("*.csv", "results.json"):
        found, expected = (files(folder, pattern) for folder in (two, one))
        found.pop("metrics.csv", None)
        expected.pop("metrics.csv", None)
        assert found == expected
    for name in MEASURES:
        assert table(two)[f"test/{name}", 0] == table(one)[f"test/{name}", 0]


@pytest.mark.slow  # the default suite keeps MAVOS
def test_two_processes_train(workplace, recipe):
    words = ("fit", *recipe, "--trainer.max_steps=2", "--trainer.limit_val_batches=0")
    status, out = end(start(*words, *TWO_PROCESSES))
    assert status == 0, out
    assert checkpoint(workplace / "runs/small/version_0")["global_step"] == 2


def test_own_videos(command, workplace, vis, run):
    folder = min((vis / "youtube_vis_2019/valid/JPEGImages").iterdir())
    with VideoWriter(workplace / "film.mp4", (64, 80), 10) as writer:
        for frame in list_frames(folder):
            writer.write(read_frame(frame))
    weights = ("--weights", last(run))
    for video, output, words in ((str(folder), "frames", ()), ("film.mp4", "film", ("--window", "3"))):
        finished = command("segment", video, "--output", output, *weights, *words)
        assert finished.status == 0, finished.err
        assert "Classes: those of the training." in finished.out
        entries = json.loads(Path(output, "results.json").read_text())
        assert entries
        assert all(len(one["segmentations"]) == 5 and one["category"] for one in entries)
        assert len(list(VideoFile(Path(output, "overlay.mp4")))) == 5
    assert_refused(command("segment", "film.mp4", "--output", "film", *weights), "film/results.json is there already")
    assert_refused(
        command("segment", "film.mp4", "--output", "o", *weights, "--flip"), "--flip is for videos with a MASK"
    )
    assert_refused(
        command("segment", "film.mp4", "--output", "o", *weights, "--window", "2"), "--window is 2", "3 or more"
    )
    assert_refused(
        command("segment", "film.mp4", str(vis / "mask.png"), "--output", "o", "--window", "2"), "without a MASK"
    )
    Path("classes.json").write_text(json.dumps({"categories": [{"id": n, "name": f"c{n}"} for n in range(42)]}))
    assert_refused(
        command("segment", "film.mp4", "--output", "o", *weights, "--categories", "classes.json"),
        "other categories than",
        "42 (c0, c1, c2, c3, ...), not 40",
    )
    Path("classes.json").write_text('{"categories": []}')
    assert_refused(
        command("segment", "film.mp4", "--output", "o", *weights, "--categories", "classes.json"), "says no categories"
    )


def test_weights_of_the_other_kind(command, workplace, vis, run, trained):
    """Nothing but a message where masks would be needed, or are not."""
    folder = str(min((vis / "youtube_vis_2019/valid/JPEGImages").iterdir()))
    following = last(trained)
    assert_refused(
        command("segment", folder, "--output", "o", "--weights", following), "MAVOSNetwork", "finds no instances"
    )
    mask = workplace / "mask.png"
    write_mask(mask, np.ones((64, 80), np.uint8))
    assert_refused(
        command("segment", folder, str(mask), "--output", "o", "--weights", last(run)),
        "TAFormerNetwork",
        "no given masks",
    )


def test_other_classes(command, workplace, recipe, vis, run):
    content = json.loads((vis / "youtube_vis_2019/train.json").read_text())
    for category in content["categories"]:
        category["name"] += "s"
    Path("train.json").write_text(json.dumps(content))
    for verb, weights in (("test", "--ckpt_path"), ("test", "--model.weights"), ("fit", "--model.weights")):
        finished = command(verb, *recipe, "--data.train_file=train.json", f"{weights}={last(run)}")
        assert_refused(finished, "knows other classes", "weights_may_lack '[class_heads]'")
    words = ("--model.network.classes=91", f"--model.weights={last(run)}", "--trainer.max_steps=1")
    refused = command("fit", *recipe, *words, "--trainer.limit_val_batches=0")
    assert_refused(refused, "class_heads")
    started = command("fit", *recipe, *words, "--trainer.limit_val_batches=0", "--model.weights_may_lack=[class_heads]")
    assert started.status == 0, started.err
    assert "start as they were: class_heads" in started.err + started.out
