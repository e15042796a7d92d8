from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_vos.callbacks.seeding import StepSeed


def draws(step: int, batch: int, rank: int, accumulate: int = 2) -> tuple[float, float, float]:
    trainer = SimpleNamespace(global_step=step, global_rank=rank, accumulate_grad_batches=accumulate)
    StepSeed().on_train_batch_start(trainer, None, None, batch)
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def test_draws_belong_to_seed_step_part_and_rank(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    seen = [draws(step, batch, rank) for step in (0, 1) for batch in (0, 1) for rank in (0, 1)]
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    seen.append(draws(0, 0, 0))
    for generator in zip(*seen, strict=True):
        assert len(set(generator)) == 9
    assert draws(0, 2, 0) == draws(0, 0, 0)


def test_without_a_seed_nothing_is_touched(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = pytest.approx((torch.rand(()).item(), float(np.random.rand()), random.random()))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    assert draws(3, 0, 0) == expected
