"""The decoder of label maps against Pillow, on files put together by hand and on files that are broken."""

import io
import itertools
import struct
import tracemalloc
import zlib
from contextlib import suppress

import cv2
import numpy as np
import pytest
from PIL import Image

from lightning_vos.errors import MaskError
from lightning_vos.io import png
from lightning_vos.io.png import NotIndexedError, read_colours, read_indices

GREY, INDEXED = 0, 3
# First column and row, and the steps between columns and rows, of the seven passes of an interlaced image.
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
SIZES = [(1, 1), (1, 9), (9, 1), (8, 8), (11, 13), (5, 260)]


@pytest.fixture(params=["deflate", "zlib"], autouse=True)
def inflating(request, monkeypatch):
    """With the package `deflate` and without it."""
    if request.param == "zlib":
        monkeypatch.setattr(png, "zlib_decompress", None)
    elif png.zlib_decompress is None:
        pytest.skip("the package deflate is not installed")


def chunk(name, content=b""):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def filtered(rows, kind):
    """Rows of bytes, each behind the number of its filter; bytes to the left and above are taken off them."""
    rows = rows.astype(np.int64)
    left = np.pad(rows, ((0, 0), (1, 0)))[:, :-1]
    above = np.pad(rows, ((1, 0), (0, 0)))[:-1]
    corner = np.pad(rows, ((1, 0), (1, 0)))[:-1, :-1]
    from_left, from_above, from_corner = (np.abs(left + above - corner - value) for value in (left, above, corner))
    nearest = np.where(
        (from_left <= from_above) & (from_left <= from_corner), left, np.where(from_above <= from_corner, above, corner)
    )
    predicted = [0 * rows, left, above, (left + above) // 2, nearest]
    kinds = np.arange(len(rows)) % 5 if kind == "mixed" else np.full(len(rows), kind)
    stored = [np.append(k, (row - predicted[k][y]) % 256) for y, (k, row) in enumerate(zip(kinds, rows, strict=True))]
    return np.array(stored, np.uint8).tobytes()


def packed(labels, depth):
    """Rows of bytes that hold 8 / depth values each, the first in the highest bits."""
    bits = np.unpackbits(labels[..., None], axis=2)[..., -depth:].reshape(len(labels), -1)
    return np.packbits(bits, axis=1)


def pixels(labels, depth=8, kind=0, interlaced=False):
    if not interlaced:
        return filtered(packed(labels, depth), kind)
    passes = (labels[y::down, x::right] for x, y, right, down in ADAM7)
    return b"".join(filtered(packed(part, depth), kind) for part in passes if part.size)


def header(width, height, depth=8, colour=INDEXED, interlaced=False):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def wrapped(head, stream, *, pieces=1, palette=b"", more=()):
    """A PNG of a stream in pieces."""
    step = -(-len(stream) // pieces)
    data = [chunk(b"IDAT", stream[start : start + step]) for start in range(0, len(stream), step)]
    colours = [chunk(b"PLTE", palette)] if palette else []
    return b"".join([b"\x89PNG\r\n\x1a\n", head, *colours, *more, *data, chunk(b"IEND")])


def built(labels, depth=8, colour=INDEXED, kind=0, interlaced=False, **options):
    head = header(labels.shape[1], labels.shape[0], depth, colour, interlaced)
    palette = bytes(range(3 * 2**depth)) if depth < 8 else bytes(range(256)) * 3
    stream = zlib.compress(pixels(labels, depth, kind, interlaced))
    return wrapped(head, stream, **{"palette": palette if colour == INDEXED else b""} | options)


def drawn(size, depth=8):
    return np.random.default_rng(size).integers(0, 2**depth, size).astype(np.uint8)


def pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode in ("P", "L", "1")
        return np.array(image)


def agree(data, labels):
    """Pillow checks the test's own encoder, too."""
    np.testing.assert_array_equal(pillow(data), labels)
    found = read_indices(data, "mask.png")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("interlaced", [False, True])
def test_indices_of_every_depth_filter_and_order(size, depth, interlaced):
    labels = drawn(size, depth)
    for kind in (0, 1, 2, 3, 4, "mixed"):
        agree(built(labels, depth, kind=kind, interlaced=interlaced), labels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interlaced", [False, True])
def test_grey_values_are_ids(size, interlaced):
    labels = drawn(size)
    for kind in (0, 1, 2, 3, 4, "mixed"):
        agree(built(labels, colour=GREY, kind=kind, interlaced=interlaced), labels)


@pytest.mark.parametrize("pieces", [2, 3, 50])
@pytest.mark.parametrize("kind", [0, 4])
@pytest.mark.parametrize("colour", [GREY, INDEXED])
def test_several_pieces_and_chunks_of_no_concern(pieces, kind, colour):
    labels = drawn((40, 60))
    notes = [chunk(b"tEXt", b"Comment\0IDAT"), chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"pHYs", bytes(9))]
    if colour == INDEXED:
        notes.append(chunk(b"tRNS", bytes(256)))
    agree(built(labels, colour=colour, kind=kind, pieces=pieces, more=notes), labels)


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("strategy", [0, 1, 2, 3, 4])
def test_grey_files_of_opencv(level, strategy):
    labels = drawn((37, 50)) % 4
    options = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_STRATEGY, strategy]
    agree(cv2.imencode(".png", labels, options)[1].tobytes(), labels)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("optimize", [False, True])
def test_indexed_files_of_pillow(bits, optimize):
    labels = drawn((37, 50), bits)
    image = Image.fromarray(labels)
    image.putpalette(bytes(range(3 * 2**bits)) if bits < 8 else bytes(range(256)) * 3)
    file = io.BytesIO()
    image.save(file, format="PNG", bits=bits, optimize=optimize)
    agree(file.getvalue(), labels)


def test_an_index_beyond_the_palette_is_still_an_id():
    labels = drawn((11, 13))
    for kind in (0, 1):
        np.testing.assert_array_equal(read_indices(built(labels, kind=kind, palette=bytes(6)), "x"), labels)


def test_colours():
    labels = drawn((3, 4), 1)
    for palette in (bytes(range(3)), bytes(range(6)), bytes(range(256)) * 3):
        assert read_colours(built(labels, palette=palette), "x") == palette
    assert read_colours(built(labels, colour=GREY), "x") == b""
    with pytest.raises(NotIndexedError):
        read_colours(wrapped(header(3, 4, 8, 2), zlib.compress(bytes(40))), "x")


@pytest.mark.parametrize(
    ("colour", "depth", "mode"),
    [
        (0, 1, "mode 1"),
        (0, 2, "mode L;2"),
        (0, 4, "mode L;4"),
        (0, 16, "mode I;16"),
        (2, 8, "mode RGB"),
        (2, 16, "mode 2 with 16 bits"),
        (4, 8, "mode LA"),
        (4, 16, "mode 4 with 16 bits"),
        (6, 8, "mode RGBA"),
        (6, 16, "mode 6 with 16 bits"),
    ],
)
def test_every_other_kind_of_picture_is_refused_by_name(colour, depth, mode):
    data = wrapped(header(3, 2, depth, colour), zlib.compress(bytes(100)))
    with pytest.raises(NotIndexedError, match=rf"not object ids: gt/a/00000\.png\n  found PNG of {mode}\n") as error:
        read_indices(data, "gt/a/00000.png")
    assert len(str(error.value).splitlines()) <= 8


def refused(data):
    with pytest.raises(MaskError) as error:
        read_indices(data, "a/00003.png")
    assert not isinstance(error.value, NotIndexedError)
    lines = str(error.value).splitlines()
    assert lines[0] == "Mask that cannot be read: a/00003.png"
    assert lines[1].startswith("  found ")
    assert len(lines) <= 8
    return lines[1]


FILES = {
    "indexed": {},
    "filtered": {"kind": 4},
    "interlaced": {"interlaced": True},
    "grey": {"colour": GREY},
    "few bits": {"depth": 2},
}


@pytest.mark.parametrize("options", FILES.values(), ids=FILES)
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_file_that_is_cut_off_is_never_taken_for_whole(options, pieces):
    labels = drawn((7, 9), 2)
    data = built(labels, pieces=pieces, **options)
    content_ends = data.rindex(b"IEND") - 8
    for length in range(len(data)):
        if length < content_ends:
            refused(data[:length])
        else:  # all pixels are there, some mark of the end is not
            with suppress(MaskError):
                np.testing.assert_array_equal(read_indices(data[:length], "x"), labels)


@pytest.mark.parametrize("options", FILES.values(), ids=FILES)
def test_a_changed_byte_is_noticed_or_harmless(options):
    labels = drawn((7, 9), 2)
    data = built(labels, pieces=2, **options)
    for position in range(data.index(b"IDAT") - 4, len(data)):
        broken = bytearray(data)
        broken[position] ^= 1 << position % 8
        with suppress(MaskError):
            np.testing.assert_array_equal(read_indices(bytes(broken), "x"), labels)


def test_a_changed_byte_among_the_pixels_is_noticed():
    data = built(drawn((7, 9)))
    place = data.index(b"IDAT") + 20
    refused(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])


