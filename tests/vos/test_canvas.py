"""How frames get into networks and results out: sizes, padding, and that nothing moves on the way."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lightning_vos.vos.canvas import PaddingCanvas, ResizingCanvas, View

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)


@pytest.mark.parametrize(
    ("canvas", "frame", "content", "network"),
    [
        (PaddingCanvas(32, 90, 174), (75, 127), (90, 152), (96, 160)),
        (PaddingCanvas(), (480, 854), (512, 911), (512, 928)),
        (PaddingCanvas(), (480, 1920), (247, 987), (256, 992)),  # the long side is what limits it
        (PaddingCanvas(32, 512, None), (480, 1920), (512, 2048), (512, 2048)),
        (PaddingCanvas(), (1080, 720), (768, 512), (768, 512)),
        (PaddingCanvas(32, 32, 32), (64, 64), (32, 32), (32, 32)),
        (PaddingCanvas(32, 5, None), (2, 1), (10, 5), (32, 32)),
        (PaddingCanvas(32, 512, 987), (1, 4000), (1, 987), (32, 992)),  # a side is never lost
        (PaddingCanvas(16, 480, None, is_centred=True), (1080, 1920), (480, 853), (480, 864)),
        (PaddingCanvas(16, None, None), (61, 47), (61, 47), (64, 48)),
        (PaddingCanvas(16, None, 30), (61, 47), (30, 23), (32, 32)),
        (PaddingCanvas(16, None, 90), (61, 47), (61, 47), (64, 48)),  # nothing is enlarged
        (ResizingCanvas(), (480, 854), (481, 849), (481, 849)),
        (ResizingCanvas(), (1080, 1920), (577, 1041), (577, 1041)),
        (ResizingCanvas(align_corners=False), (480, 854), (480, 848), (480, 848)),
        (ResizingCanvas(long_side=None), (1080, 1920), (1073, 1921), (1073, 1921)),
        (ResizingCanvas(), (3, 5), (17, 17), (17, 17)),
    ],
)
def test_sizes_of_a_video(canvas, frame, content, network):
    assert canvas.view(frame) == View(frame, content, network)


def test_sides_are_rounded_half_to_even():
    canvas = PaddingCanvas(1, 5, None)
    assert canvas.view((10, 25)).content == (5, 12)
    assert canvas.view((10, 27)).content == (5, 14)


@pytest.mark.parametrize(
    ("canvas", "size", "scale", "content", "network"),
    [
        (PaddingCanvas(32, 90, 174), (100, 40), None, (100, 40), (128, 64)),
        (PaddingCanvas(32, 90, 174), (100, 40), 1.5, (150, 60), (160, 64)),
        (PaddingCanvas(32, 90, 174), None, 0.5, (45, 76), (64, 96)),
        (PaddingCanvas(32, 90, 174), None, 2.0, (180, 305), (192, 320)),  # the limits are those of scale 1
        (PaddingCanvas(32, 90, 174), (1, 1), 0.1, (1, 1), (32, 32)),
        (PaddingCanvas(32, None, None), None, 0.5, (38, 64), (64, 64)),
        (PaddingCanvas(32, None, None), (100, 40), 1.5, (150, 60), (160, 64)),
        (ResizingCanvas(), (480, 854), None, (481, 849), (481, 849)),
        (ResizingCanvas(), (480, 854), 1.3, (625, 1105), (625, 1105)),
        (ResizingCanvas(), (720, 900), 1.0, (625, 785), (625, 785)),  # among several scales the short side counts, too
        (ResizingCanvas(short_side=None), (720, 900), 1.0, (721, 897), (721, 897)),
    ],
)
def test_sizes_of_ones_own_and_scales(canvas, size, scale, content, network):
    assert canvas.view((75, 127), size, scale) == View((75, 127), content, network)


@pytest.mark.parametrize(
    "settings",
    [{"multiple": 0}, {"short_side": 0}, {"short_side": -5, "long_side": None}, {"long_side": 0}, {"long_side": 511}],
)
def test_limits_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match=r"PaddingCanvas: .*expected at least 1 of each"):
        PaddingCanvas(**settings)


def test_frames_are_padded_with_the_mean_colour():
    canvas, frames = PaddingCanvas(32, 90, 174), torch.rand(2, 3, 75, 127)
    view = canvas.view((75, 127))
    entered = canvas.enter(frames, view)
    assert entered.shape == (2, 3, 96, 160)
    resized = F.interpolate(frames, (90, 152), mode="bilinear", align_corners=False)
    assert_close(entered[..., :90, :152], resized)
    for border in (entered[..., 90:, :], entered[..., 152:]):
        assert_close(border, MEAN.expand_as(border))


def test_frames_that_fit_are_left_alone():
    frames = torch.rand(1, 3, 96, 160)
    for canvas in (PaddingCanvas(32, 96, 160), ResizingCanvas(16, align_corners=False)):
        assert canvas.enter(frames, canvas.view((96, 160))) is frames
    canvas, odd = PaddingCanvas(32, 47, None), torch.rand(1, 3, 61, 47)
    entered = canvas.enter(odd, canvas.view((61, 47)))
    assert entered.shape == (1, 3, 64, 64)
    assert_close(entered[..., :61, :47], odd)


@pytest.mark.parametrize(
    ("is_centred", "frame", "top", "left"),
    [(False, (61, 47), 0, 0), (True, (61, 47), 1, 8), (True, (64, 50), 0, 7), (True, (33, 64), 15, 0)],
)
def test_planes_and_frames_are_padded_alike_and_come_back(is_centred, frame, top, left):
    canvas = PaddingCanvas(32, None, None, is_centred=is_centred)
    view = canvas.view(frame)
    planes = (torch.rand(2, 3, *frame) > 0.5).float()
    padded = canvas.pad(planes, view)
    assert padded.shape == (2, 3, 64, 64)
    assert padded.sum() == planes.sum()
    assert torch.equal(padded[..., top : top + frame[0], left : left + frame[1]], planes)
    assert torch.equal(canvas.leave(padded, view), planes)
    frames = torch.rand(2, 3, *frame)
    entered = canvas.enter(frames, view)
    assert_close(canvas.leave(entered, view), frames)
    border = (canvas.pad(torch.ones(2, 3, *frame), view) == 0).float()
    assert border.any()
    assert_close(entered * border, MEAN * border)


def test_an_odd_row_or_column_of_padding_lies_right_and_below():
    canvas = PaddingCanvas(16, None, None, is_centred=True)
    padded = canvas.pad(torch.ones(1, 29, 31), canvas.view((29, 31)))[0]
    assert padded.any(dim=1).nonzero()[:, 0].tolist() == list(range(1, 30))
    assert padded.any(dim=0).nonzero()[:, 0].tolist() == list(range(31))


def test_hodor_resizes_planes_that_stay_binary_and_never_overlap():
    canvas = PaddingCanvas(32, 90, 174)
    view = canvas.view((75, 127))
    labels = torch.randint(0, 4, (1, 15, 26)).repeat_interleave(5, 1).repeat_interleave(5, 2)[..., :127]
    planes = (labels[:, None] == torch.arange(1, 4).view(1, -1, 1, 1)).float()
    entered = tiny.hodor(canvas=canvas)._enter(planes, view)
    assert set(entered.unique().tolist()) == {0.0, 1.0}
    assert entered.sum(dim=1).max() == 1
    soft = F.interpolate(planes, view.content, mode="bilinear", align_corners=False)
    assert torch.equal(entered[..., :90, :152], (soft > 0.5).float())
    half = torch.tensor([[[[1.0, 0.0]]]])
    assert not tiny.hodor()._enter(half, View((1, 2), (1, 3), (1, 3)))[..., 1].any(), "0.5 is out"
    back = canvas.leave(entered, view)
    assert back.shape == planes.shape
    assert (back - planes).abs().mean() < 0.05


def test_what_lies_in_the_padding_never_comes_out():
    canvas = PaddingCanvas(32, 90, 174)
    view = canvas.view((75, 127))
    maps = torch.rand(1, 2, 96, 160)
    other = maps.clone()
    other[..., 90:, :], other[..., 152:] = 7.0, -7.0
    assert torch.equal(canvas.leave(maps, view), canvas.leave(other, view))
    assert canvas.leave(maps, view).shape == (1, 2, 75, 127)


def test_resizing_is_bicubic_and_not_clipped():
    canvas, frames = ResizingCanvas(), torch.rand(1, 3, 40, 50).round()
    view = canvas.view((40, 50))
    entered = canvas.enter(frames, view)
    assert_close(entered, F.interpolate(frames, view.network, mode="bicubic", align_corners=False))
    assert entered.max() > 1
