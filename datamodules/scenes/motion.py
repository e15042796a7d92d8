"""How the camera and the bodies move, as functions of time that are smooth."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.scenes.bodies import turned

Times = NDArray[np.float64]  # (T,), in frames of a video


def sway(rng: np.random.Generator, times: Times, slowest: float = 0.02, fastest: float = 0.3) -> NDArray[np.float64]:
    """(T,) a smooth course between about -1 and 1, 0 at time 0; `slowest` and `fastest` in radians a frame."""
    rates = np.exp(rng.uniform(math.log(slowest), math.log(fastest), (3, 1)))
    phases = rng.uniform(0, math.tau, (3, 1))
    weights = rng.dirichlet(np.ones(3))
    return np.asarray(weights @ (np.sin(rates * times + phases) - np.sin(phases)), np.float64)


@dataclass(frozen=True)
class Camera:
    """Where the camera looks.

    Attributes:
        pan: (T, 2) pixels that things at depth 1 shift by.
        zoom: (T,) factors.
        roll: (T,) radians.
        tilt: (T, 2) how much nearer the right and the lower side come, a pixel.
        middle: (2,) of the frame, pixels.
    """

    pan: NDArray[np.float64]
    zoom: NDArray[np.float64]
    roll: NDArray[np.float64]
    tilt: NDArray[np.float64]
    middle: NDArray[np.float64]

    def view(self, depth: float) -> NDArray[np.float64]:
        """(T, 3, 3) from pixels at rest to pixels of the frame, for things at a depth."""
        count = len(self.zoom)
        away = turned(np.zeros(count), self.middle + self.pan * depth)
        turn = turned(self.roll, np.zeros(2))
        turn[:, :2, :2] *= (self.zoom ** (0.4 + 0.6 * depth))[:, None, None]
        turn[:, 2, :2] = self.tilt * depth
        return np.asarray(away @ turn @ turned(np.zeros(1), -self.middle))


def draw_camera(rng: np.random.Generator, times: Times, height: int, width: int, chance: float) -> Camera:
    """A camera at rest, held by hand, that pans, or that is carried along.

    Args:
        rng: The source of every draw.
        times: When.
        height: Pixels.
        width: Pixels.
        chance: Probability that it moves.
    """
    side, count = min(height, width), len(times)
    moves = rng.random() < chance
    pan = np.zeros((count, 2))
    zoom, roll, tilt = np.ones(count), np.zeros(count), np.zeros((count, 2))
    if moves:
        heading = rng.uniform(0, math.tau)
        speed = side * np.exp(rng.uniform(math.log(0.0005), math.log(0.02)))
        pan += speed * times[:, None] * [math.cos(heading), math.sin(heading) * 0.4]
        pan += side * rng.uniform(0, 0.08) * np.column_stack([sway(rng, times), sway(rng, times)])
        if rng.random() < 0.6:  # by hand
            shake = side * rng.uniform(0, 0.02)
            pan += shake * np.column_stack([sway(rng, times, 0.3, 1.5), sway(rng, times, 0.3, 1.5)])
            roll = roll + rng.uniform(0, 0.04) * sway(rng, times, 0.2, 1.0)
        if rng.random() < 0.4:
            zoom = np.exp(rng.uniform(-0.012, 0.012) * times + rng.uniform(0, 0.1) * sway(rng, times)).clip(0.75, 2)
        if rng.random() < 0.3:
            roll = roll + rng.uniform(0, 0.25) * sway(rng, times)
        if rng.random() < 0.4:
            tilt = np.column_stack([sway(rng, times), sway(rng, times)]) * rng.uniform(0, 0.35) / side
    return Camera(pan, zoom, roll, tilt, np.array([width, height]) / 2)


def draw_path(
    rng: np.random.Generator, start: NDArray[np.float64], times: Times, height: int, width: int, *, is_fast: bool
) -> NDArray[np.float64]:
    """(T, 2) pixels of the frame: on its way, thrown back at the sides, bobbing or wandering."""
    diagonal = math.hypot(height, width)
    speed = diagonal * np.exp(rng.uniform(math.log(0.001), math.log(0.015)))
    if is_fast:
        speed = diagonal * rng.uniform(0.02, 0.06)
    heading = rng.uniform(0, math.tau)
    path = start + speed * times[:, None] * [math.cos(heading), math.sin(heading) * rng.uniform(0.2, 1)]
    path += diagonal * rng.uniform(0, 0.12) * np.column_stack([sway(rng, times), sway(rng, times)])
    if rng.random() < 0.4:
        path[:, 1] -= diagonal * rng.uniform(0, 0.03) * np.abs(np.sin(rng.uniform(0.1, 0.5) * times))
    low = np.array([width, height]) * 0.02
    high = np.array([width, height]) * 0.98
    return np.asarray(low + (high - low) - np.abs((path - low) % (2 * (high - low)) - (high - low)))


def draw_excursion(
    rng: np.random.Generator, path: NDArray[np.float64], radius: float, height: int, width: int
) -> NDArray[np.float64]:
    """The path (T, 2) with a way out over the nearest side of the frame, and most often back."""
    x, y = path[0]
    side = int(np.argmin([x, y, width - x, height - y]))
    axis, outwards = side % 2, 1 if side >= 2 else -1
    edge = (width, height)[axis] if outwards > 0 else 0
    time = np.linspace(0, 1, len(path))
    returns = rng.random() < 0.7
    rise = np.clip(np.minimum(time, 1 - time if returns else 1) / rng.uniform(0.3, 0.6), 0, 1)
    share = rise * rise * (3 - 2 * rise)
    path = path.copy()
    path[:, axis] += share * (edge + outwards * 1.4 * radius - path[:, axis])
    return path


def draw_pose(
    rng: np.random.Generator, times: Times, camera: Camera, *, grows: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(T,) radians and (T, 2) factors along width and height: upright, tilting or spinning; growing, turning away."""
    kind = rng.random()
    if kind < 0.65:
        angle = rng.normal(0, 0.1) + rng.uniform(0, 0.25) * sway(rng, times)
    elif kind < 0.85:
        angle = rng.uniform(0, math.tau) + rng.uniform(0, 0.6) * sway(rng, times)
    else:
        angle = rng.uniform(0, math.tau) + rng.uniform(-0.12, 0.12) * times
    size = np.exp(rng.uniform(0, 0.25) * sway(rng, times))
    if grows:
        size = size * np.exp(rng.choice([-1, 1]) * rng.uniform(0.4, 0.9) * (times / max(times[-1], 1)))
    factors = np.repeat(size[:, None], 2, axis=1) * camera.zoom[:, None]
    if rng.random() < 0.4:  # a body that turns about its upright axis
        turn = rng.uniform(0, 1) + rng.uniform(0.01, 0.12) * times
        factors[:, 0] *= 1 - rng.uniform(0.2, 0.6) * np.sin(turn) ** 2
    return angle + camera.roll, factors
