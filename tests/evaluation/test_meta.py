"""The meta files of YouTube-VOS and LVOS: what they say, and what is refused."""

import json
import subprocess
import sys

import pytest

from lightning_vos.errors import DatasetNotFoundError
from lightning_vos.evaluation.meta import LVOSObject, YouTubeVOSObject, read_lvos_meta, read_youtube_vos_meta

READERS = pytest.mark.parametrize("read", [read_youtube_vos_meta, read_lvos_meta])


@pytest.fixture
def meta_file(tmp_path):
    """Writes videos, or the whole content, as a meta file."""

    def write(videos=None, content=None):
        file = tmp_path / "meta.json"
        file.write_text(json.dumps({"videos": videos}) if content is None else content, encoding="utf-8")
        return file

    return write


def test_youtube_vos(meta_file):
    file = meta_file({
        "0a": {"objects": {"3": {"category": "person", "frames": ["00005", "00010"]}, "1": {"frames": ["00010"]}}},
        "0b": {"objects": {"1": {"category": None, "frames": ["00010", "00000", "00010"]}, "2": {"frames": []}}},
        "0c": {"objects": {}},
    })  # fmt: skip
    assert read_youtube_vos_meta(file) == {
        "0a": {3: YouTubeVOSObject("person", ("00005", "00010")), 1: YouTubeVOSObject(None, ("00010",))},
        "0b": {1: YouTubeVOSObject(None, ("00000", "00010")), 2: YouTubeVOSObject(None, ())},
        "0c": {},
    }


@pytest.mark.parametrize("kind", [int, str, "{:08}".format])
def test_lvos_numbers_are_text_or_numbers(meta_file, kind):
    span = {"start": kind(6), "end": kind(26), "frame_nums": kind(5)}
    file = meta_file({"Ab12": {"objects": {"7": {"frame_range": span, "caption": "a fox"}}}})
    assert read_lvos_meta(file) == {"Ab12": {7: LVOSObject(6, 26, 5)}}


@pytest.mark.parametrize(
    ("entry", "scored"),
    [
        (LVOSObject(1, 26, 6), [6, 11, 16, 21]),  # 1 to 26, all but both ends
        (LVOSObject(1, 496, 100), list(range(6, 492, 5))),
        (LVOSObject(1, 24, 5), [6, 11, 16]),  # the range ends beside the grid
        (LVOSObject(1, 26, 4), [6, 11]),  # the count ends it
        (LVOSObject(1, 26, 90), [6, 11, 16, 21]),  # the range ends it, though the count is larger
        (LVOSObject(1, 26, 2), []),
        (LVOSObject(1, 26, 0), []),
        (LVOSObject(6, 6, 1), []),
    ],
)
def test_the_frames_that_lvos_scores(entry, scored):
    assert list(entry.scored) == scored
    assert set(scored) <= set(entry.frames)
    assert entry.end not in entry.frames


@READERS
def test_a_byte_order_mark_is_passed_over(meta_file, read):
    assert read(meta_file(content="\ufeff" + json.dumps({"videos": {"0a": {"objects": {}}}}))) == {"0a": {}}


@READERS
def test_a_file_that_is_not_there(tmp_path, read):
    with pytest.raises(DatasetNotFoundError, match=r"meta.json cannot be read: No such file") as error:
        read(tmp_path / "meta.json")
    assert "expected the objects of each video and their frames there" in str(error.value)


@READERS
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no objects of videos"),
        ("{}", "no objects of videos"),
        ('{"videos": ["0a"]}', "no objects of videos"),
        ('{"videos": {"0a": null}}', "no objects, by their ids, of video 0a"),
        ('{"videos": {"0a": {}}}', "no objects, by their ids, of video 0a"),
        ('{"videos": {"0a": {"objects": [1]}}}', "no objects, by their ids, of video 0a"),
        ('{"videos": {"0a": {"objects": {"x": {}}}}}', "no objects, by their ids, of video 0a"),
        ('{"videos": {"0a": {"objects": {"0": {}}}}}', r"object ids \[0\] of video 0a, which masks cannot hold"),
        ('{"videos": {"0a": {"objects": {"256": {}}}}}', r"object ids \[256\] of video 0a"),
        ('{"videos": {"../0a": {"objects": {}}}}', "the name '../0a', expected plain names"),
        ('{"videos": {"..": {"objects": {}}}}', "plain names"),
        ('{"videos": {"a\\\\b": {"objects": {}}}}', "plain names"),
        ('{"videos": {"": {"objects": {}}}}', "plain names"),
    ],
)
def test_files_that_are_not_as_shipped(meta_file, read, content, words):
    file = meta_file(content=content)
    with pytest.raises(DatasetNotFoundError, match=words) as error:
        read(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (None, "no list of frame names of object 4 in video 0a"),
        ({}, "no list of frame names of object 4 in video 0a"),
        ({"frames": "00005"}, "no list of frame names"),
        ({"frames": [5]}, "no list of frame names"),
        ({"frames": ["00000", "../../00005"]}, "plain names"),
        ({"frames": ["/etc/passwd"]}, "plain names"),
    ],
)
def test_objects_without_frames(meta_file, entry, words):
    with pytest.raises(DatasetNotFoundError, match=words):
        read_youtube_vos_meta(meta_file({"0a": {"objects": {"4": entry}}}))


@pytest.mark.parametrize(
    "span",
    [
        None,
        [1, 26, 6],
        {"start": 1, "end": 26},
        {"start": None, "end": 26, "frame_nums": 6},
        {"start": "first", "end": 26, "frame_nums": 6},
        {"start": 1, "end": float("inf"), "frame_nums": 6},
    ],
)
def test_objects_without_a_range(meta_file, span):
    words = "no frame_range with start, end and frame_nums of object 2 in video Ab12"
    for entry in ({"frame_range": span}, span):
        with pytest.raises(DatasetNotFoundError, match=words):
            read_lvos_meta(meta_file({"Ab12": {"objects": {"2": entry}}}))


def test_only_the_standard_library_is_imported():
    code = (
        "import sys, lightning_vos.evaluation.meta; "
        "sys.exit(bool({'numpy', 'cv2', 'torch', 'PIL', 'lightning_vos.evaluation.scoring'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
