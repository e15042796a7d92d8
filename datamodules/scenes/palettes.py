"""Colours of scenes: those of nature, those of paint, and how a value between 0 and 1 becomes one."""

import cv2
import numpy as np
from numpy.typing import NDArray

# (weight, least and largest hue in degrees, saturation, value)
_FAMILIES = {
    "leaves": (0.22, (60, 140), (0.15, 0.65), (0.08, 0.65)),
    "earth": (0.16, (12, 42), (0.15, 0.6), (0.1, 0.6)),
    "straw": (0.09, (28, 55), (0.12, 0.5), (0.4, 0.9)),
    "stone": (0.18, (0, 360), (0.0, 0.12), (0.12, 0.8)),
    "water": (0.1, (170, 235), (0.08, 0.55), (0.15, 0.95)),
    "snow": (0.06, (0, 360), (0.0, 0.07), (0.7, 1.0)),
    "fur": (0.09, (8, 36), (0.2, 0.6), (0.15, 0.9)),
    "dark": (0.1, (0, 360), (0.0, 0.3), (0.02, 0.25)),
    "paint": (0.0, (0, 360), (0.35, 0.95), (0.2, 0.95)),
}
_RANGES = np.array([ranges for _, *ranges in _FAMILIES.values()])  # (F, 3, 2)
_WEIGHTS = np.array([weight for weight, *_ in _FAMILIES.values()])


def draw_palette(rng: np.random.Generator, paint: float) -> NDArray[np.float32]:
    """Three to seven colours of one to three families, (K, 3) RGB in [0, 255].

    Args:
        rng: The source of every draw.
        paint: Probability that a family is the saturated colours of any hue.
    """
    chances = np.where(_WEIGHTS > 0, _WEIGHTS * (1 - paint), paint)
    families = rng.choice(len(chances), int(rng.integers(1, 4)), p=chances / chances.sum())
    ranges = _RANGES[rng.choice(families, int(rng.integers(3, 8)))]
    hsv = ranges[..., 0] + rng.random(ranges.shape[:2]) * (ranges[..., 1] - ranges[..., 0])
    return np.asarray(cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0] * 255, np.float32)


def draw_ramp(rng: np.random.Generator, palette: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A course through some of the colours, soft or in steps, of high or low contrast: (256, 3) RGB."""
    chosen = palette[rng.integers(len(palette), size=int(rng.integers(2, 6)))]
    stops = chosen + rng.normal(0, 8, chosen.shape) + rng.normal(0, 30, (len(chosen), 1))
    stops = stops.mean(axis=0) + rng.uniform(0.4, 1.5) * (stops - stops.mean(axis=0))
    places = np.sort(rng.random(len(stops)))
    values = np.linspace(0, 1, 256)
    if rng.random() < 0.2:
        values = np.round(values * 8) / 8
    course = np.stack([np.interp(values, places, channel) for channel in stops.T], axis=-1)
    return course.clip(0, 255).astype(np.uint8)
