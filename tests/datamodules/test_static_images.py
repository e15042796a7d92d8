"""Pre-training on still images: the clips, the pseudo-videos, the files, and what is said about bad ones."""

import itertools
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import StaticImages
from datamodules.clips import MAX_OBJECTS
from datamodules.rendering import render_clip
from datamodules.samplers import ClipSampler
from datamodules.static_images import StillSet
from datamodules.synthetic_files import StillSettings, SyntheticSettings, write_davis, write_stills
from datamodules.transforms import MEAN_COLOUR, StillTransform
from lightning_vos.commands.data import main
from lightning_vos.errors import ConfigError, DatasetNotFoundError, FrameError, MaskError
from lightning_vos.io.masks import read_mask, write_mask
from lightning_vos.metrics.sequence import Plan

SAMPLES = Path(__file__).parents[3] / "shared/data/real"
REAL = SAMPLES / "VOCdevkit/VOC2012"
SMALL = StillSettings(images=11, height=64, width=80)
PLAIN = {"jitter": 0.0, "grey": 0.0, "blur": 0.0}
AT_REST = {"flip": 0.0, "frame_flip": 0.0, "rotation": 0.0, "translation": 0.0, "scale": (1.0, 1.0), "shear": 0.0}
COLOURS = np.array([[40, 90, 40], [230, 30, 30], [30, 30, 230], [240, 230, 30]], np.uint8)  # background and 3 objects


def blocks(size=(72, 90)) -> np.ndarray:
    """Labels of three solid objects, whose colours `COLOURS` are."""
    labels = np.zeros(size, np.uint8)
    labels[8:40, 8:34] = 1
    labels[30:64, 50:80] = 2
    labels[46:68, 12:36] = 3
    return labels


def write_set(folder: Path, masks: dict[str, np.ndarray]) -> None:
    for name, mask in masks.items():
        (folder / "JPEGImages").mkdir(parents=True, exist_ok=True)
        picture = COLOURS[np.where(mask < len(COLOURS), mask, 0)]
        Image.fromarray(picture).save(folder / f"JPEGImages/{name}.jpg", quality=100, subsampling=0)
        write_mask(folder / f"Annotations/{name}.png", mask)


def soft_mask() -> np.ndarray:
    """The objects of `blocks` as one of 255 with soft edges, and two pixels at the threshold."""
    mask = cv2.blur(np.where(blocks() > 0, 255, 0).astype(np.uint8), (3, 3))
    mask[0, :2] = 127, 128
    return mask


