"""Several data sets as one: classes by name, shares by weight, the same after a stop."""

import collections
import itertools
import json

import pytest

from pix2seq_hf.configuration_pix2seq import Pix2SeqConfig
from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.mixture import MixtureSampler, join_splits, renumber
from pix2seq_hf.data.shapes import SHAPE_CLASSES, write_shapes
from pix2seq_hf.training.arguments import build_recipe
from pix2seq_hf.training.build import build_dataset, open_material


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two data sets of drawn shapes; the second numbers and writes its classes in another way, and has one more."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    write_shapes(first, "train", 4, seed=0, image_size=(32, 32), max_objects=2)
    write_shapes(second, "train", 6, seed=1, image_size=(32, 32), max_objects=2)
    path = second / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    new_id = {label: 50 - label for label in SHAPE_CLASSES}
    content["categories"] = [{"id": new_id[label], "name": name.upper()} for label, name in SHAPE_CLASSES.items()]
    content["categories"].append({"id": 1, "name": "blob"})
    for item in content["annotations"]:
        item["category_id"] = new_id[item["category_id"]]
    content["annotations"][0]["category_id"] = 1
    path.write_text(json.dumps(content))
    return first, second


def test_classes_are_matched_by_name(folders):
    first, second = (read_coco(folder, "train") for folder in folders)
    joined = join_splits([first, second])
    free = max(SHAPE_CLASSES) + 1
    assert joined.id2label == {**SHAPE_CLASSES, free: "blob"}
    assert joined.dataset["labels"][:4] == first.dataset["labels"]
    for labels, raw in zip(joined.dataset["labels"][4:], second.dataset["labels"], strict=True):
        assert labels == [free if label == 1 else 50 - label for label in raw]
    assert joined.annotations is first.annotations and join_splits([first]) is first


def test_a_model_measures_other_numbers_by_name(folders):
    first, second = (read_coco(folder, "train") for folder in folders)
    assert renumber(first, SHAPE_CLASSES) is first
    free = max(SHAPE_CLASSES) + 1
    changed = renumber(second, SHAPE_CLASSES)
    assert set(changed.id2label) == {*SHAPE_CLASSES, free}
    names = [changed.id2label[item["category_id"]] for item in changed.annotations["annotations"]]
    assert names == [second.id2label[item["category_id"]] for item in second.annotations["annotations"]]
    assert {item["id"]: item["name"] for item in changed.annotations["categories"]} == changed.id2label
    labels = [label for row in changed.dataset["labels"] for label in row]
    assert [changed.id2label[label] for label in labels] == names
    assert renumber(second, {1: "cat", 2: "dog"}) is second  # nothing in common: ids are all there is


def test_shares_and_epochs():
    keys = list(MixtureSampler([3, 50, 0], [1.0, 3.0, 5.0], seed=0, stop=8000))
    sources = collections.Counter(key.row >= 3 for key in keys)
    assert sources[False] == pytest.approx(2000, rel=0.1) and sources[True] == pytest.approx(6000, rel=0.05)
    small = [key for key in keys if key.row < 3]
    for first in range(0, len(small) - 3, 3):  # every row once an epoch, in an order of its own
        epoch = small[first : first + 3]
        assert {key.row for key in epoch} == {0, 1, 2} and {key.epoch for key in epoch} == {first // 3}
    assert len({tuple(key.row for key in small[first : first + 3]) for first in range(0, 300, 3)}) == 6


@pytest.mark.parametrize("start", [1, 100, 5000, 8192])
def test_a_stop_changes_nothing(start):
    options = [7, 11], [1.0, 1.5]
    whole = list(MixtureSampler(*options, seed=3, stop=9000))
    assert list(MixtureSampler(*options, seed=3, stop=9000, start=start)) == whole[start:]
    assert list(itertools.islice(MixtureSampler(*options, seed=4, stop=9000), 50)) != whole[:50]


def test_no_source():
    with pytest.raises(ValueError, match="no data set to draw from"):
        MixtureSampler([0, 5], [1.0, 0.0], seed=0, stop=1)


def test_a_recipe_mixes_by_task(folders):
    first, second = folders
    for folder in folders:
        instances = json.loads((folder / "annotations/instances_train.json").read_text())
        captions = [{"id": image["id"], "image_id": image["id"], "caption": "shapes"} for image in instances["images"]]
        content = {"images": instances["images"], "annotations": captions}
        (folder / "annotations/captions_train.json").write_text(json.dumps(content))
    recipe = build_recipe(
        {
            "data": {"split": "train", "others": [{"path": str(second), "weight": 2, "tasks": ["object_detection"]}]},
            "object_detection": {},
            "captioning": {},
        }
    )
    material = open_material(recipe, first)
    assert material.sizes == [4, 6] and material.weights == [1.0, 2.0]
    config = Pix2SeqConfig(id2label=material.split.id2label)
    boxes = build_dataset("object_detection", recipe, material, config)
    assert boxes.sizes == [4, 6] and len(boxes) == 10
    captions = build_dataset("captioning", recipe, material, config)
    assert captions.sizes == [4, 0] and len(captions) == 4
