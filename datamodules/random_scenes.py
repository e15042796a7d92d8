from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from datamodules.base import Split
from datamodules.clips import collate_clips, to_clip
from datamodules.davis import DAVIS
from datamodules.readers import SequenceFiles
from datamodules.scenes import SceneSettings, render_scene
from datamodules.synthetic_files import SceneSetSettings, write_scenes
from lightning_vos.errors import ConfigError
from lightning_vos.structures import Clip

_SCENES = SceneSettings()
_SCORED = SceneSetSettings()
_WITHHELD = 255


class SceneDataset(Dataset[Clip]):
    """Endless scenes: item `i` is a function of (seed, i) alone.

    Args:
        seed: The seed of all draws.
        length: Frames of a clip.
        size: (H, W) in pixels.
        settings: What scenes show.
        withholds: Whether the masks after the first are withheld.
    """

    def __init__(
        self, seed: int, length: int, size: tuple[int, int], settings: SceneSettings, *, withholds: bool = False
    ) -> None:
        self.seed = seed
        self.length = length
        self.size = size
        self.settings = settings
        self.withholds = withholds

    def __getitem__(self, index: int) -> Clip:
        """The unbatched clip: frames (T, 3, H, W), masks (T, H, W), objects ()."""
        clip = render_scene(self.seed, index, self.length, *self.size, self.settings)
        objects = int(np.max(clip.masks[0]))
        if self.withholds:
            clip.masks[1:] = _WITHHELD
        return to_clip(clip.frames, clip.masks, objects)


class RandomScenes(DAVIS):
    """Rendered scenes without end to train on, straight from the loader's workers; a written set of others to score on.

    Nothing is read from disk to train, and no clip comes twice. Of the sampler only `length` matters and whether it
    withholds masks, of the transform only its `crop`: scenes are rendered as they are needed, and nothing is merged.

    Args:
        root: The folder that holds the written set, in `DAVIS`; it is rendered where it is not there yet.
        settings: What scenes of the training show.
        scored: What the written set holds; a set of other settings that is already there is refused.
        size: (H, W) of the training clips in pixels; a square of the transform's `crop` if not given.
        **parts: What every dataset takes, see `VOSDataModule`.
    """

    def __init__(
        self,
        root: Path = Path("data/random_scenes"),
        settings: SceneSettings = _SCENES,
        scored: SceneSetSettings = _SCORED,
        size: tuple[int, int] | None = None,
        **parts: Any,
    ) -> None:
        super().__init__(root, 2017, "train", "val", "test", **parts)
        self.settings = settings
        self.scored = scored
        self.size = size

    def prepare_data(self) -> None:
        """Write the set to score on if it is not there.

        Raises:
            ConfigError: Something else is there.
        """
        write_scenes(self.folder, self.scored)

    def setup(self, stage: str) -> None:
        """Find the sequences that a stage needs and say which they are, and what is trained on.

        Raises:
            ConfigError: Training clips are too small, or neither a size nor the transform says how large they are.
        """
        if stage == "fit":
            height, width = self._clip_size
            rank_zero_info(f"Random scenes: endless clips of {self.sampler.length} frames of {height} x {width} pixels")
        super().setup("validate" if stage == "fit" else stage)

    def sequences(self, split: Split) -> Sequence[SequenceFiles]:
        """The written sequences of a split.

        Raises:
            ConfigError: They are asked for to train on.
        """
        if split == "train":
            raise ConfigError(
                "RandomScenes renders what it trains on: there are no sequences on disk that could be listed or mixed "
                "with others.\nTrain on it by itself, or use datamodules.Synthetic, which writes its training set."
            )
        return super().sequences(split)

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "Random scenes val" and the folder of the set."""
        return f"Random scenes {self.splits[split]}", self.folder

    @cached_property
    def folder(self) -> Path:
        """The folder of the set, whether it is written yet or not."""
        return self.root / "DAVIS"

    def train_dataloader(self) -> DataLoader[Clip]:
        """Endless batches of clips."""
        settings = replace(self.settings, max_objects=min(self.settings.max_objects, self.max_objects))
        dataset = SceneDataset(
            self.seed, self.sampler.length, self._clip_size, settings, withholds=self.sampler.withholds
        )
        return self.endless(dataset, collate_clips)

    @property
    def _clip_size(self) -> tuple[int, int]:
        crop = getattr(self.transform, "crop", None)
        size = self.size or (crop and (crop, crop))
        if not size or min(size) < 64:
            raise ConfigError(
                f"No scenes can be rendered to train on: data.size is {self.size}, and the crop of "
                f"{type(self.transform).__name__} is {crop}.\n"
                "Expected a height and a width of 64 pixels or more: give --data.size='[H,W]'."
            )
        return size
