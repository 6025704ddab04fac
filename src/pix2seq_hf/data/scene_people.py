r"""What do the people of a drawn scene look like: poses of a skeleton in space, its outlines and its 17 keypoints.

A person is about 2 units tall, x to the right, y down, z towards the viewer, the middle at (0, 0). It is posed facing
the viewer, with its left hand on the right of the picture, and then turned about the vertical axis.
"""

import math
from typing import NamedTuple

import numpy as np

from pix2seq_hf.data.scene_things import DARK, Color, Piece, capsule, ellipse, move, shade, turn

SKINS = [(255, 219, 186), (236, 188, 146), (198, 142, 98), (146, 96, 62), (98, 64, 44)]
HAIRS = [(40, 30, 26), (92, 58, 34), (150, 100, 50), (226, 188, 106), (176, 84, 40), (150, 150, 152)]
TROUSERS = [(44, 62, 110), (60, 60, 66), (120, 100, 74), (92, 110, 80), (160, 160, 166), (84, 48, 48)]
SHIRTS = "red orange yellow green blue purple pink white gray black"

HEAD_RADIUS, HEAD_Y, SHOULDER_Y, HIP_Y = 0.165, -0.78, -0.5, 0.04
SHOULDER_X, HIP_X = 0.2, 0.105
ARM, THIGH, SHIN = 0.3, 0.42, 0.42  # upper arm and forearm are alike
# Azimuth and elevation, in radians, of what is on the face, in the order of COCO's first five keypoints.
FACE = ((0.0, -0.12), (0.42, 0.14), (-0.42, 0.14), (1.5, 0.0), (-1.5, 0.0))
POSES = ("stand", "walk", "run", "arms up", "wave", "star", "hips", "sit")


class Person(NamedTuple):
    r"""A drawn person.

    Args:
        pieces (`list[Piece]`): From back to front.
        keypoints_xy (`np.ndarray` of shape `(17, 2)`): In COCO's order.
        is_seen (`np.ndarray` of shape `(17,)`): False where the person hides the keypoint itself."""

    pieces: list[Piece]
    keypoints_xy: np.ndarray
    is_seen: np.ndarray


class Limb(NamedTuple):
    r"""How an arm or a leg is held: per bone, the angle to the side and to the front from hanging down, in radians."""

    upper: tuple[float, float]
    lower: tuple[float, float]


