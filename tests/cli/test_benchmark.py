from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import pytest
import tiny
import torch
from benchmarking import RECIPE, cells_of, measure_here, refused

from lightning_vos.benchmarks import process
from lightning_vos.benchmarks.attention import AttentionCost, Rates, cases, measure_attention, plain_sample
from lightning_vos.benchmarks.frame import allocated_at_peak, measure_frame
from lightning_vos.benchmarks.training import StepCost, draw_clips, measure_training
from lightning_vos.benchmarks.workload import MIB, Setting, SyntheticVideo
from lightning_vos.commands.benchmark.recipes import vos_module
from lightning_vos.commands.benchmark.training import _step_costs
from lightning_vos.commands.inputs import choose_device
from lightning_vos.errors import ConfigError
from lightning_vos.models.mavos.memory import Append, Capped, ReferenceOnly
from lightning_vos.models.taformer.deformable_attention import sample

SMALL = ("--size", "33", "41", "--device", "cpu")
# of a frame in the bank of tiny.network on 33 x 33 pixels: 5 x 5 tokens, 2 layers, C / 2 + 2 C + 2 C floats
FRAME_BYTES = 25 * 2 * (16 + 64 + 64) * 4


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    measure_here(tmp_path, monkeypatch)
    return tmp_path


def setting(**changes: Any) -> Setting:
    return Setting(**{"size": (33, 33), "objects": 2, "device": "cpu", "threads": 1, "precision": "32"} | changes)


@pytest.mark.parametrize("objects", [1, 2, 7, 30])
def test_the_video_is_the_same_each_time_and_moves(objects):
    first, second = SyntheticVideo((40, 56), objects), SyntheticVideo((40, 56), objects)
    assert first.first_mask.unique().tolist() == list(range(objects + 1))
    for number in (0, 5, 10_000):
        assert first.frame(number).shape == (3, 40, 56)
        assert torch.equal(first.frame(number), second.frame(number))
        assert first.frame(number).min() >= 0
        assert first.frame(number).max() <= 1
    assert not torch.equal(first.frame(0), first.frame(5))


def test_labels_move_with_the_picture():
    video = SyntheticVideo((40, 56), 2)
    assert torch.equal(video.mask(0), video.first_mask)
    assert video.mask(9).unique().tolist() == [0, 1, 2]
    # the picture at frame 9 begins 25 pixels lower and 12 further left than at frame 0
    assert torch.equal(video.frame(9)[:, :15, 12:], video.frame(0)[:, 25:, :44])
    assert torch.equal(video.mask(9)[:15, 12:], video.mask(0)[25:, :44])


@pytest.mark.parametrize(
    ("memory", "sizes"),
    [
        (None, (1, 2)),
        (Append, (1, 2, 4, 6, 8, 10)),
        (ReferenceOnly, (1,)),
        (Capped, (1, 2, 4, 6, 7)),
        (partial(Capped, frames=6), (1, 2, 4, 6)),
    ],
)
def test_the_costs_of_a_frame(memory, sizes):
    parts = () if memory is None else (memory,)
    *costs, table = measure_frame(tiny.network(*parts), setting(), 1, is_profiled=True)
    whole = costs[: len(sizes)]
    assert [cost.what for cost in whole] == [f"frame, {frames} in the bank" for frames in sizes]
    assert [cost.bank_bytes for cost in whole] == [FRAME_BYTES * frames for frames in sizes]
    by_name = {cost.what.strip(): cost for cost in costs}
    assert by_name["frame that updates the bank"].bank_bytes == FRAME_BYTES * sizes[-1]
    assert list(by_name)[len(sizes) :] == [
        "frame that updates the bank",
        *("encode", "propagate", "decode", "memorize", "memorize and update"),
        "local attention, one layer",
    ]
    assert all(cost.seconds > 0 for name, cost in by_name.items() if name != "propagate")
    assert by_name["local attention, one layer"].memory_bytes > 25 * 2 * 64 * 4  # its values alone
    assert "aten::" in table


def test_the_cost_of_a_training_step(here):
    steps = []
    costs = []
    for is_checkpointed in (False, True):
        module = vos_module(str(RECIPE), is_checkpointed=is_checkpointed)
        assert module.activation_checkpointing == is_checkpointed
        before = [parameter.clone() for parameter in module.parameters()]
        module.on_before_zero_grad = lambda optimizer: steps.append(optimizer)
        (cost,) = measure_training(module, setting(), length=4, batch=2, repeats=2)
        costs.append(cost)
        assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    assert len(steps) == 2 * 3  # the first of each is not counted
    assert all(cost.seconds > 0 for cost in costs)  # what other tests have left here makes the memory mean nothing
    assert not list(here.rglob("*.ckpt"))


def test_drawn_clips_are_labelled_everywhere():
    clip = draw_clips(setting(objects=3), length=4, batch=2)
    assert (clip.frames.shape, clip.masks.shape) == ((2, 4, 3, 33, 33), (2, 4, 33, 33))
    assert clip.objects.tolist() == [3, 3]
    assert (clip.masks.dtype, clip.masks.unique().tolist()) == (torch.int64, [0, 1, 2, 3])
    assert len({frame.numpy().tobytes() for frame in clip.frames.flatten(0, 1)}) == 8


