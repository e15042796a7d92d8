import math
import subprocess
import sys

import cv2
import numpy as np
import pytest

from lightning_vos.evaluation.protocols import VOID, davis_plan
from lightning_vos.metrics.functional import boundary_f_measure, object_scores, region_similarity, statistics
from lightning_vos.metrics.sequence import Plan


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


def f_measure_by_definition(prediction, truth, boundary_of=boundary_by_definition):
    """Compare every pair of boundary pixels, without any crop or dilation."""
    radius = radius_of(truth.shape)
    found, wanted = (np.argwhere(boundary_of(mask)) for mask in (prediction, truth))
    if not len(found) or not len(wanted):
        return float(len(found) == len(wanted))
    close = ((found[:, None] - wanted[None]) ** 2).sum(-1) <= radius**2
    precision, recall = close.any(1).sum() / len(found), close.any(0).sum() / len(wanted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def radius_of(size):
    return math.ceil(0.008 * math.sqrt(size[0] ** 2 + size[1] ** 2))


def boundary_by_slices(mask):
    """The same as the loop, fast enough for whole frames."""
    boundary = np.zeros_like(mask)
    boundary[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    boundary[:-1] |= mask[:-1] != mask[1:]
    boundary[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return boundary


def f_measure_by_dilation(prediction, truth):
    """As the official tools do it: whole frames, dilated with a disk."""
    radius = radius_of(truth.shape)
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = (y**2 + x**2 <= radius**2).astype(np.uint8)
    found, wanted = (boundary_by_slices(mask) for mask in (prediction, truth))
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    near = [cv2.dilate(b.astype(np.uint8), disk, borderValue=0) > 0 for b in (wanted, found)]
    precision, recall = (found & near[0]).sum() / found.sum(), (wanted & near[1]).sum() / wanted.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blob(random, size, reach=1.0):
    """An ellipse, perhaps with a hole and a rectangle that hangs on it, anywhere in the frame or over its edge."""
    canvas = np.zeros(size, np.uint8)
    centre = tuple(int(v) for v in random.uniform((0, 0), (size[1], size[0])))
    axes = tuple(1 + int(v) for v in random.uniform(0, reach * (1 + min(size) / 3), 2))
    cv2.ellipse(canvas, centre, axes, float(random.uniform(0, 180)), 0, 360, 1, -1)
    if random.random() < 0.5:
        cv2.circle(canvas, centre, 1 + min(axes) // 3, 0, -1)
    if random.random() < 0.5:
        cv2.rectangle(canvas, centre, (centre[0] + axes[1], centre[1] + axes[0]), 1, -1)
    return canvas > 0


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (12, 17), (20, 150)])
@pytest.mark.parametrize("density", [0.0, 0.002, 0.5, 0.95, 1.0])
def test_boundary_f_measure_equals_definition(size, density):
    random = np.random.default_rng(3)
    for _ in range(4):
        truth = random.random(size) < density
        for prediction in (random.random(size) < density, np.roll(truth, (1, 3), (0, 1)), random.random(size) < 0.01):
            wanted = f_measure_by_definition(prediction, truth)
            assert boundary_f_measure(prediction, truth) == wanted
            assert f_measure_by_dilation(prediction, truth) == wanted  # what stands in for it on larger frames


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2), (63, 64), (64, 63), (65, 129), (120, 213)])
def test_blobs_in_frames_of_every_shape(size):
    random = np.random.default_rng(size)
    for _ in range(30):
        truth = blob(random, size)
        moved = np.roll(truth, tuple(random.integers(-3, 4, 2)), (0, 1))
        for prediction in (blob(random, size), moved, truth ^ (random.random(size) < 0.01)):
            assert boundary_f_measure(prediction, truth) == f_measure_by_dilation(prediction, truth)


