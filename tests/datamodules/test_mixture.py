import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datamodules import DAVIS, LVOS, COCOPseudoVideo, Mixture, VideoFolder, YouTubeVOS
from datamodules.hodor_transforms import WholeFrameTransform
from datamodules.samplers import ClipSampler, CycleSampler, DenseSampler
from datamodules.synthetic_files import SyntheticSettings, write_davis
from datamodules.synthetic_layouts import write_synthetic_youtube_vos
from datamodules.transforms import ClipTransform
from lightning_vos.errors import DatasetNotFoundError

REAL = Path(__file__).parents[2] / "../shared/data/real"
SMALL = {
    "batch_size": 2,
    "workers": 0,
    "sampler": ClipSampler(length=3, min_pixels=20),
    "transform": ClipTransform(crop=48, short_side=48, min_pixels=10),
    "merge": 0.0,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_davis(root / "DAVIS", SyntheticSettings(train=2, val=2, frames=8, height=64, width=80))
    write_synthetic_youtube_vos(root / "YouTubeVOS", SyntheticSettings(train=5, val=1, frames=11, height=64, width=80))
    return root


def mixture(root, **options):
    parts = {"youtube_vos": YouTubeVOS("."), "davis": DAVIS(".")}
    return Mixture(root, parts, "davis", **SMALL | options)


def drawn(data, count=600):
    """How often each sequence is drawn."""
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    names = Counter()
    dataset._clip = lambda sequence, rng, step: names.update([sequence.name])
    for index in range(count):
        with pytest.raises(TypeError):  # what was drawn is not unpacked
            dataset[index]
    return names


@pytest.mark.parametrize(
    ("options", "davis"),
    [({}, 2 / 7), ({"repeats": {"davis": 5}}, 10 / 15), ({"shares": {"youtube_vos": 0.8, "davis": 0.2}}, 0.2)],
)
def test_clips_are_shared_out_as_asked(whole, options, davis):
    names = drawn(mixture(whole, **options))
    assert len(names) == 7
    found = sum(number for name, number in names.items() if name.startswith("synthetic"))
    assert abs(found / 600 - davis) < 0.06  # three standard deviations
    for name, number in names.items():
        expected = 600 * (davis / 2 if name.startswith("synthetic") else (1 - davis) / 5)
        assert abs(number - expected) < 5 * expected**0.5


def test_the_evaluated_part_alone_is_validated_and_tested(whole):
    data = mixture(whole)
    data.setup("fit")
    data.setup("test")
    names = ["synthetic-val-000", "synthetic-val-001"]
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert [item.video.name for item in loader] == names
    assert data.protocol == "davis2017"
    assert data.server() is None
    testdev = Mixture(whole, {"davis": DAVIS(".", test_split="test-dev")}, "davis")
    assert testdev.server() == ("davis2017_test_dev", whole / "DAVIS", "test-dev")


@pytest.mark.parametrize("sampler", [CycleSampler(min_pixels=20), DenseSampler(min_pixels=20)])
def test_whole_frames_of_both_sets_make_batches(whole, sampler):
    data = mixture(
        whole,
        sampler=sampler,
        transform=WholeFrameTransform(short_side=64, long_side=96, min_pixels=20, min_side=2),
        max_objects=4,
        shares={"youtube_vos": 0.8, "davis": 0.2},
    )
    data.setup("fit")
    for batch, _ in zip(data.train_dataloader(), range(4), strict=False):
        assert batch.frames.shape == (2, 3, 3, 64, 96)
        assert (batch.masks[:, 1:] == 255).all() == sampler.withholds
        assert 1 <= batch.objects.min() <= batch.objects.max() <= 4


def test_batches_are_a_function_of_seed_and_rank(whole, monkeypatch):
    def batch(seed="1", rank=0, workers=2):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        data = mixture(whole, workers=workers, repeats={"davis": 5})
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=2, global_step=4, accumulate_grad_batches=1, limit_val_batches=1.0
        )
        data.setup("fit")
        return next(iter(data.train_dataloader())).frames

    assert torch.equal(batch(), batch(workers=0))
    assert not torch.equal(batch(), batch(seed="2"))
    assert not torch.equal(batch(), batch(rank=1))


def test_it_says_what_it_trains_on(whole, caplog):
    with caplog.at_level("INFO"):
        mixture(whole, repeats={"davis": 5}).setup("fit")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"YouTube-VOS 2019 holdout_train: 5 sequences, 15 frames in {whole / 'YouTubeVOS'}",
        f"DAVIS 2017 train: 2 sequences, 16 frames in {whole / 'DAVIS'}",
        "Training clips are drawn from: YouTube-VOS 2019 holdout_train 33%, DAVIS 2017 train 67%",
        f"DAVIS 2017 val: 2 sequences, 16 frames in {whole / 'DAVIS'}",
    ]


@pytest.mark.parametrize("options", [{"repeats": {"davis": 5}}, {"shares": {"youtube_vos": 0.8, "davis": 0.2}}])
def test_without_a_part_it_goes_on_and_says_so(whole, tmp_path, options):
    shutil.copytree(whole / "DAVIS", tmp_path / "DAVIS")
    for root in (tmp_path, tmp_path / "DAVIS"):
        with pytest.warns(UserWarning, match=r"YouTube-VOS 2019 is not at (?s:.*)DAVIS 2017 train alone") as said:
            names = drawn(mixture(root, **options), 50)
        assert len(said) == 1
        assert "  expected: YouTubeVOS/<split>/meta.json" in str(said[0].message)
        assert names.keys() == {"synthetic-train-000", "synthetic-train-001"}


