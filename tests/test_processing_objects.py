"""The processor and tasks about objects or text: conditions and annotations in, masks, keypoints and captions out."""

import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from pix2seq_hf import TASKS, Pix2SeqForConditionalGeneration, Pix2SeqProcessor
from pix2seq_hf.generation_pix2seq import build_generation_config
from pix2seq_hf.image_processing_pix2seq import crop_region
from pix2seq_hf.masks_pix2seq import mask_to_rle, rasterize
from test_processing import caption_tokenizer
from tiny_model import noise_picture, tiny_config

OBJECT_TASKS = [name for name, task in TASKS.items() if task.needs_boxes]
OTHER_TASKS = [name for name, task in TASKS.items() if not task.needs_boxes]
HAND = ["wrist", "left thumb", "right thumb", "palm", "tip"]
SIZES = [(40, 50), (90, 20)]  # in an input of 32 x 48 they fill 32 x 40 and 32 x 7
BOXES = [[[10, 5, 40, 25], [0, 0, 50, 40]], [[2, 30, 12, 80]]]
LABELS = [[1, 18], ["person"]]


def make_config(**overrides):
    return tiny_config(**{"tasks": list(TASKS), "vocab_size": 3010, "max_points_per_object": 12, **overrides})


@pytest.fixture
def processor():
    return Pix2SeqProcessor.from_config(make_config(), caption_tokenizer=caption_tokenizer())


@pytest.fixture
def pictures():
    return [noise_picture(*size, seed=seed) for seed, size in enumerate(SIZES)]


def box_tokens(box_xyxy, size, unpadded, bins=1000):
    """The four tokens of a box in pixels, for an input of 32 x 48."""
    scale = np.array([unpadded[0] / size[0] / 32, unpadded[1] / size[1] / 48])
    xmin, ymin, xmax, ymax = box_xyxy
    return (np.rint(np.array([ymin, xmin, ymax, xmax]) * np.tile(scale, 2) * (bins - 1)).astype(int) + 1000).tolist()


def test_prompts_about_boxes(processor, pictures):
    inputs = processor(pictures, task="instance_segmentation", boxes=BOXES, labels=LABELS, return_tensors="pt")
    assert inputs["task"] == "instance_segmentation" and inputs["pixel_values"].shape == (2, 3, 32, 48)
    assert inputs["decoder_input_ids"].tolist() == [
        [[11, *box_tokens(box, SIZES[0], (32, 40)), token] for box, token in zip(BOXES[0], (101, 118))],
        [[11, *box_tokens(BOXES[1][0], SIZES[1], (32, 7)), 101], [0] * 6],
    ]
    whole = processor(pictures, return_tensors="pt")["pixel_values"]
    assert inputs["pixel_values"].equal(whole)


def test_keypoints_look_at_cuts(processor, pictures):
    inputs = processor(pictures, task="keypoint_detection", boxes=BOXES, labels=LABELS, return_tensors="pt")
    assert inputs["pixel_values"].shape == (3, 3, 32, 48) and inputs["decoder_input_ids"].shape == (3, 6)
    row = 0
    for picture, size, boxes in zip(pictures, SIZES, BOXES):
        for box in boxes:
            xmin, ymin, xmax, ymax = box
            normalised = torch.tensor([ymin / size[0], xmin / size[1], ymax / size[0], xmax / size[1]])
            top, left, height, width = crop_region(normalised, size, 0.5)
            assert height >= min(1.5 * (ymax - ymin), size[0]) and width >= min(1.5 * (xmax - xmin), size[1])
            cut = np.asarray(picture)[top : top + height, left : left + width]
            assert inputs["pixel_values"][row].equal(processor(cut, return_tensors="pt")["pixel_values"][0])
            row += 1
    # The second box is the whole picture, so its cut is too.
    assert inputs["decoder_input_ids"][1].tolist() == [12, *box_tokens(BOXES[0][1], (40, 50), (32, 40)), 118]


