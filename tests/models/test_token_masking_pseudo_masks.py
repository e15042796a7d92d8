import itertools
import sys
from collections import Counter, deque
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lightning_vos.errors import ConfigError, MaskError
from lightning_vos.evaluation.semantic import CLASS_SETS, ClassSet
from lightning_vos.io.class_maps import read_class_maps, write_class_maps
from lightning_vos.models.token_masking.filling import fill_majority, fill_nearest
from lightning_vos.models.token_masking.inference import MapSettings, class_maps
from lightning_vos.models.token_masking.network import GateSettings, TokenMaskingNetwork, ViTSettings
from lightning_vos.models.token_masking.pseudo_masks import (
    PixelValues,
    PseudoMaskSettings,
    class_maps_to_keep,
    label_map,
    normalised,
    pixel_values,
)
from lightning_vos.models.token_masking.refinement import dense_crf, pixel_adaptive_refinement, refined_by_crf

VOID, BACKGROUND = 255, 0
VALUES = PixelValues((1, 2, 3), BACKGROUND, VOID)


def row(*numbers):
    """A map of one row."""
    return torch.tensor([[float(number) for number in numbers]])


def made(maps, probabilities, size=None, values=VALUES, *, labels=None, image=None, **settings):
    maps = torch.stack(maps)
    size = size or tuple(maps.shape[1:])
    settings = PseudoMaskSettings(**settings)
    truth = None if labels is None else torch.tensor(labels)
    return label_map(maps, torch.tensor(probabilities), size, values, settings, labels=truth, image=image)


def spread(labels, holes):
    """Breadth first, pixel by pixel."""
    labels = labels.copy()
    queue = deque(zip(*np.nonzero(labels >= 0), strict=True))
    while queue:
        y, x = queue.popleft()
        for to in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= to[0] < labels.shape[0] and 0 <= to[1] < labels.shape[1]
            if inside and holes[to] and labels[to] < 0:
                labels[to] = labels[y, x]
                queue.append(to)
    return labels


