"""Train a model for one task or for several at once, on a data set of one's own or a known one.

examples:
  pix2seq train --recipe overfit --data coco_mini --output runs/overfit
  pix2seq train --recipe overfit --data coco_mini --output runs/mine --set training.steps=500 --set data.max_images=4
  pix2seq train --recipe overfit_tasks --data coco_mini --output runs/tasks
  accelerate launch scripts/train.py --recipe mine.yaml --data coco --output runs/mine     (the same, on many devices)

DATA is a COCO folder, a Pascal VOC folder, a YOLO folder, a folder of pictures with metadata, parquet files, the name
of a data set on the Hub, or `scenes`, which are drawn; `pix2seq data inspect DATA` shows it and finds what is wrong
with it. The sections of a recipe that are named after tasks say which are trained, each with its own settings; without
one it is object detection. `pix2seq recipes` lists the recipes of the package.

A run that was interrupted goes on from its last checkpoint when the same command is given again, whether or not
model.pretrained is still there; with more steps or epochs it is prolonged. The result is OUTPUT/final, a folder for
`pix2seq predict --model`; OUTPUT/best is the model that did best on evaluation.split, if the recipe names one.
Watch the run with `tensorboard --logdir OUTPUT`.
"""

import argparse
import logging
import os
import time

logger = logging.getLogger(__name__)

SECONDS_FOR_LAUNCHER = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq train`."""
    parser.add_argument(
        "--recipe", required=True, metavar="NAME", help="a recipe of the package, or the path of a .yaml file"
    )
    parser.add_argument(
        "--data", required=True, metavar="DATA", help="the data set: a folder, a file, or a name on the Hub"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the run; made if it is missing")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a setting of the recipe, for instance training.batch_size=8; may be given several times",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        help="--resume: there must be a run in DIR to go on with; --no-resume: there must be none (default: go on if "
        "there is one)",
    )
    parser.add_argument(
        "--max-bad",
        type=float,
        metavar="SHARE",
        help="stop if more than this share of a task's samples turn out unusable; one alone is passed over unless it "
        "is 0 (default: the recipe's data.max_bad, 0.01)",
    )


def run(args: argparse.Namespace) -> int:
    """Train as the options say and return the exit code 0, whatever was left out within --max-bad."""
    from pix2seq_hf.training.arguments import load_recipe

    if args.max_bad is not None and not 0 <= args.max_bad <= 1:
        raise ValueError(f"--max-bad {args.max_bad}: must be between 0 and 1")
    overrides = [*args.overrides, *([] if args.max_bad is None else [f"data.max_bad={args.max_bad}"])]
    recipe = load_recipe(args.recipe, overrides)  # before the imports that take seconds
    is_first = not int(os.environ.get("RANK", "0"))
    logger.info("loading the libraries")

    import datasets
    import transformers

    from pix2seq_hf.training.loop import train

    if args.quiet or not is_first:
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
    try:
        final = train(recipe, args.data, args.output, resume=args.resume, show_progress=not args.quiet)
    except (ValueError, OSError):
        if not is_first:  # nearly always the first process says the same, and the launcher then ends this one
            time.sleep(SECONDS_FOR_LAUNCHER)
        raise
    if is_first and not args.quiet:
        print(f"trained: {final}")
    return 0
