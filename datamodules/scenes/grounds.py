"""Backgrounds of several depths, and what stands in front: canvases that the camera moves over."""

import math
from typing import NamedTuple

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from datamodules.scenes.bodies import Ripple, Skin, cut
from datamodules.scenes.palettes import draw_palette
from datamodules.scenes.shapes import any_shape, blob, box, limb
from datamodules.scenes.textures import colour_field, draw_texture, noise

MARGIN = 0.25  # of the frame's sides, that a canvas is larger by at each end


class Layer(NamedTuple):
    """Scenery at one depth."""

    canvas: NDArray[np.uint8]  # (h, w, 3) RGB, or (h, w, 4) with coverage, the colour multiplied by it
    depth: float  # how far it follows the camera: 0 the sky, 1 where the objects are, above in front of them
    ripple: Ripple | None = None


def draw_backdrop(
    rng: np.random.Generator, height: int, width: int, palette: NDArray[np.float32], light: float
) -> Layer:
    """What is seen behind everything: a texture, a mosaic, a land with a horizon, or a room with clutter.

    Args:
        rng: The source of every draw.
        height: Of the frame, pixels.
        width: Of the frame, pixels.
        palette: (K, 3) RGB.
        light: From where, radians.
    """
    rows, columns = round(height * (1 + 2 * MARGIN)), round(width * (1 + 2 * MARGIN))
    second = draw_palette(rng, 0.12) if rng.random() < 0.6 else palette
    if rng.random() < 0.35:
        canvas = _mosaic(rng, rows, columns, palette, second)
    else:
        horizon = round(rows * rng.uniform(0.15, 0.7))
        canvas = np.empty((rows, columns, 3), np.uint8)
        if rng.random() < 0.3:
            canvas[:horizon] = _sky(rng, horizon, columns)
        else:
            canvas[:horizon] = _mosaic(rng, horizon, columns, second, palette)
        canvas[horizon:] = _floor(rng, rows - horizon, columns, palette)
        if rng.random() < 0.6:
            _ridge(rng, canvas, horizon, second)
    _clutter(rng, canvas, palette, light, int(rng.choice([0, 6, 16, 40], p=[0.2, 0.25, 0.3, 0.25])))
    if rng.random() < 0.4:
        canvas = _dapple(rng, canvas)
    if rng.random() < 0.5:
        strength = np.float32(rng.uniform(30, 160))
        grain = (np.float32(255) - strength * noise(rng, rows, columns, rng.uniform(0.3, 1.5))).astype(np.uint8)
        canvas = np.asarray(cv2.multiply(canvas, cv2.merge([grain] * 3), scale=1.2 / 255), np.uint8)
    side = min(height, width)
    ripple = None
    if rng.random() < 0.15:
        reach, waves = side * rng.uniform(0.003, 0.02), rng.uniform(8, 60) / side
        ripple = Ripple(reach, waves, rng.uniform(0.1, 0.8), rng.uniform(0, math.tau))
    return Layer(canvas, rng.uniform(0.3, 0.9), ripple)


def draw_scenery(
    rng: np.random.Generator, height: int, width: int, palette: NDArray[np.float32], light: float
) -> Layer:
    """Things between the backdrop and the objects: bushes, rocks, boxes, trunks, poles."""
    rows, columns = round(height * (1 + 2 * MARGIN)), round(width * (1 + 2 * MARGIN))
    canvas = np.zeros((rows, columns, 4), np.uint8)
    _clutter(rng, canvas, palette, light, int(rng.integers(1, 9)))
    return Layer(canvas, rng.uniform(0.8, 1.1))


