"""What is wrong with ground truth or results before anybody counts: every message names the picture and what to do.

pycocotools itself ends with a `KeyError`, a silent 0 or, at a polygon with NaN, with the whole process."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pix2seq_hf.masks_pix2seq import num_pixels

logger = logging.getLogger(__name__)

# What pycocotools calls a kind, and where its objects carry it.
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def check_ground_truth(ground_truth: Mapping[str, Any], iou_type: str, num_keypoints: int = 17) -> None:
    r"""Look through the content of a COCO annotation file; one without any object is fine.

    Args:
        ground_truth (`Mapping`): Should have `images`, `annotations` and `categories`, nothing more (no `info`).
        iou_type (`str`): `"bbox"`, `"segm"` or `"keypoints"`: what every object must have.
        num_keypoints (`int`): How many, for `"keypoints"`.
    Raises:
        ValueError: If a list or a field is missing, as in an annotation file of another task, a number is not finite,
            or a category is not listed."""
    require_lists(ground_truth, ("images", "annotations", "categories"))
    field, categories = FIELDS[iou_type], {item["id"] for item in ground_truth["categories"]}
    for item in ground_truth["annotations"]:
        where = f"object {item.get('id', '')} of picture {item.get('image_id')}".replace("  ", " ")
        missing = [name for name in ("image_id", "category_id", field) if item.get(name) is None]
        if missing:
            raise ValueError(f"{where} has no {missing[0]!r} {_has(item)}: an annotation file of another task?")
        if item.get("area") is None and "bbox" not in item:
            raise ValueError(f"{where} has neither 'area' nor 'bbox', which decide between small, medium and large")
        if item["category_id"] not in categories:
            raise ValueError(f"{where} has the category {item['category_id']}, which the ground truth does not list")
        _check_geometry(item, field, where, num_keypoints)
    if iou_type == "segm":
        for image in ground_truth["images"]:
            if not (image.get("height") and image.get("width")):
                raise ValueError(f"picture {image['id']} of the ground truth has no height and width; masks need them")
        sizes = {image["id"]: [image.get("height"), image.get("width")] for image in ground_truth["images"]}
        for item in ground_truth["annotations"]:
            expected = sizes.get(item["image_id"])
            if isinstance(item[field], Mapping) and expected and list(item[field]["size"]) != expected:
                where = f"object {item.get('id', '')} of picture {item['image_id']}"
                raise ValueError(f"{where} has run lengths of {item[field]['size']} pixels, the picture {expected}")


def check_results(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping], iou_type: str, num_keypoints: int = 17
) -> None:
    r"""Look through results in COCO results format; none at all is fine.

    A category that the ground truth does not list is never right, as in the reference, whose models can write any
    label; see [`warn_about_categories`].

    Args:
        ground_truth (`Mapping`): What [`check_ground_truth`] let through.
        results (`Sequence[Mapping]`): Results of one task.
        iou_type (`str`): `"bbox"`, `"segm"` or `"keypoints"`: what every result must have.
        num_keypoints (`int`): How many, for `"keypoints"`.
    Raises:
        ValueError: If a result belongs to a picture outside the ground truth or to another task, a number is not
            finite, or a mask is of another size than its picture."""
    field, sizes = (
        FIELDS[iou_type],
        {item["id"]: (item.get("height"), item.get("width")) for item in ground_truth["images"]},
    )
    for index, item in enumerate(results):
        missing = [name for name in ("image_id", "category_id", "score", field) if item.get(name) is None]
        if missing:
            raise ValueError(f"result {index} has no {missing[0]!r} {_has(item)}: is it a result of another task?")
        if not isinstance(item["category_id"], (int, np.integer)):
            raise ValueError(f"result {index} has the category_id {item['category_id']!r}: it must be a whole number")
    check_pictures([item["image_id"] for item in results], sizes, "detection")
    for item in results:
        where = f"detection of picture {item['image_id']}"
        if not _are_finite([item["score"]]):
            raise ValueError(f"{where} has a number that is not finite: score {item['score']}")
        if iou_type == "segm" and not isinstance(item[field], Mapping):
            raise ValueError(
                f"{where}: a mask must be run lengths with 'size' and 'counts', got {str(item[field])[:60]}"
            )
        _check_geometry(item, field, where, num_keypoints)
        if iou_type == "segm" and list(item[field]["size"]) != list(sizes[item["image_id"]]):
            size, expected = list(item[field]["size"]), list(sizes[item["image_id"]])
            raise ValueError(f"a mask of picture {item['image_id']} is of {size} pixels, the picture of {expected}")


def warn_about_categories(ground_truth: Mapping[str, Any], results: Sequence[Mapping]) -> None:
    """Warn if no result has a category that the ground truth lists: then none of them can be right."""
    listed = {item["id"] for item in ground_truth["categories"]}
    if results and listed and not any(item["category_id"] in listed for item in results):
        found = sorted({item["category_id"] for item in results})
        logger.warning(
            "none of the %d results has a category of the ground truth: %s against %s: are they numbered otherwise?",
            *(len(results), _shorten(found), _shorten(sorted(listed))),
        )


def check_pictures(image_ids: Sequence[Any], listed: Iterable[Any], what: str) -> None:
    r"""Refuse results for pictures that the ground truth does not list: they are of another data set or split.

    Raises:
        ValueError: Names the first such picture, and how many of the results are of such pictures."""
    listed = set(listed)
    strange = [image_id for image_id in image_ids if image_id not in listed]
    if strange:
        raise ValueError(
            f"{what} for picture {strange[0]}, which the ground truth does not list "
            f"({len(strange)} of {len(image_ids)} results): is it another split?"
        )


def require_lists(ground_truth: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse ground truth that lacks one of these lists."""
    for name in names:
        if not isinstance(ground_truth.get(name), (list, tuple)):
            raise ValueError(
                f"the ground truth has no list {name!r} {_has(ground_truth)}: an annotation file of another task?"
            )


