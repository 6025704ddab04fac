"""Which result was matched with which annotated object: pycocotools' evaluation itself, for more than its summary."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

EVERY_SIZE = 0  # place of the range of areas that holds all objects, in pycocotools' lists


def match_results(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou_type: str = "bbox",
    sigmas: Sequence[float] | None = None,
) -> Any:
    r"""Let pycocotools match results with annotated objects.

    Args:
        truth (`Mapping`): Content of a COCO annotation file: `images`, `annotations`, `categories`.
        results (`Sequence[Mapping]`): In COCO results format; may be empty.
        iou_type (`str`): `"bbox"`, `"segm"` or `"keypoints"`.
        sigmas (`Sequence[float]`, *optional*): Of keypoints, see [`~evaluation.coco_numbers.coco_numbers`].
    Returns:
        `pycocotools.cocoeval.COCOeval`: Evaluated and accumulated. The ids of its annotations and results are their
        places in `truth["annotations"]` and in `results`, counted from 1.
    Raises:
        ValueError: If a result belongs to a picture outside the ground truth."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    listed = {image["id"] for image in truth["images"]}
    for result in results:
        if result["image_id"] not in listed:
            raise ValueError(f"result for picture {result['image_id']}, which the ground truth does not list")
    images = [dict(image) for image in truth["images"]]
    annotated, found = COCO(), COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        annotated.dataset = {
            "images": images,
            "annotations": [
                {"iscrowd": 0, "area": item["bbox"][2] * item["bbox"][3], **item, "id": index}
                for index, item in enumerate(truth["annotations"], start=1)
            ],
            "categories": [dict(category) for category in truth["categories"]],
        }
        annotated.createIndex()
        if results:
            found = annotated.loadRes([dict(item) for item in results])  # pycocotools writes into them
        else:
            found.dataset = {**annotated.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(annotated, found, iouType=iou_type)
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def matched_pictures(evaluation: Any) -> list[Mapping[str, Any]]:
    """pycocotools' matches of every class and picture that have an object or a result, class after class."""
    params = evaluation.params
    num_images, num_areas = len(params.imgIds), len(params.areaRng)
    starts = ((number * num_areas + EVERY_SIZE) * num_images for number in range(len(params.catIds)))
    blocks = (evaluation.evalImgs[start : start + num_images] for start in starts)
    return [entry for block in blocks for entry in block if entry is not None]
