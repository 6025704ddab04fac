r"""How do the pixels of a drawn scene come about: backgrounds, paint, light, blur and noise, all in Pillow's C loops.

Everything random comes from the generator that is handed in.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pix2seq_hf.data.scene_things import Color, Piece, shade

NOISE_SIZE = 512  # side of the tiles that noise is cut from
NOISE_DEVIATIONS = (2, 5, 10, 60)  # of 255; the last is a texture
PAINTS = ("plain", "stripes", "dots", "gradient", "grain")
GROUNDS = ((118, 150, 88), (196, 178, 138), (128, 128, 124), (150, 128, 104), (206, 210, 214))
SKIES = ((150, 190, 226), (190, 208, 222), (226, 196, 170), (112, 132, 170), (204, 204, 206))


class Drawing(NamedTuple):
    r"""What one thing looks like, in a window of the scene.

    Args:
        picture (`PIL.Image.Image`): RGB.
        coverage (`PIL.Image.Image`): L: how much of each pixel it paints.
        mask (`np.ndarray` of shape `(rows, columns)`): Which pixels belong to it; strings and the like do not.
        left, top (`int`): Where the window lies; it never leaves the scene.
        num_pixels (`int`): Pixels of the mask if it had all the room it needs."""

    picture: Image.Image
    coverage: Image.Image
    mask: np.ndarray
    left: int
    top: int
    num_pixels: int


def draw_pieces(
    rng: np.random.Generator, pieces: Sequence[Piece], color: Color, image_size: tuple[int, int], is_outlined: bool
) -> Drawing | None:
    r"""Paint a thing.

    Args:
        rng (`numpy.random.Generator`): Source of randomness.
        pieces (`Sequence[Piece]`): With points in pixels of the scene, the first one at the back.
        color ([`Color`]): Its main colour.
        image_size (`tuple[int, int]`): Height and width of the scene.
        is_outlined (`bool`): Whether every piece has a thin dark edge.
    Returns:
        [`Drawing`], or `None` if nothing of it lies in the scene."""
    body = np.concatenate([piece.points_xy for piece in pieces if piece.is_body])
    points = np.concatenate([piece.points_xy for piece in pieces])
    low = np.floor(points.min(0)).astype(int) - 1
    high = np.ceil(points.max(0)).astype(int) + 1
    left, top = np.maximum(low, 0)
    right, bottom = np.minimum(high, image_size[::-1])
    if right <= left or bottom <= top:
        return None
    extent = float((body.max(0) - body.min(0)).max())
    scale = 4 if extent < 48 else 2  # pixels of the window are drawn this many times finer, and averaged
    size = int(right - left) * scale, int(bottom - top) * scale
    canvas, coverage = Image.new("RGB", size, shade(color, 0.7)), Image.new("L", size)
    has_extras = not all(piece.is_body for piece in pieces)
    body_mask = Image.new("L", size) if has_extras else coverage
    pen, layers = ImageDraw.Draw(canvas), [(ImageDraw.Draw(coverage), False)]
    layers += [(ImageDraw.Draw(body_mask), True)] if has_extras else []
    edge = max(1, round(scale * min(3.0, 0.6 + extent / 100)))  # its outer half is not painted
    kind = PAINTS[rng.integers(len(PAINTS))]
    numbers, start = ((points - (left, top)) * scale - 0.5).ravel().tolist(), 0
    for piece in pieces:
        corners = numbers[start : start + 2 * len(piece.points_xy)]
        start += len(corners)
        if piece.color is not None:
            pen.polygon(corners, fill=piece.color)
            if piece.is_textured and kind != "plain" and extent > 24:
                paint(rng, canvas, corners, piece.color, kind, extent * scale)
            if is_outlined:
                pen.line(corners + corners[:2], fill=shade(piece.color, 0.45), width=edge)
        for layer, only_body in layers:
            if piece.is_body or not only_body:
                layer.polygon(corners, fill=0 if piece.color is None else 255)
    whole = _area(pieces, body_mask, scale, (low, high), (left, top, right, bottom))
    canvas, coverage = canvas.reduce(scale), coverage.reduce(scale)
    body_mask = body_mask.reduce(scale) if has_extras else coverage
    canvas = ImageChops.multiply(canvas, blend_corners(rng.integers(170, 256, (2, 2)), canvas.size).convert("RGB"))
    return Drawing(canvas, coverage, np.asarray(body_mask) >= 128, int(left), int(top), whole)


def _area(
    pieces: Sequence[Piece], body_mask: Image.Image, scale: int, extent: tuple[np.ndarray, np.ndarray], window: tuple
) -> int:
    """Pixels of all bodies, also of what lies outside of the scene."""
    low, high = extent
    if (low >= window[:2]).all() and (high <= window[2:]).all():
        return round(np.count_nonzero(np.asarray(body_mask)) / scale**2)
    shrink = max(1.0, float((high - low).max()) / 100)  # roughly is enough
    size = tuple(math.ceil(side) + 1 for side in (high - low) / shrink)
    layer = Image.new("1", size)
    pen = ImageDraw.Draw(layer)
    for piece in pieces:
        if piece.is_body:
            pen.polygon(((piece.points_xy - low) / shrink).ravel().tolist(), fill=int(piece.color is not None))
    return round(np.count_nonzero(np.asarray(layer)) * shrink**2)


def paint(
    rng: np.random.Generator, canvas: Image.Image, corners: list[float], color: Color, kind: str, extent: float
) -> None:
    r"""Give a polygon on a canvas a texture.

    Args:
        rng (`numpy.random.Generator`): Source of randomness.
        canvas (`PIL.Image.Image`): RGB; is drawn on.
        corners (`list[float]`): x, y, ... of the polygon.
        color ([`Color`]): Of it.
        kind (`str`): One of `PAINTS`.
        extent (`float`): Size of the whole thing in pixels of the canvas."""
    xs, ys = corners[::2], corners[1::2]
    left, top = max(0, int(min(xs))), max(0, int(min(ys)))
    right, bottom = min(canvas.width, int(max(xs)) + 1), min(canvas.height, int(max(ys)) + 1)
    if right - left < 2 or bottom - top < 2:
        return
    size = right - left, bottom - top
    stencil = Image.new("L", size)
    moved = [value - (top if place % 2 else left) for place, value in enumerate(corners)]
    ImageDraw.Draw(stencil).polygon(moved, fill=255)
    second = shade(color, float(rng.choice([0.62, 0.78, 1.6])))
    if kind == "gradient":
        cover = blend_corners(rng.integers(0, 256, (2, 2)), size)
    elif kind == "grain":
        cover = noise(rng, 3, size)
    else:
        cover = Image.new("L", size)
        pen = ImageDraw.Draw(cover)
        period = max(6.0, extent * rng.uniform(0.1, 0.2))
        if kind == "dots":
            radius = 0.28 * period
            for row, y in enumerate(np.arange(0.3, size[1] / period + 1) * period):
                for x in (np.arange(0, size[0] / period + 1) + 0.5 * (row % 2)) * period:
                    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        else:
            slope = float(rng.choice([0.0, 0.0, 0.5, -0.5]))
            is_upright = rng.random() < 0.4
            long, across = size if not is_upright else size[::-1]
            reach = abs(slope) * long
            for start in np.arange(-reach, across + reach, period):
                ends = [(0, start), (long, start + slope * long)]
                pen.line(
                    [end[::-1] if is_upright else end for end in ends], fill=255, width=max(1, round(period * 0.42))
                )
    canvas.paste(second, (left, top), ImageChops.multiply(stencil, cover))


def draw_background(rng: np.random.Generator, image_size: tuple[int, int]) -> tuple[Image.Image, float]:
    r"""Paint what is behind everything.

    Args:
        rng (`numpy.random.Generator`): Source of randomness.
        image_size (`tuple[int, int]`): Height and width.
    Returns:
        `tuple`: RGB, and the height of the horizon as a share of the picture's, 0 if there is no ground."""
    height, width = image_size
    if rng.random() < 0.3:  # a wall
        first, second = (_muted(rng) for _ in range(2))
        picture = blend_colors(first, second, (width, height), rng)
        pen = ImageDraw.Draw(picture)
        for _ in range(int(rng.integers(0, 7))):
            ends = [(float(rng.uniform(0, width)), float(rng.uniform(0, height))) for _ in range(2)]
            pen.line(ends, fill=shade(_muted(rng), 0.9), width=int(rng.integers(1, 4)))
        horizon = 0.0
    else:
        horizon = rng.uniform(0.25, 0.6)
        edge = round(horizon * height)
        sky, ground = (_jitter(rng, each[rng.integers(len(each))], 14) for each in (SKIES, GROUNDS))
        picture = Image.new("RGB", (width, height))
        picture.paste(blend_colors(sky, shade(sky, 1.6), (width, edge), rng), (0, 0))
        picture.paste(blend_colors(shade(ground, 1.25), shade(ground, 0.85), (width, height - edge), rng), (0, edge))
        pen = ImageDraw.Draw(picture)
        if rng.random() < 0.5:  # hills
            xs = np.linspace(0, width, 12)
            ys = edge - rng.uniform(0.02, 0.12) * height * (
                1 + np.sin(xs / width * rng.uniform(4, 12) + rng.uniform(0, 6))
            )
            pen.polygon(
                [(0, edge), *zip(xs.tolist(), ys.tolist(), strict=True), (width, edge)], fill=shade(ground, 0.8)
            )
        for _ in range(int(rng.integers(0, 4))):  # clouds, and patches on the ground
            x, y, rx = rng.uniform(0, width), rng.uniform(0, 0.6 * edge), rng.uniform(0.04, 0.12) * width
            pen.ellipse((x - rx, y - 0.3 * rx, x + rx, y + 0.3 * rx), fill=shade(sky, 1.8))
            x, y = rng.uniform(0, width), rng.uniform(edge, height)
            pen.ellipse((x - rx, y - 0.15 * rx, x + rx, y + 0.15 * rx), fill=shade(ground, 0.92))
    grain = noise(rng, int(rng.integers(3)), (width, height)).convert("RGB")
    return ImageChops.add(picture, grain, 1, -128), horizon


