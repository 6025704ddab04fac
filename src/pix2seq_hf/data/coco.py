r"""Where do records come from: a folder in COCO layout, read through `datasets`.

    DIR/annotations/instances_<split>.json
    DIR/annotations/person_keypoints_<split>.json     for keypoints; joined by annotation id
    DIR/annotations/captions_<split>.json             for captions; joined by picture id
    DIR/<split>/<file_name of each picture>

Everything is checked when the folder is opened, so that a training run does not die of a bad annotation after hours:
each error is one line with the file and the id.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from pix2seq_hf.data.annotations import boxes_from_xywh
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import FEATURES, TASK_FEATURES, Split
from pix2seq_hf.masks_pix2seq import segmentation_parts

MAX_LABEL = 899  # class tokens are 101 to 999 in the default vocabulary


def read_coco(
    folder: str | Path,
    split: str,
    image_ids: Iterable[int] | None = None,
    max_images: int | None = None,
    tasks: Iterable[str] = ("object_detection",),
    num_keypoints: int = 17,
    problems: Problems | None = None,
) -> Split:
    r"""Open one split of a COCO folder.

    Args:
        folder (`str` or `Path`): The folder that has `annotations/`.
        split (`str`): For instance `"train2017"`.
        image_ids (`Iterable[int]`, *optional*): Keep these pictures only, in this order.
        max_images (`int`, *optional*): Keep at most the first so many pictures.
        tasks (`Iterable[str]`): Names in `TASK_FEATURES`: what is read beside boxes.
        num_keypoints (`int`): Keypoints of an object in the keypoints file.
        problems ([`Problems`], *optional*): Collects what was mended.
    Returns:
        [`Split`]. Pictures without objects are kept; boxes of zero size are kept too (training drops them).
    Raises:
        OSError: If the folder, the annotation file or a picture is missing.
        ValueError: If the file is not COCO instances JSON, or an entry cannot be used; names file and id."""
    folder, problems = Path(folder), Problems() if problems is None else problems
    path = find_annotations(folder, split)
    content = read_instances(path)
    id2label = read_categories(content, path)
    extra = {name: feature for task in tasks for name, feature in TASK_FEATURES[task].items()}

    if not content["annotations"]:
        problems.repair("no annotations", f"{path}: lists no object: every picture counts as empty")
    images = _index_images(content["images"], path)
    objects = _group_objects(content["annotations"], images, id2label, path)
    kept = list(images)
    if image_ids is not None:
        kept = list(dict.fromkeys(int(image_id) for image_id in image_ids))
        missing = [image_id for image_id in kept if image_id not in images]
        if missing:
            raise ValueError(f"{path}: lists no picture with id {missing[0]}")
    if max_images is not None:
        kept = kept[:max_images]
    if not kept:
        raise ValueError(f"{path}: lists no pictures")

    keypoints = captions = None
    if "keypoints_xyv" in extra:
        keypoint_path = find_annotations(folder, split, "person_keypoints")
        keypoints = read_instances(keypoint_path)
        triples = _index_keypoints(keypoints["annotations"], num_keypoints, keypoint_path)
    if "captions" in extra:
        caption_path = find_annotations(folder, split, "captions")
        captions = read_instances(caption_path, lists=("images", "annotations"))
        texts = _group_captions(captions["annotations"], caption_path)

    present = {item.name for item in (folder / split).iterdir()} if (folder / split).is_dir() else set()
    features = datasets.Features({**FEATURES, **extra})
    rows = {name: [] for name in features}
    for image_id in kept:
        image = images[image_id]
        file_name = image["file_name"]
        picture = folder / split / file_name
        if file_name not in present and not picture.is_file():
            raise FileNotFoundError(f"{picture}: no such picture, but {path} lists it with id {image_id}")
        row = _to_row(image, objects.get(image_id, []))
        row["image"] = {"path": str(picture), "bytes": None}
        if "polygons_xy" in extra:
            row["polygons_xy"] = [_read_parts(item, image, path) for item in objects.get(image_id, [])]
        if keypoints is not None:
            found = [triples.get(item.get("id"), ([], 0)) for item in objects.get(image_id, [])]
            row["keypoints_xyv"], row["num_keypoints"] = ([each[part] for each in found] for part in (0, 1))
        if captions is not None:
            row["captions"] = texts.get(image_id, [])
        for name, value in row.items():
            rows[name].append(value)

    kept = set(kept)
    return Split(
        datasets.Dataset.from_dict(rows, features=features),
        id2label,
        *(None if each is None else _cut(each, kept) for each in (content, keypoints, captions)),
    )


def _cut(content: Mapping[str, Any], kept: set[int]) -> dict[str, Any]:
    """The part of an annotation file that is about some pictures."""
    cut = {
        "images": [image for image in content["images"] if image["id"] in kept],
        "annotations": [item for item in content["annotations"] if item["image_id"] in kept],
    }
    return {**cut, "categories": content["categories"]} if "categories" in content else cut


def list_splits(folder: str | Path) -> list[str]:
    """Name the splits of a COCO folder; empty if it is none."""
    return sorted(path.stem.removeprefix("instances_") for path in Path(folder).glob("annotations/instances_*.json"))


def find_annotations(folder: str | Path, split: str, kind: str = "instances") -> Path:
    """Return the path of a split's annotation file; an OSError says what is missing and which splits there are."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (a COCO folder with annotations/{kind}_{split}.json)")
    path = folder / "annotations" / f"{kind}_{split}.json"
    if not path.is_file():
        found = sorted(item.stem.removeprefix(f"{kind}_") for item in folder.glob(f"annotations/{kind}_*.json"))
        advice = f"splits that are there: {', '.join(found)}" if found else "this is not a COCO folder"
        raise FileNotFoundError(f"{path}: no such file ({advice})")
    return path