def choose_pose(rng: np.random.Generator, pose: str) -> tuple[list[Limb], float]:
    r"""Draw how a person holds its limbs.

    Args:
        rng (`numpy.random.Generator`): Source of randomness.
        pose (`str`): One of `POSES`.
    Returns:
        `tuple`: Left arm, right arm, left leg, right leg; and a turn about the vertical axis that shows them well."""
    hang = [Limb((rng.uniform(0.08, 0.3), f := rng.normal(0, 0.12)), (rng.uniform(0, 0.25), f + rng.uniform(0, 0.5)))
            for _ in range(2)]  # fmt: skip
    firm = [Limb((a := rng.uniform(0.03, 0.14), rng.normal(0, 0.05)), (a * 0.6, rng.normal(0, 0.03))) for _ in range(2)]
    turns = (0.0, math.pi, rng.uniform(0, 2 * math.pi))  # from the front, from behind, from anywhere
    facing = float(rng.choice(turns, p=(0.6, 0.15, 0.25)) + rng.normal(0, 0.35))
    sideways = float(rng.choice([-1, 1]) * math.pi / 2 + rng.normal(0, 0.35))
    lead = float(rng.choice([-1, 1]))
    if pose in ("walk", "run"):
        swing = rng.uniform(0.3, 0.5) if pose == "walk" else rng.uniform(0.6, 0.85)
        bend = rng.uniform(0.15, 0.4) if pose == "walk" else rng.uniform(0.9, 1.3)
        elbow = rng.uniform(0.2, 0.5) if pose == "walk" else rng.uniform(1.3, 1.7)
        arms = [Limb((0.12, s * swing), (0.06, s * swing + elbow)) for s in (-lead, lead)]
        legs = [Limb((0.04, s * swing), (0.02, s * swing - (bend if s < 0 else 0.25 * bend))) for s in (lead, -lead)]
        return arms + legs, sideways if rng.random() < 0.75 else facing
    if pose == "arms up":
        arms = [Limb((a := rng.uniform(2.3, 2.85), 0.1), (a + rng.uniform(-0.1, 0.5), 0.1)) for _ in range(2)]
        return arms + firm, facing
    if pose == "wave":
        waving = Limb((rng.uniform(1.3, 1.9), 0.1), (rng.uniform(2.7, 3.4), 0.1))
        return ([waving, hang[1]] if lead > 0 else [hang[0], waving]) + firm, facing
    if pose == "star":
        arms = [Limb((a := rng.uniform(1.3, 2.0), 0.0), (a + rng.uniform(-0.2, 0.3), 0.0)) for _ in range(2)]
        wide = rng.uniform(0.3, 0.5)
        return [*arms, Limb((wide, 0.0), (wide, 0.0)), Limb((wide, 0.0), (wide, 0.0))], facing
    if pose == "hips":
        arms = [Limb((rng.uniform(0.7, 0.95), -0.1), (-rng.uniform(0.75, 1.0), 0.15)) for _ in range(2)]
        return arms + firm, facing
    if pose == "sit":
        thigh = rng.uniform(1.35, 1.6)
        legs = [Limb((0.06, thigh), (0.04, rng.uniform(-0.15, 0.25))) for _ in range(2)]
        arms = [Limb((0.08, rng.uniform(0.2, 0.5)), (0.0, rng.uniform(1.0, 1.4))) for _ in range(2)]
        return arms + legs, sideways
    return hang + firm, facing