def test_cuts_of_every_kind_of_picture(processor):
    """Paths, turned pictures, gray and transparent ones, arrays and tensors are cut upright, in the right place."""
    array = np.array(noise_picture(40, 50))
    options = {"task": "keypoint_detection", "boxes": [[10, 5, 40, 25]], "labels": [1], "return_tensors": "pt"}
    expected = processor(noise_picture(40, 50), **options)["pixel_values"]
    floats = torch.from_numpy(array).permute(2, 0, 1).float()
    for picture in (array, torch.from_numpy(array).permute(2, 0, 1), floats, floats.numpy()):
        assert processor(picture, **options)["pixel_values"].equal(expected)
    lying = noise_picture(40, 50).transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6  # says how to turn it
    assert lying.size == (40, 50) and processor(lying, **options)["pixel_values"].equal(expected)
    scaled = processor(floats / 255, do_rescale=False, **options)["pixel_values"]
    assert torch.allclose(scaled, expected, atol=1e-6)
    gray = np.asarray(noise_picture(40, 50).convert("L"))
    assert processor(gray, **options)["pixel_values"].shape == (1, 3, 32, 48)
    tiny = processor(array, **{**options, "boxes": [[10, 5, 10.5, 5.5]]})  # a cut of few pixels
    assert tiny["pixel_values"].shape == (1, 3, 32, 48)


@pytest.mark.parametrize("task", OBJECT_TASKS)
def test_one_picture_needs_no_list(processor, pictures, task):
    options = {"task": task, "return_tensors": "pt"}
    expected = processor(pictures[0], boxes=[BOXES[0]], labels=[LABELS[0]], **options)
    for boxes in (BOXES[0], np.array(BOXES[0]), torch.tensor(BOXES[0]), [torch.tensor(BOXES[0])]):
        for labels in (LABELS[0], ["person", "dog"], torch.tensor([1, 18]), [np.array([1, 18])]):
            inputs = processor(pictures[0], boxes=boxes, labels=labels, **options)
            assert all(inputs[name].equal(expected[name]) for name in ("pixel_values", "decoder_input_ids"))


@pytest.mark.parametrize("task", OBJECT_TASKS)
@pytest.mark.parametrize("boxes", [[[], []], [np.zeros((0, 4)), torch.zeros(0, 4)]])
def test_pictures_without_objects(processor, pictures, task, boxes):
    inputs = processor(pictures, task=task, boxes=boxes, labels=[[], []], return_tensors="pt")
    rows = 0 if task == "keypoint_detection" else 2
    assert inputs["pixel_values"].shape == (rows, 3, 32, 48)
    assert inputs["decoder_input_ids"].numel() == 0 and inputs["decoder_input_ids"].shape[-1] == 6
    assert inputs["decoder_input_ids"].dtype == torch.int64
    sequences = torch.zeros(0, 20, dtype=torch.int64)
    results = processor.post_process_generation(
        sequences, task=task, target_sizes=SIZES, boxes=boxes, labels=[[], []]
    )  # fmt: skip
    assert len(results) == 2
    for result, (height, width) in zip(results, SIZES):
        assert result["boxes"].shape == (0, 4) and result["scores"].shape == result["labels"].shape == (0,)
        assert result["malformed"] == {}
        if task == "keypoint_detection":
            assert result["keypoints"].shape == (0, 17, 2) and result["keypoint_visible"].shape == (0, 17)
        else:
            assert result["masks"].shape == (0, height, width) and result["rles"] == result["polygons_xy"] == []
    single = processor(pictures[0], task=task, boxes=[], labels=[], return_tensors="pt")
    assert single["decoder_input_ids"].numel() == 0


@pytest.mark.parametrize("task", OBJECT_TASKS)
def test_four_hundred_objects(processor, task):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 20, (400, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 20, (400, 2))], -1)
    inputs = processor(noise_picture(40, 50), task=task, boxes=boxes, labels=[1] * 400, return_tensors="pt")
    assert inputs["decoder_input_ids"].reshape(-1, 6).shape == (400, 6)
    assert (inputs["decoder_input_ids"] > 0).all()