def test_whatever_stands_in_the_header_nothing_but_a_clean_error_comes_of_it():
    data = built(drawn((7, 9), 2))
    for position, change in itertools.product(range(33), (0x01, 0x02, 0x10, 0x80, 0xFF)):
        broken = bytearray(data)
        broken[position] ^= change
        with suppress(MaskError):
            read_indices(bytes(broken), "x")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "0 bytes without an image"),
        (b"\x89PNG\r\n\x1a\n", "8 bytes without an image"),
        (b"no picture at all, but a text that is longer than a header", "no PNG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "48 bytes without an image"),
    ],
)
def test_what_is_no_png(data, found):
    assert refused(data) == f"  found {found}"


def test_a_jpeg_is_told_apart():
    with pytest.raises(NotIndexedError, match="found a JPEG"):
        read_indices(cv2.imencode(".jpg", np.zeros((9, 9), np.uint8))[1].tobytes(), "x")


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1), (2**16, 2**16)])
@pytest.mark.parametrize("colour", [GREY, INDEXED])
def test_a_size_that_cannot_be_is_not_believed(size, colour):
    found = refused(wrapped(header(*size, colour=colour), zlib.compress(bytes(8)), palette=bytes(3)))
    assert found == f"  found a header that says {size[0]}x{size[1]} pixels"


