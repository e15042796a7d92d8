"""YouTube-VIS: what clips and videos hold, how they are drawn, and what is said about bad files."""

import itertools
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from datamodules import YouTubeVIS
from datamodules.instance_clips import (
    IMAGENET_MEAN,
    InstanceClipDataset,
    InstanceTransform,
    RawClip,
    boxes_of,
    collate_instances,
    distorted,
    training_size,
)
from datamodules.rendering import Difficulty
from datamodules.synthetic_files import StillSettings, SyntheticSettings
from datamodules.synthetic_instances import uncompressed, write_synthetic_coco, write_synthetic_youtube_vis
from datamodules.youtube_vis import COCOMixture
from datamodules.youtube_vis_classes import CATEGORIES, COCO_CLASSES
from datamodules.youtube_vis_files import clip_positions
from lightning_vos.errors import ConfigError, DatasetNotFoundError, FrameError, MaskError, UserError
from lightning_vos.evaluation.holdout import is_held_out
from lightning_vos.evaluation.youtube_vis import read_ground_truth
from lightning_vos.structures import InstanceClip, Instances, ScoredInstanceVideo

REAL = Path(__file__).parents[3] / "shared/data/real"
SMALL = InstanceTransform(short_sides=(48, 64), longest=96, crop_short_sides=(64, 80), crop_range=(40, 72))
AS_IS = InstanceTransform(short_sides=(64,), longest=4000, flip=0.0, distort=0.0, crop=0.0)
LEAVING = Difficulty(disappearance=1.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    settings = SyntheticSettings(train=3, val=2, frames=8, height=64, width=80, difficulty=LEAVING)
    write_synthetic_youtube_vis(root / "youtube_vis", settings)
    write_synthetic_coco(root / "coco", StillSettings(images=12, height=64, width=80))
    return root


@pytest.fixture
def data(written):
    def make(stage="fit", root=written, rank=0, world=1, step=0, **options):
        options = {"workers": 0, "augmentation": SMALL, "train_split": "holdout_train"} | options
        module = YouTubeVIS(root, **options)
        if stage:
            module.setup(stage)
        module.trainer = SimpleNamespace(
            global_rank=rank, world_size=world, global_step=step, accumulate_grad_batches=1
        )
        return module

    return make


def first(module, count):
    return list(itertools.islice(module.train_dataloader(), count))


def equal(one: InstanceClip, other: InstanceClip) -> bool:
    pairs = [(one.frames, other.frames), (one.sizes, other.sizes)]
    pairs += [pair for a, b in zip(one.instances, other.instances, strict=True) for pair in zip(a, b, strict=True)]
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


class Recorder(LightningModule):
    """Keeps what the loaders give."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.clips: list[InstanceClip] = []
        self.videos: list[ScoredInstanceVideo] = []

    def training_step(self, batch, batch_idx):
        self.clips.append(batch)
        return self.layer(batch.frames.mean().reshape(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.videos.append(batch)

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder, **options):
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False} | options
    return Trainer(
        accelerator="cpu",
        devices=1,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec|treespec).*")
def test_a_trainer_runs_every_stage_and_a_resumed_run_goes_on(written, tmp_path):
    def module(workers):
        return YouTubeVIS(written, workers=workers, augmentation=SMALL, train_split="holdout_train")

    whole, begun, rest = Recorder(), Recorder(), Recorder()
    steps = {"check_val_every_n_epoch": None, "limit_val_batches": 0}
    trainer(tmp_path, max_steps=3, **steps).fit(whole, datamodule=module(2))
    stopped = trainer(tmp_path, max_steps=1, **steps)
    stopped.fit(begun, datamodule=module(0))
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    trainer(tmp_path, max_steps=3, **steps).fit(rest, datamodule=module(0), ckpt_path=tmp_path / "last.ckpt")
    assert (len(whole.clips), len(begun.clips), len(rest.clips)) == (3, 1, 2)
    assert all(equal(one, two) for one, two in zip(whole.clips, begun.clips + rest.clips, strict=True))

    run, seen = trainer(tmp_path), Recorder()
    run.validate(seen, datamodule=module(0))
    run.test(seen, datamodule=module(0))
    run.predict(seen, datamodule=module(0))
    assert [(item.number, item.truth is None) for item in seen.videos] == [
        *[(0, False), (1, False)],
        *2 * [(0, True), (1, True)],
    ]
    assert all(is_held_out(item.video.name) for item in seen.videos[:2])
    assert all(isinstance(item, ScoredInstanceVideo) for item in seen.videos)


def test_a_clip_holds_what_matcher_and_losses_need(data):
    absent = 0
    for batch in first(data(), 12):
        assert batch.frames.dtype == torch.float32
        assert batch.frames.shape[:3] == (2, 5, 3)
        height, width = batch.frames.shape[3:]
        assert (height, width) == tuple(((batch.sizes.amax(0) + 31) // 32 * 32).tolist())
        mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
        for frames, (rows, columns), found in zip(batch.frames, batch.sizes.tolist(), batch.instances, strict=True):
            assert torch.equal(frames[..., rows:, :], mean.expand_as(frames[..., rows:, :]))
            assert torch.equal(frames[..., columns:], mean.expand_as(frames[..., columns:]))
            assert 0 <= frames.min() < frames.max() <= 1
            count = len(found.labels)
            assert count >= 1
            assert found.labels.dtype == torch.int64
            assert set(found.labels.tolist()) <= {0, 14, 17, 33}  # ids 1, 15, 18 and 34 are classes from 0 on
            assert found.masks.shape == (count, 5, height, width)
            assert found.masks.dtype == found.valid.dtype == torch.bool
            assert found.boxes.shape == (count, 5, 4)
            assert torch.equal(found.valid, found.masks.any(-1).any(-1))
            assert found.valid.any(1).all()
            assert not found.masks[..., rows:, :].any()
            assert not found.masks[..., columns:].any()
            for mask, box, valid in zip(
                found.masks.flatten(0, 1), found.boxes.flatten(0, 1), found.valid.flatten(), strict=True
            ):
                if not valid:
                    absent += 1
                    assert (box == 0).all()
                    continue
                ys, xs = torch.nonzero(mask, as_tuple=True)
                x, y, box_width, box_height = (box * torch.tensor([columns, rows, columns, rows])).tolist()
                sides = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                assert [x - box_width / 2, y - box_height / 2, x + box_width / 2, y + box_height / 2] == pytest.approx(
                    [float(side) for side in sides], abs=1e-3
                )
    assert absent > 5  # instances that left


def test_boxes_are_tight():
    masks = np.zeros((3, 1, 10, 20), bool)
    masks[0, 0, 2:6, 5:15] = masks[1, 0, 9, 19] = True
    assert boxes_of(masks).tolist() == [
        [pytest.approx([0.5, 0.4, 0.5, 0.4])],
        [pytest.approx([0.975, 0.95, 0.05, 0.1])],
        [[0, 0, 0, 0]],
    ]


def test_a_clip_is_a_function_of_seed_and_number(data, monkeypatch):
    def clips(seed, **options):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        return first(data(**options), 2)

    one, again, workers, other = clips("1"), clips("1"), clips("1", workers=2), clips("2")
    assert equal(one[0], again[0])
    assert all(equal(a, b) for a, b in zip(one, workers, strict=True))
    assert not equal(one[0], one[1])
    assert not equal(one[0], other[0])


def test_every_rank_has_its_own_share(data):
    (alone,) = first(data(batch_size=4), 1)
    shares = [first(data(batch_size=2, rank=rank, world=2), 1)[0] for rank in range(2)]
    sizes = torch.cat([share.sizes for share in shares])
    assert torch.equal(sizes, alone.sizes)
    assert not equal(*shares)
    labels = [found.labels.tolist() for share in shares for found in share.instances]
    assert labels == [found.labels.tolist() for found in alone.instances]
    for world in (1, 2, 3):
        videos = [
            [item.number for item in data("test", rank=rank, world=world).test_dataloader()] for rank in range(world)
        ]
        assert all(videos)
        assert {number for share in videos for number in share} == {0, 1}


class Numbers:
    """A source whose clips show their number and nothing else."""

    def __init__(self, length: int, empty: bool = False) -> None:
        self.length = length
        self.empty = empty

    def __len__(self) -> int:
        return self.length

    def clip(self, number, rng):
        frames = np.full((2, 16, 16, 3), number, np.uint8)
        shown = np.full((1, 2, 16, 16), 0 if self.empty or number == 3 else 1, np.uint8)
        return RawClip(frames, shown, np.array([number]))


def test_every_frame_is_the_key_once_an_epoch_in_a_new_order():
    dataset = InstanceClipDataset([(Numbers(9), replace(AS_IS, short_sides=(16,)))], [1.0], 5)
    epochs = [[int(dataset[9 * epoch + k][1].labels[0]) for k in range(9)] for epoch in range(3)]
    for epoch in epochs:
        assert {0, 1, 2, 4, 5, 6, 7, 8} <= set(epoch)  # 3 shows nothing and is replaced
        assert 3 not in epoch
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_of_two_sources_an_epoch_visits_a_share_of_each_drawn_anew():
    sources = [(Numbers(200), replace(AS_IS, short_sides=(16,))), (Numbers(50), replace(AS_IS, short_sides=(16,)))]
    sources[1][0].clip = lambda number, rng: RawClip(
        np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 1, 8, 8), np.uint8), np.array([999])
    )
    dataset = InstanceClipDataset(sources, [0.7, 0.3], 0)
    epochs = [[int(dataset[200 * epoch + k][1].labels[0]) for k in range(200)] for epoch in range(2)]
    visited = [[number for number in epoch if number != 999] for epoch in epochs]
    for numbers in visited:
        assert 0.6 < len(numbers) / 200 < 0.8
        assert len(set(numbers)) >= len(numbers) - 1  # 3 shows nothing and is replaced
    assert 0.35 < len(set(visited[0]) & set(visited[1])) / 200 < 0.65


def test_no_two_draws_share_a_stream(monkeypatch):
    seeds, plain = set(), np.random.default_rng

    def noted(seed):
        seeds.add(tuple(seed))
        return plain(seed)

    monkeypatch.setattr(np.random, "default_rng", noted)
    small = replace(AS_IS, short_sides=(16,))
    dataset = InstanceClipDataset([(Numbers(9), small), (Numbers(5), small)], [0.5, 0.5], 20_261)
    for index in range(40):
        dataset[index]
    states = {tuple(np.random.SeedSequence(seed).generate_state(4)) for seed in seeds}
    assert len(states) == len(seeds) > 45  # those of items, and of the epochs of both sources


def test_clips_without_instances_are_an_error_at_last():
    dataset = InstanceClipDataset([(Numbers(4, empty=True), replace(AS_IS, short_sides=(16,)))], [1.0], 0)
    with pytest.raises(MaskError, match="None of 50 clips") as error:
        dataset[0]
    assert len(str(error.value).splitlines()) <= 8


def test_positions_of_a_clip_are_drawn_as_by_seqformer():
    rng = np.random.default_rng(0)
    draws = [clip_positions(50, 100, 5, 3, rng) for _ in range(3000)]
    before, behind, far = [], [], []
    for positions in draws:
        assert positions == sorted(positions)
        assert 50 in positions
        below = [p for p in positions if p < 50]
        above = [p for p in positions if p > 50]
        before.append(50 - below[-1])
        behind.append(above[0] - 50)
        far += [p for p in positions if not 40 <= p < 60]
    for gaps in (before, behind):
        assert [gaps.count(gap) / len(gaps) for gap in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.04)
        assert set(gaps) == {1, 2, 3}
    tens = np.bincount(np.array(far) // 10, minlength=10)
    assert tens / len(far) == pytest.approx([0.125] * 4 + [0, 0] + [0.125] * 4, abs=0.02)
    twice = [p for positions in draws for p in set(positions) if positions.count(p) > 1]
    assert twice  # the later neighbour may be drawn once more
    assert set(twice) <= {51, 52, 53}


@pytest.mark.parametrize(("frames", "key"), [(1, 0), (2, 1), (3, 0), (4, 3), (5, 2), (30, 0), (30, 29)])
def test_positions_stay_inside_short_videos(frames, key):
    rng = np.random.default_rng(1)
    for length in (1, 2, 3, 5, 8):
        for _ in range(30):
            positions = clip_positions(key, frames, length, 3, rng)
            assert len(positions) == length
            assert key in positions
            assert 0 <= positions[0] <= positions[-1] < frames
    wide = [clip_positions(2, 5, 5, 1, np.random.default_rng(seed)) for seed in range(200)]
    assert {tuple(positions) for positions in wide} == {  # of 1, 2, 3 and two of 0, 3, 4
        *[(0, 1, 2, 3, 3), (0, 1, 2, 3, 4), (1, 2, 3, 3, 4)]
    }


def test_sizes_are_rounded_as_by_seqformer():
    assert training_size(720, 1280, 480, 768) == (432, 768)
    assert training_size(720, 1280, 288, 768) == (288, 512)
    assert training_size(1280, 720, 360, None) == (640, 360)
    assert training_size(479, 853, 360, None) == (360, int(360 * 853 / 479))
    assert training_size(50, 50, 64, 768) == (64, 64)


def checkerboard(height=60, width=90):
    """Frames in which the instances are red and blue squares."""
    frames = np.full((3, height, width, 3), (20, 120, 20), np.uint8)
    masks = np.zeros((2, 3, height, width), np.uint8)
    for time in range(3):
        masks[0, time, 5:25, 5 + 4 * time : 25 + 4 * time] = 1
        masks[1, time, 30:55, 50 - 4 * time : 75 - 4 * time] = 1
    frames[masks[0] > 0], frames[masks[1] > 0] = (230, 20, 20), (20, 20, 230)
    return RawClip(frames, masks, np.array([4, 7]))


def test_masks_follow_the_frames_and_augmentation_has_the_shares_of_the_recipe():
    transform = InstanceTransform(
        short_sides=(48, 64), longest=80, distort=0.0, crop_short_sides=(70,), crop_range=(40, 60)
    )
    flips, sides, whole = [], [], []
    for seed in range(200):
        frames, masks, labels = transform(checkerboard(), np.random.default_rng(seed))
        assert labels.tolist() == [4, 7]
        assert frames.shape[:3] == masks.shape[1:]
        assert max(masks.shape[2:]) <= 80
        for channel, planes in zip((0, 2), masks, strict=True):
            assert ((frames[..., channel] > 125) == planes.astype(bool)).mean() > 0.97
        plain = frames.shape[1:3] in [(48, 72), (53, 79)]
        whole.append(plain)
        if plain:
            sides.append(frames.shape[1])
            xs = [np.nonzero(planes[0])[1].mean() for planes in masks]
            flips.append(xs[0] > xs[1])
    assert 0.4 < np.mean(flips) < 0.6
    assert 0.4 < np.mean(whole) < 0.6
    assert 0.35 < np.mean(np.array(sides) == 48) < 0.65


def test_windows_have_the_sides_of_the_recipe():
    transform = replace(AS_IS, crop=1.0, crop_short_sides=(100,), crop_range=(40, 120))
    columns, rows = np.meshgrid(np.arange(150), np.arange(100))
    frame = np.stack([columns, rows, rows], -1).astype(np.uint8)[None]
    heights, widths = [], []
    for seed in range(300):
        frames, *_ = transform(
            RawClip(frame, np.zeros((1, 1, 100, 150), np.uint8), np.zeros(1)), np.random.default_rng(seed)
        )
        widths.append(float(np.ptp(frames[..., 0])) + 1)
        heights.append(float(np.ptp(frames[..., 1])) + 1)
    assert 36 < min(heights) < 45
    assert 97 < max(heights) <= 100
    assert 36 < min(widths) < 45
    assert 115 < max(widths) < 123
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.2


def test_colours_are_distorted_for_each_frame_by_itself():
    frames, *_ = replace(AS_IS, distort=1.0, short_sides=(60,))(checkerboard(), np.random.default_rng(3))
    assert len({frames[time, 0, 0].tobytes() for time in range(3)}) == 3
    grey = np.full((4, 4, 3), 100, np.uint8)
    drawn = np.array([distorted(grey, np.random.default_rng(seed))[0, 0] for seed in range(400)], float)
    assert np.ptp(drawn, axis=1).max() <= 1  # neither hue nor saturation nor order change a grey
    assert 0.15 < (drawn[:, 0] == 100).mean() < 0.35  # neither brightness nor contrast
    assert drawn.min() >= (100 - 32) * 0.5 - 1
    assert drawn.max() <= (100 + 32) * 1.5 + 1
    assert drawn.min() < 50
    assert drawn.max() > 165
    red = np.full((4, 4, 3), (200, 40, 40), np.uint8)
    leading = [int(distorted(red, np.random.default_rng(seed))[0, 0].argmax()) for seed in range(300)]
    assert 0.55 < leading.count(0) / 300 < 0.8  # half keep their order, and a third of the others
    assert np.array_equal(distorted(red, np.random.default_rng(8)), distorted(red, np.random.default_rng(8)))


@pytest.mark.parametrize(
    "options", [{"short_sides": ()}, {"short_sides": (0,)}, {"longest": 0}, {"crop_range": (50, 40)}]
)
def test_impossible_augmentation_is_refused(options):
    with pytest.raises(ValueError, match="InstanceTransform"):
        InstanceTransform(**options)


@pytest.mark.parametrize("options", [{"length": 0}, {"reach": 0}, {"batch_size": 0}, {"workers": -1}])
def test_impossible_settings_are_refused(options, tmp_path):
    with pytest.raises(ValueError, match="expected at least"):
        YouTubeVIS(tmp_path, **options)


# Joint training


def test_the_mixture_has_its_share_and_its_classes(data, written):
    coco = COCOMixture(written, share=0.3)
    module = data(coco=coco, augmentation=replace(SMALL, distort=1.0))
    (videos, plain), (images, moved) = module._clips[0]
    assert module._clips[1] == [0.7, 0.3]
    assert (plain.distort, moved.distort) == (1.0, 0.0)
    assert len(videos) == 3 * 8
    labels = {
        int(label) for number in range(len(images)) for label in images.clip(number, np.random.default_rng(0)).labels
    }
    names = [CATEGORIES[2019][label] for label in labels]
    assert {"horse", "cow", "person"} >= set(names)  # umbrellas are left out
    assert len(names) >= 2
    drawn = []
    dataset = InstanceClipDataset([(Numbers(200), AS_IS), (Numbers(50), AS_IS)], [0.7, 0.3], 0)
    dataset.sources[1][0].clip = lambda number, rng: RawClip(
        np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 1, 8, 8), np.uint8), np.array([999])
    )
    drawn = [int(dataset[index][1].labels[0]) == 999 for index in range(400)]
    assert 0.24 < np.mean(drawn) < 0.36
    (batch,) = first(module, 1)
    assert batch.frames.shape[:2] == (2, 5)


def test_the_class_maps_are_those_of_seqformer():
    names = {year: dict(enumerate(CATEGORIES[year], start=1)) for year in CATEGORIES}
    assert [len(set(CATEGORIES[year])) for year in (2019, 2021)] == [40, 40]
    assert list(CATEGORIES[2021]) == sorted(CATEGORIES[2021])
    assert [len(COCO_CLASSES[year]) for year in (2019, 2021)] == [21, 22]
    for coco_id, name in {1: "person", 4: "motorbike", 7: "train", 17: "cat", 43: "tennis_racket"}.items():
        assert {names[year][COCO_CLASSES[year][coco_id]] for year in COCO_CLASSES} == {name}
    assert [names[year][COCO_CLASSES[year][2]] for year in (2019, 2021)] == ["motorbike"] * 2  # a bicycle
    assert [names[year][COCO_CLASSES[year][74]] for year in (2019, 2021)] == ["fox", "mouse"]  # a computer's mouse


def test_a_class_map_of_ones_own(data, written):
    module = data(coco=COCOMixture(written, share=0.5, classes={28: 7}))
    images = module._clips[0][1][0]
    clips = [images.clip(number, np.random.default_rng(0)) for number in range(len(images))]
    assert {int(label) for clip in clips for label in clip.labels} == {6}
    with pytest.raises(ConfigError, match=r"category ids \[41\]"):
        data(coco=COCOMixture(written, share=0.5, classes={28: 41}))
    with pytest.raises(ConfigError, match=r"has not the categories that data.coco.classes names: 2\n"):
        data(coco=COCOMixture(written, share=0.5, classes={2: 1, 28: 1}))
    for share in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match="share"):
            COCOMixture(written, share=share)


# Videos


def test_frames_are_read_one_by_one_and_truth_lies_apart(data, monkeypatch):
    import lightning_vos.io.frames as frames

    read, kept = [], frames.read_frame
    monkeypatch.setattr(frames, "read_frame", lambda path: read.append(path) or kept(path))
    (item, _) = data("validate").val_dataloader()
    assert read == []
    assert len(item.video.frames) == 8
    assert item.video.frames[3].shape == (3, *item.video.size) == (3, 64, 80)
    assert [path.name for path in read] == ["00015.jpg"]
    assert list(item.video.categories.items())[:2] == [(1, "person"), (2, "giant_panda")]
    assert not any("truth" in name or "track" in name for name in vars(item.video))


def test_truth_is_that_of_the_evaluation(data, written):
    truth = read_ground_truth(written / "youtube_vis/train.json", "holdout_val")
    found = {}
    for item in data("validate").val_dataloader():
        assert {video for video, _ in item.truth} == {item.video.video_id}
        found |= item.truth
    assert found.keys() == truth.tracks.keys()
    for key, tracks in truth.tracks.items():
        assert [track.masks for track in found[key]] == [track.masks for track in tracks]


def test_garbage_in_the_place_of_truth_changes_no_video(data, written, tmp_path):
    shutil.copytree(written / "youtube_vis", tmp_path / "youtube_vis")
    file = tmp_path / "youtube_vis/train.json"
    content = json.loads(file.read_text())
    rng = np.random.default_rng(0)
    for row in content["annotations"]:
        row["category_id"] = int(rng.integers(1, 41))
        masks = [rng.random((64, 80)) < 0.5 for _ in range(row["length"])]
        row |= {"segmentations": [uncompressed(mask) for mask in masks], "areas": [int(mask.sum()) for mask in masks]}
    file.write_text(json.dumps(content))

    def seen(root):
        return [
            (item.number, [frame.numpy().tobytes() for frame in item.video.frames], vars(item.video) | {"frames": 0})
            for item in data("validate", root=root).val_dataloader()
        ]

    assert seen(written) == seen(tmp_path)
    (one, *_), (other, *_) = (data("validate", root=root).val_dataloader() for root in (written, tmp_path))
    assert one.truth.keys() != other.truth.keys()


@pytest.mark.parametrize("annotations", ["missing", None, []])
def test_without_annotations_there_is_no_truth(data, written, tmp_path, annotations):
    shutil.copytree(written / "youtube_vis", tmp_path / "youtube_vis")
    file = tmp_path / "youtube_vis/valid.json"
    if annotations != "missing":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": annotations}))
    assert [item.truth for item in data("test", root=tmp_path).test_dataloader()] == [None, None]
    assert [item.truth for item in data("predict", root=tmp_path).predict_dataloader()] == [None, None]
    with pytest.raises(DatasetNotFoundError, match=r"valid.json has no annotations.*\n.*train_split train"):
        data(root=tmp_path, train_split="valid")


def test_what_is_trained_on_is_said_and_so_is_that_it_is_validated_with(written, caplog):
    module = YouTubeVIS(written, augmentation=SMALL, workers=0)
    with caplog.at_level(logging.INFO), pytest.warns(UserWarning, match="holdout_val are trained on"):
        module.setup("fit")
    assert [record.getMessage() for record in caplog.records] == [
        f"YouTube-VIS 2019 train: 5 videos, 40 frames in {written}/youtube_vis/train.json",
        f"YouTube-VIS 2019 holdout_val: 2 videos, 16 frames in {written}/youtube_vis/train.json",
    ]
    assert list(module.categories)[:3] == [1, 2, 3]


# A person's own files


def own(folder, masks, **content):
    """Writes videos of one category of ids with gaps; `masks` holds, for each video, its tracks of (T, H, W)."""
    (folder / "JPEGImages").mkdir(parents=True)
    content = {"categories": [{"id": 30, "name": "newt"}, {"id": 4, "name": "crab"}], "videos": [], "annotations": []}
    for number, tracks in enumerate(masks):
        length, height, width = tracks[0].shape
        names = [f"{chr(97 + number)}/{time}.jpg" for time in range(length)]
        (folder / "JPEGImages" / chr(97 + number)).mkdir()
        for name in names:
            Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(folder / "JPEGImages" / name)
        content["videos"].append({"id": number + 5, "height": height, "width": width, "file_names": names})
        for track in tracks:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "video_id": number + 5,
                    "category_id": 30,
                    "iscrowd": 0,
                    "segmentations": [uncompressed(mask) if mask.any() else None for mask in track],
                    "areas": [int(mask.sum()) if mask.any() else None for mask in track],
                }
            )
    (folder / "train.json").write_text(json.dumps(content))
    return content


@pytest.fixture
def folder(tmp_path):
    masks = np.zeros((12, 40, 60), bool)
    masks[:, 10:30, 20:40] = True
    leaving = masks.copy()
    leaving[4:] = False
    own(tmp_path, [[masks, leaving], [masks]])
    return tmp_path


def mine(folder, **options):
    options = {
        "augmentation": AS_IS,
        "train_split": "train",
        "val_split": "train",
        "length": 12,
        "batch_size": 1,
    } | options
    module = YouTubeVIS(folder, workers=0, **options)
    module.setup("fit")
    return module


def test_ones_own_categories_are_classes_in_the_order_of_their_ids(folder):
    module = mine(folder)
    assert dict(module.categories) == {4: "crab", 30: "newt"}
    for batch in first(module, 4):
        (found,) = batch.instances
        assert set(found.labels.tolist()) == {1}
    assert [dict(item.video.categories) for item in module.val_dataloader()] == [{4: "crab", 30: "newt"}] * 2
    with pytest.raises(ConfigError, match="has not the categories of YouTube-VIS 2019") as error:
        mine(folder, coco=COCOMixture(folder, 0.5))
    assert "--data.coco.classes" in str(error.value)


def test_an_instance_that_left_is_not_valid_there(folder):
    for batch in first(mine(folder, length=12), 6):
        (found,) = batch.instances
        assert found.valid[0].all()
        if len(found.labels) == 2:
            valid = found.valid[1].tolist()
            assert valid == sorted(valid, reverse=True)
            assert 0 < sum(valid) < 12
            assert not found.masks[1][~found.valid[1]].any()
            assert not found.boxes[1][~found.valid[1]].any()
            break
    else:
        pytest.fail("no clip of the first video")


def test_every_form_of_a_mask_is_read_and_crowds_and_empty_ones_are_not_instances(folder):
    from pycocotools import mask as coco

    file = folder / "train.json"
    content = json.loads(file.read_text())
    plane = np.zeros((40, 60), np.uint8)
    plane[10:30, 20:40] = 1
    packed = coco.encode(np.asfortranarray(plane))
    content["annotations"] = [
        content["annotations"][0] | {"id": 1, "segmentations": [form] * 12, "areas": [400] * 12, **more}
        for form, more in [
            (uncompressed(plane), {}),
            ({"size": [40, 60], "counts": packed["counts"].decode()}, {}),
            ([[20, 10, 40, 10, 40, 30, 20, 30]], {}),
            (uncompressed(np.ones((40, 60))), {"iscrowd": 1}),
            (uncompressed(np.zeros((40, 60))), {}),
            (None, {}),
            ([], {}),
        ]
    ]
    file.write_text(json.dumps(content))
    for batch in first(mine(folder), 3):
        (found,) = batch.instances
        assert len(found.labels) == 3
        assert found.valid.all()
        assert torch.equal(found.masks[0], found.masks[1])
        assert torch.equal(found.masks[0], found.masks[2])
    assert len(mine(folder)._clips[0][0][0]) == 12  # nothing is learned of the video without instances


def spoil(content, what):
    videos, annotations = content["videos"], content["annotations"]
    match what:
        case "empty object":
            content.clear()
        case "a list":
            return [content]
        case "no videos":
            del content["videos"]
        case "empty videos":
            content["videos"] = []
        case "images of COCO":
            content["images"] = content.pop("videos")
        case "double id":
            videos[1]["id"] = videos[0]["id"]
        case "double category":
            content["categories"][1]["id"] = 30
        case "category without name":
            del content["categories"][0]["name"]
        case "text as a size":
            videos[0]["height"] = "40"
        case "no size":
            videos[0]["width"] = 0
        case "upwards":
            videos[0]["file_names"][3] = "../../../etc/passwd"
        case "absolute":
            videos[0]["file_names"][3] = "/etc/passwd"
        case "windows":
            videos[0]["file_names"][3] = "..\\secret.jpg"
        case "number as a name":
            videos[0]["file_names"][3] = 3
        case "no frames":
            videos[0]["file_names"] = []
        case "unsorted":
            videos[0]["file_names"][2:4] = videos[0]["file_names"][3:1:-1]
        case "frame twice":
            videos[0]["file_names"][3] = videos[0]["file_names"][2]
        case "absent video":
            videos[0]["file_names"] = [f"gone/{time}.jpg" for time in range(12)]
        case "absent frame":
            videos[0]["file_names"][11] = "a/12.jpg"
        case "unknown video":
            annotations[0]["video_id"] = 99
        case "unknown category":
            annotations[0]["category_id"] = 99
        case "crowd":
            annotations[0]["iscrowd"] = "yes"
        case "only crowds":
            for row in annotations:
                row["iscrowd"] = 1
        case "too few masks":
            annotations[0]["segmentations"].pop()
        case "no masks":
            del annotations[0]["segmentations"]
        case "size of another frame":
            annotations[0]["segmentations"][5]["size"] = [60, 40]
        case "runs too short":
            annotations[0]["segmentations"][5]["counts"].pop()
        case "negative run":
            annotations[0]["segmentations"][5]["counts"][:2] = [-1, 1]
        case "damaged text":
            annotations[0]["segmentations"][5]["counts"] = "damaged"
        case "polygon of two points":
            annotations[0]["segmentations"][5] = [[1, 2, 3, 4]]
        case "polygon far away":
            annotations[0]["segmentations"][5] = [[1, 2, 3, 4, 1e30, 5]]
        case "a number as a mask":
            annotations[0]["segmentations"][5] = 5
        case "names for annotations":
            content["annotations"] = {"1": annotations[0]}
    return content


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("empty object", "no categories"),
        ("a list", "expected an object with categories"),
        ("no videos", "no videos"),
        ("empty videos", "no video"),
        ("images of COCO", "no videos"),
        ("double id", "id 5, which an earlier one has"),
        ("double category", "two categories with the id 30"),
        ("category without name", "no name"),
        ("text as a size", "height '40', expected a whole number"),
        ("no size", "width 0"),
        ("upwards", "'../../../etc/passwd', which leads outside"),
        ("absolute", "'/etc/passwd', which leads outside"),
        ("windows", "the file name"),
        ("number as a name", "the file name 3"),
        ("no frames", "no file_names of video 5"),
        ("unsorted", "out of order: 'a/2.jpg' after 'a/3.jpg'"),
        ("frame twice", "out of order: 'a/2.jpg' after 'a/2.jpg'"),
        (
            "absent video",
            "12 of 24 frames .* are not there, of 1 videos\n  missing: gone/0.jpg, gone/1.jpg, gone/2.jpg, \\.\\.\\.",
        ),
        ("absent frame", "missing: a/12.jpg"),
        ("unknown video", "video 99 and category 30"),
        ("unknown category", "video 5 and category 99"),
        ("crowd", "iscrowd 'yes'"),
        ("only crowds", "None of the 2 videos .* has an instance"),
        ("too few masks", "11 segmentations, expected one or null for each of the 12"),
        ("no masks", "no segmentations"),
        ("size of another frame", r"size \[60, 40\], expected \[40, 60\]"),
        ("runs too short", "an RLE of [0-9]+ pixels, expected 2400"),
        ("negative run", "expected run lengths or their text"),
        ("damaged text", "an RLE"),
        ("polygon of two points", "polygon"),
        ("polygon far away", "polygon"),
        ("a number as a mask", "segmentation 5, expected polygons or an RLE"),
        ("names for annotations", "expected a list"),
    ],
)
def test_bad_files_are_refused_with_their_name_and_a_remedy(folder, what, said):
    file = folder / "train.json"
    file.write_text(json.dumps(spoil(json.loads(file.read_text()), what)))
    with pytest.raises(DatasetNotFoundError, match=said) as error:
        mine(folder)
    assert str(file) in str(error.value)
    assert len(str(error.value).splitlines()) <= 8
    assert any(word in str(error.value) for word in ("Get the file", "add the frames", "Name another file"))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b'{"videos": [' + b"[" * 100_000])
def test_what_is_no_json_is_refused(folder, content):
    (folder / "train.json").write_bytes(content)
    with pytest.raises(DatasetNotFoundError, match=r"train.json cannot be read as JSON") as error:
        mine(folder)
    assert len(str(error.value).splitlines()) <= 8


def test_bad_frames_are_refused(folder):
    (folder / "JPEGImages/a/0.jpg").write_bytes((folder / "JPEGImages/a/0.jpg").read_bytes()[:300])
    Image.new("RGB", (61, 40)).save(folder / "JPEGImages/b/0.jpg")
    module = mine(folder, length=12)
    with pytest.raises(FrameError, match=r"a/0.jpg|b/0.jpg") as error:
        first(module, 24)
    assert len(str(error.value).splitlines()) <= 8
    videos = iter(module.val_dataloader())
    with pytest.raises(FrameError, match="Frame that cannot be read"):
        next(videos).video.frames[0]
    with pytest.raises(FrameError, match=r"b/0.jpg has 61x40 pixels, but .*train.json says 60x40"):
        next(videos)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_skips_bad_frames_if_asked_to(folder, workers, recwarn):
    (folder / "JPEGImages/a/0.jpg").write_bytes((folder / "JPEGImages/a/0.jpg").read_bytes()[:300])

    def clips(**options):
        module = mine(folder, skip_broken=True, **options)
        module.workers = workers
        loader = module.train_dataloader()
        return module, loader.dataset, list(itertools.islice(loader, 24))

    module, dataset, batches = clips()
    broken = dataset.readers[0].broken  # by key frame: those of a, where their clip has its first frame
    assert broken[:12].any()
    assert not broken[12:].any()
    if not workers:
        said = [str(warning.message) for warning in recwarn if "Broken" in str(warning.message)]
        assert len(said) == 1
        assert said[0].startswith("Broken file skipped, 1 of 24 clips so far: Frame that cannot be read")
        assert "a/0.jpg" in said[0]
    alone = collate_instances([clips()[1][23]])  # whatever was found broken before
    assert equal(batches[23], alone)
    with pytest.raises(FrameError, match="Frame that cannot be read"):  # nothing is skipped that is scored
        next(iter(module.val_dataloader())).video.frames[0]


def test_without_a_clip_to_read_it_is_an_error_at_last(folder):
    for path in (folder / "JPEGImages").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="Broken"), pytest.raises(FrameError, match="None of 50 clips drawn") as error:
        first(mine(folder, skip_broken=True), 1)
    assert len(str(error.value).splitlines()) <= 8


def test_numbers_without_leading_zeros_are_in_order(folder):
    assert len(mine(folder)._clips[0][0][0].found.videos[0].frames) == 12  # 9.jpg, 10.jpg, 11.jpg


def test_without_a_dataset_it_says_how_to_get_one(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="no such folder") as error:
        mine(tmp_path / "none")
    message = str(error.value)
    assert len(message.splitlines()) <= 8
    assert message.endswith(f"  lightning_vos data demo {tmp_path / 'none'} --layout youtube_vis")
    own(tmp_path / "x", [[np.ones((2, 20, 20), bool)]])
    shutil.rmtree(tmp_path / "x/JPEGImages")
    with pytest.raises(DatasetNotFoundError, match=r"no train/JPEGImages \(data.frames\)"):
        mine(tmp_path / "x")


def test_the_other_year_and_an_empty_hold_out_are_refused(data, folder):
    with pytest.raises(ConfigError, match=r"categories of YouTube-VIS 2019, but data.year=2021.\n.*--data.year 2019"):
        data(year=2021)
    for split in ("holdout_val", "holdout_train"):
        kept = [is_held_out(name) for name in "ab"]
        if (split == "holdout_val") not in kept:
            with pytest.raises(UserError, match=f"None of the 2 videos of .* belongs to {split}") as error:
                mine(folder, val_split=split)
            assert "--data.val_split" in str(error.value)


@pytest.mark.parametrize(
    ("file", "frames"),
    [
        ("train/instances.json", "train/JPEGImages"),
        ("annotations/instances_train_sub.json", "train/JPEGImages"),
        ("train.json", "JPEGImages"),
        ("ytvis_2019/train.json", "ytvis_2019/train/JPEGImages"),
    ],
)
def test_every_published_layout_is_found(folder, tmp_path_factory, file, frames):
    root = tmp_path_factory.mktemp("layout")
    for source, target in (("train.json", file), ("JPEGImages", frames)):
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / source, root / target)
    assert len(mine(root).val_dataloader()) == 2
    stated = mine(root.parent, train_file=root / file, frames=root / frames)
    assert len(stated.val_dataloader()) == 2


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real samples: {REAL} does not exist")
def test_real_videos():
    module = YouTubeVIS(
        REAL / "ytvis_2019",
        frames=REAL / "DAVIS/JPEGImages/480p",
        train_split="train",
        val_split="train",
        workers=0,
        coco=COCOMixture(REAL / "coco", 0.5, split="val2017"),
    )
    module.setup("fit")
    module.setup("test")
    names = {1: "person", 6: "sedan", 13: "duck", 21: "motorbike"}
    labels = set()
    for batch in first(module, 3):
        assert batch.frames.shape[:3] == (2, 5, 3)
        for (height, width), found in zip(batch.sizes.tolist(), batch.instances, strict=True):
            assert min(height, width) <= 512
            assert max(height, width) <= 768
            labels |= set(found.labels.tolist())
    assert labels <= {category - 1 for category in names}
    assert {0} < labels
    for loader, public in ((module.val_dataloader(), True), (module.test_dataloader(), False)):
        items = list(loader)
        assert [item.video.name for item in items] == ["blackswan", "car-shadow", "motocross-jump"]
        assert [len(item.video.frames) for item in items] == [10, 8, 8]
        assert items[0].video.frames[9].shape == (3, 480, 854)
        assert all((item.truth is not None) == public for item in items)


def test_clips_of_other_sizes_are_padded_to_the_largest():
    items = []
    for height, width in ((40, 70), (64, 33)):
        masks = torch.ones(1, 2, height, width, dtype=torch.bool)
        found = Instances(torch.zeros(1).long(), torch.ones(1, 2, 4), masks, torch.ones(1, 2, dtype=torch.bool))
        items.append((np.full((2, height, width, 3), 255, np.uint8), found))
    batch = collate_instances(items)
    assert batch.frames.shape == (2, 2, 3, 64, 96)
    assert batch.sizes.tolist() == [[40, 70], [64, 33]]
    assert [int(found.masks[0, 0].sum()) for found in batch.instances] == [40 * 70, 64 * 33]
    assert [float(frames[0].eq(1).sum()) for frames in batch.frames] == [3 * 40 * 70, 3 * 64 * 33]
