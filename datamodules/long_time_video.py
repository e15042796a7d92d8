from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.base import Split, VOSDataModule
from datamodules.readers import SequenceFiles, masks_of, not_found, read_names
from lightning_vos.errors import ConfigError, DatasetNotFoundError, MaskError
from lightning_vos.io.frames import ordered_frames

_PLACES = (".", "LongTimeVideo", "long_video")


class LongTimeVideo(VOSDataModule):
    """Long-Time Video: three videos of thousands of frames, one object, a mask in some frames; to validate and to test.

    All foreground is one object, which is prompted by the first mask. Scores are those of the protocol
    `long_time_video`: all annotated frames but the first and the last.

    Args:
        root: The folder with `JPEGImages` and `Annotations`, or the folder that holds it as `LongTimeVideo` or
            `long_video`. The videos are those on `ImageSets/val.txt`, or all with masks where there is no such list.
        **parts: What every dataset takes, see `VOSDataModule`.
    """

    def __init__(self, root: Path, **parts: Any) -> None:
        super().__init__(root, **parts)

    @property
    def protocol(self) -> str:
        """`long_time_video`."""
        return "long_time_video"

    def describe(self, split: Split) -> tuple[str, Path]:
        """Long-Time Video and its folder."""
        return "Long-Time Video", self.folder

    def sequences(self, split: Split) -> Sequence[SequenceFiles]:
        """All videos.

        Raises:
            ConfigError: They are to be trained on.
            DatasetNotFoundError: The dataset, or a video on its list, is not there.
            FrameError: A video has no frames, or their names do not sort as their numbers do.
            MaskError: A video has no mask, or a mask belongs to no frame.
        """
        if split == "train":
            raise ConfigError(
                "Long-Time Video is there to test on: it has three videos and few masks.\n"
                "Train on other data and give this after the recipe to `lightning_vos test`."
            )
        names, source = self._names()
        return [self._sequence(name, source) for name in names]

    @cached_property
    def folder(self) -> Path:
        """The folder of the dataset."""
        for place in _PLACES:
            folder = self.root / place
            if any((folder / "JPEGImages").glob("*/*.*")) and any((folder / "Annotations").glob("*/*.png")):
                return folder
        raise not_found(
            self.root,
            f"Long-Time Video is not at data.root={self.root}: no JPEGImages/<video> and Annotations/<video> in "
            f"{self.root.absolute()}, its LongTimeVideo or long_video.",
            "LongTimeVideo/JPEGImages/<video>/*.jpg, LongTimeVideo/Annotations/<video>/*.png",
            "https://github.com/xmlyqing00/AFB-URR",
            "long_time_video",
        )

    def _names(self) -> tuple[list[str], Path]:
        source = self.folder / "ImageSets/val.txt"
        if source.is_file():
            return read_names(source), source
        folders = sorted(path.name for path in (self.folder / "Annotations").glob("[!.]*/"))
        return folders, self.folder / "Annotations"

    def _sequence(self, name: str, source: Path) -> SequenceFiles:
        folder = self.folder / "JPEGImages" / name
        if not folder.is_dir():
            raise DatasetNotFoundError(
                f"{source} names the video {name!r}, but there is no folder {folder}.\n"
                "The copy is not complete: add the folder, or take the name off."
            )
        frames = ordered_frames(folder)
        masks = masks_of(frames, self.folder / "Annotations" / name)
        if not masks:
            raise MaskError(
                f"{source} names the video {name!r}, but {self.folder / 'Annotations' / name} holds no mask.\n"
                "The copy is not complete: add the masks, or take the name off."
            )
        return SequenceFiles(name, frames, masks, binary=True)
