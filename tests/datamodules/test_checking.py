import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.checking import DATASETS, check
from datamodules.coco import InstanceRules, read_coco
from datamodules.inspecting import FindingKind
from datamodules.synthetic_files import StillSettings, SyntheticSettings, write_davis, write_stills
from datamodules.synthetic_images import ImageSettings, write_images
from datamodules.synthetic_instances import write_synthetic_coco, write_synthetic_youtube_vis
from datamodules.synthetic_layouts import (
    write_synthetic_long_time_video,
    write_synthetic_lvos,
    write_synthetic_youtube_vos,
)
from lightning_vos.errors import DatasetNotFoundError, FrameError
from lightning_vos.io.frames import ordered_frames
from lightning_vos.io.masks import read_mask, write_mask

REAL = Path(__file__).parents[2] / "../shared/data/real"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no real samples at ../shared/data/real")
VIDEOS = SyntheticSettings(train=2, val=2, frames=11, height=64, width=80)
WRITERS = {
    "davis": (write_davis, VIDEOS),
    "youtube_vos": (write_synthetic_youtube_vos, VIDEOS),
    "lvos": (write_synthetic_lvos, VIDEOS),
    "long_time_video": (write_synthetic_long_time_video, VIDEOS),
    "youtube_vis": (write_synthetic_youtube_vis, VIDEOS),
    "coco": (write_synthetic_coco, StillSettings(images=10, height=64, width=80)),
    "static": (write_stills, StillSettings(images=6, height=64, width=80)),
}
LABELLED = {
    "voc": "PASCAL VOC",
    "coco_semantic": "COCO",
    "ade20k": "ADE20K",
    "dfc2020": "DFC2020",
    "endotect": "EndoTect",
    "labelled_images": "labelled images",
}
WRITERS |= {name: (write_images, ImageSettings(name, train=9, val=3, height=64, width=80)) for name in LABELLED}
FOLDERS = {"long_time_video": "long_video"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for name, (write, settings) in WRITERS.items():
        write(root / FOLDERS.get(name, name), settings)
    return root


@pytest.fixture
def copy(written, tmp_path):
    """A copy of a synthetic set, to break."""

    def make(name):
        folder = FOLDERS.get(name, name)
        return Path(shutil.copytree(written / folder, tmp_path / folder))

    return make


def findings(root, **settings):
    return [finding for report in check(root, **settings) for finding in report.findings]


def only(root, kind, **settings):
    found = findings(root, **settings)
    assert [finding.kind for finding in found] == [kind], found
    assert found[0].fix
    assert found[0].file.is_absolute() == root.is_absolute()
    return found[0]


def first(folder, pattern):
    return sorted(folder.glob(pattern))[0]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_a_whole_set_is_recognised_and_nothing_is_wrong_with_it(written, name, full):
    (report,) = check(written / FOLDERS.get(name, name), full=full)
    assert not report.findings
    assert (
        report.dataset
        == (
            LABELLED
            | {
                "davis": "DAVIS",
                "youtube_vos": "YouTube-VOS",
                "lvos": "LVOS",
                "long_time_video": "Long-Time Video",
                "youtube_vis": "YouTube-VIS",
                "coco": "COCO",
                "static": "still images",
            }
        )[name]
    )


def test_all_sets_of_a_folder_are_found(written):
    assert len(check(written)) == len(WRITERS)
    (report,) = check(written, "lvos")
    assert report.folder == written / "lvos"


def test_counts(written):
    parts = {part.name: part for part in check(written / "davis")[0].parts}
    names = (written / "davis/ImageSets/2017/train.txt").read_text().split()
    masks = [read_mask(first(written / "davis", f"Annotations/480p/{name}/*.png")) for name in names]
    ids = [set(mask.ravel().tolist()) - {0} for mask in masks]
    train = parts["2017 train"]
    assert (train.videos, train.frames, train.masks, train.objects) == (2, 22, 22, sum(map(len, ids)))
    assert parts["2016 train"].objects == 2
    parts = {part.name: part for part in check(written / "youtube_vos")[0].parts}
    assert (parts["train"].videos, parts["train"].frames, parts["train_all_frames"].frames) == (4, 12, 44)


def test_official_counts_stand_beside_those_of_a_real_set(copy):
    root = copy("davis")
    (root / "synthetic.json").unlink()
    parts = {part.name: part for part in check(root)[0].parts}
    assert [tuple(one) for one in parts["2017 val"].official] == [(30, 1999, 61, "")]


def test_worker_processes_find_the_same(copy):
    root = copy("davis")
    first(root, "JPEGImages/480p/*/00005.jpg").write_bytes(b"")
    told = []
    found = findings(root, full=True, workers=2, progress=lambda done, total: told.append((done, total)))
    assert found == findings(root, full=True)
    assert told[-1] == (4, 4)


def test_a_cut_off_frame_is_found_without_decoding_all(copy):
    root = copy("davis")
    frame = first(root, "JPEGImages/480p/*/00003.jpg")
    frame.write_bytes(frame.read_bytes()[:-200])
    assert only(root, FindingKind.UNREADABLE).file == frame


def test_damage_within_a_frame_is_found_by_decoding(copy):
    root = copy("davis")
    frame = first(root, "JPEGImages/480p/*/00003.jpg")
    picture = frame.with_suffix(".png")
    Image.open(frame).save(picture)
    frame.unlink()
    data = bytearray(picture.read_bytes())
    data[len(data) // 2] ^= 255
    picture.write_bytes(data)
    assert not findings(root)
    assert only(root, FindingKind.UNREADABLE, full=True).file == picture


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data[:60] + b"x" + data[61:], lambda data: b""]
)
def test_a_damaged_mask_is_found(copy, damage):
    root = copy("davis")
    mask = first(root, "Annotations/480p/*/00004.png")
    mask.write_bytes(damage(mask.read_bytes()))
    assert only(root, FindingKind.UNREADABLE).file == mask


