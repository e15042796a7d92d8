"""From what is in view to what a camera stores: light, lens, sensor and compression."""

import math

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray


class Film:
    """Light, tone and flaws of one clip, drawn once.

    Args:
        rng: The source of every draw, here and of each frame.
        times: (T,) of the frames, in frames of a video.
        height: Pixels.
        width: Pixels.
    """

    def __init__(self, rng: np.random.Generator, times: NDArray[np.float64], height: int, width: int) -> None:
        self.rng = rng
        self.colours = self._draw_colours(times)
        self.curve = self._draw_curve()
        self.exposure: float | None = None
        self.vignette = self._draw_vignette(height, width) if rng.random() < 0.4 else None
        sigma = rng.uniform(0, 1) ** 3 * 10
        self.noise = self._draw_noise(height, width, sigma) if sigma > 1 else None
        self.sharpening = rng.uniform(0.2, 1) if rng.random() < 0.3 else 0.0
        self.softness = rng.uniform(0.4, 1) if rng.random() < 0.25 else 0.0
        self.quality = int(rng.integers(25, 96)) if rng.random() < 0.7 else None
        self.reduced = rng.uniform(0.5, 0.9) if rng.random() < 0.15 else 1.0

    def develop(self, view: NDArray[np.uint8], time: int) -> NDArray[np.uint8]:
        """The (H, W, 3) RGB frame of a view.

        Args:
            view: (H, W, 3) RGB.
            time: The number of the frame.
        """
        height, width = view.shape[:2]
        if self.exposure is None:  # the camera measures the first frame
            few = view[::4, ::4]
            wanted = self.rng.uniform(75, 150) / max(float(few.mean()), 1.0)
            allowed = self.rng.uniform(200, 330) / max(float(np.percentile(few, 97)), 1.0)
            self.exposure = max(min(wanted, allowed, 4.0), 0.5)
        image: MatLike = cv2.transform(view, self.colours[time] * np.float32(self.exposure))
        if self.vignette is not None:
            image = cv2.multiply(image, self.vignette, scale=1 / 255)
        if self.reduced < 1:
            small = cv2.resize(image, None, fx=self.reduced, fy=self.reduced, interpolation=cv2.INTER_AREA)
            image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        if self.softness:
            image = cv2.GaussianBlur(image, (3, 3), self.softness)
        if self.noise is not None:
            row, column = self.rng.integers(0, 17, 2).tolist()
            grain = self.noise[row : row + height, column : column + width]
            image = cv2.add(image, grain, dtype=cv2.CV_8U)
        image = cv2.LUT(image, self.curve)
        if self.sharpening:
            image = cv2.addWeighted(
                image, 1 + self.sharpening, cv2.GaussianBlur(image, (5, 5), 1.0), -self.sharpening, 0
            )
        if self.quality is not None:
            stored = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self.quality])[1]
            image = np.asarray(cv2.imdecode(stored, cv2.IMREAD_COLOR))
        return np.asarray(image, np.uint8)

    def _draw_colours(self, times: NDArray[np.float64]) -> NDArray[np.float32]:
        """(T, 3, 3) that take RGB to RGB: saturation, white balance, brightness and how they change."""
        rng = self.rng
        saturation = rng.uniform(0.35, 1.2) if rng.random() < 0.9 else rng.uniform(0, 0.3)
        luminance = np.array([0.299, 0.587, 0.114])
        mix = saturation * np.eye(3) + (1 - saturation) * luminance
        balance = np.exp(rng.normal(0, 0.08, 3))
        change = rng.normal(0, 0.12) if rng.random() < 0.4 else 0.0
        wave = np.sin(rng.uniform(0.02, 0.3) * times + rng.uniform(0, math.tau))
        gain = np.exp(rng.normal(0, 0.1) + change * wave)
        return (gain[:, None, None] * (balance[:, None] * mix)).astype(np.float32)

    def _draw_curve(self) -> NDArray[np.uint8]:
        """(1, 256) gamma and contrast, with blacks and whites more or less full."""
        rng = self.rng
        values = np.linspace(0, 1, 256) ** np.exp(rng.normal(0, 0.2))
        strength = rng.uniform(0, 0.8)
        values = values + strength * (values * values * (3 - 2 * values) - values)
        low, high = rng.uniform(0, 0.12) * (rng.random() < 0.4), 1 - rng.uniform(0, 0.2) * (rng.random() < 0.4)
        return np.asarray((low + (high - low) * values)[None] * 255, np.uint8)

    def _draw_vignette(self, height: int, width: int) -> NDArray[np.uint8]:
        y, x = np.ogrid[:height, :width]
        off = self.rng.normal(0, 0.1, 2)
        distance = ((x / width - 0.5 - off[0]) ** 2 + (y / height - 0.5 - off[1]) ** 2) * 2
        shade = (1 - self.rng.uniform(0.1, 0.6) * distance.clip(0, 1)) * 255
        return np.asarray(cv2.merge([shade.astype(np.uint8)] * 3), np.uint8)

    def _draw_noise(self, height: int, width: int, sigma: float) -> NDArray[np.int8]:
        """Larger than a frame, so that frames take different pieces; chroma noise is coarser."""
        size = height + 16, width + 16
        grain = self.rng.standard_normal((*size, 1), np.float32)
        half = self.rng.standard_normal((size[0] // 2 + 1, size[1] // 2 + 1, 3), np.float32)
        chroma = cv2.resize(half, size[::-1], interpolation=cv2.INTER_LINEAR)
        return np.asarray((sigma * (grain + np.float32(self.rng.uniform(0, 1)) * chroma)).clip(-127, 127), np.int8)
