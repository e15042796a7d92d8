import json
import math
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from pycocotools import mask as coco

from lightning_vos.errors import DatasetNotFoundError, UserError
from lightning_vos.evaluation.holdout import is_held_out
from lightning_vos.evaluation.problems import ProblemKind, ScoringError
from lightning_vos.evaluation.youtube_vis import (
    TrackEvaluation,
    read_ground_truth,
    read_results,
    run_lengths,
    score_youtube_vis,
)

SIZE = (12, 20)


def box(top, left, bottom, right, size=SIZE):
    mask = np.zeros(size, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def compressed(mask):
    """What a results file holds for a frame."""
    if mask is None:
        return None
    rle = coco.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def runs_of(mask):
    """What the truth of YouTube-VIS holds for a frame."""
    pixels = np.r_[0, mask.ravel("F"), 2]
    changes = np.flatnonzero(np.diff(pixels[:-1].astype(int))).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, mask.size]).tolist()}


def true(video_id, category, masks, **more):
    return {
        "video_id": video_id,
        "category_id": category,
        "iscrowd": 0,
        "segmentations": [None if mask is None else runs_of(mask) for mask in masks],
        "areas": [None if mask is None else int(mask.sum()) for mask in masks],
        **more,
    }


def result(video_id, category, score, masks, **more):
    return {
        "video_id": video_id,
        "category_id": category,
        "score": score,
        "segmentations": [compressed(mask) for mask in masks],
        **more,
    }


@pytest.fixture
def written(tmp_path):
    """A function that writes truth and results, and gives where they are."""

    def write(annotations, results, size=SIZE, videos=None, categories=("cat", "dog")):
        lengths = {row["video_id"]: len(row["segmentations"]) for row in annotations}
        rows = [
            {
                "id": video_id,
                "height": size[0],
                "width": size[1],
                "length": length,
                "file_names": [f"{(videos or {}).get(video_id, f'v{video_id}')}/{t:05}.jpg" for t in range(length)],
            }
            for video_id, length in lengths.items()
        ]
        content = {
            "videos": rows,
            "categories": [{"id": number, "name": name} for number, name in enumerate(categories, start=1)],
            "annotations": [{"id": number, **row} for number, row in enumerate(annotations, start=1)],
        }
        (tmp_path / "truth").mkdir(exist_ok=True)
        (tmp_path / "truth" / "instances.json").write_text(json.dumps(content))
        (tmp_path / "results.json").write_text(json.dumps(results))
        return tmp_path / "truth" / "instances.json", tmp_path / "results.json"

    return write


BOX, OTHER = box(2, 2, 8, 8), box(1, 10, 11, 19)
CAT = true(1, 1, [BOX, BOX, None])
FOUND = result(1, 1, 0.9, [BOX, BOX, None])


def test_what_is_found_exactly(written, capfd):
    scores = score_youtube_vis(*written([CAT], [FOUND]))
    assert scores.protocol == "youtube_vis"
    assert {name for name, value in scores.summary.items() if value == pytest.approx(100)} == {
        *("AP", "AP50", "AP75", "AP_small", "AR1", "AR10", "AR100", "AR_small")
    }
    assert {name for name, value in scores.summary.items() if math.isnan(value)} == {
        *("AP_medium", "AP_large", "AR_medium", "AR_large")
    }
    assert scores.categories["cat"]["AP"] == pytest.approx(100)
    assert math.isnan(scores.categories["dog"]["AP"])
    assert [item.reason for item in scores.left_out] == ["no truth of dog: not part of any mean"]
    assert not scores.problems
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("masks", "iou"),
    [
        ([BOX, None, None], 1 / 2),
        ([BOX, BOX, BOX], 2 / 3),
        ([None, None, None], 0),
        ([None, None, OTHER], 0),
        ([box(2, 2, 8, 5), box(2, 5, 8, 8), np.zeros(SIZE, np.uint8)], 1 / 2),
        ([BOX], 1),  # of frames that both list
        ([BOX, BOX, None, BOX], 1),
    ],
)
def test_iou_by_hand(written, masks, iou):
    truth = read_ground_truth((paths := written([CAT], [result(1, 1, 0.5, masks)]))[0])
    evaluation = TrackEvaluation(truth, read_results(paths[1], truth).tracks)
    assert evaluation.computeIoU(1, 1).tolist() == [[iou]]
    assert evaluation.computeIoU(1, 2).shape == (0, 0)
    if len(masks) == 3:
        thresholds = np.linspace(0.5, 0.95, 10)
        expected = 100 * np.mean(iou >= thresholds)
        assert score_youtube_vis(*paths).summary["AR100"] == pytest.approx(expected)


