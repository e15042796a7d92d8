import io
import stat
import zlib

import numpy as np
import pytest
from PIL import Image

from lightning_vos.errors import MaskError
from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette, write_mask

LABELS = np.random.default_rng(0).integers(0, 4, (9, 13)).astype(np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return path


def test_voc_palette():
    colours = np.frombuffer(VOC_PALETTE, dtype=np.uint8).reshape(256, 3)
    wanted = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 9: (192, 0, 0), 255: (224, 224, 192)}
    assert {index: tuple(colours[index].tolist()) for index in wanted} == wanted


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_written_mask_reads_back(tmp_path, dtype):
    path = tmp_path / "new" / "folders" / "00000.png"
    labels = LABELS.astype(dtype)
    labels[0, :2] = 254, 255
    write_mask(path, labels)
    found = read_mask(path, (9, 13))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels)
    found[0, 0] = 1  # what is given belongs to the caller
    with Image.open(path) as image:
        assert (image.mode, image.format, image.tile[0][3]) == ("P", "PNG", "P")
    assert read_palette(path) == VOC_PALETTE
    assert list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR


def test_own_palette_is_kept(tmp_path):
    palette = bytes(reversed(range(256))) * 3
    write_mask(tmp_path / "mask.png", LABELS, palette)
    assert read_palette(tmp_path / "mask.png") == palette


@pytest.mark.parametrize("labels", [np.array([[0, 256]]), np.array([[-1, 3]])])
def test_ids_beyond_8_bits_are_refused(tmp_path, labels):
    with pytest.raises(MaskError, match=rf"mask.png(.|\n)*ids {labels.min()} to {labels.max()}, expected 0 to 255"):
        write_mask(tmp_path / "mask.png", labels)
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file(tmp_path):
    write_mask(tmp_path / "mask.png", LABELS)
    with pytest.raises(TypeError):
        write_mask(tmp_path / "mask.png", np.zeros((2, 2, 2, 2), dtype=np.uint8))
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_mask(tmp_path / "taken", LABELS)  # written, but cannot be renamed over a folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.png", "taken"]
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), LABELS)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_of_any_depth_give_ids(tmp_path, bits):
    labels = LABELS % (2 if bits == 1 else 4)
    image = Image.fromarray(labels)
    image.putpalette(bytes([7, 7, 7, 200, 0, 0, 0, 200, 0, 0, 0, 200]))
    path = save(tmp_path / "mask.png", image, bits=bits)
    np.testing.assert_array_equal(read_mask(path), labels)
    palette = read_palette(path)
    assert len(palette) == 768
    assert palette[:6] == bytes([7, 7, 7, 200, 0, 0])
    assert palette[600:] == VOC_PALETTE[600:]


def test_grey_mask_gives_the_same_ids(tmp_path):
    path = save(tmp_path / "mask.png", Image.fromarray(LABELS))
    np.testing.assert_array_equal(read_mask(path), LABELS)
    assert read_palette(path) is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "I;16"])
def test_pictures_that_hold_no_ids_are_refused(tmp_path, mode):
    path = save(tmp_path / "mask.png", Image.new(mode, (13, 9)))
    with pytest.raises(MaskError, match=rf"mask\.png\n  found PNG of mode {mode}") as error:
        read_mask(path)
    assert "indexed 8-bit PNG" in str(error.value)
    assert len(str(error.value).splitlines()) <= 8
    with pytest.raises(MaskError):
        read_palette(path)


def test_grey_of_few_bits_is_refused_because_its_values_are_stretched(tmp_path):
    path = save(tmp_path / "mask.png", Image.fromarray(LABELS))
    shallow = io.BytesIO()
    image = Image.fromarray(LABELS)
    image.putpalette(VOC_PALETTE[:12])
    image.save(shallow, format="PNG", bits=2)
    data = bytearray(shallow.getvalue())
    data[25] = 0  # the colour type of the header, from palette to grey
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(MaskError, match="L;2"):
        read_mask(path)


def test_lossy_masks_are_refused(tmp_path):
    with pytest.raises(MaskError, match="JPEG"):
        read_mask(save(tmp_path / "mask.jpg", Image.fromarray(LABELS)))


def test_another_size_is_refused_or_resized(tmp_path):
    write_mask(tmp_path / "mask.png", np.array([[1, 2], [3, 250]]))
    with pytest.raises(MaskError, match=r"mask\.png\n  found 2x2, expected 6x4"):
        read_mask(tmp_path / "mask.png", (4, 6))
    resized = read_mask(tmp_path / "mask.png", (4, 6), resize=True)
    np.testing.assert_array_equal(resized, [[1, 1, 1, 2, 2, 2]] * 2 + [[3, 3, 3, 250, 250, 250]] * 2)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(MaskError, match=r"not found: .*mask\.png"):
        read_mask(tmp_path / "mask.png")
    (tmp_path / "mask.png").write_text("no picture")
    with pytest.raises(MaskError, match=r"cannot be read: .*mask\.png"):
        read_mask(tmp_path / "mask.png")
    with pytest.raises(MaskError):
        read_mask(tmp_path)


def test_cut_off_masks_are_never_taken_for_whole(tmp_path):
    write_mask(tmp_path / "whole.png", LABELS)
    data = (tmp_path / "whole.png").read_bytes()
    refused = 0
    for length in range(len(data)):
        (tmp_path / "cut.png").write_bytes(data[:length])
        try:
            np.testing.assert_array_equal(read_mask(tmp_path / "cut.png"), LABELS)  # just the end marks are missing
        except MaskError:
            refused += 1
    assert refused > len(data) - 30
