"""Reading of Pascal VOC folders: what comes out, what is mended, and one line for what cannot be."""

import pytest
import torch
from PIL import Image

from pix2seq_hf.data.problems import Problems
from pix2seq_hf.data.rows import load_record
from pix2seq_hf.data.voc import list_splits, parse_xml, read_classes, read_voc

SIZE = "<size><width>40</width><height>20</height><depth>3</depth></size>"


def describe(*objects, size=SIZE, filename="", database="Unknown", head=""):
    return (
        f"{head}<annotation><folder>../../etc</folder><filename>{filename}</filename><path>/home/me/a.jpg</path>"
        f"<source><database>{database}</database></source>{size}{''.join(objects)}</annotation>"
    )


def box(name, *corners, extra=""):
    texts = "".join(f"<{corner}>{value}</{corner}>" for corner, value in zip(("xmin", "ymin", "xmax", "ymax"), corners))
    return f"<object><name>{name}</name>{extra}<bndbox>{texts}</bndbox></object>"


DOG = box("dog", 10, 5, 30, 15)


@pytest.fixture
def write(tmp_path):
    """Write a VOC folder of pictures a, b and c; the description of a is given."""

    def write_folder(first):
        for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for name in "abc":
            Image.new("RGB", (40, 20)).save(tmp_path / f"JPEGImages/{name}.png")
        (tmp_path / "Annotations/a.xml").write_text(first)
        (tmp_path / "Annotations/b.xml").write_text(describe())
        (tmp_path / "Annotations/c.xml").write_text(describe(box("cat", 0, 0, 40, 20)))
        (tmp_path / "ImageSets/Main/train.txt").write_text("b\na\n")
        (tmp_path / "ImageSets/Main/val.txt").write_text("c\r\n\r\n")
        (tmp_path / "ImageSets/Main/dog_train.txt").write_text("b -1\na 1\n")
        return tmp_path

    return write_folder


def test_rows_records_and_ground_truth(write):
    hard = box("cat", 1.5, 2, 3, 4, extra="<truncated>1</truncated><difficult>1</difficult>")
    folder, problems = write(describe(DOG, hard, filename="elsewhere.jpg")), Problems()
    split = read_voc(folder, "train", problems=problems)
    assert not problems.found
    assert split.id2label == {1: "cat", 2: "dog"} == read_voc(folder, "val").id2label
    assert split.dataset["image_id"] == [1, 2]
    record = load_record(split.dataset[1])
    assert record["image"].shape == (3, 20, 40)
    torch.testing.assert_close(record["boxes_yxyx"][0], torch.tensor([0.25, 0.25, 0.75, 0.75]))
    assert record["labels"].tolist() == [2, 1] and record["is_crowd"].tolist() == [False, True]
    assert load_record(split.dataset[0])["boxes_yxyx"].shape == (0, 4)
    assert split.annotations["images"][1] == {"id": 2, "file_name": "a.png", "height": 20, "width": 40}
    first, second = split.annotations["annotations"]
    assert first == {
        "id": 1, "image_id": 2, "category_id": 2, "bbox": [10, 5, 20, 10], "area": 200, "iscrowd": 0, "difficult": 0,
        "truncated": 0,
    }  # fmt: skip
    assert second["bbox"] == [1.5, 2, 1.5, 2]
    assert (second["iscrowd"], second["difficult"], second["truncated"]) == (1, 1, 1)
    assert split.annotations["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def test_the_original_counts_pixels_from_one(write):
    folder = write(describe(box("dog", 1, 1, 40, 20), database="The VOC2007 Database"))
    assert read_voc(folder, "train").annotations["annotations"][0]["bbox"] == [0, 0, 40, 20]


def test_splits(write, tmp_path):
    folder = write(describe(DOG))
    assert list_splits(folder) == ["train", "val", "all"]
    assert read_voc(folder, "all").dataset["image_id"] == [1, 2, 3]
    assert read_voc(folder, "all", image_ids=[3, 1]).dataset["image_id"] == [3, 1]
    assert len(read_voc(folder, "train", max_images=1).dataset) == 1
    with pytest.raises(OSError, match=r"has no split 'test' \(splits that are there: train, val, all\)"):
        read_voc(folder, "test")
    with pytest.raises(ValueError, match=r"train\.txt: lists no picture with id 3"):
        read_voc(folder, "train", image_ids=[3])
    with pytest.raises(OSError, match=r"nowhere: not a VOC folder"):
        read_voc(folder / "nowhere", "train")
    (folder / "ImageSets/Main/train.txt").write_text("../../a\n")
    with pytest.raises(ValueError, match=r"train\.txt: '\.\./\.\./a' is no name of a file in Annotations"):
        read_voc(folder, "train")
    with pytest.raises(ValueError, match="has boxes only, nothing for captioning"):
        read_voc(folder, "val", tasks=["captioning"])


def test_pictures_beside_their_annotations(tmp_path):
    (tmp_path / "valid").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "valid/a.jpg")
    (tmp_path / "valid/a.xml").write_text(describe(DOG))
    assert list_splits(tmp_path) == ["valid"]
    assert read_voc(tmp_path, "valid").id2label == {1: "dog"}