def write_beside(folder: Path, names: str, suffix: str = ".jpg") -> None:
    """Images and, beside them, RGB masks of 0 and 255 with soft edges."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(COLOURS[blocks()]).save(folder / f"{name}{suffix}", format="JPEG")
        Image.fromarray(np.stack([soft_mask()] * 3, -1)).save(folder / f"{name}.png")


def write_voc(folder: Path, names: str) -> None:
    """VOC2012 with borders that are void, and images that are on no list."""
    write_set(folder, {name: blocks() for name in [*names, "unlisted"]})
    (folder / "Annotations").rename(folder / "SegmentationObject")
    for name in names:
        mask = blocks()
        mask[8:40, 8:11] = 255
        write_mask(folder / f"SegmentationObject/{name}.png", mask)
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for split, listed in (("trainval", names), ("train", names[1:]), ("val", names[:1])):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed))


def write_coco(folder: Path, split: str, objects: int = 3) -> None:
    """Four images of 80 x 60 with squares in rows, the first the smallest, and a crowd over all of each."""
    images, annotations = [], []
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for number in range(1, 5):
        images.append({"id": number, "file_name": f"{number:012}.jpg", "height": 60, "width": 80})
        Image.new("RGB", (80, 60), (40 * number, 90, 40)).save(folder / split / f"{number:012}.jpg")
        boxes = [(2 + 20 * (k % 4), 2 + 19 * (k // 4), 6 + k, 6 + k) for k in range(objects)]
        for crowd, (x, y, width, height) in [*((0, box) for box in boxes), (1, (0, 0, 80, 60))]:
            outline = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 90, "iscrowd": crowd}
                | {"area": width * height, "bbox": [x, y, width, height], "segmentation": [outline]}
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 90, "name": "toothbrush"}]}
    (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def values_of(module: StaticImages, split="train") -> dict[str, list[int]]:
    """The values of the label map of every image of a split."""
    return {image.name: np.unique(image.labels(0)).tolist() for image in module.sequences(split)}


def colour_labels(frame: np.ndarray) -> np.ndarray:
    """The label whose colour each pixel of (H, W, 3) has; the mean colour is background."""
    palette = np.concatenate([COLOURS, [MEAN_COLOUR]]).astype(int)
    nearest = np.abs(frame[..., None, :].astype(int) - palette).sum(-1).argmin(-1)
    return np.where(nearest == len(COLOURS), 0, nearest)


def stack(length: int = 6, size=(72, 90)) -> tuple[np.ndarray, np.ndarray]:
    labels = blocks(size)
    return np.stack([COLOURS[labels]] * length), np.stack([labels] * length)


@pytest.fixture
def data(tmp_path):
    def make(stage="fit", **options):
        options = {"sampler": ClipSampler(length=5), "transform": StillTransform(crop=65, min_pixels=20)} | options
        module = StaticImages(options.pop("root", tmp_path), batch_size=2, workers=0, **options)
        module.setup(stage)
        return module

    return make


@pytest.fixture
def two_sets(tmp_path):
    write_set(tmp_path / "A", {f"{number:03}": blocks() for number in range(8)})
    write_set(tmp_path / "B", {f"{number:03}": blocks((80, 64)) for number in range(4)})
    return tmp_path


@pytest.mark.parametrize("seed", range(6))
def test_labels_follow_the_image_and_every_frame_moves_by_itself(seed):
    frames, masks = StillTransform(crop=97, **PLAIN)(*stack(), np.random.default_rng(seed))
    assert (frames.shape, frames.dtype) == ((6, 97, 97, 3), np.uint8)
    assert (masks.shape, masks.dtype) == ((6, 97, 97), np.uint8)
    exchanged = {colour: set() for colour in range(4)}
    for frame, mask in zip(frames, masks, strict=True):
        seen = colour_labels(frame)
        for colour, labels in exchanged.items():
            inside = mask[seen == colour]
            labels.add(int(np.bincount(inside).argmax()))
            assert (inside == np.bincount(inside).argmax()).mean() > 0.93  # cubic and nearest differ along outlines
    assert exchanged[0] == {0}
    assert all(len(labels) == 1 for labels in exchanged.values())  # one exchange for the whole clip
    assert len({mask.tobytes() for mask in masks}) == 6


def test_objects_change_places():
    orders = set()
    for seed in range(40):
        frames, masks = StillTransform(crop=97, **PLAIN, **AT_REST)(*stack(1), np.random.default_rng(seed))
        seen = colour_labels(frames[0])
        orders.add(tuple(np.argsort([int(np.bincount(masks[0][seen == colour]).argmax()) for colour in (1, 2, 3)])))
    assert len(orders) == 6


def test_what_moves_in_is_the_mean_colour_and_background():
    whole = {"area": (1.0, 1.0), "rotation": 40.0, "shear": 0.0, "translation": 0.0, "scale": (0.7, 0.7)}
    image = np.full((1, 90, 90, 3), (250, 250, 0), np.uint8).repeat(4, 0)
    frames, masks = StillTransform(crop=90, **PLAIN, **whole)(
        image, np.ones((4, 90, 90), np.uint8), np.random.default_rng(1)
    )
    filled = (frames == MEAN_COLOUR).all(-1)
    assert not filled[0].any()
    assert (masks[0] > 0).all()
    for frame, mask in zip(filled[1:], masks[1:], strict=True):
        assert 0.4 < frame.mean() < 0.6  # all but 0.7 x 0.7
        assert not mask[frame].any()
        assert (mask[~frame] > 0).mean() > 0.9  # outlines are mixed of both


@pytest.mark.parametrize(
    ("motion", "measure", "low", "high"),
    [
        ({"translation": 0.1}, lambda grid, area, x, y: (x - 49.5) / 100, -0.1, 0.1),
        ({"translation": 0.1}, lambda grid, area, x, y: (y - 49.5) / 100, -0.1, 0.1),
        ({"scale": (0.9, 1.1)}, lambda grid, area, x, y: np.sqrt(area / 600), 0.9, 1.1),
        ({"rotation": 20.0}, lambda grid, area, x, y: tilt(grid), -20, 20),
        ({"shear": 10.0}, lambda grid, area, x, y: lean(grid), -10, 10),
    ],
)
def test_frames_after_the_first_move_as_far_as_the_recipe_says(motion, measure, low, high):
    """Measured on an upright bar of 20 x 30 pixels in the middle of 100 x 100."""
    mask = np.zeros((1, 100, 100), np.uint8)
    mask[:, 35:65, 40:60] = 1
    image = np.zeros((1, 100, 100, 3), np.uint8)
    transform = StillTransform(crop=100, area=(1.0, 1.0), **PLAIN, **(AT_REST | motion))
    _, masks = transform(image.repeat(151, 0), mask.repeat(151, 0), np.random.default_rng(0))
    assert np.array_equal(masks[0] > 0, mask[0] > 0)
    values = []
    for grid in masks[1:] > 0:
        rows, columns = np.nonzero(grid)
        values.append(measure(grid, len(rows), columns.mean(), rows.mean()))
    margin = 0.1 * (high - low)
    assert low - margin < min(values) < low + margin
    assert high - margin < max(values) < high + margin
    assert abs(np.mean(values) - (low + high) / 2) < margin


def tilt(grid: np.ndarray) -> float:
    """Degrees by which the long axis of a bar is off the upright."""
    rows, columns = np.nonzero(grid)
    covariance = np.cov(columns, rows)
    return float(np.degrees(0.5 * np.arctan2(2 * covariance[0, 1], covariance[1, 1] - covariance[0, 0])))


def lean(grid: np.ndarray) -> float:
    """Degrees by which the middles of a bar's rows are off the upright."""
    rows, columns = np.nonzero(grid)
    middles = [columns[rows == row].mean() for row in np.unique(rows)]
    return float(np.degrees(np.arctan(np.polyfit(np.arange(len(middles)), middles, 1)[0])))


