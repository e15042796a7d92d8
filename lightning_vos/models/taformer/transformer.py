"""SeqFormer's transformer, with TAFormer's additions where the settings ask for them.

Shapes: B clips, T frames, Q queries, L layers of the decoder, S levels, P tokens of all levels of a frame, h w the grid
of a level, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_vos.models.taformer.decoder import Decoder, DecoderSettings
from lightning_vos.models.taformer.deformable_attention import linear
from lightning_vos.models.taformer.encoder import Encoder, EncoderSettings
from lightning_vos.models.taformer.positions import spatial_position

_ENCODER, _DECODER = EncoderSettings(), DecoderSettings()


class TransformerOutput(NamedTuple):
    """What the transformer makes of clips; coordinates are in [0, 1] of what is not padded."""

    memory: list[Tensor]  # (B, T, C, h, w) for each level: the encoder's output
    instances: Tensor  # (L, B, Q, C) instance queries after each layer
    box_queries: Tensor  # (L, B, T, Q, C) box queries after each layer
    references: Tensor  # (L, B, T, Q, 2) of (x, y) that each layer looked around, before its own refinement
    boxes: Tensor  # (L, B, T, Q, 4) of (centre x, centre y, width, height), refined by each layer


class Transformer(nn.Module):
    """From feature maps of clips to instance queries, box queries and boxes.

    Args:
        channels: C.
        heads: Of all attentions.
        levels: S; the third is at stride 32.
        encoder_layers: Number of layers of the encoder.
        decoder_layers: Number of layers of the decoder, L.
        feed: Channels between the layers of the feed-forward parts.
        dropout: Of all layers.
        queries: Q.
        encoder: What tokens look at. With `st_encoder` and `temporal_decoder` off it is SeqFormer.
        decoder: How box queries of different frames talk to each other.
    """

    def __init__(
        self,
        channels: int = 256,
        heads: int = 8,
        levels: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feed: int = 1024,
        dropout: float = 0.1,
        queries: int = 300,
        encoder: EncoderSettings = _ENCODER,
        decoder: DecoderSettings = _DECODER,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, heads, levels, encoder_layers, feed, dropout, encoder)
        self.decoder = Decoder(channels, heads, levels, decoder_layers, feed, dropout, decoder)
        self.level_embedding = nn.Parameter(torch.randn(levels, channels))
        self.query_embedding = nn.Embedding(queries, 2 * channels)  # the position of each query, then its content
        self.reference_points = linear(channels, 2, zero_bias=True)

    def forward(self, maps: Sequence[Tensor], padding: Sequence[Tensor]) -> TransformerOutput:
        """Encode and decode B clips.

        Args:
            maps: (B, T, C, h, w) for each level, from the finest to the coarsest.
            padding: (B, h, w) bool for each level, True where all frames of a clip are padded, right or bottom.
        """
        shapes = [(int(level.shape[3]), int(level.shape[4])) for level in maps]
        frames = list(torch.cat([level.flatten(3) for level in maps], dim=3).transpose(2, 3).unbind(dim=1))
        places = [spatial_position(mask, level.shape[2]) for mask, level in zip(padding, maps, strict=True)]
        positions = torch.cat(
            [place.flatten(1, 2) + level for place, level in zip(places, self.level_embedding, strict=True)], dim=1
        )
        padded = torch.cat([mask.flatten(1) for mask in padding], dim=1)
        ratios = torch.stack([valid_ratio(mask) for mask in padding], dim=1)
        memory = self.encoder(frames, positions, padded, shapes, ratios)
        place, content = self.query_embedding.weight.chunk(2, dim=1)
        references = self.reference_points(place).float().sigmoid()
        decoded = self.decoder(content, place, references, memory, padded, shapes, ratios)
        tokens = torch.stack(memory, dim=1).transpose(2, 3).split([height * width for height, width in shapes], dim=3)
        encoded = [level.unflatten(3, shape) for level, shape in zip(tokens, shapes, strict=True)]
        return TransformerOutput(encoded, *decoded)


def valid_ratio(padding: Tensor) -> Tensor:
    """The share of columns and of rows of (B, h, w) that are no padding: (B, 2).

    Example:
        >>> valid_ratio(torch.tensor([[[False, False, True, True]]]))
        tensor([[0.5000, 1.0000]])
    """
    valid = (~padding).float()
    return torch.stack([valid[:, 0].mean(dim=1), valid[:, :, 0].mean(dim=1)], dim=1)
