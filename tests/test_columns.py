"""data/columns.py: which column means what, what the numbers of a box mean, and how classes are numbered."""

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Features, Image, List, Value

from pix2seq_hf.data.columns import Columns, find_box_format, find_columns, find_names, to_xyxy, value_at
from pix2seq_hf.data.problems import Problems

FOUR = List(List(Value("float64"), length=4))
CLASSES = ClassLabel(names=["cat", "dog"])
# As `detection-datasets/coco` states its features.
HUB_COCO = Features(
    {
        "image_id": Value("int64"),
        "image": Image(),
        "width": Value("int64"),
        "height": Value("int64"),
        "objects": datasets.Sequence(
            {
                "bbox_id": Value("int64"),
                "category": CLASSES,
                "bbox": datasets.Sequence(Value("float64"), length=4),
                "area": Value("float64"),
            }
        ),
    }
)


def test_columns_of_the_hub_are_found():
    found = find_columns(HUB_COCO, None, "here")
    assert (found.image, found.image_id, found.width, found.height) == ("image", "image_id", "width", "height")
    assert (found.boxes, found.labels, found.areas) == ("objects.bbox", "objects.category", "objects.area")
    assert found.box_format is found.captions is found.polygons is None
    assert set(found.used()) == {"image_id", "width", "height", "objects"}


def test_lists_of_structs_and_plain_columns_are_found():
    structs = Features(
        {"photo": Image(), "objects": List({"bbox_xyxy": List(Value("int64")), "class": Value("string")})}
    )
    found = find_columns(structs, None, "here")
    assert (found.image, found.boxes, found.labels, found.box_format) == (
        "photo", "objects.bbox_xyxy", "objects.class", "xyxy",
    )  # fmt: skip
    row = {"objects": [{"class": "a"}, None, {"class": "b"}]}
    assert value_at(row, "objects.class") == ["a", None, "b"]
    plain = Features({"image": Image(), "bboxes": FOUR, "label": List(Value("int64")), "labels": List(CLASSES)})
    assert find_columns(plain, None, "here").labels == "labels"  # the one whose classes have names


def test_what_the_user_says_wins():
    features = Features({"a": Image(), "b": Image(), "faces": {"rect": FOUR}, "objects": {"bbox": FOUR}})
    with pytest.raises(ValueError, match=r"^here: no column of pictures: say which with columns\.image; there are a"):
        find_columns(features, None, "here")
    found = find_columns(features, {"image": "b", "boxes": "faces.rect", "box_format": "cxcywh"}, "here")
    assert (found.image, found.boxes, found.box_format) == ("b", "faces.rect", "cxcywh")
    for columns, message in (
        ({"boxs": "x"}, "columns: unknown key 'boxs': did you mean 'boxes'?"),
        ({"boxes": "faces.box"}, r"here: has no column 'faces.box' \(columns.boxes\): there are a, b, faces.rect"),
        ({"box_format": "ltrb"}, "columns: box_format 'ltrb' must be one of xyxy, xywh"),
    ):
        with pytest.raises(ValueError, match=message):
            find_columns(features, columns, "here")