def vote(labels, holes):
    """Pass by pass, pixel by pixel."""
    while True:
        following = labels.copy()
        for y, x in zip(*np.nonzero(holes & (labels < 0)), strict=True):
            window = labels[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            votes = Counter(window[window >= 0].tolist())
            if votes:
                following[y, x] = min(votes, key=lambda label: (-votes[label], label))
        if (following == labels).all():
            return labels
        labels = following


@pytest.mark.parametrize(("ours", "plain"), [(fill_nearest, spread), (fill_majority, vote)])
@pytest.mark.parametrize("seed", range(4))
def test_filling_equals_going_pixel_by_pixel(ours, plain, seed):
    random = np.random.default_rng(seed)
    labels = np.where(random.random((17, 13)) < 0.06, random.integers(0, 4, (17, 13)), -1)
    for holes in (labels < 0, (labels < 0) & (random.random(labels.shape) < 0.8)):
        before = labels.copy()
        np.testing.assert_array_equal(ours(labels, holes), plain(labels, holes))
        np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("fill", [fill_nearest, fill_majority])
def test_filling_reaches_no_further_than_labels_do(fill):
    labels = np.array([[2, -1, -1, -1, -1]])
    holes = np.array([[False, True, False, True, False]])
    np.testing.assert_array_equal(fill(labels, holes), [[2, 2, -1, -1, -1]])
    nothing = np.full((3, 3), -1)
    np.testing.assert_array_equal(fill(nothing, nothing < 0), nothing)


@pytest.mark.parametrize(
    ("classes", "names", "expected"),
    [
        ("voc", CLASS_SETS["voc"].names[1:], (tuple(range(1, 21)), 0, 255)),
        ("voc", CLASS_SETS["voc"].names, (tuple(range(21)), 0, 255)),  # with a token for the background
        ("ade20k", CLASS_SETS["ade20k"].names, (tuple(range(1, 151)), 0, 0)),
        ("ade20k", ("other", *CLASS_SETS["ade20k"].names), (tuple(range(151)), 0, 0)),
        (ClassSet("tiles", ("wood", "water")), ("wood", "water"), ((0, 1), 255, 255)),
        (ClassSet("polyp or not", ("background", "polyps")), ("cecum", "polyps", "ulcer"), ((0, 1, 0), 0, 255)),
    ],
)
def test_values_of_the_classes(classes, names, expected):
    assert pixel_values(CLASS_SETS.get(classes, classes) if isinstance(classes, str) else classes, names) == expected


def test_more_probable_classes_go_over_others():
    maps = [row(1, 1, 1, 0, 0, 0), row(0, 0, 1, 1, 0, 0), row(5, 0, 0, 0, 0, 0)]
    assert made(maps, [0.6, 0.9, 0.2]).tolist() == [[1, 1, 2, 2, 0, 0]]
    assert made(maps, [0.9, 0.6, 0.2]).tolist() == [[1, 1, 1, 2, 0, 0]]
    assert made(maps, [0.9, 0.9, 0.9]).tolist() == [[3, 1, 2, 2, 0, 0]]  # the last of equals
    assert made(maps, [0.9, 0.6, 0.2], merge="argmax", threshold=0.1).dtype == np.uint8


def test_argmax_compares_maps_from_0_to_1():
    maps = [row(0, 8, 9, 10), row(0.4, 0.3, 0.1, 0.0)]
    values = VALUES._replace(classes=(1, 2))
    assert made(maps, [0.9, 0.8], values=values, merge="argmax").tolist() == [[2, 1, 1, 1]]
    assert made(maps, [0.8, 0.9], values=values, merge="argmax").tolist() == [[2, 1, 1, 1]]
    assert made(maps, [0.8, 0.9], values=values).tolist() == [[2, 2, 1, 1]]


def test_thresholds():
    plane = row(0, 1, 2, 3, 4, 5, 10, 10)  # mean 4.375
    for threshold, first in (("mean", 5), (0.4, 4), (0.41, 5), (0.0, 0), ("otsu", 6)):
        assert made([plane], [0.9], threshold=threshold).tolist() == [[BACKGROUND] * first + [1] * (8 - first)]


@pytest.mark.parametrize("threshold", ["mean", "otsu", 0.5])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 7.0])
def test_a_map_of_one_patch_is_the_whole_image(threshold, value):
    assert (made([torch.tensor([[value]])], [0.9], (7, 9), threshold=threshold) == 1).all()


@pytest.mark.parametrize("threshold", ["mean", "otsu"])
def test_maps_of_zeros(threshold):
    maps = [row(0, 0, 0), row(0, 0, 1)]
    for probabilities in ([0.9, 0.6], [0.6, 0.9]):
        assert made(maps, probabilities, threshold=threshold).tolist() == [[0, 0, 2]]
    assert made(maps, [0.9, 0.6], threshold=threshold, zero_maps="everywhere").tolist() == [[1, 1, 1]]
    assert made(maps, [0.6, 0.9], threshold=threshold, zero_maps="everywhere").tolist() == [[1, 1, 2]]


def test_which_classes_an_image_shows():
    maps = [row(1, 0, 0), row(0, 1, 0), row(0, 0, 1)]
    assert made(maps, [0.5, 0.500001, 0.1]).tolist() == [[0, 2, 0]]
    assert made(maps, [0.3, 0.2, 0.4]).tolist() == [[0, 0, 0]]
    assert made(maps, [0.3, 0.2, 0.4], top1=True).tolist() == [[0, 0, 3]]
    assert made(maps, [0.9, 0.2, 0.4], top1=True).tolist() == [[1, 0, 0]]