def test_iou_of_random_tracks_is_that_of_their_pixels(written):
    random = np.random.default_rng(0)
    size = (37, 53)

    def drawn():
        blobs = np.kron(random.random((5, 6, 7)) < 0.4, np.ones((1, 8, 8))).astype(np.uint8)[:, : size[0], : size[1]]
        return [None if random.random() < 0.2 else blob for blob in blobs]

    trues, founds = [drawn() for _ in range(4)], [drawn() for _ in range(6)]
    annotations = [true(1, 1, masks) for masks in trues]
    truth_file, results_file = written(annotations, [result(1, 1, 0.5, masks) for masks in founds], size=size)
    truth = read_ground_truth(truth_file)
    measured = TrackEvaluation(truth, read_results(results_file, truth).tracks).computeIoU(1, 1)

    def dense(masks):
        return np.stack([np.zeros(size, bool) if mask is None else mask > 0 for mask in masks])

    for row, ours in enumerate(map(dense, founds)):
        for column, theirs in enumerate(map(dense, trues)):
            assert measured[row, column] == (ours & theirs).sum() / (ours | theirs).sum()


def test_all_ways_to_write_a_mask(written):
    polygon = [[2, 2, 8, 2, 8, 8, 2, 8]]
    cut = runs_of(BOX)["counts"]
    cut = [cut[0], 2, 0, cut[1] - 2, *cut[2:], 0]  # runs of no pixel within and at the end
    spaced = coco.frPyObjects({"size": list(SIZE), "counts": cut}, *SIZE)
    forms = [runs_of(BOX), compressed(BOX), polygon, {"size": SIZE, "counts": cut}]
    annotations = [true(1, 1, [BOX] * len(forms), segmentations=forms)]
    own = result(1, 1, 0.5, [], segmentations=[{"size": SIZE, "counts": spaced["counts"].decode()}] * len(forms))
    paths = written(annotations, [own, result(1, 1, 0.4, [BOX] * len(forms))])
    truth = read_ground_truth(paths[0])
    assert np.diff(truth.tracks[1, 1][0].pixels).tolist() == [0, 0, 0]
    measured = TrackEvaluation(truth, read_results(paths[1], truth).tracks).computeIoU(1, 1)
    assert measured.tolist() == [[1], [1]]


def test_areas_are_those_of_the_truth_file_and_limits_belong_to_both_ranges(written):
    at_limit = true(1, 1, [BOX, BOX, None], areas=[128**2, 128**2, None])
    scores = score_youtube_vis(*written([at_limit], [FOUND]))
    assert (scores.summary["AR_small"], scores.summary["AR_medium"]) == (100, 100)
    assert math.isnan(scores.summary["AR_large"])
    large = true(1, 1, [BOX, BOX, None], areas=[2 * 256**2, 0, None])  # the mean passes over frames without area
    scores = score_youtube_vis(*written([large], [FOUND]))
    assert scores.summary["AR_large"] == 100
    assert math.isnan(scores.summary["AR_medium"])


def test_crowds_are_left_out_whatever_matches_them(written):
    crowd = true(1, 1, [OTHER] * 3, iscrowd=1, id=70)
    results = [result(1, 1, 0.95, [OTHER] * 3), result(1, 1, 0.94, [OTHER] * 3), FOUND]
    scores = score_youtube_vis(*written([CAT, crowd], results))
    assert scores.summary["AP"] == pytest.approx(100)
    assert [(item.sequence, item.objects) for item in scores.left_out if item.objects] == [("v1", (70,))]
    half = result(1, 1, 0.95, [box(1, 10, 11, 14)] * 3)  # within the crowd: COCO would call that an IoU of 1
    assert score_youtube_vis(*written([CAT, crowd], [half, FOUND])).summary["AP"] == pytest.approx(50)


def test_an_id_of_0_is_an_id_like_others(written):
    scores = score_youtube_vis(*written([{**CAT, "id": 0}], [FOUND]))
    assert scores.summary["AP"] == pytest.approx(100)


def test_of_more_than_a_hundred_results_the_best_hundred_count(written):
    wrong = [result(1, 1, 0.5, [OTHER, None, None]) for _ in range(100)]
    paths = written([CAT], [*wrong, FOUND])
    scores = score_youtube_vis(*paths)
    assert (scores.summary["AR1"], scores.summary["AR100"]) == (100, 100)
    assert [(item.sequence, item.reason) for item in scores.left_out][1:] == [
        ("v1", "1 results of cat beyond the 100 of highest score")
    ]
    late = {**FOUND, "score": 0.5}  # equal scores: the first of the file
    assert score_youtube_vis(*written([CAT], [*wrong, late])).summary["AR100"] == 0
    ten = [*wrong[:9], late]
    summary = score_youtube_vis(*written([CAT], ten)).summary
    assert (summary["AR1"], summary["AR10"]) == (0, 100)
    assert summary["AP"] == pytest.approx(10)