def read_instances(path: str | Path, lists: Iterable[str] = ("images", "annotations", "categories")) -> dict:
    r"""Load a COCO annotation file and check its outline.

    Args:
        path (`str` or `Path`): The file.
        lists (`Iterable[str]`): What it must hold; captions have no categories.
    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not JSON, or lacks one of the lists."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(f"{path}: not valid JSON ({reason}); is the file complete?") from error
    for name in lists:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ValueError(f"{path}: not a COCO instances file (it has no list {name!r})")
        if not all(isinstance(item, dict) for item in content[name]):
            raise ValueError(f"{path}: not a COCO instances file (an entry of {name!r} is not an object)")
    return content


def read_categories(content: Mapping[str, Any], path: str | Path) -> dict[int, str]:
    r"""Read the label map of a COCO file.

    Args:
        content (`Mapping`): As [`read_instances`] returns it.
        path (`str` or `Path`): For error messages.
    Returns:
        `dict[int, str]`: Name per raw category id, sorted by id; gaps are usual.
    Raises:
        ValueError: If there is no category, an id is not in 1 to 899 (0 means padding), or comes twice."""
    id2label = {}
    for category in content["categories"]:
        label, name = category.get("id"), category.get("name")
        if not _is_integer(label) or not isinstance(name, str):
            raise ValueError(f"{path}: category {category!r} needs an integer 'id' and a 'name'")
        if label == 0:
            raise ValueError(f"{path}: category {name!r} has id 0, which means padding: number categories from 1")
        if not 1 <= label <= MAX_LABEL:
            raise ValueError(f"{path}: category {name!r} has id {label}: ids must be between 1 and {MAX_LABEL}")
        if label in id2label:
            raise ValueError(f"{path}: category id {label} is used for {id2label[label]!r} and for {name!r}")
        id2label[label] = name
    if not id2label:
        raise ValueError(f"{path}: lists no categories")
    return dict(sorted(id2label.items()))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _index_images(images: Iterable[dict], path: Path) -> dict[int, dict]:
    indexed = {}
    for image in images:
        image_id = image.get("id")
        if not _is_integer(image_id) or not isinstance(image.get("file_name"), str):
            raise ValueError(f"{path}: picture {image_id!r} needs an integer 'id' and a 'file_name'")
        if not all(_is_integer(image.get(name)) and image[name] > 0 for name in ("height", "width")):
            raise ValueError(f"{path}: picture {image_id} needs a positive integer 'height' and 'width'")
        if image_id in indexed:
            raise ValueError(f"{path}: two pictures have the id {image_id}")
        indexed[image_id] = image
    return indexed


def _group_objects(
    annotations: Iterable[dict], images: Mapping[int, dict], id2label: Mapping[int, str], path: Path
) -> dict[int, list[dict]]:
    """Check every annotation and collect them by picture."""
    grouped: dict[int, list[dict]] = {}
    for item in annotations:
        name, box = item.get("id", "without id"), item.get("bbox")
        if item.get("image_id") not in images:
            raise ValueError(f"{path}: annotation {name} is of picture {item.get('image_id')}, which is not listed")
        if item.get("category_id") not in id2label:
            raise ValueError(f"{path}: annotation {name} has category {item.get('category_id')}, which is not listed")
        is_box = isinstance(box, list) and len(box) == 4
        if not is_box or not all(isinstance(value, int | float) and math.isfinite(value) for value in box):
            raise ValueError(f"{path}: annotation {name} has bbox {box!r}; it must be [x, y, width, height]")
        if box[2] < 0 or box[3] < 0:
            raise ValueError(f"{path}: annotation {name} has bbox {box} with a negative width or height")
        grouped.setdefault(item["image_id"], []).append(item)
    return grouped


def _read_parts(item: Mapping[str, Any], image: Mapping[str, Any], path: Path) -> list[list[float]]:
    """Parts of an object's polygon; none for crowd regions, which segmentation leaves out."""
    if item.get("iscrowd", 0):
        return []
    try:
        parts = segmentation_parts(item.get("segmentation"), (image["height"], image["width"]))
    except ValueError as error:
        raise ValueError(f"{path}: annotation {item.get('id', 'without id')}: {error}") from error
    return [part.tolist() for part in parts]


