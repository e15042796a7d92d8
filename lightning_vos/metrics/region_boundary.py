"""J, F, J&F and identity switches over whole videos as a torchmetrics metric that any number of processes can share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_vos.metrics.sequence import Column, SequenceScores, summarize


class RegionBoundary(Metric):
    """Gathers what scorers of sequences measured, averages it as the benchmarks do, and counts identity switches.

    A sequence that is scored twice, as happens when a sampler evens out the processes, counts once, and the order of
    the sequences does not matter: the result is the same to the last bit for every number of processes.

    Example:
        >>> from lightning_vos.metrics.sequence import Plan, SequenceScorer
        >>> metric, mask = RegionBoundary(), np.array([[0, 1], [0, 1]], dtype=np.uint8)
        >>> scorer = SequenceScorer(Plan((1,), {1: {1}}))
        >>> scorer.add(1, mask, mask)
        >>> metric.update(0, scorer.rows())
        >>> metric.compute().summary["J&F"]
        100.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    rows: list[Tensor] | Tensor  # (R, 7) int64 each: the sequence, then the columns of `Column`

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self._join_with_nothing()

    def reset(self) -> None:
        """Forget all sequences."""
        super().reset()
        self._join_with_nothing()

    def update(self, sequence: int, rows: NDArray[np.int64]) -> None:
        """Add a sequence.

        Args:
            sequence: Number of the sequence, the same in every process.
            rows: (R, 6), what `SequenceScorer.rows` gives.
        """
        table = np.insert(rows, 0, sequence, axis=1)
        self.rows.append(torch.from_numpy(table).to(self.device))  # type: ignore[union-attr] # a list until synchronised

    def compute(self) -> SequenceScores:
        """Average over frames, then over objects; add up the switches."""
        # Sorting whole rows first settles which of two differing rows of one frame counts, whoever sent it.
        table = np.unique(dim_zero_cat(self.rows).cpu().numpy(), axis=0)
        key = [0, 1 + Column.OBJECT, 1 + Column.FRAME]
        table = table[np.unique(table[:, key], axis=0, return_index=True)[1]]
        return summarize({int(sequence): table[table[:, 0] == sequence, 1:] for sequence in np.unique(table[:, 0])})

    def _join_with_nothing(self) -> None:
        # A process without a frame must still gather int64 rows; of an empty list torchmetrics makes float32.
        nothing = torch.empty((0, 1 + len(Column)), dtype=torch.int64, device=self.device)
        self.rows.append(nothing)  # type: ignore[union-attr] # a list until synchronised
