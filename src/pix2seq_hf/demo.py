"""Draw new scenes and show what the model in the box finds in them: objects, masks, keypoints, captions; offline.

examples:
  pix2seq demo
  pix2seq demo --output seen --seed 7 --count 8       (other scenes, and more)
  pix2seq demo --model runs/mine/final                (another model)
  pix2seq demo --train                                (train a small detector from nothing first: minutes)

In the output folder:
  found.png     every scene beside what the model found in it, and the caption that it wrote
  found.json    all that was drawn and all that was found: boxes, masks as run lengths, keypoints, captions, scores
  scenes/       each scene, and its drawing alone

With --train there are instead:
  shapes.png    drawn shapes with the boxes that the new model found in them
  shapes/       all drawn pictures, as a COCO folder
  run/          the training run; run/final is a model folder for `pix2seq predict --model`
"""

import argparse
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pix2seq_hf.default_model import DEFAULT_MODEL, add_model_option
from pix2seq_hf.outputs import add_json_option, make_folder

logger = logging.getLogger(__name__)

OUTPUT, COUNT = "pix2seq-demo", 4
SHEET, NUMBERS, SCENES = "found.png", "found.json", "scenes"
SPLIT = "demo"  # of the scenes: no training has seen them
SCENE = {"image_size": (480, 480), "num_objects": (2, 12), "diameters": (40, 400), "crowd_rate": 0.0}
COLUMNS = 4  # of the sheet
THRESHOLD = 0.3  # scores of the objects that are shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `pix2seq demo`."""
    add_model_option(parser)
    parser.add_argument("--output", default=OUTPUT, metavar="DIR", help=f"where everything goes (default: {OUTPUT})")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other pictures for another (default: 0)")
    parser.add_argument("--count", type=int, metavar="N", help=f"how many scenes (default: {COUNT})")
    add_json_option(parser, "what found.json holds")
    parser.add_argument("--train", action="store_true", help="train a small detector of drawn shapes instead")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="of --train (default: those of the recipe 'demo'; more, better boxes)"
    )


def run(args: argparse.Namespace) -> int:
    """Draw, look, show; return the exit code 0."""
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: must not be negative")
    if args.train:
        for option, default in (("count", None), ("json", None), ("model", DEFAULT_MODEL)):
            if getattr(args, option) != default:
                raise ValueError(f"--{option}: is of no use with --train")
        from pix2seq_hf.demo_training import train_and_show

        train_and_show(Path(args.output), args.seed, args.steps)
        return 0
    if args.steps is not None:
        raise ValueError(f"--steps {args.steps}: is for --train")
    count = COUNT if args.count is None else args.count
    if count < 1:
        raise ValueError(f"--count {count}: must be at least 1")
    if args.json is not None:
        args.json.check()
    found = look_and_show(Path(args.output), args.seed, count, args.model)
    if args.json is not None:
        args.json.write(found)
    return 0


def look_and_show(output: Path, seed: int, count: int, folder: str) -> dict[str, Any]:
    r"""Draw scenes, let a model look at them, write and print what it found.

    Args:
        output (`Path`): Folder of the results; those of an earlier demo are replaced.
        seed (`int`): Of the scenes, and of what the model draws by chance.
        count (`int`): How many scenes.
        folder (`str`): Of the model.
    Returns:
        `dict[str, Any]`: The content of `found.json`.
    Raises:
        ValueError: If there is no such model, or `output` has other things of these names."""
    start = time.monotonic()
    clear_earlier_demo(output)

    from pix2seq_hf.prediction import load_model

    model, processor = load_model(folder)

    from pix2seq_hf.data.scenes import SceneOptions, draw_scene
    from pix2seq_hf.demo_training import spare_one_core
    from pix2seq_hf.engine import TaskOptions, run_tasks

    spare_one_core()
    scenes = [draw_scene(seed, SPLIT, index, SceneOptions(**SCENE)) for index in range(count)]
    logger.info("looking at %d new scene%s: %s", count, "s" * (count > 1), ", ".join(model.config.tasks))
    results = [
        result
        for first in range(0, count, COUNT)
        for result in run_tasks(
            model,
            processor,
            [scene.picture for scene in scenes[first : first + COUNT]],
            TaskOptions(threshold=THRESHOLD, seed=seed),
        )
    ]
    num_right = [count_right(scene, result) for scene, result in zip(scenes, results, strict=True)]
    make_folder(output / SCENES, "--output")
    entries = []
    for number, (scene, result) in enumerate(zip(scenes, results, strict=True), start=1):
        names = {"picture": f"{SCENES}/{number}.png", "drawing": f"{SCENES}/{number}-found.png"}
        scene.picture.save(output / names["picture"])
        result.draw().save(output / names["drawing"])
        entries.append({**names, "drawn": describe_scene(scene), "found": result.to_dict()})
    draw_sheet(scenes, results, num_right).save(output / SHEET)
    about = {"seed": seed, "model": "the model in the box" if folder == DEFAULT_MODEL else folder}
    content = {**about, "scenes": entries}
    (output / NUMBERS).write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(table(scenes, results, num_right))
    print(f"{output / SHEET}: what was found beside what was drawn")
    print(f"{output / NUMBERS}: all of it, for machines")
    logger.info("%.1f s", time.monotonic() - start)
    return content


