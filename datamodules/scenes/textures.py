"""Procedural textures: noise, patterns, and dead leaves, which have the statistics of natural images."""

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.scenes.palettes import draw_ramp

_Field = NDArray[np.float32]  # (H, W) in [0, 1]


def draw_texture(rng: np.random.Generator, height: int, width: int, palette: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A texture of any kind, (H, W, 3) RGB; some are coarse, some sharp to the pixel."""
    coarse = rng.choice([1.0, 0.7, 0.5], p=[0.45, 0.3, 0.25])
    size = max(math.ceil(height * coarse), 8), max(math.ceil(width * coarse), 8)
    if rng.random() < 0.45:
        texture = dead_leaves(rng, *size, palette)
    else:
        values = draw_field(rng, *size)
        if rng.random() < 0.6:
            share = np.float32(rng.uniform(0.1, 0.6))
            values = values * (1 - share) + share * noise(rng, *size)
        texture = colour_field(rng, values, palette)
    if coarse < 1:
        texture = np.asarray(cv2.resize(texture, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    return texture


def colour_field(rng: np.random.Generator, values: _Field, palette: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The field in colours of the palette, (H, W, 3) RGB."""
    grey = (values * 255).clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(cv2.merge([grey] * 3), draw_ramp(rng, palette)[None]), np.uint8)


def draw_field(rng: np.random.Generator, height: int, width: int) -> _Field:
    """A pattern of any kind, (H, W) in [0, 1]."""
    kinds: list[tuple[float, Callable[[np.random.Generator, int, int], _Field]]] = [
        (0.34, noise),
        (0.1, _marble),
        (0.05, _wood),
        (0.1, _cells),
        (0.09, _stripes),
        (0.04, _checkers),
        (0.05, _bricks),
        (0.05, _dots),
        (0.05, _gradient),
        (0.08, _fur),
        (0.05, _scratches),
    ]
    chosen = rng.choice(len(kinds), p=[weight for weight, _ in kinds])
    return kinds[int(chosen)][1](rng, height, width)


def noise(rng: np.random.Generator, height: int, width: int, slope: float | None = None) -> _Field:
    """Noise of a power spectrum 1/f^slope, by octaves; along one axis sometimes longer than along the other.

    Args:
        rng: The source of every draw.
        height: Pixels.
        width: Pixels.
        slope: From 1, rough, to 3, smooth; drawn if not given.
    """
    slope = rng.uniform(0.8, 2.6) if slope is None else slope
    stretch = np.exp2(rng.uniform(0, 3) * rng.permutation([0.0, 1.0])) if rng.random() < 0.4 else np.ones(2)
    rows, columns = (max(math.ceil(side / factor), 4) for side, factor in zip((height, width), stretch, strict=True))
    octaves = max(int(math.log2(max(rows, columns))) - int(rng.integers(1, 3)), 1)
    gain = 2 ** (-slope / 2)
    values = rng.random((-(-rows >> octaves) + 1, -(-columns >> octaves) + 1), np.float32)
    for octave in range(1, octaves + 1):
        values = _resized(values, values.shape[0] * 2, values.shape[1] * 2)
        values += np.float32(gain**octave) * rng.random(values.shape, np.float32)
    values = _resized(values[:rows, :columns], height, width)
    mean, deviation = cv2.meanStdDev(values)
    scale = 1 / (rng.uniform(3, 5.5) * max(float(deviation[0, 0]), 1e-4))
    values *= np.float32(scale)
    values += np.float32(0.5 - float(mean[0, 0]) * scale)
    return np.clip(values, 0, 1, out=values)


def _resized(values: _Field, height: int, width: int) -> _Field:
    return np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _coordinates(rng: np.random.Generator, height: int, width: int) -> tuple[_Field, _Field]:
    """Turned, and most often bent, coordinates in units of the longer side."""
    angle = rng.uniform(0, math.tau)
    y, x = np.ogrid[:height, :width]
    side = max(height, width)
    u = (x * math.cos(angle) + y * math.sin(angle)).astype(np.float32) / np.float32(side)
    v = (y * math.cos(angle) - x * math.sin(angle)).astype(np.float32) / np.float32(side)
    if rng.random() < 0.7:
        bend = np.float32(rng.uniform(0.02, 0.2))
        u = u + bend * noise(rng, height, width, slope=3.0)
        v = v + bend * noise(rng, height, width, slope=3.0)
    return u, v


