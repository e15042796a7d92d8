"""QMVOS's object queries: made of one frame, they become the filters of the next (QMVOS, Sec. 2.2 and 2.3).

Shapes: B batch, N object slots, C channels of a query, h w grid of stride 16, H W network size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS, _HEADS, _WIDENING = 32, 8, 4
_EPSILON = 0.0005
_SCALES = (("f16", "f8"), ("f16", "f8", "f4"), ("f16",), ("f8",))


@dataclass(frozen=True)
class SIMSettings:
    """What queries are made of.

    Attributes:
        scales: The maps of the frame that are looked at, by their strides: `f16` and `f8`, or those and `f4`, or one of
            the first two alone, which does not converge (Table 3b).
        interaction: Whether queries look at one another (Table 3c); without, they are the means of their masks.
    """

    scales: tuple[Literal["f16", "f8", "f4"], ...] = ("f16", "f8")
    interaction: bool = True

    def __post_init__(self) -> None:
        if tuple(self.scales) not in _SCALES:
            expected = ", ".join(f"[{', '.join(scales)}]" for scales in _SCALES)
            raise ValueError(f"SIMSettings: scales=[{', '.join(self.scales)}], expected one of {expected}")


@dataclass(frozen=True)
class QCIMSettings:
    """What queries look at in the frame they segment.

    Attributes:
        source: `readout`, the decoder's coarse features of each object, made of frame and memory; or `f16`, the
            backbone's coarse features of the frame, the same for all objects (Table 3d).
    """

    source: Literal["readout", "f16"] = "readout"

    def __post_init__(self) -> None:
        if self.source not in ("readout", "f16"):
            raise ValueError(f"QCIMSettings: source={self.source!r}, expected readout or f16")


_SIM, _QCIM = SIMSettings(), QCIMSettings()


class ScaleAwareInteraction(nn.Module):
    """SIM: masked means of features of some scales, which then look at one another; one query an object.

    All scales are brought to stride 8, at which one convolution makes one map of them.

    Differs from the paper: masks are sampled at every eighth pixel, not pooled; convolutions have group norms, and one
    projects the coarse features first (published code). How the rows of Tables 3b and 3c were made is not published.
    Ours: one scale alone is a map made of that one only; `f4` enters by a 2 x 2 max pooling, a 3 x 3 convolution to C
    channels and a group norm, and the other two stay as they are without it; without interaction nothing follows the
    mean, neither norms nor the feed-forward layer.

    Args:
        frame_channels: Of the frame's features at strides 16, 8 and 4.
        channels: C, a multiple of 32.
        settings: Which scales, and whether queries look at one another.
    """

    def __init__(
        self,
        frame_channels: tuple[int, int, int] = (1024, 512, 256),
        channels: int = 256,
        settings: SIMSettings = _SIM,
    ) -> None:
        super().__init__()
        self.settings = settings
        coarse, middle, fine = frame_channels
        in_channels = 0
        if "f16" in settings.scales:
            self.project = nn.Conv2d(coarse, channels, 1)
            self.enlarge = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.GroupNorm(_GROUPS, channels))
            in_channels += channels
        if "f8" in settings.scales:
            in_channels += middle
        if "f4" in settings.scales:
            self.reduce = nn.Sequential(
                nn.MaxPool2d(2),
                nn.Conv2d(fine, channels, 3, padding=1, bias=False),
                nn.GroupNorm(_GROUPS, channels),
            )
            in_channels += channels
        self.fuse = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.GroupNorm(_GROUPS, channels))
        if settings.interaction:
            self.attention = nn.MultiheadAttention(channels, _HEADS, batch_first=True)
            self.norm_attention = nn.LayerNorm(channels)
            self.feed = _feed(channels)
            self.norm_feed = nn.LayerNorm(channels)

    def forward(self, maps: tuple[Tensor, Tensor, Tensor], planes: Tensor, valid: Tensor) -> Tensor:
        """Queries (B, N, C).

        Args:
            maps: (B, frame_channels, ..) features of the frame at strides 16, 8 and 4.
            planes: (B, N, H, W) in {0, 1}.
            valid: (B, N) bool, slots that hold an object; the others are not looked at.
        """
        pooled = self.pool(self.fused(maps), planes)
        if not self.settings.interaction:
            return pooled
        attended, _ = self.attention(pooled, pooled, pooled, key_padding_mask=_hidden(valid), need_weights=False)
        queries = self.norm_attention(pooled + attended)
        return self.norm_feed(queries + self.feed(queries))

    def fused(self, maps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """One map (B, C, 2 h, 2 w) of the scales that are looked at."""
        coarse, middle, fine = maps
        parts = []
        if "f16" in self.settings.scales:
            enlarged = F.interpolate(self.project(coarse), scale_factor=2, mode="bilinear", align_corners=True)
            parts.append(self.enlarge(enlarged))
        if "f8" in self.settings.scales:
            parts.append(middle)
        if "f4" in self.settings.scales:
            parts.append(self.reduce(fine))
        return self.fuse(torch.cat(parts, dim=1))

    @staticmethod
    def pool(fused: Tensor, planes: Tensor) -> Tensor:
        """Mean features (B, N, C) of each mask; 0 where it is empty."""
        masks = F.interpolate(planes, fused.shape[2:], mode="nearest").flatten(2)
        return masks @ fused.flatten(2).transpose(1, 2) / (masks.sum(dim=2, keepdim=True) + _EPSILON)


class QueryContentInteraction(nn.Module):
    """QCIM: queries look at one another, then at the frame.

    Differs from the paper: it reads the decoder's fusion of frame, memory and hidden state, not the memory's values
    alone (published code). How the row "F16" of Table 3d was made is not published. Ours: the frame's coarse features
    take the place of the decoder's, by a projection of their own, and all queries read the same h w tokens.

    Args:
        frame_channels: Of the frame's features at stride 16.
        decoder_channels: Of the decoder's features at stride 16.
        channels: C, a multiple of 8.
        settings: Which of them are read.
    """

    def __init__(
        self,
        frame_channels: int = 1024,
        decoder_channels: int = 512,
        channels: int = 256,
        settings: QCIMSettings = _QCIM,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.project = nn.Conv2d(frame_channels if settings.source == "f16" else decoder_channels, channels, 1)
        self.self_attention = nn.MultiheadAttention(channels, _HEADS, batch_first=True)
        self.norm_self = nn.LayerNorm(channels)
        self.cross_attention = nn.MultiheadAttention(channels, _HEADS, batch_first=True)
        self.norm_cross = nn.LayerNorm(channels)
        self.feed = _feed(channels)
        self.norm_feed = nn.LayerNorm(channels)

    def forward(self, queries: Tensor, frame: Tensor, coarse: Tensor, valid: Tensor) -> Tensor:
        """Filters (B, N, C).

        Args:
            queries: (B, N, C).
            frame: (B, frame_channels, h, w) features of the backbone.
            coarse: (B, N, decoder_channels, h, w) features of the decoder.
            valid: (B, N) bool, slots that hold an object; the others are not looked at.
        """
        hidden, hidden_tokens = _hidden(valid), None
        if self.settings.source == "f16":
            tokens = self.project(frame).flatten(2).transpose(1, 2)  # (B, h w, C)
        else:
            content = self.project(coarse.flatten(0, 1)).flatten(2)  # (B N, C, h w)
            tokens = content.unflatten(0, coarse.shape[:2]).transpose(2, 3).flatten(1, 2)  # object by object
            hidden_tokens = hidden.repeat_interleave(content.shape[2], dim=1)
        attended, _ = self.self_attention(queries, queries, queries, key_padding_mask=hidden, need_weights=False)
        queries = self.norm_self(queries + attended)
        attended, _ = self.cross_attention(queries, tokens, tokens, key_padding_mask=hidden_tokens, need_weights=False)
        queries = self.norm_cross(queries + attended)
        return self.norm_feed(queries + self.feed(queries))


class Queries(nn.Module):
    """The two parts that QMVOS adds to XMem.

    Args:
        frame_channels: Of the backbone's maps at strides 16, 8 and 4.
        decoder_channels: Of the decoder at stride 16, and at strides 8 and 4; the latter is the width C of a query.
        sim: What queries are made of.
        qcim: What they look at in the frame they segment.
        source: Which frame's queries a frame is segmented with: the one before, or for ever the first that shows the
            object (Table 3e).
        on_entry: What becomes of the queries of others when an object enters later: `official` makes them of empty
            masks, `repaired` of their predicted ones.
        start_scale: What the filters are multiplied with at the start of training, by the weights of their last norm; 1
            as published. From scratch that makes logits so large that clamped odds give no gradient; less trains.

    Raises:
        ValueError: if the width of a query is not a multiple of 32, or the scale is not above 0.
    """

    def __init__(
        self,
        frame_channels: tuple[int, int, int],
        decoder_channels: tuple[int, int],
        sim: SIMSettings = _SIM,
        qcim: QCIMSettings = _QCIM,
        source: Literal["previous", "first"] = "previous",
        on_entry: Literal["official", "repaired"] = "official",
        start_scale: float = 1.0,
    ) -> None:
        super().__init__()
        coarse, channels = decoder_channels
        if channels < _GROUPS or channels % _GROUPS:
            raise ValueError(
                f"Queries: decoder_channels={list(decoder_channels)}; the last is the width of a query, expected a "
                f"multiple of {_GROUPS} (norms have {_GROUPS} groups, attention {_HEADS} heads)"
            )
        if source not in ("previous", "first") or on_entry not in ("official", "repaired"):
            raise ValueError(
                f"Queries: source={source!r}, on_entry={on_entry!r}; expected previous or first, official or repaired"
            )
        if not start_scale > 0:
            raise ValueError(f"Queries: start_scale={start_scale}, expected a factor above 0")
        self.source, self.on_entry = source, on_entry
        self.sim = ScaleAwareInteraction(frame_channels, channels, sim)
        self.qcim = QueryContentInteraction(frame_channels[0], coarse, channels, qcim)
        nn.init.constant_(self.qcim.norm_feed.weight, start_scale)


def _feed(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, _WIDENING * channels), nn.ReLU(), nn.Linear(_WIDENING * channels, channels)
    )


def _hidden(valid: Tensor) -> Tensor:
    """(B, N) slots that nobody looks at; of a clip without objects none, for a softmax needs one."""
    return ~valid & valid.any(dim=1, keepdim=True)
