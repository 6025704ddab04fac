"""Tables by class, both engines, and bad input, which gets one line instead of a crash."""

import builtins
import copy
import logging
import math

import numpy as np
import pytest

from pix2seq_hf.evaluation.boxes import BOX_METRICS, evaluate_boxes
from pix2seq_hf.evaluation.coco_numbers import ENGINES, MEAN_SIGMA, load_engine, per_class
from pix2seq_hf.evaluation.keypoints import KEYPOINT_METRICS, evaluate_keypoints
from pix2seq_hf.evaluation.masks import MASK_METRICS, evaluate_masks
from pix2seq_hf.evaluation.tables import format_class_table
from pix2seq_hf.masks_pix2seq import mask_to_rle

EVALUATE = {
    "boxes": (evaluate_boxes, BOX_METRICS),
    "masks": (evaluate_masks, MASK_METRICS),
    "keypoints": (evaluate_keypoints, KEYPOINT_METRICS),
}


@pytest.fixture(params=ENGINES)
def engine(request):
    pytest.importorskip(request.param.replace("-", "_"))
    return request.param


def an_object(index, image_id, category_id, x, y, side):
    points = np.stack([np.linspace(x, x + side, 17), np.linspace(y, y + side, 17), np.full(17, 2)], -1)
    return {
        "id": index, "image_id": image_id, "category_id": category_id, "bbox": [x, y, side, side], "area": side * side,
        "segmentation": [[x, y, x + side, y, x + side, y + side, x, y + side]], "iscrowd": 0,
        "keypoints": points.reshape(-1).tolist(), "num_keypoints": 17,
    }  # fmt: skip


@pytest.fixture
def truth():
    """Two cars, small and large, a medium dog, and a class of which there is none."""
    objects = [an_object(0, 7, 3, 10, 10, 20), an_object(1, 7, 3, 80, 80, 100), an_object(2, 8, 5, 40, 40, 60)]
    categories = [{"id": 3, "name": "car"}, {"id": 5, "name": "dog"}, {"id": 9, "name": "cat"}]
    images = [{"id": 7, "height": 200, "width": 200}, {"id": 8, "height": 200, "width": 200}]
    return {"images": images, "annotations": objects, "categories": categories}


def found(item, score=0.9, **fields):
    x, y, side, _ = map(int, item["bbox"])
    mask = np.zeros((200, 200), np.uint8)
    mask[y : y + side, x : x + side] = 1
    names = ("image_id", "category_id", "bbox", "keypoints")
    return {**{name: item[name] for name in names}, "segmentation": mask_to_rle(mask), "score": score, **fields}


