"""Raw annotations in pixels to arrays."""

import numpy as np
import pytest
import torch

from pix2seq_hf.data.annotations import (
    boxes_from_xywh,
    keypoints_from_triples,
    normalize_points,
    polygons_from_parts,
)

SIZE = (100, 200)  # height, width


def test_boxes():
    found = boxes_from_xywh([[20, 10, 40, 50]], SIZE)
    assert found.dtype == torch.float32
    assert np.allclose(found, [[0.1, 0.1, 0.6, 0.3]])
    assert boxes_from_xywh([], SIZE).shape == (0, 4)


def test_parts_are_separated_and_padded():
    found = polygons_from_parts([[[20, 10, 40, 10, 40, 50], [2, 1, 4, 1, 4, 3]]], SIZE, max_points=8)
    assert found.dtype == torch.float32
    assert np.allclose(found[0], [0.1, 0.1, 0.1, 0.2, 0.5, 0.2, -2, -2, 0.01, 0.01, 0.01, 0.02, 0.03, 0.02, -1, -1])


@pytest.mark.parametrize(("max_points", "last"), [(4, [-2, -2]), (5, [0.01, 0.01])])
def test_cut_wherever_it_falls(max_points, last):
    found = polygons_from_parts([[[20, 10, 40, 10, 40, 50], [2, 1, 4, 1, 4, 3]]], SIZE, max_points)
    assert found.shape == (1, 2 * max_points)
    assert np.allclose(found[0, -2:], last)


def test_no_objects_and_no_parts():
    assert polygons_from_parts([], SIZE, 6).shape == (0, 12)
    assert polygons_from_parts([[]], SIZE, 6).tolist() == [[-1] * 12]


def test_keypoints():
    found = keypoints_from_triples([[20, 10, 2, 0, 0, 0, 40, 50, 1]], SIZE, 3)
    assert found.dtype == torch.float32
    assert np.allclose(found, [[0.1, 0.1, -3, -3, 0.5, 0.2]])
    # Without a visibility the place does not count, even where one is given.
    assert keypoints_from_triples([[20, 10, 0]], SIZE, 1).tolist() == [[-3, -3]]
    assert keypoints_from_triples([], SIZE, 17).shape == (0, 34)


def test_a_pixel_at_zero_is_a_place():
    assert keypoints_from_triples([[0, 0, 2]], SIZE, 1).tolist() == [[0, 0]]


def test_reserved_numbers_survive_scaling():
    points = np.array([[-1.0, -2.0, -3.0, 50.0]])
    assert normalize_points(points, SIZE).tolist() == [[-1, -2, -3, 0.25]]
