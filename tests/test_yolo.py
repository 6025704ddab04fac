"""Reading of YOLO folders: what comes out, what is mended, and one line for what cannot be."""

import pytest
import torch
import yaml
from PIL import Image

from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import load_record
from pix2seq_hf.data.yolo import list_splits, read_yolo

BOXES_AND_OUTLINES = ["object_detection", "instance_segmentation"]
SETTINGS = {"path": ".", "train": "images/train", "val": "images/val", "names": {0: "cat", 1: "dog"}}


@pytest.fixture
def write(tmp_path):
    """Write a YOLO folder of pictures a and b (train) and c (val); the labels of a and the settings are given."""

    def write_folder(labels="1 0.5 0.5 0.5 0.5\n", settings=SETTINGS, pictures="images/{}"):
        for name, split in (("a", "train"), ("b", "train"), ("c", "val")):
            folder = tmp_path / pictures.format(split)
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 20), (0, 0, ord(name))).save(folder / f"{name}.png")
            folder = tmp_path / pictures.format(split).replace("images", "labels")
            folder.mkdir(parents=True, exist_ok=True)
            if name != "b":
                (folder / f"{name}.txt").write_text(labels if name == "a" else "")
        if settings is not None:
            (tmp_path / "data.yaml").write_text(yaml.safe_dump(settings))
        return tmp_path

    return write_folder


def test_rows_records_and_ground_truth(write):
    problems = Problems()
    folder = write("1 0.5 0.5 0.5 0.5\n\n0 0.25 0.25 0.75 0.25 0.5 0.75\r\n")
    split = read_yolo(folder, "train", problems=problems)
    assert not problems.found and list_splits(folder) == ["train", "val"]
    assert split.id2label == {1: "cat", 2: "dog"} and split.dataset["image_id"] == [1, 2]
    assert "polygons_xy" not in split.dataset.column_names
    record = load_record(split.dataset[0])
    assert record["image"][2, 0, 0] == ord("a") and record["labels"].tolist() == [2, 1]
    torch.testing.assert_close(record["boxes_yxyx"], torch.tensor([[0.25, 0.25, 0.75, 0.75]] * 2))
    assert record["areas"].tolist() == [200, 200] and not record["is_crowd"].any()
    assert load_record(split.dataset[1])["boxes_yxyx"].shape == (0, 4)  # without a file of labels
    assert split.annotations["images"][0] == {"id": 1, "file_name": "images/train/a.png", "height": 20, "width": 40}
    assert [item["bbox"] for item in split.annotations["annotations"]] == [[10, 5, 20, 10]] * 2

    split = read_yolo(folder, "train", tasks=BOXES_AND_OUTLINES, problems=problems)
    assert problems.counts() == {"object without outline": 1} and "a.txt: line 1 is a box" in problems.found[0].message
    assert split.dataset[0]["polygons_xy"] == [[], [[10, 5, 30, 5, 20, 15]]]
    outlines = [item["segmentation"] for item in split.annotations["annotations"]]
    assert outlines == [[[10, 5, 30, 5, 30, 15, 10, 15]], [[10, 5, 30, 5, 20, 15]]]


