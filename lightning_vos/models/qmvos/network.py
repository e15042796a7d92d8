"""XMem, and QMVOS, which is XMem with queries: three stores of memory, one decoder.

Shapes: B batch, N object slots, H W output size, h w network size, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vos.backbones import Backbone
from lightning_vos.errors import ConfigError
from lightning_vos.models.mavos.memory import Bank, MemoryPolicy
from lightning_vos.models.qmvos.decoder import Decoder
from lightning_vos.models.qmvos.encoders import KeyProjection, Keys, ValueEncoder
from lightning_vos.models.qmvos.memory import (
    GroupPositions,
    Store,
    StoreRules,
    XMemMemory,
    condense,
    joined,
    new_store,
    read,
    read_banks,
)
from lightning_vos.models.qmvos.queries import Queries
from lightning_vos.vos.canvas import PaddingCanvas, View
from lightning_vos.vos.network import Given, Masks, VOSNetwork

_NEVER = 1e-7  # probabilities stay this far from 0 and 1


_TRAIN_RULES = StoreRules(interval=1, top_k=None, long_term=None, is_synchronised=False)
_TEST_RULES = StoreRules()
_CANVAS = PaddingCanvas(multiple=16, short_side=480, long_side=None, is_centred=True)


class XMemFeatures(NamedTuple):
    """What XMem sees of a frame."""

    image: Tensor  # (B, 3, h, w), normalised
    maps: tuple[Tensor, Tensor, Tensor]  # (B, C, ..) at strides 16, 8 and 4
    keys: Keys


class QMVOSNetwork(VOSNetwork[XMemMemory]):
    """The network of XMem; with `queries` that of QMVOS. Every store goes with queries and without.

    Args:
        backbone: The encoder of frames, with maps at strides 4, 8 and 16, as published, or 2, 4 and 8: what is said of
            the former holds then at half the stride.
        queries: QMVOS's, such as `Queries`; called with the channels of the backbone's maps at strides 16, 8 and 4, and
            of the decoder's at stride 16 and at finer ones. None for XMem.
        memory: A policy of `lightning_vos.models.mavos.memory` instead of working and long-term memory, such as MAVOS's
            MCA; called with one layer, and the channels of keys and values. None for XMem's own.
        value_backbone: The ResNet of the value encoder, as `ValueEncoder`.
        value_start_weights: What it starts from, as `Backbone.start_weights`.
        key_channels: Of keys.
        value_channels: Of values.
        hidden_channels: Of the sensory memory; 0 for none.
        decoder_channels: Of the decoder's features at stride 16, and at strides 8 and 4.
        frozen_statistics: Whether batch norms keep the statistics of their start weights in training, as published:
            the network is then always in eval mode.
        canvas: The sizes at which videos are tested.
        train_rules: Rules of the memory in training; without a policy every frame is kept whole.
        test_rules: Rules of the memory at test; with a policy, `interval` and `top_k` are what it heeds.

    Raises:
        ConfigError: if the backbone has maps at other strides, or the canvas is no multiple of the last.
        ValueError: if a width is not positive, or rules cannot be.
    """

    capacity = None

    def __init__(
        self,
        backbone: Backbone,
        queries: Callable[[tuple[int, int, int], tuple[int, int]], Queries] | None = None,
        memory: Callable[[int, tuple[int, ...]], MemoryPolicy] | None = None,
        *,
        value_backbone: str = "resnet18",
        value_start_weights: str | None = None,
        key_channels: int = 64,
        value_channels: int = 512,
        hidden_channels: int = 64,
        decoder_channels: tuple[int, int] = (512, 256),
        frozen_statistics: bool = True,
        canvas: PaddingCanvas = _CANVAS,
        train_rules: StoreRules = _TRAIN_RULES,
        test_rules: StoreRules = _TEST_RULES,
    ) -> None:
        super().__init__()
        stride = backbone.strides[-1]
        if tuple(backbone.strides) not in ((4, 8, 16), (2, 4, 8)):
            raise ConfigError(
                f"XMem needs maps at strides 4, 8 and 16, or 2, 4 and 8; the backbone has {list(backbone.strides)}.\n"
                "Set --model.network.backbone.strides=[4,8,16]."
            )
        if canvas.multiple % stride:
            raise ConfigError(
                f"XMem needs frames of a multiple of {stride} pixels, canvas.multiple is {canvas.multiple}.\n"
                f"Set --model.network.canvas.multiple={stride}."
            )
        if memory is None and (train_rules.interval != 1 or train_rules.long_term is not None):
            raise ValueError(
                f"QMVOSNetwork: train_rules has interval={train_rules.interval}, long_term={train_rules.long_term}; "
                "expected 1 and null: in training any earlier frame may be read"
            )
        if not test_rules.is_synchronised:
            raise ValueError("QMVOSNetwork: test_rules.is_synchronised is false, which training alone can be")
        if min(key_channels, value_channels, *decoder_channels) < 1 or hidden_channels < 0:
            raise ValueError(
                f"QMVOSNetwork: key_channels={key_channels}, value_channels={value_channels}, "
                f"decoder_channels={list(decoder_channels)}, hidden_channels={hidden_channels}; expected 1 or more of "
                "each, of hidden_channels 0 or more"
            )
        fine, middle, coarse = backbone.channels[:3]
        maps = (coarse, middle, fine)
        self.canvas: PaddingCanvas = canvas
        self.train_rules, self.test_rules = train_rules, test_rules
        self.backbone = backbone
        self.key = KeyProjection(coarse, key_channels)
        self.value = ValueEncoder(coarse, value_channels, hidden_channels, value_backbone, stride)
        self.queries = None if queries is None else queries(maps, decoder_channels)
        self.policy = None if memory is None else memory(1, (key_channels, value_channels))
        self.hidden_channels, self.value_start_weights = hidden_channels, value_start_weights
        self.decoder = Decoder(maps, value_channels, hidden_channels, decoder_channels, is_filtered=queries is not None)
        self.frozen_statistics = frozen_statistics
        self.train()  # Lightning leaves the mode as it finds it

    @property
    def memory_knobs(self) -> str:
        """As `VOSNetwork`."""
        if self.policy is not None:
            bank = "another model.network.memory, such as configs/memory/mca.yaml"
        elif self.test_rules.long_term is None:
            bank = "model.network.test_rules.long_term (null keeps every frame)"
        else:
            bank = "model.network.test_rules.long_term.budget_megabytes or budget_frames"
        return f"{bank}, or model.network.canvas.short_side"

    def train(self, mode: bool = True) -> QMVOSNetwork:
        """As `nn.Module`; nothing where statistics are frozen."""
        return super().train(mode and not self.frozen_statistics)

    def load_start_weights(self) -> None:
        """Fill both encoders with what training from scratch starts from.

        Raises:
            CheckpointError: as `Backbone.load_start_weights` and `ValueEncoder.load_start_weights`.
        """
        self.backbone.load_start_weights()
        if self.value_start_weights is not None:
            self.value.load_start_weights(self.value_start_weights)

    def encode(self, frames: Tensor) -> XMemFeatures:
        """Features of (B, 3, h, w) RGB in [0, 1], h and w multiples of the last stride."""
        fine, middle, coarse, _ = self.backbone(frames)
        return XMemFeatures((frames - self.backbone.mean) / self.backbone.std, (coarse, middle, fine), self.key(coarse))

    def start(self, valid: Tensor, rules: StoreRules, draws: Tensor | None = None) -> XMemMemory:
        """An empty memory; `draws` is the (T,) bool of deep updates of training."""
        return XMemMemory(valid, rules, draws)

    def segment(
        self,
        features: XMemFeatures,
        memory: XMemMemory,
        view: View,
        *,
        time: int,
        given: Given | None = None,
        sources: Tensor | None = None,
    ) -> tuple[Tensor, XMemMemory]:
        """Read the memory and decode: (B, N, h / 4, w / 4) logits; those of slots that are not known mean nothing."""
        size = features.maps[0].shape[2:]
        readouts, memory = self._read(features, memory, sources)
        batch, slots = memory.valid.shape
        readout = readouts[0].new_zeros(batch, slots, readouts[0].shape[2], *size)
        for group, found in zip(memory.groups, readouts, strict=True):
            readout[:, list(group)] = found.unflatten(3, size)
        known = memory.known
        hidden = self._hidden(memory, features)
        make_filters = None
        if self.queries is not None:
            assert memory.queries is not None
            queries = F.pad(memory.queries, (0, 0, 0, slots - memory.queries.shape[1]))
            make_filters = partial(self.queries.qcim, queries, features.maps[0], valid=known)
        decoded = self.decoder(features.maps, readout, hidden, make_filters)
        return decoded.logits, replace(memory, candidate=decoded.hidden)

    def _read(
        self, features: XMemFeatures, memory: XMemMemory, sources: Tensor | None
    ) -> tuple[list[Tensor], XMemMemory]:
        """What a frame finds of each group, (B, n, C, h * w), and the memory that has counted it.

        Raises:
            ConfigError: if `sources` are asked for of a policy, which keeps no times.
        """
        query, selection = (part.flatten(2) for part in (features.keys.key, features.keys.selection))
        rules = memory.rules
        if self.policy is not None:
            if sources is not None:
                raise ConfigError("A memory policy keeps no times: chosen source frames cannot be read.")
            return read_banks(memory.banks, query, selection, rules.top_k), memory
        assert memory.work is not None
        source = memory.work if sources is None else _chosen(memory.work, memory.times, sources)
        readouts, long, work = read(memory.long, source, query, selection, rules.top_k)
        if sources is None and rules.long_term is not None:
            memory = replace(memory, long=long, work=work)
        return readouts, memory

    def _hidden(self, memory: XMemMemory, features: XMemFeatures) -> Tensor | None:
        """The sensory memory, 0 for slots that came later."""
        if not self.hidden_channels:
            return None
        batch, slots = memory.valid.shape
        if memory.hidden is None:
            return features.image.new_zeros(batch, slots, self.hidden_channels, *features.maps[0].shape[2:])
        return F.pad(memory.hidden, (0, 0, 0, 0, 0, 0, 0, slots - memory.hidden.shape[1]))

    def resolve(
        self,
        logits: tuple[Tensor | None, ...],
        memories: tuple[XMemMemory, ...],
        view: View,
        given: Given | None = None,
    ) -> Masks:
        """Upsample, paste what is given and aggregate (XMem, as STCN): odds of objects against their joint absence."""
        ((logit,), (memory,)) = logits, memories
        stated = None if given is None else self._enter(given.planes, view)
        if logit is None:
            assert stated is not None
            objects = stated
        else:
            with torch.autocast(logit.device.type, enabled=False):
                enlarged = F.interpolate(logit.float(), size=view.network, mode="bilinear", align_corners=False)
                objects = enlarged.sigmoid() * memory.known[:, :, None, None]
            if stated is not None:
                assert given is not None
                predicted = aggregate(objects).softmax(dim=1)[:, 1:]
                free = predicted * ~stated.any(dim=1, keepdim=True)
                objects = torch.where(given.stated[:, :, None, None], stated, free)
        aggregated = aggregate(objects)
        planes = aggregated.softmax(dim=1)
        probabilities = self.canvas.leave(planes, view)
        labels = probabilities.max(dim=1).indices
        if given is not None and view.frame != view.content:
            labels = torch.where(given.planes.any(dim=1), 1 + given.planes.to(torch.uint8).argmax(dim=1), labels)
        return Masks(self.canvas.leave(aggregated, view), probabilities, labels, planes)

    def planes(self, labels: Tensor, slots: int, view: View) -> Tensor:
        """One-hot planes of labels (B, 1 + slots, h, w), nearest at the network's size."""
        numbers = torch.arange(1, 1 + slots, device=labels.device).view(1, -1, 1, 1)
        objects = self._enter((labels[:, None] == numbers).float(), view)
        return torch.cat([1 - objects.sum(dim=1, keepdim=True), objects], dim=1)

    def _enter(self, planes: Tensor, view: View) -> Tensor:
        if view.frame != view.content:
            planes = F.interpolate(planes, view.content, mode="nearest")
        return self.canvas.pad(planes, view)

    def memorize(
        self,
        features: XMemFeatures,
        planes: Tensor,
        memory: XMemMemory,
        *,
        time: int,
        given: Given | None = None,
        last: bool = False,
    ) -> XMemMemory:
        """Update the sensory memory, remember the frame if it is due or a reference, make the queries of the next."""
        rules = memory.rules
        groups = memory.groups
        if given is not None:
            inside = {slot for group in groups for slot in group}
            entering = tuple(
                slot for slot in (given.stated & memory.valid).any(dim=0).nonzero()[:, 0].tolist() if slot not in inside
            )
            groups = (*groups, entering) if entering else groups
        memory = replace(memory, groups=groups)
        hidden = self._hidden(memory, features)
        is_due = not last and (given is not None or time - memory.last >= rules.interval)
        is_deep = is_due if memory.draws is None else not last and bool(memory.draws[time])
        if memory.candidate is not None and not last and not (rules.is_synchronised and is_deep):
            hidden = memory.candidate
        if is_due:
            value = self.value(features.image, features.maps[0], planes[:, 1:])
            if is_deep and hidden is not None and self.value.deep_update is not None:
                hidden = self.value.deep_update(value, hidden)
            memory = self._store(features.keys, value, memory, time, given)
        queries = self._next_queries(features, planes, memory, given)
        return replace(memory, hidden=hidden, candidate=None, queries=queries)

    def _store(self, keys: Keys, value: Tensor, memory: XMemMemory, time: int, given: Given | None) -> XMemMemory:
        """The memory with the keys and (B, N, C, h, w) values of a frame."""
        rules = memory.rules
        values = tuple(value[:, list(group)].flatten(3) for group in memory.groups)
        key, shrinkage, selection = (part.flatten(2) for part in keys)
        memory = replace(memory, last=time, positions=key.shape[2])
        if self.policy is not None:
            size = (keys.key.shape[2], keys.key.shape[3])
            banks: list[Bank] = []
            for number, (group, of_group) in enumerate(zip(memory.groups, values, strict=True)):
                parts = key, of_group.flatten(0, 1), shrinkage
                new = (GroupPositions(*(part.transpose(1, 2) for part in parts)),)
                is_reference = given is not None and bool(given.stated[:, list(group)].any())
                if number < len(memory.banks):
                    new = self.policy.update(memory.banks[number], new, size, is_reference=is_reference)
                banks.append(new)
            return replace(memory, banks=tuple(banks))
        new_frame = new_store(key, shrinkage, selection if rules.long_term else None, values)
        work, long, times = joined(memory.work, new_frame), memory.long, (*memory.times, time)
        if rules.long_term is not None:
            work, long = condense(work, long, rules.long_term, key.shape[2])
            times = ()
        return replace(memory, work=work, long=long, times=times)

    def _next_queries(
        self, features: XMemFeatures, planes: Tensor, memory: XMemMemory, given: Given | None
    ) -> Tensor | None:
        """Queries (B, N, C) for the next frame, of hard masks; on an entry see `Queries`."""
        keeps_first = self.queries is not None and self.queries.source == "first"
        if self.queries is None or (keeps_first and memory.queries is not None and given is None):
            return memory.queries
        slots = planes.shape[1] - 1
        hard = F.one_hot(planes.argmax(dim=1), 1 + slots).movedim(3, 1)[:, 1:].float()
        if given is not None and self.queries.on_entry == "official":
            hard = hard * given.stated[:, :, None, None]
        queries = self.queries.sim(features.maps, hard, memory.known)
        if keeps_first and memory.queries is not None:
            return torch.cat([memory.queries, queries[:, memory.queries.shape[1] :]], dim=1)
        return queries

    def keep(self, memory: XMemMemory, slots: Tensor) -> XMemMemory:
        """The memory with only the (K,) slots."""
        new = {old: number for number, old in enumerate(slots.tolist())}
        places = [[n for n, slot in enumerate(group) if slot in new] for group in memory.groups]
        groups = tuple(
            tuple(new[group[n]] for n in kept) for group, kept in zip(memory.groups, places, strict=True) if kept
        )

        def rows(bank: Bank, count: int, kept: list[int]) -> Bank:
            """A bank with the kept ones of its `count` objects."""
            return tuple(
                layer._replace(value=layer.value.unflatten(0, (-1, count))[:, kept].flatten(0, 1)) for layer in bank
            )

        def kept_of(store: Store | None) -> Store | None:
            if store is None:
                return None
            values = tuple(value[:, kept] for value, kept in zip(store.values, places, strict=False) if kept)
            return replace(store, values=values)

        return replace(
            memory,
            valid=memory.valid[:, slots],
            groups=groups,
            hidden=None if memory.hidden is None else memory.hidden[:, slots[slots < memory.hidden.shape[1]]],
            queries=None if memory.queries is None else memory.queries[:, slots[slots < memory.queries.shape[1]]],
            work=kept_of(memory.work),
            long=kept_of(memory.long),
            banks=tuple(
                rows(bank, len(group), kept)
                for bank, group, kept in zip(memory.banks, memory.groups, places, strict=False)
                if kept
            ),
        )


