import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import preparing
from datamodules.checking import check
from datamodules.label_files import read_labels
from datamodules.synthetic_files import SyntheticSettings, write_davis
from lightning_vos.errors import ConfigError, DatasetNotFoundError, FrameError, MaskError
from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette, write_mask

REAL = Path(__file__).parents[2] / "../shared/data/real"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no real samples at ../shared/data/real")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("davis") / "DAVIS"
    write_davis(root, SyntheticSettings(train=1, val=1, frames=4, height=96, width=130))
    return root


def files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def refused(error_type, call, *words):
    with pytest.raises(error_type) as error:
        call()
    text = str(error.value)
    assert len(text.splitlines()) <= 8
    assert all(word in text for word in words), text


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tree_with_smaller_frames(written, tmp_path, workers):
    done = preparing.resize(written, tmp_path / "small", short_side=64, workers=workers)
    assert files(tmp_path / "small") == files(written)
    assert (done.written, done.kept) == (len(files(written)), 0)
    (report,) = check(tmp_path / "small", full=True)
    assert not report.findings
    for place in files(written):
        ours, source = tmp_path / "small" / place, written / place
        if place.endswith(".jpg"):
            expected = np.asarray(Image.open(source).resize((86, 64), Image.Resampling.BICUBIC)).astype(int)
            assert abs(np.asarray(Image.open(ours)) - expected).mean() < 3
        elif place.endswith(".png"):
            labels = read_mask(source)
            assert read_mask(ours).shape == (64, 86)
            assert set(np.unique(read_mask(ours))) <= set(np.unique(labels))
            assert (read_mask(ours) > 0).mean() == pytest.approx((labels > 0).mean(), abs=0.03)
            assert read_palette(ours) == read_palette(source)
        else:
            assert ours.read_bytes() == source.read_bytes()


def test_it_goes_on_and_keeps_what_is_there(written, tmp_path):
    target = tmp_path / "small"
    preparing.resize(written, target, short_side=64)
    gone = sorted(target.rglob("*.jpg"))[2]
    gone.unlink()
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*.*")}
    done = preparing.resize(written, target, short_side=64)
    assert (done.written, done.kept) == (1, len(files(written)) - 1)
    assert gone.is_file()
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    refused(ConfigError, lambda: preparing.resize(written, target, short_side=60), "remove what is there")
    sorted(target.rglob("*.jpg"))[0].write_bytes(b"no picture")
    refused(ConfigError, lambda: preparing.resize(written, target, short_side=64), "00000.jpg", "another content")


