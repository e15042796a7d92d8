"""Which object a mask is on, and when it has changed over to another: hand-made cases, and J as a second opinion."""

import math

import numpy as np
import pytest

from lightning_vos.metrics.functional import VOID, region_similarity
from lightning_vos.metrics.identity import ON_OBJECT, Identity, identity, objects_under, pooled
from lightning_vos.metrics.region_boundary import RegionBoundary


def row(text):
    """A label map of one row, a digit a pixel."""
    return np.array([[int(digit) for digit in text]], np.uint8)


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        ("1122", "1122", (1, 2)),
        ("2211", "1122", (2, 1)),
        ("1111", "1122", (1, 0)),  # one on both, evenly: its own counts; nothing is left for the other
        ("2222", "1122", (0, 2)),
        ("0000", "1122", (0, 0)),
        ("1122", "0022", (0, 2)),  # the truth of 1 is hidden
        ("2200", "1122", (0, 1)),
        ("1111111111", "2220000000", (2, 0)),  # 3 of 10
        ("1111111111", "2200000000", (0, 0)),
        ("1111333322", "1111222222", (1, 2)),  # 3 is nothing that is tracked
        ("1133", "1133", (1, 0)),
    ],
)
def test_a_mask_is_on_the_object_it_shares_most_with(prediction, truth, expected):
    assert tuple(objects_under(row(prediction), row(truth), (1, 2))) == expected


def test_ids_are_those_given_in_their_order():
    ids = np.array([0, 200, 9, VOID], np.uint8)
    truth = ids[np.array([[1, 1, 2, 2, 3]])]
    prediction = ids[np.array([[2, 2, 1, 1, 1]])].astype(np.int64)
    assert tuple(objects_under(prediction, truth, (200, 9))) == (9, 200)
    assert tuple(objects_under(prediction, truth, (9, 200))) == (200, 9)
    assert objects_under(prediction, truth, ()).shape == (0,)


def test_it_is_the_object_of_the_highest_j():
    """Blocks of random labels against J of one pair of masks at a time."""
    random, found = np.random.default_rng(0), []
    for _ in range(60):
        prediction, truth = random.integers(0, 4, (2, 2, 3)).repeat(5, axis=1).repeat(7, axis=2)
        for k, under in zip((1, 2, 3), objects_under(prediction, truth, (1, 2, 3)), strict=True):
            measured = {
                j: region_similarity(prediction == k, truth == j) if (truth == j).any() else 0 for j in (1, 2, 3)
            }
            best = max(measured.values())
            assert measured[under] == best if under else best < ON_OBJECT
            assert under == k or measured[k] < best or not under
            found.append(under)
    assert {0, 1, 2, 3} == set(found)


def test_label_maps_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(1, 1\)"):
        objects_under(row("1111"), row("1"), (1,))


@pytest.mark.parametrize(
    ("under", "switches", "swapped"),
    [
        ([1, 1, 1, 1], 0, 0),
        ([1, 0, 0, 1], 0, 0),  # lost and found
        ([1, 2, 2, 2], 1, 0.75),
        ([1, 2, 2, 1], 2, 0.5),  # there and back
        ([2, 2, 2, 2], 1, 1),  # the first mask is given: it began on itself
        ([0, 0, 0, 2], 1, 0.25),  # lost at once, found on another
        ([2, 0, 2, 0], 1, 0.5),  # lost and found on the same other
        ([2, 0, 3, 1], 3, 0.5),
        ([0, 0, 0, 0], 0, 0),  # lost is not switched
    ],
)
def test_switches_of_object_1(under, switches, swapped):
    assert identity(1, np.array(under)) == Identity(switches, swapped)


def test_switches_add_up_and_shares_are_averaged():
    assert pooled([Identity(2, 0.5), Identity(0, 0.0), Identity(1, 1.0)]) == Identity(3, 0.5)
    nothing = pooled([])
    assert nothing.switches == 0
    assert math.isnan(nothing.swapped)


def score(metric, sequence, predictions, truth="1122000", ids=(1, 2), order=None):
    """Scores the frames 1, 2, ... of a sequence whose truth stands still."""
    for frame in order or range(1, 1 + len(predictions)):
        metric.update(sequence, frame, ids, row(predictions[frame - 1]), row(truth))


EXCHANGED = ["1122000", "1022000", "2211000", "0211000", "2211000"]  # after two frames, for good
TAKEN_OVER = ["1122000", "0011000", "0011000", "0000000"]  # 1 jumps onto 2, which is lost


def test_a_metric_of_two_videos():
    metric = RegionBoundary()
    score(metric, 4, EXCHANGED)
    score(metric, 7, TAKEN_OVER)
    scores = metric.compute().identity
    assert scores.objects == {
        (4, 1): Identity(1, 0.6),
        (4, 2): Identity(1, 0.6),
        (7, 1): Identity(1, 0.5),
        (7, 2): Identity(0, 0.0),
    }
    assert scores.sequences == {4: Identity(2, 0.6), 7: Identity(1, 0.25)}
    assert scores.summary == Identity(3, pytest.approx(0.425))


def test_order_repetition_and_processes_change_nothing():
    """A sampler that evens out two processes gives a video to both; what they hold is put together."""
    alone, first, second = RegionBoundary(), RegionBoundary(), RegionBoundary()
    for sequence in range(3):
        score(alone, sequence, EXCHANGED[sequence:])
    score(first, 0, EXCHANGED, order=[5, 2, 3, 1, 4, 2])
    score(first, 1, EXCHANGED[1:])
    score(second, 2, EXCHANGED[2:])
    score(second, 1, EXCHANGED[1:], order=[4, 3, 2, 1])
    first.merge_state(second)
    assert first.compute().identity == alone.compute().identity
    assert alone.compute().identity.summary.switches == 6


def test_reset_forgets():
    metric = RegionBoundary()
    score(metric, 0, EXCHANGED)
    metric.reset()
    score(metric, 0, EXCHANGED[:2])
    assert metric.compute().identity.summary == Identity(0, 0.0)
