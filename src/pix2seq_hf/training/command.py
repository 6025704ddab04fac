"""Train a model on a COCO folder, for one task or for several at once.

The folder holds annotations/instances_SPLIT.json, for keypoints and captions also person_keypoints_SPLIT.json and
captions_SPLIT.json, and the pictures in SPLIT/. The sections of a recipe that are named after tasks say which are
trained, each with settings of its own; without one it is object detection.

examples:
  pix2seq train --recipe overfit --data coco_mini --output runs/overfit
  pix2seq train --recipe overfit --data coco_mini --output runs/mine --set training.steps=500 --set data.max_images=4
  pix2seq train --recipe overfit_tasks --data coco_mini --output runs/tasks
  pix2seq train --recipe mine.yaml --data coco --output runs/mine --resume
  accelerate launch scripts/train.py --recipe mine.yaml --data coco --output runs/mine     (the same, on many devices)

The result is OUTPUT/final, a folder for `pix2seq predict --model`; watch the run with
`tensorboard --logdir OUTPUT`.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq train`."""
    parser.add_argument(
        "--recipe", required=True, metavar="NAME", help="a recipe of the package, or the path of a .yaml file"
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="COCO folder")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the run; made if it is missing")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a setting of the recipe, for instance training.batch_size=8; may be given several times",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT from its last checkpoint")
    parser.add_argument("--quiet", action="store_true", help="no progress bar; errors are still shown")


def run(args: argparse.Namespace) -> int:
    """Train as the options say and return the exit code 0."""
    from pix2seq_hf.training.arguments import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)  # before the imports that take seconds

    from pix2seq_hf.training.loop import train

    final = train(recipe, args.data, args.output, resume=args.resume, show_progress=not args.quiet)
    if not args.quiet:
        print(f"trained: {final}")
    return 0
