"""The encoder: tokens look around in their own frame and, in TAFormer, in neighbouring ones (TAFormer, Sec. 3.2).

Shapes: B clips, T frames, S levels, P tokens of all levels of a frame, C channels, M heads, D = C / M.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vos.models.taformer.deformable_attention import (
    DeformableAttention,
    DeformableSampling,
    Shapes,
    linear,
    split_values,
)
from lightning_vos.models.taformer.positions import temporal_position

Fusion = Literal["add", "concat", "dynamic"]
Boundary = Literal["mask", "reflect", "clamp"]
TemporalPosition = Literal["normalized", "index", "none"]
_LEVELS = 4  # of the networks: strides 8 to 64
_SINGLE_LEVEL = 2  # stride 32


@dataclass(frozen=True)
class EncoderSettings:
    """What the encoder's attention looks at, and how space and time are joined.

    The paper leaves much of it open; defaults are what its printed numbers of parameters and its equations agree with.

    Attributes:
        st_encoder: Whether tokens also look into neighbouring frames (STJ-MSDA); if not, it is SeqFormer's encoder, of
            which only `k_intra` and `spatial_levels` are settings.
        fusion: How both are joined (Table 4): `add`; `concat`, by one linear layer; `dynamic`, by a gate for each token
            and channel (DAF, Eq. 4).
        daf_hidden: Channels between the two layers of that gate.
        window: How many frames before and after one are its neighbours, d.
        k_intra: Points of a level in a token's own frame.
        k_inter: Points of a level in each neighbouring frame.
        boundary: What neighbours are where the clip ends: `mask`, none; `reflect`, those of the other side; `clamp`,
            the first or the last frame, which also stand in where there is nothing to reflect.
        share_value_proj: Whether both attentions project values alike; if not, time has a projection of its own.
        temporal_position: What tells queries their time: the sine of their share of the clip (`normalized`), of their
            number (`index`), or nothing.
        spatial_levels: How many levels are looked at in a token's own frame: all, or 1, stride 32 alone (Table 5).
        temporal_levels: Likewise of neighbouring frames.
    """

    st_encoder: bool = True
    fusion: Fusion = "dynamic"
    daf_hidden: int = 32
    window: int = 2
    k_intra: int = 4
    k_inter: int = 4
    boundary: Boundary = "mask"
    share_value_proj: bool = True
    temporal_position: TemporalPosition = "normalized"
    spatial_levels: int = 4
    temporal_levels: int = 4

    def __post_init__(self) -> None:
        for name, choices in (("fusion", Fusion), ("boundary", Boundary), ("temporal_position", TemporalPosition)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"EncoderSettings.{name} is {getattr(self, name)!r}, expected one of {', '.join(get_args(choices))}"
                )
        for name in ("daf_hidden", "window", "k_intra", "k_inter", "spatial_levels", "temporal_levels"):
            if getattr(self, name) < 1:
                raise ValueError(f"EncoderSettings.{name} is {getattr(self, name)}, expected 1 or more")


class Scene(NamedTuple):
    """What all layers know of the frames of a batch of clips."""

    shapes: Shapes  # (height, width) of each level
    padding: Tensor  # (B, P) bool, the same in all frames
    positions: Tensor  # (B, P, C), added to queries
    times: Tensor | None  # (T, C), likewise
    references: Tensor  # (B, P, S, 2): where each token lies, on every level


class DynamicFusion(nn.Module):
    """Joins what was seen in space and in time by a gate for each token and channel (DAF, Eq. 4).

    Differs from the paper: "softmax along the channel dimension" is read as its equation says, between the two gates
    of each channel.

    Args:
        channels: C.
        hidden: Channels between the layers.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = linear(channels, hidden, zero_bias=True)
        self.intra_gate = linear(hidden, channels, zero_bias=True)
        self.inter_gate = linear(hidden, channels, zero_bias=True)

    def forward(self, intra: Tensor, inter: Tensor) -> Tensor:
        """Join (..., C) of a frame itself and of its neighbours."""
        hidden = F.relu(self.reduce(intra + inter))
        weight = (self.intra_gate(hidden) - self.inter_gate(hidden)).sigmoid()
        return intra * weight + inter * (1 - weight)


class ConcatFusion(nn.Module):
    """Joins them by one linear layer of both.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.join = linear(2 * channels, channels, zero_bias=True)

    def forward(self, intra: Tensor, inter: Tensor) -> Tensor:
        """Join (..., C) of a frame itself and of its neighbours."""
        return self.join(torch.cat([intra, inter], dim=-1))


class FeedForward(nn.Module):
    """Two linear layers with a residual and a norm behind.

    Args:
        channels: C.
        hidden: Channels between the layers.
        dropout: Behind both.
    """

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand = linear(channels, hidden)
        self.contract = linear(hidden, channels)
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., C) to as many."""
        hidden = self.dropout(F.relu(self.expand(tokens)))
        return self.norm(tokens + self.dropout(self.contract(hidden)))


