"""A feature pyramid with a norm on each map: what HODOR's encoder and decoder see of a frame."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

_GROUPS = 16


class Pyramid(nn.Module):
    """Adds coarse maps to fine ones from the top down (Lin et al., CVPR 2017), and normalises the finest ones.

    Args:
        channels: Of each map of the backbone, finest first.
        out_channels: C, of each map that comes out.
        outputs: How many maps come out, the finest ones.
    """

    def __init__(self, channels: Sequence[int], out_channels: int, outputs: int = 2) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(channels), out_channels)
        for unused in range(outputs, len(channels)):  # no one reads them, and distributed training would stop at them
            self.fpn.layer_blocks[unused] = nn.Identity()
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, out_channels) for _ in range(outputs))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Give (B, C, h, w) maps, finest first, of (B, C', h, w) ones."""
        pyramid = self.fpn({str(level): features for level, features in enumerate(maps)})
        return [norm(pyramid[str(level)]) for level, norm in enumerate(self.norms)]


FPN_FROM_PUBLISHED = {
    f"{theirs}.{level}.conv": f"fpn.{ours}.{level}.0"
    for theirs, ours in (("lateral_convs", "inner_blocks"), ("fpn_convs", "layer_blocks"))
    for level in range(4)
}
"""mmdetection's module name -> ours."""