@pytest.mark.parametrize("radius", [*range(1, 21), 36, 71])
@pytest.mark.parametrize("upright", [False, True])
def test_every_tolerance_reaches_just_its_disk(radius, upright):
    """Frames of all radii: dots in and out of reach of each other, and blobs. The longest that has the radius."""
    short = 2 * radius + 9
    long = math.floor(math.sqrt((radius / 0.008) ** 2 - short**2))
    size = (long, short) if upright else (short, long)
    assert radius_of(size) == radius
    random = np.random.default_rng(radius)
    for _ in range(3):
        truth, prediction = np.zeros((2, *size), bool)
        for _ in range(12):
            y, x = random.integers(0, size)
            turn = random.uniform(0, 2 * math.pi)
            far = radius + random.integers(-1, 3)
            truth[y, x] = True
            dot = round(y + far * math.sin(turn)), round(x + far * math.cos(turn))
            if 0 <= dot[0] < size[0] and 0 <= dot[1] < size[1]:
                prediction[dot] = True
        wanted = f_measure_by_definition(prediction, truth, boundary_by_slices)
        assert boundary_f_measure(prediction, truth) == wanted
        assert boundary_f_measure(truth, prediction) == wanted
    truth = blob(random, size, reach=0.4)
    prediction = np.roll(truth, (radius // 2, radius), (0, 1))
    assert boundary_f_measure(prediction, truth) == f_measure_by_definition(prediction, truth, boundary_by_slices)


@pytest.mark.parametrize(
    ("size", "radius"), [((480, 854), 8), ((480, 1152), 10), ((1080, 1920), 18), ((4320, 7680), 71)]
)
def test_the_tolerance_of_known_frames(size, radius):
    """A vertical bar whose boundary is `radius` columns from another's is found, one a column further is not."""
    for distance, wanted in ((radius, 1.0), (radius + 1, 0.0)):
        truth, prediction = np.zeros((2, *size), bool)
        truth[:, size[1] // 2 :] = True
        prediction[:, size[1] // 2 + distance :] = True
        assert boundary_f_measure(prediction, truth) == wanted


@pytest.mark.parametrize(
    ("y", "x"), [(0, 0), (0, 60), (30, 0), (30, 60), (10, 20), (0, 25), (12, 0), (30, 33), (8, 60)]
)
def test_boundary_f_measure_at_every_border(y, x):
    """Masks that touch an edge or a corner, and two that are far apart, need the crop to end where the frame does."""
    prediction, truth = np.zeros((40, 70), dtype=bool), np.zeros((40, 70), dtype=bool)
    prediction[y : y + 10, x : x + 10] = True
    for dy, dx in ((0, 0), (1, 0), (0, -1), (2, 2)):
        truth[:] = np.roll(prediction, (dy, dx), (0, 1))
        wanted = f_measure_by_definition(prediction, truth)
        assert boundary_f_measure(prediction, truth) == wanted
        ((region, *_), (boundary, *_), *_) = object_scores(9 * prediction, 9 * truth.astype(np.int64), (9,))
        assert (region, boundary) == (region_similarity(prediction, truth), wanted)


def test_what_is_at_one_edge_is_not_near_what_is_at_the_other():
    """Of frames of all widths around multiples of 64, which is how many pixels a word holds."""
    for width in (*range(58, 68), *range(120, 132), 256, 1920):
        left, right = np.zeros((2, 12, width), bool)
        left[3:9, 0] = True
        right[3:9, -1] = True
        above, below = np.zeros((2, 12, width), bool)
        above[0, 3:9] = True
        below[-1, 3:9] = True
        for one, other in ((left, right), (above, below)):
            assert boundary_f_measure(one, other) == f_measure_by_dilation(one, other)
            assert boundary_f_measure(other, one) == f_measure_by_dilation(other, one)


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
    for prediction, truth, wanted in (
        (empty, empty, (1.0, 1.0)),
        (full, full, (1.0, 1.0)),
        (empty, full, (0.0, 1.0)),
        (empty, corner, (0.0, 0.0)),
        (corner, full, (1 / 120, 0.0)),
        (middle, empty, (0.0, 0.0)),
    ):
        assert (region_similarity(prediction, truth), boundary_f_measure(prediction, truth)) == wanted
        scores = object_scores(prediction.astype(np.uint8), truth.astype(np.uint8), (1,))
        assert (*scores.region, *scores.boundary) == wanted


def test_the_last_pixel_of_a_frame_alone_has_no_boundary_of_its_own():
    """It is the neighbour of three others, in a frame of one row of one, in a frame of one pixel of none."""
    for size, wanted in (((3, 3), 3), ((1, 3), 1), ((3, 1), 1), ((1, 1), 0)):
        mask = np.zeros(size, bool)
        mask[-1, -1] = True
        assert boundary_by_definition(mask).sum() == wanted
        assert boundary_f_measure(mask, np.zeros(size, bool)) == float(wanted == 0)


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


def test_label_maps_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(4, 4\)"):
        object_scores(np.ones((1, 4), np.uint8), np.ones((4, 4), np.uint8), (1,))


def drawn_labels(random, size=(60, 90)):
    """Two label maps of the objects 1, 2, 5 and 255, some of which are not there or lie over the edge."""
    maps = np.zeros((2, *size), np.uint8)
    for object_id in (1, 2, 5, 255):
        mask = blob(random, size, reach=0.5)
        for labels in maps:
            if random.random() < 0.8:
                labels[np.roll(mask, tuple(random.integers(-2, 3, 2)), (0, 1))] = object_id
    return maps


def test_object_scores_are_those_of_each_mask():
    random = np.random.default_rng(1)
    absent = 0
    for _ in range(40):
        prediction, truth = drawn_labels(random)
        ids = (5, 1, 7, 255, 2)
        scores = object_scores(prediction, truth, ids)
        for index, object_id in enumerate(ids):
            found, wanted = prediction == object_id, truth == object_id
            assert scores.region[index] == region_similarity(found, wanted)
            assert scores.boundary[index] == f_measure_by_dilation(found, wanted)
            assert scores.predicted[index] == found.sum()
            assert scores.true[index] == wanted.sum()
            assert scores.shared[index] == (found & wanted).sum()
            absent += not wanted.any()
        assert (scores.region[2], scores.boundary[2]) == (1.0, 1.0)
    assert absent > 50
    assert [column.shape for column in object_scores(prediction, truth, ())] == [(0,)] * 5


def test_memory_and_type_of_label_maps_do_not_matter():
    """Decoded masks are views of rows that begin with a byte of their filter; datasets may hold wider integers."""
    random = np.random.default_rng(2)
    for _ in range(10):
        prediction, truth = drawn_labels(random)
        wanted = object_scores(prediction, truth, (1, 2, 5))
        rows = [np.insert(labels, 0, 77, axis=1)[:, 1:] for labels in (prediction, truth)]
        wide = [labels.astype(np.int64) << 8 >> 8 for labels in (prediction, truth)]
        big = [labels.astype(np.int64) * 256 for labels in (prediction, truth)]  # whose lowest bytes are empty
        every_other = [labels.repeat(2, 0).repeat(2, 1)[::2, ::2] for labels in (prediction, truth)]
        for maps, ids in (
            (rows, (1, 2, 5)),
            (wide, (1, 2, 5)),
            ((prediction, wide[1]), (1, 2, 5)),
            (big, (256, 512, 1280)),
            (every_other, (1, 2, 5)),
            ([np.asfortranarray(labels) for labels in (prediction, truth)], (1, 2, 5)),
        ):
            np.testing.assert_equal(object_scores(*maps, ids), wanted)


def test_statistics_by_hand():
    assert statistics([1.0, 0.5, 0.0]) == (0.5, 1 / 3, 0.75)  # bins [0, 1] and [2]; 0.5 itself is no recall
    assert statistics([0.25]) == (0.25, 0.0, 0.0)
    assert statistics(np.arange(401.0)).decay == 50 - 350  # limits 0, 100, 200, 300, 400 are more than 8 bits hold
    assert all(math.isnan(value) for value in statistics([]))


def test_davis_scores_the_ids_up_to_the_highest_of_the_first_mask_in_the_inner_frames():
    assert VOID == 255
    mask = np.array([[0, VOID], [3, 1]], dtype=np.uint8)
    assert davis_plan([0, 5, 10, 15], mask) == Plan((5, 10), {1: {5, 10}, 2: {5, 10}, 3: {5, 10}})
    assert davis_plan([0, 5, 10], np.array([[0, VOID]], dtype=np.uint8)) == Plan((5,), {})
    for few in ([], [4], [4, 5]):
        assert davis_plan(few, mask) == Plan((), {1: set(), 2: set(), 3: set()})


def test_scoring_never_imports_torch():
    code = "import sys, lightning_vos.metrics.functional, lightning_vos.io.masks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