def clear_earlier_demo(output: Path) -> None:
    """Delete what an earlier demo left in a folder; a ValueError if the folder holds anything else of these names."""
    if (output / NUMBERS).is_file() and (output / SHEET).is_file():
        (output / NUMBERS).unlink()
        (output / SHEET).unlink()
        shutil.rmtree(output / SCENES, ignore_errors=True)
    for name in (SHEET, NUMBERS, SCENES):
        if (output / name).exists():
            raise ValueError(f"{output / name}: is not of an earlier demo; choose another --output")


def count_right(scene: Any, result: Any) -> tuple[int, int]:
    r"""Count which drawn things were found, in their place (half of both boxes shared) and with their class.

    Args:
        scene ([`Scene`]): What was drawn.
        result ([`Pix2SeqResult`]): What was found.
    Returns:
        `tuple[int, int]`: How many, and of how many drawn ones."""
    from pix2seq_hf.data.scene_folder import join_scenes
    from pix2seq_hf.data.scene_things import SCENE_CLASSES
    from pix2seq_hf.evaluation.matches import match_results, matched_pictures

    labels = {name: label for label, name in SCENE_CLASSES.items()}
    truth = join_scenes([(1, scene.objects, [])], result.size, "")["instances"]
    found = [{**item.to_coco(1), "category_id": labels[item.label]} for item in result.objects if item.label in labels]
    matched = matched_pictures(match_results(truth, found))
    right = sum(int(((entry["dtMatches"][0] > 0) & ~entry["dtIgnore"][0]).sum()) for entry in matched)
    return right, sum(not item["iscrowd"] for item in scene.objects)


def describe_scene(scene: Any) -> dict[str, Any]:
    """What was drawn, in the words of [`Pix2SeqResult.to_dict`]."""
    from pix2seq_hf.data.scene_things import SCENE_CLASSES

    objects = []
    for item in scene.objects:
        left, top, width, height = item["bbox"]
        box = {"xmin": left, "ymin": top, "xmax": left + width, "ymax": top + height}
        objects.append({"label": SCENE_CLASSES[item["category_id"]], "color": item["color"], "box": box})
    return {"objects": objects, "captions": scene.captions}


def draw_sheet(scenes: Sequence[Any], results: Sequence[Any], num_right: Sequence[tuple[int, int]]) -> Image.Image:
    r"""Put every scene beside what was found in it.

    Args:
        scenes (`Sequence[Scene]`): What was drawn.
        results (`Sequence[Pix2SeqResult]`): What was found.
        num_right (`Sequence[tuple[int, int]]`): As [`count_right`] counts.
    Returns:
        `PIL.Image.Image`: Two scenes in a line."""
    from pix2seq_hf.contact_sheet import arrange
    from pix2seq_hf.visualization import draw_detections

    cells = []
    for number, (scene, result, (right, drawn)) in enumerate(zip(scenes, results, num_right, strict=True), start=1):
        keypoints = [
            item.keypoints and [(point.x, point.y, point.score * point.visible) for point in item.keypoints]
            for item in result.objects
        ]
        drawing = draw_detections(
            scene.picture,
            result.boxes_xyxy,
            result.label_ids,
            result.scores,
            result.id2label,
            [item.rle for item in result.objects],
            keypoints,
            result.keypoint_skeleton,
        )
        cells.append((f"Scene {number}", scene.picture, f"Drawn: {count_names(names_of(scene))}"))
        cells.append((f"Found: {right} of {drawn}", drawing, " ".join(result.captions)))
    height, width = SCENE["image_size"]
    return arrange(cells, COLUMNS, (width, height))


def names_of(scene: Any) -> list[str]:
    """The classes of a scene's things."""
    from pix2seq_hf.data.scene_things import SCENE_CLASSES

    return [SCENE_CLASSES[item["category_id"]] for item in scene.objects]


def count_names(names: Sequence[str]) -> str:
    """Names with their numbers, the most frequent first."""
    return ", ".join(f"{number} {name}" for name, number in Counter(names).most_common()) or "nothing"


def table(scenes: Sequence[Any], results: Sequence[Any], num_right: Sequence[tuple[int, int]]) -> str:
    r"""What was found, in a few lines for people.

    Args:
        scenes, results, num_right: As for [`draw_sheet`].
    Returns:
        `str`: A line for each scene and one for its caption, then the sums."""
    from pix2seq_hf.data.scene_captions import count_facts

    lines = ["scene  drawn  found  right  what was found"]
    for number, (result, (right, drawn)) in enumerate(zip(results, num_right, strict=True), start=1):
        names = count_names([item.label for item in result.objects])
        lines.append(f"{number:5}  {drawn:5}  {len(result.objects):5}  {right:5}  {names}")
        lines += [f"{'':28}{caption!r}" for caption in result.captions]
    found, right, drawn = sum(len(result.objects) for result in results), *map(sum, zip(*num_right, strict=True))
    lines.append(f"{right} of {drawn} things found in their place and with their class, {found - right} found too many")
    told = [
        (result.captions[0], scene.objects) for scene, result in zip(scenes, results, strict=True) if result.captions
    ]
    if told:
        true, said = count_facts(*zip(*told, strict=True))["all"]
        lines.append(f"{true} of {said} facts in captions are true (numbers, colours, classes, places)")
    return "\n".join(lines)
