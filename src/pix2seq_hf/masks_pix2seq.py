"""How polygons, masks and COCO run lengths become one another, and how a mask fits into a given number of points.

A part is a flat array `x, y, x, y, ...` in pixels, a polygon a list of parts whose union is the mask. Sizes are
(height, width)."""

import heapq
import itertools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .tokenization_pix2seq import PADDING_FLOAT, SEPARATOR_FLOAT

try:
    from pycocotools import mask as coco_mask
except ImportError:
    coco_mask = None

# Its `decode` (2.0.11 is the newest) returns its masks in a way that numpy 2 warns of, and that users cannot mend.
warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning, "pycocotools")

MIN_POINTS = 3  # fewer enclose nothing
# Right, down, left, up: where an outline goes next, with the mask on its right hand.
STEPS_XY = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])


class MaskWindow(NamedTuple):
    r"""A mask, cut to the part of the picture outside of which it is empty.

    Args:
        pixels (`np.ndarray` of shape `(rows, columns)`): uint8, 0 or 1.
        top, left (`int`): Where the window lies in the picture.
        size (`tuple[int, int]`): (height, width) of the picture."""

    pixels: np.ndarray
    top: int
    left: int
    size: tuple[int, int]

    def paste(self, mask: np.ndarray):
        """Write the window into an empty mask of the whole picture `(height, width)`."""
        rows, columns = self.pixels.shape
        mask[self.top : self.top + rows, self.left : self.left + columns] = self.pixels

    def full(self) -> np.ndarray:
        """The mask of the whole picture, uint8 `(height, width)`."""
        mask = np.zeros(self.size, np.uint8)
        self.paste(mask)
        return mask

    def rle(self) -> dict[str, Any]:
        """The mask in COCO's run lengths: `{"size": [height, width], "counts": str}`."""
        height, width = self.size
        columns = np.pad(self.pixels.T.astype(np.int8), ((0, 0), (1, 1)))  # (columns, rows + 2): runs go downwards
        change = np.diff(columns, axis=1)
        starts, ends = (np.nonzero(change == sign) for sign in (1, -1))
        starts, ends = ((self.left + column) * height + self.top + row for column, row in (starts, ends))
        is_new = np.append(True, starts[1:] != ends[:-1])[: len(starts)]  # a run may go on at the next column's top
        edges = np.stack([starts[is_new], ends[np.append(is_new[1:], True)[: len(ends)]]], -1).ravel()
        counts = np.diff(np.concatenate([[0], edges, [height * width]]))
        counts = counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts
        uncompressed = {"size": [height, width], "counts": counts.tolist()}
        rle = _require_coco_mask().frPyObjects(uncompressed, height, width)
        return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def split_parts(points_yx: np.ndarray) -> list[np.ndarray]:
    r"""Read a flat list of points: it ends at the first padding, and a separator begins a new part.

    One reserved coordinate of the two makes a point reserved, and -3 is a coordinate like any other, as in the
    reference.

    Args:
        points_yx (`np.ndarray` of shape `(2 * max_points,)`): `y, x, y, x, ...` in any unit; -1 padding, -2 separator.
    Returns:
        `list[np.ndarray]`: The parts that are not empty, each `x, y, x, y, ...`.
    Source: `_split_segment` of the reference implementation."""
    pairs = np.asarray(points_yx).reshape(-1, 2)
    is_end = (pairs == PADDING_FLOAT).any(-1)
    pairs = pairs[: is_end.argmax()] if is_end.any() else pairs
    is_separator = (pairs == SEPARATOR_FLOAT).any(-1)
    numbers = is_separator.cumsum()[~is_separator]
    points_xy = pairs[~is_separator][:, ::-1]
    borders = np.nonzero(np.diff(numbers))[0] + 1
    return [part.reshape(-1) for part in np.split(points_xy, borders) if len(part)]


