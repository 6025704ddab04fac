"""What raw annotations in pixels become: boxes, polygons and keypoints as normalised arrays of fixed width.

Scaling follows the order of operations of the reference, so that the results are the same numbers."""

from collections.abc import Sequence

import numpy as np
import torch

from pix2seq_hf.masks_pix2seq import join_parts
from pix2seq_hf.task_keypoint_detection import triples_to_points
from pix2seq_hf.tokenization_pix2seq import scale_points


def boxes_from_xywh(boxes_xywh: Sequence[Sequence[float]], image_size: tuple[int, int]) -> torch.Tensor:
    r"""Turn boxes of a COCO file into the boxes of a record.

    Args:
        boxes_xywh (`Sequence` of shape `(num_objects, 4)`): x, y, width, height in pixels.
        image_size (`tuple[int, int]`): (height, width) in pixels.
    Returns:
        `torch.FloatTensor` of shape `(num_objects, 4)`: ymin, xmin, ymax, xmax, normalised."""
    x, y, width, height = np.array(boxes_xywh, dtype=np.float64).reshape(-1, 4).T
    return normalize_points(np.stack([y, x, y + height, x + width], axis=-1), image_size)


def polygons_from_parts(
    objects: Sequence[Sequence[Sequence[float]]], image_size: tuple[int, int], max_points: int
) -> torch.Tensor:
    r"""Turn the polygons of objects into arrays of one width.

    Args:
        objects (`Sequence`): Per object its parts, each a flat list x, y, x, y, ... in pixels.
        image_size (`tuple[int, int]`): (height, width) in pixels.
        max_points (`int`): Points per object, separators included; what is longer is cut, wherever that falls.
    Returns:
        `torch.FloatTensor` of shape `(num_objects, 2 * max_points)`: y, x, y, x, ... normalised; -2 between parts and
        -1 after the last."""
    rows = [join_parts(parts, max_points) for parts in objects]
    return normalize_points(np.array(rows).reshape(len(objects), 2 * max_points), image_size)


def keypoints_from_triples(
    objects: Sequence[Sequence[float]], image_size: tuple[int, int], num_keypoints: int
) -> torch.Tensor:
    r"""Turn keypoints of a COCO file into the keypoints of a record.

    Args:
        objects (`Sequence` of shape `(num_objects, 3 * num_keypoints)`): x, y in pixels and a visibility, which is 0
            for a keypoint without a place.
        image_size (`tuple[int, int]`): (height, width) in pixels.
        num_keypoints (`int`): Keypoints of an object.
    Returns:
        `torch.FloatTensor` of shape `(num_objects, 2 * num_keypoints)`: y, x, y, x, ... normalised; -3 invisible."""
    rows = [triples_to_points(triples, num_keypoints) for triples in objects]
    return normalize_points(np.array(rows).reshape(len(objects), 2 * num_keypoints), image_size)


def normalize_points(points_yx: np.ndarray, image_size: tuple[int, int]) -> torch.Tensor:
    r"""Scale pixels to [0, 1] in float32; -1, -2 and -3 are no coordinates and stay.

    Args:
        points_yx (`np.ndarray` of shape `(num_objects, 2 * num_points)`): y, x, y, x, ... in pixels.
        image_size (`tuple[int, int]`): (height, width) in pixels."""
    # Times the reciprocal, as in the reference: a division gives other last bits.
    one_by_size = 1 / torch.tensor(tuple(image_size), dtype=torch.float32)
    return scale_points(torch.from_numpy(points_yx.astype(np.float32)), one_by_size)
