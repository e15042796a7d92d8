"""Which objects count in which frames, and what becomes of their numbers: videos of one row of pixels, by hand."""

import math

import numpy as np
import pytest

from lightning_vos.metrics.functional import object_scores
from lightning_vos.metrics.sequence import (
    Column,
    Group,
    Plan,
    SequenceScorer,
    mean_of_objects,
    summarize,
    values,
)


def row(text):
    """A label map of one row, a digit a pixel."""
    return np.array([[int(digit) for digit in text]], np.uint8)


def scorer_of(plan, **frames):
    """Scores `f<number>="prediction truth"`."""
    scorer = SequenceScorer(plan)
    for name, pair in frames.items():
        scorer.add(int(name[1:]), *map(row, pair.split()))
    return scorer


def scored(scorer):
    """Object -> frame -> J."""
    found = {}
    rows = scorer.rows()
    for object_id, frame, region in zip(rows[:, 0].tolist(), rows[:, 1].tolist(), values(rows, 2), strict=True):
        found.setdefault(object_id, {})[frame] = float(region)
    return found


def table(region, boundary=None, object_id=1, group=Group.NONE, under=None):
    """Rows of one object as a scorer gives them."""
    rows = np.zeros((len(region), len(Column)), np.int64)
    rows[:, Column.OBJECT], rows[:, Column.FRAME], rows[:, Column.GROUP] = object_id, np.arange(len(region)), group
    rows[:, Column.REGION] = np.array(region, float).view(np.int64)
    rows[:, Column.BOUNDARY] = np.array(region if boundary is None else boundary, float).view(np.int64)
    rows[:, Column.UNDER] = object_id if under is None else under
    return rows


def test_rows_hold_every_bit_of_the_scores_of_a_frame():
    random = np.random.default_rng(0)
    prediction, truth = random.integers(0, 4, (2, 24, 32)).astype(np.uint8)
    scorer = SequenceScorer(Plan((7,), {3: {7}, 1: {7}, 9: {7}}, {3: Group.UNSEEN, 1: Group.SEEN}))
    scorer.add(7, prediction, truth)
    rows, expected = scorer.rows(), object_scores(prediction, truth, (3, 1, 9))
    assert rows.dtype == np.int64
    assert rows[:, Column.OBJECT].tolist() == [3, 1, 9]
    assert rows[:, Column.FRAME].tolist() == [7, 7, 7]
    assert rows[:, Column.GROUP].tolist() == [Group.UNSEEN, Group.SEEN, Group.NONE]
    assert values(rows, Column.REGION).tolist() == expected.region.tolist()
    assert values(rows, Column.BOUNDARY).tolist() == expected.boundary.tolist()


def test_masks_are_not_kept_and_not_changed():
    prediction, truth = row("1122"), row("1222")
    scorer = SequenceScorer(Plan((0, 1), None))
    scorer.add(0, prediction, truth)
    assert prediction.tolist() == [[1, 1, 2, 2]]
    truth[:] = 0
    scorer.add(1, prediction, row("1222"))
    assert scored(scorer) == {1: {0: 0.5, 1: 0.5}, 2: {0: 2 / 3, 1: 2 / 3}}


def test_objects_count_in_the_frames_of_the_plan_alone():
    plan = Plan((1, 2, 3), {1: {1, 2, 3}, 2: {2, 3}, 5: {3}})
    scorer = scorer_of(plan, f1="1220 1220", f2="1200 1220", f3="1000 0000")
    assert scored(scorer) == {1: {1: 1.0, 2: 1.0, 3: 0.0}, 2: {2: 0.5, 3: 1.0}, 5: {3: 1.0}}
    assert (scorer.extra(), scorer.unplanned) == ({}, {})


def test_a_planned_object_that_is_nowhere_is_right_where_it_is_not_predicted():
    """DAVIS: a gap between the ids of the first mask."""
    scorer = scorer_of(Plan((1, 2), {1: {1, 2}, 2: {1, 2}}), f1="1100 1100", f2="1120 1100")
    assert scored(scorer)[2] == {1: 1.0, 2: 0.0}


def test_strangers_to_the_plan_are_background_and_told():
    plan = Plan((1, 2, 3, 4), {1: {1, 2, 3, 4}, 3: {1, 2, 3, 4}})
    scorer = scorer_of(plan, f1="1100 1100", f2="1122 1140", f3="1123 1123", f4="9100 1100")
    assert scored(scorer) == {
        1: {1: 1.0, 2: 1.0, 3: 1.0, 4: 0.5},
        3: {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0},
    }
    assert scorer.extra() == {2: [2, 3], 9: [4]}
    assert scorer.unplanned == {4: [2], 2: [3]}


