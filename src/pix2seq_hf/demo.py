"""Train a small detector on drawn pictures and let it find the shapes in new ones: offline, in minutes, on a CPU.

examples:
  pix2seq demo
  pix2seq demo --output shapes --seed 3 --steps 1000      (more steps, better boxes)

In the output folder:
  found.png    new pictures with the boxes that the model found in them
  scenes/      all drawn pictures, as a COCO folder
  run/         the training run; run/final is a model folder for `pix2seq predict --model`
"""

import argparse
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

NUM_TRAINING, NUM_NEW, NUM_SHOWN = 2000, 32, 6  # pictures
SCENE = {"max_objects": 2, "size_range": (0.3, 0.6), "use_class_colors": True}
TRAINING_SIZE, NEW_SIZE = (64, 64), (384, 384)  # height and width of the pictures
COLUMNS, GAP = 3, 8  # of found.png, in pictures and pixels
THRESHOLD = 0.3  # scores of the boxes that are shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq demo`."""
    parser.add_argument(
        "--output", default="pix2seq-demo", metavar="DIR", help="where everything goes (default: pix2seq-demo)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of pictures and training (default: 0)")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default: those of the recipe 'demo')")


def run(args: argparse.Namespace) -> int:
    """Draw, train, detect; return the exit code 0."""
    start = time.monotonic()
    output = Path(args.output)
    overrides = [f"training.seed={args.seed}"]
    if args.steps is not None:
        overrides += [f"training.steps={args.steps}", f"optimization.warmup_steps={args.steps // 10}"]

    from pix2seq_hf.data.shapes import write_shapes
    from pix2seq_hf.training.arguments import load_recipe

    recipe = load_recipe("demo", overrides)
    clear_earlier_demo(output)
    print(f"1/3  drawing {NUM_TRAINING + NUM_NEW} pictures of shapes", flush=True)
    write_shapes(output / "scenes", "train", NUM_TRAINING, args.seed, image_size=TRAINING_SIZE, **SCENE)
    write_shapes(output / "scenes", "new", NUM_NEW, args.seed, image_size=NEW_SIZE, **SCENE)

    import torch

    from pix2seq_hf.training.loop import train

    # One core prepares the pictures. Threads that wait for a busy core cost more than they bring.
    torch.set_num_threads(max((os.cpu_count() or 1) - 1, 1))
    print(f"2/3  training a small model for {recipe.training.steps} steps", flush=True)
    model_folder = train(recipe, output / "scenes", output / "run")

    from pix2seq_hf.data.coco import read_coco
    from pix2seq_hf.evaluation.measure import measure
    from pix2seq_hf.evaluation.predictions import Question
    from pix2seq_hf.prediction import load_model

    print(f"3/3  detecting in {NUM_NEW} new pictures", flush=True)
    split = read_coco(output / "scenes", "new")
    model, processor = load_model(str(model_folder), "auto")
    measured = measure(model, processor, split, Question(["object_detection"], seed=args.seed), batch_size=NUM_NEW)
    detections, precision = measured.results["object_detection"], measured.numbers["object_detection"]["AP_50"]
    shown = [output / "scenes/new" / image["file_name"] for image in split.annotations["images"][:NUM_SHOWN]]
    draw_sheet(shown, detections, split.id2label).save(output / "found.png")
    print(f"average precision at IoU 0.5 on the new pictures: {100 * precision:.0f} %")
    print(f"{output / 'found.png'}: what the model found ({time.monotonic() - start:.0f} s)")
    return 0


def clear_earlier_demo(output: Path) -> None:
    """Delete what an earlier demo left in a folder; a ValueError if the folder holds anything else of these names."""
    if (output / "scenes/annotations/instances_new.json").is_file():
        for name in ("scenes", "run"):
            shutil.rmtree(output / name, ignore_errors=True)
    for name in ("scenes", "run"):
        if (output / name).exists():
            raise ValueError(f"{output / name}: is not of an earlier demo; choose another --output")


def draw_sheet(paths: Sequence[Path], detections: Sequence[Mapping], names: Mapping[int, str]) -> Image.Image:
    r"""Draw several pictures with their boxes on one sheet.

    Args:
        paths (`Sequence[Path]`): Pictures of `NEW_SIZE`; their image ids are the numbers they are named after.
        detections (`Sequence[Mapping]`): In COCO results format, of these and of other pictures.
        names (`Mapping[int, str]`): Name of each label.
    Returns:
        `PIL.Image.Image`: `COLUMNS` pictures in a row."""
    from pix2seq_hf.visualization import draw_detections

    rows = -(-len(paths) // COLUMNS)
    height, width = NEW_SIZE
    sheet = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for index, path in enumerate(paths):
        found = [item for item in detections if item["image_id"] == int(path.stem) and item["score"] >= THRESHOLD]
        boxes_xyxy = [(x, y, x + width, y + height) for x, y, width, height in (item["bbox"] for item in found)]
        labels, scores = [item["category_id"] for item in found], [item["score"] for item in found]
        with Image.open(path) as picture:
            drawing = draw_detections(picture, boxes_xyxy, labels, scores, names)
        row, column = divmod(index, COLUMNS)
        sheet.paste(drawing, (column * (width + GAP), row * (height + GAP)))
    return sheet
