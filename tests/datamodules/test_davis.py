from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import DAVIS
from lightning_vos.errors import DatasetNotFoundError, MaskError
from lightning_vos.metrics.sequence import Plan

REAL = Path(__file__).parents[2] / "../shared/data/real"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no real samples at ../shared/data/real")


@pytest.fixture
def davis(tmp_path, write_video, moving):
    """Writes `sequences` (name -> number of masks) of six frames and a list of them."""

    def make(split, sequences, *, year=2017, annotations="Annotations"):
        folder = tmp_path / "DAVIS"
        for name, count in sequences.items():
            labels = dict(list(moving(6, 2).items())[:count])
            write_video(folder / "JPEGImages/480p" / name, folder / annotations / "480p" / name, labels, 6)
        lists = folder / "ImageSets" / str(year)
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(sequences))
        return folder

    return make


def names(data, split):
    return [sequence.name for sequence in data.sequences(split)]


def refused(error_type, call):
    with pytest.raises(error_type) as error:
        call()
    text = str(error.value)
    assert len(text.splitlines()) <= 8
    return text


@pytest.mark.parametrize("parent", [False, True])
def test_root_is_the_folder_or_its_parent(davis, parent):
    folder = davis("train", {"b": 6, "a": 6})
    data = DAVIS(folder.parent if parent else folder)
    assert names(data, "train") == ["b", "a"]
    assert data.describe("train") == ("DAVIS 2017 train", folder)


def test_2017_has_objects_and_2016_their_union(davis):
    folder = davis("val", {"a": 6})
    davis("val", {"a": 6}, year=2016)
    objects = DAVIS(folder).sequences("val")[0].load(0)
    union = DAVIS(folder, year=2016).sequences("val")[0].load(0)
    assert objects.truth.plan == Plan((1, 2, 3, 4), {1: {1, 2, 3, 4}, 2: {1, 2, 3, 4}})
    assert union.truth.plan == Plan((1, 2, 3, 4), {1: {1, 2, 3, 4}})
    assert np.array_equal(union.video.prompts[0], objects.video.prompts[0] > 0)
    assert np.array_equal(union.truth.read(3), objects.truth.read(3) > 0)


def test_the_grey_masks_of_2016_count_255_as_the_object(davis):
    folder = davis("val", {"a": 6}, year=2016)
    for path in (folder / "Annotations/480p/a").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, 255, 0).astype(np.uint8)).save(path)
    item = DAVIS(folder, year=2016).sequences("val")[0].load(0)
    assert np.unique(item.video.prompts[0]).tolist() == [0, 1]


def test_the_old_lists_of_pairs_are_read(davis):
    folder = davis("val", {"a": 6, "b": 6}, year=2016)
    (folder / "ImageSets/2016/val.txt").unlink()
    pairs = folder / "ImageSets/480p/val.txt"
    pairs.parent.mkdir()
    pairs.write_text(
        "".join(f"/JPEGImages/480p/{s}/{i:05d}.jpg /Annotations/480p/{s}/{i:05d}.png\n" for s in "ba" for i in range(6))
    )
    assert names(DAVIS(folder, year=2016), "val") == ["b", "a"]
    assert "splits there: none" in refused(DatasetNotFoundError, lambda: names(DAVIS(folder), "val"))
    pairs.write_text("/JPEGImages/480p/../00000.jpg /Annotations/480p/../00000.png\n")
    assert "'..'" in refused(DatasetNotFoundError, lambda: names(DAVIS(folder, year=2016), "val"))
    pairs.write_bytes(b"/JPEGImages/480p/caf\xe9/00000.jpg /Annotations/480p/caf\xe9/00000.png\n")
    assert f"{pairs} names the sequence 'caf\ufffd'" in refused(
        DatasetNotFoundError, lambda: names(DAVIS(folder, year=2016), "val")
    )


def test_masks_of_2017_beside_those_of_2016_are_preferred(davis):
    folder = davis("val", {"a": 6})
    davis("val", {"a": 6}, annotations="Annotations_2017")
    for year, place in ((2017, "Annotations_2017"), (2016, "Annotations")):
        davis("val", {"a": 6}, year=year)
        masks = DAVIS(folder, year=year).sequences("val")[0].masks
        assert masks[0] == folder / place / "480p/a/00000.png"


def test_first_masks_alone_are_tested_without_truth(davis):
    folder = davis("test-dev", {"a": 1})
    data = DAVIS(folder, test_split="test-dev", train_split="test-dev")
    item = data.sequences("test")[0].load(0)
    assert item.truth is None
    assert list(item.video.prompts) == [0]
    assert "missing: 00001, 00002, 00003, ..." in refused(MaskError, lambda: data.sequences("train"))


def test_a_copy_that_lacks_masks_is_refused(davis):
    folder = davis("val", {"a": 6})
    (folder / "Annotations/480p/a/00004.png").unlink()
    text = refused(MaskError, lambda: DAVIS(folder).sequences("val"))
    assert "5 masks for the 6 frames" in text
    assert "missing: 00004" in text


@pytest.mark.parametrize("there", [None, (), ("x.zip", "y.zip")])
def test_without_data_it_says_what_is_missing_and_what_to_do(tmp_path, there):
    root = tmp_path / "data"
    if there is not None:
        root.mkdir()
        for name in there:
            (root / name).touch()
    text = refused(DatasetNotFoundError, lambda: DAVIS(root).sequences("train"))
    assert f"data.root={root}" in text
    assert "DAVIS/JPEGImages/480p/<sequence>/*.jpg" in text
    assert "https://davischallenge.org" in text
    assert f"lightning_vos data demo {root} --layout davis" in text
    assert {None: "no such folder", (): "an empty folder"}.get(there, "x.zip, y.zip") in text


def test_a_split_that_is_not_there_is_named_beside_those_that_are(davis):
    davis("train", {"a": 6})
    folder = davis("val", {"a": 6})
    text = refused(DatasetNotFoundError, lambda: DAVIS(folder, test_split="test-dev").sequences("test"))
    assert "'test-dev'" in text
    assert "splits there: train, val" in text


@pytest.mark.parametrize("name", ["../a", "/a", ".."])
def test_a_list_cannot_lead_outside(davis, name):
    folder = davis("val", {"a": 6})
    (folder / "ImageSets/2017/val.txt").write_text(name)
    assert repr(name) in refused(DatasetNotFoundError, lambda: DAVIS(folder).sequences("val"))


def test_a_listed_sequence_that_is_not_there_is_named(davis):
    folder = davis("val", {"a": 6})
    (folder / "ImageSets/2017/val.txt").write_text("a\nbear\n")
    text = refused(DatasetNotFoundError, lambda: DAVIS(folder).sequences("val"))
    assert "val.txt names the sequence 'bear'" in text


@needs_real
def test_the_real_samples_are_read():
    real = REAL.resolve()
    assert names(DAVIS(real), "val") == ["blackswan", "car-shadow"]
    videos = [sequence.load(i) for i, sequence in enumerate(DAVIS(real / "DAVIS", year=2016).sequences("val"))]
    assert [(item.video.name, len(item.video.frames), len(item.truth.plan.frames)) for item in videos] == [
        ("blackswan", 50, 48),
        ("car-shadow", 40, 38),
        ("motocross-jump", 40, 38),
    ]
    for item in videos:
        assert item.video.size == (480, 854)
        assert set(item.truth.plan.objects) == {1}
        assert np.unique(item.video.prompts[0]).tolist() == [0, 1]
