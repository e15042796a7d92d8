"""Objects: one to some dozen parts of different textures, on joints that swing, in bodies that bend."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.scenes.palettes import draw_palette
from datamodules.scenes.shapes import Outline, any_shape, blob, box, limb
from datamodules.scenes.textures import draw_texture


class Ripple(NamedTuple):
    """How pixels sway to and fro: a body that bends, water, leaves in the wind."""

    reach: float  # how far they do
    waves: float  # radians over a unit of length
    rate: float  # radians a frame of a video
    phase: float


class Skin(NamedTuple):
    """What the parts of a body are cut from."""

    sheets: tuple[NDArray[np.uint8], ...]  # (S, S, 3) RGB each
    light: tuple[float, float]  # from where, in the plane of the picture; its length is how strong
    relief: float  # how round parts look, from 0, flat


class Part(NamedTuple):
    """A piece of a body."""

    outlines: Sequence[Outline]  # pixels about the joint; what an even number of them encloses is a hole
    sheet: int
    parent: int  # the part that it hangs on, which comes before it; -1: the body
    joint: tuple[float, float]  # where, in pixels of the parent
    angle: NDArray[np.float64]  # (T,) radians
    shade: float = 1.0
    is_behind: bool = False  # drawn before what does not


@dataclass(frozen=True)
class Body:
    """Parts that are ready to be drawn, from back to front.

    Attributes:
        patches: (h, w, 4) RGB and coverage of each part, the colour multiplied by the coverage.
        local: (T, P, 3, 3) from pixels of a patch to pixels about the middle of the body.
        bend: How it bends; lengths are in units of `radius`.
        radius: About half its longer side, pixels.
        foot: How far below its middle it stands, pixels.
    """

    patches: tuple[NDArray[np.uint8], ...]
    local: NDArray[np.float64]
    bend: Ripple | None
    radius: float
    foot: float


def draw_skin(rng: np.random.Generator, radius: float, palette: NDArray[np.float32] | None, light: float) -> Skin:
    """Sheets of one to four textures.

    Args:
        rng: The source of every draw.
        radius: Of the body, pixels.
        palette: (K, 3) colours of the surroundings, to be of them; None for others.
        light: From where, radians.
    """
    side = max(math.ceil(radius * 1.4), 12)
    count = int(rng.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.25, 0.15]))
    if palette is None:
        palette = draw_palette(rng, 0.35)
    sheets = []
    for _ in range(count):
        if rng.random() < 0.35:
            palette = draw_palette(rng, 0.5)
        if rng.random() < 0.2:  # paint, metal, skin: hardly any texture
            plain = np.empty((side, side, 3), np.uint8)
            plain[:] = palette[rng.integers(len(palette))].clip(0, 255).astype(np.uint8)
            sheets.append(plain)
        else:
            sheets.append(draw_texture(rng, side, side, palette))
    strength = rng.uniform(0, 0.5)
    return Skin(
        tuple(sheets), (strength * math.cos(light), strength * math.sin(light)), rng.choice([0.0, rng.uniform(0.3, 1)])
    )


def draw_body(rng: np.random.Generator, skin: Skin, radius: float, times: NDArray[np.float64]) -> Body:
    """A body of any build.

    Args:
        rng: The source of every draw.
        skin: What it is made of.
        radius: Pixels.
        times: (T,) of the frames, in frames of a video.
    """
    builds: Sequence[tuple[float, Callable[..., list[Part]]]] = (
        (0.24, _lump),
        (0.22, _beast),
        (0.16, _person),
        (0.14, _vehicle),
        (0.08, _bicycle),
        (0.08, _chain),
        (0.08, _assembly),
    )
    chosen = int(rng.choice(len(builds), p=[weight for weight, _ in builds]))
    parts = builds[chosen][1](rng, radius, times, len(skin.sheets))
    if rng.random() < 0.5:  # faces the other way
        parts = [
            part._replace(
                outlines=[outline * [-1, 1] for outline in part.outlines],
                joint=(-part.joint[0], part.joint[1]),
                angle=-part.angle,
            )
            for part in parts
        ]
    bend = None
    if rng.random() < 0.5:
        amplitude = rng.uniform(0.02, 0.14 if chosen in (0, 5) else 0.06)
        bend = Ripple(amplitude, rng.uniform(1, 3.5), rng.uniform(0.05, 0.5), rng.uniform(0, math.tau))
    return _assembled(rng, parts, skin, times, bend, radius)


def _assembled(
    rng: np.random.Generator,
    parts: Sequence[Part],
    skin: Skin,
    times: NDArray[np.float64],
    bend: Ripple | None,
    radius: float,
) -> Body:
    place = np.empty((len(parts), len(times), 3, 3))  # of the joint of each part in the body
    local = np.empty((len(times), len(parts), 3, 3))
    patches, foot = [], 0.0
    for number, part in enumerate(parts):
        turn = turned(part.angle, part.joint)
        place[number] = place[part.parent] @ turn if part.parent >= 0 else turn
        patch, corner = cut(rng, part.outlines, skin, part.sheet, part.shade)
        patches.append(patch)
        local[:, number] = place[number] @ turned(np.zeros(1), corner)
        ends = np.concatenate(part.outlines)[::4] @ place[number][0, :2, :2].T + place[number][0, :2, 2]
        foot = max(foot, float(ends[:, 1].max()))
    order = sorted(range(len(parts)), key=lambda number: not parts[number].is_behind)
    return Body(tuple(patches[number] for number in order), local[:, order], bend, radius, foot)


def turned(angle: NDArray[np.float64], to: tuple[float, float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, 3, 3) turns by the angles, then shifts; `to` is (2,) or (T, 2)."""
    matrix = np.zeros((len(angle), 3, 3))
    matrix[:, 0, 0] = matrix[:, 1, 1] = np.cos(angle)
    matrix[:, 1, 0] = np.sin(angle)
    matrix[:, 0, 1] = -matrix[:, 1, 0]
    matrix[:, :2, 2] = to
    matrix[:, 2, 2] = 1
    return matrix


