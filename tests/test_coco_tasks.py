"""Polygons, keypoints and captions of COCO folders."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.rows import TASK_FEATURES, load_record
from pix2seq_hf.processing_pix2seq import TASKS

BOX = [10, 5, 20, 10]
TRIANGLE, SQUARE = [10, 5, 30, 5, 20, 15], [12, 6, 14, 6, 14, 8, 12, 8]
CONTENT = {
    "instances": {
        "images": [{"id": 9, "file_name": "nine.png", "width": 40, "height": 20}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 1, "bbox": BOX, "iscrowd": 0, "segmentation": [TRIANGLE, SQUARE]},
            {"id": 2, "image_id": 9, "category_id": 3, "bbox": [0, 0, 4, 4], "segmentation": [SQUARE]},
            {
                "id": 3, "image_id": 9, "category_id": 1, "bbox": [0, 0, 40, 20], "iscrowd": 1,
                "segmentation": {"size": [20, 40], "counts": [0, 800]},
            },
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
    },
    "person_keypoints": {
        "images": [{"id": 9}],
        "annotations": [{"id": 1, "image_id": 9, "keypoints": [20, 10, 2, 0, 0, 0], "num_keypoints": 1}],
        "categories": [{"id": 1, "name": "person"}],
    },
    "captions": {
        "images": [{"id": 9}],
        "annotations": [
            {"id": 8, "image_id": 9, "caption": "A  person\nnear a car. "},
            {"id": 9, "image_id": 9, "caption": " "},
            {"id": 10, "image_id": 9, "caption": "Red."},
        ],
    },
}  # fmt: skip
ALL = list(TASK_FEATURES)


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


def read(folder, tasks=ALL):
    return read_coco(folder, "train", tasks=tasks, num_keypoints=2)


def test_every_task_says_what_it_reads():
    assert set(TASK_FEATURES) == set(TASKS)


def test_one_record_joins_the_three_files(write):
    split = read(write())
    record = load_record(split.dataset[0], max_points_per_object=8, num_keypoints=2)
    first, second, crowd = record["polygons_yx"].unflatten(-1, (8, 2))
    height, width = 20, 40
    expected = [[5, 10], [5, 30], [15, 20], [-2 * height, -2 * width], [6, 12], [6, 14], [8, 14], [8, 12]]
    torch.testing.assert_close(first, torch.tensor(expected) / torch.tensor([height, width]))
    assert second[4:].eq(-1).all() and crowd.eq(-1).all()
    assert np.allclose(record["keypoints_yx"], [[0.5, 0.5, -3, -3], [-3] * 4, [-3] * 4])
    assert record["num_keypoints"].tolist() == [1, 0, 0]
    assert record["captions"] == ["A person near a car.", "Red."]
    assert split.keypoint_annotations["annotations"] == CONTENT["person_keypoints"]["annotations"]
    assert len(split.caption_annotations["annotations"]) == 2


def test_only_what_is_asked_for_is_read(write):
    folder = write()
    for kind in ("person_keypoints", "captions"):
        (folder / f"annotations/{kind}_train.json").unlink()
    split = read(folder, ["object_detection"])
    assert not {"polygons_xy", "keypoints_xyv", "captions"} & set(split.dataset.column_names)
    assert split.keypoint_annotations is split.caption_annotations is None
    assert "polygons_yx" in load_record(read(folder, ["instance_segmentation"]).dataset[0])
    with pytest.raises(OSError, match=r"person_keypoints_train\.json: no such file"):
        read(folder, ["keypoint_detection"])


def test_keypoints_may_stand_in_the_instances_file(write):
    def change(content):
        content["instances"]["annotations"][0]["keypoints"] = [20, 10, 2, 0, 0, 0]

    folder = write(change)
    (folder / "annotations/person_keypoints_train.json").unlink()
    split = read(folder)
    assert load_record(split.dataset[0], num_keypoints=2)["num_keypoints"].tolist() == [1, 0, 0]
    (item,) = split.keypoint_annotations["annotations"]
    assert item["num_keypoints"] == 1


def test_run_lengths_of_single_objects_become_outlines(write):
    def change(content):
        content["instances"]["annotations"][1]["segmentation"] = {"size": [20, 40], "counts": [0, 4, 16, 4, 776]}

    record = load_record(read(write(change)).dataset[0], num_keypoints=2)
    points = record["polygons_yx"][1].unflatten(-1, (-1, 2))
    assert points[points[:, 0] >= 0].amax(0).tolist() == pytest.approx([4 / 20, 2 / 40])


def test_no_caption_and_no_keypoints(write):
    def change(content):
        content["captions"]["annotations"] = []
        content["person_keypoints"]["annotations"] = []

    record = load_record(read(write(change)).dataset[0], num_keypoints=2)
    assert record["captions"] == [] and record["keypoints_yx"].eq(-3).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["person_keypoints"]["annotations"][0].update(keypoints=[1, 2, 2]),
            r"person_keypoints_train\.json: annotation 1 has keypoints of 3 numbers; 2 keypoints are 6",
        ),
        (lambda c: c["person_keypoints"]["annotations"][0].pop("keypoints"), "annotation 1 has no keypoints"),
        (
            lambda c: c["person_keypoints"]["annotations"][0]["keypoints"].__setitem__(0, float("nan")),
            "annotation 1 has keypoints that are not finite numbers",
        ),
        (lambda c: c["captions"].pop("annotations"), r"captions_train\.json: not a COCO .*no list 'annotations'"),
    ],
)
def test_bad_annotations_are_named(write, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(write(change))
    assert "\n" not in str(caught.value)