def test_boxes_that_reach_outside_are_clipped_and_it_is_said(processor, pictures):
    boxes = [[[-3, 5, 60, 25.5], [0, 0, 50, 40]], [[2, 30, 12, 90.25]]]
    inside = [[[0, 5, 50, 25.5], [0, 0, 50, 40]], [[2, 30, 12, 90]]]
    options = {"task": "instance_segmentation", "labels": LABELS, "return_tensors": "pt"}
    with pytest.warns(UserWarning, match=r"boxes(\[0\])?\[0\] and 1 more outside of the picture") as caught:
        clipped = processor(pictures, boxes=boxes, **options)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = processor(pictures, boxes=inside, **options)
        sequences = torch.zeros(4, 10, dtype=torch.int64)
        results = processor.post_process_generation(
            sequences, task="instance_segmentation", target_sizes=SIZES, boxes=boxes, labels=LABELS
        )
    assert clipped["decoder_input_ids"].equal(expected["decoder_input_ids"])
    assert results[0]["boxes"].tolist() == inside[0] and results[1]["boxes"].tolist() == inside[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"boxes": None}, "is asked about objects: pass boxes= and labels="),
        ({"labels": None}, "boxes without labels: pass labels="),
        ({"boxes": [[[1, 2, 1, 9]]]}, r"boxes(\[0\])?\[0\] \[1, 2, 1, 9\] has no area"),
        ({"boxes": [[[1, 9, 5, 9]]]}, "has no area"),
        ({"boxes": [[[5, 2, 1, 9]]]}, "is reversed: give xmin, ymin, xmax, ymax"),
        ({"boxes": [[[1, 2, float("nan"), 9]]]}, r"\[1, 2, nan, 9\] is not finite"),
        ({"boxes": [[[1, 2, float("inf"), 9]]]}, "is not finite"),
        ({"boxes": [[[60, 2, 70, 9]]]}, "lies outside of its picture of 50 x 40 pixels"),
        ({"boxes": [[[1, 2, 3]]]}, "rows of four numbers"),
        ({"boxes": [["left"]]}, "rows of four numbers"),
        ({"boxes": 5}, "boxes must be a list with one entry per picture, got 5"),
        ({"boxes": [BOXES[0], BOXES[0]]}, "boxes were given for 2 pictures, there are 1"),
        ({"labels": [[1, 1]]}, "2 labels were given for the 1 boxes of picture 0"),
        ({"labels": [[7]]}, "unknown label 7: the model knows 1 person, 18 dog, 90 toothbrush"),
        ({"labels": [["unicorn"]]}, "unknown label 'unicorn': the model knows"),
        ({"annotations": {"annotations": []}}, "not both"),
        ({"task": "object_detection"}, "object_detection takes no boxes= and labels="),
        ({"task": "captioning"}, "captioning takes no boxes="),
        ({"task": "counting"}, "unknown task 'counting': known are object_detection, instance_segmentation"),
    ],
)
def test_mistakes_get_a_clear_line(processor, pictures, wrong, message):
    arguments = {"task": "instance_segmentation", "boxes": [[[1, 2, 5, 9]]], "labels": [[1]], **wrong}
    with pytest.raises(ValueError, match=message):
        processor(pictures[0], return_tensors="pt", **arguments)


def test_a_model_without_names_takes_any_label_that_has_a_token(pictures):
    processor = Pix2SeqProcessor.from_config(make_config(id2label=None))
    options = {"task": "instance_segmentation", "boxes": [[1, 2, 5, 9]], "return_tensors": "pt"}
    assert processor(pictures[0], labels=[899], **options)["decoder_input_ids"][0, 0, 5] == 999
    for label in (0, 900, -70, "dog"):
        with pytest.raises(ValueError, match="labels go from 1 to 899"):
            processor(pictures[0], labels=[label], **options)


def test_text_needs_a_tokenizer(pictures):
    processor = Pix2SeqProcessor.from_config(make_config())
    with pytest.raises(ValueError, match="captioning needs a tokenizer, and the model was saved without one"):
        processor(pictures, task="captioning", return_tensors="pt")
    with pytest.raises(ValueError, match="captioning needs a tokenizer"):
        processor.post_process_generation(torch.zeros(2, 5, dtype=torch.int64), task="captioning")


def test_results_of_objects_need_what_was_asked(processor):
    sequences = torch.zeros(3, 5, dtype=torch.int64)
    asked = {"target_sizes": SIZES, "boxes": BOXES, "labels": LABELS}
    for missing in ("target_sizes", "boxes"):
        with pytest.raises(ValueError, match="needs target_sizes=, boxes= and labels="):
            processor.post_process_generation(sequences, task="keypoint_detection", **{**asked, missing: None})
    with pytest.raises(ValueError, match="3 sequences do not belong to 2 x 2 boxes"):
        processor.post_process_generation(sequences, task="instance_segmentation", **asked)
    with pytest.raises(ValueError, match="one finite number for each of 2 boxes"):
        processor.post_process_generation(sequences, task="keypoint_detection", scores=[[1], [1]], **asked)


# --- Training ---------------------------------------------------------------------------------------------------------


