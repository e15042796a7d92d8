from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info

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
from lightning_vos.evaluation.holdout import is_held_out
from lightning_vos.evaluation.lists import read_unseen
from lightning_vos.evaluation.meta import YouTubeVOSObject, not_as_expected, read_youtube_vos_meta
from lightning_vos.evaluation.protocols import listed_plan
from lightning_vos.metrics.sequence import Group

YouTubeVOSSplit = Literal["train", "holdout_train", "holdout_val", "valid", "test"]

# XMem, Cutie and QMVOS train without them: most of their annotated frames show nothing.
BLANK_VIDEOS = frozenset(
    {"01e64dd36a", "04259896e2", "1336440745", "5bc77844da", "5ee23ca60e", "738e5a0a14", "f8af30d4b6"}
)

_SPACING = 5  # every fifth frame is annotated


class YouTubeVOS(VOSDataModule):
    """YouTube-VOS 2018 or 2019: every object is prompted in the first frame that `meta.json` lists for it.

    The truth of `valid` and `test` is not public: what a test predicts of them is packed for the server. So that there
    is something to score, `holdout_val` is a part of the training videos and `holdout_train` the rest, by the rule of
    `lightning_vos.evaluation.holdout`. Scores are those of the protocol `youtube_vos`: of seen and of unseen categories
    apart where `unseen.json` lies beside `meta.json`.

    Args:
        root: The folder with `train`, `valid` and `test`, or the folder that holds it as `YouTubeVOS`, or, where both
            years are kept, as `YouTubeVOS_2018` and `YouTubeVOS_2019`.
        year: 2018 or 2019, which have the same videos to train on and differ in their masks; it chooses the folder.
        train_split: The videos to train on; `train` is all that are public, as published.
        val_split: The videos to validate on during training.
        test_split: The videos to test on and to predict.
        all_frames: Whether videos are tracked through all frames, of `<split>_all_frames`, from the first listed one to
            the last, or through every fifth frame, which are those that are annotated and scored. XMem and QMVOS take
            all, which scores several points higher.
        leave_out_blank: Whether seven videos of mostly blank masks are not trained on, as in XMem and QMVOS; AOT, DeAOT
            and MAVOS train on them.
        resize_masks: Resize a mask of another size than its frame (nearest) instead of refusing it.
        **parts: What every dataset takes, see `VOSDataModule`.
    """

    def __init__(
        self,
        root: Path,
        year: Literal[2018, 2019] = 2019,
        train_split: YouTubeVOSSplit = "holdout_train",
        val_split: YouTubeVOSSplit = "holdout_val",
        test_split: YouTubeVOSSplit = "valid",
        all_frames: bool = False,
        leave_out_blank: bool = True,
        resize_masks: bool = False,
        **parts: Any,
    ) -> None:
        super().__init__(root, **parts)
        self.year = year
        self.splits: dict[Split, YouTubeVOSSplit] = {"train": train_split, "val": val_split, "test": test_split}
        self.all_frames = all_frames
        self.leave_out_blank = leave_out_blank
        self.resize_masks = resize_masks

    @property
    def protocol(self) -> str:
        """`youtube_vos`."""
        return "youtube_vos"

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "YouTube-VOS 2019 valid" and the folder of the dataset.

        Raises:
            DatasetNotFoundError: The dataset or the split is not there.
        """
        part = self.splits[split]
        frames = ", all frames" if self.all_frames and split != "train" else ""
        return f"YouTube-VOS {self.year} {part}{frames}", self._split_folder(part).parent

    def sequences(self, split: Split) -> Sequence[SequenceFiles]:
        """The videos of a split; to train on, those that have two annotated frames and are not left out.

        Raises:
            DatasetNotFoundError: The dataset, the split, or a video of `meta.json` is not there.
            FrameError: A frame is missing.
            MaskError: A mask is missing or too many.
        """
        part = self.splits[split]
        folder = self._split_folder(part)
        meta = read_youtube_vos_meta(folder / "meta.json")
        names = sorted(name for name in meta if not part.startswith("holdout") or is_held_out(name) == ("val" in part))
        blank = BLANK_VIDEOS.intersection(names) if split == "train" and self.leave_out_blank else frozenset()
        names = [name for name in names if name not in blank]
        if not names:
            raise DatasetNotFoundError(f"None of the {len(meta)} videos of {folder / 'meta.json'} is in {part}.")
        is_unseen = read_unseen(folder / "unseen.json", "category") if (folder / "unseen.json").is_file() else None
        found = self.read_each(split, names, lambda name: self._sequence(folder, name, meta[name], is_unseen, split))
        if split != "train":
            return found
        long_enough = [sequence for sequence in found if len(sequence.masks) > 1 or not self.sampler.needs_truth]
        if not long_enough:
            raise DatasetNotFoundError(f"No video in {folder} has two annotated frames or more: nothing to train on.")
        short = len(found) - len(long_enough)
        if blank or short:
            rank_zero_info(
                f"YouTube-VOS {self.year} {part}: left out are {len(blank)} videos of mostly blank masks "
                f"(data.leave_out_blank) and {short} with fewer than two annotated frames"
            )
        return long_enough

    def server(self) -> ServerSplit | None:
        """That of the year, for `valid` and `test`."""
        split = self.splits["test"]
        return ServerSplit("youtube_vos", self._split_folder(split), None) if split in ("valid", "test") else None

    @cached_property
    def folder(self) -> Path:
        """The folder of the dataset."""
        places = [self.root / f"YouTubeVOS_{self.year}", self.root, self.root / "YouTubeVOS"]
        for folder in places:
            if any((folder / part / "meta.json").is_file() for part in ("train", "valid", "test")):
                return folder
        raise not_found(
            self.root,
            f"YouTube-VOS {self.year} is not at data.root={self.root}: no train/meta.json in {self.root.absolute()} "
            "or its YouTubeVOS.",
            "YouTubeVOS/<split>/meta.json, YouTubeVOS/<split>/JPEGImages/<video>/*.jpg, "
            "YouTubeVOS/<split>/Annotations/<video>/*.png; splits are train, valid",
            "https://youtube-vos.org",
            "youtube_vos",
        )

    def _split_folder(self, part: YouTubeVOSSplit) -> Path:
        folder = self.folder / ("train" if part.startswith("holdout") else part)
        if (folder / "meta.json").is_file():
            return folder
        there = sorted(file.parent.name for file in self.folder.glob("*/meta.json"))
        raise DatasetNotFoundError(
            f"YouTube-VOS {self.year} in {self.folder} has no {folder.name}: there is no {folder / 'meta.json'}\n"
            f"  splits there: {', '.join(there)}{'' if 'train' not in there else ', holdout_train, holdout_val'}\n"
            f"  expected: {folder.name}/meta.json, {folder.name}/JPEGImages/<video>/*.jpg, "
            f"{folder.name}/Annotations/<video>/*.png; from https://youtube-vos.org\n"
            "Get it, or name one of them (data.train_split, data.val_split, data.test_split)."
        )

    def _sequence(
        self,
        folder: Path,
        name: str,
        objects: Mapping[int, YouTubeVOSObject],
        is_unseen: Callable[[str], bool] | None,
        split: Split,
    ) -> SequenceFiles:
        source = folder / "meta.json"
        objects = {object_id: entry for object_id, entry in objects.items() if entry.frames}
        if not objects:
            raise not_as_expected(source, f"no frames of any object of video {name}")
        all_frames = self.all_frames and split != "train"
        images = folder.with_name(f"{folder.name}_all_frames") if all_frames else folder
        if not (images / "JPEGImages").is_dir():
            raise DatasetNotFoundError(
                f"YouTube-VOS {self.year} lacks {images / 'JPEGImages'}"
                + (", which data.all_frames needs.\nGet it, or use --data.all_frames=false." if all_frames else ".")
            )
        frames = sequence_frames(images / "JPEGImages" / name, source)
        masks = masks_of(frames, folder / "Annotations" / name)
        listed = {i: positions_of(frames, entry.frames, source) for i, entry in objects.items()}
        if all_frames:  # as AOT does: nothing is known before, nothing is asked for after
            begin = min(positions[0] for positions in listed.values())
            end = max(positions[-1] for positions in listed.values())
            frames = frames[begin : end + 1]
            masks = {frame - begin: mask for frame, mask in masks.items() if begin <= frame <= end}
            listed = {i: [frame - begin for frame in positions] for i, positions in listed.items()}
        groups = {i: _group(source, name, i, entry, is_unseen) for i, entry in objects.items() if is_unseen}
        firsts = {i: positions[0] for i, positions in listed.items()}
        is_public = not masks.keys() <= set(firsts.values())  # else there are prompts alone
        plan = listed_plan({i: positions[1:] for i, positions in listed.items()}, groups)
        sequence = ListedSequence(
            name,
            frames,
            masks,
            resize_masks=self.resize_masks,
            spacing=_SPACING,
            firsts=firsts,
            plan=plan if is_public else None,
        )
        needed = {*firsts.values(), *(plan.frames if is_public else ())}
        require_masks(sequence, sorted(needed), folder / "Annotations" / name, source)
        return sequence


def _group(
    source: Path, video: str, object_id: int, entry: YouTubeVOSObject, is_unseen: Callable[[str], bool]
) -> Group:
    if entry.category is None:
        raise not_as_expected(source, f"no category of object {object_id} in video {video}")
    return Group.UNSEEN if is_unseen(entry.category) else Group.SEEN
