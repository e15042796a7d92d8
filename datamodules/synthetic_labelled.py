from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.base import Split
from datamodules.labelled_image_folder import LabelledImageFolder
from datamodules.labelled_images import ImageSet, image_files, listed_files, plain_names
from datamodules.synthetic_images import ImageSettings, write_images
from lightning_vos.errors import ConfigError

Part = Literal["train", "val"]

_SETTINGS = ImageSettings("labelled_images")


class SyntheticImages(LabelledImageFolder):
    """Small rendered images with labels: written in the layout of `LabelledImageFolder` where they are not there yet.

    The rendered training images are trained on, and the others are validated with.

    Args:
        root: The folder that holds the set, in `labelled_images`.
        settings: What is rendered, in the layout `labelled_images`; a set of other settings that is already there is
            refused.
        test_split: The images that are tested on; "train" to score the masks that a second stage is trained on.
        **parts: What every dataset of images takes, see `ImageDataModule`.

    Raises:
        ConfigError: `settings` are of another layout.
    """

    def __init__(
        self,
        root: Path = Path("data/synthetic"),
        settings: ImageSettings = _SETTINGS,
        test_split: Part = "val",
        **parts: Any,
    ) -> None:
        if settings.layout != "labelled_images":
            raise ConfigError(
                f"data.settings.layout is {settings.layout}, but SyntheticImages reads labelled_images alone.\n"
                "Write a set in the layout of a dataset with `lightning_vos data demo DIR --layout NAME`."
            )
        super().__init__(Path(root) / "labelled_images", **parts)
        self.settings = settings
        self.test_split = test_split

    def prepare_data(self) -> None:
        """Write the set if it is not there.

        Raises:
            ConfigError: Something else is there.
        """
        write_images(self.root, self.settings)

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "Rendered images train" and the folder of the images."""
        return f"Rendered images {self._part(split)}", self.folder

    def images(self, split: Split) -> ImageSet:
        """The images of a split, with their masks.

        Raises:
            DatasetNotFoundError: A file of the set is missing.
        """
        names = [name for name in plain_names(self.labels, self._table.rows) if name.startswith(self._part(split))]
        paths = listed_files(names, image_files(self.folder), self.folder, self.labels, "images")
        masks = listed_files(names, image_files(self.masks), self.masks, self.labels, "masks")
        return ImageSet(names, paths, self.class_set, 1, np.stack([self._table.rows[name] for name in names]), masks)

    def _part(self, split: Split) -> Part:
        return self.test_split if split == "test" else split