def join_parts(parts_xy: Sequence[Sequence[float]], max_points: int) -> np.ndarray:
    r"""Write parts as one flat list of points; [`split_parts`] undoes it. What is too long is simply cut.

    Args:
        parts_xy (`Sequence`): Parts; see [`fit_parts`] for a way to make them short enough.
        max_points (`int`): Points of the list, separators included.
    Returns:
        `np.ndarray` of shape `(2 * max_points,)`, float64: `y, x, y, x, ...`; -2, -2 between parts, -1 at the end.
    Source: `golden/tasks/README.md`, section 1: a cut may go through a part, and later parts are lost."""
    pairs = np.full((max_points, 2), PADDING_FLOAT)
    points = []
    for part in parts_xy:
        points += [np.full((1, 2), SEPARATOR_FLOAT)] * bool(points)
        points.append(np.asarray(part, np.float64).reshape(-1, 2)[:, ::-1])
    if points:
        joined = np.concatenate(points)[:max_points]
        pairs[: len(joined)] = joined
    return pairs.reshape(-1)


def fit_parts(parts_xy: Sequence[np.ndarray], max_points: int) -> list[np.ndarray]:
    r"""Leave out the points that matter least, until the parts and their separators fit into `max_points`.

    Departure: the reference cuts what is too long, so that later parts are lost and the last one is cut open. Here the
    point whose triangle with its neighbours is smallest goes first, and a part goes when its own area is smallest.

    Args:
        parts_xy (`Sequence[np.ndarray]`): Parts.
        max_points (`int`): Points, separators included.
    Returns:
        `list[np.ndarray]`: The parts as they are if they fit."""
    parts = [np.asarray(part, np.float64).reshape(-1, 2) for part in parts_xy]
    needed = sum(map(len, parts)) + len(parts) - 1
    if needed <= max_points:
        return [part.reshape(-1) for part in parts]

    points = [tuple(point) for part in parts for point in part.tolist()]
    owner = [number for number, part in enumerate(parts) for _ in part]
    left = [len(part) for part in parts]
    before, after = [], []
    for part in parts:
        first = len(before)
        before += [first + (index - 1) % len(part) for index in range(len(part))]
        after += [first + (index + 1) % len(part) for index in range(len(part))]

    def cost(index):
        return _triangle_area(points[before[index]], points[index], points[after[index]])

    version = [0] * len(points)  # a queue entry of an older version, or of a point that is gone, counts no more
    queue = [(cost(index), index, 0) for index in range(len(points))]
    heapq.heapify(queue)
    is_gone = [False] * len(points)
    while needed > max_points and queue:
        _, index, number = heapq.heappop(queue)
        if is_gone[index] or version[index] != number:
            continue
        if left[owner[index]] <= MIN_POINTS:  # the whole part goes, and its separator
            other = after[index]
            for _ in range(left[owner[index]]):
                is_gone[other], other = True, after[other]
            needed -= left[owner[index]] + 1
            left[owner[index]] = 0
            continue
        is_gone[index] = True
        left[owner[index]] -= 1
        needed -= 1
        after[before[index]], before[after[index]] = after[index], before[index]
        for neighbour in (before[index], after[index]):
            version[neighbour] += 1
            heapq.heappush(queue, (cost(neighbour), neighbour, version[neighbour]))
    kept = [[] for _ in parts]
    for index, point in enumerate(points):
        if not is_gone[index]:
            kept[owner[index]].append(point)
    return [np.array(part).reshape(-1) for part in kept if part]


def _triangle_area(a, b, c) -> float:
    return abs((b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])) / 2