def test_a_third_of_the_later_frames_and_half_of_the_clips_are_flipped():
    frames, masks = stack(8)
    upright = AT_REST | {"area": (1.0, 1.0), "flip": 0.5, "frame_flip": 0.3}
    firsts, laters = [], []
    for seed in range(60):
        _, moved = StillTransform(crop=72, **PLAIN, **upright)(frames, masks, np.random.default_rng(seed))
        left, right = ((moved > 0)[:, 8:30, columns].mean((1, 2)) for columns in (slice(0, 20), slice(-20, None)))
        flipped = right > left  # above the middle there is only an object on the left
        firsts.append(flipped[0])
        laters += (flipped[1:] != flipped[0]).tolist()
    assert 0.3 < np.mean(firsts) < 0.7
    assert 0.24 < np.mean(laters) < 0.36


def test_the_crop_has_the_area_and_the_shape_of_the_recipe():
    transform = StillTransform(crop=100, **PLAIN, **AT_REST)
    columns, rows = np.meshgrid(np.arange(200), np.arange(200))
    image = np.stack([columns, rows, columns], -1).astype(np.uint8)
    shares, shapes = [], []
    for seed in range(150):
        frames, _ = transform(image[None], np.zeros((1, 200, 200), np.uint8), np.random.default_rng(seed))
        width, height = (float(np.ptp(frames[..., channel])) for channel in (0, 1))
        shares.append(width * height / 200**2)
        shapes.append(width / height)
    assert 0.76 < min(shares) < 0.83
    assert 0.95 < max(shares) <= 1.0
    assert 0.74 < min(shapes) < 0.86
    assert 1.16 < max(shapes) < 1.36


@pytest.mark.parametrize("options", [{"area": (0.0, 1.0)}, {"area": (0.8, 1.2)}, {"area": (1.0, 0.8)}, {"crop": 0}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match="StillTransform"):
        StillTransform(**options)


def test_a_clip_is_a_function_of_seed_and_number_and_a_resumed_run_goes_on(data, two_sets, monkeypatch):
    def clips(seed, step, count):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        module = data()
        module.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=step, accumulate_grad_batches=1)
        return list(itertools.islice(module.train_dataloader(), count))

    whole, rest, other = clips("1", 0, 4), clips("1", 2, 2), clips("2", 0, 1)
    assert whole[0].frames.shape == (2, 5, 3, 65, 65)
    for clip, again in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(clip, again, strict=True))
    assert not torch.equal(whole[0].frames, whole[1].frames)
    assert not torch.equal(whole[0].frames, other[0].frames)


