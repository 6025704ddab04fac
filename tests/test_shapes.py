"""Drawn shapes: boxes fit the pixels, everything follows from the seed, and the folder is a COCO folder."""

import json

import numpy as np
import pytest

from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.rows import load_record
from pix2seq_hf.data.shapes import SHAPE_CLASSES, draw_shapes, shape_generator, write_shapes


def draw(index, **options):
    return draw_shapes(shape_generator(0, "train", index), **options)


def test_the_seed_decides():
    first, objects = draw(3)
    again, same_objects = draw(3)
    other, _ = draw(4)
    assert np.array_equal(first, again) and objects == same_objects
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, draw_shapes(shape_generator(0, "val", 3))[0])
    assert not np.array_equal(first, draw_shapes(shape_generator(1, "train", 3))[0])


def test_variety():
    scenes = [draw(index)[1] for index in range(60)]
    assert {item.label for scene in scenes for item in scene} == set(SHAPE_CLASSES)
    assert {len(scene) for scene in scenes} == {1, 2, 3, 4, 5}
    areas = [item.area for scene in scenes for item in scene]
    assert max(areas) > 8 * min(areas)


@pytest.mark.parametrize("image_size", [(128, 128), (96, 200)])
def test_boxes_lie_inside_and_are_filled(image_size):
    for index in range(30):
        picture, objects = draw(index, image_size=image_size)
        assert picture.size == image_size[::-1] and picture.mode == "RGB"
        for item in objects:
            left, top, width, height = item.box_xywh
            assert left >= 0 and top >= 0 and width > 0 and height > 0
            assert left + width <= image_size[1] and top + height <= image_size[0]
            assert 0.2 * width * height <= item.area <= width * height


def test_boxes_are_where_the_shape_is():
    """A single shape differs from the background inside its box and nowhere else, noise and clutter apart."""
    checked = 0
    for index in range(40):
        picture, objects = draw(index, max_objects=1, size_range=(0.4, 0.6))
        left, top, width, height = objects[0].box_xywh
        if left < 4 or top < 4 or left + width > 124 or top + height > 124:
            continue
        pixels = np.asarray(picture, dtype=float)
        rows = [np.abs(np.diff(pixels[row, left : left + width], axis=0)).max() for row in (top - 3, top + height // 2)]
        checked += rows[1] > 2 * rows[0]
    assert checked >= 10


def test_folder(tmp_path):
    path = write_shapes(tmp_path, "val", 4, seed=7, image_size=(64, 96), max_objects=3)
    assert path == tmp_path / "annotations/instances_val.json"
    split = read_coco(tmp_path, "val")
    assert split.id2label == SHAPE_CLASSES and len(split.dataset) == 4
    record = load_record(split.dataset[2])
    picture, objects = draw_shapes(shape_generator(7, "val", 2), image_size=(64, 96), max_objects=3)
    assert np.array_equal(record["image"].permute(1, 2, 0), picture)
    assert record["labels"].tolist() == [item.label for item in objects]
    left, top, width, height = objects[0].box_xywh
    expected = [top / 64, left / 96, (top + height) / 64, (left + width) / 96]
    np.testing.assert_allclose(record["boxes_yxyx"][0], expected, atol=1e-6)
    annotations = json.loads(path.read_text())["annotations"]
    assert [item["id"] for item in annotations] == list(range(1, len(annotations) + 1))
