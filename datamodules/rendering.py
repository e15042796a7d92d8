"""Small synthetic videos of textured objects, rendered with NumPy and OpenCV alone."""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.difficulties import PERCEPTIBLE, measured_tags
from lightning_vos.errors import ConfigError

_TRIES = 50  # nearly every first one will do


@dataclass(frozen=True)
class Difficulty:
    """How often a clip is meant to show each difficulty, as probabilities.

    A clip that is meant to show a crossing shows two or three objects that are all but the same, which meet in mid-clip
    and part again, and nothing of the other difficulties on purpose.
    """

    occlusion: float = 0.2
    disappearance: float = 0.25
    scale: float = 0.35
    look_alike: float = 0.3
    speed: float = 0.15
    crossing: float = 0.0


class RenderedClip(NamedTuple):
    """A video with its truth."""

    frames: NDArray[np.uint8]  # (T, H, W, 3) RGB
    masks: NDArray[np.uint8]  # (T, H, W), objects are 1..N, each seen in the first frame; 0 is background
    tags: tuple[str, ...]  # the difficulties that its masks show, in the order of `TAGS`


class Look(NamedTuple):
    """What two look-alikes have in common."""

    shape: str  # "blob", "polygon" or "ellipse"
    texture: str  # "noise", "stripes", "dots" or "gradient"
    colours: NDArray[np.float32]  # (2, 3) RGB in [0, 255]
    grain: float  # period of the texture, pixels


class Layer(NamedTuple):
    """A flat textured thing that moves; the mask shows `label`, which is 0 for scenery."""

    label: int
    patch: NDArray[np.uint8]  # (P, P, 4) RGB and coverage
    placement: NDArray[np.float64]  # (T, 4): x and y of the centre in pixels, angle in radians, scale
    is_twin: bool  # one of those that look alike; doubles share their very patch


def render_clip(
    seed: int,
    index: int,
    *,
    frames: int = 16,
    height: int = 120,
    width: int = 160,
    difficulty: Difficulty | None = None,
) -> RenderedClip:
    """Render one clip of one to four textured objects that move over a moving ground.

    The first frame shows every object: at least half of it, and 40 pixels or more from 97 x 97 on.

    Args:
        seed: Chooses the set.
        index: Chooses the clip of the set; the same pair always gives the same clip.
        frames: Length of the clip.
        height: Pixels.
        width: Pixels.
        difficulty: How often a clip shows each difficulty.

    Raises:
        ConfigError: No arrangement of that size shows every object in its first frame.
    """
    rng = np.random.default_rng([seed, index])
    for _ in range(_TRIES):
        layers, ground = _scene(rng, frames, height, width, difficulty or Difficulty())
        if _shows_all(layers, height, width):
            break
    else:
        raise ConfigError(f"No clip of {height} x {width} pixels shows all its objects in frame 0: render larger ones.")

    images = np.empty((frames, height, width, 3), np.uint8)
    silhouettes = np.zeros((len(layers), frames, height, width), np.bool)
    for time in range(frames):
        image = place_layer(ground, time, height, width)[..., :3].astype(np.float32)
        for layer, silhouette in zip(layers, silhouettes, strict=True):
            drawn = place_layer(layer, time, height, width)
            image += (drawn[..., :3] - image) * (drawn[..., 3:] * np.float32(1 / 255))
            silhouette[time] = drawn[..., 3] >= 128
        image += rng.standard_normal(image.shape, np.float32) * 4
        images[time] = image.clip(0, 255)

    top = front_layer(silhouettes)
    labels = np.array([0, *(layer.label for layer in layers)], np.uint8)
    numbers = range(1, 1 + len(layers))
    objects = [number for number, layer in zip(numbers, layers, strict=True) if layer.label]
    twins = [number for number, layer in zip(numbers, layers, strict=True) if layer.is_twin]
    doubles = [pair for pair in combinations(numbers, 2) if layers[pair[0] - 1].patch is layers[pair[1] - 1].patch]
    return RenderedClip(images, labels[top], measured_tags(silhouettes, top, objects, twins, doubles))


