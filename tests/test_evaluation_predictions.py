"""From a model to COCO numbers, for all tasks: an oracle in place of the network gets them all right."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutput

from pix2seq_hf import cli
from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.rows import load_record
from pix2seq_hf.data.transforms import CropToObject, evaluation_transforms
from pix2seq_hf.evaluation import command
from pix2seq_hf.evaluation.captions import count_reproduced
from pix2seq_hf.evaluation.keypoints import evaluate_keypoints
from pix2seq_hf.evaluation.masks import evaluate_masks
from pix2seq_hf.evaluation.predictions import (
    Question,
    annotated_boxes,
    answer,
    boxes_by_picture,
    caption,
    encode,
    find_keypoints,
    group_alike,
    segment,
)
from pix2seq_hf.processing_pix2seq import TASKS
from tiny_multitask import multitask_config, multitask_model, multitask_processor, save_multitask

SIZE = (100, 80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pictures: two persons, of which one has keypoints, and a dog; a dog; nothing."""
    folder, rng = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    (folder / "annotations").mkdir()
    (folder / "val").mkdir()
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in (5, 6, 7)]
    for image in images:
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(folder / "val" / image["file_name"])
    boxes = {
        1: (5, 1, [10, 10, 40, 80]),
        2: (5, 1, [50, 20, 20, 60]),
        3: (5, 18, [5, 60, 60, 30]),
        4: (6, 18, [20, 5, 50, 90]),
    }
    annotations = []
    for index, (image, label, (x, y, w, h)) in boxes.items():
        outline = [x, y, x + w, y, x + w, y + h, x + w / 2, y + h, x, y + h / 2]
        entry = {"id": index, "image_id": image, "category_id": label, "bbox": [x, y, w, h], "iscrowd": 0}
        annotations.append({**entry, "area": 0.875 * w * h, "segmentation": [outline]})
    annotations.append(
        {
            "id": 9, "image_id": 6, "category_id": 1, "bbox": [0, 0, 80, 100], "area": 8000, "iscrowd": 1,
            "segmentation": {"size": [100, 80], "counts": [0, 8000]},
        }
    )  # fmt: skip
    points = np.stack([rng.uniform(15, 45, 17), rng.uniform(15, 85, 17), np.full(17, 2)], -1)
    points[3] = 0
    keypoints = [
        {**annotations[0], "keypoints": points.reshape(-1).tolist(), "num_keypoints": 16},
        {**annotations[1], "keypoints": [0] * 51, "num_keypoints": 0},
    ]
    captions = [
        {"id": i, "image_id": i, "caption": text} for i, text in ((5, "the person with a dog"), (6, "a red dog"))
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 90, "name": "toothbrush"}]
    for kind, entries in (("instances", annotations), ("person_keypoints", keypoints), ("captions", captions)):
        content = {"images": images, "annotations": entries, "categories": categories}
        (folder / f"annotations/{kind}_val.json").write_text(json.dumps(content))
    return folder


class Oracle:
    """Writes what the annotations say; its encoding of a picture is the picture's number."""

    device = torch.device("cpu")

    def __init__(self, records):
        self.config = multitask_config(image_size=(64, 64))
        self.records = records
        self.asked = []  # how many pictures, or cuts of them, at once

    def get_encoder(self):
        numbers = torch.arange(len(self.records), dtype=torch.float32).reshape(-1, 1, 1)
        return lambda pixel_values: BaseModelOutput(last_hidden_state=numbers)

    def generate(self, task, encoder_outputs=None, decoder_input_ids=None, pixel_values=None, **generation):
        vocabulary, size = multitask_processor(self.config).vocabulary, self.config.image_size
        if encoder_outputs is not None:
            records = [self.records[int(number)] for number in encoder_outputs.last_hidden_state.flatten()]
        self.asked.append(len(records) if pixel_values is None else len(pixel_values))
        options = TASKS[task].target_options(self.config)
        if task == "captioning":
            options |= {"tokenizer": multitask_processor(self.config).caption_tokenizer, "captions_per_image": 1}
            targets = [TASKS[task].targets(record, vocabulary, **options, input_seq_drop_rate=0) for record in records]
        elif task == "instance_segmentation":
            records = [evaluation_transforms(size)(record, None) for record in records]
            options["max_instances_per_image"] = decoder_input_ids.shape[1]
            targets = [TASKS[task].targets(record, vocabulary, **options) for record in records]
        else:
            options["mask_inputs"] = False
            crops = [
                CropToObject(0.5)({**record, "object_index": index}, None)
                for record in self.records
                for index, label in enumerate(record["labels"])
                if label == 1 and not record["is_crowd"][index]
            ]
            crops = [evaluation_transforms(size)(crop, None) for crop in crops]
            targets = [TASKS[task].targets(crop, vocabulary, **options) for crop in crops]
        sequences = torch.cat([torch.cat([each.decoder_input_ids[..., :1], each.labels], -1) for each in targets])
        if task != "captioning":
            prompts = decoder_input_ids.flatten(0, -2)
            assert sequences[:, :6].equal(prompts)  # the boxes asked about are those of training
        return {"sequences": sequences}