def rasterize(samples: Sequence[Sequence[np.ndarray]], size: tuple[int, int], threshold: float = 0.5) -> MaskWindow:
    r"""Fill polygons with COCO's rule, and average several drawings of one object into one mask.

    Args:
        samples (`Sequence[Sequence[np.ndarray]]`): One polygon or several, each a list of parts.
        size (`tuple[int, int]`): (height, width) of the picture.
        threshold (`float`): Share of the samples that a pixel needs, in (0, 1]; reaching it is enough.
    Returns:
        [`MaskWindow`].
    Raises:
        ValueError: If the threshold is outside (0, 1].
    Source: `segment_to_mask_rle` and `ensemble_mask_np` of the reference implementation, without their memory for
    whole pictures: the rasteriser gives the same pixels for a polygon that is moved by whole pixels."""
    if not 0 < threshold <= 1:
        raise ValueError(f"ensemble_threshold {threshold} is outside (0, 1]")
    height, width = size
    # Departure: coordinates far outside the picture, as malformed streams have them, are pulled nearer. The rasteriser
    # needs memory for every pixel of an outline and crashes where numbers leave int32.
    reach = 4 * max(size)
    samples = [
        [np.clip(part.astype(np.float64), -reach, max(size) + reach) for part in parts if len(part) >= 2 * MIN_POINTS]
        for parts in samples
    ]
    points = [part.reshape(-1, 2) for parts in samples for part in parts]
    if not points:
        return MaskWindow(np.zeros((0, 0), np.uint8), 0, 0, size)
    points = np.concatenate(points)
    left, top = (int(side) for side in np.clip(np.floor(points.min(0)), 0, [width, height]))
    right, bottom = (int(side) for side in np.clip(np.floor(points.max(0)) + 2, [left, top], [width, height]))
    window = bottom - top, right - left
    if 0 in window:
        return MaskWindow(np.zeros((0, 0), np.uint8), 0, 0, size)
    counts = np.zeros(window, np.uint16, order="F")  # as COCO's code has its masks: column after column
    for parts in samples:
        if parts:
            # One run length per part. `frPyObjects` must not do this: it takes a part of two points for a box.
            moved = [(part.reshape(-1, 2) - (left, top)).reshape(-1) for part in parts]
            rles = _require_coco_mask()._mask.frPoly(moved, *window)
            counts += coco_mask.decode(coco_mask.merge(rles))
    is_inside = (np.arange(len(samples) + 1) / len(samples) >= threshold).astype(np.uint8)
    return MaskWindow(np.ascontiguousarray(is_inside[counts]), top, left, size)


