"""How found objects are drawn on a picture: boxes, masks, skeletons and text, readable from 100 to 4,000 pixels."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .masks_pix2seq import rle_to_mask

# Turning the hue by the golden angle keeps any two neighbouring label ids far apart, and the next ones between them.
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
# Lightness takes turns too: hues alone run out after a dozen classes. All are light enough for black letters.
LIGHTNESS = (0.74, 0.84, 0.66)
CHROMA = 0.18
SHADOW = (0, 0, 0, 120)  # around lines and labels, so that light ones show on snow and dark ones at night

LONGEST_NAME = 28  # letters
LABEL_SHARE = 0.10  # labels together may cover this share of the picture before their type is made smaller
MOST_LABEL_SHARE = 0.3  # and no more than this: on a tiny picture only the largest objects have labels
SMALLEST_TYPE = 9  # pixels; below it letters are no longer letters
HIDDEN_SHARE = 0.05  # a label may lie on its neighbours with this share of its area before a shorter one is tried

MASK_SHARE = 0.45  # of the colour inside a mask; the rest is the picture
HOLLOW_SCORE = 0.1  # keypoints of a lower score are drawn as rings
SUPERSAMPLED_PIXELS = 12_000_000  # skeletons are drawn larger and made smaller, as far as this allows: smooth edges
CAPTION_COLOR, CAPTION_PAPER = (244, 244, 245), (24, 24, 27)
MOST_CAPTION_LINES = 12


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
    boxes: Sequence[Rectangle],
    label_sizes: Sequence[Sequence[tuple[float, float]]],
    size: tuple[int, int],
    points_xy: Sequence[Sequence[float]] = (),
) -> list[tuple[int, Rectangle] | None]:
    """Choose a place for every label so that labels cover each other, and the objects, as little as possible.

    Small boxes choose first: they have the fewest places that are near. Each takes the place that hides least of the
    labels placed before it (weighs most), of the boxes it does not belong to, of its own box, and of keypoints. A label
    that finds no room becomes shorter, and in a dense crowd it is left out: the box's colour still tells its class.

    Args:
        boxes (`Sequence[Rectangle]`): The boxes, inside the picture.
        label_sizes (`Sequence[Sequence[tuple[float, float]]]`): Of each box, width and height in pixels of the
            labels to choose from, the preferred one first.
        size (`tuple[int, int]`): Width and height of the picture.
        points_xy (`Sequence[Sequence[float]]`): Keypoints, for they mark what readers look at, faces above all.
    Returns:
        `list[tuple[int, Rectangle] | None]`: In the order of `boxes`, which label was chosen and its place."""
    placed: dict[int, tuple[int, Rectangle]] = {}

    def cost(index: int, rank: int, place: Rectangle) -> tuple[float, float]:
        labels = sum(place.overlap(other) for _, other in placed.values()) / place.area
        others = sum(place.overlap(box) / min(place.area, box.area) for i, box in enumerate(boxes) if i != index)
        own = place.overlap(boxes[index]) / boxes[index].area
        points = sum(place.left <= x < place.right and place.top <= y < place.bottom for x, y in points_xy)
        return 10 * labels + 0.2 * others + own + 0.08 * points + 0.02 * rank, labels

    room = MOST_LABEL_SHARE * size[0] * size[1]
    chosen: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -boxes[i].area):
        width, height = label_sizes[index][0]
        room -= width * height
        if room >= 0 or not chosen:
            chosen.append(index)
    for index in reversed(chosen):
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
    masks: Sequence[Any] | None = None,
    keypoints: Sequence[Any] | None = None,
    skeleton: Sequence[tuple[int, int]] = (),
    captions: Sequence[str] = (),
) -> Image.Image:
    """Draw objects with their class names and scores on a copy of a picture, and captions under it.

    Args:
        image (`PIL.Image.Image`): The picture, of any mode and size.
        boxes_xyxy (array of shape `(num_objects, 4)`): `left, top, right, bottom` in pixels. Boxes that reach outside
            are cut, boxes that are not finite or wholly outside are left out with all that belongs to them.
        labels (array of shape `(num_objects,)`): Raw label ids; they choose the colours.
        scores (array of shape `(num_objects,)`, *optional*): In `[0, 1]`; written behind the names.
        names (`Mapping[int, str]`, *optional*): Name of each label id, for example `model.config.id2label`.
        masks (`Sequence`, *optional*): Of each object `None`, an array `(height, width)`, or COCO run lengths.
        keypoints (`Sequence`, *optional*): Of each object `None` or rows `x, y, score`; points of no score, or that are
            not finite, are left out, those with little of it are hollow.
        skeleton (`Sequence[tuple[int, int]]`): Which keypoints, counted from 0, are joined by a line.
        captions (`Sequence[str]`): Written under the picture, which gets higher by that.
    Returns:
        `PIL.Image.Image`: A new RGB picture, of the same size unless there are captions.
    Raises:
        ValueError: If boxes, labels, scores, masks and keypoints differ in number, or a mask is of another size."""
    picture = image.convert("RGB")
    boxes_xyxy, labels = _as_list(boxes_xyxy), [int(label) for label in _as_list(labels)]
    scores = [None] * len(labels) if scores is None else [float(score) for score in _as_list(scores)]
    if not len(boxes_xyxy) == len(labels) == len(scores):
        counts = f"{len(boxes_xyxy)} boxes, {len(labels)} labels and {len(scores)} scores"
        raise ValueError(f"{counts}: each object needs one of each")
    masks = [None] * len(labels) if masks is None else list(masks)
    keypoints = [None] * len(labels) if keypoints is None else list(keypoints)
    if not len(masks) == len(keypoints) == len(labels):
        counts = f"{len(masks)} masks and {len(keypoints)} sets of keypoints"
        raise ValueError(f"{counts} for {len(labels)} objects: give each object one, None where it has none")
    clipped = [clip_box(box, picture.size) for box in boxes_xyxy]
    kept = [index for index, box in enumerate(clipped) if box is not None]
    # Large objects first, so that small ones lie on top.
    kept.sort(key=lambda index: -clipped[index].area)
    boxes = [clipped[index] for index in kept]
    colors = [class_color(labels[index]) for index in kept]
    texts = [label_texts(labels[index], scores[index], names) for index in kept]

    width = line_width(picture.size)
    original = picture.copy()
    for index, color in zip(kept, colors):
        if masks[index] is not None:
            _draw_mask(picture, original, masks[index], color, width)
    for box, color, index in zip(boxes, colors, kept):
        # Where a mask shows the object, its box steps back.
        _draw_box(picture, box, color, width if masks[index] is None else max(1, width // 2), max(1, width // 3))
    points = _draw_skeletons(picture, [keypoints[index] for index in kept if keypoints[index] is not None], skeleton)
    _draw_labels(picture, boxes, texts, colors, max(1, width // 3), points)
    return add_captions(picture, captions)


def _draw_labels(
    picture: Image.Image,
    boxes: Sequence[Rectangle],
    texts: list[list[str]],
    colors: Sequence[tuple[int, int, int]],
    shadow: int,
    points_xy: Sequence[Sequence[float]],
) -> None:
    """Write what each box is beside it, on its colour."""
    if not boxes:
        return
    font, padding, label_sizes = _fit_labels(texts, picture.size)
    draw = ImageDraw.Draw(picture, "RGBA")  # blends the shadows
    for chosen, choices, color in zip(place_labels(boxes, label_sizes, picture.size, points_xy), texts, colors):
        if chosen is not None:
            choice, place = chosen
            corners = (round(place.left), round(place.top), round(place.right) - 1, round(place.bottom) - 1)
            radius = (corners[3] - corners[1]) // 6
            draw.rounded_rectangle(_grow(corners, shadow), radius + shadow, fill=SHADOW)
            draw.rounded_rectangle(corners, radius, fill=color)
            middle = (corners[1] + corners[3] + 1) / 2
            draw.text((corners[0] + padding, middle), choices[choice], fill=(0, 0, 0), font=font, anchor="lm")


def _draw_mask(picture: Image.Image, original: Image.Image, mask: Any, color: tuple[int, int, int], width: int) -> None:
    """Tint an object and draw its outline. The tint is that of the original, so that tints never add up in a crowd."""
    pixels = rle_to_mask(mask) if isinstance(mask, Mapping) else _as_array(mask)
    if pixels.shape != (picture.height, picture.width):
        raise ValueError(f"a mask is {pixels.shape}, the picture has {(picture.height, picture.width)} (height, width)")
    pixels = pixels > 0.5
    rows, columns = np.nonzero(pixels.any(1))[0], np.nonzero(pixels.any(0))[0]
    if not len(rows):
        return
    margin = 3 * width + 2
    left, top = max(0, int(columns[0]) - margin), max(0, int(rows[0]) - margin)
    right, bottom = min(picture.width, int(columns[-1]) + margin + 1), min(picture.height, int(rows[-1]) + margin + 1)
    inside = Image.fromarray(pixels[top:bottom, left:right].astype(np.uint8) * 255)
    ground = original.crop((left, top, right, bottom))
    tinted = Image.blend(ground, Image.new("RGB", ground.size, color), MASK_SHARE)
    picture.paste(tinted, (left, top), inside)
    half = max(1.0, 0.55 * width)
    outer, outline = _edge(inside, half + max(0.6, width / 3)), _edge(inside, half)
    picture.paste(SHADOW[:3], (left, top), outer.point(lambda value: value * SHADOW[3] // 255))
    picture.paste(color, (left, top), outline)


def _edge(inside: Image.Image, half: float) -> Image.Image:
    """How much each pixel belongs to a line of 2 `half` pixels along the edge of a mask; it ends smoothly."""
    # A blurred straight edge is the normal distribution of the distance to it: the value tells the distance.
    share = np.asarray(inside.filter(ImageFilter.GaussianBlur(half)), np.float32) / 255
    near, far = (0.5 * math.erf(distance / half / math.sqrt(2)) for distance in (max(half - 0.5, 0), half + 0.5))
    covered = np.clip((far - np.abs(share - 0.5)) / (far - near), 0, 1)
    return Image.fromarray((255 * covered).astype(np.uint8))


def _draw_skeletons(
    picture: Image.Image, objects: Sequence[Any], skeleton: Sequence[tuple[int, int]]
) -> list[tuple[float, float]]:
    """Draw keypoints and the lines between them, smooth, in colours that go from the first point to the last; return
    where there are points."""
    drawn: list[tuple[float, float]] = []
    if not objects:
        return drawn
    scale = max(1, min(4, int(math.sqrt(SUPERSAMPLED_PIXELS / (picture.width * picture.height)))))
    layer = Image.new("RGBA", (picture.width * scale, picture.height * scale), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)  # writes over what is there, with its transparency
    for points in objects:
        rows = np.asarray(_as_list(points), np.float64).reshape(-1, 3)
        shown = np.isfinite(rows).all(1) & (rows[:, 2] > 0)
        if not shown.any():
            continue
        drawn += map(tuple, rows[shown, :2].tolist())
        places = (rows[:, :2] * scale).clip(-1e5, 1e5)
        spread = math.hypot(*np.ptp(rows[shown, :2], axis=0))
        thick = scale * max(0.6, min(1.2 * line_width(picture.size), spread / 40))
        colors = [point_color(number, len(rows)) for number in range(len(rows))]
        limbs = [(a, b) for a, b in skeleton if max(a, b) < len(rows) and shown[a] and shown[b]]
        radius, rim = 1.3 * thick, max(0.4 * scale, thick / 3)
        for is_shadow in (True, False):
            for a, b in limbs:
                color = tuple((x + y) // 2 for x, y in zip(colors[a], colors[b]))
                line = thick + (2 * rim if is_shadow else 0)
                draw.line(
                    [*places[a], *places[b]], fill=(0, 0, 0, 170) if is_shadow else color, width=max(1, round(line))
                )
        for number in np.nonzero(shown)[0]:
            _draw_disc(draw, places[number], radius + rim, (0, 0, 0, 255))
            _draw_disc(draw, places[number], radius, colors[number])
            if rows[number, 2] < HOLLOW_SCORE:
                _draw_disc(draw, places[number], 0.55 * radius, (0, 0, 0, 255))
    layer = layer.reduce(scale) if scale > 1 else layer
    picture.paste(layer, (0, 0), layer)
    return drawn


def _draw_disc(draw: ImageDraw.ImageDraw, center: Sequence[float], radius: float, color: tuple[int, ...]) -> None:
    draw.ellipse((center[0] - radius, center[1] - radius, center[0] + radius, center[1] + radius), fill=color)


def point_color(number: int, count: int) -> tuple[int, int, int]:
    """The colour of keypoint `number` of `count`: from orange over green and blue to pink, so that parts that follow
    each other in a list of keypoints, the face or the legs, look alike."""
    hue = (0.08 + 0.84 * number / max(1, count - 1)) % 1
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.72, 1.0))
    return red, green, blue


def add_captions(picture: Image.Image, captions: Sequence[str]) -> Image.Image:
    r"""Write captions on a strip under a picture.

    Args:
        picture (`PIL.Image.Image`): RGB.
        captions (`Sequence[str]`): Each begins a line; long ones are continued on the next.
    Returns:
        `PIL.Image.Image`: The picture itself if there is nothing to write, else a higher one."""
    texts = [text for text in (" ".join(str(caption).split()) for caption in captions) if text]
    if not texts:
        return picture
    height = max(SMALLEST_TYPE + 1.0, 1.15 * type_size(picture.size))
    font = ImageFont.load_default(height)
    margin = max(2, round(0.6 * height))
    lines = [line for text in texts for line in wrap_text(text, font, max(1, picture.width - 2 * margin))]
    if len(lines) > MOST_CAPTION_LINES:
        lines = [*lines[: MOST_CAPTION_LINES - 1], "…"]
    step = math.ceil(1.35 * height)
    sheet = Image.new("RGB", (picture.width, picture.height + step * len(lines) + margin), CAPTION_PAPER)
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        middle = picture.height + margin / 2 + (number + 0.5) * step
        draw.text((margin, middle), line, fill=CAPTION_COLOR, font=font, anchor="lm")
    return sheet


def wrap_text(text: str, font: Any, width: float) -> list[str]:
    """Cut a text into lines that are at most `width` pixels wide, between words, or in a word that is too long."""
    lines, line = [], ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        lines.append(line)
        while font.getlength(word) > width and len(word) > 1:
            fitting = next(end for end in range(1, len(word)) if font.getlength(word[: end + 1]) > width)
            lines.append(word[:fitting])
            word = word[fitting:]
        line = word
    return [line for line in [*lines, line] if line]


def _as_array(values: Any) -> np.ndarray:
    """An array, or a tensor on any device, as an array."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


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


def _draw_box(picture: Image.Image, box: Rectangle, color: tuple[int, int, int], width: int, shadow: int) -> None:
    """The outline of a box, its outer edge on the box's edge, between two thin shadows."""
    draw = ImageDraw.Draw(picture, "RGBA")
    left, top = round(box.left), round(box.top)
    right, bottom = max(left, round(box.right) - 1), max(top, round(box.bottom) - 1)
    corners = (left, top, right, bottom)
    width = max(1, min(width, (right - left) // 3, (bottom - top) // 3))  # a tiny object stays visible inside its box
    draw.rectangle(_grow(corners, shadow), outline=SHADOW, width=shadow)
    if min(right - left, bottom - top) > 2 * (width + shadow) + 4:
        draw.rectangle(_grow(corners, -width), outline=SHADOW, width=shadow)
    draw.rectangle(corners, outline=color, width=width)
