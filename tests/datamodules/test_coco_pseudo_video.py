"""COCO as video: which instances are used, how images are moved, what batches hold, what is said about bad files."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from pycocotools import mask as coco

from datamodules import COCOInstanceVideo, COCOPseudoVideo
from datamodules import pseudo_videos as generator
from datamodules.clips import collate_clips, to_clip
from datamodules.coco import InstanceRules, read_coco
from datamodules.coco_clips import CocoClips, PseudoClips
from datamodules.hodor_transforms import padded
from datamodules.instance_clips import InstanceTransform
from datamodules.pseudo_videos import pseudo_video, shift_hue_and_saturation
from datamodules.synthetic_files import StillSettings
from datamodules.synthetic_instances import uncompressed, write_synthetic_coco
from datamodules.transforms import MEAN_COLOUR
from lightning_vos.errors import DatasetNotFoundError, FrameError, MaskError
from lightning_vos.structures import Clip, InstanceClip, ScoredInstanceVideo, ScoredVideo

REAL = Path(__file__).parents[3] / "shared/data/real"
SMALL = InstanceTransform(short_sides=(48, 64), longest=96, distort=0.0, crop_short_sides=(64,), crop_range=(40, 60))
RULES = InstanceRules(min_area=60, min_side=5)
RED, BLUE, GREEN = (230, 20, 20), (20, 20, 230), (20, 120, 20)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_synthetic_coco(root / "coco", StillSettings(images=30, height=64, width=80))
    return root


def masked(root, stage="fit", rank=0, world=1, step=0, **options):
    options = {"workers": 0, "rules": RULES, "area": 6000, "validation_images": 3} | options
    return ready(COCOPseudoVideo(root, **options), stage, rank, world, step)


def classed(root, stage="fit", rank=0, world=1, step=0, **options):
    options = {"workers": 0, "augmentation": SMALL, "validation_images": 3} | options
    return ready(COCOInstanceVideo(root, **options), stage, rank, world, step)


def ready(module, stage, rank, world, step):
    module.setup(stage)
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world, global_step=step, accumulate_grad_batches=1)
    return module


def first(module, count):
    return list(itertools.islice(module.train_dataloader(), count))


def tensors(batch):
    if isinstance(batch, torch.Tensor):
        return [batch]
    return [tensor for part in batch for tensor in tensors(part)]


def equal(one, other) -> bool:
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def picture(height=60, width=90):
    """Two solid objects on solid ground, and their labels."""
    labels = np.zeros((height, width), np.uint8)
    labels[8:28, 10:40] = 1
    labels[30:55, 50:80] = 2
    return np.array([GREEN, RED, BLUE], np.uint8)[labels], labels


def bar(size=101, length=40, thickness=16):
    """An upright bar in the middle, on ground of 1: whatever is filled is 0."""
    labels = np.ones((size, size), np.uint8)
    middle = size // 2
    labels[middle - length // 2 : middle + length // 2 + 1, middle - thickness // 2 : middle + thickness // 2 + 1] = 2
    return np.array([(0, 0, 0), (90, 90, 90), (200, 200, 200)], np.uint8)[labels], labels


def tilt(plane: np.ndarray) -> float:
    """Degrees by which the long axis of a bar is off the upright."""
    rows, columns = np.nonzero(plane)
    covariance = np.cov(columns, rows)
    return float(np.degrees(0.5 * np.arctan2(2 * covariance[0, 1], covariance[1, 1] - covariance[0, 0])))


@pytest.fixture
def steps(monkeypatch):
    """The matrices that the frames of the next pseudo-videos are moved by."""
    drawn, warped = [], generator.warped

    def noted(pixels, matrix, *rest):
        if pixels.ndim == 3:
            drawn.append(matrix)
        return warped(pixels, matrix, *rest)

    monkeypatch.setattr(generator, "warped", noted)
    return drawn


@pytest.fixture
def streams(monkeypatch):
    """The first words of all streams that are drawn from; those of one seed are one."""
    seeds, plain = set(), np.random.default_rng

    def noted(seed):
        seeds.add(tuple(seed))
        return plain(seed)

    monkeypatch.setattr(np.random, "default_rng", noted)
    return lambda: {tuple(np.random.SeedSequence(seed).generate_state(4)) for seed in seeds}


# The generator


@pytest.mark.parametrize("motion", ["hodor", "hodor_basic", "hodor_fancy", "rotation", "seqformer"])
def test_labels_follow_the_frames_and_nothing_but_the_generator_is_random(motion):
    image, labels = picture()
    frames, masks = pseudo_video(motion, image, labels, 6, np.random.default_rng(4))
    again = pseudo_video(motion, image, labels, 6, np.random.default_rng(4))
    other = pseudo_video(motion, image, labels, 6, np.random.default_rng(5))
    assert frames.shape == (6, 60, 90, 3)
    assert masks.shape == (6, 60, 90)
    assert frames.dtype == masks.dtype == np.uint8
    assert np.array_equal(frames, again[0])
    assert np.array_equal(masks, again[1])
    assert not np.array_equal(frames, other[0])
    for frame, mask in zip(frames.astype(int), masks, strict=True):
        red, green, blue = np.moveaxis(frame, -1, 0)
        seen = np.where(red - np.maximum(green, blue) > 60, 1, np.where(blue - np.maximum(green, red) > 60, 2, 0))
        blurred = 0.75 if motion == "seqformer" else 0.93
        assert (seen == mask).mean() > blurred


def test_taformer_turns_every_frame_by_itself_over_black():
    image, labels = bar()
    angles, pairs, still = [], [], 0
    for seed in range(60):
        frames, masks = pseudo_video("rotation", image, labels, 5, np.random.default_rng(seed))
        turned = [tilt(mask == 2) for mask in masks]
        angles += turned
        pairs.append(turned[:2])
        still += sum(np.array_equal(mask, labels) for mask in masks)
        assert (frames[masks == 0] < 100).all()
        assert not frames[masks == 0].min()
    assert -20.5 < min(angles) < -18.5
    assert 18.5 < max(angles) < 20.5
    assert np.histogram(angles, 4, (-20, 20))[0] / len(angles) == pytest.approx([0.25] * 4, abs=0.07)
    assert abs(np.corrcoef(np.transpose(pairs))[0, 1]) < 0.3
    assert still < 30  # the image itself is not among the five


def test_seqformer_keeps_the_image_at_a_random_place_among_its_copies(steps):
    image, labels = bar()
    places, bright = [], []
    for seed in range(150):
        frames, _ = pseudo_video("seqformer", image, labels, 5, np.random.default_rng(seed))
        same = [time for time, frame in enumerate(frames) if np.array_equal(frame, image)]
        assert len(same) == 1
        places += same
        bright += [int(frame.max()) for time, frame in enumerate(frames) if time not in same]
    assert np.bincount(places, minlength=5) / 150 == pytest.approx([0.2] * 5, abs=0.09)
    assert 155 <= min(bright) < 170
    assert 230 < max(bright) <= 247
    assert len(steps) == 150 * 4 * 2
    shifts = np.array([(matrix @ [50, 50, 1])[:2] - 50 for matrix in steps[1::2]])  # where the middle comes to lie
    angles = np.degrees([math.atan2(matrix[1, 0], matrix[0, 0]) for matrix in steps[1::2]])
    for values, limit in ((shifts[:, 0], 10.1), (shifts[:, 1], 10.1), (angles, 20)):
        assert np.histogram(values, 4, (-limit, limit))[0] / len(values) == pytest.approx([0.25] * 4, abs=0.06)
        assert np.abs(values).max() <= limit + 1e-9


def test_one_in_four_copies_of_seqformer_is_blurred():
    image = np.zeros((80, 80, 3), np.uint8)
    image[:, 40:] = 200
    labels = np.ones((80, 80), np.uint8)

    def sharpness(seed):
        frames, _ = pseudo_video("seqformer", image, labels, 2, np.random.default_rng(seed))
        copy = next(frame for frame in frames if not np.array_equal(frame, image))
        return np.abs(np.diff(copy[20:60, 20:60, 0].astype(int), axis=1)).max()

    assert 0.1 < np.mean([sharpness(seed) < 75 for seed in range(200)]) < 0.3  # blurs along the edge are not seen


def test_the_basic_motions_of_hodor_have_equal_shares_and_the_published_ranges(steps):
    image, labels = bar()
    for seed in range(200):
        _, masks = pseudo_video("hodor_basic", image, labels, 4, np.random.default_rng(seed))
        assert np.array_equal(masks[0], labels)  # symmetric, so a flip does not show
    kinds = {"perspective": [], "crop": [], "affine": []}
    for matrix in steps:
        if abs(matrix[2, :2]).max() > 1e-12:
            kinds["perspective"].append(matrix)
        elif matrix[0, 1] == matrix[1, 0] == 0:
            kinds["crop"].append(matrix)
        else:
            kinds["affine"].append(matrix)
    assert len(steps) == 600
    assert all(150 < len(found) < 250 for found in kinds.values())
    shifts = np.array([(matrix @ [50, 50, 1])[:2] - 50 for matrix in kinds["affine"]]) / 101
    assert np.abs(shifts).max() <= 0.25
    assert (np.abs(shifts).max(0) > 0.24).all()
    angles = np.degrees([math.atan2(matrix[1, 0], matrix[0, 0]) for matrix in kinds["affine"]])
    leans = [
        math.degrees(math.atan(matrix[0, 0] * matrix[0, 1] + matrix[1, 0] * matrix[1, 1])) for matrix in kinds["affine"]
    ]
    for values, limit in ((angles, 20), (leans, 10)):
        assert limit * 0.93 < np.abs(values).max() <= limit + 1e-9
        assert abs(np.mean(values)) < 0.2 * limit
    cuts = np.array([0.5 - 0.5 / matrix[0, 0] for matrix in kinds["crop"]])
    assert 0.10 <= cuts.min() < 0.11
    assert 0.24 < cuts.max() <= 0.25
    for matrix in kinds["crop"][:5]:
        assert (matrix @ [50, 50, 1])[:2] == pytest.approx([50, 50])
    corners = np.array([np.linalg.inv(matrix) @ [0, 0, 1] for matrix in kinds["perspective"]])
    inwards = (corners[:, :2] / corners[:, 2:]) / 100
    assert inwards.min() >= -1e-9
    assert np.sqrt((inwards**2).mean()) == pytest.approx(0.11, abs=0.015)


def test_the_fancy_first_frame_keeps_its_objects(steps):
    image, labels = picture()
    area = np.bincount(labels.ravel())
    shares = []
    for seed in range(150):
        steps.clear()
        _, masks = pseudo_video("hodor_fancy", image, labels, 1, np.random.default_rng(seed), min_area=200)
        share = 1 / steps[0][0, 0] if steps else 1.0
        shares.append(round(share, 6))
        kept = np.bincount(masks[0].ravel(), minlength=3)[1:] * share**2
        assert (kept >= 0.45 * area[1:]).all()
        assert (kept > 180).all()
    assert set(shares) <= {0.6, 0.7, 0.8, 0.9, 1.0}
    assert {0.6, 0.7, 0.8} <= set(shares)
    steps.clear()
    for seed in range(20):  # objects from edge to edge: neither a crop keeps enough nor one holds all
        wide = np.zeros((60, 90), np.uint8)
        wide[28:32, 0:3] = 1
        wide[28:32, 87:] = 2
        _, masks = pseudo_video("hodor_fancy", image, wide, 1, np.random.default_rng(seed), min_area=3)
        assert np.array_equal(masks[0] > 0, wide > 0)
    assert not steps


def test_the_other_fancy_frames_are_crops_of_one_size_for_the_clip(steps):
    image, labels = picture()
    shares, turned, places = [], [], []
    for seed in range(120):
        pseudo_video("hodor_fancy", image, np.ones_like(labels), 5, np.random.default_rng(seed), min_area=0)
        crops = [matrix for matrix in steps if matrix[0, 1] == matrix[1, 0] == 0][-4:]
        of_clip = {round(1 / matrix[0, 0], 6) for matrix in crops}
        assert len(of_clip) == 1
        shares += of_clip
        turned.append(sum(matrix[0, 1] != 0 or matrix[1, 0] != 0 for matrix in steps))
        places += [(np.linalg.inv(matrix) @ [-0.5, -0.5, 1])[0] + 0.5 for matrix in crops]
        for matrix in steps:
            if matrix[1, 0] != 0:
                assert abs(math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))) <= 10
        steps.clear()
    assert [shares.count(share) / 120 for share in (0.6, 0.7, 0.8)] == pytest.approx([1 / 3] * 3, abs=0.13)
    assert 0.4 < np.mean(turned) / 4 < 0.6
    assert min(places) >= -1e-6
    assert 30 < max(places) <= 36 + 1e-6


def test_hodor_flips_half_of_the_clips_and_shifts_colours_once():
    image, labels = picture()
    flips, kinds, brightness, tints = [], [], [], []
    for seed in range(200):
        frames, masks = pseudo_video("hodor_basic", image, labels, 3, np.random.default_rng(seed))
        mirrored = np.array_equal(masks[0], labels[:, ::-1])
        assert mirrored or np.array_equal(masks[0], labels)
        flips.append(mirrored)
        ground = np.median(frames[0][masks[0] == 0], axis=0)
        brightness.append(ground.max() - 120)
        tints.append(ground[0] - ground[2])
        later = np.median(frames[1][(masks[1] == 0) & (frames[1] != MEAN_COLOUR).any(-1)], axis=0)
        assert np.abs(later - ground).max() <= 2  # one draw for the clip
    assert 0.4 < np.mean(flips) < 0.6
    assert -27 <= min(brightness) < -20
    assert 20 < max(brightness) <= 27
    assert min(tints) < 0 < max(tints)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        frames, masks = pseudo_video("hodor", image, labels, 1, rng)
        kinds.append(np.array_equal(masks[0] > 0, labels > 0) or np.array_equal(masks[0] > 0, labels[:, ::-1] > 0))
    assert 0.35 < np.mean(kinds) < 0.7


def test_what_hodor_moves_in_is_the_mean_colour_and_background():
    image, labels = np.full((60, 60, 3), (250, 250, 0), np.uint8), np.ones((60, 60), np.uint8)
    filled = 0
    for seed in range(20):
        frames, masks = pseudo_video("hodor_basic", image, labels, 4, np.random.default_rng(seed))
        empty = masks == 0
        filled += int(empty.sum())
        if empty.any():
            assert ((frames == MEAN_COLOUR).all(-1) & empty).sum() > 0.8 * empty.sum()
    assert filled > 3000


def test_hue_goes_round_the_circle():
    red = np.full((1, 1, 3), (255, 0, 0), np.uint8)
    assert np.array_equal(shift_hue_and_saturation(red, 256, 0), red)
    assert shift_hue_and_saturation(red, 256 / 3, 0)[0, 0].argmax() == 1
    assert shift_hue_and_saturation(red, -256 / 3, 0)[0, 0].argmax() == 2
    assert shift_hue_and_saturation(red, 0, -255)[0, 0].tolist() == [255, 255, 255]


# Files


def write_coco(root, images, categories=((1, "person"), (44, "bottle")), split="train2017"):
    """Writes images, each a size and rows of instances to complete; `segmentation` may be a mask."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    content = {"categories": [{"id": k, "name": name} for k, name in categories], "images": [], "annotations": []}
    for number, (size, instances) in enumerate(images):
        name = f"{number:03}.jpg"
        Image.fromarray(np.full((*size, 3), 40 + number, np.uint8)).save(root / split / name)
        content["images"].append({"id": 100 + number, "file_name": name, "height": size[0], "width": size[1]})
        for row in instances:
            mask = row.get("segmentation")
            if isinstance(mask, np.ndarray):
                ys, xs = np.nonzero(mask)
                box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1] if len(xs) else [0] * 4
                row = {"area": len(xs), "bbox": box} | row | {"segmentation": uncompressed(mask)}
            number_of = len(content["annotations"]) + 1
            content["annotations"].append(
                {"id": number_of, "image_id": 100 + number, "category_id": 1, "iscrowd": 0} | row
            )
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return content


