"""How found objects are drawn on a picture: boxes and labels that stay readable from 100 to 4,000 pixels."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

# Turning the hue by the golden angle keeps any two neighbouring label ids far apart, and the next ones between them.
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
# Lightness takes turns too: hues alone run out after a dozen classes. All are light enough for black letters.
LIGHTNESS = (0.74, 0.84, 0.66)
CHROMA = 0.18
SHADOW = (0, 0, 0, 120)  # around lines and labels, so that light ones show on snow and dark ones at night

LONGEST_NAME = 28  # letters
LABEL_SHARE = 0.10  # labels together may cover this share of the picture before their type is made smaller
SMALLEST_TYPE = 9  # pixels; below it letters are no longer letters
HIDDEN_SHARE = 0.12  # a label may lie on its neighbours with this share of its area before a shorter one is tried


class Rectangle(NamedTuple):
    """A rectangle in pixels; `right` and `bottom` are exclusive."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Square pixels, 0 when nothing is inside."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)

    def overlap(self, other: "Rectangle") -> float:
        """Square pixels that both rectangles cover."""
        return Rectangle(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        ).area


def class_color(label: int) -> tuple[int, int, int]:
    """The colour of a class, the same in every picture and every run.

    Args:
        label (`int`): Raw label id.
    Returns:
        `tuple[int, int, int]`: Red, green, blue in `[0, 255]`.
    Source: the matrices are those of the OKLab colour space (Ottosson, 2020)."""
    hue = label * GOLDEN_ANGLE
    lightness, a, b = LIGHTNESS[label % len(LIGHTNESS)], CHROMA * math.cos(hue), CHROMA * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    red, green, blue = (round(255 * min(1.0, max(0.0, part)) ** (1 / 2.2)) for part in linear)
    return red, green, blue


def line_width(size: tuple[int, int]) -> int:
    """The width of a box's line in pixels for a picture of `size` (width, height)."""
    return max(1, round(math.sqrt(size[0] * size[1]) / 280))


def type_size(size: tuple[int, int]) -> float:
    """The height of the labels' type in pixels for a picture of `size` (width, height) with few objects."""
    return max(SMALLEST_TYPE, math.sqrt(size[0] * size[1]) / 38)


def clip_box(box_xyxy: Sequence[float], size: tuple[int, int]) -> Rectangle | None:
    """A box cut to the picture and at least one pixel large; None for one that is outside or not finite.

    Args:
        box_xyxy (`Sequence[float]`): `left, top, right, bottom` in pixels; corners in any order.
        size (`tuple[int, int]`): Width and height of the picture."""
    x0, y0, x1, y1 = (float(value) for value in box_xyxy)
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        return None
    left, right = sorted((x0, x1))
    top, bottom = sorted((y0, y1))
    if right < 0 or bottom < 0 or left > size[0] or top > size[1]:
        return None
    left, top = min(max(left, 0.0), size[0] - 1.0), min(max(top, 0.0), size[1] - 1.0)
    return Rectangle(left, top, max(min(right, size[0]), left + 1), max(min(bottom, size[1]), top + 1))


def label_texts(label: int, score: float | None, names: Mapping[int, str] | None) -> list[str]:
    """What may be written beside a box: the class name with the score, and, where room is short, the name alone."""
    name = " ".join(str((names or {}).get(label, f"class {label}")).split())
    if len(name) > LONGEST_NAME:
        name = name[: LONGEST_NAME - 1] + "…"
    return [name] if score is None else [f"{name} {score:.2f}", name]


def label_places(box: Rectangle, width: float, height: float, size: tuple[int, int]) -> list[Rectangle]:
    """Where a label of `width` by `height` may stand for `box`, the most natural first, all inside the picture."""
    free_x, free_y = box.right - box.left - width, box.bottom - box.top - height
    places = [
        (box.left, box.top - height),  # on the box's top edge, from its left: where readers look first
        (box.left, box.top),
        (box.left, box.bottom),
        (box.right - width, box.top - height),
        (box.right - width, box.bottom),
        (box.left, box.bottom - height),
        (box.right, box.top),  # beside the box
        (box.left - width, box.top),
        (box.right, box.bottom - height),
        (box.left - width, box.bottom - height),
    ]
    for share in (0.5, 0.25, 0.75):  # along the edges of a large box
        if free_x > 0:
            x = box.left + share * free_x
            places += [(x, y) for y in (box.top - height, box.top, box.bottom, box.bottom - height)]
        if free_y > 0:
            places += [(x, box.top + share * free_y) for x in (box.left, box.right - width)]
    inside = []
    for left, top in places:
        left = max(0.0, min(left, size[0] - width))
        top = max(0.0, min(top, size[1] - height))
        inside.append(Rectangle(left, top, left + width, top + height))
    return inside


def place_labels(
    boxes: Sequence[Rectangle], label_sizes: Sequence[Sequence[tuple[float, float]]], size: tuple[int, int]
) -> list[tuple[int, Rectangle] | None]:
    """Choose a place for every label so that labels cover each other, and the objects, as little as possible.

    Small boxes choose first: they have the fewest places that are near. Each takes the place that hides least of the
    labels placed before it (weighs most), of the boxes it does not belong to, and of its own box. A label that finds no
    room becomes shorter, and in a dense crowd it is left out: the colour of the box still tells its class.

    Args:
        boxes (`Sequence[Rectangle]`): The boxes, inside the picture.
        label_sizes (`Sequence[Sequence[tuple[float, float]]]`): Of each box, width and height in pixels of the
            labels to choose from, the preferred one first.
        size (`tuple[int, int]`): Width and height of the picture.
    Returns:
        `list[tuple[int, Rectangle] | None]`: In the order of `boxes`, which label was chosen and its place."""
    placed: dict[int, tuple[int, Rectangle]] = {}

    def cost(index: int, rank: int, place: Rectangle) -> tuple[float, float]:
        labels = sum(place.overlap(other) for _, other in placed.values()) / place.area
        others = sum(place.overlap(box) / min(place.area, box.area) for i, box in enumerate(boxes) if i != index)
        own = place.overlap(boxes[index]) / boxes[index].area
        return 10 * labels + 0.2 * others + own + 0.02 * rank, labels

    for index in sorted(range(len(boxes)), key=lambda i: boxes[i].area):
        for choice, (width, height) in enumerate(label_sizes[index]):
            places = label_places(boxes[index], width, height, size)
            (_, hidden), place = min((cost(index, rank, place), place) for rank, place in enumerate(places))
            if hidden <= HIDDEN_SHARE:
                placed[index] = choice, place
                break
    return [placed.get(index) for index in range(len(boxes))]