def test_training_polygons(processor, pictures):
    square = {"bbox": [10, 5, 30, 20], "category_id": 18, "segmentation": [[10, 5, 40, 5, 40, 25, 10, 25]]}
    ring = np.zeros((40, 50), np.uint8)
    ring[5:25, 10:40] = 1
    holed = {**square, "segmentation": mask_to_rle(ring - np.pad(ring[10:20, 20:30], ((10, 20), (20, 20))))}
    crowd = {**square, "iscrowd": 1, "segmentation": {"size": [40, 50], "counts": [2000]}}
    given = {"image_id": 1, "annotations": [square, crowd, holed]}
    batch = processor(
        pictures[0], annotations=given, task="instance_segmentation", task_options={"max_instances_per_image": 3},
        return_tensors="pt",
    )  # fmt: skip
    assert set(batch) == {"pixel_values", "decoder_input_ids", "labels", "label_weights"}
    assert batch["decoder_input_ids"].shape == batch["labels"].shape == (1, 3, 5 + 24)
    sequences = torch.cat([batch["decoder_input_ids"][0, :, :1], batch["labels"][0]], -1)[:2]
    corners = box_tokens([10, 5, 40, 25], (40, 50), (32, 40))
    ymin, xmin, ymax, xmax = corners
    assert sequences[0].tolist() == [11, *corners, 118, ymin, xmin, ymin, xmax, ymax, xmax, ymax, xmin] + [0] * 16
    asked = {"boxes": [[[10, 5, 40, 25]] * 2], "labels": [[18, 18]]}
    (result,) = processor.post_process_generation(
        sequences, task="instance_segmentation", target_sizes=SIZES[:1], **asked
    )  # fmt: skip
    assert (result["masks"][0].numpy() == ring).all()
    assert result["masks"][1].sum() == ring.sum() - 100 and not result["masks"][1][12:18, 22:28].any()
    model = Pix2SeqForConditionalGeneration(make_config())
    assert torch.isfinite(model(**batch).loss)


def test_long_polygons_are_shortened_not_cut(processor, pictures):
    angle = np.linspace(0, 2 * np.pi, 300, endpoint=False)
    circle = np.stack([25 + 12 * np.cos(angle), 20 + 12 * np.sin(angle)], -1)
    entry = {"bbox": [13, 8, 24, 24], "category_id": 1, "segmentation": [circle.reshape(-1).tolist()]}
    given = {"image_id": 1, "annotations": [entry]}
    labels = processor(pictures[0], annotations=given, task="instance_segmentation", return_tensors="pt")["labels"]
    asked = {"boxes": [[13, 8, 37, 32]], "labels": [1]}
    (result,) = processor.post_process_generation(
        labels[0, :1, 5:], task="instance_segmentation", target_sizes=SIZES[:1], **asked
    )
    true = rasterize([[circle.reshape(-1)]], (40, 50)).full()
    ours = result["masks"][0].numpy()
    assert (ours & true).sum() / (ours | true).sum() > 0.9


def keypoint_entry(*triples, box=(10, 5, 30, 20), label=1):
    flat = [number for triple in triples for number in triple]
    return {"bbox": list(box), "category_id": label, "keypoints": flat, "num_keypoints": len(triples)}


