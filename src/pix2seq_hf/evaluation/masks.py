"""How good are the masks: COCO average precision of instance segmentation, computed by pycocotools."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pix2seq_hf.evaluation.coco_numbers import ENGINES, coco_numbers

MASK_METRICS = (
    "AP", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large",
    "AR_max_1", "AR_max_10", "AR_max_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


def mask_results(image_id: int, labels: Sequence[int], scores: Sequence[float], rles: Sequence[Mapping]) -> list[dict]:
    r"""List the masks of one picture in COCO results format.

    Args:
        image_id (`int`): The picture.
        labels (`Sequence[int]`): Raw label ids; 0 is padding and left out.
        scores (`Sequence[float]`): One per mask.
        rles (`Sequence[Mapping]`): COCO run lengths, one per mask.
    Source: `CocoInstanceSegmentationMetric.record_prediction` of the reference implementation."""
    return [
        {"image_id": int(image_id), "category_id": int(label), "segmentation": dict(rle), "score": float(score)}
        for label, score, rle in zip(labels, scores, rles, strict=True)
        if label != 0
    ]


def evaluate_masks(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping],
    image_ids: Iterable[int] | None = None,
    engine: str = ENGINES[0],
) -> dict[str, float]:
    r"""Compute the twelve COCO numbers of masks.

    Args:
        ground_truth (`Mapping`): Content of a COCO instances file; pictures need their `height` and `width`.
        results (`Sequence[Mapping]`): As [`mask_results`] lists them.
        image_ids (`Iterable[int]`, *optional*): Pictures that count, see [`coco_numbers`].
        engine (`str`): Of `coco_numbers.ENGINES`.
    Returns:
        `dict[str, float]`: The names of `MASK_METRICS`.
    Raises:
        ValueError: If a mask belongs to a picture outside the ground truth or is of another size."""
    return coco_numbers(ground_truth, results, "segm", MASK_METRICS, image_ids, engine=engine)
