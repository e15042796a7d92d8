"""The weights that come with the package: the right file, small, and of use."""

from pathlib import Path

import numpy as np
import pytest
import torch

import lightning_vos
from datamodules.scenes import SceneSettings, render_scene
from lightning_vos import load_pretrained, pretrained, track
from lightning_vos.errors import CheckpointError


def test_they_are_small_and_ready_to_use():
    network = load_pretrained()
    assert not any(module.training for module in network.modules())
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(2.24e6, rel=0.01)
    assert pretrained.WEIGHTS.stat().st_size <= 20e6
    assert "load_pretrained" in dir(lightning_vos)


def test_their_card_names_them():
    card = Path("docs/small_model.md").read_text(encoding="utf-8")
    assert f"`{pretrained.SHA256}`" in card
    assert f", {pretrained.WEIGHTS.stat().st_size / 1e6:.1f} MB |" in card


@pytest.mark.parametrize("content", [b"something else", None])
def test_another_file_is_refused(monkeypatch, tmp_path, content):
    changed = tmp_path / "small.ckpt"
    if content is not None:
        changed.write_bytes(pretrained.WEIGHTS.read_bytes() + content)
    monkeypatch.setattr(pretrained, "WEIGHTS", changed)
    with pytest.raises(CheckpointError, match=rf"small\.ckpt is not the file.*\n.*SHA-256 {pretrained.SHA256}"):
        load_pretrained()


def test_they_follow_what_moves():
    settings = SceneSettings(max_gap=2, leaving=0.0, occluder=0.0)
    network = load_pretrained()
    followed, repeated = [], []
    for index in range(3):  # of a seed that training does not have
        clip = render_scene(1, index, 12, 96, 160, settings)
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float() / 255
        *_, final = track(network, frames, prompts={0: clip.masks[0]})
        for found, overlaps in ((final.labels.numpy(), followed), (clip.masks[0], repeated)):
            for number in range(1, int(clip.masks[0].max()) + 1):
                here, true = found == number, clip.masks[-1] == number
                overlaps.append((here & true).sum() / max((here | true).sum(), 1))
    assert 1 - np.mean(followed) < (1 - np.mean(repeated)) / 2, (np.mean(followed), np.mean(repeated))