@pytest.fixture(scope="module")
def split(folder):
    return read_coco(folder, "val", tasks=list(TASKS))


@pytest.fixture(scope="module")
def records(split):
    return [load_record(row, max_points_per_object=8) for row in split.dataset]


def without_crowd(record):
    kept = {
        name: value[~record["is_crowd"]] for name, value in record.items() if name.endswith("_yx") or name == "labels"
    }
    return {
        **record,
        **kept,
        "boxes_yxyx": record["boxes_yxyx"][~record["is_crowd"]],
        "is_crowd": torch.zeros(len(kept["labels"])),
    }


def ask(function, oracle, boxes=None):
    """What is found in every picture, one list; oracles need no seeds."""
    processor = multitask_processor(oracle.config)
    pictures = encode(oracle, processor, oracle.records)
    by_picture = boxes_by_picture(boxes or [])
    boxes = [] if boxes is None else [[by_picture.get(record["image_id"], []) for record in oracle.records]]
    found = function(oracle, processor, pictures, *boxes, [0] * len(oracle.records))
    return [item for items, _ in found for item in items]


def test_masks(split, records):
    """Pictures with 3, 1 and 0 objects: the first two are too different to be asked about together."""
    oracle = Oracle([without_crowd(record) for record in records])
    results = ask(segment, oracle, annotated_boxes(split.annotations))
    assert len(results) == 4 and [item["image_id"] for item in results] == [5, 5, 5, 6] and oracle.asked == [1, 1]
    assert evaluate_masks(split.annotations, results)["AP"] > 0.95
    oracle = Oracle([without_crowd(records[index]) for index in (1, 0, 0)])
    assert [item["image_id"] for item in ask(segment, oracle, annotated_boxes(split.annotations))] == [6] + 6 * [5]
    assert oracle.asked == [3]


def test_keypoints(split, records):
    oracle = Oracle(records)
    results = ask(find_keypoints, oracle, annotated_boxes(split.annotations))
    assert len(results) == 2 and all(item["category_id"] == 1 for item in results)
    assert results[0]["keypoints"][11] == 0 and sum(results[0]["keypoints"][2::3]) == 16
    numbers = evaluate_keypoints(split.keypoint_annotations, results[:1])
    assert numbers["AP"] > 0.95


def test_captions(records):
    oracle = Oracle(records[:2])
    captions = {item["image_id"]: item["caption"] for item in ask(caption, oracle)}
    references = {record["image_id"]: record["captions"] for record in records[:2]}
    assert count_reproduced(captions, references) == {"reproduced": 2, "num_captions": 2} and oracle.asked == [2]


def test_boxes_that_cannot_be_asked_for_are_left_out(records):
    boxes = [[10, 10, 0, 5], [10, 10, -3, 5], [-50, -50, 10, 10], [70, 90, 30, 30]]
    detections = [{"image_id": 6, "category_id": 18, "bbox": box, "score": 0.9} for box in boxes]
    detections.append({"image_id": 6, "category_id": 18, "bbox": [0, 0, 9, 9], "score": 0.1})
    detections.append({"image_id": 6, "category_id": 33, "bbox": [0, 0, 9, 9], "score": 0.9})  # a class without a name
    model, seen = Oracle([without_crowd(records[1])]), []
    model.generate = lambda **inputs: seen.append(inputs) or {"sequences": torch.zeros(1, 20, dtype=torch.long)}
    results = ask(segment, model, [item for item in detections if item["score"] > 0.5])
    assert len(results) == 1 and seen[0]["decoder_input_ids"].shape == (1, 1, 6)
    assert ask(segment, model, []) == [] and ask(find_keypoints, model, detections) == [] and len(seen) == 1


