"""Pictures for people: masks over frames, and sheets of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lightning_vos.io.masks import VOC_PALETTE
from lightning_vos.io.writing import written_beside

GAP = 4  # pixels between the pictures of a sheet
TITLE = 16  # pixels, the size of the letters


def overlay(
    frame: NDArray[np.uint8], labels: NDArray[np.integer], palette: bytes = VOC_PALETTE, opacity: float = 0.5
) -> NDArray[np.uint8]:
    """Tint each object in its colour and draw a line of one pixel along the inside of its contour.

    Args:
        frame: (H, W, 3) RGB.
        labels: (H, W) label map of ids 0 to 255, 0 = background.
        palette: 768 bytes, RGB of each id.
        opacity: Share of the colour inside an object, in [0, 1]; the line has all of it.

    Returns:
        (H, W, 3) RGB.
    """
    colours = np.frombuffer(palette, dtype=np.uint8).reshape(256, 3)[labels]
    contour = np.zeros(labels.shape, dtype=bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    contour[:, 1:] |= across
    contour[:, :-1] |= across
    contour[1:] |= down
    contour[:-1] |= down
    share = np.where(contour, 1.0, opacity) * (labels > 0)
    return np.round(frame + share[..., None] * (colours.astype(np.float64) - frame)).astype(np.uint8)


def contact_sheet(rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]], height: int = 160) -> NDArray[np.uint8]:
    """Put rows of pictures on one white sheet, a title above each row.

    Args:
        rows: At least one title with its (H, W, 3) RGB pictures, of any sizes.
        height: Of each picture on the sheet, in pixels; widths follow.

    Returns:
        (H, W, 3) RGB.
    """
    font = ImageFont.load_default(TITLE)
    scaled = [[_scale(picture, height) for picture in pictures] for _, pictures in rows]
    widths = [sum(picture.shape[1] + GAP for picture in pictures) for pictures in scaled]
    titles = [GAP + int(font.getlength(title)) for title, _ in rows]
    step = TITLE + height + 3 * GAP
    sheet = Image.new("RGB", (GAP + max(*widths, *titles), len(rows) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for top, (title, _), pictures in zip(range(0, sheet.height, step), rows, scaled, strict=True):
        draw.text((GAP, top + GAP), title, fill="black", font=font, anchor="lt")
        left = GAP
        for picture in pictures:
            sheet.paste(Image.fromarray(picture), (left, top + TITLE + 2 * GAP))
            left += picture.shape[1] + GAP
    return np.array(sheet)


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a picture; the file appears at once and whole.

    Args:
        path: A .png or .jpg; its parents are created.
        image: (H, W, 3) RGB.
    """
    with written_beside(path) as temporary:
        Image.fromarray(image).save(temporary, quality=92)


def _scale(picture: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