def test_a_mask_of_another_size(copy):
    root = copy("davis")
    mask = first(root, "Annotations/480p/*/00004.png")
    write_mask(mask, read_mask(mask)[:, :-1])
    found = only(root, FindingKind.WRONG_SIZE)
    assert found.found == "79x64, its frame has 80x64"
    assert f"lightning_vos data prepare resize {root} TARGET" in found.fix


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_a_mask_of_another_kind(copy, mode):
    root = copy("davis")
    mask = first(root, "Annotations/480p/*/00004.png")
    labels = read_mask(mask)
    image = Image.fromarray(labels.astype(np.uint16)) if mode == "I;16" else Image.fromarray(labels).convert("RGB")
    image.save(mask)
    found = only(root, FindingKind.NOT_IDS)
    assert mode in found.found
    assert f"data prepare index-masks {mask.parents[1]}" in found.fix


def test_masks_of_2016_on_a_list_of_2017(copy):
    root = copy("davis")
    mask = first(root, "Annotations/480p/*/00000.png")
    Image.fromarray(((read_mask(mask) > 0) * 255).astype(np.uint8)).save(mask)
    assert only(root, FindingKind.NOT_IDS).file == mask
    for name in ("train", "val"):
        (root / f"ImageSets/2017/{name}.txt").unlink()
    (report,) = check(root)
    assert not report.findings
    assert any("255 is foreground" in note for note in report.notes)


def test_a_blank_first_mask_and_an_object_that_comes_late(copy):
    root = copy("davis")
    mask = first(root, "Annotations/480p/*/00000.png")
    labels = read_mask(mask)
    write_mask(mask, labels * 0)
    assert only(root, FindingKind.BLANK).file == mask
    write_mask(mask, labels)
    later = mask.with_name("00007.png")
    labels = read_mask(later)
    labels[:5, :5] = 77
    write_mask(later, labels)
    assert not findings(root)
    assert "object 77" in only(root, FindingKind.LATE_OBJECT, full=True).found


def test_listed_but_absent(copy):
    root = copy("davis")
    for year in ("2016", "2017"):
        with (root / f"ImageSets/{year}/val.txt").open("a") as file:
            file.write("gone\n")
    kinds = {(finding.kind, finding.file.parent.name) for finding in findings(root)}
    assert kinds == {(FindingKind.MISSING_VIDEO, "2016"), (FindingKind.MISSING_VIDEO, "2017")}


