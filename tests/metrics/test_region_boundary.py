import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_vos.metrics.functional import object_scores, statistics
from lightning_vos.metrics.region_boundary import RegionBoundary
from lightning_vos.metrics.sequence import Column, Plan, SequenceScorer, summarize

MEANS = {"J&F", "J", "F", "J_recall", "J_decay", "F_recall", "F_decay", "V", "swapped"}
KEYS = MEANS | {"switches"}


def label_maps(sequence, frame):
    random = np.random.default_rng((sequence, frame))
    return random.integers(0, 3, (2, 24, 32)).astype(np.uint8)


def rows(sequence):
    """Sequences of other lengths, of one object and of two by turns."""
    frames = range(1, 4 + sequence)
    scorer = SequenceScorer(Plan(tuple(frames), dict.fromkeys((1, 2)[: 1 + sequence % 2], frozenset(frames))))
    for frame in frames:
        scorer.add(frame, *label_maps(sequence, frame))
    return scorer.rows()


def score(metric, sequences):
    for sequence in sequences:
        metric.update(sequence, rows(sequence))


def as_text(scores):
    """Every digit of every number: floats are written so that they read back as themselves."""
    return json.dumps([scores.summary, sorted(map(str, scores.objects.items())), sorted(scores.sequences.items())])


@pytest.fixture
def alone():
    metric = RegionBoundary()
    score(metric, range(4))
    return metric.compute()


def test_averages_over_frames_then_objects(alone):
    assert set(alone.objects) == {(0, 1), (1, 1), (1, 2), (2, 1), (3, 1), (3, 2)}
    assert all(set(row) == KEYS for row in (alone.summary, *alone.objects.values(), *alone.sequences.values()))
    frames = [object_scores(*label_maps(3, frame), (2,)) for frame in range(1, 7)]
    region, boundary = (statistics([scores[measure][0] for scores in frames]) for measure in (0, 1))
    fractions = {
        "J&F": (region.mean + boundary.mean) / 2,
        "J": region.mean,
        "F": boundary.mean,
        "J_recall": region.recall,
        "J_decay": region.decay,
        "F_recall": boundary.recall,
        "F_decay": boundary.decay,
    }
    found = alone.objects[3, 2]
    assert {key: found[key] for key in fractions} == {key: 100 * value for key, value in fractions.items()}
    for key in MEANS:
        assert alone.sequences[3][key] == pytest.approx((alone.objects[3, 1][key] + alone.objects[3, 2][key]) / 2)
        assert alone.summary[key] == pytest.approx(np.mean([row[key] for row in alone.objects.values()]))
    assert alone.summary["switches"] == sum(row["switches"] for row in alone.objects.values())
    assert alone == summarize({sequence: rows(sequence) for sequence in range(4)})


def test_order_and_repetition_change_no_bit(alone):
    metric = RegionBoundary()
    score(metric, [3, 1, 0, 3, 2, 1])
    assert as_text(metric.compute()) == as_text(alone)
    shuffled = RegionBoundary()
    for sequence in (2, 0, 3, 1):
        shuffled.update(sequence, np.random.default_rng(sequence).permutation(rows(sequence)))
    assert as_text(shuffled.compute()) == as_text(alone)


def test_which_of_two_scores_of_a_frame_counts_is_not_for_the_order_to_say():
    """Two processes may differ in the last bit; whichever comes first, the result is one."""
    first, second = rows(0), rows(0)
    second[:, Column.REGION] = np.flip(second[:, Column.REGION])
    results = []
    for order in ((first, second), (second, first)):
        metric = RegionBoundary()
        for table in order:
            metric.update(0, table)
        results.append(as_text(metric.compute()))
    assert results[0] == results[1]


def test_a_sequence_without_anything_to_score_changes_nothing(alone):
    metric = RegionBoundary()
    score(metric, range(4))
    metric.update(9, SequenceScorer(Plan((), {1: set()})).rows())
    assert as_text(metric.compute()) == as_text(alone)


def test_reset_forgets_and_nothing_scored_is_nan(alone):
    metric = RegionBoundary()
    score(metric, [2])
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        scores = metric.compute()
    assert set(scores.summary) == KEYS
    assert all(math.isnan(scores.summary[key]) for key in MEANS)
    assert scores.summary["switches"] == 0
    assert (scores.objects, scores.sequences) == ({}, {})
    metric.reset()
    score(metric, range(4))
    assert as_text(metric.compute()) == as_text(alone)


def test_half_precision_keeps_every_bit(alone):
    """A module that is cast takes its metrics along."""
    metric = RegionBoundary()
    score(metric, range(2))
    torch.nn.ModuleList([metric]).to(torch.bfloat16)
    score(metric, range(2, 4))
    assert all(table.dtype == torch.int64 for table in metric.rows)
    assert as_text(metric.compute()) == as_text(alone)


@pytest.mark.gpu
def test_on_cuda_keeps_every_bit(alone):
    metric = RegionBoundary().to("cuda")
    score(metric, range(4))
    assert metric.rows[-1].is_cuda
    assert as_text(metric.compute()) == as_text(alone)


def test_two_processes_equal_one(alone, tmp_path):
    """Unequal, repeated, none at one, and none at all: sequences of process 0 and of process 1."""
    shares = [
        ([0, 2], [1, 3]),
        ([0, 1, 2], [3]),
        ([0, 1, 2], [2, 3, 0]),
        ([], [0, 1, 2, 3]),
        ([0, 1, 2, 3], []),
        ([], []),
    ]
    command = [sys.executable, __file__, str(tmp_path), json.dumps(shares)]
    finished = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=180, check=False)
    assert finished.returncode == 0, finished.stderr
    for rank in (0, 1):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        assert results[:-1] == [as_text(alone)] * (len(shares) - 1)
        assert results[-1].count("NaN") == len(MEANS)


def share_the_work(folder, shares, rank):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = []
    for share in shares:
        metric = RegionBoundary()
        score(metric, share[rank])
        results.append(as_text(metric.compute()))
    (folder / f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    second = os.fork()  # after the imports, which take longest
    share_the_work(Path(sys.argv[1]), json.loads(sys.argv[2]), rank=0 if second else 1)
    sys.exit(os.waitpid(second, 0)[1] if second else 0)