def block(rows, columns, size=(60, 80)):
    mask = np.zeros(size, np.uint8)
    mask[slice(*rows), slice(*columns)] = 1
    return mask


def read(root, rules=RULES, **options):
    return read_coco(root / "annotations/instances_train2017.json", root / "train2017", rules, **options)


def test_crowds_small_and_degenerate_instances_are_not_used(tmp_path):
    good = block((10, 40), (10, 40))
    rows = [
        {"segmentation": good},
        {"segmentation": good, "iscrowd": 1},
        {"segmentation": block((10, 20), (10, 16))},  # 60 pixels: not more than 60
        {"segmentation": block((10, 15), (10, 40))},  # a side of 5
        {"segmentation": good, "area": 0},
        {"segmentation": good, "bbox": [10, 10, 0, 30]},
        {"segmentation": block((10, 16), (10, 21))},
    ]
    write_coco(tmp_path, [((60, 80), rows), ((60, 80), rows[1:2]), ((60, 80), [])])
    images = read(tmp_path)
    assert images.names == ["000.jpg"]
    assert images.ids.tolist() == [1, 7]
    crowds = read(tmp_path, InstanceRules(60, 5, crowds=True))
    assert crowds.names == ["000.jpg", "001.jpg"]
    assert crowds.ids.tolist() == [1, 2, 7, 8]
    assert read(tmp_path, InstanceRules()).ids.tolist() == [1, 3, 4, 7]
    for rules in ({"min_area": -1}, {"min_side": -0.5}):
        with pytest.raises(ValueError, match="InstanceRules"):
            InstanceRules(**rules)


