"""data/hub.py: rows of parquet, imagefolder and `save_to_disk`, memory-mapped and streamed; what is wrong with them."""

import io
import json
import os
import time

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, List, Value
from PIL import Image

from pix2seq_hf import cli
from pix2seq_hf.data.hub import list_splits, read_dataset, stream_dataset
from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import load_record
from pix2seq_hf.data.sources import open_split

NAMES = ["cat", "dog"]
FEATURES = Features(
    {
        "image_id": Value("int64"),
        "image": datasets.Image(),
        "width": Value("int64"),
        "height": Value("int64"),
        "objects": {
            "bbox_id": List(Value("int64")),
            "category": List(ClassLabel(names=NAMES)),
            "bbox": List(List(Value("float64"), length=4)),
            "area": List(Value("float64")),
        },
    }
)
SIZE = (20, 40)  # height, width


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What the library writes on the way is written into the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # After each shuffled epoch the library waits five seconds for threads of Arrow.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def picture(number, size=SIZE):
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{number}.png"}


def row(number, boxes=((1.5, 2, 11, 8),), labels=None, **changes):
    """A row in the form of `detection-datasets/coco`; boxes are xyxy in pixels."""
    objects = {
        "bbox_id": list(range(len(boxes))),
        "category": [1] * len(boxes) if labels is None else labels,
        "bbox": [list(box) for box in boxes],
        "area": [10.0] * len(boxes),
    }
    height, width = SIZE
    return {
        "image_id": number,
        "image": picture(number),
        "width": width,
        "height": height,
        "objects": objects,
    } | changes


def dataset(*rows, features=FEATURES):
    return datasets.Dataset.from_list(list(rows), features=features)


ROWS = [row(7), row(3, [(30, 10, 39, 19), (20, 1, 40, 20)], [0, 1]), row(5, [])]


@pytest.fixture(params=["file", "folder", "saved", "saved dict"])
def stored(request, tmp_path):
    """The same rows in every form in which a data set is kept."""
    rows = dataset(*ROWS)
    if request.param == "file":
        rows.to_parquet(tmp_path / "rows.parquet")
        return tmp_path / "rows.parquet"
    if request.param == "folder":
        (tmp_path / "folder/data").mkdir(parents=True)
        for place in range(3):
            rows.select([place]).to_parquet(tmp_path / f"folder/data/train-{place:05}-of-00003.parquet")
    elif request.param == "saved":
        rows.save_to_disk(tmp_path / "folder")
    else:
        datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "folder")
    return tmp_path / "folder"


def check_rows(rows):
    """Whether rows are `ROWS`."""
    first, second, third = (load_record(each) for each in rows)
    assert [record["image_id"] for record in (first, second, third)] == [7, 3, 5]
    expected = torch.tensor([[2 / 20, 1.5 / 40, 8 / 20, 11 / 40]])
    torch.testing.assert_close(first["boxes_yxyx"], expected, rtol=0, atol=1e-7)
    assert second["labels"].tolist() == [1, 2] and third["boxes_yxyx"].shape == (0, 4)
    assert second["areas"].tolist() == [10, 10] and second["is_crowd"].tolist() == [False, False]
    with Image.open(io.BytesIO(ROWS[1]["image"]["bytes"])) as image:
        assert torch.equal(second["image"].permute(1, 2, 0), torch.from_numpy(np.array(image)))


def test_every_form_gives_the_same_rows(stored):
    split = open_split(stored, "train", columns={"box_format": "xyxy"})
    check_rows(split.dataset)
    assert split.id2label == {1: "cat", 2: "dog"}
    assert split.annotations["annotations"][0]["bbox"] == [1.5, 2, 9.5, 6]
    assert [image["id"] for image in split.annotations["images"]] == [7, 3, 5]
    assert split.keypoint_annotations is split.caption_annotations is None
    assert list_splits(stored) == ["train"]
    check_rows(stream_dataset(stored, "train", columns={"box_format": "xyxy"}).dataset)


