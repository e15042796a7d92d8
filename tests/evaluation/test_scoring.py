"""`score` on folders of a few frames of 20x30 pixels: what counts, what is wrong, what is forgiven, what is told."""

import csv
import json
import math
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from lightning_vos.errors import ConfigError, DatasetNotFoundError, MaskError, UserError
from lightning_vos.evaluation import ProblemKind, ScoringError, score
from lightning_vos.evaluation.holdout import is_held_out
from lightning_vos.io.masks import write_mask

SIZE = (20, 30)


def shown(**objects):
    """A label map of squares of 6 pixels; `_2=9` is object 2 from column 9 on."""
    labels = np.zeros(SIZE, np.uint8)
    for name, left in objects.items():
        labels[5:11, left : left + 6] = int(name[1:])
    return labels


def overlap(shift):
    """J in percent of two such squares."""
    return 100 * (6 - shift) / (6 + shift)


def write(folder, sequences, digits=5):
    """Sequence -> frame number -> label map."""
    for name, frames in sequences.items():
        for frame, labels in frames.items():
            write_mask(folder / name / f"{frame:0{digits}}.png", labels)
    return folder


def moving(frames, **objects):
    return {
        frame: shown(**{name: left + place for name, left in objects.items()}) for place, frame in enumerate(frames)
    }


SET = {"bear": moving(range(5), _1=2, _2=15), "swan": moving(range(4), _1=8)}
FRAMES = {"bear": range(5), "swan": range(4)}


@pytest.fixture
def pair(tmp_path):
    """Truth of two sequences, and results that are right."""
    return write(tmp_path / "gt", SET), write(tmp_path / "pred", SET)


