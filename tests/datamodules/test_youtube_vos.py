import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import YouTubeVOS
from datamodules.samplers import ClipSampler
from datamodules.synthetic_files import SyntheticSettings
from datamodules.synthetic_layouts import write_synthetic_youtube_vos
from datamodules.transforms import ClipTransform
from lightning_vos.errors import DatasetNotFoundError, FrameError, MaskError, UserError
from lightning_vos.evaluation.holdout import is_held_out
from lightning_vos.io.masks import read_mask, write_mask
from lightning_vos.metrics.sequence import Group, Plan

REAL = Path(__file__).parents[2] / "../shared/data/real"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no real samples at ../shared/data/real")
SMALL = {
    "batch_size": 2,
    "workers": 0,
    "sampler": ClipSampler(length=3, min_pixels=20),
    "transform": ClipTransform(crop=48, short_side=48, min_pixels=10),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_synthetic_youtube_vos(root / "YouTubeVOS", SyntheticSettings(train=3, val=2, frames=21, height=64, width=80))
    return root


@pytest.fixture
def data(whole, tmp_path):
    """A copy to change."""
    shutil.copytree(whole, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def made(tmp_path, write_video, moving):
    """Writes a `train` of videos (name -> label maps by frame) whose meta lists objects where they first show."""

    def make(videos, count=16):
        folder, meta = tmp_path / "YouTubeVOS/train", {}
        for name, labels in videos.items():
            write_video(folder / "JPEGImages" / name, folder / "Annotations" / name, labels, count)
            for image in (folder / "JPEGImages" / name).iterdir():
                if int(image.stem) not in labels:
                    image.unlink()
            objects = {}
            for frame, mask in sorted(labels.items()):
                for object_id in set(np.unique(mask).tolist()) - {0}:
                    objects.setdefault(object_id, [f"{later:05}" for later in sorted(labels) if later >= frame])
            meta[name] = {
                "objects": {str(i): {"category": "cat", "frames": frames} for i, frames in sorted(objects.items())}
            }
        (folder / "meta.json").write_text(json.dumps({"videos": meta}))
        return tmp_path

    return make


def loaded(data, split="test"):
    return [sequence.load(number) for number, sequence in enumerate(data.find(split))]


def shown(video):
    return {frame: set(np.unique(prompt).tolist()) - {0} for frame, prompt in video.prompts.items()}


def refused(error_type, call):
    with pytest.raises(error_type) as error:
        call()
    text = str(error.value)
    assert len(text.splitlines()) <= 8
    return text


@pytest.mark.parametrize("folder", ["YouTubeVOS", "YouTubeVOS_2019", "."])
def test_root_is_the_folder_or_its_parent(data, folder):
    if folder == "YouTubeVOS_2019":
        shutil.copytree(data / "YouTubeVOS", data / folder)
        shutil.rmtree(data / "YouTubeVOS/train")
    root = data / "YouTubeVOS" if folder == "." else data
    assert len(YouTubeVOS(root).find("train")) == 3


def test_the_training_videos_are_parted_by_their_names(whole):
    names = {
        part: [sequence.name for sequence in YouTubeVOS(whole, val_split=part).find("val")]
        for part in ("train", "holdout_train", "holdout_val")
    }
    assert len(names["holdout_train"]) == 3
    assert len(names["holdout_val"]) == 2
    assert all(is_held_out(name) for name in names["holdout_val"])
    assert sorted(names["holdout_train"] + names["holdout_val"]) == names["train"]


@pytest.mark.parametrize("all_frames", [False, True])
def test_an_object_is_given_where_meta_lists_it_first(whole, all_frames):
    data = YouTubeVOS(whole, all_frames=all_frames, test_split="holdout_val")
    meta = json.loads((whole / "YouTubeVOS/train/meta.json").read_text())["videos"]
    step, late = 5 if all_frames else 1, 0
    for number, video, truth in loaded(data):
        assert number in (0, 1)
        objects = {int(i): entry["frames"] for i, entry in meta[video.name]["objects"].items()}
        assert len(video.frames) == 4 * step + 1
        assert video.frame_names[step] == "00005"
        firsts = {}
        for object_id, frames in objects.items():
            firsts.setdefault(int(frames[0]) // 5 * step, set()).add(object_id)
        assert shown(video) == firsts
        late += len(firsts) > 1
        assert truth.plan.objects == {
            object_id: {int(frame) // 5 * step for frame in frames[1:]} for object_id, frames in objects.items()
        }
        assert np.array_equal(
            truth.read(3 * step), read_mask(whole / f"YouTubeVOS/train/Annotations/{video.name}/00015.png")
        )
    assert late


@pytest.mark.parametrize("all_frames", [False, True])
def test_the_first_listed_frame_is_the_first_in_time_however_they_are_listed(data, all_frames):
    def plans():
        found = loaded(YouTubeVOS(data, all_frames=all_frames, test_split="holdout_val"))
        return [(video.frame_names, shown(video), truth.plan) for _, video, truth in found]

    expected = plans()
    file = data / "YouTubeVOS/train/meta.json"
    meta = json.loads(file.read_text())
    for video in meta["videos"].values():
        for entry in video["objects"].values():
            entry["frames"] = [*entry["frames"][::-1], entry["frames"][-1]]
    file.write_text(json.dumps(meta))
    assert plans() == expected


def test_categories_are_told_apart_where_unseen_ones_are_named(whole, data):
    groups = [
        group
        for _, _, truth in loaded(YouTubeVOS(whole, test_split="holdout_val"))
        for group in truth.plan.groups.values()
    ]
    assert {Group.SEEN, Group.UNSEEN} == set(groups)
    (data / "YouTubeVOS/train/unseen.json").unlink()
    assert not any(truth.plan.groups for _, _, truth in loaded(YouTubeVOS(data, test_split="holdout_val")))


def test_a_split_of_prompts_alone_has_no_truth_but_a_server(whole):
    data = YouTubeVOS(whole)
    assert all(truth is None for _, _, truth in loaded(data))
    assert any(len(video.prompts) > 1 for _, video, _ in loaded(data))
    assert data.server() == ("youtube_vos", whole / "YouTubeVOS/valid", None)
    assert YouTubeVOS(whole, test_split="holdout_val").server() is None


def test_ids_have_gaps_and_begin_anywhere(made, moving):
    masks = {frame: moving(16, 2)[frame] for frame in (0, 5, 10, 15)}
    late = {
        frame: np.where(mask == 2, 255 if frame > 4 else 0, mask * 7).astype(np.uint8) for frame, mask in masks.items()
    }
    ((_, video, truth),) = loaded(YouTubeVOS(made({"v": late}), test_split="train"))
    assert shown(video) == {0: {7}, 1: {255}}
    assert truth.plan == Plan((1, 2, 3), {7: {1, 2, 3}, 255: {2, 3}})
    assert set(np.unique(truth.read(2)).tolist()) == {0, 7, 255}


def test_all_frames_are_those_from_the_first_listed_to_the_last(data):
    folder = data / "YouTubeVOS"
    meta = json.loads((folder / "valid/meta.json").read_text())
    name, video = next(iter(meta["videos"].items()))
    for entry in video["objects"].values():
        entry["frames"] = ["00005", "00010", "00015"]
    (folder / "valid/meta.json").write_text(json.dumps({"videos": {name: video}}))
    for path in (folder / f"valid/Annotations/{name}").iterdir():
        path.unlink()
    mask = np.zeros((64, 80), np.uint8)
    for number, object_id in enumerate(video["objects"]):
        mask[:, 8 * number : 8 * number + 4] = int(object_id)
    write_mask(folder / f"valid/Annotations/{name}/00005.png", mask)
    ((_, every, _),) = loaded(YouTubeVOS(data, all_frames=True))
    assert list(every.frame_names) == [f"{frame:05}" for frame in range(5, 16)]
    assert list(every.prompts) == [0]
    ((_, fifth, _),) = loaded(YouTubeVOS(data))
    assert list(fifth.frame_names) == ["00000", "00005", "00010", "00015", "00020"]
    assert list(fifth.prompts) == [1]


def test_short_and_blank_videos_are_not_trained_on(made, moving, caplog):
    masks = moving(16, 1)
    blank = "f8af30d4b6"
    root = made({"one": {0: masks[0]}, "two": {0: masks[0], 5: masks[5]}, blank: {0: masks[0], 5: masks[5]}})
    with caplog.at_level("INFO"):
        assert [sequence.name for sequence in YouTubeVOS(root, train_split="train").find("train")] == ["two"]
    assert "left out are 1 videos of mostly blank masks (data.leave_out_blank) and 1 with fewer" in caplog.text
    every = YouTubeVOS(root, train_split="train", leave_out_blank=False).find("train")
    assert [sequence.name for sequence in every] == [blank, "two"]
    assert len(YouTubeVOS(root, test_split="train").find("test")) == 3


def test_frames_are_annotated_every_fifth(whole):
    assert {sequence.spacing for sequence in YouTubeVOS(whole).find("train")} == {5}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_seed_decides_the_clips(whole, monkeypatch, workers):
    def clip(seed, workers=workers):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        data = YouTubeVOS(whole, **SMALL | {"workers": workers})
        data.setup("fit")
        return next(iter(data.train_dataloader()))

    first = clip("1")
    assert first.frames.shape == (2, 3, 3, 48, 48)
    assert all(torch.equal(one, two) for one, two in zip(first, clip("1", 0), strict=True))
    assert not torch.equal(first.frames, clip("2").frames)


def test_loaders_give_the_videos_of_their_splits(whole):
    data = YouTubeVOS(whole, **SMALL)
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    held_out = [sequence.name for sequence in data.find("val")]
    assert [item.video.name for item in data.val_dataloader()] == held_out
    assert [item.truth is None for item in data.val_dataloader()] == [False, False]
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        assert [item.truth is None for item in loader] == [True, True]


def test_a_copy_without_a_listed_mask_is_refused(data):
    masks = data / "YouTubeVOS/train/Annotations"
    path = sorted(masks.glob("*/00015.png"))[0]
    path.unlink()
    text = refused(MaskError, lambda: YouTubeVOS(data, train_split="train").find("train"))
    assert str(path.parent) in text
    assert "missing: 00015 (1)" in text
    assert "meta.json" in text


def test_a_missing_prompt_is_refused(data):
    path = sorted((data / "YouTubeVOS/valid/Annotations").glob("*/00000.png"))[0]
    path.unlink()
    assert "missing: 00000" in refused(MaskError, lambda: YouTubeVOS(data).find("test"))


def test_a_prompt_that_shows_nothing_is_said(data):
    path = sorted((data / "YouTubeVOS/valid/Annotations").glob("*/00000.png"))[0]
    mask = read_mask(path)
    kept = int(mask.max())
    write_mask(path, np.where(mask == kept, mask, 0))
    meta = data / "YouTubeVOS/valid/meta.json"
    content = json.loads(meta.read_text())
    content["videos"][path.parent.name]["objects"]["9"] = {"frames": ["00000", "00005"]}
    meta.write_text(json.dumps(content))
    number = sorted(content["videos"]).index(path.parent.name)
    with pytest.warns(UserWarning, match=r"00000\.png does not show objects \[.*9\], which are listed to begin there"):
        video = YouTubeVOS(data).find("test")[number].load(0).video
    assert kept in shown(video)[0]
    for mask_path in path.parent.iterdir():
        write_mask(mask_path, np.zeros((64, 80), np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "No object of" in refused(MaskError, lambda: YouTubeVOS(data).find("test")[number].load(0))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["meta.json is no JSON"]),
        (b'{"videos": []}', ["meta.json is not as expected"]),
        (b'{"videos": {"../v": {"objects": {}}}}', ["meta.json", "'../v'"]),
        (b'{"videos": {"v": {"objects": {"256": {"frames": ["00000"]}}}}}', ["meta.json", "256"]),
        (b'{"videos": {"v": {"objects": {"1": {"frames": ["00000"]}}}}}', ["'v'", "no folder"]),
        (b'{"videos": {"v": {"objects": {"1": {"frames": []}}}}}', ["no frames of any object of video v"]),
    ],
)
def test_a_meta_file_that_cannot_be_right_is_named(data, content, words):
    (data / "YouTubeVOS/valid/meta.json").write_bytes(content)
    text = refused(DatasetNotFoundError, lambda: YouTubeVOS(data).find("test"))
    assert all(word in text for word in words)


def test_a_listed_frame_that_is_not_there_is_named(data):
    path = sorted((data / "YouTubeVOS/valid/JPEGImages").glob("*/00010.jpg"))[0]
    path.unlink()
    for mask in (data / f"YouTubeVOS/valid/Annotations/{path.parent.name}").glob("00010.png"):
        mask.unlink()
    text = refused(FrameError, lambda: YouTubeVOS(data).find("test"))
    assert "meta.json lists frame 00010 of" in text
    assert path.parent.name in text


@pytest.mark.parametrize(
    ("renamed", "words"),
    [
        ("cover.jpg", ["cover.jpg", "no number"]),
        ("7.jpg", ["do not sort", "7.jpg"]),
    ],
)
def test_frames_that_are_not_numbered_in_order_are_named(data, renamed, words):
    folder = sorted((data / "YouTubeVOS/valid/JPEGImages").iterdir())[0]
    shutil.copy(folder / "00005.jpg", folder / renamed)
    text = refused(FrameError, lambda: YouTubeVOS(data).find("test"))
    assert all(word in text for word in [*words, folder.name])


def test_without_the_dataset_or_the_split_it_says_what_to_do(tmp_path, data):
    text = refused(DatasetNotFoundError, lambda: YouTubeVOS(tmp_path / "none").find("train"))
    assert "YouTube-VOS 2019 is not at data.root=" in text
    assert "https://youtube-vos.org" in text
    assert f"lightning_vos data demo {tmp_path / 'none'} --layout youtube_vos" in text
    shutil.rmtree(data / "YouTubeVOS/valid")
    text = refused(DatasetNotFoundError, lambda: YouTubeVOS(data).find("test"))
    assert "splits there: train, holdout_train, holdout_val" in text
    shutil.rmtree(data / "YouTubeVOS/train_all_frames")
    text = refused(DatasetNotFoundError, lambda: YouTubeVOS(data, all_frames=True).find("val"))
    assert "--data.all_frames=false" in text


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("kind", ["*.jpg", "*.png"])
@pytest.mark.parametrize("workers", [0, 1])
def test_training_stops_at_a_broken_file_or_skips_and_counts_it(data, kind, workers, recwarn):
    folder = data / "YouTubeVOS/train"
    broken = YouTubeVOS(data).find("train")[0].name
    for path in (folder / ("JPEGImages" if kind == "*.jpg" else "Annotations") / broken).glob(kind):
        truncate(path)

    def first_batches(**options):
        videos = YouTubeVOS(data, **SMALL | {"workers": workers}, **options)
        videos.setup("fit")
        loader = videos.train_dataloader()
        batches = iter(loader)
        return loader.dataset, [next(batches) for _ in range(6)]

    with pytest.raises(UserError, match=broken):
        first_batches()
    dataset, clips = first_batches(skip_broken=True)
    assert dataset.broken.tolist() == [True, False, False]
    if not workers:
        assert any("skipped, 1 of 3 so far" in str(w.message) and broken in str(w.message) for w in recwarn)
    _, again = first_batches(skip_broken=True)
    assert all(torch.equal(one.frames, other.frames) for one, other in zip(clips, again, strict=True))


def test_training_leaves_out_a_video_that_lacks_files_if_asked_to(data):
    gone = YouTubeVOS(data).find("train")[0].name
    shutil.rmtree(data / "YouTubeVOS/train/JPEGImages" / gone)
    with pytest.raises(DatasetNotFoundError, match=gone):
        YouTubeVOS(data).find("train")
    with pytest.warns(UserWarning, match=rf"1 of 3 training sequences are broken and left out; the first: .*{gone}"):
        assert len(YouTubeVOS(data, skip_broken=True).find("train")) == 2
    for path in (data / "YouTubeVOS/valid/JPEGImages").iterdir():
        shutil.rmtree(path)
    with pytest.raises(DatasetNotFoundError):  # nothing is skipped that is scored
        YouTubeVOS(data, skip_broken=True).find("test")


@needs_real
@pytest.mark.parametrize("all_frames", [False, True])
def test_the_real_sample_has_a_mask_of_another_size(all_frames):
    (judo,) = YouTubeVOS(REAL, all_frames=all_frames).find("test")
    text = refused(MaskError, lambda: judo.load(0))
    assert "judo/00005.png" in text
    assert "853x480" in text
    ((_, video, truth),) = loaded(YouTubeVOS(REAL, all_frames=all_frames, resize_masks=True))
    assert truth is None
    listed = json.loads((REAL / "YouTubeVOS/valid/meta.json").read_text())["videos"]["judo"]["objects"]
    names = {video.frame_names[frame]: ids for frame, ids in shown(video).items()}
    assert names == {entry["frames"][0]: {int(i)} for i, entry in listed.items()}
    assert len(video.frames) == (16 if all_frames else len(list((REAL / "YouTubeVOS/valid/JPEGImages/judo").iterdir())))


def test_images_are_those_of_the_split(whole):
    ((_, video, _), *_) = loaded(YouTubeVOS(whole))
    with Image.open(whole / f"YouTubeVOS/valid/JPEGImages/{video.name}/00010.jpg") as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.equal(video.frames[2], expected)
