"""Gates of attention heads and masks of class tokens: how often, what it costs, and what learns of it."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_vos.models.token_masking.gates import GateSettings, HeadGates
from lightning_vos.models.token_masking.masking import MaskingSchedule, draw_masked


def drawn_labels(images=400, classes=20, seed=0):
    return (torch.rand(images, classes, generator=torch.Generator().manual_seed(seed)) < 0.2).float()


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 1.0])
def test_absent_classes_are_masked_and_no_other(rate):
    labels = drawn_labels()
    masked = draw_masked(labels, rate, torch.Generator().manual_seed(1))
    assert not masked[labels == 1].any()
    absent = int((labels == 0).sum())
    spread = math.sqrt(rate * (1 - rate) / absent)
    assert abs(float(masked.sum()) / absent - rate) <= 3 * spread
    # each by itself, not half of an image's
    counts = masked.sum(dim=1).double()
    expected = (labels == 0).sum(dim=1) * rate
    assert float((counts - expected).var()) == pytest.approx(float(expected.mean()) * (1 - rate), rel=0.3)


def test_a_class_of_which_nothing_is_said_is_never_masked():
    labels = torch.tensor([[0.0, 0.3, 1.0, float("nan"), -1.0, 255.0]])
    assert draw_masked(labels, 1.0).tolist() == [[True, False, False, False, False, False]]


def test_masks_follow_their_generator():
    labels = drawn_labels(images=8)
    first, again, other = (draw_masked(labels, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(draw_masked(labels, 0.5, generator), draw_masked(labels, 0.5, generator))


def test_the_rate_may_rise_in_steps():
    schedule = MaskingSchedule(0.5, ((20, 0.0), (50, 0.2)))
    assert [schedule.at(epoch) for epoch in (0, 19, 20, 49, 50, 400)] == [0.0, 0.0, 0.2, 0.2, 0.5, 0.5]
    assert MaskingSchedule().at(0) == 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rate": 1.5}, "rate is 1.5"),
        ({"steps": ((3, -0.1),)}, r"rates \[-0.1\]"),
        ({"steps": ((5, 0.0), (5, 0.2))}, r"epochs \[5, 5\]"),
        ({"steps": ((0, 0.0),)}, r"epochs \[0\]"),
    ],
)
def test_a_schedule_that_is_none_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        MaskingSchedule(**settings)


def gates(log_a, **settings):
    made = HeadGates(1, len(log_a), GateSettings(**settings))
    made.load_state_dict({"log_a": torch.tensor(log_a)[None]})
    return made


def test_gates_are_as_often_open_as_the_closed_forms_say():
    torch.manual_seed(0)
    log_a, draws = [-2.0, -0.5, 0.0, 1.0, 3.0], 50_000
    samples = []
    for is_hard in (False, True):
        made = HeadGates(draws, len(log_a), GateSettings(hard=is_hard))  # every layer is a draw
        made.load_state_dict({"log_a": torch.tensor(log_a).repeat(draws, 1)})
        samples.append(made.sample().detach())
    sample, hard = samples
    shift = 0.33 * math.log(0.1 / 1.1)
    for found, expected in (
        (sample == 0, [1 - 1 / (1 + math.exp(shift - phi)) for phi in log_a]),
        (sample == 1, [1 / (1 + math.exp(-shift - phi)) for phi in log_a]),
        (hard == 0, [1 / (1 + math.exp(phi)) for phi in log_a]),
    ):
        expected = torch.tensor(expected, dtype=torch.float64)
        spread = (expected * (1 - expected) / draws).sqrt()
        assert ((found.double().mean(dim=0) - expected).abs() < 4 * spread).all()
    assert ((sample > 0) & (sample < 1)).any()
    assert set(hard.unique().tolist()) == {0.0, 1.0}


def test_the_penalty_is_a_sum_over_all_heads():
    made = HeadGates(12, 16, GateSettings(start=0.0))
    assert 0.01 * float(made.penalty().detach()) == pytest.approx(0.01 * 192 * 0.688, abs=2e-3)
    assert 0.01 * float(made.penalty().detach()) == pytest.approx(1.321, abs=1e-3)
    made.penalty().backward()
    assert (made.log_a.grad > 0).all()


def test_the_start_is_open_or_as_published():
    assert HeadGates(12, 12).open().all()
    assert (HeadGates(12, 12).log_a == 2).all()
    torch.manual_seed(0)
    published = HeadGates(12, 16, GateSettings(hard=True, start=None))
    assert published.log_a.abs().max() <= math.sqrt(6 / 17)
    assert 0.3 < float(published.open().float().mean()) < 0.7


def test_an_evaluation_leaves_nothing_to_chance():
    made = gates([-4.0, -0.1, 0.1, 4.0]).eval()
    assert torch.equal(made.sample(), made.sample(torch.full((1, 4), 0.9)))
    assert made.open().tolist() == [[False, True, True, True]]
    hard = gates([-4.0, -0.1, 0.1, 4.0], hard=True).eval()
    assert hard.sample().tolist() == [[0, 0, 1, 1]]
    assert hard.open().tolist() == [[False, False, True, True]]


def test_a_hard_gate_learns_as_a_soft_one_does():
    noise, upstream = torch.tensor([[0.9, 0.6, 0.45, 0.35, 0.1]]), torch.arange(1.0, 6.0)
    grads = []
    for hard in (True, False):
        made = gates([-1.0, -0.3, 0.0, 0.4, 2.0], hard=hard)
        (made.sample(noise) * upstream).sum().backward()
        grads.append(made.log_a.grad)
    assert_close(*grads)
    assert (grads[0] != 0).any()