@pytest.mark.parametrize("kind", EVALUATE)
class TestAllKinds:
    def test_perfect_results_score_one_whatever_fields_they_have(self, truth, kind, engine):
        evaluate, names = EVALUATE[kind]
        before = copy.deepcopy(truth)
        numbers = evaluate(truth, [found(item) for item in truth["annotations"]], engine=engine)
        assert list(numbers) == list(names) and numbers["AP"] == pytest.approx(1) and truth == before

    def test_table(self, truth, kind, engine):
        """The large car and the dog are found; the small car is not."""
        results = [found(item) for item in truth["annotations"][1:]]
        table = per_class(truth, results, kind, engine=engine)
        assert list(table) == ["car", "dog", "cat"]
        car, dog, cat = table.values()
        assert dog["AP"] == pytest.approx(1) and dog["AP_medium"] == pytest.approx(1) and dog["AP_large"] == -1
        assert cat["AP"] == cat["AR"] == -1 and cat["num_objects"] == 0
        assert car["num_objects"] == 2 and car["num_results"] == 1
        assert car["AR"] == pytest.approx(0.5) and car["AR_large"] == pytest.approx(1)
        # 51 of the 101 levels of recall, 0 to 0.5, are reached with precision 1.
        assert car["AP_50"] == pytest.approx(51 / 101)
        assert ("AP_small" in car) == (kind != "keypoints") and car.get("AP_small", 0) == 0
        only = per_class(truth, results, kind, image_ids=[8], engine=engine)
        assert only["car"]["AP"] == -1 and only["dog"]["AP"] == pytest.approx(1)

    def test_no_result(self, truth, kind, engine):
        evaluate, names = EVALUATE[kind]
        assert evaluate(truth, [], engine=engine) == dict.fromkeys(names, 0.0)
        table = per_class(truth, [], kind, engine=engine)
        assert [table[name]["AP"] for name in ("car", "dog", "cat")] == [0, 0, -1]

    def test_no_object(self, truth, kind, engine):
        evaluate, names = EVALUATE[kind]
        results = [found(truth["annotations"][0])]
        truth["annotations"] = []
        for each in ([], results):
            assert evaluate(truth, each, engine=engine) == dict.fromkeys(names, -1.0)
            assert {row["AP"] for row in per_class(truth, each, kind, engine=engine).values()} == {-1}
        truth["categories"] = []
        assert evaluate(truth, results, engine=engine) == dict.fromkeys(names, -1.0)
        assert per_class(truth, results, kind, engine=engine) == {}

    def test_results_of_other_pictures(self, truth, kind):
        results = [found(truth["annotations"][0]), *[found(truth["annotations"][1], image_id=99)] * 2]
        with pytest.raises(ValueError, match=r"picture 99, which the ground truth does not list \(2 of 3 results\)"):
            EVALUATE[kind][0](truth, results)

    @pytest.mark.parametrize("score", [math.nan, math.inf, "high"])
    def test_scores_that_are_no_numbers(self, truth, kind, score):
        with pytest.raises(ValueError, match="detection of picture 7 has a number that is not finite: score"):
            EVALUATE[kind][0](truth, [found(truth["annotations"][0], score=score)])

    def test_strange_categories_are_wrong_and_said(self, truth, kind, engine, caplog):
        evaluate, results = EVALUATE[kind][0], [found(item) for item in truth["annotations"]]
        strange = [{**item, "category_id": 0} for item in results]
        with caplog.at_level(logging.WARNING, logger="pix2seq_hf"):
            assert evaluate(truth, results + strange, engine=engine)["AP"] == pytest.approx(1)
            assert not caplog.messages
            assert evaluate(truth, strange, engine=engine)["AP"] == 0
        assert caplog.messages == [
            "none of the 3 results has a category of the ground truth: 0 against 3, 5, 9: are they numbered otherwise?"
        ]  # fmt: skip

    def test_captions_in_place_of_objects(self, truth, kind):
        captions = [{"id": 1, "image_id": 7, "caption": "a car"}]
        file = {"images": truth["images"], "annotations": captions}
        with pytest.raises(ValueError, match=r"no list 'categories' \(it has images, annotations\)"):
            EVALUATE[kind][0](file, [])
        with pytest.raises(ValueError, match=r"object 1 of picture 7 has no 'category_id' .*another task"):
            EVALUATE[kind][0]({**file, "categories": truth["categories"]}, [])
        with pytest.raises(
            ValueError, match=r"result 0 has no 'category_id' \(it has image_id, caption\).*another task"
        ):
            EVALUATE[kind][0](truth, [{"image_id": 7, "caption": "a car"}])

    def test_field_of_another_task(self, truth, kind):
        field = {"boxes": "bbox", "masks": "segmentation", "keypoints": "keypoints"}[kind]
        result = found(truth["annotations"][0])
        del result[field], truth["annotations"][1][field]
        with pytest.raises(ValueError, match=f"object 1 of picture 7 has no '{field}'"):
            EVALUATE[kind][0](truth, [])
        del truth["annotations"][1]
        with pytest.raises(ValueError, match=f"result 0 has no '{field}'"):
            EVALUATE[kind][0](truth, [result])

    def test_object_of_no_listed_category(self, truth, kind):
        truth["annotations"][2]["category_id"] = 6
        with pytest.raises(ValueError, match="object 2 of picture 8 has the category 6"):
            EVALUATE[kind][0](truth, [])


@pytest.mark.parametrize("kind", EVALUATE)
def test_both_engines_agree_on_crowds_ties_and_many_results(kind):
    """More than 100 results in a picture, equal scores, crowd regions, objects that count for nothing."""
    pytest.importorskip("faster_coco_eval")
    rng, annotations, results = np.random.default_rng(0), [], []
    for image_id in range(6):
        for _ in range(12):
            x, y, side = (int(number) for number in rng.integers([0, 0, 4], [100, 100, 100]))
            item = an_object(len(annotations), image_id, int(rng.integers(1, 4)), x, y, side)
            item |= {"iscrowd": int(rng.random() < 0.15), "num_keypoints": int(rng.random() < 0.8)}
            annotations.append(item)
            for _ in range(12):
                near = an_object(
                    0, image_id, item["category_id"], *(int(v) for v in (x, y, side) + rng.integers(0, 4, 3))
                )
                results.append(found(near, score=float(rng.integers(1, 20) / 20)))
    truth = {
        "images": [{"id": index, "height": 200, "width": 200} for index in range(6)],
        "annotations": annotations,
        "categories": [{"id": label, "name": f"class {label}"} for label in (1, 2, 3)],
    }
    one, other = (EVALUATE[kind][0](truth, results, engine=engine) for engine in ENGINES)
    assert other == pytest.approx(one, abs=1e-9) and 0.05 < one["AP"] < 0.95
    one, other = (per_class(truth, results, kind, engine=engine) for engine in ENGINES)
    assert list(one) == list(other) and all(other[name] == pytest.approx(one[name], abs=1e-9) for name in one)


def test_what_would_end_the_process(truth):
    truth["annotations"][0]["segmentation"][0][3] = math.nan
    with pytest.raises(ValueError, match="object 0 of picture 7: a polygon must be at least 3 pairs of finite numbers"):
        evaluate_masks(truth, [found(truth["annotations"][1])])


