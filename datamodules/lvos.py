from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datamodules.base import ServerSplit, Split, VOSDataModule
from datamodules.readers import (
    ListedSequence,
    SequenceFiles,
    masks_of,
    not_found,
    positions_of,
    require_masks,
    sequence_frames,
)
from lightning_vos.errors import DatasetNotFoundError
from lightning_vos.evaluation.lists import read_unseen
from lightning_vos.evaluation.meta import LVOSObject, not_as_expected, read_lvos_meta
from lightning_vos.evaluation.protocols import listed_plan
from lightning_vos.metrics.sequence import Group

_OTHER_NAME = {"valid": "val", "val": "valid"}  # the packages of the two versions differ


class LVOS(VOSDataModule):
    """LVOS, long videos: every object is prompted where the meta file has it start, though all its masks are public.

    The truth of `test` is not public: what a test predicts of it is packed for the server. Scores are those of the
    protocol `lvos`: of seen and of unseen videos apart where `unseen_videos.txt` lies beside the meta file.

    Args:
        root: The folder with `train`, `valid` (or `val`) and `test`, or the folder that holds it as `LVOS`, or, where
            both versions are kept, as `LVOS_v1` and `LVOS_v2`.
        version: 1 or 2; it chooses the folder.
        train_split: The folder of the videos to train on.
        val_split: The folder of the videos to validate on during training; `valid` is also found as `val`.
        test_split: The folder of the videos to test on and to predict; `val_480p`, for example, if there is a copy.
        **parts: What every dataset takes, see `VOSDataModule`.
    """

    def __init__(
        self,
        root: Path,
        version: Literal[1, 2] = 1,
        train_split: str = "train",
        val_split: str = "valid",
        test_split: str = "valid",
        **parts: Any,
    ) -> None:
        super().__init__(root, **parts)
        self.version = version
        self.splits: dict[Split, str] = {"train": train_split, "val": val_split, "test": test_split}

    @property
    def protocol(self) -> str:
        """`lvos`."""
        return "lvos"

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "LVOS v1 valid" and the folder of the dataset.

        Raises:
            DatasetNotFoundError: The dataset or the split is not there.
        """
        return f"LVOS v{self.version} {self.splits[split]}", self._split_folder(self.splits[split]).parent

    def sequences(self, split: Split) -> Sequence[SequenceFiles]:
        """The videos of a split.

        Raises:
            DatasetNotFoundError: The dataset, the split, or a video of the meta file is not there.
            FrameError: A frame is missing.
            MaskError: A mask is missing or too many.
        """
        folder = self._split_folder(self.splits[split])
        source = _meta_file(folder)
        meta = read_lvos_meta(source)
        if not meta:
            raise not_as_expected(source, "no video")
        list_of_unseen = folder / "unseen_videos.txt"
        is_unseen = read_unseen(list_of_unseen, "video") if list_of_unseen.is_file() else None
        return self.read_each(split, sorted(meta), lambda name: _sequence(folder, source, name, meta[name], is_unseen))

    def server(self) -> ServerSplit | None:
        """That of the dataset, for `test`."""
        if self.splits["test"] != "test":
            return None
        folder = self._split_folder("test")
        return ServerSplit("lvos", folder, _meta_file(folder).name.removesuffix("_meta.json"))

    @cached_property
    def folder(self) -> Path:
        """The folder of the dataset."""
        for folder in (self.root / f"LVOS_v{self.version}", self.root, self.root / "LVOS"):
            if any(_meta_files(split) for split in folder.glob("*/")):
                return folder
        raise not_found(
            self.root,
            f"LVOS v{self.version} is not at data.root={self.root}: no <split>/<split>_meta.json in "
            f"{self.root.absolute()} or its LVOS.",
            "LVOS/<split>/<split>_meta.json, LVOS/<split>/JPEGImages/<video>/*.jpg, "
            "LVOS/<split>/Annotations/<video>/*.png; splits are train, valid, test",
            "https://github.com/LingyiHongfd/LVOS",
            "lvos",
        )

    def _split_folder(self, split: str) -> Path:
        for name in (split, _OTHER_NAME.get(split, split)):
            if (self.folder / name / "JPEGImages").is_dir():
                return self.folder / name
        there = sorted(folder.parent.name for folder in self.folder.glob("*/JPEGImages"))
        raise DatasetNotFoundError(
            f"LVOS in {self.folder} has no split {split!r}: there is no {self.folder / split / 'JPEGImages'}\n"
            f"  splits there: {', '.join(there) or 'none'}\n"
            f"  expected: {split}/{split}_meta.json, {split}/JPEGImages/<video>/*.jpg, "
            f"{split}/Annotations/<video>/*.png\n"
            "Name one of them: data.train_split, data.val_split, data.test_split."
        )


def _meta_files(folder: Path) -> list[Path]:
    # Version 1 has a second meta file with expressions; that of attributes in version 2 ends otherwise.
    return [file for file in sorted(folder.glob("*_meta.json")) if not file.stem.endswith("expression_meta")]


def _meta_file(folder: Path) -> Path:
    files = _meta_files(folder)
    if not files:
        raise DatasetNotFoundError(
            f"{folder} has no {folder.name}_meta.json, which says where objects start.\n"
            "Copy it there; a copy at 480p needs that of the original."
        )
    return files[0]


def _sequence(
    folder: Path,
    source: Path,
    name: str,
    objects: Mapping[int, LVOSObject],
    is_unseen: Callable[[str], bool] | None,
) -> SequenceFiles:
    if not objects:
        raise not_as_expected(source, f"no objects of video {name}")
    annotations = folder / "Annotations"
    if not annotations.is_dir():  # copies made for AOT and MAVOS
        annotations = folder / "Annotations_convert"
    frames = sequence_frames(folder / "JPEGImages" / name, source)
    masks = masks_of(frames, annotations / name)
    names = {int(path.stem): path.stem for path in frames}

    def positions(numbers: Sequence[int]) -> list[int]:
        return positions_of(frames, [names.get(number, f"{number:08}") for number in numbers], source)

    firsts = {object_id: positions([entry.start])[0] for object_id, entry in objects.items()}
    is_public = not masks.keys() <= set(firsts.values())  # else there are prompts alone
    group = Group.NONE if is_unseen is None else Group.UNSEEN if is_unseen(name) else Group.SEEN
    groups = dict.fromkeys(objects, group) if group else {}
    plan = None
    if is_public:
        plan = listed_plan({object_id: positions(entry.scored) for object_id, entry in objects.items()}, groups)
    sequence = ListedSequence(name, frames, masks, firsts=firsts, plan=plan)
    needed = {*firsts.values(), *(plan.frames if plan else ())}
    require_masks(sequence, sorted(needed), annotations / name, source)
    return sequence