@pytest.mark.parametrize("options", FILES.values(), ids=FILES)
def test_more_or_fewer_pixels_than_the_header_says(options):
    """Pixels of another number of rows; of grey and odd files the decoder of OpenCV ignores what is too many."""
    labels = drawn((8, 9), 2)
    data = built(labels, **options)
    sizes = [(9, 9), (9, 8000), (200, 8)]
    if options in ({}, {"depth": 2}):
        sizes += [(9, 7), (1, 1)]
    for width, height in sizes:
        head = header(width, height, options.get("depth", 8), options.get("colour", INDEXED), "interlaced" in options)
        refused(data[:8] + head + data[33:])


def bomb(head, first=b""):
    """Pixels of 100 MB for a few."""
    packer = zlib.compressobj()
    stream = packer.compress(first) + b"".join(packer.compress(bytes(10**6)) for _ in range(100)) + packer.flush()
    return wrapped(head, stream, palette=bytes(3))


@pytest.mark.parametrize(
    ("depth", "colour", "interlaced"), [(8, INDEXED, 0), (1, INDEXED, 0), (8, INDEXED, 1), (8, GREY, 0)]
)
@pytest.mark.parametrize("first", [b"", b"\x04"])
def test_a_small_file_cannot_fill_the_memory(depth, colour, interlaced, first):
    data = bomb(header(4, 4, depth, colour, interlaced), first)
    assert len(data) < 200_000
    tracemalloc.start()
    try:
        with suppress(MaskError):
            assert read_indices(data, "x").shape == (4, 4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(data)


@pytest.mark.parametrize("content", [b"", b"\x00", b"no stream of zlib", zlib.compress(b"")])
@pytest.mark.parametrize("options", FILES.values(), ids=FILES)
def test_pixels_that_are_nothing(content, options):
    whole = built(drawn((4, 4), 2), **options)
    before, _, _ = whole.partition(whole[whole.index(b"IDAT") - 4 :])
    refused(before + chunk(b"IDAT", content) + chunk(b"IEND"))
    refused(before + chunk(b"IEND"))
