from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules import DAVIS
from datamodules.synthetic_files import SyntheticSettings, write_davis
from datamodules.transforms import ClipTransform
from lightning_vos.benchmarks.loader import LoaderRate, measure_rate, measure_stages
from lightning_vos.errors import ConfigError
from lightning_vos.structures import Clip

TINY = Path(__file__).parents[1] / "end_to_end/tiny.yaml"


@pytest.fixture
def data(tmp_path):
    write_davis(tmp_path / "DAVIS", SyntheticSettings(train=2, val=1, frames=6, height=64, width=80))
    data = DAVIS(tmp_path, batch_size=2, transform=ClipTransform(crop=33, short_side=40, min_pixels=5))
    data.setup("fit")
    return data


@pytest.mark.parametrize("workers", [0, 1])
def test_frames_are_counted(data, workers):
    rate = measure_rate(data, workers, batches=3)
    assert (rate.workers, rate.frames) == (workers, 3 * 2 * 8)
    assert rate.seconds > 0
    assert LoaderRate(0, 30, 2.0).frames_per_second == 15


def test_shares_of_stages_are_those_of_the_whole(data):
    stages = measure_stages(data, batches=3)
    assert sum(stages.values()) == pytest.approx(1)
    assert min(stages.values()) > 0
    assert stages["augment"] > stages["read"]


def test_loaders_that_cannot_be_measured(data):
    clip = Clip(torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 2, 4, 4), torch.ones(1))
    for loader in ([clip] * 3, ["text"] * 9):
        with pytest.raises(ConfigError, match=r"fewer than 4 batches|gives str"):
            measure_rate(SimpleNamespace(workers=0, train_dataloader=lambda loader=loader: loader), 0, 3)
    assert measure_rate(SimpleNamespace(workers=0, train_dataloader=lambda: [clip] * 4), 0, 3).frames == 6
    with pytest.raises(ConfigError, match="has no `workers`"):
        measure_rate(SimpleNamespace(), 0, 3)


def test_the_table_of_a_recipe(command, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = (f"--config={TINY}", "--config=configs/data/davis2017.yaml", f"--data.root={tmp_path}")
    words = ("benchmark", "loader", *recipe, "--workers", "0", "--batches", "2")
    finished = command(*words)
    assert finished.status == 0, finished.err
    assert "frames a second" in finished.out
    assert "1.00" in finished.out
    assert "Of the time without workers: read " in finished.out
    refused = command(*words, "--batches", "0")
    assert refused.status == 2
    assert "--batches is 0" in refused.err
    assert command("benchmark", "scoring", "a", "b", "--other").status == 2


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("crop", [33, 90])
def test_clips_are_to_the_last_bit_what_stacks_give(frames, crop):
    """The transform works frame by frame, for speed; here is the same by albumentations' own stacks."""
    import random

    import albumentations

    from datamodules.transforms import MEAN_COLOUR

    def stacked(transform, images, masks, rng):
        def run(pipeline, **parts):
            pipeline.set_random_state(rng, random.Random(int(rng.integers(2**32))))
            return pipeline(**parts)

        scaled = run(transform._scale, images=images, masks=masks)
        window = [min(crop, side) for side in scaled["masks"].shape[1:]]
        cut = albumentations.Compose([albumentations.RandomCrop(*window)])
        cut.set_random_state(rng, random.Random(int(rng.integers(2**32))))
        for _ in range(5):
            clip = cut(images=scaled["images"], masks=scaled["masks"])
            if np.bincount(clip["masks"][0].ravel(), minlength=256)[1:].max() > transform.min_pixels:
                break
        colour = transform._colour
        colour.set_random_state(rng, random.Random(int(rng.integers(2**32))))
        coloured = np.stack([colour(image=frame)["image"] for frame in clip["images"]])
        pad = albumentations.PadIfNeeded(crop, crop, position="random", fill=MEAN_COLOUR, fill_mask=0)
        place = albumentations.Compose([albumentations.HorizontalFlip(p=0.5), pad])
        return run(place, images=coloured, masks=clip["masks"])

    noise = np.random.default_rng(0)
    images = noise.integers(0, 256, (frames, 60, 80, 3), np.uint8)
    masks = np.kron(noise.integers(0, 3, (frames, 6, 8)), np.ones((10, 10), int)).astype(np.uint8)
    transform = ClipTransform(crop=crop, short_side=60, min_pixels=300)
    for seed in range(6):
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        expected = stacked(transform, images, masks, theirs)
        found = transform(images, masks, ours)
        np.testing.assert_array_equal(found[0], expected["images"])
        np.testing.assert_array_equal(found[1], expected["masks"])
        assert ours.bit_generator.state == theirs.bit_generator.state