def draw_shadow(scene: Image.Image, x: float, y: float, half_width: float) -> None:
    """Darken the ground under a thing that stands with its foot at (x, y)."""
    half_height = max(1.0, 0.16 * half_width)
    size = max(2, int(2 * half_width)), max(2, int(2 * half_height))
    scene.paste((20, 22, 26), (int(x - size[0] / 2), int(y - size[1] / 2)), _shadow_tile().resize(size))


def finish(rng: np.random.Generator, scene: Image.Image) -> Image.Image:
    """Put light, blur, contrast and noise over a scene."""
    if rng.random() < 0.7:
        floor = rng.integers(140, 230)
        light = blend_corners(rng.integers(floor, 256, (3, 3)), scene.size)
        tint = [int(value) for value in 255 - rng.integers(0, 22, 3)]
        bands = [light.point([value * share // 255 for value in range(256)]) for share in tint]
        scene = ImageChops.multiply(scene, Image.merge("RGB", bands))
    if rng.random() < 0.3:
        scene = scene.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 1.0)))
    gamma, gain = rng.uniform(0.8, 1.25), rng.uniform(0.9, 1.1)
    table = [min(255, int(255 * gain * (value / 255) ** gamma)) for value in range(256)]
    scene = scene.point(table * 3)
    strength = int(rng.integers(5))
    if strength < 3:
        bands = [noise(rng, strength, scene.size) for _ in range(3)]
        scene = ImageChops.add(scene, Image.merge("RGB", bands), 1, -128)
    return scene


