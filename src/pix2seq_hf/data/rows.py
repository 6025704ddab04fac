r"""What does every source of pictures give: a [`Split`], whose rows [`load_record`] turns into records."""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from pix2seq_hf.data.annotations import keypoints_from_triples, polygons_from_parts
from pix2seq_hf.data.pictures import MAX_PIXELS, check_file, load_picture, open_picture, read_jpeg_header
from pix2seq_hf.image_processing_pix2seq import orientation_of

try:  # a fifth faster than Pillow, with the same pixels
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since 0.29, which it says at every call, to go in a later one
    decode_jpeg = None
warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning, r"torchvision\.io")

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
        "image": datasets.Image(decode=False),  # a path or a file's content; [`load_record`] reads the pixels
        "image_size": datasets.Sequence(datasets.Value("int32"), length=2),
        "boxes_yxyx": datasets.Sequence(datasets.Sequence(datasets.Value("float32"), length=4)),
        "labels": datasets.Sequence(datasets.Value("int64")),
        "areas": datasets.Sequence(datasets.Value("float32")),
        "is_crowd": datasets.Sequence(datasets.Value("bool")),
    }
)
# Columns of tasks that need more than boxes.
POLYGON_FEATURES = {
    # Per object its parts, x, y, x, y, ... in pixels; none for crowd regions.
    "polygons_xy": datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Value("float32")))),
}
KEYPOINT_FEATURES = {
    # Per object x, y in pixels and visibility of every keypoint; empty for objects without keypoints.
    "keypoints_xyv": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
    "num_keypoints": datasets.Sequence(datasets.Value("int64")),
}
CAPTION_FEATURES = {"captions": datasets.Sequence(datasets.Value("string"))}
TASK_FEATURES = {
    "object_detection": {},
    "instance_segmentation": POLYGON_FEATURES,
    "keypoint_detection": KEYPOINT_FEATURES,
    "captioning": CAPTION_FEATURES,
}


@dataclass(frozen=True)
class Split:
    r"""One split of a data set, from whatever source.

    Args:
        dataset (`datasets.Dataset`): One row per picture, in the order of the source; columns as in `FEATURES`, and
            those that the tasks need.
        id2label (`dict[int, str]`): Name of every class of the source, by its raw id (1 to 899).
        annotations (`dict`): The ground truth in the form of a COCO instances file, cut to the pictures of `dataset`.
        keypoint_annotations (`dict`, *optional*): The same of a COCO keypoints file, if a task needs it.
        caption_annotations (`dict`, *optional*): The same of a COCO captions file, if a task needs it."""

    dataset: datasets.Dataset
    id2label: dict[int, str]
    annotations: dict
    keypoint_annotations: dict | None = None
    caption_annotations: dict | None = None

    def load(self, row: int, max_points_per_object: int = 128, num_keypoints: int = 17) -> dict[str, Any]:
        """Return the record of a row, see [`load_record`]."""
        return load_record(self.dataset[row], max_points_per_object, num_keypoints)


