"""Which result was matched with which annotated object: pycocotools' evaluation itself, for more than its summary."""

from collections.abc import Mapping, Sequence
from typing import Any

from pix2seq_hf.evaluation.coco_numbers import ENGINES, checked_copies, run_engine


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
        `pycocotools.cocoeval.COCOeval`: Evaluated and accumulated, for all sizes together. The ids of its annotations
        and results are their places in `truth["annotations"]` and in `results`, counted from 1.
    Raises:
        ValueError: As [`~evaluation.coco_numbers.coco_numbers`] raises it."""
    truth, results = checked_copies(truth, results, iou_type, None, sigmas)
    return run_engine(truth, results, iou_type, sigmas, ENGINES[0], by_size=False)


def matched_pictures(evaluation: Any) -> list[Mapping[str, Any]]:
    """pycocotools' matches of every class and picture that have an object or a result, class after class."""
    return [entry for entry in evaluation.evalImgs if entry is not None]
