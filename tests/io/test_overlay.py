import numpy as np
import pytest
from PIL import Image

from lightning_vos.io.overlay import contact_sheet, overlay, write_image

GREY = np.full((8, 10, 3), 100, dtype=np.uint8)


def test_objects_are_tinted_inside_a_line():
    labels = np.zeros((8, 10), dtype=np.int64)
    labels[1:6, 2:8] = 1
    picture = overlay(GREY, labels, opacity=0.25)
    inside, line = np.zeros((8, 10), dtype=bool), labels == 1
    inside[2:5, 3:7] = True
    line &= ~inside
    assert (picture.shape, picture.dtype) == (GREY.shape, np.uint8)
    assert (picture[inside] == [107, 75, 75]).all()  # a quarter of the way to 128, 0, 0
    assert (picture[line] == [128, 0, 0]).all()
    assert (picture[labels == 0] == 100).all()


def test_neighbours_and_the_border():
    """Two objects side by side have a line each; the border of the frame is no contour."""
    labels = np.ones((8, 10), dtype=np.uint8)
    labels[:, 5:] = 255
    palette = bytes(3) + bytes([10, 20, 30]) + bytes(253 * 3) + bytes([250, 240, 230])
    picture = overlay(GREY, labels, palette, opacity=0)
    assert (picture[:, 4] == [10, 20, 30]).all()
    assert (picture[:, 5] == [250, 240, 230]).all()
    assert (np.delete(picture, (4, 5), axis=1) == 100).all()


def test_contact_sheet_shows_every_picture():
    tall, wide = np.full((40, 20, 3), (250, 0, 0), np.uint8), np.full((10, 30, 3), (0, 0, 250), np.uint8)
    sheet = contact_sheet([("first row", [tall, wide]), ("second", [wide])], height=60)
    red, blue = ((sheet == colour).all(-1) for colour in ((250, 0, 0), (0, 0, 250)))
    assert red.sum() == 60 * 30
    assert blue.sum() == 2 * 60 * 180
    assert np.unique(np.nonzero(red)[0]).size == 60
    titles = (sheet == sheet[..., :1]).all(-1) & (sheet[..., 0] < 128)
    written = np.unique(np.nonzero(titles)[0])
    assert written.min() < np.nonzero(red)[0].min()
    assert written.max() > np.nonzero(red)[0].max()


def test_contact_sheet_has_room_for_long_titles():
    picture = np.full((10, 10, 3), 200, dtype=np.uint8)
    title = "a title far longer than the picture below it is wide"
    assert contact_sheet([(title, [picture])], 20).shape[1] > contact_sheet([("short", [picture])], 20).shape[1]
    assert contact_sheet([("no picture", [])], 20).shape[2] == 3


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg"])
def test_written_pictures(tmp_path, name):
    write_image(tmp_path / "new" / name, GREY)
    with Image.open(tmp_path / "new" / name) as image:
        assert np.abs(np.asarray(image).astype(int) - 100).max() <= 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    with pytest.raises(ValueError, match="extension"):
        write_image(tmp_path / "new" / "picture.unknown", GREY)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