def zipped(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


def bits(scores):
    """Every digit of every number, and all that is said."""
    frames = {str(key): (row.names, row.region.tolist(), row.boundary.tolist()) for key, row in scores.frames.items()}
    objects = {str(key): row for key, row in scores.objects.items()}
    rest = scores.tags, [tuple(item) for item in scores.left_out], [vars(problem) for problem in scores.problems]
    return json.dumps([scores.summary, scores.sequences, objects, frames, *rest])


def told(scores):
    return {(item.sequence, item.frames, item.objects) for item in scores.left_out}


def lines(error):
    return len(str(error.value).splitlines())


# What counts


def test_davis2017_by_hand(pair):
    truth, prediction = pair
    write_mask(prediction / "bear/00001.png", shown(_1=5, _2=16))  # object 1 is two pixels off
    write_mask(prediction / "bear/00004.png", shown())  # the last frame does not count
    scores = score(truth, prediction)
    assert list(scores.objects) == [("bear", 1), ("bear", 2), ("swan", 1)]
    frames = scores.frames["bear", 1]
    assert frames.names == ("00001", "00002", "00003")
    assert frames.region.tolist() == [24 / 48, 1.0, 1.0]
    assert scores.frames["swan", 1].names == ("00001", "00002")
    J = (overlap(2) + 200) / 3
    assert scores.objects["bear", 1]["J"] == pytest.approx(J)
    assert scores.objects["bear", 1]["J_recall"] == pytest.approx(200 / 3)
    assert scores.sequences["bear"]["J"] == pytest.approx((J + 100) / 2)
    assert scores.summary["J"] == pytest.approx((J + 200) / 3)
    assert scores.summary["F"] == pytest.approx((scores.objects["bear", 1]["F"] + 200) / 3)
    assert scores.objects["bear", 1]["F"] < 100
    assert scores.summary["J&F"] == pytest.approx((scores.summary["J"] + scores.summary["F"]) / 2)
    assert scores.summary["switches"] == 0
    assert (scores.protocol, scores.problems) == ("davis2017", [])
    assert scores.variant.startswith("J and F of objects 1 to the highest id of the first mask; all annotated frames")


def test_pixels_of_255_are_background_in_davis2017_and_an_object_elsewhere(pair):
    truth, prediction = pair
    for frame in FRAMES["bear"]:
        labels = shown(_1=2 + frame, _2=15 + frame)
        labels[15:] = 255
        write_mask(truth / f"bear/{frame:05}.png", labels)
    assert set(score(truth, prediction).objects) == {("bear", 1), ("bear", 2), ("swan", 1)}
    assert score(truth, prediction, "vos_benchmark").objects["bear", 255]["J"] == 0


def test_a_gap_between_the_ids_is_an_object_of_davis2017(tmp_path):
    truth = write(tmp_path / "gt", {"a": moving(range(4), _3=2)})
    prediction = write(tmp_path / "pred", {"a": moving(range(4), _3=2)})
    write_mask(prediction / "a/00002.png", shown(_3=4, _2=20))
    rows = score(truth, prediction).objects
    assert {object_id: row["J"] for (_, object_id), row in rows.items()} == {1: 100, 2: 50, 3: 100}
    assert set(score(truth, prediction, "vos_benchmark", strict=False).objects) == {("a", 3)}


@pytest.mark.parametrize("protocol", ["davis2016", "long_time_video"])
def test_all_foreground_is_one_object(pair, protocol):
    """Of whatever ids, and of 255 above all."""
    truth, prediction = pair
    for frame in FRAMES["bear"]:
        write_mask(truth / f"bear/{frame:05}.png", 255 * (shown(_1=2 + frame, _2=15 + frame) > 0))
    write_mask(prediction / "bear/00002.png", shown(_7=4))
    scores = score(truth, prediction, protocol)
    assert set(scores.objects) == {("bear", 1), ("swan", 1)}
    assert scores.objects["bear", 1]["J"] == pytest.approx(250 / 3)
    assert "whole foreground" in scores.variant


def test_objects_of_vos_benchmark_count_from_where_they_are_seen(tmp_path):
    late = moving(range(6), _1=2) | {frame: shown(_1=2 + frame, _4=22) for frame in (3, 4, 5)}
    truth = write(tmp_path / "gt", {"a": late})
    prediction = write(tmp_path / "pred", {"a": late | {2: shown(_1=4, _4=22)}})
    scores = score(truth, prediction, "vos_benchmark")
    assert scores.frames["a", 4].names == ("00002", "00003", "00004")
    assert scores.objects["a", 4]["J"] == pytest.approx(200 / 3)
    everything = score(truth, prediction, "vos_benchmark", frames="all")
    assert everything.frames["a", 4].names == ("00002", "00003", "00004", "00005")
    assert everything.frames["a", 1].names == tuple(f"{frame:05}" for frame in range(6))
    assert scores.variant != everything.variant


def test_frames_are_taken_in_order_of_their_names_and_need_not_be_consecutive(tmp_path):
    masks = {"a": moving((7, 20, 35, 1000), _1=2)}
    scores = score(write(tmp_path / "gt", masks), write(tmp_path / "pred", masks))
    assert scores.frames["a", 1].names == ("00020", "00035")


@pytest.mark.parametrize("end", [0, 5])
def test_an_object_of_an_unscored_frame_alone_is_known_to_vos_benchmark(tmp_path, end):
    masks = {"a": moving(range(6), _1=2) | {end: shown(_1=2 + end, _4=22)}}
    truth, prediction = write(tmp_path / "gt", masks), write(tmp_path / "pred", masks)
    write_mask(prediction / "a/00002.png", shown(_1=4, _4=22))
    scores = score(truth, prediction, "vos_benchmark")
    assert set(scores.objects) == {("a", 1)}
    assert ("a", ("00002",), (4,)) in told(scores)
    write_mask(prediction / "a/00003.png", shown(_1=5, _5=22))
    with pytest.raises(ScoringError) as error:
        score(truth, prediction, "vos_benchmark")
    assert [(p.kind, p.frame) for p in error.value.problems] == [(ProblemKind.EXTRA_OBJECT, "00003")]


def test_identity_switches_are_counted(pair):
    truth, prediction = pair
    for frame in (2, 3):
        write_mask(prediction / f"bear/{frame:05}.png", shown(_2=2 + frame, _1=15 + frame))
    scores = score(truth, prediction)
    assert scores.objects["bear", 1]["switches"] == scores.objects["bear", 2]["switches"] == 1
    assert scores.sequences["bear"]["swapped"] == pytest.approx(200 / 3)
    assert scores.summary["switches"] == 2


# YouTube-VOS


def entry(frames, category=None):
    return {"frames": [f"{frame:05}" for frame in frames]} | ({"category": category} if category else {})


@pytest.fixture
def youtube(tmp_path):
    """Objects 1 (dog) and 2 (okapi) of one video, 1 (dog) of another; 2 comes late. Results are right."""
    frames = range(0, 30, 5)
    masks = {
        "0a": moving(frames, _1=2) | {frame: shown(_1=2 + frame // 5, _2=20) for frame in (15, 20, 25)},
        "0b": moving(frames, _1=4),
    }
    meta = {
        "0a": {"objects": {"1": entry(frames, "dog"), "2": entry((15, 20, 25), "okapi")}},
        "0b": {"objects": {"1": entry(frames[1:], "dog")}},
    }
    write(tmp_path / "valid/Annotations", masks)
    save(tmp_path / "valid/meta.json", {"videos": meta})
    write(tmp_path / "pred/Annotations", masks)
    return tmp_path / "valid", tmp_path / "pred"


def save(path, content):
    path.write_text(json.dumps(content))
    return path


def test_youtube_vos_scores_the_listed_frames_but_the_first(youtube):
    truth, prediction = youtube
    write_mask(prediction / "Annotations/0a/00025.png", shown(_1=7, _2=22))
    scores = score(truth, prediction, "youtube_vos")
    assert {key: row.names for key, row in scores.frames.items()} == {
        ("0a", 1): ("00005", "00010", "00015", "00020", "00025"),
        ("0a", 2): ("00020", "00025"),
        ("0b", 1): ("00010", "00015", "00020", "00025"),
    }
    assert scores.objects["0a", 2]["J"] == pytest.approx((100 + overlap(2)) / 2)
    assert "G" not in scores.summary  # nothing says what is unseen
    assert "Plain mean over objects" in scores.variant


@pytest.mark.parametrize("source", ["json", "wrapped json", "text", "training meta", "beside"])
def test_unseen_categories_are_averaged_apart(youtube, tmp_path, source):
    truth, prediction = youtube
    write_mask(prediction / "Annotations/0a/00025.png", shown(_1=7, _2=22))
    unseen = {
        "json": lambda: save(tmp_path / "u.json", ["okapi", "yeti"]),
        "wrapped json": lambda: save(tmp_path / "u.json", {"unseen_categories": ["okapi"]}),
        "training meta": lambda: save(tmp_path / "meta.json", {"videos": {"x": {"objects": {"4": entry([0], "dog")}}}}),
        "beside": lambda: save(truth / "unseen.json", ["okapi"]) and None,
        "text": lambda: (
            (tmp_path / "u.txt").write_text("\ufeffokapi\r\n\r\n yeti \r\n", "utf-8") and tmp_path / "u.txt"
        ),
    }[source]()
    scores = score(truth, prediction, "youtube_vos", unseen=unseen)
    rows = scores.objects
    assert scores.summary["J_seen"] == 100
    assert scores.summary["J_unseen"] == rows["0a", 2]["J"]
    assert scores.summary["F_unseen"] == rows["0a", 2]["F"]
    four = [scores.summary[name] for name in ("J_seen", "F_seen", "J_unseen", "F_unseen")]
    assert scores.summary["G"] == scores.summary["J&F"] == pytest.approx(np.mean(four))
    assert "G is the mean of the four" in scores.variant


@pytest.mark.parametrize(
    ("unseen", "here", "other"), [(["yeti"], "seen", "unseen"), (["dog", "okapi"], "unseen", "seen")]
)
def test_a_group_without_objects_has_no_mean_and_is_told(youtube, tmp_path, unseen, here, other):
    """Of the list beside the truth; one that was named for these results was meant to make two groups."""
    save(youtube[0] / "unseen.json", unseen)
    scores = score(*youtube, "youtube_vos")
    assert scores.summary[f"J_{here}"] == 100
    assert math.isnan(scores.summary[f"J_{other}"])
    assert math.isnan(scores.summary["G"])
    assert f"nothing that was scored is {other}" in scores.left_out[-1].reason
    named = save(tmp_path / "u.json", unseen)
    with pytest.raises(ConfigError, match=rf"u\.json makes everything that is scored {here}") as error:
        score(*youtube, "youtube_vos", unseen=named)
    assert lines(error) <= 8


def test_with_groups_every_mean_is_that_of_the_two(youtube):
    truth, prediction = youtube
    save(truth / "unseen.json", ["okapi"])
    write_mask(prediction / "Annotations/0a/00025.png", shown(_2=7, _1=20))  # swapped
    write_mask(prediction / "Annotations/0b/00010.png", shown())
    scores = score(truth, prediction, "youtube_vos")
    rows = scores.objects
    for name in ("J&F", "J", "F", "J_recall", "J_decay", "F_recall", "F_decay", "V", "swapped"):
        seen = (rows["0a", 1][name] + rows["0b", 1][name]) / 2
        assert scores.summary[name] == pytest.approx((seen + rows["0a", 2][name]) / 2)
    assert scores.summary["J_recall"] == pytest.approx(((80 + 75) / 2 + 50) / 2)
    assert scores.summary["swapped"] == pytest.approx((20 / 2 + 50) / 2)
    assert scores.summary["switches"] == 2


@pytest.mark.parametrize(("frames", "since"), [("inner", 1), ("all", 0)])
def test_youtube_vos_by_the_frames_of_the_video(youtube, frames, since):
    scores = score(*youtube, "youtube_vos", frames=frames)
    names = [f"{frame:05}" for frame in range(0, 30, 5)]
    assert list(scores.frames["0b", 1].names) == names[since : 6 - since]
    assert list(scores.frames["0a", 2].names) == names[3 : 6 - since]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("frames", [None, "inner", "all"])
def test_a_truth_of_first_appearances_alone_is_none(youtube, strict, frames):
    """As of YouTube-VOS valid: every other mask is on the server."""
    truth, prediction = youtube
    for file in (truth / "Annotations/0a").glob("*.png"):
        if file.stem not in ("00000", "00015"):
            file.unlink()
    with pytest.raises(DatasetNotFoundError, match=r"truth of 0a is not complete: .*valid/Annotations/0a\n") as error:
        score(truth, prediction, "youtube_vos", strict=strict, frames=frames)
    text = str(error.value)
    assert "found 2 masks, but none of 00005, 00010, 00020" in text
    assert f"each of the 6 frames that {truth / 'meta.json'} lists" in text
    assert "lightning_vos submission" in text
    assert lines(error) <= 8


def test_videos_that_are_not_scored_need_no_truth(youtube, tmp_path):
    truth, prediction = youtube
    (truth / "Annotations/0a/00005.png").unlink()
    (tmp_path / "list.txt").write_text("0b\n")
    assert score(truth, prediction, "youtube_vos", split=str(tmp_path / "list.txt")).summary["J"] == 100


BROKEN_META = {
    "no JSON": ("{", "is no JSON"),
    "a list": ([], "no objects of videos"),
    "no videos": ({}, "no objects of videos"),
    "a video is missing": ({"videos": {"0b": {"objects": {}}}}, "no objects, by their ids, of video 0a"),
    "objects are a list": ({"videos": {"0a": {"objects": [1]}}}, "of video 0a"),
    "an id is a name": ({"videos": {"0a": {"objects": {"dog": {}}}}}, "of video 0a"),
    "an id is too large": ({"videos": {"0a": {"objects": {"256": entry([0])}}}}, "object ids [256] of video 0a"),
    "an id is background": ({"videos": {"0a": {"objects": {"0": entry([0])}}}}, "object ids [0] of video 0a"),
    "no frames": ({"videos": {"0a": {"objects": {"1": {}}}}}, "no list of frame names of object 1 in video 0a"),
    "frames are numbers": ({"videos": {"0a": {"objects": {"1": {"frames": [0, 5]}}}}}, "frame names of object 1"),
    "an entry is no table": ({"videos": {"0a": {"objects": {"1": 7}}}}, "video 0a"),
}


@pytest.mark.parametrize(("content", "says"), BROKEN_META.values(), ids=BROKEN_META)
def test_a_broken_meta_file(youtube, content, says):
    truth, prediction = youtube
    (truth / "meta.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DatasetNotFoundError) as error:
        score(truth, prediction, "youtube_vos")
    assert str(truth / "meta.json") in str(error.value)
    assert says in str(error.value)
    assert lines(error) <= 8


def test_a_missing_meta_file(youtube):
    truth, prediction = youtube
    (truth / "meta.json").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"meta\.json cannot be read"):
        score(truth, prediction, "youtube_vos")


def test_categories_are_needed_to_tell_seen_from_unseen_alone(youtube, tmp_path):
    truth, prediction = youtube
    meta = json.loads((truth / "meta.json").read_text())
    del meta["videos"]["0b"]["objects"]["1"]["category"]
    save(truth / "meta.json", meta)
    assert score(truth, prediction, "youtube_vos").summary["J"] == 100
    with pytest.raises(DatasetNotFoundError, match="no category of object 1 in video 0b"):
        score(truth, prediction, "youtube_vos", unseen=save(tmp_path / "u.json", ["okapi"]))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "7",
        '{"a": 1}',
        "[1]",
        '{"videos": []}',
        '{"videos": {"a": {}}}',
        '{"videos": {"a": {"objects": {"1": 7}}}}',
    ],
)
def test_a_broken_list_of_unseen_categories(youtube, tmp_path, content):
    (tmp_path / "u.json").write_text(content)
    with pytest.raises(UserError, match=r"u\.json") as error:
        score(*youtube, "youtube_vos", unseen=tmp_path / "u.json")
    assert lines(error) <= 8


def test_a_missing_list_of_unseen_categories(youtube, tmp_path):
    for name in ("u.json", "u.txt"):
        with pytest.raises(DatasetNotFoundError, match=rf"{name} cannot be read"):
            score(*youtube, "youtube_vos", unseen=tmp_path / name)


# LVOS


@pytest.fixture
def lvos(tmp_path):
    """Two videos of frames 0, 5, ..., 30; object 2 leaves the scene early. Results are right."""

    def make(number=int, **ranges):
        frames = range(0, 35, 5)
        masks = {name: moving(frames, _1=2, _2=15) for name in ("v1", "v2")}
        ranges = {"one": (0, 35, 7), "two": (10, 25, 3)} | ranges
        keys = ("start", "end", "frame_nums")
        objects = {
            str(k): {"frame_range": dict(zip(keys, map(number, values), strict=True))}
            for k, values in enumerate(ranges.values(), 1)
        }
        write(tmp_path / "valid/Annotations", masks, digits=8)
        save(tmp_path / "valid/valid_meta.json", {"videos": {name: {"objects": objects} for name in masks}})
        return tmp_path / "valid", write(tmp_path / "pred", masks, digits=8)

    return make


@pytest.mark.parametrize("number", [int, str])
def test_lvos_scores_the_range_of_each_object(lvos, number):
    truth, prediction = lvos(number)
    write_mask(prediction / "v1/00000015.png", shown(_1=5, _2=20))
    scores = score(truth, prediction, "lvos")
    assert scores.frames["v1", 1].names == tuple(f"{frame:08}" for frame in (5, 10, 15, 20, 25))
    assert scores.frames["v1", 2].names == ("00000015",)
    assert scores.objects["v1", 2]["J"] == pytest.approx(overlap(2))
    assert scores.objects["v1", 1]["V"] == 0
    assert scores.problems == []
    assert "(LVOS v1)" in scores.variant


@pytest.mark.parametrize("source", ["given", "beside", "json"])
def test_lvos_tells_seen_from_unseen_videos(lvos, tmp_path, source):
    truth, prediction = lvos()
    write_mask(prediction / "v2/00000015.png", shown())
    unseen = {
        "given": lambda: (tmp_path / "list.txt").write_text("v2\nv77\n") and tmp_path / "list.txt",
        "beside": lambda: (truth / "unseen_videos.txt").write_text("v2\n") and None,
        "json": lambda: save(tmp_path / "list.json", ["v2"]),
    }[source]()
    scores = score(truth, prediction, "lvos", unseen=unseen)
    assert scores.summary["J_seen"] == 100
    assert scores.summary["J_unseen"] == pytest.approx((80 + 0) / 2)
    assert scores.summary["J"] == pytest.approx(70)
    assert scores.summary["V_unseen"] == pytest.approx(scores.objects["v2", 1]["V"] / 2)
    assert scores.objects["v2", 1]["V"] == pytest.approx(100 * math.sqrt(0.16))


def test_the_meta_file_of_expressions_is_not_taken(lvos):
    truth, prediction = lvos()
    save(truth / "valid_expression_meta.json", {"videos": {}})
    assert score(truth, prediction, "lvos").summary["J"] == 100


@pytest.mark.parametrize("frame_range", [None, {}, {"start": 0, "end": 5}, {"start": "a", "end": 5, "frame_nums": 2}])
def test_a_broken_range(lvos, frame_range):
    truth, prediction = lvos()
    meta = json.loads((truth / "valid_meta.json").read_text())
    meta["videos"]["v2"]["objects"]["2"]["frame_range"] = frame_range
    save(truth / "valid_meta.json", meta)
    with pytest.raises(DatasetNotFoundError, match=r"no frame_range .* of object 2 in video v2"):
        score(truth, prediction, "lvos")


def test_a_range_that_ends_before_the_counted_frames_is_told(lvos):
    scores = score(*lvos(two=(10, 25, 9)), "lvos")
    assert scores.problems == []
    assert scores.frames["v1", 2].names == ("00000015", "00000020")
    assert scores.objects["v1", 2]["J"] == 100
    beyond = [item for item in scores.left_out if "counts beyond" in item.reason]
    assert [(item.sequence, item.frames, item.objects) for item in beyond] == [("v1", (), (2,)), ("v2", (), (2,))]
    assert beyond[0].reason.startswith("5 frames that valid_meta.json counts beyond the object's range")


@pytest.mark.parametrize("strict", [True, False])
def test_frames_that_are_listed_and_not_there_are_no_truth(lvos, strict):
    truth, prediction = lvos()
    (truth / "Annotations/v2/00000015.png").unlink()
    words = r"truth of v2 is not complete: .*v2\n  found 6 masks, but none of 00000015\n(.|\n)*valid_meta\.json"
    with pytest.raises(DatasetNotFoundError, match=words) as error:
        score(truth, prediction, "lvos", strict=strict)
    assert lines(error) <= 8


def test_frames_that_no_range_holds_need_no_truth(lvos):
    truth, prediction = lvos()
    for frame in (0, 30):
        (truth / f"Annotations/v2/{frame:08}.png").unlink()
    assert score(truth, prediction, "lvos").summary["J"] == 100


@pytest.mark.parametrize(("names", "group"), [("v77\n", "seen"), ("v1\nv2\n", "unseen")])
def test_a_named_list_that_makes_one_group_of_videos(lvos, tmp_path, names, group):
    (tmp_path / "list.txt").write_text(names)
    with pytest.raises(ConfigError, match=rf"list\.txt makes everything that is scored {group}"):
        score(*lvos(), "lvos", unseen=tmp_path / "list.txt")


@pytest.mark.parametrize("name", ["valid", "train", "validation"])
def test_the_meta_file_of_any_split(lvos, name):
    truth, prediction = lvos()
    (truth / "valid_meta.json").rename(truth / f"{name}_meta.json")
    assert score(truth, prediction, "lvos").summary["J"] == 100


# Problems


def remove(name):
    return lambda truth, prediction: shutil.rmtree(path) if (path := prediction / name).is_dir() else path.unlink()


def put(name, labels):
    return lambda truth, prediction: write_mask(prediction / name, labels)


def rgb(truth, prediction):
    Image.new("RGB", SIZE[::-1]).save(prediction / "bear/00002.png")


def cut(truth, prediction):
    path = prediction / "bear/00002.png"
    path.write_bytes(path.read_bytes()[:60])


def shorten(truth, prediction):
    for frame in (2, 3):
        (truth / f"swan/{frame:05}.png").unlink()


def late(truth, prediction):
    for folder in (truth, prediction):
        write_mask(folder / "swan/00002.png", shown(_1=10, _3=22))


HALF = shown(_1=4, _2=17)
HALF[5:8, 4:10] = 9  # the upper half of object 1 is another object's

PROBLEMS = {
    # spoil: kind, sequence, frame, then J of bear's objects 1 and 2 and of swan's object 1 when it is forgiven
    "missing sequence": (remove("swan"), ProblemKind.MISSING_SEQUENCE, "swan", None, (100, 100, None)),
    "missing frame": (remove("bear/00002.png"), ProblemKind.MISSING_FRAME, "bear", "00002", (200 / 3, 200 / 3, 100)),
    "RGB": (rgb, ProblemKind.NOT_INDEXED, "bear", "00002", (200 / 3, 200 / 3, 100)),
    "cut off": (cut, ProblemKind.UNREADABLE, "bear", "00002", (200 / 3, 200 / 3, 100)),
    "twice the size": (
        put("bear/00002.png", HALF.repeat(2, 0).repeat(2, 1) * (HALF.repeat(2, 0).repeat(2, 1) != 9)),
        ProblemKind.WRONG_SIZE,
        "bear",
        "00002",
        (250 / 3, 100, 100),
    ),
    "extra object": (put("bear/00002.png", HALF), ProblemKind.EXTRA_OBJECT, "bear", "00002", (250 / 3, 100, 100)),
    "255 predicted": (
        put("bear/00002.png", np.where(HALF == 9, 255, HALF)),
        ProblemKind.EXTRA_OBJECT,
        "bear",
        "00002",
        (250 / 3, 100, 100),
    ),
    "late object": (
        late,
        ProblemKind.LATE_OBJECT,
        "swan",
        "00002",
        (100, 100, 100),
    ),
    "too few frames": (shorten, ProblemKind.TOO_FEW_FRAMES, "swan", None, (100, 100, None)),
}


@pytest.mark.parametrize(("spoil", "kind", "sequence", "frame", "regions"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_is_an_error_or_is_forgiven_and_told(pair, spoil, kind, sequence, frame, regions):
    spoil(*pair)
    with pytest.raises(ScoringError) as error:
        score(*pair)
    (problem,) = error.value.problems
    assert (problem.kind, problem.sequence, problem.frame) == (kind, sequence, frame)
    text = str(error.value).splitlines()
    assert text[0] == f"{pair[1]} cannot be scored as it is against {pair[0]} by davis2017:"
    assert text[1].startswith(f"  {sequence} {frame}: {kind}: " if frame else f"  {sequence}: {kind}: ")
    assert text[2].startswith("Mend it")
    assert len(text) == 3

    scores = score(*pair, strict=False)
    assert list(scores.problems) == [problem]
    found = [scores.objects.get(key, {}).get("J") for key in (("bear", 1), ("bear", 2), ("swan", 1))]
    assert found == [pytest.approx(region) for region in regions]
    assert scores.summary["J"] == pytest.approx(np.mean([region for region in regions if region is not None]))
    if regions[2] is None:
        assert ("swan", (), ()) in told(scores)


def test_a_late_object_is_one_of_vos_benchmark(pair):
    late(*pair)
    assert score(*pair, "vos_benchmark").objects["swan", 3]["J"] == 100


def test_a_late_object_of_the_truth_alone_is_left_out(pair):
    """Nothing is wrong with results that do not show it."""
    truth, prediction = pair
    write_mask(truth / "swan/00002.png", shown(_1=10, _3=22))
    scores = score(truth, prediction)
    assert set(scores.objects) == {("bear", 1), ("bear", 2), ("swan", 1)}
    assert scores.summary["J"] == 100
    assert [item.reason for item in scores.left_out if item[:3] == ("swan", ("00002",), (3,))] == [
        "not in the first mask"
    ]
    write_mask(prediction / "swan/00001.png", shown(_1=9, _3=22))  # before the truth does
    (problem,) = score(truth, prediction, strict=False).problems
    assert (problem.kind, problem.sequence, problem.frame) == (ProblemKind.LATE_OBJECT, "swan", "00001")


def test_frames_that_do_not_count_may_be_missing(pair):
    truth, prediction = pair
    wanted = bits(score(truth, prediction))
    for name in ("bear/00000", "bear/00004", "swan/00000", "swan/00003"):
        (prediction / f"{name}.png").unlink()
    assert bits(score(truth, prediction)) == wanted
    with pytest.raises(ScoringError):
        score(truth, prediction, "vos_benchmark", frames="all")


def test_everything_that_is_wrong_is_said_at_once(pair):
    truth, prediction = pair
    for spoil in (rgb, put("bear/00001.png", shown(_1=3, _2=16, _8=0)), remove("bear/00003.png"), remove("swan")):
        spoil(*pair)
    write(truth, {"wolf": moving(range(2), _1=0)})
    write(prediction, {"wolf": moving(range(2), _1=0)})
    with pytest.raises(ScoringError) as error:
        score(truth, prediction)
    kinds = {problem.kind for problem in error.value.problems}
    assert kinds == {
        ProblemKind.NOT_INDEXED,
        ProblemKind.EXTRA_OBJECT,
        ProblemKind.MISSING_FRAME,
        ProblemKind.MISSING_SEQUENCE,
        ProblemKind.TOO_FEW_FRAMES,
    }
    assert len(error.value.problems) == 5
    assert all(str(kind) in str(error.value) for kind in kinds)
    assert set(score(truth, prediction, strict=False).problems) == set(error.value.problems)


def test_many_frames_of_one_kind_are_one_line(tmp_path):
    masks = {"a": moving(range(12), _1=2), **{f"b{number:03}": moving(range(3), _1=2) for number in range(60)}}
    truth, prediction = write(tmp_path / "gt", masks), write(tmp_path / "pred", {"a": {0: masks["a"][0]}})
    with pytest.raises(ScoringError) as error:
        score(truth, prediction)
    assert len(error.value.problems) == 10 + 60
    assert lines(error) == 1 + 40 + 1 + 1
    text = str(error.value)
    assert "... and 21 lines more" in text
    (prediction / "a/00000.png").unlink()
    write(prediction, masks)
    for frame in range(12):
        (prediction / f"a/{frame:05}.png").unlink()
    write(prediction, {"a": {0: masks["a"][0]}})
    with pytest.raises(
        ScoringError, match=r"a 00001, 00002, 00003, 00004, 00005, 00006, \.\.\. \(10 frames\): missing"
    ):
        score(truth, prediction)


def test_results_of_other_sequences_alone_have_no_score(pair, tmp_path):
    prediction = write(tmp_path / "other", {"wolf": SET["swan"]})
    for strict in (True, False):
        with pytest.raises(ScoringError) as error:
            score(pair[0], prediction, strict=strict)
        assert [problem.sequence for problem in error.value.problems] == ["bear", "swan"]
        assert str(error.value).startswith(f"{prediction} holds no sequence of the truth, {pair[0]}: it has wolf\n")
        assert lines(error) <= 8


def test_results_of_other_sequences_than_those_of_the_split(davis, tmp_path):
    truth, prediction = davis
    for name in ("bear", "swan"):
        shutil.rmtree(prediction / "masks" / name)
    with pytest.raises(ScoringError, match=r"holds no sequence of the truth(.|\n)*it has wolf\n"):
        score(truth, prediction, strict=False)
    assert score(truth, prediction, split="train").summary["J"] == 100


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("spoil", ["cut", "size"])
def test_a_broken_truth_is_never_forgiven(pair, strict, spoil):
    truth, prediction = pair
    if spoil == "cut":
        (truth / "bear/00002.png").write_bytes(b"")
    else:
        write_mask(truth / "bear/00002.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(MaskError, match=rf"{truth}/bear/00002\.png") as error:
        score(truth, prediction, strict=strict)
    assert lines(error) <= 8


# Folders, zips, processes


def test_a_zip_scores_as_its_folder_to_the_bit(pair, tmp_path):
    truth, prediction = pair
    rgb(truth, prediction)
    write_mask(prediction / "bear/00001.png", shown(_1=5, _2=16))
    wanted = score(truth, prediction, strict=False)
    packed = zipped(truth, tmp_path / "gt.zip"), zipped(prediction, tmp_path / "pred.zip")
    assert bits(score(*packed, strict=False)) == bits(wanted)
    assert bits(score(str(truth), str(packed[1]), strict=False)) == bits(wanted)


def test_a_damaged_member_of_a_zip_is_a_problem(pair, tmp_path):
    truth, prediction = pair
    path = tmp_path / "pred.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(prediction.rglob("*.png")):
            archive.write(file, file.relative_to(prediction))
        start = archive.getinfo("bear/00002.png").header_offset
    data = bytearray(path.read_bytes())
    data[start + 80] ^= 0xFF
    path.write_bytes(data)
    (problem,) = score(truth, path, strict=False).problems
    assert (problem.kind, problem.sequence, problem.frame) == (ProblemKind.UNREADABLE, "bear", "00002")


def test_two_processes_score_as_one_to_the_bit(pair):
    truth, prediction = pair
    rgb(truth, prediction)
    write_mask(prediction / "swan/00001.png", shown(_1=12, _5=20))
    steps = {1: [], 2: []}
    one, two = (
        score(
            truth, prediction, strict=False, workers=n, progress=lambda done, total, n=n: steps[n].append((done, total))
        )
        for n in (1, 2)
    )
    assert bits(one) == bits(two)
    assert len(one.problems) == 2
    for seen in steps.values():
        assert seen[-1] == (9, 9)
        assert seen == sorted(seen)


def test_progress_reaches_its_end_whatever_is_left_out(pair):
    shorten(*pair)
    steps = []
    score(*pair, strict=False, progress=lambda *step: steps.append(step))
    assert steps[-1] == (7, 7)


# Splits


@pytest.fixture
def davis(tmp_path):
    """A dataset of three sequences in the layout of DAVIS with its lists, and results that are right."""
    root = tmp_path / "DAVIS"
    masks = SET | {"wolf": moving(range(4), _1=3)}
    write(root / "Annotations/480p", masks)
    for year, name, names in (
        ("2017", "val", "bear\nswan\n"),
        ("2017", "train", "wolf\n"),
        ("2016", "val", "wolf\n\n"),
    ):
        (root / "ImageSets" / year).mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / year / f"{name}.txt").write_text(names)
    return root, write(tmp_path / "run/masks", masks).parent


def test_splits_of_a_dataset(davis, tmp_path):
    (tmp_path / "mine.txt").write_text("\ufeffwolf\r\nbear\r\n\r\nwolf\r\n", "utf-8")
    for split, names in (
        ("val", ["bear", "swan"]),
        ("train", ["wolf"]),
        (str(tmp_path / "mine.txt"), ["wolf", "bear"]),
    ):
        scores = score(*davis, split=split)
        assert list(scores.sequences) == names
        others = {"bear", "swan", "wolf"} - set(names)
        assert {item.sequence for item in scores.left_out if not item.frames} == others
        assert all("not in the split" in item.reason for item in scores.left_out if item.sequence in others)
    assert list(score(*davis, "davis2016").sequences) == ["wolf"]
    assert list(score(*davis, "vos_benchmark").sequences) == ["bear", "swan", "wolf"]


SPELLINGS = {
    "root": lambda root: root,
    "string": str,
    "Annotations": lambda root: root / "Annotations",
    "480p": lambda root: root / "Annotations/480p",
    "dots": lambda root: root / "Annotations/480p/../../ImageSets/../Annotations/480p",
    "relative": lambda root: "DAVIS/Annotations/480p",
    "relative root": lambda root: "./DAVIS",
    "link to the root": lambda root: "link/root",
    "link to the masks": lambda root: "link/480p",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_lists_are_found_however_the_truth_is_spelled(davis, tmp_path, monkeypatch, spelling):
    root, prediction = davis
    save(root / "tags.json", {"bear": ["small"]})
    (tmp_path / "link").mkdir()
    (tmp_path / "link/root").symlink_to(root)
    (tmp_path / "link/480p").symlink_to(root / "Annotations/480p")
    monkeypatch.chdir(tmp_path)
    scores = score(SPELLINGS[spelling](root), prediction)
    assert list(scores.sequences) == ["bear", "swan"]
    assert list(scores.tags) == ["small"]
    assert scores.variant.endswith(f" 2 of 3 sequences: {(root / 'ImageSets/2017/val.txt').resolve()}.")


def test_the_masks_folder_itself_as_working_directory(davis, monkeypatch):
    root, prediction = davis
    monkeypatch.chdir(root / "Annotations/480p")
    for truth in (".", "..", "../.."):
        assert list(score(truth, prediction).sequences) == ["bear", "swan"]


def test_lists_beside_a_zip(davis, youtube, tmp_path):
    root, prediction = davis
    save(root / "tags.json", {"bear": ["small"]})
    truth = zipped(root / "Annotations", root / "truth.zip")
    shutil.rmtree(root / "Annotations")
    scores = score(truth, prediction)
    assert list(scores.sequences) == ["bear", "swan"]
    assert list(scores.tags) == ["small"]
    (root / "below").mkdir()
    scores = score(truth.rename(root / "below/truth.zip"), prediction)
    assert list(scores.sequences) == ["bear", "swan", "wolf"]
    assert scores.tags == {}

    truth, prediction = youtube
    packed = zipped(truth / "Annotations", truth / "truth.zip")
    save(truth / "unseen.json", ["okapi"])
    wanted = score(truth, prediction, "youtube_vos")
    shutil.rmtree(truth / "Annotations")
    assert bits(score(packed, prediction, "youtube_vos")) == bits(wanted)
    assert wanted.summary["G"] == 100


def test_which_sequences_are_scored_is_said(davis, tmp_path):
    root, prediction = davis
    (tmp_path / "mine.txt").write_text("wolf\n")
    for protocol, split, ending in (
        ("davis2016", None, f" 1 of 3 sequences: {(root / 'ImageSets/2016/val.txt').resolve()}."),
        ("davis2017", "train", f" 1 of 3 sequences: {(root / 'ImageSets/2017/train.txt').resolve()}."),
        ("davis2017", str(tmp_path / "mine.txt"), f" 1 of 3 sequences: {tmp_path / 'mine.txt'}."),
        ("vos_benchmark", None, ". 3 sequences."),
    ):
        assert score(root, prediction, protocol, split=split).variant.endswith(ending)
    for name in ("bear", "swan"):
        shutil.rmtree(root / "Annotations/480p" / name)
    assert score(root, prediction, "vos_benchmark").variant.endswith(". 1 sequence.")


def test_the_list_of_long_time_video(davis):
    root, prediction = davis
    (root / "ImageSets/val.txt").write_text("swan\n")
    assert list(score(root, prediction, "long_time_video").sequences) == ["swan"]


def test_the_masks_of_2017_beside_those_of_2016(davis):
    root, prediction = davis
    (root / "Annotations").rename(root / "Annotations_2017")
    write(root / "Annotations/480p", {name: {0: shown(_1=0)} for name in SET})
    assert score(root, prediction).summary["J"] == 100


def test_the_hold_out_is_a_split(tmp_path):
    names = [f"{index:010x}" for index in range(0x0D, 0x12)]
    assert [is_held_out(name) for name in names] == [False, False, True, False, False]
    masks = {name: moving(range(3), _1=2) for name in names}
    pair = write(tmp_path / "gt", masks), write(tmp_path / "pred", masks)
    scores = score(*pair, split="holdout_val")
    assert list(scores.sequences) == names[2:3]
    assert scores.variant.endswith(" 1 of 5 sequences: holdout_val.")
    assert list(score(*pair, split="holdout_train").sequences) == [*names[:2], *names[3:]]
    shutil.rmtree(pair[0] / names[2])
    with pytest.raises(DatasetNotFoundError, match="None of the 4 sequences"):
        score(*pair, split="holdout_val")


def test_a_split_that_is_not_there_names_those_that_are(davis):
    with pytest.raises(DatasetNotFoundError, match=r"no split 'vall'(.|\n)*lists there: train, val\n") as error:
        score(*davis, split="vall")
    assert lines(error) <= 8


@pytest.mark.parametrize("content", ["bear\nyeti\n", "", "../swan\n"])
def test_a_list_of_what_has_no_truth(davis, tmp_path, content):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(DatasetNotFoundError, match=r"list\.txt names") as error:
        score(*davis, split=str(tmp_path / "list.txt"))
    assert lines(error) <= 8


# Tags


def test_tags_of_sequences_beside_the_truth(pair):
    truth, prediction = pair
    write_mask(prediction / "swan/00001.png", shown())
    save(truth / "tags.json", {"bear": ["crossing", "small", "small"], "swan": ["small"], "wolf": ["unknown"]})
    tags = score(truth, prediction).tags
    assert list(tags) == ["crossing", "small"]
    assert (tags["crossing"]["objects"], tags["crossing"]["J"]) == (2, 100)
    assert (tags["small"]["objects"], tags["small"]["J"]) == (3, pytest.approx(250 / 3))


def test_tags_of_objects_in_a_table(pair, tmp_path):
    truth, prediction = pair
    write_mask(prediction / "bear/00001.png", shown(_1=3))
    (tmp_path / "tags.csv").write_text("\ufeffsequence,tag,object\nbear,lost,2\nswan,fine,\nbear,fine,1\n", "utf-8")
    tags = score(truth, prediction, tags=tmp_path / "tags.csv").tags
    assert {name: (row["objects"], row["J"]) for name, row in tags.items()} == {
        "fine": (2, 100),
        "lost": (1, pytest.approx(200 / 3)),
    }
    (tmp_path / "tags.csv").write_text("sequence,tag\nbear,both\n")
    assert score(truth, prediction, tags=tmp_path / "tags.csv").tags["both"]["objects"] == 2


def test_named_tags_of_other_sequences(davis, tmp_path):
    root, prediction = davis
    (tmp_path / "tags.csv").write_text("sequence,tag\nwolf,small\n")
    with pytest.raises(
        ConfigError, match=r"tags\.csv has tags for none of the 2 sequences(.|\n)*such as bear"
    ) as error:
        score(root, prediction, tags=tmp_path / "tags.csv")
    assert lines(error) <= 8
    assert score(root, prediction, split="train", tags=tmp_path / "tags.csv").tags["small"]["objects"] == 1
    save(root / "tags.json", {"wolf": ["small"]})  # nobody asked for it
    assert score(root, prediction).tags == {}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", "{"),
        ("t.json", "[]"),
        ("t.json", '{"bear": "small"}'),
        ("t.csv", "video,tag\nbear,small\n"),
        ("t.csv", "sequence,tag\nbear\n"),
        ("t.csv", "sequence,tag,object\nbear,small,one\n"),
        ("t.csv", b"\xff\xfe\xff"),
        ("t.csv", None),
        ("t.json", None),
    ],
)
def test_broken_tags(pair, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetNotFoundError, match=name.replace(".", r"\.")) as error:
        score(*pair, tags=tmp_path / name)
    assert lines(error) <= 8


# What is left out


def uncovered(scores, truth, prediction, sequences):
    """Objects in frames of the truth or the results that have no score and of which nothing is said."""
    missing = []
    for name in sequences:
        shown_in = {}
        for folder in (truth, prediction):
            for file in (folder / name).glob("*.png"):
                with Image.open(file) as image:
                    shown_in.setdefault(file.stem, set()).update(np.unique(np.array(image)).tolist())
        for frame, objects in shown_in.items():
            for object_id in objects - {0}:
                row = scores.frames.get((name, object_id))
                has_score = row is not None and frame in row.names
                is_told = any(
                    item.sequence == name
                    and (not item.frames or frame in item.frames)
                    and (not item.objects or object_id in item.objects)
                    for item in scores.left_out
                )
                if not has_score and not is_told:
                    missing.append((name, frame, object_id))
    return missing


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("davis2017", {}),
        ("vos_benchmark", {}),
        ("vos_benchmark", {"frames": "all"}),
        ("davis2017", {"split": "holdout_train"}),
    ],
)
def test_whatever_has_no_score_is_told(pair, protocol, options):
    truth, prediction = pair
    for folder in pair:
        write_mask(folder / "swan/00002.png", shown(_1=10, _3=22))  # comes late
    write_mask(prediction / "bear/00002.png", HALF)  # an object that is not there
    write_mask(prediction / "bear/00009.png", HALF)  # and a frame
    write(prediction, {"wolf": SET["swan"]})
    write(truth, {"fox": moving(range(2), _1=0), "owl": SET["swan"], "bat": dict.fromkeys(range(4), shown())})
    write(prediction, {"fox": moving(range(2), _1=0), "bat": {frame: shown(_1=frame) for frame in range(4)}})
    scores = score(truth, prediction, protocol, strict=False, **options)
    names = [name for name in ("bear", "swan", "wolf", "fox", "owl", "bat") if "split" not in options or name != "owl"]
    assert uncovered(scores, truth, prediction, names) == []
    assert all(item.reason for item in scores.left_out)


def test_whatever_is_not_listed_is_told(youtube):
    truth, prediction = youtube
    for folder in youtube:
        write_mask(folder / "Annotations/0b/00010.png", shown(_1=6, _4=20))  # of which meta.json says nothing
    scores = score(truth, prediction, "youtube_vos", strict=False)
    assert uncovered(scores, truth / "Annotations", prediction / "Annotations", ["0a", "0b"]) == []


def test_an_object_of_one_listed_frame_is_told(youtube):
    truth, prediction = youtube
    meta = json.loads((truth / "meta.json").read_text())
    meta["videos"]["0a"]["objects"]["2"] = entry([25])
    save(truth / "meta.json", meta)
    scores = score(truth, prediction, "youtube_vos")
    assert ("0a", 2) not in scores.objects
    assert any(item.sequence == "0a" and 2 in item.objects for item in scores.left_out)


# Writing


def test_json_reads_back_equal(pair, tmp_path):
    truth, prediction = pair
    cut(truth, prediction)
    save(truth / "tags.json", {"bear": ["small"]})
    (prediction / "swan/00001.png").unlink()
    scores = score(truth, prediction, strict=False)
    scores.write_json(tmp_path / "out/scores.json")
    content = json.loads((tmp_path / "out/scores.json").read_text())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scores.json"]
    assert (content["protocol"], content["variant"]) == (scores.protocol, scores.variant)
    assert content["summary"] == scores.summary
    assert content["sequences"] == scores.sequences
    assert content["tags"] == scores.tags
    objects = {(row.pop("sequence"), row.pop("object")): row for row in content["objects"]}
    assert objects == scores.objects
    for row in content["frames"]:
        ours = scores.frames[row["sequence"], row["object"]]
        assert tuple(row["frames"]) == ours.names
        assert (row["J"], row["F"]) == ((100 * ours.region).tolist(), (100 * ours.boundary).tolist())
    assert len(content["frames"]) == len(scores.frames)
    assert [(i["sequence"], tuple(i["frames"]), tuple(i["objects"]), i["reason"]) for i in content["left_out"]] == [
        tuple(item) for item in scores.left_out
    ]
    assert content["problems"] == [vars(problem) for problem in scores.problems]
    assert len(content["problems"]) == 2


def test_no_number_is_null_in_json(tmp_path):
    short = {"a": moving(range(2), _1=2)}
    scores = score(write(tmp_path / "gt", short), write(tmp_path / "pred", short), strict=False)
    assert math.isnan(scores.summary["J&F"])
    scores.write_json(tmp_path / "scores.json")
    summary = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)["summary"]
    assert summary["J&F"] is None


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_reads_back_equal(pair, tmp_path):
    truth, prediction = pair
    cut(truth, prediction)
    save(truth / "tags.json", {"bear": ["small"]})
    scores = score(truth, prediction, strict=False)
    scores.write_csv(tmp_path / "out")
    names = ("frames", "left_out", "objects", "problems", "sequences", "summary", "tags")
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == list(names)
    read = {name: table(tmp_path / "out" / f"{name}.csv") for name in names}
    assert {row["measure"]: float(row["value"]) for row in read["summary"]} == scores.summary
    for name, keys, rows in (
        ("sequences", ("sequence",), {(name,): row for name, row in scores.sequences.items()}),
        ("objects", ("sequence", "object"), {(name, str(k)): row for (name, k), row in scores.objects.items()}),
        ("tags", ("tag",), {(name,): row for name, row in scores.tags.items()}),
    ):
        found = {tuple(row.pop(key) for key in keys): {k: float(v) for k, v in row.items()} for row in read[name]}
        assert found == rows
    frames = [
        (name, str(k), frame, 100 * region, 100 * boundary)
        for (name, k), row in scores.frames.items()
        for frame, region, boundary in zip(row.names, row.region.tolist(), row.boundary.tolist(), strict=True)
    ]
    assert [(r["sequence"], r["object"], r["frame"], float(r["J"]), float(r["F"])) for r in read["frames"]] == frames
    assert [(row["kind"], row["frame"]) for row in read["problems"]] == [("unreadable file", "00002")]
    assert read["left_out"][0] == {
        "sequence": "bear",
        "frames": "00000 00004",
        "objects": "",
        "reason": "the first and the last frame do not count",
    }


