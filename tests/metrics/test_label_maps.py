"""Confusion of label maps and scores of labels: exact, whoever counted which image, and how often."""

import numpy as np
import pytest
import torch

from lightning_vos.evaluation.semantic import ClassSet, measures
from lightning_vos.metrics.label_maps import ImageLabels, LabelMapConfusion

CLASSES = ClassSet("two", ("background", "cat", "dog"))


def label_map(*values):
    return np.array(values, np.uint8)[:, None]


def test_pixels_are_counted_by_true_and_predicted_value():
    metric = LabelMapConfusion()
    metric.update(0, label_map(0, 1, 1, 255), label_map(0, 1, 0, 2))
    metric.update(1, label_map(2, 2), label_map(1, 255))
    counts = metric.compute()
    assert counts.sum() == 6
    assert (counts[0, 0], counts[1, 1], counts[1, 0], counts[255, 2]) == (1, 1, 1, 1)
    assert (counts[2, 1], counts[2, 255]) == (1, 1)
    summary, categories = measures(counts, CLASSES, "counted")
    assert {name: row["IoU"] for name, row in categories.items()} == {
        "background": 50.0,
        "cat": pytest.approx(100 / 3),
        "dog": 0.0,
    }
    assert summary["mIoU"] == pytest.approx((50 + 100 / 3) / 3)


def test_an_image_counts_once_in_any_order():
    rng = np.random.default_rng(0)
    pairs = {number: rng.integers(0, 4, (2, 9, 7)).astype(np.uint8) for number in range(5)}
    found = []
    for order in ((0, 1, 2, 3, 4), (4, 2, 2, 0, 3, 1, 4)):
        metric = LabelMapConfusion()
        for number in order:
            metric.update(number, *pairs[number])
        found.append(metric.compute())
    assert np.array_equal(*found)
    assert found[0].sum() == 5 * 63


def test_scores_of_labels():
    metric = ImageLabels(3)
    probabilities = torch.tensor([[0.9, 0.6, 0.1], [0.8, 0.7, 0.2], [0.3, 0.4, 0.1]])
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    for number in (2, 0, 1, 0):
        metric.update(number, probabilities[number], labels[number])
    scores = metric.compute()
    # Class 0 is found at ranks 1 and 3, class 1 at rank 1; no image shows class 2, nor is said to.
    assert scores.mean_average_precision == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1) / 2)
    assert scores.f1 == pytest.approx(100 * (0.5 + 2 / 3) / 2)


@pytest.mark.parametrize("classes", [1, 2])
def test_one_class_that_is_shown_is_enough(classes):
    metric = ImageLabels(classes)
    for number in range(4):
        labels = torch.zeros(classes)
        labels[0] = number % 2
        metric.update(number, 0.1 + 0.2 * number * labels, labels)
    scores = metric.compute()
    assert scores.mean_average_precision == 100
    assert scores.f1 == pytest.approx(100 * 2 / 3)  # one of the two is said


def test_there_is_nothing_to_score():
    labels, confusion = ImageLabels(2), LabelMapConfusion()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert all(np.isnan(value) for value in labels.compute())
        assert not confusion.compute().any()
    labels.update(0, torch.tensor([0.4, 0.6]), torch.zeros(2))
    assert np.isnan(labels.compute().mean_average_precision)
    labels.reset()
    assert len(labels.rows[0]) == 0
