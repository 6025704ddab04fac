"""How good is a model on a data set: asks it about every picture, task by task, and computes the numbers."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from pix2seq_hf.evaluation import predictions
from pix2seq_hf.evaluation.boxes import evaluate_boxes
from pix2seq_hf.evaluation.captions import count_reproduced
from pix2seq_hf.evaluation.keypoints import evaluate_keypoints
from pix2seq_hf.evaluation.masks import evaluate_masks
from pix2seq_hf.task_object_detection import coco_results

Results = list[dict[str, Any]]


class Measurement(NamedTuple):
    r"""What a model reached.

    Args:
        numbers (`dict[str, dict[str, float]]`): Metrics by task.
        results (`dict[str, list[dict]]`): What was found by task, in COCO results format."""

    numbers: dict[str, dict[str, float]]
    results: dict[str, Results]


class Share(NamedTuple):
    r"""The part of the pictures that this process is responsible for.

    Args:
        index (`int`): Of this process.
        count (`int`): Of all processes.
        gather (`Callable`): Called by every process with its list; returns the lists of all, one after the other."""

    index: int = 0
    count: int = 1
    gather: Callable[[list], list] = list


def measure(
    model: Any,
    processor: Any,
    split: Any,
    tasks: Sequence[str],
    *,
    boxes: str = "detected",
    min_score: float = 0.05,
    batch_size: int = 8,
    seed: int = 0,
    is_greedy: bool = False,
    show_progress: bool = False,
    share: Share | None = None,
) -> Measurement:
    r"""Ask a model about every picture of a split and compare with the annotations.

    Objects are decoded as in the reference: every slot of every picture counts with its class score, there is no
    threshold.

    Args:
        model (`Pix2SeqForConditionalGeneration`): In evaluation mode.
        processor (`Pix2SeqProcessor`): That of the model.
        split (`data.rows.Split`): Pictures and ground truth, with what the tasks need.
        tasks (`Sequence[str]`): What is measured.
        boxes (`str`): What masks and keypoints are asked for: `"detected"` or `"annotated"` boxes.
        min_score (`float`): Detected boxes of a lower score are not asked about.
        batch_size (`int`): Pictures at once, in detection.
        seed (`int`): Of torch's generator, which draws the tokens.
        is_greedy (`bool`): Write the most probable words of captions instead of drawing them.
        show_progress (`bool`): Show a progress bar for detection.
        share ([`Share`], *optional*): For several processes, each of which computes the same numbers in the end.
    Returns:
        [`Measurement`]."""
    share = share or Share()
    torch.manual_seed(seed)
    config = model.config
    mine = range(share.index, len(split.dataset), share.count)

    def records() -> Iterator[dict[str, Any]]:
        return (split.load(row, config.max_points_per_object, config.num_keypoints) for row in mine)

    numbers: dict[str, dict[str, float]] = {}
    found: dict[str, Results] = {}

    asks_for_boxes = {"instance_segmentation", "keypoint_detection"} & set(tasks)
    asked_boxes = predictions.annotated_boxes(split.annotations)
    if "object_detection" in tasks or (asks_for_boxes and boxes == "detected"):
        detections, malformed = detect_all(model, processor, records(), len(mine), batch_size, show_progress)
        detections, malformed = share.gather(detections), sum(share.gather([malformed]))
        asked_boxes = detections if boxes == "detected" else asked_boxes
    if "object_detection" in tasks:
        numbers["object_detection"] = {
            **evaluate_boxes(split.annotations, detections), "num_malformed_slots": malformed
        }  # fmt: skip
        found["object_detection"] = detections

    for task, ask, evaluate, truth in (
        ("instance_segmentation", predictions.segment_all, evaluate_masks, split.annotations),
        ("keypoint_detection", predictions.find_keypoints_all, evaluate_keypoints, split.keypoint_annotations),
    ):
        if task in tasks:
            found[task] = share.gather(ask(model, processor, records(), asked_boxes, min_score))
            numbers[task] = evaluate(truth, found[task])
    if "captioning" in tasks:
        generation = {"do_sample": False} if is_greedy else {}
        captions = predictions.caption_all(model, processor, records(), **generation)
        captions = dict(share.gather(list(captions.items())))
        references: dict[int, list[str]] = {}
        for item in split.caption_annotations["annotations"]:
            references.setdefault(item["image_id"], []).append(item["caption"])
        captions = {image_id: caption for image_id, caption in captions.items() if image_id in references}
        found["captioning"] = [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]
        numbers["captioning"] = count_reproduced(captions, references)
    return Measurement(numbers, found)


def detect_all(
    model: Any,
    processor: Any,
    records: Iterable[Mapping[str, Any]],
    num_records: int,
    batch_size: int,
    show_progress: bool = False,
) -> tuple[Results, int]:
    r"""Detect objects in every picture of a data set.

    Args:
        model (`Pix2SeqForConditionalGeneration`): In evaluation mode.
        processor (`Pix2SeqProcessor`): That of the model.
        records (`Iterable[Mapping]`): Pictures with `image`, `image_id` and `image_size`.
        num_records (`int`): How many there are, for the progress bar.
        batch_size (`int`): Pictures at once.
        show_progress (`bool`): Show a progress bar.
    Returns:
        `tuple[list[dict], int]`: Detections in COCO results format, and the number of malformed slots among them."""
    detections, malformed, records = [], 0, iter(records)
    with tqdm(total=num_records, unit="picture", disable=not show_progress, dynamic_ncols=True) as bar:
        while batch := list(itertools.islice(records, batch_size)):
            for record, result in zip(batch, _detect(model, processor, batch), strict=True):
                boxes_yxyx = result["boxes"][:, [1, 0, 3, 2]].cpu()
                detections += coco_results(
                    record["image_id"], result["labels"].cpu(), result["scores"].cpu(), boxes_yxyx
                )
                malformed += sum(result["malformed"].values())
            bar.update(len(batch))
    return detections, malformed


def _detect(model: Any, processor: Any, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Objects of a batch of records in pixels of their pictures, neither cut to them nor filtered by score."""
    images = [record["image"] for record in records]
    inputs = processor(
        images=images, task="object_detection", input_data_format="channels_first", return_tensors="pt"
    ).to(model.device)
    output = model.generate(**inputs)
    sizes = [record["image_size"] for record in records]
    return processor.post_process_generation(output, task="object_detection", target_sizes=sizes)