def test_a_table_of_an_earlier_scoring_does_not_stay(pair, tmp_path):
    truth, prediction = pair
    whole = (prediction / "bear/00002.png").read_bytes()
    cut(truth, prediction)
    score(truth, prediction, strict=False).write_csv(tmp_path / "out")
    (prediction / "bear/00002.png").write_bytes(whole)
    score(truth, prediction).write_csv(tmp_path / "out")
    assert not (tmp_path / "out/problems.csv").exists()
    assert {float(row["J"]) for row in table(tmp_path / "out/frames.csv")} == {100.0}


# Arguments


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"protocol": "davis"}, "no protocol 'davis'"),
        ({"workers": 0}, "workers is 0"),
        ({"protocol": "vos_benchmark", "frames": "listed"}, "one of inner, all"),
        ({"protocol": "youtube_vos", "frames": "odd"}, "one of listed, inner, all"),
    ],
)
def test_arguments_that_do_not_fit(pair, options, says):
    with pytest.raises(ConfigError, match=says) as error:
        score(*pair, **options)
    assert lines(error) <= 8


VIDEO = {"davis2016", "davis2017", "vos_benchmark", "youtube_vos", "lvos", "long_time_video"}
TAKEN = {  # a value, and who takes it
    "frames": ("all", {"vos_benchmark", "youtube_vos"}),
    "unseen": ("x.txt", {"youtube_vos", "lvos"}),
    "tags": ("x.csv", VIDEO),
    "classes": ("voc", {"semantic"}),
    "absent": ("counted", {"semantic"}),
}


