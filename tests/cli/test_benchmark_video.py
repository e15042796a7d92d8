from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from benchmarking import RECIPE, cells_of, measure_here, refused, rows_of
from PIL import Image

import lightning_vos
from lightning_vos.benchmarks import process
from lightning_vos.benchmarks.video import Call, Curves, constancy, cost_of, curves, measure_video
from lightning_vos.benchmarks.workload import MIB, Setting
from lightning_vos.commands.benchmark import video
from lightning_vos.commands.benchmark.recipes import build_module
from lightning_vos.errors import ConfigError
from lightning_vos.models.mavos.memory import Append, MemoryRules, ReferenceOnly
from lightning_vos.models.taformer.encoder import EncoderSettings
from lightning_vos.models.taformer.inference import InferenceSettings
from lightning_vos.models.taformer.network import TAFormerNetwork
from lightning_vos.models.token_masking.network import TokenMaskingNetwork
from lightning_vos.models.token_masking.pseudo_masks import PseudoMaskSettings
from lightning_vos.models.token_masking.segmentation_networks import UNet
from lightning_vos.models.token_masking.vit import ViTSettings
from lightning_vos.vos.track import Tracker

SMALL = ("--size", "33x41", "--device", "cpu")
# of a frame in the bank of tiny.network on 33 x 33 pixels: 5 x 5 tokens, 2 layers, C / 2 + 2 C + 2 C floats
FRAME_BYTES = 25 * 2 * (16 + 64 + 64) * 4


def setting(**changes: Any) -> Setting:
    return Setting(**{"size": (33, 33), "objects": 2, "device": "cpu", "threads": 1, "precision": "32"} | changes)


def mavos(*parts: Any, **settings: Any) -> Any:
    return lightning_vos.MAVOS(tiny.network(*parts, **settings))


def taformer(**inference: Any) -> Any:
    torch.manual_seed(0)
    small = {"classes": 4, "queries": 5, "channels": 64, "layers": 1, "feed": 32, "encoder": EncoderSettings(window=1)}
    network = TAFormerNetwork(tiny.backbone(strides=(8, 16, 32)), **small)
    return lightning_vos.TAFormer(network, inference=InferenceSettings(short_side=32, **inference))


def token_masking(**pseudo_masks: Any) -> Any:
    network = TokenMaskingNetwork(3, ViTSettings(width=32, depth=2, heads=4, patch=8, bands=4, grid=4))
    return lightning_vos.TokenMasking(network, pseudo_masks=PseudoMaskSettings(**pseudo_masks))


def segmentation() -> Any:
    return lightning_vos.SegmentationFromMasks(UNet(3, 5, (8, 8)))


