"""What raw annotations in pixels become: boxes, polygons and keypoints as normalised arrays of fixed width.

Pure functions on lists and arrays as they stand in a COCO file. Scaling follows the order of operations of the
reference, in float32, so that the results are the same numbers."""

from collections.abc import Sequence

import numpy as np

from pix2seq_hf.tokenization_pix2seq import INVISIBLE_FLOAT, PADDING_FLOAT, SEPARATOR_FLOAT

RESERVED_FLOATS = (PADDING_FLOAT, SEPARATOR_FLOAT, INVISIBLE_FLOAT)


def boxes_from_xywh(boxes_xywh: Sequence[Sequence[float]], image_size: tuple[int, int]) -> np.ndarray:
    r"""Turn boxes of a COCO file into the boxes of a record.

    Args:
        boxes_xywh (`Sequence` of shape `(num_objects, 4)`): x, y, width, height in pixels.
        image_size (`tuple[int, int]`): (height, width) in pixels.
    Returns:
        `np.ndarray` of shape `(num_objects, 4)`, float32: ymin, xmin, ymax, xmax, normalised."""
    x, y, width, height = np.array(boxes_xywh, dtype=np.float64).reshape(-1, 4).T
    boxes_yxyx = np.stack([y, x, y + height, x + width], axis=-1)
    return normalize_points(boxes_yxyx, image_size)


def polygons_from_parts(
    objects: Sequence[Sequence[Sequence[float]]], image_size: tuple[int, int], max_points: int
) -> np.ndarray:
    r"""Turn the polygons of objects into arrays of one width.

    Args:
        objects (`Sequence`): Per object its parts, each a flat list x, y, x, y, ... in pixels.
        image_size (`tuple[int, int]`): (height, width) in pixels.
        max_points (`int`): Points per object, separators included; what is longer is cut, wherever that falls.
    Returns:
        `np.ndarray` of shape `(num_objects, 2 * max_points)`, float32: y, x, y, x, ... normalised; -2 between parts
        and -1 after the last.
    Raises:
        ValueError: If a part has an odd number of coordinates."""
    rows = np.full((len(objects), 2 * max_points), PADDING_FLOAT)
    for row, parts in zip(rows, objects, strict=True):
        flat = flatten_parts(parts)[: 2 * max_points]
        row[: len(flat)] = flat
    return normalize_points(swap_xy(rows), image_size)


def flatten_parts(parts: Sequence[Sequence[float]]) -> np.ndarray:
    """Join the parts of a polygon into one flat list x, y, ... with -2, -2 between them; float64."""
    pieces = []
    for part in parts:
        if len(part) % 2:
            raise ValueError(f"a polygon part has {len(part)} numbers; it must be pairs of x and y")
        pieces += [(SEPARATOR_FLOAT, SEPARATOR_FLOAT)] * bool(pieces) + [part]
    return np.concatenate([np.asarray(piece, np.float64) for piece in pieces]) if pieces else np.zeros(0)


def keypoints_from_triples(
    objects: Sequence[Sequence[float]], image_size: tuple[int, int], num_keypoints: int
) -> np.ndarray:
    r"""Turn keypoints of a COCO file into the keypoints of a record.

    Args:
        objects (`Sequence` of shape `(num_objects, 3 * num_keypoints)`): x, y in pixels and a visibility, which is 0
            for a keypoint without a place.
        image_size (`tuple[int, int]`): (height, width) in pixels.
        num_keypoints (`int`): Keypoints of an object.
    Returns:
        `np.ndarray` of shape `(num_objects, 2 * num_keypoints)`, float32: y, x, y, x, ... normalised; -3 invisible."""
    triples = np.asarray(objects, np.float64).reshape(len(objects), num_keypoints, 3)
    points_xy = np.where(triples[..., 2:] == 0, INVISIBLE_FLOAT, triples[..., :2])
    return normalize_points(points_xy[..., ::-1].reshape(len(objects), 2 * num_keypoints), image_size)


def normalize_points(points_yx: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    r"""Scale pixels to [0, 1] in float32; -1, -2 and -3 are no coordinates and stay.

    Args:
        points_yx (`np.ndarray` of shape `(num_objects, 2 * num_points)`): y, x, y, x, ... in pixels.
        image_size (`tuple[int, int]`): (height, width) in pixels."""
    points_yx = points_yx.astype(np.float32)
    # Times the reciprocal, as in the reference: a division gives other last bits.
    scale = np.float32(1) / np.array(image_size, np.float32)
    scaled = points_yx * np.tile(scale, points_yx.shape[-1] // 2)
    return np.where(np.isin(points_yx, RESERVED_FLOATS), points_yx, scaled)


def swap_xy(points: np.ndarray) -> np.ndarray:
    """Turn x, y, x, y, ... into y, x, y, x, ... or back; any leading shape."""
    return points.reshape(*points.shape[:-1], points.shape[-1] // 2, 2)[..., ::-1].reshape(points.shape)
