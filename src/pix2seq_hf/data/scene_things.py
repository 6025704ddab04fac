r"""What do the things of a drawn scene look like: outlines of cats, cars, cups, ... and the colours they come in.

A thing is a list of [`Piece`], painted one over the other, in a frame of its own: x to the right and y down, its larger
side about 2 long, its middle about (0, 0). People are in `scene_people`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Color = tuple[int, int, int]

# What the colours of captions look like; every object's own is a little off.
COLORS: dict[str, Color] = {
    "red": (206, 38, 38),
    "orange": (240, 126, 24),
    "yellow": (245, 212, 50),
    "green": (50, 150, 62),
    "blue": (42, 92, 208),
    "purple": (128, 58, 172),
    "pink": (244, 140, 184),
    "brown": (124, 76, 42),
    "white": (242, 242, 238),
    "gray": (134, 136, 142),
    "black": (38, 38, 44),
}
DARK, GLASS, METAL, WOOD, LEAF = (34, 34, 40), (176, 212, 232), (170, 172, 178), (112, 72, 44), (58, 132, 58)


class Piece(NamedTuple):
    r"""One painted outline.

    Args:
        points_xy (`np.ndarray` of shape `(num_points, 2)`): In the frame of the thing.
        color (`Color`, *optional*): Its paint; without one it is a hole through which the background is seen.
        is_textured (`bool`): Whether it may have stripes or dots.
        is_body (`bool`): Whether it belongs to the mask; a balloon's string, for instance, does not."""

    points_xy: np.ndarray
    color: Color | None
    is_textured: bool = False
    is_body: bool = True


@functools.lru_cache
def _arc(start: float, stop: float, num: int) -> np.ndarray:
    angles = 2 * math.pi * np.linspace(start, stop, num, endpoint=stop - start < 1)
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def ellipse(
    x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 1.0, num: int = 28
) -> np.ndarray:
    """Points on an ellipse, from `start` to `stop` in turns, clockwise from the right."""
    return _arc(start, stop, num) * (rx, ry) + (x, y)


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Corners of an upright rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def capsule(start: Sequence[float], end: Sequence[float], radius: float, end_radius: float | None = None) -> np.ndarray:
    """A line with round ends: what a limb looks like. Convex unless one end is much the larger."""
    end_radius = radius if end_radius is None else end_radius
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    cosine, sine = (x1 - x0) / length, (y1 - y0) / length
    along = np.array([[cosine, sine], [-sine, cosine]])
    back = _arc(0.25, 0.75, 7) @ (along * radius) + (x0, y0)
    front = _arc(-0.25, 0.25, 7) @ (along * end_radius) + (x1, y1)
    return np.concatenate([back, front])


def smooth(corners: Sequence[tuple[float, float]], num: int = 4) -> np.ndarray:
    """A closed curve through points (Catmull and Rom's), `num` points from each to the next."""
    points = np.asarray(corners, float)
    before, after, second = np.roll(points, 1, 0), np.roll(points, -1, 0), np.roll(points, -2, 0)
    share = (np.arange(num) / num)[None, :, None]
    before, points, after, second = (each[:, None] for each in (before, points, after, second))
    curve = points + 0.5 * share * (
        after
        - before
        + share * (2 * before - 5 * points + 4 * after - second + share * (3 * (points - after) + second - before))
    )
    return curve.reshape(-1, 2)


def shade(color: Color, factor: float) -> Color:
    """A darker (below 1) or lighter (above 1) colour."""
    if factor <= 1:
        return tuple(int(value * factor) for value in color)
    return tuple(int(255 - (255 - value) / factor) for value in color)


