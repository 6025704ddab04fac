"""COCO numbers of boxes on cases small enough to know the answer."""

import math

import numpy as np
import pytest

from pix2seq_hf.evaluation.boxes import (
    BOX_METRICS,
    evaluate_boxes,
    format_box_metrics,
    record_ground_truth,
)


def one_object(box=(10, 10, 100, 100), **fields):
    return {
        "images": [{"id": 7}, {"id": 8}],
        "annotations": [{"id": 0, "image_id": 7, "category_id": 3, "bbox": list(box), **fields}],
        "categories": [{"id": 3, "name": "car"}],
    }


def detect(box, image_id=7, score=0.9, category_id=3):
    return {"image_id": image_id, "bbox": list(box), "score": score, "category_id": category_id}


def test_perfect_boxes_score_one_even_with_annotation_id_zero():
    truth = one_object()
    detections = [detect((10, 10, 100, 100))]
    metrics = evaluate_boxes(truth, detections)
    assert [metrics["AP"], metrics["AP_50"], metrics["AR_max_100"]] == pytest.approx([1.0] * 3)
    assert metrics["AP_small"] == -1 and metrics["AP_large"] == pytest.approx(1.0)
    assert detections == [detect((10, 10, 100, 100))] and truth == one_object()  # inputs are left alone


def test_overlap_decides():
    # Width 60 of 100: IoU 0.6, right at the thresholds 0.5 and 0.55 and at 0.6 itself, of ten.
    metrics = evaluate_boxes(one_object(), [detect((10, 10, 60, 100))])
    assert metrics["AP_50"] == pytest.approx(1.0) and metrics["AP_75"] == 0
    assert metrics["AP"] == pytest.approx(0.3, abs=1e-6)


def test_no_detection_gives_zeros():
    assert evaluate_boxes(one_object(), []) == dict.fromkeys(BOX_METRICS, 0.0)
    assert evaluate_boxes(one_object(), [detect((0, 0, 9, 9), image_id=8)], image_ids=[7])["AP"] == 0


def test_pictures_that_count():
    truth = one_object()
    truth["annotations"].append({"id": 1, "image_id": 8, "category_id": 3, "bbox": [0, 0, 50, 50]})
    detections = [detect((10, 10, 100, 100))]
    assert evaluate_boxes(truth, detections)["AR_max_100"] == pytest.approx(0.5)
    assert evaluate_boxes(truth, detections, image_ids=[7])["AR_max_100"] == pytest.approx(1.0)


def test_ground_truth_from_arrays_equals_ground_truth_from_json():
    boxes = np.array([[[10, 10, 110, 110], [0, 0, 0, 0]], [[0, 0, 50, 50], [5, 5, 60, 60]]], dtype=np.float32)
    truth = record_ground_truth(
        [7, 8], boxes, np.array([[3, 0], [3, 5]]), np.array([[9e3, 0], [2500, 3025]]), np.array([[0, 0], [0, 1]])
    )
    assert [item["id"] for item in truth["annotations"]] == [1, 2, 3]
    assert truth["annotations"][0]["bbox"] == [10.0, 10.0, 100.0, 100.0]
    assert truth["annotations"][2] == {
        "id": 3, "image_id": 8, "category_id": 5, "bbox": [5.0, 5.0, 55.0, 55.0], "area": 3025.0, "iscrowd": 1,
    }  # fmt: skip
    assert truth["categories"] == [{"id": 3}, {"id": 5}]
    # The crowd of category 5 need not be found: category 3 alone decides.
    metrics = evaluate_boxes(truth, [detect((10, 10, 100, 100)), detect((0, 0, 50, 50), image_id=8)])
    assert metrics["AP"] == pytest.approx(1.0)


def test_wrong_detections_are_refused():
    with pytest.raises(ValueError, match="picture 99, which the ground truth does not list"):
        evaluate_boxes(one_object(), [detect((0, 0, 1, 1), image_id=99)])
    with pytest.raises(ValueError, match="picture 7 has a number that is not finite"):
        evaluate_boxes(one_object(), [detect((0, 0, 1, 1), score=math.nan)])


def test_table():
    metrics = dict.fromkeys(BOX_METRICS, 0.123) | {"AP_small": -1.0}
    lines = format_box_metrics(metrics).splitlines()
    assert lines[1].split() == ["average", "precision", "12.3", "12.3", "12.3", "-", "12.3", "12.3"]
    assert lines[2].split() == ["average", "recall", "12.3", "12.3", "12.3", "12.3"]