def test_pictures_that_are_gone_are_named(write):
    folder = write()
    (folder / "images/train/a.png").unlink()
    (folder / "labels/train/classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"labels/train/a\.txt: has no picture in \S+images/train$"):
        read_yolo(folder, "train")
    problems = Problems(lost="left out")
    assert read_yolo(folder, "train", problems=problems).dataset["image_id"] == [1]
    assert [problem.message.partition(":")[0] for problem in problems.lost] == [str(folder / "labels/train/a.txt")]
    assert len(read_yolo(folder, "val").dataset) == 1
    # A list says what belongs to the split, and labels of others say nothing.
    settings = {**SETTINGS, "train": "train.txt"}
    (folder / "data.yaml").write_text(yaml.safe_dump(settings))
    (folder / "train.txt").write_text("images/train/b.png\n")
    assert len(read_yolo(folder, "train").dataset) == 1


@pytest.mark.parametrize(
    ("pictures", "train", "path"),
    [
        ("{}/images", "../train/images", None),  # as Roboflow writes it
        ("{}/images", "train/images", "."),
        ("images/{}", "images/train", "/datasets/of/another/machine"),
        ("images/{}", "/content/pets/images/train", None),
        ("pets/images/{}", "images/train", "pets"),
        ("images/{}", ["images/train"], "../pets"),
    ],
)
def test_places_of_pictures(write, pictures, train, path):
    settings = {"train": train, "names": ["cat", "dog"], "nc": 2} | ({"path": path} if path else {})
    folder = write(settings=settings, pictures=pictures)
    split = read_yolo(folder, "train")
    assert split.dataset[0]["labels"] == [2] and len(split.dataset) == 2
    assert list_splits(folder / "data.yaml") == ["train"]
    assert len(read_yolo(folder / "data.yaml", "train").dataset) == 2


def test_no_split_gets_the_pictures_of_all(write):
    """Settings of another layout: `images/` would be both train and val."""
    settings = {"path": "/home/me/pets", "train": "../train/images", "val": "../val/images", "names": ["cat", "dog"]}
    folder = write(settings=settings)
    for split in ("train", "val"):
        with pytest.raises(
            FileNotFoundError, match=rf"{split}/images: no such folder or list, but .*data\.yaml names it"
        ):
            read_yolo(folder, split)


def test_lists_of_pictures(write):
    folder = write(settings={**SETTINGS, "train": "train.txt"})
    (folder / "train.txt").write_text("./images/train/b.png\nimages/train/a.png\n")
    assert read_yolo(folder, "train").dataset["labels"] == [[], [2]]
    (folder / "train.txt").write_text("../a.png\n")
    with pytest.raises(ValueError, match=r"train\.txt: lists '\.\./a\.png', which is outside of"):
        read_yolo(folder, "train")
    (folder / "train.txt").write_text("images/train/z.png\n")
    with pytest.raises(ValueError, match=r"z\.png: No such file"):
        read_yolo(folder, "train")


def test_without_settings(write):
    folder = write(settings=None)
    with pytest.raises(OSError, match=r"has no data\.yaml and no classes\.txt: list the names"):
        read_yolo(folder, "train")
    (folder / "classes.txt").write_text("cat\ndog\n\n")
    assert read_yolo(folder, "train").id2label == {1: "cat", 2: "dog"}
    assert list_splits(folder) == ["train", "val"]


def test_nothing_split(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "images/a.jpg")
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "labels/classes.txt").write_text("cat")
    assert list_splits(tmp_path) == ["all"]
    assert read_yolo(tmp_path, "all").dataset[0]["boxes_yxyx"] == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("labels", "kind", "boxes"),
    [
        ("1 0.5 0.5 0 0.5", "box without area", []),
        ("1 0.5 0.5 -0.1 0.5", "box of negative size", []),
        ("1 20 10 10 5", "box outside of its picture", []),
        ("1 0.5 0.5 1.5 0.5", "box that reaches out of its picture", [[0, 5, 40, 10]]),
        ("1 nan 0.5 0.5 0.5", "line that is no object", []),
        ("1 0.5 0.5 0.5", "line that is no object", []),
        ("dog 0.5 0.5 0.5 0.5", "line that is no object", []),
        ("2 0.5 0.5 0.5 0.5", "object of an unknown category", []),
        ("-1 0.5 0.5 0.5 0.5", "object of an unknown category", []),
        ("0.5 0.5 0.5 0.5 0.5", "object of an unknown category", []),
        ("1 0.5 0.5 0.5 0.5 0.93", "box with a sixth number", [[10, 5, 20, 10]]),
        ("1 0.25 0.25 0.75 0.25 0.5 0.75 0.5", "unusable polygon", [[10, 5, 20, 10]]),
        ("1 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.5 0.5", "annotation listed twice", [[10, 5, 20, 10]]),
    ],
)
def test_what_is_mended(write, labels, kind, boxes):
    folder, problems = write(labels), Problems()
    split = read_yolo(folder, "train", problems=problems)
    assert [item["bbox"] for item in split.annotations["annotations"]] == boxes
    found = [problem for problem in problems.found if problem.kind != "no annotations"]
    assert [problem.kind for problem in found] == [kind] and not problems.errors
    assert found[0].message.startswith(str(folder / "labels/train/a.txt: line ")) and "\n" not in found[0].message
    assert bool(boxes) != ("no annotations" in problems.counts())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "names": {0: "cat", 899: "dog"}}, r"data\.yaml: class 899: 'dog' needs a number from 0 to 898"),
        ({**SETTINGS, "names": {"cat": 0}}, "class 'cat': 0 needs a number"),
        ({**SETTINGS, "names": []}, "names: must list the classes"),
        ({**SETTINGS, "train": "images/training"}, "images/training: no such folder or list, but .*data.yaml names it"),
        ({**SETTINGS, "train": "labels"}, "there are no pictures in"),
        ({**SETTINGS, "train": "/usr"}, "/usr is outside of .*: move the pictures into the folder"),
        ({**SETTINGS, "train": None}, r"data\.yaml: has no split 'train' \(splits that are there: val\)"),
    ],
)
def test_settings_that_cannot_be_used(write, settings, message):
    with pytest.raises((ValueError, OSError), match=message) as caught:
        read_yolo(write(settings=settings), "train")
    assert "\n" not in str(caught.value)


def test_other_errors(write, tmp_path):
    with pytest.raises(OSError, match=r"nowhere: not a YOLO folder"):
        read_yolo(tmp_path / "nowhere", "train")
    folder = write()
    with pytest.raises(ValueError, match="it has nothing for captioning"):
        read_yolo(folder, "train", tasks=["captioning"])
    problems = Problems(keep_going=True)
    (folder / "labels/train/a.txt").write_bytes(b"\xff\xfe0 1")
    (folder / "images/train/b.png").write_bytes(b"no picture")
    assert len(read_yolo(folder, "train", problems=problems).dataset) == 0 and len(problems.errors) == 2
    with pytest.raises(ValueError, match=r"a\.txt: not UTF-8 text"):
        read_yolo(folder, "train")
    (folder / "data.yaml").write_text("names: [cat\ntrain: x")
    with pytest.raises(ValueError, match=r"data\.yaml: not valid YAML"):
        read_yolo(folder, "train")


def test_classes_without_names(write):
    problems = Problems()
    split = read_yolo(write(settings={"train": "images/train", "nc": 2}), "train", problems=problems)
    assert split.id2label == {1: "class_0", 2: "class_1"} and problems.counts() == {"classes without names": 1}


def test_keypoints_are_left_alone(write):
    """The files of pose data sets have them behind the box."""
    folder = write("1 0.5 0.5 0.5 0.5 0.1 0.2 2 0.3 0.4 2", {**SETTINGS, "kpt_shape": [2, 3]})
    problems = Problems()
    assert read_yolo(folder, "train", problems=problems).annotations["annotations"][0]["bbox"] == [10, 5, 20, 10]
    assert not problems.found


def test_shares_are_of_the_upright_picture(write):
    folder = write("1 0.5 0.5 1 1")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(folder / "images/train/a.png", exif=exif)
    row = read_yolo(folder, "train").dataset[0]
    assert row["image_size"] == [40, 20] and load_record(row)["image"].shape == (3, 40, 20)
