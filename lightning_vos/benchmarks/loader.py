"""What a training loader gives: frames a second by the number of workers, and where the time of a frame goes."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from datamodules.davis import DAVIS
from datamodules.synthetic_files import SyntheticSettings, write_davis
from lightning_vos.errors import ConfigError
from lightning_vos.structures import Clip, InstanceClip, LabelledImages, MaskedImages

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule

# A name for where time goes, and the functions whose time it is: end of the file's path, name.
_READ = (("~", "<built-in method _io.open>"), ("~", "<method 'read' of '_io.BufferedReader' objects>"))
_READ_BYTES = ("~", "<method 'read' of '_io.FileIO' objects>")
_DECODE = (("io/frames.py", "read_frame"), ("io/masks.py", "read_mask"))
_AUGMENT = tuple(
    (f"datamodules/{file}.py", "__call__") for file in ("transforms", "hodor_transforms", "image_transforms")
)
_RENDER = (("scenes/rendering.py", "render_scene"),)
_COLLATE = (("data/_utils/collate.py", "default_collate"),)


class LoaderRate(NamedTuple):
    """What a loader gave.

    Attributes:
        workers: Its processes; 0 is the process that trains.
        frames: How many frames were counted.
        seconds: The time for them, after the loader had filled its queue.
    """

    workers: int
    frames: int
    seconds: float

    @property
    def frames_per_second(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds


def synthetic_davis(folder: Path, size: tuple[int, int], batch_size: int) -> DAVIS:
    """Write clips in the layout of DAVIS, and give their DataModule with the recipe of MAVOS, ready to train.

    Args:
        folder: Where they are written.
        size: (H, W) of the frames, in pixels.
        batch_size: Clips a batch.
    """
    write_davis(folder / "DAVIS", SyntheticSettings(train=4, val=1, frames=16, height=size[0], width=size[1]))
    data = DAVIS(folder, batch_size=batch_size)
    data.setup("fit")
    return data


def measure_rate(data: LightningDataModule, workers: int, batches: int) -> LoaderRate:
    """Count the frames that the train loader gives with a number of workers.

    Args:
        data: A DataModule that is set up and has `workers`.
        workers: Processes that prepare batches.
        batches: How many batches are counted.

    Raises:
        ConfigError: The DataModule has no `workers`, its loader ends too early, or gives something else than frames.
    """
    loader = _loader(data, workers)
    given = iter(loader)
    # Workers have prepared batches ahead when the first one is taken: those would count as free.
    warm = 1 + 2 * workers
    if len(list(islice(given, warm))) < warm:
        raise ConfigError(f"The train loader has fewer than {warm + batches} batches: ask for fewer --batches.")
    start = time.perf_counter()
    counts = [_frames_of(batch) for batch in islice(given, batches)]
    seconds = time.perf_counter() - start
    if len(counts) < batches:
        raise ConfigError(f"The train loader has fewer than {warm + batches} batches: ask for fewer --batches.")
    return LoaderRate(workers, sum(counts), seconds)


def measure_stages(data: LightningDataModule, batches: int) -> dict[str, float]:
    """Name the share of the time that each stage of a batch takes without workers; they add up to 1.

    Stages that the data does without are left out.

    Args:
        data: As `measure_rate` takes it.
        batches: How many batches are profiled.
    """
    given = iter(_loader(data, workers=0))
    next(given)  # imports and caches
    profile = cProfile.Profile()
    profile.runcall(lambda: list(islice(given, batches)))
    statistics = pstats.Stats(profile)
    functions: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = statistics.stats  # type: ignore[attr-defined]
    total = sum(times[2] for times in functions.values())

    def share(*places: tuple[str, str]) -> float:
        spent = (
            times[3]
            for (file, _, name), times in functions.items()
            if any(file.endswith(end) and name == function for end, function in places)
        )
        return sum(spent) / total

    read = share(*_READ, _READ_BYTES)
    stages = {
        "read": read,
        "decode": share(*_DECODE) - read,
        "render": share(*_RENDER),
        "augment": share(*_AUGMENT),
        "collate": share(*_COLLATE),
    }
    stages = {stage: spent for stage, spent in stages.items() if spent > 0}
    return {**stages, "draw, merge and convert": 1 - sum(stages.values())}


def _loader(data: Any, workers: int) -> Iterator[Any]:
    if not hasattr(data, "workers"):
        raise ConfigError(f"{type(data).__name__} has no `workers`, which this measures; name a recipe whose data has.")
    torch.set_num_threads(1)
    data.workers = workers
    return data.train_dataloader()


def _frames_of(batch: Any) -> int:
    if isinstance(batch, Clip | InstanceClip):
        return batch.frames.shape[0] * batch.frames.shape[1]
    if isinstance(batch, LabelledImages | MaskedImages):
        return len(batch.images)
    raise ConfigError(
        f"The train loader gives {type(batch).__name__}, expected clips or images of lightning_vos.structures."
    )
