"""Masks on disk: indexed PNGs whose pixel values are object ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_vos.errors import MaskError
from lightning_vos.io.writing import written_beside


def _voc_palette() -> bytes:
    index = np.arange(256)[:, None]
    bits = [(index >> (3 * bit + np.arange(3)) & 1) << (7 - bit) for bit in range(3)]
    return np.sum(bits, axis=0).astype(np.uint8).tobytes()


VOC_PALETTE: bytes = _voc_palette()
"""The PASCAL VOC colour map, 256 x RGB: bits 0, 1, 2 of the index are the top bits of R, G, B, and so on."""

# PIL stretches grey values of 2 and 4 bits, which would change the ids; indices of any depth stay as they are.
_KEEPS_IDS = {"P", "P;1", "P;2", "P;4", "L"}


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
    with _opened(path) as image:
        labels = Image.fromarray(np.array(image))
    if size is None or labels.size == size[::-1]:
        return np.array(labels)
    if resize:
        return np.array(labels.resize(size[::-1], Image.Resampling.NEAREST))
    raise MaskError(
        f"Mask of another size than its frame: {path}\n"
        f"  found {labels.width}x{labels.height}, expected {size[1]}x{size[0]} (width x height).\n"
        "Save the mask at the frame's size; scale it with nearest-neighbour interpolation only.\n"
        "To have that done: --data.resize_masks true with datamodules.VideoFolder, --resize-masks with segment."
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
    with _opened(path) as image:
        colours = bytes(image.getpalette("RGB") or b"")
    return colours + VOC_PALETTE[len(colours) :] if colours else None


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
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(palette)
    with written_beside(path) as temporary:
        image.save(temporary, format="PNG")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open and decode a PNG whose pixel values are ids."""
    try:
        with Image.open(path) as image:
            stored = image.tile[0][3] if image.format == "PNG" else image.mode
            if image.format != "PNG" or stored not in _KEEPS_IDS:
                raise MaskError(
                    f"Mask whose pixels are not object ids: {path}\n"
                    f"  found {image.format} of mode {stored}\n"
                    "  expected an indexed 8-bit PNG (mode P) or a grey one (mode L): the value of a pixel is its id.\n"
                    "Give each colour an id from 1 on, 0 for background, and save the (H, W) array of ids with\n"
                    "lightning_vos.io.masks.write_mask(path, labels)."
                )
            image.load()
            yield image
    except FileNotFoundError as error:
        raise MaskError(f"Mask not found: {path}\n  expected an indexed 8-bit PNG there.") from error
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for damaged files and for no pictures
        raise MaskError(
            f"Mask that cannot be read: {path}\n"
            f"  found {error}\n"
            "  expected an indexed 8-bit PNG; an interrupted copy or download leaves such files.\n"
            "Copy or write it again."
        ) from error