def test_a_missing_mask_where_all_are_expected(copy):
    root = copy("davis")
    first(root, "Annotations/480p/*/00004.png").unlink()
    assert "00004" in only(root, FindingKind.MISSING_MASK).found
    for year in ("2016", "2017"):  # test-dev has first masks alone
        for name in ("train", "val"):
            (root / f"ImageSets/{year}/{name}.txt").rename(
                root / f"ImageSets/{year}/test-{'dev' if name == 'val' else 'challenge'}.txt"
            )
    assert not findings(root)


def test_a_mask_without_a_frame_and_two_frames_of_one_name(copy):
    root = copy("davis")
    frame = first(root, "JPEGImages/480p/*/00004.jpg")
    shutil.copy(frame, frame.with_name("00005.png"))
    assert only(root, FindingKind.DOUBLE_FRAME).file == frame.parent
    frame.with_name("00005.png").unlink()
    mask = first(root, "Annotations/480p/*/00010.png")
    shutil.copy(mask, mask.with_name("00011.png"))
    assert only(root, FindingKind.EXTRA_MASK).file.name == "00011.png"


def test_the_list_of_the_first_release(copy):
    root = copy("davis")
    shutil.rmtree(root / "ImageSets")
    assert only(root, FindingKind.MISSING_LIST).file == root / "ImageSets"
    lines = [
        f"/{frame.relative_to(root)} /Annotations/480p/{frame.parent.name}/{frame.stem}.png"
        for frame in sorted((root / "JPEGImages/480p").glob("*/*.jpg"))
    ]
    source = root / "ImageSets/480p/val.txt"
    source.parent.mkdir(parents=True)
    source.write_text("\n".join(lines))
    (report,) = check(root)
    assert not report.findings
    assert [(part.videos, part.frames) for part in report.parts] == [(4, 44)]
    source.write_text(
        "\n".join([*lines, "/JPEGImages/480p/../../../etc/passwd /x/y.png", "/JPEGImages/480p/a/0.jpg /A/a/0.png"])
    )
    assert {finding.kind for finding in findings(root)} == {
        FindingKind.MALFORMED,
        FindingKind.MISSING_FRAME,
        FindingKind.MISSING_VIDEO,
    }


def test_names_that_lead_elsewhere_are_never_followed(copy):
    root = copy("davis")
    (root / "ImageSets/2017/val.txt").write_text("../../../secret\n")
    assert "'" not in only(root, FindingKind.MALFORMED).found


def test_another_resolution_is_a_note(copy):
    root = copy("davis")
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p").rename(root / kind / "240p")
    (report,) = check(root)
    assert not report.findings
    assert any("--data.frames=JPEGImages/240p" in note for note in report.notes)


def test_objects_of_a_meta_file(copy):
    root = copy("youtube_vos")
    meta_file = root / "valid/meta.json"
    meta = json.loads(meta_file.read_text())
    name = next(iter(meta["videos"]))
    objects = meta["videos"][name]["objects"]
    number = next(iter(objects))
    mask = root / f"valid/Annotations/{name}/{objects[number]['frames'][0]}.png"
    labels = read_mask(mask)
    write_mask(mask, np.where(labels == int(number), np.uint8(200), labels))
    kinds = {finding.kind: finding.found for finding in findings(root)}
    assert set(kinds) == {FindingKind.UNKNOWN_ID, FindingKind.MISSING_OBJECT}
    assert "200; listed" in kinds[FindingKind.UNKNOWN_ID]
    mask.unlink()
    assert {finding.kind for finding in findings(root)} == {FindingKind.MISSING_OBJECT}
    objects[number]["frames"].append("99999")
    meta_file.write_text(json.dumps(meta))
    kinds = [finding.kind for finding in findings(root)]
    assert kinds.count(FindingKind.MISSING_FRAME) == 2  # in valid, and in valid_all_frames
    meta_file.write_text("{")
    assert {finding.kind for finding in findings(root)} == {FindingKind.MALFORMED}


def test_a_video_of_a_meta_file_that_is_absent_and_no_meta_file(copy):
    root = copy("youtube_vos")
    name = first(root, "train/JPEGImages/*")
    shutil.rmtree(name)
    assert only(root, FindingKind.MISSING_VIDEO).file == root / "train/meta.json"
    shutil.rmtree(root / "train_all_frames")
    (root / "train/meta.json").unlink()
    assert only(root, FindingKind.MISSING_LIST).file == root / "train/meta.json"


