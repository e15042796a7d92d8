"""What whole sets of images with image-level labels are scored by, for any number of processes.

Shapes: K classes, H W pixels.
"""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision, binary_f1_score
from torchmetrics.utilities import dim_zero_cat

_VALUES = 256  # of a label map


class LabelMapConfusion(Metric):
    """Counts pixels by their true and predicted value over a set of images.

    An image that is counted twice, as happens when a sampler evens out the processes, counts once: the result is the
    same for every number of processes.

    Example:
        >>> metric, truth = LabelMapConfusion(), np.array([[0, 1], [0, 1]], dtype=np.uint8)
        >>> metric.update(0, truth, np.zeros_like(truth))
        >>> metric.compute()[:2, :2].tolist()
        [[2, 0], [2, 0]]
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    rows: list[Tensor] | Tensor  # (R, 4) int64 each: image, true value, predicted value, pixels

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self._join_with_nothing()

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._join_with_nothing()

    def update(self, number: int, truth: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        """Add an image.

        Args:
            number: Of the image, the same in every process.
            truth: (H, W) label map.
            labels: (H, W) label map.
        """
        pairs = truth.astype(np.int64) * _VALUES + labels
        found, pixels = np.unique(pairs, return_counts=True)
        table = np.stack([np.full_like(found, number), found // _VALUES, found % _VALUES, pixels], axis=1)
        self.rows.append(torch.from_numpy(table).to(self.device))  # type: ignore[union-attr] # a list until synchronised

    def compute(self) -> NDArray[np.int64]:
        """(256, 256) pixels: rows are true values, columns are predicted ones."""
        table = np.unique(dim_zero_cat(self.rows).cpu().numpy(), axis=0)
        table = table[np.unique(table[:, :3], axis=0, return_index=True)[1]]
        counts = np.zeros((_VALUES, _VALUES), np.int64)
        np.add.at(counts, (table[:, 1], table[:, 2]), table[:, 3])
        return counts

    def _join_with_nothing(self) -> None:
        # A process without an image must still gather int64 rows; of an empty list torchmetrics makes float32.
        nothing = torch.empty((0, 4), dtype=torch.int64, device=self.device)
        self.rows.append(nothing)  # type: ignore[union-attr] # a list until synchronised


class LabelScores(NamedTuple):
    """How well the labels of images are known, in percent; NaN where no image has a label."""

    mean_average_precision: float  # mean over the classes that some image shows
    f1: float  # mean over the classes that some image shows or is said to show; a class is said above a half


class ImageLabels(Metric):
    """Gathers the probabilities of the classes of images, each image once, as `LabelMapConfusion` does.

    Args:
        classes: Their number K.

    Example:
        >>> metric = ImageLabels(2)
        >>> metric.update(0, torch.tensor([0.9, 0.2]), torch.tensor([1.0, 0.0]))
        >>> metric.update(1, torch.tensor([0.4, 0.8]), torch.tensor([0.0, 1.0]))
        >>> metric.compute()
        LabelScores(mean_average_precision=100.0, f1=100.0)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    rows: list[Tensor] | Tensor  # (R, 1 + 2 K) float32 each: image, probabilities, labels

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self._join_with_nothing()

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._join_with_nothing()

    def update(self, number: int, probabilities: Tensor, labels: Tensor) -> None:
        """Add an image.

        Args:
            number: Of the image, the same in every process.
            probabilities: (K,) in [0, 1].
            labels: (K,) in {0, 1}.
        """
        row = torch.cat([torch.tensor([float(number)]), probabilities.cpu().float(), labels.cpu().float()])
        self.rows.append(row[None].to(self.device))  # type: ignore[union-attr] # a list until synchronised

    def compute(self) -> LabelScores:
        """Mean average precision and F1."""
        table = dim_zero_cat(self.rows).cpu()
        table = table[torch.from_numpy(np.unique(table[:, 0].numpy(), return_index=True)[1])]
        probabilities, labels = table[:, 1 : 1 + self.classes], table[:, 1 + self.classes :].long()
        shown = labels.any(dim=0)
        if not shown.any():
            return LabelScores(float("nan"), float("nan"))
        told = shown | (probabilities > 0.5).any(dim=0)
        precision, f1 = (
            [float(measure(probabilities[:, k], labels[:, k])) for k in range(self.classes) if counted[k]]
            for measure, counted in ((binary_average_precision, shown), (binary_f1_score, told))
        )
        return LabelScores(100 * fmean(precision), 100 * fmean(f1))

    def _join_with_nothing(self) -> None:
        # As `LabelMapConfusion`: a process without an image gathers rows of this width.
        nothing = torch.empty((0, 1 + 2 * self.classes), device=self.device)
        self.rows.append(nothing)  # type: ignore[union-attr] # a list until synchronised