@pytest.mark.parametrize("pattern", ["*.jpg", "*.png"])
def test_a_file_of_the_right_size_and_another_content_is_not_kept(written, tmp_path, pattern):
    source, target = tmp_path / "DAVIS", tmp_path / "small"
    shutil.copytree(written, source)
    preparing.resize(source, target, short_side=64)
    corrected = sorted(source.rglob(pattern))[1]
    stat = corrected.stat()
    if pattern == "*.jpg":
        Image.fromarray(255 - np.asarray(Image.open(corrected))).save(corrected)
    else:
        write_mask(corrected, np.where(read_mask(corrected) > 0, 9, 0).astype(np.uint8))
    os.utime(corrected, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    old = target / corrected.relative_to(source)
    before = old.read_bytes()
    refused(ConfigError, lambda: preparing.resize(source, target, short_side=64), str(old))
    assert old.read_bytes() == before
    old.unlink()  # the remedy
    assert preparing.resize(source, target, short_side=64).written == 1
    assert old.read_bytes() != before


def test_frames_that_are_small_enough_stay_as_they_are(written, tmp_path):
    preparing.resize(written, tmp_path / "same")
    assert all(
        (tmp_path / "same" / place).read_bytes() == (written / place).read_bytes()
        for place in files(written)
        if place.endswith(".jpg")
    )
    (tmp_path / "same/README.txt").write_text("another")
    refused(ConfigError, lambda: preparing.resize(written, tmp_path / "same"), "README.txt", "another content")


def test_a_mask_of_another_size_gets_that_of_its_frame(written, tmp_path):
    root = tmp_path / "DAVIS"
    shutil.copytree(written, root)
    mask = sorted(root.rglob("*.png"))[0]
    write_mask(mask, read_mask(mask)[:, :-1])
    preparing.resize(root, tmp_path / "mended")
    assert read_mask(tmp_path / "mended" / mask.relative_to(root)).shape == (96, 130)
    assert not check(tmp_path / "mended")[0].findings


def test_a_broken_frame_is_not_handed_on(written, tmp_path):
    root = tmp_path / "DAVIS"
    shutil.copytree(written, root)
    frame = sorted(root.rglob("*.jpg"))[0]
    frame.write_bytes(frame.read_bytes()[:-300])
    for side in (64, 480):
        refused(FrameError, lambda side=side: preparing.resize(root, tmp_path / f"{side}", short_side=side), frame.name)
        assert not list((tmp_path / f"{side}").rglob(f"*{frame.name}"))


@pytest.mark.parametrize(
    "call",
    [
        preparing.resize,
        preparing.write_first_masks,
        preparing.write_index_masks,
    ],
)
def test_a_target_apart_from_the_source(written, tmp_path, call):
    refused(ConfigError, lambda: call(written, written / "inside"), "outside of it")
    refused(ConfigError, lambda: call(written, written), "outside of it")
    refused(DatasetNotFoundError, lambda: call(tmp_path / "gone", tmp_path / "target"), "gone")
    refused(DatasetNotFoundError, lambda: call(tmp_path, tmp_path.parent / "target"))
    (tmp_path / "file").touch()
    refused(ConfigError, lambda: call(written, tmp_path / "file"), "is a file")
    assert not (written / "inside").exists()


def test_first_masks(tmp_path):
    source = tmp_path / "dense/Annotations/a"
    frames = [[0, 0, 0], [0, 2, 255], [1, 2, 0], [1, 1, 0], [5, 2, 7]]
    palette = bytes(range(256)) * 3
    for number, row in enumerate(frames):
        write_mask(source / f"{number:05}.png", np.array([row, row]), palette)
    write_mask(tmp_path / "dense/Annotations/bare/00000.png", np.zeros((2, 3), np.uint8))
    done = preparing.write_first_masks(tmp_path / "dense", tmp_path / "first")
    assert files(tmp_path / "first") == ["a/00001.png", "a/00002.png", "a/00004.png"]
    rows = [read_mask(tmp_path / "first" / place)[0].tolist() for place in files(tmp_path / "first")]
    assert rows == [[0, 2, 0], [1, 0, 0], [5, 0, 7]]
    assert read_palette(tmp_path / "first/a/00001.png") == palette
    assert done == (3, 0, ["no mask of bare shows an object"])
    assert preparing.write_first_masks(tmp_path / "dense", tmp_path / "first", workers=2)[:2] == (0, 3)
    write_mask(tmp_path / "first/a/00002.png", np.ones((2, 3), np.uint8))
    refused(ConfigError, lambda: preparing.write_first_masks(tmp_path / "dense", tmp_path / "first"), "00002.png")


def colours(path, rows, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(rows, np.uint8), mode=None).convert(mode).save(path)


def test_masks_of_colours(tmp_path):
    black, red, blue = [0, 0, 0], [255, 0, 0], [1, 2, 3]
    colours(tmp_path / "in/a/0.png", [[black, blue]])
    colours(tmp_path / "in/a/1.png", [[red, blue]])
    colours(tmp_path / "in/b/0.png", [[red, black]], "RGBA")
    done = preparing.write_index_masks(tmp_path / "in", tmp_path / "out", workers=2)
    read = {place: read_mask(tmp_path / "out" / place).tolist() for place in files(tmp_path / "out")}
    assert read == {"a/0.png": [[0, 1]], "a/1.png": [[2, 1]], "b/0.png": [[1, 0]]}
    assert done.lines == ["a: 1 is rgb(1, 2, 3), 2 is rgb(255, 0, 0)", "b: 1 is rgb(255, 0, 0)"]
    assert preparing.write_index_masks(tmp_path / "in", tmp_path / "out")[:2] == (0, 3)


def test_a_single_picture_of_colours(tmp_path):
    colours(tmp_path / "in/painted.png", [[[0, 0, 0], [9, 8, 7]]])
    colours(tmp_path / "in/other.png", [[[0, 0, 0], [1, 2, 3]]])
    done = preparing.write_index_masks(tmp_path / "in/painted.png", tmp_path / "out")
    assert done == (1, 0, [".: 1 is rgb(9, 8, 7)"])
    assert files(tmp_path / "out") == ["painted.png"]
    assert read_mask(tmp_path / "out/painted.png").tolist() == [[0, 1]]


def test_colours_of_a_palette_get_their_places_back(tmp_path):
    labels = np.arange(22, dtype=np.uint8).reshape(2, 11)
    voc = np.frombuffer(VOC_PALETTE, np.uint8).reshape(256, 3)
    for name, table in (("voc", voc), ("davis", np.where(voc == 192, np.uint8(191), voc))):
        colours(tmp_path / f"in/{name}/0.png", table[labels])
    preparing.write_index_masks(tmp_path / "in", tmp_path / "out")
    for name in ("voc", "davis"):
        np.testing.assert_array_equal(read_mask(tmp_path / f"out/{name}/0.png"), labels)


def test_masks_of_0_and_255_and_ids(tmp_path):
    for mode in ("L", "RGB", "1"):
        colours(tmp_path / f"in/{mode}/0.png", [[0, 255, 255]], mode)
    colours(tmp_path / "in/ids/0.png", [[0, 3, 1]], "L")
    write_mask(tmp_path / "in/indexed/0.png", np.array([[0, 9]]))
    Image.fromarray(np.array([[0, 4]], np.uint16)).save(tmp_path / "in/ids/1.png")
    preparing.write_index_masks(tmp_path / "in", tmp_path / "out")
    read = {place: read_mask(tmp_path / "out" / place).tolist() for place in files(tmp_path / "out")}
    assert all(read[f"{mode}/0.png"] == [[0, 1, 1]] for mode in ("L", "RGB", "1"))
    assert (read["ids/0.png"], read["ids/1.png"], read["indexed/0.png"]) == ([[0, 3, 1]], [[0, 4]], [[0, 9]])


def test_soft_edges_need_a_threshold(tmp_path):
    colours(tmp_path / "in/0.png", [[0, 100, 128, 255]], "L")
    out = tmp_path / "out"
    refused(MaskError, lambda: preparing.write_index_masks(tmp_path / "in", out), "--threshold 128", str(tmp_path))
    assert not out.exists()
    preparing.write_index_masks(tmp_path / "in", out, threshold=128)
    assert read_mask(out / "0.png").tolist() == [[0, 0, 1, 1]]
    refused(ConfigError, lambda: preparing.write_index_masks(tmp_path / "in", out, threshold=0), "1 to 255")
    refused(ConfigError, lambda: preparing.write_index_masks(tmp_path / "in", out, threshold=50), "another mask")
    colours(tmp_path / "in/1.png", [[[9, 0, 0], [0, 0, 0]]])
    refused(MaskError, lambda: preparing.write_index_masks(tmp_path / "in", out, threshold=128), "rgb(9, 0, 0)")


def test_masks_that_cannot_be_indexed(tmp_path):
    many = [[[number % 256, number // 256, 7] for number in range(300)]]
    colours(tmp_path / "many/0.png", many)
    refused(MaskError, lambda: preparing.write_index_masks(tmp_path / "many", tmp_path / "out"), "anti-aliasing")
    colours(tmp_path / "cut/0.png", np.random.default_rng(0).integers(0, 256, (40, 40, 3)))
    (tmp_path / "cut/0.png").write_bytes((tmp_path / "cut/0.png").read_bytes()[:2000])
    refused(MaskError, lambda: preparing.write_index_masks(tmp_path / "cut", tmp_path / "out"), "0.png")
    colours(tmp_path / "two/0.png", [[0, 255]], "L")
    colours(tmp_path / "two/0.bmp", [[0, 255]], "L")
    refused(MaskError, lambda: preparing.write_index_masks(tmp_path / "two", tmp_path / "out"), "one name")
    (tmp_path / "deep").mkdir()
    Image.fromarray(np.array([[0, 999]], np.uint16)).save(tmp_path / "deep/0.png")
    refused(MaskError, lambda: preparing.write_index_masks(tmp_path / "deep", tmp_path / "out"), "16 bits", "999")
    assert not (tmp_path / "out").exists()


def test_labels_of_xml(tmp_path):
    text = "<annotation><object><name>{}</name></object><object><name>{}</name></object></annotation>"
    for name, two in (("a", ("cat", "dog")), ("b", ("dog", "dog"))):
        (tmp_path / f"{name}.xml").write_text(text.format(*two))
    done = preparing.write_image_labels(tmp_path, tmp_path / "labels.csv")
    table = read_labels(tmp_path / "labels.csv")
    assert len(table.classes) == 20
    shown = {name: [table.classes[place] for place in np.flatnonzero(row)] for name, row in table.rows.items()}
    assert shown == {"a": ["cat", "dog"], "b": ["dog"]}
    assert done == (1, 0, ["2 images, 2 with one of 20 classes"])
    assert preparing.write_image_labels(tmp_path, tmp_path / "labels.csv")[:2] == (0, 1)
    (tmp_path / "b.xml").write_text(text.format("cat", "cat"))
    refused(ConfigError, lambda: preparing.write_image_labels(tmp_path, tmp_path / "labels.csv"), "other labels")
    (tmp_path / "b.xml").write_text("<annotation>")
    refused(DatasetNotFoundError, lambda: preparing.write_image_labels(tmp_path, tmp_path / "new.csv"), "b.xml")


def test_labels_of_masks(tmp_path):
    write_mask(tmp_path / "masks/a.png", np.array([[0, 255, 2]]))
    write_mask(tmp_path / "masks/b.png", np.array([[0, 0, 0]]))
    names = tmp_path / "names.txt"
    names.write_text("ground\ncat\ndog\n")
    preparing.write_image_labels(tmp_path / "masks", tmp_path / "labels.csv", classes=str(names))
    assert list(csv.reader((tmp_path / "labels.csv").open())) == [
        ["image", "cat", "dog"],
        ["a", "0", "1"],
        ["b", "0", "0"],
    ]
    preparing.write_image_labels(tmp_path / "masks", tmp_path / "voc.csv")
    assert read_labels(tmp_path / "voc.csv").classes[:2] == ("aeroplane", "bicycle")
    write_mask(tmp_path / "masks/a.png", np.array([[0, 21]]))
    refused(MaskError, lambda: preparing.write_image_labels(tmp_path / "masks", tmp_path / "x.csv"), "a.png", "21")
    refused(DatasetNotFoundError, lambda: preparing.write_image_labels(tmp_path, tmp_path / "x.csv"))


def test_labels_of_json(tmp_path):
    content = {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 7}, {"image_id": 1, "category_id": 7}],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))
    preparing.write_image_labels(file, tmp_path / "labels.csv")
    table = read_labels(tmp_path / "labels.csv")
    assert {name: row.tolist() for name, row in table.rows.items()} == {"a": [0, 1], "b": [0, 0]}
    assert table.classes == ("cat", "dog")
    content["annotations"][0]["category_id"] = 1
    file.write_text(json.dumps(content))
    refused(DatasetNotFoundError, lambda: preparing.write_image_labels(file, tmp_path / "x.csv"), "annotations[0]")
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"annotations": [5]}, ["annotations[0]", "5, expected an object"]),
        ({"annotations": 5}, ["annotations 5, expected a list"]),
        ({"annotations": [{"image_id": [1], "category_id": 3}]}, ["annotations[0]", "image_id [1]"]),
        ({"annotations": [{"image_id": 1, "category_id": {}}]}, ["annotations[0]", "category_id {}"]),
        ({"images": [{"id": 1, "file_name": "\ud800.jpg"}]}, ["the name '\\ud800'"]),
        ({"images": [{"id": [1], "file_name": "a.jpg"}]}, ["images[0]", "id [1]"]),
        ({"images": [{"id": 1, "file_name": "a.jpg"}] * 2}, ["images[1]", "which an earlier one has"]),
        (
            {"images": [{"id": 1, "file_name": "x/a.jpg"}, {"id": 2, "file_name": "y/a.png"}]},
            ["x/a.jpg and y/a.png", "Rename"],
        ),
    ],
)
def test_labels_of_a_json_of_another_form(tmp_path, change, words):
    content = {
        "categories": [{"id": 3, "name": "cat"}],
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 3}],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content | change))
    refused(DatasetNotFoundError, lambda: preparing.write_image_labels(file, tmp_path / "x.csv"), str(file), *words)
    assert not (tmp_path / "x.csv").exists()


@needs_real
def test_the_real_mask_of_another_size_is_mended(tmp_path):
    preparing.resize(REAL / "YouTubeVOS", tmp_path / "YouTubeVOS")
    assert not check(tmp_path / "YouTubeVOS", full=True)[0].findings


@needs_real
def test_real_masks_of_2016_become_those_of_2017(tmp_path):
    preparing.write_index_masks(REAL / "DAVIS/Annotations/480p", tmp_path / "480p", workers=2)
    theirs = REAL / "DAVIS/Annotations_2017/480p"
    for place in [place for place in files(theirs) if place.endswith("0.png")]:
        np.testing.assert_array_equal(read_mask(tmp_path / "480p" / place), read_mask(theirs / place))