def test_pictures_stay_in_the_files(tmp_path):
    """Rows keep no pixels in memory, chosen ones neither; the table points into the memory-mapped file."""
    noise = [row(number, image=picture(number, (200, 300)), width=300, height=200) for number in range(8)]
    dataset(*noise).save_to_disk(tmp_path / "saved")
    for options in ({}, {"max_images": 6}, {"image_ids": [5, 2]}):
        before = datasets.table.pa.total_allocated_bytes()
        split = read_dataset(tmp_path / "saved", "train", **options)
        assert datasets.table.pa.total_allocated_bytes() - before < 60_000, options  # a picture has 180,000 bytes
        assert len(split.dataset) == {"max_images": 6, "image_ids": 2}.get(next(iter(options), ""), 8)
    assert split.dataset["image_id"][:] == [5, 2] and load_record(split.dataset[1])["image_id"] == 2
    assert split.dataset[0]["image"]["bytes"] == noise[5]["image"]["bytes"]


def test_some_pictures_can_be_chosen(tmp_path):
    dataset(*ROWS).to_parquet(tmp_path / "rows.parquet")
    path = tmp_path / "rows.parquet"
    split = read_dataset(path, "train", image_ids=[5, 7])
    assert [image["id"] for image in split.annotations["images"]] == split.dataset["image_id"][:] == [5, 7]
    assert read_dataset(path, "train", image_ids=[5, 7], max_images=1).dataset["image_id"][:] == [5]
    with pytest.raises(ValueError, match="no picture with id 6"):
        read_dataset(path, "train", image_ids=[6])
    assert len(list(stream_dataset(path, "train", max_images=2).dataset)) == 2


def test_imagefolder_with_metadata(tmp_path):
    """Sizes come from the pictures, classes from the words, boxes are what their list says."""
    folder = tmp_path / "photos/train"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 20)).save(folder / name)
    lines = [
        {"file_name": "a.png", "objects": [{"bbox": [0.5, 0.5, 0.2, 0.4], "category": "dog"}], "caption": " A  dog. "},
        {"file_name": "b.png", "objects": [{"bbox": [0.1, 0.2, 0.2, 0.4], "category": "cat"}], "caption": None},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    split = open_split(
        tmp_path / "photos", "train", tasks=["object_detection", "captioning"], columns={"box_format": "cxcywh"}
    )
    assert split.id2label == {1: "cat", 2: "dog"} and split.dataset["image_id"][:] == [1, 2]
    first = load_record(split.dataset[0])
    torch.testing.assert_close(first["boxes_yxyx"], torch.tensor([[0.3, 0.4, 0.7, 0.6]]))
    assert first["captions"] == ["A dog."] and first["labels"].tolist() == [2]
    assert split.dataset[1]["captions"] == [] and split.dataset[0]["image"]["bytes"] is None
    assert [item["caption"] for item in split.caption_annotations["annotations"]] == ["A dog."]
    assert split.annotations["images"][0]["file_name"] == "a.png"

    os.remove(folder / "b.png")
    (folder / "metadata.jsonl").write_text(json.dumps({**lines[0], "file_name": "../../out.png"}))
    Image.new("RGB", (40, 20)).save(tmp_path / "out.png")
    with pytest.raises(ValueError, match=r"photos: .*out\.png") as caught:
        read_dataset(tmp_path / "photos", "train")
    assert "\n" not in str(caught.value)


def test_pictures_outside_of_the_folder_are_refused(tmp_path):
    (tmp_path / "secret").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "secret/a.png")
    (tmp_path / "rows").mkdir()
    named = row(1, image={"bytes": None, "path": str(tmp_path / "rows/../secret/a.png")})
    table = datasets.table.pa.Table.from_pylist([named], schema=FEATURES.arrow_schema)
    path = tmp_path / "rows/rows.parquet"
    datasets.Dataset(table).cast_column("image", datasets.Image(decode=False)).to_parquet(path)
    with pytest.raises(ValueError, match=r"picture 1: .*a\.png lies outside of the data set's folder.*columns\.folder"):
        read_dataset(path, "train")
    folder = {"folder": str(tmp_path / "secret")}
    assert load_record(read_dataset(path, "train", columns=folder).dataset[0])["image"].shape == (3, 20, 40)
    os.remove(tmp_path / "secret/a.png")
    with pytest.raises(ValueError, match=r"picture 1: .*a\.png: no such picture"):
        read_dataset(path, "train", columns=folder)