def test_counts_of_lvos_that_its_score_would_take_for_zeros(copy):
    root = copy("lvos")
    file = root / "valid/valid_meta.json"
    meta = json.loads(file.read_text())
    video = next(iter(meta["videos"].values()))
    next(iter(video["objects"].values()))["frame_range"]["frame_nums"] = 99
    file.write_text(json.dumps(meta))
    assert "frame_nums is 99" in only(root, FindingKind.MALFORMED).found


def test_a_json_of_videos(copy):
    root = copy("youtube_vis")
    file = root / "train.json"
    content = json.loads(file.read_text())
    frames = root / "train/JPEGImages"
    (frames / content["videos"][0]["file_names"][2]).unlink()
    assert only(root, FindingKind.MISSING_FRAME).file == frames
    shutil.move(frames, root / "elsewhere")
    assert "--frames DIR" in only(root, FindingKind.MISSING_FRAME).fix
    kinds = {finding.kind for finding in findings(root, frames=root / "elsewhere")}
    assert kinds == {FindingKind.MISSING_FRAME}
    shutil.move(root / "elsewhere", frames)
    content["videos"][0]["file_names"][2] = content["videos"][0]["file_names"][1]
    content["videos"][1]["width"] += 1
    content["annotations"][0]["category_id"] = 1234
    content["annotations"][-1]["segmentations"].append(None)
    file.write_text(json.dumps(content))
    assert {finding.kind for finding in findings(root)} == {
        FindingKind.WRONG_SIZE,
        FindingKind.WRONG_ORDER,
        FindingKind.UNKNOWN_ID,
        FindingKind.MALFORMED,
    }
    content["videos"][0]["file_names"][0] = "../../etc/passwd"
    file.write_text(json.dumps(content))
    assert any("leads outside the folder" in finding.found for finding in findings(root))


def test_a_json_of_images(copy):
    root = copy("coco")
    file = root / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    first(root, "val2017/*.jpg").unlink()
    assert only(root, FindingKind.MISSING_FRAME).file == root / "val2017"
    content["annotations"][0]["image_id"] = 10**6
    file.write_text(json.dumps(content))
    assert FindingKind.UNKNOWN_ID in {finding.kind for finding in findings(root)}
    file.write_text("")
    assert only(root, FindingKind.MALFORMED).file == file


def test_saliency_masks_among_still_images(copy):
    root = copy("static")
    mask = first(root, "*/Annotations/*.png")
    Image.fromarray(((read_mask(mask) > 0) * 255).astype(np.uint8)).save(mask)
    assert only(root, FindingKind.NOT_IDS).file == mask


def test_classes_of_voc(tmp_path):
    for kind in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (tmp_path / kind).mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (8, 6)).save(tmp_path / f"JPEGImages/{name}.jpg")
        write_mask(tmp_path / f"SegmentationClass/{name}.png", np.array([[0, 20, 255, 1] * 2] * 6))
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    (tmp_path / "ImageSets/Segmentation/test.txt").write_text("b\n")
    (report,) = check(tmp_path)
    assert not report.findings
    assert {part.name: (part.videos, part.masks) for part in report.parts} == {"train": (2, 2), "test": (1, 1)}
    write_mask(tmp_path / "SegmentationClass/b.png", np.full((6, 8), 21))
    assert only(tmp_path, FindingKind.UNKNOWN_ID).file.name == "b.png"
    (tmp_path / "SegmentationClass/b.png").unlink()
    assert "b" in only(tmp_path, FindingKind.MISSING_MASK).found


def test_names_that_do_not_sort_by_number(tmp_path):
    for number in (1, 2, 10):
        for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
            path = tmp_path / folder / "a" / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6)).save(path) if suffix == "jpg" else write_mask(path, np.ones((6, 8), np.uint8))
    assert only(tmp_path, FindingKind.WRONG_ORDER).found == "1, 10, 2 by name, 1, 2, 10 by number"