@cache
def _built(recipe: str) -> Any:
    return build_module(recipe)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory; a recipe is read once for all tests and all processes."""
    measure_here(tmp_path, monkeypatch)
    monkeypatch.setattr(video, "build_module", lambda recipe: deepcopy(_built(recipe)))
    return tmp_path


def test_every_frame_is_measured():
    for module in (mavos(), lightning_vos.HODOR(tiny.hodor()), lightning_vos.QMVOS(tiny.qmvos())):
        calls = list(measure_video(module, setting(size=(32, 40)), 3))
        assert [(call.frame, call.frames) for call in calls] == [(0, 1), (1, 1), (2, 1)]
        assert all(call.seconds > 0 and call.bank_bytes > 0 and call.bank_frames > 0 for call in calls)


@pytest.mark.parametrize(
    ("memory", "held"), [(None, [1, 1, 2, 2, 2, 2, 2, 2]), (Append, [1, 1, 2, 2, 3, 3, 4, 4]), (ReferenceOnly, [1] * 8)]
)
def test_every_frame_tells_the_size_of_the_bank(memory, held):
    parts = () if memory is None else (memory,)
    calls = list(measure_video(mavos(*parts, test_rules=MemoryRules(2)), setting(), 8))
    assert [call.bank_frames for call in calls] == held
    assert [call.bank_bytes for call in calls] == [FRAME_BYTES * frames for frames in held]


def test_more_objects_than_a_memory_holds_are_counted_in_all_memories():
    (call,) = measure_video(mavos(), setting(objects=11), 1)
    assert (call.bank_frames, call.bank_bytes) == (1, 2 * FRAME_BYTES)


def test_half_precision_halves_the_bank():
    (call,) = measure_video(mavos(), setting(precision="bf16"), 1)
    assert FRAME_BYTES / 2 <= call.bank_bytes < FRAME_BYTES


def test_results_are_dropped_as_they_come(monkeypatch):
    masks = []
    step = Tracker.step

    def recorded(tracker: Tracker, *arguments: Any) -> Any:
        gc.collect()
        assert all(mask() is None for mask in masks)
        prediction = step(tracker, *arguments)
        masks.append(weakref.ref(prediction.probabilities))
        return prediction

    monkeypatch.setattr(Tracker, "step", recorded)
    assert len(list(measure_video(mavos(), setting(), 3))) == len(masks) == 3


def test_memory_is_that_of_the_method():
    """Not of Python and its libraries, which take hundreds of MiB."""
    module = mavos()
    weights = sum(value.nbytes for value in module.state_dict().values())
    calls = list(measure_video(module, setting(), 3))
    assert all(weights / 2 < call.peak_bytes < weights + 100 * MIB for call in calls)


def test_a_whole_video_is_seen_twice():
    calls = list(measure_video(taformer(), setting(size=(40, 64)), 3))
    assert [(call.frame, call.frames) for call in calls] == [(2, 3), (2, 3)]
    assert all(call.seconds > 0 and call.bank_bytes is None for call in calls)
    assert cost_of(calls).fps == pytest.approx(3 / calls[1].seconds)
    assert curves(calls).seconds.tolist() == [calls[1].seconds / 3] * 3


def test_windows_are_calls():
    calls = list(measure_video(taformer(window=3, overlap=1), setting(size=(40, 64)), 6))
    assert [(call.frame, call.frames) for call in calls] == [(2, 3), (4, 2), (5, 1)]
    assert all(call.seconds > 0 for call in calls)
    assert len(curves(calls).peak) == 6


@pytest.mark.parametrize("module", [token_masking, lambda: token_masking(background="none"), segmentation])
def test_images_are_segmented_one_by_one(module):
    calls = list(measure_video(module(), setting(size=(40, 48), precision="bf16"), 3))
    assert [(call.frame, call.frames) for call in calls] == [(0, 1), (1, 1), (2, 1)]
    assert all(call.seconds > 0 and call.bank_bytes is None for call in calls)


@pytest.mark.parametrize("module", [mavos, taformer, token_masking, segmentation])
def test_networks_are_compiled(monkeypatch, module):
    compiled = []

    def recorded(part: Any) -> Any:
        compiled.append(part)
        return part

    monkeypatch.setattr(torch, "compile", recorded)
    monkeypatch.setattr(torch.nn.Module, "compile", recorded)
    list(measure_video(module(), setting(size=(40, 48)), 2))
    assert not compiled
    list(measure_video(module(), setting(size=(40, 48)), 2, is_compiled=True))
    assert compiled


def test_what_cannot_be_compiled_is_told(monkeypatch):
    def compile_(part: Any) -> Any:
        def refuse(*_: Any) -> Any:
            raise RuntimeError("no C++ compiler\nlong story")

        return refuse

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: None)
    with pytest.raises(ConfigError, match=r"^MAVOS cannot be compiled here: no C\+\+ compiler$"):
        list(measure_video(mavos(), setting(), 2, is_compiled=True))


def call(frame: int, seconds: float, peak: int, bank: int | None = None, frames: int = 1) -> Call:
    return Call(frame, frames, seconds, peak, bank, None if bank is None else 1)


def test_the_first_call_counts_for_memory_alone():
    calls = [call(0, 9.0, 70, 1), *(call(number, number / 10, 60, number) for number in range(1, 21))]
    cost = cost_of(calls)
    assert (cost.fps, cost.peak_bytes, cost.bank_bytes) == (pytest.approx(20 / 21), 70, 20)
    assert (cost.median_seconds, cost.late_seconds) == (pytest.approx(1.05), pytest.approx(1.905))
    assert cost_of([call(2, 9.0, 5, frames=3), call(4, 0.5, 5, frames=2)]).fps == pytest.approx(4)


def test_curves_are_over_frames():
    assert curves([call(0, 1.0, 5, 7), call(1, 2.0, 6, 8)])._asdict() == {
        "seconds": pytest.approx([1, 2]),
        "peak": pytest.approx([5, 6]),
        "bank": pytest.approx([7, 8]),
    }
    windows = curves([call(2, 3.0, 5, frames=3), call(4, 1.0, 6, frames=2)])
    assert windows.bank is None
    assert (windows.seconds.tolist(), windows.peak.tolist()) == ([1, 1, 1, 0.5, 0.5], [5, 5, 5, 6, 6])


def test_how_a_long_video_goes_on():
    time = np.arange(1000)
    found = constancy(Curves(np.where(time < 800, 2.0, 3.0), 1000 + time, np.minimum(1 + time // 300, 2)))
    assert (found.steady_from, found.is_constant) == (300, True)
    assert (found.early, found.late) == ((100, 300), (800, 1000))
    assert (found.late_over_early, found.late_minus_early_bytes) == (1.5, 700)


def test_how_a_short_video_that_grows_goes_on():
    time = np.arange(100)
    found = constancy(Curves(1.0 + time, 5 * time, 1 + time // 10))
    assert (found.steady_from, found.is_constant) == (90, False)
    assert (found.early, found.late) == ((5, 15), (90, 100))
    assert found.late_over_early == pytest.approx((1 + 94.5) / (1 + 9.5))
    assert found.late_minus_early_bytes == 5 * 85
    assert constancy(Curves(1.0 + time, 5 * time, None)).is_constant is None


def test_hardly_anything_goes_on():
    assert constancy(Curves(*(np.array([1, 1]) for _ in range(3)))).is_constant
    assert not constancy(Curves(np.array([1, 1, 1]), np.array([1, 1, 1]), np.array([1, 1, 2]))).is_constant


def test_recipes_over_lengths_and_objects(command, here):
    words = ("--frames", "20", "5", "--objects", "1", "3", *SMALL)
    finished = command("benchmark", "video", str(RECIPE), f"{RECIPE}+growing", "segmentation_demo", *words)
    assert finished.status == 0, finished.err
    folder = Path("runs/benchmark_video")
    files = ["costs.csv", "costs.png", "frames.png", "segmentation_demo.csv", "summary.json"]
    assert sorted(path.name for path in folder.iterdir()) == [*files, "tiny+growing.csv", "tiny.csv"]
    rows = rows_of(folder / "costs.csv")
    grid = [(n, o) for o in ("1", "3") for n in ("5", "20")]
    for label in ("tiny", "tiny+growing"):
        of_recipe = [row for row in rows if row["recipe"] == label]
        assert [(row["frames"], row["objects"]) for row in of_recipe] == grid
        assert {row["method"] for row in of_recipe} == {"MAVOS"}
    images = [row for row in rows if row["recipe"] == "segmentation_demo"]
    assert [(row["frames"], row["height"], row["objects"]) for row in images] == [("5", "33", ""), ("20", "33", "")]
    units = {(row["frames"], row["objects"]): row for row in rows if row["recipe"] == "tiny"}
    for row in rows:
        unit = units[row["frames"], row["objects"] or "1"]
        assert float(row["fps_ratio"]) == pytest.approx(float(row["fps"]) / float(unit["fps"]))
        assert float(row["memory_ratio"]) == pytest.approx(float(row["peak_bytes"]) / float(unit["peak_bytes"]))
    calls = rows_of(folder / "tiny+growing.csv")
    assert len(calls) == 2 * 20  # the shorter video is the beginning of the longer one
    assert int(calls[4]["bank_bytes"]) == int(rows[4]["bank_bytes"])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["recipes"]["tiny"]["method"] == "MAVOS"
    assert summary["versions"]["torch"] == torch.__version__
    assert [run["is_constant"] for run in summary["runs"][::2]] == [True, False, None]
    assert "masks mean nothing" in finished.out
    assert "tiny: the bank is constant from frame 2; frames 18 to 19 take" in finished.out
    assert "tiny+growing: the bank is growing, to frame 18; frames 18 to 19 take" in finished.out
    assert Image.open(folder / "frames.png").size == (1050, 1080)
    assert Image.open(folder / "costs.png").size == (1260, 900)
    refused(command("benchmark", "video", str(RECIPE), *SMALL), "runs/benchmark_video holds files already")


def test_the_table_fits_80_columns(command, here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    long = "mavos_mobilenetv2+memory_focal"
    for name in long.split("+"):
        (here / f"{name}.yaml").write_text(f"include: [{RECIPE}]")

    def measured(function: Callable[..., Iterator[Any]], recipe: str, where: Setting, frames: int, *_: Any) -> Any:
        slow = (1 + (recipe == long)) * where.objects * where.size[0] / 480
        for number in range(frames):
            if recipe == long and number == 100:
                raise process.StoppedError("out of memory")
            yield Call(number, 1, 12.345 * slow, int(12_345 * MIB * slow), 5, 1)

    monkeypatch.setattr(process, "in_fresh_process", measured)
    words = ("--frames", "50", "200", "--size", "480p", "1080p", "--objects", "1", "10", "--device", "cpu")
    finished = command("benchmark", "video", "mavos_mobilenetv2", long, *words, "--output", "out")
    assert finished.status == 0, finished.err
    lines = finished.out.splitlines()
    table = [line for line in lines if line[:1] in "┏┃┡│├└"]
    assert max(map(len, table)) <= 80
    assert "…" not in finished.out
    rows = cells_of(finished.out)
    figures = [row[1:] for row in rows if len(row) == 7 and row[1]]
    assert figures[0] == ["0.08", "1.00", "12345.0", "12345.0", "12345", "1.00"]
    assert figures[8] == ["0.04", "0.50", "24690.0", "24690.0", "24690", "2.00"]
    assert len(figures) == 8 + 4
    text = " ".join(" ".join(row[0] for row in rows).split())
    assert text.count("200 frames, 480 x 854, 10 objects: out of memory at frame 100") == 1
    assert json.loads(Path("out/summary.json").read_text())["runs"][4]["stopped"] == "out of memory at frame 100"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), process.StoppedError("out of memory")])
def test_what_was_measured_before_a_stop_is_kept(command, here, monkeypatch, stop):
    at_once = process.in_fresh_process

    def stopped(function: Callable[..., Iterator[Any]], recipe: str, *arguments: Any) -> Iterator[Any]:
        for number, row in enumerate(at_once(function, recipe, *arguments)):
            if number == 3 and recipe == "growing":
                raise stop
            yield row

    monkeypatch.setattr(process, "in_fresh_process", stopped)
    words = ("--frames", "2", "6", *SMALL, "--output", "out")
    finished = command("benchmark", "video", "growing", str(RECIPE), *words)
    assert [row["frame"] for row in rows_of(Path("out/growing.csv"))] == ["0", "1", "2"]
    if isinstance(stop, KeyboardInterrupt):
        assert "stopped; what was measured so far is in out" in finished.err
        assert (finished.status, list(Path("out").iterdir())) == (130, [Path("out/growing.csv")])
    else:
        assert finished.status == 0, finished.err
        rows = [(row["recipe"], row["frames"], row["fps_ratio"]) for row in rows_of(Path("out/costs.csv"))]
        assert [row[:2] for row in rows] == [("growing", "2"), ("tiny", "2"), ("tiny", "6")]
        assert rows[2][2] == ""  # there is nothing to compare with


def test_windows_of_the_command_line(command, here):
    words = ("--window", "3", "--frames", "5", "--size", "40x64", "--device", "cpu")
    finished = command("benchmark", "video", "taformer_demo", *words)
    assert finished.status == 0, finished.err
    calls = rows_of(Path("runs/benchmark_video/taformer_demo.csv"))
    assert [(row["frame"], row["frames"]) for row in calls] == [("2", "3"), ("3", "1"), ("4", "1")]


def test_sizes_by_their_names():
    assert [video._size(text) for text in ("480p", "720p", "1080p", "33x41")] == [
        *((480, 854), (720, 1280), (1080, 1920)),
        (33, 41),
    ]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("growing", "--frames", "20", "1"), ("--frames 1 is no video",)),
        (("growing", "--size", "0x5"), ("0 x 5 pixels", "at least 1")),
        (("growing", "--size", "big"), ("'big' is no size: expected 480p",)),
        (("growing", "--size", "33x41", "9x9", "--objects", "1", "3"), ("3 objects do not fit on 9 x 9",)),
        (("growing", "--device", "abacus"), ("--device abacus cannot be used here",)),
        (("growing", "nothing"), ("'nothing.yaml' does not exist",)),
        (("growing", str(Path("a/growing"))), ("Two recipes are called growing",)),
        (("taformer_demo", "--window", "2"), ("--window 2 cannot be", "overlap")),
    ],
)
def test_mistakes_are_told(command, here, words, parts):
    refused(command("benchmark", "video", *words), *parts)
    assert not (here / "runs").exists()
