"""Queries of QMVOS: what they are made of, what they look at, and the settings of Tables 3b to 3d."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lightning_vos.models.qmvos.queries import QCIMSettings, Queries, SIMSettings

BACKBONE, DECODER, C = (12, 10, 6), (16, 32), 32
ALL = torch.ones(2, 3, dtype=torch.bool)  # slots hold an object
SCALES = ("f16", "f8", "f4")  # as maps are ordered
SETTINGS = {
    "default": {},
    "f16": {"sim": SIMSettings(scales=("f16",))},
    "f8": {"sim": SIMSettings(scales=("f8",))},
    "three_scales": {"sim": SIMSettings(scales=SCALES)},
    "no_interaction": {"sim": SIMSettings(interaction=False)},
    "no_interaction_f8": {"sim": SIMSettings(scales=("f8",), interaction=False)},
    "frame": {"qcim": QCIMSettings(source="f16")},
    "all": {"sim": SIMSettings(scales=SCALES, interaction=False), "qcim": QCIMSettings(source="f16")},
}


@pytest.fixture(params=SETTINGS)
def queries(request):
    return build(**SETTINGS[request.param])


def build(**settings):
    torch.manual_seed(0)
    return Queries(BACKBONE, DECODER, **settings).eval()


def maps(height=4, width=5, seed=0):
    """Two frames' features at strides 16, 8 and 4."""
    random = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(2, channels, height * 2**n, width * 2**n, generator=random) for n, channels in enumerate(BACKBONE)
    )


def masks(slots=3, height=64, width=80, seed=0):
    """Planes (2, slots, H, W), all of them with some pixels."""
    return (torch.rand(2, slots, height, width, generator=torch.Generator().manual_seed(seed)) > 0.5).float()


def objects(slots=3, seed=0):
    """The decoder's features (2, slots, 16, 4, 5)."""
    return torch.randn(2, slots, DECODER[0], 4, 5, generator=torch.Generator().manual_seed(seed))


def test_every_setting_makes_a_query_and_a_filter_an_object(queries):
    made = queries.sim(maps(), masks(), ALL)
    assert made.shape == (2, 3, C)
    filters = queries.qcim(queries=made, frame=maps()[0], coarse=objects(), valid=ALL)
    assert filters.shape == (2, 3, C)
    for found in (made, filters):
        assert found.isfinite().all()
        assert (found[:, 0] - found[:, 1]).abs().amax(dim=1).min() > 1e-4


def test_nothing_exists_that_is_not_used(queries):
    filters = queries.qcim(queries.sim(maps(), masks(), ALL), maps()[0], objects(), ALL)
    (filters * torch.randn_like(filters)).sum().backward()
    assert [name for name, parameter in queries.named_parameters() if parameter.grad is None] == []
    assert [name for name, parameter in queries.named_parameters() if not parameter.grad.any()] == []


@pytest.mark.parametrize("scales", [("f16", "f8"), SCALES, ("f16",), ("f8",)])
@pytest.mark.parametrize("interaction", [True, False])
def test_queries_are_made_of_their_scales_alone(scales, interaction):
    sim = build(sim=SIMSettings(scales, interaction)).sim
    made = sim(maps(), masks(), ALL)
    for n, scale in enumerate(SCALES):
        of_others = sim(tuple(part.roll(1, dims=3) if m == n else part for m, part in enumerate(maps())), masks(), ALL)
        assert torch.equal(made, of_others) == (scale not in scales)


@pytest.mark.parametrize("scales", [("f16", "f8"), SCALES, ("f16",), ("f8",)])
def test_scales_meet_at_stride_8(scales):
    sim = build(sim=SIMSettings(scales)).sim
    assert sim.fused(maps(3, 7)).shape == (2, C, 6, 14)


def test_the_two_scales_of_the_default_stay_as_they_are_beside_a_third():
    two, three = build().sim, build(sim=SIMSettings(SCALES)).sim
    assert {name for name, _ in three.named_parameters()} - {name for name, _ in two.named_parameters()} == {
        "reduce.1.weight",
        "reduce.2.weight",
        "reduce.2.bias",
    }
    shared = two.state_dict()
    weight = shared.pop("fuse.0.weight")
    three.load_state_dict(shared, strict=False)
    with torch.no_grad():
        three.fuse[0].weight[:, : weight.shape[1]] = weight
        three.fuse[0].weight[:, weight.shape[1] :] = 0
    assert_close(three.fused(maps()), two.fused(maps()))


