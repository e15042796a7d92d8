"""A step has as many items as a recipe states, whatever it runs on."""

from types import SimpleNamespace

import pytest

from lightning_vos.commands.effective_batch import fill_steps
from lightning_vos.errors import ConfigError


def trained_on(devices, *, nodes=1, accumulated=1, val_check_interval=100):
    return SimpleNamespace(
        num_devices=devices,
        num_nodes=nodes,
        accumulate_grad_batches=accumulated,
        val_check_interval=val_check_interval,
    )


@pytest.mark.parametrize(
    ("at_once", "devices", "nodes", "batch", "batches"),
    [
        (4, 1, 1, 4, 4),
        (4, 4, 1, 4, 1),
        (4, 2, 2, 4, 1),
        (4, 8, 1, 2, 1),  # a device's share is less than it could take
        (4, 16, 1, 1, 1),
        (3, 1, 1, 2, 8),  # 3 divides no share
        (16, 1, 1, 16, 1),
        (5, 2, 1, 4, 2),
    ],
)
def test_devices_share_a_step(at_once, devices, nodes, batch, batches):
    trainer, data = trained_on(devices, nodes=nodes), SimpleNamespace(batch_size=at_once)
    fill_steps(trainer, data, 16)
    assert (data.batch_size, trainer.accumulate_grad_batches) == (batch, batches)
    assert data.batch_size * devices * nodes * trainer.accumulate_grad_batches == 16
    assert trainer.val_check_interval == 100 * batches  # 100 optimizer steps apart


def test_a_share_of_an_epoch_stays_one():
    trainer = trained_on(1, val_check_interval=0.5)
    fill_steps(trainer, SimpleNamespace(batch_size=4), 16)
    assert trainer.val_check_interval == 0.5


def test_the_same_accumulation_may_be_said():
    trainer = trained_on(2, accumulated=2)
    fill_steps(trainer, SimpleNamespace(batch_size=4), 16)
    assert trainer.accumulate_grad_batches == 2


@pytest.mark.parametrize(
    ("at_once", "devices", "accumulated", "expected"),
    [
        (4, 3, 1, "cannot be shared evenly by 3 devices"),
        (32, 1, 1, "more than the 16 items of a step"),
        (4, 1, 2, "takes 4 batches of 4"),
    ],
)
def test_what_cannot_be_is_refused(at_once, devices, accumulated, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        fill_steps(trained_on(devices, accumulated=accumulated), SimpleNamespace(batch_size=at_once), 16)
    assert "--effective_batch_size" in str(error.value)


def test_data_without_batches_is_refused():
    with pytest.raises(ConfigError, match="has no batch_size"):
        fill_steps(trained_on(1), SimpleNamespace(), 16)
