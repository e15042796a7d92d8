"""The synthetic set: what its clips show, what its files hold, and that nothing of anybody else is ever touched."""

import hashlib
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from PIL import Image

from datamodules import rendering, synthetic_files
from datamodules.difficulties import TAGS
from datamodules.rendering import Difficulty, RenderedClip, render_clip
from datamodules.synthetic import Synthetic
from datamodules.synthetic_files import FIRST_VAL_INDEX, SyntheticSettings, write_davis
from lightning_vos.commands.data import main
from lightning_vos.errors import ConfigError
from lightning_vos.io.masks import VOC_PALETTE
from lightning_vos.metrics.functional import object_scores

SMALL = SyntheticSettings(train=3, val=2, frames=4, height=64, width=80)
CROSSING = Difficulty(crossing=1.0)


@pytest.fixture(scope="module")
def clips() -> list[RenderedClip]:
    return [render_clip(7, index, frames=16, height=97, width=128) for index in range(80)]


def areas(clip: RenderedClip) -> np.ndarray:
    """(N, T) pixels of each object."""
    return np.array([(clip.masks == k).sum(axis=(1, 2)) for k in range(1, clip.masks[0].max() + 1)])


def centroids(clip: RenderedClip) -> np.ndarray:
    """(N, T, 2) row and column of each object's centroid; NaN where it is not seen."""
    rows, columns = np.indices(clip.masks.shape[1:])
    paths = []
    for k in range(1, clip.masks[0].max() + 1):
        mask = clip.masks == k
        with np.errstate(invalid="ignore"):
            paths.append(np.stack([(mask * axis).sum((1, 2)) / mask.sum((1, 2)) for axis in (rows, columns)], axis=-1))
    return np.stack(paths)


def steps(clip: RenderedClip) -> np.ndarray:
    """(N, T - 1) pixels that each object's centroid moves; NaN where it is not seen."""
    return np.linalg.norm(np.diff(centroids(clip), axis=1), axis=-1)


def gone(area: np.ndarray) -> list[tuple[int, int]]:
    """First and last frame of every absence of two frames or more."""
    text = "".join("." if pixels else "x" for pixels in area)
    return [(match.start(), match.end() - 1) for match in re.finditer("xx+", text)]


def copy_score(clips: list[RenderedClip]) -> float:
    """J&F in percent, as DAVIS 2017 counts, of the first mask repeated."""
    objects: list[float] = []
    for clip in clips:
        ids = range(1, clip.masks[0].max() + 1)
        scores = [object_scores(clip.masks[0], mask, ids)[:2] for mask in clip.masks[1:-1]]
        objects.extend(np.mean(scores, axis=(0, 1)))
    return 100 * float(np.mean(objects))


def test_the_same_pair_gives_the_same_clip():
    first, again = render_clip(3, 5), render_clip(3, 5)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.masks, again.masks)
    assert first.tags == again.tags
    for seed, index in ((3, 6), (4, 5)):
        assert not np.array_equal(first.masks, render_clip(seed, index).masks)


@pytest.mark.parametrize(
    ("seed", "index", "difficulty", "masks", "colour"),
    [
        (0, 0, Difficulty(), "875f2de1dd22aa80", (79.572, 87.87, 69.54)),
        (0, FIRST_VAL_INDEX + 3, Difficulty(), "4c864c0b0b6f42e5", (83.065, 69.517, 77.727)),
        (5, 2, Difficulty(look_alike=1.0, occlusion=1.0), "a9f649597821f37a", (66.107, 84.212, 82.437)),
    ],
)
def test_clips_without_crossings_are_what_they_were_before_there_were_any(seed, index, difficulty, masks, colour):
    """Scores on old and new sets must compare. Masks to the bit; frames, made of floats, by their mean colour."""
    clip = render_clip(seed, index, frames=6, height=72, width=96, difficulty=difficulty)
    assert hashlib.sha256(clip.masks.tobytes()).hexdigest().startswith(masks)
    assert clip.frames.mean(axis=(0, 1, 2)) == pytest.approx(colour, abs=0.01)


@pytest.mark.parametrize(("height", "width"), [(97, 97), (128, 128), (64, 112)])
def test_the_first_frame_shows_every_object(height, width):
    least = 40 if min(height, width) >= 97 else 1
    counts = set()
    for index in range(40):
        clip = render_clip(1, index, frames=3, height=height, width=width)
        assert clip.frames.shape == (3, height, width, 3)
        assert clip.masks.shape == (3, height, width)
        assert clip.frames.dtype == clip.masks.dtype == np.uint8
        count = int(clip.masks.max())
        counts.add(count)
        assert (areas(clip)[:, 0] >= least).all()
        assert len(areas(clip)) == count  # no object that frame 0 does not show
    assert counts == {1, 2, 3, 4}


