from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datamodules.base import ServerSplit, Split, VOSDataModule
from datamodules.readers import SequenceFiles, masks_of, not_found, plain_names, read_lines, read_names, sequence_frames
from lightning_vos.errors import DatasetNotFoundError, MaskError

_FRAMES = Path("JPEGImages/480p")


class DAVIS(VOSDataModule):
    """DAVIS 2017 (several objects) or 2016 (one, the whole foreground) at 480p; prompted by the first mask alone.

    A split of which only the first masks are public (`test-dev`, `test-challenge`) has no truth.

    Args:
        root: The DAVIS folder or the folder that holds it.
        year: 2016 or 2017.
        train_split: The list under `ImageSets/<year>` to train on.
        val_split: The list to validate on during training.
        test_split: The list to test on and to predict.
        **parts: What every dataset takes, see `VOSDataModule`.
    """

    def __init__(
        self,
        root: Path,
        year: Literal[2016, 2017] = 2017,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "val",
        **parts: Any,
    ) -> None:
        super().__init__(root, **parts)
        self.year = year
        self.splits: dict[Split, str] = {"train": train_split, "val": val_split, "test": test_split}

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "DAVIS 2017 train" and the DAVIS folder.

        Raises:
            DatasetNotFoundError: The dataset or the list of the split is not there.
        """
        self._list(self.splits[split])
        return f"DAVIS {self.year} {self.splits[split]}", self.folder

    def sequences(self, split: Split) -> Sequence[SequenceFiles]:
        """The sequences on the list of a split.

        Raises:
            DatasetNotFoundError: The dataset, the list, or a sequence on it is not there.
            MaskError: A mask is missing or too many.
        """
        source = self._list(self.splits[split])
        names = _names(source)
        return self.read_each(split, names, lambda name: self._sequence(name, source, dense=split == "train"))

    @property
    def protocol(self) -> str:
        """`davis2016` or `davis2017`."""
        return f"davis{self.year}"

    def server(self) -> ServerSplit | None:
        """That of the 2017 challenges, for the lists that begin with `test-`."""
        split = self.splits["test"]
        if self.year == 2016 or not split.startswith("test-"):
            return None
        return ServerSplit("davis2017_test_dev", self.folder, split)

    @cached_property
    def folder(self) -> Path:
        """The DAVIS folder itself."""
        for folder in (self.root, self.root / "DAVIS"):
            if (folder / _FRAMES).is_dir():
                return folder
        raise not_found(
            self.root,
            f"DAVIS {self.year} is not at data.root={self.root}: no {_FRAMES} in {self.root.absolute()} or its DAVIS.",
            f"DAVIS/{_FRAMES}/<sequence>/*.jpg, DAVIS/Annotations/480p/<sequence>/*.png, "
            f"DAVIS/ImageSets/{self.year}/<split>.txt",
            "https://davischallenge.org (480p)",
            "davis",
        )

    @property
    def _masks(self) -> Path:
        # Some copies keep the masks of both years side by side.
        of_year = self.folder / f"Annotations_{self.year}/480p"
        return of_year if self.year == 2017 and of_year.is_dir() else self.folder / "Annotations/480p"

    def _list(self, split: str) -> Path:
        lists = self.folder / "ImageSets"
        source = lists / str(self.year) / f"{split}.txt"
        if source.is_file():
            return source
        pairs = lists / "480p" / f"{split}.txt"
        if self.year == 2016 and pairs.is_file():
            return pairs
        there = [path.stem for path in sorted(source.parent.glob("*.txt"))]
        if self.year == 2016:
            there += [path.stem for path in sorted(pairs.parent.glob("*.txt"))]
        raise DatasetNotFoundError(
            f"DAVIS {self.year} in {self.folder} has no split {split!r}: there is no {source}\n"
            f"  splits there: {', '.join(dict.fromkeys(there)) or 'none'}\n"
            f"  expected: ImageSets/{self.year}/{split}.txt, a sequence a line\n"
            "Name one of them (data.train_split, data.val_split, data.test_split), or get the lists from "
            "https://davischallenge.org."
        )

    def _sequence(self, name: str, source: Path, *, dense: bool) -> SequenceFiles:
        frames = sequence_frames(self.folder / _FRAMES / name, source)
        masks = masks_of(frames, self._masks / name)
        missing = [path.stem for index, path in enumerate(frames) if index not in masks]
        if missing and (dense or list(masks) != [0]):
            raise MaskError(
                f"{self._masks / name} has {len(masks)} masks for the {len(frames)} frames of {frames[0].parent}\n"
                f"  missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}\n"
                f"  expected: one mask for every frame{'' if dense else ', or for the first alone'}.\n"
                "The copy is not complete: add the masks, or take the name off "
                f"{source}."
            )
        return SequenceFiles(name, frames, masks, binary=self.year == 2016)


def _names(source: Path) -> list[str]:
    if source.parent.name != "480p":
        return read_names(source)
    # The first release listed "/JPEGImages/480p/<sequence>/00000.jpg /Annotations/..." for every frame.
    return plain_names(source, [Path(line.split()[0]).parent.name for line in read_lines(source)])