@pytest.mark.parametrize(
    ("first", "kind", "message", "boxes"),
    [
        (describe(box("dog", 5, 5, 5, 9)), "box without area", r"object 1 \(dog\), \(5, 5\) to \(5, 9\)", []),
        (describe(box("dog", 50, 5, 60, 9)), "box outside of its picture", "left out", []),
        (describe(box("dog", -5, 5, 60, 9)), "box that reaches out of its picture", "clipped", [[0, 5, 40, 4]]),
        (describe(box("dog", 30, 15, 10, 5)), "corners swapped", "wrong order", [[10, 5, 20, 10]]),
        (describe(box("dog", "nan", 5, 6, 7)), "box that is not four finite numbers", "left out", []),
        (describe(box("dog", "", 5, 6, 7)), "box that is not four finite numbers", "no <bndbox> of four", []),
        (describe(box("dog", 1, 2)), "box that is not four finite numbers", "left out", []),
        (describe(box(" ", 1, 2, 3, 4)), "object without class", r"object 1 \(without name\) has no <name>", []),
        (describe(DOG, size=""), "picture size missing", "taken from a.png", [[10, 5, 20, 10]]),
        (
            describe(DOG, size="<size><width>20</width><height>40</height></size>"),
            "picture size swapped", "<size> is 20 x 40, a.png is 40 x 20", [[10, 5, 20, 10]],
        ),
    ],
)  # fmt: skip
def test_what_is_mended(write, first, kind, message, boxes):
    problems = Problems()
    split = read_voc(write(first), "train", problems=problems)
    assert [item["bbox"] for item in split.annotations["annotations"]] == boxes
    found = [problem for problem in problems.found if problem.kind != "no annotations"]
    assert [problem.kind for problem in found] == [kind] and message.replace("\\", "") in found[0].message
    assert found[0].message.startswith(str(write(first) / "Annotations/a.xml")) and "\n" not in found[0].message
    assert bool(boxes) != ("no annotations" in problems.counts())


BOMB = "<!DOCTYPE a [<!ENTITY b 'bbbbbbbb'><!ENTITY c '&b;&b;&b;&b;'><!ENTITY d '&c;&c;&c;&c;'>]>"


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (describe(DOG)[:90], r"a\.xml: not valid XML \(.*\); is the file complete\?"),
        ("", r"a\.xml: not valid XML"),
        ("<html></html>", r"a\.xml: not a VOC annotation \(it begins with <html>"),
        (describe(DOG, head='<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd">'), r"a\.xml: has a document type"),
        (describe(box("&x;", 1, 2, 3, 4), head='<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'), "remove it"),
        (describe(box("&d;", 1, 2, 3, 4), head=BOMB), "has a document type"),
        (describe(box("&x;", 1, 2, 3, 4)), "not valid XML .*undefined entity"),
        (describe(DOG, head='<?xml version="1.0" encoding="nonsense"?>'), r"a\.xml: "),
        (
            describe(DOG, size="<size><width>41</width><height>20</height></size>"),
            r"a\.xml: <size> is 41 x 20, but .*a\.png is 40 x 20 pixels",
        ),
    ],
)
def test_what_cannot_be_mended_is_named(write, first, message):
    folder = write(first)
    with pytest.raises(ValueError, match=message) as caught:
        read_voc(folder, "train")
    assert "\n" not in str(caught.value)
    problems = Problems(keep_going=True)  # one pass finds the rest too
    (folder / "JPEGImages/b.png").unlink()
    assert len(read_voc(folder, "all", problems=problems).dataset) == 1
    assert [problem.is_error for problem in problems.found] == [True, True]
    assert "b.xml: there is no picture b.jpg" in problems.errors[1].message


