"""visualization.py: boxes where they belong, stable colours, labels that do not cover each other."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from pix2seq_hf.visualization import (
    HIDDEN_SHARE,
    Rectangle,
    class_color,
    clip_box,
    draw_detections,
    label_texts,
    line_width,
    place_labels,
    type_size,
)


def gray_picture(width=200, height=100):
    return Image.new("RGB", (width, height), (90, 90, 90))


def test_outline_lies_on_the_box():
    box = (50, 40, 150, 90)
    drawn = np.asarray(draw_detections(gray_picture(), [box], [3]))
    color = list(class_color(3))
    for x, y in [(50, 60), (149, 60), (100, 40), (100, 89)]:
        assert drawn[y, x].tolist() == color, (x, y)
    assert drawn[65, 100].tolist() == [90, 90, 90]  # the object itself stays as it is
    assert drawn[95, 20].tolist() == [90, 90, 90]


def test_picture_is_copied_and_keeps_its_size():
    picture = gray_picture()
    before = picture.tobytes()
    drawn = draw_detections(picture, [(10, 10, 50, 50)], [1], [0.5], {1: "person"})
    assert picture.tobytes() == before and drawn.size == picture.size and drawn.mode == "RGB"
    assert drawn.tobytes() != before


def test_tensors_arrays_and_lists_give_the_same_drawing():
    boxes, labels, scores = [[10.0, 20.0, 60.0, 80.0], [5.0, 5.0, 90.0, 30.0]], [1, 18], [0.9, 0.25]
    names = {1: "person", 18: "dog"}
    drawings = [
        draw_detections(gray_picture(), kind(boxes), kind(labels), kind(scores), names).tobytes()
        for kind in (list, np.array, torch.tensor)
    ]
    assert drawings[0] == drawings[1] == drawings[2]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_mode_is_drawn_on(mode):
    drawn = draw_detections(gray_picture().convert(mode), [(10, 10, 50, 50)], [1])
    assert drawn.mode == "RGB" and drawn.getpixel((10, 30)) == class_color(1)


def test_nothing_found_gives_the_picture_itself():
    assert draw_detections(gray_picture(), [], []).tobytes() == gray_picture().tobytes()
    assert draw_detections(gray_picture(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).size == (200, 100)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (16, 16), (4000, 3000)])
def test_any_size_is_drawn_on(size):
    boxes = [(0, 0, *size), (0.2, 0.2, 0.4, 0.4), (size[0] - 1, size[1] - 1, size[0], size[1])]
    assert draw_detections(gray_picture(*size), boxes, [1, 2, 3], [0.1, 0.2, 0.3]).size == size


def test_boxes_are_cut_turned_and_left_out():
    assert clip_box((-10, 5, 500, 20), (100, 50)) == (0, 5, 100, 20)
    assert clip_box((60, 40, 20, 10), (100, 50)) == (20, 10, 60, 40)
    assert clip_box((30, 20, 30, 20), (100, 50)) == (30, 20, 31, 21)
    assert clip_box((100, 50, 100, 50), (100, 50)) == (99, 49, 100, 50)
    assert clip_box((110, 0, 120, 10), (100, 50)) is None
    for bad in (math.nan, math.inf):
        assert clip_box((bad, 0, 10, 10), (100, 50)) is None
        assert draw_detections(gray_picture(), [(bad, 0, 10, 10)], [1]).tobytes() == gray_picture().tobytes()


def test_numbers_must_agree():
    with pytest.raises(ValueError, match="2 boxes, 1 labels and 1 scores"):
        draw_detections(gray_picture(), [(0, 0, 1, 1)] * 2, [1], [0.5])


def test_colours_are_stable_bright_and_differ_between_neighbours():
    colors = [class_color(label) for label in range(1, 91)]
    assert colors[0] == class_color(1) == (140, 228, 106)  # the same in every release
    for color, following in itertools.pairwise(colors):
        assert math.dist(color, following) > 100
        assert 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2] > 90  # black letters are readable on it
    assert len(set(colors)) == len(colors)


def test_label_texts():
    assert label_texts(1, 0.876, {1: "person"}) == ["person 0.88", "person"]
    assert label_texts(7, None, {1: "person"}) == ["class 7"]
    assert label_texts(1, None, {1: "two\nlines"}) == ["two lines"]
    assert len(label_texts(1, None, {1: "x" * 500})[0]) == 28


def test_lines_and_type_grow_with_the_picture():
    assert line_width((100, 100)) == 1 and line_width((640, 480)) == 2 and line_width((4000, 3000)) == 12
    assert type_size((100, 100)) == 9 and 13 < type_size((640, 480)) < 16 and 80 < type_size((4000, 3000)) < 100


def test_single_label_stands_on_its_box_or_inside_at_the_top():
    [(choice, place)] = place_labels([Rectangle(50, 40, 120, 90)], [[(40, 10)]], (200, 100))
    assert choice == 0 and place == (50, 30, 90, 40)
    [(_, place)] = place_labels([Rectangle(0, 0, 200, 100)], [[(40, 10)]], (200, 100))
    assert place.left >= 0 and place.top >= 0 and place.right <= 200 and place.bottom <= 100


def test_labels_of_a_crowd_do_not_cover_each_other():
    rng = np.random.default_rng(0)
    size = (640, 480)
    corners = rng.uniform((0, 150), (560, 300), (35, 2))
    boxes = [Rectangle(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, rng.uniform(8, 80, (35, 2)))]
    chosen = place_labels(boxes, [[(60, 14), (36, 14)]] * len(boxes), size)
    places = [place for _, place in filter(None, chosen)]
    assert len(places) > 25  # most are labelled
    for index, place in enumerate(places):
        covered = sum(place.overlap(other) for other in places[:index])
        assert covered <= 2 * HIDDEN_SHARE * place.area
        assert 0 <= place.left and place.right <= size[0] and 0 <= place.top and place.bottom <= size[1]


def test_identical_boxes_get_different_labels():
    chosen = place_labels([Rectangle(50, 40, 120, 90)] * 3, [[(40, 10)]] * 3, (200, 150))
    places = [place for _, place in chosen]
    assert all(a.overlap(b) == 0 for a, b in itertools.combinations(places, 2))
