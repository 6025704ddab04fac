"""The modules of the library `evaluate`: the numbers of the functions, picture by picture, and wrong rows."""

import threading

import numpy as np
import pytest
import torch

import evaluate
from pix2seq_hf.evaluation import metrics
from pix2seq_hf.evaluation.boxes import evaluate_boxes
from pix2seq_hf.evaluation.captions import evaluate_captions
from pix2seq_hf.evaluation.coco_numbers import per_class
from pix2seq_hf.evaluation.keypoints import evaluate_keypoints
from pix2seq_hf.evaluation.masks import evaluate_masks
from pix2seq_hf.evaluation.metrics import Pix2SeqMetric
from pix2seq_hf.evaluation.voc import evaluate_voc
from pix2seq_hf.masks_pix2seq import mask_to_rle

FUNCTIONS = {
    "boxes": evaluate_boxes, "voc": evaluate_voc, "masks": evaluate_masks, "keypoints": evaluate_keypoints,
}  # fmt: skip
CATEGORIES = [{"id": 1, "name": "car"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cat"}]
SIZE = {"height": 100, "width": 120}


@pytest.fixture
def module(tmp_path):
    return lambda name, **options: Pix2SeqMetric(name, cache_dir=str(tmp_path), **options)


def pictures():
    """Four pictures with some objects, of which most are found, about; the last one is empty."""
    rng = np.random.default_rng(0)
    references, predictions = [], []
    for image_id in (11, 12, 13, 14):
        annotations, found = [], []
        for index in range(0 if image_id == 14 else 4):
            x, y, w, h = box = [int(number) for number in rng.integers([0, 0, 20, 20], [70, 50, 50, 50])]
            near = [x + int(rng.integers(0, 4)), y, w, h]
            points = np.stack([rng.uniform(x, x + w, 17), rng.uniform(y, y + h, 17), np.full(17, 2)], -1)
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {
                    "category_id": 1 + index % 2, "bbox": box, "segmentation": [outline], "iscrowd": int(index == 3),
                    "keypoints": points.reshape(-1).tolist(), "area": w * h, "source": "left out",
                }
            )  # fmt: skip
            mask = np.zeros((100, 120), np.uint8)
            mask[y : y + h, near[0] : near[0] + w] = 1
            if index:
                shifted = (points + [0.3, 0, 0]).reshape(-1).tolist()
                found.append(
                    {
                        "category_id": 1 + index % 2, "bbox": near, "segmentation": mask_to_rle(mask),
                        "keypoints": shifted, "score": float(rng.uniform()),
                    }
                )  # fmt: skip
        references.append({"image_id": image_id, **SIZE, "annotations": annotations})
        predictions.append(found)
    return predictions, references


def as_coco(predictions, references):
    truth = {
        "images": [{"id": item["image_id"], **SIZE} for item in references],
        "annotations": [
            {"image_id": item["image_id"], **annotation} for item in references for annotation in item["annotations"]
        ],
        "categories": CATEGORIES,
    }
    for index, item in enumerate(truth["annotations"]):
        item["id"] = index
    results = [
        {"image_id": item["image_id"], **result}
        for item, found in zip(references, predictions, strict=True)
        for result in found
    ]
    return truth, results


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_module_gives_what_its_function_gives(module, name):
    predictions, references = pictures()
    metric = module(name)
    metric.add_batch(predictions=predictions[:3], references=references[:3])
    metric.add(prediction=predictions[3], reference=references[3])
    numbers = metric.compute(categories=CATEGORIES)
    assert numbers == pytest.approx(FUNCTIONS[name](*as_coco(predictions, references)))
    assert 0.1 < numbers["AP50" if name == "voc" else "AP"] < 1
    # It can be used again.
    assert metric.compute(predictions=predictions, references=references, categories=CATEGORIES) == numbers


@pytest.mark.parametrize("name", ["boxes", "masks", "keypoints"])
def test_table_of_classes(module, name):
    predictions, references = pictures()
    options = {"categories": CATEGORIES, "per_class": True, "engine": "pycocotools"}
    table = module(name).compute(predictions=predictions, references=references, **options)["per_class"]
    assert table == per_class(*as_coco(predictions, references), name) and list(table) == ["car", "dog", "cat"]
    table = module(name).compute(predictions=predictions, references=references, per_class=True)["per_class"]
    assert list(table) == ["1", "2"]


def test_captions(module):
    numbers = module("captions").compute(
        predictions=["a dog runs", "two cats"],
        references=[["a dog runs"], ["cats", "two big cats"]],
        tokenizer="simple",
    )
    captions = [(0, "a dog runs"), (1, "cats"), (1, "two big cats")]
    truth = {"annotations": [{"image_id": index, "caption": text} for index, text in captions]}
    results = [{"image_id": 0, "caption": "a dog runs"}, {"image_id": 1, "caption": "two cats"}]
    assert numbers == evaluate_captions(truth, results, tokenizer="simple") and numbers["reproduced"] == 1


def test_arrays_and_tensors(module):
    found = [{"category_id": torch.tensor(1), "bbox": np.array([1, 2, 30, 40.0]), "score": torch.tensor(0.5)}]
    reference = {"image_id": np.int64(5), "annotations": [{"category_id": 1, "bbox": torch.tensor([1, 2, 30, 40])}]}
    assert module("boxes").compute(predictions=[found], references=[reference])["AP"] == pytest.approx(1)


def test_run_lengths_of_any_form(module):
    counts = [0, 2000, 10000]  # the first 20 columns
    annotation = {"category_id": 1, "bbox": [0, 0, 20, 100]}
    polygon = {**annotation, "segmentation": [[0, 0, 20, 0, 20, 100, 0, 100]]}
    crowd = {**annotation, "segmentation": {"size": [100, 120], "counts": counts}}
    mask = np.zeros((100, 120), np.uint8)
    mask[:, :20] = 1
    text = mask_to_rle(mask)
    octets = {**text, "counts": text["counts"].encode()}
    for kind in (crowd["segmentation"], text, octets):
        for item in (polygon, crowd):
            found = [{"category_id": 1, "segmentation": kind, "score": 1}]
            reference = {"image_id": 1, **SIZE, "annotations": [item]}
            assert module("masks").compute(predictions=[found], references=[reference])["AP"] == pytest.approx(1)


def test_evaluate_loads_the_file():
    metric = evaluate.load(metrics.__file__, "boxes")
    predictions, references = pictures()
    numbers = metric.compute(predictions=predictions, references=references)
    assert numbers == evaluate_boxes(*as_coco(predictions, references)) and "picture by picture" in type(metric).__doc__


def test_two_processes_are_one(module):
    predictions, references = pictures()
    answers = [None, None]

    def work(process_id):
        metric = module("boxes", num_process=2, process_id=process_id, experiment_id="two")
        mine = slice(process_id, None, 2)
        answers[process_id] = metric.compute(predictions=predictions[mine], references=references[mine])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert answers == [module("boxes").compute(predictions=predictions, references=references), None]


def test_wrong_rows(module):
    predictions, references = pictures()
    with pytest.raises(ValueError, match="unknown configuration 'default': known are boxes, voc, masks"):
        module(None)
    with pytest.raises(ValueError, match="3 predictions for 4 references"):
        module("boxes").add_batch(predictions=predictions[:3], references=references)
    with pytest.raises(ValueError, match=r"a reference has no 'height' \(it has image_id, annotations\)"):
        module("masks").add(prediction=[], reference={"image_id": 1, "annotations": []})
    with pytest.raises(ValueError, match="picture 11 was added twice"):
        module("boxes").compute(predictions=predictions[:1] * 2, references=references[:1] * 2)
    with pytest.raises(ValueError, match="an object has an empty segmentation"):
        references[0]["annotations"][0]["segmentation"] = []
        module("masks").add(prediction=[], reference=references[0])
    with pytest.raises(ValueError, match="picture 5 has no 'bbox'"):
        found = [{"category_id": 1, "score": 0.5}]
        reference = {"image_id": 5, "annotations": [{"category_id": 1}]}
        module("boxes").compute(predictions=[found], references=[reference])