def _index_keypoints(annotations: Iterable[dict], num_keypoints: int, path: Path) -> dict[int, tuple[list[float], int]]:
    """Triples and number of visible keypoints by annotation id."""
    indexed = {}
    for item in annotations:
        name, triples = item.get("id", "without id"), item.get("keypoints")
        if not isinstance(triples, list) or len(triples) != 3 * num_keypoints:
            found = f"{len(triples)} numbers" if isinstance(triples, list) else repr(triples)
            raise ValueError(
                f"{path}: annotation {name} has keypoints of {found}; {num_keypoints} keypoints are "
                f"{3 * num_keypoints}: x, y and visibility of each"
            )
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in triples):
            raise ValueError(f"{path}: annotation {name} has keypoints that are not finite numbers")
        indexed[item.get("id")] = triples, sum(visibility > 0 for visibility in triples[2::3])
    return indexed


def _group_captions(annotations: Iterable[dict], path: Path) -> dict[int, list[str]]:
    """Captions by picture id, without blanks at their ends; blank ones are left out."""
    grouped: dict[int, list[str]] = {}
    for item in annotations:
        if not isinstance(item.get("caption"), str):
            raise ValueError(f"{path}: annotation {item.get('id', 'without id')} has no text under 'caption'")
        caption = " ".join(item["caption"].split())
        if caption:
            grouped.setdefault(item.get("image_id"), []).append(caption)
    return grouped


def _to_row(image: Mapping[str, Any], objects: list[dict]) -> dict[str, Any]:
    """One picture as a row."""
    image_size = [image["height"], image["width"]]
    return {
        "image_id": image["id"],
        "image_size": image_size,
        "boxes_yxyx": boxes_from_xywh([item["bbox"] for item in objects], image_size).numpy(),
        "labels": [item["category_id"] for item in objects],
        "areas": [float(item.get("area", item["bbox"][2] * item["bbox"][3])) for item in objects],
        "is_crowd": [bool(item.get("iscrowd", 0)) for item in objects],
    }