def cat(rng: np.random.Generator, color: Color) -> list[Piece]:
    """Sits, seen from the front, its tail beside it."""
    dark, light, pink = shade(color, 0.75), shade(color, 1.8), (236, 160, 160)
    eyes = [(120, 190, 90), (90, 150, 220), (230, 190, 60)][rng.integers(3)]
    tail = [(0.3, 0.8), (0.66, 0.82), (0.72, 0.5), (0.58, 0.12), (0.7, 0.02), (0.88, 0.5), (0.82, 0.92), (0.3, 0.97)]
    body = [(0, -0.25), (0.38, 0.1), (0.52, 0.7), (0.4, 0.97), (-0.4, 0.97), (-0.52, 0.7), (-0.38, 0.1)]
    pieces = [Piece(smooth(tail), dark), Piece(smooth(body), color, True), Piece(ellipse(0, 0.42, 0.2, 0.34), light)]
    pieces += [Piece(ellipse(x, 0.9, 0.15, 0.1, num=16), shade(color, 1.3)) for x in (-0.17, 0.17)]
    for sign in (-1, 1):
        pieces.append(Piece(np.array([(0.14, -0.72), (0.46, -1.0), (0.47, -0.5)]) * [sign, 1], color))
        pieces.append(Piece(np.array([(0.23, -0.7), (0.41, -0.88), (0.42, -0.58)]) * [sign, 1], pink))
    pieces.append(Piece(ellipse(0, -0.42, 0.5, 0.4), color))
    for x in (-0.2, 0.2):
        pieces.append(Piece(ellipse(x, -0.48, 0.1, 0.1, num=14), eyes))
        pieces.append(Piece(ellipse(x, -0.48, 0.04, 0.09, num=10), DARK))
    pieces.append(Piece(ellipse(0, -0.24, 0.17, 0.11, num=16), light))
    pieces.append(Piece(np.array([(-0.07, -0.32), (0.07, -0.32), (0, -0.23)]), (210, 110, 120)))
    return pieces


def fish(rng: np.random.Generator, color: Color) -> list[Piece]:
    """Swims to the left."""
    thick = rng.uniform(0.38, 0.6)
    fin = shade(color, float(rng.choice([0.7, 1.5])))
    upper = [(-0.95, 0.02), (-0.6, -0.75 * thick), (-0.1, -thick), (0.4, -0.55 * thick), (0.68, 0)]
    lower = [(0.4, 0.55 * thick), (-0.1, thick), (-0.6, 0.75 * thick)]
    back = [(-0.3, -0.6 * thick), (0.0, -thick - 0.25), (0.4, -thick - 0.05), (0.35, -0.4 * thick)]
    return [
        Piece(smooth([(0.45, 0), (0.75, -0.4), (1.0, -0.5), (0.88, 0), (1.0, 0.5), (0.75, 0.4)]), fin),
        Piece(smooth(back), fin),
        Piece(smooth(upper + lower), color, True),
        Piece(smooth([(-0.15, 0.1), (0.2, 0.05), (0.28, 0.3), (0.05, 0.32)]), fin),
        Piece(ellipse(-0.58, -0.12, 0.11, 0.11, num=14), (250, 250, 250)),
        Piece(ellipse(-0.6, -0.12, 0.055, 0.055, num=10), DARK),
        Piece(np.array([(-0.93, 0.1), (-0.74, 0.14), (-0.75, 0.18)]), shade(color, 0.5)),
    ]


def car(rng: np.random.Generator, color: Color) -> list[Piece]:
    """Drives to the left: a saloon, an estate or a van."""
    roof, front, rear, end = ((-0.3, -0.62, 0.45, 0.78), (-0.3, -0.62, 0.88, 0.94), (-0.5, -0.8, 0.92, 0.96))[
        rng.integers(3)
    ]
    top = rng.uniform(-0.6, -0.48)
    shell = [
        (-1.0, 0.05),
        (-0.9, -0.1),
        (front, -0.16),
        (roof, top),
        (rear, top),
        (end, -0.12),
        (1.0, -0.02),
        (1.0, 0.3),
    ]
    shell += [(-1.0, 0.3)]
    middle = (roof + rear) / 2
    windows = [
        [(front + 0.13, -0.14), (roof + 0.04, top + 0.09), (middle - 0.03, top + 0.09), (middle - 0.03, -0.14)],
        [(middle + 0.04, -0.14), (middle + 0.04, top + 0.09), (rear - 0.05, top + 0.09), (end - 0.12, -0.14)],
    ]
    pieces = [Piece(np.array(shell), color, True)]
    pieces += [Piece(np.array(window), GLASS) for window in windows]
    pieces += [
        Piece(rectangle(-1.0, 0.2, 1.0, 0.3), shade(color, 0.6)),
        Piece(ellipse(-0.93, 0.08, 0.06, 0.07, num=14), (250, 236, 150)),
        Piece(rectangle(0.93, 0.02, 1.0, 0.14), (190, 40, 40)),
    ]
    for x in (-0.56, 0.56):
        pieces.append(Piece(ellipse(x, 0.3, 0.23, 0.23), DARK))
        pieces.append(Piece(ellipse(x, 0.3, 0.11, 0.11, num=16), METAL))
    return pieces


