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

from lightning_vos.errors import ConfigError
from lightning_vos.figures.dynamic_frame import BankReader, Thinned
from lightning_vos.io import plots
from lightning_vos.io.frames import read_frame, to_tensor
from lightning_vos.io.masks import VOC_PALETTE, read_mask, write_mask
from lightning_vos.io.plots import AttentionMaps, Bubble, HeadMaps, MemoryColumn, attention_maps, trade_off
from lightning_vos.models.hodor.encoder import initial_descriptors
from lightning_vos.models.hodor.network import HODORNetwork
from lightning_vos.published import load_network
from lightning_vos.vos.canvas import PaddingCanvas
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


@pytest.mark.parametrize("kind", ["trade-off", "dynamic-frame", "attention"])
def test_a_place_that_cannot_be_written_is_found_before_any_work(command, workplace, kind, monkeypatch):
    words = ("nowhere",) if kind == "trade-off" else ("nowhere", "mask.png", "--weights", "w.ckpt")
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
        thinned = Thinned(count)
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

    reader = BankReader(tiny.network(), (33, 33), None)
    with pytest.raises(ConfigError, match="A Recurrent has no bank of whole frames"):
        reader.is_updated(Recurrent())


SETTINGS = {"channels": 64, "layers": 2, "strengths": [8.0, 2.0]}
CANVAS = {"short_side": 32, "long_side": 64, "multiple": 32}
TO_HEADS = ("--output", "heads.png", "--device", "cpu")


def write_hodor(path: Path, **settings: Any) -> HODORNetwork:
    """The weights of a small HODOR, random, with strengths that have moved by 0.5."""
    torch.manual_seed(0)
    network = HODORNetwork(tiny.backbone(final=True), **SETTINGS | settings, canvas=PaddingCanvas(**CANVAS)).eval()
    for layer in network.encoder.layers:
        if layer.masked_attention.masking == "soft":
            layer.masked_attention.strengths.data += 0.5
    backbone = {"name": "test_resnet", "strides": [2, 4, 8], "final": True, "frozen_norms": False, "frozen_stages": 0}
    arguments = {
        "backbone": {"class_path": "lightning_vos.backbones.Backbone", "init_args": backbone},
        "canvas": {"class_path": "lightning_vos.vos.canvas.PaddingCanvas", "init_args": CANVAS},
        **SETTINGS,
        **settings,
    }
    model = {
        "class_path": "lightning_vos.HODOR",
        "init_args": {
            "network": {"class_path": "lightning_vos.models.hodor.network.HODORNetwork", "init_args": arguments}
        },
    }
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "model": model, "pytorch-lightning_version": "2.6"}, path)
    return network


