from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_vos.io.masks import write_mask

WriteVideo = Callable[..., None]


@pytest.fixture(scope="session")
def write_video() -> WriteVideo:
    """Writes frames of noise and their masks; `masks` maps a frame index to its label map."""

    def write(frames: Path, masks: Path, labels: Mapping[int, np.ndarray], count: int, size=(40, 60)) -> None:
        rng = np.random.default_rng(len(frames.name))
        frames.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(frames / f"{index:05d}.jpg")
        for index, mask in labels.items():
            write_mask(masks / f"{index:05d}.png", mask)

    return write


@pytest.fixture(scope="session")
def moving() -> Callable[..., dict[int, np.ndarray]]:
    """Label maps of objects 1 to `objects`, squares that move to the right by a pixel a frame."""

    def masks(count: int, objects: int = 1, size=(40, 60), side: int = 16) -> dict[int, np.ndarray]:
        labels = {}
        for frame in range(count):
            mask = np.zeros(size, np.uint8)
            for number in range(objects):
                left = frame + number * (side + 2)
                mask[4 : 4 + side, left : left + side] = number + 1
            labels[frame] = mask
        return labels

    return masks
