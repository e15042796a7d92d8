from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from PIL import Image

from lightning_vos.commands.report import _BankReader, _Thinned
from lightning_vos.errors import ConfigError
from lightning_vos.io import plots
from lightning_vos.io.frames import read_frame, to_tensor
from lightning_vos.io.masks import VOC_PALETTE, read_mask, write_mask
from lightning_vos.io.plots import Bubble, MemoryColumn, trade_off
from lightning_vos.published import load_network
from lightning_vos.vos.track import Tracker

TINY = Path(__file__).parents[1] / "end_to_end/tiny.yaml"


def refused(finished: Any, *parts: str) -> None:
    assert finished.status == 2, finished.err
    message = finished.err[finished.err.index("error: ") :]
    assert len(message.splitlines()) <= 8
    assert "Traceback" not in finished.err
    assert all(part in message for part in parts), message


def write_run(folder: Path, score: float | str, speed: float, memory: float) -> Path:
    folder.mkdir(parents=True)
    text = f"epoch,step,test/FPS,test/J&F,test/peak_memory_gb,train/loss\n0,8,,,,0.5\n0,9,{speed},{score},{memory},\n"
    (folder / "metrics.csv").write_text(text)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a video of 8 frames, its first mask and the weights of an untrained network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "video").mkdir()
    for number, frame in enumerate(tiny.frames(8)):
        pixels = (frame.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "video" / f"{number:05}.png")
    write_mask(tmp_path / "mask.png", tiny.squares(3, 8), VOC_PALETTE)
    return tmp_path


@pytest.fixture
def weights(workplace: Path) -> Path:
    settings = yaml.safe_load(TINY.read_text())["model"]
    network = tiny.network(layers=1)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "model": settings, "pytorch-lightning_version": "2.6"}, workplace / "w.ckpt")
    return workplace / "w.ckpt"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[MemoryColumn]]]:
    """What is drawn, as it is drawn."""
    calls: list[tuple[str, list[MemoryColumn]]] = []
    draw = plots.memory_maps

    def recorded(title: str, columns: list[MemoryColumn]) -> Any:
        calls.append((title, columns))
        return draw(title, columns)

    monkeypatch.setattr(plots, "memory_maps", recorded)
    return calls


def test_bubbles_lie_at_speed_and_score_with_the_area_of_their_memory():
    bubbles = [Bubble("a", 60.9, 38.2, 3.3), Bubble("b", 61.1, 5.0, 24.6), Bubble("c", 40.0, 9.0, 6.6)]
    (axis,) = trade_off(bubbles).axes
    points = [tuple(collection.get_offsets()[0]) for collection in axis.collections]
    assert points == [(38.2, 60.9), (5.0, 61.1), (9.0, 40.0)]
    areas = [collection.get_sizes()[0] for collection in axis.collections]
    assert np.allclose(np.array(areas) / areas[0], [1, 24.6 / 3.3, 2])
    assert [text.get_text() for text in axis.texts] == ["a, 3.30 GB", "b, 24.60 GB", "c, 6.60 GB"]


def test_runs_are_called_by_their_recipes(command, workplace):
    runs = [write_run(workplace / f"runs/{name}", 60 + n, 10, 1) for n, name in enumerate(("a/version_0", "b", "c"))]
    again = write_run(workplace / "runs/a/version_7", 80, 20, 2)
    finished = command("report", "trade-off", *map(str, runs[:2]), "--label", f"my own={runs[2]}", "--output", "a.png")
    assert finished.status == 0, finished.err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in finished.out.splitlines() if "│" in line]
    assert [row[:2] for row in rows] == [["a", "60.0"], ["b", "61.0"], ["my own", "62.0"]]
    assert Image.open("a.png").size == (1050, 675)
    finished = command("report", "trade-off", str(runs[0]), str(again), "--output", "out/b.svg")
    assert finished.status == 0, finished.err
    assert "a version_0" in finished.out
    assert "a version_7" in finished.out
    assert Path("out/b.svg").read_text().startswith("<?xml")


def test_runs_without_results_are_refused(command, workplace):
    unscored = write_run(workplace / "runs/a/version_0", "", 10, 1)
    to = ("--output", "a.png")
    refused(command("report", "trade-off", str(unscored), *to), f"{unscored} holds no results", "without test/J&F")
    refused(command("report", "trade-off", "nowhere", *to), "nowhere holds no results", "found no metrics.csv")
    refused(command("report", "trade-off", *to), "Name at least one run")
    refused(command("report", "trade-off", "--label", "a", *to), "--label a is no NAME=RUN")
    refused(command("report", "trade-off", str(unscored), "--output", "a.mp4"), "a.mp4 is no name of a picture")
    assert not Path("a.png").exists()


def test_runs_that_are_called_alike_are_refused(command, workplace):
    runs = [str(write_run(workplace / f"{place}/a/version_0", 60, 10, 1)) for place in ("here", "there")]
    to = ("--output", "a.png")
    told = ("Two runs are called a version_0", "--label NAME=RUN")
    refused(command("report", "trade-off", runs[0], f"{runs[0]}/", *to), *told)
    refused(command("report", "trade-off", *runs, *to), *told)
    refused(command("report", "trade-off", runs[0], "--label", f"a={runs[1]}", *to), "Two runs are called a,")
    assert not Path("a.png").exists()
    finished = command("report", "trade-off", runs[0], "--label", f"b={runs[1]}", *to)
    assert finished.status == 0, finished.err


