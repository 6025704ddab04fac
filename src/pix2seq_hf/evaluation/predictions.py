"""What a model says about pictures, task by task, in COCO results format.

The boxes that masks and keypoints are asked for are in COCO results format too, `{"image_id", "category_id", "bbox",
"score"}`: those that the model detected, those of [`annotated_boxes`], or those of a file."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from pix2seq_hf.evaluation.keypoints import keypoint_results
from pix2seq_hf.evaluation.masks import mask_results
from pix2seq_hf.processing_pix2seq import TASKS
from pix2seq_hf.records_pix2seq import checked_boxes, object_frames
from pix2seq_hf.task_base import add_counts
from pix2seq_hf.task_object_detection import coco_results

Results = list[dict[str, Any]]
Counts = dict[str, int]
TASKS_ABOUT_BOXES = ("instance_segmentation", "keypoint_detection")
# For each picture of a batch, how much is asked at once: outlines are long, the sequences of keypoints short.
OBJECTS_PER_PICTURE, CUTS_PER_PICTURE = 16, 4


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


class Pictures(NamedTuple):
    r"""A batch of pictures, each encoded once for all tasks about whole pictures.

    Args:
        records (`Sequence[Mapping]`): With `image`, `image_id` and `image_size`.
        encoded (`torch.FloatTensor` of shape `(batch, num_tokens, decoder_hidden_size)`): On the model's device."""

    records: Sequence[Mapping[str, Any]]
    encoded: torch.FloatTensor

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of every picture."""
        return [record["image_size"] for record in self.records]


class Asked(NamedTuple):
    r"""The objects of one picture that a model is asked about, as boxes inside the picture.

    Args:
        boxes (`torch.FloatTensor` of shape `(num_objects, 4)`): `xmin, ymin, xmax, ymax` in pixels.
        labels (`torch.LongTensor` of shape `(num_objects,)`): Raw label ids.
        scores (`torch.FloatTensor` of shape `(num_objects,)`): Of the boxes."""

    boxes: torch.Tensor
    labels: torch.Tensor
    scores: torch.Tensor

    def __getitem__(self, rows: Any) -> "Asked":
        """Some of the objects."""
        return Asked(*(column[rows] for column in tuple(self)))


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
    pictures = encode(model, processor, records)
    ids = [record["image_id"] for record in records]
    found: dict[str, list[tuple[Results, Counts]]] = {}

    def ask(task: str, function: Any, *conditions: Any) -> list[tuple[Results, Counts]]:
        seeds = [picture_seed(question.seed, image_id, task) for image_id in ids]
        return function(model, processor, pictures, *conditions, seeds, **question.generation.get(task, {}))

    boxes = [[] if asked is None else asked.get(image_id, []) for image_id in ids]
    if question.detects:
        found["object_detection"] = ask("object_detection", detect)
        if asked is None:
            boxes = [
                [item for item in items if item["score"] >= question.min_score]
                for items, _ in found["object_detection"]
            ]
    if "instance_segmentation" in question.tasks:
        found["instance_segmentation"] = ask("instance_segmentation", segment, boxes)
    if "keypoint_detection" in question.tasks:
        found["keypoint_detection"] = ask("keypoint_detection", find_keypoints, boxes)
    if "captioning" in question.tasks:
        found["captioning"] = ask("captioning", caption)
    columns = [{task: found[task][index] for task in question.tasks} for index in range(len(ids))]
    return [
        Answer(
            image_id,
            {task: results for task, (results, _) in column.items()},
            {task: malformed for task, (_, malformed) in column.items()},
        )
        for image_id, column in zip(ids, columns, strict=True)
    ]


def picture_seed(seed: int, image_id: int, task: str, number: int = 0) -> int:
    """A seed of its own for every picture, task and object in it."""
    digest = hashlib.sha256(f"{seed} {image_id} {task} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # below 2 ** 63, as torch wants it


@torch.no_grad()
def encode(model: Any, processor: Any, records: Sequence[Mapping[str, Any]]) -> Pictures:
    """Encode a batch of pictures; the arguments are those of [`answer`]."""
    images = [record["image"] for record in records]
    pixel_values = processor.image_processor(images, input_data_format="channels_first", return_tensors="pt")
    encoded = model.get_encoder()(pixel_values["pixel_values"].to(model.device)).last_hidden_state
    return Pictures(records, encoded)


def detect(
    model: Any, processor: Any, pictures: Pictures, seeds: Sequence[int], **generation: Any
) -> list[tuple[Results, Counts]]:
    """Detect the objects of a batch: boxes and what was malformed, neither cut to the picture nor filtered by score."""
    output = _generate(model, "object_detection", pictures.encoded, seeds=seeds, **generation)
    found = []
    for record, result in zip(
        pictures.records,
        processor.post_process_generation(output, task="object_detection", target_sizes=pictures.sizes),
        strict=True,
    ):
        boxes_yxyx = result["boxes"][:, [1, 0, 3, 2]].cpu()
        boxes = coco_results(record["image_id"], result["labels"].cpu(), result["scores"].cpu(), boxes_yxyx)
        found.append((boxes, result["malformed"]))
    return found


def segment(
    model: Any,
    processor: Any,
    pictures: Pictures,
    boxes: Sequence[Sequence[Mapping[str, Any]]],
    seeds: Sequence[int],
    **generation: Any,
) -> list[tuple[Results, Counts]]:
    r"""Find the mask of every box of a batch.

    Args:
        model (`Pix2SeqForConditionalGeneration`): In evaluation mode.
        processor (`Pix2SeqProcessor`): That of the model.
        pictures ([`Pictures`]): The batch.
        boxes (`Sequence[Sequence[Mapping]]`): Per picture the boxes to ask about, see [`choose_boxes`].
        seeds (`Sequence[int]`): Per picture, of what is drawn.
        **generation: Of `generate`.
    Returns:
        `list[tuple]`: Per picture, as [`~evaluation.masks.mask_results`] lists them, the score is that of the box; and
        what was malformed."""
    task = "instance_segmentation"
    asked = [choose_boxes(items, record, model.config) for items, record in zip(boxes, pictures.records, strict=True)]
    found: list[tuple[Results, Counts]] = [([], {}) for _ in asked]
    if TASKS[task].crop_pad_scale(processor) is not None:
        for index, result in ask_about_cuts(model, processor, pictures, asked, task, seeds, **generation):
            columns = (result["labels"].tolist(), result["scores"].tolist(), result["rles"])
            before, malformed = found[index]
            listed = before + mask_results(pictures.records[index]["image_id"], *columns)
            found[index] = listed, add_counts([malformed, result["malformed"]])
        return found
    size = processor.image_processor.size
    input_size = size["height"], size["width"]
    for group in group_alike([len(each.labels) for each in asked], OBJECTS_PER_PICTURE * len(asked)):
        sizes = [pictures.sizes[index] for index in group]
        boxes_xyxy, labels, scores = ([column[index] for index in group] for column in zip(*asked, strict=True))
        frames = object_frames(
            *checked_boxes(boxes_xyxy, labels, scores, sizes, processor.vocabulary), sizes, input_size, None
        )
        prompts = [TASKS[task].prompt(processor.vocabulary, frame.boxes_yxyx, frame.labels) for frame in frames]
        output = _generate(
            model,
            task,
            pictures.encoded[group],
            decoder_input_ids=pad_sequence(prompts, batch_first=True).to(model.device),  # (pictures, most objects, 6)
            seeds=[seeds[index] for index in group],
            **generation,
        )
        asked_about = {"boxes": boxes_xyxy, "labels": labels, "scores": scores}
        results = processor.post_process_generation(output, task=task, target_sizes=sizes, **asked_about)
        for index, result in zip(group, results, strict=True):
            columns = (result["labels"].tolist(), result["scores"].tolist(), result["rles"])
            found[index] = mask_results(pictures.records[index]["image_id"], *columns), result["malformed"]
    return found


def find_keypoints(
    model: Any,
    processor: Any,
    pictures: Pictures,
    boxes: Sequence[Sequence[Mapping[str, Any]]],
    seeds: Sequence[int],
    **generation: Any,
) -> list[tuple[Results, Counts]]:
    r"""Find the keypoints of every box of a label that has some, in cuts of the pictures; arguments as of [`segment`].

    Returns:
        `list[tuple]`: Per picture, as [`~evaluation.keypoints.keypoint_results`] lists them, and what was malformed."""
    task, keypoint_labels = "keypoint_detection", set(model.config.keypoint_labels)
    asked = [
        choose_boxes([item for item in items if item["category_id"] in keypoint_labels], record, model.config)
        for items, record in zip(boxes, pictures.records, strict=True)
    ]
    found: list[tuple[Results, Counts]] = [([], {}) for _ in asked]
    for index, result in ask_about_cuts(model, processor, pictures, asked, task, seeds, **generation):
        columns = [result[name].tolist() for name in ("labels", "scores", "keypoints", "keypoint_visible")]
        before, malformed = found[index]
        listed = before + keypoint_results(pictures.records[index]["image_id"], *columns, keypoint_labels)
        found[index] = listed, add_counts([malformed, result["malformed"]])
    return found


def ask_about_cuts(
    model: Any,
    processor: Any,
    pictures: Pictures,
    asked: Sequence[Asked],
    task: str,
    seeds: Sequence[int],
    **generation: Any,
) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Ask about objects one by one, each in a cut of its picture.

    Args:
        model, processor, pictures, seeds, **generation: As of [`segment`].
        asked (`Sequence[Asked]`): Per picture its objects.
        task (`str`): Which.
    Yields:
        `tuple`: The place of a picture and what the processor made of some of its objects, in their order."""
    cuts = [(index, number) for index, each in enumerate(asked) for number in range(len(each.labels))]
    most = CUTS_PER_PICTURE * len(asked)
    for part in (cuts[first : first + most] for first in range(0, len(cuts), most)):
        numbers: dict[int, list[int]] = {}
        for index, number in part:
            numbers.setdefault(index, []).append(number)
        records = [pictures.records[index] for index in numbers]
        columns = zip(*(asked[index][rows] for index, rows in numbers.items()), strict=True)
        boxes_xyxy, labels, scores = map(list, columns)
        conditions = {"boxes": boxes_xyxy, "labels": labels}
        inputs = processor(
            images=[record["image"] for record in records],
            task=task,
            **conditions,
            input_data_format="channels_first",
            return_tensors="pt",
        ).to(model.device)
        drawn = [picture_seed(seeds[i], pictures.records[i]["image_id"], task, number) for i, number in part]
        output = model.generate(**inputs, seeds=drawn, **generation)
        sizes = [record["image_size"] for record in records]
        results = processor.post_process_generation(output, task=task, target_sizes=sizes, scores=scores, **conditions)
        yield from zip(numbers, results, strict=True)


