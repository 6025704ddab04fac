"""What readers do with annotations that are wrong: mended and counted, or left out and counted, or one line."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.mending import MAX_CAPTION, mend_box
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import TASK_FEATURES, load_record
from pix2seq_hf.evaluation.masks import evaluate_masks
from pix2seq_hf.masks_pix2seq import mask_to_rle

TRIANGLE = [10, 5, 30, 5, 20, 15]
CONTENT = {
    "instances": {
        "images": [{"id": 9, "file_name": "nine.png", "width": 40, "height": 20}],
        "annotations": [
            {
                "id": 1,
                "image_id": 9,
                "category_id": 1,
                "bbox": [10, 5, 20, 10],
                "segmentation": [TRIANGLE],
                "area": 100,
            },
            {"id": 2, "image_id": 9, "category_id": 3, "bbox": [0, 0, 40, 20], "segmentation": [TRIANGLE], "area": 9},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
    },
    "person_keypoints": {
        "images": [{"id": 9}],
        "annotations": [
            {"id": 1, "image_id": 9, "bbox": [10, 5, 20, 10], "keypoints": [20, 10, 2, 0, 0, 0], "num_keypoints": 1},
            {"id": 2, "image_id": 9, "bbox": [0, 0, 40, 20], "keypoints": [20, 10, 2, 1, 1, 1], "num_keypoints": 2},
        ],
        "categories": [{"id": 1, "name": "person"}],
    },
    "captions": {
        "images": [{"id": 9}],
        "annotations": [{"id": 8, "image_id": 9, "caption": "A person."}, {"id": 9, "image_id": 9, "caption": "Red."}],
    },
}


@pytest.fixture
def write(tmp_path):
    """Write a folder whose annotation files were changed by a function; returns the folder."""

    def write_folder(change=lambda content: None):
        content = copy.deepcopy(CONTENT)
        change(content)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.new("RGB", (40, 20)).save(tmp_path / "train/nine.png")
        for kind, part in content.items():
            (tmp_path / f"annotations/{kind}_train.json").write_text(json.dumps(part))
        return tmp_path

    return write_folder


def read(folder, problems=None):
    return read_coco(folder, "train", tasks=list(TASK_FEATURES), num_keypoints=2, problems=problems)


def item(kind="instances", index=0, **fields):
    return lambda content: content[kind]["annotations"][index].update(fields)


def add(kind="instances", **fields):
    return lambda content: content[kind]["annotations"].append({**content[kind]["annotations"][0], **fields})


def number_from_zero(content):
    for category in content["instances"]["categories"]:
        category["id"] -= 1
    for entry in content["instances"]["annotations"]:
        entry["category_id"] -= 1


def test_what_is_good_stays_as_it_is(write):
    problems = Problems()
    split = read(write(), problems)
    assert not problems.found
    assert split.annotations == CONTENT["instances"]
    assert split.keypoint_annotations == CONTENT["person_keypoints"]
    assert split.caption_annotations == CONTENT["captions"]


RLE = {"size": [20, 40], "counts": [0, 4, 16, 4, 776]}
BOTH = [1, 3]  # labels if nothing is left out
# What is changed; the kind of the problem; a part of its message; labels that are left; other checks of the split
MENDED = {
    "box outside": (item(bbox=[50, 5, 4, 4]), "box outside of its picture", "annotation 1 has bbox [50, 5", [3]),
    "box above": (item(bbox=[5, -9, 4, 4]), "box outside of its picture", "left out", [3]),
    "box reaches out": (item(bbox=[30, 5, 20, 4]), "box that reaches out of its picture", "clipped", BOTH),
    "negative corner": (item(bbox=[-8, 5, 20, 4]), "box that reaches out of its picture", "clipped", BOTH),
    "negative size": (item(bbox=[10, 5, -3, 4]), "box of negative size", "annotation 1 has bbox [10, 5, -3, 4]", [3]),
    "no area": (item(bbox=[10, 5, 0, 4]), "box without area", "left out", [3]),
    "box of NaN": (item(bbox=[10, 5, float("nan"), 4]), "box that is not four finite numbers", "left out", [3]),
    "infinite box": (item(bbox=[10, 5, float("inf"), 4]), "box that is not four finite numbers", "left out", [3]),
    "endless box": (item(bbox=[10, 5, 10**400, 4]), "box that is not four finite numbers", "left out", [3]),
    "box of text": (item(bbox=["1", 2, 3, 4]), "box that is not four finite numbers", "left out", [3]),
    "three numbers": (item(bbox=[1, 2, 3]), "box that is not four finite numbers", "left out", [3]),
    "no box": (item(bbox=None), "box that is not four finite numbers", "has bbox None", [3]),
    "unknown category": (item(category_id=5), "object of an unknown category", "has category 5, which is not", [3]),
    "annotation of category 0": (item(category_id=0), "object of an unknown category", "has category 0", [3]),
    "category is a list": (item(category_id=[1]), "object of an unknown category", "has category [1]", [3]),
    "unknown picture": (item(image_id=77), "object of an unknown picture", "is of picture 77, which is not", [3]),
    "id of two lines": (item(id="a\nb", image_id=7), "object of an unknown picture", r"annotation 'a\nb' is", [3]),
    "no id": (lambda content: [item(bbox=None)(content), content["instances"]["annotations"][0].pop("id")],
              "box that is not four finite numbers", "annotation without id has bbox None", [3]),
    "picture is a list": (item(image_id=[9]), "object of an unknown picture", "is of picture [9]", [3]),
    "area of NaN": (item(area=float("nan")), "area that is no number", "that of its box is taken", BOTH),
    "crowd sign": (item(iscrowd="yes"), "crowd sign that is not 0 or 1", "has iscrowd 'yes'", BOTH),
    "same again": (add(), "annotation listed twice", "annotation 1 is listed twice", BOTH),
    "same id": (add(bbox=[1, 1, 2, 2]), "annotation id used twice", "annotation 1 shares its id", [1, 3, 1]),
    "odd polygon": (item(segmentation=[TRIANGLE, [1, 2, 3, 4, 5, 6, 7]]), "unusable polygon", "flat list x, y", BOTH),
    "two points": (item(segmentation=[TRIANGLE, [1, 2, 3, 4]]), "unusable polygon", "needs at least 3 points", BOTH),
    "NaN in a polygon": (item(segmentation=[[float("nan")] * 6, TRIANGLE]), "unusable polygon", "finite", BOTH),
    "numbers as polygon": (item(segmentation=[TRIANGLE, 3]), "unusable polygon", "left out", BOTH),
    "run lengths": (item(segmentation=RLE), "run lengths", "annotation 1 has run lengths: made a polygon", BOTH),
    "wrong number of keypoints": (
        item("person_keypoints", 1, keypoints=[1, 2, 2]), "keypoints of a wrong length",
        "annotation 2 has keypoints of 3 numbers; 2 keypoints are 6", BOTH,
    ),
    "no keypoints": (item("person_keypoints", 1, keypoints=None), "keypoints of a wrong length", "no keypoints", BOTH),
    "keypoints of NaN": (
        item("person_keypoints", 1, keypoints=[float("nan")] * 6), "keypoints that are no numbers", "not finite", BOTH
    ),
    "keypoints twice": (add("person_keypoints"), "keypoints listed twice", "annotation 1 is listed twice", BOTH),
    "keypoints without id": (add("person_keypoints", id=[1]), "keypoints of no object", "annotation [1] is of", BOTH),
    "no text": (item("captions", caption=5), "caption that is no text", "annotation 8 has no text", BOTH),
    "empty caption": (item("captions", caption=" \n"), "empty caption", "annotation 8 has an empty caption", BOTH),
    "long caption": (item("captions", caption="a cat " * 1000), "caption that is too long", "5,999 characters", BOTH),
    "half characters": (
        item("captions", caption="A \ud83d."), "caption with broken characters", "annotation 8 has a caption with", BOTH
    ),
    "category 0": (number_from_zero, "category 0", "numbers categories from 0, which means padding", BOTH),
    "picture twice": (
        lambda content: content["instances"]["images"].append(content["instances"]["images"][0]),
        "picture listed twice", "picture 9 is listed twice", BOTH,
    ),
    "category twice": (
        lambda content: content["instances"]["categories"].append({"id": 3, "name": "car"}),
        "category listed twice", "category 'car', id 3, is listed twice", BOTH,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MENDED)
def test_what_is_mended_is_counted(write, case):
    change, kind, words, labels = MENDED[case]
    folder, problems = write(change), Problems()
    if case == "category 0":
        labels = [1, 3]
    split = read(folder, problems)
    assert problems.counts() == {kind: 1} and not problems.errors
    message = problems.found[0].message
    assert words in message and "\n" not in message and message.startswith(str(folder / "annotations"))
    assert [entry["category_id"] for entry in split.annotations["annotations"]] == labels
    record = load_record(split.dataset[0], num_keypoints=2)
    assert record["labels"].tolist() == labels
    assert len({entry["id"] for entry in split.annotations["annotations"]}) == len(labels)
    for field in ("boxes_yxyx", "areas", "polygons_yx", "keypoints_yx"):
        assert torch.isfinite(record[field]).all() and len(record[field]) == len(labels)
    assert record["boxes_yxyx"].min() >= 0 and record["boxes_yxyx"].max() <= 1
    for written in (split.annotations, split.keypoint_annotations, split.caption_annotations):
        json.dumps(written, allow_nan=False, ensure_ascii=False).encode()


def test_details_of_mending(write):
    def first(change):
        split = read(write(change))
        return split, split.annotations["annotations"][0], split.dataset[0]

    assert first(item(bbox=[30, -5, 20, 9]))[1]["bbox"] == [30, 0, 10, 4]
    assert first(item(area=float("nan")))[1]["area"] == 200
    _, entry, row = first(item(segmentation=[TRIANGLE, [1, 2, 3, 4], [2, 2, 4, 2, 4, 4]]))
    assert entry["segmentation"] == row["polygons_xy"][0] == [TRIANGLE, [2, 2, 4, 2, 4, 4]]
    _, entry, row = first(item(segmentation=RLE))
    assert entry["segmentation"] == RLE and sorted(row["polygons_xy"][0][0]) == [0, 0, 0, 0, 2, 2, 4, 4]
    split, _, row = first(item("person_keypoints", 1, keypoints=[1, 2, 2]))
    assert row["keypoints_xyv"] == [[20, 10, 2, 0, 0, 0], []] and row["num_keypoints"] == [1, 0]
    assert [each["id"] for each in split.keypoint_annotations["annotations"]] == [1]
    split, _, row = first(item("captions", caption="a cat " * 1000))
    assert len(row["captions"][0]) <= MAX_CAPTION and row["captions"][0].startswith("a cat a cat")
    assert split.caption_annotations["annotations"][0]["caption"] == row["captions"][0]
    split = read(write(number_from_zero))
    assert split.id2label == {1: "person", 3: "car"}
    assert [category["id"] for category in split.annotations["categories"]] == [1, 3]
    # An object that is left out takes its keypoints with it.
    split = read(write(item(bbox=[10, 5, 0, 4])))
    assert [each["id"] for each in split.keypoint_annotations["annotations"]] == [2]


def test_chinese_captions_are_captions(write):
    text = "一只猫坐在红色的椅子上。"
    problems = Problems()
    split = read(write(item("captions", caption=text)), problems)
    assert split.dataset[0]["captions"][0] == text and not problems.found


@pytest.mark.parametrize(
    "segmentation",
    [
        None, [], 7, {}, {"size": [20, 40]}, {"size": [3, 3], "counts": [9]}, {"size": 3, "counts": "a"},
        {"size": [20, 40], "counts": [3]}, {"size": [20, 40], "counts": [800, None]},
        {"size": [20, 40], "counts": [800]}, {"size": [20, 40], "counts": "\ud83d"},
        {"size": [20, 40], "counts": "zzz"}, [[1, 2]],
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_crowd", [0, 1])
def test_objects_without_outline(write, segmentation, is_crowd):
    """They stay for the other tasks, and evaluation of masks does not fall over them."""
    problems = Problems()
    split = read(write(item(segmentation=segmentation, iscrowd=is_crowd)), problems)
    row, entry = split.dataset[0], split.annotations["annotations"][0]
    assert row["labels"] == BOTH and row["polygons_xy"] == [[], [TRIANGLE]]
    result = {"image_id": 9, "category_id": 1, "segmentation": mask_to_rle(np.ones((20, 40))), "score": 1.0}
    evaluate_masks(split.annotations, [result])
    if segmentation == {"size": [20, 40], "counts": [800]} and is_crowd:
        assert not problems.found and entry["segmentation"] == segmentation
    else:
        assert "object without outline" in problems.counts()
        assert entry["segmentation"] == [[10, 5, 30, 5, 30, 15, 10, 15]]


def test_crowds_are_kept(write):
    problems = Problems()
    split = read(write(item(iscrowd=1, segmentation=RLE)), problems)
    assert not problems.found and split.dataset[0]["is_crowd"] == [True, False]
    assert split.dataset[0]["polygons_xy"][0] == [] and split.annotations["annotations"][0]["segmentation"] == RLE


def test_no_annotations(write):
    problems = Problems()
    split = read(write(lambda content: content["instances"]["annotations"].clear()), problems)
    assert problems.counts() == {"no annotations": 1} and split.dataset[0]["labels"] == []


def test_another_number_of_keypoints_in_every_object(write):
    with pytest.raises(ValueError, match=r"annotation 2 has keypoints of 6 numbers; 17 .*no annotation has that many"):
        read_coco(write(), "train", tasks=["keypoint_detection"])


def test_one_pass_finds_everything(write):
    def change(content):
        content["instances"]["images"] += [
            {"id": 10, "file_name": "ten.png", "width": 4, "height": 4},
            {"id": 11, "file_name": "eleven.png", "width": 4, "height": 0},
            {"id": 9, "file_name": "another.png", "width": 4, "height": 4},
            {"id": 12, "file_name": "../twelve.png", "width": 4, "height": 4},
        ]
        content["instances"]["categories"] += [{"id": 900, "name": "late"}, {"id": 1, "name": "human"}]
        item(bbox=[50, 5, 4, 4])(content)
        item(index=1, category_id=900)(content)
        item("captions", caption="")(content)

    folder, problems = write(change), Problems(keep_going=True)
    (folder / "annotations/person_keypoints_train.json").write_text('{"images": [')
    split = read(folder, problems)
    assert split.dataset["image_id"] == [9] and split.dataset[0]["labels"] == []
    assert sorted(problem.kind for problem in problems.errors) == [
        "category id used twice", "category out of range", "missing picture", "picture id used twice",
        "picture outside of the folder", "picture without size", "unusable annotation file",
    ]  # fmt: skip
    repairs = [problem.kind for problem in problems.found if not problem.is_error]
    assert sorted(repairs) == [
        "box outside of its picture", "empty caption", "no annotations", "object of an unknown category",
    ]  # fmt: skip


def test_boxes_at_the_border_are_not_touched():
    for box in ([0, 0, 40, 20], [0, 0, 40.0001, 20], [-0.5, 0, 40, 21], [39.5, 19.5, 0.5, 0.5]):
        assert mend_box(box, (20, 40)) == (box, None) and mend_box(box, (20, 40))[0] is box
    assert mend_box([-1.5, 0, 42, 20], (20, 40)) == ([0, 0, 40, 20], "box that reaches out of its picture")
