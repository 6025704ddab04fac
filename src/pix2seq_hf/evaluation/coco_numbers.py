"""How pycocotools is asked: ground truth and results in, the numbers of its summary out, or a table by class."""

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pix2seq_hf.evaluation.coco_checks import FIELDS, check_ground_truth, check_results, warn_about_categories
from pix2seq_hf.masks_pix2seq import mask_to_rle, rle_to_mask

# The first is the truth, the second an option that is faster on large data sets and gives the same numbers.
ENGINES = ("pycocotools", "faster-coco-eval")
KINDS = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}
NUM_KEYPOINTS = 17  # of COCO's persons, whose sigmas pycocotools knows
MEAN_SIGMA = 0.0669  # of those 17; what is assumed of every keypoint of another skeleton


def coco_numbers(
    ground_truth: Mapping,
    results: Sequence[Mapping],
    iou_type: str,
    names: Sequence[str],
    image_ids: Iterable[int] | None = None,
    sigmas: Sequence[float] | None = None,
    engine: str = ENGINES[0],
) -> dict[str, float]:
    r"""Compute the numbers of a COCO summary.

    Args:
        ground_truth (`Mapping`): Content of a COCO annotation file: `images`, `annotations`, `categories`.
        results (`Sequence[Mapping]`): In COCO results format.
        iou_type (`str`): `"bbox"`, `"segm"` or `"keypoints"`.
        names (`Sequence[str]`): Names of the numbers, in the order of the summary.
        image_ids (`Iterable[int]`, *optional*): Pictures that count; all pictures of the ground truth by default. A
            picture that counts and has no result lowers the recall.
        sigmas (`Sequence[float]`, *optional*): How exact each keypoint is annotated, a share of the object's size; by
            default those of COCO's persons for 17 keypoints, and their mean for any other number, which gives numbers
            that are comparable among themselves only.
        engine (`str`): Of `ENGINES`.
    Returns:
        `dict[str, float]`: -1 means that the ground truth has no object of that kind. All are 0 if there is no result
        for ground truth that has objects.
    Raises:
        ValueError: As [`check_ground_truth`] and [`check_results`] raise it, or if the engine is not installed.
    Source: `_CocoNonPanopticMetric._evaluate` of the reference implementation."""
    truth, results = checked_copies(ground_truth, results, iou_type, image_ids, sigmas)
    if not results:
        has_objects = any(not item["iscrowd"] for item in truth["annotations"])
        return dict.fromkeys(names, 0.0 if has_objects else -1.0)
    warn_about_categories(truth, results)
    evaluation = run_engine(truth, results, iou_type, sigmas, engine)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    return {name: float(value) for name, value in zip(names, evaluation.stats[: len(names)], strict=True)}


