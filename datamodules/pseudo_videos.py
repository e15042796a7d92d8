"""Videos made of one image: each frame is the image, moved and coloured anew, and its mask moved with it.

Three published generators, drawn here with OpenCV: the two ways of HODOR, the turned images of TAFormer, and the
augmented copies of SeqFormer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.transforms import MEAN_COLOUR

Motion = Literal["hodor", "hodor_basic", "hodor_fancy", "rotation", "seqformer"]
Pixels = NDArray[np.uint8]
Matrix = NDArray[np.float64]  # 3 x 3: where a pixel (x, y, 1) of the image comes to lie

_BLACK = (0, 0, 0)
_CROPS = (0.6, 0.7, 0.8)  # of HODOR, shares of height and of width


def pseudo_video(
    motion: Motion, image: Pixels, labels: Pixels, length: int, rng: np.random.Generator, min_area: float = 0.0
) -> tuple[Pixels, Pixels]:
    """Make a clip of an image.

    `hodor` draws one of `hodor_basic` and `hodor_fancy` with equal chances. Both first shift the colours of the image,
    once for the clip, flip half of the clips, and fill with the mean colour of ImageNet.

    `hodor_basic`: the first frame is the image. Each other one is, with equal chances, an affine motion (shift up to
    25 % of each side, turn up to 20 degrees, shear up to 10), a perspective (corners moved inwards by the size of a
    normal draw of a deviation of 0.10 to 0.12 of each side), or a crop of the same 10 to 25 % from all sides.

    `hodor_fancy`: the first frame is a crop that keeps at least half of every object, and more than `min_area` pixels
    of it; where none of 0.6, 0.7, 0.8 of each side does at a random place, the smallest of 0.6 to 0.9 that holds all
    objects; else the image. Each other frame is a crop at a random place, of one of 0.6, 0.7, 0.8 for the clip, and
    half of them are turned by up to 10 degrees and sheared by up to 5.

    `rotation`, of TAFormer: every frame is turned by itself by up to 20 degrees over black.

    `seqformer`: the image and copies of it in random order, each with a perspective of deviation 0.08, a shift up to
    10 %, a turn up to 20 degrees, over black, with hue and saturation shifted by up to 5, brightness by up to 40, and,
    one in four, a motion blur of 9 or 11 pixels.

    Args:
        motion: Which generator.
        image: (H, W, 3) RGB.
        labels: (H, W) label map, 0 = background; every object shows a pixel.
        length: Frames in the clip.
        rng: The source of every draw.
        min_area: As above, in pixels of the image.

    Returns:
        Frames (length, H, W, 3) RGB and masks (length, H, W).
    """
    if motion == "hodor":
        motion = "hodor_basic" if rng.random() < 0.5 else "hodor_fancy"
    height, width = labels.shape
    match motion:
        case "rotation":
            turns = [[affine(rng, height, width, turn=20)] for _ in range(length)]
            return _moved([image] * length, labels, turns, _BLACK, cv2.INTER_LINEAR)
        case "seqformer":
            order = rng.permutation(length)  # where the image itself comes is random
            copies = [_coloured_copy(image, rng) if time else image for time in order]
            steps = [_copied(rng, height, width) if time else [] for time in order]
            return _moved(copies, labels, steps, _BLACK, cv2.INTER_LINEAR)
        case "hodor_basic":
            steps = [[], *([_basic(rng, height, width)] for _ in range(length - 1))]
            method = cv2.INTER_LINEAR
        case _:
            share = float(rng.choice(_CROPS))
            steps = [
                first_crop(labels, rng, min_area),
                *(_fancy(rng, height, width, share) for _ in range(length - 1)),
            ]
            method = cv2.INTER_CUBIC
    frames, masks = _moved([draw_colours(rng, 25).shift(image)] * length, labels, steps, MEAN_COLOUR, method)
    if rng.random() < 0.5:
        return frames[:, :, ::-1].copy(), masks[:, :, ::-1].copy()
    return frames, masks


class Colours(NamedTuple):
    """A shift of the colours of an image, as HODOR draws them."""

    hue: float  # in 256ths of the circle
    saturation: float  # in 256ths
    contrast: float  # factor on the distance from grey
    brightness: float  # in 256ths

    def shift(self, image: Pixels) -> Pixels:
        """The (H, W, 3) RGB image in other colours."""
        shifted = shift_hue_and_saturation(image, self.hue, self.saturation)
        values = (np.arange(256) - 128) * self.contrast + 128 + self.brightness
        return np.asarray(cv2.LUT(shifted, np.clip(np.rint(values), 0, 255).astype(np.uint8)), np.uint8)


def draw_colours(rng: np.random.Generator, brightness: float) -> Colours:
    """HODOR's shifts: hue and saturation by 12 of 256, contrast 0.95 to 1.05, brightness up to so much either way."""
    return Colours(
        hue=rng.uniform(-12, 12),
        saturation=rng.uniform(-12, 12),
        contrast=rng.uniform(0.95, 1.05),
        brightness=rng.uniform(-brightness, brightness),
    )