def _frequency(rng: np.random.Generator) -> np.float32:
    return np.float32(np.exp(rng.uniform(math.log(3), math.log(24))))


def _marble(rng: np.random.Generator, height: int, width: int) -> _Field:
    u, _ = _coordinates(rng, height, width)
    phase = u * _frequency(rng) * np.float32(3) + np.float32(rng.uniform(4, 16)) * noise(rng, height, width, 2.2)
    return np.float32(0.5) + np.float32(0.5) * np.sin(phase)


def _wood(rng: np.random.Generator, height: int, width: int) -> _Field:
    u, v = _coordinates(rng, height, width)
    u, v = u - np.float32(rng.uniform(-0.5, 1)), v * np.float32(rng.uniform(0.1, 1))
    return (np.sqrt(u * u + v * v) * _frequency(rng) + noise(rng, height, width, 2.0)) % np.float32(1)


def _cells(rng: np.random.Generator, height: int, width: int) -> _Field:
    count = int(np.exp(rng.uniform(math.log(12), math.log(400))))
    seeds = np.ones((height, width), np.uint8)
    seeds[rng.integers(height, size=count), rng.integers(width, size=count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    spread = np.float32(math.sqrt(height * width / count))
    flat = rng.random(int(labels.max()) + 1, np.float32)[labels]
    share = np.float32(rng.uniform(0, 1))
    return np.clip(flat * (1 - share) + share * distance / spread, 0, 1)


def _stripes(rng: np.random.Generator, height: int, width: int) -> _Field:
    u, _ = _coordinates(rng, height, width)
    hardness = np.float32(np.exp(rng.uniform(-0.7, 2)))
    return np.clip(np.float32(0.5) + hardness * np.sin(u * _frequency(rng) * np.float32(math.tau)), 0, 1)


def _checkers(rng: np.random.Generator, height: int, width: int) -> _Field:
    u, v = _coordinates(rng, height, width)
    frequency = _frequency(rng) * np.float32(math.pi)
    return np.clip(np.float32(0.5) + 3 * np.sin(u * frequency) * np.sin(v * frequency), 0, 1)


def _bricks(rng: np.random.Generator, height: int, width: int) -> _Field:
    u, v = _coordinates(rng, height, width)
    frequency = _frequency(rng)
    v = v * frequency
    row = np.floor(v)
    u = u * frequency * np.float32(rng.uniform(0.3, 0.8)) + np.float32(0.5) * (row % np.float32(2))
    column = np.floor(u)
    joint = np.float32(rng.uniform(0.04, 0.12))
    shade = np.float32(0.5) + np.float32(0.45) * np.sin(column * np.float32(12.9) + row * np.float32(78.2))
    return np.asarray(np.where((u - column < joint) | (v - row < 2 * joint), np.float32(0), shade), np.float32)


def _dots(rng: np.random.Generator, height: int, width: int) -> _Field:
    u, v = _coordinates(rng, height, width)
    frequency = _frequency(rng)
    one, half = np.float32(1), np.float32(0.5)
    u, v = u * frequency % one - half, v * frequency % one - half
    return np.clip((np.float32(rng.uniform(0.02, 0.12)) - u * u - v * v) * 40 + np.float32(0.5), 0, 1)


def _gradient(rng: np.random.Generator, height: int, width: int) -> _Field:
    u, _ = _coordinates(rng, height, width)
    low, high = u.min(), u.max()
    return np.broadcast_to((u - low) / max(high - low, 1e-3), (height, width)).astype(np.float32)


def _fur(rng: np.random.Generator, height: int, width: int) -> _Field:
    """Fine noise, smeared along directions that turn slowly."""
    fine = rng.random((height, width), np.float32)
    length = int(rng.integers(5, 16))
    fine = cv2.blur(fine, (length, 1) if rng.random() < 0.5 else (1, length)) * np.float32(2) - np.float32(0.5)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    bend = np.float32(rng.uniform(0.05, 0.35) * max(height, width))
    x += bend * noise(rng, height, width, slope=3.2)
    y += bend * noise(rng, height, width, slope=3.2)
    return np.clip(cv2.remap(fine, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), 0, 1)


def _scratches(rng: np.random.Generator, height: int, width: int) -> _Field:
    grey = (noise(rng, height, width) * 128).astype(np.uint8)
    ends = rng.uniform(-0.2, 1.2, (int(rng.integers(10, 60)), 2)) * [width, height]
    steps = rng.normal(0, 0.25, ends.shape) * [width, height]
    for start, end, value in zip(ends, ends + steps, rng.integers(60, 256, len(ends)).tolist(), strict=True):
        cv2.line(grey, start.astype(int).tolist(), end.astype(int).tolist(), value, 1, cv2.LINE_AA)
    return np.asarray(grey / np.float32(255), np.float32)


def dead_leaves(rng: np.random.Generator, height: int, width: int, palette: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Shapes of power-law sizes that hide one another, each with its own colour and its own piece of a texture.

    Args:
        rng: The source of every draw.
        height: Pixels.
        width: Pixels.
        palette: (K, 3) RGB.
    """
    count = min(int(rng.integers(100, 500)), 20 + height * width // 40)
    side = math.hypot(height, width)
    smallest, largest = rng.uniform(0.005, 0.02), rng.uniform(0.08, 0.35)
    # Density r^-3 between the two, which no scale of the picture stands out from.
    radius = side / np.sqrt(smallest**-2 + rng.random(count) * (largest**-2 - smallest**-2))
    radius[: count // 20] = side * largest * rng.uniform(0.5, 1, count // 20)  # at the back: no bare ground
    points = int(rng.choice([4, 5, 7, 12]))
    angle = np.linspace(0, math.tau, points, endpoint=False) + rng.uniform(0, math.tau, (count, 1))
    reach = radius[:, None] * (1 + rng.uniform(-1, 1, (count, points)) * rng.uniform(0, 0.5))
    stretch = np.exp(rng.normal(0, rng.uniform(0, 0.7), (count, 1)))
    turn = rng.uniform(0, math.tau) + rng.normal(0, rng.uniform(0, 1.5), (count, 1))
    x, y = reach * np.cos(angle) * stretch, reach * np.sin(angle) / stretch
    centre = rng.random((count, 2, 1)) * [[width], [height]]
    outline = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=-1)
    outline = ((outline + centre.transpose(0, 2, 1)) * 16).astype(np.int32)
    leaf = np.zeros((height, width), np.uint16)
    for number, polygon in enumerate(outline, start=1):
        cv2.fillPoly(leaf, [polygon], number, cv2.LINE_8, 4)

    grain = np.float32(rng.uniform(0.1, 0.9)) * (noise(rng, height, width) - np.float32(0.5))
    colours = palette[rng.integers(len(palette), size=count + 1)] * rng.uniform(0.4, 1.5, (count + 1, 1))
    colours = colours.mean(axis=0) + rng.uniform(0.4, 1.3) * (colours - colours.mean(axis=0))
    shade = np.float32(1) + cv2.merge([_shifted(rng, grain, leaf, count)] * 3)
    flat = np.take(colours.astype(np.float32), leaf, axis=0)
    return np.asarray(cv2.convertScaleAbs(cv2.multiply(flat, shade)), np.uint8)


def _shifted(rng: np.random.Generator, grain: _Field, leaf: NDArray[np.uint16], count: int) -> _Field:
    """Each leaf shows its own piece of the grain."""
    height, width = leaf.shape
    offset = rng.integers(height * width, size=count + 1)
    place = np.arange(height * width).reshape(height, width) + offset[leaf]
    return grain.ravel()[place % (height * width)]
