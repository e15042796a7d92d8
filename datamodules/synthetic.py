from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from datamodules.base import Split
from datamodules.davis import DAVIS
from datamodules.synthetic_files import SyntheticSettings, write_davis

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