def test_tags_are_true_of_the_masks(clips):
    for clip in clips:
        area = areas(clip)
        absences = [(first, last) for row in area for first, last in gone(row)]
        assert ("disappearance" in clip.tags) == bool(absences)
        assert ("re-appearance" in clip.tags) == any(last < 15 for _, last in absences)
        assert ("speed" in clip.tags) == ((steps(clip) > 0.05 * math.hypot(97, 128)).sum(axis=1) >= 3).any()
        if "occlusion" in clip.tags:
            assert (area < np.maximum.accumulate(area, axis=1) / 2).any()
        if "scale" in clip.tags:
            assert any(row.max() >= 2 * row[row > 0].min() for row in area)


def test_every_difficulty_is_there_in_a_minority_of_the_clips(clips):
    for tag in set(TAGS) - {"crossing"}:
        share = np.mean([tag in clip.tags for clip in clips])
        assert 0.12 <= share <= 0.45, f"{tag}: {share:.2f}"
    assert not any("crossing" in clip.tags for clip in clips)


@pytest.mark.parametrize("name", ["look_alike", "occlusion", "disappearance", "scale", "speed", "crossing"])
def test_a_difficulty_comes_when_it_is_asked_for_and_stays_away_when_not(name):
    none = {"occlusion": 0.0, "disappearance": 0.0, "scale": 0.0, "look_alike": 0.0, "speed": 0.0}
    tag = name.replace("_", "-")

    def share(difficulty: Difficulty) -> float:
        clips = [render_clip(2, index, height=97, width=128, difficulty=difficulty) for index in range(24)]
        return float(np.mean([tag in clip.tags for clip in clips]))

    asked, unasked = share(Difficulty(**{**none, name: 1.0})), share(Difficulty(**none))
    assert asked >= 0.6
    assert unasked <= 0.25  # objects may hide one another by chance
    if name in {"look_alike", "crossing"}:
        assert unasked == 0


@pytest.fixture(scope="module")
def crossings() -> list[RenderedClip]:
    return [render_clip(4, index, frames=24, difficulty=CROSSING) for index in range(24)]


def test_doubles_meet_and_part(crossings):
    apart = {2: 2.2, 3: 1.9}  # radii
    for clip in crossings:
        area, path = areas(clip), centroids(clip)
        count = len(area)
        radius = math.sqrt(area[:, 0].max() / math.pi)
        assert area[:, 0].min() > 0.8 * area[:, 0].max()  # of one size
        for time in (0, -1):
            distance = np.linalg.norm(path[:, None, time] - path[:, time], axis=-1)[np.triu_indices(count, 1)]
            assert (distance > apart[count] * radius).all()
            assert (area[:, time] > 0.6 * area[:, 0]).all()
        assert (area[:, 6:18] < 0.55 * area[:, :1]).any()  # one is half hidden in mid-clip
        assert (area > 0).all()  # and never quite
        colours = [clip.frames[0][clip.masks[0] == k].mean(axis=0) for k in range(1, count + 1)]
        assert np.ptp(colours, axis=0).max() < 8
        assert {"crossing", "look-alike"} <= set(clip.tags)
    assert {len(areas(clip)) for clip in crossings} == {2, 3}


def test_doubles_go_on_or_turn_back(crossings):
    """Which side an object leaves to says nothing: it is as often the one it came from as the opposite one."""
    turned = []
    for clip in crossings:
        path = centroids(clip)
        middle = path[:, [0, -1]].mean(axis=(0, 1))
        came, left = path[:, 0] - middle, path[:, -1] - middle
        sides = np.sign((came * left).sum(axis=-1))
        assert len(set(sides)) == 1  # all of a clip do the same
        turned.append(sides[0] > 0)
    assert 0.25 < np.mean(turned) < 0.75


@pytest.mark.parametrize(("held", "name"), [(0, "never meet"), (12, "never part")])
def test_what_was_meant_to_cross_and_does_not_has_no_tag(monkeypatch, held, name):
    scene = rendering._crossing_scene

    def cut_short(*args):
        layers, ground = scene(*args)
        until = np.minimum(np.arange(24), held)
        return [layer._replace(placement=layer.placement[until]) for layer in layers], ground

    monkeypatch.setattr(rendering, "_crossing_scene", cut_short)
    for index in range(6):
        assert "crossing" not in render_clip(4, index, frames=24, difficulty=CROSSING).tags, name


