"""Curves, calibration and thresholds on results whose numbers are known."""

import math

import numpy as np
import pytest

from pix2seq_hf.evaluation.boxes import evaluate_boxes
from pix2seq_hf.evaluation.curves import (
    RECALLS,
    best_threshold,
    calibrate,
    class_precision,
    outcomes,
    precision_recall,
    score_histogram,
)
from pix2seq_hf.evaluation.errors import judge
from pix2seq_hf.evaluation.matches import match_results

TRUTH = {
    "images": [{"id": 1}, {"id": 2}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 4, "bbox": [0, 0, 100, 100]},
        {"id": 2, "image_id": 2, "category_id": 4, "bbox": [0, 0, 100, 100]},
        {"id": 3, "image_id": 2, "category_id": 6, "bbox": [200, 0, 50, 50]},
    ],
    "categories": [{"id": 4, "name": "cat"}, {"id": 6, "name": "dog"}, {"id": 7, "name": "owl"}],
}
RESULTS = [
    {"image_id": 1, "category_id": 4, "bbox": [0, 0, 100, 100], "score": 0.9},
    {"image_id": 2, "category_id": 4, "bbox": [0, 0, 70, 100], "score": 0.6},  # overlap 0.7
    {"image_id": 2, "category_id": 6, "bbox": [0, 200, 50, 50], "score": 0.3},  # nothing is there
]


def test_curves_are_means_over_the_classes_that_have_objects():
    curves = precision_recall(match_results(TRUTH, RESULTS))
    assert list(curves) == pytest.approx([0.5 + 0.05 * step for step in range(10)])
    assert np.allclose(curves[0.5], 0.5)  # cats perfect, dogs 0; owls do not count
    assert np.allclose(curves[0.75], np.where(RECALLS <= 0.5, 0.5, 0))  # one of two cats
    mean = np.mean([curve.mean() for curve in curves.values()])
    assert mean == pytest.approx(evaluate_boxes(TRUTH, RESULTS)["AP"])
    assert all((curve == 0).all() for curve in precision_recall(match_results(TRUTH, [])).values())
    assert precision_recall(match_results({**TRUTH, "annotations": []}, RESULTS)) == {}


def test_precision_of_classes():
    found = class_precision(match_results(TRUTH, RESULTS))
    assert set(found) == {4, 6}
    assert found[4] == pytest.approx({"AP": (5 + 5 * 51 / 101) / 10, "AP_50": 1, "AP_75": 51 / 101})
    assert found[6] == {"AP": 0, "AP_50": 0, "AP_75": 0}


def test_outcomes_leave_missed_objects_out():
    scores, is_correct = outcomes(judge(match_results(TRUTH, RESULTS)))
    assert scores.tolist() == [0.9, 0.6, 0.3] and is_correct.tolist() == [True, True, False]
    assert [part.shape for part in outcomes([])] == [(0,), (0,)]


def test_best_threshold():
    scores, is_correct = np.array([0.2, 0.9, 0.5, 0.5]), np.array([False, True, True, False])
    # at 0.9: 2 * 1 / (1 + 3); at 0.5, with both results of that score: 2 * 2 / (3 + 3)
    found = best_threshold(scores, is_correct, 3)
    assert found == pytest.approx((0.5, 2 / 3, 2 / 3, 2 / 3))
    assert best_threshold(scores, ~is_correct & False, 3) == (0, 0, 0, 0)
    assert best_threshold(scores[:0], is_correct[:0], 0) == (0, 0, 0, 0)


def test_calibration_by_hand():
    scores = np.array([0.05, 0.15, 0.15, 0.95, 1.0])
    found = calibrate(scores, np.array([False, True, False, True, True]))
    assert found.counts.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert found.mean_scores[[0, 1, 9]] == pytest.approx([0.05, 0.15, 0.975])
    assert found.shares_correct[[0, 1, 9]] == pytest.approx([0, 0.5, 1]) and math.isnan(found.shares_correct[4])
    assert found.expected_error == pytest.approx((0.05 + 2 * 0.35 + 2 * 0.025) / 5)


def test_calibration_of_honest_scores_is_nearly_perfect_and_of_none_unknown():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    assert calibrate(scores, rng.random(20_000) < scores).expected_error < 0.02
    assert calibrate(scores, rng.random(20_000) < scores / 2).expected_error == pytest.approx(0.25, abs=0.02)
    assert math.isnan(calibrate(scores[:0], np.zeros(0, bool)).expected_error)


def test_histogram_holds_every_result_once():
    scores = np.array([0.0, 0.049, 0.05, 1.0])
    edges, correct, wrong = score_histogram(scores, np.array([True, False, False, True]))
    assert len(edges) == 21 and (correct + wrong).sum() == 4
    assert (correct[0], wrong[0], wrong[1], correct[19]) == (1, 1, 1, 1)
