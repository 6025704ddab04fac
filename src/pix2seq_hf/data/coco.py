r"""Where do records come from: a folder in COCO layout, read through `datasets`.

    DIR/annotations/instances_<split>.json
    DIR/<split>/<file_name of each picture>

Everything is checked when the folder is opened, so that a training run does not die of a bad annotation after hours:
each error is one line with the file and the id.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import ExifTags, Image

from pix2seq_hf.data.pictures import load_picture

MAX_LABEL = 899  # class tokens are 101 to 999 in the default vocabulary

# By EXIF orientation: what undoes the turning upright.
TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

FEATURES = datasets.Features(
    {
        "image_id": datasets.Value("int64"),
        "image": datasets.Image(decode=False),  # a path; [`load_record`] reads the pixels
        "image_size": datasets.Sequence(datasets.Value("int32"), length=2),
        "boxes_yxyx": datasets.Sequence(datasets.Sequence(datasets.Value("float32"), length=4)),
        "labels": datasets.Sequence(datasets.Value("int64")),
        "areas": datasets.Sequence(datasets.Value("float32")),
        "is_crowd": datasets.Sequence(datasets.Value("bool")),
    }
)


@dataclass(frozen=True)
class CocoSplit:
    r"""One split of a COCO folder.

    Args:
        dataset (`datasets.Dataset`): One row per picture, in the order of the file; columns as in `FEATURES`.
        id2label (`dict[int, str]`): Name of every category in the file, by its raw id.
        annotations (`dict`): Content of the annotation file, cut to the pictures of `dataset`: the ground truth."""

    dataset: datasets.Dataset
    id2label: dict[int, str]
    annotations: dict


def read_coco(
    folder: str | Path,
    split: str,
    image_ids: Iterable[int] | None = None,
    max_images: int | None = None,
) -> CocoSplit:
    r"""Open one split of a COCO folder for detection.

    Args:
        folder (`str` or `Path`): The folder that has `annotations/`.
        split (`str`): For instance `"train2017"`.
        image_ids (`Iterable[int]`, *optional*): Keep these pictures only, in this order.
        max_images (`int`, *optional*): Keep at most the first so many pictures.
    Returns:
        [`CocoSplit`]. Pictures without objects are kept; boxes of zero size are kept too (training drops them).
    Raises:
        OSError: If the folder, the annotation file or a picture is missing.
        ValueError: If the file is not COCO instances JSON, or an entry cannot be used; names file and id."""
    folder = Path(folder)
    path = find_annotations(folder, split)
    content = read_instances(path)
    id2label = read_categories(content, path)

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

    present = {item.name for item in (folder / split).iterdir()} if (folder / split).is_dir() else set()
    rows = {name: [] for name in FEATURES}
    for image_id in kept:
        image = images[image_id]
        file_name = image["file_name"]
        picture = folder / split / file_name
        if file_name not in present and not picture.is_file():
            raise FileNotFoundError(f"{picture}: no such picture, but {path} lists it with id {image_id}")
        row = _to_row(image, objects.get(image_id, []))
        row["image"] = {"path": str(picture), "bytes": None}
        for name, value in row.items():
            rows[name].append(value)

    kept = set(kept)
    annotations = {
        "images": [image for image in content["images"] if image["id"] in kept],
        "annotations": [item for item in content["annotations"] if item["image_id"] in kept],
        "categories": content["categories"],
    }
    return CocoSplit(datasets.Dataset.from_dict(rows, features=FEATURES), id2label, annotations)


def find_annotations(folder: str | Path, split: str) -> Path:
    """Return the path of a split's instances file; an OSError says what is missing and which splits there are."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (a COCO folder with annotations/instances_{split}.json)")
    path = folder / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        found = sorted(item.stem.removeprefix("instances_") for item in folder.glob("annotations/instances_*.json"))
        advice = f"splits that are there: {', '.join(found)}" if found else "this is not a COCO folder"
        raise FileNotFoundError(f"{path}: no such file ({advice})")
    return path


def read_instances(path: str | Path) -> dict:
    r"""Load a COCO instances file and check its outline.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not JSON, or lacks one of the three lists."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(f"{path}: not valid JSON ({reason}); is the file complete?") from error
    for name in ("images", "annotations", "categories"):
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


def load_record(row: Mapping[str, Any]) -> dict[str, Any]:
    r"""Turn a row of [`CocoSplit`]'s dataset into a record: read the pixels, make tensors.

    Args:
        row (`Mapping`): One row, columns as in `FEATURES`.
    Returns:
        `dict`: A record (see `task_base`) with `image` as `torch.uint8` `(3, height, width)`.
    Raises:
        ValueError: If the picture cannot be read, or its size is not the one in the annotation file."""
    num_objects = len(row["labels"])
    return {
        "image_id": int(row["image_id"]),
        "image": load_pixels(row["image"]["path"], tuple(row["image_size"])),
        "image_size": tuple(row["image_size"]),
        "boxes_yxyx": torch.tensor(row["boxes_yxyx"], dtype=torch.float32).reshape(num_objects, 4),
        "labels": torch.tensor(row["labels"], dtype=torch.int64),
        "areas": torch.tensor(row["areas"], dtype=torch.float32),
        "is_crowd": torch.tensor(row["is_crowd"], dtype=torch.bool),
    }


def load_pixels(path: str | Path, image_size: tuple[int, int]) -> torch.Tensor:
    r"""Read a picture as the annotations see it.

    A picture with an EXIF rotation is turned only if that is what makes it fit the annotated size: COCO's boxes are
    given for the stored pixels, those of many annotation tools for the upright ones.

    Args:
        path (`str` or `Path`): The picture.
        image_size (`tuple[int, int]`): Annotated height and width in pixels.
    Returns:
        `torch.ByteTensor` of shape `(3, height, width)`.
    Raises:
        ValueError: If the file is no usable picture, or neither orientation has the annotated size."""
    picture = load_picture(path)
    with Image.open(path) as header:
        stored_size, turn_back = header.size[::-1], TURN_BACK.get(header.getexif().get(ExifTags.Base.Orientation))
    if turn_back is not None and stored_size == image_size:
        picture = picture.transpose(turn_back)
    if picture.size[::-1] != image_size:
        found, annotated = (f"{width} x {height}" for width, height in (picture.size, image_size[::-1]))
        raise ValueError(f"{path}: the picture is {found} pixels, its annotation says {annotated}")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


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


def _to_row(image: Mapping[str, Any], objects: list[dict]) -> dict[str, Any]:
    """One picture as a row; boxes are scaled in the order of operations that the reference uses."""
    x, y, width, height = np.array([item["bbox"] for item in objects], dtype=np.float64).reshape(-1, 4).T
    boxes_yxyx = np.stack([y, x, y + height, x + width], axis=-1).astype(np.float32)  # (num_objects, 4) in pixels
    scale = np.float32(1) / np.array([image["height"], image["width"]], dtype=np.float32)
    return {
        "image_id": image["id"],
        "image_size": [image["height"], image["width"]],
        "boxes_yxyx": boxes_yxyx * np.tile(scale, 2),
        "labels": [item["category_id"] for item in objects],
        "areas": [float(item.get("area", item["bbox"][2] * item["bbox"][3])) for item in objects],
        "is_crowd": [bool(item.get("iscrowd", 0)) for item in objects],
    }
