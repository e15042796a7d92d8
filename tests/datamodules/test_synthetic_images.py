"""Synthetic labelled images: what they show, which classes keep company, what lies on disk."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from datamodules.synthetic_images import FOLDERS, ImageSettings, render_scene, write_images
from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.semantic import CLASS_SETS
from lightning_vos.io.masks import read_mask

SMALL = {"train": 6, "val": 4, "height": 64, "width": 80}
COMPANY = [[1.0, 0.8, 0.0], [0.3, 1.0, 0.1], [0.0, 0.5, 1.0]]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for layout in FOLDERS:
        write_images(root / layout, ImageSettings(layout=layout, **SMALL))
    return root


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_scene_shows_all_its_objects_each_of_another_class():
    settings = ImageSettings(height=64, width=80)
    for number in range(60):
        scene = render_scene(settings, "train", number)
        shown = np.bincount(scene.objects.ravel(), minlength=len(scene.classes) + 1)[1:]
        assert (shown >= 22).all()  # 1/230 of the image
        assert len(set(scene.classes)) == len(scene.classes) == len(scene.hidden) <= 4
        assert set(np.unique(scene.mask)) == {0, *(kind + 1 for kind in scene.classes)}
        assert (scene.image.shape, scene.mask.shape) == ((64, 80, 3), (64, 80))


def test_classes_keep_company_as_the_matrix_says():
    settings = ImageSettings(height=64, width=64, co_occurrence=COMPANY)
    scenes = [render_scene(settings, "train", number).classes for number in range(400)]
    for main, row in enumerate(COMPANY):
        drawn = [set(classes) for classes in scenes if classes[0] == main]
        assert 100 < len(drawn) < 170
        for other, share in enumerate(row):
            assert np.mean([other in classes for classes in drawn]) == pytest.approx(share, abs=0.14)


def test_a_class_has_its_own_colours():
    settings = ImageSettings(height=64, width=64)
    hues = {kind: [] for kind in range(4)}
    for number in range(40):
        scene = render_scene(settings, "train", number)
        hue = np.asarray(Image.fromarray(scene.image).convert("HSV"))[..., 0] * (2 * np.pi / 256)
        for place, kind in enumerate(scene.classes, start=1):
            hues[kind].append(np.exp(1j * hue[scene.objects == place]).mean())
    for kind, means in hues.items():
        apart = np.angle(np.array(means) * np.exp(-2j * np.pi * kind / 4))
        assert (np.abs(apart) < np.pi / 4).all()


def test_the_same_settings_give_the_same_scene_and_others_another():
    settings = ImageSettings(height=64, width=64)
    scene = render_scene(settings, "train", 3)
    assert np.array_equal(scene.image, render_scene(settings, "train", 3).image)
    for other in (
        render_scene(settings, "train", 4),
        render_scene(settings, "val", 3),
        render_scene(ImageSettings(height=64, width=64, seed=1), "train", 3),
    ):
        assert not np.array_equal(scene.image, other.image)


@pytest.mark.parametrize("layout", FOLDERS)
def test_a_set_is_written_once_and_the_same_everywhere(layout, written, tmp_path):
    write_images(tmp_path / "again", ImageSettings(layout=layout, **SMALL))
    before = contents(tmp_path / "again")
    assert before == contents(written / layout)
    assert layout in (tmp_path / "again/README.txt").read_text()
    (tmp_path / "again/README.txt").write_text("kept")
    write_images(tmp_path / "again", ImageSettings(layout=layout, **SMALL))
    assert (tmp_path / "again/README.txt").read_text() == "kept"
    with pytest.raises(ConfigError, match="seed=1"):
        write_images(tmp_path / "again", ImageSettings(layout=layout, seed=1, **SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_nothing_of_anybody_else_is_touched(tmp_path):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="something else is there"):
        write_images(tmp_path, ImageSettings(**SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_files_of_voc(written):
    root = written / "voc"
    lists = {path.stem: path.read_text().split() for path in (root / "ImageSets/Segmentation").iterdir()}
    assert {name: len(names) for name, names in lists.items()} == {
        "train": 3,
        "train_aug": 6,
        "val": 4,
        "trainval": 7,
        "test": 1,
    }
    names = CLASS_SETS["voc"].names
    for name in lists["train_aug"] + lists["val"]:
        augmented = read_mask(root / "SegmentationClassAug" / f"{name}.png")
        assert Image.open(root / "SegmentationClassAug" / f"{name}.png").mode == "L"
        annotation = ElementTree.parse(root / "Annotations" / f"{name}.xml")
        labels = {names.index(item.findtext("name")) for item in annotation.iterfind("object")}
        assert set(np.unique(augmented)) == {0, *labels}
        for item in annotation.iterfind("object"):
            left, top, right, bottom = (
                int(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            rows, columns = np.nonzero(augmented == names.index(item.findtext("name")))
            assert (left, top, right, bottom) == (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
    for name in lists["train"] + lists["val"]:
        plain = read_mask(root / "SegmentationClass" / f"{name}.png")
        augmented = read_mask(root / "SegmentationClassAug" / f"{name}.png")
        assert Image.open(root / "SegmentationClass" / f"{name}.png").mode == "P"
        assert np.array_equal(plain[plain != 255], augmented[plain != 255])
        assert 0.01 < (plain == 255).mean() < 0.4
    for folder in ("Annotations", "SegmentationClass", "SegmentationClassAug"):
        assert not list((root / folder).glob(f"{lists['test'][0]}*"))
    assert (root / "JPEGImages" / f"{lists['test'][0]}.jpg").is_file()


def test_the_files_of_coco(written, capsys):
    settings = ImageSettings(layout="coco_semantic", **SMALL)
    data = COCO(written / "coco_semantic/annotations/instances_train2014.json")
    assert [category["name"] for category in data.loadCats(data.getCatIds())] == list(CLASS_SETS["coco"].names[1:])
    assert max(data.getCatIds()) > 80
    for number, image in enumerate(data.loadImgs(sorted(data.getImgIds()))):
        scene = render_scene(settings, "train", number)
        instances = data.loadAnns(data.getAnnIds(imgIds=image["id"]))
        assert len(instances) == (0 if number == 1 else len(scene.classes))
        for place, instance in enumerate(instances, start=1):
            shown = scene.objects == place
            assert (data.annToMask(instance) == shown).mean() > 0.995
            assert instance["area"] == shown.sum()
            assert data.getCatIds().index(instance["category_id"]) == scene.classes[place - 1]
            assert instance["iscrowd"] == isinstance(instance["segmentation"], dict) == (number == 2 and place == 1)
            assert instance["bbox"] == coco.toBbox(coco.encode(np.asfortranarray(shown, np.uint8))).tolist()
        mode = Image.open(written / "coco_semantic/train2014" / image["file_name"]).mode
        assert mode == ("L" if number == 0 else "RGB")


def test_the_files_of_the_others(written):
    ade = read_mask(written / "ade20k/annotations/validation/ADE_val_00000002.png")
    assert np.array_equal(ade, render_scene(ImageSettings(layout="ade20k", **SMALL), "val", 1).mask)
    tiles = sorted((written / "dfc2020/ROIs0000_test/s2_0").iterdir())
    assert len(tiles) == 6
    assert (np.load(tiles[0]).shape, np.load(tiles[0]).dtype) == ((13, 64, 80), np.uint16)
    radar = np.load(written / "dfc2020/ROIs0000_test/s1_0/ROIs0000_test_s1_0_p0.npy")
    assert (radar.shape, radar.dtype) == ((2, 64, 80), np.float32)
    kinds = np.unique(Image.open(written / "dfc2020/ROIs0000_test/dfc_0/ROIs0000_test_dfc_0_p0.tif"))
    assert set(kinds) <= {1, 2, 3, 4, 5}
    assert 3 in kinds
    polyps = {path.stem for path in (written / "endotect").glob("labeled-images/*/*/polyps/*.jpg")}
    assert polyps == {path.stem for path in (written / "endotect/segmented-images/masks").iterdir()}
    assert len(list((written / "endotect/labeled-images").rglob("*.jpg"))) == 10
    rows = (written / "labelled_images/labels.csv").read_text().splitlines()
    assert rows[0] == "image,label"
    shown = {int(row.split("-")[-1]) for row in rows if row.startswith("val-000002,")}
    mask = read_mask(written / "labelled_images/masks/val-000002.png")
    assert shown == set(np.unique(mask)) - {0, 255}


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "imagenet"},
        {"train": 0},
        {"val": 0},
        {"height": 63},
        {"seed": -1},
        {"co_occurrence": [[1.0]]},
        {"co_occurrence": [[1.0, 0.5]]},
        {"co_occurrence": [[1.0, 1.5], [0.0, 1.0]]},
        {"co_occurrence": np.eye(13).tolist()},
        {"co_occurrence": np.eye(9).tolist(), "layout": "dfc2020"},
    ],
)
def test_what_cannot_be_rendered_is_refused(options):
    with pytest.raises(ConfigError, match="Expected"):
        ImageSettings(**options)


def test_as_many_classes_as_there_are_pairs_of_shape_and_texture(tmp_path):
    for layout in ("voc", "endotect"):
        write_images(tmp_path / layout, ImageSettings(layout=layout, co_occurrence=np.eye(12).tolist(), **SMALL))
    record = json.loads((tmp_path / "voc/synthetic.json").read_text())
    assert ImageSettings(**record).co_occurrence == np.eye(12).tolist()


def test_writing_a_set_never_imports_torch():
    code = "import sys, datamodules.synthetic_images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