def test_every_clip_has_the_objects_of_two_images(data, two_sets):
    alone = data(merge=0.0)
    merged = data()
    assert [alone.merge, merged.merge] == [0.0, 1.0]
    counts = {}
    for name, module in (("alone", alone), ("merged", merged)):
        clips = list(itertools.islice(module.train_dataloader(), 8))
        counts[name] = torch.cat([clip.objects for clip in clips]).tolist()
        for clip in clips:
            for masks, objects in zip(clip.masks, clip.objects, strict=True):
                shown = torch.bincount(masks[0].flatten(), minlength=11)[1 : 1 + objects]
                assert masks.max() <= objects
                assert (shown > (20 if name == "merged" else 0)).all()
    assert set(counts["alone"]) == {3}
    assert max(counts["merged"]) > 3
    assert np.mean(counts["merged"]) > 4


def test_a_clip_has_ten_objects_at_most(data, tmp_path):
    labels = np.arange(1, 25, dtype=np.uint8).reshape(4, 6).repeat(20, 0).repeat(20, 1)
    write_set(tmp_path / "A", {name: labels for name in "abcdef"})
    clips = list(itertools.islice(data().train_dataloader(), 3))
    assert all((clip.objects == MAX_OBJECTS).all() for clip in clips)
    assert all(clip.masks.max() <= MAX_OBJECTS for clip in clips)


def test_images_kept_for_validation_are_spread_over_the_sets_and_not_trained_on(data, two_sets):
    module = data(validation_images=2)
    train = [image.name for image in module.sequences("train")]
    held_out = [image.name for image in module.sequences("val")]
    assert held_out == ["A-000", "B-003"] == [image.name for image in module.sequences("test")]
    assert len(train) == 10
    assert not set(train) & set(held_out)
    assert [image.name for image in data(sets=["B"]).sequences("train")] == ["B-001", "B-002", "B-003"]
    assert [image.name for image in module.sequences("train")[:2]] == train[:2]


def test_pseudo_videos_are_the_same_in_every_run_and_their_truth_follows_them(data, two_sets):
    (video, *_), (again, *_) = (list(data("test", validation_images=2).test_dataloader()) for _ in range(2))
    assert video.number == 0
    assert np.array_equal(video.video.prompts[0], blocks())
    assert list(video.video.prompts) == [0]
    assert len(video.video.frames) == len(video.video.frame_names) == 8
    assert video.truth.plan == Plan((1, 2, 3, 4, 5, 6), None)
    assert video.video.size == blocks().shape
    for time in range(8):
        frame = video.video.frames[time]
        assert torch.equal(frame, again.video.frames[time])
        pixels = (frame.permute(1, 2, 0) * 255).round().numpy()
        assert (colour_labels(pixels) == video.truth.read(time)).mean() > 0.97
    moved = [(video.truth.read(time) != blocks()).mean() for time in range(8)]
    assert moved[0] == 0
    assert moved[7] > moved[3] > 0.005
    assert torch.equal(
        torch.stack(video.video.frames[2:4]), torch.stack([video.video.frames[2], video.video.frames[3]])
    )


def test_images_without_objects_are_never_validated_with(data, tmp_path):
    shown, empty = blocks(), np.zeros_like(blocks())
    write_set(tmp_path / "A", {f"{number}": empty if number in (0, 3) else shown for number in range(10)})
    assert [image.name for image in data(validation_images=2).sequences("val")] == ["A-9"]
    write_set(tmp_path / "A", {"9": empty})
    with pytest.raises(MaskError, match=r"None of the 2 images .* shows an object") as error:
        data(validation_images=2)
    assert len(str(error.value).splitlines()) <= 8


def test_unannotated_pixels_are_background(data, tmp_path):
    mask = blocks()
    mask[mask == 2] = 255
    write_set(tmp_path / "A", {f"{number}": mask for number in range(5)})
    module = data()
    (sample,) = module.val_dataloader()
    assert [np.unique(sample.truth.read(time)).tolist() for time in range(8)] == [[0, 1, 3]] * 8
    assert np.array_equal(sample.video.prompts[0], np.where(mask == 255, 0, mask))
    assert all((clip.objects <= 4).all() for clip in itertools.islice(module.train_dataloader(), 3))