def test_where_masks_overlap_the_later_wins(tmp_path):
    one, two, three = block((0, 40), (0, 40)), block((20, 60), (20, 60)), block((30, 50), (0, 80))
    write_coco(tmp_path, [((60, 80), [{"segmentation": mask} for mask in (one, two, three)])])
    images = read(tmp_path)
    labels = images.labels(0)
    assert np.array_equal(labels == 3, three == 1)
    assert np.array_equal(labels == 2, (two == 1) & (three == 0))
    assert np.array_equal(labels == 1, (one == 1) & (two == 0) & (three == 0))
    assert np.array_equal(images.labels(0, [2, 0]) == 1, (three == 1) & (one == 0))


def test_every_form_of_a_mask_is_read(tmp_path):
    mask = block((10, 40), (20, 60))
    packed = coco.encode(np.asfortranarray(mask))
    polygon = [[20, 10, 60, 10, 60, 40, 20, 40]]
    same = {"area": 1200, "bbox": [20, 10, 40, 30]}
    forms = [uncompressed(mask), {"size": [60, 80], "counts": packed["counts"].decode()}, polygon, [*polygon, *polygon]]
    write_coco(tmp_path, [((60, 80), [same | {"segmentation": form} for form in forms])])
    images = read(tmp_path)
    for number in range(4):
        assert np.array_equal(images.labels(0, [number]), mask)


