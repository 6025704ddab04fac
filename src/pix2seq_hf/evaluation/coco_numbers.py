"""How pycocotools is asked: ground truth and results in, the numbers of its summary out."""

import contextlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def coco_numbers(
    ground_truth: Mapping,
    results: Sequence[Mapping],
    iou_type: str,
    names: Sequence[str],
    image_ids: Iterable[int] | None = None,
    sigmas: Sequence[float] | None = None,
) -> dict[str, float]:
    r"""Compute the numbers of a COCO summary.

    Args:
        ground_truth (`Mapping`): Content of a COCO annotation file: `images`, `annotations`, `categories`.
        results (`Sequence[Mapping]`): In COCO results format.
        iou_type (`str`): `"bbox"`, `"segm"` or `"keypoints"`.
        names (`Sequence[str]`): Names of the numbers, in the order of the summary.
        image_ids (`Iterable[int]`, *optional*): Pictures that count; all pictures of the ground truth by default. A
            picture that counts and has no result lowers the recall.
        sigmas (`Sequence[float]`, *optional*): How exact each keypoint is annotated, a share of the object's size; by
            default those of COCO's persons.
    Returns:
        `dict[str, float]`: -1 means that the ground truth has no object of that kind. All are 0 if there is no result.
    Raises:
        ValueError: If a result belongs to a picture outside the ground truth, or has a number that is not finite.
    Source: `_CocoNonPanopticMetric._evaluate` of the reference implementation."""
    listed = {image["id"] for image in ground_truth["images"]}
    for result in results:
        if result["image_id"] not in listed:
            raise ValueError(f"detection for picture {result['image_id']}, which the ground truth does not list")
        for field in ("bbox", "keypoints"):
            numbers = (*result.get(field, ()), result["score"])
            if not all(map(math.isfinite, numbers)):
                raise ValueError(
                    f"detection of picture {result['image_id']} has a number that is not finite: "
                    f"{field} {result.get(field)}, score {result['score']}"
                )
    counted = listed if image_ids is None else listed & set(image_ids)
    results = [dict(item) for item in results if item["image_id"] in counted]  # pycocotools writes into them
    if not results:
        return dict.fromkeys(names, 0.0)

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [image for image in ground_truth["images"] if image["id"] in counted],
            # Fresh ids: pycocotools takes an object with id 0 for one that was never matched.
            "annotations": [
                {"iscrowd": 0, "area": item["bbox"][2] * item["bbox"][3], **item, "id": index}
                for index, item in enumerate(ground_truth["annotations"], start=1)
                if item["image_id"] in counted
            ],
            "categories": list(ground_truth["categories"]),
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), iouType=iou_type)
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(names, evaluation.stats, strict=True)}
