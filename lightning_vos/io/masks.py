"""Masks on disk: indexed PNGs whose pixel values are object ids."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import MaskError
from lightning_vos.io.png import read_colours, read_indices
from lightning_vos.io.writing import written_beside


def _voc_palette() -> bytes:
    index = np.arange(256)[:, None]
    bits = [(index >> (3 * bit + np.arange(3)) & 1) << (7 - bit) for bit in range(3)]
    return np.sum(bits, axis=0).astype(np.uint8).tobytes()


VOC_PALETTE: bytes = _voc_palette()
"""The PASCAL VOC colour map, 256 x RGB: bits 0, 1, 2 of the index are the top bits of R, G, B, and so on."""


def read_mask(path: Path, size: tuple[int, int] | None = None, *, resize: bool = False) -> NDArray[np.uint8]:
    """Read the object ids of a mask.

    Args:
        path: An indexed or an 8-bit grey PNG.
        size: (H, W) in pixels that the mask must have.
        resize: Bring a mask of another size to `size`, taking the nearest pixel, instead of refusing it.

    Returns:
        (H, W) label map, 0 = background.

    Raises:
        MaskError: The file is missing, cut off, not such a PNG, or of another size.
    """
    labels = read_indices(_content(path), str(path))
    if size is None or labels.shape == size:
        return labels.copy()  # what is given belongs to the caller
    if resize:
        return resized(labels, size)
    raise MaskError(
        f"Mask of another size than its frame: {path}\n"
        f"  found {labels.shape[1]}x{labels.shape[0]}, expected {size[1]}x{size[0]} (width x height).\n"
        "Save the mask at the frame's size; scale it with nearest-neighbour interpolation only.\n"
        "To have that done: --resize-masks with segment, --data.resize_masks true with datamodules.VideoFolder and\n"
        "datamodules.YouTubeVOS, --data.parts.NAME.init_args.resize_masks true where one is part NAME of a mixture."
    )


def read_palette(path: Path) -> bytes | None:
    """Read the colours of an indexed PNG, to give the results the same.

    Args:
        path: An indexed or an 8-bit grey PNG.

    Returns:
        768 bytes, where the file stores fewer continued with the VOC colours; None for a grey PNG.

    Raises:
        MaskError: The file is missing, cut off, or not such a PNG.
    """
    colours = read_colours(_content(path), str(path))
    return colours + VOC_PALETTE[len(colours) :] if colours else None


def resized(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bring an (H, W) label map to another (H, W), taking the nearest pixel."""
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8, copy=False)


def write_mask(path: Path, labels: NDArray[np.integer], palette: bytes = VOC_PALETTE) -> None:
    """Write object ids as an indexed 8-bit PNG; the file appears at once and whole.

    Args:
        path: The file to write; its parents are created.
        labels: (H, W) label map of ids 0 to 255.
        palette: 768 bytes, RGB of each id.

    Raises:
        MaskError: An id does not fit into 8 bits.
    """
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if lowest < 0 or highest > 255:
        raise MaskError(
            f"Object id that an 8-bit mask cannot hold, for {path}\n"
            f"  found ids {lowest} to {highest}, expected 0 to 255.\n"
            "Number the objects of the first mask from 1 on."
        )
    from PIL import Image  # for writing alone: scoring reads masks and needs no Pillow

    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(palette)
    with written_beside(path) as temporary:
        image.save(temporary, format="PNG")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MaskError(f"Mask not found: {path}\n  expected an indexed 8-bit PNG there.") from error
    except OSError as error:
        raise MaskError(f"Mask that cannot be read: {path}\n  found {error.strerror}") from error