def test_classes_are_contiguous_and_grey_images_have_three_channels(written):
    module = classed(written / "coco")
    assert dict(module.categories) == {1: "person", 19: "horse", 21: "cow", 28: "umbrella"}
    (source, _) = module._clips[0][0]
    assert source.images.counts.min() >= 1
    assert len(source.images) == 24 - 1  # all with instances
    assert Image.open(written / "coco/train2017" / source.images.names[1]).mode == "L"
    grey = source.images.image(1)
    assert grey.shape[2] == 3
    assert (grey == grey[..., :1]).all()
    labels = {
        int(label) for number in range(len(source)) for label in source.clip(number, np.random.default_rng(0)).labels
    }
    assert labels <= {0, 1, 2, 3}
    assert len(labels) >= 3


def test_a_category_id_of_zero_is_a_class(tmp_path):
    rows = [{"segmentation": block((10, 40), (10, 40)), "category_id": 0}]
    write_coco(tmp_path, [((60, 80), rows)], categories=((5, "b"), (0, "a")))
    module = classed(tmp_path, val_split="train2017")
    assert dict(module.categories) == {0: "a", 5: "b"}
    assert all(found.labels.tolist() == [0] for batch in first(module, 3) for found in batch.instances)


def spoil(root, content, what):
    row = content["annotations"][0]
    match what:
        case "no images":
            del content["images"]
        case "no annotations":
            del content["annotations"]
        case "null annotations":
            content["annotations"] = None
        case "a video file":
            content["videos"] = content.pop("images")
        case "unknown image":
            row["image_id"] = 1
        case "unknown category":
            row["category_id"] = 2
        case "double id":
            content["images"][1]["id"] = content["images"][0]["id"]
        case "upwards":
            content["images"][0]["file_name"] = "../secret.jpg"
        case "absent":
            (root / "train2017/001.jpg").unlink()
        case "no area":
            del row["area"]
        case "text as an area":
            row["area"] = "large"
        case "box of three":
            row["bbox"] = [1, 2, 3]
        case "size of another image":
            row["segmentation"]["size"] = [80, 60]
        case "runs too long":
            row["segmentation"]["counts"][0] += 1
        case "polygon":
            row["segmentation"] = [[1, 2, 3, 4, 5]]
        case "no segmentation":
            row["segmentation"] = 7
        case "only crowds":
            for instance in content["annotations"]:
                instance["iscrowd"] = 1
        case "crowd":
            row["iscrowd"] = 2


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no images", "no images"),
        ("no annotations", "no annotations"),
        ("null annotations", "annotations None, expected a list"),
        ("a video file", "no images"),
        ("unknown image", "image_id 1 and category_id 1"),
        ("unknown category", "image_id 100 and category_id 2"),
        ("double id", "id 100, which an earlier one has"),
        ("upwards", "'../secret.jpg', which leads outside"),
        ("absent", "1 of 2 images .* not there\n  missing: 001.jpg"),
        ("no area", r"annotations\[0\]: no area"),
        ("text as an area", "area 'large', expected a finite number"),
        ("box of three", "expected 0 or 1, and four numbers"),
        ("size of another image", r"size \[80, 60\], expected \[60, 80\]"),
        ("runs too long", "an RLE of 4801 pixels, expected 4800"),
        ("polygon", "polygon"),
        ("no segmentation", "segmentation 7, expected polygons or an RLE"),
        ("only crowds", "2 images, none of which has an instance"),
        ("crowd", "iscrowd 2"),
    ],
)
def test_bad_files_are_refused_with_their_name_and_a_remedy(tmp_path, what, said):
    rows = [{"segmentation": block((10, 40), (10, 40))}]
    content = write_coco(tmp_path, [((60, 80), rows)] * 2)
    spoil(tmp_path, content, what)
    file = tmp_path / "annotations/instances_train2017.json"
    file.write_text(json.dumps(content))
    for make in (masked, classed):
        with pytest.raises(DatasetNotFoundError, match=said) as error:
            make(tmp_path, val_split="train2017")
        assert str(file) in str(error.value)
        assert len(str(error.value).splitlines()) <= 8
        assert any(word in str(error.value) for word in ("Get the file", "get the file", "add the images"))


