"""Outlines that are asked for in cuts of the picture, `mask_crop_pad_scale`: training, evaluation and prediction."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from pix2seq_hf import Pix2SeqConfig, Pix2SeqProcessor
from pix2seq_hf.engine import TaskOptions, run_tasks
from pix2seq_hf.evaluation.oracle import answer_by_tokens
from pix2seq_hf.evaluation.predictions import Question, answer
from pix2seq_hf.given_boxes import Boxes
from pix2seq_hf.masks_pix2seq import rle_to_mask
from pix2seq_hf.processing_pix2seq import TASKS
from pix2seq_hf.training.build import build_loader, samples_of_row
from test_training_tasks import CONFIG, build_dataset, folder, parts_of, tiny  # noqa: F401
from tiny_multitask import multitask_config, multitask_model, multitask_processor

NAME, TASK = "instance_segmentation", TASKS["instance_segmentation"]
HEIGHT, WIDTH = 60, 80
# A small thing in the middle, a large one at the border, one that reaches outside, one that is outside.
BOXES_XYXY = torch.tensor([[40.0, 30, 50, 42], [0, 0, 70, 50], [60, 40, 90, 70], [100, 100, 120, 130]])
LABELS = torch.tensor([1, 18, 1, 18])


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


@pytest.fixture(scope="module")
def cutting():
    model = multitask_model(mask_crop_pad_scale=0.25)
    return model, multitask_processor(model.config)


def test_the_setting_is_checked_saved_and_handed_on(tmp_path):
    assert Pix2SeqConfig().mask_crop_pad_scale is None
    with pytest.raises(ValueError, match=r"mask_crop_pad_scale must be at least 0 or None, got -0.1"):
        Pix2SeqConfig(mask_crop_pad_scale=-0.1)
    config = multitask_config(mask_crop_pad_scale=0.25)
    processor = multitask_processor(config)
    assert TASK.crop_pad_scale(config) == TASK.crop_pad_scale(processor) == 0.25
    assert TASK.crop_pad_scale(multitask_config()) is None and TASKS["keypoint_detection"].crop_pad_scale(config) == 0.5
    config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert Pix2SeqConfig.from_pretrained(tmp_path).mask_crop_pad_scale == 0.25
    assert Pix2SeqProcessor.from_pretrained(tmp_path).mask_crop_pad_scale == 0.25


def test_cuts_keep_the_outline_of_a_small_object(picture):
    outline = [40, 31, 44, 30, 50, 35, 46, 42, 41, 38]
    content = {
        "images": [{"id": 3, "height": HEIGHT, "width": WIDTH, "file_name": "3.png"}],
        "annotations": [{"image_id": 3, "category_id": 1, "bbox": [40, 30, 10, 12], "segmentation": [outline]}],
        "categories": [{"id": 1, "name": "person"}],
    }
    overlaps = {}
    for pad_scale in (None, 0.25):
        config = multitask_config(quantization_bins=30, mask_crop_pad_scale=pad_scale)
        [found] = answer_by_tokens(NAME, content, multitask_processor(config))
        [exact] = answer_by_tokens(NAME, content, multitask_processor(multitask_config(quantization_bins=2000)))
        mask, wanted = rle_to_mask(found["segmentation"]) > 0, rle_to_mask(exact["segmentation"]) > 0
        assert mask.shape == (HEIGHT, WIDTH)
        overlaps[pad_scale] = (mask & wanted).sum() / (mask | wanted).sum()
    assert overlaps[0.25] >= 0.9 and overlaps[None] <= 0.8


def test_the_processor_asks_about_one_object_in_each_cut(picture, cutting):
    _, processor = cutting
    asked = {"boxes": [BOXES_XYXY[:2]], "labels": [LABELS[:2]]}
    inputs = processor(images=[picture], task=NAME, **asked, return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 48, 64) and inputs["decoder_input_ids"].shape == (2, 6)
    # The small one has the pixels 29 to 42 and 39 to 50, and three more on each side: 20 x 18 from (26, 36) on.
    ymin, xmin = inputs["decoder_input_ids"][0, 1:3].tolist()
    assert ymin - 1000 == pytest.approx(1000 * 4 / 20, abs=1)
    assert xmin - 1000 == pytest.approx(1000 * 4 / 18 * 43 / 64, abs=1)  # as wide as 43 of 64 pixels
    entries = [{"bbox": [40, 30, 10, 12], "category_id": 1, "segmentation": [[40, 30, 50, 30, 50, 42, 40, 42]]}]
    annotation = {"image_id": 1, "annotations": entries}
    training = processor(images=[picture], annotations=[annotation], task=NAME, return_tensors="pt")
    assert training["decoder_input_ids"][0, :6].equal(inputs["decoder_input_ids"][0])
    assert training["pixel_values"][0].equal(inputs["pixel_values"][0])
    corners = training["labels"][0, 5:7].tolist()  # the first point is the box's first corner
    assert corners == [ymin, xmin]


def test_training_looks_at_the_cuts_that_the_processor_makes(folder):  # noqa: F811
    config = {**CONFIG, "mask_crop_pad_scale": 0.25}
    settings = {"use_flip": False, "use_evaluation_resize": True, "min_scale": 1.0, "max_scale": 1.0}
    recipe = tiny(model={"config": config}, instance_segmentation=settings)
    material, model, processor = parts_of(recipe, folder)
    samples = build_dataset(NAME, recipe, material, model.config)
    assert len(samples) == 5  # not the crowd
    loader = build_loader(recipe, NAME, samples, model.config, processor, 0, 1, Accelerator(cpu=True))
    batch = next(iter(loader))
    assert batch["decoder_input_ids"].shape == batch["labels"].shape == (2, 1, 17)
    picture = Image.open(folder / "train2017/1.png")
    entry = {"bbox": [4, 4, 26, 24], "category_id": 1, "segmentation": [[4, 4, 30, 6, 20, 28]]}
    annotation = {"image_id": 1, "annotations": [entry]}
    wanted = processor(images=[picture], annotations=[annotation], task=NAME, return_tensors="pt")
    found = batch["decoder_input_ids"][:, 0]
    # All objects have this box and outline; the class is one of two.
    assert found[:, :5].equal(wanted["decoder_input_ids"][:, :5].expand(2, 5))
    assert found[:, 6:].equal(wanted["decoder_input_ids"][:, 6:].expand(2, -1))
    row = {"polygons_xy": [[[1.0, 2, 3, 4, 5, 6]], [], [[1.0, 2, 3, 4, 5, 6]]], "is_crowd": [False, False, True]}
    assert samples_of_row(NAME, row, model.config) == [0]
    assert samples_of_row(NAME, row, multitask_config()) == [None]


def test_jitter_moves_what_the_decoder_reads_and_nothing_else():
    points = torch.tensor([[0.2, 0.3, 0.8, 0.3, 0.5, 0.9, -2, -2, 0.1, 0.1, -1, -1]])
    record = {"boxes_yxyx": torch.tensor([[0.2, 0.3, 0.8, 0.9]]), "labels": torch.tensor([1]), "polygons_yx": points}
    vocabulary = multitask_processor(multitask_config()).vocabulary
    options = {"max_instances_per_image": 2, "max_points_per_object": 6}
    plain = TASK.targets(record, vocabulary, **options)
    with pytest.raises(ValueError, match="point_jitter draws random numbers: pass rng"):
        TASK.targets(record, vocabulary, **options, point_jitter=0.1)
    moved = TASK.targets(record, vocabulary, np.random.default_rng(0), **options, point_jitter=0.1)
    assert moved.labels.equal(plain.labels) and moved.label_weights.equal(plain.label_weights)
    is_moved = moved.decoder_input_ids != plain.decoder_input_ids
    assert is_moved[0].tolist() == [False] * 6 + [True] * 6 + [False] * 2 + [True] * 2 + [False]
    assert not is_moved[1].any()  # padding
    read = moved.decoder_input_ids[0][is_moved[0]]
    assert vocabulary.is_coordinate(read).all()
    far = [
        TASK.targets(record, vocabulary, np.random.default_rng(seed), **options, point_jitter=0.1).decoder_input_ids
        for seed in range(200)
    ]
    deviation = (torch.stack(far)[:, 0, 6].double() - plain.decoder_input_ids[0, 6]).std().item()
    assert deviation == pytest.approx(100, rel=0.2)  # a tenth of a thousand bins


def test_prediction_and_evaluation_draw_the_same_masks(picture, cutting):
    model, processor = cutting
    inside = BOXES_XYXY.clamp(min=0).minimum(torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]))[:3]
    # By hand, object by object.
    wanted = []
    for box, label in zip(inside, LABELS):
        asked = {"boxes": [box[None]], "labels": [label[None]]}
        inputs = processor(images=[picture], task=NAME, **asked, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, num_return_sequences=1)
        [found] = processor.post_process_generation(output, task=NAME, target_sizes=[(HEIGHT, WIDTH)], **asked)
        assert found["masks"].shape == (1, HEIGHT, WIDTH)
        assert (rle_to_mask(found["rles"][0]) == found["masks"][0].numpy()).all()
        wanted += found["rles"]
    assert len({json.dumps(str(rle)) for rle in wanted}) == 3
    # Two pictures at once, in groups of two objects.
    options = TaskOptions(NAME, generate_kwargs={"do_sample": False}, max_crops=2)
    boxes = Boxes(BOXES_XYXY, LABELS, torch.ones(4))
    results = run_tasks(model, processor, [picture, picture], options, [boxes, boxes[:1]])
    assert [item.rle for item in results[0].objects] == [*wanted, None] and results[1].objects[0].rle == wanted[0]
    # In evaluation.
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    records = [{"image": pixels, "image_id": number, "image_size": (HEIGHT, WIDTH)} for number in (5, 6)]
    corners, sides = BOXES_XYXY[:, :2], BOXES_XYXY[:, 2:] - BOXES_XYXY[:, :2]
    rows = zip(LABELS.tolist(), torch.cat([corners, sides], 1).tolist())
    items = [{"image_id": 5, "category_id": label, "bbox": box, "score": 0.5} for label, box in rows]
    question = Question((NAME,), items, generation={NAME: {"do_sample": False, "num_return_sequences": 1}})
    first, second = answer(model, processor, records, question)
    assert [item["segmentation"] for item in first.results[NAME]] == wanted and second.results[NAME] == []


def test_every_sample_of_an_object_counts(picture, cutting):
    model, processor = cutting
    boxes = Boxes(BOXES_XYXY[:2], LABELS[:2], torch.ones(2))
    few, many = (
        run_tasks(model, processor, [picture], TaskOptions(NAME, num_samples=number, seed=1), [boxes])[0].objects
        for number in (1, 5)
    )
    assert all(item.rle is not None for item in (*few, *many)) and few[0].rle != many[0].rle
    again = run_tasks(model, processor, [picture], TaskOptions(NAME, num_samples=5, seed=1), [boxes])[0].objects
    assert [item.rle for item in again] == [item.rle for item in many]