def per_class(
    ground_truth: Mapping,
    results: Sequence[Mapping],
    kind: str,
    image_ids: Iterable[int] | None = None,
    sigmas: Sequence[float] | None = None,
    engine: str = ENGINES[0],
) -> dict[str, dict[str, float]]:
    r"""Compute the COCO numbers of every class, and of every size in it.

    Args:
        ground_truth (`Mapping`): As for [`coco_numbers`].
        results (`Sequence[Mapping]`): In COCO results format.
        kind (`str`): `"boxes"`, `"masks"` or `"keypoints"`.
        image_ids (`Iterable[int]`, *optional*): Pictures that count.
        sigmas (`Sequence[float]`, *optional*): Of the keypoints.
        engine (`str`): Of `ENGINES`.
    Returns:
        `dict[str, dict[str, float]]`: By the name of the category (its id where it has none or shares it), in the
        order of the ids: `AP`, `AP_50`, `AP_75`, `AP_small` (not of keypoints), `AP_medium`, `AP_large`, `AR` with 100
        results per picture (20 for keypoints) and of every size, and `num_objects`, `num_results`. -1 means that there
        is no such object; the mean of all others is the number of the data set.
    Raises:
        ValueError: As for [`coco_numbers`], or for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: known are {', '.join(KINDS)}")
    iou_type = KINDS[kind]
    truth, results = checked_copies(ground_truth, results, iou_type, image_ids, sigmas)
    evaluation = run_engine(truth, results, iou_type, sigmas, engine)
    # precision: (thresholds, recalls, classes, sizes, numbers of results); recall the same without recalls.
    precision, recall = evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]
    thresholds, sizes = np.asarray(evaluation.params.iouThrs), evaluation.params.areaRngLbl
    num_objects = Counter(item["category_id"] for item in truth["annotations"] if not _is_ignored(item, iou_type))
    num_results = Counter(item["category_id"] for item in results)
    used = Counter(item.get("name") for item in truth["categories"])
    names = {
        item["id"]: item["name"] if item.get("name") and used[item["name"]] == 1 else str(item["id"])
        for item in truth["categories"]
    }
    table = {}
    for index, category in enumerate(evaluation.params.catIds):
        row = {"AP": _mean(precision[:, :, index, 0])}
        for threshold in (0.5, 0.75):
            row[f"AP_{threshold * 100:.0f}"] = _mean(precision[np.isclose(thresholds, threshold), :, index, 0])
        for position, size in enumerate(sizes):
            if size != "all":
                row[f"AP_{size}"] = _mean(precision[:, :, index, position])
        for position, size in enumerate(sizes):
            row["AR" if size == "all" else f"AR_{size}"] = _mean(recall[:, index, position])
        row |= {"num_objects": num_objects[category], "num_results": num_results[category]}
        table[names[category]] = row
    return table


def load_engine(engine: str) -> tuple[type, type]:
    r"""The classes `COCO` and `COCOeval` of an engine.

    Raises:
        ValueError: If there is no such engine, or it is not installed."""
    if engine == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    if engine != "faster-coco-eval":
        raise ValueError(f"unknown engine {engine!r}: known are {', '.join(ENGINES)}")
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise ValueError("faster-coco-eval is not installed: pip install 'pix2seq_hf[fast]'") from None
    return COCO, COCOeval_faster


def checked_copies(
    ground_truth: Mapping, results: Sequence[Mapping], iou_type: str, image_ids: Any, sigmas: Any
) -> tuple[dict, list[dict]]:
    """Ground truth and results of the pictures that count, copied: the engines write into them."""
    sigmas = _sigmas(ground_truth, iou_type, sigmas)
    num_keypoints = NUM_KEYPOINTS if sigmas is None else len(sigmas)
    check_ground_truth(ground_truth, iou_type, num_keypoints)
    check_results(ground_truth, results, iou_type, num_keypoints)
    listed = {image["id"] for image in ground_truth["images"]}
    counted = listed if image_ids is None else listed & set(image_ids)
    annotations = []
    for item in ground_truth["annotations"]:
        if item["image_id"] in counted:
            # Fresh ids: pycocotools takes an object with id 0 for one that was never matched.
            item = {**item, "id": len(annotations) + 1, "iscrowd": int(item.get("iscrowd") or 0)}
            if item.get("area") is None:
                item["area"] = item["bbox"][2] * item["bbox"][3]
            if iou_type == "keypoints" and item.get("num_keypoints") is None:
                item["num_keypoints"] = sum(visible > 0 for visible in item["keypoints"][2::3])
            annotations.append(item)
    truth = {
        "images": [image for image in ground_truth["images"] if image["id"] in counted],
        "annotations": annotations,
        "categories": list(ground_truth["categories"]),
    }
    # The kind of results is guessed from their fields, so that masks which also have boxes would count as boxes.
    fields = ("image_id", "category_id", "score", FIELDS[iou_type])
    results = [{name: item[name] for name in fields} for item in results if item["image_id"] in counted]
    for item in results if iou_type == "segm" else ():
        if isinstance(item["segmentation"]["counts"], list):  # pycocotools takes results in the compressed form only
            item["segmentation"] = mask_to_rle(rle_to_mask(dict(item["segmentation"])))
    return truth, results


def run_engine(truth: dict, results: list[dict], iou_type: str, sigmas: Any, engine: str, by_size: bool = True) -> Any:
    """The `COCOeval` of an engine, accumulated; not `by_size`, it knows all objects together only, and is faster."""
    coco_class, evaluation_class = load_engine(engine)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_class()
        coco.dataset = truth
        coco.createIndex()
        found = coco.loadRes(results) if results else coco_class()
        evaluation = evaluation_class(coco, found, iouType=iou_type)
        # Every category gets a row: faster-coco-eval leaves out those that nobody annotated keypoints of.
        evaluation.params.catIds = sorted({item["id"] for item in truth["categories"]})
        sigmas = _sigmas(truth, iou_type, sigmas)
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
        if not by_size:
            evaluation.params.areaRng = evaluation.params.areaRng[:1]  # the first range holds every size
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _sigmas(ground_truth: Mapping, iou_type: str, sigmas: Sequence[float] | None) -> Sequence[float] | None:
    """What was given, or what another skeleton than COCO's is measured with; `None` for COCO's."""
    if sigmas is not None or iou_type != "keypoints":
        return sigmas
    lengths = {len(item.get("keypoints") or ()) for item in ground_truth.get("annotations") or ()}
    length = lengths.pop() if len(lengths) == 1 else 0
    return [MEAN_SIGMA] * (length // 3) if length and length % 3 == 0 and length != 3 * NUM_KEYPOINTS else None


def _is_ignored(item: Mapping, iou_type: str) -> bool:
    return bool(item["iscrowd"]) or (iou_type == "keypoints" and item["num_keypoints"] == 0)


def _mean(values: np.ndarray) -> float:
    """Of what is defined; -1 if nothing is."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0