def _scene(
    rng: np.random.Generator, frames: int, height: int, width: int, difficulty: Difficulty
) -> tuple[list[Layer], Layer]:
    """The layers of a clip, from back to front, and the ground below them."""
    # Nothing is drawn where no crossing can come, so that sets without crossings are what they always were.
    if difficulty.crossing and rng.random() < difficulty.crossing:
        return _crossing_scene(rng, frames, height, width)
    count = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.4, 0.22, 0.08]))
    wanted = {name: rng.random() < chance for name, chance in asdict(difficulty).items() if name != "crossing"}
    target = int(rng.integers(count))

    # Hues a good step apart, so that nothing looks like the ground, or like another object, by chance.
    hues = rng.random() + np.arange(count + 2) / (count + 2) + rng.uniform(-0.02, 0.02, count + 2)
    looks = [_object_look(rng, hue) for hue in hues[:count]]
    twins: tuple[int, ...] = ()
    if wanted["look_alike"]:  # another object, or scenery, which comes after the objects
        twin = (target + 1) % count if count > 1 and rng.random() < 0.5 else count
        looks[twin : twin + 1] = [looks[target]]
        twins = (target, twin)

    largest = {1: 0.13, 2: 0.11, 3: 0.085, 4: 0.07}[count]  # shares of the frame
    radii = np.sqrt(np.exp(rng.uniform(math.log(0.045), math.log(largest), len(looks))) * height * width / math.pi)
    starts = spread_apart(rng, radii, height, width)
    paths = [
        _wander(rng, start, radius, frames, height, width, swift=wanted["speed"] and k == target)
        for k, (start, radius) in enumerate(zip(starts, radii, strict=True))
    ]
    if wanted["disappearance"]:
        paths[target] = _leave(starts[target] + (paths[target] - starts[target]) * 0.3, radii[target], height, width)

    layers = []
    for k, (look, radius, path) in enumerate(zip(looks, radii, paths, strict=True)):
        zoom = rng.uniform(1.6, 1.9) if wanted["scale"] and k == (target + 1) % count else rng.uniform(1, 1.2)
        layers.append(draw_layer(rng, k + 1 if k < count else 0, look, radius, path, zoom=zoom, is_twin=k in twins))
    rng.shuffle(layers)
    if wanted["occlusion"]:
        look = Look("blob", "noise", draw_colours(hues[count + 1], 0.35, 0.45, 0.7), 12.0)
        radius = radii[target] * rng.uniform(0.95, 1.15)
        layers.append(draw_layer(rng, 0, look, radius, _cross(rng, paths[target]), zoom=1.05, is_twin=False))
    return layers, draw_ground(rng, hues[count], frames, height, width)


def _crossing_scene(rng: np.random.Generator, frames: int, height: int, width: int) -> tuple[list[Layer], Layer]:
    """Two or three doubles that meet and part, in the order of `_scene`: motion alone does not tell who is who.

    All come from different sides, meet in one place at one time, and then either all go on or all turn back.
    """
    count = int(rng.choice([2, 3], p=[0.65, 0.35]))
    hue = rng.random()
    radius = math.sqrt(rng.uniform(0.03, {2: 0.05, 3: 0.04}[count]) * height * width / math.pi)
    room = min(height, width) / 2 - 1.2 * radius
    middle = np.array([width, height]) / 2
    place = middle + rng.uniform(-0.8, 0.8, 2) * (middle - min(height, width) / 2) + rng.uniform(-0.1, 0.1, 2) * room

    meeting = round(rng.uniform(0.4, 0.6) * (frames - 1))  # a frame, so that short clips show it too
    phase = np.interp(np.arange(frames), [0, meeting, frames - 1], [-1, 0, 1])
    reach = room * rng.uniform(0.8, 1.0) * np.abs(phase) ** 1.5  # slower as they meet: they overlap for some frames
    if rng.random() < 0.5:
        reach *= -np.sign(phase)
    sides = rng.uniform(0, math.tau) + math.tau * (np.arange(count) + rng.uniform(-0.08, 0.08, count)) / count
    # Each keeps a little aside of the place, so that something of the rear ones stays in sight and tells the truth.
    aside = rng.uniform(0.2, 0.3) * radius
    paths = [
        place + reach[:, None] * [math.cos(side), math.sin(side)] + aside * np.array([-math.sin(side), math.cos(side)])
        for side in sides
    ]

    first = draw_layer(rng, 1, _object_look(rng, hue), radius, paths[0], zoom=rng.uniform(1, 1.1), is_twin=True)
    layers = [first]
    for label, path in enumerate(paths[1:], start=2):
        angle = first.placement[:, 2] + rng.uniform(-0.1, 0.1)
        scale = first.placement[:, 3] * rng.uniform(0.94, 1)
        layers.append(first._replace(label=label, placement=np.column_stack([path, angle, scale])))
    rng.shuffle(layers)
    return layers, draw_ground(rng, hue + rng.uniform(0.35, 0.65), frames, height, width)


def _object_look(rng: np.random.Generator, hue: float) -> Look:
    low = rng.uniform(0.3, 0.5)
    return Look(
        shape=str(rng.choice(["blob", "polygon", "ellipse"])),
        texture=str(rng.choice(["noise", "stripes", "dots", "gradient"])),
        colours=draw_colours(hue, rng.uniform(0.65, 0.95), low, low + rng.uniform(0.4, 0.5)),
        grain=rng.uniform(7, 14),
    )