@pytest.mark.parametrize("content", [b"", b"[1, 2", b"\x89PNG"])
def test_what_is_no_json_is_refused(tmp_path, content):
    write_coco(tmp_path, [((60, 80), [])])
    (tmp_path / "annotations/instances_train2017.json").write_bytes(content)
    with pytest.raises(DatasetNotFoundError, match="cannot be read as JSON"):
        masked(tmp_path)


def test_bad_images_are_refused(tmp_path):
    rows = [{"segmentation": block((10, 40), (10, 40))}]
    write_coco(tmp_path, [((60, 80), rows)])
    module = masked(tmp_path, val_split="train2017")
    path = tmp_path / "train2017/000.jpg"
    path.write_bytes(path.read_bytes()[:250])
    with pytest.raises(FrameError, match=r"Frame that cannot be read: .*000.jpg"):
        first(module, 1)
    Image.new("RGB", (81, 60)).save(path)
    with pytest.raises(FrameError, match=r"000.jpg has 81x60 pixels, but instances_train2017.json says 80x60"):
        first(module, 1)


def test_training_skips_bad_images_if_asked_to(tmp_path):
    rows = [{"segmentation": block((10, 40), (10, 40))}]
    write_coco(tmp_path, [((60, 80), rows)] * 3)
    module = classed(tmp_path, val_split="train2017", skip_broken=True)
    path = tmp_path / "train2017/001.jpg"
    path.write_bytes(path.read_bytes()[:250])
    with pytest.warns(UserWarning, match=r"Broken file skipped, 1 of 3 clips so far: .*001.jpg") as warned:
        first(module, 6)
    assert len(warned) == 1
    with pytest.raises(FrameError, match=r"001.jpg"):  # nothing is skipped that is scored
        list(module.val_dataloader())


