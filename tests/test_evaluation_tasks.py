"""Numbers of masks, keypoints and captions on small cases that can be worked out by hand."""

import numpy as np
import pytest

from pix2seq_hf.evaluation.captions import count_reproduced
from pix2seq_hf.evaluation.keypoints import evaluate_keypoints, keypoint_results
from pix2seq_hf.evaluation.masks import evaluate_masks, mask_results
from pix2seq_hf.masks_pix2seq import mask_to_rle

SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]


def mask_truth():
    return {
        "images": [{"id": 7, "height": 40, "width": 50}],
        "annotations": [
            {"id": 0, "image_id": 7, "category_id": 3, "bbox": [10, 10, 20, 20], "area": 400, "segmentation": [SQUARE]}
        ],
        "categories": [{"id": 3, "name": "car"}],
    }


def square_mask(width):
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 10 : 10 + width] = 1
    return mask_to_rle(mask)


class TestMasks:
    @pytest.mark.parametrize(
        ("width", "label", "expected"), [(20, 3, 1.0), (13, 3, 0.4), (9, 3, 0.0), (20, 4, 0.0), (20, 0, 0.0)]
    )
    def test_overlap_decides(self, width, label, expected):
        """13 of 20 columns are an IoU of 0.65: right for the thresholds 0.5, 0.55, 0.6 and 0.65."""
        results = mask_results(7, [label], [0.9], [square_mask(width)])
        assert evaluate_masks(mask_truth(), results)["AP"] == pytest.approx(expected, abs=1e-6)

    def test_nothing_found(self):
        assert set(evaluate_masks(mask_truth(), []).values()) == {0.0}

    def test_wrong_size_and_picture(self):
        wide = mask_to_rle(np.ones((40, 51), np.uint8))
        with pytest.raises(ValueError, match=r"a mask of picture 7 is of \[40, 51\] pixels, the picture of \[40, 50\]"):
            evaluate_masks(mask_truth(), mask_results(7, [3], [0.9], [wide]))
        with pytest.raises(ValueError, match="picture 8, which the ground truth does not list"):
            evaluate_masks(mask_truth(), mask_results(8, [3], [0.9], [square_mask(20)]))


POINTS = np.random.default_rng(0).uniform(20, 80, (17, 2))


def keypoint_truth(num_keypoints=17):
    triples = np.concatenate([POINTS[:num_keypoints], np.full((num_keypoints, 1), 2)], -1).reshape(-1)
    return {
        "images": [{"id": 7, "height": 100, "width": 100}],
        "annotations": [
            {
                "id": 5, "image_id": 7, "category_id": 1, "bbox": [20, 20, 60, 60], "area": 3600, "iscrowd": 0,
                "keypoints": triples.tolist(), "num_keypoints": num_keypoints,
            }
        ],
        "categories": [{"id": 1, "name": "person"}],
    }  # fmt: skip


def found(shift=0.0, label=1, score=0.9):
    return keypoint_results(7, [label], [score], POINTS[None] + shift, np.ones((1, 17), bool))


class TestKeypoints:
    def test_distance_decides(self):
        perfect, near, far = (evaluate_keypoints(keypoint_truth(), found(shift))["AP"] for shift in (0.0, 4.0, 40.0))
        assert perfect == pytest.approx(1) and 0 < near < 1 and far == 0

    def test_other_labels_and_invisible(self):
        assert found(label=2) == []
        (result,) = keypoint_results(7, [1], [0.5], POINTS[None], np.arange(17)[None] % 2 == 0)
        assert result["keypoints"][:3] == [*POINTS[0], 1.0] and result["keypoints"][5] == 0.0

    def test_another_skeleton(self):
        results = keypoint_results(7, [1], [0.9], POINTS[None, :4], np.ones((1, 4), bool))
        assert evaluate_keypoints(keypoint_truth(4), results, sigmas=[0.05] * 4)["AP"] == pytest.approx(1)

    def test_not_a_number(self):
        with pytest.raises(ValueError, match="picture 7 has a number that is not finite"):
            evaluate_keypoints(keypoint_truth(), found(float("nan")))


class TestCaptions:
    def test_word_for_word(self):
        references = {1: ["A dog runs.", "A  brown dog "], 2: ["Two cats"], 3: ["a bus"]}
        counts = count_reproduced({1: "A brown dog", 2: "Two cats.", 3: "A bus"}, references)
        assert counts == {"reproduced": 1, "num_captions": 3}

    def test_without_reference(self):
        with pytest.raises(ValueError, match="picture 4 has no caption"):
            count_reproduced({4: "a bus"}, {1: ["a bus"]})
