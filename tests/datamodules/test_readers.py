import numpy as np
import pytest
from PIL import Image

from datamodules.readers import SequenceFiles, masks_of, read_names
from lightning_vos.errors import DatasetNotFoundError, FrameError, MaskError
from lightning_vos.io.frames import list_frames
from lightning_vos.io.masks import VOC_PALETTE, write_mask
from lightning_vos.metrics.sequence import Plan


def label_map(*ids, size=(40, 60)):
    """One vertical stripe an id."""
    mask = np.zeros(size, np.uint8)
    for column, number in enumerate(ids):
        mask[:, column * 6 : column * 6 + 5] = number
    return mask


@pytest.fixture
def sequence(tmp_path, write_video):
    def make(labels, count=6, **options):
        write_video(tmp_path / "v", tmp_path / "m", labels, count)
        frames = list_frames(tmp_path / "v")
        return SequenceFiles("v", frames, masks_of(frames, tmp_path / "m"), **options)

    return make


def lines(error):
    return len(str(error.value).splitlines())


def test_255_is_background_unless_the_masks_are_binary(sequence):
    files = sequence({0: label_map(1, 255, 3)})
    assert set(np.unique(files.labels(0))) == {0, 1, 3}
    binary = SequenceFiles("v", files.frames, files.masks, binary=True)
    assert binary.labels(0).sum() == 3 * 5 * 40
    assert set(np.unique(binary.labels(0))) == {0, 1}


def test_grey_and_indexed_masks_are_the_same(sequence, tmp_path):
    files = sequence({0: label_map(2, 7)})
    indexed = files.labels(0)
    Image.fromarray(label_map(2, 7)).save(files.masks[0])
    assert np.array_equal(files.labels(0), indexed)
    assert files.load(0).video.palette == VOC_PALETTE


def test_the_first_mask_alone_prompts_a_benchmark_sequence(sequence):
    files = sequence({0: label_map(1, 3), 1: label_map(1, 3, 4), **{i: label_map(1, 4) for i in range(2, 6)}})
    item = files.load(5)
    assert item.number == 5
    assert list(item.video.prompts) == [0]
    assert set(np.unique(item.video.prompts[0])) == {0, 1, 3}
    assert item.video.size == (40, 60)
    assert item.video.frame_names == [f"{i:05d}" for i in range(6)]
    assert item.video.frames[2].shape == (3, 40, 60)
    assert item.truth is not None
    inner = (1, 2, 3, 4)
    assert item.truth.plan == Plan(inner, dict.fromkeys((1, 2, 3), frozenset(inner)))  # a gap between the ids counts
    assert set(np.unique(item.truth.read(4))) == {0, 1, 4}


def test_every_first_appearance_prompts_a_folder_and_holds_the_new_objects_alone(sequence):
    labels = {0: label_map(2), 1: label_map(2), 3: label_map(2, 0, 5, 9), 4: label_map(5, 2), 5: label_map(9, 1)}
    item = sequence(labels, first_frame_only=False).load(0)
    shown = {frame: set(np.unique(prompt)) for frame, prompt in item.video.prompts.items()}
    assert shown == {0: {0, 2}, 3: {0, 5, 9}, 5: {0, 1}}
    assert np.array_equal(item.video.prompts[3] == 5, labels[3] == 5)
    assert item.truth is not None
    assert item.truth.plan == Plan((1, 3, 4), None)


def test_frames_before_the_first_mask_are_kept(sequence):
    video = sequence({2: label_map(1), 3: label_map(1)}).load(0).video
    assert list(video.prompts) == [2]
    assert len(video.frames) == 6


@pytest.mark.parametrize(
    ("labels", "dense", "truth"),
    [
        ({0: label_map(1)}, False, False),
        ({0: label_map(1), 2: label_map(2), 4: label_map(3)}, False, False),
        ({0: label_map(1), 5: label_map(1)}, True, False),
        ({0: label_map(1), 2: label_map(2, 1), 5: label_map(2)}, True, True),
        ({0: label_map(1), 2: label_map(), 5: label_map()}, True, True),
    ],
)
def test_masks_that_only_introduce_objects_are_no_truth(sequence, labels, dense, truth):
    files = sequence(labels, first_frame_only=False)
    assert files.is_dense is dense
    assert (files.load(0).truth is not None) is truth


@pytest.mark.parametrize("first_frame_only", [True, False])
def test_an_empty_first_mask_is_named(sequence, first_frame_only):
    files = sequence({1: label_map(0, 255), 2: label_map(1)}, first_frame_only=first_frame_only)
    with pytest.raises(MaskError, match=r"00001\.png.*no object") as error:
        files.load(0)
    assert lines(error) <= 8


def test_a_mask_of_another_size_stops_or_is_resized(sequence, tmp_path):
    files = sequence({0: label_map(1)})
    write_mask(tmp_path / "m" / "00001.png", label_map(1, 4, size=(20, 30)))
    masks = masks_of(files.frames, tmp_path / "m")
    with pytest.raises(MaskError, match=r"00001\.png(?s:.*)30x20(?s:.*)60x40"):
        SequenceFiles("v", files.frames, masks).labels(1)
    resized = SequenceFiles("v", files.frames, masks, resize_masks=True).labels(1)
    assert resized.shape == (40, 60)
    assert set(np.unique(resized)) == {0, 1, 4}


def test_a_frame_of_another_size_is_named(sequence, tmp_path):
    files = sequence({0: label_map(1)})
    Image.new("RGB", (30, 20)).save(tmp_path / "v" / "00003.jpg")
    assert files.frame(2).shape == (40, 60, 3)
    with pytest.raises(FrameError, match=r"00003\.jpg(?s:.*)30x20(?s:.*)60x40"):
        files.frame(3)


def test_masks_belong_to_frames(tmp_path, write_video):
    write_video(tmp_path / "v", tmp_path / "m", {1: label_map(1)}, 3)
    (tmp_path / "m" / "._00000.png").touch()
    frames = list_frames(tmp_path / "v")
    assert list(masks_of(frames, tmp_path / "m")) == [1]
    assert masks_of(frames, tmp_path / "absent") == {}
    write_mask(tmp_path / "m" / "00007.png", label_map(1))
    with pytest.raises(MaskError, match=r"00007\.png belongs to no frame"):
        masks_of(frames, tmp_path / "m")
    Image.new("RGB", (60, 40)).save(tmp_path / "v" / "00001.png")
    with pytest.raises(FrameError, match="more than one image named 00001"):
        masks_of(list_frames(tmp_path / "v"), tmp_path / "m")


@pytest.mark.parametrize("name", ["..", "../other", "/etc", "a/b", "a/"])
def test_a_listed_name_stays_inside(tmp_path, name):
    path = tmp_path / "val.txt"
    path.write_text(f"fine\n{name}\n")
    with pytest.raises(DatasetNotFoundError, match=r"val\.txt names the sequence"):
        read_names(path)


def test_lists_are_read_as_people_save_them(tmp_path):
    path = tmp_path / "val.txt"
    path.write_bytes(b"\xef\xbb\xbfbear\r\n\r\n two words \r\nbear\r\n")
    assert read_names(path) == ["bear", "two words"]
    path.write_text("\n")
    with pytest.raises(DatasetNotFoundError, match="names no sequence"):
        read_names(path)