def test_an_update_is_that_of_the_fullest_bank(monkeypatch):
    held = []
    update = Capped.update

    def recorded(policy: Capped, bank: Any, new: Any, size: tuple[int, int], *, is_reference: bool) -> Any:
        held.append(bank[0][0].shape[1] // 25)
        return update(policy, bank, new, size, is_reference=is_reference)

    monkeypatch.setattr(Capped, "update", recorded)
    for cost in measure_frame(tiny.network(partial(Capped, frames=3)), setting(), 2):
        if "update" in cost.what:
            assert held == [3] * 3  # once to warm up, so that each drops a frame
        held.clear()


def test_allocations_are_counted_at_their_peak():
    square = torch.rand(500, 1000)

    def work() -> torch.Tensor:
        product = square @ square.T  # 1 MB
        soft = product.softmax(1)  # 1 MB
        del product
        return soft.repeat(3, 1)  # 3 MB

    assert allocated_at_peak(work, torch.device("cpu")) == pytest.approx(4e6, rel=0.01)


def test_the_costs_of_attention():
    rates, *costs = measure_attention(setting(size=(48, 64)), 1)
    assert min(rates) > 0
    assert [(cost.what, cost.is_training) for cost in costs] == [
        (case.what, is_training) for case in cases((48, 64)) for is_training in (False, True)
    ]
    for cost in costs:
        assert cost.difference < 1e-5
        assert min(cost.seconds) > 0
        assert sum(cost.shares.values()) == pytest.approx(1)
        assert min(cost.shares.values()) > 0
        assert cost.peak_bytes[0] < cost.peak_bytes[1]
        # ours keeps nothing, the restatement all that it sampled and where
        assert cost.kept_bytes[0] == 0
        assert (cost.kept_bytes[1] > 4 * cost.sampled) == cost.is_training
    tokens = 6 * 8 + 3 * 4 + 2 * 2 + 1
    per_point = 8 * 4 * 4 * 32  # heads, levels, points, channels
    assert [cost.sampled for cost in costs[::2]] == [tokens * per_point, 4 * tokens * per_point, 300 * per_point]


def test_the_restatement_of_attention_says_the_same():
    draw = torch.Generator().manual_seed(0)
    value, locations = (torch.rand(*shape, generator=draw).double() for shape in ((2, 14, 3, 5), (2, 4, 3, 2, 6, 2)))
    weights = torch.rand(2, 4, 3, 2, 6, generator=draw).double()
    arguments = (value, [(3, 4), (1, 2)], 1.4 * locations - 0.2, weights)
    torch.testing.assert_close(plain_sample(*arguments), sample(*arguments))


def test_a_process_of_its_own():
    pids = set(process.in_fresh_process(fresh.processes, 3))
    assert len(pids) == 1
    assert os.getpid() not in pids


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("refused", ConfigError, "no such thing"),
        ("memory", process.StoppedError, "out of memory"),
        ("killed", process.StoppedError, "killed by SIGKILL"),
        ("broken", RuntimeError, "the measuring process failed"),
    ],
)
def test_how_a_process_ends(how, error, text):
    items = process.in_fresh_process(fresh.fail, how)
    assert next(items) == 0
    with pytest.raises(error, match=text):
        next(items)


def test_a_process_ends_with_its_reader():
    items = process.in_fresh_process(fresh.endless)
    pid = next(items)
    items.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_devices_that_compute_nothing_are_refused():
    assert choose_device("cpu:0").type == "cpu"
    for name in ("meta", "hpu", "abacus", ""):
        with pytest.raises(ConfigError, match=f"--device {name} cannot be used here: .*\n  expected cpu, or cuda"):
            choose_device(name)


def test_frames_of_two_recipes(command, here):
    finished = command("benchmark", "frame", "growing", str(RECIPE), "--repeats", "1", "--profile", *SMALL)
    assert finished.status == 0, finished.err
    rows = cells_of(finished.out)
    assert [row[0] for row in rows if row[1] == ""] == ["growing", "tiny"]
    whole = [row for row in rows if row[0].endswith("in the bank")]
    assert [row[0].split()[1] for row in whole] == ["1", "2", "4", "6", "8", "10", "1", "2"]
    assert whole[0][1] == "1.00"
    relative, milliseconds = (np.array([float(row[column]) for row in whole]) for column in (1, 2))
    assert np.allclose(relative, milliseconds / milliseconds[0], atol=0.05, rtol=0.05)
    assert finished.out.count("Self CPU time total") == 2


