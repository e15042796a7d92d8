"""Learning rate schedules, by steps."""

import pytest
import torch

from lightning_vos.errors import ConfigError
from lightning_vos.optim import StepSchedule, training_steps


class StubTrainer:
    def __init__(self, steps):
        self.estimated_stepping_batches = steps


def sgd(rate):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=abs(rate))
    optimizer.param_groups[0]["lr"] = rate  # torch itself refuses rates below 0
    return optimizer


def test_the_static_stage_warms_up_and_drops_once():
    """10,000 steps from 1e-7 to 1e-4, then constant, a tenth of it from step 100,000 on (published)."""
    schedule = StepSchedule()
    expected = {
        0: 1e-7,
        5_000: (1e-7 + 1e-4) / 2,
        9_999: 1e-4 - (1e-4 - 1e-7) / 10_000,
        10_000: 1e-4,
        99_999: 1e-4,
        100_000: 1e-5,
        249_999: 1e-5,
    }
    optimizer = sgd(1e-4)
    configured = schedule.configure(optimizer, 250_000)
    assert configured["optimizer"] is optimizer
    assert configured["lr_scheduler"]["interval"] == "step"
    (factor,) = configured["lr_scheduler"]["scheduler"].lr_lambdas
    for step, rate in expected.items():
        assert schedule.rate(step, 250_000, 1e-4) == pytest.approx(rate, rel=1e-9), step
        assert 1e-4 * factor(step) == pytest.approx(rate, rel=1e-9), step


def test_drops_multiply_and_there_may_be_none():
    twice = StepSchedule(warmup=0.0, drops=(0.4, 0.8), factor_of_drop=0.5)
    assert [twice.rate(step, 10, 8.0) for step in (0, 3, 4, 7, 8, 10)] == [8.0, 8.0, 4.0, 4.0, 2.0, 2.0]
    never = StepSchedule(start=1e-8, warmup=10_000 / 120_000, drops=())
    assert never.rate(0, 120_000, 1e-5) == 1e-8
    assert {never.rate(step, 120_000, 1e-5) for step in (10_000, 60_000, 119_999)} == {1e-5}


def test_few_steps_have_a_rate_as_well():
    assert [StepSchedule().rate(step, 1, 2.0) for step in (0, 1)] == pytest.approx([2.0, 0.2])
    rates = [StepSchedule(start=0.0, warmup=1.0, drops=()).rate(step, 4, 4.0) for step in range(5)]
    assert rates == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    "settings",
    [
        {"start": -1e-9},
        {"warmup": 1.5},
        {"warmup": -0.1},
        {"drops": (0.4, 1.1)},
        {"drops": (-0.2,)},
        {"factor_of_drop": -0.1},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"StepSchedule: start is .*expected rates and factors of 0 and above"):
        StepSchedule(**settings)


@pytest.mark.parametrize("peak", [0.0, -1e-4])
def test_a_rate_of_nothing_is_refused(peak):
    with pytest.raises(ConfigError, match=r"learning rate is .*\n.*--model\.optimizer\.lr"):
        StepSchedule().configure(sgd(peak), 100)


def test_a_training_has_an_end():
    assert training_steps(StubTrainer(120)) == 120
    for steps in (-1, 0, float("inf")):
        with pytest.raises(ConfigError, match=r"no end: .* steps.*\n.*--trainer\.max_steps"):
            training_steps(StubTrainer(steps))
