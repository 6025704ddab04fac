r"""What can be learnt in minutes, without a download: drawn pictures of plain shapes whose boxes are known exactly.

Every picture follows from (seed, split, index) alone. Shapes differ in kind, size, rotation, colour and texture, may
overlap and reach to the border; the background has a gradient, clutter and noise.
"""

import colorsys
import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SHAPE_CLASSES = {1: "disc", 2: "rectangle", 3: "triangle", 4: "star", 5: "ring", 6: "cross"}
SUPERSAMPLING = 4  # shapes are drawn this many times larger and shrunk, for smooth edges
TEXTURES = ("plain", "stripes", "checks", "dots", "gradient")


class Shape(NamedTuple):
    r"""One shape of a scene.

    Args:
        label (`int`): Key of `SHAPE_CLASSES`.
        box_xywh (`tuple[int, int, int, int]`): Left, top, width, height in pixels of the whole shape inside the frame.
        area (`int`): Pixels of the whole shape."""

    label: int
    box_xywh: tuple[int, int, int, int]
    area: int


def draw_shapes(
    rng: np.random.Generator,
    image_size: tuple[int, int] = (128, 128),
    max_objects: int = 5,
    size_range: tuple[float, float] = (0.15, 0.5),
    min_visible: float = 0.5,
    labels: Sequence[int] = tuple(SHAPE_CLASSES),
    textures: Sequence[str] = TEXTURES,
    use_class_colors: bool = False,
) -> tuple[Image.Image, list[Shape]]:
    r"""Draw one picture of one or more shapes.

    Args:
        rng (`numpy.random.Generator`): Source of all randomness.
        image_size (`tuple[int, int]`): Height and width in pixels.
        max_objects (`int`): Most shapes; at least one is drawn.
        size_range (`tuple[float, float]`): Smallest and largest diameter as a share of the shorter side.
        min_visible (`float`): Share of every shape that later shapes and the border must leave visible.
        labels (`Sequence[int]`): Kinds of shapes, keys of `SHAPE_CLASSES`.
        textures (`Sequence[str]`): Kinds of paint, of `TEXTURES`.
        use_class_colors (`bool`): Give every kind of shape its own range of hues, on a background that is nearly gray:
            what a small network learns in minutes.
    Returns:
        `tuple`: The RGB picture and its shapes, from back to front."""
    canvas = _draw_background(rng, image_size, _gray_colors if use_class_colors else _any_colors)
    num_objects = int(rng.integers(1, max_objects + 1))
    visible: list[np.ndarray] = []
    objects: list[Shape] = []
    for _ in range(20 * num_objects):  # attempts: a crowded picture ends with fewer shapes
        if len(objects) == num_objects:
            break
        label = int(rng.choice(labels))
        diameter = rng.uniform(*size_range) * min(image_size)
        coverage, whole_area = _draw_shape(rng, label, diameter, image_size)
        mask = coverage >= 0.5
        remaining = [older & ~mask for older in visible]
        hides_too_much = any(
            left.sum() < min_visible * shape.area for left, shape in zip(remaining, objects, strict=True)
        )
        if hides_too_much or mask.sum() < max(min_visible * whole_area, 16):
            continue
        colors = _class_colors(rng, label) if use_class_colors else _any_colors(rng)
        paint = _draw_texture(rng, rng.choice(textures), colors, image_size, diameter)
        if np.abs(paint - canvas)[mask].mean() < 0.15:  # nobody could see it
            continue
        canvas += coverage[..., None] * (paint - canvas)
        visible = [*remaining, mask]
        (rows,), (columns,) = np.nonzero(mask.any(1)), np.nonzero(mask.any(0))
        box = (columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])
        objects.append(Shape(label, tuple(int(value) for value in box), int(mask.sum())))

    canvas += rng.normal(0, rng.uniform(0, 0.04), canvas.shape)
    return Image.fromarray((canvas.clip(0, 1) * 255).round().astype(np.uint8)), objects


def write_shapes(folder: str | Path, split: str, num_images: int, seed: int, **options: Any) -> Path:
    r"""Draw a set of pictures and write it as a COCO folder, to be read by [`~data.coco.read_coco`].

    Args:
        folder (`str` or `Path`): Gets `annotations/instances_<split>.json` and the pictures in `<split>/`.
        split (`str`): Name of the split; different splits of one seed have different pictures.
        num_images (`int`): How many.
        seed (`int`): The same seed draws the same pictures.
        **options: Of [`draw_shapes`].
    Returns:
        `Path`: The annotation file."""
    folder = Path(folder)
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(num_images):
        picture, objects = draw_shapes(shape_generator(seed, split, index), **options)
        image_id = index + 1
        file_name = f"{image_id:06d}.png"
        picture.save(folder / split / file_name)
        images.append({"id": image_id, "file_name": file_name, "width": picture.width, "height": picture.height})
        for item in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": item.label,
                    "bbox": list(item.box_xywh),
                    "area": item.area,
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {"description": f"{num_images} drawn pictures, seed {seed}, split {split}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in SHAPE_CLASSES.items()],
    }
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return path