def draw_colours(hue: float, saturation: float, dark: float, light: float) -> NDArray[np.float32]:
    """A dark and a light colour of nearly one hue, (2, 3) RGB in [0, 255]."""
    pair = [colorsys.hsv_to_rgb(hue, saturation, dark), colorsys.hsv_to_rgb(hue + 0.04, saturation * 0.8, light)]
    return np.array(pair, np.float32) * 255


def draw_layer(
    rng: np.random.Generator,
    label: int,
    look: Look,
    radius: float,
    path: NDArray[np.float64],
    *,
    zoom: float,
    is_twin: bool,
) -> Layer:
    """A shape that turns steadily and grows or shrinks by the factor `zoom` about a mean size of `radius`."""
    largest = radius * math.sqrt(zoom)
    side = 2 * math.ceil(largest * 1.6)
    patch = np.empty((side, side, 4), np.uint8)
    patch[..., :3] = _texture(rng, look, side, side)
    patch[..., 3] = _coverage(rng, look.shape, largest, side)
    time = np.linspace(0, 1, len(path))
    angle = rng.uniform(0, math.tau) + rng.uniform(-0.06, 0.06) * np.arange(len(path))
    scale = zoom ** -(time if rng.random() < 0.5 else 1 - time)
    return Layer(label, patch, np.column_stack([path, angle, scale]), is_twin)


def draw_ground(rng: np.random.Generator, hue: float, frames: int, height: int, width: int) -> Layer:
    """A wide soft texture with a finer one on it, which pans and turns slowly."""
    side = math.ceil(1.5 * math.hypot(height, width))
    dark = rng.uniform(0.2, 0.4)
    colours = draw_colours(hue, rng.uniform(0.1, 0.5), dark, dark + 0.25)
    coarse = _texture(rng, Look("", "noise", colours, 40.0), side, side)
    fine = _texture(rng, Look("", str(rng.choice(["noise", "stripes", "dots"])), colours, 16.0), side, side)
    patch = np.full((side, side, 4), 255, np.uint8)
    patch[..., :3] = coarse * 0.6 + fine * 0.4
    drift = np.arange(frames)[:, None] - frames / 2
    speed = rng.uniform(0.02, 0.1) * math.hypot(height, width) / max(frames / 2, 8)
    heading = rng.uniform(0, math.tau)
    path = np.array([width, height]) / 2 + speed * drift * [math.cos(heading), math.sin(heading)]
    angle = rng.uniform(0, math.tau) + rng.uniform(-0.005, 0.005) * drift
    return Layer(0, patch, np.column_stack([path, angle, np.ones(frames)]), is_twin=False)


