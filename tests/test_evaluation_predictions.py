"""From a model to COCO numbers, for all tasks: an oracle in place of the network gets them all right."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pix2seq_hf.data.coco import read_coco
from pix2seq_hf.data.rows import load_record
from pix2seq_hf.data.transforms import CropToObject, evaluation_transforms
from pix2seq_hf.evaluation import command
from pix2seq_hf.evaluation.captions import count_reproduced
from pix2seq_hf.evaluation.keypoints import evaluate_keypoints
from pix2seq_hf.evaluation.masks import evaluate_masks
from pix2seq_hf.evaluation.predictions import annotated_boxes, boxes_by_picture, caption, find_keypoints, segment
from pix2seq_hf.processing_pix2seq import TASKS
from tiny_multitask import multitask_config, multitask_processor, save_multitask

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
    """Writes what the annotations say; knows which picture comes next."""

    device = torch.device("cpu")

    def __init__(self, records):
        self.config = multitask_config(image_size=(64, 64))
        self.records = iter(records)

    def generate(self, pixel_values, decoder_input_ids, task, **generation):
        vocabulary, size = multitask_processor(self.config).vocabulary, self.config.image_size
        record = next(self.records)
        options = TASKS[task].target_options(self.config)
        if task == "captioning":
            options |= {"tokenizer": multitask_processor(self.config).caption_tokenizer, "captions_per_image": 1}
            targets = [TASKS[task].targets(record, vocabulary, **options, input_seq_drop_rate=0)]
        elif task == "instance_segmentation":
            record = evaluation_transforms(size)(record, None)
            targets = [
                TASKS[task].targets(record, vocabulary, **options, max_instances_per_image=decoder_input_ids.shape[1])
            ]
        else:
            options["mask_inputs"] = False
            rows = [
                index for index, label in enumerate(record["labels"]) if label == 1 and not record["is_crowd"][index]
            ]
            crops = [CropToObject(0.5)({**record, "object_index": index}, None) for index in rows]
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


def ask(question, model, processor, records, boxes):
    """What is found in every picture, one list."""
    by_picture = boxes_by_picture(boxes)
    found = [question(model, processor, record, by_picture.get(record["image_id"], []))[0] for record in records]
    return [item for items in found for item in items]


def test_masks(split, records):
    asked = [without_crowd(record) for record in records[:2]]
    oracle = Oracle(asked)
    processor = multitask_processor(oracle.config)
    results = ask(segment, oracle, processor, records, annotated_boxes(split.annotations))
    assert len(results) == 4 and {item["image_id"] for item in results} == {5, 6}
    assert evaluate_masks(split.annotations, results)["AP"] > 0.95


def test_keypoints(split, records):
    oracle = Oracle(records)
    processor = multitask_processor(oracle.config)
    results = ask(find_keypoints, oracle, processor, records, annotated_boxes(split.annotations))
    assert len(results) == 2 and all(item["category_id"] == 1 for item in results)
    assert results[0]["keypoints"][11] == 0 and sum(results[0]["keypoints"][2::3]) == 16
    numbers = evaluate_keypoints(split.keypoint_annotations, results[:1])
    assert numbers["AP"] > 0.95


def test_captions(records):
    oracle = Oracle(records[:2])
    processor = multitask_processor(oracle.config)
    captions = {record["image_id"]: caption(oracle, processor, record)[0] for record in records[:2]}
    references = {record["image_id"]: record["captions"] for record in records[:2]}
    assert count_reproduced(captions, references) == {"reproduced": 2, "num_captions": 2}


def test_boxes_that_cannot_be_asked_for_are_left_out(records):
    boxes = [[10, 10, 0, 5], [10, 10, -3, 5], [-50, -50, 10, 10], [70, 90, 30, 30]]
    detections = [{"image_id": 6, "category_id": 18, "bbox": box, "score": 0.9} for box in boxes]
    detections.append({"image_id": 6, "category_id": 18, "bbox": [0, 0, 9, 9], "score": 0.1})
    model, processor = (Oracle([without_crowd(records[1])]), multitask_processor(multitask_config(image_size=(64, 64))))
    seen = []
    model.generate = lambda **inputs: seen.append(inputs) or {"sequences": torch.zeros(1, 20, dtype=torch.long)}
    results = segment(model, processor, records[1], boxes_by_picture(detections, min_score=0.5)[6])[0]
    assert len(results) == 1 and seen[0]["decoder_input_ids"].shape == (1, 1, 6)
    assert segment(model, processor, records[0], []) == ([], {})


def test_command(folder, tmp_path, capsys):
    save_multitask(tmp_path / "model", image_size=(64, 64), max_instances_per_image=4)

    def evaluate(*options):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
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
