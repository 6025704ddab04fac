"""Kinds of errors on pictures where each kind occurs once, and what mending a kind is worth."""

import copy

import numpy as np
import pytest

from pix2seq_hf.evaluation.boxes import evaluate_boxes
from pix2seq_hf.evaluation.errors import (
    ERRORS,
    average_precision,
    count_confusions,
    count_kinds,
    count_objects,
    gains,
    judge,
    mean_precision,
    raise_threshold,
)
from pix2seq_hf.evaluation.masks import evaluate_masks
from pix2seq_hf.evaluation.matches import match_results

CAT, DOG = 3, 8
CATEGORIES = [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}]


def truth_of(*objects, num_images=2):
    annotations = [
        {"id": 0, "image_id": image, "category_id": label, "bbox": list(box), **fields}
        for image, label, box, fields in ((*item, {})[:4] for item in objects)
    ]
    images = [{"id": image, "width": 400, "height": 300} for image in range(num_images)]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def found(image, label, box, score=0.9):
    return {"image_id": image, "category_id": label, "bbox": list(box), "score": score}


def kinds(truth, results, iou_type="bbox"):
    """The kind of every result, in their order; then the places of missed annotations."""
    judgements = judge(match_results(truth, results, iou_type))
    by_result = {item.result: item.kind for item in judgements if item.result is not None}
    missed = [item.annotation for item in judgements if item.kind == "missed"]
    assert all(item.kind == "missed" for item in judgements if item.result is None)
    return [by_result.get(place) for place in range(len(results))], missed


ONE_CAT = truth_of((0, CAT, (100, 100, 100, 100)))


@pytest.mark.parametrize(
    ("label", "left", "kind", "is_missed"),
    [
        (CAT, 100, "correct", False),
        (CAT, 133, "correct", False),  # overlap 67 / 133 = 0.504
        (CAT, 134, "badly_placed", False),  # 66 / 134 = 0.493
        (CAT, 180, "badly_placed", False),  # 20 / 180 = 0.111
        (CAT, 183, "background", True),  # 17 / 183 = 0.093
        (DOG, 133, "wrong_class", False),
        (DOG, 134, "both", True),
        (DOG, 183, "background", True),
        (99, 100, "wrong_class", False),  # a class that the ground truth does not know
    ],
)
def test_a_result_alone_has_the_kind_that_its_place_and_class_say(label, left, kind, is_missed):
    results = [found(0, label, (left, 100, 100, 100))]
    assert kinds(ONE_CAT, results) == ([kind], [0] if is_missed else [])


def test_the_second_result_on_an_object_is_a_duplicate_whatever_the_order_of_the_list():
    results = [found(0, CAT, (100, 100, 100, 100), 0.3), found(0, CAT, (105, 100, 100, 100), 0.8)]
    assert kinds(ONE_CAT, results) == (["duplicate", "correct"], [])


def test_pictures_without_objects_and_without_results():
    truth = truth_of((0, CAT, (100, 100, 100, 100)))
    assert kinds(truth, [found(1, CAT, (100, 100, 100, 100))]) == (["background"], [0])
    assert kinds(truth, []) == ([], [0])
    assert kinds(truth_of(), [found(0, CAT, (1, 1, 9, 9))]) == (["background"], [])
    assert gains([], [], {}) == dict.fromkeys(ERRORS, 0.0)


def test_results_on_crowd_regions_do_not_count_and_crowd_regions_are_not_missed():
    crowd = {"iscrowd": 1, "segmentation": {"size": [300, 400], "counts": [0, 120000]}}
    truth = truth_of((0, CAT, (0, 0, 200, 200), crowd))
    results = [found(0, CAT, (10, 10, 50, 50)), found(0, CAT, (300, 200, 50, 50))]
    assert kinds(truth, results) == ([None, "background"], [])


def test_a_result_for_an_unknown_picture_is_named():
    with pytest.raises(ValueError, match="picture 5"):
        match_results(ONE_CAT, [found(5, CAT, (1, 1, 9, 9))])


def test_masks_are_judged_by_their_pixels_not_their_boxes():
    from pycocotools import mask as coco_mask

    halves = [np.zeros((300, 400), np.uint8, order="F") for _ in range(2)]
    halves[0][100:200, 100:150] = 1
    halves[1][100:200, 150:200] = 1
    halves[1][100, 100] = 1  # so that its box is nearly that of the whole square
    square = [[100, 100, 200, 100, 200, 200, 100, 200]]
    truth = truth_of((0, CAT, (100, 100, 100, 100), {"segmentation": square, "area": 1e4}))
    before = copy.deepcopy(truth)
    results = []
    for mask in (halves[0], halves[1]):
        rle = coco_mask.encode(mask)
        results.append({"image_id": 0, "category_id": CAT, "segmentation": rle, "score": 0.9})
    assert kinds(truth, results[1:], "segm") == (["correct"], [])  # 5001 of 10000 pixels
    assert kinds(truth, [{**results[1], "category_id": DOG}], "segm") == (["wrong_class"], [])
    assert kinds(truth, results, "segm")[0].count("correct") == 1
    assert truth == before
    assert evaluate_masks(truth, results[1:])["AP_50"] == pytest.approx(1)


