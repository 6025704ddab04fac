"""Reading of COCO folders: what comes out, and one line for everything that is wrong."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pix2seq_hf.data.coco import list_splits, read_coco
from pix2seq_hf.data.rows import load_pixels, load_record

CONTENT = {
    "images": [
        {"id": 9, "file_name": "nine.png", "width": 40, "height": 20},
        {"id": 4, "file_name": "four.png", "width": 10, "height": 10},
    ],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 3, "bbox": [10, 5, 20, 10], "area": 150.5, "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 90, "bbox": [0, 0, 40, 20], "area": 800, "iscrowd": 1},
        {"id": 3, "image_id": 9, "category_id": 3, "bbox": [1, 2, 0.5, 4]},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
}


@pytest.fixture
def write(tmp_path):
    """Write a folder whose annotation file was changed by a function; returns the folder."""

    def write_folder(change=lambda content: None):
        content = copy.deepcopy(CONTENT)
        change(content)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "train").mkdir(exist_ok=True)
        for image in CONTENT["images"]:
            size = (image["width"], image["height"])
            Image.new("RGB", size, (255, 0, image["id"])).save(tmp_path / "train" / image["file_name"])
        (tmp_path / "annotations/instances_train.json").write_text(json.dumps(content))
        return tmp_path

    return write_folder


def test_rows_and_records(write):
    split = read_coco(write(), "train")
    assert split.id2label == {3: "car", 90: "toothbrush"} and list(split.id2label) == [3, 90]
    assert split.dataset["image_id"] == [9, 4]
    record = load_record(split.dataset[0])
    assert record["image_id"] == 9 and record["image_size"] == (20, 40)
    assert record["image"].shape == (3, 20, 40) and record["image"].dtype == torch.uint8
    assert record["image"][:, 0, 0].tolist() == [255, 0, 9]
    expected = [[0.25, 0.25, 0.75, 0.75], [0, 0, 1, 1], [0.1, 0.025, 0.3, 0.0375]]
    torch.testing.assert_close(record["boxes_yxyx"], torch.tensor(expected))
    assert record["labels"].tolist() == [3, 90, 3] and record["is_crowd"].tolist() == [False, True, False]
    assert record["areas"].tolist() == [150.5, 800, 2]
    empty = load_record(split.dataset[1])
    assert empty["boxes_yxyx"].shape == (0, 4) and len(empty["labels"]) == 0


def test_choice_of_pictures(write):
    folder = write()
    split = read_coco(folder, "train", image_ids=[4, 9, 4])
    assert split.dataset["image_id"] == [4, 9]
    assert len(split.annotations["annotations"]) == 3
    split = read_coco(folder, "train", image_ids=[4, 9], max_images=1)
    assert split.dataset["image_id"] == [4]
    assert [image["id"] for image in split.annotations["images"]] == [4] and not split.annotations["annotations"]
    with pytest.raises(ValueError, match=r"instances_train\.json: lists no picture with id 5"):
        read_coco(folder, "train", image_ids=[4, 5])


def test_byte_order_mark(write):
    folder = write()
    path = folder / "annotations/instances_train.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_coco(folder, "train").dataset) == 2


def test_missing_files(write, tmp_path):
    with pytest.raises(OSError, match="nowhere: no such folder"):
        read_coco(tmp_path / "nowhere", "train")
    with pytest.raises(OSError, match="this is not a COCO folder"):
        read_coco(tmp_path, "train")
    folder = write()
    with pytest.raises(OSError, match=r"instances_val\.json: no such file \(splits that are there: train\)"):
        read_coco(folder, "val")
    (folder / "train/four.png").unlink()
    with pytest.raises(ValueError, match=r"four\.png: no such picture, but .*instances_train\.json lists it with id 4"):
        read_coco(folder, "train")
    (folder / "train/nine.png").unlink()
    with pytest.raises(ValueError, match=r"nine\.png: .* with id 9 \(2 pictures are missing\)"):
        read_coco(folder, "train")
    (folder / "annotations/instances_train.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_coco(folder, "train")
    (folder / "annotations/instances_train.json").write_text(json.dumps(CONTENT)[:200])
    with pytest.raises(ValueError, match=r"instances_train\.json: not valid JSON \(line 1, column .* complete\?"):
        read_coco(folder, "train")


def change_item(name, index, **fields):
    return lambda content: content[name][index].update(fields)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content.pop("annotations"), "no list 'annotations'"),
        (lambda content: content["images"].clear() or content["annotations"].clear(), "lists no pictures"),
        (lambda content: content["categories"].clear(), "lists no categories"),
        (lambda content: content["images"].append(3), "an entry of 'images' is not an object"),
        (change_item("categories", 0, id=-1), "'toothbrush' has id -1: ids must be between 1 and 899"),
        (change_item("categories", 0, id=900), "'toothbrush' has id 900: ids must be between 1 and 899"),
        (change_item("categories", 0, id=3), "category id 3 is used for 'toothbrush' and for 'car'"),
        (change_item("categories", 0, id="90"), "needs an integer 'id'"),
        (change_item("images", 0, id=4), "two pictures have the id 4"),
        (change_item("images", 0, height=0), "picture 9 needs a positive integer 'height'"),
        (
            change_item("images", 0, file_name="../nine.png"),
            "has file_name '../nine.png', which leads out of the folder",
        ),
        (change_item("images", 0, file_name="/etc/passwd"), "has file_name '/etc/passwd', which leads out"),
        (change_item("images", 0, file_name=None), "picture 9 needs an integer 'id' and a 'file_name'"),
    ],
)
def test_what_cannot_be_used_is_named(write, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_coco(write(change), "train")
    assert str(caught.value).startswith(str(write() / "annotations/instances_train.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["train", "images/train", "images", "."])
def test_places_of_pictures(write, place):
    folder = write()
    (folder / place).mkdir(parents=True, exist_ok=True)
    for name in ("nine.png", "four.png"):
        (folder / "train" / name).rename(folder / place / name)
    split = read_coco(folder, "train")
    assert [load_record(row)["image"][2, 0, 0] for row in split.dataset] == [9, 4]


def test_roboflow_exports(write):
    folder = write()
    (folder / "annotations/instances_train.json").rename(folder / "train/_annotations.coco.json")
    assert list_splits(folder) == ["train"] and len(read_coco(folder, "train").dataset) == 2
    with pytest.raises(OSError, match=r"splits that are there: train\)"):
        read_coco(folder, "valid")


@pytest.mark.parametrize("place", ["images/v1/patch8", "train/patch8", "images/train/patch8", "train/images/v1/patch8"])
def test_objects365(write, place):
    folder = write(lambda content: content["images"][0].update(file_name="images/v1/patch8/objects365_v1_1.png"))
    (folder / "annotations/instances_train.json").rename(folder / "annotations/zhiyuan_objv2_train.json")
    (folder / place).mkdir(parents=True)
    (folder / "train/nine.png").rename(folder / place / "objects365_v1_1.png")
    assert list_splits(folder) == ["train"]
    assert load_record(read_coco(folder, "train").dataset[0])["image"][2, 0, 0] == 9


def test_pixels_follow_the_annotated_orientation(tmp_path):
    pixels = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.fromarray(pixels).save(path, exif=exif)
    stored, upright = load_pixels(path, (6, 4)), load_pixels(path, (4, 6))
    assert torch.equal(stored, torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(upright, torch.rot90(stored, -1, dims=(1, 2)))
    with pytest.raises(ValueError, match=r"turned\.png: the picture is 6 x 4 pixels, its annotation says 5 x 5"):
        load_pixels(path, (5, 5))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_pixels_for_every_orientation(tmp_path, orientation):
    pixels = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "square.png", exif=exif)
    assert torch.equal(load_pixels(tmp_path / "square.png", (5, 5)), torch.from_numpy(pixels).permute(2, 0, 1))


def test_broken_pictures_are_named(write):
    folder = write()
    split = read_coco(folder, "train")
    (folder / "train/nine.png").write_bytes(b"\x89PNG\r\n\x1a\n garbage")
    with pytest.raises(ValueError, match=r"nine\.png: "):
        load_record(split.dataset[0])