def spread_apart(rng: np.random.Generator, radii: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Centres (N, 2) inside the frame: of some random draws the one whose objects keep most clear of each other."""
    bound = np.array([width, height]) - 2 * radii[:, None]
    draws = radii[:, None] + rng.random((64, len(radii), 2)) * bound
    distance = np.linalg.norm(draws[:, :, None] - draws[:, None], axis=-1) / (radii[:, None] + radii)
    distance[:, np.arange(len(radii)), np.arange(len(radii))] = 2  # of a lone object any draw is good
    return draws[distance.min(axis=(1, 2)).clip(max=1.1).argmax()]


def _wander(
    rng: np.random.Generator,
    start: NDArray[np.float64],
    radius: float,
    frames: int,
    height: int,
    width: int,
    *,
    swift: bool = False,
) -> NDArray[np.float64]:
    """A gently curved path (T, 2) of steady speed, thrown back at the sides of the frame.

    Its length is counted in radii a clip, so that the first mask, repeated, scores alike in any size and length.
    """
    speed = rng.uniform(0.065, 0.075) * math.hypot(height, width) if swift else rng.uniform(1.7, 2.2) * radius / frames
    heading = rng.uniform(0, math.tau) + rng.uniform(-0.06, 0.06) * np.arange(frames - 1)
    steps = speed * np.column_stack([np.cos(heading), np.sin(heading)])
    path = start + np.concatenate([np.zeros((1, 2)), steps.cumsum(axis=0)])
    low, high = 0.9 * radius, np.array([width, height]) - 0.9 * radius
    return low + (high - low) - np.abs((path - low) % (2 * (high - low)) - (high - low))


def _leave(path: NDArray[np.float64], radius: float, height: int, width: int) -> NDArray[np.float64]:
    """The same path with an excursion over the nearest side of the frame and back."""
    x, y = path[0]
    side = int(np.argmin([x, y, width - x, height - y]))
    axis, outwards = side % 2, 1 if side >= 2 else -1
    edge = (width, height)[axis] if outwards > 0 else 0
    time = np.linspace(0, 1, len(path))
    rise = np.clip(np.minimum(time - 0.02, 0.98 - time) / 0.36, 0, 1)
    share = rise * rise * (3 - 2 * rise)
    outside = edge + outwards * 1.7 * radius
    path = path.copy()
    path[:, axis] += share * (outside - path[:, axis])
    return path


def _cross(rng: np.random.Generator, hidden: NDArray[np.float64]) -> NDArray[np.float64]:
    """A straight path (T, 2) that meets another one head-on in the second half of the clip."""
    meeting = int(rng.uniform(0.45, 0.8) * len(hidden))
    before = hidden[meeting] - hidden[meeting - 1]
    return hidden[meeting] - (np.arange(len(hidden)) - meeting)[:, None] * before * rng.uniform(0.8, 1.1)


def _texture(rng: np.random.Generator, look: Look, height: int, width: int) -> NDArray[np.uint8]:
    """(H, W, 3) RGB."""
    angle = rng.uniform(0, math.tau)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
    across = y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))
    wave = np.float32(math.tau / look.grain)
    match look.texture:
        case "noise":
            values = 0.5 + 1.5 * (_smooth_noise(rng, look.grain, height, width) - 0.5)
        case "stripes":
            values = 0.5 + np.sin(along * wave)
        case "dots":
            values = 1.5 * np.sin(along * wave) * np.sin(across * wave)
        case _:
            values = 0.5 + along / (max(height, width) * 0.6) - along.mean() / (max(height, width) * 0.6)
    dark, light = look.colours
    shade = 0.9 + 0.2 * _smooth_noise(rng, look.grain * 1.5, height, width)
    colour = (dark + values.clip(0, 1)[..., None] * (light - dark)) * shade[..., None]
    return colour.clip(0, 255).astype(np.uint8)


def _smooth_noise(rng: np.random.Generator, grain: float, height: int, width: int) -> NDArray[np.float32]:
    """(H, W) values around 0.5."""
    cells = rng.random((math.ceil(height / grain) + 1, math.ceil(width / grain) + 1), np.float32)
    return np.asarray(cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _coverage(rng: np.random.Generator, shape: str, radius: float, side: int) -> NDArray[np.uint8]:
    """(P, P) alpha of a shape with about the area of a circle of `radius`, in the middle of the patch."""
    angle = np.linspace(0, math.tau, 64, endpoint=False)
    match shape:
        case "blob":
            reach = 1 + sum(
                rng.uniform(0.05, 0.3) / k * np.sin(k * angle + rng.uniform(0, math.tau)) for k in range(2, 6)
            )
        case "polygon":
            angle = np.linspace(0, math.tau, int(rng.integers(3, 7)), endpoint=False)
            reach = rng.uniform(0.9, 1.3, len(angle))
        case _:
            stretch = rng.uniform(1.05, 1.35)
            reach = 1 / np.hypot(np.cos(angle) / stretch, np.sin(angle) * stretch)
    points = np.column_stack([np.cos(angle), np.sin(angle)]) * np.reshape(reach, (-1, 1))
    area = cv2.contourArea(points.astype(np.float32))
    points *= math.sqrt(math.pi / area) * radius
    points *= min(1, (side / 2 - 2) / np.abs(points).max())
    alpha = np.zeros((side, side), np.uint8)
    cv2.fillPoly(alpha, [((points + side / 2) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return alpha


def place_layer(layer: Layer, time: int, height: int, width: int) -> NDArray[np.uint8]:
    """(H, W, 4): the layer where it is at that time."""
    x, y, angle, scale = layer.placement[time]
    middle = (layer.patch.shape[0] - 1) / 2
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = np.column_stack([turn, [x, y] - turn @ [middle, middle]])
    return np.asarray(cv2.warpAffine(layer.patch, matrix, (width, height)), np.uint8)


def front_layer(silhouettes: NDArray[np.bool]) -> NDArray[np.uint8]:
    """Number of the front layer, counted from 1, at every pixel: (L, ...) -> (...); 0 is the ground."""
    top = np.zeros(silhouettes.shape[1:], np.uint8)
    for k, silhouette in enumerate(silhouettes, start=1):
        top[silhouette] = k
    return top


def _shows_all(layers: Sequence[Layer], height: int, width: int) -> bool:
    silhouettes = np.stack([place_layer(layer, 0, height, width)[..., 3] >= 128 for layer in layers])
    top = front_layer(silhouettes)
    return all(
        (top == k).sum() >= max(PERCEPTIBLE * height * width, silhouettes[k - 1].sum() / 2)
        for k, layer in enumerate(layers, start=1)
        if layer.label
    )
