from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.base import Split
from datamodules.davis import DAVIS
from datamodules.synthetic_files import SyntheticSettings, write_davis
from datamodules.synthetic_instances import write_synthetic_youtube_vis
from datamodules.youtube_vis import VISSplit, YouTubeVIS

_SETTINGS = SyntheticSettings()


class Synthetic(DAVIS):
    """Small rendered videos: written in the layout of DAVIS 2017 where they are not there yet, then read as DAVIS.

    Args:
        root: The folder that holds the set, in `DAVIS`.
        settings: What is rendered; a set of other settings that is already there is refused.
        **parts: What every dataset takes, see `VOSDataModule`.
    """

    def __init__(
        self, root: Path = Path("data/synthetic"), settings: SyntheticSettings = _SETTINGS, **parts: Any
    ) -> None:
        super().__init__(root, 2017, "train", "val", "val", **parts)
        self.settings = settings

    def prepare_data(self) -> None:
        """Write the set if it is not there.

        Raises:
            ConfigError: Something else is there.
        """
        write_davis(self.folder, self.settings)

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "Synthetic train" and the folder of the set."""
        return f"Synthetic {self.splits[split]}", self.folder

    @cached_property
    def folder(self) -> Path:
        """The folder of the set, whether it is written yet or not."""
        return self.root / "DAVIS"


class SyntheticVIS(YouTubeVIS):
    """Small rendered videos with classes: written in the layout of YouTube-VIS 2019 where they are not there yet.

    Args:
        root: The folder that holds the set, in `youtube_vis_2019`.
        settings: What is rendered; a set of other settings that is already there is refused.
        train_split: The videos to train on.
        val_split: Those to validate with.
        test_split: Those to test on and to predict; the rendered `valid` has no truth, as the real one.
        **parts: As `YouTubeVIS`.
    """

    def __init__(
        self,
        root: Path = Path("data/synthetic"),
        settings: SyntheticSettings = _SETTINGS,
        train_split: VISSplit = "holdout_train",
        val_split: VISSplit = "holdout_val",
        test_split: VISSplit = "holdout_val",
        **parts: Any,
    ) -> None:
        super().__init__(root, 2019, train_split, val_split, test_split, **parts)
        self.settings = settings

    def prepare_data(self) -> None:
        """Write the set if it is not there.

        Raises:
            ConfigError: Something else is there.
        """
        write_synthetic_youtube_vis(self.root / "youtube_vis_2019", self.settings)