def test_the_sets_may_lie_in_a_folder_beside_other_data(data, tmp_path):
    write_davis(tmp_path / "DAVIS", SyntheticSettings(train=1, val=1, frames=3, height=64, width=80))
    with pytest.raises(DatasetNotFoundError, match="found there: DAVIS\n"):
        data()
    write_set(tmp_path / "static/A", {name: blocks() for name in "ab"})
    assert data().folder == tmp_path / "static" == data(root=tmp_path / "static").folder


def test_without_images_it_says_how_to_get_some(data, tmp_path):
    with pytest.raises(DatasetNotFoundError, match="no such folder") as error:
        data(root=tmp_path / "none")
    message = str(error.value)
    assert len(message.splitlines()) <= 8
    assert "static/<set>/JPEGImages/*.jpg" in message
    assert message.endswith(f"  lightning_vos data demo {tmp_path / 'none'} --layout static")


def spoil_nothing(folder):
    return {}


def spoil_missing(folder):
    (folder / "Annotations/b.png").unlink()


def spoil_folder(folder):
    (folder / "Annotations").rename(folder / "Masks")


def spoil_left_over(folder):
    (folder / "JPEGImages/b.jpg").unlink()


def spoil_size(folder):
    write_mask(folder / "Annotations/a.png", blocks((72, 91)))


def spoil_saliency(folder):
    for name in "abcdef":
        write_mask(folder / f"Annotations/{name}.png", np.where(blocks() > 0, 255, 0))


def spoil_colour(folder):
    Image.fromarray(COLOURS[blocks()]).save(folder / "Annotations/a.png")


def spoil_image(folder):
    (folder / "JPEGImages/a.jpg").write_bytes(b"not a picture")


@pytest.mark.parametrize(
    ("spoil", "options", "kind", "says"),
    [
        (spoil_nothing, {"sets": ["A", "C"]}, DatasetNotFoundError, r"no set 'C'.*\n  sets there: A\n"),
        (spoil_missing, {}, MaskError, r"5 masks for the 6 images .*\n  missing: b\n"),
        (spoil_folder, {}, MaskError, r"0 masks for the 6 images .*\n  missing: a, b, c, \.\.\.\n"),
        (spoil_left_over, {}, MaskError, r"b\.png belongs to no frame"),
        (spoil_size, {}, MaskError, r"a\.png\n  found 91x72, expected 90x72"),
        (spoil_saliency, {}, MaskError, "masks of A hold no object: every pixel is 0 or 255"),
        (spoil_colour, {}, MaskError, r"not object ids: .*a\.png"),
        (spoil_image, {}, FrameError, r"a\.jpg"),
    ],
)
def test_a_bad_set_is_refused_before_anything_is_trained(data, tmp_path, spoil, options, kind, says):
    write_set(tmp_path / "A", {name: blocks() for name in "abcdef"})
    spoil(tmp_path / "A")
    with pytest.raises(kind, match=says) as error:
        data(**options)
    assert len(str(error.value).splitlines()) <= 8


def test_the_remedies_for_masks_that_are_not_what_the_set_says_work(data, tmp_path):
    write_set(tmp_path / "A", {name: np.where(blocks() > 0, 255, 0) for name in "abc"})
    with pytest.raises(MaskError, match=r"\[\{name: A, masks: binary\}\]"):
        data()
    binary = data(sets=[StillSet("A", masks="binary")])
    assert np.array_equal(binary.sequences("val")[0].load(0).truth.read(0), blocks() > 0)
    for path in (tmp_path / "A/Annotations").iterdir():
        write_mask(path, blocks())
    with pytest.raises(MaskError, match=r"(?s)grey values up to 113, .*\[\{name: A, masks: indexed\}\]"):
        data(sets=[StillSet("A", masks="binary")])
    large = cv2.blur(np.where(blocks() > 0, 255, 0).astype(np.uint8).repeat(4, 0).repeat(4, 1), (15, 15))
    write_set(tmp_path / "B", {name: large for name in "ab"})
    with pytest.raises(MaskError, match="masks of B hold no object: nearly every pixel is 0 or 255"):
        data(sets=["B"])