def boat(rng: np.random.Generator, color: Color) -> list[Piece]:
    """Sails to the left."""
    sail = [(244, 244, 240), (250, 232, 190), (240, 200, 190)][rng.integers(3)]
    tip = rng.uniform(-1.0, -0.85)
    return [
        Piece(rectangle(0.03, tip, 0.08, 0.5), WOOD),
        Piece(np.array([(0.13, tip + 0.06), (0.85, 0.36), (0.13, 0.36)]), sail),
        Piece(np.array([(-0.02, tip + 0.2), (-0.02, 0.36), (-0.6, 0.36)]), shade(sail, 0.88)),
        Piece(np.array([(-1.0, 0.45), (1.0, 0.45), (0.72, 0.9), (-0.6, 0.9)]), color, True),
        Piece(np.array([(-1.0, 0.45), (1.0, 0.45), (0.96, 0.54), (-0.88, 0.54)]), shade(color, 1.7)),
    ]


def house(rng: np.random.Generator, color: Color) -> list[Piece]:
    """Has a roof, a chimney, a door and windows."""
    roof = [(150, 60, 46), (92, 72, 64), (84, 92, 110)][rng.integers(3)]
    eaves, wall = rng.uniform(-0.3, -0.05), rng.uniform(0.68, 0.85)
    door = rng.uniform(-0.35, 0.15)
    pieces = [
        Piece(rectangle(0.35, -0.85, 0.55, -0.1), shade(roof, 0.8)),
        Piece(rectangle(-wall, eaves - 0.02, wall, 0.95), color, True),
        Piece(np.array([(-1.0, eaves), (-0.08, -0.95), (0.08, -0.95), (1.0, eaves)]), roof),
        Piece(rectangle(door, 0.42, door + 0.3, 0.95), shade(WOOD, 0.8)),
        Piece(ellipse(door + 0.24, 0.7, 0.03, 0.03, num=8), (230, 200, 90)),
    ]
    for x in (-0.55, 0.3):
        if abs(x + 0.12 - door - 0.15) > 0.25:
            pieces.append(Piece(rectangle(x - 0.03, 0.17, x + 0.28, 0.5), (240, 240, 236)))
            pieces.append(Piece(rectangle(x, 0.2, x + 0.11, 0.47), GLASS))
            pieces.append(Piece(rectangle(x + 0.14, 0.2, x + 0.25, 0.47), GLASS))
    return pieces


def tree(rng: np.random.Generator, color: Color) -> list[Piece]:
    """Has leaves or needles."""
    wide = rng.uniform(0.07, 0.13)
    trunk = Piece(np.array([(-wide, 0.2), (wide, 0.2), (1.5 * wide, 1.0), (-1.5 * wide, 1.0)]), WOOD)
    if rng.random() < 0.4:  # needles
        steps = zip((0.5, 0.62, 0.75), (-1.0, -0.68, -0.3), (-0.28, 0.12, 0.6), strict=True)
        layers = [np.array([(0, top), (half, low), (-half, low)]) for half, top, low in steps]
        return [trunk, *(Piece(layer, shade(color, 1 - 0.12 * (2 - n)), True) for n, layer in enumerate(layers[::-1]))]
    crown = [(-0.38, -0.05, 0.4), (0.38, -0.05, 0.4), (-0.25, -0.45, 0.4), (0.27, -0.47, 0.4), (0, -0.6, 0.4)]
    crown = [(x + rng.normal(0, 0.03), y, r * rng.uniform(0.92, 1.08)) for x, y, r in crown]
    leaves = [Piece(ellipse(x, y, r, r, num=20), shade(color, rng.uniform(0.82, 1.0))) for x, y, r in crown]
    return [trunk, *leaves, Piece(ellipse(0, -0.25, 0.45, 0.42), color, True)]