def test_names_with_letters_that_do_not_sort_by_number(tmp_path):
    for number in range(1, 13):
        for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
            path = tmp_path / folder / "a" / f"frame{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6)).save(path) if suffix == "jpg" else write_mask(path, np.ones((6, 8), np.uint8))
    found = only(tmp_path, FindingKind.WRONG_ORDER).found
    assert found == "frame1, frame10, frame11 by name, frame1, frame2, frame3 by number"
    with pytest.raises(FrameError):
        ordered_frames(tmp_path / "JPEGImages/a")
    for number, path in enumerate(sorted(tmp_path.rglob("frame*.*"), key=lambda path: (path.suffix, path.name))):
        path.rename(
            path.with_stem(f"a{number % 12 // 6}-b{1 - number % 12 // 6}-{number % 12:02}")
        )  # other numbers fall
    assert len(ordered_frames(tmp_path / "JPEGImages/a")) == 12
    assert not findings(tmp_path)


def test_file_names_of_a_json_are_read_in_natural_order(copy):
    root = copy("youtube_vis")
    file = root / "train.json"
    content = json.loads(file.read_text())
    video = content["videos"][0]
    folder = Path(video["file_names"][0]).parent
    for number, name in enumerate(video["file_names"]):
        frame = root / "train/JPEGImages" / name
        frame.rename(frame.with_stem(f"frame{number}"))
    video["file_names"] = [f"{folder}/frame{number}.jpg" for number in range(len(video["file_names"]))]
    assert f"{folder}/frame10.jpg" in video["file_names"]
    file.write_text(json.dumps(content))
    assert not findings(root)
    video["file_names"].sort()
    file.write_text(json.dumps(content))
    assert only(root, FindingKind.WRONG_ORDER).file == file


def changed(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(videos=5), "videos 5, expected a list"),
        (lambda content: content.update(annotations=5), "annotations 5, expected a list"),
        (lambda content: content.update(categories=5), "categories 5, expected a list"),
        (lambda content: content["videos"].append(5), "videos[4]: 5, expected an object"),
        (lambda content: content["videos"][0].update(id=[1]), "videos[0]: id [1], expected a whole number"),
        (lambda content: content["videos"][0].update(file_names=[[1]]), "videos[0]: the file name [1]"),
        (lambda content: content["videos"][0].update(height="x"), "videos[0]: height 'x'"),
        (lambda content: content["videos"].append(content["videos"][0]), "videos[4]: id "),
        (lambda content: content["annotations"].append(5), ": 5, expected an object"),
        (lambda content: content["annotations"][0].update(video_id=[1]), "annotations[0]: video_id [1]"),
        (lambda content: content["annotations"][0].update(category_id=[1]), "annotations[0]: category_id [1]"),
        (lambda content: content["annotations"][0].update(segmentations=None), "annotations[0]: segmentations None"),
    ],
)
def test_a_json_of_videos_of_another_form(copy, change, words):
    root = copy("youtube_vis")
    file = root / "train.json"
    changed(file, change)
    found = [finding for finding in findings(root) if words in finding.found]
    assert [finding.kind for finding in found] == [FindingKind.MALFORMED], findings(root)
    assert (found[0].file, bool(found[0].fix)) == (file, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(images=5), "images 5, expected a list"),
        (lambda content: content.update(annotations=5), "annotations 5, expected a list"),
        (lambda content: content.update(categories=5), "categories 5, expected a list"),
        (lambda content: content["images"][0].update(id=[1]), "images[0]: id [1], expected a whole number"),
        (lambda content: content["images"][0].update(file_name=[1]), "images[0]: the file name [1]"),
        (lambda content: content["images"][0].update(file_name="../a.jpg"), "leads outside the folder"),
        (lambda content: content["annotations"].append(5), ": 5, expected an object"),
        (lambda content: content["annotations"][0].update(image_id=[1]), "annotations[0]: image_id [1]"),
        (lambda content: content["annotations"][0].update(category_id=[1]), "annotations[0]: category_id [1]"),
        (lambda content: content["annotations"][0].update(bbox="x"), "annotations[0]: bbox 'x'"),
        (lambda content: content["annotations"][0].update(area="x"), "annotations[0]: area 'x'"),
        (lambda content: content["annotations"][0].update(segmentation=[[0, 0, 1]]), "annotations[0]: polygon"),
        (lambda content: content["annotations"][0].update(segmentation=7), "annotations[0]: segmentation 7"),
        (
            lambda content: content["annotations"][0].update(segmentation={"size": [1, 1], "counts": [1]}),
            "annotations[0]: an RLE of size",
        ),
    ],
)
def test_a_json_of_images_that_training_refuses(copy, change, words):
    root = copy("coco")
    file = root / "annotations/instances_val2017.json"
    changed(file, change)
    with pytest.raises(DatasetNotFoundError):
        read_coco(file, root / "val2017", InstanceRules())
    found = [finding for finding in findings(root, full=True) if words in finding.found]
    assert [finding.kind for finding in found] == [FindingKind.MALFORMED], findings(root, full=True)
    assert (found[0].file, bool(found[0].fix)) == (file, True)