def blend_corners(values: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A smooth change between values (0 to 255) on a coarse grid: a picture of mode L, of (width, height) `size`."""
    return Image.fromarray(values.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def blend_colors(first: Color, second: Color, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A change from one colour at the top to another at the bottom, with uneven corners."""
    values = np.array([[first, first], [second, second]], float) + rng.normal(0, 6, (2, 2, 3))
    size = max(1, size[0]), max(1, size[1])
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)


def noise(rng: np.random.Generator, strength: int, size: tuple[int, int]) -> Image.Image:
    """Gray noise about 128 of a (width, height) `size`, mode L; `strength` is a place in `NOISE_DEVIATIONS`."""
    tile = noise_tile(strength)
    left, top = (int(offset) for offset in rng.integers(0, NOISE_SIZE, 2))
    if left + size[0] <= NOISE_SIZE and top + size[1] <= NOISE_SIZE:
        return tile.crop((left, top, left + size[0], top + size[1]))
    repeated = Image.new("L", size)
    for x in range(-left, size[0], NOISE_SIZE):
        for y in range(-top, size[1], NOISE_SIZE):
            repeated.paste(tile, (x, y))
    return repeated


@functools.lru_cache
def noise_tile(strength: int) -> Image.Image:
    """What noise is cut from, the same in every process."""
    values = np.random.default_rng(strength).normal(128, NOISE_DEVIATIONS[strength], (NOISE_SIZE, NOISE_SIZE))
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


@functools.lru_cache
def _shadow_tile() -> Image.Image:
    rows, columns = np.mgrid[-1:1:64j, -1:1:64j]
    return Image.fromarray((130 * np.clip(1 - np.hypot(rows, columns), 0, 1)).astype(np.uint8))


def _muted(rng: np.random.Generator) -> Color:
    level = rng.uniform(70, 220)
    return tuple(int(value) for value in (level + rng.normal(0, 16, 3)).clip(0, 255))


def _jitter(rng: np.random.Generator, color: Color, deviation: float) -> Color:
    return tuple(int(value) for value in (np.array(color) + rng.normal(0, deviation, 3)).clip(0, 255))
