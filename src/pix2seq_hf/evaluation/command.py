"""Measure the average precision of a model on a data set: a folder in COCO's, VOC's or YOLO's layout, or of `datasets`.

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
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq evaluate`."""
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder, as convert and train write it")
    parser.add_argument(
        "--data", "--coco", required=True, metavar="DATA", help="the data set: a folder, a file, or a name on the Hub"
    )
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

    from pix2seq_hf.data.rows import TASK_FEATURES
    from pix2seq_hf.data.sources import open_split
    from pix2seq_hf.evaluation.boxes import format_box_metrics
    from pix2seq_hf.evaluation.measure import measure
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
    split = open_split(
        args.data,
        args.split,
        image_ids=args.image_ids,
        max_images=args.max_images,
        tasks=wanted,
        num_keypoints=config.num_keypoints,
    )
    start = time.perf_counter()
    measured, found = measure(
        model,
        processor,
        split,
        wanted,
        boxes=args.boxes,
        min_score=args.min_score,
        batch_size=args.batch_size,
        seed=args.seed,
        is_greedy=args.greedy,
        show_progress=not args.quiet,
    )
    numbers: dict[str, Any] = {"num_images": len(split.dataset), "seconds": time.perf_counter() - start}
    for task in wanted:
        metrics = measured[task]
        if task == "object_detection":
            numbers |= metrics
            print(format_box_metrics(metrics))
            pace = f"{len(split.dataset) / numbers['seconds']:.2f} pictures per second"
            counts = f"{len(found[task])} boxes, {metrics['num_malformed_slots']} malformed slots"
            print(f"{len(split.dataset)} pictures, {counts}, {pace}")
            continue
        numbers[task] = metrics
        if task == "captioning":
            print("captioning: {reproduced} of {num_captions} captions word for word".format(**metrics))
        else:
            shown = "  ".join(f"{name} {100 * metrics[name]:.1f}" for name in ("AP", "AP_50", "AP_75"))
            print(f"{task} for {args.boxes} boxes: {shown}")

    if args.results is not None:
        path = Path(args.results)
        for task, results in found.items():
            name = path.name if task == "object_detection" else f"{path.stem}_{task}{path.suffix}"
            path.with_name(name).write_text(json.dumps(results))
    if args.json is not None:
        Path(args.json).write_text(json.dumps(numbers, indent=2) + "\n")
    return 0


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 139,285") from None
