"""Decoding the PNGs that hold label maps: pixel values as they are stored, whatever colours they stand for.

OpenCV turns indices into colours, and Pillow takes twice the time of what has to be inflated. Of the package `deflate`,
where it is installed, the inflating takes a tenth.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import MaskError

try:
    from deflate import DeflateError, zlib_decompress
except ImportError:  # the extra `fast` is not installed
    DeflateError, zlib_decompress = ValueError, None  # type: ignore[assignment, misc]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _INDEXED = 0, 3
_BITS = {_GREY: (8,), _INDEXED: (1, 2, 4, 8)}
_COLOUR_TYPES = {_GREY: "grey", 2: "RGB", _INDEXED: "indexed", 4: "grey with alpha", 6: "RGBA"}
_MODES = {(0, 1): "1", (0, 2): "L;2", (0, 4): "L;4", (0, 16): "I;16", (2, 8): "RGB", (4, 8): "LA", (6, 8): "RGBA"}
_MOST_PIXELS = 2**28  # a header that claims more is not believed


class NotIndexedError(MaskError):
    """A picture that is whole, but whose pixels are no ids."""


class PNGHeader(NamedTuple):
    """What a PNG says of itself.

    Attributes:
        height: Pixels.
        width: Pixels.
        depth: Bits of an index or of a channel.
        colour: The number of the colour type.
        interlaced: Whether its pixels are stored in seven passes.
    """

    height: int
    width: int
    depth: int
    colour: int
    interlaced: bool

    @property
    def kind(self) -> str:
        """Bits and colour type in words, such as "8 bits, indexed"."""
        return f"{self.depth} bits, {_COLOUR_TYPES.get(self.colour, f'colour type {self.colour}')}"


def read_indices(data: bytes, where: str) -> NDArray[np.uint8]:
    """Decode a label map.

    Args:
        data: The content of an indexed PNG of 1 to 8 bits or of a grey one of 8 bits.
        where: The name of the file, for messages.

    Returns:
        (H, W) label map: the stored values.

    Raises:
        NotIndexedError: It is another kind of picture.
        MaskError: It is damaged.
    """
    height, width, depth, colour, interlaced = _header(data, where)
    row_bytes = (width * depth + 7) // 8
    if colour == _INDEXED and not interlaced:
        try:
            rows = _inflated(b"".join(_image_data(data)), height * (row_bytes + 1))
        except (ValueError, struct.error) as error:
            raise _damaged(where, str(error)) from error
        rows = rows.reshape(height, row_bytes + 1)
        if not rows[:, 0].any():  # writers leave the rows of indexed images unfiltered, as the standard advises
            return _unpacked(rows[:, 1:], width, depth)
    return _decoded_as_grey(data, depth, where)


def read_header(data: bytes, where: str) -> PNGHeader:
    """Read the header of any PNG; what it says is not judged.

    Raises:
        NotIndexedError: It is a JPEG.
        MaskError: It is no PNG, or cut off within the header.
    """
    if data[:8] != _SIGNATURE and data:
        raise _unfit(where, "a JPEG") if data[:2] == b"\xff\xd8" else _damaged(where, "no PNG")
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise _damaged(where, f"{len(data)} bytes without an image")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    return PNGHeader(height, width, depth, colour, bool(interlaced))


def require_whole(data: bytes, where: str) -> None:
    """Refuse a PNG whose check sums are wrong or whose end is missing, which some readers forgive and some do not.

    Raises:
        MaskError: It is such a PNG.
    """
    for name, begin, end in _chunks(data):
        if end > len(data):
            break
        if zlib.crc32(data[begin + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise _damaged(where, "a check sum that is wrong")
        if name == b"IEND":
            return
    raise _damaged(where, "a PNG that is cut off")


def object_ids(labels: NDArray[np.uint8]) -> list[int]:
    """The values of an (H, W) label map, in order, without 0."""
    return [value for value in np.flatnonzero(np.bincount(labels.ravel())).tolist() if value > 0]


def read_colours(data: bytes, where: str) -> bytes:
    """Read the colours of such a PNG as RGB, as many as it stores; none of a grey one.

    Raises:
        MaskError: It is no such PNG, or damaged.
    """
    _header(data, where)
    return next((data[begin + 8 : end - 4] for name, begin, end in _chunks(data) if name == b"PLTE"), b"")


def _header(data: bytes, where: str) -> PNGHeader:
    """The header of a label map."""
    header = read_header(data, where)
    width, height, depth, colour = header.width, header.height, header.depth, header.colour
    if depth not in _BITS.get(colour, ()):
        raise _unfit(where, f"PNG of mode {_MODES.get((colour, depth), f'{colour} with {depth} bits')}")
    if not 0 < width * height <= _MOST_PIXELS:
        raise _damaged(where, f"a header that says {width}x{height} pixels")
    return header


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name of each chunk, where it begins and where it ends."""
    begin = 8
    while begin + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, begin)
        yield data[begin + 4 : begin + 8], begin, begin + 12 + size
        begin += 12 + size


