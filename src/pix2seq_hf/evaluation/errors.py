"""What went wrong: every result and every missed object gets a kind of error, and every kind its price in precision.

The kinds and their order are those of TIDE (Bolya et al., "A General Toolbox for Identifying Object Detection Errors",
2020). A result that is not correct is, whichever holds first:

- `badly_placed`: overlaps an object of its class with less than 0.5, but at least 0.1;
- `wrong_class`: overlaps an object of another class with at least 0.5;
- `duplicate`: overlaps an object of its class that a better result has found;
- `background`: overlaps no object with more than 0.1;
- `both`: overlaps an object of another class with less than 0.5.

`missed` are the objects that no result found, and that none is badly placed on or gives a wrong class. What is
correct is decided by pycocotools: results on crowd regions, and those after the hundredth of a class in a picture, do
not count.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pix2seq_hf.evaluation.matches import matched_pictures

ERRORS = ("wrong_class", "badly_placed", "both", "duplicate", "background", "missed")
MIN_OVERLAP = 0.5  # of a correct result; the first of pycocotools' thresholds
BACKGROUND_OVERLAP = 0.1


class Judgement(NamedTuple):
    r"""What became of one result, or of one missed object.

    Args:
        kind (`str`): `"correct"` or one of [`ERRORS`].
        image_id (`int`): The picture.
        category_id (`int`): Class of the result, or of the missed object.
        score (`float`): Of the result; 0 for a missed object.
        result (`int`, *optional*): Place in the list of results.
        annotation (`int`, *optional*): Place in the list of annotations of the object that was found, missed, or comes
            nearest in the sense of the kind.
        overlap (`float`): Intersection over union with that object."""

    kind: str
    image_id: int
    category_id: int
    score: float
    result: int | None
    annotation: int | None
    overlap: float


def judge(evaluation: Any) -> list[Judgement]:
    r"""Give every result that counts, and every missed object, its kind.

    Args:
        evaluation (`COCOeval`): Of boxes or masks, as [`~evaluation.matches.match_results`] returns it.
    Returns:
        `list[Judgement]`: Results class by class, then those of classes that the ground truth does not know, then
        missed objects."""
    found, annotated = evaluation.cocoDt.anns, evaluation.cocoGt.anns
    order: list[int] = []
    correct: dict[int, int] = {}
    objects: dict[int, list[int]] = {}
    for entry in matched_pictures(evaluation):
        for place, result in enumerate(entry["dtIds"]):
            if not entry["dtIgnore"][0, place]:
                order.append(result)
                if entry["dtMatches"][0, place]:
                    correct[result] = int(entry["dtMatches"][0, place])
        ids = [item for item, is_ignored in zip(entry["gtIds"], entry["gtIgnore"], strict=True) if not is_ignored]
        objects.setdefault(entry["image_id"], []).extend(ids)
    known = set(evaluation.params.catIds)
    order += [result for result, item in found.items() if item["category_id"] not in known]

    results: dict[int, list[int]] = {}
    for result in order:
        results.setdefault(found[result]["image_id"], []).append(result)
    taken = set(correct.values())
    judged: dict[int, Judgement] = {}
    missed: list[Judgement] = []
    for image_id in evaluation.params.imgIds:
        mine, there = results.get(image_id, []), objects.get(image_id, [])
        overlaps = _overlaps([found[i] for i in mine], [annotated[i] for i in there], evaluation.params.iouType)
        labels = np.array([annotated[item]["category_id"] for item in there], int)
        is_taken = np.array([item in taken for item in there], bool)
        explained = set(taken)
        for row, result in zip(overlaps, mine, strict=True):
            item = found[result]
            if result in correct:
                place = there.index(correct[result])
                kind = "correct"
            else:
                kind, place = _kind_of_error(row, labels == item["category_id"], is_taken)
                if kind in ("wrong_class", "badly_placed"):
                    explained.add(there[place])
            judged[result] = Judgement(
                kind,
                image_id,
                item["category_id"],
                float(item["score"]),
                result - 1,
                None if place is None else there[place] - 1,
                0.0 if place is None else float(row[place]),
            )
        missed += [
            Judgement("missed", image_id, annotated[item]["category_id"], 0.0, None, item - 1, 0.0)
            for item in there
            if item not in explained
        ]
    return [*(judged[result] for result in order), *missed]


def raise_threshold(
    judgements: Iterable[Judgement], annotations: Sequence[Mapping[str, Any]], min_score: float
) -> list[Judgement]:
    r"""What [`judge`] would say if only results of at least `min_score` were there; it need not look again.

    Results are matched from the highest score down, so those that stay keep their kind, and what the others alone
    had found is missed.

    Args:
        judgements (`Iterable[Judgement]`): Of all results.
        annotations (`Sequence[Mapping]`): In COCO form.
        min_score (`float`): Of the results that stay."""
    judgements = list(judgements)
    kept = [item for item in judgements if item.result is not None and item.score >= min_score]
    explaining = ("correct", "wrong_class", "badly_placed")
    explained = {item.annotation for item in kept if item.kind in explaining}
    objects = {item.annotation: item.image_id for item in judgements if item.kind in (*explaining, "missed")}
    return kept + [
        Judgement("missed", image_id, annotations[place]["category_id"], 0.0, None, place, 0.0)
        for place, image_id in sorted(objects.items())
        if place not in explained
    ]


def count_kinds(judgements: Iterable[Judgement]) -> dict[str, int]:
    """How many there are of every kind, `correct` first."""
    counts = Counter(judgement.kind for judgement in judgements)
    return {kind: counts[kind] for kind in ("correct", *ERRORS)}


def count_confusions(
    judgements: Iterable[Judgement], annotations: Sequence[Mapping[str, Any]]
) -> Counter[tuple[int, int]]:
    """How often an object of one class was given another: by pairs of the annotated and the written label id."""
    return Counter(
        (annotations[judgement.annotation]["category_id"], judgement.category_id)
        for judgement in judgements
        if judgement.kind == "wrong_class"
    )


def gains(
    judgements: Sequence[Judgement], annotations: Sequence[Mapping[str, Any]], objects: Mapping[int, int]
) -> dict[str, float]:
    r"""Compute what average precision at an overlap of 0.5 would gain if all errors of one kind were mended.

    The best result of a wrong class, or that is badly placed, becomes a correct one of its object if no other has found
    it; results of the other kinds are taken away; missed objects do not count any more.

    Args:
        judgements (`Sequence[Judgement]`): Of all results, whatever their score.
        annotations (`Sequence[Mapping]`): In COCO form.
        objects (`Mapping[int, int]`): Number of objects by class, without crowd regions, as [`count_objects`] tells.
    Returns:
        `dict[str, float]`: By kind of [`ERRORS`]; they do not add up, for mending one kind uncovers others.
    Source: dAP of TIDE (section 2.3 of the paper)."""
    now = mean_precision(judgements, objects)
    taken = {judgement.annotation for judgement in judgements if judgement.kind == "correct"}
    gained = {}
    for kind in ERRORS:
        left = dict(objects)
        best: dict[int, Judgement] = {}
        kept = []
        for judgement in judgements:
            if judgement.kind != kind:
                kept.append(judgement)
            elif kind == "missed":
                left[judgement.category_id] -= 1
            elif kind in ("wrong_class", "badly_placed") and judgement.annotation not in taken:
                rival = best.get(judgement.annotation)
                if rival is None or judgement.score > rival.score:
                    best[judgement.annotation] = judgement
        kept += [
            item._replace(kind="correct", category_id=annotations[place]["category_id"]) for place, item in best.items()
        ]
        gained[kind] = mean_precision(kept, left) - now
    return gained


def count_objects(evaluation: Any) -> dict[int, int]:
    """Number of objects by class, without crowd regions; classes that have none are not listed."""
    counts: Counter[int] = Counter()
    for entry in matched_pictures(evaluation):
        counts[entry["category_id"]] += len(entry["gtIds"]) - int(np.sum(entry["gtIgnore"]))
    return {label: number for label, number in counts.items() if number}


def mean_precision(judgements: Iterable[Judgement], objects: Mapping[int, int]) -> float:
    """The mean of [`average_precision`] over the classes that have objects; 0 if none has. It is COCO's AP at 0.5."""
    outcomes: dict[int, list[tuple[float, bool]]] = {}
    for judgement in judgements:
        if judgement.result is not None:
            outcomes.setdefault(judgement.category_id, []).append((judgement.score, judgement.kind == "correct"))
    values = [
        average_precision(*np.array(outcomes.get(label, np.zeros((0, 2)))).T, number)
        for label, number in objects.items()
        if number
    ]
    return float(np.mean(values)) if values else 0.0