def aggregate(objects: Tensor) -> Tensor:
    """Log odds (B, 1 + N, h, w) of background and objects from (B, N, h, w) probabilities of each object by itself.

    In float32: there the highest is +15.94 and the lowest -16.12.
    """
    with torch.autocast(objects.device.type, enabled=False):
        objects = objects.float()
        everything = torch.cat([(1 - objects).prod(dim=1, keepdim=True), objects], dim=1).clamp(_NEVER, 1 - _NEVER)
        return torch.log(everything / (1 - everything))


def _chosen(work: Store, times: tuple[int, ...], sources: Tensor) -> Store:
    """The frames of (B, R) times of a working memory that holds whole frames; each clip has its own."""
    order = {time: number for number, time in enumerate(times)}
    numbers = torch.tensor([[order[time] for time in row] for row in sources.tolist()], device=sources.device)
    positions = work.size // len(times)
    places = (numbers[:, :, None] * positions + torch.arange(positions, device=sources.device)).flatten(1)

    def of(part: Tensor) -> Tensor:
        index = places.view(len(places), *[1] * (part.dim() - 2), -1).expand(*part.shape[:-1], -1)
        return part.gather(part.dim() - 1, index)

    return Store(of(work.key), of(work.shrinkage), None, tuple(map(of, work.values)), of(work.usage), of(work.life))