def test_objects_differ_from_what_is_around_them(clips):
    """Mean colours inside and around an object are far apart; the noise has a deviation of 4."""
    distances = []
    for clip in clips:
        frame, mask = clip.frames[0].astype(float), clip.masks[0]
        ground = frame[mask == 0].mean(axis=0)
        distances += [np.linalg.norm(frame[mask == k].mean(axis=0) - ground) for k in range(1, mask.max() + 1)]
    assert np.median(distances) > 60
    assert np.mean(np.array(distances) > 25) > 0.97


@pytest.mark.parametrize(("frames", "height", "width"), [(16, 120, 160), (12, 97, 97), (14, 96, 128), (12, 128, 128)])
def test_repeating_the_first_mask_scores_low(frames, height, width):
    for seed in (0, 1, 2):
        held_out = [
            render_clip(seed, FIRST_VAL_INDEX + k, frames=frames, height=height, width=width) for k in range(12)
        ]
        assert 20 <= copy_score(held_out) <= 35


def test_the_files_are_a_davis_set(tmp_path):
    root = tmp_path / "new" / "DAVIS"
    write_davis(root, SMALL)
    tags = json.loads((root / "tags.json").read_text())
    assert "synthetic" in (root / "README.txt").read_text()
    assert {path.name for path in tmp_path.joinpath("new").iterdir()} == {"DAVIS"}
    names = []
    for split, first in (("train", 0), ("val", FIRST_VAL_INDEX)):
        listed = (root / "ImageSets/2017" / f"{split}.txt").read_text().splitlines()
        assert listed == (root / "ImageSets/2016" / f"{split}.txt").read_text().splitlines()
        names += listed
        for k, name in enumerate(listed):
            clip = render_clip(0, first + k, frames=4, height=64, width=80)
            assert tuple(tags[name]) == clip.tags
            images = sorted((root / "JPEGImages/480p" / name).iterdir())
            masks = sorted((root / "Annotations/480p" / name).iterdir())
            assert [path.name for path in images] == [f"{time:05}.jpg" for time in range(4)]
            assert [path.name for path in masks] == [f"{time:05}.png" for time in range(4)]
            for time in range(4):
                mask = Image.open(masks[time])
                assert mask.mode == "P"
                used = 3 * (int(clip.masks.max()) + 1)
                assert bytes(mask.getpalette("RGB"))[:used] == VOC_PALETTE[:used]
                assert np.array_equal(np.asarray(mask), clip.masks[time])
                image = np.asarray(Image.open(images[time]), np.int16)
                assert np.abs(image - clip.frames[time]).mean() < 6
    assert sorted(tags) == sorted(names) == sorted(path.name for path in (root / "JPEGImages/480p").iterdir())


