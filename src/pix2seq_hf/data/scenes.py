r"""What is in a drawn scene: which things, where, in front of what; its boxes, masks, keypoints and sentences.

A scene follows from (seed, split, index) and its options alone, so there is no end of them and any one can be drawn
again. Annotations are in COCO's form and about what can be seen: things hide each other, and reach out of the picture.
`scene_things` and `scene_people` say what things look like, `scene_drawing` how they are painted.
"""

import math
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pix2seq_hf.data.scene_captions import write_captions
from pix2seq_hf.data.scene_drawing import Drawing, draw_background, draw_pieces, draw_shadow, finish
from pix2seq_hf.data.scene_outlines import outline
from pix2seq_hf.data.scene_people import SHIRTS, draw_person
from pix2seq_hf.data.scene_things import COLORS, SCENE_CLASSES, THINGS, Color, Piece, move, turn
from pix2seq_hf.masks_pix2seq import mask_to_rle

SIZES = (2.6, 1.5)  # of a beta distribution, from the smallest to the largest on a logarithmic scale
MIN_VISIBLE = 0.2  # share of a thing that must be seen; else it is not drawn at all
MIN_PIXELS = 24
MAX_ATTEMPTS = 50  # of drawing a scene with something in it
MIN_HEIGHT_OF_KEYPOINTS = 32  # pixels; smaller people have none, as in COCO
CROWDS = ("person", "person", "person", "flower", "balloon", "fish")
CROWD_SIZE = (10, 25)


@dataclass(frozen=True)
class SceneOptions:
    r"""What scenes are like.

    Args:
        image_size (`tuple[int, int]`): Height and width in pixels.
        num_objects (`tuple[int, int]`): Fewest and most things; few are more frequent than many.
        diameters (`tuple[float, float]`): Smallest and largest larger side of a thing in pixels; the largest fills nine
            tenths of the picture's shorter side. Those in between are more frequent.
        crowd_rate (`float`): Share of the scenes with a crowd.
        max_points (`int`): Points of an outline, those between its parts included.
        needs_person (`bool`): Have someone with keypoints in every scene."""

    image_size: tuple[int, int] = (320, 320)
    num_objects: tuple[int, int] = (1, 25)
    diameters: tuple[float, float] = (10, 400)
    crowd_rate: float = 0.08
    max_points: int = 56
    needs_person: bool = False

    def __post_init__(self):
        if min(self.image_size) < 32:
            raise ValueError(f"scenes of {self.image_size[0]} x {self.image_size[1]} pixels: must be at least 32 x 32")
        for name, (low, high), smallest in (("num_objects", self.num_objects, 1), ("diameters", self.diameters, 8)):
            if not smallest <= low <= high:
                raise ValueError(f"{name} {low} to {high}: must go from {smallest} or more to no less")
        if self.num_objects[1] > 200:
            raise ValueError(f"num_objects {self.num_objects[1]}: at most 200")
        if self.max_points < 4:
            raise ValueError(f"max_points {self.max_points}: an outline must have at least 4")
        if not 0 <= self.crowd_rate <= 1:
            raise ValueError(f"crowd_rate {self.crowd_rate} is outside [0, 1]")
        if self.diameters[0] > 0.9 * min(self.image_size):
            raise ValueError(f"things of {self.diameters[0]:g} pixels do not fit into a picture of {self.image_size}")


class Scene(NamedTuple):
    r"""A drawn scene.

    Args:
        picture (`PIL.Image.Image`): RGB.
        objects (`list[dict]`): From back to front, as annotations of COCO: `category_id` (of `SCENE_CLASSES`), `bbox`,
            `area`, `iscrowd`, `segmentation` (polygons; run lengths of crowds) and `color`; people have `keypoints` and
            `num_keypoints` too. Without ids.
        captions (`list[str]`): Five sentences."""

    picture: Image.Image
    objects: list[dict[str, Any]]
    captions: list[str]


@dataclass
class Placed:
    """A thing in a scene; keypoints in pixels."""

    name: str
    color: str
    drawing: Drawing
    is_crowd: bool = False
    keypoints_xy: np.ndarray | None = None
    is_seen: np.ndarray | None = None

    def window(self) -> tuple[slice, slice]:
        """Where it is in the picture."""
        drawing, (rows, columns) = self.drawing, self.drawing.mask.shape
        return slice(drawing.top, drawing.top + rows), slice(drawing.left, drawing.left + columns)


def draw_scene(seed: int, split: str, index: int, options: SceneOptions | None = None) -> Scene:
    r"""Draw one scene.

    Args:
        seed (`int`), split (`str`), index (`int`): Which one.
        options ([`SceneOptions`], *optional*): What scenes are like.
    Returns:
        [`Scene`] with at least one object that is no crowd.
    Raises:
        ValueError: If the options let nothing of what is needed be seen."""
    options = SceneOptions() if options is None else options
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index, attempt])
        scene = _draw(rng, options)
        if scene is not None:
            return scene
    wanted = f"anyone of {MIN_HEIGHT_OF_KEYPOINTS} pixels, for keypoints," if options.needs_person else "anything"
    low, high = options.diameters
    raise ValueError(f"scenes of diameters {low:g}-{high:g} hardly ever show {wanted}: choose larger ones")


