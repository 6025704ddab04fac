"""How charts are drawn: axes, curves and bars as a few shapes, which become SVG in a page and PNG beside it."""

import html
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pix2seq_hf.evaluation.curves import Calibration

# What a colour is in a light and in a dark page. Those of data differ in lightness as well as in hue.
PALETTE = {
    "paper": ("#ffffff", "#1c1c20"),
    "ink": ("#18181b", "#f4f4f5"),
    "pale": ("#63636e", "#a8a8b3"),
    "grid": ("#e4e4e7", "#38383f"),
    "blue": ("#2563eb", "#6ea8fe"),
    "mist": ("#a9c4f5", "#34548c"),
    "sky": ("#38a8dc", "#2b86b8"),
    "orange": ("#ea7317", "#fb9a4b"),
    "red": ("#d0342c", "#f2746b"),
    "violet": ("#7c4dcf", "#ad8cf0"),
    "green": ("#2c8f57", "#58bd86"),
}
WIDTH, HEIGHT = 480, 340
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 62, 48  # margins of the plot
TYPE = 13
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
PNG_SCALE, SUPERSAMPLING = 3, 2


class Shape(NamedTuple):
    r"""One thing on a chart.

    Args:
        kind (`str`): `"line"`, `"rectangle"` or `"text"`.
        points (`tuple[tuple[float, float], ...]`): Of the line; two corners of the rectangle; where the text stands.
        color (`str`): A key of `PALETTE`.
        width (`float`): Of the line; 0 for others.
        is_dashed (`bool`): Of the line.
        text (`str`): What is written, its middle at the height of the point.
        anchor (`str`): `"start"`, `"middle"` or `"end"` of the text is at the point."""

    kind: str
    points: tuple[tuple[float, float], ...]
    color: str
    width: float = 0.0
    is_dashed: bool = False
    text: str = ""
    anchor: str = "start"


class Chart(NamedTuple):
    r"""A drawing.

    Args:
        title (`str`): For those who cannot see it.
        size (`tuple[float, float]`): Width and height.
        shapes (`Sequence[Shape]`): Later ones lie on top."""

    title: str
    size: tuple[float, float]
    shapes: Sequence[Shape]


class Curve(NamedTuple):
    """A line in a chart: its name, its points, its colour, and whether it is dashed."""

    name: str
    x: np.ndarray
    y: np.ndarray
    color: str
    is_dashed: bool = False


def curve_chart(
    title: str, curves: Sequence[Curve], x_name: str, y_name: str, x_ticks: Sequence[float] = SHARES
) -> Chart:
    """Curves whose values are shares, from 0 to 1, over an axis from the first tick to the last, of even steps."""
    first, last = x_ticks[0], x_ticks[-1]
    places = [((tick - first) / (last - first), f"{tick:g}") for tick in x_ticks]
    shapes = [
        *_axes(x_name, y_name, places, _ticks(SHARES)),
        *_legend([(curve.name, curve.color, curve.is_dashed) for curve in curves]),
    ]
    for curve in curves:
        points = tuple(_place((x - first) / (last - first), y) for x, y in zip(curve.x, curve.y, strict=True))
        shapes.append(Shape("line", points, curve.color, 1.6 if curve.is_dashed else 2.4, curve.is_dashed))
    return Chart(title, (WIDTH, HEIGHT), shapes)


def line_chart(title: str, curves: Sequence[Curve], x_name: str, y_name: str) -> Chart:
    """Lines through measured points, over axes that begin at 0; their names above the plot or, of many, within it."""
    x_ticks, y_ticks = (
        nice_ticks(max((float(np.max(values)) for values in sides), default=1.0))
        for sides in ([curve.x for curve in curves], [curve.y for curve in curves])
    )
    shapes = _axes(
        x_name,
        y_name,
        [(tick / x_ticks[-1], f"{tick:g}") for tick in x_ticks],
        [
            (tick / y_ticks[-1], f"{tick / 1000:g}k" if y_ticks[-1] >= 1e4 and tick else f"{tick:,g}")
            for tick in y_ticks
        ],
    )
    for curve in curves:
        points = tuple(_place(x / x_ticks[-1], y / y_ticks[-1]) for x, y in zip(curve.x, curve.y, strict=True))
        shapes.append(Shape("line", points, curve.color, 1.6 if curve.is_dashed else 2.4, curve.is_dashed))
        shapes += [Shape("rectangle", ((x - 3, y - 3), (x + 3, y + 3)), curve.color) for x, y in points]
    entries = [(curve.name, curve.color, curve.is_dashed) for curve in curves]
    font = ImageFont.load_default(TYPE)
    if LEFT + sum(42 + 1.12 * font.getlength(name) for name, *_ in entries) <= WIDTH:
        return Chart(title, (WIDTH, HEIGHT), [*shapes, *_legend(entries)])
    for number, entry in enumerate(entries):  # below each other, where more of x has not made more of y yet
        right, down = 14, TOP - 26 + 18 * number
        for shape in _legend([entry]):
            shapes.append(shape._replace(points=tuple((x + right, y + down) for x, y in shape.points)))
    return Chart(title, (WIDTH, HEIGHT), shapes)


