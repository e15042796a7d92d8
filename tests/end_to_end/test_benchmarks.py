"""`test` of a tiny MAVOS in every benchmark's layout: it logs what `score` says of its masks, or packs them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from runs import TINY, files, last, table

from datamodules.synthetic_files import SyntheticSettings
from datamodules.synthetic_layouts import (
    write_synthetic_long_time_video,
    write_synthetic_lvos,
    write_synthetic_youtube_vos,
)
from lightning_vos.evaluation import score
from lightning_vos.evaluation.submission import check

PLAIN = {"J&F", "J", "F"}
GROUPED = {"J_seen", "J_unseen", "F_seen", "F_unseen"}
REAL = Path(__file__).parents[2] / "../shared/data/real"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """All layouts beside one another."""
    root = tmp_path_factory.mktemp("sets")
    shutil.copytree(data / "DAVIS", root / "DAVIS")
    settings = SyntheticSettings(train=2, val=2, frames=11, height=64, width=80)
    write_synthetic_youtube_vos(root / "YouTubeVOS", settings)
    write_synthetic_lvos(root / "LVOS", settings)
    write_synthetic_long_time_video(root / "LongTimeVideo", settings)
    return root


@pytest.fixture
def run(command, workplace, trained):
    """Runs a verb of the tiny recipe on data of a config; what it said, and the folder of its run."""

    def run(verb: str, config: str, root: Path, *words: str) -> tuple[str, Path]:
        recipe = ("--config", str(TINY), "--config", f"configs/data/{config}.yaml", f"--data.root={os.fspath(root)}")
        finished = command(verb, *recipe, "--ckpt_path", last(trained), *words)
        assert finished.status == 0, finished.err
        newest = max(workplace.glob("runs/tiny/version_*"), key=lambda path: int(path.name.removeprefix("version_")))
        return finished.out, newest

    return run


@pytest.mark.parametrize(
    ("config", "words", "truth", "protocol", "keys"),
    [
        ("davis2016", (), "DAVIS", "davis2016", PLAIN),
        ("davis2017", (), "DAVIS", "davis2017", PLAIN),
        ("youtube_vos_davis", (), "DAVIS", "davis2017", PLAIN),
        (
            "youtube_vos_2019",
            ("--data.test_split=holdout_val",),
            "YouTubeVOS/train",
            "youtube_vos",
            PLAIN | GROUPED | {"G"},
        ),
        (
            "youtube_vos_2018",
            ("--data.test_split=holdout_val", "--data.all_frames=true"),
            "YouTubeVOS/train",
            "youtube_vos",
            PLAIN | GROUPED | {"G"},
        ),
        ("lvos", (), "LVOS/valid", "lvos", PLAIN | GROUPED | {"V", "V_seen", "V_unseen"}),
        ("long_time_video", (), "LongTimeVideo", "long_time_video", PLAIN),
    ],
)
def test_what_is_logged_is_what_score_says(run, sets, config, words, truth, protocol, keys):
    _, folder = run("test", config, sets, *words)
    logged = {name.removeprefix("test/"): value for (name, _), value in table(folder).items()}
    assert logged.keys() == keys | {"identity_switches", "FPS", "peak_memory_gb", "parameters"}
    scores = score(sets / truth, folder, protocol, split="holdout_val" if protocol == "youtube_vos" else None)
    assert scores.summary["J&F"] > 0
    for key in keys:
        assert logged[key] == pytest.approx(scores.summary[key], rel=2**-23), key  # what is logged is a float32
    assert logged["identity_switches"] == scores.summary["switches"]
    assert not (folder / "submission.zip").exists()


def test_without_a_list_of_the_unseen_nothing_is_told_apart(run, sets, tmp_path):
    for name in ("YouTubeVOS", "LVOS"):
        shutil.copytree(sets / name, tmp_path / "sets" / name)
    (tmp_path / "sets/YouTubeVOS/train/unseen.json").unlink()
    (tmp_path / "sets/LVOS/valid/unseen_videos.txt").unlink()
    found = {}
    for config, words in (("youtube_vos_2019", ["--data.test_split=holdout_val"]), ("lvos", [])):
        logged = table(run("test", config, tmp_path / "sets", *words)[1])
        found[config] = {name.removeprefix("test/") for name, _ in logged} - {
            "identity_switches",
            "FPS",
            "peak_memory_gb",
            "parameters",
        }
    assert found == {"youtube_vos_2019": PLAIN, "lvos": PLAIN | {"V"}}


def test_a_validation_logs_the_same_keys(run, sets):
    _, folder = run("validate", "youtube_vos_2019", sets)
    logged = {name.removeprefix("val/"): value for (name, _), value in table(folder).items()}
    assert logged.keys() == PLAIN | GROUPED | {"G", "identity_switches"}
    _, tested = run("test", "youtube_vos_2019", sets, "--data.test_split=holdout_val")
    assert {key: logged[key] for key in GROUPED} == {key: table(tested)[f"test/{key}", 0] for key in GROUPED}


@pytest.mark.parametrize("verb", ["test", "predict"])
@pytest.mark.parametrize(
    ("config", "words", "place", "benchmark"),
    [
        ("youtube_vos_2019", ("--data.all_frames=true",), "YouTubeVOS/valid", "youtube_vos"),
        ("lvos", ("--data.test_split=test",), "LVOS/test", "lvos"),
        ("davis2017_testdev", (), "DAVIS", "davis2017_test_dev"),
    ],
)
def test_a_split_without_public_truth_leaves_a_checked_submission(
    run, sets, tmp_path, verb, config, words, place, benchmark
):
    root = tmp_path / "sets"
    shutil.copytree(sets, root)
    (root / "DAVIS/ImageSets/2017/val.txt").rename(root / "DAVIS/ImageSets/2017/test-dev.txt")
    for path in root.glob("DAVIS/Annotations/480p/synthetic-val-*/*.png"):
        if path.stem != "00000":
            path.unlink()
    said, folder = run(verb, config, root, *words)
    assert f"{folder.relative_to(Path.cwd())}/submission.zip is packed and checked: " in said
    assert "The server expects a zip" in said
    if verb == "test":
        assert "No scores: this split has no public truth" in said
        assert not any(name.startswith("test/J") for name, _ in table(folder))
    checked = check(folder / "submission.zip", root / place, benchmark=benchmark)
    assert checked.sequences == len({Path(path).parent for path in files(folder, "masks/*/*.png")})
    assert checked.frames > 4


def test_results_that_the_server_would_refuse_are_said_and_kept(run, sets):
    said, folder = run("test", "youtube_vos_2019", sets, "--trainer.limit_test_batches=0.5")
    assert "No submission was packed; the results stay in" in said
    assert "missing" in said
    assert not (folder / "submission.zip").exists()
    assert len(files(folder, "masks/*/*.png")) == 3


@pytest.mark.skipif(not REAL.is_dir(), reason="no real samples at ../shared/data/real")
def test_the_real_sample_of_youtube_vos_leaves_a_submission(run, tmp_path):
    """With frames of a quarter of the size, or the network would take a minute."""
    from PIL import Image

    root = tmp_path / "YouTubeVOS/valid"
    for path in (REAL / "YouTubeVOS/valid").rglob("*.*"):
        small = root / path.relative_to(REAL / "YouTubeVOS/valid")
        small.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            shutil.copy(path, small)
            continue
        with Image.open(path) as image:
            image.resize((214, 120), Image.Resampling.NEAREST).save(small)
    said, folder = run("test", "youtube_vos_2019", tmp_path)
    assert "submission.zip is packed and checked: 1 sequence," in said
    assert check(folder / "submission.zip", root, benchmark="youtube_vos").objects == 4
