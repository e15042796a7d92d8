"""The results that SeqFormer's published inference script writes, and the scores that the official evaluator gives."""

import json
import math
import types
from collections import defaultdict

import lightning.pytorch as L
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from pycocotools import mask as coco

from datamodules import YouTubeVIS
from lightning_vos.callbacks.instances import result_entries
from lightning_vos.io.frames import to_tensor
from lightning_vos.models.taformer import module as module_file
from lightning_vos.models.taformer.inference import Found, InferenceSettings, find_instances, shown
from lightning_vos.models.taformer.module import TAFormer
from lightning_vos.models.taformer.network import TAFormerNetwork
from lightning_vos.published import load_published
from lightning_vos.structures import InstanceResult
from parity.reference import ROOT, cases, network_name, weights

SAME = {output: output for output in range(42)}  # the script writes outputs as they are


def read(case: str) -> tuple[dict, list[dict]]:
    folder = ROOT / "taformer"
    return dict(np.load(folder / f"{case}.npz")), json.loads((folder / f"{case}.results.json").read_text())


class Outputs(torch.nn.Module):
    """Gives logits and masks that were stored; masks of a query that nobody stored are empty."""

    def __init__(self, logits: np.ndarray, queries: np.ndarray, masks: np.ndarray) -> None:
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))
        self.logits = torch.from_numpy(logits)[None, None]
        self.stored = torch.full((len(logits), *masks.shape[1:]), -9.0)
        self.stored[torch.from_numpy(queries)] = torch.from_numpy(masks).float()

    def forward(self, frames: torch.Tensor, sizes: torch.Tensor) -> types.SimpleNamespace:
        assert frames.shape[1] == self.stored.shape[1]
        return types.SimpleNamespace(
            logits=self.logits, box_queries=torch.zeros(1, frames.shape[1], self.logits.shape[2], 1)
        )

    def masks(self, predictions, layer: int, clip: int, queries: torch.Tensor, frames: slice) -> torch.Tensor:
        return self.stored[queries, frames]


def assert_same(found: list[dict], expected: list[dict], pixels: int) -> None:
    """Order, keys and nulls exactly, scores to 1e-4, masks to a number of pixels."""
    assert [list(one) for one in found] == [list(one) for one in expected]
    keys = ("video_id", "video_name", "category_id")
    assert [[one[key] for key in keys] for one in found] == [[one[key] for key in keys] for one in expected]
    np.testing.assert_allclose([o["score"] for o in found], [o["score"] for o in expected], rtol=0, atol=1e-4)
    for ours, theirs in zip(found, expected, strict=True):
        for mine, other in zip(ours["segmentations"], theirs["segmentations"], strict=True):
            if mine is None or other is None:
                assert mine is other
                continue
            assert mine["size"] == other["size"]
            assert mine == other or np.sum(coco.decode(mine) != coco.decode(other)) <= pixels


@pytest.mark.parametrize("case", cases("taformer", "postprocess"))
def test_results_of_made_up_outputs(case):
    stored, expected = read(case)
    found: list[dict] = []
    number = 0
    while f"video{number}_id" in stored:
        logits, queries, masks = (stored[f"video{number}_{name}"] for name in ("logits", "queries", "masks"))
        size = tuple(stored[f"video{number}_size"].tolist())
        frames = [torch.zeros(3, *size)] * masks.shape[1]
        results = find_instances(Outputs(logits, queries, masks), frames, size, SAME, InferenceSettings()).results
        video_id = int(stored[f"video{number}_id"])
        names = {one["video_name"] for one in expected if one["video_id"] == video_id}
        found += result_entries(video_id, *names, results)
        number += 1
    assert number > 0
    assert_same(found, expected, pixels=0)


@pytest.mark.parametrize("case", cases("taformer", "video"))
def test_results_of_frames(case):
    stored, expected = read(case)
    network = load_published(network_name("taformer", case), weights("taformer", case))
    frames = [to_tensor(np.ascontiguousarray(frame.transpose(1, 2, 0))) for frame in stored["clip"]]
    first = (shown(frames[0], 360) / 255 - network.backbone.mean[0]) / network.backbone.std[0]
    np.testing.assert_allclose(first, stored["network_input_frame0"].astype(np.float32), rtol=0, atol=2e-3)
    found = find_instances(network, frames, stored["clip"].shape[2:], SAME, InferenceSettings())
    assert found.frames == len(frames)
    entries = list(result_entries(expected[0]["video_id"], expected[0]["video_name"], found.results))
    assert_same(entries, expected, pixels=2)


SCORED = sorted(path.parent for path in (ROOT / "ytvis_eval").glob("*/expected.json")) or [
    pytest.param(None, marks=pytest.mark.skip(reason=f"no scored results at {ROOT / 'ytvis_eval'}"))
]


def data_of(case, folder):
    """The truth of a case as a dataset in a folder: its videos, which name no files, get black frames."""
    content = json.loads((case / "ground_truth.json").read_text())
    for video in content["videos"]:
        video["file_names"] = [f"{video['id']}/{number}.png" for number in range(video["length"])]
        (folder / str(video["id"])).mkdir()
        for name in video["file_names"]:
            Image.new("RGB", (video["width"], video["height"])).save(folder / name)
    (folder / "truth.json").write_text(json.dumps(content))
    return YouTubeVIS(folder, valid_file=folder / "truth.json", frames=folder, workers=0)


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec|treespec).*")
@pytest.mark.parametrize("case", SCORED, ids=lambda case: case and case.name)
def test_a_test_scores_as_the_official_evaluator(tmp_path, monkeypatch, case):
    results = defaultdict(list)
    for number, one in enumerate(json.loads((case / "results.json").read_text())):
        found = InstanceResult(number, one["category_id"], one["score"], one["segmentations"])
        results[one["video_id"]].append(found)

    def stored(network, frames, size, categories, settings):
        return Found(results[int(frames.paths[0].parent.name)], {}, len(frames), 1.0)

    monkeypatch.setattr(module_file, "find_instances", stored)
    monkeypatch.setattr(TAFormer, "configure_callbacks", lambda self: [])  # some results are not fit for a server
    network = TAFormerNetwork(tiny.backbone(strides=(8, 16, 32)), queries=1, channels=64, layers=1)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    module = TAFormer(network, weights=str(tmp_path / "weights.pth"))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(module, data_of(case, tmp_path), verbose=False)

    expected = json.loads((case / "expected.json").read_text())
    summary = {name: -1 if math.isnan(value) else value / 100 for name, value in module.scores.summary.items()}
    assert summary == pytest.approx(expected["metrics"], rel=0, abs=1e-9)
    for name in ("AP", "AP50", "AP75", "AR1", "AR10"):
        assert float(trainer.logged_metrics[f"test/{name}"]) == pytest.approx(100 * expected["metrics"][name], rel=1e-6)