@pytest.mark.parametrize("kind", ["trade-off", "dynamic-frame"])
def test_a_place_that_cannot_be_written_is_found_before_any_work(command, workplace, kind, monkeypatch):
    words = {"trade-off": ("nowhere",), "dynamic-frame": ("nowhere", "mask.png", "--weights", "w.ckpt")}[kind]
    (workplace / "file").write_text("")
    (workplace / "folder.png").mkdir()
    for place in ("file/a.png", "file/deeper/a.png"):
        finished = command("report", kind, *words, "--output", place)
        refused(finished, f"--output {place} cannot be written", f"found {workplace / 'file'}: Not a directory")
    refused(command("report", kind, *words, "--output", "folder.png"), "--output folder.png is a folder")
    before = set(workplace.rglob("*"))
    refused(command("report", kind, *words, "--output", "new/deeper/a.png"), "nowhere")
    assert set(workplace.rglob("*")) == before

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    finished = command("report", kind, *words, "--output", "new/a.png")
    refused(finished, "--output new/a.png cannot be written", f"found {workplace}: Read-only file system")


@pytest.mark.parametrize("count", [1, 2, 6])
def test_columns_are_spread_evenly_whatever_the_length(count):
    for length in (1, 2, 5, 6, 7, 40, 100, 1001):
        thinned = _Thinned(count)
        for number in range(length):
            if thinned.takes_next():
                thinned.add(number)
            assert len(thinned.items) < 2 * count
        spread = thinned.spread()
        assert len(spread) == min(count, length)
        assert spread[0] == 0
        if count > 1 and length > count:
            gaps = np.diff([*spread, length - 1])
            assert max(gaps) <= 2 * length / (count - 1)
            assert min(gaps[:-1]) >= length / (4 * count)


def test_maps_of_reference_and_dynamic_frame(command, workplace, weights, drawn):
    finished = command(
        "report", "dynamic-frame", "video", "mask.png", "--weights", "w.ckpt", "--output", "maps.png", "--device", "cpu"
    )
    assert finished.status == 0, finished.err
    ((title, columns),) = drawn
    assert title == "Identity values in the memory of layer 1"
    assert [column.frame for column in columns] == [0, 2, 4, 6]  # the recipe updates every other frame
    assert all(np.array_equal(column.reference, columns[0].reference) for column in columns)
    assert np.array_equal(columns[0].dynamic, columns[0].reference)
    assert not np.allclose(columns[1].dynamic, columns[0].dynamic)
    assert columns[0].picture.shape == (33, 33, 3)
    assert Image.open("maps.png").format == "PNG"

    tracker = Tracker(load_network(weights))
    tracker.step(to_tensor(read_frame(Path("video/00000.png"))), read_mask(Path("mask.png")))
    values = tracker.memories[0].long[0].identity[0].double().numpy()  # 5 x 5 positions
    centred = values - values.mean(axis=0)
    eigenvalues, axes = np.linalg.eigh(centred.T @ centred)
    expected = (centred @ axes[:, np.argmax(eigenvalues)]).reshape(5, 5)
    found = columns[0].reference
    assert min(abs(found - expected).max(), abs(found + expected).max()) < 1e-4
    inside = np.zeros((5, 5), dtype=bool)
    inside[0, :2] = True  # where the squares lie
    assert found[inside].mean() > found[~inside].mean()


def test_what_the_maps_show_can_be_chosen(command, workplace, weights, drawn):
    write_mask(workplace / "many.png", tiny.squares(*range(1, 12)), VOC_PALETTE)
    words = ("--weights", "w.ckpt", "--output", "maps.png", "--columns", "2", "--layer", "1", "--size", "33", "49")
    finished = command("report", "dynamic-frame", "video", "many.png", *words, "--device", "cpu")
    assert finished.status == 0, finished.err
    ((title, columns),) = drawn
    assert [column.frame for column in columns] == [0, 4]
    assert columns[0].reference.shape == (5, 7)
    assert title.endswith("; the first 10 objects")


def test_a_bank_of_more_frames_says_so(command, workplace, weights, drawn):
    content = torch.load(weights)
    network = content["model"]["init_args"]["network"]["init_args"]
    network["memory"] = "lightning_vos.models.mavos.memory.Append"
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if not k.startswith("network.policy")}
    torch.save(content, weights)
    words = ("--weights", "w.ckpt", "--output", "maps.png", "--device", "cpu")
    finished = command("report", "dynamic-frame", "video", "mask.png", *words)
    assert finished.status == 0, finished.err
    ((title, columns),) = drawn
    assert "which holds 4 frames: the newest is shown as dynamic, the oldest as reference" in title
    assert all(np.array_equal(column.reference, columns[0].reference) for column in columns)


def test_mistakes_are_told(command, workplace, weights):
    words = ("report", "dynamic-frame", "video", "mask.png", "--output", "maps.png")
    known = ("--weights", "w.ckpt", "--device", "cpu")
    refused(command(*words), "report dynamic-frame needs weights")
    refused(command(*words, *known, "--layer", "2"), "--layer 2 is none of the network's: expected 1 to 1")
    refused(command(*words, *known, "--columns", "0"), "--columns 0 draws nothing")
    refused(command(*words, *known, "--size", "0", "5"), "--size 0 5 is no size")
    refused(command(*words[:-1], "maps.txt", *known), "maps.txt is no name of a picture")
    write_mask(workplace / "nothing.png", np.zeros((33, 33), np.uint8))
    refused(command(*words[:3], "nothing.png", *words[4:], *known), "nothing.png states no object")
    assert not Path("maps.png").exists()


def test_a_memory_without_a_bank_is_refused():
    class Recurrent:
        """The memory of another method."""

    reader = _BankReader(tiny.network(), (33, 33), None)
    with pytest.raises(ConfigError, match="A Recurrent has no bank of whole frames"):
        reader.is_updated(Recurrent())