def _draw(rng: np.random.Generator, options: SceneOptions) -> Scene | None:
    """Draw a scene, or `None` if nothing of what is needed can be seen."""
    picture, horizon = draw_background(rng, options.image_size)
    placed = _place(rng, options, horizon)
    owner = _owners(placed, options.image_size)
    kept = []
    for number, thing in enumerate(placed, start=1):
        count = np.count_nonzero(owner[thing.window()] == number)
        if count >= max(MIN_PIXELS, MIN_VISIBLE * thing.drawing.num_pixels):
            kept.append(thing)
    owner = owner if len(kept) == len(placed) else _owners(kept, options.image_size)
    objects = [_annotate(thing, number, owner, options) for number, thing in enumerate(kept, start=1)]
    if all(item["iscrowd"] for item in objects):
        return None
    if options.needs_person and not any(item.get("num_keypoints") for item in objects):
        return None
    for thing in kept:
        rows, columns = thing.drawing.mask.shape
        bottom = thing.drawing.top + rows
        if horizon and not thing.is_crowd and not _floats(thing.name) and bottom < options.image_size[0]:
            draw_shadow(picture, thing.drawing.left + columns / 2, bottom - 1, 0.45 * columns)
        picture.paste(thing.drawing.picture, (thing.drawing.left, thing.drawing.top), thing.drawing.coverage)
    return Scene(finish(rng, picture), objects, write_captions(rng, objects))


def _place(rng: np.random.Generator, options: SceneOptions, horizon: float) -> list[Placed]:
    """Choose things and their places; from back to front."""
    height, width = options.image_size
    fewest, most = options.num_objects
    num_objects = fewest + int((most - fewest + 1) * rng.random() ** 2.5)
    # The more there are, the smaller they are.
    largest = min(options.diameters[1], 0.9 * min(height, width)) * min(1.0, math.sqrt(5 / num_objects))
    smallest = min(options.diameters[0], largest)
    is_outlined = rng.random() < 0.6
    names = list(SCENE_CLASSES.values())
    if rng.random() < 0.3:  # few kinds, several of each
        names = [names[place] for place in rng.integers(len(names), size=2)]
    things, taken = [], np.zeros((0, 4))
    sizes = smallest * (largest / smallest) ** rng.beta(*SIZES, num_objects)
    for number, diameter in enumerate(sorted(sizes.tolist(), reverse=True)):  # small ones find a place more easily
        name = names[rng.integers(len(names))] if rng.random() < 0.85 else "person"
        if number == 0 and options.needs_person:
            name = "person"
        for _ in range(8):
            box, base = _choose_place(rng, diameter, options.image_size, 0.0 if _floats(name) else horizon)
            if not len(taken) or _overlap(box, taken).max() < (0.75 if rng.random() < 0.12 else 0.4):
                break
        else:
            continue
        taken = np.vstack([taken, box])
        thing = _draw_thing(rng, name, diameter, box, options.image_size, is_outlined)
        if thing is not None:
            things.append((base + rng.normal(0, 0.03 * height), thing))
    things = [thing for _, thing in sorted(things, key=lambda pair: pair[0])]
    if rng.random() < options.crowd_rate:
        things[:0] = _draw_crowd(rng, options.image_size, horizon)
    return things


def _draw_thing(
    rng: np.random.Generator,
    name: str,
    diameter: float,
    box: np.ndarray,
    image_size: tuple[int, int],
    is_outlined: bool,
) -> Placed | None:
    """A thing of a class in its place, or `None` if it is outside of the picture."""
    names = (SHIRTS if name == "person" else THINGS[name].colors).split()
    color = names[rng.integers(len(names))]
    rgb: Color = tuple(int(value) for value in (np.array(COLORS[color]) + rng.normal(0, 9, 3)).clip(0, 255))
    keypoints_xy = is_seen = None
    if name == "person":
        pieces, keypoints_xy, is_seen = draw_person(rng, rgb)
        matrix = np.eye(2)
    else:
        kind = THINGS[name]
        pieces = kind.draw(rng, rgb)
        matrix = turn(np.diag([rng.choice([-1, 1]) * rng.uniform(0.88, 1.12), 1.0]), rng.uniform(-1, 1) * kind.tilt)
    matrix, middle = matrix * diameter / 2, (box[:2] + box[2:]) / 2
    drawing = draw_pieces(rng, move(pieces, matrix, middle), rgb, image_size, is_outlined)
    if drawing is None:
        return None
    keypoints_xy = None if keypoints_xy is None else keypoints_xy @ matrix + middle
    return Placed(name, color, drawing, keypoints_xy=keypoints_xy, is_seen=is_seen)