def draw_person(rng: np.random.Generator, color: Color, pose: str | None = None, facing: float | None = None) -> Person:
    r"""Draw a person.

    Args:
        rng (`numpy.random.Generator`): Source of randomness.
        color (`Color`): Of the shirt.
        pose (`str`, *optional*): One of `POSES`, by default any.
        facing (`float`, *optional*): Turn about the vertical axis; at 0 it looks at the viewer, at half a turn away.
    Returns:
        [`Person`]."""
    pose = POSES[rng.integers(len(POSES))] if pose is None else pose
    limbs, usual = choose_pose(rng, pose)
    facing = usual if facing is None else facing
    skin, hair, trousers = (_any(rng, each) for each in (SKINS, HAIRS, TROUSERS))
    long_sleeves, shorts, long_hair = rng.random(3) < (0.5, 0.25, 0.35)
    build = rng.uniform(0.9, 1.2)

    space = np.zeros((17, 3))  # x, y, z
    space[5:7] = [(SHOULDER_X * build, SHOULDER_Y, 0), (-SHOULDER_X * build, SHOULDER_Y, 0)]
    space[11:13] = [(HIP_X * build, HIP_Y, 0), (-HIP_X * build, HIP_Y, 0)]
    for first, length, (left, right) in ((5, (ARM, ARM), limbs[:2]), (11, (THIGH, SHIN), limbs[2:])):
        for side, limb in ((0, left), (1, right)):
            sign = 1 - 2 * side
            for step, bone in enumerate((limb.upper, limb.lower)):
                start = space[first + 2 * step + side]
                space[first + 2 * step + 2 + side] = start + length[step] * _direction(bone, sign)
    look = float(np.clip(rng.normal(0, 0.25), -0.6, 0.6))  # the head turns a little further
    middle = np.array([0, HEAD_Y, 0.02])
    for number, (azimuth, elevation) in enumerate(FACE):
        ray = math.cos(elevation) * math.sin(azimuth), -math.sin(elevation), math.cos(elevation) * math.cos(azimuth)
        radius = HEAD_RADIUS * (0.84 if number < 3 else 1.0)  # ears stand out
        space[number] = middle + radius * _about_vertical(np.array(ray), look)
    toes = [space[15 + side] + (0, 0.06, 0.14) for side in (0, 1)]
    points = _about_vertical(np.vstack([space, toes, middle]), facing)
    flat, depth = points[:, :2], points[:, 2]

    groups: list[tuple[float, frozenset[int], list[Piece]]] = []  # depth, whose keypoints it cannot hide, pieces
    thick = 0.5 + 0.5 * build
    for side in (0, 1):
        shoulder, elbow, wrist = (flat[number + side] for number in (5, 7, 9))
        sleeve = shade(color, 0.92)
        arm = [
            Piece(capsule(elbow, wrist, 0.056 * thick, 0.046), sleeve if long_sleeves else skin),
            Piece(capsule(wrist, wrist + 0.18 * (wrist - elbow), 0.052), skin),
            Piece(capsule(shoulder, elbow, 0.075 * thick, 0.06), sleeve),
        ]
        groups.append((_mean(depth, (5, 7, 7, 9), side) + 0.02, frozenset((5 + side, 7 + side, 9 + side)), arm))
        hip, knee, ankle, toe = (flat[number + side] for number in (11, 13, 15, 17))
        heel = ankle + (0, 0.055)
        leg = [
            Piece(capsule(heel, toe, 0.05, 0.042), DARK if rng.random() < 0.6 else (236, 236, 236)),
            Piece(capsule(knee, ankle, 0.075 * thick, 0.055), skin if shorts else trousers),
            Piece(capsule(hip, knee, 0.1 * thick, 0.08), trousers),
        ]
        leg_order = _mean(depth, (11, 13, 15), side) - (0.3 if abs(math.sin(facing)) < 0.6 else 0.0)
        groups.append((leg_order, frozenset((11 + side, 13 + side, 15 + side)), leg))
    corners = [(flat[5], 0.09), (flat[6], 0.09), (flat[11], 0.105), (flat[12], 0.105)]
    outline = np.concatenate([ellipse(*point, radius * thick, radius * thick, num=10) for point, radius in corners])
    torso = [
        Piece(capsule((flat[5] + flat[6]) / 2 - (0, 0.05), flat[19], 0.06), shade(skin, 0.9)),
        Piece(_hull(outline), color, True),
    ]
    groups.append((0.0, frozenset((5, 6, 11, 12)), torso))
    head, is_on_face = _draw_head(flat, depth, skin, hair, facing + look)
    if long_hair:
        x, y = flat[19]
        locks = Piece(ellipse(x - 0.07 * math.sin(facing), y + 0.1, 0.18, 0.27, num=20), shade(hair, 0.85))
        if math.cos(facing) > -0.3:  # behind the body
            torso.insert(0, locks)
        else:
            head.append(locks)
    groups.append((1.0 if pose != "arms up" else 0.05, frozenset(range(5)), head))
    groups.sort(key=lambda group: group[0])

    is_seen, painted = np.ones(17, bool), set()
    for _, own, pieces in groups:  # a later group hides what it covers of the earlier ones
        earlier = sorted(painted - own)
        for piece in pieces if earlier else ():
            if len(piece.points_xy) < 14:  # on a face: too small to hide anything
                continue
            is_seen[earlier] &= ~_inside_convex(flat[earlier], piece.points_xy)
        painted |= own
    is_seen[:5] &= is_on_face
    is_seen[[5, 6, 11, 12]] &= depth[[5, 6, 11, 12]] > -0.07  # the far ones of a person seen from the side
    pieces = [piece for _, _, group in groups for piece in group]
    lean = rng.normal(0, 0.05)
    return Person(move(pieces, turn(np.eye(2), lean), (0, 0)), turn(flat[:17], lean), is_seen)


