"""How does a small detector learn drawn shapes from nothing, in minutes on a CPU: `pix2seq demo --train`."""

import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

logger = logging.getLogger(__name__)

NUM_TRAINING, NUM_NEW, NUM_SHOWN = 2000, 32, 6  # pictures
SCENE = {"max_objects": 2, "size_range": (0.3, 0.6), "use_class_colors": True}
TRAINING_SIZE, NEW_SIZE = (64, 64), (384, 384)  # height and width of the pictures
COLUMNS, GAP = 3, 8  # of the sheet, in pictures and pixels
THRESHOLD = 0.3  # scores of the boxes that are shown
SHEET, SHAPES, RUN = "shapes.png", "shapes", "run"


def train_and_show(output: Path, seed: int, steps: int | None = None) -> None:
    r"""Draw shapes, train the recipe `demo` on them, show and print what the model finds in new ones.

    Args:
        output (`Path`): Gets `shapes.png`, `shapes/` and `run/`; those of an earlier demo are replaced.
        seed (`int`): Of pictures and training.
        steps (`int`, *optional*): Of training; by default the recipe's.
    Raises:
        ValueError: If `output` has other things of these names, or `steps` is not above 0."""
    start = time.monotonic()
    overrides = [f"training.seed={seed}"]
    if steps is not None:
        overrides += [f"training.steps={steps}", f"optimization.warmup_steps={steps // 10}"]

    from pix2seq_hf.data.shapes import write_shapes
    from pix2seq_hf.training.arguments import load_recipe

    recipe = load_recipe("demo", overrides)
    clear_earlier_demo(output)
    logger.info("1/3  drawing %d pictures of shapes", NUM_TRAINING + NUM_NEW)
    write_shapes(output / SHAPES, "train", NUM_TRAINING, seed, image_size=TRAINING_SIZE, **SCENE)
    write_shapes(output / SHAPES, "new", NUM_NEW, seed, image_size=NEW_SIZE, **SCENE)

    from pix2seq_hf.training.loop import train

    spare_one_core()
    logger.info("2/3  training a small model for %d steps", recipe.training.steps)
    model_folder = train(recipe, output / SHAPES, output / RUN)

    from pix2seq_hf.data.coco import read_coco
    from pix2seq_hf.evaluation.measure import measure
    from pix2seq_hf.evaluation.predictions import Question
    from pix2seq_hf.prediction import load_model

    logger.info("3/3  detecting in %d new pictures", NUM_NEW)
    split = read_coco(output / SHAPES, "new")
    model, processor = load_model(str(model_folder), "auto")
    measured = measure(model, processor, split, Question(["object_detection"], seed=seed), batch_size=NUM_NEW)
    detections, precision = measured.results["object_detection"], measured.numbers["object_detection"]["AP_50"]
    shown = [output / SHAPES / "new" / image["file_name"] for image in split.annotations["images"][:NUM_SHOWN]]
    draw_sheet(shown, detections, split.id2label).save(output / SHEET)
    print(f"average precision at IoU 0.5 on the new pictures: {100 * precision:.0f} %")
    print(f"{output / SHEET}: what the model found")
    logger.info("%.0f s", time.monotonic() - start)


def spare_one_core() -> None:
    """Let torch leave one core to others: threads that wait for a busy one cost more than they bring."""
    import torch

    torch.set_num_threads(max((os.cpu_count() or 1) - 1, 1))


def clear_earlier_demo(output: Path) -> None:
    """Delete what an earlier demo left in a folder; a ValueError if the folder holds anything else of these names."""
    if (output / SHAPES / "annotations/instances_new.json").is_file():
        for name in (SHAPES, RUN):
            shutil.rmtree(output / name, ignore_errors=True)
    for name in (SHAPES, RUN):
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