def mask_to_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run lengths of a mask `(height, width)`: `{"size": [height, width], "counts": str}`."""
    return MaskWindow(np.asarray(mask) != 0, 0, 0, mask.shape).rle()


def rle_to_mask(rle: dict[str, Any]) -> np.ndarray:
    r"""Read COCO's run lengths.

    Args:
        rle (`dict`): `size` and `counts`: text, bytes, or a list of numbers (as crowd regions have it).
    Returns:
        `np.ndarray` of shape `(height, width)`: uint8, 0 or 1.
    Raises:
        ValueError: If the counts do not fill the size."""
    height, width = (int(side) for side in rle["size"])
    counts = rle["counts"]
    if isinstance(counts, (list, tuple, np.ndarray)):
        counts = np.asarray(counts)
        if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 0).any() or counts.sum() != height * width:
            raise ValueError(f"run lengths do not add up to the {height} x {width} pixels of the mask")
        values = np.arange(len(counts)) % 2
        return np.repeat(values.astype(np.uint8), counts).reshape(width, height).T
    counts = counts.encode() if isinstance(counts, str) else counts
    if num_pixels(counts) != height * width:  # pycocotools would read beyond the end
        raise ValueError(f"run lengths do not add up to the {height} x {width} pixels of the mask")
    return _require_coco_mask().decode({"size": [height, width], "counts": counts})


def num_pixels(counts: bytes) -> int:
    """Pixels that compressed run lengths describe, -1 if they are none: 5 bits per character, later differences."""
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits & 0x20 == 0)  # the last character of each number
    if not len(digits) or not len(ends) or ends[-1] != len(digits) - 1:
        return len(digits) and -1
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends + 1 - starts
    if lengths.max() > 7:  # more than 35 bits
        return -1
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((digits & 0x1F) << shifts, starts)
    runs -= np.where(digits[ends] & 0x10, 1 << (5 * lengths), 0)
    for first in (1, 2):  # from the fourth on, they are differences from the last but one
        runs[first::2] = np.cumsum(runs[first::2])
    return int(runs.sum()) if runs.min() >= 0 else -1


def segmentation_parts(segmentation: Any, size: tuple[int, int]) -> list[np.ndarray]:
    r"""Parts of what stands under `segmentation` in a COCO annotation.

    Args:
        segmentation (`list` or `dict`): Polygons `[[x, y, ...], ...]` in pixels, or run lengths, which become outlines.
        size (`tuple[int, int]`): (height, width) of the picture.
    Returns:
        `list[np.ndarray]`: Parts, float64.
    Raises:
        ValueError: If it is neither, a polygon is no list of at least three pairs of finite numbers, or the run
            lengths are of another size."""
    if isinstance(segmentation, dict):
        if "size" not in segmentation or "counts" not in segmentation:
            raise ValueError("run lengths need `size` and `counts`")
        if tuple(segmentation["size"]) != tuple(size):
            raise ValueError(f"run lengths are for {tuple(segmentation['size'])} pixels, the picture has {tuple(size)}")
        return mask_to_parts(rle_to_mask(segmentation))
    if not isinstance(segmentation, (list, tuple)):
        raise ValueError(f"segmentation must be a list of polygons or run lengths, got {type(segmentation).__name__}")
    parts = []
    for part in segmentation:
        try:
            points = np.asarray(part, np.float64)
        except (TypeError, ValueError):
            points = None
        if points is None or points.ndim != 1 or points.size % 2 or not np.isfinite(points).all():
            raise ValueError(f"a polygon must be a flat list x, y, x, y, ... of finite numbers, got {str(part)[:80]}")
        if points.size < 2 * MIN_POINTS:
            raise ValueError(f"a polygon needs at least {MIN_POINTS} points, got {str(part)[:80]}")
        parts.append(points)
    return parts


def mask_to_parts(mask: np.ndarray, top: int = 0, left: int = 0) -> list[np.ndarray]:
    r"""Outlines of a mask along the borders of its pixels; filling them gives the mask again.

    The parts of a polygon are joined, never cut out, so a hole becomes part of the outline around it: a bridge leads
    there and back, and filling counts it as nothing.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): Everything but 0 belongs to it.
        top, left (`int`): Added to the coordinates, for a mask that is a window of a picture.
    Returns:
        `list[np.ndarray]`: One part per connected region, the largest first; float64, whole numbers."""
    padded = np.pad(np.asarray(mask) != 0, 1)
    inside = padded[1:-1, 1:-1]
    # Every side of a pixel that borders on the outside is an edge, walked with the mask on the right hand.
    borders = [
        (inside & ~padded[:-2, 1:-1], (0, 0)),  # its top, walked to the right
        (inside & ~padded[1:-1, 2:], (0, 1)),  # right, down
        (inside & ~padded[2:, 1:-1], (1, 1)),  # bottom, left
        (inside & ~padded[1:-1, :-2], (1, 0)),  # left, up
    ]
    starts = [np.argwhere(border) + offset for border, offset in borders]  # each (num_edges, 2): y, x
    directions = np.repeat(np.arange(4), [len(start) for start in starts])
    vertices = np.concatenate(starts)[:, ::-1]  # (num_edges, 2): x, y
    if not len(vertices):
        return []
    width = inside.shape[1] + 1
    edge_at = np.full((4, (inside.shape[0] + 1) * width), -1, np.int32)
    edge_at[directions, vertices[:, 1] * width + vertices[:, 0]] = np.arange(len(vertices))
    ends = vertices + STEPS_XY[directions]
    ends = ends[:, 1] * width + ends[:, 0]
    following = np.full(len(vertices), -1)
    for turn in (3, 0, 1):  # left, straight on, and rather than those right: regions that touch at a corner stay apart
        found = edge_at[(directions + turn) % 4, ends]
        following = np.where(found >= 0, found, following)
    order, starts = _loops(following.tolist())
    return _closed_outlines(inside, vertices, directions, order, starts, edge_at, (top, left))


def _loops(following: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Edges in the order in which they are walked, loop after loop, and where each loop begins."""
    order, starts, is_seen = [], [], bytearray(len(following))
    for edge in range(len(following)):
        if not is_seen[edge]:
            starts.append(len(order))
            while not is_seen[edge]:
                is_seen[edge] = True
                order.append(edge)
                edge = following[edge]
    return np.array(order), np.array(starts)


