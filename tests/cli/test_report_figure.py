"""The figure of chosen frames: what is drawn where, what is framed, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from PIL import Image
from written_runs import write_classified, write_followed, write_found

from lightning_vos.figures.qualitative import FigureRow, qualitative_figure
from lightning_vos.figures.scenes import Scene, object_ious, painted_labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_followed(tmp_path_factory.mktemp("runs"), {"near": 1, "far": 30})
    write_found(folder / "found", 1)
    write_classified(folder / "classified", ("background", "1", "2", "3", "4"))
    return folder


def refused(finished: Any, *parts: str) -> None:
    assert finished.status == 2, finished.err
    message = finished.err[finished.err.index("error: ") :]
    assert len(message.splitlines()) <= 8
    assert all(part in message for part in parts), message


def square(top: int, left: int, label: int = 1, size: int = 10) -> np.ndarray:
    labels = np.zeros((40, 60), np.uint8)
    labels[top : top + size, left : left + size] = label
    return labels


def test_failures_are_framed_where_the_object_truly_is():
    truth = square(10, 20) | square(25, 45, 2)
    half = square(10, 20)  # the second object is lost
    moved = square(10, 26) | square(25, 45, 2)  # IoU of the first: 40 / 160
    pixels = np.full((40, 60, 3), 90, np.uint8)
    scenes = {0: Scene(pixels, truth, [truth, truth]), 7: Scene(pixels, truth, [half, moved])}
    assert object_ious(scenes[7], moved) == {1: 0.25, 2: 1.0}
    figure = qualitative_figure(scenes, [FigureRow("ours", 25.04), FigureRow("theirs version_1", None)])
    FigureCanvasAgg(figure).draw()
    grid = np.array(figure.axes).reshape(2, 3)  # by frame, then by row
    assert [axis.get_title() for axis in grid[:, 0]] == ["frame 0", "frame 7"]
    assert [axis.get_ylabel() for axis in grid[0]] == ["truth", "ours\n25.0 FPS", "theirs\nversion_1"]
    framed = [
        [patch.get_bbox().extents for patch in axis.patches if patch.get_edgecolor()[:3] == (1, 0, 0)]
        for axis in grid.flat
    ]
    assert [len(boxes) for boxes in framed] == [0, 0, 0, 0, 1, 1]
    assert np.allclose(framed[4], [45 - 1.6, 25 - 1.6, 54 + 1.6, 34 + 1.6])
    assert np.allclose(framed[5], [20 - 1.6, 10 - 1.6, 29 + 1.6, 19 + 1.6])
    shown = grid[1, 2].images[0].get_array()
    assert np.array_equal(shown, painted_labels(scenes[7], moved))
    lefts = [axis.get_position().x0 for axis in grid[:, 1]]
    rendered = grid[0, 1].yaxis.label.get_window_extent()
    assert rendered.x0 >= 0  # a name is not cut off
    assert lefts[0] < lefts[1]


def test_a_run_without_a_mask_says_so():
    truth = square(0, 0)
    figure = qualitative_figure({3: Scene(np.zeros((40, 60, 3), np.uint8), truth, [None])}, [FigureRow("x", 1.0)])
    assert [text.get_text() for text in figure.axes[1].texts] == ["no mask"]
    assert not any(isinstance(patch, Rectangle) for patch in figure.axes[1].patches)


def test_a_frame_stays_inside_the_picture():
    scene = Scene(np.zeros((40, 60, 3), np.uint8), np.ones((40, 60), np.uint8), [np.zeros((40, 60), np.uint8)])
    figure = qualitative_figure({0: scene}, [FigureRow("x", None)])
    for patch in figure.axes[1].patches:
        left, top, right, bottom = patch.get_bbox().extents
        assert 0 < left < right < 59
        assert 0 < top < bottom < 39


def test_png_and_pdf_of_two_runs(command, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("report", "figure", str(folder / "near"), str(folder / "far"), "--sequence", "synthetic-val-001")
    finished = command(*words, "--frames", "0,3,5")
    assert finished.status == 0, finished.err
    assert "The figure is figure.png" in finished.out
    picture = np.asarray(Image.open("figure.png").convert("RGB")).astype(int)
    assert picture.shape[1] > picture.shape[0] > 300
    finished = command(*words, "--frames", "3", "-o", "out/figure.pdf")
    assert finished.status == 0, finished.err
    assert Path("out/figure.pdf").read_bytes().startswith(b"%PDF")


def test_instances_are_drawn_as_well(command, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = max(path.name for path in (folder / "vis/youtube_vis_2019/train/JPEGImages").iterdir())
    words = ("report", "figure", str(folder / "found"), "--frames", "1,2", "--sequence")
    refused(command(*words, "nothing"), "--sequence nothing is none of the 3 that were tested", name)
    finished = command(*words, name)
    assert finished.status == 0, finished.err
    assert Image.open("figure.png").format == "PNG"


def test_mistakes_are_told(command, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = str(folder / "near")
    words = ("report", "figure", run, "--sequence", "synthetic-val-000", "--frames")
    refused(command(*words, "0,6"), "--frames 6 is none of synthetic-val-000: expected 0 to 5")
    refused(command(*words, "1,-2"), "--frames 1,-2 is no list of frames", "such as 0,20,40")
    refused(command(*words, "1", "-o", "a.html"), "a.html is no name of a picture")
    refused(command("report", "figure", str(tmp_path), *words[3:], "1"), "holds no results of a run")
    refused(command("report", "figure", str(folder / "classified"), *words[3:], "1"), "SyntheticImages has no videos")
    found = command("report", "figure", run, str(folder / "found"), *words[3:], "1")
    refused(found, f"{folder / 'found'} holds no masks of synthetic-val-000 in these frames")
    assert command("report", "figure", run).status == 2
    assert list(tmp_path.iterdir()) == []