@pytest.fixture
def hodor(workplace: Path) -> HODORNetwork:
    """The network whose weights are in h.ckpt of the workplace."""
    return write_hodor(workplace / "h.ckpt")


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, AttentionMaps]]:
    """Titles and maps that were asked for; the figures are empty."""
    calls: list[tuple[str, AttentionMaps]] = []

    def recorded(title: str, frame: Any, picture: Any, maps: AttentionMaps) -> Any:
        assert frame.shape == picture.shape == (33, 33, 3)
        calls.append((title, maps))
        return plots.Figure()

    monkeypatch.setattr(plots, "attention_maps", recorded)
    return calls


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The planes that each frame is remembered by."""
    planes: list[torch.Tensor] = []
    memorize = HODORNetwork.memorize

    def recorded(self: Any, features: Any, of_frame: torch.Tensor, *args: Any, **settings: Any) -> Any:
        planes.append(of_frame)
        return memorize(self, features, of_frame, *args, **settings)

    monkeypatch.setattr(HODORNetwork, "memorize", recorded)
    return planes


@torch.no_grad()
def test_attention_of_each_head_by_its_equation(command, workplace, hodor, attended):
    words = ("video", "mask.png", "--weights", "h.ckpt", "--frame", "0", "--object", "8", "--size", "38", "56")
    finished = command("report", "attention", *words, *TO_HEADS)
    assert finished.status == 0, finished.err
    assert Path("heads.png").is_file()
    ((title, maps),) = attended
    expected_title = "Soft-masked attention of encoder layer 2 (strengths: initial → learnt), object 8 in frame 0"
    assert title.splitlines() == [expected_title, "weights: h.ckpt"]
    assert [head.label for head in maps.heads] == ["head 1: strength 8 → 8.50", "head 2: strength 2 → 2.50"]
    assert maps.covered == pytest.approx((33 * 40 / 38, 33))

    encoder, query = hodor.encoder, 9 + 1  # the second object, after nine cells of the background
    view = hodor.canvas.view((33, 33), (38, 56))
    frame = to_tensor(read_frame(Path("video/00000.png")))[None]
    coarse = hodor.encode(hodor.canvas.enter(frame, view)).coarse
    labels = torch.from_numpy(read_mask(Path("mask.png"))).long()
    masks = hodor.planes(torch.where(labels == 8, 2, torch.where(labels == 3, 1, 0))[None], 2, view)
    first, second = encoder.layers
    kinds = torch.cat([encoder.background_embedding, encoder.object_embedding.expand(2, -1)])
    pixels, none = coarse.flatten(2).transpose(1, 2), torch.zeros(1, 11, dtype=torch.bool)
    x = first(initial_descriptors(coarse, masks, 9), kinds, pixels, masks.flatten(2), none)
    x = second.norms[0](x + second.self_attention(x + kinds, x + kinds, x)[0])
    q, k = second.masked_attention.query(x)[0, query], second.masked_attention.key(pixels)[0]
    for number, (head, strength) in enumerate(zip(maps.heads, (8.5, 2.5), strict=True)):
        part = slice(32 * number, 32 * number + 32)
        logits = k[:, part] @ q[part] / 32**0.5 - strength * (1 - masks[0, query].flatten())
        for found, expected in ((head.logits, logits), (head.weights, logits.softmax(0))):
            assert np.allclose(found, expected.view(16, 16)[:10, :14], atol=1e-5)
    assert np.array_equal(maps.mask, masks[0, query, :10, :14])


def test_the_frame_is_the_last_and_the_object_the_first(command, workplace, hodor, attended, remembered):
    for words in ((), ("--frame", "7", "--object", "3", "--layer", "2"), ("--frame", "2"), ("--layer", "1")):
        finished = command("report", "attention", "video", "mask.png", "--weights", "h.ckpt", *words, *TO_HEADS)
        assert finished.status == 0, finished.err
    titles, (by_default, chosen, earlier, shallow) = zip(*attended, strict=True)
    assert titles[0] == titles[1]
    assert "layer 2" in titles[0]
    assert "object 3 in frame 7\n" in titles[0]
    assert "object 3 in frame 2\n" in titles[2]
    assert "layer 1 " in titles[3]
    assert len(remembered) == 8 + 8 + 3 + 8
    assert np.array_equal(by_default.mask, remembered[7][0, 9])
    assert np.array_equal(by_default.heads[0].logits, chosen.heads[0].logits)
    assert np.array_equal(earlier.mask, remembered[18][0, 9])
    assert not np.allclose(shallow.heads[0].logits, by_default.heads[0].logits)


def test_attention_to_what_is_remembered_where_another_object_begins(command, workplace, hodor, attended, remembered):
    masks = workplace / "masks"
    masks.mkdir()
    write_mask(masks / "00000.png", tiny.squares(3), VOC_PALETTE)
    write_mask(masks / "00002.png", np.roll(tiny.squares(5), 12, axis=0), VOC_PALETTE)
    for object_id in ("3", "5"):
        words = ("video", "masks", "--weights", "h.ckpt", "--frame", "2", "--object", object_id)
        finished = command("report", "attention", *words, *TO_HEADS)
        assert finished.status == 0, finished.err
    for slot, (_, maps) in enumerate(attended):
        assert np.array_equal(maps.mask, remembered[-1][0, 9 + slot])
        assert (maps.mask > 0).any()


@pytest.mark.parametrize("masking", ["hard", "none", "divided"])
def test_attention_with_other_masking(command, workplace, attended, masking):
    write_hodor(workplace / "h.ckpt", **({"divided_strengths": True} if masking == "divided" else {"masking": masking}))
    words = ("report", "attention", "video", "mask.png", "--weights", "h.ckpt", "--frame", "0")
    finished = command(*words, *TO_HEADS)
    assert finished.status == 0, finished.err
    ((title, maps),) = attended
    begun, label = {
        "hard": ("Hard-masked attention of encoder layer 2, object", "head 2: hard mask"),
        "none": ("Attention without a mask of encoder layer 2, object", "head 2: no mask"),
        "divided": (
            "Soft-masked attention of encoder layer 2 (strengths: initial → learnt, divided by",
            "head 2: stren",
        ),
    }[masking]
    assert title.startswith(begun)
    assert maps.heads[1].label.startswith(label)
    is_hidden = np.isinf(maps.heads[0].logits)
    assert np.array_equal(is_hidden, maps.mask <= 0.5 if masking == "hard" else np.zeros_like(is_hidden))
    assert np.array_equal(maps.heads[0].weights == 0, is_hidden)


def test_mistakes_of_attention_are_told(command, workplace, hodor, weights):
    labels = tiny.squares(3)
    labels[0, 0] = 5
    write_mask(workplace / "speck.png", labels, VOC_PALETTE)
    (workplace / "masks").mkdir()
    write_mask(workplace / "masks/00004.png", tiny.squares(7), VOC_PALETTE)

    def draw(mask: str, *words: str, file: str = "h.ckpt") -> Any:
        return command("report", "attention", "video", mask, "--weights", file, *words, *TO_HEADS)

    refused(draw("mask.png", file="w.ckpt"), "A MAVOSNetwork has no soft-masked attention", "weights of HODOR")
    refused(draw("mask.png", "--layer", "3"), "--layer 3 is none of the encoder's: expected 1 to 2")
    refused(draw("mask.png", "--frame", "8"), "--frame 8 is none of the video's: expected 0 to 7")
    refused(draw("mask.png", "--frame", "-1"), "--frame -1 is none: frames are counted from 0")
    refused(draw("mask.png", "--object", "9"), "--object 9 is none of those that mask.png states: 3, 8")
    refused(draw("masks", "--frame", "3"), "masks states no object up to frame 3")
    refused(draw("speck.png", "--object", "5", "--frame", "0"), "leaves no trace", "--size")
    refused(command("report", "attention", "video", "mask.png", *TO_HEADS), "report attention needs weights")
    assert not Path("heads.png").exists()


def test_a_video_file_that_ends_too_early_is_told(command, workplace, hodor):
    from lightning_vos.io.video import VideoWriter

    with VideoWriter(workplace / "a.mp4", (34, 34)) as writer:
        for _ in range(3):
            writer.write(np.zeros((34, 34, 3), np.uint8))
    write_mask(workplace / "even.png", tiny.squares(3, height=34, width=34), VOC_PALETTE)
    words = ("report", "attention", "a.mp4", "--weights", "h.ckpt", *TO_HEADS)
    refused(command(*words, "even.png", "--frame", "3"), "--frame 3 is none of the video's: expected 0 to 2")
    (workplace / "late").mkdir()
    write_mask(workplace / "late/00005.png", tiny.squares(3, height=34, width=34), VOC_PALETTE)
    refused(command(*words, "late"), "Masks are given for frames [5], but the video ends with frame 2")
    assert not Path("heads.png").exists()


def test_maps_have_scales_in_which_a_small_object_shows():
    mask = np.zeros((20, 30), np.float32)
    mask[3, 4:6] = 1
    noise = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)
    logits = noise - 30 * (1 - mask)
    hard = np.where(mask > 0.5, noise, -np.inf).astype(np.float32)
    unseen = np.full_like(mask, -np.inf)  # all there is to see lies in the padding
    weights = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
    pairs = ((logits, weights), (hard, weights), (unseen, 0 * weights), *((logits, weights),) * 2)
    heads = [HeadMaps(f"head {n}", *pair) for n, pair in enumerate(pairs)]
    frame = np.full((100, 160, 3), 200, np.uint8)
    figure = attention_maps("title", frame, frame, AttentionMaps(mask, heads, (110, 165)))
    figure.canvas.draw()
    shown = [axis for axis in figure.axes if axis.images and axis.get_visible()]
    assert [axis.get_title() for axis in shown[2:]] == [f"head {n}" for n in range(4)] + [""] * 4 + ["head 4", ""]
    assert all((axis.get_xlim(), axis.get_ylim()) == ((0, 160), (100, 0)) for axis in shown)
    before, hard_before, after, unseen_after = (shown[n].images for n in (2, 3, 6, 8))
    assert before[0].norm(200) == pytest.approx(0.6 * 200 / 255)
    assert before[1].get_extent() == [0, 165, 110, 0]
    low, high = before[1].get_clim()
    assert -34 < low < -30 < noise[3, 4:6].min() <= high <= noise[3, 4:6].max()
    assert np.array_equal(hard_before[1].get_alpha() > 0, mask > 0.5)
    assert np.allclose(after[1].get_array(), 100 * weights)
    assert after[1].get_clim() == (0, pytest.approx(100 * np.percentile(weights[mask > 0.5], 99)))
    assert not unseen_after[1].get_alpha().any()