def test_without_coco_it_says_how_to_get_it(tmp_path):
    for make in (masked, classed):
        with pytest.raises(DatasetNotFoundError, match="no such folder") as error:
            make(tmp_path / "none")
        assert len(str(error.value).splitlines()) <= 8
        assert str(error.value).endswith(f"  lightning_vos data demo {tmp_path / 'none'} --layout coco")


def test_images_may_lie_in_a_folder_of_that_name(written, tmp_path):
    (tmp_path / "annotations").symlink_to(written / "coco/annotations")
    (tmp_path / "images").symlink_to(written / "coco")
    assert len(masked(tmp_path).val_dataloader()) == 3


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (COCOPseudoVideo, {"length": 0}),
        (COCOPseudoVideo, {"area": 0}),
        (COCOPseudoVideo, {"max_objects": 0}),
        (COCOPseudoVideo, {"validation_images": 0}),
        (COCOInstanceVideo, {"validation_images": 0}),
        (COCOInstanceVideo, {"batch_size": 0}),
    ],
)
def test_impossible_settings_are_refused(tmp_path, make, options):
    with pytest.raises(ValueError, match="expected"):
        make(tmp_path, **options)


@pytest.mark.parametrize("options", [{"length": 0}, {"max_instances": 0}, {"max_instances": 256}])
def test_impossible_clips_are_refused(written, options):
    with pytest.raises(ValueError, match="COCO clips"):
        classed(written, **options)


# Batches of masks


def test_a_batch_has_one_number_of_objects_and_similar_shapes(written, monkeypatch):
    monkeypatch.setattr("datamodules.coco_clips.padded", lambda frames, masks: (np.stack(frames), np.stack(masks)))
    module = masked(written, batch_size=3)
    images = module._train
    shapes, drawn = [], []
    dataset = PseudoClips(images, "hodor", 3, 4, 6000, 60, 3, 0)
    for batch in range(60):
        items = [dataset[3 * batch + member] for member in range(3)]
        counts = {int(objects) for _, _, objects in items}
        assert len(counts) == 1
        drawn += counts
        ratios = [masks.shape[1] / masks.shape[2] for _, masks, _ in items]
        assert max(ratios) - min(ratios) < 0.12
        shapes.append(round(ratios[0], 1))
        for frames, masks, objects in items:
            length, height, width = masks.shape
            assert frames.shape == (length, 3, height, width)
            assert 0.9 * 6000 < height * width <= 6000
            assert masks[0][masks[0] > 0].unique().tolist() == list(range(1, objects + 1))
            assert masks.max() == objects
    most = min(4, int(images.counts.max()))
    assert sorted(set(drawn)) == list(range(1, most + 1))
    assert [drawn.count(k) / 60 for k in range(1, most + 1)] == pytest.approx([1 / most] * most, abs=0.17)
    assert len(set(shapes)) == 2  # upright and not


def test_no_member_of_a_batch_has_its_image_by_the_number_of_objects(tmp_path, monkeypatch):
    corners = [block((top, top + 20), (left, left + 30)) for top in (5, 35) for left in (5, 45)]
    write_coco(tmp_path, [((60, 80), [{"segmentation": mask} for mask in corners])] * 40)

    def still(motion, image, labels, length, rng, min_area):
        return np.stack([image] * length), np.stack([labels] * length)

    monkeypatch.setattr("datamodules.coco_clips.pseudo_video", still)
    dataset = PseudoClips(read(tmp_path), "hodor", 1, 4, 4800, 60, 2, 0)
    drawn = np.zeros((2, 4, 40), int)  # by member, number of objects, image
    for index in range(800):
        frames, _, objects = dataset[index]
        drawn[index % 2, objects - 1, round(255 * float(frames[0, 0, 0, 0])) - 40] += 1
    for of_member in drawn:
        assert of_member.sum(1) / 400 == pytest.approx([1 / 4] * 4, abs=0.07)
        assert (np.count_nonzero(of_member, axis=1) > 30).all()  # of 40, in some 100 draws
        assert of_member.reshape(4, 4, 10).sum(2) / 400 == pytest.approx(np.full((4, 4), 1 / 16), abs=0.04)


def test_no_two_draws_share_a_stream(written, streams):
    module = masked(written, batch_size=3)
    first(module, 4)
    assert len(streams()) == 4 + 12


