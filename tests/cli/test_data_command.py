from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from datamodules import YouTubeVIS, synthetic_images
from datamodules.synthetic_files import StillSettings, SyntheticSettings, write_davis
from lightning_vos.io.masks import read_mask, write_mask

SMALL = SyntheticSettings(train=2, val=1, frames=6, height=64, width=80)


@pytest.fixture
def davis(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_davis(tmp_path / "data/DAVIS", SMALL)
    return tmp_path / "data/DAVIS"


def refused(finished, *parts):
    assert finished.status == 2, finished.err
    assert "Traceback" not in finished.err
    assert len(finished.err[finished.err.index("error: ") :].splitlines()) <= 8
    assert all(part in finished.err for part in parts), finished.err


def test_check_of_a_whole_set(command, davis):
    finished = command("data", "check", "data")
    assert finished.status == 0, finished.err
    assert "2017 train" in finished.out
    assert "Nothing is wrong (headers of all files and first masks were read" in finished.out
    assert "every file was decoded" in command("data", "check", "data", "--full", "--workers", "1").out


def test_check_says_what_is_wrong_where_and_how_it_is_mended(command, davis):
    for name in ("00002", "00003", "00004", "00005"):
        mask = sorted(davis.glob(f"Annotations/480p/*/{name}.png"))[0]
        write_mask(mask, read_mask(mask)[:-1])
    sorted(davis.glob("JPEGImages/480p/*/00000.jpg"))[-1].write_bytes(b"")
    finished = command("data", "check", "data", "--json", "report.json")
    assert finished.status == 1
    assert "wrong size: data/DAVIS/Annotations/480p/synthetic-train-000/00002.png, " in finished.out
    assert "... (4 files)\n  found 80x63, its frame has 80x64\n  to mend: " in finished.out
    assert "lightning_vos data prepare resize data/DAVIS TARGET\n" in finished.out
    assert "5 findings" in finished.out
    (report,) = json.loads(Path("report.json").read_text())["datasets"]
    assert report["dataset"] == "DAVIS"
    assert {finding["kind"] for finding in report["findings"]} == {"wrong size", "unreadable file"}
    assert len(report["findings"]) == 5
    assert report["parts"][0]["videos"] == 2


def test_check_prints_names_that_are_no_text(command, tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "\ud800.jpg", "height": 4, "width": 4}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    finished = command("data", "check", str(tmp_path), "--json", str(tmp_path / "report.json"))
    assert (finished.status, "such as \\ud800.jpg" in finished.out) == (1, True), finished.out + finished.err


def test_check_without_a_dataset(command, davis):
    refused(command("data", "check", "gone"), "No folder to check", "gone")
    (davis.parents[1] / "empty").mkdir()
    refused(command("data", "check", "empty"), "No dataset in", "an empty folder")
    refused(command("data", "check", "data", "--dataset", "voc"), "SegmentationClass/*.png")
    refused(command("data", "check", "data", "--workers", "0"), "--workers is 0")
    assert command("data", "check", "data", "--dataset", "wrong").status == 2
    assert command("data", "check", "data", "--ful").status == 2


def test_prepare(command, davis):
    finished = command("data", "prepare", "resize", "data", "small", "--short-side", "48", "--workers", "1")
    assert (finished.status, finished.out) == (0, f"small: {3 * 12 + 7} files written\n")
    assert Image.open(sorted(Path("small").rglob("*.jpg"))[0]).size == (60, 48)
    again = command("data", "prepare", "resize", "data", "small", "--short-side", "48", "--workers", "1")
    assert again.out == f"small: 0 files written, {3 * 12 + 7} were there already\n"
    refused(command("data", "prepare", "resize", "data", "data/small"), "Name a TARGET outside of it")
    refused(command("data", "prepare", "resize", "data", "small", "--short-side", "0"), "--short-side is 0")
    masks = "data/DAVIS/Annotations/480p"
    assert command("data", "prepare", "first-masks", masks, "first", "--workers", "1").status == 0
    assert len(list(Path("first").glob("*/00000.png"))) == 3
    grey = Path("grey/a/0.png")
    grey.parent.mkdir(parents=True)
    Image.fromarray(np.array([[0, 90, 255]], np.uint8)).save(grey)
    refused(command("data", "prepare", "index-masks", "grey", "ids", "--workers", "1"), "--threshold 128")
    finished = command("data", "prepare", "index-masks", "grey", "ids", "--threshold", "90", "--workers", "1")
    assert finished.out == "a: grey from 90 on is 1\nids: 1 file written\n"
    assert command("data", "prepare", "labels", f"{masks}/synthetic-train-000", "labels.csv").status == 0
    assert Path("labels.csv").read_text().startswith("image,aeroplane,")


def test_demo_knows_its_layouts(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(command("data", "demo", "data", "--layout", "other"), "'other'", "davis", "youtube_vos", "voc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["long_time_video", "coco"])
def test_demo_writes_a_set(command, tmp_path, monkeypatch, layout):
    from lightning_vos.commands import data

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "SyntheticSettings", lambda **words: SMALL)
    monkeypatch.setattr(data, "StillSettings", lambda **words: StillSettings(images=6, height=64, width=80))
    finished = command("data", "demo", "my data", "--layout", layout)
    assert finished.status == 0, finished.err
    assert "They are synthetic." in finished.out
    assert f"--config configs/data/{layout}.yaml --data.root 'my data'\n" in finished.out
    config = Path(__file__).parents[2] / f"configs/data/{layout}.yaml"
    assert config.is_file()
    assert list(tmp_path.glob("my data/*/synthetic.json"))


def test_demo_of_youtube_vis_names_a_training_that_is_scored(command, tmp_path, monkeypatch):
    from lightning_vos.commands import data

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "SyntheticSettings", lambda **words: SMALL)
    finished = command("data", "demo", "my data", "--layout", "youtube_vis")
    assert finished.status == 0, finished.err
    words = shlex.split(finished.out.splitlines()[-1])
    assert words[:4] == ["lightning_vos", "fit", "--config", "configs/taformer_demo.yaml"]
    shown = command("fit", *words[2:], "--print_config")
    assert shown.status == 0, shown.err
    config = yaml.safe_load(shown.out)["data"]
    assert config["class_path"] == "datamodules.YouTubeVIS"
    stated = config["init_args"]
    videos = YouTubeVIS(Path(stated["root"]), train_split=stated["train_split"], test_split=stated["test_split"])
    (video,) = videos.videos("test")
    assert video.load(0).truth


@pytest.mark.parametrize("layout", ["voc", "coco_semantic", "ade20k", "dfc2020", "endotect", "labelled_images"])
def test_demo_of_labelled_images_names_a_training_that_runs(command, tmp_path, monkeypatch, layout):
    """As it is printed, with a network and images that are small."""
    monkeypatch.chdir(tmp_path)
    side = 256 if layout == "dfc2020" else 64  # for its windows
    small = {"train": 12, "val": 2, "height": side, "width": side}
    monkeypatch.setattr(synthetic_images, "SIZES", {layout: small})
    finished = command("data", "demo", "my data", "--layout", layout)
    assert finished.status == 0, finished.err
    assert "They are synthetic.\nTo train on them:\n" in finished.out
    words = shlex.split(finished.out.splitlines()[-1])
    assert words[:3] == ["lightning_vos", "fit", "--config"]
    assert words[3].startswith("configs/token_masking_")
    assert words[-2:] == ["--data.root", "my data"]
    crop = ("--data.window=32",) if layout == "dfc2020" else ("--data.transform.crop=32",)
    vit = (f"--model.network.vit.{name}" for name in ("width=16", "depth=1", "heads=2", "grid=2"))
    quick = ("--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.accelerator=cpu", "--data.workers=0")
    trained = command("fit", *words[2:], *crop, *vit, *quick, "--model.network.start_weights=null")
    assert trained.status == 0, trained.err
    assert len(list(tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt"))) == 1
    root = "my data" if layout == "labelled_images" else str(next(Path("my data").iterdir()))
    checked = command("data", "check", root)
    assert (checked.status, "Nothing is wrong" in checked.out) == (0, True), checked.out


def test_demo_of_labelled_images_beside_others_is_named(command, tmp_path, monkeypatch):
    """Its folder is the dataset itself, so that the recipe's own root is another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthetic_images, "SIZES", {"labelled_images": {"train": 1, "val": 1}})
    assert command("data", "demo", "data", "--layout", "labelled_images").out.endswith(" --data.root data\n")


def test_show_draws_what_training_would(command, davis):
    tiny = Path(__file__).parents[1] / "end_to_end/tiny.yaml"
    recipe = (f"--config={tiny}", "--config=configs/data/davis2017.yaml")
    words = ("data", "show", *recipe, "--data.root", "data", "--data.sampler.length=3", "--count", "2")
    finished = command(*words, "--output", "clips.png")
    assert finished.status == 0, finished.err
    assert finished.out.startswith("clips.png shows 2 clips of 3 frames, ")
    sheet = np.asarray(Image.open("clips.png"))
    command(*words, "--output", "again.png")
    np.testing.assert_array_equal(sheet, Image.open("again.png"))
    command(*words, "--output", "other.png", "--seed_everything=1")
    assert not np.array_equal(sheet, Image.open("other.png"))
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000
    refused(command(*words, "--count", "0"), "--count is 0")
    refused(command(*words, "--data.rot=1"), "rot")
    refused(command("data", "show", *recipe, "--data.root", "gone"), "gone")


def test_all_but_show_start_without_torch(davis):
    code = (
        "import sys; from lightning_vos.commands.data import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    for words in (["check", "data"], ["prepare", "first-masks", "data/DAVIS", "first"], ["demo", "--help"]):
        finished = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
