r"""What does the token format cost: annotations -> tokens -> results, without a model in between.

What comes back, measured as a model's results are, is the ceiling for every model with these tokens: its corners lie on
coordinate bins of the padded input, and its outlines have a limited number of points.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pix2seq_hf.configuration_pix2seq import Pix2SeqConfig
from pix2seq_hf.evaluation.keypoints import keypoint_results
from pix2seq_hf.evaluation.masks import mask_results
from pix2seq_hf.evaluation.predictions import Results
from pix2seq_hf.processing_pix2seq import TASKS, Pix2SeqProcessor
from pix2seq_hf.records_pix2seq import coco_records, crop_record, object_frames, pad_record
from pix2seq_hf.task_base import Frame
from pix2seq_hf.task_object_detection import coco_results

ORACLE_TASKS = ("object_detection", "instance_segmentation", "keypoint_detection")
PROMPT = 5  # labels begin with what is left of the prompt when it is shifted: a box and its class


def build_oracle(
    num_bins: int,
    id2label: Mapping[int, str],
    *,
    image_size: int = 640,
    max_points: int = 128,
    keypoint_labels: Sequence[int] = (1,),
) -> Pix2SeqProcessor:
    r"""Build the processor of a model that there need not be.

    Args:
        num_bins (`int`): Coordinate bins per axis.
        id2label (`Mapping[int, str]`): Name of every class.
        image_size (`int`): Side of the padded input.
        max_points (`int`): Points of an outline, separators between its parts included.
        keypoint_labels (`Sequence[int]`): Labels of objects with keypoints.
    Returns:
        [`Pix2SeqProcessor`].
    Raises:
        ValueError: If the numbers are impossible."""
    shift = max(1000, 101 + max(id2label))
    config = Pix2SeqConfig(
        quantization_bins=num_bins,
        coord_vocab_shift=shift,
        vocab_size=shift + num_bins,
        text_vocab_shift=max(3000, shift + num_bins),
        id2label=dict(id2label),
        image_size=(image_size, image_size),
        max_points_per_object=max_points,
        keypoint_labels=list(keypoint_labels),
        max_position_embeddings=max(512, 2 * max_points + 6),
    )
    return Pix2SeqProcessor.from_config(config)


def answer_by_tokens(task: str, ground_truth: Mapping[str, Any], processor: Pix2SeqProcessor) -> Results:
    r"""Write annotations as tokens and read them again.

    Args:
        task (`str`): One of `ORACLE_TASKS`.
        ground_truth (`Mapping`): Content of a COCO annotation file with what the task needs. Crowds and boxes without
            area are left out, and for keypoints objects without a visible one.
        processor ([`Pix2SeqProcessor`]): The token format.
    Returns:
        `list[dict]`: In COCO results format; all scores are 1.
    Raises:
        ValueError: If an annotation is incomplete or impossible."""
    read_back = {
        "object_detection": _boxes, "instance_segmentation": _masks, "keypoint_detection": _keypoints
    }[task]  # fmt: skip
    entries: dict[int, list] = {image["id"]: [] for image in ground_truth["images"]}
    for item in ground_truth["annotations"]:
        entries[item["image_id"]].append(item)
    results = []
    for image in ground_truth["images"]:
        size = (image["height"], image["width"])
        annotation = {"image_id": image["id"], "annotations": entries[image["id"]]}
        fields = TASKS[task].required_fields
        (record,) = coco_records([annotation], [size], processor.vocabulary, fields, processor)
        if len(record["labels"]):
            results += read_back(record, processor, _input_size(processor))
    return results


def _boxes(record: Mapping[str, Any], processor: Pix2SeqProcessor, input_size: tuple[int, int]) -> Results:
    task, size = TASKS["object_detection"], record["image_size"]
    options = {"class_label_corruption": "none", "max_instances_per_image": len(record["labels"])}
    written = task.targets(pad_record(record, input_size), processor.vocabulary, **options).labels
    (found,) = task.results(written[None], {}, [Frame(0, size, input_size)], processor)
    return coco_results(record["image_id"], found["labels"], found["scores"], found["boxes"][:, [1, 0, 3, 2]])


def _masks(record: Mapping[str, Any], processor: Pix2SeqProcessor, input_size: tuple[int, int]) -> Results:
    task, size = TASKS["instance_segmentation"], record["image_size"]
    if task.crop_pad_scale(processor) is not None:
        return _masks_of_cuts(record, processor, input_size)
    options = {**task.target_options(processor), "max_instances_per_image": len(record["labels"])}
    written = task.targets(pad_record(record, input_size), processor.vocabulary, **options).labels[:, PROMPT:]
    height, width = size
    boxes_xyxy = record["boxes_yxyx"][:, [1, 0, 3, 2]] * torch.tensor([width, height, width, height])
    scores = torch.ones(len(record["labels"]))
    frames = object_frames([boxes_xyxy], [record["labels"]], [scores], [size], input_size, None)
    (found,) = task.results(written, {}, frames, processor)
    return mask_results(record["image_id"], found["labels"].tolist(), found["scores"].tolist(), found["rles"])


def _masks_of_cuts(record: Mapping[str, Any], processor: Pix2SeqProcessor, input_size: tuple[int, int]) -> Results:
    task, results = TASKS["instance_segmentation"], []
    options = {**task.target_options(processor), "max_instances_per_image": 1}
    for index in range(len(record["labels"])):
        frame, padded = _cut(record, index, task.crop_pad_scale(processor), input_size)
        written = task.targets(padded, processor.vocabulary, **options).labels[:, PROMPT:]
        (found,) = task.results(written, {}, [frame], processor)
        results += mask_results(record["image_id"], found["labels"].tolist(), found["scores"].tolist(), found["rles"])
    return results


def _cut(
    record: Mapping[str, Any], index: int, pad_scale: float, input_size: tuple[int, int]
) -> tuple[Frame, dict[str, Any]]:
    """One object: what a model looks at, and its record, padded."""
    cut, region = crop_record(record, index, pad_scale)
    padded = pad_record(cut, input_size)
    boxes = padded["boxes_yxyx"]
    frame = Frame(
        0, region[2:], input_size, region[:2], boxes, boxes, padded["labels"], torch.ones(1), record["image_size"]
    )
    return frame, padded


def _keypoints(record: Mapping[str, Any], processor: Pix2SeqProcessor, input_size: tuple[int, int]) -> Results:
    task, results = TASKS["keypoint_detection"], []
    options = {**task.target_options(processor), "mask_inputs": False}
    for index in range(len(record["labels"])):
        frame, padded = _cut(record, index, task.crop_pad_scale(processor), input_size)
        written = task.targets(padded, processor.vocabulary, **options).labels[:, PROMPT:]
        (found,) = task.results(written, {}, [frame], processor)
        results += keypoint_results(
            record["image_id"],
            found["labels"].tolist(),
            found["scores"].tolist(),
            found["keypoints"].tolist(),
            found["keypoint_visible"].tolist(),
            processor.keypoint_labels,
        )
    return results


def _input_size(processor: Pix2SeqProcessor) -> tuple[int, int]:
    size = processor.image_processor.size
    return size["height"], size["width"]