def _check_geometry(item: Mapping[str, Any], field: str, where: str, num_keypoints: int) -> None:
    value = item[field]
    if field == "segmentation":
        if isinstance(value, Mapping):
            if "size" not in value or "counts" not in value:
                raise ValueError(f"{where}: run lengths need 'size' and 'counts', got {_has(value)}")
            if _count_pixels(value["counts"]) != math.prod(value["size"]):  # pycocotools would never end
                raise ValueError(f"{where}: its run lengths do not fill {' x '.join(map(str, value['size']))} pixels")
            return
        if not value:
            raise ValueError(f"{where} has an empty segmentation")
        for part in value:
            if len(part) < 6 or len(part) % 2 or not _are_finite(part):
                raise ValueError(f"{where}: a polygon must be at least 3 pairs of finite numbers, got {str(part)[:60]}")
        return
    if not _are_finite(value):
        raise ValueError(f"{where} has a number that is not finite: {field} {str(value)[:80]}")
    if field == "bbox" and len(value) != 4:
        raise ValueError(f"{where}: a box must be x, y, width, height, got {value}")
    if field == "keypoints" and len(value) != 3 * num_keypoints:
        raise ValueError(
            f"{where} has {len(value)} numbers for its keypoints, not 3 times {num_keypoints}: "
            "another skeleton than COCO's needs its own sigmas"
        )


def _count_pixels(counts: Any) -> int:
    """Pixels of run lengths; -1 if they are none."""
    if isinstance(counts, (str, bytes)):
        return num_pixels(counts.encode() if isinstance(counts, str) else counts)
    if isinstance(counts, list) and all(isinstance(count, int) and count >= 0 for count in counts):
        return sum(counts)
    return -1


def _are_finite(numbers: Sequence[Any]) -> bool:
    try:
        return (
            bool(np.isfinite(np.asarray(numbers, np.float64)).all())
            if len(numbers) > 8
            else all(map(math.isfinite, numbers))
        )
    except (TypeError, ValueError):
        return False


def _has(item: Mapping[str, Any]) -> str:
    return f"(it has {_shorten(list(item)) or 'nothing'})"


def _shorten(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
