from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from datamodules.base import ServerSplit, Split, VOSDataModule
from datamodules.readers import SequenceFiles
from lightning_vos.errors import DatasetNotFoundError


class Mixture(VOSDataModule):
    """Several datasets of masked videos as one to train on; one of them is validated and tested on.

    Of a part counts where it is and which of its videos are used; batches, sampler and transform are the mixture's. A
    part whose training split is not there is left out with a warning that says on what the training goes on, but for
    the one that is validated on, which must be there.

    Args:
        root: The folder that holds the datasets; the `root` of a part is taken relative to it.
        parts: Name -> dataset.
        evaluated: The name of the part that is validated, tested and predicted.
        repeats: Name -> how often the videos of a part count (1 where it is not named): a clip is drawn uniformly from
            the videos of all parts, each repeated as often.
        shares: Name -> the share of clips that a part gives, whatever the number of its videos, instead of `repeats`.
        **settings: What every dataset takes, see `VOSDataModule`.

    Raises:
        ValueError: A name is not that of a part, a number is not positive, a share is missing, or a part makes clips of
            its own or is a mixture.
    """

    def __init__(
        self,
        root: Path,
        parts: dict[str, VOSDataModule],
        evaluated: str,
        repeats: dict[str, int] | None = None,
        shares: dict[str, float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        self.parts = parts
        self.evaluated = evaluated
        self.repeats = repeats
        self.shares = shares
        _check(parts, evaluated, repeats, shares)
        for part in parts.values():
            part.root = self.root / part.root
            part.skip_broken = self.skip_broken
            part.sampler = self.sampler  # some videos suit some samplers alone

    def prepare_data(self) -> None:
        """Have the parts prepare what they need."""
        for part in self.parts.values():
            part.prepare_data()

    @property
    def protocol(self) -> str | None:
        """That of the evaluated part."""
        return self.parts[self.evaluated].protocol

    def server(self) -> ServerSplit | None:
        """That of the evaluated part."""
        return self.parts[self.evaluated].server()

    def describe(self, split: Split) -> tuple[str, Path]:
        """The parts that are trained on; else as the evaluated part."""
        if split != "train":
            return self.parts[self.evaluated].describe(split)
        return " + ".join(part.describe(split)[0] for part in self._there.values()), self.root

    def sequences(self, split: Split) -> Sequence[SequenceFiles]:
        """The videos of all parts that are there, one part after the other; else those of the evaluated part.

        Raises:
            UserError: The evaluated part is not there, or a part is broken.
        """
        if split != "train":
            return self.parts[self.evaluated].sequences(split)
        return [sequence for part in self._there.values() for sequence in part.find(split)]

    def find(self, split: Split) -> Sequence[SequenceFiles]:
        """As `VOSDataModule.find`; says of the training which part gives how many of the clips."""
        if split != "train" or split in self._sequences:
            return super().find(split)
        found = self._sequences[split] = self.sequences(split)
        chances = self.chances()
        begin, told = 0, []
        for part in self._there.values():
            end = begin + len(part.find(split))
            told.append(f"{part.describe(split)[0]} {chances[begin:end].sum() / chances.sum():.0%}")
            begin = end
        rank_zero_info(f"Training clips are drawn from: {', '.join(told)}")
        return found

    def chances(self) -> NDArray[np.float64]:
        """(S,) weights of the training videos, in the order of `sequences`."""
        weights = []
        for name, part in self._there.items():
            count = len(part.find("train"))
            weight = self.shares[name] / count if self.shares else (self.repeats or {}).get(name, 1)
            weights.append(np.full(count, weight, np.float64))
        return np.concatenate(weights)

    @cached_property
    def _there(self) -> dict[str, VOSDataModule]:
        """The parts whose training split is there."""
        there, errors = {}, {}
        for name, part in self.parts.items():
            try:
                part.describe("train")
                there[name] = part
            except DatasetNotFoundError as error:
                errors[name] = error
        missing = [line for name, error in errors.items() if name != self.evaluated for line in _what(error)]
        if self.evaluated in errors:
            raise DatasetNotFoundError("\n".join([*missing, str(errors[self.evaluated])]))
        if missing:
            names = " and ".join(part.describe("train")[0] for part in there.values())
            rank_zero_warn(
                "\n".join(missing) + f"\nThe training goes on with {names} alone, which is not the published mixture."
            )
        return there


def _what(error: DatasetNotFoundError) -> list[str]:
    """What is missing and the tree that is expected, without advice: that is the evaluated part's."""
    first, *others = str(error).splitlines()
    return [first, *(line for line in others if line.startswith("  expected"))]


def _check(
    parts: Mapping[str, VOSDataModule],
    evaluated: str,
    repeats: Mapping[str, int] | None,
    shares: Mapping[str, float] | None,
) -> None:
    known = ", ".join(parts)
    for name, part in parts.items():
        if isinstance(part, Mixture) or type(part).train_dataloader is not VOSDataModule.train_dataloader:
            raise ValueError(
                f"Mixture: part {name!r} is a {type(part).__name__}, whose clips are not drawn from videos with masks; "
                "train on it alone, in a stage before or after (data.class_path)"
            )
    for name in (evaluated, *(repeats or ()), *(shares or ())):
        if name not in parts:
            raise ValueError(f"Mixture: there is no part {name!r}; the parts are {known}")
    if repeats is not None and shares is not None:
        raise ValueError("Mixture: repeats and shares are both given; expected one of them")
    if shares is not None and (shares.keys() != parts.keys() or min(shares.values()) <= 0):
        raise ValueError(f"Mixture: shares={shares}; expected a positive share for each of {known}")
    if repeats and min(repeats.values()) < 1:
        raise ValueError(f"Mixture: repeats={repeats}; expected at least 1")
