r"""How do drawn scenes become a COCO folder: pictures, instances, keypoints and captions, by several processes.

The files are the same whatever the number of processes, but for what another version of Pillow makes of a JPEG.
"""

import json
import multiprocessing
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pix2seq_hf.configuration_pix2seq import COCO_KEYPOINT_NAMES, COCO_SKELETON
from pix2seq_hf.data.scene_things import SCENE_CLASSES
from pix2seq_hf.data.scenes import SceneOptions, draw_scene

QUALITY = 92  # of the JPEG files
CHUNK = 16  # pictures that a process draws in a row
RANGE = re.compile(r"(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?")
SIZE = re.compile(r"(\d+)(?:x(\d+))?")


def write_scenes(
    folder: str | Path,
    split: str,
    num_images: int,
    seed: int = 0,
    options: SceneOptions | None = None,
    num_workers: int = 1,
    on_progress: Callable[[int], Any] = lambda count: None,
) -> Path:
    r"""Draw scenes and write them as a split of a COCO folder.

    Args:
        folder (`str` or `Path`): Gets `annotations/{instances,person_keypoints,captions}_<split>.json` and the pictures
            in `<split>/`.
        split (`str`): Its name; different splits of one seed have different pictures.
        num_images (`int`): How many.
        seed (`int`): The same seed draws the same pictures.
        options ([`SceneOptions`], *optional*): What scenes are like.
        num_workers (`int`): Processes; more than one start afresh, so that a script needs `if __name__ == "__main__"`.
        on_progress (`Callable`): Told how many pictures more are written.
    Returns:
        `Path`: The instances file, which is written last.
    Raises:
        OSError: If the split is there already.
        ValueError: If the split's name is none of a folder."""
    folder, options = Path(folder), SceneOptions() if options is None else options
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise ValueError(f"split {split!r}: use letters, digits, - and _")
    pictures, path = folder / split, folder / "annotations" / f"instances_{split}.json"
    for taken in (path, pictures):
        if taken.is_file() or (taken.is_dir() and any(taken.iterdir())):
            raise FileExistsError(f"{taken}: is there already: choose another folder or split, or remove it")
    pictures.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(exist_ok=True)

    draw = partial(_write_picture, pictures, seed, split, options)
    num_workers = min(num_workers, -(-num_images // CHUNK))
    drawn = []
    for image_id, (objects, captions) in enumerate(_map(draw, num_images, num_workers), start=1):
        drawn.append((image_id, objects, captions))
        on_progress(1)
    contents = join_scenes(drawn, options.image_size, f"{num_images} drawn scenes, seed {seed}, split {split}")
    for kind in ("captions", "person_keypoints", "instances"):
        path.with_name(f"{kind}_{split}.json").write_text(json.dumps(contents[kind]), encoding="utf-8")
    return path


def join_scenes(
    scenes: Iterable[tuple[int, list[dict[str, Any]], list[str]]], image_size: tuple[int, int], description: str
) -> dict[str, dict[str, Any]]:
    r"""Write scenes as the content of COCO's annotation files.

    Args:
        scenes (`Iterable[tuple[int, list[dict], list[str]]]`): Id of the picture, objects and captions of each.
        image_size (`tuple[int, int]`): Height and width of each picture.
        description (`str`): What they are.
    Returns:
        `dict[str, dict]`: Content of `instances`, `person_keypoints` and `captions`, with ids from 1."""
    images, objects, people, captions = [], [], [], []
    height, width = image_size
    for image_id, items, sentences in scenes:
        images.append({"id": image_id, "file_name": file_name(image_id), "width": width, "height": height})
        for item in items:
            item = {"id": len(objects) + 1, "image_id": image_id, **item}
            if item["category_id"] == 1:
                people.append({"keypoints": [0] * (3 * len(COCO_KEYPOINT_NAMES)), "num_keypoints": 0, **item})
            objects.append({name: value for name, value in item.items() if "keypoints" not in name})
        captions += [
            {"id": len(captions) + place, "image_id": image_id, "caption": sentence}
            for place, sentence in enumerate(sentences, start=1)
        ]
    categories = [{"id": label, "name": name} for label, name in SCENE_CLASSES.items()]
    skeleton = [[first + 1, second + 1] for first, second in COCO_SKELETON]  # COCO counts from 1
    person = {**categories[0], "keypoints": COCO_KEYPOINT_NAMES, "skeleton": skeleton}
    common = {"info": {"description": description}, "images": images}
    return {
        "instances": {**common, "annotations": objects, "categories": categories},
        "person_keypoints": {**common, "annotations": people, "categories": [person]},
        "captions": {**common, "annotations": captions},
    }


def file_name(image_id: int) -> str:
    """What a picture is called."""
    return f"{image_id:06}.jpg"


def parse_options(settings: Mapping[str, str], **fixed: Any) -> SceneOptions:
    r"""Read options as people write them.

    Args:
        settings (`Mapping[str, str]`): `size` (`320` or `240x320`: height and width), `objects` (`3` or `1-25`),
            `diameters` (`40-120`) and `points` (`20`: the most that an outline has).
        **fixed: Further options of [`SceneOptions`].
    Returns:
        [`SceneOptions`].
    Raises:
        ValueError: If one is unknown or cannot be read."""
    options: dict[str, Any] = dict(fixed)
    for name, text in settings.items():
        if name == "size":
            found = SIZE.fullmatch(text)
            value = found and (int(found[1]), int(found[2] or found[1]))
            options["image_size"] = value
        elif name in ("objects", "diameters"):
            found = RANGE.fullmatch(text)
            value = found and tuple(float(part or found[1]) for part in found.groups())
            if name == "objects" and value:
                value = tuple(map(int, value))
            options["num_objects" if name == "objects" else name] = value
        elif name == "points":
            value = int(text) if text.isdecimal() else None
            options["max_points"] = value
        else:
            raise ValueError(
                f"scenes have no option {name!r}: there are size, objects, diameters and points, and seed in a name"
            )
        if value is None:
            example = {"size": "320 or 240x320", "objects": "1-25", "diameters": "10-400", "points": "20"}[name]
            raise ValueError(f"{name} {text!r} of scenes cannot be read: write it like {example}")
    return SceneOptions(**options)


def _write_picture(
    folder: Path, seed: int, split: str, options: SceneOptions, index: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw a scene and write its picture; return its objects and captions."""
    scene = draw_scene(seed, split, index, options)
    scene.picture.save(folder / file_name(index + 1), quality=QUALITY)
    return scene.objects, scene.captions


def _map(draw: Callable[[int], Any], count: int, num_workers: int) -> Iterator[Any]:
    """Call `draw` with 0, 1, ... and yield the results in this order."""
    if num_workers <= 1:
        yield from map(draw, range(count))
        return
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        yield from pool.imap(draw, range(count), chunksize=CHUNK)
