"""Puts layers and bodies into the frame, each with the blur of its own motion."""

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from datamodules.scenes.bodies import Body, Ripple, turned
from datamodules.scenes.grounds import MARGIN, Layer, lay_over
from datamodules.scenes.motion import Camera, Times

_LONGEST_BLUR = 0.08  # of the frame's diagonal


@dataclass(frozen=True)
class Optics:
    """What a scene does to all that is in it.

    Attributes:
        shutter: How long it is open, as a share of the time between two frames of a video.
        shadow: How dark shadows on the ground are, 0 to 1.
        lean: The shear of shadows, and their height as a share of the body's.
        mirror: How clearly the ground reflects, 0 to 1.
    """

    shutter: float
    shadow: float
    lean: tuple[float, float]
    mirror: float


@dataclass(frozen=True)
class Ground:
    """A layer before the camera."""

    layer: Layer
    camera: Camera
    times: Times
    optics: Optics

    def draw(self, view: NDArray[np.uint8], top: NDArray[np.uint8], time: int) -> None:
        """Lay the layer over the (H, W, 3) view, and clear the numbers (H, W) of what it hides."""
        height, width = view.shape[:2]
        matrix = self._matrices[time]
        fill = cv2.BORDER_REFLECT if self.layer.canvas.shape[2] == 3 else cv2.BORDER_CONSTANT
        if matrix[2, :2].any():
            seen = cv2.warpPerspective(self.layer.canvas, matrix, (width, height), borderMode=fill)
        else:
            seen = cv2.warpAffine(self.layer.canvas, matrix[:2], (width, height), borderMode=fill)
        if self.layer.ripple is not None:
            seen = _rippled(seen, self.layer.ripple, self.times[time], (0.0, 0.0), 1.0, fill)
        kernel = _streak(self._motion[time], math.hypot(height, width))
        if kernel is not None:
            seen = cv2.filter2D(seen, -1, kernel)
        if seen.shape[2] == 3:
            view[:] = seen
        else:
            lay_over(view, seen)
            top[seen[..., 3] >= 128] = 0

    @cached_property
    def _matrices(self) -> NDArray[np.float64]:
        canvas = self.layer.canvas
        margin = np.array([canvas.shape[1], canvas.shape[0]]) * (MARGIN / (1 + 2 * MARGIN))
        return np.asarray(self.camera.view(self.layer.depth) @ turned(np.zeros(1), -margin))

    @cached_property
    def _motion(self) -> NDArray[np.float64]:
        middle = self.camera.view(self.layer.depth) @ np.append(self.camera.middle, 1)
        return _exposed(middle[:, :2], self.times, self.optics)