def test_strangers_between_and_above_the_known_ids_are_found():
    random = np.random.default_rng(1)
    for known in ((1, 2, 3), (1, 2, 4), (2,), (255,), (1, 2, 255), ()):
        prediction, truth = random.choice([0, 1, 2, 3, 4, 77, 255], (2, 5, 6)).astype(np.uint8)
        scorer = SequenceScorer(Plan((0,), {object_id: {0} for object_id in known}))
        scorer.add(0, prediction, truth)
        for labels, strangers in ((prediction, scorer.extra()), (truth, scorer.unplanned)):
            assert strangers == {int(k): [0] for k in np.unique(labels) if k not in (0, *known)}


class TestWithoutAListOfObjects:
    """vos-benchmark: what the truth shows in a scored frame, from the first in which truth or prediction shows it."""

    plan = Plan((1, 2, 3, 4), None)

    def test_an_object_counts_from_where_the_truth_shows_it(self):
        scorer = scorer_of(self.plan, f1="1100 1100", f2="1122 1120", f3="1100 1100", f4="1120 1100")
        assert scored(scorer) == {1: dict.fromkeys((1, 2, 3, 4), 1.0), 2: {2: 0.5, 3: 1.0, 4: 0.0}}

    def test_an_object_counts_from_where_the_prediction_shows_it(self):
        scorer = scorer_of(self.plan, f1="0000 0000", f2="0020 0000", f3="0000 0000", f4="0020 0020")
        assert scored(scorer) == {2: {2: 0.0, 3: 1.0, 4: 1.0}}
        assert scorer.extra() == {}

    def test_what_is_predicted_and_never_true_does_not_count_and_is_told(self):
        scorer = scorer_of(self.plan, f1="1130 1100", f2="1100 1100", f3="1133 1100", f4="1100 1100")
        assert scored(scorer) == {1: dict.fromkeys((1, 2, 3, 4), 1.0)}
        assert scorer.extra() == {3: [1, 3]}

    def test_a_gap_between_the_ids_is_no_object(self):
        scorer = scorer_of(self.plan, f1="1030 1030", f2="1030 1030")
        assert scored(scorer) == {1: {1: 1.0, 2: 1.0}, 3: {1: 1.0, 2: 1.0}}

    def test_255_is_an_object(self):
        scorer = SequenceScorer(self.plan)
        scorer.add(1, np.array([[255, 255]], np.uint8), np.array([[255, 0]], np.uint8))
        assert scored(scorer) == {255: {1: 0.5}}

    def test_nothing_true_gives_no_row(self):
        scorer = scorer_of(self.plan, f1="1100 0000", f2="0000 0000")
        assert scorer.rows().shape == (0, len(Column))
        assert scorer.extra() == {1: [1]}
        assert SequenceScorer(self.plan).rows().shape == (0, len(Column))
        assert SequenceScorer(self.plan).extra() == {}

    def test_rows_may_be_asked_for_at_any_time(self):
        scorer = SequenceScorer(self.plan)
        scorer.add(1, row("0200"), row("0000"))
        assert scored(scorer) == {}
        scorer.add(2, row("0200"), row("0200"))
        assert scored(scorer) == {2: {1: 0.0, 2: 1.0}}


def test_label_maps_of_two_sizes_are_refused():
    scorer = SequenceScorer(Plan((0,), {1: {0}}))
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(1, 2\)"):
        scorer.add(0, row("1111"), row("11"))


def test_every_object_counts_alike_whichever_video_it_is_of():
    tables = {
        "a": np.concatenate([table([1.0, 0.5], [0.5, 0.5], 1), table([0.0, 0.0], [0.0, 0.5], 4)]),
        "b": table([0.5] * 9, [0.25] * 9),
    }
    scores = summarize(tables)
    assert {key: (row["J"], row["F"], row["J&F"]) for key, row in scores.objects.items()} == {
        ("a", 1): (75.0, 50.0, 62.5),
        ("a", 4): (0.0, 25.0, 12.5),
        ("b", 1): (50.0, 25.0, 37.5),
    }
    assert [scores.sequences["a"][name] for name in ("J", "F", "J&F")] == [37.5, 37.5, 37.5]
    assert scores.summary["J"] == pytest.approx(125 / 3)
    assert scores.summary["F"] == pytest.approx(100 / 3)
    assert scores.summary["J&F"] == pytest.approx(225 / 6)
    assert not any("seen" in name for name in scores.summary)