def test_lost_pictures_keep_their_rows_where_sizes_are_given(tmp_path, caplog):
    (tmp_path / "rows").mkdir()
    rows = [row(number, image={"bytes": None, "path": str(tmp_path / f"rows/{number}.png")}) for number in (1, 2, 3)]
    rows += [row(4, image={"bytes": None, "path": None}), row(5, image={"bytes": b"none", "path": "5.png"}, width=None)]
    for number in (1, 2, 3):
        Image.new("RGB", (40, 20)).save(tmp_path / f"rows/{number}.png")
    table = datasets.table.pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
    path = tmp_path / "rows/rows.parquet"
    datasets.Dataset(table).cast_column("image", datasets.Image(decode=False)).to_parquet(path)
    (tmp_path / "rows/2.png").unlink()
    columns = {"box_format": "xyxy", "box_units": "pixels"}
    problems = Problems(lost="kept")
    split = read_dataset(path, "train", columns=columns, problems=problems)
    assert split.dataset["image_id"][:] == [1, 2, 3] and split.dataset[1]["labels"] == [2]
    assert (
        len(problems.lost) == 3 and len(problems.left_out) == 2 and "2.png: no such picture" in problems.lost[0].message
    )
    with pytest.raises(ValueError, match=r"2\.png: No such file"):
        load_record(split.dataset[1])
    stream = stream_dataset(path, "train", columns=columns, problems=Problems(lost="kept"))
    assert [each["image_id"] for each in stream.dataset] == [1, 2, 3]
    assert caplog.text.count("left out: ") == 2 and "picture 5: " in caplog.text


def test_bad_entries_are_mended_or_named(tmp_path):
    rows = [
        row(1, [(1, 2, 11, 8), (5, 5, 5, 9), (30, 10, 70, 19)]),
        row(1, [(1, 2, 3, 4)]),
        row(2, [(1, 2, 11, 8)], [-1]),
        row(3, [(1, 2, 11, 8)], []),
        row(4, image={"bytes": b"no picture", "path": None}, width=None),
        row(5, image=None),
        row(6, [(float("nan"), 2, 11, 8), (1, 2, 11, 8)]),
    ]
    dataset(*rows).to_parquet(tmp_path / "rows.parquet")
    problems = Problems(keep_going=True)
    columns = {"box_format": "xyxy", "box_units": "pixels"}
    split = read_dataset(tmp_path / "rows.parquet", "train", columns=columns, problems=problems)
    assert split.dataset["image_id"][:] == [1, 2, 3, 6]
    assert [len(labels) for labels in split.dataset["labels"]] == [2, 0, 0, 1]
    assert split.dataset[0]["boxes_yxyx"][1] == pytest.approx([10 / 20, 30 / 40, 19 / 20, 1])
    assert split.dataset[3]["image"]["path"] == "6.png" and len(split.annotations["annotations"]) == 3
    errors = {problem.kind: problem.message for problem in problems.errors}
    assert set(errors) == {
        "picture id used twice", "unknown class", "annotations of different numbers", "picture that cannot be used",
        "missing picture",
    }  # fmt: skip
    assert errors["annotations of different numbers"].endswith("picture 3: has 1 boxes and 0 labels")
    repairs = [problem.message for problem in problems.found if not problem.is_error]
    assert len(repairs) == 3 and any(
        "picture 1, object 3: box [30.0, 10.0, 70.0, 19.0]: cut" in line for line in repairs
    )
    for number in range(1, len(rows)):  # the same without collecting: the first error raises
        if number != 6:
            dataset(row(1), rows[number]).to_parquet(tmp_path / f"{number}.parquet")
            with pytest.raises(ValueError, match=rf"{number}\.parquet \(train\): "):
                read_dataset(tmp_path / f"{number}.parquet", "train", columns=columns)
    problems = Problems(keep_going=True)
    streamed = stream_dataset(tmp_path / "rows.parquet", "train", columns=columns, problems=problems)
    assert [each["image_id"] for each in streamed.dataset] == [1, 1, 2, 3, 6]  # twice: nothing is kept in memory
    assert len(problems.found) == 7