def test_image_level_truth_counts_in_place_of_probabilities():
    maps, probabilities = torch.stack([row(1, 0, 0), row(0, 1, 0), row(0, 0, 1)]), torch.tensor([0.9, 0.2, 0.1])
    settings = PseudoMaskSettings(labels="image")
    found = label_map(maps, probabilities, (1, 3), VALUES, settings, labels=torch.tensor([0.0, 1.0, 1.0]))
    assert found.tolist() == [[0, 2, 3]]
    with pytest.raises(ValueError, match="set labels to predicted"):
        label_map(maps, probabilities, (1, 3), VALUES, settings)


def test_nothing_shown_is_background_or_ignored():
    for background, value in (("unassigned", BACKGROUND), ("none", VOID)):
        found = made([row(1, 2)], [0.1], (5, 6), background=background)
        assert (found == value).all()
        assert found.shape == (5, 6)
    assert (made([row(1, 2)], [0.1], (5, 6), background="threshold", threshold=0.4) == BACKGROUND).all()


@pytest.mark.parametrize("fill", ["nearest", "majority"])
def test_small_holes_alone_are_filled_before_the_rest_is_background(fill):
    plane = torch.zeros(20, 30)
    plane[2:18, 2:20] = 1
    plane[4:6, 4:6] = 0  # 4 pixels of 600
    plane[9:14, 9:14] = 0  # 25
    maps = [plane, torch.zeros_like(plane)]
    found = made(maps, [0.9, 0.1], fill=fill, largest_hole=0.01)
    expected = plane.numpy().copy()
    expected[4:6, 4:6] = 1
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(made(maps, [0.9, 0.1], fill="none", largest_hole=0.01), plane)
    np.testing.assert_array_equal(made(maps, [0.9, 0.1], fill=fill, largest_hole=0), plane)
    assert (made(maps, [0.9, 0.1], fill=fill, background="none") == 1).all()


def test_background_by_a_number():
    maps = [row(0, 3, 6, 10), row(10, 8, 2, 0)]
    for threshold, expected in ((0.7, [2, 2, 0, 1]), (0.8, [2, 0, 0, 1]), (0.85, [2, 0, 0, 1]), (0.1, [2, 2, 1, 1])):
        found = made(maps, [0.6, 0.9], values=VALUES, background="threshold", threshold=threshold)
        assert found.tolist() == [expected]


def test_background_by_a_token():
    values = PixelValues((0, 1, 2), 0, VOID)
    maps = [row(4, 3, 2, 0), row(0, 1, 9, 10), row(0, 9, 10, 0)]
    settings = {"values": values, "background": "token"}
    assert made(maps, [0.99, 0.9, 0.8], **settings).tolist() == [[0, 2, 2, 1]]
    assert made(maps, [0.99, 0.9, 0.1], **settings).tolist() == [[0, 0, 1, 1]]
    assert made(maps, [0.99, 0.1, 0.1], **settings).tolist() == [[0, 0, 0, 0]]
    assert made(maps, [0.99, 0.1, 0.2], **settings, top1=True).tolist() == [[0, 2, 2, 0]]


def test_the_first_class_can_be_filled_again():
    maps = [row(1, 1, 0, 0, 0, 0), row(0, 0, 0, 0, 0, 1)]
    values = PixelValues((0, 1), 0, 0)
    settings = {"values": values, "background": "none", "fill": "nearest"}
    assert made(maps, [0.9, 0.9], **settings).tolist() == [[0, 0, 0, 0, 1, 1]]
    assert made(maps, [0.9, 0.9], **settings, refill_first=True).tolist() == [[1] * 6]
    assert made(maps, [0.9, 0.1], **settings, refill_first=True).tolist() == [[0] * 6]  # there is nothing else


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threshold": "median"}, "threshold is 'median'"),
        ({"threshold": 1.0}, "threshold is 1.0"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"background": "black"}, "background is 'black', expected one of unassigned, threshold, token, none"),
        ({"background": "threshold"}, "must be a number, not 'mean'"),
        ({"merge": "first"}, "merge is 'first'"),
        ({"fill": "zero"}, "fill is 'zero'"),
        ({"labels": "truth"}, "labels is 'truth'"),
        ({"refinement": "magic"}, "refinement is 'magic'"),
        ({"zero_maps": "nowhere"}, "zero_maps is 'nowhere'"),
        ({"largest_hole": -1}, "largest_hole is -1"),
        ({"refill_first": True}, "refill_first goes with background none, not unassigned"),
    ],
)
def test_settings_that_make_no_label_map(settings, words):
    with pytest.raises(ValueError, match=words):
        PseudoMaskSettings(**settings)