def test_training_and_validation_share_nothing(tmp_path):
    write_davis(tmp_path / "few", SMALL)
    write_davis(tmp_path / "more", SyntheticSettings(train=4, val=2, frames=4, height=64, width=80))

    def first_masks(root: Path, split: str) -> dict[str, bytes]:
        names = (root / f"ImageSets/2017/{split}.txt").read_text().split()
        return {name: (root / "Annotations/480p" / name / "00000.png").read_bytes() for name in names}

    train, val = (first_masks(tmp_path / "more", split) for split in ("train", "val"))
    assert not set(train) & set(val)
    assert len({*train.values(), *val.values()}) == 6
    assert first_masks(tmp_path / "few", "val") == val


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def interrupted(path, *_):
        written.append(path)
        if len(written) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(synthetic_files, "write_mask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_davis(tmp_path / "DAVIS", SMALL)
    assert len(written) == 6
    assert list(tmp_path.iterdir()) == []


def test_a_second_call_leaves_the_files_alone(tmp_path):
    root = tmp_path / "DAVIS"
    root.mkdir()  # an empty folder is as good as none
    write_davis(root, SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write_davis(root, SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert len(before) > 2 * 4 * 5


def test_a_process_that_was_slower_leaves_the_set_of_the_faster_one(tmp_path, monkeypatch):
    root = tmp_path / "DAVIS"
    write = synthetic_files._write

    def overtaken(draft, settings):
        write(draft, settings)
        write(root, settings)
        (root / "first").touch()

    monkeypatch.setattr(synthetic_files, "_write", overtaken)
    write_davis(root, SMALL)
    assert (root / "first").exists()
    assert list(tmp_path.iterdir()) == [root]


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something else is there") as error:
        write_davis(tmp_path, SMALL)
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value).splitlines()) <= 8
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_place_where_no_folder_can_be_is_refused(tmp_path):
    (tmp_path / "film.mp4").write_text("mine")
    with pytest.raises(ConfigError, match=r"film\.mp4 cannot hold a synthetic set: File exists"):
        write_davis(tmp_path / "film.mp4" / "DAVIS", SMALL)
    assert (tmp_path / "film.mp4").read_text() == "mine"


def test_a_set_of_other_settings_is_refused(tmp_path):
    root = tmp_path / "DAVIS"
    write_davis(root, SMALL)
    with pytest.raises(ConfigError) as error:
        write_davis(root, SyntheticSettings(train=3, val=2, frames=5, height=64, width=80))
    assert "Found:    frames=4\nExpected: frames=5" in str(error.value)
    assert json.loads((root / "synthetic.json").read_text())["frames"] == 4


def test_a_set_from_before_crossings_is_accepted_where_none_are_asked_for(tmp_path):
    root = tmp_path / "DAVIS"
    write_davis(root, SMALL)
    record = root / "synthetic.json"
    settings = json.loads(record.read_text())
    assert settings["difficulty"].pop("crossing") == 0
    record.write_text(json.dumps(settings))
    before = record.read_bytes()
    write_davis(root, SMALL)
    with pytest.raises(ConfigError, match="other settings"):
        write_davis(root, replace(SMALL, difficulty=CROSSING))
    assert record.read_bytes() == before


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"frames": 2}, {"height": 63}, {"seed": -1}])
def test_settings_that_cannot_be_rendered_are_refused(wrong):
    with pytest.raises(ConfigError, match="xpected"):
        SyntheticSettings(**wrong)


def test_the_data_module_writes_its_set_and_reads_it(tmp_path):
    data = Synthetic(tmp_path, SMALL, batch_size=2, workers=0)
    data.prepare_data()
    data.setup("fit")
    (first, second) = data.val_dataloader()
    assert (first.video.name, second.video.name) == ("synthetic-val-000", "synthetic-val-001")
    truth = render_clip(0, FIRST_VAL_INDEX, frames=4, height=64, width=80)
    assert first.truth is not None
    assert np.array_equal(first.truth.read(2), truth.masks[2])
    assert np.array_equal(first.video.prompts[0], truth.masks[0])
    assert len(first.video.frames) == 4


def test_the_data_module_refuses_data_of_somebody_else(tmp_path):
    (tmp_path / "DAVIS/JPEGImages/480p").mkdir(parents=True)
    with pytest.raises(ConfigError, match="something else is there"):
        Synthetic(tmp_path, SMALL).prepare_data()


def test_yaml_reaches_every_setting_and_a_typo_is_refused(capsys):
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    words = ["--data=datamodules.Synthetic", "--data.settings.train=5", "--data.settings.difficulty.speed=0.5"]
    data = parser.instantiate_classes(parser.parse_args([*words, "--data.workers=0"])).data
    assert isinstance(data, Synthetic)
    assert (data.settings.train, data.settings.difficulty.speed, data.workers) == (5, 0.5, 0)
    with pytest.raises(SystemExit):
        parser.parse_args([*words, "--data.wrokers=0"])
    assert "wrokers" in capsys.readouterr().err


def test_data_demo_writes_a_set_and_says_what_to_do_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["demo", "my data", "--layout", "davis", "--seed", "3"])
    assert "lightning_vos fit --config configs/mavos_r50.yaml --data.root 'my data'\n" in capsys.readouterr().out
    assert json.loads(Path("my data/DAVIS/synthetic.json").read_text())["seed"] == 3
    with pytest.raises(ConfigError, match="seed=3"):
        main(["demo", "my data"])
    with pytest.raises(ConfigError, match="layout 'ytvos'"):
        main(["demo", "elsewhere", "--layout=ytvos"])
    assert not Path("elsewhere").exists()


def test_data_demo_in_the_recipes_own_folder_needs_no_root(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["demo", "data"])
    out = capsys.readouterr().out
    assert out.endswith("  lightning_vos fit --config configs/mavos_r50.yaml\n")
    assert "synthetic" in out


def test_the_command_never_imports_torch():
    code = "import sys, lightning_vos.commands.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