def draw_front(rng: np.random.Generator, height: int, width: int, palette: NDArray[np.float32], light: float) -> Layer:
    """What stands before the objects: grass along the bottom, poles and trunks, or leaves; often out of focus."""
    rows, columns = round(height * (1 + 2 * MARGIN)), round(width * (1 + 2 * MARGIN))
    side = min(height, width)
    canvas = np.zeros((rows, columns, 4), np.uint8)
    skin = _skin(rng, side // 2, palette, light)
    kind = rng.random()
    if kind < 0.45:  # grass, reeds, twigs
        tall = side * rng.uniform(0.1, 0.45)
        blades = [limb(rng, tall, side * rng.uniform(0.005, 0.02), side * 0.003) for _ in range(4)]
        cuts = [cut(rng, [blade], skin, 0) for blade in blades]
        for x in rng.uniform(0, columns, int(rng.integers(8, 50))):
            place = x, rows * (1 - MARGIN * 0.7)
            _paste(canvas, cuts[int(rng.integers(4))], place, math.pi + rng.normal(0, 0.35), rng.uniform(0.4, 1.2))
    elif kind < 0.8:
        for _ in range(int(rng.integers(1, 5))):
            wide = side * np.exp(rng.uniform(math.log(0.01), math.log(0.08)))
            pole = cut(rng, [limb(rng, rows * 1.2, wide, wide * rng.uniform(0.7, 1))], skin, 0)
            tilt = rng.normal(0, 0.1) if rng.random() < 0.7 else rng.uniform(0, math.tau)
            _paste(canvas, pole, (rng.uniform(0.1, 0.9) * columns, -0.1 * rows), tilt, 1.0)
    else:
        middle = rng.uniform(0, 1, 2) * [columns, rows]
        size = side * rng.uniform(0.03, 0.1)
        cuts = [cut(rng, [blob(rng, size, size * rng.uniform(0.3, 0.7), 0.15)], skin, 0) for _ in range(3)]
        for _ in range(int(rng.integers(5, 25))):
            x, y = middle + rng.normal(0, 0.15 * side, 2)
            _paste(canvas, cuts[int(rng.integers(3))], (x, y), rng.uniform(0, math.tau), rng.uniform(0.5, 1.2))
    if rng.random() < 0.5:
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.005, 0.025) * side + 0.3), np.uint8)
    return Layer(canvas, rng.uniform(1.05, 1.8))


def draw_veil(rng: np.random.Generator, height: int, width: int, palette: NDArray[np.float32]) -> Layer:
    """What lies over everything without hiding it: shade that bodies move through, or the reflection in a window."""
    rows, columns = round(height * (1 + 2 * MARGIN)), round(width * (1 + 2 * MARGIN))
    canvas = np.zeros((rows, columns, 4), np.uint8)
    if rng.random() < 0.8:
        dark = np.clip((noise(rng, rows, columns, rng.uniform(2, 3)) - np.float32(0.5)) * 8 + np.float32(0.5), 0, 1)
        canvas[..., 3] = dark * np.float32(rng.uniform(40, 125))
        return Layer(canvas, 1.0)
    cover = rng.uniform(0.08, 0.25)
    canvas[..., :3] = draw_texture(rng, rows, columns, palette) * np.float32(cover)
    canvas[..., 3] = round(255 * cover)
    return Layer(canvas, 0.1)


def _mosaic(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    palette: NDArray[np.float32],
    other: NDArray[np.float32],
) -> NDArray[np.uint8]:
    """One texture, or regions of two."""
    first = draw_texture(rng, rows, columns, palette)
    if rng.random() < 0.5:
        return first
    second = draw_texture(rng, rows, columns, other)
    return np.where((noise(rng, rows, columns, 2.4) > rng.uniform(0.35, 0.65))[..., None], first, second)


def _dapple(rng: np.random.Generator, canvas: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Sun and shade on the ground: of leaves above, of houses, of clouds."""
    rows, columns = canvas.shape[:2]
    field = noise(rng, rows, columns, rng.uniform(1.6, 3))
    edge = np.float32(rng.uniform(2, 15))
    lit = np.clip((field - np.float32(rng.uniform(0.35, 0.65))) * edge + np.float32(0.5), 0, 1)
    dark = np.float32(rng.uniform(0.35, 0.8))
    light = ((dark + (1 - dark) * lit) * 255).astype(np.uint8)
    return np.asarray(cv2.multiply(canvas, cv2.merge([light] * 3), scale=rng.uniform(1, 1.3) / 255), np.uint8)


def _sky(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    hue = rng.uniform(195, 225) if rng.random() < 0.8 else rng.uniform(10, 50)
    hsv = np.array(
        [[hue, rng.uniform(0.05, 0.6), rng.uniform(0.5, 1)], [hue, rng.uniform(0, 0.3), rng.uniform(0.7, 1)]]
    )
    ends = cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0] * 255
    down = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    sky = ends[0] * (1 - down) + ends[1] * down
    clouds = np.clip(noise(rng, rows, columns, 2.4) * 2 - np.float32(rng.uniform(0.6, 1.8)), 0, 1)[..., None]
    return np.asarray(sky + clouds * (np.float32(rng.uniform(180, 255)) - sky), np.float32).astype(np.uint8)


def _floor(rng: np.random.Generator, rows: int, columns: int, palette: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A plane that goes away from the camera."""
    texture = draw_texture(rng, rows, columns, palette)
    far = rng.uniform(0.15, 1)
    corners = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], np.float32)
    middle = columns * rng.uniform(0.3, 0.7)
    seen = corners.copy()
    seen[:2, 0] = middle + (seen[:2, 0] - middle) * far  # squeezed together at the horizon
    seen[2:, 0] = middle + (seen[2:, 0] - middle) * rng.uniform(1, 2)
    matrix = cv2.getPerspectiveTransform(corners, seen)
    return np.asarray(cv2.warpPerspective(texture, matrix, (columns, rows), borderMode=cv2.BORDER_REFLECT), np.uint8)