def test_settings_are_told():
    assert PseudoMaskSettings().describe() == (
        "labels predicted (p > 0.5), threshold mean, background unassigned, merge probability, fill majority"
    )
    told = PseudoMaskSettings(threshold=0.4, background="threshold", labels="image", refinement="par").describe()
    assert told == "labels image-level truth, threshold 0.4, background threshold, refinement par"
    assert MapSettings().describe() == "layers last 1, heads open, scales 1"
    told = MapSettings((0, 11), "all", fused=True, remainder="dropped").describe()
    assert told == "layers 0 11, heads all, scales 1, fused, remainder dropped"


def noisy_halves(bands=3, size=(24, 32)):
    """An image of two colours, and a map that just about tells its halves apart, but not exactly."""
    random = torch.Generator().manual_seed(0)
    image = torch.zeros(bands, *size)
    image[:, :, 16:] = 1
    image += 0.02 * torch.randn(image.shape, generator=random)
    plane = torch.zeros(size)
    plane[:, 13:] = 1
    return image, plane[None]


@pytest.mark.parametrize("bands", [1, 3, 13])
def test_adaptive_refinement_finds_the_edges_of_the_image(bands):
    image, maps = noisy_halves(bands)
    found = pixel_adaptive_refinement(maps, image)
    truth = torch.arange(32) >= 16
    assert ((found[0] > 0.5) == truth).float().mean() > 0.97 > ((maps[0] > 0.5) == truth).float().mean()
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-5


def test_adaptive_refinement_keeps_what_is_even_and_needs_no_scale():
    image, maps = noisy_halves()
    assert_close(pixel_adaptive_refinement(torch.full((2, 24, 32), 0.3), image), torch.full((2, 24, 32), 0.3))
    scales = torch.tensor([0.2, 3.0, 40.0]).view(3, 1, 1)
    assert_close(
        pixel_adaptive_refinement(maps, image), pixel_adaptive_refinement(maps, scales * image - 7), atol=1e-3, rtol=0
    )
    even = pixel_adaptive_refinement(maps, torch.zeros(3, 24, 32))
    assert even.isfinite().all()
    assert pixel_adaptive_refinement(maps[:0], image).shape == (0, 24, 32)


def test_refinement_by_one_step_is_a_weighted_mean():
    """The formulas once more, for one pixel."""
    random = torch.Generator().manual_seed(1)
    image, maps = torch.rand(2, 3, 3, generator=random), torch.rand(1, 3, 3, generator=random)
    around = [(y, x) for y, x in itertools.product(range(3), repeat=2) if (y, x) != (1, 1)]
    colours = torch.stack([image[:, y, x] for y, x in around])
    far = torch.tensor([((y - 1) ** 2 + (x - 1) ** 2) ** 0.5 for y, x in around])
    colour = -(((colours - image[:, 1, 1]) / (0.3 * colours.std(dim=0))) ** 2).mean(dim=1)
    weights = colour.softmax(0) + 0.01 * (-((far / (0.3 * far.std())) ** 2)).softmax(0)
    expected = (weights / weights.sum() * torch.stack([maps[0, y, x] for y, x in around])).sum()
    found = pixel_adaptive_refinement(maps, image, iterations=1, dilations=(1,))
    assert_close(found[0, 1, 1], expected, atol=1e-5, rtol=0)


