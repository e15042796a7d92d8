"""Pre-training on still images: the clips, the pseudo-videos, the files, and what is said about bad ones."""

import itertools
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import StaticImages
from datamodules.clips import MAX_OBJECTS, ClipSampler
from datamodules.rendering import render_clip
from datamodules.synthetic_files import StillSettings, SyntheticSettings, write_davis, write_stills
from datamodules.transforms import MEAN_COLOUR, StillTransform
from lightning_vos.commands.data import main
from lightning_vos.errors import ConfigError, DatasetNotFoundError, FrameError, MaskError
from lightning_vos.io.masks import read_mask, write_mask
from lightning_vos.metrics.sequence import Plan

REAL = Path(__file__).parents[3] / "shared/data/real/VOCdevkit/VOC2012"
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


def test_the_remedy_for_saliency_masks_works(data, tmp_path):
    write_set(tmp_path / "A", {name: blocks() for name in "ab"})
    for path in (tmp_path / "A/Annotations").iterdir():
        write_mask(path, np.where(blocks() > 0, 255, 0))
        write_mask(path, (read_mask(path) > 127).astype("uint8"))
    assert np.unique(data().sequences("val")[0].load(0).truth.read(3)).tolist() == [0, 1]


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
    finished = command("fit", f"--config={tiny}", "--config=configs/data/static.yaml", *words)
    assert finished.status == 0, finished.err
    assert "Still images (synthetic) train: 10 sequences" in finished.err
    assert "val/J&F" in Path("runs/tiny/version_0/metrics.csv").read_text()
    assert Path("runs/tiny/version_0/checkpoints/best-step000002.ckpt").is_file()
