from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import Split, VOSDataModule
from datamodules.readers import SequenceFiles, masks_of
from lightning_vos.errors import DatasetNotFoundError
from lightning_vos.io.frames import ordered_frames


class VideoFolder(VOSDataModule):
    """A person's own videos: `root/<frames>/<video>/*.jpg` and `root/<masks>/<video>/*.png`.

    `root/<frames>` may also hold the images of a single video, and `root/<masks>` its masks. Masks are indexed PNGs
    named as their frames; 255 is background. Objects may first appear in any frame, each is a prompt there. Numbers in
    the names of frames have as many digits each, or the names would not sort by them.

    Trains on the videos whose masks follow their objects: two masks or more, not all of them first appearances; if the
    sampler needs no more than one mask, on all others that have one, too. In the order of names, each `holdout`-th of
    the former is kept for validation, the last one if they are fewer; a single one serves both, if there are no others.
    Tests on, and predicts, every video that has a mask; those with truth (at least three such masks) can be scored.

    Args:
        root: The folder that holds the frames and the masks.
        frames: The folder of the frames, relative to `root`.
        masks: The folder of the masks, relative to `root`.
        resize_masks: Resize a mask of another size than its frame (nearest) instead of refusing it.
        holdout: Every how many-th video is kept for validation, at least 2.
        **parts: What every dataset takes, see `VOSDataModule`.
    """

    def __init__(
        self,
        root: Path,
        frames: str = "JPEGImages",
        masks: str = "Annotations",
        resize_masks: bool = False,
        holdout: int = 5,
        **parts: Any,
    ) -> None:
        if holdout < 2:
            raise ValueError(f"VideoFolder: holdout={holdout}; expected at least 2, or nothing is left to train on")
        super().__init__(root, **parts)
        self._frames_name = frames
        self._masks_name = masks
        self.resize_masks = resize_masks
        self.holdout = holdout

    @property
    def frames(self) -> Path:
        """The folder of the frames."""
        return self.root / self._frames_name

    @property
    def masks(self) -> Path:
        """The folder of the masks."""
        return self.root / self._masks_name

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "VideoFolder train" and the root.

        Raises:
            DatasetNotFoundError: A folder is missing.
        """
        self._require_folders()
        return f"VideoFolder {split}", self.root

    def sequences(self, split: Split) -> Sequence[SequenceFiles]:
        """The videos of a split.

        Raises:
            DatasetNotFoundError: A folder is missing, or there is no video with the masks that the split needs.
            FrameError: A video has no frames, or their names do not sort as their numbers do.
            MaskError: A mask belongs to no frame, or cannot be used.
        """
        if split == "test":
            return self._prompted
        usable = [sequence for sequence in self._prompted if sequence.is_dense]
        trained = usable if self.sampler.needs_truth else self._prompted
        if not usable and (split == "val" or not trained):
            training = "Add masks, or use `lightning_vos predict`, which needs those of first appearances alone."
            if not self.sampler.needs_truth:
                training = "Add masks to a video, or train without validation: --trainer.limit_val_batches=0"
            raise DatasetNotFoundError(
                f"No video in {self.frames} can be {'validated with' if trained else 'trained on or validated with'}:\n"
                f"none of the {len(self._prompted)} with masks has dense ones.\n"
                f"  found, for example: {_masks_found(self._prompted[0])}\n"
                "  expected: two masks or more that follow their objects, best one for every frame.\n"
                f"{training}"
            )
        held_out = usable[self.holdout - 1 :: self.holdout] or usable[-1:]
        if split == "val":
            return held_out
        if len(trained) == 1 and usable:
            rank_zero_warn(
                f"{self.frames} has a single video with dense masks, {usable[0].name}: it is both trained on and "
                "validated with, so the validation score says little."
            )
            return usable
        return [sequence for sequence in trained if sequence not in held_out]

    def _require_folders(self) -> None:
        for folder in (self.root, self.frames, self.masks):
            if not folder.is_dir():
                raise DatasetNotFoundError(
                    f"No folder {folder} (data.root={self.root})\n"
                    f"  found in {self.root}: {', '.join(_names(self.root)[:6]) or 'nothing'}\n"
                    f"  expected: {self.frames}/<video>/*.jpg and {self.masks}/<video>/*.png\n"
                    "Name the folders with --data.root DIR, --data.frames NAME and --data.masks NAME (inside root)."
                )

    @cached_property
    def _prompted(self) -> list[SequenceFiles]:
        """Every video that has a mask."""
        self._require_folders()
        videos = [self.frames / name for name in _names(self.frames) if (self.frames / name).is_dir()]
        if videos:
            found = [self._sequence(video.name, video, self.masks / video.name) for video in videos]
        else:
            found = [self._sequence(self.root.resolve().name, self.frames, self.masks)]
        prompted = [sequence for sequence in found if sequence.masks]
        if not prompted:
            raise DatasetNotFoundError(
                f"No video in {self.frames} has a mask in {self.masks}\n"
                f"  found in {self.masks}: {', '.join(_names(self.masks)[:6]) or 'an empty folder'}\n"
                f"  expected, for example: {self.masks / found[0].name / found[0].frames[0].stem}.png\n"
                "Give each video an indexed PNG of its first frame, under the name of that frame."
            )
        left_out = [sequence.name for sequence in found if not sequence.masks]
        if left_out:
            rank_zero_warn(
                f"{len(left_out)} videos in {self.frames} have no mask in {self.masks} and are left out: "
                f"{', '.join(left_out[:6])}{', ...' if len(left_out) > 6 else ''}"
            )
        return prompted

    def _sequence(self, name: str, frames: Path, masks: Path) -> SequenceFiles:
        paths = ordered_frames(frames)
        return SequenceFiles(
            name, paths, masks_of(paths, masks), first_frame_only=False, resize_masks=self.resize_masks
        )


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []


def _masks_found(sequence: SequenceFiles) -> str:
    names = [path.name for path in sequence.masks.values()]
    return f"{sequence.name} with {len(names)} of {len(sequence.frames)} masks ({', '.join(names[:4])})"