def flower(rng: np.random.Generator, color: Color) -> list[Piece]:
    """Stands on a stem with two leaves."""
    num_petals, long = int(rng.integers(5, 9)), rng.uniform(0.3, 0.36)
    center = (250, 214, 70) if np.linalg.norm(np.subtract(color, COLORS["yellow"])) > 90 else (120, 72, 36)
    pieces = [
        Piece(capsule((0, -0.3), (0, 0.96), 0.045), LEAF),
        Piece(smooth([(0, 0.75), (0.2, 0.42), (0.48, 0.32), (0.36, 0.62)]), LEAF),
        Piece(smooth([(0, 0.88), (-0.2, 0.58), (-0.46, 0.5), (-0.34, 0.78)]), shade(LEAF, 0.85)),
    ]
    half = min(0.2, 0.75 / num_petals + 0.05)
    petal = ellipse(long, 0, long * 0.85, half, num=16)
    for number in range(num_petals):
        angle = 2 * math.pi * (number + 0.25) / num_petals
        pieces.append(Piece(turn(petal, angle) + (0, -0.4), shade(color, 1.0 if number % 2 else 0.9)))
    return [*pieces, Piece(ellipse(0, -0.4, 0.19, 0.19, num=20), center)]


def umbrella(rng: np.random.Generator, color: Color) -> list[Piece]:
    """Is open, its handle below."""
    second = shade(color, 1.9) if rng.random() < 0.5 else shade(color, 0.72)
    num_panels, edge = int(rng.integers(4, 7)), -0.05
    xs = np.linspace(-1, 1, num_panels + 1)
    hook = [(0.03, 0.0), (0.03, 0.78), (0.1, 0.88), (0.2, 0.86), (0.24, 0.72), (0.3, 0.72), (0.28, 0.92), (0.12, 1.0)]
    hook += [(-0.03, 0.85), (-0.03, 0.0)]
    pieces = [Piece(capsule((0, -1.0), (0, -0.8), 0.035), METAL), Piece(np.array(hook), shade(WOOD, 0.9))]
    for number, (left, right) in enumerate(itertools.pairwise(xs)):
        # From the tip along two ribs, which bend outwards, to an arched edge.
        share = np.linspace(0, 1, 9)[:, None]
        rib = [np.concatenate([x * np.sin(share * math.pi / 2), edge - 0.82 * np.cos(share * math.pi / 2)], 1)
               for x in (left, right)]  # fmt: skip
        arch = ellipse((left + right) / 2, edge, (right - left) / 2, 0.1, 0.0, -0.5, num=8)[1:-1]
        pieces.append(Piece(np.concatenate([rib[0][::-1], rib[1], arch]), second if number % 2 else color))
    return pieces


def cup(rng: np.random.Generator, color: Color) -> list[Piece]:
    """Has a handle, through which one sees."""
    low, top = rng.uniform(0.38, 0.6), rng.uniform(-0.75, -0.6)
    body = np.array([(-0.72, top), (0.52, top), (low - 0.08, 0.8), (-low - 0.12, 0.8)])
    return [
        Piece(ellipse(0.5, 0.0, 0.46, 0.42), shade(color, 0.85)),
        Piece(ellipse(0.5, 0.0, 0.27, 0.24, num=20), None),
        Piece(body, color, True),
        Piece(ellipse(-0.1, 0.78, (low + 0.02), 0.1, num=20), color),
        Piece(ellipse(-0.1, top, 0.62, 0.17), shade(color, 1.5)),
        Piece(ellipse(-0.1, top + 0.02, 0.52, 0.12), [(92, 58, 36), (250, 246, 236), (186, 120, 60)][rng.integers(3)]),
    ]


