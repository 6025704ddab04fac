"""How good are the boxes by the rules of Pascal VOC: average precision at an overlap of a half, class by class."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pix2seq_hf.evaluation.coco_checks import check_ground_truth, check_results

MIN_OVERLAP = 0.5
RECALL_LEVELS = np.arange(11) / 10  # of the challenges up to 2009


def evaluate_voc(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], image_ids: Iterable[int] | None = None
) -> dict[str, float]:
    r"""Compute VOC's average precision, by both of its definitions.

    Results are matched from the best score down, over all pictures. Each asks for the object of its class that it
    overlaps most: it is right if that overlap is at least a half and nobody had the object before, does not count if
    the object is difficult, and is wrong otherwise.

    Args:
        ground_truth (`Mapping`): Content of a COCO instances file, as `data.voc.read_voc` gives it: objects with
            `difficult` or `iscrowd` are difficult. Boxes have edges; for files of the original challenge, whose corners
            are pixels counted in, `read_voc` has moved them, and overlaps are those of the challenge's own code.
        results (`Sequence[Mapping]`): Boxes in COCO results format.
        image_ids (`Iterable[int]`, *optional*): Pictures that count; all by default.
    Returns:
        `dict[str, float]`: `AP50`: the area below the curve (challenges from 2010 on), mean of the classes;
        `AP50_11_points`: the mean at 11 levels of recall (up to 2009, "VOC07 metric"); and both per class, as in
        `AP50/car`. -1 where there is no object that is not difficult; such classes are not in the mean.
    Raises:
        ValueError: As `coco_checks` raises it.
    Source: Everingham and others, "The Pascal visual object classes challenge", 2010, section 4.2, and the development
    kit of 2012."""
    check_ground_truth(ground_truth, "bbox")
    check_results(ground_truth, results, "bbox")
    counted = {image["id"] for image in ground_truth["images"]}
    counted = counted if image_ids is None else counted & set(image_ids)
    objects, found = defaultdict(lambda: defaultdict(list)), defaultdict(list)
    for item in ground_truth["annotations"]:
        if item["image_id"] in counted:
            objects[item["category_id"]][item["image_id"]].append(item)
    for item in results:
        if item["image_id"] in counted:
            found[item["category_id"]].append(item)
    used = Counter(item.get("name") for item in ground_truth["categories"])
    classes = {}
    for category in sorted(ground_truth["categories"], key=lambda item: item["id"]):
        name = category["name"] if category.get("name") and used[category["name"]] == 1 else str(category["id"])
        classes[name] = _class_precision(objects[category["id"]], found[category["id"]])
    numbers = {}
    for position, metric in enumerate(("AP50", "AP50_11_points")):
        defined = [values[position] for values in classes.values() if values[position] >= 0]
        numbers[metric] = float(np.mean(defined)) if defined else -1.0
    for position, metric in enumerate(("AP50", "AP50_11_points")):
        numbers |= {f"{metric}/{name}": values[position] for name, values in classes.items()}
    return numbers


def average_precision(is_right: np.ndarray, num_objects: int) -> tuple[float, float]:
    r"""Average precision of results from the best score down.

    Args:
        is_right (`np.ndarray` of shape `(num_results,)`): Whether each is right; without those that do not count.
        num_objects (`int`): How many could be found, at least 1.
    Returns:
        `tuple[float, float]`: Area below the curve of precision over recall, which never rises from right to left; and
        the mean of its height at the recalls 0, 0.1, ..., 1."""
    rights = np.cumsum(is_right)
    recall, precision = rights / num_objects, rights / np.arange(1, len(is_right) + 1)
    height = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or a higher one
    area = float(np.diff(recall, prepend=0.0) @ height)
    levels = np.searchsorted(recall, RECALL_LEVELS - 1e-9)  # 3 of 10 reach the level 0.3
    return area, float(np.append(height, 0.0)[levels].mean())


def _class_precision(
    objects: Mapping[int, Sequence[Mapping[str, Any]]], results: Sequence[Mapping[str, Any]]
) -> tuple[float, float]:
    """`average_precision` of one class; objects by picture."""
    boxes = {image_id: np.array([item["bbox"] for item in items], float) for image_id, items in objects.items()}
    is_difficult = {
        image_id: [bool(item.get("difficult") or item.get("iscrowd")) for item in items]
        for image_id, items in objects.items()
    }
    num_objects = sum(not each for flags in is_difficult.values() for each in flags)
    if not num_objects:
        return -1.0, -1.0
    taken, is_right = set(), []
    for item in sorted(results, key=lambda item: -item["score"]):  # stable: equal scores stay in the order of the file
        image_id = item["image_id"]
        if image_id in boxes:
            overlaps = _overlaps(np.asarray(item["bbox"], float), boxes[image_id])
            best = int(overlaps.argmax())
            if overlaps[best] >= MIN_OVERLAP:
                if not is_difficult[image_id][best]:
                    is_right.append((image_id, best) not in taken)
                    taken.add((image_id, best))
                continue
        is_right.append(False)
    return average_precision(np.array(is_right, bool), num_objects)


def _overlaps(box_xywh: np.ndarray, boxes_xywh: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with each of the others."""
    starts = np.maximum(box_xywh[:2], boxes_xywh[:, :2])
    ends = np.minimum(box_xywh[:2] + box_xywh[2:], boxes_xywh[:, :2] + boxes_xywh[:, 2:])
    common = np.maximum(ends - starts, 0).prod(-1)
    union = box_xywh[2:].prod() + boxes_xywh[:, 2:].prod(-1) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