def shape_generator(seed: int, split: str, index: int) -> np.random.Generator:
    """Return the source of randomness of one picture of a set."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index])


def _any_colors(rng: np.random.Generator) -> np.ndarray:
    """Two colours of any kind: (2, 3) in [0, 1], as from the two functions below."""
    return rng.uniform(0, 1, size=(2, 3)).astype(np.float32)


def _gray_colors(rng: np.random.Generator) -> np.ndarray:
    """Two colours that are nearly gray."""
    return (rng.uniform(0.1, 0.9, size=(2, 1)) + rng.uniform(-0.05, 0.05, size=(2, 3))).clip(0, 1).astype(np.float32)


def _class_colors(rng: np.random.Generator, label: int) -> np.ndarray:
    """Two colours with a hue of the class, strong and not too dark."""
    hues = (label - 1 + rng.uniform(-0.25, 0.25, size=2)) / len(SHAPE_CLASSES)
    colors = [colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 1), rng.uniform(0.5, 1)) for hue in hues]
    return np.array(colors, dtype=np.float32)


def _draw_background(
    rng: np.random.Generator, image_size: tuple[int, int], draw_colors: Callable[[np.random.Generator], np.ndarray]
) -> np.ndarray:
    """A colour gradient with a few faint lines: (height, width, 3) in [0, 1]."""
    canvas = _gradient(rng, image_size, *draw_colors(rng))
    height, width = image_size
    clutter = Image.new("L", (width, height))
    pen = ImageDraw.Draw(clutter)
    for _ in range(int(rng.integers(0, 5))):
        ends = [(float(rng.uniform(0, width)), float(rng.uniform(0, height))) for _ in range(2)]
        pen.line(ends, fill=int(rng.integers(40, 120)), width=int(rng.integers(1, 3)))
    strength = np.asarray(clutter, dtype=np.float32)[..., None] / 255
    return canvas + strength * (draw_colors(rng)[0] - canvas)


def _draw_shape(
    rng: np.random.Generator, label: int, diameter: float, image_size: tuple[int, int]
) -> tuple[np.ndarray, float]:
    """Coverage of every pixel in [0, 1], and the area in pixels that the shape would have without a frame."""
    height, width = image_size
    radius = diameter / 2
    center = np.array([rng.uniform(0.6 * radius, size - 0.6 * radius) for size in (width, height)])  # x, y
    stretch = rng.uniform(0.6, 1.0) if SHAPE_CLASSES[label] in ("disc", "rectangle", "ring") else 1.0
    turn = rng.uniform(0, 2 * math.pi)
    outlines = [
        _turn(np.array(outline) * radius * [1.0, stretch], turn) + center for outline in _OUTLINES[SHAPE_CLASSES[label]]
    ]
    layer = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    pen = ImageDraw.Draw(layer)
    area = 0.0
    for fill, outline in zip((255, 0), outlines, strict=False):  # the second outline is a hole
        pen.polygon([(float(x), float(y)) for x, y in outline * SUPERSAMPLING], fill=fill)
        area += math.copysign(_polygon_area(outline), fill - 1)
    coverage = np.asarray(layer.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255
    return coverage, area


def _draw_texture(
    rng: np.random.Generator, texture: str, colors: np.ndarray, image_size: tuple[int, int], diameter: float
) -> np.ndarray:
    """Paint for a shape, as a full picture: (height, width, 3) in [0, 1]."""
    first, second = colors
    if texture == "plain":
        return np.broadcast_to(first, (*image_size, 3))
    if texture == "gradient":
        return _gradient(rng, image_size, first, second)
    period = max(4.0, diameter * rng.uniform(0.15, 0.35))
    rows, columns = np.mgrid[: image_size[0], : image_size[1]].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    along = (columns * math.cos(angle) + rows * math.sin(angle)) / period
    across = (rows * math.cos(angle) - columns * math.sin(angle)) / period
    if texture == "stripes":
        chosen = along % 1 < 0.5
    elif texture == "checks":
        chosen = (along % 1 < 0.5) ^ (across % 1 < 0.5)
    else:  # dots
        chosen = (along % 1 - 0.5) ** 2 + (across % 1 - 0.5) ** 2 < 0.1
    return np.where(chosen[..., None], first, second)


def _gradient(rng: np.random.Generator, image_size: tuple[int, int], first, second) -> np.ndarray:
    """A linear change from one colour to another in a random direction: (height, width, 3)."""
    angle = rng.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[-1 : 1 : image_size[0] * 1j, -1 : 1 : image_size[1] * 1j]
    share = ((columns * math.cos(angle) + rows * math.sin(angle)) / (2 * math.sqrt(2)) + 0.5).astype(np.float32)
    return (first + share[..., None] * (np.asarray(second) - first)).astype(np.float32)


def _turn(points: np.ndarray, angle: float) -> np.ndarray:
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return points @ rotation.T


def _polygon_area(points: np.ndarray) -> float:
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _regular_polygon(num_corners: int, *radii: float) -> list[tuple[float, float]]:
    """Corners on circles of the given radii in turn: one radius a polygon, two a star."""
    angles = [2 * math.pi * corner / num_corners for corner in range(num_corners)]
    return [
        (radii[corner % len(radii)] * math.cos(angle), radii[corner % len(radii)] * math.sin(angle))
        for corner, angle in enumerate(angles)
    ]


_A = 0.33  # half the width of a cross's arms
# Outer outline, then holes, on the unit circle.
_OUTLINES = {
    "disc": [_regular_polygon(48, 1.0)],
    "rectangle": [[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]],
    "triangle": [_regular_polygon(3, 1.0)],
    "star": [_regular_polygon(10, 1.0, 0.45)],
    "ring": [_regular_polygon(48, 1.0), _regular_polygon(48, 0.5)],
    "cross": [
        [
            (-_A, -1), (_A, -1), (_A, -_A), (1, -_A), (1, _A), (_A, _A),
            (_A, 1), (-_A, 1), (-_A, _A), (-1, _A), (-1, -_A), (-_A, -_A),
        ]
    ],
}  # fmt: skip
