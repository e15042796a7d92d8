"""Scenes drawn at random, wide enough in their kinds that what learns on them meets real video half prepared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.difficulties import measured_tags
from datamodules.rendering import RenderedClip, spread_apart
from datamodules.scenes.bodies import Body, draw_body, draw_skin, turned
from datamodules.scenes.film import Film
from datamodules.scenes.grounds import draw_backdrop, draw_front, draw_scenery, draw_veil
from datamodules.scenes.motion import Camera, Times, draw_camera, draw_excursion, draw_path, draw_pose
from datamodules.scenes.palettes import draw_palette
from datamodules.scenes.stage import Actor, Ground, Optics
from lightning_vos.errors import ConfigError

_TRIES = 50
_LEAST = 1 / 400  # share of the frame, of an object in frame 0
_SHOWN = 0.4  # share of an object that nothing hides there


@dataclass(frozen=True)
class SceneSettings:
    """What scenes show; all but the first two are probabilities of a clip.

    Attributes:
        max_objects: A clip shows one to this many objects that are labelled.
        max_gap: Frames follow one another by one to this many frames of a video; drawn for each clip up to how many.
        camera: The camera moves.
        camouflage: An object has the colours of its surroundings.
        look_alike: A second body is made of what an object is made of; half of them carry no label.
        companion: Of several objects, one is carried by another, as a rider.
        occluder: Something stands in front.
        leaving: An object leaves the frame, and most often returns.
        fast: An object moves by 2 to 6 % of the diagonal a frame of a video.
    """

    max_objects: int = 3
    max_gap: int = 10
    camera: float = 0.8
    camouflage: float = 0.4
    look_alike: float = 0.3
    companion: float = 0.25
    occluder: float = 0.35
    leaving: float = 0.12
    fast: float = 0.15

    def __post_init__(self) -> None:
        """Refuse what cannot be rendered."""
        chances = self.camera, self.camouflage, self.look_alike, self.companion, self.occluder, self.leaving, self.fast
        if not 1 <= self.max_objects <= 10 or self.max_gap < 1 or min(chances) < 0 or max(chances) > 1:
            raise ValueError(
                f"{self}: expected max_objects of 1 to 10, max_gap of at least 1 and probabilities between 0 and 1"
            )


class _Cast(NamedTuple):
    """The bodies of a scene."""

    bodies: Sequence[Body]
    places: Sequence[NDArray[np.float64]]  # (T, 3, 3) each, from pixels about its middle to pixels of the frame
    candidates: Sequence[int]  # the numbers, from 1 on, of those that may carry a label
    twins: tuple[int, ...]  # the numbers of the two that look all but the same, or none


_DEFAULTS = SceneSettings()


def render_scene(
    seed: int, index: int, frames: int, height: int, width: int, settings: SceneSettings = _DEFAULTS
) -> RenderedClip:
    """Render one clip, a function of its arguments alone.

    Args:
        seed: Chooses the set.
        index: Chooses the clip of the set.
        frames: Length of the clip, at least 2.
        height: Pixels, at least 64.
        width: Pixels, at least 64.
        settings: What scenes show.

    Returns:
        The clip. A pixel is of the object that is in front there, where that covers half of it or more. Frame 0 shows
        1/400 of its pixels or more of each object, and two fifths or more of what of the object is in the frame.

    Raises:
        ConfigError: The clip is too short or too small.
    """
    if frames < 2 or min(height, width) < 64:
        raise ConfigError(
            f"No scene of {frames} frames of {height} x {width} pixels can be rendered: "
            "expected 2 frames or more, of 64 x 64 pixels or more."
        )
    rng = np.random.default_rng([seed, index])
    for _ in range(_TRIES):
        clip = _render(rng, frames, height, width, settings)
        if clip is not None:
            return clip
    raise ConfigError(f"None of {_TRIES} scenes of {height} x {width} pixels shows an object in frame 0.")


def _render(
    rng: np.random.Generator, frames: int, height: int, width: int, settings: SceneSettings
) -> RenderedClip | None:
    """A clip, or None if frame 0 shows no object."""
    most = int(rng.integers(1, settings.max_gap + 1))
    times = np.concatenate([[0.0], rng.integers(1, most + 1, frames - 1).cumsum()])
    camera = draw_camera(rng, times, height, width, settings.camera)
    palette = draw_palette(rng, 0.12)
    light = rng.normal(-math.pi / 2, 0.6) if rng.random() < 0.7 else rng.uniform(0, math.tau)  # most often from above
    cast = _draw_cast(rng, times, camera, palette, light, height, width, settings)
    stage = _set_stage(rng, times, camera, cast, palette, light, height, width, settings)
    film = Film(rng, times, height, width)

    images = np.empty((frames, height, width, 3), np.uint8)
    top = np.zeros((frames, height, width), np.uint8)
    silhouettes = np.zeros((len(cast.bodies), frames, height, width), np.bool)
    view = np.empty((height, width, 3), np.uint8)
    for time in range(frames):
        for one in stage:
            if isinstance(one, Actor):
                one.draw(view, top[time], silhouettes[one.number - 1, time], time)
            else:
                one.draw(view, top[time], time)
        images[time] = film.develop(view, time)

    pixels = np.bincount(top[0].ravel(), minlength=len(cast.bodies) + 1)
    objects = [
        number
        for number in cast.candidates
        if pixels[number] >= max(_LEAST * height * width, _SHOWN * silhouettes[number - 1, 0].sum())
    ]
    if not objects:
        return None
    labels = np.zeros(len(cast.bodies) + 1, np.uint8)
    labels[objects] = 1 + np.arange(len(objects))
    twins = cast.twins if set(cast.twins) & set(objects) else ()
    tags = measured_tags(silhouettes, top, objects, twins, combinations(twins, 2))
    return RenderedClip(images, labels[top], tags)


def _draw_cast(
    rng: np.random.Generator,
    times: Times,
    camera: Camera,
    palette: NDArray[np.float32],
    light: float,
    height: int,
    width: int,
    settings: SceneSettings,
) -> _Cast:
    """Objects, the double of one, and bodies without a label."""
    chances = np.array([0.4, 0.3, 0.2, *[0.1] * 7])[: settings.max_objects]
    objects = 1 + int(rng.choice(len(chances), p=chances / chances.sum()))
    others = int(rng.choice([0, 1, 2, 4], p=[0.4, 0.3, 0.2, 0.1]))
    side = min(height, width)
    largest = 0.65 / objects**0.4
    radii = side * np.exp(rng.uniform(math.log(0.15), math.log(largest), objects))
    radii = np.append(radii, side * np.exp(rng.uniform(math.log(0.05), math.log(0.25), others)))
    skins = [draw_skin(rng, radius, palette if rng.random() < settings.camouflage else None, light) for radius in radii]
    bodies = [draw_body(rng, skin, radius, times) for skin, radius in zip(skins, radii, strict=True)]
    candidates = list(range(1, objects + 1))
    twins: tuple[int, ...] = ()
    if rng.random() < settings.look_alike:
        # The very same body, or another one of the same skin and build of its own.
        bodies.append(bodies[0] if rng.random() < 0.6 else draw_body(rng, skins[0], radii[0], times))
        radii = np.append(radii, radii[0])
        twins = 1, len(bodies)
        if objects < settings.max_objects and rng.random() < 0.5:
            candidates.append(len(bodies))

    starts = spread_apart(rng, radii.clip(max=0.3 * side), height, width)
    is_crowded = rng.random() < 0.3
    places: list[NDArray[np.float64]] = []
    for number, (start, radius) in enumerate(zip(starts, radii, strict=True)):
        if is_crowded:
            start = starts[0] + rng.normal(0, 1.2 * radii[0], 2) * (number > 0)
        is_carried = number == 1 and objects > 1 and rng.random() < settings.companion
        angle, factors = draw_pose(rng, times, camera, grows=rng.random() < 0.3)
        if is_carried:
            offset = rng.uniform(-0.6, 0.6, 2) * radii[0] - [0, 0.5 * radii[0]]
            place = places[0] @ turned(0.2 * angle, offset)
        else:
            if rng.random() < (0.15 if number < objects else 0.65):  # it stays where it is in the world
                path = (camera.view(1.0) @ np.append(start, 1))[:, :2]
            else:
                path = draw_path(rng, start, times, height, width, is_fast=rng.random() < settings.fast)
            if number == 0 and rng.random() < settings.leaving:
                path = draw_excursion(rng, path, radius, height, width)
            place = turned(angle, path)
            place[:, :2, :2] *= factors[:, None, :]
        places.append(place)
    return _Cast(bodies, places, candidates, twins)


def _set_stage(
    rng: np.random.Generator,
    times: Times,
    camera: Camera,
    cast: _Cast,
    palette: NDArray[np.float32],
    light: float,
    height: int,
    width: int,
    settings: SceneSettings,
) -> list[Ground | Actor]:
    """All that is drawn, from back to front."""
    side = min(height, width)
    optics = Optics(
        shutter=rng.uniform(0.2, 1) if rng.random() < 0.6 else 0.0,
        shadow=rng.uniform(0.15, 0.6) if rng.random() < 0.5 else 0.0,
        lean=(rng.normal(0, 0.7), rng.choice([-1, 1]) * rng.uniform(0.12, 0.45)),
        mirror=rng.uniform(0.1, 0.5) if rng.random() < 0.12 else 0.0,
    )
    focus = side * rng.uniform(0.002, 0.01) if rng.random() < 0.12 else 0.0
    stage: list[Ground | Actor] = [
        Actor(number + 1, cast.bodies[number], cast.places[number], focus, times, optics)
        for number in rng.permutation(len(cast.bodies)).tolist()
    ]
    for _ in range(int(rng.choice(3, p=[0.45, 0.4, 0.15]))):
        scenery = draw_scenery(rng, height, width, palette, light)
        place = 0 if rng.random() < 0.75 else int(rng.integers(len(stage) + 1))
        stage.insert(place, Ground(scenery, camera, times, optics))
    backdrop = draw_backdrop(rng, height, width, palette, light)
    if rng.random() < 0.25:
        blurred = cv2.GaussianBlur(backdrop.canvas, (0, 0), side * rng.uniform(0.004, 0.02) + 0.2)
        backdrop = backdrop._replace(canvas=np.asarray(blurred, np.uint8))
    stage.insert(0, Ground(backdrop, camera, times, optics))
    if rng.random() < 0.25:
        stage.append(Ground(draw_veil(rng, height, width, palette), camera, times, optics))
    if rng.random() < settings.occluder:
        stage.append(Ground(draw_front(rng, height, width, palette, light), camera, times, optics))
    return stage
