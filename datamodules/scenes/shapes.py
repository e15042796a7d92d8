"""Outlines of parts, as (K, 2) points about their middle, x to the right and y down."""

import math

import numpy as np
from numpy.typing import NDArray

Outline = NDArray[np.float64]


def blob(rng: np.random.Generator, x: float, y: float, roughness: float) -> Outline:
    """A closed curve about an ellipse of half axes `x` and `y`."""
    angle = np.linspace(0, math.tau, 40, endpoint=False)
    order = np.arange(2, 8)[:, None]
    wave = rng.normal(0, roughness, order.shape) / order * np.sin(order * angle + rng.uniform(0, math.tau, order.shape))
    return np.column_stack([x * np.cos(angle), y * np.sin(angle)]) * (1 + wave.sum(axis=0)).clip(0.3)[:, None]


def box(rng: np.random.Generator, x: float, y: float) -> Outline:
    """A rectangle with corners more or less round, and with slanted sides."""
    angle = np.linspace(0, math.tau, 40, endpoint=False) + 0.01
    power = rng.uniform(0.08, 0.5)
    cosine, sine = np.cos(angle), np.sin(angle)
    corners = np.column_stack([x * np.sign(cosine) * abs(cosine) ** power, y * np.sign(sine) * abs(sine) ** power])
    corners[:, 0] *= 1 + rng.uniform(-0.35, 0.35) * corners[:, 1] / y
    return corners


def polygon(rng: np.random.Generator, x: float, y: float) -> Outline:
    """Three to seven corners."""
    count = int(rng.integers(3, 8))
    angle = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * (math.tau / count) + rng.uniform(0, math.tau)
    reach = rng.uniform(0.7, 1.15, (count, 1))
    return np.column_stack([x * np.cos(angle), y * np.sin(angle)]) * reach


def star(rng: np.random.Generator, x: float, y: float) -> Outline:
    """A star, a flower or a splash."""
    count = int(rng.integers(3, 9))
    angle = np.linspace(0, math.tau, 64, endpoint=False)
    reach = 1 - rng.uniform(0.2, 0.6) * np.abs(np.sin(angle * count / 2)) ** rng.uniform(0.4, 2)
    return np.column_stack([x * np.cos(angle), y * np.sin(angle)]) * reach[:, None]


def limb(rng: np.random.Generator, length: float, start: float, end: float) -> Outline:
    """From the origin `length` downwards, of half widths `start` and `end`, bulging a little."""
    along = np.linspace(0, 1, 9)
    half = start + (end - start) * along + rng.uniform(-0.1, 0.25) * start * np.sin(along * math.pi)
    half[[0, -1]] *= 0.6
    side = np.column_stack([half, along * length])
    return np.concatenate([side, side[::-1] * [-1, 1]])


def any_shape(rng: np.random.Generator, x: float, y: float) -> Outline:
    """A blob, box, polygon or star."""
    kind = rng.choice(4, p=[0.5, 0.22, 0.18, 0.1])
    if kind == 0:
        return blob(rng, x, y, rng.uniform(0, 0.5))
    return (box, polygon, star)[int(kind) - 1](rng, x, y)