def average_precision(scores: np.ndarray, is_correct: np.ndarray, num_objects: int) -> float:
    r"""Compute the precision of one class at 101 recalls, made monotone, on average, as COCO does.

    Args:
        scores (array of shape `(num_results,)`): Of the results.
        is_correct (array of shape `(num_results,)`): Whether each found an object that no other found.
        num_objects (`int`): How many there are to find, at least 1."""
    order = np.argsort(-scores, kind="mergesort")  # as in pycocotools: of equals, the first comes first
    correct = np.cumsum(is_correct[order].astype(float))
    precision = correct / np.arange(1, len(order) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(correct / num_objects, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0.0)[places].mean())


def _kind_of_error(overlaps: np.ndarray, is_class: np.ndarray, is_taken: np.ndarray) -> tuple[str, int | None]:
    """The kind of a result that is not correct, and which object it is about; arrays are over the picture's objects."""
    if not len(overlaps):
        return "background", None

    def best(is_candidate: np.ndarray) -> tuple[int, float]:
        candidates = np.where(is_candidate, overlaps, -1.0)
        return int(candidates.argmax()), float(candidates.max())

    place, overlap = best(is_class)
    if BACKGROUND_OVERLAP <= overlap < MIN_OVERLAP:
        return "badly_placed", place
    place, overlap = best(~is_class)
    if overlap >= MIN_OVERLAP:
        return "wrong_class", place
    place, overlap = best(is_class & is_taken)
    if overlap >= MIN_OVERLAP:
        return "duplicate", place
    place, overlap = best(np.ones_like(is_class))
    return ("background", None) if overlap <= BACKGROUND_OVERLAP else ("both", place)


def _overlaps(results: Sequence[Mapping[str, Any]], objects: Sequence[Mapping[str, Any]], iou_type: str) -> np.ndarray:
    """Intersection over union of every result with every object, whatever their class: `(results, objects)`."""
    from pycocotools import mask as coco_mask

    if not results or not objects:
        return np.zeros((len(results), len(objects)))
    field = "bbox" if iou_type == "bbox" else "segmentation"  # outlines have become run lengths in the evaluation
    return coco_mask.iou([item[field] for item in results], [item[field] for item in objects], [0] * len(objects))