def donut(rng: np.random.Generator, color: Color) -> list[Piece]:
    """Is a ring with icing, and sprinkles on it."""
    hole = rng.uniform(0.26, 0.36)
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    wave = 0.84 + 0.05 * np.sin(angles * int(rng.integers(5, 9)) + rng.uniform(0, 6))
    icing = np.stack([wave * np.cos(angles), wave * np.sin(angles)], -1)
    pieces = [Piece(ellipse(0, 0, 1, 1, num=40), (206, 150, 88)), Piece(icing, color)]
    for _ in range(int(rng.integers(10, 24))):
        radius, angle, tilt = rng.uniform(hole + 0.14, 0.72), rng.uniform(0, 6.3), rng.uniform(0, 3.2)
        middle = radius * np.array([math.cos(angle), math.sin(angle)])
        reach = 0.06 * np.array([math.cos(tilt), math.sin(tilt)])
        sprinkle = (250, 250, 245) if rng.random() < 0.4 else tuple(int(value) for value in rng.integers(60, 255, 3))
        corners = [middle - reach, middle + reach, middle + 0.9 * reach + 0.02, middle - 0.9 * reach + 0.02]
        pieces.append(Piece(np.array(corners), sprinkle))
    pieces.append(Piece(ellipse(0, 0, hole + 0.06, hole + 0.06), (206, 150, 88)))
    return [*pieces, Piece(ellipse(0, 0, hole, hole), None)]


def balloon(rng: np.random.Generator, color: Color) -> list[Piece]:
    """Floats, a knot and a string below."""
    wide = rng.uniform(0.66, 0.8)
    egg = ellipse(0, -0.12, wide, 0.86, num=32)
    egg[:, 0] *= 1 - 0.18 * np.clip(egg[:, 1], 0, 1)
    sway = rng.uniform(-0.15, 0.15)
    down = np.linspace(0, 1, 8)
    line = np.stack([sway * np.sin(6 * down), 0.9 + 0.9 * down], -1)
    string = np.concatenate([line, line[::-1] + (0.03, 0)])
    return [
        Piece(string, (90, 90, 96), is_body=False),
        Piece(np.array([(0, 0.68), (0.14, 0.92), (-0.14, 0.92)]), shade(color, 0.75)),
        Piece(egg, color, True),
        Piece(turn(ellipse(0, 0, 0.1, 0.24, num=16), 0.5) + (-0.34 * wide / 0.7, -0.48), shade(color, 2.6)),
    ]


def turn(points_xy: np.ndarray, angle: float) -> np.ndarray:
    """Points turned about (0, 0), clockwise as y points down."""
    sine, cosine = math.sin(angle), math.cos(angle)
    return points_xy @ np.array([[cosine, sine], [-sine, cosine]])


def move(pieces: Sequence[Piece], matrix: np.ndarray, offset: Sequence[float]) -> list[Piece]:
    """Pieces with all points times a matrix `(2, 2)`, then shifted."""
    points = np.concatenate([piece.points_xy for piece in pieces]) @ matrix + np.asarray(offset)
    moved, start = [], 0
    for old, color, is_textured, is_body in pieces:
        moved.append(Piece(points[start : start + len(old)], color, is_textured, is_body))
        start += len(old)
    return moved


class Kind(NamedTuple):
    r"""What is drawn for a class.

    Args:
        draw (`Callable`): Of a source of randomness and the main colour; returns pieces.
        colors (`str`): Names in `COLORS` of what it comes in.
        tilt (`float`): Largest turn to either side, in radians.
        floats (`bool`): Whether it hangs in the air rather than casts a shadow on the ground."""

    draw: Callable[[np.random.Generator, Color], list[Piece]]
    colors: str
    tilt: float
    floats: bool = False


MOST = "red orange yellow green blue purple pink white black"
THINGS = {
    "cat": Kind(cat, "orange gray black white brown", 0.08),
    "fish": Kind(fish, "red orange yellow green blue purple pink", 0.5, True),
    "car": Kind(car, "red orange yellow green blue purple white gray black", 0.06),
    "boat": Kind(boat, "red orange green blue purple white brown black", 0.12),
    "house": Kind(house, "red orange yellow green blue pink white gray brown", 0.03),
    "tree": Kind(tree, "green green green orange yellow pink", 0.06),
    "flower": Kind(flower, "red orange yellow blue purple pink white", 0.2),
    "umbrella": Kind(umbrella, MOST, 0.4),
    "cup": Kind(cup, MOST + " gray", 0.08),
    "donut": Kind(donut, "pink brown white yellow green blue", math.pi, True),
    "balloon": Kind(balloon, MOST, 0.15, True),
}
# Class ids of drawn scenes, and how more than one is called.
SCENE_CLASSES = dict(enumerate(["person", *THINGS], start=1))
PLURALS = {name: f"{name}s" for name in THINGS} | {"person": "people", "fish": "fish"}
