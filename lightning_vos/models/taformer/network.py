"""TAFormer: instances of a video clip as queries that look at all frames at once; without its additions, SeqFormer.

Shapes: B clips, T frames, Q queries, n chosen ones, K outputs of the class head, L decoder layers, C channels, H W
frames, h w mask features of stride 8.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MLP

from lightning_vos.backbones import Backbone
from lightning_vos.errors import ConfigError
from lightning_vos.models.taformer.contrastive import ContrastiveHead
from lightning_vos.models.taformer.decoder import DecoderSettings
from lightning_vos.models.taformer.encoder import EncoderSettings
from lightning_vos.models.taformer.mask_head import FILTER_SIZE, MaskFeatures, dynamic_masks
from lightning_vos.models.taformer.transformer import Transformer

Contrastive = Literal["none", "last_layer", "all_layers"]

_STRIDES = (8, 16, 32)
_GROUPS = 32
_PRIOR = 0.01  # of every class, at the start
_FRAMES_AT_ONCE = 8  # in the parts that see one frame at a time, lest a long video's activations add up
_ENCODER, _DECODER = EncoderSettings(), DecoderSettings()


class VISPredictions(NamedTuple):
    """What a network says of clips; masks of the queries that matter are made of it by `TAFormerNetwork.masks`."""

    logits: Tensor  # (L, B, Q, K) of the classes, for the whole clip
    boxes: Tensor  # (L, B, T, Q, 4) centre x, centre y, width, height, as shares of the unpadded frame
    references: Tensor  # (L, B, T, Q, 2) x and y, likewise: where a layer looked, and what its masks are relative to
    filters: Tensor  # (L, B, Q, 169), for the whole clip
    mask_features: Tensor  # (B, T, 8, h, w)
    embeddings: Tensor  # (L', B, T, Q, C) for the contrastive loss; L' is L, 1 (the last layer) or 0 (none, or no_grad)
    box_queries: Tensor  # (B, T, Q, C) after the last decoder layer
    sizes: Tensor  # (B, 2) height and width of the frames before padding, in pixels


class TAFormerNetwork(nn.Module):
    """The network of TAFormer, and of SeqFormer.

    Args:
        backbone: The image encoder, with maps at strides 8, 16 and 32.
        classes: K. Published files have an output for each id of YouTube-VIS, 1 to 40, and one before and behind, which
            nothing is ever taught to.
        first_class: The output of the dataset's first class, which is class 0 in `Instances`.
        queries: Q.
        channels: C, a multiple of 64.
        layers: Of the encoder and of the decoder.
        feed: Hidden width of the feed-forward parts.
        dropout: In encoder and decoder.
        encoder: What the encoder adds to SeqFormer's (Eq. 1 to 4, 6).
        decoder: What the decoder adds to SeqFormer's, over time.
        contrastive: The decoder layers whose box queries are embedded for the contrastive loss (Eq. 7, 8).

    Raises:
        ConfigError: if the backbone has maps at other strides.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int = 42,
        first_class: int = 1,
        queries: int = 300,
        *,
        channels: int = 256,
        layers: int = 6,
        feed: int = 1024,
        dropout: float = 0.1,
        encoder: EncoderSettings = _ENCODER,
        decoder: DecoderSettings = _DECODER,
        contrastive: Contrastive = "all_layers",
    ) -> None:
        super().__init__()
        if tuple(backbone.strides) != _STRIDES:
            raise ConfigError(
                f"TAFormer needs maps at strides 8, 16 and 32, the backbone has {list(backbone.strides)}.\n"
                "Set --model.network.backbone.strides=[8,16,32]."
            )
        if not 0 <= first_class < classes or queries < 1 or channels < 1 or channels % (2 * _GROUPS) or layers < 1:
            raise ValueError(
                f"TAFormerNetwork: classes={classes}, first_class={first_class}, queries={queries}, channels="
                f"{channels}, layers={layers}; expected an output for the first class, a query and a layer at least, "
                f"and channels in multiples of {2 * _GROUPS}, two or more in a group of a norm"
            )
        if contrastive not in ("none", "last_layer", "all_layers"):
            raise ValueError(f"TAFormerNetwork.contrastive is {contrastive!r}, expected none, last_layer or all_layers")
        self.classes, self.first_class, self.contrastive = classes, first_class, contrastive
        self.backbone = backbone
        kernels = [(inner, 1, 1) for inner in backbone.channels[:3]] + [(backbone.channels[2], 3, 2)]
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inner, channels, size, stride, padding=size // 2), nn.GroupNorm(_GROUPS, channels))
            for inner, size, stride in kernels
        )
        self.transformer = Transformer(
            channels=channels,
            levels=len(kernels),
            encoder_layers=layers,
            decoder_layers=layers,
            feed=feed,
            dropout=dropout,
            queries=queries,
            encoder=encoder,
            decoder=decoder,
        )
        self.class_heads = nn.ModuleList(_class_head(channels, classes) for _ in range(layers))
        self.filter_head = MLP(channels, [channels, channels, FILTER_SIZE])
        self.mask_features = MaskFeatures(channels)
        self.contrastive_head = None if contrastive == "none" else ContrastiveHead(channels)
        self._start()

    def _start(self) -> None:
        """Projections and filters start as published; the others do so by themselves."""
        for name, parameter in (*self.projections.named_parameters(), *self.filter_head.named_parameters()):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def load_start_weights(self) -> None:
        """Fill the backbone with the weights that training starts from.

        Raises:
            CheckpointError: if they cannot be had or do not fit.
        """
        self.backbone.load_start_weights()

    def forward(self, frames: Tensor, sizes: Tensor) -> VISPredictions:
        """Find the instances of clips.

        Args:
            frames: (B, T, 3, H, W) RGB in [0, 1], padded right and below with the mean colour of ImageNet.
            sizes: (B, 2) height and width before the padding, in pixels.
        """
        parts = [frames[:, start : start + _FRAMES_AT_ONCE] for start in range(0, frames.shape[1], _FRAMES_AT_ONCE)]
        by_level = zip(*(self._maps(part) for part in parts), strict=True)
        maps = [torch.cat(level, dim=1) for level in by_level]
        is_padding = _padding(sizes, frames.shape[3], frames.shape[4])
        padding = [F.interpolate(is_padding[None].float(), level.shape[3:])[0].bool() for level in maps]
        output = self.transformer(maps, padding)
        mask_features = [
            self.mask_features([level[:, start : start + _FRAMES_AT_ONCE] for level in output.memory[:3]])
            for start in range(0, frames.shape[1], _FRAMES_AT_ONCE)
        ]
        pairs = zip(self.class_heads, output.instances, strict=True)
        return VISPredictions(
            logits=torch.stack([head(instances) for head, instances in pairs]),
            boxes=output.boxes,
            references=output.references[..., :2],
            filters=self.filter_head(output.instances),
            mask_features=torch.cat(mask_features, dim=1),
            embeddings=self._embeddings(output.box_queries),
            box_queries=output.box_queries[-1].clone(),  # a view would keep those of all layers
            sizes=sizes,
        )

    def _maps(self, frames: Tensor) -> list[Tensor]:
        """Projected maps (B, T, C, ..) at strides 8, 16, 32 and 64; the last is made of the backbone's last map."""
        *found, _ = self.backbone(frames.flatten(0, 1))
        raw = [*found, found[-1]]
        projected = (projection(features) for projection, features in zip(self.projections, raw, strict=True))
        return [features.unflatten(0, frames.shape[:2]) for features in projected]

    def _embeddings(self, box_queries: Tensor) -> Tensor:
        if self.contrastive_head is None or not torch.is_grad_enabled():
            return box_queries.new_empty(0, *box_queries.shape[1:])
        return self.contrastive_head(box_queries if self.contrastive == "all_layers" else box_queries[-1:])

    def masks(
        self, predictions: VISPredictions, layer: int, clip: int, queries: Tensor, frames: slice = slice(None)
    ) -> Tensor:
        """Masks of some queries, for their number is what costs memory.

        Args:
            predictions: What this network said.
            layer: Of the decoder; -1 for the last.
            clip: Which of the B clips.
            queries: (n,) numbers of queries.
            frames: Of the clip, all by default.

        Returns:
            (n, T, 2 h, 2 w) logits at stride 4.
        """
        height_width = predictions.sizes[clip]
        references = predictions.references[layer, clip, frames][:, queries].transpose(0, 1) * height_width.flip(0)
        return dynamic_masks(
            predictions.mask_features[clip, frames], predictions.filters[layer, clip, queries], references
        )


def _class_head(channels: int, classes: int) -> nn.Linear:
    """A linear layer that begins by holding every class for rare, as the focal loss needs it."""
    head = nn.Linear(channels, classes)
    nn.init.constant_(head.bias, -math.log((1 - _PRIOR) / _PRIOR))
    return head


def _padding(sizes: Tensor, height: int, width: int) -> Tensor:
    """(B, height, width) bool, where a frame is padding."""
    rows, columns = torch.arange(height, device=sizes.device), torch.arange(width, device=sizes.device)
    return (rows >= sizes[:, :1])[:, :, None] | (columns >= sizes[:, 1:])[:, None]