LIST = compressed(BOX)
TEN = {
    "unknown video": (result(7, 1, 0.9, [BOX]), ProblemKind.EXTRA_SEQUENCE, "video 7", None, "no video_id 7"),
    "unknown category": (result(1, 9, 0.9, [BOX] * 3), ProblemKind.UNKNOWN_CATEGORY, "v1", None, "no category_id 9"),
    "few frames": (result(1, 1, 0.9, [BOX]), ProblemKind.WRONG_LENGTH, "v1", None, "1 segmentations, .* 3 frames"),
    "size": (
        result(1, 1, 0.9, [None, BOX.T, None]),
        *(ProblemKind.WRONG_SIZE, "v1", "00001", r"size \[20, 12\], expected \[12, 20\]"),
    ),
    "no object": (["cat"], ProblemKind.MALFORMED, "", None, "expected an object"),
    "no video": ({"score": 1}, ProblemKind.MALFORMED, "", None, "no video_id"),
    "true is no id": ({**FOUND, "video_id": True}, ProblemKind.MALFORMED, "", None, "video_id True"),
    "no number": ({**FOUND, "score": "0.9"}, ProblemKind.MALFORMED, "v1", None, "score '0.9', expected a finite"),
    "nan": ({**FOUND, "score": math.nan}, ProblemKind.MALFORMED, "v1", None, "score nan"),
    "huge": ({**FOUND, "score": 10**400}, ProblemKind.MALFORMED, "v1", None, "score 1000"),
    "infinite": ({**FOUND, "score": math.inf}, ProblemKind.MALFORMED, "v1", None, "score inf"),
    "no list": ({**FOUND, "segmentations": LIST}, ProblemKind.MALFORMED, "v1", None, "expected a list"),
    **{
        name: ({**FOUND, "segmentations": [mask, None, None]}, ProblemKind.MALFORMED, "v1", "00000", reason)
        for name, mask, reason in [
            ("no rle", 3, "3, expected null or a compressed RLE"),
            ("uncompressed", runs_of(BOX), "whose counts are text"),
            ("no size", {"counts": LIST["counts"]}, "no size"),
            ("nothing", {**LIST, "counts": ""}, "no compressed RLE"),
            ("foreign letters", {**LIST, "counts": "äöü"}, "no compressed RLE"),
            ("surrogate", {**LIST, "counts": "\ud800"}, "no compressed RLE"),
            ("zero byte", {**LIST, "counts": LIST["counts"] + "\0"}, "no compressed RLE"),
            ("open end", {**LIST, "counts": "ooo"}, "no compressed RLE"),
            ("too long a number", {**LIST, "counts": "oooooooo1"}, "no compressed RLE"),
            ("negative run", {**LIST, "counts": "O"}, "no compressed RLE"),
            ("too few pixels", {**LIST, "counts": "52"}, "counts of 7 pixels, expected 240"),
            ("too many pixels", {**LIST, "counts": LIST["counts"] + "9"}, "expected 240"),
        ]
    },
}


@pytest.mark.parametrize(("entry", "kind", "sequence", "frame", "reason"), TEN.values(), ids=TEN)
def test_what_is_wrong_with_a_result_is_told_and_forgiven(written, entry, kind, sequence, frame, reason):
    paths = written([CAT], [{**FOUND, "score": 0.95}, entry, entry])
    with pytest.raises(ScoringError, match=reason) as caught:
        score_youtube_vis(*paths)
    (problem,) = caught.value.problems
    assert (problem.kind, problem.sequence, problem.frame) == (kind, sequence, frame)
    assert "results[1], results[2]" in problem.reason
    assert len(str(caught.value).splitlines()) <= 8
    scores = score_youtube_vis(*paths, strict=False)
    assert [*scores.problems] == [problem]
    assert scores.summary["AP"] == pytest.approx(100)
    left_out = [item for item in scores.left_out if item.reason == problem.reason]
    assert len(left_out) == (problem.remedy == "the result is left out")


def test_an_empty_mask_stands_in_for_one_that_cannot_be_used(written):
    entry = result(1, 1, 0.9, [BOX, BOX.T, None])
    scores = score_youtube_vis(*written([CAT], [entry]), strict=False)
    assert scores.summary["AR100"] == pytest.approx(10)  # IoU 1/2


