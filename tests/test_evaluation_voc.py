"""VOC's average precision on cases worked out by hand, and from VOC folders."""

import math

import numpy as np
import pytest
from PIL import Image

from pix2seq_hf.data.voc import read_voc
from pix2seq_hf.evaluation.boxes import evaluate_boxes
from pix2seq_hf.evaluation.voc import average_precision, evaluate_voc


def make_truth(*objects, categories=("car", "dog")):
    """Objects are (picture, category, box, is difficult)."""
    annotations = [
        {"id": index, "image_id": image_id, "category_id": label, "bbox": list(box), "difficult": int(difficult)}
        for index, (image_id, label, box, difficult) in enumerate(objects)
    ]
    return {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(categories, start=1)],
    }


def find(image_id, label, box, score):
    return {"image_id": image_id, "category_id": label, "bbox": list(box), "score": score}


BOX, OTHER = (10, 10, 40, 40), (100, 10, 40, 40)


class TestAveragePrecision:
    @pytest.mark.parametrize(
        ("is_right", "num_objects", "area", "eleven"),
        [
            ([1, 1], 2, 1, 1),
            ([], 2, 0, 0),
            ([0, 0], 1, 0, 0),
            # Recall 1/2 with precision 1, then 1 with 2/3: the levels 0 to 0.5 and 0.6 to 1.
            ([1, 0, 1], 2, (1 + 2 / 3) / 2, (6 + 5 * 2 / 3) / 11),
            # The precision 1/2 at recall 1/4 counts as the 2/3 that come later.
            ([0, 1, 1], 4, 1 / 2 * 2 / 3, 6 * 2 / 3 / 11),
            ([1] * 3, 10, 0.3, 4 / 11),
        ],
    )
    def test_by_hand(self, is_right, num_objects, area, eleven):
        assert average_precision(np.array(is_right, bool), num_objects) == pytest.approx((area, eleven))


class TestMatching:
    def test_perfect_and_missed(self):
        truth = make_truth((1, 1, BOX, False), (2, 1, BOX, False), (2, 2, OTHER, False))
        numbers = evaluate_voc(truth, [find(1, 1, BOX, 0.5), find(2, 2, OTHER, 0.4)])
        assert numbers == pytest.approx(
            {
                "AP50": 0.75, "AP50_11_points": (6 / 11 + 1) / 2, "AP50/car": 0.5, "AP50/dog": 1,
                "AP50_11_points/car": 6 / 11, "AP50_11_points/dog": 1,
            }
        )  # fmt: skip

    @pytest.mark.parametrize(("width", "expected"), [(20, 1), (19.9, 0), (80, 1), (80.1, 0)])
    def test_half_an_overlap_is_enough(self, width, expected):
        assert evaluate_voc(make_truth((1, 1, BOX, False)), [find(1, 1, (10, 10, width, 40), 1)])["AP50"] == expected

    def test_the_second_result_for_an_object_is_wrong(self):
        truth = make_truth((1, 1, BOX, False), (1, 1, OTHER, False))
        twice = [find(1, 1, BOX, 0.9), find(1, 1, BOX, 0.8), find(1, 1, OTHER, 0.7)]
        assert evaluate_voc(truth, twice)["AP50"] == pytest.approx((1 + 2 / 3) / 2)
        # It does not go to the next object that it overlaps by a half, as it does in COCO's rules.
        near = (18, 10, 40, 40)
        truth = make_truth((1, 1, BOX, False), (1, 1, near, False))
        twice = [find(1, 1, BOX, 0.9), find(1, 1, BOX, 0.8)]
        assert evaluate_voc(truth, twice)["AP50"] == pytest.approx(0.5)
        assert evaluate_boxes(truth, twice)["AP_50"] == pytest.approx(1)

    def test_difficult_objects_do_not_count(self):
        truth = make_truth((1, 1, BOX, False), (1, 1, OTHER, True))
        results = [find(1, 1, OTHER, 0.9), find(1, 1, OTHER, 0.8), find(1, 1, BOX, 0.7)]
        assert evaluate_voc(truth, results)["AP50"] == 1 and evaluate_voc(truth, results[2:])["AP50"] == 1
        truth["annotations"][1] |= {"difficult": 0, "iscrowd": 1}
        assert evaluate_voc(truth, results)["AP50"] == 1
        truth["annotations"][1]["iscrowd"] = 0
        assert evaluate_voc(truth, results)["AP50"] == pytest.approx((1 + 2 / 3) / 2)

    def test_scores_decide_over_all_pictures(self):
        truth = make_truth((1, 1, BOX, False), (2, 1, BOX, False))
        right, wrong = find(1, 1, BOX, 0.5), find(2, 1, OTHER, 0.6)
        assert evaluate_voc(truth, [right, wrong])["AP50"] == pytest.approx(0.25)
        assert evaluate_voc(truth, [right, {**wrong, "score": 0.4}])["AP50"] == pytest.approx(0.5)
        assert evaluate_voc(truth, [right, wrong], image_ids=[1])["AP50"] == 1


class TestBadInput:
    def test_nothing_found_and_nothing_to_find(self):
        numbers = evaluate_voc(make_truth((1, 1, BOX, False)), [])
        assert numbers["AP50"] == numbers["AP50/car"] == 0 and numbers["AP50/dog"] == -1
        for empty in (make_truth(), make_truth((1, 1, BOX, True)), make_truth(categories=())):
            assert evaluate_voc(empty, [find(1, 1, BOX, 1)])["AP50"] == -1

    def test_refused(self):
        truth = make_truth((1, 1, BOX, False))
        with pytest.raises(ValueError, match="picture 9, which the ground truth does not list"):
            evaluate_voc(truth, [find(9, 1, BOX, 1)])
        with pytest.raises(ValueError, match="picture 1 has a number that is not finite: score nan"):
            evaluate_voc(truth, [find(1, 1, BOX, math.nan)])
        assert evaluate_voc(truth, [find(1, 7, BOX, 1)])["AP50"] == 0

    def test_boxes_of_no_size(self):
        assert evaluate_voc(make_truth((1, 1, (5, 5, 0, 0), False)), [find(1, 1, (5, 5, 0, 0), 1)])["AP50"] == 0


OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>
<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"""


def test_a_folder_of_the_original_challenge(tmp_path):
    """Corners are pixels that are counted in: 11 to 20 are ten, and an overlap of 5 of them is just enough."""
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    objects = [("cat", 0, 11, 11, 20, 20), ("cat", 1, 31, 31, 40, 40)]
    names = ("name", "difficult", "x", "y", "right", "bottom")
    text = "".join(OBJECT.format(**dict(zip(names, item, strict=True))) for item in objects)
    source = "<source><database>The VOC2007 Database</database></source>"
    size = "<size><width>50</width><height>50</height><depth>3</depth></size>"
    (tmp_path / "Annotations/1.xml").write_text(f"<annotation>{source}{size}{text}</annotation>")
    Image.new("RGB", (50, 50)).save(tmp_path / "JPEGImages/1.jpg")
    truth = read_voc(tmp_path, "all").annotations
    results = [find(1, 1, (10, 10, 10, 5), 0.8), find(1, 1, (30, 30, 10, 10), 0.9)]
    assert evaluate_voc(truth, results) == dict.fromkeys(
        ("AP50", "AP50_11_points", "AP50/cat", "AP50_11_points/cat"), pytest.approx(1)
    )
    results[0]["bbox"][3] = 4.9
    assert evaluate_voc(truth, results)["AP50"] == 0
