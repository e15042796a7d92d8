"""Which object a mask is on, and when it has changed over to another: hand-made cases, and J as a second opinion."""

import math

import numpy as np
import pytest

from lightning_vos.metrics.functional import object_scores, region_similarity
from lightning_vos.metrics.identity import ON_OBJECT, Identity, identity, objects_under
from lightning_vos.metrics.sequence import Plan, SequenceScorer, summarize


def row(text):
    """A label map of one row, a digit a pixel."""
    return np.array([[int(digit) for digit in text]], np.uint8)


def under(prediction, truth, ids):
    return objects_under(prediction, truth, ids, object_scores(prediction, truth, ids))


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
    assert tuple(under(row(prediction), row(truth), (1, 2))) == expected


def test_ids_are_those_given_in_their_order():
    ids = np.array([0, 200, 9, 255], np.uint8)
    truth = ids[np.array([[1, 1, 2, 2, 3]])]
    prediction = ids[np.array([[2, 2, 1, 1, 1]])]
    for predicted in (prediction, prediction.astype(np.int64), np.insert(prediction, 0, 7, axis=1)[:, 1:]):
        assert tuple(under(predicted, truth, (200, 9))) == (9, 200)
        assert tuple(under(predicted, truth, (9, 200))) == (200, 9)
        assert tuple(under(predicted, truth, (9,))) == (0,)  # on one that nobody asked for
        assert under(predicted, truth, ()).shape == (0,)


def test_it_is_the_object_of_the_highest_j():
    """Blocks of random labels against J of one pair of masks at a time."""
    random, found = np.random.default_rng(0), []
    for _ in range(60):
        prediction, truth = random.integers(0, 4, (2, 2, 3)).repeat(5, axis=1).repeat(7, axis=2)
        for k, on in zip((1, 2, 3), under(prediction, truth, (1, 2, 3)), strict=True):
            measured = {
                j: region_similarity(prediction == k, truth == j) if (truth == j).any() else 0 for j in (1, 2, 3)
            }
            best = max(measured.values())
            assert measured[on] == best if on else best < ON_OBJECT
            assert on == k or measured[k] < best or not on
            found.append(on)
    assert {0, 1, 2, 3} == set(found)


@pytest.mark.parametrize(
    ("path", "switches", "swapped"),
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
def test_switches_of_object_1(path, switches, swapped):
    assert identity(1, np.array(path)) == Identity(switches, swapped)


def test_of_no_frame_there_is_no_share():
    kept = identity(1, np.array([], np.int64))
    assert kept.switches == 0
    assert math.isnan(kept.swapped)


def scored(predictions, truth="1122000", ids=(1, 2)):
    """The rows of a video whose truth stands still."""
    frames = range(1, 1 + len(predictions))
    scorer = SequenceScorer(Plan(tuple(frames), dict.fromkeys(ids, frozenset(frames))))
    for frame, prediction in zip(frames, predictions, strict=True):
        scorer.add(frame, row(prediction), row(truth))
    return scorer.rows()


EXCHANGED = ["1122000", "1022000", "2211000", "0211000", "2211000"]  # after two frames, for good
TAKEN_OVER = ["1122000", "0011000", "0011000", "0000000"]  # 1 jumps onto 2, which is lost


def test_switches_add_up_and_shares_are_averaged():
    scores = summarize({4: scored(EXCHANGED), 7: scored(TAKEN_OVER)})

    def kept(row):
        return row["switches"], row["swapped"]

    assert {key: kept(row) for key, row in scores.objects.items()} == {
        (4, 1): (1, 60.0),
        (4, 2): (1, 60.0),
        (7, 1): (1, 50.0),
        (7, 2): (0, 0.0),
    }
    assert {key: kept(row) for key, row in scores.sequences.items()} == {4: (2, 60.0), 7: (1, 25.0)}
    assert kept(scores.summary) == (3, pytest.approx(42.5))
    nothing = summarize({}).summary
    assert nothing["switches"] == 0
    assert math.isnan(nothing["swapped"])