def test_outlines_and_keypoints(tmp_path):
    objects = {
        "bbox": List(List(Value("float32"), length=4)),
        "category": List(ClassLabel(names=NAMES)),
        "is_crowd": List(Value("bool")),
        "segmentation": List(List(List(Value("float32")))),
        "keypoints": List(List(Value("float32"))),
    }
    features = Features({"image": datasets.Image(), "objects": objects})
    triangle = [1, 2, 11, 2, 11, 8]
    given = {
        "bbox": [[1, 2, 10, 6], [20, 10, 20, 10], [0, 0, 40, 20]],
        "category": [0, 0, 1],
        "is_crowd": [False, False, True],
        "segmentation": [[triangle], [[1, 2, 3]], []],
        "keypoints": [[3, 4, 2, 0, 0, 0], [1, 2, 3], []],
    }
    dataset({"image": picture(1), "objects": given}, features=features).to_parquet(tmp_path / "rows.parquet")
    problems = Problems()
    tasks = ["instance_segmentation", "keypoint_detection"]
    split = read_dataset(tmp_path / "rows.parquet", "train", tasks=tasks, num_keypoints=2, problems=problems)
    read = split.dataset[0]
    assert read["polygons_xy"] == [[triangle], [], []]
    assert read["keypoints_xyv"] == [[3, 4, 2, 0, 0, 0], [], []] and read["num_keypoints"] == [1, 0, 0]
    assert read["is_crowd"] == [False, False, True]
    kinds = {"unusable polygon", "object without outline", "keypoints of a wrong length"}
    assert set(problems.counts()) == kinds | {"boxes are taken for xywh in pixels"}
    assert [item["keypoints"] for item in split.keypoint_annotations["annotations"]] == [[3, 4, 2, 0, 0, 0]]
    assert all(item["segmentation"] for item in split.annotations["annotations"])  # evaluation cannot do without
    with pytest.raises(ValueError, match="no object has 17 usable keypoints"):
        read_dataset(tmp_path / "rows.parquet", "train", tasks=tasks)
    with pytest.raises(ValueError, match=r"has no column of captions: say which with columns\.captions"):
        read_dataset(tmp_path / "rows.parquet", "train", tasks=["captioning"])


def test_a_stream_has_an_order_for_each_epoch_and_can_be_continued(tmp_path):
    dataset(*(row(number) for number in range(12))).to_parquet(tmp_path / "rows.parquet")
    stream = stream_dataset(tmp_path / "rows.parquet", "train")
    assert stream.id2label == {1: "cat", 2: "dog"} and stream.num_rows in (None, 12)

    def ids(*args, **options):
        return [each["image_id"] for each in stream.rows(*args, **options)]

    first = ids(0, 0, buffer_size=5)
    assert sorted(first) == list(range(12)) and first != sorted(first)
    assert ids(0, 0, buffer_size=5) == first != ids(0, 1, buffer_size=5)
    assert ids(1, 0, buffer_size=5) != first
    assert ids(0, 0, buffer_size=5, skip=7) == first[7:]


def test_names_of_data_sets_and_splits(tmp_path):
    dataset(*ROWS).save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": dataset(*ROWS)}).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match=r"both: has no split 'val': there are train"):
        read_dataset(tmp_path / "both", "val")
    (tmp_path / "parquet").mkdir()
    dataset(*ROWS).to_parquet(tmp_path / "parquet/train.parquet")
    with pytest.raises(ValueError, match=r"""parquet: Unknown split "val". Should be one of \['train'\]"""):
        read_dataset(tmp_path / "parquet", "val")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises((ValueError, OSError), match=r"broken\.parquet: ") as caught:
        read_dataset(tmp_path / "broken.parquet", "train")
    assert "\n" not in str(caught.value)


def test_where_nobody_knows_the_hub_it_is_not_waited_for(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("urllib.request.getproxies", dict)
    start = time.monotonic()
    assert cli.main(["data", "inspect", "nobody/nothing", "--quiet"]) == 2
    reason = "no such folder, and the Hub, which may know a data set of this name, cannot be reached"
    assert capsys.readouterr().err == f"pix2seq data: error: nobody/nothing: {reason}\n"
    assert time.monotonic() - start < 15
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_without_a_network_a_name_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli.main(["data", "inspect", "nobody/nothing", "--split", "train"]) == 2
    reason = "no such folder, and the Hub, which may know a data set of this name, cannot be reached"
    assert capsys.readouterr().err == f"pix2seq data: error: nobody/nothing: {reason}\n"
