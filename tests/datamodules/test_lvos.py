import json
import shutil

import numpy as np
import pytest
import torch

from datamodules import LVOS
from datamodules.samplers import ClipSampler
from datamodules.synthetic_files import SyntheticSettings
from datamodules.synthetic_layouts import write_synthetic_lvos
from datamodules.transforms import ClipTransform
from lightning_vos.errors import DatasetNotFoundError, MaskError
from lightning_vos.io.masks import read_mask
from lightning_vos.metrics.sequence import Group

SMALL = {
    "batch_size": 2,
    "workers": 2,
    "sampler": ClipSampler(length=3, min_pixels=20),
    "transform": ClipTransform(crop=48, short_side=48, min_pixels=10),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_synthetic_lvos(root / "LVOS", SyntheticSettings(train=2, val=3, frames=12, height=64, width=80))
    return root


@pytest.fixture
def data(whole, tmp_path):
    """A copy to change."""
    shutil.copytree(whole, tmp_path / "data")
    return tmp_path / "data"


def loaded(data, split="test"):
    return [sequence.load(number) for number, sequence in enumerate(data.find(split))]


def shown(video):
    return {frame: set(np.unique(prompt).tolist()) - {0} for frame, prompt in video.prompts.items()}


def meta_of(folder):
    (file,) = folder.glob("*_meta.json")
    return file, json.loads(file.read_text())


def test_an_object_is_given_where_its_range_starts_and_scored_within_it(whole):
    _, meta = meta_of(whole / "LVOS/valid")
    late = 0
    for _, video, truth in loaded(LVOS(whole)):
        firsts, scored = {}, {}
        for object_id, entry in meta["videos"][video.name]["objects"].items():
            first = video.frame_names.index(entry["frame_range"]["start"])
            firsts.setdefault(first, set()).add(int(object_id))
            scored[int(object_id)] = set(range(first + 1, first + int(entry["frame_range"]["frame_nums"]) - 1))
        assert shown(video) == firsts
        assert truth.plan.objects == scored
        assert video.frame_names[:2] == ["00000001", "00000006"]
        assert np.array_equal(truth.read(2), read_mask(whole / f"LVOS/valid/Annotations/{video.name}/00000011.png"))
        late += len(firsts) > 1
    assert late


def test_videos_are_told_apart_where_unseen_ones_are_listed(whole, data):
    unseen = (whole / "LVOS/valid/unseen_videos.txt").read_text().split()
    for _, video, truth in loaded(LVOS(whole)):
        assert set(truth.plan.groups.values()) == {Group.UNSEEN if video.name in unseen else Group.SEEN}
    (data / "LVOS/valid/unseen_videos.txt").unlink()
    assert not any(truth.plan.groups for _, _, truth in loaded(LVOS(data)))


@pytest.mark.parametrize("numbers", [str, int])
def test_the_packages_of_both_versions_are_read(data, numbers):
    folder = data / "LVOS"
    (folder / "valid").rename(folder / "val")
    folder.rename(data / "LVOS_v2")
    file, meta = meta_of(data / "LVOS_v2/val")
    for video in meta["videos"].values():
        for entry in video["objects"].values():
            entry["frame_range"] = {key: numbers(value) for key, value in entry["frame_range"].items()}
    file.unlink()
    file.with_name("val_meta.json").write_text(json.dumps(meta))
    file.with_name("val_expression_meta.json").write_text("{}")
    file.with_name("val_meta_attribute.json").write_text("{}")
    module = LVOS(data, version=2)
    assert len(module.find("val")) == 3
    assert module.describe("val") == ("LVOS v2 valid", data / "LVOS_v2")


def test_a_copy_with_converted_masks_has_no_truth(data):
    copy = data / "LVOS/val_480p"
    (data / "LVOS/test").rename(copy)
    (copy / "Annotations").rename(copy / "Annotations_convert")
    prompts = [shown(video) for _, video, truth in loaded(LVOS(data, test_split="val_480p")) if truth is None]
    assert len(prompts) == 3
    assert any(len(prompt) > 1 for prompt in prompts)
    meta_of(copy)[0].unlink()
    with pytest.raises(DatasetNotFoundError, match=r"has no val_480p_meta\.json(?s:.*)needs that of the original"):
        LVOS(data, test_split="val_480p").find("test")


def test_test_has_a_server_and_no_truth(whole):
    module = LVOS(whole, test_split="test")
    assert all(truth is None for _, _, truth in loaded(module))
    assert module.server() == ("lvos", whole / "LVOS/test", "test")
    assert LVOS(whole).server() is None


def test_loaders_give_clips_and_videos(whole, monkeypatch):
    def batch(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        module = LVOS(whole, **SMALL)
        module.setup("fit")
        return module, next(iter(module.train_dataloader()))

    module, clips = batch("1")
    assert clips.frames.shape == (2, 3, 3, 48, 48)
    assert torch.equal(clips.frames, batch("1")[1].frames)
    assert not torch.equal(clips.frames, batch("2")[1].frames)
    module.setup("test")
    assert len(list(module.val_dataloader())) == len(list(module.test_dataloader())) == 3
    assert [item.video.name for item in module.predict_dataloader()] == sorted(
        meta_of(whole / "LVOS/valid")[1]["videos"]
    )


def test_what_is_missing_is_named(data):
    path = sorted((data / "LVOS/valid/Annotations").glob("*/00000011.png"))[0]
    path.unlink()
    with pytest.raises(MaskError, match=r"lacks masks(?s:.*)missing: 00000011"):
        LVOS(data).find("test")
    with pytest.raises(DatasetNotFoundError, match=r"no split 'vla'(?s:.*): test, train, valid\n  expected: vla/"):
        LVOS(data, test_split="vla").find("test")
    with pytest.raises(DatasetNotFoundError, match=r"lightning_vos data demo .*none --layout lvos") as error:
        LVOS(data / "none").find("test")
    assert len(str(error.value).splitlines()) <= 8


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is no JSON"),
        (b'{"videos": {}}', "no video"),
        (b'{"videos": {"v": {"objects": {}}}}', "no objects of video v"),
        (b'{"videos": {"..": {"objects": {}}}}', "'..'"),
        (b'{"videos": {"v": {"objects": {"1": {"frame_range": {"start": "x"}}}}}}', "frame_range"),
        (b'{"videos": {"v": {"objects": {"1": {"frame_range": {"start": 1, "end": 6, "frame_nums": 2}}}}}}', "'v'"),
    ],
)
def test_a_meta_file_that_cannot_be_right_is_named(data, content, words):
    meta_of(data / "LVOS/valid")[0].write_bytes(content)
    with pytest.raises(DatasetNotFoundError) as error:
        LVOS(data).find("test")
    assert words in str(error.value)
    assert "valid_meta.json" in str(error.value)
