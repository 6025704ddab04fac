"""data/command.py and data/convert.py: `pix2seq data inspect` and `pix2seq data convert`."""

import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from drawn_coco import ALL_TASKS, write_drawn_coco
from pix2seq_hf import cli
from pix2seq_hf.data import convert, sources
from pix2seq_hf.data.annotations import boxes_from_xywh
from pix2seq_hf.data.command import parse_columns
from pix2seq_hf.data.rows import load_record
from pix2seq_hf.data.sources import list_splits, open_split


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What the library writes on the way is written into the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def coco(tmp_path):
    write_drawn_coco(tmp_path / "coco", "train", 5)
    return write_drawn_coco(tmp_path / "coco", "val", 2, seed=1)


def assert_same_records(first, second, tasks=ALL_TASKS):
    """Whether two data sets give the same records, to the last bit."""
    for split in ("train", "val"):
        one, other = (open_split(data, split, tasks=tasks, num_keypoints=2) for data in (first, second))
        assert one.id2label == other.id2label and one.dataset.features == other.dataset.features
        assert len(one.dataset) == len(other.dataset) > 0
        for rows in zip(one.dataset, other.dataset, strict=True):
            records = [load_record(row, num_keypoints=2) for row in rows]
            assert records[0].keys() == records[1].keys()
            for name, value in records[0].items():
                same = torch.equal(value, records[1][name]) if torch.is_tensor(value) else value == records[1][name]
                assert same, (name, value, records[1][name])
        for kind in ("annotations", "keypoint_annotations", "caption_annotations"):
            contents = [getattr(each, kind) for each in (one, other)]
            assert len(contents[0]["annotations"]) == len(contents[1]["annotations"])
        crowds = [[each["segmentation"] for each in each.annotations["annotations"] if each["iscrowd"]] for each in
                  (one, other)]  # fmt: skip
        assert [convert._run_lengths(each) for each in crowds[0]] == [each["counts"] for each in crowds[1]]


def convert_drawn(coco, output, *options):
    return cli.main(["data", "convert", str(coco), "--output", str(output), "--num-keypoints", "2", *options])


def test_what_is_converted_reads_back_the_same(coco, tmp_path, capsys):
    assert convert_drawn(coco, tmp_path / "out") == 0
    assert "7 pictures in 2 parquet files" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "data"]
    assert list_splits(tmp_path / "out") == ["train", "val"]
    assert_same_records(coco, tmp_path / "out")
    (tmp_path / "coco").rename(tmp_path / "gone")  # the pictures are inside
    plain = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert plain[0]["image"].size == (plain[0]["width"], plain[0]["height"])
    names = plain.features["objects"]["category"].feature.names
    assert names == ["unused 1", "disc", "star", "unused 4", "unused 5", "unused 6", "cross"]
    file = str(tmp_path / "out/data/val-00000-of-00001.parquet")
    assert len(datasets.load_dataset("parquet", data_files=file, split="train")) == 2
    card = (tmp_path / "out/README.md").read_text()
    assert "Classes: 2 disc, 3 star, 7 cross." in card and "| train | 5 |" in card


def test_pictures_can_stay_where_they_are(coco, tmp_path, capsys):
    assert convert_drawn(coco, tmp_path / "out", "--pictures", "path", "--tasks", "object_detection") == 0
    assert "--column folder=DIR" in capsys.readouterr().out
    assert datasets.load_dataset(str(tmp_path / "out"), split="val")[0]["image"].mode == "RGB"
    with pytest.raises(ValueError, match="lies outside of the data set's folder"):
        open_split(tmp_path / "out", "val")
    split = open_split(tmp_path / "out", "val", columns={"folder": str(coco)})
    assert load_record(split.dataset[0])["image_id"] == 11