@dataclass(frozen=True)
class Actor:
    """A body on its way.

    Attributes:
        number: Its own, from 1 on.
        body: Its parts.
        place: (T, 3, 3) from pixels about its middle to pixels of the frame.
        focus: Sigma of its defocus, pixels; 0 is sharp.
        times: When.
        optics: Of the scene.
    """

    number: int
    body: Body
    place: NDArray[np.float64]
    focus: float
    times: Times
    optics: Optics

    def draw(self, view: NDArray[np.uint8], top: NDArray[np.uint8], whole: NDArray[np.bool], time: int) -> None:
        """Lay the body over the (H, W, 3) view; `top` notes where it is in front, `whole` where it is at all."""
        height, width = view.shape[:2]
        kernel = _streak(self._motion[time], math.hypot(height, width))
        margin = math.ceil(2 * self.focus + (0 if kernel is None else len(kernel) / 2) + self._reach[time])
        extent = self._extent[time]
        lefts, uppers, rights, lowers = zip(*extent, strict=True)
        x0, y0 = max(min(lefts) - margin, 0), max(min(uppers) - margin, 0)
        x1, y1 = min(max(rights) + margin, width), min(max(lowers) + margin, height)
        if x0 >= x1 or y0 >= y1:
            return
        seen = np.zeros((y1 - y0, x1 - x0, 4), np.uint8)
        for patch, matrix, sides in zip(self.body.patches, self._matrices[time], extent, strict=True):
            left, upper, right, lower = max(sides[0], x0), max(sides[1], y0), min(sides[2], x1), min(sides[3], y1)
            if left >= right or upper >= lower:
                continue
            moved = matrix[:2].copy()
            moved[:, 2] -= left, upper
            drawn = cv2.warpAffine(patch, moved, (right - left, lower - upper))
            lay_over(seen[upper - y0 : lower - y0, left - x0 : right - x0], drawn)
        if self.body.bend is not None:
            x, y = self.place[time, :2, 2].tolist()
            seen = _rippled(
                seen, self.body.bend, self.times[time], (x - x0, y - y0), self._scale[time], cv2.BORDER_CONSTANT
            )
        if kernel is not None:
            seen = cv2.filter2D(seen, -1, kernel, borderType=cv2.BORDER_CONSTANT)
        if self.focus:
            seen = cv2.GaussianBlur(seen, (0, 0), self.focus)
        if self.optics.mirror:
            self._reflect(view, seen, time, x0, y0)
        if self.optics.shadow:
            self._shade(view, seen[..., 3], time, x0, y0)
        lay_over(view[y0:y1, x0:x1], seen)
        covered = seen[..., 3] >= 128
        whole[y0:y1, x0:x1] = covered
        top[y0:y1, x0:x1][covered] = self.number

    @cached_property
    def _matrices(self) -> NDArray[np.float64]:
        return np.asarray(self.place[:, None] @ self.body.local)  # (T, P, 3, 3)

    @cached_property
    def _extent(self) -> list[list[list[int]]]:
        """Of every frame and part the left, the upper, the right and the lower end, pixels."""
        sizes = np.array([patch.shape[1::-1] for patch in self.body.patches], np.float64)
        corners = np.ones((len(sizes), 3, 4))
        corners[:, :2] = sizes[:, :, None] * [[0, 1, 0, 1], [0, 0, 1, 1]]
        ends = (self._matrices @ corners)[:, :, :2]
        least, most = np.floor(ends.min(axis=-1)) - 1, np.ceil(ends.max(axis=-1)) + 1
        return np.concatenate([least, most], axis=-1).astype(int).tolist()

    @cached_property
    def _scale(self) -> NDArray[np.float64]:
        return np.abs(np.linalg.det(self.place[:, :2, :2])) ** 0.5 * self.body.radius

    @cached_property
    def _reach(self) -> NDArray[np.float64]:
        """(T,) how far bending moves a pixel at most."""
        return self._scale * (0 if self.body.bend is None else self.body.bend.reach)

    @cached_property
    def _motion(self) -> NDArray[np.float64]:
        return _exposed(self.place[:, :2, 2], self.times, self.optics)

    def _foot(self, time: int) -> NDArray[np.float64]:
        """Where the body stands, pixels: below its middle, whichever way it is turned."""
        down = float(np.linalg.norm(self.place[time, :2, 1])) * self.body.foot
        return self.place[time, :2, 2] + [0, down]

    def _shade(self, view: NDArray[np.uint8], alpha: NDArray[np.uint8], time: int, left: int, top: int) -> None:
        height, width = view.shape[:2]
        shear, flat = self.optics.lean
        y = self._foot(time)[1]
        matrix = np.array([[1, shear * flat, left - shear * flat * (y - top)], [0, flat, y - flat * (y - top)]])
        rows = np.array([0, alpha.shape[0]]) * flat + matrix[1, 2]
        upper, lower = max(int(rows.min()) - 3, 0), min(int(rows.max()) + 4, height)
        if upper >= lower:
            return
        matrix[1, 2] -= upper
        shadow = cv2.warpAffine(alpha, matrix, (width, lower - upper))
        size = 2 * int(0.06 * self._scale[time]) + 3
        shadow = cv2.blur(shadow, (size, size))
        light = cv2.convertScaleAbs(shadow, None, self.optics.shadow, 0)
        light = cv2.bitwise_not(light)
        part = view[upper:lower]
        part[:] = cv2.multiply(part, cv2.merge([light] * 3), scale=1 / 255)

    def _reflect(self, view: NDArray[np.uint8], seen: NDArray[np.uint8], time: int, left: int, top: int) -> None:
        height, width = view.shape[:2]
        foot = self._foot(time)[1]
        upper = int(np.clip(foot, 0, height))
        if upper >= height:
            return
        matrix = np.array([[1, 0, left], [0, -1, 2 * foot - top - upper]])
        faint = cv2.convertScaleAbs(seen, None, self.optics.mirror, 0)
        lay_over(view[upper:], cv2.warpAffine(faint, matrix, (width, height - upper)))


def _rippled(
    seen: MatLike, ripple: Ripple, time: float, middle: tuple[float, float], unit: float, fill: int
) -> MatLike:
    """Sways rows along x and columns along y; `unit` is the unit of length of the ripple, in pixels."""
    now, waves, reach = ripple.phase + ripple.rate * time, ripple.waves / unit, ripple.reach * unit
    height, width = seen.shape[:2]
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    along_x = reach * np.sin((y - middle[1]) * waves + now)
    along_y = reach * np.sin((x - middle[0]) * waves + 1.3 * now + 1)
    from_x, from_y = x[None] + along_x[:, None], y[:, None] + along_y[None]
    return cv2.remap(seen, from_x.astype(np.float32), from_y.astype(np.float32), cv2.INTER_LINEAR, borderMode=fill)


def _exposed(place: NDArray[np.float64], times: Times, optics: Optics) -> NDArray[np.float64]:
    """(T, 2) how far a place (T, 2) moves while the shutter is open."""
    return np.asarray(np.gradient(place, times, axis=0) * optics.shutter)


def _streak(motion: NDArray[np.float64], diagonal: float) -> NDArray[np.float32] | None:
    """A kernel that smears along a motion, pixels; None where it is too short to be seen."""
    length = float(np.hypot(*motion))
    if length < 1.5:
        return None
    motion = motion * min(1, _LONGEST_BLUR * diagonal / length)
    half = math.ceil(float(np.abs(motion).max()) / 2)
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.uint8)
    ends = [tuple(((half + sign * motion / 2) * 16).astype(int).tolist()) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 255, 1, cv2.LINE_AA, 4)
    return kernel.astype(np.float32) / np.float32(max(int(kernel.sum()), 1))
