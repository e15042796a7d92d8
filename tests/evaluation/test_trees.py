"""Where masks are found in what people hand in, and that nothing in a zip leads anywhere else."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from lightning_vos.errors import DatasetNotFoundError, MaskError
from lightning_vos.evaluation.trees import LAYOUTS, find_sequences


def png(number):
    file = io.BytesIO()
    Image.fromarray(np.full((2, 3), number, np.uint8)).save(file, format="PNG")
    return file.getvalue()


MASKS = {f"{name}/{frame:05}.png": png(10 * k + frame) for k, name in enumerate(("bear", "swan")) for frame in (0, 5)}
CONTENT = {name: {f"{frame:05}": MASKS[f"{name}/{frame:05}.png"] for frame in (0, 5)} for name in ("bear", "swan")}


def as_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_zip(path, files):
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path.with_suffix(".zip")


def under(prefix, files=MASKS):
    return {f"{prefix}/{name}" if prefix else name: data for name, data in files.items()}


def contents(path, *layouts):
    return {
        name: {frame: masks.read(frame) for frame in masks.frames}
        for name, masks in find_sequences(path, *layouts).items()
    }


@pytest.fixture(params=[as_folder, as_zip])
def handed_in(request, tmp_path):
    return lambda files: request.param(tmp_path / "results", files)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wrapper", ["", "my submission"])
def test_known_layouts_wrapped_or_not(handed_in, layout, wrapper):
    path = handed_in(under(wrapper, under(layout)))
    assert contents(path) == CONTENT
    found = find_sequences(path)
    assert list(found) == ["bear", "swan"]
    where = found["bear"].where("00005")
    assert where.startswith(str(path))
    assert where.endswith("bear/00005.png")


def test_frames_and_sequences_are_in_order_of_their_names(handed_in):
    names = ["b/00010", "b/00002", "a/9", "a/10", "c10/0", "c9/0"]
    found = find_sequences(handed_in({f"{name}.png": png(1) for name in names}))
    assert [(name, *masks.frames) for name, masks in found.items()] == [
        ("a", "10", "9"),
        ("b", "00002", "00010"),
        ("c10", "0"),
        ("c9", "0"),
    ]


def test_the_first_layout_that_holds_something_is_taken(handed_in):
    """A run of ours keeps pictures beside its masks; a dataset keeps its full resolution beside 480p."""
    path = handed_in(under("masks") | {"overlays/bear/00000.png": png(99), "contact.png": png(98)})
    assert contents(path) == CONTENT
    path = handed_in(under("Annotations/480p") | under("Annotations/1080p", {"bear/00000.png": png(97)}))
    assert contents(path, ("Annotations/480p", "")) == CONTENT


def test_what_computers_leave_about_is_no_mask(handed_in):
    clutter = [
        "__MACOSX/bear/._00000.png",
        "__MACOSX/._bear",
        "bear/._00000.png",
        "bear/.00001.png",
        "bear/Thumbs.db",
        "bear/notes.txt",
        ".DS_Store",
        "readme.txt",
        "overall.png",
    ]
    path = handed_in(MASKS | dict.fromkeys(clutter, b"clutter"))
    assert contents(path) == CONTENT


def test_hidden_folders_are_no_sequences(handed_in):
    assert contents(handed_in(MASKS | {".thumbnails/00000.png": png(99)})) == CONTENT


def test_a_shadow_folder_of_macos_is_no_second_folder(tmp_path):
    shadows = {f"__MACOSX/results/bear/._{frame:05}.png": b"shadow" for frame in (0, 5)}
    assert contents(as_zip(tmp_path / "a", under("results") | shadows)) == CONTENT


def test_endings_may_be_written_large(handed_in):
    assert contents(handed_in({"bear/00000.PNG": png(1)})) == {"bear": {"00000": png(1)}}


def test_a_zip_may_name_its_folders(tmp_path):
    entries = {"Annotations/": b"", "Annotations/bear/": b"", "Annotations/empty/": b""}
    assert contents(as_zip(tmp_path / "a", entries | under("Annotations"))) == CONTENT


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_ways_of_packing(tmp_path, kind):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", kind) as archive:
        for name, data in MASKS.items():
            archive.writestr(name, data)
    assert contents(tmp_path / "a.zip") == CONTENT


def refused(path, *words):
    with pytest.raises(DatasetNotFoundError) as error:
        find_sequences(path)
    text = str(error.value)
    for word in (str(path), *words):
        assert word in text
    assert len(text.splitlines()) <= 8


def test_nothing_there(tmp_path):
    refused(tmp_path / "nowhere", "No such folder or zip")
    refused(as_folder(tmp_path / "empty", {"readme.txt": b""}), "found no folder", "<sequence>/<frame>.png")
    refused(as_zip(tmp_path / "a", {"readme.txt": b""}), "found no folder")
    refused(as_folder(tmp_path / "jpeg", {"bear/00000.jpg": b""}), "found bear", "Annotations/480p")


@pytest.mark.parametrize("depth", ["x/y", "a/b/c/d"])
def test_masks_too_far_down(handed_in, depth):
    refused(handed_in(under(depth)), f"found {depth[0]}")


def test_the_folder_of_one_sequence_alone(tmp_path):
    """The frames themselves, in place of the folder that holds the folder of their sequence."""
    frames = {"00000.png": png(1), "00001.png": png(1)}
    refused(as_folder(tmp_path / "bear", frames), "this is the folder of one sequence", "its parent is wanted")
    refused(as_zip(tmp_path / "bear", frames), "<sequence>/<frame>.png", "holds the folders of the sequences")
    assert list(find_sequences(tmp_path)) == ["bear"]


def test_the_folder_of_several_runs(tmp_path):
    runs = as_folder(tmp_path / "runs", under("one/masks") | under("two/masks"))
    refused(runs, "found the folders of several runs: name one of one, two")
    assert contents(runs / "two") == CONTENT


def test_a_folder_of_images_in_place_of_masks(tmp_path):
    images = as_folder(tmp_path / "JPEGImages", {"bear/00000.jpg": b"", "swan/00000.jpg": b""})
    refused(images, "found bear, swan, which hold JPEGs: masks are PNGs")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wrapper", ["", "my submission"])
def test_members_with_backslashes(tmp_path, layout, wrapper):
    """As some programs for Windows write them."""
    files = under(wrapper, under(layout)) | {"__MACOSX/bear/._00000.png": b"shadow", ".hidden/bear/00000.png": b""}
    path = as_zip(tmp_path / "a", {name.replace("/", "\\"): data for name, data in files.items()})
    assert zipfile.ZipFile(path).namelist()[0].count("\\") > 0
    assert contents(path) == CONTENT


def test_many_folders_are_not_all_named(handed_in):
    path = handed_in({f"a{number:03}/x/y/0.png": png(1) for number in range(200)})
    refused(path, "found a000, a001, a002, a003, a004, a005, ...")


@pytest.mark.parametrize("data", [b"", b"no zip at all", b"PK\x03\x04 and then nothing"])
def test_a_file_that_is_no_zip(tmp_path, data):
    (tmp_path / "a.zip").write_bytes(data)
    refused(tmp_path / "a.zip", "no zip that can be read")


def test_a_zip_that_is_cut_off(tmp_path):
    path = as_zip(tmp_path / "a", MASKS)
    path.write_bytes(path.read_bytes()[:-30])
    refused(path, "interrupted download")


def test_a_zip_that_is_mended_is_read_anew(tmp_path):
    path = as_zip(tmp_path / "a", MASKS)
    assert contents(path) == CONTENT
    mended = as_zip(tmp_path / "b", {"bear/00000.png": png(77), "wolf/00003.png": png(78)})
    mended.replace(path)
    assert contents(path) == {"bear": {"00000": png(77)}, "wolf": {"00003": png(78)}}


def unreadable(path, *words):
    """The one mask of the sequence a."""
    masks = find_sequences(path)["a"]
    with pytest.raises(MaskError) as error:
        masks.read("0")
    text = str(error.value)
    for word in ("cannot be read", str(path), "a/0.png", *words):
        assert word in text
    assert len(text.splitlines()) <= 8


def test_a_member_that_is_damaged(tmp_path):
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / f"{kind}.zip"
        with zipfile.ZipFile(path, "w", kind) as archive:
            archive.writestr("a/0.png", png(5))
        data = bytearray(path.read_bytes())
        start = 30 + len("a/0.png")
        data[start + 2 : start + 12] = bytes(byte ^ 0xFF for byte in data[start + 2 : start + 12])
        path.write_bytes(data)
        unreadable(path)


def test_members_that_cannot_be_unpacked(tmp_path):
    """Encrypted, of a method that nobody knows, and one that claims to be larger than any mask."""
    whole = as_zip(tmp_path / "whole", {"a/0.png": png(5)}).read_bytes()
    directory = whole.index(b"PK\x01\x02")
    for name, changes in {
        "encrypted": {6: b"\x01", directory + 8: b"\x01"},
        "method": {8: b"\x63", directory + 10: b"\x63"},
        "huge": {directory + 24: b"\xfe\xff\xff\xff"},
    }.items():
        data = bytearray(whole)
        for position, value in changes.items():
            data[position : position + len(value)] = value
        (tmp_path / f"{name}.zip").write_bytes(data)
        unreadable(tmp_path / f"{name}.zip")


def test_names_that_lead_out_of_a_zip_lead_nowhere(tmp_path):
    """Members are read from the archive by their whole names; the file of that name on the disk never is."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "00000.png").write_bytes(png(66))
    names = ["../secret/00000.png", str(tmp_path / "secret" / "00000.png"), "bear/../../secret/00000.png"]
    names += [name.replace("/", "\\") for name in names]
    for number, name in enumerate(names):
        (tmp_path / f"{number}").mkdir()
        path = as_zip(tmp_path / f"{number}" / "a", {name: png(11)})
        try:
            found = contents(path)
        except DatasetNotFoundError:
            continue
        assert [data for frames in found.values() for data in frames.values()] == [png(11)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2", "3", "4", "5", "secret"]


@pytest.mark.parametrize("name", ["", ".", "/", "./", "..", "../", "bear/.", ".png", "bear/.png", "\0.png", "//.png"])
def test_odd_names_in_a_zip_change_nothing(tmp_path, name):
    path = as_zip(tmp_path / "a", MASKS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"odd")
    assert contents(path) == CONTENT


def test_a_folder_that_is_a_link_is_followed(tmp_path):
    as_folder(tmp_path / "elsewhere", MASKS)
    (tmp_path / "results").mkdir()
    for name in ("bear", "swan"):
        (tmp_path / "results" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert contents(tmp_path / "results") == CONTENT


def test_a_file_that_went_away_meanwhile(tmp_path):
    path = as_folder(tmp_path / "results", {"a/0.png": png(1)})
    masks = find_sequences(path)["a"]
    (path / "a/0.png").unlink()
    with pytest.raises(MaskError, match=r"cannot be read: .*a/0\.png"):
        masks.read("0")