class EncoderLayer(nn.Module):
    """Every token looks at points of its frame, and of neighbouring frames if the settings say so.

    A token looks into a neighbouring frame around where it lies itself; offsets and weights of each neighbour are
    predicted from the token, and all points of all neighbours share a softmax (STJ-MSDA, Eq. 1 to 4).

    Args:
        channels: C.
        heads: M.
        levels: S.
        feed: Channels between the layers of the feed-forward part.
        dropout: Behind the attention and in the feed-forward part.
        settings: What is looked at.
    """

    def __init__(
        self, channels: int, heads: int, levels: int, feed: int, dropout: float, settings: EncoderSettings
    ) -> None:
        super().__init__()
        self.settings = settings
        self.spatial = _looked_at("spatial_levels", settings.spatial_levels, levels)
        self.attention = DeformableAttention(channels, heads, settings.spatial_levels, settings.k_intra)
        self.attention_norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.feed = FeedForward(channels, feed, dropout)
        self.temporal_attention: DeformableSampling | None = None
        if not settings.st_encoder:
            return
        self.temporal = _looked_at("temporal_levels", settings.temporal_levels, levels)
        self.temporal_attention = DeformableSampling(
            channels, heads, settings.temporal_levels, settings.k_inter, 2 * settings.window
        )
        if not settings.share_value_proj:
            self.temporal_value_proj = linear(channels, channels, zero_bias=True)
        if settings.fusion == "dynamic":
            self.fusion: nn.Module = DynamicFusion(channels, settings.daf_hidden)
        elif settings.fusion == "concat":
            self.fusion = ConcatFusion(channels)

    def forward(self, frames: Sequence[Tensor], scene: Scene) -> list[Tensor]:
        """Update the (B, P, C) tokens of T frames; sampling is done frame by frame, so that memory stays small."""
        values = [self.attention.values_of(tokens, scene.padding) for tokens in frames]
        if self.temporal_attention is None or self.settings.share_value_proj:
            others = values
        else:
            heads = self.attention.heads
            others = [split_values(self.temporal_value_proj(tokens), scene.padding, heads) for tokens in frames]
        return [self._frame(time, tokens, values[time], others, scene) for time, tokens in enumerate(frames)]

    def _frame(self, time: int, tokens: Tensor, values: Tensor, others: list[Tensor], scene: Scene) -> Tensor:
        queries = tokens + scene.positions
        if scene.times is not None:
            queries = queries + scene.times[time]
        own, shapes = _of_levels(values, scene.shapes, self.spatial)
        attended = self.attention(queries, scene.references[:, :, self.spatial], own, shapes)
        if self.temporal_attention is not None:
            seen = self._neighbours(self.temporal_attention, time, queries, others, scene)
            attended = attended + seen if self.settings.fusion == "add" else self.fusion(attended, seen)
        return self.feed(self.attention_norm(tokens + self.dropout(attended)))

    def _neighbours(
        self, attention: DeformableSampling, time: int, queries: Tensor, values: list[Tensor], scene: Scene
    ) -> Tensor:
        """What the queries of a frame see in its neighbours; zeros where the clip has one frame."""
        slots = neighbours(time, len(values), self.settings.window, self.settings.boundary)
        if not slots:  # with gradients of zero: distributed training waits for one of every parameter
            unused = [entry.sum() for name, entry in self.named_parameters() if name.startswith("temporal_")]
            return torch.zeros_like(queries) + 0 * torch.stack(unused).sum()
        parts = [_of_levels(values[other], scene.shapes, self.temporal) for other in slots.values()]
        seen = attention.read(
            queries,
            scene.references[:, :, self.temporal],
            torch.cat([tokens for tokens, _ in parts], dim=1),
            parts[0][1],
            list(slots),
        )
        return self.attention.output_proj(seen)


