"""The loaders under a trainer: endless and resumable to train, exact to score."""

import logging
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from datamodules import VideoFolder
from datamodules.samplers import ClipSampler
from datamodules.transforms import ClipTransform
from lightning_vos.structures import Clip, ScoredVideo


class Recorder(LightningModule):
    """Keeps what the loaders give."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.clips: list[Clip] = []
        self.videos: list[ScoredVideo] = []

    def training_step(self, batch, batch_idx):
        self.clips.append(batch)
        return self.layer(batch.frames.mean().reshape(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.videos.append(batch)

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def data(tmp_path, write_video, moving):
    def make(workers=0):
        return VideoFolder(
            tmp_path,
            batch_size=2,
            workers=workers,
            sampler=ClipSampler(length=3, max_gap=2),
            transform=ClipTransform(crop=32, short_side=40),
        )

    for name in "abc":
        write_video(tmp_path / "JPEGImages" / name, tmp_path / "Annotations" / name, moving(6, 2), 6)
    return make


@pytest.fixture
def trainer(tmp_path):
    def make(**options):
        return Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
            **options,
        )

    return make


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec|treespec).*")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_draws_what_an_uninterrupted_one_draws(data, trainer, tmp_path, workers):
    whole, first, second = Recorder(), Recorder(), Recorder()
    steps = {"accumulate_grad_batches": 2, "check_val_every_n_epoch": None, "limit_val_batches": 0}
    trainer(max_steps=4, **steps).fit(whole, datamodule=data(workers))
    stopped = trainer(max_steps=1, **steps)
    stopped.fit(first, datamodule=data(workers))
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    trainer(max_steps=4, **steps).fit(second, datamodule=data(workers), ckpt_path=tmp_path / "last.ckpt")
    assert (len(whole.clips), len(first.clips), len(second.clips)) == (8, 2, 6)
    for clip, again in zip(whole.clips, first.clips + second.clips, strict=True):
        assert torch.equal(clip.frames, again.frames)
        assert torch.equal(clip.masks, again.masks)
        assert clip.objects.shape == (2,)


def test_a_shortened_epoch_does_not_draw_the_same_again(data, trainer):
    module = Recorder()
    trainer(max_epochs=2, limit_train_batches=2, limit_val_batches=0).fit(module, datamodule=data())
    assert len(module.clips) == 4
    assert len({clip.frames.sum().item() for clip in module.clips}) == 4


def test_the_seed_of_the_run_is_the_seed_of_its_clips(data, monkeypatch):
    def clip(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        module = data()
        module.setup("fit")
        return next(iter(module.train_dataloader())).frames

    assert torch.equal(clip("1"), clip("1"))
    assert not torch.equal(clip("1"), clip("2"))


def test_whole_videos_are_validated_tested_and_predicted_and_their_frames_stay_on_disk(data, trainer, monkeypatch):
    read = []
    monkeypatch.setattr("lightning_vos.io.frames.read_frame", read.append)
    module, videos = Recorder(), data()
    run = trainer()
    run.validate(module, datamodule=videos)
    run.test(module, datamodule=videos)
    run.predict(module, datamodule=videos)
    assert [(item.number, item.video.name) for item in module.videos] == [
        (0, "c"),
        *(2 * [(0, "a"), (1, "b"), (2, "c")]),
    ]
    assert all(isinstance(item, ScoredVideo) and item.truth is not None for item in module.videos)
    assert read == []


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_rank_has_a_video_and_none_is_lost(data, world):
    shares = []
    for rank in range(world):
        videos = data()
        videos.setup("test")
        videos.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        shares.append([item.number for item in videos.test_dataloader()])
    assert {index for share in shares for index in share} == {0, 1, 2}
    assert all(shares)
    if world <= 3:
        assert sum(map(len, shares)) == 3


def test_the_ranks_draw_different_clips(data):
    clips = []
    for rank in range(2):
        videos = data()
        videos.setup("fit")
        videos.trainer = SimpleNamespace(global_rank=rank, world_size=2, global_step=3, accumulate_grad_batches=1)
        clips.append(next(iter(videos.train_dataloader())).frames)
    assert not torch.equal(clips[0], clips[1])


def test_it_says_once_what_it_found(data, caplog, tmp_path):
    videos = data()
    with caplog.at_level(logging.INFO):
        videos.setup("fit")
        videos.setup("validate")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"VideoFolder train: 2 sequences, 12 frames in {tmp_path}",
        f"VideoFolder val: 1 sequence, 6 frames in {tmp_path}",
    ]