def draw_detections(
    image: Image.Image,
    boxes_xyxy: Sequence[Sequence[float]],
    labels: Sequence[int],
    scores: Sequence[float] | None = None,
    names: Mapping[int, str] | None = None,
) -> Image.Image:
    """Draw boxes with their class names and scores on a copy of a picture.

    Args:
        image (`PIL.Image.Image`): The picture, of any mode and size.
        boxes_xyxy (array of shape `(num_objects, 4)`): `left, top, right, bottom` in pixels. Boxes that reach outside
            are cut, boxes that are not finite or wholly outside are left out.
        labels (array of shape `(num_objects,)`): Raw label ids; they choose the colours.
        scores (array of shape `(num_objects,)`, *optional*): In `[0, 1]`; written behind the names.
        names (`Mapping[int, str]`, *optional*): Name of each label id, for example `model.config.id2label`.
    Returns:
        `PIL.Image.Image`: A new RGB picture of the same size.
    Raises:
        ValueError: If boxes, labels and scores differ in number."""
    picture = image.convert("RGB")
    boxes_xyxy, labels = _as_list(boxes_xyxy), [int(label) for label in _as_list(labels)]
    scores = [None] * len(labels) if scores is None else [float(score) for score in _as_list(scores)]
    if not len(boxes_xyxy) == len(labels) == len(scores):
        counts = f"{len(boxes_xyxy)} boxes, {len(labels)} labels and {len(scores)} scores"
        raise ValueError(f"{counts}: each object needs one of each")
    clipped = [clip_box(box, picture.size) for box in boxes_xyxy]
    kept = [index for index, box in enumerate(clipped) if box is not None]
    # Large objects first, so that the lines of small ones lie on top.
    kept.sort(key=lambda index: -clipped[index].area)
    boxes = [clipped[index] for index in kept]
    colors = [class_color(labels[index]) for index in kept]
    texts = [label_texts(labels[index], scores[index], names) for index in kept]
    if not boxes:
        return picture

    font, padding, label_sizes = _fit_labels(texts, picture.size)
    draw = ImageDraw.Draw(picture, "RGBA")  # blends the shadows
    width = line_width(picture.size)
    shadow = max(1, width // 3)
    for box, color in zip(boxes, colors):
        _draw_box(draw, box, color, width, shadow)
    for chosen, choices, color in zip(place_labels(boxes, label_sizes, picture.size), texts, colors):
        if chosen is not None:
            choice, place = chosen
            corners = (round(place.left), round(place.top), round(place.right) - 1, round(place.bottom) - 1)
            draw.rectangle(_grow(corners, shadow), fill=SHADOW)
            draw.rectangle(corners, fill=color)
            middle = (corners[1] + corners[3] + 1) / 2
            draw.text((corners[0] + padding, middle), choices[choice], fill=(0, 0, 0), font=font, anchor="lm")
    return picture


def _as_list(values) -> list:
    """A tensor, an array or any sequence as a list of Python values."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _grow(corners: tuple[int, int, int, int], margin: int) -> tuple[int, int, int, int]:
    """A rectangle with `margin` more pixels on every side."""
    return corners[0] - margin, corners[1] - margin, corners[2] + margin, corners[3] + margin


def _fit_labels(texts: list[list[str]], size: tuple[int, int]):
    """The type, its padding, and the sizes of each box's labels; crowded pictures get smaller type."""
    full = type_size(size)
    for factor in (1.0, 0.9, 0.8, 0.7, 0.6):
        height = max(SMALLEST_TYPE, full * factor)
        font = ImageFont.load_default(height)
        padding = max(1, round(height / 5))
        label_height = math.ceil(height * 1.25)
        label_sizes = [
            [(math.ceil(font.getlength(text)) + 2 * padding, label_height) for text in choices] for choices in texts
        ]
        covered = sum(width * height for (width, height), *_ in label_sizes)
        if covered <= LABEL_SHARE * size[0] * size[1] or height == SMALLEST_TYPE:
            break
    return font, padding, label_sizes


def _draw_box(draw: ImageDraw.ImageDraw, box: Rectangle, color: tuple[int, int, int], width: int, shadow: int) -> None:
    """The outline of a box, its outer edge on the box's edge, between two thin shadows."""
    left, top = round(box.left), round(box.top)
    right, bottom = max(left, round(box.right) - 1), max(top, round(box.bottom) - 1)
    corners = (left, top, right, bottom)
    width = max(1, min(width, (right - left) // 3, (bottom - top) // 3))  # a tiny object stays visible inside its box
    draw.rectangle(_grow(corners, shadow), outline=SHADOW, width=shadow)
    if min(right - left, bottom - top) > 2 * (width + shadow) + 4:
        draw.rectangle(_grow(corners, -width), outline=SHADOW, width=shadow)
    draw.rectangle(corners, outline=color, width=width)