def caption(
    model: Any, processor: Any, pictures: Pictures, seeds: Sequence[int], **generation: Any
) -> list[tuple[Results, Counts]]:
    """Write one caption for every picture, and say what was malformed; arguments as of [`segment`]."""
    output = _generate(model, "captioning", pictures.encoded, seeds=seeds, **generation)
    results = processor.post_process_generation(output, task="captioning", target_sizes=pictures.sizes)
    return [
        ([{"image_id": record["image_id"], "caption": result["captions"][0]}], result["malformed"])
        for record, result in zip(pictures.records, results, strict=True)
    ]


def choose_boxes(boxes: Iterable[Mapping[str, Any]], record: Mapping[str, Any], config: Any) -> Asked:
    """The boxes of a picture that can be asked about, cut to it: of a known class, and with an area inside of it."""
    height, width = record["image_size"]
    kept = []
    for item in boxes:
        if item["category_id"] not in config.id2label:  # a model may write a class that has no name
            continue
        left, top, box_width, box_height = item["bbox"]
        box = [max(left, 0), max(top, 0), min(left + box_width, width), min(top + box_height, height)]
        if box[0] < box[2] and box[1] < box[3]:  # a model may write a reversed or an empty box
            kept.append((box, item["category_id"], item["score"]))
    corners, labels, scores = zip(*kept, strict=True) if kept else ((), (), ())
    return Asked(
        torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores, dtype=torch.float32),
    )


def group_alike(numbers: Sequence[int], most: int) -> list[list[int]]:
    r"""Say which pictures are asked about together: those with like numbers of objects, the rest would be padding.

    Args:
        numbers (`Sequence[int]`): Objects of every picture.
        most (`int`): Objects and padding of a group of several pictures.
    Returns:
        `list[list[int]]`: Places of all pictures that have objects, in groups of which at most a quarter is padding."""
    groups: list[list[int]] = []
    for index in sorted(range(len(numbers)), key=lambda index: -numbers[index]):
        if not numbers[index]:
            break
        group = [*groups[-1], index] if groups else []
        size = len(group) * numbers[group[0]] if group else 0
        if group and size <= most and 3 * size <= 4 * sum(numbers[member] for member in group):
            groups[-1] = group
        else:
            groups.append([index])
    return groups


def _generate(model: Any, task: str, encoded: torch.FloatTensor, **options: Any) -> Any:
    return model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=encoded), task=task, **options)