@pytest.mark.parametrize("protocol", sorted(VIDEO | {"youtube_vis", "semantic"}))
@pytest.mark.parametrize("name", TAKEN)
def test_arguments_that_a_protocol_does_not_take(tmp_path, name, protocol):
    """Defaults that are spelled out too; before any path is looked at."""
    value, takers = TAKEN[name]
    with pytest.raises(UserError) as error:
        score(tmp_path / "no", tmp_path / "no", protocol, **{name: value})
    if protocol in takers:
        assert str(tmp_path / "no") in str(error.value)
        return
    assert isinstance(error.value, ConfigError)
    first, second = str(error.value).splitlines()
    assert first == f"{name} is given, but {protocol} does not take it"
    assert set(second.removesuffix(" would").strip().split(", ")) == takers


def test_paths_that_are_not_there(pair, tmp_path):
    for arguments in ((tmp_path / "no", pair[1]), (pair[0], tmp_path / "no")):
        with pytest.raises(DatasetNotFoundError, match="No such folder or zip"):
            score(*arguments)


ALLOWED = """
import sys

ALLOWED = {"numpy", "cv2", "deflate", "lightning_vos"}

class Guard:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and top not in sys.stdlib_module_names and top not in STARTED:
            raise ImportError(f"scoring imports {name}")

STARTED = {name.partition(".")[0] for name in sys.modules}  # what the interpreter's own start brings along
assert not STARTED & {"torch", "PIL", "scipy", "pandas", "pycocotools", "rich", "yaml"}
sys.meta_path.insert(0, Guard())
from lightning_vos.evaluation import score
print(score(sys.argv[1], sys.argv[2]).summary["J&F"])
"""


def test_scoring_imports_numpy_and_opencv_alone(pair):
    command = [sys.executable, "-c", ALLOWED, *map(str, pair)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (finished.stdout, finished.returncode) == ("100.0\n", 0), finished.stderr