def shift_hue_and_saturation(image: Pixels, hue: float, saturation: float) -> Pixels:
    """Shift the hue, round the circle, and the saturation of an RGB image, both in 256ths of their ranges."""
    values = np.arange(256, dtype=np.float32)
    table = np.stack([(values + hue) % 256, np.clip(values + saturation, 0, 255), values], axis=-1).astype(np.uint8)
    planes = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL), table[None])
    return np.asarray(cv2.cvtColor(planes, cv2.COLOR_HSV2RGB_FULL), np.uint8)


def _moved(
    images: list[Pixels], labels: Pixels, steps: Sequence[Sequence[Matrix]], fill: tuple[int, int, int], method: int
) -> tuple[Pixels, Pixels]:
    """Each image and the labels by its own steps, one after the other: what a step moves out of sight is lost."""
    frames, masks = [], []
    for image, matrices in zip(images, steps, strict=True):
        frame, mask = image, labels
        for matrix in matrices:
            frame = warped(frame, matrix, method, fill)
            mask = warped(mask, matrix, cv2.INTER_NEAREST, (0,))
        frames.append(frame)
        masks.append(mask)
    return np.stack(frames), np.stack(masks)


def warped(
    pixels: Pixels,
    matrix: Matrix,
    method: int,
    fill: tuple[int, ...] | None,
    size: tuple[int, int] | None = None,
) -> Pixels:
    """Move the pixels of an image or a label map.

    Args:
        pixels: (H, W, 3) or (H, W).
        matrix: Where they come to lie.
        method: The interpolation, as OpenCV numbers it.
        fill: The colour of what has no source; None repeats the edge.
        size: Height and width of the result; those of `pixels` if not given.
    """
    height, width = size or pixels.shape[:2]
    border = cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT
    moved = cv2.warpPerspective(
        pixels, matrix, (width, height), flags=method, borderMode=border, borderValue=fill or (0,)
    )
    return np.asarray(moved, np.uint8)