def test_document_types_are_found_in_any_encoding(tmp_path):
    (tmp_path / "a.xml").write_bytes(f"<!DOCTYPE a>{describe(DOG)}".encode("utf-16"))
    with pytest.raises(ValueError, match="has a document type"):
        parse_xml(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_bytes(describe(DOG).encode("utf-16"))
    assert parse_xml(tmp_path / "a.xml").tag == "annotation"


def test_broken_pictures_are_named(write):
    folder = write(describe(DOG))
    (folder / "JPEGImages/a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png: is not a picture.*; .*a\.xml describes it"):
        read_voc(folder, "train")


def test_a_listed_file_that_is_not_there(write):
    folder = write(describe(DOG))
    (folder / "Annotations/b.xml").unlink()
    with pytest.raises(ValueError, match=r"b\.xml: no such file, but .*train\.txt lists 'b': remove that line$"):
        read_voc(folder, "train")


def test_lost_pictures_can_keep_their_rows(write):
    """Where size and objects are known without them: rows are the same as before."""
    folder = write(describe(DOG))
    whole = read_voc(folder, "train")
    (folder / "JPEGImages/a.png").unlink()
    problems = Problems(lost="kept")
    split = read_voc(folder, "train", problems=problems)
    assert [row | {"image": None} for row in split.dataset] == [row | {"image": None} for row in whole.dataset]
    assert split.dataset[1]["image"]["path"] == str(folder / "JPEGImages/a.jpg") and len(problems.left_out) == 0
    assert len(problems.lost) == 1 and "there is no picture a.jpg" in problems.lost[0].message
    problems = Problems(lost="left out")
    assert read_voc(folder, "train", problems=problems).dataset["image_id"] == [1] and len(problems.left_out) == 1
    (folder / "Annotations/a.xml").write_text(describe(DOG, size=""))
    problems = Problems(lost="kept")  # its size would be that of the picture
    assert read_voc(folder, "train", problems=problems).dataset["image_id"] == [1] and len(problems.left_out) == 1


def test_pictures_stored_on_their_side(write):
    folder = write(describe(box("dog", 1, 2, 3, 4), size="<size><width>20</width><height>40</height></size>"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(folder / "JPEGImages/a.png", exif=exif)
    problems = Problems()
    split = read_voc(folder, "train", problems=problems)
    assert not problems.found and load_record(split.dataset[1])["image"].shape == (3, 40, 20)


def test_no_class_at_all(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text(describe())
    with pytest.raises(ValueError, match="no XML file lists an object"):
        read_classes(tmp_path)
    (tmp_path / "Annotations/b.xml").write_text(describe(DOG)[:50])
    with pytest.raises(ValueError, match=r"b\.xml: not valid XML"):
        read_classes(tmp_path)


def test_blood_cells():
    from conftest import PROJECT_ROOT

    folder = PROJECT_ROOT.parent / "shared/data/bccd"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    for split, num_images, num_objects, broken in (("train", 205, 2804, "00343"), ("val", 87, 1137, "00338")):
        problems = Problems()
        opened = read_voc(folder, split, problems=problems)
        assert opened.id2label == {1: "Platelets", 2: "RBC", 3: "WBC"}
        assert (len(opened.dataset), len(opened.annotations["annotations"])) == (num_images, num_objects)
        assert problems.counts() == {"box without area": 1}
        assert f"BloodImage_{broken}.xml: object" in problems.found[0].message