def test_images_with_binary_masks_beside_them_show_one_object(data, tmp_path):
    write_beside(tmp_path / "ECSSD", "abcd")
    write_beside(tmp_path / "FSS/cat", "12")
    write_beside(tmp_path / "FSS/dog", "12", ".JPG")
    (tmp_path / "FSS/dog/._1.jpg").write_bytes(b"what macOS leaves")
    module = data()
    title, _ = module.describe("train")
    assert title == "Still images (ECSSD side by side binary, FSS side by side binary) train"
    train, held_out = values_of(module), values_of(module, "val")
    expected = {f"ECSSD-{name}" for name in "abcd"} | {"FSS-cat-1", "FSS-cat-2", "FSS-dog-1", "FSS-dog-2"}
    assert train.keys() | held_out.keys() == expected
    assert set(map(tuple, [*train.values(), *held_out.values()])) == {(0, 1)}
    (sample,) = module.val_dataloader()
    assert np.array_equal(sample.video.prompts[0], soft_mask() >= 128)
    assert next(iter(module.train_dataloader())).objects.tolist() == [2, 2]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_a_binary_mask_may_be_any_kind_of_png(data, tmp_path, mode):
    write_beside(tmp_path / "A", "ab")
    for name in "ab":
        Image.fromarray(np.where(blocks() > 0, 255, 0).astype(np.uint8)).convert(mode).save(tmp_path / f"A/{name}.png")
    (image,) = data().sequences("train")
    assert np.array_equal(image.labels(0), blocks() > 0)


def test_sets_are_repeated_in_training_alone(data, tmp_path):
    write_beside(tmp_path / "BIG_small", "ab")
    write_set(tmp_path / "A", {name: blocks() for name in "abcdefgh"})
    plain = data(sets=["A", "BIG_small"])
    assert plain.chances() is None
    module = data(sets=["A", StillSet("BIG_small", repeat=5)])
    assert module.describe("val")[0] == "Still images (A, BIG_small side by side binary x5) val"
    names = [image.name for image in module.sequences("train")]
    assert names == [f"A-{name}" for name in "bcdefgh"] + ["BIG_small-a"]
    assert module.chances().tolist() == [1] * 7 + [5]
    assert [image.name for image in module.sequences("val")] == ["A-a", "BIG_small-b"]


@pytest.mark.parametrize("place", ["VOCdevkit/VOC2012", "VOC2012"])
def test_pascal_voc_is_read_by_its_lists(data, tmp_path, place):
    write_voc(tmp_path / place, "abcd")
    name = place.split("/")[0]
    module = data()
    assert module.describe("train")[0] == f"Still images ({name} VOC trainval) train"
    assert values_of(module) | values_of(module, "val") == {f"{name}-{stem}": [0, 1, 2, 3] for stem in "abcd"}
    assert not module.sequences("val")[0].labels(0)[8:40, 8:11].any()
    assert values_of(data(sets=[StillSet(name, split="train")])).keys() == {f"{name}-c", f"{name}-d"}
    with pytest.raises(DatasetNotFoundError, match=r"no list 'trainaug'.*\n  lists there: train, trainval, val\n"):
        data(sets=[StillSet(name, split="trainaug")])


def test_coco_gives_its_largest_instances_without_crowds(data, tmp_path):
    write_coco(tmp_path / "coco", "train2017", objects=12)
    module = data()
    assert module.describe("train")[0] == "Still images (coco COCO train2017) train"
    assert {image.name for image in module.sequences("train")} == {f"coco-{number:012}" for number in (2, 3, 4)}
    labels = module.sequences("train")[0].labels(0)
    assert np.bincount(labels.ravel())[1:].tolist() == [side**2 for side in range(8, 18)]  # of sides 6 to 17
    (sample,) = module.val_dataloader()
    assert np.array_equal(sample.truth.read(0), labels)
    clip = next(iter(module.train_dataloader()))
    assert (clip.objects <= MAX_OBJECTS).all()
    few = data(max_objects=2).sequences("train")[0]
    assert np.bincount(few.labels(0).ravel())[1:].tolist() == [16**2, 17**2]


