"""J, F, J&F and identity switches over whole videos as a torchmetrics metric that any number of processes can share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_vos.metrics.functional import object_scores, statistics
from lightning_vos.metrics.identity import IdentityScores, identity, objects_under, pooled


class RegionBoundaryScores(NamedTuple):
    """Fractions named J&F, J, F, J_recall, J_decay, F_recall and F_decay, and how objects kept apart."""

    summary: dict[str, float]  # plain mean over the objects of all sequences; NaN if nothing was scored
    objects: dict[tuple[int, int], dict[str, float]]  # by (sequence, object id)
    sequences: dict[int, dict[str, float]]  # plain mean over the objects of each sequence
    identity: IdentityScores


class RegionBoundary(Metric):
    """Collects J and F of each object in each scored frame, averages them as DAVIS does, and counts identity switches.

    A frame that is scored twice, as happens when a sampler evens out the processes, counts once, and the order of
    the frames does not matter: the result is the same to the last bit for every number of processes.

    Example:
        >>> metric, mask = RegionBoundary(), np.array([[0, 1], [0, 1]], dtype=np.uint8)
        >>> metric.update(sequence=0, frame=1, object_ids=(1,), prediction=mask, truth=mask)
        >>> metric.compute().summary["J&F"]
        1.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    # (R, 6) int64 each: sequence, object id, frame, the bits of the float64 J and F, and the object that the mask is on
    rows: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self._join_with_nothing()

    def reset(self) -> None:
        """Forget all frames."""
        super().reset()
        self._join_with_nothing()

    def update(
        self,
        sequence: int,
        frame: int,
        object_ids: Sequence[int],
        prediction: NDArray[np.integer],
        truth: NDArray[np.integer],
    ) -> None:
        """Score one frame.

        Args:
            sequence: Number of the sequence, the same in every process.
            frame: Index of the frame in its sequence.
            object_ids: The objects to score in this frame.
            prediction: (H, W) label map.
            truth: (H, W) label map.

        Raises:
            ValueError: The label maps differ in size.
        """
        rows = np.empty((len(object_ids), 6), dtype=np.int64)
        rows[:, 0], rows[:, 1], rows[:, 2] = sequence, object_ids, frame
        # Bits of a float64 in an int64: MPS has no float64, and a float32 would round.
        for column, values in enumerate(object_scores(prediction, truth, object_ids), start=3):
            rows[:, column] = values.view(np.int64)
        rows[:, 5] = objects_under(prediction, truth, object_ids)
        self.rows.append(torch.from_numpy(rows).to(self.device))  # type: ignore[union-attr] # a list until synchronised

    def compute(self) -> RegionBoundaryScores:
        """Average over frames, then over objects; add up the switches."""
        # Sorting whole rows first settles which of two differing rows of one frame counts, whoever sent it.
        table = np.unique(dim_zero_cat(self.rows).cpu().numpy(), axis=0)
        table = table[np.unique(table[:, :3], axis=0, return_index=True)[1]]
        keys, starts = np.unique(table[:, :2], axis=0, return_index=True)
        # Of no rows, np.split makes one empty part, which belongs to no key.
        parts = {
            (int(sequence), int(object_id)): rows
            for (sequence, object_id), rows in zip(keys, np.split(table, starts[1:]), strict=False)
        }
        objects = {key: _object(rows[:, 3:5].copy().view(np.float64)) for key, rows in parts.items()}
        identities = {key: identity(key[1], rows[:, 5]) for key, rows in parts.items()}
        members = {int(sequence): [key for key in parts if key[0] == sequence] for sequence in np.unique(keys[:, 0])}
        return RegionBoundaryScores(
            _mean(objects.values()),
            objects,
            {sequence: _mean(objects[key] for key in inside) for sequence, inside in members.items()},
            IdentityScores(
                pooled(identities.values()),
                identities,
                {sequence: pooled(identities[key] for key in inside) for sequence, inside in members.items()},
            ),
        )

    def _join_with_nothing(self) -> None:
        # A process without a frame must still gather int64 rows of six; of an empty list torchmetrics makes float32.
        self.rows.append(torch.empty((0, 6), dtype=torch.int64, device=self.device))  # type: ignore[union-attr]


def _object(values: NDArray[np.float64]) -> dict[str, float]:
    region, boundary = statistics(values[:, 0]), statistics(values[:, 1])
    return {
        "J&F": (region.mean + boundary.mean) / 2,
        "J": region.mean,
        "F": boundary.mean,
        "J_recall": region.recall,
        "J_decay": region.decay,
        "F_recall": boundary.recall,
        "F_decay": boundary.decay,
    }


def _mean(objects: Iterable[dict[str, float]]) -> dict[str, float]:
    rows = list(objects)
    names = ("J", "F", "J_recall", "J_decay", "F_recall", "F_decay")
    means = {name: float(np.mean([row[name] for row in rows])) if rows else math.nan for name in names}
    return {"J&F": (means["J"] + means["F"]) / 2, **means}
