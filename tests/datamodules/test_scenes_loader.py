"""The DataModule of random scenes: endless and resumable to train, a written set to score."""

import json

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from datamodules import RandomScenes
from datamodules.hodor_transforms import WholeFrameTransform
from datamodules.random_scenes import SceneDataset
from datamodules.samplers import ClipSampler, CycleSampler
from datamodules.scenes import SceneSettings, render_scene
from datamodules.synthetic_files import SceneSetSettings
from datamodules.transforms import ClipTransform
from lightning_vos.benchmarks.loader import measure_rate, measure_stages
from lightning_vos.errors import ConfigError
from lightning_vos.structures import Clip, ScoredVideo

SCORED = SceneSetSettings(val=2, test=1, frames=3, height=64, width=72, scenes=SceneSettings(max_gap=2))


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

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def data(tmp_path):
    def make(workers=0, **options):
        parts = {"sampler": ClipSampler(length=3), "transform": ClipTransform(crop=64), **options}
        return RandomScenes(tmp_path, scored=SCORED, batch_size=2, workers=workers, **parts)

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
def test_a_resumed_run_draws_what_an_uninterrupted_one_draws(data, trainer, tmp_path):
    whole, first, second = Recorder(), Recorder(), Recorder()
    steps = {"check_val_every_n_epoch": None, "limit_val_batches": 0}
    trainer(max_steps=4, **steps).fit(whole, datamodule=data(workers=0))
    stopped = trainer(max_steps=1, **steps)
    stopped.fit(first, datamodule=data(workers=0))
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    trainer(max_steps=4, **steps).fit(second, datamodule=data(workers=2), ckpt_path=tmp_path / "last.ckpt")
    assert (len(whole.clips), len(first.clips), len(second.clips)) == (4, 1, 3)
    for clip, again in zip(whole.clips, first.clips + second.clips, strict=True):
        assert clip.frames.shape == (2, 3, 3, 64, 64)
        assert torch.equal(clip.frames, again.frames)
        assert torch.equal(clip.masks, again.masks)


def test_ranks_share_out_the_clips_of_a_step(data, monkeypatch):
    def clips(rank, world, batch_size):
        module = data()
        module.batch_size = batch_size
        monkeypatch.setattr(module, "_rank_and_world", lambda: (rank, world))
        batches = iter(module.train_dataloader())
        return torch.cat([next(batches).frames for _ in range(2)])

    one, zeroth, first = clips(0, 1, 4), clips(0, 2, 2), clips(1, 2, 2)
    assert torch.equal(one, torch.cat([zeroth[:2], first[:2], zeroth[2:], first[2:]]))


def test_a_clip_is_what_the_renderer_gives():
    settings = SceneSettings(max_objects=2)
    clip, scene = SceneDataset(7, 4, (64, 80), settings)[11], render_scene(7, 11, 4, 64, 80, settings)
    assert torch.equal(clip.frames, torch.from_numpy(scene.frames).permute(0, 3, 1, 2) / 255)
    assert torch.equal(clip.masks, torch.from_numpy(scene.masks).long())
    assert clip.objects == scene.masks.max()


def test_the_seed_of_the_run_is_the_seed_of_its_clips(data, monkeypatch):
    def clip(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        return next(iter(data().train_dataloader())).frames

    assert torch.equal(clip("1"), clip("1"))
    assert not torch.equal(clip("1"), clip("2"))


def test_the_recipe_says_length_size_and_the_most_objects(data):
    clip = next(iter(data(sampler=CycleSampler(length=4), merge=0.0, size=(64, 96), max_objects=1).train_dataloader()))
    assert clip.frames.shape == (2, 4, 3, 64, 96)
    assert (clip.masks[:, 1:] == 255).all()  # withheld
    assert (clip.objects == 1).all()
    assert clip.masks[:, 0].max() == 1


@pytest.mark.parametrize("options", [{"transform": WholeFrameTransform()}, {"transform": ClipTransform(crop=33)}])
def test_a_recipe_whose_clips_have_no_size_is_scored_but_not_trained(data, trainer, options):
    scenes = data(merge=0.0, **options)
    trainer().validate(Recorder(), datamodule=scenes)
    with pytest.raises(ConfigError, match=r"data\.size is None, and the crop of \w+ is (None|33)\."):
        scenes.setup("fit")


def test_a_written_set_is_scored(data, trainer, tmp_path):
    module, scenes = Recorder(), data()
    run = trainer()
    run.validate(module, datamodule=scenes)
    run.test(module, datamodule=scenes)
    names = ["scene-val-000", "scene-val-001", "scene-test-000"]
    assert [item.video.name for item in module.videos] == names
    folder = tmp_path / "DAVIS"
    assert json.loads((folder / "tags.json").read_text()).keys() == set(names)
    first = module.videos[0]
    assert (len(first.video.frames), first.video.size) == (3, (64, 72))
    assert first.truth is not None
    scene = render_scene(0, 2**31, 3, 64, 72, SCORED.scenes)
    assert np.array_equal(first.truth.read(2), scene.masks[2])
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    data().prepare_data()
    assert written == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ConfigError, match=r"other settings.*\nFound: .*seed=0"):
        RandomScenes(tmp_path, scored=SceneSetSettings(**{**SCORED.__dict__, "seed": 1})).prepare_data()


def test_what_is_rendered_cannot_be_listed_to_train_on(data):
    with pytest.raises(ConfigError, match="no sequences on disk"):
        data().find("train")


@pytest.mark.parametrize("wrong", [{"val": 0}, {"test": 0}, {"frames": 2}, {"seed": -1}, {"width": 60}])
def test_sets_that_cannot_be_rendered_are_refused(wrong):
    with pytest.raises(ConfigError, match="can be rendered"):
        SceneSetSettings(**wrong)


def test_the_loader_is_measured(data):
    scenes = data()
    assert measure_rate(scenes, workers=0, batches=2).frames == 2 * 2 * 3
    stages = measure_stages(scenes, batches=2)
    assert sum(stages.values()) == pytest.approx(1)
    assert stages["render"] > 0.5
    assert "read" not in stages