def _image_data(data: bytes) -> Iterator[bytes]:
    return (data[begin + 8 : end - 4] for name, begin, end in _chunks(data) if name == b"IDAT")


def _inflated(stream: bytes, size: int) -> NDArray[np.uint8]:
    """Exactly `size` bytes; neither more, for a small file can claim to hold gigabytes, nor less."""
    if zlib_decompress is not None:
        try:
            content = zlib_decompress(stream, size)
        except DeflateError as error:
            raise ValueError(str(error)) from error
    else:
        inflater = zlib.decompressobj()
        try:
            content = inflater.decompress(stream, size + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if not inflater.eof:
            raise ValueError("image data that ends early")
    if len(content) != size:
        raise ValueError(f"{len(content)} bytes of pixels in place of {size}")
    return np.frombuffer(content, np.uint8)


def _unpacked(rows: NDArray[np.uint8], width: int, depth: int) -> NDArray[np.uint8]:
    """(H, W) values of rows that hold 8 / depth of them a byte, the first in the highest bits."""
    if depth == 8:
        return rows
    shifts = np.arange(8 - depth, -1, -depth, dtype=np.uint8)
    values = rows[:, :, None] >> shifts & np.uint8(2**depth - 1)
    return values.reshape(len(rows), -1)[:, :width]


def _decoded_as_grey(data: bytes, depth: int, where: str) -> NDArray[np.uint8]:
    """The values by OpenCV, which leaves grey pixels alone: the header says grey, the palette is taken out."""
    header = bytearray(data[12:29])
    header[13] = _GREY
    parts = [data[:12], bytes(header), zlib.crc32(header).to_bytes(4, "big")]
    parts += [data[begin:end] for name, begin, end in _chunks(data) if name in (b"IDAT", b"IEND")]
    image = cv2.imdecode(np.frombuffer(b"".join(parts), np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise _damaged(where, "image data that cannot be decoded")
    values = image.astype(np.uint8, copy=False)
    # Values of fewer bits come stretched to 0 to 255.
    return values if depth == 8 else values // np.uint8(255 // (2**depth - 1))


def _unfit(where: str, found: str) -> NotIndexedError:
    return NotIndexedError(
        f"Mask whose pixels are not object ids: {where}\n"
        f"  found {found}\n"
        "  expected an indexed 8-bit PNG (mode P) or a grey one (mode L): the value of a pixel is its id.\n"
        "Of pictures with a colour for each object, or of black and white, such PNGs are made by\n"
        "`lightning_vos data prepare index-masks SOURCE TARGET`; of (H, W) arrays of ids by\n"
        "lightning_vos.io.masks.write_mask(path, labels)."
    )


def _damaged(where: str, found: str) -> MaskError:
    return MaskError(
        f"Mask that cannot be read: {where}\n"
        f"  found {found}\n"
        "  expected an indexed 8-bit PNG; an interrupted copy or download leaves such files.\n"
        "Copy or write it again."
    )