def coco_annotations(
    rows: Iterable[Mapping[str, Any]], id2label: Mapping[int, str], file_names: Iterable[str]
) -> dict[str, Any]:
    r"""Write rows in the form of a COCO instances file: the ground truth of sources that have none.

    Args:
        rows (`Iterable[Mapping]`): As in [`Split`]'s dataset.
        id2label (`Mapping[int, str]`): Name of every class.
        file_names (`Iterable[str]`): Name of every picture, in the order of the rows.
    Returns:
        `dict` with `images`, `annotations` (in the order of the rows, ids from 1) and `categories`. Boxes are rounded
        to a thousandth of a pixel; the box of an object is its outline if polygons were read and it has none."""
    images, annotations = [], []
    for row, file_name in zip(rows, file_names, strict=True):
        height, width = row["image_size"]
        images.append({"id": row["image_id"], "file_name": file_name, "height": height, "width": width})
        for index, label in enumerate(row["labels"]):
            ymin, xmin, ymax, xmax = (float(edge) for edge in row["boxes_yxyx"][index])
            x, y, right, bottom = (
                round(edge * side, 3) for edge, side in ((xmin, width), (ymin, height), (xmax, width), (ymax, height))
            )
            item = {
                "id": len(annotations) + 1,
                "image_id": row["image_id"],
                "category_id": label,
                "bbox": [x, y, round(right - x, 3), round(bottom - y, 3)],
                "area": float(row["areas"][index]),
                "iscrowd": int(row["is_crowd"][index]),
            }
            if "polygons_xy" in row:
                item["segmentation"] = row["polygons_xy"][index] or [[x, y, right, y, right, bottom, x, bottom]]
            annotations.append(item)
    categories = [{"id": label, "name": name} for label, name in id2label.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def load_record(row: Mapping[str, Any], max_points_per_object: int = 128, num_keypoints: int = 17) -> dict[str, Any]:
    r"""Turn a row of [`Split`]'s dataset into a record: read the pixels, make tensors.

    Args:
        row (`Mapping`): One row, columns as in `FEATURES`, and of the tasks.
        max_points_per_object (`int`): Width of `polygons_yx`, if the row has polygons.
        num_keypoints (`int`): Width of `keypoints_yx`, if the row has keypoints.
    Returns:
        `dict`: A record (see `task_base`) with `image` as `torch.uint8` `(3, height, width)`.
    Raises:
        ValueError: If the picture cannot be read, or its size is not the one in the annotation file."""
    num_objects, image_size = len(row["labels"]), tuple(row["image_size"])
    record = {
        "image_id": int(row["image_id"]),
        "image": load_pixels(
            row["image"]["path"] or f"picture {row['image_id']}", image_size, row["image"].get("bytes")
        ),
        "image_size": image_size,
        "boxes_yxyx": torch.tensor(row["boxes_yxyx"], dtype=torch.float32).reshape(num_objects, 4),
        "labels": torch.tensor(row["labels"], dtype=torch.int64),
        "areas": torch.tensor(row["areas"], dtype=torch.float32),
        "is_crowd": torch.tensor(row["is_crowd"], dtype=torch.bool),
    }
    if "polygons_xy" in row:
        record["polygons_yx"] = polygons_from_parts(row["polygons_xy"], image_size, max_points_per_object)
    if "keypoints_xyv" in row:
        nowhere = [0] * (3 * num_keypoints)
        keypoints = [triples or nowhere for triples in row["keypoints_xyv"]]
        record["keypoints_yx"] = keypoints_from_triples(keypoints, image_size, num_keypoints)
        record["num_keypoints"] = torch.tensor(row["num_keypoints"], dtype=torch.int64)
    if "captions" in row:
        record["captions"] = list(row["captions"])
    return record


def load_pixels(path: str | Path, image_size: tuple[int, int], content: bytes | None = None) -> torch.Tensor:
    r"""Read a picture as the annotations see it.

    A picture with an EXIF rotation is turned only if that is what makes it fit the annotated size: COCO's boxes are
    given for the stored pixels, those of many annotation tools for the upright ones.

    Args:
        path (`str` or `Path`): The picture; with a `content`, only its name in messages.
        image_size (`tuple[int, int]`): Annotated height and width in pixels.
        content (`bytes`, *optional*): What the picture's file holds, if it is no file of its own.
    Returns:
        `torch.ByteTensor` of shape `(3, height, width)`; in memory the colours of a pixel lie next to each other.
    Raises:
        ValueError: If the file is no usable picture, or neither orientation has the annotated size."""
    if content is None:
        check_file(str(path))
        content = Path(path).read_bytes()
    is_expected = read_jpeg_header(content) in ((*image_size, 1), (*image_size, 3))  # as stored, gray or RGB
    if is_expected and math.prod(image_size) <= MAX_PIXELS and decode_jpeg is not None:
        try:
            return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
        except RuntimeError:  # damaged, or built without: Pillow says what it is
            pass
    with open_picture(content, name=path) as header:
        stored_size, turn_back = header.size[::-1], TURN_BACK.get(orientation_of(header))
    picture = load_picture(content, name=path)
    if turn_back is not None and stored_size == image_size:
        picture = picture.transpose(turn_back)
    if picture.size[::-1] != image_size:
        found, annotated = (f"{width} x {height}" for width, height in (picture.size, image_size[::-1]))
        raise ValueError(f"{path}: the picture is {found} pixels, its annotation says {annotated}")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def read_picture_size(path: str | Path) -> tuple[tuple[int, int], bool]:
    r"""Read the size of a picture without its pixels.

    Args:
        path (`str` or `Path`): The picture.
    Returns:
        `tuple`: Height and width as stored, and whether the picture lies on its side: upright they are swapped.
    Raises:
        ValueError: If the file is no picture."""
    with open_picture(path) as header:
        return header.size[::-1], orientation_of(header) in (5, 6, 7, 8)
