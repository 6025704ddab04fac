"""What a model says about pictures, task by task, in COCO results format.

The boxes that masks and keypoints are asked for are in COCO results format too, `{"image_id", "category_id", "bbox",
"score"}`: those that the model detected, those of [`annotated_boxes`], or those of a file."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from pix2seq_hf.evaluation.keypoints import keypoint_results
from pix2seq_hf.evaluation.masks import mask_results
from pix2seq_hf.task_object_detection import coco_results

Results = list[dict[str, Any]]
Counts = dict[str, int]
TASKS_ABOUT_BOXES = ("instance_segmentation", "keypoint_detection")


@dataclass(frozen=True)
class Question:
    r"""What a model is asked about every picture.

    Args:
        tasks (`Sequence[str]`): What is to be found.
        boxes (`Sequence[Mapping]`, *optional*): What masks and keypoints are asked for; by default what the model
            detects.
        min_score (`float`): Boxes of a lower score are not asked about.
        seed (`int`): What is drawn for a picture depends on this and its id, and on nothing else.
        generation (`Mapping[str, Mapping]`): Keyword arguments of `generate` by task, in place of the task's own."""

    tasks: Sequence[str]
    boxes: Sequence[Mapping[str, Any]] | None = None
    min_score: float = 0.05
    seed: int = 0
    generation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def detects(self) -> bool:
        """Whether the model has to detect."""
        asks_for_boxes = any(task in self.tasks for task in TASKS_ABOUT_BOXES)
        return "object_detection" in self.tasks or (asks_for_boxes and self.boxes is None)


class Answer(NamedTuple):
    r"""What is known of one picture.

    Args:
        image_id (`int`): The picture.
        results (`dict[str, list[dict]]`): What was found, by task.
        malformed (`dict[str, dict[str, int]]`): What broke the grammar, by task and kind.
        failure (`str`, *optional*): Why the picture could not be used."""

    image_id: int
    results: dict[str, Results]
    malformed: dict[str, Counts]
    failure: str | None = None


def annotated_boxes(ground_truth: Mapping[str, Any]) -> Results:
    """Boxes of a COCO annotation file as results with score 1, without crowd regions and boxes of no size."""
    return [
        {"image_id": item["image_id"], "category_id": item["category_id"], "bbox": item["bbox"], "score": 1.0}
        for item in ground_truth["annotations"]
        if not item.get("iscrowd", 0) and item["bbox"][2] > 0 and item["bbox"][3] > 0
    ]


def boxes_by_picture(boxes: Iterable[Mapping[str, Any]], min_score: float = 0.0) -> dict[int, Results]:
    """Boxes of at least a score, by picture id."""
    found: dict[int, Results] = {}
    for item in boxes:
        if item["score"] >= min_score:
            found.setdefault(item["image_id"], []).append(dict(item))
    return found


def answer(
    model: Any,
    processor: Any,
    records: Sequence[Mapping[str, Any]],
    question: Question,
    asked: Mapping[int, Results] | None = None,
) -> list[Answer]:
    r"""Ask a model about a batch of pictures.

    Objects are decoded as in the reference: every slot of every picture counts with its class score, there is no
    threshold.

    Args:
        model (`Pix2SeqForConditionalGeneration`): In evaluation mode.
        processor (`Pix2SeqProcessor`): That of the model.
        records (`Sequence[Mapping]`): Pictures with `image`, `image_id` and `image_size`.
        question ([`Question`]): What is asked.
        asked (`Mapping[int, list[dict]]`, *optional*): `question.boxes` by [`boxes_by_picture`]; made here by default.
    Returns:
        `list[Answer]`: One per picture."""
    if asked is None and question.boxes is not None:
        asked = boxes_by_picture(question.boxes, question.min_score)
    generation = {task: dict(question.generation.get(task, {})) for task in (*question.tasks, "object_detection")}
    detected = [([], {})] * len(records)
    if question.detects:
        seeds = [picture_seed(question.seed, record["image_id"], "object_detection") for record in records]
        detected = detect(model, processor, records, seeds=seeds, **generation["object_detection"])
    answers = []
    for record, (boxes, malformed_slots) in zip(records, detected, strict=True):
        image_id = record["image_id"]
        results: dict[str, Results] = {}
        malformed: dict[str, Counts] = {}
        if "object_detection" in question.tasks:
            results["object_detection"], malformed["object_detection"] = boxes, malformed_slots
        if asked is None:
            boxes = [item for item in boxes if item["score"] >= question.min_score]
        else:
            boxes = asked.get(image_id, [])
        for task, ask in (("instance_segmentation", segment), ("keypoint_detection", find_keypoints)):
            if task in question.tasks:
                seed = picture_seed(question.seed, image_id, task)
                results[task], malformed[task] = ask(model, processor, record, boxes, seed, **generation[task])
        if "captioning" in question.tasks:
            seed = picture_seed(question.seed, image_id, "captioning")
            text, malformed["captioning"] = caption(model, processor, record, seed, **generation["captioning"])
            results["captioning"] = [{"image_id": image_id, "caption": text}]
        answers.append(Answer(image_id, results, malformed))
    return answers