def test_a_part_without_the_split_to_train_on_is_not_there(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "data")
    (tmp_path / "data/YouTubeVOS/train").rename(tmp_path / "train")
    parts = {"youtube_vos": YouTubeVOS("."), "davis": DAVIS(".", train_split="none"), "lvos": LVOS("YouTubeVOS")}
    (tmp_path / "data/YouTubeVOS/valid/valid_meta.json").touch()
    parts["own"] = VideoFolder("DAVIS", frames="JPEGImages/480p", masks="Annotations/480p")
    parts["other"] = VideoFolder("DAVIS", frames="Frames")
    with pytest.warns(UserWarning, match="VideoFolder train alone") as said:
        assert len(Mixture(tmp_path / "data", parts, "own", **SMALL).find("train")) == 3
    told = str(said[0].message)
    for words in ("YouTube-VOS 2019 in .* has no train: ", "no split 'none'", "no split 'train'", "No folder .*Frames"):
        assert re.search(words, told), told
    shutil.rmtree(tmp_path / "data/DAVIS")
    with pytest.raises(DatasetNotFoundError, match=r"has no train: (?s:.*)DAVIS 2017 is not at") as error:
        mixture(tmp_path / "data").find("train")
    assert len(str(error.value).splitlines()) <= 8
    assert "  expected: train/meta.json" in str(error.value)
    assert "  expected: DAVIS/JPEGImages/480p" in str(error.value)


def test_without_the_evaluated_part_it_stops(whole, tmp_path):
    shutil.copytree(whole / "YouTubeVOS", tmp_path / "YouTubeVOS")
    with pytest.raises(DatasetNotFoundError, match="DAVIS 2017 is not at"):
        mixture(tmp_path).setup("fit")
    with pytest.raises(DatasetNotFoundError, match=r"YouTube-VOS 2019 is not at (?s:.*)DAVIS 2017 is not at") as error:
        mixture(tmp_path / "none").setup("fit")
    assert len(str(error.value).splitlines()) <= 8
    assert "  expected: YouTubeVOS/<split>/meta.json" in str(error.value)
    assert "  expected: DAVIS/JPEGImages/480p" in str(error.value)


def test_a_part_that_is_there_but_broken_stops(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "data")
    shutil.rmtree(next((tmp_path / "data/YouTubeVOS/train/JPEGImages").iterdir()))
    with pytest.raises(DatasetNotFoundError, match="there is no folder"):
        mixture(tmp_path / "data").setup("fit")


def test_parts_may_lie_elsewhere(whole, tmp_path):
    shutil.copytree(whole / "DAVIS", tmp_path / "DAVIS")
    parts = {"youtube_vos": YouTubeVOS(whole / "YouTubeVOS"), "davis": DAVIS(".")}
    data = Mixture(tmp_path, parts, "davis", **SMALL)
    assert len(data.find("train")) == 7
    own = VideoFolder("DAVIS", "JPEGImages/480p", "Annotations/480p")
    assert len(Mixture(tmp_path, {"own": own}, "own", **SMALL).find("train")) == 3  # of four, one is held out


@pytest.mark.parametrize("kind", [lambda: COCOPseudoVideo("."), lambda: Mixture(".", {"davis": DAVIS(".")}, "davis")])
def test_parts_that_do_not_draw_clips_from_videos_are_refused(kind):
    with pytest.raises(ValueError, match=f"part 'other' is a {type(kind()).__name__}, .* train on it alone"):
        Mixture(".", {"davis": DAVIS("."), "other": kind()}, "davis")


@pytest.mark.skipif(not REAL.is_dir(), reason="no real samples at ../shared/data/real")
def test_the_real_samples_are_mixed(monkeypatch):
    def batch(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        tennis = VideoFolder(REAL.resolve() / "DAVIS_240p", "JPEGImages/240p", "Annotations/240p")
        parts = {"davis": DAVIS("DAVIS", train_split="val"), "tennis": tennis}
        data = Mixture(REAL, parts, "davis", shares={"davis": 0.5, "tennis": 0.5}, **SMALL | {"workers": 2})
        data.setup("fit")
        assert [item.video.name for item in data.val_dataloader()] == ["blackswan", "car-shadow"]
        return next(iter(data.train_dataloader()))

    clips = batch("1")
    assert clips.frames.shape == (2, 3, 3, 48, 48)
    assert clips.objects.tolist() == [1, 1]
    assert torch.equal(clips.frames, batch("1").frames)
    assert not torch.equal(clips.frames, batch("2").frames)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repeats": {"davi": 5}}, "no part 'davi'; the parts are youtube_vos, davis"),
        ({"repeats": {"davis": 0}}, "expected at least 1"),
        ({"shares": {"davis": 1.0}}, "a positive share for each of youtube_vos, davis"),
        ({"shares": {"davis": 1.0, "youtube_vos": 0.0}}, "a positive share"),
        ({"shares": {"davis": 0.5, "youtube_vos": 0.5}, "repeats": {"davis": 2}}, "both given"),
    ],
)
def test_impossible_mixtures_are_refused(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        mixture(tmp_path, **options)
