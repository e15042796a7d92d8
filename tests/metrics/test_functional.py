import math
import subprocess
import sys

import numpy as np
import pytest

from lightning_vos.errors import UserError
from lightning_vos.metrics.functional import (
    boundary_f_measure,
    davis2017_frames,
    davis2017_objects,
    object_scores,
    region_similarity,
    statistics,
)


def boundary_by_definition(mask):
    """Loop over pixels, with the three rules of the official tool's boundary map spelt out."""
    H, W = mask.shape
    boundary = np.zeros_like(mask)
    for y in range(H):
        for x in range(W):
            right = x + 1 < W and mask[y, x] != mask[y, x + 1]
            below = y + 1 < H and mask[y, x] != mask[y + 1, x]
            diagonal = x + 1 < W and y + 1 < H and mask[y, x] != mask[y + 1, x + 1]
            boundary[y, x] = right or below or diagonal
    return boundary


def f_measure_by_definition(prediction, truth):
    """Compare every pair of boundary pixels, without any crop or dilation."""
    radius = math.ceil(0.008 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    found, wanted = (np.argwhere(boundary_by_definition(mask)) for mask in (prediction, truth))
    if not len(found) or not len(wanted):
        return float(len(found) == len(wanted))
    close = ((found[:, None] - wanted[None]) ** 2).sum(-1) <= radius**2
    precision, recall = close.any(1).sum() / len(found), close.any(0).sum() / len(wanted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (12, 17), (20, 150)])
@pytest.mark.parametrize("density", [0.0, 0.002, 0.5, 0.95, 1.0])
def test_boundary_f_measure_equals_definition(size, density):
    random = np.random.default_rng(3)
    for _ in range(4):
        truth = random.random(size) < density
        for prediction in (random.random(size) < density, np.roll(truth, (1, 3), (0, 1)), random.random(size) < 0.01):
            assert boundary_f_measure(prediction, truth) == f_measure_by_definition(prediction, truth)


@pytest.mark.parametrize(("y", "x"), [(0, 0), (0, 60), (30, 0), (30, 60), (10, 20)])
def test_boundary_f_measure_at_every_border(y, x):
    """Masks that touch a corner, and two that are far apart, need the crop to end just where the frame does."""
    prediction, truth = np.zeros((40, 70), dtype=bool), np.zeros((40, 70), dtype=bool)
    prediction[y : y + 10, x : x + 10] = True
    for dy, dx in ((0, 0), (1, 0), (0, -1), (2, 2)):
        truth[:] = np.roll(prediction, (dy, dx), (0, 1))
        assert boundary_f_measure(prediction, truth) == f_measure_by_definition(prediction, truth)


def test_two_pixels_by_hand():
    """The boundary of a pixel is the 2x2 block up to it; two columns on, half of it is within the tolerance of 1."""
    prediction, truth = np.zeros((6, 8), dtype=bool), np.zeros((6, 8), dtype=bool)
    prediction[3, 3] = truth[3, 5] = True
    assert (region_similarity(prediction, truth), boundary_f_measure(prediction, truth)) == (0.0, 0.5)
    prediction[3, 5] = True  # precision 6 of 8, recall 1
    assert (region_similarity(prediction, truth), boundary_f_measure(prediction, truth)) == (0.5, 1.5 / 1.75)


def test_empty_masks_and_full_frames():
    empty, full = np.zeros((10, 12), dtype=bool), np.ones((10, 12), dtype=bool)
    corner = empty.copy()
    corner[-1, -1] = True
    middle = empty.copy()
    middle[5, 5] = True
    assert (region_similarity(empty, empty), boundary_f_measure(empty, empty)) == (1.0, 1.0)
    assert (region_similarity(empty, full), boundary_f_measure(empty, full)) == (0.0, 1.0)
    assert (region_similarity(empty, corner), boundary_f_measure(empty, corner)) == (0.0, 0.0)
    assert (region_similarity(empty, middle), boundary_f_measure(middle, empty)) == (0.0, 0.0)


def test_memory_order_and_type_of_masks_do_not_matter():
    random = np.random.default_rng(0)
    prediction, truth = random.random((30, 40)) < 0.3, random.random((30, 40)) < 0.3
    wanted = region_similarity(prediction, truth), boundary_f_measure(prediction, truth)
    columns = np.asfortranarray(prediction)
    assert (region_similarity(columns, truth), boundary_f_measure(columns, truth)) == wanted
    bytes_ = prediction.astype(np.uint8) * 255
    assert (region_similarity(bytes_, truth), boundary_f_measure(bytes_, truth)) == wanted


@pytest.mark.parametrize("measure", [region_similarity, boundary_f_measure])
def test_masks_of_two_sizes_are_refused(measure):
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(4, 4\)"):
        measure(np.ones((1, 4), dtype=bool), np.ones((4, 4), dtype=bool))


def test_object_scores_are_those_of_each_mask():
    random = np.random.default_rng(1)
    prediction, truth = random.integers(0, 4, (2, 20, 30)).astype(np.uint8)
    region, boundary = object_scores(prediction, truth, (3, 1, 7))
    for index, object_id in enumerate((3, 1)):
        pair = prediction == object_id, truth == object_id
        assert (region[index], boundary[index]) == (region_similarity(*pair), boundary_f_measure(*pair))
    assert (region[2], boundary[2]) == (1.0, 1.0)
    assert [scores.shape for scores in object_scores(prediction, truth, ())] == [(0,), (0,)]


def test_statistics_by_hand():
    assert statistics([1.0, 0.5, 0.0]) == (0.5, 1 / 3, 0.75)  # bins [0, 1] and [2]; 0.5 itself is no recall
    assert statistics([0.25]) == (0.25, 0.0, 0.0)
    assert statistics(np.arange(401.0)).decay == 50 - 350  # limits 0, 100, 200, 300, 400 are more than 8 bits hold
    assert all(math.isnan(value) for value in statistics([]))


def test_objects_and_frames_of_davis2017():
    assert davis2017_objects(np.array([[0, 255], [3, 1]], dtype=np.uint8)) == (1, 2, 3)
    assert davis2017_objects(np.array([[0, 255]], dtype=np.uint8)) == ()
    assert list(davis2017_frames([0, 5, 10, 15])) == [5, 10]
    for few in ([], [4], [4, 5]):
        with pytest.raises(UserError, match=f"found {len(few)} annotated"):
            davis2017_frames(few)


def test_scoring_never_imports_torch():
    code = "import sys, lightning_vos.metrics.functional, lightning_vos.io.masks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