def _ridge(rng: np.random.Generator, canvas: NDArray[np.uint8], horizon: int, palette: NDArray[np.float32]) -> None:
    """Hills, hedges, trees or houses on the horizon."""
    rows, columns = canvas.shape[:2]
    tall = rows * rng.uniform(0.05, 0.35)
    line = noise(rng, 4, columns, rng.uniform(0.5, 3))[0]
    if rng.random() < 0.3:
        line = np.repeat(line[:: max(columns // int(rng.integers(6, 20)), 1)], max(columns // 6, 1))[:columns]
        line = np.pad(line, (0, columns - len(line)), mode="edge")
    top = horizon - line * tall
    above = max(int(top.min()), 0)
    height = min(horizon + 2, rows) - above
    if height < 8:
        return
    texture = colour_field(rng, noise(rng, height, columns), palette)
    if rng.random() < 0.6:
        texture = draw_texture(rng, height, columns, palette)
    shown = np.arange(above, above + height)[:, None] >= top
    canvas[above : above + height][shown] = texture[shown]


def _clutter(
    rng: np.random.Generator, canvas: NDArray[np.uint8], palette: NDArray[np.float32], light: float, count: int
) -> None:
    """Pastes things that stand about, small ones more often than large ones; several are alike but for their size."""
    if not count:
        return
    rows, columns = canvas.shape[:2]
    side = min(rows, columns) / (1 + 2 * MARGIN)
    skins = [_skin(rng, math.ceil(side / 3), palette, light) for _ in range(int(rng.integers(1, 3)))]
    size = side * 0.08
    cuts = []
    for _ in range(min(count, 6)):
        kind = rng.random()
        if kind < 0.2:
            outline, spread = limb(rng, size * rng.uniform(2, 10), size * 0.4, size * rng.uniform(0.2, 0.4)), 0.12
            outline = -outline  # upwards
        elif kind < 0.4:
            outline, spread = box(rng, size, size * rng.uniform(0.4, 2.5)), 0.1
        else:
            outline, spread = any_shape(rng, size, size * rng.uniform(0.4, 1.2)), 0.6
        cuts.append((cut(rng, [outline], skins[int(rng.integers(len(skins)))], 0), spread))
    ground = rows * rng.uniform(0.2, 0.9)
    for _ in range(count):
        piece, spread = cuts[int(rng.integers(len(cuts)))]
        place = rng.uniform(0, columns), ground + rng.normal(0, 0.2) * rows
        _paste(canvas, piece, place, rng.normal(0, spread), min(0.35 / math.sqrt(rng.uniform(0.01, 1)), 3))


def _skin(rng: np.random.Generator, side: int, palette: NDArray[np.float32], light: float) -> Skin:
    texture = draw_texture(rng, max(side, 12), max(side, 12), palette)
    strength = rng.uniform(0, 0.5)
    return Skin((texture,), (strength * math.cos(light), strength * math.sin(light)), rng.uniform(0, 1))


def _paste(
    canvas: NDArray[np.uint8],
    piece: tuple[NDArray[np.uint8], tuple[float, float]],
    place: tuple[float, float],
    angle: float,
    scale: float,
) -> None:
    """Lays a cut part over the canvas with its origin at a place, as far as it lies in it."""
    patch, corner = piece
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    shift = [place[0] + cosine * corner[0] - sine * corner[1], place[1] + sine * corner[0] + cosine * corner[1]]
    height, width = patch.shape[:2]
    xs = [shift[0] + cosine * x - sine * y for x in (0, width) for y in (0, height)]
    ys = [shift[1] + sine * x + cosine * y for x in (0, width) for y in (0, height)]
    left, upper = max(math.floor(min(xs)), 0), max(math.floor(min(ys)), 0)
    right, lower = min(math.ceil(max(xs)), canvas.shape[1]), min(math.ceil(max(ys)), canvas.shape[0])
    if left >= right or upper >= lower:
        return
    matrix = np.array([[cosine, -sine, shift[0] - left], [sine, cosine, shift[1] - upper]])
    drawn = cv2.warpAffine(patch, matrix, (right - left, lower - upper))
    lay_over(canvas[upper:lower, left:right], drawn)


def lay_over(below: NDArray[np.uint8], patch: MatLike) -> None:
    """Lays a patch of premultiplied colour over pixels of the same height and width, of three or four channels."""
    channels = below.shape[2]
    rest = cv2.merge([cv2.bitwise_not(patch[..., 3])] * channels)
    kept = cv2.multiply(np.ascontiguousarray(below), rest, scale=1 / 255)
    below[:] = cv2.add(kept, np.ascontiguousarray(patch[..., :channels]))