def test_statistics_are_those_of_each_object_in_percent():
    rows = summarize({0: table([1.0, 0.5, 0.0], [0.25, 0.75, 0.75])}).objects[0, 1]
    assert rows == pytest.approx(
        {
            "J&F": 100 * (1.5 + 1.75) / 6,
            "J": 50.0,
            "F": 100 * 1.75 / 3,
            "J_recall": 100 / 3,
            "J_decay": 75.0,
            "F_recall": 200 / 3,
            "F_decay": -25.0,
            "V": 100 * math.sqrt(0.0139),  # the variance of 5/8, 5/8 and 3/8 is 1/72
            "swapped": 0.0,
            "switches": 0,
        }
    )


def test_the_variance_is_rounded_to_four_places_before_the_root():
    """0.5, 0.52: a variance of 0.0001; 0.5, 0.51: of 0.000025, which is nothing."""
    for region, variance in (([0.5, 0.52], 0.0001), ([0.5, 0.51], 0.0), ([0.0, 1.0], 0.25), ([0.3], 0.0)):
        assert summarize({0: table(region)}).objects[0, 1]["V"] == 100 * math.sqrt(variance)
    both = summarize({0: table([0.5, 0.5], [0.5, 0.54])}).objects[0, 1]  # of the mean of J and F
    assert both["V"] == 100 * math.sqrt(0.0001)


def test_groups_are_averaged_apart_and_then_evenly():
    tables = {
        "a": np.concatenate([table([1.0], [0.5], k, Group.SEEN) for k in (1, 2, 3)]),
        "b": np.concatenate(
            [table([0.5, 0.0], [0.25, 0.25], 1, Group.UNSEEN, under=[1, 2]), table([0.5], [0.0], 2, Group.SEEN)]
        ),
    }
    scores = summarize(tables)
    summary = scores.summary
    J_seen, F_seen, J_unseen, F_unseen = (100 * v for v in ((3 + 0.5) / 4, 1.5 / 4, 0.25, 0.25))
    expected = {
        "J_seen": J_seen,
        "F_seen": F_seen,
        "V_seen": 0.0,
        "J_unseen": J_unseen,
        "F_unseen": F_unseen,
        "V_unseen": 100 * math.sqrt(0.0156),  # of 3/8 and 1/8, which is 1/64
        "J": (J_seen + J_unseen) / 2,
        "F": (F_seen + F_unseen) / 2,
        "V": 100 * math.sqrt(0.0156) / 2,
        "J&F": (J_seen + J_unseen + F_seen + F_unseen) / 4,
        "J_recall": 100 * (3 / 4 + 0) / 2,
        "F_recall": 0.0,
        "J_decay": scores.objects["b", 1]["J_decay"] / 2,  # 0 of all seen ones, which have one frame
        "F_decay": 0.0,
        "swapped": 100 * (0 + 1 / 2) / 2,
        "switches": 1,
    }
    assert scores.objects["b", 1]["J_decay"] > 0
    assert summary == pytest.approx(expected)


@pytest.mark.parametrize("group", [Group.SEEN, Group.UNSEEN])
def test_a_mean_over_an_empty_group_is_none(group):
    summary = summarize({"a": table([1.0], [0.5], 1, group)}).summary
    here = "seen" if group == Group.SEEN else "unseen"
    assert (summary[f"J_{here}"], summary[f"F_{here}"]) == (100.0, 50.0)
    assert summary.pop("switches") == 0
    there = {name for name, value in summary.items() if not math.isnan(value)}
    assert there == {f"{name}_{here}" for name in "JFV"}


def test_of_nothing_there_is_no_mean():
    scores = summarize({"a": np.empty((0, len(Column)), np.int64)})
    assert (scores.objects, scores.sequences) == ({}, {})
    assert scores.summary.pop("switches") == 0
    assert all(math.isnan(value) for value in scores.summary.values())
    assert set(mean_of_objects([])) == {*scores.summary, "switches"}


def test_switches_are_added_up_and_shares_averaged():
    tables = {
        0: np.concatenate([table([1.0] * 4, None, 1, under=[1, 2, 0, 1]), table([1.0] * 4, None, 2, under=0)]),
        1: table([1.0] * 2, None, 3, under=[4, 4]),
    }
    scores = summarize(tables)
    assert {k: (row["switches"], row["swapped"]) for k, row in scores.objects.items()} == {
        (0, 1): (2, 25.0),
        (0, 2): (0, 0.0),
        (1, 3): (1, 100.0),
    }
    assert (scores.sequences[0]["switches"], scores.sequences[0]["swapped"]) == (2, 12.5)
    assert (scores.summary["switches"], scores.summary["swapped"]) == (3, pytest.approx(125 / 3))
