"""Which reader opens a data set."""

import json

import datasets
import pytest
from PIL import Image

from conftest import PROJECT_ROOT
from pix2seq_hf.data import sources
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.sources import (
    EVALUATION_SPLITS,
    TRAINING_SPLITS,
    choose_split,
    explain_split,
    find_layout,
    list_splits,
    open_split,
    open_stream,
)

VOC = (
    "<annotation><size><width>40</width><height>20</height></size><object><name>dog</name><bndbox><xmin>1</xmin>"
    "<ymin>2</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>"
)


def write_voc(folder):
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(folder / "JPEGImages/a.png")
    (folder / "Annotations/a.xml").write_text(VOC)


def write_coco(folder, split="train"):
    for name in ("annotations", split):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(folder / split / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 20}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 4, 4], "area": 16, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "dog"}],
    }
    (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def write_yolo(folder):
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(folder / "images/a.png")
    (folder / "labels/a.txt").write_text("0 0.075 0.2 0.1 0.2")
    (folder / "classes.txt").write_text("dog")


WRITERS = {"yolo": (write_yolo, "all"), "voc": (write_voc, "all"), "coco": (write_coco, "train")}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_same(tmp_path, layout):
    write, split = WRITERS[layout]
    write(tmp_path / "data")
    assert find_layout(tmp_path / "data") == layout and list_splits(str(tmp_path / "data")) == [split]
    problems = Problems()
    opened = open_split(tmp_path / "data", split, problems=problems)
    assert opened.id2label == {1: "dog"} and not problems.found
    row = opened.dataset[0]
    assert row["image_size"] == [20, 40] and row["labels"] == [1] and row["areas"] == pytest.approx([16])
    assert row["boxes_yxyx"][0] == pytest.approx([0.1, 0.025, 0.3, 0.125])
    (item,) = opened.annotations["annotations"]
    assert item["bbox"] == [1, 2, 4, 4] and item["area"] == pytest.approx(16) and item["iscrowd"] == 0
    stream = open_stream(tmp_path / "data", split)
    assert (list(stream.dataset), stream.id2label, stream.num_rows) == ([row], {1: "dog"}, 1)
    with pytest.raises(OSError, match=rf"splits that are there: {split}") as caught:
        open_split(tmp_path / "data", "nonsense")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="has no columns to be mapped: leave out `columns`"):
        open_split(tmp_path / "data", split, columns={"image": "picture"})


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert find_layout("detection-datasets/coco") == find_layout("cppe-5") == "hub"
    for name in ("data/nothing", "./nothing", tmp_path / "nothing", "a/b/c", "../x"):
        with pytest.raises(FileNotFoundError, match=r"(nothing|c|x): no such folder"):
            find_layout(name)
    for name in ("photos.parquet", "mine/data.yaml"):
        with pytest.raises(FileNotFoundError, match=f"^{name}: no such file$"):
            find_layout(name)
    (tmp_path / "a.parquet").write_bytes(b"")
    assert find_layout("a.parquet") == "parquet"
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a\.json: a single file that is no \.parquet"):
        find_layout(tmp_path / "a.json")


def test_tables(tmp_path):
    objects = {"bbox": [[1.0, 2.0, 4.0, 4.0]], "category": ["dog"]}
    folder = tmp_path / "pictures/train"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(folder / "a.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "objects": objects}))
    content = (folder / "a.png").read_bytes()
    table = datasets.Dataset.from_list([{"image": {"bytes": content, "path": None}, "objects": objects}])
    table = table.cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "table/train-00000-of-00001.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "several")
    places = {"pictures": "imagefolder", "table": "parquet", "saved": "saved", "several": "saved"}
    for place, layout in places.items():
        assert find_layout(tmp_path / place) == layout and list_splits(tmp_path / place) == ["train"]
        opened = open_split(tmp_path / place, "train", columns={"box_format": "xywh"})
        streamed = open_stream(tmp_path / place, "train", columns={"box_format": "xywh", "names": ["dog"]})
        for row in (opened.dataset[0], next(iter(streamed.dataset))):
            assert row["labels"] == [1] and row["boxes_yxyx"][0] == pytest.approx([0.1, 0.025, 0.3, 0.125])


def test_unknown_layouts(tmp_path):
    with pytest.raises(
        ValueError, match=r"not a data set of a known layout \(known are: .*COCO.*VOC.*parquet"
    ) as caught:
        find_layout(tmp_path)
    assert "\n" not in str(caught.value)
    write_voc(tmp_path / "VOC2012")
    with pytest.raises(ValueError, match=r"not a data set of a known layout; did you mean .*/VOC2012\?"):
        open_split(tmp_path, "all")


@pytest.mark.parametrize(
    ("there", "training", "evaluation"),
    [
        (["train2017", "val2017"], "train2017", "val2017"),
        (["train", "trainval", "val", "all"], "train", "val"),
        (["trainval", "test", "all"], "trainval", "test"),
        (["train", "validation"], "train", "validation"),
        (["train2014", "val2014"], "train2014", "val2014"),
        (["all"], "all", "all"),
        (["train"], "train", "train"),
        (["one", "two"], None, None),
    ],
)
def test_the_split_that_nobody_names(monkeypatch, there, training, evaluation):
    monkeypatch.setattr(sources, "list_splits", lambda data: there)
    for names, chosen in ((TRAINING_SPLITS, training), (EVALUATION_SPLITS, evaluation)):
        if chosen is None:
            with pytest.raises(ValueError, match="cells: has the splits one, two: choose one with --split NAME"):
                choose_split("cells", names, "--split NAME")
        else:
            assert choose_split("cells", names, "--split NAME") == chosen


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo", "saved", "parquet"])
def test_a_split_that_is_not_there(tmp_path, layout):
    """The message says which are, and how to name one."""
    folder = tmp_path / "data"
    if layout in ("saved", "parquet"):
        rows = {"image": [None], "boxes": [[[0.0, 0.0, 1.0, 1.0]]], "labels": [["dog"]]}
        table = datasets.Dataset.from_dict(rows)
        if layout == "saved":
            datasets.DatasetDict(train=table).save_to_disk(str(folder))
        else:
            folder.mkdir()
            table.to_parquet(folder / "train-00000.parquet")
    else:
        WRITERS[layout][0](folder)
    splits = ", ".join(list_splits(folder))
    with (
        pytest.raises(OSError, match=f"data: has no split 'trian', but {splits}: choose one with --split NAME$"),
        explain_split(folder, "trian", "--split NAME"),
    ):
        open_split(folder, "trian")
    with pytest.raises(ValueError, match=r"^something else$"), explain_split(folder, splits, "--split NAME"):
        raise ValueError("something else")


def test_what_cannot_be_reached_is_not_asked_again(monkeypatch):
    monkeypatch.setattr(sources, "list_splits", lambda data: ["train"])
    with pytest.raises(OSError, match=r"^no network$"), explain_split("owner/name", "val", "--split NAME"):
        raise OSError("no network")
    with pytest.raises(OSError, match="has no split 'val', but train"), explain_split("owner/name", "val", "--split"):
        raise ValueError('Unknown split "val"')


def test_real_folders():
    folder = PROJECT_ROOT.parent / "shared/data"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    assert find_layout(folder / "bccd") == "voc" and find_layout(folder / "coco_mini") == "coco"
    assert list_splits(folder / "bccd") == ["train", "trainval", "val", "all"]
    assert list_splits(folder / "coco_mini") == ["train2017", "val2017"]
