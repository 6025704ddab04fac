"""How precision, recall and scores hang together, as numbers: curves, calibration, the best threshold, histograms."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pix2seq_hf.evaluation.errors import Judgement

RECALLS = np.linspace(0, 1, 101)  # at which pycocotools tells the precision


class Calibration(NamedTuple):
    r"""How often results of a score are correct, bin by bin; of a well calibrated model, as often as the score says.

    Args:
        edges (array of shape `(num_bins + 1,)`): Of the bins of scores.
        counts (array of shape `(num_bins,)`): Results in each bin.
        mean_scores (array of shape `(num_bins,)`): NaN for empty bins, as the next.
        shares_correct (array of shape `(num_bins,)`): Of the results.
        expected_error (`float`): Distance of the two, on average over all results; NaN if there are none."""

    edges: np.ndarray
    counts: np.ndarray
    mean_scores: np.ndarray
    shares_correct: np.ndarray
    expected_error: float


class Threshold(NamedTuple):
    r"""What a threshold of the score gives over all classes together.

    Args:
        score (`float`): Results of at least this score are kept.
        precision (`float`): Share of them that is correct.
        recall (`float`): Share of the objects that they find.
        f1 (`float`): The harmonic mean of both."""

    score: float
    precision: float
    recall: float
    f1: float


def precision_recall(evaluation: Any) -> dict[float, np.ndarray]:
    r"""Read precision at [`RECALLS`], on average over the classes that have objects.

    Args:
        evaluation (`COCOeval`): As [`~evaluation.matches.match_results`] returns it.
    Returns:
        `dict[float, np.ndarray]`: By overlap, 0.5 to 0.95; no entry if the ground truth has no object."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (overlaps, recalls, classes); -1 for absent classes
    precision = precision[:, :, (precision > -1).all((0, 1))]
    if not precision.shape[2]:
        return {}
    means = precision.mean(2)
    return {round(float(overlap), 2): curve for overlap, curve in zip(evaluation.params.iouThrs, means, strict=True)}


def class_precision(evaluation: Any) -> dict[int, dict[str, float]]:
    r"""Read `AP`, `AP_50` and `AP_75` of every class that has objects, by label id."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1].mean(1)  # (overlaps, classes)
    overlaps = np.round(evaluation.params.iouThrs, 2)
    places = {"AP_50": overlaps == 0.5, "AP_75": overlaps == 0.75}
    return {
        int(label): {"AP": float(values.mean()), **{name: float(values[at][0]) for name, at in places.items()}}
        for label, values in zip(evaluation.params.catIds, precision.T, strict=True)
        if values[0] > -1
    }


def outcomes(judgements: Iterable[Judgement]) -> tuple[np.ndarray, np.ndarray]:
    """The scores of all results that count, and whether each is correct."""
    pairs = [(item.score, item.kind == "correct") for item in judgements if item.result is not None]
    scores, is_correct = np.array(pairs, float).reshape(-1, 2).T
    return scores, is_correct.astype(bool)


def best_threshold(scores: np.ndarray, is_correct: np.ndarray, num_objects: int) -> Threshold:
    r"""Find the threshold with the best F1, the highest of equals.

    Args:
        scores (array of shape `(num_results,)`): Of all classes.
        is_correct (array of shape `(num_results,)`): Whether each result is correct.
        num_objects (`int`): How many there are to find.
    Returns:
        [`Threshold`]: All zeros if nothing is correct."""
    if not np.any(is_correct):
        return Threshold(0.0, 0.0, 0.0, 0.0)
    order = np.argsort(-scores, kind="mergesort")
    correct, kept = np.cumsum(is_correct[order]), np.arange(1, len(order) + 1)
    is_last = np.append(np.diff(scores[order]) != 0, True)  # a threshold cannot part results of one score
    f1 = np.where(is_last, 2 * correct / (kept + num_objects), -1)
    place = int(f1.argmax())
    return Threshold(
        float(scores[order][place]),
        float(correct[place] / kept[place]),
        float(correct[place] / num_objects),
        float(f1[place]),
    )


def calibrate(scores: np.ndarray, is_correct: np.ndarray, num_bins: int = 10) -> Calibration:
    r"""Compare scores with how often they are right.

    Args:
        scores (array of shape `(num_results,)`): In `[0, 1]`.
        is_correct (array of shape `(num_results,)`): Whether each result is correct.
        num_bins (`int`): Bins of equal width.
    Returns:
        [`Calibration`]."""
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean_scores = np.bincount(bins, scores, num_bins) / counts
        shares = np.bincount(bins, is_correct, num_bins) / counts
    filled = counts > 0
    distance = np.abs(mean_scores - shares)[filled]
    error = float(np.average(distance, weights=counts[filled])) if filled.any() else float("nan")
    return Calibration(edges, counts, mean_scores, shares, error)


def score_histogram(
    scores: np.ndarray, is_correct: np.ndarray, num_bins: int = 20
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges of bins of scores in `[0, 1]`, and how many correct and how many wrong results each bin holds."""
    edges = np.linspace(0, 1, num_bins + 1)
    correct, wrong = (np.histogram(scores[chosen], edges)[0] for chosen in (is_correct, ~is_correct))
    return edges, correct, wrong