def test_training_of_two_recipes(command, here, monkeypatch):
    def measured(function: Callable[..., Iterator[Any]], recipe: str, *arguments: Any) -> Iterator[Any]:
        is_checkpointed, _, length, batch, repeats = arguments
        assert (function, batch, repeats) == (_step_costs, 2, 1)
        if length == 3 and recipe == "growing":
            raise ConfigError("Clips of 3 frames are too short:\nset another length.")
        if length == 9:
            raise process.StoppedError("out of memory")
        yield StepCost(0.1 * length * (1 + is_checkpointed), length * MIB * (10 - is_checkpointed))

    monkeypatch.setattr(process, "in_fresh_process", measured)
    words = ("--lengths", "3", "8", "9", "--batch", "2", "--repeats", "1", *SMALL)
    finished = command("benchmark", "training", "growing", str(RECIPE), *words)
    assert finished.status == 0, finished.err
    rows = cells_of(finished.out)
    figures = [row for row in rows if row[1]]
    assert figures == [
        ["clips of 8", "1.00", "800", "1.00", "80"],
        ["clips of 8, checkpointed", "2.00", "1600", "0.90", "72"],
        ["clips of 3", "0.38", "300", "0.38", "30"],
        ["clips of 3, checkpointed", "0.75", "600", "0.34", "27"],
        ["clips of 8", "1.00", "800", "1.00", "80"],
        ["clips of 8, checkpointed", "2.00", "1600", "0.90", "72"],
    ]
    text = " ".join(row[0] for row in rows)
    assert text.count("Clips of 3 frames are too short") == 2
    assert text.count("out of memory") == 4
    assert text.count("too short: set another length.") == 2


def test_training_that_cannot_be_measured_is_told(command, here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    finished = command("benchmark", "training", str(RECIPE), "--lengths", "3", *SMALL)
    assert "Clips of 3 frames are too short" in finished.out
    refused(finished, "Nothing was measured")


def test_attention_fits_80_columns(command, here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shares = {"grid_sample": 0.5, "weighting": 0.25, "rest": 0.25}
    cost = AttentionCost("encoder, space", False, (1.2345, 2.5), (MIB, 12_345 * MIB), (0, 0), 1e-7, 10**9, shares)
    training = cost._replace(is_training=True, kept_bytes=(0, 1234 * MIB))
    monkeypatch.setattr(process, "in_fresh_process", lambda *_: (one for one in (Rates(5e10, 1e10), cost, training)))
    finished = command("benchmark", "attention")
    assert finished.status == 0, finished.err
    assert max(map(len, finished.out.splitlines())) <= 80
    rows = cells_of(finished.out)
    assert rows == [
        ["encoder, space", "1234.5", "2500.0", "2.03", "1", "12345", "0", "0"],
        ["with gradients", "1234.5", "2500.0", "2.03", "1", "12345", "0", "1234"],
        ["encoder, space", "0.50", "0.25", "0.25", "8.1", "25.9", "1e-07"],
        ["with gradients", "0.50", "0.25", "0.25", "", "", "1e-07"],
    ]
    assert "a product of matrices makes 50.0 Gop/s, copying 10.0 GB/s" in " ".join(finished.out.split())


def test_attention_that_stops_is_told(command, here, monkeypatch):
    def stopped(*_: Any) -> Iterator[Any]:
        yield Rates(5e10, 1e10)
        raise process.StoppedError("out of memory")

    monkeypatch.setattr(process, "in_fresh_process", stopped)
    refused(command("benchmark", "attention"), "Nothing was measured: out of memory", "smaller --size")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("attention", "--repeats", "0"), ("--repeats 0 measures nothing",)),
        (("attention", "--size", "0", "5"), ("0 x 5 pixels", "at least 1")),
        (("attention", "--device", "meta"), ("--device meta cannot be used here",)),
        (("frame", "nothing"), ("'nothing.yaml' does not exist",)),
        (("frame", "mavos_r50+data/nothing"), ("'data/nothing.yaml' does not exist",)),
        (("frame", "growing", "growing"), ("Two recipes are called growing",)),
        (("frame", "wrong"), ("unknown key 'model.network.windw'", "did you mean 'window'?")),
        (("frame", "refusing"), ("MAVOSNetwork refuses its arguments", "window is 4")),
        (("frame", "segmentation_demo"), ("SegmentationFromMasks does not segment videos frame by frame",)),
        (("frame", "growing", "--size", "0", "5"), ("0 x 5 pixels", "at least 1")),
        (("frame", "growing", "--size", "9", "9", "--objects", "3"), ("3 objects do not fit on 9 x 9",)),
        (("frame", "growing", "--device", "meta"), ("--device meta cannot be used here",)),
        (("frame", "growing", "--objects", "11"), ("11 objects take several memories", "--objects 10")),
        (("frame", "growing", "--repeats", "0"), ("--repeats 0 measures nothing",)),
        (("training", "wrong"), ("unknown key 'model.network.windw'",)),
        (("training", "growing", "--lengths", "8", "0"), ("--lengths 8 0 --batch 1 --repeats 3 measures nothing",)),
    ],
)
def test_mistakes_are_told(command, here, words, parts):
    for name, window in (("wrong", "windw: 5"), ("refusing", "window: 4")):
        text = f"include: [growing.yaml]\nmodel: {{init_args: {{network: {{init_args: {{{window}}}}}}}}}\n"
        (here / f"{name}.yaml").write_text(text)
    refused(command("benchmark", *words), *parts)
    assert not (here / "runs").exists()
