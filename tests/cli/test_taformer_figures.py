"""`report features` and `report box-queries`: what is drawn of random networks, which show nothing by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.testing import assert_close

from lightning_vos.errors import ConfigError
from lightning_vos.figures import taformer
from lightning_vos.figures.taformer import Model, embedded_queries
from lightning_vos.io import plots
from lightning_vos.io.frames import read_frame, to_tensor
from lightning_vos.io.plots import EmbeddedQueries, FeatureMaps
from lightning_vos.models.taformer.encoder import EncoderSettings
from lightning_vos.models.taformer.inference import Found, InferenceSettings, shown
from lightning_vos.models.taformer.network import TAFormerNetwork
from lightning_vos.structures import InstanceResult

SETTINGS = {"classes": 4, "queries": 5, "channels": 64, "layers": 1, "feed": 32}
LENGTH, SIZE = 5, (33, 41)
SEEN = (32, 39)


def refused(finished: Any, *parts: str) -> None:
    assert finished.status == 2, finished.err
    message = finished.err[finished.err.index("error: ") :]
    assert len(message.splitlines()) <= 8
    assert "Traceback" not in finished.err
    assert all(part in message for part in parts), message


def write_weights(path: Path, seed: int) -> TAFormerNetwork:
    """The weights of a small TAFormer, random, whose features have a mean other than 0 and whose masks are full."""
    torch.manual_seed(seed)
    backbone = {"name": "test_resnet", "strides": [8, 16, 32], "frozen_norms": False, "frozen_stages": 0}
    network = TAFormerNetwork(tiny.backbone(strides=(8, 16, 32)), **SETTINGS, encoder=EncoderSettings(window=1)).eval()
    for name, parameter in network.transformer.encoder.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter)
    network.filter_head[-2].bias.data[-1] = 100  # what each mask adds at last
    arguments = {
        "backbone": {"class_path": "lightning_vos.backbones.Backbone", "init_args": backbone},
        "encoder": {"window": 1},
        **SETTINGS,
    }
    class_path = "lightning_vos.models.taformer.network.TAFormerNetwork"
    init_args = {
        "network": {"class_path": class_path, "init_args": arguments},
        "inference": {"short_side": 32, "window": 3, "overlap": 1},
    }
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    model = {"class_path": "lightning_vos.TAFormer", "init_args": init_args}
    torch.save({"state_dict": state, "model": model, "pytorch-lightning_version": "2.6"}, path)
    return network


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[TAFormerNetwork]:
    """The networks of a.ckpt and b.ckpt in a working directory that holds a video, too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "video").mkdir()
    for number, frame in enumerate(tiny.frames(LENGTH, *SIZE)):
        pixels = (frame.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "video" / f"{number:05}.png")
    return [write_weights(tmp_path / f"{name}.ckpt", seed) for seed, name in enumerate("ab")]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is drawn, as it is drawn."""
    calls: list[Any] = []
    for name in ("feature_maps", "query_points"):
        draw = getattr(plots, name)

        def recorded(*of_figure: Any, draw: Any = draw) -> Any:
            calls.append(of_figure)
            return draw(*of_figure)

        monkeypatch.setattr(plots, name, recorded)
    return calls


WEIGHTS = ("--weights", "SeqFormer=a.ckpt", "--weights", "TAFormer=b.ckpt", "--device", "cpu")


# --- features


@torch.no_grad()
def test_features_are_the_mean_over_channels(command, networks, drawn):
    finished = command("report", "features", "video", *WEIGHTS, "--columns", "3", "--output", "maps.png")
    assert finished.status == 0, finished.err
    assert Image.open("maps.png").format == "PNG"
    ((frames, rows),) = drawn
    assert list(frames) == [0, 2, 4]
    clip = torch.stack([shown(to_tensor(read_frame(path)), 32) for path in sorted(Path("video").iterdir())])
    assert all(np.array_equal(frames[number], clip[number].permute(1, 2, 0)) for number in frames)
    assert [row.label for row in rows] == ["SeqFormer", "TAFormer"]
    for row, network in zip(rows, networks, strict=True):
        maps = network._maps(clip[None] / 255)
        padding = [torch.zeros(1, *level.shape[3:], dtype=torch.bool) for level in maps]
        means = network.transformer(maps, padding).memory[0][0].mean(dim=1)
        assert row.maps.shape == means.shape == (LENGTH, 4, 5)
        assert_close(torch.from_numpy(row.maps), (means - means.min()) / (means.max() - means.min()))
        assert row.covered == (4 * 8 / SEEN[0], 5 * 8 / SEEN[1])


def test_the_first_frames_alone(command, networks, drawn):
    for kind in ("features", "box-queries"):
        words = ("--weights", "a=a.ckpt", "--device", "cpu", "--frames", "2", "--output", "out/figure.svg")
        finished = command("report", kind, "video", *words)
        assert finished.status == 0, finished.err
        assert Path("out/figure.svg").read_text().startswith("<?xml")
    (frames, (row,)), ((panel,),) = drawn
    assert list(frames) == [0, 1]
    assert row.maps.shape == (2, 4, 5)
    assert panel.points.shape == (2, 2, 2)


def test_rows_lie_below_frames():
    frames = {3: np.zeros((30, 50, 3), np.uint8), 7: np.full((30, 50, 3), 9, np.uint8)}
    values = np.linspace(0, 1, 8 * 4 * 7, dtype=np.float32).reshape(8, 4, 7)
    rows = [FeatureMaps("a", values, (32 / 30, 56 / 50)), FeatureMaps("b", values[:, :2, :3], (1.0, 1.0))]
    axes = np.array(plots.feature_maps(frames, rows).axes).reshape(3, 2)
    assert [axis.get_title() for axis in axes[0]] == ["frame 3", "frame 7"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["frame", "a", "b"]
    for of_row, expected, extent in ((axes[1], values, [0, 56, 32, 0]), (axes[2], rows[1].maps, [0, 50, 30, 0])):
        for axis, number in zip(of_row, frames, strict=True):
            (image,) = axis.images
            assert np.array_equal(image.get_array(), expected[number])
            assert image.get_extent() == pytest.approx(extent)
            assert image.get_clim() == (0, 1)
    assert all((axis.get_xlim(), axis.get_ylim()) == ((0, 50), (30, 0)) for axis in axes.flat)


# --- box queries


def test_box_queries_in_the_plane(command, networks, drawn):
    words = ("--weights", "SeqFormer=a.ckpt", "--weights", "again=a.ckpt", "--device", "cpu")
    finished = command("report", "box-queries", "video", *words, "--output", "points.png")
    assert finished.status == 0, finished.err
    assert Image.open("points.png").format == "PNG"
    (((one, again),),) = drawn
    assert (one.label, again.label) == ("SeqFormer", "again")
    assert one.points.shape == (2, LENGTH, 2)  # random networks are sure of nothing: the two best
    assert one.scores == sorted(one.scores, reverse=True)
    assert np.array_equal(one.points, again.points)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([0.9, 0.5, 0.31, 0.29], [0.9, 0.5, 0.31]),
        ([0.2, 0.9, 0.1], [0.9, 0.2]),
        ([0.1, 0.2], [0.2, 0.1]),
        ([0.3 + n / 100 for n in range(12)], [0.3 + n / 100 for n in range(11, 1, -1)]),
    ],
)
def test_which_instances_are_drawn(monkeypatch, scores, chosen):
    """Of each several categories were said; those of one instance lie together."""
    results = [InstanceResult(n, k, score / k, ()) for n, score in enumerate(scores) for k in (1, 2)]
    noise = torch.randn(len(scores), 6, 16, generator=torch.Generator().manual_seed(0))
    queries = {n: 20 * torch.eye(16)[n] + noise[n] for n in range(len(scores))}
    asked = []

    def find(network, frames, size, categories, settings):
        asked.append((list(frames), categories))
        return Found(results, queries, 6, 1.0)

    monkeypatch.setattr(taformer, "find_instances", find)
    network = type("Network", (), {"first_class": 1, "classes": 4})
    video = type("Video", (list,), {"size": SIZE})(range(9))
    panel = embedded_queries(Model("a", network, InferenceSettings()), video, 6)
    assert asked == [([0, 1, 2, 3, 4, 5], {1: 1, 2: 2, 3: 3})]
    assert panel.scores == chosen
    assert panel.points.shape == (len(chosen), 6, 2)
    flat = panel.points.reshape(-1, 2)
    distances = np.linalg.norm(flat[:, None] - flat, axis=2) + np.diag([np.inf] * len(flat))
    assert np.array_equal(distances.argmin(axis=1) // 6, np.arange(len(flat)) // 6)


def test_one_instance_cannot_be_compared(monkeypatch):
    one = Found([InstanceResult(0, 1, 0.9, ())], {0: torch.zeros(6, 4)}, 6, 1.0)
    monkeypatch.setattr(taformer, "find_instances", lambda *_: one)
    network = type("Network", (), {"first_class": 1, "classes": 4})
    video = type("Video", (list,), {"size": SIZE})(range(9))
    with pytest.raises(ConfigError, match=r"a finds too few instances .*: 1, expected two"):
        embedded_queries(Model("a", network, InferenceSettings()), video, None)


def test_panels_have_a_colour_for_each_instance():
    points = np.arange(3 * 4 * 2, dtype=np.float32).reshape(3, 4, 2)
    panels = [EmbeddedQueries("a", points, [0.9, 0.5, 0.4]), EmbeddedQueries("b", points[:2], [0.2, 0.1])]
    for axis, panel in zip(plots.query_points(panels).axes, panels, strict=True):
        assert axis.get_title() == panel.label
        assert [text.get_text() for text in axis.get_legend().get_texts()] == [f"{score:.2f}" for score in panel.scores]
        assert np.array_equal([group.get_offsets() for group in axis.collections], panel.points)
        assert len({tuple(group.get_facecolor()[0]) for group in axis.collections}) == len(panel.scores)


def test_without_scikit_learn(command, networks, monkeypatch):
    monkeypatch.setattr(taformer, "find_spec", lambda name: None)
    finished = command("report", "box-queries", "nowhere", *WEIGHTS, "--output", "points.png")
    refused(finished, "scikit-learn, which is not installed", "pip install 'lightning-vos[figures]'")


# --- what cannot be drawn


@pytest.mark.parametrize("kind", ["features", "box-queries"])
def test_mistakes_are_told(command, networks, kind):
    following = tiny.network(layers=1)
    state = {f"network.{name}": value for name, value in following.state_dict().items()}
    backbone = {"name": "test_resnet", "strides": [2, 4, 8], "frozen_norms": False, "frozen_stages": 0}
    arguments = {
        "backbone": {"class_path": "lightning_vos.backbones.Backbone", "init_args": backbone},
        **{"channels": 32, "layers": 1, "window": 5},
    }
    network = {"class_path": "lightning_vos.models.mavos.network.MAVOSNetwork", "init_args": arguments}
    model = {"class_path": "lightning_vos.MAVOS", "init_args": {"network": network}}
    torch.save({"state_dict": state, "model": model, "pytorch-lightning_version": "2.6"}, "m.ckpt")

    def draw(*words: str, video: str = "video", to: str = "a.png") -> Any:
        return command("report", kind, video, *words, "--output", to, "--device", "cpu")

    refused(draw(), f"report {kind} needs weights", "--weights NAME=FILE")
    refused(draw("--weights", "a.ckpt"), "--weights a.ckpt is no NAME=FILE", "taformer_r50")
    refused(draw("--weights", "a="), "--weights a= is no NAME=FILE")
    twice = draw("--weights", "a=a.ckpt", "--weights", "a=b.ckpt")
    refused(twice, "Two networks are called a,", "--weights NAME=FILE")
    refused(draw("--weights", "a=a.ckpt", "--weights", "m=m.ckpt"), "m.ckpt holds a MAVOSNetwork", "TAFormer or SeqF")
    refused(draw("--weights", "a=none.ckpt"), "none.ckpt")
    known = ("--weights", "a=a.ckpt")
    refused(draw(*known, video="nowhere"), "There is no video", "nowhere")
    refused(draw(*known, "--frames", "0"), "--frames 0 shows nothing")
    refused(draw(*known, to="a.txt"), "a.txt is no name of a picture")
    if kind == "features":
        refused(draw(*known, "--columns", "0"), "--columns 0 draws nothing")
    assert not Path("a.png").exists()


@pytest.mark.parametrize("kind", ["features", "box-queries"])
def test_out_of_memory_says_what_to_do(command, networks, kind, monkeypatch):
    def large(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(TAFormerNetwork, "forward", large)
    finished = command("report", kind, "video", *WEIGHTS, "--output", "a.png")
    refused(finished, "Out of memory: SeqFormer sees all frames at once", "--frames 18")
    assert not Path("a.png").exists()