def test_counts_and_confusions():
    truth = truth_of((0, CAT, (0, 0, 50, 50)), (0, CAT, (100, 100, 50, 50)), (1, DOG, (0, 0, 50, 50)))
    results = [found(0, DOG, (0, 0, 50, 50)), found(0, DOG, (100, 100, 50, 50)), found(1, DOG, (0, 0, 50, 50))]
    judgements = judge(match_results(truth, results))
    assert count_kinds(judgements) == {**dict.fromkeys(ERRORS, 0), "correct": 1, "wrong_class": 2}
    assert next(iter(count_kinds(judgements))) == "correct"
    assert count_confusions(judgements, truth["annotations"]) == {(CAT, DOG): 2}


def test_average_precision_by_hand():
    # Right, wrong, right of two objects: precision 1 up to recall 1/2 (51 of 101 places), then 2/3.
    scores, is_correct = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    assert average_precision(scores, is_correct, 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(scores[:0], is_correct[:0], 2) == 0


def gains_of(truth, results):
    evaluation = match_results(truth, results)
    judgements = judge(evaluation)
    return gains(judgements, truth["annotations"], count_objects(evaluation))


def test_what_a_kind_costs_is_gained_when_it_is_mended():
    cats = truth_of((0, CAT, (0, 0, 50, 50)), (1, CAT, (0, 0, 50, 50)))
    right = found(0, CAT, (0, 0, 50, 50), 0.5)
    half = 51 / 101  # one of two objects found
    nothing = dict.fromkeys(ERRORS, 0.0)
    assert gains_of(cats, [right]) == pytest.approx({**nothing, "missed": 1 - half})
    shifted = found(1, CAT, (0, 0, 50, 20), 0.4)
    assert gains_of(cats, [right, shifted]) == pytest.approx({**nothing, "badly_placed": 1 - half})
    mistaken = found(1, DOG, (0, 0, 50, 50), 0.4)
    assert gains_of(cats, [right, mistaken]) == pytest.approx({**nothing, "wrong_class": 1 - half})
    ghost = found(1, CAT, (200, 200, 50, 50), 0.9)  # before the right one: precision 1/2 where it was 1
    both = [right, found(1, CAT, (0, 0, 50, 50), 0.4)]
    assert gains_of(cats, [*both, ghost]) == pytest.approx({**nothing, "background": 1 - 2 / 3})
    # of two that are badly placed on one object only the better is mended; the other goes
    assert gains_of(cats, [right, shifted, {**shifted, "score": 0.3}])["badly_placed"] == pytest.approx(1 - half)


def test_the_precision_is_that_of_pycocotools_on_random_boxes():
    rng = np.random.default_rng(0)
    objects, results = [], []
    for image in range(12):
        for _ in range(rng.integers(0, 7)):
            label, box = int(rng.choice([CAT, DOG])), [*rng.integers(0, 150, 2), *rng.integers(20, 120, 2)]
            box = [float(value) for value in box]
            objects.append((image, label, box, {"iscrowd": int(rng.random() < 0.1)}))
            for _ in range(rng.integers(0, 4)):
                moved = [value + float(change) for value, change in zip(box, rng.normal(0, 12, 4), strict=True)]
                written = label if rng.random() < 0.8 else CAT
                results.append(found(image, written, moved, round(float(rng.random()), 1)))
    truth = truth_of(*objects, num_images=12)
    for item in truth["annotations"]:
        if item["iscrowd"]:
            item["segmentation"] = {"size": [300, 400], "counts": [0, 120000]}
    evaluation = match_results(truth, results)
    judgements, counted = judge(evaluation), count_objects(evaluation)
    assert sum(count_kinds(judgements).values()) > 30 and count_kinds(judgements)["duplicate"] > 3
    expected = evaluate_boxes(truth, results)["AP_50"]
    assert mean_precision(judgements, counted) == pytest.approx(expected, abs=1e-9)
    assert 0.2 < expected < 0.95
    gained = gains(judgements, truth["annotations"], counted)
    assert min(gained.values()) >= -1e-9 and gained["duplicate"] > 0

    for min_score in (0.3, 0.6, 0.95):
        again = judge(match_results(truth, [item for item in results if item["score"] >= min_score]))
        raised = raise_threshold(judgements, truth["annotations"], min_score)
        assert count_kinds(again) == count_kinds(raised)
        pairs = [{(item.annotation, item.kind) for item in side if item.kind == "missed"} for side in (again, raised)]
        assert pairs[0] == pairs[1] != set()
