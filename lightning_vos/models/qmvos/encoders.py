"""XMem's encoders: keys of a frame, values of its objects.

Shapes: B batch, N object slots, H W network size, h w grid of the coarsest stride, C channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from lightning_vos.backbones import start_state
from lightning_vos.errors import CheckpointError, ConfigError
from lightning_vos.models.qmvos.fusion import FeatureFusion
from lightning_vos.models.qmvos.sensory import RecurrentCell


class Keys(NamedTuple):
    """What a frame is found by."""

    key: Tensor  # (B, C, h, w)
    shrinkage: Tensor  # (B, 1, h, w), 1 and above: how sure a position of the memory is
    selection: Tensor  # (B, C, h, w) in [0, 1]: which channels a position that reads asks for


class KeyProjection(nn.Module):
    """Projects features of a frame to keys (XMem, Sec. 3.3).

    Args:
        in_channels: Of the features.
        channels: C.
    """

    def __init__(self, in_channels: int, channels: int = 64) -> None:
        super().__init__()
        self.key = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.shrinkage = nn.Conv2d(in_channels, 1, 3, padding=1)
        self.selection = nn.Conv2d(in_channels, channels, 3, padding=1)
        nn.init.orthogonal_(self.key.weight)
        assert self.key.bias is not None
        nn.init.zeros_(self.key.bias)

    def forward(self, features: Tensor) -> Keys:
        """The keys of (B, in, h, w) features."""
        return Keys(self.key(features), self.shrinkage(features).square() + 1, self.selection(features).sigmoid())


class ValueEncoder(nn.Module):
    """Encodes a frame with the masks of its objects, each beside those of all others.

    Differs from the published code: the plane of the others is there in pre-training on single objects, too; it is 0
    then, so its weights do not matter.

    Args:
        frame_channels: Of the frame's features.
        channels: Of a value.
        hidden: Of the sensory memory; 0 for none.
        body: A ResNet of timm, which is used up to the map of `stride`.
        stride: Of the features and of values.

    Raises:
        ConfigError: if timm knows no such ResNet.
    """

    def __init__(
        self,
        frame_channels: int = 1024,
        channels: int = 512,
        hidden: int = 64,
        body: str = "resnet18",
        stride: int = 16,
    ) -> None:
        super().__init__()
        try:
            number = stride.bit_length() - 2  # of the map: those of a ResNet begin with stride 2
            resnet: Any = timm.create_model(body, features_only=True, out_indices=(number,), in_chans=5)
            (found,), (width,) = resnet.feature_info.reduction(), resnet.feature_info.channels()
        except (RuntimeError, ValueError, IndexError) as error:
            raise ConfigError(
                f"No value encoder can be made of {body!r}: {error}.\nGive the name of a ResNet of timm, resnet18."
            ) from None
        if found != stride:
            raise ConfigError(
                f"The value encoder needs a ResNet, whose map {number + 1} is at stride {stride}; {body!r} has {found}."
            )
        self.body: Any = resnet
        self.fusion = FeatureFusion(frame_channels, width, channels)
        self.deep_update = RecurrentCell(channels, hidden) if hidden else None

    def load_start_weights(self, weights: str) -> None:
        """Fill the ResNet with weights of RGB images; the planes of masks get orthogonal ones, as published.

        Args:
            weights: As `lightning_vos.backbones.start_state`.

        Raises:
            CheckpointError: if the weights cannot be had, or are not those of this ResNet.
        """
        state, own = start_state(weights, "--model.network.value_start_weights"), self.body.state_dict()
        stem = state.get("conv1.weight", torch.empty(0))
        if stem.shape[1:] == (3, 7, 7):
            planes = torch.empty(stem.shape[0], own["conv1.weight"].shape[1] - 3, 7, 7)
            state["conv1.weight"] = torch.cat([stem, nn.init.orthogonal_(planes)], dim=1)
        wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
        if wrong := [name for name in wrong if not name.endswith("num_batches_tracked")]:
            raise CheckpointError(
                f"Start weights {weights!r} are not those of the value encoder: {len(wrong)} entries are missing or of "
                f"another shape, such as {wrong[0]}.\nGive resnet18.tv_in1k, a file of it, or null (random)."
            )
        self.body.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)

    @torch.no_grad()
    def start_others(self) -> None:
        """Give the plane of other objects orthogonal weights if it has none, as when the published stages go on."""
        plane = next(self.body.parameters())[:, 4:]  # of the stem's first convolution
        if not plane.any():
            plane.copy_(nn.init.orthogonal_(torch.empty_like(plane)))

    def forward(self, image: Tensor, features: Tensor, planes: Tensor) -> Tensor:
        """Values (B, N, C, h, w).

        Args:
            image: (B, 3, H, W), normalised.
            features: (B, frame_channels, h, w).
            planes: (B, N, H, W) in [0, 1].
        """
        images = image[:, None].expand(-1, planes.shape[1], -1, -1, -1)
        others = planes.sum(dim=1, keepdim=True) - planes
        (objects,) = self.body(torch.cat([images, planes[:, :, None], others[:, :, None]], dim=2).flatten(0, 1))
        return self.fusion(features, objects.unflatten(0, planes.shape[:2]))
