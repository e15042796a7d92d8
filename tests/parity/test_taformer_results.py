"""The results that SeqFormer's published inference script writes, from made-up outputs and from frames."""

import json
import types

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from lightning_vos.callbacks.instances import result_entries
from lightning_vos.io.frames import to_tensor
from lightning_vos.models.taformer.inference import InferenceSettings, find_instances, shown
from lightning_vos.published import load_published
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
        return types.SimpleNamespace(logits=self.logits)

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
