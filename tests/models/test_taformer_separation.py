"""How well box queries tell instances apart: the queries of what is found, their cosines, what a test logs of them."""

from dataclasses import astuple
from itertools import product
from statistics import fmean

import lightning.pytorch as L
import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from pycocotools import mask as coco

from lightning_vos.evaluation.youtube_vis import Track, result_track
from lightning_vos.models.taformer import module as taformer
from lightning_vos.models.taformer.encoder import EncoderSettings
from lightning_vos.models.taformer.inference import Found, InferenceSettings, find_instances
from lightning_vos.models.taformer.module import TAFormer
from lightning_vos.models.taformer.network import TAFormerNetwork
from lightning_vos.models.taformer.separation import Separation, query_separation
from lightning_vos.structures import InstanceResult, InstanceVideo, ScoredInstanceVideo

SIZE = (12, 40)


def masks(*columns):
    """A mask for each frame, of the columns from the first number to the second; None where nothing is seen."""
    said = []
    for span in columns:
        inside = np.zeros(SIZE, np.uint8)
        if span is not None:
            inside[:, slice(*span)] = 1
        rle = coco.encode(np.asfortranarray(inside))
        said.append(None if span is None else {**rle, "counts": rle["counts"].decode("ascii")})
    return said


def track(*columns):
    return result_track(masks(*columns))


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- cosines

LEFT, RIGHT = track((0, 10), (0, 10), (0, 10)), track((20, 30), (20, 30), (20, 30))


def test_queries_that_tell_instances_apart():
    queries = torch.zeros(2, 3, 4)
    queries[0, :, 1] = torch.tensor([1.0, 5, 0.1])  # lengths do not count
    queries[1, :, 2] = 3
    assert query_separation(queries, [LEFT, RIGHT], [RIGHT, LEFT]) == Separation(1, 0)
    queries[1] = -queries[0]
    found = query_separation(queries, [LEFT, RIGHT], [RIGHT, LEFT])
    assert (found.within, found.between) == pytest.approx((1, -1))


def test_each_pair_counts_alike():
    spans = {"a": ((0, 10),) * 5, "b": ((12, 20), None, (12, 20), None, None), "c": (None, None, None, (25, 40), None)}
    truths = [track(*columns) for columns in spans.values()]
    queries = draws(3, 5, 6)
    found = query_separation(queries, truths, truths)
    seen = [(0, t) for t in range(5)] + [(1, 0), (1, 2), (2, 3)]
    pairs = {
        (one, other): float(F.cosine_similarity(queries[one], queries[other], dim=0))
        for one, other in product(seen, seen)
    }
    within = [value for (one, other), value in pairs.items() if one[0] == other[0] and one != other]
    between = [value for (one, other), value in pairs.items() if one[0] != other[0]]
    assert (len(within), len(between)) == (22, 34)
    assert found.within == pytest.approx(fmean(within))
    assert found.between == pytest.approx(fmean(between))


def test_frames_in_which_an_instance_is_not_seen_are_left_out():
    truths = [track((0, 10), None, (0, 10)), track((20, 30), (20, 30), (0, 0))]
    queries = draws(2, 3, 4)
    found = query_separation(queries, [LEFT, RIGHT], truths)
    queries[0, 1] = queries[1, 2] = torch.nan
    assert query_separation(queries, [LEFT, RIGHT], truths) == found


def test_matching_is_one_to_one():
    """The best match of both is the left one; the second goes to the other, though it hardly covers it."""
    wide = track((2, 22), (2, 22), (2, 22))
    queries = draws(2, 3, 4)
    expected = astuple(query_separation(queries, [LEFT, RIGHT], [LEFT, RIGHT]))
    assert astuple(query_separation(queries, [LEFT, wide], [LEFT, RIGHT])) == pytest.approx(expected)
    assert astuple(query_separation(queries.flip(0), [wide, LEFT], [LEFT, RIGHT])) == pytest.approx(expected)


def test_of_others_nothing_is_compared():
    elsewhere = track((32, 40), (32, 40), (32, 40))
    queries = draws(3, 3, 4)
    assert query_separation(queries, [LEFT, elsewhere, RIGHT], [LEFT, RIGHT]) == query_separation(
        queries[[0, 2]], [LEFT, RIGHT], [LEFT, RIGHT]
    )
    crowd = Track(RIGHT.masks, RIGHT.pixels, RIGHT.area, crowd=True)
    assert query_separation(queries[:2], [LEFT, RIGHT], [LEFT, crowd]) is None
    # Two of one instance are not two instances, and a match without a common pixel is none.
    assert query_separation(queries, [LEFT, LEFT, elsewhere], [LEFT, RIGHT]) is None