def test_label_maps_are_refined_by_the_image():
    image, maps = noisy_halves(size=(32, 32))
    truth = np.broadcast_to(np.arange(64) >= 32, (64, 64))
    plain, refined = (
        made([maps[0]], [0.9], (64, 64), values=PixelValues((1,), 0, VOID), image=image, refinement=refinement)
        for refinement in ("none", "par")
    )
    assert (refined == truth).mean() > 0.97 > (plain == truth).mean()
    with pytest.raises(ValueError, match="refinement par needs the image"):
        made([maps[0]], [0.9], refinement="par")


def test_a_crf_that_is_not_installed_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ConfigError, match="pip install pydensecrf2") as error:
        dense_crf(np.full((2, 4, 4), 0.5), np.zeros((4, 4, 3), np.uint8))
    assert len(str(error.value).splitlines()) <= 8


def test_a_crf_needs_colours():
    with pytest.raises(ConfigError, match="13 bands"):
        refined_by_crf(np.zeros((4, 4), int), 2, torch.zeros(13, 4, 4))


def test_a_crf_finds_the_edges_of_the_image():
    pytest.importorskip("pydensecrf.densecrf")
    image, maps = noisy_halves()
    labels = np.where(maps[0].numpy() > 0, 1, 0)
    labels[:4] = 2  # unknown
    truth = np.broadcast_to(np.arange(32) >= 16, labels.shape)
    np.testing.assert_array_equal(refined_by_crf(labels, 2, 50 * image - 3), truth)
    for background, values in (("unassigned", {0, 3}), ("none", {3})):
        found = made([torch.zeros(24, 32), torch.zeros(24, 32), maps[0]], [0.1, 0.1, 0.9], image=image,
                     background=background, fill="none", refinement="crf")  # fmt: skip
        assert set(np.unique(found[found != VOID])) == values


class Recorder(torch.nn.Module):
    """A network in whose maps class 0 is where the image is bright, and which remembers what it saw."""

    def __init__(self, patch=4):
        super().__init__()
        self.vit = torch.nn.Module()
        self.vit.settings = ViTSettings(patch=patch)
        self.seen = []

    def maps(self, images, layers, heads, *, fused, affinity):
        self.seen.append((tuple(images.shape), layers, heads, fused, affinity))
        patch = self.vit.settings.patch
        maps = F.avg_pool2d(images[:, :1], patch) * images.shape[2]
        count = maps[0, 0].numel()
        between = torch.ones(1, count, count) if affinity else None
        return type("Found", (), {"maps": maps, "logits": images.mean((1, 2, 3))[:, None], "affinity": between})


def test_one_look_is_the_network_itself():
    network, image = Recorder(), torch.rand(3, 24, 32)
    maps, probabilities = class_maps(network, image, MapSettings(layers=3, heads="gated", fused=True))
    assert_close(maps, F.avg_pool2d(image[None, :1], 4)[0] * 24)
    assert_close(probabilities, image.mean().sigmoid()[None])
    assert network.seen == [((1, 3, 24, 32), 3, "gated", True, False)]


def test_images_are_brought_to_a_multiple_of_the_patch():
    network, image = Recorder(), torch.rand(3, 26, 31)
    assert class_maps(network, image)[0].shape == (1, 6, 8)
    assert class_maps(network, torch.rand(3, 1, 2))[0].shape == (1, 1, 1)
    assert class_maps(network, image, MapSettings(remainder="dropped"))[0].shape == (1, 6, 7)
    assert [shape[2:] for shape, *_ in network.seen] == [(24, 32), (4, 4), (26, 31)]


def test_looks_are_averaged_from_0_to_1():
    network, image = Recorder(), torch.rand(3, 16, 24)
    maps, probabilities = class_maps(network, image, MapSettings(scales=(1.0, 0.5, 2.0), flip=True))
    assert [shape[2:] for shape, *_ in network.seen] == 2 * [(16, 24), (8, 12), (32, 48)]
    assert maps.shape == (1, 8, 12)
    assert 0 <= maps.min() <= maps.max() <= 1
    looks = [class_maps(network, image, MapSettings(scales=(scale,))) for scale in (1.0, 0.5, 2.0)]
    expected = [F.interpolate(normalised(look)[None], (8, 12), mode="bilinear")[0] for look, _ in looks]
    assert_close(maps, torch.stack(expected).mean(0))  # this network sees mirrored images as others
    assert_close(probabilities, torch.stack([p for _, p in looks]).mean(0))