def random_boxes(box_format, units, num_boxes=200, seed=0):
    """Boxes of random pictures in a format, and the sizes of the pictures."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(100, 600, (num_boxes, 2)).astype(float)
    corners = np.sort(rng.uniform(0, 1, (num_boxes, 2, 2)), axis=1).reshape(num_boxes, 4)  # x0, y0, x1, y1
    corners *= 1 if units == "normalized" else np.tile(sizes[:, ::-1], 2)
    first, last = corners[:, :2], corners[:, 2:]
    boxes = {
        "xyxy": corners,
        "xywh": np.concatenate([first, last - first], 1),
        "yxyx": corners[:, [1, 0, 3, 2]],
        "cxcywh": np.concatenate([(first + last) / 2, last - first], 1),
    }
    return boxes[box_format], sizes, corners


@pytest.mark.parametrize("units", ["pixels", "normalized"])
@pytest.mark.parametrize("box_format", ["xyxy", "xywh"])
def test_the_format_of_boxes_is_found_and_said(box_format, units):
    boxes, sizes, corners = random_boxes(box_format, units)
    problems = Problems()
    assert find_box_format(boxes, sizes, None, Columns("image"), "here", problems) == (box_format, units)
    [problem] = problems.found
    assert problem.message.startswith(f"here: boxes are taken for {box_format} in {units} (")
    assert "would be impossible as" in problem.message
    np.testing.assert_allclose(to_xyxy(boxes, box_format), corners)


@pytest.mark.parametrize("box_format", ["yxyx", "cxcywh"])
def test_other_formats_have_to_be_said(box_format):
    boxes, sizes, corners = random_boxes(box_format, "pixels")
    with pytest.raises(ValueError, match=rf"format of its boxes is not clear .*{box_format}.* would fit") as caught:
        find_box_format(boxes, sizes, None, Columns("image"), "here", Problems())
    assert "\n" not in str(caught.value)
    problems = Problems()
    said = Columns("image", box_format=box_format)
    assert find_box_format(boxes, sizes, None, said, "here", problems) == (box_format, "pixels")
    assert not problems.found
    np.testing.assert_allclose(to_xyxy(boxes, box_format), corners)


def test_an_impossible_format_is_refused_and_a_doubtful_one_is_said():
    boxes, sizes, _ = random_boxes("xywh", "pixels")
    with pytest.raises(ValueError, match=r"% of the boxes are impossible as xyxy in pixels: correct columns\.box"):
        find_box_format(boxes, sizes, None, Columns("image", box_format="xyxy"), "here", Problems())
    doubtful, one_size = np.array([[10.0, 10.0, 30.0, 40.0]]), np.array([[100.0, 100.0]])
    problems = Problems()
    assert find_box_format(doubtful, one_size, None, Columns("image"), "here", problems)[0] == "xywh"
    assert "xyxy is possible too" in problems.found[0].message
    areas = np.array([30.0 * 40.0])  # larger than the box from 10, 10 to 30, 40
    problems = Problems()
    find_box_format(doubtful, one_size, areas, Columns("image"), "here", problems)
    assert "would be impossible as xyxy" in problems.found[0].message


def test_classes_are_numbered_from_one():
    assert find_names(List(CLASSES), Columns("image", labels="x"), None, "here") == {0: (1, "cat"), 1: (2, "dog")}
    gaps = ClassLabel(names=["cat", "unused 2", "dog"])
    assert find_names(gaps, Columns("image", labels="x"), None, "here") == {0: (1, "cat"), 2: (3, "dog")}
    raw = Columns("image", labels="x", label_ids="raw")
    background = ClassLabel(names=["background", "cat"])
    assert find_names(background, raw, None, "here") == {1: (1, "cat")}
    assert find_names(Value("int64"), raw, [7, 3, 7, None], "here") == {3: (3, "3"), 7: (7, "7")}
    named = Columns("image", labels="x", names=["cat", "dog"])
    assert find_names(Value("int64"), named, None, "here") == {0: (1, "cat"), 1: (2, "dog")}
    assert find_names(Value("string"), named, None, "here") == {"cat": (1, "cat"), "dog": (2, "dog")}
    texts = Columns("image", labels="x")
    assert find_names(Value("string"), texts, ["dog", "cat"], "here") == {"cat": (1, "cat"), "dog": (2, "dog")}
    assert find_names(None, Columns("image"), None, "here") == {None: (1, "object")}
    with pytest.raises(ValueError, match=r"names of the classes are not known before all is read: say columns\.names"):
        find_names(Value("string"), texts, None, "here")
    with pytest.raises(ValueError, match="two classes are named 'cat'"):
        find_names(Value("int64"), Columns("image", labels="x", names=["cat", "cat"]), None, "here")