def test_where_there_is_nothing_to_compare():
    queries = draws(2, 3, 4)
    assert query_separation(queries, [LEFT, RIGHT], [LEFT]) is None
    assert query_separation(queries[:1], [LEFT], [LEFT, RIGHT]) is None
    assert query_separation(queries, [LEFT, RIGHT], []) is None
    once = [track((0, 10), None, None), track(None, (20, 30), None)]
    assert query_separation(queries, [LEFT, RIGHT], once) is None
    once[0] = track((0, 10), None, (0, 10))
    assert query_separation(queries, [LEFT, RIGHT], once) is not None


# --- what is found


def test_box_queries_of_what_is_found():
    torch.manual_seed(0)
    small = {"classes": 4, "queries": 5, "channels": 64, "layers": 2, "feed": 32, "encoder": EncoderSettings(window=1)}
    network = TAFormerNetwork(tiny.backbone(strides=(8, 16, 32)), **small).eval()
    outputs, scores = [], []
    network.transformer.register_forward_hook(lambda _, __, output: outputs.append(output.box_queries))
    network.class_heads[-1].register_forward_hook(lambda _, __, logits: scores.append(logits[0].amax(dim=1)))

    def found(**settings):
        settings = InferenceSettings(short_side=32, results=3, **settings)
        return find_instances(network, tiny.frames(5), (33, 33), {1: 3, 2: 7, 3: 8}, settings)

    box_queries = found().box_queries
    best = scores[0].argsort(descending=True)
    assert outputs[0].shape == (2, 1, 5, 5, 64)
    assert list(box_queries) == [0, 1, 2]
    for number, of_instance in box_queries.items():
        assert torch.equal(of_instance, outputs[0][-1, 0, :, best[number]])
    assert found(window=9).box_queries.keys() == box_queries.keys()
    assert found(window=3).box_queries == {}


# --- what a test logs

NAMES = {3: "cat", 7: "dog"}


class Videos(L.LightningDataModule):
    categories = NAMES

    def __init__(self, *numbers, public=True):
        super().__init__()
        self.samples = []
        for number in numbers:
            video = InstanceVideo(f"clip{number}", number, tiny.frames(3), SIZE, NAMES)
            truth = {(number, 3): [LEFT], (number, 7): [RIGHT]} if public else None
            self.samples.append(ScoredInstanceVideo(number, video, truth))

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.samples, batch_size=None)

    test_dataloader = val_dataloader

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a verb; in each video the same is found, but with queries that turn from one video to the next.

    The instance on the right is there as a cat and as a dog. What is found third is nowhere, and has other queries.
    """
    lines = [
        InstanceResult(0, 7, 0.9, masks((0, 10), (0, 10), (0, 10))),
        *(
            InstanceResult(1, category, score, masks(*[(20, 30)] * 3) if score > 0.001 else [None] * 3)
            for category, score in ((3, 0.8), (7, 0.0001))
        ),
        InstanceResult(4, 3, 0.1, masks((35, 40), (35, 40), (35, 40))),
    ]
    angles = iter([0.0, 0.5, 1.0, 1.5])

    def find(network, frames, size, categories, settings):
        angle = torch.tensor(next(angles))
        queries = torch.tensor([1.0, 0.0]).expand(3, 2), torch.stack([angle.cos(), angle.sin()]).expand(3, 2)
        if settings.window:
            return Found(lines, {}, 3, 1.0)
        return Found(lines, {0: queries[0], 1: queries[1], 2: -queries[0], 4: draws(3, 2)}, 3, 1.0)

    monkeypatch.setattr(taformer, "find_instances", find)

    def run(verb, data, **settings):
        network = TAFormerNetwork(
            tiny.backbone(strides=(8, 16, 32)), classes=4, queries=2, channels=64, layers=1, feed=32
        )
        torch.save(network.state_dict(), tmp_path / "weights.pth")
        module = TAFormer(network, inference=InferenceSettings(**settings), weights=str(tmp_path / "weights.pth"))
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        trainer = L.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet)
        getattr(trainer, verb)(module, data)
        return module, {name: float(value) for name, value in trainer.logged_metrics.items() if "cosine" in name}

    return run


def test_means_over_videos_are_logged(run):
    module, logged = run("test", Videos(0, 1))
    assert [one.separation.between for one in module.videos] == pytest.approx([1, np.cos(0.5)])
    assert logged == pytest.approx({"test/box_cosine_within": 1, "test/box_cosine_between": (1 + np.cos(0.5)) / 2})


def test_a_video_counts_once(run):
    """Under several processes a rank may repeat one."""
    module, logged = run("test", Videos(0, 1, 0))
    between = [one.separation.between for one in module.videos]
    assert between == pytest.approx([np.cos(1.0), np.cos(0.5)])
    assert logged["test/box_cosine_between"] == pytest.approx(fmean(between))


@pytest.mark.parametrize("case", ["no truth", "windows", "validation"])
def test_nothing_is_logged(run, case):
    settings = {"window": 2, "overlap": 1} if case == "windows" else {}
    module, logged = run(
        "validate" if case == "validation" else "test", Videos(0, public=case != "no truth"), **settings
    )
    assert logged == {}
    assert (module.videos[0].separation is not None) == (case == "validation")