def test_affinity_spreads_maps():
    network, image = Recorder(), torch.rand(3, 8, 8)
    maps, _ = class_maps(network, image, MapSettings(affinity=True))
    assert_close(maps, (F.avg_pool2d(image[None, :1], 4)[0] * 8).mean().expand(1, 2, 2))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heads": "closed"}, "heads is 'closed'"),
        ({"remainder": "kept"}, "remainder is 'kept'"),
        ({"scales": ()}, "scales is "),
        ({"scales": (1.0, 0.0)}, "scales is "),
        ({"remainder": "dropped", "flip": True}, "set it to resized"),
    ],
)
def test_looks_that_give_no_map(settings, words):
    with pytest.raises(ValueError, match=words):
        MapSettings(**settings)


def test_the_network_of_the_paper_from_image_to_label_map():
    torch.manual_seed(0)
    vit = ViTSettings(width=24, depth=2, heads=3, patch=8, bands=4, grid=4)
    network = TokenMaskingNetwork(3, vit, gates=GateSettings()).eval()
    image = torch.rand(4, 37, 50)
    for settings in (MapSettings(affinity=True), MapSettings(layers=2, scales=(1, 1.5), flip=True)):
        maps, probabilities = class_maps(network, image, settings)
        found = label_map(
            maps, probabilities, (40, 61), VALUES, PseudoMaskSettings(top1=True, refinement="par"), image=image
        )
        again = label_map(
            maps, probabilities, (40, 61), VALUES, PseudoMaskSettings(top1=True, refinement="par"), image=image
        )
        np.testing.assert_array_equal(found, again)
        assert (found.shape, found.dtype) == ((40, 61), np.uint8)
        assert set(np.unique(found)) <= {0, 1, 2, 3}
    mirrored, _ = class_maps(network, image.flip(2), settings)
    assert_close(mirrored, maps.flip(2), atol=1e-4, rtol=0)


def test_kept_maps_make_the_same_label_map(tmp_path):
    random = torch.Generator().manual_seed(3)
    maps, probabilities = torch.rand(3, 5, 7, generator=random), torch.tensor([0.9, 0.3, 0.6])
    settings = PseudoMaskSettings(background="threshold", threshold=0.5)
    path = tmp_path / "maps" / "2007.000.npz"
    write_class_maps(path, *class_maps_to_keep(maps, probabilities, VALUES, settings))
    kept = read_class_maps(path)
    assert kept.values.tolist() == [3, 1]  # the least probable first
    assert_close(torch.from_numpy(kept.maps), normalised(maps[[2, 0]]), atol=0.5 / 255 + 1e-6, rtol=0)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    expected = label_map(maps, probabilities, (50, 70), VALUES, settings)
    found = label_map(
        torch.from_numpy(kept.maps), torch.ones(2), (50, 70), PixelValues((3, 1), BACKGROUND, VOID), settings
    )
    assert (found == expected).mean() > 0.98
    nothing = class_maps_to_keep(maps, torch.zeros(3), VALUES, replace(settings, labels="predicted"))
    write_class_maps(path, *nothing)
    assert [len(part) for part in read_class_maps(path)] == [0, 0]


@pytest.mark.parametrize(
    "content", [b"", b"no archive", {"maps": np.zeros((1, 2, 2), np.uint8)}, {"values": [1], "maps": np.zeros((1, 2))}]
)
def test_maps_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "a.npz"
    with pytest.raises(MaskError, match=r"not found: .*a\.npz"):
        read_class_maps(path)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(MaskError, match=r"cannot be read: .*a\.npz\n  found ") as error:
        read_class_maps(path)
    assert len(str(error.value).splitlines()) <= 8