def test_shards_are_of_the_size_that_is_asked_for(coco, tmp_path):
    split = open_split(coco, "train")
    sizes = [(coco / f"train/{number:03}.png").stat().st_size for number in range(11, 16)]
    shards, total = convert.plan_shards(split, sum(sizes) // 2, embed=True)
    assert total == sum(sizes) and len(shards) == 3 and shards[0][0] == 0 and shards[-1][1] == 5
    assert convert.plan_shards(split, 1, embed=True)[0] == [(row, row + 1) for row in range(5)]
    files = convert.convert_splits(coco, {"train": split}, tmp_path / "out", shard_bytes=sum(sizes) // 2)
    assert [file.name for file in files] == [f"train-{number:05}-of-00003.parquet" for number in range(3)]
    assert sum(pq.read_metadata(file).num_rows for file in files) == 5


def test_an_interrupted_conversion_goes_on(coco, tmp_path, monkeypatch):
    split = open_split(coco, "train")
    written = []

    def stop_at_third(path, *args):
        if len(written) == 2:
            path.with_suffix(".tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name)
        write_shard(path, *args)

    write_shard = convert._write_shard
    monkeypatch.setattr(convert, "_write_shard", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        convert.convert_splits(coco, {"train": split}, tmp_path / "out", shard_bytes=1)
    assert not (tmp_path / "out").exists() and len(written) == 2
    again = []
    monkeypatch.setattr(
        convert, "_write_shard", lambda path, *args: (again.append(path.name), write_shard(path, *args))
    )
    files = convert.convert_splits(coco, {"train": split}, tmp_path / "out", shard_bytes=1)
    assert len(files) == 5 and len(again) == 3 and not set(again) & set(written)
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]
    assert [path.suffix for path in (tmp_path / "out/data").iterdir()] == [".parquet"] * 5

    again.clear()  # of other data nothing is kept
    (tmp_path / "out").rename(tmp_path / "out.part")
    other = open_split(coco, "train", max_images=4)
    assert len(convert.convert_splits(coco, {"train": other}, tmp_path / "out", shard_bytes=1)) == len(again) == 4


def test_a_folder_is_replaced_only_if_it_was_written_here(coco, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("text")
    for options in ([], ["--overwrite"]):
        assert convert_drawn(coco, tmp_path / "mine", *options) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "mine/thesis.txt").read_text() == "text"
    assert convert_drawn(coco, tmp_path / "out", "--split", "train") == 0
    assert convert_drawn(coco, tmp_path / "out", "--split", "val") == 2
    assert "is there already: choose another folder, or --overwrite it" in capsys.readouterr().err
    assert convert_drawn(coco, tmp_path / "out", "--split", "val", "--overwrite") == 0
    assert list_splits(tmp_path / "out") == ["val"] and sorted(tmp_path.glob("out*")) == [tmp_path / "out"]


def test_broken_pictures_are_left_out(coco, tmp_path, capsys):
    """Cut in the middle, where opening a picture does not show it, and missing; with what is annotated of them."""
    cut, gone = coco / "train/012.png", coco / "train/014.png"
    cut.write_bytes(cut.read_bytes()[:-60])
    gone.unlink()
    assert convert_drawn(coco, tmp_path / "out") == 1
    said = capsys.readouterr()
    assert f"left out: {cut}: is truncated or damaged" in said.err and f"left out: {gone}: no such picture" in said.err
    assert said.err.count("\n") == 2 and "out: 5 pictures, 2 left out, in 2 parquet files" in said.out
    split = open_split(tmp_path / "out", "train", tasks=ALL_TASKS, num_keypoints=2)
    assert split.dataset["image_id"] == [11, 13, 15] and load_record(split.dataset[1])["image_id"] == 13
    for content in (split.annotations, split.keypoint_annotations, split.caption_annotations):
        assert {item["image_id"] for item in content["annotations"]} <= {11, 13, 15}
    assert f"| train | 3 | {len(split.annotations['annotations'])} | 1 |" in (tmp_path / "out/README.md").read_text()
    assert (
        convert_drawn(coco, tmp_path / "all", "--split", "train", "--no-check") == 1
    )  # what is gone cannot be written
    assert len(open_split(tmp_path / "all", "train").dataset) == 4
    for path in (coco / "val").iterdir():
        path.write_bytes(b"no picture")
    assert convert_drawn(coco, tmp_path / "none") == 2
    assert "coco, val: no picture can be used; the first: " in capsys.readouterr().err


def test_it_is_found_out_first_whether_results_can_be_written(coco, tmp_path, capsys):
    assert convert_drawn(coco, coco) == 2 and "is there already" in capsys.readouterr().err
    for options, message in (
        (("--sheet", tmp_path / "sheet"), "sheet: its name must end like that of a picture"),
        (("--sheet", coco / "annotations/instances_train.json/a.png"), "choose another --sheet"),
        (("--json", coco), "coco: is a folder; give --json the name of a file"),
    ):
        assert cli.main(["data", "inspect", str(coco / "nowhere"), *map(str, options)]) == 2
        assert message in capsys.readouterr().err
    new = tmp_path / "new/folder"
    options = ["--split", "val", "--sheet", str(new / "sheet.png"), "--json", str(new / "counts.json"), "--quiet"]
    assert cli.main(["data", "inspect", str(coco), "--num-keypoints", "2", *options]) == 0
    assert sorted(path.name for path in new.iterdir()) == ["counts.json", "sheet.png"]


def test_nothing_to_learn_from_is_an_error(tmp_path, capsys):
    for name in ("images/train", "images/test", "labels"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("train", "test"):
        Image.new("RGB", (40, 20)).save(tmp_path / f"images/{name}/a.png")
    (tmp_path / "classes.txt").write_text("dog")
    assert cli.main(["data", "inspect", str(tmp_path), "--quiet"]) == 1
    assert "error: nothing to learn from: no picture of" in capsys.readouterr().out
    (tmp_path / "labels/train").mkdir()
    (tmp_path / "labels/train/a.txt").write_text("0 0.5 0.5 0.2 0.2")
    assert cli.main(["data", "inspect", str(tmp_path), "--quiet"]) == 0  # a split for tests need not have labels


def test_no_picture_is_read_twice(monkeypatch):
    monkeypatch.setattr(sources, "list_splits", lambda data: ["train", "trainval", "val", "test", "all"])
    assert sources.list_parts("voc") == ["train", "val", "test"]
    monkeypatch.setattr(sources, "list_splits", lambda data: ["trainval", "all"])
    assert sources.list_parts("voc") == ["trainval"]
    monkeypatch.setattr(sources, "list_splits", lambda data: ["all"])
    assert sources.list_parts("voc") == ["all"]


def test_a_full_disk_is_said_before(coco, tmp_path, monkeypatch):
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match=r"out: the pictures need 0\.0 GB, the disk has 0\.0 GB left"):
        convert.convert_splits(coco, {"train": open_split(coco, "train")}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_corners_give_the_same_box_again():
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = tuple(int(side) for side in rng.integers(1, 5000, 2))
        xywh = (rng.uniform(0, 1, 4) * np.tile(size[::-1], 2) * [0.5, 0.5, 0.5, 0.5]).round(int(rng.integers(0, 6)))
        box = boxes_from_xywh([xywh], size)
        left, top, right, bottom = convert.corners_of(box[0].tolist(), size)
        assert np.float32(left) == left and torch.equal(
            boxes_from_xywh([[left, top, right - left, bottom - top]], size), box
        )


def test_classes_of_one_name_cannot_be_told_apart():
    assert convert.class_names({3: "b", 1: "a"}) == ["a", "unused 2", "b"]
    with pytest.raises(ValueError, match="two classes are named 'a'"):
        convert.class_names({1: "a", 2: "a"})


def test_inspect_prints_counts_and_draws(coco, tmp_path, capsys):
    out, sheet = tmp_path / "counts.json", tmp_path / "sheet.png"
    options = ["--num-keypoints", "2", "--quiet", "--json", str(out), "--sheet", str(sheet), "--sheet-size", "3"]
    assert cli.main(["data", "inspect", str(coco), *options]) == 0
    text = capsys.readouterr().out
    assert f"{coco}, train\n" in text and "5, 1 of them without objects" in text and "5 of 5 pictures" in text
    splits = json.loads(out.read_text())["splits"]
    assert splits["train"]["tasks"] == ALL_TASKS and splits["val"]["pictures"] == splits["val"]["pictures_checked"] == 2
    sheets = [Image.open(tmp_path / f"sheet_{name}.png") for name in ("train", "val")]
    assert sheets[0].width > sheets[1].width > 560 and sheets[0].height == sheets[1].height
    assert not sheet.exists()


def test_inspect_finds_all_problems_in_one_pass(coco, capsys):
    (coco / "train/012.png").write_bytes(b"no picture")
    path = coco / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = -5
    content["images"].append({**content["images"][0], "id": 99, "file_name": "missing.png"})
    path.write_text(json.dumps(content))
    (coco / "annotations/instances_val.json").write_text("{")
    options = ["--tasks", "object_detection", "--quiet"]
    assert cli.main(["data", "inspect", str(coco), *options]) == 1
    text = capsys.readouterr().out
    for words in (
        "error: missing picture (1)",
        "012.png: ",
        "mended or noted: box of negative size (1)",
        "not valid JSON",
    ):
        assert words in text, words
    assert "4 of 5 pictures" in text or "4 of 6 pictures" in text
    assert cli.main(["data", "inspect", str(coco), "--split", "val", *options]) in (1, 2)


def test_options(capsys, tmp_path):
    assert parse_columns([]) is None
    assert parse_columns(["names=cat,dog", "boxes=a.b"]) == {"names": ["cat", "dog"], "boxes": "a.b"}
    for arguments, message in (
        ([], "the following arguments are required"),
        (["inspect", str(tmp_path), "--column", "boxes"], "--column boxes: write KEY=VALUE"),
        (["inspect", str(tmp_path), "--tasks", "boxes"], "--tasks: unknown task 'boxes': known are object_detection"),
        (["inspect", str(tmp_path), "--max-images", "0"], "--max-images 0: must be at least 1"),
        (["inspect", str(tmp_path)], "not a data set of a known layout"),
        (["convert", str(tmp_path)], "--output"),
    ):
        assert cli.main(["data", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    for command in ("inspect", "convert"):
        assert cli.main(["data", command, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.index(f"  pix2seq data {command} ") < text.index("\noptions:")
