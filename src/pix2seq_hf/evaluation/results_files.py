"""What is in a file of results: a list in COCO results format, of which task, and fit to be used."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pix2seq_hf.evaluation.predictions import Results

# By what the results of a task are known, the first that fits: masks and keypoints may carry boxes too.
FIELDS = {
    "captioning": "caption",
    "keypoint_detection": "keypoints",
    "instance_segmentation": "segmentation",
    "object_detection": "bbox",
}


def read_results(path: str | Path) -> tuple[str | None, Results]:
    r"""Read a file in COCO results format.

    Args:
        path (`str` or `Path`): A JSON list.
    Returns:
        `tuple`: The task, `None` of an empty list, and the results.
    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no such list, or its entries are of several tasks."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({' '.join(str(error).split())}); is the file complete?") from None
    if not isinstance(results, list):
        what = "an annotation file" if isinstance(results, dict) and "annotations" in results else "no list"
        raise ValueError(f"{path}: is {what}, not a list of results in COCO's format")
    task = None
    for number, entry in enumerate(results):
        found = _find_task(entry)
        if found is None:
            fields = ", ".join(FIELDS.values())
            raise ValueError(f"{path}: entry {number} needs an image_id, a whole number, and one of {fields}")
        if task not in (None, found):
            raise ValueError(f"{path}: entry {number} is a result of {found}, those before are of {task}")
        task = found
    return task, results


def read_boxes(path: str | Path, labels: Iterable[int]) -> Results:
    r"""Read the boxes of a results file, to ask about them.

    Args:
        path (`str` or `Path`): Results of detection, or others with boxes; without a score it is 1.
        labels (`Iterable[int]`): The label ids that the model knows; boxes of others, which models may write, are left
            out.
    Returns:
        `list[dict]`: With `image_id`, `category_id`, `bbox` and `score`.
    Raises:
        OSError: If it cannot be read.
        ValueError: If a box cannot be used, names its entry, or none has a label that the model knows."""
    labels, boxes = set(labels), []
    _, entries = read_results(path)
    for number, entry in enumerate(entries):
        box, score = entry.get("bbox"), entry.get("score", 1.0)
        where = f"{path}: entry {number} (picture {entry['image_id']})"
        if not isinstance(box, list) or len(box) != 4 or not _are_finite([*box, score]):
            raise ValueError(f"{where} needs a bbox of four finite numbers x, y, width, height, and a finite score")
        if entry.get("category_id") in labels:
            boxes.append(
                {"image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": box, "score": score}
            )
    if entries and not boxes:
        raise ValueError(
            f"{path}: no box has a category_id that the model knows; entry 0 has {entries[0].get('category_id')}"
        )
    return boxes


def _find_task(entry: Any) -> str | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), int):
        return None
    return next((task for task, field in FIELDS.items() if field in entry), None)


def _are_finite(values: Iterable[Any]) -> bool:
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