def test_the_split_of_coco_is_the_one_to_train_on(data, tmp_path):
    coco = tmp_path / "coco"
    write_coco(coco, "val2014")
    assert data().describe("train")[0] == "Still images (coco COCO val2014) train"
    write_coco(coco, "train2014")
    assert data().describe("train")[0] == "Still images (coco COCO train2014) train"
    write_coco(coco, "train2015")
    with pytest.raises(ConfigError, match=r"\[\{name: coco, split: train2014\}\]"):
        data()
    write_coco(coco, "train2017")
    assert data().describe("train")[0] == "Still images (coco COCO train2017) train"
    assert data(sets=[StillSet("coco", split="val2014")]).describe("val")[0].endswith("(coco COCO val2014) val")
    Image.new("RGB", (80, 61)).save(coco / "train2017/000000000002.jpg")
    with pytest.raises(MaskError, match=r"0002\.jpg has 80x61 pixels, but .*instances_train2017\.json says 80x60"):
        data()


def beside_missing(folder):
    (folder / "c/b.png").unlink()


def beside_left_over(folder):
    (folder / "c/b.jpg").unlink()


def beside_no_images(folder):
    for name in "ab":
        (folder / f"d/{name}.jpg").unlink()


def beside_double(folder):
    (folder / "c/a.JPG").write_bytes((folder / "c/a.jpg").read_bytes())


def beside_size(folder):
    Image.new("L", (91, 72), 255).save(folder / "c/a.png")


def beside_cut(folder):
    (folder / "c/a.png").write_bytes((folder / "c/a.png").read_bytes()[:90])


@pytest.mark.parametrize(
    ("spoil", "kind", "says"),
    [
        (beside_missing, MaskError, r"1 masks for the 2 images of \S+c\n  missing: b\n"),
        (beside_left_over, MaskError, r"c.b\.png belongs to no frame"),
        (beside_no_images, FrameError, r"A.d holds masks without images"),
        (beside_double, FrameError, r"c holds more than one image named a"),
        (beside_size, MaskError, r"c.a\.png\n  found 91x72, expected 90x72"),
        (beside_cut, MaskError, r"cannot be read: \S+a\.png"),
    ],
)
def test_a_bad_set_side_by_side_is_refused_before_anything_is_trained(data, tmp_path, spoil, kind, says):
    for name in "cd":
        write_beside(tmp_path / f"A/{name}", "ab")
    spoil(tmp_path / "A")
    with pytest.raises(kind, match=says) as error:
        data()
    assert len(str(error.value).splitlines()) <= 8


@pytest.mark.parametrize(
    ("chosen", "kind", "says"),
    [
        (StillSet("A", layout="voc"), DatasetNotFoundError, r"no set 'A' \(data.sets\) of layout voc"),
        (StillSet("A", split="train"), ConfigError, r"has split=train, but its layout is folders"),
        (StillSet("VOC2012", masks="binary"), ConfigError, r"has masks=binary, but its layout is voc"),
    ],
)
def test_settings_that_do_not_go_with_a_set_are_refused(data, two_sets, chosen, kind, says):
    write_voc(two_sets / "VOC2012", "ab")
    with pytest.raises(kind, match=says) as error:
        data(sets=[chosen])
    assert len(str(error.value).splitlines()) <= 8


@pytest.mark.parametrize(
    "wrong",
    [StillSet(""), StillSet("../A"), StillSet("/A"), StillSet("A", split="../x"), StillSet("A", repeat=0)],
)
def test_impossible_sets_are_refused(data, two_sets, wrong):
    with pytest.raises(ValueError, match=r"StaticImages: .*; expected"):
        data(sets=[wrong])


def test_a_set_is_not_used_twice(data, two_sets):
    assert len(data(sets=["A", "A"]).sequences("train")) == 7
    with pytest.raises(ValueError, match="a set twice"):
        data(sets=["A", StillSet("A", repeat=2)])


def test_a_set_named_as_the_root_is_said_to_be_one(data, tmp_path):
    write_voc(tmp_path / "VOC2012", "ab")
    with pytest.raises(DatasetNotFoundError, match="This is itself a set: name the folder it lies in") as error:
        data(root=tmp_path / "VOC2012")
    assert len(str(error.value).splitlines()) <= 8


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no samples of PASCAL VOC and COCO at {SAMPLES}")
def test_samples_of_pascal_voc_and_coco_are_read_where_they_lie(data):
    module = data(root=SAMPLES, sets=["VOCdevkit", "coco"])
    assert module.describe("train")[0] == "Still images (VOCdevkit VOC trainval, coco COCO val2017) train"
    values = values_of(module) | values_of(module, "val")
    assert values["VOCdevkit-2011_000003"][0] == 0
    assert 255 not in values["VOCdevkit-2011_000003"] + values["VOCdevkit-2011_000006"]
    assert values["coco-000000142238"] == list(range(MAX_OBJECTS + 1))  # of 14 that are no crowd
    clip = next(iter(module.train_dataloader()))
    assert (clip.objects > 1).all()