def _closed_outlines(inside, vertices, directions, order, starts, edge_at, offset) -> list[np.ndarray]:
    """Put holes into the outlines around them, and leave out points on straight lines.

    All loops are worked on at once: a mask of noise has thousands, and what is done one by one takes long."""
    width = inside.shape[1] + 1
    ends = np.append(starts[1:], len(order))
    in_order = vertices[order]
    x, y = in_order.T
    after = _neighbours(starts, len(order), 1)
    areas = np.add.reduceat(x * y[after] - y * x[after], starts)
    holes = np.flatnonzero(areas <= 0)

    bridges: dict[int, list[np.ndarray]] = {}  # edge -> points between its start and its end, in pieces
    has_bridge = np.zeros(len(order), np.bool_)
    if len(holes):
        # Of the edges that go down at a hole's left end, the topmost one is where the bridge arrives.
        rank = np.where(directions[order] == 1, x * (inside.shape[0] + 1) + y, np.iinfo(np.int64).max)
        is_arrival = rank == np.repeat(np.minimum.reduceat(rank, starts), ends - starts)
        arrivals = np.flatnonzero(is_arrival)[holes]  # one in every loop, whole outlines too
        last_outside = np.maximum.accumulate(np.where(inside, -1, np.arange(inside.shape[1])), axis=1)
        rows, shores = y[arrivals], last_outside[y[arrivals], x[arrivals] - 1] + 1  # a bridge leads to the left
        edges = edge_at[3, (rows + 1) * width + shores]
        for number in np.argsort(-x[arrivals], kind="stable").tolist():
            first, end, arrival = starts[holes[number]], ends[holes[number]], arrivals[number]
            loop = np.concatenate([order[arrival:end], order[first:arrival]])
            walked = _walk(loop, vertices, bridges, has_bridge)
            bridges[int(edges[number])] = [np.array([[shores[number], rows[number]]]), *walked, walked[0][:1]]
            has_bridge[edges[number]] = True

    outlines = np.flatnonzero(areas > 0)
    outlines = outlines[np.argsort(-areas[outlines], kind="stable")]
    is_crossed = np.maximum.reduceat(has_bridge[order], starts)
    walks = [
        _walk(order[starts[number] : ends[number]], vertices, bridges, has_bridge)
        if is_crossed[number]
        else [in_order[starts[number] : ends[number]]]
        for number in outlines.tolist()
    ]
    points = np.concatenate([piece for walk in walks for piece in walk])
    starts = np.cumsum([0, *(sum(map(len, walk)) for walk in walks[:-1])])
    direction = np.sign(points[_neighbours(starts, len(points), 1)] - points)
    is_corner = (direction != direction[_neighbours(starts, len(points), -1)]).any(-1)
    corners = (points[is_corner] + (offset[1], offset[0])).astype(np.float64)
    borders = np.append(0, np.add.reduceat(is_corner, starts, dtype=np.int64).cumsum()).tolist()
    return [corners[first:end].reshape(-1) for first, end in itertools.pairwise(borders)]


def _neighbours(starts: np.ndarray, length: int, step: int) -> np.ndarray:
    """Index of the next (`step` 1) or previous (-1) entry of every entry in `length` entries of closed loops."""
    index, ends = np.arange(length) + step, np.append(starts[1:], length)
    if step == 1:
        index[ends - 1] = starts
    else:
        index[starts] = ends - 1
    return index


def _walk(loop: np.ndarray, vertices: np.ndarray, bridges: dict, has_bridge: np.ndarray) -> list[np.ndarray]:
    """Points of a loop of edges, over the bridges that begin in it, in pieces `(num_points, 2)`."""
    points, pieces, begin = vertices[loop], [], 0
    for position in np.flatnonzero(has_bridge[loop]).tolist():
        pieces += [points[begin : position + 1], *bridges[int(loop[position])]]
        begin = position + 1
    return [*pieces, points[begin:]]


def _require_coco_mask():
    if coco_mask is None:
        raise ImportError("masks need pycocotools: pip install pycocotools")
    return coco_mask


__all__ = ["MaskWindow", "fit_parts", "join_parts", "mask_to_parts", "mask_to_rle", "num_pixels", "rasterize",
           "rle_to_mask", "segmentation_parts", "split_parts"]  # fmt: skip
