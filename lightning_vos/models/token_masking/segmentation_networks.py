"""Networks of the second stage, which give every pixel a class: a ViT or a ResNet with a light head, or a U-Net.

Shapes: B images, C bands, H W pixels, K classes (background is one where the dataset has it), D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer, adapt_input_conv
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101

from lightning_vos.backbones import start_state
from lightning_vos.errors import CheckpointError, ConfigError

_GROUPS = 32  # of a group norm
_OPTION = "--model.network.start_weights"


class SegmentationNetwork(nn.Module, ABC):
    """Gives every pixel of an image a score for each class; images of any size and any number of bands.

    Images are padded right and below to `multiple` with zeros, the mean colour of images that were normalised.

    Args:
        classes: K.
        bands: C.
        multiple: What the sides of images must be a multiple of.
        backbone: The part that may start from pretrained weights; it learns at a rate of its own.

    Raises:
        ValueError: `classes` or `bands` is no count.
    """

    def __init__(self, classes: int, bands: int, multiple: int, backbone: nn.Module) -> None:
        super().__init__()
        if min(classes, bands) < 1:
            raise ValueError(f"{type(self).__name__}: classes={classes}, bands={bands}; expected 1 or more")
        self.classes, self.bands, self.multiple = classes, bands, multiple
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W), which are normalised as in training.

        Raises:
            ConfigError: Images have other bands.
        """
        if images.shape[1] != self.bands:
            raise ConfigError(
                f"The images have {images.shape[1]} bands, the network takes {self.bands}.\n"
                f"Set --model.network.bands={images.shape[1]} and train with it, or name other data."
            )
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        logits = F.interpolate(self.coarse(padded), padded.shape[2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]

    @abstractmethod
    def coarse(self, images: Tensor) -> Tensor:
        """Logits (B, K, h, w) of images whose sides are multiples, at whatever size the network works."""

    def load_start_weights(self) -> None:
        """Fill the backbone from what the network was told to start from; nothing happens where that is null.

        Raises:
            CheckpointError: The weights cannot be had, within two seconds when there is no network, or do not fit.
        """


class ViTSegmenter(SegmentationNetwork):
    """A plain vision transformer and two convolutions on its last patches.

    Differs from the paper, which says no more than that its final network is a single-stage ViT-B: the decoder.

    Args:
        classes: K.
        name: A timm ViT.
        start_weights: What the transformer starts from: a pretrained timm model or a local file, which may know images
            of another size and another number of bands; null for random weights. Read by `load_start_weights`.
        bands: C.
        channels: Of the decoder, a multiple of 32.

    Raises:
        ConfigError: `name` is no ViT of timm.
        ValueError: `classes`, `bands` or `channels` is no such number.
    """

    def __init__(
        self,
        classes: int,
        name: str = "vit_base_patch16_224",
        start_weights: str | None = None,
        bands: int = 3,
        channels: int = 256,
    ) -> None:
        if channels < 1 or channels % _GROUPS:
            raise ValueError(f"ViTSegmenter.channels is {channels}, expected a multiple of {_GROUPS}")
        body = _vit(name, max(bands, 1))
        super().__init__(classes, bands, cast("Any", body.patch_embed).patch_size[0], body)
        self.start_weights = start_weights
        self.decoder = nn.Sequential(
            nn.Conv2d(body.num_features, channels, 3, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, classes, 3, padding=1),
        )

    def coarse(self, images: Tensor) -> Tensor:
        """Logits of the patches."""
        (patches,) = cast("Any", self.backbone).forward_intermediates(
            images, indices=1, norm=True, intermediates_only=True
        )
        return self.decoder(patches)

    def load_start_weights(self) -> None:
        """As `SegmentationNetwork`; positions are resized, and patches adapted to the bands, as timm does."""
        if self.start_weights is None:
            return
        state, body = dict(start_state(self.start_weights, _OPTION)), cast("Any", self.backbone)
        own = body.state_dict()
        embedding, positions = "patch_embed.proj.weight", "pos_embed"
        if embedding in state and state[embedding].dim() == 4:
            state[embedding] = adapt_input_conv(self.bands, state[embedding].float())
        if positions in state and positions in own and state[positions].shape[1] != own[positions].shape[1]:
            state[positions] = resample_abs_pos_embed(
                state[positions], list(body.patch_embed.grid_size), num_prefix_tokens=body.num_prefix_tokens
            )
        _fill(body, state, self.start_weights)


class DeepLabV3(SegmentationNetwork):
    """torchvision's DeepLabV3 at stride 8, without the auxiliary head.

    Args:
        classes: K.
        depth: Layers of the ResNet.
        start_weights: What the ResNet starts from: a pretrained timm model such as `resnet50.tv_in1k`, or a local file
            of timm or torchvision; null for random weights. Read by `load_start_weights`.
        bands: C.

    Raises:
        ValueError: `classes` or `bands` is no count, or there is no such ResNet.
    """

    def __init__(
        self, classes: int, depth: Literal[50, 101] = 50, start_weights: str | None = None, bands: int = 3
    ) -> None:
        builders = {50: deeplabv3_resnet50, 101: deeplabv3_resnet101}
        if depth not in builders:
            raise ValueError(f"DeepLabV3.depth is {depth}, expected 50 or 101")
        whole = builders[depth](weights=None, weights_backbone=None, num_classes=max(classes, 1), aux_loss=False)
        super().__init__(classes, bands, 1, cast("nn.Module", whole.backbone))
        self.start_weights = start_weights
        self.head = cast("nn.Module", whole.classifier)
        if bands != 3:
            self.backbone.conv1 = nn.Conv2d(bands, 64, 7, stride=2, padding=3, bias=False)

    def coarse(self, images: Tensor) -> Tensor:
        """Logits at stride 8.

        Raises:
            ConfigError: A single image is trained on.
        """
        if self.training and len(images) == 1:
            raise ConfigError(
                "DeepLabV3 normalises over a batch what it pools from each image, and a batch is one image here.\n"
                "Set --data.batch_size to 2 or more."
            )
        return self.head(self.backbone(images)["out"])

    def load_start_weights(self) -> None:
        """As `SegmentationNetwork`; the first layer is adapted to the bands, as timm does."""
        if self.start_weights is None:
            return
        state, first = dict(start_state(self.start_weights, _OPTION)), "conv1.weight"
        if first in state and state[first].dim() == 4:
            state[first] = adapt_input_conv(self.bands, state[first].float())
        _fill(self.backbone, state, self.start_weights)


class UNet(SegmentationNetwork):
    """A U-Net with bilinear upsampling, for few classes and many bands; from random weights.

    It is the one in the published code, which does not use it: two 3 x 3 convolutions with batch norm at each scale.
    Differs from it: an image is padded once, where the published one pads each map that is scaled up.

    Args:
        classes: K.
        bands: C.
        channels: Of the encoder, from full size on; each further scale halves the size.

    Raises:
        ValueError: `classes` or `bands` is no count, or there are fewer than two scales.
    """

    def __init__(self, classes: int, bands: int = 3, channels: Sequence[int] = (64, 128, 256, 512, 512)) -> None:
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(f"UNet.channels is {list(channels)}, expected the channels of two scales or more")
        super().__init__(classes, bands, 2 ** (len(channels) - 1), nn.Identity())
        scales = [max(bands, 1), *channels]
        self.down = nn.ModuleList(_two_convolutions(before, after) for before, after in pairwise(scales))
        ups, below = [], channels[-1]
        for number in reversed(range(len(channels) - 1)):
            ups.append(_two_convolutions(channels[number] + below, channels[max(number - 1, 0)]))
            below = channels[max(number - 1, 0)]
        self.up = nn.ModuleList(ups)
        self.head = nn.Conv2d(below, classes, 1)

    def coarse(self, images: Tensor) -> Tensor:
        """Logits at full size."""
        lowest, *others = self.down
        maps = [lowest(images)]
        for scale in others:
            maps.append(scale(F.max_pool2d(maps[-1], 2)))
        found = maps.pop()
        for scale in self.up:
            larger = F.interpolate(found, scale_factor=2, mode="bilinear", align_corners=True)
            found = scale(torch.cat([maps.pop(), larger], dim=1))
        return self.head(found)


def _two_convolutions(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def _vit(name: str, bands: int) -> VisionTransformer:
    """The transformer alone, for images of any size.

    Raises:
        ConfigError: timm does not know it, or it is none.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:3]
        raise ConfigError(f"timm knows no model {name!r}. Close names: {', '.join(near) or 'none'}.")
    try:
        body = timm.create_model(name, num_classes=0, global_pool="", in_chans=bands, dynamic_img_size=True)
    except TypeError:
        body = None
    if not isinstance(body, VisionTransformer):
        raise ConfigError(
            f"{name!r} is no plain vision transformer, which ViTSegmenter takes.\n"
            "Name one, such as vit_base_patch16_224 or deit_base_patch16_224."
        )
    return body


def _fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fill a module; what it does not have, such as a classifier, is left out.

    Raises:
        CheckpointError: An entry is missing or of another shape.
    """
    own = module.state_dict()
    missing = sorted(name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    wrong = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if missing or wrong:
        raise CheckpointError(
            f"Start weights {source!r} do not fit the backbone:\n"
            f"  {len(missing)} entries missing {missing[:2]}, {len(wrong)} of another shape {wrong[:2]}.\n"
            f"Name weights of this architecture by {_OPTION}, or null for random ones."
        )
    module.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)