def picture_seed(seed: int, image_id: int, task: str, number: int = 0) -> int:
    """A seed of its own for every picture, task and object in it."""
    digest = hashlib.sha256(f"{seed} {image_id} {task} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # below 2 ** 63, as torch wants it


def detect(
    model: Any, processor: Any, records: Sequence[Mapping[str, Any]], **generation: Any
) -> list[tuple[Results, Counts]]:
    """Detect the objects of a batch: boxes and what was malformed, neither cut to the picture nor filtered by score."""
    images = [record["image"] for record in records]
    inputs = _inputs(model, processor, images, "object_detection")
    output = model.generate(**inputs, **generation)
    sizes = [record["image_size"] for record in records]
    found = []
    for record, result in zip(
        records, processor.post_process_generation(output, task="object_detection", target_sizes=sizes), strict=True
    ):
        boxes_yxyx = result["boxes"][:, [1, 0, 3, 2]].cpu()
        boxes = coco_results(record["image_id"], result["labels"].cpu(), result["scores"].cpu(), boxes_yxyx)
        found.append((boxes, result["malformed"]))
    return found


def segment(
    model: Any,
    processor: Any,
    record: Mapping[str, Any],
    boxes: Sequence[Mapping[str, Any]],
    seed: int = 0,
    **generation: Any,
) -> tuple[Results, Counts]:
    r"""Find the mask of every box of a picture.

    Args:
        model (`Pix2SeqForConditionalGeneration`): In evaluation mode.
        processor (`Pix2SeqProcessor`): That of the model.
        record (`Mapping`): A picture with `image`, `image_id` and `image_size`.
        boxes (`Sequence[Mapping]`): Boxes to ask about; those without an area inside the picture are left out.
        seed (`int`): Of what is drawn.
        **generation: Of `generate`.
    Returns:
        `tuple`: As [`~evaluation.masks.mask_results`] lists them, the score is that of the box; and what was
        malformed."""
    found = _ask(model, processor, "instance_segmentation", record, boxes, [seed], generation)
    if found is None:
        return [], {}
    results = mask_results(record["image_id"], found["labels"].tolist(), found["scores"].tolist(), found["rles"])
    return results, found["malformed"]


def find_keypoints(
    model: Any,
    processor: Any,
    record: Mapping[str, Any],
    boxes: Sequence[Mapping[str, Any]],
    seed: int = 0,
    **generation: Any,
) -> tuple[Results, Counts]:
    r"""Find the keypoints of every box of a label that has some; arguments as of [`segment`].

    Returns:
        `tuple`: As [`~evaluation.keypoints.keypoint_results`] lists them, and what was malformed."""
    keypoint_labels = set(model.config.keypoint_labels)
    boxes = [item for item in boxes if item["category_id"] in keypoint_labels]
    seeds = [picture_seed(seed, record["image_id"], "keypoint_detection", number) for number in range(len(boxes))]
    found = _ask(model, processor, "keypoint_detection", record, boxes, seeds, generation)
    if found is None:
        return [], {}
    results = keypoint_results(
        record["image_id"],
        found["labels"].tolist(),
        found["scores"].tolist(),
        found["keypoints"].tolist(),
        found["keypoint_visible"].tolist(),
        keypoint_labels,
    )
    return results, found["malformed"]


def caption(
    model: Any, processor: Any, record: Mapping[str, Any], seed: int = 0, **generation: Any
) -> tuple[str, Counts]:
    """Write one caption for a picture, and say what was malformed; arguments as of [`segment`]."""
    inputs = _inputs(model, processor, record["image"], "captioning")
    output = model.generate(**inputs, seeds=[seed], **generation)
    (found,) = processor.post_process_generation(output, task="captioning", target_sizes=[record["image_size"]])
    return found["captions"][0], found["malformed"]


def _inputs(model: Any, processor: Any, images: Any, task: str, **asked: Any) -> Any:
    options = {"input_data_format": "channels_first", "return_tensors": "pt"}
    return processor(images=images, task=task, **options, **asked).to(model.device)


def _ask(model, processor, task, record, boxes, seeds, generation) -> dict[str, Any] | None:
    """Ask about boxes; `None` if there is none that can be asked about."""
    height, width = record["image_size"]
    kept = []
    for item in boxes:
        if item["category_id"] not in model.config.id2label:  # a model may write a class that has no name
            continue
        left, top, box_width, box_height = item["bbox"]
        box = [max(left, 0), max(top, 0), min(left + box_width, width), min(top + box_height, height)]
        if box[0] < box[2] and box[1] < box[3]:  # a model may write a reversed or an empty box
            kept.append((box, item["category_id"], item["score"]))
    if not kept:
        return None
    corners, labels, scores = (torch.tensor(column) for column in zip(*kept, strict=True))
    asked = {"boxes": [corners], "labels": [labels]}
    inputs = _inputs(model, processor, record["image"], task, **asked)
    output = model.generate(**inputs, seeds=seeds[: len(inputs["pixel_values"])], **generation)
    sizes = [record["image_size"]]
    return processor.post_process_generation(output, task=task, target_sizes=sizes, scores=[scores], **asked)[0]