def calibration_chart(title: str, calibration: Calibration) -> Chart:
    """Bars of how often results of a score are correct, and the diagonal on which scores would be true."""
    shapes = [
        *_axes("score", "share that is correct", _ticks(SHARES), _ticks(SHARES)),
        *_legend([("measured", "mist", False), ("as the score says", "ink", True)]),
    ]
    for left, right, share in zip(calibration.edges, calibration.edges[1:], calibration.shares_correct, strict=False):
        if math.isfinite(share):
            shapes.append(_bar(left, right, 0, share, "mist"))
    shapes.append(Shape("line", (_place(0, 0), _place(1, 1)), "ink", 1.6, True))
    return Chart(title, (WIDTH, HEIGHT), shapes)


def histogram_chart(title: str, edges: np.ndarray, correct: np.ndarray, wrong: np.ndarray) -> Chart:
    """How many results have which score, the correct ones below, the wrong ones on top of them."""
    ticks = nice_ticks(float((correct + wrong).max(initial=1)))
    top = ticks[-1]
    shapes = [
        *_axes("score", "results", _ticks(SHARES), [(tick / top, f"{tick:g}") for tick in ticks]),
        *_legend([("correct", "blue", False), ("wrong", "orange", False)]),
    ]
    for left, right, low, high in zip(edges, edges[1:], correct, wrong, strict=False):
        if low:
            shapes.append(_bar(left, right, 0, low / top, "blue"))
        if high:
            shapes.append(_bar(left, right, low / top, (low + high) / top, "orange"))
    return Chart(title, (WIDTH, HEIGHT), shapes)


def bar_chart(title: str, name: str, bars: Sequence[tuple[str, float, str, str]]) -> Chart:
    r"""Bars from left to right, one below the other.

    Args:
        title (`str`): For those who cannot see it.
        name (`str`): What is counted.
        bars (`Sequence[tuple[str, float, str, str]]`): Of each its name, its length, what is written behind it, and its
            colour."""
    font = ImageFont.load_default(TYPE)
    left = 14 + 1.12 * max(font.getlength(label) for label, *_ in bars)
    room = WIDTH - RIGHT - left - 1.2 * max(font.getlength(text) for _, _, text, _ in bars) - 8
    longest = max(max(value for _, value, _, _ in bars), 1e-9)
    step, first = 31, 40
    shapes = [Shape("text", ((4, 14),), "pale", text=name)]
    height = first + step * len(bars) + 8
    shapes.append(Shape("line", ((left, first - 6), (left, height - 8)), "pale", 1))
    for number, (label, value, text, color) in enumerate(bars):
        y = first + step * number
        length = room * max(value, 0) / longest
        shapes.append(Shape("text", ((left - 8, y + 9),), "ink", text=label, anchor="end"))
        if length > 0:
            shapes.append(Shape("rectangle", ((left, y), (left + max(length, 1.5), y + 18)), color))
        shapes.append(Shape("text", ((left + length + 7, y + 9),), "ink", text=text))
    return Chart(title, (WIDTH, height), shapes)


def to_svg(chart: Chart) -> str:
    """A chart as an SVG element whose colours are the style variables `--NAME` of the page, NAME as in `PALETTE`."""
    width, height = chart.size
    parts = [f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(chart.title)}">']
    for shape in chart.shapes:
        color = f"var(--{shape.color})"
        (x, y), *_ = shape.points
        if shape.kind == "text":
            text = html.escape(shape.text)
            parts.append(
                f'<text x="{x:.1f}" y="{y + 0.36 * TYPE:.1f}" fill="{color}" text-anchor="{shape.anchor}">{text}</text>'
            )
        elif shape.kind == "rectangle":
            right, bottom = shape.points[1]
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{right - x:.1f}" height="{bottom - y:.1f}" fill="{color}"/>'
            )
        else:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
            dashes = ' stroke-dasharray="6 5"' if shape.is_dashed else ""
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{shape.width:g}"'
                f' stroke-linejoin="round"{dashes}/>'
            )
    return "".join([*parts, "</svg>"])


