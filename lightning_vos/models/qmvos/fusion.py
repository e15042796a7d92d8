"""How XMem brings the features of a frame and of an object together.

Shapes: B batch, C channels, h w feature grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_REDUCTION = 16  # of the channel gate


class ResidualBlock(nn.Module):
    """Two pre-activated 3 x 3 convolutions beside a shortcut; no norms.

    Args:
        in_channels: Of the input; where they are not `out_channels` the shortcut is a 3 x 3 convolution.
        out_channels: Of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in, h, w) to (B, out, h, w)."""
        return self.conv2(self.conv1(features.relu()).relu()) + self.shortcut(features)


class BlockAttention(nn.Module):
    """Gates channels, then positions (Woo et al., CBAM, ECCV 2018), with biases and without norms, as XMem has it.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel_gate = nn.Sequential(
            nn.Linear(channels, channels // _REDUCTION), nn.ReLU(), nn.Linear(channels // _REDUCTION, channels)
        )
        self.position_gate = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, features: Tensor) -> Tensor:
        """Gate (B, C, h, w) features."""
        flat = features.flatten(2)
        gate = (self.channel_gate(flat.mean(dim=2)) + self.channel_gate(flat.amax(dim=2))).sigmoid()
        features = features * gate[:, :, None, None]
        pooled = torch.stack([features.amax(dim=1), features.mean(dim=1)], dim=1)
        return features * self.position_gate(pooled).sigmoid()


class FeatureFusion(nn.Module):
    """Fuses the features of a frame with those of each of its objects.

    Args:
        frame_channels: Of the frame.
        object_channels: Of an object.
        channels: Of the result.
    """

    def __init__(self, frame_channels: int, object_channels: int, channels: int) -> None:
        super().__init__()
        self.enter = ResidualBlock(frame_channels + object_channels, channels)
        self.attention = BlockAttention(channels)
        self.leave = ResidualBlock(channels, channels)

    def forward(self, frame: Tensor, objects: Tensor) -> Tensor:
        """Fuse (B, frame, h, w) with (B, N, object, h, w) to (B, N, channels, h, w)."""
        frames = frame[:, None].expand(-1, objects.shape[1], -1, -1, -1)
        fused = self.enter(torch.cat([frames, objects], dim=2).flatten(0, 1))
        return self.leave(fused + self.attention(fused)).unflatten(0, objects.shape[:2])
