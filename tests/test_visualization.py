"""visualization.py: boxes, masks, skeletons and captions where they belong, and labels that do not cover each other."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from pix2seq_hf.masks_pix2seq import mask_to_rle
from pix2seq_hf.visualization import (
    CAPTION_PAPER,
    HIDDEN_SHARE,
    MOST_LABEL_SHARE,
    Rectangle,
    add_captions,
    class_color,
    clip_box,
    draw_detections,
    label_texts,
    line_width,
    place_labels,
    point_color,
    type_size,
    wrap_text,
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


def square_mask(left, top, right, bottom, size=(100, 200)):
    mask = np.zeros(size, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def test_masks_tint_the_object_and_nothing_else():
    mask = square_mask(60, 40, 120, 80)
    drawn = np.asarray(draw_detections(gray_picture(), [(55, 35, 125, 85)], [3], masks=[mask])).astype(int)
    color = np.array(class_color(3))
    expected = 90 + 0.45 * (color - 90)
    assert np.abs(drawn[60, 90] - expected).max() <= 1
    assert np.abs(drawn[40, 70] - color).max() < 0.5 * np.abs(expected - color).max()  # the outline's colour is full
    assert drawn[90, 150].tolist() == [90, 90, 90] and drawn[20, 150].tolist() == [90, 90, 90]


def test_tints_do_not_add_up():
    """Where masks lie on each other, the pixel is tinted once, in the colour of the smaller object."""
    masks = [square_mask(20, 20, 180, 95), square_mask(60, 40, 120, 80)]
    boxes = [(20, 20, 180, 95), (60, 40, 120, 80)]
    both = np.asarray(draw_detections(gray_picture(), boxes, [1, 3], masks=masks))
    alone = np.asarray(draw_detections(gray_picture(), boxes[1:], [3], masks=masks[1:]))
    assert both[60, 90].tolist() == alone[60, 90].tolist()


def test_masks_of_all_kinds_give_the_same_drawing():
    mask = square_mask(60, 40, 120, 80)
    kinds = [mask, mask.astype(bool), mask.tolist(), torch.from_numpy(mask), torch.from_numpy(mask).float()]
    drawings = [draw_detections(gray_picture(), [(60, 40, 120, 80)], [3], masks=[kind]) for kind in kinds]
    assert all(drawing.tobytes() == drawings[0].tobytes() for drawing in drawings[1:])


def test_run_lengths_are_masks():
    pytest.importorskip("pycocotools")
    mask = square_mask(60, 40, 120, 80)
    drawings = [
        draw_detections(gray_picture(), [(60, 40, 120, 80)], [3], masks=[kind]) for kind in (mask, mask_to_rle(mask))
    ]
    assert drawings[0].tobytes() == drawings[1].tobytes()


def test_empty_and_full_masks():
    empty, full = square_mask(0, 0, 0, 0), square_mask(0, 0, 200, 100)
    drawn = draw_detections(gray_picture(), [(60, 40, 120, 80)], [3], masks=[empty])
    assert drawn.getpixel((90, 70)) == (90, 90, 90)
    drawn = draw_detections(gray_picture(), [(60, 40, 120, 80)], [3], masks=[full])
    assert drawn.getpixel((199, 99)) == drawn.getpixel((150, 10)) != (90, 90, 90)


def test_masks_and_keypoints_must_fit():
    with pytest.raises(ValueError, match=r"\(10, 10\).*\(100, 200\)"):
        draw_detections(gray_picture(), [(60, 40, 120, 80)], [3], masks=[np.ones((10, 10))])
    with pytest.raises(ValueError, match="2 masks and 1 sets of keypoints for 1 objects"):
        draw_detections(gray_picture(), [(60, 40, 120, 80)], [3], masks=[None, None])


POINTS = [(60.0, 30.0, 0.9), (100.0, 50.0, 0.9), (140.0, 80.0, 0.9)]


def draw_points(points, skeleton=((0, 1), (1, 2))):
    drawing = draw_detections(gray_picture(), [(0, 0, 200, 100)], [3], keypoints=[points], skeleton=skeleton)
    return np.asarray(drawing).astype(int)


def test_skeleton_joins_its_points():
    drawn = draw_points(POINTS)
    for number, (x, y, _) in enumerate(POINTS):
        assert np.abs(drawn[int(y), int(x)] - point_color(number, 3)).max() < 60
    assert np.ptp(drawn[40, 80]) > 25  # half way along the first line: coloured
    assert draw_points(POINTS, skeleton=())[40, 80].tolist() == [90, 90, 90]


@pytest.mark.parametrize("bad", [(100.0, 50.0, 0.0), (math.nan, 50.0, 0.9), (100.0, math.inf, 0.9)])
def test_points_without_score_or_place_are_left_out(bad):
    drawn = draw_points([POINTS[0], bad, POINTS[2]])
    assert drawn[50, 100].tolist() == [90, 90, 90] and drawn[40, 80].tolist() == [90, 90, 90]
    assert np.ptp(drawn[30, 60]) > 50


def test_points_of_a_low_score_are_hollow():
    picture, box = gray_picture(1000, 1000), [(0, 0, 1000, 1000)]
    centers = []
    for score in (0.9, 0.05):
        points = [(300.0, 300.0, score), (700.0, 700.0, 0.9)]
        drawn = draw_detections(picture, box, [3], keypoints=[points])
        centers.append(sum(drawn.getpixel((300, 300))))
    assert centers[0] > 300 and centers[1] < 100


def test_points_far_outside_and_objects_without_points():
    drawn = draw_points([(1e12, -1e12, 0.9), POINTS[1], POINTS[2]])
    assert drawn.shape == (100, 200, 3)
    box = [(0, 0, 200, 100)]
    plain = draw_detections(gray_picture(), box, [3]).tobytes()
    assert draw_detections(gray_picture(), box, [3], keypoints=[None]).tobytes() == plain
    assert draw_detections(gray_picture(), box, [3], keypoints=[[]]).tobytes() == plain


def test_captions_stand_under_the_picture():
    picture = gray_picture()
    drawn = draw_detections(picture, [], [], captions=["a dog on a street"])
    assert drawn.width == 200 and drawn.height > 100
    assert drawn.crop((0, 0, 200, 100)).tobytes() == picture.tobytes()
    strip = np.asarray(drawn)[100:]
    assert strip[-1, -1].tolist() == list(CAPTION_PAPER) and strip.max() > 200
    more = add_captions(picture, ["a dog on a street", "a cat"])
    assert more.height > drawn.height


@pytest.mark.parametrize("captions", [(), [""], [" \n ", ""]])
def test_no_captions_leave_the_picture_as_it_is(captions):
    assert draw_detections(gray_picture(), [], [], captions=captions).size == (200, 100)


@pytest.mark.parametrize("width", [1, 20, 100, 640])
def test_long_captions_are_wrapped_inside_any_width(width):
    text = "a very long caption about " + "x" * 300 + " and much more " * 30
    drawn = add_captions(gray_picture(width, 50), [text])
    assert drawn.width == width and 50 < drawn.height < 1000


def test_lines_of_a_caption_are_as_wide_as_they_may_be():
    text = "a very long caption about " + "x" * 300 + " and much more"
    font = ImageFont.load_default(12)
    lines = wrap_text(text, font, 150)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(50 < font.getlength(line) <= 150 for line in lines[:-1])


def test_tiny_pictures_keep_room_for_the_picture():
    """Thirty labels would cover a picture of 100 pixels: only the largest objects get one."""
    boxes = [Rectangle(index, index, 100, 80) for index in range(30)]
    chosen = place_labels(boxes, [[(60, 11)]] * 30, (100, 80))
    labelled = [index for index, choice in enumerate(chosen) if choice is not None]
    assert 1 <= len(labelled) <= MOST_LABEL_SHARE * 100 * 80 / (60 * 11) and labelled == list(range(len(labelled)))


def test_labels_keep_off_keypoints():
    box = Rectangle(50, 40, 150, 90)
    [(_, usual)] = place_labels([box], [[(40, 10)]], (200, 100))
    eyes = [((usual.left + usual.right) / 2 + shift, usual.top + 5) for shift in range(-3, 4)]
    [(_, other)] = place_labels([box], [[(40, 10)]], (200, 100), eyes)
    assert other.overlap(usual) == 0
