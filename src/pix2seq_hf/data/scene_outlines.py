r"""How does a mask become a polygon of few points: its border, without the points that hardly matter.

Parts of a COCO polygon are joined, never cut out, so a hole becomes part of the outline around it: a bridge leads there
and back ([`~masks_pix2seq.mask_to_parts`]). Both ends of a bridge stay.
"""

import math

import numpy as np

from pix2seq_hf.masks_pix2seq import MIN_POINTS, mask_to_parts

LARGE = 72  # pixels of the larger side
FEW = 20  # points
MIN_PART = 0.02  # of the mask: smaller parts are left out, unless it is the largest


def outline(mask: np.ndarray, top: int, left: int, max_points: int = 56) -> list[list[float]]:
    r"""Write a mask as polygons.

    Args:
        mask (`np.ndarray` of shape `(rows, columns)`): Which pixels belong to it; at least one.
        top, left (`int`): Where it lies in its picture.
        max_points (`int`): Most points, those between parts included; at least 4. What has too many parts or holes
            for so few points is told by the box of its largest part.
    Returns:
        `list[list[float]]`: Parts `x, y, x, y, ...` in pixels, the largest first."""
    step = 2 if max(mask.shape) > LARGE else 1  # what is large is looked at with half the resolution
    parts = mask_to_parts(_halve(mask), 0, 0) if step == 2 else []
    if not parts:  # or has only thin parts
        step, parts = 1, mask_to_parts(mask)
    parts = [part.reshape(-1, 2) * step + (left, top) for part in parts]
    sizes = [abs(_area(part)) for part in parts]
    smallest = max(MIN_PART * sum(sizes), 4)
    parts = [part for part, size in zip(parts, sizes, strict=True) if size >= smallest] or parts[:1]
    tolerance = (0.55 if step == 1 else 1.2) + 0.006 * max(mask.shape)  # more than stairs of pixels
    while True:
        fewer = [simplify(part, tolerance) for part in parts]
        fewer = [part for part in fewer if len(part) >= MIN_POINTS] or [parts[0][:max_points]]
        if sum(map(len, fewer)) + len(fewer) - 1 <= max_points:
            return [part.ravel().tolist() for part in fewer]
        if tolerance > max(mask.shape):  # each part has three points left, or the ends of bridges
            (x, y), (x_end, y_end) = parts[0].min(0).tolist(), parts[0].max(0).tolist()
            return [[x, y, x_end, y, x_end, y_end, x, y_end]]
        tolerance *= 1.5


def simplify(points: np.ndarray, tolerance: float) -> np.ndarray:
    r"""Leave out points that are nearer than `tolerance` to the line between those that stay.

    Args:
        points (`np.ndarray` of shape `(num_points, 2)`): A closed outline; points that occur twice stay.
        tolerance (`float`): In pixels.
    Returns:
        `np.ndarray` of shape `(num_kept, 2)`.
    Source: the algorithm of Ramer, Douglas and Peucker."""
    num_points = len(points)
    if num_points <= MIN_POINTS:
        return points
    keys = points[:, 0] * 65536 + points[:, 1]
    ordered = np.sort(keys)
    is_kept = np.isin(keys, ordered[1:][ordered[1:] == ordered[:-1]])
    is_kept[0] = True
    is_kept[((points - points[0]) ** 2).sum(1).argmax()] = True
    anchors = np.nonzero(is_kept)[0].tolist()
    arrays = np.vstack([points, points[:1]]).T.copy()
    xs, ys = arrays.tolist()
    open_spans = list(zip(anchors, [*anchors[1:], num_points], strict=True))
    while open_spans:
        first, last = open_spans.pop()
        if last - first < 2:
            continue
        x, y = xs[first], ys[first]
        dx, dy = xs[last] - x, ys[last] - y
        length = math.hypot(dx, dy)
        if not length:  # a closed part: its farthest point up or down
            dx, dy, length = 1.0, 0.0, 1.0
        if last - first > FEW:
            distances = np.abs((arrays[0, first + 1 : last] - x) * dy - (arrays[1, first + 1 : last] - y) * dx)
            place = first + 1 + int(distances.argmax())
            largest = distances[place - first - 1]
        else:  # arrays cost more than they bring
            place, largest = first, -1.0
            for index in range(first + 1, last):
                distance = abs((xs[index] - x) * dy - (ys[index] - y) * dx)
                if distance > largest:
                    place, largest = index, distance
        if largest > tolerance * length:
            is_kept[place] = True
            open_spans += [(first, place), (place, last)]
    return points[is_kept]


def _halve(mask: np.ndarray) -> np.ndarray:
    """A mask of half the size: what at least two of four pixels are."""
    mask = np.pad(mask, [(0, side % 2) for side in mask.shape]).astype(np.uint8)
    return mask[::2, ::2] + mask[1::2, ::2] + mask[::2, 1::2] + mask[1::2, 1::2] >= 2


def _area(points: np.ndarray) -> float:
    x, y = points.T
    return float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]) + x[-1] * y[0] - x[0] * y[-1]) / 2