def test_the_finest_scale_enters_by_its_largest_values():
    sim = build(sim=SIMSettings(SCALES)).sim
    coarse, middle, fine = maps()
    largest = F.interpolate(F.max_pool2d(fine, 2), scale_factor=2, mode="nearest")
    assert torch.equal(sim.fused((coarse, middle, fine)), sim.fused((coarse, middle, largest)))


def test_queries_see_one_another_by_interaction_alone():
    one = masks()
    other = torch.cat([one[:, :2], 1 - one[:, 2:]], dim=1)
    for interaction in (True, False):
        sim = build(sim=SIMSettings(interaction=interaction)).sim
        same = torch.isclose(sim(maps(), one, ALL), sim(maps(), other, ALL), rtol=0, atol=1e-7).all(dim=2)
        assert same[:, :2].all() == (not interaction)
        assert not same[:, 2].any()


def test_the_query_of_an_empty_mask_is_made_of_nothing(queries):
    planes = torch.zeros(2, 2, 64, 80)
    planes[0, 0, 8:16, 16:32] = 1
    fused = queries.sim.fused(maps())
    pooled = queries.sim.pool(fused, planes)
    assert_close(pooled[0, 0], fused[0, :, 1, 2:4].mean(dim=1), rtol=1e-3, atol=1e-3)
    assert not pooled[0, 1].any()
    assert not pooled[1].any()
    if not queries.sim.settings.interaction:
        assert torch.equal(queries.sim(maps(), planes, ALL[:, :2]), pooled)


def test_queries_of_slots_without_an_object_say_nothing(queries):
    valid = torch.tensor([[True, True, False]] * 2)
    sim, qcim = queries.sim, queries.qcim
    made = sim(maps(), masks(), valid)
    assert_close(made[:, :2], sim(maps(), masks()[:, :2], valid[:, :2]))
    filters = qcim(made, maps()[0], objects(), valid)
    assert_close(filters[:, :2], qcim(made[:, :2], maps()[0], objects()[:, :2], valid[:, :2]))
    nothing = torch.zeros_like(valid)
    assert qcim(sim(maps(), masks(), nothing), maps()[0], objects(), nothing).isfinite().all()


@pytest.mark.parametrize("source", ["readout", "f16"])
def test_filters_are_made_of_one_source_alone(source):
    qcim = build(qcim=QCIMSettings(source)).qcim
    asked, frame, coarse = torch.randn(2, 3, C), maps()[0], objects()
    made = qcim(asked, frame, coarse, ALL)
    assert torch.equal(made, qcim(asked, frame, objects(seed=1), ALL)) == (source == "f16")
    assert torch.equal(made, qcim(asked, maps(seed=1)[0], coarse, ALL)) == (source == "readout")


def test_every_query_reads_the_features_of_all_objects():
    qcim = build().qcim
    asked, coarse = torch.randn(2, 3, C), objects()
    other = torch.cat([coarse[:, :2], coarse[:, 2:] + 1], dim=1)
    found, expected = (qcim(asked, maps()[0], content, ALL) for content in (other, coarse))
    assert ((found - expected).abs().amax(dim=2) > 1e-6).all()


@pytest.mark.parametrize("source", ["readout", "f16"])
def test_places_and_numbers_of_objects_do_not_matter(source):
    qcim = build(qcim=QCIMSettings(source)).qcim
    asked, frame, coarse = torch.randn(2, 3, C), maps()[0], objects()
    moved = qcim(asked, frame.roll(1, dims=3).flip(2), coarse.roll(1, dims=4).flip(3)[:, [2, 0, 1]], ALL)
    assert_close(moved, qcim(asked, frame, coarse, ALL))


@pytest.mark.parametrize(
    "scales", [(), ("f4",), ("f8", "f4"), ("f16", "f4"), ("f8", "f16"), ("f16", "f16"), ("f16", "f8", "f4", "f2")]
)
def test_scales_that_cannot_be_are_refused(scales):
    with pytest.raises(ValueError, match=r"SIMSettings: scales=\[.*\], expected one of \[f16, f8\], \[f16, f8, f4\], "):
        SIMSettings(scales)


@pytest.mark.parametrize("width", [0, 16, 48, -32])
def test_widths_that_cannot_be_are_refused(width):
    with pytest.raises(ValueError, match=rf"Queries: decoder_channels=\[16, {width}\]; .*expected a multiple of 32"):
        Queries(BACKBONE, (16, width))
