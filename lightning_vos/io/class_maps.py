"""Class maps on disk: where in an image each of its classes was found, in 8 bits, so that thresholds can be tried."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import MaskError
from lightning_vos.io.writing import written_beside


class StoredClassMaps(NamedTuple):
    """The maps of an image; a class that has none is nowhere in it."""

    values: NDArray[np.uint8]  # (k,) what label maps call the classes
    maps: NDArray[np.float32]  # (k, h, w) in [0, 1], multiples of 1/255; any grid that is laid over the whole image


def write_class_maps(path: Path, values: Sequence[int], maps: NDArray[np.floating]) -> None:
    """Write the maps of an image as a compressed `.npz`; the file appears at once and whole.

    Args:
        path: The file to write, with its suffix; its parents are created.
        values: What label maps call the k classes.
        maps: (k, h, w) in [0, 1], kept as multiples of 1/255.
    """
    quantised = np.rint(255 * maps).astype(np.uint8)
    with written_beside(path) as temporary:
        np.savez_compressed(temporary, values=np.asarray(values, dtype=np.uint8), maps=quantised)


def read_class_maps(path: Path) -> StoredClassMaps:
    """Read what `write_class_maps` wrote.

    Raises:
        MaskError: The file is missing, damaged, or another one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            values, maps = file["values"], file["maps"]
    except FileNotFoundError as error:
        raise MaskError(f"Class maps not found: {path}") from error
    except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise _unfit(path, str(error)) from error
    if values.dtype != np.uint8 or maps.dtype != np.uint8 or maps.ndim != 3 or values.shape != maps.shape[:1]:
        raise _unfit(path, f"values {values.dtype} {values.shape}, maps {maps.dtype} {maps.shape}")
    return StoredClassMaps(values, maps.astype(np.float32) / 255)


def _unfit(path: Path, found: str) -> MaskError:
    return MaskError(
        f"Class maps that cannot be read: {path}\n"
        f"  found {found}\n"
        "  expected an .npz of `values` (k) and `maps` (k, h, w), both uint8, as a run writes it.\n"
        "Run the prediction again for this image."
    )
