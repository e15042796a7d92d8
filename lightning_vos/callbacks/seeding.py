"""Randomness that depends on the step alone."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class StepSeed(Callback):
    """Seeds torch, numpy and random before each training batch from the run's seed, the step and the rank.

    Checkpoints hold no random states: this is what makes a resumed run repeat an uninterrupted one. Without a run seed
    (`seed_everything: false`) it leaves everything alone.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds the three generators."""
        run_seed = os.environ.get("PL_GLOBAL_SEED")
        if run_seed is None:
            return
        # the batches that are accumulated into one step must not share their draws
        part = batch_idx % trainer.accumulate_grad_batches
        entropy = [int(run_seed), trainer.global_step, part, trainer.global_rank]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