def test_all_problems_are_told_at_once(written):
    entries = [entry for entry, *_ in TEN.values()]
    with pytest.raises(ScoringError) as caught:
        score_youtube_vis(*written([CAT], [FOUND, *entries]))
    assert len(caught.value.problems) == len(TEN)
    many = [result(1, 1, 0.9, [BOX])] * 50
    with pytest.raises(ScoringError, match=r"results\[0\], results\[1\], results\[2\], ... 50 results") as caught:
        score_youtube_vis(*written([CAT], many))
    assert len(caught.value.problems) == 1


@pytest.mark.filterwarnings("ignore:__array__")  # pycocotools on NumPy 2
def test_no_text_that_passes_harms_pycocotools():
    """Damaged texts are refused, or mean what pycocotools takes them for."""
    random = np.random.default_rng(0)
    letters = [chr(code) for code in range(45, 115)]
    passed = 0
    for _ in range(3000):
        text = list(compressed((random.random(SIZE) < random.random()).astype(np.uint8))["counts"])
        for _ in range(random.integers(0, 3)):
            place = random.integers(len(text))
            text[place : place + random.integers(0, 2)] = random.choice(letters, random.integers(0, 3)).tolist()
        runs = run_lengths("".join(text))
        if runs is not None and runs.sum() == SIZE[0] * SIZE[1]:
            passed += 1
            mask = coco.decode({"size": list(SIZE), "counts": "".join(text)})
            np.testing.assert_array_equal(mask.ravel("F"), np.repeat(np.arange(runs.size) % 2, runs))
    assert 500 < passed < 2500


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "an empty list"),
        (b'{"annotations": []}', r"a JSON object with \['annotations'\]"),
        (b"3", "a JSON of type int"),
        (b"[", "Expecting value"),
        (b"\xff\xfe\x00", "decode"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_holds_no_results(written, content, reason):
    truth, results = written([CAT], [])
    results.write_bytes(content)
    for strict in (True, False):
        with pytest.raises(ScoringError, match=f"found {reason}|{reason}.*expected a list of results") as caught:
            score_youtube_vis(truth, results, strict=strict)
        assert str(results) in str(caught.value)
        assert len(caught.value.problems) == 1


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_results_in_a_zip(written, tmp_path):
    truth, results = written([CAT], [FOUND])
    content = results.read_text()
    expected = score_youtube_vis(truth, results)
    for members in (
        {"results.json": content, "instances.json": "[]"},
        {"mine.json": content, "readme.txt": ""},
        {"../../outside.json": content, "__MACOSX/._outside.json": "x"},
    ):
        before = sorted(tmp_path.rglob("*"))
        assert score_youtube_vis(truth, zipped(tmp_path / "packed.zip", members)).summary == pytest.approx(
            expected.summary, nan_ok=True
        )
        assert set(tmp_path.rglob("*")) - set(before) <= {tmp_path / "packed.zip"}
    assert score_youtube_vis(truth, tmp_path).summary == pytest.approx(expected.summary, nan_ok=True)  # the folder
    for members in ({"a.json": content, "b.json": content}, {"readme.txt": ""}):
        with pytest.raises(ScoringError, match=r"a zip with .* in place of results\.json"):
            score_youtube_vis(truth, zipped(tmp_path / "packed.zip", members))
    packed = zipped(tmp_path / "packed.zip", {"results.json": content})
    damaged = bytearray(packed.read_bytes())
    damaged[60] ^= 255
    packed.write_bytes(damaged)
    with pytest.raises(ScoringError, match="unreadable file"):
        score_youtube_vis(truth, packed)
    with pytest.raises(DatasetNotFoundError, match="No results"):
        score_youtube_vis(truth, tmp_path / "nowhere.json")


def test_ground_truth_in_a_folder(written, tmp_path):
    truth, results = written([CAT], [FOUND])
    folder = truth.parent
    assert score_youtube_vis(folder, results).summary["AP50"] == pytest.approx(100)
    (folder / "annotations").mkdir()
    truth.rename(folder / "annotations" / "instances_train_sub.json")
    (folder / "results.json").write_text("[]")
    assert score_youtube_vis(folder, results).summary["AP50"] == pytest.approx(100)
    (folder / "other.json").write_text("{}")
    with pytest.raises(DatasetNotFoundError, match=r"found annotations/instances_train_sub\.json, other\.json"):
        score_youtube_vis(folder, results)
    with pytest.raises(DatasetNotFoundError, match="found no such file or folder"):
        score_youtube_vis(tmp_path / "nowhere", results)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetNotFoundError, match="found no JSON"):
        score_youtube_vis(tmp_path / "empty", results)