def cut(
    rng: np.random.Generator, outlines: Sequence[Outline], skin: Skin, sheet: int, shade: float = 1.0
) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """A part cut out of a sheet and shaded, (h, w, 4) with premultiplied colour, and where its corner lies."""
    points = np.concatenate(outlines)
    low = np.floor(points.min(axis=0)) - 2
    width, height = (np.ceil(points.max(axis=0)) + 2 - low).astype(int).tolist()
    alpha = np.zeros((height, width), np.uint8)
    cv2.fillPoly(alpha, [((outline - low) * 16).astype(np.int32) for outline in outlines], 255, cv2.LINE_AA, 4)
    source = skin.sheets[sheet]
    angle, side = rng.uniform(0, math.tau), len(source)
    offset = rng.uniform(0, side, 2)
    lookup = np.array(
        [[math.cos(angle), -math.sin(angle), offset[0]], [math.sin(angle), math.cos(angle), offset[1]]], np.float64
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    colour = cv2.warpAffine(source, lookup, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
    light = np.full((height, width), shade, np.float32)
    if skin.relief and min(height, width) > 10:
        depth = cv2.distanceTransform(alpha, cv2.DIST_L2, 3)
        round_ = np.sqrt(np.minimum(depth * np.float32(1 / max(float(depth.max()) * 0.8, 1)), 1))
        slope_x, slope_y = cv2.Sobel(round_, cv2.CV_32F, 1, 0), cv2.Sobel(round_, cv2.CV_32F, 0, 1)
        reach = np.float32(-skin.relief * 0.12 * min(height, width) ** 0.5)
        light += reach * (slope_x * np.float32(skin.light[0]) + slope_y * np.float32(skin.light[1]))
        light *= np.float32(1 - 0.35 * skin.relief) + np.float32(0.35 * skin.relief) * round_
    light *= alpha * np.float32(1 / 255)
    patch = np.empty((height, width, 4), np.uint8)
    patch[..., :3] = cv2.multiply(colour, cv2.merge([light.clip(0, 1.7)] * 3), dtype=cv2.CV_8U)
    np.minimum(patch[..., :3], alpha[..., None], out=patch[..., :3])
    patch[..., 3] = alpha
    return patch, (float(low[0]), float(low[1]))


def _swing(rng: np.random.Generator, times: NDArray[np.float64], rest: float, most: float) -> NDArray[np.float64]:
    """Angles about `rest`, up to `most` to either side."""
    return rest + rng.uniform(0, most) * np.sin(rng.uniform(0.08, 0.6) * times + rng.uniform(0, math.tau))


def _still(times: NDArray[np.float64], angle: float = 0.0) -> NDArray[np.float64]:
    return np.full(len(times), angle)


def _lump(rng: np.random.Generator, radius: float, times: NDArray[np.float64], sheets: int) -> list[Part]:
    """One shape, sometimes with a hole, with none to four marks or knobs on it."""
    flat = rng.uniform(0.35, 1)
    outlines = [any_shape(rng, radius, radius * flat)]
    if rng.random() < 0.15:
        outlines.append(outlines[0] * rng.uniform(0.35, 0.7))
    parts = [Part(outlines, 0, -1, (0, 0), _still(times))]
    for _ in range(int(rng.integers(0, 5))):
        size = radius * rng.uniform(0.1, 0.45)
        mark = any_shape(rng, size, size * rng.uniform(0.4, 1))
        at = rng.uniform(-0.8, 0.8, 2) * [radius, radius * flat]
        angle = _swing(rng, times, rng.uniform(0, math.tau), 0.4)
        parts.append(Part([mark], int(rng.integers(sheets)), 0, (at[0], at[1]), angle, is_behind=rng.random() < 0.3))
    return parts


def _beast(rng: np.random.Generator, radius: float, times: NDArray[np.float64], sheets: int) -> list[Part]:
    """A body on two or four legs, with a neck, a head and often a tail; a swan without legs."""
    long, high = radius * rng.uniform(0.55, 0.8), radius * rng.uniform(0.22, 0.42)
    parts = [Part([blob(rng, long, high, 0.15)], 0, -1, (0, 0), _still(times))]
    leg, thick = radius * rng.uniform(0.3, 0.75), radius * rng.uniform(0.05, 0.12)
    rate, reach = rng.uniform(0.15, 0.6), rng.uniform(0, 0.6)
    has_knees = rng.random() < 0.6
    for number in range(int(rng.choice([0, 2, 4], p=[0.15, 0.2, 0.65]))):
        is_far = number % 2 == 0
        x = long * (0.65 if number >= 2 else -0.6) * rng.uniform(0.8, 1.1)
        phase = rate * times + math.pi * (number % 2) + 0.5 * math.pi * (number // 2)
        shade = 0.7 if is_far else 1.0
        length = leg * (0.5 if has_knees else 1)
        sheet = int(rng.integers(sheets)) if number == 0 else parts[-1].sheet
        angle = reach * np.sin(phase)
        parts.append(
            Part([limb(rng, length, thick * 1.3, thick)], sheet, 0, (x, high * 0.5), angle, shade, is_behind=is_far)
        )
        if has_knees:
            knee = 0.2 + 0.6 * reach * (1 + np.sin(phase + 1.5))
            shin = limb(rng, length * 1.1, thick, thick * 0.7)
            parts.append(Part([shin], sheet, len(parts) - 1, (0, length * 0.9), knee, shade, is_behind=is_far))
    neck, width = radius * rng.uniform(0.15, 0.7), radius * rng.uniform(0.06, 0.18)
    angle = _swing(rng, times, rng.uniform(2.4, 4.2), 0.3)
    parts.append(Part([limb(rng, neck, width * 1.4, width)], 0, 0, (-long * 0.85, -high * 0.3), angle))
    size = max(width * rng.uniform(1.1, 2), radius * 0.12)
    head = blob(rng, size * rng.uniform(1, 1.8), size, 0.2)
    angle = _swing(rng, times, math.pi / 2 - 3.4, 0.4)
    parts.append(Part([head], int(rng.integers(sheets)), len(parts) - 1, (0, neck), angle))
    if rng.random() < 0.5:  # beak, snout, ear or horn
        tip = limb(rng, size * rng.uniform(0.6, 1.6), size * 0.35, size * 0.1)
        angle = _still(times, rng.uniform(0, math.tau))
        parts.append(Part([tip], int(rng.integers(sheets)), len(parts) - 1, (0, 0), angle))
    if rng.random() < 0.6:
        tail = limb(rng, radius * rng.uniform(0.2, 0.7), radius * rng.uniform(0.03, 0.12), radius * 0.03)
        at = (long * 0.9, -high * 0.2)
        parts.append(Part([tail], int(rng.integers(sheets)), 0, at, _swing(rng, times, rng.uniform(-2.2, -0.3), 0.6)))
    return parts


def _person(rng: np.random.Generator, radius: float, times: NDArray[np.float64], sheets: int) -> list[Part]:
    """A trunk, a head, and arms and legs of two segments each."""
    half, broad = radius * rng.uniform(0.28, 0.36), radius * rng.uniform(0.12, 0.22)
    lean = _swing(rng, times, rng.normal(0, 0.25), 0.15)
    parts = [Part([box(rng, broad, half)], 0, -1, (0, -0.25 * radius), lean)]
    size = radius * rng.uniform(0.11, 0.17)
    hair, skin, trousers = (int(rng.integers(sheets)) for _ in range(3))
    parts.append(
        Part([blob(rng, size * 0.85, size, 0.1)], hair, 0, (0, -half - size * 0.8), _swing(rng, times, 0, 0.3))
    )
    rate, phase = rng.uniform(0.12, 0.5), rng.uniform(0, math.tau)
    reach = rng.uniform(0.05, 0.9)
    for side in (0, 1):
        wave = np.sin(rate * times + phase + math.pi * side)
        shade = 0.75 if side == 0 else 1.0
        thigh, width = radius * rng.uniform(0.28, 0.34), broad * rng.uniform(0.4, 0.55)
        parts.append(
            Part(
                [limb(rng, thigh, width, width * 0.8)],
                trousers,
                0,
                (broad * (side - 0.5), half * 0.85),
                reach * wave - lean,
                shade,
                is_behind=side == 0,
            )
        )
        shin, knee = limb(rng, thigh, width * 0.75, width * 0.5), reach * 0.7 * (1 - wave)
        parts.append(Part([shin], trousers, len(parts) - 1, (0, thigh * 0.92), knee, shade, is_behind=side == 0))
        arm, width = radius * rng.uniform(0.2, 0.26), broad * rng.uniform(0.28, 0.4)
        rest = rng.uniform(-1.2, 1.2) if rng.random() < 0.4 else 0.0
        parts.append(
            Part(
                [limb(rng, arm, width, width * 0.8)],
                0,
                0,
                (broad * 1.2 * (side - 0.5), -half * 0.8),
                rest - reach * wave,
                shade,
                is_behind=side == 0,
            )
        )
        lower, elbow = limb(rng, arm, width * 0.8, width * 0.6), -rng.uniform(0, 1.2) + 0.3 * wave
        parts.append(Part([lower], skin, len(parts) - 1, (0, arm * 0.92), elbow, shade, is_behind=side == 0))
    return parts


def _wheel(rng: np.random.Generator, size: float, spokes: int) -> list[Outline]:
    """A disc, or a rim with spokes and holes between."""
    angle = np.linspace(0, math.tau, 32, endpoint=False)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    if not spokes:
        return [circle * size]
    inner = size * rng.uniform(0.6, 0.85)
    outlines = [circle * size]
    gap = rng.uniform(0.12, 0.3)
    for number in range(spokes):
        edge = np.linspace((number + gap) / spokes, (number + 1 - gap) / spokes, 6) * math.tau
        arc = np.column_stack([np.cos(edge), np.sin(edge)])
        outlines.append(np.concatenate([arc * inner, arc[::-1] * size * 0.2]))
    return outlines


def _rolling(rng: np.random.Generator, times: NDArray[np.float64]) -> NDArray[np.float64]:
    return rng.uniform(-0.6, 0.6) * times + rng.uniform(0, math.tau)


def _vehicle(rng: np.random.Generator, radius: float, times: NDArray[np.float64], sheets: int) -> list[Part]:
    """A hull with a cabin, windows, lamps, and wheels that roll."""
    long, high = radius * rng.uniform(0.75, 0.95), radius * rng.uniform(0.16, 0.3)
    cabin, roof = long * rng.uniform(0.35, 0.85), radius * rng.uniform(0.12, 0.3)
    at = long * rng.uniform(-0.25, 0.25)
    still = _still(times)
    parts = [
        Part([box(rng, long, high)], 0, -1, (0, 0), still),
        Part([box(rng, cabin, roof)], 0, 0, (at, -high - roof * 0.7), still),
    ]
    glass, dark = int(rng.integers(sheets)), int(rng.integers(sheets))
    panes = int(rng.integers(1, 4))
    for pane in range(panes):
        x = cabin * 1.7 * ((pane + 0.5) / panes - 0.5)
        parts.append(Part([box(rng, cabin * 0.7 / panes, roof * 0.55)], glass, 1, (x, 0), still, rng.uniform(0.3, 0.7)))
    size, roll = radius * rng.uniform(0.12, 0.24), _rolling(rng, times)
    for x in (-long * rng.uniform(0.5, 0.75), long * rng.uniform(0.5, 0.75)):
        parts.append(Part(_wheel(rng, size, 0), dark, 0, (x, high), roll, rng.uniform(0.15, 0.4)))
        hub = _wheel(rng, size * 0.65, int(rng.integers(3, 7)))
        parts.append(Part(hub, int(rng.integers(sheets)), len(parts) - 1, (0, 0), _still(times)))
    for x in (-0.93, 0.93):
        lamp = box(rng, radius * 0.05, radius * 0.05)
        parts.append(Part([lamp], int(rng.integers(sheets)), 0, (long * x, -high * 0.3), still, 1.3))
    return parts


def _bicycle(rng: np.random.Generator, radius: float, times: NDArray[np.float64], sheets: int) -> list[Part]:
    """Two wheels to look through, a frame of thin tubes, and a saddle."""
    size, gap = radius * rng.uniform(0.32, 0.45), radius * rng.uniform(0.45, 0.6)
    roll = _rolling(rng, times)
    tube = radius * rng.uniform(0.02, 0.06)
    rim, frame = int(rng.integers(sheets)), 0
    spokes = int(rng.integers(3, 9))
    parts = [Part([blob(rng, tube * 2, tube * 2, 0.1)], frame, -1, (0, 0), _still(times))]
    low, top = size * 0.9, size * rng.uniform(0.2, 0.6)
    parts += [Part(_wheel(rng, size, spokes), rim, 0, (x, low), roll, 0.5) for x in (-gap, gap)]
    nodes = np.array([[-gap, low], [gap, low], [-gap * 0.65, -top], [gap * 0.4, -top * 0.9], [0, low]])
    for start, end in ((0, 2), (2, 3), (3, 4), (4, 2), (1, 4), (1, 3)):
        step = nodes[end] - nodes[start]
        bar = limb(rng, float(np.hypot(*step)), tube, tube)
        angle = _still(times, math.atan2(-step[0], step[1]))
        parts.append(Part([bar], frame, 0, (float(nodes[start][0]), float(nodes[start][1])), angle))
    saddle = blob(rng, radius * 0.15, radius * 0.06, 0.2)
    parts.append(Part([saddle], int(rng.integers(sheets)), 0, (gap * 0.42, -top * 1.1), _still(times)))
    handle = limb(rng, radius * 0.2, tube, tube)
    parts.append(Part([handle], int(rng.integers(sheets)), 0, (-gap * 0.65, -top), _still(times, rng.uniform(2, 4))))
    return parts


def _chain(rng: np.random.Generator, radius: float, times: NDArray[np.float64], sheets: int) -> list[Part]:
    """Links of limbs that writhe: a snake, a rope, a tail; sometimes with something at its end."""
    links, rate, wave = int(rng.integers(3, 7)), rng.uniform(0.08, 0.5), rng.uniform(0.2, 0.7)
    length, thick = 1.8 * radius / links, radius * rng.uniform(0.04, 0.16)
    turn = rng.uniform(0, math.tau)
    start = -radius * 0.9 * np.array([-math.sin(turn), math.cos(turn)])
    parts: list[Part] = []
    phase = rng.uniform(0, math.tau)
    for link in range(links):
        angle = wave * np.sin(rate * times + phase - 1.1 * link) + (turn if link == 0 else 0)
        joint = (float(start[0]), float(start[1])) if link == 0 else (0, length * 0.95)
        tapered = thick * (1 - 0.6 * link / links)
        piece = limb(rng, length, tapered * 1.05, tapered * 0.95)
        parts.append(Part([piece], int(rng.integers(sheets)) if rng.random() < 0.3 else 0, link - 1, joint, angle))
    if rng.random() < 0.5:
        knob = any_shape(rng, radius * rng.uniform(0.12, 0.4), radius * rng.uniform(0.12, 0.3))
        parts.append(Part([knob], int(rng.integers(sheets)), 0, (0, 0), _swing(rng, times, 0, 0.3)))
    return parts


def _assembly(rng: np.random.Generator, radius: float, times: NDArray[np.float64], sheets: int) -> list[Part]:
    """Two to six parts of any shape, hanging on one another anyhow."""
    parts: list[Part] = []
    sizes: list[tuple[float, float]] = []
    for number in range(int(rng.integers(2, 7))):
        x, y = radius * rng.uniform(0.12, 0.5, 2)
        at, parent = (0.0, 0.0), -1
        if number:
            parent = int(rng.integers(number))
            turn = rng.uniform(0, math.tau)
            at = sizes[parent][0] * math.cos(turn), sizes[parent][1] * math.sin(turn)
        angle = _swing(rng, times, rng.uniform(0, math.tau), 0.7)
        if rng.random() < 0.35:
            outline = limb(rng, radius * rng.uniform(0.3, 0.8), min(x, y) * 0.5, min(x, y) * 0.3)
        else:
            outline = any_shape(rng, x, y)
        sizes.append((x, y))
        parts.append(Part([outline], int(rng.integers(sheets)), parent, at, angle, is_behind=rng.random() < 0.3))
    return parts