def _draw_head(
    flat: np.ndarray, depth: np.ndarray, skin: Color, hair: Color, facing: float
) -> tuple[list[Piece], np.ndarray]:
    """Pieces of a head, and which of the five keypoints on it are on the side of the viewer."""
    x, y = flat[19]
    faces = math.cos(facing)
    seen = depth[:5] - depth[19] > np.array([0.0, 0.0, 0.0, -0.08, -0.08])
    pieces = []
    ears = [
        Piece(ellipse(*flat[3 + side], 0.035, 0.045, num=12), shade(skin, 0.88)) for side in (0, 1) if seen[3 + side]
    ]
    is_edge = abs(faces) > 0.6  # ears stand out at the sides
    pieces += ears if is_edge else []
    pieces.append(Piece(ellipse(x, y, 0.15, HEAD_RADIUS + 0.015, num=24), skin))
    back = -math.sin(facing)
    if faces < -0.45:
        pieces.append(Piece(ellipse(x, y - 0.02, 0.155, HEAD_RADIUS + 0.005, num=24), hair))
    else:  # a cap, lower at the back of the head
        cap = ellipse(x, y - 0.01, 0.158, HEAD_RADIUS + 0.02, 0.5, 1.0, num=16)
        low = 0.1 * np.clip([-back, back], -0.3, 1)  # left, right
        fringe = [(0.158, low[1]), (0.09, low[1] - 0.08), (0, -0.085), (-0.09, low[0] - 0.08), (-0.158, low[0])]
        pieces.append(Piece(np.concatenate([cap, np.array(fringe) + (x, y)]), hair))
    pieces += [] if is_edge else ears
    for number in (1, 2):
        if seen[number]:
            pieces.append(Piece(ellipse(*flat[number], 0.026, 0.03, num=10), (30, 30, 34)))
    if seen[0]:
        pieces.append(Piece(ellipse(*flat[0], 0.026, 0.024, num=10), shade(skin, 0.72)))
        mouth = flat[0] * 0.55 + flat[19] * 0.45 + (0, 0.075)
        pieces.append(Piece(ellipse(*mouth, 0.045, 0.014, num=10), (176, 70, 70)))
    return pieces, seen


def _direction(bone: tuple[float, float], sign: int) -> np.ndarray:
    aside, forward = bone
    return np.array([sign * math.sin(aside), math.cos(aside) * math.cos(forward), math.cos(aside) * math.sin(forward)])


def _about_vertical(points: np.ndarray, angle: float) -> np.ndarray:
    """Points turned about the vertical axis: what is in front moves to the right of the picture."""
    sine, cosine = math.sin(angle), math.cos(angle)
    return points @ np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])


def _mean(depth: np.ndarray, numbers: tuple[int, ...], side: int) -> float:
    return float(np.mean([depth[number + side] for number in numbers]))


def _any(rng: np.random.Generator, colors: list[Color]) -> Color:
    return colors[rng.integers(len(colors))]


def _hull(points_xy: np.ndarray) -> np.ndarray:
    """The convex hull, clockwise as y points down."""
    ordered = sorted(map(tuple, points_xy.tolist()))
    halves = []
    for points in (ordered, ordered[::-1]):
        chain: list[tuple[float, float]] = []
        for x, y in points:
            while len(chain) > 1:
                (x0, y0), (x1, y1) = chain[-2:]
                if (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        halves += chain[:-1]
    return np.array(halves)


def _inside_convex(points_xy: np.ndarray, outline_xy: np.ndarray) -> np.ndarray:
    """Which points a convex outline encloses: `(num_points,)`."""
    edges = np.concatenate([outline_xy[1:], outline_xy[:1]]) - outline_xy
    to_points = points_xy[:, None] - outline_xy
    sides = edges[:, 0] * to_points[..., 1] - edges[:, 1] * to_points[..., 0]
    return (sides >= -1e-9).all(1) | (sides <= 1e-9).all(1)