@pytest.mark.parametrize("absent", [{}, {"annotations": None}, {"annotations": []}])
def test_truth_that_is_not_public(written, absent):
    truth, results = written([CAT], [FOUND])
    content = json.loads(truth.read_text())
    del content["annotations"]
    truth.write_text(json.dumps({**content, **absent}))
    with pytest.raises(DatasetNotFoundError, match="not public"):
        score_youtube_vis(truth, results)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda c: c.pop("videos"), "the file: no videos"),
        (lambda c: c["videos"].append(c["videos"][0]), r"videos\[1\]: id 1, which an earlier one has"),
        (lambda c: c["videos"][0].update(height=0), r"videos\[0\]: width 20, height 0"),
        (lambda c: c["videos"][0].update(width=2**40), r"videos\[0\]: width"),
        (lambda c: c["videos"][0].update(file_names=[]), "file_names"),
        (lambda c: c["categories"][1].update(name="cat"), "a name that an earlier category has"),
        (lambda c: c["annotations"][0].update(video_id=8), r"annotations\[0\]: of video 8"),
        (lambda c: c["annotations"][0].update(category_id=8), "category 8"),
        (lambda c: c["annotations"][0]["areas"].pop(), "3 segmentations and 2 areas"),
        (lambda c: c["annotations"][0].update(areas=[1, "2", None]), "areas"),
        (lambda c: c["annotations"][0].update(iscrowd=2), "iscrowd 2"),
        (lambda c: c["annotations"][0].pop("id"), "no id"),
        (lambda c: c["annotations"][0]["segmentations"][1].update(counts=[3, -1]), "frame 1 of v1: .*run lengths"),
        (lambda c: c["annotations"][0]["segmentations"][1].update(counts=[3]), "counts of 3 pixels, expected 240"),
        (lambda c: c["annotations"][0]["segmentations"][1].update(counts="oo"), "no compressed RLE"),
        (lambda c: c["annotations"][0]["segmentations"][1].update(size=[1, 2]), "size"),
        (lambda c: c["annotations"][0]["segmentations"].__setitem__(0, [[1, 2, 3, 4]]), "polygon"),
        (lambda c: c["annotations"][0]["segmentations"].__setitem__(0, [[1, 2, 3, 4, 5, 1e9]]), "polygon"),
    ],
)
def test_malformed_truth(written, damage, reason):
    truth, results = written([CAT], [FOUND])
    content = json.loads(truth.read_text())
    damage(content)
    truth.write_text(json.dumps(content))
    with pytest.raises(DatasetNotFoundError, match=reason) as caught:
        score_youtube_vis(truth, results)
    assert str(truth) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 8


def test_splits(written, tmp_path):
    names = {number: f"{number:010x}" for number in range(1, 60)}
    held_out = [name for name in names.values() if is_held_out(name)]
    assert 0 < len(held_out) < len(names)
    annotations = [true(number, 1, [BOX]) for number in names]
    # What is found is what is held out, but for one result that nothing can be made of.
    results = [result(number, 1, 0.5, [BOX]) for number, name in names.items() if is_held_out(name)]
    other = next(number for number, name in names.items() if not is_held_out(name))
    paths = written(annotations, [*results, result(other, 9, 0.5, [BOX.T])], videos=names)
    scores = score_youtube_vis(*paths, split="holdout_val")
    assert scores.summary["AP"] == pytest.approx(100)
    reason = f"{len(names) - len(held_out)} of {len(names)} videos are not in the split"
    assert reason in [item.reason for item in scores.left_out]
    assert score_youtube_vis(*paths, split="holdout_train", strict=False).summary["AP"] == 0
    listed = tmp_path / "list.txt"
    listed.write_text(f"{held_out[0]}\n\n{other}\n")
    assert score_youtube_vis(*paths, split=str(listed), strict=False).summary["AR1"] == pytest.approx(50)
    for content in ("nothing\n", "\n"):
        listed.write_text(content)
        with pytest.raises(UserError, match=r"list\.txt names"):
            score_youtube_vis(*paths, split=str(listed))
    with pytest.raises(UserError, match="no split 'val'"):
        score_youtube_vis(*paths, split="val")


def test_neither_torch_nor_matplotlib_is_imported():
    code = (
        "import sys, lightning_vos.evaluation.youtube_vis\n"
        "assert not {'torch', 'matplotlib', 'PIL', 'scipy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
