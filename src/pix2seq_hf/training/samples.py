"""What a run shows of itself: pictures with what is annotated on the left and what was found on the right."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pix2seq_hf.data.rows import Split
from pix2seq_hf.visualization import draw_detections

LONGEST_SIDE = 640  # pixels, of each half
GAP = 8
MIN_SCORE = 0.3
MAX_OBJECTS = 30


def draw_samples(
    split: Split, results: Mapping[str, Sequence[Mapping[str, Any]]], num_pictures: int, config: Any
) -> dict[str, Image.Image]:
    r"""Draw the first pictures of a split, once for every task.

    Args:
        split ([`Split`]): Pictures and what is annotated.
        results (`Mapping[str, Sequence[Mapping]]`): What was found by task, in COCO results format.
        num_pictures (`int`): How many.
        config ([`Pix2SeqConfig`]): Of the model.
    Returns:
        `dict[str, PIL.Image.Image]`: By `TASK/NUMBER`."""
    drawn = {}
    for number in range(min(num_pictures, len(split.dataset))):
        record = split.load(number)
        picture = Image.fromarray(record["image"].permute(1, 2, 0).numpy())
        for task, found in results.items():
            truth = {
                "keypoint_detection": split.keypoint_annotations,
                "captioning": split.caption_annotations,
            }.get(task, split.annotations)
            sides = []
            for items in (truth["annotations"], found):
                mine = [item for item in items if item["image_id"] == record["image_id"]]
                mine = [item for item in mine if item.get("score", 1.0) >= MIN_SCORE or task == "captioning"]
                mine.sort(key=lambda item: -item.get("score", 1.0))
                sides.append(draw_items(picture, mine[:MAX_OBJECTS], task, split.id2label, config))
            drawn[f"{task}/{number}"] = side_by_side(sides)
    return drawn


def draw_items(
    picture: Image.Image, items: Sequence[Mapping[str, Any]], task: str, names: Mapping[int, str], config: Any
) -> Image.Image:
    """Draw annotations or results in COCO's form on a copy of a picture that is made smaller if it is large."""
    scale = min(1.0, LONGEST_SIDE / max(picture.size))
    small = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    if task == "captioning":
        return draw_detections(small, [], [], captions=[item["caption"] for item in items])
    masks = [_mask(item, picture.size, small.size) for item in items] if task == "instance_segmentation" else None
    points = None
    if task == "keypoint_detection":
        items = [item for item in items if any(item["keypoints"][2::3])]
        points = [np.array(item["keypoints"], dtype=float).reshape(-1, 3) * [scale, scale, 1] for item in items]
    boxes = [[side * scale for side in _corners(item)] for item in items]
    return draw_detections(
        small,
        boxes,
        [item["category_id"] for item in items],
        [item["score"] for item in items] if all("score" in item for item in items) else None,
        names,
        masks,
        points,
        config.keypoint_skeleton or (),
    )


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures on one white sheet, from left to right."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet


def _corners(item: Mapping[str, Any]) -> list[float]:
    """The box of an annotation or a result: its own, or that of its mask or its keypoints."""
    if "bbox" in item:
        left, top, width, height = item["bbox"]
        return [left, top, left + width, top + height]
    if "segmentation" in item:
        from pycocotools import mask as coco_mask

        left, top, width, height = coco_mask.toBbox(item["segmentation"])
        return [left, top, left + width, top + height]
    points = np.array(item["keypoints"], dtype=float).reshape(-1, 3)
    points = points[points[:, 2] > 0]
    return [*points[:, :2].min(0), *points[:, :2].max(0)]


def _mask(item: Mapping[str, Any], size: tuple[int, int], small: tuple[int, int]) -> np.ndarray | None:
    """The mask of an annotation or a result on the smaller picture; sizes are (width, height)."""
    from pycocotools import mask as coco_mask

    region = item.get("segmentation")
    if not region:
        return None
    if isinstance(region, list):
        region = coco_mask.merge(coco_mask.frPyObjects([part for part in region if len(part) >= 6], size[1], size[0]))
    elif isinstance(region["counts"], list):
        region = coco_mask.frPyObjects(region, size[1], size[0])
    mask = Image.fromarray(coco_mask.decode(region) * np.uint8(255))
    return np.asarray(mask.resize(small, Image.Resampling.BILINEAR)) > 127