def test_a_batch_finds_what_pictures_find_alone(records, monkeypatch):
    """Detected boxes, annotated ones, and more objects than are asked about at once; only rounding may differ."""
    model = multitask_model(image_size=(64, 64), keypoint_labels=[1, 18])
    processor = multitask_processor(model.config)
    records = [{**records[index % 3], "image_id": 5 + index} for index in range(5)]
    rng = np.random.default_rng(1)
    corners, sides = rng.integers(0, 40, (40, 2)), rng.integers(5, 40, (40, 2))
    boxes = [
        {"image_id": int(5 + index**2 % 5), "category_id": 1, "bbox": [*map(float, (*xy, *wh))], "score": 0.5}
        for index, (xy, wh) in enumerate(zip(corners, sides, strict=True))
    ]
    for given in (None, boxes):
        question = Question(list(TASKS), given, min_score=0.0, seed=3)
        alone = [found for record in records for found in answer(model, processor, [record], question)]
        monkeypatch.setattr("pix2seq_hf.evaluation.predictions.CUTS_PER_PICTURE", 3 if given is None else 1)
        together = answer(model, processor, records, question)
        assert [found.image_id for found in together] == [5, 6, 7, 8, 9]
        for one, other in zip(alone, together, strict=True):
            assert one.malformed == other.malformed
            for task in TASKS:
                scores, others = ([item.pop("score", 0) for item in found.results[task]] for found in (one, other))
                assert one.results[task] == other.results[task] and others == pytest.approx(scores, abs=1e-5)
        assert all(sum(len(found.results[task]) for found in together) >= 5 for task in question.tasks)


def test_pictures_with_like_numbers_of_objects_are_asked_about_together():
    assert group_alike([0, 3, 20, 0, 4, 19, 4], most=100) == [[2, 5], [4, 6, 1]]
    assert group_alike([10, 10, 10, 10, 10], most=30) == [[0, 1, 2], [3, 4]]
    assert group_alike([50, 40], most=30) == [[0], [1]] and group_alike([0, 0], most=30) == []
    assert group_alike([8, 1, 1, 1], most=100) == [[0], [1, 2, 3]]  # 3 of 4 rows would be padding


def test_command(folder, tmp_path, capsys):
    save_multitask(tmp_path / "model", image_size=(64, 64), max_instances_per_image=4)

    def evaluate(*options):
        parser = cli.build_parser("evaluate", command)
        given = ["--model", tmp_path / "model", "--data", folder, "--split", "val", "--quiet", *options]
        return command.run(parser.parse_args([str(option) for option in given]))

    files = ["--json", tmp_path / "numbers.json", "--output", tmp_path / "found"]
    assert evaluate("--tasks", "all", "--boxes", "annotated", "--greedy", *files) == 0
    output = capsys.readouterr().out
    for shown in (
        "average precision",
        "instance_segmentation for annotated boxes: masks AP ",
        "captioning: 0 of 2 captions",
    ):
        assert shown in output
    numbers = json.loads((tmp_path / "numbers.json").read_text())["tasks"]
    assert set(numbers) == {*TASKS} and "AR" in numbers["keypoint_detection"] and "AP" in numbers["object_detection"]
    found = {task: json.loads((tmp_path / f"found/{task}.json").read_text()) for task in TASKS}
    assert len(found["instance_segmentation"]) == 4 and len(found["captioning"]) == 2 + 1
    with pytest.raises(ValueError, match=r"was begun with tasks .*, now it is .*: take the same, or another --output"):
        evaluate("--tasks", "keypoint_detection", *files)
    evaluate("--tasks", "keypoint_detection", *files[:2])
    assert set(json.loads((tmp_path / "numbers.json").read_text())["tasks"]) == {"keypoint_detection"}
    with pytest.raises(ValueError, match=r"--tasks: unknown task 'keypoints': known are object_detection, .*, and all"):
        evaluate("--tasks", "keypoints")
    save_multitask(tmp_path / "model", image_size=(64, 64), tasks=["captioning"])
    with pytest.raises(ValueError, match=r"was not trained for object_detection: its tasks are captioning"):
        evaluate()