def to_image(chart: Chart) -> Image.Image:
    """A chart as a picture on white paper, `PNG_SCALE` pixels for every unit; drawn larger, for smooth edges."""
    scale = PNG_SCALE * SUPERSAMPLING
    colors = {name: light for name, (light, _) in PALETTE.items()}
    image = Image.new("RGB", [round(side * scale) for side in chart.size], colors["paper"])
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TYPE * scale)
    anchors = {"start": "lm", "middle": "mm", "end": "rm"}
    for shape in chart.shapes:
        points = [(x * scale, y * scale) for x, y in shape.points]
        color = colors[shape.color]
        if shape.kind == "text":
            draw.text(points[0], shape.text, color, font, anchor=anchors[shape.anchor])
        elif shape.kind == "rectangle":
            (left, top), (right, bottom) = points
            draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=color)
        else:
            for part in _dashes(points, 6 * scale, 5 * scale) if shape.is_dashed else [points]:
                draw.line(part, fill=color, width=round(shape.width * scale), joint="curve")
    return image.reduce(SUPERSAMPLING)


def nice_ticks(largest: float) -> list[float]:
    """Round numbers from 0 to one that is not below `largest`, four to six steps of 1, 2 or 5 times a power of ten."""
    largest = max(largest, 1.0)
    rough = largest / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    step = max(step, 1.0)
    return [step * number for number in range(math.ceil(largest / step - 1e-9) + 1)]


def _ticks(places: Sequence[float]) -> list[tuple[float, str]]:
    return [(place, f"{place:g}") for place in places]


def _place(x: float, y: float) -> tuple[float, float]:
    """Where a point of the unit square is in a chart."""
    return LEFT + float(x) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - float(y) * (HEIGHT - TOP - BOTTOM)


def _bar(left: float, right: float, low: float, high: float, color: str) -> Shape:
    """A bar with a thin gap to its neighbours."""
    (x0, y1), (x1, y0) = _place(left, low), _place(right, high)
    return Shape("rectangle", ((x0 + 0.75, min(y0, y1 - 1)), (x1 - 0.75, y1)), color)


def _axes(
    x_name: str, y_name: str, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]
) -> list[Shape]:
    """Grid, ticks and names of both axes; ticks are places from 0 to 1 with what is written there."""
    shapes = []
    for at, text in y_ticks:
        x, y = _place(0, at)
        shapes += [
            Shape("line", ((x, y), _place(1, at)), "grid" if at else "pale", 1),
            Shape("text", ((x - 8, y),), "pale", text=text, anchor="end"),
        ]
    for at, text in x_ticks:
        x, y = _place(at, 0)
        shapes += [
            Shape("line", ((x, y), (x, y + 4)), "pale", 1),
            Shape("text", ((x, y + 15),), "pale", text=text, anchor="middle"),
        ]
    x, y = _place(0.5, 0)
    return [
        *shapes,
        Shape("text", ((x, y + 36),), "pale", text=x_name, anchor="middle"),
        Shape("text", ((4, 14),), "pale", text=y_name),
    ]


def _legend(entries: Sequence[tuple[str, str, bool]]) -> list[Shape]:
    """What the colours mean, in a line above the plot."""
    font, x, y = ImageFont.load_default(TYPE), float(LEFT), 38
    shapes = []
    for name, color, is_dashed in entries:
        shapes += [
            Shape("line", ((x, y), (x + 18, y)), color, 1.6 if is_dashed else 4, is_dashed),
            Shape("text", ((x + 24, y),), "ink", text=name),
        ]
        x += 24 + 1.12 * font.getlength(name) + 18
    return shapes


def _dashes(points: Sequence[tuple[float, float]], length: float, gap: float) -> list[list[tuple[float, float]]]:
    """A line cut into dashes."""
    dashes, walked = [], 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        whole = math.hypot(x1 - x0, y1 - y0)
        at = -(walked % (length + gap))
        while at < whole:
            ends = [min(max(end, 0.0), whole) / whole for end in (at, at + length)] if whole else [0, 0]
            if ends[1] > ends[0]:
                dashes.append([(x0 + end * (x1 - x0), y0 + end * (y1 - y0)) for end in ends])
            at += length + gap
        walked += whole
    return dashes
