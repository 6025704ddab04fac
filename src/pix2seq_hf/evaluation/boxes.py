r"""How good are the boxes: COCO average precision, computed by pycocotools.

Detections are dictionaries in COCO results format (`image_id`, `category_id`, `bbox` as x, y, width, height in pixels,
`score`, as `task_object_detection.coco_results` lists them); ground truth is the content of a COCO instances file.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pix2seq_hf.evaluation.coco_numbers import ENGINES, coco_numbers

BOX_METRICS = (
    "AP", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large",
    "AR_max_1", "AR_max_10", "AR_max_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


def record_ground_truth(image_ids: Sequence[int], boxes_yxyx, labels, areas, is_crowd) -> dict:
    r"""Build COCO ground truth from arrays, for pictures that have no annotation file.

    Args:
        image_ids (`Sequence[int]`): One id per picture.
        boxes_yxyx (array of shape `(batch, slots, 4)`): `ymin, xmin, ymax, xmax` in pixels.
        labels (array of shape `(batch, slots)`): Raw category ids; 0 is padding and left out.
        areas (array of shape `(batch, slots)`): In square pixels; decides between small, medium and large.
        is_crowd (array of shape `(batch, slots)`): Whether a box covers a group that need not be found one by one.
    Returns:
        `dict`: With `images`, `annotations` (ids count from 1) and `categories` (those that occur).
    Source: `CocoObjectDetectionMetric.record_groundtruth` of the reference implementation."""
    boxes_yxyx = np.asarray(boxes_yxyx, dtype=np.float32)
    labels, areas, is_crowd = np.asarray(labels), np.asarray(areas), np.asarray(is_crowd)
    annotations = []
    for index, image_id in enumerate(image_ids):
        for slot in np.flatnonzero(labels[index] > 0):
            ymin, xmin, ymax, xmax = boxes_yxyx[index, slot]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": int(image_id),
                    "category_id": int(labels[index, slot]),
                    "bbox": [float(xmin), float(ymin), float(xmax - xmin), float(ymax - ymin)],
                    "area": float(areas[index, slot]),
                    "iscrowd": int(is_crowd[index, slot]),
                }
            )
    return {
        "images": [{"id": int(image_id)} for image_id in image_ids],
        "annotations": annotations,
        "categories": [{"id": category} for category in sorted({item["category_id"] for item in annotations})],
    }


def evaluate_boxes(
    ground_truth: Mapping,
    detections: Sequence[Mapping],
    image_ids: Iterable[int] | None = None,
    engine: str = ENGINES[0],
) -> dict[str, float]:
    r"""Compute the twelve COCO numbers of boxes.

    Args:
        ground_truth (`Mapping`): Content of a COCO instances file: `images`, `annotations`, `categories`.
        detections (`Sequence[Mapping]`): In COCO results format.
        image_ids (`Iterable[int]`, *optional*): Pictures that count; all pictures of the ground truth by default. A
            picture that counts and has no detection lowers the recall.
        engine (`str`): Of `coco_numbers.ENGINES`.
    Returns:
        `dict[str, float]`: The names of `BOX_METRICS`. -1 means that the ground truth has no object of that size. All
        are 0 if there are objects and no detection.
    Raises:
        ValueError: If a detection belongs to a picture outside the ground truth, or has a number that is not finite.
    Source: `_CocoNonPanopticMetric._evaluate` of the reference implementation."""
    return coco_numbers(ground_truth, detections, "bbox", BOX_METRICS, image_ids, engine=engine)


def format_box_metrics(metrics: Mapping[str, float]) -> str:
    r"""Lay out the twelve numbers for people, in per cent; `-` where the ground truth has no such object."""
    rows = [("", "all", "IoU 50", "IoU 75", "small", "medium", "large")]
    precision = ("AP", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large")
    rows.append(("average precision", *(_format_percent(metrics[name]) for name in precision)))
    recall = ("AR_max_100", None, None, "AR_small", "AR_medium", "AR_large")
    rows.append(("average recall", *("" if name is None else _format_percent(metrics[name]) for name in recall)))
    return "\n".join(f"{row[0]:<18}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows)


def _format_percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"