def test_images_of_ade20k(copy):
    root = copy("ade20k")
    mask = first(root, "annotations/training/*.png")
    write_mask(mask, np.full_like(read_mask(mask), 151))
    assert only(root, FindingKind.UNKNOWN_ID).file == mask
    mask.unlink()
    assert mask.stem in only(root, FindingKind.MISSING_MASK).found


def test_images_of_endotect(copy):
    root = copy("endotect")
    mask = first(root, "segmented-images/masks/*.jpg")
    Image.new("L", (9, 9)).save(mask)
    assert only(root, FindingKind.WRONG_SIZE).file == mask
    mask.unlink()
    image = first(root, "labeled-images/*/*/polyps/*.jpg")
    shutil.copy(image, first(root, "labeled-images/*/*/cecum"))
    assert only(root, FindingKind.DOUBLE_FRAME).file.name == image.name


def test_tiles_of_dfc2020(copy):
    root = copy("dfc2020")
    classes = first(root, "*/dfc_0/*.tif")
    data = classes.read_bytes()
    Image.new("L", (9, 9)).save(classes)
    assert only(root, FindingKind.WRONG_SIZE).file == classes
    classes.unlink()
    assert only(root, FindingKind.MISSING_MASK).file == classes.parent
    classes.write_bytes(data)
    tile = first(root, "*/s2_0/*.npy")
    raster = np.load(tile)
    np.save(tile, raster[:3])
    assert "expected numbers of shape (13, H, W)" in only(root, FindingKind.MALFORMED).found
    np.save(tile, raster)
    tile.write_bytes(tile.read_bytes()[:-5])
    assert only(root, FindingKind.UNREADABLE).file == tile
    tile.rename(tile.with_suffix(".tif"))
    assert "GeoTIFF of 13 bands" in only(root, FindingKind.UNREADABLE).found


def test_images_of_a_csv(copy):
    root = copy("labelled_images")
    image = first(root, "images/*.jpg")
    image.rename(image.with_stem("other"))
    assert image.stem in only(root, FindingKind.MISSING_FRAME).found
    image.with_stem("other").rename(image)
    with (root / "labels.csv").open("a") as file:
        file.write("../a,class-01\n")
    assert "../a" in only(root, FindingKind.MALFORMED).found
    (root / "labels.csv").write_text("nothing\n")
    assert only(root, FindingKind.MALFORMED).file == root / "labels.csv"


def test_nothing_to_check(tmp_path):
    (tmp_path / "notes").mkdir()
    for root, dataset in ((tmp_path / "gone", None), (tmp_path, None), *((tmp_path, name) for name in DATASETS)):
        with pytest.raises(DatasetNotFoundError) as error:
            check(root, dataset)
        assert len(str(error.value).splitlines()) <= 8
    assert "found notes" in str(error.value)


def test_checking_and_preparing_never_import_torch():
    code = "import sys, datamodules.checking, datamodules.preparing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ}).returncode == 0


@needs_real
@pytest.mark.parametrize("full", [False, True])
def test_the_real_samples_have_their_trap_and_no_other(full):
    found = [(finding.kind, finding.file.relative_to(REAL)) for finding in findings(REAL, full=full)]
    assert found == [(FindingKind.WRONG_SIZE, Path("YouTubeVOS/valid/Annotations/judo/00005.png"))]
    reports = {report.folder.name: "\n".join(report.notes) for report in check(REAL)}
    assert "255 is foreground" in reports["DAVIS"]
    assert "masks of both years side by side" in reports["DAVIS"]
    assert "gaps" in reports["VOC2012"]
    assert "category ids 1 to 90 have gaps" in reports["coco"]
    assert "a category has the id 0" in reports["coco_polygons"]
    assert "valid.json has no annotations" in reports["ytvis_2019"]
