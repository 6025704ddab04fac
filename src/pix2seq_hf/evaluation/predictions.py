"""What a model says about a data set, task by task, in COCO results format.

Every function takes records (see `task_base`) and the boxes to ask about in COCO results format, `{"image_id",
"category_id", "bbox", "score"}`: those that the model detected, or [`annotated_boxes`]."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from pix2seq_hf.evaluation.keypoints import keypoint_results
from pix2seq_hf.evaluation.masks import mask_results


def annotated_boxes(ground_truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Boxes of a COCO annotation file as results with score 1, without crowd regions and boxes of no size."""
    return [
        {"image_id": item["image_id"], "category_id": item["category_id"], "bbox": item["bbox"], "score": 1.0}
        for item in ground_truth["annotations"]
        if not item.get("iscrowd", 0) and item["bbox"][2] > 0 and item["bbox"][3] > 0
    ]


def segment_all(
    model: Any,
    processor: Any,
    records: Iterable[Mapping[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    min_score: float = 0.0,
    **generation: Any,
) -> list[dict[str, Any]]:
    r"""Find the mask of every box.

    Args:
        model (`Pix2SeqForConditionalGeneration`): In evaluation mode.
        processor (`Pix2SeqProcessor`): That of the model.
        records (`Iterable[Mapping]`): Pictures with `image`, `image_id` and `image_size`.
        detections (`Sequence[Mapping]`): Boxes to ask about.
        min_score (`float`): Boxes of a lower score are left out.
        **generation: Of `generate`.
    Returns:
        `list[dict]`: As [`~evaluation.masks.mask_results`] lists them; the score is that of the box."""
    results = []
    for record, boxes, labels, scores in _asked(records, detections, min_score):
        (found,) = _ask(model, processor, "instance_segmentation", record, boxes, labels, scores, generation)
        results += mask_results(record["image_id"], found["labels"].tolist(), found["scores"].tolist(), found["rles"])
    return results


def find_keypoints_all(
    model: Any,
    processor: Any,
    records: Iterable[Mapping[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    min_score: float = 0.0,
    **generation: Any,
) -> list[dict[str, Any]]:
    r"""Find the keypoints of every box of a label that has some; arguments as of [`segment_all`].

    Returns:
        `list[dict]`: As [`~evaluation.keypoints.keypoint_results`] lists them."""
    keypoint_labels = set(model.config.keypoint_labels)
    detections = [item for item in detections if item["category_id"] in keypoint_labels]
    results = []
    for record, boxes, labels, scores in _asked(records, detections, min_score):
        (found,) = _ask(model, processor, "keypoint_detection", record, boxes, labels, scores, generation)
        results += keypoint_results(
            record["image_id"],
            found["labels"].tolist(),
            found["scores"].tolist(),
            found["keypoints"].tolist(),
            found["keypoint_visible"].tolist(),
            keypoint_labels,
        )
    return results


def caption_all(model: Any, processor: Any, records: Iterable[Mapping[str, Any]], **generation: Any) -> dict[int, str]:
    """Write one caption for every picture: the captions by picture id; arguments as of [`segment_all`]."""
    captions = {}
    for record in records:
        inputs = processor(
            images=record["image"], task="captioning", input_data_format="channels_first", return_tensors="pt"
        ).to(model.device)
        output = model.generate(**inputs, **generation)
        (found,) = processor.post_process_generation(output, task="captioning", target_sizes=[record["image_size"]])
        captions[record["image_id"]] = found["captions"][0]
    return captions


def _asked(
    records: Iterable[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]], min_score: float
) -> Iterator[tuple[Mapping[str, Any], torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Records with boxes (xmin, ymin, xmax, ymax), labels and scores to ask about; those without boxes are left out."""
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for item in detections:
        if item["score"] >= min_score:
            by_image.setdefault(item["image_id"], []).append(item)
    for record in records:
        height, width = record["image_size"]
        kept = []
        for item in by_image.get(record["image_id"], []):
            left, top, box_width, box_height = item["bbox"]
            box = [max(left, 0), max(top, 0), min(left + box_width, width), min(top + box_height, height)]
            if box[0] < box[2] and box[1] < box[3]:  # a model may write a reversed or an empty box
                kept.append((box, item["category_id"], item["score"]))
        if kept:
            yield record, *(torch.tensor(column) for column in zip(*kept, strict=True))


def _ask(model, processor, task, record, boxes, labels, scores, generation) -> list[dict[str, Any]]:
    asked = {"boxes": [boxes], "labels": [labels]}
    inputs = processor(
        images=record["image"], task=task, input_data_format="channels_first", return_tensors="pt", **asked
    ).to(model.device)
    output = model.generate(**inputs, **generation)
    return processor.post_process_generation(
        output, task=task, target_sizes=[record["image_size"]], scores=[scores], **asked
    )