def test_masks_need_sizes_and_run_lengths(truth):
    polygon = truth["annotations"][0]["segmentation"]
    with pytest.raises(ValueError, match="detection of picture 7: a mask must be run lengths"):
        evaluate_masks(truth, [found(truth["annotations"][0], segmentation=polygon)])
    crowd = {"size": [10, 10], "counts": [0, 100]}
    truth["annotations"][0]["segmentation"] = crowd
    with pytest.raises(ValueError, match=r"object 0 of picture 7 has run lengths of \[10, 10\] pixels"):
        evaluate_masks(truth, [])
    truth["annotations"][0]["segmentation"] = polygon
    del truth["images"][1]["height"]
    with pytest.raises(ValueError, match="picture 8 of the ground truth has no height and width"):
        evaluate_masks(truth, [])


def test_boxes_and_skeletons_of_another_shape(truth):
    with pytest.raises(ValueError, match=r"a box must be x, y, width, height, got \[1, 2, 3\]"):
        evaluate_boxes(truth, [found(truth["annotations"][0], bbox=[1, 2, 3])])
    with pytest.raises(ValueError, match="has 51 numbers for its keypoints, not 3 times 4"):
        evaluate_keypoints(truth, [], sigmas=[0.1] * 4)


def test_objects_without_keypoints_do_not_count(truth):
    truth["annotations"][0] |= {"keypoints": [0] * 51}
    del truth["annotations"][0]["num_keypoints"]
    table = per_class(truth, [found(truth["annotations"][1])], "keypoints")
    assert table["car"]["AP"] == pytest.approx(1) and table["car"]["num_objects"] == 1


def test_another_skeleton(truth, engine):
    """Four keypoints, a quarter of a standard deviation, as COCO's mean has it, beside their places."""
    from pycocotools.cocoeval import Params

    assert pytest.approx(np.mean(Params("keypoints").kpt_oks_sigmas), abs=1e-4) == MEAN_SIGMA
    for item in truth["annotations"]:
        item["keypoints"], item["num_keypoints"] = item["keypoints"][:12], 4
    results = [found(item) for item in truth["annotations"]]
    assert evaluate_keypoints(truth, results, engine=engine)["AP"] == pytest.approx(1)
    results[1]["keypoints"] = [v + 10 * (i % 3 == 0) for i, v in enumerate(results[1]["keypoints"])]
    expected = math.exp(-(10**2) / (2 * (2 * MEAN_SIGMA) ** 2 * 100**2))  # 0.76: right at 0.5 to 0.75
    assert 0.75 < expected < 0.8
    results = results[1:2]
    truth["annotations"] = truth["annotations"][1:2]
    assert evaluate_keypoints(truth, results, engine=engine)["AP"] == pytest.approx(0.6)
    assert per_class(truth, results, "keypoints", engine=engine)["car"]["AP"] == pytest.approx(0.6)
    given = evaluate_keypoints(truth, results, sigmas=[MEAN_SIGMA] * 4, engine=engine)
    assert given == evaluate_keypoints(truth, results, engine=engine)
    with pytest.raises(ValueError, match="detection of picture 7 has 51 numbers for its keypoints, not 3 times 4"):
        evaluate_keypoints(truth, [found(an_object(0, 7, 3, 0, 0, 10))])


def test_classes_that_share_a_name_or_have_none(truth):
    for category, name in zip(truth["categories"], ("car", "car", None), strict=True):
        category["name"] = name
    assert list(per_class(truth, [], "boxes")) == ["3", "5", "9"]


def test_layout_of_the_table(truth):
    truth["categories"][1]["name"] = "dog" * 20
    lines = format_class_table(per_class(truth, [found(truth["annotations"][1])], "boxes")).splitlines()
    columns = ["AP", "AP", "50", "AP", "75", "small", "medium", "large", "AR"]
    assert lines[0].split() == ["class", "objects", "results", *columns]
    assert lines[1].split() == ["car", "2", "1", "50.5", "50.5", "50.5", "0.0", "-", "100.0", "50.0"]
    assert lines[2].split() == [f"{'dog' * 9}do...", "1", "0", "0.0", "0.0", "0.0", "-", "0.0", "-", "0.0"]
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1  # there is no cat
    assert "small" not in format_class_table(per_class(truth, [], "keypoints"))
    assert format_class_table({}).split()[0] == "class"


def test_unknown_kind_and_engine(truth, monkeypatch):
    with pytest.raises(ValueError, match="unknown kind 'captions': known are boxes, masks, keypoints"):
        per_class(truth, [], "captions")
    with pytest.raises(ValueError, match="unknown engine 'lightning': known are pycocotools, faster-coco-eval"):
        load_engine("lightning")
    real_import = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.startswith("faster_coco_eval"):
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"not installed: pip install 'pix2seq_hf\[fast\]'"):
        load_engine("faster-coco-eval")
