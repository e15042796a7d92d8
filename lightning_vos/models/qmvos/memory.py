"""XMem's three stores: what a frame leaves for later ones, and how it is kept bounded (XMem, Sec. 3.2 and 3.3).

Objects that enter in one frame are a group. Keys are shared by all; of a later group the values begin later, so they
belong to the last positions of the keys.

Shapes: B batch, N object slots, n objects of a group, M positions of a store, P positions of a frame, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_vos.errors import ConfigError
from lightning_vos.models.mavos.memory import Bank
from lightning_vos.models.qmvos.similarity import Affinity, affinity, anisotropic_similarity

_YOUNG = 1e-7  # the lifetime of a position that was never read
_FEWEST = 3  # frames in the working memory: the first, the latest, and one to condense


@dataclass(frozen=True)
class LongTermRules:
    """When the working memory is condensed into prototypes, and how many of them are kept.

    Attributes:
        max_frames: Frames in the working memory at which it is condensed.
        min_frames: Frames that stay then: the first and the latest.
        prototypes: Positions that are made of the others.
        capacity: Positions of the long-term memory; the least used go.
        late_groups: Which values of objects that came later stay in the working memory: `official` keeps those of
            their own first frame beside the keys of the video's first; `aligned` keeps those that keys belong to.
        budget_frames: The positions of both memories together are no more than those of this many frames, if given.
        budget_megabytes: Both memories together hold no more than this, in MiB, if given. Where a budget is too small
            for the numbers above, less is kept: of it half or more for the working memory, which shrinks to three
            frames at last.
    """

    max_frames: int = 10
    min_frames: int = 5
    prototypes: int = 128
    capacity: int = 10_000
    late_groups: Literal["official", "aligned"] = "official"
    budget_frames: float | None = None
    budget_megabytes: float | None = None

    def __post_init__(self) -> None:
        if self.late_groups not in ("official", "aligned"):
            raise ValueError(f"LongTermRules: late_groups={self.late_groups!r}, expected official or aligned")
        if not 1 < self.min_frames < self.max_frames or not 0 < self.prototypes <= self.capacity:
            raise ValueError(
                f"LongTermRules: max_frames={self.max_frames}, min_frames={self.min_frames}, "
                f"prototypes={self.prototypes}, capacity={self.capacity}; expected 1 < min_frames < max_frames, and "
                "positive numbers, no more prototypes than the capacity"
            )
        if any(budget is not None and not budget > 0 for budget in (self.budget_frames, self.budget_megabytes)):
            raise ValueError(
                f"LongTermRules: budget_frames={self.budget_frames}, budget_megabytes={self.budget_megabytes}; "
                "expected numbers above 0, or null for no budget"
            )

    def within_budget(self, positions: int, bytes_of_position: int) -> LongTermRules:
        """The rules with as many frames and prototypes as the budgets leave room for.

        Args:
            positions: Of a frame, P.
            bytes_of_position: What a position takes, the values of all objects included.

        Raises:
            ConfigError: if three frames and some prototypes are more than that.
        """
        wanted = self.max_frames * positions + self.capacity
        room = wanted
        if self.budget_frames is not None:
            room = min(room, int(self.budget_frames * positions))
        if self.budget_megabytes is not None:
            room = min(room, int(self.budget_megabytes * 2**20 / bytes_of_position))
        if room == wanted:
            return self
        for_frames = max(room // 2, room - self.capacity)
        max_frames = min(self.max_frames, max(for_frames // positions, _FEWEST))
        capacity = min(self.capacity, room - max_frames * positions)
        if capacity < min(self.prototypes, positions):
            least = _FEWEST * positions + min(self.prototypes, positions)
            raise ConfigError(
                f"The memory budget has room for {max(room, 0)} positions, of which a frame of this video has "
                f"{positions};\n"
                f"at least {least} are needed: {least / positions:.1f} frames, or "
                f"{least * bytes_of_position / 2**20:.1f} MiB with the objects that are there.\n"
                "Raise test_rules.long_term.budget_frames or budget_megabytes, take fewer objects at a time,\n"
                "or let the network see smaller frames (canvas.short_side; --size of segment)."
            )
        return replace(
            self,
            max_frames=max_frames,
            min_frames=min(self.min_frames, max_frames - 1),
            prototypes=min(self.prototypes, capacity),
            capacity=capacity,
        )


@dataclass(frozen=True)
class StoreRules:
    """When a frame is remembered, and how memories are read.

    Attributes:
        interval: Frames from one that is remembered to the next.
        top_k: Positions that each one reads at most; None for all.
        long_term: How the working memory is condensed; None keeps every frame.
        is_synchronised: Whether a remembered frame updates the sensory memory by its values alone, as at test; in
            training the decoder's update comes first, and that by values when it is drawn.
    """

    interval: int = 5
    top_k: int | None = 30
    long_term: LongTermRules | None = field(default_factory=LongTermRules)
    is_synchronised: bool = True

    def __post_init__(self) -> None:
        if self.interval < 1 or (self.top_k is not None and self.top_k < 1):
            raise ValueError(f"StoreRules: interval={self.interval}, top_k={self.top_k}; expected at least 1 of each")


@dataclass(frozen=True)
class Store:
    """Positions to be found by their keys, and what they say of each object.

    Attributes:
        key: (B, C, M).
        shrinkage: (B, 1, M).
        selection: (B, C, M), with which a position becomes a prototype; None where it never will.
        values: For each group (B, n, C, M'), of the last M' positions; M' may be 0.
        usage: (B, M), how much positions were read.
        life: (B, M), how often they could have been.
    """

    key: Tensor
    shrinkage: Tensor
    selection: Tensor | None
    values: tuple[Tensor, ...]
    usage: Tensor
    life: Tensor

    @property
    def size(self) -> int:
        """How many positions it has."""
        return self.key.shape[2]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        parts = (self.key, self.shrinkage, self.selection, self.usage, self.life, *self.values)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def nbytes_of_position(self) -> int:
        """Bytes of a position of which every group has values."""
        parts = (self.key, self.shrinkage, self.selection, *self.values)
        counters = 2 * self.usage.element_size()
        return counters + sum(part[..., -1:].nbytes for part in parts if part is not None)

    def counted(self, reads: Tensor) -> Store:
        """The store after its positions were read with (B, M) weights."""
        return replace(self, usage=self.usage + reads, life=self.life + 1)

    def at(self, kept: Tensor) -> Store:
        """The positions of a (M,) bool mask; values of a group follow those that it has."""
        return Store(
            self.key[:, :, kept],
            self.shrinkage[:, :, kept],
            None if self.selection is None else self.selection[:, :, kept],
            tuple(value[..., kept[self.size - value.shape[3] :]] for value in self.values),
            self.usage[:, kept],
            self.life[:, kept],
        )


class GroupPositions(NamedTuple):
    """What a group of objects remembers by a policy of `lightning_vos.models.mavos.memory`: its keys are its own.

    Learned policies fold keys and values; shrinkage stays that of the frame that came in last.
    """

    key: Tensor  # (B, m, C)
    value: Tensor  # (B * n, m, C)
    shrinkage: Tensor  # (B, m, 1)


@dataclass(frozen=True)
class XMemMemory:
    """The state of a video between two frames.

    Attributes:
        valid: (B, N) bool, slots that hold an object.
        rules: When and how.
        draws: (T,) bool of training, whether each frame's values update the sensory memory; None at test.
        groups: The slots of the objects that entered together, in the order of entry.
        hidden: (B, N', C, ..) sensory memory.
        candidate: The same as the decoder left it in the frame at hand, until `memorize`.
        work: The working memory.
        long: The long-term memory.
        banks: Of each group what a memory policy keeps instead of the two, one layer of `GroupPositions`.
        times: Of the frames in the working memory; while nothing is condensed.
        last: Time of the latest frame that is remembered.
        positions: Of a frame.
        queries: (B, N', C) of QMVOS, for the next frame.
    """

    valid: Tensor
    rules: StoreRules
    draws: Tensor | None = None
    groups: tuple[tuple[int, ...], ...] = ()
    hidden: Tensor | None = None
    candidate: Tensor | None = None
    work: Store | None = None
    long: Store | None = None
    banks: tuple[Bank, ...] = ()
    times: tuple[int, ...] = ()
    last: int = 0
    positions: int = 0
    queries: Tensor | None = None

    @property
    def known(self) -> Tensor:
        """(B, N) bool, slots of which something is remembered."""
        slots = [slot for group in self.groups for slot in group]
        known = torch.zeros_like(self.valid)
        known[:, slots] = True
        return known & self.valid

    @property
    def bank_bytes(self) -> int:
        """Size of working and long-term memory, or of what a policy keeps, in bytes."""
        kept = sum(part.nbytes for bank in self.banks for layer in bank for part in layer)
        return kept + sum(store.nbytes for store in (self.work, self.long) if store is not None)

    @property
    def bank_frames(self) -> int:
        """How many frames the positions of both come to, or what a policy keeps of the group with most."""
        size = max((bank[0].key.shape[1] for bank in self.banks), default=0)
        return (size + sum(one.size for one in (self.work, self.long) if one is not None)) // max(self.positions, 1)


def new_store(key: Tensor, shrinkage: Tensor, selection: Tensor | None, values: tuple[Tensor, ...]) -> Store:
    """Positions that nobody has read yet; arguments as the attributes of `Store`."""
    # In half precision a count would stop at 256 or 2,048.
    usage = key.new_zeros(key.shape[0], key.shape[2], dtype=torch.float32)
    return Store(key, shrinkage, selection, values, usage, torch.full_like(usage, _YOUNG))


def joined(first: Store | None, second: Store) -> Store:
    """Both stores as one; where the second has more groups, they begin there."""
    if first is None:
        return second
    values = tuple(
        torch.cat([first.values[group], value], dim=3) if group < len(first.values) else value
        for group, value in enumerate(second.values)
    )
    selection = None
    if first.selection is not None and second.selection is not None:
        selection = torch.cat([first.selection, second.selection], dim=2)
    return Store(
        torch.cat([first.key, second.key], dim=2),
        torch.cat([first.shrinkage, second.shrinkage], dim=2),
        selection,
        values,
        torch.cat([first.usage, second.usage], dim=1),
        torch.cat([first.life, second.life], dim=1),
    )


def read(
    long: Store | None, work: Store, query: Tensor, selection: Tensor, top_k: int | None
) -> tuple[list[Tensor], Store | None, Store]:
    """What a frame finds in both stores together.

    Args:
        long: The long-term memory, if there is one.
        work: The working memory.
        query: (B, C, P) keys of the frame.
        selection: (B, C, P) of the frame.
        top_k: Positions that each one reads at most.

    Returns:
        For each group (B, n, C, P), and the stores, their positions counted as the first group read them.
    """
    stores = [store for store in (long, work) if store is not None]
    # All keys at once: the similarities of a long video are its largest tensor, and joining them would copy it.
    key, shrinkage = (torch.cat(parts, dim=2) for parts in zip(*((s.key, s.shrinkage) for s in stores), strict=True))
    similarity = anisotropic_similarity(key, shrinkage, query, selection)
    of_stores = similarity.split([one.size for one in stores], dim=1)
    readouts: list[Tensor] = []
    affinities: dict[tuple[int, ...], Affinity] = {}
    for group in range(len(work.values)):
        values = [one.values[group] if group < len(one.values) else None for one in stores]
        sizes = tuple(0 if value is None else value.shape[3] for value in values)
        if sizes not in affinities:
            tails = [part[:, part.shape[1] - size :] for part, size in zip(of_stores, sizes, strict=True)]
            has_all = sum(sizes) == similarity.shape[1]
            affinities[sizes] = affinity(similarity if has_all else torch.cat(tails, dim=1), top_k)
        found = torch.cat([value for value in values if value is not None], dim=3)
        readouts.append(affinities[sizes].average(found.flatten(1, 2)).unflatten(1, found.shape[1:3]))
    sizes, first = next(iter(affinities.items()))
    reads = first.usage(sum(sizes)).split(list(sizes), dim=1)
    counted = [
        one.counted(torch.nn.functional.pad(part, (one.size - part.shape[1], 0)))
        for one, part in zip(stores, reads, strict=True)
    ]
    return readouts, (counted[0] if long is not None else None), counted[-1]


def read_banks(banks: tuple[Bank, ...], query: Tensor, selection: Tensor, top_k: int | None) -> list[Tensor]:
    """What a frame finds in the banks of all groups; arguments and result as those of `read`."""
    readouts = []
    for (kept,) in banks:
        similarity = anisotropic_similarity(kept.key.transpose(1, 2), kept.shrinkage.transpose(1, 2), query, selection)
        value = kept.value.transpose(1, 2).unflatten(0, (len(query), -1))  # (B, n, C, m)
        found = affinity(similarity, top_k).average(value.flatten(1, 2))
        readouts.append(found.unflatten(1, value.shape[1:3]))
    return readouts


def condense(work: Store, long: Store | None, rules: LongTermRules, positions: int) -> tuple[Store, Store | None]:
    """Turn the middle of a full working memory into prototypes; nothing happens while there is room.

    Args:
        work: The working memory.
        long: The long-term memory, if there is one yet.
        rules: When and how.
        positions: Of a frame, P.

    Returns:
        Both stores.

    Raises:
        ConfigError: as `LongTermRules.within_budget`.
    """
    rules = rules.within_budget(positions, work.nbytes_of_position)
    if long is not None:
        long = evicted(long, rules.capacity)  # more than that only where an object came and a budget is short
    if work.size < rules.max_frames * positions:
        return work, long
    if long is not None:
        long = evicted(long, rules.capacity - rules.prototypes)
    kept = rules.min_frames * positions
    begin, end = positions, work.size - kept + positions
    assert work.selection is not None
    key, shrinkage, selection = (part[:, :, begin:end] for part in (work.key, work.shrinkage, work.selection))
    usage = (work.usage / work.life)[:, begin:end]
    best = usage.topk(min(rules.prototypes, usage.shape[1]), dim=1).indices
    if rules.late_groups == "aligned":
        best = best.sort(dim=1).values  # a later group has values of the last ones
    prototype_key, prototype_selection = (
        part.gather(2, best[:, None].expand(-1, part.shape[1], -1)) for part in (key, selection)
    )
    similarity = anisotropic_similarity(key, shrinkage, prototype_key, prototype_selection)
    candidates = similarity.shape[1]
    made: list[Tensor] = []
    for value in work.values:
        after = max(value.shape[3] - kept + positions, 0)  # the newest frames begin here
        if rules.late_groups == "aligned":
            own = value[..., max(after - candidates, 0) : after]
        else:
            # A group that came with the first takes part however short the working memory is.
            takes_part = value.shape[3] == work.size or after > 2 * positions
            own = value[..., positions : after if takes_part else positions]
        # Prototypes that lie before the group began say nothing of it.
        of_group = similarity[:, candidates - own.shape[3] :, best[0] >= candidates - own.shape[3]]
        made.append((own.flatten(1, 2) @ of_group.softmax(dim=1)).unflatten(1, own.shape[1:3]))
    averaged = shrinkage @ similarity.softmax(dim=1)
    long = joined(long, new_store(prototype_key, averaged, None, tuple(made)))
    return _without_middle(work, rules, positions), long


def _without_middle(work: Store, rules: LongTermRules, positions: int) -> Store:
    kept = rules.min_frames * positions
    stays = torch.ones(work.size, dtype=torch.bool, device=work.key.device)
    stays[positions : work.size - kept + positions] = False
    sieved = work.at(stays)
    if rules.late_groups == "aligned":
        return sieved
    values = tuple(
        torch.cat([value[..., :positions], value[..., value.shape[3] - kept + positions :]], dim=3)
        if value.shape[3] >= kept + positions
        else value
        for value in work.values
    )
    return replace(sieved, values=values)


def evicted(long: Store, target: int) -> Store:
    """The store without its least used positions, so that no more than `target` are left; ties go, too."""
    surplus = long.size - target
    if surplus <= 0:
        return long
    usage = (long.usage / long.life)[0]
    return long.at(usage > usage.topk(surplus, largest=False).values.max())
