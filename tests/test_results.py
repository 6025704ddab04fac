"""results.py: what was found in a picture as attributes, dict, JSON, COCO results and a drawing."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pix2seq_hf import Pix2SeqVocabulary
from pix2seq_hf.given_boxes import read_boxes
from pix2seq_hf.masks_pix2seq import mask_to_rle
from pix2seq_hf.results import Keypoint, Pix2SeqObject, Pix2SeqResult

NAMES = ("nose", "tail")
ID2LABEL = {1: "person", 18: "dog"}


@pytest.fixture
def mask():
    mask = np.zeros((40, 60), np.uint8)
    mask[5:20, 10:31] = 1
    return mask


@pytest.fixture
def result(mask):
    points = [Keypoint("nose", 12.5, 7.25, 0.5, True), Keypoint("tail", 30.0, 19.0, 0.25, False)]
    person = Pix2SeqObject(
        score=0.123456789,
        label="person",
        label_id=1,
        box_xyxy=(10.0, 5.0, 31.0, 20.126),
        rle=mask_to_rle(mask),
        polygons_xy=[[10.0, 5.0, 31.0, 5.0, 31.0, 20.0]],
        keypoints=points,
        keypoints_score=0.375,
    )
    dog = Pix2SeqObject(score=0.75, label="dog", label_id=18, box_xyxy=(0.0, 0.0, 60.0, 40.0))
    picture = Image.new("RGB", (60, 40), "gray")
    return Pix2SeqResult(
        size=(40, 60),
        objects=[person, dog],
        captions=["a dog and a person"],
        tasks=("object_detection", "captioning"),
        malformed={"object_detection": {"inverted": 2}, "captioning": {}},
        image=picture,
        id2label=ID2LABEL,
        keypoint_names=NAMES,
    )


def test_it_reads_like_the_dict_of_the_call_site(result, mask):
    assert list(result) == ["objects", "captions"] and dict(result)["captions"] == ["a dog and a person"]
    found = result["objects"][0]
    assert set(found) == {"score", "label", "box", "mask", "keypoints"} and len(found) == 5
    assert found["label"] == "person" == found.label
    assert found["box"] == {"xmin": 10.0, "ymin": 5.0, "xmax": 31.0, "ymax": 20.126}
    assert found["mask"].dtype == np.uint8 and np.array_equal(found["mask"], mask)
    assert found["keypoints"][1].name == "tail" and found["keypoints"][1].y == 19.0
    assert result["objects"][1]["mask"] is None and result["objects"][1]["keypoints"] is None
    with pytest.raises(KeyError, match="'boxes': there are objects, captions"):
        result["boxes"]


def test_arrays(result, mask):
    assert result.boxes_xyxy.shape == (2, 4) and result.boxes_xyxy.dtype == np.float32
    assert result.scores.tolist() == pytest.approx([0.123456789, 0.75]) and result.label_ids.tolist() == [1, 18]
    assert np.array_equal(result.masks, np.stack([mask, np.zeros_like(mask)]))
    assert result.keypoints_xy[0].tolist() == [[12.5, 7.25], [30.0, 19.0]]
    assert np.isnan(result.keypoints_xy[1]).all()


def test_arrays_of_no_objects_have_their_shapes():
    result = Pix2SeqResult(size=(40, 60), keypoint_names=NAMES)
    assert result.boxes_xyxy.shape == (0, 4) and result.scores.shape == (0,) and result.label_ids.shape == (0,)
    assert result.masks.shape == (0, 40, 60) and result.keypoints_xy.shape == (0, 2, 2)
    assert result.to_coco() == [] and json.loads(result.to_json())["objects"] == []


def test_json(result):
    assert "\n" not in result.to_json() and "\n" in result.to_json(indent=1)
    found = json.loads(result.to_json())
    assert (found["width"], found["height"]) == (60, 40)
    assert found["captions"] == ["a dog and a person"] and found["tasks"] == ["object_detection", "captioning"]
    assert found["malformed"] == {"object_detection": {"inverted": 2}}
    person, dog = found["objects"]
    assert person["score"] == 0.12346 and person["box"]["ymax"] == 20.13 and person["label_id"] == 1
    assert person["rle"] == result.objects[0].rle
    assert person["keypoints"][0] == {"name": "nose", "x": 12.5, "y": 7.25, "score": 0.5, "visible": True}
    assert set(dog) == {"score", "label", "label_id", "box"}


@pytest.mark.parametrize("form", ["result", "json", "coco"])
def test_objects_can_be_asked_about_again(result, form):
    forms = {
        "result": result.objects,
        "json": json.loads(result.to_json())["objects"],
        "coco": json.loads(json.dumps(result.to_coco())),
    }
    boxes = read_boxes((40, 60), Pix2SeqVocabulary(id2label=ID2LABEL), objects=forms[form])
    assert np.allclose(boxes.boxes_xyxy, result.boxes_xyxy, atol=0.005)
    assert boxes.labels.tolist() == [1, 18]
    assert boxes.scores.tolist() == pytest.approx([0.123457, 0.75], abs=1e-5)


def test_coco_entries(result):
    both = result.to_coco(image_id=7)
    assert both[0]["image_id"] == 7 and both[0]["category_id"] == 1 and both[0]["score"] == 0.123456789
    assert both[0]["bbox"] == pytest.approx([10.0, 5.0, 21.0, 15.126])
    assert both[0]["keypoints"] == [12.5, 7.25, 1, 30.0, 19.0, 1]
    assert both[0]["segmentation"] == result.objects[0].rle
    assert set(both[1]) == {"image_id", "category_id", "bbox", "score"}
    boxes = result.to_coco(7, "object_detection")
    assert [set(entry) for entry in boxes] == [{"image_id", "category_id", "bbox", "score"}] * 2
    [points] = result.to_coco(7, "keypoint_detection")  # the dog has none
    assert points["score"] == 0.375 and "bbox" not in points
    [masks] = result.to_coco(7, "instance_segmentation")
    assert masks["score"] == 0.123456789 and "keypoints" not in masks
    assert result.to_coco(7, "captioning") == [{"image_id": 7, "caption": "a dog and a person"}]
    with pytest.raises(ValueError, match="unknown task 'masks'"):
        result.to_coco(7, "masks")


def test_pycocotools_reads_them(result, mask):
    coco_module = pytest.importorskip("pycocotools.coco")
    coco = coco_module.COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": 7, "width": 60, "height": 40}],
        "annotations": [],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }
    coco.createIndex()
    masks = coco.loadRes(result.to_coco(7, "instance_segmentation"))
    assert np.array_equal(masks.annToMask(masks.anns[1]), mask)
    assert coco.loadRes(result.to_coco(7, "object_detection")).anns[2]["area"] == 2400
    assert len(coco.loadRes(result.to_coco(7, "keypoint_detection")).anns) == 1


def test_drawing(result):
    before = np.array(result.image)
    drawing = result.draw()
    assert np.array_equal(np.array(result.image), before)  # a copy
    assert drawing.width == 60 and drawing.height > 40  # the caption stands below
    shown = Image.open(io.BytesIO(result._repr_png_()))
    assert shown.format == "PNG" and shown.size == drawing.size


@pytest.mark.parametrize("part", ["rle", "keypoints", "box", "captions"])
def test_everything_is_drawn(result, part):
    result.image = Image.new("RGB", (600, 400), "gray")
    person = result.objects[0]
    mask = np.zeros((400, 600), np.uint8)
    mask[50:200, 100:310] = 1
    points = [Keypoint("nose", 125.0, 72.0, 0.9, True), Keypoint("tail", 300.0, 190.0, 0.8, True)]
    person = replace(person, box_xyxy=(100.0, 50.0, 310.0, 200.0), rle=mask_to_rle(mask), keypoints=points)
    result.size, result.objects, result.keypoint_skeleton = (400, 600), [person], [(0, 1)]
    whole = np.array(result.draw())
    if part == "captions":
        result.captions = []
    elif part == "box":
        result.objects = [replace(person, box_xyxy=(90.0, 40.0, 330.0, 220.0))]
    else:
        result.objects = [replace(person, **{part: None})]
    less = np.array(result.draw())
    assert less.shape != whole.shape or (less != whole).any(-1).sum() > 50


def test_notebooks_show_large_pictures_smaller():
    result = Pix2SeqResult(size=(1500, 3000), image=Image.new("RGB", (3000, 1500)))
    shown = Image.open(io.BytesIO(result._repr_png_()))
    assert max(shown.size) == 1024


def test_without_picture(result):
    result.image = None
    assert result._repr_png_() is None
    with pytest.raises(ValueError, match="no picture to draw on"):
        result.draw()


def test_text(result):
    assert repr(result) == "Pix2SeqResult(60 x 40: 1 person, 1 dog, 'a dog and a person')"
    assert repr(Pix2SeqResult(size=(40, 60))) == "Pix2SeqResult(60 x 40: no objects)"


def test_an_object_prints_on_one_line():
    found = Pix2SeqObject(score=0.931, label="dog", label_id=18, box_xyxy=(12.4, 40.0, 96.6, 230.0), keypoints=[])
    assert repr(found) == "Pix2SeqObject('dog', score 0.93, box (12, 40, 97, 230), keypoints)"
