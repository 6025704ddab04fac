"""COCO numbers of boxes against the reference's metric class (golden/tasks, section 8)."""

import json

import numpy as np
import pytest
import torch

from pix2seq_hf.evaluation.boxes import BOX_METRICS, evaluate_boxes, record_ground_truth
from pix2seq_hf.evaluation.coco_numbers import ENGINES
from pix2seq_hf.task_object_detection import coco_results


@pytest.fixture(scope="module")
def cases(golden_dir):
    return json.loads((golden_dir / "tasks/coco_eval.json").read_text())


@pytest.fixture(scope="module")
def arrays(golden_dir):
    archive = np.load(golden_dir / "tasks/coco_eval_inputs.npz")
    return {name.split("/")[1]: archive[name] for name in archive if name.startswith("object_detection/")}


def load_ground_truth(golden_dir, case):
    return json.loads((golden_dir / "tasks" / case["gt"]).read_text())


def test_recorded_detections_are_equal(cases, arrays):
    names = ("image_ids", "pred_classes", "pred_scores", "pred_bboxes_yxyx_pixels")
    columns = (torch.from_numpy(arrays[name]) for name in names)
    recorded = [detection for picture in zip(*columns, strict=True) for detection in coco_results(*picture)]
    expected = cases["object_detection/all_images"]["detections"]
    assert len(recorded) == len(expected) > 50
    assert recorded == expected


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["all_images", "only_images_with_predictions", "no_detections"])
def test_metrics_with_an_annotation_file(cases, golden_dir, parity_report, name, engine):
    pytest.importorskip(engine.replace("-", "_"))
    case = cases[f"object_detection/{name}"]
    counted = {item["image_id"] for item in case["detections"]} if case["eval_steps"] else None
    metrics = evaluate_boxes(load_ground_truth(golden_dir, case), case["detections"], counted, engine)
    assert list(metrics) == list(BOX_METRICS) == list(case["metrics"])
    difference = max(abs(metrics[key] - case["metrics"][key]) for key in metrics)
    parity_report(f"COCO numbers, object_detection/{name}, {engine}", difference, 1e-6)


def test_metrics_with_recorded_ground_truth(cases, arrays, parity_report):
    case = cases["object_detection/recorded_groundtruth"]
    truth = record_ground_truth(
        arrays["image_ids"],
        arrays["recorded_gt_bbox"],
        arrays["recorded_gt_label"],
        arrays["recorded_gt_area"],
        arrays["recorded_gt_is_crowd"],
    )
    assert truth["annotations"] == case["recorded_annotations"]
    assert [image["id"] for image in truth["images"]] == case["recorded_images"]
    metrics = evaluate_boxes(truth, case["detections"])
    difference = max(abs(metrics[key] - case["metrics"][key]) for key in metrics)
    parity_report("COCO numbers, object_detection/recorded_groundtruth", difference, 1e-6)
