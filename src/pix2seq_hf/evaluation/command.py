"""Measure the average precision of a model on a COCO folder (annotations/instances_SPLIT.json, pictures in SPLIT/).

examples:
  pix2seq evaluate --model vit-b --data coco --split val2017
  pix2seq evaluate --model runs/mine/final --data coco_mini --max-images 8 --results found.json --json numbers.json
  pix2seq evaluate --model runs/tasks/final --data coco_mini --tasks all --boxes annotated

The numbers are those of pycocotools, for boxes, masks and keypoints; of captions those are counted that are word for
word one of the annotated ones. Objects are decoded as in the reference: every slot of every picture counts with its
class score, there is no threshold. Masks and keypoints are asked for the boxes that the model itself detects with a
score of at least --min-score, or for the annotated ones.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq evaluate`."""
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder, as convert and train write it")
    parser.add_argument("--data", "--coco", required=True, metavar="DIR", help="COCO folder")
    parser.add_argument("--split", default="val2017", help="which annotations and pictures (default: val2017)")
    parser.add_argument(
        "--tasks",
        "--task",
        default="object_detection",
        metavar="TASK,TASK,...",
        help="what is measured, or 'all' that the model was trained for (default: object_detection)",
    )
    parser.add_argument(
        "--boxes",
        choices=("detected", "annotated"),
        default="detected",
        help="which boxes masks and keypoints are asked for (default: detected)",
    )
    parser.add_argument(
        "--min-score", type=float, default=0.05, metavar="S", help="of the boxes to ask for (default: 0.05)"
    )
    parser.add_argument("--greedy", action="store_true", help="the most probable words in captions, not drawn ones")
    parser.add_argument("--max-images", type=int, metavar="N", help="only the first N pictures")
    parser.add_argument(
        "--image-ids", type=_parse_ids, metavar="ID,ID,...", help="only the pictures with these ids of the annotations"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="pictures at once (default: 8)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the accelerator if there is one)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="for the model's sampling of tokens (default: 0)"
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        help="write what was found in COCO's results format: boxes to FILE, each other task to FILE_TASK",
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers")
    parser.add_argument("--quiet", action="store_true", help="no progress bar; the numbers are still printed")


def run(args: argparse.Namespace) -> int:
    """Evaluate as the options say, print a table and return the exit code 0."""
    for option in ("batch_size", "max_images"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} {value}: must be at least 1")

    from pix2seq_hf.data.coco import read_coco
    from pix2seq_hf.data.rows import TASK_FEATURES, load_record
    from pix2seq_hf.evaluation import predictions
    from pix2seq_hf.evaluation.boxes import evaluate_boxes, format_box_metrics
    from pix2seq_hf.evaluation.captions import count_reproduced
    from pix2seq_hf.evaluation.keypoints import evaluate_keypoints
    from pix2seq_hf.evaluation.masks import evaluate_masks
    from pix2seq_hf.prediction import load_model

    wanted = list(TASK_FEATURES) if args.tasks == "all" else args.tasks.split(",")
    for task in wanted:
        if task not in TASK_FEATURES:
            raise ValueError(f"--tasks: unknown task {task!r}: known are {', '.join(TASK_FEATURES)}, and all")
    model, processor = load_model(args.model, args.device)
    config = model.config
    if args.tasks == "all":
        wanted = [task for task in wanted if task in config.tasks]
    for task in wanted:
        if task not in config.tasks:
            raise ValueError(
                f"--tasks: {args.model} was not trained for {task}: its tasks are {', '.join(config.tasks)}"
            )
    split = read_coco(
        args.data, args.split, args.image_ids, args.max_images, tasks=wanted, num_keypoints=config.num_keypoints
    )
    found: dict[str, Any] = {}
    numbers: dict[str, Any] = {"num_images": len(split.dataset)}
    start = time.perf_counter()

    asks_for_boxes = {"instance_segmentation", "keypoint_detection"} & set(wanted)
    boxes = predictions.annotated_boxes(split.annotations)
    if "object_detection" in wanted or (asks_for_boxes and args.boxes == "detected"):
        detections, malformed = detect_all(
            model, processor, split.dataset, args.batch_size, args.seed, show_progress=not args.quiet
        )
        boxes = detections if args.boxes == "detected" else boxes
    if "object_detection" in wanted:
        metrics = evaluate_boxes(split.annotations, detections)
        numbers |= {**metrics, "num_malformed_slots": malformed, "seconds": time.perf_counter() - start}
        found["object_detection"] = detections
        print(format_box_metrics(metrics))
        pace = f"{len(split.dataset) / numbers['seconds']:.2f} pictures per second"
        print(f"{len(split.dataset)} pictures, {len(detections)} boxes, {malformed} malformed slots, {pace}")

    def records():
        return (load_record(row, config.max_points_per_object, config.num_keypoints) for row in split.dataset)

    for task, ask, evaluate, truth in (
        ("instance_segmentation", predictions.segment_all, evaluate_masks, split.annotations),
        ("keypoint_detection", predictions.find_keypoints_all, evaluate_keypoints, split.keypoint_annotations),
    ):
        if task in wanted:
            found[task] = ask(model, processor, records(), boxes, args.min_score)
            numbers[task] = evaluate(truth, found[task])
            shown = "  ".join(f"{name} {100 * numbers[task][name]:.1f}" for name in ("AP", "AP_50", "AP_75"))
            print(f"{task} for {args.boxes} boxes: {shown}")
    if "captioning" in wanted:
        generation = {"do_sample": False} if args.greedy else {}
        captions = predictions.caption_all(model, processor, records(), **generation)
        references: dict[int, list[str]] = {}
        for item in split.caption_annotations["annotations"]:
            references.setdefault(item["image_id"], []).append(item["caption"])
        captions = {image_id: caption for image_id, caption in captions.items() if image_id in references}
        found["captioning"] = [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]
        numbers["captioning"] = count_reproduced(captions, references)
        print("captioning: {reproduced} of {num_captions} captions word for word".format(**numbers["captioning"]))

    if args.results is not None:
        path = Path(args.results)
        for task, results in found.items():
            name = path.name if task == "object_detection" else f"{path.stem}_{task}{path.suffix}"
            path.with_name(name).write_text(json.dumps(results))
    if args.json is not None:
        Path(args.json).write_text(json.dumps(numbers, indent=2) + "\n")
    return 0


def detect_all(
    model: Any, processor: Any, rows: Any, batch_size: int, seed: int = 0, show_progress: bool = True
) -> tuple[list[dict], int]:
    r"""Detect objects in every picture of a data set.

    Args:
        model (`Pix2SeqForConditionalGeneration`): In evaluation mode.
        processor (`Pix2SeqProcessor`): That of the model.
        rows (`datasets.Dataset`): As `read_coco` returns it.
        batch_size (`int`): Pictures at once.
        seed (`int`): Of torch's generator, which draws the tokens.
        show_progress (`bool`): Show a progress bar.
    Returns:
        `tuple[list[dict], int]`: Detections in COCO results format, and the number of malformed slots among them."""
    import torch
    from tqdm import tqdm

    from pix2seq_hf.data.rows import load_record
    from pix2seq_hf.task_object_detection import coco_results

    torch.manual_seed(seed)
    detections, malformed = [], 0
    with tqdm(total=len(rows), unit="picture", disable=not show_progress, dynamic_ncols=True) as bar:
        for first in range(0, len(rows), batch_size):
            records = [load_record(rows[row]) for row in range(first, min(first + batch_size, len(rows)))]
            for record, result in zip(records, _detect(model, processor, records), strict=True):
                boxes_yxyx = result["boxes"][:, [1, 0, 3, 2]].cpu()
                detections += coco_results(
                    record["image_id"], result["labels"].cpu(), result["scores"].cpu(), boxes_yxyx
                )
                malformed += sum(result["malformed"].values())
            bar.update(len(records))
    return detections, malformed


def _detect(model: Any, processor: Any, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Objects of a batch of records in pixels of their pictures, neither cut to them nor filtered by score."""
    images = [record["image"] for record in records]
    inputs = processor(
        images=images, task="object_detection", input_data_format="channels_first", return_tensors="pt"
    ).to(model.device)
    output = model.generate(**inputs)
    sizes = [record["image_size"] for record in records]
    return processor.post_process_generation(output, task="object_detection", target_sizes=sizes)


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 139,285") from None