def test_batches_are_padded_with_the_mean_colour(written):
    for batch in first(masked(written, batch_size=3), 4):
        assert isinstance(batch, Clip)
        assert batch.frames.dtype == torch.float32
        assert batch.masks.dtype == batch.objects.dtype == torch.int64
        assert batch.frames.shape[:3] == (3, 3, 3)
        assert batch.masks.shape == (3, 3, *batch.frames.shape[3:])
        assert all(side % 32 == 0 for side in batch.frames.shape[3:])
        assert 0 <= batch.frames.min() < batch.frames.max() <= 1
        assert len(set(batch.objects.tolist())) == 1
    small, large = (np.full((1, *size, 3), 255, np.uint8) for size in ((20, 40), (33, 30)))
    batch = collate_clips([to_clip(*padded(clip, clip[..., 0] // 255), 1) for clip in (small, large)])
    assert batch.frames.shape == (2, 1, 3, 64, 64)
    assert batch.masks.flatten(1).sum(1).tolist() == [20 * 40, 33 * 30]
    assert batch.frames[0, 0, :, 20:].flatten(1).T.unique(dim=0).mul(255).tolist() == [pytest.approx(MEAN_COLOUR)]


def test_objects_that_hide_each_other_are_not_drawn(tmp_path):
    inner, outer = block((20, 40), (20, 40)), block((10, 50), (10, 50))
    write_coco(tmp_path, [((60, 80), [{"segmentation": inner}, {"segmentation": outer}])])
    module = masked(tmp_path, val_split="train2017", batch_size=1)
    dataset = PseudoClips(module._train, "hodor", 3, 2, 4800, 60, 1, 0)
    counts = set()
    for index in range(12):
        try:
            counts.add(int(dataset[index].objects))
        except MaskError as error:
            assert len(str(error).splitlines()) <= 8
            counts.add(str(error).split("shows ")[1].split(" in")[0])
    assert counts == {1, "2 objects"}


@pytest.mark.parametrize("make", [masked, classed])
def test_a_clip_is_a_function_of_seed_and_number(written, monkeypatch, make):
    def clips(seed, **options):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        return first(make(written, **options), 3)

    one, resumed, workers, other = clips("1"), clips("1", step=2)[:1], clips("1", workers=2), clips("2")
    assert all(equal(a, b) for a, b in zip(one, workers, strict=True))
    assert equal(one[2], resumed[0])
    assert not equal(one[0], one[1])
    assert not equal(one[0], other[0])


def test_every_rank_has_its_own_share(written):
    shares = [first(classed(written, batch_size=2, rank=rank, world=2), 1)[0] for rank in range(2)]
    (alone,) = first(classed(written, batch_size=4), 1)
    assert torch.equal(torch.cat([share.sizes for share in shares]), alone.sizes)
    assert not equal(*shares)
    one, two = (first(masked(written, rank=rank, world=2), 2) for rank in range(2))
    assert equal(first(masked(written, step=1), 1)[0], two[0])  # the second batch of a single rank
    assert not equal(one[0], two[0])
    for make in (masked, classed):
        numbers = [
            [item.number for item in make(written, "test", rank=rank, world=2).test_dataloader()] for rank in range(2)
        ]
        assert numbers == [[0, 2], [1]]


# Batches of instances


def test_clips_with_classes_hold_what_the_losses_need(written):
    for batch in first(classed(written, motion="rotation"), 6):
        assert isinstance(batch, InstanceClip)
        assert batch.frames.shape[:3] == (2, 5, 3)
        for found, (height, width) in zip(batch.instances, batch.sizes.tolist(), strict=True):
            assert found.labels.max() < 4
            assert found.valid.any(1).all()
            assert found.masks.sum(0).max() == 1  # no pixel belongs to two
            corners = torch.cat(
                [found.boxes[..., :2] - found.boxes[..., 2:] / 2, found.boxes[..., :2] + found.boxes[..., 2:] / 2], -1
            )
            seen = found.masks.any(-2)
            left = seen.float().argmax(-1)
            assert torch.allclose((corners[..., 0] * width)[found.valid], left[found.valid].float(), atol=1e-3)
            top = found.masks.any(-1).float().argmax(-1)
            assert torch.allclose((corners[..., 1] * height)[found.valid], top[found.valid].float(), atol=1e-3)


def test_of_many_instances_some_are_drawn(tmp_path):
    rows = [
        {"segmentation": block((6 * (k // 6), 6 * (k // 6) + 5), (12 * (k % 6), 12 * (k % 6) + 10))} for k in range(48)
    ]
    write_coco(tmp_path, [((60, 80), rows)])
    images = read(tmp_path, InstanceRules())
    clips = CocoClips(images, {1: 0, 44: 1}, "rotation", 1, 25)
    drawn = [clips.clip(0, np.random.default_rng(seed)) for seed in range(4)]
    assert all(len(clip.labels) == len(clip.masks) == 25 for clip in drawn)
    assert len({clip.masks.sum((1, 2, 3)).tobytes() for clip in drawn}) == 4


# Under a trainer


class Recorder(LightningModule):
    """Keeps what the loaders give."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.clips, self.videos = [], []

    def training_step(self, batch, batch_idx):
        self.clips.append(batch)
        return self.layer(batch.frames.mean().reshape(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.videos.append(batch)

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec|treespec|predict returned None).*")
@pytest.mark.parametrize(
    ("make", "batch", "video"), [(masked, Clip, ScoredVideo), (classed, InstanceClip, ScoredInstanceVideo)]
)
def test_a_trainer_runs_every_stage(written, tmp_path, make, batch, video):
    module, data = Recorder(), make(written)
    run = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=2,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    run.fit(module, datamodule=data)
    assert [type(clip) for clip in module.clips] == [batch] * 2
    assert [item.number for item in module.videos] == [0, 1, 2]
    run.validate(module, datamodule=data)
    run.test(module, datamodule=data)
    run.predict(module, datamodule=data)
    assert [(type(item), item.number) for item in module.videos] == 4 * [(video, 0), (video, 1), (video, 2)]


def test_pseudo_videos_are_the_same_in_every_run_and_show_their_prompts(written):
    (one, again) = (list(masked(written, "test").test_dataloader()) for _ in range(2))
    for item, same in zip(one, again, strict=True):
        assert len(item.video.frames) == len(item.video.frame_names) == 8
        assert all(torch.equal(a, b) for a, b in zip(item.video.frames, same.video.frames, strict=True))
        assert item.video.frames[0].shape == (3, *item.video.size)
        assert list(item.video.prompts) == [0]
        assert np.array_equal(item.video.prompts[0], item.truth.read(0))
        prompted = set(np.unique(item.video.prompts[0])) - {0}
        assert prompted
        for time in item.truth.plan.frames:
            assert set(np.unique(item.truth.read(time))) - {0} <= prompted
        assert item.truth.read(3).shape == item.video.size


def test_pseudo_videos_with_classes_have_tracks_as_truth(written):
    for item in classed(written, "test").test_dataloader():
        assert item.truth
        for (video, category), tracks in item.truth.items():
            assert video == item.video.video_id == item.number
            assert category in item.video.categories
            for track in tracks:
                assert len(track.masks) == len(item.video.frames) == 8
                sizes = [0 if mask is None else int(coco.area(mask)) for mask in track.masks]
                assert sizes == track.pixels.tolist()
                assert track.area == pytest.approx(np.mean([size for size in sizes if size]))


def test_garbage_in_the_place_of_truth_changes_no_video(written, tmp_path):
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / split).symlink_to(written / "coco" / split)
        name = f"annotations/instances_{split}.json"
        content = json.loads((written / "coco" / name).read_text())
        for row in content["annotations"]:
            row["category_id"] = 28
        (tmp_path / name).write_text(json.dumps(content))
    seen = [list(classed(root, "test").test_dataloader()) for root in (written, tmp_path)]
    for one, other in zip(*seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.video.frames, other.video.frames, strict=True))
        assert vars(one.video) | {"frames": 0} == vars(other.video) | {"frames": 0}
    assert {category for item in seen[1] for _, category in item.truth} == {28}


# The real samples


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real samples: {REAL} does not exist")
def test_real_images():
    splits = dict.fromkeys(("train_split", "val_split", "test_split"), "val2017")
    module = masked(REAL / "coco", **splits, rules=InstanceRules(500, 10), area=30_000)
    assert module._train.counts.tolist() == [sum(module._train.counts)]
    for batch in first(module, 2):
        assert batch.masks.amax((1, 2, 3)).tolist() == batch.objects.tolist()
    (video,) = module.val_dataloader()
    assert video.video.size == (427, 640)
    found = classed(REAL / "coco", **splits)
    assert len(found.categories) == 80
    (batch,) = first(found, 1)
    assert set(torch.cat([item.labels for item in batch.instances]).tolist()) <= {0, 32}  # person, sports ball


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real samples: {REAL} does not exist")
def test_real_polygons():
    splits = dict.fromkeys(("train_split", "val_split", "test_split"), "train2017")
    module = classed(REAL / "coco_polygons", **splits)
    (source, _) = module._clips[0][0]
    assert len(source.images.ids) == 9
    assert source.images.names == ["2011_000003.jpg", "2011_000006.jpg"]
    assert next(iter(module.categories)) == 0
    content = json.loads((REAL / "coco_polygons/annotations/instances_train2017.json").read_text())
    for row, number in zip(content["annotations"], range(9), strict=True):
        if row["image_id"] == 0:
            mask = source.images.masks.decode(number, (338, 500))
            assert mask.sum() == pytest.approx(row["area"], rel=0.1)
    (batch,) = first(module, 1)
    assert all(len(found.labels) for found in batch.instances)
