import csv
import io
import json
import math
import os
import re
import subprocess
import sys
import tarfile
import zipfile

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from lightning_vos.commands.score import _steps
from lightning_vos.commands.score import main as score_command
from lightning_vos.errors import ConfigError, DatasetNotFoundError, MaskError, UserError
from lightning_vos.evaluation import score
from lightning_vos.evaluation.problems import ProblemKind, ScoringError
from lightning_vos.evaluation.semantic import CLASS_SETS, score_semantic
from lightning_vos.io.class_maps import write_class_maps
from lightning_vos.io.masks import VOC_PALETTE

SERVER = "results/VOC2012/Segmentation/comp6_test_cls"
PETS = ["background", "cat", "dog", "cow"]


def png(labels, palette=VOC_PALETTE):
    image = Image.fromarray(np.asarray(labels, dtype=np.uint8))
    if palette:
        image.putpalette(palette)
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def save(folder, maps, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for name, labels in maps.items():
        (folder / f"{name}.png").write_bytes(png(labels, **options))
    return folder


def drawn(classes, images=3, ignored=0.1, seed=0):
    """Truth and predictions of odd sizes; class 2 is in neither."""
    random = np.random.default_rng(seed)
    values = [value for value in range(classes) if value != 2]
    truth, predictions = {}, {}
    for index in range(images):
        size = (11 + index, 17)
        truth[f"2007_{index:06}"] = np.where(random.random(size) < ignored, 255, random.choice(values, size))
        predictions[f"2007_{index:06}"] = random.choice(values, size)
    return truth, predictions


@pytest.fixture
def pair(tmp_path):
    """Two images of four classes: 6 pixels that count and 2 that do not."""
    truth = save(tmp_path / "truth", {"a": [[0, 0, 1, 255]], "b": [[1, 1, 2, 255]]})
    predictions = save(tmp_path / "predictions", {"a": [[0, 1, 1, 3]], "b": [[1, 2, 2, 1]]})
    return truth, predictions


def test_by_hand(pair):
    scores = score_semantic(*pair, classes=PETS)
    assert scores.protocol == "semantic"
    rows = {
        "background": {"IoU": 1 / 2, "accuracy": 1 / 2, "precision": 1, "pixels": 2 / 6},
        "cat": {"IoU": 2 / 4, "accuracy": 2 / 3, "precision": 2 / 3, "pixels": 3 / 6},
        "dog": {"IoU": 1 / 2, "accuracy": 1, "precision": 1 / 2, "pixels": 1 / 6},
        "cow": {"IoU": math.nan, "accuracy": math.nan, "precision": math.nan, "pixels": 0},
    }
    assert list(scores.categories) == PETS
    for name, row in rows.items():
        assert scores.categories[name] == pytest.approx({k: 100 * v for k, v in row.items()}, nan_ok=True)
    assert scores.summary == pytest.approx(
        {"mIoU": 50, "pixel_accuracy": 100 * 4 / 6, "mean_accuracy": 100 * (1 / 2 + 2 / 3 + 1) / 3}
    )
    assert (scores.problems, scores.left_out) == ([], [])
    for words in ("2 images", "4 classes", "truth is 255"):
        assert words in scores.variant


@pytest.mark.parametrize("classes", ["voc", "coco"])
def test_equals_torchmetrics(tmp_path, classes):
    count = {"voc": 21, "coco": 81}[classes]
    truth, predictions = drawn(count)
    scores = score_semantic(save(tmp_path / "t", truth), save(tmp_path / "p", predictions), classes=classes)
    matrix = MulticlassConfusionMatrix(count, ignore_index=255)
    overlap = MulticlassJaccardIndex(count, ignore_index=255, average="none")
    mean = MulticlassJaccardIndex(count, ignore_index=255)
    for name, labels in truth.items():
        for metric in (matrix, overlap, mean):
            metric.update(torch.from_numpy(predictions[name])[None], torch.from_numpy(labels)[None])
    table = matrix.compute().numpy()
    ours = list(scores.categories.values())
    assert len(ours) == count
    assert math.isnan(ours[2]["IoU"])
    ious = np.nan_to_num([row["IoU"] for row in ours])
    np.testing.assert_allclose(ious, 100 * overlap.compute().numpy(), atol=1e-4)
    assert scores.summary["mIoU"] == pytest.approx(100 * mean.compute().item(), abs=1e-4)
    assert scores.summary["pixel_accuracy"] == pytest.approx(100 * table.trace() / table.sum())
    shares = [row["pixels"] for row in ours]
    np.testing.assert_allclose(shares, 100 * table.sum(axis=1) / table.sum())


@pytest.mark.parametrize("absent", ["counted", "skipped"])
def test_equals_counting_pixel_by_pixel(tmp_path, absent):
    truth, predictions = drawn(6)
    for labels in truth.values():
        labels[labels == 4] = 1  # predicted, never true
    scores = score_semantic(
        save(tmp_path / "t", truth), save(tmp_path / "p", predictions), classes=list("abcdef"), absent=absent
    )
    pixels = [
        (int(t), int(p))
        for name in truth
        for t, p in zip(truth[name].ravel(), predictions[name].ravel(), strict=True)
        if t != 255
    ]
    ious = []
    for value in range(6):
        either = [(t, p) for t, p in pixels if value in (t, p)]
        if either and not (absent == "skipped" and all(t != value for t, _ in pixels)):
            ious.append(sum(t == p for t, p in either) / len(either))
    assert len(ious) == (5 if absent == "counted" else 4)
    assert scores.summary["mIoU"] == pytest.approx(100 * np.mean(ious), rel=1e-12)
    assert scores.categories["e"]["IoU"] == pytest.approx(math.nan if absent == "skipped" else 0, nan_ok=True)
    assert f"predicted only are {'skipped' if absent == 'skipped' else 'counted as 0'}" in scores.variant


def test_mean_over_the_set_is_no_mean_over_images(tmp_path):
    truth = save(tmp_path / "t", {"a": [[0, 1]], "b": [[0] * 98 + [1] * 2]})
    predictions = save(tmp_path / "p", {"a": [[0, 1]], "b": [[0] * 100]})
    scores = score_semantic(truth, predictions, classes=["no", "yes"])
    assert scores.summary["mIoU"] == pytest.approx(100 * (99 / 101 + 1 / 3) / 2)


@pytest.mark.parametrize(("name", "count"), [("voc", 21), ("coco", 81), ("ade20k", 150)])
def test_class_sets(name, count):
    names = CLASS_SETS[name].names
    assert len(names) == len(set(names)) == count
    assert all(name == name.strip() != "" for name in names)
    values = dict(enumerate(names, CLASS_SETS[name].first))
    some = {
        "voc": {0: "background", 15: "person", 20: "tvmonitor"},
        "coco": {1: "person", 12: "stop sign", 13: "parking meter", 80: "toothbrush"},
        "ade20k": {1: "wall", 13: "person", 150: "flag"},
    }[name]
    assert {value: values[value] for value in some} == some


def test_ade20k_has_no_background(tmp_path):
    """0 is not scored where it is true, and a miss where it is predicted."""
    truth = save(tmp_path / "t", {"a": [[0, 0, 1, 1, 150]]})
    predictions = save(tmp_path / "p", {"a": [[1, 0, 1, 0, 150]]})
    scores = score_semantic(truth, predictions, classes="ade20k")
    assert scores.summary == pytest.approx({"mIoU": 75, "pixel_accuracy": 200 / 3, "mean_accuracy": 75})
    assert scores.categories["wall"] == pytest.approx({"IoU": 50, "accuracy": 50, "precision": 100, "pixels": 200 / 3})
    assert scores.problems == []


def test_ade20k_moved_down_by_one_is_refused(tmp_path):
    folder = save(tmp_path / "t", {"a": [[255, 0, 149]]})
    with pytest.raises(ConfigError, match=r"a\.png\n  found 255\n  expected 1 to 150, or 0 for pixels"):
        score_semantic(folder, folder, classes="ade20k")


def test_predicted_ignored_pixels_are_misses(tmp_path):
    """What is predicted where the truth is ignored does not matter."""
    truth = save(tmp_path / "t", {"a": [[0, 0, 1, 255]]})
    predictions = save(tmp_path / "p", {"a": [[0, 255, 255, 200]]})
    scores = score_semantic(truth, predictions, classes=["no", "yes"])
    assert [row["IoU"] for row in scores.categories.values()] == [50, 0]
    assert scores.problems == []


def test_all_ignored_gives_no_numbers(tmp_path):
    folder = save(tmp_path / "t", {"a": [[255, 255]]})
    assert all(math.isnan(value) for value in score_semantic(folder, folder).summary.values())


def zipped(path, folder):
    """Nested, with what macOS adds and a name that leads out."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{SERVER}/", b"")
        for file in folder.iterdir():
            archive.write(file, f"{SERVER}/{file.name}")
            archive.writestr(f"__MACOSX/{SERVER}/._{file.name}", b"no picture")
        archive.writestr("../../outside.png", png([[1]]))
        archive.writestr("readme.txt", b"made by hand")
    return path


def tarred(path, folder):
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.iterdir(), reverse=True):
            archive.add(file, f"./{SERVER}/{file.name}")
        link = tarfile.TarInfo("elsewhere/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def moved(path, folder):
    (path / SERVER).parent.mkdir(parents=True)
    folder.rename(path / SERVER)
    return path


@pytest.mark.parametrize(("name", "pack"), [("p.zip", zipped), ("p.tar.gz", tarred), ("tree", moved)])
@pytest.mark.parametrize("palette", [VOC_PALETTE, None])
def test_layouts_give_the_same(tmp_path, name, pack, palette):
    truth, predictions = drawn(21)
    truth = save(tmp_path / "t", truth)
    wanted = score_semantic(truth, save(tmp_path / "p", predictions))
    packed = pack(tmp_path / name, save(tmp_path / "grey", predictions, palette=palette))
    found = score_semantic(truth, packed)
    assert found.summary == wanted.summary
    assert repr(found.categories) == repr(wanted.categories)
    assert (found.left_out, found.problems) == ([], [])


def test_workers_change_nothing(tmp_path):
    truth, predictions = drawn(21, images=5)
    truth, predictions["2007_000001"] = save(tmp_path / "t", truth), [[0]]
    packed = tarred(tmp_path / "p.tar.gz", save(tmp_path / "p", predictions))
    alone, together = (score_semantic(truth, packed, strict=False, workers=workers) for workers in (1, 2))
    assert [problem.sequence for problem in alone.problems] == ["2007_000001"]
    assert repr(together) == repr(alone)


def test_a_rewritten_archive_is_read_anew(pair, tmp_path):
    truth, predictions = pair
    archive = tarred(tmp_path / "p.tar.gz", predictions)
    assert score_semantic(truth, archive, classes=PETS).summary["mIoU"] == pytest.approx(50)
    tarred(archive, truth)
    os.utime(archive, (0, 0))
    assert score_semantic(truth, archive, classes=PETS).summary["mIoU"] == 100


@pytest.fixture
def faulty(tmp_path):
    """One image with each thing that can be wrong, one that is fine, one too many."""
    truth = {name: np.arange(12).reshape(3, 4) % 3 for name in ("fine", "foreign", "gone", "cut", "rgb", "small")}
    folder = save(tmp_path / "p", {**truth, "extra": [[0]]})
    (folder / "foreign.png").write_bytes(png(np.where(truth["foreign"] == 2, 200, truth["foreign"])))
    (folder / "gone.png").unlink()
    (folder / "cut.png").write_bytes(png(truth["cut"])[:-30])
    Image.new("RGB", (4, 3)).save(folder / "rgb.png")
    (folder / "small.png").write_bytes(png([[1, 2]]))
    return save(tmp_path / "t", truth), folder


def test_strictness_tells_everything_at_once(faulty):
    with pytest.raises(ScoringError, match="cannot be scored as they are") as error:
        score_semantic(*faulty, classes=PETS)
    assert {problem.sequence: problem.kind for problem in error.value.problems} == {
        "cut": ProblemKind.UNREADABLE,
        "foreign": ProblemKind.UNKNOWN_CLASS,
        "gone": ProblemKind.MISSING_IMAGE,
        "rgb": ProblemKind.NOT_INDEXED,
        "small": ProblemKind.WRONG_SIZE,
    }
    text = str(error.value)
    assert str(faulty[1]) in text
    for words in ("found 200, expected 0 to 3, or 255", "found 2x1, expected 4x3", "mode RGB"):
        assert words in text


def test_leniency_lets_zeros_and_the_nearest_pixel_stand_in(faulty, tmp_path):
    truth, predictions = faulty
    found = score_semantic(truth, predictions, classes=PETS, strict=False)
    assert [problem.sequence for problem in found.problems] == ["cut", "foreign", "gone", "rgb", "small"]
    assert [item.sequence for item in found.left_out] == ["extra"]
    zeros = np.zeros((3, 4))
    labels = np.arange(12).reshape(3, 4) % 3
    mended = {"fine": labels, "gone": zeros, "cut": zeros, "rgb": zeros, "small": [[1, 1, 2, 2]] * 3}
    mended["foreign"] = np.where(labels == 2, 255, labels)
    wanted = score_semantic(truth, save(tmp_path / "mended", mended), classes=PETS)
    assert found.summary == wanted.summary
    assert repr(found.categories) == repr(wanted.categories)


def test_extra_predictions_are_said_and_change_nothing(pair):
    truth, predictions = pair
    wanted = score_semantic(truth, predictions, classes=PETS)
    save(predictions, {"z": [[7]]})
    found = score_semantic(truth, predictions, classes=PETS)
    assert found.summary == wanted.summary
    assert [(item.sequence, item.frames) for item in found.left_out] == [("z", ())]


@pytest.fixture
def devkit(tmp_path):
    truth, predictions = drawn(21, images=4)
    root = tmp_path / "VOCdevkit" / "VOC2012"
    save(root / "SegmentationClass", truth)
    save(root / "SegmentationObject", predictions)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_000001\n2007_000003")  # without an end of line, as one that goes round
    return root, save(tmp_path / "p", predictions)


@pytest.mark.parametrize("above", [0, 1, 2])
def test_a_root_means_its_val_list(devkit, above):
    root, predictions = devkit
    scores = score_semantic((root, *root.parents)[above], predictions)
    assert "2 images" in scores.variant
    assert [item.sequence for item in scores.left_out] == ["2007_000000", "2007_000002"]
    folder = root / "SegmentationClass"
    same = score_semantic(folder, predictions, split=str(root / "ImageSets" / "Segmentation" / "val.txt"))
    assert repr(scores) == repr(same)
    assert "4 images" in score_semantic(folder, predictions).variant


@pytest.mark.parametrize(
    "content",
    [
        b"2007_000000\n2007_000002\n",
        b"\xef\xbb\xbf2007_000000\r\n\r\n2007_000002\r\n2007_000000\r\n",
        b"/JPEGImages/2007_000000.jpg /SegmentationClassAug/2007_000000.png\n"
        b"/JPEGImages/2007_000002.jpg /SegmentationClassAug/2007_000002.png\n",
    ],
    ids=["plain", "windows", "paths"],
)
def test_lists(devkit, tmp_path, content):
    root, predictions = devkit
    (tmp_path / "list.txt").write_bytes(content)
    scores = score_semantic(root, predictions, split=str(tmp_path / "list.txt"))
    assert "2 images" in scores.variant
    assert [item.sequence for item in scores.left_out] == ["2007_000001", "2007_000003"]


@pytest.mark.parametrize("above", [0, 1, 2])
def test_lists_of_the_dataset_go_by_their_names(devkit, tmp_path, monkeypatch, above):
    root, predictions = devkit
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_000000\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").write_text("2007_000002\n")  # a file of that name counts for less
    (tmp_path / "mine").write_text("2007_000001\n2007_000002\n")
    truth = (root, *root.parents)[above]
    for split, names in (
        ("train", ["2007_000000"]),
        ("val", ["2007_000001", "2007_000003"]),
        ("mine", ["2007_000001", "2007_000002"]),
    ):
        scores = score_semantic(truth, predictions, split=split)
        assert {item.sequence for item in scores.left_out} == {f"2007_{n:06}" for n in range(4)} - set(names)
        assert repr(score(truth, predictions, "semantic", split=split)) == repr(scores)
    with pytest.raises(DatasetNotFoundError, match="vall") as error:
        score_semantic(truth, predictions, split="vall")
    assert len(str(error.value).splitlines()) <= 8


def test_augmented_truth_is_taken_where_there_is_no_other(devkit):
    root, predictions = devkit
    wanted = score_semantic(root, predictions)
    (root / "SegmentationClass").rename(root / "SegmentationClassAug")
    assert repr(score_semantic(root, predictions)) == repr(wanted)


def test_own_classes(pair, tmp_path):
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in PETS))
    wanted = score_semantic(*pair, classes=PETS)
    assert repr(score_semantic(*pair, classes=str(tmp_path / "classes.txt"))) == repr(wanted)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ("vox", "Unknown classes: vox\n  expected one of voc, coco, ade20k"),
        ([], "found 0"),
        (["a", "b", "a"], "more than once: 'a'"),
        (["a", ""], "more than once: ''"),
        ([str(number) for number in range(256)], "found 256"),
        (["a", "b"], r"truth.b\.png\n  found 2\n  expected 0 to 1, or 255"),
    ],
)
def test_classes_that_do_not_fit(pair, classes, words):
    with pytest.raises(ConfigError, match=words) as error:
        score_semantic(*pair, classes=classes)
    assert len(str(error.value).splitlines()) <= 8


def test_raw_coco_ids_are_named(tmp_path):
    folder = save(tmp_path / "t", {"COCO_val2014_000000000042": [[0, 90]]})
    with pytest.raises(ConfigError, match=r"found 90\n  expected 0 to 80(.|\n)*order of their ids, which have gaps"):
        score_semantic(folder, folder, classes="coco")


def without_list(truth, predictions):
    return {"split": str(truth / "no.txt")}


def empty_list(truth, predictions):
    (truth / "list.txt").write_text("\n")
    return {"split": str(truth / "list.txt")}


def list_that_leads_out(truth, predictions):
    (truth / "list.txt").write_text("a\n../../../etc/passwd\n")
    return {"split": str(truth / "list.txt")}


def no_predictions(truth, predictions):
    for file in predictions.iterdir():
        file.unlink()
    return {}


def other_predictions(truth, predictions):
    for file in predictions.iterdir():
        file.rename(predictions / f"mask_{file.name}")
    return {"strict": False}


def two_folders(truth, predictions):
    for name in "ab":
        (predictions / f"{name}.dir").mkdir()
        (predictions / f"{name}.png").rename(predictions / f"{name}.dir" / f"{name}.png")
    return {}


def damaged_truth(truth, predictions):
    (truth / "a.png").write_bytes(b"no picture")
    return {}


def truth_that_points_nowhere(truth, predictions):
    (truth / "a.png").unlink()
    (truth / "a.png").symlink_to(truth / "elsewhere.png")
    return {"strict": False}


def truth_in_colours(truth, predictions):
    Image.new("RGB", (4, 1)).save(truth / "a.png")
    return {}


def no_folder(truth, predictions):
    return {"prediction": predictions / "no"}


def no_truth(truth, predictions):
    return {"ground_truth": truth / "no"}


def no_archive(truth, predictions):
    (predictions / "a.zip").write_bytes(b"PK no more")
    return {"prediction": predictions / "a.zip"}


def cut_archive(truth, predictions):
    archive = tarred(truth / "p.tar.gz", predictions)
    archive.write_bytes(archive.read_bytes()[:200])
    return {"prediction": archive}


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (without_list, DatasetNotFoundError, r"List that cannot be read: .*no\.txt"),
        (empty_list, DatasetNotFoundError, r"List without names: .*list\.txt"),
        (list_that_leads_out, DatasetNotFoundError, r"1 of the 2 images of a list: .*list\.txt\n  missing in .*passwd"),
        (no_predictions, DatasetNotFoundError, r"No images(.|\n)*found folders with PNGs: none"),
        (other_predictions, ScoringError, r"any of the 2 images(.|\n)*found mask_a, mask_b\n  expected a, b"),
        (two_folders, DatasetNotFoundError, r"found folders with PNGs: a\.dir, b\.dir"),
        (damaged_truth, MaskError, r"truth.a\.png"),
        (truth_that_points_nowhere, MaskError, r"truth.a\.png"),
        (truth_in_colours, MaskError, r"truth.a\.png\n  found PNG of mode RGB"),
        (no_folder, DatasetNotFoundError, r"not found: .*no\n"),
        (no_truth, DatasetNotFoundError, r"Ground truth not found: .*no\n"),
        (no_archive, DatasetNotFoundError, r"Archive that cannot be read: .*a\.zip"),
        (cut_archive, DatasetNotFoundError, r"Archive that cannot be read: .*p\.tar\.gz"),
    ],
)
def test_what_cannot_be_scored_says_why(pair, spoil, kind, words):
    truth, predictions = pair
    arguments = {"ground_truth": truth, "prediction": predictions, **spoil(truth, predictions)}
    with pytest.raises(kind, match=words) as error:
        score_semantic(**arguments, classes=PETS)
    assert isinstance(error.value, UserError)
    assert len(str(error.value).splitlines()) <= 8


def test_damaged_members_of_an_archive_are_problems(pair, tmp_path):
    truth, predictions = pair
    archive = zipped(tmp_path / "p.zip", predictions)
    data = bytearray(archive.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 255  # another checksum than the archive says
    archive.write_bytes(data)
    scores = score_semantic(truth, archive, classes=PETS, strict=False)
    assert [problem.kind for problem in scores.problems] == [ProblemKind.UNREADABLE]


def test_needs_no_torch():
    code = (
        "import sys, lightning_vos.evaluation.semantic, lightning_vos.evaluation.holdout\n"
        "sys.exit(', '.join({'torch', 'torchmetrics', 'scipy', 'pandas', 'PIL'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


STEPS = (0.0, 0.2, 0.4, 0.6, 0.8)


@pytest.fixture
def run(tmp_path):
    """Truth, and the folder of a run with label maps, class maps of other sizes, and PNGs that are no label maps."""
    random = np.random.default_rng(5)
    truth, predictions = drawn(4, images=4)
    folder = tmp_path / "run"
    save(folder / "masks", predictions)
    save(folder / "overlays", {"2007_000000": [[9]]})
    for name, values in zip(truth, ([3, 1], [1], [], [1, 2, 3]), strict=True):
        maps = random.integers(0, 6, (len(values), 3, 4)) / 5
        write_class_maps(folder / "maps" / f"{name}.npz", values, maps)
    (folder / "protocol.txt").write_text("a set val: labels predicted,\n  threshold mean\n")
    return save(tmp_path / "truth", truth), folder


def label_map_at(path, threshold, size):
    """The label map at one threshold, class by class."""
    with np.load(path) as file:
        values, maps = file["values"], file["maps"] / np.float32(255)
    planes = [np.full(size, threshold, np.float32)]
    planes += [cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) for plane in maps]
    return np.array([0, *values])[np.argmax(planes, axis=0)]


@pytest.mark.parametrize("absent", ["counted", "skipped"])
def test_each_threshold_of_a_sweep_is_scored_as_its_label_maps_would_be(run, tmp_path, absent):
    truth, folder = run
    scores = score_semantic(truth, folder, classes=PETS, absent=absent, sweep=STEPS)
    assert list(scores.thresholds) == list(STEPS)
    for threshold, summary in scores.thresholds.items():
        maps = {
            path.stem: label_map_at(folder / "maps" / f"{path.stem}.npz", threshold, np.array(Image.open(path)).shape)
            for path in truth.iterdir()
        }
        alone = score_semantic(truth, save(tmp_path / f"{threshold}", maps), classes=PETS, absent=absent)
        assert summary == pytest.approx(alone.summary)
    assert len({summary["mIoU"] for summary in scores.thresholds.values()}) > 1
    plain = score_semantic(truth, folder / "masks", classes=PETS, absent=absent)
    assert scores.summary == plain.summary
    assert plain.thresholds == {}


def test_a_sweep_by_hand(tmp_path):
    """Values that equal the threshold are background; so is what is true of it where no class is above."""
    truth = save(tmp_path / "truth", {"a": [[0, 1, 1, 2, 255]]})
    folder = tmp_path / "run"
    save(folder / "masks", {"a": [[0] * 5]})
    write_class_maps(folder / "maps/a.npz", [2, 1], np.array([[[0.2, 0.2, 0.4, 1.0, 1]], [[0.4, 0.6, 0.2, 0, 0]]]))
    scores = score_semantic(truth, folder, classes=PETS, sweep=(0.0, 0.2, 0.4, 0.6))
    shares = {0.0: (0, 1 / 3, 1 / 2), 0.2: (0, 1 / 3, 1 / 2), 0.4: (1 / 2, 1 / 2, 1), 0.6: (1 / 3, 0, 1)}
    for threshold, of_classes in shares.items():
        assert scores.thresholds[threshold]["mIoU"] == pytest.approx(100 * np.mean(of_classes))


def test_how_label_maps_were_made_is_told(run):
    truth, folder = run
    for prediction in (folder, folder / "masks"):
        told = score_semantic(truth, prediction, classes=PETS).variant
        assert told.endswith(" The label maps were made with: a set val: labels predicted, threshold mean.")
        told = score_semantic(truth, prediction, classes=PETS, sweep=STEPS).variant
        assert "threshold mean. Thresholds are tried" in told
        assert told.endswith("the best one is found with the truth of the pixels.")
    (folder / "protocol.txt").unlink()
    assert "not told" not in score_semantic(truth, folder, classes=PETS).variant
    assert (
        "How the label maps were made is not told" in score_semantic(truth, folder, classes=PETS, sweep=STEPS).variant
    )


def test_a_run_of_other_classes_is_refused(run):
    truth, folder = run
    record = folder / "made_with.json"
    for noted in ({"classes": ["cat", "dog", "cow"]}, {"weights": "0"}, []):
        record.write_text(json.dumps(noted))
        score_semantic(truth, folder, classes=PETS)
    record.write_text(json.dumps({"classes": ["cat", "dog", "polyps"]}))
    for prediction in (folder, folder / "masks"):
        with pytest.raises(ConfigError, match=r"of which polyps are not among background, cat, dog, cow\n.*--classes"):
            score_semantic(truth, prediction, classes=PETS)


def test_the_list_is_told(devkit):
    root, predictions = devkit
    assert "2 images of the list val and 21 classes" in score_semantic(root, predictions).variant


def test_workers_change_no_sweep(run):
    truth, folder = run
    alone, together = (score_semantic(truth, folder, classes=PETS, sweep=STEPS, workers=workers) for workers in (1, 2))
    assert repr(together) == repr(alone)


def test_class_maps_that_are_not_there_are_problems(run):
    truth, folder = run
    names = sorted(path.stem for path in truth.iterdir())
    (folder / "maps" / f"{names[0]}.npz").unlink()
    (folder / "maps" / f"{names[1]}.npz").write_bytes(b"cut off")
    with pytest.raises(ScoringError, match="cannot be scored as they are") as error:
        score_semantic(truth, folder, classes=PETS, sweep=STEPS)
    kinds = [(problem.sequence, problem.kind) for problem in error.value.problems]
    assert kinds == [(names[0], ProblemKind.MISSING_IMAGE), (names[1], ProblemKind.UNREADABLE)]
    forgiven = score_semantic(truth, folder, classes=PETS, sweep=STEPS, strict=False)
    for name in names[:2]:
        write_class_maps(folder / "maps" / f"{name}.npz", [], np.empty((0, 1, 1)))
    assert score_semantic(truth, folder, classes=PETS, sweep=STEPS).thresholds == forgiven.thresholds


@pytest.mark.parametrize(
    ("values", "options", "kind", "words"),
    [
        ([4], {}, ConfigError, r"values of no class: .*2007_000000\.npz\n  found 4\n  expected 1 to 3"),
        ([0], {}, ConfigError, "found 0"),
        ([1], {"classes": "ade20k"}, ConfigError, "no threshold of the background to try: ADE20K"),
        ([1], {"sweep": ()}, ConfigError, "expected rising numbers"),
        ([1], {"sweep": (0.2, 0.1)}, ConfigError, "expected rising numbers"),
        ([1], {"sweep": (0.2, 1.0)}, ConfigError, "expected rising numbers"),
        ([1], {"prediction": "overlays"}, DatasetNotFoundError, r"No class maps to try thresholds with: .*maps"),
    ],
)
def test_sweeps_that_cannot_be_made(run, values, options, kind, words):
    truth, folder = run
    write_class_maps(folder / "maps/2007_000000.npz", values, np.ones((len(values), 2, 2)))
    prediction = folder / options.pop("prediction", ".")
    arguments = {"classes": PETS, "sweep": STEPS, **options}
    with pytest.raises(kind, match=words) as error:
        score_semantic(truth, prediction, **arguments)
    assert len(str(error.value).splitlines()) <= 8


def test_a_sweep_on_the_command_line(run, tmp_path, capsys):
    truth, folder = run
    (tmp_path / "classes.txt").write_text("\n".join(PETS))
    words = [str(truth), str(folder), "--protocol", "semantic", "--classes", str(tmp_path / "classes.txt")]
    score_command([*words, "--sweep", "0:0.8:0.2", "--json", str(tmp_path / "s.json"), "--csv", str(tmp_path / "csv")])
    printed = capsys.readouterr().out
    scores = score(truth, folder, "semantic", classes=PETS, sweep=STEPS)
    best = max(STEPS, key=lambda step: scores.thresholds[step]["mIoU"])
    line = next(line for line in printed.splitlines() if "best of the sweep" in line)
    assert f"mIoU {scores.thresholds[best]['mIoU']:.1f} at {best:g}, chosen with the truth of the pixels" in line
    assert f"the label maps as they are: mIoU {scores.summary['mIoU']:.1f}" in line
    rows = [line for line in printed.splitlines() if re.match(r"│ 0(\.\d)? ", line)]
    assert [row.split("│")[1].strip() for row in rows] == [f"{step:g}" for step in STEPS]
    assert ["best" in row for row in rows] == [step == best for step in STEPS]
    assert "threshold mean." in printed
    written = json.loads((tmp_path / "s.json").read_text())["thresholds"]
    assert written == [{"threshold": step, **row} for step, row in scores.thresholds.items()]
    with (tmp_path / "csv/thresholds.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["threshold"]) for row in table] == list(STEPS)
    assert [float(row["mIoU"]) for row in table] == [row["mIoU"] for row in scores.thresholds.values()]


@pytest.mark.parametrize(
    "text", ["", "0.3", "0:0.6", "a:b:c", "0:0.6:0", "0.6:0:0.1", "0:1:0.1", "-1:0:1", "0:0.9:1e-9"]
)
def test_what_is_no_series_of_thresholds(run, text):
    truth, folder = run
    with pytest.raises(ConfigError, match="expected FIRST:LAST:STEP"):
        score_command([str(truth), str(folder), "--protocol", "semantic", f"--sweep={text}"])


def test_the_usual_series_of_thresholds():
    assert _steps("0:0.6:0.01") == tuple(number / 100 for number in range(61))
    assert _steps("0.4:0.4:0.1") == (0.4,)
    assert _steps("0:0.5:0.2") == (0.0, 0.2, 0.4)
