"""`fit --config configs/mavos_r50.yaml`, with and without what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import assert_refused, checkpoint

RECIPE = ("fit", "--config", "configs/mavos_r50.yaml")


@pytest.fixture
def demo(command, workplace) -> Path:
    finished = command("data", "demo", "data", "--layout", "davis")
    assert finished.status == 0, finished.err
    assert "lightning_vos fit --config configs/mavos_r50.yaml\n" in finished.out
    return workplace


def test_without_data_it_says_how_to_get_some(command, workplace):
    finished = command(*RECIPE)
    assert_refused(
        finished,
        "DAVIS 2017 is not at data.root=data",
        "DAVIS/JPEGImages/480p/<sequence>/*.jpg",
        "DAVIS/ImageSets/2017/<split>.txt",
        "https://davischallenge.org",
        "  lightning_vos data demo data --layout davis",
    )
    assert "Start weights" not in finished.err


def test_with_data_and_no_network_it_stops_at_the_start_weights(command, demo):
    finished = command(*RECIPE)
    assert "DAVIS 2017 train: 40 sequences, 640 frames" in finished.err
    assert_refused(
        finished,
        "Start weights 'resnet50.tv_in1k' cannot be had",
        "--model.network.backbone.start_weights",
        "--model.weights FILE",
    )


@pytest.mark.slow
def test_from_random_weights_it_trains(command, demo):
    words = ("--trainer.max_steps=1", "--data.batch_size=1", "--data.workers=0", "--data.transform.crop=97")
    finished = command(*RECIPE, "--model.network.backbone.start_weights", "null", *words)
    assert finished.status == 0, finished.err
    assert checkpoint(demo / "runs/mavos_r50/version_0")["global_step"] == 1
    assert "train/loss=" in finished.out