def _draw_crowd(rng: np.random.Generator, image_size: tuple[int, int], horizon: float) -> list[Placed]:
    """Many small things of one class side by side."""
    height, width = image_size
    name, count = CROWDS[rng.integers(len(CROWDS))], int(rng.integers(*CROWD_SIZE))
    diameter = rng.uniform(0.05, 0.09) * min(height, width)
    reach = 0.3 * diameter * count
    left = rng.uniform(-0.2 * reach, max(width - 0.8 * reach, 0))
    top = rng.uniform(0, 0.6) * height if _floats(name) or not horizon else (horizon + rng.uniform(0, 0.2)) * height
    pieces: list[Piece] = []
    places = np.stack([rng.uniform(0, reach, count), rng.uniform(0, diameter, count)], -1)
    for x, y in sorted(places.tolist(), key=lambda place: place[1]):
        names = (SHIRTS if name == "person" else THINGS[name].colors).split()
        rgb = COLORS[names[rng.integers(len(names))]]
        one = draw_person(rng, rgb).pieces if name == "person" else THINGS[name].draw(rng, rgb)
        one = [piece._replace(is_textured=False) for piece in one]
        pieces += move(one, np.eye(2) * diameter / 2, (left + x, top + y))
    drawing = draw_pieces(rng, pieces, (128, 128, 128), image_size, False)
    return [] if drawing is None else [Placed(name, "gray", drawing, is_crowd=True)]


def _annotate(thing: Placed, number: int, owner: np.ndarray, options: SceneOptions) -> dict[str, Any]:
    """A thing as an annotation of COCO, of what can be seen of it."""
    drawing = thing.drawing
    mask = owner[thing.window()] == number
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    top, left = int(rows[0]), int(columns[0])
    mask = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    top, left = top + drawing.top, left + drawing.left
    item = {
        "category_id": next(label for label, name in SCENE_CLASSES.items() if name == thing.name),
        "bbox": [left, top, mask.shape[1], mask.shape[0]],
        "area": int(np.count_nonzero(mask)),
        "iscrowd": int(thing.is_crowd),
        "color": thing.color,
    }
    if thing.is_crowd:
        item["segmentation"] = mask_to_rle(owner == number)
    else:
        item["segmentation"] = outline(mask, top, left, options.max_points)
    if thing.keypoints_xy is not None:
        item["keypoints"] = _triples(thing, number, owner)
        item["num_keypoints"] = sum(value > 0 for value in item["keypoints"][2::3])
    return item


def _triples(thing: Placed, number: int, owner: np.ndarray) -> list[float]:
    """Keypoints as COCO writes them: 2 is seen, 1 is hidden, 0 is outside of the picture."""
    height, width = owner.shape
    points = thing.keypoints_xy
    if np.ptp(points[:, 1]) < MIN_HEIGHT_OF_KEYPOINTS:
        return [0] * (3 * len(points))
    triples: list[float] = []
    for (x, y), is_seen in zip(points.round(1).tolist(), thing.is_seen.tolist(), strict=True):
        if not (0 <= x < width and 0 <= y < height):
            triples += [0, 0, 0]
            continue
        is_hidden = owner[int(y), int(x)] not in (0, number)
        triples += [x, y, 2 if is_seen and not is_hidden else 1]
    return triples


def _owners(things: list[Placed], image_size: tuple[int, int]) -> np.ndarray:
    """The number, from 1, of the frontmost thing at every pixel, 0 for none: `(height, width)`."""
    owner = np.zeros(image_size, np.uint8)
    for number, thing in enumerate(things, start=1):
        owner[thing.window()][thing.drawing.mask] = number
    return owner


def _choose_place(
    rng: np.random.Generator, diameter: float, image_size: tuple[int, int], horizon: float
) -> tuple[np.ndarray, float]:
    """The square that a thing is drawn into (xmin, ymin, xmax, ymax), and how far down it stands."""
    height, width = image_size
    inside = 0.5 if rng.random() < 0.75 else 0.25  # a quarter may reach out of the picture
    x, y = (
        rng.uniform(*sorted((inside * diameter, side - inside * diameter))) if side > diameter else side / 2
        for side in (width, height)
    )
    if horizon:  # its foot is on the ground
        lowest = height + (0.0 if inside == 0.5 else 0.25 * diameter)
        y = rng.uniform(min(horizon * height, lowest - 1), lowest) - diameter / 2
        y = max(y, 0.3 * diameter)
    half = diameter / 2
    return np.array([x - half, y - half, x + half, y + half]), y + half


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection as a share of the smaller one, of a square with others `(num_others, 4)`."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1)
    return shared / np.minimum(areas, (box[2:] - box[:2]).prod())


def _floats(name: str) -> bool:
    return name != "person" and THINGS[name].floats
