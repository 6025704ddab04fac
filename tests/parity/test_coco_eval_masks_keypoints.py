"""COCO numbers of masks and keypoints against the reference's metric classes (golden/tasks, section 8)."""

import json

import numpy as np
import pytest

from pix2seq_hf.evaluation.coco_numbers import ENGINES, per_class
from pix2seq_hf.evaluation.keypoints import KEYPOINT_METRICS, evaluate_keypoints, keypoint_results
from pix2seq_hf.evaluation.masks import MASK_METRICS, evaluate_masks, mask_results
from pix2seq_hf.masks_pix2seq import mask_to_rle


@pytest.fixture(scope="module")
def cases(golden_dir):
    return json.loads((golden_dir / "tasks/coco_eval.json").read_text())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["all_images", "only_images_with_predictions"])
@pytest.mark.parametrize("task", ["instance_segmentation", "keypoint_detection"])
def test_metrics(cases, golden_dir, parity_report, task, name, engine):
    pytest.importorskip(engine.replace("-", "_"))
    case = cases[f"{task}/{name}"]
    truth = json.loads((golden_dir / "tasks" / case["gt"]).read_text())
    counted = {item["image_id"] for item in case["detections"]} if case["eval_steps"] else None
    if task == "instance_segmentation":
        metrics, expected = evaluate_masks(truth, case["detections"], counted, engine), case["metrics"]
        assert list(metrics) == list(MASK_METRICS) == list(expected)
    else:
        metrics = evaluate_keypoints(truth, case["detections"], counted, engine=engine)
        expected = dict(zip(case["true_metric_names"], case["stats_in_order"], strict=True))
        assert list(metrics) == list(KEYPOINT_METRICS) == list(expected)
    difference = max(abs(metrics[key] - expected[key]) for key in metrics)
    parity_report(f"COCO numbers, {task}/{name}, {engine}", difference, 1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("task", "kind"),
    [("object_detection", "boxes"), ("instance_segmentation", "masks"), ("keypoint_detection", "keypoints")],
)
def test_the_mean_of_the_classes_is_the_whole(cases, golden_dir, parity_report, task, kind, engine):
    pytest.importorskip(engine.replace("-", "_"))
    case = cases[f"{task}/all_images"]
    truth = json.loads((golden_dir / "tasks" / case["gt"]).read_text())
    table = per_class(truth, case["detections"], kind, engine=engine)
    order = case.get("true_metric_names") or list(case["metrics"])
    expected = dict(zip(order, case.get("stats_in_order") or case["metrics"].values(), strict=True))
    expected |= {"AR": expected["AR_max_100"]} if kind != "keypoints" else {}
    largest = 0.0
    for name in {name for row in table.values() for name in row if name.startswith("A")}:
        values = [row[name] for row in table.values() if row[name] > -1]
        largest = max(largest, abs((np.mean(values) if values else -1) - expected[name]))
    parity_report(f"COCO numbers, {task}, mean of the classes, {engine}", largest, 1e-6)


def test_keypoints_with_recorded_ground_truth(cases, parity_report):
    case = cases["keypoint_detection/recorded_groundtruth"]
    truth = {
        "images": [{"id": image_id} for image_id in {item["image_id"] for item in case["recorded_annotations"]}],
        "annotations": case["recorded_annotations"],
        "categories": [{"id": 1}],
    }
    metrics = evaluate_keypoints(truth, case["detections"])
    difference = np.abs(np.array(list(metrics.values())) - case["stats_in_order"]).max()
    parity_report("COCO numbers, keypoint_detection/recorded_groundtruth", difference, 1e-6)


def test_recorded_keypoints_are_equal(cases, golden_dir):
    with np.load(golden_dir / "tasks/coco_eval_inputs.npz", allow_pickle=False) as archive:
        arrays = {key.split("/")[1]: archive[key] for key in archive.files if key.startswith("keypoint_detection/")}
    expected = cases["keypoint_detection/all_images"]["detections"]
    points = arrays["keypoints_yx_pixels"].reshape(len(arrays["image_ids"]), 17, 2)
    recorded = []
    for row, image_id in enumerate(arrays["image_ids"]):
        one, visible = points[row : row + 1], (points[row : row + 1] != -3).all(-1)
        label, score = arrays["classes"][row : row + 1], arrays["scores"][row : row + 1]
        recorded += keypoint_results(image_id, label, score, one[..., ::-1], visible)
    assert len(recorded) == len(expected) > 20
    assert recorded == expected


def test_recorded_masks_are_equal(cases, golden_dir):
    with np.load(golden_dir / "tasks/coco_eval_inputs.npz", allow_pickle=False) as archive:
        prefix = "instance_segmentation/"
        arrays = {key.removeprefix(prefix): archive[key] for key in archive.files if key.startswith(prefix)}
    expected = cases["instance_segmentation/all_images"]["detections"]
    recorded = []
    for row, image_id in enumerate(arrays["image_ids"]):
        if f"mask_{row}" in arrays:  # only some are stored
            rle = mask_to_rle(arrays[f"mask_{row}"])
            recorded += mask_results(image_id, arrays["pred_classes"][[row]], arrays["scores"][[row]], [rle])
    assert len(recorded) > 3
    assert all(item in expected for item in recorded)