def test_one_image_is_not_enough(data, tmp_path):
    write_set(tmp_path / "A", {"a": blocks()})
    with pytest.raises(DatasetNotFoundError, match="1 image"):
        data()
    with pytest.raises(ValueError, match="validation_images=0"):
        data(validation_images=0)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no sample of PASCAL VOC at {REAL}")
def test_images_of_pascal_voc_with_their_object_masks_are_a_set(data, tmp_path):
    (tmp_path / "VOC").mkdir()
    (tmp_path / "VOC/JPEGImages").symlink_to(REAL / "JPEGImages")
    (tmp_path / "VOC/Annotations").symlink_to(REAL / "SegmentationObject")
    module = data()
    (sample,) = module.val_dataloader()
    mask = np.array(Image.open(next(iter(sorted((REAL / "SegmentationObject").iterdir())))))
    assert set(np.unique(sample.truth.read(0))) == set(np.unique(mask)) - {255}
    clip = next(iter(module.train_dataloader()))
    assert (clip.objects > 1).all()


def test_the_demo_set_is_what_is_read(data, tmp_path):
    write_stills(tmp_path / "static", SMALL)
    assert {path.name for path in tmp_path.iterdir()} == {"static"}
    folder = tmp_path / "static/synthetic"
    masks = sorted((folder / "Annotations").iterdir())
    assert [path.name for path in masks] == [f"{number:05}.png" for number in range(11)]
    assert np.array_equal(read_mask(masks[4]), render_clip(0, 4, frames=3, height=64, width=80).masks[0])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_stills(tmp_path / "static", SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    module = data()
    assert module.describe("train") == ("Still images (synthetic) train", tmp_path / "static")
    assert len(module.sequences("train")) == 9
    with pytest.raises(ConfigError, match="Found:    images=11\nExpected: images=12"):
        write_stills(tmp_path / "static", StillSettings(images=12, height=64, width=80))
    with pytest.raises(ConfigError, match="other settings"):
        write_davis(tmp_path / "static", SyntheticSettings(height=64, width=80))


@pytest.mark.parametrize("wrong", [{"images": 1}, {"height": 63}, {"seed": -1}])
def test_images_that_cannot_be_rendered_are_refused(wrong):
    with pytest.raises(ConfigError, match="xpected"):
        StillSettings(**wrong)


def test_data_demo_writes_a_set_and_says_what_to_do_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_vos.commands.data.StillSettings", partial(StillSettings, images=3))
    main(["demo", "data", "--layout", "static", "--seed", "3"])
    assert capsys.readouterr().out.endswith("  lightning_vos fit --config configs/mavos_r50_static.yaml\n")
    assert json.loads(Path("data/static/synthetic.json").read_text())["seed"] == 3
    main(["demo", "my data", "--layout", "static"])
    assert "configs/mavos_r50_static.yaml --data.root 'my data'\n" in capsys.readouterr().out


def test_a_network_is_trained_on_a_demo_set(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_stills(tmp_path / "data/static", SMALL)
    tiny = Path(__file__).parents[1] / "end_to_end/tiny.yaml"
    words = ("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.validation_images=1")
    write_beside(tmp_path / "data/static/ECSSD", "abc")
    sets = "--data.sets=[synthetic, {name: ECSSD, masks: binary, repeat: 5}]"
    finished = command("fit", f"--config={tiny}", "--config=configs/data/static.yaml", sets, *words)
    assert finished.status == 0, finished.err
    assert "Still images (synthetic, ECSSD side by side binary x5) train: 13 sequences" in finished.err
    assert "val/J&F" in Path("runs/tiny/version_0/metrics.csv").read_text()
    assert Path("runs/tiny/version_0/checkpoints/best-step000002.ckpt").is_file()
