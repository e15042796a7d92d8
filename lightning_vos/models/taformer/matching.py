"""Which query answers for which instance of a clip, as SeqFormer decides it.

Shapes: Q queries, K outputs of the class head, T frames, N instances.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from lightning_vos.errors import ConfigError

_CLASS, _BOX, _GIOU = 2.0, 5.0, 2.0


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Pair queries with instances, one to one, so that the pairs cost the least in sum.

    A pair costs 2 x class + 5 x box + 2 x GIoU: the focal loss of calling the query the instance's class rather than
    not; the Euclidean distance of the boxes of all frames together; minus the mean GIoU of the frames. Frames in which
    the instance is absent count like the others.

    Differs from the paper: the published code takes the Euclidean distance where SeqFormer writes L1.

    Args:
        logits: (Q, K) of the class head.
        boxes: (T, Q, 4) centre x, centre y, width, height, as shares of the unpadded frame.
        labels: (N,) int64, the output of the class head that each instance belongs to.
        targets: (N, T, 4) boxes of the instances, their sides above 0.

    Returns:
        The queries, rising, and the instance of each; min(Q, N) of both.

    Raises:
        ConfigError: the predictions are not finite, so training went wrong.
    """
    probabilities, boxes = logits.float().sigmoid(), boxes.float()
    is_class = 0.25 * (1 - probabilities) ** 2 * -(probabilities + 1e-8).log()
    is_not = 0.75 * probabilities**2 * -(1 - probabilities + 1e-8).log()
    # not by the expanded square, which cdist takes for many queries: digits cancel where boxes agree
    distance = torch.cdist(
        boxes.transpose(0, 1).flatten(1), targets.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    overlap = generalized_box_iou(
        box_convert(boxes, "cxcywh", "xyxy"), box_convert(targets.transpose(0, 1), "cxcywh", "xyxy")
    ).mean(dim=0)
    cost = (_CLASS * (is_class - is_not)[:, labels] + _BOX * distance - _GIOU * overlap).cpu()
    if not cost.isfinite().all():
        raise ConfigError(
            "Training diverged: the classes or boxes that the network predicts are NaN or infinite.\n"
            "Lower the learning rate, keep the clipping of gradients (--trainer.gradient_clip_val=0.1),\n"
            "and with --trainer.precision=16-mixed try bf16-mixed or 32-true."
        )
    queries, instances = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(queries).to(logits.device), torch.from_numpy(instances).to(logits.device)