def _coloured_copy(image: Pixels, rng: np.random.Generator) -> Pixels:
    """SeqFormer's colours and blur."""
    copy = shift_hue_and_saturation(image, rng.uniform(-5, 5), rng.uniform(-5, 5))
    values = np.clip(np.rint(np.arange(256) + rng.uniform(-40, 40)), 0, 255).astype(np.uint8)
    copy = np.asarray(cv2.LUT(copy, values), np.uint8)
    if rng.random() >= 0.25:
        return copy
    side = int(rng.choice([9, 11]))
    line = np.zeros((side, side), np.float32)
    line[side // 2] = 1
    middle = ((side - 1) / 2, (side - 1) / 2)
    line = np.asarray(cv2.warpAffine(line, cv2.getRotationMatrix2D(middle, rng.uniform(0, 360), 1), (side, side)))
    return np.asarray(cv2.filter2D(copy, -1, line / line.sum()), np.uint8)


def _basic(rng: np.random.Generator, height: int, width: int) -> Matrix:
    match int(rng.integers(3)):
        case 0:
            return affine(rng, height, width, turn=20, shear=10, shift=0.25)
        case 1:
            return perspective(rng, height, width, rng.uniform(0.10, 0.12))
        case _:
            cut = rng.uniform(0.10, 0.25)
            return _window(cut * width, cut * height, 1 - 2 * cut)


def _fancy(rng: np.random.Generator, height: int, width: int, share: float) -> list[Matrix]:
    left, top = rng.uniform(0, 1 - share, 2) * (width, height)
    crop = _window(left, top, share)
    return [crop, affine(rng, height, width, turn=10, shear=5)] if rng.random() < 0.5 else [crop]


def _copied(rng: np.random.Generator, height: int, width: int) -> list[Matrix]:
    return [perspective(rng, height, width, 0.08), affine(rng, height, width, turn=20, shift=0.10)]


def affine(
    rng: np.random.Generator, height: int, width: int, *, turn: float, shear: float = 0.0, shift: float = 0.0
) -> Matrix:
    """A shear, then a turn about the middle, then a shift; degrees and shares of the sides, uniform either way."""
    angle, lean = np.radians(rng.uniform(-1, 1, 2) * (turn, shear))
    right, down = rng.uniform(-shift, shift, 2) * (width, height)
    x, y = (width - 1) / 2, (height - 1) / 2
    to_middle = np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]])
    leaning = np.array([[1, math.tan(lean), 0], [0, 1, 0], [0, 0, 1]])
    cosine, sine = math.cos(angle), math.sin(angle)
    turning = np.array([[cosine, -sine, x + right], [sine, cosine, y + down], [0, 0, 1]])
    return np.asarray(turning @ leaning @ to_middle, np.float64)


def perspective(rng: np.random.Generator, height: int, width: int, deviation: float) -> Matrix:
    """The four corners, moved inwards by the sizes of normal draws (shares of the sides), become those of the frame."""
    inwards = np.abs(rng.normal(0, deviation, (4, 2))).clip(max=0.45)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    sides = np.array([width - 1, height - 1])
    drawn = np.where(corners == 0, inwards, 1 - inwards) * sides
    return np.asarray(
        cv2.getPerspectiveTransform(drawn.astype(np.float32), (corners * sides).astype(np.float32)), np.float64
    )


def _window(left: float, top: float, share: float) -> Matrix:
    """A crop from (left, top), in pixels, of that share of each side, enlarged to the whole."""
    scale = 1 / share
    corner = 0.5 * scale - 0.5  # pixel centres lie at half a pixel from the edge
    return np.array([[scale, 0, corner - left * scale], [0, scale, corner - top * scale], [0, 0, 1.0]])


def first_crop(labels: Pixels, rng: np.random.Generator, min_area: float) -> list[Matrix]:
    """HODOR's crop of the first frame, enlarged to the whole; nothing where there is none that keeps the objects.

    Args:
        labels: (H, W) label map of the frame.
        rng: The source of every draw.
        min_area: A crop at a random place keeps more than this of every object, in pixels, and at least half of it.
    """
    height, width = labels.shape
    for share in _CROPS:
        rows, columns = round(share * height), round(share * width)
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        if keeps_objects(labels, labels[top : top + rows, left : left + columns], min_area):
            return [_window(left, top, share)]
    ys, xs = np.nonzero(labels)
    for share in (*_CROPS, 0.9):
        rows, columns = round(share * height), round(share * width)
        first = np.maximum([xs.max() + 1 - columns, ys.max() + 1 - rows], 0)
        last = np.minimum([xs.min(), ys.min()], [width - columns, height - rows])
        if (first <= last).all():
            left, top = rng.integers(first, last, endpoint=True)
            return [_window(left, top, share)]
    return []


def keeps_objects(labels: Pixels, moved: Pixels, min_area: float) -> bool:
    """Whether every object of a label map shows half of its pixels, and more than `min_area`, after it was moved."""
    area = np.bincount(labels.ravel(), minlength=256)
    kept = np.bincount(moved.ravel(), minlength=256)
    enough = (kept >= area / 2) & (kept > min_area)
    return bool(enough[1:][area[1:] > 0].all())