class Encoder(nn.Module):
    """Refines the tokens of a clip's frames, layer by layer.

    Args:
        channels: C.
        heads: M.
        levels: S.
        layers: Number of layers.
        feed: Channels between the layers of the feed-forward parts.
        dropout: Of all layers.
        settings: What tokens look at.
    """

    def __init__(
        self,
        channels: int = 256,
        heads: int = 8,
        levels: int = 4,
        layers: int = 6,
        feed: int = 1024,
        dropout: float = 0.1,
        settings: EncoderSettings = EncoderSettings(),
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(channels, heads, levels, feed, dropout, settings) for _ in range(layers)
        )
        self.temporal_position: TemporalPosition = settings.temporal_position if settings.st_encoder else "none"

    def forward(
        self, frames: Sequence[Tensor], positions: Tensor, padding: Tensor, shapes: Shapes, valid_ratios: Tensor
    ) -> list[Tensor]:
        """Refine (B, P, C) tokens of T frames.

        Args:
            frames: The tokens of each frame, level after level, row by row.
            positions: (B, P, C), added to queries.
            padding: (B, P) bool, True where a token is padding; those are never looked at.
            shapes: (height, width) of each level.
            valid_ratios: (B, S, 2), the share of columns and rows of each level that are no padding.
        """
        times = None
        if self.temporal_position != "none":
            times = temporal_position(len(frames), positions.shape[2], self.temporal_position, positions.device)
        scene = Scene(shapes, padding, positions, times, token_references(shapes, valid_ratios))
        tokens = list(frames)
        for layer in self.layers:
            tokens = layer(tokens, scene)
        return tokens


def neighbours(time: int, frames: int, window: int, boundary: Boundary) -> dict[int, int]:
    """Which frames are looked at from one: the number of each neighbour, from the earliest on -> its frame.

    Example:
        >>> neighbours(1, 5, 2, "mask"), neighbours(1, 5, 2, "reflect"), neighbours(1, 5, 2, "clamp")
        ({1: 0, 2: 2, 3: 3}, {0: 3, 1: 0, 2: 2, 3: 3}, {0: 0, 1: 0, 2: 2, 3: 3})
    """
    if frames == 1:
        return {}
    found = {}
    for slot, step in enumerate(step for step in range(-window, window + 1) if step):
        other = time + step
        if boundary == "reflect" and not 0 <= other < frames and 0 <= time - step < frames:
            other = time - step
        elif boundary != "mask":
            other = min(max(other, 0), frames - 1)
        if 0 <= other < frames:
            found[slot] = other
    return found


def token_references(shapes: Shapes, valid_ratios: Tensor) -> Tensor:
    """Where the centre of each token of each level lies on all levels, in shares of their padded sides.

    Args:
        shapes: (height, width) of each level.
        valid_ratios: (B, S, 2), the share of columns and rows of each level that are no padding.

    Returns:
        (B, P, S, 2) of (x, y).
    """
    centres = []
    for level, (height, width) in enumerate(shapes):
        rows, columns = (torch.arange(n, device=valid_ratios.device) + 0.5 for n in (height, width))
        grid = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)], dim=2).flatten(0, 1)
        sides = torch.tensor([width, height], device=grid.device)
        centres.append(grid / (valid_ratios[:, level] * sides)[:, None])
    return torch.cat(centres, dim=1)[:, :, None] * valid_ratios[:, None]


def _looked_at(name: str, count: int, levels: int) -> slice:
    """The levels that are looked at, of all there are."""
    if count == levels:
        return slice(None)
    if count == 1:
        return slice(_SINGLE_LEVEL, _SINGLE_LEVEL + 1)
    raise ValueError(f"EncoderSettings.{name} is {count}, expected 1 (stride 32) or all levels, {levels}")


def _of_levels(values: Tensor, shapes: Shapes, levels: slice) -> tuple[Tensor, Shapes]:
    """The values of some levels of a frame, (B, P, M, D), and their shapes."""
    parts = values.split([height * width for height, width in shapes], dim=1)[levels]
    return torch.cat(parts, dim=1) if len(parts) < len(shapes) else values, shapes[levels]


def of_single_level(network: nn.Module, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those entries that place points on all levels where the network looks at stride 32 alone, cut down to it.

    Of Table 5 the paper says that weights are converted "adaptively", and not how: here the rows of that level are
    taken, and their softmax is over its points alone.

    Args:
        network: The network that the entries are for.
        entries: Entries of state dicts that have another shape in it.
    """
    own, found = network.state_dict(), {}
    for name, module in network.named_modules():
        if not isinstance(module, DeformableSampling) or module.levels > 1:
            continue
        for part in (
            "sampling_offsets.weight",
            "sampling_offsets.bias",
            "attention_weights.weight",
            "attention_weights.bias",
        ):
            key = f"{name}.{part}"
            if key in entries and len(entries[key]) == _LEVELS * len(own[key]):
                levels = entries[key].unflatten(0, (module.heads * module.frames, _LEVELS, -1))
                found[key] = levels[:, _SINGLE_LEVEL].flatten(0, 1)
    return found