def test_training_keypoints(pictures):
    config = make_config(keypoint_names=HAND, keypoint_labels=[18], quantization_bins=400, text_vocab_shift=3000)
    processor = Pix2SeqProcessor.from_config(config)
    triples = [(12, 6, 2), (39, 24, 1), (0, 0, 0), (20.5, 10.25, 2), (48, 39, 2)]
    hand = keypoint_entry(*triples, label=18)
    hidden = keypoint_entry(*[(0, 0, 0)] * 5, label=18)
    person = keypoint_entry(*triples, label=1)
    annotations = [
        {"image_id": 1, "annotations": [hidden, hand, person]},
        {"image_id": 2, "annotations": [keypoint_entry(*[(3, 40, 2)] * 5, box=(2, 30, 10, 50), label=18)]},
    ]
    batch = processor(
        pictures, annotations=annotations, task="keypoint_detection", task_options={"mask_inputs": False},
        return_tensors="pt",
    )  # fmt: skip
    assert batch["pixel_values"].shape == (2, 3, 32, 48) and batch["labels"].shape == (2, 15)
    assert (batch["label_weights"][0, 5:].tolist()) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 1, 1, 0.1, 0.1])
    sequences = torch.cat([batch["decoder_input_ids"][:, :1], batch["labels"]], -1)
    first, second = processor.post_process_generation(
        sequences, task="keypoint_detection", target_sizes=SIZES, labels=[[18], [18]],
        boxes=[[[10, 5, 40, 25]], [[2, 30, 12, 80]]],
    )  # fmt: skip
    # The last one lies outside of the cut, 15 pixels around the box at the left and right and 10 above and below.
    assert first["keypoint_visible"].tolist() == [[True, True, False, True, False]]
    visible = first["keypoint_visible"][0]
    error = (first["keypoints"][0] - torch.tensor([triple[:2] for triple in triples]))[visible].abs().max()
    assert error < 0.1
    assert second["keypoints"].shape == (1, 5, 2) and second["keypoint_visible"].all()
    assert (second["keypoints"] - torch.tensor([3.0, 40.0])).abs().max() < 0.3
    inputs = processor(pictures, task="keypoint_detection", boxes=[[[10, 5, 40, 25]], [[2, 30, 12, 80]]],
                       labels=[[18], [18]], return_tensors="pt")  # fmt: skip
    assert inputs["decoder_input_ids"].equal(sequences[:, :6])  # the same prompts, in training and after
    assert inputs["pixel_values"].equal(batch["pixel_values"])
    model = Pix2SeqForConditionalGeneration(config)
    assert torch.isfinite(model(**batch).loss)


def test_training_captions(processor, pictures):
    annotations = [
        {"image_id": 1, "annotations": [{"caption": "a dog"}, {"caption": "dog"}]},
        {"image_id": 2, "annotations": [{"caption": "a"}]},
    ]
    batch = processor(pictures, annotations=annotations, task="captioning", return_tensors="pt")
    assert batch["labels"].shape == (2, 5, 128)
    assert batch["labels"][0, :3, :3].tolist() == [[3003, 3004, 3001], [3004, 3001, 0], [3003, 3004, 3001]]
    results = processor.post_process_generation(batch["labels"].flatten(0, 1), task="captioning", target_sizes=SIZES)
    assert [result["captions"] for result in results] == [["a dog", "dog", "a dog", "dog", "a dog"], ["a"] * 5]
    single = processor.post_process_generation(batch["labels"][0, :1], task="captioning")
    assert single == [{"captions": ["a dog"], "malformed": {}}]
    model = Pix2SeqForConditionalGeneration(make_config())
    assert torch.isfinite(model(**batch).loss)


@pytest.mark.parametrize(
    ("task", "entry", "message"),
    [
        ("instance_segmentation", {}, r"annotations\[0\] \(image 1\), object 0: needs a segmentation"),
        ("instance_segmentation", {"segmentation": [[1, 2, 3]]}, "object 0: a polygon must be a flat list"),
        ("instance_segmentation", {"segmentation": {"size": [1, 2], "counts": [2]}}, "object 0: run lengths are for"),
        ("instance_segmentation", {"segmentation": {"size": [40, 50], "counts": [2]}}, "do not add up"),
        ("keypoint_detection", {}, "object 0: needs keypoints"),
        ("keypoint_detection", {"keypoints": [1, 2, 2]}, "object 0: keypoints must be 17 times x, y, v, got 3 numbers"),
        ("keypoint_detection", {"keypoints": [0] * 51}, "the annotations hold no object for keypoint_detection"),
        ("captioning", {}, "entry 0: needs a caption"),
        ("captioning", {"caption": ["a"]}, "entry 0: needs a caption"),
    ],
)
def test_annotations_that_do_not_fit_the_task(processor, pictures, task, entry, message):
    given = {"image_id": 1, "annotations": [{"bbox": [1, 2, 30, 20], "category_id": 1, **entry}]}
    with pytest.raises(ValueError, match=message):
        processor(pictures[0], annotations=given, task=task, return_tensors="pt")


