"""Submissions of made-up datasets: packed, checked, unpacked, compared; and every kind of damage named."""

import gzip
import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from lightning_vos.errors import ConfigError, DatasetNotFoundError, UserError
from lightning_vos.evaluation import score
from lightning_vos.evaluation.problems import ProblemKind
from lightning_vos.evaluation.submission import SubmissionError, check, pack
from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette, write_mask

SIZE = (20, 30)  # H, W
RAMP = b"".join(VOC_PALETTE[3 * i : 3 * i + 3] if i < 22 else bytes([i] * 3) for i in range(256))
BENCHMARKS = ("davis2017_test_dev", "youtube_vos", "lvos", "voc")
VOC_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


def save_image(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (90, 120, 60)).save(path)


def labels_of(*ids, size=SIZE):
    """A map that shows exactly these ids."""
    labels = np.zeros(size, np.uint8)
    for index, object_id in enumerate(ids):
        labels[2 + index : 9 + index, 3 + 4 * index : 6 + 4 * index] = object_id
    return labels


class Case:
    """A dataset and good results for it.

    `masks`: member of the archive -> label map; `files`: the same -> file of the results.
    """

    def __init__(self, root, benchmark):
        self.benchmark = benchmark
        self.dataset, self.results = root / "dataset" / "valid", root / "run" / "masks"
        self.output = root / "out" / ("submission.tar.gz" if benchmark == "voc" else "submission.zip")
        self.masks, self.files = {}, {}
        getattr(self, benchmark)()

    def add(self, name, frame, labels, folder):
        path = self.results / name / f"{frame}.png"
        write_mask(path, labels, RAMP)
        member = "/".join(part for part in (folder, name, f"{frame}.png") if part)
        self.masks[member], self.files[member] = labels, path

    def davis2017_test_dev(self):
        (self.dataset / "ImageSets/2017").mkdir(parents=True)
        (self.dataset / "ImageSets/2017/test-dev.txt").write_text("bear\naye-aye\n")
        for name, size, ids in (("bear", SIZE, (1, 3)), ("aye-aye", (20, 26), (1,))):
            for frame in ("00000", "00001", "00002"):
                save_image(self.dataset / "JPEGImages/480p" / name / f"{frame}.jpg", size)
                self.add(name, frame, labels_of(*ids, size=size), "")
            write_mask(self.dataset / "Annotations/480p" / name / "00000.png", labels_of(*ids, size=size), RAMP)

    def youtube_vos(self):
        listed = {
            "0a": {"1": ["00005", "00010", "00015"], "4": ["00010", "00015"]},
            "0b": {"2": ["00000"]},
        }
        for name, objects in listed.items():
            for frame in sorted(set().union(*objects.values())):
                save_image(self.dataset / "JPEGImages" / name / f"{frame}.jpg")
                shown = [int(i) for i, frames in objects.items() if frame in frames]
                self.add(name, frame, labels_of(*shown), "Annotations")
            for i, frames in objects.items():
                write_mask(self.dataset / "Annotations" / name / f"{frames[0]}.png", labels_of(int(i)), RAMP)
        save_image(self.dataset / "JPEGImages/0a/00000.jpg")  # listed for no object
        videos = {n: {"objects": {i: {"frames": f} for i, f in o.items()}} for n, o in listed.items()}
        (self.dataset / "meta.json").write_text(json.dumps({"videos": videos}))

    def lvos(self):
        for index in range(4):
            frame = f"{1 + 5 * index:08}"
            save_image(self.dataset / "JPEGImages/Ab12" / f"{frame}.jpg")
            if index > 0:
                self.add("Ab12", frame, labels_of(*(1, 2)[:index]), "Annotations")
        write_mask(self.dataset / "Annotations/Ab12/00000006.png", labels_of(1), RAMP)
        spans = {
            "1": {"start": "00000006", "end": "00000017", "frame_nums": "3"},
            "2": {"start": 11, "end": 16, "frame_nums": 2},
        }
        videos = {"Ab12": {"objects": {i: {"frame_range": span} for i, span in spans.items()}}}
        (self.dataset / "valid_meta.json").write_text(json.dumps({"videos": videos}))

    def voc(self):
        (self.dataset / "ImageSets/Segmentation").mkdir(parents=True)
        (self.dataset / "ImageSets/Segmentation/test.txt").write_text("2008_000006\n2008_000011\n")
        for name, size, ids in (("2008_000006", SIZE, (1, 20)), ("2008_000011", (14, 40), ())):
            save_image(self.dataset / "JPEGImages" / f"{name}.jpg", size)
            self.add("", name, labels_of(*ids, size=size), VOC_FOLDER)

    @property
    def members(self):
        """The content of a good archive."""
        return {name: path.read_bytes() for name, path in self.files.items()}

    def pack(self, **words):
        return pack(self.results, self.dataset, self.output, benchmark=self.benchmark, **words)

    def check(self, file=None):
        return check(file or self.output, self.dataset, benchmark=self.benchmark)

    def archive(self, members):
        """Packs by hand."""
        self.output.parent.mkdir(exist_ok=True)
        if self.benchmark == "voc":
            with tarfile.open(self.output, "w:gz") as archive:
                for name, data in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        else:
            with zipfile.ZipFile(self.output, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in members.items():
                    archive.writestr(name, data)


def unpack(file, folder):
    """What a server does with the file."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
    else:
        with tarfile.open(file) as archive:
            archive.extractall(folder, filter="data")
    return folder


def found(call):
    """The kinds of problems that a call names, each with sequence and frame; and the message."""
    with pytest.raises(SubmissionError) as error:
        call()
    return [(p.kind, p.sequence, p.frame) for p in error.value.problems], str(error.value)


def png(labels, mode="P", palette=RAMP, **options):
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(palette)
    content = io.BytesIO()
    image.convert(mode).save(content, format="PNG", **options)
    return content.getvalue()


@pytest.fixture(params=BENCHMARKS)
def case(request, tmp_path):
    return Case(tmp_path, request.param)


@pytest.fixture
def davis(tmp_path):
    return Case(tmp_path, "davis2017_test_dev")


@pytest.fixture
def youtube(tmp_path):
    return Case(tmp_path, "youtube_vos")


@pytest.fixture
def voc(tmp_path):
    return Case(tmp_path, "voc")


def test_what_is_packed_unpacks_to_the_same_pixels(case, tmp_path):
    submission = case.pack()
    assert submission == case.check()
    objects = sum(len(np.unique(m)) - 1 for m in case.masks.values()) if case.benchmark == "voc" else None
    wanted = {"davis2017_test_dev": (2, 6, 3), "youtube_vos": (2, 4, 3), "lvos": (1, 3, 2), "voc": (1, 2, objects)}
    assert (submission.sequences, submission.frames, submission.objects) == wanted[case.benchmark]
    assert (submission.file, submission.size, submission.notes) == (case.output, case.output.stat().st_size, ())
    folder = unpack(case.output, tmp_path / "server")
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert there.keys() == case.masks.keys()
    for member, path in there.items():
        np.testing.assert_array_equal(read_mask(path), case.masks[member])
        assert read_palette(path) == (VOC_PALETTE if case.benchmark == "voc" else RAMP)
        with Image.open(path) as image:
            assert (image.mode, image.tile[0][3]) == ("P", "P")  # 8 bits
    assert list(case.output.parent.iterdir()) == [case.output]


def test_packing_twice_gives_the_same_bytes(case, tmp_path):
    case.pack()
    first = case.output.read_bytes()
    for path in case.files.values():
        path.touch()  # another time
    case.output = tmp_path / f"again{''.join(case.output.suffixes)}"
    case.pack()
    assert case.output.read_bytes() == first


def test_the_folder_of_the_run_will_do(case):
    case.results = case.results.parent
    assert case.pack().frames == len(case.files)


def test_grey_masks_and_other_colours_get_the_palette_of_the_dataset(case, tmp_path):
    for index, (member, path) in enumerate(case.files.items()):
        labels = case.masks[member]
        path.write_bytes([png(labels, "L"), png(labels, palette=bytes(768)), png(labels, bits=8)][index % 3])
    case.pack()
    folder = unpack(case.output, tmp_path / "server")
    for member, labels in case.masks.items():
        np.testing.assert_array_equal(read_mask(folder / member), labels)
        assert read_palette(folder / member) == (VOC_PALETTE if case.benchmark == "voc" else RAMP)


def test_a_mask_that_is_right_is_packed_as_it_is(davis):
    davis.pack()
    with zipfile.ZipFile(davis.output) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == davis.members
        assert archive.namelist() == sorted(davis.members)
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("benchmark", ["youtube_vos", "lvos"])
def test_masks_of_further_frames_are_left_out(tmp_path, benchmark):
    case = Case(tmp_path, benchmark)
    first = next(iter(case.files.values()))
    members = case.members
    for frame in ("00000001", "00000002"):  # of the video, but before any object, and of no frame of the set
        write_mask(first.with_name(f"{frame}.png"), labels_of(1))
        members[f"Annotations/{first.parent.name}/{frame}.png"] = png(labels_of(1))
    submission = case.pack()
    assert submission.frames == len(case.files)
    assert submission.notes == ("masks left out, of frames that are not asked for: 2",)
    case.archive(members)
    assert case.check().notes == ("masks of frames that are not asked for, which `submission pack` leaves out: 2",)


@pytest.mark.parametrize("benchmark", ["davis2017_test_dev", "voc"])
def test_masks_of_further_frames_are_refused(tmp_path, benchmark):
    case = Case(tmp_path, benchmark)
    member, path = next(iter(case.files.items()))
    path.with_name("77777.png").write_bytes(path.read_bytes())
    kinds, _ = found(case.pack)
    assert kinds == [(ProblemKind.EXTRA_FRAME, path.parent.name if benchmark != "voc" else "test", "77777")]
    case.archive({**case.members, str(Path(member).with_name("77777.png")): path.read_bytes()})
    assert found(case.check)[0] == kinds


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_written(davis):
    bear, aye = davis.results / "bear", davis.results / "aye-aye"
    write_mask(bear / "00000.png", labels_of(1, 2, 7))
    write_mask(bear / "00001.png", labels_of(1, size=(40, 60)))
    (bear / "00002.png").write_bytes(png(labels_of(1), "RGB"))
    (aye / "00000.png").unlink()
    (aye / "00001.png").write_bytes((aye / "00001.png").read_bytes()[:-20])
    (aye / "00002.png").write_bytes(b"no picture")
    write_mask(davis.results / "stranger" / "00000.png", labels_of(1))
    davis.output.parent.mkdir()
    davis.output.write_text("of an earlier day")
    kinds, message = found(davis.pack)
    assert sorted(kinds) == sorted([
        (ProblemKind.EXTRA_OBJECT, "bear", "00000"),
        (ProblemKind.WRONG_SIZE, "bear", "00001"),
        (ProblemKind.NOT_INDEXED, "bear", "00002"),
        (ProblemKind.MISSING_FRAME, "aye-aye", "00000"),
        (ProblemKind.UNREADABLE, "aye-aye", "00001"),
        (ProblemKind.UNREADABLE, "aye-aye", "00002"),
        (ProblemKind.EXTRA_SEQUENCE, "stranger", None),
    ])  # fmt: skip
    for words in ("7 problems", "nothing was written", "2, 7, expected 0, 1, 3", "60x40, expected 30x20", "RGB"):
        assert words in message
    assert davis.output.read_text() == "of an earlier day"
    assert list(davis.output.parent.iterdir()) == [davis.output]


def test_missing_sequences_and_frames(case):
    *rest, last = case.files
    case.files[last].unlink()
    kinds, _ = found(case.pack)
    name = "test" if case.benchmark == "voc" else case.files[last].parent.name
    alone = case.benchmark == "youtube_vos"  # the only frame of its video
    wanted = (ProblemKind.MISSING_SEQUENCE, name, None) if alone else (ProblemKind.MISSING_FRAME, name, Path(last).stem)
    assert kinds == [wanted]
    assert not case.output.exists()
    case.archive({member: case.files[member].read_bytes() for member in rest})
    assert found(case.check)[0] == kinds


@pytest.mark.parametrize("ids", [(21,), (1, 255)])
def test_classes_of_voc(voc, ids):
    write_mask(voc.results / "2008_000011.png", labels_of(*ids, size=(14, 40)))
    kinds, message = found(voc.pack)
    assert kinds == [(ProblemKind.EXTRA_OBJECT, "test", "2008_000011")]
    assert f"found {ids[-1]}, expected 0 to 20" in message


def test_notes_tell_of_objects_that_come_early_or_never(youtube):
    write_mask(youtube.results / "0a/00005.png", labels_of(4))
    write_mask(youtube.results / "0b/00000.png", labels_of())
    assert youtube.pack().notes == (
        "masks that show an object before it first appears: 1, such as 0a 00005",
        "objects that no mask shows: 0b 2",
    )


def test_masks_of_another_list_say_which_words_write_those_of_this_one(voc):
    for path in voc.files.values():
        path.rename(path.with_name(f"of_val_{path.name}"))
    with pytest.raises(ConfigError, match="No mask that the server asks for") as refused:
        voc.pack()
    assert "`predict` with --data.test_split NAME" in str(refused.value)


def test_masks_in_another_folder_than_any_that_is_asked_for(davis):
    with pytest.raises(ConfigError, match=r"found 6 masks such as aye-aye/00000.png\n  expected 6 masks such as aye-"):
        names = davis.dataset / "ImageSets/2017/test-dev.txt"
        for name in names.read_text().split():
            (davis.dataset / "JPEGImages/480p" / name).rename(davis.dataset / "JPEGImages/480p" / f"{name}x")
            (davis.dataset / "Annotations/480p" / name).rename(davis.dataset / "Annotations/480p" / f"{name}x")
        names.write_text("bearx\naye-ayex\n")
        davis.pack()
    davis.results = davis.results / "nowhere"
    with pytest.raises(ConfigError, match="found no such folder"):
        davis.pack()


def test_a_zip_with_one_folder_is_refused_by_davis(davis):
    (davis.dataset / "ImageSets/2017/one.txt").write_text("bear\n")
    davis.archive({name: data for name, data in davis.members.items() if name.startswith("bear")})
    kinds, message = found(lambda: check(davis.output, davis.dataset, benchmark=davis.benchmark, split="one"))
    assert kinds == [(ProblemKind.WRONG_LAYOUT, "the archive", None)]
    assert "two or more" in message


# Packed by hand


def test_archives_of_common_tools_are_taken(case, tmp_path):
    folder = tmp_path / "tree"
    for name, data in case.members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    case.output.parent.mkdir()
    if case.benchmark == "voc":
        with tarfile.open(case.output, "w:gz") as archive:
            archive.add(folder, ".")  # names begin with ./, and there are folders
    else:
        with zipfile.ZipFile(case.output, "w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder))
    assert case.check().frames == len(case.files)


def test_a_wrapping_folder_is_one_problem(case):
    case.archive({f"mine/{name}": data for name, data in case.members.items()})
    kinds, message = found(case.check)
    assert kinds == [(ProblemKind.WRONG_LAYOUT, "the archive", None)]
    assert f"mine/{min(case.files)}" in message and f"in place of {min(case.files)}" in message


@pytest.mark.parametrize(
    "name", ["../evil.png", "/evil.png", "a/../../evil.png", "bear/..\\evil.png", "__MACOSX/bear/._00000.png", "README"]
)
def test_members_that_do_not_belong_there(davis, name, tmp_path):
    davis.archive({**davis.members, name: b"evil"})
    kinds, message = found(davis.check)
    assert [kind for kind, _, _ in kinds] == [
        ProblemKind.EXTRA_FRAME if name.startswith("bear") else ProblemKind.WRONG_LAYOUT
    ]
    assert ("leads out" in message) == ("evil" in name and not name.startswith("bear"))
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_are_there_twice(case):
    member = min(case.files)
    case.archive(case.members)
    if case.benchmark == "voc":
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            for name, data in [*case.members.items(), (member, case.members[member])]:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        case.output.write_bytes(content.getvalue())
    else:
        with zipfile.ZipFile(case.output, "a") as archive:
            archive.writestr(member, case.members[member])
    assert found(case.check)[0] == [(ProblemKind.WRONG_LAYOUT, "the archive", member)]


def damaged_png(data, how):
    if how == "grey":
        return png(read_grey(data), "L")
    if how == "shallow":
        return png(read_grey(data) % 4, bits=2, palette=VOC_PALETTE[:12])
    if how == "black":
        return png(read_grey(data), palette=bytes(768))
    if how == "short palette":
        return recoloured(data, RAMP[:3])
    if how == "cut off":
        return data[:-12]
    if how == "check sum":
        return data[:-16] + bytes([data[-16] ^ 1]) + data[-15:]
    if how == "pixels":  # whole chunks, but half of the rows
        rows = zlib.compress(bytes(31 * 10))
        return with_chunk(data, b"IDAT", rows)
    return b"\xff\xd8\xff\xe0 a JPEG"


def read_grey(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image)


def chunks(data):
    begin = 8
    while begin < len(data):
        (size,) = struct.unpack_from(">I", data, begin)
        yield data[begin + 4 : begin + 8], data[begin + 8 : begin + 8 + size]
        begin += 12 + size


def with_chunk(data, wanted, content):
    parts = [(name, content if name == wanted else body) for name, body in chunks(data)]
    return data[:8] + b"".join(
        len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4) for name, body in parts
    )


def recoloured(data, palette):
    return with_chunk(data, b"PLTE", palette)


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("grey", ProblemKind.NOT_INDEXED, "8 bits, grey"),
        ("shallow", ProblemKind.NOT_INDEXED, "2 bits, indexed"),
        ("black", ProblemKind.WRONG_PALETTE, "every object is black"),
        ("short palette", ProblemKind.WRONG_PALETTE, "1 colours, but a pixel with index 3"),
        ("cut off", ProblemKind.UNREADABLE, "cut off"),
        ("check sum", ProblemKind.UNREADABLE, "check sum"),
        ("pixels", ProblemKind.UNREADABLE, "pixels"),
        ("jpeg", ProblemKind.UNREADABLE, "a JPEG"),
    ],
)
def test_masks_that_the_server_cannot_use(davis, how, kind, words):
    davis.archive(davis.members | {"bear/00001.png": damaged_png(davis.members["bear/00001.png"], how)})
    kinds, message = found(davis.check)
    assert kinds == [(kind, "bear", "00001")]
    assert words in message


def test_a_header_that_claims_a_huge_image_is_not_decoded(davis):
    data = davis.members["bear/00001.png"]
    huge = with_chunk(data, b"IHDR", struct.pack(">II", 2**30, 2**30) + data[24:29])
    davis.archive(davis.members | {"bear/00001.png": huge})
    kinds, message = found(davis.check)
    assert kinds == [(ProblemKind.WRONG_SIZE, "bear", "00001")]
    assert f"found {2**30}x{2**30}" in message


def test_a_member_that_unpacks_to_far_more_than_a_mask(case):
    member = min(case.files)
    case.archive(case.members | {member: bytes(2**24)})
    kinds, message = found(case.check)
    assert [kind for kind, _, _ in kinds] == [ProblemKind.UNREADABLE]
    assert f"of {2**24} bytes" in message


def test_damage_within_a_zip(davis):
    davis.pack()
    whole = davis.output.read_bytes()
    with zipfile.ZipFile(davis.output) as archive:
        info = archive.getinfo("bear/00001.png")
    wrong_sum = bytearray(whole)
    wrong_sum[info.header_offset + 30 + len(info.filename) + 60] ^= 1
    encrypted = bytearray(whole)
    entry = encrypted.rindex(b"bear/00001.png") - 46  # in the directory at the end
    encrypted[entry + 8] |= 1
    method = bytearray(whole)
    method[entry + 10] = 12
    for data, words in ((wrong_sum, "Bad CRC-32"), (encrypted, "encrypted"), (method, "another method")):
        davis.output.write_bytes(data)
        kinds, message = found(davis.check)
        assert kinds == [(ProblemKind.UNREADABLE, "bear", "00001")]
        assert words in message


def test_a_cut_off_archive_is_never_passed(case):
    case.pack()
    whole = case.output.read_bytes()
    for length in range(0, len(whole), 7):
        case.output.write_bytes(whole[:length])
        kinds, _ = found(case.check)
        assert (ProblemKind.UNREADABLE, "the archive", None) in kinds


def test_flipped_bits_end_in_typed_errors_or_in_the_same_masks(case):
    case.pack()
    whole = bytearray(case.output.read_bytes())
    refused = 0
    for position in range(0, len(whole), 23):
        case.output.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            assert case.check().frames == len(case.files)
        except SubmissionError:
            refused += 1
    assert refused


def test_a_file_that_is_no_archive(case):
    case.output.parent.mkdir()
    case.output.write_text("nothing of the kind")
    kinds, message = found(case.check)
    assert kinds == [(ProblemKind.UNREADABLE, "the archive", None)]
    assert ("gzipped tarball" in message) == (case.benchmark == "voc")
    case.output.unlink()
    with pytest.raises(ConfigError, match="No file to check"):
        case.check()


def test_links_and_hostile_headers_in_a_tarball(voc):
    member = min(voc.files)
    link = tarfile.TarInfo(member)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    voc.output.parent.mkdir()
    with tarfile.open(voc.output, "w:gz") as archive:
        archive.addfile(link)
    kinds, message = found(voc.check)
    assert (ProblemKind.UNREADABLE, "test", Path(member).stem) in kinds
    assert "a link" in message

    claims = tarfile.TarInfo("x")
    claims.type, claims.size = tarfile.XHDTYPE, 2**40  # a header that asks for a terabyte of memory
    voc.output.write_bytes(gzip.compress(claims.tobuf(tarfile.GNU_FORMAT) + bytes(2**16)))
    kinds, message = found(voc.check)
    assert kinds == [(ProblemKind.UNREADABLE, "the archive", None)]
    assert f"header of {2**40}" in message

    claims.type = tarfile.REGTYPE  # a file of zeros that would take an hour to pass over
    voc.output.write_bytes(gzip.compress(claims.tobuf(tarfile.GNU_FORMAT)))
    kinds, message = found(voc.check)
    assert kinds == [(ProblemKind.UNREADABLE, "the archive", None)]
    assert f"x of {2**40} bytes" in message


# YouTube-VIS


def rle(mask):
    encoded = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


@pytest.fixture
def vis(tmp_path):
    """The JSON of a split, the results, and where to pack them."""
    videos = [
        {"id": 3, "height": 20, "width": 30, "length": 3, "file_names": [f"0a/{i:05}.jpg" for i in (0, 5, 10)]},
        {"id": 8, "height": 14, "width": 40, "length": 1, "file_names": ["0b/00000.jpg"]},
    ]
    dataset = tmp_path / "valid.json"
    dataset.write_text(json.dumps({"videos": videos, "categories": [{"id": 1, "name": "a"}, {"id": 7, "name": "b"}]}))
    results = [
        {"video_id": 3, "score": 0.5, "category_id": 7, "video_name": "0a",
         "segmentations": [rle(labels_of(1)), None, rle(labels_of())]},
        {"video_id": 3, "score": 1, "category_id": 1, "segmentations": [None, None, rle(labels_of(1, 2))]},
    ]  # fmt: skip
    return dataset, results, tmp_path / "results.json", tmp_path / "out.zip"


def pack_vis(vis, **changes):
    dataset, results, file, output = vis
    results[0].update(changes)
    file.write_text(json.dumps(results))
    return pack(file, dataset, output, benchmark="youtube_vis")


def test_results_are_packed_as_they_are(vis, tmp_path):
    dataset, results, _, output = vis
    submission = pack_vis(vis)
    assert (submission.sequences, submission.frames, submission.objects) == (1, 3, 2)
    assert submission == check(output, dataset, benchmark="youtube_vis")
    assert submission.notes == (
        "most results of a video: 2; the server's limit is not known",
        "videos without a result, of 2: 0b",
    )
    folder = unpack(output, tmp_path / "server")
    assert [path.name for path in folder.iterdir()] == ["results.json"]
    assert json.loads((folder / "results.json").read_text()) == results
    mask = pycocotools.mask.decode(results[0]["segmentations"][0])
    np.testing.assert_array_equal(mask, labels_of(1))
    first = output.read_bytes()
    pack(tmp_path, dataset, output, benchmark="youtube_vis")  # the folder of the results
    assert output.read_bytes() == first


GOOD = rle(labels_of(1))
DAMAGES = [
    ({"video_id": 4}, ProblemKind.EXTRA_SEQUENCE, "video_id 4"),
    ({"video_id": "3"}, ProblemKind.EXTRA_SEQUENCE, "video_id '3'"),
    ({"category_id": 2}, ProblemKind.UNKNOWN_CATEGORY, "category_id 2"),
    ({"category_id": None}, ProblemKind.UNKNOWN_CATEGORY, "None"),
    ({"score": float("nan")}, ProblemKind.MALFORMED, "score nan"),
    ({"score": float("inf")}, ProblemKind.MALFORMED, "score inf"),
    ({"score": 10**400}, ProblemKind.MALFORMED, "no finite number"),
    ({"score": "0.3"}, ProblemKind.MALFORMED, "'0.3'"),
    ({"segmentations": None}, ProblemKind.MALFORMED, "no list"),
    ({"segmentations": [GOOD]}, ProblemKind.WRONG_LENGTH, "found 1 segmentations, expected 3"),
    (
        {"segmentations": [None, GOOD | {"size": [30, 20]}, None]},
        ProblemKind.WRONG_SIZE,
        r"[30, 20], expected [20, 30]",
    ),
    ({"segmentations": [GOOD | {"counts": [600]}, None, None]}, ProblemKind.MALFORMED, "compressed RLE"),
    ({"segmentations": [[[1, 1, 5, 5, 1, 5]], None, None]}, ProblemKind.MALFORMED, "compressed RLE"),
]


@pytest.mark.parametrize(("changes", "kind", "words"), DAMAGES)
def test_results_that_the_server_would_refuse(vis, changes, kind, words):
    kinds, message = found(lambda: pack_vis(vis, **changes))
    assert [problem[0] for problem in kinds] == [kind]
    assert words in message and "result 1" in message
    assert not vis[3].exists()


def test_results_without_what_they_need(vis):
    del vis[1][0]["score"], vis[1][0]["category_id"]
    vis[1].append("a result")
    kinds, message = found(lambda: pack_vis(vis))
    assert [kind[:2] for kind in kinds] == [(ProblemKind.MALFORMED, "result 1"), (ProblemKind.MALFORMED, "result 3")]
    assert "without category_id, score" in message


@pytest.mark.parametrize(
    "counts", ["", "P", GOOD["counts"][:-1], GOOD["counts"] + "1", "oooooooo", "\x7f", "é", "0" * 40]
)
def test_malformed_run_lengths_never_reach_pycocotools(vis, counts):
    kinds, _ = found(lambda: pack_vis(vis, segmentations=[GOOD | {"counts": counts}, None, None]))
    assert kinds == [(ProblemKind.MALFORMED, "0a, result 1", "frame 0")]


def test_run_lengths_of_every_kind_of_mask_pass(vis):
    rng = np.random.default_rng(0)
    masks = [rng.random(SIZE) < density for density in (0, 0.01, 0.3, 0.5, 0.99, 1)]
    masks += [np.arange(600).reshape(SIZE) < 300, np.arange(600).reshape(SIZE) % 7 == 0]
    for start in range(0, len(masks) - 2):
        pack_vis(vis, segmentations=[rle(mask) for mask in masks[start : start + 3]])


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"[]", ProblemKind.MALFORMED, "an empty list"),
        (b'{"annotations": []}', ProblemKind.MALFORMED, "a dict"),
        (b"[{", ProblemKind.UNREADABLE, "no JSON"),
        (b"\xff\xfe\x00", ProblemKind.UNREADABLE, "no JSON"),
        (b"[" * 200_000, ProblemKind.UNREADABLE, "no JSON"),
    ],
)
def test_files_that_hold_no_results(vis, content, kind, words):
    vis[2].write_bytes(content)
    kinds, message = found(lambda: pack(vis[2], vis[0], vis[3], benchmark="youtube_vis"))
    assert kinds == [(kind, "the archive", None)]
    assert words in message


def test_zips_without_the_results_at_the_top(vis):
    dataset, results, _, output = vis
    for name, words in (("mine/results.json", "mine/results.json in place of"), (None, "no file in place of")):
        with zipfile.ZipFile(output, "w") as archive:
            if name:
                archive.writestr(name, json.dumps(results))
        kinds, message = found(lambda: check(output, dataset, benchmark="youtube_vis"))
        assert kinds == [(ProblemKind.WRONG_LAYOUT, "the archive", None)]
        assert words in message
    with zipfile.ZipFile(output, "w") as archive:
        archive.writestr("results.json", json.dumps(results))
        for name in ("README.md", "masks/00000.png"):
            archive.writestr(name, "mine")
    assert found(lambda: check(output, dataset, benchmark="youtube_vis"))[0] == [
        (ProblemKind.WRONG_LAYOUT, "the archive", "README.md"),
        (ProblemKind.WRONG_LAYOUT, "the archive", "masks/00000.png"),
    ]


def test_words_that_cannot_work_for_results(vis, tmp_path):
    with pytest.raises(ConfigError, match=r"No results: .*results.json"):
        pack(tmp_path, vis[0], vis[3], benchmark="youtube_vis")
    with pytest.raises(ConfigError, match="'valid'"):
        pack(vis[2], vis[0], vis[3], benchmark="youtube_vis", split="valid")


# A packed file, scored


def test_a_packed_file_scores_as_its_masks_do(case, tmp_path):
    """Once the truth is known: the masks moved by two pixels."""
    case.pack()
    truth = tmp_path / "truth"
    for member, labels in case.masks.items():
        name = member.removeprefix(VOC_FOLDER) if case.benchmark == "voc" else member.removeprefix("Annotations/")
        write_mask(
            truth / ("." if case.benchmark == "voc" else "Annotations") / name.lstrip("/"), np.roll(labels, 2, 1)
        )
    for meta in case.dataset.glob("*meta.json"):
        (truth / meta.name).write_text(meta.read_text())
    protocol = {"davis2017_test_dev": "davis2017", "voc": "semantic"}.get(case.benchmark, case.benchmark)
    packed, loose = score(truth, case.output, protocol), score(truth, case.results, protocol)
    assert packed.summary == loose.summary
    assert packed.objects == loose.objects
    assert repr(packed.categories) == repr(loose.categories)  # NaN of what nobody shows
    assert 0 < packed.summary["mIoU" if protocol == "semantic" else "J"] < 100


def test_packed_results_score_as_their_json_does(vis, tmp_path):
    dataset, _, file, output = vis
    pack_vis(vis)
    content, results = json.loads(dataset.read_text()), json.loads(file.read_text())
    videos = {video["id"]: video for video in content["videos"]}
    content["annotations"] = [
        {
            "id": number,
            "video_id": result["video_id"],
            "category_id": result["category_id"],
            "iscrowd": 0,
            "segmentations": result["segmentations"],
            "areas": [None if mask is None else float(pycocotools.mask.area(mask)) for mask in result["segmentations"]],
            "bboxes": [None] * videos[result["video_id"]]["length"],
        }
        for number, result in enumerate(results[:1], start=1)
    ]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    packed, loose = (score(tmp_path / "truth.json", path, "youtube_vis") for path in (output, file))
    assert repr(packed.summary) == repr(loose.summary)
    assert packed.summary["AP"] > 0


# Datasets that do not say what is expected


def test_lists_that_are_not_there(case):
    lists = [*case.dataset.glob("ImageSets/*/*.txt"), *case.dataset.glob("*.json")]
    assert len(lists) == 1
    lists[0].unlink()
    with pytest.raises(DatasetNotFoundError, match=f"Not in the dataset: {lists[0]}"):
        case.pack()


@pytest.mark.parametrize("name", ["../evil", "a/b", ".."])
def test_lists_that_lead_out_of_the_dataset(davis, youtube, name):
    (davis.dataset / "ImageSets/2017/test-dev.txt").write_text(f"bear\n{name}\n")
    (youtube.dataset / "meta.json").write_text(json.dumps({"videos": {name: {"objects": {"1": {"frames": ["0"]}}}}}))
    for case in (davis, youtube):
        with pytest.raises(DatasetNotFoundError, match="plain names"):
            case.pack()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"videos": []}',
        '{"videos": {"0a": {}}}',
        '{"videos": {"0a": {"objects": {"1": {}}}}}',
        '{"videos": {"0a": {"objects": {"x": {"frames": ["00005"]}}}}}',
        '{"videos": {"0a": {"objects": {"1": {"frames": []}}}}}',
    ],
)
def test_meta_files_that_are_not_as_shipped(youtube, content):
    (youtube.dataset / "meta.json").write_text(content)
    with pytest.raises(DatasetNotFoundError):
        youtube.pack()


@pytest.mark.parametrize("content", ["", "[]", '{"videos": [], "categories": 3}', '{"videos": [{"id": 1}]}'])
def test_vis_splits_that_are_not_as_shipped(vis, content):
    vis[0].write_text(content)
    with pytest.raises(DatasetNotFoundError, match=str(vis[0])):
        pack_vis(vis)


@pytest.mark.parametrize(
    ("benchmark", "image"), [("youtube_vos", "0a/00010"), ("lvos", "Ab12/00000011"), ("voc", "2008_000011")]
)
def test_frames_that_are_listed_but_not_there(tmp_path, benchmark, image):
    case = Case(tmp_path, benchmark)
    (case.dataset / "JPEGImages" / f"{image}.jpg").unlink()
    with pytest.raises(DatasetNotFoundError, match=f"missing: {Path(image).name}"):
        case.pack()


def test_words_that_cannot_work(case, tmp_path):
    for output in (tmp_path, tmp_path / "out.rar"):
        with pytest.raises(ConfigError, match="cannot be written"):
            pack(case.results, case.dataset, output, benchmark=case.benchmark)
    with pytest.raises(ConfigError, match="'davis' is known: expected one of davis2017_test_dev, "):
        pack(case.results, case.dataset, case.output, benchmark="davis")
    with pytest.raises(UserError, match="elsewhere"):
        case.pack(split="elsewhere")


def test_masks_of_2017_are_taken_where_both_years_are_kept(davis):
    for path in sorted(davis.dataset.glob("Annotations/480p/*/*.png")):
        of_year = davis.dataset / "Annotations_2017/480p" / path.parent.name / path.name
        of_year.parent.mkdir(parents=True)
        path.rename(of_year)
        write_mask(path, np.full(SIZE, 255, np.uint8))
    assert davis.pack().objects == 3


def test_progress_reaches_the_end(davis):
    told = []
    davis.pack(progress=lambda *words: told.append(words))
    assert told[-1] == ("checking", 6, 6)
    assert [words for words in told if words[0] == "packing"][-1][2] == 6


def test_torch_is_not_imported():
    code = (
        "import sys, lightning_vos.evaluation.submission; "
        "sys.exit(bool({'torch', 'PIL', 'rich', 'scipy'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
