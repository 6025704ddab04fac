"""How good are the keypoints: COCO average precision by object keypoint similarity, computed by pycocotools."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pix2seq_hf.evaluation.coco_numbers import ENGINES, coco_numbers

# Departure: the reference names these numbers by position after those of detection ("AP_small" for AP_medium, ...).
KEYPOINT_METRICS = (
    "AP", "AP_50", "AP_75", "AP_medium", "AP_large", "AR", "AR_50", "AR_75", "AR_medium", "AR_large",
)  # fmt: skip


def keypoint_results(
    image_id: int,
    labels: Sequence[int],
    scores: Sequence[float],
    keypoints: Sequence[Sequence[Sequence[float]]],
    is_visible: Sequence[Sequence[bool]],
    keypoint_labels: Iterable[int] = (1,),
) -> list[dict]:
    r"""List the keypoints of one picture in COCO results format.

    Args:
        image_id (`int`): The picture.
        labels (`Sequence[int]`): Raw label ids.
        scores (`Sequence[float]`): One per object.
        keypoints (`Sequence` of shape `(num_objects, num_keypoints, 2)`): x, y in pixels.
        is_visible (`Sequence` of shape `(num_objects, num_keypoints)`): Whether a keypoint was given a place.
        keypoint_labels (`Iterable[int]`): Objects of other labels are left out.
    Source: `CocoKeypointDetectionMetric.record_prediction` of the reference implementation."""
    kept = set(keypoint_labels)
    results = []
    for label, score, points, visible in zip(labels, scores, keypoints, is_visible, strict=True):
        if int(label) in kept:
            triples = [(float(x), float(y), float(bool(shown))) for (x, y), shown in zip(points, visible, strict=True)]
            results.append(
                {
                    "image_id": int(image_id),
                    "category_id": int(label),
                    "keypoints": [number for triple in triples for number in triple],
                    "score": float(score),
                }
            )
    return results


def evaluate_keypoints(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping],
    image_ids: Iterable[int] | None = None,
    sigmas: Sequence[float] | None = None,
    engine: str = ENGINES[0],
) -> dict[str, float]:
    r"""Compute the ten COCO numbers of keypoints.

    Args:
        ground_truth (`Mapping`): Content of a COCO keypoints file.
        results (`Sequence[Mapping]`): As [`keypoint_results`] lists them.
        image_ids (`Iterable[int]`, *optional*): Pictures that count, see [`coco_numbers`].
        sigmas (`Sequence[float]`, *optional*): See [`coco_numbers`]; of another skeleton than COCO's.
        engine (`str`): Of `coco_numbers.ENGINES`.
    Returns:
        `dict[str, float]`: The names of `KEYPOINT_METRICS`.
    Raises:
        ValueError: If keypoints belong to a picture outside the ground truth, or are not finite."""
    return coco_numbers(ground_truth, results, "keypoints", KEYPOINT_METRICS, image_ids, sigmas, engine)
