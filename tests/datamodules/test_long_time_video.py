import shutil

import numpy as np
import pytest

from datamodules import LongTimeVideo
from datamodules.synthetic_files import SyntheticSettings
from datamodules.synthetic_layouts import write_synthetic_long_time_video
from lightning_vos.errors import ConfigError, DatasetNotFoundError, FrameError, MaskError
from lightning_vos.io.masks import read_mask
from lightning_vos.metrics.sequence import Plan


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_synthetic_long_time_video(root / "LongTimeVideo", SyntheticSettings(val=2, frames=17, height=64, width=80))
    return root


@pytest.fixture
def data(whole, tmp_path):
    """A copy to change."""
    shutil.copytree(whole, tmp_path / "data")
    return tmp_path / "data/LongTimeVideo"


def test_all_foreground_is_one_object_in_a_few_annotated_frames(whole):
    for name, sequence in zip(("synthetic-000", "synthetic-001"), LongTimeVideo(whole).find("test"), strict=True):
        _, video, truth = sequence.load(0)
        assert (video.name, len(video.frames)) == (name, 17)
        assert list(video.prompts) == [0]
        masks = whole / "LongTimeVideo/Annotations" / name
        assert np.array_equal(video.prompts[0], read_mask(masks / "00000.png") > 0)
        annotated = (2, 4, 6, 8, 10, 12, 14)
        assert truth.plan == Plan(annotated, {1: set(annotated)})
        assert np.array_equal(truth.read(4), read_mask(masks / "00004.png") > 0)


def test_it_is_validated_and_tested_but_not_trained_on(whole):
    data = LongTimeVideo(whole)
    data.setup("validate")
    data.setup("test")
    assert [
        len(list(loader)) for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
    ] == [
        2,
        2,
        2,
    ]
    with pytest.raises(ConfigError, match="there to test on"):
        data.setup("fit")


@pytest.mark.parametrize("place", ["LongTimeVideo", "long_video", "."])
def test_root_is_the_folder_or_its_parent(data, place):
    if place == "long_video":
        data.rename(data.with_name(place))
    assert len(LongTimeVideo(data if place == "." else data.parent).find("test")) == 2


def test_videos_are_those_on_the_list_or_with_masks(data):
    (data / "ImageSets/val.txt").write_text("synthetic-001\n")
    assert [sequence.name for sequence in LongTimeVideo(data).find("test")] == ["synthetic-001"]
    shutil.rmtree(data / "ImageSets")
    assert [sequence.name for sequence in LongTimeVideo(data).find("test")] == ["synthetic-000", "synthetic-001"]


def test_what_is_missing_is_named(data):
    shutil.rmtree(data / "Annotations/synthetic-001")
    with pytest.raises(MaskError, match=r"val\.txt names the video 'synthetic-001'(?s:.*)no mask"):
        LongTimeVideo(data).find("test")
    shutil.rmtree(data / "JPEGImages/synthetic-000")
    with pytest.raises(DatasetNotFoundError, match=r"names the video 'synthetic-000', but there is no folder"):
        LongTimeVideo(data).find("test")
    (data / "ImageSets/val.txt").write_text("../synthetic-001\n")
    with pytest.raises(DatasetNotFoundError, match="not the name of a folder"):
        LongTimeVideo(data).find("test")
    with pytest.raises(DatasetNotFoundError, match=r"lightning_vos data demo .*none --layout long_time_video") as error:
        LongTimeVideo(data / "none").find("test")
    assert len(str(error.value).splitlines()) <= 8


def test_frames_that_would_be_taken_out_of_order_are_named(data):
    folder = data / "JPEGImages/synthetic-000"
    for path in list(folder.iterdir()):
        path.rename(folder / f"frame{int(path.stem)}.jpg")
    with pytest.raises(FrameError, match=r"do not sort as their numbers do: frame10\.jpg comes before frame2\.jpg"):
        LongTimeVideo(data).find("test")
