"""Raw COCO annotations to arrays, against the reference's reading (golden/tasks, section 1)."""

import json

import numpy as np
import pytest
from PIL import Image

from pix2seq_hf.data.coco import read_coco


@pytest.fixture
def folder(golden_dir, tmp_path):
    """The recorded annotations as a COCO folder; its pictures are blank."""
    raw = json.loads((golden_dir / "tasks/annotations_raw.json").read_text())
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    for image in raw["images"]:
        image["file_name"] = f"{image['id']}.png"
        Image.new("L", (image["width"], image["height"])).save(tmp_path / "train2017" / image["file_name"])
    content = {"images": raw["images"], "annotations": raw["instances"], "categories": raw["categories"]}
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(content))
    return tmp_path


def test_boxes_and_labels_are_equal(folder, golden_dir, parity_report):
    golden = np.load(golden_dir / "tasks/serialization_object_detection.npz")
    rows = read_coco(folder, "train2017", image_ids=golden["default/image_ids"].tolist()).dataset
    largest = 0.0
    for row, size, boxes, labels in zip(
        rows, golden["default/orig_image_size"], golden["default/bbox"], golden["default/label"], strict=True
    ):
        count = len(row["labels"])
        assert row["image_size"] == size.tolist()
        assert row["labels"] == labels[:count].tolist() and not labels[count:].any()
        largest = max(largest, np.abs(np.float32(row["boxes_yxyx"]) - boxes[:count]).max())
    parity_report("COCO boxes, normalised", largest)