# --- The way back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_generation_round_trip(processor, pictures, task):
    config = make_config()
    torch.manual_seed(0)
    model = Pix2SeqForConditionalGeneration(config).eval()
    model.generation_config = build_generation_config(config)
    asked = {"boxes": [[], BOXES[1]], "labels": [[], LABELS[1]]} if task in OBJECT_TASKS else {}
    inputs = processor(pictures, task=task, return_tensors="pt", **asked)
    output = model.generate(**inputs.to("cpu"))
    scores = {"scores": [[], [0.25]]} if asked else {}
    results = processor.post_process_generation(output, task=task, target_sizes=SIZES, **asked, **scores)
    assert len(results) == 2 and "half" not in results[1]["malformed"]
    if task == "instance_segmentation":
        assert results[1]["masks"].shape == (1, 90, 20) and results[1]["scores"].tolist() == [0.25]
        assert results[0]["masks"].shape == (0, 40, 50)
    elif task == "keypoint_detection":
        assert results[1]["keypoints"].shape == (1, 17, 2) and 0 < results[1]["scores"][0] < 0.1
        assert results[0]["keypoints"].shape == (0, 17, 2)
    elif task == "captioning":
        assert all(len(result["captions"]) == 1 for result in results)


def test_padding_rows_are_left_out(processor):
    square = [1000, 1000, 1000, 1416, 1500, 1416, 1500, 1000, 0, 0]
    prompt = [11, 1000, 1000, 1500, 1416, 101]
    rows = [prompt + square] * 4 + [prompt + square] * 2 + [[0] * 6 + [1500] * 10] * 2  # two samples each
    options = {"task": "instance_segmentation", "target_sizes": SIZES, "boxes": BOXES, "labels": LABELS}
    first, second = processor.post_process_generation(torch.tensor(rows), scores=[[0.5, 0.75], [1.0]], **options)
    assert first["masks"].shape == (2, 40, 50) and second["masks"].shape == (1, 90, 20)
    assert first["masks"][0].sum() == first["masks"][1].sum() == 20 * 25
    assert second["malformed"] == {} and first["scores"].tolist() == [0.5, 0.75]
    bare = processor.post_process_generation(torch.tensor(rows)[:, 6:], **options)
    assert bare[0]["masks"].equal(first["masks"]) and bare[1]["rles"] == second["rles"]
    (kept, _) = processor.post_process_generation(
        torch.tensor(rows), threshold=0.6, scores=[[0.5, 0.75], [1.0]], **options
    )
    assert kept["labels"].tolist() == [18] and kept["masks"].shape == (1, 40, 50)
    (strict, _) = processor.post_process_generation(
        torch.tensor(rows[:3] + [prompt + [0] * 10] + rows[4:]), task_options={"ensemble_threshold": 0.9}, **options
    )
    assert strict["masks"][0].any() and not strict["masks"][1].any()


def test_a_hundred_masks_are_not_slow(processor):
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    rows = []
    for _ in range(100):
        centre, radius = rng.uniform(100, 900, 2), rng.uniform(20, 300, (8, 1)) + rng.normal(0, 5, (8, 64))
        points = centre + radius[..., None] * np.stack([np.sin(angle), np.cos(angle)], -1)
        rows.append(np.clip(points, 0, 999).astype(int).reshape(8, 128) + 1000)
    sequences = torch.from_numpy(np.concatenate(rows))
    size, boxes = (480, 640), np.tile([0, 0, 640, 480], (100, 1))
    options = {"task": "instance_segmentation", "target_sizes": [size], "boxes": boxes, "labels": [1] * 100}
    start = time.perf_counter()
    (result,) = processor.post_process_generation(sequences, **options)
    assert time.perf_counter() - start < 20  # it takes about one second
    assert result["masks"].shape == (100, *size) and result["masks"].flatten(1).any(-1).all()


def test_another_skeleton_is_saved_and_loaded(tmp_path):
    config = make_config(keypoint_names=HAND, keypoint_skeleton=[(0, 1), (0, 2)], keypoint_labels=[18],
                         max_points_per_object=33, max_caption_length=20)  # fmt: skip
    processor = Pix2SeqProcessor.from_config(config)
    processor.save_pretrained(tmp_path)
    again = Pix2SeqProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert again.keypoint_names == HAND and again.keypoint_skeleton == [(0, 1), (0, 2)]
    assert again.keypoint_pairs == [(1, 2)] and again.keypoint_labels == [18]
    assert again.max_points_per_object == 33 and again.max_caption_length == 20
    assert len(Pix2SeqProcessor().keypoint_names) == 17 and Pix2SeqProcessor().keypoint_labels == [1]
    with pytest.raises(ValueError, match="keypoints count from 0 to 4"):
        Pix2SeqProcessor(keypoint_names=HAND, keypoint_skeleton=[(0, 5)])
